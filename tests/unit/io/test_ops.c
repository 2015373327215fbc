/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Operations and batches beyond plain transfers: ordered operations, segments, all the ways of waiting, notification,
 * cancelling one operation. Most of it with an engine that holds requests back (gate.h).
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/internal.h"
#include "os/sys_fault.h"
#include "unit/io/ops_scene.h"

static uint64_t state;

static uint64_t length_now(scene *s)
{
    struct stat info;
    assert_int_equal(stat(pst_io_file_path(s->file), &info), 0);
    return (uint64_t)info.st_size;
}

static void await_count(pst_fault_kind kind, int64_t count)
{
    for (int i = 0; i < 5000 && pst_fault_count(kind) < count; i++)
        pause_ms(1);
    assert_int_equal(pst_fault_count(kind), count);
}

/* ---- ordered operations ---- */

/* A sync waits for what stands before it, what stands behind waits for the sync, and other batches do not. */
static void test_barrier(void **in)
{
    scene *s = *in;
    pst_error err = {0};
    pst_io_batch *batch = make_batch(s, 5), *other = make_batch(s, 1);
    pst_io_op ops[5] = {op_of(s, PST_IO_WRITE, 0, 2), op_of(s, PST_IO_WRITE, 2, 1), op_of(s, PST_IO_SYNC, 0, 0),
                        op_of(s, PST_IO_READ, 8, 3), op_of(s, PST_IO_READ, 0, 0)};
    pst_io_op beside = op_of(s, PST_IO_READ, 20, 2);
    memcpy(s->memory, s->model, FILE_BYTES);
    assert_ok(pst_io_submit(batch, ops, 5, &err), &err);
    gate_await_held(3);
    assert_ok(pst_io_submit(other, &beside, 1, &err), &err); /* goes past the batch that waits for its sync */
    gate_await_held(5);
    pause_ms(2);
    assert_int_equal(pst_fault_count(PST_FAULT_FDATASYNC), 0);
    uint32_t reads_before = gate.started_count;
    assert_int_equal(reads_before, 5);
    gate_allow(5);
    await_count(PST_FAULT_FDATASYNC, 1);
    gate_await_held(3); /* the reads behind */
    gate_allow_all(true);
    assert_ok(pst_io_wait(batch, UINT64_MAX, &err), &err);
    assert_ok(pst_io_wait(other, UINT64_MAX, &err), &err);
    for (int i = 0; i < 5; i++)
        assert_int_equal(ops[i].result, i == 2 ? 0 : (int64_t)ops[i].bytes);
    assert_memory_equal(s->memory, s->model, FILE_BYTES);
    pst_io_batch_destroy(batch);
    pst_io_batch_destroy(other);
}

/* All kinds one after the other: what each does is seen by the next. */
static void test_ordered_kinds(void **in)
{
    scene *s = *in;
    pst_error err = {0};
    gate_allow_all(true);
    pst_io_batch *batch = make_batch(s, 8);
    memset(s->memory, 0x5a, FILE_BYTES);
    pst_io_op ops[8] = {op_of(s, PST_IO_TRUNCATE, 0, 0), op_of(s, PST_IO_WRITE, 0, 4),
                        op_of(s, PST_IO_SYNC, 0, 0),     op_of(s, PST_IO_TRUNCATE, 2, 0),
                        op_of(s, PST_IO_READ, 8, 4),     op_of(s, PST_IO_PREALLOCATE, 4, 4),
                        op_of(s, PST_IO_READ, 12, 8),    op_of(s, PST_IO_SYNC, 0, 0)};
    ops[4].offset = 0;
    ops[4].may_be_short = true;
    ops[6].offset = 0;
    ops[6].may_be_short = true;
    for (int round = 0; round < 20; round++) {
        assert_ok(pst_io_submit(batch, ops, 8, &err), &err);
        assert_ok(pst_io_wait(batch, UINT64_MAX, &err), &err);
        assert_int_equal(ops[1].result, 4 * BLOCK);
        assert_int_equal(ops[4].result, 2 * BLOCK);                            /* after the second truncation */
        assert_true(ops[6].result == 8 * BLOCK || ops[6].result == 2 * BLOCK); /* where preallocation is unknown */
        assert_int_equal(length_now(s), ops[6].result);
        assert_int_equal(s->memory[13 * BLOCK], 0x5a);
        assert_int_equal(s->memory[15 * BLOCK], ops[6].result == 8 * BLOCK ? 0 : 0x5a);
        memset(s->memory, 0x5a, FILE_BYTES);
    }
    /* Nothing but ordered ones, and one alone. */
    pst_io_op only[3] = {op_of(s, PST_IO_TRUNCATE, 3, 0), op_of(s, PST_IO_SYNC, 0, 0), op_of(s, PST_IO_TRUNCATE, 1, 0)};
    assert_ok(pst_io_submit(batch, only, 3, &err), &err);
    assert_ok(pst_io_wait(batch, UINT64_MAX, &err), &err);
    assert_int_equal(length_now(s), BLOCK);
    pst_io_op one = op_of(s, PST_IO_TRUNCATE, 5, 0);
    assert_ok(pst_io_transfer(s->io, &one, &err), &err);
    assert_int_equal(length_now(s), 5 * BLOCK);
    /* In random order the last truncation wins. */
    for (int round = 0; round < 50; round++) {
        uint64_t last = 0;
        for (int i = 0; i < 8; i++) {
            pst_io_kind kind = (pst_io_kind)test_below(&state, 5);
            ops[i] = op_of(s, kind, test_below(&state, 10), kind == PST_IO_TRUNCATE ? 0 : test_below(&state, 3));
            ops[i].may_be_short = true;
            if (kind == PST_IO_PREALLOCATE || kind == PST_IO_WRITE)
                ops[i].kind = PST_IO_SYNC; /* they would make it longer */
            if (kind == PST_IO_TRUNCATE)
                last = ops[i].offset + 1;
        }
        assert_ok(pst_io_submit(batch, ops, 8, &err), &err);
        assert_ok(pst_io_wait(batch, UINT64_MAX, &err), &err);
        if (last > 0)
            assert_int_equal(length_now(s), last - 1);
    }
    pst_io_batch_destroy(batch);
}

/* An ordered operation runs whatever became of those before it; its own failure says what, and stops nothing. */
static void test_ordered_errors(void **in)
{
    scene *s = *in;
    pst_error err = {0};
    gate_allow_all(true);
    pst_io_batch *batch = make_batch(s, 4);
    pst_io_op ops[4] = {op_of(s, PST_IO_READ, 0, 4), op_of(s, PST_IO_SYNC, 0, 0), op_of(s, PST_IO_TRUNCATE, 30, 0),
                        op_of(s, PST_IO_READ, 4, 4)};
    ops[0].offset = FILE_BYTES; /* the end of the file */
    pst_fault_fail(PST_FAULT_FDATASYNC, 0, 1, EIO);
    assert_ok(pst_io_submit(batch, ops, 4, &err), &err);
    assert_int_equal(pst_io_wait(batch, UINT64_MAX, &err), PST_E_SHORT);
    assert_int_equal(ops[1].result, -EIO);
    assert_int_equal(ops[2].result, 0);
    assert_int_equal(ops[3].result, 4 * BLOCK);
    assert_int_equal(length_now(s), 30 * BLOCK);
    assert_int_equal(pst_io_op_error(batch, 1, &err), -EIO);
    assert_string_equal(err.path, pst_io_file_path(s->file));
    assert_non_null(strstr(err.message, "sync"));
    pst_fault_fail(PST_FAULT_FDATASYNC, 0, 1, EIO);
    pst_fault_fail(PST_FAULT_FTRUNCATE, 0, 1, ENOSPC);
    assert_ok(pst_io_submit(batch, ops + 1, 2, &err), &err);
    int status = pst_io_wait(batch, UINT64_MAX, &err);
    assert_true(status == -EIO || status == -ENOSPC); /* one fault is armed at a time */
    /* What makes no sense is refused at once. */
    ops[0] = op_of(s, PST_IO_PREALLOCATE, 0, 1);
    ops[0].offset = INT64_MAX;
    assert_int_equal(pst_io_submit(batch, ops, 1, &err), PST_E_USAGE);
    ops[0] = op_of(s, (pst_io_kind)17, 0, 1);
    assert_int_equal(pst_io_submit(batch, ops, 1, &err), PST_E_USAGE);
    pst_io_file *reader;
    assert_ok(pst_io_file_open(s->io, pst_io_file_path(s->file), PST_IO_OPEN_READ, &reader, &err), &err);
    ops[0] = op_of(s, PST_IO_TRUNCATE, 0, 0);
    ops[0].file = reader;
    assert_int_equal(pst_io_submit(batch, ops, 1, &err), -EBADF);
    ops[0].kind = PST_IO_SYNC;
    assert_ok(pst_io_transfer(s->io, ops, &err), &err);
    assert_ok(pst_io_file_close(reader, &err), &err);
    pst_io_batch_destroy(batch);
}

/* Cancelled around an ordered operation that waits for its turn. */
static void test_cancel_ordered(void **in)
{
    scene *s = *in;
    pst_error err = {0};
    pst_io_batch *batch = make_batch(s, 4);
    pst_io_op ops[4] = {op_of(s, PST_IO_READ, 0, 2), op_of(s, PST_IO_SYNC, 0, 0), op_of(s, PST_IO_READ, 2, 2),
                        op_of(s, PST_IO_TRUNCATE, 4, 0)};
    assert_ok(pst_io_submit(batch, ops, 4, &err), &err);
    gate_await_held(2);
    pst_io_cancel(batch);
    assert_int_equal(pst_io_wait(batch, 1000000, &err), 1);
    gate_allow_all(true);
    assert_int_equal(pst_io_wait(batch, UINT64_MAX, &err), PST_E_CANCELLED);
    assert_int_equal(ops[0].result, 2 * BLOCK);
    for (int i = 1; i < 4; i++)
        assert_int_equal(ops[i].result, PST_E_CANCELLED);
    assert_int_equal(pst_fault_count(PST_FAULT_FDATASYNC), 0);
    assert_int_equal(length_now(s), FILE_BYTES);
    /* The sync alone: the others go on, in order. */
    gate_allow_all(false);
    assert_ok(pst_io_submit(batch, ops, 4, &err), &err);
    gate_await_held(2);
    pst_io_cancel_op(batch, 1);
    gate_await_held(4); /* nothing stands between the reads any more */
    assert_int_equal(pst_io_wait_op(batch, 1, UINT64_MAX, &err), PST_E_CANCELLED);
    assert_int_equal(pst_io_wait(batch, 1000000, &err), 1);
    assert_int_equal(length_now(s), FILE_BYTES);
    gate_allow_all(true);
    assert_int_equal(pst_io_wait(batch, UINT64_MAX, &err), PST_E_CANCELLED);
    assert_int_equal(ops[2].result, 2 * BLOCK);
    assert_int_equal(ops[3].result, 0);
    assert_int_equal(length_now(s), 4 * BLOCK);
    pst_io_batch_destroy(batch);
}

/* No thread can be had: the ordered operation says so, and the rest is done. */
static void test_no_thread(void **in)
{
    scene *s = *in;
    pst_error err = {0};
    pthread_attr_t before, huge;
    gate_allow_all(true);
    pst_io_op ops[3] = {op_of(s, PST_IO_READ, 0, 2), op_of(s, PST_IO_SYNC, 0, 0), op_of(s, PST_IO_READ, 2, 2)};
    pst_io_batch *batch = make_batch(s, 3);
    assert_int_equal(pthread_getattr_default_np(&before), 0);
    assert_int_equal(pthread_getattr_default_np(&huge), 0);
    assert_int_equal(pthread_attr_setstacksize(&huge, (size_t)1 << 47), 0);
    assert_int_equal(pthread_setattr_default_np(&huge), 0);
    int submitted = pst_io_submit(batch, ops, 3, &err);
    assert_int_equal(pthread_setattr_default_np(&before), 0);
    assert_ok(submitted, &err);
    int status = pst_io_wait(batch, UINT64_MAX, &err);
    assert_int_equal(ops[0].result, 2 * BLOCK);
    assert_int_equal(ops[2].result, 2 * BLOCK);
    assert_int_equal(ops[1].result, status);
#if !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
    assert_true(status == -EAGAIN || status == -ENOMEM);
    assert_string_equal(err.path, pst_io_file_path(s->file));
    assert_int_equal(pst_fault_count(PST_FAULT_FDATASYNC), 0);
#endif
    assert_ok(pst_io_submit(batch, ops, 3, &err), &err); /* and the next time it works */
    assert_ok(pst_io_wait(batch, UINT64_MAX, &err), &err);
    pst_io_batch_destroy(batch);
    pthread_attr_destroy(&huge);
    pthread_attr_destroy(&before);
}

/* ---- waiting ---- */

static void test_wait_op(void **in)
{
    scene *s = *in;
    pst_error err = {0};
    pst_io_batch *batch = make_batch(s, 4);
    pst_io_op ops[4] = {op_of(s, PST_IO_READ, 0, 1), op_of(s, PST_IO_READ, 1, 0), op_of(s, PST_IO_READ, 1, 1),
                        op_of(s, PST_IO_READ, 2, 12)};
    ops[2].offset = FILE_BYTES;                                       /* fails */
    assert_int_equal(pst_io_wait_op(batch, 0, 0, &err), PST_E_USAGE); /* never submitted */
    assert_ok(pst_io_submit(batch, ops, 4, &err), &err);
    gate_await_held(DEPTH);
    assert_int_equal(pst_io_wait_op(batch, 0, 0, &err), 1);
    assert_int_equal(pst_io_wait_op(batch, 0, 1000000, &err), 1);
    assert_int_equal(pst_io_op_error(batch, 0, &err), -EBUSY);
    assert_int_equal(pst_io_wait_op(batch, 4, 0, &err), PST_E_USAGE);
    assert_int_equal(pst_io_op_error(batch, 4, &err), PST_E_USAGE);
    /* One at a time, in random order. */
    for (int given = 0; pst_io_wait_op(batch, 0, 100000, &err) == 1 || pst_io_wait_op(batch, 2, 100000, &err) == 1;) {
        if (given++ < 14)
            gate_allow(1);
        pause_ms(1);
    }
    assert_int_equal(pst_io_wait_op(batch, 0, UINT64_MAX, &err), 0);
    assert_int_equal(pst_io_wait_op(batch, 1, UINT64_MAX, &err), 0);
    assert_int_equal(pst_io_wait_op(batch, 2, UINT64_MAX, &err), PST_E_SHORT);
    assert_int_equal(err.offset, FILE_BYTES);
    assert_int_equal(pst_io_op_error(batch, 2, &err), PST_E_SHORT);
    assert_int_equal(pst_io_op_error(batch, 0, &err), 0);
    assert_memory_equal(s->memory, s->model, BLOCK);
    gate_allow_all(true);
    assert_int_equal(pst_io_wait_op(batch, 3, UINT64_MAX, &err), 0);
    assert_int_equal(ops[3].result, 12 * BLOCK);
    assert_int_equal(pst_io_wait(batch, UINT64_MAX, &err), PST_E_SHORT);
    pst_io_batch_destroy(batch);
}

/* Every operation once, in the order in which they finish. */
static void test_next_done(void **in)
{
    scene *s = *in;
    enum { OPS = 30 };
    pst_error err = {0};
    pst_io_batch *batch = make_batch(s, OPS);
    pst_io_op ops[OPS];
    uint32_t index = 77;
    assert_int_equal(pst_io_next_done(batch, 0, &index, &err), PST_E_USAGE);
    for (uint32_t i = 0; i < OPS; i++)
        ops[i] = op_of(s, PST_IO_READ, i, 1);
    ops[7].offset = FILE_BYTES;
    for (int round = 0; round < 20; round++) {
        bool seen[OPS] = {false};
        ops[5].bytes = round % 2 == 0 ? 0 : BLOCK;
        gate_allow_all(round % 2 == 0);
        assert_ok(pst_io_submit(batch, ops, OPS, &err), &err);
        for (uint32_t n = 0; n < OPS; n++) {
            if (round % 2 == 1) {
                if (n == 0)
                    assert_int_equal(pst_io_next_done(batch, 100000, &index, &err), 1);
                gate_allow(1);
            }
            assert_int_equal(pst_io_next_done(batch, UINT64_MAX, &index, &err), 0);
            assert_true(index < OPS && !seen[index]);
            seen[index] = true;
            assert_int_equal(ops[index].result, index == 7 ? PST_E_SHORT : (int64_t)ops[index].bytes);
            assert_int_equal(pst_io_op_error(batch, index, &err), index == 7 ? PST_E_SHORT : 0);
        }
        assert_int_equal(pst_io_next_done(batch, 0, &index, &err), PST_E_USAGE);
        /* With the last one the batch is done, and may be submitted again at once. */
    }
    pst_io_batch_destroy(batch);
}

static void test_wait_any(void **in)
{
    scene *s = *in;
    pst_error err = {0};
    pst_io_batch *batches[3];
    pst_io_op ops[3];
    uint32_t index = 77;
    for (uint32_t i = 0; i < 3; i++) {
        batches[i] = make_batch(s, 1);
        ops[i] = op_of(s, PST_IO_READ, i, 1);
    }
    assert_int_equal(pst_io_wait_any(batches, 0, 0, &index, &err), PST_E_USAGE);
    assert_int_equal(pst_io_wait_any(batches, 3, 0, &index, &err), 0); /* never submitted */
    assert_int_equal(index, 0);
    for (uint32_t i = 0; i < 3; i++)
        assert_ok(pst_io_submit(batches[i], &ops[i], 1, &err), &err);
    gate_await_held(3);
    assert_int_equal(pst_io_wait_any(batches, 3, 0, &index, &err), 1);
    assert_int_equal(pst_io_wait_any(batches, 3, 2000000, &index, &err), 1);
    bool seen[3] = {false};
    for (uint32_t left = 3; left > 0; left--) {
        gate_allow(1);
        assert_int_equal(pst_io_wait_any(batches, left, UINT64_MAX, &index, &err), 0);
        assert_true(index < left);
        assert_int_equal(pst_io_wait(batches[index], 0, &err), 0);
        pst_io_batch *done = batches[index];
        for (uint32_t i = 0; i < 3; i++)
            seen[i] = seen[i] || ops[i].result == BLOCK;
        batches[index] = batches[left - 1];
        batches[left - 1] = done;
    }
    assert_true(seen[0] && seen[1] && seen[2]);
    pst_io *io = test_open("threads", 0, 0, 1, false);
    pst_io_batch *foreign[2] = {batches[0], NULL};
    assert_ok(pst_io_batch_create(io, 1, &foreign[1], &err), &err);
    assert_int_equal(pst_io_wait_any(foreign, 2, 0, &index, &err), PST_E_USAGE);
    pst_io_batch_destroy(foreign[1]);
    pst_io_close(io);
    for (uint32_t i = 0; i < 3; i++)
        pst_io_batch_destroy(batches[i]);
}

/* An eventfd counts how often the batch became done, and a poll that follows finds it done. */
static void test_notify(void **in)
{
    scene *s = *in;
    pst_error err = {0};
    pst_io_batch *batch = make_batch(s, 2);
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    uint64_t value;
    pst_io_op ops[2] = {op_of(s, PST_IO_READ, 0, 2), op_of(s, PST_IO_SYNC, 0, 0)};
    struct pollfd wanted = {.fd = fd, .events = POLLIN};
    gate_allow_all(true);
    assert_int_equal(pst_io_batch_notify(batch, -2, &err), PST_E_USAGE);
    assert_ok(pst_io_batch_notify(batch, fd, &err), &err);
    for (int round = 0; round < 200; round++) {
        uint32_t count = (uint32_t)round % 3; /* none: done at submission; two: done by the service thread */
        assert_ok(pst_io_submit(batch, ops, count, &err), &err);
        assert_int_equal(poll(&wanted, 1, 10000), 1);
        assert_int_equal(pst_io_wait(batch, 0, &err), 0);
        assert_int_equal(read(fd, &value, sizeof value), sizeof value);
        assert_int_equal(value, 1);
    }
    assert_ok(pst_io_batch_notify(batch, -1, &err), &err);
    assert_ok(pst_io_submit(batch, ops, 2, &err), &err);
    assert_ok(pst_io_wait(batch, UINT64_MAX, &err), &err);
    assert_int_equal(poll(&wanted, 1, 0), 0);
    pst_io_batch_destroy(batch);
    close(fd);
}

/* ---- cancelling ---- */

static void test_cancel_op(void **in)
{
    scene *s = *in;
    pst_error err = {0};
    pst_io_batch *batch = make_batch(s, 4);
    pst_io_op ops[4] = {op_of(s, PST_IO_READ, 0, 2), op_of(s, PST_IO_READ, 2, 20), op_of(s, PST_IO_READ, 22, 4),
                        op_of(s, PST_IO_READ, 26, 4)};
    pst_io_cancel_op(batch, 0); /* nothing is in flight */
    assert_ok(pst_io_submit(batch, ops, 4, &err), &err);
    gate_await_held(DEPTH);
    pst_io_cancel_op(batch, 0);  /* all of it is with the engine: it goes on */
    pst_io_cancel_op(batch, 17); /* nobody */
    pst_io_cancel_op(batch, 2);  /* not started: done at once */
    assert_int_equal(pst_io_wait_op(batch, 2, 0, &err), PST_E_CANCELLED);
    assert_int_equal(err.offset, 22 * BLOCK);
    pst_io_cancel_op(batch, 1); /* in the middle: cut short, and waits for what was started */
    pst_io_cancel_op(batch, 1);
    assert_int_equal(pst_io_wait_op(batch, 1, 0, &err), 1);
    gate_allow_all(true);
    assert_int_equal(pst_io_wait(batch, UINT64_MAX, &err), PST_E_CANCELLED);
    assert_int_equal(err.offset, DEPTH * BLOCK);
    assert_int_equal(ops[0].result, 2 * BLOCK);
    assert_int_equal(ops[1].result, PST_E_CANCELLED);
    assert_int_equal(ops[2].result, PST_E_CANCELLED);
    assert_int_equal(ops[3].result, 4 * BLOCK);
    assert_int_equal(gate.started_count, DEPTH + 4);
    assert_int_equal(s->io->queued_pieces, 0);
    pst_io_batch_destroy(batch);
}

typedef struct canceller {
    pst_io_batch *batch;
    atomic_bool stop;
} canceller;

static void *cancel_often(void *argument)
{
    canceller *c = argument;
    uint64_t random = 5;
    while (!atomic_load(&c->stop)) {
        if (test_below(&random, 3) == 0)
            pst_io_cancel(c->batch);
        else
            pst_io_cancel_op(c->batch, (uint32_t)test_below(&random, 12));
        for (uint64_t i = test_below(&random, 3000); i > 0; i--)
            pst_io_relax();
    }
    return NULL;
}

/* Another thread cancels at any moment: each operation is done or cancelled, and what is done is right. */
static void test_cancel_elsewhere(void **in)
{
    scene *s = *in;
    enum { OPS = 12 };
    const char *engine;
    for (unsigned e = 0; (engine = test_engine(e)) != NULL; e++) {
        pst_error err = {0};
        pst_io *io = test_open(engine, BLOCK, 4, 2, false);
        pst_io_file *file;
        canceller c = {0};
        pthread_t thread;
        uint64_t cancelled = 0;
        assert_ok(pst_io_file_open(io, pst_io_file_path(s->file), PST_IO_OPEN_READ, &file, &err), &err);
        assert_ok(pst_io_batch_create(io, OPS, &c.batch, &err), &err);
        assert_int_equal(pthread_create(&thread, NULL, cancel_often, &c), 0);
        for (int round = 0; round < 300; round++) {
            pst_io_op ops[OPS];
            for (uint32_t i = 0; i < OPS; i++) {
                ops[i] = op_of(s, i % 5 == 3 ? PST_IO_SYNC : PST_IO_READ, i * 5, i % 5);
                ops[i].file = file;
            }
            memset(s->memory, 0, FILE_BYTES);
            assert_ok(pst_io_submit(c.batch, ops, OPS, &err), &err);
            pst_io_wait(c.batch, UINT64_MAX, &err);
            for (uint32_t i = 0; i < OPS; i++) {
                if (ops[i].result == PST_E_CANCELLED)
                    cancelled++;
                else if (ops[i].kind == PST_IO_SYNC)
                    assert_int_equal(ops[i].result, 0);
                else
                    assert_memory_equal(ops[i].buffer, s->model + ops[i].offset, ops[i].bytes);
            }
        }
        atomic_store(&c.stop, true);
        pthread_join(thread, NULL);
        assert_int_equal(io->queued_pieces, 0);
        assert_int_equal(io->in_flight, 0);
        print_message("%s: %llu of %d cancelled\n", engine, (unsigned long long)cancelled, 300 * OPS);
        pst_io_batch_destroy(c.batch);
        assert_ok(pst_io_file_close(file, &err), &err);
        pst_io_close(io);
    }
}

/* ---- segments ---- */

static void test_segments_refused(void **in)
{
    scene *s = *in;
    pst_error err = {0};
    pst_io_batch *batch = make_batch(s, 1);
    pst_io_segment parts[2] = {{s->memory, 100}, {s->memory + 200, 100}};
    pst_io_op op = {.file = s->file, .bytes = 200, .segments = parts, .segment_count = 2};
    op.bytes = 201;
    assert_int_equal(pst_io_submit(batch, &op, 1, &err), PST_E_USAGE);
    op.bytes = 199;
    assert_int_equal(pst_io_submit(batch, &op, 1, &err), PST_E_USAGE);
    op.bytes = 200;
    op.buffer = s->memory;
    assert_int_equal(pst_io_submit(batch, &op, 1, &err), PST_E_USAGE);
    op.buffer = NULL;
    op.segments = NULL;
    assert_int_equal(pst_io_submit(batch, &op, 1, &err), PST_E_USAGE);
    op.segments = parts;
    parts[1].memory = NULL;
    assert_int_equal(pst_io_submit(batch, &op, 1, &err), PST_E_USAGE);
    parts[1].bytes = UINT64_MAX;
    assert_int_equal(pst_io_submit(batch, &op, 1, &err), PST_E_USAGE);
    pst_io_batch_destroy(batch);
}

/* Ten thousand segments of 100 bytes are four transfers, read and written, and not one more. */
static void test_many_segments(void **in)
{
    scene *s = *in;
    enum { COUNT = 10240, PIECE = 100, BYTES = COUNT * PIECE };
    const char *engine, *path = test_path(s->folder, "many");
    pst_io_segment *parts = calloc(COUNT, sizeof *parts);
    uint8_t *memory = malloc(2 * BYTES), *model = malloc(BYTES);
    for (uint32_t i = 0; i < COUNT; i++)
        parts[i] = (pst_io_segment){.memory = memory + (size_t)(COUNT - 1 - i) * 2 * PIECE, .bytes = PIECE};
    for (unsigned e = 0; (engine = test_engine(e)) != NULL; e++) {
        pst_error err = {0};
        pst_io *io = test_open(engine, 1 << 20, 0, 0, false);
        pst_io_file *file;
        pst_io_stats before, after;
        unsigned flags = PST_IO_OPEN_WRITE | PST_IO_OPEN_CREATE | PST_IO_OPEN_TRUNCATE;
        assert_ok(pst_io_file_open(io, path, flags, &file, &err), &err);
        test_fill(model, BYTES, test_random(&state), 0);
        for (uint32_t i = 0; i < COUNT; i++)
            memcpy(parts[i].memory, model + i * PIECE, PIECE);
        pst_io_op op = {.file = file, .bytes = BYTES, .kind = PST_IO_WRITE, .segments = parts, .segment_count = COUNT};
        assert_ok(pst_io_transfer(io, &op, &err), &err);
        memset(memory, 0, 2 * BYTES);
        pst_io_get_stats(io, &before);
        assert_int_equal(before.bytes_written, BYTES);
        assert_int_equal(before.pieces, 4);
        op.kind = PST_IO_READ;
        assert_ok(pst_io_transfer(io, &op, &err), &err);
        pst_io_get_stats(io, &after);
        assert_int_equal(after.pieces - before.pieces, 4);
        for (uint32_t i = 0; i < COUNT; i++)
            assert_memory_equal(parts[i].memory, model + i * PIECE, PIECE);
        assert_ok(pst_io_file_close(file, &err), &err);
        pst_io_close(io);
    }
    free(model);
    free(memory);
    free(parts);
}

/* The event may be seen before the last step of the batch's end: whoever was told may submit it again at once. */
static int write_and_linger(int fd)
{
    int status = pst_sys_real.eventfd_write(fd);
    pause_ms(50);
    return status;
}

static void test_notify_and_resubmit(void **in)
{
    scene *s = *in;
    pst_error err = {0};
    pst_io_batch *batch = make_batch(s, 1);
    pst_io_op op = op_of(s, PST_IO_READ, 0, 1);
    int fd = eventfd(0, EFD_CLOEXEC);
    pst_sys_table table = pst_sys_real;
    table.eventfd_write = write_and_linger;
    uint64_t times;
    gate_allow_all(true);
    assert_ok(pst_io_batch_notify(batch, fd, &err), &err);
    pst_sys_replace(&table);
    int first = pst_io_submit(batch, &op, 1, &err);
    ssize_t got = read(fd, &times, sizeof times);
    int second = pst_io_submit(batch, &op, 1, &err);
    int waited = pst_io_wait(batch, UINT64_MAX, &err);
    pst_sys_replace(&pst_sys_fault);
    assert_ok(first, &err);
    assert_int_equal(got, sizeof times);
    assert_ok(second, &err);
    assert_ok(waited, &err);
    pst_io_batch_destroy(batch);
    close(fd);
}

/* Not only the first ordered operation that fails has its offset in its error. */
static void test_ordered_error_offsets(void **in)
{
    scene *s = *in;
    pst_error err = {0};
    pst_io_batch *batch = make_batch(s, 3);
    pst_io_op ops[3] = {op_of(s, PST_IO_TRUNCATE, 3, 0), op_of(s, PST_IO_TRUNCATE, 5, 0),
                        op_of(s, PST_IO_PREALLOCATE, 7, 1)};
    pst_fault_fail(PST_FAULT_FTRUNCATE, 0, 2, EIO);
    assert_ok(pst_io_submit(batch, ops, 3, &err), &err);
    assert_int_equal(pst_io_wait(batch, UINT64_MAX, &err), -EIO);
    assert_int_equal(err.offset, 3 * BLOCK);
    assert_int_equal(pst_io_op_error(batch, 1, &err), -EIO);
    assert_string_equal(err.path, pst_io_file_path(s->file));
    assert_int_equal(err.offset, 5 * BLOCK);
    assert_ok(pst_io_op_error(batch, 2, &err), &err);
    pst_io_batch_destroy(batch);
}

int main(void)
{
    pst_error err = {0};
    state = gate.random = test_seed();
    if (pst_io_engine_register(&gate_engine, &err) < 0)
        return 1;
    const struct CMUnitTest tests[] = {
        IN_SCENE(test_barrier),
        IN_SCENE(test_ordered_kinds),
        IN_SCENE(test_ordered_errors),
        IN_SCENE(test_cancel_ordered),
        IN_SCENE(test_no_thread),
        IN_SCENE(test_wait_op),
        IN_SCENE(test_next_done),
        IN_SCENE(test_wait_any),
        IN_SCENE(test_notify),
        IN_SCENE(test_cancel_op),
        IN_SCENE(test_cancel_elsewhere),
        IN_SCENE(test_segments_refused),
        IN_SCENE(test_many_segments),
        IN_SCENE(test_notify_and_resubmit),
        IN_SCENE(test_ordered_error_offsets),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
