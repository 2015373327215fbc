/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A file of torch.save, opened without executing anything: the zip's table of records, and what a walk over data.pkl finds.
 *
 * The walk knows a fixed list of opcodes of pickle protocols 2 to 5 and a fixed list of globals (tensors' and parameters'
 * rebuild functions, OrderedDict, torch.Size, dtypes, storages, and the like); anything else is refused by its name. It
 * never calls, imports or constructs anything; its memory is bounded by the pickle's size.
 *
 * Refused also: a file that is no zip or an old torch format (by name), records that are compressed or encrypted, that
 * overlap or lie outside of the file, local headers that contradict the central directory, two records of one name, a file
 * with constants.pkl (TorchScript), big-endian data, storages whose size is not that of their record, tensors that reach
 * outside of their storage, containers that hold themselves.
 */
#ifndef PST_STORE_TORCH_FILE_H
#define PST_STORE_TORCH_FILE_H

#include "penstock/ckpt.h"
#include "store/store.h"

/* One record of the zip file. */
typedef struct pst_zip_record {
    const char *name;       /* without the archive's folder; the file's storage */
    uint64_t header_offset; /* of its local header */
    uint64_t entry_offset;  /* of its entry in the central directory */
    uint64_t offset, bytes; /* of its data, in the file */
    uint32_t crc;
} pst_zip_record;

typedef struct pst_torch_storage {
    size_t record;
    pst_dtype dtype; /* of its first mention */
    uint64_t bytes;
} pst_torch_storage;

typedef struct pst_torch_tensor {
    const char *name; /* the keys that lead to it, joined by "." */
    pst_dtype dtype;
    uint32_t rank;
    uint64_t shape[PST_MAX_RANK];
    int64_t strides[PST_MAX_RANK]; /* elements; never negative */
    bool contiguous;               /* strides are those of a new tensor of this shape: row-major without gaps */
    uint32_t storage;
    uint64_t begin; /* in the storage, bytes; without elements it may lie beyond its end */
    uint64_t bytes; /* of its elements */
} pst_torch_tensor;

/* All that was found. Arrays and strings are its own; pst_torch_file_free. */
typedef struct pst_torch_file {
    char *archive_name;
    pst_zip_record *records; /* by offset */
    size_t record_count;
    pst_torch_storage *storages; /* in order of first mention */
    size_t storage_count;
    pst_torch_tensor *tensors; /* in order of first mention; two views of one storage are two tensors */
    size_t tensor_count;
    pst_ckpt_value *values; /* node 0 is the whole */
    size_t value_count;
    char *digests; /* content of the record ".penstock/digests", terminated; NULL: there is none */
    uint64_t file_bytes;
    void *owned; /* what the arrays' strings and children lie in */
} pst_torch_file;

/* 1: begins as a zip file does; 0: not; negative: cannot be read. */
int pst_torch_file_is(const char *path, pst_error *err);
/* Reads the directory and the pickle through ordinary reads; no storage's data. */
int pst_torch_file_read(const char *path, pst_torch_file *out, pst_error *err);
/* The same without the pickle, which may hold what is refused: records and digests; no storages, tensors and values. */
int pst_torch_file_read_records(const char *path, pst_torch_file *out, pst_error *err);
void pst_torch_file_free(pst_torch_file *file); /* what it holds, not itself; leaves it empty */

/* The walk alone, pure: `storage_bytes` of a key (a record data/<key>) are asked for through `find` (its record's number, or -1).
 * For tests and fuzzing. */
typedef int64_t (*pst_torch_find)(void *user, const char *key, uint64_t *out_bytes);
int pst_torch_walk(const void *pickle, size_t bytes, const char *path, pst_torch_find find, void *user,
                   pst_torch_file *out, pst_error *err);

#endif
