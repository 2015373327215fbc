/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels that go through rows once, for every kernel set that runs here, against float64. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "unit/cpu/reference.h"

static const pst_dtype types[] = {PST_F32, PST_F16, PST_BF16};

static void require_near(double got, double expected, double limit, const char *what, const char *set, size_t index)
{
    if (!(fabs(got - expected) <= limit))
        fail_msg("%s %s: [%zu] = %.9g, expected %.9g within %.3g", set, what, index, got, expected, limit);
}

/* Every 16-bit pattern widens to exactly its value, NaN to NaN; ends of every length, every byte address. */
static void test_convert(void **unused)
{
    (void)unused;
    ref_seed("convert");
    const pst_cpu_kernels *kernels;
    for (size_t s = 0; (kernels = pst_cpu_available(s)) != NULL; s++) {
        for (size_t t = 1; t < 3; t++) {
            ref_array w = ref_input(types[t], 65536, 1), y = ref_output(PST_F32, 65536);
            for (size_t i = 0; i < 65536; i++) {
                uint16_t bits = (uint16_t)i;
                memcpy((char *)w.data + 2 * i, &bits, 2);
            }
            kernels->convert(w.data, types[t], y.data, 65536);
            for (size_t i = 0; i < 65536; i++) {
                double expected = ref_get(&w, i), got = ref_get(&y, i);
                if (isnan(expected) ? !isnan(got) : got != expected || signbit(got) != signbit(expected))
                    fail_msg("%s convert %s 0x%04zx: %.9g, expected %.9g", kernels->name, pst_dtype_name(types[t]), i,
                             got, expected);
            }
            ref_check_guards(&y, "convert");
            ref_free(&w);
            ref_free(&y);
        }
        for (size_t count = 0; count < 70; count++) {
            pst_dtype type = types[count % 3];
            ref_array w = ref_randoms(type, count, ref_between(0, 9), 1.0), y = ref_output(PST_F32, count);
            kernels->convert(w.data, type, y.data, count);
            for (size_t i = 0; i < count; i++)
                assert_true(ref_get(&y, i) == ref_get(&w, i));
            ref_check_guards(&y, "convert");
            ref_free(&w);
            ref_free(&y);
        }
    }
}

/* A float near the places where rounding to 16 bits is decided: the middle between neighbours, and a little beside
 * it. */
static float hard_to_round(unsigned bits_lost)
{
    uint32_t bits = (uint32_t)ref_random();
    uint32_t low = (1u << bits_lost) - 1, middle = 1u << (bits_lost - 1);
    switch (ref_between(0, 4)) {
    case 0: bits = (bits & ~low) | middle; break;
    case 1: bits = ((bits & ~low) | middle) + 1; break;
    case 2: bits = ((bits & ~low) | middle) - 1; break;
    default: break;
    }
    /* Half of them where f16 has its numbers. */
    if (ref_between(0, 1))
        bits = (bits & 0x807fffff) | (uint32_t)ref_between(127 - 27, 127 + 17) << 23;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static void test_kv_store(void **unused)
{
    (void)unused;
    ref_seed("kv_store");
    const float corners[] = {0.0f,       -0.0f,    65504.0f,     65519.0f,     65520.0f, 65536.0f,
                             -1e30f,     INFINITY, -INFINITY,    NAN,          0x1p-24f, 0x1p-25f,
                             0x1.8p-25f, 0x1p-26f, 0x1.ffcp-15f, 0x1.ffep-15f, 1e-45f,   -0x1p-14f};
    const pst_cpu_kernels *kernels;
    for (size_t s = 0; (kernels = pst_cpu_available(s)) != NULL; s++) {
        for (size_t round = 0; round < 60; round++) {
            size_t count = round < 40 ? round : 5000;
            ref_array x = ref_input(PST_F32, count, 0), y = ref_output(PST_F16, count), z = ref_output(PST_F32, count);
            for (size_t i = 0; i < count; i++) {
                float value = round == 41 && i < sizeof corners / sizeof *corners ? corners[i] : hard_to_round(13);
                memcpy((char *)x.data + 4 * i, &value, 4);
            }
            kernels->kv_store(x.data, y.data, PST_KV_F16, count);
            kernels->kv_store(x.data, z.data, PST_KV_F32, count);
            assert_memory_equal(x.data, z.data, count * 4);
            for (size_t i = 0; i < count; i++) {
                uint16_t bits, expected = ref_to_f16_saturated(ref_get(&x, i));
                memcpy(&bits, (const char *)y.data + 2 * i, 2);
                if (isnan(ref_get(&x, i)) ? !isnan(ref_get(&y, i)) : bits != expected)
                    fail_msg("%s kv_store %a: 0x%04x, expected 0x%04x", kernels->name, ref_get(&x, i), bits, expected);
            }
            ref_check_guards(&y, "kv_store");
            ref_check_guards(&z, "kv_store");
            ref_free(&x);
            ref_free(&y);
            ref_free(&z);
        }
    }
}

/* Activations rounded to bf16: relu(1) * up is up. */
static void test_bf16_rounding(void **unused)
{
    (void)unused;
    ref_seed("bf16 rounding");
    const pst_cpu_kernels *kernels;
    for (size_t s = 0; (kernels = pst_cpu_available(s)) != NULL; s++) {
        for (size_t round = 0; round < 60; round++) {
            size_t count = round < 40 ? round : 5000;
            ref_array gate = ref_input(PST_F32, count, 0), up = ref_input(PST_F32, count, 0),
                      y = ref_output(PST_BF16, count);
            for (size_t i = 0; i < count; i++) {
                float value = hard_to_round(16);
                memcpy((char *)up.data + 4 * i, &value, 4);
                ref_set(&gate, i, 1.0);
            }
            kernels->gated(PST_CPU_RELU, gate.data, up.data, y.data, PST_BF16, count);
            for (size_t i = 0; i < count; i++) {
                uint16_t bits, expected = ref_to_bf16(ref_get(&up, i));
                memcpy(&bits, (const char *)y.data + 2 * i, 2);
                if (isnan(ref_get(&up, i)) ? !isnan(ref_get(&y, i)) : bits != expected)
                    fail_msg("%s bf16 %a: 0x%04x, expected 0x%04x", kernels->name, ref_get(&up, i), bits, expected);
            }
            ref_check_guards(&y, "bf16");
            ref_free(&gate);
            ref_free(&up);
            ref_free(&y);
        }
    }
}

static void test_rms_norm(void **unused)
{
    (void)unused;
    ref_seed("rms_norm");
    const pst_cpu_kernels *kernels;
    for (size_t s = 0; (kernels = pst_cpu_available(s)) != NULL; s++) {
        for (size_t round = 0; round < 120; round++) {
            size_t count = ref_between(0, 3) ? ref_between(1, 150) : ref_between(1, 6000);
            pst_dtype w_type = types[round % 3], y_type = round / 3 % 2 ? PST_BF16 : PST_F32;
            bool weighted = ref_between(0, 4) != 0, in_place = y_type == PST_F32 && ref_between(0, 1);
            double eps = ref_between(0, 1) ? 1e-5 : 1e-6, scale = pow(10.0, (double)ref_between(0, 8) - 4.0),
                   squares = 0;
            ref_array x = ref_randoms(PST_F32, count, 0, scale), w = ref_randoms(w_type, count, ref_between(0, 9), 1.0);
            ref_array y = ref_output(y_type, count);
            if (in_place)
                memcpy(y.data, x.data, count * 4);
            kernels->rms_norm(in_place ? y.data : x.data, weighted ? w.data : NULL, w_type, (float)eps, y.data, y_type,
                              count);
            for (size_t i = 0; i < count; i++)
                squares += ref_get(&x, i) * ref_get(&x, i);
            double factor = 1.0 / sqrt(squares / (double)count + (double)(float)eps);
            for (size_t i = 0; i < count; i++) {
                double expected = ref_get(&x, i) * factor * (weighted ? ref_get(&w, i) : 1.0);
                /* The sum of squares: a chain of count / 16 roundings (two each) at least; its root halves that.
                 * Then division, root and two products. */
                double limit = fabs(expected) * F32_ROUNDING * ((double)count / 16.0 + 16.0);
                require_near(ref_get(&y, i), expected,
                             limit + (y_type == PST_BF16 ? BF16_ROUNDING * fabs(expected) : 0.0), "rms_norm",
                             kernels->name, i);
            }
            ref_check_guards(&y, "rms_norm");
            ref_free(&x);
            ref_free(&w);
            ref_free(&y);
        }
    }
}

/* Values far from their mean's zero, so that a variance taken as the difference of two squares would show. */
static void test_layer_norm(void **unused)
{
    (void)unused;
    ref_seed("layer_norm");
    const pst_cpu_kernels *kernels;
    for (size_t s = 0; (kernels = pst_cpu_available(s)) != NULL; s++) {
        for (size_t round = 0; round < 120; round++) {
            size_t count = ref_between(0, 3) ? ref_between(1, 150) : ref_between(1, 6000);
            pst_dtype w_type = types[round % 3], b_type = types[ref_between(0, 2)];
            pst_dtype y_type = round / 3 % 2 ? PST_BF16 : PST_F32;
            bool weighted = ref_between(0, 4) != 0, biased = ref_between(0, 4) != 0;
            bool in_place = y_type == PST_F32 && ref_between(0, 1);
            double eps = 1e-5, scale = pow(10.0, (double)ref_between(0, 4) - 2.0), middle = 3 * scale * ref_normal();
            ref_array x = ref_randoms(PST_F32, count, 0, scale), w = ref_randoms(w_type, count, ref_between(0, 9), 1.0);
            ref_array b = ref_randoms(b_type, count, ref_between(0, 9), 1.0), y = ref_output(y_type, count);
            for (size_t i = 0; i < count; i++)
                ref_set(&x, i, ref_get(&x, i) + middle);
            if (in_place)
                memcpy(y.data, x.data, count * 4);
            kernels->layer_norm(in_place ? y.data : x.data, weighted ? w.data : NULL, w_type, biased ? b.data : NULL,
                                b_type, (float)eps, y.data, y_type, count);
            double mean = 0, squares = 0, size = 0;
            for (size_t i = 0; i < count; i++) {
                mean += ref_get(&x, i) / (double)count;
                size = fmax(size, fabs(ref_get(&x, i)));
            }
            for (size_t i = 0; i < count; i++)
                squares += (ref_get(&x, i) - mean) * (ref_get(&x, i) - mean);
            double factor = 1.0 / sqrt(squares / (double)count + (double)(float)eps);
            for (size_t i = 0; i < count; i++) {
                double wi = weighted ? ref_get(&w, i) : 1.0, bi = biased ? ref_get(&b, i) : 0.0;
                double normed = (ref_get(&x, i) - mean) * factor * wi, expected = normed + bi;
                /* Two chains of count / 16 roundings at least; the mean's error is a share of the values' size. */
                double roundings = F32_ROUNDING * ((double)count / 16.0 + 16.0);
                double limit = (fabs(normed) + size * factor * fabs(wi)) * 2 * roundings + 2 * F32_ROUNDING * fabs(bi);
                require_near(ref_get(&y, i), expected,
                             limit + (y_type == PST_BF16 ? BF16_ROUNDING * (fabs(expected) + limit) : 0.0),
                             "layer_norm", kernels->name, i);
            }
            ref_check_guards(&y, "layer_norm");
            ref_free(&x);
            ref_free(&w);
            ref_free(&b);
            ref_free(&y);
        }
    }
}

static void test_rope(void **unused)
{
    (void)unused;
    ref_seed("rope");
    const pst_cpu_kernels *kernels;
    for (size_t s = 0; (kernels = pst_cpu_available(s)) != NULL; s++) {
        for (size_t round = 0; round < 100; round++) {
            size_t heads = ref_between(1, 5), dim = ref_between(1, 70) * 2, half = ref_between(1, dim / 2);
            if (ref_between(0, 1))
                half = dim / 2;
            bool interleaved = ref_between(0, 1);
            ref_array x = ref_randoms(PST_F32, heads * dim, 0, 1.0), table = ref_input(PST_F32, 2 * half, 0);
            for (size_t i = 0; i < half; i++) {
                double angle = ref_normal() * 10.0;
                ref_set(&table, i, cos(angle));
                ref_set(&table, half + i, sin(angle));
            }
            ref_array y = ref_output(PST_F32, heads * dim);
            memcpy(y.data, x.data, heads * dim * 4);
            kernels->rope(y.data, (uint32_t)heads, (uint32_t)dim, (uint32_t)(2 * half), interleaved, table.data);
            for (size_t i = 0; i < heads * dim; i++) {
                size_t d = i % dim;
                double expected = ref_get(&x, i), limit = 0.0;
                if (d < 2 * half) {
                    bool is_first = interleaved ? d % 2 == 0 : d < half;
                    size_t pair = interleaved ? d / 2 : d % half, apart = interleaved ? 1 : half;
                    double other = ref_get(&x, is_first ? i + apart : i - apart);
                    double c = ref_get(&table, pair), sine = ref_get(&table, half + pair);
                    /* two products and a sum */
                    limit = 2 * F32_ROUNDING * (fabs(expected * c) + fabs(other * sine));
                    expected = is_first ? expected * c - other * sine : expected * c + other * sine;
                }
                require_near(ref_get(&y, i), expected, limit, "rope", kernels->name, i);
            }
            ref_check_guards(&y, "rope");
            ref_free(&x);
            ref_free(&table);
            ref_free(&y);
        }
    }
}

/* gate from -110 to 110 and up to 1e30; up random. Relative error 1e-6 while the result is a normal float; below
 * that, a few of the smallest floats. */
static void test_gated(void **unused)
{
    (void)unused;
    ref_seed("gated");
    static const char *const names[] = {"silu", "gelu", "gelu_tanh", "relu", "identity"};
    const pst_cpu_kernels *kernels;
    for (size_t s = 0; (kernels = pst_cpu_available(s)) != NULL; s++) {
        for (int a = PST_CPU_SILU; a <= PST_CPU_IDENTITY; a++) {
            for (size_t round = 0; round < 50; round++) {
                size_t count = round < 40 ? round : 20000;
                pst_dtype y_type = round % 2 ? PST_BF16 : PST_F32;
                ref_array gate = ref_input(PST_F32, count, 0), up = ref_randoms(PST_F32, count, 0, 1.0);
                ref_array y = ref_output(y_type, count);
                for (size_t i = 0; i < count; i++) {
                    double width = (double[]){1e-6, 1.0, 5.0, 15.0, 110.0, 1e30}[ref_between(0, 5)];
                    ref_set(&gate, i, width * ((double)ref_between(0, 2000000) / 1e6 - 1.0));
                }
                bool in_place = y_type == PST_F32 && ref_between(0, 1);
                if (in_place)
                    memcpy(y.data, gate.data, count * 4);
                bool alone = ref_between(0, 1); /* the activation by itself */
                const void *from = in_place ? y.data : gate.data;
                if (alone)
                    kernels->activate((pst_cpu_activation)a, from, y.data, y_type, count);
                else
                    kernels->gated((pst_cpu_activation)a, from, up.data, y.data, y_type, count);
                for (size_t i = 0; alone && i < count; i++)
                    ref_set(&up, i, 1.0);
                for (size_t i = 0; i < count; i++) {
                    double x = ref_get(&gate, i), expected = ref_activation((pst_cpu_activation)a, x);
                    /* gelu_tanh's argument is a rounded number whose error the exponential magnifies. */
                    double relative = a == PST_CPU_GELU_TANH && x < 0
                                          ? 1e-6 + 6 * F32_ROUNDING * fabs(x * (1.6 + 0.08 * x * x))
                                          : 1e-6;
                    double limit = (fabs(expected) * relative + 4e-38) * fabs(ref_get(&up, i)) + 1e-45;
                    expected *= ref_get(&up, i);
                    limit +=
                        y_type == PST_BF16 ? BF16_ROUNDING * fabs(expected) + 0x1p-134 : 0.0; /* half of its smallest */
                    if (!(fabs(ref_get(&y, i) - expected) <= limit))
                        fail_msg("%s %s(%.9g) * %.9g = %.9g, expected %.9g within %.3g", kernels->name, names[a], x,
                                 ref_get(&up, i), ref_get(&y, i), expected, limit);
                }
                ref_check_guards(&y, "gated");
                ref_free(&gate);
                ref_free(&up);
                ref_free(&y);
            }
        }
    }
}

static void test_log_sum_exp(void **unused)
{
    (void)unused;
    ref_seed("log_sum_exp");
    const pst_cpu_kernels *kernels;
    for (size_t s = 0; (kernels = pst_cpu_available(s)) != NULL; s++) {
        for (size_t round = 0; round < 100; round++) {
            size_t count = round < 40 ? round + 1 : ref_between(1, 20000);
            double scale = pow(10.0, (double)ref_between(0, 5) - 2.0);
            ref_array x = ref_randoms(PST_F32, count, 0, scale);
            long double largest = -INFINITY, sum = 0;
            const double factor = round % 3 ? 1 : pow(10.0, (double)ref_between(0, 4) - 2.0) * 0.7;
            for (size_t i = 0; i < count; i++)
                largest = fmaxl(largest, ref_get(&x, i));
            for (size_t i = 0; i < count; i++)
                sum += expl((ref_get(&x, i) - largest) * factor);
            double expected = (double)(largest * factor + logl(sum)), got = kernels->log_sum_exp(x.data, count, factor);
            /* float64 throughout: the sum's relative error is that of a chain of count / 8 roundings. */
            require_near(got, expected, 0x1p-52 * (16.0 + (double)count / 8.0 + 2 * fabs(expected)), "log_sum_exp",
                         kernels->name, count);
            ref_set(&x, count / 2, NAN);
            assert_true(isnan(kernels->log_sum_exp(x.data, count, factor)));
            ref_set(&x, count / 2, INFINITY);
            assert_true(kernels->log_sum_exp(x.data, count, factor) == (double)INFINITY);
            for (size_t i = 0; i < count; i++)
                ref_set(&x, i, -INFINITY);
            assert_true(kernels->log_sum_exp(x.data, count, factor) == (double)-INFINITY);
            ref_free(&x);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_convert),     cmocka_unit_test(test_kv_store),   cmocka_unit_test(test_bf16_rounding),
        cmocka_unit_test(test_rms_norm),    cmocka_unit_test(test_rope),       cmocka_unit_test(test_gated),
        cmocka_unit_test(test_log_sum_exp), cmocka_unit_test(test_layer_norm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
