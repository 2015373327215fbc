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
#include "os/thread.h"
#include "unit_world.h"

enum { MODELS = 5, ROUNDS = 16, MOST_PASSES = 8 };

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

static int ring_create(world *w, const pst_plan *plan, pst_io *io, pst_device *device, pst_ring **out, pst_error *err)
{
    const pst_ring_config config = {.store = w->store,
                                    .stages = w->stages,
                                    .stage_count = w->stage_count,
                                    .plan = plan,
                                    .io = io,
                                    .cancel = &w->cancel,
                                    .device = device};
    return pst_ring_create(&config, out, err);
}

static uint64_t whole_bytes(const world *w)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < w->tensor_count; i++)
        sum += w->tensors[i].rows * w->tensors[i].row_bytes;
    return sum;
}

static bool random_plan(const world *w, random_source *source, pst_plan *plan)
{
    uint64_t whole = whole_bytes(w);
    pst_plan_request request = {.stages = w->stages,
                                .stage_count = w->stage_count,
                                .min_rows = 1,
                                .max_rows = 1,
                                .budget_bytes = (1ull << 18) + source_below(source, 2 * whole),
                                .max_resident_bytes = UINT64_MAX,
                                .max_slot_bytes = source_below(source, 2) ? 4096 + source_below(source, 60000) : 0,
                                .units_per_row = (uint32_t)source_below(source, 3),
                                .max_cache_bytes = source_below(source, 6) ? UINT64_MAX : 0,
                                .device_budget_bytes = (1ull << 16) + source_below(source, whole + whole / 2)};
    if (source_below(source, 3) == 0) { /* a cache of few parts, which soon gives them up */
        request.max_cache_bytes = source_below(source, 100000);
        request.budget_bytes += whole;
        request.device_budget_bytes = (1ull << 16) + source_below(source, whole / 4);
        request.max_slot_bytes = 4096 + source_below(source, 20000);
        request.max_resident_bytes = source_below(source, whole);
    } else if (source_below(source, 4) == 0)
        request.max_resident_bytes = source_below(source, whole);
    pst_error err;
    return pst_plan_create(&request, plan, &err) == 0; /* too small a budget: test_plan.c's business */
}

/* What must have crossed the link in the pass that was planned last. */
static uint64_t wanted_over_link(const world *w, const pst_plan *plan)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < plan->layout.part_count; i++) {
        const pst_part *part = &plan->layout.parts[i];
        const pst_stage *stage = &w->stages[part->stage];
        bool wanted = stage->unit_count == 0 || w->wanted[part->stage][part->unit];
        if (wanted && !stage->gathered && plan->places[i] != PST_PLACE_DEVICE)
            sum += part->weight_bytes;
    }
    return sum;
}

/* Samples are the plan's parts, in the device's memory. */
static void check_samples(world *w, const pst_ring *ring)
{
    enum { MOST = 6 };
    pst_stage_part parts[MOST];
    uint32_t count = pst_ring_samples(ring, parts, MOST);
    for (uint32_t i = 0; i < count; i++)
        for (size_t p = 0; p < parts[i].view.piece_count; p++) {
            const pst_piece *piece = &parts[i].view.pieces[p];
            const pst_stage_tensor *tensor = &parts[i].stage->tensors[piece->tensor];
            uint64_t bytes = piece->rows * tensor->row_bytes;
            unsigned char *copy = malloc(bytes);
            assert_non_null(copy);
            assert_int_equal(w->device->ops->copy(w->device, NULL, copy, parts[i].view.memory + piece->offset, bytes),
                             0);
            assert_int_equal(w->device->ops->synchronize(w->device, NULL), 0);
            uint64_t at = tensor->tensor->offset + piece->first_row * tensor->row_bytes;
            for (uint64_t b = 0; b < bytes; b++)
                assert_int_equal(copy[b], world_byte(at + b));
            free(copy);
        }
}

typedef struct counts {
    uint32_t all_there, some_there, from_host, from_disk, cached;
} counts;

static void count_plan(const pst_plan *plan, counts *sum)
{
    sum->all_there += plan->link_bytes == 0;
    sum->some_there += plan->link_bytes > 0 && plan->device_resident_bytes > 0;
    sum->from_host += plan->link_bytes > 0 && plan->streamed_bytes == 0;
    sum->from_disk += plan->streamed_bytes > 0;
    sum->cached += plan->cache_slots > 0;
}

static void run_passes(world *w, pst_io *io, pst_device *device, random_source *source, counts *sum)
{
    pst_plan plan;
    if (!random_plan(w, source, &plan))
        return;
    count_plan(&plan, sum);
    pst_error err;
    pst_ring *ring;
    assert_int_equal(ring_create(w, &plan, io, device, &ring, &err), 0);
    uint32_t passes = 1 + (uint32_t)source_below(source, MOST_PASSES);
    world_use_device(w, device, passes);
    if (source_below(source, 6) == 0) {
        double disk, link;
        assert_int_equal(pst_ring_measure(ring, 100000, &disk, &err), 0);
        assert_int_equal(pst_ring_measure_link(ring, &link, &err), 0);
        assert_true((link > 0) == (plan.link_bytes > 0));
        check_samples(w, ring);
    }
    uint64_t expected = 0;
    for (uint32_t pass = 0; pass < passes; pass++) {
        world_begin_pass(w);
        world_wish(w, source);
        expected += wanted_over_link(w, &plan);
        if (pst_ring_pass(ring, 1, pass + 1 < passes, &err) < 0)
            fail_msg("%s", err.message);
        world_skip_unwanted(w);
        assert_int_equal(w->stage, w->stage_count);
        if (source_below(source, 2)) /* else the next pass begins while this one is still under way */
            assert_int_equal(world_check_landed(w), 0);
    }
    assert_int_equal(world_check_landed(w), 0);
    pst_ring_stats stats;
    pst_ring_get_stats(ring, &stats);
    assert_int_equal(stats.link_bytes, expected);
    pst_ring_destroy(ring);
    world_leave_device(w);
    pst_plan_destroy(&plan);
}

static void test_bytes_arrive(void **state)
{
    (void)state;
    random_source source = source_start("link");
    counts sum = {0};
    for (int model = 0; model < MODELS; model++) {
        world *w =
            world_make(&source, 1 + (uint32_t)source_below(&source, 5), 2 + (uint32_t)source_below(&source, 12),
                       ((uint32_t)(1 + source_below(&source, 24)) << 10) + 64 * (uint32_t)source_below(&source, 16));
        for (int round = 0; round < ROUNDS; round++) {
            pst_device_fault fault;
            pst_device *device = device_make(&fault, round % 4 != 0);
            pst_io *io = world_open_io(round % 2 ? "auto" : "threads");
            w->guessing = (guessing)source_below(&source, GUESSINGS);
            run_passes(w, io, device, &source, &sum);
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
    int status = ring_create(w, plan, io, device, &ring, err);
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

static void test_failing_calls(void **state)
{
    (void)state;
    random_source source = source_start("failing device");
    world *w = world_make(&source, 2, 4, 8192);
    w->guessing = NO_GUESS;
    uint64_t whole = whole_bytes(w);
    pst_plan_request request = {.stages = w->stages,
                                .stage_count = w->stage_count,
                                .min_rows = 1,
                                .max_rows = 1,
                                .max_slot_bytes = 1 << 15,
                                .budget_bytes = whole,
                                .max_resident_bytes = whole * 2 / 3,
                                .max_cache_bytes = UINT64_MAX,
                                .device_budget_bytes = whole / 2};
    pst_plan plan;
    pst_error err;
    assert_int_equal(pst_plan_create(&request, &plan, &err), 0);
    assert_true(plan.device_resident_bytes > 0 && plan.streamed_bytes > 0);
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
    world *w = world_make(&source, 3, 6, 8192);
    uint64_t whole = whole_bytes(w);
    pst_io *io = world_open_io("threads");
    pst_plan_request request = {.stages = w->stages,
                                .stage_count = w->stage_count,
                                .min_rows = 1,
                                .max_rows = 1,
                                .max_slot_bytes = 1 << 15,
                                .budget_bytes = whole,
                                .max_resident_bytes = whole * 2 / 3,
                                .max_cache_bytes = UINT64_MAX,
                                .device_budget_bytes = whole / 2};
    pst_plan plan;
    assert_int_equal(pst_plan_create(&request, &plan, NULL), 0);
    for (int64_t n = 0, status = -ENOMEM; status != 0; n++) {
        int64_t live_count = pst_heap_live_count();
        pst_device_fault fault;
        pst_device *device = device_make(&fault, false);
        pst_ring *ring = NULL;
        pst_error err;
        pst_heap_fail_after(n, 0);
        status = ring_create(w, &plan, io, device, &ring, &err);
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
        assert_int_equal(ring_create(w, &plan, io, with ? NULL : device, &ring, &err), PST_E_USAGE);
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
