/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is no step any more, or never became one. A step is renamed before anything in it is removed, and that rename is
 * durable first: a crash leaves it whole, or a folder that nobody takes for a step.
 */
#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "ckpt/steps.h"
#include "os/file.h"
#include "os/lock.h"
#include "os/tree.h"

/* ---- keeping the last ones ---- */

int pst_steps_set_aside(const char *path, char **out, pst_error *err)
{
    char *aside = pst_file_temporary_name(path);
    if (aside == NULL)
        return pst_fail_memory(err, "a path", strlen(path));
    int status = pst_folder_move(path, aside, err);
    if (status < 0) {
        pst_heap_free(aside);
        return status;
    }
    *out = aside;
    return 0;
}

static int set_step_aside(const char *folder, uint64_t step, char **out, pst_error *err)
{
    char name[PST_STEPS_NAME_BYTES], *path;
    pst_steps_name(step, name);
    PST_TRY(pst_steps_join(folder, name, &path, err));
    int status = pst_steps_set_aside(path, out, err);
    pst_heap_free(path);
    return status == -ENOENT ? 0 : status; /* somebody else was faster */
}

/* Removes so many steps; aside has room for their paths. */
static int remove_steps(const char *folder, const uint64_t *steps, size_t count, char **aside, pst_error *err)
{
    for (size_t i = 0; i < count; i++)
        PST_TRY(set_step_aside(folder, steps[i], &aside[i], err));
    PST_TRY(pst_folder_sync(folder, err));
    for (size_t i = 0; i < count; i++)
        if (aside[i] != NULL)
            PST_TRY(pst_tree_remove(aside[i], err));
    return 0;
}

int pst_steps_keep_last(const char *folder, uint64_t newest, uint32_t keep, pst_error *err)
{
    uint64_t *steps = NULL;
    size_t count = 0, older = 0;
    PST_TRY(pst_steps_list(folder, &steps, &count, err));
    while (older < count && steps[older] < newest)
        older++;
    size_t extra = older >= keep ? older - (keep - 1) : 0; /* newest is one of those that stay */
    int status = 0;
    if (extra > 0) {
        char **aside = pst_heap_calloc(extra, sizeof *aside);
        status = aside != NULL ? remove_steps(folder, steps, extra, aside, err)
                               : pst_fail_memory(err, "a list of steps", extra * sizeof *aside);
        for (size_t i = 0; aside != NULL && i < extra; i++)
            pst_heap_free(aside[i]);
        pst_heap_free(aside);
    }
    pst_heap_free(steps);
    return status;
}

/* ---- sweeping ---- */

/* 1: somebody holds the lock in this folder; 0: nobody does, or (unless `create`) it has none. *out: the lock where nobody
 * held it. */
static int is_held(const char *path, bool create, pst_lock **out, pst_error *err)
{
    char *lock_path;
    pst_lock *lock = NULL;
    PST_TRY(pst_steps_join(path, PST_STEPS_LOCK, &lock_path, err));
    int status = create ? 1 : pst_file_find(lock_path, err);
    if (status > 0) {
        status = pst_lock_open(lock_path, &lock, err);
        if (status >= 0)
            status = pst_lock_try(lock, true, err);
        /* Renamed since: it was published, and what has this name now (nothing) is not what was locked. */
        bool gone = status > 0 && !pst_file_exists(lock_path);
        status = status < 0 ? status : status == 0 || gone;
    }
    pst_heap_free(lock_path);
    if (status == 0 && out != NULL)
        *out = lock;
    else
        pst_lock_close(lock);
    return status == -ENOENT || status == -ENOTDIR ? 1 : status; /* it went while we looked */
}

/* 1: removed. */
static int sweep_folder(const char *path, pst_error *err)
{
    pst_lock *lock = NULL;
    int status = is_held(path, true, &lock, err);
    if (status == 0) {
        status = pst_tree_remove(path, err);
        pst_lock_close(lock);
        return status < 0 ? status : 1;
    }
    return status < 0 ? status : 0;
}

/* 1: a step is being published: `latest` may be on its way. Whoever writes it holds a lock in a folder with a step's name
 * before and after. */
static int is_publishing(const char *folder, pst_error *err)
{
    char **names = NULL;
    size_t count = 0;
    uint64_t step;
    int status = 0;
    PST_TRY(pst_file_list(folder, NULL, &names, &count, err));
    for (size_t i = 0; i < count && status == 0; i++) {
        if (!pst_steps_parse(names[i], &step))
            continue;
        char *path;
        pst_lock *lock = NULL;
        status = pst_steps_join(folder, names[i], &path, err);
        if (status < 0)
            break;
        status = pst_file_is_folder(path) ? is_held(path, false, &lock, err) : 0;
        pst_lock_close(lock);
        pst_heap_free(path);
    }
    pst_file_list_free(names, count);
    return status;
}

/* Of one step: its lock's file goes if nobody holds it. */
static int settle_step(const char *folder, uint64_t step, pst_error *err)
{
    char name[PST_STEPS_NAME_BYTES], *path, *lock_path = NULL;
    pst_lock *lock = NULL;
    pst_steps_name(step, name);
    PST_TRY(pst_steps_join(folder, name, &path, err));
    int status = pst_steps_join(path, PST_STEPS_LOCK, &lock_path, err);
    if (status >= 0)
        status = pst_file_find(lock_path, err);
    if (status > 0) {
        status = is_held(path, false, &lock, err);
        if (status == 0)
            status = pst_file_remove(lock_path, err);
        if (status == 0)
            status = pst_folder_sync(path, err);
    }
    pst_lock_close(lock);
    pst_heap_free(lock_path);
    pst_heap_free(path);
    return status < 0 ? status : 0;
}

int pst_steps_settle(const char *folder, uint64_t step, pst_error *err)
{
    uint64_t *steps = NULL;
    size_t count = 0;
    PST_TRY(pst_steps_list(folder, &steps, &count, err));
    int status = 0;
    while (count > 0 && steps[count - 1] > step && status >= 0)
        status = settle_step(folder, steps[--count], err);
    pst_heap_free(steps);
    return status;
}

/* 1: removed. */
static int sweep_entry(const char *folder, const char *name, int publishing, pst_error *err)
{
    char *path;
    int status = 0;
    PST_TRY(pst_steps_join(folder, name, &path, err));
    bool is_folder = pst_file_is_folder(path);
    if (pst_file_is_link(path)) { /* of a step that lies elsewhere, and was to go: what it leads to is not ours */
        status = pst_file_remove(path, err);
        status = status < 0 ? status : 1;
    } else if (strncmp(name, PST_STEPS_LATEST, strlen(PST_STEPS_LATEST)) != 0) {
        status = is_folder ? sweep_folder(path, err) : 0; /* a file of such a name is not ours */
    } else if (!is_folder && publishing == 0) {
        status = pst_file_remove(path, err);
        status = status < 0 ? status : 1;
    }
    pst_heap_free(path);
    return status;
}

int pst_ckpt_sweep(const char *folder, uint32_t *out_removed, pst_error *err)
{
    char **names = NULL;
    size_t count = 0;
    uint32_t removed = 0;
    PST_TRY(pst_file_list(folder, NULL, &names, &count, err)); /* before anybody's lock is looked at */
    int status = is_publishing(folder, err), publishing = status;
    for (size_t i = 0; i < count && publishing >= 0; i++) {
        if (!pst_steps_is_unfinished(names[i]))
            continue;
        pst_error why = {0};
        int one = sweep_entry(folder, names[i], publishing, &why);
        removed += one > 0;
        if (one < 0 && status >= 0) { /* the others go all the same */
            status = one;
            if (err != NULL)
                *err = why;
        }
    }
    pst_file_list_free(names, count);
    if (status >= 0 && out_removed != NULL)
        *out_removed = removed;
    return status < 0 ? status : 0;
}
