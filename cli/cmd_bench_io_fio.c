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
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/heap.h"
#include "cmd_bench_io.h"
#include "interrupt.h"

enum { TRIES = 2, MOST_OUTPUT = 8 << 20, TICK_MS = 100 };

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

typedef struct words {
    char **items; /* owned, NULL-terminated */
    size_t count;
    bool failed;
} words;

static void add(words *list, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void add_text(words *list, char *text)
{
    char **grown = text != NULL ? pst_heap_reallocarray(list->items, list->count + 2, sizeof *grown) : NULL;
    if (grown == NULL) {
        pst_heap_free(text);
        list->failed = true;
        return;
    }
    list->items = grown;
    grown[list->count++] = text;
    grown[list->count] = NULL;
}

static void add(words *list, const char *format, ...)
{
    char text[4096 * 2 + 64];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    add_text(list, length >= 0 && (size_t)length < sizeof text ? pst_heap_strdup(text) : NULL);
}

static void free_words(words *list)
{
    for (size_t i = 0; i < list->count; i++)
        pst_heap_free(list->items[i]);
    pst_heap_free(list->items);
}

/* ':' separates files for fio, and '\' makes it a letter. */
static void add_file(words *list, const char *path)
{
    char escaped[4096 * 2];
    size_t length = 0;
    for (const char *at = path; *at != '\0' && length + 2 < sizeof escaped; at++) {
        if (*at == ':' || *at == '\\')
            escaped[length++] = '\\';
        escaped[length++] = *at;
    }
    escaped[length] = '\0';
    add(list, "--filename=%s", escaped);
}

static void add_common(words *list, const io_job *job, const io_cell *cell, const fio_variant *variant)
{
    const pst_io_bench_info *info = &cell->config->info;
    bool write = cell->op == PST_IO_WRITE;
    add(list, "%s", job->fio);
    add(list, "--output-format=json");
    add(list, "--eta=never");
    add(list, "--rw=%s", write ? "write" : "read");
    if (!write)
        add(list, "--readonly");
    add(list, "--ioengine=%s", variant->engine);
    for (size_t i = 0; i < CLI_COUNT(variant->options) && variant->options[i] != NULL; i++)
        add(list, "%s", variant->options[i]);
    add(list, "--direct=%d", info->direct ? 1 : 0);
    if (!info->direct)
        add(list, "--invalidate=0");
    /* A transfer that is smaller than a block is one I/O here; fio refuses it. */
    add(list, "--bs=%" PRIu64, info->io.block_size < info->io_size ? info->io.block_size : info->io_size);
    add(list, "--iodepth=%u", variant->one_per_job ? 1 : info->io.queue_depth);
    add(list, "--allow_file_create=0");
    add(list, "--fallocate=none");
    add(list, "--scramble_buffers=0");
    add(list, "--disable_slat=1");
    add(list, "--disable_lat=1");
    if (write && job->values->sync)
        add(list, "--end_fsync=1");
    if (info->processes == 1)
        add(list, "--thread=1");
}

/* Jobs that share a transfer: as many as there are workers here. */
static uint32_t jobs_per_transfer(const io_cell *cell)
{
    return cell->config->info.io.workers > 0 ? cell->config->info.io.workers : 1;
}

static void add_jobs(words *list, const io_job *job, const io_cell *cell)
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
            add(list, "--name=part%u-%" PRIu64, n, part);
            add_file(list, path);
            add(list, "--offset=%" PRIu64, base + at);
            add(list, "--size=%" PRIu64, share);
            at += share;
        }
    }
}

/* ---- the process ---- */

typedef struct stream {
    int fd;
    char *text;
    size_t bytes;
} stream;

static void drain(stream *s)
{
    char chunk[65536];
    ssize_t got = read(s->fd, chunk, sizeof chunk);
    if (got < 0 && errno == EINTR)
        return;
    char *grown = got > 0 && s->bytes < MOST_OUTPUT ? pst_heap_realloc(s->text, s->bytes + (size_t)got + 1) : NULL;
    if (grown == NULL) {
        close(s->fd);
        s->fd = -1;
        return;
    }
    s->text = grown;
    memcpy(grown + s->bytes, chunk, (size_t)got);
    s->bytes += (size_t)got;
    grown[s->bytes] = '\0';
}

/* Until both ends are closed. True when a signal came meanwhile. */
static bool read_both(stream *out, stream *err_text)
{
    while (out->fd >= 0 || err_text->fd >= 0) {
        struct pollfd polled[2] = {{.fd = out->fd, .events = POLLIN}, {.fd = err_text->fd, .events = POLLIN}};
        int ready = poll(polled, 2, TICK_MS);
        if (cli_interrupted() != 0)
            return true;
        if (ready <= 0)
            continue;
        if (polled[0].revents != 0)
            drain(out);
        if (polled[1].revents != 0)
            drain(err_text);
    }
    return false;
}

/* posix_spawn and not fork: fork would copy every page of the buffers that are registered with an engine, and split
 * their huge pages. Returns 0 or -errno. */
static int spawn(const words *list, const char *environment, const int *out, const int *err_ends, pid_t *pid)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t restored;
    size_t count = 0;
    while (environ[count] != NULL)
        count++;
    char **variables = pst_heap_calloc(count + 2, sizeof *variables);
    if (variables == NULL)
        return -ENOMEM;
    if (environment != NULL)
        variables[0] = (char *)environment;
    memcpy(variables + (environment != NULL), environ, count * sizeof *variables);
    sigfillset(&restored);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setsigdefault(&attributes, &restored);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, out[1], 1);
    posix_spawn_file_actions_adddup2(&actions, err_ends[1], 2);
    int status = -posix_spawn(pid, list->items[0], &actions, &attributes, list->items, variables);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    pst_heap_free(variables);
    return status;
}

typedef struct outcome {
    stream out, err;
    int state;
    struct rusage usage;
    bool interrupted;
} outcome;

static int run_process(const words *list, const char *environment, outcome *o, pst_error *err)
{
    int out[2], err_ends[2];
    if (pipe2(out, O_CLOEXEC) != 0)
        return pst_fail(err, -errno, NULL, "cannot make a pipe for fio: %s", strerror(errno));
    if (pipe2(err_ends, O_CLOEXEC) != 0) {
        int cause = errno;
        close(out[0]);
        close(out[1]);
        return pst_fail(err, -cause, NULL, "cannot make a pipe for fio: %s", strerror(cause));
    }
    pid_t pid;
    int status = spawn(list, environment, out, err_ends, &pid);
    close(out[1]);
    close(err_ends[1]);
    o->out.fd = out[0];
    o->err.fd = err_ends[0];
    if (status < 0) {
        close(out[0]);
        close(err_ends[0]);
        return pst_fail(err, status, NULL, "cannot start %s: %s", list->items[0], strerror(-status));
    }
    o->interrupted = read_both(&o->out, &o->err);
    if (o->interrupted)
        kill(pid, SIGKILL);
    while (wait4(pid, &o->state, 0, &o->usage) < 0 && errno == EINTR) {
    }
    if (o->out.fd >= 0)
        close(o->out.fd);
    if (o->err.fd >= 0)
        close(o->err.fd);
    return 0;
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

/* The first line that it wrote on standard error. */
static int fail_with_words(const outcome *o, pst_error *err)
{
    const char *text = o->err.text != NULL ? o->err.text : o->out.text != NULL ? o->out.text : "";
    int length = (int)strcspn(text, "\n");
    if (WIFSIGNALED(o->state))
        return pst_fail(err, -EIO, NULL, "fio was ended by signal %d: %.*s", WTERMSIG(o->state), length, text);
    return pst_fail(err, -EIO, NULL, "fio ended with status %d: %.*s", WEXITSTATUS(o->state), length, text);
}

static int run_variant(const io_job *job, const io_cell *cell, const fio_variant *variant, io_fio_run *out,
                       pst_error *err)
{
    words list = {0};
    outcome o = {.out.fd = -1, .err.fd = -1};
    add_common(&list, job, cell, variant);
    add_jobs(&list, job, cell);
    int status = list.failed ? pst_fail_memory(err, "arguments of fio", list.count * sizeof(char *))
                             : run_process(&list, variant->environment, &o, err);
    io_fio_run run = {0};
    if (status >= 0 && o.interrupted)
        status = pst_fail(err, PST_E_CANCELLED, NULL, "cancelled");
    else if (status >= 0 && !(WIFEXITED(o.state) && WEXITSTATUS(o.state) == 0))
        status = fail_with_words(&o, err);
    else if (status >= 0)
        status = parse_result(o.out.text, io_op_name(cell->op), &run, err);
    if (status >= 0) {
        const struct timeval *user = &o.usage.ru_utime, *system = &o.usage.ru_stime;
        run.process_cpu_seconds =
            (double)(user->tv_sec + system->tv_sec) + 1e-6 * (double)(user->tv_usec + system->tv_usec);
        *out = run;
    }
    pst_heap_free(o.out.text);
    pst_heap_free(o.err.text);
    free_words(&list);
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
    words list = {0};
    outcome o = {.out.fd = -1, .err.fd = -1};
    add(&list, "%s", job->fio);
    add(&list, "--version");
    int status = list.failed ? pst_fail_memory(err, "arguments of fio", 64) : run_process(&list, NULL, &o, err);
    if (status >= 0 && !(WIFEXITED(o.state) && WEXITSTATUS(o.state) == 0 && o.out.text != NULL))
        status = fail_with_words(&o, err);
    if (status >= 0)
        snprintf(job->fio_version, sizeof job->fio_version, "%.*s", (int)strcspn(o.out.text, "\n"), o.out.text);
    pst_heap_free(o.out.text);
    pst_heap_free(o.err.text);
    free_words(&list);
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
