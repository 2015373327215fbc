/* SPDX-License-Identifier: Apache-2.0 */
/* Rotary embedding in place. A thread has a pair of elements of a head: of neighbours, or of two runs that are read
 * beside each other by neighbouring threads. Every operation rounds by itself, as on the host. */
#include "rows.h"

struct rope_args {
    float *x;
    uint64_t stride, rows;
    uint32_t heads, head_dim, rotary;
    bool interleaved;
    const float *table;
    const uint32_t *positions;
};

/* x: pairs, y: heads, z: rows. */
static __global__ __launch_bounds__(ROWS_THREADS) void rope_rows(rope_args r)
{
    const uint32_t half = r.rotary / 2;
    const uint64_t pair = ROWS_X();
    if (pair >= half)
        return;
    for (uint64_t row = blockIdx.z; row < r.rows; row += gridDim.z) {
        const float *angle = r.table + (uint64_t)r.positions[row] * r.rotary + pair;
        const float c = angle[0], s = angle[half];
        for (uint64_t head = ROWS_Y(); head < r.heads; head += ROWS_DY()) {
            float *x = r.x + row * r.stride + head * r.head_dim + (r.interleaved ? 2 * pair : pair);
            float *other = x + (r.interleaved ? 1 : half);
            const float a = *x, b = *other;
            *x = __fadd_rn(__fmul_rn(a, c), -__fmul_rn(b, s));
            *other = __fadd_rn(__fmul_rn(b, c), __fmul_rn(a, s));
        }
    }
}

int pst_cuda_rope(cuda_device *device, const pst_matrix *x, uint32_t heads, uint32_t head_dim, uint32_t rotary,
                  bool interleaved, const float *table, const uint32_t *positions)
{
    rope_args r = {};
    r.x = (float *)x->data;
    r.stride = x->stride;
    r.rows = x->rows;
    r.heads = heads;
    r.head_dim = head_dim;
    r.rotary = rotary;
    r.interleaved = interleaved;
    r.table = table;
    r.positions = positions;
    if (r.rows == 0 || heads == 0 || rotary < 2)
        return 0;
    const rows_cut cut = rows_cut_of(rotary / 2, heads, r.rows);
    return ROWS_LAUNCH(device, rope_rows, cut, r);
}
