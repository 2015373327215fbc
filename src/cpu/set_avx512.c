/* SPDX-License-Identifier: Apache-2.0 */
/* The kernel set for AVX-512 (F, BW, DQ, VL). Its compile flags are in CMakeLists.txt. */
#include "cpu/vec_avx512.h"

#define PST_CPU_DOT 0
#include "cpu/template/kernels.h"

const pst_cpu_kernels pst_cpu_kernels_avx512 = PST_CPU_TABLE("avx512");
