/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The vocabulary (text of a token to its id and back) and the merge table of a byte-pair encoding, in a few flat
 * arrays with open addressing: the texts lie in one pool.
 */
#ifndef PST_TEXT_VOCAB_H
#define PST_TEXT_VOCAB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "text/bytes.h"

enum { PST_VOCAB_MAX_ID = (1 << 24) - 1 }; /* far above any model; bounds what a hostile file can make us allocate */
#define PST_NO_TOKEN UINT32_MAX

typedef struct pst_vocab_entry {
    uint32_t offset; /* of the text, in the pool */
    uint32_t bytes;
    uint32_t id;
} pst_vocab_entry;

typedef struct pst_vocab {
    pst_bytes pool;
    pst_vocab_entry *entries;
    size_t count, entry_capacity;
    uint32_t *slots; /* entry + 1, or 0; a power of two of them, at most half full */
    size_t slot_count;
    uint32_t *by_id; /* entry + 1, or 0 */
    size_t by_id_count;
} pst_vocab;

/* Prepares for `count` tokens. */
int pst_vocab_init(pst_vocab *vocab, size_t count, pst_error *err);
void pst_vocab_destroy(pst_vocab *vocab);
/* Adds a token. Refused (PST_E_FORMAT): an id above PST_VOCAB_MAX_ID, an id or a text that is there already. */
int pst_vocab_add(pst_vocab *vocab, const char *text, size_t bytes, uint32_t id, const char *path, pst_error *err);
/* The id, or PST_NO_TOKEN. */
uint32_t pst_vocab_find(const pst_vocab *vocab, const char *text, size_t bytes);
/* The text of an id (borrowed, not terminated), or NULL. */
const char *pst_vocab_text(const pst_vocab *vocab, uint32_t id, size_t *bytes);

typedef struct pst_merge {
    uint32_t left, right;
    uint32_t rank; /* PST_NO_TOKEN: an empty slot */
    uint32_t result;
} pst_merge;

typedef struct pst_merges {
    pst_merge *slots;
    size_t slot_count; /* a power of two */
} pst_merges;

int pst_merges_init(pst_merges *merges, size_t count, pst_error *err);
void pst_merges_destroy(pst_merges *merges);
/* At most `count` of pst_merges_init; a later merge of the same pair replaces the earlier one. */
void pst_merges_add(pst_merges *merges, uint32_t left, uint32_t right, uint32_t rank, uint32_t result);

static inline const pst_merge *pst_merges_find(const pst_merges *merges, uint32_t left, uint32_t right)
{
    uint64_t hash = ((uint64_t)left << 32 | right) * 0x9E3779B97F4A7C15u;
    size_t mask = merges->slot_count - 1;
    for (size_t i = (size_t)(hash >> 32) & mask;; i = (i + 1) & mask) {
        const pst_merge *slot = &merges->slots[i];
        if (slot->rank == PST_NO_TOKEN)
            return NULL;
        if (slot->left == left && slot->right == right)
            return slot;
    }
}

#endif
