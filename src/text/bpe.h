/* SPDX-License-Identifier: Apache-2.0 */
/* Byte-pair encoding of one piece of text: its characters, merged in the order of the ranks of their pairs. */
#ifndef PST_TEXT_BPE_H
#define PST_TEXT_BPE_H

#include "text/vocab.h"

enum { PST_BPE_DIRECT = 0x180 }; /* code points looked up without hashing; covers the alphabet of byte-level texts */

typedef struct pst_bpe {
    pst_vocab vocab;
    pst_merges merges;
    char *unk_token; /* NULL: unknown characters are left out */
    bool fuse_unk;
    bool byte_fallback;
    bool ignore_merges;     /* a piece that is a token is that token */
    uint32_t byte_ids[256]; /* "<0x00>" to "<0xFF>" or PST_NO_TOKEN */
    uint32_t direct[PST_BPE_DIRECT];
} pst_bpe;

/* A character, later a merged run, within a doubly linked list that lies in an array. */
typedef struct pst_bpe_symbol {
    uint32_t id;
    int32_t previous, next; /* -1: none */
    uint32_t alive;
} pst_bpe_symbol;

typedef struct pst_bpe_candidate {
    uint32_t rank, position, result;
} pst_bpe_candidate;

/* Memory kept from piece to piece. Zero-initialized means empty. */
typedef struct pst_bpe_scratch {
    pst_bpe_symbol *symbols;
    size_t count, symbol_capacity;
    pst_bpe_candidate *heap;
    size_t heap_count, heap_capacity;
} pst_bpe_scratch;

/* Fills byte_ids and direct from the vocabulary. */
void pst_bpe_prepare(pst_bpe *bpe);
void pst_bpe_destroy(pst_bpe *bpe);
void pst_bpe_scratch_free(pst_bpe_scratch *scratch);

/* Appends the ids of one piece of valid UTF-8; n log n in its length. */
int pst_bpe_encode(const pst_bpe *bpe, pst_bpe_scratch *scratch, const char *text, size_t bytes, pst_words *ids,
                   pst_error *err);

#endif
