/* SPDX-License-Identifier: Apache-2.0 */
/* Operands, their memory on both devices, and the driver; see ops.h. */
#include "device/ops.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/error.h"

enum { GUARD_BYTES = 256, GUARD = 0xa5, MAX_BUFFERS = 96 };

typedef struct point {
    size_t offset, addend;
    const ops_buffer *to;
} point;

struct ops_buffer {
    size_t bytes, align, shift; /* shift: of the operand from the first guard's end */
    bool is_output, placed;
    unsigned char *before; /* what the case made */
    unsigned char *sent;   /* what went to the device: addresses filled in */
    unsigned char *first;  /* what the first run left there */
    unsigned char *after;  /* what the last one did, with guards and shift */
    unsigned char *host;   /* the host's, with guards */
    unsigned char *memory; /* the device's, with guards and shift */
    point *points;
    size_t point_count;
};

static ops_buffer *buffers[MAX_BUFFERS];
static size_t buffer_count;

static size_t total_bytes(const ops_buffer *b)
{
    return b->shift + b->bytes + 2 * GUARD_BYTES;
}

static void *claim(size_t bytes)
{
    void *memory = malloc(bytes > 0 ? bytes : 1);
    assert_non_null(memory);
    return memory;
}

static ops_buffer *make(const void *bytes, size_t count, size_t align, bool is_output)
{
    assert_true(buffer_count < MAX_BUFFERS);
    ops_buffer *b = calloc(1, sizeof *b);
    assert_non_null(b);
    buffers[buffer_count++] = b;
    b->bytes = count;
    b->align = align;
    b->is_output = is_output;
    b->before = claim(count);
    b->sent = claim(count);
    if (bytes != NULL)
        memcpy(b->before, bytes, count);
    else
        memset(b->before, 0xff, count);
    return b;
}

ops_buffer *ops_input(const void *bytes, size_t count, size_t align)
{
    return make(bytes, count, align, false);
}

ops_buffer *ops_output(const void *bytes, size_t count, size_t align)
{
    return make(bytes, count, align, true);
}

ops_buffer *ops_array(const ref_array *array, size_t align)
{
    if (array->data == NULL)
        return NULL;
    return make(array->data, array->count * ref_bytes(array->type), align, false);
}

void ops_points(ops_buffer *buffer, size_t offset, const ops_buffer *to, size_t addend)
{
    buffer->points = realloc(buffer->points, (buffer->point_count + 1) * sizeof *buffer->points);
    assert_non_null(buffer->points);
    buffer->points[buffer->point_count++] = (point){offset, addend, to};
}

void *ops_at(const ops_buffer *b, ops_side side)
{
    if (b == NULL)
        return NULL;
    return side == OPS_HOST ? b->host + GUARD_BYTES : b->memory + GUARD_BYTES + b->shift;
}

const unsigned char *ops_result(const ops_buffer *b, ops_side side)
{
    return side == OPS_HOST ? b->host + GUARD_BYTES : b->after + GUARD_BYTES + b->shift;
}

const unsigned char *ops_before(const ops_buffer *b)
{
    return b->before;
}

void ops_change(ops_buffer *b, size_t offset, const void *bytes, size_t count)
{
    assert_true(!b->is_output && offset + count <= b->bytes);
    memcpy(b->before + offset, bytes, count);
}

double ops_get(const ops_buffer *b, ops_side side, pst_dtype type, size_t index)
{
    const ref_array all = {.data = (void *)(uintptr_t)ops_result(b, side), .type = type};
    if (type != PST_F64)
        return ref_get(&all, index);
    double value;
    memcpy(&value, (const char *)all.data + 8 * index, 8);
    return value;
}

static void fill_in(const ops_buffer *b, ops_side side, unsigned char *bytes)
{
    memcpy(bytes, b->before, b->bytes);
    for (size_t i = 0; i < b->point_count; i++) {
        const void *address = (const char *)ops_at(b->points[i].to, side) + b->points[i].addend;
        memcpy(bytes + b->points[i].offset, &address, sizeof address);
    }
}

/* Once: what the host gave stays. Addresses point to operands that were made earlier. */
static void place_on_host(ops_buffer *b)
{
    void *memory = NULL;
    if (b->host != NULL)
        return;
    assert_int_equal(posix_memalign(&memory, 64, b->bytes + 2 * GUARD_BYTES), 0);
    b->host = memory;
    memset(b->host, GUARD, b->bytes + 2 * GUARD_BYTES);
    fill_in(b, OPS_HOST, b->host + GUARD_BYTES);
}

/* Anywhere that its alignment allows. */
static void place_on_device(ops_buffer *b)
{
    pst_device *device = ops_device(OPS_DEVICE);
    if (b->placed)
        device->ops->release(device, PST_MEMORY_DEVICE, b->memory, total_bytes(b));
    b->placed = false;
    b->shift = b->align >= 256 ? b->align * ref_between(0, 1) : b->align * ref_between(0, 256 / b->align - 1);
    void *memory = NULL;
    assert_int_equal(device->ops->allocate(device, PST_MEMORY_DEVICE, total_bytes(b), &memory), 0);
    assert_int_equal((uintptr_t)memory % 256, 0);
    b->memory = memory;
    b->placed = true;
    free(b->after);
    b->after = claim(total_bytes(b));
    memset(b->after, GUARD, total_bytes(b));
}

static void send(ops_buffer *b)
{
    pst_device *device = ops_device(OPS_DEVICE);
    fill_in(b, OPS_DEVICE, b->sent);
    memcpy(b->after + GUARD_BYTES + b->shift, b->sent, b->bytes);
    assert_int_equal(device->ops->copy(device, NULL, b->memory, b->after, total_bytes(b)), 0);
}

void ops_place(void)
{
    pst_device *device = ops_device(OPS_DEVICE);
    for (size_t i = 0; i < buffer_count; i++) {
        place_on_host(buffers[i]);
        place_on_device(buffers[i]);
    }
    for (size_t i = 0; i < buffer_count; i++)
        send(buffers[i]);
    assert_int_equal(device->ops->synchronize(device, NULL), 0);
}

static void check_guards(const unsigned char *memory, size_t before, size_t bytes, const char *text)
{
    for (size_t i = 0; i < before; i++)
        if (memory[i] != GUARD)
            fail_msg("%s: byte -%zu of an operand was written", text, before - i);
    for (size_t i = 0; i < GUARD_BYTES; i++)
        if (memory[before + bytes + i] != GUARD)
            fail_msg("%s: byte %zu behind an operand of %zu was written", text, i, bytes);
}

void ops_collect(const char *text)
{
    pst_device *device = ops_device(OPS_DEVICE);
    const int status = device->ops->synchronize(device, NULL);
    if (status < 0)
        fail_msg("%s: synchronize: %s (%s)", text, pst_strerror(status), device->ops->last_error(device));
    for (size_t i = 0; i < buffer_count; i++) {
        ops_buffer *b = buffers[i];
        memset(b->after, 0x11, total_bytes(b));
        assert_int_equal(device->ops->copy(device, NULL, b->after, b->memory, total_bytes(b)), 0);
    }
    assert_int_equal(device->ops->synchronize(device, NULL), 0);
    for (size_t i = 0; i < buffer_count; i++) {
        const ops_buffer *b = buffers[i];
        check_guards(b->after, GUARD_BYTES + b->shift, b->bytes, text);
        check_guards(b->host, GUARD_BYTES, b->bytes, text);
        if (!b->is_output && memcmp(b->after + GUARD_BYTES + b->shift, b->sent, b->bytes) != 0)
            fail_msg("%s: an input was written", text);
    }
}

void ops_free(void)
{
    pst_device *device = ops_device(OPS_DEVICE);
    for (size_t i = 0; i < buffer_count; i++) {
        ops_buffer *b = buffers[i];
        if (b->placed)
            device->ops->release(device, PST_MEMORY_DEVICE, b->memory, total_bytes(b));
        free(b->before);
        free(b->sent);
        free(b->first);
        free(b->after);
        free(b->host);
        free(b->points);
        free(b);
    }
    buffer_count = 0;
}

/* ---- Matrices ---- */

static ops_matrix shape(pst_dtype type, size_t rows, size_t columns)
{
    const size_t line = 64 / ref_bytes(type);
    ops_matrix m = {.type = type, .rows = rows, .columns = columns, .stride = columns};
    if (ref_between(0, 1))
        m.stride = (columns + line - 1) / line * line + line * ref_between(0, 1);
    else
        m.stride += ref_between(0, 7);
    return m;
}

static size_t align_of(const ops_matrix *m)
{
    return m->stride * ref_bytes(m->type) % 64 == 0 ? 64 : ref_bytes(m->type);
}

/* Of the matrix, its last row's gap included. */
static size_t bytes_of(const ops_matrix *m)
{
    return m->rows * m->stride * ref_bytes(m->type);
}

ops_matrix ops_given(const ref_array *values, size_t rows, size_t columns)
{
    ops_matrix m = shape(values->type, rows, columns);
    const size_t element = ref_bytes(m.type);
    m.buffer = ops_output(NULL, bytes_of(&m), align_of(&m));
    m.buffer->is_output = false;
    for (size_t r = 0; r < rows; r++)
        memcpy(m.buffer->before + r * m.stride * element, (const char *)values->data + r * columns * element,
               columns * element);
    return m;
}

ops_matrix ops_random(pst_dtype type, size_t rows, size_t columns, double scale)
{
    ref_array values = ref_randoms(type, rows * columns, 0, scale);
    const ops_matrix m = ops_given(&values, rows, columns);
    ref_free(&values);
    return m;
}

ops_matrix ops_poisoned(pst_dtype type, size_t rows, size_t columns)
{
    ops_matrix m = shape(type, rows, columns);
    m.buffer = ops_output(NULL, bytes_of(&m), align_of(&m));
    return m;
}

void ops_writes(ops_matrix *m)
{
    m->buffer->is_output = true;
}

pst_matrix ops_rows(const ops_matrix *m, ops_side side, size_t first, size_t rows)
{
    return (pst_matrix){.data = (char *)ops_at(m->buffer, side) + first * m->stride * ref_bytes(m->type),
                        .type = m->type,
                        .rows = rows,
                        .columns = m->columns,
                        .stride = m->stride};
}

double ops_was(const ops_matrix *m, size_t row, size_t column)
{
    const ref_array all = {.data = m->buffer->before, .type = m->type};
    return ref_get(&all, row * m->stride + column);
}

ops_weight ops_plain(const ref_array *values, size_t rows, size_t columns)
{
    return (ops_weight){.data = ops_array(values, 256), .type = values->type, .rows = rows, .columns = columns};
}

pst_weight ops_weight_at(const ops_weight *w, ops_side side)
{
    return (pst_weight){.data = ops_at(w->data, side), .type = w->type, .rows = w->rows, .columns = w->columns};
}

void ops_near(const ops_matrix *y, size_t row, size_t column, double expected, double limit, const char *text)
{
    if (y->type == PST_BF16) /* and half of the smallest */
        limit += BF16_ROUNDING * (fabs(expected) + limit) + 0x1p-134;
    for (int side = OPS_DEVICE; side <= OPS_HOST; side++) {
        const double got = ops_get(y->buffer, (ops_side)side, y->type, row * y->stride + column);
        const bool fine = isnan(expected) ? isnan(got) : got == expected || fabs(got - expected) <= limit;
        if (!fine)
            fail_msg("%s: %s gives [%zu][%zu] = %.9g, expected %.9g within %.3g", text,
                     side == OPS_HOST ? "the host" : "the device", row, column, got, expected, limit);
    }
}

void ops_same_as_host(const ops_buffer *b, const char *text)
{
    const unsigned char *mine = ops_result(b, OPS_DEVICE), *other = ops_result(b, OPS_HOST);
    for (size_t i = 0; i < b->bytes; i++)
        if (mine[i] != other[i])
            fail_msg("%s: byte %zu of %zu is %02x, the host's %02x (before: %02x)", text, i, b->bytes, mine[i],
                     other[i], b->before[i]);
}

void ops_check_gaps(const ops_matrix *y, const char *text)
{
    const size_t element = ref_bytes(y->type);
    for (int side = OPS_DEVICE; side <= OPS_HOST; side++) {
        const unsigned char *got = ops_result(y->buffer, (ops_side)side);
        for (size_t r = 0; r < y->rows; r++) {
            const size_t gap = (r * y->stride + y->columns) * element, bytes = (y->stride - y->columns) * element;
            if (memcmp(got + gap, y->buffer->before + gap, bytes) != 0)
                fail_msg("%s: the gap behind row %zu was written", text, r);
        }
    }
}

/* ---- The driver ---- */

void ops_keep(void)
{
    for (size_t i = 0; i < buffer_count; i++) {
        ops_buffer *b = buffers[i];
        if (!b->is_output || b->first != NULL)
            continue;
        b->first = claim(b->bytes);
        memcpy(b->first, ops_result(b, OPS_DEVICE), b->bytes);
    }
}

const unsigned char *ops_kept(const ops_buffer *b)
{
    return b->first;
}

void ops_same_as_first(const char *what, const char *text)
{
    for (size_t i = 0; i < buffer_count; i++) {
        const ops_buffer *b = buffers[i];
        if (!b->is_output || b->first == NULL)
            continue;
        const unsigned char *now = ops_result(b, OPS_DEVICE);
        for (size_t n = 0; n < b->bytes; n++)
            if (now[n] != b->first[n])
                fail_msg("%s: other bits %s (byte %zu of %zu)", text, what, n, b->bytes);
    }
}

static void run(const ops_test *test, void *c, ops_side side, size_t first, size_t rows, const char *text)
{
    pst_device *device = ops_device(side);
    const int status = test->run(c, device, side, first, rows);
    if (status < 0)
        fail_msg("%s: %s of %s: %s (%s)", text, test->name, side == OPS_HOST ? "the host" : "the device",
                 pst_strerror(status), device->ops->last_error(device));
}

void ops_repeat(const ops_test *test, void *c, size_t rows, bool in_parts, const char *what, const char *text)
{
    ops_place();
    for (size_t first = 0, part; first < rows; first += part) {
        part = in_parts ? ref_between(1, rows - first) : rows;
        run(test, c, OPS_DEVICE, first, part, text);
    }
    ops_collect(text);
    ops_same_as_first(what, text);
}

static void check_untouched(const char *text)
{
    for (size_t i = 0; i < buffer_count; i++)
        if (memcmp(ops_result(buffers[i], OPS_DEVICE), buffers[i]->sent, buffers[i]->bytes) != 0)
            fail_msg("%s: something was written", text);
}

/* Noted, not carried out; then carried out twice, with what the host said gone. */
static void repeat_recorded(const ops_test *test, void *c, size_t rows, const char *text)
{
    pst_device *device = ops_device(OPS_DEVICE);
    pst_device_recording *recording = NULL;
    ops_place();
    int status = device->ops->record_begin(device);
    if (status == PST_E_UNSUPPORTED)
        return;
    assert_int_equal(status, 0);
    run(test, c, OPS_DEVICE, 0, rows, text);
    status = device->ops->record_end(device, &recording);
    if (status < 0)
        fail_msg("%s: record_end: %s (%s)", text, pst_strerror(status), device->ops->last_error(device));
    ops_collect(text);
    check_untouched(text);
    for (int i = 0; i < 2; i++) {
        for (size_t b = 0; i > 0 && b < buffer_count; b++)
            send(buffers[b]);
        assert_int_equal(device->ops->replay(device, recording), 0);
        ops_collect(text);
        ops_same_as_first("when replayed", text);
    }
    device->ops->recording_destroy(device, recording);
}

static void one_case(const ops_test *test, void *c, size_t number)
{
    char text[600], about[400] = "";
    memset(c, 0, test->case_bytes);
    const size_t rows = test->make(c, number, about, sizeof about);
    snprintf(text, sizeof text, "%s, %s case %zu: %s", ops_name(), test->name, number, about);
    ops_place();
    run(test, c, OPS_HOST, 0, rows, text);
    run(test, c, OPS_DEVICE, 0, rows, text);
    ops_collect(text);
    test->check(c, text);
    ops_keep();
    if (ref_between(0, 2) == 0)
        ops_repeat(test, c, rows, false, "when memory moves", text);
    if (test->rows_alone && rows > 1 && ref_between(0, 1))
        ops_repeat(test, c, rows, true, "when rows come in parts", text);
    if (ref_between(0, 2) == 0)
        repeat_recorded(test, c, rows, text);
    if (test->more != NULL)
        test->more(c, text);
    ops_free();
    if (test->clear != NULL)
        test->clear(c);
}

/* A call without rows is fine and writes nothing. */
static void no_rows(const ops_test *test, void *c)
{
    char text[600], about[400] = "";
    memset(c, 0, test->case_bytes);
    (void)test->make(c, 0, about, sizeof about);
    snprintf(text, sizeof text, "%s, %s of no rows: %s", ops_name(), test->name, about);
    ops_place();
    run(test, c, OPS_DEVICE, 0, 0, text);
    ops_collect(text);
    check_untouched(text);
    ops_free();
    if (test->clear != NULL)
        test->clear(c);
}

void ops_drive(const ops_test *test)
{
    if (!ops_begin(test->name))
        return;
    void *c = claim(test->case_bytes);
    const size_t cases = ops_cases(test->cases);
    for (size_t i = 0; i < cases; i++)
        one_case(test, c, i);
    if (test->rows_alone)
        no_rows(test, c);
    free(c);
}
