/* SPDX-License-Identifier: Apache-2.0 */
/* Rows and blocks of rows moved: copied with a change of type, gathered, added where they came from. */
#include "rows.h"

/* x: fours of columns, y: blocks, z: rows. */
static __global__ __launch_bounds__(ROWS_THREADS) void rows_copy_blocks(pst_block_copy c)
{
    const uint64_t column = ROWS_X() * 4;
    const uint32_t there = rows_there(column, c.columns);
    if (there == 0)
        return;
    for (uint64_t row = blockIdx.z; row < c.rows; row += gridDim.z) {
        for (uint64_t block = ROWS_Y(); block < c.blocks; block += ROWS_DY()) {
            const float4 a = rows_load_4(c.x + row * c.x_row_stride + block * c.x_block_stride + column, there);
            rows_store_4(c.y_type, c.y, row * c.y_row_stride + block * c.y_block_stride + column, there, a);
        }
    }
}

int pst_cuda_copy_blocks(cuda_device *device, const pst_block_copy *job)
{
    if (job->rows == 0 || job->blocks == 0 || job->columns == 0)
        return 0;
    pst_block_copy c = *job;
    if (c.blocks == 1) { /* rows as blocks share thread blocks when they are short */
        c.blocks = c.rows;
        c.x_block_stride = c.x_row_stride;
        c.y_block_stride = c.y_row_stride;
        c.rows = 1;
    }
    const rows_cut cut = rows_cut_of((c.columns + 3) / 4, c.blocks, c.rows);
    return ROWS_LAUNCH(device, rows_copy_blocks, cut, c);
}

/* Rows of `units` of UNIT's type, strides likewise. */
struct take_args {
    const void *x;
    void *y;
    const uint32_t *rows;
    uint64_t x_stride, y_stride, count, units;
};

template <class UNIT> static __global__ __launch_bounds__(ROWS_THREADS) void rows_take(take_args t)
{
    const uint64_t unit = ROWS_X();
    if (unit >= t.units)
        return;
    for (uint64_t i = ROWS_Y(); i < t.count; i += ROWS_DY())
        ((UNIT *)t.y)[i * t.y_stride + unit] = ((const UNIT *)t.x)[t.rows[i] * t.x_stride + unit];
}

int pst_cuda_take_rows(cuda_device *device, const pst_matrix *x, const uint32_t *rows, const pst_matrix *y)
{
    const uint64_t element = x->type == PST_F32 ? 4 : 2;
    const uint64_t row = x->columns * element, x_step = x->stride * element, y_step = y->stride * element;
    if ((x->type != PST_F32 && x->type != PST_BF16 && x->type != PST_F16) || y->type != x->type)
        return PST_E_UNSUPPORTED;
    if (y->rows == 0 || x->columns == 0)
        return 0;
    /* The largest unit that rows begin and end with. */
    const uint64_t all = row | x_step | y_step | (uintptr_t)x->data | (uintptr_t)y->data;
    const uint64_t unit = all % 16 == 0 ? 16 : all % 4 == 0 ? 4 : 2;
    const take_args t = {x->data, y->data, rows, x_step / unit, y_step / unit, y->rows, row / unit};
    const rows_cut cut = rows_cut_of(t.units, t.count, 1);
    if (unit == 16)
        return ROWS_LAUNCH(device, rows_take<uint4>, cut, t);
    if (unit == 4)
        return ROWS_LAUNCH(device, rows_take<uint32_t>, cut, t);
    return ROWS_LAUNCH(device, rows_take<uint16_t>, cut, t);
}

struct add_args {
    const float *x, *weights;
    float *y;
    const uint32_t *rows;
    uint64_t x_stride, y_stride, count, columns;
};

/* Product and sum round each by itself, as on the host. The rows are distinct: no element has two threads. */
static __global__ __launch_bounds__(ROWS_THREADS) void rows_add(add_args a)
{
    const uint64_t column = ROWS_X() * 4;
    const uint32_t there = rows_there(column, a.columns);
    if (there == 0)
        return;
    for (uint64_t i = ROWS_Y(); i < a.count; i += ROWS_DY()) {
        const float weight = a.weights[i];
        const uint64_t to = a.rows[i] * a.y_stride + column;
        const float4 x = rows_load_4(a.x + i * a.x_stride + column, there);
        float4 y = rows_load_4(a.y + to, there);
        y = make_float4(__fadd_rn(y.x, __fmul_rn(weight, x.x)), __fadd_rn(y.y, __fmul_rn(weight, x.y)),
                        __fadd_rn(y.z, __fmul_rn(weight, x.z)), __fadd_rn(y.w, __fmul_rn(weight, x.w)));
        rows_store_4(PST_F32, a.y, to, there, y);
    }
}

int pst_cuda_add_rows(cuda_device *device, const pst_matrix *x, const uint32_t *rows, const float *weights,
                      const pst_matrix *y)
{
    if (x->rows == 0 || x->columns == 0)
        return 0;
    const add_args a = {
        (const float *)x->data, weights, (float *)y->data, rows, x->stride, y->stride, x->rows, x->columns};
    const rows_cut cut = rows_cut_of((a.columns + 3) / 4, a.count, 1);
    return ROWS_LAUNCH(device, rows_add, cut, a);
}
