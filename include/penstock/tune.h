/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The best I/O settings of a drive: found by measuring, kept in a small file, used by every command.
 */
#ifndef PENSTOCK_TUNE_H
#define PENSTOCK_TUNE_H

#include "penstock/io.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- finding them ---- */

/* One measured point of the search. */
typedef struct pst_tune_point {
    char engine[32];
    uint64_t block_size;
    uint32_t queue_depth, workers; /* per worker; an engine that carries out one I/O per thread has depth 1 */
    bool single_submit;
    double read_bytes_per_second, write_bytes_per_second; /* medians; 0: not measured */
    double read_spread, write_spread;                     /* (max - min) / median over the repetitions */
    double cpu_seconds_per_gb;                            /* of 10^9 bytes; reading and writing together */
    uint32_t repetitions;
} pst_tune_point;

/* Called after each measurement of a point, first with repetitions 1; nonzero cancels (PST_E_CANCELLED, no file left
 * behind). */
typedef int (*pst_tune_on_point)(void *user, const pst_tune_point *point);

/* Zero means the default of every field. */
typedef struct pst_tune_options {
    size_t struct_size;
    const char *const *folders; /* of the drive (several: tuned as they are used together); required */
    uint32_t folder_count;
    uint64_t io_size;     /* of one measured transfer; default: what the drive moves in about 0.25 s, 16 MiB to 4 GiB */
    double seconds;       /* time limit of the search; default 60 */
    uint32_t repetitions; /* measurements of every point at least; default 1, and more of those that matter */
    bool no_read, no_write;
    pst_tune_on_point on_point;
    int (*cancelled)(void *user); /* asked several times a second, also while the test file is written; may be NULL */
    void *user;
} pst_tune_options;

typedef struct pst_tune_report {
    pst_tune_point best, baseline; /* baseline: the defaults, measured in turn with the best */
    uint32_t points, measurements; /* a measurement reads and writes io_size once */
    uint64_t io_size, file_bytes;  /* of all test files together */
    double seconds;
    bool direct;   /* false: direct I/O does not work there, so that the page cache was measured */
    bool finished; /* false: the time limit ended the search */
} pst_tune_report;

/* Searches engine, block size, queue depth, workers and single submit by turns from the defaults on, doubling and
 * halving as long as it helps, measuring again what cannot be told from noise. Among the settings within about 2 % of
 * the best, the cheapest is chosen: fewer workers, a smaller depth, less processor time. Writes one file per folder,
 * whose name is gone before it is written. */
PST_API int pst_tune(const pst_tune_options *options, pst_tune_report *out, pst_error *err);

/* ---- keeping them ---- */

enum { PST_TUNE_DRIVE_BYTES = 256, PST_TUNE_ENGINE_BYTES = 32 };

/* The drive that holds a path (which need not exist yet), as the profile file knows it: the same for every path on it,
 * the same after a reboot. "nvme:<model>:<serial>", "disk:<wwid>", "disk:<serial or name>:<bytes>",
 * "loop:<backing file>", "md:" or "dm:" with the ids of an array's or a volume's drives, "fs:<type>:<source>" for what
 * is on no block device. Several paths: the ids, each once, sorted, joined by " + ".
 * out: PST_TUNE_DRIVE_BYTES. */
PST_API int pst_tune_drive_id(const char *const *paths, uint32_t count, char *out, size_t out_bytes, pst_error *err);

/* Writes the entry of the drive (or drives) into the profile file: JSON, mode 0600, published durably; other entries
 * stay, also when several processes save at once (they take turns by a lock on <profile>.lock). Missing folders are
 * made with mode 0700. A damaged file is an error and stays as it is. */
PST_API int pst_tune_save(const char *profile, const char *const *folders, uint32_t folder_count,
                          const pst_tune_report *report, pst_error *err);

/* 1: there is a profile file that can be read; 0: there is none; else what is wrong with it. */
PST_API int pst_tune_check_profile(const char *profile, pst_error *err);

/* Fills those of engine, block_size, queue_depth, workers and single_submit in `io` that are zero (an engine "auto"
 * counts as zero) from the entry of the drive (or drives) that hold `paths`. 1: done; 0: there is no profile file, no
 * entry, or one whose engine does not work here or is another than `io` names (its other settings would not fit).
 * A damaged file is an error. engine_text: PST_TUNE_ENGINE_BYTES that io->engine may point to afterwards; the caller's. */
PST_API int pst_tune_apply(const char *profile, const char *const *paths, uint32_t count, pst_io_options *io,
                           char *engine_text, size_t engine_text_bytes, pst_error *err);

/* A DeepSpeed `aio` section with these settings, as JSON text: {"aio": {block_size, queue_depth, intra_op_parallelism,
 * single_submit, overlap_events, use_gds}}. An engine with one I/O per thread becomes a queue that deep. Bytes written or
 * needed, as snprintf. */
PST_API int pst_tune_deepspeed(const pst_tune_point *point, char *out, size_t out_bytes);

#ifdef __cplusplus
}
#endif
#endif
