/* SPDX-License-Identifier: Apache-2.0 */
/* config.json: both spellings of rotary parameters, each family's defaults, and everything that must be refused. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/heap.h"
#include "nn/family.h"
#include "unit/nn/refusals.h"

#define BODY                                                                                                           \
    "\"vocab_size\":32,\"hidden_size\":16,\"intermediate_size\":24,\"num_hidden_layers\":2,\"num_attention_heads\":4"

#define V3 "{\"model_type\":\"deepseek_v3\"," BODY

static int parse(const char *config, pst_transformer *out, pst_error *err)
{
    *err = (pst_error){0};
    return pst_transformer_parse(config, strlen(config), "config.json", NULL, 0, NULL, out, err);
}

static void test_spellings_of_rope(void **state)
{
    (void)state;
    static const char *const spellings[] = {
        "{\"model_type\":\"llama\"," BODY
        ",\"rope_theta\":500000.0,\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8.0,"
        "\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,\"original_max_position_embeddings\":8192}}",
        "{\"model_type\":\"llama\"," BODY ",\"rope_theta\":500000,\"rope_scaling\":{\"type\":\"llama3\",\"factor\":8,"
        "\"low_freq_factor\":1,\"high_freq_factor\":4,\"original_max_position_embeddings\":8192}}",
        "{\"model_type\":\"llama\"," BODY
        ",\"rope_parameters\":{\"rope_type\":\"llama3\",\"rope_theta\":500000.0,\"factor\":8.0,"
        "\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,\"original_max_position_embeddings\":8192}}",
    };
    for (size_t i = 0; i < sizeof spellings / sizeof spellings[0]; i++) {
        pst_transformer t;
        pst_error err;
        assert_int_equal(parse(spellings[i], &t, &err), 0);
        assert_int_equal(t.rope.type, PST_ROPE_LLAMA3);
        assert_true(t.rope.theta == 500000 && t.rope.factor == 8 && t.rope.original_context == 8192);
        pst_transformer_destroy(&t);
    }
}

static void test_defaults_of_families(void **state)
{
    (void)state;
    pst_transformer t;
    pst_error err;
    assert_int_equal(parse("{\"model_type\":\"llama\"," BODY "}", &t, &err), 0);
    assert_int_equal(t.kv_heads, 4);
    assert_int_equal(t.head_dim, 4);
    assert_int_equal(t.window, 0);
    assert_false(t.qkv_bias || t.o_bias || t.mlp_bias || t.qk_norm || t.tied_head);
    pst_transformer_destroy(&t);
    assert_int_equal(parse("{\"model_type\":\"mistral\"," BODY ",\"num_key_value_heads\":2}", &t, &err), 0);
    assert_int_equal(t.window, 4096);
    assert_true(t.windowed[0] && t.windowed[1]);
    pst_transformer_destroy(&t);
    assert_int_equal(
        parse("{\"model_type\":\"mistral\"," BODY ",\"num_key_value_heads\":null,\"sliding_window\":null}", &t, &err),
        0);
    assert_int_equal(t.window, 0);
    assert_int_equal(t.kv_heads, 4);
    pst_transformer_destroy(&t);
    assert_int_equal(parse("{\"model_type\":\"qwen2\"," BODY
                           ",\"num_key_value_heads\":4,\"use_sliding_window\":true,\"max_window_layers\":1}",
                           &t, &err),
                     0);
    assert_true(t.qkv_bias && !t.o_bias);
    assert_true(!t.windowed[0] && t.windowed[1]);
    pst_transformer_destroy(&t);
    assert_int_equal(parse("{\"model_type\":\"qwen3\"," BODY ",\"num_key_value_heads\":1}", &t, &err), 0);
    assert_int_equal(t.head_dim, 128);
    assert_true(t.qk_norm && !t.qkv_bias);
    pst_transformer_destroy(&t);
}

static void test_experts(void **state)
{
    (void)state;
    pst_transformer t;
    pst_error err;
    assert_int_equal(parse("{\"model_type\":\"mixtral\"," BODY ",\"num_key_value_heads\":2}", &t, &err), 0);
    assert_true(t.experts == 8 && t.experts_per_token == 2 && t.expert_intermediate == 24 && t.routing.normalize);
    assert_true(t.window == 0 && t.rope.theta == 1e6 && t.sparse[0] && t.sparse[1]);
    pst_transformer_destroy(&t);
    static const char config[] = "{\"model_type\":\"qwen3_moe\"," BODY
                                 ",\"num_local_experts\":5,\"num_experts_per_tok\":2,\"mlp_only_layers\":[0,7],"
                                 "\"use_sliding_window\":true,\"sliding_window\":3}";
    assert_int_equal(parse(config, &t, &err), 0);
    assert_true(t.experts == 5 && t.expert_intermediate == 768 && !t.routing.normalize && t.qk_norm);
    assert_true(t.window == 3 && t.windowed[0] && t.windowed[1] && !t.sparse[0] && t.sparse[1]);
    pst_transformer_destroy(&t);
    /* All layers plain: then there are no experts. */
    static const char plain[] = "{\"model_type\":\"qwen3_moe\"," BODY ",\"decoder_sparse_step\":3}";
    assert_int_equal(parse(plain, &t, &err), 0);
    assert_int_equal(t.experts, 0);
    pst_transformer_destroy(&t);
}

static void test_deepseek(void **state)
{
    (void)state;
    pst_transformer t;
    pst_error err;
    static const char published[] =
        V3 ",\"first_k_dense_replace\":1,\"rope_scaling\":{\"type\":\"yarn\",\"factor\":40,\"mscale\":1.0,"
           "\"mscale_all_dim\":1.0,\"original_max_position_embeddings\":4096,\"beta_fast\":32,\"beta_slow\":1},"
           "\"max_position_embeddings\":163840,\"scoring_func\":\"sigmoid\",\"topk_method\":\"noaux_tc\"}";
    assert_int_equal(parse(published, &t, &err), 0);
    assert_true(t.experts == 256 && t.experts_per_token == 8 && t.shared_intermediate == 2048);
    assert_true(t.latent.q_lora_rank == 1536 && t.latent.kv_lora_rank == 512 && t.latent.value_dim == 128);
    assert_true(t.head_dim == 192 && t.rope.rotary == 64 && t.rope.interleaved && t.rope.attention_factor == 1);
    assert_true(t.routing.sigmoid && t.routing.corrected && t.routing.normalize && t.routing.groups == 8);
    assert_true(t.routing.top_groups == 4 && t.routing.group_scores == 2 && t.routing.scale == 2.5);
    assert_true(!t.sparse[0] && t.sparse[1]);
    double sharpening = 0.1 * log(40) + 1; /* the published model's softmax scale */
    assert_true(fabs((double)t.attention_scale - sharpening * sharpening / sqrt(192)) < 1e-7);
    pst_transformer_destroy(&t);
    static const char second[] =
        "{\"model_type\":\"deepseek_v2\"," BODY ",\"num_experts_per_tok\":6,\"q_lora_rank\":null,\"n_group\":null}";
    assert_int_equal(parse(second, &t, &err), 0);
    assert_true(t.experts == 64 && t.routing.groups == 1 && !t.routing.sigmoid && !t.routing.corrected);
    assert_true(t.latent.q_lora_rank == 0 && t.shared_intermediate == 2 * 1407 && t.sparse[0]);
    pst_transformer_destroy(&t);
}

static void test_generation_defaults(void **state)
{
    (void)state;
    static const char config[] = "{\"model_type\":\"llama\"," BODY ",\"eos_token_id\":2}";
    static const char generation[] =
        "{\"eos_token_id\":[5,6,7],\"do_sample\":true,\"temperature\":0.6,\"top_p\":0.9,\"top_k\":40}";
    pst_transformer t;
    pst_error err;
    assert_int_equal(pst_transformer_parse(config, strlen(config), "c", generation, strlen(generation), "g", &t, &err),
                     0);
    assert_int_equal(t.end_count, 3);
    assert_int_equal(t.end_ids[2], 7);
    assert_true(t.do_sample && t.temperature == 0.6 && t.top_p == 0.9 && t.top_k == 40);
    pst_transformer_destroy(&t);
}

#define OPT   "{\"model_type\":\"opt\",\"vocab_size\":32,\"hidden_size\":16,\"ffn_dim\":24,\"num_hidden_layers\":2"
#define BLOOM "{\"model_type\":\"bloom\",\"vocab_size\":32"
#define GPT2  "{\"model_type\":\"gpt2\",\"vocab_size\":32,\"n_embd\":12,\"n_layer\":2"

static void test_dense_families(void **state)
{
    (void)state;
    pst_transformer t;
    pst_error err;
    assert_int_equal(parse(OPT ",\"num_attention_heads\":4}", &t, &err), 0);
    assert_true(t.tied_head && !t.tied_stated && !t.norm_last && !t.no_final_norm && t.qkv_bias && t.mlp_bias);
    assert_true(t.position_offset == 2 && t.context == 2048 && t.embedding_dim == 16 && t.kv_heads == 4);
    assert_true(t.activation == PST_ACT_RELU && t.rope.rotary == 0 && !t.windowed[1]);
    pst_transformer_destroy(&t);
    /* opt-350m */
    assert_int_equal(parse(OPT ",\"num_attention_heads\":4,\"do_layer_norm_before\":false,\"word_embed_proj_dim\":5,"
                               "\"max_position_embeddings\":9}",
                           &t, &err),
                     0);
    assert_true(t.norm_last && t.no_final_norm && t.embedding_dim == 5 && t.context == 9);
    pst_transformer_destroy(&t);
    static const char *const blooms[] = {
        BLOOM ",\"n_embed\":18,\"hidden_size\":7,\"n_layer\":3,\"num_attention_heads\":6}",
        BLOOM ",\"hidden_size\":18,\"num_hidden_layers\":3,\"n_head\":6,\"seq_length\":2048}"};
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(parse(blooms[i], &t, &err), 0);
        assert_true(t.hidden == 18 && t.layers == 3 && t.heads == 6 && t.head_dim == 3 && t.intermediate == 72);
        assert_true(t.alibi && t.context == 2048 && t.qkv_order == PST_QKV_PER_HEAD && !t.residual_normed);
        pst_transformer_destroy(&t);
    }
    assert_int_equal(parse(GPT2 ",\"n_head\":4,\"n_inner\":null,\"scale_attn_weights\":false}", &t, &err), 0);
    assert_true(t.intermediate == 48 && t.context == 1024 && t.attention_scale == 1 && !t.scale_by_layer);
    assert_true(t.activation == PST_ACT_GELU_TANH && t.qkv_order == PST_QKV_CONCATENATED && t.tied_head);
    pst_transformer_destroy(&t);
}

/* Two heads' slopes below are those that the paper lists for eight and, for heads beyond a power of two, for sixteen. */
static void test_alibi_slopes(void **state)
{
    (void)state;
    float slopes[12];
    pst_alibi_slopes(8, slopes);
    for (int i = 0; i < 8; i++)
        assert_true(slopes[i] == 1.0f / (float)(2 << i));
    pst_alibi_slopes(12, slopes);
    for (int i = 0; i < 12; i++)
        assert_true(fabsf(slopes[i] / (i < 8 ? 1.0f / (float)(2 << i) : exp2f(-0.5f - (float)(i - 8))) - 1) < 1e-6f);
    pst_alibi_slopes(1, slopes);
    assert_true(slopes[0] == 1.0f / 256);
}

/* Published folders add yarn to a config whose max_position_embeddings they leave as it was. */
static void test_context_of_scaling(void **state)
{
    (void)state;
    static const struct {
        const char *config;
        uint32_t context;
    } cases[] = {
        {"40960,\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4.0,\"original_max_position_embeddings\":32768}",
         131072},
        {"32768,\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4.0,\"original_max_position_embeddings\":32768}",
         131072},
        {"200000,\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2.0,\"original_max_position_embeddings\":32768}",
         200000},
        {"4096,\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4.0}", 4096},
        {"4096,\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2.0}", 8192},
        {"4096,\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":1e300}", UINT32_MAX / 2},
        {"4096,\"rope_scaling\":{\"type\":\"linear\",\"factor\":4.0}", 4096},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char config[1024];
        snprintf(config, sizeof config, "{\"model_type\":\"llama\"," BODY ",\"max_position_embeddings\":%s}",
                 cases[i].config);
        pst_transformer t;
        pst_error err;
        assert_int_equal(parse(config, &t, &err), 0);
        assert_int_equal(t.context, cases[i].context);
        pst_transformer_destroy(&t);
    }
}

/* What depends on a sequence's length does so only beyond the original context. */
static void test_rope_by_length(void **state)
{
    (void)state;
    pst_rope rope = {.type = PST_ROPE_DYNAMIC,
                     .rotary = 8,
                     .theta = 10000,
                     .factor = 2,
                     .original_context = 16,
                     .attention_factor = 1};
    float plain[4], at_end[4], beyond[4];
    assert_true(pst_rope_depends_on_length(&rope));
    pst_rope_frequencies(&rope, 3, plain);
    pst_rope_frequencies(&rope, 16, at_end);
    pst_rope_frequencies(&rope, 17, beyond);
    assert_memory_equal(plain, at_end, sizeof plain);
    assert_true(plain[0] == beyond[0] && plain[3] > beyond[3]);
    rope.type = PST_ROPE_LINEAR;
    assert_true(!pst_rope_depends_on_length(&rope));
}

#define ROPE(dictionary, says)                                                                                         \
    {                                                                                                                  \
        "{\"model_type\":\"llama\"," BODY ",\"rope_scaling\":" dictionary "}", PST_E_FORMAT, says                      \
    }

static void test_refused(void **state)
{
    (void)state;
    static const refusal cases[] = {
        {"", PST_E_FORMAT, "JSON"},
        {"[]", PST_E_FORMAT, "object"},
        {"{\"model_type\":\"llama\"," BODY, PST_E_FORMAT, "JSON"},
        {"{\"model_type\":\"llama\",\"model_type\":\"llama\"," BODY "}", PST_E_FORMAT, "duplicate"},
        {"{" BODY "}", PST_E_FORMAT, "model_type"},
        {"{\"model_type\":\"gpt5\"," BODY "}", PST_E_UNSUPPORTED, "llama, "},
        {"{\"model_type\":7," BODY "}", PST_E_FORMAT, "model_type"},
        {"{\"model_type\":\"llama\",\"vocab_size\":32}", PST_E_FORMAT, "hidden_size"},
        {"{\"model_type\":\"llama\"," BODY ",\"num_key_value_heads\":3}", PST_E_FORMAT, "cannot share"},
        {"{\"model_type\":\"llama\"," BODY ",\"num_key_value_heads\":0}", PST_E_FORMAT, "num_key_value_heads"},
        {"{\"model_type\":\"llama\"," BODY ",\"head_dim\":3}", PST_E_FORMAT, "even"},
        {"{\"model_type\":\"llama\"," BODY ",\"head_dim\":-4}", PST_E_FORMAT, "head_dim"},
        {"{\"model_type\":\"llama\"," BODY ",\"head_dim\":99999999999999}", PST_E_FORMAT, "head_dim"},
        {"{\"model_type\":\"llama\"," BODY ",\"hidden_act\":\"mish\"}", PST_E_UNSUPPORTED, "mish"},
        {"{\"model_type\":\"llama\"," BODY ",\"rope_scaling\":{\"rope_type\":\"axial\",\"factor\":4}}",
         PST_E_UNSUPPORTED, "axial"},
        ROPE("{\"rope_type\":\"yarn\",\"factor\":-4}", "factor"),
        ROPE("{\"rope_type\":\"yarn\",\"factor\":4,\"beta_fast\":1,\"beta_slow\":2}", "betas"),
        ROPE("{\"rope_type\":\"yarn\",\"factor\":4,\"original_max_position_embeddings\":1e99}", "original context"),
        ROPE("{\"rope_type\":\"yarn\",\"factor\":4,\"rope_theta\":1}", "rope_theta"),
        ROPE("{\"rope_type\":\"yarn\",\"factor\":4,\"truncate\":3}", "truncate"),
        ROPE("{\"rope_type\":\"dynamic\"}", "factor"),
        ROPE("{\"rope_type\":\"longrope\"}", "short_factor"),
        ROPE("{\"rope_type\":\"longrope\",\"short_factor\":[1]}", "1 numbers for 2 pairs"),
        ROPE("{\"rope_type\":\"longrope\",\"short_factor\":[1,2],\"long_factor\":[1,-2]}", "number 2"),
        ROPE("{\"rope_type\":\"longrope\",\"short_factor\":[1,\"x\"],\"long_factor\":[1,2]}", "number 2"),
        {"{\"model_type\":\"llama\"," BODY ",\"rope_scaling\":{\"type\":\"linear\"}}", PST_E_FORMAT, "factor"},
        {"{\"model_type\":\"llama\"," BODY ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":0}}", PST_E_FORMAT,
         "factor"},
        {"{\"model_type\":\"llama\"," BODY
         ",\"rope_scaling\":{\"type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,\"high_freq_factor\":4}}",
         PST_E_FORMAT, "llama3"},
        {"{\"model_type\":\"llama\"," BODY ",\"rope_theta\":0}", PST_E_FORMAT, "rope_theta"},
        {"{\"model_type\":\"llama\"," BODY ",\"partial_rotary_factor\":1.5}", PST_E_FORMAT, "partial"},
        {"{\"model_type\":\"llama\"," BODY ",\"partial_rotary_factor\":0.3}", PST_E_FORMAT, "even"},
        {"{\"model_type\":\"llama\"," BODY ",\"quantization_config\":{\"bits\":4}}", PST_E_FORMAT, "quant_method"},
        {OPT "}", PST_E_FORMAT, "num_attention_heads"},
        {OPT ",\"num_attention_heads\":5}", PST_E_FORMAT, "cannot share"},
        {OPT ",\"num_attention_heads\":32}", PST_E_FORMAT, "cannot share"},
        {OPT ",\"num_attention_heads\":4,\"max_position_embeddings\":4294967296}", PST_E_FORMAT, "max_position"},
        {OPT ",\"num_attention_heads\":4,\"word_embed_proj_dim\":-1}", PST_E_FORMAT, "word_embed_proj_dim"},
        {OPT ",\"num_attention_heads\":4,\"activation_function\":\"tanh\"}", PST_E_UNSUPPORTED, "tanh"},
        {BLOOM ",\"hidden_size\":16777217,\"n_layer\":1,\"n_head\":1}", PST_E_FORMAT, "hidden_size"},
        {BLOOM ",\"hidden_size\":8192,\"n_layer\":1,\"n_head\":1}", PST_E_FORMAT, "cannot share"},
        {BLOOM ",\"hidden_size\":16,\"n_layer\":0,\"n_head\":1}", PST_E_FORMAT, "n_layer"},
        {BLOOM ",\"hidden_size\":16,\"n_layer\":1,\"n_head\":1,\"layer_norm_epsilon\":1e999}", PST_E_FORMAT, ""},
        {GPT2 "}", PST_E_FORMAT, "n_head"},
        {GPT2 ",\"n_head\":4,\"n_inner\":0}", PST_E_FORMAT, "n_inner"},
        {GPT2 ",\"n_head\":4,\"add_cross_attention\":true}", PST_E_UNSUPPORTED, "cross"},
        {"{\"model_type\":\"llama\"," BODY ",\"rms_norm_eps\":-1}", PST_E_FORMAT, "rms_norm_eps"},
        {"{\"model_type\":\"llama\"," BODY ",\"eos_token_id\":\"x\"}", PST_E_FORMAT, "eos_token_id"},
        {"{\"model_type\":\"llama\"," BODY ",\"tie_word_embeddings\":1}", PST_E_FORMAT, "tie_word_embeddings"},
        {"{\"model_type\":\"qwen2\"," BODY
         ",\"num_key_value_heads\":4,\"use_sliding_window\":true,\"layer_types\":[\"full_attention\"]}",
         PST_E_FORMAT, "layer_types"},
        {"{\"model_type\":\"qwen2\"," BODY
         ",\"num_key_value_heads\":4,\"use_sliding_window\":true,\"layer_types\":[1,2]}",
         PST_E_UNSUPPORTED, "layer"},
        {V3 ",\"n_routed_experts\":10,\"n_group\":4}", PST_E_FORMAT, "10 experts cannot be in 4 groups"},
        {V3 ",\"n_routed_experts\":8,\"n_group\":8,\"topk_group\":2,\"num_experts_per_tok\":3}", PST_E_FORMAT,
         "2 groups of 1 experts have no 3"},
        {V3 ",\"n_group\":2,\"topk_group\":3}", PST_E_FORMAT, "the best 3 groups of 2"},
        {V3 ",\"n_routed_experts\":0}", PST_E_FORMAT, "n_routed_experts"},
        {V3 ",\"num_experts_per_tok\":300}", PST_E_FORMAT, "300 experts per token of 256"},
        {V3 ",\"n_shared_experts\":16000,\"moe_intermediate_size\":100000}", PST_E_FORMAT, "shared experts"},
        {V3 ",\"kv_lora_rank\":1000000000}", PST_E_FORMAT, "kv_lora_rank"},
        {V3 ",\"kv_lora_rank\":0}", PST_E_FORMAT, "kv_lora_rank"},
        {V3 ",\"q_lora_rank\":100000000000}", PST_E_FORMAT, "q_lora_rank"},
        {V3 ",\"q_lora_rank\":0}", PST_E_FORMAT, "q_lora_rank"},
        {V3 ",\"qk_rope_head_dim\":7}", PST_E_FORMAT, "even"},
        {V3 ",\"v_head_dim\":0}", PST_E_FORMAT, "v_head_dim"},
        {V3 ",\"scoring_func\":\"softmax\"}", PST_E_UNSUPPORTED, "scoring_func"},
        {V3 ",\"topk_method\":\"greedy\"}", PST_E_UNSUPPORTED, "topk_method"},
        {V3 ",\"moe_layer_freq\":2}", PST_E_UNSUPPORTED, "moe_layer_freq"},
        {"{\"model_type\":\"deepseek_v2\"," BODY "}", PST_E_FORMAT, "num_experts_per_tok"},
        {"{\"model_type\":\"deepseek_v2\"," BODY ",\"num_experts_per_tok\":2,\"norm_topk_prob\":true}",
         PST_E_UNSUPPORTED, "norm_topk_prob"},
        {"{\"model_type\":\"deepseek_v2\"," BODY ",\"num_experts_per_tok\":2,\"topk_method\":\"group_limited_greedy\"}",
         PST_E_FORMAT, "n_group"},
        {"{\"model_type\":\"mixtral\"," BODY ",\"num_key_value_heads\":2,\"num_local_experts\":0}", PST_E_FORMAT,
         "num_local_experts"},
        {"{\"model_type\":\"mixtral\"," BODY ",\"num_key_value_heads\":2,\"num_experts_per_tok\":9}", PST_E_FORMAT,
         "9 experts per token of 8 experts"},
        {"{\"model_type\":\"qwen3_moe\"," BODY ",\"moe_intermediate_size\":-1}", PST_E_FORMAT, "moe_intermediate_size"},
        {"{\"model_type\":\"qwen3_moe\"," BODY ",\"num_experts\":100000000}", PST_E_FORMAT, "num_experts"},
        {"{\"model_type\":\"qwen3_moe\"," BODY ",\"decoder_sparse_step\":0}", PST_E_FORMAT, "decoder_sparse_step"},
        {"{\"model_type\":\"qwen3_moe\"," BODY ",\"mlp_only_layers\":[\"x\"]}", PST_E_FORMAT, "mlp_only_layers"},
    };
    check_refusals(cases, sizeof cases / sizeof cases[0], parse);
}

static void test_names_are_complete(void **state)
{
    (void)state;
    char names[256];
    snprintf(names, sizeof names, "%s", pst_family_names());
    char *rest = names, *name;
    while ((name = strsep(&rest, ", ")) != NULL)
        assert_true(*name == '\0' || pst_family_find(name) != NULL);
}

static void check_allocation_failures(const char *config)
{
    pst_transformer t;
    pst_error err;
    int64_t live = pst_heap_live_count();
    for (int64_t n = 0;; n++) {
        pst_heap_fail_after(n, 0);
        int status = parse(config, &t, &err);
        pst_heap_fail_after(-1, 0);
        if (status == 0) {
            pst_transformer_destroy(&t);
            break;
        }
        assert_int_equal(pst_heap_live_count(), live);
        assert_true(n < 10000);
    }
    assert_int_equal(pst_heap_live_count(), live);
}

static void test_allocation_failures(void **state)
{
    (void)state;
    check_allocation_failures("{\"model_type\":\"mixtral\"," BODY ",\"num_key_value_heads\":2,\"eos_token_id\":[1,2]}");
    check_allocation_failures("{\"model_type\":\"llama\"," BODY ",\"eos_token_id\":[1,2],\"rope_scaling\":{\"type\":"
                              "\"longrope\",\"short_factor\":[1,1],\"long_factor\":[2,2]}}");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_spellings_of_rope),
        cmocka_unit_test(test_defaults_of_families),
        cmocka_unit_test(test_experts),
        cmocka_unit_test(test_deepseek),
        cmocka_unit_test(test_generation_defaults),
        cmocka_unit_test(test_dense_families),
        cmocka_unit_test(test_alibi_slopes),
        cmocka_unit_test(test_rope_by_length),
        cmocka_unit_test(test_context_of_scaling),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_names_are_complete),
        cmocka_unit_test(test_allocation_failures),
    };
    return cmocka_run_group_tests_name("config", tests, NULL, NULL);
}
