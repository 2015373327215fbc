/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Products of prompts through a vendor's library (plugins/cuda/blas.h), with a fake one on emulated devices: a good one computes
 * them, with the same bits however they are cut and wherever they lie; one that keeps none of the plugin's promises is found out
 * before it computes anything; and one that fails does so in a line, with nothing left behind.
 */
#include <dlfcn.h>
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "device/fake_blas.h"
#include "device/ops.h"

enum { ROWS = 37, OUTPUTS = 70, MOST_K = 136, GAP = 8, ALLOC_FAILED = 3, EXECUTION_FAILED = 13 };

static fake_blas_setter *set_fake;
static fake_blas_getter *get_fake;

static uint64_t products(void)
{
    uint64_t count, objects;
    get_fake(&count, &objects);
    return count;
}

static uint64_t objects(void)
{
    uint64_t count, alive;
    get_fake(&count, &alive);
    return alive;
}

static bool begin(const char *test)
{
    if (!ops_begin(test) || ops_emulator() == NULL)
        return false;
    void *library = dlopen(PST_FAKE_BLAS, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL)
        fail_msg("%s", dlerror());
    *(void **)&set_fake = dlsym(library, "fake_blas_set");
    *(void **)&get_fake = dlsym(library, "fake_blas_get");
    assert_true(set_fake != NULL && get_fake != NULL);
    set_fake(FAKE_BLAS_GOOD, 0, 0);
    ops_emulator()->blas(PST_FAKE_BLAS);
    return true;
}

/* ---- A product on a device of its own ---- */

typedef struct scene {
    pst_device *device;
    size_t k;
    unsigned char *memory; /* the device's: x, w, y, bias */
    uint16_t x[ROWS * (MOST_K + GAP)], w[OUTPUTS * MOST_K], bias[OUTPUTS];
    float old[ROWS * (OUTPUTS + GAP)], y[ROWS * (OUTPUTS + GAP)];
} scene;

enum { X_AT = 256, W_AT = X_AT + 32768, Y_AT = W_AT + 32768, BIAS_AT = Y_AT + 32768, BYTES = BIAS_AT + 1024 };

static uint16_t random_bf16(void)
{
    const float value = (float)ref_between(0, 1 << 20) / (1 << 19) - 1;
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)(bits >> 16);
}

static void open_scene(scene *s, size_t k)
{
    pst_error err;
    s->k = k;
    if (ops_open(&s->device, &err) < 0)
        fail_msg("%s", err.message);
    void *memory;
    assert_int_equal(s->device->ops->allocate(s->device, PST_MEMORY_DEVICE, BYTES, &memory), 0);
    s->memory = memory;
    for (size_t i = 0; i < sizeof s->x / sizeof *s->x; i++)
        s->x[i] = random_bf16();
    for (size_t i = 0; i < sizeof s->w / sizeof *s->w; i++)
        s->w[i] = random_bf16();
    for (size_t i = 0; i < OUTPUTS; i++)
        s->bias[i] = random_bf16();
    for (size_t i = 0; i < sizeof s->old / sizeof *s->old; i++)
        s->old[i] = (float)ref_between(0, 1 << 20) / (1 << 18) - 2;
}

static void close_scene(scene *s)
{
    s->device->ops->release(s->device, PST_MEMORY_DEVICE, s->memory, BYTES);
    pst_device_destroy(s->device);
    s->device = NULL;
}

/* How a product is asked for. Shifts in bytes (of y in floats), gaps in elements. */
typedef struct way {
    size_t x_shift, w_shift, y_shift, x_gap, y_gap;
    size_t first_row, rows, first_output, outputs; /* 0 rows, outputs: all */
    size_t generated;                              /* of the rows */
    bool bias, accumulate;
} way;

static int run(scene *s, const way *how)
{
    pst_device *d = s->device;
    const size_t rows = how->rows ? how->rows : ROWS, outputs = how->outputs ? how->outputs : OUTPUTS;
    const size_t x_stride = s->k + how->x_gap, y_stride = OUTPUTS + how->y_gap;
    unsigned char *x = s->memory + X_AT + how->x_shift, *w = s->memory + W_AT + how->w_shift;
    unsigned char *y = s->memory + Y_AT + 4 * how->y_shift, *bias = s->memory + BIAS_AT;
    int status = 0;
    for (size_t r = 0; r < rows && status >= 0; r++)
        status = d->ops->copy(d, NULL, x + 2 * r * x_stride, s->x + (how->first_row + r) * s->k, 2 * s->k);
    for (size_t r = 0; r < rows && status >= 0; r++)
        status = d->ops->copy(d, NULL, y + 4 * r * y_stride, s->old + r * OUTPUTS, 4 * (size_t)OUTPUTS);
    if (status >= 0)
        status = d->ops->copy(d, NULL, w, s->w + how->first_output * s->k, 2 * s->k * outputs);
    if (status >= 0)
        status = d->ops->copy(d, NULL, bias, s->bias + how->first_output, 2 * outputs);
    const pst_matmul job = {
        .x = {.data = x, .type = PST_BF16, .rows = rows, .columns = s->k, .stride = x_stride},
        .w = {.data = w, .type = PST_BF16, .rows = outputs, .columns = s->k, .first_row = how->first_output},
        .bias = {.data = how->bias ? bias : NULL, .type = PST_BF16, .rows = 1, .columns = outputs},
        .y = {.data = y, .type = PST_F32, .rows = rows, .columns = OUTPUTS, .stride = y_stride},
        .first_column = how->first_output,
        .accumulate = how->accumulate,
        .prompt_rows = rows - how->generated};
    if (status >= 0)
        status = d->ops->matmul(d, &job);
    assert_true(status <= 0);
    if (status >= 0)
        status = d->ops->synchronize(d, NULL);
    for (size_t r = 0; r < rows && status >= 0; r++)
        status = d->ops->copy(d, NULL, s->y + (how->first_row + r) * OUTPUTS + how->first_output,
                              y + 4 * (r * y_stride + how->first_output), 4 * outputs);
    return status < 0 ? status : d->ops->synchronize(d, NULL);
}

static void must(scene *s, const way *how)
{
    if (run(s, how) < 0)
        fail_msg("%s", s->device->ops->last_error(s->device));
}

static void same(const float *a, const float *b, const char *what)
{
    for (size_t i = 0; i < (size_t)ROWS * OUTPUTS; i++)
        if (memcmp(a + i, b + i, sizeof *a) != 0)
            fail_msg("%s: row %zu output %zu is %a, not %a", what, i / OUTPUTS, i % OUTPUTS, (double)b[i],
                     (double)a[i]);
}

static bool differ(const float *a, const float *b)
{
    return memcmp(a, b, sizeof(float) * ROWS * OUTPUTS) != 0;
}

/* The library's bits and the plugin's own. */
static void both_ways(scene *s, float *librarys, float *own)
{
    must(s, &(way){.generated = ROWS});
    memcpy(own, s->y, sizeof(float) * ROWS * OUTPUTS);
    must(s, &(way){0});
    memcpy(librarys, s->y, sizeof(float) * ROWS * OUTPUTS);
}

static scene at;
static float librarys[ROWS * OUTPUTS], own[ROWS * OUTPUTS];

/* ---- A good library ---- */

static void test_cuts_and_places(void **state)
{
    (void)state;
    if (!begin("cuts and places"))
        return;
    static const fake_blas_mode modes[] = {FAKE_BLAS_GOOD, FAKE_BLAS_SECOND, FAKE_BLAS_STRICT};
    for (size_t m = 0; m < 3; m++) {
        set_fake(modes[m], 0, 0);
        open_scene(&at, MOST_K - 8 * ref_between(0, 10));
        const uint64_t before = products();
        both_ways(&at, librarys, own);
        assert_true(products() > before && differ(librarys, own));
        for (int i = 0; i < 30; i++) {
            way how = {.x_shift = 2 * ref_between(0, 16),
                       .w_shift = ref_between(0, 1) * ref_between(0, 32),
                       .y_shift = ref_between(0, 8),
                       .x_gap = ref_between(0, GAP),
                       .y_gap = ref_between(0, GAP)};
            const size_t row_cut = ref_between(1, ROWS - 1), output_cut = ref_between(1, OUTPUTS - 1);
            memset(at.y, 0xff, sizeof at.y);
            for (int part = 0; part < 4; part++) {
                how.first_row = part < 2 ? 0 : row_cut;
                how.rows = part < 2 ? row_cut : ROWS - row_cut;
                how.first_output = part % 2 == 0 ? 0 : output_cut;
                how.outputs = part % 2 == 0 ? output_cut : OUTPUTS - output_cut;
                must(&at, &how);
            }
            same(librarys, at.y, "in pieces elsewhere");
        }
        close_scene(&at);
        assert_int_equal(objects(), 0);
    }
}

/* Rows of generated tokens have the plugin's own bits; bias and old y are added to the same sums. */
static void test_rows_and_sums(void **state)
{
    (void)state;
    if (!begin("rows and sums"))
        return;
    open_scene(&at, MOST_K);
    both_ways(&at, librarys, own);
    for (size_t generated = 0; generated <= ROWS; generated += ref_between(1, 9)) {
        must(&at, &(way){.generated = generated});
        for (size_t i = 0; i < (size_t)ROWS * OUTPUTS; i++)
            assert_memory_equal(at.y + i, (i / OUTPUTS < generated ? own : librarys) + i, sizeof(float));
    }
    for (int kind = 1; kind < 4; kind++) {
        const way how = {.bias = kind & 1, .accumulate = kind >> 1, .y_shift = ref_between(0, 4)};
        must(&at, &how);
        for (size_t i = 0; i < (size_t)ROWS * OUTPUTS; i++) {
            float expected = librarys[i];
            const uint32_t word = (uint32_t)at.bias[i % OUTPUTS] << 16;
            float bias;
            memcpy(&bias, &word, sizeof bias);
            expected = how.bias ? expected + bias : expected;
            expected = how.accumulate ? expected + at.old[i] : expected;
            assert_memory_equal(at.y + i, &expected, sizeof expected);
        }
    }
    close_scene(&at);
}

/* ---- Libraries that are not used ---- */

static void check_own(const char *what)
{
    open_scene(&at, MOST_K);
    both_ways(&at, librarys, own);
    same(own, librarys, what);
    const uint64_t before = products();
    must(&at, &(way){.rows = 5});
    if (products() != before)
        fail_msg("%s: it is used", what);
    close_scene(&at);
    assert_int_equal(objects(), 0);
}

static void test_refused(void **state)
{
    (void)state;
    if (!begin("libraries that are refused"))
        return;
    static const struct {
        fake_blas_mode mode;
        const char *what;
        bool computes; /* in the check */
    } cases[] = {
        {FAKE_BLAS_ROWS, "bits that depend on rows", true},
        {FAKE_BLAS_OUTPUTS, "bits that depend on outputs", true},
        {FAKE_BLAS_LARGE, "bits that depend on the size", true},
        {FAKE_BLAS_ADDRESS, "bits that depend on addresses", true},
        {FAKE_BLAS_WRONG, "a term that is missing", true},
        {FAKE_BLAS_ROUGH, "sums of 16 bits", true},
        {FAKE_BLAS_TURNED, "operands for each other", true},
        {FAKE_BLAS_SPLITS, "split sums", false},
        {FAKE_BLAS_NONE, "no algorithm", false},
        {FAKE_BLAS_UNKNOWN, "an unknown version", false},
        {FAKE_BLAS_NO_DEVICE, "not made", false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const uint64_t before = products();
        set_fake(cases[i].mode, 0, 0);
        check_own(cases[i].what);
        assert_true((products() > before) == cases[i].computes);
    }
    set_fake(FAKE_BLAS_GOOD, 0, 0);
    ops_emulator()->blas(PST_FAKE_BLAS_LACKING);
    check_own("a function that is missing");
    ops_emulator()->blas("./no-such-library.so");
    check_own("no library");
    ops_emulator()->blas(NULL);
    check_own("none at all");
}

static void test_description(void **state)
{
    (void)state;
    if (!begin("the description"))
        return;
    static const struct {
        const char *file, *says;
        fake_blas_mode mode;
    } cases[] = {
        {PST_FAKE_BLAS, "cuBLASLt 13.1.0 (", FAKE_BLAS_GOOD},
        {PST_FAKE_BLAS, " is of version 140000, which is not known", FAKE_BLAS_UNKNOWN},
        {PST_FAKE_BLAS_LACKING, " has no function cublasLtMatmulAlgoCheck", FAKE_BLAS_GOOD},
        {"./no-such-library.so", "own kernels, ./no-such-library.so cannot be loaded", FAKE_BLAS_GOOD},
        {NULL, "own kernels", FAKE_BLAS_GOOD},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        pst_device_info info = {.struct_size = sizeof info};
        pst_error err;
        set_fake(cases[i].mode, 0, 0);
        ops_emulator()->blas(cases[i].file);
        assert_int_equal(ops_plugin()->describe(0, &info, &err), 0);
        if (strstr(info.matrix_library, cases[i].says) == NULL)
            fail_msg("\"%s\" does not say \"%s\"", info.matrix_library, cases[i].says);
    }
}

/* ---- Failures ---- */

static void check_line(const char *line)
{
    if (line[0] == '\0' || strchr(line, '\n') != NULL)
        fail_msg("\"%s\"", line);
}

/* The nth product that the library is asked for fails: while it is checked, another algorithm is taken or none; later, and where memory
 * is short at any time, it is an error, and the next product has the same bits again. */
static void test_failing_products(void **state)
{
    (void)state;
    if (!begin("products that fail"))
        return;
    const uint64_t first = products();
    open_scene(&at, MOST_K);
    both_ways(&at, librarys, own);
    const uint64_t count = products() - first;
    must(&at, &(way){0});
    const uint64_t of_one = products() - first - count;
    close_scene(&at);
    for (uint64_t nth = 1; nth <= count; nth++) {
        for (int kind = 0; kind < 2; kind++) {
            const bool memory = kind == 1, late = nth > count - of_one;
            set_fake(FAKE_BLAS_GOOD, nth, memory ? ALLOC_FAILED : EXECUTION_FAILED);
            open_scene(&at, MOST_K);
            const int status = run(&at, &(way){0});
            if (memory || late) {
                assert_int_equal(status, memory ? -ENOMEM : -EIO);
                check_line(at.device->ops->last_error(at.device));
            } else {
                assert_int_equal(status, 0);
            }
            both_ways(&at, librarys, own);
            assert_true(differ(librarys, own));
            close_scene(&at);
            assert_int_equal(objects(), 0);
        }
    }
}

/* Scratch that is not there, launches and copies that fail: no word about the library, which is taken the next time. */
static void test_failing_device(void **state)
{
    (void)state;
    if (!begin("a device that fails in the check"))
        return;
    static const pst_emulated_call calls[] = {PST_EMULATED_ALLOCATE, PST_EMULATED_LAUNCH, PST_EMULATED_COPY,
                                              PST_EMULATED_COPY_LATER};
    pst_emulated_counts before, after;
    ops_emulator()->count(&before);
    for (size_t c = 0; c < sizeof calls / sizeof *calls; c++) {
        uint64_t nth = 1, told = 0;
        for (bool more = true; more && nth < 400; nth += ref_between(1, 9)) {
            set_fake(FAKE_BLAS_GOOD, 0, 0);
            open_scene(&at, MOST_K);
            const uint64_t calls_before = ops_emulator()->calls(calls[c]);
            ops_emulator()->fail_nth(calls[c], nth);
            const int status = run(&at, &(way){0});
            ops_emulator()->fail_nth(calls[c], 0);
            more = ops_emulator()->calls(calls[c]) - calls_before >= nth;
            if (status < 0) {
                check_line(at.device->ops->last_error(at.device));
                (void)at.device->ops->synchronize(at.device, NULL);
            }
            told += status < 0;
            both_ways(&at, librarys, own);
            assert_true(differ(librarys, own));
            close_scene(&at);
        }
        assert_true(told > 0);
    }
    ops_emulator()->count(&after);
    assert_int_equal(after.device_memory, before.device_memory);
    assert_int_equal(after.streams, before.streams);
    assert_int_equal(objects(), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cuts_and_places),  cmocka_unit_test(test_rows_and_sums),
        cmocka_unit_test(test_refused),          cmocka_unit_test(test_description),
        cmocka_unit_test(test_failing_products), cmocka_unit_test(test_failing_device),
    };
    return cmocka_run_group_tests_name("a library of products", tests, ops_set_up, ops_tear_down);
}
