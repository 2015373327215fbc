/* SPDX-License-Identifier: Apache-2.0 */
/* The crash table under the engines of the I/O library, and under several threads. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fault/crash_test.h"

enum { SECTOR = 512 };

static char *folder;

static int set_up(void **unused)
{
    (void)unused;
    folder = crash_make_folder();
    return 0;
}

static int tear_down(void **unused)
{
    (void)unused;
    pst_crash_forget();
    pst_sys_replace(NULL);
    crash_remove_tree(folder);
    free(folder);
    return 0;
}

static const char *at(const char *name)
{
    return test_path(folder, name);
}

static void watch(void)
{
    pst_error err = {0};
    pst_sys_replace(&pst_sys_crash);
    assert_ok(pst_crash_watch(folder, &err), &err);
}

static void recover(pst_crash_loss loss, uint64_t seed)
{
    pst_error err = {0};
    assert_ok(pst_crash_recover(loss, seed, &err), &err);
}

enum { BLOCK = 8192, BLOCKS = 64 };

static void *fill_blocks(uint8_t *out, int version)
{
    for (int i = 0; i < BLOCKS; i++)
        memset(out + i * BLOCK, version * BLOCKS + i, BLOCK);
    return out;
}

/* Writes every block, with or without a sync, through an engine; -EIO when the power fails. */
static int write_through(const char *engine, uint8_t *memory, bool sync, pst_error *err)
{
    pst_io *io = test_open(engine, 16384, 8, 0, false);
    pst_io_file *file = NULL;
    int status = pst_io_file_open(io, at("a"), PST_IO_OPEN_WRITE, &file, err);
    pst_io_op op = {.file = file, .buffer = memory, .bytes = BLOCK * BLOCKS, .kind = PST_IO_WRITE};
    if (status >= 0)
        status = pst_io_transfer(io, &op, err);
    if (status >= 0 && sync)
        status = pst_io_file_sync(file, err);
    pst_io_file_close(file, NULL);
    pst_io_close(io);
    return status;
}

static void try_engine(const char *engine)
{
    uint8_t *old = aligned_alloc(4096, BLOCK * BLOCKS), *new = aligned_alloc(4096, BLOCK * BLOCKS);
    uint64_t bytes;
    fill_blocks(old, 0);
    fill_blocks(new, 1);
    for (int sync = 0; sync < 2; sync++) {
        pst_error err = {0};
        test_write_file(at("a"), old, BLOCK * BLOCKS);
        watch();
        assert_ok(write_through(engine, new, sync == 1, &err), &err);
        assert_true(pst_crash_steps() >= 2);
        recover(PST_CRASH_LOSE_ALL, 0);
        uint8_t *found = test_read_file(at("a"), &bytes);
        assert_int_equal(bytes, BLOCK * BLOCKS);
        assert_memory_equal(found, sync == 1 ? new : old, bytes);
        free(found);
        recover(PST_CRASH_KEEP_ALL, 0);
        found = test_read_file(at("a"), &bytes);
        assert_memory_equal(found, new, bytes);
        free(found);
        pst_crash_forget();
        /* And the power fails at each write. */
        for (int64_t step = 0;; step++) {
            test_write_file(at("a"), old, BLOCK * BLOCKS);
            watch();
            pst_crash_at(step);
            int status = write_through(engine, new, sync == 1, &err);
            bool happened = pst_crash_happened();
            assert_int_equal(status, happened ? -EIO : 0);
            recover(PST_CRASH_LOSE_ALL, 0);
            found = test_read_file(at("a"), &bytes);
            assert_memory_equal(found, sync == 1 && !happened ? new : old, bytes);
            free(found);
            recover(PST_CRASH_MIXED, (uint64_t)step);
            found = test_read_file(at("a"), &bytes);
            for (uint64_t i = 0; i < bytes; i += SECTOR)
                assert_true(memcmp(found + i, old + i, SECTOR) == 0 || memcmp(found + i, new + i, SECTOR) == 0);
            free(found);
            pst_crash_forget();
            if (!happened)
                break;
            assert_true(step < 200);
        }
    }
    free(old);
    free(new);
}

static void test_threads(void **unused)
{
    (void)unused;
    try_engine("threads");
}

static void test_libaio(void **unused)
{
    (void)unused;
    try_engine("libaio");
}

static void test_uring(void **unused)
{
    (void)unused;
    if (test_have_uring())
        try_engine("io_uring");
}

/* Threads that each write records to a file of their own and sync now and then, until the power fails. What a thread was
 * told to be durable is there, whatever the others did. */
typedef struct scribe {
    pthread_t thread;
    unsigned number;
    uint32_t synced; /* records */
} scribe;

enum { SCRIBES = 6, RECORD = 700 };

static void make_record(const scribe *s, uint32_t record, uint8_t *out)
{
    test_fill(out, RECORD, s->number * 1000003u + record, 0);
}

static void *write_records(void *argument)
{
    scribe *s = argument;
    char name[64];
    uint8_t record[RECORD];
    snprintf(name, sizeof name, "scribe-%u", s->number);
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    int fd = pst_sys->open(path, O_RDWR | O_CREAT, 0600);
    int root = fd >= 0 ? pst_sys->open(folder, O_RDONLY | O_DIRECTORY, 0) : -1;
    int status = root >= 0 ? pst_sys->fsync(root) : -EIO;
    for (uint32_t i = 0; status >= 0; i++) {
        make_record(s, i, record);
        ssize_t put = pst_sys->pwrite(fd, record, RECORD, (uint64_t)i * RECORD);
        status = put == RECORD ? 0 : -EIO;
        if (status >= 0 && i % 5 == 4) {
            status = pst_sys->fdatasync(fd);
            if (status >= 0)
                s->synced = i + 1;
        }
    }
    if (root >= 0)
        pst_sys->close(root);
    if (fd >= 0)
        pst_sys->close(fd);
    return NULL;
}

static void check_scribe(const scribe *s)
{
    char name[64];
    uint8_t record[RECORD];
    uint64_t bytes;
    snprintf(name, sizeof name, "scribe-%u", s->number);
    if (s->synced == 0)
        return;
    uint8_t *found = test_read_file(at(name), &bytes);
    assert_true(bytes >= (uint64_t)s->synced * RECORD);
    for (uint32_t i = 0; i < s->synced; i++) {
        make_record(s, i, record);
        assert_memory_equal(found + (uint64_t)i * RECORD, record, RECORD);
    }
    free(found);
}

static void test_parallel(void **unused)
{
    (void)unused;
    for (int64_t step = 5; step < 2000; step = step * 3 + 1) {
        scribe scribes[SCRIBES] = {0};
        watch();
        pst_crash_at(step);
        for (unsigned i = 0; i < SCRIBES; i++) {
            scribes[i].number = i;
            assert_int_equal(pthread_create(&scribes[i].thread, NULL, write_records, &scribes[i]), 0);
        }
        uint32_t synced = 0;
        for (unsigned i = 0; i < SCRIBES; i++) {
            assert_int_equal(pthread_join(scribes[i].thread, NULL), 0);
            synced += scribes[i].synced;
        }
        assert_true(step < 200 || synced > 0);
        for (uint64_t seed = 0; seed < 27; seed++) {
            recover(seed == 25 ? PST_CRASH_LOSE_ALL : seed == 26 ? PST_CRASH_KEEP_ALL : PST_CRASH_MIXED, seed);
            for (unsigned i = 0; i < SCRIBES; i++)
                check_scribe(&scribes[i]);
        }
        pst_crash_forget();
    }
}

int main(void)
{
#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        IN_FOLDER(test_threads),
        IN_FOLDER(test_libaio),
        IN_FOLDER(test_uring),
        IN_FOLDER(test_parallel),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
