/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A request's text as it grows: whole characters, and nothing that may turn out to be the beginning of a stop text until
 * it is certain. One owner thread.
 */
#ifndef PST_INFER_TEXT_OUT_H
#define PST_INFER_TEXT_OUT_H

#include "penstock/tokenizer.h"

typedef struct pst_text_out {
    pst_text_stream *stream; /* NULL: no tokenizer, no text */
    const char *const *stops;
    size_t stop_count;
    char *text; /* heap, NUL-terminated */
    size_t bytes, capacity;
    size_t shown; /* bytes handed out so far */
} pst_text_out;

/* tokenizer may be NULL. The stop texts stay the caller's. */
int pst_text_out_open(pst_text_out *out, const pst_tokenizer *tokenizer, const char *const *stops, size_t stop_count,
                      pst_error *err);
void pst_text_out_close(pst_text_out *out);

/* Adds a token, or (last) what is held back at the end. 1: a stop text was met and the text ends before it. *fresh and
 * *fresh_bytes: text that became certain, valid until the next call. */
int pst_text_out_push(pst_text_out *out, uint32_t id, const char **fresh, size_t *fresh_bytes, pst_error *err);
int pst_text_out_finish(pst_text_out *out, const char **fresh, size_t *fresh_bytes, pst_error *err);

#endif
