/* SPDX-License-Identifier: Apache-2.0 */
/* What the options of a handle do: settings, single submission, overlap, workers, the histogram of latencies. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/heap.h"
#include "io/internal.h"
#include "os/clock.h"
#include "os/sys_fault.h"
#include "unit/io/ops_scene.h"

static uint64_t state;

/* ---- settings ---- */

static void test_settings(void **unused)
{
    (void)unused;
    pst_error err = {0};
    pst_io *io;
    pst_io_options options = {.struct_size = sizeof options, .engine_table = &gate_engine}, got = {0};
    options.engine = "nobody"; /* the table goes before */
    options.queue_depth = 5;
    options.block_size = 8192;
    options.single_submit = true;
    options.overlap_events = PST_IO_OFF;
    options.measure_latency = true;
    options.path = "/tmp";
    assert_ok(pst_io_open(&options, &io, &err), &err);
    pst_io_get_settings(io, &got);
    assert_int_equal(got.struct_size, sizeof got);
    assert_string_equal(got.engine, "gate");
    assert_ptr_equal(got.engine_table, &gate_engine);
    assert_int_equal(got.queue_depth, 5);
    assert_int_equal(got.block_size, 8192);
    assert_int_equal(got.workers, 1);
    assert_true(got.single_submit && got.measure_latency && !got.buffered);
    assert_int_equal(got.overlap_events, PST_IO_OFF);
    assert_string_equal(got.path, "/tmp");
    /* A caller of another day knows less. */
    memset(&got, 0x77, sizeof got);
    got.struct_size = offsetof(pst_io_options, workers);
    pst_io_get_settings(io, &got);
    assert_int_equal(got.queue_depth, 5);
    assert_int_equal(got.workers, 0x77777777);
    pst_io_close(io);
    /* The defaults, filled in; and what was filled in gives the same handle again. */
    for (int i = 0; i < 2; i++) {
        options = i == 0 ? (pst_io_options){.engine = "threads"} : got;
        assert_ok(pst_io_open(&options, &io, &err), &err);
        got.struct_size = 0;
        pst_io_get_settings(io, &got);
        assert_int_equal(got.block_size, 1 << 20);
        assert_int_equal(got.queue_depth, 1);
        assert_int_equal(got.workers, 16);
        assert_int_equal(got.overlap_events, PST_IO_ON);
        assert_null(got.path);
        pst_io_close(io);
    }
    pst_io_engine broken = gate_engine;
    broken.wake = NULL;
    options = (pst_io_options){.struct_size = sizeof options, .engine_table = &broken};
    assert_int_equal(pst_io_open(&options, &io, &err), PST_E_USAGE);
}

/* Every allocation of opening fails in turn, and leaves nothing behind. */
static void test_open_without_memory(void **unused)
{
    (void)unused;
    pst_io_options options = {
        .struct_size = sizeof options, .engine = "threads", .workers = 2, .measure_latency = true, .path = "/tmp"};
    int64_t before = pst_heap_live_count();
    unsigned failed = 0;
    for (int64_t nth = 0;; nth++) {
        pst_error err = {0};
        pst_io *io = NULL;
        pst_io_batch *batch = NULL;
        pst_heap_fail_after(nth, 0);
        int status = pst_io_open(&options, &io, &err);
        if (status >= 0)
            status = pst_io_batch_create(io, 10, &batch, &err);
        pst_heap_fail_after(-1, 0);
        pst_io_batch_destroy(batch);
        pst_io_close(io);
        assert_int_equal(pst_heap_live_count(), before);
        if (status >= 0)
            break;
        assert_int_equal(status, -ENOMEM);
        failed++;
    }
    assert_true(failed >= 10);
}

static pst_io *open_gate_with(const pst_io_options *wanted, const char *path, pst_io_file **file)
{
    pst_io_options options = *wanted;
    pst_error err = {0};
    pst_io *io;
    options.struct_size = sizeof options;
    options.engine_table = &gate_engine;
    options.block_size = BLOCK;
    options.queue_depth = DEPTH;
    assert_ok(pst_io_open(&options, &io, &err), &err);
    assert_ok(pst_io_file_open(io, path, PST_IO_OPEN_READ, file, &err), &err);
    return io;
}

/* Overlap off: a queue is filled, and filled again when all of it is done. On: one goes, one comes. */
static void test_overlap(void **in)
{
    scene *s = *in;
    pst_error err = {0};
    pst_io_file *file;
    pst_io *io = open_gate_with(&(pst_io_options){.overlap_events = PST_IO_OFF}, pst_io_file_path(s->file), &file);
    pst_io_batch *batch;
    assert_ok(pst_io_batch_create(io, 1, &batch, &err), &err);
    pst_io_op op = op_of(s, PST_IO_READ, 0, 3 * DEPTH);
    op.file = file;
    assert_ok(pst_io_submit(batch, &op, 1, &err), &err);
    for (uint32_t filled = DEPTH; filled <= 3 * DEPTH; filled += DEPTH) {
        for (uint32_t left = DEPTH; left > 0; left--) {
            gate_await_held(left);
            pause_ms(1);
            assert_int_equal(gate.held_count, left);
            assert_int_equal(gate.started_count, filled);
            gate_allow(1);
        }
    }
    assert_ok(pst_io_wait(batch, UINT64_MAX, &err), &err);
    assert_memory_equal(s->memory, s->model, op.bytes);
    pst_io_batch_destroy(batch);
    assert_ok(pst_io_file_close(file, &err), &err);
    pst_io_close(io);
}

/* Overlap off at a depth beyond what a worker takes under one hold of the lock: the queue is the depth all the same. */
static void test_overlap_deep(void **in)
{
    enum { OPS = HELD_MAX + 88 };
    scene *s = *in;
    pst_error err = {0};
    pst_io *io;
    pst_io_file *file;
    pst_io_batch *batch;
    static pst_io_op ops[OPS];
    pst_io_options options = {.struct_size = sizeof options,
                              .engine_table = &gate_engine,
                              .block_size = BLOCK,
                              .queue_depth = HELD_MAX,
                              .overlap_events = PST_IO_OFF};
    assert_ok(pst_io_open(&options, &io, &err), &err);
    assert_ok(pst_io_file_open(io, pst_io_file_path(s->file), PST_IO_OPEN_READ, &file, &err), &err);
    assert_ok(pst_io_batch_create(io, OPS, &batch, &err), &err);
    for (uint32_t i = 0; i < OPS; i++) {
        ops[i] = op_of(s, PST_IO_READ, i % BLOCKS, 1);
        ops[i].file = file;
    }
    assert_ok(pst_io_submit(batch, ops, OPS, &err), &err);
    bool filled = gate_comes_to_hold(HELD_MAX);
    gate_allow_all(true);
    assert_ok(pst_io_wait(batch, UINT64_MAX, &err), &err);
    assert_true(filled);
    assert_memory_equal(s->memory, s->model, FILE_BYTES);
    pst_io_batch_destroy(batch);
    assert_ok(pst_io_file_close(file, &err), &err);
    pst_io_close(io);
}

static void test_single_submit(void **in)
{
    scene *s = *in;
    pst_error err = {0};
    pst_io_file *file;
    pst_io_op op = op_of(s, PST_IO_READ, 0, BLOCKS);
    gate_allow_all(true);
    assert_ok(pst_io_transfer(s->io, &op, &err), &err);
    assert_int_equal(gate.most_submitted, DEPTH); /* otherwise all at once */
    gate.most_submitted = gate.most_held = 0;
    pst_io *io = open_gate_with(&(pst_io_options){.single_submit = true}, pst_io_file_path(s->file), &file);
    memset(s->memory, 0, FILE_BYTES);
    op.file = file;
    gate_allow_all(false);
    pst_io_batch *batch;
    assert_ok(pst_io_batch_create(io, 1, &batch, &err), &err);
    assert_ok(pst_io_submit(batch, &op, 1, &err), &err);
    gate_await_held(DEPTH);
    gate_allow_all(true);
    assert_ok(pst_io_wait(batch, UINT64_MAX, &err), &err);
    assert_int_equal(gate.most_submitted, 1);
    assert_int_equal(gate.most_held, DEPTH);
    assert_memory_equal(s->memory, s->model, FILE_BYTES);
    pst_io_batch_destroy(batch);
    assert_ok(pst_io_file_close(file, &err), &err);
    pst_io_close(io);
}

/* A wake that comes between two single submissions starts what was submitted meanwhile: it does not have to wait for a
 * completion. */
static struct {
    pst_io_batch *batch;
    pst_io_op op;
    int status;
} meanwhile;

static void submit_meanwhile(void)
{
    meanwhile.status = pst_io_submit(meanwhile.batch, &meanwhile.op, 1, NULL);
}

static void test_single_submit_wake(void **in)
{
    scene *s = *in;
    pst_error err = {0};
    pst_io_file *file;
    pst_io *io = open_gate_with(&(pst_io_options){.single_submit = true}, pst_io_file_path(s->file), &file);
    pst_io_batch *batch;
    assert_ok(pst_io_batch_create(io, 1, &batch, &err), &err);
    assert_ok(pst_io_batch_create(io, 1, &meanwhile.batch, &err), &err);
    pst_io_op op = op_of(s, PST_IO_READ, 0, 1);
    meanwhile.op = op_of(s, PST_IO_READ, 1, 1);
    op.file = meanwhile.op.file = file;
    gate.on_submit = submit_meanwhile;
    assert_ok(pst_io_submit(batch, &op, 1, &err), &err);
    bool both = gate_comes_to_hold(2);
    gate_allow_all(true);
    assert_ok(pst_io_wait(batch, UINT64_MAX, &err), &err);
    assert_ok(meanwhile.status, &err);
    assert_ok(pst_io_wait(meanwhile.batch, UINT64_MAX, &err), &err);
    assert_true(both);
    pst_io_batch_destroy(meanwhile.batch);
    pst_io_batch_destroy(batch);
    assert_ok(pst_io_file_close(file, &err), &err);
    pst_io_close(io);
}

/* With io_uring, as many system calls as I/Os; otherwise far fewer (about one for eight). */
static void test_single_calls(void **in)
{
    scene *s = *in;
    if (!test_have_uring())
        return;
    for (int single = 0; single < 2; single++) {
        pst_error err = {0};
        pst_io_options options = {.struct_size = sizeof options,
                                  .engine = "io_uring",
                                  .block_size = BLOCK,
                                  .queue_depth = BLOCKS,
                                  .single_submit = single};
        pst_io *io;
        pst_io_file *file;
        assert_ok(pst_io_open(&options, &io, &err), &err);
        assert_ok(pst_io_file_open(io, pst_io_file_path(s->file), PST_IO_OPEN_READ, &file, &err), &err);
        pst_io_op op = op_of(s, PST_IO_READ, 0, BLOCKS);
        op.file = file;
        pst_fault_reset();
        assert_ok(pst_io_transfer(io, &op, &err), &err);
        int64_t calls = pst_fault_count(PST_FAULT_URING_ENTER);
        assert_true(single ? calls >= BLOCKS : calls <= BLOCKS / 2);
        assert_ok(pst_io_file_close(file, &err), &err);
        pst_io_close(io);
    }
}

/* ---- one transfer over several workers ---- */

enum { SPREAD = 4 };
static struct {
    atomic_uint queues, requests[SPREAD];
} spread;

typedef struct spread_queue {
    pst_io_request *held[HELD_MAX];
    uint32_t count, index;
    atomic_bool woken;
} spread_queue;

static int spread_open(const pst_io_engine *self, const pst_io_queue_settings *settings, void **out, pst_error *err)
{
    (void)self, (void)settings, (void)err;
    spread_queue *q = calloc(1, sizeof *q);
    q->index = atomic_fetch_add(&spread.queues, 1);
    *out = q;
    return 0;
}

static void spread_submit(void *queue, pst_io_request *const *requests, uint32_t count)
{
    spread_queue *q = queue;
    atomic_fetch_add(&spread.requests[q->index], count);
    for (uint32_t i = 0; i < count; i++)
        q->held[q->count++] = requests[i];
}

static uint32_t spread_reap(void *queue, pst_io_request **done, uint32_t max, bool wait)
{
    spread_queue *q = queue;
    while (wait && q->count == 0 && !atomic_exchange(&q->woken, false))
        pause_ms(1);
    if (q->count == 0 || max == 0)
        return 0;
    pause_ms(2); /* a slow drive */
    pst_io_request *r = done[0] = q->held[--q->count];
    r->result = pread(r->fd, r->address, r->bytes, (off_t)r->offset);
    return 1;
}

static void spread_wake(void *queue)
{
    atomic_store(&((spread_queue *)queue)->woken, true);
}

static void test_spread(void **in)
{
    scene *s = *in;
    static const pst_io_engine engine = {.version = PST_IO_ENGINE_VERSION,
                                         .struct_size = sizeof engine,
                                         .name = "spread",
                                         .open_queue = spread_open,
                                         .close_queue = free,
                                         .submit = spread_submit,
                                         .reap = spread_reap,
                                         .wake = spread_wake};
    pst_error err = {0};
    pst_io *io;
    pst_io_file *file;
    pst_io_options options = {.struct_size = sizeof options,
                              .engine_table = &engine,
                              .block_size = BLOCK,
                              .queue_depth = HELD_MAX,
                              .workers = SPREAD};
    assert_ok(pst_io_open(&options, &io, &err), &err);
    assert_ok(pst_io_file_open(io, pst_io_file_path(s->file), PST_IO_OPEN_READ, &file, &err), &err);
    pst_io_op op = op_of(s, PST_IO_READ, 0, BLOCKS);
    op.file = file;
    assert_ok(pst_io_transfer(io, &op, &err), &err);
    assert_memory_equal(s->memory, s->model, FILE_BYTES);
    for (int i = 0; i < SPREAD; i++) {
        unsigned count = atomic_load(&spread.requests[i]);
        print_message("worker %d: %u of %d\n", i, count, BLOCKS);
        assert_true(count >= BLOCKS / SPREAD - 2 && count <= BLOCKS / SPREAD + 2);
    }
    assert_ok(pst_io_file_close(file, &err), &err);
    pst_io_close(io);
}

/* ---- latency ---- */

static int compare_numbers(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void check_quantile(uint64_t got, uint64_t exact)
{
    double error = (double)got / (double)exact - 1;
    assert_true(error < 0.032 && error > -0.032);
}

/* Quantiles against sorted values of every size. */
static void test_histogram(void **unused)
{
    (void)unused;
    enum { COUNT = 5000 };
    pst_error err = {0};
    pst_io *io;
    pst_io_options options = {
        .struct_size = sizeof options, .engine = "threads", .workers = 1, .measure_latency = true};
    assert_ok(pst_io_open(&options, &io, &err), &err);
    static uint64_t values[COUNT];
    pst_io_latency latency;
    for (int round = 0; round < 60; round++) {
        uint64_t limit = 2ull << (round + 2), sum = 0;
        pthread_mutex_lock(&io->lock);
        for (int i = 0; i < COUNT; i++) {
            values[i] = 1 + (test_random(&state) % limit >> test_below(&state, 4));
            sum += values[i];
            pst_io_histogram_add(io->histogram, values[i]);
        }
        pthread_mutex_unlock(&io->lock);
        qsort(values, COUNT, sizeof values[0], compare_numbers);
        pst_io_get_latency(io, true, &latency);
        assert_int_equal(latency.count, COUNT);
        assert_int_equal(latency.min_ns, values[0]);
        assert_int_equal(latency.max_ns, values[COUNT - 1]);
        if (round < 40)
            assert_int_equal(latency.mean_ns, sum / COUNT);
        check_quantile(latency.p50_ns, values[COUNT / 2 - 1]);
        check_quantile(latency.p90_ns, values[COUNT / 10 * 9 - 1]);
        check_quantile(latency.p99_ns, values[COUNT / 100 * 99 - 1]);
        check_quantile(latency.p999_ns, values[COUNT / 1000 * 999 - 1]);
    }
    pst_io_get_latency(io, false, &latency);
    assert_int_equal(latency.count, 0);
    assert_int_equal(latency.p50_ns, 0);
    pst_io_close(io);
}

/* The time that requests are held back is seen, all of it. */
static void test_latency(void **in)
{
    scene *s = *in;
    pst_error err = {0};
    pst_io_file *file;
    pst_io *io = open_gate_with(&(pst_io_options){.measure_latency = true}, pst_io_file_path(s->file), &file);
    pst_io_batch *batch;
    pst_io_latency latency;
    assert_ok(pst_io_batch_create(io, 1, &batch, &err), &err);
    pst_io_op op = op_of(s, PST_IO_READ, 0, DEPTH);
    op.file = file;
    uint64_t start = pst_clock_ns();
    pst_heap_fail_after(0, 1); /* nothing is allocated on the way */
    int status = pst_io_submit(batch, &op, 1, &err);
    gate_await_held(DEPTH);
    pause_ms(20);
    gate_allow_all(true);
    if (status >= 0)
        status = pst_io_wait(batch, UINT64_MAX, &err);
    pst_heap_fail_after(-1, 0);
    assert_ok(status, &err);
    uint64_t most = pst_clock_ns() - start;
    pst_io_get_latency(io, false, &latency);
    assert_int_equal(latency.count, DEPTH);
    assert_true(latency.min_ns >= 20000000 && latency.max_ns <= most);
    assert_true(latency.p50_ns >= latency.min_ns && latency.p999_ns <= latency.max_ns);
    pst_io_get_latency(io, true, &latency);
    assert_int_equal(latency.count, DEPTH);
    pst_io_get_latency(io, true, &latency);
    assert_int_equal(latency.count, 0);
    pst_io_get_latency(s->io, true, &latency); /* not measured there */
    assert_int_equal(latency.count, 0);
    pst_io_batch_destroy(batch);
    assert_ok(pst_io_file_close(file, &err), &err);
    pst_io_close(io);
}

int main(void)
{
    pst_error err = {0};
    state = gate.random = test_seed();
    if (pst_io_engine_register(&gate_engine, &err) < 0)
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_settings),  cmocka_unit_test(test_open_without_memory),
        IN_SCENE(test_overlap),           IN_SCENE(test_overlap_deep),
        IN_SCENE(test_single_submit),     IN_SCENE(test_single_submit_wake),
        IN_SCENE(test_single_calls),      IN_SCENE(test_spread),
        cmocka_unit_test(test_histogram), IN_SCENE(test_latency),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
