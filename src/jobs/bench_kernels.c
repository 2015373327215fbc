/* SPDX-License-Identifier: Apache-2.0 */
/* Measuring operators: the device, its memory and the order of things; see bench_kernels_internal.h. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/number.h"
#include "jobs/bench_kernels_internal.h"
#include "os/clock.h"

static const uint64_t PIECE_BYTES = 1 << 20; /* of the pattern that fills the inputs */

void *kernels_take(kernels_pool *pool, uint64_t bytes)
{
    if (pool->next + bytes > pool->bytes)
        pool->next = 0;
    void *place = pool->memory + pool->next;
    pool->next += (bytes + 255) / 256 * 256;
    return place;
}

int kernels_failed(const kernels_bench *b, int status, const char *what, pst_error *err)
{
    return status >= 0 ? status : pst_device_fail(err, b->device, status, what);
}

int kernels_put(kernels_bench *b, uint64_t offset, const void *data, uint64_t bytes, pst_error *err)
{
    pst_device *device = b->device;
    if (bytes > KERNELS_NUMBER_BYTES || offset > KERNELS_NUMBER_BYTES - bytes)
        return pst_fail(err, PST_E_USAGE, NULL, "so many rows or positions are more than is measured");
    int status = device->ops->copy(device, NULL, b->numbers + offset, data, bytes);
    if (status >= 0)
        status = device->ops->synchronize(device, NULL);
    return kernels_failed(b, status, "a copy", err);
}

int kernels_tell(kernels_bench *b, const pst_kernels_result *result, pst_error *err)
{
    if (b->o.on_result != NULL && b->o.on_result(b->o.user, result) != 0)
        return pst_fail(err, PST_E_CANCELLED, NULL, "cancelled");
    return 0;
}

/* ---- Time ---- */

/* Seconds of so many calls. */
static int time_calls(kernels_bench *b, kernels_op *op, uint32_t calls, double *seconds, pst_error *err)
{
    pst_device *device = b->device;
    const uint64_t begin = pst_clock_ns();
    int status = 0;
    for (uint32_t i = 0; i < calls && status >= 0; i++, op->calls++)
        status = op->run(b, op);
    if (status >= 0)
        status = device->ops->synchronize(device, NULL);
    *seconds = (double)(pst_clock_ns() - begin) / 1e9;
    return kernels_failed(b, status, op->name, err);
}

int kernels_measure(kernels_bench *b, kernels_op *op, pst_kernels_result *out, pst_error *err)
{
    double seconds = 0;
    uint32_t calls = 1;
    if (op->prepare != NULL)
        PST_TRY(op->prepare(b, op, err));
    PST_TRY(time_calls(b, op, 1, &seconds, err)); /* what only a first call does */
    for (;;) {
        PST_TRY(time_calls(b, op, calls, &seconds, err));
        if (seconds >= b->o.seconds / 4 || calls >= 1u << 20)
            break;
        calls *= 2;
    }
    const double wanted = b->o.seconds / (seconds / calls + 1e-12);
    calls = wanted < 1 ? 1 : wanted > 1e6 ? 1000000 : (uint32_t)ceil(wanted);
    memset(out, 0, sizeof *out);
    memcpy(out->name, op->name, sizeof out->name);
    memcpy(out->what, op->what, sizeof out->what);
    out->rows = op->rows;
    out->bytes = op->bytes;
    out->operations = op->operations;
    out->calls = calls;
    out->repetitions = b->o.repetitions;
    double sorted[PST_KERNELS_MAX_REPETITIONS];
    for (uint32_t i = 0; i < out->repetitions; i++) {
        PST_TRY(time_calls(b, op, calls, &seconds, err));
        sorted[i] = out->samples[i] = seconds / calls;
    }
    out->seconds = pst_median(sorted, out->repetitions);
    return 0;
}

static int measure_operator(kernels_bench *b, kernels_op *op, pst_error *err)
{
    pst_kernels_result result;
    PST_TRY(kernels_measure(b, op, &result, err));
    const double moving = op->bytes / b->report.memory_bytes_per_second;
    const double computing = op->operations / b->report.matrix_operations_per_second;
    result.bound_seconds = moving > computing ? moving : computing;
    result.limit = moving > computing ? PST_KERNELS_MEMORY : PST_KERNELS_MATRIX;
    b->report.results++;
    return kernels_tell(b, &result, err);
}

/* ---- What is measured ---- */

/* The best first: what sessions on such a device compute with. */
static int check_options(const pst_kernels_options *given, kernels_bench *b, pst_error *err)
{
    static const uint32_t usual_rows[] = {1, 32, 512};
    pst_kernels_options *o = &b->o;
    if (given->struct_size != sizeof *o)
        return pst_fail(err, PST_E_USAGE, NULL, "options of %zu bytes, made for another version", given->struct_size);
    *o = *given;
    o->device = o->device ? o->device : "auto";
    o->model = o->model ? o->model : "llama3-8b";
    o->repetitions = o->repetitions ? o->repetitions : 5;
    o->seconds = o->seconds > 0 ? o->seconds : 0.05;
    o->kv_bits = o->kv_bits ? o->kv_bits : 16;
    if (o->row_counts == 0) {
        o->rows = usual_rows;
        o->row_counts = 3;
    }
    if (o->repetitions > PST_KERNELS_MAX_REPETITIONS || o->row_counts > PST_KERNELS_MAX_ROWS)
        return pst_fail(err, PST_E_USAGE, NULL, "%u repetitions of %u numbers of rows", o->repetitions, o->row_counts);
    for (uint32_t i = 0; i < o->row_counts; i++) {
        b->row_counts[i] = o->rows[i];
        if (o->rows[i] == 0 || o->rows[i] > 1 << 20)
            return pst_fail(err, PST_E_USAGE, NULL, "a pass of %u rows", o->rows[i]);
    }
    return 0;
}

static int choose_types(kernels_bench *b, pst_error *err)
{
    static const pst_kv_type types[] = {PST_KV_F32, PST_KV_F16, PST_KV_Q8, PST_KV_Q4};
    const pst_program *program = b->model.program;
    b->t = b->model.t;
    b->weight_type = program->weight_type;
    for (uint32_t i = 0; i < program->format_count; i++)
        if (program->formats[i].layout != PST_WEIGHT_PLAIN || program->formats[i].transposed)
            b->format = &program->formats[i];
    b->compute_type = b->o.compute_type == PST_COMPUTE_F32    ? PST_F32
                      : b->o.compute_type == PST_COMPUTE_BF16 ? PST_BF16
                      : b->weight_type == PST_F32             ? PST_F32
                                                              : PST_BF16;
    const uint32_t usual = b->t->context < 4096 ? b->t->context : 4096;
    b->o.context = b->o.context ? b->o.context : usual;
    if (b->o.context > b->t->context)
        return pst_fail(err, PST_E_USAGE, b->o.model, "%u positions are more than the model's context of %u",
                        b->o.context, b->t->context);
    b->report.context = b->o.context;
    b->report.compute_type = b->compute_type;
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (pst_kv_bits(types[i]) == b->o.kv_bits) {
            b->kv = pst_kv_layout_of(b->t, types[i]);
            return 0;
        }
    return pst_fail(err, PST_E_USAGE, NULL, "a KV cache of %u bits: 32, 16, 8 and 4 are there", b->o.kv_bits);
}

/* What its plugin says of it; at least its name and memory. */
static void describe_device(kernels_bench *b)
{
    pst_device_info *info = &b->report.device;
    info->struct_size = sizeof *info;
    if (!b->device->ops->is_host && pst_device_find(b->o.device, info, NULL) >= 0)
        return;
    snprintf(info->name, sizeof info->name, "%s", b->device->ops->name);
    b->device->ops->memory_info(b->device, &info->free_bytes, &info->total_bytes);
}

static int open_device(kernels_bench *b, pst_error *err)
{
    PST_TRY(pst_pool_create(b->o.threads, &b->pool, err));
    PST_TRY(pst_device_open(b->o.device, b->pool, b->o.kernels, &b->device, err));
    describe_device(b);
    if (b->device->ops->is_host) {
        snprintf(b->report.kernels, sizeof b->report.kernels, "%s", pst_device_host_kernels(b->device));
        b->report.threads = pst_pool_threads(b->pool);
    }
    return 0;
}

/* ---- Memory ---- */

/* Numbers of both signs and about one size, whether read as bf16, f16 or f32, codes or scales; and no byte that stands for
 * NaN in F8_E4M3. */
static void fill_piece(uint16_t *piece)
{
    uint64_t state = 1;
    for (size_t i = 0; i < PIECE_BYTES / 2; i++) {
        const uint64_t random = pst_random_next(&state) >> 32;
        piece[i] = (uint16_t)(0x3c00u | (random & 0x80f7u) | (random >> 16 & 1) << 8);
    }
}

static int fill_inputs(kernels_bench *b, pst_error *err)
{
    pst_device *device = b->device;
    uint16_t *piece = pst_heap_alloc(PIECE_BYTES);
    if (piece == NULL)
        return pst_fail_memory(err, "the inputs", PIECE_BYTES);
    fill_piece(piece);
    int status = 0;
    for (uint64_t at = 0; at < b->inputs.bytes && status >= 0; at += PIECE_BYTES)
        status =
            device->ops->copy(device, NULL, b->inputs.memory + at, piece, pst_min(PIECE_BYTES, b->inputs.bytes - at));
    if (status >= 0)
        status = device->ops->fill(device, NULL, b->outputs.memory, 0, b->outputs.bytes);
    if (status >= 0)
        status = device->ops->synchronize(device, NULL);
    pst_heap_free(piece);
    return kernels_failed(b, status, "a copy", err);
}

static int allocate(kernels_bench *b, uint64_t bytes, char **out, pst_error *err)
{
    void *memory = NULL;
    const int status = b->device->ops->allocate(b->device, PST_MEMORY_DEVICE, bytes, &memory);
    if (status >= 0)
        *out = memory;
    return kernels_failed(b, status, "memory", err);
}

/* As much as the largest operator needs, and more so that operands come from memory, not from a cache. */
static int make_memory(kernels_bench *b, const kernels_op *ops, size_t count, pst_error *err)
{
    const uint64_t serves = b->device->ops->is_host ? 256ull << 20 : 1ull << 30;
    uint64_t in = 1 << 20, out = 1 << 20, free_bytes, total;
    for (size_t i = 0; i < count; i++) {
        in = pst_max(in, ops[i].in_bytes + 4096);
        out = pst_max(out, 2 * ops[i].out_bytes + 4096); /* twice: going around, no two results of a call may meet */
    }
    PST_TRY(kernels_failed(b, b->device->ops->memory_info(b->device, &free_bytes, &total), "memory", err));
    const uint64_t most = b->o.memory_bytes ? b->o.memory_bytes : free_bytes / 2;
    if (in + out + KERNELS_NUMBER_BYTES > most)
        return pst_fail(err, PST_E_BUDGET, NULL, "%.1f MB of memory for the largest operands, and %.1f MB may be used",
                        (double)(in + out + KERNELS_NUMBER_BYTES) / 1e6, (double)most / 1e6);
    const uint64_t spare = (most - in - out - KERNELS_NUMBER_BYTES) / 2;
    b->inputs.bytes = in < serves ? pst_min(serves, in + spare) : in;
    b->outputs.bytes = out < serves ? pst_min(serves, out + spare) : out;
    b->inputs.bytes = b->inputs.bytes / 256 * 256;
    b->outputs.bytes = b->outputs.bytes / 256 * 256;
    PST_TRY(allocate(b, b->inputs.bytes, &b->inputs.memory, err));
    PST_TRY(allocate(b, b->outputs.bytes, &b->outputs.memory, err));
    PST_TRY(allocate(b, KERNELS_NUMBER_BYTES, &b->numbers, err));
    b->report.memory_bytes = b->inputs.bytes + b->outputs.bytes;
    return fill_inputs(b, err);
}

static void release(kernels_bench *b)
{
    if (b->device != NULL) {
        b->device->ops->release(b->device, PST_MEMORY_DEVICE, b->inputs.memory, b->inputs.bytes);
        b->device->ops->release(b->device, PST_MEMORY_DEVICE, b->outputs.memory, b->outputs.bytes);
        b->device->ops->release(b->device, PST_MEMORY_DEVICE, b->numbers, KERNELS_NUMBER_BYTES);
    }
    pst_device_destroy(b->device);
    pst_pool_destroy(b->pool);
    pst_planned_model_close(&b->model);
}

static int bench(kernels_bench *b, pst_error *err)
{
    kernels_op *ops = NULL;
    size_t count = 0;
    const pst_predict_options model = {.model = b->o.model, .cache = b->o.cache};
    PST_TRY(pst_planned_model_open(&model, b->o.quant_bits, &b->model, err));
    PST_TRY(choose_types(b, err));
    PST_TRY(open_device(b, err));
    int status = kernels_list(b, &ops, &count, err);
    if (status >= 0)
        status = make_memory(b, ops, count, err);
    if (status >= 0)
        status = kernels_measure_rates(b, err);
    for (size_t i = 0; i < count && status >= 0; i++)
        status = measure_operator(b, &ops[i], err);
    for (size_t i = 0; i < count; i++) {
        pst_heap_free(ops[i].first);
        pst_heap_free(ops[i].weights);
    }
    pst_heap_free(ops);
    return status;
}

int pst_kernels_bench(const pst_kernels_options *options, pst_kernels_report *out, pst_error *err)
{
    kernels_bench b = {0};
    int status = check_options(options, &b, err);
    if (status >= 0)
        status = bench(&b, err);
    release(&b);
    if (status >= 0)
        *out = b.report;
    return status;
}
