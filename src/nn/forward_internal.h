/* SPDX-License-Identifier: Apache-2.0 */
/* What forward.c (running) and forward_memory.c (making) share. */
#ifndef PST_NN_FORWARD_INTERNAL_H
#define PST_NN_FORWARD_INTERNAL_H

#include "nn/forward.h"

struct pst_forward {
    const pst_transformer *t;
    pst_device *device;
    pst_program *program;
    uint32_t max_rows, max_logit_rows, max_sequences, max_tokens;
    pst_dtype kv_type;

    pst_matrix buffers[PST_NN_BUFFERS]; /* rows are set per pass */
    unsigned char *activations;         /* what they lie in */
    uint64_t activation_bytes;
    unsigned char *kv; /* [sequence][layer][k, v][kv_head][position][head_dim] */
    uint64_t kv_bytes;
    float *rope_table;
    uint64_t rope_bytes;
    unsigned char *bias; /* the bias of the product under way, as in the file */

    /* The rows of this pass. */
    uint32_t row_count, logit_rows;
    uint32_t *positions; /* by row */
    uint32_t *logit_row; /* by logits row: its row */
    pst_segment *segments;
    uint32_t *segment_sequence;
    uint32_t segment_count;

    /* Where the running stage is. */
    uint32_t next_step;
    size_t next_piece;
};

/* Points a segment at its sequence's cache of a layer. */
void pst_forward_bind_cache(const pst_forward *forward, pst_segment *segment, uint32_t sequence, uint32_t layer);

#endif
