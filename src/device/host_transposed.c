/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Products with matrices whose rows are inputs, on the host: outputs (and rows, when there are many) are cut among the
 * threads; the chains over the inputs stay whole, so that no result depends on the cut.
 */
#include <string.h>

#include "device/host.h"

enum {
    TASKS_PER_THREAD = 4,
    SMALL_PRODUCT = 64 << 10, /* multiplications that one thread does before another is awake */
    TASK_COLUMNS = 512,       /* at most and */
    TASK_ROWS = 256,          /* at most, so that a task's part of y stays in the second level cache */
    LEAST_ROWS = 24           /* when rows are cut to get enough tasks */
};

typedef struct transposed_cut {
    const host_device *host;
    const pst_matmul *job;
    size_t inputs, first_input;
    size_t rows_per_task, columns_per_task, column_tasks;
} transposed_cut;

static void transposed_task(void *context, uint32_t task, uint32_t worker)
{
    (void)worker;
    const transposed_cut *cut = context;
    const pst_matmul *job = cut->job;
    const size_t row = task / cut->column_tasks * cut->rows_per_task;
    const size_t column = task % cut->column_tasks * cut->columns_per_task;
    const size_t rows = job->x.rows - row, columns = job->w.columns - column;
    const size_t x_bytes = pst_dtype_bits(job->x.type) / 8, bias_bytes = pst_dtype_bits(job->bias.type) / 8;
    const char *bias = job->bias.data;
    const pst_cpu_transposed block = {
        .x = (const char *)job->x.data + (row * job->x.stride + cut->first_input) * x_bytes,
        .x_stride = job->x.stride,
        .x_type = job->x.type,
        .w = job->w.data,
        .format = job->w.format,
        .scales = job->w.scales,
        .zeros = job->w.zeros,
        .index = job->w.index,
        .outputs = job->w.columns,
        .first_output = column,
        .columns = columns < cut->columns_per_task ? columns : cut->columns_per_task,
        .first_input = cut->first_input,
        .inputs = cut->inputs,
        .bias = bias == NULL ? NULL : bias + column * bias_bytes,
        .bias_type = job->bias.type,
        .y = (float *)job->y.data + row * job->y.stride + job->first_column + column,
        .y_stride = job->y.stride,
        .rows = rows < cut->rows_per_task ? rows : cut->rows_per_task,
        .begin = cut->first_input == 0,
        .accumulate = job->accumulate,
    };
    cut->host->kernels->matmul_transposed(&block);
}

/* The index comes from a file: a group that is not there would be read outside the scales. */
static int check_index(const pst_matmul *job, const transposed_cut *cut)
{
    if (job->w.format->layout != PST_WEIGHT_GPTQ || job->w.index == NULL)
        return 0;
    const size_t groups = host_ceil(job->x.columns, job->w.format->group);
    for (size_t i = 0; i < cut->inputs; i++) {
        int32_t group;
        memcpy(&group, (const char *)job->w.index + 4 * (cut->first_input + i), 4);
        if (group < 0 || (size_t)group >= groups)
            return PST_E_FORMAT;
    }
    return 0;
}

/* Whole chunks of columns, as wide as leaves enough tasks; then rows, when there are more than enough. */
static void cut_tasks(const pst_matmul *job, transposed_cut *cut)
{
    const size_t rows = job->x.rows, columns = job->w.columns, threads = cut->host->threads;
    const size_t wanted = threads > 1 ? threads * TASKS_PER_THREAD : 1;
    cut->rows_per_task = rows;
    cut->columns_per_task = columns;
    if (rows * columns * cut->inputs <= SMALL_PRODUCT)
        return;
    size_t chunks = columns / wanted / PST_CPU_MATMUL_COLUMNS;
    chunks = chunks > 0 ? chunks : 1;
    cut->columns_per_task = chunks * PST_CPU_MATMUL_COLUMNS;
    if (cut->columns_per_task > TASK_COLUMNS)
        cut->columns_per_task = TASK_COLUMNS;
    cut->rows_per_task = host_ceil(rows, host_ceil(rows, TASK_ROWS));
    const size_t tasks = host_ceil(columns, cut->columns_per_task) * host_ceil(rows, cut->rows_per_task);
    if (tasks < wanted && cut->rows_per_task > LEAST_ROWS) {
        cut->rows_per_task = host_ceil(cut->rows_per_task, host_ceil(wanted, tasks));
        if (cut->rows_per_task < LEAST_ROWS)
            cut->rows_per_task = LEAST_ROWS;
    }
}

int host_matmul_transposed(host_device *host, const pst_matmul *job)
{
    const pst_weight_format *format = job->w.format;
    const size_t per_row = format->layout == PST_WEIGHT_GPTQ ? 32 / format->bits : 1; /* inputs of a tensor's row */
    transposed_cut cut = {
        .host = host, .job = job, .inputs = job->w.rows * per_row, .first_input = job->w.first_row * per_row};
    if (job->x.rows == 0 || job->w.rows == 0 || job->w.columns == 0)
        return 0;
    if (cut.first_input + cut.inputs > job->x.columns)
        return PST_E_USAGE;
    const int status = check_index(job, &cut);
    if (status < 0)
        return status;
    cut_tasks(job, &cut);
    cut.column_tasks = host_ceil(job->w.columns, cut.columns_per_task);
    host_run(host, cut.column_tasks * host_ceil(job->x.rows, cut.rows_per_task), transposed_task, &cut);
    return 0;
}
