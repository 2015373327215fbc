/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Running stages; see forward.h. A stage's steps run in order, each as far as its weights have arrived; the functions are
 * found in one table by the operator's kind. forward_memory.c makes what is computed in.
 */
#include "nn/forward.h"

#include <stdio.h>

#include "base/error.h"
#include "base/number.h"
#include "nn/forward_internal.h"

static pst_forward_op *const operators[] = {
    [PST_NN_NORM] = pst_forward_norm,
    [PST_NN_HEAD_NORM] = pst_forward_norm,
    [PST_NN_LAYER_NORM] = pst_forward_layer_norm,
    [PST_NN_MATMUL] = pst_forward_matmul,
    [PST_NN_SPLIT_QKV] = pst_forward_split_qkv,
    [PST_NN_ROPE] = pst_forward_rope,
    [PST_NN_ATTENTION] = pst_forward_attention,
    [PST_NN_ACTIVATE] = pst_forward_activate,
    [PST_NN_COPY] = pst_forward_copy,
    [PST_NN_GATED] = pst_forward_gated,
    [PST_NN_LATENT_NORM] = pst_forward_latent_norm,
    [PST_NN_LATENT_KEEP] = pst_forward_latent_keep,
    [PST_NN_LATENT_ATTENTION] = pst_forward_latent_attention,
    [PST_NN_ROUTE] = pst_forward_route,
    [PST_NN_EXPERT_TAKE] = pst_forward_expert_take,
    [PST_NN_EXPERT_ADD] = pst_forward_expert_add,
    [PST_NN_SELECT] = pst_forward_select,
};

pst_matrix pst_forward_matrix(const pst_forward *f, pst_nn_buffer buffer)
{
    pst_matrix matrix = f->buffers[buffer];
    matrix.rows = buffer >= PST_NN_S ? f->logit_rows : f->row_count;
    if (buffer >= PST_NN_EH && buffer < PST_NN_S) {
        matrix.rows = f->expert_rows;
        matrix.data = (char *)matrix.data + f->routed.first_row * matrix.stride * (pst_dtype_bits(matrix.type) / 8);
    }
    return matrix;
}

size_t pst_forward_prompt_rows(const pst_forward *f, size_t first, size_t count)
{
    const size_t end = first + count, prompts = pst_max(first, f->generated_rows);
    return end > prompts ? end - prompts : 0;
}

int pst_forward_checked(const pst_forward_run *run, int status)
{
    if (status >= 0)
        return 1;
    char what[64];
    snprintf(what, sizeof what, "%.40s: computing", run->stage->name);
    return pst_device_fail(run->err, run->f->device, status, what);
}

const pst_piece *pst_forward_next_piece(const pst_forward_run *run, int32_t tensor)
{
    const pst_forward *f = run->f;
    if (f->next_piece >= run->part->piece_count)
        return NULL;
    const pst_piece *piece = &run->part->pieces[f->next_piece];
    return piece->tensor == (uint32_t)tensor ? piece : NULL;
}

/* Whether what is left of a step's matrix is in this part. */
static bool ends_here(const pst_forward_run *run, int32_t matrix)
{
    for (size_t i = run->f->next_piece; i < run->part->piece_count; i++) {
        const pst_piece *piece = &run->part->pieces[i];
        if (piece->tensor == (uint32_t)matrix)
            return piece->first_row + piece->rows == run->stage->tensors[matrix].rows;
    }
    return false;
}

static int keep(const pst_forward_run *run, const pst_nn_step *step, int32_t tensor, unsigned char *to,
                const unsigned char **out_now)
{
    pst_forward *f = run->f;
    const pst_piece *piece = tensor < 0 ? NULL : pst_forward_next_piece(run, tensor);
    if (piece == NULL)
        return 0;
    const unsigned char *from = run->part->memory + piece->offset;
    f->next_piece++;
    *out_now = from;
    if (ends_here(run, step->weight))
        return 0;
    *out_now = to;
    return pst_forward_checked(run,
                               f->device->ops->copy(f->device, NULL, to, from, run->stage->tensors[tensor].row_bytes));
}

int pst_forward_keep_bias(const pst_forward_run *run, const pst_nn_step *step)
{
    return keep(run, step, step->bias, run->f->bias, &run->f->bias_now);
}

int pst_forward_keep_aux(const pst_forward_run *run, const pst_nn_step *step)
{
    for (int i = 0; i < PST_NN_AUX; i++)
        PST_TRY(keep(run, step, step->aux[i], run->f->aux[i], &run->f->aux_now[i]));
    return 0;
}

pst_weight pst_forward_weight(const pst_forward_run *run, const pst_nn_step *step, const pst_piece *piece,
                              size_t columns)
{
    const pst_forward *f = run->f;
    pst_weight weight = {.data = run->part->memory + piece->offset,
                         .type = run->stage->tensors[piece->tensor].tensor->dtype,
                         .rows = piece->rows,
                         .columns = columns,
                         .format = step->format,
                         .first_row = piece->first_row};
    weight.scales = step->aux[0] >= 0 ? f->aux_now[0] : NULL;
    weight.zeros = step->aux[1] >= 0 ? f->aux_now[1] : NULL;
    weight.index = step->aux[2] >= 0 ? (const int32_t *)(const void *)f->aux_now[2] : NULL;
    return weight;
}

/* A part of another stage than the last one has come. */
static void begin_stage(pst_forward *f, const pst_stage *stage)
{
    f->stage = stage;
    f->next_step = 0;
}

/* The steps that the part's next piece can bring on: those of its unit; units before it that the pass did not need are
 * passed over. */
static uint32_t end_of_unit(const pst_forward_run *run)
{
    pst_forward *f = run->f;
    if (run->stage->unit_count == 0 || f->next_piece >= run->part->piece_count)
        return run->nn->step_count;
    const uint32_t steps = run->nn->step_count / run->stage->unit_count;
    uint32_t low = 0, high = run->stage->unit_count; /* the unit is in [low, high) */
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (run->stage->unit_first_tensor[middle] <= run->part->pieces[f->next_piece].tensor)
            low = middle;
        else
            high = middle;
    }
    f->next_step = f->next_step > low * steps ? f->next_step : low * steps;
    return (low + 1) * steps;
}

/* Runs steps up to `end`, or as far as the part goes. */
static int run_steps(const pst_forward_run *run, uint32_t end)
{
    for (pst_forward *f = run->f; f->next_step < end; f->next_step++) {
        const pst_nn_step *step = &run->nn->steps[f->next_step];
        pst_forward_op *op = operators[step->op->kind];
        if (op == NULL)
            return pst_fail(run->err, PST_E_UNSUPPORTED, NULL, "%s: an operator that does not exist", run->stage->name);
        int status = op(run, step);
        PST_TRY(status);
        if (status == 0)
            break;
    }
    return 0;
}

int pst_forward_compute(void *context, const pst_stage *stage, const pst_part_view *part, pst_error *err)
{
    const pst_nn_stage *nn = context;
    pst_forward *f = *nn->forward;
    pst_forward_run run = {f, nn, stage, part, err};
    if (f->routed.failed < 0)
        return pst_device_fail(err, f->device, f->routed.failed, "choosing experts");
    if (f->stage != stage)
        begin_stage(f, stage);
    if (f->look.layers != NULL)
        pst_look_ahead_remember(&run);
    size_t before;
    f->next_piece = 0;
    do { /* a part may hold several units */
        before = f->next_piece;
        PST_TRY(run_steps(&run, end_of_unit(&run)));
    } while (f->next_piece > before && f->next_piece < part->piece_count);
    return 0;
}

uint32_t pst_forward_choose_head(void *context, const pst_stage *stage, bool *wanted)
{
    (void)stage;
    const pst_nn_stage *nn = context;
    wanted[0] = (*nn->forward)->logit_rows > 0;
    return wanted[0];
}

/* Finds a row's cosines and sines, or computes them where they depend on the sequence's length. */
static void turn_row(pst_forward *f, uint32_t index, const pst_row *row)
{
    const pst_rope *rope = &f->t->rope;
    if (f->rope_table == NULL || !pst_rope_depends_on_length(rope)) {
        f->rope_rows[index] = row->position;
        return;
    }
    f->rope_rows[index] = index;
    pst_rope_frequencies(rope, row->position < row->prompt ? row->prompt : row->position + 1, f->rope_frequencies);
    pst_rope_row(rope, f->rope_frequencies, row->position,
                 (float *)f->rope_rows_table.host + (size_t)index * rope->rotary);
}

/* What operators read of the rows of this pass. */
static int publish_rows(pst_forward *f, pst_error *err)
{
    const uint64_t angles = f->rope_rows_table.bytes ? f->t->rope.rotary * sizeof(float) : 0;
    const struct {
        const pst_mirror *mirror;
        uint64_t bytes;
    } tables[] = {{&f->segment_table, f->segment_count * sizeof *f->segments},
                  {&f->rope_row_table, f->rope_table ? f->row_count * sizeof *f->rope_rows : 0},
                  {&f->rope_rows_table, f->row_count * angles},
                  {&f->logit_row_table, f->logit_rows * sizeof *f->logit_row}};
    for (size_t i = 0; i < sizeof tables / sizeof tables[0]; i++) {
        int status = pst_mirror_publish(f->device, tables[i].mirror, 0, tables[i].bytes);
        if (status < 0)
            return pst_device_fail(err, f->device, status, "copying the rows of a pass");
    }
    return 0;
}

int pst_forward_begin(pst_forward *f, const pst_row *rows, uint32_t count, pst_error *err)
{
    if (count == 0 || count > f->max_rows)
        return pst_fail(err, PST_E_USAGE, NULL, "%u rows in a pass made for 1 to %u", count, f->max_rows);
    f->row_count = 0;
    f->logit_rows = 0;
    f->segment_count = 0;
    f->generated_rows = f->generated_segments = 0;
    f->stage = NULL;
    for (uint32_t i = 0; i < count; i++) {
        const pst_row *row = &rows[i];
        if (row->sequence >= f->max_sequences || row->position >= f->max_tokens || row->id >= f->t->vocab)
            return pst_fail(err, PST_E_USAGE, NULL, "sequence %u, position %u, token %u is outside the session",
                            row->sequence, row->position, row->id);
        if (row->wants_logits && f->logit_rows == f->max_logit_rows)
            return pst_fail(err, PST_E_USAGE, NULL, "a pass gives logits of at most %u rows", f->max_logit_rows);
        const bool is_generated = row->position >= row->prompt;
        if (is_generated && f->generated_rows < i)
            return pst_fail(err, PST_E_USAGE, NULL, "rows of generated tokens come before those of prompts");
        bool goes_on = i > 0 && rows[i - 1].sequence == row->sequence && rows[i - 1].position + 1 == row->position;
        if (!goes_on) {
            f->segment_sequence[f->segment_count] = row->sequence;
            f->segments[f->segment_count++] = (pst_segment){.first_row = i, .first_position = row->position};
        }
        f->segments[f->segment_count - 1].rows++;
        if (is_generated) {
            f->generated_rows = i + 1;
            f->generated_segments = f->segment_count;
        }
        turn_row(f, i, row);
        if (f->traced != NULL)
            f->traced[i] = (pst_traced_row){row->serial, row->position};
        if (row->wants_logits)
            f->logit_row[f->logit_rows++] = i;
    }
    f->row_count = count;
    pst_forward_round_positions(f);
    PST_TRY(pst_kv_begin_pass(f->kv, f->segments, f->segment_sequence, f->segment_count, err));
    return publish_rows(f, err);
}

/* Writes a gathered row as numbers. */
static int convert_row(const pst_forward *f, uint32_t stage, const void *row, float *to, size_t columns)
{
    const pst_weight_format *format = f->program->nn_stages[stage].steps->format;
    pst_weight weight = {.data = row, .type = format->type, .rows = 1, .columns = columns, .format = format};
    pst_matrix one = {to, PST_F32, 1, columns, columns};
    return f->host->ops->convert(f->host, &weight, &one);
}

int pst_forward_embed(void *forward, size_t index, const void *row)
{
    pst_forward *f = forward;
    const pst_matrix *to = &f->gathered[0];
    return convert_row(f, 0, row, (float *)to->data + index * to->stride, to->columns);
}

int pst_forward_embed_position(void *forward, size_t index, const void *row)
{
    pst_forward *f = forward;
    const pst_matrix *x = &f->gathered[1];
    float *to = (float *)x->data + index * x->stride;
    if (f->buffers[PST_NN_E].data != NULL) /* the projected embedding is added to it later */
        return convert_row(f, 1, row, to, x->columns);
    PST_TRY(convert_row(f, 1, row, f->position_row, x->columns));
    for (size_t i = 0; i < x->columns; i++)
        to[i] += f->position_row[i];
    return 0;
}

int pst_forward_gathered(pst_forward *f, pst_error *err)
{
    const bool is_projected = f->buffers[PST_NN_E].data != NULL;
    const pst_nn_buffer buffers[] = {is_projected ? PST_NN_E : PST_NN_X, PST_NN_X};
    for (int i = 0; i < 2 && f->apart; i++) {
        const pst_matrix *from = &f->gathered[i], *to = &f->buffers[buffers[i]];
        if (from->data == NULL || (i == 1 && from->data == f->gathered[0].data))
            continue;
        int status =
            f->device->ops->copy(f->device, NULL, to->data, from->data, f->row_count * from->stride * sizeof(float));
        if (status < 0)
            return pst_device_fail(err, f->device, status, "copying embeddings");
    }
    return 0;
}

int pst_forward_end(pst_forward *f, pst_error *err)
{
    if (!f->apart)
        return 0;
    int status = pst_experts_await(f);
    if (status >= 0)
        status = f->device->ops->synchronize(f->device, NULL);
    return status < 0 ? pst_device_fail(err, f->device, status, "computing") : 0;
}

pst_matrix pst_forward_logits(const pst_forward *f)
{
    return pst_forward_matrix(f, PST_NN_LOGITS);
}

int pst_forward_fetch_logits(pst_forward *f, const uint32_t *rows, uint32_t count, pst_matrix *out, pst_error *err)
{
    pst_matrix logits = pst_forward_logits(f);
    if (count > (f->apart ? f->fetched_rows : logits.rows) || (rows != NULL && !f->apart))
        return pst_fail(err, PST_E_USAGE, NULL, "logits of %u rows cannot be fetched", count);
    const char *from = logits.data;
    logits.rows = count;
    logits.data = f->apart ? f->fetched : logits.data;
    const uint64_t row_bytes = logits.stride * sizeof(float);
    int status = 0;
    if (f->apart && rows == NULL && count > 0)
        status = f->device->ops->copy(f->device, NULL, logits.data, from, count * row_bytes);
    for (uint32_t i = 0; rows != NULL && i < count && status >= 0; i++)
        status = f->device->ops->copy(f->device, NULL, (char *)logits.data + i * row_bytes, from + rows[i] * row_bytes,
                                      row_bytes);
    if (f->apart && status >= 0)
        status = f->device->ops->synchronize(f->device, NULL);
    if (status < 0)
        return pst_device_fail(err, f->device, status, "fetching logits");
    *out = logits;
    return 0;
}
