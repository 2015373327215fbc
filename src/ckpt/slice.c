/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Slices. A tensor (Y, X) in rows, of which columns are wanted: one loop over rows, steps of X elements in the file,
 * a run of the columns' bytes. Its transpose: the loops change places, runs are single elements, and a span of the
 * file that holds many of them is read at once and scattered.
 */
#include "ckpt/slice.h"

#include <string.h>

#include "base/error.h"
#include "base/number.h"
#include "store/safetensors.h"
#include "store/span_reader.h"

enum {
    TILE = 64
}; /* elements of a transposed tensor that are copied before the next row: lines of memory are hit again */

/* ---- boxes ---- */

/* The loops in bits, in the tensor's order of dimensions; those of one step only are left out. */
static uint64_t make_loops(const pst_slice *s, pst_box *box, uint64_t *bit_offset)
{
    unsigned bits = pst_dtype_bits(s->dtype);
    uint64_t from = bits, to = bits, elements = 1;
    *bit_offset = 0;
    box->dims = 0;
    for (uint32_t d = s->rank; d-- > 0;) {
        uint64_t start = s->start != NULL ? s->start[d] : 0, stop = s->stop != NULL ? s->stop[d] : s->shape[d];
        uint64_t step = s->strides != NULL ? (uint64_t)s->strides[d] * bits : from;
        if (s->shape[d] > 1)
            *bit_offset += start * step;
        if (stop - start != 1) {
            uint32_t i = box->dims++;
            box->count[i] = stop - start;
            box->from[i] = step;
            box->to[i] = to;
        }
        elements *= stop - start;
        from *= s->shape[d];
        to *= stop - start;
    }
    return elements;
}

/* Falling steps in the file; of equal ones, those with larger steps in memory first. */
static void sort_loops(pst_box *box)
{
    for (uint32_t i = 1; i < box->dims; i++) {
        uint64_t count = box->count[i], from = box->from[i], to = box->to[i];
        uint32_t k = i;
        for (; k > 0 && (box->from[k - 1] < from || (box->from[k - 1] == from && box->to[k - 1] < to)); k--) {
            box->count[k] = box->count[k - 1];
            box->from[k] = box->from[k - 1];
            box->to[k] = box->to[k - 1];
        }
        box->count[k] = count;
        box->from[k] = from;
        box->to[k] = to;
    }
}

/* Loops that are one, are made one. */
static void merge_loops(pst_box *box)
{
    while (box->dims > 0 && box->from[box->dims - 1] == box->run && box->to[box->dims - 1] == box->run)
        box->run *= box->count[--box->dims];
    uint32_t kept = 0;
    for (uint32_t i = 0; i < box->dims; i++) {
        uint64_t steps = box->count[i];
        bool joined =
            kept > 0 && box->from[kept - 1] == box->from[i] * steps && box->to[kept - 1] == box->to[i] * steps;
        uint32_t k = joined ? kept - 1 : kept++;
        box->count[k] = joined ? box->count[k] * steps : steps;
        box->from[k] = box->from[i];
        box->to[k] = box->to[i];
    }
    box->dims = kept;
}

/* From bits to bytes. */
static bool to_bytes(pst_box *box, uint64_t bit_offset)
{
    bool whole = box->run % 8 == 0 && bit_offset % 8 == 0;
    box->run /= 8;
    for (uint32_t i = 0; i < box->dims; i++) {
        whole = whole && box->from[i] % 8 == 0 && box->to[i] % 8 == 0;
        box->from[i] /= 8;
        box->to[i] /= 8;
    }
    return whole;
}

int pst_box_make(const pst_slice *slice, pst_box *out, pst_error *err)
{
    pst_box box = {.run = pst_dtype_bits(slice->dtype), .out = slice->out};
    uint64_t bit_offset;
    if (make_loops(slice, &box, &bit_offset) == 0)
        return 0;
    sort_loops(&box);
    merge_loops(&box);
    if (!to_bytes(&box, bit_offset))
        return pst_fail(err, PST_E_UNSUPPORTED, NULL,
                        "a slice of %s that begins or ends inside of a byte cannot be read by itself",
                        pst_dtype_name(slice->dtype));
    box.offset = slice->offset + bit_offset / 8;
    *out = box;
    return 1;
}

uint64_t pst_box_bytes(const pst_box *box)
{
    uint64_t bytes = box->run;
    for (uint32_t d = 0; d < box->dims; d++)
        bytes *= box->count[d];
    return bytes;
}

uint64_t pst_box_parts(const pst_box *box)
{
    return box->dims > 0 ? box->count[0] : box->run;
}

void pst_box_cut(pst_box *box, uint64_t begin, uint64_t end)
{
    if (box->dims == 0) {
        box->run = end - begin;
        box->offset += begin;
        box->out += begin;
        return;
    }
    box->offset += begin * box->from[0];
    box->out += begin * box->to[0];
    box->count[0] = end - begin;
}

/* ---- walks ---- */

/* Bytes of the file from the first to the last that the loops from `level` on touch. */
static uint64_t extent(const pst_box *box, uint32_t level)
{
    uint64_t bytes = box->run;
    for (uint32_t d = level; d < box->dims; d++)
        bytes += (box->count[d] - 1) * box->from[d];
    return bytes;
}

static bool near(uint64_t step, uint64_t inner)
{
    return step <= inner || step - inner <= PST_SPAN_GAP_BYTES;
}

/* What one span covers: as many loops as a slot holds, as long as the gaps between their steps are worth reading. */
static void choose_level(pst_walk *w)
{
    const pst_box *box = &w->box;
    w->level = box->dims;
    w->group = 1;
    w->inner = box->run;
    if (box->dims == 0 || box->run >= PST_STRAIGHT_MIN_BYTES || box->run > w->limits.most)
        return;
    uint32_t level = box->dims - 1;
    uint64_t inner = box->run, all = extent(box, level);
    while (level > 0 && near(box->from[level], inner) && all <= w->limits.most) {
        inner = all;
        level--;
        all = extent(box, level);
    }
    w->level = level;
    w->inner = inner;
    if (box->from[level] == 0)
        w->group = box->count[level];
    else if (near(box->from[level], inner))
        w->group = pst_min(box->count[level], 1 + (w->limits.most - inner) / box->from[level]);
}

void pst_walk_begin(pst_walk *walk, const pst_box *box, const pst_walk_limits *limits)
{
    *walk = (pst_walk){.box = *box, .limits = *limits};
    choose_level(walk);
}

/* To the next place of the loops outside of spans (and of the spans' own, which go on by `group`). */
static void step(pst_walk *w)
{
    if (w->level < w->box.dims) {
        w->at[w->level] += w->group;
        if (w->at[w->level] < w->box.count[w->level])
            return;
        w->at[w->level] = 0;
    }
    for (uint32_t d = w->level; d-- > 0;) {
        if (++w->at[d] < w->box.count[d])
            return;
        w->at[d] = 0;
    }
    w->ended = true;
}

/* Part of a run. */
static void next_in_run(pst_walk *w, pst_stretch *out)
{
    uint64_t left = w->box.run - w->done, offset = out->offset + w->done;
    unsigned char *to = out->out + w->done;
    bool fits = w->box.run >= PST_STRAIGHT_MIN_BYTES && ((uintptr_t)to - offset) % w->limits.alignment == 0;
    uint64_t bytes = pst_span_cut(offset, left, fits ? w->limits.straight : w->limits.most);
    *out = (pst_stretch){.offset = offset, .bytes = bytes, .out = to, .level = w->level, .count = 1, .straight = fits};
    w->done += bytes;
    if (w->done == w->box.run) {
        w->done = 0;
        step(w);
    }
}

bool pst_walk_next(pst_walk *walk, pst_stretch *out)
{
    const pst_box *box = &walk->box;
    if (walk->ended)
        return false;
    *out = (pst_stretch){.offset = box->offset, .out = box->out, .level = walk->level};
    for (uint32_t d = 0; d < box->dims; d++) {
        out->offset += walk->at[d] * box->from[d];
        out->out += walk->at[d] * box->to[d];
    }
    if (walk->level == box->dims) {
        next_in_run(walk, out);
        return true;
    }
    out->count = pst_min(walk->group, box->count[walk->level] - walk->at[walk->level]);
    out->bytes = walk->inner + (out->count - 1) * box->from[walk->level];
    step(walk);
    return true;
}

/* ---- copying ---- */

#define COPY_ELEMENTS(bytes)                                                                                           \
    case bytes:                                                                                                        \
        for (uint64_t i = 0; i < count; i++)                                                                           \
            memcpy(out + i * to, data + i * from, bytes);                                                              \
        break

/* Runs of a few bytes are elements, for which a call of memcpy each would cost more than the copy. */
static void copy_runs(unsigned char *out, uint64_t to, const unsigned char *data, uint64_t from, uint64_t run,
                      uint64_t count)
{
    switch (run) {
        COPY_ELEMENTS(1);
        COPY_ELEMENTS(2);
        COPY_ELEMENTS(4);
        COPY_ELEMENTS(8);
        COPY_ELEMENTS(16);
    default:
        for (uint64_t i = 0; i < count; i++)
            memcpy(out + i * to, data + i * from, run);
    }
}

static void copy_loops(const pst_box *box, uint32_t d, uint64_t count, unsigned char *out, const unsigned char *data)
{
    if (d + 1 == box->dims) {
        copy_runs(out, box->to[d], data, box->from[d], box->run, count);
        return;
    }
    if (d + 2 == box->dims && box->to[d + 1] > box->to[d]) { /* memory's order is the other way round */
        for (uint64_t k = 0; k < box->count[d + 1]; k += TILE)
            for (uint64_t i = 0; i < count; i++)
                copy_runs(out + i * box->to[d] + k * box->to[d + 1], box->to[d + 1],
                          data + i * box->from[d] + k * box->from[d + 1], box->from[d + 1], box->run,
                          pst_min(TILE, box->count[d + 1] - k));
        return;
    }
    for (uint64_t i = 0; i < count; i++)
        copy_loops(box, d + 1, box->count[d + 1], out + i * box->to[d], data + i * box->from[d]);
}

void pst_box_copy(const pst_box *box, const pst_stretch *stretch, const void *data)
{
    if (stretch->level == box->dims)
        memcpy(stretch->out, data, stretch->bytes);
    else
        copy_loops(box, stretch->level, stretch->count, stretch->out, data);
}
