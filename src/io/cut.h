/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How an operation is cut into transfers that a file accepts: a pure function, so that it can be tested by
 * itself.
 */
#ifndef PST_IO_CUT_H
#define PST_IO_CUT_H

#include <stdbool.h>
#include <stdint.h>

/* What constrains the cutting. All sizes are powers of two, except block_bytes, which is a multiple of 4096.
 */
typedef struct pst_io_shape {
    bool direct;           /* transfers may go past the page cache */
    uint32_t offset_align; /* of offsets and lengths of direct transfers; at least memory_align */
    uint32_t memory_align; /* of addresses of direct transfers */
    uint32_t page_bytes;   /* of the page cache */
    uint32_t bounce_bytes; /* of a bounce buffer: at least 2 * offset_align, and page_bytes */
    uint64_t block_bytes;  /* the longest transfer; at least offset_align and page_bytes */
} pst_io_shape;

/* One transfer: [start, start + span) of the file; of these, `want` bytes from `skip` on are the operation's
 * own. */
typedef struct pst_io_cut {
    uint64_t start;
    uint64_t span;
    uint64_t skip;
    uint64_t want;
    bool bounce; /* through a bounce buffer; else skip is 0, span is want, and the caller's buffer is used */
    bool direct; /* past the page cache */
} pst_io_cut;

/* The transfer that moves the operation's bytes from `at` (< bytes) on. The operation is `bytes` at file
 * offset `offset`, from or into memory address `address`. */
pst_io_cut pst_io_cut_next(const pst_io_shape *shape, bool write, uint64_t offset, uint64_t bytes, uintptr_t address,
                           uint64_t at);

#endif
