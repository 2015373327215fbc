/* SPDX-License-Identifier: Apache-2.0 */
/* Operators that touch the KV cache. */
#include <math.h>

#include "nn/forward_internal.h"

int pst_forward_store_kv(const pst_forward_run *run, const pst_nn_step *step)
{
    pst_forward *f = run->f;
    pst_matrix k = pst_forward_matrix(f, step->op->in), v = pst_forward_matrix(f, PST_NN_V);
    return pst_forward_checked(
        run, f->device->ops->kv_store(f->device, &f->kv_layout, &k, &v, f->segments, f->segment_count));
}

int pst_forward_attention(const pst_forward_run *run, const pst_nn_step *step)
{
    pst_forward *f = run->f;
    const pst_transformer *t = f->t;
    pst_attention job = {.q = pst_forward_matrix(f, step->op->in),
                         .out = pst_forward_matrix(f, step->op->out),
                         .segments = f->segments,
                         .segment_count = f->segment_count,
                         .heads = t->heads,
                         .layout = f->kv_layout,
                         .window = t->windowed != NULL && t->windowed[run->nn->layer] ? t->window : 0,
                         .alibi = f->alibi,
                         .scale = t->attention_scale != 0 ? t->attention_scale : 1.0f / sqrtf((float)t->head_dim)};
    if (t->scale_by_layer)
        job.scale /= (float)(run->nn->layer + 1);
    return pst_forward_checked(run, f->device->ops->attention(f->device, &job));
}
