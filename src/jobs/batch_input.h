/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The lines of a batch job's input, one after another: of gigabytes only a buffer and one line are in memory. One owner
 * thread.
 */
#ifndef PST_JOBS_BATCH_INPUT_H
#define PST_JOBS_BATCH_INPUT_H

#include <stdbool.h>

#include "penstock/types.h"

enum { PST_BATCH_LINE_BYTES = 8 << 20 }; /* a longer line is answered with an error */

typedef struct pst_batch_input pst_batch_input;

/* A line that is not blank, without its end. */
typedef struct pst_batch_raw {
    const char *text; /* NUL-terminated; the reader's until the next call */
    size_t bytes;
    bool too_long;   /* only the beginning is there */
    uint64_t number; /* of the line in the file, from 1 */
    uint64_t index;  /* among those that are not blank, from 0 */
    uint64_t hash;   /* of the whole line */
} pst_batch_raw;

/* path: a regular file, or "-": standard input, of which a copy is kept without a name beside `output` until closing. */
int pst_batch_input_open(const char *path, const char *output, pst_batch_input **out, pst_error *err);
void pst_batch_input_close(pst_batch_input *input);
/* 1: a line; 0: no more. */
int pst_batch_input_next(pst_batch_input *input, pst_batch_raw *out, pst_error *err);
void pst_batch_input_rewind(pst_batch_input *input);
uint64_t pst_batch_input_bytes(const pst_batch_input *input); /* of the whole file, when it was opened */
uint64_t pst_batch_input_at(const pst_batch_input *input);    /* bytes taken so far */
/* Of everything that was read since the last rewind. */
uint64_t pst_batch_input_digest(const pst_batch_input *input);

#endif
