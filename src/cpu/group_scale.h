/* SPDX-License-Identifier: Apache-2.0 */
/* The scale and minimum of a group of weights, rounded to F16 so that the group's range is covered. Private to cpu/. */
#ifndef PST_CPU_GROUP_SCALE_H
#define PST_CPU_GROUP_SCALE_H

#include <stdint.h>

/* w = code * scale + minimum; the values are those of the bits. */
typedef struct pst_group_scale {
    float scale, minimum;
    uint16_t scale_bits, minimum_bits;
} pst_group_scale;

/* For codes 0..most of weights least..largest. -ERANGE: F16 cannot hold it. */
int pst_group_scale_range(float least, float largest, float most, pst_group_scale *out);
/* For codes - half, from -half to half - 1; minimum 0. */
int pst_group_scale_symmetric(float least, float largest, float half, pst_group_scale *out);

#endif
