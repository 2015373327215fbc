/* SPDX-License-Identifier: Apache-2.0 */
/* Small arithmetic that every room needs: rounding, hashing, medians. */
#ifndef PST_BASE_NUMBER_H
#define PST_BASE_NUMBER_H

#include <stddef.h>
#include <stdint.h>

static inline uint64_t pst_min(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline uint64_t pst_max(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* To multiples of unit (any but 0); value + unit must not overflow. */
static inline uint64_t pst_round_up(uint64_t value, uint64_t unit)
{
    return (value + unit - 1) / unit * unit;
}

static inline uint64_t pst_round_down(uint64_t value, uint64_t unit)
{
    return value / unit * unit;
}

/* The finalizer of SplitMix64: every bit of the result depends on every bit of x. And the step of its counter. (Steele,
 * Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.) */
#define PST_RANDOM_STEP UINT64_C(0x9e3779b97f4a7c15)
static inline uint64_t pst_mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

/* The next number of the generator whose state is *state. */
static inline uint64_t pst_random_next(uint64_t *state)
{
    return pst_mix(*state += PST_RANDOM_STEP);
}

void pst_sort(double *values, size_t count); /* rising */
/* The median of at least one number, the mean of the middle two of an even count. Sorts values in place. */
double pst_median(double *values, size_t count);

#endif
