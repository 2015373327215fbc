/* SPDX-License-Identifier: Apache-2.0 */
/* Batches: submission, waiting, cancelling, and the result of every operation. */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "base/error.h"
#include "base/heap.h"
#include "io/internal.h"
#include "os/clock.h"

static void init_batch(pst_io *io, pst_io_batch *batch, op_state *states, uint32_t max_ops)
{
    *batch = (pst_io_batch){.io = io, .states = states, .max_ops = max_ops};
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&batch->done, &attributes);
    pthread_condattr_destroy(&attributes);
}

/* Waits until the batch is done; false at the time limit. The lock is held. */
static bool wait_done(pst_io_batch *batch, uint64_t timeout_ns)
{
    uint64_t now = pst_clock_ns(), until = timeout_ns > UINT64_MAX - now ? UINT64_MAX : now + timeout_ns;
    struct timespec deadline = {.tv_sec = (time_t)(until / 1000000000u), .tv_nsec = (long)(until % 1000000000u)};
    while (batch->in_flight) {
        if (until == UINT64_MAX)
            pthread_cond_wait(&batch->done, &batch->io->lock);
        else if (pthread_cond_timedwait(&batch->done, &batch->io->lock, &deadline) == ETIMEDOUT)
            return !batch->in_flight;
    }
    return true;
}

int pst_io_batch_create(pst_io *io, uint32_t max_ops, pst_io_batch **out, pst_error *err)
{
    pst_io_batch *batch = pst_heap_alloc(sizeof *batch);
    op_state *states = pst_heap_calloc(max_ops, sizeof *states);
    if (batch == NULL || states == NULL) {
        pst_heap_free(batch);
        pst_heap_free(states);
        return pst_fail_memory(err, "an I/O batch", sizeof *batch + max_ops * sizeof *states);
    }
    init_batch(io, batch, states, max_ops);
    pst_io_retain(io);
    *out = batch;
    return 0;
}

void pst_io_batch_destroy(pst_io_batch *batch)
{
    if (batch == NULL)
        return;
    /* Not pst_io_wait: the operations belong to the caller, who may have let them go when they were done. */
    pthread_mutex_lock(&batch->io->lock);
    wait_done(batch, UINT64_MAX);
    pthread_mutex_unlock(&batch->io->lock);
    pthread_cond_destroy(&batch->done);
    pst_io_release(batch->io);
    pst_heap_free(batch->states);
    pst_heap_free(batch);
}

/* ---- the lock is held ---- */

bool pst_io_batch_drops(const pst_io_batch *batch, uint32_t op)
{
    const op_state *state = &batch->states[op];
    return state->error != 0 || state->end < batch->ops[op].bytes;
}

static void finish_op(pst_io_batch *batch, uint32_t index)
{
    pst_io_op *op = &batch->ops[index];
    const op_state *state = &batch->states[index];
    if (state->error != 0)
        op->result = state->error;
    else if (state->end < op->bytes && !op->may_be_short)
        op->result = PST_E_SHORT;
    else
        op->result = (int64_t)state->end;
    if (--batch->unfinished_ops > 0)
        return;
    batch->completed_ns = pst_clock_ns();
    batch->in_flight = false;
    pthread_cond_broadcast(&batch->done);
}

void pst_io_batch_account(pst_io_batch *batch, uint32_t op, uint64_t bytes)
{
    op_state *state = &batch->states[op];
    state->unfinished -= bytes;
    if (state->unfinished == 0)
        finish_op(batch, op);
}

/* ---- submission ---- */

static int check_op(const pst_io *io, const pst_io_op *op, uint32_t index, pst_error *err)
{
    const pst_io_file *file = op->file;
    if (file == NULL || file->io != io)
        return pst_fail(err, PST_E_USAGE, NULL, "operation %u has no file of this I/O handle", index);
    if (op->kind != PST_IO_READ && op->kind != PST_IO_WRITE)
        return pst_fail_at(err, PST_E_USAGE, file->path, op->offset, "operation %u is neither read nor write", index);
    if (op->bytes > INT64_MAX || op->offset > (uint64_t)INT64_MAX - op->bytes)
        return pst_fail_at(err, PST_E_USAGE, file->path, op->offset, "a transfer of %llu bytes goes beyond any file",
                           (unsigned long long)op->bytes);
    if (op->buffer == NULL && op->bytes > 0)
        return pst_fail_at(err, PST_E_USAGE, file->path, op->offset, "operation %u has no buffer", index);
    if (op->kind == PST_IO_WRITE && !file->writable)
        return pst_fail_at(err, -EBADF, file->path, op->offset, "is open for reading only");
    return 0;
}

/* About how many pieces there will be, as far as it matters for waking workers. */
static uint32_t estimate_pieces(const pst_io *io, const pst_io_op *ops, uint32_t count)
{
    uint64_t unit = io->block_bytes < io->bounce_bytes ? io->block_bytes : io->bounce_bytes, pieces = 0;
    for (uint32_t i = 0; i < count && pieces < PST_IO_MAX_WORKERS; i++)
        pieces += ops[i].bytes == 0 ? 0 : ops[i].bytes / unit + 3;
    return pieces < PST_IO_MAX_WORKERS ? (uint32_t)pieces : PST_IO_MAX_WORKERS;
}

/* Sets up the states; returns how many operations have something to move. */
static uint32_t set_up_states(pst_io_batch *batch)
{
    uint32_t busy = 0;
    for (uint32_t i = 0; i < batch->count; i++) {
        pst_io_op *op = &batch->ops[i];
        batch->states[i] = (op_state){.unfinished = op->bytes, .end = op->bytes};
        op->result = 0;
        busy += op->bytes > 0;
    }
    return busy;
}

static int fail_closed(pst_error *err)
{
    return pst_fail(err, PST_E_USAGE, NULL, "the I/O handle was closed");
}

int pst_io_submit(pst_io_batch *batch, pst_io_op *ops, uint32_t count, pst_error *err)
{
    pst_io *io = batch->io;
    if (count > batch->max_ops)
        return pst_fail(err, PST_E_USAGE, NULL, "%u operations in an I/O batch of at most %u", count, batch->max_ops);
    pthread_mutex_lock(&io->lock);
    bool in_flight = batch->in_flight, closed = io->stop;
    pthread_mutex_unlock(&io->lock);
    if (closed)
        return fail_closed(err);
    if (in_flight)
        return pst_fail(err, -EBUSY, NULL, "the I/O batch is in flight already");
    for (uint32_t i = 0; i < count; i++)
        PST_TRY(check_op(io, &ops[i], i, err));
    batch->ops = ops;
    batch->count = count;
    batch->next = NULL;
    batch->op = 0;
    batch->cut_at = 0;
    batch->unfinished_ops = set_up_states(batch);
    batch->completed_ns = 0;
    if (batch->unfinished_ops == 0) {
        batch->completed_ns = pst_clock_ns();
        return 0;
    }
    while (ops[batch->op].bytes == 0)
        batch->op++;
    uint32_t pieces = estimate_pieces(io, ops, count);
    pthread_mutex_lock(&io->lock);
    closed = io->stop; /* it may have been closed meanwhile: then nobody would ever serve the batch */
    if (!closed) {
        batch->in_flight = true;
        *io->last = batch;
        io->last = &batch->next;
        pst_io_wake_workers(io, pieces);
    }
    pthread_mutex_unlock(&io->lock);
    if (!closed)
        return 0;
    batch->count = 0; /* a wait finds nothing */
    return fail_closed(err);
}

void pst_io_cancel(pst_io_batch *batch)
{
    pst_io *io = batch->io;
    pthread_mutex_lock(&io->lock);
    pst_io_batch **at = &io->first;
    while (*at != NULL && *at != batch)
        at = &(*at)->next;
    if (*at == batch) {
        *at = batch->next;
        if (io->last == &batch->next)
            io->last = at;
        uint64_t from = batch->cut_at;
        for (uint32_t i = batch->op; i < batch->count; i++, from = 0) {
            const pst_io_op *op = &batch->ops[i];
            op_state *state = &batch->states[i];
            if (op->bytes == 0)
                continue;
            if (!pst_io_batch_drops(batch, i)) {
                state->error = PST_E_CANCELLED;
                state->error_at = op->offset + from;
            }
            pst_io_batch_account(batch, i, op->bytes - from);
        }
        if (io->first == NULL && io->in_flight == 0)
            pthread_cond_broadcast(&io->drained);
    }
    pthread_mutex_unlock(&io->lock);
}

/* ---- results ---- */

static int describe_failure(const pst_io_batch *batch, uint32_t index, pst_error *err)
{
    const pst_io_op *op = &batch->ops[index];
    const op_state *state = &batch->states[index];
    const char *path = op->file->path;
    const char *verb = op->kind == PST_IO_WRITE ? "write" : "read";
    if (op->result == PST_E_SHORT)
        return pst_fail_at(err, PST_E_SHORT, path, op->offset + state->end, "ends before the %llu bytes wanted at %llu",
                           (unsigned long long)op->bytes, (unsigned long long)op->offset);
    return pst_fail_at(err, (int)op->result, path, state->error_at, "cannot %s: %s", verb,
                       pst_strerror((int)op->result));
}

int pst_io_wait(pst_io_batch *batch, uint64_t timeout_ns, pst_error *err)
{
    pthread_mutex_lock(&batch->io->lock);
    bool done = wait_done(batch, timeout_ns);
    pthread_mutex_unlock(&batch->io->lock);
    if (!done)
        return 1;
    for (uint32_t i = 0; i < batch->count; i++) {
        if (batch->ops[i].result < 0)
            return describe_failure(batch, i, err);
    }
    return 0;
}

uint64_t pst_io_batch_completed_ns(const pst_io_batch *batch)
{
    return batch->completed_ns;
}

int pst_io_transfer(pst_io *io, pst_io_op *op, pst_error *err)
{
    op_state state;
    pst_io_batch batch;
    init_batch(io, &batch, &state, 1);
    int status = pst_io_submit(&batch, op, 1, err);
    if (status >= 0)
        status = pst_io_wait(&batch, UINT64_MAX, err);
    pthread_cond_destroy(&batch.done);
    return status;
}
