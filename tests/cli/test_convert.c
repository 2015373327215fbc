/* SPDX-License-Identifier: Apache-2.0 */
/* penstock convert and verify: what the one writes the others read; damage and crafted folders are told in one line. */
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "program.h"

static void must(program_result result)
{
    if (result.status != 0)
        fail_msg("%s", result.err);
    program_free(&result);
}

enum { TEXTS = 4 };

/* Over texts of the kind that the model was made for, made by itself with fixed seeds. */
static double perplexity(const char *model)
{
    static char texts[TEXTS][8000];
    for (int i = 0; i < TEXTS && texts[i][0] == '\0'; i++) {
        char seed[8];
        snprintf(seed, sizeof seed, "%d", i + 5);
        json_t *made = expect_json(PENSTOCK("generate", MODEL, "--prompt", "Once upon a time", "-n", "480",
                                            "--temperature", "1", "--seed", seed, "--ignore-eos", "--json"));
        const json_t *result = json_array_get(json_object_get(made, "results"), 0);
        snprintf(texts[i], sizeof texts[i], "Once upon a time%s", json_string_value(json_object_get(result, "text")));
        json_decref(made);
    }
    json_t *scored = expect_json(PENSTOCK("score", model, "--text", texts[0], "--text", texts[1], "--text", texts[2],
                                          "--text", texts[3], "--json"));
    double sum = 0, count = 0;
    size_t index;
    json_t *result, *logprob;
    json_array_foreach(json_object_get(scored, "results"), index, result)
    {
        size_t place;
        json_array_foreach(json_object_get(result, "logprobs"), place, logprob)
        {
            sum += json_is_number(logprob) ? json_number_value(logprob) : 0;
            count += json_is_number(logprob);
        }
    }
    json_decref(scored);
    assert_true(count > 1500);
    return exp(-sum / count);
}

/* How much worse quantized weights predict. */
static void test_accuracy(void **state)
{
    (void)state;
    must(PENSTOCK("convert", MODEL, scratch_path("bits8"), "--bits", "8"));
    must(PENSTOCK("convert", MODEL, scratch_path("bits4"), "--bits", "4"));
    double full = perplexity(MODEL), eight = perplexity(scratch_path("bits8")),
           four = perplexity(scratch_path("bits4"));
    printf("perplexity: %.5f at 16 bits, %.5f at 8 (%+.2f %%), %.5f at 4 (%+.2f %%)\n", full, eight,
           100 * (eight / full - 1), four, 100 * (four / full - 1));
    assert_true(eight < full * 1.005);
    assert_true(four < full * 1.02);
}

static double mean_logprob(const char *model)
{
    json_t *scored = expect_json(
        PENSTOCK("score", model, "--token-ids", "5,6,7,8,9,10,11,12,3,4,20,21", "--resident", "0", "--json"));
    double value =
        json_number_value(json_object_get(json_array_get(json_object_get(scored, "results"), 0), "mean_logprob"));
    json_decref(scored);
    return value;
}

/* Matrices with a row per input, experts, latent attention, learned positions, FP8: all become groups. */
static void test_families(void **state)
{
    (void)state;
    static const char *const names[] = {"gpt2",       "bloom_untied",           "opt_projected_bf16",
                                        "mixtral",    "qwen3_moe_mixed_layers", "deepseek_v2",
                                        "fp8_blocks", "fp8_channels",           "penstock_8"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char model[600];
        const char *out = scratch_path(names[i]);
        snprintf(model, sizeof model, CASES "/%s", names[i]);
        json_t *made = expect_json(PENSTOCK("convert", model, out, "--bits", "8", "--group-size", "16", "--json"));
        const json_t *report = json_array_get(json_object_get(made, "results"), 0);
        assert_true(json_integer_value(json_object_get(report, "quantized")) >= 6);
        json_decref(made);
        double before = mean_logprob(model), after = mean_logprob(out);
        if (!(fabs(before - after) < 0.05))
            fail_msg("%s: mean log-probability %g became %g", names[i], before, after);
    }
}

/* Streamed, resident and in between: the same bits, and read directly. */
static void test_same_bits(void **state)
{
    (void)state;
    must(PENSTOCK("convert", MODEL, scratch_path("same"), "--bits", "4", "--group_size", "32", "--shard-size", "1M"));
    static const char *const ways[] = {"0", "1M", "100%"};
    json_t *first = NULL;
    for (size_t i = 0; i < 3; i++) {
        json_t *made = expect_json(PENSTOCK("generate", scratch_path("same"), "--prompt", "The clock", "-n", "40",
                                            "--resident", ways[i], "--json"));
        json_t *results = json_incref(json_object_get(made, "results"));
        json_decref(made);
        if (first != NULL)
            assert_true(json_equal(first, results));
        else
            first = json_incref(results);
        json_decref(results);
    }
    json_decref(first);
}

/* The whole process stays below its budget, whatever the tensors' size. */
static void test_memory(void **state)
{
    (void)state;
    must(PENSTOCK("synth", "llama3.2-1b", scratch_path("big"), "--layers", "1"));
    json_t *made = expect_json(PENSTOCK("convert", scratch_path("big"), scratch_path("small"), "--bits", "4",
                                        "--host-memory", "40Mi", "--json"));
    double peak = json_number_value(json_object_get(json_object_get(made, "stats"), "peak_rss_bytes"));
    const json_t *result = json_array_get(json_object_get(made, "results"), 0);
    assert_true(peak > 0 && peak <= 40 * 1048576.0);
    assert_true(json_integer_value(json_object_get(result, "source_bytes")) > 500000000);
    json_decref(made);
    json_t *both =
        expect_json(PENSTOCK("generate", scratch_path("big"), "--token-ids", "1,2,3", "-n", "1", "--quant-bits", "4",
                             "--offload-dir", scratch_path("copies"), "--host-memory", "60Mi", "--json"));
    peak = json_number_value(json_object_get(json_object_get(both, "stats"), "peak_rss_bytes"));
    assert_true(peak > 0 && peak <= 60 * 1048576.0);
    json_decref(both);
    EXPECT_ERROR(1, "of memory at least", "convert", scratch_path("big"), scratch_path("none"), "--bits", "4",
                 "--host-memory", "10Mi");
    assert_int_equal(count_entries("none"), 0);
}

static void test_verify(void **state)
{
    (void)state;
    must(PENSTOCK("convert", MODEL, scratch_path("digests"), "--bits", "8"));
    json_t *good = expect_json(PENSTOCK("verify", scratch_path("digests"), "--json"));
    const json_t *report = json_array_get(json_object_get(good, "results"), 0);
    assert_int_equal(json_integer_value(json_object_get(report, "damaged")), 0);
    assert_int_equal(json_integer_value(json_object_get(report, "checked")),
                     json_integer_value(json_object_get(report, "tensors")));
    json_decref(good);
    size_t bytes;
    char *data = read_file(scratch_path("digests/model.safetensors"), &bytes);
    data[bytes - 1] ^= 4;
    data[bytes / 2] ^= 4;
    write_file(scratch_path("digests/model.safetensors"), data, bytes);
    program_result bad = PENSTOCK("verify", scratch_path("digests"));
    assert_int_equal(bad.status, 1);
    assert_non_null(strstr(bad.out, "model.safetensors: damaged: model."));
    assert_non_null(strstr(bad.out, "2 damaged"));
    assert_non_null(strstr(bad.err, "penstock: error: "));
    program_free(&bad);
    write_file(scratch_path("digests/model.safetensors"), data, bytes - 1);
    EXPECT_ERROR(1, "truncated", "verify", scratch_path("digests"));
    EXPECT_ERROR(1, "truncated", "generate", scratch_path("digests"), "--prompt", "x");
    free(data);
    program_result none = PENSTOCK("verify", MODEL);
    assert_int_equal(none.status, 0);
    assert_non_null(strstr(none.err, "no digests"));
    program_free(&none);
}

static void test_usage(void **state)
{
    (void)state;
    EXPECT_ERROR(2, "--bits", "convert", MODEL, scratch_path("usage"), "--bits", "5");
    EXPECT_ERROR(2, "--group-size", "convert", MODEL, scratch_path("usage"), "--bits", "4", "--group-size", "7");
    EXPECT_ERROR(2, "--dtype", "convert", MODEL, scratch_path("usage"), "--dtype", "i8");
    EXPECT_ERROR(2, "", "convert", MODEL);
    EXPECT_ERROR(1, "exists", "convert", MODEL, scratch());
    EXPECT_ERROR(1, "no such", "convert", scratch_path("nowhere"), scratch_path("usage"));
    EXPECT_ERROR(1, "no such", "verify", scratch_path("nowhere"));
    assert_int_equal(count_entries("usage"), 0);
}

/* A config.json that promises what the tensors do not keep. */
static void test_crafted(void **state)
{
    (void)state;
    static const struct {
        const char *quantization, *says;
    } cases[] = {
        {"{\"quant_method\":\"penstock\",\"version\":1,\"bits\":4,\"group_size\":64,\"symmetric\":true}", "has shape"},
        {"{\"quant_method\":\"penstock\",\"version\":1,\"bits\":8,\"group_size\":64,\"symmetric\":false}", "has shape"},
        {"{\"quant_method\":\"penstock\",\"version\":1,\"bits\":4,\"group_size\":32,\"symmetric\":false}", "has shape"},
        {"{\"quant_method\":\"penstock\",\"version\":9}", "version 9"},
        {"{\"quant_method\":\"fp8\",\"weight_block_size\":[128,128]}", "type U8"},
        {"{\"quant_method\":\"bitsandbytes\",\"load_in_4bit\":true}", "bitsandbytes"},
        {"{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":128}", "type U8"},
        {"[]", "quantization_config"},
    };
    must(PENSTOCK("convert", MODEL, scratch_path("crafted"), "--bits", "4"));
    size_t bytes;
    char *text = read_file(scratch_path("crafted/config.json"), &bytes);
    json_t *config = json_loads(text, 0, NULL);
    free(text);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        json_object_set_new(config, "quantization_config", json_loads(cases[i].quantization, 0, NULL));
        char *changed = json_dumps(config, 0);
        write_text(scratch_path("crafted/config.json"), changed);
        free(changed);
        EXPECT_ERROR(1, cases[i].says, "generate", scratch_path("crafted"), "--prompt", "x");
        EXPECT_ERROR(1, cases[i].says, "convert", scratch_path("crafted"), scratch_path("out"));
    }
    json_object_del(config, "quantization_config");
    char *changed = json_dumps(config, 0);
    write_text(scratch_path("crafted/config.json"), changed);
    free(changed);
    json_decref(config);
    EXPECT_ERROR(1, "type U8", "generate", scratch_path("crafted"), "--prompt", "x");
    assert_int_equal(count_entries("out"), 0);
}

static void test_stopped(void **state)
{
    (void)state;
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP};
    for (size_t i = 0; i < 3; i++) {
        const program_setup setup = {.signal = signals[i]};
        program_result result = PENSTOCK_WITH(&setup, "convert", scratch_path("big"), scratch_path("stopped"));
        assert_int_equal(result.status, 128 + signals[i]);
        program_free(&result);
        assert_int_equal(count_entries("stopped"), 0);
    }
    const program_setup small = {.file_limit = 1000000};
    expect_error(PENSTOCK_WITH(&small, "convert", MODEL, scratch_path("stopped")), 1, "stopped");
    assert_int_equal(count_entries("stopped"), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_accuracy), cmocka_unit_test(test_families), cmocka_unit_test(test_same_bits),
        cmocka_unit_test(test_memory),   cmocka_unit_test(test_verify),   cmocka_unit_test(test_usage),
        cmocka_unit_test(test_crafted),  cmocka_unit_test(test_stopped),
    };
    return cmocka_run_group_tests_name("convert", tests, NULL, NULL);
}
