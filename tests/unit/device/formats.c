/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Products and embedding rows of every layout on the host device: on pools of 1, 2 and 3 threads and in pieces of random
 * rows they give the bits that the kernels give in one call.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "device/device.h"
#include "unit/cpu/stored.h"
#include "unit/device/pools.h"

typedef struct product_case {
    const pst_cpu_kernels *kernels;
    size_t rows, x_stride, y_stride;
    stored w;
    ref_array x, bias, expected;
    bool accumulate;
    char text[200];
} product_case;

/* Rows of the tensor [first, first + rows) as a weight. */
static pst_weight piece_of(const stored *w, size_t first, size_t rows)
{
    return (pst_weight){.data = (char *)w->data.data + first * w->row_bytes,
                        .type = PST_U8,
                        .rows = rows,
                        .columns = w->format.transposed ? w->outputs : w->inputs,
                        .format = &w->format,
                        .scales = w->scales.data,
                        .zeros = w->zeros.data,
                        .index = w->index.data,
                        .first_row = first};
}

static void by_kernels(product_case *p)
{
    const stored *w = &p->w;
    if (p->w.format.transposed) {
        const pst_cpu_transposed whole = {.x = p->x.data,
                                          .x_stride = p->x_stride,
                                          .x_type = p->x.type,
                                          .bias_type = p->bias.type,
                                          .w = w->data.data,
                                          .format = &w->format,
                                          .scales = w->scales.data,
                                          .zeros = w->zeros.data,
                                          .index = w->index.data,
                                          .outputs = w->outputs,
                                          .columns = w->outputs,
                                          .inputs = w->inputs,
                                          .bias = p->bias.data,
                                          .y = p->expected.data,
                                          .y_stride = p->y_stride,
                                          .rows = p->rows,
                                          .begin = true,
                                          .accumulate = p->accumulate};
        p->kernels->matmul_transposed(&whole);
        return;
    }
    const pst_cpu_matmul whole = {.x = p->x.data,
                                  .x_stride = p->x_stride,
                                  .x_type = p->x.type,
                                  .w = w->data.data,
                                  .bias = p->bias.data,
                                  .bias_type = p->bias.type,
                                  .y = p->expected.data,
                                  .y_stride = p->y_stride,
                                  .rows = p->rows,
                                  .columns = w->outputs,
                                  .k = w->inputs,
                                  .accumulate = p->accumulate,
                                  .format = &w->format,
                                  .scales = w->scales.data};
    p->kernels->matmul(&whole);
}

/* The device, in one call or in calls of some rows of the tensor each. */
static void by_device(const product_case *p, pst_device *device, bool in_pieces)
{
    const stored *w = &p->w;
    ref_array y = ref_output(PST_F32, p->expected.count);
    if (p->accumulate)
        memset(y.data, 0, y.count * 4);
    for (size_t first = 0, rows; first < w->rows; first += rows) {
        rows = in_pieces ? ref_between(1, w->rows - first) : w->rows;
        const size_t output = w->format.transposed ? 0 : first, outputs = w->format.transposed ? w->outputs : rows;
        const pst_matmul job = {
            .x = {p->x.data, p->x.type, p->rows, w->inputs, p->x_stride},
            .w = piece_of(w, first, rows),
            .bias = {.data = (char *)p->bias.data + output * 2, .type = p->bias.type, .rows = 1, .columns = outputs},
            .y = {y.data, PST_F32, p->rows, w->outputs, p->y_stride},
            .first_column = output,
            .accumulate = p->accumulate};
        assert_int_equal(device->ops->matmul(device, &job), 0);
    }
    ref_check_guards(&y, p->text);
    if (memcmp(y.data, p->expected.data, y.count * 4) != 0)
        fail_msg("%s: other bits%s", p->text, in_pieces ? " in pieces" : "");
    ref_free(&y);
}

static void check_matmul(const pst_cpu_kernels *kernels, pst_dtype x_type, size_t kind, size_t rows, size_t outputs,
                         size_t inputs)
{
    product_case p = {.kernels = kernels, .rows = rows, .accumulate = ref_between(0, 1)};
    pst_weight_format format;
    assert_true(stored_format(kind, &format));
    p.w = stored_random(format, outputs, inputs);
    p.x_stride = inputs + 3;
    p.y_stride = outputs + 5;
    p.x = ref_randoms(x_type, rows * p.x_stride, 0, 1.0);
    p.bias = ref_randoms(PST_BF16, outputs, 1, 1.0);
    p.expected = ref_output(PST_F32, rows * p.y_stride);
    if (p.accumulate)
        memset(p.expected.data, 0, p.expected.count * 4);
    by_kernels(&p);
    for (size_t pool = 0; pool < POOLS; pool++) {
        pst_device *device;
        assert_int_equal(pst_device_host_create(pools[pool], kernels->name, &device, NULL), 0);
        snprintf(p.text, sizeof p.text, "%s %s x %s, %zu rows, %zu x %zu, %zu threads", kernels->name,
                 pst_dtype_name(x_type), p.w.text, rows, outputs, inputs, pool + 1);
        by_device(&p, device, false);
        by_device(&p, device, true);
        pst_device_destroy(device);
    }
    stored_free(&p.w);
    ref_free(&p.x);
    ref_free(&p.bias);
    ref_free(&p.expected);
}

static void test_matmul(void **unused)
{
    (void)unused;
    ref_seed("device formats");
    const pst_cpu_kernels *kernels;
    pst_weight_format format;
    for (size_t s = 0; (kernels = pst_cpu_available(s)) != NULL; s++) {
        for (size_t kind = 0; stored_format(kind, &format); kind++) {
            const pst_dtype x_type = ref_between(0, 1) ? PST_BF16 : PST_F32;
            /* Multiples of 8 for the packed layouts; one small product, one cut by columns, one also by rows. */
            check_matmul(kernels, x_type, kind, ref_between(1, 9), 8 * ref_between(1, 9), 8 * ref_between(1, 20));
            check_matmul(kernels, x_type, kind, ref_between(1, 9), 8 * ref_between(30, 60), 8 * ref_between(20, 60));
            if (kind % 3 == s % 3)
                check_matmul(kernels, x_type, kind, ref_between(60, 300), 8 * ref_between(2, 6), 64);
        }
    }
}

/* A group that is not there is an error, and nothing is written; so are inputs that x has not. */
static void test_refused(void **unused)
{
    (void)unused;
    const pst_weight_format format = {
        .layout = PST_WEIGHT_GPTQ, .transposed = true, .bits = 4, .group = 32, .scale_type = PST_F16};
    stored w;
    do {
        w = stored_random(format, 16, 64);
        if (w.index.data != NULL)
            break;
        stored_free(&w);
    } while (true);
    float x[64] = {0}, y[16];
    memset(y, 0x11, sizeof y);
    float untouched[16];
    memcpy(untouched, y, sizeof y);
    pst_device *device;
    assert_int_equal(pst_device_host_create(pools[1], NULL, &device, NULL), 0);
    pst_matmul job = {.x = {x, PST_F32, 1, 64, 64}, .w = piece_of(&w, 0, w.rows), .y = {y, PST_F32, 1, 16, 16}};
    static const int32_t bad[] = {2, -1, INT32_MAX, INT32_MIN};
    for (size_t i = 0; i < 4; i++) {
        int32_t good;
        memcpy(&good, (char *)w.index.data + 4 * 63, 4);
        memcpy((char *)w.index.data + 4 * 63, &bad[i], 4);
        assert_int_equal(device->ops->matmul(device, &job), PST_E_FORMAT);
        memcpy((char *)w.index.data + 4 * 63, &good, 4);
    }
    job.w.first_row = 1;
    assert_int_equal(device->ops->matmul(device, &job), PST_E_USAGE);
    assert_memory_equal(y, untouched, sizeof y);
    job.w.first_row = 0;
    assert_int_equal(device->ops->matmul(device, &job), 0);
    for (size_t i = 0; i < 16; i++)
        assert_true(y[i] == 0.0f);
    pst_device_destroy(device);
    stored_free(&w);
}

/* Rows of one format as numbers, from any row of the tensor on: those that the bytes stand for. */
static void check_convert(const pst_cpu_kernels *kernels, const pst_weight_format *format)
{
    const bool wide = ref_between(0, 1); /* enough columns to be cut */
    const size_t rows = wide ? 2 : ref_between(1, 40), first = ref_between(0, 20);
    const size_t columns = wide ? ref_between(9000, 20000) : ref_between(1, 300), stride = columns + 3;
    stored w = stored_random(*format, first + rows, columns);
    for (size_t pool = 0; pool < POOLS; pool++) {
        pst_device *device;
        assert_int_equal(pst_device_host_create(pools[pool], kernels->name, &device, NULL), 0);
        ref_array y = ref_output(PST_F32, rows * stride);
        const pst_weight part = piece_of(&w, first, rows);
        const pst_matrix out = {y.data, PST_F32, rows, columns, stride};
        assert_int_equal(device->ops->convert(device, &part, &out), 0);
        ref_check_guards(&y, w.text);
        for (size_t r = 0; r < rows; r++) {
            for (size_t c = 0; c < columns; c++) {
                if (ref_get(&y, r * stride + c) != (double)(float)stored_get(&w, first + r, c))
                    fail_msg("%s: %s, row %zu from %zu, column %zu", kernels->name, w.text, r, first, c);
            }
        }
        ref_free(&y);
        pst_device_destroy(device);
    }
    stored_free(&w);
}

static void test_convert(void **unused)
{
    (void)unused;
    pst_weight_format format;
    const pst_cpu_kernels *kernels;
    for (size_t s = 0; (kernels = pst_cpu_available(s)) != NULL; s++) {
        for (size_t kind = 0; stored_format(kind, &format); kind++) {
            if (!format.transposed)
                check_convert(kernels, &format);
        }
    }
    pst_device *device;
    float y[8], data[8] = {0};
    assert_int_equal(pst_device_host_create(pools[0], NULL, &device, NULL), 0);
    for (size_t kind = 0; stored_format(kind, &format); kind++) {
        const pst_weight w = {.data = data, .type = PST_F32, .rows = 1, .columns = 8, .format = &format};
        const pst_matrix out = {y, PST_F32, 1, 8, 8};
        if (format.transposed)
            assert_int_equal(device->ops->convert(device, &w, &out), PST_E_UNSUPPORTED);
    }
    pst_device_destroy(device);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_matmul),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_convert),
    };
    return cmocka_run_group_tests(tests, pools_set_up, pools_tear_down);
}
