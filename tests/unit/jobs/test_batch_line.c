/* SPDX-License-Identifier: Apache-2.0 */
/* Lines of a batch job: what they may say, and hostile ones, each refused for what is wrong with it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/hash.h"
#include "base/heap.h"
#include "jobs/batch_line.h"
#include "store/json_scan.h"
#include "support/random.h"

#define TALES PST_TEST_SOURCE_DIR "/models/penstock-tales"

static pst_batch_options options;
static pst_batch_rules rules;

static pst_batch_line read_bytes(pst_batch_kind kind, const char *text, size_t bytes)
{
    pst_error err = {0};
    pst_batch_line line;
    options.kind = kind;
    pst_batch_raw raw = {.text = text, .bytes = bytes, .number = 9, .index = 7};
    raw.hash = pst_hash(PST_HASH_START, text, bytes);
    if (pst_batch_line_read(&rules, &raw, &line, &err) < 0)
        fail_msg("%s: %s", text, err.message);
    return line;
}

static pst_batch_line read_text(pst_batch_kind kind, const char *text)
{
    return read_bytes(kind, text, strlen(text));
}

static pst_batch_line read_good(const char *text)
{
    pst_batch_line line = read_text(PST_BATCH_GENERATE, text);
    if (line.error_code != NULL)
        fail_msg("%s: %s", text, line.error);
    return line;
}

static void expect_bad(pst_batch_kind kind, const char *text, size_t bytes, const char *code, const char *says)
{
    pst_batch_line line = read_bytes(kind, text, bytes);
    if (line.error_code == NULL || strcmp(line.error_code, code) != 0 || strstr(line.error, says) == NULL)
        fail_msg("%.80s: %s, %s; not %s, %s", text, line.error_code != NULL ? line.error_code : "no error", line.error,
                 code, says);
    pst_batch_line_free(&line);
}

static void test_plain(void **state)
{
    (void)state;
    pst_batch_line line = read_good("{\"prompt\": \"Once upon\"}");
    assert_false(line.is_openai);
    assert_int_equal(line.prompt_count, 1);
    assert_int_equal(line.choices, 1);
    assert_int_equal(line.max_new_tokens, options.max_new_tokens);
    assert_int_equal(line.sampling.seed, options.sampling.seed + 7);
    assert_true(line.sampling.temperature == 0);
    pst_batch_line_free(&line);

    line =
        read_good(" { \"id\" : \"a\\u00e9\", \"prompt_token_ids\": [1, 2, 3], \"max_tokens\": 4e0, \"top_k\": -1,"
                  " \"seed\": -2, \"n\": 3, \"stop\": [\"a\", \"\\u00e9\\n\"], \"ignore_eos\": true, \"echo\": false, "
                  "\"comment\": [[]], \"temperature\": null, \"logprobs\": false, \"presence_penalty\": 0.0 }\r");
    assert_memory_equal(line.custom_id.text, "\"a\\u00e9\"", line.custom_id.bytes);
    assert_int_equal(line.prompts[0].ids.count, 3);
    assert_int_equal(line.choices, 3);
    assert_int_equal(line.max_new_tokens, 4);
    assert_true(line.sampling.seed == (uint64_t)-2);
    assert_true(line.sampling.temperature == 1); /* top_k asks for sampling */
    assert_int_equal(line.sampling.top_k, 0);
    assert_int_equal(line.stop_count, 2);
    assert_string_equal(line.stops[1], "\xc3\xa9\n");
    assert_true(line.ignore_end);
    pst_request first, second;
    pst_batch_line_request(&rules, &line, 0, &first);
    pst_batch_line_request(&rules, &line, 1, &second);
    assert_true(first.sampling.seed == (uint64_t)-2 && second.sampling.seed != first.sampling.seed);
    assert_int_equal(first.max_new_tokens, 4);
    pst_batch_line_free(&line);

    line = read_good("{\"prompt\": [[1], [2, 3], [4]], \"n\": 2}");
    assert_int_equal(line.choices, 6);
    pst_batch_line_request(&rules, &line, 3, &first);
    assert_int_equal(first.prompt_count, 2);
    assert_int_equal(first.prompt_ids[1], 3);
    pst_batch_line_free(&line);

    line = read_good("{\"prompt\": [\"Once\", \"upon a\"], \"max_tokens\": 100000}");
    assert_int_equal(line.choices, 2);
    pst_batch_line_request(&rules, &line, 0, &first); /* as many as there is room for */
    assert_int_equal(first.max_new_tokens, rules.limit - first.prompt_count);
    pst_batch_line_free(&line);
}

static void test_envelope(void **state)
{
    (void)state;
    pst_batch_line line =
        read_good("{\"custom_id\": \"x-1\", \"method\": \"POST\", \"url\": \"/v1/completions\", \"body\": {\"model\": "
                  "\"m\", \"prompt\": [5, 6], \"max_completion_tokens\": 3, \"user\": \"u\", \"stream\": false}}");
    assert_true(line.is_openai);
    assert_memory_equal(line.custom_id.text, "\"x-1\"", line.custom_id.bytes);
    assert_memory_equal(line.model.text, "\"m\"", line.model.bytes);
    assert_int_equal(line.max_new_tokens, 3);
    pst_batch_line_free(&line);
    line = read_good("{\"custom_id\": \"x\", \"url\": \"\\/v1\\/completions\", \"body\": {\"prompt\": [5]}}");
    pst_batch_line_free(&line);
#define ENVELOPE(rest) "{\"custom_id\": \"x\", " rest "}"
    static const struct {
        const char *text, *code, *says;
    } bad[] = {
        {"{\"url\": \"/v1/completions\", \"body\": {\"prompt\": \"a\"}}", "invalid_request", "custom_id"},
        {"{\"custom_id\": 5, \"url\": \"/v1/completions\", \"body\": {}}", "invalid_request", "custom_id"},
        {ENVELOPE("\"url\": \"/v1/completions\""), "invalid_request", "body"},
        {ENVELOPE("\"url\": \"/v1/completions\", \"body\": [1]"), "invalid_request", "body"},
        {ENVELOPE("\"url\": \"/v1/embeddings\", \"body\": {}"), "invalid_url", "/v1/embeddings"},
        {ENVELOPE("\"body\": {\"prompt\": \"a\"}"), "invalid_request", "url"},
        {ENVELOPE("\"url\": \"/v1/chat/completions\", \"body\": {\"messages\": []}"), "unsupported", "chat template"},
        {ENVELOPE("\"url\": \"/v1/completions\", \"method\": \"GET\", \"body\": {}"), "invalid_request", "method"},
        {ENVELOPE("\"url\": \"/v1/completions\", \"body\": {\"prompt\": \"a\", \"temprature\": 1}"), "invalid_request",
         "unknown field \"temprature\""},
        {ENVELOPE("\"url\": \"/v1/completions\", \"body\": {\"prompt\": \"a\", \"logprobs\": 21}"), "invalid_request",
         "from 0 to 20"},
        {ENVELOPE("\"url\": \"/v1/completions\", \"body\": {\"prompt\": \"a\", \"logprobs\": true}"), "invalid_request",
         "from 0 to 20"},
        {ENVELOPE("\"url\": \"/v1/completions\", \"body\": {\"prompt\": \"a\", \"logprobs\": 2.5}"), "invalid_request",
         "from 0 to 20"},
        {ENVELOPE("\"url\": \"/v1/completions\", \"body\": {\"prompt\": \"a\", \"top_logprobs\": 2}"), "unsupported",
         "top_logprobs"},
        {ENVELOPE("\"url\": \"/v1/completions\", \"body\": {\"prompt\": \"a\", \"model\": 2}"), "invalid_request",
         "model"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        expect_bad(PST_BATCH_GENERATE, bad[i].text, strlen(bad[i].text), bad[i].code, bad[i].says);
}

/* A piece of the line in a message ends inside a character: an answer is UTF-8 all the same. */
static void test_cut_pieces(void **state)
{
    (void)state;
    static const char *const before[] = {"{\"custom_id\": \"x\", \"url\": \"",
                                         "{\"custom_id\": \"x\", \"url\": \"/v1/completions\", \"body\": {\""};
    static const char *const after[] = {"\"}", "\": 1}}"};
    for (size_t kind = 0; kind < 2; kind++)
        for (size_t letters = 90; letters < 104; letters++) {
            char text[800], filler[800] = "";
            memset(filler, 'a', letters);
            for (size_t i = 0; i < 40; i++)
                strcat(filler, "\xe2\x82\xac");
            snprintf(text, sizeof text, "%s%s%s", before[kind], filler, after[kind]);
            pst_batch_line line = read_text(PST_BATCH_GENERATE, text);
            assert_non_null(line.error_code);
            const pst_scan scan = {.text = line.error, .bytes = strlen(line.error)};
            if (pst_scan_utf8(&scan) < 0)
                fail_msg("%zu letters: %s", letters, line.error);
            assert_non_null(strstr(line.error, "aaaaaaaa"));
            pst_batch_line_free(&line);
        }
    pst_batch_line line = {0};
    pst_batch_line_fail(&line, "server_error", "%s",
                        "\xac"
                        "a\xe2\x82\xc3\xa9\xff"
                        "b\xf0");
    assert_string_equal(line.error, "a\xc3\xa9"
                                    "b");
}

static void test_wrong_fields(void **state)
{
    (void)state;
    static const char *const fields[] = {
        "\"id\": [1]",
        "\"id\": true",
        "\"max_tokens\": -1",
        "\"max_tokens\": 1.5",
        "\"max_tokens\": \"3\"",
        "\"max_tokens\": 1e400",
        "\"max_tokens\": 1e10",
        "\"temperature\": -0.1",
        "\"temperature\": 1e999",
        "\"temperature\": true",
        "\"top_p\": 0",
        "\"top_p\": 1.01",
        "\"min_p\": 2",
        "\"top_k\": 1.5",
        "\"top_k\": 99999999999",
        "\"seed\": 1.5",
        "\"seed\": 18446744073709551616",
        "\"seed\": \"1\"",
        "\"n\": 0",
        "\"n\": 129",
        "\"stop\": 5",
        "\"stop\": [\"\"]",
        "\"stop\": [1]",
        "\"echo\": 1",
        "\"ignore_eos\": \"yes\"",
        "\"best_of\": 2",
        "\"stream\": true",
        "\"suffix\": \"x\"",
        "\"logit_bias\": {\"1\": 2}",
        "\"frequency_penalty\": 1",
        "\"repetition_penalty\": 1.1",
        "\"messages\": []",
        "\"seed\": -9223372036854775809",
        "\"response_format\": {\"type\": \"json_object\"}",
        "\"tools\": [{}]",
    };
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        char text[200], name[40];
        snprintf(text, sizeof text, "{\"prompt\": \"a\", %s}", fields[i]);
        snprintf(name, sizeof name, "%.*s", (int)(strchr(fields[i] + 1, '"') - fields[i] - 1), fields[i] + 1);
        pst_batch_line line = read_text(PST_BATCH_GENERATE, text);
        if (line.error_code == NULL || strstr(line.error, name) == NULL)
            fail_msg("%s: %s", text, line.error);
        pst_batch_line_free(&line);
    }
}

static void test_fields_that_ask_for_nothing(void **state)
{
    (void)state;
    static const char *const fields[] = {
        "\"response_format\": { \"type\": \"text\" }",
        "\"tools\": [ ]",
        "\"logit_bias\": {}",
        "\"suffix\": \"\"",
        "\"stream\": false",
        "\"best_of\": 1",
        "\"presence_penalty\": 0.0",
        "\"stop\": null",
    };
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        char text[200];
        snprintf(text, sizeof text, "{\"prompt\": \"a\", %s}", fields[i]);
        pst_batch_line line = read_text(PST_BATCH_GENERATE, text);
        if (line.error_code != NULL)
            fail_msg("%s: %s", text, line.error);
        pst_batch_line_free(&line);
    }
}

static void test_prompts(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "{}",
        "{\"prompt\": \"\"}",
        "{\"prompt\": []}",
        "{\"prompt\": [[]]}",
        "{\"prompt\": [\"a\", \"\"]}",
        "{\"prompt\": [\"a\", 3]}",
        "{\"prompt\": [3, \"a\"]}",
        "{\"prompt\": [[3], [\"a\"]]}",
        "{\"prompt\": [[[3]]]}",
        "{\"prompt\": 5}",
        "{\"prompt\": {\"a\": 1}}",
        "{\"prompt\": true}",
        "{\"prompt\": [1.5]}",
        "{\"prompt\": [-1]}",
        "{\"prompt\": [4294967296]}",
        "{\"prompt\": [99999999999999999999999]}",
        "{\"prompt\": [999999]}",
        "{\"prompt\": \"a\", \"prompt_token_ids\": [1]}",
        "{\"prompt\": null}",
        "{\"prompt\": \"a\", \"prompt\": \"b\"}",
        "{\"prompt\": \"a\", \"pr\\u006fmpt\": \"b\"}",
        "{\"prompt\": \"a\", \"n\": 1, \"n\": null}",
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        expect_bad(PST_BATCH_GENERATE, bad[i], strlen(bad[i]), "invalid_request", "");
    /* As many tokens as fit leave no room. */
    char *text = malloc(100000);
    size_t used = (size_t)sprintf(text, "{\"prompt_token_ids\": [1");
    for (uint32_t i = 1; i < rules.limit; i++)
        used += (size_t)sprintf(text + used, ",%u", i % 50);
    strcpy(text + used, "]}");
    expect_bad(PST_BATCH_GENERATE, text, strlen(text), "context_length_exceeded", "512 tokens");
    strcpy(text + used, "], \"max_tokens\": 0}");
    pst_batch_line line = read_good(text);
    assert_int_equal(line.max_new_tokens, 0);
    pst_batch_line_free(&line);
    /* Too many answers. */
    used = (size_t)sprintf(text, "{\"n\": 100, \"prompt\": [[1]");
    for (int i = 0; i < 60; i++)
        used += (size_t)sprintf(text + used, ",[%d]", i);
    strcpy(text + used, "]}");
    expect_bad(PST_BATCH_GENERATE, text, strlen(text), "invalid_request", "6100 answers");
    free(text);
}

static void test_hostile_json(void **state)
{
    (void)state;
#define BYTES(text) text, sizeof(text) - 1
    static const struct {
        const char *text;
        size_t bytes;
    } bad[] = {
        {BYTES("")},
        {BYTES("{")},
        {BYTES("{\"prompt\": \"a\"")},
        {BYTES("{\"prompt\": \"a\"} x")},
        {BYTES("{\"prompt\": \"a\"}{}")},
        {BYTES("{\"prompt\": \"a\",}")},
        {BYTES("{\"prompt\" \"a\"}")},
        {BYTES("{prompt: \"a\"}")},
        {BYTES("{'prompt': 'a'}")},
        {BYTES("{\"prompt\": \"a\0b\"}")},
        {BYTES("{\"prompt\": \"a\"}\0")},
        {BYTES("{\"prompt\": \"\\u0000\"}")},
        {BYTES("{\"prompt\": \"\\ud800\"}")},
        {BYTES("{\"prompt\": \"\\udc00\\ud800\"}")},
        {BYTES("{\"x\": \"\\ud800x\", \"prompt\": \"a\"}")},
        {BYTES("{\"prompt\": \"\xed\xa0\x80\"}")},
        {BYTES("{\"prompt\": \"\xff\"}")},
        {BYTES("{\"prompt\": \"\xc0\xaf\"}")},
        {BYTES("{\"prompt\": \"a\tb\"}")},
        {BYTES("{\"prompt\": \"\\x41\"}")},
        {BYTES("{\"prompt\": nul}")},
        {BYTES("{\"prompt\": \"a\", \"seed\": 01}")},
        {BYTES("{\"prompt\": \"a\", \"seed\": +1}")},
        {BYTES("{\"prompt\": \"a\", \"top_p\": .5}")},
        {BYTES("{\"prompt\": \"a\", \"top_p\": NaN}")},
        {BYTES("{\"prompt\": \"a\", \"top_p\": Infinity}")},
        {BYTES("\xef\xbb\xbf\xef\xbb\xbf{}")},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        expect_bad(PST_BATCH_GENERATE, bad[i].text, bad[i].bytes, "invalid_json", "byte");
    expect_bad(PST_BATCH_GENERATE, BYTES("[1]"), "invalid_request", "not an object");
    expect_bad(PST_BATCH_GENERATE, BYTES("\"a\""), "invalid_request", "not an object");
    expect_bad(PST_BATCH_GENERATE, BYTES("5"), "invalid_request", "not an object");
    /* Deep nesting, in a field that is passed over and in one that is not. */
    enum { DEPTH = 100000 };
    char *deep = malloc(2 * DEPTH + 64);
    for (int known = 0; known <= 1; known++) {
        int used = sprintf(deep, "{\"%s\": ", known ? "prompt" : "unknown");
        memset(deep + used, '[', DEPTH);
        memset(deep + used + DEPTH, ']', DEPTH);
        strcpy(deep + used + 2 * DEPTH, "}");
        expect_bad(PST_BATCH_GENERATE, deep, strlen(deep), "invalid_json", "deep");
    }
    free(deep);
}

/* Whatever bytes come, the line is read or refused, and what is refused is one line of valid text. */
static void test_random_bytes(void **state)
{
    (void)state;
    static const char seed_line[] =
        "{\"custom_id\": \"a\", \"url\": \"/v1/completions\", \"body\": {\"prompt\": [\"\\u00e9x\", "
        "\"b\"], \"stop\": [\"c\"], \"seed\": 12, \"n\": 2, \"top_p\": 0.5}}";
    random_start("batch lines");
    for (int round = 0; round < 20000; round++) {
        char text[sizeof seed_line];
        memcpy(text, seed_line, sizeof text);
        for (int change = 0; change <= round % 3; change++) {
            const uint64_t random = random_below(UINT64_MAX);
            static const char letters[] = "\"\\{}[],:0-9eE.u\xff\xc3\0 ";
            text[(random >> 33) % (sizeof text - 1)] = letters[(random >> 20) % (sizeof letters - 1)];
        }
        pst_batch_line line = read_bytes(round % 2 ? PST_BATCH_GENERATE : PST_BATCH_SCORE, text, sizeof text - 1);
        assert_int_equal(line.error_code == NULL, line.error[0] == '\0');
        assert_true(strchr(line.error, '\n') == NULL);
        pst_batch_line_free(&line);
    }
}

static void test_scoring(void **state)
{
    (void)state;
    pst_batch_line line = read_text(PST_BATCH_SCORE, "{\"token_ids\": [1, 2, 3], \"logprobs\": true, \"id\": 4}");
    assert_null(line.error_code);
    assert_int_equal(line.choices, 1);
    assert_int_equal(line.scored_from, 1);
    assert_true(line.wants_logprobs);
    pst_batch_line_free(&line);
    line = read_text(PST_BATCH_SCORE, "{\"prompt\": [1, 2], \"completion\": [3]}");
    assert_null(line.error_code);
    assert_int_equal(line.prompts[0].ids.count, 3);
    assert_int_equal(line.scored_from, 2);
    pst_batch_line_free(&line);
    /* Windows overlap by one token and together score every token but the first once. */
    char text[8000];
    for (uint32_t count = 1; count < 1200; count += count < 5 ? 1 : 127) {
        size_t used = (size_t)sprintf(text, "{\"token_ids\": [1");
        for (uint32_t i = 1; i < count; i++)
            used += (size_t)sprintf(text + used, ",%u", i % 50);
        strcpy(text + used, "]}");
        line = read_text(PST_BATCH_SCORE, text);
        assert_null(line.error_code);
        uint32_t scored = 0;
        for (size_t w = 0; w < line.choices; w++) {
            pst_score_request request;
            pst_batch_line_window(&rules, &line, w, &request);
            assert_in_range(request.count, 2, rules.limit);
            assert_ptr_equal(request.logprobs, line.logprobs + scored);
            scored += (uint32_t)request.count - 1;
        }
        assert_int_equal(scored, count - 1);
        pst_batch_line_free(&line);
    }
    static const char *const bad[] = {
        "{}",
        "{\"text\": 5}",
        "{\"text\": \"\"}",
        "{\"text\": \"a\", \"token_ids\": [1]}",
        "{\"prompt\": \"a\"}",
        "{\"completion\": \"a\"}",
        "{\"prompt\": \"a\", \"completion\": \"\"}",
        "{\"prompt\": \"a\", \"completion\": []}",
        "{\"prompt\": \"a\", \"completion\": 1}",
        "{\"text\": \"a\", \"logprobs\": 5}",
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        expect_bad(PST_BATCH_SCORE, bad[i], strlen(bad[i]), "invalid_request", "");
}

/* Every allocation fails in turn: an error, and nothing leaks. */
static void test_allocation_failures(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "{\"prompt\": [\"Once\", \"upon\"], \"stop\": [\"a\", \"b\"]}",
        "{\"prompt\": \"Once\", \"completion\": \" upon\"}",
    };
    for (size_t kind = 0; kind < 2; kind++) {
        options.kind = kind == 0 ? PST_BATCH_GENERATE : PST_BATCH_SCORE;
        pst_batch_raw raw = {.text = texts[kind], .bytes = strlen(texts[kind])};
        int64_t live = pst_heap_live_count();
        int status = -1, n = 0;
        for (; status < 0; n++) {
            pst_batch_line line;
            pst_error err = {0};
            pst_heap_fail_after(n, 0);
            status = pst_batch_line_read(&rules, &raw, &line, &err);
            pst_heap_fail_after(-1, 0);
            assert_true(status >= 0 || err.code == status);
            assert_true(status < 0 || line.error_code == NULL);
            pst_batch_line_free(&line);
            assert_int_equal(pst_heap_live_count(), live);
            assert_true(n < 1000);
        }
        assert_true(n > 8);
    }
}

/* Lines of any length, without an end at the end, with blank ones between. */
static void test_input(void **state)
{
    (void)state;
    char path[] = "/tmp/pst-batch-XXXXXX";
    int fd = mkstemp(path);
    FILE *file = fdopen(fd, "wb");
    fputs("\xef\xbb\xbf{1}\r\n\n \t\r\n{2}\n", file);
    for (int i = 0; i < PST_BATCH_LINE_BYTES + 5; i++)
        fputc('x', file);
    fputc('\n', file);
    for (int i = 0; i < 600000; i++)
        fputc('y', file);
    fputs("\nlast", file);
    fclose(file);
    pst_batch_input *input;
    pst_error err = {0};
    assert_int_equal(pst_batch_input_open(path, path, &input, &err), 0);
    uint64_t digest = 0;
    for (int round = 0; round < 2; round++) {
        static const struct {
            uint64_t number;
            size_t bytes;
            char first;
        } expected[] = {{1, 4, '{'}, {4, 3, '{'}, {5, PST_BATCH_LINE_BYTES, 'x'}, {6, 600000, 'y'}, {7, 4, 'l'}};
        pst_batch_raw raw;
        for (size_t i = 0; i < 5; i++) {
            assert_int_equal(pst_batch_input_next(input, &raw, &err), 1);
            assert_int_equal(raw.number, expected[i].number);
            assert_int_equal(raw.index, i);
            assert_int_equal(raw.bytes, expected[i].bytes);
            assert_int_equal(raw.text[0], expected[i].first);
            assert_int_equal(raw.too_long, i == 2);
        }
        assert_int_equal(pst_batch_input_next(input, &raw, &err), 0);
        assert_int_equal(pst_batch_input_at(input), pst_batch_input_bytes(input));
        assert_true(round == 0 || digest == pst_batch_input_digest(input));
        digest = pst_batch_input_digest(input);
        pst_batch_input_rewind(input);
    }
    pst_batch_input_close(input);
    unlink(path);
    assert_true(pst_batch_input_open("/", path, &input, &err) < 0);
    assert_true(pst_batch_input_open("/tmp/does/not/exist", path, &input, &err) < 0);
}

static int set_up(void **state)
{
    pst_model *model;
    pst_error err;
    assert_int_equal(pst_model_open(TALES, NULL, &model, &err), 0);
    assert_int_equal(pst_model_tokenizer(model, &rules.tokenizer, &err), 0);
    pst_model_get_info(model, &rules.info);
    options = (pst_batch_options){.max_new_tokens = 128, .sampling.seed = 100};
    rules.options = &options;
    rules.limit = rules.info.context;
    *state = model;
    return 0;
}

static int tear_down(void **state)
{
    pst_model_close(*state);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plain),
        cmocka_unit_test(test_envelope),
        cmocka_unit_test(test_cut_pieces),
        cmocka_unit_test(test_wrong_fields),
        cmocka_unit_test(test_fields_that_ask_for_nothing),
        cmocka_unit_test(test_prompts),
        cmocka_unit_test(test_hostile_json),
        cmocka_unit_test(test_random_bytes),
        cmocka_unit_test(test_scoring),
        cmocka_unit_test(test_allocation_failures),
        cmocka_unit_test(test_input),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
