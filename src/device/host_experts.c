/* SPDX-License-Identifier: Apache-2.0 */
/* Rows to and from experts: gathered before their products and added, weighted, after them. Both only move memory, so
 * that a task is as many rows as make it worth waking a thread. And the products of all experts, one after the other: each
 * has the threads to itself. */
#include <string.h>

#include "base/error.h"
#include "device/host.h"

enum { TASK_BYTES = 1 << 17 };

typedef struct rows_job {
    const pst_matrix *x, *y;
    const uint32_t *rows;
    const float *weights;
    size_t count, rows_per_task;
} rows_job;

static void take_task(void *context, uint32_t task, uint32_t worker)
{
    (void)worker;
    const rows_job *job = context;
    const size_t element = pst_dtype_bits(job->x->type) / 8, bytes = job->x->columns * element;
    size_t end = (task + (size_t)1) * job->rows_per_task;
    for (size_t i = task * job->rows_per_task; i < job->count && i < end; i++)
        memcpy((char *)job->y->data + i * job->y->stride * element,
               (const char *)job->x->data + job->rows[i] * job->x->stride * element, bytes);
}

static void add_task(void *context, uint32_t task, uint32_t worker)
{
    (void)worker;
    const rows_job *job = context;
    size_t end = (task + (size_t)1) * job->rows_per_task;
    for (size_t i = task * job->rows_per_task; i < job->count && i < end; i++) {
        const float *x = (const float *)job->x->data + i * job->x->stride;
        float *y = (float *)job->y->data + job->rows[i] * job->y->stride, weight = job->weights[i];
        for (size_t c = 0; c < job->x->columns; c++)
            y[c] += weight * x[c];
    }
}

static int run(pst_device *device, rows_job *job, pst_pool_body *body)
{
    size_t row_bytes = job->x->columns * pst_dtype_bits(job->x->type) / 8;
    job->rows_per_task = row_bytes < TASK_BYTES ? TASK_BYTES / (row_bytes + 1) + 1 : 1;
    host_run(host_of(device), host_ceil(job->count, job->rows_per_task), body, job);
    return 0;
}

int host_take_rows(pst_device *device, const pst_matrix *x, const uint32_t *rows, const pst_matrix *y)
{
    rows_job job = {.x = x, .y = y, .rows = rows, .count = y->rows};
    return run(device, &job, take_task);
}

int host_add_rows(pst_device *device, const pst_matrix *x, const uint32_t *rows, const float *weights,
                  const pst_matrix *y)
{
    rows_job job = {.x = x, .y = y, .rows = rows, .weights = weights, .count = x->rows};
    return run(device, &job, add_task);
}

int host_matmul_grouped(pst_device *device, const pst_grouped_matmul *job)
{
    const size_t x_bytes = pst_dtype_bits(job->x.type) / 8;
    for (uint32_t g = 0; g < job->groups; g++) {
        const pst_weight *w = &job->weights[g];
        if (w->format != NULL && w->format->transposed)
            return PST_E_UNSUPPORTED;
        if (w->data == NULL)
            continue;
        pst_matmul one = {.x = job->x, .w = *w, .y = job->y};
        one.x.rows = one.y.rows = job->first[g + 1] - job->first[g];
        one.x.data = (char *)job->x.data + job->first[g] * job->x.stride * x_bytes;
        one.y.data = (float *)job->y.data + job->first[g] * job->y.stride;
        PST_TRY(host_matmul(device, &one));
    }
    return 0;
}
