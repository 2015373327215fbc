/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Registered memory. A region is cut into chunks of at most 1 GiB, one buffer slot of the engine each; a
 * transfer that crosses a chunk's end does without. Slots are the same in every worker's queue.
 */
#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "base/log.h"
#include "io/internal.h"

int pst_io_region_slot(const pst_io *io, const char *memory, uint64_t bytes)
{
    uint32_t low = 0, high = io->region_count;
    while (low < high) { /* the first region above memory */
        uint32_t middle = (low + high) / 2;
        if (io->regions[middle].memory <= memory)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == 0)
        return -1;
    const region *r = &io->regions[low - 1];
    uint64_t at = (uint64_t)(memory - r->memory);
    if (at + bytes > r->bytes || at / PST_IO_CHUNK_BYTES != (at + bytes - 1) / PST_IO_CHUNK_BYTES)
        return -1;
    return (int)(r->first_slot + at / PST_IO_CHUNK_BYTES);
}

static uint64_t chunks_of(uint64_t bytes)
{
    return bytes / PST_IO_CHUNK_BYTES + (bytes % PST_IO_CHUNK_BYTES != 0);
}

/* `count` free slots in a row; -1 when there are none. The control lock is held. */
static int find_slots(const pst_io *io, uint32_t count)
{
    uint32_t row = 0;
    for (uint32_t i = 0; i < PST_IO_BUFFER_SLOTS; i++) {
        row = io->buffer_slots[i] ? 0 : row + 1;
        if (row == count)
            return (int)(i + 1 - count);
    }
    return -1;
}

static void clear_slots(pst_io *io, uint32_t first, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        control c = {.kind = CONTROL_BUFFER, .slot = first + i};
        pst_io_control(io, &c);
        io->buffer_slots[first + i] = false;
    }
}

/* Puts all chunks into slots from `first` on, or none. */
static int fill_slots(pst_io *io, uint32_t first, char *memory, uint64_t bytes)
{
    for (uint32_t i = 0; i < chunks_of(bytes); i++) {
        uint64_t at = (uint64_t)i * PST_IO_CHUNK_BYTES, left = bytes - at;
        control c = {.kind = CONTROL_BUFFER,
                     .slot = first + i,
                     .memory = memory + at,
                     .bytes = left < PST_IO_CHUNK_BYTES ? left : PST_IO_CHUNK_BYTES};
        io->buffer_slots[first + i] = true;
        int status = pst_io_control(io, &c);
        if (status < 0) {
            clear_slots(io, first, i + 1);
            return status;
        }
    }
    return 0;
}

static int check_region(const pst_io *io, const char *memory, uint64_t bytes, pst_error *err)
{
    if (memory == NULL || bytes == 0 || bytes > (uint64_t)UINTPTR_MAX - (uintptr_t)memory)
        return pst_fail(err, PST_E_USAGE, NULL, "there is no memory to register");
    if (io->region_count == PST_IO_MAX_REGIONS)
        return pst_fail(err, PST_E_USAGE, NULL, "more than %d registered regions", PST_IO_MAX_REGIONS);
    for (uint32_t i = 0; i < io->region_count; i++) {
        const region *r = &io->regions[i];
        if (memory < r->memory + r->bytes && r->memory < memory + bytes)
            return pst_fail(err, PST_E_USAGE, NULL, "registered regions overlap");
    }
    return 0;
}

static void insert_region(pst_io *io, const region *added)
{
    uint32_t at = io->region_count;
    while (at > 0 && io->regions[at - 1].memory > added->memory)
        at--;
    memmove(&io->regions[at + 1], &io->regions[at], (io->region_count - at) * sizeof added[0]);
    io->regions[at] = *added;
    io->region_count++;
}

int pst_io_register(pst_io *io, void *memory, uint64_t bytes, pst_error *err)
{
    pthread_mutex_lock(&io->control_lock);
    /* region_count and regions change under both locks, so that reading them needs only one. */
    int status = check_region(io, memory, bytes, err);
    if (status >= 0 && (io->engine->flags & PST_IO_ENGINE_BUFFER_SLOTS) != 0) {
        int first = chunks_of(bytes) <= PST_IO_BUFFER_SLOTS ? find_slots(io, chunks_of(bytes)) : -1;
        int filled = first < 0 ? -ENOSPC : fill_slots(io, (uint32_t)first, memory, bytes);
        if (filled >= 0) {
            pthread_mutex_lock(&io->lock);
            insert_region(io, &(region){.memory = memory, .bytes = bytes, .first_slot = (uint32_t)first});
            pthread_mutex_unlock(&io->lock);
        } else {
            pst_log(PST_LOG_INFO, "%llu bytes of I/O buffers are not registered with %s: %s%s",
                    (unsigned long long)bytes, io->engine->name, pst_strerror(filled),
                    filled == -ENOMEM ? " (the limit of locked memory, ulimit -l)" : "");
        }
    }
    pthread_mutex_unlock(&io->control_lock);
    return status;
}

void pst_io_unregister(pst_io *io, void *memory)
{
    pthread_mutex_lock(&io->control_lock);
    for (uint32_t i = 0; i < io->region_count; i++) {
        region r = io->regions[i];
        if (r.memory != (char *)memory)
            continue;
        pthread_mutex_lock(&io->lock);
        memmove(&io->regions[i], &io->regions[i + 1], (io->region_count - i - 1) * sizeof r);
        io->region_count--;
        pthread_mutex_unlock(&io->lock);
        clear_slots(io, r.first_slot, chunks_of(r.bytes));
        break;
    }
    pthread_mutex_unlock(&io->control_lock);
}
