/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Choosing a token; see sample.h. From all logits nothing is sorted: a token is found by its place in the order, as a number's
 * digits are. Weights are counted and summed by their leading bits; the class in which the sum passes what is looked for is
 * counted again by the bits that follow, until the weight itself is known, and then the id among its equals.
 *
 * Sums are exact (a weight is an integer of 2^-81, and so many of them fit 128 bits), so they have no order, and are rounded
 * once, where they are compared.
 */
#include "infer/sample.h"

#include <math.h>
#include <string.h>

#include "base/number.h"

typedef unsigned __int128 exact_sum;

enum {
    SPARE_CANDIDATES = 8,     /* beyond top-k, so that a few equals at its end are seen as such */
    USUAL_CANDIDATES = 512,   /* without top-k: top-p seldom leaves more */
    LEAST_EXPONENT = 127 - 58 /* of a weight */
};
/* A device's sum is within 2^-24 of itself, a weight is rounded by as much, and what factor * logit loses where it is smaller
 * than 2^20 is less. What is below e^-40 is in the device's sum only. */
static const double SUM_ERROR = 0x1p-22, MOST_EXPONENT = 0x1p20;

uint64_t pst_random(uint64_t seed, uint64_t n)
{
    return pst_mix(seed + (n + 1) * PST_RANDOM_STEP);
}

bool pst_logits_are_usable(const float *logits, uint32_t vocab)
{
    unsigned bad = 0, finite = 0; /* without branches: vector code */
    for (uint32_t i = 0; i < vocab; i++) {
        bad |= !(logits[i] < INFINITY);
        finite |= logits[i] > -INFINITY;
    }
    return finite && !bad;
}

static double uniform(uint64_t random)
{
    return (double)(random >> 11) * 0x1p-53;
}

/* A logit's distance from the largest; what is not above -40 does not count. */
static double distance(float logit, float largest, const pst_sampling *sampling)
{
    return ((double)logit - largest) / sampling->temperature;
}

static bool counts(double distance)
{
    return distance > -40;
}

/* ---- from the largest ---- */

uint32_t pst_sample_needs(const pst_sampling *sampling, uint32_t vocab)
{
    if (sampling->temperature <= 0)
        return 1;
    if (sampling->top_k == 0)
        return (uint32_t)pst_min(USUAL_CANDIDATES, vocab);
    if (sampling->top_k >= PST_TOP_MOST && vocab > PST_TOP_MOST)
        return 0;
    const uint64_t wanted = pst_min((uint64_t)sampling->top_k + SPARE_CANDIDATES, PST_TOP_MOST);
    return (uint32_t)pst_min(wanted, vocab);
}

bool pst_sample_needs_sum(const pst_sampling *sampling, double *out_factor)
{
    const double factor = 1 / sampling->temperature;
    if (sampling->temperature <= 0 || sampling->top_k > 0)
        return false;
    *out_factor = factor > 0 && factor < MOST_EXPONENT ? factor : 1; /* of no use then */
    return true;
}

static bool comes_before(pst_candidate a, pst_candidate b)
{
    return a.value > b.value || (a.value == b.value && a.id < b.id);
}

/* They are in order but for those whose weights are equal though their logits are not. */
static void sort(pst_candidate *candidates, uint32_t count)
{
    for (uint32_t i = 1; i < count; i++) {
        const pst_candidate one = candidates[i];
        uint32_t place = i;
        for (; place > 0 && comes_before(one, candidates[place - 1]); place--)
            candidates[place] = candidates[place - 1];
        candidates[place] = one;
    }
}

/* Keeps the first candidates (sorted, with weights that sum to `total`) that top-p and min-p leave; at least one. */
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

static double sum_of(const pst_candidate *candidates, uint32_t count)
{
    double sum = 0;
    for (uint32_t i = 0; i < count; i++)
        sum += candidates[i].value;
    return sum;
}

static uint32_t draw(const pst_candidate *candidates, uint32_t count, uint64_t random)
{
    const double target = uniform(random) * sum_of(candidates, count);
    double sum = 0;
    for (uint32_t i = 0; i < count; i++) {
        sum += candidates[i].value;
        if (target < sum)
            return candidates[i].id;
    }
    return candidates[count - 1].id; /* rounding */
}

/* With top-k: what others come to does not count, but who they are may. */
static bool choose_of_top_k(const pst_candidate *candidates, uint32_t count, uint32_t certain,
                            const pst_sampling *sampling, uint64_t random, uint32_t *out)
{
    if (certain < count && certain < sampling->top_k)
        return false;
    count = (uint32_t)pst_min(count, sampling->top_k);
    count = cut_tail(candidates, count, sum_of(candidates, count), sampling);
    *out = draw(candidates, count, random);
    return true;
}

/* ---- from the largest and the total ---- */

/* Exact weights in units of 2^-81. */
static exact_sum exact(float weight)
{
    return (exact_sum)ldexp((double)weight, 81);
}

/* What a sum of exact weights, rounded, is at least and at most. */
typedef struct range {
    double least, most;
} range;

/* The first of the certain candidates with which the sum reaches the goal (passes it, if `beyond`) whatever the goal is of its
 * range; 0: that is not certain. *sum: with it. */
static uint32_t count_to(const pst_candidate *candidates, uint32_t certain, range goal, bool beyond, exact_sum *sum)
{
    *sum = 0;
    for (uint32_t i = 0; i < certain; i++) {
        *sum += exact(candidates[i].value);
        const double rounded = (double)*sum;
        if (beyond ? rounded > goal.most : rounded >= goal.most)
            return i + 1;
        if (beyond ? rounded > goal.least : rounded >= goal.least)
            return 0;
    }
    return 0;
}

/* The total of all weights; `most` infinite if nothing is known. */
static range total_of(const pst_candidate *candidates, uint32_t count, bool complete, float largest, double log_sum,
                      const pst_sampling *sampling)
{
    double factor = 1;
    exact_sum sum = 0;
    for (uint32_t i = 0; i < count; i++)
        sum += exact(candidates[i].value);
    range total = {(double)sum, (double)sum};
    if (complete)
        return total;
    pst_sample_needs_sum(sampling, &factor);
    const double exponent = (double)largest * factor;
    const bool is_known = factor * sampling->temperature < 2 && factor * sampling->temperature > 0.5 &&
                          fabs(exponent) < MOST_EXPONENT && isfinite(log_sum);
    const double near = is_known ? ldexp(exp(log_sum - exponent), 81) : 0;
    total.least = is_known ? near * (1 - SUM_ERROR) : total.least;
    total.most = is_known ? near * (1 + SUM_ERROR) : (double)INFINITY;
    return total;
}

/* Without top-k. candidates: in order as far as they are certain; complete: there are no others. */
static bool choose_by_total(const pst_candidate *candidates, uint32_t certain, bool complete, range total,
                            const pst_sampling *sampling, uint64_t random, uint32_t *out)
{
    exact_sum sum;
    double last = 0; /* weight of the last one kept; 0: of none that is here */
    if (sampling->top_p > 0 && sampling->top_p < 1) {
        const range goal = {sampling->top_p * total.least, sampling->top_p * total.most};
        const uint32_t kept = count_to(candidates, certain, goal, false, &sum);
        if (kept == 0)
            return false;
        last = candidates[kept - 1].value;
        total = (range){(double)sum, (double)sum};
    }
    if (sampling->min_p > 0 && last < sampling->min_p) { /* the largest weighs 1 */
        if (!complete && !(certain > 0 && candidates[certain - 1].value < sampling->min_p))
            return false; /* others may be kept */
        sum = 0;
        for (uint32_t i = 0; i < certain && candidates[i].value >= sampling->min_p; i++)
            sum += exact(candidates[i].value);
        total = (range){(double)sum, (double)sum};
    }
    const range target = {uniform(random) * total.least, uniform(random) * total.most};
    const uint32_t drawn = count_to(candidates, certain, target, true, &sum);
    if (drawn == 0)
        return false;
    *out = candidates[drawn - 1].id;
    return true;
}

bool pst_sample_top(const float *logits, const uint32_t *ids, double log_sum, uint32_t vocab,
                    const pst_sampling *sampling, uint64_t random, pst_sample_scratch *scratch, uint32_t *out)
{
    const uint32_t given = pst_sample_needs(sampling, vocab);
    if (sampling->temperature <= 0) {
        *out = ids[0];
        return true;
    }
    pst_candidate *candidates = scratch->candidates;
    uint32_t count = 0;
    for (; count < given; count++) {
        const double d = distance(logits[count], logits[0], sampling);
        if (!counts(d))
            break;
        candidates[count] = (pst_candidate){(float)exp(d), ids[count]};
    }
    /* All others weigh no more than the last one, give or take the last bit that exp may err by; those that weigh more than
     * that have their places in the order. */
    const bool complete = count < given || given == vocab;
    const float most_of_others = complete ? 0 : nextafterf(candidates[count - 1].value, INFINITY);
    sort(candidates, count);
    uint32_t certain = count;
    while (certain > 0 && candidates[certain - 1].value <= most_of_others)
        certain--;
    if (sampling->top_k > 0)
        return choose_of_top_k(candidates, count, certain, sampling, random, out);
    const range total = total_of(candidates, count, complete, logits[0], log_sum, sampling);
    return choose_by_total(candidates, certain, complete, total, sampling, random, out);
}

/* ---- from all ---- */

/*
 * A weight's key: its bits less those of 2^-58, so 0 to 58 * 2^23 for e^-40 to 1, in the order of weights. Its digits, most
 * significant first: ten bits, of which the upper six are the exponent, ten, and nine.
 */
enum { LEVELS = 3, MANTISSA_BITS = 23 };
static const unsigned digit_bits[LEVELS] = {10, 10, 9}, digit_shift[LEVELS] = {19, 9, 0};

/* The weights of a row, in its logits' memory; 0: it does not count. */
typedef struct weighed {
    const float *weights;
    uint32_t vocab;
    pst_sample_scratch *scratch;
} weighed;

/* Where in the order: what comes before and the place itself, taken together. */
typedef struct place {
    uint32_t key;
    uint64_t equals; /* of this key, by rising id */
    exact_sum sum;
} place;

/* The first place whose count, or sum, has come so far. */
typedef struct goal {
    enum { COUNT_REACHES, SUM_REACHES, SUM_PASSES } kind;
    uint64_t count;
    double sum;
} goal;

static uint32_t key_of(float weight)
{
    uint32_t bits;
    memcpy(&bits, &weight, sizeof bits);
    return bits - ((uint32_t)LEAST_EXPONENT << MANTISSA_BITS); /* of 0 beyond all others */
}

static uint64_t mantissa_of(uint32_t key)
{
    const uint32_t one = UINT32_C(1) << MANTISSA_BITS;
    return (key & (one - 1)) | one;
}

static void count_one(pst_weight_class *classes, uint32_t key, int level)
{
    pst_weight_class *class = &classes[key >> digit_shift[level] & ((1u << digit_bits[level]) - 1)];
    class->mantissas += mantissa_of(key);
    class->count++;
}

static exact_sum sum_of_class(const pst_weight_class *class, uint32_t key)
{
    return (exact_sum) class->mantissas << (key >> MANTISSA_BITS);
}

/* Turns logits into weights and counts them by their first digit. */
static void weigh(float *logits, uint32_t vocab, float largest, const pst_sampling *sampling,
                  pst_sample_scratch *scratch)
{
    memset(scratch->coarse, 0, sizeof scratch->coarse);
    for (uint32_t i = 0; i < vocab; i++) {
        const double d = distance(logits[i], largest, sampling);
        logits[i] = 0;
        if (counts(d)) {
            logits[i] = (float)exp(d);
            count_one(scratch->coarse, key_of(logits[i]), 0);
        }
    }
}

/* Counts those whose digits before this level are `prefix`. */
static const pst_weight_class *count_level(const weighed *w, int level, uint32_t prefix)
{
    if (level == 0)
        return w->scratch->coarse;
    memset(w->scratch->fine, 0, sizeof w->scratch->fine);
    for (uint32_t i = 0; i < w->vocab; i++) {
        const uint32_t key = key_of(w->weights[i]);
        if (key >> digit_shift[level - 1] == prefix)
            count_one(w->scratch->fine, key, level);
    }
    return w->scratch->fine;
}

static bool is_reached(const goal *g, uint64_t count, exact_sum sum)
{
    switch (g->kind) {
    case COUNT_REACHES: return count >= g->count;
    case SUM_REACHES: return (double)sum >= g->sum;
    case SUM_PASSES: return (double)sum > g->sum;
    }
    return false;
}

/* How many of `most` equals it takes. */
static uint64_t count_equals(const goal *g, uint64_t count, exact_sum sum, exact_sum weight, uint64_t most)
{
    uint64_t low = 1, high = most;
    while (low < high) {
        const uint64_t middle = low + (high - low) / 2;
        if (is_reached(g, count + middle, sum + middle * weight))
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

/* False where all together do not come so far. */
static bool find(const weighed *w, const goal *g, place *out)
{
    exact_sum sum = 0;
    uint64_t count = 0, equals = 0;
    uint32_t prefix = 0;
    for (int level = 0; level < LEVELS; level++) {
        const pst_weight_class *classes = count_level(w, level, prefix);
        for (uint32_t digit = 1u << digit_bits[level];;) {
            if (digit-- == 0)
                return false; /* of the first level only: the classes of the others sum to one of it */
            const pst_weight_class *class = &classes[digit];
            const uint32_t path = prefix << digit_bits[level] | digit;
            const exact_sum more = sum_of_class(class, path << digit_shift[level]);
            if (class->count > 0 && is_reached(g, count + class->count, sum + more)) {
                prefix = path;
                equals = class->count;
                break;
            }
            count += class->count;
            sum += more;
        }
    }
    const exact_sum weight = (exact_sum)mantissa_of(prefix) << (prefix >> MANTISSA_BITS);
    out->key = prefix;
    out->equals = count_equals(g, count, sum, weight, equals);
    out->sum = sum + out->equals * weight;
    return true;
}

static exact_sum sum_of_all(const weighed *w, uint64_t *count)
{
    exact_sum sum = 0;
    *count = 0;
    for (uint32_t digit = 0; digit < PST_WEIGHT_CLASSES; digit++) {
        sum += sum_of_class(&w->scratch->coarse[digit], digit << digit_shift[0]);
        *count += w->scratch->coarse[digit].count;
    }
    return sum;
}

/* Of those that weigh no less than `least`. */
static exact_sum sum_from(const weighed *w, double least)
{
    exact_sum sum = 0;
    for (uint32_t i = 0; i < w->vocab; i++) {
        const uint32_t key = key_of(w->weights[i]);
        if (w->weights[i] > 0 && w->weights[i] >= least)
            sum += (exact_sum)mantissa_of(key) << (key >> MANTISSA_BITS);
    }
    return sum;
}

static double value_of(uint32_t key)
{
    return ldexp((double)mantissa_of(key), (int)(key >> MANTISSA_BITS) + LEAST_EXPONENT - 127 - MANTISSA_BITS);
}

/* The total of what the filters leave: the first places of the order. */
static double total_of_kept(const weighed *w, const pst_sampling *sampling)
{
    uint64_t count;
    place last = {.key = 0}; /* that is kept */
    last.sum = sum_of_all(w, &count);
    if (sampling->top_k > 0 && sampling->top_k < count)
        find(w, &(goal){.kind = COUNT_REACHES, .count = sampling->top_k}, &last);
    if (sampling->top_p > 0 && sampling->top_p < 1)
        find(w, &(goal){.kind = SUM_REACHES, .sum = sampling->top_p * (double)last.sum}, &last);
    /* The largest weighs 1. */
    if (sampling->min_p > 0 && value_of(last.key) < sampling->min_p)
        last.sum = sum_from(w, sampling->min_p);
    return (double)last.sum;
}

static uint32_t index_of_largest(const float *logits, uint32_t vocab)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < vocab; i++)
        if (logits[i] > logits[best])
            best = i;
    return best;
}

uint32_t pst_sample_all(float *logits, uint32_t vocab, const pst_sampling *sampling, uint64_t random,
                        pst_sample_scratch *scratch)
{
    const uint32_t best = index_of_largest(logits, vocab);
    if (sampling->temperature <= 0)
        return best;
    weigh(logits, vocab, logits[best], sampling, scratch);
    const weighed w = {logits, vocab, scratch};
    place drawn;
    if (!find(&w, &(goal){.kind = SUM_PASSES, .sum = uniform(random) * total_of_kept(&w, sampling)}, &drawn))
        return best; /* cannot be: what is drawn is below the total of all */
    for (uint32_t i = 0; i < vocab; i++)
        if (key_of(logits[i]) == drawn.key && --drawn.equals == 0)
            return i;
    return best;
}
