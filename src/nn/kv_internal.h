/* SPDX-License-Identifier: Apache-2.0 */
/* What kv.c (memory and tables) and kv_share.c (which blocks hold which ids) share. */
#ifndef PST_NN_KV_INTERNAL_H
#define PST_NN_KV_INTERNAL_H

#include "nn/device_memory.h"
#include "nn/kv.h"

#define PST_KV_NONE UINT32_MAX

/* A block of the pool. Free ones are on the stack; `kept` ones, which hold a whole block of ids that nobody uses now, in the
 * list by age; the others are in tables of sequences. */
typedef struct pst_kv_record {
    uint32_t holders; /* sequences that have it */
    uint32_t rows;    /* first rows that are computed, or will be by the pass that is put together */
    uint64_t pass;    /* which wrote its last row: number of passes begun before it */
    bool indexed;     /* others can find it by parent and ids */
    uint32_t parent;  /* the block before it in its prefix; NONE: it is the first */
    uint32_t chain;   /* the next one of its bucket */
    uint32_t older, newer;
} pst_kv_record;

typedef struct pst_kv_window pst_kv_window;

struct pst_kv {
    pst_kv_config config;
    uint32_t blocks, blocks_per_sequence; /* of the pool; entries of a sequence's table */
    uint64_t block_bytes, layer_bytes;    /* of one layer: a block; all blocks */
    uint64_t kv_bytes;
    unsigned char *memory; /* of whoever computes; NULL: blocks come through a window */
    pst_kv_window *window; /* NULL: they do not */
    uint64_t passes;       /* begun */
    /* The pass under way: segments, and without a window whether this layer's were given out. */
    pst_segment *segments;
    const uint32_t *sequences;
    uint32_t segment_count;
    bool is_given;
    pst_kv_record *records;
    uint32_t *free; /* stack of blocks that hold nothing */
    uint32_t free_count;
    uint32_t *table;                   /* [sequence][blocks_per_sequence] */
    uint32_t *reached;                 /* by sequence: how many of them it has */
    void **bound;                      /* like the table: their memory in layer 0, or their slots */
    pst_mirror bound_table;            /* which `bound` is the host's half of */
    size_t changed_first, changed_end; /* entries of it that the device has not seen; on the host of no meaning */

    /* With config.sharing. */
    uint32_t *ids;     /* [block][PST_KV_BLOCK], of indexed blocks */
    uint32_t *buckets; /* first block of each chain */
    uint32_t bucket_mask;
    uint32_t oldest, newest, kept_count;
};

static inline uint32_t *pst_kv_table_of(pst_kv *kv, uint32_t sequence)
{
    return kv->table + (size_t)sequence * kv->blocks_per_sequence;
}

/* A block that holds nothing, with one holder and no rows; the oldest kept one is given up for it if need be. */
uint32_t pst_kv_take_free(pst_kv *kv);
/* A block's last holder left: it is kept if it is indexed and whole, else free. */
void pst_kv_drop(pst_kv *kv, uint32_t block);
/* Entries of the table of buckets for a pool of so many blocks. */
uint32_t pst_kv_bucket_count(uint64_t blocks);
/* Gives up the oldest kept block: it is free then. */
void pst_kv_forget_oldest(pst_kv *kv);

/* Whether blocks come to attention through a window. */
static inline bool pst_kv_has_window(const pst_kv_config *config)
{
    return config->folder != NULL || (config->apart && config->offload);
}

/* Enters where the sequence's block number `number` is, or its slot. */
void pst_kv_bind_block(pst_kv *kv, uint32_t sequence, uint32_t number, void *memory);

/* kv_window.c; what kv.h says of the functions without "window". false: more than 64 bits hold. */
bool pst_kv_window_measure(const pst_kv_config *config, uint64_t blocks, pst_kv_memory *out);
int pst_kv_window_create(pst_kv *kv, const pst_kv_memory *memory, pst_error *err);
void pst_kv_window_destroy(pst_kv *kv);
/* The segments are kv's; their blocks are bound. */
int pst_kv_window_begin_pass(pst_kv *kv, pst_error *err);
int pst_kv_window_next_group(pst_kv *kv, uint32_t layer, uint32_t *first, uint32_t *count, pst_error *err);
int pst_kv_window_end_group(pst_kv *kv, pst_error *err);
uint64_t pst_kv_window_offset(const pst_kv_window *window);
void pst_kv_window_get_traffic(const pst_kv_window *window, pst_kv_traffic *out); /* adds to it */

#endif
