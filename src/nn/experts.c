/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Layers with experts. The rows of one expert are gathered, in rising order, computed together, and added to x times their
 * weights, expert after expert; so a row's sum is always the same sequence of additions, whichever rows it came with and
 * whichever experts lay in memory.
 */
#include "nn/experts.h"

#include <math.h>

#include "base/error.h"
#include "nn/forward_internal.h"

/* From this expected share of touched experts on, reading all ahead wastes less than choosing would save. */
static const double NEARLY_ALL = 0.95;

int pst_forward_route(const pst_forward_run *run, const pst_nn_step *step)
{
    pst_forward *f = run->f;
    const pst_transformer *t = f->t;
    const float *correction = NULL;
    if (step->weight >= 0) {
        const pst_piece *piece = pst_forward_next_piece(run, step->weight);
        if (piece == NULL)
            return 0;
        pst_weight weight = pst_forward_weight(run, step, piece, t->experts);
        pst_matrix y = {f->route.correction, PST_F32, 1, t->experts, t->experts};
        PST_TRY(pst_forward_checked(run, f->device->ops->convert(f->device, &weight, &y)));
        f->next_piece++;
        correction = f->route.correction;
    }
    const pst_matrix *r = &f->buffers[step->op->in];
    for (uint32_t row = 0; row < f->row_count; row++) {
        size_t at = (size_t)row * t->experts_per_token;
        pst_route_choose(t, (const float *)r->data + row * r->stride, correction, f->route.scratch,
                         f->route.chosen + at, f->route.weights + at);
    }
    pst_route_group(&f->route, f->row_count);
    return 1;
}

int pst_forward_expert_take(const pst_forward_run *run, const pst_nn_step *step)
{
    pst_forward *f = run->f;
    const pst_route *route = &f->route;
    uint32_t first = route->first[step->expert];
    f->expert_rows = route->first[step->expert + 1] - first;
    pst_matrix h = pst_forward_matrix(f, step->op->in), eh = pst_forward_matrix(f, step->op->out);
    return pst_forward_checked(run, f->device->ops->take_rows(f->device, &h, route->order + first, &eh));
}

int pst_forward_expert_add(const pst_forward_run *run, const pst_nn_step *step)
{
    pst_forward *f = run->f;
    const pst_route *route = &f->route;
    uint32_t first = route->first[step->expert];
    pst_matrix ey = pst_forward_matrix(f, step->op->in), x = pst_forward_matrix(f, step->op->out);
    return pst_forward_checked(
        run, f->device->ops->add_rows(f->device, &ey, route->order + first, route->order_weight + first, &x));
}

uint32_t pst_experts_choose(void *context, const pst_stage *stage, bool *wanted)
{
    const pst_nn_stage *nn = context;
    const pst_route *route = &(*nn->forward)->route;
    uint32_t count = 0;
    for (uint32_t e = 0; e < stage->unit_count; e++)
        count += wanted[e] = route->first[e + 1] > route->first[e];
    return count;
}

uint32_t pst_experts_guess(void *context, const pst_stage *stage, bool *wanted)
{
    const pst_nn_stage *nn = context;
    const pst_forward *f = *nn->forward;
    double untouched = pow(1 - (double)f->t->experts_per_token / stage->unit_count, f->row_count);
    bool all = 1 - untouched >= NEARLY_ALL;
    for (uint32_t e = 0; e < stage->unit_count; e++)
        wanted[e] = all;
    return all ? stage->unit_count : 0;
}
