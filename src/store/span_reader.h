/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads any number of spans of files as fast as the drive gives them, through a bounded ring of memory or straight
 * into the caller's, and hands each over in the order in which it was asked for.
 *
 * Spans that lie near each other are read as one (a small gap costs less to read than another transfer), far ones are
 * packed, several reads to a slot of the ring. All slots but the one that is being handed over are in flight. Nothing
 * is allocated while it runs.
 *
 * One thread at a time.
 */
#ifndef PST_STORE_SPAN_READER_H
#define PST_STORE_SPAN_READER_H

#include "penstock/io.h"

enum {
    PST_SPAN_ALIGNMENT = 4096, /* of what is read through the ring, and where long stretches are best cut */
    PST_SPAN_GAP_BYTES =
        16 * 1024, /* up to so many bytes between two spans are read too, rather than two transfers made */
    PST_SPAN_STRAIGHT_BYTES =
        24 << 20 /* the most that a span with memory of its own should have; several are in flight */
};

typedef struct pst_span {
    pst_io_file *file;
    uint64_t offset, bytes; /* bytes > 0; without memory at most pst_span_reader_most */
    void *memory;           /* read straight into this; NULL: handed over in the ring's */
    size_t item;            /* this and the rest: for the taker */
    void *place;
    uint32_t level;
    uint64_t count;
} pst_span;

typedef struct pst_span_user {
    /* The next one. 1: there is; 0: that was all; negative: ends it. */
    int (*next)(void *user, pst_span *out, pst_error *err);
    /* It has arrived: `data` has its bytes, the taker's to change, until this returns. Negative: ends it. */
    int (*take)(void *user, const pst_span *span, void *data, pst_error *err);
    /* Adds to an error of reading what it was that could not be read. May be NULL. */
    void (*blame)(void *user, const pst_span *span, pst_error *err);
    void *user;
} pst_span_user;

typedef struct pst_span_reader pst_span_reader;

enum { PST_SPAN_RING_MIN_BYTES = 1 << 20 };

/* ring_bytes: all memory that it takes, its tables included; at least PST_SPAN_RING_MIN_BYTES. */
int pst_span_reader_create(pst_io *io, uint64_t ring_bytes, pst_span_reader **out, pst_error *err);
void pst_span_reader_destroy(pst_span_reader *reader);
/* The longest span through the ring. */
uint64_t pst_span_reader_most(const pst_span_reader *reader);
/* How much of the `left` bytes at `offset` a span of at most `most` should have, so that the next begins aligned. */
uint64_t pst_span_cut(uint64_t offset, uint64_t left, uint64_t most);
/* Returns when nothing is in flight any more, also on failure. */
int pst_span_reader_run(pst_span_reader *reader, const pst_span_user *user, pst_error *err);

#endif
