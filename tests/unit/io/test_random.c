/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Random batches of reads and writes against a plain copy in memory: any offset, length, buffer address or segments,
 * block size, depth, number of workers and way of submitting, on a disk file system and on tmpfs, with every engine,
 * direct and buffered.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "penstock/io_stripe.h"
#include "unit/io/io_test.h"

enum { FILE_BYTES = 3 << 20, ARENA_BYTES = 8 << 20, GUARD = 64, SEGMENTS = 3000, FILLER = 0xa5 };

static uint64_t state;

typedef struct scene {
    pst_io *io;
    char *folders[3];    /* one for a plain file */
    pst_stripe_set *set; /* NULL: a plain file */
    pst_io_file *file;
    uint8_t *model; /* what the file must hold: `bytes` of room for 2 * FILE_BYTES */
    uint64_t bytes;
    uint8_t *arena; /* all memory of operations; FILLER where there is none */
    uint64_t arena_at;
    pst_io_segment segments[SEGMENTS];
    uint32_t segments_at;
    uint8_t flat[1 << 20]; /* of one operation */
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

/* A buffer in the arena at a random alignment, FILLER around it. */
static uint8_t *place(scene *s, uint64_t bytes)
{
    static const uint64_t units[] = {1, 4, 64, 512, 4096};
    uint64_t unit = units[test_below(&state, 5)];
    uint64_t start = (s->arena_at + GUARD + unit - 1) / unit * unit;
    if (start + bytes + GUARD > ARENA_BYTES)
        return NULL;
    s->arena_at = start + bytes;
    return s->arena + start;
}

/* Places the operation's bytes as segments: many of one kind of size, now and then one right after the other. */
static bool place_segments(scene *s, pst_io_op *op)
{
    static const uint64_t limits[] = {3, 200, 3000, 20000, 150000};
    uint64_t limit = limits[test_below(&state, 5)], left = op->bytes, aligned = test_below(&state, 2);
    pst_io_segment *segments = s->segments + s->segments_at;
    uint32_t count = 0;
    for (; left > 0 && s->segments_at + count + 1 < SEGMENTS; count++) {
        uint64_t bytes = test_below(&state, limit + 1);
        if (aligned)
            bytes = bytes / 4096 * 4096;
        bytes = bytes < left ? bytes : left;
        bool row = count > 0 && bytes > 0 && test_below(&state, 3) == 0 && s->arena_at + bytes + GUARD < ARENA_BYTES;
        uint8_t *memory = row ? s->arena + s->arena_at : bytes > 0 ? place(s, bytes) : NULL;
        if (row)
            s->arena_at += bytes;
        if (memory == NULL && bytes > 0)
            break;
        segments[count] = (pst_io_segment){.memory = memory, .bytes = bytes};
        left -= bytes;
    }
    if (left == op->bytes)
        return false;
    op->bytes -= left; /* what there was room for */
    op->segments = segments;
    op->segment_count = count;
    s->segments_at += count;
    return true;
}

/* Gives the operation memory; false when there is none left. */
static bool place_op(scene *s, pst_io_op *op)
{
    if (op->bytes > 0 && test_below(&state, 2) == 0)
        return place_segments(s, op);
    op->buffer = place(s, op->bytes);
    return op->buffer != NULL;
}

/* Copies between an operation's memory and the scene's flat piece; `clean` leaves FILLER behind. */
static void copy_op(scene *s, const pst_io_op *op, bool to_flat, bool clean)
{
    const pst_io_segment whole = {.memory = op->buffer, .bytes = op->bytes};
    const pst_io_segment *segments = op->segment_count > 0 ? op->segments : &whole;
    uint64_t at = 0;
    for (uint32_t i = 0; i < op->segment_count + (op->segment_count == 0) && at < op->bytes; i++) {
        if (segments[i].bytes == 0)
            continue;
        if (to_flat)
            memcpy(s->flat + at, segments[i].memory, segments[i].bytes);
        else
            memcpy(segments[i].memory, s->flat + at, segments[i].bytes);
        if (clean)
            memset(segments[i].memory, FILLER, segments[i].bytes);
        at += segments[i].bytes;
    }
}

static void forget_memory(scene *s)
{
    s->arena_at = 0;
    s->segments_at = 0;
}

/* Waits by any of the ways there are. */
static int wait_somehow(pst_io_batch *batch, uint32_t count, pst_error *err)
{
    uint32_t way = (uint32_t)test_below(&state, 4), index;
    if (way == 1) {
        for (uint32_t i = 0; i < count; i++)
            assert_int_equal(pst_io_next_done(batch, UINT64_MAX, &index, err), 0);
        assert_int_equal(pst_io_next_done(batch, 0, &index, err), PST_E_USAGE);
    } else if (way == 2) {
        for (uint32_t i = count; i-- > 0;) {
            int status = pst_io_wait_op(batch, i, UINT64_MAX, NULL);
            assert_int_equal(status, pst_io_op_error(batch, i, NULL));
        }
    } else if (way == 3) {
        assert_int_equal(pst_io_wait_any(&batch, 1, UINT64_MAX, &index, err), 0);
    }
    return pst_io_wait(batch, UINT64_MAX, err);
}

/* One batch of reads, some of them beyond the end. */
static void read_round(scene *s, pst_io_batch *batch, pst_io_op *ops, uint32_t max_ops)
{
    uint32_t count = 0, want_ops = 1 + (uint32_t)test_below(&state, max_ops);
    forget_memory(s);
    memset(s->arena, FILLER, ARENA_BYTES);
    while (count < want_ops) {
        ops[count] = (pst_io_op){.file = s->file,
                                 .offset = random_offset(s->bytes),
                                 .bytes = random_length(),
                                 .kind = PST_IO_READ,
                                 .may_be_short = test_below(&state, 2)};
        if (!place_op(s, &ops[count]))
            break;
        count++;
    }
    pst_error err = {0};
    assert_ok(pst_io_submit(batch, ops, count, &err), &err);
    int status = wait_somehow(batch, count, &err);
    int expected = 0;
    for (uint32_t i = 0; i < count; i++) {
        const pst_io_op *op = &ops[i];
        uint64_t there = op->offset >= s->bytes ? 0 : s->bytes - op->offset;
        uint64_t got = there < op->bytes ? there : op->bytes;
        int64_t result = got == op->bytes || op->may_be_short ? (int64_t)got : PST_E_SHORT;
        if (result < 0 && expected == 0)
            expected = PST_E_SHORT;
        assert_int_equal(op->result, result);
        copy_op(s, op, true, true);
        assert_true(memcmp(s->flat, s->model + op->offset, got) == 0);
    }
    assert_int_equal(status, expected);
    if (expected != 0)
        assert_string_equal(err.path, pst_io_file_path(s->file));
    /* Nothing was written between the buffers. */
    assert_int_equal(s->arena[0], FILLER);
    assert_true(memcmp(s->arena, s->arena + 1, ARENA_BYTES - 1) == 0);
}

/* One batch of writes that do not overlap, side by side, to the byte, as tensors in a file are. */
static void write_round(scene *s, pst_io_batch *batch, pst_io_op *ops, uint32_t max_ops)
{
    uint32_t count = 0, want_ops = 1 + (uint32_t)test_below(&state, max_ops);
    uint64_t offset = random_offset(s->bytes), key = test_random(&state);
    forget_memory(s);
    while (count < want_ops && offset < FILE_BYTES + FILE_BYTES / 2) {
        pst_io_op *op = &ops[count];
        *op = (pst_io_op){.file = s->file, .offset = offset, .bytes = random_length(), .kind = PST_IO_WRITE};
        if (!place_op(s, op) || offset + op->bytes > 2 * FILE_BYTES)
            break;
        test_fill(s->flat, op->bytes, key, offset);
        memcpy(s->model + offset, s->flat, op->bytes);
        copy_op(s, op, false, false);
        offset += op->bytes;
        if (offset > s->bytes && op->bytes > 0)
            s->bytes = offset;
        if (test_below(&state, 4) == 0) { /* a gap; beyond the end it reads as zeros */
            offset += test_below(&state, 3000);
        }
        count++;
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
    assert_ok(wait_somehow(batch, count, &err), &err);
    for (uint32_t i = 0; i < count; i++)
        assert_int_equal(ops[i].result, (int64_t)ops[i].bytes);
}

/* With plain system calls, or where the file is in parts, with the library's smallest reads. */
static void compare_file(scene *s)
{
    uint64_t bytes;
    pst_error err = {0};
    assert_ok(pst_io_file_get_bytes(s->file, &bytes, &err), &err);
    assert_int_equal(bytes, s->bytes);
    if (s->set == NULL) {
        uint8_t *data = test_read_file(pst_io_file_path(s->file), &bytes);
        assert_true(memcmp(data, s->model, bytes) == 0);
        free(data);
        return;
    }
    for (uint64_t at = 0; at < bytes; at += sizeof s->flat) {
        uint64_t length = bytes - at < sizeof s->flat ? bytes - at : sizeof s->flat;
        pst_io_op op = {.file = s->file, .offset = at, .buffer = s->flat, .bytes = length};
        assert_ok(pst_io_transfer(s->io, &op, &err), &err);
        assert_true(memcmp(s->flat, s->model + at, length) == 0);
    }
}

static pst_io *open_somehow(const char *engine, bool buffered)
{
    static const uint64_t blocks[] = {4096, 8192, 65536, 1 << 20, 12288};
    pst_io_options options = {.struct_size = sizeof options,
                              .engine = engine,
                              .block_size = blocks[test_below(&state, 5)],
                              .queue_depth = 1 + (uint32_t)test_below(&state, 40),
                              .workers = (uint32_t)test_below(&state, 4),
                              .buffered = buffered,
                              .single_submit = test_below(&state, 3) == 0,
                              .overlap_events = (pst_io_switch)test_below(&state, 3),
                              .measure_latency = test_below(&state, 2)};
    pst_io *io;
    pst_error err = {0};
    assert_ok(pst_io_open(&options, &io, &err), &err);
    return io;
}

/* Makes the file with its first content, plain or striped, and opens it. */
static void make_file(scene *s, bool striped)
{
    pst_error err = {0};
    test_fill(s->model, s->bytes, test_random(&state), 0);
    if (!striped) {
        const char *path = test_path(s->folders[0], "file");
        test_write_file(path, s->model, s->bytes);
        assert_ok(pst_io_file_open(s->io, path, PST_IO_OPEN_WRITE, &s->file, &err), &err);
        assert_int_equal(pst_io_file_bytes(s->file), s->bytes);
        return;
    }
    uint64_t stripe_bytes = 4096 * (1 + test_below(&state, 40));
    unsigned flags = PST_IO_OPEN_WRITE | PST_IO_OPEN_CREATE;
    assert_ok(pst_stripe_create((const char *const *)s->folders, 3, stripe_bytes, &err), &err);
    assert_ok(pst_stripe_open((const char *const *)s->folders, 3, &s->set, &err), &err);
    assert_ok(pst_stripe_file_open(s->set, s->io, "file", flags, &s->file, &err), &err);
    pst_io_op op = {.file = s->file, .buffer = s->model, .bytes = s->bytes, .kind = PST_IO_WRITE};
    assert_ok(pst_io_transfer(s->io, &op, &err), &err);
}

static void use_file(scene *s)
{
    enum { MAX_OPS = 60 };
    pst_error err = {0};
    pst_io_batch *batch;
    pst_io_op ops[MAX_OPS];
    assert_ok(pst_io_batch_create(s->io, MAX_OPS, &batch, &err), &err);
    for (int round = 0; round < 12; round++) {
        read_round(s, batch, ops, MAX_OPS);
        write_round(s, batch, ops, MAX_OPS);
        if (round % 4 == 3)
            compare_file(s);
    }
    assert_ok(pst_io_file_sync(s->file, &err), &err);
    compare_file(s);
    pst_io_batch_destroy(batch);
}

static void run_scene(const char *engine, bool tmpfs, bool buffered, bool registered, bool striped)
{
    scene *s = calloc(1, sizeof *s);
    assert_non_null(s);
    for (int i = 0; i < (striped ? 3 : 1); i++) {
        if ((s->folders[i] = test_folder_create(tmpfs)) == NULL) {
            free(s);
            return;
        }
    }
    s->io = open_somehow(engine, buffered);
    s->bytes = FILE_BYTES + test_below(&state, 9000);
    s->model = calloc(2, FILE_BYTES);
    s->arena = aligned_alloc(4096, ARENA_BYTES);
    assert_non_null(s->model);
    assert_non_null(s->arena);
    pst_error err = {0};
    if (registered)
        assert_ok(pst_io_register(s->io, s->arena, ARENA_BYTES, &err), &err);
    make_file(s, striped);
    if (buffered)
        assert_false(pst_io_file_is_direct(s->file));
    use_file(s);
    if (registered)
        pst_io_unregister(s->io, s->arena);
    assert_ok(pst_io_file_close(s->file, &err), &err);
    pst_stripe_close(s->set);
    pst_io_close(s->io);
    free(s->arena);
    free(s->model);
    for (int i = 0; i < 3; i++)
        test_folder_remove(s->folders[i]);
    free(s);
}

static void test_engines(void **unused)
{
    (void)unused;
    const char *engine;
    for (unsigned e = 0; (engine = test_engine(e)) != NULL; e++) {
        for (int i = 0; i < 18; i++)
            run_scene(engine, i % 2 == 1, i % 6 == 5, i % 3 != 0, i % 9 >= 7);
    }
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
    const char *engine;
    for (unsigned e = 0; (engine = test_engine(e)) != NULL; e++)
        run_bulk(engine);
}

int main(void)
{
    state = test_seed();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_engines),
        cmocka_unit_test(test_bulk),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
