/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opening a checkpoint: find its files (one file, an index, whatever *.safetensors a folder holds, or, where it has
 * none, the files that torch.save wrote), read each header, and join the tables. An index is believed in nothing: its
 * paths must stay inside the folder, its files must exist, and each name must be in the file that it is said to be in.
 */
#include "store/store.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/json.h"
#include "os/file.h"
#include "penstock/io_stripe.h"
#include "store/safetensors.h"
#include "store/torch_header.h"

#define INDEX_NAME "model.safetensors.index.json"
#define TORCH_NAME "pytorch_model.bin"

typedef struct store_file {
    char *path;
    const char *name;       /* in its folder; part of path */
    pst_safetensors header; /* its tensors are moved to the store's table after reading */
    size_t tensors;
} store_file;

struct pst_store {
    pst_stripe_set *stripes; /* NULL: plain files */
    bool is_torch;           /* its files are torch.save's */
    store_file *files;
    size_t file_count;
    pst_tensor *tensors;
    size_t tensor_count;
    const pst_tensor **by_name; /* sorted */
    uint64_t data_bytes;
};

static char *join(const char *folder, const char *name)
{
    size_t length = strlen(folder);
    return pst_heap_printf("%s%s%s", folder, length && folder[length - 1] == '/' ? "" : "/", name);
}

/* Makes the list of files; names are relative to folder, or the whole path where folder is NULL. */
static int set_files(pst_store *store, const char *folder, const char *const *names, size_t count, pst_error *err)
{
    if (count > UINT32_MAX)
        return pst_fail(err, PST_E_UNSUPPORTED, folder, "too many files");
    store->files = pst_heap_calloc(count, sizeof *store->files);
    if (store->files == NULL)
        return pst_fail_memory(err, "a list of files", count * sizeof *store->files);
    for (size_t i = 0; i < count; i++) {
        char *path = folder ? join(folder, names[i]) : pst_heap_strdup(names[i]);
        if (path == NULL)
            return pst_fail_memory(err, "a path", strlen(names[i]));
        store->files[store->file_count].name = path + strlen(path) - strlen(names[i]);
        store->files[store->file_count++].path = path;
    }
    return 0;
}

/* ---- what a folder holds ---- */

/* A relative path of plain components: it cannot leave the folder, and one file has one spelling. */
static bool is_inside(const char *path)
{
    while (true) {
        size_t length = strcspn(path, "/");
        if (length == 0 || (length == 1 && path[0] == '.') || (length == 2 && path[0] == '.' && path[1] == '.'))
            return false;
        if (path[length] == '\0')
            return true;
        path += length + 1;
    }
}

static int compare_strings(const void *left, const void *right)
{
    const char *const *a = left, *const *b = right;
    return strcmp(*a, *b);
}

/* Collects the distinct files that a weight_map names, sorted; *names is the caller's, the strings are the
 * document's. */
static int index_files(json_t *map, const char *index_path, const char ***names, size_t *count, pst_error *err)
{
    size_t capacity = json_object_size(map), used = 0, kept = 0;
    const char **list = pst_heap_reallocarray(NULL, capacity, sizeof *list);
    if (list == NULL)
        return pst_fail_memory(err, "a list of files", capacity * sizeof *list);
    const char *key;
    json_t *value;
    char quoted[PST_QUOTE_BYTES], quoted_file[PST_QUOTE_BYTES];
    int status = 0;
    json_object_foreach(map, key, value)
    {
        const char *name = json_string_value(value);
        if (name == NULL || strlen(name) != json_string_length(value))
            status = pst_fail(err, PST_E_FORMAT, index_path,
                              "\"weight_map\" maps \"%s\" to something that is no file name", pst_quote(key, quoted));
        else if (!is_inside(name))
            status = pst_fail(err, PST_E_FORMAT, index_path,
                              "\"weight_map\" maps \"%s\" to \"%s\", which is not a file inside the folder",
                              pst_quote(key, quoted), pst_quote(name, quoted_file));
        if (status < 0) {
            pst_heap_free(list);
            return status;
        }
        list[used++] = name;
    }
    qsort(list, used, sizeof *list, compare_strings);
    for (size_t i = 0; i < used; i++)
        if (kept == 0 || strcmp(list[kept - 1], list[i]) != 0)
            list[kept++] = list[i];
    *names = list;
    *count = kept;
    return 0;
}

static int read_index(const char *path, json_t **document, json_t **map, pst_error *err)
{
    char *text;
    size_t bytes;
    PST_TRY(pst_file_read_all(path, PST_SAFETENSORS_MAX_HEADER, &text, &bytes, err));
    json_t *index;
    int status = pst_json_parse(text, bytes, path, &index, err);
    pst_heap_free(text);
    PST_TRY(status);
    if (!json_is_object(index))
        status = pst_fail(err, PST_E_FORMAT, path, "not a JSON object");
    else
        status = pst_json_object(index, "weight_map", true, map, path, err);
    if (status == 0 && json_object_size(*map) == 0)
        status = pst_fail(err, PST_E_FORMAT, path, "\"weight_map\" is empty");
    if (status < 0) {
        json_decref(index);
        return status;
    }
    *document = index;
    return 0;
}

static int files_of_index(pst_store *store, const char *folder, const char *path, json_t *map, pst_error *err)
{
    const char **names = NULL;
    size_t count = 0;
    PST_TRY(index_files(map, path, &names, &count, err));
    int status = set_files(store, folder, names, count, err);
    char quoted[PST_QUOTE_BYTES];
    for (size_t i = 0; i < count && status >= 0; i++) {
        status = pst_file_find(store->files[i].path, err);
        if (status == 0)
            status =
                pst_fail(err, -ENOENT, path, "names the file \"%s\", which is missing", pst_quote(names[i], quoted));
    }
    pst_heap_free(names);
    return status < 0 ? status : 0;
}

/* Files named NAME-00001-of-00003.safetensors without an index: all of them must be there. */
static int check_numbered(const char *folder, char **names, size_t count, pst_error *err)
{
    for (size_t i = 0; i < count; i++) {
        size_t length = strlen(names[i]);
        const char *tail = names[i] + length - strlen("-00001-of-00003.safetensors");
        unsigned part, parts;
        int end = 0;
        if (length <= strlen("-00001-of-00003.safetensors") ||
            sscanf(tail, "-%5u-of-%5u.safetensors%n", &part, &parts, &end) != 2 || (size_t)end != strlen(tail))
            continue;
        size_t prefix = (size_t)(tail - names[i]);
        unsigned there = 0;
        for (size_t k = 0; k < count; k++)
            there += strlen(names[k]) == length && strncmp(names[k], names[i], prefix) == 0 &&
                     strcmp(names[k] + length - strlen("-of-00003.safetensors"), tail + strlen("-00001")) == 0;
        if (there != parts)
            return pst_fail(err, -ENOENT, folder, "holds %u of the %u files %.*s-*-of-%05u.safetensors, and no index",
                            there, parts, (int)(prefix < 100 ? prefix : 100), names[i], parts);
        i += there - 1; /* sorted: the rest of this set follows */
    }
    return 0;
}

/* Whatever *.safetensors there are. */
static int files_of_folder(pst_store *store, const char *folder, pst_error *err)
{
    char **names;
    size_t count;
    PST_TRY(pst_file_list(folder, ".safetensors", &names, &count, err));
    int status = check_numbered(folder, names, count, err);
    if (status >= 0 && count > 0)
        status = set_files(store, folder, (const char *const *)names, count, err);
    pst_file_list_free(names, count);
    return status;
}

static int fail_empty(const char *folder, pst_error *err)
{
    char **names;
    size_t count;
    PST_TRY(pst_file_list(folder, ".bin", &names, &count, err));
    pst_file_list_free(names, count);
    return pst_fail(err, PST_E_UNSUPPORTED, folder, "holds no *.safetensors%s",
                    count > 0 ? ", and its *.bin are not called " TORCH_NAME : "");
}

/* ---- tables ---- */

static int compare_names(const void *left, const void *right)
{
    const pst_tensor *const *a = left, *const *b = right;
    return strcmp((*a)->name, (*b)->name);
}

static int compare_to_name(const void *name, const void *element)
{
    const pst_tensor *const *tensor = element;
    return strcmp(name, (*tensor)->name);
}

static int transfer(pst_io *io, pst_io_file *file, uint64_t offset, void *buffer, uint64_t bytes, pst_error *err)
{
    pst_io_op op = {.file = file, .offset = offset, .buffer = buffer, .bytes = bytes, .kind = PST_IO_READ};
    return pst_io_transfer(io, &op, err);
}

/* The header of a striped file. */
static int read_striped(pst_io *io, pst_io_file *opened, store_file *file, pst_error *err)
{
    unsigned char prefix[8] = {0};
    uint64_t file_bytes = pst_io_file_bytes(opened), header_bytes;
    if (file_bytes >= sizeof prefix)
        PST_TRY(transfer(io, opened, 0, prefix, sizeof prefix, err));
    PST_TRY(pst_safetensors_header_bytes(prefix, file_bytes, file->path, &header_bytes, err));
    char *header = pst_heap_alloc(header_bytes);
    if (header == NULL)
        return pst_fail_memory(err, "a safetensors header", header_bytes);
    int status = transfer(io, opened, sizeof prefix, header, header_bytes, err);
    if (status >= 0)
        status = pst_safetensors_parse(header, header_bytes, file_bytes, file->path, &file->header, err);
    pst_heap_free(header);
    return status;
}

/* io: only where files are striped. */
static int read_header(const pst_store *store, pst_io *io, uint32_t index, pst_error *err)
{
    store_file *file = &store->files[index];
    if (store->is_torch)
        return pst_torch_header_read(file->path, &file->header, err);
    if (store->stripes == NULL)
        return pst_safetensors_read(file->path, &file->header, err);
    pst_io_file *opened;
    PST_TRY(pst_store_file_open(store, index, io, &opened, err));
    int status = read_striped(io, opened, file, err);
    pst_io_file_close(opened, NULL); /* only read from: nothing can be lost */
    return status;
}

/* Reads the header of every file and moves its tensors to the end of the common table. */
static int join_headers(pst_store *store, pst_io *io, pst_error *err)
{
    for (size_t f = 0; f < store->file_count; f++) {
        store_file *file = &store->files[f];
        PST_TRY(read_header(store, io, (uint32_t)f, err));
        file->tensors = file->header.count;
        store->data_bytes += file->header.data_bytes; /* file lengths: no overflow */
        if (f == 0) {
            store->tensors = file->header.tensors;
        } else {
            size_t count = store->tensor_count + file->tensors;
            pst_tensor *joined = pst_heap_reallocarray(store->tensors, count, sizeof *joined);
            if (joined == NULL)
                return pst_fail_memory(err, "a table of tensors", count * sizeof *joined);
            store->tensors = joined;
            for (size_t i = 0; i < file->tensors; i++) {
                joined[store->tensor_count + i] = file->header.tensors[i];
                joined[store->tensor_count + i].file = (uint32_t)f;
            }
            pst_heap_free(file->header.tensors);
        }
        file->header.tensors = NULL;
        file->header.count = 0;
        store->tensor_count += file->tensors;
    }
    return 0;
}

static int read_headers(pst_store *store, pst_error *err)
{
    if (store->stripes == NULL)
        return join_headers(store, NULL, err);
    const pst_io_options options = {
        .struct_size = sizeof options, .engine = "threads", .workers = 1, .queue_depth = 4, .buffered = true};
    pst_io *io;
    PST_TRY(pst_io_open(&options, &io, err));
    int status = join_headers(store, io, err);
    pst_io_close(io);
    return status;
}

static int sort_names(pst_store *store, pst_error *err)
{
    store->by_name = pst_heap_reallocarray(NULL, store->tensor_count, sizeof *store->by_name);
    if (store->by_name == NULL)
        return pst_fail_memory(err, "a list of names", store->tensor_count * sizeof *store->by_name);
    for (size_t i = 0; i < store->tensor_count; i++)
        store->by_name[i] = &store->tensors[i];
    if (store->tensor_count > 1)
        qsort(store->by_name, store->tensor_count, sizeof *store->by_name, compare_names);
    for (size_t i = 1; i < store->tensor_count; i++) {
        const pst_tensor *a = store->by_name[i - 1], *b = store->by_name[i];
        char quoted[PST_QUOTE_BYTES];
        if (strcmp(a->name, b->name) == 0)
            return pst_fail(err, PST_E_FORMAT, store->files[b->file].path, "holds the tensor \"%s\", and so does %s",
                            pst_quote(a->name, quoted), store->files[a->file].path);
    }
    return 0;
}

/* Every name of the index must be in the file that it is mapped to. */
static int check_index(const pst_store *store, const char *folder, const char *index_path, json_t *map, pst_error *err)
{
    size_t prefix = strlen(folder);
    prefix += prefix == 0 || folder[prefix - 1] != '/';
    const char *key;
    json_t *value;
    char quoted[PST_QUOTE_BYTES], quoted_file[PST_QUOTE_BYTES];
    json_object_foreach(map, key, value)
    {
        const char *name = json_string_value(value);
        const pst_tensor *tensor = pst_store_find(store, key);
        if (tensor == NULL || strcmp(store->files[tensor->file].path + prefix, name) != 0)
            return pst_fail(err, PST_E_FORMAT, index_path, "maps the tensor \"%s\" to \"%s\", which does not hold it",
                            pst_quote(key, quoted), pst_quote(name, quoted_file));
    }
    return 0;
}

/* ---- opening ---- */

static int open_indexed(pst_store *store, const char *folder, const char *index_path, pst_error *err)
{
    json_t *document, *map;
    PST_TRY(read_index(index_path, &document, &map, err));
    int status;
    PST_TRY_GOTO(done, files_of_index(store, folder, index_path, map, err));
    PST_TRY_GOTO(done, read_headers(store, err));
    PST_TRY_GOTO(done, sort_names(store, err));
    status = check_index(store, folder, index_path, map, err);
done:
    json_decref(document);
    return status;
}

static int open_stripes(pst_store *store, const char *folder, pst_error *err)
{
    char *manifest = join(folder, "penstock-stripe.json");
    if (manifest == NULL)
        return pst_fail_memory(err, "a path", strlen(folder));
    int found = pst_file_find(manifest, err);
    pst_heap_free(manifest);
    return found > 0 ? pst_stripe_open_member(folder, &store->stripes, err) : found;
}

/* 1: it is there, and *out is its path (pst_heap_free). */
static int find_in(const char *folder, const char *name, char **out, pst_error *err)
{
    char *path = join(folder, name);
    if (path == NULL)
        return pst_fail_memory(err, "a path", strlen(folder));
    int found = pst_file_find(path, err);
    if (found > 0)
        *out = path;
    else
        pst_heap_free(path);
    return found;
}

static int open_listed(pst_store *store, pst_error *err)
{
    PST_TRY(read_headers(store, err));
    return sort_names(store, err);
}

/* 1: opened, by its index or as the one file of this name; 0: neither is there. */
static int open_named(pst_store *store, const char *folder, const char *index, const char *single, pst_error *err)
{
    char *path;
    int found = find_in(folder, index, &path, err);
    PST_TRY(found);
    if (found > 0) {
        int status = open_indexed(store, folder, path, err);
        pst_heap_free(path);
        return status < 0 ? status : 1;
    }
    found = find_in(folder, single, &path, err);
    if (found <= 0)
        return found;
    pst_heap_free(path);
    PST_TRY(set_files(store, folder, &single, 1, err));
    PST_TRY(open_listed(store, err));
    return 1;
}

static int open_folder(pst_store *store, const char *folder, pst_error *err)
{
    PST_TRY(open_stripes(store, folder, err));
    int opened = open_named(store, folder, INDEX_NAME, "model.safetensors", err);
    if (opened != 0)
        return opened < 0 ? opened : 0;
    PST_TRY(files_of_folder(store, folder, err));
    if (store->file_count > 0)
        return open_listed(store, err);
    store->is_torch = true;
    opened = open_named(store, folder, TORCH_NAME ".index.json", TORCH_NAME, err);
    return opened == 0 ? fail_empty(folder, err) : opened < 0 ? opened : 0;
}

int pst_store_open(const char *path, pst_store **out, pst_error *err)
{
    int found = pst_file_find(path, err);
    PST_TRY(found);
    if (found == 0)
        return pst_fail(err, -ENOENT, path, "cannot open: %s", pst_strerror(-ENOENT));
    pst_store *store = pst_heap_calloc(1, sizeof *store);
    if (store == NULL)
        return pst_fail_memory(err, "a store", sizeof *store);
    int status;
    if (pst_file_is_folder(path)) {
        status = open_folder(store, path, err);
    } else {
        status = set_files(store, NULL, &path, 1, err);
        if (status >= 0)
            status = read_headers(store, err);
        if (status >= 0)
            status = sort_names(store, err);
    }
    if (status < 0) {
        pst_store_close(store);
        return status;
    }
    *out = store;
    return 0;
}

void pst_store_close(pst_store *store)
{
    if (store == NULL)
        return;
    for (size_t i = 0; i < store->file_count; i++) {
        pst_safetensors_free(&store->files[i].header);
        pst_heap_free(store->files[i].path);
    }
    pst_stripe_close(store->stripes);
    pst_heap_free(store->files);
    pst_heap_free(store->tensors);
    pst_heap_free(store->by_name);
    pst_heap_free(store);
}

/* ---- reading the tables ---- */

size_t pst_store_tensor_count(const pst_store *store)
{
    return store->tensor_count;
}

const pst_tensor *pst_store_tensor_at(const pst_store *store, size_t index)
{
    return index < store->tensor_count ? &store->tensors[index] : NULL;
}

const pst_tensor *pst_store_find(const pst_store *store, const char *name)
{
    const pst_tensor **found = bsearch(name, store->by_name, store->tensor_count, sizeof *found, compare_to_name);
    return found ? *found : NULL;
}

size_t pst_store_file_count(const pst_store *store)
{
    return store->file_count;
}

const char *pst_store_file_path(const pst_store *store, uint32_t file)
{
    return store->files[file].path;
}

int pst_store_file_open(const pst_store *store, uint32_t file, pst_io *io, pst_io_file **out, pst_error *err)
{
    const store_file *f = &store->files[file];
    if (store->stripes != NULL)
        return pst_stripe_file_open(store->stripes, io, f->name, PST_IO_OPEN_READ, out, err);
    return pst_io_file_open(io, f->path, PST_IO_OPEN_READ, out, err);
}

uint64_t pst_store_data_bytes(const pst_store *store)
{
    return store->data_bytes;
}

const char *pst_store_metadata(const pst_store *store, uint32_t file, const char *key)
{
    const pst_safetensors *header = &store->files[file].header;
    for (size_t i = 0; i < header->metadata_count; i++)
        if (strcmp(header->metadata[i].key, key) == 0)
            return header->metadata[i].value;
    return NULL;
}

void pst_store_get_file(const pst_store *store, uint32_t file, pst_store_file_info *out)
{
    const store_file *f = &store->files[file];
    *out = (pst_store_file_info){.path = f->path,
                                 .header_bytes = f->header.data_begin,
                                 .data_bytes = f->header.data_bytes,
                                 .tensors = f->tensors,
                                 .metadata = f->header.metadata_count};
}

void pst_store_metadata_at(const pst_store *store, uint32_t file, size_t index, const char **key, const char **value)
{
    *key = store->files[file].header.metadata[index].key;
    *value = store->files[file].header.metadata[index].value;
}

int pst_store_create_table(const char *path, const pst_tensor *tensors, size_t count, pst_store **out, pst_error *err)
{
    pst_store *store = pst_heap_calloc(1, sizeof *store);
    if (store == NULL)
        return pst_fail_memory(err, "a store", sizeof *store);
    int status;
    PST_TRY_GOTO(fail, set_files(store, NULL, &path, 1, err));
    store->tensors = pst_heap_reallocarray(NULL, count, sizeof *tensors);
    if (store->tensors == NULL)
        PST_TRY_GOTO(fail, pst_fail_memory(err, "a table of tensors", count * sizeof *tensors));
    memcpy(store->tensors, tensors, count * sizeof *tensors);
    store->tensor_count = count;
    for (size_t i = 0; i < count; i++) {
        store->tensors[i].file = 0;
        store->tensors[i].offset = store->data_bytes;
        if (__builtin_add_overflow(store->data_bytes, tensors[i].bytes, &store->data_bytes))
            PST_TRY_GOTO(fail, pst_fail(err, PST_E_USAGE, path, "more bytes of tensors than 64 bits count"));
    }
    PST_TRY_GOTO(fail, sort_names(store, err));
    *out = store;
    return 0;
fail:
    pst_store_close(store);
    return status;
}
