/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Block devices opened as files, and drives of 512- and of 4096-byte sectors: loop devices, raw and with an ext4 file
 * system on them, read and written at odd offsets and lengths against a model, with the alignment told by statx and with
 * it hidden. Needs root.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "os/sys_fault.h"
#include "root/loop.h"
#include "unit/io/io_test.h"

enum { DEVICE_BYTES = 32 << 20, ROOM = 3 << 20, MAX_OPS = 16 };

static const uint32_t sectors[] = {512, 4096};
static uint64_t state;
static char *folder;

static int set_up(void **unused)
{
    (void)unused;
    folder = test_folder_create(false);
    pst_sys_replace(&pst_sys_fault);
    pst_fault_reset();
    return 0;
}

static int tear_down(void **unused)
{
    (void)unused;
    pst_sys_replace(NULL);
    umount2(test_path(folder, "mount"), MNT_DETACH); /* of a test that failed */
    test_folder_remove(folder);
    return 0;
}

static bool attach(uint32_t sector_bytes, test_loop *out)
{
    char name[32];
    snprintf(name, sizeof name, "backing%u", sector_bytes);
    return test_loop_attach(test_path(folder, name), DEVICE_BYTES, sector_bytes, out);
}

/* Reads, or writes that do not overlap, of any offset and length within the first ROOM bytes. */
static void random_batch(pst_io_batch *batch, pst_io_file *file, uint8_t *model, uint8_t *buffer)
{
    pst_io_op ops[MAX_OPS];
    pst_error err = {0};
    uint32_t count = 1 + (uint32_t)test_below(&state, MAX_OPS);
    bool write = test_below(&state, 2);
    uint64_t slice = ROOM / count;
    uint8_t *memory = buffer + (test_below(&state, 3) == 0 ? test_below(&state, 4096) : 0);
    for (uint32_t i = 0; i < count; i++) {
        uint64_t most = test_below(&state, 2) ? slice : slice < 9000 ? slice : 9000;
        uint64_t from = test_below(&state, most), bytes = 1 + test_below(&state, most - from);
        if (test_below(&state, 4) == 0) {
            from = from / 512 * 512;
            bytes = (bytes + 511) / 512 * 512;
            bytes = from + bytes > slice ? 1 : bytes;
        }
        ops[i] = (pst_io_op){.file = file,
                             .offset = i * slice + from,
                             .buffer = memory + i * slice,
                             .bytes = bytes,
                             .kind = write ? PST_IO_WRITE : PST_IO_READ};
        if (write) {
            test_fill(ops[i].buffer, bytes, test_random(&state), 0);
            memcpy(model + ops[i].offset, ops[i].buffer, bytes);
        }
    }
    assert_ok(pst_io_submit(batch, ops, count, &err), &err);
    assert_ok(pst_io_wait(batch, UINT64_MAX, &err), &err);
    for (uint32_t i = 0; !write && i < count; i++)
        assert_memory_equal(ops[i].buffer, model + ops[i].offset, ops[i].bytes);
}

/* A file or device that may be used wholly, on a drive of this sector size. */
static void random_run(const char *engine, const char *path, uint32_t sector_bytes, bool hidden, bool device)
{
    pst_error err = {0};
    pst_io_batch *batch;
    pst_io_file *file;
    uint8_t *model = malloc(ROOM), *buffer = aligned_alloc(4096, ROOM + 4096);
    pst_fault_hide_alignment(hidden);
    pst_io *io = test_open(engine, 4096u << test_below(&state, 7), 1 + (uint32_t)test_below(&state, 16), 2, false);
    assert_ok(pst_io_batch_create(io, MAX_OPS, &batch, &err), &err);
    assert_ok(pst_io_file_open(io, path, PST_IO_OPEN_WRITE | (device ? 0u : PST_IO_OPEN_CREATE), &file, &err), &err);
    assert_true(pst_io_file_is_direct(file));
    if (device || !hidden || sector_bytes == 4096) /* what is found out may be safer than need be */
        assert_int_equal(pst_io_file_alignment(file), sector_bytes);
    test_fill(model, ROOM, test_random(&state), 0);
    pst_io_op all = {.file = file, .buffer = model, .bytes = ROOM, .kind = PST_IO_WRITE};
    assert_ok(pst_io_transfer(io, &all, &err), &err);
    for (int step = 0; step < 30; step++)
        random_batch(batch, file, model, buffer);
    assert_ok(pst_io_file_sync(file, &err), &err);
    assert_true(pst_io_file_is_direct(file));
    assert_ok(pst_io_file_close(file, &err), &err);
    assert_ok(pst_io_file_open(io, path, PST_IO_OPEN_READ, &file, &err), &err);
    assert_true(pst_io_file_is_direct(file));
    all = (pst_io_op){.file = file, .buffer = buffer, .bytes = ROOM, .kind = PST_IO_READ};
    assert_ok(pst_io_transfer(io, &all, &err), &err);
    assert_memory_equal(buffer, model, ROOM);
    assert_ok(pst_io_file_close(file, &err), &err);
    pst_io_batch_destroy(batch);
    pst_io_close(io);
    pst_fault_hide_alignment(false);
    free(buffer);
    free(model);
}

/* The device demands what its sector says: without this, the tests here would show nothing. */
static void check_sector(const char *path, uint32_t sector_bytes)
{
    uint8_t *memory = aligned_alloc(4096, 4096);
    int fd = open(path, O_RDONLY | O_DIRECT);
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, memory, sector_bytes, sector_bytes), sector_bytes);
    assert_int_equal(pread(fd, memory, sector_bytes / 2, 0), -1);
    assert_int_equal(errno, EINVAL);
    close(fd);
    free(memory);
}

static void test_raw_devices(void **unused)
{
    (void)unused;
    const char *engine;
    for (size_t s = 0; s < sizeof sectors / sizeof sectors[0]; s++) {
        test_loop loop;
        if (!attach(sectors[s], &loop))
            return;
        check_sector(loop.path, sectors[s]);
        for (unsigned e = 0; (engine = test_engine(e)) != NULL; e++) {
            random_run(engine, loop.path, sectors[s], false, true);
            random_run(engine, loop.path, sectors[s], true, true);
        }
        test_loop_detach(&loop);
    }
}

/* Makes a file system on the device and mounts it. */
static const char *mount_ext4(const test_loop *loop)
{
    const char *where = test_path(folder, "mount");
    const char *const make[] = {"mkfs.ext4", "-q", "-F", "-b", "4096", loop->path, NULL};
    assert_int_equal(test_run(make, NULL), 0);
    mkdir(where, 0700);
    assert_int_equal(mount(loop->path, where, "ext4", 0, NULL), 0);
    return where;
}

static void test_file_systems(void **unused)
{
    (void)unused;
    const char *engine;
    for (size_t s = 0; s < sizeof sectors / sizeof sectors[0]; s++) {
        test_loop loop;
        if (!attach(sectors[s], &loop))
            return;
        const char *where = mount_ext4(&loop);
        for (unsigned e = 0; (engine = test_engine(e)) != NULL; e++) {
            char path[4200];
            snprintf(path, sizeof path, "%.4000s/%s", where, engine);
            random_run(engine, path, sectors[s], false, false);
            random_run(engine, path, sectors[s], true, false); /* of a file that has content by now */
        }
        assert_int_equal(umount2(where, 0), 0);
        test_loop_detach(&loop);
    }
}

/* What a device is and refuses. */
static void test_device_as_file(void **unused)
{
    (void)unused;
    const char *engine;
    test_loop loop;
    pst_error err = {0};
    pst_io_file *file = NULL;
    uint64_t bytes = 0;
    uint8_t *memory = aligned_alloc(4096, 16384);
    if (!attach(4096, &loop))
        return;
    for (unsigned e = 0; (engine = test_engine(e)) != NULL; e++) {
        pst_io *io = test_open(engine, 0, 4, 1, false);
        assert_int_equal(pst_io_file_open(io, loop.path, PST_IO_OPEN_WRITE | PST_IO_OPEN_TRUNCATE, &file, &err),
                         PST_E_UNSUPPORTED);
        assert_non_null(strstr(err.message, "block device"));
        for (int way = 0; way < 2; way++) {
            if (way == 0) {
                assert_ok(pst_io_file_open(io, loop.path, PST_IO_OPEN_WRITE, &file, &err), &err);
            } else {
                int fd = open(loop.path, O_RDWR);
                assert_ok(pst_io_file_open_fd(io, fd, PST_IO_OPEN_WRITE, NULL, &file, &err), &err);
                assert_string_equal(pst_io_file_path(file), loop.path);
                close(fd);
            }
            assert_int_equal(pst_io_file_bytes(file), DEVICE_BYTES);
            assert_ok(pst_io_file_get_bytes(file, &bytes, &err), &err);
            assert_int_equal(bytes, DEVICE_BYTES);
            assert_int_equal(pst_io_file_truncate(file, 4096, &err), PST_E_UNSUPPORTED);
            assert_non_null(strstr(err.message, "block device"));
            assert_string_equal(err.path, loop.path);
            assert_ok(pst_io_file_preallocate(file, 4096, &err), &err);
            /* Across and beyond the end, on sectors and off them. */
            static const uint64_t ends[][2] = {{DEVICE_BYTES - 4096, 8192},
                                               {DEVICE_BYTES, 4096},
                                               {DEVICE_BYTES - 100, 200},
                                               {DEVICE_BYTES + 77, 10},
                                               {2 * (uint64_t)DEVICE_BYTES, 4096}};
            for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++) {
                pst_io_op op = {
                    .file = file, .offset = ends[i][0], .buffer = memory, .bytes = ends[i][1], .kind = PST_IO_WRITE};
                assert_int_equal(pst_io_transfer(io, &op, &err), -ENOSPC);
                assert_string_equal(err.path, loop.path);
                op.kind = PST_IO_READ;
                assert_int_equal(pst_io_transfer(io, &op, &err), PST_E_SHORT);
                op.may_be_short = true;
                assert_ok(pst_io_transfer(io, &op, &err), &err);
                uint64_t there = op.offset < DEVICE_BYTES ? DEVICE_BYTES - op.offset : 0;
                assert_int_equal(op.result, (int64_t)there);
            }
            assert_ok(pst_io_file_sync(file, &err), &err);
            assert_ok(pst_io_file_close(file, &err), &err);
        }
        pst_io_close(io);
    }
    test_loop_detach(&loop);
    free(memory);
}

/* A mounted device may be read, and not be written. */
static void test_mounted_device(void **unused)
{
    (void)unused;
    test_loop loop;
    pst_error err = {0};
    pst_io_file *file = NULL;
    if (!attach(4096, &loop))
        return;
    pst_io *io = test_open("threads", 0, 4, 1, false);
    const char *where = mount_ext4(&loop);
    for (int buffered = 0; buffered < 2; buffered++) {
        pst_fault_refuse_direct(buffered);
        assert_int_equal(pst_io_file_open(io, loop.path, PST_IO_OPEN_WRITE, &file, &err), -EBUSY);
        assert_string_equal(err.path, loop.path);
        assert_non_null(strstr(err.message, "mounted"));
        assert_null(file);
    }
    pst_fault_refuse_direct(false);
    assert_ok(pst_io_file_open(io, loop.path, PST_IO_OPEN_READ, &file, &err), &err);
    uint8_t magic[2];
    pst_io_op op = {.file = file, .offset = 1024 + 56, .buffer = magic, .bytes = 2}; /* of ext4's superblock */
    assert_ok(pst_io_transfer(io, &op, &err), &err);
    assert_true(magic[0] == 0x53 && magic[1] == 0xef);
    assert_ok(pst_io_file_close(file, &err), &err);
    assert_int_equal(umount2(where, 0), 0);
    assert_ok(pst_io_file_open(io, loop.path, PST_IO_OPEN_WRITE, &file, &err), &err);
    assert_ok(pst_io_file_close(file, &err), &err);
    pst_io_close(io);
    test_loop_detach(&loop);
}

int main(void)
{
    state = test_seed();
    if (!test_loop_usable())
        return 0;
#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {IN_FOLDER(test_raw_devices), IN_FOLDER(test_file_systems),
                                       IN_FOLDER(test_device_as_file), IN_FOLDER(test_mounted_device)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
