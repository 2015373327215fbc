/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stored weights to f32. Each number is made of its own code and scale alone, by the host's arithmetic: products of a
 * code and a 16-bit scale are exact, only the sum with the minimum rounds; of an FP8 element and its scale only the
 * product.
 */
#include "rows.h"

struct convert_args {
    const char *w;
    uint64_t row_bytes, rows, columns, code_bytes; /* code_bytes: of a GROUPED row */
    const char *scales;                            /* FP8_BLOCKS */
    uint64_t first_row, scales_per_row;
    pst_weight_format format;
    float *y;
    uint64_t y_stride;
};

/* Element `column` of a GROUPED row. */
static __device__ __forceinline__ float convert_grouped(const convert_args &c, const char *row, uint64_t column)
{
    const uint32_t group = (uint32_t)column / c.format.group; /* a row's columns fit 32 bits */
    const char *scales = row + c.code_bytes + (uint64_t)group * (c.format.symmetric ? 2 : 4);
    const float scale = pst_f16_to_f32(rows_load_16(scales));
    uint32_t code;
    if (c.format.bits == 8) {
        code = (uint8_t)row[column];
    } else {
        const uint32_t both = (uint8_t)row[column / 2];
        code = column % 2 == 0 ? both & 15 : both >> 4;
    }
    const float minimum = c.format.symmetric ? __fmul_rn(scale, c.format.bits == 4 ? -8.0f : -128.0f)
                                             : pst_f16_to_f32(rows_load_16(scales + 2));
    return __fadd_rn(__fmul_rn((float)code, scale), minimum);
}

static __device__ __forceinline__ float convert_block(const convert_args &c, const char *row, uint64_t number,
                                                      uint64_t column)
{
    const uint64_t block =
        (c.first_row + number) / c.format.block_rows * c.scales_per_row + (uint32_t)column / c.format.block_columns;
    const uint8_t element = (uint8_t)row[column];
    if ((element & 0x7f) == 0x7f)
        return __uint_as_float(0x7fc00000u); /* one kind of NaN, as on the host */
    return __fmul_rn(pst_e4m3_to_f32(element), rows_load(c.format.scale_type, c.scales, block));
}

template <int LAYOUT>
static __device__ __forceinline__ float convert_one(const convert_args &c, const char *row, uint64_t number,
                                                    uint64_t column)
{
    if (column >= c.columns)
        return 0.0f;
    return LAYOUT == PST_WEIGHT_GROUPED ? convert_grouped(c, row, column) : convert_block(c, row, number, column);
}

/* Four columns of a thread; rows in steps of the grid. */
template <int LAYOUT> static __global__ __launch_bounds__(ROWS_THREADS) void convert_rows(convert_args c)
{
    const uint64_t column = ROWS_X() * 4;
    const uint32_t there = rows_there(column, c.columns);
    if (there == 0)
        return;
    for (uint64_t r = ROWS_Y(); r < c.rows; r += ROWS_DY()) {
        const char *row = c.w + r * c.row_bytes;
        float4 a;
        if (LAYOUT == PST_WEIGHT_PLAIN)
            a = rows_load_weights(c.format.type, row, column, there);
        else
            a = make_float4(convert_one<LAYOUT>(c, row, r, column), convert_one<LAYOUT>(c, row, r, column + 1),
                            convert_one<LAYOUT>(c, row, r, column + 2), convert_one<LAYOUT>(c, row, r, column + 3));
        rows_store_4(PST_F32, c.y, r * c.y_stride + column, there, a);
    }
}

/* Bytes of a row, and of a GROUPED row's codes. */
static void convert_sizes(convert_args *c)
{
    const pst_weight_format *f = &c->format;
    c->row_bytes = c->columns * (f->type == PST_F32 ? 4 : 2);
    if (f->layout == PST_WEIGHT_FP8_BLOCKS) {
        c->row_bytes = c->columns;
        c->scales_per_row = (c->columns + f->block_columns - 1) / f->block_columns;
    }
    if (f->layout == PST_WEIGHT_GROUPED) {
        c->code_bytes = f->bits == 4 ? c->columns / 2 + c->columns % 2 : c->columns;
        c->row_bytes = c->code_bytes + (c->columns + f->group - 1) / f->group * (f->symmetric ? 2 : 4);
    }
}

int pst_cuda_convert(cuda_device *device, const pst_weight *w, const pst_matrix *y)
{
    convert_args c = {};
    if (w->format != NULL)
        c.format = *w->format;
    if (c.format.transposed)
        return PST_E_UNSUPPORTED;
    if (c.format.layout == PST_WEIGHT_PLAIN)
        c.format.type = w->type;
    c.w = (const char *)w->data;
    c.rows = w->rows;
    c.columns = w->columns;
    c.scales = (const char *)w->scales;
    c.first_row = w->first_row;
    c.y = (float *)y->data;
    c.y_stride = y->stride;
    if (c.rows == 0 || c.columns == 0)
        return 0;
    convert_sizes(&c);
    const rows_cut cut = rows_cut_of((c.columns + 3) / 4, c.rows, 1);
    switch (c.format.layout) {
    case PST_WEIGHT_PLAIN: return ROWS_LAUNCH(device, convert_rows<PST_WEIGHT_PLAIN>, cut, c);
    case PST_WEIGHT_GROUPED: return ROWS_LAUNCH(device, convert_rows<PST_WEIGHT_GROUPED>, cut, c);
    case PST_WEIGHT_FP8_BLOCKS: return ROWS_LAUNCH(device, convert_rows<PST_WEIGHT_FP8_BLOCKS>, cut, c);
    default: return PST_E_UNSUPPORTED;
    }
}
