/* SPDX-License-Identifier: Apache-2.0 */
/* Llama and the families that differ from it in switches: Mistral, Qwen2, Qwen3; and the recipes that others share. */
#include "nn/family.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

const char *const pst_prefixes_model[] = {"model.", "", NULL};

/* x += o(attention(rope(norm(q(h))), rope(norm(k(h))), v(h))), h = norm(x) */
const pst_nn_op pst_ops_rms_attention[PST_RMS_ATTENTION_OPS] = {
    {PST_NN_NORM, PST_NN_X, PST_NN_H, "input_layernorm", PST_NN_ALWAYS, PST_NN_NEVER, false},
    {PST_NN_MATMUL, PST_NN_H, PST_NN_Q, "self_attn.q_proj", PST_NN_ALWAYS, PST_NN_IF_QKV_BIAS, false},
    {PST_NN_MATMUL, PST_NN_H, PST_NN_K, "self_attn.k_proj", PST_NN_ALWAYS, PST_NN_IF_QKV_BIAS, false},
    {PST_NN_MATMUL, PST_NN_H, PST_NN_V, "self_attn.v_proj", PST_NN_ALWAYS, PST_NN_IF_QKV_BIAS, false},
    {PST_NN_HEAD_NORM, PST_NN_Q, PST_NN_Q, "self_attn.q_norm", PST_NN_IF_QK_NORM, PST_NN_NEVER, false},
    {PST_NN_HEAD_NORM, PST_NN_K, PST_NN_K, "self_attn.k_norm", PST_NN_IF_QK_NORM, PST_NN_NEVER, false},
    {PST_NN_ROPE, PST_NN_Q, PST_NN_Q, NULL, PST_NN_ALWAYS, PST_NN_NEVER, false},
    {PST_NN_ROPE, PST_NN_K, PST_NN_K, NULL, PST_NN_ALWAYS, PST_NN_NEVER, false},
    {PST_NN_ATTENTION, PST_NN_Q, PST_NN_A, NULL, PST_NN_ALWAYS, PST_NN_NEVER, false},
    {PST_NN_MATMUL, PST_NN_A, PST_NN_X, "self_attn.o_proj", PST_NN_ALWAYS, PST_NN_IF_O_BIAS, true},
};

/* x += down(act(gate(h)) * up(h)), h = norm(x) */
const pst_nn_op pst_ops_rms_mlp[PST_RMS_MLP_OPS] = {
    {PST_NN_NORM, PST_NN_X, PST_NN_H, "post_attention_layernorm", PST_NN_ALWAYS, PST_NN_NEVER, false},
    {PST_NN_MATMUL, PST_NN_H, PST_NN_G, "mlp.gate_proj", PST_NN_ALWAYS, PST_NN_IF_MLP_BIAS, false},
    {PST_NN_MATMUL, PST_NN_H, PST_NN_U, "mlp.up_proj", PST_NN_ALWAYS, PST_NN_IF_MLP_BIAS, false},
    {PST_NN_GATED, PST_NN_G, PST_NN_M, NULL, PST_NN_ALWAYS, PST_NN_NEVER, false},
    {PST_NN_MATMUL, PST_NN_M, PST_NN_X, "mlp.down_proj", PST_NN_ALWAYS, PST_NN_IF_MLP_BIAS, true},
};

static const pst_nn_recipe rms_gated_layer[] = {
    {"attention", pst_ops_rms_attention, PST_RMS_ATTENTION_OPS, PST_NN_ALWAYS, false},
    {"mlp", pst_ops_rms_mlp, PST_RMS_MLP_OPS, PST_NN_ALWAYS, false},
};

static const pst_nn_op rms_head_ops[] = {
    {PST_NN_SELECT, PST_NN_X, PST_NN_S, NULL, PST_NN_ALWAYS, PST_NN_NEVER, false},
    {PST_NN_NORM, PST_NN_S, PST_NN_T, "norm", PST_NN_ALWAYS, PST_NN_NEVER, false},
    {PST_NN_MATMUL, PST_NN_T, PST_NN_LOGITS, "lm_head", PST_NN_ALWAYS, PST_NN_NEVER, false},
};
const pst_nn_recipe pst_recipe_rms_head = {"head", rms_head_ops, COUNT(rms_head_ops), PST_NN_ALWAYS, false};

#define RMS_GATED PST_LLAMA_FRAME(rms_gated_layer)

const pst_family pst_family_llama = {
    .name = "llama", .bias = PST_BIAS_CONFIG, .mlp_bias = true, .default_context = 2048, RMS_GATED};
const pst_family pst_family_mistral = {.name = "mistral",
                                       .window = PST_WINDOW_ALL,
                                       .default_kv_heads = 8,
                                       .default_context = 131072,
                                       .default_window = 4096,
                                       RMS_GATED};
const pst_family pst_family_qwen2 = {.name = "qwen2",
                                     .bias = PST_BIAS_QKV,
                                     .window = PST_WINDOW_LAYERS,
                                     .default_kv_heads = 32,
                                     .default_context = 32768,
                                     .default_window = 4096,
                                     RMS_GATED};
const pst_family pst_family_qwen3 = {.name = "qwen3",
                                     .bias = PST_BIAS_CONFIG,
                                     .qk_norm = true,
                                     .window = PST_WINDOW_LAYERS,
                                     .default_kv_heads = 32,
                                     .default_head_dim = 128,
                                     .default_context = 32768,
                                     .default_window = 4096,
                                     RMS_GATED};
