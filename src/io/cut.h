/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How an operation is cut into transfers that a file accepts: pure functions, so that they can be tested by
 * themselves.
 */
#ifndef PST_IO_CUT_H
#define PST_IO_CUT_H

#include <stdbool.h>
#include <stdint.h>

#include "penstock/io.h"

/* What constrains the cutting. All sizes are powers of two, except block_bytes, which is a multiple of 4096. */
typedef struct pst_io_shape {
    bool direct;           /* transfers may go past the page cache */
    uint32_t offset_align; /* of offsets and lengths of direct transfers; at least memory_align */
    uint32_t memory_align; /* of addresses of direct transfers */
    uint32_t page_bytes;   /* of the page cache */
    uint32_t bounce_bytes; /* of a bounce buffer: at least 2 * offset_align, and page_bytes */
    uint64_t block_bytes;  /* the longest transfer; at least offset_align and page_bytes */
} pst_io_shape;

/* A place in an operation's memory: byte `at` of segments[index], which is not the end of that segment unless it is
 * the end of all of them. A plain buffer is one segment. */
typedef struct pst_io_spot {
    const pst_io_segment *segments;
    uint32_t count, index;
    uint64_t at;
} pst_io_spot;

pst_io_spot pst_io_spot_first(const pst_io_segment *segments, uint32_t count);
/* Moves on by `bytes`, at most to the end. Takes as many steps as there are segments in between. */
void pst_io_spot_skip(pst_io_spot *spot, uint64_t bytes);
char *pst_io_spot_address(const pst_io_spot *spot);
/* Copies `bytes` bytes from the spot on to `to`, or from `from` to there. */
void pst_io_spot_gather(pst_io_spot spot, char *to, uint64_t bytes);
void pst_io_spot_scatter(pst_io_spot spot, const char *from, uint64_t bytes);

/* One transfer: [start, start + span) of the file; of these, `want` bytes from `skip` on are the operation's
 * own. */
typedef struct pst_io_cut {
    uint64_t start;
    uint64_t span;
    uint64_t skip;
    uint64_t want;
    bool bounce; /* through a bounce buffer; else skip is 0, span is want, and the memory at the spot is used */
    bool direct; /* past the page cache */
} pst_io_cut;

/* The next transfer of an operation of which `left` (> 0) bytes are left, from file offset `from` on, from or into
 * the memory at `spot`. */
pst_io_cut pst_io_cut_next(const pst_io_shape *shape, bool write, uint64_t from, uint64_t left,
                           const pst_io_spot *spot);

#endif
