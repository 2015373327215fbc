/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A family's recipes bound to a checkpoint: the ordered stages of one model. Stage 0 is the embedding (gathered by row);
 * then each layer's stages; the last is the head. Every tensor's shape and type has been checked against the description.
 */
#ifndef PST_NN_PROGRAM_H
#define PST_NN_PROGRAM_H

#include "nn/family.h"
#include "tier/stage.h"

typedef struct pst_forward pst_forward;

/* One operator of a stage with the stage's tensor numbers of its weight and bias (-1: none). */
typedef struct pst_nn_step {
    const pst_nn_op *op; /* static */
    int32_t weight, bias;
} pst_nn_step;

typedef struct pst_nn_stage {
    pst_nn_step *steps;
    uint32_t step_count;
    uint32_t layer;
    pst_forward **forward; /* of the program: who computes */
} pst_nn_stage;

typedef struct pst_program {
    pst_stage *stages; /* contexts point into nn_stages */
    pst_nn_stage *nn_stages;
    uint32_t stage_count;
    pst_forward *forward; /* set by pst_forward_create */
    uint64_t weight_bytes, parameters;
    pst_dtype weight_type; /* of the matrices: the one with most digits that was found */
} pst_program;

/* The description and the store outlive the program. The caller destroys *out. */
int pst_program_create(const pst_transformer *transformer, const pst_store *store, pst_program **out, pst_error *err);
void pst_program_destroy(pst_program *program);

/* Elements of a row of a buffer. */
size_t pst_nn_width(const pst_transformer *transformer, pst_nn_buffer buffer);
/* Whether an operator, or bias, that is there `when` is there in this model. */
bool pst_nn_applies(const pst_transformer *transformer, pst_nn_when when);

#endif
