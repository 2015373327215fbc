/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The search of the best I/O settings, apart from what measures them: it sees a drive only through `measure` and
 * `seconds`, so that tests give it drives whose best settings are known.
 */
#ifndef PST_JOBS_TUNE_SEARCH_H
#define PST_JOBS_TUNE_SEARCH_H

#include "penstock/tune.h"

enum { PST_TUNE_ENGINES = 8 };

typedef struct pst_tune_setting {
    uint32_t engine;     /* of the space's */
    uint64_t block_size; /* times a power of two of the space's smallest */
    uint32_t queue_depth, workers;
    bool single_submit;
} pst_tune_setting;

typedef struct pst_tune_sample {
    double bytes_per_second, cpu_seconds_per_gb;
} pst_tune_sample;

/* What is searched. */
typedef struct pst_tune_space {
    struct {
        const char *name;
        bool synchronous; /* depth 1; its workers are what is in flight */
    } engines[PST_TUNE_ENGINES];
    uint32_t engine_count;
    pst_tune_setting baseline; /* the defaults, where the search begins */
    uint64_t min_block_size, max_block_size, max_bytes_in_flight;
    uint32_t max_depth, max_workers, max_threads; /* max_threads: workers of a synchronous engine */
    bool read, write;
    uint32_t repetitions; /* of every point at least */
    double seconds;
} pst_tune_space;

typedef struct pst_tune_bench {
    void *user;
    /* One transfer. PST_E_CANCELLED ends the search with this error; after any other failure the setting counts as one
     * that does not work. */
    int (*measure)(void *user, const pst_tune_setting *setting, bool write, pst_tune_sample *out, pst_error *err);
    double (*seconds)(void *user); /* since the tuning began */
    pst_tune_on_point on_point;    /* may be NULL */
    void *on_point_user;
} pst_tune_bench;

/* Fills best, baseline, points, measurements and finished of *out. Fails when cancelled, or with the first error when no
 * setting works. */
int pst_tune_search(const pst_tune_space *space, const pst_tune_bench *bench, pst_tune_report *out, pst_error *err);

#endif
