/* SPDX-License-Identifier: Apache-2.0 */
/* penstock bench infer: ZeRO-Inference's options, its formulas, and honest refusals. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "program.h"

static void test_formulas(void **state)
{
    (void)state;
    json_t *document = expect_json(PENSTOCK("bench", "infer", "--model", MODEL, "--batch_size", "2", "--prompt_len",
                                            "32", "--gen-len", "5", "--loops", "3", "--disk-offload", "--json"));
    const json_t *results = json_object_get(document, "results");
    assert_int_equal(json_array_size(results), 3);
    for (size_t i = 0; i < 3; i++) {
        const json_t *loop = json_array_get(results, i);
        double prefill = number(loop, "prefill_seconds"), total = number(loop, "total_seconds");
        assert_true(prefill > 0 && total > prefill);
        assert_true(near(number(loop, "prefill_tokens_per_second"), 2 * 32 / prefill));
        assert_true(near(number(loop, "decode_tokens_per_second"), 2 * 4 / (total - prefill)));
        assert_true(near(number(loop, "tokens_per_second"), 2 * 5 / total));
        assert_true(number(loop, "weight_bytes_read") > 0); /* --disk-offload streams */
        assert_int_equal(number(loop, "generated_tokens"), 10);
        assert_true(number(loop, "cache_bytes") > 0);
    }
    const json_t *stats = json_object_get(document, "stats");
    static const char *const keys[] = {"prompt_tokens", "weight_bytes_read", "read_bytes_per_second",
                                       "bound_seconds", "share_of_bound",    "peak_rss_bytes"};
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++)
        assert_true(number(stats, keys[i]) > 0);
    assert_true(json_is_string(json_object_get(stats, "limited_by")));
    assert_string_equal(json_string_value(json_object_get(stats, "device")), "host");
    json_decref(document);
}

static void test_zero_inference_command_line(void **state)
{
    (void)state;
    program_result result =
        PENSTOCK("bench", "infer", "--model", MODEL, "--loops", "1", "--batch-size", "1", "--prompt-len", "16",
                 "--gen-len", "4", "--pin-memory", "1", "--cpu-offload", "--offload-dir", "/nowhere", "--kv-offload",
                 "--quant_bits", "16", "--quant_group_size", "64", "--pin_kv_cache", "--async_kv_offload", "--use_gds",
                 "--log-file", scratch_path("bench.log"));
    assert_int_equal(result.status, 0);
    static const char *const idle[] = {"--pin-kv-cache", "--async-kv-offload", "--use-gds", "--offload-dir"};
    for (size_t i = 0; i < sizeof idle / sizeof idle[0]; i++) {
        const char *at = strstr(result.err, idle[i]);
        assert_true(at != NULL && strstr(at, "no effect") != NULL);
    }
    static const char *const figures[] = {"model size: ",       "cache size: ",      "hidden size",
                                          "peak host memory: ", "prefill latency: ", "decode latency: ",
                                          "total latency: ",    "throughput: ",      "bound: "};
    for (size_t i = 0; i < sizeof figures / sizeof figures[0]; i++)
        assert_non_null(strstr(result.out, figures[i]));
    size_t bytes;
    char *log = read_file(scratch_path("bench.log"), &bytes);
    assert_string_equal(log, result.out);
    program_free(&result);
    free(log);
}

/* An even number of repetitions: the reported figures are those of one of them, so that they agree. */
static void test_even_loops(void **state)
{
    (void)state;
    json_t *document = expect_json(PENSTOCK("bench", "infer", MODEL, "--prompt-len", "16", "--gen-len", "4", "--loops",
                                            "4", "--resident", "0", "--json"));
    const json_t *stats = json_object_get(document, "stats"), *results = json_object_get(document, "results");
    double total = number(stats, "total_seconds");
    assert_true(near(number(stats, "prefill_seconds") + number(stats, "decode_seconds"), total));
    assert_true(near(number(stats, "tokens_per_second"), 4 / total));
    size_t below = 0, equal = 0;
    for (size_t i = 0; i < 4; i++) {
        double other = number(json_array_get(results, i), "total_seconds");
        below += other < total;
        equal += other == total;
    }
    assert_true(below <= 1 && below + equal > 1); /* the lower middle */
    json_decref(document);
}

/* Whether the log can be written is found out before the work; a run that fails leaves none. */
static void test_log_file(void **state)
{
    (void)state;
    program_result result =
        PENSTOCK("bench", "infer", MODEL, "--prompt-len", "8", "--log-file", scratch_path("missing/bench.log"));
    assert_string_equal(result.out, "");
    expect_error(result, 1, "No such file");
    EXPECT_ERROR(1, "too small", "bench", "infer", MODEL, "--host-memory", "1M", "--prompt-len", "8", "--log-file",
                 scratch_path("none.log"));
    assert_int_equal(count_entries("none.log"), 0);
    /* The report is out before the log that cannot take it. */
    result = PENSTOCK("bench", "infer", MODEL, "--loops", "1", "--prompt-len", "8", "--gen-len", "2", "--log-file",
                      "/dev/full");
    assert_non_null(strstr(result.out, "total latency: "));
    expect_error(result, 1, "/dev/full: cannot write: No space left");
}

static void test_refusals(void **state)
{
    (void)state;
    EXPECT_ERROR(2, "--quant-bits", "bench", "infer", MODEL, "--quant_bits", "5");
    EXPECT_ERROR(1, "not yet", "bench", "infer", MODEL, "--dummy");
    EXPECT_ERROR(2, "needs one model", "bench", "infer");
    EXPECT_ERROR(2, "needs one model", "bench", "infer", MODEL, "--model", MODEL);
    EXPECT_ERROR(1, "more than the model's context of 512", "bench", "infer", MODEL, "--prompt-len", "512");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_formulas),   cmocka_unit_test(test_zero_inference_command_line),
        cmocka_unit_test(test_even_loops), cmocka_unit_test(test_log_file),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
