/* SPDX-License-Identifier: Apache-2.0 */
/* NVIDIA's CUDA as vendor.h wants it: number formats, tensor cores and asynchronous copies for kernels, the runtime for the
 * host side. The only file of the plugin that includes CUDA's headers or has inline PTX (of compute capability 8.0). */
#ifndef PST_CUDA_VENDOR_CUDA_H
#define PST_CUDA_VENDOR_CUDA_H

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <mutex>
#include <stdio.h>

#define PST_VENDOR_NAME            "cuda"
#define PST_VENDOR_MAKER           "NVIDIA"
#define PST_VENDOR_DRIVER          "libcuda.so.1"
#define PST_VENDOR_STORAGE_LIBRARY "libcufile.so.0"         /* GPUDirect Storage */
#define PST_VENDOR_STORAGE_DRIVER  "/proc/driver/nvidia-fs" /* what it needs of the kernel, or else p2pmem */

/* Files of the library of matrix products (vendor_blas.h), in the order in which they are looked for; NULL: no more. First that of the
 * toolkit that built the plugin, which the driver is good for. */
static inline const char *pst_vendor_blas_file(unsigned number)
{
    static const char *const newer[] = {"libcublasLt.so.13", "/usr/local/cuda/lib64/libcublasLt.so.13",
                                        "libcublasLt.so.12", "/usr/local/cuda/lib64/libcublasLt.so.12"};
    if (number >= 4)
        return NULL;
    return newer[CUDART_VERSION >= 13000 ? number : (number + 2) % 4];
}

typedef cudaStream_t pst_vendor_stream;
typedef cudaEvent_t pst_vendor_event;
typedef cudaGraphExec_t pst_vendor_graph; /* ready to be launched */
typedef cudaError_t pst_vendor_error;

/* ---- Kernels ---- */

#define PST_DYNAMIC_SHARED(type, name)                                                                                 \
    extern __shared__ __align__(16) unsigned char pst_dynamic_shared[];                                                \
    type *name = reinterpret_cast<type *>(pst_dynamic_shared)

#define PST_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                                     \
    pst_vendor_launch((kernel), dim3(grid), dim3(block), (size_t)(shared_bytes), (stream), __VA_ARGS__)

template <class T> struct pst_vendor_same {
    typedef T type;
};

/* The driver wants to be asked for more than 48 KiB of shared memory of a block, of each kernel and device: asked once, and never for
 * less than before, since launches that a graph has may need that. Tables are by file, as kernels are (all are static). */
static inline pst_vendor_error pst_vendor_allow_shared(const void *kernel, size_t bytes)
{
    static struct {
        const void *kernel;
        int device;
        size_t bytes;
    } allowed[64];
    static std::mutex lock;
    int device = 0, at = 0;
    if (bytes <= 48 * 1024)
        return cudaSuccess;
    pst_vendor_error error = cudaGetDevice(&device);
    if (error != cudaSuccess)
        return error;
    const std::lock_guard<std::mutex> held(lock);
    while (at < 63 && allowed[at].kernel != NULL && (allowed[at].kernel != kernel || allowed[at].device != device))
        at++; /* the last one serves all for which there is no room: they ask every time */
    const bool is_known = allowed[at].kernel == kernel && allowed[at].device == device;
    if (is_known && allowed[at].bytes >= bytes)
        return cudaSuccess;
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (error == cudaSuccess && at < 63) {
        allowed[at].kernel = kernel;
        allowed[at].device = device;
        allowed[at].bytes = bytes;
    }
    return error;
}

/* Arguments are converted to the kernel's parameters, as in a call. */
template <class... Parameters>
static inline pst_vendor_error pst_vendor_launch(void (*kernel)(Parameters...), dim3 grid, dim3 block,
                                                 size_t shared_bytes, pst_vendor_stream stream,
                                                 typename pst_vendor_same<Parameters>::type... arguments)
{
    const pst_vendor_error error = pst_vendor_allow_shared((const void *)kernel, shared_bytes);
    if (error != cudaSuccess)
        return error;
    kernel<<<grid, block, shared_bytes, stream>>>(arguments...);
    return cudaPeekAtLastError();
}

static __device__ __forceinline__ float pst_f16_to_f32(uint16_t x)
{
    return __half2float(__ushort_as_half(x));
}

static __device__ __forceinline__ uint16_t pst_f32_to_f16(float x)
{
    return __half_as_ushort(__float2half_rn(x));
}

static __device__ __forceinline__ float pst_bf16_to_f32(uint16_t x)
{
    return __uint_as_float((uint32_t)x << 16);
}

static __device__ __forceinline__ uint16_t pst_f32_to_bf16(float x)
{
    return __bfloat16_as_ushort(__float2bfloat16_rn(x));
}

static __device__ __forceinline__ uint32_t pst_f32_to_bf16_pair(float low, float high)
{
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return (uint32_t)__bfloat16_as_ushort(pair.x) | (uint32_t)__bfloat16_as_ushort(pair.y) << 16;
}

static __device__ __forceinline__ void pst_mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

static __device__ __forceinline__ void pst_mma_f16(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

static __device__ __forceinline__ uint32_t pst_vendor_shared_address(const void *shared)
{
    return (uint32_t)__cvta_generic_to_shared(shared);
}

static __device__ __forceinline__ void pst_ldmatrix_x4(uint32_t r[4], const void *shared_row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(pst_vendor_shared_address(shared_row))
                 : "memory");
}

static __device__ __forceinline__ void pst_ldmatrix_x2(uint32_t r[2], const void *shared_row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];\n"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(pst_vendor_shared_address(shared_row))
                 : "memory");
}

static __device__ __forceinline__ void pst_ldmatrix_x4_trans(uint32_t r[4], const void *shared_row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(pst_vendor_shared_address(shared_row))
                 : "memory");
}

static __device__ __forceinline__ void pst_ldmatrix_x2_trans(uint32_t r[2], const void *shared_row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];\n"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(pst_vendor_shared_address(shared_row))
                 : "memory");
}

/* 16 bytes, both sides aligned to 16; zeros if not `there` (then `global` is not read). */
static __device__ __forceinline__ void pst_copy_async_16(void *shared, const void *global, bool there)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(pst_vendor_shared_address(shared)),
                 "l"(__cvta_generic_to_global(global)), "r"(there ? 16 : 0)
                 : "memory");
}

static __device__ __forceinline__ void pst_copy_async_commit()
{
    asm volatile("cp.async.commit_group;\n" ::: "memory");
}

/* Until all but this thread's N newest groups are done. What other threads copied needs a barrier as well. */
template <int N> static __device__ __forceinline__ void pst_copy_async_wait()
{
    asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory");
}

/* ---- The runtime ---- */

static inline bool pst_vendor_failed(pst_vendor_error error)
{
    return error != cudaSuccess;
}

static inline bool pst_vendor_out_of_memory(pst_vendor_error error)
{
    return error == cudaErrorMemoryAllocation;
}

/* No driver, no device, or none that this plugin was built for. */
static inline bool pst_vendor_absent(pst_vendor_error error)
{
    return error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver ||
           error == cudaErrorInitializationError || error == cudaErrorStubLibrary ||
           error == cudaErrorSystemDriverMismatch || error == cudaErrorSystemNotReady ||
           error == cudaErrorNoKernelImageForDevice || error == cudaErrorCompatNotSupportedOnDevice ||
           error == cudaErrorDevicesUnavailable || error == cudaErrorUnsupportedPtxVersion ||
           error == cudaErrorJitCompilerNotFound;
}

/* No driver at all: not even a device could be looked for. */
static inline bool pst_vendor_no_driver(pst_vendor_error error)
{
    return error == cudaErrorInsufficientDriver || error == cudaErrorStubLibrary ||
           error == cudaErrorSystemDriverMismatch;
}

/* What the driver is made for and what the plugin was built with: 12080 is 12.8. 0: no driver. */
static inline void pst_vendor_versions(int *driver, int *runtime)
{
    if (cudaDriverGetVersion(driver) != cudaSuccess)
        *driver = 0;
    if (cudaRuntimeGetVersion(runtime) != cudaSuccess)
        *runtime = CUDART_VERSION;
}

static inline const char *pst_vendor_error_text(pst_vendor_error error)
{
    return cudaGetErrorString(error);
}

/* The last failure of a call of this thread, which is forgotten then. */
static inline pst_vendor_error pst_vendor_last_error(void)
{
    return cudaGetLastError();
}

static inline pst_vendor_error pst_vendor_device_count(int *count)
{
    return cudaGetDeviceCount(count);
}

static inline pst_vendor_error pst_vendor_get_device(int *number)
{
    return cudaGetDevice(number);
}

static inline pst_vendor_error pst_vendor_set_device(int number)
{
    return cudaSetDevice(number);
}

static inline pst_vendor_error pst_vendor_get_properties(pst_vendor_properties *out, int number)
{
    cudaDeviceProp properties;
    const pst_vendor_error error = cudaGetDeviceProperties(&properties, number);
    if (error != cudaSuccess)
        return error;
    int clock_khz = 0, bus_bits = 0;
    (void)cudaDeviceGetAttribute(&clock_khz, cudaDevAttrMemoryClockRate, number);
    (void)cudaDeviceGetAttribute(&bus_bits, cudaDevAttrGlobalMemoryBusWidth, number);
    *out = {};
    snprintf(out->model, sizeof out->model, "%.127s", properties.name);
    if (cudaDeviceGetPCIBusId(out->pci, (int)sizeof out->pci, number) != cudaSuccess)
        out->pci[0] = '\0';
    out->compute_major = properties.major;
    out->compute_minor = properties.minor;
    out->processors = properties.multiProcessorCount;
    out->shared_bytes = properties.sharedMemPerBlockOptin;
    out->cache_bytes = (size_t)properties.l2CacheSize;
    out->memory_bytes_per_second = 2.0 * 1e3 * clock_khz * bus_bits / 8; /* two transfers a clock */
    return cudaSuccess;
}

static inline pst_vendor_error pst_vendor_memory_info(size_t *free_bytes, size_t *total_bytes)
{
    return cudaMemGetInfo(free_bytes, total_bytes);
}

static inline pst_vendor_error pst_vendor_allocate(void **out, size_t bytes)
{
    return cudaMalloc(out, bytes);
}

/* Waits for the device. */
static inline pst_vendor_error pst_vendor_free(void *memory)
{
    return cudaFree(memory);
}

static inline pst_vendor_error pst_vendor_allocate_host(void **out, size_t bytes)
{
    return cudaHostAlloc(out, bytes, cudaHostAllocPortable | cudaHostAllocMapped);
}

static inline pst_vendor_error pst_vendor_free_host(void *memory)
{
    return cudaFreeHost(memory);
}

static inline pst_vendor_error pst_vendor_register_host(void *memory, size_t bytes)
{
    return cudaHostRegister(memory, bytes, cudaHostRegisterPortable | cudaHostRegisterMapped);
}

static inline pst_vendor_error pst_vendor_unregister_host(void *memory)
{
    return cudaHostUnregister(memory);
}

static inline pst_vendor_error pst_vendor_stream_create(pst_vendor_stream *out)
{
    return cudaStreamCreateWithFlags(out, cudaStreamNonBlocking);
}

static inline pst_vendor_error pst_vendor_stream_destroy(pst_vendor_stream stream)
{
    return cudaStreamDestroy(stream);
}

static inline pst_vendor_error pst_vendor_stream_synchronize(pst_vendor_stream stream)
{
    return cudaStreamSynchronize(stream);
}

static inline pst_vendor_error pst_vendor_stream_wait(pst_vendor_stream stream, pst_vendor_event event)
{
    return cudaStreamWaitEvent(stream, event, 0);
}

static inline pst_vendor_error pst_vendor_event_create(pst_vendor_event *out)
{
    return cudaEventCreateWithFlags(out, cudaEventDisableTiming);
}

static inline pst_vendor_error pst_vendor_event_destroy(pst_vendor_event event)
{
    return cudaEventDestroy(event);
}

static inline pst_vendor_error pst_vendor_event_record(pst_vendor_event event, pst_vendor_stream stream)
{
    return cudaEventRecord(event, stream);
}

static inline pst_vendor_error pst_vendor_event_synchronize(pst_vendor_event event)
{
    return cudaEventSynchronize(event);
}

static inline pst_vendor_error pst_vendor_event_query(pst_vendor_event event, bool *done)
{
    const pst_vendor_error error = cudaEventQuery(event);
    if (error != cudaSuccess && error != cudaErrorNotReady)
        return error;
    *done = error == cudaSuccess;
    if (!*done)
        (void)cudaGetLastError(); /* "not ready" is no failure; a later look must not find it */
    return cudaSuccess;
}

static inline pst_vendor_error pst_vendor_copy(void *to, const void *from, size_t bytes, pst_vendor_stream stream)
{
    return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream);
}

/* Whether the device can use the memory: its own, pinned or registered. */
static inline bool pst_vendor_knows(const void *memory)
{
    cudaPointerAttributes attributes;
    if (cudaPointerGetAttributes(&attributes, memory) != cudaSuccess) {
        (void)cudaGetLastError();
        return false;
    }
    return attributes.type != cudaMemoryTypeUnregistered;
}

static inline pst_vendor_error pst_vendor_fill(void *to, int byte, size_t bytes, pst_vendor_stream stream)
{
    return cudaMemsetAsync(to, byte, bytes, stream);
}

/* From here on what is asked of the stream is captured, not carried out. Until the end this thread makes no call that waits or
 * might (allocations among them): it would fail and spoil what is captured. Other threads do as they like. */
static inline pst_vendor_error pst_vendor_capture_begin(pst_vendor_stream stream)
{
    return cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
}

/* Ends it in any case; out NULL: drops what was captured. */
static inline pst_vendor_error pst_vendor_capture_end(pst_vendor_stream stream, pst_vendor_graph *out)
{
    cudaGraph_t graph = NULL;
    pst_vendor_error error = cudaStreamEndCapture(stream, &graph);
    if (error == cudaSuccess && out != NULL)
        error = cudaGraphInstantiateWithFlags(out, graph, 0);
    if (graph != NULL)
        (void)cudaGraphDestroy(graph); /* what is ready does not need it */
    return error;
}

static inline pst_vendor_error pst_vendor_graph_launch(pst_vendor_graph graph, pst_vendor_stream stream)
{
    return cudaGraphLaunch(graph, stream);
}

/* Of a graph that is not being carried out. */
static inline pst_vendor_error pst_vendor_graph_destroy(pst_vendor_graph graph)
{
    return cudaGraphExecDestroy(graph);
}

#endif
