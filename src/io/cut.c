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
 *
 * Segments: what is worth a transfer of its own and fits goes straight. What lies between such stretches is bounced,
 * as many segments in one transfer as a bounce buffer holds, up to the next place from which it is straight again.
 */
#include "io/cut.h"
#include "base/number.h"

#include <string.h>

enum {
    SMALL_BYTES = 64 * 1024,    /* an operation up to this is rather bounced than cut in three */
    STRAIGHT_BYTES = 16 * 1024, /* a stretch among others is worth a transfer rather than a copy: both cost some 3 us */
    MERGED_MAX = 256            /* segments that are looked at to see whether they lie one after the other in memory */
};

/* ---- memory ---- */

pst_io_spot pst_io_spot_first(const pst_io_segment *segments, uint32_t count)
{
    pst_io_spot spot = {.segments = segments, .count = count};
    pst_io_spot_skip(&spot, 0); /* empty segments in front */
    return spot;
}

void pst_io_spot_skip(pst_io_spot *spot, uint64_t bytes)
{
    while (spot->index < spot->count) {
        uint64_t left = spot->segments[spot->index].bytes - spot->at;
        if (bytes < left) {
            spot->at += bytes;
            return;
        }
        bytes -= left;
        spot->index++;
        spot->at = 0;
    }
}

char *pst_io_spot_address(const pst_io_spot *spot)
{
    return (char *)spot->segments[spot->index].memory + spot->at;
}

/* The part of the segment from the spot on, at most `limit` bytes. */
static uint64_t in_segment(const pst_io_spot *spot, uint64_t limit)
{
    return pst_min(spot->segments[spot->index].bytes - spot->at, limit);
}

void pst_io_spot_gather(pst_io_spot spot, char *to, uint64_t bytes)
{
    while (bytes > 0) {
        uint64_t part = in_segment(&spot, bytes);
        memcpy(to, pst_io_spot_address(&spot), part);
        to += part;
        bytes -= part;
        pst_io_spot_skip(&spot, part);
    }
}

void pst_io_spot_scatter(pst_io_spot spot, const char *from, uint64_t bytes)
{
    while (bytes > 0) {
        uint64_t part = in_segment(&spot, bytes);
        memcpy(pst_io_spot_address(&spot), from, part);
        from += part;
        bytes -= part;
        pst_io_spot_skip(&spot, part);
    }
}

/* Bytes from the spot on that lie one after the other in memory, across segments too; at most `limit`. */
static uint64_t in_a_row(const pst_io_spot *spot, uint64_t limit)
{
    const pst_io_segment *segments = spot->segments;
    uint64_t bytes = segments[spot->index].bytes - spot->at;
    const char *end = pst_io_spot_address(spot) + bytes;
    for (uint32_t i = spot->index + 1, steps = 0; i < spot->count && bytes < limit && steps < MERGED_MAX;
         i++, steps++) {
        if (segments[i].bytes == 0)
            continue;
        if (segments[i].memory != end)
            break;
        bytes += segments[i].bytes;
        end += segments[i].bytes;
    }
    return pst_min(bytes, limit);
}

/* ---- transfers ---- */

static pst_io_cut straight(uint64_t start, uint64_t span, bool direct)
{
    return (pst_io_cut){.start = start, .span = span, .want = span, .direct = direct};
}

static pst_io_cut bounced(uint64_t start, uint64_t span, bool direct)
{
    return (pst_io_cut){.start = start, .span = span, .want = span, .bounce = true, .direct = direct};
}

/* How far it is from `from` to the next place from which a straight transfer is possible and worth it, where every
 * straight one starts and ends at a multiple of `unit`; at most `most`. Never 0. */
static uint64_t bounce_length(const pst_io_shape *shape, uint64_t unit, uint64_t from, uint64_t left, pst_io_spot spot,
                              uint64_t most)
{
    uint32_t memory_align = shape->direct ? shape->memory_align : 1;
    uint64_t sum = 0;
    while (sum < most && sum < left) {
        uint64_t at = from + sum, head = pst_round_up(at, unit) - at, row = in_a_row(&spot, left - sum);
        bool fits = ((uintptr_t)pst_io_spot_address(&spot) + head) % memory_align == 0;
        uint64_t body = row > head ? pst_round_down(row - head, unit) : 0;
        bool worth = body >= STRAIGHT_BYTES;
        if (row == left) /* all that is left is one stretch, the operation's last or only one */
            worth = body > 0 &&
                    pst_round_up(at + row, unit) - pst_round_down(at, unit) > pst_min(SMALL_BYTES, shape->bounce_bytes);
        if (fits && worth && sum + head > 0)
            return pst_min(sum + head, most);
        sum += row;
        pst_io_spot_skip(&spot, row);
    }
    return pst_min(sum, most);
}

/* Reads the aligned units around the bytes at `from`, no more than a bounce buffer holds. */
static pst_io_cut bounced_read(const pst_io_shape *shape, uint64_t from, uint64_t left, const pst_io_spot *spot)
{
    uint64_t unit = shape->offset_align, start = pst_round_down(from, unit), skip = from - start;
    uint64_t want = bounce_length(shape, unit, from, left, *spot, pst_min(left, shape->bounce_bytes - skip));
    return (pst_io_cut){.start = start,
                        .span = pst_round_up(skip + want, unit),
                        .skip = skip,
                        .want = want,
                        .bounce = true,
                        .direct = true};
}

static pst_io_cut cut_buffered(const pst_io_shape *shape, uint64_t from, uint64_t left, const pst_io_spot *spot)
{
    uint64_t row = in_a_row(spot, left);
    if (row == left || row >= STRAIGHT_BYTES)
        return straight(from, pst_min(row, shape->block_bytes), false);
    return bounced(from, bounce_length(shape, 1, from, left, *spot, pst_min(left, shape->bounce_bytes)), false);
}

/* From an aligned offset on: the straight stretch at the spot, 0 where there is none worth it. */
static uint64_t straight_length(const pst_io_shape *shape, uint64_t unit, uint64_t left, const pst_io_spot *spot)
{
    uint64_t row = in_a_row(spot, left), body = pst_round_down(row, unit);
    if ((uintptr_t)pst_io_spot_address(spot) % shape->memory_align != 0 || (body < STRAIGHT_BYTES && row < left))
        return 0;
    return pst_min(body, pst_round_down(shape->block_bytes, unit));
}

static pst_io_cut cut_read(const pst_io_shape *shape, uint64_t from, uint64_t left, const pst_io_spot *spot)
{
    uint64_t unit = shape->offset_align;
    uint64_t span = from % unit == 0 ? straight_length(shape, unit, left, spot) : 0;
    return span > 0 ? straight(from, span, true) : bounced_read(shape, from, left, spot);
}

/* The ragged end of a write. */
static pst_io_cut ragged(uint64_t from, uint64_t bytes, const pst_io_spot *spot)
{
    return in_a_row(spot, bytes) == bytes ? straight(from, bytes, false) : bounced(from, bytes, false);
}

static pst_io_cut cut_write(const pst_io_shape *shape, uint64_t from, uint64_t left, const pst_io_spot *spot)
{
    uint64_t unit = shape->offset_align > shape->page_bytes ? shape->offset_align : shape->page_bytes;
    uint64_t head = pst_round_up(from, unit) - from;
    if (head != 0)
        return ragged(from, pst_min(left, head), spot);
    if (left < unit)
        return ragged(from, left, spot);
    uint64_t span = straight_length(shape, unit, left, spot);
    if (span > 0)
        return straight(from, span, true);
    uint64_t most = pst_min(pst_round_down(left, unit), pst_round_down(shape->bounce_bytes, unit));
    return bounced(from, pst_round_down(bounce_length(shape, unit, from, left, *spot, most), unit), true);
}

pst_io_cut pst_io_cut_next(const pst_io_shape *shape, bool write, uint64_t from, uint64_t left, const pst_io_spot *spot)
{
    if (!shape->direct)
        return cut_buffered(shape, from, left, spot);
    return write ? cut_write(shape, from, left, spot) : cut_read(shape, from, left, spot);
}
