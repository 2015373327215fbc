/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A checkpoint as one table of tensors: a safetensors file, or a folder of them with or without an index; or a folder with
 * pytorch_model.bin, one or several with an index (torch_header.h), of which tensors may lie in one place.
 * Opening reads and checks every header (the rules are at pst_safetensors_parse) and no tensor data.
 * Immutable afterwards: any thread.
 */
#ifndef PST_STORE_STORE_H
#define PST_STORE_STORE_H

#include "penstock/io.h"
#include "penstock/types.h"

enum { PST_MAX_RANK = 8 };

typedef struct pst_tensor {
    const char *name; /* owned by the store */
    pst_dtype dtype;
    uint32_t rank;
    uint64_t shape[PST_MAX_RANK];
    uint32_t file;   /* index for pst_store_file_path */
    uint64_t offset; /* of its first byte in that file */
    uint64_t bytes;
} pst_tensor;

typedef struct pst_store pst_store;

/* path: a .safetensors file, or a folder with model.safetensors.index.json, model.safetensors, or any
 * *.safetensors, pytorch_model.bin.index.json, pytorch_model.bin (tried in that order). Symbolic links are followed.
 * Files of the index outside the folder ("../x", "/x") are refused. A folder that is a member of a stripe set
 * (penstock/io_stripe.h) holds the index, if there is one; the safetensors files are those of the set. */
int pst_store_open(const char *path, pst_store **out, pst_error *err);
/* The table alone, of tensors (name, dtype, rank, shape and bytes are set) that would lie in one file in this order: to plan
 * with. There is nothing to read. The names are the caller's and outlive the store. */
int pst_store_create_table(const char *path, const pst_tensor *tensors, size_t count, pst_store **out, pst_error *err);
void pst_store_close(pst_store *store);

size_t pst_store_tensor_count(const pst_store *store);
const pst_tensor *pst_store_tensor_at(const pst_store *store, size_t index); /* sorted by file, then by offset */
const pst_tensor *pst_store_find(const pst_store *store, const char *name);  /* NULL when there is none */
size_t pst_store_file_count(const pst_store *store);
const char *pst_store_file_path(const pst_store *store, uint32_t file);
/* Opens one of its files for reading: the only way to its data, as what its path names may be a part of it. The caller closes
 * *out, before `io`. */
int pst_store_file_open(const pst_store *store, uint32_t file, pst_io *io, pst_io_file **out, pst_error *err);
uint64_t pst_store_data_bytes(const pst_store *store); /* of all tensors */
/* __metadata__ of a file; NULL when it has no such key. */
const char *pst_store_metadata(const pst_store *store, uint32_t file, const char *key);

/* What one of its files holds; strings live as long as the store. */
typedef struct pst_store_file_info {
    const char *path;
    uint64_t header_bytes; /* length field, JSON and padding: where the data begins */
    uint64_t data_bytes;
    size_t tensors, metadata;
} pst_store_file_info;
void pst_store_get_file(const pst_store *store, uint32_t file, pst_store_file_info *out);
/* An entry of __metadata__ by its place, index < pst_store_file_info.metadata. */
void pst_store_metadata_at(const pst_store *store, uint32_t file, size_t index, const char **key, const char **value);

/*
 * Finds the folder (or file) that a user means by MODEL: an existing path, or "org/name" in a Hugging Face
 * cache folder (<cache>/models--org--name/snapshots/<revision>, the revision that refs/main names, else the
 * only one there is). cache may be NULL, the hub folder itself, or the folder that holds it as "hub". An
 * existing "models--..." folder is resolved to its snapshot too. *out: pst_heap_free.
 */
int pst_store_locate(const char *model, const char *cache, char **out, pst_error *err);

#endif
