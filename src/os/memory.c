/* SPDX-License-Identifier: Apache-2.0 */
/* Large anonymous memory, and the memory figures of the machine, the control groups and this process. */
#include "os/memory.h"

#include <errno.h>
#include <malloc.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/error.h"
#include "os/cgroup.h"
#include "os/memory_internal.h"
#include "os/sys.h"

enum { HUGE_BYTES = 2 << 20, TEXT_BYTES = 8192 };

static uint64_t round_to_pages(uint64_t bytes)
{
    uint64_t page = pst_sys->page_bytes();
    return (bytes + page - 1) / page * page;
}

int pst_memory_map(uint64_t bytes, const char *what, void **out, pst_error *err)
{
    if (bytes > (uint64_t)INT64_MAX / 2)
        return pst_fail_memory(err, what, bytes);
    uint64_t size = round_to_pages(bytes ? bytes : 1);
    /* The kernel aligns to pages only: map one huge page more and give the ends back. */
    uint64_t slack = size >= HUGE_BYTES ? HUGE_BYTES : 0;
    void *mapped;
    int status = pst_sys->mmap(size + slack, &mapped);
    if (status < 0)
        return pst_fail(err, status, NULL, "cannot map %llu bytes for %s: %s", (unsigned long long)bytes, what,
                        pst_strerror(status));
    char *start = mapped;
    if (slack > 0) {
        uint64_t skip = (HUGE_BYTES - (uintptr_t)mapped % HUGE_BYTES) % HUGE_BYTES;
        start += skip;
        if (skip > 0)
            pst_sys->munmap(mapped, skip);
        if (slack > skip)
            pst_sys->munmap(start + size, slack - skip);
        madvise(start, size, MADV_HUGEPAGE); /* advice: without huge pages it only works a little slower */
    }
    *out = start;
    return 0;
}

void pst_memory_advise_huge(void *memory, uint64_t bytes)
{
    uintptr_t begin = ((uintptr_t)memory + HUGE_BYTES - 1) / HUGE_BYTES * HUGE_BYTES;
    uintptr_t end = ((uintptr_t)memory + bytes) / HUGE_BYTES * HUGE_BYTES;
    if (begin < end)
        madvise((void *)begin, end - begin, MADV_HUGEPAGE);
}

void pst_memory_unmap(void *memory, uint64_t bytes)
{
    if (memory != NULL)
        pst_sys->munmap(memory, round_to_pages(bytes ? bytes : 1));
}

int pst_memory_protect(void *memory, uint64_t bytes, bool accessible, pst_error *err)
{
    int status = pst_sys->mprotect(memory, round_to_pages(bytes), accessible ? PROT_READ | PROT_WRITE : PROT_NONE);
    return status < 0 ? pst_fail(err, status, NULL, "cannot protect %llu bytes: %s", (unsigned long long)bytes,
                                 pst_strerror(status))
                      : 0;
}

int pst_memory_lock(void *memory, uint64_t bytes, const char *what, pst_error *err)
{
    int status = pst_sys->mlock(memory, round_to_pages(bytes));
    if (status >= 0)
        return 0;
    struct rlimit limit;
    if ((status == -ENOMEM || status == -EPERM || status == -EAGAIN) && getrlimit(RLIMIT_MEMLOCK, &limit) == 0 &&
        limit.rlim_cur != RLIM_INFINITY)
        return pst_fail(err, status, NULL, "cannot lock %.1f MiB for %s: this user may lock %.1f MiB (ulimit -l)",
                        (double)bytes / 0x1p20, what, (double)limit.rlim_cur / 0x1p20);
    return pst_fail(err, status, NULL, "cannot lock %.1f MiB for %s: %s", (double)bytes / 0x1p20, what,
                    pst_strerror(status));
}

int pst_memory_get_info_at(const char *root, pst_memory_info *out, pst_error *err)
{
    char path[4096], text[TEXT_BYTES];
    snprintf(path, sizeof path, "%s/proc/meminfo", root);
    int status = pst_os_read_text(path, text, sizeof text);
    if (status < 0)
        return pst_fail(err, status, path, "cannot read: %s", pst_strerror(status));
    int64_t total = pst_os_text_value(text, "MemTotal:"), available = pst_os_text_value(text, "MemAvailable:");
    if (total <= 0 || available < 0)
        return pst_fail(err, PST_E_FORMAT, path, "has no MemTotal and MemAvailable");
    pst_cgroup_limits limits;
    pst_cgroup_read(root, &limits);
    pst_memory_info info = {.total_bytes = (uint64_t)total * 1024, .available_bytes = (uint64_t)available * 1024};
    info.limited = limits.memory_limit_bytes < info.total_bytes;
    info.limit_bytes = info.limited ? limits.memory_limit_bytes : info.total_bytes;
    if (limits.memory_left_bytes < info.available_bytes)
        info.available_bytes = limits.memory_left_bytes;
    *out = info;
    return 0;
}

int pst_memory_get_info(pst_memory_info *out, pst_error *err)
{
    return pst_memory_get_info_at("", out, err);
}

/* A line of /proc/self/status in bytes. */
static uint64_t own_status(const char *key)
{
    char text[TEXT_BYTES];
    if (pst_os_read_text("/proc/self/status", text, sizeof text) <= 0)
        return 0;
    int64_t kib = pst_os_text_value(text, key);
    return kib > 0 ? (uint64_t)kib * 1024 : 0;
}

uint64_t pst_memory_resident_bytes(void)
{
    return own_status("VmRSS:");
}

uint64_t pst_memory_peak_bytes(void)
{
    return own_status("VmHWM:");
}

void pst_memory_trim(void)
{
    malloc_trim(0);
}
