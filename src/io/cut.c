/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Cutting.
 *
 * Reads: aligned stretches go straight into the caller's buffer if its address fits there; the head and the
 * tail that share an aligned unit with something else are read whole into a bounce buffer and their part is
 * copied out. If the address does not fit anywhere, everything is bounced. A small operation is bounced as
 * one transfer rather than as up to three.
 *
 * Writes: the ragged head and tail are written through the page cache, from the caller's buffer. The other
 * way, reading the unit, changing a part and writing it back, would undo what somebody else writes to the
 * rest of that unit at the same time (the next operation of the same batch, for one), and would make the file
 * longer than asked. The kernel merges such writes correctly, and a later sync covers both ways. But direct
 * writes and buffered ones must not meet in one page while both are on their way: a page brought into the
 * cache before the direct write has finished would write its old content back over it. So what goes direct is
 * whole pages, not just whole sectors.
 */
#include "io/cut.h"

enum { SMALL_BYTES = 64 * 1024 };

static uint64_t round_down(uint64_t value, uint64_t unit)
{
    return value & ~(unit - 1);
}

static uint64_t round_up(uint64_t value, uint64_t unit)
{
    return round_down(value + unit - 1, unit);
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static pst_io_cut straight(uint64_t start, uint64_t span, bool direct)
{
    return (pst_io_cut){.start = start, .span = span, .want = span, .direct = direct};
}

/* Reads the aligned units around the first `want` bytes at `from`, no more than a bounce buffer holds. */
static pst_io_cut bounced_read(const pst_io_shape *shape, uint64_t from, uint64_t want)
{
    uint64_t start = round_down(from, shape->offset_align);
    uint64_t skip = from - start;
    want = least(want, shape->bounce_bytes - skip);
    return (pst_io_cut){.start = start,
                        .span = round_up(skip + want, shape->offset_align),
                        .skip = skip,
                        .want = want,
                        .bounce = true,
                        .direct = true};
}

static pst_io_cut cut_read(const pst_io_shape *shape, uint64_t from, uint64_t left, uintptr_t address, bool whole)
{
    uint64_t unit = shape->offset_align, head = round_up(from, unit) - from;
    bool fits = (address + head) % shape->memory_align == 0;
    if (!fits)
        return bounced_read(shape, from, left);
    if (head == 0 && left >= unit)
        return straight(from, least(round_down(left, unit), round_down(shape->block_bytes, unit)), true);
    bool small =
        whole && round_up(from + left, unit) - round_down(from, unit) <= least(SMALL_BYTES, shape->bounce_bytes);
    return bounced_read(shape, from, small || head == 0 ? left : least(left, head));
}

static pst_io_cut cut_write(const pst_io_shape *shape, uint64_t from, uint64_t left, uintptr_t address)
{
    uint64_t unit = shape->offset_align > shape->page_bytes ? shape->offset_align : shape->page_bytes;
    uint64_t head = round_up(from, unit) - from;
    if (head != 0)
        return straight(from, least(left, head), false);
    if (left < unit)
        return straight(from, left, false);
    if (address % shape->memory_align == 0)
        return straight(from, least(round_down(left, unit), round_down(shape->block_bytes, unit)), true);
    uint64_t span = least(round_down(left, unit), round_down(shape->bounce_bytes, unit));
    return (pst_io_cut){.start = from, .span = span, .want = span, .bounce = true, .direct = true};
}

pst_io_cut pst_io_cut_next(const pst_io_shape *shape, bool write, uint64_t offset, uint64_t bytes, uintptr_t address,
                           uint64_t at)
{
    uint64_t from = offset + at, left = bytes - at;
    if (!shape->direct)
        return straight(from, least(left, shape->block_bytes), false);
    if (write)
        return cut_write(shape, from, left, address + at);
    return cut_read(shape, from, left, address + at, at == 0);
}
