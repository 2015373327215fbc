/* SPDX-License-Identifier: Apache-2.0 */
/* The table of shapes: figures of the published config.json files, in the keys of each family. */
#include <stdio.h>
#include <string.h>

#include "jobs/synth_shapes.h"
#include "nn/family.h"
#include "penstock/jobs.h"

#define ARCHITECTURE(family, class) "'architectures': ['" class "'], 'model_type': '" family "', "

/* The keys that Llama and most families after it share; numbers go in as they are written. */
#define WIDTHS(hidden, inter, heads, kv, context, vocab)                                                               \
    "'hidden_act': 'silu', 'hidden_size': " #hidden ", 'intermediate_size': " #inter                                   \
    ", 'num_attention_heads': " #heads ", 'num_key_value_heads': " #kv ", 'num_hidden_layers': $layers, "              \
    "'max_position_embeddings': " #context ", 'vocab_size': " #vocab ", "
#define ENDS(bos, eos) "'bos_token_id': " #bos ", 'eos_token_id': " #eos ", "
#define ROPE_LLAMA3(factor, context)                                                                                   \
    "'rope_scaling': {'factor': " #factor ", 'high_freq_factor': 4.0, 'low_freq_factor': 1.0, "                        \
    "'original_max_position_embeddings': " #context ", 'rope_type': 'llama3'}, "
#define NO_SCALING   "'rope_scaling': null, "
#define THETA(theta) "'rope_theta': " #theta ", "
#define COMMON       "'attention_dropout': 0.0, 'initializer_range': 0.02, 'use_cache': true, "
#define TIED         "'tie_word_embeddings': true"
#define UNTIED       "'tie_word_embeddings': false"

#define LLAMA_FLAGS                     "'rms_norm_eps': 1e-05, 'attention_bias': false, 'mlp_bias': false, 'pretraining_tp': 1, " COMMON
#define LLAMA(ends, widths, rope, tied) ARCHITECTURE("llama", "LlamaForCausalLM") ends widths rope LLAMA_FLAGS tied
#define LLAMA3_TEXT                     .begins_text = true, .begin = {128000, "<|begin_of_text|>"}, .end = {128001, "<|end_of_text|>"}
#define LLAMA2_TEXT                     .begins_text = true, .begin = {1, "<s>"}, .end = {2, "</s>"}
#define QWEN2_TEXT                      .begin = {151643, "<|endoftext|>"}, .end = {151643, "<|endoftext|>"}
#define QWEN3_TEXT                      .begin = {151643, "<|endoftext|>"}, .end = {151645, "<|im_end|>"}
#define TINY_TEXT                       .begins_text = true, .begin = {509, "<|begin_of_text|>"}, .end = {510, "<|end_of_text|>"}

#define OPT(ends, hidden, ffn, heads, context, vocab)                                                                  \
    ARCHITECTURE("opt", "OPTForCausalLM")                                                                              \
    ends "'activation_function': 'relu', 'attention_dropout': 0.0, 'do_layer_norm_before': true, 'dropout': 0.1, "     \
         "'enable_bias': true, 'layer_norm_elementwise_affine': true, 'layerdrop': 0.0, 'init_std': 0.02, "            \
         "'_remove_final_layer_norm': false, 'pad_token_id': 1, 'hidden_size': " #hidden                               \
         ", 'word_embed_proj_dim': " #hidden ", 'ffn_dim': " #ffn ", 'num_attention_heads': " #heads                   \
         ", 'num_hidden_layers': $layers, "                                                                            \
         "'max_position_embeddings': " #context ", 'vocab_size': " #vocab ", 'use_cache': true, " TIED
#define OPT_TEXT .begins_text = true, .begin = {2, "</s>"}, .end = {2, "</s>"}

#define BLOOM(hidden, heads, context, vocab)                                                                           \
    ARCHITECTURE("bloom", "BloomForCausalLM")                                                                          \
    "'apply_residual_connection_post_layernorm': false, 'attention_dropout': 0.0, "                                    \
    "'attention_softmax_in_fp32': true, 'bos_token_id': 1, 'eos_token_id': 2, 'pad_token_id': 3, "                     \
    "'unk_token_id': 0, 'hidden_dropout': 0.0, 'initializer_range': 0.02, 'layer_norm_epsilon': 1e-05, "               \
    "'masked_softmax_fusion': true, 'n_head': " #heads ", 'n_layer': $layers, 'hidden_size': " #hidden                 \
    ", 'pretraining_tp': 1, 'seq_length': " #context ", 'slow_but_exact': false, 'use_cache': true, "                  \
    "'vocab_size': " #vocab ", " TIED
#define BLOOM_TEXT .begin = {1, "<s>"}, .end = {2, "</s>"}

#define GPT2(ends, width, heads, context, vocab)                                                                       \
    ARCHITECTURE("gpt2", "GPT2LMHeadModel")                                                                            \
    ends "'activation_function': 'gelu_new', 'attn_pdrop': 0.1, 'embd_pdrop': 0.1, 'resid_pdrop': 0.1, "               \
         "'initializer_range': 0.02, 'layer_norm_epsilon': 1e-05, 'n_ctx': " #context ", 'n_embd': " #width            \
         ", 'n_head': " #heads ", 'n_layer': $layers, 'n_positions': " #context ", 'vocab_size': " #vocab ", " TIED

#define MIXTRAL(ends, widths, experts, top)                                                                            \
    ARCHITECTURE("mixtral", "MixtralForCausalLM")                                                                      \
    ends widths NO_SCALING THETA(1000000.0) COMMON                                                                     \
        "'num_local_experts': " #experts ", 'num_experts_per_tok': " #top ", 'output_router_logits': false, "          \
        "'rms_norm_eps': 1e-05, 'router_aux_loss_coef': 0.02, 'sliding_window': null, " UNTIED

#define QWEN3_MOE(ends, widths, dim, width, experts, top)                                                              \
    ARCHITECTURE("qwen3_moe", "Qwen3MoeForCausalLM")                                                                   \
    ends widths NO_SCALING THETA(1000000.0) COMMON                                                                     \
        "'attention_bias': false, 'decoder_sparse_step': 1, 'head_dim': " #dim ", 'mlp_only_layers': [], "             \
        "'moe_intermediate_size': " #width ", 'norm_topk_prob': true, 'num_experts': " #experts                        \
        ", 'num_experts_per_tok': " #top ", 'output_router_logits': false, 'rms_norm_eps': 1e-06, "                    \
        "'router_aux_loss_coef': 0.001, 'sliding_window': null, 'use_sliding_window': false, " UNTIED

/* Ranks and head sizes: q_lora, kv_lora, the key without and with rotation, the value. */
#define DEEPSEEK(ends, widths, q_rank, kv_rank, nope, rope, value, width, experts, top, groups, top_groups, dense)     \
    ARCHITECTURE("deepseek_v3", "DeepseekV3ForCausalLM")                                                               \
    ends widths THETA(10000) COMMON                                                                                    \
        "'rope_scaling': {'beta_fast': 32, 'beta_slow': 1, 'factor': 40, 'mscale': 1.0, 'mscale_all_dim': 1.0, "       \
        "'original_max_position_embeddings': 4096, 'type': 'yarn'}, 'attention_bias': false, 'rms_norm_eps': 1e-06, "  \
        "'q_lora_rank': " #q_rank ", 'kv_lora_rank': " #kv_rank ", 'qk_nope_head_dim': " #nope                         \
        ", 'qk_rope_head_dim': " #rope ", 'v_head_dim': " #value ", 'moe_intermediate_size': " #width                  \
        ", 'moe_layer_freq': 1, 'n_routed_experts': " #experts ", 'n_shared_experts': 1, 'num_experts_per_tok': " #top \
        ", 'n_group': " #groups ", 'topk_group': " #top_groups ", 'topk_method': 'noaux_tc', 'norm_topk_prob': true, " \
        "'scoring_func': 'sigmoid', 'routed_scaling_factor': 2.5, 'first_k_dense_replace': " #dense ", " UNTIED
#define DEEPSEEK_TEXT                                                                                                  \
    .begins_text = true,                                                                                               \
    .begin = {0, "<\xef\xbd\x9c"                                                                                       \
                 "begin\xe2\x96\x81of\xe2\x96\x81sentence\xef\xbd\x9c>"},                                              \
    .end = {1, "<\xef\xbd\x9c"                                                                                         \
               "end\xe2\x96\x81of\xe2\x96\x81sentence\xef\xbd\x9c>"}

/* clang-format off */
static const pst_shape shapes[] = {
    /* tiny...: not published: every feature of a family at a size that is written in a blink. */
    {.name = "tiny", .family = "llama", .layers = 4, .deviation = 0.1f, TINY_TEXT,
     .config = LLAMA(ENDS(509, 510), WIDTHS(64, 176, 4, 2, 1024, 512),
                     ROPE_LLAMA3(4.0, 256) THETA(10000.0) "'head_dim': 32, ", UNTIED)},
    {.name = "tiny-opt", .family = "opt", .layers = 4, .deviation = 0.1f, TINY_TEXT,
     .config = OPT(ENDS(509, 510), 96, 272, 6, 1024, 512)},
    {.name = "tiny-bloom", .family = "bloom", .layers = 4, .deviation = 0.1f, BLOOM_TEXT,
     .config = BLOOM(96, 6, 1024, 512)},
    {.name = "tiny-gpt2", .family = "gpt2", .layers = 4, .deviation = 0.1f, TINY_TEXT,
     .config = GPT2(ENDS(509, 510), 96, 6, 1024, 512)},
    {.name = "tiny-mixtral", .family = "mixtral", .layers = 4, .deviation = 0.1f, TINY_TEXT,
     .config = MIXTRAL(ENDS(509, 510), WIDTHS(64, 112, 4, 2, 1024, 512), 8, 2)},
    {.name = "tiny-qwen3-moe", .family = "qwen3_moe", .layers = 4, .deviation = 0.1f, TINY_TEXT,
     .config = QWEN3_MOE(ENDS(509, 510), WIDTHS(64, 176, 4, 2, 1024, 512), 32, 48, 16, 4)},
    {.name = "tiny-deepseek", .family = "deepseek_v3", .layers = 4, .dtype = PST_F8_E4M3, .deviation = 0.1f, TINY_TEXT,
     .config = DEEPSEEK(ENDS(509, 510), WIDTHS(160, 272, 4, 4, 1024, 512), 48, 32, 32, 16, 32, 80, 16, 4, 4, 2, 1)},

    {.name = "llama3-8b", .family = "llama", .layers = 32, LLAMA3_TEXT,
     .config = LLAMA(ENDS(128000, 128001), WIDTHS(4096, 14336, 32, 8, 8192, 128256),
                     NO_SCALING THETA(500000.0), UNTIED)},
    {.name = "llama3-70b", .family = "llama", .layers = 80, LLAMA3_TEXT,
     .config = LLAMA(ENDS(128000, 128001), WIDTHS(8192, 28672, 64, 8, 8192, 128256),
                     NO_SCALING THETA(500000.0), UNTIED)},
    {.name = "llama3.1-8b", .family = "llama", .layers = 32, LLAMA3_TEXT,
     .config = LLAMA(ENDS(128000, 128001), WIDTHS(4096, 14336, 32, 8, 131072, 128256),
                     ROPE_LLAMA3(8.0, 8192) THETA(500000.0), UNTIED)},
    {.name = "llama3.2-1b", .family = "llama", .layers = 16, LLAMA3_TEXT,
     .config = LLAMA(ENDS(128000, 128001), WIDTHS(2048, 8192, 32, 8, 131072, 128256),
                     ROPE_LLAMA3(32.0, 8192) THETA(500000.0) "'head_dim': 64, ", TIED)},
    {.name = "llama2-7b", .family = "llama", .layers = 32, LLAMA2_TEXT,
     .config = LLAMA(ENDS(1, 2), WIDTHS(4096, 11008, 32, 32, 4096, 32000), NO_SCALING THETA(10000.0), UNTIED)},
    {.name = "mistral-7b", .family = "mistral", .layers = 32, LLAMA2_TEXT,
     .config = ARCHITECTURE("mistral", "MistralForCausalLM") ENDS(1, 2) WIDTHS(4096, 14336, 32, 8, 32768, 32000)
               NO_SCALING THETA(10000.0) COMMON "'rms_norm_eps': 1e-05, 'sliding_window': 4096, " UNTIED},
    {.name = "qwen2-7b", .family = "qwen2", .layers = 28, QWEN2_TEXT,
     .config = ARCHITECTURE("qwen2", "Qwen2ForCausalLM") ENDS(151643, 151643)
               WIDTHS(3584, 18944, 28, 4, 131072, 152064) NO_SCALING THETA(1000000.0) COMMON
               "'rms_norm_eps': 1e-06, 'max_window_layers': 28, 'sliding_window': 131072, "
               "'use_sliding_window': false, " UNTIED},
    {.name = "qwen3-8b", .family = "qwen3", .layers = 36, QWEN3_TEXT,
     .config = ARCHITECTURE("qwen3", "Qwen3ForCausalLM") ENDS(151643, 151645)
               WIDTHS(4096, 12288, 32, 8, 40960, 151936) NO_SCALING THETA(1000000.0) COMMON
               "'rms_norm_eps': 1e-06, 'attention_bias': false, 'head_dim': 128, 'max_window_layers': 36, "
               "'sliding_window': null, 'use_sliding_window': false, " UNTIED},

    {.name = "opt-1.3b", .family = "opt", .layers = 24, OPT_TEXT, .config = OPT(ENDS(2, 2), 2048, 8192, 32, 2048, 50272)},
    {.name = "opt-30b", .family = "opt", .layers = 48, OPT_TEXT, .config = OPT(ENDS(2, 2), 7168, 28672, 56, 2048, 50272)},
    {.name = "opt-66b", .family = "opt", .layers = 64, OPT_TEXT, .config = OPT(ENDS(2, 2), 9216, 36864, 72, 2048, 50272)},
    {.name = "opt-175b", .family = "opt", .layers = 96, OPT_TEXT,
     .config = OPT(ENDS(2, 2), 12288, 49152, 96, 2048, 50272)},
    {.name = "bloom-176b", .family = "bloom", .layers = 70, BLOOM_TEXT, .config = BLOOM(14336, 112, 2048, 250880)},
    {.name = "gpt2-xl", .family = "gpt2", .layers = 48, .begin = {50256, "<|endoftext|>"},
     .end = {50256, "<|endoftext|>"}, .config = GPT2(ENDS(50256, 50256), 1600, 25, 1024, 50257)},
    {.name = "mixtral-8x7b", .family = "mixtral", .layers = 32, LLAMA2_TEXT,
     .config = MIXTRAL(ENDS(1, 2), WIDTHS(4096, 14336, 32, 8, 32768, 32000), 8, 2)},
    {.name = "mixtral-8x22b", .family = "mixtral", .layers = 56, LLAMA2_TEXT,
     .config = MIXTRAL(ENDS(1, 2), WIDTHS(6144, 16384, 48, 8, 65536, 32000), 8, 2)},
    {.name = "qwen3-30b-a3b", .family = "qwen3_moe", .layers = 48, QWEN3_TEXT,
     .config = QWEN3_MOE(ENDS(151643, 151645), WIDTHS(2048, 6144, 32, 4, 40960, 151936), 128, 768, 128, 8)},
    {.name = "qwen3-235b-a22b", .family = "qwen3_moe", .layers = 94, QWEN3_TEXT,
     .config = QWEN3_MOE(ENDS(151643, 151645), WIDTHS(4096, 12288, 64, 4, 40960, 151936), 128, 1536, 128, 8)},
    {.name = "deepseek-r1", .family = "deepseek_v3", .layers = 61, .dtype = PST_F8_E4M3, DEEPSEEK_TEXT,
     .config = DEEPSEEK(ENDS(0, 1), WIDTHS(7168, 18432, 128, 128, 163840, 129280), 1536, 512, 128, 64, 128, 2048, 256,
                        8, 8, 4, 3)},
    /* Not published: 15 trillion parameters, the size that a planner must still be right about. */
    {.name = "huge-15t", .family = "llama", .layers = 280, LLAMA3_TEXT,
     .config = LLAMA(ENDS(128000, 128001), WIDTHS(65536, 229376, 512, 16, 131072, 128256),
                     NO_SCALING THETA(500000.0), UNTIED)},
};
/* clang-format on */

enum { SHAPES = sizeof shapes / sizeof shapes[0] };

const pst_shape *pst_shape_at(size_t index)
{
    for (size_t i = 0; i < SHAPES; i++)
        if (pst_family_find(shapes[i].family) != NULL && index-- == 0)
            return &shapes[i];
    return NULL;
}

const pst_shape *pst_shape_find(const char *name)
{
    const pst_shape *shape;
    for (size_t i = 0; (shape = pst_shape_at(i)) != NULL; i++)
        if (strcmp(shape->name, name) == 0)
            return shape;
    return NULL;
}

const char *const *pst_synth_shape_names(void)
{
    static const char *names[SHAPES + 1];
    const pst_shape *shape;
    /* Threads that meet here write the same pointers. */
    for (size_t i = 0; (shape = pst_shape_at(i)) != NULL; i++)
        __atomic_store_n(&names[i], shape->name, __ATOMIC_RELAXED);
    return names;
}

char *pst_shape_list(char *text, size_t text_bytes)
{
    size_t used = 0;
    const pst_shape *shape;
    text[0] = '\0';
    for (size_t i = 0; (shape = pst_shape_at(i)) != NULL && used < text_bytes; i++)
        used += (size_t)snprintf(text + used, text_bytes - used, "%s%s", i ? ", " : "", shape->name);
    return text;
}
