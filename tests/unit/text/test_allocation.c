/* SPDX-License-Identifier: Apache-2.0 */
/* Every allocation of opening, encoding, decoding and streaming fails in turn: an error, and nothing is left behind. */
#include <errno.h>

#include "support.h"

/* Everything that a tokenizer does, from the parts that the stored ones do not all have. 0 or the first error. */
static int use(const char *json, pst_error *err)
{
    static const char text[] = "<s> The w\u00e1ter  A\u0301 12 \u6c34!<t>";
    pst_tokenizer *tokenizer = NULL;
    pst_text_stream *stream = NULL;
    pst_tokens tokens = {0};
    char *decoded = NULL;
    const char *part;
    size_t bytes;
    int status = parse_text(json, &tokenizer, err);
    if (status == 0)
        status = pst_tokenizer_encode(tokenizer, text, strlen(text), true, &tokens, err);
    if (status == 0)
        status = pst_tokenizer_decode(tokenizer, tokens.ids, tokens.count, false, &decoded, &bytes, err);
    if (status == 0)
        status = pst_text_stream_open(tokenizer, true, &stream, err);
    for (size_t i = 0; i < tokens.count && status == 0; i++)
        status = pst_text_stream_push(stream, tokens.ids[i], &part, &bytes, err);
    if (status == 0)
        status = pst_text_stream_finish(stream, &part, &bytes, err);
    pst_text_stream_close(stream);
    pst_text_free(decoded);
    pst_tokens_free(&tokens);
    pst_tokenizer_close(tokenizer);
    return status;
}

/*
 * Fails the first allocation, the second, and so on. A failure may go unnoticed where there is another way (a pattern
 * that was not compiled to machine code is interpreted), so the end is reached when many in a row did.
 */
static void fail_each(int (*run)(const char *json, pst_error *err), const char *json)
{
    pst_error err = {0};
    assert_int_equal(run(json, &err), 0);
    int64_t failures = 0, unnoticed = 0;
    for (int64_t at = 0; unnoticed < 100; at++) {
        pst_heap_fail_after(at, 0);
        int status = run(json, &err);
        pst_heap_fail_after(-1, 0);
        assert_int_equal(pst_heap_live_count(), 0);
        unnoticed = status == 0 ? unnoticed + 1 : 0;
        if (status == 0)
            continue;
        assert_int_equal(status, -ENOMEM);
        failures++;
        assert_true(failures < 100000);
    }
    printf("%lld allocations failed\n", (long long)failures);
    assert_true(failures > 20);
}

#define TOKEN(content, normalized, special)                                                                            \
    "{\"id\":300,\"content\":\"" content                                                                               \
    "\",\"single_word\":false,\"lstrip\":true,\"rstrip\":false,\"normalized\":" normalized ",\"special\":" special "}"
#define ADDED "[" TOKEN("<s>", "false", "true") "," TOKEN("<t>", "true", "false") "]"
#define TEMPLATE                                                                                                       \
    "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"s\"}},{\"Sequence\":{\"id\":\"A\"}}],"   \
    "\"special_tokens\":{\"s\":{\"ids\":[0]}}}"

static void test_byte_level(void **state)
{
    (void)state;
    fail_each(
        use,
        make_json(ADDED, "{\"type\":\"NFC\"}",
                  "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\p{L}+|["
                  "\\\\W\\\\d]\"},"
                  "\"behavior\":\"Isolated\",\"invert\":false},{\"type\":\"ByteLevel\",\"add_prefix_space\":true}]}",
                  TEMPLATE, "{\"type\":\"ByteLevel\",\"add_prefix_space\":true}",
                  "{\"vocab\":{\"T\":0,\"h\":1,\"e\":2,\"Th\":3,\"The\":4,\"?\":5,\"\u00e6\":6},\"merges\":[\"T "
                  "h\",[\"Th\",\"e\"]],"
                  "\"unk_token\":\"?\"}"));
}

static void test_fallback(void **state)
{
    (void)state;
    fail_each(
        use,
        make_json(
            ADDED,
            "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"_\"},{\"type\":\"Lowercase\"},"
            "{\"type\":\"Replace\",\"pattern\":{\"Regex\":\" +\"},\"content\":\"_\"},"
            "{\"type\":\"Strip\",\"strip_left\":true,\"strip_right\":true}]}",
            "{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"first\"}", TEMPLATE,
            "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"_\"},\"content\":\" "
            "\"},"
            "{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},{\"type\":\"Strip\",\"content\":\" "
            "\",\"start\":1,\"stop\":1},"
            "{\"type\":\"Metaspace\",\"replacement\":\"t\"}]}",
            "{\"vocab\":{\"_\":0,\"t\":1,\"_t\":2,\"<0xC3>\":3,\"<0xA1>\":4},\"merges\":[\"_ "
            "t\"],\"byte_fallback\":true}"));
}

static int use_layout(const char *unused, pst_error *err)
{
    (void)unused;
    static const char vocab[] = "{\"a\":0,\"b\":1,\"ab\":2}", merges[] = "#version: 0.2\na b\n";
    static const char config[] = "{\"tokenizer_class\":\"Qwen2Tokenizer\",\"add_bos_token\":true}";
    static const char specials[] = "{\"bos_token\":{\"content\":\"<s>\"},\"additional_special_tokens\":[\"<x>\"]}";
    static const char added[] = "{\"<t>\":3,\"<s>\":4}";
    pst_tokenizer_source source = {
        .vocab_json = {"vocab.json", vocab, strlen(vocab)},
        .merges_txt = {"merges.txt", merges, strlen(merges)},
        .tokenizer_config_json = {"tokenizer_config.json", config, strlen(config)},
        .special_tokens_map_json = {"special_tokens_map.json", specials, strlen(specials)},
        .added_tokens_json = {"added_tokens.json", added, strlen(added)},
    };
    pst_tokenizer *tokenizer = NULL;
    int status = pst_tokenizer_parse(&source, &tokenizer, err);
    pst_tokenizer_close(tokenizer);
    return status;
}

static void test_older_layout(void **state)
{
    (void)state;
    fail_each(use_layout, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_byte_level),
        cmocka_unit_test(test_fallback),
        cmocka_unit_test(test_older_layout),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
