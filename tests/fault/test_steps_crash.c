/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Training folders with the power failing at each step and each sync of a commit: resume finds the older step or the new
 * one, complete, whatever survives. What a sweep leaves then is steps, and nothing half.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "ckpt/steps.h"
#include "fault/crash_test.h"
#include "os/file.h"
#include "penstock/ckpt.h"

enum { BYTES = 3000 };

static int tear_down(void **unused)
{
    (void)unused;
    pst_crash_forget();
    pst_sys_replace(NULL);
    return 0;
}

static int no_sync(int fd)
{
    (void)fd;
    return 0;
}

/* The real calls without syncs: what is there when the watch begins counts as durable. */
static void use_quick_calls(void)
{
    static pst_sys_table quick;
    quick = pst_sys_real;
    quick.fsync = quick.fdatasync = no_sync;
    pst_sys_replace(&quick);
}

/* What a step of this number and version holds, in two files. */
static void make_text(char *out, uint64_t step, char version)
{
    for (int i = 0; i < BYTES; i++)
        out[i] = (char)('a' + (i * 7 + (int)step + i / 100) % 26);
    out[0] = version;
    out[BYTES - 1] = version;
    out[BYTES] = '\0';
}

/* Written as by somebody who knows nothing of durability. */
static int write_plainly(const char *path, const char *text)
{
    int fd = pst_sys->open(path, O_WRONLY | O_CREAT, 0666);
    if (fd < 0)
        return fd;
    ssize_t put = pst_sys_write_all(fd, text, BYTES, 0);
    int closed = pst_sys->close(fd);
    return put < 0 ? (int)put : closed;
}

static int make_step(const char *folder, uint64_t number, char version, uint32_t keep_last, bool replace,
                     pst_error *err)
{
    const pst_ckpt_commit_options o = {.struct_size = sizeof o, .keep_last = keep_last, .replace = replace};
    char text[BYTES + 1], path[512];
    pst_ckpt_step *step = NULL;
    make_text(text, number, version);
    PST_TRY(pst_ckpt_step_begin(folder, number, NULL, &step, err));
    snprintf(path, sizeof path, "%s/state", pst_ckpt_step_path(step));
    int status = pst_file_publish(path, text, BYTES, err);
    snprintf(path, sizeof path, "%s/sub", pst_ckpt_step_path(step));
    if (status >= 0)
        status = pst_sys->mkdir(path, 0777);
    snprintf(path, sizeof path, "%s/sub/notes", pst_ckpt_step_path(step));
    if (status >= 0)
        status = write_plainly(path, text);
    if (status >= 0)
        status = pst_ckpt_step_commit(step, &o, err);
    pst_ckpt_step_end(step);
    return status;
}

/* The version of a step whose files are both whole; 0: they are not. */
static char read_version(const char *path, uint64_t step)
{
    static const char *const names[] = {"state", "sub/notes"};
    char version = 0;
    for (int i = 0; i < 2; i++) {
        char text[BYTES + 1];
        char *found = crash_read_text(test_path(path, names[i]));
        if (found == NULL)
            return 0;
        make_text(text, step, found[0]);
        bool same = strcmp(found, text) == 0 && (i == 0 || found[0] == version);
        version = found[0];
        free(found);
        if (!same)
            return 0;
    }
    return version;
}

/* The newest step and its version; 0 for none. False: there is one that is not whole. */
static bool look(const char *folder, uint64_t *step, char *version)
{
    char *path = NULL;
    uint64_t all[8];
    *step = 0;
    *version = 0;
    if (pst_ckpt_latest(folder, step, &path, NULL) < 0)
        return pst_ckpt_steps(folder, all, 8, NULL) <= 0;
    *version = read_version(path, *step);
    pst_ckpt_free_path(path);
    bool good = *version != 0;
    int64_t count = pst_ckpt_steps(folder, all, 8, NULL);
    for (int64_t i = 0; i < count; i++) {
        char name[PST_STEPS_NAME_BYTES];
        pst_steps_name(all[i], name);
        good &= read_version(test_path(folder, name), all[i]) != 0;
    }
    return good && count > 0;
}

/* After a sweep nothing unfinished is there, and the newest step is the same. */
static bool sweeps(const char *folder, uint64_t step, char version)
{
    uint64_t after;
    char version_after;
    char **names;
    size_t count, bad = 0;
    if (pst_ckpt_sweep(folder, NULL, NULL) < 0 || pst_file_list(folder, NULL, &names, &count, NULL) < 0)
        return false;
    for (size_t i = 0; i < count; i++)
        bad += strstr(names[i], ".tmp-") != NULL;
    pst_file_list_free(names, count);
    return bad == 0 && look(folder, &after, &version_after) && after == step && version_after == version;
}

/* Whoever resumes from the newest step saves the next one, which nothing may be in the way of. */
static bool goes_on(const char *folder, uint64_t step)
{
    uint64_t after;
    char version;
    use_quick_calls();
    int status = make_step(folder, step + 1, 'N', 0, false, NULL);
    pst_sys_replace(NULL);
    return status >= 0 && look(folder, &after, &version) && after == step + 1 && version == 'N';
}

/* ---- the first step ---- */

static void prepare_nothing(const char *folder, void *context)
{
    (void)folder, (void)context;
}

static int act_first(const char *folder, void *context, pst_error *err)
{
    (void)context;
    char train[512];
    snprintf(train, sizeof train, "%s/a/train", folder);
    return make_step(train, 1, 'A', 0, false, err);
}

static bool check_first(const char *folder, bool done, void *context)
{
    (void)context;
    uint64_t step;
    char version, train[512];
    snprintf(train, sizeof train, "%s/a/train", folder);
    if (access(train, F_OK) != 0)
        return !done;
    if (!look(train, &step, &version) || !(step == 1 || (step == 0 && !done)))
        return false;
    return sweeps(train, step, version) && goes_on(train, step);
}

static void test_first(void **unused)
{
    (void)unused;
    const crash_trial trial = {.prepare = prepare_nothing, .act = act_first, .check = check_first, .seeds = 25};
    crash_count count = crash_try_all(&trial, true);
    assert_int_equal(count.bad, 0);
    assert_true(count.steps > 20 && count.syncs >= 9);
}

/* ---- the next one, and old ones go ---- */

static void prepare_steps(const char *folder, void *context)
{
    (void)context;
    pst_error err = {0};
    use_quick_calls();
    for (uint64_t step = 1; step <= 3; step++)
        assert_ok(make_step(folder, step, 'A', 0, false, &err), &err);
    pst_sys_replace(NULL);
}

static int act_next(const char *folder, void *context, pst_error *err)
{
    (void)context;
    return make_step(folder, 4, 'A', 1, false, err);
}

static bool check_next(const char *folder, bool done, void *context)
{
    (void)context;
    uint64_t step;
    char version;
    if (!look(folder, &step, &version) || !(step == 4 || (step == 3 && !done)))
        return false;
    return sweeps(folder, step, version) && goes_on(folder, step);
}

static void test_next(void **unused)
{
    (void)unused;
    const crash_trial trial = {.prepare = prepare_steps, .act = act_next, .check = check_next, .seeds = 10};
    crash_count count = crash_try_all(&trial, true);
    assert_int_equal(count.bad, 0);
    assert_true(count.steps > 30 && count.syncs >= 8);
}

/* ---- one is replaced ---- */

static int act_replace(const char *folder, void *context, pst_error *err)
{
    (void)context;
    return make_step(folder, 3, 'B', 0, true, err);
}

static bool check_replace(const char *folder, bool done, void *context)
{
    (void)context;
    uint64_t step;
    char version;
    if (!look(folder, &step, &version) || step != 3 || !(version == 'B' || (version == 'A' && !done)))
        return false;
    return sweeps(folder, step, version);
}

static void test_replace(void **unused)
{
    (void)unused;
    const crash_trial trial = {.prepare = prepare_steps, .act = act_replace, .check = check_replace, .seeds = 25};
    crash_count count = crash_try_all(&trial, true);
    assert_int_equal(count.bad, 0);
    assert_true(count.steps > 20 && count.syncs >= 6);
}

/* ---- back to an earlier one, past a commit that was cut short ---- */

static void prepare_cut_short(const char *folder, void *context)
{
    prepare_steps(folder, context);
    test_write_file(test_path(folder, "latest"), "step-000002", 11);
    test_write_file(test_path(folder, "step-000003/" PST_STEPS_LOCK), "", 0);
}

static int act_back(const char *folder, void *context, pst_error *err)
{
    (void)context;
    return make_step(folder, 2, 'B', 0, true, err);
}

static bool check_back(const char *folder, bool done, void *context)
{
    (void)context;
    uint64_t step;
    char version;
    if (!look(folder, &step, &version) || !(step == 2 ? version == 'B' || !done : step == 3 && !done))
        return false;
    return sweeps(folder, step, version);
}

static void test_back(void **unused)
{
    (void)unused;
    const crash_trial trial = {.prepare = prepare_cut_short, .act = act_back, .check = check_back, .seeds = 25};
    crash_count count = crash_try_all(&trial, true);
    assert_int_equal(count.bad, 0);
    assert_true(count.steps > 20 && count.syncs >= 7);
}

/* ---- one that is incomplete makes way ---- */

static void prepare_incomplete(const char *folder, void *context)
{
    prepare_steps(folder, context);
    assert_int_equal(unlink(test_path(folder, "step-000003/state")), 0);
}

static bool check_incomplete(const char *folder, bool done, void *context)
{
    (void)context;
    uint64_t step;
    char version;
    if (!look(folder, &step, &version) || !((step == 3 && version == 'B') || (step == 2 && !done)))
        return false;
    return sweeps(folder, step, version);
}

static void test_incomplete(void **unused)
{
    (void)unused;
    const crash_trial trial = {
        .prepare = prepare_incomplete, .act = act_replace, .check = check_incomplete, .seeds = 10};
    crash_count count = crash_try_all(&trial, true);
    assert_int_equal(count.bad, 0);
}

/* ---- sweeping ---- */

static void prepare_rest(const char *folder, void *context)
{
    prepare_steps(folder, context);
    const char *rest = test_path(folder, "step-000004.tmp-abcdefghijkl");
    assert_int_equal(mkdir(rest, 0777), 0);
    test_write_file(test_path(rest, "state"), "half", 4);
    test_write_file(test_path(folder, "latest.tmp-abcdefghijkl"), "step", 4);
}

static int act_sweep(const char *folder, void *context, pst_error *err)
{
    (void)context;
    return pst_ckpt_sweep(folder, NULL, err);
}

static bool check_sweep(const char *folder, bool done, void *context)
{
    (void)context, (void)done;
    uint64_t step, all[8];
    char version;
    return look(folder, &step, &version) && step == 3 && pst_ckpt_steps(folder, all, 8, NULL) == 3 &&
           sweeps(folder, step, version);
}

static void test_sweep(void **unused)
{
    (void)unused;
    const crash_trial trial = {.prepare = prepare_rest, .act = act_sweep, .check = check_sweep, .seeds = 10};
    crash_count count = crash_try_all(&trial, true);
    assert_int_equal(count.bad, 0);
    assert_true(count.steps >= 4);
}

/* ---- without a sync it would be noticed ---- */

static unsigned lazy_skips, lazy_sync; /* which are skipped, by bits; the number of the next */

static bool is_skipped(void)
{
    unsigned now = lazy_sync++;
    return now < 32 && (lazy_skips >> now & 1) != 0;
}

static int lazy_fsync(int fd)
{
    return is_skipped() ? 0 : pst_sys_crash.fsync(fd);
}

static int lazy_fdatasync(int fd)
{
    return is_skipped() ? 0 : pst_sys_crash.fdatasync(fd);
}

/* The same commit, some of whose syncs do not happen. */
static int act_lazily(const char *folder, void *context, pst_error *err)
{
    static pst_sys_table lazy;
    lazy = pst_sys_crash;
    lazy.fsync = lazy_fsync;
    lazy.fdatasync = lazy_fdatasync;
    lazy_skips = *(unsigned *)context;
    lazy_sync = 0;
    pst_sys_replace(&lazy);
    int status = make_step(folder, 4, 'A', 1, false, err);
    pst_sys_replace(&pst_sys_crash);
    return status;
}

static void test_syncs_are_needed(void **unused)
{
    (void)unused;
    enum { /* in their order */
           SAVED_DATA = 1 << 0,
           SAVED_DATA_AGAIN = 1 << 2,
           PLAIN_DATA = 1 << 3,
           PLAIN_NAME = 1 << 4,
           MANIFEST_DATA = 1 << 5,
           NAMES = 1 << 6,
           STEP_NAME = 1 << 7,
           LATEST_NAME = 1 << 9 /* makes the step's name durable too, before older ones go */
    };
    static const unsigned missing[] = {SAVED_DATA | SAVED_DATA_AGAIN, PLAIN_DATA, PLAIN_NAME, MANIFEST_DATA, NAMES,
                                       STEP_NAME | LATEST_NAME};
    for (size_t i = 0; i < sizeof missing / sizeof missing[0]; i++) {
        unsigned skips = missing[i];
        const crash_trial trial = {
            .prepare = prepare_steps, .act = act_lazily, .check = check_next, .context = &skips, .seeds = 5};
        if (crash_try_all(&trial, false).bad == 0)
            fail_msg("nobody has noticed that syncs %#x did not happen", skips);
    }
}

int main(void)
{
    if (access("/dev/shm", W_OK) == 0)
        setenv("TMPDIR", "/dev/shm", 0); /* many small files; what is durable is counted, not carried out */
#define TRIAL(test) cmocka_unit_test_setup_teardown(test, NULL, tear_down)
    const struct CMUnitTest tests[] = {
        TRIAL(test_first),      TRIAL(test_next),  TRIAL(test_replace),          TRIAL(test_back),
        TRIAL(test_incomplete), TRIAL(test_sweep), TRIAL(test_syncs_are_needed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
