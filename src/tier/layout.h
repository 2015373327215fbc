/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stages cut into parts that fit a slot, and each part's reads: few extents at aligned file offsets, so that direct I/O
 * lands them without a bounce. A piece keeps its file offset's residue, so weights lie at any byte address.
 *
 * A stage without units fills its parts one after the other; only the last may be small, and its slot is soon used again. A
 * unit's parts stay in slots when they are cached, so a unit is cut into parts of nearly equal size.
 */
#ifndef PST_TIER_LAYOUT_H
#define PST_TIER_LAYOUT_H

#include "tier/stage.h"

enum {
    PST_EXTENT_ALIGN = 4096,
    PST_DEVICE_ALIGN = 256 /* a piece in an accelerator's memory begins at a multiple of this */
};

/* One read: [offset, offset + bytes) of a file to `slot_offset`; all aligned. It may end past the end of the file; the
 * first `needed_bytes` must arrive. */
typedef struct pst_extent {
    uint32_t file;
    uint64_t offset, bytes, needed_bytes, slot_offset;
} pst_extent;

typedef struct pst_part {
    uint32_t stage;
    uint32_t unit; /* of the stage; 0 in a stage without units */
    uint32_t first_piece, piece_count;
    uint32_t first_extent, extent_count;
    uint64_t memory_bytes; /* of a slot; a multiple of PST_EXTENT_ALIGN */
    uint64_t weight_bytes; /* of tensors, without what alignment adds */
    uint64_t device_bytes; /* of an accelerator's memory; a multiple of PST_DEVICE_ALIGN; never more than a slot */
} pst_part;

typedef struct pst_layout {
    pst_part *parts; /* in order of use: stage by stage */
    pst_piece *pieces;
    pst_extent *extents;
    uint32_t part_count, piece_count, extent_count;
    uint32_t max_extents; /* of one part */
} pst_layout;

/* The smallest slot that every row of every stage fits in. */
uint64_t pst_layout_min_slot_bytes(const pst_stage *stages, size_t stage_count);
/* The slot that every stage, or every unit of one, fits in whole. */
uint64_t pst_layout_max_slot_bytes(const pst_stage *stages, size_t stage_count);
/* Of stages with more than one unit: the smallest slot that the largest unit fits in as at most `parts` parts; 0 where there
 * are none. */
uint64_t pst_layout_unit_slot_bytes(const pst_stage *stages, size_t stage_count, uint64_t parts);

/* slot_bytes: at least pst_layout_min_slot_bytes, a multiple of PST_EXTENT_ALIGN. The caller destroys *out. */
int pst_layout_create(const pst_stage *stages, size_t stage_count, uint64_t slot_bytes, pst_layout *out,
                      pst_error *err);
void pst_layout_destroy(pst_layout *layout); /* what it holds, not itself; a zeroed one is fine */

#endif
