/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Products of heads, each with a matrix of its own, on the host: a task is some rows by some outputs of one head. Matrices
 * that are not plain become numbers in a task's scratch memory first, the same ones in any cut, so that no result depends on
 * it.
 */
#include "base/error.h"
#include "device/host.h"

enum {
    TASKS_PER_THREAD = 4,
    SMALL_PRODUCT = 64 << 10, /* multiplications that one thread does before another is awake */
    TASK_ROWS = 64,           /* at most */
    PIECE = 16                /* outputs that tiles and vectors divide: those of a task are a multiple */
};

typedef struct heads_cut {
    const host_device *host;
    const pst_heads_matmul *job;
    bool is_plain;
    size_t inputs, outputs; /* of a head */
    size_t rows_per_task, row_tasks, columns_per_task, column_tasks;
} heads_cut;

/* Outputs [column, column + columns) of rows [row, row + rows) of one head. */
typedef struct heads_block {
    size_t head, row, rows, column, columns;
    const float *x;
    float *y;
    size_t y_stride;
} heads_block;

static size_t lesser(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Floats of scratch memory: of weights as numbers; of results before they are rounded. */
static size_t weight_floats(const heads_cut *cut)
{
    return cut->is_plain ? 0 : cut->inputs * cut->columns_per_task;
}

static size_t result_floats(const heads_cut *cut)
{
    return cut->job->y.type == PST_F32 ? 0 : cut->rows_per_task * cut->columns_per_task;
}

/* Rows of the block's part of the matrix as numbers. */
static void convert_part(const heads_cut *cut, const heads_block *b, size_t first, float *to)
{
    const pst_weight *w = &cut->job->w;
    if (cut->job->rows_are_inputs) {
        for (size_t i = 0; i < cut->inputs; i++)
            host_convert_row(cut->host, w, first + i, b->column, b->columns, to + i * b->columns);
        return;
    }
    for (size_t n = 0; n < b->columns; n++)
        host_convert_row(cut->host, w, first + b->column + n, 0, w->columns, to + n * w->columns);
}

static void multiply(const heads_cut *cut, const heads_block *b, float *scratch)
{
    const pst_heads_matmul *job = cut->job;
    const pst_weight *w = &job->w;
    const size_t first = job->first + b->head * job->step, row_bytes = w->columns * (pst_dtype_bits(w->type) / 8);
    const pst_dtype type = cut->is_plain ? w->type : PST_F32;
    const char *data = (const char *)w->data + first * row_bytes;
    if (!cut->is_plain) {
        convert_part(cut, b, first, scratch);
        data = (const char *)scratch;
    }
    if (job->rows_are_inputs) {
        const pst_weight_format format = {.layout = PST_WEIGHT_PLAIN, .type = type, .transposed = true};
        const pst_cpu_transposed product = {.x = b->x,
                                            .x_stride = job->x.stride,
                                            .x_type = PST_F32,
                                            .w = data,
                                            .format = &format,
                                            .outputs = cut->is_plain ? w->columns : b->columns,
                                            .first_output = cut->is_plain ? b->column : 0,
                                            .columns = b->columns,
                                            .inputs = cut->inputs,
                                            .y = b->y,
                                            .y_stride = b->y_stride,
                                            .rows = b->rows,
                                            .begin = true};
        cut->host->kernels->matmul_transposed(&product);
        return;
    }
    const pst_cpu_matmul product = {.x = b->x,
                                    .x_stride = job->x.stride,
                                    .x_type = PST_F32,
                                    .w = cut->is_plain ? data + b->column * row_bytes : data,
                                    .w_type = type,
                                    .y = b->y,
                                    .y_stride = b->y_stride,
                                    .rows = b->rows,
                                    .columns = b->columns,
                                    .k = w->columns};
    cut->host->kernels->matmul(&product);
}

/* Tasks of one head come one after the other. */
static void heads_task(void *context, uint32_t task, uint32_t worker)
{
    const heads_cut *cut = context;
    const pst_heads_matmul *job = cut->job;
    const size_t per_head = cut->column_tasks * cut->row_tasks;
    float *scratch = cut->host->scratch + worker * cut->host->scratch_floats;
    heads_block b = {.head = task / per_head,
                     .row = task % cut->row_tasks * cut->rows_per_task,
                     .column = task % per_head / cut->row_tasks * cut->columns_per_task};
    b.rows = lesser(cut->rows_per_task, job->x.rows - b.row);
    b.columns = lesser(cut->columns_per_task, cut->outputs - b.column);
    b.x = (const float *)job->x.data + b.row * job->x.stride + b.head * job->x_step;
    const size_t to = b.row * job->y.stride + b.head * job->y_step + b.column;
    const bool rounds = job->y.type != PST_F32;
    b.y = rounds ? scratch + weight_floats(cut) : (float *)job->y.data + to;
    b.y_stride = rounds ? b.columns : job->y.stride;
    multiply(cut, &b, scratch);
    for (size_t r = 0; r < b.rows && rounds; r++)
        host_round_row(b.y + r * b.y_stride, (uint16_t *)job->y.data + to + r * job->y.stride, b.columns);
}

uint64_t pst_device_host_heads_bytes(uint32_t head_rows, uint32_t columns, uint32_t threads)
{
    const size_t outputs = head_rows > columns ? head_rows : columns;
    return (uint64_t)host_scratch_floats((size_t)head_rows * columns + TASK_ROWS * outputs) * sizeof(float) * threads;
}

int host_matmul_heads(pst_device *device, const pst_heads_matmul *job)
{
    host_device *host = host_of(device);
    const pst_weight *w = &job->w;
    const pst_weight_format *format = w->format;
    heads_cut cut = {.host = host,
                     .job = job,
                     .is_plain = format == NULL || format->layout == PST_WEIGHT_PLAIN,
                     .inputs = job->rows_are_inputs ? job->head_rows : w->columns,
                     .outputs = job->rows_are_inputs ? w->columns : job->head_rows};
    if (format != NULL && (format->transposed || format->layout == PST_WEIGHT_GPTQ || format->layout == PST_WEIGHT_AWQ))
        return PST_E_UNSUPPORTED;
    if (job->x.rows == 0 || job->heads == 0 || cut.outputs == 0)
        return 0;
    cut.rows_per_task = host_ceil(job->x.rows, host_ceil(job->x.rows, TASK_ROWS));
    cut.row_tasks = host_ceil(job->x.rows, cut.rows_per_task);
    const size_t tasks = job->heads * cut.row_tasks, wanted = (size_t)host->threads * TASKS_PER_THREAD;
    cut.columns_per_task = cut.outputs;
    if (host->threads > 1 && tasks < wanted)
        cut.columns_per_task = host_ceil(host_ceil(cut.outputs, host_ceil(wanted, tasks)), PIECE) * PIECE;
    cut.columns_per_task = lesser(cut.columns_per_task, cut.outputs);
    cut.column_tasks = host_ceil(cut.outputs, cut.columns_per_task);
    PST_TRY(host_reserve_scratch(host, weight_floats(&cut) + result_floats(&cut)));
    if (job->x.rows * job->heads * cut.inputs * cut.outputs > SMALL_PRODUCT) {
        host_run(host, tasks * cut.column_tasks, heads_task, &cut);
        return 0;
    }
    for (uint32_t task = 0; task < tasks * cut.column_tasks; task++)
        heads_task(&cut, task, 0);
    return 0;
}
