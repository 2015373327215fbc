/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The shapes that synth can write. A shape of a family that is here already is one more row of the table in
 * synth_shapes.c; everything else follows from the row.
 */
#ifndef PST_JOBS_SYNTH_SHAPES_H
#define PST_JOBS_SYNTH_SHAPES_H

#include <stdbool.h>

#include "penstock/types.h"
#include "store/store.h"

/* rope_scaling of type llama3; factor 0: none. */
typedef struct pst_rope_scaling {
    double factor, low, high;
    uint32_t original_context;
} pst_rope_scaling;

/* A special token; text NULL: none. */
typedef struct pst_special {
    uint32_t id;
    const char *text;
} pst_special;

typedef struct pst_shape {
    const char *name, *model_type, *architecture;
    uint32_t layers, hidden, intermediate, heads, kv_heads, head_dim, vocab, context;
    double rope_theta;
    const char *rms_norm_eps; /* as in config.json */
    float deviation;          /* standard deviation of the weights */
    pst_rope_scaling rope;
    bool qkv_bias;    /* Qwen2: q, k and v have biases */
    bool qk_norm;     /* Qwen3: norms over the head dimension of q and k */
    bool tied;        /* no lm_head.weight */
    bool begins_text; /* the tokenizer puts `begin` before every text */
    pst_special begin, end;
    const char *config; /* more lines of config.json, each with its comma at the end */
} pst_shape;

/* NULL when there is none of that name. */
const pst_shape *pst_shape_find(const char *name);
/* "tiny, llama3-8b, ..." into text; returns text. */
char *pst_shape_list(char *text, size_t text_bytes);

/* All tensors of a checkpoint in the order in which inference needs them. Owned: names, tensors;
 * pst_shape_tensors_free. */
typedef struct pst_shape_tensors {
    pst_tensor *tensors; /* name, dtype, rank, shape and bytes are set */
    size_t count;
    char *names;
    uint64_t data_bytes, elements;
} pst_shape_tensors;
int pst_shape_tensors_make(const pst_shape *shape, uint32_t layers, pst_dtype dtype, pst_shape_tensors *out,
                           pst_error *err);
void pst_shape_tensors_free(pst_shape_tensors *tensors); /* what it holds, not itself */

/* Texts of the folder's small files; *out: pst_heap_free. */
int pst_shape_config(const pst_shape *shape, uint32_t layers, pst_dtype dtype, char **out, pst_error *err);
int pst_shape_generation_config(const pst_shape *shape, char **out, pst_error *err);
int pst_shape_tokenizer(const pst_shape *shape, char **out, pst_error *err);
int pst_shape_tokenizer_config(const pst_shape *shape, char **out, pst_error *err);

#endif
