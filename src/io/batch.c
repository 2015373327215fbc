/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Batches: submission, the cursor that goes through the operations, cancelling, and the result of every operation.
 * Waiting is in wait.c, ordered operations are in ordered.c.
 */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "base/error.h"
#include "base/heap.h"
#include "io/internal.h"
#include "os/clock.h"
#include "os/sys.h"

void pst_io_batch_init(pst_io *io, pst_io_batch *batch, op_state *states, uint32_t *finished, uint32_t max_ops)
{
    memset(batch, 0, offsetof(pst_io_batch, ordered_error)); /* which is written before it is read, and is large */
    batch->io = io;
    batch->states = states;
    batch->finished = finished;
    batch->max_ops = max_ops;
    batch->notify_fd = batch->next_notify_fd = -1;
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&batch->done, &attributes);
    pthread_condattr_destroy(&attributes);
}

int pst_io_batch_create(pst_io *io, uint32_t max_ops, pst_io_batch **out, pst_error *err)
{
    pst_io_batch *batch = pst_heap_alloc(sizeof *batch);
    op_state *states = pst_heap_calloc(max_ops, sizeof *states);
    uint32_t *finished = pst_heap_calloc(max_ops, sizeof *finished);
    if (batch == NULL || states == NULL || finished == NULL) {
        pst_heap_free(batch);
        pst_heap_free(states);
        pst_heap_free(finished);
        return pst_fail_memory(err, "an I/O batch",
                               sizeof *batch + (size_t)max_ops * (sizeof *states + sizeof *finished));
    }
    pst_io_batch_init(io, batch, states, finished, max_ops);
    pst_io_retain(io);
    *out = batch;
    return 0;
}

void pst_io_batch_destroy(pst_io_batch *batch)
{
    if (batch == NULL)
        return;
    /* Not pst_io_wait: the operations belong to the caller, who may have let them go when they were done. */
    pst_io_batch_join(batch);
    pthread_cond_destroy(&batch->done);
    pst_io_release(batch->io);
    pst_heap_free(batch->finished);
    pst_heap_free(batch->states);
    pst_heap_free(batch);
}

int pst_io_batch_notify(pst_io_batch *batch, int event_fd, pst_error *err)
{
    if (event_fd < -1)
        return pst_fail(err, PST_E_USAGE, NULL, "%d is no eventfd", event_fd);
    batch->next_notify_fd = event_fd;
    return 0;
}

/* ---- the list; the lock is held ---- */

static void unlist(pst_io *io, pst_io_batch *batch)
{
    if (batch->before != NULL)
        batch->before->next = batch->next;
    else
        io->first = batch->next;
    if (batch->next != NULL)
        batch->next->before = batch->before;
    else
        io->last = batch->before;
}

/* At its place by sequence, looked for from the end: a new one is the last. */
static void enlist(pst_io *io, pst_io_batch *batch)
{
    pst_io_batch *before = io->last;
    while (before != NULL && before->sequence > batch->sequence)
        before = before->before;
    batch->before = before;
    batch->next = before != NULL ? before->next : io->first;
    if (before != NULL)
        before->next = batch;
    else
        io->first = batch;
    if (batch->next != NULL)
        batch->next->before = batch;
    else
        io->last = batch;
}

/* ---- operations; the lock is held ---- */

/* How many pieces an operation will be cut into, the ragged ends left aside. */
static uint64_t pieces_of(const pst_io *io, const pst_io_op *op)
{
    return pst_io_is_ordered(op->kind) || op->bytes == 0 ? 0 : 1 + (op->bytes - 1) / io->block_bytes;
}

bool pst_io_batch_drops(const pst_io_batch *batch, uint32_t op)
{
    const op_state *state = &batch->states[op];
    return state->error != 0 || state->end < batch->ops[op].bytes;
}

static int64_t result_of(const pst_io_op *op, const op_state *state)
{
    if (state->error != 0)
        return state->error;
    if (pst_io_is_ordered(op->kind))
        return 0;
    return state->end < op->bytes && !op->may_be_short ? PST_E_SHORT : (int64_t)state->end;
}

static void finish_op(pst_io_batch *batch, uint32_t index)
{
    pst_io_op *op = &batch->ops[index];
    op_state *state = &batch->states[index];
    op->result = result_of(op, state);
    batch->failed_ops += op->result < 0;
    batch->under_way -= state->started;
    state->finished = true;
    uint32_t count = atomic_load_explicit(&batch->finished_ops, memory_order_relaxed);
    batch->finished[count] = index;
    atomic_store_explicit(&batch->finished_ops, count + 1, memory_order_release);
    if (--batch->unfinished_ops > 0 && batch->waiters > 0 && (batch->wanted == index || batch->wanted == WANT_ANY_OP))
        pthread_cond_broadcast(&batch->done);
}

void pst_io_batch_settle(pst_io_batch *batch)
{
    pst_io *io = batch->io;
    if (batch->unfinished_ops > 0)
        return;
    io->ordered_batches -= batch->has_ordered;
    if (--io->batches == 0 && io->closing)
        pthread_cond_broadcast(&io->drained);
    if (io->any_waiters > 0)
        pthread_cond_broadcast(&io->any_done);
    if (batch->waiters > 0)
        pthread_cond_broadcast(&batch->done);
    batch->completed_ns = pst_clock_ns();
    /* Under the lock, so that who is told finds it done: they take the lock before they believe the opposite. */
    if (batch->notify_fd >= 0)
        pst_sys->eventfd_write(batch->notify_fd);
    atomic_store_explicit(&batch->in_flight, false, memory_order_release);
}

static void start_op(pst_io_batch *batch)
{
    op_state *state = &batch->states[batch->op];
    batch->under_way += !state->started;
    state->started = true;
}

/* Sets the cursor to the beginning of its operation, once. */
static void enter_op(pst_io_batch *batch)
{
    const pst_io_op *op = &batch->ops[batch->op];
    if (batch->entered == batch->op)
        return;
    batch->entered = batch->op;
    batch->cut_at = 0;
    batch->pieces_left = batch->states[batch->op].finished ? 0 : pieces_of(batch->io, op);
    batch->whole = (pst_io_segment){.memory = op->buffer, .bytes = op->bytes};
    batch->spot = op->segment_count > 0 ? pst_io_spot_first(op->segments, op->segment_count)
                                        : pst_io_spot_first(&batch->whole, 1);
}

static void leave_op(pst_io_batch *batch)
{
    batch->io->queued_pieces -= batch->pieces_left;
    batch->pieces_left = 0;
    batch->op++;
}

/* Finishes what needs no transfer, and says where the batch belongs. */
static pst_io_place find_place(pst_io_batch *batch)
{
    for (; batch->op < batch->count; leave_op(batch)) {
        const pst_io_op *op = &batch->ops[batch->op];
        op_state *state = &batch->states[batch->op];
        enter_op(batch);
        if (state->finished)
            continue;
        if (pst_io_is_ordered(op->kind)) {
            state->error_at = op->offset;
            if (batch->under_way > 0)
                return PLACE_PARKED;
            state->error = batch->service_status;
            if (state->error == 0)
                return PLACE_SERVED;
        } else if (batch->cut_at < op->bytes) {
            return PLACE_LISTED;
        } else if (op->bytes > 0) {
            continue; /* wholly cut */
        }
        finish_op(batch, batch->op);
    }
    return PLACE_NOWHERE;
}

void pst_io_batch_advance(pst_io_batch *batch)
{
    pst_io *io = batch->io;
    if (batch->place == PLACE_SERVED)
        return; /* the service thread moves the cursor */
    bool listed = batch->place == PLACE_LISTED;
    batch->place = find_place(batch);
    if (listed && batch->place != PLACE_LISTED)
        unlist(io, batch);
    else if (!listed && batch->place == PLACE_LISTED)
        enlist(io, batch);
    if (batch->place == PLACE_SERVED) {
        start_op(batch);
        pst_io_service_add(io, batch);
    }
}

/* After an operation was finished: what waited for it goes on. */
static void unpark(pst_io_batch *batch)
{
    if (batch->place != PLACE_PARKED || batch->under_way > 0)
        return;
    pst_io_batch_advance(batch);
    if (batch->place != PLACE_LISTED)
        return;
    pst_io_wake wake = pst_io_plan_wake(batch->io, batch->io->queued_pieces);
    pst_io_carry_out_wake(batch->io, &wake);
}

void pst_io_batch_account(pst_io_batch *batch, uint32_t op, uint64_t bytes)
{
    op_state *state = &batch->states[op];
    state->unfinished -= bytes;
    if (state->unfinished > 0)
        return;
    finish_op(batch, op);
    unpark(batch);
}

void pst_io_batch_cut(pst_io_batch *batch, uint64_t bytes)
{
    start_op(batch);
    batch->cut_at += bytes;
    if (batch->pieces_left > 0) {
        batch->pieces_left--;
        batch->io->queued_pieces--;
    }
    if (batch->cut_at < batch->ops[batch->op].bytes)
        pst_io_spot_skip(&batch->spot, bytes);
    else
        pst_io_batch_advance(batch);
}

void pst_io_batch_drop(pst_io_batch *batch)
{
    uint32_t op = batch->op;
    uint64_t rest = batch->ops[op].bytes - batch->cut_at;
    batch->cut_at += rest;
    pst_io_batch_advance(batch);
    pst_io_batch_account(batch, op, rest);
}

void pst_io_batch_served(pst_io_batch *batch, int status, const pst_error *err)
{
    uint32_t op = batch->op;
    if (status < 0) {
        batch->states[op].error = status;
        if (batch->ordered_failed == batch->count) {
            batch->ordered_failed = op;
            batch->ordered_error = *err;
        }
    }
    finish_op(batch, op);
    batch->place = PLACE_PARKED;
    unpark(batch);
}

/* ---- submission ---- */

static int check_memory(const pst_io_op *op, uint32_t index, pst_error *err)
{
    const char *path = op->file->path;
    if (op->segment_count == 0) {
        if (op->buffer == NULL && op->bytes > 0)
            return pst_fail_at(err, PST_E_USAGE, path, op->offset, "operation %u has no buffer", index);
        return 0;
    }
    if (op->buffer != NULL || op->segments == NULL)
        return pst_fail_at(err, PST_E_USAGE, path, op->offset, "operation %u has %s", index,
                           op->buffer != NULL ? "a buffer besides its segments" : "no segments where it says so");
    uint64_t left = op->bytes;
    for (uint32_t i = 0; i < op->segment_count; i++) {
        const pst_io_segment *s = &op->segments[i];
        if (s->bytes > left || (s->memory == NULL && s->bytes > 0))
            return pst_fail_at(err, PST_E_USAGE, path, op->offset, "segment %u of operation %u %s", i, index,
                               s->bytes > left ? "goes beyond its bytes" : "has no memory");
        left -= s->bytes;
    }
    if (left > 0)
        return pst_fail_at(err, PST_E_USAGE, path, op->offset, "operation %u has %llu bytes more than its segments",
                           index, (unsigned long long)left);
    return 0;
}

static int check_op(const pst_io *io, const pst_io_op *op, uint32_t index, pst_error *err)
{
    const pst_io_file *file = op->file;
    if (file == NULL || file->io != io)
        return pst_fail(err, PST_E_USAGE, NULL, "operation %u has no file of this I/O handle", index);
    bool moves = op->kind == PST_IO_READ || op->kind == PST_IO_WRITE;
    if (!moves && !pst_io_is_ordered(op->kind))
        return pst_fail_at(err, PST_E_USAGE, file->path, op->offset, "operation %u is of no known kind", index);
    if (op->kind != PST_IO_READ && op->kind != PST_IO_SYNC && !file->writable)
        return pst_fail_at(err, -EBADF, file->path, op->offset, "is open for reading only");
    if (op->kind == PST_IO_SYNC)
        return 0;
    uint64_t bytes = op->kind == PST_IO_TRUNCATE ? 0 : op->bytes;
    if (bytes > INT64_MAX || op->offset > (uint64_t)INT64_MAX - bytes)
        return pst_fail_at(err, PST_E_USAGE, file->path, op->offset, "%llu bytes from there on go beyond any file",
                           (unsigned long long)bytes);
    return moves ? check_memory(op, index, err) : 0;
}

static void set_up(pst_io_batch *batch, pst_io_op *ops, uint32_t count)
{
    batch->ops = ops;
    batch->count = batch->ordered_failed = count;
    batch->op = 0;
    batch->entered = UINT32_MAX;
    batch->place = PLACE_NOWHERE;
    batch->has_ordered = false;
    batch->service_status = 0;
    batch->notify_fd = batch->next_notify_fd;
    batch->under_way = batch->failed_ops = batch->handed_ops = 0;
    atomic_store_explicit(&batch->finished_ops, 0, memory_order_relaxed);
    batch->unfinished_ops = count;
    for (uint32_t i = 0; i < count; i++) {
        bool ordered = pst_io_is_ordered(ops[i].kind);
        batch->states[i] = (op_state){.unfinished = ops[i].bytes, .end = ops[i].bytes};
        batch->has_ordered = batch->has_ordered || ordered;
        ops[i].result = 0;
    }
}

/* Lets the workers have the batch; false when the handle was closed. */
static bool hand_over(pst_io_batch *batch, uint64_t pieces)
{
    pst_io *io = batch->io;
    pst_io_wake wake = {0};
    pthread_mutex_lock(&io->lock);
    bool closed = io->stop; /* then nobody would ever serve it */
    if (!closed) {
        atomic_store_explicit(&batch->in_flight, true, memory_order_relaxed);
        io->batches++;
        io->ordered_batches += batch->has_ordered;
        io->queued_pieces += pieces;
        batch->sequence = io->next_sequence++;
        pst_io_batch_advance(batch);
        if (batch->place == PLACE_LISTED)
            wake = pst_io_plan_wake(io, pieces);
        if (wake.listening != 0)
            atomic_fetch_add_explicit(&io->wakers, 1, memory_order_relaxed);
        pst_io_batch_settle(batch);
    }
    pthread_mutex_unlock(&io->lock);
    pst_io_carry_out_wake(io, &wake);
    if (wake.listening != 0)
        atomic_fetch_sub_explicit(&io->wakers, 1, memory_order_release);
    return !closed;
}

/* Who was told by the eventfd may be here before the last step of settling, which is done under the lock. */
static bool still_in_flight(pst_io_batch *batch)
{
    if (!atomic_load_explicit(&batch->in_flight, memory_order_acquire))
        return false;
    pthread_mutex_lock(&batch->io->lock);
    bool in_flight = atomic_load_explicit(&batch->in_flight, memory_order_relaxed);
    pthread_mutex_unlock(&batch->io->lock);
    return in_flight;
}

int pst_io_submit(pst_io_batch *batch, pst_io_op *ops, uint32_t count, pst_error *err)
{
    pst_io *io = batch->io;
    uint64_t pieces = 0;
    if (count > batch->max_ops)
        return pst_fail(err, PST_E_USAGE, NULL, "%u operations in an I/O batch of at most %u", count, batch->max_ops);
    if (still_in_flight(batch))
        return pst_fail(err, -EBUSY, NULL, "the I/O batch is in flight already");
    for (uint32_t i = 0; i < count; i++) {
        PST_TRY(check_op(io, &ops[i], i, err));
        pieces += pieces_of(io, &ops[i]);
    }
    set_up(batch, ops, count);
    if (batch->has_ordered)
        batch->service_status = pst_io_service_prepare(io);
    if (hand_over(batch, pieces))
        return 0;
    batch->count = 0; /* a wait finds nothing */
    return pst_fail(err, PST_E_USAGE, NULL, "the I/O handle was closed");
}

/* ---- cancelling; the lock is held ---- */

/* Drops what was not started of an operation. When it is the one at the cursor, the cursor moves on, and the batch
 * must be put where it belongs. */
static void cancel_op(pst_io_batch *batch, uint32_t index)
{
    const pst_io_op *op = &batch->ops[index];
    op_state *state = &batch->states[index];
    bool at_cursor = index == batch->op;
    if (state->finished || index < batch->op || (at_cursor && batch->place == PLACE_SERVED))
        return;
    if (at_cursor)
        enter_op(batch);
    uint64_t cut = at_cursor ? batch->cut_at : 0;
    bool empty = op->bytes == 0 && !pst_io_is_ordered(op->kind); /* as good as done */
    if (!empty && !pst_io_batch_drops(batch, index)) {
        state->error = PST_E_CANCELLED;
        state->error_at = op->offset + cut;
    }
    if (at_cursor)
        leave_op(batch);
    else
        batch->io->queued_pieces -= pieces_of(batch->io, op);
    state->unfinished -= op->bytes - cut;
    if (state->unfinished == 0)
        finish_op(batch, index);
}

void pst_io_cancel(pst_io_batch *batch)
{
    pst_io *io = batch->io;
    pthread_mutex_lock(&io->lock);
    if (atomic_load_explicit(&batch->in_flight, memory_order_relaxed)) {
        for (uint32_t i = batch->op; i < batch->count; i++)
            cancel_op(batch, i);
        pst_io_batch_advance(batch);
        pst_io_batch_settle(batch);
    }
    pthread_mutex_unlock(&io->lock);
}

void pst_io_cancel_op(pst_io_batch *batch, uint32_t op)
{
    pst_io *io = batch->io;
    pthread_mutex_lock(&io->lock);
    if (atomic_load_explicit(&batch->in_flight, memory_order_relaxed) && op < batch->count) {
        cancel_op(batch, op);
        if (op < batch->op) {
            bool listed = batch->place == PLACE_LISTED;
            pst_io_batch_advance(batch);
            if (!listed && batch->place == PLACE_LISTED) {
                pst_io_wake wake = pst_io_plan_wake(io, io->queued_pieces);
                pst_io_carry_out_wake(io, &wake);
            }
        }
        pst_io_batch_settle(batch);
    }
    pthread_mutex_unlock(&io->lock);
}
