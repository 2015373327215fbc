/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The memory of a pass. A buffer exists only if a step of the program uses it. Attention's buffers, the dense MLP's, the
 * experts' and those before the first layer are never alive together, so they share one place. Rows are padded so that rows
 * of a power-of-two width do not fall onto the same cache sets.
 */
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/number.h"
#include "nn/forward_internal.h"

enum { STRIDE_UNIT = 32 /* elements: two vectors of f32, one of bf16 */ };
/* In an accelerator's memory, where buffers begin at multiples of 256 bytes. */
enum { APART_SLACK = 1 << 14 };

static pst_dtype buffer_type(const pst_forward_config *config, pst_nn_buffer buffer)
{
    switch (buffer) {
    case PST_NN_H:
    case PST_NN_A:
    case PST_NN_CQN:
    case PST_NN_M:
    case PST_NN_SM:
    case PST_NN_EH:
    case PST_NN_EM:
    case PST_NN_T: return config->compute_type; /* inputs of products */
    default: return PST_F32;
    }
}

static uint64_t buffer_stride(const pst_forward_config *config, pst_nn_buffer buffer)
{
    uint64_t width = pst_nn_width(config->transformer, buffer);
    if (buffer == PST_NN_Q || buffer == PST_NN_K) /* normed head by head as one matrix of rows * heads rows */
        return width;
    return (width + STRIDE_UNIT - 1) / STRIDE_UNIT * STRIDE_UNIT + STRIDE_UNIT;
}

/* Rows of a buffer, for so many of a pass. On an accelerator the rows of experts may have a place each, and EY some to add from:
 * experts_apart.c. */
static uint64_t buffer_rows(const pst_forward_config *config, pst_nn_buffer buffer, uint64_t rows)
{
    const pst_transformer *t = config->transformer;
    if (!config->apart || buffer < PST_NN_EH || buffer >= PST_NN_S || !pst_experts_have_places(t))
        return rows;
    return pst_max(rows, pst_min(rows, PST_PLACED_ROWS) * (t->experts_per_token + (buffer == PST_NN_EY ? 1 : 0)));
}

/* Bytes of one row. */
static uint64_t buffer_bytes(const pst_forward_config *config, pst_nn_buffer buffer)
{
    return buffer_stride(config, buffer) * pst_dtype_bits(buffer_type(config, buffer)) / 8;
}

/* The buffers that steps name, and those that their kinds imply. */
static void find_used(const pst_program *program, bool used[PST_NN_BUFFERS])
{
    used[PST_NN_X] = true;
    for (uint32_t s = program->gathered_stages; s < program->stage_count; s++) {
        for (uint32_t i = 0; i < program->nn_stages[s].step_count; i++) {
            const pst_nn_op *op = program->nn_stages[s].steps[i].op;
            used[op->in] = used[op->out] = true;
            if (op->kind == PST_NN_SPLIT_QKV)
                used[PST_NN_Q] = used[PST_NN_K] = used[PST_NN_V] = true;
            else if (op->kind == PST_NN_ATTENTION)
                used[PST_NN_K] = used[PST_NN_V] = true;
            else if (op->kind == PST_NN_GATED)
                used[op->in + 1] = true;
        }
    }
}

/* The groups of buffers by their lives: what lasts through a pass, what lives before the layers, in attention, in a dense
 * MLP, in one of experts, and what is made of the rows whose logits are wanted. */
typedef enum group { LASTING, OF_FRONT, OF_ATTENTION, OF_MLP, OF_EXPERTS, OF_LOGITS, GROUPS } group;

static group group_of(pst_nn_buffer buffer)
{
    if (buffer == PST_NN_X || buffer == PST_NN_H)
        return LASTING;
    if (buffer == PST_NN_E)
        return OF_FRONT;
    if (buffer < PST_NN_G)
        return OF_ATTENTION;
    if (buffer < PST_NN_SG)
        return OF_MLP;
    return buffer < PST_NN_S ? OF_EXPERTS : OF_LOGITS;
}

/* Bytes of a row of each group; `shared` is the place of those between lasting and logits. */
typedef struct group_sizes {
    bool used[PST_NN_BUFFERS];
    uint64_t bytes[GROUPS], shared;
} group_sizes;

static void measure_groups(const pst_forward_config *config, group_sizes *out)
{
    *out = (group_sizes){0};
    find_used(config->program, out->used);
    for (pst_nn_buffer buffer = 0; buffer < PST_NN_BUFFERS; buffer++)
        if (out->used[buffer])
            out->bytes[group_of(buffer)] += buffer_bytes(config, buffer);
    for (group g = OF_FRONT; g < OF_LOGITS; g++)
        out->shared = out->bytes[g] > out->shared ? out->bytes[g] : out->shared;
}

/* What places take beyond a row for each row of a pass, at most. */
static uint64_t places_bytes(const pst_forward_config *config, const group_sizes *groups)
{
    uint64_t sum = 0;
    for (pst_nn_buffer buffer = PST_NN_EH; buffer < PST_NN_S; buffer++)
        if (groups->used[buffer])
            sum += (buffer_rows(config, buffer, PST_PLACED_ROWS) - PST_PLACED_ROWS) * buffer_bytes(config, buffer);
    return sum;
}

static bool is_rotated(const pst_program *program)
{
    for (uint32_t s = program->gathered_stages; s < program->stage_count; s++)
        for (uint32_t i = 0; i < program->nn_stages[s].step_count; i++)
            if (program->nn_stages[s].steps[i].op->kind == PST_NN_ROPE ||
                program->nn_stages[s].steps[i].op->kind == PST_NN_LATENT_ATTENTION)
                return true;
    return false;
}

/* The longest of each kind of the small tensors beside a matrix, so that none needs an allocation on the way. */
typedef struct small_sizes {
    uint64_t bias, aux[PST_NN_AUX];
} small_sizes;

static void grow(uint64_t *most, const pst_stage *stage, int32_t tensor)
{
    if (tensor >= 0 && stage->tensors[tensor].row_bytes > *most)
        *most = stage->tensors[tensor].row_bytes;
}

static small_sizes measure_small(const pst_program *program)
{
    small_sizes most = {0};
    for (uint32_t s = program->gathered_stages; s < program->stage_count; s++) {
        for (uint32_t i = 0; i < program->nn_stages[s].step_count; i++) {
            const pst_nn_step *step = &program->nn_stages[s].steps[i];
            grow(&most.bias, &program->stages[s], step->bias);
            for (int a = 0; a < PST_NN_AUX; a++)
                grow(&most.aux[a], &program->stages[s], step->aux[a]);
        }
    }
    return most;
}

/* Bytes of a row of what gathered rows are put together in before they are copied to an accelerator. */
static uint64_t staging_bytes(const pst_forward_config *config, const group_sizes *groups)
{
    if (!groups->used[PST_NN_E])
        return buffer_bytes(config, PST_NN_X);
    bool has_positions = config->transformer->family->positions != NULL;
    return buffer_bytes(config, PST_NN_E) + (has_positions ? buffer_bytes(config, PST_NN_X) : 0);
}

/* What the device has in memory of its own, beside what both have. */
static void measure_apart(const pst_forward_config *config, const group_sizes *groups, uint64_t small,
                          pst_forward_memory *out)
{
    const pst_transformer *t = config->transformer;
    out->row_bytes += staging_bytes(config, groups);
    out->fixed_bytes += APART_SLACK; /* pinned memory begins there, too */
    out->fetched_row_bytes = buffer_bytes(config, PST_NN_LOGITS);
    out->device_row_bytes = groups->bytes[LASTING] + groups->shared + sizeof(pst_segment) + sizeof(uint32_t);
    out->device_logit_row_bytes = groups->bytes[OF_LOGITS] + sizeof(uint32_t);
    out->device_fixed_bytes = small + pst_latent_bytes(config) + APART_SLACK + places_bytes(config, groups) +
                              (t->alibi ? t->heads * sizeof(float) : 0);
    pst_experts_apart_measure(config, out);
}

void pst_forward_measure(const pst_forward_config *config, pst_forward_memory *out)
{
    const pst_transformer *t = config->transformer;
    group_sizes groups;
    measure_groups(config, &groups);
    small_sizes sizes = measure_small(config->program);
    uint64_t small = sizes.bias;
    for (int a = 0; a < PST_NN_AUX; a++)
        small += sizes.aux[a];
    *out = (pst_forward_memory){0};
    /* The bookkeeping of a row: position, logits row, segment and its sequence. */
    out->row_bytes = sizeof(pst_segment) + 3 * sizeof(uint32_t) + pst_experts_row_bytes(config);
    out->logit_row_bytes = sizeof(uint32_t);
    out->fixed_bytes = t->family->positions != NULL ? t->hidden * sizeof(float) : 0;
    out->fixed_bytes += pst_route_fixed_bytes(t) + (t->alibi ? t->heads * sizeof(float) : 0);
    out->fixed_bytes += config->look_ahead ? pst_look_ahead_bytes(t, config->program) : 0;
    if (config->apart) {
        measure_apart(config, &groups, small, out);
    } else {
        out->row_bytes += groups.bytes[LASTING] + groups.shared;
        out->logit_row_bytes += groups.bytes[OF_LOGITS];
        out->fixed_bytes += small + pst_latent_bytes(config);
    }
    if (!is_rotated(config->program))
        return;
    const uint64_t angles = t->rope.rotary * sizeof(float);
    out->fixed_bytes += t->rope.rotary / 2 * sizeof(float);
    if (pst_rope_depends_on_length(&t->rope)) {
        out->row_bytes += angles;
        out->device_row_bytes += config->apart ? angles : 0;
    } else {
        *(config->apart ? &out->device_fixed_bytes : &out->fixed_bytes) += config->max_tokens * angles;
    }
}

/* Bytes of a group in a pass of so many rows. */
static uint64_t group_bytes(const pst_forward_config *config, const group_sizes *groups, group which, uint64_t rows)
{
    uint64_t sum = 0;
    for (pst_nn_buffer buffer = 0; buffer < PST_NN_BUFFERS; buffer++)
        if (groups->used[buffer] && group_of(buffer) == which)
            sum += buffer_rows(config, buffer, rows) * buffer_bytes(config, buffer);
    return sum;
}

static uint64_t place_group(pst_forward *f, const pst_forward_config *config, const group_sizes *groups, group which,
                            uint64_t rows, uint64_t offset)
{
    for (pst_nn_buffer buffer = 0; buffer < PST_NN_BUFFERS; buffer++) {
        if (!groups->used[buffer] || group_of(buffer) != which)
            continue;
        f->buffers[buffer] = (pst_matrix){.data = f->activations + offset,
                                          .type = buffer_type(config, buffer),
                                          .columns = pst_nn_width(config->transformer, buffer),
                                          .stride = buffer_stride(config, buffer)};
        offset += buffer_rows(config, buffer, rows) * buffer_bytes(config, buffer);
        if (f->apart)
            offset = pst_round_up(offset, PST_APART_ALIGNMENT);
    }
    return offset;
}

static int make_activations(pst_forward *f, const pst_forward_config *config, pst_error *err)
{
    group_sizes groups;
    measure_groups(config, &groups);
    const uint64_t rows = config->max_rows, slack = f->apart ? PST_NN_BUFFERS * PST_APART_ALIGNMENT : 0;
    uint64_t shared = 0;
    for (group g = OF_FRONT; g < OF_LOGITS; g++)
        shared = pst_max(shared, group_bytes(config, &groups, g, rows));
    f->activation_bytes =
        rows * groups.bytes[LASTING] + shared + config->max_logit_rows * groups.bytes[OF_LOGITS] + slack;
    PST_TRY(pst_nn_take_memory(f->device, PST_MEMORY_DEVICE, f->activation_bytes, "activations",
                               (void **)&f->activations, err));
    const uint64_t lasting = place_group(f, config, &groups, LASTING, rows, 0);
    uint64_t end = lasting;
    for (group g = OF_FRONT; g < OF_LOGITS; g++)
        end = pst_max(end, place_group(f, config, &groups, g, rows, lasting));
    place_group(f, config, &groups, OF_LOGITS, config->max_logit_rows, end);
    return 0;
}

/* What the host fills and reads of the activations: of an accelerator's in pinned memory. */
static int make_host_side(pst_forward *f, pst_error *err)
{
    const pst_matrix *x = &f->buffers[PST_NN_X], *e = &f->buffers[PST_NN_E];
    const bool is_projected = e->data != NULL;
    f->gathered[0] = is_projected ? *e : *x;
    f->gathered[1] = *x;
    if (!f->apart)
        return 0;
    const uint64_t rows = f->max_rows, e_bytes = rows * f->gathered[0].stride * sizeof(float);
    const bool is_apart =
        is_projected && f->t->family->positions != NULL; /* positions are not added to what is gathered */
    f->staging_bytes = e_bytes + (is_apart ? rows * x->stride * sizeof(float) : 0);
    PST_TRY(pst_nn_take_memory(f->device, PST_MEMORY_HOST, f->staging_bytes, "embeddings", (void **)&f->staging, err));
    memset(f->staging, 0, f->staging_bytes); /* padding is copied, too */
    f->gathered[0].data = f->gathered[1].data = f->staging;
    if (is_projected)
        f->gathered[1].data = is_apart ? f->staging + e_bytes : NULL;
    f->fetched_bytes = f->fetched_rows * f->buffers[PST_NN_LOGITS].stride * sizeof(float);
    return pst_nn_take_memory(f->device, PST_MEMORY_HOST, f->fetched_bytes, "logits", &f->fetched, err);
}

/* Room for the small tensors. */
static int make_small(pst_forward *f, pst_error *err)
{
    small_sizes sizes = measure_small(f->program);
    const uint64_t unit = f->apart ? PST_APART_ALIGNMENT : sizeof(double);
    f->small_bytes = pst_round_up(sizes.bias, unit);
    for (int a = 0; a < PST_NN_AUX; a++)
        f->small_bytes += pst_round_up(sizes.aux[a], unit);
    const char *what = "the small tensors of a product";
    if (f->apart)
        PST_TRY(pst_nn_take_memory(f->device, PST_MEMORY_DEVICE, f->small_bytes, what, (void **)&f->small, err));
    else if ((f->small = pst_heap_calloc(f->small_bytes + 1, 1)) == NULL)
        return pst_fail_memory(err, what, f->small_bytes);
    int status = f->apart ? f->device->ops->fill(f->device, NULL, f->small, 0, pst_max(f->small_bytes, 1)) : 0;
    if (status < 0)
        return pst_device_fail(err, f->device, status, "clearing memory");
    f->bias_now = f->bias = f->small;
    unsigned char *next = f->small + pst_round_up(sizes.bias, unit);
    for (int a = 0; a < PST_NN_AUX; a++) {
        f->aux_now[a] = f->aux[a] = next; /* zeros: an index is valid before it comes */
        next += pst_round_up(sizes.aux[a], unit);
    }
    if (f->t->family->positions == NULL)
        return 0;
    f->position_row = pst_heap_calloc(f->t->hidden, sizeof *f->position_row);
    return f->position_row != NULL ? 0 : pst_fail_memory(err, "a learned position", f->t->hidden * sizeof(float));
}

/* The tables that operators read, by rows of a pass. */
static int make_row_tables(pst_forward *f, pst_error *err)
{
    const char *what = "the rows of a pass";
    PST_TRY(pst_mirror_create(f->device, f->max_rows * sizeof *f->rope_rows, what, &f->rope_row_table, err));
    PST_TRY(pst_mirror_create(f->device, f->max_logit_rows * sizeof *f->logit_row, what, &f->logit_row_table, err));
    PST_TRY(pst_mirror_create(f->device, f->max_rows * sizeof *f->segments, what, &f->segment_table, err));
    f->rope_rows = f->rope_row_table.host;
    f->logit_row = f->logit_row_table.host;
    f->segments = f->segment_table.host;
    f->segment_sequence = pst_heap_calloc(f->max_rows, sizeof *f->segment_sequence);
    return f->segment_sequence ? 0 : pst_fail_memory(err, what, f->max_rows * sizeof *f->segment_sequence);
}

/* Writes the angles of every position, on an accelerator piece by piece: the host keeps none of them. */
static int fill_rope(pst_forward *f, pst_error *err)
{
    enum { PIECE_ROWS = 256 };
    const pst_rope *rope = &f->t->rope;
    float *to = f->rope_memory, *rows = NULL;
    if (!f->apart) {
        pst_rope_table(rope, f->max_tokens, f->rope_frequencies, to);
        return 0;
    }
    rows = pst_heap_calloc(PIECE_ROWS, rope->rotary * sizeof *rows);
    if (rows == NULL)
        return pst_fail_memory(err, "rotary angles", PIECE_ROWS * rope->rotary * sizeof *rows);
    pst_rope_frequencies(rope, f->max_tokens, f->rope_frequencies);
    int status = 0;
    for (uint32_t first = 0; first < f->max_tokens && status >= 0; first += PIECE_ROWS) {
        const uint32_t count = (uint32_t)pst_min(f->max_tokens - first, PIECE_ROWS);
        for (uint32_t i = 0; i < count; i++)
            pst_rope_row(rope, f->rope_frequencies, first + i, rows + (size_t)i * rope->rotary);
        status = f->device->ops->copy(f->device, NULL, to + (size_t)first * rope->rotary, rows,
                                      (uint64_t)count * rope->rotary * sizeof *rows);
    }
    pst_heap_free(rows); /* copying from pageable memory has waited */
    return status < 0 ? pst_device_fail(err, f->device, status, "copying rotary angles") : 0;
}

static int make_rope(pst_forward *f, pst_error *err)
{
    const pst_rope *rope = &f->t->rope;
    f->rope_frequencies = pst_heap_calloc(rope->rotary / 2 + 1, sizeof *f->rope_frequencies);
    if (f->rope_frequencies == NULL)
        return pst_fail_memory(err, "rotary frequencies", rope->rotary / 2 * sizeof *f->rope_frequencies);
    if (!is_rotated(f->program))
        return 0;
    const uint64_t row_bytes = rope->rotary * sizeof(float);
    if (pst_rope_depends_on_length(rope)) {
        PST_TRY(pst_mirror_create(f->device, f->max_rows * row_bytes, "rotary angles", &f->rope_rows_table, err));
        f->rope_table = f->rope_rows_table.there;
        return 0;
    }
    f->rope_bytes = f->max_tokens * row_bytes;
    PST_TRY(pst_nn_take_memory(f->device, PST_MEMORY_DEVICE, f->rope_bytes, "rotary angles", &f->rope_memory, err));
    f->rope_table = f->rope_memory;
    return fill_rope(f, err);
}

static int make_alibi(pst_forward *f, pst_error *err)
{
    if (!f->t->alibi)
        return 0;
    const uint64_t bytes = f->t->heads * sizeof(float);
    PST_TRY(pst_mirror_create(f->device, bytes, "the slopes of heads", &f->alibi, err));
    pst_alibi_slopes(f->t->heads, f->alibi.host);
    int status = pst_mirror_publish(f->device, &f->alibi, 0, bytes);
    return status < 0 ? pst_device_fail(err, f->device, status, "copying the slopes of heads") : 0;
}

int pst_forward_create(const pst_forward_config *config, pst_forward **out, pst_error *err)
{
    pst_forward *f = pst_heap_calloc(1, sizeof *f);
    if (f == NULL)
        return pst_fail_memory(err, "a pass", sizeof *f);
    f->t = config->transformer;
    f->device = config->device;
    f->host = config->host ? config->host : config->device;
    f->apart = config->apart;
    f->program = config->program;
    f->max_rows = config->max_rows;
    f->max_logit_rows = config->max_logit_rows;
    f->fetched_rows = config->fetched_rows;
    f->max_sequences = config->max_sequences;
    f->max_tokens = config->max_tokens;
    f->kv_layout = pst_kv_layout_of(config->transformer, config->kv_type);
    f->kv = config->kv;
    f->rounds_positions = config->repeats;
    int status;
    PST_TRY_GOTO(fail, make_activations(f, config, err));
    PST_TRY_GOTO(fail, make_small(f, err));
    PST_TRY_GOTO(fail, make_host_side(f, err));
    PST_TRY_GOTO(fail, make_row_tables(f, err));
    PST_TRY_GOTO(fail, make_rope(f, err));
    PST_TRY_GOTO(fail, make_alibi(f, err));
    PST_TRY_GOTO(fail, pst_experts_create(f, config, err));
    PST_TRY_GOTO(fail, pst_latent_create(f, config, err));
    PST_TRY_GOTO(fail, pst_look_ahead_create(f, config, err));
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
    pst_device *device = f->device;
    if (f->apart) /* a pass that failed may have left work that uses all this */
        device->ops->synchronize(device, NULL);
    pst_nn_give_memory(device, PST_MEMORY_DEVICE, f->activations, f->activation_bytes);
    pst_nn_give_memory(device, PST_MEMORY_HOST, f->staging, f->staging_bytes);
    pst_nn_give_memory(device, PST_MEMORY_HOST, f->fetched, f->fetched_bytes);
    pst_nn_give_memory(device, PST_MEMORY_DEVICE, f->rope_memory, f->rope_bytes);
    pst_experts_destroy(f);
    pst_latent_destroy(f);
    pst_look_ahead_destroy(f);
    if (f->apart)
        pst_nn_give_memory(device, PST_MEMORY_DEVICE, f->small, f->small_bytes);
    else
        pst_heap_free(f->small);
    pst_heap_free(f->position_row);
    pst_heap_free(f->rope_frequencies);
    pst_mirror_destroy(device, &f->rope_row_table);
    pst_mirror_destroy(device, &f->rope_rows_table);
    pst_mirror_destroy(device, &f->logit_row_table);
    pst_mirror_destroy(device, &f->segment_table);
    pst_mirror_destroy(device, &f->alibi);
    pst_heap_free(f->segment_sequence);
    pst_heap_free(f);
}
