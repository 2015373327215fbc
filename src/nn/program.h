/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A family's recipes bound to a checkpoint: the ordered stages of one model. Stage 0 is the embedding (gathered by row), then
 * learned positions if there are any (likewise), what stands before the layers, each layer's stages, and last the head. Every tensor's shape and type has been checked against the description.
 */
#ifndef PST_NN_PROGRAM_H
#define PST_NN_PROGRAM_H

#include "nn/family.h"
#include "tier/stage.h"

typedef struct pst_forward pst_forward;

enum { PST_NN_AUX = 3 }; /* tensors that a quantized matrix has beside itself */

/* One operator of a stage with the stage's tensor numbers of its weight, its bias and what else its weight's format needs
 * (-1: none). Bias and the rest come before the weight in the stage, so that they are there when it comes. */
typedef struct pst_nn_step {
    const pst_nn_op *op; /* static */
    int32_t weight, bias;
    int32_t aux[PST_NN_AUX];         /* scales, zeros, index */
    uint32_t expert;                 /* in a stage of experts: whose step it is */
    const pst_weight_format *format; /* of the weight; the program's */
    uint64_t columns;                /* numbers in a row of the weight's tensor, as it is without quantization */
} pst_nn_step;

typedef struct pst_nn_stage {
    pst_nn_step *steps;
    uint32_t step_count;
    uint32_t layer;
    pst_forward **forward;       /* of the program: who computes */
    uint32_t *unit_first_tensor; /* of a stage of experts, see tier/stage.h */
} pst_nn_stage;

typedef struct pst_program {
    const pst_store *store; /* outlives it */
    pst_stage *stages;      /* contexts point into nn_stages */
    pst_nn_stage *nn_stages;
    uint32_t stage_count;
    uint32_t gathered_stages; /* the first ones: 0 the embedding, 1 the learned positions if there are any */
    pst_forward *forward;     /* set by pst_forward_create */
    uint64_t weight_bytes, parameters;
    uint64_t expert_parameters; /* of all experts that not every row uses; part of parameters */
    pst_dtype weight_type;      /* of the matrices: the one with most digits that was found */
    pst_weight_format *formats; /* the ones in use */
    uint32_t format_count;
} pst_program;

/* A tensor that a model of this description has, as it is without quantization. */
typedef struct pst_expected_tensor {
    char name[300];
    uint64_t rows, columns; /* rows 0: a vector of `columns` */
    bool is_norm, is_bias;
} pst_expected_tensor;
typedef int pst_expect(void *context, const pst_expected_tensor *tensor, pst_error *err);
/* Calls `expect` for every tensor in the order in which inference needs them, each once (a tied head is the embedding). */
int pst_program_expect(const pst_transformer *transformer, pst_expect *expect, void *context, pst_error *err);

/* The description and the store outlive the program. The caller destroys *out. */
int pst_program_create(const pst_transformer *transformer, const pst_store *store, pst_program **out, pst_error *err);
void pst_program_destroy(pst_program *program);

/* Elements of a row of a buffer. */
size_t pst_nn_width(const pst_transformer *transformer, pst_nn_buffer buffer);
/* Whether a recipe, operator or bias that is there `when` is there in this layer (UINT32_MAX: outside the layers). */
bool pst_nn_applies(const pst_transformer *transformer, pst_nn_when when, uint32_t layer);

#endif
