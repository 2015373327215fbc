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

uint64_t pst_experts_row_bytes(const pst_forward_config *config)
{
    const pst_transformer *t = config->transformer;
    if (t->experts == 0)
        return 0;
    uint64_t recorded = (uint64_t)sparse_before(t, t->layers) * t->experts_per_token * sizeof(uint32_t);
    return pst_route_row_bytes(t) + (config->record_routing ? recorded : 0) +
           (config->routing_trace ? sizeof(pst_traced_row) : 0);
}

int pst_experts_create(pst_forward *f, const pst_forward_config *config, pst_error *err)
{
    if (f->t->experts == 0)
        return 0;
    f->sparse_layers = sparse_before(f->t, f->t->layers);
    if (f->apart) {
        PST_TRY(pst_experts_apart_create(f, config, err));
    } else {
        PST_TRY(pst_route_create(f->t, f->max_rows, &f->routed.here, err));
        f->routed.there = f->routed.here;
    }
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
    if (f->apart)
        pst_experts_apart_destroy(f);
    else
        pst_route_destroy(&f->routed.here);
    pst_heap_free(f->routing);
    pst_heap_free(f->traced);
}

const uint32_t *pst_forward_routing(const pst_forward *f, uint32_t row)
{
    return f->routing + (size_t)row * f->sparse_layers * f->t->experts_per_token;
}

void pst_experts_record(pst_forward *f)
{
    const uint32_t per_token = f->t->experts_per_token, sparse = sparse_before(f->t, f->routed.layer);
    for (uint32_t row = 0; f->routing != NULL && row < f->row_count; row++)
        memcpy(f->routing + ((size_t)row * f->sparse_layers + sparse) * per_token,
               f->routed.here.chosen + (size_t)row * per_token, per_token * sizeof *f->routing);
}

/* The trace's experts, with the weights that the router would give them. */
static int choose_traced(pst_forward *f, pst_matrix logits)
{
    const pst_transformer *t = f->t;
    pst_routed *r = &f->routed;
    const uint32_t per_token = t->experts_per_token, sparse = sparse_before(t, r->layer);
    if (f->apart)
        PST_TRY(pst_experts_fetch_logits(f, &logits));
    for (uint32_t row = 0; row < f->row_count; row++) {
        uint32_t *chosen = r->here.chosen + (size_t)row * per_token;
        pst_routing_trace_choose(f->routing_trace, sparse, f->traced[row].serial, f->traced[row].position, chosen);
        pst_route_weigh(t, (const float *)logits.data + row * logits.stride, r->here.scratch, chosen,
                        r->here.weights + (size_t)row * per_token);
    }
    pst_route_group(&r->here, f->row_count);
    pst_experts_record(f);
    return f->apart ? pst_experts_publish(f) : 0;
}

/* The router's experts. An accelerator's choice is on its way to the host when this returns. */
static int choose_routed(pst_forward *f, const pst_matrix *logits, const float *correction)
{
    const pst_route *to = &f->routed.there;
    const pst_route_job job = {.logits = *logits,
                               .correction = correction,
                               .routing = f->t->routing,
                               .per_row = f->t->experts_per_token,
                               .chosen = to->chosen,
                               .weights = to->weights,
                               .first = to->first,
                               .order = to->order,
                               .order_weight = to->order_weight};
    PST_TRY(f->device->ops->route(f->device, &job));
    if (f->apart)
        return pst_experts_fetch_choice(f);
    pst_experts_record(f);
    return 0;
}

int pst_forward_route(const pst_forward_run *run, const pst_nn_step *step)
{
    pst_forward *f = run->f;
    const pst_transformer *t = f->t;
    float *correction = NULL;
    if (step->weight >= 0) {
        const pst_piece *piece = pst_forward_next_piece(run, step->weight);
        if (piece == NULL)
            return 0;
        correction = f->routed.there.correction;
        pst_weight weight = pst_forward_weight(run, step, piece, t->experts);
        pst_matrix y = {correction, PST_F32, 1, t->experts, t->experts};
        PST_TRY(pst_forward_checked(run, f->device->ops->convert(f->device, &weight, &y)));
        f->next_piece++;
    }
    f->routed.layer = run->nn->layer;
    const pst_matrix logits = pst_forward_matrix(f, step->op->in);
    if (f->routing_trace != NULL)
        return pst_forward_checked(run, choose_traced(f, logits));
    return pst_forward_checked(run, choose_routed(f, &logits, correction));
}

int pst_forward_expert_take(const pst_forward_run *run, const pst_nn_step *step)
{
    pst_forward *f = run->f;
    if (f->apart)
        return pst_experts_begin_one(run, step);
    const pst_route *route = &f->routed.here;
    uint32_t first = route->first[step->expert];
    f->expert_rows = route->first[step->expert + 1] - first;
    pst_matrix h = pst_forward_matrix(f, step->op->in), eh = pst_forward_matrix(f, step->op->out);
    return pst_forward_checked(run, f->device->ops->take_rows(f->device, &h, route->order + first, &eh));
}

int pst_forward_expert_add(const pst_forward_run *run, const pst_nn_step *step)
{
    pst_forward *f = run->f;
    if (f->apart)
        return pst_experts_end_one(run, step);
    const pst_route *route = &f->routed.here;
    uint32_t first = route->first[step->expert];
    pst_matrix ey = pst_forward_matrix(f, step->op->in), x = pst_forward_matrix(f, step->op->out);
    return pst_forward_checked(
        run, f->device->ops->add_rows(f->device, &ey, route->order + first, route->order_weight + first, &x));
}

uint32_t pst_experts_choose(void *context, const pst_stage *stage, bool *wanted)
{
    const pst_nn_stage *nn = context;
    pst_forward *f = *nn->forward;
    const pst_route *route = &f->routed.here;
    uint32_t count = 0;
    if (f->apart && pst_experts_await(f) < 0) { /* the next part, or the pass's end, tells of it */
        memset(wanted, 0, stage->unit_count * sizeof *wanted);
        return 0;
    }
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
