/* SPDX-License-Identifier: Apache-2.0 */
/* The link; see link.h. */
#include "tier/link.h"

#include <stdlib.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/number.h"
#include "device/device.h"
#include "os/clock.h"

/* One copy of a part: neighbouring pieces. */
typedef struct link_copy {
    uint64_t from, to, bytes; /* offsets in the part's memory on the host and on the device */
} link_copy;

/* Where a part is on the device, and its copies: copies[first_piece] and on. */
typedef struct link_part {
    uint64_t offset; /* of parts that stay, in their memory */
    uint32_t copy_count;
} link_part;

typedef struct link_slot {
    pst_device_event *copied; /* recorded behind its last copy */
    pst_device_event *used;   /* recorded behind the last work with it */
    uint32_t part;            /* that was copied last; PST_LINK_NOBODY: none */
    uint32_t user;
    uint64_t begun_ns;
} link_slot;

enum { REGIONS = 2 };

struct pst_link {
    pst_device *device;
    const pst_stage *stages;
    const pst_plan *plan;
    pst_trace *trace;
    pst_device_stream *stream;             /* of copies */
    pst_piece *pieces;                     /* the layout's, with their offsets in the device's memory */
    link_copy *copies;                     /* as many */
    link_part *parts;                      /* the layout's */
    unsigned char *resident, *slot_memory; /* the device's memory */
    link_slot *slots;                      /* plan->device_slots */
    uint32_t next, pending;                /* the slot to copy to; slots before it whose copies were not given back */
    uint64_t done_ns;                      /* when the last copy noted in the timeline was seen to be done */
    void *regions[REGIONS];
};

static int checked(const pst_link *link, int status, const char *what, pst_error *err)
{
    return status >= 0 ? status : pst_device_fail(err, link->device, status, what);
}

/* ---- where pieces lie ---- */

static int by_offset(const void *a, const void *b)
{
    const link_copy *x = a, *y = b;
    return x->from < y->from ? -1 : x->from > y->from;
}

/* Lays out a part's pieces, and joins copies. */
static void lay_out(pst_link *link, const pst_part *part, link_part *out)
{
    const pst_piece *from = link->plan->layout.pieces + part->first_piece;
    pst_piece *pieces = link->pieces + part->first_piece;
    link_copy *copies = link->copies + part->first_piece;
    for (uint32_t i = 0; i < part->piece_count; i++) {
        const pst_stage_tensor *tensor = &link->stages[part->stage].tensors[from[i].tensor];
        pieces[i] = from[i];
        copies[i] = (link_copy){from[i].offset, i, from[i].rows * tensor->row_bytes}; /* to: the piece, as yet */
    }
    qsort(copies, part->piece_count, sizeof *copies, by_offset);
    uint64_t offset = 0;
    uint32_t count = 0;
    for (uint32_t i = 0; i < part->piece_count; i++) {
        link_copy copy = copies[i];
        pieces[copy.to].offset = offset;
        copy.to = offset;
        offset += pst_round_up(copy.bytes, PST_DEVICE_ALIGN);
        link_copy *last = count > 0 ? &copies[count - 1] : NULL;
        if (last != NULL && last->from + last->bytes == copy.from && last->to + last->bytes == copy.to)
            last->bytes += copy.bytes;
        else if (copy.bytes > 0)
            copies[count++] = copy;
    }
    out->copy_count = count;
}

static int make_tables(pst_link *link, pst_error *err)
{
    const pst_layout *layout = &link->plan->layout;
    link->pieces = pst_heap_calloc(layout->piece_count + 1, sizeof *link->pieces);
    link->copies = pst_heap_calloc(layout->piece_count + 1, sizeof *link->copies);
    link->parts = pst_heap_calloc(layout->part_count + 1, sizeof *link->parts);
    if (link->pieces == NULL || link->copies == NULL || link->parts == NULL)
        return pst_fail_memory(err, "the layout of weights on the device", layout->piece_count * sizeof *link->pieces);
    uint64_t offset = 0;
    for (uint32_t i = 0; i < layout->part_count; i++) {
        if (link->stages[layout->parts[i].stage].gathered)
            continue;
        lay_out(link, &layout->parts[i], &link->parts[i]);
        link->parts[i].offset = offset;
        if (link->plan->places[i] == PST_PLACE_DEVICE)
            offset += layout->parts[i].device_bytes;
    }
    return 0;
}

/* ---- memory, streams, events ---- */

static int allocate(const pst_link *link, uint64_t bytes, const char *what, unsigned char **out, pst_error *err)
{
    void *memory = NULL;
    if (bytes == 0)
        return 0;
    PST_TRY(checked(link, link->device->ops->allocate(link->device, PST_MEMORY_DEVICE, bytes, &memory), what, err));
    *out = memory;
    return 0;
}

static int make_slots(pst_link *link, pst_error *err)
{
    const pst_plan *plan = link->plan;
    const pst_device_ops *ops = link->device->ops;
    PST_TRY(checked(link, ops->stream_create(link->device, &link->stream), "making a stream", err));
    PST_TRY(allocate(link, plan->device_resident_memory_bytes, "allocating memory for weights", &link->resident, err));
    PST_TRY(allocate(link, plan->device_slots * plan->device_slot_bytes, "allocating slots for weights",
                     &link->slot_memory, err));
    link->slots = pst_heap_calloc(plan->device_slots + 1, sizeof *link->slots);
    if (link->slots == NULL)
        return pst_fail_memory(err, "the device's slots", plan->device_slots * sizeof *link->slots);
    for (uint32_t i = 0; i < plan->device_slots; i++)
        link->slots[i].part = PST_LINK_NOBODY;
    for (uint32_t i = 0; i < plan->device_slots; i++) {
        PST_TRY(checked(link, ops->event_create(link->device, &link->slots[i].copied), "making an event", err));
        PST_TRY(checked(link, ops->event_create(link->device, &link->slots[i].used), "making an event", err));
    }
    return 0;
}

int pst_link_create(pst_device *device, const pst_stage *stages, const pst_plan *plan, pst_link **out, pst_error *err)
{
    pst_link *link = pst_heap_calloc(1, sizeof *link);
    if (link == NULL)
        return pst_fail_memory(err, "the link", sizeof *link);
    link->device = device;
    link->stages = stages;
    link->plan = plan;
    int status;
    PST_TRY_GOTO(fail, make_tables(link, err));
    PST_TRY_GOTO(fail, make_slots(link, err));
    *out = link;
    return 0;
fail:
    pst_link_destroy(link);
    return status;
}

void pst_link_set_trace(pst_link *link, pst_trace *trace)
{
    link->trace = trace;
}

void pst_link_destroy(pst_link *link)
{
    if (link == NULL)
        return;
    pst_device *device = link->device;
    const pst_device_ops *ops = device->ops;
    if (link->stream != NULL)
        ops->synchronize(device, link->stream);
    ops->synchronize(device, NULL); /* it may still use the slots; what failed there is told to whoever asks next */
    for (uint32_t i = 0; link->slots != NULL && i < link->plan->device_slots; i++) {
        ops->event_destroy(device, link->slots[i].copied);
        ops->event_destroy(device, link->slots[i].used);
    }
    ops->stream_destroy(device, link->stream);
    for (int i = 0; i < REGIONS; i++)
        pst_link_unregister(link, link->regions[i]);
    ops->release(device, PST_MEMORY_DEVICE, link->resident, link->plan->device_resident_memory_bytes);
    ops->release(device, PST_MEMORY_DEVICE, link->slot_memory,
                 link->plan->device_slots * link->plan->device_slot_bytes);
    pst_heap_free(link->slots);
    pst_heap_free(link->parts);
    pst_heap_free(link->copies);
    pst_heap_free(link->pieces);
    pst_heap_free(link);
}

int pst_link_register(pst_link *link, void *memory, uint64_t bytes, pst_error *err)
{
    int free = link->regions[0] == NULL ? 0 : 1;
    PST_TRY(checked(link, link->device->ops->register_host(link->device, memory, bytes), "pinning host memory", err));
    link->regions[free] = memory;
    return 0;
}

void pst_link_unregister(pst_link *link, void *memory)
{
    for (int i = 0; i < REGIONS; i++) {
        if (memory == NULL || link->regions[i] != memory)
            continue;
        link->device->ops->unregister_host(link->device, memory);
        link->regions[i] = NULL;
    }
}

/* ---- copies ---- */

static int copy_pieces(const pst_link *link, uint32_t number, const unsigned char *from, unsigned char *to,
                       pst_error *err)
{
    const pst_device_ops *ops = link->device->ops;
    const link_copy *copies = link->copies + link->plan->layout.parts[number].first_piece;
    for (uint32_t i = 0; i < link->parts[number].copy_count; i++)
        PST_TRY(checked(
            link, ops->copy(link->device, link->stream, to + copies[i].to, from + copies[i].from, copies[i].bytes),
            "copying weights", err));
    return 0;
}

static pst_part_view view_at(const pst_link *link, uint32_t number, const unsigned char *memory)
{
    const pst_part *part = &link->plan->layout.parts[number];
    return (pst_part_view){
        .pieces = link->pieces + part->first_piece, .piece_count = part->piece_count, .memory = memory};
}

int pst_link_load(pst_link *link, uint32_t part, const unsigned char *memory, pst_error *err)
{
    PST_TRY(copy_pieces(link, part, memory, link->resident + link->parts[part].offset, err));
    return checked(link, link->device->ops->synchronize(link->device, link->stream), "copying weights", err);
}

pst_part_view pst_link_view(const pst_link *link, uint32_t part)
{
    pst_part_view view = view_at(link, part, link->resident + link->parts[part].offset);
    view.stays = true;
    return view;
}

int pst_link_copy(pst_link *link, uint32_t part, const unsigned char *memory, uint32_t user, pst_part_view *out,
                  pst_error *err)
{
    const pst_device_ops *ops = link->device->ops;
    link_slot *slot = &link->slots[link->next];
    unsigned char *to = link->slot_memory + link->next * link->plan->device_slot_bytes;
    slot->begun_ns = pst_clock_ns();
    PST_TRY(checked(link, ops->stream_wait(link->device, link->stream, slot->used), "waiting for a slot", err));
    PST_TRY(copy_pieces(link, part, memory, to, err));
    PST_TRY(checked(link, ops->event_record(link->device, slot->copied, link->stream), "recording an event", err));
    PST_TRY(checked(link, ops->stream_wait(link->device, NULL, slot->copied), "waiting for a copy", err));
    slot->part = part;
    slot->user = user;
    link->next = (link->next + 1) % link->plan->device_slots;
    link->pending++;
    *out = view_at(link, part, to);
    return 0;
}

int pst_link_end(pst_link *link, pst_error *err)
{
    uint32_t slots = link->plan->device_slots;
    pst_device_event *used = link->slots[(link->next + slots - 1) % slots].used;
    return checked(link, link->device->ops->event_record(link->device, used, NULL), "recording an event", err);
}

uint32_t pst_link_pending(const pst_link *link)
{
    return link->pending;
}

int pst_link_retire(pst_link *link, bool wait, uint32_t *user, pst_error *err)
{
    const pst_device_ops *ops = link->device->ops;
    uint32_t slots = link->plan->device_slots;
    if (link->pending == 0)
        return 0;
    const link_slot *slot = &link->slots[(link->next + slots - link->pending) % slots];
    int status = wait ? ops->event_wait(link->device, slot->copied) : ops->event_query(link->device, slot->copied);
    PST_TRY(checked(link, status, "copying weights", err));
    if (!wait && status == 1)
        return 0;
    link->pending--;
    *user = slot->user;
    uint64_t now = pst_clock_ns(), begun = pst_max(slot->begun_ns, link->done_ns);
    const pst_part *part = &link->plan->layout.parts[slot->part];
    pst_trace_span(link->trace, PST_TRACE_COPY, link->stages[part->stage].name, begun, now, part->weight_bytes);
    link->done_ns = now;
    return 1;
}

uint32_t pst_link_held(const pst_link *link, pst_stage_part *out, uint32_t most)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < link->plan->device_slots && count < most; i++) {
        const link_slot *slot = &link->slots[i];
        if (slot->part == PST_LINK_NOBODY)
            continue;
        out[count++] =
            (pst_stage_part){.stage = &link->stages[link->plan->layout.parts[slot->part].stage],
                             .view = view_at(link, slot->part, link->slot_memory + i * link->plan->device_slot_bytes)};
    }
    return count;
}
