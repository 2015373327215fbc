/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which units' parts stay in slots. Demand is reckoned at a stage's choice for all its units at once, so that it is always the
 * share of the same number of choices that is compared: else a part that was just used would seem to be more in demand than
 * one of a later layer whose turn in this pass is yet to come, and a cache smaller than a pass would keep nothing.
 */
#include <math.h>

#include "tier/ring_internal.h"

/* A choice's weight in the demand when the mean has settled: half is forgotten after 64 choices. Shorter memories lose on a
 * steady demand, longer ones on one that drifts; in simulations of both 64 reads least in sum. */
enum { SETTLED_CHOICES = 92 }; /* 64 / ln 2 */
/* To change places a part must be more in demand than by a rounding. */
static const float MARGIN = 1.001f;

static float demand_of(const pst_ring *ring, uint32_t part)
{
    const pst_part *p = &ring->plan->layout.parts[part];
    return ring->demand[ring->stage_states[p->stage].first_unit + p->unit];
}

static bool may_stay(const pst_ring *ring, uint32_t part)
{
    const pst_stage *stage = &ring->stages[ring->plan->layout.parts[part].stage];
    return ring->plan->cache_slots > 0 && stage->unit_count > 1 && pst_ring_is_chosen(stage);
}

static bool is_cached(const pst_ring *ring, uint32_t slot)
{
    return ring->slots[slot].part != PST_RING_NONE && ring->slots[slot].reader == PST_RING_NONE;
}

static bool may_go(const pst_ring_slot *cached)
{
    return !cached->pinned && cached->copies == 0;
}

/* The slot in the cache that is least in demand; PST_RING_NONE: all are pinned. */
static uint32_t find_coldest(const pst_ring *ring)
{
    uint32_t coldest = PST_RING_NONE;
    float least = INFINITY;
    for (uint32_t i = 0; i < ring->slot_count; i++) {
        if (ring->slot_demand[i] < least) {
            least = ring->slot_demand[i];
            coldest = i;
        }
    }
    return coldest;
}

void pst_ring_note_demand(pst_ring *ring, uint32_t stage)
{
    pst_ring_stage *state = &ring->stage_states[stage];
    const pst_stage *s = &ring->stages[stage];
    if (state->choices < SETTLED_CHOICES)
        state->choices++;
    float weight = 1.0f / (float)state->choices;
    for (uint32_t u = 0; u < s->unit_count; u++) {
        float *demand = &ring->demand[state->first_unit + u];
        *demand += weight * ((ring->wanted[state->first_unit + u] ? 1.0f : 0.0f) - *demand);
    }
    for (uint32_t part = state->first_part; ring->cached_count > 0 && part < state[1].first_part; part++) {
        uint32_t slot = ring->slot_of[part];
        if (slot != PST_RING_NONE && is_cached(ring, slot) && may_go(&ring->slots[slot]))
            ring->slot_demand[slot] = demand_of(ring, part);
    }
}

bool pst_ring_would_keep(const pst_ring *ring, uint32_t part)
{
    if (!may_stay(ring, part))
        return false;
    if (ring->cached_count < ring->plan->cache_slots)
        return true;
    uint32_t coldest = find_coldest(ring);
    return coldest != PST_RING_NONE && demand_of(ring, part) > ring->slot_demand[coldest] * MARGIN;
}

void pst_ring_free_slot(pst_ring *ring, uint32_t slot)
{
    ring->slot_of[ring->slots[slot].part] = PST_RING_NONE;
    ring->slots[slot] = (pst_ring_slot){.part = PST_RING_NONE, .reader = PST_RING_NONE};
    ring->slot_demand[slot] = INFINITY;
    ring->free_slots[ring->free_count++] = slot;
}

void pst_ring_settle(pst_ring *ring, uint32_t slot)
{
    uint32_t part = ring->slots[slot].part;
    if (!pst_ring_would_keep(ring, part)) {
        pst_ring_free_slot(ring, slot);
        return;
    }
    if (ring->cached_count == ring->plan->cache_slots)
        pst_ring_free_slot(ring, find_coldest(ring));
    else
        ring->cached_count++;
    ring->slots[slot].reader = PST_RING_NONE;
    ring->slots[slot].pinned = false;
    ring->slot_demand[slot] = demand_of(ring, part);
}

static void weigh(pst_ring *ring, uint32_t slot)
{
    ring->slot_demand[slot] = may_go(&ring->slots[slot]) ? demand_of(ring, ring->slots[slot].part) : INFINITY;
}

void pst_ring_pin(pst_ring *ring, uint32_t slot, bool pinned)
{
    ring->slots[slot].pinned = pinned;
    weigh(ring, slot);
}

void pst_ring_count_copy(pst_ring *ring, uint32_t slot, bool begins)
{
    ring->slots[slot].copies += begins ? 1 : UINT32_MAX;
    weigh(ring, slot);
}
