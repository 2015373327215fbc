/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tokenizer files and texts that may be anything. The input is cut at zero bytes into the text and up to six files
 * {tokenizer.json, vocab.json, merges.txt, tokenizer_config.json, special_tokens_map.json, added_tokens.json}; an empty
 * one is absent. What opens has to encode valid text, and a stream has to give what decoding gives.
 */
#include <stdlib.h>
#include <string.h>

#include "base/heap.h"
#include "text/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

/* Streams the ids and stops the process where the result is another text than decoding gave. */
static void check_stream(const pst_tokenizer *tokenizer, const pst_tokens *tokens, const char *text, size_t bytes)
{
    pst_text_stream *stream;
    const char *part;
    size_t part_bytes, done = 0;
    if (pst_text_stream_open(tokenizer, false, &stream, NULL) < 0)
        return;
    for (size_t i = 0; i <= tokens->count; i++) {
        int status = i < tokens->count ? pst_text_stream_push(stream, tokens->ids[i], &part, &part_bytes, NULL)
                                       : pst_text_stream_finish(stream, &part, &part_bytes, NULL);
        if (status < 0 || done + part_bytes > bytes || memcmp(text + done, part, part_bytes) != 0)
            abort();
        done += part_bytes;
    }
    if (done != bytes)
        abort();
    pst_text_stream_close(stream);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    pst_tokenizer_source source = {0};
    pst_text_file text = {0};
    pst_text_file *files[] = {&text,
                              &source.tokenizer_json,
                              &source.vocab_json,
                              &source.merges_txt,
                              &source.tokenizer_config_json,
                              &source.special_tokens_map_json,
                              &source.added_tokens_json};
    const char *at = (const char *)data, *end = at + bytes;
    for (int i = 0; i < 7 && at < end; i++) {
        const char *stop = memchr(at, 0, (size_t)(end - at));
        size_t count = (size_t)((stop ? stop : end) - at);
        if (count > 0)
            *files[i] = (pst_text_file){"fuzzed", at, count};
        at += count + 1;
    }
    pst_tokenizer *tokenizer;
    pst_error err;
    if (pst_tokenizer_parse(&source, &tokenizer, &err) == 0) {
        pst_tokens tokens;
        if (pst_tokenizer_encode(tokenizer, text.bytes ? text.bytes : "", text.count, true, &tokens, &err) == 0) {
            char *decoded;
            size_t decoded_bytes;
            if (pst_tokenizer_decode(tokenizer, tokens.ids, tokens.count, false, &decoded, &decoded_bytes, &err) == 0) {
                check_stream(tokenizer, &tokens, decoded, decoded_bytes);
                pst_text_free(decoded);
            }
            pst_tokens_free(&tokens);
        }
        pst_tokenizer_close(tokenizer);
    }
    if (pst_heap_live_count() != 0)
        abort();
    return 0;
}
