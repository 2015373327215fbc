/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Binds recipes to tensors. One walk over the recipes serves both the program of a checkpoint (every tensor found and
 * checked) and the list of tensors that a model of a description would have.
 */
#include "nn/program.h"

#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "nn/experts.h"
#include "nn/forward.h"
#include "nn/weights.h"

size_t pst_nn_width(const pst_transformer *t, pst_nn_buffer buffer)
{
    switch (buffer) {
    case PST_NN_E:
    case PST_NN_P: return t->embedding_dim;
    case PST_NN_Q: return (size_t)t->heads * t->head_dim;
    case PST_NN_A: return (size_t)t->heads * (t->latent.kv_lora_rank ? t->latent.value_dim : t->head_dim);
    case PST_NN_K:
    case PST_NN_V: return (size_t)t->kv_heads * t->head_dim;
    case PST_NN_QKV: return ((size_t)t->heads + 2 * (size_t)t->kv_heads) * t->head_dim;
    case PST_NN_CQ:
    case PST_NN_CQN: return t->latent.q_lora_rank;
    case PST_NN_CKV: return (size_t)t->latent.kv_lora_rank + t->latent.rope_dim;
    case PST_NN_G:
    case PST_NN_U:
    case PST_NN_M: return t->intermediate;
    case PST_NN_SG:
    case PST_NN_SU:
    case PST_NN_SM: return t->shared_intermediate;
    case PST_NN_R: return t->experts;
    case PST_NN_EG:
    case PST_NN_EU:
    case PST_NN_EM: return t->expert_intermediate;
    case PST_NN_LOGITS: return t->vocab;
    default: return t->hidden;
    }
}

bool pst_nn_applies(const pst_transformer *t, pst_nn_when when, uint32_t layer)
{
    bool sparse = t->sparse != NULL && layer < t->layers && t->sparse[layer];
    switch (when) {
    case PST_NN_ALWAYS: return true;
    case PST_NN_IF_QKV_BIAS: return t->qkv_bias;
    case PST_NN_IF_O_BIAS: return t->o_bias;
    case PST_NN_IF_MLP_BIAS: return t->mlp_bias;
    case PST_NN_IF_QK_NORM: return t->qk_norm;
    case PST_NN_IF_DENSE: return !sparse;
    case PST_NN_IF_SPARSE: return sparse;
    case PST_NN_IF_SHARED_EXPERTS: return sparse && t->shared_intermediate > 0;
    case PST_NN_IF_CORRECTED: return t->routing.corrected;
    case PST_NN_IF_NOT_CORRECTED: return !t->routing.corrected;
    case PST_NN_IF_Q_LORA: return t->latent.q_lora_rank > 0;
    case PST_NN_IF_Q_PLAIN: return t->latent.q_lora_rank == 0;
    case PST_NN_IF_PROJECTED: return t->embedding_dim != t->hidden;
    case PST_NN_IF_NOT_PROJECTED: return t->embedding_dim == t->hidden;
    case PST_NN_IF_NORM_FIRST: return !t->norm_last;
    case PST_NN_IF_NORM_LAST: return t->norm_last;
    case PST_NN_IF_FINAL_NORM: return !t->no_final_norm;
    case PST_NN_IF_NO_FINAL_NORM: return t->no_final_norm;
    case PST_NN_IF_RESIDUAL_PLAIN: return !t->residual_normed;
    case PST_NN_IF_RESIDUAL_NORMED: return t->residual_normed;
    default: return false;
    }
}

/* Either `program` is made from `store`, or `expect` is told what there should be. */
typedef struct builder {
    const pst_transformer *t;
    const char *prefix;
    const pst_store *store;
    pst_program *program;
    pst_expect *expect;
    void *context;
    pst_error *err;
} builder;

static int tell(const builder *b, const char *name, uint64_t rows, uint64_t columns, bool is_norm, bool is_bias)
{
    pst_expected_tensor tensor = {.rows = rows, .columns = columns, .is_norm = is_norm, .is_bias = is_bias};
    snprintf(tensor.name, sizeof tensor.name, "%s", name);
    return b->expect(b->context, &tensor, b->err);
}

/* Adds a tensor to a stage, which has room; its number. */
static int32_t put(pst_stage *stage, const pst_tensor *tensor, uint64_t rows)
{
    stage->tensors[stage->tensor_count] =
        (pst_stage_tensor){.tensor = tensor, .rows = rows, .row_bytes = tensor->bytes / rows};
    return (int32_t)stage->tensor_count++;
}

static int add_vector(const builder *b, pst_stage *stage, const char *name, uint64_t count, bool is_norm, bool is_bias,
                      int32_t *number)
{
    if (b->expect != NULL)
        return tell(b, name, 0, count, is_norm, is_bias);
    const pst_tensor *tensor;
    PST_TRY(pst_weights_find_vector(b->store, name, count, &tensor, b->err));
    *number = put(stage, tensor, 1);
    return 0;
}

static bool is_same(const pst_weight_format *a, const pst_weight_format *b)
{
    return a->layout == b->layout && a->type == b->type && a->transposed == b->transposed && a->bits == b->bits &&
           a->group == b->group && a->symmetric == b->symmetric && a->zero_offset == b->zero_offset &&
           a->block_rows == b->block_rows && a->block_columns == b->block_columns && a->scale_type == b->scale_type;
}

/* The program's own copy of a format. */
static const pst_weight_format *intern(pst_program *program, const pst_weight_format *format)
{
    for (uint32_t i = 0; i < program->format_count; i++)
        if (is_same(&program->formats[i], format))
            return &program->formats[i];
    program->formats[program->format_count] = *format;
    return &program->formats[program->format_count++];
}

enum { MAX_FORMATS = 64 }; /* every combination of types that a checkpoint can mix */

static int add_matrix(const builder *b, pst_stage *stage, const char *name, const char *suffix, uint64_t outputs,
                      uint64_t inputs, bool transposed, pst_nn_step *step)
{
    if (b->expect != NULL) {
        char whole[300];
        snprintf(whole, sizeof whole, "%s%s", name, suffix);
        return tell(b, whole, transposed ? inputs : outputs, transposed ? outputs : inputs, false, false);
    }
    pst_found_weight found = {0};
    PST_TRY(pst_weights_find(b->t, b->store, name, suffix, outputs, inputs, transposed, &found, b->err));
    pst_program *program = b->program;
    if (program->format_count == MAX_FORMATS)
        return pst_fail(b->err, PST_E_UNSUPPORTED, pst_store_file_path(b->store, 0), "more than %d formats of weights",
                        MAX_FORMATS);
    for (int i = 0; i < PST_NN_AUX; i++)
        if (found.aux[i] != NULL)
            step->aux[i] = put(stage, found.aux[i], 1);
    step->weight = put(stage, found.tensor, found.rows);
    step->format = intern(program, &found.format);
    step->columns = transposed ? outputs : inputs;
    bool is_wider = found.digits == PST_F32 || (found.digits == PST_F16 && program->weight_type == PST_BF16);
    if (is_wider)
        program->weight_type = found.digits;
    /* A tied head is met a second time as the embedding's tensor: counted once. */
    bool is_tied = program->stages[0].tensors != NULL && stage != &program->stages[0] &&
                   program->stages[0].tensors[0].tensor == found.tensor;
    if (!is_tied) {
        program->parameters += outputs * inputs;
        program->expert_parameters += stage->unit_count ? outputs * inputs : 0;
    }
    return 0;
}

/* The checkpoint's name of an operator's tensor, without its suffix. layer UINT32_MAX: outside the layers. */
static void tensor_name(const builder *b, const char *weight, uint32_t layer, uint32_t expert, char *name, size_t bytes)
{
    const pst_family *family = b->t->family;
    char own[128];
    snprintf(own, sizeof own, weight, expert);
    if (strcmp(weight, "lm_head") == 0 && b->t->tied_head)
        snprintf(name, bytes, "%s%s", b->prefix, family->embedding);
    else if (strcmp(weight, "lm_head") == 0)
        snprintf(name, bytes, "lm_head");
    else if (layer == UINT32_MAX)
        snprintf(name, bytes, "%s%s", b->prefix, own);
    else
        snprintf(name, bytes, "%s%s.%u.%s", b->prefix, family->layers, layer, own);
}

static bool is_norm(pst_nn_kind kind)
{
    return kind == PST_NN_NORM || kind == PST_NN_HEAD_NORM || kind == PST_NN_LAYER_NORM || kind == PST_NN_LATENT_NORM;
}

/* Elements of an operator's vector. */
static uint64_t vector_width(const builder *b, const pst_nn_op *op)
{
    switch (op->kind) {
    case PST_NN_HEAD_NORM: return b->t->head_dim;
    case PST_NN_LATENT_NORM: return op->in == PST_NN_CKV ? b->t->latent.kv_lora_rank : pst_nn_width(b->t, op->in);
    default: return pst_nn_width(b->t, op->in);
    }
}

/* A matrix of which rows are used on their own, so that they must lie together. */
static int add_kept(const builder *b, pst_stage *stage, const char *name, const char *suffix, uint64_t outputs,
                    uint64_t inputs, pst_nn_step *step)
{
    PST_TRY(add_matrix(b, stage, name, suffix, outputs, inputs, false, step));
    if (b->expect == NULL && step->format->transposed)
        return pst_fail(b->err, PST_E_UNSUPPORTED,
                        pst_store_file_path(b->store, stage->tensors[step->weight].tensor->file),
                        "tensor %s has a row per input, which latent attention does not support",
                        stage->tensors[step->weight].tensor->name);
    return 0;
}

static int bind_op(const builder *b, pst_stage *stage, pst_nn_step *step, uint32_t layer, uint32_t expert)
{
    const pst_nn_op *op = step->op;
    if (op->weight == NULL || (op->kind == PST_NN_LAYER_NORM && b->t->norms_bare))
        return 0;
    char name[256], bias[300], whole[300];
    const char *suffix = op->suffix ? op->suffix : ".weight";
    tensor_name(b, op->weight, layer, expert, name, sizeof name);
    bool is_matrix = op->kind == PST_NN_MATMUL || op->kind == PST_NN_LATENT_KEEP;
    uint64_t in = pst_nn_width(b->t, op->in), out = pst_nn_width(b->t, op->out);
    if (op->kind == PST_NN_LATENT_KEEP) {
        in = b->t->latent.kv_lora_rank;
        out = (uint64_t)b->t->heads * (b->t->latent.nope_dim + b->t->latent.value_dim);
    }
    if (pst_nn_applies(b->t, op->bias, layer)) {
        snprintf(bias, sizeof bias, "%s.bias", name);
        PST_TRY(add_vector(b, stage, bias, is_matrix ? out : vector_width(b, op), false, true, &step->bias));
    }
    bool is_tied_head = b->expect != NULL && b->t->tied_head && strcmp(op->weight, "lm_head") == 0;
    if (op->kind == PST_NN_LATENT_KEEP)
        return add_kept(b, stage, name, suffix, out, in, step);
    if (is_matrix)
        return is_tied_head ? 0 : add_matrix(b, stage, name, suffix, out, in, op->transposed, step);
    snprintf(whole, sizeof whole, "%s%s", name, suffix);
    return add_vector(b, stage, whole, vector_width(b, op), is_norm(op->kind), op->kind == PST_NN_ROUTE, &step->weight);
}

/* The steps of a recipe, once; nn and stage have room for them (both NULL when only names are asked for). */
static int bind_ops(const builder *b, pst_stage *stage, pst_nn_stage *nn, const pst_nn_recipe *recipe, uint32_t layer,
                    uint32_t expert)
{
    for (uint32_t i = 0; i < recipe->op_count; i++) {
        if (!pst_nn_applies(b->t, recipe->ops[i].when, layer))
            continue;
        pst_nn_step unused, *step = nn ? &nn->steps[nn->step_count++] : &unused;
        *step = (pst_nn_step){&recipe->ops[i], -1, -1, {-1, -1, -1}, expert, NULL, 0};
        PST_TRY(bind_op(b, stage, step, layer, expert));
    }
    return 0;
}

static int make_stage(const builder *b, uint32_t index, const pst_nn_recipe *recipe, uint32_t layer, uint32_t repeats)
{
    pst_stage *stage = &b->program->stages[index];
    pst_nn_stage *nn = &b->program->nn_stages[index];
    uint64_t steps = (uint64_t)recipe->op_count * repeats;
    nn->layer = layer;
    nn->forward = &b->program->forward;
    nn->steps = pst_heap_calloc(steps, sizeof *nn->steps);
    stage->tensors = pst_heap_calloc((2 + PST_NN_AUX) * steps, sizeof *stage->tensors);
    nn->unit_first_tensor = pst_heap_calloc((size_t)repeats + 1, sizeof *nn->unit_first_tensor);
    char *name =
        layer == UINT32_MAX ? pst_heap_strdup(recipe->name) : pst_heap_printf("layer %u %s", layer, recipe->name);
    stage->name = name;
    if (nn->steps == NULL || stage->tensors == NULL || nn->unit_first_tensor == NULL || name == NULL)
        return pst_fail_memory(b->err, "a stage", steps * (2 + PST_NN_AUX) * sizeof *stage->tensors);
    stage->compute = pst_forward_compute;
    stage->context = nn;
    if (recipe->per_expert) {
        stage->unit_count = repeats;
        stage->unit_first_tensor = nn->unit_first_tensor;
        stage->choose = pst_experts_choose;
        stage->guess = pst_experts_guess;
    }
    return 0;
}

static int build_stage(const builder *b, uint32_t *index, const pst_nn_recipe *recipe, uint32_t layer)
{
    if (recipe == NULL || !pst_nn_applies(b->t, recipe->when, layer))
        return 0;
    uint32_t repeats = recipe->per_expert ? b->t->experts : 1;
    pst_stage *stage = NULL;
    pst_nn_stage *nn = NULL;
    if (b->program != NULL) {
        PST_TRY(make_stage(b, *index, recipe, layer, repeats));
        stage = &b->program->stages[*index];
        nn = &b->program->nn_stages[*index];
    }
    for (uint32_t expert = 0; expert < repeats; expert++) {
        PST_TRY(bind_ops(b, stage, nn, recipe, layer, expert));
        if (nn != NULL)
            nn->unit_first_tensor[expert + 1] = stage->tensor_count;
    }
    ++*index;
    return 0;
}

/* A table whose rows are fetched one by one. */
static int build_gathered(const builder *b, uint32_t *index, const char *stage_name, const char *name, uint64_t rows,
                          uint64_t columns)
{
    char whole[256];
    pst_nn_step step = {NULL, -1, -1, {-1, -1, -1}, 0, NULL, 0};
    snprintf(whole, sizeof whole, "%s%s", b->prefix, name);
    if (b->program == NULL)
        return add_matrix(b, NULL, whole, ".weight", rows, columns, false, &step);
    pst_stage *stage = &b->program->stages[*index];
    pst_nn_stage *nn = &b->program->nn_stages[(*index)++];
    stage->tensors = pst_heap_calloc(1 + PST_NN_AUX, sizeof *stage->tensors);
    stage->name = pst_heap_strdup(stage_name);
    nn->steps = pst_heap_calloc(1, sizeof *nn->steps);
    if (stage->tensors == NULL || stage->name == NULL || nn->steps == NULL)
        return pst_fail_memory(b->err, "a stage", (1 + PST_NN_AUX) * sizeof *stage->tensors);
    stage->gathered = true;
    PST_TRY(add_matrix(b, stage, whole, ".weight", rows, columns, false, &step));
    nn->steps[nn->step_count++] = step;
    if (step.weight != 0)
        return pst_fail(b->err, PST_E_UNSUPPORTED, pst_store_file_path(b->store, 0),
                        "an embedding whose scales are apart is not supported");
    b->program->gathered_stages = *index;
    return 0;
}

/* The head: a pass of which no row wants logits, as most of a long prompt's, does not read it. */
static void make_optional(pst_stage *stage)
{
    pst_nn_stage *nn = stage->context;
    stage->unit_count = 1;
    stage->unit_first_tensor = nn->unit_first_tensor;
    stage->choose = pst_forward_choose_head;
    stage->chosen_early = true;
}

static int build(const builder *b, uint32_t *count)
{
    const pst_transformer *t = b->t;
    const pst_family *family = t->family;
    uint32_t index = 0;
    PST_TRY(build_gathered(b, &index, "embedding", family->embedding, t->vocab, t->embedding_dim));
    if (family->positions != NULL)
        PST_TRY(build_gathered(b, &index, "positions", family->positions, (uint64_t)t->context + t->position_offset,
                               t->hidden));
    PST_TRY(build_stage(b, &index, family->front, UINT32_MAX));
    for (uint32_t layer = 0; layer < t->layers; layer++)
        for (uint32_t i = 0; i < family->layer_stages; i++)
            PST_TRY(build_stage(b, &index, &family->layer[i], layer));
    PST_TRY(build_stage(b, &index, family->head, UINT32_MAX));
    if (b->program != NULL)
        make_optional(&b->program->stages[index - 1]);
    *count = index;
    return 0;
}

/* Bytes of all tensors, each once. */
static void count_bytes(pst_program *program)
{
    const pst_tensor *embedding = program->stages[0].tensors[0].tensor;
    for (uint32_t s = 0; s < program->stage_count; s++)
        for (uint32_t i = 0; i < program->stages[s].tensor_count; i++)
            if (s == 0 || program->stages[s].tensors[i].tensor != embedding)
                program->weight_bytes += program->stages[s].tensors[i].tensor->bytes;
    for (uint32_t s = 0; s < program->stage_count; s++)
        for (uint32_t i = 0; i < program->stages[s].tensor_count; i++)
            if (program->stages[s].tensors[i].tensor->rank == 1)
                program->parameters += program->stages[s].tensors[i].tensor->shape[0];
}

static const char *find_prefix(const pst_family *family, const pst_store *store)
{
    for (const char *const *prefix = family->prefixes; *prefix != NULL; prefix++) {
        char name[256];
        snprintf(name, sizeof name, "%s%s.weight", *prefix, family->embedding);
        if (pst_store_find(store, name) != NULL)
            return *prefix;
    }
    return family->prefixes[0];
}

int pst_program_create(const pst_transformer *transformer, const pst_store *store, pst_program **out, pst_error *err)
{
    pst_program *program = pst_heap_calloc(1, sizeof *program);
    if (program == NULL)
        return pst_fail_memory(err, "the stages", sizeof *program);
    uint32_t most = 4 + transformer->layers * transformer->family->layer_stages;
    program->stage_count = most; /* until it is known: what pst_program_destroy looks through */
    program->weight_type = PST_BF16;
    program->store = store;
    program->stages = pst_heap_calloc(most, sizeof *program->stages);
    program->nn_stages = pst_heap_calloc(most, sizeof *program->nn_stages);
    program->formats = pst_heap_calloc(MAX_FORMATS, sizeof *program->formats);
    builder b = {.t = transformer,
                 .prefix = find_prefix(transformer->family, store),
                 .store = store,
                 .program = program,
                 .err = err};
    uint32_t count = 0;
    int status = program->stages && program->nn_stages && program->formats
                     ? build(&b, &count)
                     : pst_fail_memory(err, "the stages", most * sizeof *program->stages);
    if (status < 0) {
        pst_program_destroy(program);
        return status;
    }
    program->stage_count = count;
    count_bytes(program);
    *out = program;
    return 0;
}

int pst_program_expect(const pst_transformer *transformer, pst_expect *expect, void *context, pst_error *err)
{
    builder b = {
        .t = transformer, .prefix = transformer->family->prefixes[0], .expect = expect, .context = context, .err = err};
    uint32_t count;
    return build(&b, &count);
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
        if (program->nn_stages != NULL) {
            pst_heap_free(program->nn_stages[i].steps);
            pst_heap_free(program->nn_stages[i].unit_first_tensor);
        }
    }
    pst_heap_free(program->stages);
    pst_heap_free(program->nn_stages);
    pst_heap_free(program->formats);
    pst_heap_free(program);
}
