/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the library does around an engine, with an engine of the test's own: it holds requests back until the
 * test lets them go, one by one and in random order. So order, depth, cancelling, waiting and closing are
 * seen as they are, not as a drive happens to be fast.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/heap.h"
#include "os/sys_fault.h"
#include "penstock/io_engine.h"
#include "unit/io/io_test.h"

enum { BLOCK = 4096, HELD_MAX = 64, MAX_LOG = 4096 };

/* One queue at a time is enough: the handles of this test have one worker. */
static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    pst_io_request *held[HELD_MAX];
    uint32_t held_count, most_held, allowance; /* requests that may go */
    bool woken, free_running;
    uint64_t started[MAX_LOG]; /* offsets in order of submission */
    uint32_t started_count;
    uint32_t files, buffers; /* slots in use */
    uint32_t refusals;       /* rounds in which all that is held comes back with EAGAIN */
    uint64_t random;
} gate = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static int gate_open(const pst_io_engine *self, const pst_io_queue_settings *settings, void **queue, pst_error *err)
{
    (void)self;
    (void)err;
    assert_true(settings->depth <= HELD_MAX && settings->struct_size == sizeof *settings);
    *queue = &gate;
    return 0;
}

static void gate_close(void *queue)
{
    (void)queue;
    assert_int_equal(gate.held_count, 0);
}

static void gate_submit(void *queue, pst_io_request *const *requests, uint32_t count)
{
    (void)queue;
    pthread_mutex_lock(&gate.lock);
    for (uint32_t i = 0; i < count; i++) {
        assert_true(gate.held_count < HELD_MAX);
        gate.held[gate.held_count++] = requests[i];
        if (gate.started_count < MAX_LOG)
            gate.started[gate.started_count++] = requests[i]->offset;
    }
    if (gate.held_count > gate.most_held)
        gate.most_held = gate.held_count;
    pthread_cond_broadcast(&gate.changed);
    pthread_mutex_unlock(&gate.lock);
}

static uint32_t gate_reap(void *queue, pst_io_request **done, uint32_t max, bool wait)
{
    (void)queue;
    uint32_t count = 0;
    pthread_mutex_lock(&gate.lock);
    while (wait && !gate.woken && (gate.held_count == 0 || (gate.allowance == 0 && !gate.free_running)))
        pthread_cond_wait(&gate.changed, &gate.lock);
    gate.woken = false;
    if (gate.refusals > 0 && gate.held_count > 0) {
        gate.refusals--;
        while (count < max && gate.held_count > 0) {
            done[count] = gate.held[--gate.held_count];
            done[count++]->result = -EAGAIN;
        }
    }
    while (count < max && gate.held_count > 0 && (gate.allowance > 0 || gate.free_running)) {
        uint32_t pick = (uint32_t)test_below(&gate.random, gate.held_count);
        pst_io_request *r = gate.held[pick];
        gate.held[pick] = gate.held[--gate.held_count];
        gate.allowance -= gate.allowance > 0;
        r->result = r->write ? pwrite(r->fd, r->address, r->bytes, (off_t)r->offset)
                             : pread(r->fd, r->address, r->bytes, (off_t)r->offset);
        if (r->result < 0)
            r->result = -errno;
        done[count++] = r;
        if (test_below(&gate.random, 3) == 0)
            break;
    }
    pthread_cond_broadcast(&gate.changed);
    pthread_mutex_unlock(&gate.lock);
    return count;
}

static void gate_wake(void *queue)
{
    (void)queue;
    pthread_mutex_lock(&gate.lock);
    gate.woken = true;
    pthread_cond_broadcast(&gate.changed);
    pthread_mutex_unlock(&gate.lock);
}

static int gate_set_file(void *queue, uint32_t slot, int fd)
{
    (void)queue, (void)slot;
    gate.files += fd >= 0 ? 1u : -1u;
    return 0;
}

static int gate_set_buffer(void *queue, uint32_t slot, void *memory, uint64_t bytes)
{
    (void)queue, (void)slot, (void)bytes;
    gate.buffers += memory != NULL ? 1u : -1u;
    return 0;
}

static pst_io_engine gate_engine = {
    .version = PST_IO_ENGINE_VERSION,
    .struct_size = sizeof(pst_io_engine),
    .name = "gate",
    .flags = PST_IO_ENGINE_FILE_SLOTS | PST_IO_ENGINE_BUFFER_SLOTS,
    .open_queue = gate_open,
    .close_queue = gate_close,
    .submit = gate_submit,
    .reap = gate_reap,
    .wake = gate_wake,
    .set_file = gate_set_file,
    .set_buffer = gate_set_buffer,
};

/* Lets `count` requests go. */
static void allow(uint32_t count)
{
    pthread_mutex_lock(&gate.lock);
    gate.allowance += count;
    pthread_cond_broadcast(&gate.changed);
    pthread_mutex_unlock(&gate.lock);
}

static void allow_all(bool all)
{
    pthread_mutex_lock(&gate.lock);
    gate.free_running = all;
    gate.allowance = 0;
    pthread_cond_broadcast(&gate.changed);
    pthread_mutex_unlock(&gate.lock);
}

/* Waits until the engine holds `count` requests. */
static void await_held(uint32_t count)
{
    pthread_mutex_lock(&gate.lock);
    while (gate.held_count != count)
        pthread_cond_wait(&gate.changed, &gate.lock);
    pthread_mutex_unlock(&gate.lock);
}

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
    allow_all(false);
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
    await_held(DEPTH);
    assert_ok(pst_io_submit(second, &b, 1, &err), &err);
    for (int i = 0; i < 56; i++) { /* one goes, one comes */
        allow(1);
        pthread_mutex_lock(&gate.lock);
        while (gate.allowance > 0 || gate.held_count != DEPTH)
            pthread_cond_wait(&gate.changed, &gate.lock);
        pthread_mutex_unlock(&gate.lock);
    }
    allow_all(true);
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
    await_held(4);
    allow(3);
    await_held(1);
    assert_int_equal(pst_io_wait(batch, 1000000, &err), 1);
    allow(1);
    assert_int_equal(pst_io_wait(batch, UINT64_MAX, &err), 0);
    assert_int_equal(pst_io_wait(batch, 0, &err), 0);
    /* and again, with the same batch: nothing on the way allocates */
    allow_all(true);
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
    await_held(DEPTH);
    pst_io_cancel(batch);
    pst_io_cancel(batch);
    assert_int_equal(pst_io_wait(batch, 0, &err), 1); /* what was started is still the kernel's */
    allow_all(true);
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
    allow_all(false);
    pst_io_batch *middle = make_batch(s, 1);
    pst_io_op big = read_op(s, 0, 40), mid = read_op(s, 40, 1), end = read_op(s, 41, 1);
    assert_ok(pst_io_submit(batch, &big, 1, &err), &err);
    assert_ok(pst_io_submit(middle, &mid, 1, &err), &err);
    assert_ok(pst_io_submit(after, &end, 1, &err), &err);
    await_held(DEPTH);
    pst_io_cancel(middle);
    assert_int_equal(pst_io_wait(middle, 0, &err), PST_E_CANCELLED);
    pst_io_cancel(after);
    assert_ok(pst_io_submit(middle, &mid, 1, &err), &err);
    allow_all(true);
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
    allow_all(true);
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
    allow_all(false);
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
    await_held(DEPTH);
    allow_all(true);
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
        allow_all(false);
        assert_ok(pst_io_submit(first, &a, 1, &err), &err);
        await_held(2);
        if (round % 2 == 0) /* it has surely come to wait */
            nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
        assert_ok(pst_io_submit(second, &b, 1, &err), &err);
        await_held(5);
        assert_ok(pst_io_register(s->io, s->target, BLOCK, &err), &err);
        pst_io_unregister(s->io, s->target);
        allow_all(true);
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
    uint32_t files = gate.files;
    assert_true(files >= 1);
    assert_ok(pst_io_submit(batch, &op, 1, &err), &err);
    await_held(DEPTH);
    allow(1); /* a full queue looks at its orders when something comes back */
    assert_ok(pst_io_register(s->io, s->target, FILE_BYTES, &err), &err);
    assert_int_equal(gate.buffers, 1);
    assert_int_equal(pst_io_register(s->io, s->target + BLOCK, BLOCK, &err), PST_E_USAGE);
    assert_int_equal(pst_io_register(s->io, s->target - 1, 2, &err), PST_E_USAGE);
    assert_int_equal(pst_io_register(s->io, NULL, 2, &err), PST_E_USAGE);
    allow_all(true);
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
    allow_all(true);
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
    other.set_file = gate_set_file;
    other.wake = NULL;
    assert_int_equal(pst_io_engine_register(&other, &err), PST_E_USAGE);
}

int main(void)
{
    pst_error err = {0};
    gate.random = test_seed();
    if (pst_io_engine_register(&gate_engine, &err) < 0)
        return 1;
#define IN_SCENE(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        IN_SCENE(test_depth_and_order), IN_SCENE(test_wait),           IN_SCENE(test_cancel),
        IN_SCENE(test_close_in_flight), IN_SCENE(test_wake),           IN_SCENE(test_rest_is_dropped),
        IN_SCENE(test_slots),           IN_SCENE(test_refused_rounds), cmocka_unit_test(test_register_engine),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
