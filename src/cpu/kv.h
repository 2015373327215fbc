/* SPDX-License-Identifier: Apache-2.0 */
/* Sizes and places that follow from how keys and values are stored (penstock/device_plugin.h says how). */
#ifndef PST_CPU_KV_H
#define PST_CPU_KV_H

#include "penstock/device_plugin.h"

/* 32, 16, 8 or 4. */
uint32_t pst_kv_bits(pst_kv_type type);
uint64_t pst_kv_row_bytes(pst_kv_type type, uint32_t dim);
uint64_t pst_kv_block_bytes(const pst_kv_layout *layout);
/* Where in a block the keys (values) of a head begin. */
uint64_t pst_kv_key_offset(const pst_kv_layout *layout, uint32_t head);
uint64_t pst_kv_value_offset(const pst_kv_layout *layout, uint32_t head);

#endif
