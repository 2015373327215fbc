/* SPDX-License-Identifier: Apache-2.0 */
/* Holding back what may become a stop text. */
#include "infer/text_out.h"

#include <string.h>

#include "base/error.h"
#include "base/heap.h"

int pst_text_out_open(pst_text_out *out, const pst_tokenizer *tokenizer, const char *const *stops, size_t stop_count,
                      pst_error *err)
{
    *out = (pst_text_out){.stops = stops, .stop_count = stop_count};
    if (tokenizer == NULL)
        return 0;
    out->text = pst_heap_strdup("");
    if (out->text == NULL)
        return pst_fail_memory(err, "a text", 1);
    return pst_text_stream_open(tokenizer, true, &out->stream, err);
}

void pst_text_out_close(pst_text_out *out)
{
    pst_text_stream_close(out->stream);
    pst_heap_free(out->text);
    *out = (pst_text_out){0};
}

static int append(pst_text_out *out, const char *text, size_t bytes, pst_error *err)
{
    if (out->bytes + bytes + 1 > out->capacity) {
        size_t grown = (out->bytes + bytes + 1) * 2;
        char *memory = pst_heap_realloc(out->text, grown);
        if (memory == NULL)
            return pst_fail_memory(err, "a text", grown);
        out->text = memory;
        out->capacity = grown;
    }
    memcpy(out->text + out->bytes, text, bytes);
    out->bytes += bytes;
    out->text[out->bytes] = '\0';
    return 0;
}

/* Where the first stop text that ends in the last `added` bytes begins, or SIZE_MAX. */
static size_t find_stop(const pst_text_out *out, size_t added)
{
    size_t first = SIZE_MAX;
    for (size_t i = 0; i < out->stop_count; i++) {
        size_t length = strlen(out->stops[i]);
        if (length == 0 || length > out->bytes)
            continue;
        size_t back = added + length - 1;
        size_t start = back < out->bytes ? out->bytes - back : 0;
        const char *found = memmem(out->text + start, out->bytes - start, out->stops[i], length);
        if (found != NULL && (size_t)(found - out->text) < first)
            first = (size_t)(found - out->text);
    }
    return first;
}

/* Bytes at the end that are a beginning of a stop text. */
static size_t held_back(const pst_text_out *out)
{
    size_t most = 0;
    for (size_t i = 0; i < out->stop_count; i++) {
        size_t length = strlen(out->stops[i]);
        for (size_t n = length > 0 ? length - 1 : 0; n > most; n--) {
            if (n <= out->bytes && memcmp(out->text + out->bytes - n, out->stops[i], n) == 0)
                most = n;
        }
    }
    return most;
}

static int take(pst_text_out *out, const char *text, size_t bytes, bool last, const char **fresh, size_t *fresh_bytes,
                pst_error *err)
{
    PST_TRY(append(out, text, bytes, err));
    size_t stop = find_stop(out, bytes);
    if (stop != SIZE_MAX) {
        out->bytes = stop;
        out->text[stop] = '\0';
    }
    size_t certain = last || stop != SIZE_MAX ? out->bytes : out->bytes - held_back(out);
    certain = certain > out->shown ? certain : out->shown;
    *fresh = out->text + out->shown;
    *fresh_bytes = certain - out->shown;
    out->shown = certain;
    return stop != SIZE_MAX;
}

int pst_text_out_push(pst_text_out *out, uint32_t id, const char **fresh, size_t *fresh_bytes, pst_error *err)
{
    *fresh = "";
    *fresh_bytes = 0;
    if (out->stream == NULL)
        return 0;
    const char *text;
    size_t bytes;
    PST_TRY(pst_text_stream_push(out->stream, id, &text, &bytes, err));
    return take(out, text, bytes, false, fresh, fresh_bytes, err);
}

int pst_text_out_finish(pst_text_out *out, const char **fresh, size_t *fresh_bytes, pst_error *err)
{
    *fresh = "";
    *fresh_bytes = 0;
    if (out->stream == NULL)
        return 0;
    const char *text;
    size_t bytes;
    PST_TRY(pst_text_stream_finish(out->stream, &text, &bytes, err));
    return take(out, text, bytes, true, fresh, fresh_bytes, err);
}
