/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How many sequences a job runs at once: the rule on points by hand, the cache for mixed lengths, and the choice for a model
 * under budgets, which a session then opens with.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/heap.h"
#include "infer/batch_size.h"
#include "nn/kv.h"
#include "os/memory.h"
#include "penstock/model.h"

#define TALES PST_TEST_SOURCE_DIR "/models/penstock-tales"

enum { MOST = 64 };

/* Points of a model of so many weights in memory for so many bytes, of which each sequence takes some: one token each. */
static size_t points_of(double weights, double memory, double kv, pst_batch_point *out)
{
    size_t count = 0;
    for (uint32_t n = 1; n <= MOST && n * kv < memory; n++) {
        double kept = memory - n * kv;
        out[count++] = (pst_batch_point){.sequences = n,
                                         .tokens = n,
                                         .bytes = kept < weights ? weights - kept : 0,
                                         .parameters = weights / 2,
                                         .operations = weights * n};
    }
    return count;
}

static uint32_t choose(double weights, double memory, double kv, const pst_batch_rates *rates)
{
    pst_batch_point points[MOST];
    return points[pst_batch_choose(points, points_of(weights, memory, kv, points), rates)].sequences;
}

static void test_rule(void **state)
{
    (void)state;
    const pst_batch_rates slow_drive = {.disk_bytes_per_second = 1e9, .operations_per_second = 1e15};
    /* The weights do not fit anyway: sequences come before weights, and the memory is the bound: 40/1 - 1. */
    assert_in_range(choose(100e9, 40e9, 1e9, &slow_drive), 37, 39);
    /* They fit beside ten sequences, and fetching them from memory takes 15 s: as much as reading 15 GB, with 25 sequences. */
    assert_in_range(choose(30e9, 40e9, 1e9, &(pst_batch_rates){1e9, 1e15, 1e-9}), 23, 25);
    /* They fit, and nothing is shared: one at a time is as good as any. */
    assert_int_equal(choose(30e9, 40e9, 1e9, &slow_drive), 1);
    /* Computing sets the pace: one is as good as many, and the memory is the weights'. */
    assert_int_equal(choose(100e9, 40e9, 1e9, &(pst_batch_rates){1e12, 1e9, 0}), 1);
    /* In between: where T_io = operations / rate, within the 5 %. At 20 sequences 80 GB take 80 s, as do 20 * 100e9 / 2.5e10. */
    assert_in_range(choose(100e9, 40e9, 1e9, &(pst_batch_rates){1e9, 2.5e10, 0}), 18, 20);
    /* All stays: what a pass costs once is shared, 1 + 100/n against 1 + 100/64 within 5 %. */
    const pst_batch_rates fetched = pst_batch_rates_of(1e9, 1e12 / 101, 1e12);
    uint32_t shared = choose(1e9, 1e12, 1, &fetched);
    assert_in_range(shared, 58, 62);
    /* A drive that is faster than the memory is no reason for another choice. */
    assert_int_equal(choose(1e9, 1e12, 1, &(pst_batch_rates){1e15, 1e12, fetched.parameter_seconds}), shared);
}

static void test_rates(void **state)
{
    (void)state;
    /* One row of a model of p parameters takes 2p / one_row in all. */
    pst_batch_rates rates = pst_batch_rates_of(1, 1e10, 8e10);
    const pst_batch_point one = {.sequences = 1, .tokens = 1, .parameters = 1e9, .operations = 2e9};
    double seconds = pst_batch_token_seconds(&one, &rates);
    assert_true(seconds > 0.2 * (1 - 1e-9) && seconds < 0.2 * (1 + 1e-9));
    assert_true(pst_batch_rates_of(1, 2, 1).parameter_seconds == 0);
    assert_true(pst_batch_rates_of(1, 0, 1).parameter_seconds == 0);
}

static void test_cache(void **state)
{
    (void)state;
    assert_int_equal(pst_batch_kv_tokens(1, 100, 100 * 128, 1000), 1024); /* the longest alone */
    assert_int_equal(pst_batch_kv_tokens(11, 100, 100 * 128, 1000), 1024 + 10 * 128);
    assert_int_equal(pst_batch_kv_tokens(100, 100, 100 * 128, 1000), 100 * 128); /* all that there is */
    assert_int_equal(pst_batch_kv_tokens(4, 4, 256, 1000), 1024);                /* never less than the longest */
    assert_int_equal(pst_batch_kv_tokens(3, 7, UINT64_MAX, 100), 3 * 128);       /* sums that cannot be */
    assert_int_equal(pst_batch_kv_tokens(3, 0, 0, 100), 128);
    assert_int_equal(pst_batch_kv_tokens(65536, UINT64_MAX, 0, UINT32_MAX), (UINT64_C(1) << 32)); /* nothing wraps */
}

/* ---- with a model ---- */

static pst_workload job(uint64_t requests, uint32_t prompt, uint32_t made)
{
    return (pst_workload){.struct_size = sizeof(pst_workload),
                          .requests = requests,
                          .kv_tokens = requests * ((prompt + made + 63) / 64 * 64),
                          .prompt_tokens = requests * prompt,
                          .new_tokens = requests * made,
                          .disk_bytes_per_second = 1e8,
                          .operations_per_second = 1e12,
                          .one_row_operations_per_second = 1e12};
}

static pst_session_options shape(uint64_t budget)
{
    return (pst_session_options){.struct_size = sizeof(pst_session_options),
                                 .host_memory_bytes = budget,
                                 .resident_set = true, /* share 0: the weights are read in every pass */
                                 .max_tokens = 512,
                                 .max_prompt_tokens = 400,
                                 .threads = 1};
}

static void must_choose(pst_model *model, const pst_workload *work, pst_session_options *options)
{
    pst_error err;
    if (pst_session_choose_batch(model, work, options, &err) < 0)
        fail_msg("%s", err.message);
}

/* Short requests and a long one: many more run at once than slots for the long one would fit, and the session opens. */
static void test_mixed_lengths(void **state)
{
    pst_model *model = *state;
    const uint64_t budget = pst_memory_resident_bytes() + (UINT64_C(48) << 20);
    pst_workload mixed = job(999, 8, 24), all_long = job(1000, 400, 112);
    mixed.requests++;
    mixed.kv_tokens += 512;
    mixed.prompt_tokens += 400;
    mixed.new_tokens += 112;
    pst_session_options a = shape(budget), b = shape(budget);
    must_choose(model, &mixed, &a);
    must_choose(model, &all_long, &b);
    print_message("mixed: %u sequences, %llu tokens; all long: %u, %llu\n", a.max_sequences,
                  (unsigned long long)a.kv_tokens, b.max_sequences, (unsigned long long)b.kv_tokens);
    assert_true(a.max_sequences >= 3 * b.max_sequences);
    assert_true(a.kv_tokens < a.max_sequences * UINT64_C(512) / 3);
    pst_session *session;
    pst_error err;
    a.host_memory_bytes += 4 << 20; /* what this process has grown by */
    if (pst_session_open(model, &a, &session, &err) < 0)
        fail_msg("%s", err.message);
    pst_session_close(session);
}

/* A budget that is too small is refused with one that works; where what the requests give takes the most of it, the second
 * refusal's works. */
static void test_named_budgets(void **state)
{
    pst_model *model = *state;
    const uint64_t fixed[] = {0, 3 << 20, 200 << 20};
    for (size_t i = 0; i < sizeof fixed / sizeof fixed[0]; i++) {
        pst_workload work = job(500, 10, 10);
        work.fixed_bytes = fixed[i];
        uint64_t budget = 1 << 20;
        int status = PST_E_BUDGET;
        for (int attempt = 0; attempt < 3 && status == PST_E_BUDGET; attempt++) {
            pst_session_options o = shape(budget);
            pst_error err;
            status = pst_session_choose_batch(model, &work, &o, &err);
            if (status >= 0)
                break;
            const char *number = strstr(err.message, "the smallest that works is ");
            if (number == NULL)
                fail_msg("%s", err.message);
            uint64_t named = strtoull(number + strlen("the smallest that works is "), NULL, 10) << 20;
            assert_true(named > budget);
            budget = named;
        }
        assert_int_equal(status, 0);
        assert_true(budget >= 2 * fixed[i]);
    }
}

static void test_bounds(void **state)
{
    pst_model *model = *state;
    pst_workload few = job(3, 10, 10);
    pst_session_options o = shape(0);
    must_choose(model, &few, &o); /* no more than requests */
    assert_in_range(o.max_sequences, 1, 3);
    pst_workload many = job(5000, 10, 10);
    o = shape(0);
    o.max_sequences = 7;
    must_choose(model, &many, &o); /* no more than was said */
    assert_in_range(o.max_sequences, 1, 7);
    pst_error err;
    o = shape(1 << 20);
    assert_int_equal(pst_session_choose_batch(model, &many, &o, &err), PST_E_BUDGET);
    assert_int_equal(o.max_sequences, 0);
    many.requests = 0;
    assert_int_equal(pst_session_choose_batch(model, &many, &o, &err), PST_E_USAGE);
    many = job(10, 10, 10);
    many.fixed_bytes = UINT64_MAX;
    o = shape(1 << 30);
    assert_int_equal(pst_session_choose_batch(model, &many, &o, &err), PST_E_BUDGET);
}

/* Without rates they are measured where weights stream, by a session of its own, which leaves nothing. */
static void test_measured(void **state)
{
    pst_model *model = *state;
    pst_workload work = job(40, 10, 10);
    work.disk_bytes_per_second = work.operations_per_second = 0;
    pst_session_options o = shape(pst_memory_resident_bytes() + (UINT64_C(512) << 20));
    int64_t live = pst_heap_live_count();
    must_choose(model, &work, &o);
    assert_int_equal(pst_heap_live_count(), live);
    assert_in_range(o.max_sequences, 1, 40);
    assert_true(o.resident_set && o.resident_share == 0 && !o.measure_bound); /* the caller's own */
}

static void test_allocations(void **state)
{
    pst_model *model = *state;
    const pst_workload work = job(40, 10, 10);
    int64_t live = pst_heap_live_count();
    for (int64_t n = 0;; n++) {
        pst_error err;
        pst_session_options o = shape(pst_memory_resident_bytes() + (UINT64_C(512) << 20));
        pst_heap_fail_after(n, 0);
        int status = pst_session_choose_batch(model, &work, &o, &err);
        pst_heap_fail_after(-1, 0);
        assert_int_equal(pst_heap_live_count(), live);
        if (status >= 0)
            break;
        assert_int_equal(status, -ENOMEM);
        assert_int_equal(o.max_sequences, 0);
    }
}

static int set_up(void **state)
{
    pst_error err;
    const pst_tokenizer *tokenizer;
    pst_model *model;
    assert_int_equal(pst_model_open(TALES, NULL, &model, &err), 0);
    assert_int_equal(pst_model_tokenizer(model, &tokenizer, &err), 0); /* the model's from then on */
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
        cmocka_unit_test(test_rule),          cmocka_unit_test(test_rates),         cmocka_unit_test(test_cache),
        cmocka_unit_test(test_mixed_lengths), cmocka_unit_test(test_named_budgets), cmocka_unit_test(test_bounds),
        cmocka_unit_test(test_measured),      cmocka_unit_test(test_allocations),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
