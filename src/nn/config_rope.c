/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rotary parameters of config.json, in both spellings: `rope_scaling` with `rope_theta` beside it (before version 5 of
 * transformers; its type under "rope_type" or, older, "type"), and `rope_parameters` with everything inside.
 */
#include <math.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "nn/family.h"

typedef pst_config_reader reader;

static const struct {
    const char *name;
    pst_rope_type type;
} types[] = {{"default", PST_ROPE_DEFAULT}, {"linear", PST_ROPE_LINEAR},   {"llama3", PST_ROPE_LLAMA3},
             {"yarn", PST_ROPE_YARN},       {"dynamic", PST_ROPE_DYNAMIC}, {"longrope", PST_ROPE_LONGROPE}};

static int read_type(const reader *in, const json_t *dictionary, pst_rope *rope)
{
    const char *name = "default";
    PST_TRY(pst_json_string(dictionary, "type", false, &name, in->path, in->err));
    PST_TRY(pst_json_string(dictionary, "rope_type", false, &name, in->path, in->err));
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        if (strcmp(types[i].name, name) == 0) {
            rope->type = types[i].type;
            return 0;
        }
    }
    return pst_fail(
        in->err, PST_E_UNSUPPORTED, in->path,
        "rotary scaling of type \"%s\" is not supported (default, linear, llama3, yarn, dynamic and longrope "
        "are)",
        name);
}

/* A number that transformers may find absent, null or 0 and then takes a default for. */
static int read_optional(const json_t *dictionary, const reader *in, const char *key, double *out)
{
    double value = 0;
    if (!json_is_null(json_object_get(dictionary, key)))
        PST_TRY(pst_json_double(dictionary, key, false, &value, in->path, in->err));
    *out = value != 0 ? value : *out;
    return 0;
}

/* Some configurations have the original context beside the dictionary, which then counts. */
static int read_original_context(const reader *in, const json_t *dictionary, pst_transformer *t)
{
    t->rope.original_context = t->context;
    PST_TRY(read_optional(dictionary, in, "original_max_position_embeddings", &t->rope.original_context));
    PST_TRY(read_optional(in->root, in, "original_max_position_embeddings", &t->rope.original_context));
    if (t->rope.original_context >= 1 && t->rope.original_context <= UINT32_MAX)
        return 0;
    return pst_fail(in->err, PST_E_FORMAT, in->path, "rotary scaling from an original context of %g positions",
                    t->rope.original_context);
}

static int read_llama3(const reader *in, const json_t *dictionary, pst_rope *rope)
{
    PST_TRY(pst_json_double(dictionary, "low_freq_factor", true, &rope->low_freq_factor, in->path, in->err));
    PST_TRY(pst_json_double(dictionary, "high_freq_factor", true, &rope->high_freq_factor, in->path, in->err));
    if (rope->low_freq_factor > 0 && rope->high_freq_factor > rope->low_freq_factor)
        return 0;
    return pst_fail(in->err, PST_E_FORMAT, in->path, "llama3 rotary scaling with factors %g to %g over %g positions",
                    rope->low_freq_factor, rope->high_freq_factor, rope->original_context);
}

/* How much attention is sharpened for a context stretched so much (arXiv 2309.00071, section 3.4). */
static double sharpening(double factor, double scale)
{
    return factor <= 1 ? 1 : 0.1 * scale * log(factor) + 1;
}

static int read_yarn(const reader *in, const json_t *dictionary, pst_rope *rope)
{
    double mscale = 0, attention = 0;
    rope->beta_fast = 32;
    rope->beta_slow = 1;
    rope->truncate = true;
    PST_TRY(read_optional(dictionary, in, "beta_fast", &rope->beta_fast));
    PST_TRY(read_optional(dictionary, in, "beta_slow", &rope->beta_slow));
    PST_TRY(read_optional(dictionary, in, "mscale", &mscale));
    PST_TRY(read_optional(dictionary, in, "mscale_all_dim", &rope->mscale_all_dim));
    PST_TRY(read_optional(dictionary, in, "attention_factor", &attention));
    PST_TRY(pst_json_bool(dictionary, "truncate", false, &rope->truncate, in->path, in->err));
    if (!(rope->beta_slow > 0 && rope->beta_fast >= rope->beta_slow && attention >= 0))
        return pst_fail(in->err, PST_E_FORMAT, in->path, "yarn rotary scaling with betas %g and %g", rope->beta_fast,
                        rope->beta_slow);
    if (!(rope->theta > 1))
        return pst_fail(in->err, PST_E_FORMAT, in->path, "yarn rotary scaling of a \"rope_theta\" of %g", rope->theta);
    rope->attention_factor = sharpening(rope->factor, 1);
    if (mscale != 0 && rope->mscale_all_dim != 0)
        rope->attention_factor = sharpening(rope->factor, mscale) / sharpening(rope->factor, rope->mscale_all_dim);
    rope->attention_factor = attention != 0 ? attention : rope->attention_factor;
    return 0;
}

static int read_factors(const reader *in, const json_t *dictionary, const char *key, uint32_t count, double **out)
{
    json_t *list = NULL;
    PST_TRY(pst_json_array((json_t *)dictionary, key, true, &list, in->path, in->err));
    if (json_array_size(list) != count)
        return pst_fail(in->err, PST_E_FORMAT, in->path, "\"%s\" has %zu numbers for %u pairs", key,
                        json_array_size(list), count);
    *out = pst_heap_calloc(count, sizeof **out);
    if (*out == NULL)
        return pst_fail_memory(in->err, "rotary factors", count * sizeof **out);
    for (uint32_t i = 0; i < count; i++) {
        (*out)[i] = json_number_value(json_array_get(list, i)); /* 0 for what is no number */
        if (!((*out)[i] > 0))
            return pst_fail(in->err, PST_E_FORMAT, in->path, "number %u of \"%s\" is not above 0", i + 1, key);
    }
    return 0;
}

static int read_longrope(const reader *in, const json_t *dictionary, pst_rope *rope)
{
    double attention = 0;
    PST_TRY(read_factors(in, dictionary, "short_factor", rope->rotary / 2, &rope->short_factors));
    PST_TRY(read_factors(in, dictionary, "long_factor", rope->rotary / 2, &rope->long_factors));
    PST_TRY(read_optional(dictionary, in, "attention_factor", &attention));
    if (attention < 0)
        return pst_fail(in->err, PST_E_FORMAT, in->path, "an \"attention_factor\" of %g", attention);
    if (rope->factor > 1 && rope->original_context > 1)
        rope->attention_factor = sqrt(1 + log(rope->factor) / log(rope->original_context));
    rope->attention_factor = attention != 0 ? attention : rope->attention_factor;
    return 0;
}

/* The context that scaling gives, where max_position_embeddings still is the original one or something between. */
static void extend_context(pst_transformer *t)
{
    double context = t->rope.original_context * t->rope.factor;
    if (context > t->context)
        t->context = context < UINT32_MAX / 2 ? (uint32_t)context : UINT32_MAX / 2;
}

/* The numbers that a type needs. */
static int read_scaling(const reader *in, const json_t *dictionary, pst_transformer *t)
{
    pst_rope *rope = &t->rope;
    bool derives_factor = rope->type == PST_ROPE_YARN || rope->type == PST_ROPE_LONGROPE;
    PST_TRY(read_original_context(in, dictionary, t));
    rope->factor = derives_factor ? t->context / rope->original_context : 0;
    PST_TRY(read_optional(dictionary, in, "factor", &rope->factor));
    if (!(rope->factor > 0))
        return pst_fail(in->err, PST_E_FORMAT, in->path, "a rotary \"factor\" of %g", rope->factor);
    switch (rope->type) {
    case PST_ROPE_LLAMA3: return read_llama3(in, dictionary, rope);
    case PST_ROPE_YARN:
        if (rope->original_context < t->context || json_object_get(dictionary, "original_max_position_embeddings"))
            extend_context(t);
        return read_yarn(in, dictionary, rope);
    case PST_ROPE_LONGROPE: return read_longrope(in, dictionary, rope);
    case PST_ROPE_DYNAMIC: /* grows with the sequence, from the context that the model was made for */
        rope->original_context = t->context;
        extend_context(t);
        return 0;
    default: return 0;
    }
}

int pst_config_rope(const reader *in, uint32_t head_dim, pst_transformer *t)
{
    pst_rope *rope = &t->rope;
    rope->theta = t->family->default_rope_theta > 0 ? t->family->default_rope_theta : 10000;
    rope->attention_factor = 1;
    double partial = 1;
    PST_TRY(pst_json_double(in->root, "rope_theta", false, &rope->theta, in->path, in->err));
    PST_TRY(pst_json_double(in->root, "partial_rotary_factor", false, &partial, in->path, in->err));
    json_t *dictionary = NULL;
    PST_TRY(pst_json_object(in->root, "rope_scaling", false, &dictionary, in->path, in->err));
    if (dictionary == NULL || json_object_size(dictionary) == 0)
        PST_TRY(pst_json_object(in->root, "rope_parameters", false, &dictionary, in->path, in->err));
    if (dictionary != NULL) {
        PST_TRY(read_type(in, dictionary, rope));
        PST_TRY(pst_json_double(dictionary, "rope_theta", false, &rope->theta, in->path, in->err));
        PST_TRY(pst_json_double(dictionary, "partial_rotary_factor", false, &partial, in->path, in->err));
    }
    if (!(rope->theta > 0))
        return pst_fail(in->err, PST_E_FORMAT, in->path, "\"rope_theta\" is %g", rope->theta);
    if (!(partial > 0 && partial <= 1))
        return pst_fail(in->err, PST_E_FORMAT, in->path, "\"partial_rotary_factor\" is %g", partial);
    rope->rotary = (uint32_t)(head_dim * partial);
    if (rope->rotary == 0 || rope->rotary % 2 != 0)
        return pst_fail(in->err, PST_E_FORMAT, in->path,
                        "rotary embedding of %u elements of a head (\"head_dim\" is %u): it needs an even number",
                        rope->rotary, head_dim);
    return rope->type == PST_ROPE_DEFAULT ? 0 : read_scaling(in, dictionary, t);
}
