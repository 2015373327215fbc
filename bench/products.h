/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What benchmarks of matrix products share: their options, memory, the timing of two sides in turns, and figures as JSON.
 * A mistake or a failure ends the program.
 */
#ifndef PENSTOCK_BENCH_PRODUCTS_H
#define PENSTOCK_BENCH_PRODUCTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "device/device.h"

enum { BENCH_MAX_REPEAT = 101 };

typedef struct bench_settings {
    size_t rows[16], row_count, columns, k, threads, repeat, weights, milliseconds;
    const char *kernels;
    pst_dtype x_type;
} bench_settings;
#define BENCH_DEFAULTS                                                                                                 \
    {                                                                                                                  \
        .rows = {1, 8, 64, 256}, .row_count = 4, .columns = 4096, .k = 4096, .threads = 1, .repeat = 7, .weights = 1,  \
        .milliseconds = 60, .x_type = PST_BF16                                                                         \
    }

void bench_must(bool ok, const char *what);
void *bench_map(size_t bytes);

/* Takes --rows, --columns, --k, --threads, --repeat, --weights, --milliseconds, --kernels and --x-type. False: another. */
bool bench_option(bench_settings *s, const char *name, const char *value);
pst_dtype bench_type(const char *text); /* "bf16", "f16", "f32" */
void bench_check(const bench_settings *s);

/* Seconds per product of one side, over as many as fit the time. turn: the matrix that is next, of s->weights. */
double bench_time(const bench_settings *s, size_t *turn, void (*product)(void *user, size_t weight), void *user);

/* Both sides take turns in every repetition, the order alternating: seconds, and the others' over mine. others: NULL, or
 * measures the other side. The arrays have BENCH_MAX_REPEAT elements. */
typedef double bench_side(void *user);
void bench_take_turns(const bench_settings *s, bench_side *mine, void *mine_user, bench_side *others, void *others_user,
                      double *mine_seconds, double *others_seconds, double *ratios);

double bench_median(const double *values, size_t count); /* of at most BENCH_MAX_REPEAT */
/* , "name": {"seconds": [...], "median_seconds": ...; the caller goes on. Returns the median. */
double bench_print_seconds(const char *name, const bench_settings *s, const double *seconds);

#endif
