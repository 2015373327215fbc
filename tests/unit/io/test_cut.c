/* SPDX-License-Identifier: Apache-2.0 */
/* The cutting of operations, over random shapes: every byte once, every direct transfer aligned, nothing too
 * long. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

#include <cmocka.h>

#include "io/cut.h"

static uint64_t state;

static uint64_t below(uint64_t limit)
{
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (z ^ (z >> 31)) % limit;
}

static pst_io_shape random_shape(void)
{
    pst_io_shape shape = {.direct = below(8) != 0, .page_bytes = below(4) != 0 ? 4096 : 65536};
    shape.offset_align = 1u << below(16);
    shape.memory_align = 1u << below(16);
    if (shape.offset_align < shape.memory_align)
        shape.offset_align = shape.memory_align;
    shape.bounce_bytes = 65536u << below(3);
    shape.block_bytes = 4096 * (1 + below(300));
    if (shape.block_bytes < shape.offset_align)
        shape.block_bytes = shape.offset_align;
    if (shape.block_bytes < shape.page_bytes)
        shape.block_bytes = shape.page_bytes;
    return shape;
}

static void check_cut(const pst_io_shape *s, bool write, uintptr_t memory, const pst_io_cut *c, uint64_t from,
                      uint64_t left)
{
    assert_true(c->want > 0 && c->want <= left);
    assert_int_equal(c->start + c->skip, from);
    assert_true(c->skip + c->want <= c->span);
    if (c->bounce) {
        assert_true(c->span <= s->bounce_bytes);
        assert_true(c->direct);
    } else {
        assert_int_equal(c->skip, 0);
        assert_int_equal(c->span, c->want);
        assert_true(c->span <= s->block_bytes);
    }
    if (write)
        assert_int_equal(c->span, c->want); /* never a byte that is not the operation's */
    if (c->direct) {
        assert_true(s->direct);
        uint32_t unit = write && s->page_bytes > s->offset_align ? s->page_bytes : s->offset_align;
        assert_int_equal(c->start % unit, 0);
        assert_int_equal(c->span % unit, 0);
        if (!c->bounce)
            assert_int_equal(memory % s->memory_align, 0);
    } else if (s->direct) {
        assert_true(write); /* only the ragged ends of writes: less than one unit each */
        assert_true(c->span < (s->page_bytes > s->offset_align ? s->page_bytes : s->offset_align));
    }
}

static void test_any_shape(void **unused)
{
    (void)unused;
    for (int round = 0; round < 20000; round++) {
        pst_io_shape shape = random_shape();
        bool write = below(2);
        uint64_t offset = below(4) != 0 ? below(1 << 22) : below(1 << 10) * shape.offset_align;
        uint64_t bytes = 1 + below(below(2) != 0 ? 1 << 22 : 1 << 14);
        uintptr_t address = 0x10000000 + (below(2) != 0 ? below(1 << 16) : offset % shape.offset_align);
        uint64_t at = 0, bounced = 0, pieces = 0;
        while (at < bytes) {
            pst_io_cut c = pst_io_cut_next(&shape, write, offset, bytes, address, at);
            check_cut(&shape, write, address + at, &c, offset + at, bytes - at);
            at += c.want;
            bounced += c.bounce ? c.want : 0;
            pieces++;
        }
        assert_int_equal(at, bytes);
        /* Where the address fits, only edges (or a small operation) are bounced. */
        if (shape.direct && (address - offset) % shape.memory_align == 0 && bytes > 65536)
            assert_true(bounced <= 2 * (uint64_t)shape.offset_align);
        assert_true(pieces <= bytes / 4096 + 4);
    }
}

/* Aligned operations travel in whole blocks without a bounce. */
static void test_aligned(void **unused)
{
    (void)unused;
    pst_io_shape shape = {true, 512, 512, 4096, 262144, 1 << 20};
    for (int write = 0; write < 2; write++) {
        uint64_t at = 0, bytes = 10 * (1 << 20) + 4096;
        for (unsigned piece = 0; at < bytes; piece++) {
            pst_io_cut c = pst_io_cut_next(&shape, write != 0, 8192, bytes, 0x200000, at);
            assert_true(c.direct && !c.bounce);
            assert_int_equal(c.span, piece < 10 ? 1 << 20 : 4096);
            at += c.want;
        }
    }
}

/* A row of a table that lies anywhere: one transfer. */
static void test_small_read(void **unused)
{
    (void)unused;
    pst_io_shape shape = {true, 4096, 512, 4096, 262144, 1 << 20};
    pst_io_cut c = pst_io_cut_next(&shape, false, 4000, 8192, 0x200010, 0);
    assert_int_equal(c.want, 8192);
    assert_int_equal(c.start, 0);
    assert_int_equal(c.span, 12288);
    c = pst_io_cut_next(&shape, false, 4000, 8192, 0x200000 + 4000, 0);
    assert_int_equal(c.want, 8192);
}

int main(void)
{
    const char *given = getenv("PST_TEST_SEED");
    state = given != NULL ? strtoull(given, NULL, 0) : (uint64_t)time(NULL);
    print_message("seed: PST_TEST_SEED=%llu\n", (unsigned long long)state);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_shape),
        cmocka_unit_test(test_aligned),
        cmocka_unit_test(test_small_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
