/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Spans are claimed by one atomic counter, so recording is wait-free; what is claimed past the end is only counted.
 * The format is the "JSON Array" of Chrome's trace events: complete events ("X"), times in microseconds.
 */
#include "base/trace.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"

typedef struct pst_span {
    uint64_t start_ns, end_ns, bytes;
    pst_trace_track track;
    char name[40];
} pst_span;

struct pst_trace {
    size_t capacity;
    atomic_size_t claimed;
    pst_span spans[];
};

static const char *const track_names[PST_TRACE_TRACKS] = {"drive", "waiting for the drive", "compute", "pass", "link"};

int pst_trace_create(size_t max_events, pst_trace **out, pst_error *err)
{
    if (max_events == 0 || max_events > (1u << 26))
        return pst_fail(err, PST_E_USAGE, NULL, "a timeline holds 1 to %u events", 1u << 26);
    size_t bytes = sizeof(pst_trace) + max_events * sizeof(pst_span);
    pst_trace *trace = pst_heap_calloc(1, bytes);
    if (trace == NULL)
        return pst_fail_memory(err, "the timeline", bytes);
    trace->capacity = max_events;
    *out = trace;
    return 0;
}

void pst_trace_destroy(pst_trace *trace)
{
    pst_heap_free(trace);
}

/* Of one event's text, with room to spare. */
enum { TEXT_PER_EVENT = 256 };

uint64_t pst_trace_memory_bytes(const pst_trace *trace)
{
    return trace ? trace->capacity * (sizeof(pst_span) + TEXT_PER_EVENT) : 0;
}

void pst_trace_span(pst_trace *trace, pst_trace_track track, const char *name, uint64_t start_ns, uint64_t end_ns,
                    uint64_t bytes)
{
    if (trace == NULL)
        return;
    size_t index = atomic_fetch_add_explicit(&trace->claimed, 1, memory_order_relaxed);
    if (index >= trace->capacity)
        return;
    pst_span *span = &trace->spans[index];
    span->start_ns = start_ns;
    span->end_ns = end_ns;
    span->bytes = bytes;
    span->track = track;
    snprintf(span->name, sizeof span->name, "%s", name);
}

int pst_trace_format(const pst_trace *trace, char **out, size_t *out_bytes, pst_error *err)
{
    size_t claimed = atomic_load(&trace->claimed);
    size_t count = claimed < trace->capacity ? claimed : trace->capacity;
    size_t capacity = 1024 + count * TEXT_PER_EVENT, used = 0;
    char *text = pst_heap_alloc(capacity);
    if (text == NULL)
        return pst_fail_memory(err, "the timeline's text", capacity);
    used += (size_t)snprintf(text + used, capacity - used, "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n");
    for (int track = 0; track < PST_TRACE_TRACKS; track++)
        used += (size_t)snprintf(
            text + used, capacity - used,
            "{\"ph\":\"M\",\"pid\":1,\"tid\":%d,\"name\":\"thread_name\",\"args\":{\"name\":\"%s\"}},\n", track,
            track_names[track]);
    uint64_t origin = UINT64_MAX;
    for (size_t i = 0; i < count; i++)
        origin = trace->spans[i].start_ns < origin ? trace->spans[i].start_ns : origin;
    for (size_t i = 0; i < count; i++) {
        const pst_span *span = &trace->spans[i];
        used += (size_t)snprintf(text + used, capacity - used,
                                 "{\"ph\":\"X\",\"pid\":1,\"tid\":%d,\"name\":\"%s\",\"ts\":%.3f,\"dur\":%.3f,"
                                 "\"args\":{\"bytes\":%" PRIu64 "}},\n",
                                 (int)span->track, span->name, (double)(span->start_ns - origin) / 1e3,
                                 (double)(span->end_ns - span->start_ns) / 1e3, span->bytes);
    }
    used += (size_t)snprintf(text + used, capacity - used,
                             "{\"ph\":\"i\",\"pid\":1,\"tid\":0,\"s\":\"g\",\"name\":\"end\",\"ts\":0,\"args\":{"
                             "\"spans_left_out\":%zu}}\n]}\n",
                             claimed - count);
    *out = text;
    *out_bytes = used;
    return 0;
}
