/* SPDX-License-Identifier: Apache-2.0 */
/* The kernel set for AVX-512 with the bf16 dot product instruction. Its compile flags are in CMakeLists.txt. */
#include "cpu/vec_avx512.h"

#define PST_CPU_DOT 1
#include "cpu/template/kernels.h"

const pst_cpu_kernels pst_cpu_kernels_avx512bf16 = PST_CPU_TABLE("avx512bf16");
