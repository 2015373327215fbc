/* SPDX-License-Identifier: Apache-2.0 */
/* The temporary folder is flat: files only, so that removing it needs no recursion. */
#include "store/folder.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "os/file.h"

struct pst_folder {
    char *path;      /* without slashes at its end */
    char *temporary; /* NULL until it was created */
    bool finished;
};

/* The folder that path lies in must exist: creating it here would leave it behind when something fails. */
static int check_parent(const char *path, pst_error *err)
{
    const char *slash = strrchr(path, '/');
    if (slash == NULL || slash == path)
        return 0;
    char *parent = pst_heap_strndup(path, (size_t)(slash - path));
    if (parent == NULL)
        return pst_fail_memory(err, "a path", strlen(path));
    int status = pst_file_find(parent, err);
    if (status >= 0)
        status = pst_file_is_folder(parent) ? 0 : pst_fail(err, -ENOENT, parent, "no such folder");
    pst_heap_free(parent);
    return status;
}

static int create(pst_folder *folder, const char *path, pst_error *err)
{
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/')
        length--;
    if (length == 0)
        return pst_fail(err, PST_E_USAGE, NULL, "the folder's name is empty");
    folder->path = pst_heap_strndup(path, length);
    if (folder->path == NULL)
        return pst_fail_memory(err, "a path", length);
    int found = pst_file_find(folder->path, err);
    PST_TRY(found);
    if (found > 0)
        return pst_fail(err, -EEXIST, folder->path, "exists already");
    PST_TRY(check_parent(folder->path, err));
    char *temporary = pst_file_temporary_name(folder->path);
    if (temporary == NULL)
        return pst_fail_memory(err, "a path", length);
    int status = pst_folder_create(temporary, err);
    folder->temporary = temporary;
    if (status < 0) {
        pst_folder_name_final(folder, status, err);
        folder->temporary = NULL; /* nothing to remove */
        pst_heap_free(temporary);
    }
    return status;
}

int pst_folder_begin(const char *path, pst_folder **out, pst_error *err)
{
    pst_folder *folder = pst_heap_calloc(1, sizeof *folder);
    if (folder == NULL)
        return pst_fail_memory(err, "a folder", sizeof *folder);
    int status = create(folder, path, err);
    if (status < 0) {
        pst_folder_close(folder);
        return status;
    }
    *out = folder;
    return 0;
}

char *pst_folder_file(const pst_folder *folder, const char *name)
{
    return pst_heap_printf("%s/%s", folder->temporary, name);
}

int pst_folder_name_final(const pst_folder *folder, int status, pst_error *err)
{
    size_t length = folder->temporary != NULL ? strlen(folder->temporary) : 0;
    if (status >= 0 || err == NULL || length == 0 || strncmp(err->path, folder->temporary, length) != 0)
        return status;
    char rest[sizeof err->path];
    snprintf(rest, sizeof rest, "%s", err->path + length);
    int put = snprintf(err->path, sizeof err->path, "%s", folder->path);
    if (put >= 0 && (size_t)put < sizeof err->path)
        snprintf(err->path + put, sizeof err->path - (size_t)put, "%s", rest);
    return status;
}

int pst_folder_finish(pst_folder *folder, pst_error *err)
{
    PST_TRY(pst_folder_publish(folder->temporary, folder->path, err));
    folder->finished = true;
    return 0;
}

/* Best effort: what cannot be removed stays, under its temporary name. */
static void remove_all(const pst_folder *folder)
{
    char **names = NULL;
    size_t count = 0;
    if (pst_file_list(folder->temporary, NULL, &names, &count, NULL) >= 0) {
        for (size_t i = 0; i < count; i++) {
            char *path = pst_folder_file(folder, names[i]);
            if (path != NULL)
                pst_file_remove(path, NULL);
            pst_heap_free(path);
        }
        pst_file_list_free(names, count);
    }
    pst_folder_remove(folder->temporary, NULL);
}

void pst_folder_close(pst_folder *folder)
{
    if (folder == NULL)
        return;
    if (folder->temporary != NULL && !folder->finished)
        remove_all(folder);
    pst_heap_free(folder->temporary);
    pst_heap_free(folder->path);
    pst_heap_free(folder);
}
