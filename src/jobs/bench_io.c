/* SPDX-License-Identifier: Apache-2.0 */
/* The bench as callers see it: options, and the choice between one worker here and a crew of processes. */
#include "penstock/bench_io.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "jobs/bench_io_internal.h"

struct pst_io_bench {
    pst_bench_plan plan;
    pst_bench_settings settings;
    pst_bench_worker *worker; /* one process */
    pst_bench_crew *crew;     /* several */
    pst_bench_about about;
};

static int check_size(const pst_io_bench_options *o, const pst_io_options *io, pst_error *err)
{
    if (io->block_size % 4096 != 0)
        return pst_fail(err, PST_E_USAGE, NULL, "an I/O block size of %llu bytes is not a multiple of 4096",
                        (unsigned long long)io->block_size);
    if (o->validate && o->buffer_bytes < o->io_size)
        return pst_fail(err, PST_E_USAGE, NULL, "what does not stay in memory cannot be compared");
    return 0;
}

/* `o` has its sizes filled in. */
static int apply(pst_io_bench *bench, const pst_io_bench_options *o, pst_error *err)
{
    pst_bench_settings settings;
    memset(&settings, 0, sizeof settings); /* it is sent as bytes */
    const char *engine = o->io.engine != NULL ? o->io.engine : "auto";
    if (strlen(engine) >= sizeof settings.engine)
        return pst_fail(err, PST_E_USAGE, NULL, "there is no I/O engine \"%.80s\"", engine);
    size_t known = o->io.struct_size;
    memcpy(&settings.io, &o->io, known == 0 || known > sizeof settings.io ? sizeof settings.io : known);
    settings.io.struct_size = sizeof settings.io;
    strcpy(settings.engine, engine);
    settings.io_size = o->io_size;
    settings.buffer_bytes = o->buffer_bytes;
    PST_TRY(check_size(o, &settings.io, err));
    if (bench->crew != NULL) {
        PST_TRY(pst_bench_crew_change(bench->crew, &settings, err));
        pst_bench_crew_get_about(bench->crew, &bench->about);
    } else {
        PST_TRY(pst_bench_worker_change(bench->worker, &settings, err));
        pst_bench_worker_get_about(bench->worker, &bench->about);
    }
    bench->settings = settings;
    return 0;
}

int pst_io_bench_open(const pst_io_bench_options *options, pst_io_bench **out, pst_error *err)
{
    pst_io_bench_options own = {0};
    if (options == NULL || options->struct_size < offsetof(pst_io_bench_options, stripe))
        return pst_fail(err, PST_E_USAGE, NULL, "a bench needs options with their size");
    memcpy(&own, options, options->struct_size < sizeof own ? options->struct_size : sizeof own);
    pst_io_bench *bench = pst_heap_calloc(1, sizeof *bench);
    if (bench == NULL)
        return pst_fail_memory(err, "a bench", sizeof *bench);
    int status = pst_bench_plan_make(&own, &bench->plan, err);
    if (status < 0) {
        pst_heap_free(bench);
        return status;
    }
    if (bench->plan.options.processes > 1)
        status = pst_bench_crew_start(&bench->plan, &bench->crew, err);
    else
        status = pst_bench_worker_open(&bench->plan, 0, true, &bench->worker, err);
    if (status >= 0)
        status = apply(bench, &bench->plan.options, err);
    if (status < 0) {
        pst_io_bench_close(bench);
        return status;
    }
    *out = bench;
    return 0;
}

int pst_io_bench_change(pst_io_bench *bench, const pst_io_bench_options *options, pst_error *err)
{
    pst_io_bench_options own = {0}, *all = &bench->plan.options;
    memcpy(&own, options, options->struct_size < sizeof own ? options->struct_size : sizeof own);
    if (own.io_size > all->io_size || own.buffer_bytes > all->buffer_bytes)
        return pst_fail(err, PST_E_USAGE, NULL, "the files and buffers of this measurement are smaller");
    if (own.io_size == 0)
        own.io_size = all->io_size;
    if (own.buffer_bytes == 0)
        own.buffer_bytes = all->buffer_bytes;
    if (own.buffer_bytes > own.io_size)
        own.buffer_bytes = own.io_size;
    own.validate = all->validate;
    return apply(bench, &own, err);
}

static int run_here(pst_bench_worker *worker, pst_io_kind op, pst_io_bench_result *result, pst_error *err)
{
    pst_bench_figures figures;
    PST_TRY(pst_bench_worker_prepare(worker, op, err));
    PST_TRY(pst_bench_worker_go(worker, &figures, err));
    result->seconds = result->slowest_seconds = (double)(figures.end_ns - figures.begin_ns) * 1e-9;
    result->cpu_seconds = figures.cpu_seconds;
    result->latency = figures.latency;
    return pst_bench_worker_check(worker, err);
}

int pst_io_bench_run(pst_io_bench *bench, pst_io_kind op, pst_io_bench_result *out, pst_error *err)
{
    if (op != PST_IO_READ && op != PST_IO_WRITE)
        return pst_fail(err, PST_E_USAGE, NULL, "a repetition reads or writes");
    if (op == PST_IO_WRITE && !bench->plan.writable)
        return pst_fail(err, PST_E_USAGE, NULL, "what exists already is read, never written");
    pst_io_bench_result result = {.op = op};
    PST_TRY(bench->crew != NULL ? pst_bench_crew_run(bench->crew, op, &result, err)
                                : run_here(bench->worker, op, &result, err));
    const pst_io_bench_options *o = &bench->plan.options;
    result.bytes = bench->settings.io_size * o->transfers * o->processes;
    *out = result;
    return 0;
}

int pst_io_bench_fill(pst_io_bench *bench, pst_error *err)
{
    return bench->crew != NULL ? pst_bench_crew_fill(bench->crew, err) : pst_bench_worker_fill(bench->worker, err);
}

void pst_io_bench_get_settings(const pst_io_bench *bench, pst_io_options *out)
{
    pst_io_options settings = bench->about.io;
    settings.engine = bench->about.engine; /* a handle in another process named it */
    settings.path = NULL;
    *out = settings;
}

void pst_io_bench_get_info(const pst_io_bench *bench, pst_io_bench_info *out)
{
    pst_io_bench_info info = {.io_size = bench->settings.io_size,
                              .buffer_bytes = bench->settings.buffer_bytes,
                              .processes = bench->plan.options.processes,
                              .transfers = bench->plan.options.transfers,
                              .direct = bench->about.direct,
                              .writable = bench->plan.writable,
                              .alignment = bench->about.alignment,
                              .memory_bytes = bench->about.memory_bytes,
                              .locked_bytes = bench->about.locked_bytes,
                              .huge_bytes = bench->about.huge_bytes,
                              .registered_bytes = bench->about.registered_bytes};
    pst_io_bench_get_settings(bench, &info.io);
    *out = info;
}

const char *pst_io_bench_path(const pst_io_bench *bench, uint32_t n, uint64_t *out_offset)
{
    const pst_bench_plan *plan = &bench->plan;
    uint32_t transfers = plan->options.transfers, processes = plan->options.processes;
    if (n >= transfers * processes || plan->options.stripe)
        return NULL;
    size_t index = (size_t)(n / transfers) * plan->files_per_transfer * transfers + n % transfers;
    *out_offset = plan->targets[index].offset;
    return plan->targets[index].path;
}

void pst_io_bench_close(pst_io_bench *bench)
{
    if (bench == NULL)
        return;
    pst_bench_crew_stop(bench->crew);
    pst_bench_worker_close(bench->worker);
    pst_bench_plan_release(&bench->plan);
    pst_heap_free(bench);
}
