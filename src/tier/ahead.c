/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading ahead. One cursor walks the order of use and has read what is not there. At a stage that is not yet chosen (the
 * gate) it reads what is guessed and goes on; when the stage has chosen, the cursor returns to it and passes by again.
 *
 * No deadlock: readers with parts from the gate on are half of all at most, and what a choice brings is read in order, so the
 * part that is computed next always finds a reader sooner or later; pst_ring_require frees one by force if it did not.
 */
#include <string.h>

#include "base/error.h"
#include "os/clock.h"
#include "tier/ring_internal.h"

/* How long the owner sleeps in a wait before it looks at the cancel flag again. */
static const uint64_t CANCEL_CHECK_NS = 50 * 1000 * 1000;

enum { CHOICES_TO_GUESS_BY = 8 };
/* Guesses are followed while this share of them is right; of the last 64 or so, followed or not. Worse ones would cost more
 * of the drive than the time in which it would stand still. */
static const float WORTH_READING = 0.7f, GUESS_WEIGHT = 1.0f / 64;

static bool is_before(pst_ring_place a, pst_ring_place b)
{
    return a.pass != b.pass ? a.pass < b.pass : a.part < b.part;
}

static bool is_known(const pst_ring *ring, uint32_t stage, uint64_t pass)
{
    return !pst_ring_is_chosen(&ring->stages[stage]) || ring->stage_states[stage].chosen_pass == pass;
}

bool pst_ring_wants(const pst_ring *ring, uint32_t part, uint64_t pass)
{
    const pst_part *p = &ring->plan->layout.parts[part];
    if (!pst_ring_is_chosen(&ring->stages[p->stage]))
        return true;
    const pst_ring_stage *state = &ring->stage_states[p->stage];
    return state->chosen_pass == pass && ring->wanted[state->first_unit + p->unit];
}

/* Whether to read a part of a stage that is not yet chosen. */
static bool is_likely(const pst_ring *ring, uint32_t part, uint64_t pass)
{
    const pst_part *p = &ring->plan->layout.parts[part];
    const pst_ring_stage *state = &ring->stage_states[p->stage];
    return ring->whole || (state->guessed_pass == pass && ring->guess_quality >= WORTH_READING &&
                           ring->guessed[state->first_unit + p->unit]);
}

/* The first place from `now` on where it is not known what is needed. */
static pst_ring_place find_gate(const pst_ring *ring)
{
    const pst_ring_place none = {UINT64_MAX, 0};
    if (ring->whole || !ring->has_choices)
        return none;
    for (uint64_t pass = ring->now.pass; pass <= ring->now.pass + 1; pass++)
        for (uint32_t s = 0; s < ring->stage_count; s++)
            if (!is_known(ring, s, pass) &&
                (pass > ring->now.pass || ring->stage_states[s].first_part >= ring->now.part))
                return (pst_ring_place){pass, ring->stage_states[s].first_part};
    return none;
}

static uint32_t count_beyond(const pst_ring *ring, pst_ring_place gate)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < ring->plan->slots; i++) {
        const pst_ring_reader *reader = &ring->readers[i];
        count += reader->state == PST_READER_BUSY && !is_before((pst_ring_place){reader->pass, reader->part}, gate);
    }
    return count;
}

static pst_ring_reader *find_reader(const pst_ring *ring, bool idle)
{
    for (uint32_t i = 0; i < ring->plan->slots; i++)
        if (idle ? ring->readers[i].state == PST_READER_IDLE : ring->readers[i].state > PST_READER_BUSY)
            return &ring->readers[i];
    return NULL;
}

void pst_ring_trace_read(pst_ring *ring, const pst_ring_reader *reader, const char *name, uint64_t bytes)
{
    /* The drive turns to a part when the one before is done; so the spans of a track follow each other. */
    uint64_t done_ns = pst_io_batch_completed_ns(reader->batch);
    uint64_t begun_ns = reader->submitted_ns > ring->drive_done_ns ? reader->submitted_ns : ring->drive_done_ns;
    if (done_ns > begun_ns)
        pst_trace_span(ring->trace, PST_TRACE_DRIVE, name, begun_ns, done_ns, bytes);
    ring->drive_done_ns = done_ns > ring->drive_done_ns ? done_ns : ring->drive_done_ns;
}

/* A reader that was dropped has ended, with this status of its batch. */
static void end_dropped(pst_ring *ring, pst_ring_reader *reader, int status)
{
    const pst_part *part = &ring->plan->layout.parts[reader->part];
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < part->extent_count; i++)
        bytes += reader->ops[i].result > 0 ? (uint64_t)reader->ops[i].result : 0;
    bytes = bytes < part->weight_bytes ? bytes : part->weight_bytes; /* without what alignment adds */
    ring->stats.weight_bytes += bytes;
    ring->stats.wasted_bytes += bytes;
    pst_ring_trace_read(ring, reader, "read in vain", bytes);
    reader->state = PST_READER_IDLE;
    if (status >= 0 && pst_ring_check_reads(ring, part, reader->ops, NULL) >= 0)
        pst_ring_settle(ring, reader->slot);
    else
        pst_ring_free_slot(ring, reader->slot); /* whoever needs it reads it again and learns what is wrong with it */
}

/* Takes back the readers that were dropped and have ended. */
static void reap(pst_ring *ring)
{
    for (uint32_t i = 0; i < ring->plan->slots && ring->dropped_count > 0; i++) {
        pst_ring_reader *reader = &ring->readers[i];
        if (reader->state <= PST_READER_BUSY)
            continue;
        int status = pst_io_wait(reader->batch, 0, NULL);
        if (status == 1)
            continue;
        ring->dropped_count--;
        end_dropped(ring, reader, status);
    }
}

/* Nobody needs what it reads. It ends at once unless the cache would like to have it. */
static void drop(pst_ring *ring, pst_ring_reader *reader, bool at_once)
{
    bool keeps = !at_once && pst_ring_would_keep(ring, reader->part);
    reader->state = keeps ? PST_READER_DROPPED : PST_READER_CANCELLED;
    ring->dropped_count++;
    if (!keeps)
        pst_io_cancel(reader->batch);
}

/* Passes by a part that is there or on its way. False: its reader was cancelled, or its turn was in the pass before, and that
 * has to end first. */
static bool pass_by(pst_ring *ring, uint32_t slot)
{
    const pst_ring_slot *at = &ring->slots[slot];
    if (at->reader == PST_RING_NONE) {
        if (pst_ring_wants(ring, at->part, ring->cursor.pass))
            pst_ring_pin(ring, slot, true);
        return true;
    }
    pst_ring_reader *reader = &ring->readers[at->reader];
    if (reader->state == PST_READER_CANCELLED || reader->state == PST_READER_COPYING)
        return false;
    if (reader->state == PST_READER_DROPPED) { /* needed after all */
        ring->dropped_count--;
        reader->state = PST_READER_BUSY;
        reader->pass = ring->cursor.pass;
    }
    return true;
}

/* The next part to read, at the cursor; PST_RING_NONE: none for now. */
static uint32_t next_part(pst_ring *ring, pst_ring_place gate)
{
    const pst_layout *layout = &ring->plan->layout;
    uint32_t most_beyond = ring->plan->slots < 4 ? 0 : ring->plan->slots / 2;
    for (pst_ring_place *cursor = &ring->cursor;; cursor->part++) {
        if (cursor->pass > ring->now.pass && cursor->part >= ring->now.part)
            return PST_RING_NONE; /* once around: the part is still wanted for the pass before */
        if (cursor->part == layout->part_count) {
            if (cursor->pass >= ring->last_pass)
                return PST_RING_NONE;
            *cursor = (pst_ring_place){cursor->pass + 1, 0};
            if (ring->now.part == 0)
                return PST_RING_NONE;
        }
        const pst_part *part = &layout->parts[cursor->part];
        if (ring->plan->places[cursor->part] != PST_PLACE_DISK || ring->stages[part->stage].gathered ||
            part->extent_count == 0)
            continue;
        bool wanted = is_known(ring, part->stage, cursor->pass) ? pst_ring_wants(ring, cursor->part, cursor->pass)
                                                                : is_likely(ring, cursor->part, cursor->pass);
        if (!wanted)
            continue;
        uint32_t slot = ring->slot_of[cursor->part];
        if (slot == PST_RING_NONE)
            return is_before(*cursor, gate) || count_beyond(ring, gate) < most_beyond ? cursor->part : PST_RING_NONE;
        if (!pass_by(ring, slot))
            return PST_RING_NONE;
    }
}

static int submit(pst_ring *ring, pst_ring_reader *reader, uint32_t number, pst_error *err)
{
    const pst_part *part = &ring->plan->layout.parts[number];
    uint32_t slot = ring->free_slots[ring->free_count - 1];
    uint32_t count = pst_ring_prepare_reads(ring, part, pst_ring_slot_memory(ring, slot), reader->ops);
    reader->part = number;
    reader->slot = slot;
    reader->pass = ring->cursor.pass;
    reader->guessed = !is_known(ring, part->stage, ring->cursor.pass);
    reader->submitted_ns = pst_clock_ns();
    PST_TRY(pst_io_submit(reader->batch, reader->ops, count, err));
    reader->state = PST_READER_BUSY;
    ring->free_count--;
    ring->slots[slot] = (pst_ring_slot){.part = number, .reader = (uint32_t)(reader - ring->readers)};
    ring->slot_of[number] = slot;
    return 0;
}

int pst_ring_fill(pst_ring *ring, pst_error *err)
{
    if (ring->link != NULL)
        PST_TRY(pst_ring_link_reap(ring, false, err));
    reap(ring);
    pst_ring_reader *reader = find_reader(ring, true);
    if (reader == NULL)
        return 0;
    if (is_before(ring->cursor, ring->now))
        ring->cursor = ring->now;
    pst_ring_place gate = find_gate(ring);
    for (; reader != NULL; reader = find_reader(ring, true)) {
        uint32_t part = next_part(ring, gate);
        if (part == PST_RING_NONE)
            return 0;
        PST_TRY(submit(ring, reader, part, err));
        ring->cursor.part++;
    }
    return 0;
}

/* Waits until a dropped reader has ended. */
static int await_dropped(pst_ring *ring, pst_ring_reader *reader, pst_error *err)
{
    int status;
    while ((status = pst_io_wait(reader->batch, CANCEL_CHECK_NS, NULL)) == 1)
        if (atomic_load_explicit(ring->cancel, memory_order_relaxed))
            return pst_fail(err, PST_E_CANCELLED, NULL, "cancelled");
    ring->dropped_count--;
    end_dropped(ring, reader, status);
    return 0;
}

/* The busy reader whose part is needed last. */
static pst_ring_reader *find_farthest(const pst_ring *ring)
{
    pst_ring_reader *farthest = NULL;
    for (uint32_t i = 0; i < ring->plan->slots; i++) {
        pst_ring_reader *reader = &ring->readers[i];
        if (reader->state == PST_READER_BUSY &&
            (farthest == NULL ||
             is_before((pst_ring_place){farthest->pass, farthest->part}, (pst_ring_place){reader->pass, reader->part})))
            farthest = reader;
    }
    return farthest;
}

int pst_ring_require(pst_ring *ring, uint32_t part, pst_error *err)
{
    for (;;) {
        uint32_t slot = ring->slot_of[part];
        uint32_t number = slot == PST_RING_NONE ? PST_RING_NONE : ring->slots[slot].reader;
        if (slot != PST_RING_NONE && (number == PST_RING_NONE || ring->readers[number].state == PST_READER_BUSY))
            return 0;
        pst_ring_reader *reader = NULL;
        bool is_copied = number != PST_RING_NONE && ring->readers[number].state == PST_READER_COPYING;
        if (is_copied || (pst_ring_link_is_busy(ring) && find_reader(ring, true) == NULL))
            PST_TRY(pst_ring_link_reap(ring, true, err)); /* slots become free without anything being given up */
        else if (number != PST_RING_NONE)
            reader = &ring->readers[number];
        else if (find_reader(ring, true) == NULL && (reader = find_reader(ring, false)) == NULL) {
            reader = find_farthest(ring);
            drop(ring, reader, true);
        }
        if (reader != NULL)
            PST_TRY(await_dropped(ring, reader, err));
        ring->cursor = ring->now;
        PST_TRY(pst_ring_fill(ring, err));
    }
}

/* The units that most passes needed lately: what to read when the stage has no idea. The drive would stand still otherwise. */
static bool guess_by_demand(pst_ring *ring, uint32_t s)
{
    const pst_ring_stage *state = &ring->stage_states[s];
    bool any = false;
    for (uint32_t u = 0; u < ring->stages[s].unit_count && state->choices >= CHOICES_TO_GUESS_BY; u++)
        any |= ring->guessed[state->first_unit + u] = ring->demand[state->first_unit + u] > 0.5f;
    return any;
}

/* Asks the next stage that has not chosen for its guess. */
static void guess_next(pst_ring *ring, uint32_t from)
{
    uint32_t s = from;
    while (s < ring->stage_count && is_known(ring, s, ring->now.pass))
        s++;
    if (s == ring->stage_count)
        return;
    const pst_stage *stage = &ring->stages[s];
    pst_ring_stage *state = &ring->stage_states[s];
    memset(ring->guessed + state->first_unit, 0, stage->unit_count);
    if ((stage->guess != NULL && stage->guess(stage->context, stage, ring->guessed + state->first_unit) > 0) ||
        guess_by_demand(ring, s))
        state->guessed_pass = ring->now.pass;
}

/* How good the guess was, as to what the cache had not got: that alone is worth a guess, and it is the harder part. */
static void judge_guess(pst_ring *ring, uint32_t s)
{
    const pst_ring_stage *state = &ring->stage_states[s];
    for (uint32_t part = state->first_part; part < state[1].first_part && ring->slot_of != NULL; part++) {
        uint32_t slot = ring->slot_of[part], unit = state->first_unit + ring->plan->layout.parts[part].unit;
        bool is_cached = slot != PST_RING_NONE && ring->slots[slot].reader == PST_RING_NONE;
        if (ring->guessed[unit] && !is_cached)
            ring->guess_quality += GUESS_WEIGHT * ((ring->wanted[unit] ? 1.0f : 0.0f) - ring->guess_quality);
    }
}

static void choose(pst_ring *ring, uint32_t s)
{
    const pst_stage *stage = &ring->stages[s];
    pst_ring_stage *state = &ring->stage_states[s];
    memset(ring->wanted + state->first_unit, 0, stage->unit_count);
    stage->choose(stage->context, stage, ring->wanted + state->first_unit);
    state->chosen_pass = ring->now.pass;
    if (state->guessed_pass == ring->now.pass)
        judge_guess(ring, s);
    pst_ring_note_demand(ring, s);
    for (uint32_t i = 0; i < ring->plan->slots; i++) {
        pst_ring_reader *reader = &ring->readers[i];
        if (reader->state != PST_READER_BUSY || reader->pass != ring->now.pass ||
            ring->plan->layout.parts[reader->part].stage != s)
            continue;
        bool wanted = pst_ring_wants(ring, reader->part, ring->now.pass);
        if (reader->guessed)
            ++*(wanted ? &ring->stats.guessed_right : &ring->stats.guessed_wrong);
        if (!wanted)
            drop(ring, reader, false);
    }
}

void pst_ring_choose(pst_ring *ring, uint32_t stage)
{
    choose(ring, stage);
    pst_ring_place begin = {ring->now.pass, ring->stage_states[stage].first_part};
    if (is_before(begin, ring->cursor))
        ring->cursor = begin;
    guess_next(ring, stage + 1);
}

void pst_ring_begin_ahead(pst_ring *ring)
{
    ring->cursor = ring->now;
    for (uint32_t s = 0; s < ring->stage_count && ring->has_choices; s++)
        if (pst_ring_is_chosen(&ring->stages[s]) && ring->stages[s].chosen_early)
            choose(ring, s);
    guess_next(ring, 0);
}
