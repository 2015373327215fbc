/* SPDX-License-Identifier: Apache-2.0 */
/* I/O handles: the choice of the engine, the workers' beginning and end, statistics. */
#include <errno.h>
#include <signal.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/log.h"
#include "io/internal.h"
#include "os/clock.h"
#include "os/sys.h"
#include "os/thread.h"

enum {
    SYNCHRONOUS_WORKERS = 16, /* by default */
    MAX_BLOCK_BYTES = 1 << 30,
    WAKERS_PAUSE_NS = 100000,
    LOOKOUT_NS = 20000 /* about what it takes to put a thread to sleep and to wake it */
};

/* ---- workers ---- */

/* Pieces, each with its bounce buffer. Bounce buffers are mapped, so that only those in use take memory. */
static int prepare_worker(pst_io *io, worker *w, pst_error *err)
{
    *w = (worker){.io = io, .depth = io->depth};
    w->pieces = pst_heap_calloc(io->depth, sizeof *w->pieces);
    w->requests = pst_heap_calloc(io->depth, sizeof *w->requests);
    w->latencies = io->histogram != NULL ? pst_heap_calloc(io->depth, sizeof *w->latencies) : NULL;
    if (w->pieces == NULL || w->requests == NULL || (w->latencies == NULL && io->histogram != NULL))
        return pst_fail_memory(err, "I/O pieces", io->depth * sizeof *w->pieces);
    /* Aligned to PST_IO_MIN_BOUNCE_BYTES, which is no less than any alignment that a file may have. */
    uint64_t bytes = (uint64_t)io->depth * io->bounce_bytes + PST_IO_MIN_BOUNCE_BYTES;
    int status = pst_sys->mmap(bytes, &w->bounce_memory);
    if (status < 0)
        return pst_fail(err, status, NULL, "cannot map %llu bytes for bounce buffers: %s", (unsigned long long)bytes,
                        pst_strerror(status));
    w->bounce_mapped_bytes = bytes;
    uintptr_t start = (uintptr_t)w->bounce_memory;
    start = (start + PST_IO_MIN_BOUNCE_BYTES - 1) / PST_IO_MIN_BOUNCE_BYTES * PST_IO_MIN_BOUNCE_BYTES;
    for (uint32_t i = io->depth; i-- > 0;) {
        w->pieces[i].bounce = (char *)start + (uint64_t)i * io->bounce_bytes;
        w->pieces[i].next = w->free;
        w->free = &w->pieces[i];
    }
    return 0;
}

static void release_worker(worker *w)
{
    if (w->bounce_memory != NULL)
        pst_sys->munmap(w->bounce_memory, w->bounce_mapped_bytes);
    pst_heap_free(w->latencies);
    pst_heap_free(w->requests);
    pst_heap_free(w->pieces);
}

/* Stops `started` workers and releases what was theirs. */
static void stop_workers(pst_io *io, uint32_t started)
{
    pthread_mutex_lock(&io->lock);
    io->stop = true;
    pthread_cond_broadcast(&io->work);
    pthread_mutex_unlock(&io->lock);
    for (uint32_t i = 0; i < started; i++)
        pthread_join(io->worker_list[i].thread, NULL);
    pst_io_service_stop(io);
    for (uint32_t i = 0; io->worker_list != NULL && i < io->workers; i++)
        release_worker(&io->worker_list[i]);
    pst_heap_free(io->worker_list);
    io->worker_list = NULL;
}

void pst_io_retain(pst_io *io)
{
    atomic_fetch_add(&io->references, 1);
}

void pst_io_release(pst_io *io)
{
    if (atomic_fetch_sub(&io->references, 1) > 1)
        return;
    pthread_cond_destroy(&io->service_work);
    pthread_cond_destroy(&io->any_done);
    pthread_cond_destroy(&io->drained);
    pthread_cond_destroy(&io->opened);
    pthread_cond_destroy(&io->control_done);
    pthread_cond_destroy(&io->work);
    pthread_mutex_destroy(&io->control_lock);
    pthread_mutex_destroy(&io->slot_lock);
    pthread_mutex_destroy(&io->stripe_lock);
    pthread_mutex_destroy(&io->service_lock);
    pthread_mutex_destroy(&io->lock);
    pst_heap_free(io->histogram);
    pst_heap_free(io->path);
    pst_heap_free(io);
}

/* Signals are for the program's own threads. */
int pst_io_start_thread(pthread_t *thread, void *(*body)(void *), void *argument)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int status = pthread_create(thread, NULL, body, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return -status;
}

static int start_workers(pst_io *io, uint32_t *started, pst_error *err)
{
    io->worker_list = pst_heap_calloc(io->workers, sizeof *io->worker_list);
    if (io->worker_list == NULL)
        return pst_fail_memory(err, "I/O workers", io->workers * sizeof *io->worker_list);
    for (uint32_t i = 0; i < io->workers; i++)
        PST_TRY(prepare_worker(io, &io->worker_list[i], err));
    for (uint32_t i = 0; i < io->workers; i++) {
        worker *w = &io->worker_list[i];
        int status = pst_io_start_thread(&w->thread, pst_io_worker_main, w);
        if (status < 0)
            return pst_fail(err, status, NULL, "cannot start an I/O thread: %s", pst_strerror(status));
        ++*started;
    }
    pthread_mutex_lock(&io->lock);
    while (io->ready < io->workers)
        pthread_cond_wait(&io->opened, &io->lock);
    int status = io->open_status;
    pthread_mutex_unlock(&io->lock);
    if (status < 0 && err != NULL)
        *err = io->open_error;
    return status;
}

/* ---- opening ---- */

static int check_options(const pst_io_options *options, pst_error *err)
{
    if (options->block_size % 4096 != 0 || options->block_size > MAX_BLOCK_BYTES)
        return pst_fail(err, PST_E_USAGE, NULL, "an I/O block size of %llu bytes is not a multiple of 4096 up to 1 GiB",
                        (unsigned long long)options->block_size);
    if (options->queue_depth > PST_IO_MAX_DEPTH)
        return pst_fail(err, PST_E_USAGE, NULL, "an I/O queue depth of %u is more than %d", options->queue_depth,
                        PST_IO_MAX_DEPTH);
    if (options->workers > PST_IO_MAX_WORKERS)
        return pst_fail(err, PST_E_USAGE, NULL, "%u I/O workers are more than %d", options->workers,
                        PST_IO_MAX_WORKERS);
    return 0;
}

static uint32_t bounce_bytes_for(uint64_t block_bytes)
{
    uint32_t bytes = PST_IO_MIN_BOUNCE_BYTES;
    while (bytes < PST_IO_BOUNCE_BYTES && bytes * 2 <= block_bytes)
        bytes *= 2;
    return bytes;
}

/* Whether one thread may look out for another one's work. */
static bool several_processors(void)
{
    static atomic_int known; /* 1: no, 2: yes */
    int answer = atomic_load_explicit(&known, memory_order_relaxed);
    if (answer == 0) {
        answer = pst_os_processors() > 1 ? 2 : 1;
        atomic_store_explicit(&known, answer, memory_order_relaxed);
    }
    return answer == 2;
}

static void make_locks(pst_io *io)
{
    pthread_condattr_t attributes;
    pthread_mutex_init(&io->lock, NULL);
    pthread_mutex_init(&io->control_lock, NULL);
    pthread_mutex_init(&io->slot_lock, NULL);
    pthread_mutex_init(&io->stripe_lock, NULL);
    pthread_mutex_init(&io->service_lock, NULL);
    pthread_cond_init(&io->work, NULL);
    pthread_cond_init(&io->control_done, NULL);
    pthread_cond_init(&io->opened, NULL);
    pthread_cond_init(&io->drained, NULL);
    pthread_cond_init(&io->service_work, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&io->any_done, &attributes);
    pthread_condattr_destroy(&attributes);
}

/* One thread has one I/O in flight: so many threads are the depth. */
static uint32_t synchronous_workers(uint32_t depth)
{
    if (depth == 0)
        return SYNCHRONOUS_WORKERS;
    return depth < PST_IO_MAX_WORKERS ? depth : PST_IO_MAX_WORKERS;
}

static void configure(pst_io *io, const pst_io_options *options, const pst_io_engine *engine)
{
    uint32_t depth = options->queue_depth != 0 ? options->queue_depth : PST_IO_DEFAULT_DEPTH;
    bool synchronous = (engine->flags & PST_IO_ENGINE_SYNCHRONOUS) != 0;
    io->engine = engine;
    io->block_bytes = options->block_size != 0 ? options->block_size : PST_IO_DEFAULT_BLOCK_BYTES;
    io->bounce_bytes = bounce_bytes_for(io->block_bytes);
    io->page_bytes = pst_sys->page_bytes();
    io->buffered = options->buffered;
    io->depth = synchronous ? 1 : depth;
    io->workers = options->workers;
    if (io->workers == 0)
        io->workers = synchronous ? synchronous_workers(options->queue_depth) : 1;
    io->single_submit = options->single_submit;
    io->overlap = options->overlap_events != PST_IO_OFF;
    io->wait_lookout.most_ns = io->work_lookout.most_ns = several_processors() ? LOOKOUT_NS : 0;
    atomic_store(&io->references, 1);
    make_locks(io);
}

static int copy_options(pst_io *io, const pst_io_options *options, pst_error *err)
{
    if (options->path != NULL && (io->path = pst_heap_strdup(options->path)) == NULL)
        return pst_fail_memory(err, "an I/O handle", strlen(options->path));
    if (options->measure_latency && (io->histogram = pst_heap_calloc(1, sizeof *io->histogram)) == NULL)
        return pst_fail_memory(err, "a histogram of latencies", sizeof *io->histogram);
    return 0;
}

static int open_with(const pst_io_options *options, const pst_io_engine *engine, pst_io **out, pst_error *err)
{
    pst_io *io = pst_heap_calloc(1, sizeof *io);
    if (io == NULL)
        return pst_fail_memory(err, "an I/O handle", sizeof *io);
    configure(io, options, engine);
    uint32_t started = 0;
    int status = copy_options(io, options, err);
    if (status >= 0)
        status = start_workers(io, &started, err);
    if (status < 0) {
        stop_workers(io, started);
        pst_io_release(io);
        return status;
    }
    *out = io;
    return 0;
}

/* Takes the first engine that works here. */
static int open_auto(const pst_io_options *options, pst_io **out, pst_error *err)
{
    int status = PST_E_UNSUPPORTED;
    const pst_io_engine *engine;
    for (unsigned i = 0; (engine = pst_io_engine_choice(i, options->path)) != NULL; i++) {
        pst_error why;
        status = open_with(options, engine, out, &why);
        if (status >= 0)
            return status;
        if (pst_io_engine_choice(i + 1, options->path) == NULL) {
            if (err != NULL)
                *err = why;
        } else {
            pst_log(PST_LOG_INFO, "I/O engine %s is passed over: %s", engine->name, why.message);
        }
    }
    return status;
}

int pst_io_open(const pst_io_options *options, pst_io **out, pst_error *err)
{
    pst_io_options own = {0};
    if (options != NULL) {
        size_t known = options->struct_size;
        if (known == 0 || known > sizeof own)
            known = sizeof own;
        memcpy(&own, options, known);
    }
    PST_TRY(check_options(&own, err));
    if (own.engine_table != NULL) {
        PST_TRY(pst_io_engine_check(own.engine_table, err));
        PST_TRY(open_with(&own, own.engine_table, out, err));
    } else if (own.engine == NULL || strcmp(own.engine, "auto") == 0) {
        PST_TRY(open_auto(&own, out, err));
    } else {
        const pst_io_engine *engine = pst_io_engine_find(own.engine);
        if (engine == NULL)
            return pst_fail(err, PST_E_USAGE, NULL,
                            "there is no I/O engine \"%s\" (auto, io_uring, libaio, threads, null)", own.engine);
        PST_TRY(open_with(&own, engine, out, err));
    }
    pst_log(PST_LOG_INFO, "I/O engine %s, %u worker%s, depth %u, blocks of %llu bytes", (*out)->engine->name,
            (*out)->workers, (*out)->workers == 1 ? "" : "s", (*out)->depth, (unsigned long long)(*out)->block_bytes);
    return 0;
}

void pst_io_close(pst_io *io)
{
    if (io == NULL)
        return;
    pthread_mutex_lock(&io->lock);
    io->closing = true;
    for (;;) {
        while (io->batches > 0)
            pthread_cond_wait(&io->drained, &io->lock);
        /* A batch may be done before its submitter has waked all the workers that it meant to. */
        if (atomic_load_explicit(&io->wakers, memory_order_acquire) == 0)
            break;
        pthread_mutex_unlock(&io->lock);
        pst_sys->sleep_ns(WAKERS_PAUSE_NS);
        pthread_mutex_lock(&io->lock);
    }
    io->stop = true; /* under the same lock: no batch comes in between */
    pthread_mutex_unlock(&io->lock);
    stop_workers(io, io->workers);
    pst_io_release(io);
}

const char *pst_io_engine_name(const pst_io *io)
{
    return io->engine->name;
}

void pst_io_get_settings(const pst_io *io, pst_io_options *out)
{
    pst_io_options all = {.engine = io->engine->name,
                          .block_size = io->block_bytes,
                          .queue_depth = io->depth,
                          .workers = io->workers,
                          .buffered = io->buffered,
                          .single_submit = io->single_submit,
                          .overlap_events = io->overlap ? PST_IO_ON : PST_IO_OFF,
                          .measure_latency = io->histogram != NULL,
                          .engine_table = io->engine,
                          .path = io->path};
    size_t known = out->struct_size == 0 || out->struct_size > sizeof all ? sizeof all : out->struct_size;
    all.struct_size = known;
    memcpy(out, &all, known);
}

void pst_io_get_stats(const pst_io *handle, pst_io_stats *out)
{
    pst_io *io = (pst_io *)handle; /* the lock is no part of what the caller sees as constant */
    pthread_mutex_lock(&io->lock);
    *out = io->stats;
    if (io->in_flight > 0)
        out->busy_ns += pst_clock_ns() - io->busy_since_ns;
    pthread_mutex_unlock(&io->lock);
}
