/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The bench of reading and writing: figures that hold together, contents that are compared in earnest, files that are
 * gone afterwards whatever happened.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/heap.h"
#include "jobs/bench_io_internal.h"
#include "os/sys_fault.h"
#include "penstock/io_engine.h"

enum { MIB = 1 << 20 };

/* ---- folders ---- */

static char root[256], folders[3][300];

static int make_folders(void **state)
{
    (void)state;
    const char *base = getenv("TMPDIR");
    snprintf(root, sizeof root, "%s/penstock-bench-XXXXXX", base != NULL ? base : "/tmp");
    assert_non_null(mkdtemp(root));
    for (int i = 0; i < 3; i++) {
        snprintf(folders[i], sizeof folders[i], "%s/%c", root, 'a' + i);
        assert_int_equal(mkdir(folders[i], 0777), 0);
    }
    return 0;
}

static int count_entries(const char *folder)
{
    DIR *list = opendir(folder);
    assert_non_null(list);
    int count = 0;
    for (struct dirent *entry; (entry = readdir(list)) != NULL;)
        count += entry->d_name[0] != '.';
    closedir(list);
    return count;
}

static int count_all(void)
{
    return count_entries(folders[0]) + count_entries(folders[1]) + count_entries(folders[2]);
}

static int remove_folders(void **state)
{
    (void)state;
    for (int i = 0; i < 3; i++)
        rmdir(folders[i]);
    return rmdir(root); /* fails when something was left */
}

static const char *const one_folder[] = {folders[0]};
static const char *const all_folders[] = {folders[0], folders[1], folders[2]};

static pst_io_bench_options small_bench(void)
{
    return (pst_io_bench_options){.struct_size = sizeof(pst_io_bench_options),
                                  .folders = one_folder,
                                  .folder_count = 1,
                                  .io_size = MIB,
                                  .io = {.struct_size = sizeof(pst_io_options), .block_size = 65536, .queue_depth = 8},
                                  .validate = true};
}

static pst_io_bench *open_bench(const pst_io_bench_options *options)
{
    pst_io_bench *bench = NULL;
    pst_error err = {.message = ""};
    if (pst_io_bench_open(options, &bench, &err) < 0)
        fail_msg("%s: %s", err.path, err.message);
    return bench;
}

static pst_io_bench_result run(pst_io_bench *bench, pst_io_kind op)
{
    pst_io_bench_result result;
    pst_error err = {.message = ""};
    if (pst_io_bench_run(bench, op, &result, &err) < 0)
        fail_msg("%s: %s", err.path, err.message);
    return result;
}

/* Writing, and reading twice, all validated. */
static void exercise(const pst_io_bench_options *options)
{
    pst_io_bench *bench = open_bench(options);
    uint64_t processes = options->processes > 0 ? options->processes : 1;
    uint64_t transfers = options->transfers > 0 ? options->transfers : 1;
    for (int i = 0; i < 3; i++) {
        pst_io_bench_result result = run(bench, i == 1 ? PST_IO_WRITE : PST_IO_READ);
        assert_int_equal(result.op, i == 1 ? PST_IO_WRITE : PST_IO_READ);
        assert_int_equal(result.bytes, options->io_size * transfers * processes);
        assert_true(result.seconds > 0 && result.seconds < 60);
        assert_true(result.slowest_seconds > 0 && result.slowest_seconds <= result.seconds * (1 + 1e-9));
        assert_true(result.cpu_seconds >= 0 && result.cpu_seconds < 60);
        const pst_io_latency *l = &result.latency;
        assert_true(l->count >= result.bytes / options->io.block_size);
        assert_true(l->min_ns > 0 && l->min_ns <= l->mean_ns && l->mean_ns <= l->max_ns);
        assert_true(l->p50_ns <= l->p90_ns && l->p90_ns <= l->p99_ns && l->p99_ns <= l->p999_ns);
    }
    pst_io_bench_close(bench);
    assert_int_equal(count_all(), 0);
}

/* ---- contents ---- */

static void test_contents(void **state)
{
    (void)state;
    enum { BYTES = 4099 };
    static unsigned char one[BYTES + 8], two[BYTES + 8];
    uint64_t key = pst_bench_key(1, 2, 3);
    assert_true(key != pst_bench_key(2, 2, 3) && key != pst_bench_key(1, 3, 3) && key != pst_bench_key(1, 2, 4));
    memset(one, 0, sizeof one);
    pst_bench_contents(key, one, BYTES);
    for (size_t i = BYTES; i < sizeof one; i++)
        assert_int_equal(one[i], 0);
    for (size_t bytes = 0; bytes <= 65; bytes++) { /* a shorter stream is a beginning of the longer one */
        memset(two, 0, sizeof two);
        pst_bench_contents(key, two, bytes);
        assert_memory_equal(one, two, bytes);
        assert_int_equal(pst_bench_compare(key, one, bytes), bytes);
    }
    for (size_t at = 0; at < BYTES; at += at < 64 ? 1 : 61) { /* each wrong byte is found where it is */
        one[at] ^= 1;
        assert_int_equal(pst_bench_compare(key, one, BYTES), at);
        one[at] ^= 1;
    }
    one[BYTES - 1] ^= 0x80;
    assert_int_equal(pst_bench_compare(key, one, BYTES), BYTES - 1);
    size_t counts[256] = {0};
    static unsigned char large[1 << 16];
    pst_bench_contents(key, large, sizeof large);
    for (size_t i = 0; i < sizeof large; i++)
        counts[large[i]]++;
    for (int i = 0; i < 256; i++) /* 256 expected, 16 the deviation */
        assert_in_range(counts[i], 256 - 100, 256 + 100);
}

/* ---- figures ---- */

static void test_engines(void **state)
{
    (void)state;
    pst_io_engine_info info = {.struct_size = sizeof info};
    for (uint32_t n = 0; pst_io_engine_at(n, &info) > 0; n++) {
        if (info.status < 0 || (info.flags & PST_IO_ENGINE_NO_DATA) != 0)
            continue;
        pst_io_bench_options options = small_bench();
        options.io.engine = info.name;
        exercise(&options);
        options.io_size = 1000003; /* no multiple of anything */
        options.sync = true;
        exercise(&options);
    }
}

static void test_shapes(void **state)
{
    (void)state;
    pst_io_bench_options options = small_bench();
    options.folders = all_folders;
    options.folder_count = 3;
    for (uint32_t transfers = 1; transfers <= 5; transfers += 2) {
        options.transfers = transfers;
        for (int i = 0; i < 8; i++) {
            options.sequential_requests = (i & 1) != 0;
            options.unlocked = (i & 2) != 0;
            options.io.buffered = (i & 4) != 0;
            options.different_file_each_loop = i % 3 == 0;
            options.loops = 2;
            options.io.workers = 1 + (uint32_t)i % 3;
            options.seed = (uint64_t)i;
            exercise(&options);
        }
    }
}

static void test_stripe(void **state)
{
    (void)state;
    pst_io_bench_options options = small_bench();
    options.folders = all_folders;
    options.folder_count = 3;
    options.stripe = true;
    options.io_size = 5 * MIB + 4097;
    exercise(&options);
    options.transfers = 2;
    options.processes = 2;
    exercise(&options);
    uint64_t offset;
    pst_io_bench *bench = open_bench(&options);
    assert_null(pst_io_bench_path(bench, 0, &offset)); /* there is no single path */
    pst_io_bench_close(bench);
    assert_int_equal(count_all(), 0);
}

/* Memory for a part of a transfer alone: as many bytes are moved all the same. */
static void test_small_buffer(void **state)
{
    (void)state;
    pst_io_bench_options options = small_bench();
    pst_error err;
    pst_io_bench *bench;
    options.buffer_bytes = 200000;
    assert_int_equal(pst_io_bench_open(&options, &bench, &err), PST_E_USAGE);
    assert_non_null(strstr(err.message, "cannot be compared"));
    options.validate = false;
    exercise(&options);
    options.transfers = 3;
    exercise(&options);
    bench = open_bench(&options);
    pst_io_bench_info info;
    pst_io_bench_get_info(bench, &info);
    assert_int_equal(info.buffer_bytes, 200000);
    assert_true(info.memory_bytes >= 600000 && info.memory_bytes < 3 * MIB);
    run(bench, PST_IO_WRITE);
    struct stat about;
    uint64_t offset;
    assert_int_equal(stat(pst_io_bench_path(bench, 2, &offset), &about), 0);
    assert_int_equal(about.st_size, MIB);
    pst_io_bench_close(bench);
}

static void test_settings(void **state)
{
    (void)state;
    pst_io_bench_options options = small_bench();
    options.io.engine = "threads";
    options.io.workers = 3;
    options.folders = all_folders;
    options.folder_count = 3;
    options.transfers = 4;
    pst_io_bench *bench = open_bench(&options);
    pst_io_options settings;
    pst_io_bench_get_settings(bench, &settings);
    assert_string_equal(settings.engine, "threads");
    assert_int_equal(settings.block_size, 65536);
    assert_int_equal(settings.workers, 3);
    assert_true(settings.measure_latency);
    pst_io_bench_info info;
    pst_io_bench_get_info(bench, &info);
    assert_int_equal(info.io_size, MIB);
    assert_int_equal(info.transfers, 4);
    assert_int_equal(info.processes, 1);
    assert_true(info.writable);
    assert_true(info.memory_bytes >= 4 * MIB);
    char seen[5][400];
    for (uint32_t i = 0; i < 4; i++) { /* spread over the folders, under names that differ */
        uint64_t offset = 1;
        const char *path = pst_io_bench_path(bench, i, &offset);
        assert_int_equal(offset, 0);
        assert_memory_equal(path, folders[i % 3], strlen(folders[0]));
        snprintf(seen[i], sizeof seen[i], "%s", strrchr(path, '/'));
        for (uint32_t k = 0; k < i; k++)
            assert_string_not_equal(seen[i], seen[k]);
        struct stat about;
        assert_int_equal(stat(path, &about), 0);
        assert_int_equal(about.st_mode & 0777, 0600);
    }
    uint64_t offset;
    assert_null(pst_io_bench_path(bench, 4, &offset));
    assert_int_equal(count_entries(folders[0]), 2);
    pst_io_bench_close(bench);
    assert_int_equal(count_all(), 0);
}

static void test_change(void **state)
{
    (void)state;
    pst_io_bench_options options = small_bench();
    for (uint32_t processes = 1; processes <= 2; processes++) {
        options = small_bench();
        options.processes = processes;
        pst_io_bench *bench = open_bench(&options);
        run(bench, PST_IO_WRITE);
        options.io.block_size = 4096;
        options.io.engine = "threads";
        options.io_size = 300001;
        assert_int_equal(pst_io_bench_change(bench, &options, NULL), 0);
        for (int i = 0; i < 2; i++) {
            assert_int_equal(run(bench, PST_IO_READ).bytes, 300001 * processes);
            run(bench, PST_IO_WRITE);
        }
        pst_io_options settings;
        pst_io_bench_get_settings(bench, &settings);
        assert_string_equal(settings.engine, "threads");
        assert_int_equal(settings.block_size, 4096);
        /* Refused, and what was there stays. */
        pst_error err;
        options.io_size = MIB + 1;
        assert_int_equal(pst_io_bench_change(bench, &options, &err), PST_E_USAGE);
        run(bench, PST_IO_READ);
        /* Failed, and another change mends it. */
        options.io_size = MIB;
        options.io.engine = "abacus";
        assert_true(pst_io_bench_change(bench, &options, &err) < 0);
        assert_non_null(strstr(err.message, "abacus"));
        pst_io_bench_result result;
        assert_int_equal(pst_io_bench_run(bench, PST_IO_READ, &result, &err), PST_E_USAGE);
        options.io.engine = NULL;
        assert_int_equal(pst_io_bench_change(bench, &options, NULL), 0);
        assert_int_equal(run(bench, PST_IO_READ).bytes, (uint64_t)MIB * processes);
        pst_io_bench_close(bench);
        assert_int_equal(count_all(), 0);
    }
}

/* ---- what exists already ---- */

static void test_existing_file(void **state)
{
    (void)state;
    char path[400];
    snprintf(path, sizeof path, "%s/kept", folders[1]);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    for (int i = 0; i < 3 * MIB / 4 / 4; i++)
        fwrite(&i, 4, 1, file);
    fclose(file);
    const char *const named[] = {path};
    pst_io_bench_options options = small_bench();
    options.folders = named;
    options.io_size = 0; /* its own size */
    options.validate = false;
    pst_io_bench *bench = open_bench(&options);
    assert_int_equal(run(bench, PST_IO_READ).bytes, 3 * MIB / 4);
    pst_io_bench_result result;
    pst_error err;
    assert_int_equal(pst_io_bench_run(bench, PST_IO_WRITE, &result, &err), PST_E_USAGE);
    pst_io_bench_info info;
    pst_io_bench_get_info(bench, &info);
    assert_false(info.writable);
    pst_io_bench_close(bench);
    /* Several transfers read several parts. */
    options.io_size = 256 * 1024;
    options.transfers = 4;
    bench = open_bench(&options);
    static const uint64_t offsets[] = {0, 256 * 1024, 512 * 1024, 0};
    for (uint32_t i = 0; i < 4; i++) {
        uint64_t offset;
        assert_string_equal(pst_io_bench_path(bench, i, &offset), path);
        assert_int_equal(offset, offsets[i]);
    }
    run(bench, PST_IO_READ);
    pst_io_bench_close(bench);
    options.io_size = MIB;
    assert_int_equal(pst_io_bench_open(&options, &bench, &err), PST_E_USAGE);
    assert_non_null(strstr(err.message, "fewer than a transfer"));
    options.io_size = 4096;
    options.validate = true;
    assert_int_equal(pst_io_bench_open(&options, &bench, &err), PST_E_USAGE);
    options.stripe = true;
    assert_int_equal(pst_io_bench_open(&options, &bench, &err), -ENOTDIR);
    struct stat about;
    assert_int_equal(stat(path, &about), 0);
    assert_int_equal(about.st_size, 3 * MIB / 4);
    unlink(path);
}

static void expect_refusal(const pst_io_bench_options *options, int status, const char *says)
{
    pst_io_bench *bench = NULL;
    pst_error err = {.message = ""};
    int got = pst_io_bench_open(options, &bench, &err);
    if (got != status || strstr(err.message, says) == NULL || bench != NULL)
        fail_msg("wanted %d and \"%s\", got %d and \"%s\"", status, says, got, err.message);
    assert_int_equal(count_all(), 0);
}

static void test_refusals(void **state)
{
    (void)state;
    pst_io_bench_options options = small_bench();
    options.folder_count = 0;
    expect_refusal(&options, PST_E_USAGE, "nothing is named");
    options = small_bench();
    static const char *const missing[] = {"/nonexistent/folder"};
    options.folders = missing;
    expect_refusal(&options, -ENOENT, "cannot be measured");
    static const char *const device[] = {"/dev/null"};
    options.folders = device;
    expect_refusal(&options, -EINVAL, "no folder, regular file or block device");
    options = small_bench();
    options.io.block_size = 1000;
    expect_refusal(&options, PST_E_USAGE, "multiple of 4096");
    options = small_bench();
    options.io.engine = "abacus";
    expect_refusal(&options, PST_E_USAGE, "abacus");
    options = small_bench();
    options.io_size = UINT64_C(1) << 48;
    expect_refusal(&options, -ENOMEM, "of memory");
    options.validate = false;
    options.buffer_bytes = 65536;
    expect_refusal(&options, -ENOSPC, "B free");
    options.folders = all_folders;
    options.folder_count = 3;
    options.stripe = true;
    expect_refusal(&options, -ENOSPC, "B free");
    options.io_size = UINT64_C(1) << 60;
    expect_refusal(&options, PST_E_USAGE, "1 PiB");
    options = small_bench();
    options.processes = 100000;
    expect_refusal(&options, PST_E_USAGE, "processes");
    options = small_bench();
    options.transfers = 100000;
    expect_refusal(&options, PST_E_USAGE, "transfers");
    options.struct_size = 3;
    expect_refusal(&options, PST_E_USAGE, "with their size");
}

/* ---- an engine that does wrong ---- */

static struct {
    unsigned sleep_us;
    int64_t wrong_at; /* the byte at this file offset is read wrong; -1: none */
} behaviour;

typedef struct odd_queue {
    pst_io_request *done[8];
    uint32_t count;
} odd_queue;

static int odd_open(const pst_io_engine *self, const pst_io_queue_settings *settings, void **queue, pst_error *err)
{
    (void)self, (void)settings, (void)err;
    *queue = calloc(1, sizeof(odd_queue));
    return *queue != NULL ? 0 : -ENOMEM;
}

static void odd_submit(void *queue, pst_io_request *const *requests, uint32_t count)
{
    odd_queue *q = queue;
    for (uint32_t i = 0; i < count; i++) {
        pst_io_request *r = requests[i];
        usleep(behaviour.sleep_us);
        ssize_t moved = r->write ? pwrite(r->fd, r->address, r->bytes, (off_t)r->offset)
                                 : pread(r->fd, r->address, r->bytes, (off_t)r->offset);
        r->result = moved < 0 ? -errno : moved;
        uint64_t at = (uint64_t)behaviour.wrong_at;
        if (behaviour.wrong_at >= 0 && !r->write && at >= r->offset && at < r->offset + r->bytes)
            ((char *)r->address)[at - r->offset] ^= 1;
        q->done[q->count++] = r;
    }
}

static uint32_t odd_reap(void *queue, pst_io_request **done, uint32_t max, bool wait)
{
    odd_queue *q = queue;
    (void)wait;
    uint32_t count = q->count < max ? q->count : max;
    memcpy(done, q->done, count * sizeof *done);
    memmove(q->done, q->done + count, (q->count - count) * sizeof *done);
    q->count -= count;
    return count;
}

static const pst_io_engine odd_engine = {.version = PST_IO_ENGINE_VERSION,
                                         .struct_size = sizeof(pst_io_engine),
                                         .name = "odd",
                                         .flags = PST_IO_ENGINE_SYNCHRONOUS,
                                         .description = "misbehaves",
                                         .open_queue = odd_open,
                                         .close_queue = free,
                                         .submit = odd_submit,
                                         .reap = odd_reap};

static void test_wrong_bytes(void **state)
{
    (void)state;
    static const int64_t places[] = {0, 1, 65535, 65536, 999999, MIB - 1};
    pst_io_bench_options options = small_bench();
    options.io.engine_table = &odd_engine;
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        for (int op = 0; op < 2; op++) {
            behaviour.wrong_at = -1;
            options.processes = 1 + (uint32_t)i % 2;
            behaviour.wrong_at = places[i];
            pst_io_bench *bench = open_bench(&options);
            pst_io_bench_result result;
            pst_error err = {.message = ""};
            assert_int_equal(pst_io_bench_run(bench, op != 0 ? PST_IO_WRITE : PST_IO_READ, &result, &err), -EIO);
            assert_int_equal(err.offset, places[i]);
            assert_non_null(strstr(err.message, "not what was written"));
            assert_memory_equal(err.path, folders[0], strlen(folders[0]));
            pst_io_bench_close(bench);
            assert_int_equal(count_all(), 0);
        }
    }
    behaviour.wrong_at = -1;
}

static int refuse_later(void *user, uint64_t done_bytes, uint64_t total_bytes)
{
    int *calls = user;
    assert_true(done_bytes <= total_bytes);
    return ++*calls >= 2;
}

static void test_cancel(void **state)
{
    (void)state;
    for (uint32_t processes = 1; processes <= 2; processes++) {
        int calls = -1000000; /* not while the files are made, which reports too where that takes long */
        pst_io_bench_options options = small_bench();
        options.processes = processes;
        options.io.engine_table = &odd_engine;
        options.io.block_size = 4096; /* 256 of them */
        options.io.workers = 1;
        options.on_progress = refuse_later;
        options.user = &calls;
        behaviour.sleep_us = 20000;
        pst_io_bench *bench = open_bench(&options);
        calls = 0;
        struct timespec begin, end;
        clock_gettime(CLOCK_MONOTONIC, &begin);
        pst_io_bench_result result;
        assert_int_equal(pst_io_bench_run(bench, PST_IO_WRITE, &result, NULL), PST_E_CANCELLED);
        pst_io_bench_close(bench);
        clock_gettime(CLOCK_MONOTONIC, &end);
        assert_int_equal(calls, 2);
        assert_true(end.tv_sec - begin.tv_sec < 4); /* all of it would take 5 s */
        assert_int_equal(count_all(), 0);
        behaviour.sleep_us = 0;
    }
}

/* The figures are those of the transfers: what the engine takes is in them, and the wall time of the slowest. */
static void test_time_is_measured(void **state)
{
    (void)state;
    pst_io_bench_options options = small_bench();
    options.io.engine_table = &odd_engine;
    options.io.block_size = 256 * 1024; /* four I/Os of 20 ms */
    options.io.workers = 1;
    behaviour.sleep_us = 20000;
    for (uint32_t processes = 1; processes <= 3; processes += 2) {
        options.processes = processes;
        pst_io_bench *bench = open_bench(&options);
        pst_io_bench_result result = run(bench, PST_IO_READ); /* the file is written before, which takes as long */
        assert_true(result.seconds >= 0.080 && result.seconds < 2);
        assert_true(result.cpu_seconds < 0.060);
        assert_int_equal(result.latency.count, 4 * processes);
        assert_true(result.latency.min_ns >= 20000000);
        pst_io_bench_close(bench);
    }
    behaviour.sleep_us = 0;
}

/* ---- processes ---- */

static void test_processes(void **state)
{
    (void)state;
    pst_io_bench_options options = small_bench();
    options.folders = all_folders;
    options.folder_count = 2;
    options.processes = 4;
    exercise(&options);
    options.transfers = 3;
    options.different_file_each_loop = true;
    options.sequential_requests = true;
    exercise(&options);
}

/* The processes that this one has forked, by the parent that /proc names. */
static int find_children(pid_t *out, int room)
{
    int count = 0;
    DIR *list = opendir("/proc");
    assert_non_null(list);
    for (struct dirent *entry; (entry = readdir(list)) != NULL;) {
        char path[300], text[512];
        long pid = strtol(entry->d_name, NULL, 10);
        snprintf(path, sizeof path, "/proc/%ld/stat", pid);
        FILE *file = pid > 0 ? fopen(path, "r") : NULL;
        if (file == NULL)
            continue;
        size_t bytes = fread(text, 1, sizeof text - 1, file);
        fclose(file);
        text[bytes] = '\0';
        const char *rest = strrchr(text, ')');
        long parent = 0;
        if (rest != NULL && sscanf(rest + 1, " %*c %ld", &parent) == 1 && parent == (long)getpid() && count < room)
            out[count++] = (pid_t)pid;
    }
    closedir(list);
    return count;
}

static void test_child_dies(void **state)
{
    (void)state;
    pst_io_bench_options options = small_bench();
    options.processes = 3;
    pst_io_bench *bench = open_bench(&options);
    run(bench, PST_IO_READ);
    pid_t children[16];
    assert_int_equal(find_children(children, 16), 3);
    kill(children[1], SIGKILL);
    pst_io_bench_result result;
    pst_error err = {.message = ""};
    assert_int_equal(pst_io_bench_run(bench, PST_IO_READ, &result, &err), -ECHILD);
    assert_non_null(strstr(err.message, "signal 9"));
    assert_int_equal(pst_io_bench_run(bench, PST_IO_READ, &result, &err), -ECHILD); /* and it stays so */
    pst_io_bench_close(bench);
    assert_int_equal(find_children(children, 16), 0);
    assert_int_equal(count_all(), 0);
}

/* ---- failures ---- */

static int whole_life(const pst_io_bench_options *options)
{
    pst_io_bench *bench;
    pst_io_bench_result result;
    int status = pst_io_bench_open(options, &bench, NULL);
    if (status < 0)
        return status;
    status = pst_io_bench_run(bench, PST_IO_WRITE, &result, NULL);
    if (status >= 0)
        status = pst_io_bench_run(bench, PST_IO_READ, &result, NULL);
    if (status >= 0)
        status = pst_io_bench_change(bench, options, NULL);
    pst_io_bench_close(bench);
    return status;
}

static void test_every_allocation_fails(void **state)
{
    (void)state;
    pst_io_bench_options options = small_bench();
    options.io_size = 65536;
    options.io.engine = "threads";
    options.io.workers = 2;
    options.transfers = 2;
    for (int striped = 0; striped < 2; striped++) {
        options.stripe = striped != 0;
        options.folders = all_folders;
        options.folder_count = 2;
        int64_t before = pst_heap_live_count();
        int failures = 0;
        for (int64_t n = 0;; n++) {
            pst_heap_fail_after(n, 0);
            int status = whole_life(&options);
            pst_heap_fail_after(-1, 0);
            assert_int_equal(pst_heap_live_count(), before);
            if (status >= 0 && n > 300)
                break;
            failures += status < 0;
            assert_int_equal(count_all(), 0);
        }
        assert_true(failures > 10);
    }
}

static void test_system_calls_fail(void **state)
{
    (void)state;
    static const pst_fault_kind kinds[] = {PST_FAULT_OPEN,  PST_FAULT_READ,    PST_FAULT_WRITE, PST_FAULT_FDATASYNC,
                                           PST_FAULT_STATX, PST_FAULT_STATVFS, PST_FAULT_MMAP};
    pst_io_bench_options options = small_bench();
    options.io_size = 65536;
    options.io.engine = "threads";
    options.io.workers = 1;
    options.sync = true;
    pst_sys_replace(&pst_sys_fault);
    for (size_t k = 0; k < sizeof kinds / sizeof kinds[0]; k++) {
        int failures = 0;
        for (int64_t skip = 0; skip < 200; skip++) {
            pst_fault_reset();
            pst_fault_fail(kinds[k], skip, 1, EIO);
            int status = whole_life(&options);
            failures += status < 0;
            bool reached = pst_fault_count(kinds[k]) > skip;
            pst_fault_reset();
            assert_int_equal(count_all(), 0);
            if (!reached)
                break;
        }
        if (failures == 0)
            fail_msg("a failing %s was never noticed", pst_fault_name(kinds[k]));
    }
    pst_sys_replace(NULL);
}

int main(void)
{
    behaviour.wrong_at = -1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_contents),
        cmocka_unit_test(test_engines),
        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_stripe),
        cmocka_unit_test(test_small_buffer),
        cmocka_unit_test(test_settings),
        cmocka_unit_test(test_change),
        cmocka_unit_test(test_existing_file),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_wrong_bytes),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_time_is_measured),
        cmocka_unit_test(test_processes),
        cmocka_unit_test(test_child_dies),
        cmocka_unit_test(test_every_allocation_fails),
        cmocka_unit_test(test_system_calls_fail),
    };
    return cmocka_run_group_tests(tests, make_folders, remove_folders);
}
