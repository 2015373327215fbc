/* SPDX-License-Identifier: Apache-2.0 */
/* The operators of the fault device: each becomes a work, and a work a call of the inner device. */
#include "base/error.h"
#include "device/fault_internal.h"

int fault_carry_out(fault_device *f, const fault_work *work)
{
    pst_device *inner = f->inner;
    const pst_device_ops *ops = inner->ops;
    const fault_work *w = work;
    switch (w->kind) {
    case FAULT_CONVERT: return ops->convert(inner, &w->w, &w->y);
    case FAULT_RMS_NORM: return ops->rms_norm(inner, &w->x, &w->w, w->eps, &w->y);
    case FAULT_LAYER_NORM: return ops->layer_norm(inner, &w->x, &w->w, &w->b, w->eps, &w->y);
    case FAULT_MATMUL: return ops->matmul(inner, &w->job.matmul);
    case FAULT_MATMUL_GROUPED: return ops->matmul_grouped(inner, &w->job.grouped);
    case FAULT_ACTIVATE: return ops->activate(inner, w->activation, &w->x, &w->y);
    case FAULT_GATED: return ops->gated(inner, w->activation, &w->x, &w->z, &w->y);
    case FAULT_ROPE:
        return ops->rope(inner, &w->x, w->heads, w->head_dim, w->rotary, w->interleaved, w->floats, w->numbers);
    case FAULT_COPY_BLOCKS: return ops->copy_blocks(inner, &w->job.copy_blocks);
    case FAULT_TAKE_ROWS: return ops->take_rows(inner, &w->x, w->numbers, &w->y);
    case FAULT_ADD_ROWS: return ops->add_rows(inner, &w->x, w->numbers, w->floats, &w->y);
    case FAULT_KV_STORE: return ops->kv_store(inner, &w->job.store);
    case FAULT_ATTENTION: return ops->attention(inner, &w->job.attention);
    case FAULT_ROUTE: return ops->route(inner, &w->job.route);
    case FAULT_LOG_SUM_EXP: return ops->log_sum_exp(inner, &w->x, w->doubles, w->results[0]);
    case FAULT_TOP: return ops->top(inner, &w->x, w->count, w->results[0], w->results[1]);
    case FAULT_MATMUL_HEADS: return ops->matmul_heads(inner, &w->job.heads);
    default: return PST_E_UNSUPPORTED;
    }
}

static int submit(pst_device *device, const fault_work *work)
{
    fault_device *f = fault_of(device);
    bool skip;
    PST_TRY(fault_strike(f, PST_DEVICE_OPERATOR, &skip));
    if (skip)
        return 0;
    if (f->separate)
        PST_TRY(fault_check_operands(f, work));
    return fault_submit(f, &f->compute, work);
}

static int fault_convert(pst_device *device, const pst_weight *w, const pst_matrix *y)
{
    const fault_work work = {.kind = FAULT_CONVERT, .w = *w, .y = *y};
    return submit(device, &work);
}

static int fault_rms_norm(pst_device *device, const pst_matrix *x, const pst_weight *w, float eps, const pst_matrix *y)
{
    const fault_work work = {.kind = FAULT_RMS_NORM, .x = *x, .w = *w, .eps = eps, .y = *y};
    return submit(device, &work);
}

static int fault_layer_norm(pst_device *device, const pst_matrix *x, const pst_weight *w, const pst_weight *b,
                            float eps, const pst_matrix *y)
{
    const fault_work work = {.kind = FAULT_LAYER_NORM, .x = *x, .w = *w, .b = *b, .eps = eps, .y = *y};
    return submit(device, &work);
}

static int fault_matmul(pst_device *device, const pst_matmul *job)
{
    const fault_work work = {.kind = FAULT_MATMUL, .job.matmul = *job};
    return submit(device, &work);
}

static int fault_matmul_grouped(pst_device *device, const pst_grouped_matmul *job)
{
    const fault_work work = {.kind = FAULT_MATMUL_GROUPED, .job.grouped = *job};
    return submit(device, &work);
}

static int fault_activate(pst_device *device, pst_activation activation, const pst_matrix *x, const pst_matrix *y)
{
    const fault_work work = {.kind = FAULT_ACTIVATE, .activation = activation, .x = *x, .y = *y};
    return submit(device, &work);
}

static int fault_gated(pst_device *device, pst_activation activation, const pst_matrix *gate, const pst_matrix *up,
                       const pst_matrix *y)
{
    const fault_work work = {.kind = FAULT_GATED, .activation = activation, .x = *gate, .z = *up, .y = *y};
    return submit(device, &work);
}

static int fault_rope(pst_device *device, const pst_matrix *x, uint32_t heads, uint32_t head_dim, uint32_t rotary,
                      bool interleaved, const float *table, const uint32_t *positions)
{
    const fault_work work = {.kind = FAULT_ROPE,
                             .x = *x,
                             .heads = heads,
                             .head_dim = head_dim,
                             .rotary = rotary,
                             .interleaved = interleaved,
                             .floats = table,
                             .numbers = positions};
    return submit(device, &work);
}

static int fault_copy_blocks(pst_device *device, const pst_block_copy *job)
{
    const fault_work work = {.kind = FAULT_COPY_BLOCKS, .job.copy_blocks = *job};
    return submit(device, &work);
}

static int fault_take_rows(pst_device *device, const pst_matrix *x, const uint32_t *rows, const pst_matrix *y)
{
    const fault_work work = {.kind = FAULT_TAKE_ROWS, .x = *x, .numbers = rows, .y = *y};
    return submit(device, &work);
}

static int fault_add_rows(pst_device *device, const pst_matrix *x, const uint32_t *rows, const float *weights,
                          const pst_matrix *y)
{
    const fault_work work = {.kind = FAULT_ADD_ROWS, .x = *x, .numbers = rows, .floats = weights, .y = *y};
    return submit(device, &work);
}

static int fault_kv_store(pst_device *device, const pst_kv_store *job)
{
    const fault_work work = {.kind = FAULT_KV_STORE, .job.store = *job};
    return submit(device, &work);
}

static int fault_attention(pst_device *device, const pst_attention *job)
{
    const fault_work work = {.kind = FAULT_ATTENTION, .job.attention = *job};
    return submit(device, &work);
}

static int fault_route(pst_device *device, const pst_route_job *job)
{
    const fault_work work = {.kind = FAULT_ROUTE, .job.route = *job};
    return submit(device, &work);
}

static int fault_log_sum_exp(pst_device *device, const pst_matrix *x, const double *factors, double *out)
{
    const fault_work work = {.kind = FAULT_LOG_SUM_EXP, .x = *x, .doubles = factors, .results = {out}};
    return submit(device, &work);
}

static int fault_top(pst_device *device, const pst_matrix *x, uint32_t count, float *values, uint32_t *columns)
{
    const fault_work work = {.kind = FAULT_TOP, .x = *x, .count = count, .results = {values, columns}};
    return submit(device, &work);
}

static int fault_matmul_heads(pst_device *device, const pst_heads_matmul *job)
{
    const fault_work work = {.kind = FAULT_MATMUL_HEADS, .job.heads = *job};
    return submit(device, &work);
}

void fault_set_operators(pst_device_ops *ops)
{
    ops->convert = fault_convert;
    ops->rms_norm = fault_rms_norm;
    ops->layer_norm = fault_layer_norm;
    ops->matmul = fault_matmul;
    ops->matmul_grouped = fault_matmul_grouped;
    ops->activate = fault_activate;
    ops->gated = fault_gated;
    ops->rope = fault_rope;
    ops->copy_blocks = fault_copy_blocks;
    ops->take_rows = fault_take_rows;
    ops->add_rows = fault_add_rows;
    ops->kv_store = fault_kv_store;
    ops->attention = fault_attention;
    ops->route = fault_route;
    ops->log_sum_exp = fault_log_sum_exp;
    ops->top = fault_top;
    ops->matmul_heads = fault_matmul_heads;
}
