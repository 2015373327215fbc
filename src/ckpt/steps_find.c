/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which steps a training folder has. A step that cannot be looked at (an I/O error, no memory) is an error and not an absent
 * one: to go on from an older step without a word would lose the newer one's work.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "ckpt/steps.h"
#include "os/file.h"

enum { SUFFIX_LETTERS = 12, MAX_LATEST_BYTES = 4096 };

#define SUFFIX ".tmp-" /* of pst_file_temporary_name */

/* ---- names ---- */

void pst_steps_name(uint64_t step, char out[PST_STEPS_NAME_BYTES])
{
    snprintf(out, PST_STEPS_NAME_BYTES, "step-%06" PRIu64, step);
}

bool pst_steps_parse(const char *name, uint64_t *out_step)
{
    uint64_t step = 0;
    char again[PST_STEPS_NAME_BYTES];
    if (strncmp(name, "step-", 5) != 0)
        return false;
    for (const char *digit = name + 5; *digit != '\0'; digit++) {
        if (*digit < '0' || *digit > '9' || step > INT64_MAX / 10)
            return false;
        step = step * 10 + (uint64_t)(*digit - '0');
    }
    pst_steps_name(step, again);
    if (step > INT64_MAX || strcmp(name, again) != 0)
        return false;
    *out_step = step;
    return true;
}

bool pst_steps_is_unfinished(const char *name)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-";
    char whole[PST_STEPS_NAME_BYTES];
    uint64_t step;
    const char *suffix = strstr(name, SUFFIX);
    if (suffix == NULL || (size_t)(suffix - name) >= sizeof whole)
        return false;
    memcpy(whole, name, (size_t)(suffix - name));
    whole[suffix - name] = '\0';
    suffix += strlen(SUFFIX);
    return strlen(suffix) == SUFFIX_LETTERS && strspn(suffix, letters) == SUFFIX_LETTERS &&
           (strcmp(whole, PST_STEPS_LATEST) == 0 || pst_steps_parse(whole, &step));
}

int pst_steps_join(const char *folder, const char *name, char **out, pst_error *err)
{
    size_t length = strlen(folder);
    while (length > 1 && folder[length - 1] == '/')
        length--;
    char *path = pst_heap_printf("%.*s/%s", (int)length, folder, name);
    if (path == NULL)
        return pst_fail_memory(err, "a path", length + strlen(name));
    *out = path;
    return 0;
}

/* ---- complete steps ---- */

/* Whether a failure means that the thing is not there, or is not what it should be. */
static bool is_absence(int status)
{
    return status == -ENOENT || status == -ENOTDIR || status == PST_E_FORMAT || status == PST_E_SHORT;
}

/* 1: all files are there with their sizes. */
static int has_files(const char *path, const pst_manifest *manifest, pst_error *err)
{
    for (size_t i = 0; i < manifest->file_count; i++) {
        char *file;
        uint64_t bytes = 0;
        pst_error why = {0};
        PST_TRY(pst_steps_join(path, manifest->files[i].name, &file, err));
        int status = pst_file_size(file, &bytes, &why);
        pst_heap_free(file);
        if (status < 0 && !is_absence(status)) {
            if (err != NULL)
                *err = why;
            return status;
        }
        if (status < 0 || bytes != manifest->files[i].bytes)
            return 0;
    }
    return 1;
}

/* Of a step's path. */
static int look_at(const char *path, uint64_t step, pst_error *err)
{
    pst_manifest manifest;
    pst_error why = {0};
    int status = pst_manifest_read(path, &manifest, &why);
    if (status < 0) {
        if (is_absence(status))
            return 0;
        if (err != NULL)
            *err = why;
        return status;
    }
    status = manifest.step == step ? has_files(path, &manifest, err) : 0;
    pst_manifest_free(&manifest);
    return status;
}

int pst_steps_is_complete(const char *folder, uint64_t step, pst_error *err)
{
    char name[PST_STEPS_NAME_BYTES], *path;
    pst_steps_name(step, name);
    PST_TRY(pst_steps_join(folder, name, &path, err));
    int status = look_at(path, step, err);
    pst_heap_free(path);
    return status;
}

static int compare_steps(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* Everything with a step's name, rising. */
static int list_named(const char *folder, uint64_t **out, size_t *out_count, pst_error *err)
{
    char **names = NULL;
    size_t count = 0, found = 0;
    PST_TRY(pst_file_list(folder, NULL, &names, &count, err));
    uint64_t *steps = pst_heap_calloc(count, sizeof *steps);
    for (size_t i = 0; steps != NULL && i < count; i++)
        found += pst_steps_parse(names[i], &steps[found]);
    pst_file_list_free(names, count);
    if (steps == NULL)
        return pst_fail_memory(err, "a list of steps", count * sizeof *steps);
    if (found > 1)
        qsort(steps, found, sizeof *steps, compare_steps);
    *out = steps;
    *out_count = found;
    return 0;
}

int pst_steps_list(const char *folder, uint64_t **out, size_t *out_count, pst_error *err)
{
    uint64_t *steps = NULL;
    size_t count = 0, complete = 0;
    PST_TRY(list_named(folder, &steps, &count, err));
    for (size_t i = 0; i < count; i++) {
        int status = pst_steps_is_complete(folder, steps[i], err);
        if (status < 0) {
            pst_heap_free(steps);
            return status;
        }
        if (status > 0)
            steps[complete++] = steps[i];
    }
    *out = steps;
    *out_count = complete;
    return 0;
}

/* ---- the newest ---- */

int pst_steps_read_latest(const char *folder, uint64_t *out_step, pst_error *err)
{
    char *path, *text = NULL;
    size_t bytes = 0;
    pst_error why = {0};
    PST_TRY(pst_steps_join(folder, PST_STEPS_LATEST, &path, err));
    int status = pst_file_read_all(path, MAX_LATEST_BYTES, &text, &bytes, &why);
    pst_heap_free(path);
    if (status < 0) {
        if (is_absence(status))
            return 0;
        if (err != NULL)
            *err = why;
        return status;
    }
    text[strcspn(text, "\r\n")] = '\0'; /* written without; editors add one */
    status = pst_steps_parse(text, out_step);
    pst_heap_free(text);
    return status;
}

/* 1: the file is there by which whoever makes a step holds it. It goes after `latest` has the step's name: of a step that is
 * there, it means that its commit never came so far. */
static int has_lock(const char *folder, uint64_t step, pst_error *err)
{
    char name[PST_STEPS_NAME_BYTES + sizeof PST_STEPS_LOCK], *path;
    pst_steps_name(step, name);
    strcat(name, "/" PST_STEPS_LOCK);
    PST_TRY(pst_steps_join(folder, name, &path, err));
    int status = pst_file_find(path, err);
    pst_heap_free(path);
    return status == -ENOENT || status == -ENOTDIR ? 0 : status;
}

/* The newest of these steps, which rise, that is complete; with `above`, of those beyond it whose commit was cut short between
 * their name and `latest`. 1: *out is set. */
static int find_among(const char *folder, const uint64_t *steps, size_t count, const uint64_t *above, uint64_t *out,
                      pst_error *err)
{
    while (count > 0 && (above == NULL || steps[count - 1] > *above)) {
        const uint64_t step = steps[--count];
        int status = above != NULL ? has_lock(folder, step, err) : 1;
        if (status > 0)
            status = pst_steps_is_complete(folder, step, err);
        if (status != 0) {
            *out = status > 0 ? step : *out;
            return status;
        }
    }
    return 0;
}

static int find_newest(const char *folder, uint64_t *out_step, pst_error *err)
{
    uint64_t *steps = NULL, latest = 0, step = 0;
    size_t count = 0;
    int named = pst_steps_read_latest(folder, &latest, err);
    if (named > 0)
        named = pst_steps_is_complete(folder, latest, err);
    PST_TRY(named);
    PST_TRY(list_named(folder, &steps, &count, err));
    int status = find_among(folder, steps, count, named > 0 ? &latest : NULL, &step, err);
    pst_heap_free(steps);
    PST_TRY(status);
    if (status == 0 && named == 0)
        return pst_fail(err, -ENOENT, folder, "there is no complete step");
    *out_step = status > 0 ? step : latest;
    return 0;
}

int pst_ckpt_latest(const char *folder, uint64_t *out_step, char **out_path, pst_error *err)
{
    char name[PST_STEPS_NAME_BYTES], *path;
    uint64_t step = 0;
    PST_TRY(find_newest(folder, &step, err));
    pst_steps_name(step, name);
    PST_TRY(pst_steps_join(folder, name, &path, err));
    if (out_path != NULL)
        *out_path = path;
    else
        pst_heap_free(path);
    if (out_step != NULL)
        *out_step = step;
    return 0;
}

void pst_ckpt_free_path(char *path)
{
    pst_heap_free(path);
}

int64_t pst_ckpt_steps(const char *folder, uint64_t *out, size_t max, pst_error *err)
{
    uint64_t *steps = NULL;
    size_t count = 0;
    PST_TRY(pst_steps_list(folder, &steps, &count, err));
    for (size_t i = 0; i < count && i < max; i++)
        out[i] = steps[i];
    pst_heap_free(steps);
    return (int64_t)count;
}
