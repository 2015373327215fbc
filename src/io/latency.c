/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The histogram of latencies: buckets that are 1/32 of a power of two wide, so that the middle of a bucket is within
 * 1.6 % of everything in it, from a nanosecond to centuries, in 15 KiB.
 */
#include <string.h>

#include "io/internal.h"

static uint32_t bucket_of(uint64_t ns)
{
    enum { SUB = 1 << PST_IO_SUB_BITS };
    if (ns < SUB)
        return (uint32_t)ns;
    uint32_t shift = 63 - (uint32_t)__builtin_clzll(ns) - PST_IO_SUB_BITS;
    return (shift << PST_IO_SUB_BITS) + (uint32_t)(ns >> shift); /* the shifted value is SUB to 2 * SUB - 1 */
}

/* The middle of a bucket. */
static uint64_t value_of(uint32_t bucket)
{
    enum { SUB = 1 << PST_IO_SUB_BITS };
    if (bucket < 2 * SUB)
        return bucket;
    uint32_t shift = bucket / SUB - 1;
    uint64_t low = (uint64_t)(bucket % SUB + SUB) << shift;
    return low + ((1ull << shift) - 1) / 2;
}

void pst_io_histogram_add(pst_io_histogram *h, uint64_t ns)
{
    if (h->count == 0 || ns < h->min_ns)
        h->min_ns = ns;
    if (ns > h->max_ns)
        h->max_ns = ns;
    h->count++;
    h->sum_ns += ns;
    h->buckets[bucket_of(ns)]++;
}

/* The smallest value that at least `thousandths` of all do not exceed. */
static uint64_t quantile(const pst_io_histogram *h, uint32_t thousandths)
{
    uint64_t rank = h->count / 1000 * thousandths + (h->count % 1000 * thousandths + 999) / 1000, seen = 0;
    for (uint32_t i = 0; i < PST_IO_BUCKETS; i++) {
        seen += h->buckets[i];
        if (seen >= rank && seen > 0) {
            uint64_t value = value_of(i);
            return value < h->min_ns ? h->min_ns : value > h->max_ns ? h->max_ns : value;
        }
    }
    return h->max_ns;
}

void pst_io_get_latency(pst_io *io, bool reset, pst_io_latency *out)
{
    *out = (pst_io_latency){0};
    if (io->histogram == NULL)
        return;
    pthread_mutex_lock(&io->lock);
    pst_io_histogram *h = io->histogram;
    if (h->count > 0)
        *out = (pst_io_latency){.count = h->count,
                                .min_ns = h->min_ns,
                                .mean_ns = h->sum_ns / h->count,
                                .p50_ns = quantile(h, 500),
                                .p90_ns = quantile(h, 900),
                                .p99_ns = quantile(h, 990),
                                .p999_ns = quantile(h, 999),
                                .max_ns = h->max_ns};
    if (reset)
        memset(h, 0, sizeof *h);
    pthread_mutex_unlock(&io->lock);
}
