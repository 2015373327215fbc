/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Choosing a token the plain way: all weights computed and sorted, sums one after the other. And the way of infer/sample.h, with
 * the largest logits found by sorting.
 */
#ifndef TESTS_SUPPORT_SAMPLING_H
#define TESTS_SUPPORT_SAMPLING_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "infer/sample.h"

static inline int sampling_falling(const void *a, const void *b)
{
    const pst_candidate *x = a, *y = b;
    if (x->value != y->value)
        return x->value < y->value ? 1 : -1;
    return x->id < y->id ? -1 : x->id > y->id;
}

static inline uint32_t sampling_cut_tail(const pst_candidate *candidates, uint32_t count, double total,
                                         const pst_sampling *sampling)
{
    uint32_t kept = count;
    if (sampling->top_p > 0 && sampling->top_p < 1) {
        double sum = 0;
        for (kept = 0; kept < count && (kept == 0 || sum < sampling->top_p * total); kept++)
            sum += candidates[kept].value;
    }
    if (sampling->min_p > 0)
        while (kept > 1 && candidates[kept - 1].value < sampling->min_p * candidates[0].value)
            kept--;
    return kept;
}

/* scratch: vocab records. */
static inline uint32_t sampling_plain(const float *logits, uint32_t vocab, const pst_sampling *sampling,
                                      uint64_t random, pst_candidate *scratch)
{
    uint32_t best = 0, count = 0;
    for (uint32_t i = 1; i < vocab; i++)
        if (logits[i] > logits[best])
            best = i;
    if (sampling->temperature <= 0)
        return best;
    for (uint32_t i = 0; i < vocab; i++) {
        double distance = ((double)logits[i] - logits[best]) / sampling->temperature;
        if (distance > -40 || i == best)
            scratch[count++] = (pst_candidate){(float)exp(distance), i};
    }
    qsort(scratch, count, sizeof *scratch, sampling_falling);
    if (sampling->top_k > 0 && count > sampling->top_k)
        count = sampling->top_k;
    double total = 0;
    for (uint32_t i = 0; i < count; i++)
        total += scratch[i].value;
    count = sampling_cut_tail(scratch, count, total, sampling);
    total = 0;
    for (uint32_t i = 0; i < count; i++)
        total += scratch[i].value;
    double target = (double)(random >> 11) * 0x1p-53 * total, sum = 0;
    for (uint32_t i = 0; i < count; i++) {
        sum += scratch[i].value;
        if (target < sum)
            return scratch[i].id;
    }
    return scratch[count - 1].id;
}

/* From the largest logits and their sum, which is made wrong by as much as a device's may be (`wrong`: -1 to 1). False: they
 * are not enough. scratch: vocab records; values, ids: PST_TOP_MOST. */
static inline bool sampling_from_top(const float *logits, uint32_t vocab, const pst_sampling *sampling, uint64_t random,
                                     double wrong, pst_candidate *scratch, float *values, uint32_t *ids, uint32_t *out)
{
    static pst_sample_scratch memory;
    double factor = 1, sum = 0;
    const uint32_t needed = pst_sample_needs(sampling, vocab);
    if (needed == 0)
        return false;
    for (uint32_t i = 0; i < vocab; i++)
        scratch[i] = (pst_candidate){logits[i], i};
    qsort(scratch, vocab, sizeof *scratch, sampling_falling);
    for (uint32_t i = 0; i < needed; i++) {
        values[i] = scratch[i].value;
        ids[i] = scratch[i].id;
    }
    if (pst_sample_needs_sum(sampling, &factor))
        for (uint32_t i = 0; i < vocab; i++)
            sum += exp(((double)logits[i] - values[0]) * factor);
    return pst_sample_top(values, ids, values[0] * factor + log(sum * (1 + wrong * 0x1p-24)), vocab, sampling, random,
                          &memory, out);
}

/* From all logits, of which a copy is made. */
static inline uint32_t sampling_from_all(const float *logits, uint32_t vocab, const pst_sampling *sampling,
                                         uint64_t random, float *copy)
{
    static pst_sample_scratch memory;
    memcpy(copy, logits, vocab * sizeof *copy);
    return pst_sample_all(copy, vocab, sampling, random, &memory);
}

#endif
