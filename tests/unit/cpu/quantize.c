/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rows quantized and read back: every weight within half a scale, the same bytes by every kernel set, the rounding of scale
 * and minimum, groups of one value, weights that cannot be stored.
 */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "cpu/quantize.h"
#include "unit/cpu/stored.h"

static const pst_dtype types[] = {PST_F32, PST_F16, PST_BF16};

static pst_weight_format grouped(uint32_t bits, uint32_t group, bool symmetric)
{
    return (pst_weight_format){.layout = PST_WEIGHT_GROUPED, .bits = bits, .group = group, .symmetric = symmetric};
}

/* Scale and minimum of a column's group. */
static double scale_of(const ref_array *row, const pst_weight_format *f, size_t columns, size_t column, double *minimum)
{
    const unsigned char *p = (const unsigned char *)row->data + (f->bits == 4 ? (columns + 1) / 2 : columns);
    p += column / f->group * (f->symmetric ? 2 : 4);
    *minimum = f->symmetric ? 0.0 : ref_from_f16((uint16_t)(p[2] | p[3] << 8));
    return ref_from_f16((uint16_t)(p[0] | p[1] << 8));
}

/* The smallest scale that F16 has and the group needs: the stored one covers it, the next smaller one does not. */
static void check_scale(const ref_array *w, const ref_array *row, const pst_weight_format *f, size_t first,
                        const char *text)
{
    double least = INFINITY, largest = -INFINITY, minimum, needed, most = f->bits == 4 ? 15 : 255;
    for (size_t i = first; i < w->count && i < first + f->group; i++) {
        least = fmin(least, ref_get(w, i));
        largest = fmax(largest, ref_get(w, i));
    }
    const double scale = scale_of(row, f, w->count, first, &minimum);
    if (f->symmetric) {
        needed = fmax(fmax(largest, 0) / ((most + 1) / 2 - 1), fmax(-least, 0) / ((most + 1) / 2));
    } else {
        const double step = fmax(ldexp(fmax(fabs(least), fabs(minimum)), -10), 0x1p-24);
        if (!(minimum <= least && least - minimum < step))
            fail_msg("%s: minimum %.9g of a group from %.9g", text, minimum, least);
        needed = (largest - minimum) / most;
    }
    if (!(scale >= needed * (1 - 1e-14) && scale - needed < fmax(ldexp(scale, -10), 0x1p-24) * (1 + 1e-9)))
        fail_msg("%s: scale %.9g, needed %.9g", text, scale, needed);
}

static void check_row(const ref_array *w, const pst_weight_format *f)
{
    char text[160];
    snprintf(text, sizeof text, "%zu x %s, %u bits, groups of %u, symmetric %d", w->count, pst_dtype_name(w->type),
             f->bits, f->group, f->symmetric);
    const size_t bytes = pst_weight_row_bytes(f, w->count);
    ref_array row = ref_output(PST_U8, bytes), back = ref_output(PST_F32, w->count);
    assert_int_equal(pst_cpu_quantize_row(w->data, w->type, w->count, f, row.data), 0);
    ref_check_guards(&row, text);
    ref_array exact = ref_input(PST_U8, bytes, ref_between(0, 9)); /* ends where its memory ends */
    memcpy(exact.data, row.data, bytes);
    pst_cpu_dequantize_row(exact.data, w->count, f, back.data);
    ref_check_guards(&back, text);
    for (size_t i = 0; i < w->count; i++) {
        double minimum, scale = scale_of(&row, f, w->count, i, &minimum);
        double value = stored_grouped(row.data, f, w->count, i), original = ref_get(w, i);
        /* The code: 2^-22 of 255 scales at most; the sum with the minimum. */
        if (!(fabs(value - original) <= scale * (0.5 + 0x1p-14) + 2 * F32_ROUNDING * (fabs(minimum) + fabs(original))))
            fail_msg("%s: %.9g became %.9g, scale %.9g", text, original, value, scale);
        if (ref_get(&back, i) != (double)(float)value)
            fail_msg("%s: column %zu reads %.9g, stored %.9g", text, i, ref_get(&back, i), value);
    }
    for (size_t i = 0; i < w->count; i += f->group)
        check_scale(w, &row, f, i, text);
    const pst_cpu_kernels *kernels;
    for (size_t s = 0; (kernels = pst_cpu_available(s)) != NULL; s++) {
        ref_array again = ref_output(PST_U8, bytes), part = ref_output(PST_F32, w->count);
        assert_int_equal(kernels->quantize(w->data, w->type, w->count, f, again.data), 0);
        assert_memory_equal(again.data, row.data, bytes);
        for (size_t first = 0, n; first < w->count; first += n) {
            n = ref_between(1, w->count - first);
            kernels->dequantize(exact.data, f, w->count, first, n, (float *)part.data + first);
        }
        ref_check_guards(&part, text);
        assert_memory_equal(part.data, back.data, w->count * 4);
        ref_free(&again);
        ref_free(&part);
    }
    ref_free(&row);
    ref_free(&exact);
    ref_free(&back);
}

static void test_rows(void **unused)
{
    (void)unused;
    ref_seed("quantize");
    for (size_t i = 0; i < 200; i++) {
        const pst_dtype type = types[i % 3];
        const size_t columns = ref_between(0, 3) ? ref_between(1, 300) : ref_between(300, 2000);
        const uint32_t group = ref_between(0, 1) ? 64 : 2 * (uint32_t)ref_between(1, 400);
        /* From numbers whose scales are subnormal to large ones. */
        ref_array w = ref_randoms(type, columns, ref_between(0, 5), exp2((double)ref_between(0, 24) - 16.0));
        const double offset = (ref_between(0, 3) == 0) * ref_normal() * 4;
        for (size_t c = 0; c < columns; c++)
            ref_set(&w, c, ref_get(&w, c) + offset);
        const pst_weight_format f = grouped(i & 1 ? 4 : 8, group, i & 2);
        check_row(&w, &f);
        ref_free(&w);
    }
}

static void test_constant_groups(void **unused)
{
    (void)unused;
    static const double values[] = {0.0,     -0.0,     1.0,     -1.0,    0.1,      -0.1,
                                    0x1p-24, -0x1p-24, 0x1p-30, 65504.0, -65504.0, 3e-39};
    for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
        for (size_t kind = 0; kind < 4; kind++) {
            const pst_weight_format f = grouped(kind & 1 ? 4 : 8, 6, kind & 2);
            ref_array w = ref_input(PST_F32, 45, 0), back = ref_output(PST_F32, 45);
            unsigned char row[200];
            for (size_t i = 0; i < w.count; i++)
                ref_set(&w, i, values[v]);
            check_row(&w, &f);
            assert_int_equal(pst_cpu_quantize_row(w.data, PST_F32, w.count, &f, row), 0);
            pst_cpu_dequantize_row(row, w.count, &f, back.data);
            const bool exact = !f.symmetric && values[v] == ref_from_f16(ref_to_f16_saturated(values[v]));
            for (size_t i = 0; exact && i < w.count; i++)
                assert_true(ref_get(&back, i) == values[v]);
            ref_free(&w);
            ref_free(&back);
        }
    }
}

/* Weights that the layout cannot hold are refused wherever they are; the largest that it can are not. */
static void test_refused(void **unused)
{
    (void)unused;
    const pst_cpu_kernels *kernels;
    for (size_t s = 0; (kernels = pst_cpu_available(s)) != NULL; s++) {
        for (size_t i = 0; i < 300; i++) {
            const pst_dtype type = types[i % 3];
            const pst_weight_format f = grouped(i & 1 ? 4 : 8, 2 * (uint32_t)ref_between(1, 40), i & 2);
            unsigned char row[1000];
            ref_array w = ref_randoms(type, ref_between(1, 200), 1, 1.0);
            const size_t at = ref_between(0, w.count - 1);
            static const uint16_t bad[2][3] = {{0x7c00, 0xfc00, 0x7e01}, {0x7f80, 0xff80, 0xffff}};
            const uint16_t bits = bad[type != PST_F16][ref_between(0, 2)];
            if (type == PST_F32) {
                uint32_t wide = (uint32_t)bits << 16;
                memcpy((char *)w.data + 4 * at, &wide, 4);
            } else {
                memcpy((char *)w.data + 2 * at, &bits, 2);
            }
            assert_int_equal(kernels->quantize(w.data, type, w.count, &f, row), -EDOM);
            ref_free(&w);
        }
        unsigned char row[16];
        pst_weight_format f = grouped(4, 64, false);
        float large[2] = {-65505.0f, 0.0f};
        assert_int_equal(kernels->quantize(large, PST_F32, 2, &f, row), -ERANGE);
        large[0] = 1e6f;
        assert_int_equal(kernels->quantize(large, PST_F32, 2, &f, row), -ERANGE);
        large[0] = 15.0f * 65504.0f;
        assert_int_equal(kernels->quantize(large, PST_F32, 2, &f, row), 0);
        f.symmetric = true;
        assert_int_equal(kernels->quantize(large, PST_F32, 2, &f, row), -ERANGE);
        large[0] = -8.0f * 65504.0f;
        assert_int_equal(kernels->quantize(large, PST_F32, 2, &f, row), 0);
        large[0] = 3.4e38f;
        assert_int_equal(kernels->quantize(large, PST_F32, 2, &f, row), -ERANGE);
    }
}

/* Bytes written down by hand. */
static void test_bytes(void **unused)
{
    (void)unused;
    const float w[5] = {-1.0f, 0.5f, 0.0f, 2.0f, -3.0f};
    unsigned char row[20];
    pst_weight_format f = grouped(4, 4, false);
    assert_int_equal((int)pst_weight_row_bytes(&f, 5), 3 + 8);
    assert_int_equal(pst_cpu_quantize_row(w, PST_F32, 5, &f, row), 0);
    /* -1 .. 2 in 15 steps: 0.2 rounded up is 0x3267, -1 is 0xbc00; 1.5 / 0.2 = 7.5 (a little less), 5, 15. */
    static const unsigned char expected[11] = {0x70, 0xf5, 0x00, 0x67, 0x32, 0x00, 0xbc, 0x00, 0x00, 0x00, 0xc2};
    assert_memory_equal(row, expected, sizeof expected);
    f = grouped(8, 4, true);
    assert_int_equal((int)pst_weight_row_bytes(&f, 5), 5 + 4);
    assert_int_equal(pst_cpu_quantize_row(w, PST_F32, 5, &f, row), 0);
    /* 2 / 127 rounded up is 0x2409, 3 / 128 is 0x2600. */
    static const unsigned char expected8[9] = {0x41, 0xa0, 0x80, 0xff, 0x00, 0x09, 0x24, 0x00, 0x26};
    assert_memory_equal(row, expected8, sizeof expected8);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_constant_groups),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
