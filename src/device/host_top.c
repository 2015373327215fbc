/* SPDX-License-Identifier: Apache-2.0 */
/* The largest values of rows. A row's result is at first a heap with the worst of what is kept at its root, in the caller's
 * own arrays, so that a row is gone through once and no memory is needed. */
#include <math.h>

#include "base/error.h"
#include "device/host.h"

enum { TASK_ELEMENTS = 16384, MOST = 1024 };

typedef struct top_job {
    const pst_matrix *x;
    uint32_t count;
    float *values;
    uint32_t *columns;
    size_t rows_per_task;
} top_job;

/* What is kept of a row. */
typedef struct top_heap {
    float *values;
    uint32_t *columns;
    uint32_t count;
} top_heap;

static bool is_better(float a, uint32_t a_column, float b, uint32_t b_column)
{
    return a > b || (a == b && a_column < b_column);
}

/* Puts an entry at the root or below, where everything under it is better. */
static void sink(const top_heap *heap, float value, uint32_t column)
{
    uint32_t place = 0;
    for (;;) {
        uint32_t child = 2 * place + 1;
        if (child >= heap->count)
            break;
        if (child + 1 < heap->count &&
            is_better(heap->values[child], heap->columns[child], heap->values[child + 1], heap->columns[child + 1]))
            child++;
        if (!is_better(value, column, heap->values[child], heap->columns[child]))
            break;
        heap->values[place] = heap->values[child];
        heap->columns[place] = heap->columns[child];
        place = child;
    }
    heap->values[place] = value;
    heap->columns[place] = column;
}

/* Adds an entry at the end, and lets it rise above what is better. */
static void rise(top_heap *heap, float value, uint32_t column)
{
    uint32_t place = heap->count++;
    while (place > 0) {
        uint32_t parent = (place - 1) / 2;
        if (!is_better(heap->values[parent], heap->columns[parent], value, column))
            break;
        heap->values[place] = heap->values[parent];
        heap->columns[place] = heap->columns[parent];
        place = parent;
    }
    heap->values[place] = value;
    heap->columns[place] = column;
}

static void top_row(const float *x, size_t columns, uint32_t count, float *values, uint32_t *found)
{
    top_heap heap = {values, found, 0};
    for (size_t c = 0; c < columns; c++) {
        float value = isnan(x[c]) ? -INFINITY : x[c];
        if (heap.count < count)
            rise(&heap, value, (uint32_t)c);
        else if (value > values[0]) /* an equal one of a later column is not better */
            sink(&heap, value, (uint32_t)c);
    }
    while (heap.count > 1) { /* the worst goes to the end */
        float value = values[heap.count - 1];
        uint32_t column = found[heap.count - 1];
        heap.count--;
        values[heap.count] = values[0];
        found[heap.count] = found[0];
        sink(&heap, value, column);
    }
}

static void top_task(void *context, uint32_t task, uint32_t worker)
{
    (void)worker;
    const top_job *job = context;
    const size_t end = (task + (size_t)1) * job->rows_per_task;
    for (size_t row = task * job->rows_per_task; row < job->x->rows && row < end; row++)
        top_row((const float *)job->x->data + row * job->x->stride, job->x->columns, job->count,
                job->values + row * job->count, job->columns + row * job->count);
}

int host_top(pst_device *device, const pst_matrix *x, uint32_t count, float *values, uint32_t *columns)
{
    if (count > x->columns || count > MOST)
        return PST_E_USAGE;
    if (x->rows == 0 || count == 0)
        return 0;
    top_job job = {x, count, values, columns, host_ceil(TASK_ELEMENTS, x->columns)};
    host_run(host_of(device), host_ceil(x->rows, job.rows_per_task), top_task, &job);
    return 0;
}
