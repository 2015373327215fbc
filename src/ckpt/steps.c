/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A step from its folder under another name to one that resume finds. Committing is, on all ranks:
 *
 *   tell     the options make sense, and all ranks are here: no file is still being written
 *   collect  all files, synced and digested                                           (steps_files.c)
 *   publish  (rank 0) the manifest, all of it durable; the rename; `latest`; old steps go
 *   tell     what came of it
 */
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "ckpt/steps.h"
#include "os/file.h"
#include "os/lock.h"
#include "os/sys.h"
#include "os/tree.h"

enum { TRIES = 10 }; /* to make a folder that no sweep takes away before it is locked */

struct pst_ckpt_step {
    pst_ckpt_agree *agree;
    uint64_t step;
    char *folder; /* the training folder */
    char *path;   /* where it is made; NULL: nowhere yet */
    char *final;  /* where it will be */
    pst_lock *lock;
    bool published; /* on rank 0, as soon as it has its name; on others, when they were told of success */
    bool is_latest; /* `latest` has its name */
};

/* ---- making ---- */

/* 1: the folder at step->path is there and this rank holds its lock; 0: a sweep was faster. */
static int hold(pst_ckpt_step *step, pst_error *err)
{
    char *path;
    pst_lock *lock = NULL;
    PST_TRY(pst_steps_join(step->path, PST_STEPS_LOCK, &path, err));
    int status = pst_lock_open(path, &lock, err);
    if (status >= 0)
        status = pst_lock_try(lock, false, err);
    if (status > 0)
        status = pst_file_find(path, err);
    pst_heap_free(path);
    if (status > 0)
        step->lock = lock;
    else
        pst_lock_close(lock);
    return status == -ENOENT ? 0 : status;
}

/* Rank 0. */
static int make_folder(pst_ckpt_step *step, pst_error *err)
{
    PST_TRY(pst_folder_create_durable(step->folder, err));
    for (int i = 0; i < TRIES; i++) {
        char *path = pst_file_temporary_name(step->final);
        if (path == NULL)
            return pst_fail_memory(err, "a path", strlen(step->final));
        int status = pst_sys->mkdir(path, 0777);
        if (status < 0 && status != -EEXIST)
            pst_fail(err, status, step->folder, "cannot make a folder in it: %s", pst_strerror(status));
        if (status >= 0) {
            pst_heap_free(step->path);
            step->path = path;
            status = hold(step, err);
            if (status > 0)
                return 0;
        } else {
            pst_heap_free(path);
            status = status == -EEXIST ? 0 : status;
        }
        PST_TRY(status);
    }
    return pst_fail(err, -EAGAIN, step->folder, "what is made in it is swept away at once");
}

/* The other ranks. */
static int join_folder(pst_ckpt_step *step, const char *name, pst_error *err)
{
    PST_TRY(pst_steps_join(step->folder, name, &step->path, err));
    int status = hold(step, err);
    PST_TRY(status);
    if (status == 0)
        return pst_fail(err, -ENOENT, step->path, "the folder that rank 0 has made is not seen here");
    return 0;
}

static int make(pst_ckpt_step *step, const char *folder, pst_error *err)
{
    char name[PST_STEPS_NAME_BYTES] = {0};
    int status = 0;
    if (folder == NULL || folder[0] == '\0')
        status = pst_fail(err, PST_E_USAGE, NULL, "a step needs a training folder");
    else if (step->step > INT64_MAX)
        status = pst_fail(err, PST_E_USAGE, folder, "a step of that number cannot be");
    if (status >= 0)
        status = pst_file_from_root(folder, &step->folder, err);
    if (status >= 0) {
        pst_steps_name(step->step, name);
        status = pst_steps_join(step->folder, name, &step->final, err);
    }
    bool first = pst_ckpt_agree_rank(step->agree) == 0;
    if (status >= 0 && first)
        status = make_folder(step, err);
    if (status >= 0 && first)
        snprintf(name, sizeof name, "%s", strrchr(step->path, '/') + 1);
    PST_TRY(pst_ckpt_agree_tell(step->agree, status, name, sizeof name, err));
    memcpy(name, pst_ckpt_agree_told(step->agree, 0), sizeof name);
    name[sizeof name - 1] = '\0';
    if (!first)
        status = pst_steps_is_unfinished(name) ? join_folder(step, name, err)
                                               : pst_fail(err, PST_E_USAGE, folder, "rank 0 tells no folder's name");
    return pst_ckpt_agree_tell(step->agree, status, NULL, 0, err);
}

int pst_ckpt_step_begin(const char *folder, uint64_t step, const pst_ckpt_ranks *ranks, pst_ckpt_step **out,
                        pst_error *err)
{
    pst_ckpt_step *made = pst_heap_calloc(1, sizeof *made);
    if (made == NULL)
        return pst_fail_memory(err, "a step", sizeof *made);
    made->step = step;
    int status = pst_ckpt_agree_create(ranks, PST_STEPS_TELL_BYTES, &made->agree, err);
    if (status >= 0)
        status = make(made, folder, err);
    if (status < 0) {
        pst_ckpt_step_end(made);
        return status;
    }
    *out = made;
    return 0;
}

const char *pst_ckpt_step_path(const pst_ckpt_step *step)
{
    return step->path;
}

/* ---- publishing ---- */

/* What has the step's name already. */
typedef enum occupant { NOBODY, INCOMPLETE, COMPLETE } occupant;

/* 1: a folder without a manifest, and not empty: no step of this library was ever like that, so somebody else's work. */
static int is_foreign(const char *path, pst_error *err)
{
    char *manifest, **names = NULL;
    size_t count = 0;
    PST_TRY(pst_steps_join(path, PST_MANIFEST_NAME, &manifest, err));
    int found = pst_file_find(manifest, err);
    pst_heap_free(manifest);
    if (found != 0)
        return found < 0 ? found : 0;
    PST_TRY(pst_file_list(path, NULL, &names, &count, err));
    pst_file_list_free(names, count);
    return count > 0;
}

static int look_at_occupant(const pst_ckpt_step *step, bool replace, occupant *out, pst_error *err)
{
    int status = pst_file_find(step->final, err);
    PST_TRY(status);
    *out = NOBODY;
    if (status == 0)
        return 0;
    if (!pst_file_is_folder(step->final))
        return pst_fail(err, -EEXIST, step->final, "is there, and is no folder");
    status = pst_steps_is_complete(step->folder, step->step, err);
    PST_TRY(status);
    if (status > 0 && !replace)
        return pst_fail(err, -EEXIST, step->final, "this step is there already, complete");
    *out = status > 0 ? COMPLETE : INCOMPLETE;
    int foreign = status > 0 ? 0 : is_foreign(step->final, err);
    return foreign <= 0 ? foreign : pst_fail(err, -EEXIST, step->final, "is there, and is no step: it has no manifest");
}

static int write_manifest(const pst_ckpt_step *step, const pst_steps_files *files, const pst_ckpt_commit_options *o,
                          pst_error *err)
{
    pst_manifest m = {.step = step->step,
                      .ranks = pst_ckpt_agree_count(step->agree),
                      .metadata_count = o->metadata_count,
                      .file_count = files->count};
    char *text = NULL, *path = NULL;
    size_t bytes = 0;
    m.metadata = pst_heap_calloc(o->metadata_count, sizeof *m.metadata);
    m.files = pst_heap_calloc(files->count, sizeof *m.files);
    int status = 0;
    if (m.metadata == NULL || m.files == NULL)
        status = pst_fail_memory(err, "a manifest", files->count * sizeof *m.files);
    for (size_t i = 0; status >= 0 && i < o->metadata_count; i++)
        m.metadata[i] = (pst_metadata){.key = o->metadata[i].key, .value = o->metadata[i].value};
    for (size_t i = 0; status >= 0 && i < files->count; i++) {
        const pst_steps_file *file = &files->list[i];
        m.files[i] =
            (pst_manifest_file){.name = file->name, .bytes = file->bytes, .covers_header = file->covers_header};
        memcpy(m.files[i].digest, file->digest, sizeof m.files[i].digest);
    }
    if (status >= 0)
        status = pst_manifest_write(&m, &text, &bytes, err);
    if (status >= 0)
        status = pst_steps_join(step->path, PST_MANIFEST_NAME, &path, err);
    if (status >= 0)
        status = pst_file_publish(path, text, bytes, err); /* and syncs the names of all files beside it */
    pst_heap_free(path);
    pst_heap_free(text);
    pst_heap_free(m.files);
    pst_heap_free(m.metadata);
    return status;
}

/* Two names in one call: there is always a complete step under its name. */
static int exchange(const pst_ckpt_step *step, pst_error *err)
{
    int status = pst_sys->rename_exchange(step->path, step->final);
    if (status == -EINVAL || status == -ENOSYS)
        return pst_fail(err, PST_E_UNSUPPORTED, step->final,
                        "this file system cannot exchange two names at one stroke: the older step has to be removed "
                        "first");
    return status < 0 ? pst_fail(err, status, step->final, "cannot replace: %s", pst_strerror(status)) : 0;
}

/* Gives it its name. What had it and was no complete step goes aside, where a sweep finds it. */
static int take_name(pst_ckpt_step *step, occupant there, pst_error *err)
{
    char *aside = NULL;
    if (there == COMPLETE) {
        PST_TRY(exchange(step, err));
    } else {
        if (there == INCOMPLETE)
            PST_TRY(pst_steps_set_aside(step->final, &aside, err));
        pst_heap_free(aside);
        PST_TRY(pst_folder_move(step->path, step->final, err));
    }
    step->published = true;
    return pst_folder_sync(step->folder, err);
}

static int write_latest(const pst_ckpt_step *step, pst_error *err)
{
    char name[PST_STEPS_NAME_BYTES], *path;
    pst_steps_name(step->step, name);
    PST_TRY(pst_steps_join(step->folder, PST_STEPS_LATEST, &path, err));
    int status = pst_file_publish(path, name, strlen(name), err);
    pst_heap_free(path);
    return status;
}

/* The lock's file goes last: until then a sweep leaves `latest` alone. Where `latest` could not be written it stays, so that
 * the step is found all the same. */
static void drop_lock(pst_ckpt_step *step)
{
    char *path;
    if (step->is_latest && pst_steps_join(step->final, PST_STEPS_LOCK, &path, NULL) >= 0) {
        pst_file_remove(path, NULL); /* an empty file that stays beside its name in `latest` is in nobody's way */
        pst_heap_free(path);
    }
    pst_lock_close(step->lock);
    step->lock = NULL;
}

/* What comes after a step is there and durable. */
static int follow_up(pst_ckpt_step *step, occupant was_there, const pst_ckpt_commit_options *o, pst_error *err)
{
    PST_TRY(pst_steps_settle(step->folder, step->step, err));
    PST_TRY(write_latest(step, err));
    step->is_latest = true;
    if (was_there == COMPLETE)
        PST_TRY(pst_tree_remove(step->path, err)); /* the older one, since the exchange */
    return o->keep_last > 0 ? pst_steps_keep_last(step->folder, step->step, o->keep_last, err) : 0;
}

/* Rank 0. */
static int publish(pst_ckpt_step *step, const pst_steps_files *files, const pst_ckpt_commit_options *o, pst_error *err)
{
    occupant there;
    pst_error why = {0};
    PST_TRY(write_manifest(step, files, o, err));
    PST_TRY(look_at_occupant(step, o->replace, &there, err));
    int status = take_name(step, there, &why);
    if (status >= 0)
        status = follow_up(step, there, o, &why);
    if (step->published)
        drop_lock(step);
    if (status >= 0 || err == NULL)
        return status;
    *err = why;
    if (step->published)
        snprintf(err->message, sizeof err->message, "step %llu is there, but: %.440s", (unsigned long long)step->step,
                 why.message);
    return status;
}

/* ---- committing ---- */

static int check_options(const pst_ckpt_step *step, const pst_ckpt_commit_options *options,
                         pst_ckpt_commit_options *out, pst_error *err)
{
    *out = (pst_ckpt_commit_options){0};
    if (options != NULL) {
        if (options->struct_size < offsetof(pst_ckpt_commit_options, keep_last))
            return pst_fail(err, PST_E_USAGE, NULL, "commit needs options with their size");
        memcpy(out, options, options->struct_size < sizeof *out ? options->struct_size : sizeof *out);
    }
    for (size_t i = 0; i < out->metadata_count; i++)
        if (out->metadata == NULL || out->metadata[i].key == NULL || out->metadata[i].value == NULL)
            return pst_fail(err, PST_E_USAGE, NULL, "the metadata of a step have a key or value that is missing");
    if (step->published)
        return pst_fail(err, PST_E_USAGE, step->final, "was committed before");
    return 0;
}

int pst_ckpt_step_commit(pst_ckpt_step *step, const pst_ckpt_commit_options *options, pst_error *err)
{
    pst_ckpt_commit_options o;
    pst_steps_files seen = {0}, all = {0};
    uint32_t rank = pst_ckpt_agree_rank(step->agree), ranks = pst_ckpt_agree_count(step->agree);
    occupant there;
    int status = check_options(step, options, &o, err);
    if (status >= 0 && rank == 0)
        status = look_at_occupant(step, o.replace, &there, err); /* before anything is read for nothing */
    PST_TRY(pst_ckpt_agree_tell(step->agree, status, NULL, 0, err));
    status = pst_steps_collect(step->path, rank, ranks, &seen, err);
    status = pst_steps_exchange(step->agree, status, &seen, &all, err);
    if (status >= 0) {
        if (rank == 0)
            status = publish(step, &all, &o, err);
        status = pst_ckpt_agree_tell(step->agree, status, NULL, 0, err);
        step->published |= status >= 0;
    }
    pst_steps_files_free(&seen);
    pst_steps_files_free(&all);
    return status;
}

/* ---- the end ---- */

/* Ranks do not wait for each other here: the last one that is left removes it. If the folder was published, the lock's file
 * is no longer under its old name. */
static void remove_unfinished(pst_ckpt_step *step)
{
    char *path;
    if (step->path == NULL || step->lock == NULL || step->published)
        return;
    if (pst_steps_join(step->path, PST_STEPS_LOCK, &path, NULL) < 0)
        return;
    if (pst_lock_try(step->lock, true, NULL) > 0 && pst_file_exists(path))
        pst_tree_remove(step->path, NULL); /* what cannot be removed is left to a sweep */
    pst_heap_free(path);
}

void pst_ckpt_step_end(pst_ckpt_step *step)
{
    if (step == NULL)
        return;
    remove_unfinished(step);
    pst_lock_close(step->lock);
    pst_ckpt_agree_destroy(step->agree);
    pst_heap_free(step->final);
    pst_heap_free(step->path);
    pst_heap_free(step->folder);
    pst_heap_free(step);
}
