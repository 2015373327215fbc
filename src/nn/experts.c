/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Layers with experts. The rows of one expert are gathered, in rising order, computed together, and added to x times their
 * weights, expert after expert; so a row's sum is always the same sequence of additions, whichever rows it came with and
 * whichever experts lay in memory.
 */
#include "nn/experts.h"

#include <math.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "nn/forward_internal.h"

/* From this expected share of touched experts on, reading all ahead wastes less than choosing would save. */
static const double NEARLY_ALL = 0.95;

static uint32_t sparse_before(const pst_transformer *t, uint32_t layer)
{
    uint32_t count = 0;
    for (uint32_t i = 0; t->sparse != NULL && i < layer; i++)
        count += t->sparse[i];
    return count;
}

/* Of one row of a router's logits. */
static uint64_t logits_bytes(const pst_transformer *t)
{
    return (uint64_t)t->experts * sizeof(float);
}

/* Whether the host chooses the experts: an accelerator does it itself unless what it chose is asked for or replaced. */
static bool chooses_here(const pst_forward_config *config)
{
    return !config->apart || config->routing_trace != NULL || config->record_routing;
}

uint64_t pst_experts_row_bytes(const pst_forward_config *config)
{
    const pst_transformer *t = config->transformer;
    if (t->experts == 0)
        return 0;
    uint64_t recorded = (uint64_t)sparse_before(t, t->layers) * t->experts_per_token * sizeof(uint32_t);
    return pst_route_row_bytes(t) + (config->record_routing ? recorded : 0) +
           (config->routing_trace ? sizeof(pst_traced_row) : 0) +
           (chooses_here(config) && config->apart ? logits_bytes(t) : 0);
}

int pst_experts_create(pst_forward *f, const pst_forward_config *config, pst_error *err)
{
    if (f->t->experts == 0)
        return 0;
    f->sparse_layers = sparse_before(f->t, f->t->layers);
    PST_TRY(pst_route_create(f->t, f->max_rows, &f->route, err));
    size_t row = (size_t)f->sparse_layers * f->t->experts_per_token;
    if (config->record_routing)
        f->routing = pst_heap_calloc(f->max_rows, row * sizeof *f->routing);
    f->routing_trace = config->routing_trace;
    if (f->routing_trace != NULL)
        f->traced = pst_heap_calloc(f->max_rows, sizeof *f->traced);
    bool is_made = (f->routing != NULL) == config->record_routing && (f->traced != NULL) == (f->routing_trace != NULL);
    return is_made ? 0 : pst_fail_memory(err, "the routing of a pass", f->max_rows * row * sizeof *f->routing);
}

void pst_experts_destroy(pst_forward *f)
{
    pst_route_destroy(&f->route);
    pst_heap_free(f->routing);
    pst_heap_free(f->traced);
}

const uint32_t *pst_forward_routing(const pst_forward *f, uint32_t row)
{
    return f->routing + (size_t)row * f->sparse_layers * f->t->experts_per_token;
}

/* Chooses a row's experts, or takes them from the trace with the weights that the router would give them. */
static void route_row(pst_forward *f, uint32_t layer, uint32_t row, const float *logits, const float *correction)
{
    const pst_transformer *t = f->t;
    uint32_t per_token = t->experts_per_token, sparse = sparse_before(t, layer);
    uint32_t *chosen = f->route.chosen + (size_t)row * per_token;
    float *weights = f->route.weights + (size_t)row * per_token;
    if (f->routing_trace == NULL) {
        pst_route_choose(t, logits, correction, f->route.scratch, chosen, weights);
    } else {
        pst_routing_trace_choose(f->routing_trace, sparse, f->traced[row].serial, f->traced[row].position, chosen);
        pst_route_weigh(t, logits, f->route.scratch, chosen, weights);
    }
    if (f->routing != NULL)
        memcpy(f->routing + ((size_t)row * f->sparse_layers + sparse) * per_token, chosen, per_token * sizeof *chosen);
}

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
    for (uint32_t row = 0; row < f->row_count; row++)
        route_row(f, run->nn->layer, row, (const float *)r->data + row * r->stride, correction);
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
    pst_forward *f = *nn->forward;
    const pst_route *route = &f->route;
    uint32_t count = 0;
    for (uint32_t e = 0; e < stage->unit_count; e++)
        count += wanted[e] = route->first[e + 1] > route->first[e];
    pst_look_ahead_judge(f, sparse_before(f->t, nn->layer), wanted);
    return count;
}

uint32_t pst_experts_guess(void *context, const pst_stage *stage, bool *wanted)
{
    const pst_nn_stage *nn = context;
    pst_forward *f = *nn->forward;
    double untouched = pow(1 - (double)f->t->experts_per_token / stage->unit_count, f->row_count);
    bool all = 1 - untouched >= NEARLY_ALL;
    for (uint32_t e = 0; e < stage->unit_count; e++)
        wanted[e] = all;
    if (all || f->routing_trace != NULL) /* a trace knows nothing of what a router says */
        return all ? stage->unit_count : 0;
    return pst_look_ahead_guess(f, sparse_before(f->t, nn->layer), wanted);
}
