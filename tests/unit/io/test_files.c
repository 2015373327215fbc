/* SPDX-License-Identifier: Apache-2.0 */
/* Files and handles: how they open, what they refuse and what they say, the end of a file, many threads at
 * once. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "os/sys_fault.h"
#include "penstock/log.h"
#include "unit/io/io_test.h"

static uint64_t state;
static char *folder;

static int set_up(void **unused)
{
    (void)unused;
    folder = test_folder_create(false);
    return 0;
}

static int tear_down(void **unused)
{
    (void)unused;
    pst_sys_replace(NULL);
    pst_log_set_sink(NULL, NULL, PST_LOG_WARNING);
    test_folder_remove(folder);
    return 0;
}

static void test_bad_options(void **unused)
{
    (void)unused;
    pst_io *io = NULL;
    pst_error err;
    pst_io_options options = {.struct_size = sizeof options, .engine = "steam"};
    assert_int_equal(pst_io_open(&options, &io, &err), PST_E_USAGE);
    assert_non_null(strstr(err.message, "steam"));
    options = (pst_io_options){.struct_size = sizeof options, .block_size = 5000};
    assert_int_equal(pst_io_open(&options, &io, &err), PST_E_USAGE);
    options = (pst_io_options){.struct_size = sizeof options, .block_size = 1ull << 40};
    assert_int_equal(pst_io_open(&options, &io, &err), PST_E_USAGE);
    options = (pst_io_options){.struct_size = sizeof options, .queue_depth = 1u << 30};
    assert_int_equal(pst_io_open(&options, &io, &err), PST_E_USAGE);
    options = (pst_io_options){.struct_size = sizeof options, .workers = 100000};
    assert_int_equal(pst_io_open(&options, &io, &err), PST_E_USAGE);
    assert_null(io);
    pst_io_close(NULL);
    pst_io_batch_destroy(NULL);
    assert_int_equal(pst_io_file_close(NULL, NULL), 0);
    /* A caller compiled against an older, shorter options structure. */
    options =
        (pst_io_options){.struct_size = offsetof(pst_io_options, workers), .engine = "threads", .workers = 100000};
    assert_ok(pst_io_open(&options, &io, &err), &err);
    assert_string_equal(pst_io_engine_name(io), "threads");
    pst_io_close(io);
    assert_ok(pst_io_open(NULL, &io, &err), &err);
    pst_io_close(io);
}

static void test_open_files(void **unused)
{
    (void)unused;
    pst_io *io = test_open("threads", 0, 2, 0, false);
    pst_io_file *file = NULL;
    pst_error err = {0};
    const char *path = test_path(folder, "f");
    assert_int_equal(pst_io_file_open(io, path, PST_IO_OPEN_READ, &file, &err), -ENOENT);
    assert_string_equal(err.path, path);
    assert_int_equal(pst_io_file_open(io, path, PST_IO_OPEN_WRITE, &file, &err), -ENOENT);
    assert_int_equal(pst_io_file_open(io, path, PST_IO_OPEN_CREATE, &file, &err), PST_E_USAGE);
    assert_int_equal(pst_io_file_open(io, path, PST_IO_OPEN_WRITE | PST_IO_OPEN_EXCLUSIVE, &file, &err), PST_E_USAGE);
    assert_int_equal(pst_io_file_open(io, "", PST_IO_OPEN_READ, &file, &err), PST_E_USAGE);
    assert_int_equal(pst_io_file_open(io, folder, PST_IO_OPEN_READ, &file, &err), -EISDIR);
    assert_int_equal(pst_io_file_open(io, "/dev/null", PST_IO_OPEN_READ, &file, &err), PST_E_UNSUPPORTED);
    assert_int_equal(mkfifo(test_path(folder, "pipe"), 0600), 0);
    assert_int_equal(pst_io_file_open(io, test_path(folder, "pipe"), PST_IO_OPEN_READ, &file, &err),
                     PST_E_UNSUPPORTED); /* and does not wait for a writer */
    assert_null(file);
    unsigned create = PST_IO_OPEN_WRITE | PST_IO_OPEN_CREATE;
    assert_ok(pst_io_file_open(io, path, create | PST_IO_OPEN_EXCLUSIVE, &file, &err), &err);
    assert_int_equal(pst_io_file_bytes(file), 0);
    assert_ok(pst_io_file_truncate(file, 10000, &err), &err);
    assert_ok(pst_io_file_preallocate(file, 0, &err), &err);
    assert_ok(pst_io_file_preallocate(file, 5000, &err), &err);
    assert_int_equal(pst_io_file_truncate(file, UINT64_MAX, &err), -EFBIG);
    assert_int_equal(pst_io_file_preallocate(file, UINT64_MAX, &err), -EFBIG);
    assert_ok(pst_io_file_sync(file, &err), &err);
    assert_ok(pst_io_file_close(file, &err), &err);
    assert_int_equal(pst_io_file_open(io, path, create | PST_IO_OPEN_EXCLUSIVE, &file, &err), -EEXIST);
    assert_ok(pst_io_file_open(io, path, create, &file, &err), &err);
    assert_int_equal(pst_io_file_bytes(file), 10000);
    assert_true(pst_io_file_alignment(file) >= 1);
    assert_ok(pst_io_file_close(file, &err), &err);
    assert_ok(pst_io_file_open(io, path, PST_IO_OPEN_WRITE | PST_IO_OPEN_TRUNCATE, &file, &err), &err);
    assert_int_equal(pst_io_file_bytes(file), 0);
    assert_ok(pst_io_file_close(file, &err), &err);
    pst_io_close(io);
}

static void test_bad_operations(void **unused)
{
    (void)unused;
    pst_io *io = test_open("threads", 0, 2, 0, false), *other = test_open("threads", 0, 1, 0, false);
    pst_io_file *file;
    pst_io_batch *batch;
    pst_error err = {0};
    char buffer[16];
    test_write_file(test_path(folder, "f"), "0123456789", 10);
    assert_ok(pst_io_file_open(io, test_path(folder, "f"), PST_IO_OPEN_READ, &file, &err), &err);
    assert_ok(pst_io_batch_create(io, 1, &batch, &err), &err);
    pst_io_op good = {.file = file, .buffer = buffer, .bytes = 10}, op = good;
    pst_io_op two[2] = {good, good};
    assert_int_equal(pst_io_submit(batch, two, 2, &err), PST_E_USAGE);
    op.kind = PST_IO_WRITE;
    assert_int_equal(pst_io_submit(batch, &op, 1, &err), -EBADF);
    op = good;
    op.kind = (pst_io_kind)7;
    assert_int_equal(pst_io_submit(batch, &op, 1, &err), PST_E_USAGE);
    op = good;
    op.buffer = NULL;
    assert_int_equal(pst_io_submit(batch, &op, 1, &err), PST_E_USAGE);
    op = good;
    op.file = NULL;
    assert_int_equal(pst_io_submit(batch, &op, 1, &err), PST_E_USAGE);
    op = good;
    op.offset = UINT64_MAX - 3;
    assert_int_equal(pst_io_submit(batch, &op, 1, &err), PST_E_USAGE);
    op = good;
    op.bytes = UINT64_MAX;
    assert_int_equal(pst_io_submit(batch, &op, 1, &err), PST_E_USAGE);
    op = good;
    assert_int_equal(pst_io_transfer(other, &op, &err), PST_E_USAGE);
    assert_ok(pst_io_submit(batch, NULL, 0, &err), &err);
    assert_int_equal(pst_io_wait(batch, 0, &err), 0);
    op.bytes = 0;
    op.result = -1;
    assert_ok(pst_io_transfer(io, &op, &err), &err);
    assert_int_equal(op.result, 0);
    assert_ok(pst_io_transfer(io, &good, &err), &err);
    assert_memory_equal(buffer, "0123456789", 10);
    pst_io_batch_destroy(batch);
    assert_ok(pst_io_file_close(file, &err), &err);
    pst_io_close(other);
    pst_io_close(io);
}

/* Files that end anywhere, read across, up to, at and beyond their end. */
static void test_end_of_file(void **unused)
{
    (void)unused;
    static const uint64_t sizes[] = {0, 1, 511, 512, 513, 4095, 4096, 4097, 8192, 70000, 1 << 20, (1 << 20) + 1};
    enum { ROOM = 2 << 20 };
    uint8_t *model = malloc(ROOM), *target = aligned_alloc(4096, ROOM + 4096);
    pst_error err = {0};
    test_fill(model, ROOM, 3, 0);
    for (unsigned e = 0; test_engine(e) != NULL; e++) {
        pst_io *io = test_open(test_engine(e), 65536, 8, 0, false);
        for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
            const char *path = test_path(folder, "end");
            pst_io_file *file;
            test_write_file(path, model, sizes[i]);
            assert_ok(pst_io_file_open(io, path, PST_IO_OPEN_READ, &file, &err), &err);
            for (int n = 0; n < 60; n++) {
                uint64_t back = test_below(&state, 3) * 512 + test_below(&state, 3);
                uint64_t offset = n % 3 == 0 ? 0 : sizes[i] > back ? sizes[i] - back : sizes[i] + back;
                uint64_t bytes = n % 2 == 0 ? 4096 * (1 + test_below(&state, 40)) : 1 + test_below(&state, 100000);
                bool may_be_short = test_below(&state, 2);
                uint64_t there = offset < sizes[i] ? sizes[i] - offset : 0;
                int64_t expected = there >= bytes ? (int64_t)bytes : may_be_short ? (int64_t)there : PST_E_SHORT;
                pst_io_op op = {.file = file,
                                .offset = offset,
                                .buffer = target + (n % 5 == 4 ? 3 : 0),
                                .bytes = bytes,
                                .may_be_short = may_be_short};
                int status = pst_io_transfer(io, &op, &err);
                assert_int_equal(op.result, expected);
                assert_int_equal(status, expected < 0 ? PST_E_SHORT : 0);
                if (expected < 0) {
                    assert_int_equal(err.offset, offset + there);
                    assert_string_equal(err.path, path);
                } else {
                    assert_memory_equal(op.buffer, model + offset, (size_t)expected);
                }
            }
            assert_ok(pst_io_file_close(file, &err), &err);
        }
        pst_io_close(io);
    }
    free(target);
    free(model);
}

typedef struct lines {
    pthread_mutex_t lock;
    char text[16][256];
    pst_log_level level[16];
    unsigned count;
} lines;

static void keep_line(void *user, pst_log_level level, const char *line)
{
    lines *l = user;
    if (l->count < 16) {
        snprintf(l->text[l->count], sizeof l->text[0], "%s", line);
        l->level[l->count++] = level;
    }
}

static unsigned lines_with(const lines *l, pst_log_level level, const char *words)
{
    unsigned found = 0;
    for (unsigned i = 0; i < l->count; i++)
        found += l->level[i] == level && strstr(l->text[i], words) != NULL;
    return found;
}

/* Reads and writes a file whose every byte is known, ragged on both sides. */
static void exercise(pst_io *io, pst_io_file *file, uint64_t key)
{
    enum { BYTES = 300001 };
    uint8_t *out = malloc(BYTES), *in = malloc(BYTES);
    pst_error err = {0};
    test_fill(out, BYTES, key, 0);
    pst_io_op write = {.file = file, .offset = 1234, .buffer = out, .bytes = BYTES, .kind = PST_IO_WRITE};
    assert_ok(pst_io_transfer(io, &write, &err), &err);
    pst_io_op read = {.file = file, .offset = 1234, .buffer = in, .bytes = BYTES, .kind = PST_IO_READ};
    assert_ok(pst_io_transfer(io, &read, &err), &err);
    assert_memory_equal(in, out, BYTES);
    free(in);
    free(out);
}

/* No direct I/O at opening: buffered, said once per file system. The order of the tests matters: this is the
 * first that warns. */
static void test_direct_refused(void **unused)
{
    (void)unused;
    lines seen = {.count = 0};
    pst_log_set_sink(keep_line, &seen, PST_LOG_WARNING);
    pst_fault_reset();
    pst_sys_replace(&pst_sys_fault);
    pst_fault_refuse_direct(true);
    pst_error err = {0};
    pst_io *io = test_open("auto", 0, 4, 0, false);
    for (int i = 0; i < 3; i++) {
        pst_io_file *file;
        const char *path = test_path(folder, i == 0 ? "a" : "b");
        unsigned flags = PST_IO_OPEN_WRITE | PST_IO_OPEN_CREATE;
        assert_ok(pst_io_file_open(io, path, flags, &file, &err), &err);
        assert_false(pst_io_file_is_direct(file));
        assert_int_equal(pst_io_file_alignment(file), 1);
        exercise(io, file, (uint64_t)i);
        assert_ok(pst_io_file_close(file, &err), &err);
    }
    pst_io_close(io);
    assert_int_equal(lines_with(&seen, PST_LOG_WARNING, "refuses direct I/O"), 1);
}

/* Direct I/O refused by the transfer, in spite of a successful opening. */
static void test_direct_refused_later(void **unused)
{
    (void)unused;
    pst_sys_replace(&pst_sys_fault);
    for (unsigned e = 0; test_engine(e) != NULL; e++) {
        for (int kind = 0; kind < 2; kind++) {
            pst_error err = {0};
            pst_io_file *file;
            pst_fault_reset();
            pst_io *io = test_open(test_engine(e), 8192, 4, 0, false);
            const char *path = test_path(folder, "late");
            unsigned flags = PST_IO_OPEN_WRITE | PST_IO_OPEN_CREATE | PST_IO_OPEN_TRUNCATE;
            assert_ok(pst_io_file_open(io, path, flags, &file, &err), &err);
            bool was_direct = pst_io_file_is_direct(file);
            pst_fault_fail(kind == 0 ? PST_FAULT_WRITE : PST_FAULT_READ, 3, 1, EINVAL);
            if (was_direct) {
                /* Ragged ends of writes are buffered, where EINVAL is an error: so aligned ones. */
                enum { BYTES = 40 * 4096 };
                uint8_t *out = aligned_alloc(4096, BYTES), *in = aligned_alloc(4096, BYTES);
                test_fill(out, BYTES, 5, 0);
                pst_io_op write = {.file = file, .buffer = out, .bytes = BYTES, .kind = PST_IO_WRITE};
                pst_io_op read = {.file = file, .buffer = in, .bytes = BYTES, .kind = PST_IO_READ};
                assert_ok(pst_io_transfer(io, &write, &err), &err);
                assert_ok(pst_io_transfer(io, &read, &err), &err);
                assert_memory_equal(in, out, BYTES);
                assert_false(pst_io_file_is_direct(file));
                free(in);
                free(out);
            }
            exercise(io, file, 9);
            assert_ok(pst_io_file_close(file, &err), &err);
            pst_io_close(io);
        }
    }
}

/* Kernels that do not tell the alignment: it is found out. */
static void test_alignment_probe(void **unused)
{
    (void)unused;
    pst_sys_replace(&pst_sys_fault);
    pst_fault_reset();
    pst_io *io = test_open("threads", 0, 2, 0, false);
    pst_io_file *file;
    pst_error err = {0};
    uint8_t data[8192];
    test_fill(data, sizeof data, 1, 0);
    const char *path = test_path(folder, "probe");
    test_write_file(path, data, sizeof data);
    assert_ok(pst_io_file_open(io, path, PST_IO_OPEN_READ, &file, &err), &err);
    bool direct = pst_io_file_is_direct(file);
    uint32_t told = pst_io_file_alignment(file);
    assert_ok(pst_io_file_close(file, &err), &err);
    pst_fault_hide_alignment(true);
    if (direct) {
        assert_ok(pst_io_file_open(io, path, PST_IO_OPEN_READ, &file, &err), &err);
        assert_true(pst_io_file_is_direct(file));
        assert_true(pst_io_file_alignment(file) >= told && pst_io_file_alignment(file) <= 4096);
        assert_ok(pst_io_file_close(file, &err), &err);
        pst_fault_fail(PST_FAULT_READ, 0, 1, EINVAL); /* 512 is refused, 4096 is not */
        assert_ok(pst_io_file_open(io, path, PST_IO_OPEN_READ, &file, &err), &err);
        assert_int_equal(pst_io_file_alignment(file), 4096);
        assert_ok(pst_io_file_close(file, &err), &err);
        pst_fault_fail(PST_FAULT_READ, 0, 2, EINVAL); /* both are */
        assert_ok(pst_io_file_open(io, path, PST_IO_OPEN_READ, &file, &err), &err);
        assert_false(pst_io_file_is_direct(file));
        assert_ok(pst_io_file_close(file, &err), &err);
    }
    pst_io_close(io);
}

/* "auto" falls through to another engine, for whatever reason io_uring does not start; asked for by name, it says
 * why. */
static void test_fall_through(void **unused)
{
    (void)unused;
    static const struct {
        pst_fault_kind kind;
        int error;
    } refusals[] = {{PST_FAULT_URING_INIT, EPERM},  {PST_FAULT_URING_INIT, ENOSYS},  {PST_FAULT_URING_INIT, ENOMEM},
                    {PST_FAULT_URING_INIT, EINVAL}, {PST_FAULT_URING_PROBE, ENOSYS}, {PST_FAULT_URING_ENTER, EACCES},
                    {PST_FAULT_EVENTFD, EMFILE}};
    pst_sys_replace(&pst_sys_fault);
    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
        lines seen = {.count = 0};
        pst_error err = {0};
        pst_io *io = NULL;
        pst_io_options options = {.struct_size = sizeof options, .engine = "io_uring"};
        if (refusals[i].kind != PST_FAULT_URING_INIT && !test_have_uring())
            continue;
        pst_fault_reset();
        pst_fault_fail(refusals[i].kind, 0, INT64_MAX, refusals[i].error);
        assert_int_equal(pst_io_open(&options, &io, &err), -refusals[i].error);
        assert_null(io);
        assert_non_null(strstr(err.message, "io_uring"));
        assert_non_null(strstr(err.message, strerror(refusals[i].error)));
        pst_log_set_sink(keep_line, &seen, PST_LOG_INFO);
        options.engine = "auto";
        assert_ok(pst_io_open(&options, &io, &err), &err);
        pst_log_set_sink(NULL, NULL, PST_LOG_WARNING);
        assert_string_not_equal(pst_io_engine_name(io), "io_uring");
        assert_int_equal(lines_with(&seen, PST_LOG_INFO, "io_uring is passed over"), 1);
        pst_io_close(io);
    }
}

/* No room for locked memory, or no tables at all: everything works, only without them. */
static void test_no_tables(void **unused)
{
    (void)unused;
    if (!test_have_uring())
        return;
    pst_sys_replace(&pst_sys_fault);
    for (int i = 0; i < 4; i++) {
        lines seen = {.count = 0};
        pst_error err = {0};
        pst_io_file *file;
        static _Alignas(4096) char memory[65536];
        pst_fault_reset();
        pst_fault_kind kind = i < 2 ? PST_FAULT_URING_BUFFERS : PST_FAULT_URING_FILES;
        pst_fault_fail(kind, i % 2, INT64_MAX, ENOMEM); /* from the start, or only for the entries */
        pst_io *io = test_open("io_uring", 0, 4, 1, false);
        pst_log_set_sink(keep_line, &seen, PST_LOG_INFO);
        assert_ok(pst_io_register(io, memory, sizeof memory, &err), &err);
        pst_log_set_sink(NULL, NULL, PST_LOG_WARNING);
        assert_int_equal(lines_with(&seen, PST_LOG_INFO, "not registered"), i < 2);
        unsigned flags = PST_IO_OPEN_WRITE | PST_IO_OPEN_CREATE;
        assert_ok(pst_io_file_open(io, test_path(folder, "tables"), flags, &file, &err), &err);
        exercise(io, file, 11);
        for (int n = 0; n < 200; n++) { /* a file gets its slot after a while */
            pst_io_op op = {.file = file, .offset = 4096, .buffer = memory, .bytes = 4096};
            assert_ok(pst_io_transfer(io, &op, &err), &err);
        }
        assert_int_equal(pst_fault_count(PST_FAULT_URING_FILES), i == 2 ? 1 : 2);
        assert_ok(pst_io_file_close(file, &err), &err);
        pst_io_unregister(io, memory);
        pst_io_close(io);
    }
}

typedef struct client {
    pthread_t thread;
    pst_io *io;
    pst_io_file *shared;
    const uint8_t *model;
    uint64_t bytes, seed;
    unsigned index;
    int failures;
} client;

/* One of several threads: batches of reads of the shared file, and a file of its own that it writes and
 * reads. */
static void *client_main(void *argument)
{
    enum { OPS = 20, OWN = 200000 };
    client *c = argument;
    char name[32], own_path[4200];
    pst_io_batch *batch;
    pst_io_file *own;
    pst_io_op ops[OPS];
    snprintf(name, sizeof name, "own%u", c->index);
    snprintf(own_path, sizeof own_path, "%s/%s", folder, name);
    uint8_t *buffer = malloc(OPS * 40000), *data = malloc(OWN);
    unsigned flags = PST_IO_OPEN_WRITE | PST_IO_OPEN_CREATE;
    if (pst_io_batch_create(c->io, OPS, &batch, NULL) < 0 || pst_io_file_open(c->io, own_path, flags, &own, NULL) < 0) {
        c->failures++;
        return NULL;
    }
    for (int round = 0; round < 15; round++) {
        for (uint32_t i = 0; i < OPS; i++) {
            uint64_t bytes = 1 + test_below(&c->seed, 40000), offset = test_below(&c->seed, c->bytes - bytes);
            ops[i] = (pst_io_op){.file = c->shared, .offset = offset, .buffer = buffer + i * 40000, .bytes = bytes};
        }
        c->failures += pst_io_submit(batch, ops, OPS, NULL) < 0;
        if (round % 4 == 3)
            pst_io_cancel(batch);
        test_fill(data, OWN, c->index, (uint64_t)round);
        pst_io_op put = {
            .file = own, .offset = 77u * (unsigned)round, .buffer = data, .bytes = OWN, .kind = PST_IO_WRITE};
        c->failures += pst_io_transfer(c->io, &put, NULL) < 0;
        int status = pst_io_wait(batch, UINT64_MAX, NULL);
        c->failures += status < 0 && status != PST_E_CANCELLED;
        for (uint32_t i = 0; i < OPS; i++) {
            if (ops[i].result >= 0)
                c->failures += memcmp(ops[i].buffer, c->model + ops[i].offset, ops[i].bytes) != 0;
            else
                c->failures += round % 4 != 3;
        }
        put.kind = PST_IO_READ;
        put.buffer = buffer;
        c->failures += pst_io_transfer(c->io, &put, NULL) < 0 || memcmp(buffer, data, OWN) != 0;
    }
    pst_io_batch_destroy(batch);
    c->failures += pst_io_file_close(own, NULL) < 0;
    free(buffer);
    free(data);
    return NULL;
}

static void test_many_threads(void **unused)
{
    (void)unused;
    enum { CLIENTS = 5, BYTES = 2 << 20 };
    uint8_t *model = malloc(BYTES);
    pst_error err = {0};
    test_fill(model, BYTES, 21, 0);
    const char *path = test_path(folder, "shared");
    test_write_file(path, model, BYTES);
    for (unsigned e = 0; test_engine(e) != NULL; e++) {
        pst_io *io = test_open(test_engine(e), 16384, 8, e == 0 ? 4 : 2, false);
        pst_io_file *file;
        client clients[CLIENTS];
        assert_ok(pst_io_file_open(io, path, PST_IO_OPEN_READ, &file, &err), &err);
        for (unsigned i = 0; i < CLIENTS; i++) {
            clients[i] = (client){
                .io = io, .shared = file, .model = model, .bytes = BYTES, .seed = test_random(&state), .index = i};
            assert_int_equal(pthread_create(&clients[i].thread, NULL, client_main, &clients[i]), 0);
        }
        for (unsigned i = 0; i < CLIENTS; i++) {
            pthread_join(clients[i].thread, NULL);
            assert_int_equal(clients[i].failures, 0);
        }
        assert_ok(pst_io_file_close(file, &err), &err);
        pst_io_close(io);
    }
    free(model);
}

/* A closing handle against a thread that submits: each submission is either served or refused, none is
 * forgotten. Most operations are empty, so that submit spends its time on checking them. */
typedef struct submitter {
    pst_io *io;
    pst_io_file *file;
    pst_io_batch *batch;
    pst_io_op *ops;
    uint32_t count;
    atomic_bool started;
    int status, waited;
} submitter;

static void *submitter_main(void *argument)
{
    submitter *s = argument;
    do {
        s->status = pst_io_submit(s->batch, s->ops, s->count, NULL);
        s->waited = pst_io_wait(s->batch, 10000000000u, NULL);
        atomic_store(&s->started, true);
    } while (s->status >= 0 && s->waited == 0);
    return NULL;
}

static void test_close_against_submit(void **unused)
{
    (void)unused;
    enum { OPS = 200000, ROUNDS = 30 };
    pst_io_op *ops = calloc(OPS, sizeof *ops);
    const char *path = test_path(folder, "f");
    test_write_file(path, "0123456789", 10);
    for (int round = 0; round < ROUNDS; round++) {
        pst_error err = {0};
        char byte;
        pthread_t thread;
        submitter s = {.io = test_open("threads", 0, 2, 2, round % 2 != 0), .ops = ops, .count = OPS};
        assert_ok(pst_io_file_open(s.io, path, PST_IO_OPEN_READ, &s.file, &err), &err);
        assert_ok(pst_io_batch_create(s.io, OPS, &s.batch, &err), &err);
        for (int i = 0; i < OPS; i++)
            ops[i] = (pst_io_op){.file = s.file, .buffer = &byte, .bytes = i == 0};
        assert_int_equal(pthread_create(&thread, NULL, submitter_main, &s), 0);
        while (!atomic_load(&s.started))
            nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL);
        nanosleep(&(struct timespec){.tv_nsec = (long)test_below(&state, 2000000)}, NULL);
        pst_io_close(s.io);
        pthread_join(thread, NULL);
        assert_int_equal(s.waited, 0);
        assert_int_equal(s.status, PST_E_USAGE);
        pst_io_batch_destroy(s.batch);
        assert_ok(pst_io_file_close(s.file, &err), &err);
    }
    free(ops);
}

/* What the suite's runner counts as skipped: a line of exactly these words. */
static void test_skip_is_said(void **unused)
{
    (void)unused;
    const char *path = test_path(folder, "said");
    pst_sys_replace(&pst_sys_fault);
    pst_fault_reset();
    pst_fault_fail(PST_FAULT_URING_INIT, 0, INT64_MAX, EPERM);
    fflush(stdout);
    int kept = dup(STDOUT_FILENO), file = open(path, O_WRONLY | O_CREAT, 0600);
    assert_true(kept >= 0 && file >= 0);
    dup2(file, STDOUT_FILENO);
    bool works = test_try_uring();
    fflush(stdout);
    dup2(kept, STDOUT_FILENO);
    close(kept);
    close(file);
    pst_fault_reset();
    uint64_t bytes;
    char *said = (char *)test_read_file(path, &bytes);
    said[bytes] = '\0';
    assert_false(works);
    assert_string_equal(said, "SKIP: io_uring is refused here\n");
    free(said);
}

int main(void)
{
    state = test_seed();
#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        IN_FOLDER(test_direct_refused),  IN_FOLDER(test_bad_options),  IN_FOLDER(test_open_files),
        IN_FOLDER(test_bad_operations),  IN_FOLDER(test_end_of_file),  IN_FOLDER(test_direct_refused_later),
        IN_FOLDER(test_alignment_probe), IN_FOLDER(test_fall_through), IN_FOLDER(test_no_tables),
        IN_FOLDER(test_many_threads),    IN_FOLDER(test_skip_is_said), IN_FOLDER(test_close_against_submit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
