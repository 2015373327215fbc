/* SPDX-License-Identifier: Apache-2.0 */
/* What a tokenizer is made of, and the functions that fill it from its files. Private to src/text. */
#ifndef PST_TEXT_PARTS_H
#define PST_TEXT_PARTS_H

#include <jansson.h>

#include "text/added.h"
#include "text/bpe.h"
#include "text/steps.h"
#include "text/tokenizer.h"

/* Stands for the text's ids in a template; the other items are ids of tokens around it. */
#define PST_TEMPLATE_TEXT UINT32_MAX

struct pst_tokenizer {
    pst_bpe bpe;
    pst_added added;
    pst_steps normalizers, pretokenizers, decoders;
    bool has_decoder, has_regex;
    pst_words template; /* the post-processor; empty: the text alone */
    uint32_t vocab_size;
};

enum { PST_MAX_STEPS = 64 };

/* An entry of a list of added tokens. */
typedef struct pst_added_entry {
    const char *text; /* borrowed */
    size_t bytes;
    pst_added_token flags;
} pst_added_entry;

/* The parts of tokenizer.json. Each reads one value (NULL or null: none) into the tokenizer. */
int pst_parse_normalizer(const json_t *value, pst_tokenizer *tokenizer, const char *path, pst_error *err);
int pst_parse_pretokenizer(const json_t *value, pst_tokenizer *tokenizer, const char *path, pst_error *err);
int pst_parse_decoder(const json_t *value, pst_tokenizer *tokenizer, const char *path, pst_error *err);
int pst_parse_post_processor(const json_t *value, pst_tokenizer *tokenizer, const char *path, pst_error *err);
int pst_parse_model(const json_t *value, pst_tokenizer *tokenizer, const char *path, pst_error *err);

/* vocab.json and merges.txt with their companions. */
int pst_parse_vocab_and_merges(const pst_tokenizer_source *source, pst_tokenizer *tokenizer, pst_error *err);

/* The pieces that the readers share. Merges: `left` and `right` are texts in the vocabulary. */
int pst_parse_vocab(const json_t *vocab, pst_bpe *bpe, const char *path, pst_error *err);
int pst_parse_merge(pst_bpe *bpe, const char *left, size_t left_bytes, const char *right, size_t right_bytes,
                    uint32_t rank, pst_bytes *scratch, const char *path, pst_error *err);

/* Adds the list of added tokens to a tokenizer whose model and normalizer are complete. Ids are given as the reference
 * does: the model's id of the text if it has one, else the next free one, in order. */
int pst_add_tokens(pst_tokenizer *tokenizer, const pst_added_entry *entries, size_t count, const char *path,
                   pst_error *err);

/* Appends a step (zeroed but for its kind) to a pipeline; borrowed until the next one is added. */
int pst_steps_add(pst_steps *steps, pst_step_kind kind, pst_step **out, const char *path, pst_error *err);
/* Appends a step that splits as GPT-2 does, the one that ByteLevel has built in, or another pattern. */
extern const char pst_gpt2_pattern[];

#endif
