/* SPDX-License-Identifier: Apache-2.0 */
#include "link_runs.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

enum { MOST_PASSES = 8 };

int link_ring_create(world *w, const pst_plan *plan, pst_io *io, pst_device *device, pst_ring **out, pst_error *err)
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

uint64_t world_bytes(const world *w)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < w->tensor_count; i++)
        sum += w->tensors[i].rows * w->tensors[i].row_bytes;
    return sum;
}

static bool random_plan(const world *w, random_source *source, pst_plan *plan)
{
    uint64_t whole = world_bytes(w);
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

static void count_plan(const pst_plan *plan, link_counts *sum)
{
    sum->all_there += plan->link_bytes == 0;
    sum->some_there += plan->link_bytes > 0 && plan->device_resident_bytes > 0;
    sum->from_host += plan->link_bytes > 0 && plan->streamed_bytes == 0;
    sum->from_disk += plan->streamed_bytes > 0;
    sum->cached += plan->cache_slots > 0;
}

void link_run_passes(world *w, pst_io *io, pst_device *device, random_source *source, link_counts *sum)
{
    pst_plan plan;
    if (!random_plan(w, source, &plan))
        return;
    count_plan(&plan, sum);
    pst_error err;
    pst_ring *ring;
    assert_int_equal(link_ring_create(w, &plan, io, device, &ring, &err), 0);
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
