/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The beginning and the end of the crash table's work: what lies in a folder becomes nodes, and nodes become what may lie
 * there after a failure. The folder is emptied and built up anew, which is simpler than finding out what is to change.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/number.h"
#include "os/sys_crash_model.h"

static int fail_path(pst_error *err, int code, const char *path, const char *verb)
{
    return pst_fail(err, code, path, "cannot %s: %s", verb, pst_strerror(code));
}

static bool is_dots(const char *name)
{
    return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

/* Calls `each` for every entry of a folder but "." and "..". */
typedef int entry_function(const char *path, const char *name, void *context, pst_error *err);

static int for_entries(const char *folder, entry_function *each, void *context, pst_error *err)
{
    DIR *entries = opendir(folder);
    if (entries == NULL)
        return fail_path(err, -errno, folder, "open the folder");
    int status = 0;
    for (struct dirent *e; status >= 0 && (e = readdir(entries)) != NULL;) {
        if (is_dots(e->d_name))
            continue;
        char *path = pst_heap_printf("%s/%s", folder, e->d_name);
        status = path != NULL ? each(path, e->d_name, context, err) : pst_fail_memory(err, folder, strlen(folder));
        pst_heap_free(path);
    }
    closedir(entries);
    return status;
}

/* ---- before ---- */

static int scan_file(const char *path, const struct stat *info, crash_node *node, pst_error *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return fail_path(err, -errno, path, "open");
    int status = crash_file_load(node, fd, (uint64_t)info->st_size);
    close(fd);
    return status < 0 ? fail_path(err, status, path, "read") : 0;
}

static int scan_link(const char *path, crash_node *node, pst_error *err)
{
    char target[PATH_MAX];
    ssize_t bytes = readlink(path, target, sizeof target - 1);
    if (bytes < 0)
        return fail_path(err, -errno, path, "read the link");
    node->text = pst_heap_strndup(target, (size_t)bytes);
    return node->text != NULL ? 0 : pst_fail_memory(err, path, (size_t)bytes);
}

static int scan_entry(const char *path, const char *name, void *context, pst_error *err)
{
    crash_node *folder = context, *node;
    struct stat info;
    if (lstat(path, &info) < 0)
        return fail_path(err, -errno, path, "examine");
    node = crash_node_find(&info);
    if (node != NULL && node->kind == CRASH_FILE) {
        node->several_names = true;
    } else if (S_ISREG(info.st_mode) || S_ISLNK(info.st_mode)) {
        node = crash_node_add(S_ISREG(info.st_mode) ? CRASH_FILE : CRASH_LINK, &info);
        if (node == NULL)
            return pst_fail_memory(err, path, sizeof *node);
        PST_TRY(node->kind == CRASH_FILE ? scan_file(path, &info, node, err) : scan_link(path, node, err));
    } else if (S_ISDIR(info.st_mode)) {
        PST_TRY(crash_scan(path, &node, err));
    } else {
        return pst_fail(err, PST_E_UNSUPPORTED, path, "is no file, folder or link: no crash can be tried here");
    }
    node->names++;
    int status = crash_names_put(&folder->durable, name, node);
    if (status >= 0)
        status = crash_names_put(&folder->latest, name, node);
    return status < 0 ? fail_path(err, status, path, "remember") : 0;
}

int crash_scan(const char *path, crash_node **out, pst_error *err)
{
    struct stat info;
    if (stat(path, &info) < 0)
        return fail_path(err, -errno, path, "examine");
    if (!S_ISDIR(info.st_mode))
        return fail_path(err, -ENOTDIR, path, "watch");
    crash_node *node = crash_node_add(CRASH_FOLDER, &info);
    if (node == NULL)
        return pst_fail_memory(err, path, sizeof *node);
    *out = node;
    return for_entries(path, scan_entry, node, err);
}

/* ---- chance ---- */

typedef struct dice {
    pst_crash_loss loss;
    uint64_t seed;
    unsigned data_percent, change_percent;
} dice;

static dice make_dice(pst_crash_loss loss, uint64_t seed)
{
    static const unsigned percents[] = {50, 0, 25, 75, 100};
    return (dice){
        .loss = loss, .seed = seed, .data_percent = percents[seed % 5], .change_percent = percents[seed / 5 % 5]};
}

/* A number that follows from the seed and two numbers of what it is for. */
static uint64_t throw_dice(const dice *d, uint64_t what, uint64_t which)
{
    uint64_t z = d->seed * 0x9e3779b97f4a7c15u + what * 0xbf58476d1ce4e5b9u + which * 0x94d049bb133111ebu + 1;
    return pst_mix(pst_mix(z));
}

static bool change_survives(const dice *d, const crash_node *folder, size_t change)
{
    return throw_dice(d, folder->number, change ^ (uint64_t)1 << 63) % 100 < d->change_percent;
}

/* ---- names after the failure ---- */

/* A surviving change. What was moved elsewhere stays, until it is known that it has arrived there. */
static int apply_change(crash_node *folder, const crash_change *c)
{
    if (c->exchanged != NULL) {
        crash_names_remove_node(&folder->recovered, c->node);
        crash_names_remove_node(&folder->recovered, c->exchanged);
        PST_TRY(crash_names_put(&folder->recovered, c->removed, c->exchanged));
        return crash_names_put(&folder->recovered, c->added, c->node);
    }
    if (c->added != NULL && c->removed != NULL && !c->node->several_names)
        crash_names_remove_node(&folder->recovered, c->node); /* a rename before this one may have been lost */
    if (c->removed != NULL && c->other == NULL)
        crash_names_remove(&folder->recovered, c->removed);
    return c->added != NULL ? crash_names_put(&folder->recovered, c->added, c->node) : 0;
}

static int recover_names(const dice *d, crash_node *folder)
{
    PST_TRY(crash_names_copy(&folder->recovered, d->loss == PST_CRASH_KEEP_ALL ? &folder->latest : &folder->durable));
    for (size_t i = 0; d->loss == PST_CRASH_MIXED && i < folder->change_count; i++) {
        if (change_survives(d, folder, i))
            PST_TRY(apply_change(folder, &folder->changes[i]));
    }
    return 0;
}

static bool holds(const crash_names *names, const crash_node *node)
{
    for (size_t i = 0; i < names->count; i++) {
        if (names->list[i].node == node)
            return true;
    }
    return false;
}

/* The removals of what was moved to another folder, once all folders have their names. */
static void finish_moves(const dice *d, crash_node *folder)
{
    for (size_t i = 0; d->loss == PST_CRASH_MIXED && i < folder->change_count; i++) {
        const crash_change *c = &folder->changes[i];
        if (c->added == NULL && c->other != NULL && change_survives(d, folder, i) &&
            holds(&c->other->recovered, c->node) && crash_names_find(&folder->recovered, c->removed) == c->node)
            crash_names_remove(&folder->recovered, c->removed);
    }
}

static int recover_all_names(const dice *d)
{
    for (crash_node *node = crash_node_first(); node != NULL; node = node->next) {
        if (node->kind == CRASH_FOLDER)
            PST_TRY(recover_names(d, node));
    }
    for (crash_node *node = crash_node_first(); node != NULL; node = node->next) {
        if (node->kind == CRASH_FOLDER)
            finish_moves(d, node);
    }
    return 0;
}

/* ---- contents after the failure ---- */

static uint64_t recovered_length(const dice *d, const crash_node *file)
{
    if (d->loss == PST_CRASH_LOSE_ALL)
        return file->durable_bytes;
    if (d->loss == PST_CRASH_KEEP_ALL)
        return file->latest_bytes;
    uint64_t die = throw_dice(d, file->number, (uint64_t)1 << 62);
    switch (die % 4) {
    case 0: return file->durable_bytes;
    case 1: return file->least_bytes + die / 4 % (file->most_bytes - file->least_bytes + 1);
    default: return file->latest_bytes;
    }
}

/* Fills `out` with what survives of a chunk; false when that is zeros only, as far as is known. */
static bool recovered_chunk(const dice *d, const crash_node *file, const crash_chunk *chunk, uint8_t *out)
{
    bool any = chunk->durable != NULL;
    if (any)
        memcpy(out, chunk->durable, CRASH_CHUNK_BYTES);
    else
        memset(out, 0, CRASH_CHUNK_BYTES);
    for (unsigned s = 0; chunk->latest != NULL && s < CRASH_CHUNK_SECTORS; s++) {
        uint64_t sector = chunk->index * CRASH_CHUNK_SECTORS + s;
        bool survives = d->loss == PST_CRASH_KEEP_ALL ||
                        (d->loss == PST_CRASH_MIXED && throw_dice(d, file->number, sector) % 100 < d->data_percent);
        if (!survives || !crash_sector_is_dirty(chunk, s))
            continue;
        memcpy(out + s * CRASH_SECTOR_BYTES, chunk->latest + s * CRASH_SECTOR_BYTES, CRASH_SECTOR_BYTES);
        any = true;
    }
    return any;
}

static int write_content(const dice *d, const crash_node *file, int fd)
{
    uint64_t length = recovered_length(d, file);
    uint8_t *memory = pst_heap_alloc(CRASH_CHUNK_BYTES);
    int status = memory != NULL ? 0 : -ENOMEM;
    for (size_t i = 0; status >= 0 && i < file->chunk_count; i++) {
        const crash_chunk *chunk = &file->chunks[i];
        uint64_t at = chunk->index * CRASH_CHUNK_BYTES;
        if (at >= length || !recovered_chunk(d, file, chunk, memory))
            continue;
        uint64_t bytes = length - at < CRASH_CHUNK_BYTES ? length - at : CRASH_CHUNK_BYTES;
        for (uint64_t done = 0; status >= 0 && done < bytes;) {
            ssize_t put = pwrite(fd, memory + done, bytes - done, (off_t)(at + done));
            if (put < 0 && errno != EINTR)
                status = -errno;
            done += put > 0 ? (uint64_t)put : 0;
        }
    }
    pst_heap_free(memory);
    if (status >= 0 && ftruncate(fd, (off_t)length) < 0)
        status = -errno;
    return status;
}

/* ---- building ---- */

static int remove_entry(const char *path, const char *name, void *context, pst_error *err)
{
    (void)name, (void)context;
    struct stat info;
    if (lstat(path, &info) < 0)
        return fail_path(err, -errno, path, "examine");
    if (!S_ISDIR(info.st_mode))
        return unlink(path) < 0 ? fail_path(err, -errno, path, "remove") : 0;
    PST_TRY(for_entries(path, remove_entry, NULL, err));
    return rmdir(path) < 0 ? fail_path(err, -errno, path, "remove") : 0;
}

static int build_file(const dice *d, const char *path, crash_node *file, pst_error *err)
{
    if (file->text != NULL) /* another name of it is there */
        return link(file->text, path) < 0 ? fail_path(err, -errno, path, "link") : 0;
    file->text = pst_heap_strdup(path);
    if (file->text == NULL)
        return pst_fail_memory(err, path, strlen(path));
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return fail_path(err, -errno, path, "create");
    int status = write_content(d, file, fd);
    if (fchmod(fd, file->mode) < 0 && status >= 0)
        status = -errno;
    if (close(fd) < 0 && status >= 0)
        status = -errno;
    return status < 0 ? fail_path(err, status, path, "write") : 0;
}

static int build_folder(const dice *d, const char *folder_path, crash_node *folder, pst_error *err);

static int build(const dice *d, const char *path, crash_node *node, pst_error *err)
{
    switch (node->kind) {
    case CRASH_FILE: return build_file(d, path, node, err);
    case CRASH_LINK: return symlink(node->text, path) < 0 ? fail_path(err, -errno, path, "link") : 0;
    case CRASH_FOLDER: break;
    }
    if (node->reached) /* its removal elsewhere was lost; a folder has one name only */
        return 0;
    node->reached = true;
    if (mkdir(path, 0700) < 0)
        return fail_path(err, -errno, path, "create the folder");
    PST_TRY(build_folder(d, path, node, err));
    return chmod(path, node->mode) < 0 ? fail_path(err, -errno, path, "set the mode of") : 0;
}

static int build_folder(const dice *d, const char *folder_path, crash_node *folder, pst_error *err)
{
    for (size_t i = 0; i < folder->recovered.count; i++) {
        char *path = pst_heap_printf("%s/%s", folder_path, folder->recovered.list[i].name);
        if (path == NULL)
            return pst_fail_memory(err, folder_path, strlen(folder_path));
        int status = build(d, path, folder->recovered.list[i].node, err);
        pst_heap_free(path);
        PST_TRY(status);
    }
    return 0;
}

int crash_rebuild(const char *path, crash_node *root, pst_crash_loss loss, uint64_t seed, pst_error *err)
{
    dice d = make_dice(loss, seed);
    for (crash_node *node = crash_node_first(); node != NULL; node = node->next) {
        node->reached = false;
        if (node->kind == CRASH_FILE) {
            pst_heap_free(node->text);
            node->text = NULL;
        }
    }
    int status = recover_all_names(&d);
    if (status < 0)
        return fail_path(err, status, path, "recover");
    PST_TRY(for_entries(path, remove_entry, NULL, err));
    root->reached = true;
    return build_folder(&d, path, root, err);
}
