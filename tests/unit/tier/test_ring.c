/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ring over a real checkpoint: whatever the plan, engine and drive do, every row of every tensor arrives once per pass,
 * in order, with the bytes that the file holds.
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
#include "os/file.h"
#include "os/sys_fault.h"
#include "random_stages.h"
#include "ring_allocations.h"
#include "tier/ring.h"

#define CHECKPOINT PST_TEST_SOURCE_DIR "/tests/reference/cases/llama_bf16_sharded"

enum { MAX_STAGES = 16, MAX_TENSORS = 64 };

typedef struct fixture {
    pst_store *store;
    pst_stage stages[MAX_STAGES];
    pst_stage_tensor tensors[MAX_TENSORS];
    size_t stage_count;
    unsigned char *bytes[MAX_TENSORS]; /* what each tensor holds, read apart */
    /* where the pass is */
    uint32_t stage, tensor;
    uint64_t row;
} fixture;

static int check_part(void *context, const pst_stage *stage, const pst_part_view *part, pst_error *err)
{
    (void)err;
    fixture *f = context;
    assert_ptr_equal(stage, &f->stages[f->stage]);
    for (size_t i = 0; i < part->piece_count; i++) {
        const pst_piece *piece = &part->pieces[i];
        assert_int_equal(piece->tensor, f->tensor);
        assert_int_equal(piece->first_row, f->row);
        const pst_stage_tensor *tensor = &stage->tensors[piece->tensor];
        const unsigned char *expected = f->bytes[tensor - f->tensors] + piece->first_row * tensor->row_bytes;
        assert_memory_equal(part->memory + piece->offset, expected, piece->rows * tensor->row_bytes);
        f->row += piece->rows;
        if (f->row == tensor->rows) {
            f->row = 0;
            if (++f->tensor == stage->tensor_count) {
                f->tensor = 0;
                f->stage++;
            }
        }
    }
    return 0;
}

static int setup(void **state)
{
    fixture *f = calloc(1, sizeof *f);
    assert_non_null(f);
    pst_error err;
    assert_int_equal(pst_store_open(CHECKPOINT, &f->store, &err), 0);
    size_t count = pst_store_tensor_count(f->store);
    assert_in_range(count, MAX_STAGES, MAX_TENSORS);
    for (size_t i = 0; i < count; i++) {
        const pst_tensor *tensor = pst_store_tensor_at(f->store, i);
        uint64_t rows = tensor->rank == 2 ? tensor->shape[0] : 1;
        f->tensors[i] = (pst_stage_tensor){tensor, rows, tensor->bytes / rows};
        f->bytes[i] = malloc(tensor->bytes);
        assert_non_null(f->bytes[i]);
        assert_int_equal(pst_file_read_at(pst_store_file_path(f->store, tensor->file), tensor->offset, f->bytes[i],
                                          tensor->bytes, &err),
                         0);
    }
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    fixture *f = *state;
    for (size_t i = 0; i < MAX_TENSORS; i++)
        free(f->bytes[i]);
    pst_store_close(f->store);
    free(f);
    return 0;
}

/* Tensors dealt to stages at random; the first stage is gathered and has the first matrix. */
static void deal(fixture *f, random_source *source)
{
    size_t count = pst_store_tensor_count(f->store), next = 0;
    memset(f->stages, 0, sizeof f->stages);
    for (f->stage_count = 0; f->stage_count < MAX_STAGES && next < count; f->stage_count++) {
        size_t take = f->stage_count == 0 ? 1 : 1 + source_below(source, 4);
        if (f->stage_count == MAX_STAGES - 1 || take > count - next)
            take = count - next;
        f->stages[f->stage_count] = (pst_stage){.name = "stage",
                                                .tensors = &f->tensors[next],
                                                .tensor_count = (uint32_t)take,
                                                .gathered = f->stage_count == 0,
                                                .compute = check_part,
                                                .context = f};
        next += take;
    }
}

static pst_plan_request random_request(const fixture *f, random_source *source)
{
    pst_plan_request request = {.stages = f->stages,
                                .stage_count = f->stage_count,
                                .min_rows = 1,
                                .max_rows = 1,
                                .budget_bytes = 1ull << 24,
                                .max_resident_bytes = UINT64_MAX};
    switch (source_below(source, 4)) {
    case 0: request.max_resident_bytes = 0; break;
    case 1: request.max_resident_bytes = source_below(source, 60000); break;
    case 2: request.budget_bytes = (1ull << 18) + source_below(source, 1 << 18); break;
    default: break;
    }
    return request;
}

typedef struct rows_check {
    const fixture *f;
    const uint32_t *rows;
    int seen[128];
} rows_check;

static int check_row(void *context, size_t index, const void *row)
{
    rows_check *check = context;
    const pst_stage_tensor *tensor = &check->f->stages[0].tensors[0];
    assert_memory_equal(row, check->f->bytes[0] + check->rows[index] * tensor->row_bytes, tensor->row_bytes);
    check->seen[index]++;
    return 0;
}

static void gather_some(fixture *f, pst_ring *ring, random_source *source)
{
    uint32_t rows[128];
    size_t count = 1 + source_below(source, 128);
    rows_check check = {.f = f, .rows = rows};
    for (size_t i = 0; i < count; i++)
        rows[i] = (uint32_t)source_below(source, f->stages[0].tensors[0].rows);
    pst_error err;
    assert_int_equal(pst_ring_gather(ring, 0, rows, count, check_row, &check, &err), 0);
    for (size_t i = 0; i < count; i++)
        assert_int_equal(check.seen[i], 1);
}

/* What is there to measure arithmetic with is weights, each piece the one that it says. */
static void check_samples(const fixture *f, const pst_plan *plan, pst_ring *ring, bool measure)
{
    enum { MOST = 5 };
    pst_error err;
    double rate = -1;
    if (measure)
        assert_int_equal(pst_ring_measure(ring, 100000, &rate, &err), 0);
    if (measure)
        assert_true(plan->slots > 0 ? rate > 0 : rate == 0);
    pst_stage_part parts[MOST];
    uint32_t count = pst_ring_samples(ring, parts, MOST);
    assert_in_range(count, measure || plan->resident_bytes > f->stages[0].tensors[0].tensor->bytes ? 1 : 0, MOST);
    for (uint32_t i = 0; i < count; i++) {
        assert_false(parts[i].stage->gathered);
        for (size_t p = 0; p < parts[i].view.piece_count; p++) {
            const pst_piece *piece = &parts[i].view.pieces[p];
            const pst_stage_tensor *tensor = &parts[i].stage->tensors[piece->tensor];
            assert_memory_equal(parts[i].view.memory + piece->offset,
                                f->bytes[tensor - f->tensors] + piece->first_row * tensor->row_bytes,
                                piece->rows * tensor->row_bytes);
        }
    }
}

static void run_passes(fixture *f, pst_io *io, random_source *source)
{
    pst_plan_request request = random_request(f, source);
    pst_plan plan;
    pst_error err;
    if (pst_plan_create(&request, &plan, &err) < 0)
        return; /* too small a budget: test_plan.c's business */
    atomic_bool cancel = false;
    pst_ring_config config = {.store = f->store,
                              .stages = f->stages,
                              .stage_count = f->stage_count,
                              .plan = &plan,
                              .io = io,
                              .cancel = &cancel};
    pst_ring *ring;
    assert_int_equal(pst_ring_create(&config, &ring, &err), 0);
    check_samples(f, &plan, ring, source_below(source, 2));
    uint64_t passes = 1 + source_below(source, 4);
    for (uint64_t pass = 0; pass < passes; pass++) {
        f->stage = 1;
        f->tensor = 0;
        f->row = 0;
        if (source_below(source, 2))
            gather_some(f, ring, source);
        assert_int_equal(pst_ring_pass(ring, 1, pass + 1 < passes || source_below(source, 2), &err), 0);
        assert_int_equal(f->stage, f->stage_count);
    }
    pst_ring_destroy(ring);
    pst_plan_destroy(&plan);
}

static void test_every_row_arrives(void **state)
{
    fixture *f = *state;
    random_source source = source_start("ring");
    static const char *const engines[] = {"auto", "threads"};
    for (int round = 0; round < 60; round++) {
        deal(f, &source);
        pst_io_options options = {.struct_size = sizeof options,
                                  .engine = engines[round % 2],
                                  .block_size = 4096 << source_below(&source, 9),
                                  .queue_depth = 1 + (uint32_t)source_below(&source, 32)};
        pst_io *io;
        pst_error err;
        assert_int_equal(pst_io_open(&options, &io, &err), 0);
        run_passes(f, io, &source);
        pst_io_close(io);
    }
}

static void test_cancel(void **state)
{
    fixture *f = *state;
    random_source source = source_start("cancel");
    deal(f, &source);
    pst_io_options options = {.struct_size = sizeof options};
    pst_io *io;
    assert_int_equal(pst_io_open(&options, &io, NULL), 0);
    pst_plan_request request = {
        .stages = f->stages, .stage_count = f->stage_count, .min_rows = 1, .max_rows = 1, .budget_bytes = 1ull << 22};
    pst_plan plan;
    assert_int_equal(pst_plan_create(&request, &plan, NULL), 0);
    atomic_bool cancel = true;
    pst_ring_config config = {.store = f->store,
                              .stages = f->stages,
                              .stage_count = f->stage_count,
                              .plan = &plan,
                              .io = io,
                              .cancel = &cancel};
    pst_ring *ring;
    assert_int_equal(pst_ring_create(&config, &ring, NULL), 0);
    pst_error err;
    assert_int_equal(pst_ring_pass(ring, 1, true, &err), PST_E_CANCELLED);
    pst_ring_destroy(ring);
    pst_plan_destroy(&plan);
    pst_io_close(io);
}

static void test_allocation_failures(void **state)
{
    fixture *f = *state;
    random_source source = source_start("ring allocations");
    deal(f, &source);
    pst_io_options options = {.struct_size = sizeof options, .engine = "threads"};
    pst_io *io;
    assert_int_equal(pst_io_open(&options, &io, NULL), 0);
    pst_plan_request request = {.stages = f->stages,
                                .stage_count = f->stage_count,
                                .min_rows = 1,
                                .max_rows = 1,
                                .budget_bytes = 1ull << 22,
                                .max_resident_bytes = 30000};
    pst_plan plan;
    assert_int_equal(pst_plan_create(&request, &plan, NULL), 0);
    atomic_bool cancel = false;
    pst_ring_config config = {.store = f->store,
                              .stages = f->stages,
                              .stage_count = f->stage_count,
                              .plan = &plan,
                              .io = io,
                              .cancel = &cancel};
    check_ring_allocations(&config);
    pst_plan_destroy(&plan);
    pst_io_close(io);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_every_row_arrives, setup, teardown),
        cmocka_unit_test_setup_teardown(test_cancel, setup, teardown),
        cmocka_unit_test_setup_teardown(test_allocation_failures, setup, teardown),
    };
    return cmocka_run_group_tests_name("ring", tests, NULL, NULL);
}
