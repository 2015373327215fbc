/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The memory of a pass. Attention's buffers (q, k, v and its result) and the MLP's (gate, up and their product) are never
 * alive together, so they share one place. Rows are padded so that rows of a power-of-two width do not fall onto the same
 * cache sets.
 */
#include "base/error.h"
#include "base/heap.h"
#include "nn/forward_internal.h"
#include "os/memory.h"

enum { STRIDE_UNIT = 32 /* elements: two vectors of f32, one of bf16 */ };

static pst_dtype buffer_type(const pst_forward_config *config, pst_nn_buffer buffer)
{
    bool is_product_input = buffer == PST_NN_H || buffer == PST_NN_A || buffer == PST_NN_M || buffer == PST_NN_T;
    return is_product_input ? config->compute_type : PST_F32;
}

static uint64_t buffer_stride(const pst_forward_config *config, pst_nn_buffer buffer)
{
    uint64_t width = pst_nn_width(config->transformer, buffer);
    if (buffer == PST_NN_Q || buffer == PST_NN_K) /* normed head by head as one matrix of rows * heads rows */
        return width;
    return (width + STRIDE_UNIT - 1) / STRIDE_UNIT * STRIDE_UNIT + STRIDE_UNIT;
}

/* Bytes of one row. */
static uint64_t buffer_bytes(const pst_forward_config *config, pst_nn_buffer buffer)
{
    return buffer_stride(config, buffer) * pst_dtype_bits(buffer_type(config, buffer)) / 8;
}

/* The groups of buffers: what lives through a pass, attention's, the MLP's, the logits'. */
static const pst_nn_buffer lasting[] = {PST_NN_X, PST_NN_H};
static const pst_nn_buffer of_attention[] = {PST_NN_Q, PST_NN_K, PST_NN_V, PST_NN_A};
static const pst_nn_buffer of_mlp[] = {PST_NN_G, PST_NN_U, PST_NN_M};
static const pst_nn_buffer of_logits[] = {PST_NN_S, PST_NN_T, PST_NN_LOGITS};
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static uint64_t group_bytes(const pst_forward_config *config, const pst_nn_buffer *group, size_t count)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += buffer_bytes(config, group[i]);
    return sum;
}

static uint64_t shared_bytes(const pst_forward_config *config)
{
    uint64_t attention = group_bytes(config, of_attention, COUNT(of_attention));
    uint64_t mlp = group_bytes(config, of_mlp, COUNT(of_mlp));
    return attention > mlp ? attention : mlp;
}

/* Bytes of one sequence's keys (or values) of one layer. */
static uint64_t cache_bytes(const pst_transformer *t, uint32_t max_tokens, pst_dtype kv_type)
{
    return (uint64_t)t->kv_heads * max_tokens * t->head_dim * pst_dtype_bits(kv_type) / 8;
}

void pst_forward_measure(const pst_forward_config *config, pst_forward_memory *out)
{
    const pst_transformer *t = config->transformer;
    uint64_t per_sequence;
    /* kv_heads and head_dim are below 2^15 and max_tokens below 2^32 (config.c), so only these products can overflow. */
    if (__builtin_mul_overflow(cache_bytes(t, config->max_tokens, config->kv_type), 2ull * t->layers, &per_sequence) ||
        __builtin_mul_overflow(per_sequence, config->max_sequences, &out->kv_bytes))
        out->kv_bytes = UINT64_MAX;
    /* The bookkeeping of a row: position, logits row, segment and its sequence. */
    out->row_bytes = group_bytes(config, lasting, COUNT(lasting)) + shared_bytes(config) + sizeof(pst_segment) +
                     3 * sizeof(uint32_t);
    out->logit_row_bytes = group_bytes(config, of_logits, COUNT(of_logits)) + sizeof(uint32_t);
    out->fixed_bytes = (uint64_t)config->max_tokens * t->head_dim * sizeof(float);
}

static void place_group(pst_forward *f, const pst_forward_config *config, const pst_nn_buffer *group, size_t count,
                        uint64_t rows, uint64_t offset)
{
    for (size_t i = 0; i < count; i++) {
        pst_nn_buffer buffer = group[i];
        f->buffers[buffer] = (pst_matrix){.data = f->activations + offset,
                                          .type = buffer_type(config, buffer),
                                          .columns = pst_nn_width(config->transformer, buffer),
                                          .stride = buffer_stride(config, buffer)};
        offset += rows * buffer_bytes(config, buffer);
    }
}

static int make_activations(pst_forward *f, const pst_forward_config *config, pst_error *err)
{
    uint64_t rows = config->max_rows, logit_rows = config->max_logit_rows;
    uint64_t lasting_bytes = rows * group_bytes(config, lasting, COUNT(lasting));
    uint64_t shared = rows * shared_bytes(config);
    f->activation_bytes = lasting_bytes + shared + logit_rows * group_bytes(config, of_logits, COUNT(of_logits));
    PST_TRY(pst_memory_map(f->activation_bytes, "activations", (void **)&f->activations, err));
    place_group(f, config, lasting, COUNT(lasting), rows, 0);
    place_group(f, config, of_attention, COUNT(of_attention), rows, lasting_bytes);
    place_group(f, config, of_mlp, COUNT(of_mlp), rows, lasting_bytes);
    place_group(f, config, of_logits, COUNT(of_logits), logit_rows, lasting_bytes + shared);
    return 0;
}

/* The longest bias of the model, so that none needs an allocation on the way. */
static uint64_t longest_vector(const pst_program *program)
{
    uint64_t most = 1;
    for (uint32_t s = 1; s < program->stage_count; s++)
        for (uint32_t i = 0; i < program->stages[s].tensor_count; i++)
            if (program->stages[s].tensors[i].rows == 1 && program->stages[s].tensors[i].row_bytes > most)
                most = program->stages[s].tensors[i].row_bytes;
    return most;
}

static int make_tables(pst_forward *f, const pst_forward_config *config, pst_error *err)
{
    uint64_t vector_bytes = longest_vector(config->program);
    f->bias = pst_heap_alloc(vector_bytes);
    f->positions = pst_heap_calloc(f->max_rows, sizeof *f->positions);
    f->logit_row = pst_heap_calloc(f->max_logit_rows, sizeof *f->logit_row);
    f->segments = pst_heap_calloc(f->max_rows, sizeof *f->segments);
    f->segment_sequence = pst_heap_calloc(f->max_rows, sizeof *f->segment_sequence);
    if (!f->bias || !f->positions || !f->logit_row || !f->segments || !f->segment_sequence)
        return pst_fail_memory(err, "the rows of a pass", vector_bytes + f->max_rows * sizeof *f->segments);
    f->rope_bytes = (uint64_t)f->max_tokens * f->t->head_dim * sizeof(float);
    PST_TRY(pst_memory_map(f->rope_bytes, "rotary angles", (void **)&f->rope_table, err));
    pst_rope_table(&f->t->rope, f->t->head_dim, f->max_tokens, f->rope_table);
    return 0;
}

int pst_forward_create(const pst_forward_config *config, pst_forward **out, pst_error *err)
{
    pst_forward *f = pst_heap_calloc(1, sizeof *f);
    if (f == NULL)
        return pst_fail_memory(err, "a pass", sizeof *f);
    pst_forward_memory memory;
    pst_forward_measure(config, &memory);
    f->t = config->transformer;
    f->device = config->device;
    f->program = config->program;
    f->max_rows = config->max_rows;
    f->max_logit_rows = config->max_logit_rows;
    f->max_sequences = config->max_sequences;
    f->max_tokens = config->max_tokens;
    f->kv_type = config->kv_type;
    f->kv_bytes = memory.kv_bytes;
    int status;
    PST_TRY_GOTO(fail, make_activations(f, config, err));
    PST_TRY_GOTO(fail, make_tables(f, config, err));
    PST_TRY_GOTO(fail, pst_memory_map(f->kv_bytes, "the KV cache", (void **)&f->kv, err));
    config->program->forward = f;
    *out = f;
    return 0;
fail:
    pst_forward_destroy(f);
    return status;
}

void pst_forward_destroy(pst_forward *f)
{
    if (f == NULL)
        return;
    pst_memory_unmap(f->activations, f->activation_bytes);
    pst_memory_unmap(f->rope_table, f->rope_bytes);
    pst_memory_unmap(f->kv, f->kv_bytes);
    pst_heap_free(f->bias);
    pst_heap_free(f->positions);
    pst_heap_free(f->logit_row);
    pst_heap_free(f->segments);
    pst_heap_free(f->segment_sequence);
    pst_heap_free(f);
}

void pst_forward_bind_cache(const pst_forward *f, pst_segment *segment, uint32_t sequence, uint32_t layer)
{
    uint64_t bytes = cache_bytes(f->t, f->max_tokens, f->kv_type);
    segment->k = f->kv + ((uint64_t)sequence * f->t->layers + layer) * 2 * bytes;
    segment->v = (unsigned char *)segment->k + bytes;
}
