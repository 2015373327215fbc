/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The parts of a bench: the plan says what there is (files, processes) and does not change; a worker, one per process,
 * owns handle, open files and memory and carries out repetitions. With one process the worker lives in the caller's;
 * with more, each in a forked child that is given orders over a socket.
 *
 * A repetition has three steps, so that nothing but the transfers is timed and the steps of several processes do not
 * disturb each other: prepare (contents, operations), go, check.
 */
#ifndef PST_JOBS_BENCH_IO_INTERNAL_H
#define PST_JOBS_BENCH_IO_INTERNAL_H

#include "os/process.h"
#include "penstock/bench_io.h"
#include "penstock/io_pool.h"

enum { PST_BENCH_NAME_BYTES = 64, PST_BENCH_TICK_MS = 100 };

/* Where one transfer goes. */
typedef struct pst_bench_target {
    char *path;      /* of the file, or its name in the stripe set; owned */
    uint64_t offset; /* where the transfer begins */
    bool own;        /* made by this bench, so it may be written and will be removed */
    bool made;       /* the file is there */
} pst_bench_target;

typedef struct pst_bench_plan {
    pst_io_bench_options options; /* defaults filled in; folders are those of the plan */
    char **folders;               /* owned; for a stripe set the members, folders of the bench's own */
    uint32_t folders_made;        /* so many of them, for a stripe set */
    char *removal_path;           /* room for the path of anything in them, so that removal needs no memory */
    size_t removal_bytes;
    uint32_t files_per_transfer;
    pst_bench_target *targets; /* [process][file][transfer] */
    size_t target_count;
    bool writable;
} pst_bench_plan;

/* What a change changes. It is sent to children as it is: pointers in it are valid in them because they were forked
 * later than what they point to was made, but for the engine's name, which comes along. */
typedef struct pst_bench_settings {
    pst_io_options io; /* io.engine is set by the receiver */
    char engine[PST_BENCH_NAME_BYTES];
    uint64_t io_size, buffer_bytes;
} pst_bench_settings;

/* What a worker tells of itself. io.engine is set by the receiver. */
typedef struct pst_bench_about {
    pst_io_options io;
    char engine[PST_BENCH_NAME_BYTES];
    bool direct;
    uint32_t alignment;
    uint64_t memory_bytes, locked_bytes, huge_bytes, registered_bytes;
} pst_bench_about;

typedef struct pst_bench_figures {
    uint64_t begin_ns, end_ns; /* monotonic clock, which is one for all processes */
    double cpu_seconds;
    pst_io_latency latency;
} pst_bench_figures;

typedef struct pst_bench_worker pst_bench_worker;

/* bench_io_worker.c. A worker in a child has no progress callback. */
int pst_bench_worker_open(const pst_bench_plan *plan, uint32_t process, bool reports, pst_bench_worker **out,
                          pst_error *err);
int pst_bench_worker_change(pst_bench_worker *worker, const pst_bench_settings *settings, pst_error *err);
void pst_bench_worker_get_about(const pst_bench_worker *worker, pst_bench_about *out);
int pst_bench_worker_prepare(pst_bench_worker *worker, pst_io_kind op, pst_error *err);
int pst_bench_worker_go(pst_bench_worker *worker, pst_bench_figures *out, pst_error *err);
int pst_bench_worker_check(pst_bench_worker *worker, pst_error *err);
int pst_bench_worker_fill(pst_bench_worker *worker, pst_error *err);
void pst_bench_worker_close(pst_bench_worker *worker);

/* bench_io_contents.c: pseudo-random bytes that any part of can be made again. */
uint64_t pst_bench_key(uint64_t seed, uint64_t stream, uint64_t generation);
void pst_bench_contents(uint64_t key, void *memory, uint64_t bytes);
/* The offset of the first byte that differs from the contents; `bytes` when none does. */
uint64_t pst_bench_compare(uint64_t key, const void *memory, uint64_t bytes);

/* bench_io_files.c */
/* Names and makes the files; on failure the plan is released all the same. */
int pst_bench_plan_make(const pst_io_bench_options *options, pst_bench_plan *plan, pst_error *err);
/* Removes them. Accepts a plan that is half made. */
void pst_bench_plan_release(pst_bench_plan *plan);

/* bench_io_process.c: the children of a bench with several processes. */
typedef struct pst_bench_crew pst_bench_crew;
int pst_bench_crew_start(const pst_bench_plan *plan, pst_bench_crew **out, pst_error *err);
int pst_bench_crew_change(pst_bench_crew *crew, const pst_bench_settings *settings, pst_error *err);
int pst_bench_crew_run(pst_bench_crew *crew, pst_io_kind op, pst_io_bench_result *out, pst_error *err);
int pst_bench_crew_fill(pst_bench_crew *crew, pst_error *err);
/* Of all processes together. */
void pst_bench_crew_get_about(const pst_bench_crew *crew, pst_bench_about *out);
void pst_bench_crew_stop(pst_bench_crew *crew);

#endif
