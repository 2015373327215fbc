/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tensors of a shape, as the family's recipes ask for them, in the format that its config.json speaks of. Matrices that a
 * checkpoint in FP8 stores so (all but embedding, head and routers) have the scales of their blocks before them, which is
 * where the ring wants them.
 */
#include "jobs/synth_shapes.h"

#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "nn/program.h"
#include "store/safetensors.h"

enum { FP8_BLOCK = 128 };

int pst_shape_parse(const pst_shape *shape, uint32_t layers, pst_dtype dtype, pst_transformer *out, pst_error *err)
{
    char *config;
    PST_TRY(pst_shape_config(shape, layers, dtype, &config, err));
    int status = pst_transformer_parse(config, strlen(config), shape->name, NULL, 0, NULL, out, err);
    pst_heap_free(config);
    return status;
}

/* Two walks: the first counts, the second fills what was allocated by that. */
typedef struct walk {
    pst_shape_tensors *out;
    const pst_transformer *transformer;
    pst_dtype dtype;
    size_t names_used, count;
} walk;

/* columns: of the tensor; elements: numbers of the model in it. */
static void add(walk *w, const char *name, pst_dtype dtype, pst_shape_role role, uint64_t rows, uint64_t columns,
                uint64_t elements)
{
    size_t bytes = strlen(name) + 1;
    pst_shape_tensors *out = w->out;
    if (out->tensors != NULL) {
        pst_tensor *tensor = &out->tensors[w->count];
        char *copy = memcpy(out->names + w->names_used, name, bytes);
        *tensor = (pst_tensor){
            .name = copy, .dtype = dtype, .rank = rows ? 2 : 1, .shape = {rows ? rows : columns, rows ? columns : 0}};
        pst_tensor_shape_bytes(dtype, tensor->shape, tensor->rank, &tensor->bytes); /* config.c's bounds: below 2^64 */
        out->roles[w->count] = role;
        out->data_bytes += tensor->bytes;
        out->elements += elements;
    }
    w->names_used += bytes;
    w->count++;
}

static bool ends_in(const char *name, const char *end)
{
    size_t length = strlen(name), end_length = strlen(end);
    return length >= end_length && strcmp(name + length - end_length, end) == 0;
}

/* Whether a quantized checkpoint has this matrix in 16 bits all the same: routers and learned positions, and where it is
 * published in FP8 the embedding and the head, too. */
static bool stays_wide(const walk *w, const char *name)
{
    const pst_family *family = w->transformer->family;
    if (ends_in(name, ".gate.weight") || (family->positions != NULL && strstr(name, family->positions) != NULL))
        return true;
    return w->transformer->quantized.layout == PST_WEIGHT_FP8_BLOCKS &&
           (strstr(name, family->embedding) != NULL || strcmp(name, "lm_head.weight") == 0);
}

static void add_fp8(walk *w, const pst_expected_tensor *tensor)
{
    char scales[sizeof tensor->name + 16];
    snprintf(scales, sizeof scales, "%s_scale_inv", tensor->name);
    add(w, scales, PST_F32, PST_SHAPE_SCALES, (tensor->rows + FP8_BLOCK - 1) / FP8_BLOCK,
        (tensor->columns + FP8_BLOCK - 1) / FP8_BLOCK, 0);
    add(w, tensor->name, PST_F8_E4M3, PST_SHAPE_MATRIX, tensor->rows, tensor->columns, tensor->rows * tensor->columns);
}

static int expect(void *context, const pst_expected_tensor *tensor, pst_error *err)
{
    (void)err;
    walk *w = context;
    const pst_weight_format *format = &w->transformer->quantized;
    pst_shape_role role = tensor->is_norm ? PST_SHAPE_NORM : tensor->is_bias ? PST_SHAPE_BIAS : PST_SHAPE_MATRIX;
    bool is_wide = format->layout == PST_WEIGHT_PLAIN || tensor->rows == 0 || stays_wide(w, tensor->name);
    uint64_t elements = tensor->columns * (tensor->rows ? tensor->rows : 1);
    if (is_wide)
        add(w, tensor->name, w->dtype, role, tensor->rows, tensor->columns, elements);
    else if (format->layout == PST_WEIGHT_FP8_BLOCKS)
        add_fp8(w, tensor);
    else
        add(w, tensor->name, PST_U8, role, tensor->rows, pst_weight_row_bytes(format, tensor->columns), elements);
    return 0;
}

int pst_shape_tensors_make(const pst_transformer *transformer, pst_dtype dtype, pst_shape_tensors *out, pst_error *err)
{
    pst_shape_tensors made = {0};
    walk w = {.out = &made, .transformer = transformer, .dtype = dtype};
    PST_TRY(pst_program_expect(transformer, expect, &w, err));
    made.count = w.count;
    made.tensors = pst_heap_calloc(w.count, sizeof *made.tensors);
    made.roles = pst_heap_calloc(w.count, sizeof *made.roles);
    made.names = pst_heap_alloc(w.names_used);
    int status = made.tensors && made.roles && made.names
                     ? 0
                     : pst_fail_memory(err, "a table of tensors", w.count * sizeof *made.tensors + w.names_used);
    if (status == 0) {
        w.names_used = w.count = 0;
        status = pst_program_expect(transformer, expect, &w, err);
    }
    if (status < 0) {
        pst_shape_tensors_free(&made);
        return status;
    }
    *out = made;
    return 0;
}

void pst_shape_tensors_free(pst_shape_tensors *tensors)
{
    pst_heap_free(tensors->tensors);
    pst_heap_free(tensors->roles);
    pst_heap_free(tensors->names);
    *tensors = (pst_shape_tensors){0};
}
