/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The computation of one pass: the activations of its rows and the function that the stages call.
 *
 * A stage's operators run in order as its weights arrive: a matrix product computes the output columns whose weight rows
 * are in the part, an operator without weights runs as soon as it is its turn. All rows of the pass go through a part
 * before it is let go. Threads: the session's owner.
 *
 * On an accelerator: begin and gathered hand over what the host knows of the rows, compute queues work, end waits for it. In
 * between the host waits only where it must know how many rows each expert got. A pass that failed may leave work queued:
 * destroying waits for it.
 */
#ifndef PST_NN_FORWARD_H
#define PST_NN_FORWARD_H

#include "nn/kv.h"
#include "nn/program.h"
#include "nn/recorder.h"
#include "nn/routing_trace.h"

typedef struct pst_forward_config {
    const pst_transformer *transformer;
    pst_program *program;
    pst_device *device;      /* computes */
    pst_device *host;        /* the host's, for what stays there; NULL: `device`, which then is the host's */
    bool apart;              /* the device's memory is its own: !device->ops->is_host. Measuring goes by this alone */
    uint32_t max_rows;       /* of a pass */
    uint32_t max_logit_rows; /* of a pass whose logits are wanted */
    uint32_t fetched_rows;   /* apart: of these, so many at a time can be fetched to the host */
    uint32_t max_sequences;
    uint32_t max_tokens;    /* positions of a sequence */
    pst_dtype compute_type; /* F32 or BF16 */
    pst_kv_type kv_type;
    pst_kv *kv;                             /* the caller's, outlives the forward */
    const pst_routing_trace *routing_trace; /* replaces the routers' choice; NULL: nothing does; outlives the forward */
    bool record_routing;                    /* for pst_forward_routing */
    bool repeats; /* passes of generated tokens may be recorded: apart, the cache has no window, no layer has experts */
    bool look_ahead; /* keep a copy of the routers, to guess the next layer's experts with */
} pst_forward_config;

/* Memory that pst_forward_create will take, for the planner: activations per row of a pass, more of them per row
 * whose logits are wanted, per row of those that can be fetched at a time, and the rest. Numbers of rows and kv do
 * not count. Of the host's memory, and of a device's own (zero where it has none). */
typedef struct pst_forward_memory {
    uint64_t row_bytes, logit_row_bytes, fetched_row_bytes, fixed_bytes;
    uint64_t device_row_bytes, device_logit_row_bytes, device_fixed_bytes;
} pst_forward_memory;
void pst_forward_measure(const pst_forward_config *config, pst_forward_memory *out);

/* What looking ahead takes, part of fixed_bytes when it is asked for. */
uint64_t pst_look_ahead_bytes(const pst_transformer *transformer, const pst_program *program);

int pst_forward_create(const pst_forward_config *config, pst_forward **out, pst_error *err);
void pst_forward_destroy(pst_forward *forward);

/* One row of a pass. Rows of one sequence follow each other with rising positions. */
typedef struct pst_row {
    uint32_t sequence; /* slot, < max_sequences */
    uint32_t position; /* < max_tokens */
    uint32_t id;       /* token */
    uint32_t prompt;   /* positions that its sequence began with: those from there on are of generated tokens */
    bool wants_logits;
    uint64_t serial; /* of the sequence, for a routing trace: how many began before it */
} pst_row;

/* Sets the rows of the next pass (copied): those of generated tokens first, and of one sequence none after its prompt's. */
int pst_forward_begin(pst_forward *forward, const pst_row *rows, uint32_t count, pst_error *err);
/* Receives the embedding of row `index` as it lies in the file; a pst_ring_row. */
int pst_forward_embed(void *forward, size_t index, const void *row);
/* The same with the learned position of row `index`, after all embeddings: for the program's gathered stage 1. */
int pst_forward_embed_position(void *forward, size_t index, const void *row);
/* Hands the gathered rows to the device: after the last one, before the first part. */
int pst_forward_gathered(pst_forward *forward, pst_error *err);
/* A pst_stage_compute; the context is a pst_nn_stage. The part is in the memory of the device that computes, which may not be
 * done with it when this returns. */
int pst_forward_compute(void *context, const pst_stage *stage, const pst_part_view *part, pst_error *err);
/* With config.repeats: whether the pass that has begun is of generated tokens only, so that its calls of the device may be recorded
 * as far as it is up to them (weights are the caller's to know of), and what they depend on. What they say of positions is
 * rounded, which changes no bit. */
bool pst_forward_repeats(const pst_forward *forward, pst_recorder_key *out);
/* The pass begins again with its first part; only of such passes. */
void pst_forward_rewind(pst_forward *forward);
/* After the last part: waits for the device and tells what went wrong since. Nothing that came into the pass is used any more
 * when it has succeeded. */
int pst_forward_end(pst_forward *forward, pst_error *err);
/* A pst_stage_choose of the stage that computes logits: whether a row of this pass wants any. */
uint32_t pst_forward_choose_head(void *context, const pst_stage *stage, bool *wanted);
/* How fast a pass of `rows` rows (at most max_rows), of a prompt or of generated tokens, multiplies with the
 * largest matrices of parts that are in memory, in operations per second: the best of bursts, which take 200 ms at
 * most or little more; 0 when there is none among them. Before the first pass only: it computes into the pass's buffers. */
int pst_forward_measure_rate(pst_forward *forward, const pst_stage_part *parts, uint32_t part_count, uint32_t rows,
                             bool prompt, double *out, pst_error *err);
/* The experts of a row of the last pass: those of the first layer with experts, then of the next; with record_routing. */
const uint32_t *pst_forward_routing(const pst_forward *forward, uint32_t row);
/* Logits of the rows that wanted them, in their order, F32, in the memory of the device that computes; valid until the next
 * begin. */
pst_matrix pst_forward_logits(const pst_forward *forward);
/* Logits in the host's memory: of the first `count` rows that wanted them or, only where the device is apart, of `count` of
 * them by number. Waits for the device. At most fetched_rows, which are valid until the next time. */
int pst_forward_fetch_logits(pst_forward *forward, const uint32_t *rows, uint32_t count, pst_matrix *out,
                             pst_error *err);

#endif
