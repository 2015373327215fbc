/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cut. Pieces are added to a part in order of use until the slot is full; then the part's pieces are sorted by file
 * position and neighbours whose aligned ranges touch become one extent. Room is reckoned before merging, where each piece
 * costs its bytes plus one block at either end, so merging can only save.
 */
#include "tier/layout.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/number.h"

/* Rows are cut at multiples of this where there is room, since kernels work on tiles of rows. */
enum { CUT_ROWS = 16 };

/* Slot room for `bytes` at any residue of its file offset. */
static uint64_t room_for(uint64_t bytes)
{
    return pst_round_up(bytes, PST_EXTENT_ALIGN) + PST_EXTENT_ALIGN;
}

uint64_t pst_layout_min_slot_bytes(const pst_stage *stages, size_t stage_count)
{
    uint64_t most = PST_EXTENT_ALIGN;
    for (size_t s = 0; s < stage_count; s++)
        for (uint32_t t = 0; t < stages[s].tensor_count; t++)
            if (room_for(stages[s].tensors[t].row_bytes) > most)
                most = room_for(stages[s].tensors[t].row_bytes);
    return most;
}

/* Units of a stage as the cut sees them: a stage without any is one. */
static uint32_t units_of(const pst_stage *stage)
{
    return stage->unit_count ? stage->unit_count : 1;
}

static uint32_t unit_begin(const pst_stage *stage, uint32_t unit)
{
    if (stage->unit_count == 0)
        return unit == 0 ? 0 : stage->tensor_count;
    return stage->unit_first_tensor[unit];
}

/* Slot room for a unit as one part. */
static uint64_t unit_room(const pst_stage *stage, uint32_t unit)
{
    uint64_t sum = 0;
    for (uint32_t t = unit_begin(stage, unit); t < unit_begin(stage, unit + 1); t++)
        sum += room_for(stage->tensors[t].rows * stage->tensors[t].row_bytes);
    return sum;
}

/* What a part may fall short of its limit by because rows are cut in groups, and what the cut itself adds. */
static uint64_t unit_slack(const pst_stage *stage, uint32_t unit)
{
    uint64_t widest = 0;
    for (uint32_t t = unit_begin(stage, unit); t < unit_begin(stage, unit + 1); t++)
        widest = stage->tensors[t].row_bytes > widest ? stage->tensors[t].row_bytes : widest;
    return CUT_ROWS * widest + 6 * PST_EXTENT_ALIGN;
}

uint64_t pst_layout_max_slot_bytes(const pst_stage *stages, size_t stage_count)
{
    uint64_t most = PST_EXTENT_ALIGN;
    for (size_t s = 0; s < stage_count; s++)
        for (uint32_t u = 0; u < units_of(&stages[s]) && !stages[s].gathered; u++)
            if (unit_room(&stages[s], u) > most)
                most = unit_room(&stages[s], u);
    return most;
}

uint64_t pst_layout_unit_slot_bytes(const pst_stage *stages, size_t stage_count, uint64_t parts)
{
    uint64_t most = 0;
    for (size_t s = 0; s < stage_count; s++) {
        for (uint32_t u = 0; stages[s].unit_count > 1 && u < stages[s].unit_count; u++) {
            uint64_t whole = unit_room(&stages[s], u);
            uint64_t cut = whole / parts + unit_slack(&stages[s], u);
            uint64_t bytes = pst_round_up(cut < whole ? cut : whole, PST_EXTENT_ALIGN);
            most = bytes > most ? bytes : most;
        }
    }
    return most;
}

/* Grows an array by doubling; *items has room for one more afterwards. */
static int reserve(void **items, uint32_t count, uint32_t *capacity, size_t item_bytes, pst_error *err)
{
    if (count < *capacity)
        return 0;
    uint32_t grown = *capacity ? *capacity * 2 : 64;
    void *memory = pst_heap_reallocarray(*items, grown, item_bytes);
    if (memory == NULL)
        return pst_fail_memory(err, "the layout of the weights", grown * item_bytes);
    *items = memory;
    *capacity = grown;
    return 0;
}

typedef struct cutter {
    pst_layout *layout;
    uint32_t part_capacity, piece_capacity, extent_capacity;
    uint64_t slot_bytes;
    uint64_t limit; /* of a part's room: the slot, or less for a unit that takes several */
    uint64_t room;  /* left in the open part */
} cutter;

static int open_part(cutter *cut, uint32_t stage, uint32_t unit, pst_error *err)
{
    pst_layout *layout = cut->layout;
    PST_TRY(reserve((void **)&layout->parts, layout->part_count, &cut->part_capacity, sizeof(pst_part), err));
    layout->parts[layout->part_count++] = (pst_part){.stage = stage, .unit = unit, .first_piece = layout->piece_count};
    cut->room = cut->limit;
    return 0;
}

static uint64_t piece_file_offset(const pst_stage *stage, const pst_piece *piece)
{
    const pst_stage_tensor *tensor = &stage->tensors[piece->tensor];
    return tensor->tensor->offset + piece->first_row * tensor->row_bytes;
}

/* A piece with its place in the files, for sorting. */
typedef struct located {
    uint32_t file, piece;
    uint64_t offset, bytes;
} located;

static int by_place(const void *a, const void *b)
{
    const located *x = a, *y = b;
    if (x->file != y->file)
        return x->file < y->file ? -1 : 1;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* Lets the part's last extent reach over a piece, or begins a new one, and places the piece in the slot. */
static int add_read(cutter *cut, pst_part *part, const located *piece, pst_error *err)
{
    pst_layout *layout = cut->layout;
    uint64_t start = piece->offset / PST_EXTENT_ALIGN * PST_EXTENT_ALIGN;
    uint64_t end = piece->offset + piece->bytes;
    bool joins = false;
    if (part->extent_count > 0) {
        const pst_extent *last = &layout->extents[layout->extent_count - 1];
        joins = last->file == piece->file && start <= last->offset + last->bytes;
    }
    if (!joins) {
        PST_TRY(
            reserve((void **)&layout->extents, layout->extent_count, &cut->extent_capacity, sizeof(pst_extent), err));
        layout->extents[layout->extent_count++] =
            (pst_extent){.file = piece->file, .offset = start, .slot_offset = part->memory_bytes};
        part->extent_count++;
    }
    pst_extent *extent = &layout->extents[layout->extent_count - 1];
    uint64_t needed = end - extent->offset;
    if (needed > extent->needed_bytes) {
        extent->needed_bytes = needed;
        extent->bytes = pst_round_up(needed, PST_EXTENT_ALIGN);
    }
    layout->pieces[piece->piece].offset = extent->slot_offset + (piece->offset - extent->offset);
    part->memory_bytes = extent->slot_offset + extent->bytes;
    return 0;
}

/* Turns the open part's pieces into extents and gives each piece its offset in the slot. */
static int close_part(cutter *cut, const pst_stage *stage, pst_error *err)
{
    pst_layout *layout = cut->layout;
    pst_part *part = &layout->parts[layout->part_count - 1];
    part->piece_count = layout->piece_count - part->first_piece;
    part->first_extent = layout->extent_count;
    located *order = pst_heap_alloc(part->piece_count * sizeof *order);
    if (order == NULL)
        return pst_fail_memory(err, "the layout of the weights", part->piece_count * sizeof *order);
    for (uint32_t i = 0; i < part->piece_count; i++) {
        const pst_piece *piece = &layout->pieces[part->first_piece + i];
        const pst_stage_tensor *tensor = &stage->tensors[piece->tensor];
        order[i] = (located){tensor->tensor->file, part->first_piece + i, piece_file_offset(stage, piece),
                             piece->rows * tensor->row_bytes};
        part->weight_bytes += order[i].bytes;
        part->device_bytes += pst_round_up(order[i].bytes, PST_DEVICE_ALIGN);
    }
    qsort(order, part->piece_count, sizeof *order, by_place);
    int status = 0;
    for (uint32_t i = 0; i < part->piece_count && status == 0; i++)
        status = add_read(cut, part, &order[i], err);
    pst_heap_free(order);
    PST_TRY(status);
    layout->max_extents = part->extent_count > layout->max_extents ? part->extent_count : layout->max_extents;
    return 0;
}

/* How many of `left` rows go into the open part: 0 asks for a new part. */
static uint64_t rows_that_fit(uint64_t room, uint64_t left, uint64_t row_bytes, bool part_is_empty)
{
    if (room >= room_for(left * row_bytes))
        return left;
    if (room < room_for(row_bytes))
        return 0;
    uint64_t fit = (room - 2 * PST_EXTENT_ALIGN) / (row_bytes ? row_bytes : 1);
    if (fit == 0)
        fit = 1; /* room_for said that one does, and the line above is a little too careful */
    fit = fit < left ? fit : left - 1;
    if (fit >= CUT_ROWS)
        return fit / CUT_ROWS * CUT_ROWS;
    return part_is_empty ? fit : 0;
}

/* The parts of a unit fill the slot, or, where several are needed, all the same share of the unit. */
static uint64_t part_limit(const cutter *cut, const pst_stage *stage, uint32_t unit)
{
    uint64_t whole = unit_room(stage, unit);
    if (stage->unit_count < 2 || whole <= cut->slot_bytes)
        return cut->slot_bytes;
    uint64_t slack = unit_slack(stage, unit);
    uint64_t parts = cut->slot_bytes > 2 * slack ? (whole + cut->slot_bytes - slack - 1) / (cut->slot_bytes - slack)
                                                 : (whole + cut->slot_bytes - 1) / cut->slot_bytes;
    uint64_t limit = pst_round_up(whole / parts + slack, PST_EXTENT_ALIGN);
    return limit < cut->slot_bytes ? limit : cut->slot_bytes;
}

static int cut_unit(cutter *cut, const pst_stage *stage, uint32_t index, uint32_t unit, pst_error *err)
{
    pst_layout *layout = cut->layout;
    cut->limit = part_limit(cut, stage, unit);
    PST_TRY(open_part(cut, index, unit, err));
    for (uint32_t t = unit_begin(stage, unit); t < unit_begin(stage, unit + 1); t++) {
        const pst_stage_tensor *tensor = &stage->tensors[t];
        for (uint64_t row = 0; row < tensor->rows;) {
            bool is_empty = layout->parts[layout->part_count - 1].first_piece == layout->piece_count;
            uint64_t rows = rows_that_fit(cut->room, tensor->rows - row, tensor->row_bytes, is_empty);
            if (rows == 0 && is_empty)
                return pst_fail(err, PST_E_BUDGET, NULL, "a slot of %llu bytes is too small for a row of %s",
                                (unsigned long long)cut->slot_bytes, tensor->tensor->name);
            if (rows == 0) {
                PST_TRY(close_part(cut, stage, err));
                PST_TRY(open_part(cut, index, unit, err));
                continue;
            }
            PST_TRY(
                reserve((void **)&layout->pieces, layout->piece_count, &cut->piece_capacity, sizeof(pst_piece), err));
            layout->pieces[layout->piece_count++] = (pst_piece){.tensor = t, .first_row = row, .rows = rows};
            cut->room -= room_for(rows * tensor->row_bytes);
            row += rows;
        }
    }
    return close_part(cut, stage, err);
}

static int cut_stage(cutter *cut, const pst_stage *stages, uint32_t index, pst_error *err)
{
    for (uint32_t unit = 0; unit < units_of(&stages[index]); unit++)
        PST_TRY(cut_unit(cut, &stages[index], index, unit, err));
    return 0;
}

/* No memory has tables for more parts than this, and they are counted in 32 bits. */
static int check_count(const pst_stage *stages, size_t stage_count, uint64_t slot_bytes, pst_error *err)
{
    enum { MOST = 1 << 25 };
    uint64_t least = 0;
    for (size_t s = 0; s < stage_count; s++)
        for (uint32_t t = 0; t < stages[s].tensor_count && slot_bytes > 0; t++)
            least += stages[s].tensors[t].rows * stages[s].tensors[t].row_bytes / slot_bytes;
    if (least <= MOST)
        return 0;
    return pst_fail(err, PST_E_UNSUPPORTED, NULL,
                    "weights that take %llu reads of %llu bytes are not supported (%d are)", (unsigned long long)least,
                    (unsigned long long)slot_bytes, MOST);
}

int pst_layout_create(const pst_stage *stages, size_t stage_count, uint64_t slot_bytes, pst_layout *out, pst_error *err)
{
    PST_TRY(check_count(stages, stage_count, slot_bytes, err));
    pst_layout layout = {0};
    cutter cut = {.layout = &layout, .slot_bytes = slot_bytes / PST_EXTENT_ALIGN * PST_EXTENT_ALIGN};
    for (size_t s = 0; s < stage_count; s++) {
        int status = cut_stage(&cut, stages, (uint32_t)s, err);
        if (status < 0) {
            pst_layout_destroy(&layout);
            return status;
        }
    }
    *out = layout;
    return 0;
}

void pst_layout_destroy(pst_layout *layout)
{
    pst_heap_free(layout->parts);
    pst_heap_free(layout->pieces);
    pst_heap_free(layout->extents);
    *layout = (pst_layout){0};
}
