/* SPDX-License-Identifier: Apache-2.0 */
/* The worker threads: cut, submit, reap, continue what came back short, account. */
#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "io/internal.h"
#include "os/clock.h"
#include "os/sys.h"
#include "os/thread.h"

enum {
    GRAB = 256,          /* pieces cut at a time: others want the lock too */
    MAX_REFUSALS = 1000, /* in a row, for EAGAIN, a pause apart after the first few: about a second */
    FREE_REFUSALS = 8,
    PAUSE_NS = 1000000,
    LOOKS = 32 /* at the doorbell between two looks at the clock */
};

/* ---- cutting; the lock is held ---- */

static pst_io_shape shape_of(const pst_io *io, const pst_io_file *file)
{
    uint64_t block = io->block_bytes;
    if (block < file->offset_align)
        block = file->offset_align;
    if (block < io->page_bytes)
        block = io->page_bytes;
    return (pst_io_shape){.direct = atomic_load_explicit(&file->direct, memory_order_relaxed),
                          .offset_align = file->offset_align,
                          .memory_align = file->memory_align,
                          .page_bytes = io->page_bytes,
                          .bounce_bytes = io->bounce_bytes,
                          .block_bytes = block};
}

static void cut_piece(worker *w, pst_io_batch *batch, piece *p)
{
    pst_io *io = w->io;
    const pst_io_op *op = &batch->ops[batch->op];
    pst_io_run run = pst_io_file_run(op->file, op->offset + batch->cut_at, op->bytes - batch->cut_at);
    pst_io_shape shape = shape_of(io, run.file);
    p->request.write = op->kind == PST_IO_WRITE;
    p->cut = pst_io_cut_next(&shape, p->request.write, run.offset, run.bytes, &batch->spot);
    p->batch = batch;
    p->file = run.file;
    p->op = batch->op;
    p->at = batch->cut_at;
    p->spot = batch->spot;
    char *address = pst_io_spot_address(&batch->spot);
    if (op->segment_count == 0) { /* the batch's own segment does not stay */
        p->whole = (pst_io_segment){.memory = address, .bytes = p->cut.want};
        p->spot = pst_io_spot_first(&p->whole, 1);
    }
    p->memory = p->cut.bounce ? p->bounce : address;
    p->done = 0;
    p->status = 0;
    p->retries = 0;
    p->doubted = false;
    p->request.buffer_slot = p->cut.bounce ? -1 : pst_io_region_slot(io, address, p->cut.span);
    pst_io_batch_cut(batch, p->cut.want);
}

/* How many pieces this worker may take now. With several workers each takes its share of what there is, so that one
 * large transfer is spread over all. */
static uint32_t room_of(const worker *w)
{
    const pst_io *io = w->io;
    if (!io->overlap && w->taken > 0)
        return 0;
    uint32_t most = io->overlap ? GRAB : w->depth; /* without overlap this is the only time that the queue is filled */
    if (io->workers == 1)
        return most;
    uint64_t share = (io->in_flight + io->queued_pieces + io->workers - 1) / io->workers;
    if (share <= w->taken)
        return w->taken == 0 ? 1 : 0;
    return share - w->taken < most ? (uint32_t)(share - w->taken) : most;
}

/* Cuts pieces from the first batches while there is room; the list of them is returned. */
static piece *take_pieces(worker *w)
{
    pst_io *io = w->io;
    piece *head = NULL, **tail = &head;
    uint32_t room = room_of(w), count = 0;
    while (w->free != NULL && io->first != NULL && count < room) {
        pst_io_batch *batch = io->first;
        if (pst_io_batch_drops(batch, batch->op)) {
            pst_io_batch_drop(batch);
            pst_io_batch_settle(batch);
            continue;
        }
        piece *p = w->free;
        w->free = p->next;
        cut_piece(w, batch, p);
        p->next = NULL;
        *tail = p;
        tail = &p->next;
        count++;
        if (io->in_flight++ == 0)
            io->busy_since_ns = pst_clock_ns();
    }
    w->taken += count;
    w->more = w->free != NULL && io->first != NULL && room_of(w) > 0;
    /* There were more than whoever submitted them thought. */
    if (io->first != NULL && count > 0 && io->idle > 0)
        pthread_cond_signal(&io->work);
    return head;
}

/* ---- transfers; without the lock ---- */

static void prepare_request(worker *w, piece *p)
{
    pst_io_file *file = p->file;
    p->request.address = p->memory + p->done;
    p->request.offset = p->cut.start + p->done;
    p->request.bytes = (uint32_t)(p->cut.span - p->done);
    p->request.fd = p->cut.direct ? file->direct_fd : atomic_load(&file->buffered_fd);
    p->request.file_slot = pst_io_slot_of(w, file, p->cut.direct);
}

/* The rest of the piece goes through the page cache. True when that cannot be: the piece has failed. */
static bool go_buffered(piece *p)
{
    int status = pst_io_file_need_buffered(p->file);
    if (status < 0)
        p->status = status;
    p->cut.direct = false;
    return status < 0;
}

/* A transfer was refused. True when the piece has failed, false when it shall be tried once more. */
static bool refused(worker *w, piece *p, int code)
{
    if (code == -EINTR || code == -EAGAIN) {
        if (++p->retries <= MAX_REFUSALS) {
            w->pause = w->pause || (code == -EAGAIN && p->retries > FREE_REFUSALS);
            return false;
        }
    } else if (code == -EINVAL && p->cut.direct) {
        /* Some file systems accept O_DIRECT at opening and refuse the transfer. Whether this is one of them is
         * known when the same transfer is accepted without it. */
        p->doubted = true;
        return go_buffered(p);
    }
    p->status = code;
    return true;
}

/* A direct write stopped after `moved` bytes: it goes on from the beginning of the page in which it stopped. That page may
 * hold the end of the file, and a buffered write further behind then makes the kernel (ext4 of 6.18) bring it into the
 * cache and write it back with what it held before. So pages are written whole; without a page of progress, through the
 * cache. True when that cannot be. */
static bool repeat_page(const pst_io *io, piece *p, uint64_t moved)
{
    uint32_t align = p->file->offset_align, unit = align > io->page_bytes ? align : io->page_bytes;
    uint64_t stopped = p->done % unit; /* direct writes begin with a unit: a page, or a sector larger than that */
    p->done -= stopped;
    return stopped >= moved && go_buffered(p);
}

/* Takes the result of a transfer in. True when the piece is finished, well or not. */
static bool advance(worker *w, piece *p)
{
    int64_t result = p->request.result;
    if (result < 0)
        return refused(w, p, (int)result);
    if ((uint64_t)result > p->cut.span - p->done) {
        p->status = -EIO; /* more than was asked for: nothing about it can be believed */
        return true;
    }
    p->done += (uint64_t)result;
    p->retries = 0;
    if (p->doubted && result > 0) { /* the end of the file, 0, proves nothing */
        p->doubted = false;
        if (atomic_load(&p->file->direct))
            pst_io_refuse_direct(p->file, "direct I/O was refused");
    }
    if (p->request.write) {
        w->gathered.bytes_written += (uint64_t)result;
        if (p->done == p->cut.span)
            return true;
        if (result == 0) {
            p->status = -EIO; /* no progress and no reason */
            return true;
        }
    } else {
        w->gathered.bytes_read += (uint64_t)result;
        if (p->done >= p->cut.skip + p->cut.want || result == 0)
            return true;
    }
    w->gathered.continued++;
    if (p->request.write && p->cut.direct)
        return repeat_page(w->io, p, (uint64_t)result);
    /* The rest of a direct transfer that stopped in the middle of a unit cannot be direct. Only a read that
     * answers 0 at exactly that place proves the end of the file. */
    if (p->cut.direct && p->done % p->file->offset_align != 0)
        return go_buffered(p);
    return false;
}

/* Copies what a bounced read brought to where it belongs. */
static void deliver(piece *p)
{
    if (!p->cut.bounce || p->request.write || p->status < 0 || p->done <= p->cut.skip)
        return;
    uint64_t got = p->done - p->cut.skip;
    pst_io_spot_scatter(p->spot, p->bounce + p->cut.skip, got < p->cut.want ? got : p->cut.want);
}

/* Takes back what the engine has done, after waiting for some if asked to; what is finished is put before `finished`,
 * the others stand in w->again. */
static piece *reap(worker *w, bool wait, piece *finished)
{
    uint32_t count = w->io->engine->reap(w->queue, w->requests, w->depth, wait);
    uint64_t now = count > 0 && w->latencies != NULL ? pst_clock_ns() : 0;
    w->with_engine -= count;
    for (uint32_t i = 0; i < count; i++) {
        piece *p = (piece *)(void *)w->requests[i];
        piece **list = &w->again;
        if (w->latencies != NULL)
            w->latencies[w->latency_count++] = now - p->submitted_ns;
        if (advance(w, p)) {
            deliver(p);
            list = &finished;
        }
        p->next = *list;
        *list = p;
    }
    return finished;
}

/* Makes fresh pieces ready; those that cannot be are put before `finished`, the others are returned. */
static piece *prepare(worker *w, piece *fresh, piece **finished)
{
    piece *ready = NULL, **tail = &ready;
    while (fresh != NULL) {
        piece *p = fresh;
        const pst_io_op *op = &p->batch->ops[p->op];
        fresh = p->next;
        p->next = NULL;
        int status = pst_io_file_prepare(op->file, p->file, p->request.write, op->offset + op->bytes, p->cut.direct);
        if (status < 0) {
            p->status = status;
            p->next = *finished;
            *finished = p;
            continue;
        }
        if (p->cut.bounce) {
            w->gathered.bounced_bytes += p->cut.want;
            if (p->request.write)
                pst_io_spot_gather(p->spot, p->bounce, p->cut.want);
        }
        *tail = p;
        tail = &p->next;
    }
    return ready;
}

static void submit(worker *w, piece *list)
{
    uint32_t count = 0;
    uint64_t now = list != NULL && w->latencies != NULL ? pst_clock_ns() : 0;
    for (; list != NULL; list = list->next) {
        prepare_request(w, list);
        list->submitted_ns = now;
        w->requests[count++] = &list->request;
    }
    w->with_engine += count;
    w->gathered.pieces += count;
    if (count > 0)
        w->io->engine->submit(w->queue, w->requests, count);
}

/* One after the other, each started before the next. */
static piece *submit_singly(worker *w, piece *list, piece *finished)
{
    while (list != NULL) {
        piece *p = list;
        list = p->next;
        p->next = NULL;
        submit(w, p);
        finished = reap(w, false, finished);
    }
    return finished;
}

/* One round with the engine; the list of finished pieces is returned. */
static piece *transfer(worker *w, piece *fresh)
{
    piece *finished = NULL, *again = w->again;
    piece *ready = prepare(w, fresh, &finished);
    if (w->pause) /* once for all that were refused, and after the others were accounted for */
        pst_sys->sleep_ns(PAUSE_NS);
    w->pause = false;
    w->again = NULL;
    if (again != NULL) {
        piece *last = again;
        while (last->next != NULL)
            last = last->next;
        last->next = ready;
        ready = again;
    }
    bool singly = w->io->single_submit && ready != NULL;
    if (singly)
        finished = submit_singly(w, ready, finished);
    else
        submit(w, ready);
    /* A wake may have ended one of the rounds of submit_singly: what it was for is looked at before waiting. */
    if (w->with_engine == 0 || singly)
        return finished;
    return reap(w, !w->more && finished == NULL && w->again == NULL, finished);
}

/* ---- accounting; the lock is held ---- */

static void account_piece(worker *w, piece *p)
{
    pst_io *io = w->io;
    pst_io_batch *batch = p->batch;
    op_state *state = &batch->states[p->op];
    uint64_t got = p->done > p->cut.skip ? p->done - p->cut.skip : 0;
    if (p->status < 0) {
        uint64_t error_at = batch->ops[p->op].offset + p->at + got;
        if (state->error == 0 || error_at < state->error_at) {
            state->error = p->status;
            state->error_at = error_at;
            state->error_file = p->file;
        }
    } else if (got < p->cut.want && p->at + got < state->end) {
        state->end = p->at + got;
    }
    if (--io->in_flight == 0)
        io->stats.busy_ns += pst_clock_ns() - io->busy_since_ns;
    w->taken--;
    pst_io_batch_account(batch, p->op, p->cut.want);
    pst_io_batch_settle(batch);
    p->next = w->free;
    w->free = p;
}

static void account(worker *w, piece *finished)
{
    pst_io_stats *total = &w->io->stats, *mine = &w->gathered;
    total->bytes_read += mine->bytes_read;
    total->bytes_written += mine->bytes_written;
    total->pieces += mine->pieces;
    total->bounced_bytes += mine->bounced_bytes;
    total->continued += mine->continued;
    *mine = (pst_io_stats){0};
    for (uint32_t i = 0; i < w->latency_count; i++)
        pst_io_histogram_add(w->io->histogram, w->latencies[i]);
    w->latency_count = 0;
    while (finished != NULL) {
        piece *next = finished->next;
        account_piece(w, finished);
        finished = next;
    }
}

/* ---- control ---- */

static int carry_out(worker *w, const control *c)
{
    switch (c->kind) {
    case CONTROL_FILE: pst_io_slot_forget(w, c->slot); return 0;
    case CONTROL_BUFFER: return w->io->engine->set_buffer(w->queue, c->slot, c->memory, c->bytes);
    }
    return 0;
}

static void follow_control(worker *w)
{
    pst_io *io = w->io;
    control *c = io->control;
    w->control_seen = io->control_seq;
    pthread_mutex_unlock(&io->lock);
    int status = carry_out(w, c);
    pthread_mutex_lock(&io->lock);
    if (status < 0 && c->status >= 0)
        c->status = status;
    if (--c->waiting == 0)
        pthread_cond_broadcast(&io->control_done);
}

static void wake_listening(worker *w)
{
    if (w->listening) {
        w->listening = false; /* one wake is enough */
        w->io->engine->wake(w->queue);
    }
}

int pst_io_control(pst_io *io, control *c)
{
    pthread_mutex_lock(&io->lock);
    if (io->stop) {
        pthread_mutex_unlock(&io->lock);
        return -ECANCELED;
    }
    c->waiting = io->workers;
    io->control = c;
    io->control_seq++;
    pthread_cond_broadcast(&io->work);
    for (uint32_t i = 0; i < io->workers; i++)
        wake_listening(&io->worker_list[i]);
    while (c->waiting > 0)
        pthread_cond_wait(&io->control_done, &io->lock);
    io->control = NULL;
    pthread_mutex_unlock(&io->lock);
    return c->status;
}

pst_io_wake pst_io_plan_wake(pst_io *io, uint64_t pieces)
{
    pst_io_wake wake = {0};
    if (io->spinning) {
        /* It looks at the list before it sleeps. */
        atomic_fetch_add_explicit(&io->doorbell, 1, memory_order_relaxed);
        if (pieces <= 1)
            return wake;
        pieces--;
    }
    wake.idle = pieces < io->idle ? (uint32_t)pieces : io->idle;
    if (pieces <= io->idle)
        return wake;
    for (uint32_t i = 0; i < io->workers; i++) {
        worker *w = &io->worker_list[i];
        wake.listening |= (uint64_t)w->listening << i;
        w->listening = false; /* one wake is enough */
    }
    return wake;
}

void pst_io_carry_out_wake(pst_io *io, const pst_io_wake *wake)
{
    for (uint32_t i = 0; i < wake->idle; i++)
        pthread_cond_signal(&io->work);
    for (uint64_t left = wake->listening; left != 0; left &= left - 1)
        io->engine->wake(io->worker_list[__builtin_ctzll(left)].queue);
}

/* ---- the thread ---- */

static bool rung(pst_io *io, unsigned seen)
{
    return atomic_load_explicit(&io->doorbell, memory_order_relaxed) != seen;
}

/* Looks out for work for `limit_ns`, without the lock. One worker at a time is enough. */
static void look_out(pst_io *io, uint32_t limit_ns)
{
    unsigned seen = atomic_load_explicit(&io->doorbell, memory_order_relaxed);
    io->spinning = true;
    pthread_mutex_unlock(&io->lock);
    uint64_t start = pst_clock_ns();
    do {
        for (int i = 0; i < LOOKS && !rung(io, seen); i++)
            pst_io_relax();
    } while (!rung(io, seen) && pst_clock_ns() - start < limit_ns);
    pst_io_lookout_end(&io->work_lookout, rung(io, seen));
    pthread_mutex_lock(&io->lock);
    io->spinning = false;
}

/* Nothing is to be done. False when there never will be. */
static bool rest(worker *w)
{
    pst_io *io = w->io;
    if (io->stop)
        return false;
    if (!w->spun && !io->spinning && !io->closing) {
        w->spun = true;
        uint32_t limit_ns = pst_io_lookout_begin(&io->work_lookout);
        if (limit_ns > 0) {
            look_out(io, limit_ns);
            return true;
        }
    }
    io->idle++;
    pthread_cond_wait(&io->work, &io->lock);
    io->idle--;
    return true;
}

static void run(worker *w)
{
    pst_io *io = w->io;
    bool can_listen = (io->engine->flags & PST_IO_ENGINE_SYNCHRONOUS) == 0;
    for (;;) {
        if (io->control != NULL && w->control_seen != io->control_seq) {
            follow_control(w);
            continue;
        }
        piece *fresh = take_pieces(w);
        if (fresh == NULL && w->taken == 0) {
            if (!rest(w))
                return;
            continue;
        }
        w->spun = false;
        w->listening = can_listen && w->free != NULL && io->overlap;
        pthread_mutex_unlock(&io->lock);
        piece *finished = transfer(w, fresh);
        pthread_mutex_lock(&io->lock);
        w->listening = false;
        account(w, finished);
    }
}

void *pst_io_worker_main(void *argument)
{
    worker *w = argument;
    pst_io *io = w->io;
    pst_error err;
    pst_io_queue_settings settings = {.struct_size = sizeof settings,
                                      .depth = w->depth,
                                      .file_slots = PST_IO_FILE_SLOTS,
                                      .buffer_slots = PST_IO_BUFFER_SLOTS};
    pst_os_thread_prompt();
    /* Opened here and not by the creator: a ring belongs to the thread that made it. */
    int status = io->engine->open_queue(io->engine, &settings, &w->queue, &err);
    pthread_mutex_lock(&io->lock);
    io->ready++;
    if (status < 0 && io->open_status >= 0) {
        io->open_status = status;
        io->open_error = err;
    }
    pthread_cond_broadcast(&io->opened);
    if (status >= 0)
        run(w);
    pthread_mutex_unlock(&io->lock);
    if (status >= 0)
        io->engine->close_queue(w->queue);
    return NULL;
}
