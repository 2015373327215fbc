/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The asynchronous I/O library: bulk reads and writes of files at any offset and length, past the page cache
 * where the file system allows it.
 *
 * A handle owns worker threads and an engine (io_uring, or threads with pread and pwrite). A file is opened
 * once and remembers its alignment and whether direct I/O works there. A batch is an array of operations
 * submitted together and tracked by one ticket; each operation has its own result. Operations are cut into
 * `block_size` pieces, at most `queue_depth` in flight per worker; only the ragged edges of a direct transfer
 * are bounced.
 *
 * Threads: a handle may be used from any thread; a batch belongs to one thread at a time.
 */
#ifndef PENSTOCK_IO_H
#define PENSTOCK_IO_H

#include <stdbool.h>

#include "penstock/types.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct pst_io pst_io;
typedef struct pst_io_file pst_io_file;
typedef struct pst_io_batch pst_io_batch;

/* Zero means the default of every field. */
typedef struct pst_io_options {
    size_t struct_size;   /* sizeof(pst_io_options) of the caller */
    const char *engine;   /* "auto" (default), "io_uring", "threads" */
    uint64_t block_size;  /* bytes of one submitted I/O; default 1 MiB; a multiple of 4096 */
    uint32_t queue_depth; /* I/Os in flight per worker; default 64 */
    uint32_t workers;     /* threads that drive the engine; default 1 (io_uring) or queue_depth (threads engine,
                         at most 16) */
    bool buffered;        /* go through the page cache even where direct I/O works */
} pst_io_options;

PST_API int pst_io_open(const pst_io_options *options, pst_io **out, pst_error *err);
/* Waits for what is in flight, then stops the workers. Files and batches that are still there can only be
 * closed and destroyed afterwards. */
PST_API void pst_io_close(pst_io *io);
/* The engine in use ("io_uring", "threads"). Static storage. */
PST_API const char *pst_io_engine_name(const pst_io *io);

enum {
    PST_IO_OPEN_READ = 0,
    PST_IO_OPEN_WRITE = 1,
    PST_IO_OPEN_CREATE = 2,
    PST_IO_OPEN_TRUNCATE = 4,
    PST_IO_OPEN_EXCLUSIVE = 8
};

/* Opens a file for direct I/O, or buffered I/O where the file system refuses it (a warning is logged once per
 * file system). New files get mode 0666 less the umask. A file takes one descriptor when it is only read (a second
 * one is opened if a direct transfer of it ends off its alignment or is refused), else two. */
PST_API int pst_io_file_open(pst_io *io, const char *path, unsigned flags, pst_io_file **out, pst_error *err);
/* No operation may be in flight. Returns the first error of closing (a delayed write error). */
PST_API int pst_io_file_close(pst_io_file *file, pst_error *err);
PST_API uint64_t pst_io_file_bytes(const pst_io_file *file); /* as of opening */
PST_API const char *pst_io_file_path(const pst_io_file *file);
PST_API bool pst_io_file_is_direct(const pst_io_file *file);
/* Offsets, lengths and addresses that are multiples of this travel without a bounce. */
PST_API uint32_t pst_io_file_alignment(const pst_io_file *file);
PST_API int pst_io_file_sync(pst_io_file *file, pst_error *err); /* fdatasync */
PST_API int pst_io_file_truncate(pst_io_file *file, uint64_t bytes, pst_error *err);
PST_API int pst_io_file_preallocate(pst_io_file *file, uint64_t bytes,
                                    pst_error *err); /* as fallocate; 0 where unsupported */

/* Makes a region of host memory known to the engine, so that transfers inside it need no per-operation
 * mapping. Regions may not overlap; at most 64. Failure to lock it (RLIMIT_MEMLOCK) is logged, not an error.
 * The memory stays the caller's and must outlive the registration. Nothing may be in flight in it at
 * unregistration. */
PST_API int pst_io_register(pst_io *io, void *memory, uint64_t bytes, pst_error *err);
PST_API void pst_io_unregister(pst_io *io, void *memory);

typedef enum pst_io_kind { PST_IO_READ, PST_IO_WRITE } pst_io_kind;

/* One transfer. A read past the end of the file ends with PST_E_SHORT in `result`, unless `may_be_short`:
 * then it ends with the bytes there were; what the buffer holds beyond them is undefined. */
typedef struct pst_io_op {
    pst_io_file *file;
    uint64_t offset; /* in the file, bytes */
    void *buffer;    /* `bytes` bytes, the caller's until the batch is done */
    uint64_t bytes;
    pst_io_kind kind;
    bool may_be_short;
    int64_t result; /* out: bytes transferred, or a negative error code */
} pst_io_op;

/* A reusable batch of at most `max_ops` operations; it allocates here and never again for batches within that
 * size. */
PST_API int pst_io_batch_create(pst_io *io, uint32_t max_ops, pst_io_batch **out, pst_error *err);
/* Waits if it is in flight. */
PST_API void pst_io_batch_destroy(pst_io_batch *batch);
/* Submits ops[0..count) at once; the array stays the caller's and must live until the batch is done. The
 * batch must not be in flight. Never blocks on the transfers. Pieces of earlier batches are served first. */
PST_API int pst_io_submit(pst_io_batch *batch, pst_io_op *ops, uint32_t count, pst_error *err);
/* Waits up to timeout_ns (UINT64_MAX: for ever). 0: done, every operation succeeded; 1: not done in time;
 * negative: done, and the first failed operation's error with path and offset (ops[].result has each). */
PST_API int pst_io_wait(pst_io_batch *batch, uint64_t timeout_ns, pst_error *err);
/* Asks for the operations not yet started to be dropped (their result is PST_E_CANCELLED); wait afterwards.
 */
PST_API void pst_io_cancel(pst_io_batch *batch);
/* When the last piece of a done batch completed, monotonic clock. */
PST_API uint64_t pst_io_batch_completed_ns(const pst_io_batch *batch);

/* A blocking transfer of one buffer: submit and wait. */
PST_API int pst_io_transfer(pst_io *io, pst_io_op *op, pst_error *err);

typedef struct pst_io_stats {
    uint64_t bytes_read, bytes_written; /* as transferred with the kernel, edges included */
    uint64_t pieces;                    /* I/Os submitted */
    uint64_t bounced_bytes;
    uint64_t continued; /* short transfers that were continued */
    uint64_t busy_ns;   /* wall time with at least one I/O in flight */
} pst_io_stats;
PST_API void pst_io_get_stats(const pst_io *io, pst_io_stats *out);

#ifdef __cplusplus
}
#endif
#endif
