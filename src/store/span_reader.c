/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A slot of the ring is one batch: reads through the slot's own memory, each for one or several spans, and reads
 * straight into the caller's. Slots are filled, submitted and handed over in turn, so that spans arrive in order
 * whatever the drive does first.
 */
#include "store/span_reader.h"

#include <stdbool.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/number.h"
#include "os/memory.h"

enum {
    SLOTS = 8,
    OPS = 64,    /* reads of a slot */
    SPANS = 512, /* spans of a slot */
    MAX_SLOT_BYTES = 16 << 20,
    MAX_SPAN_BYTES = 2 << 20 /* what is copied and then digested is still in the cache */
};

typedef struct placed {
    pst_span span;
    uint32_t op;
} placed;

typedef struct slot {
    unsigned char *memory;
    uint64_t used;  /* of memory */
    uint64_t bytes; /* of all its reads */
    pst_io_batch *batch;
    pst_io_op ops[OPS];
    placed spans[SPANS];
    uint32_t op_count, span_count;
    uint32_t last; /* the op that came last through memory; OPS: none */
} slot;

struct pst_span_reader {
    pst_io *io;
    unsigned char *memory; /* SLOTS * slot_bytes */
    uint64_t slot_bytes;
    slot *slots;
    /* of a run */
    const pst_span_user *user;
    pst_span kept; /* one that did not fit the slot before */
    bool has_kept, at_end;
};

int pst_span_reader_create(pst_io *io, uint64_t ring_bytes, pst_span_reader **out, pst_error *err)
{
    uint64_t tables = SLOTS * sizeof(slot);
    if (ring_bytes < PST_SPAN_RING_MIN_BYTES)
        return pst_fail(err, PST_E_USAGE, NULL, "a ring for reading has at least %d bytes", PST_SPAN_RING_MIN_BYTES);
    pst_span_reader *reader = pst_heap_calloc(1, sizeof *reader);
    if (reader == NULL)
        return pst_fail_memory(err, "a reader", sizeof *reader);
    reader->io = io;
    reader->slot_bytes = pst_min(pst_round_down((ring_bytes - tables) / SLOTS, PST_SPAN_ALIGNMENT), MAX_SLOT_BYTES);
    int status = 0;
    void *memory = NULL;
    reader->slots = pst_heap_calloc(SLOTS, sizeof *reader->slots);
    if (reader->slots == NULL)
        PST_TRY_GOTO(failed, pst_fail_memory(err, "a reader", tables));
    PST_TRY_GOTO(failed, pst_memory_map(SLOTS * reader->slot_bytes, "read buffers", &memory, err));
    reader->memory = memory;
    for (unsigned i = 0; i < SLOTS; i++) {
        reader->slots[i].memory = reader->memory + i * reader->slot_bytes;
        PST_TRY_GOTO(failed, pst_io_batch_create(io, OPS, &reader->slots[i].batch, err));
    }
    *out = reader;
    return 0;
failed:
    pst_span_reader_destroy(reader);
    return status;
}

void pst_span_reader_destroy(pst_span_reader *reader)
{
    if (reader == NULL)
        return;
    for (unsigned i = 0; reader->slots != NULL && i < SLOTS; i++)
        pst_io_batch_destroy(reader->slots[i].batch);
    if (reader->memory != NULL)
        pst_memory_unmap(reader->memory, SLOTS * reader->slot_bytes);
    pst_heap_free(reader->slots);
    pst_heap_free(reader);
}

uint64_t pst_span_reader_most(const pst_span_reader *reader)
{
    return pst_min(reader->slot_bytes - 2 * PST_SPAN_ALIGNMENT, MAX_SPAN_BYTES);
}

uint64_t pst_span_cut(uint64_t offset, uint64_t left, uint64_t most)
{
    if (left <= most)
        return left;
    uint64_t end = pst_round_down(offset + most, PST_SPAN_ALIGNMENT);
    return end > offset ? end - offset : most;
}

/* ---- filling a slot ---- */

static void place(slot *s, const pst_span *span, uint32_t op)
{
    s->spans[s->span_count++] = (placed){*span, op};
    s->bytes += span->bytes;
}

static bool add_straight(slot *s, const pst_span *span)
{
    if (s->op_count == OPS || (s->bytes > 0 && s->bytes + span->bytes > PST_SPAN_STRAIGHT_BYTES))
        return false;
    s->ops[s->op_count] = (pst_io_op){
        .file = span->file, .offset = span->offset, .buffer = span->memory, .bytes = span->bytes, .kind = PST_IO_READ};
    place(s, span, s->op_count++);
    return true;
}

/* Makes the last read through memory longer, so that it covers this span too. */
static bool extend(const pst_span_reader *reader, slot *s, const pst_span *span)
{
    if (s->last == OPS)
        return false;
    pst_io_op *op = &s->ops[s->last];
    uint64_t end = op->offset + op->bytes, wanted = pst_round_up(span->offset + span->bytes, PST_SPAN_ALIGNMENT);
    if (op->file != span->file || span->offset < op->offset ||
        (span->offset > end && span->offset - end > PST_SPAN_GAP_BYTES))
        return false;
    uint64_t more = wanted > end ? wanted - end : 0;
    if (more > reader->slot_bytes - s->used)
        return false;
    op->bytes += more;
    s->used += more;
    place(s, span, s->last);
    return true;
}

static bool add(const pst_span_reader *reader, slot *s, const pst_span *span)
{
    if (s->span_count == SPANS)
        return false;
    if (span->memory != NULL)
        return add_straight(s, span);
    if (extend(reader, s, span))
        return true;
    uint64_t start = pst_round_down(span->offset, PST_SPAN_ALIGNMENT);
    uint64_t bytes = pst_round_up(span->offset + span->bytes, PST_SPAN_ALIGNMENT) - start;
    if (s->op_count == OPS || bytes > reader->slot_bytes - s->used)
        return false;
    s->ops[s->op_count] = (pst_io_op){.file = span->file,
                                      .offset = start,
                                      .buffer = s->memory + s->used,
                                      .bytes = bytes,
                                      .kind = PST_IO_READ,
                                      .may_be_short = true}; /* rounded up past the end of the file */
    s->used += bytes;
    s->last = s->op_count;
    place(s, span, s->op_count++);
    return true;
}

/* Takes spans until the slot is full or there are no more. */
static int fill(pst_span_reader *reader, slot *s, pst_error *err)
{
    s->used = s->bytes = 0;
    s->op_count = s->span_count = 0;
    s->last = OPS;
    for (;;) {
        if (!reader->has_kept) {
            int more = reader->user->next(reader->user->user, &reader->kept, err);
            PST_TRY(more);
            if (more == 0) {
                reader->at_end = true;
                return 0;
            }
            reader->has_kept = true;
        }
        if (!add(reader, s, &reader->kept)) {
            if (s->span_count > 0)
                return 0;
            return pst_fail(err, PST_E_USAGE, pst_io_file_path(reader->kept.file), "a span that no slot can hold");
        }
        reader->has_kept = false;
    }
}

/* ---- handing over ---- */

static void blame(const pst_span_reader *reader, const slot *s, uint32_t op, pst_error *err)
{
    const placed *found = NULL;
    if (err == NULL || reader->user->blame == NULL)
        return;
    for (uint32_t i = 0; i < s->span_count; i++) { /* the one that holds the place, else the first of that read */
        const placed *p = &s->spans[i];
        if (p->op != op)
            continue;
        if (found == NULL || p->span.offset <= err->offset)
            found = p;
    }
    if (found != NULL)
        reader->user->blame(reader->user->user, &found->span, err);
}

static int fail_slot(const pst_span_reader *reader, const slot *s, int status, pst_error *err)
{
    for (uint32_t i = 0; i < s->op_count; i++) {
        if (s->ops[i].result >= 0)
            continue;
        blame(reader, s, i, err);
        break;
    }
    return status;
}

static int fail_short(const pst_span_reader *reader, const slot *s, const placed *p, pst_error *err)
{
    const pst_io_op *op = &s->ops[p->op];
    int status = pst_fail_at(err, PST_E_SHORT, pst_io_file_path(op->file), op->offset + (uint64_t)op->result,
                             "the file ends early, within its data");
    if (err != NULL && reader->user->blame != NULL)
        reader->user->blame(reader->user->user, &p->span, err);
    return status;
}

static int hand_over(const pst_span_reader *reader, slot *s, pst_error *err)
{
    int status = pst_io_wait(s->batch, UINT64_MAX, err);
    if (status < 0)
        return fail_slot(reader, s, status, err);
    for (uint32_t i = 0; i < s->span_count; i++) {
        const placed *p = &s->spans[i];
        const pst_io_op *op = &s->ops[p->op];
        uint64_t skip = p->span.offset - op->offset;
        if ((uint64_t)op->result < skip + p->span.bytes)
            return fail_short(reader, s, p, err);
        PST_TRY(reader->user->take(reader->user->user, &p->span, (unsigned char *)op->buffer + skip, err));
    }
    return 0;
}

int pst_span_reader_run(pst_span_reader *reader, const pst_span_user *user, pst_error *err)
{
    reader->user = user;
    reader->has_kept = reader->at_end = false;
    unsigned first = 0, in_flight = 0;
    int status = 0;
    for (;;) {
        while (in_flight < SLOTS && !reader->at_end) {
            slot *s = &reader->slots[(first + in_flight) % SLOTS];
            PST_TRY_GOTO(done, fill(reader, s, err));
            if (s->op_count == 0)
                break;
            PST_TRY_GOTO(done, pst_io_submit(s->batch, s->ops, s->op_count, err));
            in_flight++;
        }
        if (in_flight == 0)
            return 0;
        slot *s = &reader->slots[first];
        first = (first + 1) % SLOTS;
        in_flight--;
        PST_TRY_GOTO(done, hand_over(reader, s, err));
    }
done: /* the memory is the caller's again when this returns */
    for (unsigned i = 0; i < in_flight; i++)
        pst_io_cancel(reader->slots[(first + i) % SLOTS].batch);
    for (unsigned i = 0; i < in_flight; i++)
        pst_io_wait(reader->slots[(first + i) % SLOTS].batch, UINT64_MAX, NULL);
    return status;
}
