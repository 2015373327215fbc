/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The power fails at each step and at each sync of a save: what is found afterwards is the old checkpoint or the new one,
 * whole; and the new one once success was reported. One writer and two, each format, and shards.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fault/crash_test.h"
#include "support/ckpt_scene.h"

typedef struct attempt {
    const char *engine, *name;
    uint64_t shard_bytes;
    uint32_t ranks;
    scene old, new;
} attempt;

static pst_ckpt_options options_of(const attempt *t, const char *folder)
{
    return (pst_ckpt_options){.struct_size = sizeof(pst_ckpt_options),
                              .path = test_path(folder, t->name),
                              .shard_bytes = t->shard_bytes,
                              .ring_bytes = 2 << 20,
                              .io = {.engine = t->engine}};
}

/* The real calls without waiting for the drive: nobody asks what survives of the old version. */
static pst_sys_table quick;

static int no_sync(int fd)
{
    (void)fd;
    return 0;
}

static void prepare(const char *folder, void *context)
{
    const attempt *t = context;
    pst_error err = {0};
    if (t->shard_bytes > 0)
        return; /* shards never replace anything */
    pst_ckpt_options options = options_of(t, folder);
    quick = pst_sys_real;
    quick.fdatasync = quick.fsync = no_sync;
    pst_sys_replace(&quick);
    assert_ok(pst_ckpt_save(&options, t->old.tensors, t->old.count, NULL, &err), &err);
    pst_sys_replace(NULL);
}

static int act(const char *folder, void *context, pst_error *err)
{
    const attempt *t = context;
    pst_ckpt_options options = options_of(t, folder);
    if (t->ranks == 1)
        return pst_ckpt_save(&options, t->new.tensors, t->new.count, NULL, err);
    pst_error errors[8] = {0};
    int status = scene_save_by_ranks(&options, &t->new, t->ranks, NULL, errors, NULL);
    *err = errors[0];
    return status;
}

static bool check(const char *folder, bool done, void *context)
{
    const attempt *t = context;
    const pst_ckpt_ranks ranks = {.count = t->ranks};
    pst_ckpt_options options = options_of(t, folder), by_ranks = options;
    by_ranks.ranks = &ranks;
    if (scene_is_saved(&by_ranks, options.path, &t->new))
        return true;
    if (done)
        return false;
    return t->shard_bytes > 0 ? access(options.path, F_OK) != 0 : scene_is_saved(&options, options.path, &t->old);
}

static void try_all(const char *engine, const char *name, uint64_t shard_bytes, uint32_t ranks, unsigned syncs)
{
    attempt t = {.engine = engine, .name = name, .shard_bytes = shard_bytes, .ranks = ranks};
    scene_add(&t.old, "old", PST_F32, 1, (const uint64_t[]){30000}, 1, false);
    scene_add(&t.new, "first", PST_U8, 1, (const uint64_t[]){300001}, 2, false);
    scene_add(&t.new, "second", PST_U8, 1, (const uint64_t[]){3}, 3, false);
    scene_add(&t.new, "third", PST_U8, 1, (const uint64_t[]){250000}, 4, false);
    const crash_trial trial = {.prepare = prepare, .act = act, .check = check, .context = &t, .seeds = 12};
    crash_count count = crash_try_all(&trial, true);
    assert_int_equal(count.bad, 0);
    assert_int_equal(count.syncs, syncs);
    assert_true(count.steps > syncs + 4); /* create, reserve, writes, the header again, cut, rename */
    scene_free(&t.old);
    scene_free(&t.new);
}

static int tear_down(void **unused)
{
    (void)unused;
    pst_crash_forget();
    pst_sys_replace(NULL);
    return 0;
}

static void test_safetensors(void **unused)
{
    (void)unused;
    try_all("threads", "x.safetensors", 0, 1, 2); /* data, folder */
}

static void test_torch(void **unused)
{
    (void)unused;
    try_all("threads", "x.pt", 0, 1, 2);
}

/* Two files' data; the index' data and its folder; the folder, its parent. */
static void test_shards(void **unused)
{
    (void)unused;
    try_all("threads", "x", 300010, 1, 6);
}

static void test_two_ranks(void **unused)
{
    (void)unused;
    try_all("threads", "x.safetensors", 0, 2, 3);
    try_all("threads", "x.pt", 0, 2, 3);
}

static void test_rings(void **unused)
{
    (void)unused;
    if (test_have_uring())
        try_all("io_uring", "x.pt", 0, 1, 2);
    if (test_have_engine("libaio"))
        try_all("libaio", "x.safetensors", 0, 1, 2);
}

int main(void)
{
#define TRIAL(test) cmocka_unit_test_teardown(test, tear_down)
    const struct CMUnitTest tests[] = {
        TRIAL(test_safetensors), TRIAL(test_torch), TRIAL(test_shards), TRIAL(test_two_ranks), TRIAL(test_rings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
