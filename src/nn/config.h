/* SPDX-License-Identifier: Apache-2.0 */
/*
 * config.json and generation_config.json of a Hugging Face folder, checked and put into one description of a transformer.
 * Numbers are bounded here, so that nothing below needs to fear them.
 */
#ifndef PST_NN_CONFIG_H
#define PST_NN_CONFIG_H

#include <stdbool.h>

#include "device/device.h"
#include "penstock/types.h"

typedef struct pst_family pst_family;

typedef enum pst_rope_type { PST_ROPE_DEFAULT, PST_ROPE_LINEAR, PST_ROPE_LLAMA3 } pst_rope_type;

typedef struct pst_rope {
    pst_rope_type type;
    double theta, factor, low_freq_factor, high_freq_factor;
    double original_context;
} pst_rope;

typedef struct pst_transformer {
    const pst_family *family; /* static */
    uint32_t vocab, hidden, layers, heads, kv_heads, head_dim, intermediate;
    uint32_t context; /* positions it was made for */
    float norm_eps;
    pst_activation activation;
    bool qkv_bias, o_bias, mlp_bias, qk_norm;
    bool tied_head;   /* the head is the embedding */
    bool tied_stated; /* config.json says whether it is */
    pst_rope rope;
    uint32_t window; /* of the layers marked in windowed; 0: none */
    bool *windowed;  /* by layer; heap */

    uint32_t *end_ids; /* heap */
    size_t end_count;
    bool do_sample;
    double temperature, top_p, min_p;
    uint32_t top_k;
} pst_transformer;

/* config: the text of config.json; generation: that of generation_config.json, or NULL. The paths are for messages.
 * The caller destroys *out. */
int pst_transformer_parse(const char *config, size_t config_bytes, const char *config_path, const char *generation,
                          size_t generation_bytes, const char *generation_path, pst_transformer *out, pst_error *err);
void pst_transformer_destroy(pst_transformer *transformer); /* what it holds; a zeroed one is fine */

/* Writes the table that the rope operator takes: for each position below `positions`, head_dim/2 cosines, then head_dim/2
 * sines. Sources: RoFormer (arXiv 2104.09864); linear scaling divides the frequencies; llama3 as published with Llama 3.1
 * (frequencies whose wavelength exceeds the original context are divided, those well below kept, a ramp between). */
void pst_rope_table(const pst_rope *rope, uint32_t head_dim, uint32_t positions, float *table);

#endif
