/* SPDX-License-Identifier: Apache-2.0 */
/*
 * OPT (arXiv 2205.01068): learned positions, layer norms with bias, a plain MLP. The 350M model has its norms after
 * attention and MLP, none at the end, and an embedding narrower than its layers, with a projection on either side. Galactica's
 * (arXiv 2211.09085) are of the same shape, the large ones without biases and with norms that only normalize.
 */
#include "base/error.h"
#include "nn/family.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static const char *const prefixes[] = {"model.decoder.", "decoder.", "", NULL};

/* x holds the positions; the embedding is added to them. */
static const pst_nn_op front_ops[] = {
    {PST_NN_MATMUL, PST_NN_E, PST_NN_X, "project_in", PST_NN_ALWAYS, PST_NN_NEVER, true},
};
static const pst_nn_recipe front = {"projection", front_ops, COUNT(front_ops), PST_NN_IF_PROJECTED, false};

static const pst_nn_op attention_ops[] = {
    {PST_NN_LAYER_NORM, PST_NN_X, PST_NN_H, "self_attn_layer_norm", PST_NN_IF_NORM_FIRST, PST_NN_ALWAYS, false},
    {PST_NN_COPY, PST_NN_X, PST_NN_H, NULL, PST_NN_IF_NORM_LAST, PST_NN_NEVER, false},
    {PST_NN_MATMUL, PST_NN_H, PST_NN_Q, "self_attn.q_proj", PST_NN_ALWAYS, PST_NN_IF_QKV_BIAS, false},
    {PST_NN_MATMUL, PST_NN_H, PST_NN_K, "self_attn.k_proj", PST_NN_ALWAYS, PST_NN_IF_QKV_BIAS, false},
    {PST_NN_MATMUL, PST_NN_H, PST_NN_V, "self_attn.v_proj", PST_NN_ALWAYS, PST_NN_IF_QKV_BIAS, false},
    {PST_NN_ATTENTION, PST_NN_Q, PST_NN_A, NULL, PST_NN_ALWAYS, PST_NN_NEVER, false},
    {PST_NN_MATMUL, PST_NN_A, PST_NN_X, "self_attn.out_proj", PST_NN_ALWAYS, PST_NN_IF_O_BIAS, true},
    {PST_NN_LAYER_NORM, PST_NN_X, PST_NN_X, "self_attn_layer_norm", PST_NN_IF_NORM_LAST, PST_NN_ALWAYS, false},
};

static const pst_nn_op mlp_ops[] = {
    {PST_NN_LAYER_NORM, PST_NN_X, PST_NN_H, "final_layer_norm", PST_NN_IF_NORM_FIRST, PST_NN_ALWAYS, false},
    {PST_NN_COPY, PST_NN_X, PST_NN_H, NULL, PST_NN_IF_NORM_LAST, PST_NN_NEVER, false},
    {PST_NN_MATMUL, PST_NN_H, PST_NN_G, "fc1", PST_NN_ALWAYS, PST_NN_IF_MLP_BIAS, false},
    {PST_NN_ACTIVATE, PST_NN_G, PST_NN_M, NULL, PST_NN_ALWAYS, PST_NN_NEVER, false},
    {PST_NN_MATMUL, PST_NN_M, PST_NN_X, "fc2", PST_NN_ALWAYS, PST_NN_IF_MLP_BIAS, true},
    {PST_NN_LAYER_NORM, PST_NN_X, PST_NN_X, "final_layer_norm", PST_NN_IF_NORM_LAST, PST_NN_ALWAYS, false},
};

static const pst_nn_recipe layer[] = {
    {"attention", attention_ops, COUNT(attention_ops), PST_NN_ALWAYS, false},
    {"mlp", mlp_ops, COUNT(mlp_ops), PST_NN_ALWAYS, false},
};

static const pst_nn_op head_ops[] = {
    {PST_NN_SELECT, PST_NN_X, PST_NN_S, NULL, PST_NN_ALWAYS, PST_NN_NEVER, false},
    {PST_NN_LAYER_NORM, PST_NN_S, PST_NN_T, "final_layer_norm", PST_NN_IF_FINAL_NORM, PST_NN_ALWAYS, false},
    {PST_NN_COPY, PST_NN_S, PST_NN_T, NULL, PST_NN_IF_NO_FINAL_NORM, PST_NN_NEVER, false},
    {PST_NN_MATMUL, PST_NN_T, PST_NN_P, "project_out", PST_NN_IF_PROJECTED, PST_NN_NEVER, false},
    {PST_NN_MATMUL, PST_NN_P, PST_NN_LOGITS, "lm_head", PST_NN_IF_PROJECTED, PST_NN_NEVER, false},
    {PST_NN_MATMUL, PST_NN_T, PST_NN_LOGITS, "lm_head", PST_NN_IF_NOT_PROJECTED, PST_NN_NEVER, false},
};
static const pst_nn_recipe head = {"head", head_ops, COUNT(head_ops), PST_NN_ALWAYS, false};

static int read_shape(const pst_config_reader *in, pst_transformer *t)
{
    PST_TRY(pst_config_u32(in, "vocab_size", 0, 1, PST_MAX_DIMENSION, &t->vocab));
    PST_TRY(pst_config_u32(in, "hidden_size", 0, 1, PST_MAX_DIMENSION, &t->hidden));
    PST_TRY(pst_config_u32(in, "ffn_dim", 0, 1, PST_MAX_DIMENSION, &t->intermediate));
    PST_TRY(pst_config_u32(in, "num_hidden_layers", 0, 1, PST_MAX_LAYERS, &t->layers));
    PST_TRY(pst_config_u32(in, "num_attention_heads", 0, 1, PST_MAX_HEADS, &t->heads));
    PST_TRY(pst_config_u32(in, "max_position_embeddings", 2048, 1, PST_MAX_DIMENSION, &t->context));
    PST_TRY(pst_config_u32(in, "word_embed_proj_dim", t->hidden, 1, PST_MAX_DIMENSION, &t->embedding_dim));
    t->position_offset = 2; /* rows of tokens that pad, as the positions were learned */
    return pst_config_even_heads(in, t);
}

static int read_all(const pst_config_reader *in, pst_transformer *t)
{
    PST_TRY(read_shape(in, t));
    PST_TRY(pst_config_activation(in, "activation_function", "relu", &t->activation));
    bool norm_first = true, bias = true, affine = true;
    PST_TRY(pst_json_bool(in->root, "do_layer_norm_before", false, &norm_first, in->path, in->err));
    PST_TRY(pst_json_bool(in->root, "_remove_final_layer_norm", false, &t->no_final_norm, in->path, in->err));
    PST_TRY(pst_json_bool(in->root, "enable_bias", false, &bias, in->path, in->err));
    PST_TRY(pst_json_bool(in->root, "layer_norm_elementwise_affine", false, &affine, in->path, in->err));
    t->norms_bare = !affine;
    t->norm_last = !norm_first;
    t->no_final_norm = t->no_final_norm || t->norm_last;
    t->qkv_bias = t->o_bias = t->mlp_bias = bias;
    t->norm_eps = 1e-5f;
    return pst_config_tied(in, true, t);
}

const pst_family pst_family_opt = {.name = "opt",
                                   .read_all = read_all,
                                   .prefixes = prefixes,
                                   .embedding = "embed_tokens",
                                   .positions = "embed_positions",
                                   .layers = "layers",
                                   .front = &front,
                                   .layer = layer,
                                   .layer_stages = COUNT(layer),
                                   .head = &head};
