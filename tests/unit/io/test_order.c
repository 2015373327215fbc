/* SPDX-License-Identifier: Apache-2.0 */
/* What the library does around an engine: order, depth, cancelling, waiting, closing, slots. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/heap.h"
#include "io/internal.h"
#include "os/sys_fault.h"
#include "penstock/io_engine.h"
#include "unit/io/gate.h"
#include "unit/io/io_test.h"

enum { BLOCK = 4096 };

typedef struct scene {
    char *folder;
    pst_io *io;
    pst_io_file *file;
    uint8_t *model, *target;
} scene;

enum { FILE_BYTES = 64 * BLOCK, DEPTH = 8 };

static int set_up(void **out)
{
    scene *s = calloc(1, sizeof *s);
    pst_error err = {0};
    gate_allow_all(false);
    gate.started_count = gate.most_held = 0;
    s->folder = test_folder_create(false);
    s->model = malloc(FILE_BYTES);
    s->target = aligned_alloc(4096, FILE_BYTES);
    test_fill(s->model, FILE_BYTES, 7, 0);
    memset(s->target, 0, FILE_BYTES);
    const char *path = test_path(s->folder, "file");
    test_write_file(path, s->model, FILE_BYTES);
    s->io = test_open("gate", BLOCK, DEPTH, 1, false);
    assert_ok(pst_io_file_open(s->io, path, PST_IO_OPEN_READ, &s->file, &err), &err);
    *out = s;
    return 0;
}

static int tear_down(void **in)
{
    scene *s = *in;
    pst_io_file_close(s->file, NULL);
    pst_io_close(s->io);
    free(s->target);
    free(s->model);
    test_folder_remove(s->folder);
    free(s);
    assert_int_equal(gate.files, 0);
    assert_int_equal(gate.buffers, 0);
    return 0;
}

static pst_io_op read_op(scene *s, uint64_t block, uint64_t blocks)
{
    return (pst_io_op){.file = s->file,
                       .offset = block * BLOCK,
                       .buffer = s->target + block * BLOCK,
                       .bytes = blocks * BLOCK,
                       .kind = PST_IO_READ};
}

static pst_io_batch *make_batch(scene *s, uint32_t max_ops)
{
    pst_io_batch *batch;
    pst_error err = {0};
    assert_ok(pst_io_batch_create(s->io, max_ops, &batch, &err), &err);
    return batch;
}

/* Depth is filled at once, never exceeded, and refilled as single completions come; earlier batches go first.
 */
static void test_depth_and_order(void **in)
{
    scene *s = *in;
    pst_io_batch *first = make_batch(s, 2), *second = make_batch(s, 1);
    pst_io_op a[2] = {read_op(s, 0, 20), read_op(s, 20, 4)}, b = read_op(s, 24, 40);
    pst_error err = {0};
    assert_ok(pst_io_submit(first, a, 2, &err), &err);
    gate_await_held(DEPTH);
    assert_ok(pst_io_submit(second, &b, 1, &err), &err);
    for (int i = 0; i < 56; i++) { /* one goes, one comes */
        gate_allow(1);
        pthread_mutex_lock(&gate.lock);
        while (gate.allowance > 0 || gate.held_count != DEPTH)
            pthread_cond_wait(&gate.changed, &gate.lock);
        pthread_mutex_unlock(&gate.lock);
    }
    gate_allow_all(true);
    assert_ok(pst_io_wait(second, UINT64_MAX, &err), &err);
    assert_ok(pst_io_wait(first, UINT64_MAX, &err), &err);
    assert_int_equal(gate.most_held, DEPTH);
    assert_int_equal(gate.started_count, 64);
    for (uint32_t i = 0; i < 64; i++)
        assert_int_equal(gate.started[i], i * BLOCK);
    assert_memory_equal(s->target, s->model, FILE_BYTES);
    assert_int_equal(a[0].result, 20 * BLOCK);
    assert_int_equal(b.result, 40 * BLOCK);
    pst_io_stats stats;
    pst_io_get_stats(s->io, &stats);
    assert_int_equal(stats.bytes_read, FILE_BYTES);
    assert_int_equal(stats.pieces, 64);
    assert_int_equal(stats.bounced_bytes, 0);
    assert_true(stats.busy_ns > 0);
    uint64_t busy = stats.busy_ns;
    nanosleep(&(struct timespec){.tv_nsec = 3000000}, NULL);
    pst_io_get_stats(s->io, &stats);
    assert_int_equal(stats.busy_ns, busy); /* idle time does not count */
    assert_true(pst_io_batch_completed_ns(second) > 0);
    pst_io_batch_destroy(first);
    pst_io_batch_destroy(second);
}

/* Two batches finish independently; a batch in flight is not submitted again; a time limit is kept. */
static void test_wait(void **in)
{
    scene *s = *in;
    pst_io_batch *batch = make_batch(s, 1);
    pst_io_op op = read_op(s, 0, 4), other = read_op(s, 0, 1);
    pst_error err = {0};
    assert_int_equal(pst_io_wait(batch, 0, &err), 0); /* never submitted: nothing to wait for */
    assert_ok(pst_io_submit(batch, &op, 1, &err), &err);
    assert_int_equal(pst_io_wait(batch, 0, &err), 1);
    assert_int_equal(pst_io_wait(batch, 2000000, &err), 1);
    assert_int_equal(pst_io_submit(batch, &other, 1, &err), -EBUSY);
    gate_await_held(4);
    gate_allow(3);
    gate_await_held(1);
    assert_int_equal(pst_io_wait(batch, 1000000, &err), 1);
    gate_allow(1);
    assert_int_equal(pst_io_wait(batch, UINT64_MAX, &err), 0);
    assert_int_equal(pst_io_wait(batch, 0, &err), 0);
    /* and again, with the same batch: nothing on the way allocates */
    gate_allow_all(true);
    pst_heap_fail_after(0, 1);
    for (int i = 0; i < 20; i++) {
        int status = pst_io_submit(batch, &op, 1, &err);
        if (status >= 0)
            status = pst_io_wait(batch, UINT64_MAX, &err);
        if (status >= 0)
            status = pst_io_transfer(s->io, &other, &err);
        assert_ok(status, &err);
    }
    pst_heap_fail_after(-1, 0);
    pst_io_batch_destroy(batch);
}

static void test_cancel(void **in)
{
    scene *s = *in;
    pst_io_batch *batch = make_batch(s, 4), *after = make_batch(s, 1);
    pst_io_op ops[4] = {read_op(s, 0, 2), read_op(s, 2, 20), read_op(s, 0, 0), read_op(s, 22, 2)};
    pst_io_op next = read_op(s, 30, 2);
    pst_error err = {0};
    pst_io_cancel(batch); /* not in flight: nothing */
    assert_ok(pst_io_submit(batch, ops, 4, &err), &err);
    assert_ok(pst_io_submit(after, &next, 1, &err), &err);
    gate_await_held(DEPTH);
    pst_io_cancel(batch);
    pst_io_cancel(batch);
    assert_int_equal(pst_io_wait(batch, 0, &err), 1); /* what was started is still the kernel's */
    gate_allow_all(true);
    assert_int_equal(pst_io_wait(batch, UINT64_MAX, &err), PST_E_CANCELLED);
    assert_string_equal(err.path, pst_io_file_path(s->file));
    assert_int_equal(err.offset, DEPTH * BLOCK);
    assert_int_equal(ops[0].result, 2 * BLOCK);
    assert_int_equal(ops[1].result, PST_E_CANCELLED);
    assert_int_equal(ops[2].result, 0);
    assert_int_equal(ops[3].result, PST_E_CANCELLED);
    assert_memory_equal(s->target, s->model, 2 * BLOCK);
    assert_ok(pst_io_wait(after, UINT64_MAX, &err), &err);
    assert_memory_equal(s->target + 30 * BLOCK, s->model + 30 * BLOCK, 2 * BLOCK);
    assert_int_equal(gate.started_count, DEPTH + 2);
    /* The last batch of the list, and one in the middle. */
    gate_allow_all(false);
    pst_io_batch *middle = make_batch(s, 1);
    pst_io_op big = read_op(s, 0, 40), mid = read_op(s, 40, 1), end = read_op(s, 41, 1);
    assert_ok(pst_io_submit(batch, &big, 1, &err), &err);
    assert_ok(pst_io_submit(middle, &mid, 1, &err), &err);
    assert_ok(pst_io_submit(after, &end, 1, &err), &err);
    gate_await_held(DEPTH);
    pst_io_cancel(middle);
    assert_int_equal(pst_io_wait(middle, 0, &err), PST_E_CANCELLED);
    pst_io_cancel(after);
    assert_ok(pst_io_submit(middle, &mid, 1, &err), &err);
    gate_allow_all(true);
    assert_ok(pst_io_wait(batch, UINT64_MAX, &err), &err);
    assert_ok(pst_io_wait(middle, UINT64_MAX, &err), &err);
    assert_int_equal(pst_io_wait(after, UINT64_MAX, &err), PST_E_CANCELLED);
    pst_io_batch_destroy(middle);
    pst_io_batch_destroy(batch);
    pst_io_batch_destroy(after);
}

static void *open_gate_later(void *unused)
{
    (void)unused;
    nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    gate_allow_all(true);
    return NULL;
}

/* Destroying a batch, or closing the handle, waits for what is in flight, and the data is there. */
static void test_close_in_flight(void **in)
{
    scene *s = *in;
    pst_io_batch *batch = make_batch(s, 1);
    pst_io_op op = read_op(s, 0, 32), rest = read_op(s, 32, 32);
    pst_error err = {0};
    pthread_t thread;
    assert_ok(pst_io_submit(batch, &op, 1, &err), &err);
    assert_int_equal(pthread_create(&thread, NULL, open_gate_later, NULL), 0);
    pst_io_batch_destroy(batch);
    pthread_join(thread, NULL);
    assert_memory_equal(s->target, s->model, FILE_BYTES / 2);
    /* A handle of its own, so that the scene's stays open. */
    pst_io *io = test_open("gate", BLOCK, DEPTH, 1, false);
    pst_io_file *file;
    pst_io_batch *extra;
    uint32_t files = gate.files;
    assert_ok(pst_io_file_open(io, pst_io_file_path(s->file), PST_IO_OPEN_READ, &file, &err), &err);
    assert_ok(pst_io_batch_create(io, 1, &extra, &err), &err);
    gate_allow_all(false);
    rest.file = file;
    assert_ok(pst_io_submit(extra, &rest, 1, &err), &err);
    assert_int_equal(pthread_create(&thread, NULL, open_gate_later, NULL), 0);
    pst_io_close(io);
    pthread_join(thread, NULL);
    assert_int_equal(rest.result, FILE_BYTES / 2);
    assert_memory_equal(s->target, s->model, FILE_BYTES);
    /* What is left can be given back, and no more. */
    assert_int_equal(pst_io_wait(extra, 0, &err), 0);
    assert_int_equal(pst_io_submit(extra, &rest, 1, &err), PST_E_USAGE);
    pst_io_batch_destroy(extra);
    assert_ok(pst_io_file_close(file, &err), &err);
    gate.files = files; /* the closed queue took its slots along */
}

/* The rest of an operation that has met the end of the file, or failed, is not even tried. */
static void test_rest_is_dropped(void **in)
{
    scene *s = *in;
    pst_io_batch *batch = make_batch(s, 2);
    pst_io_op ops[2] = {read_op(s, 0, 40), read_op(s, 1, 2)};
    pst_error err = {0};
    ops[0].offset = FILE_BYTES;
    ops[0].may_be_short = true;
    assert_ok(pst_io_submit(batch, ops, 2, &err), &err);
    gate_await_held(DEPTH);
    gate_allow_all(true);
    assert_ok(pst_io_wait(batch, UINT64_MAX, &err), &err);
    assert_int_equal(ops[0].result, 0);
    assert_int_equal(ops[1].result, 2 * BLOCK);
    assert_int_equal(gate.started_count, DEPTH + 2);
    pst_io_batch_destroy(batch);
}

/* A queue that waits with room to spare starts new work at once. */
static void test_wake(void **in)
{
    scene *s = *in;
    pst_io_batch *first = make_batch(s, 1), *second = make_batch(s, 1);
    pst_io_op a = read_op(s, 0, 2), b = read_op(s, 2, 3);
    pst_error err = {0};
    for (int round = 0; round < 20; round++) {
        gate_allow_all(false);
        assert_ok(pst_io_submit(first, &a, 1, &err), &err);
        gate_await_held(2);
        if (round % 2 == 0) /* it has surely come to wait */
            nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
        assert_ok(pst_io_submit(second, &b, 1, &err), &err);
        gate_await_held(5);
        assert_ok(pst_io_register(s->io, s->target, BLOCK, &err), &err);
        pst_io_unregister(s->io, s->target);
        gate_allow_all(true);
        assert_ok(pst_io_wait(first, UINT64_MAX, &err), &err);
        assert_ok(pst_io_wait(second, UINT64_MAX, &err), &err);
    }
    pst_io_batch_destroy(first);
    pst_io_batch_destroy(second);
}

/* Registration reaches the engine, without stopping what is in flight, and is taken back. */
static void test_slots(void **in)
{
    scene *s = *in;
    pst_error err = {0};
    pst_io_batch *batch = make_batch(s, 1);
    pst_io_op op = read_op(s, 0, 16);
    assert_ok(pst_io_submit(batch, &op, 1, &err), &err);
    gate_await_held(DEPTH);
    gate_allow(1); /* a full queue looks at its orders when something comes back */
    assert_ok(pst_io_register(s->io, s->target, FILE_BYTES, &err), &err);
    assert_int_equal(gate.buffers, 1);
    assert_int_equal(pst_io_register(s->io, s->target + BLOCK, BLOCK, &err), PST_E_USAGE);
    assert_int_equal(pst_io_register(s->io, s->target - 1, 2, &err), PST_E_USAGE);
    assert_int_equal(pst_io_register(s->io, NULL, 2, &err), PST_E_USAGE);
    gate_allow_all(true);
    assert_ok(pst_io_wait(batch, UINT64_MAX, &err), &err);
    pst_io_unregister(s->io, s->target + BLOCK); /* nobody */
    assert_int_equal(gate.buffers, 1);
    pst_io_unregister(s->io, s->target);
    assert_int_equal(gate.buffers, 0);
    for (int i = 0; i < 64; i++) /* in falling order, to sort */
        assert_ok(pst_io_register(s->io, s->target + (63 - i) * BLOCK, BLOCK, &err), &err);
    assert_int_equal(pst_io_register(s->io, &err, sizeof err, &err), PST_E_USAGE);
    assert_ok(pst_io_submit(batch, &op, 1, &err), &err);
    assert_ok(pst_io_wait(batch, UINT64_MAX, &err), &err);
    for (int i = 0; i < 64; i++)
        pst_io_unregister(s->io, s->target + i * BLOCK);
    pst_io_batch_destroy(batch);
}

/* A file gets its slot when it has been used for long enough to make up for it, and only then. */
static void test_file_slots(void **in)
{
    scene *s = *in;
    pst_error err = {0};
    pst_io_file *file;
    pst_io_op op = read_op(s, 0, 16);
    gate_allow_all(true);
    for (uint32_t pieces = 0; pieces + 16 <= PST_IO_SLOT_AFTER; pieces += 16) {
        assert_ok(pst_io_transfer(s->io, &op, &err), &err);
        assert_int_equal(gate.files, 0);
    }
    assert_ok(pst_io_transfer(s->io, &op, &err), &err);
    assert_int_equal(gate.files, 1);
    assert_ok(pst_io_file_open(s->io, pst_io_file_path(s->file), PST_IO_OPEN_READ, &file, &err), &err);
    op.file = file;
    assert_ok(pst_io_transfer(s->io, &op, &err), &err);
    assert_ok(pst_io_file_close(file, &err), &err);
    assert_int_equal(gate.files, 1);
    assert_ok(pst_io_file_close(s->file, &err), &err);
    s->file = NULL;
    assert_int_equal(gate.files, 0);
}

/* Want of resources is waited out: one short sleep for all that was refused at once, not one each. */
static void test_refused_rounds(void **in)
{
    scene *s = *in;
    enum { ROUNDS = 40 };
    pst_error err = {0};
    pst_io_op op = read_op(s, 0, DEPTH);
    pst_fault_reset();
    pst_sys_replace(&pst_sys_fault);
    gate.refusals = ROUNDS;
    gate_allow_all(true);
    assert_ok(pst_io_transfer(s->io, &op, &err), &err);
    assert_int_equal(gate.refusals, 0);
    assert_int_equal(gate.started_count, DEPTH * (ROUNDS + 1));
    assert_memory_equal(s->target, s->model, DEPTH * BLOCK);
    int64_t sleeps = pst_fault_count(PST_FAULT_SLEEP);
    assert_true(sleeps > ROUNDS / 2 && sleeps <= ROUNDS);
    /* For ever: it ends as an error. */
    gate.refusals = UINT32_MAX;
    assert_int_equal(pst_io_transfer(s->io, &op, &err), -EAGAIN);
    gate.refusals = 0;
    assert_true(pst_fault_count(PST_FAULT_SLEEP) - sleeps <= 1000);
    pst_sys_replace(NULL);
}

static void test_register_engine(void **unused)
{
    (void)unused;
    static pst_io_engine other;
    pst_error err;
    assert_int_equal(pst_io_engine_register(NULL, &err), PST_E_USAGE);
    assert_int_equal(pst_io_engine_register(&gate_engine, &err), PST_E_USAGE); /* there already */
    other = gate_engine;
    other.name = "auto";
    assert_int_equal(pst_io_engine_register(&other, &err), PST_E_USAGE);
    other.name = "other";
    other.version++;
    assert_int_equal(pst_io_engine_register(&other, &err), PST_E_USAGE);
    other.version--;
    other.set_file = NULL;
    assert_int_equal(pst_io_engine_register(&other, &err), PST_E_USAGE);
    other.set_file = gate_engine.set_file;
    other.wake = NULL;
    assert_int_equal(pst_io_engine_register(&other, &err), PST_E_USAGE);
}

/* ---- closing while another thread is still in its submission ---- */

/* An engine for several workers that holds everything back until `open`; its first wake after that was armed takes so
 * long that the batch is done, and the handle all but closed, before the second. */
static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool open, armed, stalled, closed;
    uint32_t waiting; /* queues in a reap that waits */
} pair = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

typedef struct pair_queue {
    pst_io_request *held[DEPTH];
    uint32_t count;
    bool woken;
} pair_queue;

static int pair_open(const pst_io_engine *self, const pst_io_queue_settings *settings, void **out, pst_error *err)
{
    (void)self, (void)settings, (void)err;
    *out = calloc(1, sizeof(pair_queue));
    return 0;
}

static void pair_submit(void *queue, pst_io_request *const *requests, uint32_t count)
{
    pair_queue *q = queue;
    for (uint32_t i = 0; i < count; i++)
        q->held[q->count++] = requests[i];
}

static uint32_t pair_reap(void *queue, pst_io_request **done, uint32_t max, bool wait)
{
    pair_queue *q = queue;
    uint32_t count = 0;
    pthread_mutex_lock(&pair.lock);
    pair.waiting += wait;
    pthread_cond_broadcast(&pair.changed);
    while (wait && !q->woken && !(pair.open && q->count > 0))
        pthread_cond_wait(&pair.changed, &pair.lock);
    pair.waiting -= wait;
    q->woken = false;
    for (; pair.open && count < max && q->count > 0; count++) {
        done[count] = q->held[--q->count];
        done[count]->result = done[count]->bytes;
    }
    pthread_mutex_unlock(&pair.lock);
    return count;
}

static void pair_wake(void *queue)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 1; /* where closing waits for this, it ends by itself */
    pthread_mutex_lock(&pair.lock);
    ((pair_queue *)queue)->woken = true;
    if (pair.armed) {
        pair.armed = false;
        pair.open = pair.stalled = true;
        pthread_cond_broadcast(&pair.changed);
        for (int late = 0; !pair.closed && late == 0;)
            late = pthread_cond_timedwait(&pair.changed, &pair.lock, &until);
    }
    pthread_cond_broadcast(&pair.changed);
    pthread_mutex_unlock(&pair.lock);
}

static void *close_when_stalled(void *io)
{
    pthread_mutex_lock(&pair.lock);
    while (!pair.stalled)
        pthread_cond_wait(&pair.changed, &pair.lock);
    pthread_mutex_unlock(&pair.lock);
    pst_io_close(io);
    pthread_mutex_lock(&pair.lock);
    pair.closed = true;
    pthread_cond_broadcast(&pair.changed);
    pthread_mutex_unlock(&pair.lock);
    return NULL;
}

static void test_close_during_submit(void **in)
{
    scene *s = *in;
    static const pst_io_engine engine = {.version = PST_IO_ENGINE_VERSION,
                                         .struct_size = sizeof engine,
                                         .name = "pair",
                                         .open_queue = pair_open,
                                         .close_queue = free,
                                         .submit = pair_submit,
                                         .reap = pair_reap,
                                         .wake = pair_wake};
    pst_io_options options = {.struct_size = sizeof options,
                              .engine_table = &engine,
                              .block_size = BLOCK,
                              .queue_depth = DEPTH,
                              .workers = 2};
    pst_error err = {0};
    pst_io *io;
    pst_io_file *file;
    pst_io_batch *first, *second;
    pthread_t thread;
    assert_ok(pst_io_open(&options, &io, &err), &err);
    assert_ok(pst_io_file_open(io, pst_io_file_path(s->file), PST_IO_OPEN_READ, &file, &err), &err);
    assert_ok(pst_io_batch_create(io, 1, &first, &err), &err);
    assert_ok(pst_io_batch_create(io, 1, &second, &err), &err);
    pst_io_op a = read_op(s, 0, 2), b = read_op(s, 2, 2);
    a.file = b.file = file;
    assert_ok(pst_io_submit(first, &a, 1, &err), &err);
    pthread_mutex_lock(&pair.lock);
    while (pair.waiting < 2) /* both listen */
        pthread_cond_wait(&pair.changed, &pair.lock);
    pair.armed = true;
    pthread_mutex_unlock(&pair.lock);
    assert_int_equal(pthread_create(&thread, NULL, close_when_stalled, io), 0);
    assert_ok(pst_io_submit(second, &b, 1, &err), &err); /* wakes both */
    pthread_join(thread, NULL);
    assert_true(pair.stalled);
    assert_ok(pst_io_wait(first, 0, &err), &err);
    assert_ok(pst_io_wait(second, 0, &err), &err);
    pst_io_batch_destroy(second);
    pst_io_batch_destroy(first);
    assert_ok(pst_io_file_close(file, &err), &err);
}

int main(void)
{
    pst_error err = {0};
    gate.random = test_seed();
    if (pst_io_engine_register(&gate_engine, &err) < 0)
        return 1;
#define IN_SCENE(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        IN_SCENE(test_depth_and_order),
        IN_SCENE(test_wait),
        IN_SCENE(test_cancel),
        IN_SCENE(test_close_in_flight),
        IN_SCENE(test_close_during_submit),
        IN_SCENE(test_wake),
        IN_SCENE(test_rest_is_dropped),
        IN_SCENE(test_slots),
        IN_SCENE(test_file_slots),
        IN_SCENE(test_refused_rounds),
        cmocka_unit_test(test_register_engine),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
