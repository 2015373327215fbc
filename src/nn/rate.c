/* SPDX-License-Identifier: Apache-2.0 */
/* Measuring the processor with a pass's own buffers and the ring's own memory, so that it takes none besides. */
#include "base/error.h"
#include "base/number.h"
#include "nn/forward_internal.h"
#include "os/clock.h"

enum { MAX_READINGS = 32, MIN_READINGS = 3 };
static const uint64_t MEASURE_NS = 40 * 1000 * 1000;
/* Enough for a product to be much longer than starting it. */
static const double OPERATIONS = 2e8;

/* The widest product of the layers: what a pass spends most of its time with. */
static pst_matmul widest_product(const pst_forward *f)
{
    pst_matmul job = {.x = f->buffers[PST_NN_X], .y = f->buffers[PST_NN_X]};
    size_t most = 0;
    for (uint32_t s = f->program->gathered_stages; s < f->program->stage_count; s++) {
        for (uint32_t i = 0; i < f->program->nn_stages[s].step_count; i++) {
            const pst_nn_op *op = f->program->nn_stages[s].steps[i].op;
            const pst_matrix *x = &f->buffers[op->in], *y = &f->buffers[op->out];
            if (op->kind != PST_NN_MATMUL || op->out >= PST_NN_S || x->columns * y->columns <= most)
                continue;
            most = x->columns * y->columns;
            job.x = *x;
            job.y = *y;
        }
    }
    return job;
}

int pst_forward_measure_rate(pst_forward *f, const void *memory, uint64_t bytes, pst_dtype type, uint32_t rows,
                             double *out, pst_error *err)
{
    pst_matmul job = widest_product(f);
    job.x.rows = job.y.rows = rows < f->max_rows ? rows : f->max_rows;
    job.w = (pst_weight){.type = type, .columns = job.x.columns};
    uint64_t row_bytes = job.w.columns * pst_dtype_bits(type) / 8, held_rows = bytes / row_bytes;
    double wanted_rows = OPERATIONS / (2.0 * (double)job.x.rows * (double)job.w.columns) + 64;
    uint64_t most = job.y.columns < held_rows ? job.y.columns : held_rows;
    job.w.rows = wanted_rows < (double)most ? (size_t)wanted_rows : (size_t)most;
    *out = 0;
    if (job.w.rows == 0)
        return 0; /* memory too small to say anything */
    double readings[MAX_READINGS];
    uint32_t count = 0;
    uint64_t begin = pst_clock_ns(), row = 0;
    while (count < MAX_READINGS && (count < MIN_READINGS || pst_clock_ns() - begin < MEASURE_NS)) {
        row = row + job.w.rows <= held_rows ? row : 0;
        job.w.data = (const unsigned char *)memory + row * row_bytes;
        uint64_t start = pst_clock_ns();
        int status = f->device->ops->matmul(f->device, &job);
        if (status < 0)
            return pst_fail(err, status, NULL, "measuring the processor failed: %s", pst_strerror(status));
        double seconds = (double)(pst_clock_ns() - start + 1) / 1e9;
        readings[count++] = 2.0 * (double)job.x.rows * (double)job.w.rows * (double)job.w.columns / seconds;
        row += job.w.rows;
    }
    *out = pst_median(readings, count);
    return 0;
}
