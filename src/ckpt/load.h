/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An opened checkpoint: tables of files, storages and tensors, whatever the formats are, and what reads them.
 *
 *   open   finds out what a path is, reads headers and checks every number in them      (open.c, parts.c)
 *   read   sorts what is wanted by its place, hands it to lanes                         (read.c)
 *   lane   walks over slices, reads spans, copies and digests what arrives              (lane.c)
 *   slice  which bytes of a file go where                                               (slice.c)
 *
 * All but the lanes is immutable once it is open.
 */
#ifndef PST_CKPT_LOAD_H
#define PST_CKPT_LOAD_H

#include <pthread.h>
#include <stdatomic.h>

#include "ckpt/slice.h"
#include "os/thread.h"
#include "penstock/ckpt.h"
#include "store/file_digest.h"
#include "store/manifest.h"
#include "store/span_reader.h"
#include "store/torch_file.h"

/* A file of safetensors, a folder of them, or a file of torch. */
typedef struct pst_ckpt_part {
    char *path;
    pst_store *store;     /* NULL: torch's */
    pst_torch_file torch; /* else empty */
    size_t first_tensor;  /* of the checkpoint's */
    uint32_t first_file;
} pst_ckpt_part;

typedef struct pst_ckpt_file {
    const char *path; /* the part's */
    pst_io_file *file;
    pst_file_digests digests;
} pst_ckpt_file;

typedef struct pst_ckpt_storage {
    uint32_t file;
    pst_dtype dtype;
    uint64_t offset, bytes; /* in the file */
    const char *digest;     /* PST_DIGEST_DIGITS characters; NULL: it has none */
    const char *name;       /* for messages: the tensor, or the record */
} pst_ckpt_storage;

typedef struct pst_ckpt_tensor_entry {
    const char *name;
    const uint64_t *shape;
    const int64_t *strides; /* NULL: row-major and contiguous */
    uint64_t begin, bytes;  /* in its storage */
    size_t storage;
    uint32_t rank;
    uint32_t part;
    pst_dtype dtype;
} pst_ckpt_tensor_entry;

typedef struct pst_ckpt_lane pst_ckpt_lane;

enum { PST_CKPT_LANES = 4 };

struct pst_ckpt {
    char *path; /* of the file or folder that it turned out to be */
    pst_manifest manifest;
    pst_ckpt_part *parts;
    size_t part_count;
    pst_ckpt_file *files;
    size_t file_count;
    pst_ckpt_storage *storages;
    size_t storage_count;
    pst_ckpt_tensor_entry *tensors;
    size_t tensor_count;
    size_t *by_name; /* numbers of tensors, sorted by name, then number */
    pst_io *io;
    bool verify;

    pthread_mutex_t lock; /* of the rest */
    pthread_cond_t freed;
    pst_ckpt_lane *lanes[PST_CKPT_LANES];
    bool taken[PST_CKPT_LANES];
    uint32_t lane_count;
    pst_pool *pool; /* made when first wanted */
    bool pool_taken;
};

/* What a folder is, by what lies in it; negative: that cannot be told. */
typedef enum pst_ckpt_folder { PST_CKPT_FOLDER_PLAIN, PST_CKPT_FOLDER_STEP, PST_CKPT_FOLDER_TRAINING } pst_ckpt_folder;
int pst_ckpt_folder_kind(const char *folder, pst_error *err);

/* The parts of what is at a path, and nothing that reads them: for those who want the tables alone. pst_ckpt_close. */
int pst_ckpt_open_parts(const char *path, pst_ckpt **out, pst_error *err);

/* ---- parts ---- */

size_t pst_ckpt_part_files(const pst_ckpt_part *part);
size_t pst_ckpt_part_tensors(const pst_ckpt_part *part);
size_t pst_ckpt_part_storages(const pst_ckpt_part *part);
/* Adds what is at `path` (a file, or a folder of safetensors files) to the parts. */
int pst_ckpt_add_part(pst_ckpt *ckpt, const char *path, pst_error *err);
/* Whether a file of a step that failed to be read as a part so (by its content, not by its name, and not when it was
 * committed) is something else: a zip file, say. */
bool pst_ckpt_is_other(const pst_manifest_file *named, const char *path, int status);
/* Whether a file is one of tensors: safetensors by its name, torch's by its content too. 1, 0 or negative. */
int pst_ckpt_is_part(const char *path, pst_error *err);
/* Whether it is one of torch's: by what it begins with, or by its name, so that the reader of that format tells what is
 * wrong. */
int pst_ckpt_is_torch(const char *path, pst_error *err);
/* With ckpt->io and all parts: the tables, and the files opened. */
int pst_ckpt_join_parts(pst_ckpt *ckpt, pst_error *err);
/* The files' own digests. */
int pst_ckpt_check_files(pst_ckpt *ckpt, pst_error *err);

/* ---- lanes ---- */

/* One thing to read, or a part of it. */
typedef struct pst_ckpt_work {
    uint64_t offset;     /* in the file: what they are sorted by */
    uint64_t begin, end; /* of pst_box_parts; 0, 0: all */
    size_t op;
    uint32_t file;
    bool checked; /* the whole of a storage, with a digest to compare */
} pst_ckpt_work;

/* One call of pst_ckpt_read, by all its lanes. */
typedef struct pst_ckpt_reading {
    pst_ckpt *ckpt;
    const pst_ckpt_read_op *ops;
    pst_ckpt_work *work;
    size_t count;
    atomic_size_t next;
    atomic_bool failed;
    int status; /* of the lane that failed first, and what it said */
    pst_error failure;
    pst_ckpt_lane *lanes[PST_CKPT_LANES];
    uint32_t lane_count;
} pst_ckpt_reading;

int pst_ckpt_lane_create(pst_ckpt *ckpt, uint64_t ring_bytes, pst_ckpt_lane **out, pst_error *err);
void pst_ckpt_lane_destroy(pst_ckpt_lane *lane);
/* Works until nothing is left or a lane has failed. */
void pst_ckpt_lane_run(pst_ckpt_lane *lane, pst_ckpt_reading *reading);
pst_span_reader *pst_ckpt_lane_reader(pst_ckpt_lane *lane);
/* The loops of an operation (checked before); as pst_box_make. */
int pst_ckpt_op_box(const pst_ckpt *ckpt, const pst_ckpt_read_op *op, pst_box *out, pst_error *err);
/* The storage that an operation reads from. */
const pst_ckpt_storage *pst_ckpt_op_storage(const pst_ckpt *ckpt, const pst_ckpt_read_op *op);
/* Adds the tensor's name to an error. */
void pst_ckpt_blame(const pst_ckpt *ckpt, const pst_ckpt_read_op *op, pst_error *err);

#endif
