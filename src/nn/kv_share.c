/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shared prefixes. A block of ids after a given prefix has the same keys and values whoever computes it, so blocks are
 * found by the block before them (which stands for the whole prefix) and their ids, compared one by one. A whole block whose
 * last holder left is kept until its memory is wanted, the one left longest ago first: holders leave from their last block
 * to their first one, so that a block is always given up before the one that it follows.
 */
#include <string.h>

#include "base/number.h"
#include "nn/kv_internal.h"

uint32_t pst_kv_bucket_count(uint64_t blocks)
{
    uint32_t count = 1;
    while (count < blocks)
        count *= 2;
    return count;
}

static uint32_t *bucket_of(pst_kv *kv, uint32_t parent, const uint32_t *ids)
{
    uint64_t hash = pst_mix(parent);
    for (uint32_t i = 0; i < PST_KV_BLOCK; i++)
        hash = pst_mix(hash ^ ids[i]);
    return &kv->buckets[hash & kv->bucket_mask];
}

static uint32_t find(pst_kv *kv, uint32_t parent, const uint32_t *ids)
{
    uint32_t block = *bucket_of(kv, parent, ids);
    while (block != PST_KV_NONE && (kv->records[block].parent != parent ||
                                    memcmp(kv->ids + (size_t)block * PST_KV_BLOCK, ids, PST_KV_BLOCK * sizeof *ids)))
        block = kv->records[block].chain;
    return block;
}

static void add_to_index(pst_kv *kv, uint32_t block, uint32_t parent, const uint32_t *ids)
{
    pst_kv_record *r = &kv->records[block];
    uint32_t *bucket = bucket_of(kv, parent, ids);
    memcpy(kv->ids + (size_t)block * PST_KV_BLOCK, ids, PST_KV_BLOCK * sizeof *ids);
    r->indexed = true;
    r->parent = parent;
    r->chain = *bucket;
    *bucket = block;
}

static void remove_from_index(pst_kv *kv, uint32_t block)
{
    pst_kv_record *r = &kv->records[block];
    uint32_t *at = bucket_of(kv, r->parent, kv->ids + (size_t)block * PST_KV_BLOCK);
    while (*at != block)
        at = &kv->records[*at].chain;
    *at = r->chain;
    r->indexed = false;
}

static void unlink_kept(pst_kv *kv, uint32_t block)
{
    const pst_kv_record *r = &kv->records[block];
    *(r->older == PST_KV_NONE ? &kv->oldest : &kv->records[r->older].newer) = r->newer;
    *(r->newer == PST_KV_NONE ? &kv->newest : &kv->records[r->newer].older) = r->older;
    kv->kept_count--;
}

void pst_kv_drop(pst_kv *kv, uint32_t block)
{
    pst_kv_record *r = &kv->records[block];
    if (!r->indexed || r->rows < PST_KV_BLOCK) {
        if (r->indexed)
            remove_from_index(kv, block);
        kv->free[kv->free_count++] = block;
        return;
    }
    r->older = kv->newest;
    r->newer = PST_KV_NONE;
    *(r->older == PST_KV_NONE ? &kv->oldest : &kv->records[r->older].newer) = block;
    kv->newest = block;
    kv->kept_count++;
}

void pst_kv_forget_oldest(pst_kv *kv)
{
    uint32_t block = kv->oldest;
    unlink_kept(kv, block);
    remove_from_index(kv, block);
    kv->free[kv->free_count++] = block;
}

/* The block that stands for all before the sequence's block number `count`. */
static uint32_t parent_of(pst_kv *kv, uint32_t sequence, uint32_t count)
{
    return count == 0 ? PST_KV_NONE : pst_kv_table_of(kv, sequence)[count - 1];
}

pst_kv_next pst_kv_share(pst_kv *kv, uint32_t sequence, const uint32_t *ids)
{
    uint32_t *count = &kv->reached[sequence], parent = parent_of(kv, sequence, *count);
    if (parent != PST_KV_NONE && !kv->records[parent].indexed)
        return PST_KV_COMPUTE; /* somebody else's block is found under these ids, so none follows this one */
    uint32_t block = find(kv, parent, ids);
    if (block == PST_KV_NONE) {
        block = pst_kv_take_free(kv);
        add_to_index(kv, block, parent, ids);
        pst_kv_table_of(kv, sequence)[(*count)++] = block;
        return PST_KV_COMPUTE;
    }
    pst_kv_record *r = &kv->records[block];
    if (r->rows < PST_KV_BLOCK || (kv->window != NULL && r->pass == kv->passes))
        return PST_KV_WAIT; /* to a window it can come in the passes after the one that wrote it */
    if (r->holders++ == 0)
        unlink_kept(kv, block);
    pst_kv_table_of(kv, sequence)[(*count)++] = block;
    return PST_KV_TAKEN;
}

void pst_kv_advance(pst_kv *kv, uint32_t sequence, uint32_t from, uint32_t to, const uint32_t *ids, bool for_others)
{
    pst_kv_reach(kv, sequence, to);
    for (uint32_t number = from / PST_KV_BLOCK; number * PST_KV_BLOCK < to; number++) {
        uint32_t block = pst_kv_table_of(kv, sequence)[number], parent = parent_of(kv, sequence, number);
        pst_kv_record *r = &kv->records[block];
        const uint32_t *its_ids = ids + (size_t)number * PST_KV_BLOCK;
        r->rows = to - number * PST_KV_BLOCK < PST_KV_BLOCK ? to - number * PST_KV_BLOCK : PST_KV_BLOCK;
        r->pass = kv->passes;
        if (for_others && r->rows == PST_KV_BLOCK && !r->indexed &&
            (parent == PST_KV_NONE || kv->records[parent].indexed) && find(kv, parent, its_ids) == PST_KV_NONE)
            add_to_index(kv, block, parent, its_ids);
    }
}
