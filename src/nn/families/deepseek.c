/* SPDX-License-Identifier: Apache-2.0 */
/*
 * DeepSeek-V2 (arXiv 2405.04434) and V3 (2412.19437, R1 too): latent attention; dense layers first, then experts beside
 * shared ones. Tensors of the layers that predict further tokens are not looked for.
 */
#include <math.h>
#include <string.h>

#include "base/error.h"
#include "nn/family.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* q = q_b(norm(q_a(h))) or q(h); [c, k] = kv_a(h); x += o(attention(q, norm(c), k, kv_b)) */
static const pst_nn_op attention_ops[] = {
    {PST_NN_NORM, PST_NN_X, PST_NN_H, "input_layernorm", PST_NN_ALWAYS, PST_NN_NEVER, false},
    {PST_NN_MATMUL, PST_NN_H, PST_NN_CQ, "self_attn.q_a_proj", PST_NN_IF_Q_LORA, PST_NN_IF_QKV_BIAS, false},
    {PST_NN_LATENT_NORM, PST_NN_CQ, PST_NN_CQN, "self_attn.q_a_layernorm", PST_NN_IF_Q_LORA, PST_NN_NEVER, false},
    {PST_NN_MATMUL, PST_NN_CQN, PST_NN_Q, "self_attn.q_b_proj", PST_NN_IF_Q_LORA, PST_NN_NEVER, false},
    {PST_NN_MATMUL, PST_NN_H, PST_NN_Q, "self_attn.q_proj", PST_NN_IF_Q_PLAIN, PST_NN_NEVER, false},
    {PST_NN_MATMUL, PST_NN_H, PST_NN_CKV, "self_attn.kv_a_proj_with_mqa", PST_NN_ALWAYS, PST_NN_IF_QKV_BIAS, false},
    {PST_NN_LATENT_NORM, PST_NN_CKV, PST_NN_CKV, "self_attn.kv_a_layernorm", PST_NN_ALWAYS, PST_NN_NEVER, false},
    {PST_NN_LATENT_KEEP, PST_NN_CKV, PST_NN_A, "self_attn.kv_b_proj", PST_NN_ALWAYS, PST_NN_NEVER, false},
    {PST_NN_LATENT_ATTENTION, PST_NN_Q, PST_NN_A, NULL, PST_NN_ALWAYS, PST_NN_NEVER, false},
    {PST_NN_MATMUL, PST_NN_A, PST_NN_X, "self_attn.o_proj", PST_NN_ALWAYS, PST_NN_IF_O_BIAS, true},
};

static const pst_nn_recipe layer[] = {
    {"attention", attention_ops, COUNT(attention_ops), PST_NN_ALWAYS, false},
    {"mlp", pst_ops_rms_mlp, PST_RMS_MLP_OPS, PST_NN_IF_DENSE, false},
    {"router", pst_ops_gate_router, PST_GATE_ROUTER_OPS, PST_NN_IF_SPARSE, false},
    {"experts", pst_ops_gated_experts, PST_GATED_EXPERTS_OPS, PST_NN_IF_SPARSE, true},
};

/* Refuses a key whose value is none of those that can be computed; absent and null are fine. */
static int check_name(const pst_config_reader *in, const char *key, const char *good, const char *also)
{
    const char *name = good;
    PST_TRY(pst_json_string(in->root, key, false, &name, in->path, in->err));
    if (strcmp(name, good) == 0 || strcmp(name, also) == 0)
        return 0;
    return pst_fail(in->err, PST_E_UNSUPPORTED, in->path, "a \"%s\" of \"%s\" is not supported", key, name);
}

static int refuse_switch(const pst_config_reader *in, const char *key)
{
    bool value = false;
    PST_TRY(pst_json_bool(in->root, key, false, &value, in->path, in->err));
    return value ? pst_fail(in->err, PST_E_UNSUPPORTED, in->path, "\"%s\" is not supported in this family", key) : 0;
}

/* Numbers that a family's configuration may leave out. */
typedef struct defaults {
    uint64_t experts, per_token, intermediate, shared, first_dense;
    double scale;
} defaults;

static int read_experts(const pst_config_reader *in, const defaults *d, pst_transformer *t)
{
    static const char *const counts[] = {"n_routed_experts", "num_local_experts", "num_experts", NULL};
    uint64_t dense = d->first_dense, shared = d->shared, every = 1;
    PST_TRY(pst_config_experts(in, counts, d->experts, d->per_token, t));
    PST_TRY(
        pst_config_u32(in, "moe_intermediate_size", d->intermediate, 1, PST_MAX_DIMENSION, &t->expert_intermediate));
    PST_TRY(pst_json_u64(in->root, "first_k_dense_replace", false, 0, UINT32_MAX, &dense, in->path, in->err));
    PST_TRY(pst_json_u64(in->root, "moe_layer_freq", false, 0, UINT32_MAX, &every, in->path, in->err));
    PST_TRY(pst_json_u64(in->root, "n_shared_experts", false, 0, PST_MAX_EXPERTS, &shared, in->path, in->err));
    if (json_is_null(json_object_get(in->root, "n_shared_experts")))
        shared = 0;
    if (every != 1)
        return pst_fail(in->err, PST_E_UNSUPPORTED, in->path, "a \"moe_layer_freq\" of %llu is not supported",
                        (unsigned long long)every);
    if (shared * t->expert_intermediate > PST_MAX_DIMENSION)
        return pst_fail(in->err, PST_E_FORMAT, in->path, "%llu shared experts of %u", (unsigned long long)shared,
                        t->expert_intermediate);
    t->shared_intermediate = (uint32_t)(shared * t->expert_intermediate);
    t->routing.scale = d->scale;
    PST_TRY(pst_json_double(in->root, "routed_scaling_factor", false, &t->routing.scale, in->path, in->err));
    for (uint32_t i = 0; i < t->layers; i++)
        t->sparse[i] = i >= dense;
    return 0;
}

/* What the softmax is scaled with; YaRN sharpens it (arXiv 2309.00071; both the cosines and this have a part of it). */
static void set_scale(pst_transformer *t)
{
    double scale = 1 / sqrt((double)t->head_dim), sharpening = 1;
    if (t->rope.type == PST_ROPE_YARN && t->rope.mscale_all_dim != 0 && t->rope.factor > 1)
        sharpening = 0.1 * t->rope.mscale_all_dim * log(t->rope.factor) + 1;
    t->attention_scale = (float)(scale * sharpening * sharpening);
}

static int read_groups(const pst_config_reader *in, uint64_t groups, uint64_t top_groups, pst_transformer *t)
{
    PST_TRY(pst_config_u32(in, "n_group", groups, 1, PST_MAX_EXPERTS, &t->routing.groups));
    PST_TRY(pst_config_u32(in, "topk_group", top_groups, 1, PST_MAX_EXPERTS, &t->routing.top_groups));
    return pst_config_groups(in, t);
}

static int read_v3(const pst_config_reader *in, pst_transformer *t)
{
    static const defaults d = {256, 8, 2048, 1, 3, 2.5};
    PST_TRY(check_name(in, "scoring_func", "sigmoid", "sigmoid"));
    PST_TRY(check_name(in, "topk_method", "noaux_tc", "noaux_tc"));
    PST_TRY(read_experts(in, &d, t));
    t->routing.sigmoid = t->routing.corrected = t->routing.normalize = true;
    t->routing.normalize_epsilon = 1e-20;
    t->routing.group_scores = 2;
    PST_TRY(pst_json_bool(in->root, "norm_topk_prob", false, &t->routing.normalize, in->path, in->err));
    t->rope.interleaved = true;
    PST_TRY(pst_json_bool(in->root, "rope_interleave", false, &t->rope.interleaved, in->path, in->err));
    set_scale(t);
    return read_groups(in, 8, 4, t);
}

static int read_v2(const pst_config_reader *in, pst_transformer *t)
{
    static const defaults d = {64, 0, 1407, 2, 0, 1};
    const char *method = "greedy";
    PST_TRY(check_name(in, "scoring_func", "softmax", "softmax"));
    PST_TRY(check_name(in, "topk_method", "greedy", "group_limited_greedy"));
    PST_TRY(pst_json_string(in->root, "topk_method", false, &method, in->path, in->err));
    /* Normalized weights are what transformers does not and the authors' code does; no published model has them. */
    PST_TRY(refuse_switch(in, "norm_topk_prob"));
    PST_TRY(refuse_switch(in, "mlp_bias"));
    PST_TRY(read_experts(in, &d, t));
    t->rope.interleaved = true;
    set_scale(t);
    return strcmp(method, "greedy") == 0 ? 0 : read_groups(in, 0, 0, t);
}

#define DEEPSEEK .bias = PST_BIAS_CONFIG, .latent = true, PST_LLAMA_FRAME(layer)

const pst_family pst_family_deepseek_v2 = {.name = "deepseek_v2", .read = read_v2, .default_context = 2048, DEEPSEEK};
const pst_family pst_family_deepseek_v3 = {.name = "deepseek_v3", .read = read_v3, .default_context = 4096, DEEPSEEK};
