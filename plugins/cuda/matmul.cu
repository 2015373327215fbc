/* SPDX-License-Identifier: Apache-2.0 */
/*
 * matmul and matmul_grouped: checks jobs, describes weights to the kernels and chooses among these. matmul_job.h says in
 * which order sums are made, which no choice among the plugin's kernels changes: an output has the same bits from all of them, so
 * grouped products have those of matmul, and the number of rows of x does not count. Rows of prompts may be a vendor's
 * library's, all of them then: blas.h.
 */
#include "blas.h"

enum { LARGEST = 1 << 30 }; /* rows, columns and outputs: the kernels count in 32 bits */

static bool is_plain(const pst_weight *w)
{
    return w->format == NULL || w->format->layout == PST_WEIGHT_PLAIN;
}

/* The largest power of 2 up to 16 that divides all of these. */
static uint32_t alignment_of(uint64_t bits)
{
    return bits % 16 == 0 ? 16 : (uint32_t)(bits & (~bits + 1));
}

static int shift_of(uint32_t count)
{
    int shift = 0;
    while (shift < 31 && (1u << shift) < count)
        shift++;
    return (1u << shift) == count ? shift : -1;
}

static int describe_plain(pst_dtype type, mm_weights *out)
{
    switch (type) {
    case PST_F32: out->form = MM_F32; break;
    case PST_F16: out->form = MM_F16; break;
    case PST_BF16: out->form = MM_BF16; break;
    default: return PST_E_UNSUPPORTED;
    }
    out->row_bytes = out->k * (uint64_t)(out->form == MM_F32 ? 4 : 2);
    return 0;
}

static int describe_grouped(const pst_weight_format *format, mm_weights *out)
{
    if ((format->bits != 4 && format->bits != 8) || format->group == 0 || format->group % 2 != 0)
        return PST_E_UNSUPPORTED;
    out->form = format->bits == 4 ? MM_G4 : MM_G8;
    out->group = format->group;
    out->symmetric = format->symmetric;
    out->code_bytes = format->bits == 4 ? (out->k + 1) / 2 : out->k;
    out->row_bytes = out->code_bytes + mm_ceil(out->k, out->group) * (uint64_t)(out->symmetric ? 2 : 4);
    return 0;
}

static int describe_blocks(const pst_weight_format *format, mm_weights *out)
{
    const bool is_bf16 = format->scale_type == PST_BF16;
    if ((!is_bf16 && format->scale_type != PST_F32) || format->block_rows == 0 || format->block_columns == 0)
        return PST_E_UNSUPPORTED;
    out->form = MM_F8;
    out->group = format->block_columns;
    out->block_rows = format->block_rows;
    out->scales_per_row = mm_ceil(out->k, format->block_columns);
    out->scales_bf16 = is_bf16;
    out->row_bytes = out->k;
    return 0;
}

int mm_describe(const pst_weight *w, uint64_t addresses, uint64_t scale_addresses, mm_weights *out)
{
    *out = {};
    out->outputs = (uint32_t)w->rows;
    out->k = (uint32_t)w->columns;
    out->first_row = w->first_row;
    out->group = 1;
    int status;
    if (is_plain(w))
        status = describe_plain(w->format != NULL ? w->format->type : w->type, out);
    else if (w->format->layout == PST_WEIGHT_GROUPED)
        status = describe_grouped(w->format, out);
    else
        status = w->format->layout == PST_WEIGHT_FP8_BLOCKS ? describe_blocks(w->format, out) : PST_E_UNSUPPORTED;
    if (status < 0)
        return status;
    out->group_shift = shift_of(out->group);
    const bool grouped = out->form == MM_G8 || out->form == MM_G4;
    const bool scales_fit = out->form != MM_F8 || scale_addresses % (out->scales_bf16 ? 2 : 4) == 0;
    out->align = alignment_of(addresses | out->row_bytes | out->code_bytes % 4);
    out->fast = out->align >= (grouped ? 4 : 16) && (is_plain(w) || out->group % 16 == 0) && scales_fit;
    return 0;
}

static bool fits(const pst_matrix *x, const pst_matrix *y, const pst_weight *w)
{
    return x->rows <= LARGEST && w->rows <= LARGEST && w->columns <= LARGEST && x->columns == w->columns &&
           (x->type == PST_F32 || x->type == PST_BF16) && y->type == PST_F32;
}

static void set_operands(mm_job *job, const pst_matrix *x, const pst_matrix *y, size_t first_column)
{
    const size_t x_bytes = x->type == PST_F32 ? 4 : 2;
    job->x = (const uint8_t *)x->data;
    job->x_stride = x->stride;
    job->x_fast = (((uintptr_t)x->data | x->stride * x_bytes) & 15) == 0;
    job->y = (float *)y->data + first_column;
    job->y_stride = y->stride;
    job->rows = (uint32_t)x->rows;
    job->units = mm_ceil(job->w.k, MM_UNIT);
    job->range_units = mm_ceil(job->units, MM_RANGES);
}

/* The plugin's own kernels, of which one is chosen by what the host knows: all give the same bits. */
static int run(cuda_device *device, const mm_job *job, pst_dtype x_type, const mm_table *table)
{
    if (x_type == PST_F32)
        return mm_f32(device, job, table);
    const uint32_t rows = job->first == NULL ? job->rows : mm_ceil(job->rows, job->groups);
    return rows <= MM_FEW_ROWS ? mm_few(device, job, table) : mm_tiles(device, job, table);
}

/*
 * The one place where bits are decided on. A vendor's library, whose sums have another order, computes the rows of prompts where
 * it may (blas.h: a matter of device, library and k), whatever their number; all other rows, and all of grouped products, are
 * the plugin's own.
 */
static int run_phases(cuda_device *device, const mm_job *job, pst_dtype x_type, uint32_t prompt_rows,
                      const mm_table *table)
{
    if (x_type == PST_F32 || prompt_rows == 0)
        return run(device, job, x_type, table);
    mm_job generated = *job, prompts = *job;
    generated.rows = job->rows - prompt_rows;
    prompts.rows = prompt_rows;
    prompts.x += 2 * generated.rows * job->x_stride;
    prompts.y += generated.rows * job->y_stride;
    const int status = mm_blas(device, &prompts, table);
    if (status == 0)
        return run(device, job, x_type, table);
    if (status < 0)
        return status;
    return generated.rows == 0 ? 0 : run(device, &generated, x_type, table);
}

int pst_cuda_matmul(cuda_device *device, const pst_matmul *job)
{
    if (job->w.format != NULL && job->w.format->transposed)
        return mm_transposed(device, job);
    if (job->x.rows == 0 || job->w.rows == 0)
        return 0;
    if (!fits(&job->x, &job->y, &job->w))
        return pst_cuda_fail(device, PST_E_UNSUPPORTED, "a product of %zu x %zu by %zu x %zu", job->x.rows,
                             job->x.columns, job->w.rows, job->w.columns);
    mm_table table = {};
    mm_job own = {};
    if (mm_describe(&job->w, (uintptr_t)job->w.data, (uintptr_t)job->w.scales, &own.w) < 0)
        return pst_cuda_fail(device, PST_E_UNSUPPORTED, "a product with weights of a format that is not known");
    table.data[0] = (const uint8_t *)job->w.data;
    table.scales[0] = (const uint8_t *)job->w.scales;
    set_operands(&own, &job->x, &job->y, job->first_column);
    own.accumulate = job->accumulate;
    own.bias = (const uint8_t *)job->bias.data;
    own.bias_type = job->bias.type;
    own.groups = 1;
    const size_t prompt_rows = job->prompt_rows < job->x.rows ? job->prompt_rows : job->x.rows;
    return run_phases(device, &own, job->x.type, (uint32_t)prompt_rows, &table);
}

/* The matrices from `first` on that a launch has room for. */
static int run_groups(cuda_device *device, const pst_grouped_matmul *job, uint32_t first)
{
    const uint32_t room = MM_TABLE, count = job->groups - first < room ? job->groups - first : room;
    const pst_weight *shape = NULL;
    uint64_t addresses = 0, scale_addresses = 0;
    mm_table table = {};
    mm_job own = {};
    for (uint32_t g = 0; g < count; g++) {
        const pst_weight *w = &job->weights[first + g];
        if (w->data == NULL)
            continue;
        shape = w;
        addresses |= (uintptr_t)w->data;
        scale_addresses |= (uintptr_t)w->scales;
        table.data[g] = (const uint8_t *)w->data;
        table.scales[g] = (const uint8_t *)w->scales;
    }
    if (shape == NULL || shape->rows == 0)
        return 0;
    if (!fits(&job->x, &job->y, shape) || (shape->format != NULL && shape->format->transposed) ||
        mm_describe(shape, addresses, scale_addresses, &own.w) < 0)
        return pst_cuda_fail(device, PST_E_UNSUPPORTED, "grouped products of %zu x %zu by %zu x %zu", job->x.rows,
                             job->x.columns, shape->rows, shape->columns);
    set_operands(&own, &job->x, &job->y, 0);
    own.first = job->first + first;
    own.groups = count;
    return run(device, &own, job->x.type, &table);
}

int pst_cuda_matmul_grouped(cuda_device *device, const pst_grouped_matmul *job)
{
    if (job->x.rows == 0)
        return 0;
    for (uint32_t first = 0; first < job->groups; first += MM_TABLE) {
        const int status = run_groups(device, job, first);
        if (status < 0)
            return status;
    }
    return 0;
}
