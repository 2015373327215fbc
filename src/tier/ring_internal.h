/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What ring.c (the pass), ahead.c (reading ahead), cache.c (which units' parts stay), gather.c (single rows), ring_link.c (on to
 * a device), measure.c and ring_memory.c (making and filling) share.
 */
#ifndef PST_TIER_RING_INTERNAL_H
#define PST_TIER_RING_INTERNAL_H

#include "tier/link.h"
#include "tier/ring.h"

enum { PST_GATHER_ROWS = 64 }; /* rows fetched in one batch */
#define PST_RING_NONE UINT32_MAX

/* A read under way, or done and its part not yet computed. There are plan->slots of them, each with a slot while it is busy. */
typedef enum pst_reader_state {
    PST_READER_IDLE,
    PST_READER_COPYING, /* its part's turn is over, but the device still copies from the slot */
    PST_READER_BUSY,
    PST_READER_DROPPED,  /* nobody needs it: idle again when it has ended */
    PST_READER_CANCELLED /* likewise, and it was told to end at once, so its part is not there */
} pst_reader_state;

typedef struct pst_ring_reader {
    pst_io_batch *batch;
    pst_io_op *ops; /* layout.max_extents */
    pst_reader_state state;
    uint32_t part, slot;
    uint64_t pass; /* that it reads for */
    uint64_t submitted_ns;
    bool guessed; /* read before its stage was chosen */
} pst_ring_reader;

/* A slot is free, a reader's, or in the cache. */
typedef struct pst_ring_slot {
    uint32_t part;   /* PST_RING_NONE: free */
    uint32_t reader; /* PST_RING_NONE: free or cached */
    bool pinned;     /* cached, and this pass or the next will compute it */
    uint32_t copies; /* cached: that the device makes of it just now */
} pst_ring_slot;

/* What is known of a stage with units (choose not NULL) in this pass, and of every stage's place. */
typedef struct pst_ring_stage {
    uint32_t first_part;  /* of the layout; the next stage's is the end */
    uint32_t first_unit;  /* into wanted, guessed and demand */
    uint64_t chosen_pass; /* the last pass that it was chosen in, from 1 on; 0: none */
    uint64_t guessed_pass;
    uint32_t choices; /* passes that it was chosen in, up to where demand forgets as fast as it learns */
} pst_ring_stage;

/* A place in the order of use: passes are counted from 1. */
typedef struct pst_ring_place {
    uint64_t pass;
    uint32_t part;
} pst_ring_place;

/* A run of rows of a gathered tensor that lies in resident memory. */
typedef struct pst_resident_rows {
    uint64_t first_row, rows;
    const unsigned char *data;
} pst_resident_rows;

/* How one gathered stage's rows are found. */
typedef struct pst_gatherer {
    uint32_t stage;
    pst_resident_rows *resident; /* sorted by first_row */
    uint32_t resident_count;
} pst_gatherer;

struct pst_ring {
    const pst_store *store;
    const pst_stage *stages;
    size_t stage_count;
    const pst_plan *plan;
    pst_io *io;
    pst_trace *trace;
    const atomic_bool *cancel;
    bool lock_memory;
    pst_link *link; /* NULL: the host computes */

    pst_io_file **files; /* by the store's file number */
    size_t file_count;
    unsigned char *slot_memory, *resident_memory;
    const unsigned char **resident_parts; /* by part; NULL where it streams */

    pst_ring_reader *readers; /* plan->slots */
    pst_ring_slot *slots;     /* plan->slots + plan->cache_slots, slot_count */
    uint32_t slot_count;
    uint32_t *free_slots;
    uint32_t free_count;
    uint32_t *slot_of; /* by part: where it is, or PST_RING_NONE */

    pst_ring_stage *stage_states; /* stage_count + 1 */
    bool *wanted, *guessed;       /* by unit of all stages */
    float *demand;                /* likewise: share of passes that needed it */
    float *slot_demand;           /* by slot: its part's unit's, infinite unless the slot may be taken from the cache */
    uint32_t cached_count, dropped_count;
    bool has_choices; /* some stage has units to choose */

    pst_ring_place now;     /* everything before it is computed */
    pst_ring_place cursor;  /* everything before it that is wanted for certain is there or on its way */
    float guess_quality;    /* share of guesses that were right, as far as the cache did not have them */
    uint64_t last_pass;     /* no reading past its end */
    bool whole;             /* stages not yet chosen are read as if all of them were wanted */
    uint64_t drive_done_ns; /* when the last part noted in the timeline had come */

    uint32_t *stream; /* numbers of the streamed parts, for measuring */
    uint32_t stream_count;
    uint32_t measured_count, measured_step; /* parts that measuring read, and from one to the next in the stream */

    pst_gatherer *gatherers;
    uint32_t gatherer_count;
    unsigned char *gather_memory;
    uint64_t gather_memory_bytes, gather_slot_bytes;
    pst_io_batch *gather_batch;
    pst_io_op gather_ops[PST_GATHER_ROWS];

    pst_ring_stats stats;
};

static inline unsigned char *pst_ring_slot_memory(const pst_ring *ring, uint32_t slot)
{
    return ring->slot_memory + slot * ring->plan->slot_bytes;
}

/* Whether a pass may need only some of the stage. */
static inline bool pst_ring_is_chosen(const pst_stage *stage)
{
    return stage->unit_count > 0 && stage->choose != NULL && !stage->gathered;
}

/* Writes a part's reads into ops; their count. */
uint32_t pst_ring_prepare_reads(const pst_ring *ring, const pst_part *part, unsigned char *memory, pst_io_op *ops);
/* Whether every read brought what the part needs. */
int pst_ring_check_reads(const pst_ring *ring, const pst_part *part, const pst_io_op *ops, pst_error *err);
/* Waits for a batch, or fails with PST_E_CANCELLED (the batch is then still in flight). */
int pst_ring_wait_batch(const pst_ring *ring, pst_io_batch *batch, pst_error *err);

/* ---- ahead.c ---- */

/* A pass begins: what is chosen early is chosen, the first stage with units guessed. */
void pst_ring_begin_ahead(pst_ring *ring);
/* Whether the pass needs the part; false as well as long as that is not known. */
bool pst_ring_wants(const pst_ring *ring, uint32_t part, uint64_t pass);
/* Lets a stage choose, drops what was read in vain for it, and has the next one guess. */
void pst_ring_choose(pst_ring *ring, uint32_t stage);
/* Fills free slots with the parts that are needed next. */
int pst_ring_fill(pst_ring *ring, pst_error *err);
/* Makes sure that a part which the pass needs is in a slot or on its way there, by a reader that was not dropped. */
int pst_ring_require(pst_ring *ring, uint32_t part, pst_error *err);
/* The drive was busy with the reader's part from after the part before until now. */
void pst_ring_trace_read(pst_ring *ring, const pst_ring_reader *reader, const char *name, uint64_t bytes);

/* ---- cache.c ---- */

/* Notes what a stage with units has chosen. */
void pst_ring_note_demand(pst_ring *ring, uint32_t stage);
/* Whether the cache would take the part. */
bool pst_ring_would_keep(const pst_ring *ring, uint32_t part);
/* A slot that no reader has any more and whose part is there: into the cache, or free. */
void pst_ring_settle(pst_ring *ring, uint32_t slot);
/* Keeps a cached part until it is computed, or no longer. */
void pst_ring_pin(pst_ring *ring, uint32_t slot, bool pinned);
/* Keeps a cached part, too, while the device copies from it. */
void pst_ring_count_copy(pst_ring *ring, uint32_t slot, bool begins);
void pst_ring_free_slot(pst_ring *ring, uint32_t slot);

/* ---- ring_link.c ---- */

/* Makes the link, and has the device use the slots; then fills what stays on the device. */
int pst_ring_link_init(pst_ring *ring, pst_device *device, pst_error *err);
int pst_ring_link_load(pst_ring *ring, pst_error *err);
/* Hands a part in host memory (in `slot`, or PST_RING_NONE: it stays where it is) to the device; *out is what to compute with. */
int pst_ring_link_send(pst_ring *ring, uint32_t part, const unsigned char *memory, uint32_t slot, pst_part_view *out,
                       pst_error *err);
/* Takes back the slots whose copies are done. wait: at least one, if any copy is under way. */
int pst_ring_link_reap(pst_ring *ring, bool wait, pst_error *err);

static inline bool pst_ring_link_is_busy(const pst_ring *ring)
{
    return ring->link != NULL && pst_link_pending(ring->link) > 0;
}

/* ---- ring_memory.c ---- */

void pst_ring_free_slot_memory(pst_ring *ring);

/* ---- gather.c ---- */

int pst_ring_gather_init(pst_ring *ring, pst_error *err);
void pst_ring_gather_destroy(pst_ring *ring);

#endif
