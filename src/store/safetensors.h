/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The header of one safetensors file: 8 bytes N (little-endian), N bytes of JSON, then tensor data without
 * holes.
 *
 * What is refused: fewer than 8 bytes; N over 100,000,000 or past the end of the file; text that is not
 * strict JSON in UTF-8 beginning with '{'; an entry without dtype, shape and data_offsets (two whole
 * numbers), or with one of them twice; unknown dtypes; more than PST_MAX_RANK dimensions; a size that is not
 * product(shape) * bits / 8, counted without overflow and in whole bytes; tensors that, sorted by offset,
 * overlap or leave a hole; data that does not end exactly where the file does; a name twice; metadata that is
 * not string to string. Stricter than the format's reference reader, by intent: a name twice (there the last
 * one wins silently), white space before the '{' (the format forbids it), characters U+0000 in names and
 * metadata (names are C strings here), entries written as arrays, rank over 8.
 */
#ifndef PST_STORE_SAFETENSORS_H
#define PST_STORE_SAFETENSORS_H

#include "store/store.h"

#define PST_SAFETENSORS_MAX_HEADER UINT64_C(100000000)

typedef struct pst_metadata {
    const char *key, *value;
} pst_metadata;

/* What a header says. Strings and arrays are its own; pst_safetensors_free. */
typedef struct pst_safetensors {
    pst_tensor *tensors; /* sorted by offset; offsets are in the file; file is 0 */
    size_t count;
    pst_metadata *metadata; /* in the order of the file */
    size_t metadata_count;
    uint64_t data_begin; /* 8 + N */
    uint64_t data_bytes;
    char *text; /* holds the strings */
} pst_safetensors;

/* The first 8 bytes of a file of file_bytes bytes (fewer are not read): *out is N. */
int pst_safetensors_header_bytes(const void *prefix, uint64_t file_bytes, const char *path, uint64_t *out,
                                 pst_error *err);
/* The N bytes of JSON, pure: reads nothing else. `path` is for messages only. Memory is within a small
 * factor of N. */
int pst_safetensors_parse(const char *header, size_t header_bytes, uint64_t file_bytes, const char *path,
                          pst_safetensors *out, pst_error *err);
/* Both of these for a file. */
int pst_safetensors_read(const char *path, pst_safetensors *out, pst_error *err);
void pst_safetensors_free(pst_safetensors *header); /* what it holds, not itself; leaves it empty */

/* Bytes of a tensor of this dtype and shape: PST_E_FORMAT when they overflow 64 bits or are not whole. */
int pst_tensor_shape_bytes(pst_dtype dtype, const uint64_t *shape, uint32_t rank, uint64_t *out);

/* A name made fit for one line of a message: control characters replaced, cut to a sensible length.
 * Returns out. */
enum { PST_QUOTE_BYTES = 128 };
char *pst_quote(const char *name, char out[PST_QUOTE_BYTES]);

#endif
