/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How the numbers of a matrix of weights are stored, and the sizes that follow from it. Kernels multiply with each of
 * these as it lies in the file.
 *
 * PLAIN      rows of elements of `type` (F32, F16, BF16).
 * GROUPED    what `convert` writes: a tensor of U8, a row per output. A row is its codes, then for each group of `group`
 *            columns (the last one may be shorter) an F16 scale and, unless symmetric, an F16 minimum. Codes of 8 bits are
 *            bytes; of 4 bits, column 2i is in the low half of byte i, column 2i + 1 in the high half. Asymmetric:
 *            w = code * scale + minimum. Symmetric: w = (code - 2^(bits-1)) * scale. Rows carry their own scales, so that
 *            a row is whole wherever a matrix is cut.
 * FP8_BLOCKS rows of F8_E4M3; w = element * scale of its block of block_rows x block_columns; the scales are a matrix of
 *            their own, F32 or BF16 ("weight_scale_inv" of DeepSeek-V3's checkpoints).
 * GPTQ       a tensor of I32, [inputs * bits / 32][outputs]: element (j, n) holds 32/bits codes of output n, inputs from
 *            j * 32/bits on, the first in the lowest bits. w = (code - zero - 1) * scale ("gptq"; "gptq_v2": code - zero).
 *            scales F16 or BF16 [groups][outputs]; zeros I32 [groups][outputs * bits / 32], packed along the outputs;
 *            index I32 [inputs]: each input's group (absent: input / group).
 * AWQ        a tensor of I32, [inputs][outputs / 8], 4 bits, in the order of outputs 0 2 4 6 1 3 5 7 from the lowest bits
 *            on; zeros likewise [groups][outputs / 8]; scales F16 [groups][outputs]; w = (code - zero) * scale.
 *
 * PLAIN and GROUPED may be transposed: then a row of the tensor is an input, its columns are the outputs (GPT-2). GPTQ and
 * AWQ always are.
 */
#ifndef PST_CPU_WEIGHT_H
#define PST_CPU_WEIGHT_H

#include <stdbool.h>

#include "penstock/types.h"

typedef enum pst_weight_layout {
    PST_WEIGHT_PLAIN,
    PST_WEIGHT_GROUPED,
    PST_WEIGHT_FP8_BLOCKS,
    PST_WEIGHT_GPTQ,
    PST_WEIGHT_AWQ
} pst_weight_layout;

typedef struct pst_weight_format {
    pst_weight_layout layout;
    pst_dtype type;  /* PLAIN: of the elements */
    bool transposed; /* a row of the tensor is an input */
    uint32_t bits;   /* GROUPED, GPTQ, AWQ: 4 or 8 */
    uint32_t group;  /* GROUPED, GPTQ, AWQ: inputs (GROUPED: columns of the tensor) that share a scale; GROUPED: even */
    bool symmetric;  /* GROUPED: no minimum */
    bool zero_offset;                   /* GPTQ: stored zeros are one less than meant */
    uint32_t block_rows, block_columns; /* FP8_BLOCKS */
    pst_dtype scale_type;               /* FP8_BLOCKS: F32 or BF16; GPTQ, AWQ: F16 or BF16 */
} pst_weight_format;

/* Bytes of one row of the tensor that holds a matrix of `columns` columns (of the tensor, if transposed). PLAIN, GROUPED
 * and FP8_BLOCKS. Whole bytes always: 4-bit rows of an odd number of columns leave half a byte unused. */
uint64_t pst_weight_row_bytes(const pst_weight_format *format, uint64_t columns);

#endif
