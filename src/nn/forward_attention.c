/* SPDX-License-Identifier: Apache-2.0 */
/* Attention over the KV cache. */
#include <math.h>

#include "base/error.h"
#include "nn/forward_internal.h"

int pst_forward_attention(const pst_forward_run *run, const pst_nn_step *step)
{
    pst_forward *f = run->f;
    const pst_transformer *t = f->t;
    const pst_device_ops *ops = f->device->ops;
    const pst_matrix k = pst_forward_matrix(f, PST_NN_K), v = pst_forward_matrix(f, PST_NN_V);
    pst_attention job = {.q = pst_forward_matrix(f, step->op->in),
                         .out = pst_forward_matrix(f, step->op->out),
                         .heads = t->heads,
                         .layout = f->kv_layout,
                         .window = t->windowed != NULL && t->windowed[run->nn->layer] ? t->window : 0,
                         .alibi = f->alibi,
                         .scale = t->attention_scale != 0 ? t->attention_scale : 1.0f / sqrtf((float)t->head_dim)};
    if (t->scale_by_layer)
        job.scale /= (float)(run->nn->layer + 1);
    uint32_t first, count;
    int status;
    while ((status = pst_kv_next_group(f->kv, run->nn->layer, &first, &count, run->err)) > 0) {
        job.segments = f->segments + first;
        job.segment_count = count;
        PST_TRY(pst_forward_checked(run, ops->kv_store(f->device, &f->kv_layout, &k, &v, job.segments, count)));
        PST_TRY(pst_forward_checked(run, ops->attention(f->device, &job)));
        PST_TRY(pst_kv_end_group(f->kv, run->err));
    }
    return status < 0 ? status : 1;
}
