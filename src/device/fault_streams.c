/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Streams, events and copies of the fault device. In a late device a stream is a queue; a position in it is the count of
 * works before it, and an event is done when its stream has come to the position where it was recorded. A work waits only
 * for positions that were recorded before it, so that carrying out what is demanded comes to an end.
 */
#include "device/fault_streams.h"

#include <errno.h>

#include "base/error.h"
#include "base/heap.h"

static fault_stream *stream_of(fault_device *f, pst_device_stream *stream)
{
    return stream == NULL ? &f->compute : (fault_stream *)(void *)stream;
}

static void keep_failure(fault_device *f, int status)
{
    if (status < 0 && f->deferred >= 0)
        f->deferred = status;
}

static int carry_out(fault_device *f, fault_stream *stream, const fault_work *work)
{
    const pst_device_ops *ops = f->inner->ops;
    int status;
    fault_enter(f);
    switch (work->kind) {
    case FAULT_COPY:
        status = fault_inner(f, ops->copy(f->inner, stream->inner, work->to, work->from, work->bytes));
        break;
    case FAULT_FILL:
        status = fault_inner(f, ops->fill(f->inner, stream->inner, work->to, work->byte, work->bytes));
        break;
    case FAULT_WAIT:
        fault_run(f, work->stream, work->bytes);
        status = 0;
        break;
    default:
        /* Behind a failure that nobody knew of when this was asked for, operands may hold anything. */
        if (f->deferred < 0 || work->number < f->in_doubt) {
            status = 0;
            break;
        }
        status = f->separate ? fault_check_contents(f, work) : 0;
        if (status >= 0)
            status = fault_inner(f, fault_carry_out(f, work));
    }
    fault_leave(f);
    return status;
}

void fault_run(fault_device *f, fault_stream *stream, uint64_t serial)
{
    while (stream->done < serial && stream->first != NULL) {
        fault_work *work = stream->first;
        stream->first = work->next;
        if (stream->first == NULL)
            stream->end = &stream->first;
        keep_failure(f, carry_out(f, stream, work));
        stream->done++;
        fault_free_work(work);
    }
}

void fault_run_all(fault_device *f)
{
    fault_run(f, &f->compute, f->compute.issued);
    for (size_t i = 0; i < f->stream_count; i++)
        fault_run(f, f->streams[i], f->streams[i]->issued);
}

/* What a work points to that is the caller's, as a copy. */
static int copy_weights(fault_work *work)
{
    const pst_grouped_matmul *job = &work->job.grouped;
    work->weights = pst_heap_calloc(job->groups, sizeof *work->weights + sizeof *work->formats);
    if (work->weights == NULL)
        return -ENOMEM;
    work->formats = (pst_weight_format *)(void *)(work->weights + job->groups);
    for (uint32_t g = 0; g < job->groups; g++) {
        work->weights[g] = job->weights[g];
        if (job->weights[g].format == NULL)
            continue;
        work->formats[g] = *job->weights[g].format;
        work->weights[g].format = &work->formats[g];
    }
    work->job.grouped.weights = work->weights;
    return 0;
}

int fault_copy_work(fault_device *f, const fault_work *work, fault_work **out)
{
    fault_work *own = pst_heap_alloc(sizeof *own);
    if (own == NULL)
        return fault_say(f, -ENOMEM, "out of memory for what is put off");
    *own = *work;
    own->next = NULL;
    own->weights = NULL;
    if (own->kind == FAULT_MATMUL_GROUPED && own->job.grouped.groups > 0 && copy_weights(own) < 0) {
        pst_heap_free(own);
        return fault_say(f, -ENOMEM, "out of memory for what is put off");
    }
    if (own->w.format != NULL) {
        own->w_format = *own->w.format;
        own->w.format = &own->w_format;
    }
    if (own->kind == FAULT_MATMUL && own->job.matmul.w.format != NULL) {
        own->w_format = *own->job.matmul.w.format;
        own->job.matmul.w.format = &own->w_format;
    }
    if (own->kind == FAULT_MATMUL_HEADS && own->job.heads.w.format != NULL) {
        own->w_format = *own->job.heads.w.format;
        own->job.heads.w.format = &own->w_format;
    }
    own->b.format = NULL; /* of vectors: plain ones */
    *out = own;
    return 0;
}

void fault_free_work(fault_work *work)
{
    pst_heap_free(work->weights);
    pst_heap_free(work);
}

int fault_submit(fault_device *f, fault_stream *stream, const fault_work *work)
{
    const uint64_t number = f->numbers++;
    const bool is_noted = f->recording != NULL && f->separate;
    if (!f->late && !is_noted) {
        fault_work now = *work;
        now.number = number;
        return carry_out(f, stream, &now);
    }
    fault_work *own;
    PST_TRY(fault_copy_work(f, work, &own));
    own->number = number;
    if (is_noted) {
        *f->recording->end = own;
        f->recording->end = &own->next;
        return 0;
    }
    *stream->end = own;
    stream->end = &own->next;
    stream->issued++;
    return 0;
}

/* What a wait reports: its own failure, or what was put off. */
static int report(fault_device *f, int status)
{
    if (f->deferred < 0 && status >= 0) {
        status = f->deferred;
        f->deferred = 0;
        f->in_doubt = f->numbers;
    }
    return status;
}

static int fault_stream_create(pst_device *device, pst_device_stream **out)
{
    fault_device *f = fault_of(device);
    bool skip;
    PST_TRY(fault_outside(f, "stream_create"));
    PST_TRY(fault_strike(f, PST_DEVICE_CREATE, &skip));
    if (f->stream_count == f->stream_capacity) {
        const size_t capacity = f->stream_capacity * 2 + 4;
        fault_stream **grown = pst_heap_reallocarray(f->streams, capacity, sizeof *grown);
        if (grown == NULL)
            return fault_say(f, -ENOMEM, "out of memory for a stream");
        f->streams = grown;
        f->stream_capacity = capacity;
    }
    fault_stream *stream = pst_heap_calloc(1, sizeof *stream);
    if (stream == NULL)
        return fault_say(f, -ENOMEM, "out of memory for a stream");
    int status = fault_inner(f, f->inner->ops->stream_create(f->inner, &stream->inner));
    if (status < 0) {
        pst_heap_free(stream);
        return status;
    }
    stream->end = &stream->first;
    f->streams[f->stream_count++] = stream;
    f->fault->streams++;
    *out = (pst_device_stream *)(void *)stream;
    return 0;
}

/* The struct stays until the device is destroyed: events may speak of it. */
static void fault_stream_destroy(pst_device *device, pst_device_stream *handle)
{
    fault_device *f = fault_of(device);
    if (handle == NULL)
        return;
    fault_stream *stream = stream_of(f, handle);
    (void)fault_outside(f, "stream_destroy");
    fault_run(f, stream, stream->issued);
    f->inner->ops->stream_destroy(f->inner, stream->inner);
    f->fault->streams--;
}

static int fault_event_create(pst_device *device, pst_device_event **out)
{
    fault_device *f = fault_of(device);
    bool skip;
    PST_TRY(fault_outside(f, "event_create"));
    PST_TRY(fault_strike(f, PST_DEVICE_CREATE, &skip));
    fault_event *event = pst_heap_calloc(1, sizeof *event);
    if (event == NULL)
        return fault_say(f, -ENOMEM, "out of memory for an event");
    int status = fault_inner(f, f->inner->ops->event_create(f->inner, &event->inner));
    if (status < 0) {
        pst_heap_free(event);
        return status;
    }
    f->fault->events++;
    *out = (pst_device_event *)(void *)event;
    return 0;
}

static void fault_event_destroy(pst_device *device, pst_device_event *handle)
{
    fault_device *f = fault_of(device);
    fault_event *event = (fault_event *)(void *)handle;
    if (event == NULL)
        return;
    (void)fault_outside(f, "event_destroy");
    f->inner->ops->event_destroy(f->inner, event->inner);
    f->fault->events--;
    pst_heap_free(event);
}

static int fault_event_record(pst_device *device, pst_device_event *handle, pst_device_stream *stream)
{
    fault_device *f = fault_of(device);
    fault_event *event = (fault_event *)(void *)handle;
    bool skip;
    PST_TRY(fault_outside(f, "event_record"));
    PST_TRY(fault_strike(f, PST_DEVICE_RECORD, &skip));
    if (skip)
        return 0;
    event->stream = stream_of(f, stream);
    event->serial = event->stream->issued;
    return fault_inner(f, f->inner->ops->event_record(f->inner, event->inner, event->stream->inner));
}

static int fault_stream_wait(pst_device *device, pst_device_stream *handle, pst_device_event *event_handle)
{
    fault_device *f = fault_of(device);
    fault_stream *stream = stream_of(f, handle);
    const fault_event *event = (const fault_event *)(const void *)event_handle;
    bool skip;
    PST_TRY(fault_outside(f, "stream_wait"));
    PST_TRY(fault_strike(f, PST_DEVICE_RECORD, &skip));
    if (skip)
        return 0;
    if (f->late && event->stream != NULL) {
        const fault_work wait = {.kind = FAULT_WAIT, .stream = event->stream, .bytes = event->serial};
        PST_TRY(fault_submit(f, stream, &wait));
    }
    return fault_inner(f, f->inner->ops->stream_wait(f->inner, stream->inner, event->inner));
}

static int fault_event_wait(pst_device *device, pst_device_event *handle)
{
    fault_device *f = fault_of(device);
    const fault_event *event = (const fault_event *)(const void *)handle;
    bool skip;
    PST_TRY(fault_outside(f, "event_wait"));
    PST_TRY(fault_strike(f, PST_DEVICE_WAIT, &skip));
    if (event->stream != NULL)
        fault_run(f, event->stream, event->serial);
    return report(f, fault_inner(f, f->inner->ops->event_wait(f->inner, event->inner)));
}

/* Late: every question brings the event's stream one work further, so that whoever asks on gets there. */
static int fault_event_query(pst_device *device, pst_device_event *handle)
{
    fault_device *f = fault_of(device);
    const fault_event *event = (const fault_event *)(const void *)handle;
    bool skip;
    PST_TRY(fault_outside(f, "event_query"));
    PST_TRY(fault_strike(f, PST_DEVICE_QUERY, &skip));
    if (event->stream != NULL && event->stream->done < event->serial) {
        fault_run(f, event->stream, event->stream->done + 1);
        return 1;
    }
    return fault_inner(f, f->inner->ops->event_query(f->inner, event->inner));
}

static int fault_synchronize(pst_device *device, pst_device_stream *handle)
{
    fault_device *f = fault_of(device);
    fault_stream *stream = stream_of(f, handle);
    bool skip;
    PST_TRY(fault_outside(f, "synchronize"));
    PST_TRY(fault_strike(f, PST_DEVICE_SYNCHRONIZE, &skip));
    fault_run(f, stream, stream->issued);
    return report(f, fault_inner(f, f->inner->ops->synchronize(f->inner, stream->inner)));
}

/* Memory of a copy: the device's own, as far as it is in the room. *plain: the caller's. */
static int check_side(fault_device *f, const void *memory, uint64_t bytes, bool *plain)
{
    if (!f->separate)
        return 0;
    const bool known = fault_find(f, memory, bytes) != NULL;
    *plain = *plain || !known;
    return known || !fault_overlaps_room(f, memory, bytes) ? 0 : fault_misuse(f, "copy: beyond what was allocated");
}

static int fault_copy(pst_device *device, pst_device_stream *handle, void *to, const void *from, uint64_t bytes)
{
    fault_device *f = fault_of(device);
    fault_stream *stream = stream_of(f, handle);
    bool skip, plain = false;
    PST_TRY(fault_strike(f, PST_DEVICE_COPY, &skip));
    if (skip)
        return 0;
    PST_TRY(check_side(f, to, bytes, &plain));
    PST_TRY(check_side(f, from, bytes, &plain));
    if (plain || stream != &f->compute)
        PST_TRY(fault_outside(f, "copy"));
    const fault_work copy = {.kind = FAULT_COPY, .to = to, .from = from, .bytes = bytes};
    if (!plain)
        return fault_submit(f, stream, &copy);
    fault_run(f, stream, stream->issued);
    return carry_out(f, stream, &copy);
}

static int fault_fill(pst_device *device, pst_device_stream *handle, void *to, int byte, uint64_t bytes)
{
    fault_device *f = fault_of(device);
    bool skip;
    PST_TRY(fault_strike(f, PST_DEVICE_COPY, &skip));
    if (skip)
        return 0;
    if (f->separate && fault_find(f, to, bytes) == NULL)
        return fault_misuse(f, "fill: not memory of the device");
    if (handle != NULL)
        PST_TRY(fault_outside(f, "fill"));
    const fault_work fill = {.kind = FAULT_FILL, .to = to, .byte = byte, .bytes = bytes};
    return fault_submit(f, stream_of(f, handle), &fill);
}

void fault_set_streams(pst_device_ops *ops)
{
    ops->stream_create = fault_stream_create;
    ops->stream_destroy = fault_stream_destroy;
    ops->event_create = fault_event_create;
    ops->event_destroy = fault_event_destroy;
    ops->event_record = fault_event_record;
    ops->stream_wait = fault_stream_wait;
    ops->event_wait = fault_event_wait;
    ops->event_query = fault_event_query;
    ops->synchronize = fault_synchronize;
    ops->copy = fault_copy;
    ops->fill = fault_fill;
}
