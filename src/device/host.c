/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The host's processor as a device: the operator table over the kernels of cpu/ and the caller's thread pool. Here
 * are the operators that go through rows once; products and attention have their own files. How work is cut among
 * threads is decided here and changes no result.
 */
#include "device/host.h"

#include <errno.h>

#include "base/error.h"
#include "base/heap.h"

enum { TASK_ELEMENTS = 8192 }; /* of work worth a task of its own: some microseconds */

/* An operator on the rows of x (and of more, which `job` knows), cut into blocks of rows and, where columns are
 * independent, of columns. */
typedef struct row_cut {
    const host_device *host;
    const void *job;
    size_t rows, columns, rows_per_task, columns_per_task, column_tasks;
    void (*block)(const struct row_cut *cut, size_t row, size_t column, size_t columns);
} row_cut;

static void *element(const pst_matrix *m, size_t row, size_t column)
{
    return (char *)m->data + (row * m->stride + column) * (pst_dtype_bits(m->type) / 8);
}

static const void *weight_element(const pst_weight *w, size_t row, size_t column)
{
    return (const char *)w->data + (row * w->columns + column) * (pst_dtype_bits(w->type) / 8);
}

void host_run(host_device *host, size_t tasks, pst_pool_body *body, void *context)
{
    if (tasks > 1 && host->threads > 1) {
        pst_pool_run(host->pool, (uint32_t)tasks, body, context);
        return;
    }
    for (uint32_t task = 0; task < tasks; task++)
        body(context, task, 0);
}

int host_reserve_scratch(host_device *host, size_t floats)
{
    floats = host_scratch_floats(floats);
    if (floats <= host->scratch_floats)
        return 0;
    float *grown = pst_heap_reallocarray(host->scratch, floats, host->threads * sizeof(float));
    if (grown == NULL)
        return -ENOMEM;
    host->scratch = grown;
    host->scratch_floats = floats;
    return 0;
}

static void row_task(void *context, uint32_t task, uint32_t worker)
{
    (void)worker;
    const row_cut *cut = context;
    size_t row = task / cut->column_tasks * cut->rows_per_task;
    size_t column = task % cut->column_tasks * cut->columns_per_task;
    size_t columns = cut->columns - column < cut->columns_per_task ? cut->columns - column : cut->columns_per_task;
    for (size_t i = 0; i < cut->rows_per_task && row + i < cut->rows; i++)
        cut->block(cut, row + i, column, columns);
}

/* Fills in the cut and runs it. */
static int run_rows(host_device *host, row_cut *cut, bool columns_independent)
{
    if (cut->rows == 0 || cut->columns == 0)
        return 0;
    cut->host = host;
    cut->columns_per_task = columns_independent && cut->columns > TASK_ELEMENTS ? TASK_ELEMENTS : cut->columns;
    cut->column_tasks = host_ceil(cut->columns, cut->columns_per_task);
    cut->rows_per_task = host_ceil(TASK_ELEMENTS, cut->columns_per_task);
    host_run(host, cut->column_tasks * host_ceil(cut->rows, cut->rows_per_task), row_task, cut);
    return 0;
}

typedef struct convert_job {
    const pst_weight *w;
    const pst_matrix *y;
} convert_job;

void host_convert_row(const host_device *host, const pst_weight *w, size_t row, size_t column, size_t columns, float *y)
{
    const pst_weight_format *format = w->format;
    if (format == NULL || format->layout == PST_WEIGHT_PLAIN) {
        host->kernels->convert(weight_element(w, row, column), w->type, y, columns);
        return;
    }
    const char *codes = (const char *)w->data + row * pst_weight_row_bytes(format, w->columns);
    if (format->layout == PST_WEIGHT_GROUPED) {
        host->kernels->dequantize(codes, format, w->columns, column, columns, y);
        return;
    }
    size_t scales_per_row = host_ceil(w->columns, format->block_columns);
    size_t first_scale = (w->first_row + row) / format->block_rows * scales_per_row;
    const char *scales = (const char *)w->scales + first_scale * (pst_dtype_bits(format->scale_type) / 8);
    host->kernels->dequantize_blocks(codes, format, scales, column, columns, y);
}

static void convert_block(const row_cut *cut, size_t row, size_t column, size_t columns)
{
    const convert_job *job = cut->job;
    host_convert_row(cut->host, job->w, row, column, columns, element(job->y, row, column));
}

static int host_convert(pst_device *device, const pst_weight *w, const pst_matrix *y)
{
    const pst_weight_format *format = w->format;
    if (format != NULL && (format->transposed || format->layout == PST_WEIGHT_GPTQ || format->layout == PST_WEIGHT_AWQ))
        return PST_E_UNSUPPORTED;
    const convert_job job = {w, y};
    row_cut cut = {.job = &job, .rows = w->rows, .columns = w->columns, .block = convert_block};
    return run_rows(host_of(device), &cut, true);
}

typedef struct norm_job {
    const pst_matrix *x, *y;
    const pst_weight *w;
    float eps;
} norm_job;

static void norm_block(const row_cut *cut, size_t row, size_t column, size_t columns)
{
    const norm_job *job = cut->job;
    cut->host->kernels->rms_norm(element(job->x, row, column), job->w->data, job->w->type, job->eps,
                                 element(job->y, row, column), job->y->type, columns);
}

static int host_rms_norm(pst_device *device, const pst_matrix *x, const pst_weight *w, float eps, const pst_matrix *y)
{
    const norm_job job = {x, y, w, eps};
    row_cut cut = {.job = &job, .rows = x->rows, .columns = x->columns, .block = norm_block};
    return run_rows(host_of(device), &cut, false);
}

typedef struct layer_norm_job {
    const pst_matrix *x, *y;
    const pst_weight *w, *b;
    float eps;
} layer_norm_job;

static void layer_norm_block(const row_cut *cut, size_t row, size_t column, size_t columns)
{
    const layer_norm_job *job = cut->job;
    cut->host->kernels->layer_norm(element(job->x, row, column), job->w->data, job->w->type, job->b->data, job->b->type,
                                   job->eps, element(job->y, row, column), job->y->type, columns);
}

static int host_layer_norm(pst_device *device, const pst_matrix *x, const pst_weight *w, const pst_weight *b, float eps,
                           const pst_matrix *y)
{
    const layer_norm_job job = {x, y, w, b, eps};
    row_cut cut = {.job = &job, .rows = x->rows, .columns = x->columns, .block = layer_norm_block};
    return run_rows(host_of(device), &cut, false);
}

typedef struct rope_job {
    const pst_matrix *x;
    uint32_t heads, head_dim, rotary;
    bool interleaved;
    const float *table;
    const uint32_t *positions;
} rope_job;

static void rope_block(const row_cut *cut, size_t row, size_t column, size_t columns)
{
    (void)columns;
    const rope_job *job = cut->job;
    cut->host->kernels->rope(element(job->x, row, column), job->heads, job->head_dim, job->rotary, job->interleaved,
                             job->table + (size_t)job->positions[row] * job->rotary);
}

static int host_rope(pst_device *device, const pst_matrix *x, uint32_t heads, uint32_t head_dim, uint32_t rotary,
                     bool interleaved, const float *table, const uint32_t *positions)
{
    const rope_job job = {x, heads, head_dim, rotary, interleaved, table, positions};
    row_cut cut = {.job = &job, .rows = x->rows, .columns = (size_t)heads * head_dim, .block = rope_block};
    return run_rows(host_of(device), &cut, false);
}

typedef struct store_job {
    const pst_kv_store *job;
    pst_segment segment;
} store_job;

static void store_block(const row_cut *cut, size_t row, size_t column, size_t columns)
{
    (void)column;
    (void)columns;
    const store_job *store = cut->job;
    const pst_segment *segment = &store->segment;
    const pst_kv_layout *l = &store->job->layout;
    const size_t position = segment->first_position + row, slot = position % PST_KV_BLOCK;
    char *block = (char *)segment->blocks[position / PST_KV_BLOCK] + store->job->block_offset;
    const float *k = element(&store->job->k, segment->first_row + row, 0);
    const size_t key_bytes = pst_kv_row_bytes(l->type, l->key_dim);
    for (uint32_t head = 0; head < l->kv_heads; head++)
        cut->host->kernels->kv_store(k + (size_t)head * l->key_dim,
                                     block + pst_kv_key_offset(l, head) + slot * key_bytes, l->type, l->key_dim);
    if (l->shared)
        return;
    const float *v = element(&store->job->v, segment->first_row + row, 0);
    const size_t value_bytes = pst_kv_row_bytes(l->type, l->value_dim);
    for (uint32_t head = 0; head < l->kv_heads; head++)
        cut->host->kernels->kv_store(v + (size_t)head * l->value_dim,
                                     block + pst_kv_value_offset(l, head) + slot * value_bytes, l->type, l->value_dim);
}

static int host_kv_store(pst_device *device, const pst_kv_store *job)
{
    const pst_kv_layout *l = &job->layout;
    for (size_t i = 0; i < job->segments.count; i++) {
        const store_job store = {job, host_segment(&job->segments, i)};
        row_cut cut = {.job = &store,
                       .rows = store.segment.rows,
                       .columns = (size_t)l->kv_heads * (l->key_dim + (l->shared ? 0 : l->value_dim)),
                       .block = store_block};
        PST_TRY(run_rows(host_of(device), &cut, false));
    }
    return 0;
}

typedef struct gated_job {
    pst_cpu_activation activation;
    const pst_matrix *gate, *up, *y;
} gated_job;

static void gated_block(const row_cut *cut, size_t row, size_t column, size_t columns)
{
    const gated_job *job = cut->job;
    cut->host->kernels->gated(job->activation, element(job->gate, row, column), element(job->up, row, column),
                              element(job->y, row, column), job->y->type, columns);
}

static int host_gated(pst_device *device, pst_activation activation, const pst_matrix *gate, const pst_matrix *up,
                      const pst_matrix *y)
{
    _Static_assert((int)PST_ACT_SILU == (int)PST_CPU_SILU && (int)PST_ACT_GELU == (int)PST_CPU_GELU &&
                       (int)PST_ACT_GELU_TANH == (int)PST_CPU_GELU_TANH && (int)PST_ACT_RELU == (int)PST_CPU_RELU &&
                       (int)PST_ACT_IDENTITY == (int)PST_CPU_IDENTITY,
                   "the device's activations are the kernels'");
    const gated_job job = {(pst_cpu_activation)activation, gate, up, y};
    row_cut cut = {.job = &job, .rows = gate->rows, .columns = gate->columns, .block = gated_block};
    return run_rows(host_of(device), &cut, true);
}

typedef struct activate_job {
    pst_cpu_activation activation;
    const pst_matrix *x, *y;
} activate_job;

static void activate_block(const row_cut *cut, size_t row, size_t column, size_t columns)
{
    const activate_job *job = cut->job;
    cut->host->kernels->activate(job->activation, element(job->x, row, column), element(job->y, row, column),
                                 job->y->type, columns);
}

static int host_activate(pst_device *device, pst_activation activation, const pst_matrix *x, const pst_matrix *y)
{
    const activate_job job = {(pst_cpu_activation)activation, x, y};
    row_cut cut = {.job = &job, .rows = x->rows, .columns = x->columns, .block = activate_block};
    return run_rows(host_of(device), &cut, true);
}

typedef struct log_sum_exp_job {
    const pst_matrix *x;
    const double *factors;
    double *out;
} log_sum_exp_job;

static void log_sum_exp_block(const row_cut *cut, size_t row, size_t column, size_t columns)
{
    const log_sum_exp_job *job = cut->job;
    job->out[row] = cut->host->kernels->log_sum_exp(element(job->x, row, column), columns,
                                                    job->factors != NULL ? job->factors[row] : 1.0);
}

static int host_log_sum_exp(pst_device *device, const pst_matrix *x, const double *factors, double *out)
{
    const log_sum_exp_job job = {x, factors, out};
    row_cut cut = {.job = &job, .rows = x->rows, .columns = x->columns, .block = log_sum_exp_block};
    return run_rows(host_of(device), &cut, false);
}

static void host_destroy(pst_device *device)
{
    host_device *host = host_of(device);
    pst_heap_free(host->scratch);
    pst_heap_free(host);
}

static const char *host_last_error(pst_device *device)
{
    (void)device;
    return "";
}

static const pst_device_ops host_ops = {
    .struct_size = sizeof(pst_device_ops),
    .name = "host",
    .is_host = true,
    .last_error = host_last_error,
    .allocate = host_allocate,
    .release = host_release,
    .register_host = host_register,
    .unregister_host = host_unregister,
    .memory_info = host_memory_info,
    .stream_create = host_stream_create,
    .stream_destroy = host_stream_destroy,
    .event_create = host_event_create,
    .event_destroy = host_event_destroy,
    .event_record = host_event_record,
    .stream_wait = host_stream_wait,
    .event_wait = host_event_wait,
    .event_query = host_event_wait,
    .synchronize = host_synchronize,
    .copy = host_copy,
    .fill = host_fill,
    .copy_blocks = host_copy_blocks,
    .convert = host_convert,
    .rms_norm = host_rms_norm,
    .layer_norm = host_layer_norm,
    .matmul = host_matmul,
    .matmul_grouped = host_matmul_grouped,
    .rope = host_rope,
    .kv_store = host_kv_store,
    .attention = host_attention,
    .gated = host_gated,
    .take_rows = host_take_rows,
    .add_rows = host_add_rows,
    .route = host_route,
    .top = host_top,
    .record_begin = host_record_begin,
    .record_end = host_record_end,
    .replay = host_replay,
    .recording_destroy = host_recording_destroy,
    .activate = host_activate,
    .log_sum_exp = host_log_sum_exp,
    .matmul_heads = host_matmul_heads,
    .destroy = host_destroy,
};

int pst_device_host_create(pst_pool *pool, const char *kernels, pst_device **out, pst_error *err)
{
    const pst_cpu_kernels *set = pst_cpu_select(kernels);
    if (set == NULL)
        return pst_fail(err, PST_E_UNSUPPORTED, NULL, "kernel set \"%s\" is unknown or does not run on this processor",
                        kernels);
    host_device *host = pst_heap_calloc(1, sizeof *host);
    if (host == NULL)
        return pst_fail_memory(err, "the host device", sizeof *host);
    host->base.ops = &host_ops;
    host->pool = pool;
    host->threads = pst_pool_threads(pool);
    host->kernels = set;
    *out = &host->base;
    return 0;
}

const char *pst_device_host_kernels(const pst_device *device)
{
    return ((const host_device *)(const void *)device)->kernels->name;
}

uint64_t pst_device_host_stack_bytes(uint32_t threads)
{
    return (uint64_t)threads * PST_CPU_STACK_BYTES;
}

void pst_device_destroy(pst_device *device)
{
    if (device != NULL)
        device->ops->destroy(device);
}
