/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What direct I/O on a file demands: from statx where kernel and file system tell it (6.1), else from the block device's
 * sector, else found out by reading, else 4096, which every drive takes.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/sysmacros.h>

#include "base/log.h"
#include "io/internal.h"
#include "os/sys.h"

enum { SAFE_ALIGN = 4096, SECTOR = 512, MAX_ALIGN = PST_IO_MIN_BOUNCE_BYTES / 2, MAX_WARNED = 64 };

static bool power_of_two(uint32_t value)
{
    return value != 0 && (value & (value - 1)) == 0;
}

/* A direct read of one unit; a device with larger sectors refuses the length. */
static int try_read(int fd, uint32_t unit, uint64_t offset)
{
    static const uint32_t room = 2 * SAFE_ALIGN;
    _Alignas(4096) char buffer[2 * SAFE_ALIGN];
    uint32_t shift = unit < SAFE_ALIGN ? unit : 0; /* an address that is aligned to the unit and no more */
    if (shift + unit > room)
        return -EINVAL;
    ssize_t got;
    do {
        got = pst_sys->pread(fd, buffer + shift, unit, offset);
    } while (got == -EINTR);
    return got < 0 ? (int)got : 0;
}

/* What statx said; false where it does not know. */
static bool told(const struct statx *info, uint32_t *offset_align, uint32_t *memory_align)
{
#ifdef STATX_DIOALIGN
    if ((info->stx_mask & STATX_DIOALIGN) == 0)
        return false;
    *offset_align = info->stx_dio_offset_align;
    *memory_align = info->stx_dio_mem_align;
    return true;
#else
    (void)info, (void)offset_align, (void)memory_align;
    return false;
#endif
}

void pst_io_find_alignment(const pst_io_file *file, const struct statx *info, uint32_t *offset_align,
                           uint32_t *memory_align)
{
    uint32_t unit, memory;
    *offset_align = *memory_align = SAFE_ALIGN;
    if (told(info, &unit, &memory)) {
        if (!power_of_two(unit) || !power_of_two(memory) || unit > MAX_ALIGN || memory > MAX_ALIGN)
            unit = memory = 0; /* zero is statx's word for "no direct I/O on this file" */
        *offset_align = unit > memory ? unit : memory;
        *memory_align = memory;
        return;
    }
    if (file->block_device) {
        bool sensible = power_of_two(file->sector_bytes) && file->sector_bytes <= MAX_ALIGN;
        *offset_align = *memory_align = sensible ? file->sector_bytes : 0;
        return;
    }
    if (file->access == O_WRONLY || file->bytes == 0)
        return;
    uint64_t offset = file->bytes >= 2 * SECTOR ? SECTOR : 0;
    int status = try_read(file->direct_fd, SECTOR, offset);
    if (status >= 0) {
        *offset_align = *memory_align = SECTOR;
    } else if (status == -EINVAL && try_read(file->direct_fd, SAFE_ALIGN, 0) == -EINVAL) {
        *offset_align = *memory_align = 0;
    }
}

void pst_io_refuse_direct(pst_io_file *file, const char *why)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static uint64_t warned[MAX_WARNED];
    static unsigned warned_count;
    atomic_store(&file->direct, false);
    bool known = false;
    pthread_mutex_lock(&lock);
    for (unsigned i = 0; i < warned_count; i++)
        known = known || warned[i] == file->device;
    if (!known && warned_count < MAX_WARNED)
        warned[warned_count++] = file->device;
    pthread_mutex_unlock(&lock);
    if (!known)
        pst_log(PST_LOG_WARNING, "%s: %s; its file system is used through the page cache", file->path, why);
}
