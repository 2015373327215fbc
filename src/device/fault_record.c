/* SPDX-License-Identifier: Apache-2.0 */
/* Recordings of the fault device: lists of works, or those of the device inside. */
#include <errno.h>

#include "base/error.h"
#include "base/heap.h"
#include "device/fault_internal.h"

static fault_recording *recording_of(pst_device_recording *recording)
{
    return (fault_recording *)(void *)recording;
}

int fault_outside(fault_device *f, const char *call)
{
    return f->recording == NULL ? 0 : fault_misuse(f, "%s: has no place in a recording", call);
}

static void free_recording(fault_recording *recording)
{
    for (fault_work *work = recording->first, *next; work != NULL; work = next) {
        next = work->next;
        fault_free_work(work);
    }
    pst_heap_free(recording);
}

void fault_drop_recording(fault_device *f)
{
    if (f->recording != NULL)
        free_recording(f->recording);
    f->recording = NULL;
}

static int fault_record_begin(pst_device *device)
{
    fault_device *f = fault_of(device);
    bool skip;
    PST_TRY(fault_outside(f, "record_begin"));
    PST_TRY(fault_strike(f, PST_DEVICE_RECORDING, &skip));
    if (!f->separate)
        PST_TRY(fault_inner(f, f->inner->ops->record_begin(f->inner)));
    fault_recording *recording = pst_heap_calloc(1, sizeof *recording);
    if (recording == NULL) {
        if (!f->separate)
            f->inner->ops->record_end(f->inner, NULL);
        return fault_say(f, -ENOMEM, "out of memory for a recording");
    }
    recording->end = &recording->first;
    f->recording = recording;
    return 0;
}

static int fault_record_end(pst_device *device, pst_device_recording **out)
{
    fault_device *f = fault_of(device);
    fault_recording *recording = f->recording;
    bool skip;
    if (recording == NULL)
        return fault_misuse(f, "record_end: no recording is under way");
    int status = fault_strike(f, PST_DEVICE_RECORDING, &skip);
    const bool is_kept = out != NULL && status >= 0;
    if (!f->separate) {
        int inner = fault_inner(f, f->inner->ops->record_end(f->inner, is_kept ? &recording->inner : NULL));
        status = status < 0 ? status : inner;
    }
    f->recording = NULL;
    if (!is_kept || status < 0) {
        free_recording(recording);
        return status;
    }
    f->fault->recordings++;
    *out = (pst_device_recording *)(void *)recording;
    return 0;
}

static int fault_replay(pst_device *device, pst_device_recording *handle)
{
    fault_device *f = fault_of(device);
    const fault_recording *recording = recording_of(handle);
    bool skip;
    PST_TRY(fault_outside(f, "replay"));
    PST_TRY(fault_strike(f, PST_DEVICE_RECORDING, &skip));
    if (skip)
        return 0;
    if (f->fault->stale_replays > 0) {
        f->fault->stale_replays--;
        return 1;
    }
    int status = 0;
    if (!f->separate)
        status = fault_inner(f, f->inner->ops->replay(f->inner, recording->inner));
    for (const fault_work *work = recording->first; work != NULL && status >= 0; work = work->next) {
        status = fault_submit(f, &f->compute, work);
        if (status == -ENOMEM && work != recording->first) /* which would say that nothing was done */
            status = -EIO;
    }
    f->fault->replays += status == 0;
    return status;
}

static void fault_recording_destroy(pst_device *device, pst_device_recording *handle)
{
    fault_device *f = fault_of(device);
    fault_recording *recording = recording_of(handle);
    if (recording == NULL)
        return;
    (void)fault_outside(f, "recording_destroy");
    if (!f->separate)
        f->inner->ops->recording_destroy(f->inner, recording->inner);
    free_recording(recording);
    f->fault->recordings--;
}

void fault_set_recordings(pst_device_ops *ops)
{
    ops->record_begin = fault_record_begin;
    ops->record_end = fault_record_end;
    ops->replay = fault_replay;
    ops->recording_destroy = fault_recording_destroy;
}
