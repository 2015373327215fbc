/* SPDX-License-Identifier: Apache-2.0 */
/* GPT-2: learned positions, queries, keys and values as one product, every matrix stored with a row per input. */
#include "base/error.h"
#include "nn/family.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

const char *const pst_prefixes_transformer[] = {"transformer.", "", NULL};

static const pst_nn_op attention_ops[] = {
    {PST_NN_LAYER_NORM, PST_NN_X, PST_NN_H, "ln_1", PST_NN_ALWAYS, PST_NN_ALWAYS, false},
    {PST_NN_MATMUL, PST_NN_H, PST_NN_QKV, "attn.c_attn", PST_NN_ALWAYS, PST_NN_ALWAYS, false, .transposed = true},
    {PST_NN_SPLIT_QKV, PST_NN_QKV, PST_NN_Q, NULL, PST_NN_ALWAYS, PST_NN_NEVER, false},
    {PST_NN_ATTENTION, PST_NN_Q, PST_NN_A, NULL, PST_NN_ALWAYS, PST_NN_NEVER, false},
    {PST_NN_MATMUL, PST_NN_A, PST_NN_X, "attn.c_proj", PST_NN_ALWAYS, PST_NN_ALWAYS, true, .transposed = true},
};

static const pst_nn_op mlp_ops[] = {
    {PST_NN_LAYER_NORM, PST_NN_X, PST_NN_H, "ln_2", PST_NN_ALWAYS, PST_NN_ALWAYS, false},
    {PST_NN_MATMUL, PST_NN_H, PST_NN_G, "mlp.c_fc", PST_NN_ALWAYS, PST_NN_ALWAYS, false, .transposed = true},
    {PST_NN_ACTIVATE, PST_NN_G, PST_NN_M, NULL, PST_NN_ALWAYS, PST_NN_NEVER, false},
    {PST_NN_MATMUL, PST_NN_M, PST_NN_X, "mlp.c_proj", PST_NN_ALWAYS, PST_NN_ALWAYS, true, .transposed = true},
};

static const pst_nn_recipe layer[] = {
    {"attention", attention_ops, COUNT(attention_ops), PST_NN_ALWAYS, false},
    {"mlp", mlp_ops, COUNT(mlp_ops), PST_NN_ALWAYS, false},
};

static const pst_nn_op head_ops[] = {
    {PST_NN_SELECT, PST_NN_X, PST_NN_S, NULL, PST_NN_ALWAYS, PST_NN_NEVER, false},
    {PST_NN_LAYER_NORM, PST_NN_S, PST_NN_T, "ln_f", PST_NN_ALWAYS, PST_NN_ALWAYS, false},
    {PST_NN_MATMUL, PST_NN_T, PST_NN_LOGITS, "lm_head", PST_NN_ALWAYS, PST_NN_NEVER, false},
};
const pst_nn_recipe pst_recipe_layer_norm_head = {"head", head_ops, COUNT(head_ops), PST_NN_ALWAYS, false};

static int read_all(const pst_config_reader *in, pst_transformer *t)
{
    PST_TRY(pst_config_u32(in, "vocab_size", 0, 1, PST_MAX_DIMENSION, &t->vocab));
    PST_TRY(pst_config_u32(in, "n_embd", 0, 1, PST_MAX_DIMENSION / 4, &t->hidden));
    PST_TRY(pst_config_u32(in, "n_inner", 4ull * t->hidden, 1, PST_MAX_DIMENSION, &t->intermediate));
    PST_TRY(pst_config_u32(in, "n_layer", 0, 1, PST_MAX_LAYERS, &t->layers));
    PST_TRY(pst_config_u32(in, "n_head", 0, 1, PST_MAX_HEADS, &t->heads));
    PST_TRY(pst_config_u32(in, "n_positions", 1024, 1, PST_MAX_DIMENSION, &t->context));
    PST_TRY(pst_config_even_heads(in, t));
    PST_TRY(pst_config_activation(in, "activation_function", "gelu_new", &t->activation));
    PST_TRY(pst_config_eps(in, "layer_norm_epsilon", 1e-5, t));
    bool scale = true, cross = false;
    PST_TRY(pst_json_bool(in->root, "scale_attn_weights", false, &scale, in->path, in->err));
    PST_TRY(pst_json_bool(in->root, "scale_attn_by_inverse_layer_idx", false, &t->scale_by_layer, in->path, in->err));
    PST_TRY(pst_json_bool(in->root, "add_cross_attention", false, &cross, in->path, in->err));
    if (cross)
        return pst_fail(in->err, PST_E_UNSUPPORTED, in->path,
                        "cross attention (\"add_cross_attention\") is not supported");
    t->attention_scale = scale ? 0 : 1;
    return pst_config_tied(in, true, t);
}

const pst_family pst_family_gpt2 = {.name = "gpt2",
                                    .read_all = read_all,
                                    .prefixes = pst_prefixes_transformer,
                                    .embedding = "wte",
                                    .positions = "wpe",
                                    .layers = "h",
                                    .layer = layer,
                                    .layer_stages = COUNT(layer),
                                    .head = &pst_recipe_layer_norm_head};
