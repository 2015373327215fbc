/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every system call and every allocation of a save fails in turn: either the save succeeds and the file is as it must be, or
 * it fails with an error that says why, the older file is as it was, and nothing is left beside it.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/heap.h"
#include "os/sys_fault.h"
#include "penstock/io_fault.h"
#include "support/ckpt_scene.h"

typedef struct setting {
    const char *name, *engine;
    uint64_t shard_bytes;
    uint32_t ranks;
} setting;

static const setting settings[] = {
    {.name = "x.safetensors", .ranks = 1},
    {.name = "x.pt", .ranks = 1},
    {.name = "x", .shard_bytes = 300010, .ranks = 1},
    {.name = "x.pt", .ranks = 2},
};

static scene old, new;

static int set_up(void **unused)
{
    (void)unused;
    scene_add(&old, "old", PST_F32, 1, (const uint64_t[]){30000}, 1, false);
    scene_add(&new, "first", PST_U8, 1, (const uint64_t[]){300001}, 2, false);
    scene_add(&new, "second", PST_BF16, 1, (const uint64_t[]){3}, 3, false);
    scene_add(&new, "third", PST_U8, 1, (const uint64_t[]){400000}, 4, true);
    return 0;
}

static int tear_down(void **unused)
{
    (void)unused;
    pst_sys_replace(NULL);
    pst_heap_fail_after(-1, 0);
    scene_free(&old);
    scene_free(&new);
    return 0;
}

static int save(const pst_ckpt_options *options, const setting *how, pst_error *err)
{
    if (how->ranks == 1)
        return pst_ckpt_save(options, new.tensors, new.count, NULL, err);
    pst_error errors[8] = {0};
    int statuses[8], status = scene_save_by_ranks(options, &new, how->ranks, statuses, errors, NULL);
    for (uint32_t i = 1; i < how->ranks; i++)
        assert_int_equal(statuses[i] < 0, statuses[0] < 0);
    *err = errors[0];
    return status;
}

/* The real calls without waiting for the drive. */
static pst_sys_table quick;

static int no_sync(int fd)
{
    (void)fd;
    return 0;
}

/* A folder with the old file; for shards an empty one. */
static char *make_folder(const setting *how, pst_ckpt_options *out)
{
    char *folder = test_folder_create(false);
    pst_error err = {0};
    *out = (pst_ckpt_options){.struct_size = sizeof *out,
                              .path = test_path(folder, how->name),
                              .shard_bytes = how->shard_bytes,
                              .ring_bytes = 2 << 20,
                              .io = {.engine = how->engine != NULL ? how->engine : "threads", .workers = 1}};
    quick = pst_sys_real;
    quick.fdatasync = quick.fsync = no_sync;
    pst_sys_replace(&quick);
    if (how->shard_bytes == 0)
        assert_ok(pst_ckpt_save(out, old.tensors, old.count, NULL, &err), &err);
    return folder;
}

/* After a save with something wrong. */
static void look(const setting *how, const pst_ckpt_options *options, const char *folder, int status,
                 const pst_error *err, const char *what)
{
    const pst_ckpt_ranks ranks = {.count = how->ranks};
    pst_ckpt_options as_ranks = *options;
    as_ranks.ranks = &ranks;
    bool is_new = scene_is_saved(&as_ranks, options->path, &new);
    size_t entries = scene_count_entries(folder);
    if (status >= 0) {
        if (!is_new || entries != 1)
            fail_msg("%s, %s: reported as saved, but it is not", how->name, what);
        return;
    }
    if (err->code != status || err->message[0] == '\0' || strstr(err->path, ".tmp-") != NULL)
        fail_msg("%s, %s: %d without words, or about a temporary path: %s: %s", how->name, what, status, err->path,
                 err->message);
    if (strstr(err->message, "survives") != NULL) { /* the last sync of all */
        assert_true(is_new && entries == 1);
        return;
    }
    bool is_old = how->shard_bytes > 0 ? entries == 0 : entries == 1 && scene_is_saved(options, options->path, &old);
    if (!is_old)
        fail_msg("%s, %s: failed (%s), and what was there is no more, or something is left", how->name, what,
                 err->message);
}

/* ---- system calls ---- */

static unsigned fail_each(const setting *how, pst_fault_kind kind, int error)
{
    unsigned failed = 0;
    for (int at = 0;; at++) {
        pst_ckpt_options options;
        char *folder = make_folder(how, &options), what[128];
        pst_error err = {0};
        pst_fault_reset();
        pst_sys_replace(&pst_sys_fault);
        pst_fault_fail(kind, at, 1, error);
        int status = save(&options, how, &err);
        bool happened = pst_fault_count(kind) > at;
        pst_sys_replace(NULL);
        snprintf(what, sizeof what, "%s number %d fails with %s", pst_fault_name(kind), at, strerror(error));
        look(how, &options, folder, status, &err, what);
        assert_true(happened || status >= 0);
        failed += status < 0;
        scene_remove_folder(folder);
        if (!happened)
            return failed;
        assert_true(at < 500);
    }
}

static void test_every_call(void **unused)
{
    (void)unused;
    static const pst_fault_kind quiet[] = {PST_FAULT_SLEEP, PST_FAULT_URING_INIT}; /* and what the rings alone use */
    for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++)
        for (pst_fault_kind kind = 0; kind < PST_FAULT_KINDS; kind++)
            if (kind != quiet[0] && (kind < quiet[1] || kind > PST_FAULT_AIO_GETEVENTS))
                fail_each(&settings[i], kind, EIO);
}

/* What must be noticed, is. */
static void test_what_is_fatal(void **unused)
{
    (void)unused;
    const setting *one = &settings[0];
    assert_int_equal(fail_each(one, PST_FAULT_FDATASYNC, EIO), 1);
    assert_int_equal(fail_each(one, PST_FAULT_FSYNC, EIO), 1);
    assert_int_equal(fail_each(one, PST_FAULT_RENAME, EACCES), 1);
    assert_int_equal(fail_each(one, PST_FAULT_FALLOCATE, ENOSPC), 1);
    assert_int_equal(fail_each(one, PST_FAULT_FTRUNCATE, EIO), 1);
    assert_true(fail_each(one, PST_FAULT_WRITE, ENOSPC) >= 2); /* at once, however often it would go well later */
    assert_int_equal(fail_each(one, PST_FAULT_WRITE, EIO), 0); /* that may pass */
    assert_true(fail_each(one, PST_FAULT_OPEN, EMFILE) >= 2);
}

static void test_rings_fail(void **unused)
{
    (void)unused;
    static const pst_fault_kind kinds[] = {PST_FAULT_WRITE, PST_FAULT_URING_INIT, PST_FAULT_URING_ENTER,
                                           PST_FAULT_URING_FILES, PST_FAULT_URING_BUFFERS};
    const setting ring = {.name = "x.pt", .engine = "io_uring", .ranks = 1};
    if (!test_have_uring())
        return;
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
        fail_each(&ring, kinds[i], ENOMEM);
}

/* A drive that never recovers, or is full: how often it was tried is told. */
static void test_drive_that_fails(void **unused)
{
    (void)unused;
    for (int times = 1; times < 6; times++) {
        pst_ckpt_options options;
        char *folder = make_folder(&settings[0], &options);
        pst_error err = {0};
        pst_io_engine *faulty;
        pst_ckpt_report report = {.struct_size = sizeof report};
        const pst_io_fault_options faults = {.struct_size = sizeof faults,
                                             .faults = PST_IO_FAULT_ERROR,
                                             .times = times,
                                             .errors = (const int[]){EIO},
                                             .error_count = 1};
        assert_ok(pst_io_fault_create(NULL, "threads", &faults, &faulty, &err), &err);
        options.io.engine_table = faulty;
        options.io.engine = NULL;
        options.io.queue_depth = 1;
        int status = pst_ckpt_save(&options, new.tensors, new.count, &report, &err);
        look(&settings[0], &options, folder, status, &err, "errors of the drive");
        if (status >= 0)
            assert_in_range(report.retried, 1, times);
        else
            assert_non_null(strstr(err.message, "write"));
        if (times == 1)
            assert_int_equal(status, 0);
        pst_io_fault_destroy(faulty);
        scene_remove_folder(folder);
    }
}

/* ---- allocations ---- */

static void test_every_allocation(void **unused)
{
    (void)unused;
    for (size_t i = 0; i < 3; i++) { /* with ranks nobody knows whose allocation it is */
        int status = -1, n = 0;
        for (; status < 0 || n < 20; n++) {
            pst_ckpt_options options;
            char *folder = make_folder(&settings[i], &options), what[64];
            pst_error err = {0};
            int64_t live = pst_heap_live_count();
            pst_heap_fail_after(n, 0);
            status = pst_ckpt_save(&options, new.tensors, new.count, NULL, &err);
            pst_heap_fail_after(-1, 0);
            assert_int_equal(pst_heap_live_count(), live);
            snprintf(what, sizeof what, "allocation number %d fails", n);
            look(&settings[i], &options, folder, status, &err, what);
            scene_remove_folder(folder);
            assert_true(n < 1000);
        }
        assert_true(n > 30);
    }
}

/* A rank without memory for what it needs on the way tells the others. */
static void test_allocations_of_ranks(void **unused)
{
    (void)unused;
    pst_ckpt_options options;
    for (int n = 0; n < 6; n++) {
        char *folder = make_folder(&settings[3], &options);
        pst_error err = {0};
        pst_fault_reset();
        pst_sys_replace(&pst_sys_fault);
        pst_fault_fail(PST_FAULT_MMAP, n, 1, ENOMEM);
        int status = save(&options, &settings[3], &err);
        pst_sys_replace(NULL);
        look(&settings[3], &options, folder, status, &err, "memory of a rank");
        scene_remove_folder(folder);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_call),       cmocka_unit_test(test_what_is_fatal),
        cmocka_unit_test(test_rings_fail),       cmocka_unit_test(test_drive_that_fails),
        cmocka_unit_test(test_every_allocation), cmocka_unit_test(test_allocations_of_ranks),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
