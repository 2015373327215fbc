/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libaio: the kernel's older interface for asynchronous direct I/O, for where io_uring is refused. On files that go
 * through the page cache io_submit carries the transfer out itself; it is correct there, and no faster than one
 * thread. There are no tables of files and buffers.
 *
 * submit hands the kernel as many requests per call as there are. What it has no room for (EAGAIN) waits here until
 * something completes; when nothing of ours can complete any more, it goes back to the worker with -EAGAIN.
 *
 * Waking: io_getevents waits for completions and nothing else. So `wake` submits a read of the null device, which
 * completes at once; kernels of any age do that, and any thread may submit to a context. Should the kernel refuse it,
 * a mark is left that a waiting reap sees when its time limit is over.
 *
 * The kernel has done with an iocb when io_submit returns, but with the buffer only when the completion is there:
 * until then the request is waited for, however long that takes. io_destroy waits for the rest.
 */
#include <errno.h>
#include <fcntl.h>
#include <libaio.h>
#include <stdatomic.h>

#include "base/error.h"
#include "base/heap.h"
#include "io/engine.h"
#include "io/engines/pace.h"
#include "os/sys.h"

enum {
    PAUSE_NS = 1000000,
    WAIT_LIMIT_NS = 100000000 /* how late a wake is that the kernel refused */
};

typedef struct queue {
    io_context_t context;
    int null_fd;
    uint32_t depth, with_kernel;
    uint32_t waiting_count, failed_count;
    atomic_bool wake_asked;  /* its completion is on its way, or the mark below is set */
    atomic_bool wake_marked; /* the kernel refused it */
    /* depth of each */
    pst_io_request **waiting; /* not yet with the kernel, in order */
    pst_io_request **failed;  /* refused, not yet handed back */
    struct iocb *iocbs;
    struct iocb **pointers;  /* to them, in order */
    struct io_event *events; /* one more: the wake */
} queue;

/* ---- opening and closing ---- */

static void release(queue *q)
{
    if (q->context != NULL)
        pst_sys->aio_destroy(q->context);
    if (q->null_fd >= 0)
        pst_sys->close(q->null_fd);
    pst_heap_free(q->events);
    pst_heap_free(q->pointers);
    pst_heap_free(q->iocbs);
    pst_heap_free(q->failed);
    pst_heap_free(q->waiting);
    pst_heap_free(q);
}

static int allocate(queue *q, pst_error *err)
{
    q->waiting = pst_heap_calloc(q->depth, sizeof *q->waiting);
    q->failed = pst_heap_calloc(q->depth, sizeof *q->failed);
    q->iocbs = pst_heap_calloc(q->depth, sizeof *q->iocbs);
    q->pointers = pst_heap_calloc(q->depth, sizeof *q->pointers);
    q->events = pst_heap_calloc(q->depth + 1, sizeof *q->events);
    if (q->waiting == NULL || q->failed == NULL || q->iocbs == NULL || q->pointers == NULL || q->events == NULL)
        return pst_fail_memory(err, "an I/O queue", q->depth * sizeof *q->iocbs);
    for (uint32_t i = 0; i < q->depth; i++)
        q->pointers[i] = &q->iocbs[i];
    return 0;
}

static int fail_setup(const queue *q, int status, pst_error *err)
{
    if (status == -EAGAIN)
        return pst_fail(err, status, NULL,
                        "libaio does not work here: %u more requests are beyond the limit of the whole system "
                        "(sysctl fs.aio-max-nr; fs.aio-nr are taken): %s",
                        q->depth + 1, pst_strerror(status));
    if (status == -ENOSYS)
        return pst_fail(err, status, NULL, "libaio does not work here: the kernel was built without it: %s",
                        pst_strerror(status));
    return pst_fail(err, status, NULL, "libaio does not work here: %s", pst_strerror(status));
}

static int open_null(queue *q, pst_error *err)
{
    static const char path[] = "/dev/null";
    do {
        q->null_fd = pst_sys->open(path, O_RDONLY, 0);
    } while (q->null_fd == -EINTR);
    if (q->null_fd < 0)
        return pst_fail(err, q->null_fd, path, "cannot open: %s", pst_strerror(q->null_fd));
    return 0;
}

static int submit_wake(queue *q)
{
    char nothing; /* is ever read from there */
    struct iocb iocb, *list[] = {&iocb};
    io_prep_pread(&iocb, q->null_fd, &nothing, sizeof nothing, 0);
    iocb.data = NULL; /* no request's address */
    int status = pst_sys->aio_submit(q->context, 1, list);
    return status == 0 ? -EAGAIN : status;
}

/* A wake there and back: containers may allow the set-up and refuse the rest. */
static int prove(queue *q)
{
    struct timespec limit = {.tv_sec = 5};
    PST_TRY(submit_wake(q));
    int got;
    do {
        got = pst_sys->aio_getevents(q->context, 1, 1, q->events, &limit);
    } while (got == -EINTR);
    return got == 0 ? -ETIMEDOUT : got;
}

static int open_queue(const pst_io_engine *self, const pst_io_queue_settings *settings, void **out, pst_error *err)
{
    (void)self;
    queue *q = pst_heap_calloc(1, sizeof *q);
    if (q == NULL)
        return pst_fail_memory(err, "an I/O queue", sizeof *q);
    q->depth = settings->depth;
    q->null_fd = -1;
    int status = allocate(q, err);
    if (status >= 0)
        status = open_null(q, err);
    if (status >= 0) {
        status = pst_sys->aio_setup(q->depth + 1, &q->context);
        if (status >= 0)
            status = prove(q);
        if (status < 0)
            fail_setup(q, status, err);
    }
    if (status < 0) {
        release(q);
        return status;
    }
    *out = q;
    return 0;
}

static void close_queue(void *handle)
{
    release(handle);
}

/* ---- transfers ---- */

static void prepare(struct iocb *iocb, pst_io_request *r)
{
    if (r->write)
        io_prep_pwrite(iocb, r->fd, r->address, r->bytes, (long long)r->offset);
    else
        io_prep_pread(iocb, r->fd, r->address, r->bytes, (long long)r->offset);
    iocb->data = r;
}

static void fail(queue *q, uint32_t from, uint32_t to, int error)
{
    for (uint32_t i = from; i < to; i++) {
        q->waiting[i]->result = error;
        q->failed[q->failed_count++] = q->waiting[i];
    }
}

/* Hands the kernel what waits. */
static void start(queue *q)
{
    uint32_t at = 0, count = q->waiting_count;
    for (uint32_t i = 0; i < count; i++)
        prepare(&q->iocbs[i], q->waiting[i]);
    while (at < count) {
        int taken = pst_sys->aio_submit(q->context, (long)(count - at), q->pointers + at);
        if (taken > 0) {
            at += (uint32_t)taken;
            q->with_kernel += (uint32_t)taken;
        } else if (taken < 0 && taken != -EAGAIN) {
            fail(q, at, at + 1, taken); /* it is about the first of them */
            at++;
        } else if (q->with_kernel > 0) {
            break; /* a completion makes room */
        } else {
            fail(q, at, count, -EAGAIN);
            at = count;
        }
    }
    for (uint32_t i = at; i < count; i++)
        q->waiting[i - at] = q->waiting[i];
    q->waiting_count = count - at;
}

static void submit(void *handle, pst_io_request *const *requests, uint32_t count)
{
    queue *q = handle;
    for (uint32_t i = 0; i < count; i++)
        q->waiting[q->waiting_count++] = requests[i];
    start(q);
}

/* Takes completions, waiting at most limit_ns for `least` of them. Returns how many requests are in `done`. */
static int collect(queue *q, pst_io_request **done, uint32_t max, uint32_t least, uint64_t limit_ns, bool *woken)
{
    struct timespec limit = {.tv_nsec = (long)limit_ns};
    uint32_t room = max <= q->depth ? max : q->depth + 1;
    int count = 0, got = pst_sys->aio_getevents(q->context, least <= room ? least : room, room, q->events, &limit);
    if (got < 0)
        return got == -EINTR ? 0 : got;
    for (int i = 0; i < got; i++) {
        pst_io_request *r = q->events[i].data;
        if (r == NULL) {
            *woken = true;
            atomic_store(&q->wake_asked, false);
            continue;
        }
        int64_t result = (int64_t)(long)q->events[i].res; /* an errno lies in there as a negative number */
        r->result = pst_sys->async_result(r->fd, r->write, r->address, r->bytes, r->offset, result);
        q->with_kernel--;
        done[count++] = r;
    }
    return count;
}

/* The same, waiting for one, or for some while the queue is full. */
static int collect_waiting(queue *q, pst_io_request **done, uint32_t max, bool *woken)
{
    uint32_t least = pst_pace_count(q->with_kernel, q->depth);
    int got = least > 1 ? collect(q, done, max, least, PST_PACE_LIMIT_NS, woken) : 0;
    return got != 0 || *woken ? got : collect(q, done, max, 1, WAIT_LIMIT_NS, woken);
}

static bool take_mark(queue *q)
{
    if (!atomic_load(&q->wake_marked))
        return false;
    atomic_store(&q->wake_marked, false);
    atomic_store(&q->wake_asked, false); /* last: from here on the mark may be set again */
    return true;
}

static uint32_t reap(void *handle, pst_io_request **done, uint32_t max, bool wait)
{
    queue *q = handle;
    bool woken = false;
    uint32_t count = 0;
    for (;;) {
        if (q->waiting_count > 0)
            start(q);
        while (count < max && q->failed_count > 0)
            done[count++] = q->failed[--q->failed_count];
        woken = take_mark(q) || woken;
        bool block = wait && count == 0 && !woken;
        if (count < max) {
            int got =
                block ? collect_waiting(q, done, max, &woken) : collect(q, done + count, max - count, 0, 0, &woken);
            if (got > 0)
                count += (uint32_t)got;
            else if (got < 0 && block)
                pst_sys->sleep_ns(PAUSE_NS); /* what the kernel has is the kernel's: try again, but do not spin */
        }
        if (count > 0 || woken || !wait)
            return count;
    }
}

static void wake(void *handle)
{
    queue *q = handle;
    if (!atomic_exchange(&q->wake_asked, true) && submit_wake(q) < 0)
        atomic_store(&q->wake_marked, true);
}

const pst_io_engine pst_io_engine_libaio = {
    .version = PST_IO_ENGINE_VERSION,
    .struct_size = sizeof(pst_io_engine),
    .name = "libaio",
    .description = "the kernel's older asynchronous direct I/O",
    .flags = 0,
    .open_queue = open_queue,
    .close_queue = close_queue,
    .submit = submit,
    .reap = reap,
    .wake = wake,
};
