/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Look-ahead routing: what the next layer's router would say of x as it is now, one layer too early. The residual stream
 * changes little from layer to layer, so most of the experts that it names are those that will be chosen (arXiv 2312.17238),
 * and reading them can begin a layer earlier. Routers and the norms before them are copied as they pass by in the first
 * pass; no result depends on any of this.
 */
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/number.h"
#include "nn/experts.h"
#include "nn/forward_internal.h"
#include "os/memory.h"

/* Where lately less was right, reading it would keep the drive from what is needed. It is still foreseen, and judged. */
static const float WORTH_READING = 0.5f;
static const float MEMORY_PASSES = 8;

/* The steps of a router's stage that are imitated; false: there are others, or in a form that is not. */
static bool find_steps(const pst_nn_stage *nn, pst_look_layer *out)
{
    for (uint32_t i = 0; i < nn->step_count; i++) {
        const pst_nn_step *step = &nn->steps[i];
        bool is_simple = step->bias < 0 && step->aux[0] < 0 && step->aux[1] < 0 && step->aux[2] < 0;
        if (step->op->kind == PST_NN_NORM && step->op->in == PST_NN_X && is_simple)
            out->parts[PST_LOOK_NORM].step = step;
        else if (step->op->kind == PST_NN_MATMUL && step->op->out == PST_NN_R && is_simple && !step->format->transposed)
            out->parts[PST_LOOK_GATE].step = step;
        else if (step->op->kind == PST_NN_ROUTE)
            out->parts[PST_LOOK_CORRECTION].step = step;
    }
    return out->parts[PST_LOOK_NORM].step && out->parts[PST_LOOK_GATE].step && out->parts[PST_LOOK_CORRECTION].step;
}

/* The tensor of a part; NULL: it has none (no correction). */
static const pst_stage_tensor *tensor_of(const pst_look_layer *layer, int part)
{
    int32_t number = layer->parts[part].step->weight;
    return number < 0 ? NULL : &layer->stage->tensors[number];
}

/* Describes layer number `index` of those with experts; false: it is not looked ahead to. */
static bool describe(const pst_program *program, uint32_t index, pst_look_layer *out)
{
    uint32_t met = 0;
    for (uint32_t s = program->gathered_stages; s + 1 < program->stage_count; s++) {
        const pst_nn_stage *next = &program->nn_stages[s + 1];
        bool is_router = next->step_count > 0 && next->steps[0].op->kind == PST_NN_EXPERT_TAKE;
        if (!is_router || met++ != index)
            continue;
        *out = (pst_look_layer){.stage = &program->stages[s]};
        return find_steps(&program->nn_stages[s], out);
    }
    return false;
}

static uint64_t kept_bytes(const pst_look_layer *layer)
{
    uint64_t sum = 0;
    for (int part = 0; part < PST_LOOK_PARTS; part++) {
        const pst_stage_tensor *tensor = tensor_of(layer, part);
        sum += tensor ? pst_round_up(tensor->rows * tensor->row_bytes, sizeof(double)) : 0;
    }
    return sum;
}

static uint64_t all_kept_bytes(const pst_program *program, uint32_t layers)
{
    uint64_t sum = 0;
    pst_look_layer layer;
    for (uint32_t i = 0; i < layers; i++)
        sum += describe(program, i, &layer) ? kept_bytes(&layer) : 0;
    return sum;
}

static uint32_t layers_with_experts(const pst_transformer *t)
{
    uint32_t count = 0;
    for (uint32_t i = 0; t->experts > 0 && i < t->layers; i++)
        count += t->sparse[i];
    return count;
}

uint64_t pst_look_ahead_bytes(const pst_transformer *t, const pst_program *program)
{
    uint32_t layers = layers_with_experts(t);
    if (layers == 0)
        return 0;
    return all_kept_bytes(program, layers) + layers * sizeof(pst_look_layer) +
           (uint64_t)t->experts_per_token * (sizeof(uint32_t) + sizeof(float)) +
           (pst_route_scratch_floats(t) + t->experts) * sizeof(float) + t->experts * sizeof(bool);
}

int pst_look_ahead_create(pst_forward *f, const pst_forward_config *config, pst_error *err)
{
    pst_look_ahead *look = &f->look;
    const pst_transformer *t = f->t;
    uint32_t layers = layers_with_experts(t);
    if (!config->look_ahead || layers == 0)
        return 0;
    look->layers = pst_heap_calloc(layers, sizeof *look->layers);
    look->chosen = pst_heap_calloc(t->experts_per_token, sizeof *look->chosen);
    look->weights = pst_heap_calloc(t->experts_per_token, sizeof *look->weights);
    look->scratch = pst_heap_calloc(pst_route_scratch_floats(t) + t->experts, sizeof *look->scratch);
    look->foreseen = pst_heap_calloc(t->experts, sizeof *look->foreseen);
    if (!look->layers || !look->chosen || !look->weights || !look->scratch || !look->foreseen)
        return pst_fail_memory(err, "look-ahead routing", layers * sizeof *look->layers);
    look->layer_count = layers;
    look->bytes = all_kept_bytes(f->program, layers);
    if (look->bytes > 0)
        PST_TRY(pst_memory_map(look->bytes, "look-ahead routing", (void **)&look->memory, err));
    unsigned char *next = look->memory;
    for (uint32_t i = 0; i < layers; i++) {
        pst_look_layer *layer = &look->layers[i];
        if (!describe(f->program, i, layer)) {
            *layer = (pst_look_layer){0};
            continue;
        }
        for (int part = 0; part < PST_LOOK_PARTS; part++) {
            const pst_stage_tensor *tensor = tensor_of(layer, part);
            uint64_t bytes = tensor ? tensor->rows * tensor->row_bytes : 0;
            layer->parts[part].data = next;
            layer->missing_bytes += bytes;
            next += pst_round_up(bytes, sizeof(double));
        }
        layer->right = 1;
    }
    return 0;
}

void pst_look_ahead_destroy(pst_forward *f)
{
    pst_memory_unmap(f->look.memory, f->look.bytes);
    pst_heap_free(f->look.layers);
    pst_heap_free(f->look.chosen);
    pst_heap_free(f->look.weights);
    pst_heap_free(f->look.scratch);
    pst_heap_free(f->look.foreseen);
}

void pst_look_ahead_remember(const pst_forward_run *run)
{
    const pst_look_ahead *look = &run->f->look;
    pst_look_layer *layer = NULL;
    for (uint32_t i = 0; i < look->layer_count && layer == NULL; i++)
        layer = look->layers[i].stage == run->stage ? &look->layers[i] : NULL;
    if (layer == NULL || layer->missing_bytes == 0)
        return;
    for (size_t i = 0; i < run->part->piece_count; i++) {
        const pst_piece *piece = &run->part->pieces[i];
        for (int part = 0; part < PST_LOOK_PARTS; part++) {
            if (layer->parts[part].step->weight != (int32_t)piece->tensor)
                continue;
            uint64_t row_bytes = run->stage->tensors[piece->tensor].row_bytes;
            memcpy(layer->parts[part].data + piece->first_row * row_bytes, run->part->memory + piece->offset,
                   piece->rows * row_bytes);
            layer->missing_bytes -= piece->rows * row_bytes;
        }
    }
}

static pst_weight kept_weight(const pst_look_layer *layer, int part, size_t columns)
{
    const pst_stage_tensor *tensor = tensor_of(layer, part);
    return (pst_weight){.data = layer->parts[part].data,
                        .type = tensor->tensor->dtype,
                        .rows = tensor->rows,
                        .columns = columns,
                        .format = layer->parts[part].step->format};
}

/* The router's logits of all rows, in R; the normed rows in EH, where the experts' rows come later. */
static int compute_logits(const pst_forward *f, const pst_look_layer *layer, pst_matrix *logits)
{
    pst_matrix x = f->buffers[PST_NN_X], h = f->buffers[PST_NN_EH];
    *logits = f->buffers[PST_NN_R];
    x.rows = h.rows = logits->rows = f->row_count;
    pst_weight norm = kept_weight(layer, PST_LOOK_NORM, x.columns);
    PST_TRY(f->device->ops->rms_norm(f->device, &x, &norm, f->t->norm_eps, &h));
    pst_matmul job = {.x = h, .w = kept_weight(layer, PST_LOOK_GATE, h.columns), .y = *logits};
    return f->device->ops->matmul(f->device, &job);
}

/* The experts of a layer by x as it is, into `wanted`; how many. */
static uint32_t foresee(pst_forward *f, uint32_t sparse, bool *wanted)
{
    pst_look_ahead *look = &f->look;
    if (sparse >= look->layer_count)
        return 0;
    const pst_look_layer *layer = &look->layers[sparse];
    const pst_transformer *t = f->t;
    pst_matrix logits;
    if (layer->stage == NULL || layer->missing_bytes > 0 || compute_logits(f, layer, &logits) < 0)
        return 0;
    const float *correction = NULL;
    if (tensor_of(layer, PST_LOOK_CORRECTION) != NULL) {
        pst_weight weight = kept_weight(layer, PST_LOOK_CORRECTION, t->experts);
        float *to = look->scratch + pst_route_scratch_floats(t);
        pst_matrix y = {to, PST_F32, 1, t->experts, t->experts};
        if (f->device->ops->convert(f->device, &weight, &y) < 0)
            return 0;
        correction = to;
    }
    uint32_t count = 0;
    for (size_t row = 0; row < logits.rows; row++) {
        pst_route_choose(t, (const float *)logits.data + row * logits.stride, correction, look->scratch, look->chosen,
                         look->weights);
        for (uint32_t i = 0; i < t->experts_per_token; i++) {
            count += !wanted[look->chosen[i]];
            wanted[look->chosen[i]] = true;
        }
    }
    return count;
}

uint32_t pst_look_ahead_guess(pst_forward *f, uint32_t sparse, bool *wanted)
{
    pst_look_ahead *look = &f->look;
    const size_t bytes = f->t->experts * sizeof *wanted;
    uint32_t count = foresee(f, sparse, wanted);
    look->foreseen_layer = sparse;
    look->foreseen_count = count;
    if (count == 0)
        return 0;
    memcpy(look->foreseen, wanted, bytes);
    if (look->layers[sparse].right >= WORTH_READING)
        return count;
    memset(wanted, 0, bytes);
    return 0;
}

void pst_look_ahead_judge(pst_forward *f, uint32_t sparse, const bool *chosen)
{
    pst_look_ahead *look = &f->look;
    if (look->foreseen_count == 0 || look->foreseen_layer != sparse)
        return;
    uint32_t right = 0;
    for (uint32_t e = 0; e < f->t->experts; e++)
        right += look->foreseen[e] && chosen[e];
    float share = (float)right / (float)look->foreseen_count;
    look->layers[sparse].right += (share - look->layers[sparse].right) / MEMORY_PASSES;
    look->foreseen_count = 0;
}
