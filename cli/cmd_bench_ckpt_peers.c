/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The other sides: fio's sequential transfer of as many bytes as the ceiling of the drive (direct, and for writing with its
 * sync at the end; it makes its file before its time begins, which is in its favour), and Python libraries through
 * bench/peers/checkpoint.py, which times the library and its syncs and not the interpreter's start.
 */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "against.h"
#include "base/heap.h"
#include "base/number.h"
#include "cmd_bench_ckpt.h"
#include "process.h"

/* ---- fio ---- */

enum { FIO_OPTIONS = 6, TRIED_BYTES = 1 << 30 };

static const struct {
    const char *name;
    const char *options[FIO_OPTIONS];
} choices[] = {
    /* These fail where no huge pages are reserved. */
    {"io_uring 1M x 128, registered, reserved huge pages",
     {"--ioengine=io_uring", "--fixedbufs=1", "--registerfiles=1", "--iomem=shmhuge", "--bs=1M", "--iodepth=128"}},
    {"io_uring 8M x 16, registered, reserved huge pages",
     {"--ioengine=io_uring", "--fixedbufs=1", "--registerfiles=1", "--iomem=shmhuge", "--bs=8M", "--iodepth=16"}},
    {"io_uring 1M x 64, registered",
     {"--ioengine=io_uring", "--fixedbufs=1", "--registerfiles=1", "--bs=1M", "--iodepth=64"}},
    {"io_uring 4M x 16, registered",
     {"--ioengine=io_uring", "--fixedbufs=1", "--registerfiles=1", "--bs=4M", "--iodepth=16"}},
    {"io_uring 1M x 32", {"--ioengine=io_uring", "--bs=1M", "--iodepth=32"}},
    {"libaio 1M x 32", {"--ioengine=libaio", "--bs=1M", "--iodepth=32"}},
    {"libaio 4M x 16", {"--ioengine=libaio", "--bs=4M", "--iodepth=16"}},
    {"psync 4M", {"--ioengine=psync", "--bs=4M"}},
};

static void add_file(cli_words *list, const char *path)
{
    char escaped[2 * PATH_MAX];
    size_t length = 0;
    for (const char *at = path; *at != '\0' && length + 2 < sizeof escaped; at++) {
        if (*at == ':' || *at == '\\') /* ':' separates files */
            escaped[length++] = '\\';
        escaped[length++] = *at;
    }
    escaped[length] = '\0';
    cli_words_add(list, "--filename=%s", escaped);
}

static int read_fio(const char *text, const char *op, ckpt_run *out, pst_error *err)
{
    const char *begin = text != NULL ? strchr(text, '{') : NULL; /* notes may stand before it */
    json_t *document = begin != NULL ? json_loads(begin, JSON_DISABLE_EOF_CHECK, NULL) : NULL;
    const json_t *job = json_array_get(json_object_get(document, "jobs"), 0), *side = json_object_get(job, op);
    int error = (int)json_integer_value(json_object_get(job, "error"));
    double runtime = json_number_value(json_object_get(side, "runtime")) / 1e3;
    double share =
        json_number_value(json_object_get(job, "usr_cpu")) + json_number_value(json_object_get(job, "sys_cpu"));
    *out = (ckpt_run){.bytes = (uint64_t)json_number_value(json_object_get(side, "io_bytes")),
                      .seconds = runtime,
                      .cpu_seconds = share / 100 * json_number_value(json_object_get(job, "job_runtime")) / 1e3};
    json_decref(document);
    if (error != 0)
        return pst_fail(err, -error, NULL, "fio failed: %s", strerror(error));
    if (out->bytes == 0)
        return pst_fail(err, PST_E_UNSUPPORTED, NULL, "fio reported no transfer");
    if (runtime <= 0)
        return pst_fail(err, PST_E_USAGE, NULL,
                        "fio took less than a millisecond: the checkpoint is too small to compare");
    return 0;
}

static int run_choice(const ckpt_job *job, size_t choice, bool direct, const char *path, uint64_t bytes, ckpt_run *out,
                      pst_error *err)
{
    cli_words list = {0};
    cli_process process = {.out = NULL};
    uint64_t whole = bytes >= 8 << 20 ? pst_round_down(bytes, 8 << 20) : pst_round_up(bytes, 4096);
    cli_words_add(&list, "fio");
    cli_words_add(&list, "--name=checkpoint");
    cli_words_add(&list, "--output-format=json");
    cli_words_add(&list, "--eta=never");
    cli_words_add(&list, job->load ? "--rw=read" : "--rw=write");
    cli_words_add(&list, job->load ? "--readonly" : "--end_fsync=1");
    cli_words_add(&list, "--direct=%d", direct);
    cli_words_add(&list, "--thread=1");
    cli_words_add(&list, "--scramble_buffers=0");
    for (size_t i = 0; i < FIO_OPTIONS && choices[choice].options[i] != NULL; i++)
        cli_words_add(&list, "%s", choices[choice].options[i]);
    if (bytes < 8 << 20)
        cli_words_add(&list, "--bs=4096"); /* the last one counts */
    cli_words_add(&list, "--size=%" PRIu64, whole);
    add_file(&list, path);
    if (!job->load)
        unlink(path);
    int status = cli_process_run(&list, NULL, &process, err);
    if (status >= 0)
        status = cli_process_succeeded(&process) ? read_fio(process.out, job->load ? "read" : "write", out, err)
                                                 : cli_process_fail(&process, "fio", false, err);
    if (!job->load)
        unlink(path);
    cli_process_free(&process);
    cli_words_free(&list);
    return status;
}

int ckpt_fio_find(ckpt_job *job, pst_error *err)
{
    cli_words list = {0};
    cli_process process = {.out = NULL};
    cli_words_add(&list, "fio");
    cli_words_add(&list, "--version");
    int status = cli_process_run(&list, NULL, &process, err);
    if (status >= 0 && !(cli_process_succeeded(&process) && process.out != NULL))
        status = cli_process_fail(&process, "fio", false, err);
    if (status >= 0)
        snprintf(job->fio_version, sizeof job->fio_version, "%.*s", (int)strcspn(process.out, "\n"), process.out);
    cli_process_free(&process);
    cli_words_free(&list);
    return status;
}

int ckpt_fio_choose(ckpt_job *job, const char *path, uint64_t bytes, pst_error *err)
{
    double best = 0;
    pst_error last = {.code = 0};
    bytes = pst_min(bytes, TRIED_BYTES);
    for (int direct = 1; direct >= 0 && best == 0; direct--) { /* past the page cache where that is possible */
        for (size_t i = 0; i < CLI_COUNT(choices); i++) {
            ckpt_run run;
            int status = run_choice(job, i, direct, path, bytes, &run, &last);
            if (status == PST_E_CANCELLED || status == PST_E_USAGE) {
                *err = last;
                return status;
            }
            if (status < 0 || (double)run.bytes / run.seconds <= best)
                continue;
            best = (double)run.bytes / run.seconds;
            job->fio_choice = (int)i;
            job->fio_direct = direct;
        }
    }
    if (best > 0)
        return 0;
    *err = last;
    return last.code;
}

int ckpt_fio_run(const ckpt_job *job, const char *path, uint64_t bytes, ckpt_cell *cell, ckpt_run *out, pst_error *err)
{
    snprintf(cell->how, sizeof cell->how, "%s%s", choices[job->fio_choice].name, job->fio_direct ? "" : ", buffered");
    return run_choice(job, (size_t)job->fio_choice, job->fio_direct, path, bytes, out, err);
}

/* ---- Python libraries ---- */

static int run_driver(const ckpt_job *job, ckpt_side side, const char *op, const char *path, json_t **out,
                      pst_error *err)
{
    char script[PATH_MAX + 64];
    cli_words list = {0};
    cli_process process = {.out = NULL};
    PST_TRY(cli_find_driver(job->values->drivers, "peers/checkpoint.py", script, sizeof script, err));
    json_t *settings = json_pack("{s:s, s:s, s:s, s:s, s:i}", "library", ckpt_side_names[side], "op", op, "path", path,
                                 "table", job->table, "seed", (int)(job->values->seed % 1000000));
    char *text = settings != NULL ? json_dumps(settings, 0) : NULL;
    json_decref(settings);
    if (text == NULL)
        return pst_fail_memory(err, "settings", sizeof script);
    cli_words_add(&list, "%s", job->values->python);
    cli_words_add(&list, "%s", script);
    cli_words_add(&list, "%s", text);
    free(text);
    int status = cli_process_run(&list, NULL, &process, err);
    if (status >= 0 && !cli_process_succeeded(&process))
        status = cli_process_fail(&process, ckpt_side_names[side], true, err);
    const char *begin = process.out != NULL ? strrchr(process.out, '{') : NULL;
    json_t *document = status >= 0 && begin != NULL ? json_loads(begin, JSON_DISABLE_EOF_CHECK, NULL) : NULL;
    if (status >= 0 && document == NULL)
        status = pst_fail(err, -EIO, NULL, "%s reported nothing", ckpt_side_names[side]);
    cli_process_free(&process);
    cli_words_free(&list);
    *out = document;
    return status;
}

int ckpt_peer_check(const ckpt_job *job, ckpt_cell *cell, pst_error *err)
{
    json_t *document = NULL;
    PST_TRY(run_driver(job, cell->side, "check", "", &document, err));
    const char *version = json_string_value(json_object_get(document, "version"));
    snprintf(cell->how, sizeof cell->how, "%s", version != NULL ? version : "");
    json_decref(document);
    return 0;
}

int ckpt_peer_run(const ckpt_job *job, const char *path, ckpt_cell *cell, ckpt_run *out, pst_error *err)
{
    json_t *document = NULL;
    int status = run_driver(job, cell->side, job->load ? "load" : "save", path, &document, err);
    if (!job->load)
        unlink(path);
    PST_TRY(status);
    *out = (ckpt_run){.bytes = (uint64_t)json_number_value(json_object_get(document, "bytes")),
                      .seconds = json_number_value(json_object_get(document, "seconds")),
                      .cpu_seconds = json_number_value(json_object_get(document, "cpu_seconds"))};
    json_decref(document);
    return out->seconds > 0 ? 0 : pst_fail(err, -EIO, NULL, "%s reported no time", ckpt_side_names[cell->side]);
}
