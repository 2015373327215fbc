/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The manifest of a step's folder, "penstock-checkpoint.json": which files belong to it, with their sizes and digests, so that
 * one can tell a complete step from anything else without reading its data.
 *
 *   {"format": "penstock-checkpoint", "version": 1, "step": 100, "ranks": 4, "metadata": {...},
 *    "files": [{"name": "model.safetensors", "bytes": 123, "digest": "xxh3-128 <32 digits>", "covers": "header"}, ...],
 *    "digest": "<32 digits>"}
 *
 * "covers": "header" where the digest is the file's own (PST_FILE_DIGEST_KEY), "file" where it is that of all its bytes. The
 * manifest's own digest is that of its text with these 32 digits as '0'. Names are relative, without "..".
 */
#ifndef PST_STORE_MANIFEST_H
#define PST_STORE_MANIFEST_H

#include <stdbool.h>

#include "store/digest.h"
#include "store/safetensors.h"

#define PST_MANIFEST_NAME "penstock-checkpoint.json"

typedef struct pst_manifest_file {
    const char *name;
    uint64_t bytes;
    bool covers_header;
    char digest[PST_DIGEST_DIGITS + 1];
} pst_manifest_file;

typedef struct pst_manifest {
    uint64_t step;
    uint32_t ranks;
    pst_metadata *metadata;
    size_t metadata_count;
    pst_manifest_file *files;
    size_t file_count;
    void *owned; /* what the strings lie in, for one that was read */
} pst_manifest;

/* The text, digest included; pst_heap_free. */
int pst_manifest_write(const pst_manifest *manifest, char **out, size_t *out_bytes, pst_error *err);
/* Pure; `path` is for messages. Anything that pst_manifest_write would not write is refused, a wrong digest too. */
int pst_manifest_parse(const char *text, size_t bytes, const char *path, pst_manifest *out, pst_error *err);
/* That of the folder. */
int pst_manifest_read(const char *folder, pst_manifest *out, pst_error *err);
void pst_manifest_free(pst_manifest *manifest); /* what one that was read holds; leaves it empty */

#endif
