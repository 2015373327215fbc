/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A matrix of a checkpoint, found by name in whichever format it is stored: its tensor, the tensors that hold its scales
 * and the like, and the format that the kernels are told. Shapes and types are checked here.
 */
#ifndef PST_NN_WEIGHTS_H
#define PST_NN_WEIGHTS_H

#include "nn/program.h"

typedef struct pst_found_weight {
    const pst_tensor *tensor;
    uint64_t rows;                     /* of the tensor */
    const pst_tensor *aux[PST_NN_AUX]; /* scales, zeros, index; NULL: none */
    pst_weight_format format;
    pst_dtype digits; /* the type among F32, F16, BF16 that holds its numbers without loss, or nearly */
} pst_found_weight;

/* name: without its suffix, such as "model.layers.0.self_attn.q_proj"; suffix: ".weight". The matrix gives `outputs` numbers
 * for `inputs`; transposed: it is stored with a row per input. */
int pst_weights_find(const pst_transformer *transformer, const pst_store *store, const char *name, const char *suffix,
                     uint64_t outputs, uint64_t inputs, bool transposed, pst_found_weight *out, pst_error *err);
/* A vector of `count` numbers, always plain. name: whole. */
int pst_weights_find_vector(const pst_store *store, const char *name, uint64_t count, const pst_tensor **out,
                            pst_error *err);

#endif
