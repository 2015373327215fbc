/* SPDX-License-Identifier: Apache-2.0 */
/* Driver of the crash tests. */
#include "fault/crash_test.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { DEFAULT_SEEDS = 30, MAX_STEPS = 2000 };

void crash_remove_tree(const char *path)
{
    struct stat info;
    assert_int_equal(lstat(path, &info), 0);
    if (!S_ISDIR(info.st_mode)) {
        assert_int_equal(unlink(path), 0);
        return;
    }
    DIR *entries = opendir(path);
    assert_non_null(entries);
    for (struct dirent *e; (e = readdir(entries)) != NULL;) {
        char name[4096];
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        assert_true(snprintf(name, sizeof name, "%s/%s", path, e->d_name) < (int)sizeof name);
        crash_remove_tree(name);
    }
    closedir(entries);
    assert_int_equal(rmdir(path), 0);
}

char *crash_make_folder(void)
{
    return test_folder_create(false);
}

char *crash_read_text(const char *path)
{
    if (access(path, F_OK) != 0)
        return NULL;
    uint64_t bytes;
    char *text = (char *)test_read_file(path, &bytes);
    text[bytes] = '\0'; /* there is room for it */
    return text;
}

static void look(const crash_trial *trial, const char *folder, bool done, pst_crash_loss loss, uint64_t seed,
                 crash_count *count, const char *when, int64_t at, bool loud)
{
    static const char *const losses[] = {"all lost", "all kept", "mixed"};
    pst_error err = {0};
    assert_ok(pst_crash_recover(loss, seed, &err), &err);
    count->states++;
    if (trial->check(folder, done, trial->context))
        return;
    if (loud && count->bad == 0)
        print_error("bad state after a failure at %s %lld, %s, seed %llu, %s\n", when, (long long)at, losses[loss],
                    (unsigned long long)seed, done ? "reported as done" : "not reported as done");
    count->bad++;
}

/* One run with one failure; false when the action was over before it. */
static bool try_once(const crash_trial *trial, bool by_sync, int64_t at, crash_count *count, bool loud)
{
    char *folder = crash_make_folder();
    pst_error err = {0};
    trial->prepare(folder, trial->context);
    pst_sys_replace(&pst_sys_crash);
    assert_ok(pst_crash_watch(folder, &err), &err);
    if (by_sync)
        pst_crash_at_sync(at);
    else
        pst_crash_at(at);
    bool done = trial->act(folder, trial->context, &err) >= 0;
    bool happened = pst_crash_happened();
    pst_sys_replace(NULL);
    if (!happened) {
        count->steps = (unsigned)pst_crash_steps();
        count->syncs = (unsigned)pst_crash_syncs();
        assert_true(done); /* nothing else goes wrong here */
    }
    count->failures++; /* at the latest, it is now */
    const char *when = happened ? by_sync ? "sync" : "step" : "the end of";
    look(trial, folder, done, PST_CRASH_LOSE_ALL, 0, count, when, at, loud);
    look(trial, folder, done, PST_CRASH_KEEP_ALL, 0, count, when, at, loud);
    for (unsigned seed = 0; seed < (trial->seeds != 0 ? trial->seeds : DEFAULT_SEEDS); seed++)
        look(trial, folder, done, PST_CRASH_MIXED, seed, count, when, at, loud);
    pst_crash_forget();
    crash_remove_tree(folder);
    free(folder);
    return happened;
}

crash_count crash_try_all(const crash_trial *trial, bool loud)
{
    crash_count count = {0};
    int64_t at = 0;
    while (try_once(trial, false, at, &count, loud))
        assert_true(++at < MAX_STEPS);
    at = 0;
    while (try_once(trial, true, at, &count, loud))
        assert_true(++at < MAX_STEPS);
    return count;
}
