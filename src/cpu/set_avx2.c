/* SPDX-License-Identifier: Apache-2.0 */
/* The kernel set for AVX2 with FMA and F16C. Its compile flags are in CMakeLists.txt. */
#include "cpu/vec_avx2.h"

#define PST_CPU_DOT 0
#include "cpu/template/kernels.h"

const pst_cpu_kernels pst_cpu_kernels_avx2 = PST_CPU_TABLE("avx2");
