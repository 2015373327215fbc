/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Real saves in the background: on drives that are slow or fail, several in flight, cancelled, tried again, by ranks, into
 * the folder of a step, and with the power failing beside them.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ckpt/steps.h"
#include "fault/crash_test.h"
#include "os/clock.h"
#include "penstock/io_fault.h"
#include "support/ckpt_scene.h"
#include "unit/ckpt/thread_ranks.h"

enum { MS = 1000 * 1000, MIB = 1 << 20 };

static char *folder;
static scene old, new;

static int set_up(void **unused)
{
    (void)unused;
    folder = test_folder_create(true);
    if (folder == NULL)
        folder = test_folder_create(false);
    scene_add(&old, "old", PST_F32, 1, (const uint64_t[]){30000}, 1, false);
    scene_add(&new, "first", PST_U8, 1, (const uint64_t[]){9 * MIB + 1}, 2, false);
    scene_add(&new, "second", PST_BF16, 2, (const uint64_t[]){3, 5}, 3, false);
    scene_add(&new, "third", PST_U8, 1, (const uint64_t[]){3 * MIB}, 4, true);
    return 0;
}

static int tear_down(void **unused)
{
    (void)unused;
    pst_crash_forget();
    pst_sys_replace(NULL);
    scene_remove_folder(folder);
    scene_free(&old);
    scene_free(&new);
    return 0;
}

static pst_ckpt_options plain(const char *name)
{
    return (pst_ckpt_options){.struct_size = sizeof(pst_ckpt_options),
                              .path = test_path(folder, name),
                              .ring_bytes = 2 * MIB,
                              .bytes_per_second = PST_CKPT_UNLIMITED};
}

static pst_ckpt_saving *begin(const pst_ckpt_options *options, const scene *s)
{
    pst_ckpt_saving *saving = NULL;
    pst_error err = {0};
    assert_ok(pst_ckpt_begin(options, s->tensors, s->count, &saving, &err), &err);
    return saving;
}

static void assert_durable(pst_ckpt_saving *saving)
{
    pst_error err = {0};
    assert_ok(pst_ckpt_wait(saving, PST_CKPT_DURABLE, UINT64_MAX, &err), &err);
}

/* ---- in flight ---- */

static void test_several(void **unused)
{
    (void)unused;
    static const char *const names[] = {"a.safetensors", "b.pt", "c.safetensors", "a.safetensors", "b.pt"};
    enum { SAVES = sizeof names / sizeof names[0] };
    pst_ckpt_saving *savings[SAVES];
    pst_ckpt_options options[SAVES];
    for (int i = 0; i < SAVES; i++) {
        options[i] = plain(names[i]);
        savings[i] = begin(&options[i], i < 3 ? &old : &new);
    }
    for (int i = 0; i < SAVES; i++) {
        const scene *s = i < 3 ? &old : &new;
        pst_ckpt_report report = {.struct_size = sizeof report};
        assert_durable(savings[i]);
        assert_int_equal(pst_ckpt_get_report(savings[i], &report), 0);
        assert_int_equal(report.tensors, s->count);
        assert_true(report.blocked_seconds > 0 && report.copied_seconds > 0 && report.seconds > report.copied_seconds);
        assert_true(report.ring_bytes <= 2 * MIB);
        pst_ckpt_end(savings[i]);
    }
    for (int i = 2; i < SAVES; i++)
        assert_true(scene_is_saved(&options[i], options[i].path, i < 3 ? &old : &new));
    assert_int_equal(scene_count_entries(folder), 3);
}

/* A path is the one from where the program was at begin. */
static void test_elsewhere(void **unused)
{
    (void)unused;
    char here[4096];
    pst_ckpt_options slow = plain("a.pt"), relative = plain("b.pt");
    slow.bytes_per_second = 20 * MIB;
    relative.path = "b.pt";
    assert_non_null(getcwd(here, sizeof here));
    assert_int_equal(chdir(folder), 0);
    pst_ckpt_saving *first = begin(&slow, &new), *second = begin(&relative, &old);
    assert_int_equal(chdir(here), 0);
    pst_ckpt_hurry(first);
    assert_durable(first);
    assert_durable(second);
    pst_ckpt_end(first);
    pst_ckpt_end(second);
    assert_true(scene_is_saved(&relative, test_path(folder, "b.pt"), &old));
    assert_int_equal(scene_count_entries(folder), 2);
}

/* ---- a drive that is slow, or fails for a while ---- */

static pst_io_engine *make_engine(const pst_io_fault_options *faults)
{
    pst_io_engine *engine;
    pst_error err = {0};
    assert_ok(pst_io_fault_create(NULL, "threads", faults, &engine, &err), &err);
    return engine;
}

/* With a snapshot the tensors are free long before the drive is done. */
static void test_snapshot(void **unused)
{
    (void)unused;
    const pst_io_fault_options slow = {.struct_size = sizeof slow,
                                       .faults = PST_IO_FAULT_DELAY,
                                       .rate = 1,
                                       .writes = true,
                                       .min_delay_ns = 20 * MS,
                                       .max_delay_ns = 21 * MS};
    pst_io_engine *engine = make_engine(&slow);
    pst_ckpt_options options = plain("x.safetensors");
    options.io = (pst_io_options){.engine_table = engine, .workers = 1, .queue_depth = 1, .block_size = 512 << 10};
    options.snapshot_bytes = 32 * MIB;
    pst_ckpt_saving *saving = begin(&options, &new);
    pst_error err = {0};
    assert_ok(pst_ckpt_wait(saving, PST_CKPT_COPIED, UINT64_MAX, &err), &err);
    assert_int_equal(pst_ckpt_wait(saving, PST_CKPT_DURABLE, 0, NULL), 1);
    assert_durable(saving);
    pst_ckpt_report report = {.struct_size = sizeof report};
    assert_int_equal(pst_ckpt_get_report(saving, &report), 0);
    assert_true(report.seconds > 0.4 && report.copied_seconds < report.seconds / 2);
    pst_ckpt_end(saving);
    assert_true(scene_is_saved(&options, options.path, &new));
    pst_io_fault_destroy(engine);
}

static void test_failure_and_retry(void **unused)
{
    (void)unused;
    const int eio[] = {EIO};
    const pst_io_fault_options broken = {.struct_size = sizeof broken,
                                         .faults = PST_IO_FAULT_ERROR,
                                         .times = 60,
                                         .writes = true,
                                         .errors = eio,
                                         .error_count = 1};
    pst_ckpt_options options = plain("x.pt"), other = plain("y.pt");
    pst_error err = {0};
    assert_ok(pst_ckpt_save(&options, old.tensors, old.count, NULL, &err), &err);
    pst_io_engine *engine = make_engine(&broken);
    options.io = (pst_io_options){.engine_table = engine, .workers = 1};
    pst_ckpt_saving *saving = begin(&options, &new), *second = begin(&other, &new);
    assert_durable(second); /* one that failed does not hold up the next */
    assert_int_equal(pst_ckpt_wait(saving, PST_CKPT_DURABLE, UINT64_MAX, &err), -EIO);
    assert_string_equal(err.path, options.path);
    assert_true(scene_is_saved(&options, options.path, &old));
    assert_int_equal(scene_count_entries(folder), 2);
    int status = -EIO;
    for (int tries = 0; tries < 60 && status < 0; tries++) { /* until the drive is well again */
        assert_ok(pst_ckpt_retry(saving, &err), &err);
        status = pst_ckpt_wait(saving, PST_CKPT_DURABLE, UINT64_MAX, NULL);
    }
    assert_int_equal(status, 0);
    pst_ckpt_end(saving);
    pst_ckpt_end(second);
    assert_true(scene_is_saved(&options, options.path, &new) && scene_is_saved(&other, other.path, &new));
    assert_int_equal(scene_count_entries(folder), 2);
    pst_io_fault_destroy(engine);
}

static void test_cancel(void **unused)
{
    (void)unused;
    pst_ckpt_options options = plain("x.safetensors");
    pst_error err = {0};
    assert_ok(pst_ckpt_save(&options, old.tensors, old.count, NULL, &err), &err);
    options.bytes_per_second = 100000; /* two minutes */
    uint64_t begin_ns = pst_clock_ns();
    pst_ckpt_saving *saving = begin(&options, &new);
    assert_int_equal(pst_ckpt_wait(saving, PST_CKPT_DURABLE, 50 * MS, NULL), 1);
    pst_ckpt_cancel(saving);
    assert_int_equal(pst_ckpt_wait(saving, PST_CKPT_DURABLE, UINT64_MAX, &err), PST_E_CANCELLED);
    assert_true(pst_clock_ns() - begin_ns < UINT64_C(20000) * MS);
    pst_ckpt_end(saving);
    assert_true(scene_is_saved(&options, options.path, &old));
    assert_int_equal(scene_count_entries(folder), 1);
}

/* What is wrong is said by begin, not later; and begin does not wait for what is in flight. */
static void test_begin(void **unused)
{
    (void)unused;
    pst_ckpt_options options = plain("x.safetensors");
    pst_ckpt_saving *saving = NULL;
    pst_error err = {0};
    const pst_ckpt_tensor twice[] = {old.tensors[0], old.tensors[0]};
    assert_true(pst_ckpt_begin(&options, twice, 2, &saving, &err) < 0);
    assert_null(saving);
    options.bytes_per_second = 100000;
    pst_ckpt_saving *slow = begin(&options, &new);
    pst_ckpt_options other = plain("y.safetensors");
    saving = begin(&other, &old);
    assert_int_equal(pst_ckpt_wait(saving, PST_CKPT_COPIED, 0, NULL), 1);
    pst_ckpt_hurry(slow); /* its next buffers; the one whose turn was given out still waits */
    pst_ckpt_cancel(slow);
    assert_durable(saving);
    pst_ckpt_end(slow);
    pst_ckpt_end(saving);
}

/* ---- into steps, by ranks ---- */

enum { RANKS = 3 };

static void *save_step(void *argument)
{
    thread_rank *self = argument;
    pst_ckpt_step *step = NULL;
    pst_ckpt_saving *savings[2] = {NULL, NULL};
    char paths[2][512];
    self->status = pst_ckpt_step_begin(folder, 5, &self->ranks, &step, &self->err);
    for (int i = 0; i < 2 && self->status >= 0; i++) {
        snprintf(paths[i], sizeof paths[i], "%s/%s", pst_ckpt_step_path(step), i == 0 ? "a.safetensors" : "b.pt");
        const pst_ckpt_options o = {
            .struct_size = sizeof o, .path = paths[i], .ring_bytes = 2 * MIB, .ranks = &self->ranks};
        self->status = pst_ckpt_begin(&o, new.tensors, new.count, &savings[i], &self->err);
    }
    for (int i = 0; i < 2 && self->status >= 0; i++) {
        self->status = pst_ckpt_wait(savings[i], PST_CKPT_DURABLE, UINT64_MAX, &self->err);
        pst_ckpt_end(savings[i]);
    }
    if (self->status >= 0)
        self->status = pst_ckpt_step_commit(step, NULL, &self->err);
    pst_ckpt_step_end(step);
    return NULL;
}

static void test_step(void **unused)
{
    (void)unused;
    thread_rank ranks_of[RANKS];
    pst_manifest m;
    pst_error err = {0};
    thread_ranks_run(RANKS, ranks_of, save_step, NULL);
    for (int i = 0; i < RANKS; i++)
        assert_ok(ranks_of[i].status, &ranks_of[i].err);
    const char *path = test_path(folder, "step-000005");
    const pst_ckpt_ranks ranks = {.count = RANKS};
    const pst_ckpt_options a = {.path = test_path(path, "a.safetensors"), .ranks = &ranks};
    const pst_ckpt_options b = {.path = test_path(path, "b.pt"), .ranks = &ranks};
    assert_true(scene_is_saved(&a, a.path, &new) && scene_is_saved(&b, b.path, &new));
    assert_ok(pst_manifest_read(path, &m, &err), &err);
    assert_int_equal(m.file_count, 2);
    assert_true(m.files[0].covers_header && m.files[1].covers_header); /* nothing was read again */
    pst_manifest_free(&m);
}

/* ---- the power fails ---- */

static void prepare(const char *where, void *context)
{
    (void)context;
    char *keep = folder;
    pst_error err = {0};
    folder = (char *)(uintptr_t)where;
    pst_ckpt_options options = plain("x.pt");
    assert_ok(pst_ckpt_save(&options, old.tensors, old.count, NULL, &err), &err);
    folder = keep;
}

static scene small;

static int act(const char *where, void *context, pst_error *err)
{
    (void)context;
    const pst_ckpt_options options = {.struct_size = sizeof options,
                                      .path = test_path(where, "x.pt"),
                                      .ring_bytes = 2 * MIB,
                                      .io = {.engine = "threads", .workers = 1}};
    pst_ckpt_saving *first, *second;
    int status = pst_ckpt_begin(&options, small.tensors, small.count, &first, err);
    if (status < 0)
        return status;
    status = pst_ckpt_begin(&options, small.tensors, small.count, &second, err);
    if (status >= 0) {
        status = pst_ckpt_wait(first, PST_CKPT_DURABLE, UINT64_MAX, err);
        int other = pst_ckpt_wait(second, PST_CKPT_DURABLE, UINT64_MAX, err);
        status = status < 0 && other < 0 ? status : 0; /* either one has made it durable */
        pst_ckpt_end(second);
        if (other < 0 && status >= 0 && pst_crash_happened())
            status = 0;
    }
    pst_ckpt_end(first);
    return status;
}

static bool check(const char *where, bool done, void *context)
{
    (void)context;
    const pst_ckpt_options options = {.path = test_path(where, "x.pt")};
    return scene_is_saved(&options, options.path, &small) || (!done && scene_is_saved(&options, options.path, &old));
}

static void test_crash(void **unused)
{
    (void)unused;
    scene_add(&small, "t", PST_U8, 1, (const uint64_t[]){20001}, 9, false);
    const crash_trial trial = {.prepare = prepare, .act = act, .check = check, .seeds = 5};
    crash_count count = crash_try_all(&trial, true);
    assert_int_equal(count.bad, 0);
    assert_true(count.steps > 10);
    scene_free(&small);
}

/* The same around a whole step: saved in the background, committed, and the older one removed. */
static int make_step(const char *where, uint64_t number, pst_error *err)
{
    const pst_ckpt_commit_options o = {.struct_size = sizeof o, .keep_last = 1};
    char path[512];
    pst_ckpt_step *step;
    pst_ckpt_saving *saving;
    int status = pst_ckpt_step_begin(where, number, NULL, &step, err);
    if (status < 0)
        return status;
    snprintf(path, sizeof path, "%s/x.pt", pst_ckpt_step_path(step));
    const pst_ckpt_options options = {
        .struct_size = sizeof options, .path = path, .ring_bytes = 2 * MIB, .io = {.engine = "threads", .workers = 1}};
    status = pst_ckpt_begin(&options, small.tensors, small.count, &saving, err);
    if (status >= 0) {
        status = pst_ckpt_wait(saving, PST_CKPT_DURABLE, UINT64_MAX, err);
        pst_ckpt_end(saving);
    }
    if (status >= 0)
        status = pst_ckpt_step_commit(step, &o, err);
    pst_ckpt_step_end(step);
    return status;
}

static void prepare_step(const char *where, void *context)
{
    (void)context;
    pst_error err = {0};
    assert_ok(make_step(where, 1, &err), &err);
}

static int act_step(const char *where, void *context, pst_error *err)
{
    (void)context;
    return make_step(where, 2, err);
}

static bool check_step(const char *where, bool done, void *context)
{
    (void)context;
    for (int swept = 0; swept < 2; swept++) {
        uint64_t step = 0;
        char *path = NULL;
        pst_error err = {0};
        if (pst_ckpt_latest(where, &step, &path, &err) < 0)
            return false;
        const pst_ckpt_options options = {.path = test_path(path, "x.pt")};
        bool whole = scene_is_saved(&options, options.path, &small);
        pst_ckpt_free_path(path);
        if (!whole || !(step == 2 || (step == 1 && !done)) || pst_ckpt_sweep(where, NULL, &err) < 0)
            return false;
    }
    return scene_count_entries(where) <= 3; /* the newer one, the older one if it is still there, latest */
}

static void test_step_crash(void **unused)
{
    (void)unused;
    scene_add(&small, "t", PST_U8, 1, (const uint64_t[]){20001}, 9, false);
    const crash_trial trial = {.prepare = prepare_step, .act = act_step, .check = check_step, .seeds = 4};
    crash_count count = crash_try_all(&trial, true);
    assert_int_equal(count.bad, 0);
    assert_true(count.steps > 25);
    scene_free(&small);
}

int main(void)
{
    if (access("/dev/shm", W_OK) == 0)
        setenv("TMPDIR", "/dev/shm", 0);
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_several), TEST(test_elsewhere), TEST(test_snapshot), TEST(test_failure_and_retry), TEST(test_cancel),
        TEST(test_begin),   TEST(test_step),      TEST(test_crash),    TEST(test_step_crash),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
