/* SPDX-License-Identifier: Apache-2.0 */
/* Vocabulary and merges: linear probing in tables that are at most half full. */
#include "text/vocab.h"

#include <string.h>

#include "base/error.h"
#include "base/heap.h"

/* The smallest power of two that is at least twice `count`. */
static size_t table_size(size_t count)
{
    size_t size = 16;
    while (size < count * 2)
        size *= 2;
    return size;
}

static uint64_t hash_bytes(const char *text, size_t bytes)
{
    uint64_t hash = 0x51ED270B6E1F3A2Du ^ bytes;
    while (bytes >= 8) {
        uint64_t word;
        memcpy(&word, text, 8);
        hash = (hash ^ word) * 0x9E3779B97F4A7C15u;
        hash ^= hash >> 29;
        text += 8;
        bytes -= 8;
    }
    uint64_t tail = 0;
    memcpy(&tail, text, bytes);
    hash = (hash ^ tail) * 0x9E3779B97F4A7C15u;
    hash ^= hash >> 32;
    return hash;
}

int pst_vocab_init(pst_vocab *vocab, size_t count, pst_error *err)
{
    *vocab = (pst_vocab){0};
    vocab->slot_count = table_size(count);
    vocab->slots = pst_heap_calloc(vocab->slot_count, sizeof *vocab->slots);
    if (vocab->slots == NULL)
        return pst_fail_memory(err, "the vocabulary", vocab->slot_count * sizeof *vocab->slots);
    PST_TRY(pst_array_grow(&vocab->entries, &vocab->entry_capacity, count, sizeof *vocab->entries, err));
    return pst_bytes_reserve(&vocab->pool, count * 8, err);
}

void pst_vocab_destroy(pst_vocab *vocab)
{
    pst_bytes_free(&vocab->pool);
    pst_heap_free(vocab->entries);
    pst_heap_free(vocab->slots);
    pst_heap_free(vocab->by_id);
    *vocab = (pst_vocab){0};
}

/* The slot that holds the text, or the empty one where it belongs. */
static uint32_t *find_slot(const pst_vocab *vocab, const char *text, size_t bytes)
{
    size_t mask = vocab->slot_count - 1;
    for (size_t i = (size_t)hash_bytes(text, bytes) & mask;; i = (i + 1) & mask) {
        uint32_t slot = vocab->slots[i];
        if (slot == 0)
            return &vocab->slots[i];
        const pst_vocab_entry *entry = &vocab->entries[slot - 1];
        if (entry->bytes == bytes && memcmp(vocab->pool.data + entry->offset, text, bytes) == 0)
            return &vocab->slots[i];
    }
}

/* Makes by_id reach `id`; new places are empty. */
static int reach_id(pst_vocab *vocab, uint32_t id, pst_error *err)
{
    if (id < vocab->by_id_count)
        return 0;
    size_t capacity = vocab->by_id_count;
    PST_TRY(pst_array_grow(&vocab->by_id, &capacity, (size_t)id + 1, sizeof *vocab->by_id, err));
    memset(vocab->by_id + vocab->by_id_count, 0, (capacity - vocab->by_id_count) * sizeof *vocab->by_id);
    vocab->by_id_count = capacity;
    return 0;
}

int pst_vocab_add(pst_vocab *vocab, const char *text, size_t bytes, uint32_t id, const char *path, pst_error *err)
{
    if (id > PST_VOCAB_MAX_ID)
        return pst_fail(err, PST_E_FORMAT, path, "token id %u is above %d", id, PST_VOCAB_MAX_ID);
    if (vocab->pool.count + bytes > UINT32_MAX || (vocab->count + 1) * 2 > vocab->slot_count)
        return pst_fail(err, PST_E_FORMAT, path, "the vocabulary is too large");
    uint32_t *slot = find_slot(vocab, text, bytes);
    char quoted[PST_QUOTE_BYTES];
    if (*slot != 0)
        return pst_fail(err, PST_E_FORMAT, path, "token \"%s\" is there twice", pst_text_quote(text, bytes, quoted));
    PST_TRY(reach_id(vocab, id, err));
    if (vocab->by_id[id] != 0)
        return pst_fail(err, PST_E_FORMAT, path, "token id %u is there twice", id);
    PST_TRY(pst_array_grow(&vocab->entries, &vocab->entry_capacity, vocab->count + 1, sizeof *vocab->entries, err));
    uint32_t offset = (uint32_t)vocab->pool.count;
    PST_TRY(pst_bytes_append(&vocab->pool, text, bytes, err));
    vocab->entries[vocab->count] = (pst_vocab_entry){.offset = offset, .bytes = (uint32_t)bytes, .id = id};
    vocab->count++;
    *slot = vocab->by_id[id] = (uint32_t)vocab->count;
    return 0;
}

uint32_t pst_vocab_find(const pst_vocab *vocab, const char *text, size_t bytes)
{
    uint32_t slot = *find_slot(vocab, text, bytes);
    return slot ? vocab->entries[slot - 1].id : PST_NO_TOKEN;
}

const char *pst_vocab_text(const pst_vocab *vocab, uint32_t id, size_t *bytes)
{
    if (id >= vocab->by_id_count || vocab->by_id[id] == 0)
        return NULL;
    const pst_vocab_entry *entry = &vocab->entries[vocab->by_id[id] - 1];
    *bytes = entry->bytes;
    return entry->bytes ? vocab->pool.data + entry->offset : "";
}

int pst_merges_init(pst_merges *merges, size_t count, pst_error *err)
{
    merges->slot_count = table_size(count);
    merges->slots = pst_heap_reallocarray(NULL, merges->slot_count, sizeof *merges->slots);
    if (merges->slots == NULL)
        return pst_fail_memory(err, "the merges", merges->slot_count * sizeof *merges->slots);
    memset(merges->slots, 0xFF, merges->slot_count * sizeof *merges->slots);
    return 0;
}

void pst_merges_destroy(pst_merges *merges)
{
    pst_heap_free(merges->slots);
    *merges = (pst_merges){0};
}

void pst_merges_add(pst_merges *merges, uint32_t left, uint32_t right, uint32_t rank, uint32_t result)
{
    pst_merge *slot = (pst_merge *)pst_merges_find(merges, left, right);
    if (slot == NULL) {
        size_t mask = merges->slot_count - 1;
        size_t i = (size_t)((((uint64_t)left << 32 | right) * 0x9E3779B97F4A7C15u) >> 32) & mask;
        while (merges->slots[i].rank != PST_NO_TOKEN)
            i = (i + 1) & mask;
        slot = &merges->slots[i];
    }
    *slot = (pst_merge){.left = left, .right = right, .rank = rank, .result = result};
}
