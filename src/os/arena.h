/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Large memory for transfers: in huge pages, near a drive, locked, as far as the system grants it. And where a drive is.
 */
#ifndef PST_OS_ARENA_H
#define PST_OS_ARENA_H

#include <stdbool.h>

#include "penstock/types.h"

typedef struct pst_arena_wish {
    bool huge;    /* reserved huge pages, or else transparent ones */
    bool lock;    /* never paged out; touches every page */
    int32_t node; /* NUMA node to prefer, or -1 */
} pst_arena_wish;

typedef struct pst_arena {
    char *memory;
    uint64_t bytes; /* as asked for, rounded up to 2 MiB */
    bool huge;      /* in reserved huge pages */
    bool locked;
    int lock_status; /* 0, or why it is not locked */
} pst_arena;

/* Zero, aligned to 2 MiB. Only memory that cannot be had at all is an error; what else was not granted is told. */
int pst_arena_map(uint64_t bytes, const pst_arena_wish *wish, pst_arena *out, pst_error *err);
void pst_arena_unmap(pst_arena *arena);

/* The NUMA node of the drive that holds the path; -1 where the machine has only one node, or that cannot be told
 * (/sys/dev/block, of the whole disk for a partition). */
int32_t pst_numa_node_of(const char *path);
/* The same with /sys below `root`, for a device number. For tests. */
int32_t pst_numa_node_of_device(const char *root, unsigned major, unsigned minor);

#endif
