/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Many of everything at once, and nothing left behind: ten thousand operations in flight, a thousand files, 64 threads
 * with a handle each, handles opened and closed again and again. Descriptors, threads and allocations are counted
 * before and after.
 */
#include <dirent.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/heap.h"
#include "unit/io/io_test.h"

static uint64_t seed;

/* Ten thousand reads in flight, in one batch and in a hundred. */
static void run_many(const char *engine, uint32_t batch_count, uint32_t ops_each)
{
    enum { BYTES = 4 << 20, LENGTH = 700 };
    test_footprint before = test_measure_footprint();
    char *folder = test_folder_create(false);
    const char *path = test_path(folder, "file");
    uint32_t total = batch_count * ops_each;
    uint64_t state = seed;
    uint8_t *model = malloc(BYTES), *target = malloc((size_t)total * LENGTH);
    pst_io_op *ops = calloc(total, sizeof *ops);
    pst_io_batch **batches = calloc(batch_count, sizeof *batches);
    pst_error err = {0};
    pst_io_file *file;
    test_fill(model, BYTES, seed, 0);
    test_write_file(path, model, BYTES);
    pst_io *io = test_open(engine, 0, 0, 0, false);
    assert_ok(pst_io_file_open(io, path, PST_IO_OPEN_READ, &file, &err), &err);
    for (uint32_t i = 0; i < batch_count; i++)
        assert_ok(pst_io_batch_create(io, ops_each, &batches[i], &err), &err);
    for (uint32_t i = 0; i < total; i++)
        ops[i] = (pst_io_op){.file = file,
                             .offset = test_below(&state, BYTES - LENGTH),
                             .buffer = target + (size_t)i * LENGTH,
                             .bytes = LENGTH};
    for (uint32_t i = 0; i < batch_count; i++)
        assert_ok(pst_io_submit(batches[i], ops + (size_t)i * ops_each, ops_each, &err), &err);
    for (uint32_t left = batch_count; left > 0; left--) {
        uint32_t index;
        assert_int_equal(pst_io_wait_any(batches, left, UINT64_MAX, &index, &err), 0);
        assert_ok(pst_io_wait(batches[index], 0, &err), &err);
        pst_io_batch_destroy(batches[index]);
        batches[index] = batches[left - 1];
    }
    for (uint32_t i = 0; i < total; i++)
        assert_memory_equal(ops[i].buffer, model + ops[i].offset, LENGTH);
    assert_ok(pst_io_file_close(file, &err), &err);
    pst_io_close(io);
    free(batches);
    free(ops);
    free(target);
    free(model);
    test_folder_remove(folder);
    test_assert_footprint(&before);
}

static void test_many_operations(void **unused)
{
    (void)unused;
    const char *engine;
    for (unsigned e = 0; (engine = test_engine(e)) != NULL; e++) {
        run_many(engine, 1, 10000);
        run_many(engine, 100, 100);
    }
}

/* A thousand files open at once, written in one batch, synced, read in another. */
static void run_files(const char *engine, uint32_t count)
{
    enum { BYTES = 5000 };
    test_footprint before = test_measure_footprint();
    char *folder = test_folder_create(false);
    uint8_t *written = malloc((size_t)count * BYTES), *read = calloc(count, BYTES);
    pst_io_file **files = calloc(count, sizeof(pst_io_file *));
    pst_io_op *ops = calloc(3 * (size_t)count, sizeof *ops);
    pst_error err = {0};
    pst_io_batch *batch;
    char name[32];
    test_fill(written, (uint64_t)count * BYTES, seed, 0);
    pst_io *io = test_open(engine, 0, 0, 0, false);
    assert_ok(pst_io_batch_create(io, 3 * count, &batch, &err), &err);
    for (uint32_t i = 0; i < count; i++) {
        snprintf(name, sizeof name, "file%u", i);
        unsigned flags = PST_IO_OPEN_WRITE | PST_IO_OPEN_CREATE;
        assert_ok(pst_io_file_open(io, test_path(folder, name), flags, &files[i], &err), &err);
        ops[i] = (pst_io_op){.file = files[i], .buffer = written + (size_t)i * BYTES, .bytes = BYTES};
        ops[2 * count + i] = ops[i];
        ops[i].kind = PST_IO_WRITE;
        ops[count + i] = (pst_io_op){.file = files[i], .offset = BYTES, .kind = PST_IO_TRUNCATE};
        ops[2 * count + i].buffer = read + (size_t)i * BYTES;
    }
    assert_ok(pst_io_submit(batch, ops, 3 * count, &err), &err);
    assert_ok(pst_io_wait(batch, UINT64_MAX, &err), &err);
    assert_true(memcmp(written, read, (size_t)count * BYTES) == 0);
    for (uint32_t i = 0; i < count; i++)
        assert_ok(pst_io_file_close(files[i], &err), &err);
    pst_io_batch_destroy(batch);
    pst_io_close(io);
    free(ops);
    free(files);
    free(read);
    free(written);
    test_folder_remove(folder);
    test_assert_footprint(&before);
}

static void test_many_files(void **unused)
{
    (void)unused;
    struct rlimit limit;
    const char *engine;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    rlim_t before = limit.rlim_cur;
    limit.rlim_cur = limit.rlim_max;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    uint32_t count = limit.rlim_max >= 2100 ? 1000 : (uint32_t)(limit.rlim_max - 100) / 2;
    for (unsigned e = 0; (engine = test_engine(e)) != NULL; e++)
        run_files(engine, count);
    limit.rlim_cur = before;
    setrlimit(RLIMIT_NOFILE, &limit);
}

/* ---- threads ---- */

typedef struct client {
    pthread_t thread;
    const char *engine, *folder;
    uint32_t index;
    bool wrong;
} client;

enum { CLIENTS = 64, CLIENT_BYTES = 50000, CLIENT_OPS = 20 };

/* Writes a file of its own in pieces, syncs, reads it in other pieces; opens and closes everything each time. */
static int use_handle(client *c, uint32_t round, pst_error *err)
{
    static const char *const names[] = {"direct", "buffered"};
    uint8_t written[CLIENT_BYTES], read[CLIENT_BYTES];
    char path[4096];
    pst_io_options options = {.struct_size = sizeof options,
                              .engine = c->engine,
                              .block_size = 8192,
                              .queue_depth = 4,
                              .workers = 1 + c->index % 2,
                              .buffered = round % 2 == 1};
    pst_io *io = NULL;
    pst_io_file *file = NULL;
    pst_io_batch *batch = NULL;
    pst_io_op ops[CLIENT_OPS + 2];
    uint64_t state = seed + c->index, at = 0;
    snprintf(path, sizeof path, "%s/%s-%u", c->folder, names[round % 2], c->index);
    test_fill(written, CLIENT_BYTES, state, 0);
    memset(read, 0, sizeof read);
    int status = pst_io_open(&options, &io, err);
    if (status >= 0)
        status = pst_io_file_open(io, path, PST_IO_OPEN_WRITE | PST_IO_OPEN_CREATE, &file, err);
    if (status >= 0)
        status = pst_io_batch_create(io, CLIENT_OPS + 2, &batch, err);
    for (uint32_t i = 0; i < CLIENT_OPS; i++) {
        uint64_t rest = CLIENT_BYTES - at, bytes = i + 1 < CLIENT_OPS ? test_below(&state, rest / 4 + 1) : rest;
        ops[i] = (pst_io_op){.file = file, .offset = at, .buffer = written + at, .bytes = bytes, .kind = PST_IO_WRITE};
        at += bytes;
    }
    ops[CLIENT_OPS] = (pst_io_op){.file = file, .kind = PST_IO_SYNC};
    ops[CLIENT_OPS + 1] = (pst_io_op){.file = file, .buffer = read, .bytes = CLIENT_BYTES};
    if (status >= 0)
        status = pst_io_submit(batch, ops, CLIENT_OPS + 2, err);
    if (status >= 0)
        status = pst_io_wait(batch, UINT64_MAX, err);
    if (status >= 0 && memcmp(written, read, CLIENT_BYTES) != 0)
        c->wrong = true;
    pst_io_batch_destroy(batch);
    pst_io_file_close(file, NULL);
    pst_io_close(io);
    return status;
}

static void *run_client(void *argument)
{
    client *c = argument;
    for (uint32_t round = 0; round < 6; round++) {
        pst_error err = {0};
        if (use_handle(c, round, &err) < 0) {
            print_error("%s: %s\n", err.path, err.message);
            c->wrong = true;
        }
    }
    return NULL;
}

static void test_many_threads(void **unused)
{
    (void)unused;
    static client clients[CLIENTS];
    const char *engine;
    for (unsigned e = 0; (engine = test_engine(e)) != NULL; e++) {
        test_footprint before = test_measure_footprint();
        char *folder = test_folder_create(false);
        for (uint32_t i = 0; i < CLIENTS; i++) {
            clients[i] = (client){.engine = engine, .folder = folder, .index = i};
            assert_int_equal(pthread_create(&clients[i].thread, NULL, run_client, &clients[i]), 0);
        }
        for (uint32_t i = 0; i < CLIENTS; i++) {
            pthread_join(clients[i].thread, NULL);
            assert_false(clients[i].wrong);
        }
        test_folder_remove(folder);
        test_assert_footprint(&before);
    }
}

/* Handles come and go, idle and with a transfer, with and without a service thread. */
static void test_open_close(void **unused)
{
    (void)unused;
    char *folder = test_folder_create(false);
    const char *engine, *path = test_path(folder, "file");
    uint8_t data[9000];
    test_fill(data, sizeof data, seed, 0);
    test_write_file(path, data, sizeof data);
    for (unsigned e = 0; (engine = test_engine(e)) != NULL; e++) {
        test_footprint before = test_measure_footprint();
        for (int i = 0; i < 100; i++) {
            pst_error err = {0};
            pst_io *io = test_open(engine, 0, 1 + (uint32_t)i % 9, (uint32_t)i % 4, false);
            uint8_t target[9000] = {0};
            pst_io_file *file = NULL;
            if (i % 3 > 0)
                assert_ok(pst_io_file_open(io, path, PST_IO_OPEN_READ, &file, &err), &err);
            pst_io_op op = {.file = file, .offset = 1, .buffer = target, .bytes = 8000};
            if (i % 3 > 0)
                assert_ok(pst_io_transfer(io, &op, &err), &err);
            op.kind = PST_IO_SYNC;
            if (i % 3 > 1)
                assert_ok(pst_io_transfer(io, &op, &err), &err);
            if (i % 3 > 0)
                assert_memory_equal(target, data + 1, 8000);
            assert_ok(pst_io_file_close(file, &err), &err);
            pst_io_close(io);
        }
        test_assert_footprint(&before);
    }
    test_folder_remove(folder);
}

int main(void)
{
    seed = test_seed();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_many_operations),
        cmocka_unit_test(test_many_files),
        cmocka_unit_test(test_many_threads),
        cmocka_unit_test(test_open_close),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
