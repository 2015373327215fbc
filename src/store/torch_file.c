/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A file of torch.save as a whole: its records, the small ones that say what it is, and the walk over its pickle. From a
 * file, or from memory for tests.
 */
#include "store/torch_file.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "os/file.h"
#include "store/safetensors.h"
#include "store/torch_walk.h"
#include "store/zip_read.h"

/* Records by name. */
typedef struct index_table {
    const pst_zip_record **sorted;
    const pst_torch_file *file;
} index_table;

static int compare_records(const void *left, const void *right)
{
    const pst_zip_record *const *a = left, *const *b = right;
    return strcmp((*a)->name, (*b)->name);
}

static const pst_zip_record *find_record(const index_table *table, const char *name)
{
    size_t low = 0, high = table->file->record_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(name, table->sorted[middle]->name);
        if (order == 0)
            return table->sorted[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

static int64_t find_storage(void *user, const char *key, uint64_t *out_bytes)
{
    const index_table *table = user;
    char name[512] = "data/";
    if (strlen(key) >= sizeof name - 5)
        return -1;
    const pst_zip_record *record = find_record(table, strcat(name, key));
    if (record == NULL)
        return -1;
    *out_bytes = record->bytes;
    return record - table->file->records;
}

/* A record's content, terminated; pst_heap_free. */
static int read_record(const pst_zip_source *source, const pst_zip_record *record, uint64_t most, char **out,
                       pst_error *err)
{
    char quoted[PST_QUOTE_BYTES];
    if (record->bytes > most)
        return pst_fail(err, PST_E_FORMAT, source->path,
                        "its record \"%s\" has %" PRIu64 " bytes, more than the %" PRIu64 " that are sensible",
                        pst_quote(record->name, quoted), record->bytes, most);
    char *content = pst_heap_alloc((size_t)record->bytes + 1);
    if (content == NULL)
        return pst_fail_memory(err, "a record of a zip file", (size_t)record->bytes + 1);
    int status =
        record->bytes == 0 ? 0 : source->fetch(source->user, record->offset, content, (size_t)record->bytes, err);
    if (status < 0) {
        pst_heap_free(content);
        return status;
    }
    content[record->bytes] = '\0';
    *out = content;
    return 0;
}

/* The same of a short text without U+0000. */
static int read_text(const pst_zip_source *source, const pst_zip_record *record, uint64_t most, char **out,
                     pst_error *err)
{
    char *text;
    PST_TRY(read_record(source, record, most, &text, err));
    if (strlen(text) == record->bytes) {
        *out = text;
        return 0;
    }
    pst_heap_free(text);
    char quoted[PST_QUOTE_BYTES];
    return pst_fail(err, PST_E_FORMAT, source->path, "its record \"%s\" is no text", pst_quote(record->name, quoted));
}

/* "version": torch reads files of 1 to 10. "byteorder": files before torch 2.1 have none and are little-endian. */
static int check_kind(const pst_zip_source *source, const index_table *table, pst_error *err)
{
    const char *path = source->path;
    if (find_record(table, "data.pkl") == NULL)
        return pst_fail(err, PST_E_FORMAT, path, "a zip file, but not one of torch.save: it has no data.pkl");
    const pst_zip_record *record = find_record(table, "version");
    char *text;
    if (record == NULL) /* how files of mobile programs have it */
        record = find_record(table, ".data/version");
    if (record == NULL)
        return pst_fail(err, PST_E_FORMAT, path, "a zip file, but not one of torch.save: it has no version");
    PST_TRY(read_text(source, record, 16, &text, err));
    char *end;
    unsigned long version = strtoul(text, &end, 10);
    bool known =
        text[0] >= '0' && text[0] <= '9' && (*end == '\0' || strcmp(end, "\n") == 0) && version >= 1 && version <= 10;
    pst_heap_free(text);
    if (!known)
        return pst_fail(err, PST_E_UNSUPPORTED, path, "its version is none from 1 to 10");
    record = find_record(table, "byteorder");
    if (record == NULL)
        return 0;
    PST_TRY(read_text(source, record, 16, &text, err));
    bool little = strcmp(text, "little") == 0, big = strcmp(text, "big") == 0;
    pst_heap_free(text);
    if (big)
        return pst_fail(err, PST_E_UNSUPPORTED, path, "its data is big-endian, which is refused");
    return little ? 0 : pst_fail(err, PST_E_FORMAT, path, "its byteorder is neither \"little\" nor \"big\"");
}

/* What the pickle holds, in *out beside the records, which stay. */
static int read_pickle(const pst_zip_source *source, index_table *table, pst_torch_file *out, pst_error *err)
{
    const pst_zip_record *record = find_record(table, "data.pkl");
    char *pickle;
    pst_torch_file walked;
    PST_TRY(read_record(source, record, PST_WALK_MAX_PICKLE, &pickle, err));
    int status = pst_torch_walk(pickle, (size_t)record->bytes, source->path, find_storage, table, &walked, err);
    pst_heap_free(pickle);
    PST_TRY(status);
    out->storages = walked.storages;
    out->storage_count = walked.storage_count;
    out->tensors = walked.tensors;
    out->tensor_count = walked.tensor_count;
    out->values = walked.values;
    out->value_count = walked.value_count;
    out->owned = walked.owned;
    return 0;
}

static int read_content(const pst_zip_source *source, bool pickle, pst_torch_file *out, pst_error *err)
{
    index_table table = {.file = out};
    table.sorted = pst_heap_reallocarray(NULL, out->record_count, sizeof *table.sorted);
    if (table.sorted == NULL)
        return pst_fail_memory(err, "a list of records", out->record_count * sizeof *table.sorted);
    for (size_t i = 0; i < out->record_count; i++)
        table.sorted[i] = &out->records[i];
    qsort(table.sorted, out->record_count, sizeof *table.sorted, compare_records);
    int status;
    PST_TRY_GOTO(done, check_kind(source, &table, err));
    const pst_zip_record *digests = find_record(&table, ".penstock/digests");
    if (digests != NULL)
        PST_TRY_GOTO(done, read_text(source, digests, PST_WALK_MAX_PICKLE, &out->digests, err));
    status = pickle ? read_pickle(source, &table, out, err) : 0;
done:
    pst_heap_free(table.sorted);
    return status;
}

static int read_source(const pst_zip_source *source, bool pickle, pst_torch_file *out, pst_error *err)
{
    pst_torch_file file = {.file_bytes = source->file_bytes};
    char *names;
    PST_TRY(pst_zip_read(source, &file.archive_name, &file.records, &file.record_count, &names, err));
    int status = read_content(source, pickle, &file, err);
    if (status >= 0 && !pickle) {
        file.owned = pst_heap_calloc(1, sizeof(pst_torch_owned));
        if (file.owned == NULL)
            status = pst_fail_memory(err, "records of a zip file", sizeof(pst_torch_owned));
    }
    if (status >= 0) {
        ((pst_torch_owned *)file.owned)->records = names;
        *out = file;
        return 0;
    }
    pst_heap_free(names);
    pst_torch_file_free(&file);
    return status;
}

int pst_torch_source_read(const pst_zip_source *source, pst_torch_file *out, pst_error *err)
{
    return read_source(source, true, out, err);
}

void pst_torch_file_free(pst_torch_file *file)
{
    if (file == NULL)
        return;
    pst_torch_owned *owned = file->owned;
    if (owned != NULL) {
        pst_heap_free(owned->texts);
        pst_heap_free(owned->names);
        pst_heap_free(owned->records);
        pst_heap_free(owned->children);
        pst_heap_free(owned);
    }
    pst_heap_free(file->archive_name);
    pst_heap_free(file->records);
    pst_heap_free(file->storages);
    pst_heap_free(file->tensors);
    pst_heap_free(file->values);
    pst_heap_free(file->digests);
    *file = (pst_torch_file){0};
}

/* ---- files ---- */

typedef struct opened {
    const char *path;
    int fd;
} opened;

static int fetch(void *user, uint64_t offset, void *out, size_t bytes, pst_error *err)
{
    const opened *file = user;
    return pst_file_fetch(file->fd, file->path, offset, out, bytes, err);
}

static void ahead(void *user, uint64_t offset, uint64_t bytes)
{
    const opened *file = user;
    pst_file_will_fetch(file->fd, offset, bytes);
}

int pst_torch_file_is(const char *path, pst_error *err)
{
    uint64_t file_bytes;
    unsigned char first[4];
    int fd = pst_file_open(path, &file_bytes, err);
    PST_TRY(fd);
    int status = file_bytes < sizeof first ? 1 : pst_file_fetch(fd, path, 0, first, sizeof first, err);
    pst_file_close(fd);
    PST_TRY(status);
    return status == 0 && memcmp(first, "PK\3\4", sizeof first) == 0;
}

/* Before torch 1.6 there was a row of pickles, of which the first is this number, and before that a tar file. */
static int refuse_other(const opened *file, uint64_t file_bytes, pst_error *err)
{
    static const unsigned char magic[] = {0x80, 0x02, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46,
                                          0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, 0x2e};
    unsigned char first[512] = {0};
    size_t bytes = file_bytes < sizeof first ? (size_t)file_bytes : sizeof first;
    PST_TRY(pst_file_fetch(file->fd, file->path, 0, first, bytes, err));
    if (memcmp(first, magic, sizeof magic) == 0 || memcmp(first + 257, "ustar", 5) == 0)
        return pst_fail(err, PST_E_UNSUPPORTED, file->path,
                        "a file of torch.save in the format from before torch 1.6, which is refused: load it there and "
                        "save it again");
    if (memcmp(first, "PK\3\4", 4) != 0)
        return pst_fail(err, PST_E_FORMAT, file->path,
                        "not a file of torch.save: it does not begin as a zip file does");
    return 0;
}

static int read_file(const char *path, bool pickle, pst_torch_file *out, pst_error *err)
{
    opened file = {.path = path};
    pst_zip_source source = {.path = path, .fetch = fetch, .ahead = ahead, .user = &file};
    file.fd = pst_file_open(path, &source.file_bytes, err);
    PST_TRY(file.fd);
    int status = refuse_other(&file, source.file_bytes, err);
    if (status >= 0)
        status = read_source(&source, pickle, out, err);
    pst_file_close(file.fd);
    return status;
}

int pst_torch_file_read(const char *path, pst_torch_file *out, pst_error *err)
{
    return read_file(path, true, out, err);
}

int pst_torch_file_read_records(const char *path, pst_torch_file *out, pst_error *err)
{
    return read_file(path, false, out, err);
}
