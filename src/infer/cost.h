/* SPDX-License-Identifier: Apache-2.0 */
/* What a pass costs in arithmetic, from the description alone: for the bound of a run and for predictions. */
#ifndef PST_INFER_COST_H
#define PST_INFER_COST_H

#include "nn/program.h"

/* Parameters by what they are multiplied with. */
typedef struct pst_cost {
    const pst_transformer *transformer;
    double every_row;      /* parameters that every row is multiplied with, the head aside */
    double experts;        /* those of experts, of which a row uses experts_per_token of each layer's */
    double head;           /* rows whose logits are wanted alone */
    uint32_t windowed;     /* layers that look at a window */
    double key_operations; /* of attention, per row, key and layer */
} pst_cost;

void pst_cost_of(const pst_transformer *transformer, const pst_program *program, pst_cost *out);
/* Parameters that a row is multiplied with, the head included. */
double pst_cost_active_parameters(const pst_cost *cost);
/* Multiplications and additions of a pass: two per weight and row, and attention's products with `keys` keys in all layers
 * and rows together. */
double pst_cost_operations(const pst_cost *cost, double rows, double logit_rows, double keys);
/* Keys that a row at `position` looks at, in all layers together. */
double pst_cost_keys(const pst_cost *cost, double position);
/* The share of a layer's experts that `rows` rows need, if each row chooses its own at random, uniformly. */
double pst_cost_expert_share(const pst_transformer *transformer, double rows);

#endif
