/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The engine that works everywhere: each worker thread carries one transfer out at a time with pread or
 * pwrite. Depth comes from the number of workers.
 */
#include "base/error.h"
#include "base/heap.h"
#include "io/engine.h"
#include "os/sys.h"

typedef struct queue {
    uint32_t depth, finished;
    pst_io_request *ready[]; /* finished, not yet handed back; depth of them */
} queue;

static int open_queue(const pst_io_engine *self, const pst_io_queue_settings *settings, void **out, pst_error *err)
{
    (void)self;
    queue *q = pst_heap_calloc(1, sizeof *q + settings->depth * sizeof q->ready[0]);
    if (q == NULL)
        return pst_fail_memory(err, "an I/O queue", sizeof *q);
    q->depth = settings->depth;
    *out = q;
    return 0;
}

static void close_queue(void *handle)
{
    pst_heap_free(handle);
}

static void submit(void *handle, pst_io_request *const *requests, uint32_t count)
{
    queue *q = handle;
    for (uint32_t i = 0; i < count; i++) {
        pst_io_request *r = requests[i];
        if (r->write)
            r->result = pst_sys->pwrite(r->fd, r->address, r->bytes, r->offset);
        else
            r->result = pst_sys->pread(r->fd, r->address, r->bytes, r->offset);
        q->ready[q->finished++] = r;
    }
}

static uint32_t reap(void *handle, pst_io_request **done, uint32_t max, bool wait)
{
    (void)wait;
    queue *q = handle;
    uint32_t count = 0;
    while (count < max && q->finished > 0)
        done[count++] = q->ready[--q->finished];
    return count;
}

const pst_io_engine pst_io_engine_threads = {
    .version = PST_IO_ENGINE_VERSION,
    .struct_size = sizeof(pst_io_engine),
    .name = "threads",
    .description = "pread and pwrite in worker threads: works everywhere",
    .flags = PST_IO_ENGINE_SYNCHRONOUS,
    .open_queue = open_queue,
    .close_queue = close_queue,
    .submit = submit,
    .reap = reap,
};
