/* SPDX-License-Identifier: Apache-2.0 */
/* Binds recipes to tensors: names, shapes, types. */
#include "nn/program.h"

#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "nn/forward.h"

size_t pst_nn_width(const pst_transformer *t, pst_nn_buffer buffer)
{
    switch (buffer) {
    case PST_NN_Q:
    case PST_NN_A: return (size_t)t->heads * t->head_dim;
    case PST_NN_K:
    case PST_NN_V: return (size_t)t->kv_heads * t->head_dim;
    case PST_NN_G:
    case PST_NN_U:
    case PST_NN_M: return t->intermediate;
    case PST_NN_LOGITS: return t->vocab;
    default: return t->hidden;
    }
}

bool pst_nn_applies(const pst_transformer *t, pst_nn_when when)
{
    switch (when) {
    case PST_NN_ALWAYS: return true;
    case PST_NN_IF_QKV_BIAS: return t->qkv_bias;
    case PST_NN_IF_O_BIAS: return t->o_bias;
    case PST_NN_IF_MLP_BIAS: return t->mlp_bias;
    case PST_NN_IF_QK_NORM: return t->qk_norm;
    default: return false;
    }
}

typedef struct builder {
    const pst_transformer *t;
    const pst_store *store;
    const char *prefix; /* "model." or, in folders saved from the bare decoder, "" */
    pst_program *program;
    pst_error *err;
} builder;

/* Finds a tensor and checks that it is a `rows` x `columns` matrix (rows 0: a vector of `columns`). */
static int find_tensor(const builder *b, const char *name, uint64_t rows, uint64_t columns, const pst_tensor **out)
{
    const pst_tensor *tensor = pst_store_find(b->store, name);
    if (tensor == NULL)
        return pst_fail(b->err, PST_E_FORMAT, pst_store_file_path(b->store, 0), "tensor %s is missing", name);
    const char *path = pst_store_file_path(b->store, tensor->file);
    bool fits = rows ? tensor->rank == 2 && tensor->shape[0] == rows && tensor->shape[1] == columns
                     : tensor->rank == 1 && tensor->shape[0] == columns;
    if (!fits) {
        char shape[128] = "[";
        size_t used = 1;
        for (uint32_t i = 0; i < tensor->rank && used < sizeof shape - 24; i++)
            used += (size_t)snprintf(shape + used, sizeof shape - used, "%s%llu", i ? ", " : "",
                                     (unsigned long long)tensor->shape[i]);
        if (rows)
            return pst_fail(b->err, PST_E_FORMAT, path,
                            "tensor %s has shape %s] where config.json asks for [%llu, %llu]", name, shape,
                            (unsigned long long)rows, (unsigned long long)columns);
        return pst_fail(b->err, PST_E_FORMAT, path, "tensor %s has shape %s] where config.json asks for [%llu]", name,
                        shape, (unsigned long long)columns);
    }
    if (tensor->dtype != PST_F32 && tensor->dtype != PST_F16 && tensor->dtype != PST_BF16)
        return pst_fail(b->err, PST_E_UNSUPPORTED, path, "tensor %s is of type %s; F32, F16 and BF16 are supported",
                        name, pst_dtype_name(tensor->dtype));
    *out = tensor;
    return 0;
}

/* Adds a tensor to a stage (which has room) and gives its number. rows as for find_tensor. */
static int add_tensor(const builder *b, pst_stage *stage, const char *name, uint64_t rows, uint64_t columns,
                      int32_t *number)
{
    const pst_tensor *tensor = NULL;
    PST_TRY(find_tensor(b, name, rows, columns, &tensor));
    uint64_t count = rows ? rows : 1;
    *number = (int32_t)stage->tensor_count;
    stage->tensors[stage->tensor_count++] =
        (pst_stage_tensor){.tensor = tensor, .rows = count, .row_bytes = tensor->bytes / count};
    bool is_wider = tensor->dtype == PST_F32 || (tensor->dtype == PST_F16 && b->program->weight_type == PST_BF16);
    if (rows && is_wider)
        b->program->weight_type = tensor->dtype;
    return 0;
}

/* The checkpoint's name of an operator's tensor. layer UINT32_MAX: outside the layers. */
static void tensor_name(const builder *b, const char *weight, const char *kind, uint32_t layer, char *name,
                        size_t bytes)
{
    if (strcmp(weight, "lm_head") == 0 && b->t->tied_head)
        snprintf(name, bytes, "%sembed_tokens.weight", b->prefix);
    else if (strcmp(weight, "lm_head") == 0)
        snprintf(name, bytes, "lm_head.weight");
    else if (layer == UINT32_MAX)
        snprintf(name, bytes, "%s%s.%s", b->prefix, weight, kind);
    else
        snprintf(name, bytes, "%slayers.%u.%s.%s", b->prefix, layer, weight, kind);
}

static int bind_op(const builder *b, pst_stage *stage, pst_nn_step *step, uint32_t layer)
{
    const pst_nn_op *op = step->op;
    if (op->weight == NULL)
        return 0;
    char name[256];
    uint64_t in = op->kind == PST_NN_HEAD_NORM ? b->t->head_dim : pst_nn_width(b->t, op->in);
    uint64_t out = op->kind == PST_NN_MATMUL ? pst_nn_width(b->t, op->out) : 0;
    if (pst_nn_applies(b->t, op->bias)) { /* before its matrix: see compute_matmul in forward.c */
        tensor_name(b, op->weight, "bias", layer, name, sizeof name);
        PST_TRY(add_tensor(b, stage, name, 0, out, &step->bias));
    }
    tensor_name(b, op->weight, "weight", layer, name, sizeof name);
    return add_tensor(b, stage, name, out, in, &step->weight);
}

static int build_stage(const builder *b, uint32_t index, const pst_nn_recipe *recipe, uint32_t layer)
{
    pst_stage *stage = &b->program->stages[index];
    pst_nn_stage *nn = &b->program->nn_stages[index];
    nn->layer = layer;
    nn->forward = &b->program->forward;
    nn->steps = pst_heap_calloc(recipe->op_count, sizeof *nn->steps);
    stage->tensors = pst_heap_calloc(2 * recipe->op_count, sizeof *stage->tensors);
    char *name =
        layer == UINT32_MAX ? pst_heap_strdup(recipe->name) : pst_heap_printf("layer %u %s", layer, recipe->name);
    stage->name = name;
    if (nn->steps == NULL || stage->tensors == NULL || name == NULL)
        return pst_fail_memory(b->err, "a stage", recipe->op_count * sizeof *stage->tensors);
    stage->compute = pst_forward_compute;
    stage->context = nn;
    for (uint32_t i = 0; i < recipe->op_count; i++) {
        if (!pst_nn_applies(b->t, recipe->ops[i].when))
            continue;
        pst_nn_step *step = &nn->steps[nn->step_count++];
        *step = (pst_nn_step){&recipe->ops[i], -1, -1};
        PST_TRY(bind_op(b, stage, step, layer));
    }
    return 0;
}

static int build_embedding(const builder *b)
{
    pst_stage *stage = &b->program->stages[0];
    char name[256];
    int32_t number;
    snprintf(name, sizeof name, "%sembed_tokens.weight", b->prefix);
    stage->tensors = pst_heap_calloc(1, sizeof *stage->tensors);
    stage->name = pst_heap_strdup("embedding");
    if (stage->tensors == NULL || stage->name == NULL)
        return pst_fail_memory(b->err, "a stage", sizeof *stage->tensors);
    stage->gathered = true;
    return add_tensor(b, stage, name, b->t->vocab, b->t->hidden, &number);
}

static int build(const builder *b)
{
    const pst_family *family = b->t->family;
    PST_TRY(build_embedding(b));
    uint32_t index = 1;
    for (uint32_t layer = 0; layer < b->t->layers; layer++)
        for (uint32_t i = 0; i < family->layer_stages; i++)
            PST_TRY(build_stage(b, index++, &family->layer[i], layer));
    PST_TRY(build_stage(b, index, family->head, UINT32_MAX));
    pst_program *program = b->program;
    const pst_tensor *embedding = program->stages[0].tensors[0].tensor;
    for (uint32_t s = 0; s < program->stage_count; s++) {
        for (uint32_t i = 0; i < program->stages[s].tensor_count; i++) {
            const pst_tensor *tensor = program->stages[s].tensors[i].tensor;
            if (s > 0 && tensor == embedding) /* a tied head: counted once */
                continue;
            program->weight_bytes += tensor->bytes;
            program->parameters += tensor->bytes * 8 / pst_dtype_bits(tensor->dtype);
        }
    }
    return 0;
}

int pst_program_create(const pst_transformer *transformer, const pst_store *store, pst_program **out, pst_error *err)
{
    pst_program *program = pst_heap_calloc(1, sizeof *program);
    if (program == NULL)
        return pst_fail_memory(err, "the stages", sizeof *program);
    program->stage_count = 2 + transformer->layers * transformer->family->layer_stages;
    program->weight_type = PST_BF16;
    program->stages = pst_heap_calloc(program->stage_count, sizeof *program->stages);
    program->nn_stages = pst_heap_calloc(program->stage_count, sizeof *program->nn_stages);
    bool bare =
        pst_store_find(store, "model.embed_tokens.weight") == NULL && pst_store_find(store, "embed_tokens.weight");
    builder b = {transformer, store, bare ? "" : "model.", program, err};
    int status = program->stages && program->nn_stages
                     ? build(&b)
                     : pst_fail_memory(err, "the stages", program->stage_count * sizeof *program->stages);
    if (status < 0) {
        pst_program_destroy(program);
        return status;
    }
    *out = program;
    return 0;
}

void pst_program_destroy(pst_program *program)
{
    if (program == NULL)
        return;
    for (uint32_t i = 0; i < program->stage_count; i++) {
        if (program->stages != NULL) {
            pst_heap_free(program->stages[i].tensors);
            pst_heap_free((char *)program->stages[i].name);
        }
        if (program->nn_stages != NULL)
            pst_heap_free(program->nn_stages[i].steps);
    }
    pst_heap_free(program->stages);
    pst_heap_free(program->nn_stages);
    pst_heap_free(program);
}
