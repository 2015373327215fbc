/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A slice of a tensor as loops over a file: which bytes go where. The loops are put in the order of the file,
 * whatever the order of the tensor's dimensions; what is contiguous on both sides is one run. A walk cuts the box
 * into spans that a reader can hold, so that a slice of any size is described in a few hundred bytes.
 *
 * Pure: no I/O, no memory of its own.
 */
#ifndef PST_CKPT_SLICE_H
#define PST_CKPT_SLICE_H

#include <stdbool.h>

#include "penstock/types.h"
#include "store/store.h"

/* A tensor in a file, and what is wanted of it. The whole of it lies in the file, and the slice in its shape: that is the
 * caller's to check. */
typedef struct pst_slice {
    pst_dtype dtype;
    uint32_t rank;
    const uint64_t *shape;
    const int64_t *strides;       /* elements, not negative; NULL: row-major */
    uint64_t offset;              /* of its first element in the file */
    const uint64_t *start, *stop; /* NULL: the whole */
    void *out;                    /* row-major */
} pst_slice;

typedef struct pst_box {
    uint32_t dims; /* loops around the run, the one with the largest steps in the file first */
    uint64_t count[PST_MAX_RANK];
    uint64_t from[PST_MAX_RANK], to[PST_MAX_RANK]; /* steps in bytes: in the file, at `out` */
    uint64_t run;                                  /* bytes, contiguous on both sides */
    uint64_t offset;                               /* in the file */
    unsigned char *out;
} pst_box;

/* 1: there is something to read; 0: the slice is empty; PST_E_UNSUPPORTED: elements smaller than a byte, and the slice
 * begins or ends inside of one. */
int pst_box_make(const pst_slice *slice, pst_box *out, pst_error *err);
uint64_t pst_box_bytes(const pst_box *box); /* that are wanted */
/* How many equal parts it can be cut into: indexes of the first loop, or the bytes of a single run. */
uint64_t pst_box_parts(const pst_box *box);
/* Only the parts [begin, end). */
void pst_box_cut(pst_box *box, uint64_t begin, uint64_t end);

enum { PST_STRAIGHT_MIN_BYTES = 64 * 1024 }; /* a shorter run is rather copied than read by a transfer of its own */

/* How the box's file is best read. */
typedef struct pst_walk_limits {
    uint64_t most;      /* bytes of a span that goes through memory of the reader */
    uint64_t straight;  /* of one that does not */
    uint32_t alignment; /* address and file offset must agree in this for a run to be read straight into `out` */
} pst_walk_limits;

typedef struct pst_walk {
    pst_box box;
    pst_walk_limits limits;
    uint32_t level; /* spans cover `group` steps of this loop and all loops in it; box.dims: parts of a run */
    uint64_t group, inner;
    uint64_t at[PST_MAX_RANK];
    uint64_t done; /* of a run */
    bool ended;
} pst_walk;

/* A stretch of the file, and the part of the box that is in it. */
typedef struct pst_stretch {
    uint64_t offset, bytes;
    unsigned char *out;
    uint32_t level; /* pst_box_copy; the box's dims: `bytes` contiguous bytes */
    uint64_t count;
    bool straight; /* contiguous, long enough and fitting: can be read into `out` itself */
} pst_stretch;

void pst_walk_begin(pst_walk *walk, const pst_box *box, const pst_walk_limits *limits);
/* false: that was all. */
bool pst_walk_next(pst_walk *walk, pst_stretch *out);
/* Copies what belongs to the box out of a stretch's bytes. */
void pst_box_copy(const pst_box *box, const pst_stretch *stretch, const void *data);

#endif
