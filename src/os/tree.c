/* SPDX-License-Identifier: Apache-2.0 */
/* Recursion over folders, one list of names per level, no deeper than PST_TREE_MAX_DEPTH. */
#include "os/tree.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "os/file.h"
#include "os/sys.h"

typedef struct walk {
    const char *root;
    pst_tree_each *each;
    void *context;
    pst_error *err;
} walk;

static int walk_folder(const walk *w, const char *name, unsigned depth);

/* name: relative to the root. */
static int visit(const walk *w, const char *name, unsigned depth)
{
    char *path = pst_heap_printf("%s/%s", w->root, name);
    if (path == NULL)
        return pst_fail_memory(w->err, "a path", strlen(w->root) + strlen(name));
    struct statx info;
    int status = pst_sys->statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, STATX_TYPE | STATX_SIZE, &info);
    if (status < 0 && status != -ENOENT)
        pst_fail(w->err, status, path, "cannot examine: %s", pst_strerror(status));
    pst_heap_free(path);
    if (status == -ENOENT)
        return 0;
    PST_TRY(status);
    if (!S_ISDIR(info.stx_mode))
        return w->each(w->context, name, S_ISREG(info.stx_mode) ? PST_TREE_FILE : PST_TREE_OTHER, info.stx_size,
                       w->err);
    PST_TRY(walk_folder(w, name, depth + 1));
    return w->each(w->context, name, PST_TREE_FOLDER, 0, w->err);
}

/* name: "" for the root itself. */
static int walk_folder(const walk *w, const char *name, unsigned depth)
{
    if (depth > PST_TREE_MAX_DEPTH)
        return pst_fail(w->err, PST_E_UNSUPPORTED, w->root, "folders lie more than %d deep in it", PST_TREE_MAX_DEPTH);
    const char *slash = name[0] != '\0' ? "/" : "";
    char *path = pst_heap_printf("%s%s%s", w->root, slash, name);
    if (path == NULL)
        return pst_fail_memory(w->err, "a path", strlen(w->root) + strlen(name));
    char **names = NULL;
    size_t count = 0;
    int status = pst_file_list(path, NULL, &names, &count, w->err);
    pst_heap_free(path);
    if (status == -ENOENT && depth > 0)
        return 0;
    PST_TRY(status);
    for (size_t i = 0; i < count && status >= 0; i++) {
        char *child = pst_heap_printf("%s%s%s", name, slash, names[i]);
        status = child != NULL ? visit(w, child, depth) : pst_fail_memory(w->err, "a path", strlen(names[i]));
        pst_heap_free(child);
    }
    pst_file_list_free(names, count);
    return status;
}

int pst_tree_walk(const char *folder, pst_tree_each *each, void *context, pst_error *err)
{
    const walk w = {.root = folder, .each = each, .context = context, .err = err};
    return walk_folder(&w, "", 0);
}

static int remove_one(void *context, const char *name, pst_tree_kind kind, uint64_t bytes, pst_error *err)
{
    (void)bytes;
    char *path = pst_heap_printf("%s/%s", (const char *)context, name);
    if (path == NULL)
        return pst_fail_memory(err, "a path", strlen(name));
    int status = kind == PST_TREE_FOLDER ? pst_folder_remove(path, err) : pst_file_remove(path, err);
    pst_heap_free(path);
    return status;
}

int pst_tree_remove(const char *folder, pst_error *err)
{
    if (pst_file_is_link(folder))
        return pst_file_remove(folder, err);
    if (!pst_file_is_folder(folder) && pst_file_find(folder, NULL) == 0)
        return 0;
    /* `each` gets the folder back as its context: it only reads it. */
    PST_TRY(pst_tree_walk(folder, remove_one, (void *)(uintptr_t)folder, err));
    return pst_folder_remove(folder, err);
}
