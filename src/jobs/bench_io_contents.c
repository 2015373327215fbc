/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Contents of the bench's files: word i of a stream is splitmix64's output for a counter that begins at the stream's
 * key, so every word can be made by itself, and nothing has to be kept for comparing.
 */
#include <string.h>

#include "jobs/bench_io_internal.h"

#define GOLDEN UINT64_C(0x9E3779B97F4A7C15)

static inline uint64_t mixed(uint64_t value)
{
    value = (value ^ (value >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    value = (value ^ (value >> 27)) * UINT64_C(0x94D049BB133111EB);
    return value ^ (value >> 31);
}

uint64_t pst_bench_key(uint64_t seed, uint64_t stream, uint64_t generation)
{
    return mixed(mixed(mixed(seed + GOLDEN) + stream + GOLDEN) + generation + GOLDEN);
}

void pst_bench_contents(uint64_t key, void *memory, uint64_t bytes)
{
    char *to = memory;
    uint64_t words = bytes / 8;
    for (uint64_t i = 0; i < words; i++) {
        uint64_t word = mixed(key + i * GOLDEN);
        memcpy(to + i * 8, &word, 8);
    }
    uint64_t word = mixed(key + words * GOLDEN);
    memcpy(to + words * 8, &word, bytes % 8);
}

uint64_t pst_bench_compare(uint64_t key, const void *memory, uint64_t bytes)
{
    const char *from = memory;
    for (uint64_t at = 0; at < bytes; at += 8) {
        uint64_t expected = mixed(key + at / 8 * GOLDEN), found = expected;
        uint64_t length = bytes - at < 8 ? bytes - at : 8;
        memcpy(&found, from + at, length);
        for (uint64_t i = 0; found != expected && i < length; i++) {
            if (((const char *)&found)[i] != ((const char *)&expected)[i])
                return at + i;
        }
    }
    return bytes;
}
