/* SPDX-License-Identifier: Apache-2.0 */
/* What the tokenizer tests share: files, tokenizers from JSON text, a seeded random generator. */
#ifndef PST_TEST_TEXT_SUPPORT_H
#define PST_TEST_TEXT_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/error.h"
#include "base/heap.h"
#include "support/random.h"
#include "text/tokenizer.h"

#define TOKENIZER_FOLDER PST_TEST_SOURCE_DIR "/tests/reference/tokenizers"

/* The file's bytes (free), or NULL where there is no such file. */
static inline char *read_file(const char *folder, const char *name, size_t *bytes)
{
    char path[8192];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        return NULL;
    fseek(file, 0, SEEK_END);
    *bytes = (size_t)ftell(file);
    rewind(file);
    char *data = malloc(*bytes + 1);
    assert_non_null(data);
    assert_int_equal(fread(data, 1, *bytes, file), *bytes);
    data[*bytes] = '\0';
    fclose(file);
    return data;
}

/* The tokenizer of a folder, from whichever files are there. */
static inline int parse_folder(const char *folder, pst_tokenizer **out, pst_error *err)
{
    static const char *const names[] = {
        "tokenizer.json",          "vocab.json",       "merges.txt", "tokenizer_config.json",
        "special_tokens_map.json", "added_tokens.json"};
    pst_tokenizer_source source = {0};
    pst_text_file *files[] = {
        &source.tokenizer_json,          &source.vocab_json,       &source.merges_txt, &source.tokenizer_config_json,
        &source.special_tokens_map_json, &source.added_tokens_json};
    for (int i = 0; i < 6; i++) {
        files[i]->path = names[i];
        files[i]->bytes = read_file(folder, names[i], &files[i]->count);
    }
    int status = pst_tokenizer_parse(&source, out, err);
    for (int i = 0; i < 6; i++)
        free((char *)files[i]->bytes);
    return status;
}

static inline int parse_text(const char *json, pst_tokenizer **out, pst_error *err)
{
    pst_tokenizer_source source = {.tokenizer_json = {"tokenizer.json", json, strlen(json)}};
    return pst_tokenizer_parse(&source, out, err);
}

static inline pst_tokenizer *must_parse(const char *json)
{
    pst_tokenizer *tokenizer = NULL;
    pst_error err = {0};
    if (parse_text(json, &tokenizer, &err) < 0)
        fail_msg("%s", err.message);
    return tokenizer;
}

/* A tokenizer.json with the given parts; each a JSON value. Returns static storage. */
static inline const char *make_json(const char *added, const char *normalizer, const char *pretokenizer,
                                    const char *post, const char *decoder, const char *model)
{
    static char json[65536];
    snprintf(json, sizeof json,
             "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":%s,\"normalizer\":%s,"
             "\"pre_tokenizer\":%s,\"post_processor\":%s,\"decoder\":%s,\"model\":%s}",
             added, normalizer, pretokenizer, post, decoder, model);
    return json;
}

/* Fails unless text encodes to these ids (the last is -1). */
static inline void check_ids(const pst_tokenizer *tokenizer, const char *text, bool add_special, const int64_t *ids)
{
    pst_tokens tokens = {0};
    pst_error err = {0};
    if (pst_tokenizer_encode(tokenizer, text, strlen(text), add_special, &tokens, &err) < 0)
        fail_msg("\"%s\": %s", text, err.message);
    size_t count = 0;
    while (ids[count] >= 0)
        count++;
    bool same = count == tokens.count;
    for (size_t i = 0; i < count && same; i++)
        same = tokens.ids[i] == (uint32_t)ids[i];
    if (!same) {
        fprintf(stderr, "\"%s\" gave", text);
        for (size_t i = 0; i < tokens.count; i++)
            fprintf(stderr, " %u", tokens.ids[i]);
        fprintf(stderr, "\n");
        fail();
    }
    pst_tokens_free(&tokens);
}
#define CHECK_IDS(tokenizer, text, add_special, ...)                                                                   \
    check_ids((tokenizer), (text), (add_special), (const int64_t[]){__VA_ARGS__, -1})

static inline void check_text(const pst_tokenizer *tokenizer, const uint32_t *ids, size_t count, bool skip_special,
                              const char *text)
{
    char *decoded;
    size_t bytes;
    pst_error err = {0};
    if (pst_tokenizer_decode(tokenizer, ids, count, skip_special, &decoded, &bytes, &err) < 0)
        fail_msg("%s", err.message);
    assert_string_equal(decoded, text);
    assert_int_equal(bytes, strlen(text));
    pst_text_free(decoded);
}
#define CHECK_TEXT(tokenizer, skip_special, text, ...)                                                                 \
    check_text((tokenizer), (const uint32_t[]){__VA_ARGS__},                                                           \
               sizeof((const uint32_t[]){__VA_ARGS__}) / sizeof(uint32_t), (skip_special), (text))

#endif
