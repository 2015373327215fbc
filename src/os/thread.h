/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A pool of compute threads for short parallel loops. The caller's thread works too, so a pool of n runs n -
 * 1 threads. The threads spin briefly between loops and then sleep, so that a pool that waits for a drive
 * costs nothing.
 */
#ifndef PST_OS_THREAD_H
#define PST_OS_THREAD_H

#include <stdint.h>

#include "penstock/types.h"

typedef struct pst_pool pst_pool;

/* `threads` of 0: as many as the processors this process may run on (affinity and cgroup CPU quota
 * respected). */
int pst_pool_create(uint32_t threads, pst_pool **out, pst_error *err);
void pst_pool_destroy(pst_pool *pool);
uint32_t pst_pool_threads(const pst_pool *pool);

/* Calls body(context, task, worker) once for every task in 0..tasks-1, worker < pst_pool_threads, and returns
 * when all are done. Tasks are taken in rising order from a shared counter. One loop at a time: the owner
 * thread only. */
typedef void pst_pool_body(void *context, uint32_t task, uint32_t worker);
void pst_pool_run(pst_pool *pool, uint32_t tasks, pst_pool_body *body, void *context);

/* Processors that this process may run on, at least 1 (affinity, cgroup v1 and v2 CPU quota rounded up). */
uint32_t pst_os_processors(void);

/* The processor's model as the kernel has it, "unknown" where it has none. Cut to fit. */
void pst_os_processor_name(char *out, size_t out_bytes);

/* For a calling thread that wakes often and works briefly: asks for short slices of the processor, in return for which Linux
 * (6.12 and later) lets it run at once when it wakes, and not after the slice of a thread that computes. A wish. */
void pst_os_thread_prompt(void);

#endif
