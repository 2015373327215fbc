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

typedef enum pst_rope_type {
    PST_ROPE_DEFAULT,
    PST_ROPE_LINEAR,
    PST_ROPE_LLAMA3,
    PST_ROPE_YARN,
    PST_ROPE_DYNAMIC,
    PST_ROPE_LONGROPE
} pst_rope_type;

typedef struct pst_rope {
    pst_rope_type type;
    uint32_t rotary; /* elements of a head that are rotated, the first ones; even */
    double theta, factor, low_freq_factor, high_freq_factor;
    double original_context;
    /* yarn */
    double beta_fast, beta_slow;
    double mscale_all_dim;   /* 0: not given */
    double attention_factor; /* cosines and sines are multiplied with it; 1: not at all */
    bool truncate;           /* the ramp's ends are whole pairs */
    bool interleaved;        /* pairs are neighbours (2i, 2i + 1), not halves (i, i + rotary/2) */
    /* longrope: what each pair's frequency is divided by, up to the original context and beyond: rotary/2 each; heap */
    double *short_factors, *long_factors;
} pst_rope;

typedef enum pst_qkv_order {
    PST_QKV_CONCATENATED, /* all of q, all of k, all of v (GPT-2) */
    PST_QKV_PER_HEAD      /* q, k, v of a head, then those of the next (BLOOM) */
} pst_qkv_order;

/* Latent attention (DeepSeek-V2, arXiv 2405.04434): keys and values are products of a short vector that alone is cached. */
typedef struct pst_latent {
    uint32_t q_lora_rank; /* 0: the query is not compressed */
    uint32_t kv_lora_rank;
    uint32_t nope_dim, rope_dim, value_dim; /* per head: of the key without and with rotation, of the value */
} pst_latent;

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

    uint32_t embedding_dim;   /* of the embedding's rows; usually hidden */
    uint32_t position_offset; /* learned positions: position p is row p + offset (OPT: 2) */
    bool alibi;               /* attention's scores fall with the distance, head by head (arXiv 2108.12409) */
    bool norm_last, no_final_norm;
    bool norms_bare;      /* layer norms have neither weight nor bias */
    bool residual_normed; /* what attention and MLP add to is the normed x */
    pst_qkv_order qkv_order;
    float attention_scale; /* 0: 1 / sqrt(head_dim) */
    bool scale_by_layer;   /* it is divided by the layer's number, from 1 */

    uint32_t experts; /* 0: dense everywhere */
    uint32_t experts_per_token, expert_intermediate, shared_intermediate;
    bool *sparse; /* by layer; heap; NULL: none */
    pst_routing routing;
    pst_latent latent; /* kv_lora_rank 0: ordinary attention */

    /* Of the matrices that config.json's quantization_config speaks of; layout PLAIN: it does not. What differs from matrix
     * to matrix is set when one is found: group 0 is all inputs, block_rows 0 is told by the scales' shape. */
    pst_weight_format quantized;
    pst_dtype quantized_digits; /* the type that holds such a matrix's numbers, where its scales do not tell */

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

/* How fast the scores of each head fall with the distance: 2^(-8 i / n) for head i of n from 1, n a power of two; where it is
 * none, the heads beyond the next lower power take every other one of twice as many (arXiv 2108.12409 and its code). */
void pst_alibi_slopes(uint32_t heads, float *slopes);

/* Frequencies of the pairs in a sequence of `length` positions: rotary/2. Sources: RoFormer (arXiv 2104.09864); linear scaling
 * divides them; llama3 as published with Llama 3.1 (frequencies whose wavelength exceeds the original context are divided,
 * those well below kept, a ramp between); YaRN as in arXiv 2309.00071; dynamic raises the base with the length ("NTK-aware");
 * LongRoPE (arXiv 2402.13753) divides each by a number of its own. */
void pst_rope_frequencies(const pst_rope *rope, uint64_t length, float *out);
/* Whether they do depend on the length. Keys of a position then differ between sequences of different lengths. The length that
 * counts for a position is that of the sequence's prompt, or position + 1 if that is more: what transformers computes when it
 * is given the prompt whole and then goes on with a cache. */
bool pst_rope_depends_on_length(const pst_rope *rope);
/* One row of what the rope operator takes: rotary/2 cosines, then rotary/2 sines. */
void pst_rope_row(const pst_rope *rope, const float *frequencies, uint32_t position, float *row);
/* Rows of all positions below `positions`, as of a sequence of that length. `frequencies`: room for rotary/2. */
void pst_rope_table(const pst_rope *rope, uint32_t positions, float *frequencies, float *table);

#endif
