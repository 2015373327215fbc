/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fio with a cell's settings on a cell's files: one job per transfer and worker, each with its share of the file, as
 * this program's workers share it. No shell is involved.
 *
 * What is compared: fio's own running time and its jobs' processor time, not those of its process, whose start takes a
 * good part of a small transfer's. Its running time is in whole milliseconds, rounded down, and that of the slowest job
 * where there are several, which may have begun one after the other; both are in its favour. Its jobs' processor time is
 * in whole milliseconds, too, each of user and system rounded down, so for processor time per byte take large transfers.
 * Its contents of blocks are not scrambled anew for each write and only one latency is measured, as here, so that
 * neither costs it time.
 */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/heap.h"
#include "cmd_bench_io.h"
#include "process.h"

enum { TRIES = 2 };

typedef struct fio_variant {
    const char *name, *engine;
    const char *options[3];
    const char *environment; /* "NAME=value" */
    const char *ours;        /* the engine of ours that it is the equivalent of */
    bool one_per_job;        /* one I/O at a time in each job */
} fio_variant;

static const fio_variant variants[] = {
    {"io_uring", "io_uring", {NULL}, NULL, "io_uring", false},
    {"io_uring, registered", "io_uring", {"--fixedbufs=1", "--registerfiles=1"}, NULL, "io_uring", false},
    {"io_uring, registered, transparent huge pages",
     "io_uring",
     {"--fixedbufs=1", "--registerfiles=1"},
     "GLIBC_TUNABLES=glibc.malloc.hugetlb=1",
     "io_uring",
     false},
    {"io_uring, registered, reserved huge pages",
     "io_uring",
     {"--fixedbufs=1", "--registerfiles=1", "--iomem=shmhuge"},
     NULL,
     "io_uring",
     false},
    {"libaio", "libaio", {NULL}, NULL, "libaio", false},
    {"psync", "psync", {NULL}, NULL, "threads", true},
    {"null", "null", {NULL}, NULL, "null", false},
};
_Static_assert(sizeof variants / sizeof variants[0] <= IO_FIO_VARIANTS, "a cell has a figure for each");

const char *io_fio_variant_name(int variant)
{
    return variants[variant].name;
}

/* ---- arguments ---- */

/* ':' separates files for fio, and '\' makes it a letter. */
static void add_file(cli_words *list, const char *path)
{
    char escaped[4096 * 2];
    size_t length = 0;
    for (const char *at = path; *at != '\0' && length + 2 < sizeof escaped; at++) {
        if (*at == ':' || *at == '\\')
            escaped[length++] = '\\';
        escaped[length++] = *at;
    }
    escaped[length] = '\0';
    cli_words_add(list, "--filename=%s", escaped);
}

static void add_common(cli_words *list, const io_job *job, const io_cell *cell, const fio_variant *variant)
{
    const pst_io_bench_info *info = &cell->config->info;
    bool write = cell->op == PST_IO_WRITE;
    cli_words_add(list, "%s", job->fio);
    cli_words_add(list, "--output-format=json");
    cli_words_add(list, "--eta=never");
    cli_words_add(list, "--rw=%s", write ? "write" : "read");
    if (!write)
        cli_words_add(list, "--readonly");
    cli_words_add(list, "--ioengine=%s", variant->engine);
    for (size_t i = 0; i < CLI_COUNT(variant->options) && variant->options[i] != NULL; i++)
        cli_words_add(list, "%s", variant->options[i]);
    cli_words_add(list, "--direct=%d", info->direct ? 1 : 0);
    if (!info->direct)
        cli_words_add(list, "--invalidate=0");
    /* A transfer that is smaller than a block is one I/O here; fio refuses it. */
    cli_words_add(list, "--bs=%" PRIu64, info->io.block_size < info->io_size ? info->io.block_size : info->io_size);
    cli_words_add(list, "--iodepth=%u", variant->one_per_job ? 1 : info->io.queue_depth);
    cli_words_add(list, "--allow_file_create=0");
    cli_words_add(list, "--fallocate=none");
    cli_words_add(list, "--scramble_buffers=0");
    cli_words_add(list, "--disable_slat=1");
    cli_words_add(list, "--disable_lat=1");
    if (write && job->values->sync)
        cli_words_add(list, "--end_fsync=1");
    if (info->processes == 1)
        cli_words_add(list, "--thread=1");
}

/* Jobs that share a transfer: as many as there are workers here. */
static uint32_t jobs_per_transfer(const io_cell *cell)
{
    return cell->config->info.io.workers > 0 ? cell->config->info.io.workers : 1;
}

static void add_jobs(cli_words *list, const io_job *job, const io_cell *cell)
{
    const pst_io_bench_info *info = &cell->config->info;
    uint64_t block = info->io.block_size, blocks = (info->io_size + block - 1) / block;
    uint64_t parts = jobs_per_transfer(cell);
    for (uint32_t n = 0; n < info->processes; n++) {
        uint64_t base, at = 0;
        const char *path = pst_io_bench_path(job->bench, n, &base);
        for (uint64_t part = 0; part < parts; part++) {
            uint64_t share = (blocks / parts + (part < blocks % parts)) * block;
            share = share < info->io_size - at ? share : info->io_size - at;
            if (share == 0)
                break;
            cli_words_add(list, "--name=part%u-%" PRIu64, n, part);
            add_file(list, path);
            cli_words_add(list, "--offset=%" PRIu64, base + at);
            cli_words_add(list, "--size=%" PRIu64, share);
            at += share;
        }
    }
}

/* ---- what it says ---- */

static double number(const json_t *object, const char *key)
{
    return json_number_value(json_object_get(object, key));
}

/* Adds one of fio's jobs. */
static void add_result(io_fio_run *run, const json_t *entry, const char *op)
{
    const json_t *side = json_object_get(entry, op);
    double seconds = number(side, "runtime") / 1e3;
    const json_t *percentiles = json_object_get(json_object_get(side, "clat_ns"), "percentile");
    uint64_t p50 = (uint64_t)number(percentiles, "50.000000"), p99 = (uint64_t)number(percentiles, "99.000000");
    run->bytes += (uint64_t)number(side, "io_bytes");
    run->seconds = seconds > run->seconds ? seconds : run->seconds;
    run->cpu_seconds +=
        (number(entry, "usr_cpu") + number(entry, "sys_cpu")) / 100 * number(entry, "job_runtime") / 1e3;
    run->p50_ns = p50 > run->p50_ns ? p50 : run->p50_ns;
    run->p99_ns = p99 > run->p99_ns ? p99 : run->p99_ns;
}

static int parse_result(const char *text, const char *op, io_fio_run *run, pst_error *err)
{
    const char *begin = text != NULL ? strchr(text, '{') : NULL; /* notes may stand before it */
    json_t *document = begin != NULL ? json_loads(begin, JSON_DISABLE_EOF_CHECK, NULL) : NULL;
    const json_t *jobs = json_object_get(document, "jobs");
    size_t count = json_array_size(jobs);
    int error = 0;
    for (size_t i = 0; i < count; i++) {
        const json_t *entry = json_array_get(jobs, i);
        if (error == 0)
            error = (int)json_integer_value(json_object_get(entry, "error"));
        add_result(run, entry, op);
    }
    json_decref(document);
    if (error != 0)
        return pst_fail(err, -EIO, NULL, "fio failed: %s", strerror(error));
    if (count == 0 || run->bytes == 0)
        return pst_fail(err, -EIO, NULL, "fio reported no transfer");
    if (run->seconds <= 0)
        return pst_fail(err, PST_E_USAGE, NULL, "fio took less than a millisecond: --io-size is too small to compare");
    run->bytes_per_second = (double)run->bytes / run->seconds;
    return 0;
}

static int run_variant(const io_job *job, const io_cell *cell, const fio_variant *variant, io_fio_run *out,
                       pst_error *err)
{
    cli_words list = {0};
    cli_process o = {.out = NULL};
    add_common(&list, job, cell, variant);
    add_jobs(&list, job, cell);
    int status = cli_process_run(&list, variant->environment, &o, err);
    io_fio_run run = {0};
    if (status >= 0 && !cli_process_succeeded(&o))
        status = cli_process_fail(&o, "fio", false, err);
    else if (status >= 0)
        status = parse_result(o.out, io_op_name(cell->op), &run, err);
    if (status >= 0) {
        run.process_cpu_seconds = cli_process_cpu_seconds(&o);
        *out = run;
    }
    cli_process_free(&o);
    cli_words_free(&list);
    return status;
}

/* ---- the interface ---- */

int io_fio_find(io_job *job, pst_error *err)
{
    const char *path = getenv("PATH");
    if (path == NULL || path[0] == '\0')
        path = "/usr/local/bin:/usr/bin:/bin";
    for (const char *at = path; *at != '\0'; at += strspn(at, ":")) {
        size_t length = strcspn(at, ":");
        int wrote = snprintf(job->fio, sizeof job->fio, "%.*s/fio", (int)length, at);
        at += length;
        if (wrote < 0 || (size_t)wrote >= sizeof job->fio || access(job->fio, X_OK) != 0)
            job->fio[0] = '\0';
        else
            break;
    }
    if (job->fio[0] == '\0')
        return pst_fail(err, -ENOENT, NULL, "--against fio: there is no program fio in $PATH");
    cli_words list = {0};
    cli_process o = {.out = NULL};
    cli_words_add(&list, "%s", job->fio);
    cli_words_add(&list, "--version");
    int status = cli_process_run(&list, NULL, &o, err);
    if (status >= 0 && !(cli_process_succeeded(&o) && o.out != NULL))
        status = cli_process_fail(&o, "fio", false, err);
    if (status >= 0)
        snprintf(job->fio_version, sizeof job->fio_version, "%.*s", (int)strcspn(o.out, "\n"), o.out);
    cli_process_free(&o);
    cli_words_free(&list);
    return status;
}

static int find_variant(const char *name)
{
    for (size_t i = 0; i < CLI_COUNT(variants); i++) {
        if (strcmp(variants[i].name, name) == 0)
            return (int)i;
    }
    return -1;
}

int io_fio_check(const io_job *job, pst_error *err)
{
    const io_values *values = job->values;
    if (values->fio_setting != NULL && find_variant(values->fio_setting) < 0) {
        char names[512] = "";
        for (size_t i = 0; i < CLI_COUNT(variants); i++) {
            size_t used = strlen(names);
            snprintf(names + used, sizeof names - used, "%s\"%s\"", i > 0 ? "; " : "", variants[i].name);
        }
        return cli_usage(err, "--fio-setting: there is no \"%.60s\"; there are %s", values->fio_setting, names);
    }
    if (values->transfers > 1)
        return cli_usage(err, "--against fio compares one transfer per process, so not --transfers %" PRIu64,
                         values->transfers);
    if (job->transfers > 1 && !values->stripe)
        return cli_usage(err, "--against fio compares one transfer per process, so %u DIRs need --multi-process %u",
                         job->folder_count, job->folder_count);
    if (values->stripe)
        return cli_usage(err, "--against fio: fio knows nothing of stripe sets, so not --stripe");
    if (values->different_file)
        return cli_usage(err,
                         "--against fio uses the same file again and again, so not --different-file-each-iteration");
    if (values->validate)
        return cli_usage(err, "--against fio: what fio wrote cannot be compared, so not --validate");
    return 0;
}

int io_fio_choose(io_job *job, io_cell *cell, pst_error *err)
{
    if (job->values->fio_setting != NULL) {
        io_fio_run warm_up;
        cell->variant = find_variant(job->values->fio_setting);
        return io_fio_run_once(job, cell, &warm_up, err);
    }
    const char *asked = cell->config->engine, *engine = cell->config->engine_name;
    bool any = strcmp(asked, "auto") == 0;
    cell->variant = -1;
    pst_error last = {.code = 0};
    for (int round = 0; round < TRIES; round++) {
        for (size_t i = 0; i < CLI_COUNT(variants); i++) {
            bool real = strcmp(variants[i].engine, "null") != 0 && !variants[i].one_per_job;
            bool fits = strcmp(variants[i].ours, engine) == 0 || (any && real);
            if (!fits || (round > 0 && cell->tried[i] == 0))
                continue;
            io_fio_run run;
            int status = run_variant(job, cell, &variants[i], &run, &last);
            if (status == PST_E_CANCELLED || status == PST_E_USAGE) {
                *err = last;
                return status;
            }
            if (status < 0)
                continue; /* it does not work here */
            cell->tried[i] = run.bytes_per_second > cell->tried[i] ? run.bytes_per_second : cell->tried[i];
            if (cell->variant < 0 || cell->tried[i] > cell->tried[cell->variant])
                cell->variant = (int)i;
        }
    }
    if (cell->variant >= 0)
        return 0;
    if (last.code == 0)
        return pst_fail(err, PST_E_UNSUPPORTED, NULL, "fio has no equivalent of the I/O engine %s", engine);
    *err = last;
    return last.code;
}

int io_fio_run_once(const io_job *job, const io_cell *cell, io_fio_run *out, pst_error *err)
{
    return run_variant(job, cell, &variants[cell->variant], out, err);
}
