/* SPDX-License-Identifier: Apache-2.0 */
/* penstock score: probabilities that add up, windows that join, logits as the reference has them. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "program.h"

static const json_t *first_result(const json_t *document)
{
    return json_array_get(json_object_get(document, "results"), 0);
}

/* A float32 matrix of a NumPy file, version 1.0; free() *data. */
static float *read_npy(const char *path, size_t *rows, size_t *columns, char **data)
{
    size_t bytes;
    *data = read_file(path, &bytes);
    assert_true(bytes > 128);
    assert_memory_equal(*data, "\x93NUMPY\x01\x00", 8);
    size_t header = 10 + (unsigned char)(*data)[8] + 256 * (size_t)(unsigned char)(*data)[9];
    assert_int_equal(header % 64, 0);
    const char *shape = strstr(*data + 10, "'shape': (");
    assert_non_null(shape);
    assert_int_equal(sscanf(shape, "'shape': (%zu, %zu)", rows, columns), 2);
    assert_non_null(strstr(*data + 10, "'descr': '<f4'"));
    assert_non_null(strstr(*data + 10, "'fortran_order': False"));
    assert_int_equal(bytes, header + *rows * *columns * sizeof(float));
    return (float *)(*data + header);
}

/* The ids of the stored case's first sequences, their logits against the stored ones. */
static void compare_case(const char *name)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s/expected.json", CASES, name);
    json_t *expected = json_load_file(path, 0, NULL);
    assert_non_null(expected);
    double tolerance = json_number_value(json_object_get(expected, "tolerance"));
    const json_t *sequences = json_object_get(expected, "sequences");
    for (size_t i = 0; i < json_array_size(sequences); i++) {
        const json_t *sequence = json_array_get(sequences, i), *ids = json_object_get(sequence, "ids");
        char list[8192] = "", folder[512];
        for (size_t j = 0; j < json_array_size(ids); j++) {
            size_t used = strlen(list);
            snprintf(list + used, sizeof list - used, "%s%d", j > 0 ? "," : "",
                     (int)json_integer_value(json_array_get(ids, j)));
        }
        snprintf(folder, sizeof folder, "%s/%s", CASES, name);
        snprintf(path, sizeof path, "%s/%s/%s", CASES, name, json_string_value(json_object_get(sequence, "logits")));
        program_result result =
            PENSTOCK("score", folder, "--token-ids", list, "--logits-out", scratch_path("case.npy"), "--resident", "0");
        assert_int_equal(result.status, 0);
        program_free(&result);
        size_t rows[2], columns[2];
        char *data[2];
        const float *wanted = read_npy(path, &rows[0], &columns[0], &data[0]);
        const float *got = read_npy(scratch_path("case.npy"), &rows[1], &columns[1], &data[1]);
        assert_int_equal(rows[0], rows[1]);
        assert_int_equal(columns[0], columns[1]);
        double largest = 0, difference = 0;
        for (size_t j = 0; j < rows[0] * columns[0]; j++) {
            largest = fmax(largest, fabs((double)wanted[j]));
            double apart = fabs((double)wanted[j] - (double)got[j]);
            difference = !(apart <= difference) ? apart : difference; /* NaN counts */
        }
        if (!(difference <= tolerance * largest))
            fail_msg("%s sequence %zu: logits differ by %g of %g", name, i, difference, largest);
        free(data[0]);
        free(data[1]);
    }
    json_decref(expected);
}

static void test_logits_of_stored_cases(void **state)
{
    (void)state;
    compare_case("llama_gqa2");
    compare_case("qwen2");
    compare_case("qwen3_bf16");
    compare_case("mistral_window");
}

static void test_json_adds_up(void **state)
{
    (void)state;
    json_t *document = expect_json(PENSTOCK("score", MODEL, "--text", "Once upon a time, in the valley", "--json"));
    const json_t *result = first_result(document), *logprobs = json_object_get(result, "logprobs");
    size_t tokens = (size_t)json_integer_value(json_object_get(result, "tokens"));
    assert_int_equal(json_array_size(json_object_get(result, "token_ids")), tokens);
    assert_int_equal(json_array_size(logprobs), tokens - 1);
    double sum = 0;
    for (size_t i = 0; i < tokens - 1; i++) {
        double value = json_real_value(json_array_get(logprobs, i));
        assert_true(value <= 0);
        sum += value;
    }
    double mean = json_real_value(json_object_get(result, "mean_logprob"));
    assert_true(fabs(mean - sum / (double)(tokens - 1)) < 1e-12);
    assert_true(fabs(json_real_value(json_object_get(result, "perplexity")) - exp(-mean)) < 1e-9);
    assert_non_null(json_object_get(json_object_get(document, "stats"), "weight_bytes_read"));
    json_decref(document);
}

/* Log-probabilities are those of the logits. */
static void test_logprobs_follow_from_logits(void **state)
{
    (void)state;
    static const int ids[] = {300, 17, 900, 42, 5, 5};
    json_t *document = expect_json(
        PENSTOCK("score", MODEL, "--token-ids", "300,17,900,42,5,5", "--json", "--logits-out", scratch_path("l.npy")));
    size_t rows, columns;
    char *data;
    const float *logits = read_npy(scratch_path("l.npy"), &rows, &columns, &data);
    assert_int_equal(rows, 6);
    for (size_t i = 0; i + 1 < rows; i++) {
        double total = 0;
        for (size_t j = 0; j < columns; j++)
            total += exp((double)logits[i * columns + j]);
        double expected = (double)logits[i * columns + (size_t)ids[i + 1]] - log(total);
        double got = json_real_value(json_array_get(json_object_get(first_result(document), "logprobs"), i));
        assert_true(fabs(expected - got) < 1e-4);
    }
    free(data);
    json_decref(document);
}

static void test_one_token(void **state)
{
    (void)state;
    json_t *document =
        expect_json(PENSTOCK("score", MODEL, "--token-ids", "5", "--json", "--logits-out", scratch_path("one.npy")));
    assert_int_equal(json_array_size(json_object_get(first_result(document), "logprobs")), 0);
    assert_true(json_is_null(json_object_get(first_result(document), "perplexity")));
    json_decref(document);
    size_t rows, columns;
    char *data;
    read_npy(scratch_path("one.npy"), &rows, &columns, &data);
    assert_int_equal(rows, 1);
    assert_int_equal(columns, model_config("vocab_size"));
    free(data);
}

/* Windows of 4 tokens overlap by one: rows of the first are those of the whole text, and every row is there. */
static void test_windows(void **state)
{
    (void)state;
    json_t *whole = expect_json(PENSTOCK("score", MODEL, "--token-ids", "9,8,7,6,5,4,3,10,11", "--json", "--logits-out",
                                         scratch_path("whole.npy")));
    json_t *cut = expect_json(PENSTOCK("score", MODEL, "--token-ids", "9,8,7,6,5,4,3,10,11", "--json", "--logits-out",
                                       scratch_path("cut.npy"), "--context", "4"));
    size_t rows[2], columns[2];
    char *data[2];
    const float *a = read_npy(scratch_path("whole.npy"), &rows[0], &columns[0], &data[0]);
    const float *b = read_npy(scratch_path("cut.npy"), &rows[1], &columns[1], &data[1]);
    assert_int_equal(rows[1], 9);
    assert_memory_equal(a, b, 4 * columns[0] * sizeof(float));
    for (size_t row = 4; row < 9; row++) {
        double energy = 0;
        for (size_t j = 0; j < columns[1]; j++)
            energy += fabs((double)b[row * columns[1] + j]);
        assert_true(energy > 0);
    }
    const json_t *first = json_object_get(first_result(whole), "logprobs");
    const json_t *second = json_object_get(first_result(cut), "logprobs");
    assert_int_equal(json_array_size(second), 8);
    for (size_t i = 0; i < 3; i++)
        assert_true(json_equal(json_array_get(first, i), json_array_get(second, i)));
    free(data[0]);
    free(data[1]);
    /* A window that begins with token 3 (6,5,4,3) scores as that text alone. */
    json_t *alone = expect_json(PENSTOCK("score", MODEL, "--token-ids", "6,5,4,3", "--json"));
    for (size_t i = 0; i < 3; i++)
        assert_true(json_equal(json_array_get(json_object_get(first_result(alone), "logprobs"), i),
                               json_array_get(second, 3 + i)));
    json_decref(alone);
    json_decref(whole);
    json_decref(cut);
    EXPECT_ERROR(1, "context", "score", MODEL, "--token-ids", "1,2", "--context", "100000");
}

static void test_file_and_text_and_input_agree(void **state)
{
    (void)state;
    write_text(scratch_path("text.txt"), "The fox came down.");
    const program_setup setup = {.input = "The fox came down."};
    program_result by_text = PENSTOCK("score", MODEL, "--text", "The fox came down."),
                   by_file = PENSTOCK("score", MODEL, "--file", scratch_path("text.txt")),
                   by_input = PENSTOCK_WITH(&setup, "score", MODEL);
    assert_int_equal(by_text.status, 0);
    assert_string_equal(by_text.out, by_file.out);
    assert_string_equal(by_text.out, by_input.out);
    assert_non_null(strstr(by_text.out, "perplexity"));
    program_free(&by_text);
    program_free(&by_file);
    program_free(&by_input);
}

static void test_logits_file_failures(void **state)
{
    (void)state;
    int before = count_entries("broken");
    EXPECT_ERROR(1, "No such file", "score", MODEL, "--token-ids", "1,2", "--logits-out",
                 scratch_path("missing/broken.npy"));
    const program_setup small = {.file_limit = 4096};
    expect_error(
        PENSTOCK_WITH(&small, "score", MODEL, "--token-ids", "1,2", "--logits-out", scratch_path("broken.npy")), 1,
        "broken.npy: cannot write");
    EXPECT_ERROR(1, "no regular file", "score", MODEL, "--token-ids", "1,2", "--logits-out", "/dev/null");
    assert_int_equal(count_entries("broken"), before);
    /* An older file stays as it was. */
    write_text(scratch_path("old.npy"), "old");
    expect_error(PENSTOCK_WITH(&small, "score", MODEL, "--token-ids", "1,2", "--logits-out", scratch_path("old.npy")),
                 1, "old.npy");
    size_t bytes;
    char *kept = read_file(scratch_path("old.npy"), &bytes);
    assert_string_equal(kept, "old");
    free(kept);
    assert_int_equal(count_entries("old.npy"), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_logits_of_stored_cases),
        cmocka_unit_test(test_json_adds_up),
        cmocka_unit_test(test_logprobs_follow_from_logits),
        cmocka_unit_test(test_one_token),
        cmocka_unit_test(test_windows),
        cmocka_unit_test(test_file_and_text_and_input_agree),
        cmocka_unit_test(test_logits_file_failures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
