/* SPDX-License-Identifier: Apache-2.0 */
/* Figures of a cell's repetitions. */
#include <stdlib.h>

#include "base/heap.h"
#include "cmd_bench_io.h"

enum { RESAMPLES = 10000 };

double io_rate(const pst_io_bench_result *result)
{
    return result->seconds > 0 ? (double)result->bytes / result->seconds : 0;
}

double io_pair_ratio(const io_cell *cell, size_t pair)
{
    double fio = cell->fio[pair].bytes_per_second;
    return fio > 0 ? io_rate(&cell->loops[pair]) / fio : 0;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Sorts in place. */
static double median_of(double *values, size_t count)
{
    qsort(values, count, sizeof *values, compare_doubles);
    return count % 2 != 0 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

static uint64_t next_random(uint64_t *state)
{
    uint64_t mixed = *state += UINT64_C(0x9E3779B97F4A7C15);
    mixed = (mixed ^ (mixed >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    mixed = (mixed ^ (mixed >> 27)) * UINT64_C(0x94D049BB133111EB);
    return mixed ^ (mixed >> 31);
}

/* 95 % of the medians of so many pairs drawn from the pairs with replacement lie in it: it asks nothing of how the
 * ratios are distributed, which on shared drives have long tails. A fixed seed: the same pairs, the same interval. */
static void bootstrap(const double *ratios, size_t count, double *low, double *high)
{
    double *medians = pst_heap_reallocarray(NULL, RESAMPLES, sizeof *medians);
    double *drawn = pst_heap_reallocarray(NULL, count, sizeof *drawn);
    uint64_t state = 1;
    *low = *high = 0;
    if (medians != NULL && drawn != NULL) {
        for (size_t r = 0; r < RESAMPLES; r++) {
            for (size_t i = 0; i < count; i++)
                drawn[i] = ratios[next_random(&state) % count];
            medians[r] = median_of(drawn, count);
        }
        qsort(medians, RESAMPLES, sizeof *medians, compare_doubles);
        *low = medians[RESAMPLES / 40];
        *high = medians[RESAMPLES - 1 - RESAMPLES / 40];
    }
    pst_heap_free(drawn);
    pst_heap_free(medians);
}

static double per_gb(double seconds, uint64_t bytes)
{
    return bytes > 0 ? seconds / ((double)bytes / 1e9) : 0;
}

static size_t median_index(const io_cell *cell)
{
    for (size_t i = 0; i < cell->count; i++) {
        size_t below = 0, equal = 0;
        for (size_t k = 0; k < cell->count; k++) {
            below += cell->loops[k].seconds < cell->loops[i].seconds;
            equal += cell->loops[k].seconds == cell->loops[i].seconds;
        }
        size_t middle = (cell->count - 1) / 2;
        if (below <= middle && below + equal > middle)
            return i;
    }
    return 0;
}

void io_summarize(const io_cell *cell, io_summary *out)
{
    io_summary s = {.median_index = median_index(cell), .fio_cpu_per_gb = -1};
    s.median = io_rate(&cell->loops[s.median_index]);
    s.min = s.max = s.median;
    size_t count = cell->count;
    double *values = pst_heap_reallocarray(NULL, count, sizeof *values);
    for (size_t i = 0; i < count; i++) {
        double rate = io_rate(&cell->loops[i]);
        s.min = rate < s.min ? rate : s.min;
        s.max = rate > s.max ? rate : s.max;
    }
    if (values != NULL) {
        for (size_t i = 0; i < count; i++)
            values[i] = per_gb(cell->loops[i].cpu_seconds, cell->loops[i].bytes);
        s.cpu_per_gb = median_of(values, count);
    }
    if (values != NULL && cell->fio != NULL) {
        for (size_t i = 0; i < count; i++)
            values[i] = io_pair_ratio(cell, i);
        bootstrap(values, count, &s.ratio_low, &s.ratio_high);
        s.ratio = median_of(values, count);
        for (size_t i = 0; i < count; i++)
            values[i] = cell->fio[i].bytes_per_second;
        s.fio_median = median_of(values, count);
        for (size_t i = 0; i < count; i++)
            values[i] = per_gb(cell->fio[i].cpu_seconds, cell->fio[i].bytes);
        s.fio_cpu_per_gb = median_of(values, count);
    }
    pst_heap_free(values);
    *out = s;
}
