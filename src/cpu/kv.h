/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How the keys and values of attention are stored: in blocks of PST_KV_BLOCK positions of one layer, each its own piece of
 * memory. A block is the keys, [kv_heads][PST_KV_BLOCK][key row], then the values likewise. A row is one head's key (or
 * value) of one position, `dim` elements:
 *
 * F32, F16   the elements.
 * Q8, Q4     as a row of asymmetric GROUPED weights (cpu/weight.h) in groups of PST_KV_GROUP elements, the last one
 *            possibly shorter: codes of 8 or 4 bits, then an F16 scale and an F16 minimum per group; element = code * scale +
 *            minimum, off by half a scale at most. Elements beyond what F16 holds are held at +-65504; a group with a NaN is
 *            all NaN.
 *
 * With `shared` values there is one head and no values of their own: a value is the first value_dim elements of its key
 * (latent attention, arXiv 2405.04434).
 */
#ifndef PST_CPU_KV_H
#define PST_CPU_KV_H

#include <stdbool.h>
#include <stdint.h>

enum { PST_KV_BLOCK = 64, PST_KV_GROUP = 64 };

typedef enum pst_kv_type { PST_KV_F32, PST_KV_F16, PST_KV_Q8, PST_KV_Q4 } pst_kv_type;

typedef struct pst_kv_layout {
    pst_kv_type type;
    uint32_t kv_heads, key_dim, value_dim;
    bool shared; /* kv_heads == 1, value_dim <= key_dim */
} pst_kv_layout;

/* 32, 16, 8 or 4. */
uint32_t pst_kv_bits(pst_kv_type type);
uint64_t pst_kv_row_bytes(pst_kv_type type, uint32_t dim);
uint64_t pst_kv_block_bytes(const pst_kv_layout *layout);
/* Where in a block the keys (values) of a head begin. */
uint64_t pst_kv_key_offset(const pst_kv_layout *layout, uint32_t head);
uint64_t pst_kv_value_offset(const pst_kv_layout *layout, uint32_t head);

#endif
