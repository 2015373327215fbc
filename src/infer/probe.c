/* SPDX-License-Identifier: Apache-2.0 */
/*
 * See probe.h. Probes are gathered and answered by the range of rows: those between two that are asked for come along on a
 * device, where another call costs more than they do.
 *
 * A single logit is a row of one column, of a matrix of all elements: so the operator that gathers rows gathers logits.
 */
#include "infer/probe.h"

#include <math.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/number.h"
#include "device/device.h"

enum { MOST_ROWS = 256, MOST_GAP = 16 };

struct pst_prober {
    pst_device *device;
    bool apart;
    uint32_t top;
    pst_matrix logits; /* of the pass */
    pst_probe probes[MOST_ROWS];
    uint32_t count;
    pst_mirror found; /* by row of a range: sums, then by probe: places, logits; then by row values, ids */
};

static uint64_t found_bytes(uint32_t top)
{
    return MOST_ROWS * (sizeof(double) + sizeof(uint32_t) + sizeof(float) + top * (sizeof(float) + sizeof(uint32_t)));
}

void pst_prober_measure(uint32_t top, bool apart, uint64_t *out_host, uint64_t *out_device)
{
    *out_host = sizeof(pst_prober) + found_bytes(top) + (apart ? PST_APART_ALIGNMENT : 0);
    *out_device = apart ? found_bytes(top) + PST_APART_ALIGNMENT : 0;
}

int pst_prober_create(pst_device *device, uint32_t top, pst_prober **out, pst_error *err)
{
    pst_prober *p = pst_heap_calloc(1, sizeof *p);
    if (p == NULL)
        return pst_fail_memory(err, "log-probabilities", sizeof *p);
    p->device = device;
    p->apart = pst_nn_is_apart(device);
    p->top = top;
    int status = pst_mirror_create(device, found_bytes(top), "log-probabilities", &p->found, err);
    if (status < 0) {
        pst_prober_destroy(p);
        return status;
    }
    *out = p;
    return 0;
}

void pst_prober_destroy(pst_prober *p)
{
    if (p == NULL)
        return;
    pst_mirror_destroy(p->device, &p->found);
    pst_heap_free(p);
}

void pst_prober_begin(pst_prober *p, const pst_matrix *logits)
{
    p->logits = *logits;
    p->count = 0;
}

/* The tables of a range in one half of `found`. */
typedef struct tables {
    double *sums;
    uint32_t *places;
    float *logits, *values;
    uint32_t *ids;
} tables;

static tables tables_of(const pst_prober *p, void *memory)
{
    char *at = memory;
    tables t = {.sums = (double *)(void *)at};
    at += MOST_ROWS * sizeof(double);
    t.places = (uint32_t *)(void *)at;
    at += MOST_ROWS * sizeof(uint32_t);
    t.logits = (float *)(void *)at;
    at += MOST_ROWS * sizeof(float);
    t.values = (float *)(void *)at;
    t.ids = (uint32_t *)(void *)(at + (uint64_t)MOST_ROWS * p->top * sizeof(float));
    return t;
}

/* The probed logits, one by one: to t.logits of the device's half. */
static int take_logits(pst_prober *p, const pst_matrix *rows, const tables *here, const tables *there)
{
    const pst_matrix all = {
        .data = rows->data, .type = PST_F32, .rows = rows->rows * rows->stride, .columns = 1, .stride = 1};
    const pst_matrix y = {.data = there->logits, .type = PST_F32, .rows = p->count, .columns = 1, .stride = 1};
    for (uint32_t i = 0; i < p->count; i++)
        here->places[i] = (uint32_t)((p->probes[i].row - p->probes[0].row) * rows->stride + p->probes[i].id);
    PST_TRY(pst_mirror_publish(p->device, &p->found, MOST_ROWS * sizeof(double), p->count * sizeof(uint32_t)));
    return p->device->ops->take_rows(p->device, &all, there->places, &y);
}

/* What is found of the range's rows, in the host's memory. */
static int find(pst_prober *p, const pst_matrix *rows, uint32_t top, tables *here)
{
    const pst_device_ops *ops = p->device->ops;
    const tables there = tables_of(p, p->found.there);
    *here = tables_of(p, p->found.host);
    PST_TRY(ops->log_sum_exp(p->device, rows, NULL, there.sums));
    PST_TRY(take_logits(p, rows, here, &there));
    if (top > 0)
        PST_TRY(ops->top(p->device, rows, top, there.values, there.ids));
    PST_TRY(pst_mirror_fetch(p->device, &p->found, 0, rows->rows * sizeof(double)));
    const uint64_t logits = (uint64_t)((char *)here->logits - (char *)p->found.host);
    PST_TRY(pst_mirror_fetch(p->device, &p->found, logits, p->count * sizeof(float)));
    const uint64_t values = (uint64_t)((char *)here->values - (char *)p->found.host);
    const uint64_t ids = (uint64_t)((char *)here->ids - (char *)p->found.host);
    PST_TRY(pst_mirror_fetch(p->device, &p->found, values, rows->rows * top * sizeof(float)));
    PST_TRY(pst_mirror_fetch(p->device, &p->found, ids, rows->rows * top * sizeof(uint32_t)));
    return p->apart ? ops->synchronize(p->device, NULL) : 0;
}

static void answer(const pst_prober *p, const tables *found, uint32_t top)
{
    for (uint32_t i = 0; i < p->count; i++) {
        const pst_probe *probe = &p->probes[i];
        const uint32_t row = probe->row - p->probes[0].row;
        const double sum = found->sums[row];
        *probe->value = isfinite(sum) ? (double)found->logits[i] - sum : (double)NAN;
        for (uint32_t n = 0; n < probe->top; n++) {
            probe->values[n] = (double)found->values[(size_t)row * top + n] - sum;
            probe->ids[n] = found->ids[(size_t)row * top + n];
        }
    }
}

/* Answers those that were gathered. */
static int flush(pst_prober *p, pst_error *err)
{
    if (p->count == 0)
        return 0;
    pst_matrix rows = p->logits;
    const uint32_t first = p->probes[0].row;
    uint32_t top = 0;
    tables found;
    rows.rows = p->probes[p->count - 1].row - first + 1;
    rows.data = (float *)p->logits.data + first * p->logits.stride;
    for (uint32_t i = 0; i < p->count; i++)
        top = (uint32_t)pst_max(top, p->probes[i].top);
    const int status = find(p, &rows, top, &found);
    if (status < 0)
        return pst_device_fail(err, p->device, status, "finding log-probabilities");
    answer(p, &found, top);
    p->count = 0;
    return 0;
}

/* Whether the probe's row can be in the range of those that were gathered. */
static bool joins(const pst_prober *p, const pst_probe *probe)
{
    const uint32_t first = p->probes[0].row, last = p->probes[p->count - 1].row;
    const uint64_t rows = (uint64_t)probe->row - first + 1;
    return p->count < MOST_ROWS && rows <= MOST_ROWS && probe->row - last <= (p->apart ? MOST_GAP : 1) &&
           rows * p->logits.stride <= UINT32_MAX;
}

int pst_prober_ask(pst_prober *p, const pst_probe *probe, pst_error *err)
{
    if (p->count > 0 && !joins(p, probe))
        PST_TRY(flush(p, err));
    p->probes[p->count++] = *probe;
    return 0;
}

int pst_prober_end(pst_prober *p, pst_error *err)
{
    return flush(p, err);
}
