/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An I/O engine of your own, outside of the library: what each entry must do, may do and must not do.
 *
 *     cc engine_skeleton.c -o engine_skeleton $(pkg-config --cflags --libs penstock) -pthread
 *     ./engine_skeleton FILE
 *
 * This one has a helper thread for each queue, which carries the requests out with pread and pwrite. A real one would
 * hand them to a device driver, a network protocol, or another program. The program at the end registers it, writes
 * FILE through it, reads the file back, and compares.
 *
 * What the library does around an engine, so that the engine need not: it cuts operations into requests no longer than
 * the block size; it sees to it that offset, length and address fit the file's alignment (through a buffer of its own
 * where they do not); it continues what came back short, tries again what was interrupted, keeps order where order was
 * asked for, and tells the caller. An engine carries out single requests, in any order, and says what became of each.
 *
 * Threads: a handle has one or more workers, and each opens one queue of its own. All entries of a queue are called by
 * the worker that opened it, one at a time; only `wake` may be called by any thread at any time between open_queue
 * and close_queue. So what only these entries touch needs no lock, unless the engine starts threads, as this one does.
 *
 * An engine must not call back into the library for the handle that it serves: the worker that would do the work is the
 * one that waits.
 */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <penstock/io.h>
#include <penstock/io_engine.h>

/* ---- the engine ---- */

/* Everything that a queue needs is allocated when it is opened. On the way of a transfer nothing is allocated, so
 * nothing can fail for want of memory there. */
typedef struct queue {
    pthread_t thread;
    pthread_mutex_t lock; /* of all below */
    pthread_cond_t work;  /* for the helper thread: something to do, or to stop */
    pthread_cond_t event; /* for the worker: something is finished, or wake was called */
    bool stop, woken;
    uint32_t depth;
    /* Two rings of `depth` pointers: an engine never has more than `depth` requests, so they cannot overflow. */
    pst_io_request **waiting, **finished;
    uint32_t waiting_first, waiting_count, finished_first, finished_count;
} queue;

static void put(queue *q, pst_io_request **ring, uint32_t first, uint32_t *count, pst_io_request *request)
{
    ring[(first + (*count)++) % q->depth] = request;
}

static pst_io_request *take(queue *q, pst_io_request **ring, uint32_t *first, uint32_t *count)
{
    pst_io_request *request = ring[*first];
    *first = (*first + 1) % q->depth;
    --*count;
    return request;
}

/* One request. Its fields are the library's and only to be read, except two:
 *
 * `result` is the engine's answer: the bytes that were transferred, which may be fewer than were asked for (the library
 * asks for the rest; a read that answers 0 is at the end of the file), or -errno. It must be the truth: a request that
 * failed halfway may answer what was transferred before, but never more. -EAGAIN and -EINTR mean "try it again later";
 * -EINVAL of a file opened for direct I/O means "not in this way", and the library tries without. Anything else ends
 * the caller's operation with that error.
 *
 * `engine_data` is two words in which an engine keeps what it likes while it has the request.
 *
 * `file_slot` and `buffer_slot` are -1 unless the engine has such tables (see the end of the table below).
 *
 * The memory at `address` and the descriptor are good until the request has been handed back, and not an instant
 * longer: an engine that hands a request back while something can still write to its memory corrupts its caller. */
static void carry_out(pst_io_request *request)
{
    ssize_t moved = request->write ? pwrite(request->fd, request->address, request->bytes, (off_t)request->offset)
                                   : pread(request->fd, request->address, request->bytes, (off_t)request->offset);
    request->result = moved < 0 ? -errno : moved;
}

static void *helper_main(void *argument)
{
    queue *q = argument;
    pthread_mutex_lock(&q->lock);
    while (!q->stop) {
        if (q->waiting_count == 0) {
            pthread_cond_wait(&q->work, &q->lock);
            continue;
        }
        pst_io_request *request = take(q, q->waiting, &q->waiting_first, &q->waiting_count);
        pthread_mutex_unlock(&q->lock); /* the worker can submit and reap meanwhile */
        carry_out(request);
        pthread_mutex_lock(&q->lock);
        put(q, q->finished, q->finished_first, &q->finished_count, request);
        pthread_cond_signal(&q->event);
    }
    pthread_mutex_unlock(&q->lock);
    return NULL;
}

/* Must release everything of the queue. Nothing is in flight any more: the library has reaped every request, and
 * nobody calls wake. It cannot fail, and must not hand anything back. */
static void close_queue(void *handle)
{
    queue *q = handle;
    pthread_mutex_lock(&q->lock);
    q->stop = true;
    pthread_cond_signal(&q->work);
    pthread_mutex_unlock(&q->lock);
    pthread_join(q->thread, NULL);
    pthread_cond_destroy(&q->event);
    pthread_cond_destroy(&q->work);
    pthread_mutex_destroy(&q->lock);
    free(q->finished);
    free(q->waiting);
    free(q);
}

/* An error record is the caller's and may be NULL. The code is returned and recorded, with words for people. */
static int fail(pst_error *err, int code, const char *what)
{
    if (err != NULL) {
        *err = (pst_error){.code = code, .offset = PST_NO_OFFSET};
        snprintf(err->message, sizeof err->message, "the skeleton engine cannot %s: %s", what, pst_strerror(code));
    }
    return code;
}

/* Must either set *out and return 0, or leave *out alone, release what it took, and return a negative code with the
 * reason in err. This is the moment to find out whether the engine works here (a device is missing, a right is
 * lacking, a kernel is too old): later there is no way to say so, except by failing every request. A queue that opened
 * is used by the thread that opened it.
 *
 * `self` is the table through which the engine was called; one that wraps another engine has its own data behind it.
 * `settings` may be longer or shorter than this program's: struct_size says how far it goes. */
static int open_queue(const pst_io_engine *self, const pst_io_queue_settings *settings, void **out, pst_error *err)
{
    (void)self;
    queue *q = calloc(1, sizeof *q);
    if (q == NULL)
        return fail(err, -ENOMEM, "open a queue");
    q->depth = settings->depth;
    q->waiting = calloc(q->depth, sizeof *q->waiting);
    q->finished = calloc(q->depth, sizeof *q->finished);
    pthread_mutex_init(&q->lock, NULL);
    pthread_cond_init(&q->work, NULL);
    pthread_cond_init(&q->event, NULL);
    int status = q->waiting == NULL || q->finished == NULL ? ENOMEM : 0;
    if (status == 0)
        status = pthread_create(&q->thread, NULL, helper_main, q); /* signals are blocked here already */
    if (status == 0) {
        *out = q;
        return 0;
    }
    pthread_cond_destroy(&q->event);
    pthread_cond_destroy(&q->work);
    pthread_mutex_destroy(&q->lock);
    free(q->finished);
    free(q->waiting);
    free(q);
    return fail(err, -status, "open a queue");
}

/* Takes requests over. They are the engine's from here until reap hands them back; the array `requests` itself is not,
 * it is gone when the call returns. There are never more than `depth` requests with a queue.
 *
 * Must not wait for transfers (an engine that has to, says PST_IO_ENGINE_SYNCHRONOUS: then depth is 1, `wake` is not
 * needed, and the library starts more workers instead). May leave the start to the next reap, so that one system call
 * does for both. Cannot fail: what cannot be started is handed back by reap with the error as its result. */
static void submit(void *handle, pst_io_request *const *requests, uint32_t count)
{
    queue *q = handle;
    pthread_mutex_lock(&q->lock);
    for (uint32_t i = 0; i < count; i++)
        put(q, q->waiting, q->waiting_first, &q->waiting_count, requests[i]);
    pthread_cond_signal(&q->work);
    pthread_mutex_unlock(&q->lock);
}

/* Must start what submit left, and hand back up to `max` finished requests, in any order, each exactly once. Without
 * `wait` it never blocks. With it, and with nothing finished, it blocks until something is, or until wake was called,
 * even if that was before this call; then it may return 0. It must not spin, and must not return early otherwise: the
 * worker would. With `wait` and nothing under way at all it waits for wake.
 *
 * When waiting itself fails (a system call is refused), the requests are still under way: go on waiting, with pauses.
 */
static uint32_t reap(void *handle, pst_io_request **done, uint32_t max, bool wait)
{
    queue *q = handle;
    uint32_t count = 0;
    pthread_mutex_lock(&q->lock);
    while (wait && q->finished_count == 0 && !q->woken)
        pthread_cond_wait(&q->event, &q->lock);
    q->woken = false;
    while (count < max && q->finished_count > 0)
        done[count++] = take(q, q->finished, &q->finished_first, &q->finished_count);
    pthread_mutex_unlock(&q->lock);
    return count;
}

/* Any thread, also while the worker is in submit or reap. Must make a reap that waits return soon, and when none waits
 * now, the next one that would. Several calls may be as good as one. Must not block for long: the caller may be the
 * program's own thread, in the middle of a submission. */
static void wake(void *handle)
{
    queue *q = handle;
    pthread_mutex_lock(&q->lock);
    q->woken = true;
    pthread_cond_signal(&q->event);
    pthread_mutex_unlock(&q->lock);
}

/* The table: static storage, never changed after registration. Entries that are not there stay NULL, and the flags must
 * not promise them.
 *
 * Not here: set_file and set_buffer, with PST_IO_ENGINE_FILE_SLOTS and PST_IO_ENGINE_BUFFER_SLOTS. An engine that can
 * prepare a descriptor or a stretch of memory once, rather than for every request, offers them. The library then names
 * slots 0 to file_slots - 1 and buffer_slots - 1 of the settings, the same in every queue; requests that use what is in
 * a slot carry its number, beside fd and address, which stay valid. set_* may fail, then requests come without. Taking
 * out (fd -1, memory NULL) must not fail, and happens when no request uses the slot. */
static const pst_io_engine skeleton = {
    .version = PST_IO_ENGINE_VERSION,
    .struct_size = sizeof(pst_io_engine),
    .name = "skeleton",
    .description = "an example: one helper thread for each queue",
    .flags = 0,
    .open_queue = open_queue,
    .close_queue = close_queue,
    .submit = submit,
    .reap = reap,
    .wake = wake,
};

/* ---- a program that uses it ---- */

enum { BYTES = 10000000 }; /* not a multiple of anything: the library sees to the ragged end */

static void fill(unsigned char *memory)
{
    uint32_t x = 1;
    for (size_t i = 0; i < BYTES; i++) {
        x = x * 1664525u + 1013904223u;
        memory[i] = (unsigned char)(x >> 24);
    }
}

static int transfer(pst_io *io, pst_io_file *file, pst_io_kind kind, void *memory, pst_error *err)
{
    pst_io_op op = {.file = file, .offset = 0, .buffer = memory, .bytes = BYTES, .kind = kind};
    return pst_io_transfer(io, &op, err);
}

static int write_and_read(pst_io *io, const char *path, unsigned char *memory, unsigned char *back, pst_error *err)
{
    pst_io_file *file = NULL;
    unsigned flags = PST_IO_OPEN_WRITE | PST_IO_OPEN_CREATE | PST_IO_OPEN_TRUNCATE;
    int status = pst_io_file_open(io, path, flags, &file, err);
    if (status >= 0)
        status = transfer(io, file, PST_IO_WRITE, memory, err);
    if (status >= 0)
        status = transfer(io, file, PST_IO_READ, back, err);
    int closed = pst_io_file_close(file, status >= 0 ? err : NULL);
    return status < 0 ? status : closed;
}

static int run(const char *path, pst_error *err)
{
    /* By name. A table that shall not be known to the whole program goes into options.engine_table instead. */
    pst_io_options options = {.struct_size = sizeof options, .engine = "skeleton", .block_size = 262144};
    pst_io *io = NULL;
    unsigned char *memory = malloc(BYTES), *back = malloc(BYTES);
    int status = memory == NULL || back == NULL ? fail(err, -ENOMEM, "run") : pst_io_engine_register(&skeleton, err);
    if (status >= 0)
        status = pst_io_open(&options, &io, err);
    if (status >= 0) {
        fill(memory);
        status = write_and_read(io, path, memory, back, err);
    }
    if (status >= 0 && memcmp(memory, back, BYTES) != 0)
        status = fail(err, -EIO, "give back what was written");
    if (status >= 0) {
        pst_io_stats stats;
        pst_io_get_stats(io, &stats);
        printf("engine %s: %d bytes written and read again in %llu requests\n", pst_io_engine_name(io), BYTES,
               (unsigned long long)stats.pieces);
    }
    pst_io_close(io);
    free(back);
    free(memory);
    return status;
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: %s FILE\n", argv[0]);
        return 2;
    }
    pst_error err;
    if (run(argv[1], &err) < 0) {
        fprintf(stderr, "%s%s%s\n", err.path, err.path[0] ? ": " : "", err.message);
        return 1;
    }
    return 0;
}
