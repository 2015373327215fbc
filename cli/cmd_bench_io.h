/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The parts of `penstock bench io`. A configuration is one choice of every setting that may be a list; a cell is one
 * configuration read or written; it keeps each repetition, and fio's beside it where they are compared.
 */
#ifndef PENSTOCK_CLI_CMD_BENCH_IO_H
#define PENSTOCK_CLI_CMD_BENCH_IO_H

#include "common.h"
#include "io_options.h"
#include "penstock/bench_io.h"

enum { IO_LIST_MAX = 32, IO_CELLS_MAX = 4096 };

typedef struct io_values {
    cli_report report;
    pst_option_strings folders, mappings;
    bool read, write;
    const char *io_size, *buffer_size, *block_size, *queue_depth, *io_engine;
    const char *workers, *intra_op_parallelism, *io_parallel;
    uint64_t multi_process, transfers, loops, warmup_loops, pairs, seed;
    bool single_submit, overlap_events, no_overlap_events, sequential_requests, different_file, validate, sync;
    bool unlocked, buffered, stripe, list_engines, gpu, use_gds;
    const char *plot, *against, *fio_setting, *io_profile, *ds_engine;
} io_values;

/* A setting's values; 0 is the default. */
typedef struct io_list {
    uint64_t items[IO_LIST_MAX];
    size_t count;
} io_list;

typedef struct io_config {
    const char *engine;
    uint64_t io_size, block_size, queue_depth, workers, buffer_size; /* as asked for; 0: default */
    pst_io_bench_info info;                                          /* as it is */
    char engine_name[32];
    char engine_text[PST_TUNE_ENGINE_BYTES]; /* of the profile */
    bool from_profile;
    bool chosen; /* io is filled in: what is asked for, profile included */
    bool known;  /* info is filled in */
    pst_io_options io;
} io_config;

/* One run of fio. */
typedef struct io_fio_run {
    uint64_t bytes;
    double seconds, bytes_per_second;
    double cpu_seconds;         /* of its jobs while they ran, as it reports them */
    double process_cpu_seconds; /* of the whole process, its start and end included */
    uint64_t p50_ns, p99_ns;    /* completion latency of single I/Os; 0: not reported */
} io_fio_run;

enum { IO_FIO_VARIANTS = 8 };

typedef struct io_cell {
    io_config *config;
    pst_io_kind op;
    size_t count; /* of repetitions */
    pst_io_bench_result *loops;
    io_fio_run *fio; /* NULL: no comparison */
    bool *fio_first;
    int variant;                   /* of fio, the fastest */
    double tried[IO_FIO_VARIANTS]; /* bytes/s of each in the warm-up; 0: not tried, or it does not work here */
} io_cell;

typedef struct io_job {
    const io_values *values;
    char **folders;
    uint32_t folder_count;
    uint64_t transfers; /* of each process */
    io_config *configs;
    size_t config_count;
    io_cell *cells;
    size_t cell_count;
    size_t loops, warmup_loops;
    pst_io_bench *bench;
    const io_config *current; /* what the bench is set to */
    uint64_t done_bytes;      /* of all repetitions, for the progress */
    char fio[1024];           /* its path; empty: no comparison */
    char fio_version[64];
} io_job;

/* cmd_bench_io_lists.c */
/* "256K,1M": sizes, whose K, M and G are powers of 1024 here. `option` is for messages. */
int io_parse_sizes(const char *option, const char *text, uint64_t min, uint64_t max, uint64_t multiple, io_list *out,
                   pst_error *err);
int io_parse_counts(const char *option, const char *text, uint64_t max, io_list *out, pst_error *err);
/* "256Ki", "1Gi" where it comes out even, else "1.50 GB". */
char *io_size_text(uint64_t bytes, char *text, size_t text_bytes);

/* cmd_bench_io_engines.c */
/* 0 when the name is "auto" or one of the engines there are. `validate`: it must move data. */
int io_check_engine(const char *name, bool validate, pst_error *err);
int io_list_engines(const io_values *values, const char *path, pst_error *err);

/* cmd_bench_io_fio.c */
int io_fio_find(io_job *job, pst_error *err);
/* Whether the settings can be compared at all. */
int io_fio_check(const io_job *job, pst_error *err);
/* Tries fio's engines on this cell's files and keeps the fastest. */
int io_fio_choose(io_job *job, io_cell *cell, pst_error *err);
int io_fio_run_once(const io_job *job, const io_cell *cell, io_fio_run *out, pst_error *err);
const char *io_fio_variant_name(int variant);

/* cmd_bench_io_report.c */
int io_print_report(const io_job *job, pst_error *err);

/* cmd_bench_io_plot.c */
int io_plot_write(const io_job *job, const char *path, pst_error *err);

/* cmd_bench_io_stats.c */
typedef struct io_summary {
    double median, min, max;             /* bytes per second */
    size_t median_index;                 /* the repetition whose time is the median (the lower middle) */
    double ratio, ratio_low, ratio_high; /* ours to fio's, medians of the pairs; 95 % interval */
    double cpu_per_gb, fio_cpu_per_gb;   /* processor seconds per 10^9 bytes, medians; negative: unknown */
    double fio_median;
} io_summary;
void io_summarize(const io_cell *cell, io_summary *out);
double io_pair_ratio(const io_cell *cell, size_t pair);
double io_rate(const pst_io_bench_result *result); /* bytes per second */

static inline const char *io_op_name(pst_io_kind op)
{
    return op == PST_IO_READ ? "read" : "write";
}

#endif
