/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Layers with experts on an accelerator. The device chooses; the host waits for the counts, since it must say which experts are
 * needed.
 *
 * Few experts with many rows each are computed one after the other, as on the host. Of many with few rows each the launches
 * would cost more than the work: there the rows of all experts are gathered at once, in the order of `order`, and have a place
 * each in the buffers. Experts whose weights stay in the device's memory are put off and computed together when the last one
 * of the layer has come; others are computed as they come, in the same buffers. Then what all of them gave is added to x, each
 * row's experts in rising order, as on the host; so no bit depends on which experts were where.
 */
#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/number.h"
#include "nn/forward_internal.h"

/* Many experts: more than MANY times as many as a row has, so that each gets less than a fifth of the rows. Adding by a row's
 * places takes LAUNCHES_PER_PLACE for each of them, else one for each expert. */
enum { MANY = 5, LAUNCHES_PER_PLACE = 2 };

bool pst_experts_have_places(const pst_transformer *t)
{
    return t->experts > MANY * t->experts_per_token;
}

static uint64_t picks_of(const pst_transformer *t, uint64_t rows)
{
    return rows * t->experts_per_token;
}

/* Whether the host chooses: a trace's experts follow from no router. */
static bool chooses_here(const pst_forward_config *config)
{
    return config->routing_trace != NULL;
}

/* Steps of one expert, the most of all layers. */
static uint32_t most_steps(const pst_program *program)
{
    uint32_t most = 0;
    for (uint32_t s = program->gathered_stages; s < program->stage_count; s++) {
        const pst_nn_stage *nn = &program->nn_stages[s];
        if (nn->step_count > 0 && nn->steps[0].op->kind == PST_NN_EXPERT_TAKE)
            most = (uint32_t)pst_max(most, nn->step_count / program->stages[s].unit_count);
    }
    return most;
}

/* places, rows and, there, place_weights, behind a route's arrays in the mirror. */
static uint64_t extra_bytes(const pst_transformer *t, uint64_t rows)
{
    if (!pst_experts_have_places(t))
        return 0;
    rows = pst_min(rows, PST_PLACED_ROWS);
    return (2 * picks_of(t, rows) + rows) * sizeof(uint32_t);
}

void pst_experts_apart_measure(const pst_forward_config *config, pst_forward_memory *out)
{
    const pst_transformer *t = config->transformer;
    if (t->experts == 0)
        return;
    out->row_bytes += extra_bytes(t, 1) + (chooses_here(config) ? t->experts * sizeof(float) : 0);
    if (pst_experts_have_places(t))
        out->fixed_bytes += t->experts * (sizeof(uint32_t) + most_steps(config->program) * sizeof(pst_weight));
    out->device_row_bytes += pst_route_row_bytes(t) + extra_bytes(t, 1);
    out->device_fixed_bytes += (2 * (uint64_t)t->experts + 1) * sizeof(float);
}

/* What places take besides; `offset`: of theirs in the mirror. */
static int create_places(pst_forward *f, uint64_t offset, pst_error *err)
{
    pst_routed *r = &f->routed;
    const uint32_t experts = f->t->experts;
    const uint64_t rows = pst_min(f->max_rows, PST_PLACED_ROWS), picks = picks_of(f->t, rows);
    uint32_t *host = (uint32_t *)(void *)((char *)r->mirror.host + offset);
    uint32_t *there = (uint32_t *)(void *)((char *)r->mirror.there + offset);
    r->has_places = true;
    r->places = host;
    r->places_there = there;
    r->rows = host + picks;
    r->rows_there = there + picks;
    r->place_weights = (float *)(void *)(there + picks + rows);
    for (uint32_t i = 0; i < rows; i++)
        r->rows[i] = i;
    int status = pst_mirror_publish(f->device, &r->mirror, offset + picks * sizeof *r->rows, rows * sizeof *r->rows);
    if (status < 0)
        return pst_device_fail(err, f->device, status, "copying the rows of a pass");
    r->steps = most_steps(f->program);
    r->next = pst_heap_calloc(experts, sizeof *r->next);
    r->weights = pst_heap_calloc((size_t)r->steps * experts, sizeof *r->weights);
    if (r->next == NULL || r->weights == NULL)
        return pst_fail_memory(err, "the routing of a pass", (uint64_t)r->steps * experts * sizeof *r->weights);
    return 0;
}

int pst_experts_apart_create(pst_forward *f, const pst_forward_config *config, pst_error *err)
{
    pst_routed *r = &f->routed;
    const pst_transformer *t = f->t;
    const uint64_t bytes = pst_route_place(t, f->max_rows, NULL, &r->there);
    PST_TRY(
        pst_mirror_create(f->device, bytes + extra_bytes(t, f->max_rows), "the routing of a pass", &r->mirror, err));
    pst_route_place(t, f->max_rows, r->mirror.there, &r->there);
    pst_route_place(t, f->max_rows, r->mirror.host, &r->here);
    int status = f->device->ops->event_create(f->device, &r->counted);
    if (status < 0)
        return pst_device_fail(err, f->device, status, "making an event");
    if (pst_experts_have_places(t))
        PST_TRY(create_places(f, bytes, err));
    if (!chooses_here(config))
        return 0;
    r->here.scratch = pst_heap_calloc(pst_route_scratch_floats(t), sizeof *r->here.scratch);
    if (r->here.scratch == NULL)
        return pst_fail_memory(err, "the routing of a pass", pst_route_scratch_floats(t) * sizeof(float));
    r->logits = (pst_matrix){.type = PST_F32, .columns = t->experts, .stride = t->experts};
    r->logits_bytes = (uint64_t)f->max_rows * t->experts * sizeof(float);
    return pst_nn_take_memory(f->device, PST_MEMORY_HOST, r->logits_bytes, "the routers' logits", &r->logits.data, err);
}

void pst_experts_apart_destroy(pst_forward *f)
{
    pst_routed *r = &f->routed;
    f->device->ops->event_destroy(f->device, r->counted);
    pst_nn_give_memory(f->device, PST_MEMORY_HOST, r->logits.data, r->logits_bytes);
    pst_mirror_destroy(f->device, &r->mirror);
    pst_heap_free(r->next);
    pst_heap_free(r->weights);
    pst_heap_free(r->here.scratch);
}

/* ---- the choice ---- */

int pst_experts_fetch_logits(pst_forward *f, pst_matrix *logits)
{
    const pst_routed *r = &f->routed;
    const pst_block_copy packed = {.x = logits->data,
                                   .x_row_stride = logits->stride,
                                   .y = r->logits.data,
                                   .y_type = PST_F32,
                                   .y_row_stride = r->logits.stride,
                                   .rows = f->row_count,
                                   .blocks = 1,
                                   .columns = f->t->experts};
    PST_TRY(f->device->ops->copy_blocks(f->device, &packed));
    PST_TRY(f->device->ops->synchronize(f->device, NULL));
    *logits = r->logits;
    return 0;
}

int pst_experts_fetch_choice(pst_forward *f)
{
    pst_routed *r = &f->routed;
    const pst_device_ops *ops = f->device->ops;
    r->is_placed = r->has_places && f->row_count <= PST_PLACED_ROWS;
    const uint64_t chosen_bytes = picks_of(f->t, f->row_count) * sizeof *r->here.chosen;
    PST_TRY(ops->copy(f->device, NULL, r->here.first, r->there.first, (f->t->experts + 1) * sizeof *r->here.first));
    if (r->is_placed || f->routing != NULL)
        PST_TRY(ops->copy(f->device, NULL, r->here.chosen, r->there.chosen, chosen_bytes));
    PST_TRY(ops->event_record(f->device, r->counted, NULL));
    r->is_pending = true;
    r->is_taken = false;
    return 0;
}

/* Whether what the device chose can be: the host goes by it. */
static bool is_choice_valid(const pst_forward *f)
{
    const pst_route *here = &f->routed.here;
    const uint32_t *first = here->first, experts = f->t->experts;
    const uint64_t picks = picks_of(f->t, f->row_count);
    for (uint32_t e = 0; e < experts; e++)
        if (first[e + 1] < first[e] || first[e + 1] - first[e] > f->row_count)
            return false;
    for (uint64_t i = 0; i < picks && f->routed.is_placed; i++)
        if (here->chosen[i] >= experts)
            return false;
    return first[0] == 0 && first[experts] == picks;
}

/* Finds where each row's experts have it, and brings that to the device. */
static int find_places(pst_forward *f)
{
    pst_routed *r = &f->routed;
    const uint32_t per_token = f->t->experts_per_token, experts = f->t->experts;
    if (!r->is_placed)
        return 0;
    memcpy(r->next, r->here.first, experts * sizeof *r->next);
    for (uint32_t row = 0; row < f->row_count; row++)
        for (uint32_t i = 0; i < per_token; i++) {
            const uint32_t expert = r->here.chosen[(size_t)row * per_token + i], place = r->next[expert]++;
            if (place >= r->here.first[expert + 1])
                return -EIO; /* its counts contradict what was chosen */
            r->places[(size_t)i * f->row_count + row] = place;
        }
    r->wanted = 0;
    for (uint32_t e = 0; e < experts; e++) {
        if (r->here.first[e + 1] == r->here.first[e])
            continue;
        r->wanted++;
        r->last = e;
    }
    return pst_mirror_publish(f->device, &r->mirror, (uint64_t)((char *)r->places - (char *)r->mirror.host),
                              picks_of(f->t, f->row_count) * sizeof *r->places);
}

int pst_experts_publish(pst_forward *f)
{
    pst_routed *r = &f->routed;
    r->is_placed = r->has_places && f->row_count <= PST_PLACED_ROWS;
    r->is_taken = false;
    PST_TRY(pst_mirror_publish(f->device, &r->mirror, 0, pst_route_place(f->t, f->max_rows, NULL, &(pst_route){0})));
    return find_places(f);
}

int pst_experts_await(pst_forward *f)
{
    pst_routed *r = &f->routed;
    if (!r->is_pending)
        return r->failed;
    r->is_pending = false;
    r->failed = f->device->ops->event_wait(f->device, r->counted);
    if (r->failed >= 0)
        r->failed = is_choice_valid(f) ? find_places(f) : -EIO;
    if (r->failed >= 0)
        pst_experts_record(f);
    return r->failed;
}

/* ---- one expert ---- */

/* Whether all of the expert under way is in this part and remains there, and its products are of a kind that can be done
 * together with others'. */
static bool can_put_off(const pst_forward_run *run, const pst_nn_step *step)
{
    const uint32_t *tensors = &run->stage->unit_first_tensor[step->expert];
    const uint32_t steps = run->nn->step_count / run->stage->unit_count;
    const uint32_t last = tensors[1] - 1;
    const pst_piece *pieces = run->part->pieces + run->f->next_piece;
    const size_t count = run->part->piece_count - run->f->next_piece;
    if (!run->part->stays || count < tensors[1] - tensors[0] || pieces[0].tensor != tensors[0] ||
        pieces[0].first_row != 0)
        return false;
    const pst_piece *end = &pieces[last - tensors[0]];
    if (end->tensor != last || end->first_row + end->rows != run->stage->tensors[last].rows)
        return false;
    for (uint32_t i = 0; i < steps; i++) {
        const pst_nn_step *product = &step[i];
        if (product->op->kind == PST_NN_MATMUL &&
            (product->format->transposed || product->bias >= 0 || product->op->accumulate))
            return false;
    }
    return true;
}

/* A buffer's rows of all experts. */
static pst_matrix all_rows(const pst_forward *f, pst_nn_buffer buffer)
{
    pst_matrix matrix = f->buffers[buffer];
    matrix.rows = picks_of(f->t, f->row_count);
    return matrix;
}

int pst_experts_begin_one(const pst_forward_run *run, const pst_nn_step *step)
{
    pst_forward *f = run->f;
    pst_routed *r = &f->routed;
    PST_TRY(pst_forward_checked(run, pst_experts_await(f)));
    const uint32_t first = r->here.first[step->expert];
    f->expert_rows = r->here.first[step->expert + 1] - first;
    r->first_row = 0;
    if (!r->is_placed) {
        const pst_matrix h = pst_forward_matrix(f, step->op->in), eh = pst_forward_matrix(f, step->op->out);
        if (f->expert_rows == 0)
            return 1;
        return pst_forward_checked(run, f->device->ops->take_rows(f->device, &h, r->there.order + first, &eh));
    }
    r->first_row = first;
    if (!r->is_taken) {
        const pst_matrix h = pst_forward_matrix(f, step->op->in), eh = all_rows(f, step->op->out);
        PST_TRY(pst_forward_checked(run, f->device->ops->take_rows(f->device, &h, r->there.order, &eh)));
        memset(r->weights, 0, (size_t)r->steps * f->t->experts * sizeof *r->weights);
        r->is_taken = true;
        r->put_off = 0;
    }
    r->is_put_off = f->expert_rows > 0 && can_put_off(run, step);
    r->put_off += r->is_put_off;
    return 1;
}

int pst_experts_put_off(const pst_forward_run *run, const pst_nn_step *step)
{
    pst_forward *f = run->f;
    pst_routed *r = &f->routed;
    if (!r->is_put_off || step->op->kind != PST_NN_MATMUL)
        return r->is_put_off;
    PST_TRY(pst_forward_keep_aux(run, step));
    const pst_piece *piece = pst_forward_next_piece(run, step->weight);
    const uint32_t number = (uint32_t)(step - run->nn->steps) % (run->nn->step_count / run->stage->unit_count);
    r->weights[(size_t)number * f->t->experts + step->expert] =
        pst_forward_weight(run, step, piece, f->buffers[step->op->in].columns);
    f->next_piece++;
    return 1;
}

/* Computes the experts that were put off; `steps` of one of them. */
static int compute_together(const pst_forward *f, const pst_nn_step *steps, uint32_t count)
{
    const pst_routed *r = &f->routed;
    const pst_device_ops *ops = f->device->ops;
    for (uint32_t i = 0; i < count; i++) {
        const pst_nn_op *op = steps[i].op;
        const pst_matrix in = all_rows(f, op->in), out = all_rows(f, op->out);
        if (op->kind == PST_NN_MATMUL) {
            const pst_grouped_matmul job = {.x = in,
                                            .y = out,
                                            .weights = r->weights + (size_t)i * f->t->experts,
                                            .first = r->there.first,
                                            .groups = f->t->experts};
            PST_TRY(ops->matmul_grouped(f->device, &job));
        } else if (op->kind == PST_NN_GATED) { /* of the others, too: it gives what it gave before */
            const pst_matrix up = all_rows(f, op->in + 1);
            PST_TRY(ops->gated(f->device, f->t->activation, &in, &up, &out));
        }
    }
    return 0;
}

/* Adds what one expert gave. */
static int add_expert(const pst_forward *f, uint32_t expert, const pst_matrix *ey, const pst_matrix *x)
{
    const pst_route *there = &f->routed.there;
    const uint32_t first = f->routed.here.first[expert];
    return f->device->ops->add_rows(f->device, ey, there->order + first, there->order_weight + first, x);
}

/* Adds what all of them gave, expert by expert. */
static int add_by_expert(const pst_forward *f, const pst_matrix *ey, const pst_matrix *x)
{
    const uint32_t *first = f->routed.here.first;
    for (uint32_t e = 0; e < f->t->experts; e++) {
        pst_matrix part = *ey;
        part.data = (float *)ey->data + first[e] * ey->stride;
        part.rows = first[e + 1] - first[e];
        if (part.rows > 0)
            PST_TRY(add_expert(f, e, &part, x));
    }
    return 0;
}

/* The same, the first expert of every row, then the second one of every row, and so on. */
static int add_by_place(const pst_forward *f, const pst_matrix *ey, const pst_matrix *x)
{
    const pst_routed *r = &f->routed;
    const pst_device_ops *ops = f->device->ops;
    const uint32_t per_token = f->t->experts_per_token;
    const pst_block_copy turn = {.x = r->there.weights,
                                 .x_row_stride = per_token,
                                 .x_block_stride = 1,
                                 .y = r->place_weights,
                                 .y_type = PST_F32,
                                 .y_row_stride = 1,
                                 .y_block_stride = f->row_count,
                                 .rows = f->row_count,
                                 .blocks = per_token,
                                 .columns = 1};
    pst_matrix taken = *ey; /* behind the rows of the experts */
    taken.data = (float *)ey->data + ey->rows * ey->stride;
    taken.rows = f->row_count;
    PST_TRY(ops->copy_blocks(f->device, &turn));
    for (uint32_t i = 0; i < per_token; i++) {
        const size_t first = (size_t)i * f->row_count;
        PST_TRY(ops->take_rows(f->device, ey, r->places_there + first, &taken));
        PST_TRY(ops->add_rows(f->device, &taken, r->rows_there, r->place_weights + first, x));
    }
    return 0;
}

int pst_experts_end_one(const pst_forward_run *run, const pst_nn_step *step)
{
    pst_forward *f = run->f;
    pst_routed *r = &f->routed;
    r->is_put_off = false;
    const pst_matrix x = pst_forward_matrix(f, step->op->out);
    if (f->expert_rows > 0 && !r->is_placed) {
        const pst_matrix one = pst_forward_matrix(f, step->op->in);
        return pst_forward_checked(run, add_expert(f, step->expert, &one, &x));
    }
    if (f->expert_rows == 0 || step->expert != r->last)
        return 1;
    const uint32_t count = run->nn->step_count / run->stage->unit_count;
    const pst_matrix ey = all_rows(f, step->op->in);
    if (r->put_off > 0)
        PST_TRY(pst_forward_checked(run, compute_together(f, step + 1 - count, count)));
    const bool by_place = r->wanted > LAUNCHES_PER_PLACE * f->t->experts_per_token + 1;
    return pst_forward_checked(run, (by_place ? add_by_place : add_by_expert)(f, &ey, &x));
}
