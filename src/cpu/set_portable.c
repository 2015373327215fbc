/* SPDX-License-Identifier: Apache-2.0 */
/* The kernel set for whatever the target has. Its compile flags are in CMakeLists.txt. */
#include "cpu/vec_portable.h"

#define PST_CPU_DOT 0
#include "cpu/template/kernels.h"

const pst_cpu_kernels pst_cpu_kernels_portable = PST_CPU_TABLE("portable");
