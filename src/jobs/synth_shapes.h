/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The shapes that synth can write and the planner can reckon with. A shape is the config.json of a published model: its
 * tensors follow from parsing that text as any other config.json, so a shape can never disagree with the family that
 * computes it. A new shape is one more row of the table in synth_table.c.
 */
#ifndef PST_JOBS_SYNTH_SHAPES_H
#define PST_JOBS_SYNTH_SHAPES_H

#include <stdbool.h>

#include "nn/config.h"
#include "store/store.h"

/* A special token; text NULL: none. */
typedef struct pst_special {
    uint32_t id;
    const char *text;
} pst_special;

typedef struct pst_shape {
    const char *name;
    const char *family; /* model_type */
    uint32_t layers;
    pst_dtype dtype;  /* of its published checkpoint where that is F8_E4M3 (with scales of blocks); 0: BF16 */
    float deviation;  /* standard deviation of the weights; 0: 0.02 */
    bool begins_text; /* the tokenizer puts `begin` before every text */
    pst_special begin, end;
    /* Members of config.json with ' for " and $layers for the number of layers; the dtype is added. */
    const char *config;
} pst_shape;

/* The table; only shapes of families that are here count. NULL past the end. */
const pst_shape *pst_shape_at(size_t index);
/* NULL when there is none of that name. */
const pst_shape *pst_shape_find(const char *name);
/* "tiny, llama3-8b, ..." into text; returns text. */
char *pst_shape_list(char *text, size_t text_bytes);

/* The shape with this number of layers and dtype (PST_BF16, PST_F16, PST_F32 and, for shapes that are published in it,
 * PST_F8_E4M3) as a parsed config.json. The caller destroys *out. */
int pst_shape_parse(const pst_shape *shape, uint32_t layers, pst_dtype dtype, pst_transformer *out, pst_error *err);

/* All tensors of a checkpoint in the order in which inference needs them. Owned: all arrays; pst_shape_tensors_free. */
typedef enum pst_shape_role { PST_SHAPE_MATRIX, PST_SHAPE_NORM, PST_SHAPE_BIAS, PST_SHAPE_SCALES } pst_shape_role;
typedef struct pst_shape_tensors {
    pst_tensor *tensors; /* name, dtype, rank, shape and bytes are set */
    pst_shape_role *roles;
    size_t count;
    char *names;
    uint64_t data_bytes, elements; /* elements: parameters, so without scales */
} pst_shape_tensors;
/* dtype: of what is not quantized. transformer->quantized: PLAIN, FP8_BLOCKS or GROUPED. */
int pst_shape_tensors_make(const pst_transformer *transformer, pst_dtype dtype, pst_shape_tensors *out, pst_error *err);
void pst_shape_tensors_free(pst_shape_tensors *tensors); /* what it holds, not itself */

/* Texts of the folder's small files; *out: pst_heap_free. */
int pst_shape_config(const pst_shape *shape, uint32_t layers, pst_dtype dtype, char **out, pst_error *err);
int pst_shape_generation_config(const pst_shape *shape, char **out, pst_error *err);
int pst_shape_tokenizer(const pst_shape *shape, const pst_transformer *transformer, char **out, pst_error *err);
int pst_shape_tokenizer_config(const pst_shape *shape, const pst_transformer *transformer, char **out, pst_error *err);

#endif
