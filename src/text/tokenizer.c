/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The public functions. Encoding: raw added tokens are cut out, the rest is normalized, normalized added tokens are cut
 * out, the rest is cut into pieces, each piece goes to the model; then the template adds what belongs around it.
 */
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "text/decode.h"
#include "text/parts.h"
#include "text/unicode.h"

void pst_tokenizer_close(pst_tokenizer *tokenizer)
{
    if (tokenizer == NULL)
        return;
    pst_bpe_destroy(&tokenizer->bpe);
    pst_added_destroy(&tokenizer->added);
    pst_steps_destroy(&tokenizer->normalizers);
    pst_steps_destroy(&tokenizer->pretokenizers);
    pst_steps_destroy(&tokenizer->decoders);
    pst_words_free(&tokenizer->template);
    pst_heap_free(tokenizer);
}

void pst_tokens_free(pst_tokens *tokens)
{
    if (tokens == NULL)
        return;
    pst_heap_free(tokens->ids);
    *tokens = (pst_tokens){0};
}

void pst_text_free(char *text)
{
    pst_heap_free(text);
}

uint32_t pst_tokenizer_vocab_size(const pst_tokenizer *tokenizer)
{
    return tokenizer->vocab_size;
}

int64_t pst_tokenizer_find(const pst_tokenizer *tokenizer, const char *token)
{
    uint32_t id = pst_added_find(&tokenizer->added, &tokenizer->bpe.vocab, token, strlen(token));
    return id == PST_NO_TOKEN ? PST_E_USAGE : (int64_t)id;
}

bool pst_tokenizer_is_special(const pst_tokenizer *tokenizer, uint32_t id)
{
    size_t bytes;
    const char *text = pst_added_text(&tokenizer->added, &tokenizer->bpe.vocab, id, &bytes);
    return text != NULL && pst_added_is_special(&tokenizer->added, text, bytes);
}

/* What one encoding works in. */
typedef struct encoder {
    const pst_tokenizer *tokenizer;
    pst_text_scratch text;
    pst_bpe_scratch bpe;
    pst_bytes normalized;
    pst_segments raw_segments, segments;
    pst_words ids;
} encoder;

static void encoder_free(encoder *e)
{
    pst_text_scratch_free(&e->text);
    pst_bpe_scratch_free(&e->bpe);
    pst_bytes_free(&e->normalized);
    pst_heap_free(e->raw_segments.data);
    pst_heap_free(e->segments.data);
    pst_words_free(&e->ids);
}

/* Normalized text without added tokens. */
static int encode_words(encoder *e, const char *text, size_t bytes, bool first, pst_error *err)
{
    PST_TRY(pst_pretokenize(&e->tokenizer->pretokenizers, &e->text, text, bytes, first, err));
    for (size_t i = 0; i < e->text.pieces.count; i++) {
        const pst_piece *piece = &e->text.pieces.data[i];
        PST_TRY(pst_bpe_encode(&e->tokenizer->bpe, &e->bpe, e->text.text.data + piece->start, piece->end - piece->start,
                               &e->ids, err));
    }
    return 0;
}

/* Raw text without raw added tokens. */
static int encode_text(encoder *e, const char *text, size_t bytes, bool first, pst_error *err)
{
    const pst_added *added = &e->tokenizer->added;
    PST_TRY(pst_normalize(&e->tokenizer->normalizers, &e->text, text, bytes, &first, err));
    pst_bytes_swap(&e->normalized, &e->text.text);
    const pst_bytes *normalized = &e->normalized;
    PST_TRY(pst_added_cut(added, &added->normalized, normalized->data, normalized->count, &e->segments, err));
    for (size_t i = 0; i < e->segments.count; i++) {
        const pst_segment *segment = &e->segments.data[i];
        if (segment->id != PST_NO_TOKEN)
            PST_TRY(pst_words_append(&e->ids, segment->id, err));
        else
            PST_TRY(encode_words(e, normalized->data + segment->start, segment->end - segment->start,
                                 first && segment->start == 0, err));
    }
    return 0;
}

/* Puts special tokens around the ids. */
static int apply_template(encoder *e, pst_error *err)
{
    const pst_words *template = &e->tokenizer->template;
    pst_words made = {0};
    int status = 0;
    for (size_t i = 0; i < template->count && status == 0; i++) {
        if (template->data[i] == PST_TEMPLATE_TEXT)
            status = pst_words_append_all(&made, e->ids.data, e->ids.count, err);
        else
            status = pst_words_append(&made, template->data[i], err);
    }
    pst_words_free(&e->ids);
    e->ids = made;
    return status;
}

static int encode(encoder *e, const char *text, size_t bytes, bool add_special, pst_error *err)
{
    const pst_added *added = &e->tokenizer->added;
    if (e->tokenizer->has_regex)
        PST_TRY(pst_regex_scratch_open(&e->text.regexes, err));
    PST_TRY(pst_added_cut(added, &added->raw, text, bytes, &e->raw_segments, err));
    for (size_t i = 0; i < e->raw_segments.count; i++) {
        const pst_segment *segment = &e->raw_segments.data[i];
        if (segment->id != PST_NO_TOKEN)
            PST_TRY(pst_words_append(&e->ids, segment->id, err));
        else
            PST_TRY(encode_text(e, text + segment->start, segment->end - segment->start, segment->start == 0, err));
    }
    if (add_special && e->tokenizer->template.count > 0)
        PST_TRY(apply_template(e, err));
    if (e->ids.data == NULL) /* an empty result is still an array of its own */
        PST_TRY(pst_array_grow(&e->ids.data, &e->ids.capacity, 1, sizeof *e->ids.data, err));
    return 0;
}

int pst_tokenizer_encode(const pst_tokenizer *tokenizer, const char *text, size_t bytes, bool add_special,
                         pst_tokens *out, pst_error *err)
{
    size_t valid = pst_utf8_valid_prefix(text, bytes);
    if (valid < bytes)
        return pst_fail_at(err, PST_E_FORMAT, NULL, valid, "the text is not valid UTF-8");
    encoder e = {.tokenizer = tokenizer};
    int status = encode(&e, text, bytes, add_special, err);
    if (status == 0) {
        *out = (pst_tokens){.ids = e.ids.data, .count = e.ids.count};
        e.ids = (pst_words){0};
    }
    encoder_free(&e);
    return status;
}

/* Sends one id down the chain. */
static int push_id(const pst_tokenizer *tokenizer, pst_decode_chain *chain, bool skip_special, uint32_t id,
                   pst_error *err)
{
    size_t bytes;
    const char *text = pst_added_text(&tokenizer->added, &tokenizer->bpe.vocab, id, &bytes);
    if (text == NULL) /* a padded vocabulary: models can choose ids that have no token; the reference drops them, too */
        return 0;
    if (skip_special && pst_added_is_special(&tokenizer->added, text, bytes))
        return 0;
    return pst_decode_push(chain, text, bytes, err);
}

int pst_tokenizer_decode(const pst_tokenizer *tokenizer, const uint32_t *ids, size_t count, bool skip_special,
                         char **out, size_t *out_bytes, pst_error *err)
{
    pst_decode_chain chain;
    int status = pst_decode_open(&chain, &tokenizer->decoders, !tokenizer->has_decoder, err);
    for (size_t i = 0; i < count && status == 0; i++)
        status = push_id(tokenizer, &chain, skip_special, ids[i], err);
    if (status == 0)
        status = pst_decode_finish(&chain, err);
    if (status == 0)
        status = pst_bytes_append(&chain.out, "", 1, err);
    if (status == 0) {
        *out = chain.out.data;
        *out_bytes = chain.out.count - 1;
        chain.out = (pst_bytes){0};
    }
    pst_decode_close(&chain);
    return status;
}

int pst_tokenizer_token(const pst_tokenizer *tokenizer, uint32_t id, char **out, size_t *out_bytes, pst_error *err)
{
    pst_decode_chain chain;
    size_t bytes = 0;
    const char *text = pst_added_text(&tokenizer->added, &tokenizer->bpe.vocab, id, &bytes);
    int status = pst_decode_open(&chain, &tokenizer->decoders, !tokenizer->has_decoder, err);
    if (status == 0 && text != NULL)
        status = pst_decode_alone(&chain, text, bytes, err);
    if (status == 0)
        status = pst_bytes_append(&chain.out, "", 1, err);
    if (status == 0) {
        *out = chain.out.data;
        *out_bytes = chain.out.count - 1;
        chain.out = (pst_bytes){0};
    }
    pst_decode_close(&chain);
    return status;
}

struct pst_text_stream {
    const pst_tokenizer *tokenizer;
    bool skip_special;
    pst_decode_chain chain;
};

int pst_text_stream_open(const pst_tokenizer *tokenizer, bool skip_special, pst_text_stream **out, pst_error *err)
{
    pst_text_stream *stream = pst_heap_calloc(1, sizeof *stream);
    if (stream == NULL)
        return pst_fail_memory(err, "a text stream", sizeof *stream);
    stream->tokenizer = tokenizer;
    stream->skip_special = skip_special;
    int status = pst_decode_open(&stream->chain, &tokenizer->decoders, !tokenizer->has_decoder, err);
    if (status < 0) {
        pst_text_stream_close(stream);
        return status;
    }
    *out = stream;
    return 0;
}

void pst_text_stream_close(pst_text_stream *stream)
{
    if (stream == NULL)
        return;
    pst_decode_close(&stream->chain);
    pst_heap_free(stream);
}

/* Hands out what is in the chain's output, terminated. */
static int take_text(pst_text_stream *stream, const char **text, size_t *bytes, pst_error *err)
{
    pst_bytes *out = &stream->chain.out;
    PST_TRY(pst_bytes_append(out, "", 1, err));
    out->count--;
    *text = out->data;
    *bytes = out->count;
    return 0;
}

int pst_text_stream_push(pst_text_stream *stream, uint32_t id, const char **text, size_t *bytes, pst_error *err)
{
    stream->chain.out.count = 0;
    PST_TRY(push_id(stream->tokenizer, &stream->chain, stream->skip_special, id, err));
    return take_text(stream, text, bytes, err);
}

int pst_text_stream_finish(pst_text_stream *stream, const char **text, size_t *bytes, pst_error *err)
{
    stream->chain.out.count = 0;
    PST_TRY(pst_decode_finish(&stream->chain, err));
    return take_text(stream, text, bytes, err);
}
