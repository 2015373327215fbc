/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of `convert` share.
 *   convert.c        options, the order of things, what is left behind when it fails
 *   convert_plan.c   which tensors are written, how each is made, and in which file it comes to lie
 *   convert_stream.c reading ahead, making and writing, all at once, in memory of a fixed size
 *   convert_rows.c   the numbers: a run of rows from one format to another
 *   convert_files.c  config.json and the small files
 * offload.c converts into folders of its own, which it finds again.
 */
#ifndef PST_JOBS_CONVERT_INTERNAL_H
#define PST_JOBS_CONVERT_INTERNAL_H

#include "infer/internal.h"
#include "os/thread.h"
#include "penstock/io_stripe.h"
#include "penstock/jobs.h"
#include "store/folder.h"
#include "store/safetensors_write.h"

typedef enum convert_kind {
    CONVERT_COPY,    /* byte for byte */
    CONVERT_CAST,    /* plain elements of one type to another */
    CONVERT_EXPAND,  /* quantized rows to plain ones */
    CONVERT_QUANTIZE /* rows, plain or quantized, to GROUPED ones */
} convert_kind;

/* How one tensor of the output is made. It is a run of units: bytes, elements or rows, by its kind. */
typedef struct convert_item {
    const pst_tensor *source;
    const pst_tensor *scales; /* of F8_E4M3 that is not copied; else NULL */
    convert_kind kind;
    const pst_weight_format *from; /* of a matrix; the program's */
    pst_dtype from_type, to_type;  /* plain sides */
    uint64_t units, unit_in_bytes, unit_out_bytes;
    uint64_t columns; /* numbers in a row */
} convert_item;

typedef struct convert_shard {
    size_t first, count; /* of the items */
    uint64_t file_bytes;
    char name[PST_SHARD_NAME_BYTES];
    char *digests; /* PST_DIGESTS_KIND and the digits; placeholders until they are known */
} convert_shard;

/* A stripe set to write to, with its members' folders. */
typedef struct pst_convert_stripes {
    pst_stripe_set *set;
    const char *const *folders;
    uint32_t count;
} pst_convert_stripes;

typedef struct pst_converting {
    pst_convert_options options;
    const pst_model *model;
    pst_weight_format to; /* GROUPED, when there are bits */
    convert_item *items;  /* in the order in which inference needs them */
    pst_tensor *tensors;  /* by item: as they are written */
    size_t item_count, quantized_count, left_out;
    uint64_t source_bytes, data_bytes, file_bytes;
    convert_shard *shards;
    size_t shard_count;
    bool all_expanded; /* nothing quantized is left of what the source had */

    uint64_t block_bytes;             /* of the stream */
    uint64_t total_bytes, done_bytes; /* of all files, for the progress */
    pst_folder *folder;               /* NULL: to a stripe set */
    const pst_convert_stripes *stripes;
    pst_io *io;
    pst_io_options settings; /* of io, as they are in use */
    pst_pool *pool;
} pst_converting;

/* Metadata of every file, in this order. */
enum { CONVERT_METADATA_FORMAT, CONVERT_METADATA_GENERATOR, CONVERT_METADATA_DIGESTS, CONVERT_METADATA_COUNT };
void pst_convert_metadata(const convert_shard *shard, pst_metadata out[CONVERT_METADATA_COUNT]);

/* Fills items, tensors, shards and totals. */
int pst_convert_plan(pst_converting *c, pst_error *err);
void pst_convert_plan_free(pst_converting *c);

/* Chooses block_bytes by the memory budget, PST_E_BUDGET: it is too small. The pool is there. */
int pst_convert_choose_blocks(pst_converting *c, uint64_t largest_file_bytes, pst_error *err);
/* Writes all shards. */
int pst_convert_stream(pst_converting *c, pst_error *err);
int pst_convert_progress(pst_converting *c, uint64_t more_bytes, pst_error *err);

/* "<folder>/<name>" of a file to write; pst_heap_free. NULL when out of memory. */
char *pst_convert_path(const pst_converting *c, const char *name);
/* Whether a file of a model's folder goes along as it is (config.json does not). */
bool pst_convert_is_companion(const char *name);
/* config.json, and what else belongs to the model. */
int pst_convert_files(pst_converting *c, pst_error *err);
/* Bytes of the largest of them: they pass through memory whole. And of all. */
int pst_convert_files_bytes(const pst_converting *c, uint64_t *largest, uint64_t *total, pst_error *err);

/* pst_convert, or (stripes not NULL) into a stripe set: then `folder` of the options is for messages only, and config.json
 * and the other small files come to lie in the first member. What a failure leaves there is the caller's to remove. The caller
 * syncs the members' folders. */
int pst_convert_run(const pst_convert_options *options, const pst_convert_stripes *stripes, pst_convert_report *report,
                    pst_error *err);

/* Floats of scratch for one thread. */
uint64_t pst_convert_scratch_floats(const convert_item *item);
/* Units [first, first + count) of an item from `in` to `out`. scales: the bytes of item->scales, or NULL. 0, -EDOM (a number
 * that is none, or infinite) or -ERANGE (beyond what the type or the scale holds). Any thread. */
int pst_convert_units(const convert_item *item, const pst_weight_format *to, const void *scales, uint64_t first,
                      uint64_t count, const unsigned char *in, unsigned char *out, float *scratch);

#endif
