/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Matrix products with a matrix whose rows are inputs: vectors lie along the outputs, and every output is one chain of fused
 * multiply-adds over the inputs in rising order, begun with what y holds. So nothing depends on where inputs or outputs are
 * cut.
 *
 * A panel of RUN_INPUTS x RUN_COLUMNS weights is widened to f32 in the first level cache, once for all rows of x. Runs of
 * inputs are the outer loop: a row of the tensor is long, and 64 of them side by side are as many pages as the processor
 * translates at once; y, the same few kilobytes for each run, stays in the second level cache.
 */
#ifndef PST_CPU_TEMPLATE_TRANSPOSED_H
#define PST_CPU_TEMPLATE_TRANSPOSED_H

#define RUN_INPUTS    64
#define RUN_COLUMNS   PST_CPU_MATMUL_COLUMNS /* a multiple of 4 vectors of any set */
#define AHEAD_COLUMNS 256                    /* so far on, weights are fetched early */

/* A panel and what its making keeps from input to input: scales and zeros of the group at hand. */
typedef struct panel {
    _Alignas(64) float weights[RUN_INPUTS][RUN_COLUMNS];
    _Alignas(64) float scales[RUN_COLUMNS], zeros[RUN_COLUMNS];
    size_t group, column; /* whose they are; SIZE_MAX: nobody's */
} panel;

static ALWAYS_INLINE vf load_raw(const char *p, size_t n)
{
    return n >= VF_LANES ? vf_load_f32(p) : vf_load_f32_n(p, n);
}

/* Numbers `first`.. of a line of 4- or 8-bit numbers in natural order, as floats. y has room for whole vectors. */
static void unpack_plain(const char *line, uint32_t bits, size_t first, size_t count, float *y)
{
    if (bits == 4 && first % 2 == 1) {
        const char half = (char)((unsigned char)line[first / 2] >> 4);
        vf_store_f32_n(y++, vf_load_u4_n(&half, 1), 1);
        first++;
        count--;
    }
    const char *p = line + (bits == 4 ? first / 2 : first);
    size_t i = 0;
    for (; i + VF_LANES <= count; i += VF_LANES)
        vf_store_f32(y + i, bits == 4 ? vf_load_u4(p + i / 2) : vf_load_u8(p + i));
    if (i < count)
        vf_store_f32_n(y + i, bits == 4 ? vf_load_u4_n(p + i / 2, count - i) : vf_load_u8_n(p + i, count - i),
                       count - i);
}

/* Words of 8 numbers in AWQ's order, 0 2 4 6 1 3 5 7 from the lowest bits on, to the natural one: the halves' numbers take
 * turns. */
static ALWAYS_INLINE void order_awq(const char *line, size_t count, uint32_t *words)
{
    memcpy(words, line, count * 4);
    for (size_t i = 0; i < count; i++) {
        uint32_t a = words[i], b = (a ^ a >> 8) & 0x0000ff00;
        a ^= b ^ b << 8;
        b = (a ^ a >> 4) & 0x00f000f0;
        words[i] = a ^ b ^ b << 4;
    }
}

static void unpack_awq(const char *line, size_t first, size_t count, float *y)
{
    uint32_t words[RUN_COLUMNS / 8 + 1];
    if (first % 8 == 0 && count == RUN_COLUMNS) /* nearly always: of a length that the compiler knows */
        order_awq(line + first / 2, RUN_COLUMNS / 8, words);
    else
        order_awq(line + first / 8 * 4, (first + count + 7) / 8 - first / 8, words);
    unpack_plain((const char *)words, 4, first % 8, count, y);
}

/* Scales and zeros of a group of inputs for `columns` outputs from `output` on. */
static void load_group(const pst_cpu_transposed *job, size_t group, size_t output, size_t columns, panel *p)
{
    const pst_weight_format *format = job->format;
    if (p->group == group && p->column == output)
        return;
    p->group = group;
    p->column = output;
    const char *scales =
        (const char *)job->scales + (group * job->outputs + output) * element_bytes(format->scale_type);
    kernel_convert(scales, format->scale_type, p->scales, columns);
    const char *zeros = (const char *)job->zeros + group * (job->outputs * format->bits / 32) * 4;
    if (format->layout == PST_WEIGHT_AWQ) {
        unpack_awq(zeros, output, columns, p->zeros);
        return;
    }
    unpack_plain(zeros, format->bits, output, columns, p->zeros);
    for (size_t c = 0; c < columns && format->zero_offset; c++)
        p->zeros[c] += 1.0f;
}

static size_t group_of(const pst_cpu_transposed *job, size_t input)
{
    if (job->index == NULL)
        return input / job->format->group;
    int32_t group;
    memcpy(&group, (const char *)job->index + 4 * input, 4);
    return (size_t)group;
}

/* (code - zero) * scale: the difference is a whole number and its product with 11 bits of scale is exact. */
static ALWAYS_INLINE vf scaled(const panel *p, size_t c, vf codes)
{
    return vf_mul(vf_sub(codes, vf_load_f32(p->zeros + c)), vf_load_f32(p->scales + c));
}

/* Inputs first..first+inputs-1 of those at hand, for `columns` outputs from `output` on. */
static void make_gptq(const pst_cpu_transposed *job, size_t first, size_t inputs, size_t output, size_t columns,
                      panel *p)
{
    const int bits = (int)job->format->bits, mask = (1 << bits) - 1;
    const size_t per_word = (size_t)(32 / bits);
    for (size_t i = 0; i < inputs; i++) {
        const char *words = (const char *)job->w + ((first + i) / per_word * job->outputs + output) * 4;
        const int shift = (int)((first + i) % per_word) * bits;
        if (shift == 0) {
            for (size_t c = 0; c < columns * 4; c += 64)
                vf_prefetch(words + job->outputs * 4 * (RUN_INPUTS / per_word) + c);
        }
        load_group(job, group_of(job, job->first_input + first + i), output, columns, p);
        for (size_t c = 0; c < columns; c += VF_LANES)
            vf_store_f32(p->weights[i] + c, scaled(p, c, vf_bits(load_raw(words + 4 * c, columns - c), shift, mask)));
    }
}

static void make_awq(const pst_cpu_transposed *job, size_t first, size_t inputs, size_t output, size_t columns,
                     panel *p)
{
    const size_t row_bytes = job->outputs / 2;
    for (size_t i = 0; i < inputs; i++) {
        const char *row = (const char *)job->w + (first + i) * row_bytes;
        vf_prefetch(row + RUN_INPUTS * row_bytes + output / 2);
        load_group(job, group_of(job, job->first_input + first + i), output, columns, p);
        unpack_awq(row, output, columns, p->weights[i]);
        for (size_t c = 0; c < columns; c += VF_LANES)
            vf_store_f32(p->weights[i] + c, scaled(p, c, vf_load_f32(p->weights[i] + c)));
    }
}

/* PLAIN and GROUPED: rows of the tensor as they are. */
static void make_rows(const pst_cpu_transposed *job, size_t first, size_t inputs, size_t output, size_t columns,
                      panel *p)
{
    const pst_weight_format *format = job->format;
    const size_t row_bytes = pst_weight_row_bytes(format, job->outputs);
    const size_t bits = format->layout == PST_WEIGHT_PLAIN ? 8 * element_bytes(format->type) : format->bits;
    /* The same row farther on or, at the end, the row that takes its place in the next run. */
    const size_t end = job->first_output + job->columns;
    const bool farther = output + AHEAD_COLUMNS < end;
    const size_t on =
        farther ? output + AHEAD_COLUMNS : smaller(job->first_output + output + AHEAD_COLUMNS - end, output);
    const size_t ahead = (farther ? 0 : RUN_INPUTS * row_bytes) + on * bits / 8;
    for (size_t i = 0; i < inputs; i++) {
        const char *row = (const char *)job->w + (first + i) * row_bytes;
        for (size_t line = 0; line < RUN_COLUMNS * bits / 8; line += 64)
            vf_prefetch(row + ahead + line);
        if (format->layout == PST_WEIGHT_PLAIN)
            kernel_convert(row + output * element_bytes(format->type), format->type, p->weights[i], columns);
        else
            kernel_dequantize(row, format, job->outputs, output, columns, p->weights[i]);
    }
}

/* Some rows of x and y with one panel. */
typedef struct chain_job {
    const float *x; /* rows x_step apart */
    size_t x_step;
    const float (*weights)[RUN_COLUMNS];
    size_t inputs;
    float *y;
    size_t y_stride, columns; /* columns: those left, maybe more than four vectors or fewer */
} chain_job;

typedef void chain_function(const chain_job *job);

static ALWAYS_INLINE size_t lanes_of(size_t columns, int vector)
{
    const size_t before = (size_t)vector * VF_LANES;
    return columns > before ? columns - before : 0;
}

static ALWAYS_INLINE void chains_of(const int rows, const chain_job *job)
{
    vf sums[VF_TILE_ROWS][4];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) {
            const size_t n = lanes_of(job->columns, c);
            sums[r][c] =
                n == 0 ? vf_zero() : load_raw((const char *)(job->y + (size_t)r * job->y_stride + c * VF_LANES), n);
        }
    }
    for (size_t i = 0; i < job->inputs; i++) {
        vf inputs[VF_TILE_ROWS];
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
            inputs[r] = vf_set1(job->x[(size_t)r * job->x_step + i]);
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) {
            const vf weights = vf_load_f32(job->weights[i] + c * VF_LANES);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++)
                sums[r][c] = vf_fma(inputs[r], weights, sums[r][c]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) {
            const size_t n = lanes_of(job->columns, c);
            float *y = job->y + (size_t)r * job->y_stride + c * VF_LANES;
            if (n >= VF_LANES)
                vf_store_f32(y, sums[r][c]);
            else if (n > 0)
                vf_store_f32_n(y, sums[r][c], n);
        }
    }
}

#define CHAINS(rows)                                                                                                   \
    static void chains_##rows(const chain_job *job)                                                                    \
    {                                                                                                                  \
        chains_of(rows, job);                                                                                          \
    }
CHAINS(1)
CHAINS(2)
#if VF_TILE_ROWS >= 3
CHAINS(3)
#endif
#if VF_TILE_ROWS >= 6
CHAINS(4)
CHAINS(5)
CHAINS(6)
#endif

/* [rows - 1] */
static chain_function *const chains[VF_TILE_ROWS] = {
    chains_1, chains_2,
#if VF_TILE_ROWS >= 3
    chains_3,
#endif
#if VF_TILE_ROWS >= 6
    chains_4, chains_5, chains_6,
#endif
};

/* All rows with one panel: inputs from `first` on of those at hand, outputs from column `column` on. */
static void add_panel(const pst_cpu_transposed *job, const panel *p, size_t first, size_t inputs, size_t column,
                      size_t columns)
{
    float packed[VF_TILE_ROWS * RUN_INPUTS];
    const size_t tile_count = (job->rows + VF_TILE_ROWS - 1) / VF_TILE_ROWS, x_bytes = element_bytes(job->x_type);
    for (size_t i = 0, row = 0, rows; i < tile_count; i++, row += rows) {
        rows = (job->rows - row) / (tile_count - i);
        const char *x = (const char *)job->x + (row * job->x_stride + first) * x_bytes;
        const bool as_is = job->x_type == PST_F32;
        for (size_t r = 0; r < rows && !as_is; r++)
            kernel_convert(x + r * job->x_stride * x_bytes, job->x_type, packed + r * RUN_INPUTS, inputs);
        for (size_t c = 0; c < columns; c += 4 * VF_LANES) {
            const chain_job chain = {
                .x = as_is ? (const float *)(const void *)x : packed,
                .x_step = as_is ? job->x_stride : RUN_INPUTS,
                .weights = (const float(*)[RUN_COLUMNS])(const void *)&p->weights[0][c],
                .inputs = inputs,
                .y = job->y + row * job->y_stride + column + c,
                .y_stride = job->y_stride,
                .columns = columns - c,
            };
            chains[rows - 1](&chain);
        }
    }
}

/* What the chains begin with. */
static void begin_row(const pst_cpu_transposed *job, float *y)
{
    for (size_t c = 0; c < job->columns; c += VF_LANES) {
        const size_t n = job->columns - c;
        const bool whole = n >= VF_LANES;
        vf a = job->accumulate ? load_raw((const char *)(y + c), n) : vf_zero();
        if (job->bias != NULL) {
            const vf bias =
                whole ? load_as_f32(job->bias_type, job->bias, c) : load_as_f32_n(job->bias_type, job->bias, c, n);
            a = job->accumulate ? vf_add(a, bias) : bias;
        }
        if (whole)
            vf_store_f32(y + c, a);
        else
            vf_store_f32_n(y + c, a, n);
    }
}

static void kernel_matmul_transposed(const pst_cpu_transposed *job)
{
    panel p;
    memset(&p, 0, sizeof p); /* lanes past the last output are computed, too */
    p.group = SIZE_MAX;
    for (size_t r = 0; r < job->rows && job->begin; r++)
        begin_row(job, job->y + r * job->y_stride);
    for (size_t first = 0; first < job->inputs; first += RUN_INPUTS) {
        const size_t inputs = smaller(RUN_INPUTS, job->inputs - first);
        for (size_t column = 0; column < job->columns; column += RUN_COLUMNS) {
            const size_t columns = smaller(RUN_COLUMNS, job->columns - column), output = job->first_output + column;
            if (job->format->layout == PST_WEIGHT_GPTQ)
                make_gptq(job, first, inputs, output, columns, &p);
            else if (job->format->layout == PST_WEIGHT_AWQ)
                make_awq(job, first, inputs, output, columns, &p);
            else
                make_rows(job, first, inputs, output, columns, &p);
            add_panel(job, &p, first, inputs, column, columns);
        }
    }
}

#endif
