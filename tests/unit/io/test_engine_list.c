/* SPDX-License-Identifier: Apache-2.0 */
/* The list of engines, what "auto" makes of it, engines of other versions, and what an engine costs in system calls. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/heap.h"
#include "io/engine.h"
#include "io/engines/pace.h"
#include "os/sys_fault.h"
#include "unit/io/io_test.h"

enum { BYTES = 300000, KEY = 5 };

static char *folder;
static uint8_t *model, *target;

static int set_up(void **unused)
{
    (void)unused;
    folder = test_folder_create(false);
    model = malloc(BYTES);
    target = malloc(BYTES);
    test_fill(model, BYTES, KEY, 0);
    test_write_file(test_path(folder, "file"), model, BYTES);
    pst_fault_reset();
    pst_sys_replace(&pst_sys_fault);
    return 0;
}

static int tear_down(void **unused)
{
    (void)unused;
    pst_sys_replace(NULL);
    free(model);
    free(target);
    test_folder_remove(folder);
    return 0;
}

/* ---- the list ---- */

static void test_list(void **unused)
{
    (void)unused;
    static const char *const names[] = {"io_uring", "libaio", "threads", "null"};
    pst_io_engine_info info = {.struct_size = sizeof info};
    uint32_t count = 0;
    for (; pst_io_engine_at(count, &info) == 1; count++) {
        if (count < 4)
            assert_string_equal(info.name, names[count]);
        assert_true(info.description[0] != '\0' || count >= 4);
        assert_int_equal(info.automatic, count < 3);
        assert_true((info.status < 0) == (info.why_not[0] != '\0'));
        if (count >= 2)
            assert_int_equal(info.status, 0);
        assert_int_equal(info.struct_size, sizeof info);
    }
    assert_true(count >= 4);
    assert_true((info.flags & PST_IO_ENGINE_NO_DATA) != 0 || count > 4);
    pst_io_engine_info untouched = info;
    assert_int_equal(pst_io_engine_at(count, &info), 0);
    assert_int_equal(pst_io_engine_at(UINT32_MAX, &info), 0);
    assert_memory_equal(&info, &untouched, sizeof info);
}

static void test_list_says_why_not(void **unused)
{
    (void)unused;
    static const struct {
        uint32_t n;
        pst_fault_kind kind;
        int error;
        const char *words;
    } faults[] = {{0, PST_FAULT_URING_INIT, EPERM, "kernel.io_uring_disabled"},
                  {0, PST_FAULT_URING_INIT, ENOSYS, "io_uring"},
                  {1, PST_FAULT_AIO_SETUP, EAGAIN, "fs.aio-max-nr"},
                  {1, PST_FAULT_AIO_SETUP, ENOSYS, "libaio"}};
    for (size_t i = 0; i < sizeof faults / sizeof faults[0]; i++) {
        pst_io_engine_info info = {.struct_size = sizeof info};
        pst_fault_reset();
        pst_fault_fail(faults[i].kind, 0, INT64_MAX, faults[i].error);
        assert_int_equal(pst_io_engine_at(faults[i].n, &info), 1);
        assert_int_equal(info.status, -faults[i].error);
        assert_non_null(strstr(info.why_not, faults[i].words));
        /* The others are not concerned. */
        assert_int_equal(pst_io_engine_at(2, &info), 1);
        assert_int_equal(info.status, 0);
        assert_string_equal(info.why_not, "");
    }
    pst_fault_reset();
    pst_heap_fail_after(0, 1);
    pst_io_engine_info info = {.struct_size = sizeof info};
    assert_int_equal(pst_io_engine_at(2, &info), 1);
    pst_heap_fail_after(-1, 0);
    assert_int_equal(info.status, -ENOMEM);
}

/* A caller that knows fewer fields. */
static void test_list_for_older_callers(void **unused)
{
    (void)unused;
    pst_io_engine_info info;
    memset(&info, 0x77, sizeof info);
    info.struct_size = offsetof(pst_io_engine_info, automatic);
    assert_int_equal(pst_io_engine_at(2, &info), 1);
    assert_string_equal(info.name, "threads");
    for (size_t i = offsetof(pst_io_engine_info, automatic); i < sizeof info; i++)
        assert_int_equal(((uint8_t *)&info)[i], 0x77);
}

/* ---- auto ---- */

static void assert_choices(const char *path, bool direct)
{
    unsigned n = 0;
    assert_ptr_equal(pst_io_engine_choice(n++, path), &pst_io_engine_uring);
    if (direct)
        assert_ptr_equal(pst_io_engine_choice(n++, path), &pst_io_engine_libaio);
    assert_ptr_equal(pst_io_engine_choice(n++, path), &pst_io_engine_threads);
    assert_null(pst_io_engine_choice(n, path));
    assert_null(pst_io_engine_choice(n + 1, path));
    assert_null(pst_io_engine_choice(1000, path));
}

static unsigned entries_of(const char *path)
{
    unsigned count = 0;
    DIR *entries = opendir(path);
    assert_non_null(entries);
    while (readdir(entries) != NULL)
        count++;
    closedir(entries);
    return count;
}

static bool folder_is_direct(void)
{
    pst_io *io = test_open("threads", 0, 1, 1, false);
    pst_io_file *file;
    pst_error err = {0};
    assert_ok(pst_io_file_open(io, test_path(folder, "file"), PST_IO_OPEN_READ, &file, &err), &err);
    bool direct = pst_io_file_is_direct(file);
    assert_ok(pst_io_file_close(file, &err), &err);
    pst_io_close(io);
    return direct;
}

static void test_choice(void **unused)
{
    (void)unused;
    bool direct = folder_is_direct();
    unsigned before = entries_of(folder);
    const char *paths[] = {folder, test_path(folder, "file"), test_path(folder, "not there yet")};
    assert_choices(NULL, true);
    assert_choices("", true);
    assert_choices("/nowhere/at/all", true); /* unknown */
    for (size_t i = 0; i < sizeof paths / sizeof paths[0]; i++) {
        pst_fault_reset();
        assert_choices(paths[i], direct);
        pst_fault_refuse_direct(true);
        assert_choices(paths[i], false);
        pst_fault_reset();
        pst_fault_fail(PST_FAULT_STATX, 0, INT64_MAX, EIO);
        assert_choices(paths[i], true);
        pst_fault_reset();
        pst_fault_fail(PST_FAULT_OPEN, 0, INT64_MAX, EACCES);
        assert_choices(paths[i], true);
    }
    assert_int_equal(entries_of(folder), before);
    char *memory = test_folder_create(true);
    if (memory == NULL)
        return;
    pst_fault_reset();
    assert_choices(memory, false); /* whether the kernel takes O_DIRECT there (6.6) or not */
    assert_choices(test_path(memory, "new"), false);
    test_write_file(test_path(memory, "file"), model, 5000);
    assert_choices(test_path(memory, "file"), false);
    assert_int_equal(entries_of(memory), 3);
    test_folder_remove(memory);
}

static void assert_auto(const char *path, const char *engine)
{
    pst_io_options options = {.struct_size = sizeof options, .path = path, .workers = 1};
    pst_error err = {0};
    pst_io *io;
    assert_ok(pst_io_open(&options, &io, &err), &err);
    assert_string_equal(pst_io_engine_name(io), engine);
    pst_io_close(io);
}

/* io_uring refused: libaio, but not where direct I/O is no use. */
static void test_auto(void **unused)
{
    (void)unused;
    bool direct = folder_is_direct();
    if (test_have_engine("io_uring")) {
        assert_auto(folder, "io_uring");
        assert_auto(NULL, "io_uring");
    }
    const char *second = test_have_engine("libaio") ? "libaio" : "threads";
    pst_fault_reset();
    pst_fault_fail(PST_FAULT_URING_INIT, 0, INT64_MAX, EPERM);
    assert_auto(NULL, second);
    assert_auto(folder, direct ? second : "threads");
    pst_fault_refuse_direct(true);
    assert_auto(folder, "threads");
    pst_fault_refuse_direct(false);
    char *memory = test_folder_create(true);
    if (memory == NULL)
        return;
    assert_auto(memory, "threads");
    test_folder_remove(memory);
}

/* ---- versions ---- */

static int own_open(const pst_io_engine *self, const pst_io_queue_settings *settings, void **queue, pst_error *err)
{
    return pst_io_engine_threads.open_queue(self, settings, queue, err);
}

/* A table of `bytes` bytes and none behind them, for the rest of the process. */
static pst_io_engine *table_of(const pst_io_engine *full, const char *name, size_t bytes)
{
    static void *kept[8];
    static unsigned count;
    assert_true(count < 8 && bytes >= PST_IO_ENGINE_MIN_SIZE);
    pst_io_engine *table = kept[count++] = malloc(bytes);
    assert_non_null(table);
    memcpy(table, full, bytes < sizeof *full ? bytes : sizeof *full);
    if (bytes > sizeof *full)
        memset((char *)table + sizeof *full, 0xff, bytes - sizeof *full);
    table->struct_size = (uint32_t)bytes;
    table->name = name;
    table->open_queue = own_open;
    return table;
}

static void assert_serves(const char *engine, bool moves)
{
    pst_io_options options = {.struct_size = sizeof options, .engine = engine, .block_size = 4096, .queue_depth = 4};
    pst_io *io;
    pst_io_file *file;
    pst_error err = {0};
    assert_ok(pst_io_open(&options, &io, &err), &err);
    assert_string_equal(pst_io_engine_name(io), engine);
    assert_ok(pst_io_register(io, target, BYTES, &err), &err);
    assert_ok(pst_io_file_open(io, test_path(folder, "file"), PST_IO_OPEN_WRITE, &file, &err), &err);
    memset(target, 1, BYTES);
    pst_io_op op = {.file = file, .buffer = target, .bytes = BYTES};
    assert_ok(pst_io_transfer(io, &op, &err), &err);
    if (moves) {
        assert_memory_equal(target, model, BYTES);
        op.kind = PST_IO_WRITE;
        assert_ok(pst_io_transfer(io, &op, &err), &err);
    }
    pst_io_unregister(io, target);
    assert_ok(pst_io_file_close(file, &err), &err);
    pst_io_close(io);
}

/* Engines whose tables end early, or go on beyond what the library knows: the memory behind a short one is not the
 * library's to look at. */
static void test_versions(void **unused)
{
    (void)unused;
    pst_error err = {0};
    size_t to_wake = offsetof(pst_io_engine, wake) + sizeof(((pst_io_engine *)0)->wake);
    pst_io_engine *oldest = table_of(&pst_io_engine_threads, "oldest", PST_IO_ENGINE_MIN_SIZE);
    pst_io_engine *newer = table_of(&pst_io_engine_threads, "newer", sizeof(pst_io_engine) + 3 * sizeof(void *));
    pst_io_engine *old = table_of(&pst_io_engine_null, "old", to_wake);
    old->open_queue = pst_io_engine_null.open_queue;
    newer->flags |= 0x80000000u; /* a flag that nobody knows yet */
    assert_ok(pst_io_engine_register(oldest, &err), &err);
    assert_ok(pst_io_engine_register(newer, &err), &err);
    assert_ok(pst_io_engine_register(old, &err), &err);
    assert_serves("oldest", true);
    assert_serves("newer", true);
    assert_serves("old", false);
    pst_io_engine_info info = {.struct_size = sizeof info};
    uint32_t n = 0;
    while (pst_io_engine_at(n, &info) == 1 && strcmp(info.name, "oldest") != 0)
        n++;
    assert_string_equal(info.name, "oldest");
    assert_true(n >= 4);
    assert_false(info.automatic);
    assert_int_equal(info.status, 0);
}

static void assert_refused(const pst_io_engine *engine, const char *words)
{
    pst_error err = {0};
    assert_int_equal(pst_io_engine_register(engine, &err), PST_E_USAGE);
    assert_int_equal(err.code, PST_E_USAGE);
    if (strstr(err.message, words) == NULL)
        fail_msg("\"%s\" lacks \"%s\"", err.message, words);
}

static void test_refused_tables(void **unused)
{
    (void)unused;
    pst_io_engine e = pst_io_engine_threads;
    assert_refused(NULL, "no table");
    assert_refused(&e, "already");
    e.name = "auto";
    assert_refused(&e, "already");
    e.name = "";
    assert_refused(&e, "lacks");
    e.name = "candidate";
    e.version = PST_IO_ENGINE_VERSION + 1;
    assert_refused(&e, "version");
    e.version = PST_IO_ENGINE_VERSION;
    e.struct_size = PST_IO_ENGINE_MIN_SIZE - 1;
    assert_refused(&e, "bytes");
    e.struct_size = sizeof e;
    e.reap = NULL;
    assert_refused(&e, "lacks");
    /* What the flags promise must lie within the table. */
    pst_io_engine *short_one = table_of(&pst_io_engine_uring, "short", PST_IO_ENGINE_MIN_SIZE);
    assert_refused(short_one, "lacks"); /* wake */
    short_one->flags = PST_IO_ENGINE_SYNCHRONOUS | PST_IO_ENGINE_FILE_SLOTS;
    assert_refused(short_one, "lacks");
    short_one->flags = PST_IO_ENGINE_SYNCHRONOUS | PST_IO_ENGINE_BUFFER_SLOTS;
    assert_refused(short_one, "lacks");
}

/* ---- how many completions to wait for ---- */

static void test_pace(void **unused)
{
    (void)unused;
    assert_int_equal(pst_pace_count(64, 64), 16);
    assert_int_equal(pst_pace_count(4096, 4096), 1024);
    assert_int_equal(pst_pace_count(16, 16), 4);
    /* There is room: a wake shall not be late. */
    for (uint32_t left = 0; left < 64; left++)
        assert_int_equal(pst_pace_count(left, 64), 1);
    assert_int_equal(pst_pace_count(1, 1), 1);
    assert_int_equal(pst_pace_count(8, 8), 1);
}

/* ---- through a handle ---- */

static void test_null_handle(void **unused)
{
    (void)unused;
    enum { OPS = 10000 };
    pst_io *io = test_open("null", 4096, 32, 0, false);
    pst_io_file *file;
    pst_io_batch *batch;
    pst_error err = {0};
    pst_io_op *ops = calloc(OPS, sizeof *ops);
    assert_ok(pst_io_file_open(io, test_path(folder, "file"), PST_IO_OPEN_WRITE, &file, &err), &err);
    assert_ok(pst_io_batch_create(io, OPS, &batch, &err), &err);
    memset(target, 0x3c, BYTES);
    for (int i = 0; i < OPS; i++)
        ops[i] = (pst_io_op){.file = file,
                             .offset = (uint64_t)(i % 70) * 4096,
                             .buffer = target,
                             .bytes = 4096,
                             .kind = i % 2 == 0 ? PST_IO_READ : PST_IO_WRITE};
    assert_ok(pst_io_submit(batch, ops, OPS, &err), &err);
    assert_ok(pst_io_wait(batch, UINT64_MAX, &err), &err);
    for (int i = 0; i < OPS; i++)
        assert_int_equal(ops[i].result, 4096);
    pst_io_batch_destroy(batch);
    assert_ok(pst_io_file_close(file, &err), &err);
    pst_io_close(io);
    free(ops);
    uint64_t bytes;
    uint8_t *file_content = test_read_file(test_path(folder, "file"), &bytes);
    assert_int_equal(bytes, BYTES);
    assert_memory_equal(file_content, model, BYTES);
    free(file_content);
}

/* Many blocks deep in flight take far fewer system calls than blocks. */
static void test_calls_per_block(void **unused)
{
    (void)unused;
    enum { BLOCK = 32768, BLOCKS = 1024, TOTAL = BLOCK * BLOCKS };
    char *memory = aligned_alloc(4096, TOTAL);
    assert_non_null(memory);
    memset(memory, 7, TOTAL);
    test_write_file(test_path(folder, "large"), memory, TOTAL);
    static const char *const engines[] = {"io_uring", "libaio"};
    for (int e = 0; e < 2; e++) {
        if (!test_have_engine(engines[e]))
            continue;
        pst_io *io = test_open(engines[e], BLOCK, 64, 1, false);
        pst_io_file *file;
        pst_error err = {0};
        assert_ok(pst_io_file_open(io, test_path(folder, "large"), PST_IO_OPEN_READ, &file, &err), &err);
        pst_io_op op = {.file = file, .buffer = memory, .bytes = TOTAL};
        pst_fault_reset();
        assert_ok(pst_io_transfer(io, &op, &err), &err);
        int64_t calls = pst_fault_count(PST_FAULT_URING_ENTER) + pst_fault_count(PST_FAULT_AIO_SUBMIT) +
                        pst_fault_count(PST_FAULT_AIO_GETEVENTS);
        print_message("%s: %lld calls for %d blocks\n", engines[e], (long long)calls, BLOCKS);
        assert_true(calls > 0 && calls < BLOCKS / 2);
        assert_ok(pst_io_file_close(file, &err), &err);
        pst_io_close(io);
    }
    free(memory);
}

/* No test inherits another one's faults. */
static int calm(void **unused)
{
    (void)unused;
    pst_fault_reset();
    return 0;
}

int main(void)
{
#define CALM(test) cmocka_unit_test_setup(test, calm)
    const struct CMUnitTest tests[] = {
        CALM(test_list),
        CALM(test_list_says_why_not),
        CALM(test_choice),
        CALM(test_list_for_older_callers),
        CALM(test_auto),
        CALM(test_versions),
        CALM(test_null_handle),
        CALM(test_refused_tables),
        CALM(test_calls_per_block),
        CALM(test_pace),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
