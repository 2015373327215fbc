/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The engine that moves nothing: reads leave the buffer as it is, writes are dropped, and everything succeeds at its
 * full length, in the order of submission. What a handle still costs with it is the library itself.
 */
#include <pthread.h>

#include "base/error.h"
#include "base/heap.h"
#include "io/engine.h"
#include "os/sys.h"

typedef struct queue {
    pthread_mutex_t lock; /* of `woken`; not taken while there is something to hand back */
    pthread_cond_t wake;
    bool woken;
    uint32_t depth, first, count;
    pst_io_request *finished[]; /* a ring of depth */
} queue;

static int open_queue(const pst_io_engine *self, const pst_io_queue_settings *settings, void **out, pst_error *err)
{
    (void)self;
    queue *q = pst_heap_calloc(1, sizeof *q + settings->depth * sizeof q->finished[0]);
    if (q == NULL)
        return pst_fail_memory(err, "an I/O queue", sizeof *q);
    q->depth = settings->depth;
    pthread_mutex_init(&q->lock, NULL);
    pthread_cond_init(&q->wake, NULL);
    *out = q;
    return 0;
}

static void close_queue(void *handle)
{
    queue *q = handle;
    pthread_cond_destroy(&q->wake);
    pthread_mutex_destroy(&q->lock);
    pst_heap_free(q);
}

static void submit(void *handle, pst_io_request *const *requests, uint32_t count)
{
    queue *q = handle;
    for (uint32_t i = 0; i < count; i++) {
        pst_io_request *r = requests[i];
        r->result = pst_sys->async_result(r->fd, r->write, r->address, r->bytes, r->offset, r->bytes);
        q->finished[(q->first + q->count++) % q->depth] = r;
    }
}

static void wait_for_wake(queue *q)
{
    pthread_mutex_lock(&q->lock);
    while (!q->woken)
        pthread_cond_wait(&q->wake, &q->lock);
    q->woken = false;
    pthread_mutex_unlock(&q->lock);
}

static uint32_t reap(void *handle, pst_io_request **done, uint32_t max, bool wait)
{
    queue *q = handle;
    uint32_t count = 0;
    for (; count < max && q->count > 0; q->count--) {
        done[count++] = q->finished[q->first];
        q->first = (q->first + 1) % q->depth;
    }
    if (count == 0 && wait)
        wait_for_wake(q);
    return count;
}

static void wake(void *handle)
{
    queue *q = handle;
    pthread_mutex_lock(&q->lock);
    q->woken = true;
    pthread_cond_signal(&q->wake);
    pthread_mutex_unlock(&q->lock);
}

const pst_io_engine pst_io_engine_null = {
    .version = PST_IO_ENGINE_VERSION,
    .struct_size = sizeof(pst_io_engine),
    .name = "null",
    .description = "moves no bytes: measures the library itself",
    .flags = PST_IO_ENGINE_NO_DATA,
    .open_queue = open_queue,
    .close_queue = close_queue,
    .submit = submit,
    .reap = reap,
    .wake = wake,
};
