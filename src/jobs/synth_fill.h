/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Seeded random weights, made where they are needed: the value of an element depends on the seed, the
 * tensor's name and the element's index alone, so any thread can make any part of any tensor in any order and
 * the file is the same.
 */
#ifndef PST_JOBS_SYNTH_FILL_H
#define PST_JOBS_SYNTH_FILL_H

#include "penstock/types.h"

/* How the elements of one tensor are made: (offset + u) * scale, u odd and uniform in -65535 to 65535;
 * exact in f32, then rounded to the dtype (to nearest, ties to even). */
typedef struct pst_fill {
    uint64_t key;
    int32_t offset;
    float scale;
    pst_dtype dtype; /* PST_BF16, PST_F16, PST_F32 or PST_F8_E4M3 (values up to 448) */
} pst_fill;

/* The key of a tensor. */
uint64_t pst_fill_key(uint64_t seed, const char *name);
/* Elements first to first + count - 1 of the tensor; out needs no alignment. */
void pst_fill_elements(const pst_fill *fill, uint64_t first, uint64_t count, void *out);

#endif
