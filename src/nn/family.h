/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Model families as tables. A family is names, defaults for its configuration and recipes for its stages; a recipe is a
 * list of operators with the buffers that they read and write and the names of their tensors. A new family that is made
 * of known operators is a new file in families/ and nothing else.
 */
#ifndef PST_NN_FAMILY_H
#define PST_NN_FAMILY_H

#include "base/json.h"
#include "nn/config.h"

/* The activations of one pass, a row per token. The names of widths are those of pst_transformer. */
typedef enum pst_nn_buffer {
    PST_NN_X, /* residual stream: hidden, f32 */
    PST_NN_E, /* embedding before it is projected to the width of x: embedding_dim, f32 (families with a projection) */
    PST_NN_H, /* normed input of a product: hidden, compute type */
    PST_NN_Q, /* heads * head_dim, f32 */
    PST_NN_K, /* kv_heads * head_dim, f32 */
    PST_NN_V, /* the same */
    PST_NN_QKV, /* all three as one product gives them: (heads + 2 kv_heads) * head_dim, f32 */
    PST_NN_A,   /* attention's result: heads * head_dim (latent attention: heads * value_dim), compute type */
    PST_NN_CQ,  /* latent attention: compressed query: q_lora_rank, f32 */
    PST_NN_CQN, /* that, normed: compute type */
    PST_NN_CKV, /* latent attention: compressed key and value, then the shared rotary key: kv_lora_rank + rope_dim, f32 */
    PST_NN_G,   /* gate: intermediate, f32 */
    PST_NN_U,   /* up: intermediate, f32 */
    PST_NN_M,   /* activation(gate) * up: intermediate, compute type */
    PST_NN_SG,     /* shared experts' gate: shared_intermediate, f32 */
    PST_NN_SU,     /* and up */
    PST_NN_SM,     /* and product: compute type */
    PST_NN_R,      /* router's logits: experts, f32 */
    PST_NN_EH,     /* rows of h that an expert computes: hidden, compute type */
    PST_NN_EG,     /* the expert's gate: expert_intermediate, f32 */
    PST_NN_EU,     /* and up */
    PST_NN_EM,     /* and product: compute type */
    PST_NN_EY,     /* and result: hidden, f32 */
    PST_NN_S,      /* the rows of x whose logits are wanted: hidden, f32 */
    PST_NN_T,      /* those, normed: hidden, compute type */
    PST_NN_P,      /* those, projected back: embedding_dim, f32 (families with a projection) */
    PST_NN_LOGITS, /* vocab, f32 */
    PST_NN_BUFFERS
} pst_nn_buffer;

typedef enum pst_nn_kind {
    PST_NN_NORM,        /* out = rms_norm(in) * weight */
    PST_NN_HEAD_NORM,   /* in place, each head on its own */
    PST_NN_LAYER_NORM,  /* out = layer_norm(in) * weight + bias */
    PST_NN_MATMUL,      /* out = in * weight^T + bias, or added to out */
    PST_NN_SPLIT_QKV,   /* QKV to Q, K and V, by the transformer's qkv_order */
    PST_NN_ROPE,        /* in place */
    PST_NN_ATTENTION,   /* stores K and V, then attends: Q to A */
    PST_NN_LATENT_KEEP, /* takes a copy of the weight, which LATENT_ATTENTION multiplies with */
    PST_NN_LATENT_NORM, /* rms_norm with latent attention's own epsilon; of CKV the first kv_lora_rank elements, in place */
    PST_NN_LATENT_ATTENTION, /* rotates, stores and attends in the latent space: Q, CKV to A */
    PST_NN_ACTIVATE,         /* out = activation(in) */
    PST_NN_COPY,             /* out = in, in out's type */
    PST_NN_GATED,            /* out = activation(in) * the buffer after it */
    PST_NN_ROUTE,            /* chooses every row's experts by R and the weight's correction, if there is one */
    PST_NN_EXPERT_TAKE,      /* H's rows of the expert under way to EH */
    PST_NN_EXPERT_ADD,       /* EY's rows, times their routing weights, added to X */
    PST_NN_SELECT            /* copies the rows whose logits are wanted from X to S */
} pst_nn_kind;

/* When a recipe, an operator, or its bias, is there. */
typedef enum pst_nn_when {
    PST_NN_NEVER,
    PST_NN_ALWAYS,
    PST_NN_IF_QKV_BIAS,
    PST_NN_IF_O_BIAS,
    PST_NN_IF_MLP_BIAS,
    PST_NN_IF_QK_NORM,
    PST_NN_IF_DENSE,          /* this layer's MLP is not made of experts */
    PST_NN_IF_SPARSE,         /* it is */
    PST_NN_IF_SHARED_EXPERTS, /* sparse, and some experts serve every row */
    PST_NN_IF_CORRECTED,      /* the router has a correction */
    PST_NN_IF_NOT_CORRECTED,
    PST_NN_IF_Q_LORA,    /* latent attention compresses the query */
    PST_NN_IF_Q_PLAIN,   /* latent attention, and it does not */
    PST_NN_IF_PROJECTED, /* the embedding is of another width than x */
    PST_NN_IF_NOT_PROJECTED,
    PST_NN_IF_NORM_FIRST, /* norms stand before attention and MLP */
    PST_NN_IF_NORM_LAST,  /* norms stand after they were added */
    PST_NN_IF_FINAL_NORM,
    PST_NN_IF_NO_FINAL_NORM,
    PST_NN_IF_RESIDUAL_PLAIN,
    PST_NN_IF_RESIDUAL_NORMED
} pst_nn_when;

typedef struct pst_nn_op {
    pst_nn_kind kind;
    pst_nn_buffer in, out;
    const char *weight; /* tensor name without the prefix and ".weight"; a "%u" is the expert's number; NULL: none */
    pst_nn_when when, bias;
    bool accumulate;
    bool transposed;    /* the matrix is stored with a row per input */
    const char *suffix; /* of the weight's name; NULL: ".weight" */
} pst_nn_op;

typedef struct pst_nn_recipe {
    const char *name; /* of the stage: "attention" */
    const pst_nn_op *ops;
    uint32_t op_count;
    pst_nn_when when; /* the stage is there; 0 (PST_NN_NEVER) never makes sense, so families say ALWAYS */
    bool per_expert;  /* the operators are repeated for each expert, which is a unit of the stage */
} pst_nn_recipe;

typedef enum pst_bias_rule {
    PST_BIAS_NONE,
    PST_BIAS_QKV,
    PST_BIAS_CONFIG /* attention_bias: q, k, v and o */
} pst_bias_rule;
typedef enum pst_window_rule {
    PST_WINDOW_NONE,
    PST_WINDOW_ALL,      /* sliding_window, every layer */
    PST_WINDOW_SWITCHED, /* the same if use_sliding_window */
    PST_WINDOW_LAYERS    /* if use_sliding_window: the layers that layer_types or max_window_layers name */
} pst_window_rule;

/* What a family's own reader of config.json is given. */
typedef struct pst_config_reader {
    const json_t *root;
    const char *path;
    pst_error *err;
} pst_config_reader;

struct pst_family {
    const char *name; /* model_type in config.json */
    /* Reads what is this family's own after the common keys were read; NULL: nothing. */
    int (*read)(const pst_config_reader *in, pst_transformer *out);
    /* Reads everything instead of the common keys, for families whose keys have names of their own; NULL: common. */
    int (*read_all)(const pst_config_reader *in, pst_transformer *out);
    pst_bias_rule bias;
    bool mlp_bias; /* mlp_bias in config.json counts */
    bool qk_norm;
    bool latent; /* latent attention: the ranks and the dimensions of heads' parts are read, head_dim is not */
    pst_window_rule window;
    /* What transformers assumes where config.json is silent; 0: derived from the other numbers. */
    uint32_t default_kv_heads, default_head_dim, default_context, default_window;
    double default_rope_theta; /* 0: 10000 */

    /* Names. `prefixes`: what may stand before them, the usual one first (""; folders saved from the bare decoder);
     * the first whose embedding is there is taken. NULL-terminated. */
    const char *const *prefixes;
    const char *embedding, *positions; /* positions: NULL: no learned ones */
    const char *layers;                /* "layers": its tensors are PREFIX layers.N.NAME */

    const pst_nn_recipe *front; /* between the embedding and the first layer; NULL: nothing */
    const pst_nn_recipe *layer; /* stages of one layer, in order */
    uint32_t layer_stages;
    const pst_nn_recipe *head;
};

const pst_family *pst_family_find(const char *name); /* NULL: unknown */
/* "llama, mistral, qwen2, qwen3" for messages. Static storage. */
const char *pst_family_names(void);

/* The families, each defined in its file of families/. */
extern const pst_family pst_family_llama, pst_family_mistral, pst_family_qwen2, pst_family_qwen3;
extern const pst_family pst_family_opt, pst_family_bloom, pst_family_gpt2;
extern const pst_family pst_family_mixtral, pst_family_qwen3_moe, pst_family_deepseek_v2, pst_family_deepseek_v3;
/* Recipes that several of them share. */
extern const pst_nn_recipe pst_recipe_rms_head;
/* The same with a layer norm, "ln_f". */
extern const pst_nn_recipe pst_recipe_layer_norm_head;
#define PST_RMS_ATTENTION_OPS 10
extern const pst_nn_op pst_ops_rms_attention[PST_RMS_ATTENTION_OPS];
#define PST_RMS_MLP_OPS 5
extern const pst_nn_op pst_ops_rms_mlp[PST_RMS_MLP_OPS];
/* Norm, router "mlp.gate", its choice, shared experts; and one expert, "mlp.experts.N". */
#define PST_GATE_ROUTER_OPS 8
extern const pst_nn_op pst_ops_gate_router[PST_GATE_ROUTER_OPS];
#define PST_GATED_EXPERTS_OPS 6
extern const pst_nn_op pst_ops_gated_experts[PST_GATED_EXPERTS_OPS];
/* One expert: out += weight * down(act(gate(h)) * up(h)) for the rows that chose it. */
#define PST_EXPERT_OPS(gate, up, down)                                                                                 \
    {PST_NN_EXPERT_TAKE, PST_NN_H, PST_NN_EH, NULL, PST_NN_ALWAYS, PST_NN_NEVER, false},                               \
        {PST_NN_MATMUL, PST_NN_EH, PST_NN_EG, gate, PST_NN_ALWAYS, PST_NN_NEVER, false},                               \
        {PST_NN_MATMUL, PST_NN_EH, PST_NN_EU, up, PST_NN_ALWAYS, PST_NN_NEVER, false},                                 \
        {PST_NN_GATED, PST_NN_EG, PST_NN_EM, NULL, PST_NN_ALWAYS, PST_NN_NEVER, false},                                \
        {PST_NN_MATMUL, PST_NN_EM, PST_NN_EY, down, PST_NN_ALWAYS, PST_NN_NEVER, false},                               \
    {                                                                                                                  \
        PST_NN_EXPERT_ADD, PST_NN_EY, PST_NN_X, NULL, PST_NN_ALWAYS, PST_NN_NEVER, false                               \
    }

extern const char *const pst_prefixes_model[];       /* "model.", "" */
extern const char *const pst_prefixes_transformer[]; /* "transformer.", "" */
/* The names and the head of Llama and all that follow it, around an array of a layer's recipes. */
#define PST_LLAMA_FRAME(recipes)                                                                                       \
    .prefixes = pst_prefixes_model, .embedding = "embed_tokens", .layers = "layers", .layer = recipes,                 \
    .layer_stages = sizeof(recipes) / sizeof((recipes)[0]), .head = &pst_recipe_rms_head

/* A whole number in [min, max] into *out; `fallback` of 0 makes the key required. */
int pst_config_u32(const pst_config_reader *in, const char *key, uint64_t fallback, uint64_t min, uint64_t max,
                   uint32_t *out);
/* The activation that `key` names, "silu" when it is absent and `fallback` is NULL. */
int pst_config_activation(const pst_config_reader *in, const char *key, const char *fallback, pst_activation *out);

/* The numbers of experts (under the first of `keys` that is there; NULL-terminated) and of those that a token chooses, with
 * these defaults (0: required); routing by the best of all; memory for `sparse`, all false. */
int pst_config_experts(const pst_config_reader *in, const char *const *keys, uint64_t experts, uint64_t per_token,
                       pst_transformer *t);
/* Whether the routing's groups, which are set, can be. */
int pst_config_groups(const pst_config_reader *in, pst_transformer *t);
/* Heads that share out->hidden evenly, each with a key and value of its own: sets kv_heads and head_dim. */
int pst_config_even_heads(const pst_config_reader *in, pst_transformer *out);
int pst_config_eps(const pst_config_reader *in, const char *key, double fallback, pst_transformer *out);
/* tie_word_embeddings; `fallback` where config.json is silent. */
int pst_config_tied(const pst_config_reader *in, bool fallback, pst_transformer *out);
/* The rotary parameters of heads of which head_dim elements may be rotated, into out->rope; after out->context, which
 * "dynamic" scaling extends. */
int pst_config_rope(const pst_config_reader *in, uint32_t head_dim, pst_transformer *out);

/* Bounds that no published model comes near; they keep every product of two of them inside 64 bits. */
enum {
    PST_MAX_DIMENSION = 1 << 24,
    PST_MAX_LAYERS = 1 << 14,
    PST_MAX_HEADS = 1 << 14,
    PST_MAX_HEAD_DIM = 1 << 12,
    PST_MAX_EXPERTS = 1 << 14
};

#endif
