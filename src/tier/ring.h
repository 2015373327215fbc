/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The streaming ring executes a plan: it keeps resident parts in memory, reads the others into slots ahead of their use,
 * hands every part that the pass needs to its stage's function in order, and takes the slot back.
 *
 * While the owner computes, up to `slots` parts are being read or wait to be used; the slot just released is filled again
 * before the next part is computed. After a pass's last part the ring goes on with the next pass's first ones.
 *
 * Stages with units. What a pass needs of them is known when all before them is computed (`choose`). Until then the ring reads
 * what the stage guesses, and what is certain behind it, with half of the slots at most, so that the rest is free for what
 * the choice brings, and no guesses while many were wrong; a pass of so many rows that nearly all units are needed reads as if all were (plan->whole_rows). What is
 * read in vain is dropped, never computed. A slot whose part was used may keep it: the plan's cache_slots hold the parts of
 * units that were most in demand, and nothing is ever copied. Demand is the share of the last passes that needed the unit
 * (the mean over all at first, then with a half-life of 64 passes, so that it follows a drift); a part comes into the cache
 * when it was read anyway and is more in demand than the least demanded one there.
 *
 * With a device that is not the host (link.h) the parts that are not there are copied into its slots as their turn comes, and
 * the functions get the device's memory. The owner runs ahead of the device: a slot of the ring, or of the cache, stays as it
 * is until its copy is done. A failure of the device reaches the caller in the pass in which it is noticed.
 *
 * Invariants: a part is in one slot at most; every part is computed once per pass at most, in the order of the layout, whatever
 * was guessed or cached. A part that the pass needs is pinned from when reading ahead has come by it until it is computed.
 *
 * Threads: one owner thread. pst_ring_pass allocates nothing.
 */
#ifndef PST_TIER_RING_H
#define PST_TIER_RING_H

#include <stdatomic.h>

#include "base/trace.h"
#include "penstock/device_plugin.h"
#include "penstock/io.h"
#include "tier/plan.h"

typedef struct pst_ring pst_ring;

typedef struct pst_ring_config {
    const pst_store *store;
    const pst_stage *stages;
    size_t stage_count;
    const pst_plan *plan;      /* outlives the ring */
    pst_io *io;                /* outlives the ring */
    pst_trace *trace;          /* may be NULL */
    const atomic_bool *cancel; /* looked at between parts and while waiting */
    bool lock_memory;          /* slots and resident weights are not paged out; a warning where that is not allowed */
    pst_device *device;        /* that computes, outlives the ring; NULL, or one that is the host: as the plan has it */
} pst_ring_config;

/* Opens the store's files, allocates, and loads the resident parts. Streaming begins with the first pass. */
int pst_ring_create(const pst_ring_config *config, pst_ring **out, pst_error *err);
void pst_ring_destroy(pst_ring *ring); /* drops what is in flight */

/* One pass over the stages that are not gathered, with `rows` rows. `more`: another pass is expected, so read on across the end.
 * After a failure the ring can only be destroyed, unless pst_ring_is_resident. */
int pst_ring_pass(pst_ring *ring, uint32_t rows, bool more, pst_error *err);

/* Whether all parts stay where they are computed with, in an accelerator's memory, and no stage chooses by what another one has
 * computed. Then the stages' functions do the same in every pass, and after a failure a pass may be run again. */
bool pst_ring_is_resident(const pst_ring *ring);
/* With such parts: counts a pass from when to when that was carried out otherwise than by the stages' functions. */
void pst_ring_count_pass(pst_ring *ring, uint64_t begin_ns, uint64_t end_ns);

/* Fetches rows of a gathered stage's only tensor: body(context, i, row) for i in 0..count-1, each once, any order;
 * row is valid in the call. row ids must be below the tensor's rows. */
typedef int pst_ring_row(void *context, size_t index, const void *row);
int pst_ring_gather(pst_ring *ring, uint32_t stage, const uint32_t *rows, size_t count, pst_ring_row *body,
                    void *context, pst_error *err);

/* Reads about `bytes` of streamed parts (over and over where there are fewer), for a second at most, as a pass would, and
 * gives the rate in bytes per second; 0 when nothing streams. Before the first pass only. */
int pst_ring_measure(pst_ring *ring, uint64_t bytes, double *out, pst_error *err);

/* Copies parts that are in host memory (those that pst_ring_measure left in the slots, or resident ones) to the device's slots,
 * over and over for a tenth of a second, and gives the rate in bytes per second; 0 when nothing crosses the link. Before the
 * first pass only. */
int pst_ring_measure_link(pst_ring *ring, double *out, pst_error *err);

/* Up to `most` parts that are in the memory of whoever computes, to measure arithmetic with, and how many: those that the two
 * functions above left in slots, or resident ones where there are none. Before the first pass only. */
uint32_t pst_ring_samples(const pst_ring *ring, pst_stage_part *out, uint32_t most);
/* Whether slots and resident weights are locked in memory. */
bool pst_ring_is_locked(const pst_ring *ring);
/* Whether every file is read past the page cache. */
bool pst_ring_is_direct(const pst_ring *ring);

typedef struct pst_ring_stats {
    uint64_t weight_bytes; /* streamed and gathered tensor bytes that came from the drive */
    uint64_t wait_ns;      /* the owner waited for a read */
    uint64_t compute_ns;   /* in stage functions */
    /* Of stages with more than one unit: parts that a pass needed and that were in the cache or were not, and their tensor bytes. */
    uint64_t cache_hits, cache_misses;
    uint64_t cache_hit_bytes, cache_miss_bytes;
    /* Parts of units that were read before they were chosen, by what the choice was; and the bytes read in vain. */
    uint64_t guessed_right, guessed_wrong;
    uint64_t wasted_bytes; /* part of weight_bytes */
    uint64_t link_bytes;   /* tensor bytes that were copied to the device in passes */
    uint64_t link_wait_ns; /* the owner waited for a copy, so that its slot could be used again */
} pst_ring_stats;
void pst_ring_get_stats(const pst_ring *ring, pst_ring_stats *out);

/* Memory that the ring needs beside slots and resident parts: the gather buffer. A pure function of the stages. */
uint64_t pst_ring_gather_bytes(const pst_stage *stages, size_t stage_count);

#endif
