/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernels of one set. A set_*.c includes a vec_*.h, defines PST_CPU_DOT (1: the bf16 dot instruction is there)
 * and includes this file, which gives it everything as static functions and PST_CPU_TABLE, the initializer of its
 * table.
 */
#ifndef PST_CPU_TEMPLATE_KERNELS_H
#define PST_CPU_TEMPLATE_KERNELS_H

#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "cpu/group_scale.h"
#include "cpu/sets.h"

#define ALWAYS_INLINE inline __attribute__((always_inline))

#include "cpu/template/functions.h"
#include "cpu/template/rows.h"

#include "cpu/template/dequant.h"
#include "cpu/template/quantize.h"

#include "cpu/template/matmul.h"

#include "cpu/template/stored.h"
#include "cpu/template/transposed.h"

#include "cpu/template/kv.h"

#include "cpu/template/attention.h"

#define PST_CPU_TABLE(set)                                                                                             \
    {                                                                                                                  \
        .name = set, .convert = kernel_convert, .rms_norm = kernel_rms_norm, .layer_norm = kernel_layer_norm,          \
        .activate = kernel_activate, .matmul = kernel_matmul, .rope = kernel_rope, .kv_store = kernel_kv_store,        \
        .attention = kernel_attention, .gated = kernel_gated, .log_sum_exp = kernel_log_sum_exp,                       \
        .dequantize = kernel_dequantize, .dequantize_blocks = kernel_dequantize_blocks, .quantize = kernel_quantize,   \
        .matmul_transposed = kernel_matmul_transposed,                                                                 \
    }

#endif
