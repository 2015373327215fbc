/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The bound and the statistics of a run. A pass cannot be faster than its reads at the drive's bandwidth, nor than its
 * arithmetic at the processor's rate; both are measured before the first pass, with the same engine and kernels. The rate
 * is that of the number of rows in question, so that it includes the memory's bandwidth where few rows share a weight.
 */
#include <string.h>

#include "base/error.h"
#include "infer/internal.h"
#include "os/clock.h"
#include "os/memory.h"

enum { RATE_COLUMNS = 2048, RATE_DEPTH = 4096, RATE_REPEATS = 3 };
/* A product that takes this long is long enough to be measured by itself. */
static const uint64_t LONG_ENOUGH_NS = 10 * 1000 * 1000;

/* Weights or activations that are neither zero nor denormal. */
static void fill(void *values, pst_dtype type, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (type == PST_F32)
            ((float *)values)[i] = 0.01f * (float)(i % 31 + 1);
        else
            ((uint16_t *)values)[i] = (uint16_t)(0x3c00 + (i * 2654435761u >> 24));
    }
}

int pst_session_measure_rate(pst_session *s, uint32_t rows, pst_rate *out, pst_error *err)
{
    pst_dtype weight_type = s->model->program->weight_type, compute_type = s->info.compute_type;
    rows = rows < 256 ? rows : 256;
    uint64_t weight_bytes = (uint64_t)RATE_COLUMNS * RATE_DEPTH * pst_dtype_bits(weight_type) / 8;
    uint64_t x_bytes = (uint64_t)rows * RATE_DEPTH * pst_dtype_bits(compute_type) / 8;
    uint64_t y_bytes = (uint64_t)rows * RATE_COLUMNS * sizeof(float);
    unsigned char *memory;
    PST_TRY(pst_memory_map(weight_bytes + x_bytes + y_bytes, "measuring the processor", (void **)&memory, err));
    fill(memory, weight_type, (size_t)RATE_COLUMNS * RATE_DEPTH);
    fill(memory + weight_bytes, compute_type, (size_t)rows * RATE_DEPTH);
    pst_matmul job = {.x = {memory + weight_bytes, compute_type, rows, RATE_DEPTH, RATE_DEPTH},
                      .w = {memory, weight_type, RATE_COLUMNS, RATE_DEPTH},
                      .y = {memory + weight_bytes + x_bytes, PST_F32, rows, RATE_COLUMNS, RATE_COLUMNS}};
    /* From few columns up, so that slow kernels are not kept busy for seconds; the best of the largest size counts. */
    double flops = 0;
    uint64_t longest = 0;
    int status = 0;
    for (job.w.rows = RATE_COLUMNS / 64; job.w.rows <= RATE_COLUMNS && longest < LONG_ENOUGH_NS && status == 0;
         job.w.rows *= 4) {
        flops = 0;
        for (int i = 0; i < RATE_REPEATS && status == 0; i++) {
            uint64_t start = pst_clock_ns();
            status = s->device->ops->matmul(s->device, &job);
            uint64_t elapsed = pst_clock_ns() - start + 1;
            double rate = 2.0 * rows * (double)job.w.rows * RATE_DEPTH * 1e9 / (double)elapsed;
            flops = rate > flops ? rate : flops;
            longest = elapsed > longest ? elapsed : longest;
        }
    }
    pst_memory_unmap(memory, weight_bytes + x_bytes + y_bytes);
    if (status < 0)
        return pst_fail(err, status, NULL, "measuring the processor failed: %s", pst_strerror(status));
    *out = (pst_rate){rows, flops};
    return 0;
}

/* Multiplications and additions of the pass in session->rows: two per weight and row, and attention's products. */
static double operations(const pst_session *s, uint32_t rows, uint32_t logit_rows)
{
    const pst_transformer *t = &s->model->transformer;
    double head = (double)t->vocab * t->hidden;
    double layers = (double)s->model->program->parameters - head * (t->tied_head ? 1 : 2);
    double attention = 0;
    for (uint32_t i = 0; i < rows; i++)
        attention += 4.0 * t->heads * t->head_dim * (s->rows[i].position + 1.0) * t->layers;
    return 2.0 * (layers * rows + head * logit_rows) + attention;
}

void pst_session_count_bound(pst_session *s, uint32_t rows, uint32_t logit_rows, uint64_t bytes_read)
{
    pst_session_counters *c = &s->counters;
    if (!s->options.measure_bound)
        return;
    double flops = rows <= s->decode_rate.rows ? s->decode_rate.flops : s->prefill_rate.flops;
    double disk = s->disk_bytes_per_second > 0 ? (double)bytes_read / s->disk_bytes_per_second : 0;
    double math = operations(s, rows, logit_rows) / flops;
    c->disk_seconds += disk;
    c->math_seconds += math;
    c->bound_seconds += disk > math ? disk : math;
}

void pst_session_get_counters(const pst_session *s, pst_session_counters *out)
{
    *out = s->counters;
    pst_ring_get_stats(s->ring, &out->ring);
}

void pst_session_fill_stats(const pst_session *s, const pst_session_counters *before, pst_run_stats *stats)
{
    pst_session_counters now;
    pst_session_get_counters(s, &now);
    double seconds = (double)(now.pass_ns - before->pass_ns) / 1e9;
    stats->passes = now.passes - before->passes;
    stats->weight_bytes_read = now.ring.weight_bytes - before->ring.weight_bytes;
    stats->read_bytes_per_second = seconds > 0 ? (double)stats->weight_bytes_read / seconds : 0;
    stats->io_wait_seconds = (double)(now.ring.wait_ns - before->ring.wait_ns) / 1e9;
    stats->compute_seconds = (double)(now.ring.compute_ns - before->ring.compute_ns) / 1e9;
    stats->bound_seconds = now.bound_seconds - before->bound_seconds;
    stats->share_of_bound = seconds > 0 ? stats->bound_seconds / seconds : 0;
    stats->limited_by =
        now.disk_seconds - before->disk_seconds > now.math_seconds - before->math_seconds ? "disk" : "compute";
    stats->disk_bytes_per_second = s->disk_bytes_per_second;
    stats->compute_flops = s->prefill_rate.flops;
    stats->resident_bytes = s->plan.resident_bytes;
    stats->streamed_bytes = s->plan.streamed_bytes;
    stats->peak_rss_bytes = pst_memory_peak_bytes();
    stats->host_memory_bytes = s->info.budget_bytes;
}
