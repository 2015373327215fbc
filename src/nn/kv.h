/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cache of keys and values of a session: a pool of blocks of PST_KV_BLOCK positions, each of all layers, and a table of
 * blocks per sequence. A sequence gets a block when it reaches its positions and gives its blocks back when it is removed.
 * The pool has as many as all sequences at full length need, or fewer where the owner sees to it that the sequences together
 * never reach more (infer/step.c reserves them beforehand), so that reaching never fails for want of one; what sharing
 * (kv_share.c) saves is memory for blocks that nobody uses now and somebody may want again.
 *
 * The blocks are in the memory of whoever computes, or they are elsewhere (a file; the host's memory, where an accelerator
 * computes) and come from there layer by layer while a pass goes on (kv_window.c). Attention goes through a layer in groups of
 * segments: with all blocks in reach there is one, else as many as the window needs. The results are the same.
 *
 * Order, in memory or file: [layer][block][cpu/kv.h's block], so that what one layer's attention reads of neighbouring blocks
 * lies together. Threads: the session's owner.
 */
#ifndef PST_NN_KV_H
#define PST_NN_KV_H

#include "base/trace.h"
#include "nn/config.h"
#include "penstock/io.h"

typedef struct pst_kv pst_kv;

/* Enough that reading a part of it takes a fast drive several milliseconds. */
#define PST_KV_DEFAULT_WINDOW_BYTES (UINT64_C(192) << 20)

typedef struct pst_kv_config {
    pst_kv_layout layout;
    uint32_t layers;
    uint32_t max_sequences;
    uint32_t max_tokens;  /* positions of a sequence */
    uint32_t blocks;      /* of the pool, those of one sequence at least; 0: of all sequences at full length */
    bool sharing;         /* sequences that begin with the same ids share whole blocks */
    uint32_t window;      /* positions that layers of `windowed` look at; 0: none */
    const bool *windowed; /* by layer; outlives the cache; NULL: none */
    pst_trace *trace;     /* NULL: none; outlives the cache */
    /* Where blocks are, unless it is the memory of whoever computes. */
    const char *folder; /* of a file that has them, which exists; NULL: in memory */
    pst_io *io;         /* reads and writes it; outlives the cache */
    bool offload;       /* an accelerator's are in the host's memory */
    uint64_t
        window_bytes; /* memory for blocks on their way, as far as one sequence per part allows: where the file is read to, and an
                       * accelerator's; 0: a default */
    /* Where attention is computed. */
    pst_device *device; /* outlives the cache; NULL: the host's */
    bool apart;         /* the device's memory is its own: !device->ops->is_host. Measuring goes by this alone */
} pst_kv_config;

/* The layout of a model's cache. */
pst_kv_layout pst_kv_layout_of(const pst_transformer *transformer, pst_kv_type type);

/* Memory that pst_kv_create will take, for the planner: of keys and values, and of tables. All UINT64_MAX: more than
 * 64 bits (or blocks than 30 bits) hold. */
typedef struct pst_kv_memory {
    uint64_t kv_bytes, table_bytes;
    uint64_t disk_bytes; /* no memory: the file */
    /* In a device's own memory: of kv_bytes nothing is left on the host, or what is not in the device's window; table_bytes are on
     * the host all the same. */
    uint64_t device_kv_bytes, device_table_bytes;
} pst_kv_memory;
void pst_kv_measure(const pst_kv_config *config, pst_kv_memory *out);
/* What moved. */
typedef struct pst_kv_traffic {
    uint64_t bytes_read, bytes_written; /* of the file */
    uint64_t link_bytes;                /* to an accelerator */
    uint64_t wait_ns;                   /* the owner waited for transfers */
} pst_kv_traffic;
/* What a pass reads for a row at `position` of one sequence, and sends over the link; nothing where all blocks are in reach. A
 * block that becomes whole is written to the file once besides. */
pst_kv_traffic pst_kv_row_traffic(const pst_kv_config *config, uint32_t position);

/* The caller destroys *out. */
int pst_kv_create(const pst_kv_config *config, pst_kv **out, pst_error *err);
void pst_kv_destroy(pst_kv *kv);

/* Blocks that so many positions of a sequence take. */
static inline uint32_t pst_kv_blocks_of(uint64_t positions)
{
    return (uint32_t)((positions + PST_KV_BLOCK - 1) / PST_KV_BLOCK);
}

/* Blocks of the pool. */
uint32_t pst_kv_block_count(const pst_kv *kv);

/* Sees to it that the sequence (< max_sequences) has blocks for its first `positions` (<= max_tokens): no more than the pool
 * has, of all sequences together. Memory of a block that was used before holds what it held. */
void pst_kv_reach(pst_kv *kv, uint32_t sequence, uint32_t positions);
/* Gives the sequence's blocks back. */
void pst_kv_release(pst_kv *kv, uint32_t sequence);
/* Without a window: the sequence's blocks of layer 0, as pst_segment wants them (in the device's memory, once the pass has
 * begun). */
void *const *pst_kv_bind(pst_kv *kv, uint32_t sequence);
/* What is added to a bound block's address in this layer, pst_attention's block_offset; with a window, that of the group under
 * way. */
uint64_t pst_kv_layer_offset(const pst_kv *kv, uint32_t layer);

/* A pass begins with these segments of these sequences, rising in rows, one of each sequence at most. Their blocks are seen to
 * (pst_kv_reach). Both arrays stay the caller's until the next pass; `blocks` is set here. After a failure of this or of the
 * next two functions the cache can only be destroyed. An accelerator gets the tables of blocks on its compute stream, and is
 * done with them before the next pass begins. */
int pst_kv_begin_pass(pst_kv *kv, pst_segment *segments, const uint32_t *sequences, uint32_t count, pst_error *err);
/* The next group of segments of a layer (layers in rising order): 1: segments [*first, *first + *count) are bound until
 * pst_kv_end_group, for what is put on the compute stream; 0: all were given. Their rows are stored between the two. */
int pst_kv_next_group(pst_kv *kv, uint32_t layer, uint32_t *first, uint32_t *count, pst_error *err);
int pst_kv_end_group(pst_kv *kv, pst_error *err);
/* Without a window: the pass begins again with its first layer. */
void pst_kv_rewind(pst_kv *kv);
void pst_kv_get_traffic(const pst_kv *kv, pst_kv_traffic *out); /* so far */
/* How fast blocks reach an accelerator, in bytes per second; 0: none has to. Before the first pass only. */
int pst_kv_measure_link(pst_kv *kv, double *out, pst_error *err);

/* What a sequence does about its next block of ids. */
typedef enum pst_kv_next {
    PST_KV_COMPUTE, /* its rows, which are its own */
    PST_KV_TAKEN, /* nothing: it has the block of one that began with the same ids, computed or in the pass under way */
    PST_KV_WAIT   /* another one is about to compute the block: to be asked again when the next pass is put together */
} pst_kv_next;
/* With sharing: a sequence whose rows so far fill its blocks is about to compute `ids`, a whole block of them. Whoever begins a
 * pass with rows that others have TAKEN must compute them in it. */
pst_kv_next pst_kv_share(pst_kv *kv, uint32_t sequence, const uint32_t *ids);
/* With sharing: the rows at positions [from, to) of the sequence are in the pass that is put together. ids: the sequence's,
 * from its first one to `to` at least. A block that becomes whole is for others to share if `for_others`. */
void pst_kv_advance(pst_kv *kv, uint32_t sequence, uint32_t from, uint32_t to, const uint32_t *ids, bool for_others);

/* Blocks that no sequence has. */
uint32_t pst_kv_free_blocks(const pst_kv *kv);

#endif
