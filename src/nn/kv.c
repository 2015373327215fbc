/* SPDX-License-Identifier: Apache-2.0 */
/* The cache's memory and tables; see kv.h. */
#include "nn/kv.h"

#include "base/error.h"
#include "base/heap.h"
#include "os/memory.h"

struct pst_kv {
    pst_kv_config config;
    uint32_t blocks, blocks_per_sequence;
    uint64_t block_bytes, layer_bytes; /* of one layer: a block; all blocks */
    uint64_t kv_bytes;
    unsigned char *memory;
    uint32_t *free; /* stack of the blocks that nobody has */
    uint32_t free_count;
    uint32_t *table;   /* [sequence][blocks_per_sequence] */
    uint32_t *reached; /* by sequence: how many of them it has */
    void **bound;      /* like the table: their memory in the layer bound last */
};

pst_kv_layout pst_kv_layout_of(const pst_transformer *t, pst_kv_type type)
{
    if (t->latent.kv_lora_rank == 0)
        return (pst_kv_layout){.type = type, .kv_heads = t->kv_heads, .key_dim = t->head_dim, .value_dim = t->head_dim};
    return (pst_kv_layout){.type = type,
                           .kv_heads = 1,
                           .key_dim = t->latent.kv_lora_rank + t->latent.rope_dim,
                           .value_dim = t->latent.kv_lora_rank,
                           .shared = true};
}

static uint64_t blocks_of_sequence(const pst_kv_config *c)
{
    return ((uint64_t)c->max_tokens + PST_KV_BLOCK - 1) / PST_KV_BLOCK;
}

void pst_kv_measure(const pst_kv_config *c, pst_kv_memory *out)
{
    /* Below 2^16 heads, 2^13 elements and 2^26 blocks of a sequence (config.c), so only these products can overflow. */
    uint64_t layer = pst_kv_block_bytes(&c->layout), blocks = blocks_of_sequence(c) * c->max_sequences, all;
    *out = (pst_kv_memory){UINT64_MAX, UINT64_MAX};
    if (blocks >= UINT32_MAX || __builtin_mul_overflow(layer, c->layers, &all) ||
        __builtin_mul_overflow(all, blocks, &all))
        return;
    out->kv_bytes = all;
    out->table_bytes = sizeof(pst_kv) + blocks * (2 * sizeof(uint32_t) + sizeof(void *)) +
                       (uint64_t)c->max_sequences * sizeof(uint32_t);
}

int pst_kv_create(const pst_kv_config *config, pst_kv **out, pst_error *err)
{
    pst_kv_memory memory;
    pst_kv_measure(config, &memory);
    if (memory.kv_bytes == UINT64_MAX)
        return pst_fail(err, PST_E_BUDGET, NULL, "the KV cache of %u sequences of %u tokens fits no memory",
                        config->max_sequences, config->max_tokens);
    pst_kv *kv = pst_heap_calloc(1, sizeof *kv);
    if (kv == NULL)
        return pst_fail_memory(err, "the KV cache", sizeof *kv);
    kv->config = *config;
    kv->blocks_per_sequence = (uint32_t)blocks_of_sequence(config);
    kv->blocks = kv->blocks_per_sequence * config->max_sequences;
    kv->block_bytes = pst_kv_block_bytes(&config->layout);
    kv->layer_bytes = kv->block_bytes * kv->blocks;
    kv->kv_bytes = memory.kv_bytes;
    kv->free = pst_heap_calloc(kv->blocks, sizeof *kv->free);
    kv->table = pst_heap_calloc(kv->blocks, sizeof *kv->table);
    kv->bound = pst_heap_calloc(kv->blocks, sizeof *kv->bound);
    kv->reached = pst_heap_calloc(config->max_sequences, sizeof *kv->reached);
    int status = 0;
    if (!kv->free || !kv->table || !kv->bound || !kv->reached)
        PST_TRY_GOTO(fail, pst_fail_memory(err, "the KV cache's tables", memory.table_bytes));
    PST_TRY_GOTO(fail, pst_memory_map(kv->kv_bytes, "the KV cache", (void **)&kv->memory, err));
    for (uint32_t i = 0; i < kv->blocks; i++) /* the first one on top */
        kv->free[kv->free_count++] = kv->blocks - 1 - i;
    *out = kv;
    return 0;
fail:
    pst_kv_destroy(kv);
    return status;
}

void pst_kv_destroy(pst_kv *kv)
{
    if (kv == NULL)
        return;
    pst_memory_unmap(kv->memory, kv->kv_bytes);
    pst_heap_free(kv->free);
    pst_heap_free(kv->table);
    pst_heap_free(kv->bound);
    pst_heap_free(kv->reached);
    pst_heap_free(kv);
}

void pst_kv_reach(pst_kv *kv, uint32_t sequence, uint32_t positions)
{
    uint32_t wanted = (uint32_t)(((uint64_t)positions + PST_KV_BLOCK - 1) / PST_KV_BLOCK);
    uint32_t *table = kv->table + (size_t)sequence * kv->blocks_per_sequence;
    while (kv->reached[sequence] < wanted)
        table[kv->reached[sequence]++] = kv->free[--kv->free_count];
}

void pst_kv_release(pst_kv *kv, uint32_t sequence)
{
    const uint32_t *table = kv->table + (size_t)sequence * kv->blocks_per_sequence;
    while (kv->reached[sequence] > 0)
        kv->free[kv->free_count++] = table[--kv->reached[sequence]];
}

void *const *pst_kv_bind(pst_kv *kv, uint32_t sequence, uint32_t layer)
{
    const size_t first = (size_t)sequence * kv->blocks_per_sequence;
    for (uint32_t i = 0; i < kv->reached[sequence]; i++)
        kv->bound[first + i] = kv->memory + layer * kv->layer_bytes + (uint64_t)kv->table[first + i] * kv->block_bytes;
    return kv->bound + first;
}

uint32_t pst_kv_free_blocks(const pst_kv *kv)
{
    return kv->free_count;
}
