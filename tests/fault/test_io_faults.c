/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A mixed workload on several files while the engine misbehaves: every kind of fault at every request in turn, then all
 * kinds by chance. Each operation either succeeds with the right bytes or reports its error, with its path and an offset
 * inside of it; a write that failed has touched nothing outside of its range; nothing hangs, and nothing is left behind.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/heap.h"
#include "os/clock.h"
#include "penstock/io_fault.h"
#include "unit/io/io_test.h"

enum {
    PAGE = 4096,
    FILES = 3,
    FILE_BYTES = 150000,
    ROOM_BYTES = 2 * FILE_BYTES,
    MAX_OPS = 40,
    FEW_OPS = 20, /* where every request is struck in turn */
    ARENA_BYTES = 2 << 20,
    GUARD = 64,
    WATCHDOG_SECONDS = 100
};

static char *folder;
static uint64_t state;
static uint64_t generation; /* of what is written */

static void on_alarm(int signal)
{
    static const char text[] = "the watchdog: nothing has ended for a long time\n";
    (void)signal;
    if (write(2, text, sizeof text - 1) > 0)
        _exit(99);
    _exit(98);
}

static int set_up(void **unused)
{
    (void)unused;
    folder = test_folder_create(false);
    pst_io_close(test_open("threads", 0, 1, 1, false)); /* some sanitizers start a thread with the first one */
    signal(SIGALRM, on_alarm);
    alarm(WATCHDOG_SECONDS);
    return 0;
}

static int tear_down(void **unused)
{
    (void)unused;
    alarm(0);
    test_folder_remove(folder);
    return 0;
}

/* ---- the workload ---- */

typedef struct scene {
    pst_io_engine *engine; /* the wrapper; owned */
    pst_io *io;
    pst_io_file *files[FILES];
    uint8_t *before[FILES]; /* ROOM_BYTES each: what the files hold; zeros beyond their end */
    uint8_t *after[FILES];  /* what they shall hold when every write succeeds */
    uint8_t *unsure[FILES]; /* 1 for bytes that a write of this workload is about */
    uint64_t ends[FILES];   /* the furthest byte that a write reaches, or the length */
    uint8_t *arena, *copy;  /* buffers and what they held before */
    pst_io_op ops[MAX_OPS];
    pst_io_segment segments[MAX_OPS][3];
    uint32_t count, most; /* operations; at most */
    /* When a direct write stops before the end of the file and a buffered one makes the file longer meanwhile, ext4
     * cannot drop the page of the old end from its cache, and reports that as EIO of the next sync. The bytes are right
     * all the same; only a short direct write, here a made one, can lead to it. */
    bool sync_may_fail;
    pst_io_batch *batch;
} scene;

static const char *file_name(int file)
{
    static const char *const names[FILES] = {"first", "second", "third"};
    return test_path(folder, names[file]);
}

/* The files as they are, cut to length. Rewriting them would cost most of the time: a direct read waits until what was
 * written through the page cache is on the drive. */
static void take_files(scene *s)
{
    for (int f = 0; f < FILES; f++) {
        uint64_t bytes;
        const char *path = file_name(f);
        if (access(path, F_OK) != 0) {
            test_fill(s->before[f], FILE_BYTES, test_random(&state), 0);
            test_write_file(path, s->before[f], FILE_BYTES);
        }
        assert_int_equal(truncate(path, FILE_BYTES), 0);
        uint8_t *found = test_read_file(path, &bytes);
        memset(s->before[f], 0, ROOM_BYTES);
        memcpy(s->before[f], found, bytes);
        free(found);
        memcpy(s->after[f], s->before[f], ROOM_BYTES);
        memset(s->unsure[f], 0, ROOM_BYTES);
        s->ends[f] = FILE_BYTES;
    }
    generation++;
}

static uint64_t random_length(void)
{
    switch (test_below(&state, 5)) {
    case 0: return 1 + test_below(&state, 900);
    case 1: return 512 * (1 + test_below(&state, 10));
    case 2: return 4096 * (1 + test_below(&state, 8));
    default: return 1 + test_below(&state, 40000);
    }
}

/* The memory of an operation: one buffer or some segments. False when the arena is full. */
static bool place(scene *s, pst_io_op *op, pst_io_segment *segments, uint64_t *used)
{
    static const uint64_t units[] = {1, 512, 4096};
    uint32_t parts = test_below(&state, 3) == 0 ? 1 + (uint32_t)test_below(&state, 3) : 0;
    uint64_t left = op->bytes;
    for (uint32_t i = 0; i < (parts > 0 ? parts : 1); i++) {
        uint64_t unit = units[test_below(&state, 3)];
        uint64_t bytes = i + 1 < parts ? test_below(&state, left + 1) : left;
        uint64_t start = (*used + GUARD + unit - 1) / unit * unit;
        if (start + bytes + GUARD > ARENA_BYTES)
            return false;
        segments[i] = (pst_io_segment){.memory = s->arena + start, .bytes = bytes};
        *used = start + bytes;
        left -= bytes;
    }
    op->segment_count = parts;
    op->segments = parts > 0 ? segments : NULL;
    op->buffer = parts > 0 ? NULL : segments[0].memory;
    return true;
}

static uint32_t parts_of(const pst_io_op *op)
{
    return op->segment_count > 0 ? op->segment_count : 1;
}

/* Reads and writes of ranges that do not meet, in any order, with a sync in between. */
static void make_ops(scene *s)
{
    uint64_t used = 0;
    s->count = 0;
    memset(s->arena, 0xa5, ARENA_BYTES);
    for (int f = 0; f < FILES; f++) {
        uint64_t at = test_below(&state, 5000);
        while (s->count < s->most * (uint32_t)(f + 1) / FILES) {
            pst_io_op *op = &s->ops[s->count];
            uint64_t unit = test_below(&state, 2) == 0 ? 1 : 4096;
            at = (at + unit - 1) / unit * unit;
            *op = (pst_io_op){.file = s->files[f], .offset = at, .bytes = random_length()};
            op->kind = test_below(&state, 2) == 0 ? PST_IO_READ : PST_IO_WRITE;
            uint64_t limit = op->kind == PST_IO_READ ? FILE_BYTES : FILE_BYTES + 60000;
            if (at + op->bytes > limit || !place(s, op, s->segments[s->count], &used))
                break;
            uint64_t in_file = at;
            for (uint32_t i = 0; op->kind == PST_IO_WRITE && i < parts_of(op); i++) {
                const pst_io_segment *part = &s->segments[s->count][i];
                test_fill(part->memory, part->bytes, generation * 1000003u + at, in_file);
                memcpy(s->after[f] + in_file, part->memory, part->bytes);
                memset(s->unsure[f] + in_file, 1, part->bytes);
                in_file += part->bytes;
                s->ends[f] = in_file > s->ends[f] ? in_file : s->ends[f];
            }
            s->count++;
            at += op->bytes + (test_below(&state, 2) == 0 ? 0 : test_below(&state, 9000));
        }
    }
    for (uint32_t i = s->count; i > 1; i--) {
        uint32_t j = (uint32_t)test_below(&state, i);
        pst_io_op swap = s->ops[i - 1];
        s->ops[i - 1] = s->ops[j];
        s->ops[j] = swap;
    }
    if (s->count < s->most && test_below(&state, 2) == 0) {
        uint32_t middle = s->count / 2;
        s->ops[s->count++] = s->ops[middle];
        s->ops[middle] = (pst_io_op){.file = s->files[0], .kind = PST_IO_SYNC};
    }
    memcpy(s->copy, s->arena, ARENA_BYTES);
}

static int file_of(const scene *s, const pst_io_op *op)
{
    int f = 0;
    while (s->files[f] != op->file)
        f++;
    return f;
}

/* What an operation has to show. */
static void check_op(scene *s, uint32_t index, int expected_error)
{
    const pst_io_op *op = &s->ops[index];
    int f = file_of(s, op);
    pst_error err = {0};
    assert_int_equal(pst_io_op_error(s->batch, index, &err), op->result < 0 ? (int)op->result : 0);
    if (op->result < 0) {
        if (expected_error < 0 && op->kind != PST_IO_SYNC)
            assert_int_equal(op->result, expected_error);
        assert_true(op->result != PST_E_SHORT); /* nothing here goes past the end */
        assert_string_equal(err.path, pst_io_file_path(op->file));
        if (op->kind == PST_IO_SYNC) { /* nothing here befalls it, but see sync_may_fail */
            if (!s->sync_may_fail || op->result != -EIO)
                fail_msg("a sync ended with %lld: %s", (long long)op->result, err.message);
            return;
        }
        assert_in_range(err.offset, op->offset, op->offset + op->bytes);
    } else {
        assert_int_equal(op->result, op->kind == PST_IO_SYNC ? 0 : op->bytes);
    }
    uint64_t at = op->offset;
    for (uint32_t i = 0; op->kind == PST_IO_READ && i < parts_of(op); i++) {
        const pst_io_segment *part =
            op->segment_count > 0 ? &op->segments[i] : &(pst_io_segment){.memory = op->buffer, .bytes = op->bytes};
        if (op->result >= 0)
            assert_memory_equal(part->memory, s->before[f] + at, part->bytes);
        memcpy(part->memory, s->copy + ((uint8_t *)part->memory - s->arena), part->bytes); /* only guards are left */
        at += part->bytes;
    }
    if (op->kind == PST_IO_WRITE && op->result >= 0)
        memset(s->unsure[f] + op->offset, 0, op->bytes);
}

static void check_files(scene *s)
{
    for (int f = 0; f < FILES; f++) {
        uint64_t bytes;
        uint8_t *found = test_read_file(file_name(f), &bytes);
        assert_in_range(bytes, FILE_BYTES, s->ends[f]);
        for (uint64_t i = 0; i < bytes; i++) {
            if (i % PAGE == 0 && bytes - i >= PAGE && memcmp(found + i, s->after[f] + i, PAGE) == 0) {
                i += PAGE - 1; /* quickly over what is right */
                continue;
            }
            if (!s->unsure[f][i] && found[i] != s->after[f][i])
                fail_msg("byte %llu of file %d is %u, not %u", (unsigned long long)i, f, found[i], s->after[f][i]);
        }
        for (uint64_t i = bytes; i < s->ends[f]; i++)
            assert_true(s->unsure[f][i] || s->after[f][i] == 0); /* what is not there was not written, or failed */
        free(found);
    }
}

/* Carries the workload out once; returns how many operations failed. expected_error: what they may fail with, 0: any. */
static uint32_t carry_out(scene *s, int expected_error)
{
    pst_error err = {0};
    uint32_t failed = 0;
    bool sync_failed = false;
    take_files(s);
    make_ops(s);
    assert_ok(pst_io_submit(s->batch, s->ops, s->count, &err), &err);
    int status = pst_io_wait(s->batch, UINT64_MAX, &err);
    for (uint32_t i = 0; i < s->count; i++) {
        failed += s->ops[i].result < 0 && s->ops[i].kind != PST_IO_SYNC;
        sync_failed |= s->ops[i].result < 0 && s->ops[i].kind == PST_IO_SYNC;
        check_op(s, i, expected_error);
    }
    bool any_failed = failed > 0 || sync_failed;
    assert_int_equal(status < 0, any_failed);
    assert_memory_equal(s->arena, s->copy, ARENA_BYTES); /* guards, and what was written from */
    check_files(s);
    return failed;
}

typedef struct setting {
    const char *engine;
    uint32_t depth, workers;
    uint64_t block;
    bool buffered, registered, single_submit, no_overlap;
} setting;

static void open_scene(scene *s, const setting *c, const pst_io_engine *inner, const pst_io_fault_options *faults)
{
    pst_error err = {0};
    memset(s, 0, sizeof *s);
    s->most = MAX_OPS;
    s->sync_may_fail = inner != NULL || (faults->faults & (PST_IO_FAULT_SHORT | PST_IO_FAULT_TORN)) != 0;
    assert_ok(pst_io_fault_create(inner, c->engine, faults, &s->engine, &err), &err);
    pst_io_options options = {.struct_size = sizeof options,
                              .engine_table = s->engine,
                              .block_size = c->block,
                              .queue_depth = c->depth,
                              .workers = c->workers,
                              .buffered = c->buffered,
                              .single_submit = c->single_submit,
                              .overlap_events = c->no_overlap ? PST_IO_OFF : PST_IO_ON};
    s->arena = aligned_alloc(4096, ARENA_BYTES);
    s->copy = aligned_alloc(4096, ARENA_BYTES);
    for (int f = 0; f < FILES; f++) {
        s->before[f] = malloc(ROOM_BYTES);
        s->after[f] = malloc(ROOM_BYTES);
        s->unsure[f] = malloc(ROOM_BYTES);
    }
    take_files(s);
    assert_ok(pst_io_open(&options, &s->io, &err), &err);
    if (c->registered)
        assert_ok(pst_io_register(s->io, s->arena, ARENA_BYTES, &err), &err);
    for (int f = 0; f < FILES; f++)
        assert_ok(pst_io_file_open(s->io, file_name(f), PST_IO_OPEN_WRITE, &s->files[f], &err), &err);
    assert_ok(pst_io_batch_create(s->io, MAX_OPS, &s->batch, &err), &err);
}

static void close_scene(scene *s)
{
    pst_error err = {0};
    pst_io_batch_destroy(s->batch);
    for (int f = 0; f < FILES; f++)
        assert_ok(pst_io_file_close(s->files[f], &err), &err);
    pst_io_unregister(s->io, s->arena);
    pst_io_close(s->io);
    pst_io_fault_destroy(s->engine);
    for (int f = 0; f < FILES; f++) {
        free(s->before[f]);
        free(s->after[f]);
        free(s->unsure[f]);
    }
    free(s->arena);
    free(s->copy);
}

/* ---- every fault at every request ---- */

typedef struct kind {
    const char *name;
    uint32_t fault;
    int error;  /* for ERROR */
    int result; /* what the struck operation ends with; 0: success, 1: success or -error */
} kind;

static const kind kinds[] = {
    {"EIO", PST_IO_FAULT_ERROR, EIO, -EIO},    {"ENOSPC", PST_IO_FAULT_ERROR, ENOSPC, -ENOSPC},
    {"EAGAIN", PST_IO_FAULT_ERROR, EAGAIN, 0}, {"EINTR", PST_IO_FAULT_ERROR, EINTR, 0},
    {"EINVAL", PST_IO_FAULT_ERROR, EINVAL, 1}, {"short", PST_IO_FAULT_SHORT, 0, 0},
    {"delay", PST_IO_FAULT_DELAY, 0, 0},       {"reorder", PST_IO_FAULT_REORDER, 0, 0},
    {"torn", PST_IO_FAULT_TORN, 0, -EIO},
};
enum { KINDS = sizeof kinds / sizeof kinds[0] };

static uint64_t struck(const pst_io_engine *engine)
{
    pst_io_fault_counts c;
    pst_io_fault_get_counts(engine, &c);
    return c.errors + c.shorts + c.delays + c.reorders + c.torn;
}

/* One workload with one request struck; returns false when there was no such request. */
static bool strike_once(const setting *c, const kind *k, int64_t at, uint64_t seed)
{
    pst_io_fault_options faults = {.struct_size = sizeof faults,
                                   .faults = k->fault,
                                   .seed = seed,
                                   .at = at,
                                   .times = 1,
                                   .errors = k->error != 0 ? &k->error : NULL,
                                   .error_count = k->error != 0,
                                   .max_delay_ns = 500000};
    scene s;
    state = seed; /* the same workload for each */
    open_scene(&s, c, NULL, &faults);
    s.most = FEW_OPS;
    bool direct = pst_io_file_is_direct(s.files[0]);
    uint32_t failed = carry_out(&s, k->fault == PST_IO_FAULT_TORN ? -EIO : -k->error);
    uint64_t strikes = struck(s.engine);
    pst_io_fault_counts counts;
    pst_io_fault_get_counts(s.engine, &counts);
    assert_true(strikes <= 1);
    for (int f = 0; f < FILES && k->error != EINVAL; f++) /* a fault is no reason to give up direct transfers */
        assert_int_equal(pst_io_file_is_direct(s.files[f]), direct);
    if (k->result < 0)
        assert_int_equal(failed, strikes);
    else if (k->result == 0)
        assert_int_equal(failed, 0);
    close_scene(&s);
    return counts.requests > (uint64_t)at;
}

static void strike_each(const setting *c, bool tmpfs)
{
    char *outer = folder, *memory = tmpfs ? test_folder_create(true) : NULL;
    folder = memory != NULL ? memory : folder;
    uint64_t seed = test_random(&state), strikes = 0;
    for (int k = 0; k < KINDS; k++) {
        test_footprint before = test_measure_footprint();
        int64_t at = 0;
        while (strike_once(c, &kinds[k], at, seed)) {
            assert_true(++at < 2000);
            alarm(WATCHDOG_SECONDS);
        }
        assert_true(at > 20);
        strikes += (uint64_t)at;
        test_assert_footprint(&before);
    }
    print_message("%s, depth %u, %u workers: %llu requests struck in turn\n", c->engine, c->depth, c->workers,
                  (unsigned long long)strikes);
    folder = outer;
    test_folder_remove(memory);
}

static void test_each_threads(void **unused)
{
    (void)unused;
    strike_each(&(setting){.engine = "threads", .depth = 1, .workers = 1, .block = 16384}, true);
    strike_each(&(setting){.engine = "threads", .depth = 1, .workers = 3, .block = 65536}, true);
}

static void test_each_libaio(void **unused)
{
    (void)unused;
    strike_each(&(setting){.engine = "libaio", .depth = 6, .workers = 1, .block = 16384}, false);
}

static void test_each_uring(void **unused)
{
    (void)unused;
    if (!test_have_uring())
        return;
    strike_each(&(setting){.engine = "io_uring", .depth = 6, .workers = 1, .block = 16384, .registered = true}, false);
    strike_each(&(setting){.engine = "io_uring", .depth = 4, .workers = 2, .block = 65536, .no_overlap = true}, true);
}

/* ---- all faults, by chance ---- */

static setting random_setting(const char *engine)
{
    static const uint64_t blocks[] = {4096, 12288, 65536, 1 << 20};
    return (setting){.engine = engine,
                     .depth = 1 + (uint32_t)test_below(&state, 20),
                     .workers = (uint32_t)test_below(&state, 4),
                     .block = blocks[test_below(&state, 4)],
                     .buffered = test_below(&state, 5) == 0,
                     .registered = test_below(&state, 2) == 0,
                     .single_submit = test_below(&state, 4) == 0,
                     .no_overlap = test_below(&state, 4) == 0};
}

static void run_by_chance(const char *engine)
{
    enum { SCENES = 20, ROUNDS = 4 };
    unsigned failed = 0, fine = 0;
    char *disk = folder, *memory = test_folder_create(true);
    for (int i = 0; i < SCENES; i++) {
        folder = i % 4 == 0 || memory == NULL ? disk : memory;
        setting c = random_setting(engine);
        pst_io_fault_options faults = {.struct_size = sizeof faults,
                                       .faults = i % 3 == 0 ? 31 : 1 + (uint32_t)test_below(&state, 31),
                                       .seed = test_random(&state),
                                       .rate = i % 4 == 0 ? 0.01 : (double)test_below(&state, 40) / 100,
                                       .max_delay_ns = 1 + test_below(&state, 1000000),
                                       .reorder_window = (uint32_t)test_below(&state, 12)};
        scene s;
        alarm(WATCHDOG_SECONDS);
        open_scene(&s, &c, NULL, &faults);
        for (int round = 0; round < ROUNDS; round++) {
            uint32_t bad = carry_out(&s, 0);
            failed += bad;
            fine += s.count - bad;
        }
        close_scene(&s);
    }
    folder = disk;
    test_folder_remove(memory);
    print_message("%s: %u operations succeeded, %u failed\n", engine, fine, failed);
    assert_true(fine > 100 && failed > 10);
}

static void test_chance_threads(void **unused)
{
    (void)unused;
    run_by_chance("threads");
}

static void test_chance_libaio(void **unused)
{
    (void)unused;
    run_by_chance("libaio");
}

static void test_chance_uring(void **unused)
{
    (void)unused;
    if (test_have_uring())
        run_by_chance("io_uring");
}

/* Wrappers around wrappers: only faults that the library makes good, all of the time. */
static void test_stacked(void **unused)
{
    (void)unused;
    static const char *const engines[] = {"threads", "libaio", "io_uring"};
    static const int passing[] = {EAGAIN, EINTR};
    for (int e = 0; e < 3; e++) {
        if (e == 2 && !test_have_uring())
            break;
        pst_error err = {0};
        pst_io_engine *shorts, *delays;
        pst_io_fault_options o = {
            .struct_size = sizeof o, .faults = PST_IO_FAULT_SHORT, .rate = 0.5, .seed = test_random(&state)};
        assert_ok(pst_io_fault_create(NULL, engines[e], &o, &shorts, &err), &err);
        o.faults = PST_IO_FAULT_DELAY | PST_IO_FAULT_REORDER;
        o.max_delay_ns = 300000;
        assert_ok(pst_io_fault_create(shorts, NULL, &o, &delays, &err), &err);
        o.faults = PST_IO_FAULT_ERROR;
        o.errors = passing;
        o.error_count = 2;
        o.rate = 0.2;
        scene s;
        open_scene(&s, &(setting){.engine = NULL, .depth = 8, .workers = 2, .block = 16384}, delays, &o);
        char name[64];
        snprintf(name, sizeof name, "fault:fault:fault:%s", engines[e]);
        assert_string_equal(pst_io_engine_name(s.io), name);
        for (int round = 0; round < 6; round++)
            assert_int_equal(carry_out(&s, 0), 0);
        assert_true(struck(s.engine) > 0 && struck(delays) > 0 && struck(shorts) > 0);
        close_scene(&s);
        pst_io_fault_destroy(delays);
        pst_io_fault_destroy(shorts);
    }
}

/* ---- a direct write that stops in the page of the file's end ---- */

enum { END_PAGE = 1500, OLD_END = END_PAGE * PAGE + 2500, NEW_END = (END_PAGE + 1) * PAGE + 3500 };

/* An engine that shortens each direct write over the old end of the file to some sectors of that page. The queues are
 * the inner engine's own. */
typedef struct stopper {
    pst_io_engine table;
    const pst_io_engine *inner;
} stopper;

static const pst_io_engine *stopped; /* the inner one: submit has no other way to it */

static int stop_open(const pst_io_engine *self, const pst_io_queue_settings *settings, void **queue, pst_error *err)
{
    const stopper *s = (const stopper *)(const void *)self;
    return s->inner->open_queue(s->inner, settings, queue, err);
}

static void stop_submit(void *queue, pst_io_request *const *requests, uint32_t count)
{
    enum { STOP = END_PAGE * PAGE + 1024 };
    for (uint32_t i = 0; i < count; i++) {
        pst_io_request *r = requests[i];
        if (r->write && r->offset < END_PAGE * PAGE && r->offset + r->bytes > OLD_END)
            r->bytes = (uint32_t)(STOP - r->offset);
    }
    stopped->submit(queue, requests, count);
}

/* A write over the end of the file whose direct part stops inside the page of the old end, while its ragged tail makes
 * the file longer. The kernel reads that page into the cache for the tail's sake, maybe before the direct write has
 * reached the drive, and writes it back: it must be written again as a whole. */
static void test_end_of_file(void **unused)
{
    (void)unused;
    enum { ROUNDS = 40, FIRST = (END_PAGE - 1) * PAGE };
    uint8_t found[NEW_END - FIRST], *content = aligned_alloc(PAGE, (END_PAGE + 2) * PAGE);
    const char *path = test_path(folder, "end");
    test_fill(content, OLD_END, 1, 0);
    for (unsigned e = 0; test_engine(e) != NULL; e++) {
        pst_error err = {0};
        pst_io_engine *wrapper; /* by which the test has the inner table */
        assert_ok(pst_io_fault_create(NULL, test_engine(e), NULL, &wrapper, &err), &err);
        stopper s = {.table = *wrapper, .inner = wrapper};
        stopped = wrapper;
        s.table.open_queue = stop_open;
        s.table.submit = stop_submit;
        const pst_io_options options = {
            .struct_size = sizeof options, .engine_table = &s.table, .block_size = 16 << 20, .workers = 1};
        pst_io *io;
        assert_ok(pst_io_open(&options, &io, &err), &err);
        test_write_file(path, content, OLD_END);
        for (uint64_t round = 0; round < ROUNDS; round++) {
            pst_io_file *file;
            assert_int_equal(truncate(path, OLD_END), 0);
            test_fill(content, NEW_END, 1000 * e + round, 0);
            assert_ok(pst_io_file_open(io, path, PST_IO_OPEN_WRITE, &file, &err), &err);
            pst_io_op op = {.file = file, .buffer = content, .bytes = NEW_END, .kind = PST_IO_WRITE};
            assert_ok(pst_io_transfer(io, &op, &err), &err);
            pst_io_file_sync(file, NULL); /* EIO: see sync_may_fail */
            assert_ok(pst_io_file_close(file, &err), &err);
            int fd = open(path, O_RDONLY | O_CLOEXEC); /* not the whole file: it shall not lie in the cache */
            assert_int_equal(pread(fd, found, sizeof found, FIRST), sizeof found);
            close(fd);
            if (memcmp(found, content + FIRST, sizeof found) != 0)
                fail_msg("%s: what was written is not there in round %u", test_engine(e), (unsigned)round);
        }
        pst_io_close(io);
        pst_io_fault_destroy(wrapper);
    }
    free(content);
}

/* ---- while results are held back ---- */

static uint64_t processor_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Waiting costs no processor, and another operation does not wait for one that is delayed. */
static void test_waiting(void **unused)
{
    (void)unused;
    static const char *const engines[] = {"threads", "libaio", "io_uring"};
    enum { DELAY_NS = 400000000 };
    for (int e = 0; e < 3; e++) {
        if (e == 2 && !test_have_uring())
            break;
        pst_io_fault_options o = {.struct_size = sizeof o,
                                  .faults = PST_IO_FAULT_DELAY,
                                  .times = 1,
                                  .min_delay_ns = DELAY_NS,
                                  .max_delay_ns = DELAY_NS};
        scene s;
        open_scene(&s, &(setting){.engine = engines[e], .depth = 4, .workers = e == 0 ? 2 : 1, .block = 65536}, NULL,
                   &o);
        pst_error err = {0};
        pst_io_batch *second;
        assert_ok(pst_io_batch_create(s.io, 1, &second, &err), &err);
        pst_io_op slow = {.file = s.files[0], .buffer = s.arena, .bytes = 4096};
        pst_io_op quick = {.file = s.files[1], .buffer = s.arena + 8192, .bytes = 4096};
        uint64_t start = pst_clock_ns(), used = processor_ns();
        assert_ok(pst_io_submit(s.batch, &slow, 1, &err), &err);
        struct timespec pause = {.tv_nsec = 20000000};
        nanosleep(&pause, NULL); /* the worker waits in the engine by now */
        assert_ok(pst_io_submit(second, &quick, 1, &err), &err);
        assert_ok(pst_io_wait(second, UINT64_MAX, &err), &err);
        assert_true(pst_clock_ns() - start < DELAY_NS);
        assert_int_equal(pst_io_wait(s.batch, 1, &err), 1);
        assert_ok(pst_io_wait(s.batch, UINT64_MAX, &err), &err);
        assert_true(pst_clock_ns() - start >= DELAY_NS);
        assert_true(processor_ns() - used < DELAY_NS / 4);
        assert_memory_equal(slow.buffer, s.before[0], 4096);
        assert_memory_equal(quick.buffer, s.before[1], 4096);
        pst_io_batch_destroy(second);
        close_scene(&s);
    }
}

int main(void)
{
    state = test_seed();
#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        IN_FOLDER(test_each_threads),   IN_FOLDER(test_each_libaio),   IN_FOLDER(test_each_uring),
        IN_FOLDER(test_chance_threads), IN_FOLDER(test_chance_libaio), IN_FOLDER(test_chance_uring),
        IN_FOLDER(test_stacked),        IN_FOLDER(test_end_of_file),   IN_FOLDER(test_waiting),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
