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
    /* Attention's scratch memory: `threads` parts of scratch_floats each; grows when a job wants more, never
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

int host_matmul(pst_device *device, const pst_matmul *job);
int host_matmul_transposed(host_device *host, const pst_matmul *job);
int host_take_rows(pst_device *device, const pst_matrix *x, const uint32_t *rows, const pst_matrix *y);
int host_add_rows(pst_device *device, const pst_matrix *x, const uint32_t *rows, const float *weights,
                  const pst_matrix *y);
int host_attention(pst_device *device, const pst_attention *job);

#endif
