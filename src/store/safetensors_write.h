/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing a safetensors file as a stream: declare the tensors, then hand over their data in that order. The
 * data begins at a multiple of 4096 of the file and goes out through the I/O engine in large aligned writes
 * from a few buffers, so that making the next buffer overlaps with writing the last ones. The last block is
 * rounded up, then cut off. The file appears under its name whole and durable, or not at all: it grows under
 * a temporary name beside it, which no error mentions.
 *
 * A writer belongs to one thread.
 */
#ifndef PST_STORE_SAFETENSORS_WRITE_H
#define PST_STORE_SAFETENSORS_WRITE_H

#include "penstock/io.h"
#include "store/safetensors.h"

enum { PST_SAFETENSORS_ALIGNMENT = 4096 };

/* The bytes before the data (length, JSON, padding up to PST_SAFETENSORS_ALIGNMENT) for tensors in this
 * order, without holes. In: name, dtype, rank, shape; out: offset (in the file) and bytes of each. *out:
 * pst_heap_free. */
int pst_safetensors_header(pst_tensor *tensors, size_t count, const pst_metadata *metadata, size_t metadata_count,
                           char **out, size_t *out_bytes, pst_error *err);

typedef struct pst_safetensors_writer pst_safetensors_writer;

enum { PST_SAFETENSORS_BUFFERS = 9, PST_SAFETENSORS_BUFFER_BYTES = 8 << 20 };

/* Where a file is to be, and how it is written. */
typedef struct pst_safetensors_target {
    const char *path;
    pst_io_file *file; /* NULL, or a new file to write to as it is (a striped one): then nothing is renamed, and what
                            * fails stays behind. The writer's from the call on, also when it fails. */
    uint64_t buffer_bytes; /* of each of PST_SAFETENSORS_BUFFERS; a multiple of 4096; 0: PST_SAFETENSORS_BUFFER_BYTES */
} pst_safetensors_target;

/* io must outlive the writer; tensors as for pst_safetensors_header, needed during the call only. Reserves
 * the space. */
int pst_safetensors_writer_open_at(pst_io *io, const pst_safetensors_target *target, pst_tensor *tensors, size_t count,
                                   const pst_metadata *metadata, size_t metadata_count, pst_safetensors_writer **out,
                                   pst_error *err);
/* The same at a path, with the defaults. */
int pst_safetensors_writer_open(pst_io *io, const char *path, pst_tensor *tensors, size_t count,
                                const pst_metadata *metadata, size_t metadata_count, pst_safetensors_writer **out,
                                pst_error *err);
/* The next bytes of the data from memory: up to *bytes of them may be put at *memory, then committed.
 * *bytes is 0 when all data is there. Waits for the drive when all buffers are full. */
int pst_safetensors_writer_space(pst_safetensors_writer *writer, void **memory, size_t *bytes, pst_error *err);
int pst_safetensors_writer_commit(pst_safetensors_writer *writer, size_t bytes, pst_error *err);
/* The same with a copy, any amount. */
int pst_safetensors_writer_append(pst_safetensors_writer *writer, const void *data, size_t bytes, pst_error *err);
/* Replaces the value of the metadata entry number `index` by another one of the same length, which is known only when the
 * data has passed. Neither has characters that JSON escapes. Before finish. */
int pst_safetensors_writer_set_metadata(pst_safetensors_writer *writer, size_t index, const char *value,
                                        pst_error *err);
/* Waits, syncs and publishes; all data must have been handed over. When only the sync of the folder fails,
 * after the rename, that is the error, but the file is there, whole: its durability is unknown. */
int pst_safetensors_writer_finish(pst_safetensors_writer *writer, pst_error *err);
/* Frees the writer, and removes what it wrote unless it was finished. */
void pst_safetensors_writer_close(pst_safetensors_writer *writer);

/* The usual name of a model's file number `index` (from 0) of `count`. */
enum { PST_SHARD_NAME_BYTES = 64 };
void pst_safetensors_shard_name(size_t index, size_t count, char name[PST_SHARD_NAME_BYTES]);

/* model.safetensors.index.json at path, durably published: tensors[i] is in the file
 * file_names[tensors[i].file]. */
int pst_safetensors_write_index(const char *path, const pst_tensor *tensors, size_t count,
                                const char *const *file_names, pst_error *err);

#endif
