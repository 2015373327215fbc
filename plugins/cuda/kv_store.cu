/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Keys and values to their places in the cache. A warp stores up to 64 elements of one head's row: a group, where they
 * become codes, each lane two neighbouring elements of it. Codes and scales are made by the host's arithmetic,
 * operation by operation, so that the bytes are the same: the minimum is the group's least element rounded down to F16,
 * the scale its range over the largest code rounded up.
 */
#include <string.h>

#include "rows.h"

enum { KV_WARPS = 4 /* of a block */ };

struct kv_args {
    const float *k, *v;
    uint64_t k_stride, v_stride;
    const pst_segment *segments;
    uint64_t count, first_row, rows, max_rows, block_offset;
    pst_kv_type type;
    uint32_t kv_heads, key_dim, value_dim; /* value_dim 0: no values of their own */
    uint32_t key_groups, value_groups;     /* of a head */
    uint64_t key_bytes, value_bytes;       /* of a head's row */
};

/* The bits of the largest F16 <= size or, `up`, the smallest >= size; 0 <= size <= 65504. */
static __device__ __forceinline__ uint16_t kv_to_f16(double size, bool up)
{
    if (!(size > 0.0))
        return 0;
    uint64_t u;
    memcpy(&u, &size, sizeof u);
    const int exponent = (int)(u >> 52) - 1023;
    if (exponent < -25)
        return up ? 1 : 0;
    const uint64_t fraction = (u & ((1ull << 52) - 1)) | 1ull << 52;
    /* In units of the last place of an F16 of its exponent, 2^-24 at least. */
    const int place = exponent - 10 > -24 ? exponent - 10 : -24, shift = 52 - (exponent - place);
    uint64_t units = fraction >> shift;
    units += up && (fraction & ((1ull << shift) - 1)) != 0;
    /* 1024 units are the implied bit; 2048, after rounding up, carry into the exponent. */
    return (uint16_t)((uint64_t)(place + 24) * 1024 + units);
}

/* Code of x, which is not below the minimum by more than rounding: to the nearest, even of two, within 0..most. */
static __device__ __forceinline__ uint32_t kv_code(float x, float minimum, float inverse, float most)
{
    float a = __fmul_rn(__fadd_rn(x, -minimum), inverse);
    a = __fadd_rn(__fadd_rn(a, 0x1.8p23f), -0x1.8p23f); /* the sum has no room for a fraction */
    a = a > 0.0f ? a : 0.0f;
    return (uint32_t)(a < most ? a : most);
}

/* The nearest F16; beyond the largest that one. */
static __device__ __forceinline__ uint16_t kv_half(float x)
{
    if (x != x)
        return (uint16_t)(0x7e00 | (__float_as_uint(x) >> 16 & 0x8000));
    return pst_f32_to_f16(x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x);
}

static __device__ __forceinline__ float kv_held(float x)
{
    return x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x; /* what is no number stays */
}

/* The warp's group: elements a (of column 2 * lane) and b (the next one), `there` of the two, to codes at y and the
 * scale and minimum at `scales`. */
static __device__ __forceinline__ void kv_store_codes(float a, float b, uint32_t there, bool four_bits, uint8_t *y,
                                                      char *scales)
{
    const uint32_t lane = threadIdx.x % 32;
    a = kv_held(a);
    b = kv_held(b);
    float least = there > 0 ? a : 65504.0f, largest = there > 0 ? a : -65504.0f;
    if (there > 1) {
        least = b < least ? b : least;
        largest = b > largest ? b : largest;
    }
    const bool bad = __any_sync(ROWS_WARP, (there > 0 && a != a) || (there > 1 && b != b)) != 0;
    for (int step = 16; step > 0; step /= 2) {
        const float lower = __shfl_xor_sync(ROWS_WARP, least, step);
        const float higher = __shfl_xor_sync(ROWS_WARP, largest, step);
        least = lower < least ? lower : least;
        largest = higher > largest ? higher : largest;
    }
    uint16_t minimum_bits = 0x7e00, scale_bits = 0x7e00;
    uint32_t low = 0, high = 0;
    if (!bad) {
        const float most = four_bits ? 15.0f : 255.0f;
        minimum_bits =
            least < 0.0f ? (uint16_t)(0x8000 | kv_to_f16(-(double)least, true)) : kv_to_f16((double)least, false);
        const float minimum = pst_f16_to_f32(minimum_bits);
        scale_bits = kv_to_f16(((double)largest - (double)minimum) / (double)most, true);
        const float scale = pst_f16_to_f32(scale_bits), inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
        low = there > 0 ? kv_code(a, minimum, inverse, most) : 0;
        high = there > 1 ? kv_code(b, minimum, inverse, most) : 0;
    }
    if (four_bits) {
        if (there > 0)
            y[lane] = (uint8_t)(low | high << 4);
    } else {
        if (there > 0)
            y[2 * lane] = (uint8_t)low;
        if (there > 1)
            y[2 * lane + 1] = (uint8_t)high;
    }
    if (lane == 0) {
        rows_store_16(scales, scale_bits);
        rows_store_16(scales + 2, minimum_bits);
    }
}

/* Elements first.. of a head's row x of `dim` elements to the row at y. */
static __device__ __forceinline__ void kv_store_group(const kv_args &k, const float *x, uint32_t dim, uint32_t group,
                                                      char *y)
{
    const uint32_t first = group * PST_KV_GROUP + threadIdx.x % 32 * 2;
    const uint32_t there = first + 1 < dim ? 2 : first < dim ? 1 : 0;
    const float a = there > 0 ? x[first] : 0.0f, b = there > 1 ? x[first + 1] : 0.0f;
    if (k.type == PST_KV_Q8 || k.type == PST_KV_Q4) {
        const bool four_bits = k.type == PST_KV_Q4;
        char *scales = y + (four_bits ? (dim + 1) / 2 : dim) + group * 4;
        kv_store_codes(a, b, there, four_bits, (uint8_t *)y + group * (four_bits ? PST_KV_GROUP / 2 : PST_KV_GROUP),
                       scales);
    } else if (k.type == PST_KV_F16) {
        uint16_t *out = (uint16_t *)y + first;
        if (there > 0)
            out[0] = kv_half(a);
        if (there > 1)
            out[1] = kv_half(b);
    } else {
        float *out = (float *)y + first;
        if (there > 0)
            out[0] = a;
        if (there > 1)
            out[1] = b;
    }
}

/* x: groups of all heads' keys, then of their values, a warp each; y: rows of a segment; z: segments. */
static __global__ __launch_bounds__(KV_WARPS * 32) void kv_store_rows(kv_args k)
{
    const uint32_t task = blockIdx.x * KV_WARPS + threadIdx.x / 32, keys = k.kv_heads * k.key_groups;
    if (task >= keys + k.kv_heads * k.value_groups)
        return;
    const bool is_key = task < keys;
    const uint32_t groups = is_key ? k.key_groups : k.value_groups, dim = is_key ? k.key_dim : k.value_dim;
    const uint32_t head = (is_key ? task : task - keys) / groups, group = (is_key ? task : task - keys) % groups;
    const uint64_t row_bytes = is_key ? k.key_bytes : k.value_bytes;
    const uint64_t offset =
        k.block_offset + (is_key ? 0 : k.kv_heads * PST_KV_BLOCK * k.key_bytes) + head * PST_KV_BLOCK * row_bytes;
    for (uint64_t s = blockIdx.z; s < k.count; s += gridDim.z) {
        const pst_segment segment = k.segments[s];
        const uint64_t begin = segment.first_row > k.first_row ? segment.first_row : k.first_row;
        const uint64_t past = segment.first_row + segment.rows, last = k.first_row + k.rows;
        const uint64_t end = past < last ? past : last;
        for (uint64_t row = begin + blockIdx.y; row < end; row += gridDim.y) {
            const uint64_t position = segment.first_position + (row - segment.first_row);
            char *block = (char *)segment.blocks[position / PST_KV_BLOCK] + offset;
            const float *x = (is_key ? k.k + (row - k.first_row) * k.k_stride : k.v + (row - k.first_row) * k.v_stride);
            kv_store_group(k, x + (uint64_t)head * dim, dim, group, block + position % PST_KV_BLOCK * row_bytes);
        }
    }
}

static uint64_t kv_row_bytes(pst_kv_type type, uint64_t dim)
{
    if (type == PST_KV_F32 || type == PST_KV_F16)
        return dim * (type == PST_KV_F32 ? 4 : 2);
    return (type == PST_KV_Q8 ? dim : (dim + 1) / 2) + (dim + PST_KV_GROUP - 1) / PST_KV_GROUP * 4;
}

int pst_cuda_kv_store(cuda_device *device, const pst_kv_store *job)
{
    const pst_kv_layout *l = &job->layout;
    const pst_segments *s = &job->segments;
    if (s->count == 0 || s->rows == 0 || s->max_rows == 0)
        return 0;
    kv_args k = {};
    k.k = (const float *)job->k.data;
    k.k_stride = job->k.stride;
    k.v = (const float *)job->v.data;
    k.v_stride = job->v.stride;
    k.segments = s->items;
    k.count = s->count;
    k.first_row = s->first_row;
    k.rows = s->rows;
    k.block_offset = job->block_offset;
    k.type = l->type;
    k.kv_heads = l->kv_heads;
    k.key_dim = l->key_dim;
    k.value_dim = l->shared ? 0 : l->value_dim;
    k.key_groups = (k.key_dim + PST_KV_GROUP - 1) / PST_KV_GROUP;
    k.value_groups = (k.value_dim + PST_KV_GROUP - 1) / PST_KV_GROUP;
    k.key_bytes = kv_row_bytes(l->type, k.key_dim);
    k.value_bytes = kv_row_bytes(l->type, k.value_dim);
    const uint32_t tasks = k.kv_heads * (k.key_groups + k.value_groups), most = 65535;
    uint64_t rows = s->max_rows < s->rows ? s->max_rows : s->rows;
    /* Beside one long segment many short ones would be blocks without work: a long one's blocks take several rows. */
    const uint64_t enough = (4 * (uint64_t)s->rows + s->count - 1) / s->count;
    rows = rows < enough ? rows : enough;
    if (tasks == 0)
        return 0;
    const dim3 grid((tasks + KV_WARPS - 1) / KV_WARPS, (uint32_t)(rows < most ? rows : most),
                    (uint32_t)(s->count < most ? s->count : most));
    return pst_cuda_check(device, "kv_store",
                          PST_LAUNCH(kv_store_rows, grid, dim3(KV_WARPS * 32), 0, device->stream, k));
}
