/* SPDX-License-Identifier: Apache-2.0 */
/* Mixtral (arXiv 2401.04088): Mistral's attention, and experts in every layer. */
#include "base/error.h"
#include "nn/family.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static const pst_nn_op router_ops[] = {
    {PST_NN_NORM, PST_NN_X, PST_NN_H, "post_attention_layernorm", PST_NN_ALWAYS, PST_NN_NEVER, false},
    {PST_NN_MATMUL, PST_NN_H, PST_NN_R, "block_sparse_moe.gate", PST_NN_ALWAYS, PST_NN_NEVER, false},
    {PST_NN_ROUTE, PST_NN_R, PST_NN_R, NULL, PST_NN_ALWAYS, PST_NN_NEVER, false},
};

static const pst_nn_op expert_ops[] = {
    PST_EXPERT_OPS("block_sparse_moe.experts.%u.w1", "block_sparse_moe.experts.%u.w3",
                   "block_sparse_moe.experts.%u.w2"),
};

static const pst_nn_recipe layer[] = {
    {"attention", pst_ops_rms_attention, PST_RMS_ATTENTION_OPS, PST_NN_ALWAYS, false},
    {"router", router_ops, COUNT(router_ops), PST_NN_IF_SPARSE, false},
    {"experts", expert_ops, COUNT(expert_ops), PST_NN_IF_SPARSE, true},
};

static int read(const pst_config_reader *in, pst_transformer *t)
{
    static const char *const counts[] = {"num_local_experts", "num_experts", NULL};
    PST_TRY(pst_config_experts(in, counts, 8, 2, t));
    t->expert_intermediate = t->intermediate;
    t->routing.normalize = true;
    for (uint32_t i = 0; i < t->layers; i++)
        t->sparse[i] = true;
    return 0;
}

const pst_family pst_family_mixtral = {.name = "mixtral",
                                       .read = read,
                                       .window = PST_WINDOW_ALL,
                                       .default_kv_heads = 8,
                                       .default_context = 131072,
                                       .default_rope_theta = 1e6,
                                       PST_LLAMA_FRAME(layer)};
