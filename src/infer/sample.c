/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Choosing a token from logits: greedy, or temperature, then top-k, top-p and min-p in this order, each on what the one
 * before left (as transformers chains its logits processors). Ties are broken by the lower id, so that the choice depends
 * on nothing but the logits.
 */
#include <math.h>
#include <stdlib.h>

#include "base/number.h"
#include "infer/internal.h"

uint64_t pst_random(uint64_t seed, uint64_t n)
{
    return pst_mix(seed + (n + 1) * PST_RANDOM_STEP);
}

bool pst_logits_are_usable(const float *logits, uint32_t vocab)
{
    bool any = false;
    for (uint32_t i = 0; i < vocab; i++) {
        if (isnan(logits[i]) || logits[i] == INFINITY)
            return false;
        any |= isfinite(logits[i]);
    }
    return any;
}

static uint32_t greedy(const float *logits, uint32_t vocab)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < vocab; i++)
        if (logits[i] > logits[best])
            best = i;
    return best;
}

static int by_falling_value(const void *a, const void *b)
{
    const pst_candidate *x = a, *y = b;
    if (x->value != y->value)
        return x->value < y->value ? 1 : -1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* Keeps the first candidates (sorted by falling probability, which sum to `total`) that top-p and min-p leave; at least one. */
static uint32_t cut_tail(const pst_candidate *candidates, uint32_t count, double total, const pst_sampling *sampling)
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

uint32_t pst_sample(const float *logits, uint32_t vocab, const pst_sampling *sampling, uint64_t random,
                    pst_candidate *scratch)
{
    uint32_t best = greedy(logits, vocab);
    if (sampling->temperature <= 0)
        return best;
    /* What is e^-40 times less likely than the best is never drawn in practice and need not be sorted. */
    uint32_t count = 0;
    for (uint32_t i = 0; i < vocab; i++) {
        double distance = ((double)logits[i] - logits[best]) / sampling->temperature;
        if (distance > -40 || i == best)
            scratch[count++] = (pst_candidate){(float)exp(distance), i};
    }
    qsort(scratch, count, sizeof *scratch, by_falling_value);
    if (sampling->top_k > 0 && count > sampling->top_k)
        count = sampling->top_k;
    double total = 0;
    for (uint32_t i = 0; i < count; i++)
        total += scratch[i].value;
    count = cut_tail(scratch, count, total, sampling);
    total = 0;
    for (uint32_t i = 0; i < count; i++)
        total += scratch[i].value;
    double target = (double)(random >> 11) * 0x1p-53 * total, sum = 0;
    for (uint32_t i = 0; i < count; i++) {
        sum += scratch[i].value;
        if (target < sum)
            return scratch[i].id;
    }
    return scratch[count - 1].id; /* rounding */
}
