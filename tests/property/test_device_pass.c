/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Passes on a device whose memory the host cannot touch and whose work is done late (device/fault.h): every stored model gives
 * the bits that it gives on the host, however its weights are cut; routing is recorded and replaced as on the host; the
 * memory is what was measured; and whatever fails of the device's calls, at whichever turn, gives an error and leaves nothing.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/heap.h"
#include "device/fault.h"
#include "os/file.h"
#include "property/device_pass.h"
#include "support/random.h"

#define CASES PST_TEST_SOURCE_DIR "/tests/reference/cases"

static pst_pool *pool;
static pst_device *host;

static pst_device *make_device(pst_device_fault *fault)
{
    pst_device *inner, *device;
    pst_error err;
    assert_int_equal(pst_device_host_create(pool, NULL, &inner, &err), 0);
    fault->separate = true;
    if (pst_device_fault_create(fault, inner, &device, &err) < 0)
        fail_msg("%s", err.message);
    return device;
}

static scene_result compute(const scene *s, const char *name, const scene_run *run)
{
    scene_result result;
    pst_error err;
    if (scene_compute(s, run, &result, &err) < 0)
        fail_msg("%s: %s", name, err.message);
    return result;
}

/* The same on the host and on a device, with types of chance. */
static void compare(const char *name, scene_run run)
{
    scene s;
    scene_open(&s, name);
    run.seed = random_below(UINT64_MAX);
    run.passes = 10;
    run.device = run.host = host;
    scene_result expected = compute(&s, name, &run);
    for (int late = 0; late < 2; late++) {
        pst_device_fault fault = {.late = late == 1};
        run.device = make_device(&fault);
        run.cut = late == 1 || random_below(2) == 0;
        run.keep = s.model->transformer.experts > 0 && random_below(3) > 0;
        scene_result result = compute(&s, name, &run);
        if (fault.misuses > 0)
            fail_msg("%s: %s", name, fault.misuse);
        assert_int_equal(pst_device_fault_held(&fault), 0);
        assert_true(result.count > 0);
        assert_int_equal(result.count, expected.count);
        for (size_t i = 0; i < result.count; i++)
            if (memcmp(result.logits + i, expected.logits + i, sizeof(float)) != 0)
                fail_msg("%s: other bits than on the host (%s): number %zu of %zu is %g instead of %g", name,
                         late ? "late" : "at once", i, result.count, (double)result.logits[i],
                         (double)expected.logits[i]);
        assert_int_equal(result.routing_count, expected.routing_count);
        if (result.routing_count > 0)
            assert_memory_equal(result.routing, expected.routing, result.routing_count * sizeof(uint32_t));
        /* What was taken is what was said, and not much less, unless there is room for passes of more rows. */
        const uint64_t most = fault.peak_bytes[PST_MEMORY_DEVICE], slack = 20000;
        const pst_transformer *t = &s.model->transformer;
        const bool has_places = t->experts > 5 * t->experts_per_token;
        if (!run.keep && (most > result.device_bytes || (most + slack < result.device_bytes && !has_places)))
            fail_msg("%s: %llu bytes of device memory, measured were %llu", name, (unsigned long long)most,
                     (unsigned long long)result.device_bytes);
        if (fault.peak_bytes[PST_MEMORY_HOST] > result.host_bytes)
            fail_msg("%s: %llu bytes of pinned memory, measured were %llu", name,
                     (unsigned long long)fault.peak_bytes[PST_MEMORY_HOST], (unsigned long long)result.host_bytes);
        pst_device_destroy(run.device);
        scene_free(&result);
    }
    scene_free(&expected);
    scene_close(&s);
}

static scene_run random_types(void)
{
    static const pst_kv_type types[] = {PST_KV_F32, PST_KV_F16, PST_KV_Q8, PST_KV_Q4};
    return (scene_run){.compute_type = random_below(2) ? PST_F32 : PST_BF16, .kv_type = types[random_below(4)]};
}

static void test_every_case(void **state)
{
    (void)state;
    random_start("device pass");
    char **names;
    size_t count;
    assert_int_equal(pst_file_list(CASES, NULL, &names, &count, NULL), 0);
    assert_true(count >= 30);
    for (size_t i = 0; i < count; i++)
        compare(names[i], random_types());
    pst_file_list_free(names, count);
}

static void test_routing(void **state)
{
    (void)state;
    static const char *const names[] = {"mixtral", "qwen3_moe_mixed_layers", "deepseek_v3", "deepseek_v2"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        scene_run run = random_types();
        run.record_routing = true;
        compare(names[i], run);
        run.routing_trace = "zipf:1";
        compare(names[i], run);
        run.record_routing = false;
        compare(names[i], run);
    }
}

/* Many experts, in passes that could have more rows than find places beside each other (PST_PLACED_ROWS). */
static void test_room(void **state)
{
    (void)state;
    static const char *const names[] = {"deepseek_v3_odd", "qwen3_moe_window"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        scene_run run = random_types();
        run.room = 6000;
        compare(names[i], run);
    }
}

/* Fails the calls of a kind one after the other; how many there were. */
static int64_t fail_calls(const scene *s, const char *name, scene_run run, pst_device_call kind, bool deferred)
{
    int64_t step = 1;
    for (int64_t turn = 0;; turn += step) {
        pst_device_fault fault = {.late = random_below(2) == 0};
        scene_result result;
        pst_error err = {0};
        pst_device_fault_fail(&fault, kind, turn, 1, kind == PST_DEVICE_ALLOCATE ? -ENOMEM : -EIO);
        fault.plan[kind].deferred = deferred;
        run.device = make_device(&fault);
        int status = scene_compute(s, &run, &result, &err);
        if (fault.failures == 0 && fault.misuses > 0) /* after a failure there may be rubbish where tables should be */
            fail_msg("%s: %s", name, fault.misuse);
        if (pst_device_fault_held(&fault) != 0)
            fail_msg("%s: %lld things are left after call %lld of kind %d failed", name,
                     (long long)pst_device_fault_held(&fault), (long long)turn, (int)kind);
        pst_device_destroy(run.device);
        if (fault.failures == 0) {
            assert_true(status == 0);
            scene_free(&result);
            return turn;
        }
        /* The last three waits, before memory is given back, have nobody to tell. */
        const bool is_told = status < 0;
        const bool is_last = kind == PST_DEVICE_SYNCHRONIZE && turn + 3 >= fault.calls[kind];
        if (!is_told && !is_last)
            fail_msg("%s: call %lld of %lld of kind %d failed and nobody said so", name, (long long)turn,
                     (long long)fault.calls[kind], (int)kind);
        if (is_told)
            assert_true(err.message[0] != '\0' && strchr(err.message, '\n') == NULL);
        else
            scene_free(&result);
        step = turn > 40 ? 1 + (int64_t)random_below(60) : 1; /* all of the first ones, then some */
    }
}

static void test_failing_calls(void **state)
{
    (void)state;
    static const char *const names[] = {"opt_350m", "deepseek_v3_odd", "gptq_4_reordered",
                                        "mixtral",  "bloom",           "llama_dynamic"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        scene s;
        scene_open(&s, names[i]);
        scene_run run = {.compute_type = PST_F32,
                         .kv_type = PST_KV_F16,
                         .host = host,
                         .passes = 2,
                         .seed = random_below(UINT64_MAX)};
        int64_t operators = 0;
        for (int kind = 0; kind < PST_DEVICE_CALLS; kind++) {
            const int64_t calls = fail_calls(&s, names[i], run, (pst_device_call)kind, false);
            operators = kind == PST_DEVICE_OPERATOR ? calls : operators;
        }
        assert_true(operators > 10);
        fail_calls(&s, names[i], run, PST_DEVICE_COPY, true);
        fail_calls(&s, names[i], run, PST_DEVICE_OPERATOR, true);
        scene_close(&s);
    }
}

/* Whatever allocation of the host fails, on the way to a pass or in it. */
static void test_failing_allocations(void **state)
{
    (void)state;
    static const char *const names[] = {"opt_350m", "deepseek_v3_odd", "qwen3_moe_window"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        scene s;
        scene_open(&s, names[i]);
        pst_device_fault fault = {.late = false};
        scene_run run = {.compute_type = PST_BF16,
                         .kv_type = PST_KV_F32,
                         .host = host,
                         .device = make_device(&fault),
                         .passes = 1,
                         .seed = random_below(UINT64_MAX),
                         .routing_trace = s.model->transformer.experts > 0 ? "uniform" : NULL,
                         .record_routing = s.model->transformer.experts > 0,
                         .keep = true};
        scene_result first = compute(&s, names[i], &run); /* the device's scratch memory grows once */
        scene_free(&first);
        const int64_t live = pst_heap_live_count();
        int status = -1;
        for (int64_t n = 0; status < 0; n++) {
            scene_result result = {0};
            pst_error err = {.code = 0};
            pst_heap_fail_after(n, 0);
            status = scene_compute(&s, &run, &result, &err);
            pst_heap_fail_after(-1, 0);
            assert_true(status == 0 || err.message[0] != '\0');
            assert_int_equal(pst_heap_live_count(), live);
            assert_int_equal(pst_device_fault_held(&fault), 0);
            assert_true(n < 5000);
            scene_free(&result);
        }
        pst_device_destroy(run.device);
        scene_close(&s);
    }
}

static int make_host(void **state)
{
    (void)state;
    return pst_pool_create(2, &pool, NULL) < 0 || pst_device_host_create(pool, NULL, &host, NULL) < 0 ? -1 : 0;
}

static int destroy_host(void **state)
{
    (void)state;
    pst_device_destroy(host);
    pst_pool_destroy(pool);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_case), cmocka_unit_test(test_routing),
                                       cmocka_unit_test(test_room), cmocka_unit_test(test_failing_calls),
                                       cmocka_unit_test(test_failing_allocations)};
    return cmocka_run_group_tests_name("device pass", tests, make_host, destroy_host);
}
