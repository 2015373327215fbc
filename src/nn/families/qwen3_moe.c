/* SPDX-License-Identifier: Apache-2.0 */
/* Qwen3 with experts (arXiv 2505.09388): Qwen3's attention; layers with experts and layers with an MLP. */
#include "base/error.h"
#include "nn/family.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

const pst_nn_op pst_ops_gate_router[PST_GATE_ROUTER_OPS] = {
    {PST_NN_NORM, PST_NN_X, PST_NN_H, "post_attention_layernorm", PST_NN_ALWAYS, PST_NN_NEVER, false},
    {PST_NN_MATMUL, PST_NN_H, PST_NN_R, "mlp.gate", PST_NN_ALWAYS, PST_NN_NEVER, false},
    {PST_NN_ROUTE, PST_NN_R, PST_NN_R, NULL, PST_NN_IF_NOT_CORRECTED, PST_NN_NEVER, false},
    {PST_NN_ROUTE, PST_NN_R, PST_NN_R, "mlp.gate.e_score_correction_bias", PST_NN_IF_CORRECTED, PST_NN_NEVER, false,
     .suffix = ""},
    {PST_NN_MATMUL, PST_NN_H, PST_NN_SG, "mlp.shared_experts.gate_proj", PST_NN_IF_SHARED_EXPERTS, PST_NN_NEVER, false},
    {PST_NN_MATMUL, PST_NN_H, PST_NN_SU, "mlp.shared_experts.up_proj", PST_NN_IF_SHARED_EXPERTS, PST_NN_NEVER, false},
    {PST_NN_GATED, PST_NN_SG, PST_NN_SM, NULL, PST_NN_IF_SHARED_EXPERTS, PST_NN_NEVER, false},
    {PST_NN_MATMUL, PST_NN_SM, PST_NN_X, "mlp.shared_experts.down_proj", PST_NN_IF_SHARED_EXPERTS, PST_NN_NEVER, true},
};

const pst_nn_op pst_ops_gated_experts[PST_GATED_EXPERTS_OPS] = {
    PST_EXPERT_OPS("mlp.experts.%u.gate_proj", "mlp.experts.%u.up_proj", "mlp.experts.%u.down_proj"),
};

static const pst_nn_recipe layer[] = {
    {"attention", pst_ops_rms_attention, PST_RMS_ATTENTION_OPS, PST_NN_ALWAYS, false},
    {"mlp", pst_ops_rms_mlp, PST_RMS_MLP_OPS, PST_NN_IF_DENSE, false},
    {"router", pst_ops_gate_router, PST_GATE_ROUTER_OPS, PST_NN_IF_SPARSE, false},
    {"experts", pst_ops_gated_experts, PST_GATED_EXPERTS_OPS, PST_NN_IF_SPARSE, true},
};

/* Layers have experts from the step-th on, every step-th, unless they are listed as plain ones. */
static int read_sparse(const pst_config_reader *in, pst_transformer *t)
{
    uint32_t step;
    json_t *plain = NULL;
    PST_TRY(pst_config_u32(in, "decoder_sparse_step", 1, 1, UINT32_MAX, &step));
    PST_TRY(pst_json_array(in->root, "mlp_only_layers", false, &plain, in->path, in->err));
    for (uint32_t i = 0; i < t->layers; i++)
        t->sparse[i] = (i + 1) % step == 0;
    for (size_t i = 0; i < json_array_size(plain); i++) {
        const json_t *number = json_array_get(plain, i);
        if (!json_is_integer(number))
            return pst_fail(in->err, PST_E_FORMAT, in->path, "\"mlp_only_layers\" is not a list of layers");
        json_int_t index = json_integer_value(number);
        if (index >= 0 && index < t->layers)
            t->sparse[index] = false;
    }
    return 0;
}

static int read(const pst_config_reader *in, pst_transformer *t)
{
    static const char *const counts[] = {"num_experts", "num_local_experts", NULL};
    PST_TRY(pst_config_experts(in, counts, 128, 8, t));
    PST_TRY(pst_config_u32(in, "moe_intermediate_size", 768, 1, PST_MAX_DIMENSION, &t->expert_intermediate));
    PST_TRY(pst_json_bool(in->root, "norm_topk_prob", false, &t->routing.normalize, in->path, in->err));
    return read_sparse(in, t);
}

const pst_family pst_family_qwen3_moe = {.name = "qwen3_moe",
                                         .read = read,
                                         .bias = PST_BIAS_CONFIG,
                                         .qk_norm = true,
                                         .window = PST_WINDOW_SWITCHED,
                                         .default_kv_heads = 4,
                                         .default_context = 32768,
                                         .default_window = 4096,
                                         PST_LLAMA_FRAME(layer)};
