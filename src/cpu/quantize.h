/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rows of weights to the GROUPED layout of cpu/weight.h and back. The bytes are the same on every processor. Any thread; no
 * allocation.
 */
#ifndef PST_CPU_QUANTIZE_H
#define PST_CPU_QUANTIZE_H

#include "cpu/weight.h"

/* One row of `columns` weights of `type` (F32, F16 or BF16, at any address) to out, which has pst_weight_row_bytes(format,
 * columns) bytes. format: GROUPED, 4 or 8 bits, an even group, not transposed (the rows of a transposed tensor are
 * quantized like any others).
 *
 * Asymmetric: the minimum is the group's smallest weight rounded down to F16, the scale (largest - minimum) / (2^bits - 1)
 * rounded up to F16; symmetric: the scale is the larger of largest / (2^(bits-1) - 1) and -smallest / 2^(bits-1), rounded
 * up. Codes are the nearest ones by the rounded numbers, so that |w - what comes back| <= scale / 2, but for some 2^-14
 * of it. A group of zeros, or of one value that F16 has, comes back exactly.
 *
 * -EDOM: a weight is infinite or no number. -ERANGE: F16 cannot hold a minimum or scale. Then out is unspecified. */
int pst_cpu_quantize_row(const void *w, pst_dtype type, size_t columns, const pst_weight_format *format, void *out);

/* The numbers that products with the row use (before they are rounded to BF16, where the products take that). */
void pst_cpu_dequantize_row(const void *row, size_t columns, const pst_weight_format *format, float *out);

#endif
