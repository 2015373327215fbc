/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What there is to check. A path that is one file, or a folder of safetensors files, must open; in a step's folder
 * what does not open, or is not what the manifest says, is one finding among others.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "ckpt/load.h"
#include "ckpt/steps.h"
#include "jobs/verify_internal.h"
#include "os/file.h"

/* Makes room for one more element of an array that is counted by itself. */
static int grow(void *array_pointer, size_t count, size_t element_bytes, pst_error *err)
{
    void *array;
    memcpy(&array, array_pointer, sizeof array);
    array = pst_heap_reallocarray(array, count + 1, element_bytes);
    if (array == NULL)
        return pst_fail_memory(err, "a list to verify", (count + 1) * element_bytes);
    memcpy(array_pointer, &array, sizeof array);
    return 0;
}

/* ---- findings ---- */

static int add_trouble(verifying *v, const char *path, uint64_t offset, const char *what, pst_error *err)
{
    PST_TRY(grow(&v->troubles, v->trouble_count, sizeof *v->troubles, err));
    verify_trouble *trouble = &v->troubles[v->trouble_count];
    *trouble = (verify_trouble){.path = pst_heap_strdup(path), .what = pst_heap_strdup(what), .offset = offset};
    v->trouble_count++; /* freed with the rest, also half made */
    return trouble->path != NULL && trouble->what != NULL ? 0 : pst_fail_memory(err, "a finding", strlen(what));
}

/* An error of opening a file of a step is a finding, except for what is no fault of the file. */
static int note_error(verifying *v, const char *path, int status, const pst_error *found, pst_error *err)
{
    bool of_file = status == PST_E_FORMAT || status == PST_E_SHORT || status == PST_E_UNSUPPORTED || status == -ENOENT;
    if (status >= 0)
        return 0;
    if (!of_file) {
        if (err != NULL)
            *err = *found;
        return status;
    }
    return add_trouble(v, found->path[0] ? found->path : path, found->offset, found->message, err);
}

/* ---- items ---- */

static int add_item(verifying *v, const verify_item *item, pst_error *err)
{
    if (v->item_count == v->item_capacity) {
        size_t capacity = v->item_capacity * 2 + 64;
        verify_item *items = pst_heap_reallocarray(v->items, capacity, sizeof *items);
        if (items == NULL)
            return pst_fail_memory(err, "a list to verify", capacity * sizeof *items);
        v->items = items;
        v->item_capacity = capacity;
    }
    v->items[v->item_count++] = *item;
    v->total_bytes += item->bytes;
    return 0;
}

static int add_file(verifying *v, const char *path, size_t part, uint32_t place, pst_error *err)
{
    PST_TRY(grow(&v->files, v->file_count, sizeof *v->files, err));
    verify_file *file = &v->files[v->file_count];
    *file = (verify_file){.path = pst_heap_strdup(path), .part = part, .place = place};
    v->file_count++;
    return file->path != NULL ? 0 : pst_fail_memory(err, "a path", strlen(path));
}

static int add_own(verifying *v, uint64_t bytes, pst_error *err)
{
    const verify_file *file = &v->files[v->file_count - 1];
    const verify_item item = {
        .kind = VERIFY_OWN, .file = (uint32_t)(v->file_count - 1), .bytes = bytes, .digest = file->digests.own};
    return file->digests.own != NULL ? add_item(v, &item, err) : 0;
}

/* One of a store's files; its tensors begin at number *first of the store's. */
static int add_store_file(verifying *v, size_t part, uint32_t place, size_t *first, pst_error *err)
{
    const pst_store *store = v->parts[part].store;
    pst_store_file_info info;
    pst_store_get_file(store, place, &info);
    PST_TRY(add_file(v, info.path, part, place, err));
    verify_file *file = &v->files[v->file_count - 1];
    file->tensors = info.tensors;
    PST_TRY(pst_file_digests_of_store(store, place, &file->digests, err));
    PST_TRY(pst_store_file_open(store, place, v->io, &file->file, err));
    PST_TRY(add_own(v, info.header_bytes, err));
    for (size_t i = 0; i < info.tensors && file->digests.digits != NULL; i++) {
        const pst_tensor *tensor = pst_store_tensor_at(store, *first + i);
        const verify_item item = {.file = (uint32_t)(v->file_count - 1),
                                  .offset = tensor->offset,
                                  .bytes = tensor->bytes,
                                  .name = tensor->name,
                                  .digest = pst_file_digests_of(&file->digests, i),
                                  .is_tensor = true};
        PST_TRY(add_item(v, &item, err));
    }
    *first += info.tensors;
    return 0;
}

/* For each record the first tensor that lies in it, or NULL; pst_heap_free. */
static const char **tensors_of_records(const pst_torch_file *torch, pst_error *err)
{
    const char **names = pst_heap_calloc(torch->record_count, sizeof *names);
    if (names == NULL) {
        pst_fail_memory(err, "a list of records", torch->record_count * sizeof *names);
        return NULL;
    }
    for (size_t i = torch->tensor_count; i-- > 0;)
        names[torch->storages[torch->tensors[i].storage].record] = torch->tensors[i].name;
    return names;
}

static int add_records(verifying *v, const pst_torch_file *torch, const char *const *names, pst_error *err)
{
    const verify_file *file = &v->files[v->file_count - 1];
    size_t storages = 0;
    for (size_t i = 0; i < torch->record_count; i++) {
        const pst_zip_record *record = &torch->records[i];
        bool is_storage = pst_zip_record_is_storage(record);
        verify_item item = {.file = (uint32_t)(v->file_count - 1),
                            .offset = record->offset,
                            .bytes = record->bytes,
                            .name = names[i] != NULL ? names[i] : record->name,
                            .crc = record->crc,
                            .has_crc = true,
                            .is_tensor = is_storage};
        if (is_storage && file->digests.digits != NULL)
            item.digest = pst_file_digests_of(&file->digests, storages);
        storages += is_storage;
        PST_TRY(add_item(v, &item, err));
    }
    return 0;
}

static int add_torch_file(verifying *v, size_t part, const char *path, pst_error *err)
{
    const pst_torch_file *torch = &v->parts[part].torch;
    uint64_t outside = torch->file_bytes;
    PST_TRY(add_file(v, path, part, 0, err));
    verify_file *file = &v->files[v->file_count - 1];
    file->is_torch = true;
    for (size_t i = 0; i < torch->record_count; i++) {
        if (!pst_zip_record_is_storage(&torch->records[i]))
            continue;
        file->tensors++;
        outside -= torch->records[i].bytes; /* which do not overlap */
    }
    PST_TRY(pst_file_digests_of_torch(torch, path, &file->digests, err));
    PST_TRY(pst_io_file_open(v->io, path, PST_IO_OPEN_READ, &file->file, err));
    PST_TRY(add_own(v, outside, err));
    const char **names = tensors_of_records(torch, err);
    if (names == NULL)
        return -ENOMEM;
    int status = add_records(v, torch, names, err);
    pst_heap_free(names);
    return status;
}

/* What a pickle says is not what is verified: one that holds what is refused does not keep the rest from that. */
static int read_torch(const char *path, pst_torch_file *out, pst_error *err)
{
    int status = pst_torch_file_read(path, out, err);
    return status == PST_E_UNSUPPORTED ? pst_torch_file_read_records(path, out, err) : status;
}

static int add_part(verifying *v, const char *path, pst_error *err)
{
    PST_TRY(grow(&v->parts, v->part_count, sizeof *v->parts, err));
    verify_part *part = &v->parts[v->part_count];
    *part = (verify_part){0};
    int torch = pst_file_is_folder(path) ? 0 : pst_ckpt_is_torch(path, err);
    PST_TRY(torch);
    PST_TRY(torch ? read_torch(path, &part->torch, err) : pst_store_open(path, &part->store, err));
    size_t number = v->part_count++, first = 0;
    if (torch)
        return add_torch_file(v, number, path, err);
    for (uint32_t f = 0; f < pst_store_file_count(v->parts[number].store); f++)
        PST_TRY(add_store_file(v, number, f, &first, err));
    return 0;
}

/* Takes back what a file that did not open has left behind. */
static void drop_files(verifying *v, size_t files, size_t items)
{
    while (v->file_count > files) {
        verify_file *file = &v->files[--v->file_count];
        if (file->file != NULL)
            pst_io_file_close(file->file, NULL); /* only read from: nothing can be lost */
        pst_file_digests_free(&file->digests);
        pst_heap_free(file->path);
    }
    while (v->item_count > items)
        v->total_bytes -= v->items[--v->item_count].bytes;
}

/* ---- steps ---- */

/* A file whose digest in the manifest is that of all its bytes. */
static int add_whole(verifying *v, const pst_manifest_file *named, const char *path, bool is_part, pst_error *err)
{
    if (!is_part) {
        PST_TRY(add_file(v, path, SIZE_MAX, 0, err));
        v->files[v->file_count - 1].is_plain = true;
        PST_TRY(pst_io_file_open(v->io, path, PST_IO_OPEN_READ, &v->files[v->file_count - 1].file, err));
    }
    const verify_item item = {.file = (uint32_t)(v->file_count - 1), .bytes = named->bytes, .digest = named->digest};
    return add_item(v, &item, err);
}

static int add_named(verifying *v, const pst_manifest_file *named, const char *path, pst_error *err)
{
    uint64_t bytes;
    PST_TRY(pst_file_size(path, &bytes, err));
    if (bytes != named->bytes)
        return pst_fail(err, PST_E_FORMAT, path, "has %" PRIu64 " bytes, but by the step's manifest %" PRIu64, bytes,
                        named->bytes);
    int is_part = pst_ckpt_is_part(path, err);
    PST_TRY(is_part);
    if (is_part) {
        size_t files = v->file_count, items = v->item_count;
        int status = add_part(v, path, err);
        bool refused = status == PST_E_UNSUPPORTED && !named->covers_header; /* all its bytes have a digest */
        if (!refused && !pst_ckpt_is_other(named, path, status))
            PST_TRY(status);
        else
            drop_files(v, files, items);
        is_part = status >= 0;
    }
    if (!named->covers_header)
        return add_whole(v, named, path, is_part, err);
    const char *own = is_part ? v->files[v->file_count - 1].digests.own : NULL;
    if (own == NULL || memcmp(own, named->digest, PST_DIGEST_DIGITS) != 0)
        return pst_fail(err, PST_E_FORMAT, path,
                        "is not the file that the step's manifest names: its digest is another");
    return 0;
}

static int add_step(verifying *v, const char *folder, pst_error *err)
{
    pst_error found = {.offset = PST_NO_OFFSET};
    PST_TRY(grow(&v->manifests, v->manifest_count, sizeof *v->manifests, err));
    v->manifests[v->manifest_count] = (pst_manifest){0};
    int status = pst_manifest_read(folder, &v->manifests[v->manifest_count], &found);
    if (status < 0)
        return note_error(v, folder, status, &found, err);
    size_t number = v->manifest_count++;
    for (size_t i = 0; i < v->manifests[number].file_count; i++) {
        const pst_manifest_file *named = &v->manifests[number].files[i];
        size_t files = v->file_count, items = v->item_count;
        char *path;
        PST_TRY(pst_steps_join(folder, named->name, &path, err));
        found = (pst_error){.offset = PST_NO_OFFSET};
        status = add_named(v, named, path, &found);
        if (status < 0) {
            drop_files(v, files, items);
            status = note_error(v, path, status, &found, err);
        }
        pst_heap_free(path);
        PST_TRY(status);
    }
    return 0;
}

/* Whether `latest`, where it is, names a step that is there. */
static int check_latest(verifying *v, pst_error *err)
{
    char name[PST_STEPS_NAME_BYTES], *path, *step = NULL;
    uint64_t number = 0;
    PST_TRY(pst_steps_join(v->path, PST_STEPS_LATEST, &path, err));
    int status = pst_file_find(path, err), named = 0;
    if (status > 0)
        named = status = pst_steps_read_latest(v->path, &number, err);
    if (named > 0) {
        pst_steps_name(number, name);
        status = pst_steps_join(v->path, name, &step, err);
    }
    if (status >= 0 && (named > 0 ? !pst_file_is_folder(step) : pst_file_exists(path)))
        status = add_trouble(v, path, PST_NO_OFFSET,
                             named > 0 ? "it names a step that is not there" : "it names no step", err);
    pst_heap_free(step);
    pst_heap_free(path);
    return status < 0 ? status : 0;
}

/* Every step of a training folder, in the order of their names. */
static int add_steps(verifying *v, pst_error *err)
{
    char **names;
    size_t count, steps = 0;
    PST_TRY(pst_file_list(v->path, NULL, &names, &count, err));
    int status = 0;
    for (size_t i = 0; i < count && status >= 0; i++) {
        uint64_t step;
        char *folder = NULL;
        if (!pst_steps_parse(names[i], &step))
            continue;
        steps++;
        status = pst_steps_join(v->path, names[i], &folder, err);
        if (status >= 0)
            status = add_step(v, folder, err);
        pst_heap_free(folder);
    }
    pst_file_list_free(names, count);
    if (status >= 0 && steps == 0)
        status = pst_fail(err, -ENOENT, v->path, "there is no step in it");
    return status < 0 ? status : check_latest(v, err);
}

int verify_collect(verifying *v, pst_error *err)
{
    int kind = PST_CKPT_FOLDER_PLAIN;
    if (pst_file_is_folder(v->path))
        kind = pst_ckpt_folder_kind(v->path, err);
    PST_TRY(kind);
    if (kind == PST_CKPT_FOLDER_TRAINING)
        return add_steps(v, err);
    return kind == PST_CKPT_FOLDER_STEP ? add_step(v, v->path, err) : add_part(v, v->path, err);
}

void verify_forget(verifying *v)
{
    drop_files(v, 0, 0);
    for (size_t i = 0; i < v->part_count; i++) {
        pst_store_close(v->parts[i].store);
        pst_torch_file_free(&v->parts[i].torch);
    }
    for (size_t i = 0; i < v->manifest_count; i++)
        pst_manifest_free(&v->manifests[i]);
    for (size_t i = 0; i < v->trouble_count; i++) {
        pst_heap_free(v->troubles[i].path);
        pst_heap_free(v->troubles[i].what);
    }
    pst_heap_free(v->troubles);
    pst_heap_free(v->manifests);
    pst_heap_free(v->parts);
    pst_heap_free(v->files);
    pst_heap_free(v->items);
}
