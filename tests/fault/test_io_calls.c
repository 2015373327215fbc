/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every system call and every allocation fails in turn during the life of a handle that does what tests/unit/io's
 * test_faults.c leaves out: vectored and ordered operations, a file behind a descriptor, an eventfd for the end, an
 * engine inside a wrapper. The outcome is an error that says what and where, or everything is as it should be; nothing is
 * left behind.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/heap.h"
#include "os/sys_fault.h"
#include "penstock/io_fault.h"
#include "unit/io/io_test.h"

enum { BYTES = 60000, OFFSET = 700, SPLIT = 23456, END = 50000, RESERVED = 90000, OPS = 7, MAX_NTH = 400 };

static char *folder;
static uint8_t *model, *target, *second;

static int set_up(void **unused)
{
    (void)unused;
    folder = test_folder_create(true);
    if (folder == NULL)
        folder = test_folder_create(false);
    model = malloc(BYTES);
    target = malloc(BYTES);
    second = malloc(BYTES);
    test_fill(model, BYTES, 3, 0);
    test_write_file(test_path(folder, "other"), model, BYTES);
    pst_io_close(test_open("threads", 0, 1, 1, false)); /* some sanitizers start a thread with the first one */
    pst_fault_reset();
    pst_sys_replace(&pst_sys_fault);
    return 0;
}

static int tear_down(void **unused)
{
    (void)unused;
    pst_sys_replace(NULL);
    pst_heap_fail_after(-1, 0);
    free(model);
    free(target);
    free(second);
    test_folder_remove(folder);
    return 0;
}

/* ---- a life ---- */

typedef struct life {
    const char *engine;
    bool wrapped;
    int event_fd, other_fd; /* the test's own */
    pst_io_engine *wrapper;
    pst_io *io;
    pst_io_file *file, *other;
    pst_io_batch *batch;
    pst_io_op ops[OPS];
} life;

static int open_life(life *l, pst_error *err)
{
    pst_io_options options = {
        .struct_size = sizeof options, .engine = l->engine, .block_size = 16384, .queue_depth = 4, .workers = 2};
    const pst_io_fault_options faults = {.struct_size = sizeof faults,
                                         .faults = PST_IO_FAULT_REORDER | PST_IO_FAULT_SHORT,
                                         .rate = 0.2,
                                         .max_delay_ns = 1000};
    int status = l->wrapped ? pst_io_fault_create(NULL, l->engine, &faults, &l->wrapper, err) : 0;
    options.engine_table = l->wrapper;
    if (status >= 0)
        status = pst_io_open(&options, &l->io, err);
    if (status >= 0)
        status = pst_io_file_open(l->io, test_path(folder, "file"),
                                  PST_IO_OPEN_WRITE | PST_IO_OPEN_CREATE | PST_IO_OPEN_TRUNCATE, &l->file, err);
    if (status >= 0)
        status = pst_io_file_open_fd(l->io, l->other_fd, PST_IO_OPEN_READ, NULL, &l->other, err);
    if (status >= 0)
        status = pst_io_batch_create(l->io, OPS, &l->batch, err);
    if (status >= 0)
        status = pst_io_batch_notify(l->batch, l->event_fd, err);
    return status;
}

static int close_life(life *l, int status, pst_error *err)
{
    pst_io_batch_destroy(l->batch);
    int closed = pst_io_file_close(l->other, status >= 0 ? err : NULL);
    status = status < 0 ? status : closed;
    closed = pst_io_file_close(l->file, status >= 0 ? err : NULL);
    status = status < 0 ? status : closed;
    pst_io_close(l->io);
    pst_io_fault_destroy(l->wrapper);
    return status;
}

/* Reserves, writes two side by side, syncs, cuts the end off, and reads from both files. */
static void make_ops(life *l)
{
    static pst_io_segment out[2], in[3];
    out[0] = (pst_io_segment){.memory = model + SPLIT, .bytes = 1001};
    out[1] = (pst_io_segment){.memory = model + SPLIT + 1001, .bytes = BYTES - SPLIT - 1001};
    in[0] = (pst_io_segment){.memory = target, .bytes = 13};
    in[1] = (pst_io_segment){.memory = target + 13, .bytes = 8192};
    in[2] = (pst_io_segment){.memory = target + 13 + 8192, .bytes = END - 13 - 8192};
    memset(target, 0, BYTES);
    memset(second, 0, BYTES);
    l->ops[0] = (pst_io_op){.file = l->file, .bytes = RESERVED, .kind = PST_IO_PREALLOCATE};
    l->ops[1] = (pst_io_op){.file = l->file, .offset = OFFSET, .buffer = model, .bytes = SPLIT, .kind = PST_IO_WRITE};
    l->ops[2] = (pst_io_op){.file = l->file,
                            .offset = OFFSET + SPLIT,
                            .bytes = BYTES - SPLIT,
                            .kind = PST_IO_WRITE,
                            .segment_count = 2,
                            .segments = out};
    l->ops[3] = (pst_io_op){.file = l->file, .kind = PST_IO_SYNC};
    l->ops[4] = (pst_io_op){.file = l->file, .offset = OFFSET + END, .kind = PST_IO_TRUNCATE};
    l->ops[5] = (pst_io_op){.file = l->file, .offset = OFFSET, .bytes = END, .segment_count = 3, .segments = in};
    l->ops[6] = (pst_io_op){.file = l->other, .buffer = second, .bytes = BYTES};
}

static void check_op(const life *l, uint32_t index, int error)
{
    pst_error err = {0};
    int64_t result = l->ops[index].result;
    int status = pst_io_op_error(l->batch, index, &err);
    if (result >= 0) {
        assert_int_equal(status, 0);
        return;
    }
    assert_int_equal(status, result);
    /* What could not be written, or was not cut off, is not read either. */
    assert_true(result == -error || (result == PST_E_SHORT && index == 5));
    assert_string_equal(err.path, pst_io_file_path(l->ops[index].file));
}

/* One life; *verified: everything was done, and found right. */
static int live(const char *engine, bool wrapped, int error, bool *verified, pst_error *err)
{
    life l = {.engine = engine, .wrapped = wrapped};
    l.other_fd = open(test_path(folder, "other"), O_RDONLY | O_CLOEXEC);
    l.event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    assert_true(l.other_fd >= 0 && l.event_fd >= 0);
    int status = open_life(&l, err);
    make_ops(&l);
    if (status >= 0)
        status = pst_io_submit(l.batch, l.ops, OPS, err);
    if (status >= 0) {
        uint32_t seen = 0, which;
        pst_error unused;
        while (pst_io_next_done(l.batch, UINT64_MAX, &which, &unused) == 0) {
            assert_false(seen >> which & 1);
            seen |= 1u << which;
        }
        assert_int_equal(seen, (1u << OPS) - 1);
        status = pst_io_wait(l.batch, UINT64_MAX, err);
        for (uint32_t i = 0; i < OPS; i++)
            check_op(&l, i, error);
        uint64_t rung = 0;
        assert_int_equal(read(l.event_fd, &rung, sizeof rung), sizeof rung);
        assert_int_equal(rung, 1);
        if (l.ops[6].result >= 0)
            assert_memory_equal(second, model, BYTES);
    }
    if (status >= 0) {
        assert_memory_equal(target, model, END);
        uint64_t bytes = OFFSET + END;
        status = pst_io_file_get_bytes(l.file, &bytes, err);
        assert_int_equal(bytes, OFFSET + END);
        *verified = true;
    }
    status = close_life(&l, status, err);
    close(l.other_fd);
    close(l.event_fd);
    return status;
}

/* ---- what fails ---- */

static void fail_in_turn(const char *engine, bool wrapped, pst_fault_kind kind, int error)
{
    bool struck = true;
    for (int64_t nth = 0; struck; nth++) {
        pst_error err = {0};
        bool verified = false;
        test_footprint before = test_measure_footprint();
        pst_fault_reset();
        pst_fault_fail(kind, nth, 1, error);
        int status = live(engine, wrapped, error, &verified, &err);
        struck = pst_fault_count(kind) > nth;
        pst_fault_reset();
        test_assert_footprint(&before);
        if (status < 0) {
            assert_true(struck);
            if (status != -error && status != PST_E_SHORT)
                fail_msg("%s: %s %lld: %d: %s", engine, pst_fault_name(kind), (long long)nth, status, err.message);
            assert_int_equal(err.code, status);
            assert_true(err.message[0] != '\0');
            assert_true(status == PST_E_SHORT || strstr(err.message, strerror(error)) != NULL);
        } else {
            assert_true(verified);
        }
        assert_true(nth < MAX_NTH);
    }
}

static void test_calls(void **unused)
{
    (void)unused;
    for (unsigned e = 0; test_engine(e) != NULL; e++) {
        for (int wrapped = 0; wrapped < 2; wrapped++) {
            for (int kind = 0; kind < PST_FAULT_KINDS; kind++)
                fail_in_turn(test_engine(e), wrapped != 0, (pst_fault_kind)kind, kind == PST_FAULT_READ ? EIO : ENOSPC);
            fail_in_turn(test_engine(e), wrapped != 0, PST_FAULT_WRITE, EAGAIN);
            fail_in_turn(test_engine(e), wrapped != 0, PST_FAULT_FDATASYNC, EINTR);
        }
    }
}

static void test_allocations(void **unused)
{
    (void)unused;
    for (unsigned e = 0; test_engine(e) != NULL; e++) {
        for (int wrapped = 0; wrapped < 2; wrapped++) {
            int status = -1;
            for (int64_t nth = 0; status < 0; nth++) {
                pst_error err = {0};
                bool verified = false;
                test_footprint before = test_measure_footprint();
                pst_heap_fail_after(nth, 0);
                status = live(test_engine(e), wrapped != 0, ENOMEM, &verified, &err);
                pst_heap_fail_after(-1, 0);
                test_assert_footprint(&before);
                assert_int_equal(status, verified ? 0 : -ENOMEM);
                assert_true(nth < MAX_NTH);
            }
        }
    }
}

int main(void)
{
#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {IN_FOLDER(test_calls), IN_FOLDER(test_allocations)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
