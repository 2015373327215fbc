/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Waiting for batches and operations, and what became of them.
 *
 * A transfer from the page cache or a fast drive takes about as long as putting a thread to sleep and waking it, so a
 * waiter first looks out for the end for a little while, without the lock, where there is another processor for the
 * work itself. What it sees without the lock it may believe only in one direction: "done" is final.
 */
#include <errno.h>
#include <time.h>

#include "base/error.h"
#include "io/internal.h"
#include "os/clock.h"

enum {
    LOOKS = 32, /* between two looks at the clock */
    RETRY = 64, /* so many look-outs to one that is long whatever became of those before */
    SHORTEST_NS = 1000
};

typedef struct deadline {
    bool never;
    struct timespec time; /* monotonic */
} deadline;

static deadline deadline_in(uint64_t timeout_ns)
{
    uint64_t now = pst_clock_ns(), until = timeout_ns > UINT64_MAX - now ? UINT64_MAX : now + timeout_ns;
    return (deadline){.never = until == UINT64_MAX,
                      .time = {.tv_sec = (time_t)(until / 1000000000u), .tv_nsec = (long)(until % 1000000000u)}};
}

/* One sleep; false at the time limit. The lock is held. */
static bool sleep_on(pthread_cond_t *condition, pst_io *io, const deadline *until)
{
    if (until->never)
        return pthread_cond_wait(condition, &io->lock) == 0;
    return pthread_cond_timedwait(condition, &io->lock, &until->time) != ETIMEDOUT;
}

/* ---- what may be waited for ---- */

static bool batch_done(const pst_io_batch *batch)
{
    return !atomic_load_explicit(&batch->in_flight, memory_order_acquire);
}

/* The last operation counts as finished when the batch is, so that its owner may submit it again at once. */
static bool next_there(const pst_io_batch *batch)
{
    uint32_t finished = atomic_load_explicit(&batch->finished_ops, memory_order_acquire);
    return batch->handed_ops + 1 < batch->count ? finished > batch->handed_ops : batch_done(batch);
}

/* `wanted` is WANT_* or an operation. Without the lock it is never true too early, but an operation's end is seen
 * only with it. */
static bool reached(const pst_io_batch *batch, uint32_t wanted, bool locked)
{
    if (batch_done(batch))
        return true;
    if (wanted == WANT_BATCH)
        return false;
    return wanted == WANT_ANY_OP ? next_there(batch) : locked && batch->states[wanted].finished;
}

uint32_t pst_io_lookout_begin(pst_io_lookout *lookout)
{
    if (lookout->most_ns == 0)
        return 0;
    uint32_t tries = atomic_fetch_add_explicit(&lookout->tries, 1, memory_order_relaxed);
    return tries % RETRY == 0 ? lookout->most_ns : atomic_load_explicit(&lookout->now_ns, memory_order_relaxed);
}

void pst_io_lookout_end(pst_io_lookout *lookout, bool seen)
{
    uint32_t now = atomic_load_explicit(&lookout->now_ns, memory_order_relaxed);
    now = seen ? lookout->most_ns : now > SHORTEST_NS ? now / 2 : 0;
    atomic_store_explicit(&lookout->now_ns, now, memory_order_relaxed);
}

/* Looks out for it for a little while. */
static bool look_out(pst_io_batch *batch, uint32_t wanted, uint64_t timeout_ns)
{
    if (reached(batch, wanted, false))
        return true;
    pst_io_lookout *lookout = &batch->io->wait_lookout;
    uint32_t limit = timeout_ns > 0 ? pst_io_lookout_begin(lookout) : 0;
    if (limit == 0)
        return false;
    bool seen = false;
    uint64_t start = pst_clock_ns();
    do {
        for (int i = 0; i < LOOKS && !seen; i++) {
            pst_io_relax();
            seen = reached(batch, wanted, false);
        }
    } while (!seen && pst_clock_ns() - start < (limit < timeout_ns ? limit : timeout_ns));
    pst_io_lookout_end(lookout, seen);
    return seen;
}

/* False at the time limit. */
static bool wait_for(pst_io_batch *batch, uint32_t wanted, uint64_t timeout_ns)
{
    pst_io *io = batch->io;
    if (look_out(batch, wanted, timeout_ns))
        return true;
    deadline until = deadline_in(timeout_ns);
    bool awake = true;
    pthread_mutex_lock(&io->lock);
    bool there = reached(batch, wanted, true);
    if (!there && timeout_ns > 0) {
        /* One thread has a batch at a time. Should two wait all the same, both are told of everything. */
        batch->wanted = batch->waiters++ > 0 ? WANT_ANY_OP : wanted;
        while (!there && awake) {
            awake = sleep_on(&batch->done, io, &until);
            there = reached(batch, wanted, true);
        }
        batch->waiters--;
    }
    pthread_mutex_unlock(&io->lock);
    return there;
}

void pst_io_batch_join(pst_io_batch *batch)
{
    wait_for(batch, WANT_BATCH, UINT64_MAX);
}

/* ---- results ---- */

static const char *verb_of(pst_io_kind kind)
{
    switch (kind) {
    case PST_IO_READ: return "read";
    case PST_IO_WRITE: return "write";
    case PST_IO_SYNC: return "sync";
    case PST_IO_TRUNCATE: return "set the length";
    case PST_IO_PREALLOCATE: return "reserve space";
    }
    return "serve";
}

static int describe_failure(const pst_io_batch *batch, uint32_t index, pst_error *err)
{
    const pst_io_op *op = &batch->ops[index];
    const op_state *state = &batch->states[index];
    int code = (int)op->result;
    if (index == batch->ordered_failed) {
        if (err != NULL)
            *err = batch->ordered_error;
        return code;
    }
    if (code == PST_E_SHORT)
        return pst_fail_at(err, code, op->file->path, op->offset + state->end,
                           "ends before the %llu bytes wanted at %llu", (unsigned long long)op->bytes,
                           (unsigned long long)op->offset);
    uint64_t at = op->kind == PST_IO_SYNC ? PST_NO_OFFSET : state->error_at;
    if (state->error_file != NULL && state->error_file != op->file)
        return pst_fail_at(err, code, op->file->path, at, "cannot %s in %s: %s", verb_of(op->kind),
                           state->error_file->path, pst_strerror(code));
    return pst_fail_at(err, code, op->file->path, at, "cannot %s: %s", verb_of(op->kind), pst_strerror(code));
}

int pst_io_wait(pst_io_batch *batch, uint64_t timeout_ns, pst_error *err)
{
    if (!wait_for(batch, WANT_BATCH, timeout_ns))
        return 1;
    /* The operations belong to the caller, who may have let them go after an earlier wait. */
    for (uint32_t i = 0; batch->failed_ops > 0 && i < batch->count; i++) {
        if (batch->ops[i].result < 0)
            return describe_failure(batch, i, err);
    }
    return 0;
}

static int check_index(const pst_io_batch *batch, uint32_t op, pst_error *err)
{
    if (op < batch->count)
        return 0;
    return pst_fail(err, PST_E_USAGE, NULL, "there is no operation %u in an I/O batch of %u", op, batch->count);
}

int pst_io_wait_op(pst_io_batch *batch, uint32_t op, uint64_t timeout_ns, pst_error *err)
{
    PST_TRY(check_index(batch, op, err));
    if (!wait_for(batch, op, timeout_ns))
        return 1;
    return batch->ops[op].result < 0 ? describe_failure(batch, op, err) : 0;
}

int pst_io_op_error(const pst_io_batch *batch, uint32_t op, pst_error *err)
{
    PST_TRY(check_index(batch, op, err));
    pst_io *io = batch->io;
    pthread_mutex_lock(&io->lock);
    bool finished = batch->states[op].finished;
    pthread_mutex_unlock(&io->lock);
    if (!finished)
        return pst_fail(err, -EBUSY, NULL, "operation %u of the I/O batch is not finished", op);
    return batch->ops[op].result < 0 ? describe_failure(batch, op, err) : 0;
}

int pst_io_next_done(pst_io_batch *batch, uint64_t timeout_ns, uint32_t *out_op, pst_error *err)
{
    if (batch->handed_ops >= batch->count)
        return pst_fail(err, PST_E_USAGE, NULL, "all %u operations of the I/O batch were handed out", batch->count);
    if (!wait_for(batch, WANT_ANY_OP, timeout_ns))
        return 1;
    *out_op = batch->finished[batch->handed_ops++];
    return 0;
}

uint64_t pst_io_batch_completed_ns(const pst_io_batch *batch)
{
    return batch->completed_ns;
}

/* ---- several batches ---- */

static bool find_done(pst_io_batch *const *batches, uint32_t count, uint32_t *out_index)
{
    for (uint32_t i = 0; i < count; i++) {
        if (batch_done(batches[i])) {
            *out_index = i;
            return true;
        }
    }
    return false;
}

int pst_io_wait_any(pst_io_batch *const *batches, uint32_t count, uint64_t timeout_ns, uint32_t *out_index,
                    pst_error *err)
{
    if (count == 0)
        return pst_fail(err, PST_E_USAGE, NULL, "no I/O batch to wait for");
    pst_io *io = batches[0]->io;
    for (uint32_t i = 1; i < count; i++) {
        if (batches[i]->io != io)
            return pst_fail(err, PST_E_USAGE, NULL, "the I/O batches to wait for belong to different handles");
    }
    if (find_done(batches, count, out_index))
        return 0;
    deadline until = deadline_in(timeout_ns);
    bool awake = timeout_ns > 0;
    pthread_mutex_lock(&io->lock);
    bool there = find_done(batches, count, out_index);
    io->any_waiters++;
    while (!there && awake) {
        awake = sleep_on(&io->any_done, io, &until);
        there = find_done(batches, count, out_index);
    }
    io->any_waiters--;
    pthread_mutex_unlock(&io->lock);
    return there ? 0 : 1;
}

/* ---- one operation ---- */

int pst_io_transfer(pst_io *io, pst_io_op *op, pst_error *err)
{
    op_state state;
    uint32_t finished;
    pst_io_batch batch;
    pst_io_batch_init(io, &batch, &state, &finished, 1);
    int status = pst_io_submit(&batch, op, 1, err);
    if (status >= 0)
        status = pst_io_wait(&batch, UINT64_MAX, err);
    pthread_cond_destroy(&batch.done);
    return status;
}
