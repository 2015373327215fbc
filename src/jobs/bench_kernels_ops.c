/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The operators of a layer at a model's shapes, as calls that take their operands around the pools: see
 * bench_kernels_internal.h. Bytes are those that a call must move: weights, what it reads and what it writes, each once.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/number.h"
#include "jobs/bench_kernels_internal.h"

enum { MAX_OPS_PER_ROWS = 32, PLACE = 256 /* of arrays in `numbers` */ };

typedef struct op_list {
    kernels_bench *b;
    kernels_op *ops;
    size_t count, room;
} op_list;

static size_t bytes_of(pst_dtype type)
{
    return pst_dtype_bits(type) / 8;
}

/* ---- Operands ---- */

static pst_matrix take_input(kernels_bench *b, pst_dtype type, size_t rows, size_t columns)
{
    return (pst_matrix){kernels_take(&b->inputs, rows * columns * bytes_of(type)), type, rows, columns, columns};
}

static pst_matrix take_output(kernels_bench *b, pst_dtype type, size_t rows, size_t columns)
{
    return (pst_matrix){kernels_take(&b->outputs, rows * columns * bytes_of(type)), type, rows, columns, columns};
}

static uint64_t scale_count(const pst_weight_format *f, size_t outputs, size_t inputs)
{
    const size_t groups = f->group ? (inputs + f->group - 1) / f->group : 1;
    if (f->layout == PST_WEIGHT_FP8_BLOCKS)
        return (uint64_t)((outputs + f->block_rows - 1) / f->block_rows) *
               ((inputs + f->block_columns - 1) / f->block_columns);
    return f->layout == PST_WEIGHT_GPTQ || f->layout == PST_WEIGHT_AWQ ? (uint64_t)groups * outputs : 0;
}

static uint64_t zero_bytes(const pst_weight_format *f, size_t outputs, size_t inputs)
{
    const bool packed = f->layout == PST_WEIGHT_GPTQ || f->layout == PST_WEIGHT_AWQ;
    return packed ? scale_count(f, outputs, inputs) * f->bits / 8 : 0;
}

/* Bytes of the tensor itself. */
static uint64_t tensor_bytes(const kernels_bench *b, size_t outputs, size_t inputs)
{
    const pst_weight_format *f = b->format;
    if (f == NULL)
        return (uint64_t)outputs * inputs * bytes_of(b->weight_type);
    if (f->layout == PST_WEIGHT_GPTQ || f->layout == PST_WEIGHT_AWQ)
        return (uint64_t)inputs * outputs * f->bits / 8;
    return f->transposed ? inputs * pst_weight_row_bytes(f, outputs) : outputs * pst_weight_row_bytes(f, inputs);
}

uint64_t kernels_matrix_bytes(const kernels_bench *b, size_t outputs, size_t inputs)
{
    const pst_weight_format *f = b->format;
    const uint64_t beside =
        f == NULL ? 0 : scale_count(f, outputs, inputs) * bytes_of(f->scale_type) + zero_bytes(f, outputs, inputs);
    return tensor_bytes(b, outputs, inputs) + beside;
}

static pst_weight take_weight(kernels_bench *b, size_t outputs, size_t inputs)
{
    const pst_weight_format *f = b->format;
    pst_weight w = {.data = kernels_take(&b->inputs, tensor_bytes(b, outputs, inputs)),
                    .type = b->weight_type,
                    .rows = outputs,
                    .columns = inputs,
                    .format = f};
    if (f == NULL)
        return w;
    if (f->transposed) {
        w.rows = f->layout == PST_WEIGHT_GPTQ ? inputs * f->bits / 32 : inputs;
        w.columns = outputs;
    }
    const uint64_t scales = scale_count(f, outputs, inputs) * bytes_of(f->scale_type);
    w.scales = scales > 0 ? kernels_take(&b->inputs, scales) : NULL;
    w.zeros = zero_bytes(f, outputs, inputs) > 0 ? kernels_take(&b->inputs, zero_bytes(f, outputs, inputs)) : NULL;
    return w;
}

static pst_weight take_vector(kernels_bench *b, size_t columns)
{
    return (pst_weight){.data = kernels_take(&b->inputs, columns * 2), .type = PST_BF16, .rows = 1, .columns = columns};
}

/* ---- Calls ---- */

static int run_rms_norm(kernels_bench *b, kernels_op *op)
{
    const pst_matrix x = take_input(b, PST_F32, op->rows, op->k), y = take_output(b, b->compute_type, op->rows, op->k);
    const pst_weight w = take_vector(b, op->k);
    return b->device->ops->rms_norm(b->device, &x, &w, 1e-5f, &y);
}

static int run_layer_norm(kernels_bench *b, kernels_op *op)
{
    const pst_matrix x = take_input(b, PST_F32, op->rows, op->k), y = take_output(b, b->compute_type, op->rows, op->k);
    const pst_weight w = take_vector(b, op->k), bias = take_vector(b, op->k);
    return b->device->ops->layer_norm(b->device, &x, &w, &bias, 1e-5f, &y);
}

static int run_matmul(kernels_bench *b, kernels_op *op)
{
    const pst_matmul job = {.x = take_input(b, b->compute_type, op->rows, op->k),
                            .w = take_weight(b, op->n, op->k),
                            .y = take_output(b, PST_F32, op->rows, op->n),
                            .prompt_rows = op->prompt ? op->rows : 0};
    return b->device->ops->matmul(b->device, &job);
}

/* Latent attention's products of all heads: with K^T into the latent space, with V out of it. */
static int run_heads(kernels_bench *b, const kernels_op *op, bool into)
{
    const pst_latent *l = &b->t->latent;
    const size_t step = l->nope_dim + l->value_dim;
    const pst_heads_matmul job = {.x = take_input(b, PST_F32, op->rows, op->heads * op->k),
                                  .y = take_output(b, into ? PST_F32 : b->compute_type, op->rows, op->heads * op->n),
                                  .x_step = op->k,
                                  .y_step = op->n,
                                  .w = take_weight(b, op->heads * step, l->kv_lora_rank),
                                  .first = into ? 0 : l->nope_dim,
                                  .step = step,
                                  .head_rows = into ? l->nope_dim : l->value_dim,
                                  .heads = op->heads,
                                  .rows_are_inputs = into,
                                  .prompt_rows = op->prompt ? op->rows : 0};
    return b->device->ops->matmul_heads(b->device, &job);
}

static int run_heads_in(kernels_bench *b, kernels_op *op)
{
    return run_heads(b, op, true);
}

static int run_heads_out(kernels_bench *b, kernels_op *op)
{
    return run_heads(b, op, false);
}

static int run_grouped(kernels_bench *b, kernels_op *op)
{
    const size_t picks = op->first[op->groups];
    for (uint32_t g = 0; g < op->groups; g++)
        if (op->first[g + 1] > op->first[g])
            op->weights[g] = take_weight(b, op->n, op->k);
    const pst_grouped_matmul job = {.x = take_input(b, b->compute_type, picks, op->k),
                                    .y = take_output(b, PST_F32, picks, op->n),
                                    .weights = op->weights,
                                    .first = (const uint32_t *)(const void *)b->numbers,
                                    .groups = op->groups};
    return b->device->ops->matmul_grouped(b->device, &job);
}

static int run_activate(kernels_bench *b, kernels_op *op)
{
    const pst_matrix x = take_input(b, PST_F32, op->rows, op->k), y = take_output(b, b->compute_type, op->rows, op->k);
    return b->device->ops->activate(b->device, op->activation, &x, &y);
}

static int run_gated(kernels_bench *b, kernels_op *op)
{
    const pst_matrix x = take_input(b, PST_F32, op->rows, op->k), up = take_input(b, PST_F32, op->rows, op->k);
    const pst_matrix y = take_output(b, b->compute_type, op->rows, op->k);
    return b->device->ops->gated(b->device, op->activation, &x, &up, &y);
}

/* The table is a part of the inputs: its values do not matter. */
static int run_rope(kernels_bench *b, kernels_op *op)
{
    const pst_matrix x = take_output(b, PST_F32, op->rows, op->n);
    return b->device->ops->rope(b->device, &x, op->heads, (uint32_t)(op->n / op->heads), (uint32_t)op->k,
                                b->t->rope.interleaved, (const float *)(const void *)b->inputs.memory,
                                (const uint32_t *)(const void *)b->numbers);
}

static int run_copy_blocks(kernels_bench *b, kernels_op *op)
{
    const pst_matrix x = take_input(b, PST_F32, op->rows, op->n), y = take_output(b, PST_F32, op->rows, op->n);
    const size_t columns = op->n / op->heads;
    const pst_block_copy job = {.x = x.data,
                                .x_row_stride = op->n,
                                .x_block_stride = columns,
                                .y = y.data,
                                .y_type = PST_F32,
                                .y_row_stride = columns, /* heads first, then rows */
                                .y_block_stride = columns * op->rows,
                                .rows = op->rows,
                                .blocks = op->heads,
                                .columns = columns};
    return b->device->ops->copy_blocks(b->device, &job);
}

static int run_take_rows(kernels_bench *b, kernels_op *op)
{
    const pst_matrix x = take_input(b, b->compute_type, op->rows, op->k),
                     y = take_output(b, b->compute_type, op->n, op->k);
    return b->device->ops->take_rows(b->device, &x, (const uint32_t *)(const void *)b->numbers, &y);
}

static int run_add_rows(kernels_bench *b, kernels_op *op)
{
    const pst_matrix x = take_input(b, PST_F32, op->rows, op->k), y = take_output(b, PST_F32, op->rows, op->k);
    return b->device->ops->add_rows(b->device, &x, (const uint32_t *)(const void *)b->numbers,
                                    (const float *)(const void *)b->inputs.memory, &y);
}

static int run_convert(kernels_bench *b, kernels_op *op)
{
    const pst_weight w = take_weight(b, op->rows, op->k);
    const pst_matrix y = take_output(b, PST_F32, op->rows, op->k);
    return b->device->ops->convert(b->device, &w, &y);
}

static int run_log_sum_exp(kernels_bench *b, kernels_op *op)
{
    const pst_matrix x = take_input(b, PST_F32, op->rows, op->k);
    return b->device->ops->log_sum_exp(b->device, &x, NULL, kernels_take(&b->outputs, op->rows * sizeof(double)));
}

static int run_top(kernels_bench *b, kernels_op *op)
{
    const pst_matrix x = take_input(b, PST_F32, op->rows, op->k);
    const uint64_t bytes = (uint64_t)op->rows * op->n * 4;
    float *values = kernels_take(&b->outputs, bytes);
    return b->device->ops->top(b->device, &x, (uint32_t)op->n, values, kernels_take(&b->outputs, bytes));
}

static int run_route(kernels_bench *b, kernels_op *op)
{
    const uint64_t bytes = (uint64_t)op->rows * b->t->experts_per_token * 4;
    pst_route_job job = {.logits = take_input(b, PST_F32, op->rows, b->t->experts),
                         .routing = b->t->routing,
                         .per_row = b->t->experts_per_token,
                         .chosen = kernels_take(&b->outputs, bytes),
                         .weights = kernels_take(&b->outputs, bytes)};
    if (job.routing.corrected)
        job.correction = kernels_take(&b->inputs, b->t->experts * sizeof(float));
    job.order = kernels_take(&b->outputs, bytes);
    job.order_weight = kernels_take(&b->outputs, bytes);
    job.first = kernels_take(&b->outputs, (b->t->experts + (uint64_t)1) * sizeof(uint32_t));
    return b->device->ops->route(b->device, &job);
}

/* Segments and tables as `prepare` put them; each call in another part of the pool. */
static pst_segments segments_of(kernels_bench *b, const kernels_op *op)
{
    const pst_segment *items = (const pst_segment *)(const void *)b->numbers;
    if (op->prompt)
        return (pst_segments){
            .items = items, .count = 1, .rows = op->rows, .max_rows = op->rows, .max_positions = op->rows};
    return (pst_segments){.items = items,
                          .count = op->rows,
                          .rows = op->rows,
                          .max_rows = 1,
                          .max_positions = b->o.context,
                          .generated = op->rows,
                          .generated_max_rows = 1,
                          .generated_max_positions = b->o.context};
}

static uint64_t turn(kernels_op *op, const kernels_pool *pool)
{
    return op->calls % (pool->bytes / op->kv_bytes) * op->kv_bytes;
}

static int run_attention(kernels_bench *b, kernels_op *op)
{
    const pst_attention job = {.q = take_input(b, PST_F32, op->rows, (size_t)op->heads * b->kv.key_dim),
                               .out = take_output(b, b->compute_type, op->rows, (size_t)op->heads * b->kv.value_dim),
                               .segments = segments_of(b, op),
                               .block_offset = turn(op, &b->inputs),
                               .heads = op->heads,
                               .layout = b->kv,
                               .scale = 1.0f / sqrtf((float)b->kv.key_dim)};
    return b->device->ops->attention(b->device, &job);
}

static int run_kv_store(kernels_bench *b, kernels_op *op)
{
    pst_kv_store job = {.k = take_input(b, PST_F32, op->rows, (size_t)b->kv.kv_heads * b->kv.key_dim),
                        .segments = segments_of(b, op),
                        .block_offset = turn(op, &b->outputs),
                        .layout = b->kv};
    if (!b->kv.shared)
        job.v = take_input(b, PST_F32, op->rows, (size_t)b->kv.kv_heads * b->kv.value_dim);
    return b->device->ops->kv_store(b->device, &job);
}

/* ---- Numbers that calls take ---- */

static uint64_t blocks_of_positions(uint64_t positions)
{
    return (positions + PST_KV_BLOCK - 1) / PST_KV_BLOCK;
}

/* Positions of the rows: of a prompt, or all at the end of their contexts; or row numbers in turn. */
static int prepare_rows(kernels_bench *b, kernels_op *op, pst_error *err)
{
    const size_t count = op->run == run_take_rows ? op->n : op->rows;
    uint32_t *rows = pst_heap_alloc(count * sizeof *rows);
    if (rows == NULL)
        return pst_fail_memory(err, "rows", count * sizeof *rows);
    for (size_t i = 0; i < count; i++)
        rows[i] = (uint32_t)(i * 7919 % op->rows); /* 7919 is prime: each once, unless rows are its multiple */
    for (size_t i = 0; i < count && op->run != run_take_rows && op->rows % 7919 == 0; i++)
        rows[i] = (uint32_t)i;
    const int status = kernels_put(b, 0, rows, count * sizeof *rows, err);
    pst_heap_free(rows);
    return status;
}

static int prepare_grouped(kernels_bench *b, kernels_op *op, pst_error *err)
{
    return kernels_put(b, 0, op->first, (op->groups + (uint64_t)1) * sizeof *op->first, err);
}

/* Sequences whose blocks follow each other in the pool. kv_store has a block of each. */
static int prepare_segments(kernels_bench *b, kernels_op *op, pst_error *err)
{
    const bool stores = op->run == run_kv_store;
    char *base = stores ? b->outputs.memory : b->inputs.memory;
    const uint32_t sequences = op->prompt ? 1 : op->rows;
    const uint64_t blocks = blocks_of_positions(op->prompt ? op->rows : b->o.context);
    const uint64_t block_bytes = pst_kv_block_bytes(&b->kv);
    const uint64_t items_bytes = pst_round_up(sequences * sizeof(pst_segment), PLACE);
    const uint64_t bytes = items_bytes + sequences * blocks * sizeof(void *);
    char *all = pst_heap_calloc(1, bytes);
    if (all == NULL)
        return pst_fail_memory(err, "tables of blocks", bytes);
    pst_segment *items = (pst_segment *)(void *)all;
    void **tables = (void **)(void *)(all + items_bytes);
    for (uint32_t s = 0; s < sequences; s++) {
        items[s] =
            (pst_segment){.first_row = s,
                          .rows = op->prompt ? op->rows : 1,
                          .first_position = op->prompt ? 0 : b->o.context - 1,
                          .blocks = (void *const *)(void *)(b->numbers + items_bytes + s * blocks * sizeof(void *))};
        for (uint64_t i = 0; i < blocks; i++)
            tables[s * blocks + i] = base + (stores && !op->prompt ? s : s * blocks + i) * block_bytes;
    }
    const int status = kernels_put(b, 0, all, bytes, err);
    pst_heap_free(all);
    return status;
}

/* ---- The list ---- */

static kernels_op *add(op_list *list, const char *name, uint32_t rows, int (*run)(kernels_bench *b, kernels_op *op))
{
    kernels_op *op = &list->ops[list->count++];
    snprintf(op->name, sizeof op->name, "%s", name);
    op->rows = rows;
    op->run = run;
    return op;
}

/* Whether the caller wants it. */
static bool wanted(const op_list *list, const char *name)
{
    const char *only = list->b->o.only;
    const size_t length = strlen(name);
    while (only != NULL) {
        if (strncmp(only, name, length) == 0 && (only[length] == ',' || only[length] == '\0'))
            return true;
        only = strchr(only, ',');
        if (only == NULL)
            return false;
        only++;
    }
    return true;
}

static void set_bytes(kernels_op *op, double in, double out)
{
    op->bytes = in + out;
    op->in_bytes = (uint64_t)in;
    op->out_bytes = (uint64_t)out;
}

static void add_product(op_list *list, uint32_t rows, const char *label, size_t k, size_t n)
{
    kernels_bench *b = list->b;
    if (k == 0 || n == 0 || !wanted(list, "matmul"))
        return;
    kernels_op *op = add(list, "matmul", rows, run_matmul);
    op->k = k;
    op->n = n;
    op->prompt = rows > KERNELS_MAX_SEQUENCES;
    set_bytes(op, (double)kernels_matrix_bytes(b, n, k) + (double)rows * (double)k * (double)bytes_of(b->compute_type),
              4.0 * rows * (double)n);
    op->operations = 2.0 * rows * (double)k * (double)n;
    snprintf(op->what, sizeof op->what, "%s: %zu to %zu", label, k, n);
}

static void add_heads(op_list *list, uint32_t rows, bool into)
{
    kernels_bench *b = list->b;
    const pst_latent *l = &b->t->latent;
    const uint32_t part = into ? l->nope_dim : l->value_dim;
    if (!wanted(list, "matmul_heads") || (b->format != NULL && b->format->transposed))
        return;
    kernels_op *op = add(list, "matmul_heads", rows, into ? run_heads_in : run_heads_out);
    op->heads = b->t->heads;
    op->k = into ? part : l->kv_lora_rank;
    op->n = into ? l->kv_lora_rank : part;
    op->prompt = rows > KERNELS_MAX_SEQUENCES;
    const double matrix =
        (double)kernels_matrix_bytes(b, (size_t)op->heads * (l->nope_dim + l->value_dim), l->kv_lora_rank);
    const double x = 4.0 * rows * op->heads * (double)op->k;
    const double y = (double)(into ? 4 : bytes_of(b->compute_type)) * rows * op->heads * (double)op->n;
    set_bytes(op, matrix + x, y);
    op->bytes = matrix * part / (l->nope_dim + l->value_dim) + x + y; /* K and V are parts of one matrix */
    op->operations = 2.0 * rows * op->heads * (double)op->k * (double)op->n;
    snprintf(op->what, sizeof op->what, "%s: %u heads, %zu to %zu", into ? "queries" : "values", op->heads, op->k,
             op->n);
}

static void add_products(op_list *list, uint32_t rows)
{
    const pst_transformer *t = list->b->t;
    const pst_latent *l = &t->latent;
    if (l->kv_lora_rank > 0) {
        const size_t queries = (size_t)t->heads * (l->nope_dim + l->rope_dim);
        add_product(list, rows, "query, compressed", t->hidden, l->q_lora_rank);
        add_product(list, rows, "query", l->q_lora_rank ? l->q_lora_rank : t->hidden, queries);
        add_product(list, rows, "key and value, compressed", t->hidden, l->kv_lora_rank + l->rope_dim);
        add_product(list, rows, "attention's output", (size_t)t->heads * l->value_dim, t->hidden);
        add_heads(list, rows, true);
        add_heads(list, rows, false);
    } else {
        add_product(list, rows, "query", t->hidden, (size_t)t->heads * t->head_dim);
        add_product(list, rows, "key", t->hidden, (size_t)t->kv_heads * t->head_dim);
        add_product(list, rows, "attention's output", (size_t)t->heads * t->head_dim, t->hidden);
    }
    add_product(list, rows, "MLP, in", t->hidden, t->intermediate);
    add_product(list, rows, "MLP, out", t->intermediate, t->hidden);
    if (rows <= KERNELS_MAX_SEQUENCES)
        add_product(list, rows, "head", t->hidden, t->vocab);
}

/* Rows choose experts at random. */
static int add_grouped(op_list *list, uint32_t rows, const char *label, size_t k, size_t n, pst_error *err)
{
    kernels_bench *b = list->b;
    const uint32_t experts = b->t->experts, picks = rows * b->t->experts_per_token;
    if (!wanted(list, "matmul_grouped") || (b->format != NULL && b->format->transposed))
        return 0;
    kernels_op *op = add(list, "matmul_grouped", rows, run_grouped);
    op->first = pst_heap_calloc(experts + (size_t)1, sizeof *op->first);
    op->weights = pst_heap_calloc(experts, sizeof *op->weights);
    if (op->first == NULL || op->weights == NULL)
        return pst_fail_memory(err, "experts", experts * sizeof *op->weights);
    uint64_t state = 7, used = 0;
    for (uint32_t i = 0; i < picks; i++)
        op->first[pst_random_next(&state) % experts + 1]++;
    for (uint32_t e = 0; e < experts; e++) {
        used += op->first[e + 1] > 0;
        op->weights[e] = (pst_weight){.type = b->weight_type, .rows = n, .columns = k, .format = b->format};
        op->first[e + 1] += op->first[e];
    }
    op->k = k;
    op->n = n;
    op->groups = experts;
    op->prepare = prepare_grouped;
    set_bytes(op,
              (double)used * (double)kernels_matrix_bytes(b, n, k) +
                  (double)picks * (double)k * (double)bytes_of(b->compute_type),
              4.0 * picks * (double)n);
    op->in_bytes += (uint64_t)experts * 4 * PLACE;
    op->operations = 2.0 * picks * (double)k * (double)n;
    snprintf(op->what, sizeof op->what, "%s: %u rows on %llu of %u experts, %zu to %zu", label, picks,
             (unsigned long long)used, experts, k, n);
    return 0;
}

/* Rows to rows; `passes` of F32 are read, one of y_type is written. */
static void add_rowwise(op_list *list, const char *name, uint32_t rows, size_t columns, double passes, pst_dtype y_type,
                        int (*run)(kernels_bench *b, kernels_op *op))
{
    if (columns == 0 || !wanted(list, name))
        return;
    kernels_op *op = add(list, name, rows, run);
    op->k = columns;
    op->activation = list->b->t->activation;
    set_bytes(op, passes * 4 * rows * (double)columns + 4 * (double)columns,
              (double)bytes_of(y_type) * rows * (double)columns);
    snprintf(op->what, sizeof op->what, "%u x %zu to %s", rows, columns, pst_dtype_name(y_type));
}

static void add_elementwise(op_list *list, uint32_t rows)
{
    const kernels_bench *b = list->b;
    const pst_transformer *t = b->t;
    add_rowwise(list, "rms_norm", rows, t->hidden, 1, b->compute_type, run_rms_norm);
    add_rowwise(list, "layer_norm", rows, t->hidden, 1, b->compute_type, run_layer_norm);
    add_rowwise(list, "activate", rows, t->intermediate, 1, b->compute_type, run_activate);
    add_rowwise(list, "gated", rows, t->intermediate, 2, b->compute_type, run_gated);
    if (t->rope.rotary > 0 && wanted(list, "rope")) {
        kernels_op *op = add(list, "rope", rows, run_rope);
        op->heads = t->heads;
        op->k = t->rope.rotary;
        op->n = (size_t)t->heads * (t->latent.kv_lora_rank ? t->latent.nope_dim + t->latent.rope_dim : t->head_dim);
        op->prepare = prepare_rows;
        op->in_bytes = (uint64_t)rows * t->rope.rotary * 4;
        op->out_bytes = (uint64_t)rows * op->n * 4;
        op->bytes = rows * (8.0 * op->heads + 4) * t->rope.rotary;
        snprintf(op->what, sizeof op->what, "%u rows of %u heads, %u elements of each", rows, op->heads,
                 t->rope.rotary);
    }
    if (wanted(list, "copy_blocks")) {
        kernels_op *op = add(list, "copy_blocks", rows, run_copy_blocks);
        op->heads = t->heads;
        op->n = (size_t)t->heads * (t->head_dim ? t->head_dim : t->latent.value_dim);
        set_bytes(op, 4.0 * rows * (double)op->n, 4.0 * rows * (double)op->n);
        snprintf(op->what, sizeof op->what, "%u rows of %u heads, heads first", rows, op->heads);
    }
}

static void add_attention(op_list *list, uint32_t rows)
{
    const kernels_bench *b = list->b;
    const bool prompt = rows > KERNELS_MAX_SEQUENCES;
    const double dims = b->kv.key_dim + b->kv.value_dim, block = (double)pst_kv_block_bytes(&b->kv);
    const double sequences = prompt ? 1 : rows, positions = prompt ? rows : b->o.context;
    const double pairs = prompt ? (double)rows * (rows + 1.0) / 2 : sequences * positions;
    const double kv_bytes = sequences * (double)blocks_of_positions((uint64_t)positions) * block;
    if (wanted(list, "attention")) {
        kernels_op *op = add(list, "attention", rows, run_attention);
        op->heads = b->t->heads;
        op->prompt = prompt;
        op->kv_bytes = (uint64_t)kv_bytes;
        op->prepare = prepare_segments;
        set_bytes(op, kv_bytes + 4.0 * rows * op->heads * b->kv.key_dim,
                  (double)bytes_of(b->compute_type) * rows * op->heads * b->kv.value_dim);
        op->operations = 2 * pairs * op->heads * dims;
        snprintf(op->what, sizeof op->what, prompt ? "a prompt of %.0f" : "%.0f sequences of %.0f positions",
                 prompt ? positions : sequences, positions);
    }
    if (wanted(list, "kv_store")) {
        kernels_op *op = add(list, "kv_store", rows, run_kv_store);
        const double elements = b->kv.kv_heads * (b->kv.key_dim + (b->kv.shared ? 0.0 : b->kv.value_dim));
        op->prompt = prompt;
        op->kv_bytes = (uint64_t)((prompt ? (double)blocks_of_positions(rows) : sequences) * block);
        op->prepare = prepare_segments;
        op->in_bytes = (uint64_t)(4 * rows * elements);
        op->out_bytes = op->kv_bytes;
        op->bytes = rows * (4 * elements + block / PST_KV_BLOCK);
        snprintf(op->what, sizeof op->what, "%u rows, %u bits", rows, pst_kv_bits(b->kv.type));
    }
}

static int add_experts(op_list *list, uint32_t rows, pst_error *err)
{
    const kernels_bench *b = list->b;
    const pst_transformer *t = b->t;
    const uint32_t picks = rows * t->experts_per_token;
    if (t->experts == 0)
        return 0;
    PST_TRY(add_grouped(list, rows, "experts, in", t->hidden, t->expert_intermediate, err));
    PST_TRY(add_grouped(list, rows, "experts, out", t->expert_intermediate, t->hidden, err));
    if (wanted(list, "route")) {
        kernels_op *op = add(list, "route", rows, run_route);
        set_bytes(op, 4.0 * (rows + 1.0) * t->experts, 16.0 * picks + 4.0 * (t->experts + 1.0));
        op->out_bytes += 2048;
        snprintf(op->what, sizeof op->what, "%u of %u experts", t->experts_per_token, t->experts);
    }
    if (wanted(list, "take_rows")) {
        kernels_op *op = add(list, "take_rows", rows, run_take_rows);
        op->k = t->hidden;
        op->n = picks;
        op->prepare = prepare_rows;
        set_bytes(op, (double)bytes_of(b->compute_type) * rows * t->hidden,
                  (double)bytes_of(b->compute_type) * picks * t->hidden);
        snprintf(op->what, sizeof op->what, "%u of %u x %u", picks, rows, t->hidden);
    }
    if (wanted(list, "add_rows")) {
        kernels_op *op = add(list, "add_rows", rows, run_add_rows);
        op->k = t->hidden;
        op->prepare = prepare_rows;
        set_bytes(op, 4.0 * rows * t->hidden, 4.0 * rows * t->hidden);
        op->bytes += 4.0 * rows * t->hidden; /* y is read, too */
        snprintf(op->what, sizeof op->what, "%u x %u", rows, t->hidden);
    }
    return 0;
}

/* Embedding and what becomes of logits. */
static void add_ends(op_list *list, uint32_t rows)
{
    const kernels_bench *b = list->b;
    const pst_transformer *t = b->t;
    const bool converts = b->format == NULL || !b->format->transposed;
    if (wanted(list, "convert") && converts) {
        kernels_op *op = add(list, "convert", rows, run_convert);
        op->k = t->hidden;
        set_bytes(op, (double)kernels_matrix_bytes(b, rows, t->hidden), 4.0 * rows * t->hidden);
        snprintf(op->what, sizeof op->what, "%u rows of %u", rows, t->hidden);
    }
    if (rows > KERNELS_MAX_SEQUENCES)
        return;
    add_rowwise(list, "log_sum_exp", rows, t->vocab, 1, PST_F32, run_log_sum_exp);
    if (wanted(list, "top")) {
        kernels_op *op = add(list, "top", rows, run_top);
        op->k = t->vocab;
        op->n = pst_min(50, t->vocab);
        set_bytes(op, 4.0 * rows * t->vocab, 8.0 * rows * (double)op->n + 512);
        snprintf(op->what, sizeof op->what, "%zu of %u x %u", op->n, rows, t->vocab);
    }
}

int kernels_list(kernels_bench *b, kernels_op **out, size_t *out_count, pst_error *err)
{
    op_list list = {.b = b, .room = (size_t)b->o.row_counts * MAX_OPS_PER_ROWS};
    list.ops = pst_heap_calloc(list.room, sizeof *list.ops);
    if (list.ops == NULL)
        return pst_fail_memory(err, "operators", list.room * sizeof *list.ops);
    int status = 0;
    for (uint32_t i = 0; i < b->o.row_counts && status >= 0; i++) {
        const uint32_t rows = b->row_counts[i];
        add_products(&list, rows);
        status = add_experts(&list, rows, err);
        add_attention(&list, rows);
        add_elementwise(&list, rows);
        add_ends(&list, rows);
    }
    *out = list.ops; /* also of a failure: the caller frees what is in it */
    *out_count = list.count;
    if (status >= 0 && list.count == 0)
        return pst_fail(err, PST_E_USAGE, NULL, "no operator is called \"%s\"", b->o.only);
    return status;
}
