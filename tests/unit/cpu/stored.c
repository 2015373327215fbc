/* SPDX-License-Identifier: Apache-2.0 */
/* See stored.h. Nothing here is shared with the code under test. */
#include "unit/cpu/stored.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static const char *const layout_names[] = {"plain", "grouped", "fp8", "gptq", "awq"};

static size_t groups_of(size_t count, size_t group)
{
    return (count + group - 1) / group;
}

static void random_bytes(ref_array *a)
{
    for (size_t i = 0; i < a->count * ref_bytes(a->type); i++)
        ((unsigned char *)a->data)[i] = (unsigned char)ref_random();
}

/* Positive, of very different sizes, and now and then the smallest number or zero. */
static uint16_t random_scale(void)
{
    size_t kind = ref_between(0, 19);
    return kind == 0 ? 0 : kind == 1 ? (uint16_t)ref_between(1, 40) : ref_to_f16_saturated(exp(ref_normal() - 3.0));
}

/* Codes and scales of rows of `columns`. */
static void fill_grouped(stored *s, size_t columns)
{
    const pst_weight_format *f = &s->format;
    const size_t code_bytes = f->bits == 4 ? (columns + 1) / 2 : columns;
    for (size_t r = 0; r < s->rows; r++) {
        unsigned char *p = (unsigned char *)s->data.data + r * s->row_bytes + code_bytes;
        for (size_t g = 0; g < groups_of(columns, f->group); g++) {
            uint16_t scale = random_scale(), minimum = ref_to_f16_saturated(ref_normal());
            memcpy(p, &scale, 2);
            p += 2;
            if (!f->symmetric) {
                memcpy(p, &minimum, 2);
                p += 2;
            }
        }
    }
}

static void fill_packed(stored *s)
{
    const pst_weight_format *f = &s->format;
    const size_t groups = groups_of(s->inputs, f->group);
    s->scales = ref_input(f->scale_type, groups * s->outputs, ref_between(0, 1));
    for (size_t i = 0; i < s->scales.count; i++)
        ref_set(&s->scales, i, exp(ref_normal() - 3.0));
    s->zeros = ref_input(PST_I32, groups * s->outputs * f->bits / 32, ref_between(0, 3));
    random_bytes(&s->zeros);
    if (f->layout == PST_WEIGHT_GPTQ && ref_between(0, 1)) {
        s->index = ref_input(PST_I32, s->inputs, ref_between(0, 3));
        for (size_t i = 0; i < s->inputs; i++) {
            int32_t group = (int32_t)ref_between(0, groups - 1);
            memcpy((char *)s->index.data + 4 * i, &group, 4);
        }
    }
}

stored stored_random(pst_weight_format format, size_t outputs, size_t inputs)
{
    stored s = {.format = format, .outputs = outputs, .inputs = inputs};
    const size_t columns = format.transposed ? outputs : inputs;
    const bool packed = format.layout == PST_WEIGHT_GPTQ || format.layout == PST_WEIGHT_AWQ;
    s.rows = format.layout == PST_WEIGHT_GPTQ ? inputs * format.bits / 32 : format.transposed ? inputs : outputs;
    s.row_bytes = format.layout == PST_WEIGHT_GPTQ  ? outputs * 4
                  : format.layout == PST_WEIGHT_AWQ ? outputs / 2
                                                    : pst_weight_row_bytes(&format, columns);
    snprintf(s.text, sizeof s.text, "%s%s type %s bits %u group %u%s%s blocks %u x %u scales %s",
             format.transposed ? "transposed " : "", layout_names[format.layout], pst_dtype_name(format.type),
             format.bits, format.group, format.symmetric ? " symmetric" : "", format.zero_offset ? " offset" : "",
             format.block_rows, format.block_columns, pst_dtype_name(format.scale_type));
    if (format.layout == PST_WEIGHT_PLAIN) {
        s.data = ref_randoms(format.type, outputs * inputs, ref_between(0, 3), 0.5);
        return s;
    }
    s.data = ref_input(PST_U8, s.rows * s.row_bytes, ref_between(0, 70));
    random_bytes(&s.data);
    if (format.layout == PST_WEIGHT_GROUPED)
        fill_grouped(&s, columns);
    if (packed)
        fill_packed(&s);
    if (format.layout == PST_WEIGHT_FP8_BLOCKS) {
        for (size_t i = 0; i < s.data.count; i++) /* NaN has its own test */
            ((unsigned char *)s.data.data)[i] &= (i & 1) ? 0xfe : 0xf7;
        s.scales = ref_input(format.scale_type,
                             groups_of(outputs, format.block_rows) * groups_of(inputs, format.block_columns),
                             ref_between(0, 3));
        for (size_t i = 0; i < s.scales.count; i++)
            ref_set(&s.scales, i, exp(ref_normal() - 5.0));
    }
    return s;
}

void stored_free(stored *s)
{
    ref_free(&s->data);
    ref_free(&s->scales);
    ref_free(&s->zeros);
    ref_free(&s->index);
}

double stored_f8(unsigned char code)
{
    const int exponent = code >> 3 & 15, fraction = code & 7;
    const double sign = code & 0x80 ? -1.0 : 1.0;
    if ((code & 0x7f) == 0x7f)
        return NAN;
    return sign * (exponent == 0 ? ldexp(fraction, -9) : ldexp(8 + fraction, exponent - 10));
}

static double half_at(const unsigned char *p)
{
    return ref_from_f16((uint16_t)(p[0] | p[1] << 8));
}

double stored_grouped(const unsigned char *row, const pst_weight_format *format, size_t columns, size_t column)
{
    const size_t group = column / format->group;
    const unsigned char *scales = row + (format->bits == 4 ? columns / 2 + columns % 2 : columns);
    double code = format->bits == 8 ? row[column] : column % 2 ? row[column / 2] >> 4 : row[column / 2] & 15;
    if (format->symmetric)
        return (code - ldexp(1, (int)format->bits - 1)) * half_at(scales + 2 * group);
    return code * half_at(scales + 4 * group) + half_at(scales + 4 * group + 2);
}

static uint32_t word_at(const ref_array *a, size_t index)
{
    uint32_t word;
    memcpy(&word, (const char *)a->data + 4 * index, 4);
    return word;
}

static double get_gptq(const stored *s, size_t output, size_t input)
{
    const uint32_t bits = s->format.bits, in_word = 32 / bits, mask = (1u << bits) - 1;
    size_t words = s->outputs / in_word;
    size_t group = s->index.data != NULL ? word_at(&s->index, input) : input / s->format.group;
    uint32_t code = word_at(&s->data, input / in_word * s->outputs + output) >> input % in_word * bits & mask;
    uint32_t zero = word_at(&s->zeros, group * words + output / in_word) >> output % in_word * bits & mask;
    return ((double)code - (double)zero - (s->format.zero_offset ? 1 : 0)) *
           ref_get(&s->scales, group * s->outputs + output);
}

static double get_awq(const stored *s, size_t output, size_t input)
{
    static const unsigned place[8] = {0, 4, 1, 5, 2, 6, 3, 7}; /* of output o in 0 2 4 6 1 3 5 7 */
    const size_t words = s->outputs / 8, group = input / s->format.group;
    const unsigned shift = 4 * place[output % 8];
    double code = word_at(&s->data, input * words + output / 8) >> shift & 15;
    double zero = word_at(&s->zeros, group * words + output / 8) >> shift & 15;
    return (code - zero) * ref_get(&s->scales, group * s->outputs + output);
}

double stored_get(const stored *s, size_t output, size_t input)
{
    const pst_weight_format *f = &s->format;
    const size_t row = f->transposed ? input : output, column = f->transposed ? output : input;
    const size_t columns = f->transposed ? s->outputs : s->inputs;
    switch (f->layout) {
    case PST_WEIGHT_PLAIN: return ref_get(&s->data, row * columns + column);
    case PST_WEIGHT_GROUPED:
        return stored_grouped((const unsigned char *)s->data.data + row * s->row_bytes, f, columns, column);
    case PST_WEIGHT_FP8_BLOCKS:
        return stored_f8(((const unsigned char *)s->data.data)[row * columns + column]) *
               ref_get(&s->scales,
                       row / f->block_rows * groups_of(columns, f->block_columns) + column / f->block_columns);
    case PST_WEIGHT_GPTQ: return get_gptq(s, output, input);
    case PST_WEIGHT_AWQ: break;
    }
    return get_awq(s, output, input);
}

/* Even, often a usual one, now and then larger than the row. */
static uint32_t random_group(void)
{
    static const uint32_t usual[] = {32, 64, 128};
    return ref_between(0, 1) ? usual[ref_between(0, 2)] : 2 * (uint32_t)ref_between(1, 120);
}

bool stored_format(size_t index, pst_weight_format *out)
{
    static const pst_dtype plain[] = {PST_F32, PST_F16, PST_BF16};
    pst_weight_format f = {.group = random_group()};
    if (index < 8) {
        f.layout = PST_WEIGHT_GROUPED;
        f.bits = index & 1 ? 8 : 4;
        f.symmetric = index & 2;
        f.transposed = index & 4;
    } else if (index < 10) {
        f.layout = PST_WEIGHT_FP8_BLOCKS;
        f.scale_type = index & 1 ? PST_BF16 : PST_F32;
        f.block_rows = (uint32_t)(ref_between(0, 2) ? ref_between(1, 70) : 128);
        f.block_columns = (uint32_t)(ref_between(0, 2) ? ref_between(1, 300) : 128);
    } else if (index < 13) {
        f.layout = PST_WEIGHT_PLAIN;
        f.type = plain[index - 10];
        f.transposed = true;
    } else if (index < 17) {
        f.layout = PST_WEIGHT_GPTQ;
        f.transposed = true;
        f.bits = index & 1 ? 8 : 4;
        f.zero_offset = index & 2;
        f.scale_type = ref_between(0, 1) ? PST_F16 : PST_BF16;
    } else if (index == 17) {
        f.layout = PST_WEIGHT_AWQ;
        f.transposed = true;
        f.bits = 4;
        f.scale_type = PST_F16;
    } else {
        return false;
    }
    *out = f;
    return true;
}
