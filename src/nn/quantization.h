/* SPDX-License-Identifier: Apache-2.0 */
/*
 * quantization_config of config.json: which format a checkpoint's quantized matrices have. Which of its matrices are
 * quantized is told by the tensors themselves, so that lists of modules that stayed plain need not be read.
 */
#ifndef PST_NN_QUANTIZATION_H
#define PST_NN_QUANTIZATION_H

#include "nn/family.h"

enum {
    PST_QUANTIZED_VERSION = 1,     /* of what `convert` writes: "quant_method": "penstock" */
    PST_QUANTIZED_MAX_GROUP = 4096 /* elements that share a scale, as `convert` writes them */
};

/* Fills out->quantized and out->quantized_digits; they stay as they are where config.json speaks of no quantization. What is
 * well-formed but not supported is refused by name. */
int pst_quantization_read(const pst_config_reader *in, pst_transformer *out);

#endif
