/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether an accelerator could carry out a work: every operand is memory of the device, all of it, and aligned as
 * penstock/device_plugin.h says. Of a separate device only.
 */
#include "base/error.h"
#include "base/number.h"
#include "cpu/kv.h"
#include "cpu/weight.h"
#include "device/fault_internal.h"
#include "device/host.h"

enum { WEIGHT_ALIGNMENT = 256 };

/* What the messages call the works. */
static const char *const names[] = {[FAULT_CONVERT] = "convert",
                                    [FAULT_RMS_NORM] = "rms_norm",
                                    [FAULT_LAYER_NORM] = "layer_norm",
                                    [FAULT_MATMUL] = "matmul",
                                    [FAULT_ACTIVATE] = "activate",
                                    [FAULT_MATMUL_GROUPED] = "matmul_grouped",
                                    [FAULT_GATED] = "gated",
                                    [FAULT_ROPE] = "rope",
                                    [FAULT_TAKE_ROWS] = "take_rows",
                                    [FAULT_COPY_BLOCKS] = "copy_blocks",
                                    [FAULT_ADD_ROWS] = "add_rows",
                                    [FAULT_KV_STORE] = "kv_store",
                                    [FAULT_ATTENTION] = "attention",
                                    [FAULT_ROUTE] = "route",
                                    [FAULT_LOG_SUM_EXP] = "log_sum_exp",
                                    [FAULT_TOP] = "top",
                                    [FAULT_MATMUL_HEADS] = "matmul_heads"};

static int check_memory(fault_device *f, fault_kind kind, const char *what, const void *memory, uint64_t bytes)
{
    if (bytes == 0 || fault_find(f, memory, bytes) != NULL)
        return 0;
    return fault_misuse(f, "%s: %s, %llu bytes, is not memory of the device", names[kind], what,
                        (unsigned long long)bytes);
}

static int check_matrix(fault_device *f, fault_kind kind, const char *what, const pst_matrix *m)
{
    if (m->rows == 0 || m->columns == 0)
        return 0;
    const uint64_t bytes = pst_dtype_bits(m->type) / 8;
    return check_memory(f, kind, what, m->data, ((m->rows - 1) * m->stride + m->columns) * bytes);
}

/* The rows at hand. */
static uint64_t weight_bytes(const pst_weight *w)
{
    const pst_weight_format *format = w->format;
    if (format == NULL || format->layout == PST_WEIGHT_PLAIN)
        return (uint64_t)w->rows * w->columns * (pst_dtype_bits(w->type) / 8);
    switch (format->layout) {
    case PST_WEIGHT_GPTQ: return (uint64_t)w->rows * w->columns * sizeof(int32_t);
    case PST_WEIGHT_AWQ: return (uint64_t)w->rows * (w->columns / 8) * sizeof(int32_t);
    default: return (uint64_t)w->rows * pst_weight_row_bytes(format, w->columns);
    }
}

static int check_weight(fault_device *f, fault_kind kind, const pst_weight *w)
{
    if (w->data == NULL || w->rows == 0)
        return 0;
    PST_TRY(check_memory(f, kind, "a weight", w->data, weight_bytes(w)));
    if ((uintptr_t)w->data % WEIGHT_ALIGNMENT != 0)
        return fault_misuse(f, "%s: a weight does not begin at a multiple of %d bytes", names[kind], WEIGHT_ALIGNMENT);
    PST_TRY(check_memory(f, kind, "scales", w->scales, w->scales != NULL));
    PST_TRY(check_memory(f, kind, "zeros", w->zeros, w->zeros != NULL));
    return check_memory(f, kind, "an index", w->index, w->index != NULL);
}

/* A bias is cut to the columns at hand, so that it begins anywhere. */
static int check_vector(fault_device *f, fault_kind kind, const pst_weight *w)
{
    return w->data == NULL ? 0 : check_memory(f, kind, "a bias", w->data, weight_bytes(w));
}

static int check_segments(fault_device *f, fault_kind kind, const pst_segments *s)
{
    return check_memory(f, kind, "the segments", s->items, s->count * sizeof *s->items);
}

/* A call with a transposed format goes on where the one before ended, or is a run's first. */
static int check_run(fault_device *f, const pst_matmul *job)
{
    if (job->w.format == NULL || !job->w.format->transposed || job->x.rows == 0 || job->w.rows == 0)
        return 0;
    const void *y = (const float *)job->y.data + job->first_column;
    if (job->w.first_row != 0 && (job->w.first_row != f->run_rows || y != f->run_y))
        return fault_misuse(f, "matmul: row %zu of a transposed matrix does not follow those before it",
                            job->w.first_row);
    f->run_y = y;
    f->run_rows = job->w.first_row + job->w.rows;
    return 0;
}

static int check_matmul(fault_device *f, const pst_matmul *job)
{
    PST_TRY(check_matrix(f, FAULT_MATMUL, "x", &job->x));
    PST_TRY(check_matrix(f, FAULT_MATMUL, "y", &job->y));
    PST_TRY(check_vector(f, FAULT_MATMUL, &job->bias));
    if (job->prompt_rows > job->x.rows)
        return fault_misuse(f, "matmul: more rows of prompts than rows");
    PST_TRY(check_run(f, job));
    return check_weight(f, FAULT_MATMUL, &job->w);
}

static int check_grouped(fault_device *f, const pst_grouped_matmul *job)
{
    const fault_kind kind = FAULT_MATMUL_GROUPED;
    PST_TRY(check_matrix(f, kind, "x", &job->x));
    PST_TRY(check_matrix(f, kind, "y", &job->y));
    PST_TRY(check_memory(f, kind, "first", job->first, (job->groups + UINT64_C(1)) * sizeof *job->first));
    for (uint32_t g = 0; g < job->groups; g++)
        PST_TRY(check_weight(f, kind, &job->weights[g]));
    return 0;
}

static int check_heads(fault_device *f, const pst_heads_matmul *job)
{
    const fault_kind kind = FAULT_MATMUL_HEADS;
    if (job->heads == 0)
        return 0;
    const size_t inputs = job->rows_are_inputs ? job->head_rows : job->w.columns;
    const size_t outputs = job->rows_are_inputs ? job->w.columns : job->head_rows, last = job->heads - 1;
    PST_TRY(check_matrix(f, kind, "x", &job->x));
    PST_TRY(check_matrix(f, kind, "y", &job->y));
    if (job->x.columns != last * job->x_step + inputs || job->y.columns != last * job->y_step + outputs)
        return fault_misuse(f, "matmul_heads: columns do not reach from the first head to the last");
    if (job->first + last * job->step + job->head_rows > job->w.rows)
        return fault_misuse(f, "matmul_heads: the last head's matrix is outside the whole");
    if (job->prompt_rows > job->x.rows)
        return fault_misuse(f, "matmul_heads: more rows of prompts than rows");
    return check_weight(f, kind, &job->w);
}

static int check_block_copy(fault_device *f, const pst_block_copy *job)
{
    if (job->rows == 0 || job->blocks == 0 || job->columns == 0)
        return 0;
    const uint64_t x = (job->rows - 1) * job->x_row_stride + (job->blocks - 1) * job->x_block_stride + job->columns;
    const uint64_t y = (job->rows - 1) * job->y_row_stride + (job->blocks - 1) * job->y_block_stride + job->columns;
    PST_TRY(check_memory(f, FAULT_COPY_BLOCKS, "x", job->x, x * sizeof *job->x));
    return check_memory(f, FAULT_COPY_BLOCKS, "y", job->y, y * (pst_dtype_bits(job->y_type) / 8));
}

static int check_route(fault_device *f, const pst_route_job *job)
{
    const uint64_t picks = (uint64_t)job->logits.rows * job->per_row * sizeof(uint32_t);
    const uint64_t experts = job->logits.columns;
    PST_TRY(check_matrix(f, FAULT_ROUTE, "logits", &job->logits));
    if (job->correction != NULL)
        PST_TRY(check_memory(f, FAULT_ROUTE, "the correction", job->correction, experts * sizeof(float)));
    PST_TRY(check_memory(f, FAULT_ROUTE, "chosen", job->chosen, picks));
    PST_TRY(check_memory(f, FAULT_ROUTE, "weights", job->weights, picks));
    PST_TRY(check_memory(f, FAULT_ROUTE, "first", job->first, (experts + 1) * sizeof *job->first));
    PST_TRY(check_memory(f, FAULT_ROUTE, "order", job->order, picks));
    return check_memory(f, FAULT_ROUTE, "order_weight", job->order_weight, picks);
}

int fault_check_operands(fault_device *f, const fault_work *work)
{
    switch (work->kind) {
    case FAULT_MATMUL: return check_matmul(f, &work->job.matmul);
    case FAULT_MATMUL_GROUPED: return check_grouped(f, &work->job.grouped);
    case FAULT_MATMUL_HEADS: return check_heads(f, &work->job.heads);
    case FAULT_COPY_BLOCKS: return check_block_copy(f, &work->job.copy_blocks);
    case FAULT_ROUTE: return check_route(f, &work->job.route);
    case FAULT_KV_STORE:
        PST_TRY(check_matrix(f, work->kind, "k", &work->job.store.k));
        if (!work->job.store.layout.shared)
            PST_TRY(check_matrix(f, work->kind, "v", &work->job.store.v));
        return check_segments(f, work->kind, &work->job.store.segments);
    case FAULT_ATTENTION:
        PST_TRY(check_matrix(f, work->kind, "q", &work->job.attention.q));
        PST_TRY(check_matrix(f, work->kind, "out", &work->job.attention.out));
        if (work->job.attention.alibi != NULL)
            PST_TRY(check_memory(f, work->kind, "alibi", work->job.attention.alibi,
                                 work->job.attention.heads * sizeof(float)));
        return check_segments(f, work->kind, &work->job.attention.segments);
    default: break;
    }
    /* Those whose operands are matrices, a weight, and lists by row. What a work has not is zero. */
    const uint64_t listed = work->kind == FAULT_TAKE_ROWS ? work->y.rows : work->x.rows;
    const uint64_t results = work->kind == FAULT_LOG_SUM_EXP ? listed * sizeof(double) : listed * work->count * 4;
    PST_TRY(check_matrix(f, work->kind, "x", &work->x));
    PST_TRY(check_matrix(f, work->kind, "z", &work->z));
    PST_TRY(check_matrix(f, work->kind, "y", &work->y));
    PST_TRY(check_weight(f, work->kind, &work->w));
    PST_TRY(check_weight(f, work->kind, &work->b));
    if (work->numbers != NULL)
        PST_TRY(check_memory(f, work->kind, "the list of rows", work->numbers, listed * sizeof *work->numbers));
    if (work->kind == FAULT_ADD_ROWS)
        PST_TRY(check_memory(f, work->kind, "the rows' weights", work->floats, listed * sizeof *work->floats));
    if (work->doubles != NULL)
        PST_TRY(check_memory(f, work->kind, "the factors", work->doubles, listed * sizeof *work->doubles));
    if (work->results[0] != NULL)
        PST_TRY(check_memory(f, work->kind, "the result", work->results[0], results));
    return work->results[1] == NULL ? 0 : check_memory(f, work->kind, "the columns", work->results[1], results);
}

static int check_blocks(fault_device *f, fault_kind kind, const pst_segments *segments, uint64_t block_offset,
                        const pst_kv_layout *layout, uint32_t window)
{
    for (size_t i = 0; i < segments->count; i++) {
        const pst_segment *whole = &segments->items[i];
        if (whole->rows > segments->max_rows || whole->first_position + whole->rows > segments->max_positions)
            return fault_misuse(f, "%s: a segment is larger than max_rows or max_positions say", names[kind]);
        if (i < segments->generated && (whole->rows > segments->generated_max_rows ||
                                        whole->first_position + whole->rows > segments->generated_max_positions))
            return fault_misuse(f, "%s: a segment is larger than the sizes of generated ones say", names[kind]);
        const pst_segment cut = host_segment(segments, i), *s = &cut;
        if (s->rows == 0)
            continue;
        const uint64_t end = (s->first_position + s->rows + PST_KV_BLOCK - 1) / PST_KV_BLOCK;
        /* The first row's window is the lowest; what is stored has none. */
        uint64_t first = s->first_position / PST_KV_BLOCK;
        if (kind == FAULT_ATTENTION)
            first = window == 0 || window > s->first_position ? 0 : (s->first_position + 1 - window) / PST_KV_BLOCK;
        PST_TRY(check_memory(f, kind, "a table of blocks", s->blocks + first, (end - first) * sizeof *s->blocks));
        for (uint64_t b = first; b < end; b++)
            PST_TRY(check_memory(f, kind, "a block", (const char *)s->blocks[b] + block_offset,
                                 pst_kv_block_bytes(layout)));
    }
    return 0;
}

static int check_rows(fault_device *f, const fault_work *work, uint64_t count, uint64_t end)
{
    for (uint64_t i = 0; i < count; i++)
        if (work->numbers[i] >= end)
            return fault_misuse(f, "%s: the list of rows names row %u of %llu", names[work->kind], work->numbers[i],
                                (unsigned long long)end);
    return 0;
}

int fault_check_contents(fault_device *f, const fault_work *work)
{
    const pst_kv_store *store = &work->job.store;
    const pst_attention *attention = &work->job.attention;
    const pst_grouped_matmul *grouped = &work->job.grouped;
    uint32_t most = 0;
    switch (work->kind) {
    case FAULT_KV_STORE: return check_blocks(f, work->kind, &store->segments, store->block_offset, &store->layout, 0);
    case FAULT_ATTENTION:
        return check_blocks(f, work->kind, &attention->segments, attention->block_offset, &attention->layout,
                            attention->window);
    case FAULT_TAKE_ROWS: return check_rows(f, work, work->y.rows, work->x.rows);
    case FAULT_ADD_ROWS: return check_rows(f, work, work->x.rows, work->y.rows);
    case FAULT_MATMUL_GROUPED:
        for (uint32_t g = 0; g < grouped->groups; g++)
            if (grouped->first[g] > grouped->first[g + 1] || grouped->first[g + 1] > grouped->x.rows)
                return fault_misuse(f, "matmul_grouped: first[%u] is not between its neighbours", g);
        return 0;
    case FAULT_ROPE:
        for (size_t row = 0; row < work->x.rows; row++)
            most = (uint32_t)pst_max(most, work->numbers[row]);
        return check_memory(f, work->kind, "the table of angles", work->floats,
                            work->x.rows == 0 ? 0 : (most + UINT64_C(1)) * work->rotary * sizeof(float));
    default: return 0;
    }
}
