/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Operators that go through rows once, against float64. Tolerances, for any sane order of summing: a sum of n terms in at
 * least 16 lanes is a chain of n / 16 roundings (two each where product and sum are rounded apart) and a few for the tree.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "device/ops.h"

static const pst_dtype plain_types[] = {PST_F32, PST_F16, PST_BF16};

/* Few long rows or many short ones. */
static void deal_shape(size_t *rows, size_t *columns)
{
    const size_t kind = ref_between(0, 5);
    *rows = kind == 0 ? ref_between(30, 150) : ref_between(1, 9);
    *columns = kind == 0   ? ref_between(1, 40)
               : kind == 1 ? ref_between(2000, 9000)
               : kind == 2 ? 64 * ref_between(1, 24)
                           : ref_between(1, 300);
}

/* ---- rms_norm and layer_norm ---- */

typedef struct norm_case {
    bool is_layer_norm, in_place;
    ops_matrix x, y;
    ops_weight w, b;
    ref_array w_values, b_values;
    float eps;
} norm_case;

static size_t make_norm(void *context, size_t number, char *text, size_t text_bytes, bool is_layer_norm)
{
    norm_case *c = context;
    size_t rows, columns;
    deal_shape(&rows, &columns);
    const double scale = pow(10.0, (double)ref_between(0, 8) - 4.0),
                 middle = is_layer_norm ? 3 * scale * ref_normal() : 0;
    ref_array x = ref_randoms(PST_F32, rows * columns, 0, scale);
    for (size_t i = 0; i < rows * columns; i++)
        ref_set(&x, i, ref_get(&x, i) + middle);
    const pst_dtype y_type = number / 3 % 2 ? PST_BF16 : PST_F32;
    c->is_layer_norm = is_layer_norm;
    c->in_place = y_type == PST_F32 && ref_between(0, 1);
    c->x = ops_given(&x, rows, columns);
    ref_free(&x);
    c->y = c->in_place ? c->x : ops_poisoned(y_type, rows, columns);
    if (c->in_place)
        ops_writes(&c->y);
    c->eps = ref_between(0, 1) ? 1e-5f : 1e-6f;
    if (!is_layer_norm || ref_between(0, 4) != 0)
        c->w_values = ref_randoms(plain_types[number % 3], columns, 0, 1.0);
    if (is_layer_norm && ref_between(0, 4) != 0)
        c->b_values = ref_randoms(plain_types[ref_between(0, 2)], columns, 0, 1.0);
    c->w = ops_plain(&c->w_values, 1, columns);
    c->b = ops_plain(&c->b_values, 1, columns);
    snprintf(text, text_bytes, "%zu x %zu, strides %zu %zu, size %g, w %s, b %s, y %s%s", rows, columns, c->x.stride,
             c->y.stride, scale, c->w.data ? pst_dtype_name(c->w.type) : "none",
             c->b.data ? pst_dtype_name(c->b.type) : "none", pst_dtype_name(c->y.type), c->in_place ? " in place" : "");
    return rows;
}

static size_t make_rms_norm(void *c, size_t number, char *text, size_t text_bytes)
{
    return make_norm(c, number, text, text_bytes, false);
}

static size_t make_layer_norm(void *c, size_t number, char *text, size_t text_bytes)
{
    return make_norm(c, number, text, text_bytes, true);
}

static int run_norm(void *context, pst_device *device, ops_side side, size_t first, size_t rows)
{
    const norm_case *c = context;
    const pst_matrix x = ops_rows(&c->x, side, first, rows), y = ops_rows(&c->y, side, first, rows);
    const pst_weight w = ops_weight_at(&c->w, side), b = ops_weight_at(&c->b, side);
    return c->is_layer_norm ? device->ops->layer_norm(device, &x, &w, &b, c->eps, &y)
                            : device->ops->rms_norm(device, &x, &w, c->eps, &y);
}

static void check_norm(void *context, const char *text)
{
    const norm_case *c = context;
    const size_t n = c->x.columns;
    ops_check_gaps(&c->y, text);
    for (size_t r = 0; r < c->x.rows; r++) {
        double mean = 0, squares = 0, size = 0;
        for (size_t i = 0; i < n && c->is_layer_norm; i++) {
            mean += ops_was(&c->x, r, i) / (double)n;
            size = fmax(size, fabs(ops_was(&c->x, r, i)));
        }
        for (size_t i = 0; i < n; i++)
            squares += (ops_was(&c->x, r, i) - mean) * (ops_was(&c->x, r, i) - mean);
        const double factor = 1.0 / sqrt(squares / (double)n + (double)c->eps);
        const double roundings = F32_ROUNDING * ((double)n / 16.0 + 20.0);
        for (size_t i = 0; i < n; i++) {
            const double w = c->w.data ? ref_get(&c->w_values, i) : 1, b = c->b.data ? ref_get(&c->b_values, i) : 0;
            const double normed = (ops_was(&c->x, r, i) - mean) * factor * w;
            /* rms: the sum's error is halved by the root, then a root, a division and two products. layer: two such sums,
             * and the mean's error is a share of the values' size. */
            const double limit =
                c->is_layer_norm ? (fabs(normed) + size * factor * fabs(w)) * 2 * roundings + 2 * F32_ROUNDING * fabs(b)
                                 : fabs(normed) * roundings;
            ops_near(&c->y, r, i, normed + b, limit, text);
        }
    }
}

static void clear_norm(void *context)
{
    norm_case *c = context;
    ref_free(&c->w_values);
    ref_free(&c->b_values);
}

/* ---- activate and gated ---- */

typedef struct act_case {
    bool is_gated;
    pst_activation activation;
    ops_matrix gate, up, y;
} act_case;

/* Of all sizes that a gate can have. */
static ref_array deal_gate(size_t count)
{
    static const double widths[] = {1e-6, 1.0, 5.0, 15.0, 110.0, 1e30};
    ref_array gate = ref_input(PST_F32, count, 0);
    for (size_t i = 0; i < count; i++)
        ref_set(&gate, i, widths[ref_between(0, 5)] * ((double)ref_between(0, 2000000) / 1e6 - 1.0));
    return gate;
}

static size_t make_act(void *context, size_t number, char *text, size_t text_bytes, bool is_gated)
{
    static const char *const names[] = {"silu", "gelu", "gelu_tanh", "relu", "identity"};
    act_case *c = context;
    size_t rows, columns;
    deal_shape(&rows, &columns);
    c->is_gated = is_gated;
    c->activation = (pst_activation)(number % 5);
    ref_array gate = deal_gate(rows * columns);
    c->gate = ops_given(&gate, rows, columns);
    ref_free(&gate);
    if (is_gated)
        c->up = ops_random(PST_F32, rows, columns, 1.0);
    const pst_dtype y_type = number / 5 % 2 ? PST_BF16 : PST_F32;
    const size_t in_place = y_type == PST_F32 ? ref_between(0, is_gated ? 2 : 1) : 0;
    if (in_place > 0)
        ops_writes(in_place == 1 ? &c->gate : &c->up);
    c->y = in_place == 0 ? ops_poisoned(y_type, rows, columns) : in_place == 1 ? c->gate : c->up;
    snprintf(text, text_bytes, "%s, %zu x %zu, strides %zu %zu %zu, y %s%s", names[c->activation], rows, columns,
             c->gate.stride, c->up.stride, c->y.stride, pst_dtype_name(y_type),
             in_place == 0   ? ""
             : in_place == 1 ? " in x"
                             : " in up");
    return rows;
}

static size_t make_activate(void *c, size_t number, char *text, size_t text_bytes)
{
    return make_act(c, number, text, text_bytes, false);
}

static size_t make_gated(void *c, size_t number, char *text, size_t text_bytes)
{
    return make_act(c, number, text, text_bytes, true);
}

static int run_act(void *context, pst_device *device, ops_side side, size_t first, size_t rows)
{
    const act_case *c = context;
    const pst_matrix gate = ops_rows(&c->gate, side, first, rows), y = ops_rows(&c->y, side, first, rows);
    if (!c->is_gated)
        return device->ops->activate(device, c->activation, &gate, &y);
    const pst_matrix up = ops_rows(&c->up, side, first, rows);
    return device->ops->gated(device, c->activation, &gate, &up, &y);
}

/* Error of an activation: relative 1e-6 (an exponential of 2 units, a division, a product). Two have more where x is negative
 * and the result small beside it: gelu_tanh, whose argument is a rounded number whose error the exponential magnifies, and
 * both gelus as x / 2 * (1 + f(x)), where the sum cancels: a few roundings of 1, times x / 2. Results below 4e-38 may be 0. */
static double act_limit(pst_activation activation, double x, double expected)
{
    double limit = fabs(expected) * 1e-6 + 4e-38;
    if (activation == PST_ACT_GELU_TANH && x < 0)
        limit += fabs(expected) * 6 * F32_ROUNDING * fabs(x * (1.6 + 0.08 * x * x));
    if (activation == PST_ACT_GELU || activation == PST_ACT_GELU_TANH)
        limit += x < 0 && x > -20 ? 4 * F32_ROUNDING * fabs(x) : 0;
    return limit;
}

static void check_act(void *context, const char *text)
{
    const act_case *c = context;
    ops_check_gaps(&c->y, text);
    for (size_t r = 0; r < c->gate.rows; r++) {
        for (size_t i = 0; i < c->gate.columns; i++) {
            const double x = ops_was(&c->gate, r, i), up = c->is_gated ? ops_was(&c->up, r, i) : 1;
            const double expected = ref_activation((pst_cpu_activation)c->activation, x);
            ops_near(&c->y, r, i, expected * up, act_limit(c->activation, x, expected) * fabs(up) + 1e-45, text);
        }
    }
}

/* ---- rope ---- */

typedef struct rope_case {
    ops_matrix x;
    ops_buffer *table, *positions;
    uint32_t heads, head_dim, rotary, offset; /* offset: where in its heads x begins */
    bool interleaved;
    ref_array angles;
    uint32_t at[160];
} rope_case;

enum { ROPE_POSITIONS = 40 };

static size_t make_rope(void *context, size_t number, char *text, size_t text_bytes)
{
    rope_case *c = context;
    const size_t rows = ref_between(0, 4) ? ref_between(1, 9) : ref_between(30, 150);
    c->heads = (uint32_t)ref_between(1, 6);
    c->head_dim = 2 * (uint32_t)ref_between(1, 70);
    c->rotary = ref_between(0, 1) ? c->head_dim : 2 * (uint32_t)ref_between(1, c->head_dim / 2);
    c->offset = ref_between(0, 2) ? 0 : (uint32_t)ref_between(0, c->head_dim - c->rotary);
    c->interleaved = number % 2;
    c->x = ops_random(PST_F32, rows, (size_t)c->heads * c->head_dim, 1.0);
    ops_writes(&c->x);
    c->angles = ref_input(PST_F32, (size_t)ROPE_POSITIONS * c->rotary, 0);
    for (size_t p = 0; p < ROPE_POSITIONS; p++) {
        for (size_t i = 0; i < c->rotary / 2; i++) {
            const double angle = ref_normal() * 10;
            ref_set(&c->angles, p * c->rotary + i, cos(angle));
            ref_set(&c->angles, p * c->rotary + c->rotary / 2 + i, sin(angle));
        }
    }
    for (size_t r = 0; r < rows; r++)
        c->at[r] = (uint32_t)ref_between(0, ROPE_POSITIONS - 1);
    c->table = ops_array(&c->angles, 4);
    c->positions = ops_input(c->at, rows * sizeof *c->at, 4);
    snprintf(text, text_bytes, "%zu rows, %u heads of %u from %u on, %u turn%s, stride %zu", rows, c->heads,
             c->head_dim, c->offset, c->rotary, c->interleaved ? " interleaved" : "", c->x.stride);
    return rows;
}

static int run_rope(void *context, pst_device *device, ops_side side, size_t first, size_t rows)
{
    const rope_case *c = context;
    pst_matrix x = ops_rows(&c->x, side, first, rows);
    x.data = (float *)x.data + c->offset;
    return device->ops->rope(device, &x, c->heads, c->head_dim, c->rotary, c->interleaved, ops_at(c->table, side),
                             (const uint32_t *)ops_at(c->positions, side) + first);
}

static void check_rope(void *context, const char *text)
{
    const rope_case *c = context;
    const uint32_t half = c->rotary / 2;
    ops_check_gaps(&c->x, text);
    for (size_t r = 0; r < c->x.rows; r++) {
        for (size_t i = 0; i < c->x.columns; i++) {
            const uint32_t d = (uint32_t)(i % c->head_dim) - c->offset; /* wraps before the offset */
            double expected = ops_was(&c->x, r, i), limit = 0;
            if (d < c->rotary) {
                const bool is_first = c->interleaved ? d % 2 == 0 : d < half;
                const uint32_t pair = c->interleaved ? d / 2 : d % half, apart = c->interleaved ? 1 : half;
                const double other = ops_was(&c->x, r, is_first ? i + apart : i - apart);
                const double cosine = ref_get(&c->angles, c->at[r] * (size_t)c->rotary + pair);
                const double sine = ref_get(&c->angles, c->at[r] * (size_t)c->rotary + half + pair);
                limit = 2 * F32_ROUNDING * (fabs(expected * cosine) + fabs(other * sine)); /* two products and a sum */
                expected = is_first ? expected * cosine - other * sine : expected * cosine + other * sine;
            }
            ops_near(&c->x, r, i, expected, limit, text);
        }
    }
}

static void clear_rope(void *context)
{
    ref_free(&((rope_case *)context)->angles);
}

/* ---- log_sum_exp and top ---- */

typedef struct reduce_case {
    ops_matrix x;
    ops_buffer *sums, *factors, *values, *columns; /* factors NULL: none */
    uint32_t count;
} reduce_case;

/* Of rows; some of the time none. */
static ops_buffer *deal_factors(size_t rows)
{
    double *factors = malloc(rows * sizeof *factors);
    assert_non_null(factors);
    for (size_t r = 0; r < rows; r++)
        factors[r] = pow(10.0, (double)ref_between(0, 40) / 10 - 2.0);
    ops_buffer *buffer = ref_between(0, 1) ? ops_input(factors, rows * sizeof *factors, 8) : NULL;
    free(factors);
    return buffer;
}

/* Numbers of some size; now and then what is none, or infinite. */
static ops_matrix deal_logits(size_t rows, size_t columns, bool few_values)
{
    const double scale = pow(10.0, (double)ref_between(0, 5) - 2.0);
    ref_array x = ref_randoms(PST_F32, rows * columns, 0, scale);
    for (size_t i = 0; i < x.count && few_values; i++)
        ref_set(&x, i, nearbyint(ref_get(&x, i) / scale * 2) / 2);
    for (size_t r = 0; r < rows; r++) {
        const size_t kind = ref_between(0, 11), at = r * columns + ref_between(0, columns - 1);
        static const double odd[] = {NAN, INFINITY, -INFINITY};
        if (kind < 3)
            ref_set(&x, at, odd[kind]);
        for (size_t i = 0; i < columns && (kind == 3 || kind == 4); i++)
            ref_set(&x, r * columns + i, kind == 3 ? (double)-INFINITY : (double)NAN);
    }
    const ops_matrix m = ops_given(&x, rows, columns);
    ref_free(&x);
    return m;
}

static size_t make_sums(void *context, size_t number, char *text, size_t text_bytes)
{
    reduce_case *c = context;
    size_t rows, columns;
    (void)number;
    deal_shape(&rows, &columns);
    c->x = deal_logits(rows, columns, false);
    c->sums = ops_output(NULL, rows * sizeof(double), 8);
    c->factors = deal_factors(rows);
    snprintf(text, text_bytes, "%zu x %zu, stride %zu%s", rows, columns, c->x.stride,
             c->factors != NULL ? ", with factors" : "");
    return rows;
}

static int run_sums(void *context, pst_device *device, ops_side side, size_t first, size_t rows)
{
    const reduce_case *c = context;
    const pst_matrix x = ops_rows(&c->x, side, first, rows);
    const double *factors = c->factors != NULL ? (const double *)ops_at(c->factors, side) + first : NULL;
    return device->ops->log_sum_exp(device, &x, factors, (double *)ops_at(c->sums, side) + first);
}

static double log_sum(const ops_matrix *x, size_t row, double factor)
{
    long double largest = -INFINITY, sum = 0;
    for (size_t i = 0; i < x->columns; i++) {
        const double value = ops_was(x, row, i);
        if (isnan(value))
            return NAN;
        largest = fmaxl(largest, value);
    }
    if (isinf((double)largest))
        return (double)largest;
    for (size_t i = 0; i < x->columns; i++)
        sum += expl((ops_was(x, row, i) - largest) * factor);
    return (double)(largest * factor + logl(sum));
}

static void check_sums(void *context, const char *text)
{
    const reduce_case *c = context;
    for (size_t r = 0; r < c->x.rows; r++) {
        const double factor = c->factors != NULL ? ops_get(c->factors, OPS_HOST, PST_F64, r) : 1;
        const double expected = log_sum(&c->x, r, factor);
        /* float64 throughout: a chain of columns / 8 roundings at least */
        const double limit = 0x1p-52 * (16.0 + (double)c->x.columns / 8.0 + 2 * fabs(expected));
        for (int side = OPS_DEVICE; side <= OPS_HOST; side++) {
            const double got = ops_get(c->sums, (ops_side)side, PST_F64, r);
            const bool fine = isnan(expected)   ? isnan(got)
                              : isinf(expected) ? got == expected
                                                : fabs(got - expected) <= limit;
            if (!fine)
                fail_msg("%s: %s gives %.17g for row %zu, expected %.17g within %.3g", text,
                         side == OPS_HOST ? "the host" : "the device", got, r, expected, limit);
        }
    }
}

static size_t make_top(void *context, size_t number, char *text, size_t text_bytes)
{
    reduce_case *c = context;
    size_t rows, columns;
    deal_shape(&rows, &columns);
    const size_t most = columns < 1024 ? columns : 1024;
    c->count = (uint32_t)(number % 4 == 0 ? most : number % 4 == 1 ? 1 : ref_between(1, most));
    c->x = deal_logits(rows, columns, ref_between(0, 1));
    c->values = ops_output(NULL, rows * c->count * 4, 4);
    c->columns = ops_output(NULL, rows * c->count * 4, 4);
    snprintf(text, text_bytes, "%u of %zu x %zu, stride %zu", c->count, rows, columns, c->x.stride);
    return rows;
}

static int run_top(void *context, pst_device *device, ops_side side, size_t first, size_t rows)
{
    const reduce_case *c = context;
    const pst_matrix x = ops_rows(&c->x, side, first, rows);
    return device->ops->top(device, &x, c->count, (float *)ops_at(c->values, side) + first * c->count,
                            (uint32_t *)ops_at(c->columns, side) + first * c->count);
}

typedef struct entry {
    double value;
    uint32_t column;
} entry;

static int falling(const void *a, const void *b)
{
    const entry *x = a, *y = b;
    if (x->value != y->value)
        return x->value > y->value ? -1 : 1;
    return x->column < y->column ? -1 : 1;
}

static void check_top(void *context, const char *text)
{
    const reduce_case *c = context;
    entry *entries = malloc(c->x.columns * sizeof *entries);
    assert_non_null(entries);
    for (size_t r = 0; r < c->x.rows; r++) {
        for (uint32_t i = 0; i < c->x.columns; i++) {
            const double value = ops_was(&c->x, r, i);
            entries[i] = (entry){isnan(value) ? (double)-INFINITY : value, i};
        }
        qsort(entries, c->x.columns, sizeof *entries, falling);
        for (int side = OPS_DEVICE; side <= OPS_HOST; side++) {
            const unsigned char *columns = ops_result(c->columns, (ops_side)side);
            for (uint32_t i = 0; i < c->count; i++) {
                uint32_t column;
                memcpy(&column, columns + 4 * (r * c->count + i), 4);
                const double value = ops_get(c->values, (ops_side)side, PST_F32, r * c->count + i);
                if (column != entries[i].column || value != entries[i].value)
                    fail_msg("%s: %s gives %g of column %u at place %u of row %zu, expected %g of %u", text,
                             side == OPS_HOST ? "the host" : "the device", value, column, i, r, entries[i].value,
                             entries[i].column);
            }
        }
    }
    free(entries);
}

const ops_test ops_rows_tests[] = {
    {"rms_norm", 40, sizeof(norm_case), make_rms_norm, run_norm, check_norm, NULL, clear_norm, true},
    {"layer_norm", 40, sizeof(norm_case), make_layer_norm, run_norm, check_norm, NULL, clear_norm, true},
    {"activate", 30, sizeof(act_case), make_activate, run_act, check_act, NULL, NULL, true},
    {"gated", 30, sizeof(act_case), make_gated, run_act, check_act, NULL, NULL, true},
    {"rope", 40, sizeof(rope_case), make_rope, run_rope, check_rope, NULL, clear_rope, true},
    {"log_sum_exp", 30, sizeof(reduce_case), make_sums, run_sums, check_sums, NULL, NULL, true},
    {"top", 40, sizeof(reduce_case), make_top, run_top, check_top, NULL, NULL, true},
    {NULL},
};
