/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opening a checkpoint, and what it holds. What a path is, is found out here:
 *
 *   a file                                              one part
 *   a folder with a manifest                            a step: every file of tensors that the manifest names is a part
 *   a folder with `latest`, or with folders of steps    a training folder: its newest complete step
 *   any other folder                                    one part: safetensors files, with or without an index
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/number.h"
#include "ckpt/load.h"
#include "ckpt/steps.h"
#include "os/file.h"

/* What the I/O library keeps in flight by default. */
#define DEFAULT_RING_BYTES ((uint64_t)PST_IO_DEFAULT_DEPTH * PST_IO_DEFAULT_BLOCK_BYTES)

/* ---- what a path is ---- */

/* 1: the folder holds this; 0: not; negative: that cannot be told. */
static int holds(const char *folder, const char *name, pst_error *err)
{
    char *path;
    PST_TRY(pst_steps_join(folder, name, &path, err));
    int found = pst_file_find(path, err);
    pst_heap_free(path);
    return found;
}

int pst_ckpt_folder_kind(const char *folder, pst_error *err)
{
    int found = holds(folder, PST_MANIFEST_NAME, err);
    if (found != 0)
        return found < 0 ? found : PST_CKPT_FOLDER_STEP;
    found = holds(folder, PST_STEPS_LATEST, err);
    if (found != 0)
        return found < 0 ? found : PST_CKPT_FOLDER_TRAINING;
    char **names;
    size_t count;
    uint64_t step;
    PST_TRY(pst_file_list(folder, NULL, &names, &count, err));
    for (size_t i = 0; i < count && found == 0; i++)
        found = pst_steps_parse(names[i], &step);
    pst_file_list_free(names, count);
    return found > 0 ? PST_CKPT_FOLDER_TRAINING : PST_CKPT_FOLDER_PLAIN;
}

/* A file that the manifest names: there, of that size, and a part if it is one of tensors. */
static int add_named(pst_ckpt *ckpt, const pst_manifest_file *file, const char *path, pst_error *err)
{
    uint64_t bytes;
    PST_TRY(pst_file_size(path, &bytes, err));
    if (bytes != file->bytes)
        return pst_fail(err, PST_E_FORMAT, path, "has %" PRIu64 " bytes, but by the step's manifest %" PRIu64, bytes,
                        file->bytes);
    int part = pst_ckpt_is_part(path, err);
    int status = part > 0 ? pst_ckpt_add_part(ckpt, path, err) : part;
    return pst_ckpt_is_other(file, path, status) ? 0 : status;
}

static int add_step(pst_ckpt *ckpt, pst_error *err)
{
    PST_TRY(pst_manifest_read(ckpt->path, &ckpt->manifest, err));
    for (size_t i = 0; i < ckpt->manifest.file_count; i++) {
        const pst_manifest_file *file = &ckpt->manifest.files[i];
        char *path;
        PST_TRY(pst_steps_join(ckpt->path, file->name, &path, err));
        int status = add_named(ckpt, file, path, err);
        pst_heap_free(path);
        PST_TRY(status);
    }
    return ckpt->part_count > 0 ? 0 : pst_fail(err, PST_E_FORMAT, ckpt->path, "a step without any file of tensors");
}

static int add_folder(pst_ckpt *ckpt, pst_error *err)
{
    int kind = pst_ckpt_folder_kind(ckpt->path, err);
    PST_TRY(kind);
    if (kind == PST_CKPT_FOLDER_PLAIN)
        return pst_ckpt_add_part(ckpt, ckpt->path, err);
    if (kind == PST_CKPT_FOLDER_TRAINING) {
        uint64_t number;
        char *newest;
        PST_TRY(pst_ckpt_latest(ckpt->path, &number, &newest, err));
        char *path = pst_heap_strdup(newest);
        pst_ckpt_free_path(newest);
        if (path == NULL)
            return pst_fail_memory(err, "a path", strlen(ckpt->path));
        pst_heap_free(ckpt->path);
        ckpt->path = path;
    }
    return add_step(ckpt, err);
}

/* ---- opening ---- */

static int make_lanes(pst_ckpt *ckpt, uint64_t ring_bytes, pst_error *err)
{
    if (ring_bytes == 0)
        ring_bytes = DEFAULT_RING_BYTES;
    if (ring_bytes < PST_SPAN_RING_MIN_BYTES)
        return pst_fail(err, PST_E_USAGE, ckpt->path,
                        "a ring of %" PRIu64 " bytes is too small: at least %d are needed", ring_bytes,
                        PST_SPAN_RING_MIN_BYTES);
    uint64_t count = pst_min(pst_os_processors(), PST_CKPT_LANES);
    ckpt->lane_count = (uint32_t)pst_min(count, ring_bytes / PST_SPAN_RING_MIN_BYTES);
    for (uint32_t i = 0; i < ckpt->lane_count; i++)
        PST_TRY(pst_ckpt_lane_create(ckpt, ring_bytes / ckpt->lane_count, &ckpt->lanes[i], err));
    return 0;
}

static int list_parts(pst_ckpt *ckpt, const char *path, pst_error *err)
{
    int found = pst_file_find(path, err);
    PST_TRY(found);
    if (found == 0)
        return pst_fail(err, -ENOENT, path, "cannot open: %s", pst_strerror(-ENOENT));
    ckpt->path = pst_heap_strdup(path);
    if (ckpt->path == NULL)
        return pst_fail_memory(err, "a path", strlen(path));
    return pst_file_is_folder(path) ? add_folder(ckpt, err) : pst_ckpt_add_part(ckpt, ckpt->path, err);
}

int pst_ckpt_open_parts(const char *path, pst_ckpt **out, pst_error *err)
{
    pst_ckpt *ckpt = pst_heap_calloc(1, sizeof *ckpt);
    if (ckpt == NULL)
        return pst_fail_memory(err, "a checkpoint", sizeof *ckpt);
    pthread_mutex_init(&ckpt->lock, NULL);
    pthread_cond_init(&ckpt->freed, NULL);
    int status = list_parts(ckpt, path, err);
    if (status < 0) {
        pst_ckpt_close(ckpt);
        return status;
    }
    *out = ckpt;
    return 0;
}

static int open_files(pst_ckpt *ckpt, const pst_ckpt_open_options *options, pst_error *err)
{
    pst_io_options io = {0};
    if (options->io.struct_size > 0)
        io = options->io;
    else
        io.struct_size = sizeof io;
    if (io.path == NULL)
        io.path = ckpt->path;
    PST_TRY(pst_io_open(&io, &ckpt->io, err));
    PST_TRY(make_lanes(ckpt, options->ring_bytes, err));
    PST_TRY(pst_ckpt_join_parts(ckpt, err));
    ckpt->verify = options->verify;
    return ckpt->verify ? pst_ckpt_check_files(ckpt, err) : 0;
}

int pst_ckpt_open(const pst_ckpt_open_options *options, pst_ckpt **out, pst_error *err)
{
    pst_ckpt_open_options known = {0};
    if (options == NULL || options->struct_size < offsetof(pst_ckpt_open_options, verify))
        return pst_fail(err, PST_E_USAGE, NULL, "opening a checkpoint needs options with their size");
    memcpy(&known, options, pst_min(options->struct_size, sizeof known));
    if (known.path == NULL)
        return pst_fail(err, PST_E_USAGE, NULL, "opening a checkpoint needs a path");
    pst_ckpt *ckpt;
    PST_TRY(pst_ckpt_open_parts(known.path, &ckpt, err));
    int status = open_files(ckpt, &known, err);
    if (status < 0) {
        pst_ckpt_close(ckpt);
        return status;
    }
    *out = ckpt;
    return 0;
}

void pst_ckpt_close(pst_ckpt *ckpt)
{
    if (ckpt == NULL)
        return;
    pst_pool_destroy(ckpt->pool);
    for (uint32_t i = 0; i < ckpt->lane_count; i++)
        pst_ckpt_lane_destroy(ckpt->lanes[i]);
    for (size_t i = 0; i < ckpt->file_count; i++) {
        if (ckpt->files[i].file != NULL)
            pst_io_file_close(ckpt->files[i].file, NULL); /* only read from: nothing can be lost */
        pst_file_digests_free(&ckpt->files[i].digests);
    }
    pst_io_close(ckpt->io);
    for (size_t i = 0; i < ckpt->part_count; i++) {
        pst_store_close(ckpt->parts[i].store);
        pst_torch_file_free(&ckpt->parts[i].torch);
        pst_heap_free(ckpt->parts[i].path);
    }
    pst_manifest_free(&ckpt->manifest);
    pst_heap_free(ckpt->parts);
    pst_heap_free(ckpt->files);
    pst_heap_free(ckpt->storages);
    pst_heap_free(ckpt->tensors);
    pst_heap_free(ckpt->by_name);
    pst_heap_free(ckpt->path);
    pthread_cond_destroy(&ckpt->freed);
    pthread_mutex_destroy(&ckpt->lock);
    pst_heap_free(ckpt);
}

/* ---- what it holds ---- */

pst_ckpt_format pst_ckpt_get_format(const pst_ckpt *ckpt)
{
    return ckpt->parts[0].store != NULL ? PST_CKPT_SAFETENSORS : PST_CKPT_TORCH;
}

size_t pst_ckpt_tensor_count(const pst_ckpt *ckpt)
{
    return ckpt->tensor_count;
}

int pst_ckpt_tensor_at(const pst_ckpt *ckpt, size_t index, pst_ckpt_tensor_info *out)
{
    if (index >= ckpt->tensor_count)
        return PST_E_USAGE;
    const pst_ckpt_tensor_entry *tensor = &ckpt->tensors[index];
    const pst_ckpt_storage *storage = &ckpt->storages[tensor->storage];
    bool whole = tensor->strides == NULL && tensor->begin == 0 && tensor->bytes == storage->bytes;
    *out = (pst_ckpt_tensor_info){.name = tensor->name,
                                  .dtype = tensor->dtype,
                                  .rank = tensor->rank,
                                  .shape = tensor->shape,
                                  .strides = tensor->strides,
                                  .bytes = tensor->bytes,
                                  .storage = (uint32_t)tensor->storage,
                                  .storage_begin = tensor->begin,
                                  .file = ckpt->files[storage->file].path,
                                  .has_digest = whole && storage->digest != NULL};
    return 0;
}

int64_t pst_ckpt_find(const pst_ckpt *ckpt, const char *name)
{
    size_t low = 0, high = ckpt->tensor_count;
    while (low < high) { /* the first that is not below the name */
        size_t middle = low + (high - low) / 2;
        if (strcmp(ckpt->tensors[ckpt->by_name[middle]].name, name) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    bool found = low < ckpt->tensor_count && strcmp(ckpt->tensors[ckpt->by_name[low]].name, name) == 0;
    return found ? (int64_t)ckpt->by_name[low] : -ENOENT;
}

size_t pst_ckpt_storage_count(const pst_ckpt *ckpt)
{
    return ckpt->storage_count;
}

int pst_ckpt_storage_at(const pst_ckpt *ckpt, size_t index, pst_ckpt_storage_info *out)
{
    if (index >= ckpt->storage_count)
        return PST_E_USAGE;
    const pst_ckpt_storage *storage = &ckpt->storages[index];
    *out = (pst_ckpt_storage_info){
        .dtype = storage->dtype, .bytes = storage->bytes, .file = ckpt->files[storage->file].path};
    return 0;
}

const char *pst_ckpt_metadata(const pst_ckpt *ckpt, const char *key)
{
    for (size_t i = 0; i < ckpt->manifest.metadata_count; i++)
        if (strcmp(ckpt->manifest.metadata[i].key, key) == 0)
            return ckpt->manifest.metadata[i].value;
    for (size_t p = 0; p < ckpt->part_count; p++) {
        const pst_store *store = ckpt->parts[p].store;
        for (uint32_t f = 0; store != NULL && f < pst_store_file_count(store); f++) {
            const char *value = pst_store_metadata(store, f, key);
            if (value != NULL)
                return value;
        }
    }
    return NULL;
}

/* The values are those of the one file of torch; of several there would be several wholes. */
static const pst_ckpt_part *part_of_values(const pst_ckpt *ckpt)
{
    const pst_ckpt_part *found = NULL;
    for (size_t p = 0; p < ckpt->part_count; p++) {
        if (ckpt->parts[p].store != NULL)
            continue;
        if (found != NULL)
            return NULL;
        found = &ckpt->parts[p];
    }
    return found;
}

size_t pst_ckpt_value_count(const pst_ckpt *ckpt)
{
    const pst_ckpt_part *part = part_of_values(ckpt);
    return part != NULL ? part->torch.value_count : 0;
}

int pst_ckpt_value_at(const pst_ckpt *ckpt, size_t node, pst_ckpt_value *out)
{
    const pst_ckpt_part *part = part_of_values(ckpt);
    if (part == NULL || node >= part->torch.value_count)
        return PST_E_USAGE;
    *out = part->torch.values[node];
    if (out->kind == PST_CKPT_TENSOR)
        out->integer += (int64_t)part->first_tensor;
    return 0;
}
