/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Slices of random tensors against a loop over their elements: any strides (none, overlapping, a transpose), any
 * limits of what a span may have. Around what is copied lie bytes that must stay.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "ckpt/slice.h"
#include "store/safetensors.h"
#include "support/random.h"

enum { FILE_BYTES = 3 << 20, GUARD = 64, BASE = 1000 };

static unsigned char *file_bytes, *expected, *got;

static int set_up(void **state)
{
    (void)state;
    random_start("test_slice");
    file_bytes = malloc(FILE_BYTES);
    expected = malloc(FILE_BYTES + 2 * GUARD);
    got = malloc(FILE_BYTES + 2 * GUARD);
    for (size_t i = 0; i < FILE_BYTES; i++)
        file_bytes[i] = (unsigned char)random_below(256);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    free(file_bytes);
    free(expected);
    free(got);
    return 0;
}

typedef struct tensor {
    pst_slice slice;
    uint64_t shape[PST_MAX_RANK], start[PST_MAX_RANK], stop[PST_MAX_RANK];
    int64_t strides[PST_MAX_RANK];
} tensor;

/* Elements from the first to the last that it touches. */
static uint64_t reach_of(const tensor *t)
{
    uint64_t reach = 1;
    for (uint32_t d = 0; d < t->slice.rank; d++)
        reach += t->shape[d] > 0 ? (t->shape[d] - 1) * (uint64_t)t->strides[d] : 0;
    return reach;
}

static void make_strides(tensor *t, int kind)
{
    uint32_t order[PST_MAX_RANK], rank = t->slice.rank;
    for (uint32_t d = 0; d < rank; d++)
        order[d] = d;
    for (uint32_t d = 0; d < rank && kind > 0; d++) {
        uint32_t other = (uint32_t)random_below(rank), kept = order[d];
        order[d] = order[other];
        order[other] = kept;
    }
    int64_t step = 1;
    for (uint32_t i = rank; i-- > 0;) {
        uint32_t d = order[i];
        if (kind == 2 && random_below(3) == 0) { /* expanded, or overlapping */
            t->strides[d] = (int64_t)random_below(4);
            continue;
        }
        if (kind > 0 && random_below(3) == 0)
            step *= (int64_t)(1 + random_below(5)); /* a gap */
        t->strides[d] = step;
        step *= (int64_t)(t->shape[d] ? t->shape[d] : 1);
    }
}

/* At least one that fits the file. */
static void make_tensor(tensor *t)
{
    static const pst_dtype types[] = {PST_U8, PST_BF16, PST_F32, PST_F64, PST_C128};
    for (;;) {
        *t = (tensor){0};
        int kind = (int)random_below(3);
        t->slice.dtype = types[random_below(5)];
        t->slice.rank = (uint32_t)random_below(6);
        uint64_t most = UINT64_C(1) << (1 + random_below(t->slice.rank == 1 ? 18 : 9));
        for (uint32_t d = 0; d < t->slice.rank; d++)
            t->shape[d] = random_below(10) == 0 ? random_below(2) : 1 + random_below(most);
        make_strides(t, kind);
        uint64_t bytes, element = pst_dtype_bits(t->slice.dtype) / 8;
        if (pst_tensor_shape_bytes(t->slice.dtype, t->shape, t->slice.rank, &bytes) < 0 || bytes > FILE_BYTES / 2 ||
            reach_of(t) > (FILE_BYTES - BASE) / element)
            continue;
        for (uint32_t d = 0; d < t->slice.rank; d++) {
            uint64_t a = random_below(t->shape[d] + 1), b = random_below(t->shape[d] + 1);
            bool all = random_below(3) == 0;
            t->start[d] = all ? 0 : a < b ? a : b;
            t->stop[d] = all ? t->shape[d] : a < b ? b : a;
        }
        t->slice.strides = kind > 0 ? t->strides : NULL;
        t->slice.offset = random_below(BASE);
        return;
    }
}

static uint64_t copy_elements(const tensor *t, unsigned char *out)
{
    uint64_t element = pst_dtype_bits(t->slice.dtype) / 8, at[PST_MAX_RANK], written = 0;
    for (uint32_t d = 0; d < t->slice.rank; d++) {
        at[d] = t->start[d];
        if (t->start[d] == t->stop[d])
            return 0;
    }
    for (;;) {
        uint64_t place = 0;
        for (uint32_t d = 0; d < t->slice.rank; d++)
            place += at[d] * (uint64_t)t->strides[d];
        memcpy(out + written, file_bytes + t->slice.offset + place * element, element);
        written += element;
        uint32_t d = t->slice.rank;
        while (d > 0 && ++at[d - 1] == t->stop[d - 1]) {
            at[d - 1] = t->start[d - 1];
            d--;
        }
        if (d == 0)
            return written;
    }
}

static void walk(const pst_box *box, const pst_walk_limits *limits)
{
    pst_walk w;
    pst_stretch s;
    pst_walk_begin(&w, box, limits);
    while (pst_walk_next(&w, &s)) {
        assert_true(s.bytes > 0 && s.offset + s.bytes <= FILE_BYTES);
        assert_true(s.bytes <= (s.straight ? limits->straight : limits->most));
        if (s.straight) {
            assert_int_equal(((uintptr_t)s.out - s.offset) % limits->alignment, 0);
            memcpy(s.out, file_bytes + s.offset, s.bytes);
        } else {
            unsigned char *copy = malloc(s.bytes); /* not a byte beyond it is touched */
            memcpy(copy, file_bytes + s.offset, s.bytes);
            pst_box_copy(box, &s, copy);
            free(copy);
        }
    }
}

/* Whole, then in parts, which a long one is shared in. */
static void walk_parts(const pst_box *box, const pst_walk_limits *limits)
{
    uint64_t parts = pst_box_parts(box), begin = 0;
    while (begin < parts) {
        pst_box part = *box;
        uint64_t end = begin + 1 + random_below(parts - begin);
        pst_box_cut(&part, begin, end);
        walk(&part, limits);
        begin = end;
    }
}

static void test_random_slices(void **state)
{
    (void)state;
    for (int round = 0; round < 1500; round++) {
        tensor t;
        make_tensor(&t);
        memset(got, 0x5a, FILE_BYTES + 2 * GUARD);
        memset(expected, 0x5a, FILE_BYTES + 2 * GUARD);
        uint64_t bytes = copy_elements(&t, expected + GUARD);
        t.slice.shape = t.shape;
        t.slice.start = t.start;
        t.slice.stop = t.stop;
        t.slice.out = got + GUARD;
        pst_box box;
        const pst_walk_limits limits = {.most = (UINT64_C(66) << 10) + random_below(300000),
                                        .straight = 100000 + random_below(1 << 20),
                                        .alignment = 1u << random_below(10)};
        int status = pst_box_make(&t.slice, &box, NULL);
        assert_int_equal(status, bytes > 0);
        if (status > 0) {
            assert_int_equal(pst_box_bytes(&box), bytes);
            if (random_below(2))
                walk(&box, &limits);
            else
                walk_parts(&box, &limits);
        }
        if (memcmp(got, expected, bytes + 2 * GUARD) != 0)
            fail_msg("round %d differs", round);
    }
}

/* How much is read for what: neighbours are read together, far ones apart. */
static void test_spans(void **state)
{
    (void)state;
    static const struct {
        uint64_t rows, columns, start, stop; /* of bytes; columns [start, stop) are wanted */
        uint64_t spans;
    } cases[] = {
        {1000, 1000, 0, 1000, 10}, /* all: one run */
        {1000, 1000, 10, 11, 10},  /* a column of near ones: whole ranges */
        {50, 60000, 10, 11, 50},   /* of far ones: each by itself */
        {4, 100000, 0, 70000, 4},  /* long runs */
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const uint64_t shape[2] = {cases[i].rows, cases[i].columns}, start[2] = {0, cases[i].start};
        const uint64_t stop[2] = {cases[i].rows, cases[i].stop};
        const pst_slice slice = {.dtype = PST_U8, .rank = 2, .shape = shape, .start = start, .stop = stop, .out = got};
        const pst_walk_limits limits = {.most = 100000, .straight = 100000, .alignment = 1};
        pst_box box;
        pst_walk w;
        pst_stretch s;
        uint64_t spans = 0;
        assert_int_equal(pst_box_make(&slice, &box, NULL), 1);
        for (pst_walk_begin(&w, &box, &limits); pst_walk_next(&w, &s);)
            spans++;
        assert_in_range(spans, cases[i].spans, cases[i].spans + 1);
    }
}

/* Elements of half a byte: whole ones, and slices at whole bytes. */
static void test_small_elements(void **state)
{
    (void)state;
    const uint64_t shape[2] = {6, 10}, stops[2] = {4, 10}, starts[2] = {2, 0}, inner[2] = {0, 3}, end[2] = {6, 7};
    pst_slice slice = {.dtype = PST_F4, .rank = 2, .shape = shape, .offset = 5, .out = got};
    pst_box box;
    pst_error err = {0};
    assert_int_equal(pst_box_make(&slice, &box, &err), 1);
    assert_int_equal(box.run, 30);
    slice.start = starts;
    slice.stop = stops;
    assert_int_equal(pst_box_make(&slice, &box, &err), 1);
    assert_int_equal(box.run, 10);
    assert_int_equal(box.offset, 15);
    slice.start = inner;
    slice.stop = end;
    assert_int_equal(pst_box_make(&slice, &box, &err), PST_E_UNSUPPORTED);
    assert_non_null(strstr(err.message, "F4"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_slices),
        cmocka_unit_test(test_spans),
        cmocka_unit_test(test_small_elements),
    };
    return cmocka_run_group_tests_name("slices", tests, set_up, tear_down);
}
