/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Choosing experts and sorting rows by expert. A warp has a row: scores and values to choose by lie in shared memory
 * (in device memory for thousands of experts). Sums go through the experts in order, as the host's do. Then a block has
 * an expert: it counts the picks of lower experts, and gives its own rows their places in order; nothing depends on
 * which thread comes first.
 */
#include <float.h>

#include "rows.h"

enum { ROUTE_WARPS = 4, ROUTE_SHARED_BYTES = 48 << 10, ROUTE_SPREAD_BLOCKS = 256, ROUTE_GROUP_WARPS = 8 };

struct route_args {
    const float *logits, *correction;
    uint64_t stride, rows;
    uint32_t experts, per_row, groups, top_groups, group_scores;
    bool sigmoid, normalize;
    float epsilon, scale;
    uint32_t *chosen;
    float *weights;
    float *scratch;  /* NULL: shared memory */
    uint32_t floats; /* of a warp: scores, values, groups */
};

/* The softmax over all experts, or each logit's sigmoid. */
static __device__ __forceinline__ void route_score(const route_args &r, const float *logits, float *scores)
{
    const uint32_t lane = threadIdx.x % 32;
    if (r.sigmoid) {
        for (uint32_t e = lane; e < r.experts; e += 32)
            scores[e] = 1.0f / (1.0f + expf(-logits[e]));
        __syncwarp();
        return;
    }
    float most = -INFINITY, sum = 0.0f;
    for (uint32_t e = lane; e < r.experts; e += 32)
        most = logits[e] > most ? logits[e] : most;
    for (int step = 16; step > 0; step /= 2) {
        const float other = __shfl_xor_sync(ROWS_WARP, most, step);
        most = other > most ? other : most;
    }
    for (uint32_t e = lane; e < r.experts; e += 32)
        scores[e] = expf(logits[e] - most);
    __syncwarp();
    for (uint32_t e = 0; e < r.experts; e++)
        sum += scores[e];
    __syncwarp();
    for (uint32_t e = lane; e < r.experts; e += 32)
        scores[e] /= sum;
    __syncwarp();
}

/* The largest of values[0..count), the first of equals; -INFINITY and what is not a number do not count. `count`: none.
 */
static __device__ __forceinline__ uint32_t route_best(const float *values, uint32_t count)
{
    float best = -INFINITY;
    uint32_t place = count;
    for (uint32_t i = threadIdx.x % 32; i < count; i += 32) {
        if (values[i] > best) {
            best = values[i];
            place = i;
        }
    }
    for (int step = 16; step > 0; step /= 2) {
        const float other = __shfl_xor_sync(ROWS_WARP, best, step);
        const uint32_t other_place = __shfl_xor_sync(ROWS_WARP, place, step);
        if (other > best || (other == best && other_place < place)) {
            best = other;
            place = other_place;
        }
    }
    return place;
}

/* Leaves the values of the best groups alone and makes all others -INFINITY. */
static __device__ __forceinline__ void route_keep_groups(const route_args &r, float *values, float *groups)
{
    const uint32_t lane = threadIdx.x % 32, size = r.experts / r.groups;
    for (uint32_t g = lane; g < r.groups; g += 32) {
        float first = -INFINITY, second = -INFINITY;
        for (uint32_t e = g * size; e < (g + 1) * size; e++) {
            const float value = values[e];
            second = value > first ? first : value > second ? value : second;
            first = value > first ? value : first;
        }
        const float score = r.group_scores == 2 && second != -INFINITY ? first + second : first;
        groups[g] = score >= -FLT_MAX ? score : -FLT_MAX;
    }
    __syncwarp();
    for (uint32_t kept = 0; kept < r.top_groups; kept++) {
        const uint32_t best = route_best(groups, r.groups);
        __syncwarp();
        if (lane == 0 && best < r.groups)
            groups[best] = -INFINITY;
        __syncwarp();
    }
    for (uint32_t e = lane; e < r.experts; e += 32)
        if (groups[e / size] != -INFINITY)
            values[e] = -INFINITY;
    __syncwarp();
}

/* The experts whose values are NaN are the chosen ones: their numbers, rising, and weights. */
static __device__ __forceinline__ void route_weigh(const route_args &r, const float *scores, const float *values,
                                                   uint32_t *chosen, float *weights)
{
    const uint32_t lane = threadIdx.x % 32;
    uint32_t before = 0;
    for (uint32_t first = 0; first < r.experts; first += 32) {
        const uint32_t e = first + lane;
        const bool is_chosen = e < r.experts && values[e] != values[e];
        const uint32_t all = __ballot_sync(ROWS_WARP, is_chosen);
        const uint32_t place = before + (uint32_t)__popc(all & ((1u << lane) - 1));
        if (is_chosen) {
            chosen[place] = e;
            weights[place] = scores[e];
        }
        before += (uint32_t)__popc(all);
    }
    __syncwarp();
    float sum = 0.0f;
    for (uint32_t i = 0; i < r.per_row; i++)
        sum += weights[i];
    const float divisor = r.normalize ? sum + r.epsilon : 1.0f;
    __syncwarp();
    for (uint32_t i = lane; i < r.per_row; i += 32)
        weights[i] = weights[i] / divisor * r.scale;
}

static __global__ __launch_bounds__(ROUTE_WARPS * 32) void route_choose(route_args r)
{
    PST_DYNAMIC_SHARED(float, shared);
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    float *scores =
        r.scratch != NULL ? r.scratch + ((uint64_t)blockIdx.x * warps + warp) * r.floats : shared + warp * r.floats;
    float *values = scores + r.experts, *groups = values + r.experts;
    for (uint64_t row = (uint64_t)blockIdx.x * warps + warp; row < r.rows; row += (uint64_t)gridDim.x * warps) {
        route_score(r, r.logits + row * r.stride, scores);
        for (uint32_t e = lane; e < r.experts; e += 32) {
            const float value = r.correction != NULL ? scores[e] + r.correction[e] : scores[e];
            values[e] = value >= -FLT_MAX ? value : -FLT_MAX; /* not a number, or what stands for taken */
        }
        __syncwarp();
        if (r.top_groups < r.groups)
            route_keep_groups(r, values, groups);
        for (uint32_t i = 0; i < r.per_row; i++) {
            const uint32_t best = route_best(values, r.experts);
            __syncwarp();
            if (lane == 0 && best < r.experts)
                values[best] = NAN;
            __syncwarp();
        }
        route_weigh(r, scores, values, r.chosen + row * r.per_row, r.weights + row * r.per_row);
        __syncwarp();
    }
}

struct route_group_args {
    const uint32_t *chosen;
    const float *weights;
    uint64_t picks;
    uint32_t per_row, experts;
    uint32_t *first, *order;
    float *order_weight;
};

static __device__ __forceinline__ uint32_t route_warp_count(uint32_t a)
{
    for (int step = 16; step > 0; step /= 2)
        a += __shfl_xor_sync(ROWS_WARP, a, step);
    return a;
}

/* A block has an expert, a warp a run of the picks. */
static __global__ __launch_bounds__(ROUTE_GROUP_WARPS * 32) void route_group(route_group_args r)
{
    __shared__ uint32_t lower[ROUTE_GROUP_WARPS], own[ROUTE_GROUP_WARPS];
    const uint32_t expert = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const uint64_t run = (r.picks + warps * 32 - 1) / (warps * 32) * 32, begin = warp * run;
    const uint64_t end = begin + run < r.picks ? begin + run : r.picks;
    uint32_t below = 0, same = 0;
#pragma unroll 4
    for (uint64_t i = begin + lane; i < end; i += 32) {
        const uint32_t e = r.chosen[i];
        below += e < expert;
        same += e == expert;
    }
    below = route_warp_count(below);
    same = route_warp_count(same);
    if (lane == 0) {
        lower[warp] = below;
        own[warp] = same;
    }
    __syncthreads();
    uint32_t first = 0, place = 0;
    for (uint32_t i = 0; i < warps; i++) {
        first += lower[i];
        place += i < warp ? own[i] : 0;
    }
    place += first;
    if (threadIdx.x == 0)
        r.first[expert] = first;
    if (threadIdx.x == 0 && expert == r.experts - 1)
        r.first[r.experts] = (uint32_t)r.picks;
    for (uint64_t i = begin; i < end; i += 32) {
        const bool is_own = i + lane < end && r.chosen[i + lane] == expert;
        const uint32_t all = __ballot_sync(ROWS_WARP, is_own);
        if (is_own) {
            const uint32_t to = place + (uint32_t)__popc(all & ((1u << lane) - 1));
            r.order[to] = (uint32_t)((i + lane) / r.per_row);
            r.order_weight[to] = r.weights[i + lane];
        }
        place += (uint32_t)__popc(all);
    }
}

static int route_rows(cuda_device *device, route_args *r)
{
    if (r->rows == 0 || r->per_row == 0)
        return 0;
    r->floats = 2 * r->experts + r->groups;
    const uint64_t warp_bytes = r->floats * sizeof(float);
    uint32_t warps = ROUTE_WARPS;
    while (warps > 1 && warps * warp_bytes > ROUTE_SHARED_BYTES)
        warps /= 2;
    uint64_t blocks = (r->rows + warps - 1) / warps, shared_bytes = warps * warp_bytes;
    if (shared_bytes > ROUTE_SHARED_BYTES) {
        if (blocks > ROUTE_SPREAD_BLOCKS)
            blocks = ROUTE_SPREAD_BLOCKS;
        void *scratch = NULL;
        const int status = pst_cuda_scratch(device, blocks * warps * warp_bytes, &scratch);
        if (status < 0)
            return status;
        r->scratch = (float *)scratch;
        shared_bytes = 0;
    }
    return pst_cuda_check(
        device, "route",
        PST_LAUNCH(route_choose, dim3((uint32_t)blocks), dim3(warps * 32), shared_bytes, device->stream, *r));
}

int pst_cuda_route(cuda_device *device, const pst_route_job *job)
{
    const pst_routing *routing = &job->routing;
    const uint32_t experts = (uint32_t)job->logits.columns;
    if (experts == 0 || job->per_row > experts || routing->groups == 0 || experts % routing->groups != 0 ||
        (uint64_t)routing->top_groups * (experts / routing->groups) < job->per_row)
        return pst_cuda_fail(device, PST_E_USAGE, "no routing of %u experts in %u groups, %u of which give %u", experts,
                             routing->groups, routing->top_groups, job->per_row);
    route_args r = {};
    r.logits = (const float *)job->logits.data;
    r.correction = job->correction;
    r.stride = job->logits.stride;
    r.rows = job->logits.rows;
    r.experts = experts;
    r.per_row = job->per_row;
    r.groups = routing->groups;
    r.top_groups = routing->top_groups;
    r.group_scores = routing->group_scores;
    r.sigmoid = routing->sigmoid;
    r.normalize = routing->normalize;
    r.epsilon = (float)routing->normalize_epsilon;
    r.scale = (float)routing->scale;
    r.chosen = job->chosen;
    r.weights = job->weights;
    const int status = route_rows(device, &r);
    if (status < 0)
        return status;
    const route_group_args g = {job->chosen, job->weights,     (uint64_t)r.rows * r.per_row,
                                r.per_row,   experts,          job->first,
                                job->order,  job->order_weight};
    const uint64_t wanted = (g.picks + 255) / 256; /* warps that have enough to do */
    const uint32_t most = ROUTE_GROUP_WARPS, warps = wanted < 1 ? 1 : wanted < most ? (uint32_t)wanted : most;
    return pst_cuda_check(device, "route",
                          PST_LAUNCH(route_group, dim3(experts), dim3(warps * 32), 0, device->stream, g));
}
