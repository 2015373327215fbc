/* SPDX-License-Identifier: Apache-2.0 */
/* Attention on the host: one task per (segment, block of rows, key/value head), each with its thread's scratch
 * memory. */
#include <errno.h>

#include "base/heap.h"
#include "device/host.h"

enum { QUERIES_PER_TASK = 64 }; /* rows x group: so often are keys and values used while they are in a near cache */

typedef struct attention_cut {
    host_device *host;
    const pst_attention *job;
    size_t block_rows, blocks_per_segment; /* blocks_per_segment: of every segment, 0 when they differ */
} attention_cut;

/* The segment and its block of rows that a task belongs to. */
static const pst_segment *find_block(const attention_cut *cut, size_t index, size_t *block)
{
    if (cut->blocks_per_segment != 0) {
        *block = index % cut->blocks_per_segment;
        return &cut->job->segments[index / cut->blocks_per_segment];
    }
    const pst_segment *segment = cut->job->segments;
    for (;; segment++) {
        size_t blocks = host_ceil(segment->rows, cut->block_rows);
        if (index < blocks)
            break;
        index -= blocks;
    }
    *block = index;
    return segment;
}

static void attention_task(void *context, uint32_t task, uint32_t worker)
{
    const attention_cut *cut = context;
    const pst_attention *job = cut->job;
    size_t block, kv_head = task % job->kv_heads;
    const pst_segment *segment = find_block(cut, task / job->kv_heads, &block);
    const size_t skipped = block * cut->block_rows, row = segment->first_row + skipped;
    const size_t group = job->heads / job->kv_heads, column = kv_head * group * job->head_dim;
    const size_t rows = segment->rows - skipped < cut->block_rows ? segment->rows - skipped : cut->block_rows;
    const size_t kv_offset = kv_head * job->capacity * job->head_dim * (pst_dtype_bits(job->kv_type) / 8);
    pst_cpu_attention part = {
        .q = (const float *)job->q.data + row * job->q.stride + column,
        .q_stride = job->q.stride,
        .out = (char *)job->out.data + (row * job->out.stride + column) * (pst_dtype_bits(job->out.type) / 8),
        .out_stride = job->out.stride,
        .out_type = job->out.type,
        .kv_type = job->kv_type,
        .k = (const char *)segment->k + kv_offset,
        .v = (const char *)segment->v + kv_offset,
        .rows = (uint32_t)rows,
        .group = (uint32_t)group,
        .head_dim = job->head_dim,
        .first_position = segment->first_position + (uint32_t)skipped,
        .window = job->window,
        .scale = job->scale,
        .scratch = cut->host->scratch + worker * cut->host->scratch_floats,
    };
    cut->host->kernels->attention(&part);
}

static int reserve_scratch(host_device *host, size_t queries, size_t head_dim)
{
    size_t floats = (pst_cpu_attention_scratch_floats(queries, head_dim) + 15) & ~(size_t)15;
    if (floats <= host->scratch_floats)
        return 0;
    float *grown = pst_heap_reallocarray(host->scratch, floats, host->threads * sizeof(float));
    if (grown == NULL)
        return -ENOMEM;
    host->scratch = grown;
    host->scratch_floats = floats;
    return 0;
}

int host_attention(pst_device *device, const pst_attention *job)
{
    host_device *host = host_of(device);
    const size_t group = job->heads / job->kv_heads;
    attention_cut cut = {.host = host, .job = job};
    cut.block_rows = QUERIES_PER_TASK > group ? QUERIES_PER_TASK / group : 1;
    size_t blocks = 0;
    bool alike = true;
    for (size_t i = 0; i < job->segment_count; i++) {
        blocks += host_ceil(job->segments[i].rows, cut.block_rows);
        alike = alike && job->segments[i].rows == job->segments[0].rows;
    }
    if (blocks == 0)
        return 0;
    cut.blocks_per_segment = alike ? blocks / job->segment_count : 0;
    int status = reserve_scratch(host, cut.block_rows * group, job->head_dim);
    if (status < 0)
        return status;
    host_run(host, blocks * job->kv_heads, attention_task, &cut);
    return 0;
}
