/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The random numbers of the tests: a seed that is printed and that PST_TEST_SEED replays, and a test's one sequence from it.
 * Functions of the header alone, so that fuzzers without the test library have them, too.
 */
#ifndef TESTS_SUPPORT_RANDOM_H
#define TESTS_SUPPORT_RANDOM_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "base/number.h"

/* PST_TEST_SEED, else `otherwise`, else (0) one from the clock and the process; printed with the test's name. */
static inline uint64_t random_seed(const char *test, uint64_t otherwise)
{
    const char *given = getenv("PST_TEST_SEED");
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (otherwise == 0)
        otherwise = (uint64_t)now.tv_sec * 1000003u + (uint64_t)now.tv_nsec + (uint64_t)getpid();
    uint64_t seed = given != NULL ? strtoull(given, NULL, 0) : otherwise;
    printf("%s: PST_TEST_SEED=%llu\n", test, (unsigned long long)seed);
    fflush(stdout);
    return seed;
}

static uint64_t random_state __attribute__((unused));

static inline void random_start(const char *test)
{
    random_state = random_seed(test, 0);
}

/* 0 to bound - 1 */
static inline uint64_t random_below(uint64_t bound)
{
    return pst_random_next(&random_state) % bound;
}

#endif
