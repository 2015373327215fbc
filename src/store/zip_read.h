/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The directory of a zip file of torch.save: stored records in one folder. Everything is checked against the file's length
 * and against each other: the end record (ZIP64 too) against where the directory lies, each local header against its entry,
 * records against overlap. Nothing is allocated by what the file claims, only by what is there.
 */
#ifndef PST_STORE_ZIP_READ_H
#define PST_STORE_ZIP_READ_H

#include "store/torch_file.h"

/* Where bytes come from, so that tests and fuzzers need no file. fetch: exactly these, or an error; it is never asked for any
 * beyond file_bytes. */
typedef struct pst_zip_source {
    const char *path; /* for messages */
    uint64_t file_bytes;
    int (*fetch)(void *user, uint64_t offset, void *out, size_t bytes, pst_error *err);
    void (*ahead)(void *user, uint64_t offset, uint64_t bytes); /* these will be fetched; may be NULL */
    void *user;
} pst_zip_source;

/* *out_records are sorted by offset; their names lie in *out_names. All three are freed with pst_heap_free. */
int pst_zip_read(const pst_zip_source *source, char **out_archive_name, pst_zip_record **out_records, size_t *out_count,
                 char **out_names, pst_error *err);

/* All that pst_torch_file_read does, from any source (torch_file.c). */
int pst_torch_source_read(const pst_zip_source *source, pst_torch_file *out, pst_error *err);

#endif
