/* SPDX-License-Identifier: Apache-2.0 */
/* What bench save and bench load print: a table, or one JSON document with rows like those of bench io; and the chart. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>

#include "base/heap.h"
#include "base/number.h"
#include "base/stats.h"
#include "cmd_bench_ckpt.h"
#include "machine.h"
#include "output.h"
#include "plot.h"

/* ---- figures ---- */

typedef struct summary {
    const ckpt_run *middle;  /* the repetition whose time is the median (the lower middle) */
    double median, min, max; /* bytes per second */
    double cpu_per_gb;       /* processor seconds per 10^9 bytes, median */
    double ratio;            /* to the first side's or fio's rate of the same turn, median; negative: none */
} summary;

static double rate(const ckpt_run *run)
{
    return run->seconds > 0 ? (double)run->bytes / run->seconds : 0;
}

static const ckpt_run *middle_of(const ckpt_cell *cell)
{
    size_t middle = (cell->count - 1) / 2;
    for (size_t i = 0; i < cell->count; i++) {
        size_t below = 0, equal = 0;
        for (size_t k = 0; k < cell->count; k++) {
            below += cell->runs[k].seconds < cell->runs[i].seconds;
            equal += cell->runs[k].seconds == cell->runs[i].seconds;
        }
        if (below <= middle && below + equal > middle)
            return &cell->runs[i];
    }
    return &cell->runs[0];
}

/* to: the cell that it is compared with, or NULL. */
static summary summarize(const ckpt_cell *cell, const ckpt_cell *to)
{
    summary s = {.middle = middle_of(cell), .ratio = -1};
    s.median = s.min = s.max = rate(s.middle);
    double *values = pst_heap_reallocarray(NULL, cell->count, sizeof *values);
    for (size_t i = 0; i < cell->count; i++) {
        double one = rate(&cell->runs[i]);
        s.min = one < s.min ? one : s.min;
        s.max = one > s.max ? one : s.max;
        if (values != NULL)
            values[i] = cell->runs[i].bytes > 0 ? cell->runs[i].cpu_seconds * 1e9 / (double)cell->runs[i].bytes : 0;
    }
    s.cpu_per_gb = values != NULL ? pst_median(values, cell->count) : 0;
    for (size_t i = 0; values != NULL && to != NULL && i < cell->count; i++)
        values[i] = rate(&to->runs[i]) > 0 ? rate(&cell->runs[i]) / rate(&to->runs[i]) : 0;
    if (values != NULL && to != NULL)
        s.ratio = pst_median(values, cell->count);
    pst_heap_free(values);
    return s;
}

static const ckpt_cell *find_cell(const ckpt_round *round, ckpt_side side)
{
    for (size_t i = 0; i < round->cell_count; i++)
        if (round->cells[i].side == side)
            return &round->cells[i];
    return NULL;
}

static const char *digests_text(const ckpt_job *job)
{
    bool digests = job->load ? job->values->verify : !job->values->no_digests;
    return job->load ? digests ? "digests checked" : "digests not checked" : digests ? "digests" : "no digests";
}

/* ---- JSON ---- */

static json_t *repetitions_json(const ckpt_cell *cell)
{
    json_t *list = json_array();
    for (size_t i = 0; list != NULL && i < cell->count; i++)
        cli_json_append(list, json_pack("{s:f, s:f, s:f}", "seconds", cell->runs[i].seconds, "bytes_per_second",
                                        rate(&cell->runs[i]), "cpu_seconds", cell->runs[i].cpu_seconds));
    return list;
}

static const char *format_name(const ckpt_job *job, ckpt_side side)
{
    if (side == CKPT_FIO)
        return "bytes";
    if (side == CKPT_PENSTOCK)
        return job->format == PST_CKPT_TORCH ? "pt" : "safetensors";
    return side == CKPT_SAFETENSORS ? "safetensors" : "pt";
}

static json_t *own_settings_json(const ckpt_job *job, const ckpt_round *round)
{
    const pst_ckpt_report *r = &round->report;
    return json_pack("{s:s, s:s, s:I, s:I, s:I, s:b, s:I, s:I}", "engine", r->io_engine ? r->io_engine : "unknown",
                     "from", job->io.from, "block_size", (json_int_t)r->block_size, "queue_depth",
                     (json_int_t)r->queue_depth, "workers", (json_int_t)r->io_workers, "direct", r->direct,
                     "file_bytes", (json_int_t)r->file_bytes, "retried", (json_int_t)r->retried);
}

static json_t *cell_json(const ckpt_job *job, const ckpt_round *round, const ckpt_cell *cell)
{
    const ckpt_cell *fio = find_cell(round, CKPT_FIO), *ours = find_cell(round, CKPT_PENSTOCK);
    summary s = summarize(cell, fio);
    json_t *object = json_pack("{s:s, s:s, s:s, s:s, s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:I, s:o}", "op",
                               job->load ? "load" : "save", "tool", ckpt_side_names[cell->side], "setting", cell->how,
                               "format", format_name(job, cell->side), "bytes", (json_int_t)s.middle->bytes, "io_size",
                               (json_int_t)round->bytes, "seconds", s.middle->seconds, "bytes_per_second", s.median,
                               "cpu_seconds", s.middle->cpu_seconds, "min_bytes_per_second", s.min,
                               "max_bytes_per_second", s.max, "cpu_seconds_per_gb", s.cpu_per_gb, "tensors",
                               (json_int_t)round->tensors, "repetitions", repetitions_json(cell));
    if (object != NULL && fio != NULL)
        json_object_set_new(object, "share_of_fio", json_real(s.ratio));
    if (object != NULL && cell != ours)
        json_object_set_new(object, "penstock_ratio", json_real(summarize(ours, cell).ratio));
    if (object != NULL && cell == ours && !job->load)
        json_object_update_new(object, own_settings_json(job, round));
    return object;
}

static json_t *document_json(const ckpt_job *job)
{
    const ckpt_values *v = job->values;
    json_t *results = json_array(), *folders = json_array();
    for (size_t r = 0; r < job->size_count; r++)
        for (size_t i = 0; i < job->rounds[r].cell_count; i++)
            if (cli_json_append(results, cell_json(job, &job->rounds[r], &job->rounds[r].cells[i])) != 0) {
                json_decref(results);
                json_decref(folders);
                return NULL;
            }
    cli_json_append(folders, cli_folder_json(job->place));
    struct utsname system = {.release = "unknown"};
    uname(&system);
    json_t *document = json_pack("{s:o, s:o, s:s, s:o, s:{s:I, s:I, s:I, s:I, s:b}}", "results", results, "machine",
                                 cli_machine_json(), "kernel", system.release, "folders", folders, "settings", "loops",
                                 (json_int_t)v->loops, "warmup_loops", (json_int_t)v->warmup_loops, "seed",
                                 (json_int_t)v->seed, "processes", (json_int_t)(v->ranks > 0 ? v->ranks : 1), "digests",
                                 job->load ? v->verify : !v->no_digests);
    if (document != NULL && job->fio_version[0] != '\0')
        json_object_set_new(document, "fio_version", json_string(job->fio_version));
    return document;
}

/* ---- text ---- */

static int print_cell(const ckpt_job *job, const ckpt_round *round, const ckpt_cell *cell, pst_error *err)
{
    const ckpt_cell *fio = find_cell(round, CKPT_FIO), *ours = find_cell(round, CKPT_PENSTOCK);
    summary s = summarize(cell, fio);
    char rates[48], share[24] = "-", faster[24] = "-";
    snprintf(rates, sizeof rates, "%.3f (%.3f-%.3f)", s.median / 1e9, s.min / 1e9, s.max / 1e9);
    if (fio != NULL)
        snprintf(share, sizeof share, "%.1f %%", 100 * s.ratio);
    if (cell != ours)
        snprintf(faster, sizeof faster, "%.2f", summarize(ours, cell).ratio);
    return cli_out_printf(err, "%-12s %-12s %9.3f %24s %8s %9s %9.3f  %s\n", ckpt_side_names[cell->side],
                          format_name(job, cell->side), s.middle->seconds, rates, share, faster, s.cpu_per_gb,
                          cell->side == CKPT_PENSTOCK && round->report.io_engine != NULL ? round->report.io_engine
                                                                                         : cell->how);
}

static int print_text(const ckpt_job *job, pst_error *err)
{
    const ckpt_values *v = job->values;
    PST_TRY(cli_print_mount(job->place, err));
    for (size_t r = 0; r < job->size_count; r++) {
        const ckpt_round *round = &job->rounds[r];
        char size[32];
        PST_TRY(cli_out_printf(
            err, "\n%s %s in %zu tensors, %s, %s; %" PRIu64 " process%s; %" PRIu64 " repetitions after %" PRIu64 "\n",
            job->load ? "load" : "save", pst_format_bytes((double)round->bytes, size, sizeof size), round->tensors,
            digests_text(job),
            job->load              ? "cold"
            : round->report.direct ? "direct"
                                   : "through the page cache",
            v->ranks > 0 ? v->ranks : 1, v->ranks > 1 ? "es" : "", v->loops, v->warmup_loops));
        PST_TRY(cli_out_printf(err, "%-12s %-12s %9s %24s %8s %9s %9s  %s\n", "", "format", "seconds", "GB/s (min-max)",
                               "of fio", "penstock", "CPU s/GB", "with"));
        for (size_t i = 0; i < round->cell_count; i++)
            PST_TRY(print_cell(job, round, &round->cells[i], err));
        const ckpt_cell *fio = find_cell(round, CKPT_FIO);
        if (fio != NULL)
            PST_TRY(cli_out_printf(err, "%.1f %% of the bound, limited by disk\n",
                                   100 * summarize(find_cell(round, CKPT_PENSTOCK), fio).ratio));
    }
    return cli_out_flush(err);
}

int ckpt_print_report(const ckpt_job *job, pst_error *err)
{
    return job->values->report.json ? cli_out_json(document_json(job), err) : print_text(job, err);
}

/* ---- the chart ---- */

enum { LABEL_BYTES = 32 };

/* Of each side a line, over the sizes or over the repetitions. */
static void fill_line(const ckpt_job *job, size_t number, size_t places, plot_line *line, plot_point *points)
{
    ckpt_side side = job->sides[number];
    *line = (plot_line){
        .name = ckpt_side_names[side], .color = number, .dashed = side == CKPT_FIO, .points = points, .count = places};
    for (size_t p = 0; p < places; p++) {
        if (job->size_count > 1) {
            summary s = summarize(&job->rounds[p].cells[number], NULL);
            points[p] = (plot_point){.place = p, .y = s.median / 1e9, .low = s.min / 1e9, .high = s.max / 1e9};
        } else {
            double y = rate(&job->rounds[0].cells[number].runs[p]) / 1e9;
            points[p] = (plot_point){.place = p, .y = y, .low = y, .high = y};
        }
    }
}

static int draw(const void *user, FILE *to, pst_error *err)
{
    const ckpt_job *job = user;
    size_t places = job->size_count > 1 ? job->size_count : job->values->loops;
    plot_line lines[CKPT_SIDES];
    plot_point *points = pst_heap_calloc(places * job->side_count, sizeof *points);
    char(*labels)[LABEL_BYTES] = pst_heap_calloc(places, sizeof *labels);
    const char **texts = pst_heap_calloc(places, sizeof *texts);
    int status = 0;
    if (points == NULL || labels == NULL || texts == NULL) {
        status = pst_fail_memory(err, "a chart", places * sizeof *points);
    } else {
        for (size_t p = 0; p < places; p++) {
            if (job->size_count > 1)
                pst_format_bytes((double)job->rounds[p].bytes, labels[p], LABEL_BYTES);
            else
                snprintf(labels[p], LABEL_BYTES, "%zu", p + 1);
            texts[p] = labels[p];
        }
        for (size_t i = 0; i < job->side_count; i++)
            fill_line(job, i, places, &lines[i], points + i * places);
        char subtitle[160];
        snprintf(subtitle, sizeof subtitle, "as %s, %s, %" PRIu64 " repetitions, seconds include the syncs",
                 format_name(job, CKPT_PENSTOCK), digests_text(job), job->values->loops);
        const plot_panel panel = {.title = job->load ? "load" : "save", .lines = lines, .count = job->side_count};
        plot p = {.title = job->load ? "penstock bench load" : "penstock bench save",
                  .subtitle = subtitle,
                  .x_label = job->size_count > 1 ? "bytes of tensors" : "repetition",
                  .y_label = "rate (GB/s, 10^9 bytes)",
                  .places = texts,
                  .place_count = places,
                  .panels = &panel,
                  .panel_count = 1};
        plot_write(&p, to);
    }
    pst_heap_free(points);
    pst_heap_free(labels);
    pst_heap_free(texts);
    return status;
}

int ckpt_plot(const ckpt_job *job, pst_error *err)
{
    return plot_file_write(job->values->plot, draw, job, err);
}
