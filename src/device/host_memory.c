/* SPDX-License-Identifier: Apache-2.0 */
/* The host's memory as a device's, and streams that need no waiting, since everything is done when its call returns. */
#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "device/host.h"
#include "os/memory.h"

/* What stands for streams and events: their addresses only. */
static char a_stream, an_event;

int host_allocate(pst_device *device, pst_device_memory kind, uint64_t bytes, void **out)
{
    (void)device;
    (void)kind;
    return pst_memory_map(bytes, "a buffer", out, NULL);
}

void host_release(pst_device *device, pst_device_memory kind, void *memory, uint64_t bytes)
{
    (void)device;
    (void)kind;
    pst_memory_unmap(memory, bytes);
}

int host_register(pst_device *device, void *memory, uint64_t bytes)
{
    (void)device;
    (void)memory;
    (void)bytes;
    return 0;
}

void host_unregister(pst_device *device, void *memory)
{
    (void)device;
    (void)memory;
}

int host_memory_info(pst_device *device, uint64_t *free_bytes, uint64_t *total_bytes)
{
    (void)device;
    pst_memory_info info;
    PST_TRY(pst_memory_get_info(&info, NULL));
    *free_bytes = info.available_bytes;
    *total_bytes = info.limit_bytes;
    return 0;
}

int host_stream_create(pst_device *device, pst_device_stream **out)
{
    (void)device;
    *out = (pst_device_stream *)(void *)&a_stream;
    return 0;
}

void host_stream_destroy(pst_device *device, pst_device_stream *stream)
{
    (void)device;
    (void)stream;
}

int host_event_create(pst_device *device, pst_device_event **out)
{
    (void)device;
    *out = (pst_device_event *)(void *)&an_event;
    return 0;
}

void host_event_destroy(pst_device *device, pst_device_event *event)
{
    (void)device;
    (void)event;
}

int host_event_record(pst_device *device, pst_device_event *event, pst_device_stream *stream)
{
    (void)device;
    (void)event;
    (void)stream;
    return 0;
}

int host_stream_wait(pst_device *device, pst_device_stream *stream, pst_device_event *event)
{
    (void)device;
    (void)stream;
    (void)event;
    return 0;
}

int host_event_wait(pst_device *device, pst_device_event *event)
{
    (void)device;
    (void)event;
    return 0;
}

int host_synchronize(pst_device *device, pst_device_stream *stream)
{
    (void)device;
    (void)stream;
    return 0;
}

int host_copy(pst_device *device, pst_device_stream *stream, void *to, const void *from, uint64_t bytes)
{
    (void)device;
    (void)stream;
    if (bytes > 0) /* of nothing, pointers may be anything */
        memcpy(to, from, bytes);
    return 0;
}

int host_fill(pst_device *device, pst_device_stream *stream, void *to, int byte, uint64_t bytes)
{
    (void)device;
    (void)stream;
    if (bytes > 0)
        memset(to, byte, bytes);
    return 0;
}

/* Calls of the host are its work: there is nothing to be won. */
int host_record_begin(pst_device *device)
{
    (void)device;
    return PST_E_UNSUPPORTED;
}

int host_record_end(pst_device *device, pst_device_recording **out)
{
    (void)device;
    (void)out;
    return PST_E_UNSUPPORTED;
}

int host_replay(pst_device *device, pst_device_recording *recording)
{
    (void)device;
    (void)recording;
    return PST_E_UNSUPPORTED;
}

void host_recording_destroy(pst_device *device, pst_device_recording *recording)
{
    (void)device;
    (void)recording;
}

static uint16_t to_bf16(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return is_nan ? (uint16_t)(bits >> 16 | 0x40) : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

void host_round_row(const float *x, uint16_t *y, size_t count)
{
    for (size_t i = 0; i < count; i++)
        y[i] = to_bf16(x[i]);
}

static void copy_block(const pst_block_copy *job, size_t row, size_t block)
{
    const float *x = job->x + row * job->x_row_stride + block * job->x_block_stride;
    const size_t to = row * job->y_row_stride + block * job->y_block_stride;
    if (job->y_type == PST_F32)
        memcpy((float *)job->y + to, x, job->columns * sizeof *x);
    else
        host_round_row(x, (uint16_t *)job->y + to, job->columns);
}

int host_copy_blocks(pst_device *device, const pst_block_copy *job)
{
    (void)device;
    for (size_t row = 0; row < job->rows; row++)
        for (size_t block = 0; block < job->blocks; block++)
            copy_block(job, row, block);
    return 0;
}
