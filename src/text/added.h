/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Added tokens: texts that become one id wherever they stand, before the model sees the rest. Some are looked for in
 * the raw text, some (`normalized`) in the normalized one; at each place the longest one wins, from left to right.
 */
#ifndef PST_TEXT_ADDED_H
#define PST_TEXT_ADDED_H

#include "text/steps.h"
#include "text/vocab.h"

typedef struct pst_added_token {
    bool single_word;    /* only where no word character touches it */
    bool lstrip, rstrip; /* takes the white space before or after it along */
    bool normalized, special;
} pst_added_token;

typedef struct pst_trie_node {
    uint32_t child, sibling; /* 0: none; node 0 is the root */
    uint32_t token;          /* index of the token that ends here + 1, or 0 */
    unsigned char byte;
} pst_trie_node;

typedef struct pst_trie {
    pst_trie_node *nodes;
    size_t count, capacity;
    uint32_t roots[256]; /* the root's children by their byte */
} pst_trie;

typedef struct pst_added {
    pst_vocab vocab; /* texts and ids; entry i has the flags tokens[i] */
    pst_added_token *tokens;
    pst_span *shown; /* where in `texts` the text is that entry i decodes to */
    pst_bytes texts;
    pst_trie raw, normalized;
} pst_added;

/* A part of a text: an added token, or (PST_NO_TOKEN) text between them. */
typedef struct pst_segment {
    size_t start, end;
    uint32_t id;
} pst_segment;

typedef struct pst_segments {
    pst_segment *data;
    size_t count, capacity;
} pst_segments;

void pst_added_destroy(pst_added *added);
int pst_trie_add(pst_trie *trie, const char *text, size_t bytes, uint32_t token, pst_error *err);
void pst_trie_destroy(pst_trie *trie);

/* The id of a text among the added tokens and then the model's, or PST_NO_TOKEN. */
uint32_t pst_added_find(const pst_added *added, const pst_vocab *model, const char *text, size_t bytes);
/* The text that an id decodes to, among the added tokens first, or NULL. As in the reference implementation, a
 * `normalized` token decodes to its normalized text. */
const char *pst_added_text(const pst_added *added, const pst_vocab *model, uint32_t id, size_t *bytes);
/* Whether a decoded text is dropped with the special tokens: whether it is the text of one. */
bool pst_added_is_special(const pst_added *added, const char *text, size_t bytes);

/* Cuts the text at the tokens of one trie of `added`; replaces the content of segments. Nothing for an empty text. */
int pst_added_cut(const pst_added *added, const pst_trie *trie, const char *text, size_t bytes, pst_segments *segments,
                  pst_error *err);

#endif
