/* SPDX-License-Identifier: Apache-2.0 */
/* What a text is searched for: a regular expression, a literal string, or a class of characters. */
#ifndef PST_TEXT_PATTERN_H
#define PST_TEXT_PATTERN_H

#include "text/regex.h"

typedef struct pst_pattern {
    pst_regex *regex; /* owned; or NULL */
    char *literal;    /* owned; not empty; or NULL */
    size_t literal_bytes;
    bool (*character)(uint32_t code_point); /* or NULL */
} pst_pattern;

/* A part of a text, and whether the pattern matched it. */
typedef struct pst_span {
    size_t start, end;
    bool matched;
} pst_span;

typedef struct pst_spans {
    pst_span *data;
    size_t count, capacity;
} pst_spans;

void pst_pattern_destroy(pst_pattern *pattern);
void pst_spans_free(pst_spans *spans);
int pst_spans_append(pst_spans *spans, size_t start, size_t end, bool matched, pst_error *err);

/* Cuts [text, text + bytes) into what the pattern matches and what lies between; replaces the content of spans.
 * The spans cover the text in order; a matched one may be empty. `regexes` is used by regular expressions only. */
int pst_pattern_cut(const pst_pattern *pattern, pst_regex_scratch *regexes, const char *text, size_t bytes,
                    pst_spans *spans, pst_error *err);

#endif
