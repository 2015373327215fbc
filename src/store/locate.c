/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From what a user types for MODEL to a folder: a path as it is, or a repository's name in a Hugging Face
 * cache:
 *   <hub>/models--org--name/refs/main                  a revision's hash
 *   <hub>/models--org--name/snapshots/<hash>/<files>   symbolic links into ../../blobs
 */
#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "os/file.h"
#include "store/safetensors.h"
#include "store/store.h"

/* A repository or revision name: letters, digits, '-', '_', '.', not beginning with '.'; so it names no
 * other folder. */
static bool is_plain_name(const char *name, size_t length)
{
    static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.";
    return length > 0 && length <= 96 && name[0] != '.' && strspn(name, allowed) >= length;
}

/* The revision that refs/main names; *out NULL when there is no such file. */
static int read_main(const char *repository, char **out, pst_error *err)
{
    *out = NULL;
    char *path = pst_heap_printf("%s/refs/main", repository);
    if (path == NULL)
        return pst_fail_memory(err, "a path", strlen(repository));
    int status = pst_file_find(path, err);
    char *text = NULL;
    size_t bytes;
    if (status > 0)
        status = pst_file_read_all(path, 4096, &text, &bytes, err);
    if (text != NULL) {
        size_t length = strcspn(text, " \t\r\n");
        if (!is_plain_name(text, length) || strspn(text + length, " \t\r\n") != bytes - length) {
            status = pst_fail(err, PST_E_FORMAT, path, "holds no revision");
        } else {
            text[length] = '\0';
            *out = text;
            text = NULL;
        }
    }
    pst_heap_free(text);
    pst_heap_free(path);
    return status < 0 ? status : 0;
}

/* The only folder in snapshots/. */
static int only_snapshot(const char *snapshots, char **out, pst_error *err)
{
    char **names;
    size_t count, folders = 0;
    PST_TRY(pst_file_list(snapshots, NULL, &names, &count, err));
    char *found = NULL;
    int status = 0;
    for (size_t i = 0; i < count && status == 0; i++) {
        char *path = pst_heap_printf("%s/%s", snapshots, names[i]);
        if (path == NULL) {
            status = pst_fail_memory(err, "a path", strlen(snapshots));
        } else if (pst_file_is_folder(path) && folders++ == 0) {
            found = path;
            path = NULL;
        }
        pst_heap_free(path);
    }
    pst_file_list_free(names, count);
    if (status == 0 && folders != 1)
        status = pst_fail(err, folders ? PST_E_USAGE : -ENOENT, snapshots, "%s",
                          folders ? "holds several revisions and refs/main names none: give the folder of one of them"
                                  : "holds no revision");
    if (status < 0) {
        pst_heap_free(found);
        return status;
    }
    *out = found;
    return 0;
}

/* A repository's folder in the cache -> the folder of its snapshot. */
static int find_snapshot(const char *repository, char **out, pst_error *err)
{
    char *revision;
    PST_TRY(read_main(repository, &revision, err));
    char *path = pst_heap_printf("%s/snapshots%s%s", repository, revision ? "/" : "", revision ? revision : "");
    if (path == NULL) {
        pst_heap_free(revision);
        return pst_fail_memory(err, "a path", strlen(repository));
    }
    int status = 0;
    if (revision == NULL) {
        char *found = NULL;
        status = only_snapshot(path, &found, err);
        pst_heap_free(path);
        path = found;
    } else if (!pst_file_is_folder(path)) {
        status = pst_fail(err, -ENOENT, path, "refs/main names this revision, but it is not in the cache");
        pst_heap_free(path);
    }
    pst_heap_free(revision);
    if (status == 0)
        *out = path;
    return status;
}

/* Whether a path that exists is a repository's folder in a cache rather than a model's. */
static int is_repository(const char *path, bool *out, pst_error *err)
{
    char *snapshots = pst_heap_printf("%s/snapshots", path);
    if (snapshots == NULL)
        return pst_fail_memory(err, "a path", strlen(path));
    *out = pst_file_is_folder(snapshots);
    pst_heap_free(snapshots);
    return 0;
}

/* "org/name" or "name" -> <cache>[/hub]/models--org--name, or -ENOENT. */
static int find_repository(const char *model, const char *cache, char **out, pst_error *err)
{
    const char *slash = strchr(model, '/');
    size_t length = slash ? (size_t)(slash - model) : strlen(model);
    char quoted[PST_QUOTE_BYTES];
    if (!is_plain_name(model, length) || (slash && !is_plain_name(slash + 1, strlen(slash + 1))))
        return pst_fail(err, -ENOENT, model, "no such file or folder");
    if (cache == NULL)
        return pst_fail(err, -ENOENT, model, "no such file or folder, and no cache to look in");
    for (int hub = 0; hub < 2; hub++) {
        char *path = pst_heap_printf("%s%s/models--%.*s%s%s", cache, hub ? "/hub" : "", (int)length, model,
                                     slash ? "--" : "", slash ? slash + 1 : "");
        if (path == NULL)
            return pst_fail_memory(err, "a path", strlen(cache));
        int found = pst_file_find(path, err);
        if (found > 0 && pst_file_is_folder(path)) {
            *out = path;
            return 0;
        }
        pst_heap_free(path);
        PST_TRY(found);
    }
    return pst_fail(err, -ENOENT, model, "no such file or folder, nor a model in the cache %s",
                    pst_quote(cache, quoted));
}

int pst_store_locate(const char *model, const char *cache, char **out, pst_error *err)
{
    char *repository = NULL;
    if (model[0] == '\0')
        return pst_fail(err, PST_E_USAGE, NULL, "the model's name is empty");
    /* Only what is not there is looked for in the cache: a path that leads in a circle or through a closed
     * folder is the user's to hear of. */
    int found = pst_file_find(model, err);
    PST_TRY(found);
    if (found > 0) {
        bool in_cache = false;
        PST_TRY(is_repository(model, &in_cache, err));
        if (in_cache)
            return find_snapshot(model, out, err);
        char *copy = pst_heap_strdup(model);
        if (copy == NULL)
            return pst_fail_memory(err, "a path", strlen(model));
        *out = copy;
        return 0;
    }
    PST_TRY(find_repository(model, cache, &repository, err));
    int status = find_snapshot(repository, out, err);
    pst_heap_free(repository);
    return status;
}
