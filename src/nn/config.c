/* SPDX-License-Identifier: Apache-2.0 */
/* Reads config.json as transformers does; the rotary parameters are config_rope.c's. */
#include "nn/config.h"

#include <math.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/json.h"
#include "nn/family.h"
#include "nn/quantization.h"

enum { MAX_END_IDS = 4096 };

typedef pst_config_reader reader;

int pst_config_u32(const reader *in, const char *key, uint64_t fallback, uint64_t min, uint64_t max, uint32_t *out)
{
    uint64_t value = fallback;
    PST_TRY(pst_json_u64(in->root, key, fallback == 0, min, max, &value, in->path, in->err));
    *out = (uint32_t)value;
    return 0;
}

/* Of a key that latent attention caches and of one that it does not, together a head's dimension. */
static int read_latent(const reader *in, pst_transformer *t)
{
    pst_latent *latent = &t->latent;
    uint64_t rank = 1536;
    PST_TRY(pst_config_u32(in, "kv_lora_rank", 512, 1, PST_MAX_HEAD_DIM, &latent->kv_lora_rank));
    PST_TRY(pst_config_u32(in, "qk_nope_head_dim", 128, 1, PST_MAX_HEAD_DIM / 2, &latent->nope_dim));
    PST_TRY(pst_config_u32(in, "qk_rope_head_dim", 64, 1, PST_MAX_HEAD_DIM / 2, &latent->rope_dim));
    PST_TRY(pst_config_u32(in, "v_head_dim", 128, 1, PST_MAX_HEAD_DIM, &latent->value_dim));
    PST_TRY(pst_json_u64(in->root, "q_lora_rank", false, 1, PST_MAX_DIMENSION, &rank, in->path, in->err));
    latent->q_lora_rank = json_is_null(json_object_get(in->root, "q_lora_rank")) ? 0 : (uint32_t)rank;
    t->head_dim = latent->nope_dim + latent->rope_dim;
    return 0;
}

static int read_head_dim(const reader *in, pst_transformer *t)
{
    if (t->family->latent)
        return read_latent(in, t);
    uint32_t dim_default = t->family->default_head_dim ? t->family->default_head_dim : t->hidden / t->heads;
    return pst_config_u32(in, "head_dim", dim_default ? dim_default : 1, 1, PST_MAX_HEAD_DIM, &t->head_dim);
}

static int read_dimensions(const reader *in, pst_transformer *t)
{
    const pst_family *family = t->family;
    PST_TRY(pst_config_u32(in, "vocab_size", 0, 1, PST_MAX_DIMENSION, &t->vocab));
    PST_TRY(pst_config_u32(in, "hidden_size", 0, 1, PST_MAX_DIMENSION, &t->hidden));
    PST_TRY(pst_config_u32(in, "intermediate_size", 0, 1, PST_MAX_DIMENSION, &t->intermediate));
    PST_TRY(pst_config_u32(in, "num_hidden_layers", 0, 1, PST_MAX_LAYERS, &t->layers));
    PST_TRY(pst_config_u32(in, "num_attention_heads", 0, 1, PST_MAX_HEADS, &t->heads));
    bool kv_is_null = json_is_null(json_object_get(in->root, "num_key_value_heads"));
    uint32_t kv_default = family->default_kv_heads && !kv_is_null ? family->default_kv_heads : t->heads;
    PST_TRY(pst_config_u32(in, "num_key_value_heads", kv_default, 1, PST_MAX_HEADS, &t->kv_heads));
    if (t->heads % t->kv_heads != 0)
        return pst_fail(in->err, PST_E_FORMAT, in->path, "%u attention heads cannot share %u key/value heads", t->heads,
                        t->kv_heads);
    PST_TRY(read_head_dim(in, t));
    return pst_config_u32(in, "max_position_embeddings", family->default_context, 1, UINT32_MAX / 2, &t->context);
}

int pst_config_activation(const reader *in, const char *key, const char *fallback, pst_activation *out)
{
    static const struct {
        const char *name;
        pst_activation activation;
    } names[] = {{"silu", PST_ACT_SILU},          {"swish", PST_ACT_SILU},
                 {"gelu", PST_ACT_GELU},          {"gelu_pytorch_tanh", PST_ACT_GELU_TANH},
                 {"gelu_python", PST_ACT_GELU},   {"gelu_accurate", PST_ACT_GELU_TANH},
                 {"gelu_new", PST_ACT_GELU_TANH}, {"gelu_fast", PST_ACT_GELU_TANH},
                 {"relu", PST_ACT_RELU}};
    const char *name = fallback ? fallback : "silu";
    PST_TRY(pst_json_string(in->root, key, false, &name, in->path, in->err));
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (strcmp(names[i].name, name) == 0) {
            *out = names[i].activation;
            return 0;
        }
    }
    return pst_fail(in->err, PST_E_UNSUPPORTED, in->path, "activation \"%s\" is not supported", name);
}

int pst_config_eps(const reader *in, const char *key, double fallback, pst_transformer *t)
{
    double eps = fallback;
    PST_TRY(pst_json_double(in->root, key, false, &eps, in->path, in->err));
    if (!(eps >= 0 && eps <= 1))
        return pst_fail(in->err, PST_E_FORMAT, in->path, "\"%s\" is %g", key, eps);
    t->norm_eps = (float)eps;
    return 0;
}

int pst_config_tied(const reader *in, bool fallback, pst_transformer *t)
{
    t->tied_head = fallback;
    int status = pst_json_bool(in->root, "tie_word_embeddings", false, &t->tied_head, in->path, in->err);
    t->tied_stated = status == 0;
    return status < 0 ? status : 0;
}

int pst_config_even_heads(const reader *in, pst_transformer *t)
{
    t->kv_heads = t->heads;
    t->head_dim = t->hidden / t->heads;
    if (t->hidden % t->heads != 0 || t->head_dim > PST_MAX_HEAD_DIM)
        return pst_fail(in->err, PST_E_FORMAT, in->path, "%u attention heads cannot share a width of %u", t->heads,
                        t->hidden);
    return 0;
}

static int read_switches(const reader *in, pst_transformer *t)
{
    PST_TRY(pst_config_eps(in, "rms_norm_eps", 1e-6, t));
    bool attention_bias = false;
    PST_TRY(pst_json_bool(in->root, "attention_bias", false, &attention_bias, in->path, in->err));
    if (t->family->mlp_bias)
        PST_TRY(pst_json_bool(in->root, "mlp_bias", false, &t->mlp_bias, in->path, in->err));
    t->qkv_bias = t->family->bias == PST_BIAS_QKV || (t->family->bias == PST_BIAS_CONFIG && attention_bias);
    t->o_bias = t->family->bias == PST_BIAS_CONFIG && attention_bias;
    t->qk_norm = t->family->qk_norm;
    return pst_config_tied(in, false, t);
}

/* Which layers look at a window only: layer_types, else the layers from max_window_layers on. */
static int read_windowed_layers(const reader *in, pst_transformer *t)
{
    json_t *types = NULL;
    PST_TRY(pst_json_array(in->root, "layer_types", false, &types, in->path, in->err));
    if (types == NULL) {
        uint64_t first = 28; /* transformers' default for Qwen */
        PST_TRY(pst_json_u64(in->root, "max_window_layers", false, 0, UINT32_MAX, &first, in->path, in->err));
        for (uint32_t layer = 0; layer < t->layers; layer++)
            t->windowed[layer] = layer >= first;
        return 0;
    }
    if (json_array_size(types) != t->layers)
        return pst_fail(in->err, PST_E_FORMAT, in->path, "\"layer_types\" names %zu layers of %u",
                        json_array_size(types), t->layers);
    for (uint32_t layer = 0; layer < t->layers; layer++) {
        const char *type = json_string_value(json_array_get(types, layer));
        t->windowed[layer] = type != NULL && strcmp(type, "sliding_attention") == 0;
        if (type == NULL || (!t->windowed[layer] && strcmp(type, "full_attention") != 0))
            return pst_fail(in->err, PST_E_UNSUPPORTED, in->path, "layer %u has an unknown type in \"layer_types\"",
                            layer);
    }
    return 0;
}

/* No layer looks at a window. */
static int make_windows(const reader *in, pst_transformer *t)
{
    t->windowed = pst_heap_calloc(t->layers, sizeof *t->windowed);
    return t->windowed != NULL ? 0 : pst_fail_memory(in->err, "the layers", t->layers);
}

static int read_windows(const reader *in, pst_transformer *t)
{
    PST_TRY(make_windows(in, t));
    pst_window_rule rule = t->family->window;
    bool use = rule == PST_WINDOW_ALL;
    if (rule == PST_WINDOW_LAYERS || rule == PST_WINDOW_SWITCHED)
        PST_TRY(pst_json_bool(in->root, "use_sliding_window", false, &use, in->path, in->err));
    const json_t *window = json_object_get(in->root, "sliding_window");
    if (!use || json_is_null(window) || (window == NULL && t->family->default_window == 0))
        return 0;
    PST_TRY(pst_config_u32(in, "sliding_window", t->family->default_window, 1, UINT32_MAX / 2, &t->window));
    if (rule == PST_WINDOW_LAYERS)
        return read_windowed_layers(in, t);
    for (uint32_t layer = 0; layer < t->layers; layer++)
        t->windowed[layer] = true;
    return 0;
}

/* eos_token_id: a number or a list; replaces what was read before. Absent: nothing changes. */
static int read_end_ids(const reader *in, pst_transformer *t)
{
    const json_t *value = json_object_get(in->root, "eos_token_id");
    if (value == NULL || json_is_null(value))
        return 0;
    size_t count = json_is_array(value) ? json_array_size(value) : 1;
    if (count > MAX_END_IDS)
        return pst_fail(in->err, PST_E_FORMAT, in->path, "\"eos_token_id\" lists %zu tokens", count);
    uint32_t *ids = pst_heap_calloc(count, sizeof *ids);
    if (ids == NULL)
        return pst_fail_memory(in->err, "end tokens", count * sizeof *ids);
    for (size_t i = 0; i < count; i++) {
        const json_t *id = json_is_array(value) ? json_array_get(value, i) : value;
        json_int_t number = json_is_integer(id) ? json_integer_value(id) : -2;
        if (number < -1 || number > UINT32_MAX) {
            pst_heap_free(ids);
            return pst_fail(in->err, PST_E_FORMAT, in->path, "\"eos_token_id\" is not a token id or a list of them");
        }
        ids[i] = number < 0 ? UINT32_MAX : (uint32_t)number; /* -1: some folders' way to say none */
    }
    pst_heap_free(t->end_ids);
    t->end_ids = ids;
    t->end_count = count;
    return 0;
}

static int read_generation(const reader *in, pst_transformer *t)
{
    PST_TRY(read_end_ids(in, t));
    PST_TRY(pst_json_bool(in->root, "do_sample", false, &t->do_sample, in->path, in->err));
    PST_TRY(pst_json_double(in->root, "temperature", false, &t->temperature, in->path, in->err));
    PST_TRY(pst_json_double(in->root, "top_p", false, &t->top_p, in->path, in->err));
    PST_TRY(pst_json_double(in->root, "min_p", false, &t->min_p, in->path, in->err));
    uint64_t top_k = t->do_sample ? 50 : 0; /* what transformers assumes when it samples and nothing is said */
    PST_TRY(pst_json_u64(in->root, "top_k", false, 0, UINT32_MAX, &top_k, in->path, in->err));
    t->top_k = (uint32_t)top_k;
    if (t->temperature < 0 || t->top_p < 0 || t->top_p > 1 || t->min_p < 0 || t->min_p > 1)
        return pst_fail(in->err, PST_E_FORMAT, in->path, "sampling defaults out of range");
    return 0;
}

/* The keys of Llama and most that came after. */
static int read_common(const reader *in, pst_transformer *t)
{
    PST_TRY(read_dimensions(in, t));
    PST_TRY(pst_config_activation(in, "hidden_act", NULL, &t->activation));
    PST_TRY(read_switches(in, t));
    PST_TRY(pst_config_rope(in, t->family->latent ? t->latent.rope_dim : t->head_dim, t));
    PST_TRY(read_windows(in, t));
    if (t->family->read != NULL)
        PST_TRY(t->family->read(in, t));
    bool has_experts = false;
    for (uint32_t i = 0; t->sparse != NULL && i < t->layers; i++)
        has_experts = has_experts || t->sparse[i];
    if (!has_experts)
        t->experts = 0;
    return 0;
}

static int read_config(const reader *in, pst_transformer *t)
{
    if (!json_is_object(in->root))
        return pst_fail(in->err, PST_E_FORMAT, in->path, "is not a JSON object");
    const char *type;
    PST_TRY(pst_json_string(in->root, "model_type", true, &type, in->path, in->err));
    t->family = pst_family_find(type);
    if (t->family == NULL)
        return pst_fail(in->err, PST_E_UNSUPPORTED, in->path, "model family \"%s\" is not supported (supported: %s)",
                        type, pst_family_names());
    PST_TRY(pst_quantization_read(in, t));
    if (t->family->read_all != NULL)
        PST_TRY(t->family->read_all(in, t));
    else
        PST_TRY(read_common(in, t));
    if (t->windowed == NULL)
        PST_TRY(make_windows(in, t));
    if (t->embedding_dim == 0)
        t->embedding_dim = t->hidden;
    return read_end_ids(in, t);
}

int pst_transformer_parse(const char *config, size_t config_bytes, const char *config_path, const char *generation,
                          size_t generation_bytes, const char *generation_path, pst_transformer *out, pst_error *err)
{
    pst_transformer t = {.temperature = 1, .top_p = 1};
    json_t *document = NULL, *defaults = NULL;
    int status;
    PST_TRY_GOTO(done, pst_json_parse(config, config_bytes, config_path, &document, err));
    PST_TRY_GOTO(done, read_config(&(reader){document, config_path, err}, &t));
    if (generation != NULL) {
        PST_TRY_GOTO(done, pst_json_parse(generation, generation_bytes, generation_path, &defaults, err));
        if (!json_is_object(defaults))
            PST_TRY_GOTO(done, pst_fail(err, PST_E_FORMAT, generation_path, "is not a JSON object"));
        PST_TRY_GOTO(done, read_generation(&(reader){defaults, generation_path, err}, &t));
    }
    *out = t;
done:
    json_decref(document);
    json_decref(defaults);
    if (status < 0)
        pst_transformer_destroy(&t);
    return status;
}

void pst_transformer_destroy(pst_transformer *transformer)
{
    pst_heap_free(transformer->windowed);
    pst_heap_free(transformer->sparse);
    pst_heap_free(transformer->end_ids);
    pst_heap_free(transformer->rope.short_factors);
    pst_heap_free(transformer->rope.long_factors);
    *transformer = (pst_transformer){0};
}
