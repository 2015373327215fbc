/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cache in a file. What a pass needs of it is known when the pass begins: layer after layer, the whole blocks of every
 * segment's sequence, which were written in earlier passes. So they are read ahead in groups: as many segments of a layer as
 * fit into a part of the window. The window has PARTS parts, used in turn: one is computed with, one is being filled for the
 * group after it, and one is being written from.
 *
 * Blocks that this pass makes whole are in the group's part, too, and are written to the file when its attention is done,
 * each once. The last, partial block of a sequence stays in memory (`tails`), in every layer, until it is whole.
 *
 * Invariant: a block is read only in passes after the one that wrote it, and every write is complete before a pass begins;
 * so no order among reads and writes matters within a pass. (Hence prefixes on disk are shared from the next pass on.)
 *
 * The file has no name: it is removed when it was opened, so that nothing is left however the process ends.
 */
#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/number.h"
#include "nn/kv_internal.h"
#include "os/clock.h"
#include "os/file.h"
#include "os/memory.h"

enum { PARTS = 3, FILE_ALIGNMENT = 4096, BATCH_OP_BYTES = 256 /* at most, of what a batch holds per operation */ };

/* One part of the window and the group in it. */
typedef struct kv_part {
    unsigned char *memory;      /* part_slots slots */
    uint32_t layer, first, end; /* segments [first, end) of the pass */
    uint32_t used;              /* slots */
    uint32_t *keys, *slots;     /* open addressing: block number (NONE: empty) to slot */
    pst_io_batch *reads, *writes;
    pst_io_op *read_ops, *write_ops; /* part_slots each */
    uint32_t read_count, write_count;
    bool is_reading, is_writing;
} kv_part;

struct pst_kv_disk {
    pst_io *io; /* the caller's, like the trace */
    pst_io_file *file;
    uint64_t slot_bytes; /* of a block in file and window */
    uint32_t part_slots, hash_mask;
    unsigned char *tails; /* [sequence][layer][block] */
    uint64_t tail_bytes;
    unsigned char *window;
    uint64_t window_bytes;
    kv_part parts[PARTS];

    /* The pass under way. The segments are the caller's. */
    pst_segment *segments;
    const uint32_t *sequences;
    uint32_t segment_count;
    uint32_t next_layer, next_segment; /* of the group to be read next */
    uint64_t submitted, ended;         /* groups; group n is in part n % PARTS */
    pst_kv_traffic traffic;
};

static uint64_t slot_bytes_of(const pst_kv_config *c)
{
    return pst_round_up(pst_kv_block_bytes(&c->layout), FILE_ALIGNMENT);
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

bool pst_kv_disk_measure(const pst_kv_config *c, uint64_t blocks, pst_kv_memory *out)
{
    uint64_t slot = slot_bytes_of(c), slots = part_slots_of(c, blocks), tails, window, file;
    if (__builtin_mul_overflow(pst_kv_block_bytes(&c->layout), (uint64_t)c->layers * c->max_sequences, &tails) ||
        __builtin_mul_overflow(slot, PARTS * slots, &window) ||
        __builtin_mul_overflow(slot * c->layers, blocks, &file) ||
        __builtin_add_overflow(tails, window, &out->kv_bytes))
        return false;
    out->disk_bytes = file;
    out->table_bytes += sizeof(pst_kv_disk) + PARTS * (slots * 2 * (sizeof(pst_io_op) + BATCH_OP_BYTES) +
                                                       hash_entries((uint32_t)slots) * 2 * sizeof(uint32_t));
    return true;
}

static int open_file(pst_kv *kv, uint64_t bytes, pst_error *err)
{
    const char *folder = kv->config.folder;
    uint64_t room;
    PST_TRY(pst_file_free_space(folder, &room, err));
    if (bytes > room)
        return pst_fail(err, -ENOSPC, folder,
                        "the KV cache of %u sequences of %u tokens takes %.1f GB; %.1f GB are free",
                        kv->config.max_sequences, kv->config.max_tokens, (double)bytes / 1e9, (double)room / 1e9);
    char *path = pst_heap_printf("%s/penstock-kv", folder);
    char *name = path ? pst_file_temporary_name(path) : NULL;
    pst_heap_free(path);
    if (name == NULL)
        return pst_fail_memory(err, "the KV cache's file", strlen(folder));
    int status = pst_io_file_open(kv->config.io, name, PST_IO_OPEN_WRITE | PST_IO_OPEN_CREATE | PST_IO_OPEN_EXCLUSIVE,
                                  &kv->disk->file, err);
    if (status >= 0) {
        status = pst_file_remove(name, err);
        if (status >= 0)
            status = pst_io_file_preallocate(kv->disk->file, bytes, err);
    }
    pst_heap_free(name);
    return status;
}

static int make_part(pst_kv_disk *d, kv_part *part, pst_error *err)
{
    const uint32_t entries = d->hash_mask + 1;
    part->keys = pst_heap_calloc(entries, sizeof *part->keys);
    part->slots = pst_heap_calloc(entries, sizeof *part->slots);
    part->read_ops = pst_heap_calloc(d->part_slots, sizeof *part->read_ops);
    part->write_ops = pst_heap_calloc(d->part_slots, sizeof *part->write_ops);
    if (!part->keys || !part->slots || !part->read_ops || !part->write_ops)
        return pst_fail_memory(err, "the KV cache's window", d->part_slots * sizeof *part->read_ops);
    PST_TRY(pst_io_batch_create(d->io, d->part_slots, &part->reads, err));
    return pst_io_batch_create(d->io, d->part_slots, &part->writes, err);
}

int pst_kv_disk_create(pst_kv *kv, const pst_kv_memory *memory, pst_error *err)
{
    const pst_kv_config *c = &kv->config;
    pst_kv_disk *d = kv->disk = pst_heap_calloc(1, sizeof *d);
    if (d == NULL)
        return pst_fail_memory(err, "the KV cache's file", sizeof *d);
    d->io = c->io;
    d->slot_bytes = slot_bytes_of(c);
    d->part_slots = part_slots_of(c, kv->blocks);
    d->hash_mask = hash_entries(d->part_slots) - 1;
    d->window_bytes = (uint64_t)PARTS * d->part_slots * d->slot_bytes;
    d->tail_bytes = (uint64_t)c->max_sequences * c->layers * kv->block_bytes;
    PST_TRY(pst_memory_map(d->tail_bytes, "the KV cache's last blocks", (void **)&d->tails, err));
    PST_TRY(pst_memory_map(d->window_bytes, "the KV cache's window", (void **)&d->window, err));
    for (uint32_t i = 0; i < PARTS; i++) {
        d->parts[i].memory = d->window + (uint64_t)i * d->part_slots * d->slot_bytes;
        PST_TRY(make_part(d, &d->parts[i], err));
    }
    return open_file(kv, memory->disk_bytes, err);
}

void pst_kv_disk_destroy(pst_kv_disk *d)
{
    if (d == NULL)
        return;
    for (uint32_t i = 0; i < PARTS; i++) {
        kv_part *part = &d->parts[i];
        pst_io_batch_destroy(part->reads); /* waits for what is in flight */
        pst_io_batch_destroy(part->writes);
        pst_heap_free(part->keys);
        pst_heap_free(part->slots);
        pst_heap_free(part->read_ops);
        pst_heap_free(part->write_ops);
    }
    if (d->file != NULL)
        pst_io_file_close(d->file, NULL); /* nothing in it is wanted any more */
    pst_memory_unmap(d->tails, d->tail_bytes);
    pst_memory_unmap(d->window, d->window_bytes);
    pst_heap_free(d);
}

/* ---- slots ---- */

/* The place of a block in the part's table: its own, or the empty one where it would be. */
static uint32_t place_of(const pst_kv_disk *d, const kv_part *part, uint32_t block)
{
    uint32_t at = (uint32_t)pst_mix(block) & d->hash_mask;
    while (part->keys[at] != PST_KV_NONE && part->keys[at] != block)
        at = (at + 1) & d->hash_mask;
    return at;
}

static unsigned char *slot_memory(const pst_kv_disk *d, const kv_part *part, uint32_t slot)
{
    return part->memory + slot * d->slot_bytes;
}

/* Adds a transfer of a block to the list; one that goes on where the last one ends becomes part of it. */
static void add_op(const pst_kv *kv, const kv_part *part, pst_io_kind kind, uint32_t block, uint32_t slot,
                   pst_io_op *ops, uint32_t *count)
{
    const pst_kv_disk *d = kv->disk;
    uint64_t offset = ((uint64_t)part->layer * kv->blocks + block) * d->slot_bytes;
    unsigned char *memory = slot_memory(d, part, slot);
    pst_io_op *last = *count > 0 ? &ops[*count - 1] : NULL;
    if (last != NULL && last->offset + last->bytes == offset && (unsigned char *)last->buffer + last->bytes == memory)
        last->bytes += d->slot_bytes;
    else
        ops[(*count)++] =
            (pst_io_op){.file = d->file, .offset = offset, .buffer = memory, .bytes = d->slot_bytes, .kind = kind};
}

/* The blocks of a segment in a layer: [seen, before) are read, [before, whole) become whole in this pass, and there is a
 * partial one after them if has_tail. */
typedef struct segment_blocks {
    uint32_t seen, before, whole;
    bool has_tail;
} segment_blocks;

static segment_blocks blocks_of(const pst_kv_config *c, const pst_segment *segment, uint32_t layer)
{
    const uint32_t first = segment->first_position, end = first + (uint32_t)segment->rows;
    const uint32_t window = c->windowed != NULL && c->windowed[layer] ? c->window : 0;
    const uint32_t from = window > 0 && first + 1 > window ? first + 1 - window : 0;
    return (segment_blocks){from / PST_KV_BLOCK, first / PST_KV_BLOCK, end / PST_KV_BLOCK, end % PST_KV_BLOCK != 0};
}

uint64_t pst_kv_row_traffic(const pst_kv_config *c, uint32_t position)
{
    uint64_t blocks = 0;
    const pst_segment row = {.rows = 1, .first_position = position};
    for (uint32_t layer = 0; c->folder != NULL && layer < c->layers; layer++) {
        const segment_blocks b = blocks_of(c, &row, layer);
        blocks += b.before - b.seen;
    }
    return blocks * slot_bytes_of(c);
}

/* Slots that a segment needs besides those that the part has. */
static uint32_t count_new(const pst_kv *kv, const kv_part *part, const uint32_t *table, const segment_blocks *b)
{
    uint32_t count = b->whole - b->before;
    for (uint32_t i = b->seen; i < b->before; i++)
        count += part->keys[place_of(kv->disk, part, table[i])] == PST_KV_NONE;
    return count;
}

/* Gives slots to the blocks of the next group's segments and lists what is to be read. */
static void collect(pst_kv *kv, kv_part *part)
{
    pst_kv_disk *d = kv->disk;
    memset(part->keys, 0xff, (d->hash_mask + 1) * sizeof *part->keys);
    part->used = part->read_count = part->write_count = 0;
    part->layer = d->next_layer;
    part->first = part->end = d->next_segment;
    for (; part->end < d->segment_count; part->end++) {
        const segment_blocks b = blocks_of(&kv->config, &d->segments[part->end], part->layer);
        const uint32_t *table = pst_kv_table_of(kv, d->sequences[part->end]);
        if (part->used + count_new(kv, part, table, &b) > d->part_slots)
            break; /* never the first one: a part holds a whole sequence */
        for (uint32_t i = b.seen; i < b.whole; i++) {
            uint32_t at = place_of(d, part, table[i]);
            if (part->keys[at] != PST_KV_NONE)
                continue; /* another segment reads it */
            part->keys[at] = table[i];
            part->slots[at] = part->used++;
            if (i < b.before)
                add_op(kv, part, PST_IO_READ, table[i], part->slots[at], part->read_ops, &part->read_count);
        }
    }
    d->next_segment = part->end;
    if (d->next_segment == d->segment_count) {
        d->next_segment = 0;
        d->next_layer++;
    }
}

/* ---- groups ---- */

/* 1: not done in time. */
static int wait_for(pst_kv *kv, pst_io_batch *batch, bool *is_under_way, uint64_t timeout_ns, pst_error *err)
{
    pst_kv_disk *d = kv->disk;
    if (!*is_under_way)
        return 0;
    uint64_t start = pst_clock_ns();
    int status = pst_io_wait(batch, timeout_ns, err);
    uint64_t end = pst_clock_ns();
    d->traffic.wait_ns += end - start;
    if (timeout_ns > 0)
        pst_trace_span(kv->config.trace, PST_TRACE_WAIT, "keys and values", start, end, 0);
    *is_under_way = status == 1;
    return status;
}

static int submit(pst_io_batch *batch, pst_io_op *ops, uint32_t count, bool *is_under_way, uint64_t *bytes,
                  pst_error *err)
{
    if (count == 0)
        return 0;
    PST_TRY(pst_io_submit(batch, ops, count, err));
    *is_under_way = true;
    for (uint32_t i = 0; i < count; i++)
        *bytes += ops[i].bytes;
    return 0;
}

/* Starts reading groups into the parts that are free; with `at_least_one`, waits for one to become so. */
static int read_ahead(pst_kv *kv, bool at_least_one, pst_error *err)
{
    pst_kv_disk *d = kv->disk;
    while (d->next_layer < kv->config.layers && d->submitted < d->ended + PARTS) {
        kv_part *part = &d->parts[d->submitted % PARTS];
        int status = wait_for(kv, part->writes, &part->is_writing, at_least_one ? UINT64_MAX : 0, err);
        PST_TRY(status);
        if (status == 1)
            break;
        collect(kv, part);
        PST_TRY(submit(part->reads, part->read_ops, part->read_count, &part->is_reading, &d->traffic.bytes_read, err));
        d->submitted++;
        at_least_one = false;
    }
    return 0;
}

int pst_kv_disk_begin_pass(pst_kv *kv, pst_segment *segments, const uint32_t *sequences, uint32_t count, pst_error *err)
{
    pst_kv_disk *d = kv->disk;
    for (uint32_t i = 0; i < PARTS; i++)
        PST_TRY(wait_for(kv, d->parts[i].writes, &d->parts[i].is_writing, UINT64_MAX, err));
    d->segments = segments;
    d->sequences = sequences;
    d->segment_count = count;
    d->next_layer = d->next_segment = 0;
    d->submitted = d->ended = 0;
    return read_ahead(kv, false, err);
}

static unsigned char *tail_of(const pst_kv *kv, uint32_t sequence, uint32_t layer)
{
    return kv->disk->tails + ((uint64_t)sequence * kv->config.layers + layer) * kv->block_bytes;
}

/* Points a segment at its blocks. What there was of a block that becomes whole comes from the tail. */
static void bind_segment(pst_kv *kv, const kv_part *part, uint32_t number)
{
    pst_kv_disk *d = kv->disk;
    pst_segment *segment = &d->segments[number];
    const uint32_t sequence = d->sequences[number], *table = pst_kv_table_of(kv, sequence);
    const segment_blocks b = blocks_of(&kv->config, segment, part->layer);
    void **bound = kv->bound + (size_t)sequence * kv->blocks_per_sequence;
    unsigned char *tail = tail_of(kv, sequence, part->layer);
    for (uint32_t i = b.seen; i < b.whole; i++)
        bound[i] = slot_memory(d, part, part->slots[place_of(d, part, table[i])]);
    if (b.before < b.whole && segment->first_position % PST_KV_BLOCK != 0)
        memcpy(bound[b.before], tail, kv->block_bytes);
    if (b.has_tail)
        bound[b.whole] = tail;
    segment->blocks = bound;
}

int pst_kv_disk_next_group(pst_kv *kv, uint32_t layer, uint32_t *first, uint32_t *count, pst_error *err)
{
    pst_kv_disk *d = kv->disk;
    if (d->submitted == d->ended)
        PST_TRY(read_ahead(kv, true, err));
    kv_part *part = &d->parts[d->ended % PARTS];
    if (d->submitted == d->ended || part->layer != layer)
        return 0;
    PST_TRY(wait_for(kv, part->reads, &part->is_reading, UINT64_MAX, err));
    for (uint32_t i = part->first; i < part->end; i++)
        bind_segment(kv, part, i);
    *first = part->first;
    *count = part->end - part->first;
    return 1;
}

int pst_kv_disk_end_group(pst_kv *kv, pst_error *err)
{
    pst_kv_disk *d = kv->disk;
    kv_part *part = &d->parts[d->ended % PARTS];
    for (uint32_t s = part->first; s < part->end; s++) {
        const segment_blocks b = blocks_of(&kv->config, &d->segments[s], part->layer);
        const uint32_t *table = pst_kv_table_of(kv, d->sequences[s]);
        for (uint32_t i = b.before; i < b.whole; i++) {
            uint32_t slot = part->slots[place_of(d, part, table[i])];
            memset(slot_memory(d, part, slot) + kv->block_bytes, 0, d->slot_bytes - kv->block_bytes);
            add_op(kv, part, PST_IO_WRITE, table[i], slot, part->write_ops, &part->write_count);
        }
    }
    PST_TRY(
        submit(part->writes, part->write_ops, part->write_count, &part->is_writing, &d->traffic.bytes_written, err));
    d->ended++;
    return read_ahead(kv, false, err);
}

void pst_kv_disk_get_traffic(const pst_kv_disk *disk, pst_kv_traffic *out)
{
    *out = disk->traffic;
}
