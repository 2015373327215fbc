/* SPDX-License-Identifier: Apache-2.0 */
/* The kernel sets that are compiled in. */
#ifndef PST_CPU_SETS_H
#define PST_CPU_SETS_H

#include "cpu/cpu.h"

#if defined(__x86_64__)
#define PST_CPU_X86 1
extern const pst_cpu_kernels pst_cpu_kernels_avx512bf16;
extern const pst_cpu_kernels pst_cpu_kernels_avx512;
extern const pst_cpu_kernels pst_cpu_kernels_avx2;
#else
#define PST_CPU_X86 0
#endif
extern const pst_cpu_kernels pst_cpu_kernels_portable;

#endif
