/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ring with a device behind it, one that pretends to be an accelerator: whatever stays on it, on the host, in the cache or
 * nowhere, and however late it does its work, every stage computes with the bytes of the file. No failure of any call of the
 * device goes unnoticed, and none leaves anything behind.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/heap.h"
#include "device/fault.h"
#include "link_runs.h"
#include "os/thread.h"

enum { MODELS = 5, ROUNDS = 16 };

static pst_pool *pool;

static pst_device *device_make(pst_device_fault *fault, bool late)
{
    pst_device *host, *device;
    *fault = (pst_device_fault){.separate = true, .late = late};
    assert_int_equal(pst_device_host_create(pool, NULL, &host, NULL), 0);
    assert_int_equal(pst_device_fault_create(fault, host, &device, NULL), 0);
    return device;
}

static void device_free(pst_device *device, const pst_device_fault *fault)
{
    pst_device_destroy(device);
    if (fault->misuses > 0)
        fail_msg("%s", fault->misuse);
    assert_int_equal(pst_device_fault_held(fault), 0);
}

static void test_bytes_arrive(void **state)
{
    (void)state;
    random_source source = source_start("link");
    link_counts sum = {0};
    for (int model = 0; model < MODELS; model++) {
        world *w =
            world_make(&source, 1 + (uint32_t)source_below(&source, 5), 2 + (uint32_t)source_below(&source, 12),
                       ((uint32_t)(1 + source_below(&source, 24)) << 10) + 64 * (uint32_t)source_below(&source, 16));
        for (int round = 0; round < ROUNDS; round++) {
            pst_device_fault fault;
            pst_device *device = device_make(&fault, round % 4 != 0);
            pst_io *io = world_open_io(round % 2 ? "auto" : "threads");
            w->guessing = (guessing)source_below(&source, GUESSINGS);
            link_run_passes(w, io, device, &source, &sum);
            pst_io_close(io);
            device_free(device, &fault);
        }
        world_free(w);
    }
    assert_true(sum.all_there && sum.some_there && sum.from_host && sum.from_disk && sum.cached);
}

/* ---- failures ---- */

/* A ring's life of a few passes; its first failure. */
static int live(world *w, const pst_plan *plan, pst_io *io, pst_device *device, pst_error *err)
{
    pst_ring *ring = NULL;
    int status = link_ring_create(w, plan, io, device, &ring, err);
    if (status < 0)
        return status;
    for (uint32_t pass = 0; pass < 3 && status >= 0; pass++) {
        world_begin_pass(w);
        memset(w->wanted, 1, sizeof w->wanted);
        status = pst_ring_pass(ring, 1, pass < 2, err);
    }
    /* Whoever fetches results waits: nothing that failed before can be hidden from it. */
    int landed = status < 0 ? 0 : world_check_landed(w);
    pst_ring_destroy(ring);
    if (status >= 0 && landed < 0)
        *err = (pst_error){.code = landed};
    return status < 0 ? status : landed;
}

static void fail_in_turn(world *w, const pst_plan *plan, pst_io *io, pst_device_call kind, bool deferred, bool late)
{
    for (int64_t n = 0;; n++) {
        assert_true(n < 5000);
        int64_t live_count = pst_heap_live_count();
        pst_device_fault fault;
        pst_device *device = device_make(&fault, late);
        world_use_device(w, device, 3);
        pst_error err = {0};
        pst_device_fault_fail(&fault, kind, n, 1, -EIO);
        fault.plan[kind].deferred = deferred;
        int status = live(w, plan, io, device, &err);
        bool struck = fault.failures > 0;
        fault.plan[kind].times = 0;
        if (struck && status != -EIO)
            fail_msg("call %lld of kind %d failed, and nobody was told", (long long)n, (int)kind);
        assert_true(struck || status == 0);
        world_leave_device(w);
        device_free(device, &fault);
        assert_int_equal(pst_heap_live_count(), live_count);
        if (!struck)
            return;
    }
}

/* A world whose plan keeps weights on the device and streams others. Nearly every one is; where the only large part of a small
 * one just does not fit, another is drawn. */
static world *make_mixed(random_source *source, uint32_t min_stages, uint32_t max_stages, pst_plan *out)
{
    for (int i = 0; i < 100; i++) {
        world *w = world_make(source, min_stages, max_stages, 8192);
        const uint64_t whole = world_bytes(w);
        const pst_plan_request request = {.stages = w->stages,
                                          .stage_count = w->stage_count,
                                          .min_rows = 1,
                                          .max_rows = 1,
                                          .max_slot_bytes = 1 << 15,
                                          .budget_bytes = whole,
                                          .max_resident_bytes = whole * 2 / 3,
                                          .max_cache_bytes = UINT64_MAX,
                                          .device_budget_bytes = whole / 2};
        if (pst_plan_create(&request, out, NULL) == 0) {
            if (out->device_resident_bytes > 0 && out->streamed_bytes > 0)
                return w;
            pst_plan_destroy(out);
        }
        world_free(w);
    }
    fail_msg("no world of a hundred is mixed");
    return NULL;
}

static void test_failing_calls(void **state)
{
    (void)state;
    random_source source = source_start("failing device");
    pst_plan plan;
    world *w = make_mixed(&source, 2, 4, &plan);
    w->guessing = NO_GUESS;
    pst_io *io = world_open_io("threads");
    static const pst_device_call at_once[] = {PST_DEVICE_ALLOCATE, PST_DEVICE_REGISTER, PST_DEVICE_CREATE,
                                              PST_DEVICE_RECORD,   PST_DEVICE_QUERY,    PST_DEVICE_WAIT,
                                              PST_DEVICE_COPY};
    for (size_t i = 0; i < sizeof at_once / sizeof at_once[0]; i++)
        fail_in_turn(w, &plan, io, at_once[i], false, i % 2);
    fail_in_turn(w, &plan, io, PST_DEVICE_COPY, true, false);
    fail_in_turn(w, &plan, io, PST_DEVICE_COPY, true, true);
    pst_io_close(io);
    pst_plan_destroy(&plan);
    world_free(w);
}

static void test_allocation_failures(void **state)
{
    (void)state;
    random_source source = source_start("link allocations");
    pst_plan plan;
    world *w = make_mixed(&source, 3, 6, &plan);
    pst_io *io = world_open_io("threads");
    for (int64_t n = 0, status = -ENOMEM; status != 0; n++) {
        int64_t live_count = pst_heap_live_count();
        pst_device_fault fault;
        pst_device *device = device_make(&fault, false);
        pst_ring *ring = NULL;
        pst_error err;
        pst_heap_fail_after(n, 0);
        status = link_ring_create(w, &plan, io, device, &ring, &err);
        pst_heap_fail_after(-1, 0);
        pst_ring_destroy(ring);
        device_free(device, &fault);
        assert_int_equal(pst_heap_live_count(), live_count);
        assert_true(status == 0 || status == -ENOMEM);
        assert_true(n < 10000);
    }
    pst_plan_destroy(&plan);
    pst_io_close(io);
    world_free(w);
}

/* A plan for a device and no device, and the other way round. */
static void test_other_device(void **state)
{
    (void)state;
    random_source source = source_start("other device");
    world *w = world_make(&source, 1, 3, 4096);
    pst_device_fault fault;
    pst_device *device = device_make(&fault, false);
    pst_io *io = world_open_io("threads");
    pst_plan_request request = {.stages = w->stages,
                                .stage_count = w->stage_count,
                                .min_rows = 1,
                                .max_rows = 1,
                                .budget_bytes = 1 << 24,
                                .max_resident_bytes = UINT64_MAX};
    for (int with = 0; with < 2; with++) {
        pst_plan plan;
        pst_ring *ring = NULL;
        pst_error err;
        request.device_budget_bytes = with ? 1 << 23 : 0;
        assert_int_equal(pst_plan_create(&request, &plan, NULL), 0);
        assert_int_equal(link_ring_create(w, &plan, io, with ? NULL : device, &ring, &err), PST_E_USAGE);
        pst_plan_destroy(&plan);
    }
    pst_io_close(io);
    device_free(device, &fault);
    world_free(w);
}

static int set_up(void **state)
{
    (void)state;
    return pst_pool_create(1, &pool, NULL);
}

static int tear_down(void **state)
{
    (void)state;
    pst_pool_destroy(pool);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bytes_arrive),
        cmocka_unit_test(test_failing_calls),
        cmocka_unit_test(test_allocation_failures),
        cmocka_unit_test(test_other_device),
    };
    return cmocka_run_group_tests_name("link", tests, set_up, tear_down);
}
