/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Batch jobs end to end: formats, errors that stay with their line, jobs that are killed at random moments and go on,
 * outputs that are complete, locked, or none of ours, and memory that does not grow with the lines.
 *
 * PST_TEST_REQUESTS and PST_TEST_KILLS make the kill test as long as one likes.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "program.h"
#include "support/random.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { SANITIZED = 1 };
#else
enum { SANITIZED = 0 };
#endif

static bool exists(const char *path)
{
    return access(path, F_OK) == 0;
}

static size_t count_lines(const char *text)
{
    size_t lines = 0;
    for (; *text != '\0'; text++)
        lines += *text == '\n';
    return lines;
}

/* The answer to line `index`, parsed; json_decref. */
static json_t *answer_of(const char *path, size_t index)
{
    size_t bytes;
    char *text = read_file(path, &bytes), *line = text;
    for (size_t i = 0; i < index; i++) {
        line = strchr(line, '\n');
        assert_non_null(line++);
    }
    *strchr(line, '\n') = '\0';
    json_error_t error;
    json_t *answer = json_loads(line, JSON_REJECT_DUPLICATES, &error);
    if (answer == NULL)
        fail_msg("%s: %s", line, error.text);
    free(text);
    return answer;
}

static const char *text_at(const json_t *object, const char *first, const char *second)
{
    const json_t *value = json_object_get(object, first);
    return json_string_value(second != NULL ? json_object_get(value, second) : value);
}

static void expect_ok(program_result result)
{
    if (result.status != 0)
        fail_msg("status %d: %s", result.status, result.err);
    program_free(&result);
}

static void expect_failure(program_result result, const char *says)
{
    if (result.status != 1 && result.status != 2)
        fail_msg("status %d: %s", result.status, result.err);
    if (strstr(result.err, says) == NULL)
        fail_msg("%s: not \"%s\"", result.err, says);
    assert_int_equal(count_lines(result.err), 1);
    program_free(&result);
}

static void expect_text(const char *path, const char *expected)
{
    size_t bytes;
    char *text = read_file(path, &bytes);
    assert_string_equal(text, expected);
    free(text);
}

/* ---- formats ---- */

static void test_plain_lines(void **state)
{
    (void)state;
    char in[600], out[600];
    snprintf(in, sizeof in, "%s", scratch_path("plain.jsonl"));
    snprintf(out, sizeof out, "%s", scratch_path("plain.out"));
    write_text(in, "{\"prompt\": \"Once upon a time\", \"max_tokens\": 9, \"id\": -1.5e3}\n"
                   "\n"
                   "{\"prompt_token_ids\": [1, 2, 3], \"max_tokens\": 4, \"n\": 2}\n"
                   "{\"prompt\": \"The fox said\", \"max_tokens\": 20, \"stop\": \" st\", \"temperature\": 0}\n"
                   "{\"prompt\": [\"One\", \"Two\\n\"], \"echo\": true, \"max_tokens\": 3}\n");
    program_result result = PENSTOCK("generate", MODEL, "-i", in, "-o", out);
    assert_int_equal(result.status, 0);
    assert_non_null(strstr(result.err, "4 lines answered, 0 with an error"));
    assert_non_null(strstr(result.err, "of the bound"));
    assert_string_equal(result.out, "");
    program_free(&result);
    json_t *alone = expect_json(PENSTOCK("generate", MODEL, "--prompt", "Once upon a time", "-n", "9", "--json"));
    json_t *answer = answer_of(out, 0);
    const json_t *expected = json_array_get(json_object_get(alone, "results"), 0);
    assert_string_equal(text_at(answer, "text", NULL), text_at(expected, "text", NULL));
    assert_string_equal(text_at(answer, "prompt", NULL), "Once upon a time");
    assert_string_equal(text_at(answer, "finish_reason", NULL), "length");
    assert_int_equal(json_integer_value(json_object_get(json_object_get(answer, "usage"), "completion_tokens")), 9);
    assert_true(json_number_value(json_object_get(answer, "id")) == -1500);
    json_decref(answer);
    json_decref(alone);
    answer = answer_of(out, 1);
    const json_t *choices = json_object_get(answer, "choices");
    assert_int_equal(json_array_size(choices), 2);
    assert_int_equal(json_array_size(json_object_get(json_array_get(choices, 1), "token_ids")), 4);
    json_decref(answer);
    answer = answer_of(out, 2);
    assert_string_equal(text_at(answer, "finish_reason", NULL), "stop");
    assert_null(strstr(text_at(answer, "text", NULL), " st"));
    json_decref(answer);
    answer = answer_of(out, 3);
    choices = json_object_get(answer, "choices");
    assert_memory_equal(text_at(json_array_get(choices, 0), "text", NULL), "One", 3);
    assert_memory_equal(text_at(json_array_get(choices, 1), "text", NULL), "Two\n", 4);
    json_decref(answer);
}

/* What a client of OpenAI's batches reads, for answers and for lines that are wrong. */
static void test_envelope_lines(void **state)
{
    (void)state;
    char in[600], out[600];
    snprintf(in, sizeof in, "%s", scratch_path("openai.jsonl"));
    snprintf(out, sizeof out, "%s", scratch_path("openai.out"));
    write_text(
        in,
        "{\"custom_id\": \"first \\u00e9\", \"method\": \"POST\", \"url\": \"/v1/completions\", \"body\": {\"model\": "
        "\"some-model\", \"prompt\": \"Once upon a time\", \"max_tokens\": 5}}\n"
        "{\"custom_id\": \"chat\", \"method\": \"POST\", \"url\": \"/v1/chat/completions\", \"body\": {\"messages\": "
        "[]}}\n"
        "this is \xff no JSON\n"
        "{\"custom_id\": \"ids\", \"method\": \"POST\", \"url\": \"/v1/completions\", \"body\": {\"prompt\": [[1, 2], "
        "[3]], \"max_tokens\": 2, \"seed\": 7, \"temperature\": 1.5}}");
    expect_ok(PENSTOCK("generate", MODEL, "-i", in, "-o", out, "--resident", "0"));
    json_t *answer = answer_of(out, 0);
    assert_string_equal(text_at(answer, "custom_id", NULL), "first \xc3\xa9");
    assert_memory_equal(text_at(answer, "id", NULL), "batch_req_", 10);
    assert_true(json_is_null(json_object_get(answer, "error")));
    const json_t *response = json_object_get(answer, "response"), *body = json_object_get(response, "body");
    assert_int_equal(json_integer_value(json_object_get(response, "status_code")), 200);
    assert_string_equal(text_at(body, "object", NULL), "text_completion");
    assert_string_equal(text_at(body, "model", NULL), "some-model");
    const json_t *choice = json_array_get(json_object_get(body, "choices"), 0);
    assert_int_equal(json_integer_value(json_object_get(choice, "index")), 0);
    assert_string_equal(text_at(choice, "finish_reason", NULL), "length");
    assert_true(strlen(text_at(choice, "text", NULL)) > 5);
    json_decref(answer);
    static const char *const codes[] = {"unsupported", "invalid_json"};
    for (size_t i = 0; i < 2; i++) {
        answer = answer_of(out, 1 + i);
        response = json_object_get(answer, "response");
        assert_int_equal(json_integer_value(json_object_get(response, "status_code")), 400);
        assert_string_equal(text_at(answer, "error", "code"), codes[i]);
        assert_string_equal(text_at(json_object_get(response, "body"), "error", "code"), codes[i]);
        if (i == 0)
            assert_string_equal(text_at(answer, "custom_id", NULL), "chat");
        else
            assert_true(json_is_null(json_object_get(answer, "custom_id")));
        json_decref(answer);
    }
    answer = answer_of(out, 3);
    body = json_object_get(json_object_get(answer, "response"), "body");
    assert_int_equal(json_array_size(json_object_get(body, "choices")), 2);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(body, "usage"), "prompt_tokens")), 3);
    json_decref(answer);
}

static void test_scoring(void **state)
{
    (void)state;
    char out[600];
    snprintf(out, sizeof out, "%s", scratch_path("score.out"));
    const program_setup setup = {.input = "{\"text\": \"Once upon a time there was a fox.\", \"logprobs\": true}\n"
                                          "{\"prompt\": \"Once upon a\", \"completion\": \" time\", \"id\": 5}\n"
                                          "{\"token_ids\": [7]}\n"
                                          "{\"texts\": \"x\"}\n"};
    expect_ok(PENSTOCK_WITH(&setup, "score", MODEL, "-i", "-", "-o", out, "--context", "5"));
    json_t *alone = expect_json(
        PENSTOCK("score", MODEL, "--text", "Once upon a time there was a fox.", "--context", "5", "--json"));
    const json_t *expected = json_array_get(json_object_get(alone, "results"), 0);
    json_t *answer = answer_of(out, 0);
    assert_true(json_equal(json_object_get(answer, "logprobs"), json_object_get(expected, "logprobs")));
    assert_true(json_equal(json_object_get(answer, "perplexity"), json_object_get(expected, "perplexity")));
    const json_t *logprobs = json_object_get(expected, "logprobs");
    assert_int_equal(json_integer_value(json_object_get(answer, "tokens")), json_array_size(logprobs));
    double time = json_real_value(json_array_get(logprobs, 3)); /* of " time" after "Once upon a" */
    json_decref(answer);
    answer = answer_of(out, 1);
    assert_int_equal(json_integer_value(json_object_get(answer, "tokens")), 1);
    assert_int_equal(json_integer_value(json_object_get(answer, "id")), 5);
    assert_true(json_real_value(json_object_get(answer, "sum")) == time);
    json_decref(answer);
    answer = answer_of(out, 2);
    assert_int_equal(json_integer_value(json_object_get(answer, "tokens")), 0);
    assert_true(json_is_null(json_object_get(answer, "perplexity")));
    json_decref(answer);
    answer = answer_of(out, 3);
    assert_string_equal(text_at(answer, "error", "code"), "invalid_request");
    json_decref(answer);
    json_decref(alone);
}

/* OpenAI's object for each choice: lists of one length, offsets that texts begin at. */
static void check_completion_logprobs(const json_t *choice, const char *whole, size_t tokens, size_t most)
{
    const json_t *told = json_object_get(choice, "logprobs"), *names = json_object_get(told, "tokens");
    const json_t *values = json_object_get(told, "token_logprobs"), *tops = json_object_get(told, "top_logprobs");
    const json_t *offsets = json_object_get(told, "text_offset");
    assert_int_equal(json_array_size(names), tokens);
    assert_int_equal(json_array_size(values), tokens);
    assert_int_equal(json_array_size(tops), tokens);
    assert_int_equal(json_array_size(offsets), tokens);
    for (size_t i = 0; i < tokens; i++) {
        const char *name = json_string_value(json_array_get(names, i));
        const json_t *value = json_array_get(values, i), *top = json_array_get(tops, i);
        const size_t offset = (size_t)json_integer_value(json_array_get(offsets, i));
        assert_true(offset <= strlen(whole));
        if (json_is_null(value)) {
            assert_int_equal(i, 0);
            assert_true(json_is_null(top));
            continue;
        }
        assert_int_equal(strncmp(whole + offset, name, strlen(name)), 0);
        assert_in_range(json_object_size(top), most > 0 ? most : 1, most + 1);
        assert_true(json_equal(json_object_get(top, name), value));
    }
}

static void test_logprobs(void **state)
{
    (void)state;
    static const char text[] = "Once upon a time there was a fox.";
    char in[600], out[600], whole[600];
    snprintf(in, sizeof in, "%s", scratch_path("logprobs.jsonl"));
    snprintf(out, sizeof out, "%s", scratch_path("logprobs.out"));
    write_text(
        in, "{\"prompt\": \"Once upon a time there was a fox.\", \"max_tokens\": 0, \"echo\": true, \"logprobs\": 0}\n"
            "{\"prompt\": \"Once upon\", \"max_tokens\": 9, \"logprobs\": 3, \"temperature\": 1.2}\n"
            "{\"prompt\": \"Once upon\", \"max_tokens\": 9, \"temperature\": 1.2, \"seed\": 1}\n"
            "{\"prompt\": [\"Once\", \"The fox\"], \"max_tokens\": 4, \"logprobs\": 20, \"echo\": true, \"n\": 2}\n"
            "{\"prompt_token_ids\": [1], \"max_tokens\": 0, \"logprobs\": 1, \"echo\": true}\n");
    expect_ok(PENSTOCK("generate", MODEL, "-i", in, "-o", out));
    json_t *alone = expect_json(PENSTOCK("score", MODEL, "--text", text, "--json"));
    const json_t *scores = json_object_get(json_array_get(json_object_get(alone, "results"), 0), "logprobs");
    json_t *answer = answer_of(out, 0);
    const json_t *values = json_object_get(json_object_get(answer, "logprobs"), "token_logprobs");
    assert_int_equal(json_array_size(values), json_array_size(scores) + 1);
    for (size_t i = 0; i < json_array_size(scores); i++)
        assert_true(json_equal(json_array_get(values, i + 1), json_array_get(scores, i)));
    check_completion_logprobs(answer, text, json_array_size(values), 0);
    json_decref(answer);
    json_decref(alone);
    answer = answer_of(out, 1);
    snprintf(whole, sizeof whole, "Once upon%s", text_at(answer, "text", NULL));
    check_completion_logprobs(answer, whole, 9, 3);
    json_t *untold = answer_of(out, 2);
    assert_string_equal(text_at(answer, "text", NULL), text_at(untold, "text", NULL));
    assert_null(json_object_get(untold, "logprobs"));
    json_decref(untold);
    json_decref(answer);
    answer = answer_of(out, 3);
    for (size_t i = 0; i < 4; i++) {
        const json_t *choice = json_array_get(json_object_get(answer, "choices"), i);
        const json_t *names = json_object_get(json_object_get(choice, "logprobs"), "tokens");
        check_completion_logprobs(choice, text_at(choice, "text", NULL), json_array_size(names), 20);
    }
    json_decref(answer);
    answer = answer_of(out, 4);
    assert_int_equal(json_array_size(json_object_get(json_object_get(answer, "logprobs"), "tokens")), 1);
    json_decref(answer);
}

/* The answers of a batch are those of the prompts alone, whatever the batch size. */
static void test_like_prompts(void **state)
{
    (void)state;
    static const char *const prompts[] = {"Once", "The fox said", "In the valley", "A river"};
    char in[600], out[600], text[600] = "", lines[600] = "";
    snprintf(in, sizeof in, "%s", scratch_path("alike.jsonl"));
    snprintf(out, sizeof out, "%s", scratch_path("alike.out"));
    for (size_t i = 0; i < 4; i++) {
        snprintf(text + strlen(text), sizeof text - strlen(text), "{\"prompt\": \"%s\"}\n", prompts[i]);
        snprintf(lines + strlen(lines), sizeof lines - strlen(lines), "%s\n", prompts[i]);
    }
    write_text(in, text);
    write_text(scratch_path("alike.txt"), lines);
    expect_ok(PENSTOCK("generate", MODEL, "-i", in, "-o", out, "-n", "12", "--temperature", "0.9", "--top-k", "40",
                       "--seed", "11", "--batch-size", "3"));
    json_t *document = expect_json(PENSTOCK("generate", MODEL, "--prompts-file", scratch_path("alike.txt"), "-n", "12",
                                            "--temperature", "0.9", "--top-k", "40", "--seed", "11", "--json"));
    for (size_t i = 0; i < 4; i++) {
        json_t *answer = answer_of(out, i);
        assert_string_equal(text_at(answer, "text", NULL),
                            text_at(json_array_get(json_object_get(document, "results"), i), "text", NULL));
        json_decref(answer);
    }
    json_decref(document);
}

/* ---- outputs that are there ---- */

static void test_complete_and_restart(void **state)
{
    (void)state;
    char in[600], out[600], partial[640];
    size_t bytes, again;
    snprintf(in, sizeof in, "%s", scratch_path("complete.jsonl"));
    snprintf(out, sizeof out, "%s", scratch_path("complete.out"));
    snprintf(partial, sizeof partial, "%s.partial", out);
    write_text(in, "{\"prompt\": \"Once\", \"max_tokens\": 3}\nbad\n");
    expect_ok(PENSTOCK("generate", MODEL, "-i", in, "-o", out));
    char *first = read_file(out, &bytes);
    program_result result = PENSTOCK("generate", MODEL, "-i", in, "-o", out);
    assert_int_equal(result.status, 0);
    assert_non_null(strstr(result.err, "already complete: 2 lines"));
    program_free(&result);
    EXPECT_ERROR(1, "--restart", "generate", MODEL, "-i", in, "-o", out, "-n", "5");
    EXPECT_ERROR(1, "--restart", "generate", MODEL, "-i", in, "-o", out, "--seed", "5");
    EXPECT_ERROR(1, "the output, too", "generate", MODEL, "-i", in, "-o", in);
    EXPECT_ERROR(1, "the output, too", "generate", MODEL, "-i", in, "-o", in, "--restart");
    write_text(scratch_path("other.out"), "precious\n");
    EXPECT_ERROR(1, "--restart", "generate", MODEL, "-i", in, "-o", scratch_path("other.out"));
    char *kept = read_file(scratch_path("other.out"), &again);
    assert_string_equal(kept, "precious\n");
    free(kept);
    assert_false(exists(partial));
    expect_ok(PENSTOCK("generate", MODEL, "-i", in, "-o", out, "--restart"));
    char *second = read_file(out, &again);
    assert_int_equal(bytes, again);
    assert_memory_equal(first, second, bytes);
    free(second);
    write_text(in, "{\"prompt\": \"Once\", \"max_tokens\": 3}\n");
    EXPECT_ERROR(1, "--restart", "generate", MODEL, "-i", in, "-o", out);
    free(first);
    assert_int_equal(count_entries("complete.out"), 1);
}

/* An input that the job would write to, and what is in the way and is none of the job's, are left as they are. */
static void test_files_in_the_way(void **state)
{
    (void)state;
    static const char request[] = "{\"prompt\": \"One\", \"max_tokens\": 2}\n";
    static const char *const ends[] = {"", ".partial", ".partial-output"};
    char in[600], out[600], beside[700];
    snprintf(out, sizeof out, "%s", scratch_path("way.out"));
    for (size_t i = 0; i < 3; i++) {
        snprintf(beside, sizeof beside, "%s%s", out, ends[i]);
        write_text(beside, request);
        expect_failure(PENSTOCK("generate", MODEL, "-i", beside, "-o", out, "--restart"), "choose another output");
        expect_text(beside, request);
        unlink(beside);
    }
    snprintf(in, sizeof in, "%s", scratch_path("way.jsonl"));
    write_text(in, request);
    snprintf(beside, sizeof beside, "%s.partial", out);
    static const char *const texts[] = {"somebody's notes\n", "PST\n"};
    for (size_t i = 0; i < 2; i++) {
        write_text(beside, texts[i]);
        expect_failure(PENSTOCK("generate", MODEL, "-i", in, "-o", out), "the place of the journal");
        expect_failure(PENSTOCK("generate", MODEL, "-i", in, "-o", out, "--restart"), "the place of the journal");
        expect_text(beside, texts[i]);
    }
    unlink(beside);
    assert_int_equal(mkdir(out, 0777), 0);
    expect_failure(PENSTOCK("generate", MODEL, "-i", in, "-o", out, "--restart"), "is no regular file");
    assert_false(exists(beside));
    rmdir(out);
}

/* Two models of the same shape: an output of the one is not taken for one of the other. */
static void test_other_weights(void **state)
{
    (void)state;
    char in[600], out[600], first[600], second[600], copy[600];
    snprintf(in, sizeof in, "%s", scratch_path("weights.jsonl"));
    snprintf(out, sizeof out, "%s", scratch_path("weights.out"));
    snprintf(first, sizeof first, "%s", scratch_path("first"));
    snprintf(second, sizeof second, "%s", scratch_path("second"));
    snprintf(copy, sizeof copy, "%s", scratch_path("copy"));
    write_text(in, "{\"prompt_token_ids\": [5, 6], \"max_tokens\": 3}\n");
    expect_ok(PENSTOCK("synth", "tiny", first, "--seed", "1"));
    expect_ok(PENSTOCK("synth", "tiny", second, "--seed", "2"));
    expect_ok(PENSTOCK("synth", "tiny", copy, "--seed", "1", "--shard-size", "100K"));
    expect_ok(PENSTOCK("generate", first, "-i", in, "-o", out));
    expect_failure(PENSTOCK("generate", second, "-i", in, "-o", out), "does not answer this input with this model");
    program_result result = PENSTOCK("generate", copy, "-i", in, "-o", out);
    assert_int_equal(result.status, 0);
    assert_non_null(strstr(result.err, "already complete"));
    program_free(&result);
}

static void test_usage(void **state)
{
    (void)state;
    char in[600];
    snprintf(in, sizeof in, "%s", scratch_path("usage.jsonl"));
    write_text(in, "");
    EXPECT_ERROR(2, "--output", "generate", MODEL, "-i", in);
    EXPECT_ERROR(2, "--input", "generate", MODEL, "-o", scratch_path("x"));
    EXPECT_ERROR(2, "--input", "generate", MODEL, "--restart");
    EXPECT_ERROR(2, "--input alone", "generate", MODEL, "-i", in, "-o", scratch_path("x"), "--prompt", "a");
    EXPECT_ERROR(2, "--input alone", "score", MODEL, "-i", in, "-o", scratch_path("x"), "--text", "a");
    EXPECT_ERROR(2, "batch jobs", "generate", MODEL, "--prompt", "a", "--context", "9");
    EXPECT_ERROR(1, "No such file", "generate", MODEL, "-i", scratch_path("none"), "-o", scratch_path("x"));
    EXPECT_ERROR(1, "regular", "generate", MODEL, "-i", scratch(), "-o", scratch_path("x"));
    EXPECT_ERROR(1, "No such file", "generate", MODEL, "-i", in, "-o", scratch_path("none/x"));
    EXPECT_ERROR(1, "context", "generate", MODEL, "-i", in, "-o", scratch_path("x"), "--context", "100000");
    /* Nothing to answer is answered. */
    program_result result = PENSTOCK("generate", MODEL, "-i", in, "-o", scratch_path("empty.out"));
    assert_int_equal(result.status, 0);
    program_free(&result);
    struct stat about;
    assert_int_equal(stat(scratch_path("empty.out"), &about), 0);
    assert_int_equal(about.st_size, 0);
    assert_int_equal(count_entries("x.partial"), 0);
}

/* ---- killed ---- */

/* Requests of mixed lengths, sampled and greedy, some wrong. */
static void make_job(const char *path, size_t requests)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    for (size_t i = 0; i < requests; i++) {
        switch (random_below(8)) {
        case 0:
            fprintf(
                file,
                "{\"custom_id\": \"r%zu\", \"method\": \"POST\", \"url\": \"/v1/completions\", \"body\": {\"prompt\": "
                "\"In the valley of\", \"max_tokens\": %d, \"temperature\": 1%s}}\n",
                i, (int)random_below(60),
                random_below(3) == 0 ? ", \"logprobs\": 2, \"echo\": true" : "");
            break;
        case 1: fprintf(file, i % 2 ? "{\"prompt\": 5, \"id\": %zu}\n" : "broken %zu\n", i); break;
        case 2:
            fprintf(
                file,
                "{\"id\": %zu, \"prompt\": [\"The river\", \"A fox\"], \"n\": 2, \"temperature\": 0.8, \"max_tokens\": "
                "%d, \"logprobs\": %s}\n",
                i, 1 + (int)random_below(8), random_below(2) == 0 ? "5" : "null");
            break;
        default:
            fprintf(file, "{\"id\": %zu, \"prompt\": \"", i);
            for (uint64_t words = 1 + random_below(random_below(5) == 0 ? 200 : 10); words > 0; words--)
                fputs(words % 3 ? "the fox " : "Once ", file);
            fprintf(file, "\", \"max_tokens\": %d, \"ignore_eos\": true}\n", 1 + (int)random_below(40));
        }
    }
    fclose(file);
}

static size_t from_environment(const char *name, size_t otherwise)
{
    const char *value = getenv(name);
    return value != NULL ? (size_t)strtoull(value, NULL, 10) : otherwise;
}

static void test_killed(void **state)
{
    (void)state;
    size_t requests = from_environment("PST_TEST_REQUESTS", SANITIZED ? 40 : 120);
    size_t kills = from_environment("PST_TEST_KILLS", SANITIZED ? 4 : 12);
    char in[600], whole[600], out[600], partial[640], writing[640];
    size_t bytes, again;
    snprintf(in, sizeof in, "%s", scratch_path("killed.jsonl"));
    snprintf(whole, sizeof whole, "%s", scratch_path("whole.out"));
    snprintf(out, sizeof out, "%s", scratch_path("killed.out"));
    snprintf(partial, sizeof partial, "%s.partial", out);
    snprintf(writing, sizeof writing, "%s.partial-output", out);
    make_job(in, requests);
    expect_ok(PENSTOCK("generate", MODEL, "-i", in, "-o", whole));
    char *expected = read_file(whole, &bytes);
    assert_int_equal(count_lines(expected), requests);

    size_t killed = 0, resumed = 0;
    uint64_t total = 4096 + bytes + 32 * requests, answered = 0;
    for (size_t i = 0; i < 6 * kills && killed < kills; i++) {
        /* Most at a random amount of answers, further each time; some at any time, or while the output is written. */
        program_setup setup = {.kill_path = partial};
        setup.kill_bytes = total * (killed + 1) / (kills + 1) - random_below(total / (kills + 1) + 1);
        if (i % 4 == 3)
            setup = (program_setup){.kill_after_ms = 1 + (int)random_below(900)};
        else if (i % 4 == 1 && killed + 2 >= kills)
            setup = (program_setup){.kill_path = writing, .kill_bytes = random_below(bytes + 1)};
        /* Whatever decides nothing may change in between. */
        program_result result = PENSTOCK_WITH(&setup, "generate", MODEL, "-i", in, "-o", out, "--batch-size",
                                              i % 2 ? "5" : "17", "--resident", i % 3 ? "0" : "100%");
        assert_true(result.status == 0 || result.status == 1000 + SIGKILL);
        killed += result.status != 0;
        const char *going_on = strstr(result.err, "going on: ");
        if (going_on != NULL) {
            uint64_t now = strtoull(going_on + 10, NULL, 10);
            assert_true(now >= answered); /* nothing that was answered is lost by a kill */
            answered = now;
            resumed++;
        }
        if (result.status == 0) { /* its end came first, as it does on a busy machine: once more from the beginning */
            assert_int_equal(remove(out), 0);
            answered = 0;
        }
        program_free(&result);
    }
    expect_ok(PENSTOCK("generate", MODEL, "-i", in, "-o", out));
    char *found = read_file(out, &again);
    assert_int_equal(bytes, again);
    assert_memory_equal(expected, found, bytes);
    printf("%zu requests, killed %zu times, went on %zu times\n", requests, killed, resumed);
    assert_true(killed >= kills / 2 && resumed >= kills / 6);
    assert_int_equal(count_entries("killed.out"), 1); /* nothing else is left */
    free(found);
    free(expected);
}

static void test_interrupted(void **state)
{
    (void)state;
    char in[600], out[600];
    size_t bytes, again;
    snprintf(in, sizeof in, "%s", scratch_path("interrupted.jsonl"));
    snprintf(out, sizeof out, "%s", scratch_path("interrupted.out"));
    write_text(in, "wrong\n{\"prompt\": \"Once\", \"max_tokens\": 400, \"ignore_eos\": true}\n"
                   "{\"prompt\": \"The fox\", \"max_tokens\": 300, \"ignore_eos\": true}\n");
    char partial[640];
    snprintf(partial, sizeof partial, "%s.partial", out);
    const program_setup setup = {.signal = SIGINT, .kill_path = partial, .kill_bytes = 4096 + 1};
    program_result result = PENSTOCK_WITH(&setup, "generate", MODEL, "-i", in, "-o", out, "--resident", "0");
    assert_int_equal(result.status, 128 + SIGINT);
    assert_string_equal(result.err, "penstock: interrupted\n");
    program_free(&result);
    assert_false(exists(out));
    expect_ok(PENSTOCK("generate", MODEL, "-i", in, "-o", out));
    expect_ok(PENSTOCK("generate", MODEL, "-i", in, "-o", scratch_path("whole2.out")));
    char *a = read_file(out, &bytes), *b = read_file(scratch_path("whole2.out"), &again);
    assert_string_equal(a, b);
    free(a);
    free(b);
}

/* An unfinished job goes on with what it began with, or not at all. */
static void test_another_job(void **state)
{
    (void)state;
    char in[600], out[600], partial[640];
    snprintf(in, sizeof in, "%s", scratch_path("another.jsonl"));
    snprintf(out, sizeof out, "%s", scratch_path("another.out"));
    snprintf(partial, sizeof partial, "%s.partial", out);
    make_job(in, 30);
    const program_setup setup = {.kill_path = partial, .kill_bytes = 4096 + 300};
    program_result result =
        PENSTOCK_WITH(&setup, "generate", MODEL, "-i", in, "-o", out, "--resident", "0", "--batch-size", "2");
    assert_int_equal(result.status, 1000 + SIGKILL);
    program_free(&result);
    EXPECT_ERROR(1, "options", "generate", MODEL, "-i", in, "-o", out, "--seed", "3");
    EXPECT_ERROR(1, "options", "generate", MODEL, "-i", in, "-o", out, "--stop", "x");
    EXPECT_ERROR(1, "command", "score", MODEL, "-i", in, "-o", out);
    EXPECT_ERROR(1, "kernels portable", "generate", MODEL, "-i", in, "-o", out, "--kernels", "portable");
    const char *copy = copy_model(MODEL, "another-model");
    EXPECT_ERROR(1, "another model", "generate", copy, "-i", in, "-o", out);
    int fd = open(partial, O_RDWR);
    assert_true(fd >= 0 && flock(fd, LOCK_EX) == 0);
    EXPECT_ERROR(1, "another process", "generate", MODEL, "-i", in, "-o", out);
    EXPECT_ERROR(1, "another process", "generate", MODEL, "-i", in, "-o", out, "--restart");
    close(fd);
    char *was;
    size_t bytes;
    was = read_file(in, &bytes);
    was[bytes - 3] ^= 1;
    write_file(in, was, bytes);
    EXPECT_ERROR(1, "input", "generate", MODEL, "-i", in, "-o", out);
    was[bytes - 3] ^= 1;
    write_file(in, was, bytes);
    free(was);
    result = PENSTOCK("generate", MODEL, "-i", in, "-o", out);
    assert_int_equal(result.status, 0);
    assert_non_null(strstr(result.err, "going on: "));
    assert_non_null(strstr(result.err, "of them before"));
    program_free(&result);
    assert_false(exists(partial));
}

/* A full disk fails the job, and what was answered stays. */
static void test_no_room(void **state)
{
    (void)state;
    char in[600], out[600];
    snprintf(in, sizeof in, "%s", scratch_path("room.jsonl"));
    snprintf(out, sizeof out, "%s", scratch_path("room.out"));
    FILE *file = fopen(in, "w");
    for (int i = 0; i < 100; i++)
        fprintf(file, "wrong %d\n", i);
    fclose(file);
    const program_setup setup = {.file_limit = 16384};
    program_result result = PENSTOCK_WITH(&setup, "generate", MODEL, "-i", in, "-o", out);
    expect_error(result, 1, "room.out.partial: cannot write");
    result = PENSTOCK("generate", MODEL, "-i", in, "-o", out);
    assert_int_equal(result.status, 0);
    assert_non_null(strstr(result.err, "100 lines answered, "));
    assert_non_null(strstr(result.err, "going on: "));
    program_free(&result);
}

/* ---- memory ---- */

static int64_t peak_of(size_t lines)
{
    char in[600], out[600];
    snprintf(in, sizeof in, "%s", scratch_path("many.jsonl"));
    snprintf(out, sizeof out, "%s", scratch_path("many.out"));
    FILE *file = fopen(in, "w");
    assert_non_null(file);
    for (size_t i = 0; i < lines; i++)
        fprintf(file,
                i % 2000 == 0 ? "{\"prompt\": \"Once\", \"id\": %zu, \"max_tokens\": 2}\n"
                : i % 2       ? "{\"prompt_token_ids\": [1, 2, 3], \"id\": %zu, \"max_tokens\": 0}\n"
                              : "{\"wrong\": %zu}\n",
                i);
    fclose(file);
    json_t *document = expect_json(PENSTOCK("generate", MODEL, "-i", in, "-o", out, "--restart", "--json",
                                            "--batch-size", "2", "--host-memory", SANITIZED ? "2G" : "40Mi"));
    assert_int_equal(json_integer_value(json_object_get(document, "answered")), lines);
    json_int_t peak = json_integer_value(json_object_get(json_object_get(document, "stats"), "peak_rss_bytes"));
    size_t bytes;
    char *text = read_file(out, &bytes);
    assert_int_equal(count_lines(text), lines);
    free(text);
    json_decref(document);
    assert_true(SANITIZED || peak <= 40 << 20);
    return (int64_t)peak;
}

/* Short requests and one that may become long, in memory for four of those: the job chooses how many run at once, needs far
 * fewer passes than with the four, and answers the same. */
static void test_mixed_lengths(void **state)
{
    (void)state;
    enum { SHORT = 96, TIMES_FEWER = 3 };
    char in[600], out[600];
    snprintf(in, sizeof in, "%s", scratch_path("mixed.jsonl"));
    FILE *file = fopen(in, "w");
    assert_non_null(file);
    for (int i = 0; i < SHORT; i++)
        fprintf(file, "{\"prompt_token_ids\": [%d, 2, 3], \"max_tokens\": %d, \"ignore_eos\": true}\n", i, 8 + i % 5);
    fprintf(file, "{\"prompt\": \"Once upon a time\", \"max_tokens\": 500, \"stop\": \" \"}\n");
    fclose(file);
    static const char *const batches[] = {NULL, "4"};
    json_int_t passes[2] = {0};
    char *answers[2];
    size_t bytes[2];
    for (int i = 0; i < 2; i++) {
        snprintf(out, sizeof out, "%s", scratch_path(i ? "mixed.slots" : "mixed.chosen"));
        json_t *document = expect_json(PENSTOCK("generate", MODEL, "-i", in, "-o", out, "--json", "--disk-offload",
                                                "--threads", "2", "--host-memory", SANITIZED ? "2G" : "48Mi",
                                                batches[i] ? "--batch-size" : NULL, batches[i]));
        const json_t *stats = json_object_get(document, "stats");
        passes[i] = json_integer_value(json_object_get(stats, "passes"));
        assert_true(SANITIZED || json_integer_value(json_object_get(stats, "peak_rss_bytes")) <= 48 << 20);
        json_decref(document);
        answers[i] = read_file(out, &bytes[i]);
    }
    assert_int_equal(bytes[0], bytes[1]);
    assert_memory_equal(answers[0], answers[1], bytes[0]);
    if (!SANITIZED && passes[0] * TIMES_FEWER > passes[1])
        fail_msg("%lld passes, and %lld with four slots", (long long)passes[0], (long long)passes[1]);
    free(answers[0]);
    free(answers[1]);
}

/* A line that could not be read within the budget is the budget's fault, not the line's. */
static void test_memory(void **state)
{
    (void)state;
    char in[600];
    snprintf(in, sizeof in, "%s", scratch_path("long.jsonl"));
    FILE *file = fopen(in, "w");
    fputs("{\"prompt\": \"", file);
    for (int i = 0; i < 1000000; i++)
        fputc('a' + i % 7, file);
    fputs("\"}\n", file);
    fclose(file);
    EXPECT_ERROR(1, "line 1", "generate", MODEL, "-i", in, "-o", scratch_path("long.out"), "--host-memory", "40Mi");
    assert_int_equal(count_entries("long.out"), 0);
    program_result result = PENSTOCK("generate", MODEL, "-i", in, "-o", scratch_path("long.out"), "--host-memory",
                                     SANITIZED ? "2G" : "100Mi");
    assert_int_equal(result.status, 0);
    assert_non_null(strstr(result.err, "1 with an error"));
    program_free(&result);
    int64_t few = peak_of(2000), many = peak_of(SANITIZED ? 5000 : 100000);
    if (!SANITIZED && many > few + (1 << 20))
        fail_msg("%lld bytes for 2,000 lines, %lld for 100,000", (long long)few, (long long)many);
}

/* One quoted text of a letter. */
static void put_text(FILE *file, size_t bytes)
{
    fputc('"', file);
    for (size_t i = 0; i < bytes; i++)
        fputc('a', file);
    fputc('"', file);
}

/* Long lines that are wrong anyway are not encoded: they get their errors in budgets that are too small for a prompt as long. */
static void test_memory_of_wrong_lines(void **state)
{
    (void)state;
    enum { LONG = 3000000, TOO_LONG = 9 << 20 };
    char in[600], out[600];
    snprintf(in, sizeof in, "%s", scratch_path("wrong.jsonl"));
    snprintf(out, sizeof out, "%s", scratch_path("wrong.out"));
    FILE *file = fopen(in, "w");
    assert_non_null(file);
    fputs("{\"prompt\": \"Once\", \"max_tokens\": 3}\n{\"prompt\": ", file);
    put_text(file, LONG);
    fputs(", \"temperature\": -1}\n", file);
    put_text(file, LONG);
    fputs("\n{\"prompt\": ", file);
    put_text(file, LONG); /* and no brace after it */
    fputs("\n{\"prompt\": ", file);
    put_text(file, TOO_LONG);
    fputs("}\n{\"prompt\": \"Once\", \"max_tokens\": 3}\n", file);
    fclose(file);
    json_t *document = expect_json(
        PENSTOCK("generate", MODEL, "-i", in, "-o", out, "--json", "--host-memory", SANITIZED ? "2G" : "110Mi"));
    assert_int_equal(json_integer_value(json_object_get(document, "answered")), 6);
    assert_int_equal(json_integer_value(json_object_get(document, "failed")), 4);
    json_int_t peak = json_integer_value(json_object_get(json_object_get(document, "stats"), "peak_rss_bytes"));
    assert_true(SANITIZED || peak <= 110 << 20);
    json_decref(document);
    static const char *const codes[] = {"invalid_request", "invalid_request", "invalid_json", "line_too_long"};
    for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++) {
        json_t *answer = answer_of(out, i + 1);
        assert_string_equal(text_at(answer, "error", "code"), codes[i]);
        json_decref(answer);
    }
    remove(in);
}

int main(void)
{
    random_start("batch jobs");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plain_lines),
        cmocka_unit_test(test_envelope_lines),
        cmocka_unit_test(test_scoring),
        cmocka_unit_test(test_logprobs),
        cmocka_unit_test(test_like_prompts),
        cmocka_unit_test(test_complete_and_restart),
        cmocka_unit_test(test_files_in_the_way),
        cmocka_unit_test(test_other_weights),
        cmocka_unit_test(test_usage),
        cmocka_unit_test(test_killed),
        cmocka_unit_test(test_interrupted),
        cmocka_unit_test(test_another_job),
        cmocka_unit_test(test_no_room),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_memory_of_wrong_lines),
        cmocka_unit_test(test_mixed_lengths),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
