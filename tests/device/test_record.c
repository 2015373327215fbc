/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Recordings of a device: random runs of operators, copies and fills give what the calls themselves give, however often they are
 * replayed and whatever the tables in the device's memory say by then; what has no place in a recording is refused and does
 * not spoil it; memory of the device's own that moves makes it stale; failures leave nothing behind. (Each operator alone: ops.c.)
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "device/ops.h"

enum { ROWS = 6, COLUMNS = 64, MATRICES = 4, STEPS = 24, ROUNDS = 3 };

static pst_device *dut;
static const pst_device_ops *ops;

static void must(int status, const char *what)
{
    if (status < 0)
        fail_msg("%s: %s: %s (%s)", ops_name(), what, pst_strerror(status), ops->last_error(dut));
}

/* false: there is no device, or it does not record. */
static bool begin(const char *test)
{
    if (!ops_begin(test))
        return false;
    dut = ops_device(OPS_DEVICE);
    ops = dut->ops;
    const int status = ops->record_begin(dut);
    if (status == PST_E_UNSUPPORTED)
        return false;
    must(status, "record_begin");
    must(ops->record_end(dut, NULL), "record_end");
    return true;
}

static void *claim(size_t bytes)
{
    void *memory = NULL;
    must(ops->allocate(dut, PST_MEMORY_DEVICE, bytes, &memory), "allocate");
    return memory;
}

static void put(void *to, const void *from, size_t bytes)
{
    must(ops->copy(dut, NULL, to, from, bytes), "copy");
}

static void get(void *to, const void *from, size_t bytes)
{
    must(ops->copy(dut, NULL, to, from, bytes), "copy");
    must(ops->synchronize(dut, NULL), "synchronize");
}

/* ---- Runs of operators ---- */

/* What the calls of a run work on: all in the device's memory. */
typedef struct world {
    float *matrices[MATRICES];
    uint16_t *rounded; /* bf16 */
    float *weight;     /* COLUMNS x COLUMNS */
    uint32_t *rows;    /* ROWS */
    float *weights;    /* ROWS */
} world;

enum { MATRIX_BYTES = ROWS * COLUMNS * sizeof(float) };

static world make_world(void)
{
    world w;
    for (int i = 0; i < MATRICES; i++)
        w.matrices[i] = claim(MATRIX_BYTES);
    w.rounded = claim(MATRIX_BYTES / 2);
    w.weight = claim(COLUMNS * COLUMNS * sizeof(float));
    w.rows = claim(ROWS * sizeof *w.rows);
    w.weights = claim(ROWS * sizeof *w.weights);
    return w;
}

static void free_world(world *w)
{
    for (int i = 0; i < MATRICES; i++)
        ops->release(dut, PST_MEMORY_DEVICE, w->matrices[i], MATRIX_BYTES);
    ops->release(dut, PST_MEMORY_DEVICE, w->rounded, MATRIX_BYTES / 2);
    ops->release(dut, PST_MEMORY_DEVICE, w->weight, COLUMNS * COLUMNS * sizeof(float));
    ops->release(dut, PST_MEMORY_DEVICE, w->rows, ROWS * sizeof *w->rows);
    ops->release(dut, PST_MEMORY_DEVICE, w->weights, ROWS * sizeof *w->weights);
}

/* The same numbers in both worlds. */
static void fill_worlds(const world *a, const world *b)
{
    float numbers[COLUMNS * COLUMNS];
    for (int m = 0; m <= MATRICES; m++) {
        const size_t count = m < MATRICES ? ROWS * COLUMNS : COLUMNS * COLUMNS;
        for (size_t i = 0; i < count; i++)
            numbers[i] = (float)ref_between(0, 2000) / 1000 - 1;
        put(m < MATRICES ? a->matrices[m] : a->weight, numbers, count * sizeof *numbers);
        put(m < MATRICES ? b->matrices[m] : b->weight, numbers, count * sizeof *numbers);
    }
    must(ops->fill(dut, NULL, a->rounded, 0, MATRIX_BYTES / 2), "fill");
    must(ops->fill(dut, NULL, b->rounded, 0, MATRIX_BYTES / 2), "fill");
}

/* Tables change from round to round: distinct rows in some order, and weights. */
static void turn_tables(const world *a, const world *b)
{
    uint32_t rows[ROWS];
    float weights[ROWS];
    for (uint32_t i = 0; i < ROWS; i++) {
        const uint32_t other = (uint32_t)ref_between(0, i);
        rows[i] = i;
        rows[i] = rows[other];
        rows[other] = i;
        weights[i] = (float)ref_between(0, 100) / 100;
    }
    put(a->rows, rows, sizeof rows);
    put(b->rows, rows, sizeof rows);
    put(a->weights, weights, sizeof weights);
    put(b->weights, weights, sizeof weights);
    must(ops->synchronize(dut, NULL), "synchronize");
}

typedef struct step {
    int kind, from, to, third;
    size_t rows;
} step;

enum { TAKE, ADD, NORM, ACTIVATE, ROUND, GATED, BLOCKS, PRODUCT, COPY, FILL, KINDS };

static step deal_step(void)
{
    step s = {.kind = (int)ref_between(0, KINDS - 1),
              .from = (int)ref_between(0, MATRICES - 1),
              .third = (int)ref_between(0, MATRICES - 1),
              .rows = ref_between(1, ROWS)};
    s.to = (s.from + (int)ref_between(1, MATRICES - 1)) % MATRICES;
    return s;
}

static int call_step(const world *w, const step *s)
{
    const pst_matrix x = {w->matrices[s->from], PST_F32, s->rows, COLUMNS, COLUMNS};
    const pst_matrix y = {w->matrices[s->to], PST_F32, s->rows, COLUMNS, COLUMNS};
    const pst_matrix z = {w->matrices[s->third], PST_F32, s->rows, COLUMNS, COLUMNS};
    const pst_matrix all_x = {x.data, PST_F32, ROWS, COLUMNS, COLUMNS},
                     all_y = {y.data, PST_F32, ROWS, COLUMNS, COLUMNS};
    const pst_matrix rounded = {w->rounded, PST_BF16, s->rows, COLUMNS, COLUMNS};
    const pst_weight norm = {w->weight, PST_F32, 1, COLUMNS, .format = NULL};
    switch (s->kind) {
    case TAKE: return ops->take_rows(dut, &all_x, w->rows, &y);
    case ADD: return ops->add_rows(dut, &x, w->rows, w->weights, &all_y);
    case NORM: return ops->rms_norm(dut, &x, &norm, 1e-5f, &y);
    case ACTIVATE: return ops->activate(dut, PST_ACT_SILU, &x, &y);
    case ROUND: return ops->activate(dut, PST_ACT_IDENTITY, &x, &rounded);
    case GATED: return ops->gated(dut, PST_ACT_GELU, &x, &z, &y);
    case COPY: return ops->copy(dut, NULL, y.data, x.data, s->rows * COLUMNS * sizeof(float));
    case FILL: return ops->fill(dut, NULL, y.data, 0x3c, s->rows * sizeof(float));
    default: break;
    }
    if (s->kind == BLOCKS) {
        const pst_block_copy job = {.x = x.data,
                                    .x_row_stride = COLUMNS,
                                    .x_block_stride = COLUMNS / 4,
                                    .y = y.data,
                                    .y_type = PST_F32,
                                    .y_row_stride = COLUMNS,
                                    .y_block_stride = COLUMNS / 4,
                                    .rows = s->rows,
                                    .blocks = 4,
                                    .columns = COLUMNS / 8};
        return ops->copy_blocks(dut, &job);
    }
    const bool is_plain = s->third % 2 == 0;
    const pst_matmul job = {.x = is_plain ? x : rounded,
                            .w = {w->weight, PST_F32, COLUMNS, COLUMNS, .format = NULL},
                            .y = y,
                            .accumulate = s->third > 1};
    return ops->matmul(dut, &job);
}

static void call_steps(const world *w, const step *steps, size_t count)
{
    for (size_t i = 0; i < count; i++)
        must(call_step(w, &steps[i]), "an operator");
}

static void compare(const world *a, const world *b, size_t trial, int round)
{
    for (int m = 0; m <= MATRICES; m++) {
        unsigned char x[MATRIX_BYTES], y[MATRIX_BYTES];
        const size_t bytes = m < MATRICES ? MATRIX_BYTES : MATRIX_BYTES / 2;
        get(x, m < MATRICES ? (void *)a->matrices[m] : a->rounded, bytes);
        get(y, m < MATRICES ? (void *)b->matrices[m] : b->rounded, bytes);
        if (memcmp(x, y, bytes) != 0)
            fail_msg("%s: run %zu, replay %d: matrix %d is another", ops_name(), trial, round, m);
    }
}

static pst_device_recording *record(const world *w, const step *steps, size_t count)
{
    pst_device_recording *recording = NULL;
    must(ops->record_begin(dut), "record_begin");
    call_steps(w, steps, count);
    must(ops->record_end(dut, &recording), "record_end");
    assert_non_null(recording);
    return recording;
}

/* One world is computed by calls, the other by what was recorded of the same calls there. */
static void test_runs(void **state)
{
    (void)state;
    if (!begin("recorded runs"))
        return;
    for (size_t trial = 0; trial < ops_cases(12); trial++) {
        step steps[STEPS];
        const size_t count = ref_between(1, STEPS);
        for (size_t i = 0; i < count; i++)
            steps[i] = deal_step();
        world direct = make_world(), replayed = make_world();
        fill_worlds(&direct, &replayed);
        turn_tables(&direct, &replayed);
        call_steps(&direct, steps, count); /* first, so that nothing has to grow */
        fill_worlds(&direct, &replayed);
        pst_device_recording *recording = record(&replayed, steps, count);
        for (int round = 0; round < ROUNDS; round++) {
            turn_tables(&direct, &replayed);
            call_steps(&direct, steps, count);
            assert_int_equal(ops->replay(dut, recording), 0);
            if (ref_between(0, 1)) /* two of them at once */
                assert_int_equal(ops->replay(dut, recording), 0), call_steps(&direct, steps, count);
            compare(&direct, &replayed, trial, round);
        }
        ops->recording_destroy(dut, recording);
        free_world(&direct);
        free_world(&replayed);
    }
}

/* Nothing was asked for: nothing is done. */
static void test_empty(void **state)
{
    (void)state;
    if (!begin("an empty recording"))
        return;
    pst_device_recording *recording = NULL;
    must(ops->record_begin(dut), "record_begin");
    must(ops->record_end(dut, &recording), "record_end");
    assert_int_equal(ops->replay(dut, recording), 0);
    must(ops->synchronize(dut, NULL), "synchronize");
    ops->recording_destroy(dut, recording);
    ops->recording_destroy(dut, NULL);
}

/* ---- What has no place in one ---- */

static void refused(int status, const char *what)
{
    if (status != PST_E_USAGE || ops->last_error(dut)[0] == '\0')
        fail_msg("%s: %s while it records: %d (%s)", ops_name(), what, status, ops->last_error(dut));
}

static void test_refused(void **state)
{
    (void)state;
    if (!begin("calls that cannot be recorded"))
        return;
    pst_device_stream *stream, *other_stream;
    pst_device_event *event, *other_event;
    pst_device_recording *recording = NULL, *second = NULL;
    uint64_t left, total;
    void *memory;
    char own[256] = {0}, *there = claim(sizeof own);
    must(ops->stream_create(dut, &stream), "stream_create");
    must(ops->event_create(dut, &event), "event_create");
    must(ops->fill(dut, NULL, there, 1, sizeof own), "fill");
    must(ops->synchronize(dut, NULL), "synchronize");
    refused(ops->record_end(dut, &recording), "an end without a beginning");

    must(ops->record_begin(dut), "record_begin");
    must(ops->fill(dut, NULL, there, 2, 100), "fill");
    refused(ops->record_begin(dut), "record_begin");
    refused(ops->allocate(dut, PST_MEMORY_DEVICE, 100, &memory), "allocate");
    refused(ops->allocate(dut, PST_MEMORY_HOST, 100, &memory), "allocate");
    refused(ops->register_host(dut, own, sizeof own), "register_host");
    refused(ops->memory_info(dut, &left, &total), "memory_info");
    refused(ops->stream_create(dut, &other_stream), "stream_create");
    refused(ops->event_create(dut, &other_event), "event_create");
    refused(ops->event_record(dut, event, stream), "event_record");
    refused(ops->event_record(dut, event, NULL), "event_record");
    refused(ops->stream_wait(dut, NULL, event), "stream_wait");
    refused(ops->event_wait(dut, event), "event_wait");
    refused(ops->event_query(dut, event), "event_query");
    refused(ops->synchronize(dut, NULL), "synchronize");
    refused(ops->synchronize(dut, stream), "synchronize");
    refused(ops->copy(dut, stream, there, there + 128, 16), "a copy on another stream");
    refused(ops->copy(dut, NULL, there, own, 16), "a copy from plain memory");
    refused(ops->copy(dut, NULL, own, there, 16), "a copy to plain memory");
    refused(ops->fill(dut, stream, there, 3, 16), "a fill on another stream");
    refused(ops->fill(dut, NULL, own, 3, 16), "a fill of plain memory");
    must(ops->copy(dut, NULL, there + 100, there, 100), "copy");
    must(ops->record_end(dut, &recording), "record_end");

    get(own, there, sizeof own);
    assert_true(own[0] == 1 && own[150] == 1);
    assert_int_equal(ops->replay(dut, recording), 0);
    get(own, there, sizeof own);
    assert_true(own[0] == 2 && own[199] == 2 && own[200] == 1);
    must(ops->record_begin(dut), "record_begin");
    refused(ops->replay(dut, recording), "replay");
    must(ops->record_end(dut, &second), "record_end");
    ops->recording_destroy(dut, recording);
    ops->recording_destroy(dut, second);
    ops->event_destroy(dut, event);
    ops->stream_destroy(dut, stream);
    ops->release(dut, PST_MEMORY_DEVICE, there, sizeof own);
}

/* ---- Memory of the device's own ---- */

enum { WIDE = 20000, FEW = 2, MANY = 60 };

static int find_top(pst_device *device, float *x, uint32_t rows, float *values, uint32_t *columns)
{
    const pst_matrix matrix = {x, PST_F32, rows, WIDE, WIDE};
    return device->ops->top(device, &matrix, 256, values, columns);
}

/* A device of its own, whose scratch memory is as yet small. */
static void test_stale(void **state)
{
    (void)state;
    if (!begin("stale recordings") || (ops_emulator() == NULL && strcmp(ops_name(), "cuda") != 0))
        return; /* another device may have other memory of its own, or none */
    pst_device *before = dut, *device;
    pst_device_recording *with = NULL, *without = NULL;
    float *x, *values, expected[FEW * 256], found[FEW * 256];
    uint32_t *columns;
    must(ops_open(&device, NULL), "open");
    dut = device;
    x = claim(MANY * WIDE * sizeof *x);
    values = claim(MANY * 256 * sizeof *values);
    columns = claim(MANY * 256 * sizeof *columns);
    must(ops->fill(dut, NULL, x, 0x3c, MANY * WIDE * sizeof *x), "fill");
    must(find_top(dut, x, FEW, values, columns), "top");
    get(expected, values, sizeof expected);

    must(ops->record_begin(dut), "record_begin");
    must(find_top(dut, x, FEW, values, columns), "top");
    must(ops->record_end(dut, &with), "record_end");
    must(ops->record_begin(dut), "record_begin");
    must(ops->fill(dut, NULL, values, 0, sizeof found), "fill");
    must(ops->record_end(dut, &without), "record_end");

    /* More than there is cannot be recorded; what was recorded so far is dropped, and all goes on. */
    must(ops->record_begin(dut), "record_begin");
    assert_int_equal(find_top(dut, x, MANY, values, columns), PST_E_UNSUPPORTED);
    must(ops->record_end(dut, NULL), "record_end");
    assert_int_equal(ops->replay(dut, without), 0);
    assert_int_equal(ops->replay(dut, with), 0);
    get(found, values, sizeof found);
    assert_memory_equal(found, expected, sizeof found);

    must(find_top(dut, x, MANY, values, columns), "top"); /* it grows */
    assert_int_equal(ops->replay(dut, with), 1);
    assert_int_equal(ops->replay(dut, without), 0);
    get(found, values, sizeof found);
    assert_true(found[0] == 0 && found[FEW * 256 - 1] == 0);
    ops->recording_destroy(dut, with);
    must(ops->record_begin(dut), "record_begin");
    must(find_top(dut, x, FEW, values, columns), "top");
    must(ops->record_end(dut, &with), "record_end");
    assert_int_equal(ops->replay(dut, with), 0);
    get(found, values, sizeof found);
    assert_memory_equal(found, expected, sizeof found);
    ops->recording_destroy(dut, with);
    ops->recording_destroy(dut, without);

    /* Destroyed while it records. */
    ops->release(dut, PST_MEMORY_DEVICE, x, MANY * WIDE * sizeof *x);
    ops->release(dut, PST_MEMORY_DEVICE, values, MANY * 256 * sizeof *values);
    ops->release(dut, PST_MEMORY_DEVICE, columns, MANY * 256 * sizeof *columns);
    must(ops->record_begin(dut), "record_begin");
    ops->destroy(device);
    dut = before;
}

/* ---- Failures ---- */

static void fail_once(pst_emulated_call call)
{
    ops_emulator()->fail_nth(call, 1);
}

static void test_failures(void **state)
{
    (void)state;
    if (!begin("recordings that fail") || ops_emulator() == NULL)
        return;
    pst_emulated_counts before, after;
    pst_device_recording *recording = NULL;
    float *x = claim(MATRIX_BYTES);
    const pst_matrix m = {x, PST_F32, ROWS, COLUMNS, COLUMNS};
    unsigned char bytes[4];
    ops_emulator()->count(&before);
    must(ops->fill(dut, NULL, x, 0, MATRIX_BYTES), "fill");

    fail_once(PST_EMULATED_GRAPH);
    assert_int_equal(ops->record_begin(dut), -EIO);
    refused(ops->record_end(dut, &recording), "an end without a beginning");
    must(ops->record_begin(dut), "record_begin");
    fail_once(PST_EMULATED_GRAPH);
    assert_int_equal(ops->record_end(dut, &recording), -EIO);
    assert_null(recording);
    must(ops->synchronize(dut, NULL), "synchronize"); /* it no longer records */

    /* A launch that fails is not in it; the others are. */
    must(ops->record_begin(dut), "record_begin");
    must(ops->fill(dut, NULL, x, 0x11, 4), "fill");
    fail_once(PST_EMULATED_LAUNCH);
    assert_int_equal(ops->activate(dut, PST_ACT_RELU, &m, &m), -EIO);
    must(ops->activate(dut, PST_ACT_RELU, &m, &m), "activate");
    must(ops->record_end(dut, &recording), "record_end");
    fail_once(PST_EMULATED_GRAPH);
    assert_int_equal(ops->replay(dut, recording), -EIO);
    get(bytes, x, sizeof bytes);
    assert_int_equal(bytes[0], 0);
    fail_once(PST_EMULATED_COPY_LATER); /* told by who waits, and only then */
    assert_int_equal(ops->replay(dut, recording), 0);
    assert_int_equal(ops->synchronize(dut, NULL), -EIO);
    assert_int_equal(ops->replay(dut, recording), 0);
    get(bytes, x, sizeof bytes);
    assert_int_equal(bytes[0], 0x11);

    ops_emulator()->count(&after);
    assert_int_equal(after.graphs, before.graphs + 1);
    ops->recording_destroy(dut, recording);
    ops_emulator()->count(&after);
    after.most_device_bytes = before.most_device_bytes;
    assert_memory_equal(&after, &before, sizeof after);
    ops->release(dut, PST_MEMORY_DEVICE, x, MATRIX_BYTES);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_runs),  cmocka_unit_test(test_empty),    cmocka_unit_test(test_refused),
        cmocka_unit_test(test_stale), cmocka_unit_test(test_failures),
    };
    return cmocka_run_group_tests_name("recordings of a device", tests, ops_set_up, ops_tear_down);
}
