/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The parts of `penstock bench save` and `penstock bench load`. A side is what saves or loads: this library, fio as the
 * drive's ceiling, another library. A round is one size of checkpoint; it has a cell for each side, which keeps every
 * repetition.
 */
#ifndef PENSTOCK_CLI_CMD_BENCH_CKPT_H
#define PENSTOCK_CLI_CMD_BENCH_CKPT_H

#include "common.h"
#include "penstock/ckpt.h"

enum { CKPT_SIZES_MAX = 16 };

typedef enum ckpt_side { CKPT_PENSTOCK, CKPT_FIO, CKPT_TORCH, CKPT_SAFETENSORS, CKPT_DEEPSPEED, CKPT_SIDES } ckpt_side;

typedef struct ckpt_values {
    cli_report report;
    cli_io_options io;
    const char *sizes, *format, *from, *against, *python, *drivers, *plot;
    uint64_t tensors, ring, loops, warmup_loops, ranks, seed;
    bool no_digests, verify, small_pages;
} ckpt_values;

/* Tensors with their data, in memory that every page of has been written. */
typedef struct ckpt_set {
    pst_ckpt_tensor *tensors;
    char (*names)[48];
    uint64_t (*shapes)[8];
    pst_ckpt *like; /* whose names and shapes they have; NULL: their own */
    size_t count;
    void *memory;
    uint64_t bytes, mapped_bytes;
} ckpt_set;

/* Where a checkpoint is loaded to: memory of every tensor, made once. */
typedef struct ckpt_target {
    pst_ckpt_read_op *ops;
    size_t count;
    void *memory;
    uint64_t bytes, mapped_bytes; /* of tensors; with what lies between them */
    char file[4096];              /* the one file that it is; "": several */
} ckpt_target;

typedef struct ckpt_run {
    uint64_t bytes;
    double seconds, cpu_seconds;
} ckpt_run;

typedef struct ckpt_cell {
    ckpt_side side;
    ckpt_run *runs;
    size_t count;
    char how[64]; /* fio's choice, the other library's version */
} ckpt_cell;

typedef struct ckpt_round {
    uint64_t bytes; /* of tensors */
    size_t tensors;
    ckpt_cell cells[CKPT_SIDES];
    size_t cell_count;
    pst_ckpt_report report; /* of this library's last run */
} ckpt_round;

typedef struct ckpt_job {
    const ckpt_values *values;
    bool load;
    const char *place; /* DIR, or what is loaded */
    bool given;        /* that is a checkpoint, and none is made */
    pst_ckpt_format format;
    ckpt_side sides[CKPT_SIDES];
    size_t side_count;
    uint64_t sizes[CKPT_SIZES_MAX];
    size_t size_count;
    ckpt_round *rounds; /* by size */
    char folder[4096];  /* where files are made; "": none is */
    char table[4200];   /* of names, types and shapes, for the other libraries */
    cli_io_choice io;
    int fio_choice;
    bool fio_direct;
    char fio_version[64];
} ckpt_job;

extern const char *const ckpt_side_names[CKPT_SIDES];

/* cmd_bench_ckpt.c: what both commands share */
enum { CKPT_WORK_ROWS = 6, CKPT_REPORT_ROWS = 4 };
extern const pst_option ckpt_work_rows[CKPT_WORK_ROWS], ckpt_report_rows[CKPT_REPORT_ROWS];
/* The whole measurement, report included. */
int ckpt_measure(ckpt_job *job, pst_error *err);

/* cmd_bench_ckpt_set.c */
/* values->tensors of them, so many bytes in all; or as those of values->from. *out: ckpt_set_free, also on failure. */
int ckpt_set_make(const ckpt_values *values, uint64_t bytes, ckpt_set *out, pst_error *err);
void ckpt_set_free(ckpt_set *set);
/* Names, types and shapes as JSON for the other libraries. */
int ckpt_set_describe(const ckpt_set *set, const char *path, pst_error *err);

/* cmd_bench_ckpt_load.c */
/* *out: ckpt_target_free, also on failure. */
int ckpt_target_make(const ckpt_job *job, const char *path, ckpt_target *out, pst_error *err);
void ckpt_target_free(ckpt_target *target);
/* Opens and reads all of it. */
int ckpt_load_once(const ckpt_job *job, const char *path, const ckpt_target *target, pst_error *err);
/* Whether there is a checkpoint, and of which format. */
int ckpt_find_format(const char *path, pst_ckpt_format *out, pst_error *err);

/* cmd_bench_ckpt_peers.c */
int ckpt_fio_find(ckpt_job *job, pst_error *err);
/* Tries ways to write (or read) `bytes` bytes of a file and keeps the fastest. */
int ckpt_fio_choose(ckpt_job *job, const char *path, uint64_t bytes, pst_error *err);
int ckpt_fio_run(const ckpt_job *job, const char *path, uint64_t bytes, ckpt_cell *cell, ckpt_run *out, pst_error *err);
/* Whether the other library is there; its version goes to cell->how. */
int ckpt_peer_check(const ckpt_job *job, ckpt_cell *cell, pst_error *err);
int ckpt_peer_run(const ckpt_job *job, const char *path, ckpt_cell *cell, ckpt_run *out, pst_error *err);

/* cmd_bench_ckpt_ranks.c */
/* One save by so many processes, of which this one is rank 0. */
int ckpt_save_ranks(pst_ckpt_options *options, const ckpt_set *set, uint32_t ranks, pst_ckpt_report *report,
                    pst_error *err);

/* cmd_bench_ckpt_report.c */
int ckpt_print_report(const ckpt_job *job, pst_error *err);
int ckpt_plot(const ckpt_job *job, pst_error *err);

#endif
