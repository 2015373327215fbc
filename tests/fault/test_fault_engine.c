/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The misbehaving wrapper by itself, through its table of operations: what each fault does, that results are neither
 * lost nor doubled, that the same seed does the same, that slots and flags of the inner engine go through.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/heap.h"
#include "os/clock.h"
#include "penstock/io_fault.h"
#include "unit/io/io_test.h"

enum { DEPTH = 16, BYTES = 8 * 4096, COUNT = 400 };

/* ---- an inner engine that carries requests out on a descriptor and hands them back in order ---- */

static struct {
    pst_io_request *waiting[DEPTH];
    uint32_t count;
    uint32_t submissions, wakes, files, buffers, opened;
    uint32_t align; /* refuses what is not aligned to it; 0: takes anything */
    bool refused;
} inner;

static int inner_open(const pst_io_engine *self, const pst_io_queue_settings *settings, void **queue, pst_error *err)
{
    (void)self, (void)err;
    assert_true(settings->depth <= DEPTH);
    inner.opened++;
    *queue = &inner;
    return 0;
}

static void inner_close(void *queue)
{
    assert_ptr_equal(queue, &inner);
    assert_int_equal(inner.count, 0);
    inner.opened--;
}

static void inner_submit(void *queue, pst_io_request *const *requests, uint32_t count)
{
    assert_ptr_equal(queue, &inner);
    inner.submissions++;
    for (uint32_t i = 0; i < count; i++) {
        pst_io_request *r = requests[i];
        uint64_t all = r->offset | r->bytes | (uintptr_t)r->address;
        assert_true(inner.count < DEPTH);
        assert_true(r->bytes > 0);
        inner.refused = inner.refused || (inner.align != 0 && all % inner.align != 0);
        inner.waiting[inner.count++] = r;
    }
}

static uint32_t inner_reap(void *queue, pst_io_request **done, uint32_t max, bool wait)
{
    (void)queue, (void)wait;
    uint32_t count = 0;
    for (; count < max && count < inner.count; count++) {
        pst_io_request *r = inner.waiting[count];
        r->result = r->write ? pwrite(r->fd, r->address, r->bytes, (off_t)r->offset)
                             : pread(r->fd, r->address, r->bytes, (off_t)r->offset);
        done[count] = r;
    }
    inner.count -= count;
    memmove(inner.waiting, inner.waiting + count, inner.count * sizeof inner.waiting[0]);
    return count;
}

static void inner_wake(void *queue)
{
    (void)queue;
    inner.wakes++;
}

static int inner_set_file(void *queue, uint32_t slot, int fd)
{
    (void)queue;
    inner.files++;
    return slot == 3 && fd == 5 ? 0 : -ENOMEM;
}

static int inner_set_buffer(void *queue, uint32_t slot, void *memory, uint64_t bytes)
{
    (void)queue;
    inner.buffers++;
    return slot == 4 && memory == &inner && bytes == 6 ? 0 : -ENOMEM;
}

static const pst_io_engine inner_engine = {.version = PST_IO_ENGINE_VERSION,
                                           .struct_size = sizeof(pst_io_engine),
                                           .name = "inner",
                                           .flags = PST_IO_ENGINE_FILE_SLOTS | PST_IO_ENGINE_BUFFER_SLOTS,
                                           .description = "for this test",
                                           .open_queue = inner_open,
                                           .close_queue = inner_close,
                                           .submit = inner_submit,
                                           .reap = inner_reap,
                                           .wake = inner_wake,
                                           .set_file = inner_set_file,
                                           .set_buffer = inner_set_buffer};

/* ---- the scene ---- */

static char *folder;
static int fd, direct_fd;
static uint8_t *memory, *content;
static int64_t alive;

static int set_up(void **unused)
{
    (void)unused;
    memset(&inner, 0, sizeof inner);
    alive = pst_heap_live_count();
    folder = test_folder_create(false);
    memory = aligned_alloc(4096, BYTES);
    content = malloc(BYTES);
    test_fill(content, BYTES, 5, 0);
    test_write_file(test_path(folder, "file"), content, BYTES);
    fd = open(test_path(folder, "file"), O_RDWR | O_CLOEXEC);
    direct_fd = open(test_path(folder, "file"), O_RDWR | O_CLOEXEC | O_DIRECT);
    assert_true(fd >= 0);
    return 0;
}

static int tear_down(void **unused)
{
    (void)unused;
    close(fd);
    if (direct_fd >= 0)
        close(direct_fd);
    free(memory);
    free(content);
    test_folder_remove(folder);
    assert_int_equal(pst_heap_live_count(), alive);
    assert_int_equal(inner.opened, 0);
    return 0;
}

static pst_io_engine *make(const pst_io_fault_options *o)
{
    pst_io_engine *engine;
    pst_error err = {0};
    assert_ok(pst_io_fault_create(&inner_engine, NULL, o, &engine, &err), &err);
    return engine;
}

static void *open_queue(const pst_io_engine *engine, uint32_t depth)
{
    void *queue;
    pst_error err = {0};
    pst_io_queue_settings settings = {.struct_size = sizeof settings, .depth = depth};
    assert_ok(engine->open_queue(engine, &settings, &queue, &err), &err);
    return queue;
}

static int64_t run_one(const pst_io_engine *engine, void *queue, pst_io_request *r)
{
    pst_io_request *done[DEPTH];
    const pst_io_request before = *r;
    engine->submit(queue, &r, 1);
    uint32_t count;
    while ((count = engine->reap(queue, done, DEPTH, true)) == 0)
        ;
    assert_int_equal(count, 1);
    assert_ptr_equal(done[0], r);
    assert_true(r->address == before.address && r->offset == before.offset && r->bytes == before.bytes);
    return r->result;
}

static pst_io_fault_counts counts_of(const pst_io_engine *engine)
{
    pst_io_fault_counts c;
    pst_io_fault_get_counts(engine, &c);
    return c;
}

/* ---- tests ---- */

static void test_table(void **unused)
{
    (void)unused;
    pst_io_engine *engine = make(&(pst_io_fault_options){0});
    assert_string_equal(engine->name, "fault:inner");
    assert_int_equal(engine->flags, inner_engine.flags);
    void *queue = open_queue(engine, 1);
    assert_int_equal(engine->set_file(queue, 3, 5), 0);
    assert_int_equal(engine->set_file(queue, 3, 6), -ENOMEM);
    assert_int_equal(engine->set_buffer(queue, 4, &inner, 6), 0);
    engine->wake(queue);
    assert_int_equal(inner.wakes, 1);
    assert_int_equal(engine->reap(queue, &(pst_io_request *){NULL}, 1, true), 0); /* the wake ends it */
    engine->close_queue(queue);
    pst_io_fault_destroy(engine);
    pst_io_fault_destroy(NULL);
    /* A synchronous engine stays one, and has nothing that it had not. */
    pst_error err = {0};
    assert_ok(pst_io_fault_create(NULL, "threads", NULL, &engine, &err), &err);
    assert_true(engine->flags == PST_IO_ENGINE_SYNCHRONOUS && engine->wake == NULL && engine->set_file == NULL);
    pst_io_fault_destroy(engine);
    assert_ok(pst_io_fault_create(NULL, NULL, NULL, &engine, &err), &err); /* what "auto" chooses */
    assert_int_equal(strncmp(engine->name, "fault:", 6), 0);
    pst_io_fault_destroy(engine);
}

static void test_refused_options(void **unused)
{
    (void)unused;
    static const int bad_error[] = {-5};
    static const pst_io_fault_options bad[] = {
        {.faults = 32},
        {.rate = 1.5},
        {.rate = -0.1},
        {.at = -1, .times = 1},
        {.times = -1},
        {.min_delay_ns = 10, .max_delay_ns = 5},
        {.errors = bad_error, .error_count = 1},
    };
    pst_io_engine *engine = NULL;
    pst_error err = {0};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        pst_io_fault_options o = bad[i];
        o.struct_size = sizeof o;
        assert_int_equal(pst_io_fault_create(&inner_engine, NULL, &o, &engine, &err), PST_E_USAGE);
        assert_null(engine);
    }
    assert_int_equal(pst_io_fault_create(NULL, "no such engine", NULL, &engine, &err), PST_E_USAGE);
    pst_io_engine broken = inner_engine;
    broken.submit = NULL;
    assert_int_equal(pst_io_fault_create(&broken, NULL, NULL, &engine, &err), PST_E_USAGE);
    for (int64_t nth = 0; nth < 3; nth++) {
        pst_heap_fail_after(nth, 0);
        assert_int_equal(pst_io_fault_create(&inner_engine, NULL, NULL, &engine, &err), -ENOMEM);
        pst_heap_fail_after(-1, 0);
    }
    assert_null(engine);
    /* Fields that an older caller does not know are zero. */
    pst_io_fault_options old = {.struct_size = offsetof(pst_io_fault_options, at), .at = -7, .times = 7};
    assert_ok(pst_io_fault_create(&inner_engine, NULL, &old, &engine, &err), &err);
    for (int64_t nth = 0; nth < 2; nth++) {
        pst_io_queue_settings settings = {.struct_size = sizeof settings, .depth = 4};
        pst_heap_fail_after(nth, 0);
        assert_int_equal(engine->open_queue(engine, &settings, &(void *){NULL}, &err), -ENOMEM);
        pst_heap_fail_after(-1, 0);
    }
    pst_io_fault_destroy(engine);
}

/* Chosen requests and no others; only reads or only writes. */
static void test_numbers(void **unused)
{
    (void)unused;
    const int error = ENXIO;
    for (int only = 0; only < 3; only++) {
        pst_io_engine *engine = make(&(pst_io_fault_options){.struct_size = sizeof(pst_io_fault_options),
                                                             .faults = PST_IO_FAULT_ERROR,
                                                             .at = 4,
                                                             .times = 4,
                                                             .reads = only == 1,
                                                             .writes = only == 2,
                                                             .errors = &error,
                                                             .error_count = 1});
        void *queue = open_queue(engine, 1);
        for (int i = 0; i < 12; i++) {
            pst_io_request r = {.fd = fd, .address = memory, .bytes = 512, .write = i % 2 == 1};
            bool struck = i >= 4 && i < 8 && (only == 0 || (only == 2) == r.write);
            if (r.write)
                memcpy(memory, content, 512);
            assert_int_equal(run_one(engine, queue, &r), struck ? -ENXIO : 512);
        }
        assert_int_equal(counts_of(engine).errors, only == 0 ? 4 : 2);
        assert_int_equal(counts_of(engine).requests, 12);
        engine->close_queue(queue);
        pst_io_fault_destroy(engine);
    }
}

/* The chance is about the rate, the same seed gives the same results, another one others. */
static void test_chance(void **unused)
{
    (void)unused;
    int64_t results[3][COUNT];
    for (int round = 0; round < 3; round++) {
        pst_io_engine *engine = make(&(pst_io_fault_options){.struct_size = sizeof(pst_io_fault_options),
                                                             .faults = PST_IO_FAULT_ERROR | PST_IO_FAULT_SHORT,
                                                             .rate = 0.3,
                                                             .seed = round < 2 ? 11 : 12});
        void *queue = open_queue(engine, 1);
        for (int i = 0; i < COUNT; i++) {
            pst_io_request r = {.fd = fd, .address = memory, .bytes = 4096};
            results[round][i] = run_one(engine, queue, &r);
            assert_true(results[round][i] != -ENOSPC); /* nothing that befalls reads */
        }
        pst_io_fault_counts c = counts_of(engine);
        assert_in_range(c.errors + c.shorts, COUNT / 5, COUNT * 2 / 5);
        assert_true(c.errors > COUNT / 20 && c.shorts > COUNT / 20);
        engine->close_queue(queue);
        pst_io_fault_destroy(engine);
    }
    assert_memory_equal(results[0], results[1], sizeof results[0]);
    assert_memory_not_equal(results[0], results[2], sizeof results[0]);
}

/* A short read's buffer holds no data behind what is reported; a short write has written no more than that sector. */
static void test_short(void **unused)
{
    (void)unused;
    pst_io_engine *engine = make(
        &(pst_io_fault_options){.struct_size = sizeof(pst_io_fault_options), .faults = PST_IO_FAULT_SHORT, .rate = 1});
    void *queue = open_queue(engine, 1);
    pst_io_request one = {.fd = fd, .address = memory, .bytes = 1};
    assert_int_equal(run_one(engine, queue, &one), 1); /* cannot be any shorter */
    for (int i = 0; i < COUNT; i++) {
        uint64_t offset = (uint64_t)i * 37 % 4096;
        pst_io_request r = {.fd = fd, .address = memory, .offset = offset, .bytes = 2 + (uint32_t)i * 19 % 9000};
        int64_t got = run_one(engine, queue, &r);
        assert_in_range(got, 1, r.bytes - 1);
        assert_memory_equal(memory, content + offset, got);
        for (uint32_t b = (uint32_t)got; b < r.bytes; b++)
            assert_int_equal(memory[b], 0xdb);
    }
    pst_io_request end = {.fd = fd, .address = memory, .offset = BYTES - 10, .bytes = 100};
    assert_in_range(run_one(engine, queue, &end), 1, 9);
    end.offset = BYTES;
    assert_int_equal(run_one(engine, queue, &end), 0); /* the end of the file is where it was */
    uint8_t found[BYTES];
    for (int i = 0; i < COUNT; i++) {
        bool direct = i % 2 == 1 && direct_fd >= 0;
        uint32_t unit = direct ? 4096 : 1;
        pst_io_request r = {.fd = direct ? direct_fd : fd, .address = memory, .write = true};
        r.offset = (uint64_t)i * 37 % 4096 / unit * unit;
        r.bytes = direct ? 4096 * (1 + (uint32_t)i % 4) : 2 + (uint32_t)i * 19 % 9000;
        memset(memory, i, r.bytes);
        assert_int_equal(pwrite(fd, content, BYTES, 0), BYTES);
        inner.align = direct ? 512 : 0;
        int64_t put = run_one(engine, queue, &r);
        assert_in_range(put, 1, r.bytes - 1);
        assert_int_equal(pread(fd, found, BYTES, 0), BYTES);
        assert_memory_equal(found, content, r.offset);
        assert_memory_equal(found + r.offset, memory, put);
        uint64_t end_of_sector = (r.offset + (uint64_t)put + 4095) / 4096 * 4096; /* at most */
        if (!direct)
            end_of_sector = (r.offset + (uint64_t)put + 511) / 512 * 512;
        uint64_t last = end_of_sector < r.offset + r.bytes ? end_of_sector : r.offset + r.bytes;
        assert_memory_equal(found + last, content + last, BYTES - last);
    }
    assert_false(inner.refused); /* direct parts are whole sectors */
    engine->close_queue(queue);
    pst_io_fault_destroy(engine);
}

/* Sectors of a torn write are old or new, in many combinations, and nothing else changes. */
static void test_torn(void **unused)
{
    (void)unused;
    pst_io_engine *engine = make(
        &(pst_io_fault_options){.struct_size = sizeof(pst_io_fault_options), .faults = PST_IO_FAULT_TORN, .rate = 1});
    void *queue = open_queue(engine, 1);
    uint8_t found[BYTES], wanted[BYTES];
    unsigned without_first = 0, with_first = 0, none = 0, with_last = 0, single = 0;
    for (int i = 0; i < COUNT; i++) {
        bool direct = i % 2 == 1 && direct_fd >= 0, small = i % 8 == 0;
        pst_io_request r = {.fd = direct ? direct_fd : fd, .address = memory, .write = true};
        r.offset = direct ? 4096 * ((uint64_t)i % 3) : (uint64_t)i * 37 % 4096;
        r.bytes = small    ? 1 + (uint32_t)i % 300
                  : direct ? 4096 * (2 + (uint32_t)i % 4)
                           : 2000 + (uint32_t)i * 19 % 9000;
        if (small)
            r.offset = r.offset / 512 * 512;
        memset(memory, i, r.bytes);
        memcpy(wanted, content, BYTES);
        memcpy(wanted + r.offset, memory, r.bytes);
        assert_int_equal(pwrite(fd, content, BYTES, 0), BYTES);
        inner.align = direct ? 512 : 0;
        assert_int_equal(run_one(engine, queue, &r), -EIO);
        assert_int_equal(pread(fd, found, BYTES, 0), BYTES);
        unsigned fresh = 0, sectors = 0;
        for (uint64_t at = 0; at < BYTES; at += 512) {
            bool old = memcmp(found + at, content + at, 512) == 0, new = memcmp(found + at, wanted + at, 512) == 0;
            assert_true(old || new);
            bool inside = at + 512 > r.offset && at < r.offset + r.bytes;
            sectors += inside;
            fresh += inside && new && !old;
            if (inside && at <= r.offset && sectors == 1) {
                with_first += new;
                without_first += !new;
            }
            if (inside && at + 512 >= r.offset + r.bytes && !small)
                with_last += new;
        }
        none += fresh == 0;
        if (small)
            single += fresh;
        else
            assert_true(fresh < sectors);
    }
    assert_true(with_first > COUNT / 20 && without_first > COUNT / 4 && with_last > COUNT / 20);
    assert_true(none < COUNT / 2);
    assert_in_range(single, COUNT / 8 / 4, COUNT / 8 * 3 / 4); /* one sector: all or nothing */
    assert_false(inner.refused);
    pst_io_request read = {.fd = fd, .address = memory, .bytes = 512};
    assert_int_equal(run_one(engine, queue, &read), 512);
    assert_int_equal(counts_of(engine).torn, COUNT);
    engine->close_queue(queue);
    pst_io_fault_destroy(engine);
}

/* With a full queue at all times: each result comes once, with its own request's outcome. The order in which they came is
 * counted against that of submission. */
static uint64_t run_full(const pst_io_engine *engine, unsigned total, uint64_t *longest_ns)
{
    void *queue = open_queue(engine, DEPTH);
    static pst_io_request requests[DEPTH];
    static uint8_t buffers[DEPTH][64];
    uint64_t number[DEPTH], submitted_ns[DEPTH], inversions = 0, newest = 0;
    bool busy[DEPTH] = {false};
    unsigned next = 0, finished = 0;
    *longest_ns = 0;
    while (finished < total) {
        pst_io_request *batch[DEPTH], *done[DEPTH];
        uint32_t count = 0;
        for (unsigned i = 0; i < DEPTH && next < total; i++) {
            if (busy[i])
                continue;
            busy[i] = true;
            number[i] = ++next;
            submitted_ns[i] = pst_clock_ns();
            requests[i] = (pst_io_request){.fd = fd, .address = buffers[i], .offset = next % 8000, .bytes = 64};
            batch[count++] = &requests[i];
        }
        engine->submit(queue, batch, count);
        count = engine->reap(queue, done, 1 + next % DEPTH, true);
        for (uint32_t d = 0; d < count; d++) {
            unsigned i = (unsigned)(done[d] - requests);
            assert_true(i < DEPTH && busy[i]);
            busy[i] = false;
            finished++;
            assert_int_equal(done[d]->result, 64);
            assert_memory_equal(buffers[i], content + requests[i].offset, 64);
            uint64_t took = pst_clock_ns() - submitted_ns[i];
            *longest_ns = took > *longest_ns ? took : *longest_ns;
            inversions += number[i] < newest;
            newest = number[i] > newest ? number[i] : newest;
        }
    }
    assert_int_equal(engine->reap(queue, &(pst_io_request *){NULL}, 1, false), 0);
    engine->close_queue(queue);
    return inversions;
}

static void test_order(void **unused)
{
    (void)unused;
    uint64_t longest;
    pst_io_fault_options o = {.struct_size = sizeof o, .rate = 0.3};
    pst_io_engine *engine = make(&o);
    assert_int_equal(run_full(engine, COUNT, &longest), 0);
    pst_io_fault_destroy(engine);
    o.faults = PST_IO_FAULT_REORDER;
    for (uint32_t window = 1; window < 40; window += 6) {
        o.reorder_window = window;
        engine = make(&o);
        assert_true(run_full(engine, COUNT, &longest) > COUNT / 20);
        assert_true(counts_of(engine).reorders > COUNT / 5);
        pst_io_fault_destroy(engine);
    }
    o.rate = 1; /* all of them: still none is kept for ever */
    o.reorder_window = 100;
    engine = make(&o);
    assert_true(run_full(engine, COUNT, &longest) > COUNT / 5);
    pst_io_fault_destroy(engine);
    o.rate = 0.1;
    o.faults = PST_IO_FAULT_DELAY;
    o.min_delay_ns = 2000000;
    o.max_delay_ns = 3000000;
    engine = make(&o);
    assert_true(run_full(engine, COUNT, &longest) > 0);
    assert_true(longest >= 2000000);
    pst_io_fault_destroy(engine);
    o.rate = 0.3;
    o.faults = PST_IO_FAULT_DELAY | PST_IO_FAULT_REORDER;
    o.min_delay_ns = 0;
    o.max_delay_ns = 100000;
    engine = make(&o);
    run_full(engine, COUNT, &longest);
    pst_io_fault_destroy(engine);
}

/* The parts of one round go to the inner engine in one call. */
static void test_one_call(void **unused)
{
    (void)unused;
    pst_io_engine *engine = make(&(pst_io_fault_options){0});
    void *queue = open_queue(engine, 8);
    pst_io_request requests[8], *batch[8], *done[8];
    for (int i = 0; i < 8; i++) {
        requests[i] =
            (pst_io_request){.fd = fd, .address = memory + i * 512, .offset = (uint64_t)i * 512, .bytes = 512};
        batch[i] = &requests[i];
    }
    engine->submit(queue, batch, 8);
    assert_int_equal(inner.submissions, 1);
    assert_int_equal(engine->reap(queue, done, 8, true), 8);
    assert_memory_equal(memory, content, 8 * 512);
    engine->close_queue(queue);
    pst_io_fault_destroy(engine);
}

int main(void)
{
#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        IN_FOLDER(test_table),  IN_FOLDER(test_refused_options), IN_FOLDER(test_numbers),
        IN_FOLDER(test_chance), IN_FOLDER(test_short),           IN_FOLDER(test_torn),
        IN_FOLDER(test_order),  IN_FOLDER(test_one_call),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
