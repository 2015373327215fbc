/* SPDX-License-Identifier: Apache-2.0 */
#include "cpu/weight.h"

uint64_t pst_weight_row_bytes(const pst_weight_format *format, uint64_t columns)
{
    if (format->layout == PST_WEIGHT_PLAIN)
        return columns * pst_dtype_bits(format->type) / 8;
    if (format->layout == PST_WEIGHT_FP8_BLOCKS)
        return columns;
    uint64_t codes = format->bits == 4 ? columns / 2 + columns % 2 : columns;
    uint64_t groups = (columns + format->group - 1) / format->group;
    return codes + groups * (format->symmetric ? 2 : 4);
}
