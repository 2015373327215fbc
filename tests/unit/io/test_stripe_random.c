/* SPDX-License-Identifier: Apache-2.0 */
/* Striped files: random operations against a model in memory, and threads that make a file longer at once, also where
 * one of them fails. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "io/internal.h"
#include "os/sys.h"
#include "unit/io/stripe_test.h"

enum { CREATE = PST_IO_OPEN_WRITE | PST_IO_OPEN_CREATE };

static uint64_t state;

/* ---- random operations against a model ---- */

enum { ROOM = 1 << 20, MAX_OPS = 12, MAX_SEGMENTS = 5 };

typedef struct model {
    uint8_t *bytes; /* ROOM of them; zeros behind the length */
    uint64_t length;
    pst_io *io;
    pst_io_file *file;
    uint8_t *source, *target; /* ROOM + 4096 each */
    uint64_t key;
} model;

/* Cuts memory [at, at + bytes) into segments of any length. */
static uint32_t cut_segments(uint8_t *at, uint64_t bytes, pst_io_segment *out)
{
    uint32_t count = 1 + (uint32_t)test_below(&state, MAX_SEGMENTS);
    for (uint32_t i = 0; i < count; i++) {
        uint64_t some = i + 1 == count ? bytes : test_below(&state, bytes + 1);
        out[i] = (pst_io_segment){.memory = at, .bytes = some};
        at += some;
        bytes -= some;
    }
    return count;
}

/* A batch of reads, or of writes that do not overlap, anywhere in and beyond the file. */
static void random_batch(model *m, pst_io_batch *batch)
{
    pst_io_op ops[MAX_OPS];
    pst_io_segment segments[MAX_OPS][MAX_SEGMENTS];
    uint32_t count = 1 + (uint32_t)test_below(&state, MAX_OPS);
    bool write = test_below(&state, 2);
    uint64_t slice = ROOM / 4 / count, shift = test_below(&state, ROOM * 3 / 4), end = m->length;
    uint8_t *memory = write ? m->source : m->target;
    memory += test_below(&state, 3) == 0 ? test_below(&state, 4096) : 0;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t from = test_below(&state, slice), bytes = 1 + test_below(&state, slice - from);
        ops[i] = (pst_io_op){.file = m->file,
                             .offset = shift + i * slice + from,
                             .buffer = memory + i * slice,
                             .bytes = bytes,
                             .kind = write ? PST_IO_WRITE : PST_IO_READ,
                             .may_be_short = !write};
        if (write) {
            test_fill(ops[i].buffer, bytes, ++m->key, 0);
            memcpy(m->bytes + ops[i].offset, ops[i].buffer, bytes);
            if (ops[i].offset + bytes > end)
                end = ops[i].offset + bytes;
        }
        if (test_below(&state, 2)) {
            ops[i].segment_count = cut_segments(ops[i].buffer, bytes, segments[i]);
            ops[i].segments = segments[i];
            ops[i].buffer = NULL;
        }
    }
    pst_error err = {0};
    assert_ok(pst_io_submit(batch, ops, count, &err), &err);
    assert_ok(pst_io_wait(batch, UINT64_MAX, &err), &err);
    for (uint32_t i = 0; i < count; i++) {
        uint64_t there = ops[i].offset < m->length ? m->length - ops[i].offset : 0;
        uint64_t expected = write || there > ops[i].bytes ? ops[i].bytes : there;
        assert_int_equal(ops[i].result, (int64_t)expected);
        if (!write)
            assert_memory_equal(memory + i * slice, m->bytes + ops[i].offset, expected);
    }
    m->length = end;
}

static void check_length(model *m)
{
    uint64_t bytes;
    pst_error err = {0};
    assert_ok(pst_io_file_get_bytes(m->file, &bytes, &err), &err);
    assert_int_equal(bytes, m->length);
}

/* A change of length, as a call or as an operation. */
static void random_length(model *m)
{
    pst_error err = {0};
    uint64_t to = test_below(&state, ROOM);
    if (test_below(&state, 2)) {
        pst_io_op op = {.file = m->file, .offset = to, .kind = PST_IO_TRUNCATE};
        assert_ok(test_below(&state, 2) ? pst_io_transfer(m->io, &op, &err) : pst_io_file_truncate(m->file, to, &err),
                  &err);
        if (to < m->length)
            memset(m->bytes + to, 0, m->length - to);
        m->length = to;
    } else {
        uint64_t from = test_below(&state, to + 1);
        pst_io_op op = {.file = m->file, .offset = from, .bytes = to - from, .kind = PST_IO_PREALLOCATE};
        assert_ok(pst_io_transfer(m->io, &op, &err), &err);
        uint64_t now;
        assert_ok(pst_io_file_get_bytes(m->file, &now, &err), &err);
        assert_true(now == m->length || (now == to && to > m->length)); /* the file system may not be able to */
        m->length = now;
    }
    check_length(m);
}

static void random_run(const char *engine, uint64_t stripe_bytes, uint32_t count, bool buffered)
{
    pst_error err = {0};
    pst_stripe_set *set = stripe_make_set(count, stripe_bytes);
    model m = {.bytes = calloc(1, ROOM), .source = aligned_alloc(4096, ROOM + 4096)};
    m.target = aligned_alloc(4096, ROOM + 4096);
    m.io = test_open(engine, 4096u << test_below(&state, 6), 1 + (uint32_t)test_below(&state, 16),
                     1 + (uint32_t)test_below(&state, 3), buffered);
    pst_io_batch *batch;
    assert_ok(pst_io_batch_create(m.io, MAX_OPS, &batch, &err), &err);
    assert_ok(pst_stripe_file_open(set, m.io, "f", CREATE | PST_IO_OPEN_TRUNCATE, &m.file, &err), &err);
    for (int step = 0; step < 40; step++) {
        uint64_t what = test_below(&state, 10);
        if (what < 7) {
            random_batch(&m, batch);
        } else if (what < 8) {
            random_length(&m);
        } else if (what < 9) {
            assert_ok(pst_io_file_sync(m.file, &err), &err);
        } else {
            assert_ok(pst_io_file_close(m.file, &err), &err);
            assert_ok(pst_stripe_file_open(set, m.io, "f", CREATE, &m.file, &err), &err);
            assert_int_equal(pst_io_file_bytes(m.file), m.length);
        }
    }
    check_length(&m);
    pst_io_op all = {.file = m.file, .buffer = m.target, .bytes = ROOM, .may_be_short = true};
    assert_ok(pst_io_transfer(m.io, &all, &err), &err);
    assert_int_equal(all.result, (int64_t)m.length);
    assert_memory_equal(m.target, m.bytes, m.length);
    pst_io_batch_destroy(batch);
    assert_ok(pst_io_file_close(m.file, &err), &err);
    pst_io_close(m.io);
    pst_stripe_close(set);
    free(m.bytes);
    free(m.source);
    free(m.target);
}

static void test_random_operations(void **unused)
{
    (void)unused;
    const char *engine;
    for (int round = 0; round < 8; round++) {
        for (unsigned e = 0; (engine = test_engine(e)) != NULL; e++) {
            uint64_t stripe =
                test_below(&state, 3) != 0 ? 4096u << test_below(&state, 6) : 4096 * (1 + test_below(&state, 40));
            uint32_t count = 1 + (uint32_t)test_below(&state, STRIPE_FOLDERS);
            random_run(engine, stripe, count, test_below(&state, 5) == 0);
        }
    }
}

/* ---- several threads make the file longer at once ---- */

typedef struct writer {
    pthread_t thread;
    pst_io *io;
    pst_io_file *file;
    uint32_t index;
    int failures;
} writer;

enum { WRITERS = 4, PIECES = 60, PIECE_BYTES = 5000 };

static void *writer_main(void *argument)
{
    writer *w = argument;
    uint8_t *data = malloc(PIECE_BYTES);
    for (uint32_t i = 0; i < PIECES; i++) {
        uint32_t number = i * WRITERS + w->index;
        test_fill(data, PIECE_BYTES, number, 0);
        w->failures +=
            stripe_transfer(w->io, w->file, PST_IO_WRITE, (uint64_t)number * PIECE_BYTES, data, PIECE_BYTES, NULL) < 0;
    }
    free(data);
    return NULL;
}

static void test_extend_in_parallel(void **unused)
{
    (void)unused;
    enum { BYTES = WRITERS * PIECES * PIECE_BYTES };
    const char *engine;
    uint8_t *all = malloc(BYTES), *expected = malloc(PIECE_BYTES);
    for (unsigned e = 0; (engine = test_engine(e)) != NULL; e++) {
        pst_error err = {0};
        pst_stripe_set *set = stripe_make_set(5, 4096);
        writer writers[WRITERS];
        pst_io_file *file;
        pst_io *io = test_open(engine, 65536, 16, 3, false);
        assert_ok(pst_stripe_file_open(set, io, "f", CREATE | PST_IO_OPEN_TRUNCATE, &file, &err), &err);
        for (uint32_t i = 0; i < WRITERS; i++) {
            writers[i] = (writer){.io = io, .file = file, .index = i};
            assert_int_equal(pthread_create(&writers[i].thread, NULL, writer_main, &writers[i]), 0);
        }
        for (uint32_t i = 0; i < WRITERS; i++) {
            pthread_join(writers[i].thread, NULL);
            assert_int_equal(writers[i].failures, 0);
        }
        assert_ok(pst_io_file_close(file, &err), &err);
        assert_ok(pst_stripe_file_open(set, io, "f", PST_IO_OPEN_READ, &file, &err), &err);
        assert_int_equal(pst_io_file_bytes(file), BYTES);
        assert_ok(stripe_transfer(io, file, PST_IO_READ, 0, all, BYTES, &err), &err);
        for (uint32_t i = 0; i < WRITERS * PIECES; i++) {
            test_fill(expected, PIECE_BYTES, i, 0);
            assert_memory_equal(all + (size_t)i * PIECE_BYTES, expected, PIECE_BYTES);
        }
        assert_ok(pst_io_file_close(file, &err), &err);
        pst_io_close(io);
        pst_stripe_close(set);
    }
    free(expected);
    free(all);
}

/* ---- an extension that fails beside one that succeeds ---- */

enum { UNIT = 4096, FIRST_END = 3 * UNIT, OTHER_END = 6 * UNIT };

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool failing, extended;
    unsigned calls;
} beside = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

/* The second call, for the second member of the first extension, fails; before that, the other extension may go on for
 * a while. */
static int fail_second(int fd, uint64_t bytes)
{
    pthread_mutex_lock(&beside.lock);
    bool fails = beside.calls++ == 1;
    if (fails) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += 1;
        beside.failing = true;
        pthread_cond_broadcast(&beside.changed);
        for (int late = 0; !beside.extended && late == 0;)
            late = pthread_cond_timedwait(&beside.changed, &beside.lock, &until);
    }
    pthread_mutex_unlock(&beside.lock);
    return fails ? -EFBIG : pst_sys_real.ftruncate(fd, bytes);
}

static void *write_beside(void *file)
{
    static uint8_t data[OTHER_END];
    test_fill(data, OTHER_END, 5, 0);
    pthread_mutex_lock(&beside.lock);
    while (!beside.failing)
        pthread_cond_wait(&beside.changed, &beside.lock);
    pthread_mutex_unlock(&beside.lock);
    pst_io_op op = {.file = file, .buffer = data, .bytes = OTHER_END, .kind = PST_IO_WRITE};
    int status = pst_io_transfer(((pst_io_file *)file)->io, &op, NULL);
    pthread_mutex_lock(&beside.lock);
    beside.extended = true;
    pthread_cond_broadcast(&beside.changed);
    pthread_mutex_unlock(&beside.lock);
    return (void *)(intptr_t)status;
}

/* What is taken back of an extension that failed is nothing that another open file of the same handle relies on. */
static void test_failed_extension_beside(void **unused)
{
    (void)unused;
    pst_error err = {0};
    pst_stripe_set *set = stripe_make_set(3, UNIT);
    pst_io *io = test_open("threads", UNIT, 1, 2, false);
    pst_io_file *files[2];
    pthread_t thread;
    void *written;
    uint64_t bytes;
    static uint8_t back[OTHER_END], expected[OTHER_END];
    for (int i = 0; i < 2; i++)
        assert_ok(pst_stripe_file_open(set, io, "f", CREATE, &files[i], &err), &err);
    pst_sys_table table = pst_sys_real;
    table.ftruncate = fail_second;
    pst_sys_replace(&table);
    assert_int_equal(pthread_create(&thread, NULL, write_beside, files[1]), 0);
    int failed = pst_io_file_truncate(files[0], FIRST_END, &err);
    pthread_join(thread, &written);
    pst_sys_replace(NULL);
    assert_int_equal(failed, -EFBIG);
    assert_int_equal((intptr_t)written, 0);
    for (int i = 0; i < 2; i++)
        assert_ok(pst_io_file_close(files[i], &err), &err);
    assert_ok(pst_stripe_file_open(set, io, "f", PST_IO_OPEN_READ, &files[0], &err), &err);
    assert_ok(pst_io_file_get_bytes(files[0], &bytes, &err), &err);
    assert_int_equal(bytes, OTHER_END);
    assert_ok(stripe_transfer(io, files[0], PST_IO_READ, 0, back, OTHER_END, &err), &err);
    test_fill(expected, OTHER_END, 5, 0);
    assert_memory_equal(back, expected, OTHER_END);
    assert_ok(pst_io_file_close(files[0], &err), &err);
    pst_io_close(io);
    pst_stripe_close(set);
}

int main(void)
{
    state = test_seed();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_random_operations, stripe_set_up, stripe_tear_down),
        cmocka_unit_test_setup_teardown(test_extend_in_parallel, stripe_set_up, stripe_tear_down),
        cmocka_unit_test_setup_teardown(test_failed_extension_beside, stripe_set_up, stripe_tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
