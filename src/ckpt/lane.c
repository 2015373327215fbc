/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A lane: a reader with its part of the ring, and what turns its spans into the caller's bytes. A long reading is
 * shared by several lanes, each with a thread, where copying and digesting would be slower than the drive. Lanes take
 * works in the order of the files, so that what lies near each other is read together.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/number.h"
#include "ckpt/load.h"
#include "store/safetensors.h"

enum { TAKE_WORKS = 256 }; /* works that a lane takes at once */

struct pst_ckpt_lane {
    pst_ckpt *ckpt;
    pst_span_reader *reader;
    pst_range_digest *digest;
    pst_ckpt_reading *reading;
    size_t next, end; /* works that are this lane's */
    pst_walk walk;    /* of the work before `next` */
    bool walking;
    pst_box box; /* of the span that was copied last */
    size_t box_work;
    bool has_box;
};

int pst_ckpt_lane_create(pst_ckpt *ckpt, uint64_t ring_bytes, pst_ckpt_lane **out, pst_error *err)
{
    pst_ckpt_lane *lane = pst_heap_calloc(1, sizeof *lane);
    if (lane == NULL)
        return pst_fail_memory(err, "a reader", sizeof *lane);
    int status;
    lane->ckpt = ckpt;
    PST_TRY_GOTO(failed, pst_span_reader_create(ckpt->io, ring_bytes, &lane->reader, err));
    PST_TRY_GOTO(failed, pst_range_digest_create(&lane->digest, err));
    *out = lane;
    return 0;
failed:
    pst_ckpt_lane_destroy(lane);
    return status;
}

void pst_ckpt_lane_destroy(pst_ckpt_lane *lane)
{
    if (lane == NULL)
        return;
    pst_span_reader_destroy(lane->reader);
    pst_range_digest_destroy(lane->digest);
    pst_heap_free(lane);
}

pst_span_reader *pst_ckpt_lane_reader(pst_ckpt_lane *lane)
{
    return lane->reader;
}

/* ---- operations ---- */

const pst_ckpt_storage *pst_ckpt_op_storage(const pst_ckpt *ckpt, const pst_ckpt_read_op *op)
{
    return &ckpt->storages[op->is_storage ? op->tensor : ckpt->tensors[op->tensor].storage];
}

int pst_ckpt_op_box(const pst_ckpt *ckpt, const pst_ckpt_read_op *op, pst_box *out, pst_error *err)
{
    const pst_ckpt_storage *storage = pst_ckpt_op_storage(ckpt, op);
    if (op->is_storage) {
        *out = (pst_box){.run = storage->bytes, .offset = storage->offset, .out = op->out};
        return storage->bytes > 0;
    }
    const pst_ckpt_tensor_entry *tensor = &ckpt->tensors[op->tensor];
    const pst_slice slice = {.dtype = tensor->dtype,
                             .rank = tensor->rank,
                             .shape = tensor->shape,
                             .strides = tensor->strides,
                             .offset = storage->offset + tensor->begin,
                             .start = op->start,
                             .stop = op->stop,
                             .out = op->out};
    int status = pst_box_make(&slice, out, err);
    if (status < 0)
        pst_ckpt_blame(ckpt, op, err);
    return status;
}

void pst_ckpt_blame(const pst_ckpt *ckpt, const pst_ckpt_read_op *op, pst_error *err)
{
    if (err == NULL)
        return;
    const pst_ckpt_storage *storage = pst_ckpt_op_storage(ckpt, op);
    char quoted[PST_QUOTE_BYTES], message[sizeof err->message];
    const char *name = op->is_storage ? storage->name : ckpt->tensors[op->tensor].name;
    int put = snprintf(message, sizeof message, "%s \"%s\": ", op->is_storage ? "storage" : "tensor",
                       pst_quote(name, quoted));
    snprintf(message + put, sizeof message - (size_t)put, "%s", err->message);
    memcpy(err->message, message, sizeof message);
    if (err->path[0] == '\0')
        snprintf(err->path, sizeof err->path, "%s", ckpt->files[storage->file].path);
}

/* ---- spans ---- */

/* A work's box: that of its operation, or a part of that. */
static int work_box(const pst_ckpt_reading *reading, size_t number, pst_box *out, pst_error *err)
{
    const pst_ckpt_work *work = &reading->work[number];
    int status = pst_ckpt_op_box(reading->ckpt, &reading->ops[work->op], out, err);
    if (status > 0 && work->end > 0)
        pst_box_cut(out, work->begin, work->end);
    return status;
}

static int start_work(pst_ckpt_lane *lane, size_t number, pst_error *err)
{
    pst_ckpt_reading *reading = lane->reading;
    const pst_ckpt_file *file = &lane->ckpt->files[reading->work[number].file];
    const pst_walk_limits limits = {.most = pst_span_reader_most(lane->reader),
                                    .straight = PST_SPAN_STRAIGHT_BYTES,
                                    .alignment = pst_io_file_memory_alignment(file->file)};
    pst_box box;
    int status = work_box(reading, number, &box, err);
    PST_TRY(status);
    lane->walking = status > 0;
    if (lane->walking)
        pst_walk_begin(&lane->walk, &box, &limits);
    return 0;
}

static int next_span(void *user, pst_span *out, pst_error *err)
{
    pst_ckpt_lane *lane = user;
    pst_ckpt_reading *reading = lane->reading;
    pst_stretch stretch;
    while (!lane->walking || !pst_walk_next(&lane->walk, &stretch)) {
        lane->walking = false;
        if (atomic_load_explicit(&reading->failed, memory_order_relaxed))
            return PST_E_CANCELLED; /* another lane has told why */
        if (lane->next == lane->end) {
            size_t step = pst_min(TAKE_WORKS, 1 + reading->count / (4 * (size_t)reading->lane_count));
            lane->next = atomic_fetch_add_explicit(&reading->next, step, memory_order_relaxed);
            if (lane->next >= reading->count) {
                lane->end = lane->next;
                return 0;
            }
            lane->end = pst_min(reading->count, lane->next + step);
        }
        PST_TRY(start_work(lane, lane->next++, err));
    }
    *out = (pst_span){.file = lane->ckpt->files[reading->work[lane->next - 1].file].file,
                      .offset = stretch.offset,
                      .bytes = stretch.bytes,
                      .memory = stretch.straight ? stretch.out : NULL,
                      .item = lane->next - 1,
                      .place = stretch.out,
                      .level = stretch.level,
                      .count = stretch.count};
    return 1;
}

/* The next bytes of a storage that is read whole. */
static int check(pst_ckpt_lane *lane, const pst_span *span, const void *data, pst_error *err)
{
    const pst_ckpt_read_op *op = &lane->reading->ops[lane->reading->work[span->item].op];
    const pst_ckpt_storage *storage = pst_ckpt_op_storage(lane->ckpt, op);
    const pst_ckpt_file *file = &lane->ckpt->files[storage->file];
    char digits[PST_DIGEST_DIGITS];
    if (span->offset == storage->offset)
        pst_range_digest_begin(lane->digest, &file->digests, storage->offset, storage->bytes);
    pst_range_digest_add(lane->digest, data, span->bytes);
    if (span->offset + span->bytes < storage->offset + storage->bytes)
        return 0;
    pst_range_digest_end(lane->digest, digits);
    if (memcmp(digits, storage->digest, sizeof digits) == 0)
        return 0;
    int status = pst_fail_at(err, PST_E_FORMAT, file->path, storage->offset,
                             "damaged: the digest of its %" PRIu64 " bytes does not fit", storage->bytes);
    pst_ckpt_blame(lane->ckpt, op, err);
    return status;
}

static int take_span(void *user, const pst_span *span, void *data, pst_error *err)
{
    pst_ckpt_lane *lane = user;
    if (span->memory == NULL) {
        const pst_stretch stretch = {.offset = span->offset,
                                     .bytes = span->bytes,
                                     .out = span->place,
                                     .level = span->level,
                                     .count = span->count};
        if (!lane->has_box || lane->box_work != span->item) {
            PST_TRY(work_box(lane->reading, span->item, &lane->box, err));
            lane->box_work = span->item;
            lane->has_box = true;
        }
        pst_box_copy(&lane->box, &stretch, data);
    }
    return lane->reading->work[span->item].checked ? check(lane, span, data, err) : 0;
}

static void blame_span(void *user, const pst_span *span, pst_error *err)
{
    pst_ckpt_lane *lane = user;
    pst_ckpt_blame(lane->ckpt, &lane->reading->ops[lane->reading->work[span->item].op], err);
}

void pst_ckpt_lane_run(pst_ckpt_lane *lane, pst_ckpt_reading *reading)
{
    const pst_span_user user = {.next = next_span, .take = take_span, .blame = blame_span, .user = lane};
    lane->reading = reading;
    lane->next = lane->end = 0;
    lane->walking = lane->has_box = false;
    pst_error failure;
    int status = pst_span_reader_run(lane->reader, &user, &failure);
    if (status < 0 && !atomic_exchange(&reading->failed, true)) {
        reading->status = status;
        reading->failure = failure;
    }
}
