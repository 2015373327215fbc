/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Measuring the processor (or accelerator): the model's own largest matrices as they lie in the ring's memory, in their own
 * format, multiplied in a pass's own buffers, so that it takes no memory besides. What disturbs a processor only makes it
 * slower, so the best of short bursts counts, as soon as another has come close to it.
 */
#include "base/error.h"
#include "base/number.h"
#include "nn/forward_internal.h"
#include "os/clock.h"

enum { MAX_JOBS = 16, MIN_BURSTS = 3, FIRST_ROWS = 64, ROW_UNIT = 16 };
static const uint64_t BURST_NS = 5 * 1000 * 1000, PRODUCT_NS = 10 * 1000 * 1000, MEASURE_NS = 200 * 1000 * 1000;
static const double AGREEMENT = 0.98;

typedef struct job_list {
    pst_matmul jobs[MAX_JOBS];
    uint32_t count, next;
    uint64_t largest; /* elements of the largest matrix */
} job_list;

/* The product that brings the stage's tensor to use; NULL: none, or one of the few rows that want logits. */
static const pst_nn_step *find_product(const pst_nn_stage *nn, uint32_t tensor)
{
    for (uint32_t i = 0; i < nn->step_count; i++) {
        const pst_nn_step *step = &nn->steps[i];
        if (step->op->kind == PST_NN_MATMUL && step->weight == (int32_t)tensor)
            return step->op->out < PST_NN_S ? step : NULL;
    }
    return NULL;
}

/* Rows that a product sees in a pass of `rows`: those of one expert are fewer. */
static uint32_t rows_of_product(const pst_forward *f, const pst_stage *stage, uint32_t rows)
{
    rows = rows < f->max_rows ? rows : f->max_rows;
    if (stage->unit_count < 2 || f->t->experts_per_token >= stage->unit_count)
        return rows;
    uint64_t shared_out = (uint64_t)rows * f->t->experts_per_token;
    return (uint32_t)((shared_out + stage->unit_count - 1) / stage->unit_count);
}

/* A run of calls has to begin with its first. Of one that does not end the matrix a device may put the last rows off until there
 * are this many: they would count as done. */
static void begin_run(pst_weight *w, uint64_t all_rows)
{
    enum { WHOLE_ROWS = 256 };
    w->first_row = 0;
    if (w->rows < all_rows && w->rows > WHOLE_ROWS)
        w->rows -= w->rows % WHOLE_ROWS;
}

static void add_piece(pst_forward *f, const pst_stage_part *at, const pst_piece *piece, uint32_t rows, bool prompt,
                      job_list *list)
{
    const pst_nn_step *step = find_product(at->stage->context, piece->tensor);
    uint64_t elements = step != NULL ? piece->rows * step->columns : 0;
    if (elements == 0 || (elements < list->largest / 2 + 1 && list->count > 0) || list->count == MAX_JOBS)
        return;
    if (elements / 2 > list->largest) /* those so far are small beside it */
        list->count = 0;
    list->largest = pst_max(list->largest, elements);
    pst_forward_run run = {f, at->stage->context, at->stage, &at->view, NULL};
    bool is_transposed = step->format->transposed;
    pst_matmul *job = &list->jobs[list->count++];
    *job = (pst_matmul){.x = f->buffers[step->op->in], .y = f->buffers[step->op->out]};
    job->x.rows = job->y.rows = rows_of_product(f, at->stage, rows);
    job->prompt_rows = prompt && step->op->in < PST_NN_EH ? job->x.rows : 0;
    job->first_column = is_transposed ? 0 : piece->first_row;
    job->w = pst_forward_weight(&run, step, piece, is_transposed ? job->y.columns : job->x.columns);
    if (is_transposed)
        begin_run(&job->w, at->stage->tensors[piece->tensor].rows);
}

static int fail(pst_forward *f, int status, pst_error *err)
{
    return pst_device_fail(err, f->device, status, "measuring the processor");
}

/* Numbers that are neither zero nor far from one, and memory that is there. */
static int fill_input(pst_forward *f, const pst_matrix *x, pst_error *err)
{
    int status =
        f->device->ops->fill(f->device, NULL, x->data, 0x3c, x->rows * x->stride * (pst_dtype_bits(x->type) / 8));
    return status < 0 ? fail(f, status, err) : 0;
}

static int run_job(pst_forward *f, const pst_matmul *job, uint64_t *out_ns, pst_error *err)
{
    uint64_t start = pst_clock_ns();
    int status = f->device->ops->matmul(f->device, job);
    if (status >= 0)
        status = f->device->ops->synchronize(f->device, NULL);
    *out_ns = pst_clock_ns() - start + 1;
    return status < 0 ? fail(f, status, err) : 0;
}

/* Takes as many of a matrix's rows as a short product allows: a slow processor would be at one for seconds. */
static int shorten(pst_forward *f, pst_matmul *job, pst_error *err)
{
    size_t rows = job->w.rows;
    if (rows <= FIRST_ROWS || (job->w.format != NULL && job->w.format->transposed))
        return 0;
    uint64_t ns;
    job->w.rows = FIRST_ROWS;
    /* An accelerator's first product of a kind loads kernels, looks for a vendor's library and tries it out: that says nothing. */
    for (int turn = 0; turn <= f->apart; turn++)
        PST_TRY(run_job(f, job, &ns, err));
    uint64_t fit = pst_max(FIRST_ROWS, PRODUCT_NS * FIRST_ROWS / ns / ROW_UNIT * ROW_UNIT);
    job->w.rows = pst_min(rows, fit);
    return 0;
}

/* `count` products at a stretch. An accelerator is waited for at their end, so that what is timed is not the waiting. */
static int run_stretch(pst_forward *f, job_list *list, uint32_t count, double *operations, uint64_t *out_ns,
                       pst_error *err)
{
    uint64_t start = pst_clock_ns();
    int status = 0;
    for (uint32_t i = 0; i < count && status >= 0; i++) {
        const pst_matmul *job = &list->jobs[list->next++ % list->count];
        status = f->device->ops->matmul(f->device, job);
        *operations += 2.0 * (double)job->x.rows * (double)job->w.rows * (double)job->w.columns;
    }
    if (status >= 0)
        status = f->device->ops->synchronize(f->device, NULL);
    *out_ns = pst_clock_ns() - start + 1;
    return status < 0 ? fail(f, status, err) : 0;
}

/* Operations per second of a burst: on an accelerator of its last and longest stretch. */
static int run_burst(pst_forward *f, job_list *list, double *out, pst_error *err)
{
    uint64_t spent_ns = 0;
    double operations = 0;
    for (uint32_t count = 1; spent_ns < BURST_NS; count *= f->apart ? 2 : 1) {
        uint64_t ns;
        if (f->apart) {
            spent_ns = 0;
            operations = 0;
        }
        PST_TRY(run_stretch(f, list, count, &operations, &ns, err));
        spent_ns += ns;
    }
    *out = operations * 1e9 / (double)spent_ns;
    return 0;
}

int pst_forward_measure_rate(pst_forward *f, const pst_stage_part *parts, uint32_t part_count, uint32_t rows,
                             bool prompt, double *out, pst_error *err)
{
    job_list list = {.count = 0};
    *out = 0;
    for (uint32_t i = 0; i < part_count; i++)
        for (size_t p = 0; p < parts[i].view.piece_count; p++)
            add_piece(f, &parts[i], &parts[i].view.pieces[p], rows, prompt, &list);
    if (list.count == 0)
        return 0; /* no matrix in memory to say anything with */
    uint64_t begin = pst_clock_ns();
    for (uint32_t i = 0; i < list.count; i++) {
        PST_TRY(fill_input(f, &list.jobs[i].x, err));
        PST_TRY(shorten(f, &list.jobs[i], err));
    }
    double best = 0, second = 0;
    for (uint32_t burst = 0; burst < MIN_BURSTS || second < AGREEMENT * best; burst++) {
        double rate;
        if (burst >= MIN_BURSTS && pst_clock_ns() - begin > MEASURE_NS)
            break;
        PST_TRY(run_burst(f, &list, &rate, err));
        second = rate > best ? best : rate > second ? rate : second;
        best = rate > best ? rate : best;
    }
    *out = best;
    return 0;
}
