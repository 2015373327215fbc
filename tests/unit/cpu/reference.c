/* SPDX-License-Identifier: Apache-2.0 */
/* See reference.h. Slow and plain on purpose: nothing here is shared with the code under test. */
#include "unit/cpu/reference.h"
#include "support/random.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define GUARD_BYTES 64
#define GUARD       0xa5

static uint64_t state;

uint64_t ref_seed(const char *test)
{
    return state = random_seed(test, 0);
}

uint64_t ref_random(void)
{
    return pst_random_next(&state);
}

size_t ref_between(size_t low, size_t high)
{
    return low + ref_random() % (high - low + 1);
}

double ref_normal(void)
{
    double sum = 0;
    for (int i = 0; i < 6; i++)
        sum += (double)(ref_random() >> 11) * 0x1p-53;
    return (sum - 3.0) * 1.41421356;
}

size_t ref_bytes(pst_dtype type)
{
    return type == PST_F32 || type == PST_I32 ? 4 : type == PST_U8 ? 1 : 2;
}

/* `before` bytes from a 64 byte boundary, `after` bytes up to the end of the allocation. */
static ref_array make(pst_dtype type, size_t count, size_t before, size_t after, int fill)
{
    ref_array a = {.type = type, .count = count};
    size_t bytes = count * ref_bytes(type);
    void *memory = NULL;
    assert_int_equal(posix_memalign(&memory, 64, before + bytes + after), 0);
    memset(memory, GUARD, before + bytes + after);
    a.memory = memory;
    a.data = a.memory + before;
    memset(a.data, fill, bytes);
    return a;
}

ref_array ref_input(pst_dtype type, size_t count, size_t misalignment)
{
    return make(type, count, misalignment, 0, 0);
}

ref_array ref_randoms(pst_dtype type, size_t count, size_t misalignment, double scale)
{
    ref_array a = ref_input(type, count, misalignment);
    for (size_t i = 0; i < count; i++)
        ref_set(&a, i, ref_normal() * scale);
    return a;
}

ref_array ref_output(pst_dtype type, size_t count)
{
    ref_array a = make(type, count, GUARD_BYTES, GUARD_BYTES, 0xff);
    a.guarded = true;
    return a;
}

ref_array ref_copy(const ref_array *a, size_t misalignment)
{
    ref_array copy = ref_input(a->type, a->count, misalignment);
    memcpy(copy.data, a->data, a->count * ref_bytes(a->type));
    return copy;
}

void ref_check_guards(const ref_array *a, const char *what)
{
    assert_true(a->guarded);
    const unsigned char *end = (const unsigned char *)a->data + a->count * ref_bytes(a->type);
    for (size_t i = 0; i < GUARD_BYTES; i++) {
        if (a->memory[i] != GUARD || end[i] != GUARD)
            fail_msg("%s: written outside its output", what);
    }
}

void ref_free(ref_array *a)
{
    free(a->memory);
    memset(a, 0, sizeof *a);
}

double ref_from_bf16(uint16_t bits)
{
    int exponent = bits >> 7 & 0xff;
    double fraction = bits & 0x7f, sign = bits >> 15 ? -1.0 : 1.0;
    if (exponent == 0xff)
        return fraction != 0.0 ? NAN : sign * INFINITY;
    return sign * (exponent == 0 ? ldexp(fraction, -133) : ldexp(fraction + 128.0, exponent - 134));
}

double ref_from_f16(uint16_t bits)
{
    int exponent = bits >> 10 & 0x1f;
    double fraction = bits & 0x3ff, sign = bits >> 15 ? -1.0 : 1.0;
    if (exponent == 0x1f)
        return fraction != 0.0 ? NAN : sign * INFINITY;
    return sign * (exponent == 0 ? ldexp(fraction, -24) : ldexp(fraction + 1024.0, exponent - 25));
}

/* value = whole * 2^place, `bits` bits of fraction or a place of `lowest`, whichever is coarser. */
static double round_to_bits(double value, int bits, int lowest)
{
    int exponent;
    frexp(value, &exponent);
    int place = exponent - bits > lowest ? exponent - bits : lowest;
    return ldexp(nearbyint(ldexp(value, -place)), place);
}

uint16_t ref_to_bf16(double value)
{
    if (isnan(value))
        return 0x7fc0;
    float rounded = (float)(isinf(value) ? value : round_to_bits(value, 8, -133));
    uint32_t bits;
    memcpy(&bits, &rounded, 4);
    return (uint16_t)(bits >> 16);
}

uint16_t ref_to_f16_saturated(double value)
{
    if (isnan(value))
        return 0x7e00;
    uint16_t sign = signbit(value) ? 0x8000 : 0;
    double size = fabs(value) > 65504.0 ? 65504.0 : round_to_bits(fabs(value), 11, -24);
    if (size < 0x1p-14)
        return (uint16_t)(sign | (uint16_t)ldexp(size, 24));
    int exponent;
    double fraction = frexp(size, &exponent); /* 0.5 <= fraction < 1 */
    return (uint16_t)(sign | (exponent + 14) << 10 | ((int)ldexp(fraction, 11) - 1024));
}

double ref_get(const ref_array *a, size_t index)
{
    const unsigned char *p = (const unsigned char *)a->data + index * ref_bytes(a->type);
    if (a->type == PST_F32) {
        float f;
        memcpy(&f, p, 4);
        return (double)f;
    }
    uint16_t bits;
    memcpy(&bits, p, 2);
    return a->type == PST_BF16 ? ref_from_bf16(bits) : ref_from_f16(bits);
}

void ref_set(ref_array *a, size_t index, double value)
{
    unsigned char *p = (unsigned char *)a->data + index * ref_bytes(a->type);
    if (a->type == PST_F32) {
        float f = (float)value;
        memcpy(p, &f, 4);
        return;
    }
    uint16_t bits = a->type == PST_BF16 ? ref_to_bf16(value) : ref_to_f16_saturated(value);
    memcpy(p, &bits, 2);
}

double ref_dot(const ref_array *x, size_t x_first, const ref_array *w, size_t w_first, size_t k, double *size)
{
    double sum = 0;
    *size = 0;
    for (size_t i = 0; i < k; i++) {
        double product = ref_get(x, x_first + i) * ref_get(w, w_first + i);
        sum += product;
        *size += fabs(product);
    }
    return sum;
}

void ref_prepare(const ref_product *p, float *y)
{
    if (p->old != NULL)
        memcpy(y, p->old->data, p->y->count * sizeof(float));
    else
        memset(y, 0xff, p->y->count * sizeof(float));
}

static void check_gaps(const ref_product *p)
{
    for (size_t i = 0; i < p->y->count; i++) {
        if (i % p->y_stride < p->columns)
            continue;
        double value = ref_get(p->y, i);
        if (p->old != NULL ? value != ref_get(p->old, i) : !isnan(value))
            fail_msg("%s: the gap after row %zu was written", p->text, i / p->y_stride);
    }
}

void ref_check_product(const ref_product *p)
{
    ref_check_guards(p->y, p->text);
    check_gaps(p);
    for (size_t n = 0; n < 25; n++)
        p->check_element(p->product, ref_between(0, p->rows - 1), ref_between(0, p->columns - 1));
    p->check_element(p->product, p->rows - 1, p->columns - 1);
}

void ref_check_cuts(const ref_product *p)
{
    ref_array again = ref_output(PST_F32, p->y->count);
    ref_prepare(p, again.data);
    for (size_t row = 0, rows; row < p->rows; row += rows) {
        rows = ref_between(1, p->rows - row);
        for (size_t column = 0, columns; column < p->columns; column += columns) {
            columns = ref_between(1, p->columns - column);
            p->run(p->product, (float *)again.data + row * p->y_stride + column, row, rows, column, columns);
        }
    }
    ref_check_guards(&again, p->text);
    if (memcmp(again.data, p->y->data, p->y->count * sizeof(float)) != 0)
        fail_msg("%s: other bits when cut", p->text);
    ref_free(&again);
}

void ref_check_sum(const ref_product *p, size_t row, size_t column, size_t k, double sum, double size,
                   const ref_array *bias)
{
    /* One rounding of the running sum per step of a lane's chain, two where product and sum are rounded apart; the
     * fewest lanes are 4, a block of k is 1024 at least; the tree, the sum of the blocks, bias and old value add a
     * few. */
    double chain = 2.0 * ceil((double)(k < 2048 ? k : 2048) / 4.0) + ceil((double)k / 1024.0) + 4.0;
    double limit = F32_ROUNDING * chain * size;
    if (bias->data != NULL) {
        sum += ref_get(bias, column);
        limit += 2 * F32_ROUNDING * (size + fabs(ref_get(bias, column)));
    }
    if (p->old != NULL) {
        sum += ref_get(p->old, row * p->y_stride + column);
        limit += 2 * F32_ROUNDING * (size + fabs(sum));
    }
    ref_check_value(p, row, column, sum, limit);
}

void ref_check_value(const ref_product *p, size_t row, size_t column, double expected, double limit)
{
    double y = ref_get(p->y, row * p->y_stride + column);
    if (!(fabs(y - expected) <= limit))
        fail_msg("%s: y[%zu][%zu] = %.9g, expected %.9g within %.3g", p->text, row, column, y, expected, limit);
}

double ref_activation(pst_cpu_activation activation, double x)
{
    switch (activation) {
    case PST_CPU_SILU: return x / (1.0 + exp(-x));
    case PST_CPU_GELU: return 0.5 * x * erfc(-x * M_SQRT1_2);
    case PST_CPU_GELU_TANH:
        /* (1 + tanh(u)) / 2 = 1 / (1 + e^-2u), which keeps its relative precision for negative u */
        return x / (1.0 + exp(-2.0 * sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
    case PST_CPU_RELU: return x > 0.0 ? x : 0.0;
    case PST_CPU_IDENTITY: break;
    }
    return x;
}

void ref_attend(const ref_query *a, double *out, double *error)
{
    size_t count = a->end - a->first;
    double *p = malloc(count * sizeof *p), largest = -INFINITY, total = 0, most = 0, largest_value = 0, largest_key = 0;
    double q_size = 0, farthest = 0;
    assert_non_null(p);
    for (size_t d = 0; d < a->key_dim; d++)
        q_size += fabs(ref_get(a->q, a->first_element + d));
    for (size_t j = 0; j < count; j++) {
        double size, distance = (double)(a->first + j) - (double)(a->end - 1);
        p[j] = ref_dot(a->q, a->first_element, a->k, (a->first + j) * a->key_dim, a->key_dim, &size) * a->scale;
        p[j] += a->slope * distance;
        farthest = fabs(a->slope * distance) > farthest ? fabs(a->slope * distance) : farthest;
        largest = p[j] > largest ? p[j] : largest;
        most = size * fabs(a->scale) > most ? size * fabs(a->scale) : most;
        for (size_t d = 0; d < a->key_dim && a->element_roundings > 0; d++)
            largest_key = fmax(largest_key, fabs(ref_get(a->k, (a->first + j) * a->key_dim + d)));
    }
    for (size_t j = 0; j < count; j++)
        total += p[j] = exp(p[j] - largest);
    memset(out, 0, a->value_dim * sizeof *out);
    for (size_t j = 0; j < count; j++) {
        for (size_t d = 0; d < a->value_dim; d++) {
            double value = ref_get(a->v, (a->first + j) * a->v_stride + d);
            out[d] += p[j] / total * value;
            largest_value = fabs(value) > largest_value ? fabs(value) : largest_value;
        }
    }
    free(p);
    /* A score is off by at most a rounding of its terms' magnitudes per term of the longest chain (four lanes at
     * least, a product and a sum each, the tree and the scale), and by those of alibi's term and of the sum with it; that is
     * the relative error of its exponential, whose own error is 2 units. Numerator and total are off by that and by one
     * rounding per key (portable: two) and a few per block. */
    double score = ((double)a->key_dim / 4 * 2 + 6) * most + 3 * farthest + most +
                   a->element_roundings * q_size * largest_key * fabs(a->scale),
           sums = 2.0 * (double)count + 4.0 * (double)(count / 64 + 1) + 8 + a->element_roundings;
    *error = largest_value * F32_ROUNDING * (2 * score + sums + 8);
}
