/* SPDX-License-Identifier: Apache-2.0 */
/* Tensors -> files -> images. */
#include "ckpt/layout.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/hash.h"
#include "base/heap.h"
#include "base/number.h"
#include "store/json_scan.h"

static const char taken_prefix[] = "penstock.";

/* ---- what is asked for ---- */

static bool ends_in(const char *text, const char *suffix)
{
    size_t length = strlen(text), tail = strlen(suffix);
    return length >= tail && strcmp(text + length - tail, suffix) == 0;
}

static int find_format(const pst_ckpt_options *options, pst_ckpt_layout *layout, pst_error *err)
{
    static const char *const torch_suffixes[] = {".pt", ".pth", ".bin", ".ckpt"};
    layout->format = options->format;
    if (options->format == PST_CKPT_AUTO) {
        layout->format = PST_CKPT_SAFETENSORS;
        for (size_t i = 0; i < sizeof torch_suffixes / sizeof torch_suffixes[0]; i++)
            if (ends_in(options->path, torch_suffixes[i]))
                layout->format = PST_CKPT_TORCH;
    }
    bool torch = layout->format == PST_CKPT_TORCH;
    if (!torch && layout->format != PST_CKPT_SAFETENSORS)
        return pst_fail(err, PST_E_USAGE, options->path, "%d is no checkpoint format", (int)options->format);
    if (torch && (options->shard_bytes > 0 || options->metadata_count > 0))
        return pst_fail(err, PST_E_USAGE, options->path, "torch's format has no %s",
                        options->shard_bytes > 0 ? "shards" : "metadata");
    if (!torch && (options->pickle != NULL || options->archive_name != NULL))
        return pst_fail(err, PST_E_USAGE, options->path, "safetensors files have no %s",
                        options->pickle != NULL ? "pickle" : "name inside");
    layout->folder = options->shard_bytes > 0;
    layout->shares = options->ranks != NULL ? options->ranks->count : 1;
    return 0;
}

static bool is_utf8(const char *text)
{
    const pst_scan scan = {.text = text, .bytes = strlen(text)};
    return pst_scan_utf8_length(&scan) == scan.bytes;
}

static int check_metadata(const pst_ckpt_options *options, pst_error *err)
{
    char quoted[PST_QUOTE_BYTES];
    for (size_t i = 0; i < options->metadata_count; i++) {
        const pst_ckpt_pair *pair = &options->metadata[i];
        if (pair->key == NULL || pair->value == NULL || !is_utf8(pair->key) || !is_utf8(pair->value))
            return pst_fail(err, PST_E_USAGE, options->path, "metadata entry %zu is no text in UTF-8", i);
        if (strncmp(pair->key, taken_prefix, sizeof taken_prefix - 1) == 0)
            return pst_fail(err, PST_E_USAGE, options->path, "metadata key \"%s\": names beginning \"%s\" are taken",
                            pst_quote(pair->key, quoted), taken_prefix);
        for (size_t j = 0; j < i; j++)
            if (strcmp(options->metadata[j].key, pair->key) == 0)
                return pst_fail(err, PST_E_USAGE, options->path, "metadata key \"%s\" comes twice",
                                pst_quote(pair->key, quoted));
    }
    return 0;
}

static int compare_names(const void *left, const void *right, void *context)
{
    const pst_ckpt_tensor *tensors = context;
    return strcmp(tensors[*(const size_t *)left].name, tensors[*(const size_t *)right].name);
}

/* `order` is room for `count` numbers. */
static int check_tensors(const pst_ckpt_tensor *tensors, size_t count, pst_ckpt_layout *layout, const char *path,
                         pst_error *err)
{
    char quoted[PST_QUOTE_BYTES];
    for (size_t i = 0; i < count; i++) {
        const pst_ckpt_tensor *t = &tensors[i];
        if (t->name == NULL || !is_utf8(t->name))
            return pst_fail(err, PST_E_USAGE, path, "tensor %zu has no name in UTF-8", i);
        if (t->rank > PST_MAX_RANK || (t->rank > 0 && t->shape == NULL) || pst_dtype_bits(t->dtype) == 0 ||
            pst_tensor_shape_bytes(t->dtype, t->shape, t->rank, &layout->bytes[i]) < 0 ||
            __builtin_add_overflow(layout->data_bytes, layout->bytes[i], &layout->data_bytes) ||
            layout->data_bytes > (uint64_t)INT64_MAX / 2)
            return pst_fail(err, PST_E_USAGE, path, "tensor \"%s\" has a type or shape that no file can have",
                            pst_quote(t->name, quoted));
        if (layout->bytes[i] > 0 && t->data == NULL && t->source == NULL)
            return pst_fail(err, PST_E_USAGE, path, "tensor \"%s\" has no data", pst_quote(t->name, quoted));
        layout->order[i] = i;
    }
    if (!layout->folder)
        return 0; /* the image sees to it that the names of one file differ */
    qsort_r(layout->order, count, sizeof *layout->order, compare_names, (void *)tensors);
    for (size_t i = 1; i < count; i++)
        if (strcmp(tensors[layout->order[i - 1]].name, tensors[layout->order[i]].name) == 0)
            return pst_fail(err, PST_E_USAGE, path, "two tensors are named \"%s\"",
                            pst_quote(tensors[layout->order[i]].name, quoted));
    return 0;
}

/* ---- files ---- */

static int compare_alignment(const void *left, const void *right, void *context)
{
    const pst_ckpt_tensor *tensors = context;
    size_t a = *(const size_t *)left, b = *(const size_t *)right;
    unsigned a_bits = pst_dtype_bits(tensors[a].dtype), b_bits = pst_dtype_bits(tensors[b].dtype);
    if (a_bits != b_bits)
        return a_bits > b_bits ? -1 : 1;
    return a < b ? -1 : a > b;
}

/* Begins a file at tensor `first` where the limit asks for one; returns how many there are. files NULL: counts only. */
static size_t cut_files(const pst_ckpt_layout *layout, size_t count, uint64_t shard_bytes, pst_ckpt_file *files)
{
    size_t file_count = 0;
    uint64_t room = 0;
    for (size_t i = 0; i < count; i++) {
        if (file_count == 0 || (shard_bytes > 0 && layout->bytes[i] > room)) {
            if (files != NULL)
                files[file_count].first = i;
            file_count++;
            room = shard_bytes;
        }
        room -= pst_min(room, layout->bytes[i]);
        if (files != NULL)
            files[file_count - 1].count++;
    }
    return file_count > 0 ? file_count : 1; /* without tensors: an empty file */
}

static int arrange(const pst_ckpt_options *options, const pst_ckpt_tensor *tensors, size_t count,
                   pst_ckpt_layout *layout, pst_error *err)
{
    size_t files = cut_files(layout, count, options->shard_bytes, NULL);
    layout->files = pst_heap_calloc(files, sizeof *layout->files);
    if (layout->files == NULL)
        return pst_fail_memory(err, options->path, files * sizeof *layout->files);
    layout->file_count = files;
    cut_files(layout, count, options->shard_bytes, layout->files);
    for (size_t i = 0; i < count; i++)
        layout->order[i] = i;
    for (size_t f = 0; f < files; f++) {
        pst_ckpt_file *file = &layout->files[f];
        pst_safetensors_shard_name(f, files, file->name);
        if (layout->format == PST_CKPT_SAFETENSORS && file->count > 0)
            qsort_r(layout->order + file->first, file->count, sizeof *layout->order, compare_alignment,
                    (void *)tensors);
    }
    return 0;
}

/* ---- tied tensors ---- */

typedef struct place {
    const void *data;
    uint64_t bytes;
    pst_dtype dtype;
    size_t tensor;
} place;

static int compare_places(const void *left, const void *right)
{
    const place *a = left, *b = right;
    if (a->data != b->data)
        return (uintptr_t)a->data < (uintptr_t)b->data ? -1 : 1;
    if (a->bytes != b->bytes)
        return a->bytes < b->bytes ? -1 : 1;
    if (a->dtype != b->dtype)
        return a->dtype < b->dtype ? -1 : 1;
    return a->tensor < b->tensor ? -1 : a->tensor > b->tensor;
}

/* For each tensor the first one of the same memory. *out: pst_heap_free. */
static int find_ties(const pst_ckpt_tensor *tensors, size_t count, const uint64_t *bytes, size_t **out, pst_error *err)
{
    size_t *same = pst_heap_reallocarray(NULL, count, sizeof *same);
    place *places = pst_heap_reallocarray(NULL, count, sizeof *places);
    if (same == NULL || places == NULL) {
        pst_heap_free(same);
        pst_heap_free(places);
        return pst_fail_memory(err, "a list of tensors", count * sizeof *places);
    }
    for (size_t i = 0; i < count; i++) {
        bool has = tensors[i].source == NULL && bytes[i] > 0;
        places[i] =
            (place){.data = has ? tensors[i].data : NULL, .bytes = bytes[i], .dtype = tensors[i].dtype, .tensor = i};
    }
    if (count > 0)
        qsort(places, count, sizeof *places, compare_places);
    for (size_t i = 0; i < count; i++) {
        const place *p = &places[i], *before = i > 0 ? &places[i - 1] : NULL;
        bool tied = before != NULL && p->data != NULL && p->data == before->data && p->bytes == before->bytes &&
                    p->dtype == before->dtype;
        same[p->tensor] = tied ? same[before->tensor] : p->tensor;
    }
    pst_heap_free(places);
    *out = same;
    return 0;
}

/* ---- images ---- */

/* tensors and count: of the whole layout; room: for as many as the file has. */
static int make_image(const pst_ckpt_layout *layout, pst_ckpt_file *file, const pst_ckpt_options *options,
                      const pst_ckpt_tensor *tensors, pst_tensor *room, pst_error *err)
{
    for (size_t i = 0; i < file->count; i++) {
        const pst_ckpt_tensor *t = &tensors[layout->order[file->first + i]];
        room[i] = (pst_tensor){.name = t->name, .dtype = t->dtype, .rank = t->rank};
        for (uint32_t d = 0; d < t->rank; d++)
            room[i].shape[d] = t->shape[d];
    }
    pst_image_options how = {.digests = !options->no_digests,
                             .shares = layout->shares,
                             .archive_name = options->archive_name,
                             .pickle = options->pickle,
                             .pickle_bytes = options->pickle_bytes,
                             .metadata_count = options->metadata_count};
    size_t *same = NULL;
    pst_metadata *metadata = pst_heap_reallocarray(NULL, options->metadata_count, sizeof *metadata);
    if (metadata == NULL)
        return pst_fail_memory(err, options->path, options->metadata_count * sizeof *metadata);
    for (size_t i = 0; i < options->metadata_count; i++)
        metadata[i] = (pst_metadata){.key = options->metadata[i].key, .value = options->metadata[i].value};
    how.metadata = metadata;
    int status = 0;
    if (layout->format == PST_CKPT_TORCH && options->pickle == NULL)
        status = find_ties(tensors, file->count, layout->bytes, &same, err);
    how.same_as = same;
    if (status >= 0)
        status = layout->format == PST_CKPT_TORCH ? pst_image_torch(room, file->count, &how, &file->image, err)
                                                  : pst_image_safetensors(room, file->count, &how, &file->image, err);
    pst_heap_free(metadata);
    pst_heap_free(same);
    return status;
}

int pst_ckpt_layout_renew(pst_ckpt_layout *layout, const pst_ckpt_options *options, const pst_ckpt_tensor *tensors,
                          pst_error *err)
{
    size_t most = 0, parts;
    for (size_t f = 0; f < layout->file_count; f++)
        most = pst_max(most, layout->files[f].count);
    pst_tensor *room = pst_heap_reallocarray(NULL, most, sizeof *room);
    if (room == NULL)
        return pst_fail_memory(err, options->path, most * sizeof *room);
    int status = 0;
    layout->file_bytes = 0;
    for (size_t f = 0; f < layout->file_count && status >= 0; f++) {
        pst_ckpt_file *file = &layout->files[f];
        pst_image_destroy(file->image);
        pst_heap_free(file->sums);
        file->image = NULL;
        file->sums = NULL;
        status = make_image(layout, file, options, tensors, room, err);
        if (status < 0)
            break;
        pst_image_parts(file->image, &parts);
        file->sums = pst_heap_calloc(parts, sizeof *file->sums);
        if (file->sums == NULL)
            status = pst_fail_memory(err, options->path, parts * sizeof *file->sums);
        layout->file_bytes += pst_image_file_bytes(file->image);
    }
    pst_heap_free(room);
    /* Images do not know the path. */
    if (status < 0 && err != NULL && err->path[0] == '\0')
        snprintf(err->path, sizeof err->path, "%s", options->path);
    return status;
}

size_t pst_ckpt_find_part(const pst_image_part *parts, size_t count, uint64_t offset)
{
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (parts[middle].offset + parts[middle].bytes > offset)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

/* ---- the whole ---- */

static uint64_t hash_text(uint64_t hash, const char *text)
{
    return pst_hash(hash, text != NULL ? text : "", text != NULL ? strlen(text) + 1 : 0);
}

uint64_t pst_ckpt_layout_fingerprint(const pst_ckpt_layout *layout, const pst_ckpt_options *options,
                                     const pst_ckpt_tensor *tensors)
{
    const pst_ckpt_file *last = &layout->files[layout->file_count - 1];
    const size_t count = last->first + last->count;
    const uint64_t numbers[] = {layout->format,          options->shard_bytes,  options->no_digests,
                                layout->shares,          options->pickle_bytes, count,
                                options->metadata_count, layout->file_bytes};
    uint64_t hash = pst_hash(PST_HASH_START, numbers, sizeof numbers);
    for (size_t i = 0; i < count; i++) {
        const uint64_t dtype = tensors[i].dtype, rank = tensors[i].rank;
        hash = hash_text(hash, tensors[i].name);
        hash = pst_hash(hash, &dtype, sizeof dtype);
        hash = pst_hash(hash, &rank, sizeof rank);
        hash = pst_hash(hash, tensors[i].shape, tensors[i].rank * sizeof tensors[i].shape[0]);
    }
    for (size_t i = 0; i < options->metadata_count; i++)
        hash = hash_text(hash_text(hash, options->metadata[i].key), options->metadata[i].value);
    hash = pst_hash(hash, options->pickle, options->pickle_bytes);
    return hash_text(hash, options->archive_name);
}

int pst_ckpt_layout_make(const pst_ckpt_options *options, const pst_ckpt_tensor *tensors, size_t count,
                         pst_ckpt_layout *out, pst_error *err)
{
    *out = (pst_ckpt_layout){0};
    PST_TRY(find_format(options, out, err));
    PST_TRY(check_metadata(options, err));
    out->order = pst_heap_reallocarray(NULL, count, sizeof *out->order);
    out->bytes = pst_heap_reallocarray(NULL, count, sizeof *out->bytes);
    if (out->order == NULL || out->bytes == NULL)
        return pst_fail_memory(err, options->path, count * sizeof *out->order);
    PST_TRY(check_tensors(tensors, count, out, options->path, err));
    PST_TRY(arrange(options, tensors, count, out, err));
    return pst_ckpt_layout_renew(out, options, tensors, err);
}

void pst_ckpt_layout_free(pst_ckpt_layout *layout)
{
    for (size_t f = 0; f < layout->file_count; f++) {
        pst_image_destroy(layout->files[f].image);
        pst_heap_free(layout->files[f].sums);
    }
    pst_heap_free(layout->files);
    pst_heap_free(layout->order);
    pst_heap_free(layout->bytes);
    *layout = (pst_ckpt_layout){0};
}

int pst_ckpt_layout_write_index(const pst_ckpt_layout *layout, const pst_ckpt_tensor *tensors, const char *path,
                                pst_error *err)
{
    const pst_ckpt_file *last = &layout->files[layout->file_count - 1];
    size_t count = last->first + last->count;
    pst_tensor *table = pst_heap_calloc(count, sizeof *table);
    const char **names = pst_heap_reallocarray(NULL, layout->file_count, sizeof *names);
    int status = 0;
    if (table == NULL || names == NULL)
        status = pst_fail_memory(err, path, count * sizeof *table);
    for (size_t f = 0; f < layout->file_count && status >= 0; f++) {
        const pst_ckpt_file *file = &layout->files[f];
        names[f] = file->name;
        for (size_t i = file->first; i < file->first + file->count; i++) {
            size_t t = layout->order[i];
            table[i] = (pst_tensor){.name = tensors[t].name, .file = (uint32_t)f, .bytes = layout->bytes[t]};
        }
    }
    if (status >= 0)
        status = pst_safetensors_write_index(path, table, count, names, err);
    pst_heap_free(names);
    pst_heap_free(table);
    return status;
}
