/* SPDX-License-Identifier: Apache-2.0 */
/* The cutting of operations, over random shapes: every byte once, every direct transfer aligned, nothing too
 * long. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "io/cut.h"
#include "support/random.h"

static pst_io_shape random_shape(void)
{
    pst_io_shape shape = {.direct = random_below(8) != 0, .page_bytes = random_below(4) != 0 ? 4096 : 65536};
    shape.offset_align = 1u << random_below(16);
    shape.memory_align = 1u << random_below(16);
    if (shape.offset_align < shape.memory_align)
        shape.offset_align = shape.memory_align;
    shape.bounce_bytes = 65536u << random_below(3);
    shape.block_bytes = 4096 * (1 + random_below(300));
    if (shape.block_bytes < shape.offset_align)
        shape.block_bytes = shape.offset_align;
    if (shape.block_bytes < shape.page_bytes)
        shape.block_bytes = shape.page_bytes;
    return shape;
}

static void check_cut(const pst_io_shape *s, bool write, const pst_io_spot *spot, const pst_io_cut *c, uint64_t from,
                      uint64_t left)
{
    uint32_t unit = write && s->page_bytes > s->offset_align ? s->page_bytes : s->offset_align;
    assert_true(c->want > 0 && c->want <= left);
    assert_int_equal(c->start + c->skip, from);
    assert_true(c->skip + c->want <= c->span);
    if (c->bounce) {
        assert_true(c->span <= s->bounce_bytes);
    } else {
        assert_int_equal(c->skip, 0);
        assert_int_equal(c->span, c->want);
        assert_true(c->span <= s->block_bytes);
        /* All of it lies in a row. */
        pst_io_spot at = *spot;
        for (uint64_t done = 0; done < c->span;) {
            assert_ptr_equal(pst_io_spot_address(&at), pst_io_spot_address(spot) + done);
            uint64_t part = at.segments[at.index].bytes - at.at;
            done += part;
            if (done < c->span)
                pst_io_spot_skip(&at, part);
        }
    }
    if (write || !c->direct)
        assert_int_equal(c->span, c->want); /* never a byte that is not the operation's */
    if (c->direct) {
        assert_true(s->direct);
        assert_int_equal(c->start % unit, 0);
        assert_int_equal(c->span % unit, 0);
        if (!c->bounce)
            assert_int_equal((uintptr_t)pst_io_spot_address(spot) % s->memory_align, 0);
    } else if (s->direct) {
        assert_true(write); /* only the ragged ends of writes: less than one unit each */
        assert_true(c->span < unit);
    }
}

static void test_any_shape(void **unused)
{
    (void)unused;
    for (int round = 0; round < 20000; round++) {
        pst_io_shape shape = random_shape();
        bool write = random_below(2);
        uint64_t offset = random_below(4) != 0 ? random_below(1 << 22) : random_below(1 << 10) * shape.offset_align;
        uint64_t bytes = 1 + random_below(random_below(2) != 0 ? 1 << 22 : 1 << 14);
        uintptr_t address = 0x10000000 + (random_below(2) != 0 ? random_below(1 << 16) : offset % shape.offset_align);
        pst_io_segment whole = {.memory = (void *)address, .bytes = bytes};
        pst_io_spot spot = pst_io_spot_first(&whole, 1);
        uint64_t at = 0, bounced = 0, pieces = 0;
        while (at < bytes) {
            pst_io_cut c = pst_io_cut_next(&shape, write, offset + at, bytes - at, &spot);
            check_cut(&shape, write, &spot, &c, offset + at, bytes - at);
            pst_io_spot_skip(&spot, c.want);
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

/* Segments of one kind of size after another: tiny, small, large; in a row in memory now and then. Returns the bytes;
 * their addresses are never touched. */
static uint64_t random_segments(pst_io_segment *segments, uint32_t count, uint32_t align)
{
    uint64_t bytes = 0, kind = random_below(4);
    uintptr_t end = 0x10000000;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t size = kind == 0   ? random_below(40)
                        : kind == 1 ? random_below(3000)
                        : kind == 2 ? 4096 * random_below(9)
                                    : random_below(300000);
        if (random_below(10) == 0)
            kind = random_below(4);
        if (random_below(3) != 0)
            end = random_below(2) != 0 ? (end / align + 2) * align : end + 1 + random_below(5000);
        segments[i] = (pst_io_segment){.memory = size > 0 ? (void *)end : NULL, .bytes = size};
        end += size;
        bytes += size;
    }
    return bytes;
}

/* Any segments: the same promises, no more transfers than bytes and long stretches ask for, and every part that is
 * long and lies right goes straight. */
static void test_any_segments(void **unused)
{
    (void)unused;
    enum { SEGMENTS = 400, STRAIGHT = 16384 };
    static pst_io_segment segments[SEGMENTS];
    for (int round = 0; round < 3000; round++) {
        pst_io_shape shape = random_shape();
        bool write = random_below(2);
        uint32_t count = 1 + (uint32_t)random_below(SEGMENTS);
        uint64_t bytes = random_segments(segments, count, shape.memory_align);
        uint64_t offset = random_below(2) != 0 ? random_below(1 << 22) : random_below(1 << 10) * shape.offset_align;
        uint64_t at = 0, bounced = 0, straight = 0, runs = 1;
        pst_io_spot spot = pst_io_spot_first(segments, count);
        while (at < bytes) {
            uint64_t left = bytes - at;
            if (random_below(8) == 0) { /* a run of a striped file ends */
                left = 1 + random_below(left);
                runs++;
            }
            pst_io_cut c = pst_io_cut_next(&shape, write, offset + at, left, &spot);
            check_cut(&shape, write, &spot, &c, offset + at, left);
            uint64_t unit = shape.page_bytes > shape.offset_align ? shape.page_bytes : shape.offset_align;
            bool whole_block = c.span + unit > shape.block_bytes; /* and block sizes are as small as a page */
            bool ragged = shape.direct && !c.direct;
            assert_true(c.bounce || ragged || whole_block || c.span >= STRAIGHT || c.span + unit > left);
            pst_io_spot_skip(&spot, c.want);
            at += c.want;
            bounced += c.bounce;
            straight += !c.bounce;
        }
        assert_true(spot.index == count && spot.at == 0);
        /* A bounced transfer ends because its buffer is full, before a straight one, or with a run. */
        assert_true(bounced <= 2 * bytes / shape.bounce_bytes + straight + 3 * runs);
    }
}

/* Ten thousand tiny segments are as many transfers as bounce buffers hold them, direct where they cover whole units,
 * and an aligned body between two ragged ends goes straight. */
static void test_gathered(void **unused)
{
    (void)unused;
    enum { COUNT = 10240, PIECE = 100 };
    pst_io_shape shape = {true, 512, 512, 4096, 262144, 1 << 20};
    static pst_io_segment tiny[COUNT];
    for (int i = 0; i < COUNT; i++)
        tiny[i] = (pst_io_segment){.memory = (void *)(uintptr_t)(0x100000 + i * 2 * PIECE), .bytes = PIECE};
    for (int write = 0; write < 2; write++) {
        pst_io_spot spot = pst_io_spot_first(tiny, COUNT);
        uint64_t at = 0, bytes = (uint64_t)COUNT * PIECE, pieces = 0;
        for (; at < bytes; pieces++) {
            pst_io_cut c = pst_io_cut_next(&shape, write != 0, at, bytes - at, &spot);
            assert_true(c.bounce && c.direct);
            pst_io_spot_skip(&spot, c.want);
            at += c.want;
        }
        assert_int_equal(pieces, 4); /* 1000 KiB by 256 */
    }
    const pst_io_segment mixed[3] = {{(void *)0x10001, 100}, {(void *)(0x200000 + 100), 300000}, {(void *)0x30001, 50}};
    pst_io_spot spot = pst_io_spot_first(mixed, 3);
    pst_io_cut c = pst_io_cut_next(&shape, false, 0, 300150, &spot);
    assert_true(c.bounce && c.want == 512);
    pst_io_spot_skip(&spot, c.want);
    c = pst_io_cut_next(&shape, false, 512, 300150 - 512, &spot);
    assert_true(!c.bounce && c.direct);
    assert_int_equal(c.want, (300100 - 512) / 512 * 512);
    pst_io_spot_skip(&spot, c.want);
    c = pst_io_cut_next(&shape, false, 512 + c.want, 300150 - 512 - c.want, &spot);
    assert_true(c.bounce);
    assert_int_equal(c.want, 300150 - 512 - (300100 - 512) / 512 * 512);
}

/* Copies through spots, over empty segments too. */
static void test_copies(void **unused)
{
    (void)unused;
    char memory[40], flat[32], back[40];
    for (int i = 0; i < 40; i++)
        memory[i] = (char)i;
    const pst_io_segment parts[5] = {{NULL, 0}, {memory + 20, 7}, {NULL, 0}, {memory + 3, 9}, {NULL, 0}};
    pst_io_spot spot = pst_io_spot_first(parts, 5);
    pst_io_spot_skip(&spot, 2);
    pst_io_spot_gather(spot, flat, 14);
    for (int i = 0; i < 14; i++)
        assert_int_equal(flat[i], i < 5 ? 22 + i : 3 + i - 5);
    memset(memory, 0, sizeof memory);
    memset(back, 0, sizeof back);
    pst_io_spot_scatter(spot, flat, 14);
    for (int i = 0; i < 14; i++)
        back[i < 5 ? 22 + i : 3 + i - 5] = flat[i];
    assert_memory_equal(memory, back, sizeof back);
    pst_io_spot_skip(&spot, 14);
    assert_int_equal(spot.index, 5);
}

/* Aligned operations travel in whole blocks without a bounce. */
static void test_aligned(void **unused)
{
    (void)unused;
    pst_io_shape shape = {true, 512, 512, 4096, 262144, 1 << 20};
    for (int write = 0; write < 2; write++) {
        uint64_t at = 0, bytes = 10 * (1 << 20) + 4096;
        pst_io_segment whole = {.memory = (void *)0x200000, .bytes = bytes};
        pst_io_spot spot = pst_io_spot_first(&whole, 1);
        for (unsigned piece = 0; at < bytes; piece++) {
            pst_io_cut c = pst_io_cut_next(&shape, write != 0, 8192 + at, bytes - at, &spot);
            assert_true(c.direct && !c.bounce);
            assert_int_equal(c.span, piece < 10 ? 1 << 20 : 4096);
            pst_io_spot_skip(&spot, c.want);
            at += c.want;
        }
    }
}

/* A row of a table that lies anywhere: one transfer. */
static void test_small_read(void **unused)
{
    (void)unused;
    pst_io_shape shape = {true, 4096, 512, 4096, 262144, 1 << 20};
    pst_io_segment whole = {.memory = (void *)0x200010, .bytes = 8192};
    pst_io_spot spot = pst_io_spot_first(&whole, 1);
    pst_io_cut c = pst_io_cut_next(&shape, false, 4000, 8192, &spot);
    assert_int_equal(c.want, 8192);
    assert_int_equal(c.start, 0);
    assert_int_equal(c.span, 12288);
    whole.memory = (void *)(0x200000 + 4000);
    c = pst_io_cut_next(&shape, false, 4000, 8192, &spot);
    assert_int_equal(c.want, 8192);
}

int main(void)
{
    random_start("cuts");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_shape), cmocka_unit_test(test_any_segments), cmocka_unit_test(test_gathered),
        cmocka_unit_test(test_copies),    cmocka_unit_test(test_aligned),      cmocka_unit_test(test_small_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
