/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading: every operation is checked before anything is read, sorted by its place in the files, and worked off by
 * one lane or several. What is long and has no digest is cut, so that lanes share it.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/number.h"
#include "ckpt/load.h"
#include "os/memory.h"

enum {
    LANE_BYTES = 32 << 20, /* less to copy or to digest is not worth another thread */
    PART_BYTES = 32 << 20  /* of an operation that lanes share */
};

/* ---- what is wanted ---- */

static int fail_op(const pst_ckpt *ckpt, const pst_ckpt_read_op *op, const char *what, pst_error *err)
{
    int status = pst_fail(err, PST_E_USAGE, NULL, "%s", what);
    pst_ckpt_blame(ckpt, op, err);
    return status;
}

static int check_slice(const pst_ckpt *ckpt, const pst_ckpt_read_op *op, pst_error *err)
{
    const pst_ckpt_tensor_entry *tensor = &ckpt->tensors[op->tensor];
    if ((op->start == NULL) != (op->stop == NULL))
        return fail_op(ckpt, op, "a slice has both a start and a stop", err);
    for (uint32_t d = 0; d < tensor->rank && op->start != NULL; d++) {
        if (op->start[d] <= op->stop[d] && op->stop[d] <= tensor->shape[d])
            continue;
        int status = pst_fail(err, PST_E_USAGE, NULL,
                              "there is no slice %" PRIu64 ":%" PRIu64 " of its dimension %" PRIu32
                              ", which has %" PRIu64 " elements",
                              op->start[d], op->stop[d], d, tensor->shape[d]);
        pst_ckpt_blame(ckpt, op, err);
        return status;
    }
    return 0;
}

static int check_op(const pst_ckpt *ckpt, const pst_ckpt_read_op *op, pst_error *err)
{
    size_t count = op->is_storage ? ckpt->storage_count : ckpt->tensor_count;
    if (op->tensor >= count)
        return pst_fail(err, PST_E_USAGE, ckpt->path, "it has no %s number %zu, only %zu",
                        op->is_storage ? "storage" : "tensor", op->tensor, count);
    return op->is_storage ? 0 : check_slice(ckpt, op, err);
}

/* Whether what the operation reads is exactly a storage, as it lies in the file. */
static bool is_whole(const pst_ckpt *ckpt, const pst_ckpt_read_op *op, const pst_box *box)
{
    const pst_ckpt_storage *storage = pst_ckpt_op_storage(ckpt, op);
    return box->dims == 0 && box->offset == storage->offset && box->run == storage->bytes;
}

/* ---- works ---- */

typedef struct work_list {
    pst_ckpt_work *works;
    size_t count, capacity;
    uint64_t cpu_bytes; /* that are copied or digested */
} work_list;

static int push(work_list *list, const pst_ckpt_work *work, pst_error *err)
{
    if (list->count == list->capacity) {
        size_t capacity = list->capacity * 2 + 16;
        pst_ckpt_work *works = pst_heap_reallocarray(list->works, capacity, sizeof *works);
        if (works == NULL)
            return pst_fail_memory(err, "a list of reads", capacity * sizeof *works);
        list->works = works;
        list->capacity = capacity;
    }
    list->works[list->count++] = *work;
    return 0;
}

/* In parts of about PART_BYTES, which begin at aligned places of the file where they can. */
static int push_parts(work_list *list, const pst_box *box, pst_ckpt_work work, pst_error *err)
{
    uint64_t parts = pst_box_parts(box), bytes = pst_box_bytes(box), step = 1;
    if (bytes / parts < PART_BYTES)
        step = PART_BYTES / (bytes / parts);
    for (uint64_t begin = 0; begin < parts; begin = work.end) {
        pst_box part = *box;
        work.begin = begin;
        work.end = begin + pst_min(step, parts - begin);
        if (box->dims == 0)
            work.end = begin + pst_span_cut(box->offset + begin, parts - begin, step);
        pst_box_cut(&part, work.begin, work.end);
        work.offset = part.offset;
        PST_TRY(push(list, &work, err));
    }
    return 0;
}

static int add_op(const pst_ckpt *ckpt, const pst_ckpt_read_op *ops, size_t index, work_list *list, pst_error *err)
{
    const pst_ckpt_read_op *op = &ops[index];
    pst_box box;
    PST_TRY(check_op(ckpt, op, err));
    int status = pst_ckpt_op_box(ckpt, op, &box, err);
    if (status <= 0)
        return status;
    if (op->out == NULL)
        return fail_op(ckpt, op, "there is no memory to read it into", err);
    const pst_ckpt_storage *storage = pst_ckpt_op_storage(ckpt, op);
    pst_memory_advise_huge(op->out, pst_box_bytes(&box));
    pst_ckpt_work work = {.offset = box.offset,
                          .op = index,
                          .file = storage->file,
                          .checked = ckpt->verify && storage->digest != NULL && is_whole(ckpt, op, &box)};
    uint32_t alignment = pst_io_file_memory_alignment(ckpt->files[work.file].file);
    bool straight = box.run >= PST_STRAIGHT_MIN_BYTES && ((uintptr_t)box.out - box.offset) % alignment == 0;
    uint64_t bytes = pst_box_bytes(&box);
    if (work.checked || !straight)
        list->cpu_bytes += bytes;
    if (work.checked || straight || bytes <= 2 * (uint64_t)PART_BYTES || ckpt->lane_count == 1)
        return push(list, &work, err);
    return push_parts(list, &box, work, err);
}

static int compare_places(const void *left, const void *right)
{
    const pst_ckpt_work *a = left, *b = right;
    if (a->file != b->file)
        return a->file < b->file ? -1 : 1;
    if (a->offset != b->offset)
        return a->offset < b->offset ? -1 : 1;
    return (a->op > b->op) - (a->op < b->op);
}

/* ---- lanes ---- */

/* Waits for a lane, takes it, and up to `wanted` of them if they and the threads are free now. */
static int take_lanes(pst_ckpt *ckpt, uint32_t wanted, pst_ckpt_reading *reading, uint32_t *numbers, bool *with_pool,
                      pst_error *err)
{
    int status = 0;
    pthread_mutex_lock(&ckpt->lock);
    while (reading->lane_count == 0) {
        for (uint32_t i = 0; i < ckpt->lane_count && reading->lane_count < wanted; i++) {
            if (ckpt->taken[i] || (reading->lane_count > 0 && ckpt->pool_taken))
                continue;
            numbers[reading->lane_count] = i;
            reading->lanes[reading->lane_count++] = ckpt->lanes[i];
            ckpt->taken[i] = true;
        }
        if (reading->lane_count == 0)
            pthread_cond_wait(&ckpt->freed, &ckpt->lock);
    }
    if (reading->lane_count > 1) {
        if (ckpt->pool == NULL)
            status = pst_pool_create(ckpt->lane_count, &ckpt->pool, err);
        *with_pool = ckpt->pool_taken = status >= 0;
    }
    pthread_mutex_unlock(&ckpt->lock);
    return status;
}

static void give_lanes(pst_ckpt *ckpt, const pst_ckpt_reading *reading, const uint32_t *numbers, bool with_pool)
{
    pthread_mutex_lock(&ckpt->lock);
    for (uint32_t i = 0; i < reading->lane_count; i++)
        ckpt->taken[numbers[i]] = false;
    if (with_pool)
        ckpt->pool_taken = false;
    pthread_cond_broadcast(&ckpt->freed);
    pthread_mutex_unlock(&ckpt->lock);
}

static void run_lane(void *context, uint32_t task, uint32_t worker)
{
    pst_ckpt_reading *reading = context;
    (void)worker;
    pst_ckpt_lane_run(reading->lanes[task], reading);
}

static int run(pst_ckpt *ckpt, pst_ckpt_reading *reading, uint64_t cpu_bytes, pst_error *err)
{
    uint32_t numbers[PST_CKPT_LANES];
    bool with_pool = false;
    uint32_t wanted = (uint32_t)pst_min(ckpt->lane_count, 1 + cpu_bytes / LANE_BYTES);
    int status = take_lanes(ckpt, wanted, reading, numbers, &with_pool, err);
    if (status >= 0) {
        if (with_pool)
            pst_pool_run(ckpt->pool, reading->lane_count, run_lane, reading);
        else
            run_lane(reading, 0, 0);
        status = reading->status;
        if (status < 0 && err != NULL)
            *err = reading->failure;
    }
    give_lanes(ckpt, reading, numbers, with_pool);
    return status;
}

int pst_ckpt_read(pst_ckpt *ckpt, const pst_ckpt_read_op *ops, size_t count, pst_error *err)
{
    work_list list = {0};
    int status;
    for (size_t i = 0; i < count; i++)
        PST_TRY_GOTO(done, add_op(ckpt, ops, i, &list, err));
    status = 0;
    if (list.count > 0) {
        qsort(list.works, list.count, sizeof *list.works, compare_places);
        pst_ckpt_reading reading = {.ckpt = ckpt, .ops = ops, .work = list.works, .count = list.count};
        status = run(ckpt, &reading, list.cpu_bytes, err);
    }
done:
    pst_heap_free(list.works);
    return status < 0 ? status : 0;
}
