/* SPDX-License-Identifier: Apache-2.0 */
/* Running stages; see forward.h. forward_memory.c makes what is computed in. */
#include "nn/forward.h"

#include <math.h>
#include <string.h>

#include "base/error.h"
#include "nn/forward_internal.h"

/* A buffer's matrix over the rows of this pass. */
static pst_matrix matrix_of(const pst_forward *f, pst_nn_buffer buffer)
{
    pst_matrix matrix = f->buffers[buffer];
    matrix.rows = buffer >= PST_NN_S ? f->logit_rows : f->row_count;
    return matrix;
}

/* What a running stage needs at hand. */
typedef struct run {
    pst_forward *f;
    const pst_nn_stage *nn;
    const pst_stage *stage;
    const pst_part_view *part;
    pst_error *err;
} run;

static int device_failed(const run *r, int status)
{
    if (status >= 0)
        return 0;
    return pst_fail(r->err, status, NULL, "%s: computing failed: %s", r->stage->name, pst_strerror(status));
}

/* The part's next piece if it belongs to the tensor, else NULL: then the rest comes with a later part. */
static const pst_piece *next_piece(const run *r, int32_t tensor)
{
    const pst_forward *f = r->f;
    if (f->next_piece >= r->part->piece_count)
        return NULL;
    const pst_piece *piece = &r->part->pieces[f->next_piece];
    return piece->tensor == (uint32_t)tensor ? piece : NULL;
}

/* A piece's rows as a weight. */
static pst_weight weight_of(const run *r, const pst_piece *piece)
{
    const pst_tensor *tensor = r->stage->tensors[piece->tensor].tensor;
    return (pst_weight){.data = r->part->memory + piece->offset,
                        .type = tensor->dtype,
                        .rows = piece->rows,
                        .columns = tensor->shape[tensor->rank - 1]};
}

/* Runs what has arrived of a product. 1: complete, 0: more is to come. A bias lies before its matrix in the stage and may
 * come in an earlier part, whose slot is gone by the time that the matrix is computed; so it is copied. */
static int compute_matmul(const run *r, const pst_nn_step *step)
{
    pst_forward *f = r->f;
    const pst_piece *piece;
    if (step->bias >= 0 && (piece = next_piece(r, step->bias)) != NULL) {
        const pst_stage_tensor *bias = &r->stage->tensors[step->bias];
        memcpy(f->bias, r->part->memory + piece->offset, bias->row_bytes);
        f->next_piece++;
    }
    while ((piece = next_piece(r, step->weight)) != NULL) {
        pst_matmul job = {.x = matrix_of(f, step->op->in),
                          .w = weight_of(r, piece),
                          .y = matrix_of(f, step->op->out),
                          .first_column = piece->first_row,
                          .accumulate = step->op->accumulate};
        if (step->bias >= 0) {
            pst_dtype type = r->stage->tensors[step->bias].tensor->dtype;
            size_t element = pst_dtype_bits(type) / 8;
            job.bias = (pst_weight){f->bias + piece->first_row * element, type, 1, piece->rows};
        }
        if (job.x.rows > 0) /* none when no row of this pass wants logits */
            PST_TRY(device_failed(r, f->device->ops->matmul(f->device, &job)));
        f->next_piece++;
        if (piece->first_row + piece->rows == r->stage->tensors[step->weight].rows)
            return 1;
    }
    return 0;
}

/* 1: done, 0: its weight is to come. */
static int compute_norm(const run *r, const pst_nn_step *step)
{
    pst_forward *f = r->f;
    const pst_piece *piece = next_piece(r, step->weight);
    if (piece == NULL)
        return 0;
    pst_weight weight = weight_of(r, piece);
    pst_matrix in = matrix_of(f, step->op->in), out = matrix_of(f, step->op->out);
    if (step->op->kind == PST_NN_HEAD_NORM) { /* these buffers have no padding, so that heads are rows, too */
        in.rows *= in.columns / f->t->head_dim;
        in.columns = in.stride = f->t->head_dim;
        out = in;
    }
    if (in.rows > 0)
        PST_TRY(device_failed(r, f->device->ops->rms_norm(f->device, &in, &weight, f->t->norm_eps, &out)));
    f->next_piece++;
    return 1;
}

static int compute_attention(const run *r)
{
    pst_forward *f = r->f;
    const pst_transformer *t = f->t;
    pst_attention job = {.q = matrix_of(f, PST_NN_Q),
                         .out = matrix_of(f, PST_NN_A),
                         .segments = f->segments,
                         .segment_count = f->segment_count,
                         .heads = t->heads,
                         .kv_heads = t->kv_heads,
                         .head_dim = t->head_dim,
                         .capacity = f->max_tokens,
                         .window = t->windowed[r->nn->layer] ? t->window : 0,
                         .kv_type = f->kv_type,
                         .scale = 1.0f / sqrtf((float)t->head_dim)};
    return f->device->ops->attention(f->device, &job);
}

static void select_rows(pst_forward *f)
{
    pst_matrix x = matrix_of(f, PST_NN_X), s = matrix_of(f, PST_NN_S);
    for (uint32_t i = 0; i < f->logit_rows; i++)
        memcpy((float *)s.data + i * s.stride, (const float *)x.data + f->logit_row[i] * x.stride,
               x.columns * sizeof(float));
}

/* An operator without weights. */
static int compute_plain(const run *r, const pst_nn_step *step)
{
    pst_forward *f = r->f;
    const pst_device_ops *ops = f->device->ops;
    const pst_transformer *t = f->t;
    pst_matrix in = matrix_of(f, step->op->in), out = matrix_of(f, step->op->out);
    switch (step->op->kind) {
    case PST_NN_ROPE:
        return ops->rope(f->device, &in, (uint32_t)(in.columns / t->head_dim), t->head_dim, t->head_dim, f->rope_table,
                         f->positions);
    case PST_NN_STORE_KV: {
        pst_matrix v = matrix_of(f, PST_NN_V);
        return ops->kv_store(f->device, &in, &v, f->segments, f->segment_count, t->kv_heads, t->head_dim, f->max_tokens,
                             f->kv_type);
    }
    case PST_NN_ATTENTION: return compute_attention(r);
    case PST_NN_GATED: {
        pst_matrix up = matrix_of(f, PST_NN_U);
        return ops->gated(f->device, t->activation, &in, &up, &out);
    }
    case PST_NN_SELECT: select_rows(f); return 0;
    default: return PST_E_UNSUPPORTED;
    }
}

/* 1: done, 0: the rest of its weights comes with a later part. */
static int compute_step(const run *r, const pst_nn_step *step)
{
    switch (step->op->kind) {
    case PST_NN_MATMUL: return compute_matmul(r, step);
    case PST_NN_NORM:
    case PST_NN_HEAD_NORM: return compute_norm(r, step);
    default: PST_TRY(device_failed(r, compute_plain(r, step))); return 1;
    }
}

int pst_forward_compute(void *context, const pst_stage *stage, const pst_part_view *part, pst_error *err)
{
    const pst_nn_stage *nn = context;
    pst_forward *f = *nn->forward;
    run r = {f, nn, stage, part, err};
    if (part->piece_count > 0 && part->pieces[0].tensor == 0 && part->pieces[0].first_row == 0) { /* the stage begins */
        f->next_step = 0;
        for (uint32_t layer = nn->layer, i = 0; layer != UINT32_MAX && i < f->segment_count; i++)
            pst_forward_bind_cache(f, &f->segments[i], f->segment_sequence[i], layer);
    }
    f->next_piece = 0;
    while (f->next_step < nn->step_count) {
        int status = compute_step(&r, &nn->steps[f->next_step]);
        PST_TRY(status);
        if (status == 0)
            break;
        f->next_step++;
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
    for (uint32_t i = 0; i < count; i++) {
        const pst_row *row = &rows[i];
        if (row->sequence >= f->max_sequences || row->position >= f->max_tokens || row->id >= f->t->vocab)
            return pst_fail(err, PST_E_USAGE, NULL, "sequence %u, position %u, token %u is outside the session",
                            row->sequence, row->position, row->id);
        if (row->wants_logits && f->logit_rows == f->max_logit_rows)
            return pst_fail(err, PST_E_USAGE, NULL, "a pass gives logits of at most %u rows", f->max_logit_rows);
        bool goes_on = i > 0 && rows[i - 1].sequence == row->sequence && rows[i - 1].position + 1 == row->position;
        if (!goes_on) {
            f->segment_sequence[f->segment_count] = row->sequence;
            f->segments[f->segment_count++] = (pst_segment){.first_row = i, .first_position = row->position};
        }
        f->segments[f->segment_count - 1].rows++;
        f->positions[i] = row->position;
        if (row->wants_logits)
            f->logit_row[f->logit_rows++] = i;
    }
    f->row_count = count;
    return 0;
}

int pst_forward_embed(void *forward, size_t index, const void *row)
{
    pst_forward *f = forward;
    const pst_matrix *x = &f->buffers[PST_NN_X];
    const pst_nn_step *step = f->program->nn_stages[0].steps;
    pst_weight weight = {.data = row, .type = step->format->type, .rows = 1, .columns = f->t->hidden};
    pst_matrix one = {(float *)x->data + index * x->stride, PST_F32, 1, x->columns, x->stride};
    return f->device->ops->convert(f->device, &weight, &one);
}

pst_matrix pst_forward_logits(const pst_forward *f)
{
    return matrix_of(f, PST_NN_LOGITS);
}
