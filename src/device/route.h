/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which experts compute which rows: the arithmetic of the operator `route` on the host, for callers that need a part of it (a
 * choice that is imposed, a guess ahead of time). A row's experts follow from its router's logits alone, so that neither the
 * batch nor where weights lie can change them.
 *
 * Sources: Mixtral (arXiv 2401.04088): the best of a softmax; DeepSeek-V2 (2405.04434): groups of experts first;
 * DeepSeek-V3 (2412.19437): sigmoids, and a correction that counts for the choice but not for the weight.
 */
#ifndef PST_DEVICE_ROUTE_H
#define PST_DEVICE_ROUTE_H

#include "penstock/device_plugin.h"

/* A router: how it chooses, of how many experts, how many for a row. per_row experts are there in the best groups. */
typedef struct pst_router {
    const pst_routing *routing;
    uint32_t experts, per_row;
} pst_router;

/* Scratch memory of the functions below. */
size_t pst_router_scratch_floats(uint32_t experts);
/* One row: its experts, rising, and their weights (per_row of each). correction: by expert; NULL: none. Of equal scores the
 * lower expert's counts as the better one. Whatever the logits are, the experts are distinct and valid. */
void pst_router_choose(const pst_router *router, const float *logits, const float *correction, float *scratch,
                       uint32_t *chosen, float *weights);
/* The weights of given experts, as they would be had the router chosen them. */
void pst_router_weigh(const pst_router *router, const float *logits, float *scratch, const uint32_t *chosen,
                      float *weights);

/* Rows sorted by expert: as in pst_route_job. */
typedef struct pst_router_rows {
    uint32_t *first, *order;
    float *order_weight;
} pst_router_rows;
void pst_router_group(const pst_router *router, uint32_t rows, const uint32_t *chosen, const float *weights,
                      const pst_router_rows *out);

#endif
