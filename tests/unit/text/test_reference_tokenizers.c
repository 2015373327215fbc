/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every stored tokenizer of tests/reference/tokenizers against what the Hugging Face tokenizers library made of it:
 * ids of texts with and without the special tokens, and the text of ids with special tokens kept and dropped.
 * tests/reference/make_tokenizers.py makes the folders.
 */
#include <dirent.h>

#include "support.h"

#include "base/json.h"

static size_t cases;

/* Reports the first few differences; returns how many there are. */
static size_t report(const char *what, const char *folder, size_t index, size_t *shown)
{
    if ((*shown)++ < 5)
        fprintf(stderr, "%s: %s %zu differs\n", folder, what, index);
    return 1;
}

static size_t check_encode(const pst_tokenizer *tokenizer, const json_t *list, bool add_special, const char *folder,
                           size_t *shown)
{
    size_t different = 0;
    for (size_t i = 0; i < json_array_size(list); i++, cases++) {
        const json_t *text = json_object_get(json_array_get(list, i), "text");
        const json_t *ids = json_object_get(json_array_get(list, i), "ids");
        assert_true(json_is_string(text) && json_is_array(ids));
        pst_tokens tokens;
        pst_error err = {0};
        if (pst_tokenizer_encode(tokenizer, json_string_value(text), json_string_length(text), add_special, &tokens,
                                 &err) < 0)
            fail_msg("%s: \"%s\": %s", folder, json_string_value(text), err.message);
        bool same = tokens.count == json_array_size(ids);
        for (size_t k = 0; same && k < tokens.count; k++)
            same = tokens.ids[k] == (uint32_t)json_integer_value(json_array_get(ids, k));
        if (!same)
            different += report(add_special ? "encode" : "plain", folder, i, shown);
        pst_tokens_free(&tokens);
    }
    return different;
}

/* Decodes at once and as a stream. */
static bool decodes_to(const pst_tokenizer *tokenizer, const uint32_t *ids, size_t count, bool skip,
                       const json_t *expected)
{
    char *text;
    size_t bytes, streamed = 0;
    pst_error err = {0};
    if (pst_tokenizer_decode(tokenizer, ids, count, skip, &text, &bytes, &err) < 0)
        fail_msg("%s", err.message);
    bool same = bytes == json_string_length(expected) && memcmp(text, json_string_value(expected), bytes) == 0;
    pst_text_stream *stream;
    assert_int_equal(pst_text_stream_open(tokenizer, skip, &stream, &err), 0);
    for (size_t i = 0; i <= count; i++) {
        const char *part;
        size_t part_bytes;
        int status = i < count ? pst_text_stream_push(stream, ids[i], &part, &part_bytes, &err)
                               : pst_text_stream_finish(stream, &part, &part_bytes, &err);
        assert_int_equal(status, 0);
        assert_true(streamed + part_bytes <= bytes && memcmp(text + streamed, part, part_bytes) == 0);
        streamed += part_bytes;
    }
    assert_int_equal(streamed, bytes);
    pst_text_stream_close(stream);
    pst_text_free(text);
    return same;
}

static size_t check_decode(const pst_tokenizer *tokenizer, const json_t *list, const char *folder, size_t *shown)
{
    size_t different = 0;
    for (size_t i = 0; i < json_array_size(list); i++, cases++) {
        const json_t *item = json_array_get(list, i);
        const json_t *ids = json_object_get(item, "ids");
        assert_true(json_is_array(ids) && json_is_string(json_object_get(item, "text")) &&
                    json_is_string(json_object_get(item, "text_skip")));
        size_t count = json_array_size(ids);
        uint32_t *values = calloc(count + 1, sizeof *values);
        for (size_t k = 0; k < count; k++)
            values[k] = (uint32_t)json_integer_value(json_array_get(ids, k));
        if (!decodes_to(tokenizer, values, count, false, json_object_get(item, "text")))
            different += report("decode", folder, i, shown);
        if (!decodes_to(tokenizer, values, count, true, json_object_get(item, "text_skip")))
            different += report("decode without special tokens", folder, i, shown);
        free(values);
    }
    return different;
}

static size_t check_folder(const char *name)
{
    char folder[4096];
    size_t bytes = 0, shown = 0;
    snprintf(folder, sizeof folder, "%s/%s", TOKENIZER_FOLDER, name);
    char *text = read_file(folder, "expected.json", &bytes);
    assert_non_null(text);
    json_t *expected;
    pst_error err = {0};
    if (pst_json_parse(text, bytes, name, &expected, &err) < 0)
        fail_msg("%s: %s", name, err.message);
    pst_tokenizer *tokenizer;
    if (parse_folder(folder, &tokenizer, &err) < 0)
        fail_msg("%s: %s", name, err.message);
    size_t before = cases;
    size_t different = check_encode(tokenizer, json_object_get(expected, "encode"), true, name, &shown) +
                       check_encode(tokenizer, json_object_get(expected, "plain"), false, name, &shown) +
                       check_decode(tokenizer, json_object_get(expected, "decode"), name, &shown);
    assert_true(cases > before + 100);
    pst_tokenizer_close(tokenizer);
    json_decref(expected);
    free(text);
    return different;
}

static void test_stored_tokenizers(void **state)
{
    (void)state;
    size_t different = 0, folders = 0;
    DIR *directory = opendir(TOKENIZER_FOLDER);
    assert_non_null(directory);
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;) {
        if (entry->d_name[0] == '.')
            continue;
        different += check_folder(entry->d_name);
        folders++;
    }
    closedir(directory);
    printf("%zu cases of %zu tokenizers\n", cases, folders);
    assert_true(folders >= 10);
    assert_int_equal(different, 0);
    assert_int_equal(pst_heap_live_count(), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_stored_tokenizers)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
