/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the kernels of attention share: the job as they see it, which part of it a block of threads has, and where
 * results go.
 *
 * A block of threads takes up to M queries of one segment that share a key/value head: query i of the segment is head
 * i % group of its row i / group. It goes through the keys in tiles of PST_KV_BLOCK positions, which begin at
 * multiples of that, with the running maximum and sum of exponentials of every query ("online softmax", arXiv
 * 2205.14135).
 *
 * Segments of generated tokens have few rows: they are cut along the positions as well, so that one sequence keeps the
 * whole device busy ("flash decoding"). The cuts ("chunks") lie at fixed positions: 32 chunks of 128 positions, then 32 of 256, 32 of
 * 512 and so on, which bounds the memory for partial results. attention.cu combines them, in rising order.
 */
#ifndef PST_CUDA_ATTENTION_H
#define PST_CUDA_ATTENTION_H

#include "cuda_device.h"

enum {
    ATTENTION_THREADS = 128,
    ATTENTION_WARPS = ATTENTION_THREADS / 32,
    ATTENTION_TILE = PST_KV_BLOCK,
    ATTENTION_CHUNK = 128,     /* positions of the first chunks */
    ATTENTION_LEVEL = 32,      /* so many chunks are of one size */
    ATTENTION_MAX_CHUNKS = 672 /* of 2^32 positions */
};

/* Where a head's keys (values) lie in a block of the cache. */
typedef struct attention_rows {
    uint64_t offset, head_bytes;         /* of head 0, from head to head */
    uint32_t dim, row_bytes, code_bytes; /* code_bytes: Q8, Q4: of a row's codes, which its scales follow */
    bool in_fours; /* every fourth element is at a multiple of the size of four; a block of the cache is at one of 16 */
} attention_rows;

/* A pst_attention, ready for a launch. All pointers are the device's. */
typedef struct attention_args {
    const float *q;
    void *out;
    const pst_segment *segments;
    const float *alibi;
    float *partials; /* NULL: a block of threads has all positions of its queries and writes `out` */
    uint64_t q_stride, out_stride;
    uint64_t first_row, rows; /* of the pass, that the operands have */
    uint64_t block_offset;
    attention_rows keys, values;
    uint32_t first_segment, segment_count; /* of this launch */
    uint32_t first_slot, slots;            /* rows of a segment, counted from its first one, that the launch is for */
    uint32_t chunks;                       /* that `partials` has room for */
    uint32_t heads, group, window;
    float scale;
    pst_kv_type type;
    bool few;         /* the launch is for segments of generated tokens; else of prompts */
    bool shared;      /* a value is the beginning of its key */
    bool out_is_bf16; /* else f32 */
} attention_args;

/* ---- Chunks of positions ---- */

/* The first position of a chunk. */
static __host__ __device__ __forceinline__ uint64_t attention_chunk_begin(uint32_t chunk)
{
    const uint32_t level = chunk / ATTENTION_LEVEL, in_level = chunk % ATTENTION_LEVEL;
    return ((((uint64_t)ATTENTION_LEVEL + in_level) << level) - ATTENTION_LEVEL) * ATTENTION_CHUNK;
}

/* The chunk that has a position. */
static __host__ __device__ __forceinline__ uint32_t attention_chunk_of(uint32_t position)
{
    const uint32_t unit = position / ATTENTION_CHUNK + ATTENTION_LEVEL;
    uint32_t level = 0;
    while (unit >> level >= 2 * ATTENTION_LEVEL)
        level++;
    return level * ATTENTION_LEVEL + (unit >> level) - ATTENTION_LEVEL;
}

/* ---- Which queries a block of threads has ---- */

typedef struct attention_work {
    void *const *blocks;     /* the sequence's */
    uint32_t segment;        /* counted from args.first_segment */
    uint32_t skipped;        /* rows of the segment that lie before the operands and before first_slot */
    uint32_t first, count;   /* queries, counted from the first row that is not skipped */
    uint32_t first_position; /* of that row */
    uint64_t first_row;      /* of the operands, that has it */
    uint32_t begin, end;     /* positions that any of the queries sees, and that are this block's: its own chunk's */
} attention_work;

/* A segment's rows that the operands have and the launch is for: how many, and how many come before them. */
static __device__ __forceinline__ uint32_t attention_clip(const attention_args &a, const pst_segment &s,
                                                          uint32_t *skipped)
{
    const uint64_t s_begin = s.first_row + a.first_slot, begin = s_begin > a.first_row ? s_begin : a.first_row;
    const uint64_t rows = s.rows < (uint64_t)a.first_slot + a.slots ? s.rows : (uint64_t)a.first_slot + a.slots;
    const uint64_t s_end = s.first_row + rows, a_end = a.first_row + a.rows;
    const uint64_t end = s_end < a_end ? s_end : a_end;
    *skipped = (uint32_t)(begin - s.first_row);
    return end > begin ? (uint32_t)(end - begin) : 0;
}

/* The first position that a query at `position` sees. */
static __device__ __forceinline__ uint32_t attention_first_seen(const attention_args &a, uint32_t position)
{
    return a.window > 0 && position >= a.window ? position - a.window + 1 : 0;
}

/* Finds the work of a block of threads: tile number blockIdx.x of all segments' tiles of `tile_queries` queries,
 * chunk blockIdx.z from the end. Every warp finds it alone; all find the same. false: there is none. The last rows
 * of a segment, which have the most keys, come first, and so do the last, longest chunks. */
static __device__ __forceinline__ bool attention_find_work(const attention_args &a, uint32_t tile_queries,
                                                           attention_work *work)
{
    const uint32_t lane = threadIdx.x % 32;
    uint32_t wanted = blockIdx.x, segment = a.segment_count, tile = 0;
    for (uint32_t base = 0; base < a.segment_count && segment == a.segment_count; base += 32) {
        uint32_t tiles = 0, skipped;
        if (base + lane < a.segment_count)
            tiles =
                (attention_clip(a, a.segments[a.first_segment + base + lane], &skipped) * a.group + tile_queries - 1) /
                tile_queries;
        uint32_t sum = tiles; /* of this lane's and those below it */
        for (uint32_t step = 1; step < 32; step *= 2) {
            const uint32_t below = __shfl_up_sync(0xffffffffu, sum, step);
            sum += lane >= step ? below : 0;
        }
        const uint32_t reached = __ballot_sync(0xffffffffu, sum > wanted);
        const uint32_t owner = reached != 0 ? (uint32_t)__ffs((int)reached) - 1 : 31;
        const uint32_t owner_sum = __shfl_sync(0xffffffffu, sum, (int)owner);
        if (reached != 0) {
            segment = base + owner;
            tile = owner_sum - 1 - wanted; /* the last one first */
        } else {
            wanted -= owner_sum;
        }
    }
    if (segment == a.segment_count)
        return false;
    const pst_segment s = a.segments[a.first_segment + segment];
    const uint32_t rows = attention_clip(a, s, &work->skipped), queries = rows * a.group;
    work->blocks = s.blocks;
    work->segment = segment;
    work->first = tile * tile_queries;
    work->count = queries - work->first < tile_queries ? queries - work->first : tile_queries;
    work->first_position = s.first_position + work->skipped;
    work->first_row = s.first_row + work->skipped - a.first_row;
    work->begin = attention_first_seen(a, work->first_position + work->first / a.group);
    work->end = work->first_position + (work->first + work->count - 1) / a.group + 1;
    if (a.partials != NULL) {
        const uint32_t chunk = gridDim.z - 1 - blockIdx.z;
        const uint64_t begin = attention_chunk_begin(chunk), end = attention_chunk_begin(chunk + 1);
        work->begin = work->begin > begin ? work->begin : (uint32_t)(begin < work->end ? begin : work->end);
        work->end = work->end < end ? work->end : (uint32_t)end;
    }
    return work->begin < work->end;
}

/* What a block of threads knows of one of its queries. Those from work.count on are like the last one, and go
 * nowhere. */
typedef struct attention_query {
    uint64_t row; /* of the operands */
    uint32_t position, head;
} attention_query;

static __device__ __forceinline__ attention_query attention_query_of(const attention_args &a, const attention_work &w,
                                                                     uint32_t i)
{
    const uint32_t query = w.first + (i < w.count ? i : w.count - 1), row = query / a.group;
    return {w.first_row + row, w.first_position + row, blockIdx.y * a.group + query - row * a.group};
}

/* Whether some query of the block does not see some of positions [begin, end), which others see. */
static __device__ __forceinline__ bool attention_is_edge(const attention_args &a, const attention_work &w,
                                                         uint32_t begin, uint32_t end)
{
    const uint32_t first = w.first_position + w.first / a.group;
    const uint32_t last = w.first_position + (w.first + w.count - 1) / a.group;
    return end - 1 > first || (a.window > 0 && last - begin >= a.window && begin <= last);
}

static __device__ __forceinline__ bool attention_sees(const attention_args &a, uint32_t query_position,
                                                      uint32_t position)
{
    return position <= query_position && (a.window == 0 || query_position - position < a.window);
}

/* The memory of the keys or values of this block of threads' head in the tile that begins at `position`. */
static __device__ __forceinline__ const char *attention_tile(const attention_args &a, const attention_work &w,
                                                             const attention_rows &rows, uint32_t position)
{
    return (const char *)w.blocks[position / PST_KV_BLOCK] + a.block_offset + rows.offset +
           blockIdx.y * rows.head_bytes;
}

/* ---- Results ---- */

/* A partial result of one query and chunk is its maximum and its sum of exponentials, then the sums of its values. */
static __host__ __device__ __forceinline__ uint32_t attention_partial_floats(const attention_args &a)
{
    return a.values.dim + 2;
}

static __device__ __forceinline__ float *attention_partial(const attention_args &a, uint32_t segment, uint32_t row,
                                                           uint32_t head, uint32_t chunk)
{
    const uint64_t slot = ((uint64_t)segment * a.slots + row - a.first_slot) * a.heads + head;
    return a.partials + (slot * a.chunks + chunk) * attention_partial_floats(a);
}

/* A sum that has sunk to -0 becomes 0 as soon as a value of a position that the query does not see is added with the
 * weight zero; which there are is a matter of its neighbours. So no result is -0. */
static __device__ __forceinline__ void attention_store_out(const attention_args &a, uint64_t row, uint32_t head,
                                                           uint32_t column, float x)
{
    const uint64_t at = row * a.out_stride + (uint64_t)head * a.values.dim + column;
    x = __fadd_rn(x, 0.0f);
    if (a.out_is_bf16)
        ((uint16_t *)a.out)[at] = pst_f32_to_bf16(x);
    else
        ((float *)a.out)[at] = x;
}

/* Where a query's sums go: its place in `out`, or its partial result of this chunk. */
typedef struct attention_target {
    uint64_t row;
    float *partial; /* NULL: out */
    float total;
    uint32_t head;
} attention_target;

/* `is_writer`: this thread writes the maximum and the total. */
static __device__ __forceinline__ attention_target attention_target_of(const attention_args &a, const attention_work &w,
                                                                       uint32_t i, float largest, float total,
                                                                       bool is_writer)
{
    const attention_query q = attention_query_of(a, w, i);
    attention_target target = {q.row, NULL, total, q.head};
    if (a.partials != NULL) {
        target.partial =
            attention_partial(a, w.segment, w.skipped + (w.first + i) / a.group, q.head, gridDim.z - 1 - blockIdx.z);
        if (is_writer) {
            target.partial[0] = largest;
            target.partial[1] = total;
        }
    }
    return target;
}

static __device__ __forceinline__ void attention_store(const attention_args &a, const attention_target &target,
                                                       uint32_t column, float sum)
{
    if (target.partial != NULL)
        target.partial[2 + column] = sum;
    else
        attention_store_out(a, target.row, target.head, column, sum / target.total);
}

/* ---- Launches ---- */

typedef struct attention_grid {
    uint32_t tiles_of_rows; /* rows that there can be at most in the launch's segments */
    uint32_t kv_heads, chunks;
} attention_grid;

/* Blocks of threads that are needed for tiles of so many queries. */
static inline dim3 attention_grid_of(const attention_args &a, const attention_grid &grid, uint32_t tile_queries)
{
    const uint64_t queries = (uint64_t)grid.tiles_of_rows * a.group;
    return dim3((uint32_t)(queries / tile_queries) + a.segment_count, grid.kv_heads, grid.chunks);
}

/* Whether attention_tensor.cu has a kernel for this job on a device whose blocks may have so much shared memory. */
bool attention_tensor_fits(const attention_args &a, size_t shared_bytes);
pst_vendor_error attention_tensor_launch(const attention_args &a, const attention_grid &grid, size_t shared_bytes,
                                         pst_vendor_stream stream);
/* attention_plain.cu has one for every job. */
pst_vendor_error attention_plain_launch(const attention_args &a, const attention_grid &grid, size_t shared_bytes,
                                        pst_vendor_stream stream);

#endif
