/* SPDX-License-Identifier: Apache-2.0 */
/* The cache's tables, and its memory where whoever computes can reach all of it; see kv.h. */
#include "base/error.h"
#include "base/heap.h"
#include "base/number.h"
#include "nn/kv_internal.h"
#include "os/memory.h"

/* Twice as many, and a power of two no smaller than that, are numbers of 32 bits: the tables that are searched by hash. */
enum { MAX_BLOCKS = 1 << 30 };

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

static uint64_t blocks_of_pool(const pst_kv_config *c)
{
    uint64_t least = pst_kv_blocks_of(c->max_tokens);
    return c->blocks == 0 ? least * c->max_sequences : pst_max(c->blocks, least);
}

/* More than 64 bits hold. */
static const pst_kv_memory too_much = {UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX};

void pst_kv_measure(const pst_kv_config *c, pst_kv_memory *out)
{
    /* Below 2^16 heads, 2^13 elements and 2^26 blocks of a sequence (config.c), so only these products can overflow. */
    uint64_t layer = pst_kv_block_bytes(&c->layout), blocks = blocks_of_pool(c), all;
    *out = too_much;
    if (blocks > MAX_BLOCKS || __builtin_mul_overflow(layer, c->layers, &all) ||
        __builtin_mul_overflow(all, blocks, &all))
        return;
    *out = (pst_kv_memory){.kv_bytes = all};
    uint64_t entries = (uint64_t)pst_kv_blocks_of(c->max_tokens) * c->max_sequences;
    if (c->apart)
        *out = (pst_kv_memory){.device_kv_bytes = all, .device_table_bytes = entries * sizeof(void *)};
    out->table_bytes = sizeof(pst_kv) + blocks * (sizeof(uint32_t) + sizeof(pst_kv_record)) +
                       entries * (sizeof(uint32_t) + sizeof(void *)) + (uint64_t)c->max_sequences * sizeof(uint32_t);
    if (c->sharing)
        out->table_bytes += (blocks * PST_KV_BLOCK + pst_kv_bucket_count(blocks)) * sizeof(uint32_t);
    if (pst_kv_has_window(c) && !pst_kv_window_measure(c, blocks, out))
        *out = too_much;
}

static bool make_index(pst_kv *kv)
{
    uint32_t buckets = pst_kv_bucket_count(kv->blocks);
    kv->ids = pst_heap_calloc(kv->blocks, PST_KV_BLOCK * sizeof *kv->ids);
    kv->buckets = pst_heap_calloc(buckets, sizeof *kv->buckets);
    if (kv->ids == NULL || kv->buckets == NULL)
        return false;
    kv->bucket_mask = buckets - 1;
    for (uint32_t i = 0; i < buckets; i++)
        kv->buckets[i] = PST_KV_NONE;
    return true;
}

int pst_kv_create(const pst_kv_config *config, pst_kv **out, pst_error *err)
{
    pst_kv_memory memory;
    pst_kv_measure(config, &memory);
    if (memory.table_bytes == UINT64_MAX)
        return pst_fail(err, PST_E_BUDGET, NULL, "the KV cache of %u sequences of %u tokens fits no memory",
                        config->max_sequences, config->max_tokens);
    pst_kv *kv = pst_heap_calloc(1, sizeof *kv);
    if (kv == NULL)
        return pst_fail_memory(err, "the KV cache", sizeof *kv);
    kv->config = *config;
    kv->blocks_per_sequence = pst_kv_blocks_of(config->max_tokens);
    kv->blocks = (uint32_t)blocks_of_pool(config);
    const size_t entries = (size_t)kv->blocks_per_sequence * config->max_sequences;
    kv->block_bytes = pst_kv_block_bytes(&config->layout);
    kv->layer_bytes = kv->block_bytes * kv->blocks;
    kv->kv_bytes = pst_kv_has_window(config) ? 0 : memory.kv_bytes + memory.device_kv_bytes;
    kv->oldest = kv->newest = PST_KV_NONE;
    kv->changed_first = SIZE_MAX;
    kv->records = pst_heap_calloc(kv->blocks, sizeof *kv->records);
    kv->free = pst_heap_calloc(kv->blocks, sizeof *kv->free);
    kv->table = pst_heap_calloc(entries, sizeof *kv->table);
    kv->reached = pst_heap_calloc(config->max_sequences, sizeof *kv->reached);
    int status = 0;
    bool made = kv->records && kv->free && kv->table && kv->reached;
    if (!made || (config->sharing && !make_index(kv)))
        PST_TRY_GOTO(fail, pst_fail_memory(err, "the KV cache's tables", memory.table_bytes));
    PST_TRY_GOTO(fail, pst_mirror_create(config->device, entries * sizeof *kv->bound, "the KV cache's tables",
                                         &kv->bound_table, err));
    kv->bound = kv->bound_table.host;
    PST_TRY_GOTO(fail, pst_kv_has_window(config) ? pst_kv_window_create(kv, &memory, err)
                                                 : pst_nn_take_memory(config->device, PST_MEMORY_DEVICE, kv->kv_bytes,
                                                                      "the KV cache", (void **)&kv->memory, err));
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
    if (pst_nn_is_apart(kv->config.device)) /* a pass that failed may still be using it */
        kv->config.device->ops->synchronize(kv->config.device, NULL);
    pst_kv_window_destroy(kv);
    pst_nn_give_memory(kv->config.device, PST_MEMORY_DEVICE, kv->memory, kv->kv_bytes);
    pst_heap_free(kv->records);
    pst_heap_free(kv->ids);
    pst_heap_free(kv->buckets);
    pst_heap_free(kv->free);
    pst_heap_free(kv->table);
    pst_mirror_destroy(kv->config.device, &kv->bound_table);
    pst_heap_free(kv->reached);
    pst_heap_free(kv);
}

uint32_t pst_kv_take_free(pst_kv *kv)
{
    if (kv->free_count == 0) /* then some are kept: those in use are fewer than all */
        pst_kv_forget_oldest(kv);
    uint32_t block = kv->free[--kv->free_count];
    kv->records[block] = (pst_kv_record){.holders = 1};
    return block;
}

void pst_kv_reach(pst_kv *kv, uint32_t sequence, uint32_t positions)
{
    uint32_t wanted = pst_kv_blocks_of(positions);
    while (kv->reached[sequence] < wanted)
        pst_kv_table_of(kv, sequence)[kv->reached[sequence]++] = pst_kv_take_free(kv);
}

void pst_kv_release(pst_kv *kv, uint32_t sequence)
{
    const uint32_t *table = pst_kv_table_of(kv, sequence);
    while (kv->reached[sequence] > 0) {
        uint32_t block = table[--kv->reached[sequence]];
        if (--kv->records[block].holders == 0)
            pst_kv_drop(kv, block);
    }
}

void pst_kv_bind_block(pst_kv *kv, uint32_t sequence, uint32_t number, void *memory)
{
    const size_t at = (size_t)sequence * kv->blocks_per_sequence + number;
    if (kv->bound[at] == memory)
        return;
    kv->bound[at] = memory;
    kv->changed_first = pst_min(kv->changed_first, at);
    kv->changed_end = pst_max(kv->changed_end, at + 1);
}

static void *const *table_there(const pst_kv *kv, uint32_t sequence)
{
    return (void *const *)kv->bound_table.there + (size_t)sequence * kv->blocks_per_sequence;
}

void *const *pst_kv_bind(pst_kv *kv, uint32_t sequence)
{
    const uint32_t *table = pst_kv_table_of(kv, sequence);
    for (uint32_t i = 0; i < kv->reached[sequence]; i++)
        pst_kv_bind_block(kv, sequence, i, kv->memory + (uint64_t)table[i] * kv->block_bytes);
    return table_there(kv, sequence);
}

uint64_t pst_kv_layer_offset(const pst_kv *kv, uint32_t layer)
{
    return kv->window != NULL ? pst_kv_window_offset(kv->window) : layer * kv->layer_bytes;
}

/* What changed of the tables since the last pass goes to the device. */
static int publish_tables(pst_kv *kv, pst_error *err)
{
    pst_device *device = kv->config.device;
    if (kv->changed_end == 0)
        return 0;
    int status = pst_mirror_publish(device, &kv->bound_table, kv->changed_first * sizeof *kv->bound,
                                    (kv->changed_end - kv->changed_first) * sizeof *kv->bound);
    kv->changed_first = SIZE_MAX;
    kv->changed_end = 0;
    return status < 0 ? pst_device_fail(err, device, status, "copying the KV cache's tables") : 0;
}

int pst_kv_begin_pass(pst_kv *kv, pst_segment *segments, const uint32_t *sequences, uint32_t count, pst_error *err)
{
    for (uint32_t i = 0; i < count; i++)
        pst_kv_reach(kv, sequences[i], segments[i].first_position + (uint32_t)segments[i].rows);
    kv->passes++;
    kv->segments = segments;
    kv->sequences = sequences;
    kv->segment_count = count;
    kv->is_given = false;
    for (uint32_t i = 0; i < count; i++)
        segments[i].blocks = kv->window != NULL ? table_there(kv, sequences[i]) : pst_kv_bind(kv, sequences[i]);
    if (kv->window != NULL)
        PST_TRY(pst_kv_window_begin_pass(kv, err));
    return publish_tables(kv, err);
}

int pst_kv_next_group(pst_kv *kv, uint32_t layer, uint32_t *first, uint32_t *count, pst_error *err)
{
    if (kv->window != NULL)
        return pst_kv_window_next_group(kv, layer, first, count, err);
    kv->is_given = !kv->is_given;
    if (!kv->is_given)
        return 0;
    *first = 0;
    *count = kv->segment_count;
    return 1;
}

int pst_kv_end_group(pst_kv *kv, pst_error *err)
{
    return kv->window != NULL ? pst_kv_window_end_group(kv, err) : 0;
}

void pst_kv_rewind(pst_kv *kv)
{
    kv->is_given = false;
}

void pst_kv_get_traffic(const pst_kv *kv, pst_kv_traffic *out)
{
    *out = (pst_kv_traffic){0};
    if (kv->window != NULL)
        pst_kv_window_get_traffic(kv->window, out);
}

uint32_t pst_kv_block_count(const pst_kv *kv)
{
    return kv->blocks;
}

uint32_t pst_kv_free_blocks(const pst_kv *kv)
{
    return kv->free_count + kv->kept_count;
}
