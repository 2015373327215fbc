/* SPDX-License-Identifier: Apache-2.0 */
/*
 * BLOOM (arXiv 2211.05100): no positions but ALiBi, a norm on the embedding, queries, keys and values as one product, head
 * by head.
 */
#include "base/error.h"
#include "nn/family.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static const pst_nn_op front_ops[] = {
    {PST_NN_LAYER_NORM, PST_NN_X, PST_NN_X, "word_embeddings_layernorm", PST_NN_ALWAYS, PST_NN_ALWAYS, false},
};
static const pst_nn_recipe front = {"embedding norm", front_ops, COUNT(front_ops), PST_NN_ALWAYS, false};

/* Where the residual is the normed x, the norm is made in place. */
static const pst_nn_op attention_ops[] = {
    {PST_NN_LAYER_NORM, PST_NN_X, PST_NN_H, "input_layernorm", PST_NN_IF_RESIDUAL_PLAIN, PST_NN_ALWAYS, false},
    {PST_NN_LAYER_NORM, PST_NN_X, PST_NN_X, "input_layernorm", PST_NN_IF_RESIDUAL_NORMED, PST_NN_ALWAYS, false},
    {PST_NN_COPY, PST_NN_X, PST_NN_H, NULL, PST_NN_IF_RESIDUAL_NORMED, PST_NN_NEVER, false},
    {PST_NN_MATMUL, PST_NN_H, PST_NN_QKV, "self_attention.query_key_value", PST_NN_ALWAYS, PST_NN_ALWAYS, false},
    {PST_NN_SPLIT_QKV, PST_NN_QKV, PST_NN_Q, NULL, PST_NN_ALWAYS, PST_NN_NEVER, false},
    {PST_NN_ATTENTION, PST_NN_Q, PST_NN_A, NULL, PST_NN_ALWAYS, PST_NN_NEVER, false},
    {PST_NN_MATMUL, PST_NN_A, PST_NN_X, "self_attention.dense", PST_NN_ALWAYS, PST_NN_ALWAYS, true},
};

static const pst_nn_op mlp_ops[] = {
    {PST_NN_LAYER_NORM, PST_NN_X, PST_NN_H, "post_attention_layernorm", PST_NN_IF_RESIDUAL_PLAIN, PST_NN_ALWAYS, false},
    {PST_NN_LAYER_NORM, PST_NN_X, PST_NN_X, "post_attention_layernorm", PST_NN_IF_RESIDUAL_NORMED, PST_NN_ALWAYS,
     false},
    {PST_NN_COPY, PST_NN_X, PST_NN_H, NULL, PST_NN_IF_RESIDUAL_NORMED, PST_NN_NEVER, false},
    {PST_NN_MATMUL, PST_NN_H, PST_NN_G, "mlp.dense_h_to_4h", PST_NN_ALWAYS, PST_NN_ALWAYS, false},
    {PST_NN_ACTIVATE, PST_NN_G, PST_NN_M, NULL, PST_NN_ALWAYS, PST_NN_NEVER, false},
    {PST_NN_MATMUL, PST_NN_M, PST_NN_X, "mlp.dense_4h_to_h", PST_NN_ALWAYS, PST_NN_ALWAYS, true},
};

static const pst_nn_recipe layer[] = {
    {"attention", attention_ops, COUNT(attention_ops), PST_NN_ALWAYS, false},
    {"mlp", mlp_ops, COUNT(mlp_ops), PST_NN_ALWAYS, false},
};

/* The spellings that the published folders have, the first that is there. */
static const char *spelling(const pst_config_reader *in, const char *first, const char *second)
{
    const json_t *value = json_object_get(in->root, first);
    return value != NULL && !json_is_null(value) ? first : second;
}

static int read_all(const pst_config_reader *in, pst_transformer *t)
{
    PST_TRY(pst_config_u32(in, "vocab_size", 0, 1, PST_MAX_DIMENSION, &t->vocab));
    PST_TRY(pst_config_u32(in, spelling(in, "n_embed", "hidden_size"), 0, 1, PST_MAX_DIMENSION / 4, &t->hidden));
    PST_TRY(pst_config_u32(in, spelling(in, "num_hidden_layers", "n_layer"), 0, 1, PST_MAX_LAYERS, &t->layers));
    PST_TRY(pst_config_u32(in, spelling(in, "num_attention_heads", "n_head"), 0, 1, PST_MAX_HEADS, &t->heads));
    /* ALiBi has no longest position; this is what the model was trained with. */
    PST_TRY(pst_config_u32(in, "seq_length", 2048, 1, UINT32_MAX / 2, &t->context));
    t->intermediate = 4 * t->hidden;
    t->alibi = true;
    t->qkv_order = PST_QKV_PER_HEAD;
    t->activation = PST_ACT_GELU_TANH;
    PST_TRY(pst_config_even_heads(in, t));
    PST_TRY(pst_config_eps(in, "layer_norm_epsilon", 1e-5, t));
    PST_TRY(pst_json_bool(in->root, "apply_residual_connection_post_layernorm", false, &t->residual_normed, in->path,
                          in->err));
    return pst_config_tied(in, true, t);
}

const pst_family pst_family_bloom = {.name = "bloom",
                                     .read_all = read_all,
                                     .prefixes = pst_prefixes_transformer,
                                     .embedding = "word_embeddings",
                                     .layers = "h",
                                     .front = &front,
                                     .layer = layer,
                                     .layer_stages = COUNT(layer),
                                     .head = &pst_recipe_layer_norm_head};
