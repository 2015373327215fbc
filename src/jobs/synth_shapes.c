/* SPDX-License-Identifier: Apache-2.0 */
/* The table of shapes (figures of the published config.json files) and the tensors that follow from a row. */
#include "jobs/synth_shapes.h"

#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "penstock/jobs.h"
#include "store/safetensors.h"

#define LLAMA_FAMILY .model_type = "llama", .architecture = "LlamaForCausalLM", .rms_norm_eps = "1e-05"
#define LLAMA        LLAMA_FAMILY, .deviation = 0.02f
#define MISTRAL                                                                                                        \
    .model_type = "mistral", .architecture = "MistralForCausalLM", .rms_norm_eps = "1e-05", .deviation = 0.02f
#define QWEN2                                                                                                          \
    .model_type = "qwen2", .architecture = "Qwen2ForCausalLM", .rms_norm_eps = "1e-06", .deviation = 0.02f,            \
    .qkv_bias = true
#define QWEN3                                                                                                          \
    .model_type = "qwen3", .architecture = "Qwen3ForCausalLM", .rms_norm_eps = "1e-06", .deviation = 0.02f,            \
    .qk_norm = true
#define LLAMA3_TEXT  .begins_text = true, .begin = {128000, "<|begin_of_text|>"}, .end = {128001, "<|end_of_text|>"}
#define LLAMA2_TEXT  .begins_text = true, .begin = {1, "<s>"}, .end = {2, "</s>"}
#define LLAMA_CONFIG "  \"attention_bias\": false,\n  \"mlp_bias\": false,\n  \"pretraining_tp\": 1,\n"

/* clang-format off */
static const pst_shape shapes[] = {
    /* Not published: every feature of the family at a size that is written in a blink. */
    {.name = "tiny", LLAMA_FAMILY, .layers = 4, .hidden = 64, .intermediate = 176, .heads = 4, .kv_heads = 2,
     .head_dim = 32, .vocab = 512, .context = 1024, .rope_theta = 10000, .rope = {4, 1, 4, 256}, .deviation = 0.1f,
     .begins_text = true, .begin = {509, "<|begin_of_text|>"}, .end = {510, "<|end_of_text|>"},
     .config = LLAMA_CONFIG "  \"head_dim\": 32,\n"},
    {.name = "llama3-8b", LLAMA, .layers = 32, .hidden = 4096, .intermediate = 14336, .heads = 32, .kv_heads = 8,
     .head_dim = 128, .vocab = 128256, .context = 8192, .rope_theta = 500000, LLAMA3_TEXT,
     .config = LLAMA_CONFIG},
    {.name = "llama3-70b", LLAMA, .layers = 80, .hidden = 8192, .intermediate = 28672, .heads = 64, .kv_heads = 8,
     .head_dim = 128, .vocab = 128256, .context = 8192, .rope_theta = 500000, LLAMA3_TEXT,
     .config = LLAMA_CONFIG},
    {.name = "llama3.1-8b", LLAMA, .layers = 32, .hidden = 4096, .intermediate = 14336, .heads = 32, .kv_heads = 8,
     .head_dim = 128, .vocab = 128256, .context = 131072, .rope_theta = 500000, .rope = {8, 1, 4, 8192}, LLAMA3_TEXT,
     .config = LLAMA_CONFIG},
    {.name = "llama3.2-1b", LLAMA, .layers = 16, .hidden = 2048, .intermediate = 8192, .heads = 32, .kv_heads = 8,
     .head_dim = 64, .vocab = 128256, .context = 131072, .rope_theta = 500000, .rope = {32, 1, 4, 8192}, LLAMA3_TEXT,
     .tied = true, .config = LLAMA_CONFIG "  \"head_dim\": 64,\n"},
    {.name = "llama2-7b", LLAMA, .layers = 32, .hidden = 4096, .intermediate = 11008, .heads = 32, .kv_heads = 32,
     .head_dim = 128, .vocab = 32000, .context = 4096, .rope_theta = 10000, LLAMA2_TEXT, .config = LLAMA_CONFIG},
    {.name = "mistral-7b", MISTRAL, .layers = 32, .hidden = 4096, .intermediate = 14336, .heads = 32, .kv_heads = 8,
     .head_dim = 128, .vocab = 32000, .context = 32768, .rope_theta = 10000, LLAMA2_TEXT,
     .config = "  \"sliding_window\": 4096,\n"},
    {.name = "qwen2-7b", QWEN2, .layers = 28, .hidden = 3584, .intermediate = 18944, .heads = 28, .kv_heads = 4,
     .head_dim = 128, .vocab = 152064, .context = 131072, .rope_theta = 1000000,
     .begin = {151643, "<|endoftext|>"}, .end = {151643, "<|endoftext|>"},
     .config = "  \"max_window_layers\": 28,\n  \"sliding_window\": 131072,\n"
               "  \"use_sliding_window\": false,\n"},
    {.name = "qwen3-8b", QWEN3, .layers = 36, .hidden = 4096, .intermediate = 12288, .heads = 32, .kv_heads = 8,
     .head_dim = 128, .vocab = 151936, .context = 40960, .rope_theta = 1000000,
     .begin = {151643, "<|endoftext|>"}, .end = {151645, "<|im_end|>"},
     .config = "  \"attention_bias\": false,\n  \"head_dim\": 128,\n  \"max_window_layers\": 36,\n"
               "  \"sliding_window\": null,\n  \"use_sliding_window\": false,\n"},
};
/* clang-format on */

enum { SHAPES = sizeof shapes / sizeof shapes[0] };

const pst_shape *pst_shape_find(const char *name)
{
    for (size_t i = 0; i < SHAPES; i++)
        if (strcmp(shapes[i].name, name) == 0)
            return &shapes[i];
    return NULL;
}

const char *const *pst_synth_shape_names(void)
{
    static const char *names[SHAPES + 1];
    /* Threads that meet here write the same pointers. */
    for (size_t i = 0; i < SHAPES; i++)
        __atomic_store_n(&names[i], shapes[i].name, __ATOMIC_RELAXED);
    return names;
}

char *pst_shape_list(char *text, size_t text_bytes)
{
    size_t used = 0;
    text[0] = '\0';
    for (size_t i = 0; i < SHAPES && used < text_bytes; i++)
        used += (size_t)snprintf(text + used, text_bytes - used, "%s%s", i ? ", " : "", shapes[i].name);
    return text;
}

/* ---- tensors ---- */

enum { NAME_BYTES = 64, PER_LAYER = 14, OUTSIDE_LAYERS = 3 };

/* Appends a tensor; columns 0: a vector. */
static void add(pst_shape_tensors *out, pst_dtype dtype, const char *name, uint64_t rows, uint64_t columns)
{
    pst_tensor *tensor = &out->tensors[out->count];
    char *copy = out->names + out->count * NAME_BYTES;
    snprintf(copy, NAME_BYTES, "%s", name);
    *tensor = (pst_tensor){.name = copy, .dtype = dtype, .rank = columns ? 2 : 1, .shape = {rows, columns}};
    pst_tensor_shape_bytes(dtype, tensor->shape, tensor->rank, &tensor->bytes); /* far below 2^64 */
    out->count++;
    out->data_bytes += tensor->bytes;
    out->elements += rows * (columns ? columns : 1);
}

static void add_layer(pst_shape_tensors *out, const pst_shape *s, pst_dtype dtype, uint32_t layer)
{
    uint64_t q = (uint64_t)s->heads * s->head_dim, kv = (uint64_t)s->kv_heads * s->head_dim;
    const struct {
        const char *name;
        uint64_t rows, columns;
        bool there;
    } list[PER_LAYER] = {
        {"input_layernorm.weight", s->hidden, 0, true},
        {"self_attn.q_proj.weight", q, s->hidden, true},
        {"self_attn.k_proj.weight", kv, s->hidden, true},
        {"self_attn.v_proj.weight", kv, s->hidden, true},
        {"self_attn.q_proj.bias", q, 0, s->qkv_bias},
        {"self_attn.k_proj.bias", kv, 0, s->qkv_bias},
        {"self_attn.v_proj.bias", kv, 0, s->qkv_bias},
        {"self_attn.q_norm.weight", s->head_dim, 0, s->qk_norm},
        {"self_attn.k_norm.weight", s->head_dim, 0, s->qk_norm},
        {"self_attn.o_proj.weight", s->hidden, q, true},
        {"post_attention_layernorm.weight", s->hidden, 0, true},
        {"mlp.gate_proj.weight", s->intermediate, s->hidden, true},
        {"mlp.up_proj.weight", s->intermediate, s->hidden, true},
        {"mlp.down_proj.weight", s->hidden, s->intermediate, true},
    };
    for (size_t i = 0; i < PER_LAYER; i++) {
        char name[NAME_BYTES];
        snprintf(name, sizeof name, "model.layers.%u.%s", layer, list[i].name);
        if (list[i].there)
            add(out, dtype, name, list[i].rows, list[i].columns);
    }
}

int pst_shape_tensors_make(const pst_shape *shape, uint32_t layers, pst_dtype dtype, pst_shape_tensors *out,
                           pst_error *err)
{
    size_t most = (size_t)layers * PER_LAYER + OUTSIDE_LAYERS;
    pst_shape_tensors made = {.tensors = pst_heap_calloc(most, sizeof *made.tensors),
                              .names = pst_heap_calloc(most, NAME_BYTES)};
    if (made.tensors == NULL || made.names == NULL) {
        pst_shape_tensors_free(&made);
        return pst_fail_memory(err, "a table of tensors", most * (sizeof *made.tensors + NAME_BYTES));
    }
    add(&made, dtype, "model.embed_tokens.weight", shape->vocab, shape->hidden);
    for (uint32_t layer = 0; layer < layers; layer++)
        add_layer(&made, shape, dtype, layer);
    add(&made, dtype, "model.norm.weight", shape->hidden, 0);
    if (!shape->tied)
        add(&made, dtype, "lm_head.weight", shape->vocab, shape->hidden);
    *out = made;
    return 0;
}

void pst_shape_tensors_free(pst_shape_tensors *tensors)
{
    pst_heap_free(tensors->tensors);
    pst_heap_free(tensors->names);
    *tensors = (pst_shape_tensors){0};
}
