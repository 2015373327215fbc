/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Model families as tables. A family is defaults for its configuration and recipes for its stages; a recipe is a list of
 * operators with the buffers that they read and write and the names of their tensors. A new family that is made of known
 * operators is a new row here and nothing else.
 */
#ifndef PST_NN_FAMILY_H
#define PST_NN_FAMILY_H

#include "nn/config.h"

/* The activations of one pass, a row per token. */
typedef enum pst_nn_buffer {
    PST_NN_X,      /* residual stream: hidden, f32 */
    PST_NN_H,      /* normed input of a product: hidden, compute type */
    PST_NN_Q,      /* heads * head_dim, f32 */
    PST_NN_K,      /* kv_heads * head_dim, f32 */
    PST_NN_V,      /* the same */
    PST_NN_A,      /* attention's result: heads * head_dim, compute type */
    PST_NN_G,      /* gate: intermediate, f32 */
    PST_NN_U,      /* up: intermediate, f32 */
    PST_NN_M,      /* activation(gate) * up: intermediate, compute type */
    PST_NN_S,      /* the rows of x whose logits are wanted: hidden, f32 */
    PST_NN_T,      /* those, normed: hidden, compute type */
    PST_NN_LOGITS, /* vocab, f32 */
    PST_NN_BUFFERS
} pst_nn_buffer;

typedef enum pst_nn_kind {
    PST_NN_NORM,      /* out = rms_norm(in) * weight */
    PST_NN_HEAD_NORM, /* in place, each head on its own */
    PST_NN_MATMUL,    /* out = in * weight^T + bias, or added to out */
    PST_NN_ROPE,      /* in place */
    PST_NN_STORE_KV,
    PST_NN_ATTENTION,
    PST_NN_GATED,
    PST_NN_SELECT /* copies the rows whose logits are wanted from X to S */
} pst_nn_kind;

/* When an operator, or its bias, is there. */
typedef enum pst_nn_when {
    PST_NN_NEVER,
    PST_NN_ALWAYS,
    PST_NN_IF_QKV_BIAS,
    PST_NN_IF_O_BIAS,
    PST_NN_IF_MLP_BIAS,
    PST_NN_IF_QK_NORM
} pst_nn_when;

typedef struct pst_nn_op {
    pst_nn_kind kind;
    pst_nn_buffer in, out;
    const char *weight; /* tensor name without the prefix and ".weight"; NULL: none */
    pst_nn_when when, bias;
    bool accumulate;
} pst_nn_op;

typedef struct pst_nn_recipe {
    const char *name; /* of the stage: "attention" */
    const pst_nn_op *ops;
    uint32_t op_count;
} pst_nn_recipe;

typedef enum pst_bias_rule {
    PST_BIAS_NONE,
    PST_BIAS_QKV,
    PST_BIAS_CONFIG /* attention_bias: q, k, v and o */
} pst_bias_rule;
typedef enum pst_window_rule {
    PST_WINDOW_NONE,
    PST_WINDOW_ALL,   /* sliding_window, every layer */
    PST_WINDOW_LAYERS /* if use_sliding_window: the layers that layer_types or max_window_layers name */
} pst_window_rule;

struct pst_family {
    const char *name; /* model_type in config.json */
    pst_bias_rule bias;
    bool mlp_bias; /* mlp_bias in config.json counts */
    bool qk_norm;
    pst_window_rule window;
    /* What transformers assumes where config.json is silent; 0: derived from the other numbers. */
    uint32_t default_kv_heads, default_head_dim, default_context, default_window;
    const pst_nn_recipe *layer; /* stages of one layer, in order */
    uint32_t layer_stages;
    const pst_nn_recipe *head;
};

const pst_family *pst_family_find(const char *name); /* NULL: unknown */
/* "llama, mistral, qwen2, qwen3" for messages. Static storage. */
const char *pst_family_names(void);

#endif
