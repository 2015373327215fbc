/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A ring of SLOTS buffers. One is being filled, the others are on their way to the drive; each has its own
 * batch, so the oldest can be waited for alone. Every write but the last begins and ends at a multiple of
 * a buffer's size. Metadata that is known only at the end is written over its placeholder then.
 */
#include "store/safetensors_write.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/number.h"
#include "os/file.h"
#include "os/memory.h"
#include "store/json_text.h"

/* Eight buffers are 64 writes of 1 MiB on their way, while the ninth is made. */
enum { SLOTS = PST_SAFETENSORS_BUFFERS };

typedef struct write_slot {
    char *memory; /* buffer_bytes of the one mapping */
    pst_io_batch *batch;
    pst_io_op op;
    bool in_flight;
} write_slot;

/* A metadata value in the file, and what is to be written over it (NULL: nothing). */
typedef struct late_value {
    uint64_t offset;
    size_t bytes;
    char *text;
} late_value;

struct pst_safetensors_writer {
    pst_io *io;
    pst_io_file *file;
    char *path, *temporary; /* temporary NULL: the file was given, and has its name already */
    uint64_t buffer_bytes;
    late_value *late; /* by metadata entry */
    size_t late_count;
    bool exists; /* the temporary file is there */
    char *memory;
    write_slot slots[SLOTS];
    unsigned current;
    size_t filled;         /* bytes of the current slot */
    uint64_t begin;        /* of the current slot, in the file */
    uint64_t file_bytes;   /* when complete */
    uint64_t padded_bytes; /* rounded up to whole blocks */
    int status;            /* of the first failure: nothing goes on after it */
};

/* ---- header ---- */

static void add_metadata(pst_json_text *text, const pst_metadata *metadata, size_t count, late_value *places)
{
    pst_json_text_add(text, "\"__metadata__\":{");
    for (size_t i = 0; i < count; i++) {
        pst_json_text_add(text, i ? "," : "");
        pst_json_text_string(text, metadata[i].key);
        pst_json_text_add(text, ":");
        if (places != NULL)
            places[i] = (late_value){.offset = text->bytes + 1, .bytes = strlen(metadata[i].value)};
        pst_json_text_string(text, metadata[i].value);
    }
    pst_json_text_add(text, "}");
}

/* One tensor whose data begins at *end of the data; *end moves behind it. */
static int add_tensor(pst_json_text *text, pst_tensor *tensor, uint64_t *end, pst_error *err)
{
    char quoted[PST_QUOTE_BYTES];
    uint64_t begin = *end;
    if (tensor->rank > PST_MAX_RANK ||
        pst_tensor_shape_bytes(tensor->dtype, tensor->shape, tensor->rank, &tensor->bytes) < 0 ||
        __builtin_add_overflow(begin, tensor->bytes, end) || *end > INT64_MAX - PST_SAFETENSORS_MAX_HEADER * 2)
        return pst_fail(err, PST_E_USAGE, NULL, "tensor \"%s\" has a size that no file can have",
                        pst_quote(tensor->name, quoted));
    if (strcmp(tensor->name, "__metadata__") == 0)
        return pst_fail(err, PST_E_USAGE, NULL, "a tensor cannot be named \"__metadata__\"");
    tensor->offset = begin;
    pst_json_text_string(text, tensor->name);
    pst_json_text_add(text, ":{\"dtype\":\"%s\",\"shape\":[", pst_dtype_name(tensor->dtype));
    for (uint32_t i = 0; i < tensor->rank; i++)
        pst_json_text_add(text, "%s%" PRIu64, i ? "," : "", tensor->shape[i]);
    pst_json_text_add(text, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", begin, *end);
    return 0;
}

/* Pads the text (8 bytes for the length, then JSON) with spaces and puts the length in. */
static int finish_header(pst_json_text *text, pst_error *err)
{
    size_t bytes = pst_round_up(text->bytes, PST_SAFETENSORS_ALIGNMENT);
    pst_json_text_add(text, "%*s", (int)(bytes - text->bytes), "");
    if (text->failed)
        return pst_fail_memory(err, "a safetensors header", bytes);
    if (bytes - 8 > PST_SAFETENSORS_MAX_HEADER)
        return pst_fail(err, PST_E_UNSUPPORTED, NULL, "too many tensors: the header would have %zu bytes", bytes - 8);
    for (int i = 0; i < 8; i++)
        text->text[i] = (char)((uint64_t)(bytes - 8) >> 8 * i);
    return 0;
}

/* places: where each metadata value came to lie, or NULL. */
static int make_header(pst_tensor *tensors, size_t count, const pst_metadata *metadata, size_t metadata_count,
                       late_value *places, char **out, size_t *out_bytes, pst_error *err)
{
    pst_json_text text = {0};
    uint64_t end = 0;
    int status = 0;
    pst_json_text_add(&text, "%8s{", ""); /* the length comes here */
    if (metadata_count > 0)
        add_metadata(&text, metadata, metadata_count, places);
    for (size_t i = 0; i < count && status == 0; i++) {
        pst_json_text_add(&text, i || metadata_count ? "," : "");
        status = add_tensor(&text, &tensors[i], &end, err);
    }
    pst_json_text_add(&text, "}");
    if (status == 0)
        status = finish_header(&text, err);
    if (status < 0) {
        pst_json_text_free(&text);
        return status;
    }
    for (size_t i = 0; i < count; i++)
        tensors[i].offset += text.bytes;
    *out = text.text;
    *out_bytes = text.bytes;
    return 0;
}

int pst_safetensors_header(pst_tensor *tensors, size_t count, const pst_metadata *metadata, size_t metadata_count,
                           char **out, size_t *out_bytes, pst_error *err)
{
    return make_header(tensors, count, metadata, metadata_count, NULL, out, out_bytes, err);
}

/* ---- the ring ---- */

/* The I/O library knows the file by its temporary name: an error shall name the file that was to appear.
 * Returns status. */
static int name_final(const pst_safetensors_writer *writer, int status, pst_error *err)
{
    if (status < 0 && err != NULL && writer->temporary != NULL && err->path[0] != '\0' &&
        strncmp(err->path, writer->temporary, sizeof err->path - 1) == 0)
        snprintf(err->path, sizeof err->path, "%s", writer->path);
    return status;
}

static int fail_writer(pst_safetensors_writer *writer, int status)
{
    if (writer->status == 0)
        writer->status = status;
    return status;
}

static int wait_slot(write_slot *slot, pst_error *err)
{
    if (!slot->in_flight)
        return 0;
    slot->in_flight = false;
    return pst_io_wait(slot->batch, UINT64_MAX, err);
}

/* Sends the current slot's first `bytes` on their way and makes the next one free. */
static int flush(pst_safetensors_writer *writer, size_t bytes, pst_error *err)
{
    write_slot *slot = &writer->slots[writer->current];
    slot->op = (pst_io_op){
        .file = writer->file, .offset = writer->begin, .buffer = slot->memory, .bytes = bytes, .kind = PST_IO_WRITE};
    PST_TRY(pst_io_submit(slot->batch, &slot->op, 1, err));
    slot->in_flight = true;
    writer->begin += bytes;
    writer->filled = 0;
    writer->current = (writer->current + 1) % SLOTS;
    return wait_slot(&writer->slots[writer->current], err);
}

static int open_slots(pst_safetensors_writer *writer, pst_error *err)
{
    void *memory;
    PST_TRY(pst_memory_map(SLOTS * writer->buffer_bytes, "write buffers", &memory, err));
    writer->memory = memory;
    PST_TRY(pst_io_register(writer->io, memory, SLOTS * writer->buffer_bytes, err));
    for (unsigned i = 0; i < SLOTS; i++) {
        writer->slots[i].memory = writer->memory + i * writer->buffer_bytes;
        PST_TRY(pst_io_batch_create(writer->io, 1, &writer->slots[i].batch, err));
    }
    return 0;
}

static int open_file(pst_safetensors_writer *writer, pst_error *err)
{
    if (writer->file == NULL) {
        writer->temporary = pst_file_temporary_name(writer->path);
        if (writer->temporary == NULL)
            return pst_fail_memory(err, "a path", strlen(writer->path));
        PST_TRY(pst_io_file_open(writer->io, writer->temporary,
                                 PST_IO_OPEN_WRITE | PST_IO_OPEN_CREATE | PST_IO_OPEN_EXCLUSIVE, &writer->file, err));
        writer->exists = true;
    }
    uint64_t block = pst_io_file_alignment(writer->file);
    writer->padded_bytes =
        pst_round_up(writer->file_bytes, block > PST_SAFETENSORS_ALIGNMENT ? block : PST_SAFETENSORS_ALIGNMENT);
    return pst_io_file_preallocate(writer->file, writer->padded_bytes, err);
}

static int start(pst_safetensors_writer *writer, const pst_safetensors_target *target, pst_tensor *tensors,
                 size_t count, const pst_metadata *metadata, size_t metadata_count, pst_error *err)
{
    char *header = NULL;
    size_t header_bytes = 0;
    writer->path = pst_heap_strdup(target->path);
    writer->late = pst_heap_calloc(metadata_count, sizeof *writer->late);
    if (writer->path == NULL || writer->late == NULL)
        return pst_fail_memory(err, "a writer", strlen(target->path));
    PST_TRY(make_header(tensors, count, metadata, metadata_count, writer->late, &header, &header_bytes, err));
    writer->late_count = metadata_count;
    writer->file_bytes = header_bytes;
    for (size_t i = 0; i < count; i++)
        writer->file_bytes += tensors[i].bytes;
    int status;
    PST_TRY_GOTO(done, open_slots(writer, err));
    PST_TRY_GOTO(done, name_final(writer, open_file(writer, err), err));
    status = pst_safetensors_writer_append(writer, header, header_bytes, err);
done:
    pst_heap_free(header);
    return status;
}

int pst_safetensors_writer_open_at(pst_io *io, const pst_safetensors_target *target, pst_tensor *tensors, size_t count,
                                   const pst_metadata *metadata, size_t metadata_count, pst_safetensors_writer **out,
                                   pst_error *err)
{
    pst_safetensors_writer *writer = pst_heap_calloc(1, sizeof *writer);
    if (writer == NULL) {
        if (target->file != NULL)
            pst_io_file_close(target->file, NULL);
        return pst_fail_memory(err, "a writer", sizeof *writer);
    }
    writer->io = io;
    writer->file = target->file;
    writer->buffer_bytes = target->buffer_bytes ? target->buffer_bytes : PST_SAFETENSORS_BUFFER_BYTES;
    int status = start(writer, target, tensors, count, metadata, metadata_count, err);
    if (status < 0) {
        pst_safetensors_writer_close(writer);
        return status;
    }
    *out = writer;
    return 0;
}

int pst_safetensors_writer_open(pst_io *io, const char *path, pst_tensor *tensors, size_t count,
                                const pst_metadata *metadata, size_t metadata_count, pst_safetensors_writer **out,
                                pst_error *err)
{
    const pst_safetensors_target target = {.path = path};
    return pst_safetensors_writer_open_at(io, &target, tensors, count, metadata, metadata_count, out, err);
}

/* ---- data ---- */

int pst_safetensors_writer_space(pst_safetensors_writer *writer, void **memory, size_t *bytes, pst_error *err)
{
    if (writer->status < 0)
        return pst_fail(err, writer->status, writer->path, "writing failed before");
    uint64_t left = writer->file_bytes - writer->begin - writer->filled;
    if (writer->filled == writer->buffer_bytes && left > 0) {
        int status = name_final(writer, flush(writer, writer->buffer_bytes, err), err);
        if (status < 0)
            return fail_writer(writer, status);
    }
    size_t room = writer->buffer_bytes - writer->filled;
    *memory = writer->slots[writer->current].memory + writer->filled;
    *bytes = left < room ? (size_t)left : room;
    return 0;
}

int pst_safetensors_writer_commit(pst_safetensors_writer *writer, size_t bytes, pst_error *err)
{
    uint64_t left = writer->file_bytes - writer->begin - writer->filled;
    if (bytes > writer->buffer_bytes - writer->filled || bytes > left)
        return pst_fail(err, PST_E_USAGE, writer->path, "more data than its tensors have");
    writer->filled += bytes;
    return 0;
}

int pst_safetensors_writer_append(pst_safetensors_writer *writer, const void *data, size_t bytes, pst_error *err)
{
    const char *next = data;
    while (bytes > 0) {
        void *memory = NULL;
        size_t room = 0;
        PST_TRY(pst_safetensors_writer_space(writer, &memory, &room, err));
        if (room == 0)
            return pst_fail(err, PST_E_USAGE, writer->path, "more data than its tensors have");
        size_t part = bytes < room ? bytes : room;
        memcpy(memory, next, part);
        PST_TRY(pst_safetensors_writer_commit(writer, part, err));
        next += part;
        bytes -= part;
    }
    return 0;
}

/* ---- the end ---- */

int pst_safetensors_writer_set_metadata(pst_safetensors_writer *writer, size_t index, const char *value, pst_error *err)
{
    if (index >= writer->late_count || strlen(value) != writer->late[index].bytes)
        return pst_fail(err, PST_E_USAGE, writer->path, "metadata that was not announced so");
    char *text = pst_heap_strdup(value);
    if (text == NULL)
        return pst_fail_memory(err, "metadata", strlen(value));
    pst_heap_free(writer->late[index].text);
    writer->late[index].text = text;
    return 0;
}

/* Nothing is in flight. */
static int write_late(pst_safetensors_writer *writer, pst_error *err)
{
    for (size_t i = 0; i < writer->late_count; i++) {
        const late_value *late = &writer->late[i];
        pst_io_op op = {.file = writer->file,
                        .offset = late->offset,
                        .buffer = late->text,
                        .bytes = late->bytes,
                        .kind = PST_IO_WRITE};
        if (late->text != NULL && late->bytes > 0)
            PST_TRY(pst_io_transfer(writer->io, &op, err));
    }
    return 0;
}

/* Writes the rest, waits for all writes, cuts the padding off and syncs. */
static int complete(pst_safetensors_writer *writer, pst_error *err)
{
    uint64_t tail = writer->padded_bytes - writer->begin;
    if (writer->filled > 0) {
        if (tail >
            writer->buffer_bytes) /* a file alignment that is larger than a buffer: the engine bounces the edge */
            tail = writer->filled;
        memset(writer->slots[writer->current].memory + writer->filled, 0, tail - writer->filled);
        PST_TRY(flush(writer, tail, err));
    }
    for (unsigned i = 0; i < SLOTS; i++)
        PST_TRY(wait_slot(&writer->slots[i], err));
    PST_TRY(write_late(writer, err));
    PST_TRY(pst_io_file_truncate(writer->file, writer->file_bytes, err));
    PST_TRY(pst_io_file_sync(writer->file, err));
    pst_io_file *file = writer->file;
    writer->file = NULL;
    PST_TRY(pst_io_file_close(file, err));
    if (writer->temporary == NULL)
        return 0;
    PST_TRY(pst_file_publish_rename(writer->temporary, writer->path, err));
    writer->exists = false;
    return 0;
}

int pst_safetensors_writer_finish(pst_safetensors_writer *writer, pst_error *err)
{
    if (writer->status < 0)
        return pst_fail(err, writer->status, writer->path, "writing failed before");
    uint64_t left = writer->file_bytes - writer->begin - writer->filled;
    if (left > 0)
        return pst_fail(err, PST_E_USAGE, writer->path, "%" PRIu64 " bytes of its tensors have not been written", left);
    int status = name_final(writer, complete(writer, err), err);
    return status < 0 ? fail_writer(writer, status) : 0;
}

void pst_safetensors_writer_close(pst_safetensors_writer *writer)
{
    if (writer == NULL)
        return;
    for (unsigned i = 0; i < SLOTS; i++)
        if (writer->slots[i].in_flight)
            pst_io_cancel(writer->slots[i].batch);
    for (unsigned i = 0; i < SLOTS; i++) {
        wait_slot(&writer->slots[i], NULL);
        pst_io_batch_destroy(writer->slots[i].batch);
    }
    if (writer->file != NULL)
        pst_io_file_close(writer->file, NULL);
    if (writer->exists)
        pst_file_remove(writer->temporary, NULL);
    if (writer->memory != NULL) {
        pst_io_unregister(writer->io, writer->memory);
        pst_memory_unmap(writer->memory, SLOTS * writer->buffer_bytes);
    }
    for (size_t i = 0; i < writer->late_count; i++)
        pst_heap_free(writer->late[i].text);
    pst_heap_free(writer->late);
    pst_heap_free(writer->path);
    pst_heap_free(writer->temporary);
    pst_heap_free(writer);
}

/* ---- index ---- */

static int compare_names(const void *left, const void *right)
{
    const pst_tensor *const *a = left, *const *b = right;
    return strcmp((*a)->name, (*b)->name);
}

void pst_safetensors_shard_name(size_t index, size_t count, char name[PST_SHARD_NAME_BYTES])
{
    if (count == 1)
        snprintf(name, PST_SHARD_NAME_BYTES, "model.safetensors");
    else
        snprintf(name, PST_SHARD_NAME_BYTES, "model-%05zu-of-%05zu.safetensors", index + 1, count);
}

int pst_safetensors_write_index(const char *path, const pst_tensor *tensors, size_t count,
                                const char *const *file_names, pst_error *err)
{
    const pst_tensor **sorted = pst_heap_reallocarray(NULL, count, sizeof *sorted);
    if (sorted == NULL)
        return pst_fail_memory(err, "a list of tensors", count * sizeof *sorted);
    uint64_t total = 0;
    for (size_t i = 0; i < count; i++) {
        sorted[i] = &tensors[i];
        total += tensors[i].bytes;
    }
    qsort(sorted, count, sizeof *sorted, compare_names);
    pst_json_text text = {0};
    pst_json_text_add(&text, "{\n  \"metadata\": {\n    \"total_size\": %" PRIu64 "\n  },\n  \"weight_map\": {", total);
    for (size_t i = 0; i < count; i++) {
        pst_json_text_add(&text, i ? ",\n    " : "\n    ");
        pst_json_text_string(&text, sorted[i]->name);
        pst_json_text_add(&text, ": ");
        pst_json_text_string(&text, file_names[sorted[i]->file]);
    }
    pst_json_text_add(&text, "\n  }\n}\n");
    int status =
        text.failed ? pst_fail_memory(err, "an index", text.bytes) : pst_file_publish(path, text.text, text.bytes, err);
    pst_json_text_free(&text);
    pst_heap_free(sorted);
    return status;
}
