/* SPDX-License-Identifier: Apache-2.0 */
/* The operators that dense families are made of, attention aside; see forward_internal.h. */
#include "base/error.h"
#include "nn/forward_internal.h"

int pst_forward_norm(const pst_forward_run *run, const pst_nn_step *step)
{
    pst_forward *f = run->f;
    const pst_piece *piece = pst_forward_next_piece(run, step->weight);
    if (piece == NULL)
        return 0;
    pst_matrix in = pst_forward_matrix(f, step->op->in), out = pst_forward_matrix(f, step->op->out);
    if (step->op->kind == PST_NN_HEAD_NORM) { /* these buffers have no padding, so that heads are rows, too */
        in.rows *= in.columns / f->t->head_dim;
        in.columns = in.stride = f->t->head_dim;
        out = in;
    }
    pst_weight weight = pst_forward_weight(run, step, piece, in.columns);
    f->next_piece++;
    if (in.rows == 0)
        return 1;
    return pst_forward_checked(run, f->device->ops->rms_norm(f->device, &in, &weight, f->t->norm_eps, &out));
}

int pst_forward_layer_norm(const pst_forward_run *run, const pst_nn_step *step)
{
    pst_forward *f = run->f;
    pst_matrix in = pst_forward_matrix(f, step->op->in), out = pst_forward_matrix(f, step->op->out);
    pst_weight weight = {0}, bias = {0};
    if (step->weight >= 0) {
        PST_TRY(pst_forward_keep_bias(run, step));
        const pst_piece *piece = pst_forward_next_piece(run, step->weight);
        if (piece == NULL)
            return 0;
        weight = pst_forward_weight(run, step, piece, in.columns);
        f->next_piece++;
    }
    if (step->bias >= 0)
        bias = (pst_weight){f->bias_now, run->stage->tensors[step->bias].tensor->dtype, 1, in.columns, .format = NULL};
    if (in.rows == 0)
        return 1;
    return pst_forward_checked(run, f->device->ops->layer_norm(f->device, &in, &weight, &bias, f->t->norm_eps, &out));
}

/* The bias of the outputs that a piece gives: all of them with a transposed matrix, which begins with it. */
static pst_weight bias_of(const pst_forward_run *run, const pst_nn_step *step, const pst_weight *w, uint64_t first_row)
{
    if (step->bias < 0)
        return (pst_weight){0};
    pst_dtype type = run->stage->tensors[step->bias].tensor->dtype;
    bool is_transposed = step->format->transposed;
    uint64_t skip = is_transposed ? 0 : first_row * (pst_dtype_bits(type) / 8);
    return (pst_weight){run->f->bias_now + skip, type, 1, is_transposed ? w->columns : w->rows, .format = NULL};
}

/* Computes what is at hand of a product. */
static int multiply(const pst_forward_run *run, const pst_nn_step *step, const pst_matmul *job)
{
    int status = run->f->device->ops->matmul(run->f->device, job);
    if (status != PST_E_FORMAT || step->aux[2] < 0)
        return pst_forward_checked(run, status);
    const pst_tensor *index = run->stage->tensors[step->aux[2]].tensor;
    return pst_fail(run->err, status, pst_store_file_path(run->f->program->store, index->file),
                    "tensor %s names a group of inputs that is not there", index->name);
}

/* Rows of a step's product that are of prompts, where it computes the pass's rows as they are: see pst_matmul. */
static size_t prompt_rows_of(const pst_forward *f, const pst_nn_op *op)
{
    return op->in < PST_NN_EH ? pst_forward_prompt_rows(f, 0, f->row_count) : 0;
}

/* Runs what has arrived of a product. */
int pst_forward_matmul(const pst_forward_run *run, const pst_nn_step *step)
{
    pst_forward *f = run->f;
    const pst_nn_op *op = step->op;
    if (f->routed.is_put_off)
        return pst_experts_put_off(run, step);
    PST_TRY(pst_forward_keep_bias(run, step));
    PST_TRY(pst_forward_keep_aux(run, step));
    bool is_transposed = step->format->transposed;
    const pst_piece *piece;
    while ((piece = pst_forward_next_piece(run, step->weight)) != NULL) {
        pst_matmul job = {.x = pst_forward_matrix(f, op->in),
                          .y = pst_forward_matrix(f, op->out),
                          .first_column = is_transposed ? 0 : piece->first_row,
                          .accumulate = op->accumulate,
                          .prompt_rows = prompt_rows_of(f, op)};
        job.w = pst_forward_weight(run, step, piece, is_transposed ? job.y.columns : job.x.columns);
        job.bias = bias_of(run, step, &job.w, piece->first_row);
        f->next_piece++;
        if (job.x.rows > 0) /* none when no row of this pass wants logits */
            PST_TRY(multiply(run, step, &job));
        if (piece->first_row + piece->rows == run->stage->tensors[step->weight].rows)
            return 1;
    }
    return 0;
}

int pst_forward_split_qkv(const pst_forward_run *run, const pst_nn_step *step)
{
    pst_forward *f = run->f;
    const pst_transformer *t = f->t;
    pst_matrix in = pst_forward_matrix(f, step->op->in);
    const pst_nn_buffer parts[] = {PST_NN_Q, PST_NN_K, PST_NN_V};
    const bool is_whole = t->qkv_order == PST_QKV_CONCATENATED;
    const size_t dim = t->head_dim;
    size_t begin = 0;
    for (size_t p = 0; p < 3; p++) {
        pst_matrix out = pst_forward_matrix(f, parts[p]);
        pst_block_copy job = {.x = (const float *)in.data + (is_whole ? begin : p * dim),
                              .x_row_stride = in.stride,
                              .x_block_stride = is_whole ? 0 : 3 * dim,
                              .y = out.data,
                              .y_type = PST_F32,
                              .y_row_stride = out.stride,
                              .y_block_stride = is_whole ? 0 : dim,
                              .rows = in.rows,
                              .blocks = is_whole ? 1 : t->heads,
                              .columns = is_whole ? out.columns : dim};
        PST_TRY(pst_forward_checked(run, f->device->ops->copy_blocks(f->device, &job)));
        begin += out.columns;
    }
    return 1;
}

int pst_forward_rope(const pst_forward_run *run, const pst_nn_step *step)
{
    pst_forward *f = run->f;
    const pst_transformer *t = f->t;
    pst_matrix x = pst_forward_matrix(f, step->op->in);
    return pst_forward_checked(run, f->device->ops->rope(f->device, &x, (uint32_t)(x.columns / t->head_dim),
                                                         t->head_dim, t->rope.rotary, t->rope.interleaved,
                                                         f->rope_table, f->rope_row_table.there));
}

int pst_forward_activate(const pst_forward_run *run, const pst_nn_step *step)
{
    pst_forward *f = run->f;
    pst_matrix in = pst_forward_matrix(f, step->op->in), out = pst_forward_matrix(f, step->op->out);
    return pst_forward_checked(run, f->device->ops->activate(f->device, f->t->activation, &in, &out));
}

int pst_forward_copy(const pst_forward_run *run, const pst_nn_step *step)
{
    pst_forward *f = run->f;
    pst_matrix in = pst_forward_matrix(f, step->op->in), out = pst_forward_matrix(f, step->op->out);
    return pst_forward_checked(run, f->device->ops->activate(f->device, PST_ACT_IDENTITY, &in, &out));
}

int pst_forward_gated(const pst_forward_run *run, const pst_nn_step *step)
{
    pst_forward *f = run->f;
    pst_matrix gate = pst_forward_matrix(f, step->op->in), out = pst_forward_matrix(f, step->op->out);
    pst_matrix up = pst_forward_matrix(f, step->op->in + 1);
    if (gate.rows == 0 || f->routed.is_put_off)
        return 1;
    return pst_forward_checked(run, f->device->ops->gated(f->device, f->t->activation, &gate, &up, &out));
}

int pst_forward_select(const pst_forward_run *run, const pst_nn_step *step)
{
    const pst_forward *f = run->f;
    pst_matrix x = pst_forward_matrix(f, step->op->in), s = pst_forward_matrix(f, step->op->out);
    if (s.rows == 0)
        return 1;
    return pst_forward_checked(run, f->device->ops->take_rows(f->device, &x, f->logit_row_table.there, &s));
}
