/* SPDX-License-Identifier: Apache-2.0 */
/* Attention on the host: one task per (segment, block of rows, key/value head, some of the heads that share it), each with
 * its thread's scratch memory. A query's bits do not depend on the cut. */
#include "base/error.h"
#include "device/host.h"

enum {
    QUERIES_PER_TASK = 64, /* rows x heads: so often are keys and values used while they are in a near cache */
    TASKS_PER_THREAD = 2   /* with fewer, tasks are made smaller */
};

typedef struct attention_cut {
    host_device *host;
    const pst_attention *job;
    size_t group, rows_per_task, heads_per_task, head_parts; /* heads_per_task: of a group */
    size_t blocks_per_segment;                               /* of rows, of every segment; 0 when they differ */
} attention_cut;

static size_t lesser(size_t a, size_t b)
{
    return a < b ? a : b;
}

pst_segment host_segment(const pst_segments *segments, size_t number)
{
    pst_segment s = segments->items[number];
    const size_t begin = s.first_row > segments->first_row ? s.first_row : segments->first_row;
    const size_t end = lesser(s.first_row + s.rows, segments->first_row + segments->rows);
    s.first_position += (uint32_t)(begin - s.first_row);
    s.first_row = begin - segments->first_row;
    s.rows = end > begin ? end - begin : 0;
    return s;
}

/* The segment and its block of rows that a task belongs to. */
static pst_segment find_block(const attention_cut *cut, size_t index, size_t *block)
{
    const pst_segments *segments = &cut->job->segments;
    if (cut->blocks_per_segment != 0) {
        *block = index % cut->blocks_per_segment;
        return host_segment(segments, index / cut->blocks_per_segment);
    }
    for (size_t i = 0;; i++) {
        pst_segment segment = host_segment(segments, i);
        *block = index;
        size_t blocks = host_ceil(segment.rows, cut->rows_per_task);
        if (index < blocks)
            return segment;
        index -= blocks;
    }
}

static void attention_task(void *context, uint32_t task, uint32_t worker)
{
    const attention_cut *cut = context;
    const pst_attention *job = cut->job;
    const size_t part = task % cut->head_parts, kv_head = task / cut->head_parts % job->layout.kv_heads;
    size_t block;
    const pst_segment segment = find_block(cut, task / cut->head_parts / job->layout.kv_heads, &block);
    const size_t skipped = block * cut->rows_per_task, row = segment.first_row + skipped;
    const size_t head = kv_head * cut->group + part * cut->heads_per_task;
    const size_t out_first = row * job->out.stride + head * job->layout.value_dim;
    pst_cpu_attention small = {
        .q = (const float *)job->q.data + row * job->q.stride + head * job->layout.key_dim,
        .q_stride = job->q.stride,
        .out = (char *)job->out.data + out_first * (pst_dtype_bits(job->out.type) / 8),
        .out_stride = job->out.stride,
        .out_type = job->out.type,
        .layout = &job->layout,
        .blocks = segment.blocks,
        .block_offset = job->block_offset,
        .kv_head = (uint32_t)kv_head,
        .rows = (uint32_t)lesser(segment.rows - skipped, cut->rows_per_task),
        .group = (uint32_t)lesser(cut->group - part * cut->heads_per_task, cut->heads_per_task),
        .first_position = segment.first_position + (uint32_t)skipped,
        .window = job->window,
        .alibi = job->alibi ? job->alibi + head : NULL,
        .scale = job->scale,
        .scratch = cut->host->scratch + worker * cut->host->scratch_floats,
    };
    cut->host->kernels->attention(&small);
}

/* Of one thread; for the largest task, so that no later call wants more. */
static size_t scratch_floats(const pst_kv_layout *layout)
{
    return pst_cpu_attention_scratch_floats(QUERIES_PER_TASK, layout);
}

uint64_t pst_device_host_attention_bytes(const pst_kv_layout *layout, uint32_t threads)
{
    return (uint64_t)host_scratch_floats(scratch_floats(layout)) * sizeof(float) * threads;
}

/* Fills in what follows from rows_per_task and heads_per_task. Returns the number of tasks. */
static size_t count_tasks(attention_cut *cut)
{
    const pst_attention *job = cut->job;
    size_t blocks = 0;
    bool alike = true;
    for (size_t i = 0; i < job->segments.count; i++) {
        const size_t rows = host_segment(&job->segments, i).rows;
        blocks += host_ceil(rows, cut->rows_per_task);
        alike = alike && rows == host_segment(&job->segments, 0).rows;
    }
    cut->blocks_per_segment = alike && blocks > 0 ? blocks / job->segments.count : 0;
    cut->head_parts = host_ceil(cut->group, cut->heads_per_task);
    return blocks * job->layout.kv_heads * cut->head_parts;
}

/* The largest tasks that give every thread some: halving them reads keys and values once more, so rows are cut only down to
 * where all heads of a group still make a fair task. */
static size_t choose_cut(attention_cut *cut)
{
    cut->heads_per_task = lesser(cut->group, QUERIES_PER_TASK);
    cut->rows_per_task = QUERIES_PER_TASK / cut->heads_per_task;
    size_t tasks = count_tasks(cut), wanted = cut->host->threads > 1 ? cut->host->threads * TASKS_PER_THREAD : 1;
    while (tasks > 0 && tasks < wanted && cut->rows_per_task * cut->heads_per_task > 1) {
        if (cut->rows_per_task > 1)
            cut->rows_per_task = host_ceil(cut->rows_per_task, 2);
        else
            cut->heads_per_task = host_ceil(cut->heads_per_task, 2);
        tasks = count_tasks(cut);
    }
    return tasks;
}

int host_attention(pst_device *device, const pst_attention *job)
{
    host_device *host = host_of(device);
    attention_cut cut = {.host = host, .job = job, .group = job->heads / job->layout.kv_heads};
    size_t tasks = choose_cut(&cut);
    if (tasks == 0)
        return 0;
    PST_TRY(host_reserve_scratch(host, scratch_floats(&job->layout)));
    host_run(host, tasks, attention_task, &cut);
    return 0;
}
