/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Matrix products on the host: cuts a job into blocks of rows and columns for the threads. No result depends on the
 * cut: the kernels give a (row, column) the same bits in any block.
 */
#include "device/host.h"

enum {
    TASKS_PER_THREAD = 12,    /* so that threads which are slowed down by others end at about the same time */
    CHUNKS_PER_TASK = 8,      /* at most, for the same reason */
    SMALL_PRODUCT = 64 << 10, /* multiplications that one thread does before another is awake */
    X_BLOCK_BYTES = 4 << 20,  /* rows of x that stay in a shared cache while all weights pass by */
    X_BLOCK_ROWS = 64,        /* at least: the weights pass by once per block */
    ROWS_PER_TASK = 24        /* at least, when rows are cut to get enough tasks */
};

typedef struct matmul_cut {
    const host_device *host;
    const pst_matmul *job;
    size_t rows_per_task, columns_per_task, column_tasks, tasks;
} matmul_cut;

static size_t bytes_of(pst_dtype type)
{
    return pst_dtype_bits(type) / 8;
}

static size_t row_bytes_of(const pst_weight *w)
{
    const bool plain = w->format == NULL || w->format->layout == PST_WEIGHT_PLAIN;
    return plain ? w->columns * bytes_of(w->type) : pst_weight_row_bytes(w->format, w->columns);
}

static void matmul_task(void *context, uint32_t task, uint32_t worker)
{
    (void)worker;
    const matmul_cut *cut = context;
    const pst_matmul *job = cut->job;
    size_t row = task / cut->column_tasks * cut->rows_per_task;
    size_t column = task % cut->column_tasks * cut->columns_per_task;
    size_t rows = job->x.rows - row, columns = job->w.rows - column;
    rows = rows < cut->rows_per_task ? rows : cut->rows_per_task;
    columns = columns < cut->columns_per_task ? columns : cut->columns_per_task;
    const char *bias = job->bias.data;
    /* Tasks are taken in rising order, so this thread's next one is probably as far on as there are threads. */
    const size_t row_bytes = row_bytes_of(&job->w);
    const size_t next_task = task + cut->host->threads, next = next_task % cut->column_tasks * cut->columns_per_task;
    const bool more = next_task < cut->tasks && job->w.rows - next >= columns;
    pst_cpu_matmul block = {
        .x = (const char *)job->x.data + row * job->x.stride * bytes_of(job->x.type),
        .x_stride = job->x.stride,
        .x_type = job->x.type,
        .w = (const char *)job->w.data + column * row_bytes,
        .w_type = job->w.type,
        .bias = bias == NULL ? NULL : bias + column * bytes_of(job->bias.type),
        .bias_type = job->bias.type,
        .y = (float *)job->y.data + row * job->y.stride + job->first_column + column,
        .y_stride = job->y.stride,
        .rows = rows,
        .columns = columns,
        .k = job->w.columns,
        .accumulate = job->accumulate,
        .next_w = more ? (const char *)job->w.data + next * row_bytes : NULL,
        .format = job->w.format,
        .scales = job->w.scales,
        .w_row = job->w.first_row + column,
    };
    cut->host->kernels->matmul(&block);
}

/* Whole chunks of the kernels' where there are enough columns, else pieces that their tiles and vectors divide. */
static size_t columns_of_task(size_t columns, size_t tasks)
{
    const size_t chunks = columns / tasks / PST_CPU_MATMUL_COLUMNS;
    if (chunks > 0)
        return (chunks < CHUNKS_PER_TASK ? chunks : CHUNKS_PER_TASK) * PST_CPU_MATMUL_COLUMNS;
    size_t piece = host_ceil(host_ceil(columns, tasks), 16) * 16;
    return piece < PST_CPU_MATMUL_COLUMNS ? piece : PST_CPU_MATMUL_COLUMNS;
}

int host_matmul(pst_device *device, const pst_matmul *job)
{
    host_device *host = host_of(device);
    const size_t rows = job->x.rows, columns = job->w.rows, k = job->w.columns;
    if (job->w.format != NULL && job->w.format->transposed)
        return host_matmul_transposed(host, job);
    if (rows == 0 || columns == 0)
        return 0;
    matmul_cut cut = {.host = host, .job = job, .rows_per_task = rows, .columns_per_task = columns};
    if (rows * columns * k > SMALL_PRODUCT) {
        const size_t wanted = host->threads > 1 ? (size_t)host->threads * TASKS_PER_THREAD : 1;
        size_t x_rows = X_BLOCK_BYTES / (k * bytes_of(job->x.type) + 1);
        x_rows = x_rows < X_BLOCK_ROWS ? X_BLOCK_ROWS : x_rows;
        cut.rows_per_task = host_ceil(rows, host_ceil(rows, x_rows));
        if (wanted > 1)
            cut.columns_per_task = columns_of_task(columns, wanted);
        const size_t tasks = host_ceil(columns, cut.columns_per_task) * host_ceil(rows, cut.rows_per_task);
        if (tasks < wanted && cut.rows_per_task > ROWS_PER_TASK) {
            cut.rows_per_task = host_ceil(cut.rows_per_task, host_ceil(wanted, tasks));
            if (cut.rows_per_task < ROWS_PER_TASK)
                cut.rows_per_task = ROWS_PER_TASK;
        }
    }
    cut.column_tasks = host_ceil(columns, cut.columns_per_task);
    cut.tasks = cut.column_tasks * host_ceil(rows, cut.rows_per_task);
    host_run(host, cut.tasks, matmul_task, &cut);
    return 0;
}
