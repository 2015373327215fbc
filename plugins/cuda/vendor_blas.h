/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The vendor's library of matrix products (NVIDIA's cuBLASLt) as blas.h wants one: y = x * w^T with bf16 operands and f32 sums,
 * nothing else of it. The only file with that library's names.
 *
 * It is found when the program runs, so the plugin is built without it and works without it: what is declared here are the
 * facts of its public C interface, by value (tests/device/test_blas_header.cpp holds them against <cublasLt.h> where that
 * is installed). They are those of versions 12 and 13; no other one is taken.
 *
 * The library's matrices lie by columns: w is its A (k x outputs, transposed), x its B (k x rows), y its D (outputs x rows).
 */
#ifndef PST_CUDA_VENDOR_BLAS_H
#define PST_CUDA_VENDOR_BLAS_H

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "vendor.h"

#define PST_VENDOR_BLAS_NAME "cuBLASLt"

/* ---- The library's interface ---- */

enum {
    PST_BLAS_SUCCESS = 0,      /* CUBLAS_STATUS_* */
    PST_BLAS_ALLOC_FAILED = 3, /* ... */
    PST_BLAS_COMPUTE_32F = 68, /* CUBLAS_COMPUTE_32F */
    PST_BLAS_R_32F = 0,        /* CUDA_R_* */
    PST_BLAS_R_16BF = 14,      /* ... */
    PST_BLAS_OP_T = 1,         /* CUBLAS_OP_T */
    PST_BLAS_DESC_TRANSA = 3,  /* CUBLASLT_MATMUL_DESC_* */
    PST_BLAS_LAYOUT_ROWS = 2,  /* CUBLASLT_MATRIX_LAYOUT_* */
    PST_BLAS_LAYOUT_COLS = 3,
    PST_BLAS_LAYOUT_LD = 4,
    PST_BLAS_PREF_WORKSPACE = 1, /* CUBLASLT_MATMUL_PREF_* */
    PST_BLAS_PREF_REDUCTION = 3,
    PST_BLAS_PREF_ALIGNMENT_A = 5,
    PST_BLAS_PREF_ALIGNMENT_B = 6,
    PST_BLAS_PREF_ALIGNMENT_C = 7,
    PST_BLAS_PREF_ALIGNMENT_D = 8,
    PST_BLAS_REDUCTION_NONE = 0, /* CUBLASLT_REDUCTION_SCHEME_NONE */
    PST_BLAS_ALGO_SPLITK = 2,    /* CUBLASLT_ALGO_CONFIG_* */
    PST_BLAS_ALGO_REDUCTION = 3
};

/* cublasLtMatmulAlgo_t: how a product is computed. */
struct pst_blas_algorithm {
    uint64_t data[8];
};

/* cublasLtMatmulHeuristicResult_t */
struct pst_blas_candidate {
    pst_blas_algorithm algorithm;
    size_t workspace_bytes;
    int status;
    float waves;
    int reserved[4];
};

/* F(result, function, parameters): handles, descriptors and layouts are pointers, enumerations ints. */
#define PST_BLAS_FUNCTIONS(F)                                                                                          \
    F(size_t, cublasLtGetVersion, (void))                                                                              \
    F(const char *, cublasLtGetStatusString, (int status))                                                             \
    F(int, cublasLtCreate, (void **handle))                                                                            \
    F(int, cublasLtDestroy, (void *handle))                                                                            \
    F(int, cublasLtMatmulDescCreate, (void **desc, int compute_type, int scale_type))                                  \
    F(int, cublasLtMatmulDescDestroy, (void *desc))                                                                    \
    F(int, cublasLtMatmulDescSetAttribute, (void *desc, int attribute, const void *from, size_t bytes))                \
    F(int, cublasLtMatrixLayoutCreate, (void **layout, int type, uint64_t rows, uint64_t columns, int64_t ld))         \
    F(int, cublasLtMatrixLayoutDestroy, (void *layout))                                                                \
    F(int, cublasLtMatrixLayoutSetAttribute, (void *layout, int attribute, const void *from, size_t bytes))            \
    F(int, cublasLtMatmulPreferenceCreate, (void **preference))                                                        \
    F(int, cublasLtMatmulPreferenceDestroy, (void *preference))                                                        \
    F(int, cublasLtMatmulPreferenceSetAttribute, (void *preference, int attribute, const void *from, size_t bytes))    \
    F(int, cublasLtMatmulAlgoGetHeuristic,                                                                             \
      (void *handle, void *desc, void *a, void *b, void *c, void *d, void *preference, int most,                       \
       pst_blas_candidate *candidates, int *count))                                                                    \
    F(int, cublasLtMatmulAlgoConfigGetAttribute,                                                                       \
      (const pst_blas_algorithm *algorithm, int attribute, void *to, size_t bytes, size_t *written))                   \
    F(int, cublasLtMatmulAlgoCheck,                                                                                    \
      (void *handle, void *desc, void *a, void *b, void *c, void *d, const pst_blas_algorithm *algorithm,              \
       pst_blas_candidate *result))                                                                                    \
    F(int, cublasLtMatmul,                                                                                             \
      (void *handle, void *desc, const void *alpha, const void *a, void *a_layout, const void *b, void *b_layout,      \
       const void *beta, const void *c, void *c_layout, void *d, void *d_layout, const pst_blas_algorithm *algorithm,  \
       void *workspace, size_t workspace_bytes, pst_vendor_stream stream))

#define PST_BLAS_POINTER(result, function, parameters) result(*function) parameters;
struct pst_blas_functions {
    PST_BLAS_FUNCTIONS(PST_BLAS_POINTER)
};
#undef PST_BLAS_POINTER

/* ---- What the plugin sees of it. Functions return 0 or the library's status. ---- */

/* Sizes and strides of a product, in elements: x rows x k, w outputs x k, y rows x outputs. */
struct pst_vendor_blas_shape {
    uint64_t rows, outputs, k, x_stride, w_stride, y_stride;
};

struct pst_vendor_blas {
    pst_blas_functions call;
    void *library, *handle, *operation, *x, *w, *y; /* the last three: layouts, whose sizes are set for every product */
    uint32_t version;                               /* 130100: 13.1.0; older ones 120805: 12.8.5 */
    char file[128];
};

/* Lets go of what pst_vendor_blas_make made and of the file; any of it may be absent. A library that has computed is never
 * unloaded: it has threads and functions for the end of the process. */
static inline void pst_vendor_blas_free(pst_vendor_blas *blas)
{
    if (blas->x != NULL)
        (void)blas->call.cublasLtMatrixLayoutDestroy(blas->x);
    if (blas->w != NULL)
        (void)blas->call.cublasLtMatrixLayoutDestroy(blas->w);
    if (blas->y != NULL)
        (void)blas->call.cublasLtMatrixLayoutDestroy(blas->y);
    if (blas->operation != NULL)
        (void)blas->call.cublasLtMatmulDescDestroy(blas->operation);
    if (blas->handle != NULL)
        (void)blas->call.cublasLtDestroy(blas->handle);
    else if (blas->library != NULL)
        (void)dlclose(blas->library);
    *blas = {};
}

/* True: the file is a library of a version that is known, all of whose functions are there. False: `why`, a line. */
static inline bool pst_vendor_blas_load(pst_vendor_blas *blas, const char *file, char *why, size_t why_bytes)
{
    *blas = {};
    blas->library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (blas->library == NULL) {
        snprintf(why, why_bytes, "%.100s cannot be loaded", file);
        return false;
    }
    const char *missing = NULL;
#define PST_BLAS_FIND(result, function, parameters)                                                                    \
    {                                                                                                                  \
        void *symbol = dlsym(blas->library, #function);                                                                \
        static_assert(sizeof symbol == sizeof blas->call.function, "a function's address is an address");              \
        memcpy(&blas->call.function, &symbol, sizeof symbol);                                                          \
        missing = symbol == NULL ? #function : missing;                                                                \
    }
    PST_BLAS_FUNCTIONS(PST_BLAS_FIND)
#undef PST_BLAS_FIND
    if (missing != NULL) {
        snprintf(why, why_bytes, "%.100s has no function %s", file, missing);
        pst_vendor_blas_free(blas);
        return false;
    }
    blas->version = (uint32_t)blas->call.cublasLtGetVersion();
    const uint32_t major = blas->version / 10000;
    if (major < 12 || major > 13) {
        snprintf(why, why_bytes, "%.100s is of version %u, which is not known", file, blas->version);
        pst_vendor_blas_free(blas);
        return false;
    }
    snprintf(blas->file, sizeof blas->file, "%.127s", file);
    return true;
}

/* Of a library that is loaded: what products are asked with, on the current device. */
static inline int pst_vendor_blas_make(pst_vendor_blas *blas)
{
    int status = blas->call.cublasLtCreate(&blas->handle);
    if (status != PST_BLAS_SUCCESS)
        blas->handle = NULL;
    if (status == PST_BLAS_SUCCESS)
        status = blas->call.cublasLtMatmulDescCreate(&blas->operation, PST_BLAS_COMPUTE_32F, PST_BLAS_R_32F);
    const int32_t transposed = PST_BLAS_OP_T;
    if (status == PST_BLAS_SUCCESS)
        status = blas->call.cublasLtMatmulDescSetAttribute(blas->operation, PST_BLAS_DESC_TRANSA, &transposed,
                                                           sizeof transposed);
    if (status == PST_BLAS_SUCCESS)
        status = blas->call.cublasLtMatrixLayoutCreate(&blas->x, PST_BLAS_R_16BF, 16, 16, 16);
    if (status == PST_BLAS_SUCCESS)
        status = blas->call.cublasLtMatrixLayoutCreate(&blas->w, PST_BLAS_R_16BF, 16, 16, 16);
    if (status == PST_BLAS_SUCCESS)
        status = blas->call.cublasLtMatrixLayoutCreate(&blas->y, PST_BLAS_R_32F, 16, 16, 16);
    return status;
}

static inline bool pst_vendor_blas_out_of_memory(int status)
{
    return status == PST_BLAS_ALLOC_FAILED;
}

static inline const char *pst_vendor_blas_status_text(const pst_vendor_blas *blas, int status)
{
    const char *text = blas->call.cublasLtGetStatusString(status);
    return text != NULL ? text : "a failure without a name";
}

static inline int pst_vendor_blas_set_layout(const pst_vendor_blas *blas, void *layout, uint64_t rows, uint64_t columns,
                                             uint64_t stride)
{
    const int64_t ld = (int64_t)stride;
    int status = blas->call.cublasLtMatrixLayoutSetAttribute(layout, PST_BLAS_LAYOUT_ROWS, &rows, sizeof rows);
    if (status == PST_BLAS_SUCCESS)
        status = blas->call.cublasLtMatrixLayoutSetAttribute(layout, PST_BLAS_LAYOUT_COLS, &columns, sizeof columns);
    if (status == PST_BLAS_SUCCESS)
        status = blas->call.cublasLtMatrixLayoutSetAttribute(layout, PST_BLAS_LAYOUT_LD, &ld, sizeof ld);
    return status;
}

static inline int pst_vendor_blas_set_shape(const pst_vendor_blas *blas, const pst_vendor_blas_shape *shape)
{
    int status = pst_vendor_blas_set_layout(blas, blas->w, shape->k, shape->outputs, shape->w_stride);
    if (status == PST_BLAS_SUCCESS)
        status = pst_vendor_blas_set_layout(blas, blas->x, shape->k, shape->rows, shape->x_stride);
    if (status == PST_BLAS_SUCCESS)
        status = pst_vendor_blas_set_layout(blas, blas->y, shape->outputs, shape->rows, shape->y_stride);
    return status;
}

/* Whether sums are whole in one place: neither k split nor memory for parts of sums. */
static inline bool pst_vendor_blas_is_whole(const pst_vendor_blas *blas, const pst_blas_candidate *candidate)
{
    int32_t splits = 0;
    uint32_t reduction = ~0u;
    size_t written = 0;
    if (candidate->status != PST_BLAS_SUCCESS || candidate->workspace_bytes != 0)
        return false;
    if (blas->call.cublasLtMatmulAlgoConfigGetAttribute(&candidate->algorithm, PST_BLAS_ALGO_SPLITK, &splits,
                                                        sizeof splits, &written) != PST_BLAS_SUCCESS ||
        blas->call.cublasLtMatmulAlgoConfigGetAttribute(&candidate->algorithm, PST_BLAS_ALGO_REDUCTION, &reduction,
                                                        sizeof reduction, &written) != PST_BLAS_SUCCESS)
        return false;
    return splits <= 1 && reduction == PST_BLAS_REDUCTION_NONE;
}

/* The library's algorithms for a shape, the fastest (as it thinks) first: those whose sums are whole in one place, with
 * operands at multiples of 16 bytes. `most`: at most 32. */
static inline int pst_vendor_blas_find(const pst_vendor_blas *blas, const pst_vendor_blas_shape *shape,
                                       pst_blas_algorithm *out, int most, int *out_count)
{
    static const int alignments[] = {PST_BLAS_PREF_ALIGNMENT_A, PST_BLAS_PREF_ALIGNMENT_B, PST_BLAS_PREF_ALIGNMENT_C,
                                     PST_BLAS_PREF_ALIGNMENT_D};
    const pst_blas_functions *call = &blas->call;
    const uint64_t workspace_bytes = 0;
    const uint32_t reductions = PST_BLAS_REDUCTION_NONE, alignment = 16;
    pst_blas_candidate candidates[32] = {};
    int count = 0;
    void *wish = NULL;
    *out_count = 0;
    int status = pst_vendor_blas_set_shape(blas, shape);
    if (status == PST_BLAS_SUCCESS)
        status = call->cublasLtMatmulPreferenceCreate(&wish);
    if (status != PST_BLAS_SUCCESS)
        return status;
    status = call->cublasLtMatmulPreferenceSetAttribute(wish, PST_BLAS_PREF_WORKSPACE, &workspace_bytes,
                                                        sizeof workspace_bytes);
    if (status == PST_BLAS_SUCCESS)
        status =
            call->cublasLtMatmulPreferenceSetAttribute(wish, PST_BLAS_PREF_REDUCTION, &reductions, sizeof reductions);
    for (int i = 0; i < 4 && status == PST_BLAS_SUCCESS; i++)
        status = call->cublasLtMatmulPreferenceSetAttribute(wish, alignments[i], &alignment, sizeof alignment);
    if (status == PST_BLAS_SUCCESS)
        status = call->cublasLtMatmulAlgoGetHeuristic(blas->handle, blas->operation, blas->w, blas->x, blas->y, blas->y,
                                                      wish, 32, candidates, &count);
    (void)call->cublasLtMatmulPreferenceDestroy(wish);
    for (int i = 0; i < count && i < 32 && status == PST_BLAS_SUCCESS && *out_count < most; i++)
        if (pst_vendor_blas_is_whole(blas, &candidates[i]))
            out[(*out_count)++] = candidates[i].algorithm;
    return status;
}

/* Whether the algorithm takes a product of this shape, as it is. */
static inline bool pst_vendor_blas_fits(const pst_vendor_blas *blas, const pst_vendor_blas_shape *shape,
                                        const pst_blas_algorithm *algorithm)
{
    pst_blas_candidate result = {};
    return pst_vendor_blas_set_shape(blas, shape) == PST_BLAS_SUCCESS &&
           blas->call.cublasLtMatmulAlgoCheck(blas->handle, blas->operation, blas->w, blas->x, blas->y, blas->y,
                                              algorithm, &result) == PST_BLAS_SUCCESS &&
           result.workspace_bytes == 0;
}

/* y = x * w^T; what was in y does not count. */
static inline int pst_vendor_blas_multiply(const pst_vendor_blas *blas, const pst_vendor_blas_shape *shape,
                                           const pst_blas_algorithm *algorithm, const void *x, const void *w, void *y,
                                           pst_vendor_stream stream)
{
    const float one = 1, zero = 0;
    const int status = pst_vendor_blas_set_shape(blas, shape);
    if (status != PST_BLAS_SUCCESS)
        return status;
    return blas->call.cublasLtMatmul(blas->handle, blas->operation, &one, w, blas->w, x, blas->x, &zero, y, blas->y, y,
                                     blas->y, algorithm, NULL, 0, stream);
}

#endif
