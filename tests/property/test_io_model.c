/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Random operations of the I/O library against a model in memory: reads and writes at any offset, length and alignment,
 * vectored, with syncs, truncations and reservations in between, in batches of any size, several threads at once, with
 * every engine and setting, on plain and striped files, with and without an engine that misbehaves in ways that the
 * library makes good. Whatever a read brings, and whatever the files hold in the end, is what the model says.
 *
 * PST_TEST_OPERATIONS: how many (some more are carried out). Every scene prints its own seed when something is wrong;
 * PST_TEST_SEED set to it begins with that scene.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "penstock/io_fault.h"
#include "penstock/io_stripe.h"
#include "unit/io/io_test.h"

enum {
    DEFAULT_OPERATIONS = 30000,
    SCENE_OPERATIONS = 1500, /* per actor, about */
    MAX_ACTORS = 3,
    MAX_OPS = 64,
    MAX_PARTS = 5,
    ROOM = 1 << 20,  /* of an actor's own file, at most */
    REGION = 150001, /* of the shared file, per actor: its ends fit nothing */
    ARENA = 3 << 20, /* buffers of one batch */
    GUARD = 16,
    GUARD_BYTE = 0xa5,
    MEMBERS = 3
};

/* What is expected of an operation. */
typedef struct plan {
    pst_io_op op; /* as it was submitted */
    pst_io_segment parts[MAX_PARTS];
    uint32_t part_count;
    int64_t result;
    uint8_t *bytes; /* for a read: what it must bring; in the round's `expected` */
} plan;

/* One batch with all that belongs to it. */
typedef struct round {
    pst_io_batch *batch;
    pst_io_op ops[MAX_OPS];
    pst_io_segment segments[MAX_OPS][MAX_PARTS];
    plan plans[MAX_OPS];
    uint32_t count;
    uint8_t *arena, *expected;
    uint64_t used, expected_used;
    bool cancelled;
} round;

typedef struct scene scene;

/* A thread with a file of its own and a region of the shared one. */
typedef struct actor {
    pthread_t thread;
    scene *scene;
    unsigned number;
    uint64_t state, done_operations;
    pst_io_file *own;
    uint8_t *own_model, *region_model; /* ROOM and REGION bytes; zeros beyond own_bytes */
    uint64_t own_bytes;
    round rounds[2];   /* on the own file, on the shared one */
    char failure[800]; /* empty: none */
} actor;

struct scene {
    uint64_t seed, state;
    char *folder;
    char *members[MEMBERS];
    pst_stripe_set *stripes;
    pst_io_engine *wrapper;
    pst_io *io;
    pst_io_file *shared;
    unsigned actor_count;
    bool can_preallocate, registered;
    char text[300]; /* of the settings */
    actor actors[MAX_ACTORS];
};

/* Assertions belong to the main thread; the first failure of an actor is kept for it. */
#define CHECK(a, condition, ...)                                                                                       \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            if ((a)->failure[0] == '\0')                                                                               \
                snprintf((a)->failure, sizeof(a)->failure, __VA_ARGS__);                                               \
            return false;                                                                                              \
        }                                                                                                              \
    } while (0)

/* ---- making operations ---- */

static uint64_t random_length(uint64_t *state)
{
    uint64_t die = test_below(state, 100);
    if (die < 3)
        return 0;
    if (die < 50)
        return test_below(state, 700);
    if (die < 65)
        return 512 * test_below(state, 9);
    if (die < 80)
        return 4096 * test_below(state, 5);
    if (die < 97)
        return test_below(state, 20000);
    return test_below(state, 200000);
}

static uint64_t random_offset(uint64_t *state, uint64_t limit)
{
    static const uint64_t units[] = {1, 1, 512, 4096};
    uint64_t unit = units[test_below(state, 4)];
    return test_below(state, limit / unit + 1) * unit;
}

/* Room for one part in the arena, between guards; NULL when it is full. */
static uint8_t *place_part(round *r, uint64_t *state, uint64_t bytes)
{
    static const uint64_t units[] = {1, 4, 512, 4096};
    uint64_t unit = units[test_below(state, 4)];
    uint64_t start = (r->used + GUARD + unit - 1) / unit * unit;
    if (start + bytes + GUARD > ARENA)
        return NULL;
    r->used = start + bytes + GUARD;
    memset(r->arena + start - GUARD, GUARD_BYTE, GUARD);
    memset(r->arena + start + bytes, GUARD_BYTE, GUARD);
    return r->arena + start;
}

/* Gives the plan's operation its memory. */
static bool place(round *r, plan *p, uint64_t *state)
{
    bool vectored = test_below(state, 4) == 0;
    uint64_t left = p->op.bytes;
    p->part_count = vectored ? 1 + (uint32_t)test_below(state, MAX_PARTS) : 1;
    for (uint32_t i = 0; i < p->part_count; i++) {
        uint64_t bytes = i + 1 == p->part_count ? left : test_below(state, 3) == 0 ? 0 : test_below(state, left + 1);
        uint8_t *memory = place_part(r, state, bytes);
        if (memory == NULL)
            return false;
        p->parts[i] = (pst_io_segment){.memory = memory, .bytes = bytes};
        left -= bytes;
    }
    p->op.segment_count = vectored ? p->part_count : 0;
    p->op.buffer = vectored ? NULL : p->parts[0].memory;
    return true;
}

/* What a model in memory is of. */
typedef struct target {
    pst_io_file *file;
    uint8_t *model;
    uint64_t base;   /* of the model, in the file */
    uint64_t *bytes; /* of the file, behind the base; NULL: no end in reach */
    uint64_t limit;  /* of the model */
} target;

static bool add_read(round *r, const target *t, uint64_t *state, uint64_t at, uint64_t bytes)
{
    plan *p = &r->plans[r->count];
    uint64_t end = t->bytes != NULL ? *t->bytes : t->limit, there = at < end ? end - at : 0;
    uint64_t got = there < bytes ? there : bytes;
    *p = (plan){.op = {.file = t->file, .offset = t->base + at, .bytes = bytes, .kind = PST_IO_READ}};
    p->op.may_be_short = test_below(state, 2) == 0;
    if (r->expected_used + got > ARENA || !place(r, p, state))
        return false;
    p->result = got == bytes || p->op.may_be_short ? (int64_t)got : PST_E_SHORT;
    p->bytes = r->expected + r->expected_used;
    memcpy(p->bytes, t->model + at, got);
    r->expected_used += got;
    r->count++;
    return true;
}

static bool add_write(round *r, const target *t, uint64_t *state, uint64_t at, uint64_t bytes)
{
    plan *p = &r->plans[r->count];
    *p = (plan){.op = {.file = t->file, .offset = t->base + at, .bytes = bytes, .kind = PST_IO_WRITE},
                .result = (int64_t)bytes};
    if (!place(r, p, state))
        return false;
    uint64_t key = test_random(state), from = at;
    for (uint32_t i = 0; i < p->part_count; i++) {
        test_fill(p->parts[i].memory, p->parts[i].bytes, key, from);
        memcpy(t->model + from, p->parts[i].memory, p->parts[i].bytes);
        from += p->parts[i].bytes;
    }
    if (t->bytes != NULL && bytes > 0 && from > *t->bytes)
        *t->bytes = from;
    r->count++;
    return true;
}

/* Any reads, also beyond the end. */
static void make_reads(round *r, const target *t, uint64_t *state, uint32_t most)
{
    while (r->count < most) {
        uint64_t at = random_offset(state, t->bytes != NULL && test_below(state, 8) > 0 ? *t->bytes : t->limit);
        uint64_t bytes = random_length(state);
        if (at >= t->limit)
            continue;
        if (bytes > t->limit - at)
            bytes = t->limit - at;
        if (!add_read(r, t, state, at, bytes))
            return;
    }
}

/* Reads and writes of ranges that do not meet, side by side or with gaps, in any order. */
static void make_writes(round *r, const target *t, uint64_t *state, uint32_t most)
{
    uint32_t first = r->count;
    uint64_t end = t->bytes != NULL ? *t->bytes : t->limit; /* the length that a read may rely on */
    uint64_t at = random_offset(state, (end < t->limit ? end : t->limit) * 3 / 4);
    while (r->count < most) {
        uint64_t bytes = random_length(state);
        if (bytes > t->limit - at)
            break;
        bool read = test_below(state, 4) == 0 && at + bytes <= end;
        if (!(read ? add_read(r, t, state, at, bytes) : add_write(r, t, state, at, bytes)))
            break;
        at += bytes;
        if (test_below(state, 3) == 0)
            at += test_below(state, 5000);
        if (at >= t->limit)
            break;
    }
    for (uint32_t i = r->count; i > first + 1; i--) {
        uint32_t j = first + (uint32_t)test_below(state, i - first);
        plan swap = r->plans[i - 1];
        r->plans[i - 1] = r->plans[j];
        r->plans[j] = swap;
    }
}

static void make_ordered(round *r, const target *t, uint64_t *state, bool can_preallocate)
{
    plan *p = &r->plans[r->count++];
    *p = (plan){.op = {.file = t->file, .kind = PST_IO_SYNC}};
    uint64_t die = test_below(state, 8);
    if (t->bytes == NULL || die < 2)
        return;
    uint64_t before = *t->bytes;
    if (die < 6 || !can_preallocate) {
        p->op.kind = PST_IO_TRUNCATE;
        p->op.offset = *t->bytes = random_offset(state, ROOM - 4096);
        if (*t->bytes < before)
            memset(t->model + *t->bytes, 0, before - *t->bytes);
    } else {
        p->op.kind = PST_IO_PREALLOCATE;
        p->op.offset = random_offset(state, ROOM / 2);
        p->op.bytes = 1 + test_below(state, ROOM / 4);
        if (p->op.offset + p->op.bytes > before)
            *t->bytes = p->op.offset + p->op.bytes;
    }
}

static void make_round(round *r, const target *t, uint64_t *state, bool can_preallocate)
{
    uint32_t most = 1 + (uint32_t)test_below(state, test_below(state, 4) == 0 ? MAX_OPS : 12);
    r->count = 0;
    r->used = r->expected_used = 0;
    for (uint32_t phase = 0; phase < 3 && r->count < most; phase++) {
        if (phase > 0)
            make_ordered(r, t, state, can_preallocate);
        uint32_t until = phase < 2 && test_below(state, 2) == 0 ? r->count + (most - r->count) / 2 : most;
        if (test_below(state, 2) == 0)
            make_reads(r, t, state, until);
        else
            make_writes(r, t, state, until);
    }
    for (uint32_t i = 0; i < r->count; i++) {
        r->ops[i] = r->plans[i].op;
        memcpy(r->segments[i], r->plans[i].parts, sizeof r->segments[i]);
        r->ops[i].segments = r->ops[i].segment_count > 0 ? r->segments[i] : NULL;
    }
}

/* ---- looking at the results ---- */

static bool check_memory(actor *a, const round *r, const plan *p, uint32_t index)
{
    uint64_t left = p->result > 0 ? (uint64_t)p->result : 0;
    const uint8_t *expected = p->bytes;
    (void)r;
    for (uint32_t i = 0; i < p->part_count; i++) {
        const uint8_t *memory = p->parts[i].memory;
        uint64_t bytes = p->parts[i].bytes, compared = bytes < left ? bytes : left;
        for (int g = 0; g < GUARD; g++)
            CHECK(a, memory[g - GUARD] == GUARD_BYTE && memory[bytes + (uint64_t)g] == GUARD_BYTE,
                  "operation %u wrote outside of its memory", index);
        if (p->op.kind != PST_IO_READ || compared == 0)
            continue;
        if (memcmp(memory, expected, compared) != 0) {
            uint64_t b = 0;
            while (memory[b] == expected[b])
                b++;
            CHECK(a, false, "operation %u, a read of %llu bytes at %llu: byte %llu of part %u is %u, not %u", index,
                  (unsigned long long)p->op.bytes, (unsigned long long)p->op.offset, (unsigned long long)b, i,
                  memory[b], expected[b]);
        }
        expected += compared;
        left -= compared;
    }
    return true;
}

static bool check_round(actor *a, round *r, int status)
{
    int expected = 0;
    for (uint32_t i = 0; i < r->count; i++) {
        const plan *p = &r->plans[i];
        pst_error err = {0};
        CHECK(a, r->ops[i].result == p->result,
              "operation %u of %u (kind %d, %llu bytes at %llu) ended with %lld, not %lld", i, r->count, p->op.kind,
              (unsigned long long)p->op.bytes, (unsigned long long)p->op.offset, (long long)r->ops[i].result,
              (long long)p->result);
        CHECK(a, pst_io_op_error(r->batch, i, &err) == (p->result < 0 ? (int)p->result : 0), "no error of operation %u",
              i);
        if (p->result < 0 && expected == 0)
            expected = (int)p->result;
        if (!check_memory(a, r, p, i))
            return false;
    }
    CHECK(a, status == expected, "the batch ended with %d, not %d", status, expected);
    return true;
}

/* Waits in one of the ways that there are. */
static bool wait_round(actor *a, round *r, int *status)
{
    pst_error err = {0};
    bool seen[MAX_OPS] = {false};
    uint32_t which;
    switch (test_below(&a->state, 5)) {
    case 0:
        while (pst_io_wait(r->batch, 0, &err) == 1)
            sched_yield();
        break;
    case 1:
        for (uint32_t i = 0; i < r->count; i++) {
            CHECK(a, pst_io_next_done(r->batch, UINT64_MAX, &which, &err) == 0, "next_done: %s", err.message);
            CHECK(a, which < r->count && !seen[which], "operation %u came twice", which);
            CHECK(a, r->ops[which].result == r->plans[which].result, "operation %u came too early", which);
            seen[which] = true;
        }
        CHECK(a, pst_io_next_done(r->batch, 0, &which, &err) == PST_E_USAGE, "there is an operation too many");
        break;
    case 2:
        if (r->count > 0) {
            which = (uint32_t)test_below(&a->state, r->count);
            int one = pst_io_wait_op(r->batch, which, UINT64_MAX, &err);
            CHECK(a, one == (r->plans[which].result < 0 ? (int)r->plans[which].result : 0),
                  "operation %u alone ended with %d: %s", which, one, err.message);
        }
        break;
    default: break;
    }
    *status = pst_io_wait(r->batch, UINT64_MAX, &err);
    return true;
}

/* ---- cancelling ---- */

/* Brings the region's model up to date by plain calls; nothing but what was about to be written may differ. */
static bool reread_region(actor *a, const uint8_t *before, const uint8_t *touched)
{
    uint8_t *found = malloc(REGION);
    int fd = open(pst_io_file_path(a->scene->shared), O_RDONLY | O_CLOEXEC);
    ssize_t got = fd >= 0 ? pread(fd, found, REGION, (off_t)a->number * REGION) : -1;
    if (fd >= 0)
        close(fd);
    uint64_t wrong = REGION;
    for (uint64_t i = 0; i < REGION && got == REGION && wrong == REGION; i++) {
        if (!touched[i] && found[i] != before[i])
            wrong = i;
    }
    if (got == REGION)
        memcpy(a->region_model, found, REGION);
    free(found);
    CHECK(a, got == REGION, "cannot read the shared file");
    CHECK(a, wrong == REGION, "byte %llu of the region changed without a write to it", (unsigned long long)wrong);
    return true;
}

/* A batch on the region that is cancelled, wholly or one operation of it, at some moment. */
static bool cancel_round(actor *a, const target *t)
{
    round *r = &a->rounds[1];
    pst_error err = {0};
    uint8_t *before = malloc(REGION), *touched = calloc(1, REGION);
    memcpy(before, a->region_model, REGION);
    r->count = 0;
    r->used = r->expected_used = 0;
    make_writes(r, t, &a->state, MAX_OPS);
    for (uint32_t i = 0; i < r->count; i++) {
        r->ops[i] = r->plans[i].op;
        memcpy(r->segments[i], r->plans[i].parts, sizeof r->segments[i]);
        r->ops[i].segments = r->ops[i].segment_count > 0 ? r->segments[i] : NULL;
    }
    int status = pst_io_submit(r->batch, r->ops, r->count, &err);
    if (status >= 0 && test_below(&a->state, 2) == 0)
        sched_yield();
    if (test_below(&a->state, 2) == 0)
        pst_io_cancel(r->batch);
    else if (r->count > 0)
        pst_io_cancel_op(r->batch, (uint32_t)test_below(&a->state, r->count));
    pst_io_wait(r->batch, UINT64_MAX, &err);
    bool good = status >= 0;
    for (uint32_t i = 0; i < r->count && good; i++) {
        plan *p = &r->plans[i];
        if (r->ops[i].result == PST_E_CANCELLED) {
            if (p->op.kind == PST_IO_WRITE)
                memset(touched + (p->op.offset - t->base), 1, p->op.bytes);
            p->result = 0; /* nothing to compare but the guards */
        } else if (p->op.kind == PST_IO_WRITE) {
            uint64_t at = p->op.offset - t->base;
            memcpy(before + at, a->region_model + at, p->op.bytes);
        }
        if (r->ops[i].result != PST_E_CANCELLED && r->ops[i].result != p->result) {
            snprintf(a->failure, sizeof a->failure, "a cancelled batch's operation %u ended with %lld", i,
                     (long long)r->ops[i].result);
            good = false;
        }
        good = good && check_memory(a, r, p, i);
    }
    good = good && reread_region(a, before, touched);
    free(before);
    free(touched);
    a->done_operations += r->count;
    return good;
}

/* ---- actors ---- */

static bool act_once(actor *a)
{
    scene *s = a->scene;
    pst_error err = {0};
    target own = {.file = a->own, .model = a->own_model, .bytes = &a->own_bytes, .limit = ROOM};
    target region = {
        .file = s->shared, .model = a->region_model, .base = (uint64_t)a->number * REGION, .limit = REGION};
    if (test_below(&a->state, 30) == 0)
        return cancel_round(a, &region);
    pst_io_batch *batches[2];
    int statuses[2];
    for (int i = 0; i < 2; i++) {
        round *r = &a->rounds[i];
        make_round(r, i == 0 ? &own : &region, &a->state, s->can_preallocate);
        int status = pst_io_submit(r->batch, r->ops, r->count, &err);
        CHECK(a, status >= 0, "cannot submit: %s", err.message);
        batches[i] = r->batch;
        a->done_operations += r->count;
    }
    uint32_t which = 2;
    if (test_below(&a->state, 3) == 0)
        CHECK(a, pst_io_wait_any(batches, 2, UINT64_MAX, &which, &err) == 0 && which < 2, "wait_any: %s", err.message);
    for (int i = 0; i < 2; i++) {
        if (which < 2 && i == 0)
            CHECK(a, pst_io_wait(batches[which], 0, &err) != 1, "wait_any named a batch that is not done");
        if (!wait_round(a, &a->rounds[i], &statuses[i]))
            return false;
    }
    return check_round(a, &a->rounds[0], statuses[0]) && check_round(a, &a->rounds[1], statuses[1]);
}

static void *act(void *argument)
{
    actor *a = argument;
    while (a->done_operations < SCENE_OPERATIONS && act_once(a))
        ;
    return NULL;
}

/* ---- scenes ---- */

static bool preallocation_works(const char *folder)
{
    const char *path = test_path(folder, "probe");
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    bool works = fallocate(fd, 0, 0, 10000) == 0;
    close(fd);
    unlink(path);
    return works;
}

/* An engine that misbehaves so that nobody notices. */
static void wrap_engine(scene *s, const char *engine)
{
    static const int passing[] = {EAGAIN, EINTR};
    static const uint32_t faults[] = {PST_IO_FAULT_SHORT, PST_IO_FAULT_REORDER | PST_IO_FAULT_SHORT,
                                      PST_IO_FAULT_ERROR | PST_IO_FAULT_REORDER,
                                      PST_IO_FAULT_ERROR | PST_IO_FAULT_SHORT | PST_IO_FAULT_DELAY};
    pst_io_fault_options o = {.struct_size = sizeof o,
                              .faults = faults[test_below(&s->state, 4)],
                              .seed = test_random(&s->state),
                              .rate = (double)(1 + test_below(&s->state, 20)) / 100,
                              .errors = passing,
                              .error_count = 2,
                              .max_delay_ns = 50000};
    pst_error err = {0};
    assert_ok(pst_io_fault_create(NULL, engine, &o, &s->wrapper, &err), &err);
}

static void open_io(scene *s, bool tmpfs)
{
    static const char *const engines[] = {"threads", "libaio", "io_uring", "auto"};
    static const uint64_t blocks[] = {4096, 8192, 12288, 65536, 1 << 20, 0};
    const char *engine = engines[test_below(&s->state, 4)];
    if (strcmp(engine, "io_uring") == 0 && !test_have_uring())
        engine = "threads";
    pst_io_options o = {.struct_size = sizeof o,
                        .engine = engine,
                        .block_size = blocks[test_below(&s->state, 6)],
                        .queue_depth = 1 + (uint32_t)test_below(&s->state, 40),
                        .workers = (uint32_t)test_below(&s->state, 5),
                        .buffered = test_below(&s->state, 6) == 0,
                        .single_submit = test_below(&s->state, 4) == 0,
                        .overlap_events = (pst_io_switch)test_below(&s->state, 3),
                        .measure_latency = test_below(&s->state, 2) == 0,
                        .path = s->folder};
    if (test_below(&s->state, 3) == 0) {
        wrap_engine(s, engine);
        o.engine = NULL;
        o.engine_table = s->wrapper;
    }
    pst_error err = {0};
    assert_ok(pst_io_open(&o, &s->io, &err), &err);
    snprintf(s->text, sizeof s->text,
             "seed %llu: %s on %s%s%s, blocks of %llu, depth %u, %u workers, %u actors, single_submit %d, overlap %d",
             (unsigned long long)s->seed, pst_io_engine_name(s->io), tmpfs ? "tmpfs" : "disk",
             o.buffered ? ", buffered" : "", s->stripes != NULL ? ", striped" : "", (unsigned long long)o.block_size,
             o.queue_depth, o.workers, s->actor_count, o.single_submit, o.overlap_events);
}

static void make_stripes(scene *s)
{
    static const uint64_t sizes[] = {4096, 8192, 65536};
    pst_error err = {0};
    uint32_t count = 1 + (uint32_t)test_below(&s->state, MEMBERS);
    for (uint32_t i = 0; i < count; i++) {
        char name[32];
        snprintf(name, sizeof name, "member-%u", i);
        s->members[i] = strdup(test_path(s->folder, name));
        assert_int_equal(mkdir(s->members[i], 0755), 0);
    }
    const char *const *folders = (const char *const *)s->members;
    assert_ok(pst_stripe_create(folders, count, sizes[test_below(&s->state, 3)], &err), &err);
    assert_ok(pst_stripe_open(folders, count, &s->stripes, &err), &err);
}

static void own_name(const actor *a, char *out, size_t bytes)
{
    snprintf(out, bytes, "own-%u", a->number);
}

static void open_own(actor *a, pst_io *io, unsigned flags, pst_io_file **out)
{
    char name[32];
    pst_error err = {0};
    own_name(a, name, sizeof name);
    if (a->scene->stripes != NULL)
        assert_ok(pst_stripe_file_open(a->scene->stripes, io, name, flags, out, &err), &err);
    else
        assert_ok(pst_io_file_open(io, test_path(a->scene->folder, name), flags, out, &err), &err);
}

static void open_actor(scene *s, unsigned number)
{
    actor *a = &s->actors[number];
    pst_error err = {0};
    *a = (actor){.scene = s, .number = number, .state = test_random(&s->state)};
    a->own_model = calloc(1, ROOM);
    a->region_model = malloc(REGION);
    assert_true(a->own_model != NULL && a->region_model != NULL);
    open_own(a, s->io, PST_IO_OPEN_WRITE | PST_IO_OPEN_CREATE, &a->own);
    for (int i = 0; i < 2; i++) {
        round *r = &a->rounds[i];
        r->arena = aligned_alloc(4096, ARENA);
        r->expected = malloc(ARENA);
        assert_true(r->arena != NULL && r->expected != NULL);
        if (s->registered)
            assert_ok(pst_io_register(s->io, r->arena, ARENA, &err), &err);
        assert_ok(pst_io_batch_create(s->io, MAX_OPS, &r->batch, &err), &err);
    }
}

static void open_shared(scene *s)
{
    const char *path = test_path(s->folder, "shared");
    uint64_t bytes = (uint64_t)s->actor_count * REGION;
    uint8_t *content = malloc(bytes);
    pst_error err = {0};
    test_fill(content, bytes, test_random(&s->state), 0);
    test_write_file(path, content, bytes);
    assert_ok(pst_io_file_open(s->io, path, PST_IO_OPEN_WRITE, &s->shared, &err), &err);
    for (unsigned i = 0; i < s->actor_count; i++)
        memcpy(s->actors[i].region_model, content + i * REGION, REGION);
    free(content);
}

/* The files as a whole, read by other means than they were written. */
static void compare_files(scene *s)
{
    uint64_t bytes;
    pst_error err = {0};
    uint8_t *found = test_read_file(test_path(s->folder, "shared"), &bytes);
    assert_int_equal(bytes, (uint64_t)s->actor_count * REGION);
    for (unsigned i = 0; i < s->actor_count; i++) {
        if (memcmp(found + i * REGION, s->actors[i].region_model, REGION) != 0)
            fail_msg("%s: the region of actor %u is wrong in the end", s->text, i);
    }
    free(found);
    pst_io *plain = test_open("threads", 0, 1, 1, true);
    for (unsigned i = 0; i < s->actor_count; i++) {
        actor *a = &s->actors[i];
        pst_io_file *file;
        open_own(a, plain, PST_IO_OPEN_READ, &file);
        if (pst_io_file_bytes(file) != a->own_bytes)
            fail_msg("%s: the file of actor %u has %llu bytes in the end, not %llu", s->text, i,
                     (unsigned long long)pst_io_file_bytes(file), (unsigned long long)a->own_bytes);
        found = malloc(a->own_bytes + 1);
        pst_io_op op = {.file = file, .buffer = found, .bytes = a->own_bytes};
        assert_ok(pst_io_transfer(plain, &op, &err), &err);
        if (memcmp(found, a->own_model, a->own_bytes) != 0)
            fail_msg("%s: the file of actor %u is wrong in the end", s->text, i);
        free(found);
        assert_ok(pst_io_file_close(file, &err), &err);
    }
    pst_io_close(plain);
}

static void close_scene(scene *s)
{
    pst_error err = {0};
    for (unsigned i = 0; i < s->actor_count; i++) {
        actor *a = &s->actors[i];
        for (int r = 0; r < 2; r++) {
            pst_io_batch_destroy(a->rounds[r].batch);
            pst_io_unregister(s->io, a->rounds[r].arena);
            free(a->rounds[r].arena);
            free(a->rounds[r].expected);
        }
        assert_ok(pst_io_file_close(a->own, &err), &err);
        free(a->own_model);
        free(a->region_model);
    }
    assert_ok(pst_io_file_close(s->shared, &err), &err);
    pst_io_close(s->io);
    pst_io_fault_destroy(s->wrapper);
    pst_stripe_close(s->stripes);
    for (int i = 0; i < MEMBERS; i++) {
        if (s->members[i] == NULL)
            continue;
        test_folder_remove(s->members[i]); /* frees it, too */
    }
    test_folder_remove(s->folder);
}

static uint64_t play(uint64_t seed)
{
    static scene s;
    s = (scene){.seed = seed, .state = seed};
    bool tmpfs = test_below(&s.state, 3) > 0;
    s.folder = test_folder_create(tmpfs);
    if (s.folder == NULL)
        s.folder = test_folder_create(false);
    s.actor_count = 1 + (unsigned)test_below(&s.state, MAX_ACTORS);
    s.can_preallocate = preallocation_works(s.folder);
    s.registered = test_below(&s.state, 2) == 0;
    if (test_below(&s.state, 4) == 0)
        make_stripes(&s);
    open_io(&s, tmpfs);
    for (unsigned i = 0; i < s.actor_count; i++)
        open_actor(&s, i);
    open_shared(&s);
    uint64_t operations = 0;
    for (unsigned i = 0; i < s.actor_count; i++)
        assert_int_equal(pthread_create(&s.actors[i].thread, NULL, act, &s.actors[i]), 0);
    for (unsigned i = 0; i < s.actor_count; i++) {
        assert_int_equal(pthread_join(s.actors[i].thread, NULL), 0);
        operations += s.actors[i].done_operations;
    }
    for (unsigned i = 0; i < s.actor_count; i++) {
        if (s.actors[i].failure[0] != '\0')
            fail_msg("%s: actor %u: %s", s.text, i, s.actors[i].failure);
    }
    compare_files(&s);
    close_scene(&s);
    return operations;
}

static uint64_t first_seed;

static void test_model(void **unused)
{
    (void)unused;
    const char *given = getenv("PST_TEST_OPERATIONS");
    uint64_t wanted = given != NULL ? strtoull(given, NULL, 0) : DEFAULT_OPERATIONS;
    uint64_t seed = first_seed, next = first_seed, operations = 0, scenes = 0;
    for (; operations < wanted; scenes++) {
        operations += play(seed);
        seed = test_random(&next);
    }
    print_message("%llu operations in %llu scenes\n", (unsigned long long)operations, (unsigned long long)scenes);
}

int main(void)
{
    first_seed = test_seed();
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_model)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
