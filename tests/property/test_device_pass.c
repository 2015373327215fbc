/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Passes on a device whose memory the host cannot touch and whose work is done late (device/fault.h): every stored model gives
 * the bits that it gives on the host, however its weights are cut and wherever its keys and values lie; routing is recorded and
 * replaced as on the host; the memory is what was measured; and whatever fails of the device's calls, at whichever turn, gives an error and leaves nothing.
 */
#include <errno.h>
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
#include "device/fault.h"
#include "os/file.h"
#include "property/device_pass.h"
#include "support/random.h"

#define CASES PST_TEST_SOURCE_DIR "/tests/reference/cases"

static char folder[] = "/tmp/penstock-device-pass-XXXXXX";
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

/* Keys and values: in the device's memory, in the host's, or in a file, with windows from the smallest to more than all. */
static void place_keys(scene_run *run)
{
    run->kv_offload = random_below(2) == 0;
    run->kv_folder = random_below(3) == 0 ? folder : NULL;
    run->kv_window_bytes = random_below(2) ? 1 : random_below(1 << 17);
}

/* The same on the host and on a device, with types of chance. */
static void compare(const char *name, scene_run run)
{
    scene s;
    scene_open(&s, name);
    run.seed = random_below(UINT64_MAX);
    run.passes = 20;
    run.device = run.host = host;
    scene_result expected = compute(&s, name, &run);
    for (int turn = 0; turn < 4; turn++) {
        const int late = turn % 2;
        pst_device_fault fault = {.late = late == 1};
        if (turn >= 2)
            place_keys(&run);
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
                fail_msg("%s: other bits than on the host (%s, keys %s, window of %llu): number %zu of %zu is %g "
                         "instead of %g",
                         name, late ? "late" : "at once",
                         run.kv_folder != NULL ? "in a file"
                         : run.kv_offload      ? "in the host's memory"
                                               : "there",
                         (unsigned long long)run.kv_window_bytes, i, result.count, (double)result.logits[i],
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
    const bool is_window = run.kv_offload || run.kv_folder != NULL;
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
        /* The last three waits, before memory is given back, have nobody to tell, nor has what is written back of keys and
         * values that no pass comes to need. */
        const bool is_told = status < 0;
        const bool is_last = (kind == PST_DEVICE_SYNCHRONIZE && turn + 3 >= fault.calls[kind]) ||
                             (is_window && deferred && fault.late && kind == PST_DEVICE_COPY);
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

/* The same where keys and values come through a window, as small as can be. */
static void test_failing_windows(void **state)
{
    (void)state;
    static const char *const names[] = {"llama_gqa2", "deepseek_v3_odd", "mistral_window"};
    static const pst_device_call kinds[] = {PST_DEVICE_ALLOCATE, PST_DEVICE_CREATE, PST_DEVICE_RECORD,
                                            PST_DEVICE_QUERY,    PST_DEVICE_WAIT,   PST_DEVICE_COPY};
    for (size_t i = 0; i < sizeof names / sizeof names[0] * 2; i++) {
        scene s;
        scene_open(&s, names[i / 2]);
        scene_run run = {.compute_type = PST_F32,
                         .kv_type = PST_KV_F16,
                         .host = host,
                         .passes = 4,
                         .seed = random_below(UINT64_MAX),
                         .kv_offload = i % 2 == 0,
                         .kv_folder = i % 2 == 0 ? NULL : folder,
                         .kv_window_bytes = 1};
        for (size_t k = 0; k < sizeof kinds / sizeof kinds[0]; k++) {
            const int64_t calls = fail_calls(&s, names[i / 2], run, kinds[k], false);
            assert_true(calls > 0 || (kinds[k] != PST_DEVICE_RECORD && kinds[k] != PST_DEVICE_CREATE));
        }
        fail_calls(&s, names[i / 2], run, PST_DEVICE_COPY, true);
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
        scene_run run = {.compute_type = PST_BF16,
                         .kv_type = PST_KV_F32,
                         .host = host,
                         .passes = 1,
                         .seed = random_below(UINT64_MAX),
                         .routing_trace = s.model->transformer.experts > 0 ? "uniform" : NULL,
                         .record_routing = s.model->transformer.experts > 0,
                         .keep = true,
                         .kv_offload = i > 0,
                         .kv_folder = i == 2 ? folder : NULL,
                         .kv_window_bytes = 1};
        const int64_t live = pst_heap_live_count();
        int status = -1;
        for (int64_t n = 0; status < 0; n++) {
            pst_device_fault fault = {.late = false};
            scene_result result = {0};
            pst_error err = {.code = 0};
            run.device = make_device(&fault);
            pst_heap_fail_after(n, 0);
            status = scene_compute(&s, &run, &result, &err);
            pst_heap_fail_after(-1, 0);
            assert_true(status == 0 || err.message[0] != '\0');
            assert_int_equal(pst_device_fault_held(&fault), 0);
            pst_device_destroy(run.device);
            assert_int_equal(pst_heap_live_count(), live);
            assert_true(n < 5000);
            scene_free(&result);
        }
        scene_close(&s);
    }
}

static int make_host(void **state)
{
    (void)state;
    if (mkdtemp(folder) == NULL)
        return -1;
    return pst_pool_create(2, &pool, NULL) < 0 || pst_device_host_create(pool, NULL, &host, NULL) < 0 ? -1 : 0;
}

static int destroy_host(void **state)
{
    (void)state;
    pst_device_destroy(host);
    pst_pool_destroy(pool);
    return rmdir(folder); /* fails when something was left in it */
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_case),
                                       cmocka_unit_test(test_routing),
                                       cmocka_unit_test(test_room),
                                       cmocka_unit_test(test_failing_calls),
                                       cmocka_unit_test(test_failing_windows),
                                       cmocka_unit_test(test_failing_allocations)};
    return cmocka_run_group_tests_name("device pass", tests, make_host, destroy_host);
}
