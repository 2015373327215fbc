/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rates that operators are held against, measured with the device's own means: memory by the best of a large copy, a large
 * fill and an elementwise pass; products by the fastest of ever larger ones of bf16 matrices; the link by copies of pinned
 * memory.
 */
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/number.h"
#include "jobs/bench_kernels_internal.h"

enum { FIRST_SIDE = 128, LAST_SIDE = 8192, LINK_BYTES = 64 << 20 };

static int run_copy(kernels_bench *b, kernels_op *op)
{
    return b->device->ops->copy(b->device, NULL, b->outputs.memory, b->inputs.memory, op->k);
}

static int run_fill(kernels_bench *b, kernels_op *op)
{
    return b->device->ops->fill(b->device, NULL, b->outputs.memory, 0, op->k);
}

static int run_identity(kernels_bench *b, kernels_op *op)
{
    const size_t columns = 1 << 12;
    const pst_matrix x = {b->inputs.memory, PST_F32, op->k / 4 / columns, columns, columns};
    const pst_matrix y = {b->outputs.memory, PST_F32, x.rows, columns, columns};
    return b->device->ops->activate(b->device, PST_ACT_IDENTITY, &x, &y);
}

static int run_product(kernels_bench *b, kernels_op *op)
{
    const size_t n = op->k;
    const pst_matmul job = {
        .x = {kernels_take(&b->inputs, n * n * 2), PST_BF16, n, n, n},
        .w = {.data = kernels_take(&b->inputs, n * n * 2), .type = PST_BF16, .rows = n, .columns = n},
        .y = {kernels_take(&b->outputs, n * n * 4), PST_F32, n, n, n},
        .prompt_rows = n};
    return b->device->ops->matmul(b->device, &job);
}

/* Measures, tells, and keeps the rate if it is the best. */
static int measure_rate(kernels_bench *b, kernels_op *op, double amount, double *best, pst_error *err)
{
    pst_kernels_result result;
    PST_TRY(kernels_measure(b, op, &result, err));
    if (result.seconds > 0 && amount / result.seconds > *best)
        *best = amount / result.seconds;
    return kernels_tell(b, &result, err);
}

static int measure_memory(kernels_bench *b, pst_error *err)
{
    static const struct {
        const char *what;
        int (*run)(kernels_bench *b, kernels_op *op);
        double passes; /* a byte is read and written, or written */
    } ways[] = {{"copy", run_copy, 2}, {"fill", run_fill, 1}, {"identity, F32 to F32", run_identity, 2}};
    const uint64_t bytes = pst_min(b->inputs.bytes, b->outputs.bytes) / (1 << 14) * (1 << 14);
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        kernels_op op = {.name = "memory", .bytes = ways[i].passes * (double)bytes, .run = ways[i].run, .k = bytes};
        snprintf(op.what, sizeof op.what, "%s of %.0f MB", ways[i].what, (double)bytes / 1e6);
        PST_TRY(measure_rate(b, &op, op.bytes, &b->report.memory_bytes_per_second, err));
    }
    return 0;
}

/* Until a product takes long enough that a larger one would be no faster. */
static int measure_matrix(kernels_bench *b, pst_error *err)
{
    double *best = &b->report.matrix_operations_per_second;
    for (uint64_t n = FIRST_SIDE; n <= LAST_SIDE; n *= 2) {
        if (n * n * 4 > b->inputs.bytes || n * n * 4 > b->outputs.bytes)
            break;
        kernels_op op = {.name = "matrix",
                         .operations = 2.0 * (double)n * (double)n * (double)n,
                         .bytes = 8.0 * (double)n * (double)n,
                         .run = run_product,
                         .k = n};
        snprintf(op.what, sizeof op.what, "%llu x %llu x %llu, BF16", (unsigned long long)n, (unsigned long long)n,
                 (unsigned long long)n);
        PST_TRY(measure_rate(b, &op, op.operations, best, err));
        if (op.operations / *best > 2 * b->o.seconds)
            break;
    }
    return 0;
}

typedef struct link_copy {
    void *pinned;
    bool to_device;
} link_copy;

static int run_link(kernels_bench *b, kernels_op *op)
{
    const link_copy *link = op->context;
    return link->to_device ? b->device->ops->copy(b->device, NULL, b->outputs.memory, link->pinned, op->k)
                           : b->device->ops->copy(b->device, NULL, link->pinned, b->inputs.memory, op->k);
}

static int measure_link(kernels_bench *b, pst_error *err)
{
    if (b->device->ops->is_host)
        return 0;
    const uint64_t bytes = pst_min(LINK_BYTES, pst_min(b->inputs.bytes, b->outputs.bytes));
    link_copy link = {.to_device = true};
    int status = b->device->ops->allocate(b->device, PST_MEMORY_HOST, bytes, &link.pinned);
    if (status < 0)
        return kernels_failed(b, status, "pinned memory", err);
    memset(link.pinned, 0, bytes);
    for (int way = 0; way < 2 && status >= 0; way++) {
        link.to_device = way == 0;
        kernels_op op = {.name = "link", .bytes = (double)bytes, .run = run_link, .k = bytes, .context = &link};
        snprintf(op.what, sizeof op.what, "%s of %.0f MB of pinned memory",
                 way == 0 ? "to the device" : "from the device", (double)bytes / 1e6);
        status = measure_rate(
            b, &op, op.bytes,
            way == 0 ? &b->report.to_device_bytes_per_second : &b->report.from_device_bytes_per_second, err);
    }
    b->device->ops->release(b->device, PST_MEMORY_HOST, link.pinned, bytes);
    return status;
}

int kernels_measure_rates(kernels_bench *b, pst_error *err)
{
    PST_TRY(measure_memory(b, err));
    PST_TRY(measure_matrix(b, err));
    return measure_link(b, err);
}
