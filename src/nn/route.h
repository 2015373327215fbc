/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which experts compute which rows of a pass: the memory of the answer, and device/route.h's arithmetic with a transformer's
 * numbers. A routing trace replaces the choice where one wants known traffic.
 */
#ifndef PST_NN_ROUTE_H
#define PST_NN_ROUTE_H

#include "nn/config.h"

typedef struct pst_routing_trace pst_routing_trace;

/* The routing of the rows of one pass in one layer. Arrays are owned; rows of `chosen` have `per_row` entries. */
typedef struct pst_route {
    const pst_transformer *t;
    uint32_t max_rows, rows;
    uint32_t *chosen;    /* by row: its experts, rising */
    float *weights;      /* by row: what each counts */
    uint32_t *first;     /* by expert, and one more: where its rows begin in `order` */
    uint32_t *order;     /* rows of expert 0, rising, then those of expert 1, ... */
    float *order_weight; /* what the expert counts in each of these rows */
    float *scratch;      /* pst_route_scratch_floats */
    float *correction;   /* by expert: the router's, on its way to the choice */
} pst_route;

/* Memory of a route: per row, and besides. */
uint64_t pst_route_row_bytes(const pst_transformer *transformer);
uint64_t pst_route_fixed_bytes(const pst_transformer *transformer);
/* The transformer outlives it. */
int pst_route_create(const pst_transformer *transformer, uint32_t max_rows, pst_route *out, pst_error *err);
void pst_route_destroy(pst_route *route); /* what it holds; a zeroed one is fine */

/* Arrays of a route in memory of the caller's, each at a multiple of 256 bytes, no scratch; NULL: none. How many bytes. Not to be
 * destroyed. */
uint64_t pst_route_place(const pst_transformer *transformer, uint32_t max_rows, void *memory, pst_route *out);

size_t pst_route_scratch_floats(const pst_transformer *transformer);
/* One row: its experts, rising, and their weights (experts_per_token of each). correction: by expert; NULL: none. Of equal
 * scores the lower expert's counts as the better one. Whatever the logits are, the experts are distinct and valid. */
void pst_route_choose(const pst_transformer *transformer, const float *logits, const float *correction, float *scratch,
                      uint32_t *chosen, float *weights);
/* The weights of given experts, as they would be had the router chosen them. */
void pst_route_weigh(const pst_transformer *transformer, const float *logits, float *scratch, const uint32_t *chosen,
                     float *weights);
/* Fills first, order and order_weight from the first `rows` rows of chosen and weights. */
void pst_route_group(pst_route *route, uint32_t rows);

#endif
