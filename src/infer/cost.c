/* SPDX-License-Identifier: Apache-2.0 */
/* The arithmetic of a pass; see cost.h. */
#include "infer/cost.h"

#include <math.h>

void pst_cost_of(const pst_transformer *t, const pst_program *program, pst_cost *out)
{
    double head = (double)t->vocab * t->embedding_dim;
    double gathered = head; /* the embedding, and learned positions: fetched by row, multiplied with nothing */
    if (t->family->positions != NULL)
        gathered += ((double)t->context + t->position_offset) * t->hidden;
    double apart = gathered + (t->tied_head ? 0 : head); /* a tied head is counted once among the parameters */
    *out = (pst_cost){.transformer = t,
                      .every_row = (double)program->parameters - (double)program->expert_parameters - apart,
                      .experts = (double)program->expert_parameters,
                      .head = head,
                      .key_operations = 4.0 * t->heads * t->head_dim};
    if (t->latent.kv_lora_rank > 0) /* queries meet the compressed keys, and weights the compressed values */
        out->key_operations = 2.0 * t->heads * (2.0 * t->latent.kv_lora_rank + t->latent.rope_dim);
    for (uint32_t i = 0; i < t->layers && t->windowed != NULL; i++)
        out->windowed += t->windowed[i];
}

static double experts_of_row(const pst_cost *cost)
{
    const pst_transformer *t = cost->transformer;
    return t->experts ? cost->experts * t->experts_per_token / t->experts : 0;
}

double pst_cost_active_parameters(const pst_cost *cost)
{
    return cost->every_row + experts_of_row(cost) + cost->head;
}

double pst_cost_operations(const pst_cost *cost, double rows, double logit_rows, double keys)
{
    return 2 * ((cost->every_row + experts_of_row(cost)) * rows + cost->head * logit_rows) +
           cost->key_operations * keys;
}

double pst_cost_keys(const pst_cost *cost, double position)
{
    const pst_transformer *t = cost->transformer;
    double all = position + 1, near = t->window && t->window < all ? t->window : all;
    return near * cost->windowed + all * (t->layers - cost->windowed);
}

double pst_cost_expert_share(const pst_transformer *t, double rows)
{
    return t->experts ? 1 - pow(1 - (double)t->experts_per_token / t->experts, rows) : 0;
}
