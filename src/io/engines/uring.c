/* SPDX-License-Identifier: Apache-2.0 */
/*
 * io_uring. One ring per worker thread, which alone submits and reaps, so the kernel may be told so (single
 * issuer, deferred task work): completions are then processed when the worker asks for them and never
 * interrupt the compute threads. Files and buffers sit in registered tables where the kernel has them.
 *
 * submit fills the submission queue; reap makes the one system call of a round: it submits and waits for a
 * completion, or for some at once while the queue is full (pace.h). A read of an eventfd is always under
 * way, so that another thread can end the wait.
 *
 * When io_uring_enter fails, what the kernel has not consumed is taken back and comes out of reap with that
 * error. What it has consumed is waited for, however long that takes: until then the memory is the kernel's.
 */
#include <errno.h>
#include <liburing.h>

#include "base/error.h"
#include "base/heap.h"
#include "io/engine.h"
#include "io/engines/pace.h"
#include "os/sys.h"

/* user_data of the eventfd read; requests are aligned, so it is no request's address. */
#define WAKE_MARK ((void *)1)

enum { PAUSE_NS = 1000000 };

typedef struct queue {
    struct io_uring ring;
    int wake_fd;
    uint64_t wake_value; /* the eventfd read's target */
    bool wake_armed, woken;
    bool timed;          /* waits may have a limit */
    bool files, buffers; /* the tables exist */
    uint32_t depth, with_kernel;
    uint32_t failed_count;
    pst_io_request *failed[]; /* taken back, not yet handed out; depth of them */
} queue;

static void close_queue(void *handle);

/* Newer flags first; kernels refuse what they do not know with EINVAL. */
static int init_ring(queue *q, uint32_t entries)
{
    static const unsigned flags[] = {
#if defined(IORING_SETUP_SINGLE_ISSUER) && defined(IORING_SETUP_DEFER_TASKRUN)
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG, /* 6.1 */
#endif
#ifdef IORING_SETUP_COOP_TASKRUN
        IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG, /* 5.19 */
#endif
        0,
    };
    int status = -EINVAL;
    for (size_t i = 0; i < sizeof flags / sizeof flags[0] && status == -EINVAL; i++) {
        struct io_uring_params parameters = {.flags = flags[i]};
        status = pst_sys->uring_init(entries, &q->ring, &parameters);
    }
    return status;
}

/* Keeps the eventfd read under way. There is always room: the ring has more entries than `depth`. */
static void arm_wake(queue *q)
{
    struct io_uring_sqe *sqe = q->wake_armed ? NULL : io_uring_get_sqe(&q->ring);
    if (sqe == NULL)
        return;
    io_uring_prep_read(sqe, q->wake_fd, &q->wake_value, sizeof q->wake_value, 0);
    io_uring_sqe_set_data(sqe, WAKE_MARK);
    q->wake_armed = true;
}

static int enter(queue *q, unsigned wait_for, uint64_t limit_ns)
{
    int status;
    do {
        status = pst_sys->uring_enter(&q->ring, wait_for, limit_ns);
    } while (status == -EINTR);
    return status;
}

/* Waits for one completion, or for some while the queue is full. */
static int enter_and_wait(queue *q)
{
    uint32_t count = q->timed ? pst_pace_count(q->with_kernel, q->depth) : 1;
    if (count > 1) {
        int status = enter(q, count, PST_PACE_LIMIT_NS);
        if (status != -ETIME)
            return status;
        if (io_uring_cq_ready(&q->ring) > 0) /* fewer than that */
            return 0;
    }
    return enter(q, 1, 0);
}

/* Whether a call would bring completions that are not in the ring yet: with deferred or cooperative task work they
 * come only with one, and the kernel says so in a flag. */
static bool more_with_a_call(const queue *q)
{
    unsigned flags = __atomic_load_n(q->ring.sq.kflags, __ATOMIC_ACQUIRE);
#ifdef IORING_SQ_TASKRUN
    return (flags & (IORING_SQ_CQ_OVERFLOW | IORING_SQ_TASKRUN)) != 0;
#else
    return (flags & IORING_SQ_CQ_OVERFLOW) != 0;
#endif
}

/* A no-operation there and back: containers may allow the set-up and refuse the rest. */
static int prove(queue *q)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&q->ring);
    io_uring_prep_nop(sqe);
    int status = enter(q, 1, 0);
    if (status < 0)
        return status;
    struct io_uring_cqe *cqe;
    status = io_uring_peek_cqe(&q->ring, &cqe);
    if (status < 0)
        return status;
    status = cqe->res;
    io_uring_cqe_seen(&q->ring, cqe);
    return status;
}

static int fail_open(int status, pst_error *err)
{
    const char *hint = "";
    if (status == -ENOSYS)
        hint = "the kernel has none that reads and writes (5.6), or a container hides it: ";
    else if (status == -EPERM || status == -EACCES)
        hint = "it was forbidden (sysctl kernel.io_uring_disabled, or a container's rules): ";
    else if (status == -ENOMEM)
        hint = "there is no memory for it (or too little that may be locked: RLIMIT_MEMLOCK, ulimit -l): ";
    return pst_fail(err, status, NULL, "io_uring does not work here: %s%s", hint, pst_strerror(status));
}

static int open_queue(const pst_io_engine *self, const pst_io_queue_settings *settings, void **out, pst_error *err)
{
    (void)self;
    queue *q = pst_heap_calloc(1, sizeof *q + settings->depth * sizeof q->failed[0]);
    if (q == NULL)
        return pst_fail_memory(err, "an I/O queue", sizeof *q);
    q->depth = settings->depth;
    int status = init_ring(q, settings->depth + 2);
    if (status < 0) {
        pst_heap_free(q);
        return fail_open(status, err);
    }
    q->wake_fd = pst_sys->eventfd();
    status = q->wake_fd < 0 ? q->wake_fd : pst_sys->uring_has_read_write(&q->ring);
    if (status >= 0)
        status = prove(q);
    if (status < 0) {
        close_queue(q);
        return fail_open(status, err);
    }
    q->timed = (q->ring.features & IORING_FEAT_EXT_ARG) != 0; /* 5.11 */
    q->files = settings->file_slots > 0 && pst_sys->uring_files_sparse(&q->ring, settings->file_slots) >= 0;
    q->buffers = settings->buffer_slots > 0 && pst_sys->uring_buffers_sparse(&q->ring, settings->buffer_slots) >= 0;
    *out = q;
    return 0;
}

static void submit(void *handle, pst_io_request *const *requests, uint32_t count)
{
    queue *q = handle;
    for (uint32_t i = 0; i < count; i++) {
        pst_io_request *r = requests[i];
        struct io_uring_sqe *sqe = io_uring_get_sqe(&q->ring);
        if (sqe == NULL) { /* cannot be: the ring holds depth + 2 */
            r->result = -EBUSY;
            q->failed[q->failed_count++] = r;
            continue;
        }
        bool fixed_file = q->files && r->file_slot >= 0;
        int fd = fixed_file ? r->file_slot : r->fd;
        if (q->buffers && r->buffer_slot >= 0) {
            if (r->write)
                io_uring_prep_write_fixed(sqe, fd, r->address, r->bytes, r->offset, r->buffer_slot);
            else
                io_uring_prep_read_fixed(sqe, fd, r->address, r->bytes, r->offset, r->buffer_slot);
        } else if (r->write) {
            io_uring_prep_write(sqe, fd, r->address, r->bytes, r->offset);
        } else {
            io_uring_prep_read(sqe, fd, r->address, r->bytes, r->offset);
        }
        if (fixed_file)
            io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
        io_uring_sqe_set_data(sqe, r);
        q->with_kernel++;
    }
}

/* Takes back what the kernel did not consume; it reads the queue only inside io_uring_enter, so this is no
 * race. */
static void take_back(queue *q, int error)
{
    struct io_uring_sq *sq = &q->ring.sq;
    unsigned head = io_uring_smp_load_acquire(sq->khead);
    for (unsigned at = head; at != sq->sqe_tail; at++) {
        pst_io_request *r = (pst_io_request *)(uintptr_t)sq->sqes[at & *sq->kring_mask].user_data;
        if ((void *)r == WAKE_MARK) {
            q->wake_armed = false;
            continue;
        }
        r->result = error;
        q->failed[q->failed_count++] = r;
        q->with_kernel--;
    }
    sq->sqe_tail = sq->sqe_head = head;
    io_uring_smp_store_release(sq->ktail, head);
}

static uint32_t drain(queue *q, pst_io_request **done, uint32_t max)
{
    uint32_t count = 0;
    while (count < max && q->failed_count > 0)
        done[count++] = q->failed[--q->failed_count];
    struct io_uring_cqe *cqe;
    unsigned head, seen = 0;
    io_uring_for_each_cqe(&q->ring, head, cqe)
    {
        if (count == max)
            break;
        seen++;
        void *data = io_uring_cqe_get_data(cqe);
        if (data == WAKE_MARK) {
            q->wake_armed = false;
            q->woken = true;
            continue;
        }
        pst_io_request *r = data;
        r->result = pst_sys->async_result(r->fd, r->write, r->address, r->bytes, r->offset, cqe->res);
        q->with_kernel--;
        done[count++] = r;
    }
    io_uring_cq_advance(&q->ring, seen);
    return count;
}

static uint32_t reap(void *handle, pst_io_request **done, uint32_t max, bool wait)
{
    queue *q = handle;
    q->woken = false;
    for (;;) {
        arm_wake(q);
        bool idle = io_uring_cq_ready(&q->ring) == 0 && q->failed_count == 0;
        int status = 0;
        if (wait && idle)
            status = enter_and_wait(q);
        else if (io_uring_sq_ready(&q->ring) > 0 || more_with_a_call(q))
            status = enter(q, 0, 0);
        uint32_t count = drain(q, done, max);
        if (count > 0 || q->woken || (!wait && status >= 0))
            return count;
        if (status >= 0)
            continue; /* a completion that was not ours */
        /* EBUSY too is a shortage of resources that may pass; how long to go on trying is the worker's to say. */
        take_back(q, status == -EBUSY ? -EAGAIN : status);
        if (q->failed_count == 0) /* only the kernel's own are left: try again, but do not spin */
            pst_sys->sleep_ns(PAUSE_NS);
    }
}

static void wake(void *handle)
{
    queue *q = handle;
    pst_sys->eventfd_write(q->wake_fd);
}

/* Ends the eventfd read before its target is freed. */
static void disarm_wake(queue *q)
{
    pst_io_request *none;
    if (!q->wake_armed || pst_sys->eventfd_write(q->wake_fd) < 0)
        return;
    for (int tries = 0; q->wake_armed && tries < 1000; tries++) {
        enter(q, 1, 0);
        drain(q, &none, 1);
    }
}

static void close_queue(void *handle)
{
    queue *q = handle;
    if (q->wake_fd >= 0)
        disarm_wake(q);
    pst_sys->uring_exit(&q->ring);
    if (q->wake_fd >= 0)
        pst_sys->close(q->wake_fd);
    pst_heap_free(q);
}

static int set_file(void *handle, uint32_t slot, int fd)
{
    queue *q = handle;
    return q->files ? pst_sys->uring_files_update(&q->ring, slot, fd) : -EOPNOTSUPP;
}

static int set_buffer(void *handle, uint32_t slot, void *memory, uint64_t bytes)
{
    queue *q = handle;
    struct iovec vector = {.iov_base = memory, .iov_len = bytes};
    return q->buffers ? pst_sys->uring_buffers_update(&q->ring, slot, &vector) : -EOPNOTSUPP;
}

const pst_io_engine pst_io_engine_uring = {
    .version = PST_IO_ENGINE_VERSION,
    .struct_size = sizeof(pst_io_engine),
    .name = "io_uring",
    .description = "io_uring: one system call for many transfers",
    .flags = PST_IO_ENGINE_FILE_SLOTS | PST_IO_ENGINE_BUFFER_SLOTS,
    .open_queue = open_queue,
    .close_queue = close_queue,
    .submit = submit,
    .reap = reap,
    .wake = wake,
    .set_file = set_file,
    .set_buffer = set_buffer,
};
