/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the host device share: its state and how a loop is shared among its threads. Private to
 * device/. */
#ifndef PST_DEVICE_HOST_H
#define PST_DEVICE_HOST_H

#include "cpu/cpu.h"
#include "device/device.h"
#include "os/thread.h"

typedef struct host_device {
    pst_device base;
    pst_pool *pool; /* the caller's */
    uint32_t threads;
    const pst_cpu_kernels *kernels;
    /* Scratch memory of the operator under way: `threads` parts of scratch_floats each; grows when a job wants more, never
     * shrinks. */
    float *scratch; /* owned, from pst_heap */
    size_t scratch_floats;
} host_device;

static inline host_device *host_of(pst_device *device)
{
    return (host_device *)(void *)device; /* `base` comes first */
}

static inline size_t host_ceil(size_t a, size_t b)
{
    return (a + b - 1) / b;
}

/* Runs body for tasks 0..tasks-1 on the pool, or right here when sharing cannot pay. tasks fits 32 bits. */
void host_run(host_device *host, size_t tasks, pst_pool_body *body, void *context);

/* A thread's scratch memory in whole cache lines, and that much for each thread. */
static inline size_t host_scratch_floats(size_t floats)
{
    return (floats + 15) & ~(size_t)15;
}
int host_reserve_scratch(host_device *host, size_t floats);

int host_matmul(pst_device *device, const pst_matmul *job);
int host_matmul_grouped(pst_device *device, const pst_grouped_matmul *job);
int host_matmul_transposed(host_device *host, const pst_matmul *job);
int host_matmul_heads(pst_device *device, const pst_heads_matmul *job);
/* Numbers of a row of a matrix that is not transposed: `columns` of them from `column` on. */
void host_convert_row(const host_device *host, const pst_weight *w, size_t row, size_t column, size_t columns, float *y);
int host_take_rows(pst_device *device, const pst_matrix *x, const uint32_t *rows, const pst_matrix *y);
int host_add_rows(pst_device *device, const pst_matrix *x, const uint32_t *rows, const float *weights,
                  const pst_matrix *y);
int host_route(pst_device *device, const pst_route_job *job);
int host_top(pst_device *device, const pst_matrix *x, uint32_t count, float *values, uint32_t *columns);
int host_attention(pst_device *device, const pst_attention *job);
/* Segment `number` as far as it counts; its rows are the operands'. */
pst_segment host_segment(const pst_segments *segments, size_t number);

/* Memory, streams and events: host_memory.c. The host's operators are done when they return, so there is nothing to wait for. */
int host_allocate(pst_device *device, pst_device_memory kind, uint64_t bytes, void **out);
void host_release(pst_device *device, pst_device_memory kind, void *memory, uint64_t bytes);
int host_register(pst_device *device, void *memory, uint64_t bytes);
void host_unregister(pst_device *device, void *memory);
int host_memory_info(pst_device *device, uint64_t *free_bytes, uint64_t *total_bytes);
int host_stream_create(pst_device *device, pst_device_stream **out);
void host_stream_destroy(pst_device *device, pst_device_stream *stream);
int host_event_create(pst_device *device, pst_device_event **out);
void host_event_destroy(pst_device *device, pst_device_event *event);
int host_event_record(pst_device *device, pst_device_event *event, pst_device_stream *stream);
int host_stream_wait(pst_device *device, pst_device_stream *stream, pst_device_event *event);
int host_event_wait(pst_device *device, pst_device_event *event);
int host_synchronize(pst_device *device, pst_device_stream *stream);
int host_copy(pst_device *device, pst_device_stream *stream, void *to, const void *from, uint64_t bytes);
int host_fill(pst_device *device, pst_device_stream *stream, void *to, int byte, uint64_t bytes);
int host_copy_blocks(pst_device *device, const pst_block_copy *job);
int host_record_begin(pst_device *device);
int host_record_end(pst_device *device, pst_device_recording **out);
int host_replay(pst_device *device, pst_device_recording *recording);
void host_recording_destroy(pst_device *device, pst_device_recording *recording);
/* f32 to bf16, to nearest even. */
void host_round_row(const float *x, uint16_t *y, size_t count);

#endif
