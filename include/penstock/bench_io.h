/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Measures reading and writing of files as this library does it. What `penstock bench io` is made of, and what
 * `penstock tune` measures with.
 *
 * A repetition moves io_size bytes per transfer, `transfers` of them in each of `processes` processes. Its time runs
 * from the first submission to the last completion (with `sync`, until everything is durable); making files, filling
 * memory and comparing are outside of it, and so is their processor time.
 *
 * Threads: one at a time. With processes > 1 pst_io_bench_open forks, so the caller should have no other threads then
 * that could hold a lock of the C library's.
 */
#ifndef PENSTOCK_BENCH_IO_H
#define PENSTOCK_BENCH_IO_H

#include "penstock/io.h"
#include "penstock/jobs.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { PST_IO_BENCH_MAX_PROCESSES = 256, PST_IO_BENCH_MAX_TRANSFERS = 4096 };

typedef struct pst_io_bench pst_io_bench; /* prepared files and buffers */

/* Zero means the default of every field. */
typedef struct pst_io_bench_options {
    size_t struct_size;         /* sizeof(pst_io_bench_options) of the caller */
    const char *const *folders; /* where the files are made (and removed again); required; several: the files are
                                   spread over them; a block device or an existing file is read, never written */
    uint32_t folder_count;
    bool stripe;        /* the folders are members of one stripe set, and every file lies in all of them */
    uint64_t io_size;   /* bytes of one transfer, one file each; default 1 GiB (of what is only read: its
                                  size, if that is less) */
    pst_io_options io;  /* engine, block size, queue depth, workers, single submit, overlap, ... */
    uint32_t processes; /* default 1: this one; more: each with its own handle, files and buffers */
    uint32_t loops;     /* repetitions of each kind that will be asked for, default 3, and those before them
                                  that do not count, default none: so many files different_file_each_loop takes */
    uint32_t warmup_loops;
    bool sequential_requests;      /* the transfers of a process one after the other, not all at once */
    uint32_t transfers;            /* transfers of io_size in each process; default 1 */
    bool different_file_each_loop; /* repetition n of reading and of writing takes file n mod (loops + warmup_loops) */
    bool validate; /* compare what is read with what was written, and read back what is written; untimed */
    bool sync;     /* a write is not done before it is durable (fdatasync, timed) */
    bool unlocked; /* plain memory: neither locked nor registered with the engine */
    pst_on_progress on_progress; /* of the step under way: one repetition, or making its files */
    void *user;
    uint64_t buffer_bytes; /* memory of one transfer; default io_size; less: the transfer goes through it again and
                              again (not with validate), as it does in tools that own no more than a queue of blocks */
    uint64_t seed;         /* of the files' contents, which are pseudo-random: no drive can compress them */
} pst_io_bench_options;

typedef struct pst_io_bench_result {
    pst_io_kind op;
    uint64_t bytes;         /* moved in one repetition by all processes */
    double seconds;         /* of the repetition: from the first process's begin to the last one's end */
    double cpu_seconds;     /* user and system, all threads and processes, of the repetition */
    double slowest_seconds; /* of the slowest process by itself */
    pst_io_latency latency; /* of single I/Os; of several processes: quantiles are those of the worst process */
} pst_io_bench_result;

/* What is really in use. */
typedef struct pst_io_bench_info {
    pst_io_options io; /* defaults filled in; io.engine is the bench's storage */
    uint64_t io_size, buffer_bytes;
    uint32_t processes, transfers;
    bool direct;        /* every file is read and written past the page cache */
    bool writable;      /* false: among the targets is one that is only read */
    uint32_t alignment; /* the largest of the files */
    uint64_t memory_bytes, locked_bytes, huge_bytes, registered_bytes; /* buffers of all processes */
} pst_io_bench_info;

/* Checks space and memory (-ENOSPC and -ENOMEM say how much is wanted), makes the files, with unpredictable names, and
 * gets the buffers. A file gets its contents when it is read or written first. */
PST_API int pst_io_bench_open(const pst_io_bench_options *options, pst_io_bench **out, pst_error *err);
/* Other settings on the same files and memory, for measuring several in turn: of `options`, io, io_size and
 * buffer_bytes count, and neither size may be larger than at opening. When it fails, the bench can only be closed or
 * changed again. */
PST_API int pst_io_bench_change(pst_io_bench *bench, const pst_io_bench_options *options, pst_error *err);
/* One repetition of reading or writing (PST_IO_READ, PST_IO_WRITE). */
PST_API int pst_io_bench_run(pst_io_bench *bench, pst_io_kind op, pst_io_bench_result *out, pst_error *err);
/* Writes contents into the files where there are none yet, so that another program may read them. */
PST_API int pst_io_bench_fill(pst_io_bench *bench, pst_error *err);
/* The settings that are really in use (engine chosen, defaults filled in). */
PST_API void pst_io_bench_get_settings(const pst_io_bench *bench, pst_io_options *out);
PST_API void pst_io_bench_get_info(const pst_io_bench *bench, pst_io_bench_info *out);
/* The file of process n / transfers and its transfer n % transfers, and where in it the transfer begins; NULL past the
 * last, and for a striped file. The bench's storage. */
PST_API const char *pst_io_bench_path(const pst_io_bench *bench, uint32_t n, uint64_t *out_offset);
/* Removes the files. */
PST_API void pst_io_bench_close(pst_io_bench *bench);

#ifdef __cplusplus
}
#endif
#endif
