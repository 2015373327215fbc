/* SPDX-License-Identifier: Apache-2.0 */
/* Files that lie, and parts that this version does not know: one error that names what is wrong, nothing left. */
#include "support.h"

static const char model[] = "{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]}";

static void expect(const char *json, int code, const char *word)
{
    pst_tokenizer *tokenizer = NULL;
    pst_error err = {0};
    int status = parse_text(json, &tokenizer, &err);
    if (status != code || strstr(err.message, word) == NULL)
        fail_msg("%.400s\ngave %d \"%s\", not %d with \"%s\"", json, status, err.message, code, word);
    assert_null(tokenizer);
    assert_null(strchr(err.message, '\n'));
    assert_string_equal(err.path, "tokenizer.json");
    assert_int_equal(pst_heap_live_count(), 0);
}

static void test_documents(void **state)
{
    (void)state;
    expect("", PST_E_FORMAT, "JSON");
    expect("{", PST_E_FORMAT, "JSON");
    expect("[]", PST_E_FORMAT, "object");
    expect("{}", PST_E_FORMAT, "model");
    expect("{\"model\":{},\"model\":{}}", PST_E_FORMAT, "JSON");
    expect("{\"version\":\"2.0\",\"model\":{}}", PST_E_UNSUPPORTED, "version");
}

static void test_models(void **state)
{
    (void)state;
    static const struct {
        const char *model;
        int code;
        const char *word;
    } cases[] = {
        {"{\"type\":\"Unigram\",\"vocab\":[],\"unk_id\":0}", PST_E_UNSUPPORTED, "Unigram"},
        {"{\"type\":\"WordPiece\",\"vocab\":{}}", PST_E_UNSUPPORTED, "WordPiece"},
        {"{\"vocab\":{}}", PST_E_FORMAT, "merges"},
        {"{\"merges\":[]}", PST_E_FORMAT, "vocab"},
        {"{\"vocab\":{\"a\":-1},\"merges\":[]}", PST_E_FORMAT, "id"},
        {"{\"vocab\":{\"a\":1.5},\"merges\":[]}", PST_E_FORMAT, "id"},
        {"{\"vocab\":{\"a\":\"0\"},\"merges\":[]}", PST_E_FORMAT, "id"},
        {"{\"vocab\":{\"a\":99999999999},\"merges\":[]}", PST_E_FORMAT, "id"},
        {"{\"vocab\":{\"a\":16777216},\"merges\":[]}", PST_E_FORMAT, "id"},
        {"{\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}", PST_E_FORMAT, "twice"},
        {"{\"vocab\":{\"a\":0},\"merges\":[\"a b\"]}", PST_E_FORMAT, "not in the vocabulary"},
        {"{\"vocab\":{\"a\":0,\"b\":1},\"merges\":[\"a b\"]}", PST_E_FORMAT, "not in the vocabulary"},
        {"{\"vocab\":{\"a\":0,\"\":1},\"merges\":[[\"a\",\"\"]]}", PST_E_FORMAT, "empty"},
        {"{\"vocab\":{\"a\":0},\"merges\":[\"a\"]}", PST_E_FORMAT, "merge 0"},
        {"{\"vocab\":{\"a\":0},\"merges\":[\"a b c\"]}", PST_E_FORMAT, "merge 0"},
        {"{\"vocab\":{\"a\":0},\"merges\":[[\"a\"]]}", PST_E_FORMAT, "merge 0"},
        {"{\"vocab\":{\"a\":0},\"merges\":[7]}", PST_E_FORMAT, "merge 0"},
        {"{\"vocab\":{},\"merges\":[],\"dropout\":0.1}", PST_E_UNSUPPORTED, "dropout"},
        {"{\"vocab\":{},\"merges\":[],\"continuing_subword_prefix\":\"##\"}", PST_E_UNSUPPORTED,
         "continuing_subword_prefix"},
        {"{\"vocab\":{},\"merges\":[],\"end_of_word_suffix\":\"</w>\"}", PST_E_UNSUPPORTED, "end_of_word_suffix"},
        {"{\"vocab\":{},\"merges\":[],\"novelty\":1}", PST_E_UNSUPPORTED, "novelty"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        expect(make_json("[]", "null", "null", "null", "null", cases[i].model), cases[i].code, cases[i].word);
}

static void test_parts(void **state)
{
    (void)state;
    static const struct {
        int part; /* 0 added tokens, 1 normalizer, 2 pre-tokenizer, 3 post-processor, 4 decoder */
        const char *json;
        int code;
        const char *word;
    } cases[] = {
        {0, "{}", PST_E_FORMAT, "added_tokens"},
        {0, "[3]", PST_E_FORMAT, "added token"},
        {0, "[{\"id\":5}]", PST_E_FORMAT, "content"},
        {0, "[{\"id\":-5,\"content\":\"x\"}]", PST_E_FORMAT, "id"},
        {0, "[{\"id\":1e12,\"content\":\"x\"}]", PST_E_FORMAT, "id"},
        {0, "[{\"id\":5,\"content\":\"x\",\"single_word\":1}]", PST_E_FORMAT, "single_word"},
        {1, "7", PST_E_FORMAT, "normalizer"},
        {1, "{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"\"}", PST_E_UNSUPPORTED, "Precompiled"},
        {1, "{\"type\":\"BertNormalizer\"}", PST_E_UNSUPPORTED, "BertNormalizer"},
        {1, "{\"type\":\"NFC\",\"new\":1}", PST_E_UNSUPPORTED, "new"},
        {1, "{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"(\"},\"content\":\"\"}", PST_E_UNSUPPORTED, "pattern"},
        {1, "{\"type\":\"Replace\",\"pattern\":{\"Glob\":\"x\"},\"content\":\"\"}", PST_E_FORMAT, "pattern"},
        {1, "{\"type\":\"Replace\",\"pattern\":{\"String\":\"\"},\"content\":\"\"}", PST_E_UNSUPPORTED, "empty"},
        {1, "{\"type\":\"Strip\",\"strip_left\":true}", PST_E_FORMAT, "strip_right"},
        {2, "{\"type\":\"UnicodeScripts\"}", PST_E_UNSUPPORTED, "UnicodeScripts"},
        {2, "{\"type\":\"Split\",\"pattern\":{\"String\":\"a\"},\"behavior\":\"Sideways\",\"invert\":false}",
         PST_E_UNSUPPORTED, "Sideways"},
        {2, "{\"type\":\"Split\",\"pattern\":{\"String\":\"a\"},\"invert\":false}", PST_E_FORMAT, "behavior"},
        {2, "{\"type\":\"Metaspace\",\"replacement\":\"ab\"}", PST_E_FORMAT, "replacement"},
        {2, "{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"last\"}", PST_E_UNSUPPORTED, "last"},
        {2, "{\"type\":\"Metaspace\",\"replacement\":\"_\",\"add_prefix_space\":false}", PST_E_FORMAT,
         "add_prefix_space"},
        {2, "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"mode\":2}", PST_E_UNSUPPORTED, "mode"},
        {3, "{\"type\":\"Novel\"}", PST_E_UNSUPPORTED, "Novel"},
        {3, "{\"type\":\"TemplateProcessing\",\"single\":[],\"special_tokens\":{}}", PST_E_UNSUPPORTED, "template"},
        {3, "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"x\"}}],\"special_tokens\":{}}",
         PST_E_FORMAT, "ids"},
        {3, "{\"type\":\"TemplateProcessing\",\"single\":[{\"Sequence\":{\"id\":\"B\"}}],\"special_tokens\":{}}",
         PST_E_UNSUPPORTED, "B"},
        {4, "{\"type\":\"WordPiece\",\"prefix\":\"##\",\"cleanup\":true}", PST_E_UNSUPPORTED, "WordPiece"},
        {4, "{\"type\":\"CTC\"}", PST_E_UNSUPPORTED, "CTC"},
        {4, "{\"type\":\"Strip\",\"content\":\" \",\"start\":-1,\"stop\":0}", PST_E_FORMAT, "start"},
        {4, "{\"type\":\"Strip\",\"content\":\"\",\"start\":1,\"stop\":0}", PST_E_FORMAT, "content"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const char *parts[] = {"[]", "null", "null", "null", "null"};
        parts[cases[i].part] = cases[i].json;
        expect(make_json(parts[0], parts[1], parts[2], parts[3], parts[4], model), cases[i].code, cases[i].word);
    }
}

static void test_nesting_is_bounded(void **state)
{
    (void)state;
    char nested[8192] = "";
    for (int i = 0; i < 100; i++)
        strcat(nested, "{\"type\":\"Sequence\",\"normalizers\":[");
    strcat(nested, "{\"type\":\"NFC\"}");
    for (int i = 0; i < 100; i++)
        strcat(nested, "]}");
    expect(make_json("[]", nested, "null", "null", "null", model), PST_E_UNSUPPORTED, "nested");
    char many[8192] = "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"}";
    for (int i = 0; i < 100; i++)
        strcat(many, ",{\"type\":\"NFC\"}");
    strcat(many, "]}");
    expect(make_json("[]", many, "null", "null", "null", model), PST_E_UNSUPPORTED, "steps");
}

/* An unknown token that the vocabulary lacks matters when a text needs it. */
static void test_missing_unknown_token(void **state)
{
    (void)state;
    pst_tokenizer *tokenizer = must_parse(
        make_json("[]", "null", "null", "null", "null", "{\"vocab\":{\"a\":0},\"merges\":[],\"unk_token\":\"<unk>\"}"));
    pst_tokens tokens;
    pst_error err = {0};
    assert_int_equal(pst_tokenizer_encode(tokenizer, "aa", 2, false, &tokens, &err), 0);
    pst_tokens_free(&tokens);
    assert_int_equal(pst_tokenizer_encode(tokenizer, "ax", 2, false, &tokens, &err), PST_E_FORMAT);
    assert_non_null(strstr(err.message, "<unk>"));
    pst_tokenizer_close(tokenizer);
}

static int parse_layout(const char *vocab, const char *merges, const char *config, const char *specials,
                        const char *added, pst_tokenizer **out, pst_error *err)
{
    pst_tokenizer_source source = {
        .vocab_json = {"vocab.json", vocab, strlen(vocab)},
        .merges_txt = {"merges.txt", merges, strlen(merges)},
        .tokenizer_config_json = {"tokenizer_config.json", config, config ? strlen(config) : 0},
        .special_tokens_map_json = {"special_tokens_map.json", specials, specials ? strlen(specials) : 0},
        .added_tokens_json = {"added_tokens.json", added, added ? strlen(added) : 0},
    };
    return pst_tokenizer_parse(&source, out, err);
}

static void test_older_layout(void **state)
{
    (void)state;
    static const char vocab[] = "{\"a\":0,\"b\":1,\"ab\":2}";
    static const struct {
        const char *vocab, *merges, *config, *specials, *added;
        int code;
        const char *path;
    } cases[] = {
        {"[]", "", NULL, NULL, NULL, PST_E_FORMAT, "vocab.json"},
        {vocab, "a b c\n", NULL, NULL, NULL, PST_E_FORMAT, "merges.txt"},
        {vocab, "a c\n", NULL, NULL, NULL, PST_E_FORMAT, "merges.txt"},
        {vocab, "a", NULL, NULL, NULL, PST_E_FORMAT, "merges.txt"},
        {vocab, "", "[]", NULL, NULL, PST_E_FORMAT, "tokenizer_config.json"},
        {vocab, "", "{\"tokenizer_class\":\"RobertaTokenizer\"}", NULL, NULL, PST_E_UNSUPPORTED,
         "tokenizer_config.json"},
        {vocab, "", "{\"added_tokens_decoder\":{\"x\":{\"content\":\"y\"}}}", NULL, NULL, PST_E_FORMAT,
         "tokenizer_config.json"},
        {vocab, "", "{\"added_tokens_decoder\":7}", NULL, NULL, PST_E_FORMAT, "tokenizer_config.json"},
        {vocab, "", NULL, "{\"bos_token\":7}", NULL, PST_E_FORMAT, "special_tokens_map.json"},
        {vocab, "", NULL, NULL, "{\"x\":-1}", PST_E_FORMAT, "added_tokens.json"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        pst_tokenizer *tokenizer = NULL;
        pst_error err = {0};
        int status = parse_layout(cases[i].vocab, cases[i].merges, cases[i].config, cases[i].specials, cases[i].added,
                                  &tokenizer, &err);
        if (status != cases[i].code || strcmp(err.path, cases[i].path) != 0)
            fail_msg("case %zu gave %d %s: %s", i, status, err.path, err.message);
        assert_int_equal(pst_heap_live_count(), 0);
    }
    pst_tokenizer *tokenizer = NULL;
    pst_error err = {0};
    pst_tokenizer_source nothing = {0};
    assert_int_equal(pst_tokenizer_parse(&nothing, &tokenizer, &err), PST_E_USAGE);
    assert_int_equal(parse_layout(vocab, "#version: 0.2\r\na b\r\n\r\n",
                                  "{\"add_bos_token\":true,\"bos_token\":\"<s>\"}", NULL, "{\"<t>\":3}", &tokenizer,
                                  &err),
                     0);
    CHECK_IDS(tokenizer, "ab<t>", true, 4, 2, 3);
    CHECK_IDS(tokenizer, "ab<s>", false, 2, 4);
    assert_true(pst_tokenizer_is_special(tokenizer, 4));
    assert_false(pst_tokenizer_is_special(tokenizer, 3));
    pst_tokenizer_close(tokenizer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_documents),
        cmocka_unit_test(test_models),
        cmocka_unit_test(test_parts),
        cmocka_unit_test(test_nesting_is_bounded),
        cmocka_unit_test(test_missing_unknown_token),
        cmocka_unit_test(test_older_layout),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
