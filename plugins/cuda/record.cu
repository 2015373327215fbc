/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Recordings: the vendor captures what is launched on the compute stream, and makes a graph of it that one call launches. A
 * launch's arguments are captured as they are, so that nothing of the host's is looked at again.
 *
 * Scratch memory is the one thing beside operands that a launch knows the address of: it does not grow while the device
 * records, and once it was moved, recordings that know its old place are stale.
 */
#include "cuda_device.h"

#include <errno.h>
#include <new>

struct pst_device_recording {
    pst_vendor_graph graph;
    bool uses_scratch;
    uint64_t scratch_moves; /* when it was made */
};

static int record_begin(pst_device *base)
{
    cuda_device *device = pst_cuda_of(base);
    if (int status = pst_cuda_enter_outside(device))
        return status;
    if (int status = pst_cuda_check(device, "beginning a recording", pst_vendor_capture_begin(device->stream)))
        return status;
    device->recording = true;
    device->recorded_scratch = false;
    return 0;
}

void pst_cuda_record_stop(cuda_device *device)
{
    if (!device->recording)
        return;
    device->recording = false;
    (void)pst_vendor_capture_end(device->stream, NULL); /* what was noted may be spoilt: it goes either way */
    (void)pst_vendor_last_error();
}

static int record_end(pst_device *base, pst_device_recording **out)
{
    cuda_device *device = pst_cuda_of(base);
    if (!device->recording)
        return pst_cuda_fail(device, PST_E_USAGE, "%s:%d: no recording is under way", PST_VENDOR_NAME, device->number);
    (void)pst_cuda_enter(device); /* it ends in any case */
    pst_device_recording *recording = out != NULL ? new (std::nothrow) pst_device_recording() : NULL;
    if (recording == NULL) {
        pst_cuda_record_stop(device);
        return out == NULL ? 0 : pst_cuda_fail(device, -ENOMEM, "out of memory for a recording");
    }
    device->recording = false;
    recording->uses_scratch = device->recorded_scratch;
    recording->scratch_moves = device->scratch_moves;
    if (int status =
            pst_cuda_check(device, "ending a recording", pst_vendor_capture_end(device->stream, &recording->graph))) {
        delete recording;
        return status;
    }
    *out = recording;
    return 0;
}

static int replay(pst_device *base, pst_device_recording *recording)
{
    cuda_device *device = pst_cuda_of(base);
    if (int status = pst_cuda_enter_outside(device))
        return status;
    if (recording->uses_scratch && recording->scratch_moves != device->scratch_moves)
        return 1;
    return pst_cuda_check(device, "replaying a recording", pst_vendor_graph_launch(recording->graph, device->stream));
}

static void recording_destroy(pst_device *base, pst_device_recording *recording)
{
    cuda_device *device = pst_cuda_of(base);
    if (recording == NULL)
        return;
    (void)pst_cuda_enter(device); /* a device that has failed still takes back what it can */
    (void)pst_cuda_check(device, "waiting for a recording", pst_vendor_stream_synchronize(device->stream));
    (void)pst_cuda_check(device, "destroying a recording", pst_vendor_graph_destroy(recording->graph));
    delete recording;
}

void pst_cuda_record_entries(pst_device_ops *ops)
{
    ops->record_begin = record_begin;
    ops->record_end = record_end;
    ops->replay = replay;
    ops->recording_destroy = recording_destroy;
}
