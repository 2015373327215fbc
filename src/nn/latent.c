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
 * should stay in, and each block takes it two launches for every head. */
typedef struct block_limits {
    uint64_t rows, bytes;
} block_limits;
static const block_limits HOST_BLOCK = {64, 24ull << 20}, APART_BLOCK = {1024, 256ull << 20};
static const float NORM_EPS = 1e-6f; /* of the norms inside, which config.json's rms_norm_eps does not speak of */

/* Element counts of one row's vectors. */
typedef struct row_sizes {
    uint64_t q, a, v;
} row_sizes;

static row_sizes sizes_of(const pst_transformer *t)
{
    const pst_latent *l = &t->latent;
    return (row_sizes){(uint64_t)t->heads * (l->kv_lora_rank + l->rope_dim), (uint64_t)t->heads * l->kv_lora_rank,
                       (uint64_t)t->heads * l->value_dim};
}

static uint32_t block_rows(const pst_forward_config *config)
{
    const block_limits *most = config->apart ? &APART_BLOCK : &HOST_BLOCK;
    const row_sizes sizes = sizes_of(config->transformer);
    uint64_t rows = most->bytes / ((sizes.q + sizes.a + sizes.v) * sizeof(float));
    return (uint32_t)pst_min(pst_max(rows, 1), most->rows);
}

/* Bytes of an element as it is kept: plain matrices as they are, others as numbers. */
static uint32_t kept_bytes(const pst_nn_step *step)
{
    return step->format->layout == PST_WEIGHT_PLAIN ? pst_dtype_bits(step->format->type) / 8 : sizeof(float);
}

/* A head's matrices as they are kept, and where an accelerator wants them: at multiples of 256 bytes. */
typedef struct head_layout {
    uint64_t key_bytes, value_bytes, spread_key_bytes, spread_value_bytes;
} head_layout;

static head_layout layout_of(const pst_latent *l, uint32_t element_bytes)
{
    const uint64_t row = (uint64_t)l->kv_lora_rank * element_bytes, key = l->nope_dim * row, value = l->value_dim * row;
    return (head_layout){key, value, pst_round_up(key, PST_APART_ALIGNMENT), pst_round_up(value, PST_APART_ALIGNMENT)};
}

static bool must_spread(const head_layout *h)
{
    return h->key_bytes != h->spread_key_bytes || h->value_bytes != h->spread_value_bytes;
}

/* Bytes of the largest kv_b_proj as it is kept, and spread (0: none has to be). */
typedef struct kept_sizes {
    uint64_t kept, spread;
} kept_sizes;

static kept_sizes most_kept(const pst_forward_config *config)
{
    const pst_transformer *t = config->transformer;
    const pst_program *program = config->program;
    kept_sizes most = {0};
    for (uint32_t s = program->gathered_stages; s < program->stage_count; s++) {
        for (uint32_t i = 0; i < program->nn_stages[s].step_count; i++) {
            const pst_nn_step *step = &program->nn_stages[s].steps[i];
            if (step->op->kind != PST_NN_LATENT_KEEP)
                continue;
            const head_layout h = layout_of(&t->latent, kept_bytes(step));
            most.kept = pst_max(most.kept, t->heads * (h.key_bytes + h.value_bytes));
            if (config->apart && must_spread(&h))
                most.spread = pst_max(most.spread, t->heads * (h.spread_key_bytes + h.spread_value_bytes));
        }
    }
    most.kept = pst_round_up(most.kept, config->apart ? PST_APART_ALIGNMENT : sizeof(float));
    return most;
}

uint64_t pst_latent_bytes(const pst_forward_config *config)
{
    if (config->transformer->latent.kv_lora_rank == 0)
        return 0;
    const row_sizes sizes = sizes_of(config->transformer);
    const kept_sizes most = most_kept(config);
    return most.kept + most.spread + block_rows(config) * (sizes.q + sizes.a + sizes.v) * sizeof(float);
}

int pst_latent_create(pst_forward *f, const pst_forward_config *config, pst_error *err)
{
    pst_latent_memory *m = &f->latent;
    m->bytes = pst_latent_bytes(config);
    if (m->bytes == 0)
        return 0;
    PST_TRY(pst_nn_take_memory(f->device, PST_MEMORY_DEVICE, m->bytes, "latent attention", (void **)&m->memory, err));
    const row_sizes sizes = sizes_of(f->t);
    const kept_sizes most = most_kept(config);
    m->block_rows = block_rows(config);
    m->kept = m->memory;
    m->spread = most.spread > 0 ? m->memory + most.kept : NULL;
    m->q = (float *)(void *)(m->memory + most.kept + most.spread);
    m->a = m->q + m->block_rows * sizes.q;
    m->v = m->a + m->block_rows * sizes.a;
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

/* The whole matrix is kept: notes where each head's are, after moving them if need be. */
static int place_heads(pst_forward *f, uint32_t element_bytes)
{
    pst_latent_memory *m = &f->latent;
    const head_layout h = layout_of(&f->t->latent, element_bytes);
    m->heads = m->kept;
    m->key_bytes = h.key_bytes;
    m->head_bytes = h.key_bytes + h.value_bytes;
    if (m->spread == NULL || !must_spread(&h))
        return 0;
    const uint64_t from_bytes = m->head_bytes;
    m->heads = m->spread;
    m->key_bytes = h.spread_key_bytes;
    m->head_bytes = h.spread_key_bytes + h.spread_value_bytes;
    for (uint32_t head = 0; head < f->t->heads; head++) {
        const unsigned char *from = m->kept + head * from_bytes;
        unsigned char *to = m->spread + head * m->head_bytes;
        PST_TRY(f->device->ops->copy(f->device, NULL, to, from, h.key_bytes));
        PST_TRY(f->device->ops->copy(f->device, NULL, to + m->key_bytes, from + h.key_bytes, h.value_bytes));
    }
    return 0;
}

int pst_forward_latent_keep(const pst_forward_run *run, const pst_nn_step *step)
{
    pst_forward *f = run->f;
    const uint32_t rank = f->t->latent.kv_lora_rank;
    const bool is_plain = step->format->layout == PST_WEIGHT_PLAIN;
    const uint64_t row_bytes = (uint64_t)rank * kept_bytes(step);
    f->latent.kept_type = is_plain ? step->format->type : PST_F32;
    PST_TRY(pst_forward_keep_aux(run, step));
    const pst_piece *piece;
    while ((piece = pst_forward_next_piece(run, step->weight)) != NULL) {
        pst_weight weight = pst_forward_weight(run, step, piece, rank);
        unsigned char *to = f->latent.kept + piece->first_row * row_bytes;
        f->next_piece++;
        if (is_plain) {
            PST_TRY(pst_forward_checked(
                run, f->device->ops->copy(f->device, NULL, to, weight.data, piece->rows * row_bytes)));
        } else {
            pst_matrix numbers = {to, PST_F32, piece->rows, rank, rank};
            PST_TRY(pst_forward_checked(run, f->device->ops->convert(f->device, &weight, &numbers)));
        }
        if (piece->first_row + piece->rows == run->stage->tensors[step->weight].rows)
            return pst_forward_checked(run, place_heads(f, kept_bytes(step)));
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

/* `columns` columns of a matrix from `first` on. */
static pst_matrix columns_of(pst_matrix matrix, size_t first, size_t columns)
{
    matrix.data = (float *)matrix.data + first;
    matrix.columns = columns;
    return matrix;
}

/* A head's K, or V. */
static pst_weight head_matrix(const pst_forward *f, uint32_t head, bool is_value, const pst_weight_format *format)
{
    const pst_latent_memory *m = &f->latent;
    return (pst_weight){.data = m->heads + head * m->head_bytes + (is_value ? m->key_bytes : 0),
                        .type = m->kept_type,
                        .rows = is_value ? f->t->latent.value_dim : f->t->latent.nope_dim,
                        .columns = f->t->latent.kv_lora_rank,
                        .format = format};
}

/* q' of a block of rows: q: [rows][heads][nope, rope]. */
static int into_latent_space(const pst_forward *f, const pst_matrix *q, size_t prompt_rows, const pst_matrix *out)
{
    const pst_latent *l = &f->t->latent;
    const pst_weight_format transposed = {.layout = PST_WEIGHT_PLAIN, .type = f->latent.kept_type, .transposed = true};
    const uint32_t key_dim = l->kv_lora_rank + l->rope_dim;
    for (uint32_t head = 0; head < f->t->heads; head++) {
        pst_matmul job = {.x = columns_of(*q, (size_t)head * f->t->head_dim, l->nope_dim),
                          .w = head_matrix(f, head, false, &transposed),
                          .y = columns_of(*out, (size_t)head * key_dim, l->kv_lora_rank),
                          .prompt_rows = prompt_rows};
        PST_TRY(f->device->ops->matmul(f->device, &job));
    }
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
    const size_t width = sizes_of(f->t).v;
    const pst_matrix v = {f->latent.v, PST_F32, a->rows, width, width};
    for (uint32_t head = 0; head < f->t->heads; head++) {
        pst_matmul job = {
            .x = columns_of(*a, (size_t)head * l->kv_lora_rank, l->kv_lora_rank),
            .w = head_matrix(f, head, true, NULL),
            .y = columns_of(v, (size_t)head * l->value_dim, l->value_dim),
            .prompt_rows = prompt_rows,
        };
        PST_TRY(f->device->ops->matmul(f->device, &job));
    }
    const pst_block_copy rounded = {.x = f->latent.v,
                                    .x_row_stride = width,
                                    .y = out->data,
                                    .y_type = out->type,
                                    .y_row_stride = out->stride,
                                    .rows = v.rows,
                                    .blocks = 1,
                                    .columns = width};
    return f->device->ops->copy_blocks(f->device, &rounded);
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
