/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Text to token ids and back, from a Hugging Face tokenizer (tokenizer.json, or vocab.json + merges.txt).
 * A tokenizer is immutable after it is made: any number of threads may encode and decode with it at once.
 */
#ifndef PENSTOCK_TOKENIZER_H
#define PENSTOCK_TOKENIZER_H

#include <stdbool.h>

#include "penstock/types.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct pst_tokenizer pst_tokenizer;

/* Ids that the library allocated; freed with pst_tokens_free. */
typedef struct pst_tokens {
    uint32_t *ids;
    size_t count;
} pst_tokens;
PST_API void pst_tokens_free(pst_tokens *tokens);

/* Opens the tokenizer of a model folder: tokenizer.json, else vocab.json + merges.txt (with tokenizer_config.json and
 * special_tokens_map.json where present). The caller owns *out. */
PST_API int pst_tokenizer_open(const char *folder, pst_tokenizer **out, pst_error *err);
PST_API void pst_tokenizer_close(pst_tokenizer *tokenizer);

/* One more than the largest id that it knows. */
PST_API uint32_t pst_tokenizer_vocab_size(const pst_tokenizer *tokenizer);

/* Encodes bytes [text, text + bytes), which must be valid UTF-8 (else PST_E_FORMAT with the byte offset).
 * add_special: apply the post-processor (begin-of-text and the like). *out belongs to the caller. */
PST_API int pst_tokenizer_encode(const pst_tokenizer *tokenizer, const char *text, size_t bytes, bool add_special,
                                 pst_tokens *out, pst_error *err);

/* Decodes ids to UTF-8 (invalid byte sequences become U+FFFD, as the reference implementation does). *out is
 * NUL-terminated besides its length and freed with pst_text_free. Ids without a token (of a padded vocabulary)
 * give no text. */
PST_API int pst_tokenizer_decode(const pst_tokenizer *tokenizer, const uint32_t *ids, size_t count, bool skip_special,
                                 char **out, size_t *out_bytes, pst_error *err);
PST_API void pst_text_free(char *text);
/* The bytes that one token stands for inside a text, which need be no whole characters; a special token's are its name. Likewise
 * terminated and freed. An id without a token has none. */
PST_API int pst_tokenizer_token(const pst_tokenizer *tokenizer, uint32_t id, char **out, size_t *out_bytes,
                                pst_error *err);

/* The id of a whole token by its text ("<|end_of_text|>"), added tokens first; a negative code when there is none. */
PST_API int64_t pst_tokenizer_find(const pst_tokenizer *tokenizer, const char *token);
/* Whether an id is a special token (dropped with skip_special). */
PST_API bool pst_tokenizer_is_special(const pst_tokenizer *tokenizer, uint32_t id);

/* Text as it is made, token by token: only whole UTF-8 characters come out, and what comes out in all is what
 * pst_tokenizer_decode gives for all ids. One owner thread per stream. */
typedef struct pst_text_stream pst_text_stream;
PST_API int pst_text_stream_open(const pst_tokenizer *tokenizer, bool skip_special, pst_text_stream **out,
                                 pst_error *err);
PST_API void pst_text_stream_close(pst_text_stream *stream);
/* Adds one id; *text (NUL-terminated, may be empty, owned by the stream, valid until its next call) is what became certain. */
PST_API int pst_text_stream_push(pst_text_stream *stream, uint32_t id, const char **text, size_t *bytes,
                                 pst_error *err);
/* What is still held back at the end (an unfinished character becomes U+FFFD). */
PST_API int pst_text_stream_finish(pst_text_stream *stream, const char **text, size_t *bytes, pst_error *err);

#ifdef __cplusplus
}
#endif
#endif
