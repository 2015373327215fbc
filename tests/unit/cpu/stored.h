/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Matrices in every layout of cpu/weight.h, with random codes and scales, and what each of their numbers is: read from the
 * bytes by that header's words, one at a time, in float64.
 */
#ifndef PST_TESTS_UNIT_CPU_STORED_H
#define PST_TESTS_UNIT_CPU_STORED_H

#include "cpu/weight.h"
#include "unit/cpu/reference.h"

typedef struct stored {
    pst_weight_format format;
    size_t outputs, inputs;
    size_t rows, row_bytes; /* of the tensor */
    ref_array data;         /* bytes */
    ref_array scales, zeros, index;
    char text[120];
} stored;

/* A tensor of random codes and scales of this format at random byte addresses. */
stored stored_random(pst_weight_format format, size_t outputs, size_t inputs);
void stored_free(stored *s);

/* w[output][input]. */
double stored_get(const stored *s, size_t output, size_t input);
/* Column `column` of a GROUPED row of so many columns. */
double stored_grouped(const unsigned char *row, const pst_weight_format *format, size_t columns, size_t column);
/* The value of an F8_E4M3 code; NaN for 0x7f and 0xff. */
double stored_f8(unsigned char code);

/* Number `index` of the formats under test, with random group or block sizes; false when there are no more. */
bool stored_format(size_t index, pst_weight_format *out);

#endif
