/* SPDX-License-Identifier: Apache-2.0 */
/* The stats registry: every promised key is there, JSON and medians follow the table, figures read well. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/heap.h"
#include "base/stats.h"
#include "penstock/model.h"

static void test_promised_keys(void **state)
{
    (void)state;
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
                                       "limited_by",
                                       "peak_rss_bytes"};
    pst_run_stats stats = {.prompt_tokens = 3, .total_seconds = 1.5, .limited_by = "disk", .share_of_bound = NAN};
    json_t *object;
    assert_int_equal(pst_stats_to_json(pst_run_stat_table, pst_run_stat_count, &stats, &object, NULL), 0);
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++)
        assert_non_null(json_object_get(object, keys[i]));
    assert_int_equal(json_object_size(object), pst_run_stat_count); /* no name twice */
    assert_int_equal(json_integer_value(json_object_get(object, "prompt_tokens")), 3);
    assert_true(json_real_value(json_object_get(object, "total_seconds")) == 1.5);
    assert_string_equal(json_string_value(json_object_get(object, "limited_by")), "disk");
    assert_true(json_is_null(json_object_get(object, "share_of_bound")));
    json_decref(object);
    stats.limited_by = NULL;
    assert_int_equal(pst_stats_to_json(pst_run_stat_table, pst_run_stat_count, &stats, &object, NULL), 0);
    assert_true(json_is_null(json_object_get(object, "limited_by")));
    json_decref(object);
}

/* Every field has its row: the rows' widths make up the record, all fields being eight bytes. */
static void test_rows_cover_the_record(void **state)
{
    (void)state;
    bool covered[sizeof(pst_run_stats) / 8] = {false};
    for (size_t i = 0; i < pst_run_stat_count; i++) {
        size_t slot = pst_run_stat_table[i].offset / 8;
        assert_false(covered[slot]);
        covered[slot] = true;
    }
    assert_int_equal(pst_run_stat_count, sizeof covered / sizeof covered[0]);
}

static size_t median(const pst_run_stats *runs, size_t count)
{
    return pst_stats_median(pst_run_stat_table, pst_run_stat_count, "total_seconds", runs, sizeof runs[0], count);
}

/* One repetition as a whole, so that its figures agree with each other. */
static void test_median(void **state)
{
    (void)state;
    const pst_run_stats runs[5] = {
        {.passes = 1, .total_seconds = 2.5}, {.passes = 2, .total_seconds = 9.0}, {.passes = 5, .total_seconds = 2.0},
        {.passes = 4, .total_seconds = 1.0}, {.passes = 3, .total_seconds = 0.5},
    };
    assert_int_equal(median(runs, 5), 2);
    assert_int_equal(median(runs, 4), 2); /* the lower middle of 1 2 2.5 9 */
    assert_int_equal(median(runs, 2), 0);
    assert_int_equal(median(runs, 1), 0);
    const pst_run_stats same[3] = {{.total_seconds = 1}, {.total_seconds = 1}, {.total_seconds = 1}};
    assert_true(median(same, 3) < 3);
    const pst_run_stats broken[2] = {{.total_seconds = NAN}, {.total_seconds = NAN}};
    assert_true(median(broken, 2) < 2);
}

static void test_formats(void **state)
{
    (void)state;
    char text[64];
    assert_string_equal(pst_format_bytes(0, text, sizeof text), "0 bytes");
    assert_string_equal(pst_format_bytes(999, text, sizeof text), "999 bytes");
    assert_string_equal(pst_format_bytes(1000, text, sizeof text), "1.00 kB");
    assert_string_equal(pst_format_bytes(999999, text, sizeof text), "1.00 MB");
    assert_string_equal(pst_format_bytes(41.23e9, text, sizeof text), "41.2 GB");
    assert_string_equal(pst_format_bytes(152e6, text, sizeof text), "152 MB");
    assert_string_equal(pst_format_seconds(3.214, text, sizeof text), "3.21 s");
    assert_string_equal(pst_format_seconds(0.0123, text, sizeof text), "12.3 ms");
    assert_string_equal(pst_format_seconds(245, text, sizeof text), "4 min 05 s");
    assert_string_equal(pst_format_seconds(7380, text, sizeof text), "2 h 03 min");
    assert_string_equal(pst_format_seconds(3.15576e11, text, sizeof text), "1e+04 years");
    assert_string_equal(pst_format_seconds(NAN, text, sizeof text), "?");
    assert_string_equal(pst_format_value(1.5e9, "bytes/s", text, sizeof text), "1.50 GB/s");
    assert_string_equal(pst_format_value(0.97, "share", text, sizeof text), "97 %");
    assert_string_equal(pst_format_value(12, "tokens", text, sizeof text), "12 tokens");
    assert_string_equal(pst_format_value(NAN, "bytes", text, sizeof text), "-");
}

static void test_print(void **state)
{
    (void)state;
    pst_run_stats stats = {.weight_bytes_read = 41200000000, .limited_by = "compute"};
    char *text = NULL;
    size_t bytes = 0;
    FILE *to = open_memstream(&text, &bytes);
    assert_non_null(to);
    pst_stats_print(pst_run_stat_table, pst_run_stat_count, &stats, to);
    fclose(to);
    assert_non_null(strstr(text, "weight_bytes_read          41.2 GB"));
    assert_non_null(strstr(text, "compute"));
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_promised_keys), cmocka_unit_test(test_rows_cover_the_record),
        cmocka_unit_test(test_median),        cmocka_unit_test(test_formats),
        cmocka_unit_test(test_print),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
