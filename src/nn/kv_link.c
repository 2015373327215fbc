/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Copies of keys and values between the host's memory and an accelerator's; see kv_window.h. Parts are filled on one stream and
 * written back on another, so that the link carries both ways at once. Events alone order the two with each other and with the
 * compute stream: filling a part waits for what was written back from it, computing for what was filled, writing back for what
 * was computed. So the caller runs ahead of the device and waits for nothing, unless somebody else's transfer has to follow.
 */
#include "base/error.h"
#include "base/heap.h"
#include "device/device.h"
#include "nn/kv_window.h"
#include "os/clock.h"

static const uint64_t MEASURE_NS = 50 * 1000 * 1000;

/* A copy that neighbours may still be added to. */
typedef struct kv_copy {
    char *to;
    const char *from;
    uint64_t bytes; /* 0: none */
} kv_copy;

struct pst_kv_link {
    pst_device *device;
    pst_device_stream *streams[PST_KV_WAYS];
    pst_device_event *done[PST_KV_PARTS][PST_KV_WAYS]; /* recorded behind the last copy of a part */
    pst_device_event *computed;
    kv_copy copy;
    uint64_t bytes[PST_KV_WAYS], wait_ns;
};

static int checked(const pst_kv_link *link, int status, const char *what, pst_error *err)
{
    return status >= 0 ? status : pst_device_fail(err, link->device, status, what);
}

int pst_kv_link_create(pst_device *device, pst_kv_link **out, pst_error *err)
{
    const pst_device_ops *ops = device->ops;
    pst_kv_link *link = *out = pst_heap_calloc(1, sizeof *link);
    if (link == NULL)
        return pst_fail_memory(err, "the KV cache's copies", sizeof *link);
    link->device = device;
    for (uint32_t way = 0; way < PST_KV_WAYS; way++)
        PST_TRY(checked(link, ops->stream_create(device, &link->streams[way]), "making a stream", err));
    for (uint32_t i = 0; i < PST_KV_PARTS * PST_KV_WAYS; i++)
        PST_TRY(checked(link, ops->event_create(device, &link->done[i / PST_KV_WAYS][i % PST_KV_WAYS]),
                        "making an event", err));
    return checked(link, ops->event_create(device, &link->computed), "making an event", err);
}

void pst_kv_link_destroy(pst_kv_link *link)
{
    if (link == NULL)
        return;
    const pst_device_ops *ops = link->device->ops;
    for (uint32_t way = 0; way < PST_KV_WAYS; way++)
        ops->stream_destroy(link->device, link->streams[way]); /* waits for it */
    for (uint32_t i = 0; i < PST_KV_PARTS * PST_KV_WAYS; i++)
        ops->event_destroy(link->device, link->done[i / PST_KV_WAYS][i % PST_KV_WAYS]);
    ops->event_destroy(link->device, link->computed);
    pst_heap_free(link);
}

/* The stream of `way` waits for an event. */
static int wait_on(const pst_kv_link *link, pst_kv_way way, pst_device_event *event, pst_error *err)
{
    return checked(link, link->device->ops->stream_wait(link->device, link->streams[way], event),
                   "waiting for keys and values", err);
}

int pst_kv_link_begin_pass(pst_kv_link *link, pst_error *err)
{
    for (uint32_t part = 0; part < PST_KV_PARTS; part++)
        PST_TRY(wait_on(link, PST_KV_READ, link->done[part][PST_KV_WRITE], err));
    return 0;
}

int pst_kv_link_begin(pst_kv_link *link, uint32_t part, pst_kv_way way, pst_error *err)
{
    const pst_device_ops *ops = link->device->ops;
    if (way == PST_KV_READ)
        return wait_on(link, way, link->done[part][PST_KV_WRITE], err);
    PST_TRY(checked(link, ops->event_record(link->device, link->computed, NULL), "recording an event", err));
    return wait_on(link, way, link->computed, err);
}

static int flush(pst_kv_link *link, pst_kv_way way, pst_error *err)
{
    const kv_copy copy = link->copy;
    link->copy.bytes = 0;
    if (copy.bytes == 0)
        return 0;
    link->bytes[way] += copy.bytes;
    return checked(link, link->device->ops->copy(link->device, link->streams[way], copy.to, copy.from, copy.bytes),
                   "copying keys and values", err);
}

int pst_kv_link_add(pst_kv_link *link, pst_kv_way way, void *memory, void *slot, uint64_t bytes, pst_error *err)
{
    char *to = way == PST_KV_READ ? slot : memory;
    const char *from = way == PST_KV_READ ? memory : slot;
    kv_copy *last = &link->copy;
    if (last->bytes > 0 && last->to + last->bytes == to && last->from + last->bytes == from) {
        last->bytes += bytes;
        return 0;
    }
    PST_TRY(flush(link, way, err));
    *last = (kv_copy){to, from, bytes};
    return 0;
}

int pst_kv_link_end(pst_kv_link *link, uint32_t part, pst_kv_way way, pst_error *err)
{
    PST_TRY(flush(link, way, err));
    return checked(link, link->device->ops->event_record(link->device, link->done[part][way], link->streams[way]),
                   "recording an event", err);
}

int pst_kv_link_await(pst_kv_link *link, uint32_t part, pst_error *err)
{
    return checked(link, link->device->ops->stream_wait(link->device, NULL, link->done[part][PST_KV_READ]),
                   "waiting for keys and values", err);
}

int pst_kv_link_returned(pst_kv_link *link, uint32_t part, bool wait, pst_error *err)
{
    const pst_device_ops *ops = link->device->ops;
    pst_device_event *event = link->done[part][PST_KV_WRITE];
    uint64_t start = pst_clock_ns();
    int status = wait ? ops->event_wait(link->device, event) : ops->event_query(link->device, event);
    link->wait_ns += pst_clock_ns() - start;
    return checked(link, status, "copying keys and values", err);
}

int pst_kv_link_measure(pst_kv_link *link, void *memory, void *slots, uint64_t bytes, double *out, pst_error *err)
{
    const pst_device_ops *ops = link->device->ops;
    const uint64_t start = pst_clock_ns();
    uint64_t end = start, copied = 0;
    for (; end - start < MEASURE_NS; end = pst_clock_ns(), copied += bytes) {
        PST_TRY(pst_kv_link_begin(link, 0, PST_KV_READ, err));
        PST_TRY(pst_kv_link_add(link, PST_KV_READ, memory, slots, bytes, err));
        PST_TRY(pst_kv_link_end(link, 0, PST_KV_READ, err));
        PST_TRY(
            checked(link, ops->event_wait(link->device, link->done[0][PST_KV_READ]), "copying keys and values", err));
    }
    link->bytes[PST_KV_READ] = 0; /* no pass's */
    *out = (double)copied * 1e9 / (double)(end - start);
    return 0;
}

void pst_kv_link_get_traffic(const pst_kv_link *link, pst_kv_traffic *out)
{
    out->link_bytes += link->bytes[PST_KV_READ];
    out->wait_ns += link->wait_ns;
}
