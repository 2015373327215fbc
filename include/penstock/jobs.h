/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What single commands are made of: `synth` writes a checkpoint of a known shape with seeded random weights,
 * `convert` writes a checkpoint again in streaming order, quantized if wanted, `verify` computes the digests of
 * what it wrote again, `inspect` reads what a checkpoint holds.
 */
#ifndef PENSTOCK_JOBS_H
#define PENSTOCK_JOBS_H

#include <stdbool.h>

#include "penstock/types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- synth ---- */

/* Called on the caller's thread, first with done_bytes 0 before anything is written, last with done_bytes ==
 * total_bytes. Nonzero cancels: PST_E_CANCELLED, nothing left behind. */
typedef int (*pst_on_progress)(void *user, uint64_t done_bytes, uint64_t total_bytes);

/* Zero means the default of every field. */
typedef struct pst_synth_options {
    size_t struct_size; /* sizeof(pst_synth_options) of the caller */
    const char *shape;  /* one of pst_synth_shape_names; required */
    const char *folder; /* where it shall appear; required; must not exist yet */
    uint32_t layers;    /* the shape's own when 0; at most 4096 */
    uint64_t seed;      /* the same seed gives the same weights, whatever the other options are */
    /* PST_BF16, PST_F16, PST_F32: roundings of the same numbers; PST_F8_E4M3 with scales of blocks of 128 x 128, for shapes
     * that are published so. Default: PST_F8_E4M3 for those, else PST_BF16. */
    pst_dtype dtype;
    uint64_t shard_bytes;  /* no file gets more tensor data, except for one larger tensor; default 5,000,000,000 */
    const char *io_engine; /* as in pst_io_options; NULL: "auto" */
    uint64_t block_size;   /* bytes of one write; default 1 MiB */
    uint32_t queue_depth;  /* writes in flight for each worker; default 128 */
    uint32_t threads;      /* that make the numbers; default: all processors */
    pst_on_progress on_progress;
    void *user;
    uint32_t io_workers;   /* threads that share every write; default as in pst_io_options */
    bool io_single_submit; /* one system call per write */
    bool sparse; /* the weights are holes, which read as zeros and take no room: to plan and to measure with */
} pst_synth_options;

typedef struct pst_synth_report {
    uint64_t parameters;
    uint64_t data_bytes; /* of all tensors */
    uint64_t file_bytes; /* of the safetensors files */
    uint64_t tensors;
    uint32_t files; /* safetensors files */
    uint32_t layers;
    double seconds;        /* of writing, until it was durable */
    const char *io_engine; /* how it was written; static storage */
    uint64_t block_size;
    uint32_t queue_depth, io_workers;
    bool io_single_submit;
} pst_synth_report;

/* Names for `shape`, NULL-terminated, static storage. */
PST_API const char *const *pst_synth_shape_names(void);

/* Writes a Hugging Face folder: safetensors shards with their index, config, generation config, a
 * byte-level tokenizer. It appears whole and durable under its name or not at all. report may be NULL.
 * -EEXIST: `folder` exists; -ENOSPC: the file system has too little room (checked beforehand). */
PST_API int pst_synth(const pst_synth_options *options, pst_synth_report *report, pst_error *err);

/* ---- convert ---- */

/* Zero means the default of every field. */
typedef struct pst_convert_options {
    size_t struct_size;             /* sizeof(pst_convert_options) of the caller */
    const char *model;              /* a folder, or "org/name" looked up in `cache`; required */
    const char *cache;              /* a Hugging Face hub folder; may be NULL */
    const char *folder;             /* where the converted model shall appear; required; must not exist yet */
    uint32_t bits;                  /* 8 or 4: quantize to groups; 0: do not */
    uint32_t group_size;            /* weights that share a scale; even, 2 to 4096; default 64 */
    bool symmetric;                 /* groups have a scale alone, no minimum */
    bool keep_embedding, keep_head; /* these stay as they are; a head that is the embedding by either */
    pst_dtype dtype;                /* PST_BF16, PST_F16 or PST_F32: of what is not quantized; 0: as it is */
    uint64_t shard_bytes;       /* no file gets more tensor data, except for one larger tensor; default 5,000,000,000 */
    uint64_t host_memory_bytes; /* what the process may use; 0: three quarters of what is free */
    const char *io_engine;      /* as in pst_io_options; NULL: "auto" */
    uint64_t block_size;        /* bytes of one transfer; default 1 MiB */
    uint32_t queue_depth;       /* transfers in flight for each worker; default 128 */
    uint32_t io_workers;        /* threads that share every transfer; default as in pst_io_options */
    bool io_single_submit;      /* one system call per transfer */
    uint32_t threads;           /* that convert; default: all processors */
    pst_on_progress on_progress;
    void *user;
} pst_convert_options;

typedef struct pst_convert_report {
    uint64_t parameters;
    uint64_t source_bytes; /* of the tensors that were read */
    uint64_t data_bytes;   /* of the tensors that were written */
    uint64_t file_bytes;   /* of the safetensors files */
    uint64_t tensors;      /* written */
    uint64_t quantized;    /* of these */
    uint64_t left_out;     /* tensors of the source that inference does not use */
    uint32_t files;        /* safetensors files */
    double seconds;        /* until it was durable */
    const char *io_engine; /* how it was read and written; static storage */
    uint64_t block_size;
    uint32_t queue_depth, io_workers;
    bool io_single_submit;
    uint64_t peak_rss_bytes; /* of the process, until now */
} pst_convert_report;

/* Writes a model again: its tensors in the order in which inference needs them, each with a digest, quantized where `bits`
 * asks for it (docs/quantized.md has the format), config.json with what that needs and all else kept, and the small files
 * beside it. One pass over the source, in memory that does not depend on any tensor's size. The same source and options give
 * the same bytes. It appears whole and durable under its name or not at all. report may be NULL.
 * -EEXIST: `folder` exists; -ENOSPC: the file system has too little room (checked beforehand); PST_E_BUDGET: the memory
 * budget is too small. */
PST_API int pst_convert(const pst_convert_options *options, pst_convert_report *report, pst_error *err);

/* ---- offload ---- */

/* A quantized copy of a model in folders set aside for such copies. It is made when it is first asked for, and found again as
 * long as the model's files and the options are the same. */
typedef struct pst_offload pst_offload;

/* Zero means the default of every field. */
typedef struct pst_offload_options {
    size_t struct_size; /* sizeof(pst_offload_options) of the caller */
    const char *model;  /* a folder, or "org/name" looked up in `cache`; required */
    const char *cache;  /* a Hugging Face hub folder; may be NULL */
    const char *const
        *folders;          /* where copies lie, usually one on each drive; made if missing; with several the weights
                                 * are striped over them; required */
    uint32_t folder_count; /* 1 to 64 */
    uint32_t bits;         /* 8 or 4; required */
    uint32_t group_size;   /* default 64 */
    bool symmetric;
    uint64_t host_memory_bytes; /* these as in pst_convert_options */
    const char *io_engine;
    uint64_t block_size;
    uint32_t queue_depth, io_workers;
    bool io_single_submit;
    uint32_t threads;
    pst_on_progress on_progress; /* with total_bytes 0 now and then while another process makes the same copy */
    void *user;
} pst_offload_options;

/* Waits for other processes that make the same copy; makes it if none is there; removes what one that was killed left of it.
 * While the result is open, no process touches the copy but to read. Any thread. */
PST_API int pst_offload_open(const pst_offload_options *options, pst_offload **out, pst_error *err);
/* The folder to open as a model, as long as it is open. */
PST_API const char *pst_offload_path(const pst_offload *offload);
/* Whether it was made now; else it was there. */
PST_API bool pst_offload_was_made(const pst_offload *offload);
PST_API void pst_offload_close(pst_offload *offload);

/* ---- verify ---- */

/* Something that was found. Strings last for the call. */
typedef struct pst_verify_finding {
    const char *file;
    const char *tensor;     /* whose bytes they are; NULL: no tensor's */
    const char *what;       /* in words */
    uint64_t offset, bytes; /* where in the file; PST_NO_OFFSET: not at one place */
    bool damaged;           /* false: a remark, on what of the file could not be checked */
} pst_verify_finding;

/* Called on the caller's thread, in the order of the files, when all is read. */
typedef void (*pst_on_finding)(void *user, const pst_verify_finding *finding);

/* Zero means the default of every field. */
typedef struct pst_verify_options {
    size_t struct_size; /* sizeof(pst_verify_options) of the caller */
    /* A safetensors file, a file of torch.save, a folder of safetensors files, a step's folder or a training folder (each of
     * its steps), or "org/name" looked up in `cache`; required. */
    const char *path;
    const char *cache; /* a Hugging Face hub folder; may be NULL */
    pst_on_finding on_finding;
    pst_on_progress on_progress;
    void *user;            /* of both */
    const char *io_engine; /* as in pst_io_options; NULL: "auto" */
    uint64_t block_size;
    uint32_t queue_depth, io_workers;
    bool io_single_submit;
    uint32_t threads; /* that read and digest, with about 128 MiB together; default: all processors */
} pst_verify_options;

typedef struct pst_verify_report {
    uint64_t tensors, checked, damaged;
    uint64_t bytes;                        /* that were read */
    uint32_t files, files_without_digests; /* nothing to compare with, neither digests nor CRCs */
    double seconds;
    uint32_t files_with_crcs_only; /* torch.save's own */
    uint64_t broken;               /* what is damaged and no tensor: headers, tables, manifests, missing files */
} pst_verify_report;

/* Reads every tensor that has a digest (those that pst_convert and pst_ckpt_save wrote) or a CRC (of a zip file's records) and
 * computes it again, and what is around them, where the file has a digest of its own; of a step the manifest and that the files
 * are those it names. Of all files the structure is checked; what cannot be opened at all is an error, but a finding in
 * a step's folder. 0: it was done, and report->damaged and broken say how much differs. report may be NULL. */
PST_API int pst_verify(const pst_verify_options *options, pst_verify_report *report, pst_error *err);

/* ---- inspect ---- */

typedef struct pst_inspection pst_inspection;

typedef struct pst_inspect_file {
    const char *path;
    uint64_t file_bytes, header_bytes, data_bytes;
    size_t tensors, metadata; /* how many */
} pst_inspect_file;

typedef struct pst_inspect_tensor {
    const char *name;
    pst_dtype dtype;
    uint32_t rank;
    const uint64_t *shape;  /* rank of them */
    uint32_t file;          /* index for pst_inspection_file */
    uint64_t offset, bytes; /* in that file; bytes: of its elements */
    uint64_t elements;
    const int64_t *strides; /* of a file of torch.save, in elements; NULL: row-major and contiguous */
    uint64_t storage;       /* tensors of the same number share memory; safetensors: each its own */
} pst_inspect_tensor;

typedef struct pst_inspect_dtype {
    uint64_t tensors, elements, bytes;
} pst_inspect_dtype;

/* What config.json says; 0 or NULL where it says nothing. */
typedef struct pst_inspect_config {
    const char *path, *model_type, *architecture, *dtype;
    uint64_t layers, hidden, heads, kv_heads, head_dim, intermediate, vocab, context;
} pst_inspect_config;

/* path: a safetensors file, a file of torch.save (whose pickle is not executed), a folder, a step's folder, a training folder
 * (its newest complete step), or "org/name" looked up in `cache` (a Hugging Face hub folder, may be NULL). Reads and checks headers only. The caller owns *out; everything that it hands out lives as
 * long as it does. Any thread. */
PST_API int pst_inspect(const char *path, const char *cache, pst_inspection **out, pst_error *err);
PST_API void pst_inspection_close(pst_inspection *inspection);

/* The file or folder that was found. */
PST_API const char *pst_inspection_path(const pst_inspection *inspection);
PST_API size_t pst_inspection_file_count(const pst_inspection *inspection);
PST_API size_t pst_inspection_tensor_count(const pst_inspection *inspection);
/* Each: 0, or PST_E_USAGE for an index out of range. Tensors are sorted by file, then by offset; those of a file of torch.save
 * are in the order of its pickle. */
PST_API int pst_inspection_file(const pst_inspection *inspection, size_t index, pst_inspect_file *out);
PST_API int pst_inspection_tensor(const pst_inspection *inspection, size_t index, pst_inspect_tensor *out);
PST_API int pst_inspection_metadata(const pst_inspection *inspection, size_t file, size_t index, const char **key,
                                    const char **value);
/* Totals of one dtype; zeros when there is none. */
PST_API int pst_inspection_dtype(const pst_inspection *inspection, pst_dtype dtype, pst_inspect_dtype *out);
/* False when there is no config.json. */
PST_API bool pst_inspection_config(const pst_inspection *inspection, pst_inspect_config *out);

#ifdef __cplusplus
}
#endif
#endif
