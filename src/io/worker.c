/* SPDX-License-Identifier: Apache-2.0 */
/* The worker threads: cut, submit, reap, continue what came back short, account. */
#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "io/internal.h"
#include "os/clock.h"
#include "os/sys.h"

enum {
    SHARED_GRAB = 4,     /* pieces that one of several workers takes at a time, so that the others get some too */
    MAX_REFUSALS = 1000, /* in a row, for EAGAIN, a pause apart after the first few: about a second */
    FREE_REFUSALS = 8,
    PAUSE_NS = 1000000
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

/* Moves the batch's cursor by `bytes` of its operation; takes the batch out of the list at its end. */
static void move_cursor(pst_io *io, pst_io_batch *batch, uint64_t bytes)
{
    batch->cut_at += bytes;
    /* Empty operations were finished at submission: there is nothing to cut in them. */
    while (batch->op < batch->count && batch->cut_at == batch->ops[batch->op].bytes) {
        batch->op++;
        batch->cut_at = 0;
    }
    if (batch->op == batch->count) {
        io->first = batch->next;
        if (io->first == NULL)
            io->last = &io->first;
    }
}

static void cut_piece(worker *w, pst_io_batch *batch, piece *p)
{
    pst_io *io = w->io;
    const pst_io_op *op = &batch->ops[batch->op];
    pst_io_shape shape = shape_of(io, op->file);
    bool write = op->kind == PST_IO_WRITE;
    p->cut = pst_io_cut_next(&shape, write, op->offset, op->bytes, (uintptr_t)op->buffer, batch->cut_at);
    p->batch = batch;
    p->file = op->file;
    p->op = batch->op;
    p->user = (char *)op->buffer + batch->cut_at;
    p->memory = p->cut.bounce ? p->bounce : p->user;
    p->done = 0;
    p->status = 0;
    p->retries = 0;
    p->doubted = false;
    p->request.write = write;
    p->request.buffer_slot = p->cut.bounce ? -1 : pst_io_region_slot(io, p->user, p->cut.span);
    move_cursor(io, batch, p->cut.want);
}

/* Cuts pieces from the first batches while there is room; the list of them is returned. */
static piece *take_pieces(worker *w)
{
    pst_io *io = w->io;
    piece *head = NULL, **tail = &head;
    uint32_t room = io->workers > 1 ? SHARED_GRAB : UINT32_MAX;
    while (w->free != NULL && io->first != NULL && room > 0) {
        pst_io_batch *batch = io->first;
        uint32_t op = batch->op;
        if (pst_io_batch_drops(batch, op)) {
            uint64_t rest = batch->ops[op].bytes - batch->cut_at;
            move_cursor(io, batch, rest);
            pst_io_batch_account(batch, op, rest);
            continue;
        }
        piece *p = w->free;
        w->free = p->next;
        cut_piece(w, batch, p);
        p->next = NULL;
        *tail = p;
        tail = &p->next;
        room--;
        if (io->in_flight++ == 0)
            io->busy_since_ns = pst_clock_ns();
    }
    w->more = w->free != NULL && io->first != NULL;
    return head;
}

/* ---- transfers; without the lock ---- */

static void prepare_request(piece *p)
{
    const pst_io_file *file = p->file;
    p->request.address = p->memory + p->done;
    p->request.offset = p->cut.start + p->done;
    p->request.bytes = (uint32_t)(p->cut.span - p->done);
    p->request.fd = p->cut.direct ? file->direct_fd : atomic_load(&file->buffered_fd);
    p->request.file_slot = p->cut.direct ? file->direct_slot : file->buffered_slot;
}

static uint32_t gather(worker *w, piece *list, uint32_t count)
{
    for (; list != NULL; list = list->next) {
        prepare_request(list);
        w->requests[count++] = &list->request;
    }
    return count;
}

static void submit(worker *w, piece *fresh)
{
    for (piece *p = fresh; p != NULL; p = p->next) {
        if (p->cut.bounce) {
            w->gathered.bounced_bytes += p->cut.want;
            if (p->request.write)
                memcpy(p->bounce, p->user, p->cut.want);
        }
    }
    if (w->pause) /* once for all that were refused, and after the others were accounted for */
        pst_sys->sleep_ns(PAUSE_NS);
    w->pause = false;
    uint32_t count = gather(w, w->again, 0);
    count = gather(w, fresh, count);
    w->again = NULL;
    w->with_engine += count;
    w->gathered.pieces += count;
    if (count > 0)
        w->io->engine->submit(w->queue, w->requests, count);
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
    memcpy(p->user, p->bounce + p->cut.skip, got < p->cut.want ? got : p->cut.want);
}

/* Waits for the engine; the list of finished pieces is returned, the others stand in w->again. */
static piece *reap(worker *w)
{
    piece *finished = NULL;
    uint32_t count = w->io->engine->reap(w->queue, w->requests, w->depth, !w->more);
    w->with_engine -= count;
    for (uint32_t i = 0; i < count; i++) {
        piece *p = (piece *)(void *)w->requests[i];
        piece **list = &w->again;
        if (advance(w, p)) {
            deliver(p);
            list = &finished;
        }
        p->next = *list;
        *list = p;
    }
    return finished;
}

/* ---- accounting; the lock is held ---- */

static void account_piece(worker *w, piece *p)
{
    pst_io *io = w->io;
    pst_io_batch *batch = p->batch;
    const pst_io_op *op = &batch->ops[p->op];
    op_state *state = &batch->states[p->op];
    uint64_t at = p->cut.start + p->cut.skip - op->offset; /* of the operation */
    if (p->status < 0) {
        if (state->error == 0 || p->cut.start + p->done < state->error_at) {
            state->error = p->status;
            state->error_at = p->cut.start + p->done;
        }
    } else if (p->done < p->cut.skip + p->cut.want) {
        uint64_t got = p->done > p->cut.skip ? p->done - p->cut.skip : 0;
        if (at + got < state->end)
            state->end = at + got;
    }
    if (--io->in_flight == 0) {
        io->stats.busy_ns += pst_clock_ns() - io->busy_since_ns;
        if (io->first == NULL)
            pthread_cond_broadcast(&io->drained);
    }
    pst_io_batch_account(batch, p->op, p->cut.want);
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
    while (finished != NULL) {
        piece *next = finished->next;
        account_piece(w, finished);
        finished = next;
    }
}

/* ---- control ---- */

static int carry_out(const pst_io_engine *engine, void *queue, const control *c)
{
    switch (c->kind) {
    case CONTROL_FILE: return engine->set_file(queue, c->slot, c->fd);
    case CONTROL_BUFFER: return engine->set_buffer(queue, c->slot, c->memory, c->bytes);
    }
    return 0;
}

static void follow_control(worker *w)
{
    pst_io *io = w->io;
    control *c = io->control;
    w->control_seen = io->control_seq;
    pthread_mutex_unlock(&io->lock);
    int status = carry_out(io->engine, w->queue, c);
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

void pst_io_wake_workers(pst_io *io, uint32_t pieces)
{
    for (uint32_t i = 0; i < pieces && i < io->idle; i++)
        pthread_cond_signal(&io->work);
    if (pieces <= io->idle)
        return;
    for (uint32_t i = 0; i < io->workers; i++)
        wake_listening(&io->worker_list[i]);
}

/* ---- the thread ---- */

static void run(worker *w)
{
    pst_io *io = w->io;
    for (;;) {
        if (io->control != NULL && w->control_seen != io->control_seq) {
            follow_control(w);
            continue;
        }
        piece *fresh = take_pieces(w);
        if (fresh == NULL && w->again == NULL && w->with_engine == 0) {
            if (io->stop)
                return;
            if (io->first == NULL && io->in_flight == 0)
                pthread_cond_broadcast(&io->drained);
            io->idle++;
            pthread_cond_wait(&io->work, &io->lock);
            io->idle--;
            continue;
        }
        w->listening = w->free != NULL && io->engine->wake != NULL;
        pthread_mutex_unlock(&io->lock);
        submit(w, fresh);
        piece *finished = reap(w);
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
