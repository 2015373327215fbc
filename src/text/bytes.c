/* SPDX-License-Identifier: Apache-2.0 */
/* Growable arrays: capacity at least doubles, so that appending is linear in all. */
#include "text/bytes.h"

#include <string.h>

#include "base/error.h"
#include "base/heap.h"

int pst_array_grow(void *array_pointer, size_t *capacity, size_t wanted, size_t item_bytes, pst_error *err)
{
    if (wanted <= *capacity)
        return 0;
    size_t grown = *capacity < 32 ? 64 : *capacity * 2;
    if (grown < wanted)
        grown = wanted;
    void *memory;
    memcpy(&memory, array_pointer, sizeof memory);
    memory = pst_heap_reallocarray(memory, grown, item_bytes);
    if (memory == NULL)
        return pst_fail_memory(err, "tokenizing", grown * item_bytes);
    memcpy(array_pointer, &memory, sizeof memory);
    *capacity = grown;
    return 0;
}

int pst_bytes_reserve(pst_bytes *bytes, size_t more, pst_error *err)
{
    return pst_array_grow(&bytes->data, &bytes->capacity, bytes->count + more, 1, err);
}

int pst_bytes_append(pst_bytes *bytes, const void *data, size_t count, pst_error *err)
{
    if (count == 0)
        return 0;
    if (bytes->count + count > bytes->capacity)
        PST_TRY(pst_bytes_reserve(bytes, count, err));
    memcpy(bytes->data + bytes->count, data, count);
    bytes->count += count;
    return 0;
}

void pst_bytes_free(pst_bytes *bytes)
{
    pst_heap_free(bytes->data);
    *bytes = (pst_bytes){0};
}

void pst_bytes_swap(pst_bytes *a, pst_bytes *b)
{
    pst_bytes other = *a;
    *a = *b;
    *b = other;
}

int pst_words_append(pst_words *words, uint32_t word, pst_error *err)
{
    if (words->count == words->capacity)
        PST_TRY(pst_array_grow(&words->data, &words->capacity, words->count + 1, sizeof word, err));
    words->data[words->count++] = word;
    return 0;
}

int pst_words_append_all(pst_words *words, const uint32_t *data, size_t count, pst_error *err)
{
    if (count == 0)
        return 0;
    PST_TRY(pst_array_grow(&words->data, &words->capacity, words->count + count, sizeof *data, err));
    memcpy(words->data + words->count, data, count * sizeof *data);
    words->count += count;
    return 0;
}

void pst_words_free(pst_words *words)
{
    pst_heap_free(words->data);
    *words = (pst_words){0};
}

const char *pst_text_quote(const char *text, size_t bytes, char out[PST_QUOTE_BYTES])
{
    size_t keep = bytes;
    if (bytes > PST_QUOTE_BYTES - 4) {
        keep = PST_QUOTE_BYTES - 4;
        while (keep > 0 && ((unsigned char)text[keep] & 0xC0) == 0x80)
            keep--;
    }
    for (size_t i = 0; i < keep; i++)
        out[i] = (unsigned char)text[i] < 0x20 || text[i] == 0x7F ? '?' : text[i];
    memcpy(out + keep, keep < bytes ? "..." : "", keep < bytes ? 4 : 1);
    return out;
}
