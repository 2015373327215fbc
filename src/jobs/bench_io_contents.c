/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Contents of the bench's files: word i of a stream is splitmix64's output for a counter that begins at the stream's
 * key, so every word can be made by itself, and nothing has to be kept for comparing.
 */
#include <string.h>

#include "base/number.h"
#include "jobs/bench_io_internal.h"

uint64_t pst_bench_key(uint64_t seed, uint64_t stream, uint64_t generation)
{
    return pst_mix(pst_mix(pst_mix(seed + PST_RANDOM_STEP) + stream + PST_RANDOM_STEP) + generation + PST_RANDOM_STEP);
}

void pst_bench_contents(uint64_t key, void *memory, uint64_t bytes)
{
    char *to = memory;
    uint64_t words = bytes / 8;
    for (uint64_t i = 0; i < words; i++) {
        uint64_t word = pst_mix(key + i * PST_RANDOM_STEP);
        memcpy(to + i * 8, &word, 8);
    }
    uint64_t word = pst_mix(key + words * PST_RANDOM_STEP);
    memcpy(to + words * 8, &word, bytes % 8);
}

uint64_t pst_bench_compare(uint64_t key, const void *memory, uint64_t bytes)
{
    const char *from = memory;
    for (uint64_t at = 0; at < bytes; at += 8) {
        uint64_t expected = pst_mix(key + at / 8 * PST_RANDOM_STEP), found = expected;
        uint64_t length = bytes - at < 8 ? bytes - at : 8;
        memcpy(&found, from + at, length);
        for (uint64_t i = 0; found != expected && i < length; i++) {
            if (((const char *)&found)[i] != ((const char *)&expected)[i])
                return at + i;
        }
    }
    return bytes;
}
