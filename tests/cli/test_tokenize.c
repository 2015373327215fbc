/* SPDX-License-Identifier: Apache-2.0 */
/* penstock tokenize: there and back, one text or line by line. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "program.h"

static void test_there_and_back(void **state)
{
    (void)state;
    static const char text[] = "Once, h\xc3\xa9llo \xe4\xb8\x96\xe7\x95\x8c \xf0\x9f\xa6\x8a  two spaces\n\tend";
    program_result ids = PENSTOCK("tokenize", MODEL, "--text", text, "--no-special");
    assert_int_equal(ids.status, 0);
    assert_true(ids.out[strspn(ids.out, "0123456789 ")] == '\n');
    const program_setup setup = {.input = ids.out};
    program_result back = PENSTOCK_WITH(&setup, "tokenize", MODEL, "--decode");
    assert_int_equal(back.status, 0);
    assert_int_equal(back.out_bytes, sizeof text); /* a newline instead of the terminator */
    assert_memory_equal(back.out, text, sizeof text - 1);
    write_text(scratch_path("ids.txt"), ids.out);
    program_result by_file = PENSTOCK("tokenize", MODEL, "--decode", "--file", scratch_path("ids.txt"));
    assert_string_equal(by_file.out, back.out);
    program_free(&by_file);
    program_free(&ids);
    program_free(&back);
}

static void test_special_tokens(void **state)
{
    (void)state;
    json_t *with = expect_json(PENSTOCK("tokenize", MODEL, "--text", "fox", "--json"));
    json_t *without = expect_json(PENSTOCK("tokenize", MODEL, "--text", "fox", "--no-special", "--json"));
    const json_t *first = json_object_get(json_array_get(json_object_get(with, "results"), 0), "token_ids");
    const json_t *second = json_object_get(json_array_get(json_object_get(without, "results"), 0), "token_ids");
    assert_int_equal(json_array_size(first), json_array_size(second) + 1);
    char ids[64];
    snprintf(ids, sizeof ids, "%d", (int)json_integer_value(json_array_get(first, 0)));
    program_result kept = PENSTOCK("tokenize", MODEL, "--decode", "--token-ids", ids);
    program_result skipped = PENSTOCK("tokenize", MODEL, "--decode", "--token-ids", ids, "--skip-special");
    assert_true(kept.out_bytes > 1);
    assert_string_equal(skipped.out, "\n");
    program_free(&kept);
    program_free(&skipped);
    json_decref(with);
    json_decref(without);
}

/* A conversation by the model's chat template; what `generate --chat` goes on from is that. */
static void test_chat(void **state)
{
    (void)state;
    char model[600], file[600], template[700];
    snprintf(model, sizeof model, "%s", copy_model(MODEL, "chat-model"));
    snprintf(file, sizeof file, "%s", scratch_path("chat.json"));
    snprintf(template, sizeof template, "%s/chat_template.jinja", model);
    write_text(template,
               "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{{ tools }}");
    write_text(file, "[{\"role\": \"system\", \"content\": \"Be\"}, {\"role\": \"user\", \"content\": \"h\u00e9\"}]");
    program_result shown = PENSTOCK("tokenize", model, "--chat", file, "--render");
    assert_int_equal(shown.status, 0);
    assert_string_equal(shown.out, "<|begin_of_text|><system>Be\n<user>h\u00e9\nNone");
    program_result ids = PENSTOCK("tokenize", model, "--chat", file);
    program_result plain = PENSTOCK("tokenize", model, "--text", shown.out, "--no-special");
    assert_int_equal(ids.status, 0);
    assert_string_equal(ids.out, plain.out);
    program_result made = PENSTOCK("generate", model, "--chat", "--system", "Be", "-p", "h\u00e9", "-n", "3");
    ids.out[strcspn(ids.out, "\n")] = '\0';
    for (char *at = ids.out; *at != '\0'; at++)
        *at = *at == ' ' ? ',' : *at;
    program_result same = PENSTOCK("generate", model, "--token-ids", ids.out, "-n", "3");
    assert_int_equal(made.status, 0);
    assert_string_equal(made.out, same.out);
    expect_error(PENSTOCK("tokenize", MODEL, "--chat", file), 1, "no chat template");
    expect_error(PENSTOCK("generate", MODEL, "--system", "x", "-p", "y"), 2, "--chat");
    write_text(file, "{\"messages\": 3}");
    expect_error(PENSTOCK("tokenize", model, "--chat", file), 1, "chat.json");
    program_free(&shown);
    program_free(&ids);
    program_free(&plain);
    program_free(&made);
    program_free(&same);
}

static void test_lines(void **state)
{
    (void)state;
    static const char lines[] = "\"abc\"\n\"\"\n\"line\\nbreak \\u00e9 \\ud83e\\udd8a\"\n\"nul \\u0000 inside\"\n";
    write_text(scratch_path("lines.jsonl"), lines);
    program_result ids = PENSTOCK("tokenize", MODEL, "--jsonl", scratch_path("lines.jsonl"), "--no-special");
    if (ids.status != 0)
        fail_msg("%s", ids.err);
    const program_setup setup = {.input = ids.out};
    program_result back = PENSTOCK_WITH(&setup, "tokenize", MODEL, "--jsonl", "-", "--decode");
    assert_int_equal(back.status, 0);
    /* The same strings, each spelt as JSON may. */
    const char *a = lines, *b = back.out;
    for (int i = 0; i < 4; i++) {
        size_t a_bytes = strcspn(a, "\n"), b_bytes = strcspn(b, "\n");
        json_t *wanted = json_loadb(a, a_bytes, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
        json_t *got = json_loadb(b, b_bytes, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
        assert_true(wanted != NULL && got != NULL && json_equal(wanted, got));
        json_decref(wanted);
        json_decref(got);
        a += a_bytes + 1;
        b += b_bytes + 1;
    }
    assert_int_equal(*b, '\0');
    program_free(&ids);
    program_free(&back);
}

static void test_mistakes_in_lines(void **state)
{
    (void)state;
    static const struct {
        const char *lines, *says;
        bool decode;
    } cases[] = {
        {"\"good\"\n\"bad\n", "line 2 is not one JSON value", false},
        {"\"a\", \"b\"\n", "line 1 is not one JSON value", false},
        {"17\n", "line 1 is not a JSON string", false},
        {"\"bad \xff\"\n", "line 1 is not one JSON value", false},
        {"\n", "line 1 is not one JSON value", false},
        {"\"text\"\n", "line 1 is not a JSON array", true},
        {"[1, -1]\n", "line 1 is not a JSON array", true},
        {"[1.5]\n", "line 1 is not a JSON array", true},
        {"[4294967296]\n", "line 1 is not a JSON array", true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const program_setup setup = {.input = cases[i].lines};
        expect_error(
            PENSTOCK_WITH(&setup, "tokenize", MODEL, "--jsonl", "-", cases[i].decode ? "--decode" : "--no-special"), 1,
            cases[i].says);
    }
    const program_setup words = {.input = "1 2 three"};
    expect_error(PENSTOCK_WITH(&words, "tokenize", MODEL, "--decode"), 1, "standard input: not a list of token ids");
}

/* A folder that holds nothing but a tokenizer, against what the reference made of the first texts. */
static void test_bare_tokenizer(void **state)
{
    (void)state;
    program_result result =
        PENSTOCK("tokenize", PST_TEST_SOURCE_DIR "/tests/reference/tokenizers/llama3", "--text", "Hello world");
    assert_int_equal(result.status, 0);
    assert_true(strlen(result.out) > 2);
    program_free(&result);
}

static void test_empty(void **state)
{
    (void)state;
    const program_setup nothing = {.input = ""};
    program_result result = PENSTOCK_WITH(&nothing, "tokenize", MODEL, "--no-special");
    assert_int_equal(result.status, 0);
    assert_string_equal(result.out, "\n");
    program_free(&result);
    result = PENSTOCK_WITH(&nothing, "tokenize", MODEL, "--jsonl", "-");
    assert_int_equal(result.status, 0);
    assert_string_equal(result.out, "");
    program_free(&result);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_there_and_back),
        cmocka_unit_test(test_special_tokens),
        cmocka_unit_test(test_chat),
        cmocka_unit_test(test_lines),
        cmocka_unit_test(test_mistakes_in_lines),
        cmocka_unit_test(test_bare_tokenizer),
        cmocka_unit_test(test_empty),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
