/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The emulator as vendor.h wants a vendor: the kernels' language for an ordinary C++ compiler, and a runtime whose devices
 * are memory of this process. block.cpp carries out kernels, warp.cpp what a warp does together, runtime.cpp the runtime.
 * What is not the vendor's list in vendor.h begins with pst_emulated_.
 *
 * Not modelled: speed, caches, how tensor cores round (here a product's sum is rounded once).
 */
#ifndef PST_EMULATED_VENDOR_EMULATED_H
#define PST_EMULATED_VENDOR_EMULATED_H

#include <functional>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <tuple>

#define PST_VENDOR_NAME            "emulated"
#define PST_VENDOR_MAKER           "emulated"
#define PST_VENDOR_DRIVER          "the order for one"
#define PST_VENDOR_STORAGE_LIBRARY ((const char *)NULL)
#define PST_VENDOR_STORAGE_DRIVER  ""

typedef struct pst_emulated_stream *pst_vendor_stream;
typedef struct pst_emulated_event *pst_vendor_event;
typedef struct pst_emulated_graph *pst_vendor_graph;
typedef int pst_vendor_error; /* 0 or one of emulated_error */

/* ---- The language ---- */

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n)    __attribute__((aligned(n)))
#define __launch_bounds__(...)
/* Of a thread of the process, since that has found where they begin and end: the emulator fills them with what is not a
 * number before a block starts. */
#define __shared__ static thread_local

struct alignas(8) int2 {
    int x, y;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct uint3 {
    unsigned x, y, z;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_)
    {
    }
};

static inline int2 make_int2(int x, int y)
{
    return {x, y};
}

static inline int4 make_int4(int x, int y, int z, int w)
{
    return {x, y, z, w};
}

static inline uint2 make_uint2(unsigned x, unsigned y)
{
    return {x, y};
}

static inline uint3 make_uint3(unsigned x, unsigned y, unsigned z)
{
    return {x, y, z};
}

static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w)
{
    return {x, y, z, w};
}

static inline float2 make_float2(float x, float y)
{
    return {x, y};
}

static inline float4 make_float4(float x, float y, float z, float w)
{
    return {x, y, z, w};
}

/* Where the thread that runs now is. */
struct pst_emulated_place {
    uint3 thread, block;
    dim3 block_size, grid_size;
};
extern pst_emulated_place pst_emulated_here;
#define threadIdx (pst_emulated_here.thread)
#define blockIdx  (pst_emulated_here.block)
#define blockDim  (pst_emulated_here.block_size)
#define gridDim   (pst_emulated_here.grid_size)

static inline uint32_t __float_as_uint(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float __uint_as_float(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline int __float_as_int(float x)
{
    return (int)__float_as_uint(x);
}

static inline float __int_as_float(int bits)
{
    return __uint_as_float((uint32_t)bits);
}

static inline float __fmul_rn(float a, float b)
{
    return a * b;
}

static inline float __fadd_rn(float a, float b)
{
    return a + b;
}

static inline float __fsub_rn(float a, float b)
{
    return a - b;
}

static inline float __fdiv_rn(float a, float b)
{
    return a / b;
}

static inline float __fmaf_rn(float a, float b, float c)
{
    return fmaf(a, b, c);
}

static inline float __fsqrt_rn(float x)
{
    return sqrtf(x);
}

static inline float rsqrtf(float x)
{
    return (float)(1 / sqrt((double)x));
}

static inline int __popc(unsigned x)
{
    return __builtin_popcount(x);
}

static inline int __ffs(int x)
{
    return __builtin_ffs(x);
}

static inline int __clz(int x)
{
    return x == 0 ? 32 : __builtin_clz((unsigned)x);
}

template <class T> static inline T __ldg(const T *p)
{
    return *p;
}

static inline int min(int a, int b)
{
    return a < b ? a : b;
}

static inline int max(int a, int b)
{
    return a > b ? a : b;
}

static inline unsigned min(unsigned a, unsigned b)
{
    return a < b ? a : b;
}

static inline unsigned max(unsigned a, unsigned b)
{
    return a > b ? a : b;
}

static inline long min(long a, long b)
{
    return a < b ? a : b;
}

static inline long max(long a, long b)
{
    return a > b ? a : b;
}

static inline unsigned long min(unsigned long a, unsigned long b)
{
    return a < b ? a : b;
}

static inline unsigned long max(unsigned long a, unsigned long b)
{
    return a > b ? a : b;
}

static inline float min(float a, float b)
{
    return fminf(a, b);
}

static inline float max(float a, float b)
{
    return fmaxf(a, b);
}

/* ---- Atomics: one thread of the emulator runs at a time ---- */

template <class T> static inline T pst_emulated_exchange(T *p, T value)
{
    const T old = *p;
    *p = value;
    return old;
}

static inline unsigned atomicAdd(unsigned *p, unsigned value)
{
    return pst_emulated_exchange(p, *p + value);
}

static inline int atomicAdd(int *p, int value)
{
    return pst_emulated_exchange(p, *p + value);
}

static inline float atomicAdd(float *p, float value)
{
    return pst_emulated_exchange(p, *p + value);
}

static inline unsigned atomicMax(unsigned *p, unsigned value)
{
    return pst_emulated_exchange(p, max(*p, value));
}

static inline unsigned atomicMin(unsigned *p, unsigned value)
{
    return pst_emulated_exchange(p, min(*p, value));
}

static inline unsigned atomicOr(unsigned *p, unsigned value)
{
    return pst_emulated_exchange(p, *p | value);
}

static inline unsigned atomicExch(unsigned *p, unsigned value)
{
    return pst_emulated_exchange(p, value);
}

static inline unsigned atomicCAS(unsigned *p, unsigned expected, unsigned value)
{
    return pst_emulated_exchange(p, *p == expected ? value : *p);
}

static inline void __threadfence()
{
}

/* ---- What threads do together; `line`: the place in the program, which must be the same for all ---- */

void pst_emulated_barrier(int line);

static inline void __syncthreads(int line = __builtin_LINE())
{
    pst_emulated_barrier(line);
}

enum pst_emulated_collective {
    PST_EMULATED_SYNC,
    PST_EMULATED_BALLOT,
    PST_EMULATED_SHUFFLE,
    PST_EMULATED_SHUFFLE_XOR,
    PST_EMULATED_SHUFFLE_UP,
    PST_EMULATED_SHUFFLE_DOWN,
    PST_EMULATED_MMA_BF16,
    PST_EMULATED_MMA_F16,
    PST_EMULATED_LDMATRIX,      /* value: matrices */
    PST_EMULATED_LDMATRIX_TRANS /* value: matrices */
};

/* What a lane brings. Returns the lane's result, of those that give a value. */
struct pst_emulated_offer {
    pst_emulated_collective what;
    int line;
    uint32_t mask;
    uint64_t value;
    int lane, width; /* of shuffles */
    const void *a, *b;
    void *out;
};
uint64_t pst_emulated_together(const pst_emulated_offer &offer);

template <class T>
static inline T pst_emulated_shuffle(pst_emulated_collective what, uint32_t mask, T value, int lane, int width,
                                     int line)
{
    static_assert(sizeof(T) <= sizeof(uint64_t), "a number");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = pst_emulated_together({what, line, mask, bits, lane, width, nullptr, nullptr, nullptr});
    memcpy(&value, &bits, sizeof value);
    return value;
}

template <class T>
static inline T __shfl_sync(uint32_t mask, T value, int lane, int width = 32, int line = __builtin_LINE())
{
    return pst_emulated_shuffle(PST_EMULATED_SHUFFLE, mask, value, lane, width, line);
}

template <class T>
static inline T __shfl_xor_sync(uint32_t mask, T value, int lane, int width = 32, int line = __builtin_LINE())
{
    return pst_emulated_shuffle(PST_EMULATED_SHUFFLE_XOR, mask, value, lane, width, line);
}

template <class T>
static inline T __shfl_up_sync(uint32_t mask, T value, unsigned delta, int width = 32, int line = __builtin_LINE())
{
    return pst_emulated_shuffle(PST_EMULATED_SHUFFLE_UP, mask, value, (int)delta, width, line);
}

template <class T>
static inline T __shfl_down_sync(uint32_t mask, T value, unsigned delta, int width = 32, int line = __builtin_LINE())
{
    return pst_emulated_shuffle(PST_EMULATED_SHUFFLE_DOWN, mask, value, (int)delta, width, line);
}

static inline unsigned __ballot_sync(uint32_t mask, int predicate, int line = __builtin_LINE())
{
    return (unsigned)pst_emulated_together(
        {PST_EMULATED_BALLOT, line, mask, predicate != 0, 0, 32, nullptr, nullptr, nullptr});
}

static inline int __any_sync(uint32_t mask, int predicate, int line = __builtin_LINE())
{
    return __ballot_sync(mask, predicate, line) != 0;
}

static inline int __all_sync(uint32_t mask, int predicate, int line = __builtin_LINE())
{
    return __ballot_sync(mask, predicate, line) == 0xffffffffu;
}

static inline void __syncwarp(uint32_t mask = 0xffffffffu, int line = __builtin_LINE())
{
    pst_emulated_together({PST_EMULATED_SYNC, line, mask, 0, 0, 32, nullptr, nullptr, nullptr});
}

static inline void pst_mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2], int line = __builtin_LINE())
{
    pst_emulated_together({PST_EMULATED_MMA_BF16, line, 0xffffffffu, 0, 0, 32, a, b, d});
}

static inline void pst_mma_f16(float d[4], const uint32_t a[4], const uint32_t b[2], int line = __builtin_LINE())
{
    pst_emulated_together({PST_EMULATED_MMA_F16, line, 0xffffffffu, 0, 0, 32, a, b, d});
}

static inline void pst_ldmatrix_x4(uint32_t r[4], const void *shared_row, int line = __builtin_LINE())
{
    pst_emulated_together({PST_EMULATED_LDMATRIX, line, 0xffffffffu, 4, 0, 32, shared_row, nullptr, r});
}

static inline void pst_ldmatrix_x2(uint32_t r[2], const void *shared_row, int line = __builtin_LINE())
{
    pst_emulated_together({PST_EMULATED_LDMATRIX, line, 0xffffffffu, 2, 0, 32, shared_row, nullptr, r});
}

static inline void pst_ldmatrix_x4_trans(uint32_t r[4], const void *shared_row, int line = __builtin_LINE())
{
    pst_emulated_together({PST_EMULATED_LDMATRIX_TRANS, line, 0xffffffffu, 4, 0, 32, shared_row, nullptr, r});
}

static inline void pst_ldmatrix_x2_trans(uint32_t r[2], const void *shared_row, int line = __builtin_LINE())
{
    pst_emulated_together({PST_EMULATED_LDMATRIX_TRANS, line, 0xffffffffu, 2, 0, 32, shared_row, nullptr, r});
}

/* ---- Memory of a block ---- */

void *pst_emulated_dynamic_shared();
#define PST_DYNAMIC_SHARED(type, name) type *name = static_cast<type *>(pst_emulated_dynamic_shared())

/* Carried out at once or by the wait that demands it, by chance: in either order of things a kernel has to be right. */
void pst_copy_async_16(void *shared, const void *global, bool there);
void pst_copy_async_commit();
void pst_emulated_copy_wait(int pending);

template <int N> static inline void pst_copy_async_wait()
{
    pst_emulated_copy_wait(N);
}

/* ---- Number formats ---- */

float pst_f16_to_f32(uint16_t x);
uint16_t pst_f32_to_f16(float x);

static inline float pst_bf16_to_f32(uint16_t x)
{
    return __uint_as_float((uint32_t)x << 16);
}

static inline uint16_t pst_f32_to_bf16(float x)
{
    const uint32_t bits = __float_as_uint(x);
    return (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fff : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline uint32_t pst_f32_to_bf16_pair(float low, float high)
{
    return (uint32_t)pst_f32_to_bf16(low) | (uint32_t)pst_f32_to_bf16(high) << 16;
}

/* ---- The runtime (runtime.cpp) ---- */

/* Takes up a kernel with its arguments, to be carried out in its stream's order. */
pst_vendor_error pst_emulated_launch(const char *name, const void *kernel, dim3 grid, dim3 block, size_t shared_bytes,
                                     pst_vendor_stream stream, std::function<void()> thread);

template <class T> struct pst_emulated_same {
    typedef T type;
};

template <class... Parameters>
static inline pst_vendor_error pst_emulated_bind(const char *name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                                                 size_t shared_bytes, pst_vendor_stream stream,
                                                 typename pst_emulated_same<Parameters>::type... arguments)
{
    static_assert((sizeof(Parameters) + ... + 0) <= 4096, "a kernel's arguments");
    std::tuple<Parameters...> all(arguments...);
    return pst_emulated_launch(name, (const void *)kernel, grid, block, shared_bytes, stream,
                               [kernel, all] { std::apply(kernel, all); });
}

#define PST_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                                     \
    pst_emulated_bind(#kernel, (kernel), dim3(grid), dim3(block), (size_t)(shared_bytes), (stream), __VA_ARGS__)

const char *pst_vendor_blas_file(unsigned number);
bool pst_vendor_failed(pst_vendor_error error);
bool pst_vendor_out_of_memory(pst_vendor_error error);
bool pst_vendor_absent(pst_vendor_error error);
bool pst_vendor_no_driver(pst_vendor_error error);
void pst_vendor_versions(int *driver, int *runtime);
const char *pst_vendor_error_text(pst_vendor_error error);
pst_vendor_error pst_vendor_last_error(void);
pst_vendor_error pst_vendor_device_count(int *count);
pst_vendor_error pst_vendor_get_device(int *number);
pst_vendor_error pst_vendor_set_device(int number);
pst_vendor_error pst_vendor_get_properties(pst_vendor_properties *out, int number);
pst_vendor_error pst_vendor_memory_info(size_t *free_bytes, size_t *total_bytes);
pst_vendor_error pst_vendor_allocate(void **out, size_t bytes);
pst_vendor_error pst_vendor_free(void *memory);
pst_vendor_error pst_vendor_allocate_host(void **out, size_t bytes);
pst_vendor_error pst_vendor_free_host(void *memory);
pst_vendor_error pst_vendor_register_host(void *memory, size_t bytes);
pst_vendor_error pst_vendor_unregister_host(void *memory);
pst_vendor_error pst_vendor_stream_create(pst_vendor_stream *out);
pst_vendor_error pst_vendor_stream_destroy(pst_vendor_stream stream);
pst_vendor_error pst_vendor_stream_synchronize(pst_vendor_stream stream);
pst_vendor_error pst_vendor_stream_wait(pst_vendor_stream stream, pst_vendor_event event);
pst_vendor_error pst_vendor_event_create(pst_vendor_event *out);
pst_vendor_error pst_vendor_event_destroy(pst_vendor_event event);
pst_vendor_error pst_vendor_event_record(pst_vendor_event event, pst_vendor_stream stream);
pst_vendor_error pst_vendor_event_synchronize(pst_vendor_event event);
pst_vendor_error pst_vendor_event_query(pst_vendor_event event, bool *done);
pst_vendor_error pst_vendor_copy(void *to, const void *from, size_t bytes, pst_vendor_stream stream);
bool pst_vendor_knows(const void *memory);
pst_vendor_error pst_vendor_fill(void *to, int byte, size_t bytes, pst_vendor_stream stream);
pst_vendor_error pst_vendor_capture_begin(pst_vendor_stream stream);
pst_vendor_error pst_vendor_capture_end(pst_vendor_stream stream, pst_vendor_graph *out);
pst_vendor_error pst_vendor_graph_launch(pst_vendor_graph graph, pst_vendor_stream stream);
pst_vendor_error pst_vendor_graph_destroy(pst_vendor_graph graph);

#endif
