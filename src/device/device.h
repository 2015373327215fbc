/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Devices as the library uses them: the interface is penstock/device_plugin.h; here is how one is made. The host's processor
 * is one (host*.c over cpu/); accelerators come from plugins (plugin.h).
 */
#ifndef PST_DEVICE_DEVICE_H
#define PST_DEVICE_DEVICE_H

#include "cpu/kv.h"
#include "cpu/weight.h"
#include "penstock/device_plugin.h"

typedef struct pst_pool pst_pool;

/* A device by its name, as in penstock/device.h: NULL or "host" is the host's processor; "auto" falls back to it, and the log
 * says why. pool and kernels: for the host, as below. Fails in one line that names the device and why there is none.
 * The caller owns *out. */
int pst_device_open(const char *name, pst_pool *pool, const char *kernels, pst_device **out, pst_error *err);

/* The host's processor. `kernels` names a kernel set ("avx512bf16", "avx512", "avx2", "portable") or is NULL for the
 * best that runs here. The pool stays the caller's and must outlive the device. The caller owns *out. */
int pst_device_host_create(pst_pool *pool, const char *kernels, pst_device **out, pst_error *err);
/* Memory that attention over such a cache, the choice of experts, or products of heads with such matrices take beside their
 * operands, from the first call on. They share it: together they take the largest. */
uint64_t pst_device_host_attention_bytes(const pst_kv_layout *layout, uint32_t threads);
uint64_t pst_device_host_route_bytes(uint32_t experts, uint32_t threads);
uint64_t pst_device_host_heads_bytes(uint32_t head_rows, uint32_t columns, uint32_t threads);
/* Stacks of so many threads that compute, once they have run every kernel. */
uint64_t pst_device_host_stack_bytes(uint32_t threads);
/* The kernel set in use. Static storage. */
const char *pst_device_host_kernels(const pst_device *device);
void pst_device_destroy(pst_device *device); /* NULL is fine */

/* pst_fail of a status of the device's: "device cuda: WHAT failed: why", in the device's own words where it has any. */
int pst_device_fail(pst_error *err, pst_device *device, int status, const char *what);

#endif
