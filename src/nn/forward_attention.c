/* SPDX-License-Identifier: Apache-2.0 */
/* Attention over the KV cache. */
#include <math.h>

#include "base/error.h"
#include "base/number.h"
#include "nn/forward_internal.h"

pst_segments pst_forward_segments(const pst_forward *f, uint32_t first, uint32_t count)
{
    pst_segments all = {.items = (const pst_segment *)f->segment_table.there + first,
                        .count = count,
                        .first_row = 0,
                        .rows = f->row_count};
    for (uint32_t i = first; i < first + count; i++) {
        const pst_segment *s = &f->segments[i];
        all.max_rows = pst_max(all.max_rows, s->rows);
        all.max_positions = (uint32_t)pst_max(all.max_positions, s->first_position + s->rows);
        if (i >= f->generated_segments)
            continue;
        all.generated++;
        all.generated_max_rows = all.max_rows;
        all.generated_max_positions = all.max_positions;
    }
    if (f->rounded_positions > 0) /* all are of generated tokens */
        all.max_positions = all.generated_max_positions = f->rounded_positions;
    return all;
}

int pst_forward_attention(const pst_forward_run *run, const pst_nn_step *step)
{
    pst_forward *f = run->f;
    const pst_transformer *t = f->t;
    const pst_device_ops *ops = f->device->ops;
    pst_attention job = {.q = pst_forward_matrix(f, step->op->in),
                         .out = pst_forward_matrix(f, step->op->out),
                         .heads = t->heads,
                         .layout = f->kv_layout,
                         .window = t->windowed != NULL && t->windowed[run->nn->layer] ? t->window : 0,
                         .alibi = f->alibi.there,
                         .scale = t->attention_scale != 0 ? t->attention_scale : 1.0f / sqrtf((float)t->head_dim)};
    if (t->scale_by_layer)
        job.scale /= (float)(run->nn->layer + 1);
    pst_kv_store store = {
        .k = pst_forward_matrix(f, PST_NN_K), .v = pst_forward_matrix(f, PST_NN_V), .layout = f->kv_layout};
    uint32_t first, count;
    int status;
    while ((status = pst_kv_next_group(f->kv, run->nn->layer, &first, &count, run->err)) > 0) {
        job.segments = store.segments = pst_forward_segments(f, first, count);
        job.block_offset = store.block_offset = pst_kv_layer_offset(f->kv, run->nn->layer);
        PST_TRY(pst_forward_checked(run, ops->kv_store(f->device, &store)));
        PST_TRY(pst_forward_checked(run, ops->attention(f->device, &job)));
        PST_TRY(pst_kv_end_group(f->kv, run->err));
    }
    return status < 0 ? status : 1;
}
