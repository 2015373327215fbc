/* SPDX-License-Identifier: Apache-2.0 */
/*
 * FNV-1a of 64 bits (Fowler, Noll, Vo): tells apart what chance made different, in files that are read anyway. Nothing
 * against somebody who wants a collision. Start with PST_HASH_START; the hash of pieces is that of the whole.
 */
#ifndef PST_BASE_HASH_H
#define PST_BASE_HASH_H

#include <stddef.h>
#include <stdint.h>

#define PST_HASH_START UINT64_C(0xcbf29ce484222325)

static inline uint64_t pst_hash(uint64_t hash, const void *data, size_t bytes)
{
    const unsigned char *at = data;
    for (size_t i = 0; i < bytes; i++)
        hash = (hash ^ at[i]) * UINT64_C(0x100000001b3);
    return hash;
}

#endif
