/* SPDX-License-Identifier: Apache-2.0 */
/* penstock bench kernels: every operator once, its figures and their arithmetic, what it refuses. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "program.h"

#define QUICK "--rows", "1,3,70", "--seconds", "0.00001", "--loops", "3", "--memory", "96M", "--context", "200"

/* Median of three. */
static double middle(const json_t *samples)
{
    double a = json_number_value(json_array_get(samples, 0)), b = json_number_value(json_array_get(samples, 1)),
           c = json_number_value(json_array_get(samples, 2));
    return fmax(fmin(a, b), fmin(fmax(a, b), c));
}

static void check_figures(const json_t *record)
{
    const json_t *samples = json_object_get(record, "repetitions");
    const double seconds = number(record, "seconds");
    assert_int_equal(json_array_size(samples), 3);
    assert_true(seconds > 0 && near(seconds, middle(samples)));
    assert_true(number(record, "calls") >= 1 && number(record, "bytes") > 0);
    assert_true(near(number(record, "bytes_per_second"), number(record, "bytes") / seconds));
    assert_true(near(number(record, "operations_per_second"), number(record, "operations") / seconds));
}

/* The bound is that of the rates of the same document. */
static void check_result(const json_t *stats, const json_t *record)
{
    check_figures(record);
    const double moving = number(record, "bytes") / number(stats, "memory_bytes_per_second");
    const double computing = number(record, "operations") / number(stats, "matrix_operations_per_second");
    assert_true(near(number(record, "bound_seconds"), fmax(moving, computing)));
    assert_string_equal(text(record, "limited_by"), moving > computing ? "memory" : "products");
    assert_true(near(number(record, "share_of_bound"), number(record, "bound_seconds") / number(record, "seconds")));
    const double rows = number(record, "rows");
    assert_true(rows == 1 || rows == 3 || rows == 70);
}

static size_t count_of(const json_t *results, const char *name)
{
    size_t index, count = 0;
    const json_t *record;
    json_array_foreach(results, index, record) count += strcmp(text(record, "name"), name) == 0;
    return count;
}

static void check_document(json_t *document, bool is_host)
{
    const json_t *stats = json_object_get(document, "stats"), *results = json_object_get(document, "results");
    size_t index;
    const json_t *record;
    double best = 0, best_product = 0;
    json_array_foreach(json_object_get(stats, "rates"), index, record)
    {
        check_figures(record);
        if (strcmp(text(record, "name"), "memory") == 0)
            best = fmax(best, number(record, "bytes_per_second"));
        if (strcmp(text(record, "name"), "matrix") == 0)
            best_product = fmax(best_product, number(record, "operations_per_second"));
    }
    assert_true(index >= (is_host ? 4 : 6));
    assert_true(near(number(stats, "memory_bytes_per_second"), best));
    assert_true(near(number(stats, "matrix_operations_per_second"), best_product));
    assert_true((number(stats, "to_device_bytes_per_second") == 0) == is_host);
    assert_true((number(stats, "from_device_bytes_per_second") == 0) == is_host);
    json_array_foreach(results, index, record) check_result(stats, record);
}

static void test_every_operator(void **state)
{
    (void)state;
    static const char *const dense[] = {"matmul", "attention",   "kv_store", "rms_norm",    "layer_norm", "activate",
                                        "gated",  "copy_blocks", "convert",  "log_sum_exp", "top",        "rope"};
    static const char *const sparse[] = {"matmul_grouped", "route", "take_rows", "add_rows"};
    json_t *document = expect_json(PENSTOCK("bench", "kernels", "tiny", "--device", "host", QUICK, "--json"));
    const json_t *results = json_object_get(document, "results");
    check_document(document, true);
    for (size_t i = 0; i < sizeof dense / sizeof *dense; i++)
        assert_true(count_of(results, dense[i]) >= 2);
    assert_int_equal(count_of(results, "attention"), 3);
    assert_int_equal(count_of(results, "top"), 2); /* not of a prompt */
    for (size_t i = 0; i < sizeof sparse / sizeof *sparse; i++)
        assert_int_equal(count_of(results, sparse[i]), 0);
    json_decref(document);

    document = expect_json(PENSTOCK("bench", "kernels", "tiny-mixtral", "--device", "host", QUICK, "--json"));
    check_document(document, true);
    for (size_t i = 0; i < sizeof sparse / sizeof *sparse; i++)
        assert_true(count_of(json_object_get(document, "results"), sparse[i]) >= 3);
    json_decref(document);

    document = expect_json(PENSTOCK("bench", "kernels", "tiny-deepseek", "--device", "host", QUICK, "--json"));
    check_document(document, true);
    assert_int_equal(count_of(json_object_get(document, "results"), "matmul_heads"), 2 * 3);
    json_decref(document);
}

/* Every family's shapes, every way of storing weights and keys. */
static void test_every_model(void **state)
{
    (void)state;
    static const char *const models[] = {"tiny-opt",
                                         "tiny-bloom",
                                         "tiny-gpt2",
                                         "tiny-qwen3-moe",
                                         "tiny-deepseek",
                                         CASES "/awq",
                                         CASES "/gptq_4_reordered",
                                         CASES "/llama_f16",
                                         MODEL};
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        json_t *document = expect_json(PENSTOCK("bench", "kernels", models[i], "--device", "host", "--rows", "1,3,70",
                                                "--seconds", "0.00001", "--loops", "3", "--memory", "96M", "--json"));
        check_document(document, true);
        json_decref(document);
    }
    static const char *const bits[][2] = {{"8", "8"}, {"4", "4"}, {"16", "32"}};
    for (size_t i = 0; i < 3; i++) {
        json_t *document = expect_json(PENSTOCK("bench", "kernels", "tiny", "--device", "host", QUICK, "--quant-bits",
                                                bits[i][0], "--kv-bits", bits[i][1], "--only",
                                                "matmul,attention,kv_store", "--compute-type", "f32", "--json"));
        const json_t *results = json_object_get(document, "results");
        check_document(document, true);
        assert_true(count_of(results, "matmul") + count_of(results, "attention") + count_of(results, "kv_store") ==
                    json_array_size(results));
        json_decref(document);
    }
}

/* An accelerator: with its link. */
static void test_plugin(void **state)
{
    (void)state;
    static const char *const models[] = {"tiny", "tiny-mixtral", "tiny-deepseek", CASES "/awq"};
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        json_t *document = expect_json(PENSTOCK("bench", "kernels", models[i], "--device",
                                                PST_TEST_BINARY_DIR "/libpenstock-emulated.so", "--rows", "1,3,70",
                                                "--seconds", "0.00001", "--loops", "3", "--memory", "32M", "--json"));
        const json_t *device = json_object_get(json_object_get(document, "stats"), "device");
        check_document(document, false);
        assert_non_null(strstr(text(device, "model"), "emulated"));
        assert_string_equal(text(device, "matrix_library"), "own kernels");
        json_decref(document);
    }
}

/* A line for each result, headed and closed. */
static void test_text(void **state)
{
    (void)state;
    program_result result = PENSTOCK("bench", "kernels", "tiny", "--device", "host", QUICK, "--only", "rms_norm");
    assert_int_equal(result.status, 0);
    assert_non_null(strstr(result.out, "\noperator"));
    assert_non_null(strstr(result.out, "\nrms_norm"));
    assert_non_null(strstr(result.out, "\nhost: memory "));
    program_free(&result);
}

static void test_refusals(void **state)
{
    (void)state;
    EXPECT_ERROR(1, "a pass of 0 rows", "bench", "kernels", "tiny", "--rows", "1,0");
    EXPECT_ERROR(2, "--rows: 16 numbers at most", "bench", "kernels", "tiny", "--rows",
                 "1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17");
    EXPECT_ERROR(1, "more than the model's context", "bench", "kernels", "tiny", "--context", "100000000");
    EXPECT_ERROR(1, "no operator is called \"mat\"", "bench", "kernels", "tiny", "--device", "host", "--only", "mat");
    EXPECT_ERROR(1, "may be used", "bench", "kernels", "llama3-8b", "--device", "host", "--memory", "64M");
    EXPECT_ERROR(1, "nosuch", "bench", "kernels", "nosuch-model", "--device", "host");
    EXPECT_ERROR(1, "nosuch", "bench", "kernels", "tiny", "--device", "nosuch");
    EXPECT_ERROR(2, "--loops", "bench", "kernels", "--loops", "1000");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_operator), cmocka_unit_test(test_every_model),
                                       cmocka_unit_test(test_plugin), cmocka_unit_test(test_text),
                                       cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
