/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of a checkpoint hold, as one table. A number from a file is checked by the reader of its format;
 * here once more is what reading relies on: every element of a tensor lies inside of its storage, every storage
 * inside of its file.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "ckpt/load.h"
#include "os/file.h"

/* Beyond this an offset in bits, or one step more, would not fit 64 bits. */
#define MAX_STORAGE_BYTES (UINT64_C(1) << 60)

static bool ends_in(const char *path, const char *suffix)
{
    size_t length = strlen(path), tail = strlen(suffix);
    return length >= tail && strcmp(path + length - tail, suffix) == 0;
}

static bool is_named_torch(const char *path)
{
    return ends_in(path, ".pt") || ends_in(path, ".pth") || ends_in(path, ".bin") || ends_in(path, ".ckpt");
}

static bool is_named_part(const char *path)
{
    return ends_in(path, ".safetensors") || is_named_torch(path);
}

bool pst_ckpt_is_other(const pst_manifest_file *named, const char *path, int status)
{
    return (status == PST_E_FORMAT || status == PST_E_UNSUPPORTED) && !named->covers_header && !is_named_part(path);
}

int pst_ckpt_is_part(const char *path, pst_error *err)
{
    if (is_named_part(path))
        return 1;
    return pst_torch_file_is(path, err);
}

int pst_ckpt_is_torch(const char *path, pst_error *err)
{
    int zip = pst_torch_file_is(path, err);
    return zip != 0 ? zip : is_named_torch(path);
}

int pst_ckpt_add_part(pst_ckpt *ckpt, const char *path, pst_error *err)
{
    pst_ckpt_part *parts = pst_heap_reallocarray(ckpt->parts, ckpt->part_count + 1, sizeof *parts);
    if (parts == NULL)
        return pst_fail_memory(err, "a list of files", (ckpt->part_count + 1) * sizeof *parts);
    ckpt->parts = parts;
    pst_ckpt_part *part = &parts[ckpt->part_count];
    *part = (pst_ckpt_part){.path = pst_heap_strdup(path)};
    if (part->path == NULL)
        return pst_fail_memory(err, "a path", strlen(path));
    int torch = pst_file_is_folder(path) ? 0 : pst_ckpt_is_torch(path, err), status = torch;
    if (torch > 0)
        status = pst_torch_file_read(part->path, &part->torch, err);
    else if (torch == 0)
        status = pst_store_open(part->path, &part->store, err);
    if (status < 0) {
        pst_heap_free(part->path);
        return status;
    }
    ckpt->part_count++;
    return 0;
}

/* ---- files ---- */

size_t pst_ckpt_part_files(const pst_ckpt_part *part)
{
    return part->store != NULL ? pst_store_file_count(part->store) : 1;
}

size_t pst_ckpt_part_tensors(const pst_ckpt_part *part)
{
    return part->store != NULL ? pst_store_tensor_count(part->store) : part->torch.tensor_count;
}

size_t pst_ckpt_part_storages(const pst_ckpt_part *part)
{
    return part->store != NULL ? pst_store_tensor_count(part->store) : part->torch.storage_count;
}

/* What was checked is what is read: the file that was opened has the length that its header was held against. */
static int check_length(const pst_ckpt_file *file, uint64_t bytes, pst_error *err)
{
    if (pst_io_file_bytes(file->file) == bytes)
        return 0;
    return pst_fail(err, PST_E_FORMAT, file->path, "changed while it was opened: %" PRIu64 " bytes, then %" PRIu64,
                    bytes, pst_io_file_bytes(file->file));
}

static int open_store_file(pst_ckpt *ckpt, const pst_ckpt_part *part, uint32_t index, pst_ckpt_file *out,
                           pst_error *err)
{
    pst_store_file_info info;
    pst_store_get_file(part->store, index, &info);
    out->path = info.path;
    PST_TRY(pst_store_file_open(part->store, index, ckpt->io, &out->file, err));
    PST_TRY(check_length(out, info.header_bytes + info.data_bytes, err));
    return pst_file_digests_of_store(part->store, index, &out->digests, err);
}

static int open_torch_file(pst_ckpt *ckpt, const pst_ckpt_part *part, pst_ckpt_file *out, pst_error *err)
{
    out->path = part->path;
    PST_TRY(pst_io_file_open(ckpt->io, part->path, PST_IO_OPEN_READ, &out->file, err));
    PST_TRY(check_length(out, part->torch.file_bytes, err));
    return pst_file_digests_of_torch(&part->torch, part->path, &out->digests, err);
}

static int open_files(pst_ckpt *ckpt, pst_error *err)
{
    size_t count = 0;
    for (size_t p = 0; p < ckpt->part_count; p++) {
        ckpt->parts[p].first_file = (uint32_t)count;
        count += pst_ckpt_part_files(&ckpt->parts[p]);
    }
    if (count > UINT32_MAX)
        return pst_fail(err, PST_E_UNSUPPORTED, ckpt->path, "too many files");
    ckpt->files = pst_heap_calloc(count, sizeof *ckpt->files);
    if (ckpt->files == NULL)
        return pst_fail_memory(err, "a list of files", count * sizeof *ckpt->files);
    for (size_t p = 0; p < ckpt->part_count; p++) {
        const pst_ckpt_part *part = &ckpt->parts[p];
        for (size_t f = 0; f < pst_ckpt_part_files(part); f++) {
            pst_ckpt_file *file = &ckpt->files[ckpt->file_count++];
            PST_TRY(part->store != NULL ? open_store_file(ckpt, part, (uint32_t)f, file, err)
                                        : open_torch_file(ckpt, part, file, err));
        }
    }
    return 0;
}

/* ---- tensors ---- */

static void add_store(pst_ckpt *ckpt, uint32_t number)
{
    const pst_ckpt_part *part = &ckpt->parts[number];
    size_t first = 0; /* of the tensor's file, whose digests are in the order of its tensors */
    for (size_t i = 0; i < pst_ckpt_part_tensors(part); i++) {
        const pst_tensor *tensor = pst_store_tensor_at(part->store, i);
        if (i > 0 && tensor->file != pst_store_tensor_at(part->store, i - 1)->file)
            first = i;
        const pst_file_digests *digests = &ckpt->files[part->first_file + tensor->file].digests;
        ckpt->storages[ckpt->storage_count] =
            (pst_ckpt_storage){.file = part->first_file + tensor->file,
                               .dtype = tensor->dtype,
                               .offset = tensor->offset,
                               .bytes = tensor->bytes,
                               .digest = digests->digits != NULL ? pst_file_digests_of(digests, i - first) : NULL,
                               .name = tensor->name};
        ckpt->tensors[ckpt->tensor_count++] = (pst_ckpt_tensor_entry){.name = tensor->name,
                                                                      .shape = tensor->shape,
                                                                      .bytes = tensor->bytes,
                                                                      .storage = ckpt->storage_count++,
                                                                      .rank = tensor->rank,
                                                                      .part = number,
                                                                      .dtype = tensor->dtype};
    }
}

static int fail_tensor(const pst_ckpt_part *part, const char *name, const char *what, pst_error *err)
{
    char quoted[PST_QUOTE_BYTES];
    return pst_fail(err, PST_E_FORMAT, part->path, "tensor \"%s\" %s", pst_quote(name, quoted), what);
}

/* Every element lies inside of the storage. */
static int check_tensor(const pst_ckpt_part *part, const pst_torch_tensor *tensor, pst_error *err)
{
    uint64_t bytes, reach = 0, bits = pst_dtype_bits(tensor->dtype); /* 4 of a float4_e2m1fn_x2 */
    bool fits = tensor->rank <= PST_MAX_RANK && bits > 0 && tensor->storage < part->torch.storage_count;
    if (!fits || pst_tensor_shape_bytes(tensor->dtype, tensor->shape, tensor->rank, &bytes) < 0 ||
        bytes != tensor->bytes)
        return fail_tensor(part, tensor->name, "has a shape that makes no size", err);
    if (bytes == 0)
        return 0;
    for (uint32_t d = 0; d < tensor->rank && fits; d++) {
        uint64_t more;
        fits = tensor->shape[d] == 1 ||
               (tensor->strides[d] >= 0 &&
                !__builtin_mul_overflow(tensor->shape[d] - 1, (uint64_t)tensor->strides[d], &more) &&
                !__builtin_add_overflow(reach, more, &reach));
    }
    fits = fits && !__builtin_add_overflow(reach, 1, &reach) && !__builtin_mul_overflow(reach, bits, &reach) &&
           !__builtin_add_overflow(reach / 8 + (reach % 8 != 0), tensor->begin, &reach) &&
           reach <= part->torch.storages[tensor->storage].bytes;
    return fits ? 0 : fail_tensor(part, tensor->name, "reaches outside of its storage", err);
}

static int add_torch_storages(pst_ckpt *ckpt, const pst_ckpt_part *part, pst_error *err)
{
    const pst_torch_file *torch = &part->torch;
    const pst_file_digests *digests = &ckpt->files[part->first_file].digests;
    size_t *places = pst_heap_reallocarray(NULL, torch->record_count, sizeof *places), place = 0;
    if (places == NULL)
        return pst_fail_memory(err, "a list of records", torch->record_count * sizeof *places);
    for (size_t i = 0; i < torch->record_count; i++) { /* digests are in the order of the storages in the file */
        places[i] = place;
        place += pst_zip_record_is_storage(&torch->records[i]);
    }
    int status = 0;
    for (size_t i = 0; i < torch->storage_count && status == 0; i++) {
        const pst_torch_storage *storage = &torch->storages[i];
        const pst_zip_record *record = storage->record < torch->record_count ? &torch->records[storage->record] : NULL;
        if (record == NULL || record->bytes != storage->bytes || storage->bytes > MAX_STORAGE_BYTES ||
            record->offset > torch->file_bytes || record->bytes > torch->file_bytes - record->offset) {
            status = pst_fail(err, PST_E_FORMAT, part->path, "a storage does not lie in the file");
            continue;
        }
        bool has = digests->digits != NULL && pst_zip_record_is_storage(record);
        ckpt->storages[ckpt->storage_count++] =
            (pst_ckpt_storage){.file = part->first_file,
                               .dtype = storage->dtype,
                               .offset = record->offset,
                               .bytes = record->bytes,
                               .digest = has ? pst_file_digests_of(digests, places[storage->record]) : NULL,
                               .name = record->name};
    }
    pst_heap_free(places);
    return status;
}

static int add_torch(pst_ckpt *ckpt, uint32_t number, pst_error *err)
{
    const pst_ckpt_part *part = &ckpt->parts[number];
    size_t first = ckpt->storage_count;
    PST_TRY(add_torch_storages(ckpt, part, err));
    for (size_t i = 0; i < part->torch.tensor_count; i++) {
        const pst_torch_tensor *tensor = &part->torch.tensors[i];
        PST_TRY(check_tensor(part, tensor, err));
        ckpt->tensors[ckpt->tensor_count++] =
            (pst_ckpt_tensor_entry){.name = tensor->name,
                                    .shape = tensor->shape,
                                    .strides = tensor->contiguous ? NULL : tensor->strides,
                                    .begin = tensor->begin,
                                    .bytes = tensor->bytes,
                                    .storage = first + tensor->storage,
                                    .rank = tensor->rank,
                                    .part = number,
                                    .dtype = tensor->dtype};
    }
    return 0;
}

static int compare_names(const void *left, const void *right, void *context)
{
    const pst_ckpt_tensor_entry *tensors = context;
    const size_t *a = left, *b = right;
    int order = strcmp(tensors[*a].name, tensors[*b].name);
    return order != 0 ? order : (*a > *b) - (*a < *b);
}

/* A name may lead to one tensor only: which one would be meant of two files? */
static int sort_names(pst_ckpt *ckpt, pst_error *err)
{
    ckpt->by_name = pst_heap_reallocarray(NULL, ckpt->tensor_count, sizeof *ckpt->by_name);
    if (ckpt->by_name == NULL)
        return pst_fail_memory(err, "a list of names", ckpt->tensor_count * sizeof *ckpt->by_name);
    for (size_t i = 0; i < ckpt->tensor_count; i++)
        ckpt->by_name[i] = i;
    if (ckpt->tensor_count > 1)
        qsort_r(ckpt->by_name, ckpt->tensor_count, sizeof *ckpt->by_name, compare_names, ckpt->tensors);
    for (size_t i = 1; i < ckpt->tensor_count; i++) {
        const pst_ckpt_tensor_entry *a = &ckpt->tensors[ckpt->by_name[i - 1]], *b = &ckpt->tensors[ckpt->by_name[i]];
        char quoted[PST_QUOTE_BYTES];
        if (a->part != b->part && strcmp(a->name, b->name) == 0)
            return pst_fail(err, PST_E_FORMAT, ckpt->parts[b->part].path,
                            "holds the tensor \"%s\", and so does %s: such files can only be opened one by one",
                            pst_quote(a->name, quoted), ckpt->parts[a->part].path);
    }
    return 0;
}

int pst_ckpt_join_parts(pst_ckpt *ckpt, pst_error *err)
{
    size_t tensors = 0, storages = 0;
    for (size_t p = 0; p < ckpt->part_count; p++) {
        ckpt->parts[p].first_tensor = tensors;
        tensors += pst_ckpt_part_tensors(&ckpt->parts[p]);
        storages += pst_ckpt_part_storages(&ckpt->parts[p]);
    }
    if (storages > UINT32_MAX || ckpt->part_count > UINT32_MAX)
        return pst_fail(err, PST_E_UNSUPPORTED, ckpt->path, "too many tensors");
    PST_TRY(open_files(ckpt, err));
    ckpt->storages = pst_heap_calloc(storages, sizeof *ckpt->storages);
    ckpt->tensors = pst_heap_calloc(tensors, sizeof *ckpt->tensors);
    if (ckpt->storages == NULL || ckpt->tensors == NULL)
        return pst_fail_memory(err, "a table of tensors",
                               storages * sizeof *ckpt->storages + tensors * sizeof *ckpt->tensors);
    for (size_t p = 0; p < ckpt->part_count; p++) {
        if (ckpt->parts[p].store != NULL)
            add_store(ckpt, (uint32_t)p);
        else
            PST_TRY(add_torch(ckpt, (uint32_t)p, err));
    }
    return sort_names(ckpt, err);
}

/* ---- the files' own digests ---- */

static int own_digest(pst_ckpt *ckpt, const pst_ckpt_part *part, uint32_t index, char *digits, pst_error *err)
{
    const pst_ckpt_file *file = &ckpt->files[part->first_file + index];
    if (part->store != NULL) {
        pst_store_file_info info;
        pst_store_get_file(part->store, index, &info);
        return pst_file_own_digest_safetensors(ckpt->io, file->file, info.header_bytes, digits, err);
    }
    return pst_file_own_digest_torch(pst_ckpt_lane_reader(ckpt->lanes[0]), file->file, &part->torch, &file->digests,
                                     digits, err);
}

/* What the manifest says of a file, where its name is there. */
static const pst_manifest_file *in_manifest(const pst_ckpt *ckpt, const char *path)
{
    size_t folder = strlen(ckpt->path);
    if (strncmp(path, ckpt->path, folder) != 0)
        return NULL;
    path += folder;
    path += strspn(path, "/");
    for (size_t i = 0; i < ckpt->manifest.file_count; i++)
        if (strcmp(ckpt->manifest.files[i].name, path) == 0)
            return &ckpt->manifest.files[i];
    return NULL;
}

int pst_ckpt_check_files(pst_ckpt *ckpt, pst_error *err)
{
    for (size_t p = 0; p < ckpt->part_count; p++) {
        const pst_ckpt_part *part = &ckpt->parts[p];
        for (uint32_t f = 0; f < pst_ckpt_part_files(part); f++) {
            const pst_ckpt_file *file = &ckpt->files[part->first_file + f];
            const pst_manifest_file *named = in_manifest(ckpt, file->path);
            char digits[PST_DIGEST_DIGITS];
            bool is_named = named != NULL && named->covers_header;
            if (file->digests.own == NULL && !is_named)
                continue;
            if (is_named && (file->digests.own == NULL || memcmp(named->digest, file->digests.own, sizeof digits) != 0))
                return pst_fail(err, PST_E_FORMAT, file->path,
                                "is not the file that the manifest names: its digest "
                                "is another one");
            PST_TRY(own_digest(ckpt, part, f, digits, err));
            if (memcmp(digits, file->digests.own, sizeof digits) != 0)
                return pst_fail(err, PST_E_FORMAT, file->path,
                                "damaged outside of its tensors' data: its own digest does not fit");
        }
    }
    return 0;
}
