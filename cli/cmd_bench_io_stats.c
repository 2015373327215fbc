/* SPDX-License-Identifier: Apache-2.0 */
/* Figures of a cell's repetitions. */

#include "base/heap.h"
#include "base/number.h"
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
                drawn[i] = ratios[pst_random_next(&state) % count];
            medians[r] = pst_median(drawn, count);
        }
        pst_sort(medians, RESAMPLES);
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
        s.cpu_per_gb = pst_median(values, count);
    }
    if (values != NULL && cell->fio != NULL) {
        for (size_t i = 0; i < count; i++)
            values[i] = io_pair_ratio(cell, i);
        bootstrap(values, count, &s.ratio_low, &s.ratio_high);
        s.ratio = pst_median(values, count);
        for (size_t i = 0; i < count; i++)
            values[i] = cell->fio[i].bytes_per_second;
        s.fio_median = pst_median(values, count);
        for (size_t i = 0; i < count; i++)
            values[i] = per_gb(cell->fio[i].cpu_seconds, cell->fio[i].bytes);
        s.fio_cpu_per_gb = pst_median(values, count);
    }
    pst_heap_free(values);
    *out = s;
}
