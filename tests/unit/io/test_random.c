/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Random batches of reads and writes against a plain copy in memory: any offset, length, buffer address,
 * block size, depth and number of workers, on a disk file system and on tmpfs, with every engine, direct and
 * buffered.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "unit/io/io_test.h"

enum { FILE_BYTES = 3 << 20, ARENA_BYTES = 8 << 20, GUARD = 64 };

static uint64_t state;

typedef struct scene {
    pst_io *io;
    pst_io_file *file;
    uint8_t *model; /* what the file must hold: `bytes` of room for 2 * FILE_BYTES */
    uint64_t bytes;
    uint8_t *arena;
} scene;

static uint64_t random_length(void)
{
    switch (test_below(&state, 5)) {
    case 0: return test_below(&state, 3); /* nothing, or next to nothing */
    case 1: return test_below(&state, 5000);
    case 2: return 512 * test_below(&state, 40);
    case 3: return 4096 * test_below(&state, 64);
    default: return test_below(&state, 400000);
    }
}

static uint64_t random_offset(uint64_t limit)
{
    static const uint64_t units[] = {1, 512, 4096};
    uint64_t unit = units[test_below(&state, 3)];
    return test_below(&state, limit / unit + 1) * unit;
}

/* A buffer in the arena at a random alignment; 0xa5 around it. */
static uint8_t *place(scene *s, uint64_t *at, uint64_t bytes)
{
    static const uint64_t units[] = {1, 4, 64, 512, 4096};
    uint64_t unit = units[test_below(&state, 5)];
    uint64_t start = (*at + GUARD + unit - 1) / unit * unit;
    if (start + bytes + GUARD > ARENA_BYTES)
        return NULL;
    *at = start + bytes;
    return s->arena + start;
}

/* One batch of reads, some of them beyond the end. */
static void read_round(scene *s, pst_io_batch *batch, pst_io_op *ops, uint32_t max_ops)
{
    uint32_t count = 0, want_ops = 1 + (uint32_t)test_below(&state, max_ops);
    uint64_t at = 0;
    memset(s->arena, 0xa5, ARENA_BYTES);
    while (count < want_ops) {
        uint64_t offset = random_offset(s->bytes), bytes = random_length();
        uint8_t *buffer = place(s, &at, bytes);
        if (buffer == NULL)
            break;
        ops[count++] = (pst_io_op){.file = s->file,
                                   .offset = offset,
                                   .buffer = buffer,
                                   .bytes = bytes,
                                   .kind = PST_IO_READ,
                                   .may_be_short = test_below(&state, 2)};
    }
    pst_error err = {0};
    assert_ok(pst_io_submit(batch, ops, count, &err), &err);
    int status = pst_io_wait(batch, UINT64_MAX, &err);
    int expected = 0;
    uint64_t last_end = 0;
    for (uint32_t i = 0; i < count; i++) {
        const pst_io_op *op = &ops[i];
        uint64_t there = op->offset >= s->bytes ? 0 : s->bytes - op->offset;
        uint64_t got = there < op->bytes ? there : op->bytes;
        int64_t result = got == op->bytes || op->may_be_short ? (int64_t)got : PST_E_SHORT;
        if (result < 0 && expected == 0)
            expected = PST_E_SHORT;
        assert_int_equal(op->result, result);
        assert_true(memcmp(op->buffer, s->model + op->offset, got) == 0);
        uint64_t start = (uint64_t)((uint8_t *)op->buffer - s->arena);
        for (uint64_t b = last_end; b < start; b++) /* nothing was written between the buffers */
            assert_int_equal(s->arena[b], 0xa5);
        last_end = start + op->bytes;
    }
    assert_int_equal(status, expected);
    if (expected != 0)
        assert_string_equal(err.path, pst_io_file_path(s->file));
}

/* One batch of writes that do not overlap, side by side, to the byte, as tensors in a file are. */
static void write_round(scene *s, pst_io_batch *batch, pst_io_op *ops, uint32_t max_ops)
{
    uint32_t count = 0, want_ops = 1 + (uint32_t)test_below(&state, max_ops);
    uint64_t at = 0, offset = random_offset(s->bytes), key = test_random(&state);
    while (count < want_ops && offset < FILE_BYTES + FILE_BYTES / 2) {
        uint64_t bytes = random_length();
        uint8_t *buffer = place(s, &at, bytes);
        if (buffer == NULL || offset + bytes > 2 * FILE_BYTES)
            break;
        test_fill(buffer, bytes, key, offset);
        memcpy(s->model + offset, buffer, bytes);
        ops[count++] =
            (pst_io_op){.file = s->file, .offset = offset, .buffer = buffer, .bytes = bytes, .kind = PST_IO_WRITE};
        offset += bytes;
        if (offset > s->bytes && bytes > 0)
            s->bytes = offset;
        if (test_below(&state, 4) == 0) { /* a gap; beyond the end it reads as zeros */
            offset += test_below(&state, 3000);
        }
    }
    /* Any order of submission. */
    for (uint32_t i = count; i > 1; i--) {
        uint32_t j = (uint32_t)test_below(&state, i);
        pst_io_op swap = ops[i - 1];
        ops[i - 1] = ops[j];
        ops[j] = swap;
    }
    pst_error err = {0};
    assert_ok(pst_io_submit(batch, ops, count, &err), &err);
    assert_ok(pst_io_wait(batch, UINT64_MAX, &err), &err);
    for (uint32_t i = 0; i < count; i++)
        assert_int_equal(ops[i].result, (int64_t)ops[i].bytes);
}

static void compare_file(scene *s)
{
    uint64_t bytes;
    uint8_t *data = test_read_file(pst_io_file_path(s->file), &bytes);
    assert_int_equal(bytes, s->bytes);
    assert_true(memcmp(data, s->model, bytes) == 0);
    free(data);
}

static void run_scene(const char *engine, bool tmpfs, bool buffered, bool registered)
{
    enum { MAX_OPS = 60 };
    char *folder = test_folder_create(tmpfs);
    if (folder == NULL)
        return;
    static const uint64_t blocks[] = {4096, 8192, 65536, 1 << 20, 12288};
    uint64_t block = blocks[test_below(&state, 5)];
    uint32_t depth = 1 + (uint32_t)test_below(&state, 40), workers = (uint32_t)test_below(&state, 4);
    scene s = {.io = test_open(engine, block, depth, workers, buffered),
               .bytes = FILE_BYTES + test_below(&state, 9000)};
    s.model = calloc(2, FILE_BYTES);
    s.arena = aligned_alloc(4096, ARENA_BYTES);
    assert_non_null(s.model);
    assert_non_null(s.arena);
    test_fill(s.model, s.bytes, test_random(&state), 0);
    const char *path = test_path(folder, "file");
    test_write_file(path, s.model, s.bytes);
    pst_error err = {0};
    pst_io_batch *batch;
    pst_io_op ops[MAX_OPS];
    if (registered)
        assert_ok(pst_io_register(s.io, s.arena, ARENA_BYTES, &err), &err);
    assert_ok(pst_io_file_open(s.io, path, PST_IO_OPEN_WRITE, &s.file, &err), &err);
    assert_int_equal(pst_io_file_bytes(s.file), s.bytes);
    if (buffered)
        assert_false(pst_io_file_is_direct(s.file));
    assert_ok(pst_io_batch_create(s.io, MAX_OPS, &batch, &err), &err);
    for (int round = 0; round < 12; round++) {
        read_round(&s, batch, ops, MAX_OPS);
        write_round(&s, batch, ops, MAX_OPS);
        if (round % 4 == 3)
            compare_file(&s);
    }
    assert_ok(pst_io_file_sync(s.file, &err), &err);
    compare_file(&s);
    pst_io_batch_destroy(batch);
    if (registered)
        pst_io_unregister(s.io, s.arena);
    assert_ok(pst_io_file_close(s.file, &err), &err);
    pst_io_close(s.io);
    free(s.arena);
    free(s.model);
    test_folder_remove(folder);
}

static void run_engine(const char *engine)
{
    for (int i = 0; i < 24; i++)
        run_scene(engine, i % 2 == 1, i % 6 == 5, i % 3 != 0);
}

static void test_uring(void **unused)
{
    (void)unused;
    if (test_have_uring())
        run_engine("io_uring");
}

static void test_threads(void **unused)
{
    (void)unused;
    run_engine("threads");
}

/* Thousands of operations in one batch, and the batch used again. */
static void run_bulk(const char *engine)
{
    enum { OPS = 5000 };
    char *folder = test_folder_create(false);
    const char *path = test_path(folder, "bulk");
    uint64_t bytes = 4 << 20, key = test_random(&state);
    uint8_t *model = malloc(bytes), *target = malloc(bytes + OPS);
    pst_io_op *ops = calloc(OPS, sizeof *ops);
    test_fill(model, bytes, key, 0);
    test_write_file(path, model, bytes);
    pst_error err = {0};
    pst_io *io = test_open(engine, 0, 0, 0, false);
    pst_io_file *file;
    pst_io_batch *batch;
    assert_ok(pst_io_file_open(io, path, PST_IO_OPEN_READ, &file, &err), &err);
    assert_ok(pst_io_batch_create(io, OPS, &batch, &err), &err);
    for (int round = 0; round < 2; round++) {
        uint64_t at = 0;
        for (uint32_t i = 0; i < OPS; i++) {
            uint64_t offset = test_below(&state, bytes - 900), length = test_below(&state, bytes / OPS + 1);
            ops[i] = (pst_io_op){.file = file, .offset = offset, .buffer = target + at, .bytes = length};
            at += length + 1;
        }
        assert_ok(pst_io_submit(batch, ops, OPS, &err), &err);
        assert_ok(pst_io_wait(batch, UINT64_MAX, &err), &err);
        assert_true(pst_io_batch_completed_ns(batch) > 0);
        for (uint32_t i = 0; i < OPS; i++)
            assert_memory_equal(ops[i].buffer, model + ops[i].offset, ops[i].bytes);
    }
    pst_io_batch_destroy(batch);
    assert_ok(pst_io_file_close(file, &err), &err);
    pst_io_close(io);
    free(ops);
    free(target);
    free(model);
    test_folder_remove(folder);
}

static void test_bulk(void **unused)
{
    (void)unused;
    run_bulk("threads");
    if (test_have_uring())
        run_bulk("io_uring");
}

int main(void)
{
    state = test_seed();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_uring),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_bulk),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
