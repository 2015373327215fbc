/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every engine by itself, below the library: the same cases for each, called as a worker thread would. What an engine
 * cannot do (wake a synchronous one, slots where there are no tables) is passed over by its flags. Then what system
 * calls that fail make of it, each where it has its own way of failing.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/heap.h"
#include "io/engine.h"
#include "os/clock.h"
#include "os/sys_fault.h"
#include "unit/io/io_test.h"

enum { DEPTH = 16, BLOCK = 8192, BYTES = DEPTH * BLOCK, KEY = 99, UNTOUCHED = 0xa5 };

static const char *const names[] = {"io_uring", "libaio", "threads", "null"};
enum { ENGINES = sizeof names / sizeof names[0] };

/* An engine's queue, a file of known content behind O_DIRECT where that works, and memory for a whole queue. */
typedef struct rig {
    const pst_io_engine *engine;
    void *queue;
    uint32_t depth;
    int fd;
    uint8_t *memory, *model;
    pst_io_request requests[DEPTH];
    pst_io_request *list[DEPTH];
} rig;

static char *folder;
static rig r;

static unsigned open_descriptors(void)
{
    unsigned count = 0;
    DIR *entries = opendir("/proc/self/fd");
    if (entries == NULL)
        return 0;
    while (readdir(entries) != NULL)
        count++;
    closedir(entries);
    return count;
}

static bool has_flag(uint32_t flag)
{
    return (r.engine->flags & flag) != 0;
}

static bool moves_data(void)
{
    return !has_flag(PST_IO_ENGINE_NO_DATA);
}

/* Opens a queue of engine n; false where it does not work. The fault table is in place and quiet. */
static bool rig_up(unsigned n)
{
    r.engine = pst_io_engine_find(names[n]);
    assert_non_null(r.engine);
    if (moves_data() && !test_have_engine(names[n]))
        return false;
    r.depth = has_flag(PST_IO_ENGINE_SYNCHRONOUS) ? 1 : DEPTH;
    const char *path = test_path(folder, "file");
    test_write_file(path, r.model, BYTES);
    r.fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
    if (r.fd < 0)
        r.fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(r.fd >= 0);
    memset(r.memory, UNTOUCHED, BYTES);
    pst_fault_reset();
    pst_io_queue_settings settings = {
        .struct_size = sizeof settings, .depth = r.depth, .file_slots = 4, .buffer_slots = 4};
    pst_error err = {0};
    assert_ok(r.engine->open_queue(r.engine, &settings, &r.queue, &err), &err);
    for (uint32_t i = 0; i < DEPTH; i++) {
        r.requests[i] = (pst_io_request){.address = r.memory + (size_t)i * BLOCK,
                                         .offset = (uint64_t)i * BLOCK,
                                         .bytes = BLOCK,
                                         .fd = r.fd,
                                         .file_slot = -1,
                                         .buffer_slot = -1,
                                         .result = INT64_MIN};
        r.list[i] = &r.requests[i];
    }
    return true;
}

static void rig_down(void)
{
    pst_fault_reset();
    r.engine->close_queue(r.queue);
    close(r.fd);
}

/* Hands `count` requests from list[first] on to the engine and takes them back. Synchronous ones take one at a time. */
static void carry_out(uint32_t first, uint32_t count)
{
    pst_io_request *done[DEPTH];
    for (uint32_t at = 0; at < count;) {
        uint32_t now = count - at < r.depth ? count - at : r.depth, back = 0;
        r.engine->submit(r.queue, r.list + first + at, now);
        while (back < now) {
            uint32_t got = r.engine->reap(r.queue, done + back, DEPTH - back, true);
            assert_true(got > 0 && got <= now - back); /* nobody wakes */
            back += got;
        }
        for (uint32_t i = 0; i < now; i++) { /* each once */
            uint32_t seen = 0;
            for (uint32_t d = 0; d < back; d++)
                seen += done[d] == r.list[first + at + i];
            assert_int_equal(seen, 1);
        }
        at += now;
    }
}

static int64_t total_result(uint32_t count)
{
    int64_t total = 0;
    for (uint32_t i = 0; i < count; i++)
        total += r.requests[i].result;
    return total;
}

static void assert_untouched(const uint8_t *memory, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        assert_int_equal(memory[i], UNTOUCHED);
}

/* What lies where `count` reads went. */
static void assert_read(uint32_t count)
{
    if (moves_data())
        assert_memory_equal(r.memory, r.model, (size_t)count * BLOCK);
    else
        assert_untouched(r.memory, (size_t)count * BLOCK);
}

/* ---- the cases that hold for every engine ---- */

static void case_open_and_close(void)
{
    pst_io_queue_settings settings = {.struct_size = sizeof settings, .depth = r.depth};
    pst_error err = {0};
    unsigned descriptors = open_descriptors();
    int64_t alive = pst_heap_live_count();
    for (int i = 0; i < 20; i++) {
        void *other;
        settings.file_slots = settings.buffer_slots = i % 2 == 0 ? 0 : 8;
        assert_ok(r.engine->open_queue(r.engine, &settings, &other, &err), &err);
        pst_io_request *none;
        assert_int_equal(r.engine->reap(other, &none, 1, false), 0);
        r.engine->close_queue(other);
    }
    assert_int_equal(open_descriptors(), descriptors);
    assert_int_equal(pst_heap_live_count(), alive);
}

static void case_out_of_memory(void)
{
    pst_io_queue_settings settings = {.struct_size = sizeof settings, .depth = r.depth};
    int64_t alive = pst_heap_live_count();
    unsigned descriptors = open_descriptors();
    for (int64_t nth = 0;; nth++) {
        pst_error err = {0};
        void *other = &settings;
        pst_heap_fail_after(nth, 0);
        int status = r.engine->open_queue(r.engine, &settings, &other, &err);
        pst_heap_fail_after(-1, 0);
        if (status >= 0) {
            assert_true(nth > 0);
            r.engine->close_queue(other);
            break;
        }
        assert_int_equal(status, -ENOMEM);
        assert_int_equal(err.code, -ENOMEM);
        assert_ptr_equal(other, &settings);
    }
    assert_int_equal(pst_heap_live_count(), alive);
    assert_int_equal(open_descriptors(), descriptors);
}

static void case_one(void)
{
    carry_out(3, 1);
    assert_int_equal(r.requests[3].result, BLOCK);
    assert_untouched(r.memory, 3 * BLOCK);
    assert_untouched(r.memory + 4 * BLOCK, BYTES - 4 * BLOCK);
    if (moves_data())
        assert_memory_equal(r.memory + 3 * BLOCK, r.model + 3 * BLOCK, BLOCK);
}

static void case_full_queue(void)
{
    for (int round = 0; round < 20; round++) {
        memset(r.memory, UNTOUCHED, BYTES);
        carry_out(0, DEPTH);
        assert_int_equal(total_result(DEPTH), BYTES);
        assert_read(DEPTH);
    }
}

/* A whole queue, handed back one by one. */
static void case_one_by_one(void)
{
    pst_io_request *done;
    r.engine->submit(r.queue, r.list, r.depth);
    for (uint32_t i = 0; i < r.depth; i++)
        assert_int_equal(r.engine->reap(r.queue, &done, 1, true), 1);
    assert_int_equal(r.engine->reap(r.queue, &done, 1, false), 0);
    assert_int_equal(total_result(r.depth), (int64_t)r.depth * BLOCK);
    assert_read(r.depth);
}

/* Whoever only asks, and never waits, gets them too. */
static void case_polling(void)
{
    pst_io_request *done[DEPTH];
    uint32_t back = 0;
    uint64_t start = pst_clock_ns();
    r.engine->submit(r.queue, r.list, r.depth);
    while (back < r.depth) {
        back += r.engine->reap(r.queue, done + back, r.depth - back, false);
        assert_true(pst_clock_ns() - start < 10000000000u);
        pst_sys_real.sleep_ns(100000);
    }
    assert_int_equal(total_result(r.depth), (int64_t)r.depth * BLOCK);
    assert_read(r.depth);
}

static void case_write(void)
{
    uint8_t *content = malloc(BYTES);
    test_fill(content, BYTES, KEY + 1, 0);
    memcpy(r.memory, content, BYTES);
    for (uint32_t i = 0; i < DEPTH; i++)
        r.requests[i].write = true;
    carry_out(0, DEPTH);
    assert_int_equal(total_result(DEPTH), BYTES);
    assert_memory_equal(r.memory, content, BYTES);
    uint64_t bytes;
    uint8_t *file = test_read_file(test_path(folder, "file"), &bytes);
    assert_int_equal(bytes, BYTES);
    assert_memory_equal(file, moves_data() ? content : r.model, BYTES);
    free(file);
    free(content);
}

/* The end of the file, and a descriptor that is none. */
static void case_bad_requests(void)
{
    if (!moves_data())
        return;
    r.requests[0].offset = BYTES;
    r.requests[1].offset = BYTES - BLOCK / 2;
    r.requests[2].fd = -1;
    carry_out(0, 4);
    assert_int_equal(r.requests[0].result, 0);
    assert_int_equal(r.requests[1].result, BLOCK / 2);
    assert_int_equal(r.requests[2].result, -EBADF);
    assert_int_equal(r.requests[3].result, BLOCK);
}

/* One transfer of many fails, or comes back short: it alone. */
static void case_spoilt_results(void)
{
    for (int shorten = 0; shorten < 2; shorten++) {
        pst_fault_reset();
        if (shorten)
            pst_fault_shorten(PST_FAULT_READ, 5, 1, 512);
        else
            pst_fault_fail(PST_FAULT_READ, 5, 1, EIO);
        carry_out(0, DEPTH);
        unsigned struck = 0;
        for (uint32_t i = 0; i < DEPTH; i++) {
            struck += r.requests[i].result == (shorten ? 512 : -EIO);
            assert_true(r.requests[i].result == BLOCK || r.requests[i].result == (shorten ? 512 : -EIO));
        }
        assert_int_equal(struck, 1);
        assert_int_equal(pst_fault_count(PST_FAULT_READ), DEPTH);
    }
}

typedef struct waker {
    pthread_t thread;
    uint64_t delay_ns;
    uint32_t times;
    atomic_bool called;
} waker;

static void *waker_main(void *argument)
{
    waker *w = argument;
    for (uint32_t i = 0; i < w->times; i++) {
        pst_sys_real.sleep_ns(w->delay_ns);
        atomic_store(&w->called, true);
        r.engine->wake(r.queue);
    }
    return NULL;
}

static void case_wake(void)
{
    pst_io_request *done[DEPTH];
    if (r.engine->wake == NULL)
        return;
    for (int round = 0; round < 3; round++) {
        waker w = {.delay_ns = 20000000, .times = 1};
        assert_int_equal(pthread_create(&w.thread, NULL, waker_main, &w), 0);
        assert_int_equal(r.engine->reap(r.queue, done, DEPTH, true), 0);
        assert_true(atomic_load(&w.called)); /* it was the wake that ended the wait */
        pthread_join(w.thread, NULL);
        /* Before the wait: not lost, and several are as good as one. */
        for (int i = 0; i <= round; i++)
            r.engine->wake(r.queue);
        uint64_t before = pst_clock_ns();
        assert_int_equal(r.engine->reap(r.queue, done, DEPTH, true), 0);
        assert_true(pst_clock_ns() - before < 1000000000u);
        carry_out(0, DEPTH);
    }
}

/* Wakes from another thread while transfers come and go: nothing is lost, and nothing comes twice. */
static void case_wakes_between(void)
{
    enum { ROUNDS = 300 };
    if (r.engine->wake == NULL)
        return;
    waker w = {.delay_ns = 10000, .times = ROUNDS};
    assert_int_equal(pthread_create(&w.thread, NULL, waker_main, &w), 0);
    for (int round = 0; round < ROUNDS; round++) {
        pst_io_request *done[DEPTH];
        uint32_t back = 0, count = 1 + (uint32_t)round % DEPTH;
        for (uint32_t i = 0; i < count; i++)
            r.requests[i].result = INT64_MIN;
        r.engine->submit(r.queue, r.list, count);
        while (back < count)
            back += r.engine->reap(r.queue, done, DEPTH, true);
        assert_int_equal(back, count);
        assert_int_equal(total_result(count), (int64_t)count * BLOCK);
    }
    pthread_join(w.thread, NULL);
}

static void case_slots(void)
{
    if (!has_flag(PST_IO_ENGINE_FILE_SLOTS) || !has_flag(PST_IO_ENGINE_BUFFER_SLOTS))
        return;
    bool file = r.engine->set_file(r.queue, 2, r.fd) >= 0;
    bool buffer = r.engine->set_buffer(r.queue, 1, r.memory, BYTES) >= 0; /* RLIMIT_MEMLOCK, old kernels */
    for (uint32_t i = 0; i < DEPTH; i++) {
        r.requests[i].file_slot = file && i % 3 != 0 ? 2 : -1;
        r.requests[i].buffer_slot = buffer && i % 2 != 0 ? 1 : -1;
    }
    carry_out(0, DEPTH);
    assert_int_equal(total_result(DEPTH), BYTES);
    assert_read(DEPTH);
    if (file)
        assert_true(r.engine->set_file(r.queue, 2, -1) >= 0);
    if (buffer)
        assert_true(r.engine->set_buffer(r.queue, 1, NULL, 0) >= 0);
    /* A slot that is empty again. */
    if (file) {
        r.requests[1].buffer_slot = -1;
        carry_out(1, 1);
        assert_int_equal(r.requests[1].result, -EBADF);
    }
}

/* A queue that is never empty, for long enough that several completions are waited for at a time. */
static void case_steady(void)
{
    enum { TURNS = 600 };
    uint32_t submitted = r.depth, back = 0;
    int64_t total = 0;
    r.engine->submit(r.queue, r.list, r.depth);
    while (back < TURNS) {
        pst_io_request *done[DEPTH];
        uint32_t got = r.engine->reap(r.queue, done, DEPTH, true);
        assert_true(got > 0);
        for (uint32_t i = 0; i < got; i++)
            total += done[i]->result;
        back += got;
        uint32_t more = got < TURNS - submitted ? got : TURNS - submitted;
        if (more > 0)
            r.engine->submit(r.queue, done, more);
        submitted += more;
    }
    assert_int_equal(back, TURNS);
    assert_int_equal(total, (int64_t)TURNS * BLOCK);
    assert_read(r.depth);
}

static void (*const cases[])(void) = {
    case_steady,        case_open_and_close, case_out_of_memory, case_one,          case_full_queue,
    case_one_by_one,    case_polling,        case_write,         case_bad_requests, case_wake,
    case_wakes_between, case_spoilt_results, case_slots,
};

static void test_every_engine(void **unused)
{
    (void)unused;
    for (unsigned n = 0; n < ENGINES; n++) {
        for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
            if (!rig_up(n))
                break;
            cases[i]();
            rig_down();
        }
    }
}

static void test_null_order(void **unused)
{
    (void)unused;
    enum { EARLY = 7 };
    pst_io_request *done[DEPTH];
    assert_true(rig_up(3));
    r.engine->submit(r.queue, r.list, DEPTH);
    for (uint32_t turn = 0; turn < 5; turn++) {
        assert_int_equal(r.engine->reap(r.queue, done, EARLY, true), EARLY);
        assert_memory_equal(done, r.list, EARLY * sizeof done[0]);
        r.engine->submit(r.queue, r.list, EARLY);
        assert_int_equal(r.engine->reap(r.queue, done, DEPTH, false), DEPTH);
        assert_memory_equal(done, r.list + EARLY, (DEPTH - EARLY) * sizeof done[0]);
        assert_memory_equal(done + DEPTH - EARLY, r.list, EARLY * sizeof done[0]);
        r.engine->submit(r.queue, r.list, DEPTH);
    }
    assert_int_equal(r.engine->reap(r.queue, done, DEPTH, true), DEPTH);
    rig_down();
}

/* Most of a full queue is stuck, here on a pipe that nobody writes to: the others come back all the same. Only io_uring
 * takes a read that waits; others would wait at submission. */
static void test_stuck_queue(void **unused)
{
    (void)unused;
    enum { STUCK = DEPTH - 2 };
    pst_io_request *done[DEPTH];
    int ends[2];
    if (!rig_up(0))
        return;
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    for (uint32_t i = 0; i < STUCK; i++)
        r.requests[i].fd = ends[0];
    r.engine->submit(r.queue, r.list, DEPTH);
    for (uint32_t back = 0; back < DEPTH - STUCK;)
        back += r.engine->reap(r.queue, done, DEPTH, true);
    for (uint32_t i = STUCK; i < DEPTH; i++)
        assert_int_equal(r.requests[i].result, BLOCK);
    assert_int_equal(close(ends[1]), 0); /* the end of the file for all that wait */
    for (uint32_t back = 0; back < STUCK;)
        back += r.engine->reap(r.queue, done, DEPTH, true);
    assert_int_equal(total_result(STUCK), 0);
    close(ends[0]);
    rig_down();
}

/* ---- engines that cannot work here say so at opening ---- */

typedef struct refusal {
    unsigned engine;
    pst_fault_kind kind;
    int error;
    const char *words; /* part of the message */
} refusal;

static void test_refusals(void **unused)
{
    (void)unused;
    static const refusal refusals[] = {
        {0, PST_FAULT_URING_INIT, ENOSYS, "kernel"},
        {0, PST_FAULT_URING_INIT, EPERM, "kernel.io_uring_disabled"},
        {0, PST_FAULT_URING_INIT, ENOMEM, "RLIMIT_MEMLOCK"},
        {0, PST_FAULT_URING_INIT, EMFILE, "io_uring"},
        {0, PST_FAULT_URING_PROBE, ENOSYS, "io_uring"},
        {0, PST_FAULT_URING_ENTER, EPERM, "io_uring"},
        {0, PST_FAULT_EVENTFD, EMFILE, "io_uring"},
        {1, PST_FAULT_AIO_SETUP, EAGAIN, "fs.aio-max-nr"},
        {1, PST_FAULT_AIO_SETUP, ENOSYS, "kernel"},
        {1, PST_FAULT_AIO_SETUP, EPERM, "libaio"},
        {1, PST_FAULT_AIO_SUBMIT, EPERM, "libaio"},
        {1, PST_FAULT_AIO_SUBMIT, EAGAIN, "libaio"},
        {1, PST_FAULT_AIO_GETEVENTS, ENOSYS, "libaio"},
        {1, PST_FAULT_OPEN, ENOENT, "cannot open"},
    };
    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
        const refusal *f = &refusals[i];
        if (!test_have_engine(names[f->engine]))
            continue;
        const pst_io_engine *engine = pst_io_engine_find(names[f->engine]);
        pst_io_queue_settings settings = {.struct_size = sizeof settings, .depth = DEPTH};
        pst_error err = {0};
        void *queue = &settings;
        int64_t alive = pst_heap_live_count();
        unsigned descriptors = open_descriptors();
        pst_fault_reset();
        pst_fault_fail(f->kind, 0, INT64_MAX, f->error);
        assert_int_equal(engine->open_queue(engine, &settings, &queue, &err), -f->error);
        assert_int_equal(err.code, -f->error);
        if (strstr(err.message, f->words) == NULL || strstr(err.message, strerror(f->error)) == NULL)
            fail_msg("%s: \"%s\" lacks \"%s\" or the cause", pst_fault_name(f->kind), err.message, f->words);
        assert_ptr_equal(queue, &settings);
        pst_fault_reset();
        assert_int_equal(pst_heap_live_count(), alive);
        assert_int_equal(open_descriptors(), descriptors);
    }
}

/* Tables that do not come about are missed by nobody but the speed. */
static void test_no_tables(void **unused)
{
    (void)unused;
    if (!test_have_engine("io_uring"))
        return;
    for (int kind = PST_FAULT_URING_FILES; kind <= PST_FAULT_URING_BUFFERS; kind++) {
        assert_true(rig_up(0));
        pst_io_queue_settings settings = {
            .struct_size = sizeof settings, .depth = r.depth, .file_slots = 4, .buffer_slots = 4};
        pst_error err = {0};
        r.engine->close_queue(r.queue);
        pst_fault_fail((pst_fault_kind)kind, 0, INT64_MAX, ENOMEM);
        assert_ok(r.engine->open_queue(r.engine, &settings, &r.queue, &err), &err);
        bool file = r.engine->set_file(r.queue, 0, r.fd) >= 0;
        bool buffer = r.engine->set_buffer(r.queue, 0, r.memory, BYTES) >= 0;
        assert_false(kind == PST_FAULT_URING_FILES ? file : buffer);
        carry_out(0, DEPTH);
        assert_int_equal(total_result(DEPTH), BYTES);
        assert_read(DEPTH);
        rig_down();
    }
}

/* ---- calls that fail later ---- */

/* The system call that starts transfers fails once, at the nth of its calls, and then works again: every request comes
 * back once, whole or with that error. */
static void test_submission_fails(void **unused)
{
    (void)unused;
    static const int errors[] = {EAGAIN, EINTR, ENOMEM, EINVAL, EBADF, EBUSY};
    static const pst_fault_kind kinds[] = {PST_FAULT_URING_ENTER, PST_FAULT_AIO_SUBMIT};
    for (unsigned n = 0; n < 2; n++) {
        for (size_t e = 0; e < sizeof errors / sizeof errors[0]; e++) {
            for (int64_t nth = 0; nth < 4 && rig_up(n); nth++) {
                uint32_t whole = 0;
                pst_fault_fail(kinds[n], nth, 1, errors[e]);
                carry_out(0, DEPTH / 2);
                carry_out(DEPTH / 2, DEPTH / 2);
                for (uint32_t i = 0; i < DEPTH; i++) {
                    int64_t result = r.requests[i].result;
                    bool refused = result == -errors[e] || (errors[e] == EBUSY && result == -EAGAIN);
                    assert_true(result == BLOCK || refused);
                    whole += result == BLOCK;
                }
                assert_true(whole >= DEPTH / 2);
                pst_fault_reset();
                carry_out(0, DEPTH); /* and nothing is left of it */
                assert_int_equal(total_result(DEPTH), BYTES);
                assert_read(DEPTH);
                rig_down();
            }
        }
    }
}

/* libaio's EAGAIN: with something under way, the rest waits for it; with nothing, it comes back, after one call. */
static void test_libaio_without_room(void **unused)
{
    (void)unused;
    if (!test_have_engine("libaio"))
        return;
    assert_true(rig_up(1));
    pst_io_request *done[DEPTH];
    uint32_t back = 0;
    r.engine->submit(r.queue, r.list, DEPTH / 2);
    pst_fault_fail(PST_FAULT_AIO_SUBMIT, 0, 1, EAGAIN);
    r.engine->submit(r.queue, r.list + DEPTH / 2, DEPTH / 2);
    while (back < DEPTH)
        back += r.engine->reap(r.queue, done + back, DEPTH - back, true);
    assert_int_equal(total_result(DEPTH), BYTES);
    assert_read(DEPTH);
    pst_fault_reset();
    pst_fault_fail(PST_FAULT_AIO_SUBMIT, 0, INT64_MAX, EAGAIN);
    carry_out(0, DEPTH);
    assert_int_equal(total_result(DEPTH), -EAGAIN * DEPTH);
    assert_int_equal(pst_fault_count(PST_FAULT_AIO_SUBMIT), 1);
    rig_down();
    /* EINVAL is about one request, the others go on. */
    assert_true(rig_up(1));
    pst_fault_fail(PST_FAULT_AIO_SUBMIT, 0, 1, EINVAL);
    carry_out(0, DEPTH);
    assert_int_equal(r.requests[0].result, -EINVAL);
    assert_int_equal(total_result(DEPTH), BYTES - BLOCK - EINVAL);
    rig_down();
}

/* What the kernel has is waited for, whatever becomes of the waiting calls. */
static void test_waiting_fails(void **unused)
{
    (void)unused;
    static const int errors[] = {EINTR, EIO, EINVAL};
    for (size_t e = 0; e < sizeof errors / sizeof errors[0]; e++) {
        if (!test_have_engine("libaio") || !rig_up(1))
            return;
        pst_fault_fail(PST_FAULT_AIO_GETEVENTS, 0, 5, errors[e]);
        carry_out(0, DEPTH);
        assert_int_equal(total_result(DEPTH), BYTES);
        assert_read(DEPTH);
        int64_t sleeps = pst_fault_count(PST_FAULT_SLEEP);
        assert_int_equal(sleeps, errors[e] == EINTR ? 0 : 5); /* no spinning */
        rig_down();
    }
}

/* A wake that the kernel refuses is late, but it comes. */
static void test_wake_refused(void **unused)
{
    (void)unused;
    if (!test_have_engine("libaio"))
        return;
    assert_true(rig_up(1));
    for (int round = 0; round < 3; round++) {
        pst_io_request *done[DEPTH];
        waker w = {.delay_ns = 20000000, .times = 1};
        pst_fault_reset();
        pst_fault_fail(PST_FAULT_AIO_SUBMIT, 0, 1, EAGAIN);
        assert_int_equal(pthread_create(&w.thread, NULL, waker_main, &w), 0);
        assert_int_equal(r.engine->reap(r.queue, done, DEPTH, true), 0);
        assert_true(atomic_load(&w.called));
        pthread_join(w.thread, NULL);
        assert_int_equal(pst_fault_count(PST_FAULT_AIO_SUBMIT), 1);
        r.engine->wake(r.queue);
        assert_int_equal(r.engine->reap(r.queue, done, DEPTH, true), 0);
    }
    carry_out(0, DEPTH);
    assert_int_equal(total_result(DEPTH), BYTES);
    rig_down();
}

/* The library never closes a queue with requests under way; should it ever, libaio's have all ended when it returns. */
static void test_libaio_close_waits(void **unused)
{
    (void)unused;
    if (!test_have_engine("libaio"))
        return;
    for (int round = 0; round < 10; round++) {
        assert_true(rig_up(1));
        r.engine->submit(r.queue, r.list, DEPTH);
        rig_down();
        assert_read(DEPTH);
    }
}

static int set_up(void **unused)
{
    (void)unused;
    folder = test_folder_create(false);
    r.memory = aligned_alloc(4096, BYTES);
    r.model = malloc(BYTES);
    assert_true(r.memory != NULL && r.model != NULL);
    test_fill(r.model, BYTES, KEY, 0);
    pst_sys_replace(&pst_sys_fault);
    return 0;
}

static int tear_down(void **unused)
{
    (void)unused;
    pst_sys_replace(NULL);
    pst_heap_fail_after(-1, 0);
    free(r.memory);
    free(r.model);
    test_folder_remove(folder);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_engine),       cmocka_unit_test(test_null_order), cmocka_unit_test(test_stuck_queue),
        cmocka_unit_test(test_refusals),           cmocka_unit_test(test_no_tables),
        cmocka_unit_test(test_submission_fails),   cmocka_unit_test(test_libaio_without_room),
        cmocka_unit_test(test_waiting_fails),      cmocka_unit_test(test_wake_refused),
        cmocka_unit_test(test_libaio_close_waits),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
