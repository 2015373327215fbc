/* SPDX-License-Identifier: Apache-2.0 */
/* Choosing experts; see route.h. */
#include "nn/route.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"

size_t pst_route_scratch_floats(const pst_transformer *t)
{
    return 3 * (size_t)t->experts; /* scores, corrected scores, and those of groups (never more than experts) */
}

uint64_t pst_route_row_bytes(const pst_transformer *t)
{
    return t->experts ? (uint64_t)t->experts_per_token * 2 * (sizeof(uint32_t) + sizeof(float)) : 0;
}

uint64_t pst_route_fixed_bytes(const pst_transformer *t)
{
    uint64_t floats = pst_route_scratch_floats(t) + t->experts;
    return t->experts ? ((uint64_t)t->experts + 1) * sizeof(uint32_t) + floats * sizeof(float) : 0;
}

int pst_route_create(const pst_transformer *t, uint32_t max_rows, pst_route *out, pst_error *err)
{
    pst_route route = {.t = t, .max_rows = max_rows};
    size_t picks = (size_t)max_rows * t->experts_per_token;
    route.chosen = pst_heap_calloc(picks, sizeof *route.chosen);
    route.weights = pst_heap_calloc(picks, sizeof *route.weights);
    route.first = pst_heap_calloc((size_t)t->experts + 1, sizeof *route.first);
    route.order = pst_heap_calloc(picks, sizeof *route.order);
    route.order_weight = pst_heap_calloc(picks, sizeof *route.order_weight);
    route.scratch = pst_heap_calloc(pst_route_scratch_floats(t), sizeof *route.scratch);
    route.correction = pst_heap_calloc(t->experts, sizeof *route.correction);
    if (!route.chosen || !route.weights || !route.first || !route.order || !route.order_weight || !route.scratch ||
        !route.correction) {
        pst_route_destroy(&route);
        return pst_fail_memory(err, "the routing of a pass", picks * 2 * (sizeof(uint32_t) + sizeof(float)));
    }
    *out = route;
    return 0;
}

void pst_route_destroy(pst_route *route)
{
    pst_heap_free(route->chosen);
    pst_heap_free(route->weights);
    pst_heap_free(route->first);
    pst_heap_free(route->order);
    pst_heap_free(route->order_weight);
    pst_heap_free(route->scratch);
    pst_heap_free(route->correction);
    *route = (pst_route){0};
}

/* The softmax over all experts, or each logit's sigmoid. */
static void score(const pst_transformer *t, const float *logits, float *scores)
{
    if (t->routing.sigmoid) {
        for (uint32_t e = 0; e < t->experts; e++)
            scores[e] = 1.0f / (1.0f + expf(-logits[e]));
        return;
    }
    float most = logits[0], sum = 0;
    for (uint32_t e = 1; e < t->experts; e++)
        most = logits[e] > most ? logits[e] : most;
    for (uint32_t e = 0; e < t->experts; e++)
        sum += scores[e] = expf(logits[e] - most);
    for (uint32_t e = 0; e < t->experts; e++)
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
static void take_groups(const pst_transformer *t, float *values, float *groups)
{
    uint32_t count = t->routing.groups, size = t->experts / count;
    for (uint32_t g = 0; g < count; g++) {
        float first = -INFINITY, second = -INFINITY;
        for (uint32_t e = g * size; e < (g + 1) * size; e++) {
            second = values[e] > first ? first : values[e] > second ? values[e] : second;
            first = values[e] > first ? values[e] : first;
        }
        bool both = t->routing.group_scores == 2 && second != -INFINITY;
        groups[g] = both ? first + second : first;
        groups[g] = groups[g] >= -FLT_MAX ? groups[g] : -FLT_MAX;
    }
    for (uint32_t kept = 0; kept < t->routing.top_groups; kept++) {
        uint32_t best = best_of(groups, count);
        if (best < count)
            groups[best] = -INFINITY;
    }
    for (uint32_t g = 0; g < count; g++)
        for (uint32_t e = g * size; groups[g] != -INFINITY && e < (g + 1) * size; e++)
            values[e] = -INFINITY;
}

/* Turns the scores of the chosen into weights, in the order of the experts, whichever was the best. */
static void weigh(const pst_transformer *t, const float *scores, const uint32_t *chosen, float *weights)
{
    float sum = 0;
    for (uint32_t i = 0; i < t->experts_per_token; i++)
        sum += weights[i] = scores[chosen[i]];
    float divisor = t->routing.normalize ? sum + (float)t->routing.normalize_epsilon : 1;
    for (uint32_t i = 0; i < t->experts_per_token; i++)
        weights[i] = weights[i] / divisor * (float)t->routing.scale;
}

void pst_route_choose(const pst_transformer *t, const float *logits, const float *correction, float *scratch,
                      uint32_t *chosen, float *weights)
{
    float *scores = scratch, *values = scratch + t->experts, *groups = values + t->experts;
    score(t, logits, scores);
    for (uint32_t e = 0; e < t->experts; e++) {
        float value = correction ? scores[e] + correction[e] : scores[e];
        values[e] = value >= -FLT_MAX ? value : -FLT_MAX; /* not a number, or what stands for taken */
    }
    if (t->routing.top_groups < t->routing.groups)
        take_groups(t, values, groups);
    for (uint32_t i = 0; i < t->experts_per_token; i++) {
        uint32_t best = best_of(values, t->experts), place = i;
        values[best] = -INFINITY;
        for (; place > 0 && chosen[place - 1] > best; place--)
            chosen[place] = chosen[place - 1];
        chosen[place] = best;
    }
    weigh(t, scores, chosen, weights);
}

void pst_route_weigh(const pst_transformer *t, const float *logits, float *scratch, const uint32_t *chosen,
                     float *weights)
{
    score(t, logits, scratch);
    weigh(t, scratch, chosen, weights);
}

void pst_route_group(pst_route *route, uint32_t rows)
{
    uint32_t per_row = route->t->experts_per_token, experts = route->t->experts, picks = rows * per_row;
    uint32_t *first = route->first;
    route->rows = rows;
    memset(first, 0, ((size_t)experts + 1) * sizeof *first);
    for (uint32_t i = 0; i < picks; i++)
        first[route->chosen[i] + 1]++;
    for (uint32_t e = 0; e < experts; e++)
        first[e + 1] += first[e];
    for (uint32_t i = 0; i < picks; i++) { /* first[e] moves to the end of e's rows, and back below */
        uint32_t place = first[route->chosen[i]]++;
        route->order[place] = i / per_row;
        route->order_weight[place] = route->weights[i];
    }
    for (uint32_t e = experts; e > 0; e--)
        first[e] = first[e - 1];
    first[0] = 0;
}
