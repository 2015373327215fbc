/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The largest values of rows. A row's result is at first a heap with the worst of what is kept at its root, in the caller's
 * own arrays, so that a row is gone through once and no memory is needed. Most of a row is passed over a run at a time,
 * since nothing in it is larger than that root.
 *
 * Rows are shared among the threads. Where there are fewer rows than threads and few values are kept, so are the pieces of
 * a row: each gives its own largest, of which the largest are then merged.
 */
#include <math.h>

#include "base/error.h"
#include "device/host.h"

enum { TASK_ELEMENTS = 16384, MOST = 1024, RUN = 16 };
enum { PIECES = 16, PIECE_COLUMNS = 8192, PIECE_MOST = 64 };

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

static bool has_larger(const float *x, float than)
{
    unsigned found = 0; /* without branches: vector code; what is no number is not larger */
    for (int i = 0; i < RUN; i++)
        found |= x[i] > than;
    return found != 0;
}

/* Of columns first..first + columns - 1, x being the first one's. */
static void top_row(const float *x, uint32_t first, size_t columns, uint32_t count, float *values, uint32_t *found)
{
    top_heap heap = {values, found, 0};
    size_t c = 0;
    for (; heap.count < count; c++)
        rise(&heap, isnan(x[c]) ? -INFINITY : x[c], first + (uint32_t)c);
    while (c < columns) {
        if (columns - c >= RUN && !has_larger(x + c, values[0])) {
            c += RUN;
            continue;
        }
        const size_t end = columns - c < RUN ? columns : c + RUN;
        for (; c < end; c++)
            if (x[c] > values[0]) /* an equal one of a later column is not better */
                sink(&heap, x[c], first + (uint32_t)c);
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
        top_row((const float *)job->x->data + row * job->x->stride, 0, job->x->columns, job->count,
                job->values + row * job->count, job->columns + row * job->count);
}

/* ---- one row in pieces ---- */

typedef struct top_pieces {
    const float *x;
    size_t columns, piece_columns;
    uint32_t count, pieces;
    float values[PIECES][PIECE_MOST];
    uint32_t found[PIECES][PIECE_MOST];
} top_pieces;

static void piece_task(void *context, uint32_t task, uint32_t worker)
{
    (void)worker;
    top_pieces *p = context;
    const size_t first = task * p->piece_columns, left = p->columns - first;
    top_row(p->x + first, (uint32_t)first, left < p->piece_columns ? left : p->piece_columns, p->count, p->values[task],
            p->found[task]);
}

static void merge_pieces(const top_pieces *p, float *values, uint32_t *columns)
{
    uint32_t taken[PIECES] = {0};
    for (uint32_t i = 0; i < p->count; i++) {
        uint32_t best = PIECES;
        for (uint32_t j = 0; j < p->pieces; j++) /* of equals the earlier piece has the lower columns */
            if (taken[j] < p->count && (best == PIECES || p->values[j][taken[j]] > p->values[best][taken[best]]))
                best = j;
        values[i] = p->values[best][taken[best]];
        columns[i] = p->found[best][taken[best]++];
    }
}

/* Whether there are pieces that have `count` columns each, the last one included. */
static bool cut_row(const host_device *host, const pst_matrix *x, uint32_t count, top_pieces *out)
{
    const size_t pieces = host->threads < PIECES ? host->threads : PIECES;
    if (x->rows >= host->threads || count > PIECE_MOST || x->columns < pieces * PIECE_COLUMNS)
        return false;
    *out = (top_pieces){.columns = x->columns, .count = count};
    out->piece_columns = host_ceil(x->columns, pieces);
    out->pieces = (uint32_t)host_ceil(x->columns, out->piece_columns);
    return x->columns - (out->pieces - 1) * out->piece_columns >= count;
}

int host_top(pst_device *device, const pst_matrix *x, uint32_t count, float *values, uint32_t *columns)
{
    host_device *host = host_of(device);
    if (count > x->columns || count > MOST)
        return PST_E_USAGE;
    if (x->rows == 0 || count == 0)
        return 0;
    top_pieces pieces;
    if (!cut_row(host, x, count, &pieces)) {
        top_job job = {x, count, values, columns, host_ceil(TASK_ELEMENTS, x->columns)};
        host_run(host, host_ceil(x->rows, job.rows_per_task), top_task, &job);
        return 0;
    }
    for (size_t row = 0; row < x->rows; row++) {
        pieces.x = (const float *)x->data + row * x->stride;
        host_run(host, pieces.pieces, piece_task, &pieces);
        merge_pieces(&pieces, values + row * count, columns + row * count);
    }
    return 0;
}
