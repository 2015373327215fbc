/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Streams: whatever the ids and the decoder, the parts put together are the decoded text, and every part is valid
 * UTF-8. Random ids over every stored tokenizer; PST_TEST_SEED replays.
 */
#include <dirent.h>

#include "support.h"

#include "text/unicode.h"

static void check_stream(const pst_tokenizer *tokenizer, const uint32_t *ids, size_t count, bool skip)
{
    char *text;
    size_t bytes, done = 0;
    pst_error err = {0};
    if (pst_tokenizer_decode(tokenizer, ids, count, skip, &text, &bytes, &err) < 0)
        fail_msg("%s", err.message);
    pst_text_stream *stream;
    assert_int_equal(pst_text_stream_open(tokenizer, skip, &stream, &err), 0);
    for (size_t i = 0; i <= count; i++) {
        const char *part;
        size_t part_bytes;
        assert_int_equal(i < count ? pst_text_stream_push(stream, ids[i], &part, &part_bytes, &err)
                                   : pst_text_stream_finish(stream, &part, &part_bytes, &err),
                         0);
        assert_int_equal(pst_utf8_valid_prefix(part, part_bytes), part_bytes);
        assert_int_equal(part[part_bytes], '\0');
        assert_true(done + part_bytes <= bytes);
        assert_memory_equal(text + done, part, part_bytes);
        done += part_bytes;
    }
    assert_int_equal(done, bytes);
    pst_text_stream_close(stream);
    pst_text_free(text);
}

/* Tokens one by one, put together: the decoded text where that has only whole characters, but for spaces that decoders take
 * from the first one. name: of a tokenizer that is no mere heap of steps. */
static void check_tokens(const pst_tokenizer *tokenizer, const uint32_t *ids, size_t count, const char *name)
{
    char *text, *token, *joined = calloc(1, 1 << 20);
    size_t bytes, token_bytes, length = 0, first = 0;
    assert_non_null(joined);
    assert_int_equal(pst_tokenizer_decode(tokenizer, ids, count, false, &text, &bytes, NULL), 0);
    for (size_t i = 0; i < count; i++) {
        assert_int_equal(pst_tokenizer_token(tokenizer, ids[i], &token, &token_bytes, NULL), 0);
        assert_int_equal(token[token_bytes], '\0');
        assert_true(length + token_bytes < 1 << 20);
        memcpy(joined + length, token, token_bytes);
        length += token_bytes;
        first = i == 0 ? length : first;
        pst_text_free(token);
    }
    if (pst_utf8_valid_prefix(joined, length) == length) {
        const size_t tail = length - first;
        if (name != NULL && (tail > bytes || memcmp(joined + first, text + bytes - tail, tail) != 0))
            fail_msg("%s: \"%s\" of single tokens is \"%s\" of all", name, joined, text);
    } else {
        assert_true(name == NULL || memmem(text, bytes, "\xEF\xBF\xBD", 3) != NULL);
    }
    free(joined);
    pst_text_free(text);
}

static void stream_random_ids(const pst_tokenizer *tokenizer, const char *name, uint64_t *seed)
{
    uint32_t known[64], count, size = pst_tokenizer_vocab_size(tokenizer);
    for (int round = 0; round < 100; round++) {
        count = (uint32_t)(pst_random_next(seed) % 64);
        for (uint32_t i = 0; i < count; i++) {
            char *text;
            size_t bytes;
            do /* some ids may be unused */
                known[i] = (uint32_t)(pst_random_next(seed) % (round % 2 ? size : size < 300 ? size : 300));
            while (pst_tokenizer_decode(tokenizer, &known[i], 1, false, &text, &bytes, NULL) < 0);
            pst_text_free(text);
        }
        check_stream(tokenizer, known, count, round % 3 == 0);
        check_tokens(tokenizer, known, count, name);
    }
}

static void test_random_ids(void **state)
{
    (void)state;
    uint64_t seed = random_seed("random ids", 20240607);
    size_t folders = 0;
    DIR *directory = opendir(TOKENIZER_FOLDER);
    assert_non_null(directory);
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;) {
        char folder[4096];
        pst_tokenizer *tokenizer;
        pst_error err = {0};
        if (entry->d_name[0] == '.')
            continue;
        snprintf(folder, sizeof folder, "%s/%s", TOKENIZER_FOLDER, entry->d_name);
        if (parse_folder(folder, &tokenizer, &err) < 0)
            fail_msg("%s: %s", entry->d_name, err.message);
        stream_random_ids(tokenizer, entry->d_name, &seed);
        pst_tokenizer_close(tokenizer);
        folders++;
    }
    closedir(directory);
    assert_true(folders >= 10);
}

/* Decoders whose steps hold text back, in every order. */
static void test_random_decoders(void **state)
{
    (void)state;
    static const char *const steps[] = {
        "{\"type\":\"Fuse\"}",
        "{\"type\":\"ByteFallback\"}",
        "{\"type\":\"ByteLevel\",\"add_prefix_space\":false}",
        "{\"type\":\"Replace\",\"pattern\":{\"String\":\"_\"},\"content\":\" \"}",
        "{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"\\\\s+\"},\"content\":\"-\"}",
        "{\"type\":\"Strip\",\"content\":\" \",\"start\":2,\"stop\":0}",
        "{\"type\":\"Strip\",\"content\":\"a\",\"start\":1,\"stop\":1}",
        "{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"always\"}",
    };
    uint64_t seed = random_seed("random decoders", 99);
    for (int round = 0; round < 100; round++) {
        char decoder[2048] = "{\"type\":\"Sequence\",\"decoders\":[";
        size_t count = pst_random_next(&seed) % 5;
        for (size_t i = 0; i < count; i++) {
            strcat(decoder, i ? "," : "");
            strcat(decoder, steps[pst_random_next(&seed) % (sizeof steps / sizeof steps[0])]);
        }
        strcat(decoder, "]}");
        pst_tokenizer *tokenizer = must_parse(make_json(
            "[]", "null", "null", "null", decoder,
            "{\"vocab\":{\"a\":0,\"_\":1,\"_a\":2,\" \":3,\"<0xC3>\":4,\"<0xA9>\":5,\"\u00c3\":6,\"\u00a9\":7,"
            "\"\u6c34\":8,\"\":9,\"a a_\":10,\"<0x\":11},\"merges\":[]}"));
        stream_random_ids(tokenizer, NULL, &seed);
        pst_tokenizer_close(tokenizer);
    }
}

/* A character of three byte tokens comes out with the third; what cannot be one comes out as U+FFFD at once. */
static void test_characters_come_out_whole(void **state)
{
    (void)state;
    pst_tokenizer *tokenizer = must_parse(
        make_json("[]", "null", "null", "null", "{\"type\":\"ByteLevel\",\"add_prefix_space\":false}",
                  "{\"vocab\":{\"\u00e6\":0,\"\u00b0\":1,\"\u00b4\":2,\"a\":3,\"\u0120\":4},\"merges\":[]}"));
    static const struct {
        uint32_t id;
        const char *text;
    } steps[] = {{0, ""}, {1, ""}, {2, "\u6c34"}, {4, " "}, {0, ""}, {3, "\ufffda"}, {2, "\ufffd"}, {0, ""}};
    pst_text_stream *stream;
    const char *text;
    size_t bytes;
    assert_int_equal(pst_text_stream_open(tokenizer, false, &stream, NULL), 0);
    for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
        assert_int_equal(pst_text_stream_push(stream, steps[i].id, &text, &bytes, NULL), 0);
        assert_string_equal(text, steps[i].text);
    }
    assert_int_equal(pst_text_stream_finish(stream, &text, &bytes, NULL), 0);
    assert_string_equal(text, "\ufffd");
    assert_int_equal(pst_text_stream_push(stream, 1000, &text, &bytes, NULL), 0); /* no token: no text */
    assert_string_equal(text, "");
    pst_text_stream_close(stream);
    pst_tokenizer_close(tokenizer);
    assert_int_equal(pst_heap_live_count(), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_ids),
        cmocka_unit_test(test_random_decoders),
        cmocka_unit_test(test_characters_come_out_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
