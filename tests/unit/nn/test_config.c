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

#define BODY                                                                                                           \
    "\"vocab_size\":32,\"hidden_size\":16,\"intermediate_size\":24,\"num_hidden_layers\":2,\"num_attention_heads\":4"

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

#define ROPE(dictionary, says)                                                                                         \
    {                                                                                                                  \
        "{\"model_type\":\"llama\"," BODY ",\"rope_scaling\":" dictionary "}", PST_E_FORMAT, says                      \
    }

static void test_refused(void **state)
{
    (void)state;
    static const struct {
        const char *config;
        int code;
        const char *says;
    } cases[] = {
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
        {"{\"model_type\":\"llama\"," BODY ",\"rms_norm_eps\":-1}", PST_E_FORMAT, "rms_norm_eps"},
        {"{\"model_type\":\"llama\"," BODY ",\"eos_token_id\":\"x\"}", PST_E_FORMAT, "eos_token_id"},
        {"{\"model_type\":\"llama\"," BODY ",\"tie_word_embeddings\":1}", PST_E_FORMAT, "tie_word_embeddings"},
        {"{\"model_type\":\"qwen2\"," BODY
         ",\"num_key_value_heads\":4,\"use_sliding_window\":true,\"layer_types\":[\"full_attention\"]}",
         PST_E_FORMAT, "layer_types"},
        {"{\"model_type\":\"qwen2\"," BODY
         ",\"num_key_value_heads\":4,\"use_sliding_window\":true,\"layer_types\":[1,2]}",
         PST_E_UNSUPPORTED, "layer"},
        {"{\"model_type\":\"mixtral\"," BODY ",\"num_key_value_heads\":2,\"num_local_experts\":0}", PST_E_FORMAT,
         "num_local_experts"},
        {"{\"model_type\":\"mixtral\"," BODY ",\"num_key_value_heads\":2,\"num_experts_per_tok\":9}", PST_E_FORMAT,
         "9 experts per token of 8 experts"},
        {"{\"model_type\":\"qwen3_moe\"," BODY ",\"moe_intermediate_size\":-1}", PST_E_FORMAT, "moe_intermediate_size"},
        {"{\"model_type\":\"qwen3_moe\"," BODY ",\"num_experts\":100000000}", PST_E_FORMAT, "num_experts"},
        {"{\"model_type\":\"qwen3_moe\"," BODY ",\"decoder_sparse_step\":0}", PST_E_FORMAT, "decoder_sparse_step"},
        {"{\"model_type\":\"qwen3_moe\"," BODY ",\"mlp_only_layers\":[\"x\"]}", PST_E_FORMAT, "mlp_only_layers"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        pst_transformer t;
        pst_error err;
        int status = parse(cases[i].config, &t, &err);
        if (status != cases[i].code || strstr(err.message, cases[i].says) == NULL)
            fail_msg("%s: %d \"%s\", expected %d with \"%s\"", cases[i].config, status, err.message, cases[i].code,
                     cases[i].says);
        assert_string_equal(err.path, "config.json");
    }
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
        cmocka_unit_test(test_generation_defaults),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_names_are_complete),
        cmocka_unit_test(test_allocation_failures),
    };
    return cmocka_run_group_tests_name("config", tests, NULL, NULL);
}
