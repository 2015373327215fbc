/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One process's part of a bench. Its memory and its files stay while handles with other settings come and go over
 * them. What a file holds and what memory holds are known by generations of the contents, so that nothing is filled
 * anew without need: without validation there is one generation alone.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/log.h"
#include "base/number.h"
#include "base/sanitizer.h"
#include "io/internal.h"
#include "jobs/bench_io_internal.h"
#include "os/clock.h"
#include "os/memory.h"
#include "penstock/io_stripe.h"

enum { HUGE_BYTES = 2 << 20, POISON = 0xA5 };
#define NO_CONTENTS UINT64_MAX

/* What a file holds from its transfer's begin on. */
typedef struct file_state {
    uint64_t bytes, generation;
} file_state;

struct pst_bench_worker {
    const pst_bench_plan *plan;
    const pst_bench_target *targets; /* [file][transfer] of this process */
    uint32_t process, transfers, files;
    bool reports;

    void *memory; /* of all transfers */
    uint64_t memory_bytes, stride, stride_room;
    pst_io_pool *pool;         /* holds the memory, or NULL: it is mapped */
    uint64_t *memory_contents; /* [transfer], a generation */
    file_state *states;        /* [file][transfer] */

    pst_bench_settings settings;
    pst_io *io;
    bool registered;
    pst_io_file **open_files; /* [file][transfer] */
    pst_io_batch *batch;
    pst_io_op *ops;
    uint32_t op_room;

    uint64_t turns[2]; /* repetitions of reading and writing so far */
    uint64_t generation;
    pst_io_kind op; /* the repetition under way, and its file */
    uint32_t file;
};

/* ---- memory ---- */

static int take_memory(pst_bench_worker *w, pst_error *err)
{
    const pst_io_bench_options *o = &w->plan->options;
    w->stride_room = pst_round_up(o->buffer_bytes, o->buffer_bytes >= HUGE_BYTES ? HUGE_BYTES : 4096);
    w->memory_bytes = w->stride_room * w->transfers;
    if (o->unlocked)
        return pst_memory_map(w->memory_bytes, "I/O buffers", &w->memory, err);
    uint64_t budget = pst_round_up(w->memory_bytes, HUGE_BYTES);
    pst_io_pool_options pool = {
        .struct_size = sizeof pool, .budget_bytes = budget, .arena_bytes = budget, .near_path = o->folders[0]};
    PST_TRY(pst_io_pool_create(NULL, &pool, &w->pool, err));
    return pst_io_pool_take(w->pool, w->memory_bytes, HUGE_BYTES, &w->memory, err);
}

static char *memory_of(const pst_bench_worker *w, uint32_t transfer)
{
    return (char *)w->memory + transfer * w->stride_room;
}

/* Different transfers and processes have different contents, the files of one transfer the same. */
static uint64_t key_of(const pst_bench_worker *w, uint32_t transfer, uint64_t generation)
{
    uint64_t stream = (uint64_t)w->process << 32 | transfer;
    return pst_bench_key(w->plan->options.seed, stream, generation);
}

static void need_contents(pst_bench_worker *w, uint32_t transfer, uint64_t generation)
{
    if (w->memory_contents[transfer] == generation)
        return;
    pst_bench_contents(key_of(w, transfer, generation), memory_of(w, transfer), w->plan->options.buffer_bytes);
    w->memory_contents[transfer] = generation;
}

/* ---- the handle and what hangs on it ---- */

static void drop_handle(pst_bench_worker *w)
{
    pst_io_batch_destroy(w->batch);
    w->batch = NULL;
    pst_heap_free(w->ops);
    w->ops = NULL;
    for (uint32_t i = 0; w->open_files != NULL && i < w->files * w->transfers; i++) {
        if (w->open_files[i] != NULL)
            pst_io_file_close(w->open_files[i], NULL);
        w->open_files[i] = NULL;
    }
    if (w->registered)
        pst_io_unregister(w->io, w->memory);
    w->registered = false;
    pst_io_close(w->io);
    w->io = NULL;
}

static int open_files(pst_bench_worker *w, pst_stripe_set *set, pst_error *err)
{
    for (uint32_t i = 0; i < w->files * w->transfers; i++) {
        const pst_bench_target *target = &w->targets[i];
        if (set != NULL)
            PST_TRY(pst_stripe_file_open(set, w->io, target->path, PST_IO_OPEN_WRITE | PST_IO_OPEN_CREATE,
                                         &w->open_files[i], err));
        else
            PST_TRY(pst_io_file_open(w->io, target->path, target->own ? PST_IO_OPEN_WRITE : PST_IO_OPEN_READ,
                                     &w->open_files[i], err));
    }
    return 0;
}

static int open_all_files(pst_bench_worker *w, pst_error *err)
{
    const pst_bench_plan *plan = w->plan;
    if (!plan->options.stripe)
        return open_files(w, NULL, err);
    pst_stripe_set *set;
    PST_TRY(pst_stripe_open((const char *const *)plan->folders, plan->options.folder_count, &set, err));
    int status = open_files(w, set, err);
    pst_stripe_close(set);
    return status;
}

/* Bytes of one operation. Transfers that run at once are served in turns, block by block, for they may lie on
 * different drives; else an operation is as large as its memory. */
static uint64_t slice_bytes(const pst_bench_worker *w)
{
    bool in_turns = w->transfers > 1 && !w->plan->options.sequential_requests;
    uint64_t block = w->settings.io.block_size;
    return in_turns && block < w->stride ? block : w->stride;
}

static int make_batch(pst_bench_worker *w, pst_error *err)
{
    uint64_t per_transfer = (w->settings.io_size + slice_bytes(w) - 1) / slice_bytes(w);
    uint64_t count = per_transfer * w->transfers;
    if (count > UINT32_MAX / 2)
        return pst_fail(err, PST_E_USAGE, NULL, "%llu operations of one repetition are too many",
                        (unsigned long long)count);
    w->op_room = (uint32_t)count;
    w->ops = pst_heap_calloc(count, sizeof *w->ops);
    if (w->ops == NULL)
        return pst_fail_memory(err, "operations", count * sizeof *w->ops);
    return pst_io_batch_create(w->io, w->op_room, &w->batch, err);
}

static int make_handle(pst_bench_worker *w, const pst_bench_settings *settings, pst_error *err)
{
    w->settings = *settings;
    pst_io_options io = settings->io;
    io.engine = settings->engine;
    io.measure_latency = true;
    io.path = w->plan->folders[0];
    PST_TRY(pst_io_open(&io, &w->io, err));
    w->settings.io = (pst_io_options){.struct_size = sizeof io};
    pst_io_get_settings(w->io, &w->settings.io);
    /* Whole blocks, so that the pieces are as large as they would be in memory for all of it. */
    uint64_t block = w->settings.io.block_size;
    w->stride = settings->buffer_bytes;
    if (w->stride < settings->io_size && w->stride > block)
        w->stride = w->stride / block * block;
    if (!w->plan->options.unlocked) {
        PST_TRY(pst_io_register(w->io, w->memory, w->memory_bytes, err));
        w->registered = true;
    }
    PST_TRY(open_all_files(w, err));
    return make_batch(w, err);
}

int pst_bench_worker_change(pst_bench_worker *w, const pst_bench_settings *settings, pst_error *err)
{
    drop_handle(w);
    int status = make_handle(w, settings, err);
    if (status < 0)
        drop_handle(w);
    return status;
}

void pst_bench_worker_get_about(const pst_bench_worker *w, pst_bench_about *out)
{
    *out = (pst_bench_about){.io = w->settings.io, .direct = true, .memory_bytes = w->memory_bytes};
    for (uint32_t i = 0; i < w->files * w->transfers; i++) {
        uint32_t alignment = pst_io_file_alignment(w->open_files[i]);
        out->direct = out->direct && pst_io_file_is_direct(w->open_files[i]);
        out->alignment = alignment > out->alignment ? alignment : out->alignment;
    }
    snprintf(out->engine, sizeof out->engine, "%s", pst_io_engine_name(w->io));
    if (w->pool != NULL) {
        pst_io_pool_stats stats;
        pst_io_pool_get_stats(w->pool, &stats);
        out->locked_bytes = stats.locked_bytes;
        out->huge_bytes = stats.huge_bytes;
    }
    pthread_mutex_lock(&w->io->lock);
    uint64_t probe = w->memory_bytes < PST_IO_CHUNK_BYTES ? w->memory_bytes : PST_IO_CHUNK_BYTES;
    if (w->registered && pst_io_region_slot(w->io, w->memory, probe) >= 0)
        out->registered_bytes = w->memory_bytes;
    pthread_mutex_unlock(&w->io->lock);
}

int pst_bench_worker_open(const pst_bench_plan *plan, uint32_t process, bool reports, pst_bench_worker **out,
                          pst_error *err)
{
    pst_bench_worker *w = pst_heap_calloc(1, sizeof *w);
    if (w == NULL)
        return pst_fail_memory(err, "a bench", sizeof *w);
    w->plan = plan;
    w->process = process;
    w->reports = reports && plan->options.on_progress != NULL;
    w->transfers = plan->options.transfers;
    w->files = plan->files_per_transfer;
    size_t files = (size_t)w->files * w->transfers;
    w->targets = plan->targets + process * files;
    w->memory_contents = pst_heap_reallocarray(NULL, w->transfers, sizeof *w->memory_contents);
    w->states = pst_heap_calloc(files, sizeof *w->states);
    w->open_files = pst_heap_calloc(files, sizeof(pst_io_file *));
    int status = 0;
    if (w->memory_contents == NULL || w->states == NULL || w->open_files == NULL)
        status = pst_fail_memory(err, "a table of files", files * sizeof *w->states);
    if (status >= 0)
        status = take_memory(w, err);
    if (status < 0) {
        pst_bench_worker_close(w);
        return status;
    }
    if (plan->options.buffer_bytes < plan->options.io_size) /* transfers go through it again and again */
        pst_sanitizer_expect_races(w->memory, w->memory_bytes);
    for (uint32_t i = 0; i < w->transfers; i++) {
        w->memory_contents[i] = NO_CONTENTS;
        need_contents(w, i, 0); /* random in any case, and all pages are there */
    }
    *out = w;
    return 0;
}

void pst_bench_worker_close(pst_bench_worker *w)
{
    if (w == NULL)
        return;
    drop_handle(w);
    if (w->pool != NULL)
        pst_io_pool_destroy(w->pool);
    else
        pst_memory_unmap(w->memory, w->memory_bytes);
    pst_heap_free(w->memory_contents);
    pst_heap_free(w->states);
    pst_heap_free(w->open_files);
    pst_heap_free(w);
}

/* ---- transfers ---- */

/* The operations of transfers [first, first + count), in turns. */
static uint32_t build_ops(pst_bench_worker *w, pst_io_kind kind, uint32_t file, uint32_t first, uint32_t count)
{
    uint64_t slice = slice_bytes(w), io_size = w->settings.io_size;
    uint32_t made = 0;
    for (uint64_t at = 0; at < io_size; at += slice) {
        for (uint32_t t = first; t < first + count; t++) {
            uint32_t index = file * w->transfers + t;
            w->ops[made++] = (pst_io_op){.file = w->open_files[index],
                                         .offset = w->targets[index].offset + at,
                                         .buffer = memory_of(w, t) + at % w->stride,
                                         .bytes = io_size - at < slice ? io_size - at : slice,
                                         .kind = kind};
        }
    }
    return made;
}

static uint64_t moved_bytes(const pst_bench_worker *w)
{
    pst_io_stats stats;
    pst_io_get_stats(w->io, &stats);
    return stats.bytes_read + stats.bytes_written;
}

/* Submits, and waits; the caller's callback is asked now and then whether to go on. */
static int move(pst_bench_worker *w, uint32_t count, pst_error *err)
{
    const pst_io_bench_options *o = &w->plan->options;
    uint64_t before = w->reports ? moved_bytes(w) : 0, total = w->settings.io_size * w->transfers;
    PST_TRY(pst_io_submit(w->batch, w->ops, count, err));
    uint64_t patience = w->reports ? PST_BENCH_TICK_MS * UINT64_C(1000000) : UINT64_MAX;
    int status;
    while ((status = pst_io_wait(w->batch, patience, err)) == 1) {
        uint64_t done = moved_bytes(w) - before;
        if (o->on_progress(o->user, done < total ? done : total, total) == 0)
            continue;
        pst_io_cancel(w->batch);
        pst_io_wait(w->batch, UINT64_MAX, NULL);
        return pst_fail(err, PST_E_CANCELLED, NULL, "cancelled");
    }
    return status;
}

static int sync_files(pst_bench_worker *w, uint32_t file, pst_error *err)
{
    for (uint32_t t = 0; t < w->transfers; t++)
        PST_TRY(pst_io_file_sync(w->open_files[file * w->transfers + t], err));
    return 0;
}

/* Writes contents into what has none, or too few. They are made durable, so that no later figure pays for them. */
static int fill_file(pst_bench_worker *w, uint32_t file, pst_error *err)
{
    bool wrote = false;
    for (uint32_t t = 0; t < w->transfers; t++) {
        uint32_t index = file * w->transfers + t;
        file_state *state = &w->states[index];
        if (!w->targets[index].own || state->bytes >= w->settings.io_size)
            continue;
        need_contents(w, t, state->generation);
        PST_TRY(move(w, build_ops(w, PST_IO_WRITE, file, t, 1), err));
        state->bytes = w->settings.io_size;
        wrote = true;
    }
    return wrote ? sync_files(w, file, err) : 0;
}

int pst_bench_worker_fill(pst_bench_worker *w, pst_error *err)
{
    if (w->io == NULL)
        return pst_fail(err, PST_E_USAGE, NULL, "the last change of settings failed");
    for (uint32_t file = 0; file < w->files; file++)
        PST_TRY(fill_file(w, file, err));
    return 0;
}

/* ---- a repetition ---- */

int pst_bench_worker_prepare(pst_bench_worker *w, pst_io_kind op, pst_error *err)
{
    if (w->io == NULL)
        return pst_fail(err, PST_E_USAGE, NULL, "the last change of settings failed");
    bool write = op == PST_IO_WRITE, validate = w->plan->options.validate;
    w->op = op;
    w->file = (uint32_t)(w->turns[write]++ % w->files);
    if (!write)
        PST_TRY(fill_file(w, w->file, err));
    if (write && validate)
        w->generation++;
    for (uint32_t t = 0; t < w->transfers; t++) {
        if (write) {
            need_contents(w, t, w->generation);
        } else if (validate) { /* so that what was there before cannot pass for what was read */
            memset(memory_of(w, t), POISON, w->settings.io_size);
            w->memory_contents[t] = NO_CONTENTS;
        }
    }
    if (!w->plan->options.sequential_requests)
        build_ops(w, op, w->file, 0, w->transfers);
    pst_io_latency unused;
    pst_io_get_latency(w->io, true, &unused);
    return 0;
}

static int transfer_all(pst_bench_worker *w, pst_error *err)
{
    if (!w->plan->options.sequential_requests)
        return move(w, w->op_room, err);
    for (uint32_t t = 0; t < w->transfers; t++)
        PST_TRY(move(w, build_ops(w, w->op, w->file, t, 1), err));
    return 0;
}

int pst_bench_worker_go(pst_bench_worker *w, pst_bench_figures *out, pst_error *err)
{
    pst_bench_figures figures;
    double cpu = pst_os_cpu_seconds();
    figures.begin_ns = pst_clock_ns();
    int status = transfer_all(w, err);
    if (status >= 0 && w->op == PST_IO_WRITE && w->plan->options.sync)
        status = sync_files(w, w->file, err);
    figures.end_ns = pst_clock_ns();
    figures.cpu_seconds = pst_os_cpu_seconds() - cpu;
    pst_io_get_latency(w->io, false, &figures.latency);
    for (uint32_t t = 0; w->op == PST_IO_WRITE && t < w->transfers; t++) {
        file_state *state = &w->states[w->file * w->transfers + t];
        bool kept = status >= 0 && state->generation == w->generation && state->bytes > w->settings.io_size;
        if (!kept)
            *state = (file_state){.bytes = status >= 0 ? w->settings.io_size : 0, .generation = w->generation};
    }
    PST_TRY(status);
    *out = figures;
    return 0;
}

static int compare(pst_bench_worker *w, uint32_t transfer, pst_error *err)
{
    uint32_t index = w->file * w->transfers + transfer;
    uint64_t generation = w->states[index].generation, bytes = w->settings.io_size;
    uint64_t same = pst_bench_compare(key_of(w, transfer, generation), memory_of(w, transfer), bytes);
    if (same < bytes)
        return pst_fail_at(err, -EIO, w->targets[index].path, same, "what was read is not what was written");
    if (bytes == w->plan->options.buffer_bytes)
        w->memory_contents[transfer] = generation;
    return 0;
}

int pst_bench_worker_check(pst_bench_worker *w, pst_error *err)
{
    if (!w->plan->options.validate)
        return 0;
    if (w->op == PST_IO_WRITE) {
        for (uint32_t t = 0; t < w->transfers; t++) {
            memset(memory_of(w, t), POISON, w->settings.io_size);
            w->memory_contents[t] = NO_CONTENTS;
            PST_TRY(move(w, build_ops(w, PST_IO_READ, w->file, t, 1), err));
        }
    }
    for (uint32_t t = 0; t < w->transfers; t++)
        PST_TRY(compare(w, t, err));
    return 0;
}
