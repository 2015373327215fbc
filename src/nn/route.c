/* SPDX-License-Identifier: Apache-2.0 */
/* The memory of a routing, and device/route.h's choice for a transformer. */
#include "nn/route.h"

#include "base/error.h"
#include "base/heap.h"
#include "base/number.h"
#include "device/route.h"

size_t pst_route_scratch_floats(const pst_transformer *t)
{
    return pst_router_scratch_floats(t->experts);
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

uint64_t pst_route_place(const pst_transformer *t, uint32_t max_rows, void *memory, pst_route *out)
{
    enum { ALIGNMENT = 256 };
    const uint64_t picks = (uint64_t)max_rows * t->experts_per_token * sizeof(uint32_t);
    const uint64_t bytes[] = {(t->experts + 1) * sizeof(uint32_t), picks, picks, picks, picks,
                              t->experts * sizeof(float)};
    void *places[sizeof bytes / sizeof bytes[0]];
    uint64_t offset = 0;
    for (size_t i = 0; i < sizeof bytes / sizeof bytes[0]; i++) {
        places[i] = memory ? (char *)memory + offset : NULL;
        offset += pst_round_up(bytes[i], ALIGNMENT);
    }
    *out = (pst_route){.t = t,
                       .max_rows = max_rows,
                       .first = places[0],
                       .order = places[1],
                       .order_weight = places[2],
                       .chosen = places[3],
                       .weights = places[4],
                       .correction = places[5]};
    return offset;
}

static pst_router router_of(const pst_transformer *t)
{
    return (pst_router){&t->routing, t->experts, t->experts_per_token};
}

void pst_route_choose(const pst_transformer *t, const float *logits, const float *correction, float *scratch,
                      uint32_t *chosen, float *weights)
{
    const pst_router router = router_of(t);
    pst_router_choose(&router, logits, correction, scratch, chosen, weights);
}

void pst_route_weigh(const pst_transformer *t, const float *logits, float *scratch, const uint32_t *chosen,
                     float *weights)
{
    const pst_router router = router_of(t);
    pst_router_weigh(&router, logits, scratch, chosen, weights);
}

void pst_route_group(pst_route *route, uint32_t rows)
{
    const pst_router router = router_of(route->t);
    const pst_router_rows out = {route->first, route->order, route->order_weight};
    pst_router_group(&router, rows, route->chosen, route->weights, &out);
    route->rows = rows;
}
