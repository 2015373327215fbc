/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checkpoints at the speed of the drive: tensors in memory become a durable file that stock tools open, and come back.
 *
 * Saving streams every tensor once through a small ring of locked buffers: copied, digested and written past the page
 * cache at the same time. What is written is safetensors (one file, or a folder of shards with its index), or the zip file
 * of torch.save. A file appears under its name whole and durable (data sync, rename, folder sync) or not at all; the older
 * one stays until then. Each tensor has an XXH3 digest, each file one over all else in it (docs/checkpoints.md has the
 * places), and the zip's CRCs are real.
 *
 * Loading reads in parallel and direct, whole tensors or slices, into the caller's memory. Nothing ever executes a pickle:
 * a .pt file's is walked by a fixed list of operations, and anything else in it is refused by its name.
 *
 * Several processes can save one checkpoint together: each writes its share of the bytes, and it is published once, when
 * all shares are durable.
 *
 * Threads: a save belongs to one thread at a time. An opened checkpoint may be read from several threads.
 */
#ifndef PENSTOCK_CKPT_H
#define PENSTOCK_CKPT_H

#include <stdbool.h>

#include "penstock/io.h"
#include "penstock/types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- saving ---- */

typedef enum pst_ckpt_format {
    PST_CKPT_AUTO, /* by the path: .pt, .pth, .bin and .ckpt are torch's, all else safetensors */
    PST_CKPT_SAFETENSORS,
    PST_CKPT_TORCH
} pst_ckpt_format;

/* Puts the bytes [offset, offset + bytes) of a tensor at `out`, or fails with a negative code. Called from the save's own
 * thread, for any tensor's bytes in rising order, again from the start when a save is retried. This is how memory that is
 * not the host's is saved. */
typedef int (*pst_ckpt_source)(void *user, uint64_t offset, uint64_t bytes, void *out, pst_error *err);

typedef struct pst_ckpt_tensor {
    const char *name; /* UTF-8 */
    pst_dtype dtype;
    uint32_t rank;         /* at most 8 */
    const uint64_t *shape; /* rank of them */
    const void *data;      /* contiguous, row-major; may be NULL where there are no bytes, or with a source */
    pst_ckpt_source source;
    void *user; /* of source */
} pst_ckpt_tensor;

typedef struct pst_ckpt_pair {
    const char *key, *value;
} pst_ckpt_pair;

/* The processes that save one checkpoint together. */
typedef struct pst_ckpt_ranks {
    uint32_t rank, count;
    /* Every rank gives `bytes` bytes, the same number everywhere, and gets all of them in order of rank
     * (count * bytes at `all`): MPI_Allgather, or torch.distributed. Called at most a few times per save, in the same order
     * by all ranks, from the save's own thread (of several saves in flight, one after the other). Failing, or a rank that
     * does not come, ends the save everywhere it is noticed, and nothing is published. */
    int (*all_gather)(void *user, const void *mine, size_t bytes, void *all);
    void *user;
} pst_ckpt_ranks;

#define PST_CKPT_UNLIMITED UINT64_MAX

/* Zero means the default of every field. */
typedef struct pst_ckpt_options {
    size_t struct_size; /* sizeof(pst_ckpt_options) of the caller */
    const char *path;   /* where it shall appear; an existing file is replaced; required */
    pst_ckpt_format format;
    /* safetensors: files of at most so many bytes of data (except for one larger tensor), and path is a folder, which must not
     * exist yet. 0: one file. */
    uint64_t shard_bytes;
    const pst_ckpt_pair *metadata; /* safetensors: entries of __metadata__; keys beginning "penstock." are taken */
    size_t metadata_count;
    /* torch: the content of data.pkl, made by the caller; then the tensors are its storages, named by their keys, and
     * dtype and shape only say how many bytes there are. NULL: the tensors become a dict from name to tensor. */
    const void *pickle;
    size_t pickle_bytes;
    bool no_digests;     /* no XXH3 digests; CRCs of the zip file are made all the same */
    uint64_t ring_bytes; /* extra memory while writing; default 72 MiB */
    uint64_t
        snapshot_bytes; /* asynchronous saves: memory that may hold tensors' copies until the drive has taken them, so
                                that PST_CKPT_COPIED comes earlier; 0: none */
    uint64_t
        bytes_per_second; /* the governor: at most so many on average; default of pst_ckpt_save: PST_CKPT_UNLIMITED;
                                  of pst_ckpt_begin: what lets a training loop that leaves one core free run on undisturbed */
    const pst_ckpt_ranks *ranks; /* NULL: this process alone; copied; `user` lives as long as the save */
    pst_io_options io;           /* its struct_size may be 0: all defaults */
    /* torch: the folder name inside the zip file; NULL: "archive", as torch.save to a stream has it */
    const char *archive_name;
} pst_ckpt_options;

typedef struct pst_ckpt_report {
    size_t struct_size;     /* in: sizeof(pst_ckpt_report) of the caller */
    uint64_t data_bytes;    /* of the tensors of the whole checkpoint */
    uint64_t file_bytes;    /* of its files */
    uint64_t written_bytes; /* by this process */
    uint64_t tensors, files;
    double blocked_seconds;         /* until begin returned */
    double copied_seconds, seconds; /* since begin: until PST_CKPT_COPIED; until it was durable */
    const char *io_engine;          /* static storage */
    uint64_t block_size;
    uint32_t queue_depth, io_workers;
    bool direct;                /* past the page cache */
    uint64_t retried;           /* transfers that were carried out again */
    uint64_t ring_bytes;        /* memory that this process took for buffers */
    uint32_t buffers_in_flight; /* the most that were on their way to the drive at once */
} pst_ckpt_report;

/* Saves, and returns when it is durable. report may be NULL. On failure the older file is as it was, except when only the
 * last sync of the folder failed: then the new one is there, whole, and its durability unknown (err says so).
 * -ENOSPC: checked beforehand. */
PST_API int pst_ckpt_save(const pst_ckpt_options *options, const pst_ckpt_tensor *tensors, size_t count,
                          pst_ckpt_report *report, pst_error *err);

typedef struct pst_ckpt_saving pst_ckpt_saving; /* a save under way */

typedef enum pst_ckpt_stage {
    PST_CKPT_COPIED, /* the tensors have been read: they may change */
    PST_CKPT_DURABLE /* published: it survives a loss of power */
} pst_ckpt_stage;

/* Begins to save in the background and returns at once. Names, shapes, metadata and the pickle are copied; the tensors'
 * data must stay as it is until PST_CKPT_COPIED. Several may be in flight; they are written one after the other, in the
 * order of begin. When the process exits, saves in flight end with it; the older file is as it was, and what they had
 * written lies beside it under a temporary name. A child of fork has none of its parent's saves and must not touch
 * them; it can begin its own. A relative path is the one from where the process was at begin. */
PST_API int pst_ckpt_begin(const pst_ckpt_options *options, const pst_ckpt_tensor *tensors, size_t count,
                           pst_ckpt_saving **out, pst_error *err);
/* Waits for a stage, up to timeout_ns (0: asks; UINT64_MAX: for ever). 0: reached; 1: not in time; negative: the save failed,
 * with the same error each time; the older file is as it was. */
PST_API int pst_ckpt_wait(pst_ckpt_saving *saving, pst_ckpt_stage stage, uint64_t timeout_ns, pst_error *err);
/* Begins a save that failed again, from the same memory, which must not have changed since begin. With ranks, all of them. */
PST_API int pst_ckpt_retry(pst_ckpt_saving *saving, pst_error *err);
/* Asks it to stop: it ends with PST_E_CANCELLED, or it was published before. Any thread. */
PST_API void pst_ckpt_cancel(pst_ckpt_saving *saving);
/* From now on, until it ends, it writes as fast as it can, for a caller who has nothing else to do than to wait. Any thread. */
PST_API void pst_ckpt_hurry(pst_ckpt_saving *saving);
/* Complete when it ended. */
PST_API int pst_ckpt_get_report(pst_ckpt_saving *saving, pst_ckpt_report *out);
/* Waits until it has ended, and frees it. */
PST_API void pst_ckpt_end(pst_ckpt_saving *saving);

/* ---- loading ---- */

typedef struct pst_ckpt pst_ckpt; /* an opened checkpoint */

/* Zero means the default of every field. */
typedef struct pst_ckpt_open_options {
    size_t struct_size; /* sizeof(pst_ckpt_open_options) of the caller */
    /* A .safetensors file, a folder of them with or without an index, a file of torch.save, a step's folder, or a training
     * folder: its newest complete step. What it is, is told by its content. Required. */
    const char *path;
    bool verify; /* pst_ckpt_read checks the digest of every tensor that is read whole and has one */
    pst_io_options io;
    uint64_t ring_bytes; /* memory for slices that are not contiguous in the file, and for digests; default 128 MiB */
} pst_ckpt_open_options;

/* Reads and checks what is there, and no tensor's data. */
PST_API int pst_ckpt_open(const pst_ckpt_open_options *options, pst_ckpt **out, pst_error *err);
PST_API void pst_ckpt_close(pst_ckpt *ckpt);
/* The format of its files: PST_CKPT_SAFETENSORS or PST_CKPT_TORCH. */
PST_API pst_ckpt_format pst_ckpt_get_format(const pst_ckpt *ckpt);

/* Strings and arrays live as long as the checkpoint. */
typedef struct pst_ckpt_tensor_info {
    const char *name; /* of a .pt file: the keys that lead to it, joined by "." ("" for a tensor alone) */
    pst_dtype dtype;
    uint32_t rank;
    const uint64_t *shape;
    const int64_t *strides; /* in elements; NULL: row-major and contiguous */
    uint64_t bytes;         /* of its elements */
    uint32_t storage;       /* tensors that share memory have the same number; safetensors: each its own */
    uint64_t storage_begin; /* of its first element in the storage, bytes */
    const char *file;
    bool has_digest;
} pst_ckpt_tensor_info;

PST_API size_t pst_ckpt_tensor_count(const pst_ckpt *ckpt);
PST_API int pst_ckpt_tensor_at(const pst_ckpt *ckpt, size_t index, pst_ckpt_tensor_info *out);
/* The index of a tensor, or -ENOENT. */
PST_API int64_t pst_ckpt_find(const pst_ckpt *ckpt, const char *name);

/* A storage: the memory behind one or several tensors of a .pt file. */
typedef struct pst_ckpt_storage_info {
    pst_dtype dtype;
    uint64_t bytes;
    const char *file;
} pst_ckpt_storage_info;

PST_API size_t pst_ckpt_storage_count(const pst_ckpt *ckpt);
PST_API int pst_ckpt_storage_at(const pst_ckpt *ckpt, size_t index, pst_ckpt_storage_info *out);

/* What is wanted. A slice is start[d] <= i < stop[d] in every dimension; `out` gets it row-major. */
typedef struct pst_ckpt_read_op {
    size_t tensor;
    const uint64_t *start, *stop; /* rank of them each; NULL: the whole */
    void *out;                    /* bytes of the slice */
    bool is_storage;              /* `tensor` is a storage's number: all its bytes, as they are */
} pst_ckpt_read_op;

/* Reads all of them at once, in an order and in pieces that suit the drive. PST_E_FORMAT with file and tensor: its digest
 * does not fit (with verify). Memory that was not touched yet is advised to come in huge pages (madvise): a transfer into pages
 * of 4 KiB can take twice as long. */
PST_API int pst_ckpt_read(pst_ckpt *ckpt, const pst_ckpt_read_op *ops, size_t count, pst_error *err);

/* An entry of __metadata__ of the first file that has it, or NULL. */
PST_API const char *pst_ckpt_metadata(const pst_ckpt *ckpt, const char *key);

/* The values of a .pt file: what was saved, as a tree. Node 0 is the whole; a value that occurs several times is one node
 * that several others name. */
typedef enum pst_ckpt_kind {
    PST_CKPT_NONE,
    PST_CKPT_BOOL,    /* integer: 0 or 1 */
    PST_CKPT_INT,     /* integer; where it does not fit 64 bits, text: little-endian two's complement */
    PST_CKPT_FLOAT,   /* number */
    PST_CKPT_COMPLEX, /* number, imaginary */
    PST_CKPT_TEXT,    /* text: UTF-8 (and lone surrogates, as Python's "surrogatepass") */
    PST_CKPT_BYTES,   /* text; a bytearray: PST_CKPT_BYTEARRAY */
    PST_CKPT_BYTEARRAY,
    PST_CKPT_LIST,   /* children */
    PST_CKPT_TUPLE,  /* children; also torch.Size, then text is "torch.Size" */
    PST_CKPT_SET,    /* children; frozen: text is "frozenset" */
    PST_CKPT_DICT,   /* children: key, value, key, value ...; text: "OrderedDict" or "Counter" for one */
    PST_CKPT_TENSOR, /* integer: the tensor's number; text: "Parameter" for one */
    PST_CKPT_NAMED /* text: a harmless global by its full name: a torch dtype ("torch.float32"), device ("torch.device")
                        with children as its arguments, layout or memory format */
} pst_ckpt_kind;

typedef struct pst_ckpt_value {
    pst_ckpt_kind kind;
    int64_t integer;
    double number, imaginary;
    const char *text; /* text_bytes long, and terminated; NULL where there is none */
    size_t text_bytes;
    const uint32_t *children; /* numbers of nodes */
    size_t child_count;
    bool requires_grad;       /* of a tensor */
    bool conjugate, negative; /* of a tensor: what is stored is its conjugate, or its negative (torch's lazy bits) */
    uint32_t
        attributes; /* node of a dict from text: of an OrderedDict (a state dict's "_metadata"), a Parameter or a tensor
                            that has attributes of its own; 0: none */
} pst_ckpt_value;

/* 0 for safetensors. */
PST_API size_t pst_ckpt_value_count(const pst_ckpt *ckpt);
PST_API int pst_ckpt_value_at(const pst_ckpt *ckpt, size_t node, pst_ckpt_value *out);

/* ---- training folders ---- */

/*
 * A training folder holds one folder per step ("step-000100"), each with the files of a checkpoint and a manifest that names
 * them with their sizes and digests, and `latest`, a text file with the newest step's folder name. A step is made under
 * another name, which no reader takes for a step, and renamed when all its files and its manifest are durable.
 */
typedef struct pst_ckpt_step pst_ckpt_step; /* one that is being made */

/* Makes the folder that files go into. With ranks: all of them call it, and get the same folder. A relative path is the one
 * from where the process is now. */
PST_API int pst_ckpt_step_begin(const char *folder, uint64_t step, const pst_ckpt_ranks *ranks, pst_ckpt_step **out,
                                pst_error *err);
/* Where files of the step are to be saved until commit. The step's storage. */
PST_API const char *pst_ckpt_step_path(const pst_ckpt_step *step);

/* Zero means the default of every field. */
typedef struct pst_ckpt_commit_options {
    size_t struct_size; /* sizeof(pst_ckpt_commit_options) of the caller */
    uint32_t keep_last; /* of the complete steps up to this one so many stay, this one among them, and older ones are
                           removed once it is published; steps of higher numbers stay; 0: all stay */
    bool replace;       /* a complete step of the same number is replaced at one stroke; else it is refused (-EEXIST) */
    const pst_ckpt_pair *metadata; /* of the manifest */
    size_t metadata_count;
} pst_ckpt_commit_options;

/* When all files are durable (pst_ckpt_wait): the manifest, the rename, `latest`, then old steps go. With ranks: all call it.
 * Everything in the folder belongs to the step, also files that others have written there and folders; they are synced.
 * Files with a digest of their own are not read again, others are. A folder of the step's name that is no complete step
 * any more is renamed, and swept by the next sweep; one with files and without a manifest is somebody else's, and refused
 * (-EEXIST). Afterwards the step can only be ended; when it failed before it was published, it may
 * be committed again. When removing old steps or updating `latest` fails, the step is there all the same and the error says
 * so. PST_E_UNSUPPORTED: it would replace another one, and the file system cannot exchange two names. options may be NULL. */
PST_API int pst_ckpt_step_commit(pst_ckpt_step *step, const pst_ckpt_commit_options *options, pst_error *err);
/* Frees it; what was not committed is removed. */
PST_API void pst_ckpt_step_end(pst_ckpt_step *step);

/* The newest complete step: `latest` if it is, else the highest number that is. A step of a higher number than latest's whose
 * commit was cut short after the rename (a crash, or `latest` could not be written) is complete, and the newest. Complete: the
 * manifest is whole, and every file that it names is there with its size. *out_path: pst_ckpt_free_path. -ENOENT: there is
 * none. */
PST_API int pst_ckpt_latest(const char *folder, uint64_t *out_step, char **out_path, pst_error *err);
PST_API void pst_ckpt_free_path(char *path);
/* The numbers of the complete steps, rising, at most max of them at `out`; the return value is how many there are. */
PST_API int64_t pst_ckpt_steps(const char *folder, uint64_t *out, size_t max, pst_error *err);
/* Removes what unfinished saves left in a training folder, unless a living process still works on it. *out_removed may be
 * NULL. */
PST_API int pst_ckpt_sweep(const char *folder, uint32_t *out_removed, pst_error *err);

#ifdef __cplusplus
}
#endif
#endif
