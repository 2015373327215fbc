/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Latent attention (arXiv 2405.04434), absorbed. kv_b_proj holds for each head the matrices K (nope x rank) and V (value x
 * rank) that make keys and values of the cached vector c. Neither is ever made: q . (K c) = (K^T q) . c, so the query goes
 * into the latent space, attention's result comes out of it, and one cached vector serves all heads:
 *
 *   q' = [K^T q_nope, rotated q_rope]    key = [c, rotated k_rope]    a' = softmax(scale q' key) c    a = V a'
 *
 * The vectors in the latent space are f32 in any compute type: these products are a few percent of a layer's, and in between
 * lies the softmax; only the result is rounded, as every input of a product is.
 *
 * A head's query and result are some 5 times as long here as in ordinary attention, so rows go through in blocks; no bit
 * depends on the block, since no operator's does.
 */
#include "base/error.h"
#include "base/number.h"
#include "nn/forward_internal.h"

/* Rows of a block, at most, and bytes of their vectors, as far as more than one row goes. An accelerator has no cache that they
 * should stay in, and many processors that each launch should give work to. */
typedef struct block_limits {
    uint64_t rows, bytes;
} block_limits;
static const block_limits HOST_BLOCK = {64, 24ull << 20}, APART_BLOCK = {1024, 256ull << 20};
static const float NORM_EPS = 1e-6f; /* of the norms inside, which config.json's rms_norm_eps does not speak of */

/* Element counts of one row's vectors. */
typedef struct row_sizes {
    uint64_t q, a;
} row_sizes;

static row_sizes sizes_of(const pst_transformer *t)
{
    const pst_latent *l = &t->latent;
    return (row_sizes){(uint64_t)t->heads * (l->kv_lora_rank + l->rope_dim), (uint64_t)t->heads * l->kv_lora_rank};
}

static uint32_t block_rows(const pst_forward_config *config)
{
    const block_limits *most = config->apart ? &APART_BLOCK : &HOST_BLOCK;
    const row_sizes sizes = sizes_of(config->transformer);
    uint64_t rows = most->bytes / ((sizes.q + sizes.a) * sizeof(float));
    return (uint32_t)pst_min(pst_max(rows, 1), most->rows);
}

/* Bytes of the largest kv_b_proj. */
static uint64_t most_kept(const pst_forward_config *config)
{
    const pst_program *program = config->program;
    uint64_t most = 0;
    for (uint32_t s = program->gathered_stages; s < program->stage_count; s++) {
        for (uint32_t i = 0; i < program->nn_stages[s].step_count; i++) {
            const pst_nn_step *step = &program->nn_stages[s].steps[i];
            if (step->op->kind != PST_NN_LATENT_KEEP)
                continue;
            const pst_stage_tensor *tensor = &program->stages[s].tensors[step->weight];
            most = pst_max(most, tensor->rows * tensor->row_bytes);
        }
    }
    return pst_round_up(most, PST_APART_ALIGNMENT);
}

uint64_t pst_latent_bytes(const pst_forward_config *config)
{
    if (config->transformer->latent.kv_lora_rank == 0)
        return 0;
    const row_sizes sizes = sizes_of(config->transformer);
    return most_kept(config) + block_rows(config) * (sizes.q + sizes.a) * sizeof(float);
}

int pst_latent_create(pst_forward *f, const pst_forward_config *config, pst_error *err)
{
    pst_latent_memory *m = &f->latent;
    m->bytes = pst_latent_bytes(config);
    if (m->bytes == 0)
        return 0;
    PST_TRY(pst_nn_take_memory(f->device, PST_MEMORY_DEVICE, m->bytes, "latent attention", (void **)&m->memory, err));
    m->block_rows = block_rows(config);
    m->kept = m->memory;
    m->q = (float *)(void *)(m->memory + most_kept(config));
    m->a = m->q + m->block_rows * sizes_of(f->t).q;
    return 0;
}

void pst_latent_destroy(pst_forward *f)
{
    pst_nn_give_memory(f->device, PST_MEMORY_DEVICE, f->latent.memory, f->latent.bytes);
}

int pst_forward_latent_norm(const pst_forward_run *run, const pst_nn_step *step)
{
    pst_forward *f = run->f;
    const pst_piece *piece = pst_forward_next_piece(run, step->weight);
    if (piece == NULL)
        return 0;
    pst_matrix in = pst_forward_matrix(f, step->op->in), out = pst_forward_matrix(f, step->op->out);
    if (step->op->in == PST_NN_CKV)
        in.columns = out.columns = f->t->latent.kv_lora_rank;
    pst_weight weight = pst_forward_weight(run, step, piece, in.columns);
    f->next_piece++;
    return pst_forward_checked(run, f->device->ops->rms_norm(f->device, &in, &weight, NORM_EPS, &out));
}

/* Attention follows at once, so a matrix that has come in one piece is used where it lies; pieces are put together. */
int pst_forward_latent_keep(const pst_forward_run *run, const pst_nn_step *step)
{
    pst_forward *f = run->f;
    pst_latent_memory *m = &f->latent;
    const pst_stage_tensor *tensor = &run->stage->tensors[step->weight];
    PST_TRY(pst_forward_keep_aux(run, step));
    const pst_piece *piece;
    while ((piece = pst_forward_next_piece(run, step->weight)) != NULL) {
        m->heads = pst_forward_weight(run, step, piece, f->t->latent.kv_lora_rank);
        f->next_piece++;
        if (piece->rows == tensor->rows)
            return 1;
        PST_TRY(pst_forward_checked(run, f->device->ops->copy(f->device, NULL,
                                                              m->kept + piece->first_row * tensor->row_bytes,
                                                              m->heads.data, piece->rows * tensor->row_bytes)));
        if (piece->first_row + piece->rows == tensor->rows) {
            m->heads.data = m->kept;
            m->heads.rows = tensor->rows;
            m->heads.first_row = 0;
            return 1;
        }
    }
    return 0;
}

/* Rotates the part of each of `heads` heads of x from `first` on. */
static int rotate(const pst_forward *f, pst_matrix x, uint32_t heads, uint32_t head_dim, uint32_t first)
{
    const pst_rope *rope = &f->t->rope;
    x.data = (float *)x.data + first;
    x.columns = (size_t)heads * head_dim;
    return f->device->ops->rope(f->device, &x, heads, head_dim, rope->rotary, rope->interleaved, f->rope_table,
                                f->rope_row_table.there);
}

/* A product of all heads: with their K^T, or V. Steps: elements from head to head. */
static pst_heads_matmul heads_product(const pst_forward *f, const pst_matrix *x, size_t x_step, const pst_matrix *y,
                                      size_t y_step, bool is_value)
{
    const pst_latent *l = &f->t->latent;
    pst_heads_matmul job = {.x = *x,
                            .y = *y,
                            .x_step = x_step,
                            .y_step = y_step,
                            .w = f->latent.heads,
                            .first = is_value ? l->nope_dim : 0,
                            .step = l->nope_dim + l->value_dim,
                            .head_rows = is_value ? l->value_dim : l->nope_dim,
                            .heads = f->t->heads,
                            .rows_are_inputs = !is_value};
    job.x.columns = (f->t->heads - 1) * x_step + (is_value ? l->kv_lora_rank : l->nope_dim);
    job.y.columns = (f->t->heads - 1) * y_step + (is_value ? l->value_dim : l->kv_lora_rank);
    return job;
}

/* q' of a block of rows: q: [rows][heads][nope, rope]. */
static int into_latent_space(const pst_forward *f, const pst_matrix *q, size_t prompt_rows, const pst_matrix *out)
{
    const pst_latent *l = &f->t->latent;
    const uint32_t key_dim = l->kv_lora_rank + l->rope_dim;
    pst_heads_matmul job = heads_product(f, q, f->t->head_dim, out, key_dim, false);
    job.prompt_rows = prompt_rows;
    PST_TRY(f->device->ops->matmul_heads(f->device, &job));
    const pst_block_copy rotated = {.x = (const float *)q->data + l->nope_dim,
                                    .x_row_stride = q->stride,
                                    .x_block_stride = f->t->head_dim,
                                    .y = (float *)out->data + l->kv_lora_rank,
                                    .y_type = PST_F32,
                                    .y_row_stride = out->stride,
                                    .y_block_stride = key_dim,
                                    .rows = q->rows,
                                    .blocks = f->t->heads,
                                    .columns = l->rope_dim};
    return f->device->ops->copy_blocks(f->device, &rotated);
}

/* a of a block of rows from a'. */
static int out_of_latent_space(const pst_forward *f, const pst_matrix *a, size_t prompt_rows, const pst_matrix *out)
{
    const pst_latent *l = &f->t->latent;
    pst_heads_matmul job = heads_product(f, a, l->kv_lora_rank, out, l->value_dim, true);
    job.prompt_rows = prompt_rows;
    return f->device->ops->matmul_heads(f->device, &job);
}

/* Rows [first, first + rows) of q, at the latest block_rows, to `out`. */
static int attend(const pst_forward *f, const pst_kv_store *store, const pst_matrix *q, size_t first, size_t rows,
                  const pst_matrix *out)
{
    const pst_latent_memory *m = &f->latent;
    const row_sizes sizes = sizes_of(f->t);
    pst_matrix from = *q, to = *out;
    from.data = (float *)q->data + first * q->stride;
    to.data = (char *)out->data + first * out->stride * (pst_dtype_bits(out->type) / 8);
    from.rows = to.rows = rows;
    pst_attention job = {.q = {m->q, PST_F32, rows, sizes.q, sizes.q},
                         .out = {m->a, PST_F32, rows, sizes.a, sizes.a},
                         .segments = store->segments,
                         .block_offset = store->block_offset,
                         .heads = f->t->heads,
                         .layout = f->kv_layout,
                         .scale = f->t->attention_scale};
    job.segments.first_row = first;
    job.segments.rows = rows;
    const size_t prompt_rows = pst_forward_prompt_rows(f, first, rows);
    PST_TRY(into_latent_space(f, &from, prompt_rows, &job.q));
    PST_TRY(f->device->ops->attention(f->device, &job));
    return out_of_latent_space(f, &job.out, prompt_rows, &to);
}

/* Stores and attends the rows of a group of segments. */
static int attend_group(const pst_forward *f, uint32_t layer, uint32_t first_segment, uint32_t count,
                        const pst_matrix *q, const pst_matrix *ckv, const pst_matrix *out)
{
    const pst_kv_store store = {.k = *ckv,
                                .segments = pst_forward_segments(f, first_segment, count),
                                .block_offset = pst_kv_layer_offset(f->kv, layer),
                                .layout = f->kv_layout};
    PST_TRY(f->device->ops->kv_store(f->device, &store));
    const pst_segment *last = &f->segments[first_segment + count - 1];
    const size_t end = last->first_row + last->rows;
    for (size_t first = f->segments[first_segment].first_row; first < end; first += f->latent.block_rows)
        PST_TRY(attend(f, &store, q, first, pst_min(f->latent.block_rows, end - first), out));
    return 0;
}

int pst_forward_latent_attention(const pst_forward_run *run, const pst_nn_step *step)
{
    const pst_forward *f = run->f;
    const pst_latent *l = &f->t->latent;
    pst_matrix q = pst_forward_matrix(f, step->op->in), ckv = pst_forward_matrix(f, PST_NN_CKV);
    pst_matrix out = pst_forward_matrix(f, step->op->out);
    PST_TRY(pst_forward_checked(run, rotate(f, q, f->t->heads, f->t->head_dim, l->nope_dim)));
    PST_TRY(pst_forward_checked(run, rotate(f, ckv, 1, l->rope_dim, l->kv_lora_rank)));
    uint32_t first, count;
    int status;
    while ((status = pst_kv_next_group(f->kv, run->nn->layer, &first, &count, run->err)) > 0) {
        PST_TRY(pst_forward_checked(run, attend_group(f, run->nn->layer, first, count, &q, &ckv, &out)));
        PST_TRY(pst_kv_end_group(f->kv, run->err));
    }
    return status < 0 ? status : 1;
}
