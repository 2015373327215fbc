/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Passes as recordings of an accelerator. A pass of generated tokens is hundreds of calls of microseconds each, which the host
 * makes hardly faster than a device carries them out. Where everything that they work with stays where it is, these calls depend
 * on a few numbers alone: positions, rows and blocks are in tables in the device's memory. So the calls of a pass whose numbers
 * came before are recorded, and those of all further ones are one replay.
 *
 * The first pass of its numbers is run as it is: the device takes what memory its kernels want. The second one is recorded and
 * replayed. What cannot be recorded, or takes memory that is not there, runs as it is; after some such failures all do.
 */
#ifndef PST_NN_RECORDER_H
#define PST_NN_RECORDER_H

#include "nn/program.h"

/* Recordings that are kept; the one that was used longest ago goes. */
enum { PST_RECORDINGS = 4 };

/* What the calls of a pass depend on, beside what stays. */
typedef struct pst_recorder_key {
    uint32_t rows, segments, logit_rows;
    uint32_t max_rows;      /* of a segment */
    uint32_t max_positions; /* as the calls say it: rounded up */
} pst_recorder_key;

typedef struct pst_recorder pst_recorder;

/* The caller destroys *out, before the device and whatever passes work with. The device outlives it. */
int pst_recorder_create(pst_device *device, pst_recorder **out, pst_error *err);
void pst_recorder_destroy(pst_recorder *recorder);
/* Memory that the recordings of a program come to take, of the host's and of the device's own each: the arguments of launches.
 * Reckoned, since no vendor tells. */
uint64_t pst_recorder_bytes(const pst_program *program);

/* Makes a pass's calls of the device, on its compute stream, from the first one on, whether it was called before in this pass
 * or not. */
typedef int pst_recorder_pass(void *context, pst_error *err);
typedef enum pst_recorder_result {
    PST_RECORDER_RUN,      /* the pass's calls were made */
    PST_RECORDER_RECORDED, /* and recorded, and replayed */
    PST_RECORDER_REPLAYED  /* none was */
} pst_recorder_result;
/* Has a pass carried out, one way or another. *out is set when it succeeds. After a failure the pass is lost. */
int pst_recorder_run(pst_recorder *recorder, const pst_recorder_key *key, pst_recorder_pass *pass, void *context,
                     pst_recorder_result *out, pst_error *err);
/* After each pass, once the device was waited for: gives back what is not kept any longer. */
void pst_recorder_settle(pst_recorder *recorder);

#endif
