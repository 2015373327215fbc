/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Large memory for tensors, and what this process may use and does use.
 */
#ifndef PST_OS_MEMORY_H
#define PST_OS_MEMORY_H

#include <stdbool.h>

#include "penstock/types.h"

/* Anonymous memory, page-aligned (2 MiB where `bytes` is at least that), zero, transparent huge pages asked
 * for; no page is resident until it is touched. Freed with the same size. */
int pst_memory_map(uint64_t bytes, const char *what, void **out, pst_error *err);
void pst_memory_unmap(void *memory, uint64_t bytes);
/* Advises that memory of somebody else's, not touched yet, come in huge pages as far as it holds whole ones: one fault and one
 * address for a transfer instead of 512. Advice: nothing changes but the speed. */
void pst_memory_advise_huge(void *memory, uint64_t bytes);
/* Brings mapped memory in and keeps it from being paged out until it is unmapped. Names the limit where that is what fails. */
int pst_memory_lock(void *memory, uint64_t bytes, const char *what, pst_error *err);

/* Makes whole pages of mapped memory inaccessible, or accessible again. */
int pst_memory_protect(void *memory, uint64_t bytes, bool accessible, pst_error *err);

typedef struct pst_memory_info {
    uint64_t total_bytes;     /* of the machine */
    uint64_t available_bytes; /* MemAvailable, lowered to what the cgroup (v1 or v2, each level up to the
                                 root) leaves */
    uint64_t limit_bytes;     /* the tightest cgroup limit, or total_bytes */
    bool limited;             /* a cgroup limit is tighter than the machine */
} pst_memory_info;
int pst_memory_get_info(pst_memory_info *out, pst_error *err);

/* Resident bytes of this process now, and the most that they ever were (VmRSS, VmHWM). 0 where /proc is
 * missing. */
uint64_t pst_memory_resident_bytes(void);
uint64_t pst_memory_peak_bytes(void);
/* Gives freed heap memory back to the system. */
void pst_memory_trim(void);

#endif
