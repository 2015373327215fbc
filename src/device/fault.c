/* SPDX-License-Identifier: Apache-2.0 */
/* The fault device: how it is made, what fails, and memory. */
#include "device/fault.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/number.h"
#include "device/fault_internal.h"
#include "device/fault_streams.h"
#include "os/memory.h"

enum { ALIGNMENT = 256, RUBBISH = 0xff /* not a number in every floating type, and no index */ };
static const uint64_t DEFAULT_ROOM = UINT64_C(256) << 20;

int fault_say(fault_device *f, int code, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(f->message, sizeof f->message, format, arguments);
    va_end(arguments);
    return code;
}

int fault_misuse(fault_device *f, const char *format, ...)
{
    pst_device_fault *fault = f->fault;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(f->message, sizeof f->message, format, arguments);
    va_end(arguments);
    if (fault->misuses++ == 0)
        snprintf(fault->misuse, sizeof fault->misuse, "%.*s", (int)sizeof fault->misuse - 1, f->message);
    return PST_E_USAGE;
}

int fault_inner(fault_device *f, int status)
{
    if (status < 0) {
        const char *why = f->inner->ops->last_error(f->inner);
        fault_say(f, status, "%s", why[0] != '\0' ? why : pst_strerror(status));
    }
    return status;
}

int fault_strike(fault_device *f, pst_device_call kind, bool *skip)
{
    static const char *const names[PST_DEVICE_CALLS] = {"allocation", "registration", "question", "creation",
                                                        "record",     "query",        "wait",     "synchronization",
                                                        "copy",       "operator",     "recording"};
    pst_device_fault *fault = f->fault;
    *skip = false;
    fault->calls[kind]++;
    if (fault->plan[kind].times <= 0)
        return 0;
    if (fault->plan[kind].skip > 0) {
        fault->plan[kind].skip--;
        return 0;
    }
    fault->plan[kind].times--;
    fault->failures++;
    *skip = true;
    const int code = fault->plan[kind].code;
    fault_say(f, code, "%s %" PRId64 " fails as planned", names[kind], fault->calls[kind]);
    if (!fault->plan[kind].deferred)
        return code;
    f->deferred = f->deferred < 0 ? f->deferred : code;
    return 0;
}

void pst_device_fault_fail(pst_device_fault *fault, pst_device_call kind, int64_t skip, int64_t times, int code)
{
    fault->plan[kind].skip = skip;
    fault->plan[kind].times = times;
    fault->plan[kind].code = code;
    fault->plan[kind].deferred = false;
}

int64_t pst_device_fault_held(const pst_device_fault *fault)
{
    return fault->allocations[0] + fault->allocations[1] + fault->registered + fault->streams + fault->events +
           fault->recordings;
}

/* ---- Memory ---- */

void fault_enter(fault_device *f)
{
    if (f->room != NULL && f->depth++ == 0)
        pst_memory_protect(f->room, f->room_bytes, true, NULL);
}

void fault_leave(fault_device *f)
{
    if (f->room != NULL && --f->depth == 0)
        pst_memory_protect(f->room, f->room_bytes, false, NULL);
}

/* How many blocks begin at `memory` or before. */
static size_t blocks_until(const fault_device *f, const void *memory)
{
    size_t low = 0, high = f->block_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if ((uintptr_t)f->blocks[middle].begin <= (uintptr_t)memory)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

const fault_block *fault_find(const fault_device *f, const void *memory, uint64_t bytes)
{
    const size_t until = blocks_until(f, memory);
    if (until == 0)
        return NULL;
    const fault_block *block = &f->blocks[until - 1];
    const uint64_t offset = (uint64_t)((uintptr_t)memory - (uintptr_t)block->begin);
    return offset <= block->bytes && bytes <= block->bytes - offset ? block : NULL;
}

bool fault_overlaps_room(const fault_device *f, const void *memory, uint64_t bytes)
{
    const uintptr_t begin = (uintptr_t)memory, room = (uintptr_t)f->room;
    return f->room != NULL && begin < room + f->room_bytes && begin + bytes > room;
}

/* Makes room for one more, so that remember cannot fail. */
static int expect_block(fault_device *f)
{
    if (f->block_count < f->block_capacity)
        return 0;
    const size_t capacity = f->block_capacity * 2 + 16;
    fault_block *grown = pst_heap_reallocarray(f->blocks, capacity, sizeof *grown);
    if (grown == NULL)
        return fault_say(f, -ENOMEM, "out of memory for the list of blocks");
    f->blocks = grown;
    f->block_capacity = capacity;
    return 0;
}

static void remember(fault_device *f, fault_block block)
{
    const size_t at = blocks_until(f, block.begin);
    memmove(f->blocks + at + 1, f->blocks + at, (f->block_count - at) * sizeof *f->blocks);
    f->blocks[at] = block;
    f->block_count++;
}

/* Takes a block off the list; false: there is none that begins there. */
static bool forget(fault_device *f, const void *memory, int kind)
{
    const size_t until = blocks_until(f, memory);
    if (until == 0 || f->blocks[until - 1].begin != memory || (int)f->blocks[until - 1].kind != kind)
        return false;
    memmove(f->blocks + until - 1, f->blocks + until, (f->block_count - until) * sizeof *f->blocks);
    f->block_count--;
    return true;
}

/* The first gap of the room that is large enough; something lies between any two blocks. */
static int allocate_in_room(fault_device *f, uint64_t bytes, void **out)
{
    uint64_t at = 0;
    for (size_t i = 0; i < f->block_count; i++) {
        const fault_block *block = &f->blocks[i];
        if (block->kind != FAULT_DEVICE)
            continue;
        const uint64_t begin = (uint64_t)(block->begin - f->room);
        if (at <= begin && bytes <= begin - at)
            break;
        at = pst_round_up(begin + block->bytes, ALIGNMENT) + ALIGNMENT;
    }
    if (at > f->room_bytes || bytes > f->room_bytes - at)
        return fault_say(f, -ENOMEM, "out of device memory: %" PRIu64 " bytes of %" PRIu64, bytes, f->room_bytes);
    *out = f->room + at;
    return 0;
}

static int fault_allocate(pst_device *device, pst_device_memory kind, uint64_t bytes, void **out)
{
    fault_device *f = fault_of(device);
    pst_device_fault *fault = f->fault;
    bool skip;
    void *memory;
    PST_TRY(fault_outside(f, "allocate"));
    PST_TRY(fault_strike(f, PST_DEVICE_ALLOCATE, &skip));
    PST_TRY(expect_block(f));
    if (f->separate && kind == PST_MEMORY_DEVICE)
        PST_TRY(allocate_in_room(f, bytes, &memory));
    else
        PST_TRY(fault_inner(f, f->inner->ops->allocate(f->inner, kind, bytes, &memory)));
    if (f->separate) {
        fault_enter(f);
        memset(memory, RUBBISH, bytes);
        fault_leave(f);
    }
    remember(f, (fault_block){memory, bytes, kind == PST_MEMORY_DEVICE ? FAULT_DEVICE : FAULT_HOST});
    fault->allocations[kind]++;
    fault->bytes[kind] += bytes;
    fault->peak_bytes[kind] = pst_max(fault->peak_bytes[kind], fault->bytes[kind]);
    *out = memory;
    return 0;
}

static void fault_release(pst_device *device, pst_device_memory kind, void *memory, uint64_t bytes)
{
    fault_device *f = fault_of(device);
    if (memory == NULL)
        return;
    (void)fault_outside(f, "release");
    fault_run_all(f); /* as a driver that waits before it takes memory back */
    const fault_block *block = fault_find(f, memory, bytes);
    if (block == NULL || block->bytes != bytes ||
        !forget(f, memory, kind == PST_MEMORY_DEVICE ? FAULT_DEVICE : FAULT_HOST)) {
        fault_misuse(f, "release: not what was allocated");
        return;
    }
    f->fault->allocations[kind]--;
    f->fault->bytes[kind] -= bytes;
    if (f->separate && kind == PST_MEMORY_DEVICE) {
        fault_enter(f);
        memset(memory, RUBBISH, bytes);
        fault_leave(f);
    } else {
        f->inner->ops->release(f->inner, kind, memory, bytes);
    }
}

static int fault_register(pst_device *device, void *memory, uint64_t bytes)
{
    fault_device *f = fault_of(device);
    bool skip;
    PST_TRY(fault_outside(f, "register_host"));
    PST_TRY(fault_strike(f, PST_DEVICE_REGISTER, &skip));
    PST_TRY(expect_block(f));
    PST_TRY(fault_inner(f, f->inner->ops->register_host(f->inner, memory, bytes)));
    remember(f, (fault_block){memory, bytes, FAULT_REGISTERED});
    f->fault->registered++;
    return 0;
}

static void fault_unregister(pst_device *device, void *memory)
{
    fault_device *f = fault_of(device);
    (void)fault_outside(f, "unregister_host");
    fault_run_all(f);
    if (!forget(f, memory, FAULT_REGISTERED)) {
        fault_misuse(f, "unregister_host: not what was registered");
        return;
    }
    f->fault->registered--;
    f->inner->ops->unregister_host(f->inner, memory);
}

static int fault_memory_info(pst_device *device, uint64_t *free_bytes, uint64_t *total_bytes)
{
    fault_device *f = fault_of(device);
    bool skip;
    PST_TRY(fault_outside(f, "memory_info"));
    PST_TRY(fault_strike(f, PST_DEVICE_INFO, &skip));
    if (!f->separate)
        return fault_inner(f, f->inner->ops->memory_info(f->inner, free_bytes, total_bytes));
    *total_bytes = f->room_bytes;
    *free_bytes = f->room_bytes - pst_min(f->room_bytes, f->fault->bytes[PST_MEMORY_DEVICE]);
    return 0;
}

/* ---- The device ---- */

static const char *fault_last_error(pst_device *device)
{
    return fault_of(device)->message;
}

/* All but the inner device. */
static void dispose(fault_device *f)
{
    for (size_t i = 0; i < f->stream_count; i++)
        pst_heap_free(f->streams[i]);
    pst_heap_free(f->streams);
    pst_heap_free(f->blocks);
    if (f->room != NULL)
        pst_memory_unmap(f->room, f->room_bytes);
    pst_heap_free(f);
}

static void fault_destroy(pst_device *device)
{
    fault_device *f = fault_of(device);
    pst_device *inner = f->inner;
    fault_run_all(f);
    fault_drop_recording(f);
    dispose(f);
    inner->ops->destroy(inner);
}

static void set_ops(fault_device *f)
{
    snprintf(f->name, sizeof f->name, "fault:%.30s", f->inner->ops->name);
    f->ops = (pst_device_ops){.struct_size = sizeof f->ops,
                              .name = f->name,
                              .is_host = f->inner->ops->is_host && !f->separate,
                              .phases_change_bits = f->inner->ops->phases_change_bits,
                              .last_error = fault_last_error,
                              .destroy = fault_destroy,
                              .allocate = fault_allocate,
                              .release = fault_release,
                              .register_host = fault_register,
                              .unregister_host = fault_unregister,
                              .memory_info = fault_memory_info};
    fault_set_streams(&f->ops);
    fault_set_operators(&f->ops);
    fault_set_recordings(&f->ops);
    f->base.ops = &f->ops;
}

int pst_device_fault_create(pst_device_fault *fault, pst_device *inner, pst_device **out, pst_error *err)
{
    if ((fault->separate && !inner->ops->is_host) || (fault->late && !fault->separate))
        return pst_fail(err, PST_E_USAGE, NULL,
                        "only a host can pretend to be a separate device, and only that is late");
    fault_device *f = pst_heap_calloc(1, sizeof *f);
    if (f == NULL)
        return pst_fail_memory(err, "the fault device", sizeof *f);
    *f = (fault_device){.inner = inner, .fault = fault, .separate = fault->separate, .late = fault->late};
    f->compute.end = &f->compute.first;
    if (f->separate) {
        const uint64_t bytes = fault->device_bytes > 0 ? fault->device_bytes : DEFAULT_ROOM;
        void *room;
        int status = pst_memory_map(bytes, "device memory", &room, err);
        if (status >= 0) {
            f->room = room;
            f->room_bytes = bytes;
            status = pst_memory_protect(room, bytes, false, err);
        }
        if (status < 0) {
            dispose(f);
            return status;
        }
    }
    set_ops(f);
    *out = &f->base;
    return 0;
}

int pst_device_fault_open(void *context, const char *name, pst_pool *pool, const char *kernels, pst_device **out,
                          pst_error *err)
{
    (void)name;
    pst_device *host;
    PST_TRY(pst_device_host_create(pool, kernels, &host, err));
    int status = pst_device_fault_create(context, host, out, err);
    if (status < 0)
        pst_device_destroy(host);
    return status;
}
