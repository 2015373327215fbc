/* SPDX-License-Identifier: Apache-2.0 */
/* The names of a save. */
#include "ckpt/publish.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/number.h"
#include "os/file.h"

static const char index_name[] = "model.safetensors.index.json";

/* ---- before ---- */

/* What is there may be replaced. */
static int check_target(const pst_ckpt_place *place, pst_error *err)
{
    int found = pst_file_find(place->path, err);
    PST_TRY(found);
    if (found == 0)
        return 0;
    if (place->folder)
        return pst_fail(err, -EEXIST, place->path, "exists already; shards go into a new folder");
    if (pst_file_is_folder(place->path))
        return pst_fail(err, -EISDIR, place->path, "is a folder");
    uint64_t bytes;
    return pst_file_size(place->path, &bytes, err); /* refuses what is no regular file */
}

static int check_space(const pst_ckpt_place *place, pst_error *err)
{
    uint64_t free_bytes, needed = place->layout->file_bytes;
    PST_TRY(pst_file_free_space(place->path, &free_bytes, err));
    if (needed > free_bytes)
        return pst_fail(err, -ENOSPC, place->path,
                        "needs %" PRIu64 " bytes beside what is there, and only %" PRIu64 " are free", needed,
                        free_bytes);
    return 0;
}

static int find_path(const char *path, pst_ckpt_place *out, pst_error *err)
{
    size_t length = strlen(path);
    while (out->folder && length > 1 && path[length - 1] == '/')
        length--;
    if (length == 0 || path[length - 1] == '/')
        return pst_fail(err, PST_E_USAGE, path, "is no name of a %s", out->folder ? "folder" : "file");
    char *plain = pst_heap_strndup(path, length);
    if (plain == NULL)
        return pst_fail_memory(err, path, length);
    int status = 0;
    if (out->folder)
        out->path = plain; /* whatever is there is in the way, a link, too */
    else
        status = pst_file_follow(plain, &out->path, err);
    if (!out->folder)
        pst_heap_free(plain);
    return status;
}

int pst_ckpt_place_begin(const char *path, const pst_ckpt_layout *layout, bool owner, pst_ckpt_place *out,
                         pst_error *err)
{
    *out = (pst_ckpt_place){.folder = layout->folder, .owner = owner, .layout = layout};
    PST_TRY(find_path(path, out, err));
    if (!owner)
        return 0;
    PST_TRY(check_target(out, err));
    PST_TRY(check_space(out, err));
    out->temporary = pst_file_temporary_name(out->path);
    if (out->temporary == NULL)
        return pst_fail_memory(err, out->path, strlen(out->path));
    if (!out->folder)
        return 0;
    int status = pst_folder_create(out->temporary, err);
    out->made = status >= 0;
    return status;
}

void pst_ckpt_place_tell(const pst_ckpt_place *place, char suffix[PST_CKPT_SUFFIX_BYTES])
{
    memset(suffix, 0, PST_CKPT_SUFFIX_BYTES);
    if (place->temporary != NULL)
        snprintf(suffix, PST_CKPT_SUFFIX_BYTES, "%s", place->temporary + strlen(place->path));
}

int pst_ckpt_place_join(pst_ckpt_place *place, const char suffix[PST_CKPT_SUFFIX_BYTES], pst_error *err)
{
    if (place->owner)
        return 0;
    place->temporary = pst_heap_printf("%s%.*s", place->path, PST_CKPT_SUFFIX_BYTES - 1, suffix);
    return place->temporary == NULL ? pst_fail_memory(err, place->path, strlen(place->path)) : 0;
}

/* ---- files ---- */

static char *path_of(const pst_ckpt_place *place, const char *name)
{
    return place->folder ? pst_heap_printf("%s/%s", place->temporary, name) : pst_heap_strdup(place->temporary);
}

int pst_ckpt_place_open(pst_ckpt_place *place, pst_io *io, size_t file, bool create, pst_io_file **out, pst_error *err)
{
    const pst_ckpt_file *what = &place->layout->files[file];
    char *path = path_of(place, what->name);
    if (path == NULL)
        return pst_fail_memory(err, place->path, strlen(place->path));
    unsigned flags = PST_IO_OPEN_WRITE | (create ? PST_IO_OPEN_CREATE | PST_IO_OPEN_EXCLUSIVE : 0);
    pst_io_file *opened = NULL;
    int status = pst_io_file_open(io, path, flags, &opened, err);
    pst_heap_free(path);
    PST_TRY(status);
    if (create) {
        place->made = true;
        status =
            pst_io_file_preallocate(opened, pst_round_up(pst_image_file_bytes(what->image), PST_IMAGE_ALIGNMENT), err);
    }
    if (status < 0) {
        pst_io_file_close(opened, NULL);
        return status;
    }
    *out = opened;
    return 0;
}

/* ---- after ---- */

static int write_index(const pst_ckpt_place *place, const pst_ckpt_tensor *tensors, pst_error *err)
{
    if (place->layout->file_count == 1)
        return 0;
    char *path = path_of(place, index_name);
    if (path == NULL)
        return pst_fail_memory(err, place->path, strlen(place->path));
    int status = pst_ckpt_layout_write_index(place->layout, tensors, path, err);
    pst_heap_free(path);
    return status;
}

int pst_ckpt_place_publish(pst_ckpt_place *place, const pst_ckpt_tensor *tensors, pst_error *err)
{
    if (place->folder) {
        PST_TRY(write_index(place, tensors, err));
        PST_TRY(pst_folder_sync(place->temporary, err));
        PST_TRY(pst_folder_move(place->temporary, place->path, err));
    } else {
        PST_TRY(pst_file_rename(place->temporary, place->path, err));
    }
    place->renamed = true;
    pst_error sync = {0};
    int status = pst_folder_sync_parent(place->path, &sync);
    if (status < 0)
        return pst_fail(err, status, place->path,
                        "is there, new and whole, but whether it survives a loss of power is unknown: %s: %s",
                        sync.path, sync.message);
    return 0;
}

int pst_ckpt_place_name_final(const pst_ckpt_place *place, int status, pst_error *err)
{
    if (status >= 0 || err == NULL || place->temporary == NULL)
        return status;
    size_t length = strlen(place->temporary);
    if (strncmp(err->path, place->temporary, pst_min(length, sizeof err->path - 1)) != 0)
        return status;
    char rest[sizeof err->path];
    snprintf(rest, sizeof rest, "%s", length < sizeof err->path ? err->path + length : "");
    int put = snprintf(err->path, sizeof err->path, "%s", place->path);
    if (put >= 0 && (size_t)put < sizeof err->path)
        snprintf(err->path + put, sizeof err->path - (size_t)put, "%s", rest);
    return status;
}

/* Best effort: what cannot be removed stays, under its temporary name. */
static void remove_all(const pst_ckpt_place *place)
{
    char **names = NULL;
    size_t count = 0;
    if (!place->folder) {
        pst_file_remove(place->temporary, NULL);
        return;
    }
    if (pst_file_list(place->temporary, NULL, &names, &count, NULL) >= 0) {
        for (size_t i = 0; i < count; i++) {
            char *path = path_of(place, names[i]);
            if (path != NULL)
                pst_file_remove(path, NULL);
            pst_heap_free(path);
        }
        pst_file_list_free(names, count);
    }
    pst_folder_remove(place->temporary, NULL);
}

void pst_ckpt_place_end(pst_ckpt_place *place)
{
    if (place->owner && place->made && !place->renamed)
        remove_all(place);
    pst_heap_free(place->temporary);
    pst_heap_free(place->path);
    *place = (pst_ckpt_place){0};
}
