/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A pool of aligned, locked memory for transfers.
 *
 * The pool takes memory from the system in arenas: huge pages where the system has some to give, else transparent
 * huge pages; near the drive's NUMA node where one is named; locked, so that it is never paged out; and registered
 * with the I/O handle, so that the engine maps nothing per operation. It never holds more than its budget. Where
 * RLIMIT_MEMLOCK forbids locking, the memory is given unlocked, a note is logged once, and the figures say so.
 *
 * Threads: any thread may take and give buffers.
 */
#ifndef PENSTOCK_IO_POOL_H
#define PENSTOCK_IO_POOL_H

#include "penstock/io.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct pst_io_pool pst_io_pool;

/* Zero means the default of every field, except the budget. */
typedef struct pst_io_pool_options {
    size_t struct_size;       /* sizeof(pst_io_pool_options) of the caller */
    uint64_t budget_bytes;    /* the most that the pool takes from the system; required */
    uint64_t arena_bytes;     /* taken from the system at once; default 64 MiB; rounded up to 2 MiB */
    pst_io_switch lock;       /* default on: try; off: leave the memory pageable */
    pst_io_switch huge_pages; /* default on: try reserved huge pages first, then transparent ones */
    const char *near_path;    /* a file or folder on the drive whose NUMA node the memory shall be near; may be NULL */
} pst_io_pool_options;

/* io may be NULL: then nothing is registered. Otherwise it must outlive the pool. No memory is taken yet. */
PST_API int pst_io_pool_create(pst_io *io, const pst_io_pool_options *options, pst_io_pool **out, pst_error *err);
/* Every buffer of the pool goes with it. */
PST_API void pst_io_pool_destroy(pst_io_pool *pool);
/* `bytes` bytes at a multiple of `alignment` (a power of two up to 2 MiB; 0: 4096), contents undefined.
 * PST_E_BUDGET: the budget does not allow it (the message says what is in use); -ENOMEM: the system refuses. */
PST_API int pst_io_pool_take(pst_io_pool *pool, uint64_t bytes, uint64_t alignment, void **out, pst_error *err);
/* Exactly an address that take gave; PST_E_USAGE otherwise. An arena that is wholly free goes back to the system when
 * another one is free too. */
PST_API int pst_io_pool_give(pst_io_pool *pool, void *buffer, pst_error *err);
/* Whether all of [memory, memory + bytes) lies inside one buffer that is out. */
PST_API bool pst_io_pool_holds(const pst_io_pool *pool, const void *memory, uint64_t bytes);

typedef struct pst_io_pool_stats {
    uint64_t budget_bytes, held_bytes; /* held: taken from the system */
    uint64_t out_bytes, out_count;     /* out: in callers' hands */
    uint64_t peak_out_bytes;
    uint64_t locked_bytes, huge_bytes, registered_bytes; /* of held_bytes */
    int32_t numa_node;                                   /* -1: none asked for, or the machine has one only */
    int lock_status;                                     /* 0, or why memory is not locked (-ENOMEM, -EPERM) */
} pst_io_pool_stats;
PST_API void pst_io_pool_get_stats(const pst_io_pool *pool, pst_io_pool_stats *out);

#ifdef __cplusplus
}
#endif
#endif
