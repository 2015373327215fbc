/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ring of a stream: buffers that are free, filled and waiting for their turn, or under way. They are taken from a pool one
 * by one as they are needed, so that a small file takes little. Transient errors of writes are tried again here.
 * One thread.
 */
#ifndef PST_CKPT_RING_H
#define PST_CKPT_RING_H

#include "ckpt/job.h"

enum { PST_CKPT_RING_OPS = 16 }; /* of one buffer */

typedef struct pst_ckpt_buffer {
    struct pst_ckpt_buffer *next;
    char *memory; /* pst_ckpt_ring_buffer_bytes of it */
    pst_io_batch *batch;
    pst_io_op ops[PST_CKPT_RING_OPS]; /* what is to be written out of it */
    uint32_t op_count;
    uint32_t tries; /* in vain */
} pst_ckpt_buffer;

typedef struct pst_ckpt_ring pst_ckpt_ring;

/* ring_bytes: at most so much memory. most_bytes: buffers need not be larger. */
int pst_ckpt_ring_create(pst_io *io, uint64_t ring_bytes, uint64_t most_bytes, const char *near_path,
                         const pst_ckpt_hooks *hooks, pst_ckpt_ring **out, pst_error *err);
/* Drops what is under way. */
void pst_ckpt_ring_destroy(pst_ckpt_ring *ring);
uint64_t pst_ckpt_ring_buffer_bytes(const pst_ckpt_ring *ring);
/* A free buffer, no operations in it; the ring's. Waits for one; PST_E_CANCELLED. A failed write is told here. */
int pst_ckpt_ring_take(pst_ckpt_ring *ring, pst_ckpt_buffer **out, pst_error *err);
/* A buffer that was taken: its operations are carried out when it is their turn. */
void pst_ckpt_ring_put(pst_ckpt_ring *ring, pst_ckpt_buffer *buffer);
/* Sends on their way those whose turn it is. */
int pst_ckpt_ring_move(pst_ckpt_ring *ring, pst_error *err);
/* Waits for all that was put. */
int pst_ckpt_ring_drain(pst_ckpt_ring *ring, pst_error *err);

typedef struct pst_ckpt_ring_figures {
    uint64_t written_bytes, retried, held_bytes;
    uint32_t most_under_way; /* buffers */
} pst_ckpt_ring_figures;
void pst_ckpt_ring_get_figures(const pst_ckpt_ring *ring, pst_ckpt_ring_figures *out);

#endif
