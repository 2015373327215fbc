/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the prediction share: the model without its weights, where its bytes would lie, what a pass costs. */
#ifndef PST_JOBS_PREDICT_INTERNAL_H
#define PST_JOBS_PREDICT_INTERNAL_H

#include "infer/internal.h"
#include "jobs/synth_shapes.h"
#include "penstock/plan.h"

/* A model as far as it can be known without its weights. */
typedef struct pst_planned_model {
    char *folder;     /* NULL: a shape */
    pst_model *model; /* its weights are there, and are taken as they are; else what follows */
    pst_transformer transformer;
    pst_shape_tensors tensors;
    pst_store *store;
    pst_program *own_program;
    const pst_transformer *t; /* one or the other */
    pst_program *program;
    char name[256];
} pst_planned_model;
/* quant_bits: 0 or 16: as it is; 8 or 4: as converted. */
int pst_planned_model_open(const pst_predict_options *options, uint32_t quant_bits, pst_planned_model *out,
                           pst_error *err);
void pst_planned_model_close(pst_planned_model *model); /* what it holds; a zeroed one is fine */

/* A placement and the rates: everything that the time of a pass follows from. */
typedef struct pst_placed {
    const pst_predict_options *options;
    const pst_planned_model *model;
    const pst_plan *plan;
    pst_cost cost;
    uint32_t batch;
    uint32_t rows_per_pass;
    double gathered_row_bytes; /* read from the drive for each row; 0: the embedding is in memory */
    pst_kv_config cache;
} pst_placed;

/* Fills the tiers of the prediction, and what the times follow from. The caller destroys *plan. */
int pst_predict_place(const pst_predict_options *options, const pst_planned_model *model, uint32_t batch,
                      pst_plan *plan, pst_placed *placed, pst_prediction *out, pst_error *err);
/* Fills passes, times and rates. */
int pst_predict_times(const pst_placed *placed, pst_prediction *out, pst_error *err);
/* Placement and times for one batch. */
int pst_predict_batch(const pst_predict_options *options, const pst_planned_model *model, uint32_t batch,
                      pst_prediction *out, pst_error *err);
/* The batch that the prediction is made for when none is given: the smallest whose rate comes within 2 % of the best. */
int pst_predict_choose(const pst_predict_options *options, const pst_planned_model *model, pst_prediction *out,
                       pst_error *err);
/* Fills the advice. */
int pst_predict_advise(const pst_predict_options *options, const pst_planned_model *model, pst_prediction *out,
                       pst_error *err);

#endif
