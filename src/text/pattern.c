/* SPDX-License-Identifier: Apache-2.0 */
/* Finding all matches from left to right, without overlap. */
#include "text/pattern.h"

#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "text/unicode.h"

void pst_pattern_destroy(pst_pattern *pattern)
{
    pst_regex_close(pattern->regex);
    pst_heap_free(pattern->literal);
    *pattern = (pst_pattern){0};
}

void pst_spans_free(pst_spans *spans)
{
    pst_heap_free(spans->data);
    *spans = (pst_spans){0};
}

int pst_spans_append(pst_spans *spans, size_t start, size_t end, bool matched, pst_error *err)
{
    if (spans->count == spans->capacity)
        PST_TRY(pst_array_grow(&spans->data, &spans->capacity, spans->count + 1, sizeof *spans->data, err));
    spans->data[spans->count++] = (pst_span){.start = start, .end = end, .matched = matched};
    return 0;
}

/* Adds a match and, before it, what was passed over. */
static int add_match(pst_spans *spans, size_t *done, size_t start, size_t end, pst_error *err)
{
    if (start > *done)
        PST_TRY(pst_spans_append(spans, *done, start, false, err));
    *done = end;
    return pst_spans_append(spans, start, end, true, err);
}

static int cut_regex(const pst_regex *regex, pst_regex_scratch *scratch, const char *text, size_t bytes,
                     pst_spans *spans, size_t *done, pst_error *err)
{
    size_t from = 0, last_end = SIZE_MAX, start, end;
    while (from <= bytes) {
        int found = pst_regex_find(regex, scratch, text, bytes, from, &start, &end, err);
        if (found <= 0)
            return found;
        if (end == start && end == last_end) { /* an empty match right after a match does not count */
            from += from < bytes ? pst_utf8_width((unsigned char)text[from]) : 1;
            continue;
        }
        from = last_end = end;
        PST_TRY(add_match(spans, done, start, end, err));
    }
    return 0;
}

int pst_pattern_cut(const pst_pattern *pattern, pst_regex_scratch *regexes, const char *text, size_t bytes,
                    pst_spans *spans, pst_error *err)
{
    size_t done = 0;
    spans->count = 0;
    if (bytes == 0)
        return 0;
    if (pattern->regex != NULL) {
        PST_TRY(cut_regex(pattern->regex, regexes, text, bytes, spans, &done, err));
    } else if (pattern->literal != NULL) {
        const char *found;
        while ((found = memmem(text + done, bytes - done, pattern->literal, pattern->literal_bytes)) != NULL) {
            size_t start = (size_t)(found - text);
            PST_TRY(add_match(spans, &done, start, start + pattern->literal_bytes, err));
        }
    } else {
        for (size_t i = 0, width; i < bytes; i += width) {
            if (pattern->character(pst_utf8_get(text + i, &width)))
                PST_TRY(add_match(spans, &done, i, i + width, err));
        }
    }
    if (done < bytes)
        PST_TRY(pst_spans_append(spans, done, bytes, false, err));
    return 0;
}
