/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cache where blocks lie out of attention's reach, and come to it through a window of slots. Where they lie and where
 * the slots are:
 *
 *   a file (kv_file.c)            slots in the host's memory, which computes
 *   the host's memory             slots in an accelerator's (kv_link.c)
 *   a file                        slots in the host's memory, and from there in an accelerator's
 *
 * What a pass needs is known when it begins: layer after layer, the blocks of every segment's sequence. So its segments are put
 * into groups, the same ones in every layer: as many as fit into a part of the window, each block once. The groups of the layers
 * come one after the other, and so are fetched ahead. The window has PST_KV_PARTS parts, used in turn. A block has the same
 * slot in whichever part its group is, so that tables of blocks are made once for a pass (and reach an accelerator once), and
 * what is added to their addresses says which part.
 *
 * Blocks that get rows in this pass have slots, too, and are written back when their attention is done. A file has only whole
 * ones, each written once; the last, partial block of a sequence is in the host's memory (`tails`), in every layer. Where the host
 * computes it has no slot, but is used where it is.
 *
 * Invariant: a block is read only in passes after the one that wrote it, and every write is complete, or ordered before by an
 * event, when a pass begins; so no order among reads and writes matters within a pass. (Hence prefixes are shared from the
 * next pass on.)
 */
#include "nn/kv_window.h"

#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/number.h"

enum { PARTS = PST_KV_PARTS, FILE_ALIGNMENT = 4096 };

/* A block and the slot that is its own in a group. */
typedef struct kv_slot {
    uint32_t block;
    uint32_t sequence; /* whose rows of this pass come into it; NONE: nobody's, it is only read */
    bool has_rows;     /* of earlier passes */
    bool is_whole;     /* after this pass */
    bool is_windowed;  /* layers that look at a window see it */
} kv_slot;

typedef struct kv_group {
    uint32_t first, end; /* segments [first, end) of the pass */
    uint32_t slot_count;
    size_t first_slot; /* in the window's list */
} kv_group;

/* What a part has. */
typedef struct kv_part {
    uint32_t group, layer;
    bool is_sent;      /* to the accelerator */
    bool is_returning; /* from it, to be written to the file then */
} kv_part;

struct pst_kv_window {
    pst_kv_file *file; /* NULL: blocks lie in the host's memory */
    pst_kv_link *link; /* NULL: the host computes */
    uint64_t slot_bytes;
    uint32_t part_slots, hash_mask;
    unsigned char
        *host; /* without a file the blocks; else slots, and behind them the tails: [sequence][layer][block] */
    unsigned char *tails;
    uint64_t host_bytes;
    unsigned char *device; /* slots */
    uint64_t device_bytes;
    uint32_t *keys, *places; /* open addressing, of the group being made: block (NONE: empty) to slot */
    kv_slot *slots;          /* of all groups of the pass */
    kv_group *groups;
    uint32_t group_count;

    uint32_t next_layer, next_group; /* to be fetched next */
    uint64_t submitted, ended;       /* fetched so far, and done with; number n is in part n % PARTS */
    kv_part parts[PARTS];
    uint64_t offset; /* of the part under way, from part 0 */
};

/* ---- sizes ---- */

static uint64_t slot_bytes_of(const pst_kv_config *c)
{
    const uint64_t block = pst_kv_block_bytes(&c->layout);
    return c->folder != NULL ? pst_round_up(block, FILE_ALIGNMENT) : block;
}

static uint32_t part_slots_of(const pst_kv_config *c, uint64_t blocks)
{
    uint64_t wanted = (c->window_bytes ? c->window_bytes : PST_KV_DEFAULT_WINDOW_BYTES) / PARTS / slot_bytes_of(c);
    return (uint32_t)pst_min(pst_max(wanted, pst_kv_blocks_of(c->max_tokens)), blocks);
}

static uint32_t hash_entries(uint32_t part_slots)
{
    return 2 * pst_kv_bucket_count(part_slots);
}

static uint64_t entries_of(const pst_kv_config *c)
{
    return (uint64_t)pst_kv_blocks_of(c->max_tokens) * c->max_sequences;
}

/* Bytes of the last blocks and of all slots; false: more than 64 bits hold. */
static bool measure_parts(const pst_kv_config *c, uint64_t slots, uint64_t *tails, uint64_t *window)
{
    return !__builtin_mul_overflow(pst_kv_block_bytes(&c->layout), (uint64_t)c->layers * c->max_sequences, tails) &&
           !__builtin_mul_overflow(slot_bytes_of(c), PARTS * slots, window);
}

bool pst_kv_window_measure(const pst_kv_config *c, uint64_t blocks, pst_kv_memory *out)
{
    const uint32_t slots = part_slots_of(c, blocks);
    uint64_t tails, window, all;
    if (!measure_parts(c, slots, &tails, &window) || __builtin_mul_overflow(slot_bytes_of(c) * c->layers, blocks, &all))
        return false;
    out->kv_bytes = all;
    out->device_kv_bytes = c->apart ? window : 0;
    if (c->folder != NULL) {
        out->disk_bytes = all;
        if (__builtin_add_overflow(window, tails, &out->kv_bytes))
            return false;
    }
    out->table_bytes += sizeof(pst_kv_window) + hash_entries(slots) * UINT64_C(2) * sizeof(uint32_t) +
                        entries_of(c) * sizeof(kv_slot) + c->max_sequences * sizeof(kv_group) +
                        (c->folder != NULL ? pst_kv_file_bytes(slots) : 0);
    return true;
}

/* ---- making ---- */

int pst_kv_window_create(pst_kv *kv, const pst_kv_memory *memory, pst_error *err)
{
    const pst_kv_config *c = &kv->config;
    pst_kv_window *w = kv->window = pst_heap_calloc(1, sizeof *w);
    if (w == NULL)
        return pst_fail_memory(err, "the KV cache's window", sizeof *w);
    w->slot_bytes = slot_bytes_of(c);
    w->part_slots = part_slots_of(c, kv->blocks);
    w->hash_mask = hash_entries(w->part_slots) - 1;
    w->keys = pst_heap_calloc(w->hash_mask + UINT64_C(1), sizeof *w->keys);
    w->places = pst_heap_calloc(w->hash_mask + UINT64_C(1), sizeof *w->places);
    w->slots = pst_heap_calloc(entries_of(c), sizeof *w->slots);
    w->groups = pst_heap_calloc(c->max_sequences, sizeof *w->groups);
    if (!w->keys || !w->places || !w->slots || !w->groups)
        return pst_fail_memory(err, "the KV cache's window", entries_of(c) * sizeof *w->slots);
    w->host_bytes = memory->kv_bytes;
    PST_TRY(pst_nn_take_memory(c->device, PST_MEMORY_HOST, w->host_bytes, "the KV cache", (void **)&w->host, err));
    if (c->folder != NULL) {
        const uint64_t slots = PARTS * (w->part_slots * w->slot_bytes);
        w->tails = w->host + slots;
        if (c->apart) /* what fills slots up in the file is zeros; on the host it is from the start */
            memset(w->host, 0, slots);
        PST_TRY(pst_kv_file_create(c, memory->disk_bytes, w->part_slots, &w->file, err));
    }
    if (!c->apart)
        return 0;
    w->device_bytes = memory->device_kv_bytes;
    PST_TRY(pst_nn_take_memory(c->device, PST_MEMORY_DEVICE, w->device_bytes, "the KV cache's window",
                               (void **)&w->device, err));
    return pst_kv_link_create(c->device, &w->link, err);
}

void pst_kv_window_destroy(pst_kv *kv)
{
    pst_kv_window *w = kv->window;
    if (w == NULL)
        return;
    pst_kv_link_destroy(w->link);
    pst_kv_file_destroy(w->file);
    pst_nn_give_memory(kv->config.device, PST_MEMORY_HOST, w->host, w->host_bytes);
    pst_nn_give_memory(kv->config.device, PST_MEMORY_DEVICE, w->device, w->device_bytes);
    pst_heap_free(w->keys);
    pst_heap_free(w->places);
    pst_heap_free(w->slots);
    pst_heap_free(w->groups);
    pst_heap_free(w);
    kv->window = NULL;
}

/* ---- blocks of a segment ---- */

/* [seen, before) are whole already, of which layers with a window see those from `windowed` on; [before, whole) become so in this
 * pass, and there is a partial one after them if has_tail. */
typedef struct segment_blocks {
    uint32_t seen, windowed, before, whole;
    bool has_tail;
} segment_blocks;

static bool is_windowed(const pst_kv_config *c, uint32_t layer)
{
    return c->window > 0 && c->windowed != NULL && c->windowed[layer];
}

/* What layers of either kind see, or, with `all_windowed`, those with a window alone. */
static segment_blocks blocks_of(const pst_kv_config *c, const pst_segment *segment, bool all_windowed)
{
    const uint32_t first = segment->first_position, end = first + (uint32_t)segment->rows;
    const uint32_t from = c->window > 0 && first + 1 > c->window ? first + 1 - c->window : 0;
    return (segment_blocks){all_windowed ? from / PST_KV_BLOCK : 0, from / PST_KV_BLOCK, first / PST_KV_BLOCK,
                            end / PST_KV_BLOCK, end % PST_KV_BLOCK != 0};
}

static bool has_windows_alone(const pst_kv_config *c)
{
    for (uint32_t layer = 0; layer < c->layers; layer++)
        if (!is_windowed(c, layer))
            return false;
    return true;
}

pst_kv_traffic pst_kv_row_traffic(const pst_kv_config *c, uint32_t position)
{
    uint64_t blocks = 0, partial = 0;
    const pst_segment row = {.rows = 1, .first_position = position};
    for (uint32_t layer = 0; pst_kv_has_window(c) && layer < c->layers; layer++) {
        const segment_blocks b = blocks_of(c, &row, is_windowed(c, layer));
        blocks += b.before - b.seen;
        partial += position % PST_KV_BLOCK != 0;
    }
    const uint64_t written =
        pst_kv_has_window(c) ? c->layers * slot_bytes_of(c) / PST_KV_BLOCK : 0; /* in whole blocks */
    return (pst_kv_traffic){.bytes_read = c->folder != NULL ? blocks * slot_bytes_of(c) : 0,
                            .bytes_written = c->folder != NULL ? written : 0,
                            .link_bytes = c->apart ? (blocks + partial) * pst_kv_block_bytes(&c->layout) : 0};
}

/* ---- groups ---- */

/* The place of a block in the group's table: its own, or the empty one where it would be. */
static uint32_t place_of(const pst_kv_window *w, uint32_t block)
{
    uint32_t at = (uint32_t)pst_mix(block) & w->hash_mask;
    while (w->keys[at] != PST_KV_NONE && w->keys[at] != block)
        at = (at + 1) & w->hash_mask;
    return at;
}

/* Part 0 of where slots are computed with. */
static unsigned char *first_part(const pst_kv_window *w)
{
    return w->link != NULL ? w->device : w->host;
}

/* Gives a block a slot, or finds the one that another segment gave it: its number. */
static uint32_t give_slot(pst_kv_window *w, kv_group *g, uint32_t block)
{
    const uint32_t at = place_of(w, block);
    if (w->keys[at] == PST_KV_NONE) {
        w->keys[at] = block;
        w->places[at] = g->slot_count;
        w->slots[g->first_slot + g->slot_count++] = (kv_slot){.block = block, .sequence = PST_KV_NONE};
    }
    return w->places[at];
}

/* Gives slots to the blocks of the group's next segment, and binds it to them; false: they do not fit. */
static bool add_segment(pst_kv *kv, kv_group *g, bool all_windowed)
{
    pst_kv_window *w = kv->window;
    const uint32_t sequence = kv->sequences[g->end], *table = pst_kv_table_of(kv, sequence);
    const pst_segment *segment = &kv->segments[g->end];
    const segment_blocks b = blocks_of(&kv->config, segment, all_windowed);
    const uint32_t end = b.whole + (b.has_tail && w->link != NULL);
    uint32_t count = end - b.before;
    for (uint32_t i = b.seen; i < b.before; i++)
        count += w->keys[place_of(w, table[i])] == PST_KV_NONE;
    if (g->slot_count + count > w->part_slots)
        return false; /* never the first one: a part holds a whole sequence */
    for (uint32_t i = b.seen; i < end; i++) {
        const uint32_t number = give_slot(w, g, table[i]);
        kv_slot *slot = &w->slots[g->first_slot + number];
        slot->is_windowed = slot->is_windowed || i >= b.windowed;
        slot->is_whole = i < b.whole;
        slot->has_rows = i < b.before || (i == b.before && segment->first_position % PST_KV_BLOCK != 0);
        slot->sequence = i < b.before ? PST_KV_NONE : sequence;
        pst_kv_bind_block(kv, sequence, i, first_part(w) + number * w->slot_bytes);
    }
    return true;
}

static void make_groups(pst_kv *kv)
{
    pst_kv_window *w = kv->window;
    const bool all_windowed = has_windows_alone(&kv->config);
    size_t slots = 0;
    w->group_count = 0;
    for (uint32_t first = 0; first < kv->segment_count;) {
        kv_group *g = &w->groups[w->group_count++];
        *g = (kv_group){.first = first, .end = first, .first_slot = slots};
        memset(w->keys, 0xff, (w->hash_mask + (size_t)1) * sizeof *w->keys);
        while (g->end < kv->segment_count && add_segment(kv, g, all_windowed))
            g->end++;
        first = g->end;
        slots += g->slot_count;
    }
}

/* ---- transfers of a part ---- */

static uint64_t part_offset(const pst_kv_window *w, uint32_t part)
{
    return (uint64_t)part * w->part_slots * w->slot_bytes;
}

/* The part's slots, in turn, of blocks that its layer sees: *slot is the one after number *next - 1. */
static bool next_slot(const pst_kv *kv, uint32_t number, uint32_t *next, const kv_slot **slot)
{
    const pst_kv_window *w = kv->window;
    const kv_part *part = &w->parts[number];
    const kv_group *g = &w->groups[part->group];
    const bool is_all = !is_windowed(&kv->config, part->layer);
    while (*next < g->slot_count) {
        *slot = &w->slots[g->first_slot + (*next)++];
        if (is_all || (*slot)->is_windowed)
            return true;
    }
    return false;
}

/* Where a block of the part's layer is, in the file or in the memory that is there instead. */
static uint64_t home_offset(const pst_kv *kv, uint32_t part, uint32_t block)
{
    return ((uint64_t)kv->window->parts[part].layer * kv->blocks + block) * kv->window->slot_bytes;
}

static unsigned char *tail_of(const pst_kv *kv, uint32_t sequence, uint32_t layer)
{
    return kv->window->tails + ((uint64_t)sequence * kv->config.layers + layer) * kv->block_bytes;
}

/* The host's slot of that number. */
static unsigned char *host_slot(const pst_kv_window *w, uint32_t part, uint32_t number)
{
    return w->host + part_offset(w, part) + number * w->slot_bytes;
}

/* Where the host has a block that the accelerator gets, or gives back `is_whole`. */
static unsigned char *host_place(const pst_kv *kv, uint32_t part, uint32_t number, const kv_slot *slot, bool is_whole)
{
    const pst_kv_window *w = kv->window;
    if (w->file == NULL)
        return w->host + home_offset(kv, part, slot->block);
    return is_whole ? host_slot(w, part, number) : tail_of(kv, slot->sequence, w->parts[part].layer);
}

static int read_file(pst_kv *kv, uint32_t part, pst_error *err)
{
    pst_kv_window *w = kv->window;
    const kv_slot *slot;
    for (uint32_t next = 0; next_slot(kv, part, &next, &slot);)
        if (slot->sequence == PST_KV_NONE)
            pst_kv_file_add(w->file, part, PST_KV_READ, home_offset(kv, part, slot->block),
                            host_slot(w, part, next - 1), w->slot_bytes);
    return pst_kv_file_start(w->file, part, PST_KV_READ, err);
}

static int write_file(pst_kv *kv, uint32_t part, pst_error *err)
{
    pst_kv_window *w = kv->window;
    const kv_slot *slot;
    for (uint32_t next = 0; next_slot(kv, part, &next, &slot);)
        if (slot->sequence != PST_KV_NONE && slot->is_whole)
            pst_kv_file_add(w->file, part, PST_KV_WRITE, home_offset(kv, part, slot->block),
                            host_slot(w, part, next - 1), w->slot_bytes);
    return pst_kv_file_start(w->file, part, PST_KV_WRITE, err);
}

/* Copies the part's blocks to the accelerator, or back what changed of them. */
static int copy_part(pst_kv *kv, uint32_t part, pst_kv_way way, pst_error *err)
{
    pst_kv_window *w = kv->window;
    unsigned char *memory = w->device + part_offset(w, part);
    const kv_slot *slot;
    PST_TRY(pst_kv_link_begin(w->link, part, way, err));
    for (uint32_t next = 0; next_slot(kv, part, &next, &slot);) {
        const bool is_read = way == PST_KV_READ, is_own = slot->sequence != PST_KV_NONE;
        if (is_read ? !slot->has_rows : !is_own)
            continue;
        unsigned char *place = host_place(kv, part, next - 1, slot, is_read ? !is_own : slot->is_whole);
        PST_TRY(pst_kv_link_add(w->link, way, place, memory + (next - 1) * w->slot_bytes, kv->block_bytes, err));
    }
    return pst_kv_link_end(w->link, part, way, err);
}

/* ---- the pass ---- */

/* Brings a part that was begun further on its way to whoever computes; 1: it is not there in time. */
static int bring(pst_kv *kv, uint32_t number, uint64_t timeout_ns, pst_error *err)
{
    pst_kv_window *w = kv->window;
    kv_part *part = &w->parts[number];
    if (w->file != NULL) {
        int status = pst_kv_file_wait(w->file, number, PST_KV_READ, timeout_ns, err);
        if (status != 0)
            return status;
    }
    if (w->link == NULL || part->is_sent)
        return 0;
    part->is_sent = true;
    return copy_part(kv, number, PST_KV_READ, err);
}

/* Brings what changed in a part further on its way to where it belongs; 1: it is not there in time. Where nobody but the
 * accelerator has to wait for it, it is as good as there. */
static int settle(pst_kv *kv, uint32_t number, uint64_t timeout_ns, pst_error *err)
{
    pst_kv_window *w = kv->window;
    kv_part *part = &w->parts[number];
    if (w->file == NULL)
        return 0;
    if (part->is_returning) {
        int status = pst_kv_link_returned(w->link, number, timeout_ns > 0, err);
        if (status != 0)
            return status;
        part->is_returning = false;
        PST_TRY(write_file(kv, number, err));
    }
    return pst_kv_file_wait(w->file, number, PST_KV_WRITE, timeout_ns, err);
}

/* Begins to fetch the next group. */
static int fetch(pst_kv *kv, pst_error *err)
{
    pst_kv_window *w = kv->window;
    const uint32_t number = (uint32_t)(w->submitted % PARTS);
    w->parts[number] = (kv_part){.group = w->next_group, .layer = w->next_layer};
    if (++w->next_group == w->group_count) {
        w->next_group = 0;
        w->next_layer++;
    }
    if (w->file != NULL)
        PST_TRY(read_file(kv, number, err));
    else
        PST_TRY(bring(kv, number, 0, err));
    w->submitted++;
    return 0;
}

/* Fetches groups into the parts that are free; with `at_least_one`, waits for one to become so. */
static int fetch_ahead(pst_kv *kv, bool at_least_one, pst_error *err)
{
    pst_kv_window *w = kv->window;
    int status;
    for (uint64_t n = w->ended; w->link != NULL && n < w->submitted; n++) {
        PST_TRY(status = bring(kv, (uint32_t)(n % PARTS), 0, err));
        if (status == 1)
            break;
    }
    for (uint32_t part = 0; part < PARTS; part++)
        if (w->parts[part].is_returning)
            PST_TRY(settle(kv, part, 0, err));
    while (w->next_layer < kv->config.layers && w->submitted < w->ended + PARTS) {
        PST_TRY(status = settle(kv, (uint32_t)(w->submitted % PARTS), at_least_one ? UINT64_MAX : 0, err));
        if (status == 1)
            break;
        PST_TRY(fetch(kv, err));
        at_least_one = false;
    }
    return 0;
}

int pst_kv_window_begin_pass(pst_kv *kv, pst_error *err)
{
    pst_kv_window *w = kv->window;
    for (uint32_t part = 0; part < PARTS; part++)
        PST_TRY(settle(kv, part, UINT64_MAX, err));
    if (w->link != NULL)
        PST_TRY(pst_kv_link_begin_pass(w->link, err));
    make_groups(kv);
    w->next_layer = w->next_group = 0;
    w->submitted = w->ended = 0;
    return fetch_ahead(kv, false, err);
}

/* On the host: the last block of each segment is bound to where it is, and one that becomes whole gets what there was of it. */
static void bind_tails(pst_kv *kv, uint32_t number)
{
    const pst_kv_window *w = kv->window;
    const kv_part *part = &w->parts[number];
    const kv_group *g = &w->groups[part->group];
    const kv_slot *slot;
    for (uint32_t next = 0; next_slot(kv, number, &next, &slot);)
        if (slot->sequence != PST_KV_NONE && slot->has_rows)
            memcpy(host_slot(w, number, next - 1), tail_of(kv, slot->sequence, part->layer), kv->block_bytes);
    for (uint32_t i = g->first; i < g->end; i++) {
        const segment_blocks b = blocks_of(&kv->config, &kv->segments[i], false);
        if (b.has_tail) /* the part's offset will be added */
            pst_kv_bind_block(kv, kv->sequences[i], b.whole,
                              (void *)((uintptr_t)tail_of(kv, kv->sequences[i], part->layer) - w->offset));
    }
}

int pst_kv_window_next_group(pst_kv *kv, uint32_t layer, uint32_t *first, uint32_t *count, pst_error *err)
{
    pst_kv_window *w = kv->window;
    if (w->submitted == w->ended)
        PST_TRY(fetch_ahead(kv, true, err));
    const uint32_t number = (uint32_t)(w->ended % PARTS);
    if (w->submitted == w->ended || w->parts[number].layer != layer)
        return 0;
    PST_TRY(bring(kv, number, UINT64_MAX, err));
    w->offset = part_offset(w, number);
    if (w->link != NULL)
        PST_TRY(pst_kv_link_await(w->link, number, err));
    else
        bind_tails(kv, number);
    const kv_group *g = &w->groups[w->parts[number].group];
    *first = g->first;
    *count = g->end - g->first;
    return 1;
}

int pst_kv_window_end_group(pst_kv *kv, pst_error *err)
{
    pst_kv_window *w = kv->window;
    const uint32_t number = (uint32_t)(w->ended % PARTS);
    if (w->link != NULL) {
        PST_TRY(copy_part(kv, number, PST_KV_WRITE, err));
        w->parts[number].is_returning = w->file != NULL;
    } else {
        PST_TRY(write_file(kv, number, err));
    }
    w->ended++;
    return fetch_ahead(kv, false, err);
}

uint64_t pst_kv_window_offset(const pst_kv_window *w)
{
    return w->offset;
}

int pst_kv_measure_link(pst_kv *kv, double *out, pst_error *err)
{
    pst_kv_window *w = kv->window;
    *out = 0;
    if (w == NULL || w->link == NULL)
        return 0;
    return pst_kv_link_measure(w->link, w->host, w->device, w->part_slots * w->slot_bytes, out, err);
}

void pst_kv_window_get_traffic(const pst_kv_window *w, pst_kv_traffic *out)
{
    if (w->file != NULL)
        pst_kv_file_get_traffic(w->file, out);
    if (w->link != NULL)
        pst_kv_link_get_traffic(w->link, out);
}
