/* SPDX-License-Identifier: Apache-2.0 */
/* Routing traces: files read strictly, draws distinct, repeatable and as skewed as asked for; memory that runs out. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/heap.h"
#include "nn/routing_trace.h"

static bool sparse[] = {false, true, true};
static const pst_transformer small = {.layers = 3, .experts = 10, .experts_per_token = 2, .sparse = sparse};

static char folder[64], path[128];

static int set_up(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/penstock-trace-XXXXXX");
    if (mkdtemp(folder) == NULL)
        return -1;
    snprintf(path, sizeof path, "%s/trace.jsonl", folder);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(folder);
}

static void write_file(const char *text)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

static void test_file(void **state)
{
    (void)state;
    write_file("[[3,1],[0,9]]\n [ [5, 4] , [7,8] ]\r\n[[1,2],[3,4]]");
    pst_routing_trace *trace;
    assert_int_equal(pst_routing_trace_open(path, &small, &trace, NULL), 0);
    static const uint32_t lines[3][2][2] = {{{1, 3}, {0, 9}}, {{4, 5}, {7, 8}}, {{1, 2}, {3, 4}}};
    for (uint64_t sequence = 0; sequence < 5; sequence++)
        for (uint32_t position = 0; position < 7; position++)
            for (uint32_t layer = 0; layer < 2; layer++) {
                uint32_t chosen[2];
                pst_routing_trace_choose(trace, layer, sequence, position, chosen);
                assert_memory_equal(chosen, lines[(7919 * sequence + position) % 3][layer], sizeof chosen);
            }
    pst_routing_trace_destroy(trace);
}

static void test_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"", "too few"},
        {"\n\n", "too few"},
        {"[[1,2],[3,4]]\n\n\n\n", "line 2 is not"},
        {"[[1,2]]\n                    ", "line 1 is not"},
        {"[[1,2],[3,4],[5,6]]", "line 1 is not"},
        {"[[1,2,3],[3,4]]", "line 1 is not"},
        {"[[1],[3,4]]      ", "line 1 is not"},
        {"[[1,2],[3,4]]\n[[1,2],[3,10]]", "line 2 names expert 10 of 10"},
        {"[[1,2],[3,999999999999]]", "names expert 999999"},
        {"[[1,2],[3,3]]", "twice"},
        {"[[1,2],[3,-4]]", "not a list"},
        {"[[1,2],[3,\"4\"]]", "not a list"},
        {"[[1,2],[3,4]] x", "line 1 is not"},
        {"{\"a\":[[1,2],[3,4]]}", "line 1 is not"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        pst_routing_trace *trace;
        pst_error err = {0};
        write_file(cases[i].text);
        int status = pst_routing_trace_open(path, &small, &trace, &err);
        if (status != PST_E_FORMAT || strstr(err.message, cases[i].says) == NULL)
            fail_msg("%s: %d \"%s\"", cases[i].text, status, err.message);
        assert_string_equal(err.path, path);
    }
    static const char *const bad[] = {
        "zipf:", "zipf:-1", "zipf:99", "zipf:nan", "zipf:1:", "zipf:1:x", "uniform:", "uniform:-3", "zipf:1:2:3"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        pst_routing_trace *trace;
        assert_int_equal(pst_routing_trace_open(bad[i], &small, &trace, NULL), PST_E_USAGE);
    }
    pst_routing_trace *trace;
    assert_int_equal(pst_routing_trace_open("uniformly", &small, &trace, NULL), -ENOENT);
    assert_int_equal(pst_routing_trace_open("uniform", &(pst_transformer){0}, &trace, NULL), PST_E_USAGE);
}

/* How often each expert of a layer is drawn, most often first. */
static void count_draws(const pst_routing_trace *trace, const pst_transformer *t, uint32_t layer, uint32_t tokens,
                        uint32_t *counts)
{
    memset(counts, 0, t->experts * sizeof *counts);
    for (uint32_t token = 0; token < tokens; token++) {
        uint32_t chosen[16];
        pst_routing_trace_choose(trace, layer, token / 100, token % 100, chosen);
        for (uint32_t i = 0; i < t->experts_per_token; i++) {
            assert_true(chosen[i] < t->experts && (i == 0 || chosen[i - 1] < chosen[i]));
            counts[chosen[i]]++;
        }
    }
}

static uint32_t largest(const uint32_t *counts, uint32_t count)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < count; i++)
        best = counts[i] > counts[best] ? i : best;
    return best;
}

static void test_draws(void **state)
{
    (void)state;
    enum { TOKENS = 20000 };
    pst_transformer t = small;
    t.experts_per_token = 1;
    pst_routing_trace *trace, *same, *other;
    uint32_t counts[10], best[2];
    assert_int_equal(pst_routing_trace_open("zipf:1:5", &t, &trace, NULL), 0);
    assert_int_equal(pst_routing_trace_open("zipf:1:5", &t, &same, NULL), 0);
    assert_int_equal(pst_routing_trace_open("zipf:1:6", &t, &other, NULL), 0);
    double harmonic = 0;
    for (int rank = 1; rank <= 10; rank++)
        harmonic += 1.0 / rank;
    for (uint32_t layer = 0; layer < 2; layer++) {
        count_draws(trace, &t, layer, TOKENS, counts);
        best[layer] = largest(counts, 10);
        assert_true(fabs(counts[best[layer]] / (double)TOKENS - 1 / harmonic) < 0.02);
    }
    uint32_t differ = 0;
    for (uint32_t position = 0; position < 100; position++) {
        uint32_t a, b, c;
        pst_routing_trace_choose(trace, 1, 3, position, &a);
        pst_routing_trace_choose(same, 1, 3, position, &b);
        pst_routing_trace_choose(other, 1, 3, position, &c);
        assert_int_equal(a, b);
        differ += a != c;
    }
    assert_true(differ > 20);
    pst_routing_trace_destroy(trace);
    pst_routing_trace_destroy(same);
    pst_routing_trace_destroy(other);

    assert_int_equal(pst_routing_trace_open("uniform", &t, &trace, NULL), 0);
    count_draws(trace, &t, 0, TOKENS, counts);
    for (uint32_t e = 0; e < 10; e++)
        assert_true(fabs(counts[e] / (double)TOKENS - 0.1) < 0.02);
    pst_routing_trace_destroy(trace);

    t.experts_per_token = 10; /* every expert, though most are hardly ever drawn */
    assert_int_equal(pst_routing_trace_open("zipf:16", &t, &trace, NULL), 0);
    count_draws(trace, &t, 1, 10, counts);
    pst_routing_trace_destroy(trace);
}

static void test_allocation_failures(void **state)
{
    (void)state;
    write_file("[[3,1],[0,9]]\n");
    const char *const texts[] = {path, "zipf:1"};
    int64_t live = pst_heap_live_count();
    for (int i = 0; i < 2; i++) {
        int status = -1;
        for (int64_t n = 0; status < 0; n++) {
            pst_routing_trace *trace;
            pst_heap_fail_after(n, 0);
            status = pst_routing_trace_open(texts[i], &small, &trace, NULL);
            pst_heap_fail_after(-1, 0);
            assert_true(status == 0 || status == -ENOMEM);
            if (status == 0)
                pst_routing_trace_destroy(trace);
            assert_int_equal(pst_heap_live_count(), live);
            assert_true(n < 100);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_file),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_draws),
        cmocka_unit_test(test_allocation_failures),
    };
    return cmocka_run_group_tests_name("routing trace", tests, set_up, tear_down);
}
