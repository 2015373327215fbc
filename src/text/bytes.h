/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A growable byte string and a growable array of 32-bit words: the scratch memory of the tokenizer.
 * Zero-initialized means empty. Contents are not NUL-terminated. One owner; freed with the _free function.
 */
#ifndef PST_TEXT_BYTES_H
#define PST_TEXT_BYTES_H

#include <stddef.h>
#include <stdint.h>

#include "penstock/types.h"

typedef struct pst_bytes {
    char *data;
    size_t count;
    size_t capacity;
} pst_bytes;

typedef struct pst_words {
    uint32_t *data;
    size_t count;
    size_t capacity;
} pst_words;

/* Each returns 0, or -ENOMEM with the record filled and the content as it was. */
int pst_bytes_reserve(pst_bytes *bytes, size_t more, pst_error *err);
int pst_bytes_append(pst_bytes *bytes, const void *data, size_t count, pst_error *err);
void pst_bytes_free(pst_bytes *bytes);
/* Exchanges the contents of two strings. */
void pst_bytes_swap(pst_bytes *a, pst_bytes *b);

int pst_words_append(pst_words *words, uint32_t word, pst_error *err);
int pst_words_append_all(pst_words *words, const uint32_t *data, size_t count, pst_error *err);
void pst_words_free(pst_words *words);

/* Makes room in an array of `item_bytes` wide items for `wanted` items, at least doubling it: 0 or -ENOMEM. */
int pst_array_grow(void *array_pointer, size_t *capacity, size_t wanted, size_t item_bytes, pst_error *err);

/* Copies text for a message: cut short at whole characters, control characters as '?'. Returns out. */
enum { PST_QUOTE_BYTES = 96 };
const char *pst_text_quote(const char *text, size_t bytes, char out[PST_QUOTE_BYTES]);

#endif
