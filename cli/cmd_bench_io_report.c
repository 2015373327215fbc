/* SPDX-License-Identifier: Apache-2.0 */
/* What bench io prints: a table, or one JSON document with every repetition and what they belong to. */
#include <inttypes.h>
#include <string.h>
#include <sys/utsname.h>

#include "base/stats.h"
#include "cmd_bench_io.h"
#include "machine.h"
#include "output.h"

/* ---- what the figures belong to ---- */

static json_t *folders_json(const io_job *job)
{
    json_t *list = json_array();
    for (uint32_t i = 0; list != NULL && i < job->folder_count; i++)
        cli_json_append(list, cli_folder_json(job->folders[i]));
    return list;
}

/* What the library does with no settings on this file system. */
static json_t *defaults_json(const io_job *job)
{
    pst_io_options options = {.struct_size = sizeof options, .path = job->folders[0]}, settings = {0};
    pst_io *io;
    if (pst_io_open(&options, &io, NULL) < 0)
        return json_null();
    pst_io_get_settings(io, &settings);
    json_t *object = json_pack("{s:s, s:I, s:I, s:I, s:b, s:b}", "engine", pst_io_engine_name(io), "block_size",
                               (json_int_t)settings.block_size, "queue_depth", (json_int_t)settings.queue_depth,
                               "workers", (json_int_t)settings.workers, "single_submit", settings.single_submit,
                               "overlap_events", settings.overlap_events != PST_IO_OFF);
    pst_io_close(io);
    return object;
}

static json_t *settings_json(const io_job *job)
{
    const io_values *v = job->values;
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:b, s:b, s:b, s:b, s:b, s:b, s:b, s:b, s:b}", "loops",
                     (json_int_t)job->loops, "warmup_loops", (json_int_t)job->warmup_loops, "processes",
                     (json_int_t)v->multi_process, "transfers", (json_int_t)job->transfers, "seed", (json_int_t)v->seed,
                     "sequential_requests", v->sequential_requests, "single_submit", v->single_submit, "overlap_events",
                     !v->no_overlap_events, "different_file_each_iteration", v->different_file, "validate", v->validate,
                     "sync", v->sync, "buffered", v->buffered, "unlocked", v->unlocked, "stripe", v->stripe);
}

/* ---- JSON ---- */

static json_t *latency_json(const pst_io_latency *l)
{
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "count", (json_int_t)l->count, "min",
                     (json_int_t)l->min_ns, "mean", (json_int_t)l->mean_ns, "p50", (json_int_t)l->p50_ns, "p90",
                     (json_int_t)l->p90_ns, "p99", (json_int_t)l->p99_ns, "p999", (json_int_t)l->p999_ns, "max",
                     (json_int_t)l->max_ns);
}

static json_t *repetition_json(const pst_io_bench_result *r)
{
    return json_pack("{s:f, s:f, s:f, s:f}", "seconds", r->seconds, "bytes_per_second", io_rate(r), "cpu_seconds",
                     r->cpu_seconds, "slowest_process_seconds", r->slowest_seconds);
}

static json_t *pair_json(const io_cell *cell, size_t i)
{
    const io_fio_run *fio = &cell->fio[i];
    const pst_io_bench_result *ours = &cell->loops[i];
    return json_pack("{s:s, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:I, s:I, s:f}", "first",
                     cell->fio_first[i] ? "fio" : "penstock", "seconds", ours->seconds, "bytes_per_second",
                     io_rate(ours), "cpu_seconds", ours->cpu_seconds, "fio_seconds", fio->seconds,
                     "fio_bytes_per_second", fio->bytes_per_second, "fio_cpu_seconds", fio->cpu_seconds,
                     "fio_process_cpu_seconds", fio->process_cpu_seconds, "fio_p50_ns", (json_int_t)fio->p50_ns,
                     "fio_p99_ns", (json_int_t)fio->p99_ns, "ratio", io_pair_ratio(cell, i));
}

static json_t *tried_json(const io_cell *cell)
{
    json_t *object = json_object();
    for (int i = 0; object != NULL && i < IO_FIO_VARIANTS; i++) {
        if (cell->tried[i] > 0)
            json_object_set_new(object, io_fio_variant_name(i), json_real(cell->tried[i]));
    }
    return object;
}

static json_t *against_json(const io_cell *cell, const io_summary *s)
{
    json_t *pairs = json_array();
    for (size_t i = 0; pairs != NULL && i < cell->count; i++)
        cli_json_append(pairs, pair_json(cell, i));
    return json_pack("{s:s, s:s, s:o, s:f, s:f, s:[f, f], s:s, s:f, s:f, s:o}", "tool", "fio", "engine",
                     io_fio_variant_name(cell->variant), "tried_bytes_per_second", tried_json(cell), "bytes_per_second",
                     s->fio_median, "median_ratio", s->ratio, "ratio_95", s->ratio_low, s->ratio_high, "interval",
                     "bootstrap of the median", "cpu_seconds_per_gb", s->cpu_per_gb, "fio_cpu_seconds_per_gb",
                     s->fio_cpu_per_gb, "pairs", pairs);
}

/* As cli_io_choice has it. */
static const char *settings_from(const io_config *config)
{
    bool given = strcmp(config->engine, "auto") != 0 || config->block_size != 0 || config->queue_depth != 0 ||
                 config->workers != 0;
    return config->from_profile ? "profile" : given ? "options" : "defaults";
}

static json_t *cell_json(const io_cell *cell)
{
    const pst_io_bench_info *info = &cell->config->info;
    io_summary s;
    io_summarize(cell, &s);
    const pst_io_bench_result *r = &cell->loops[s.median_index];
    json_t *repetitions = json_array();
    for (size_t i = 0; repetitions != NULL && i < cell->count; i++)
        cli_json_append(repetitions, repetition_json(&cell->loops[i]));
    json_t *object = json_pack("{s:s, s:I, s:f, s:f, s:f, s:f, s:o, s:f, s:f, s:f}", "op", io_op_name(cell->op),
                               "bytes", (json_int_t)r->bytes, "seconds", r->seconds, "bytes_per_second", io_rate(r),
                               "cpu_seconds", r->cpu_seconds, "slowest_process_seconds", r->slowest_seconds,
                               "latency_ns", latency_json(&r->latency), "min_bytes_per_second", s.min,
                               "max_bytes_per_second", s.max, "cpu_seconds_per_gb", s.cpu_per_gb);
    json_t *settings =
        json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:b, s:b, s:b, s:I, s:I, s:I, s:I, s:I}", "engine",
                  cell->config->engine_name, "from", settings_from(cell->config), "io_size", (json_int_t)info->io_size,
                  "block_size", (json_int_t)info->io.block_size, "queue_depth", (json_int_t)info->io.queue_depth,
                  "workers", (json_int_t)info->io.workers, "processes", (json_int_t)info->processes, "transfers",
                  (json_int_t)info->transfers, "buffer_size", (json_int_t)info->buffer_bytes, "direct", info->direct,
                  "single_submit", info->io.single_submit, "overlap_events", info->io.overlap_events != PST_IO_OFF,
                  "alignment", (json_int_t)info->alignment, "memory_bytes", (json_int_t)info->memory_bytes,
                  "locked_bytes", (json_int_t)info->locked_bytes, "huge_bytes", (json_int_t)info->huge_bytes,
                  "registered_bytes", (json_int_t)info->registered_bytes);
    if (object == NULL || settings == NULL || json_object_update(object, settings) != 0 ||
        json_object_set_new(object, "repetitions", repetitions) != 0 ||
        (cell->fio != NULL && json_object_set_new(object, "against", against_json(cell, &s)) != 0)) {
        json_decref(object);
        object = NULL;
    }
    json_decref(settings);
    return object;
}

static json_t *document_json(const io_job *job)
{
    json_t *results = json_array();
    for (size_t i = 0; results != NULL && i < job->cell_count; i++) {
        if (cli_json_append(results, cell_json(&job->cells[i])) != 0) {
            json_decref(results);
            return NULL;
        }
    }
    struct utsname system = {.release = "unknown"};
    uname(&system);
    json_t *document = json_pack("{s:o, s:o, s:s, s:o, s:o, s:o}", "results", results, "machine", cli_machine_json(),
                                 "kernel", system.release, "folders", folders_json(job), "settings", settings_json(job),
                                 "defaults", defaults_json(job));
    if (document != NULL && job->fio_version[0] != '\0')
        json_object_set_new(document, "fio_version", json_string(job->fio_version));
    return document;
}

/* ---- text ---- */

static char *time_text(uint64_t ns, char *text, size_t text_bytes)
{
    if (ns < 10000000)
        snprintf(text, text_bytes, "%.0f us", (double)ns / 1e3);
    else
        snprintf(text, text_bytes, "%.1f ms", (double)ns / 1e6);
    return text;
}

static int print_heading(const io_job *job, pst_error *err)
{
    const pst_io_bench_info *info = &job->cells[0].config->info;
    for (uint32_t i = 0; i < job->folder_count; i++)
        PST_TRY(cli_print_mount(job->folders[i], err));
    bool locked = info->locked_bytes > 0, registered = info->registered_bytes > 0;
    return cli_out_printf(err, "%s I/O; %s%s memory; %zu repetition%s after %zu; %u process%s\n\n",
                          info->direct ? "direct" : "buffered (page cache)", locked ? "locked" : "unlocked",
                          registered ? ", registered" : "", job->loops, job->loops == 1 ? "" : "s", job->warmup_loops,
                          info->processes, info->processes == 1 ? "" : "es");
}

static int print_row(const io_cell *cell, pst_error *err)
{
    const pst_io_bench_info *info = &cell->config->info;
    io_summary s;
    io_summarize(cell, &s);
    const pst_io_latency *l = &cell->loops[s.median_index].latency;
    char size[32], block[32], rate[48], p50[32], p99[32];
    snprintf(rate, sizeof rate, "%.3f (%.3f-%.3f)", s.median / 1e9, s.min / 1e9, s.max / 1e9);
    return cli_out_printf(err, "%-5s %8s %8s %5u %7u  %-10s %22s %9.4f %9s %9s\n", io_op_name(cell->op),
                          io_size_text(info->io_size, size, sizeof size),
                          io_size_text(info->io.block_size, block, sizeof block), info->io.queue_depth,
                          info->io.workers, cell->config->engine_name, rate, s.cpu_per_gb,
                          time_text(l->p50_ns, p50, sizeof p50), time_text(l->p99_ns, p99, sizeof p99));
}

/* As ds_io tells it, but with GB of 10^9 bytes. */
static int print_slowest(const io_cell *cell, pst_error *err)
{
    io_summary s;
    io_summarize(cell, &s);
    const pst_io_bench_result *r = &cell->loops[s.median_index];
    return cli_out_printf(err, "%s: end to end %.6f s, %.3f GB/s; slowest process %.6f s\n", io_op_name(cell->op),
                          r->seconds, io_rate(r) / 1e9, r->slowest_seconds);
}

static int print_pairs(const io_job *job, const io_cell *cell, pst_error *err)
{
    const pst_io_bench_info *info = &cell->config->info;
    char size[32], block[32];
    io_summary s;
    io_summarize(cell, &s);
    PST_TRY(cli_out_printf(err, "\n%s %s, blocks of %s, depth %u: %s with %s and %s\n", io_op_name(cell->op),
                           io_size_text(info->io_size, size, sizeof size),
                           io_size_text(info->io.block_size, block, sizeof block), info->io.queue_depth,
                           job->fio_version, io_fio_variant_name(cell->variant), cell->config->engine_name));
    for (size_t i = 0; i < cell->count; i++)
        PST_TRY(cli_out_printf(err, "  pair %zu (%s first): fio %.3f GB/s, penstock %.3f GB/s, ratio %.3f\n", i + 1,
                               cell->fio_first[i] ? "fio" : "penstock", cell->fio[i].bytes_per_second / 1e9,
                               io_rate(&cell->loops[i]) / 1e9, io_pair_ratio(cell, i)));
    return cli_out_printf(err,
                          "  median ratio %.3f, 95 %% interval %.3f to %.3f (bootstrap of the median); processor "
                          "seconds per GB: fio %.4f, penstock %.4f\n",
                          s.ratio, s.ratio_low, s.ratio_high, s.fio_cpu_per_gb, s.cpu_per_gb);
}

static int print_text(const io_job *job, pst_error *err)
{
    PST_TRY(print_heading(job, err));
    PST_TRY(cli_out_printf(err, "%-5s %8s %8s %5s %7s  %-10s %22s %9s %9s %9s\n", "op", "size", "block", "depth",
                           "workers", "engine", "GB/s (min-max)", "CPU s/GB", "p50", "p99"));
    for (size_t i = 0; i < job->cell_count; i++)
        PST_TRY(print_row(&job->cells[i], err));
    if (job->config_count == 1)
        PST_TRY(cli_out_text("\n", err));
    for (size_t i = 0; job->config_count == 1 && i < job->cell_count; i++)
        PST_TRY(print_slowest(&job->cells[i], err));
    for (size_t i = 0; i < job->cell_count; i++) {
        if (job->cells[i].fio != NULL)
            PST_TRY(print_pairs(job, &job->cells[i], err));
    }
    return cli_out_flush(err);
}

int io_print_report(const io_job *job, pst_error *err)
{
    return job->values->report.json ? cli_out_json(document_json(job), err) : print_text(job, err);
}
