/* SPDX-License-Identifier: Apache-2.0 */
/* Small tokenizers whose ids can be seen by eye, one for each rule; and the cost of long words. */
#include "support.h"

#include "text/steps.h"

#define MODEL(vocab, merges, more) "{\"type\":\"BPE\",\"vocab\":" vocab ",\"merges\":" merges more "}"
#define TOKEN(id, content, flags, special)                                                                             \
    "{\"id\":" #id ",\"content\":\"" content "\"," flags ",\"special\":" special "}"
#define PLAIN "\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"normalized\":false"

static const char letters[] =
    MODEL("{\"a\":0,\"b\":1,\"c\":2,\"ab\":3,\"bc\":4,\"abc\":5,\" \":6}", "[\"b c\",[\"a\",\"b\"],\"a bc\"]", "");

static void test_merges_go_by_rank(void **state)
{
    (void)state;
    pst_tokenizer *t = must_parse(make_json("[]", "null", "null", "null", "null", letters));
    CHECK_IDS(t, "abc", false, 5); /* b c comes first, then a bc */
    CHECK_IDS(t, "ab", false, 3);
    CHECK_IDS(t, "abab", false, 3, 3);
    CHECK_IDS(t, "", false, -1);
    CHECK_IDS(t, "axb", false, 3);            /* without an unknown token, unknown characters are left out */
    CHECK_TEXT(t, false, "a b abc", 0, 1, 5); /* without a decoder, tokens are words */
    assert_int_equal(pst_tokenizer_vocab_size(t), 7);
    assert_int_equal(pst_tokenizer_find(t, "abc"), 5);
    assert_true(pst_tokenizer_find(t, "nothing") < 0);
    pst_tokenizer_close(t);
}

static void test_ignore_merges(void **state)
{
    (void)state;
    pst_tokenizer *t = must_parse(make_json("[]", "null", "null", "null", "null",
                                            MODEL("{\"a\":0,\"b\":1,\"aab\":2}", "[]", ",\"ignore_merges\":true")));
    CHECK_IDS(t, "aab", false, 2);
    CHECK_IDS(t, "aaab", false, 0, 0, 0, 1);
    pst_tokenizer_close(t);
}

static void test_unknown_characters(void **state)
{
    (void)state;
    static const char vocab[] = "{\"?\":0,\"a\":1,\"<0xC3>\":2,\"<0xA9>\":3}";
    char model[256];
    for (int fuse = 0; fuse < 2; fuse++) {
        snprintf(model, sizeof model,
                 "{\"vocab\":%s,\"merges\":[],\"unk_token\":\"?\",\"fuse_unk\":%s,\"byte_fallback\":true}", vocab,
                 fuse ? "true" : "false");
        pst_tokenizer *t = must_parse(make_json("[]", "null", "null", "null", "null", model));
        CHECK_IDS(t, "a\u00e9", false, 1, 2, 3);
        if (fuse)
            CHECK_IDS(t, "xya", false, 0, 1);
        else
            CHECK_IDS(t, "xya", false, 0, 0, 1);
        CHECK_IDS(t, "\u00e8", false, 0); /* one of its bytes has no token */
        pst_tokenizer_close(t);
    }
}

static void test_invalid_utf8(void **state)
{
    (void)state;
    pst_tokenizer *t = must_parse(make_json("[]", "null", "null", "null", "null", letters));
    pst_tokens tokens = {(uint32_t *)1, 77};
    pst_error err = {0};
    assert_int_equal(pst_tokenizer_encode(t, "ab\xFF", 3, false, &tokens, &err), PST_E_FORMAT);
    assert_int_equal(err.offset, 2);
    assert_int_equal(tokens.count, 77); /* untouched */
    assert_int_equal(pst_tokenizer_encode(t, "ab\xC3", 3, false, &tokens, &err), PST_E_FORMAT);
    assert_int_equal(err.offset, 2);
    char *text = NULL;
    size_t bytes;
    uint32_t id = 99;
    assert_int_equal(pst_tokenizer_decode(t, &id, 1, false, &text, &bytes, &err), 0); /* no token: no text */
    assert_string_equal(text, "");
    pst_text_free(text);
    pst_tokenizer_close(t);
}

static void test_added_tokens(void **state)
{
    (void)state;
    pst_tokenizer *t = must_parse(make_json(
        "[" TOKEN(7, "<s>", PLAIN, "true") "," TOKEN(8, "<s>x", PLAIN, "false") "," TOKEN(
            9, "<l>", "\"single_word\":false,\"lstrip\":true,\"rstrip\":true,\"normalized\":false",
            "true") "," TOKEN(10, "cab", "\"single_word\":true,\"lstrip\":false,\"rstrip\":false,\"normalized\":false",
                              "false") "]",
        "null", "null", "null", "{\"type\":\"Fuse\"}", letters));
    CHECK_IDS(t, "a<s>b", false, 0, 7, 1);
    CHECK_IDS(t, "<s>x<s>", false, 8, 7); /* the longest */
    CHECK_IDS(t, "a  <l>  b", false, 0, 9, 1);
    CHECK_IDS(t, "cab", false, 10);
    CHECK_IDS(t, "ccab", false, 2, 2, 3); /* not a word of its own */
    CHECK_IDS(t, "c cab", false, 2, 6, 10);
    CHECK_TEXT(t, false, "a<s>b", 0, 7, 1);
    CHECK_TEXT(t, true, "ab", 0, 7, 1);
    assert_true(pst_tokenizer_is_special(t, 7));
    assert_false(pst_tokenizer_is_special(t, 8));
    assert_false(pst_tokenizer_is_special(t, 0));
    assert_false(pst_tokenizer_is_special(t, 1000));
    assert_int_equal(pst_tokenizer_find(t, "<l>"), 9);
    assert_int_equal(pst_tokenizer_vocab_size(t), 11);
    pst_tokenizer_close(t);
}

/* One token in the raw text, one in the normalized: the latter is found however it is written. */
static void test_normalized_added_tokens(void **state)
{
    (void)state;
    pst_tokenizer *t = must_parse(make_json(
        "[" TOKEN(7, "RAW", PLAIN, "false") "," TOKEN(
            8, "Low", "\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"normalized\":true", "false") "]",
        "{\"type\":\"Lowercase\"}", "null", "null", "{\"type\":\"Fuse\"}", letters));
    CHECK_IDS(t, "RAWa", false, 7, 0);
    CHECK_IDS(t, "rawA", false, 0, 0); /* r and w are unknown; a is not */
    CHECK_IDS(t, "LOWlow", false, 8, 8);
    CHECK_TEXT(t, false, "RAWlow", 7, 8);
    pst_tokenizer_close(t);
}

static void test_template(void **state)
{
    (void)state;
    pst_tokenizer *t = must_parse(
        make_json("[" TOKEN(7, "<s>", PLAIN, "true") "]", "null", "null",
                  "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\",\"type_id\":0}},"
                  "{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],\"pair\":[],"
                  "\"special_tokens\":{\"<s>\":{\"id\":\"<s>\",\"ids\":[7],\"tokens\":[\"<s>\"]}}}",
                  "null", letters));
    CHECK_IDS(t, "ab", true, 7, 3);
    CHECK_IDS(t, "ab", false, 3);
    CHECK_IDS(t, "", true, 7);
    pst_tokenizer_close(t);
}

static void test_metaspace_and_fallback(void **state)
{
    (void)state;
    pst_tokenizer *t = must_parse(make_json(
        "[]",
        "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"_\"},"
        "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"_\"}]}",
        "null", "null",
        "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":\"_\"},\"content\":\" \"},"
        "{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},{\"type\":\"Strip\",\"content\":\" "
        "\",\"start\":1,\"stop\":0}]}",
        MODEL("{\"_\":0,\"a\":1,\"_a\":2,\"<0xC3>\":3,\"<0xA9>\":4}", "[\"_ a\"]", ",\"byte_fallback\":true")));
    CHECK_IDS(t, "a a", false, 2, 2);
    CHECK_IDS(t, "", false, -1);
    CHECK_IDS(t, "\u00e9", false, 0, 3, 4);
    CHECK_TEXT(t, false, "a a", 2, 2);
    CHECK_TEXT(t, false, "\u00e9", 0, 3, 4);
    CHECK_TEXT(t, false, "\ufffd\ufffd\ufffda", 3, 4, 3, 1); /* no text as a whole: each byte is replaced */
    pst_tokenizer_close(t);
}

static void test_byte_level_alphabet(void **state)
{
    (void)state;
    bool seen[0x200] = {false};
    for (int byte = 0; byte < 256; byte++) {
        uint32_t character = pst_byte_level_character((unsigned char)byte);
        assert_true(character < 0x144 && character > 0x20 && !seen[character]);
        seen[character] = true;
        assert_int_equal(pst_byte_level_byte(character), byte);
    }
    assert_int_equal(pst_byte_level_character(' '), 0x120);
    assert_int_equal(pst_byte_level_character('\n'), 0x10A);
    for (uint32_t c = 0; c < 0x200; c++)
        assert_true(seen[c] || pst_byte_level_byte(c) == -1);
    assert_int_equal(pst_byte_level_byte(0x10FFFF), -1);
}

/* A megabyte without white space, in one piece: quadratic time would not end within the test's time. */
static void test_long_words(void **state)
{
    (void)state;
    enum { BYTES = 1 << 20 };
    pst_tokenizer *t =
        must_parse(make_json("[]", "null", "null", "null", "{\"type\":\"Fuse\"}",
                             MODEL("{\"a\":0,\"b\":1,\"aa\":2,\"aaaa\":3,\"ab\":4,\"ba\":5,\"aaaaaaaa\":6}",
                                   "[\"a a\",\"a b\",\"aa aa\",\"b a\",\"aaaa aaaa\"]", "")));
    char *text = malloc(BYTES);
    uint64_t seed = random_seed("long words", 7);
    for (int kind = 0; kind < 2; kind++) {
        for (size_t i = 0; i < BYTES; i++)
            text[i] = kind == 0 ? 'a' : "ab"[pst_random_next(&seed) & 1];
        pst_tokens tokens;
        char *back;
        size_t bytes;
        assert_int_equal(pst_tokenizer_encode(t, text, BYTES, false, &tokens, NULL), 0);
        if (kind == 0)
            assert_int_equal(tokens.count, BYTES / 8);
        assert_int_equal(pst_tokenizer_decode(t, tokens.ids, tokens.count, false, &back, &bytes, NULL), 0);
        assert_int_equal(bytes, BYTES);
        assert_memory_equal(back, text, BYTES);
        pst_text_free(back);
        pst_tokens_free(&tokens);
    }
    free(text);
    pst_tokenizer_close(t);
}

static void test_nothing_is_left(void **state)
{
    (void)state;
    pst_tokenizer_close(NULL);
    pst_text_stream_close(NULL);
    pst_tokens_free(NULL);
    pst_text_free(NULL);
    assert_int_equal(pst_heap_live_count(), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_merges_go_by_rank),
        cmocka_unit_test(test_ignore_merges),
        cmocka_unit_test(test_unknown_characters),
        cmocka_unit_test(test_invalid_utf8),
        cmocka_unit_test(test_added_tokens),
        cmocka_unit_test(test_normalized_added_tokens),
        cmocka_unit_test(test_template),
        cmocka_unit_test(test_metaspace_and_fallback),
        cmocka_unit_test(test_byte_level_alphabet),
        cmocka_unit_test(test_long_words),
        cmocka_unit_test(test_nothing_is_left),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
