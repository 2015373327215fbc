/* SPDX-License-Identifier: Apache-2.0 */
/* penstock generate: the same text however it comes out, whatever is resident, streamed, batched or threaded. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "program.h"

static const char *result_text(const json_t *document, size_t index)
{
    return json_string_value(json_object_get(json_array_get(json_object_get(document, "results"), index), "text"));
}

static json_t *result_ids(const json_t *document, size_t index)
{
    return json_object_get(json_array_get(json_object_get(document, "results"), index), "token_ids");
}

static void test_json(void **state)
{
    (void)state;
    json_t *document = expect_json(PENSTOCK("generate", MODEL, "--prompt", "Once upon a time", "--max-new-tokens", "12",
                                            "--resident", "0", "--json"));
    const json_t *results = json_object_get(document, "results"), *stats = json_object_get(document, "stats");
    assert_int_equal(json_array_size(results), 1);
    const json_t *result = json_array_get(results, 0);
    assert_string_equal(json_string_value(json_object_get(result, "prompt")), "Once upon a time");
    assert_true(json_is_string(json_object_get(result, "text")));
    assert_int_equal(json_array_size(json_object_get(result, "token_ids")), 12);
    assert_string_equal(json_string_value(json_object_get(result, "finish_reason")), "length");
    static const char *const keys[] = {"prompt_tokens",
                                       "generated_tokens",
                                       "prefill_seconds",
                                       "decode_seconds",
                                       "total_seconds",
                                       "prefill_tokens_per_second",
                                       "decode_tokens_per_second",
                                       "tokens_per_second",
                                       "weight_bytes_read",
                                       "read_bytes_per_second",
                                       "bound_seconds",
                                       "share_of_bound",
                                       "peak_rss_bytes"};
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        const json_t *value = json_object_get(stats, keys[i]);
        if (!json_is_number(value) || !(json_number_value(value) > 0))
            fail_msg("stats: %s is no positive number", keys[i]);
    }
    assert_non_null(json_string_value(json_object_get(stats, "limited_by")));
    assert_string_equal(json_string_value(json_object_get(stats, "device")), "host");
    assert_int_equal(json_integer_value(json_object_get(stats, "generated_tokens")), 12);
    json_decref(document);
}

static void test_stream_is_the_text(void **state)
{
    (void)state;
    /* A prompt whose story has letters of two bytes. */
    program_result streamed = PENSTOCK("generate", MODEL, "--prompt", "Once upon a time", "-n", "120");
    assert_int_equal(streamed.status, 0);
    json_t *document = expect_json(PENSTOCK("generate", MODEL, "--prompt", "Once upon a time", "-n", "120", "--json"));
    const char *text = result_text(document, 0);
    size_t length = strlen(text);
    assert_true(streamed.out_bytes == length + (length == 0 || text[length - 1] != '\n'));
    assert_memory_equal(streamed.out, text, length);
    const char *line_end = strchr(streamed.err, '\n');
    assert_true(line_end != NULL && line_end[1] == '\0');
    assert_non_null(strstr(streamed.err, "tokens/s"));
    assert_non_null(strstr(streamed.err, "% of the bound"));
    program_free(&streamed);
    json_decref(document);
}

static void expect_same_ids(const json_t *expected, program_result result)
{
    json_t *document = expect_json(result);
    if (!json_equal(result_ids(expected, 0), result_ids(document, 0)))
        fail_msg("other token ids");
    json_decref(document);
}

#define STORY "generate", MODEL, "--prompt", "The fox said", "-n", "48", "--json"

static void test_placement_changes_nothing(void **state)
{
    (void)state;
    json_t *expected = expect_json(PENSTOCK(STORY, "--resident", "100%"));
    expect_same_ids(expected, PENSTOCK(STORY, "--resident", "0"));
    expect_same_ids(expected, PENSTOCK(STORY, "--resident", "50%"));
    expect_same_ids(expected, PENSTOCK(STORY, "--resident", "3M"));
    expect_same_ids(expected, PENSTOCK(STORY, "--resident", "0", "--io-engine", "threads"));
    expect_same_ids(expected, PENSTOCK(STORY, "--resident", "0", "--block-size", "64Ki", "--queue-depth", "3"));
    expect_same_ids(expected, PENSTOCK(STORY, "--threads", "1"));
    expect_same_ids(expected, PENSTOCK(STORY, "--threads", "2"));
    json_decref(expected);
}

static void test_batch_changes_nothing(void **state)
{
    (void)state;
    static const char *const prompts[] = {"Once", "The miller of the village was", "A", "Long ago, when"};
    write_text(scratch_path("prompts.txt"), "Once\nThe miller of the village was\r\nA\nLong ago, when");
    json_t *together = expect_json(PENSTOCK("generate", MODEL, "--prompts-file", scratch_path("prompts.txt"), "-n",
                                            "24", "--temperature", "0.9", "--top-k", "50", "--seed", "5", "--json"));
    json_t *in_pairs =
        expect_json(PENSTOCK("generate", MODEL, "--prompts-file", scratch_path("prompts.txt"), "-n", "24",
                             "--temperature", "0.9", "--top-k", "50", "--seed", "5", "--json", "--batch-size", "2"));
    for (size_t i = 0; i < 4; i++) {
        char seed[8];
        snprintf(seed, sizeof seed, "%zu", 5 + i);
        json_t *alone = expect_json(PENSTOCK("generate", MODEL, "--prompt", prompts[i], "-n", "24", "--temperature",
                                             "0.9", "--top-k", "50", "--seed", seed, "--json"));
        assert_true(json_equal(result_ids(alone, 0), result_ids(together, i)));
        assert_true(json_equal(result_ids(alone, 0), result_ids(in_pairs, i)));
        json_decref(alone);
    }
    json_decref(together);
    json_decref(in_pairs);
}

static void test_several_prompts_as_text(void **state)
{
    (void)state;
    program_result result = PENSTOCK("generate", MODEL, "--prompt", "Once", "--prompt", "The fox", "-n", "5");
    assert_int_equal(result.status, 0);
    const char *first = strstr(result.out, "=== prompt 1: Once [length]\n");
    const char *second = strstr(result.out, "\n=== prompt 2: The fox [length]\n");
    assert_true(first == result.out && second > first);
    program_free(&result);
}

static void test_standard_input(void **state)
{
    (void)state;
    json_t *expected = expect_json(PENSTOCK("generate", MODEL, "--prompt", "Once upon", "-n", "6", "--json"));
    const program_setup with = {.input = "Once upon\n"}, bare = {.input = "Once upon"};
    expect_same_ids(expected, PENSTOCK_WITH(&with, "generate", MODEL, "-n", "6", "--json"));
    expect_same_ids(expected, PENSTOCK_WITH(&bare, "generate", MODEL, "-n", "6", "--json"));
    expect_same_ids(expected, PENSTOCK_WITH(&with, "generate", MODEL, "-n", "6", "--json", "--prompts-file", "-"));
    json_decref(expected);
}

static void test_sampling(void **state)
{
    (void)state;
    json_t *once = expect_json(PENSTOCK(STORY, "--temperature", "1", "--seed", "1"));
    expect_same_ids(once, PENSTOCK(STORY, "--temperature", "1", "--seed", "1", "--resident", "0"));
    json_t *other = expect_json(PENSTOCK(STORY, "--temperature", "1", "--seed", "2"));
    assert_false(json_equal(result_ids(once, 0), result_ids(other, 0)));
    json_t *greedy = expect_json(PENSTOCK(STORY, "--greedy"));
    expect_same_ids(greedy, PENSTOCK(STORY, "--temperature", "0"));
    expect_same_ids(greedy, PENSTOCK(STORY, "--top-k", "1"));
    json_decref(once);
    json_decref(other);
    json_decref(greedy);
}

/* Stops before a text that lies across tokens, in the stream as in the result. */
static void test_stop_texts(void **state)
{
    (void)state;
    json_t *whole = expect_json(PENSTOCK(STORY));
    const char *text = result_text(whole, 0);
    size_t length = strlen(text);
    assert_true(length > 24);
    char stop[8];
    size_t cut = 15;
    while ((text[cut] & 0xC0) == 0x80) /* not inside a character */
        cut++;
    size_t stop_bytes = 5;
    while ((text[cut + stop_bytes] & 0xC0) == 0x80)
        stop_bytes++;
    memcpy(stop, text + cut, stop_bytes);
    stop[stop_bytes] = '\0';
    size_t expected = (size_t)(strstr(text, stop) - text);
    json_t *stopped = expect_json(PENSTOCK(STORY, "--stop", "never in this text", "--stop", stop));
    assert_int_equal(strlen(result_text(stopped, 0)), expected);
    assert_memory_equal(result_text(stopped, 0), text, expected);
    const json_t *result = json_array_get(json_object_get(stopped, "results"), 0);
    assert_string_equal(json_string_value(json_object_get(result, "finish_reason")), "stop");
    program_result streamed = PENSTOCK("generate", MODEL, "--prompt", "The fox said", "-n", "48", "--stop", stop);
    assert_int_equal(streamed.status, 0);
    assert_int_equal(streamed.out_bytes, expected + 1);
    assert_memory_equal(streamed.out, text, expected);
    program_free(&streamed);
    json_decref(whole);
    json_decref(stopped);
}

static void test_token_ids(void **state)
{
    (void)state;
    /* A folder without a tokenizer: ids in, ids out. */
    json_t *document = expect_json(PENSTOCK("generate", CASES "/llama_gqa2", "--token-ids", "42,47", "--token_ids", "1",
                                            "-n", "6", "--ignore-eos", "--json"));
    assert_int_equal(json_array_size(json_object_get(document, "results")), 2);
    const json_t *result = json_array_get(json_object_get(document, "results"), 0);
    assert_true(json_is_null(json_object_get(result, "prompt")));
    assert_true(json_is_null(json_object_get(result, "text")));
    assert_int_equal(json_array_size(json_object_get(result, "token_ids")), 6);
    char expected[128] = "";
    for (size_t i = 0; i < 6; i++) {
        size_t used = strlen(expected);
        snprintf(expected + used, sizeof expected - used, "%s%d", i > 0 ? " " : "",
                 (int)json_integer_value(json_array_get(result_ids(document, 0), i)));
    }
    strcat(expected, "\n");
    program_result text = PENSTOCK("generate", CASES "/llama_gqa2", "--token-ids", "42,47", "-n", "6", "--ignore-eos");
    assert_int_equal(text.status, 0);
    assert_string_equal(text.out, expected);
    program_free(&text);
    json_decref(document);
    EXPECT_ERROR(1, "llama_gqa2", "generate", CASES "/llama_gqa2", "--prompt", "x");
    EXPECT_ERROR(1, "", "generate", CASES "/llama_gqa2", "--token-ids", "99999");
}

static void test_context(void **state)
{
    (void)state;
    char text[4096] = "";
    for (int i = 0; i < 600; i++)
        strcat(text, "fox ");
    program_result result = PENSTOCK("generate", MODEL, "--prompt", text);
    assert_non_null(strstr(result.err, "512")); /* the context, and next to it the number of tokens */
    expect_error(result, 1, "leave no room");
    /* Fewer tokens are made where the context ends, and that is said when more were asked for. */
    program_result cut = PENSTOCK("generate", MODEL, "--prompt", "Once", "-n", "100000", "--ignore-eos", "--json");
    assert_int_equal(cut.status, 0);
    assert_non_null(strstr(cut.err, "the context of this model is 512"));
    program_free(&cut);
}

static void test_interrupt(void **state)
{
    (void)state;
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGINT};
    for (size_t i = 0; i < 4; i++) {
        const program_setup setup = {.signal = signals[i], .signal_repeats = i == 3};
        program_result result = PENSTOCK_WITH(&setup, "generate", MODEL, "--prompt", "Once", "-n", "500",
                                              "--ignore-eos", "--resident", "0");
        assert_int_equal(result.status, 128 + signals[i]);
        assert_string_equal(result.err, "penstock: interrupted\n");
        /* What was printed is whole characters and whole lines. */
        assert_true(result.out_bytes > 0 && result.out[result.out_bytes - 1] == '\n');
        json_t *text = json_stringn(result.out, result.out_bytes);
        assert_non_null(text);
        json_decref(text);
        program_free(&result);
    }
}

static void test_trace(void **state)
{
    (void)state;
    program_result result = PENSTOCK("generate", MODEL, "--prompt", "Once", "-n", "4", "--resident", "0", "--trace",
                                     scratch_path("trace.json"));
    assert_int_equal(result.status, 0);
    program_free(&result);
    size_t bytes;
    char *text = read_file(scratch_path("trace.json"), &bytes);
    json_t *document = json_loadb(text, bytes, 0, NULL);
    assert_non_null(document);
    json_decref(document);
    free(text);
    /* Found out before the work, and nothing but the trace is left of finding out. */
    result = PENSTOCK("generate", MODEL, "--prompt", "Once", "-n", "4", "--trace", scratch_path("missing/trace.json"));
    assert_string_equal(result.out, "");
    expect_error(result, 1, "No such file");
    result = PENSTOCK("generate", MODEL, "--prompt", "Once", "-n", "4", "--trace", scratch());
    assert_string_equal(result.out, "");
    expect_error(result, 1, "no regular file");
    assert_int_equal(count_entries("trace.json"), 1);
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { PROMPTS = 3000, SANITIZED = 1 };
#else
enum { PROMPTS = 60000, SANITIZED = 0 };
#endif

/* More prompts than are held at once: all come, in order, each as it comes alone, and their number costs no memory that
 * the budget does not have. */
static void test_many_prompts(void **state)
{
    (void)state;
    static const char *const prompts[] = {"hello", "a", "what then"};
    const char *folder = scratch_path("many");
    program_result made = PENSTOCK("synth", "tiny", folder);
    assert_int_equal(made.status, 0);
    program_free(&made);
    FILE *file = fopen(scratch_path("many.txt"), "w");
    assert_non_null(file);
    for (size_t i = 0; i < PROMPTS; i++)
        fprintf(file, "%s\n", prompts[i % 3]);
    fclose(file);
    const char *memory = SANITIZED ? "2G" : "60Mi", *batch = SANITIZED ? "1024" : "32";
    json_t *all = expect_json(PENSTOCK("generate", folder, "--prompts-file", scratch_path("many.txt"), "-n1",
                                       "--host-memory", memory, "--batch-size", batch, "--json"));
    const json_t *results = json_object_get(all, "results"), *stats = json_object_get(all, "stats");
    assert_int_equal(json_array_size(results), PROMPTS);
    for (size_t i = 0; i < PROMPTS; i++) {
        const char *prompt = json_string_value(json_object_get(json_array_get(results, i), "prompt"));
        assert_string_equal(prompt, prompts[i % 3]);
        assert_true(json_equal(result_ids(all, i), result_ids(all, i % 3)));
    }
    for (size_t i = 0; i < 3; i++) {
        json_t *alone = expect_json(PENSTOCK("generate", folder, "--prompt", prompts[i], "-n1", "--json"));
        assert_true(json_equal(result_ids(alone, 0), result_ids(all, i)));
        json_decref(alone);
    }
    assert_int_equal(json_integer_value(json_object_get(stats, "generated_tokens")), PROMPTS);
    json_int_t passes = json_integer_value(json_object_get(stats, "passes"));
    assert_true(passes >= (PROMPTS + 1023) / 1024 && (SANITIZED || passes <= PROMPTS / 32 * 5 / 4));
    double rate = json_number_value(json_object_get(stats, "tokens_per_second"));
    double seconds = json_number_value(json_object_get(stats, "total_seconds"));
    assert_true(rate * seconds > PROMPTS * 0.999 && rate * seconds < PROMPTS * 1.001);
    if (!SANITIZED)
        assert_true(json_integer_value(json_object_get(stats, "peak_rss_bytes")) <= 60 << 20);
    json_decref(all);
    /* Prompts that do not fit by themselves are refused. */
    if (!SANITIZED)
        EXPECT_ERROR(1, "too small", "generate", folder, "--prompts-file", scratch_path("many.txt"), "-n1",
                     "--host-memory", "20Mi");
}

/* A hub folder as the Hugging Face library lays it out: a snapshot of links, named by refs/main. */
static void make_hub(const char *hub)
{
    static const char *const folders[] = {"", "/models--org--name", "/models--org--name/refs",
                                          "/models--org--name/snapshots", "/models--org--name/snapshots/abc123"};
    char path[640];
    for (size_t i = 0; i < sizeof folders / sizeof folders[0]; i++) {
        snprintf(path, sizeof path, "%s%s", hub, folders[i]);
        assert_int_equal(mkdir(path, 0777), 0);
    }
    snprintf(path, sizeof path, "%s/models--org--name/refs/main", hub);
    write_text(path, "abc123");
    static const char *const files[] = {"config.json", "model.safetensors"};
    for (size_t i = 0; i < 2; i++) {
        char target[640];
        snprintf(path, sizeof path, "%s/models--org--name/snapshots/abc123/%s", hub, files[i]);
        snprintf(target, sizeof target, "%s/llama_gqa2/%s", CASES, files[i]);
        assert_int_equal(symlink(target, path), 0);
    }
}

static void test_cache_snapshot(void **state)
{
    (void)state;
    char hub[512];
    snprintf(hub, sizeof hub, "%s", scratch_path("snapshots"));
    make_hub(hub);
    json_t *expected =
        expect_json(PENSTOCK("generate", CASES "/llama_gqa2", "--token-ids", "42,47", "-n", "4", "--json"));
    expect_same_ids(expected,
                    PENSTOCK("generate", "org/name", "--token-ids", "42,47", "-n", "4", "--json", "--hf-cache", hub));
    char snapshot[640];
    snprintf(snapshot, sizeof snapshot, "%s/models--org--name/snapshots/abc123", hub);
    expect_same_ids(expected, PENSTOCK("generate", snapshot, "--token-ids", "42,47", "-n", "4", "--json"));
    json_decref(expected);
}

static void test_cache_lookup(void **state)
{
    (void)state;
    EXPECT_ERROR(1, "org/name", "generate", "org/name", "--prompt", "x", "--hf-cache", scratch());
    char variable[600];
    snprintf(variable, sizeof variable, "HF_HUB_CACHE=%s", scratch());
    const program_setup setup = {.environment = variable};
    expect_error(PENSTOCK_WITH(&setup, "generate", "org/name", "--prompt", "x"), 1, scratch());
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_json),
        cmocka_unit_test(test_stream_is_the_text),
        cmocka_unit_test(test_placement_changes_nothing),
        cmocka_unit_test(test_batch_changes_nothing),
        cmocka_unit_test(test_several_prompts_as_text),
        cmocka_unit_test(test_standard_input),
        cmocka_unit_test(test_sampling),
        cmocka_unit_test(test_stop_texts),
        cmocka_unit_test(test_token_ids),
        cmocka_unit_test(test_context),
        cmocka_unit_test(test_interrupt),
        cmocka_unit_test(test_trace),
        cmocka_unit_test(test_many_prompts),
        cmocka_unit_test(test_cache_snapshot),
        cmocka_unit_test(test_cache_lookup),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
