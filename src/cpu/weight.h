/* SPDX-License-Identifier: Apache-2.0 */
/* Sizes that follow from how weights are stored (penstock/device_plugin.h says how). */
#ifndef PST_CPU_WEIGHT_H
#define PST_CPU_WEIGHT_H

#include "penstock/device_plugin.h"

/* Bytes of one row of the tensor that holds a matrix of `columns` columns (of the tensor, if transposed). PLAIN, GROUPED
 * and FP8_BLOCKS. Whole bytes always: 4-bit rows of an odd number of columns leave half a byte unused. */
uint64_t pst_weight_row_bytes(const pst_weight_format *format, uint64_t columns);

#endif
