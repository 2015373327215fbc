/* SPDX-License-Identifier: Apache-2.0 */
#include "cpu/kv.h"

uint32_t pst_kv_bits(pst_kv_type type)
{
    static const uint32_t bits[] = {[PST_KV_F32] = 32, [PST_KV_F16] = 16, [PST_KV_Q8] = 8, [PST_KV_Q4] = 4};
    return bits[type];
}

uint64_t pst_kv_row_bytes(pst_kv_type type, uint32_t dim)
{
    uint64_t groups = ((uint64_t)dim + PST_KV_GROUP - 1) / PST_KV_GROUP, codes = 0;
    switch (type) {
    case PST_KV_F32: return 4ull * dim;
    case PST_KV_F16: return 2ull * dim;
    case PST_KV_Q8: codes = dim; break;
    case PST_KV_Q4: codes = ((uint64_t)dim + 1) / 2; break;
    }
    return codes + 4 * groups;
}

uint64_t pst_kv_key_offset(const pst_kv_layout *layout, uint32_t head)
{
    return head * PST_KV_BLOCK * pst_kv_row_bytes(layout->type, layout->key_dim);
}

uint64_t pst_kv_value_offset(const pst_kv_layout *layout, uint32_t head)
{
    if (layout->shared)
        return 0;
    return pst_kv_key_offset(layout, layout->kv_heads) +
           head * PST_KV_BLOCK * pst_kv_row_bytes(layout->type, layout->value_dim);
}

uint64_t pst_kv_block_bytes(const pst_kv_layout *layout)
{
    uint64_t keys = pst_kv_key_offset(layout, layout->kv_heads);
    return layout->shared ? keys : pst_kv_value_offset(layout, layout->kv_heads);
}
