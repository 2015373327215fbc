/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What vendor_blas.h declares of the vendor's library, held against the vendor's own header by the compiler, where that is
 * installed (CMakeLists.txt looks for it): values, sizes, places of fields, and every function's result and parameters.
 */
#include <stdio.h>

#if __has_include(<cublasLt.h>) && __has_include(<cuda_runtime_api.h>)

#include <cublasLt.h>
#include <stddef.h>
#include <type_traits>

typedef cudaStream_t pst_vendor_stream;
#define PST_CUDA_VENDOR_H /* of that one only the stream's type is wanted */
#include "vendor_blas.h"

/* The same to a caller: pointers; enumerations and integers of one size. */
template <class OURS, class THEIRS> constexpr bool is_alike()
{
    constexpr bool numbers = (std::is_integral<OURS>::value || std::is_enum<OURS>::value) &&
                             (std::is_integral<THEIRS>::value || std::is_enum<THEIRS>::value);
    return sizeof(OURS) == sizeof(THEIRS) && (std::is_same<OURS, THEIRS>::value || numbers ||
                                              (std::is_pointer<OURS>::value && std::is_pointer<THEIRS>::value));
}

template <class OURS, class THEIRS> struct call;
template <class A, class... AS, class B, class... BS> struct call<A (*)(AS...), B (*)(BS...)> {
    static constexpr bool is_same()
    {
        if constexpr (sizeof...(AS) != sizeof...(BS))
            return false;
        else
            return is_alike<A, B>() && (is_alike<AS, BS>() && ... && true);
    }
};

#define CHECK(result, function, parameters)                                                                            \
    static_assert(call<decltype(pst_blas_functions::function), decltype(&::function)>::is_same(), #function);
PST_BLAS_FUNCTIONS(CHECK)

#define VALUE(ours, theirs) static_assert((int)(ours) == (int)(theirs), #theirs)
VALUE(PST_BLAS_SUCCESS, CUBLAS_STATUS_SUCCESS);
VALUE(PST_BLAS_ALLOC_FAILED, CUBLAS_STATUS_ALLOC_FAILED);
VALUE(PST_BLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F);
VALUE(PST_BLAS_R_32F, CUDA_R_32F);
VALUE(PST_BLAS_R_16BF, CUDA_R_16BF);
VALUE(PST_BLAS_OP_T, CUBLAS_OP_T);
VALUE(PST_BLAS_DESC_TRANSA, CUBLASLT_MATMUL_DESC_TRANSA);
VALUE(PST_BLAS_LAYOUT_ROWS, CUBLASLT_MATRIX_LAYOUT_ROWS);
VALUE(PST_BLAS_LAYOUT_COLS, CUBLASLT_MATRIX_LAYOUT_COLS);
VALUE(PST_BLAS_LAYOUT_LD, CUBLASLT_MATRIX_LAYOUT_LD);
VALUE(PST_BLAS_PREF_WORKSPACE, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES);
VALUE(PST_BLAS_PREF_REDUCTION, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK);
VALUE(PST_BLAS_PREF_ALIGNMENT_A, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES);
VALUE(PST_BLAS_PREF_ALIGNMENT_B, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES);
VALUE(PST_BLAS_PREF_ALIGNMENT_C, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES);
VALUE(PST_BLAS_PREF_ALIGNMENT_D, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES);
VALUE(PST_BLAS_REDUCTION_NONE, CUBLASLT_REDUCTION_SCHEME_NONE);
VALUE(PST_BLAS_ALGO_SPLITK, CUBLASLT_ALGO_CONFIG_SPLITK_NUM);
VALUE(PST_BLAS_ALGO_REDUCTION, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME);

static_assert(sizeof(pst_blas_algorithm) == sizeof(cublasLtMatmulAlgo_t) &&
                  alignof(pst_blas_algorithm) == alignof(cublasLtMatmulAlgo_t),
              "an algorithm");
static_assert(sizeof(pst_blas_candidate) == sizeof(cublasLtMatmulHeuristicResult_t), "a candidate");
static_assert(offsetof(pst_blas_candidate, algorithm) == offsetof(cublasLtMatmulHeuristicResult_t, algo) &&
                  offsetof(pst_blas_candidate, workspace_bytes) ==
                      offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize) &&
                  offsetof(pst_blas_candidate, status) == offsetof(cublasLtMatmulHeuristicResult_t, state) &&
                  offsetof(pst_blas_candidate, waves) == offsetof(cublasLtMatmulHeuristicResult_t, wavesCount),
              "a candidate's fields");
static_assert(CUBLAS_VER_MAJOR == 12 || CUBLAS_VER_MAJOR == 13, "the versions that the plugin takes");

int main(void)
{
    printf("as cublasLt.h %d.%d.%d has it\n", CUBLAS_VER_MAJOR, CUBLAS_VER_MINOR, CUBLAS_VER_PATCH);
    return 0;
}

#else

int main(void)
{
    printf("SKIP: no cublasLt.h is installed\n");
    return 0;
}

#endif
