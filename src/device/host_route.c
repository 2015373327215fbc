/* SPDX-License-Identifier: Apache-2.0 */
/* Choosing experts on the host; see route.h. Rows are shared among the threads, their sorting by expert is one pass. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "base/error.h"
#include "device/host.h"
#include "device/route.h"

enum { TASK_SCORES = 4096 }; /* exponentials that are worth a task of their own */

size_t pst_router_scratch_floats(uint32_t experts)
{
    return 3 * (size_t)experts; /* scores, corrected scores, and those of groups (never more than experts) */
}

/* The softmax over all experts, or each logit's sigmoid. */
static void score(const pst_router *router, const float *logits, float *scores)
{
    if (router->routing->sigmoid) {
        for (uint32_t e = 0; e < router->experts; e++)
            scores[e] = 1.0f / (1.0f + expf(-logits[e]));
        return;
    }
    float most = logits[0], sum = 0;
    for (uint32_t e = 1; e < router->experts; e++)
        most = logits[e] > most ? logits[e] : most;
    for (uint32_t e = 0; e < router->experts; e++)
        sum += scores[e] = expf(logits[e] - most);
    for (uint32_t e = 0; e < router->experts; e++)
        scores[e] /= sum;
}

/* The largest of values[0..count) that is not taken, the first of equals; what is taken is -INFINITY. A value that is
 * not a number is never better, so that something valid comes out in any case. */
static uint32_t best_of(const float *values, uint32_t count)
{
    uint32_t best = count;
    for (uint32_t i = 0; i < count; i++)
        if (values[i] != -INFINITY && (best == count || values[i] > values[best]))
            best = i;
    return best;
}

/* Takes all experts but those of the best groups. */
static void take_groups(const pst_router *router, float *values, float *groups)
{
    const pst_routing *routing = router->routing;
    uint32_t count = routing->groups, size = router->experts / count;
    for (uint32_t g = 0; g < count; g++) {
        float first = -INFINITY, second = -INFINITY;
        for (uint32_t e = g * size; e < (g + 1) * size; e++) {
            second = values[e] > first ? first : values[e] > second ? values[e] : second;
            first = values[e] > first ? values[e] : first;
        }
        bool both = routing->group_scores == 2 && second != -INFINITY;
        groups[g] = both ? first + second : first;
        groups[g] = groups[g] >= -FLT_MAX ? groups[g] : -FLT_MAX;
    }
    for (uint32_t kept = 0; kept < routing->top_groups; kept++) {
        uint32_t best = best_of(groups, count);
        if (best < count)
            groups[best] = -INFINITY;
    }
    for (uint32_t g = 0; g < count; g++)
        for (uint32_t e = g * size; groups[g] != -INFINITY && e < (g + 1) * size; e++)
            values[e] = -INFINITY;
}

/* Turns the scores of the chosen into weights, in the order of the experts, whichever was the best. */
static void weigh(const pst_router *router, const float *scores, const uint32_t *chosen, float *weights)
{
    const pst_routing *routing = router->routing;
    float sum = 0;
    for (uint32_t i = 0; i < router->per_row; i++)
        sum += weights[i] = scores[chosen[i]];
    float divisor = routing->normalize ? sum + (float)routing->normalize_epsilon : 1;
    for (uint32_t i = 0; i < router->per_row; i++)
        weights[i] = weights[i] / divisor * (float)routing->scale;
}

void pst_router_choose(const pst_router *router, const float *logits, const float *correction, float *scratch,
                       uint32_t *chosen, float *weights)
{
    float *scores = scratch, *values = scratch + router->experts, *groups = values + router->experts;
    score(router, logits, scores);
    for (uint32_t e = 0; e < router->experts; e++) {
        float value = correction ? scores[e] + correction[e] : scores[e];
        values[e] = value >= -FLT_MAX ? value : -FLT_MAX; /* not a number, or what stands for taken */
    }
    if (router->routing->top_groups < router->routing->groups)
        take_groups(router, values, groups);
    for (uint32_t i = 0; i < router->per_row; i++) {
        uint32_t best = best_of(values, router->experts), place = i;
        values[best] = -INFINITY;
        for (; place > 0 && chosen[place - 1] > best; place--)
            chosen[place] = chosen[place - 1];
        chosen[place] = best;
    }
    weigh(router, scores, chosen, weights);
}

void pst_router_weigh(const pst_router *router, const float *logits, float *scratch, const uint32_t *chosen,
                      float *weights)
{
    score(router, logits, scratch);
    weigh(router, scratch, chosen, weights);
}

void pst_router_group(const pst_router *router, uint32_t rows, const uint32_t *chosen, const float *weights,
                      const pst_router_rows *out)
{
    const uint32_t per_row = router->per_row, experts = router->experts;
    const size_t picks = (size_t)rows * per_row;
    uint32_t *first = out->first;
    memset(first, 0, ((size_t)experts + 1) * sizeof *first);
    for (size_t i = 0; i < picks; i++)
        first[chosen[i] + 1]++;
    for (uint32_t e = 0; e < experts; e++)
        first[e + 1] += first[e];
    for (size_t i = 0; i < picks; i++) { /* first[e] moves to the end of e's rows, and back below */
        uint32_t place = first[chosen[i]]++;
        out->order[place] = (uint32_t)(i / per_row);
        out->order_weight[place] = weights[i];
    }
    for (uint32_t e = experts; e > 0; e--)
        first[e] = first[e - 1];
    first[0] = 0;
}

typedef struct route_cut {
    const host_device *host;
    const pst_route_job *job;
    pst_router router;
    size_t rows_per_task;
} route_cut;

static void route_task(void *context, uint32_t task, uint32_t worker)
{
    const route_cut *cut = context;
    const pst_route_job *job = cut->job;
    const size_t end = (task + (size_t)1) * cut->rows_per_task;
    float *scratch = cut->host->scratch + worker * cut->host->scratch_floats;
    for (size_t row = task * cut->rows_per_task; row < job->logits.rows && row < end; row++)
        pst_router_choose(&cut->router, (const float *)job->logits.data + row * job->logits.stride, job->correction,
                          scratch, job->chosen + row * job->per_row, job->weights + row * job->per_row);
}

uint64_t pst_device_host_route_bytes(uint32_t experts, uint32_t threads)
{
    return (uint64_t)host_scratch_floats(pst_router_scratch_floats(experts)) * sizeof(float) * threads;
}

int host_route(pst_device *device, const pst_route_job *job)
{
    host_device *host = host_of(device);
    const uint32_t experts = (uint32_t)job->logits.columns;
    if (experts == 0 || job->per_row > experts)
        return PST_E_USAGE;
    PST_TRY(host_reserve_scratch(host, pst_router_scratch_floats(experts)));
    route_cut cut = {.host = host,
                     .job = job,
                     .router = {&job->routing, experts, job->per_row},
                     .rows_per_task = host_ceil(TASK_SCORES, experts)};
    host_run(host, host_ceil(job->logits.rows, cut.rows_per_task), route_task, &cut);
    const pst_router_rows rows = {job->first, job->order, job->order_weight};
    pst_router_group(&cut.router, (uint32_t)job->logits.rows, job->chosen, job->weights, &rows);
    return 0;
}
