/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The asynchronous I/O library: bulk reads and writes of files at any offset and length, past the page cache
 * where the file system allows it.
 *
 * A handle owns worker threads and an engine (io_uring, libaio, threads with pread and pwrite, null). A file is
 * opened once and remembers its alignment and whether direct I/O works there; it may be striped over several
 * drives (io_stripe.h). A batch is an array of operations submitted together and tracked by one ticket; each
 * operation has its own result. Operations are cut into `block_size` pieces, at most `queue_depth` in flight per
 * worker; only the ragged edges of a direct transfer are bounced. Memory from a pool (io_pool.h) is locked and
 * known to the engine.
 *
 * Threads: a handle may be used from any thread; a batch belongs to one thread at a time, except that any thread may
 * cancel it.
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

typedef struct pst_io_engine pst_io_engine; /* io_engine.h */

/* A setting with a default of its own. */
typedef enum pst_io_switch { PST_IO_DEFAULT = 0, PST_IO_ON = 1, PST_IO_OFF = 2 } pst_io_switch;

enum {
    PST_IO_DEFAULT_BLOCK_BYTES = 1 << 20,
    PST_IO_DEFAULT_DEPTH = 128 /* with 1 MiB blocks: less starves the drive while the worker waits for a processor */
};

/* Zero means the default of every field. Block size, queue depth, single submit, overlap and workers are what
 * DeepSpeed's users know as block_size, queue_depth, single_submit, overlap_events and intra_op_parallelism. */
typedef struct pst_io_options {
    size_t struct_size;   /* sizeof(pst_io_options) of the caller */
    const char *engine;   /* "auto" (default), or the name of an engine (pst_io_engine_at) */
    uint64_t block_size;  /* bytes of one submitted I/O; default PST_IO_DEFAULT_BLOCK_BYTES; a multiple of 4096 */
    uint32_t queue_depth; /* I/Os in flight per worker; default PST_IO_DEFAULT_DEPTH */
    uint32_t workers;     /* threads that drive the engine and share every transfer; default 1, or for an engine that
                             carries out one I/O per thread queue_depth, at most 64 (16 where that is not given) */
    bool buffered;        /* go through the page cache even where direct I/O works */
    bool single_submit;   /* one system call per I/O, where otherwise one serves as many as there are */
    pst_io_switch overlap_events;      /* on (default): refill the queue as completions come; off: submit a queue, wait
                                     for all of it, repeat */
    bool measure_latency;              /* keep a histogram of the latency of I/Os (pst_io_get_latency) */
    const pst_io_engine *engine_table; /* this engine, not one by name (a wrapper of io_fault.h); lives longer than
                                          the handle */
    const char *path; /* where the files will be: "auto" then chooses what works best on that file system; may be
                         NULL */
} pst_io_options;

PST_API int pst_io_open(const pst_io_options *options, pst_io **out, pst_error *err);
/* Waits for what is in flight, then stops the workers. Files and batches that are still there can only be
 * closed and destroyed afterwards. */
PST_API void pst_io_close(pst_io *io);
/* The engine in use ("io_uring", "libaio", "threads", ...). Static storage. */
PST_API const char *pst_io_engine_name(const pst_io *io);
/* The settings in use, defaults filled in (engine, block_size, queue_depth, workers, ...). */
PST_API void pst_io_get_settings(const pst_io *io, pst_io_options *out);

/* What is known of an engine on this machine. */
typedef struct pst_io_engine_info {
    size_t struct_size; /* in: sizeof(pst_io_engine_info) of the caller */
    const char *name;
    const char *description; /* one line */
    uint32_t flags;          /* PST_IO_ENGINE_* of io_engine.h */
    bool automatic;          /* "auto" may choose it */
    int status;              /* 0: works here; else the error of opening a queue */
    char why_not[256];       /* in words; empty when it works */
} pst_io_engine_info;

/* The nth engine, best first, built in and registered, tried out by opening a queue. 1: there is one; 0: n is past
 * the last. */
PST_API int pst_io_engine_at(uint32_t n, pst_io_engine_info *out);

/* ---- files ---- */

enum {
    PST_IO_OPEN_READ = 0,
    PST_IO_OPEN_WRITE = 1,
    PST_IO_OPEN_CREATE = 2,
    PST_IO_OPEN_TRUNCATE = 4,
    PST_IO_OPEN_EXCLUSIVE = 8
};

/* Opens a regular file or a block device for direct I/O, or buffered I/O where the file system refuses it (a
 * warning is logged once per file system). New files get mode 0666 less the umask. A file takes one descriptor, and a
 * second one from the transfer on that first needs the page cache: a write that begins or ends off a page, a read that
 * ends off the alignment or is refused. A transfer that cannot have it fails with the reason (-EMFILE).
 * A block device cannot be created, truncated or written beyond its end (-ENOSPC), and opening it for writing is refused
 * (-EBUSY) while it is mounted. */
PST_API int pst_io_file_open(pst_io *io, const char *path, unsigned flags, pst_io_file **out, pst_error *err);
/* The file behind a descriptor, which stays the caller's and may be closed at once. `flags` may ask for
 * PST_IO_OPEN_WRITE, which the descriptor must allow. `name` is for messages; NULL: the path that the system knows. The
 * file is opened again through /proc, so it may be renamed or removed; without /proc or the permission, a duplicate of
 * the descriptor serves, direct or not as it is. */
PST_API int pst_io_file_open_fd(pst_io *io, int fd, unsigned flags, const char *name, pst_io_file **out,
                                pst_error *err);
/* No operation may be in flight. Returns the first error of closing (a delayed write error). */
PST_API int pst_io_file_close(pst_io_file *file, pst_error *err);
PST_API uint64_t pst_io_file_bytes(const pst_io_file *file); /* as of opening */
/* The length now. */
PST_API int pst_io_file_get_bytes(const pst_io_file *file, uint64_t *out, pst_error *err);
PST_API const char *pst_io_file_path(const pst_io_file *file);
PST_API bool pst_io_file_is_direct(const pst_io_file *file);
/* Offsets, lengths and addresses that are multiples of this travel without a bounce. */
PST_API uint32_t pst_io_file_alignment(const pst_io_file *file);
/* Of addresses alone, at most that: memory whose address differs from the file's offset by a multiple of this is bounced at
 * its two ends at most. 1 where transfers go through the page cache. */
PST_API uint32_t pst_io_file_memory_alignment(const pst_io_file *file);
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

/* ---- operations ---- */

/* SYNC (fdatasync), TRUNCATE (to `offset` bytes) and PREALLOCATE (`bytes` from `offset` on) are ordered: one starts
 * when all operations before it in its batch are done, whatever their results, and those after it start when it is
 * done. Reads and writes between two of these have no order. */
typedef enum pst_io_kind { PST_IO_READ, PST_IO_WRITE, PST_IO_SYNC, PST_IO_TRUNCATE, PST_IO_PREALLOCATE } pst_io_kind;

/* A part of a vectored operation's memory. */
typedef struct pst_io_segment {
    void *memory;
    uint64_t bytes;
} pst_io_segment;

/* One operation. A read past the end of the file ends with PST_E_SHORT in `result`, unless `may_be_short`:
 * then it ends with the bytes there were; what the buffer holds beyond them is undefined.
 * Contents that move while they are written, and operations of one batch that overlap, give undefined bytes. */
typedef struct pst_io_op {
    pst_io_file *file;
    uint64_t offset; /* in the file, bytes */
    void *buffer;    /* `bytes` bytes, the caller's until the batch is done; NULL when there are segments */
    uint64_t bytes;
    pst_io_kind kind;
    bool may_be_short;
    uint32_t segment_count;         /* 0: `buffer` */
    const pst_io_segment *segments; /* in file order; their bytes add up to `bytes`; the caller's until the batch is
                                       done */
    int64_t result;                 /* out: bytes transferred (0 for the ordered kinds), or a negative error code */
} pst_io_op;

/* A reusable batch of at most `max_ops` operations; it allocates here and never again for batches within that
 * size. */
PST_API int pst_io_batch_create(pst_io *io, uint32_t max_ops, pst_io_batch **out, pst_error *err);
/* Waits if it is in flight. */
PST_API void pst_io_batch_destroy(pst_io_batch *batch);
/* Submits ops[0..count) at once; the array stays the caller's and must live until the batch is done and nothing more
 * is asked about its failures. The batch must not be in flight. Never blocks on the transfers. Pieces of earlier batches are served first. */
PST_API int pst_io_submit(pst_io_batch *batch, pst_io_op *ops, uint32_t count, pst_error *err);
/* Waits up to timeout_ns (0: polls; UINT64_MAX: for ever). 0: done, every operation succeeded; 1: not done in time;
 * negative: done, and the first failed operation's error with path and offset (ops[].result has each). */
PST_API int pst_io_wait(pst_io_batch *batch, uint64_t timeout_ns, pst_error *err);
/* Waits in the same way for one operation of the batch; its buffer is the caller's again then. */
PST_API int pst_io_wait_op(pst_io_batch *batch, uint32_t op, uint64_t timeout_ns, pst_error *err);
/* Waits until one of several batches of one handle is done. 0: batches[*out_index] is (the first such in the array;
 * a batch that was never submitted counts as done); 1: not in time. Call pst_io_wait for what became of it. */
PST_API int pst_io_wait_any(pst_io_batch *const *batches, uint32_t count, uint64_t timeout_ns, uint32_t *out_index,
                            pst_error *err);
/* The finished operations of a batch in the order in which they finished, each once: 0: *out_op is the next; 1: none
 * in time; PST_E_USAGE: all were handed out. */
PST_API int pst_io_next_done(pst_io_batch *batch, uint64_t timeout_ns, uint32_t *out_op, pst_error *err);
/* The error of one finished operation, with path and offset; 0 if it succeeded. */
PST_API int pst_io_op_error(const pst_io_batch *batch, uint32_t op, pst_error *err);
/* From the next submission on, adds 1 to this eventfd each time the batch becomes done (-1: no more), so that an
 * event loop can wait for it. The descriptor stays the caller's and outlives the batch. */
PST_API int pst_io_batch_notify(pst_io_batch *batch, int event_fd, pst_error *err);
/* Asks for the operations not yet started to be dropped (their result is PST_E_CANCELLED), and for those under way to
 * be cut short where they have pieces that were not started; wait afterwards. Any thread. */
PST_API void pst_io_cancel(pst_io_batch *batch);
PST_API void pst_io_cancel_op(pst_io_batch *batch, uint32_t op);
/* When the last piece of a done batch completed, monotonic clock. */
PST_API uint64_t pst_io_batch_completed_ns(const pst_io_batch *batch);

/* A blocking transfer of one buffer: submit and wait. */
PST_API int pst_io_transfer(pst_io *io, pst_io_op *op, pst_error *err);

/* ---- figures ---- */

typedef struct pst_io_stats {
    uint64_t bytes_read, bytes_written; /* as transferred with the kernel, edges included */
    uint64_t pieces;                    /* I/Os submitted */
    uint64_t bounced_bytes;
    uint64_t continued; /* short transfers that were continued */
    uint64_t busy_ns;   /* wall time with at least one I/O in flight */
} pst_io_stats;
PST_API void pst_io_get_stats(const pst_io *io, pst_io_stats *out);

/* From handing an I/O to the engine until it came back; quantiles are right to about 3 %. */
typedef struct pst_io_latency {
    uint64_t count, min_ns, mean_ns, p50_ns, p90_ns, p99_ns, p999_ns, max_ns;
} pst_io_latency;
/* Zeros unless measure_latency. `reset` starts a new histogram. */
PST_API void pst_io_get_latency(pst_io *io, bool reset, pst_io_latency *out);

#ifdef __cplusplus
}
#endif
#endif
