/* SPDX-License-Identifier: Apache-2.0 */
/*
 * verify, inside: what there is to check, as a list of items (verify_collect.c), the threads that check them
 * (verify_check.c), and what is told of it (verify.c).
 */
#ifndef PST_JOBS_VERIFY_INTERNAL_H
#define PST_JOBS_VERIFY_INTERNAL_H

#include <stdatomic.h>

#include "os/thread.h"
#include "penstock/jobs.h"
#include "store/file_digest.h"
#include "store/manifest.h"

typedef enum verify_kind {
    VERIFY_RANGE, /* bytes of the file with a digest, a CRC, or both */
    VERIFY_OWN    /* all bytes that are no tensor's, which have the file's own digest */
} verify_kind;

typedef enum verify_verdict { VERIFY_UNCHECKED, VERIFY_GOOD, VERIFY_BAD_CRC, VERIFY_BAD } verify_verdict;

typedef struct verify_item {
    verify_kind kind;
    uint32_t file;
    uint64_t offset, bytes;
    const char *name;   /* the tensor or the record; NULL: the whole file */
    const char *digest; /* PST_DIGEST_DIGITS characters, or NULL */
    uint32_t crc;
    bool has_crc, is_tensor;
    verify_verdict verdict;
} verify_item;

/* A file of safetensors, a folder of them, or a file of torch. */
typedef struct verify_part {
    pst_store *store; /* NULL: torch's */
    pst_torch_file torch;
} verify_part;

typedef struct verify_file {
    char *path;
    pst_io_file *file;
    pst_file_digests digests;
    size_t part;
    uint32_t place; /* in the part */
    size_t tensors;
    bool is_torch, is_plain; /* plain: no file of tensors */
} verify_file;

/* What was found out without reading the data. */
typedef struct verify_trouble {
    char *path, *what;
    uint64_t offset;
} verify_trouble;

typedef struct verifying {
    pst_verify_options options;
    char *path;
    pst_io *io;
    pst_pool *pool;
    pst_manifest *manifests;
    size_t manifest_count;
    verify_part *parts;
    size_t part_count;
    verify_file *files;
    size_t file_count;
    verify_item *items; /* by file; within one its own digest, then by offset */
    size_t item_count, item_capacity;
    verify_trouble *troubles;
    size_t trouble_count;
    uint64_t total_bytes;

    struct verify_reader *readers; /* by thread */
    uint32_t reader_count;
    atomic_size_t next;
    atomic_ullong done_bytes;
    atomic_bool failed;
    int status; /* of the first failure */
    pst_error failure;
} verifying;

/* Finds out what the path is and lists all that there is to check. v->io is open. */
int verify_collect(verifying *v, pst_error *err);
void verify_forget(verifying *v); /* frees what it made */
/* Checks every item: its verdict. */
int verify_check(verifying *v, pst_error *err);
int verify_progress(verifying *v, uint64_t done, pst_error *err);

#endif
