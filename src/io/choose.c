/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The choice of "auto".
 *
 * io_uring comes first: it is asynchronous on every file system, because the kernel's own threads take over what would
 * wait. libaio comes second where direct I/O is real. Where it is not (the file system refuses it, or takes the flag
 * and copies through its cache all the same), io_submit carries the transfers out one after the other, so several
 * threads are faster.
 *
 * Whether direct I/O is real is asked of a file: the one at the path, or one without a name (O_TMPFILE) that the
 * folder holds only while it is open.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "base/heap.h"
#include "io/engine.h"
#include "os/sys.h"

static const pst_io_engine *const direct_order[] = {&pst_io_engine_uring, &pst_io_engine_libaio,
                                                    &pst_io_engine_threads};
static const pst_io_engine *const cached_order[] = {&pst_io_engine_uring, &pst_io_engine_threads};

static int open_retry(const char *path, int flags)
{
    int fd;
    do {
        fd = pst_sys->open(path, flags, 0600);
    } while (fd == -EINTR);
    return fd;
}

static bool refusal(int status)
{
    return status == -EINVAL || status == -EOPNOTSUPP;
}

/* A file that takes O_DIRECT: does it mean it? Kernels since 6.1 say so for many file systems. Those that do not say
 * are believed when a block device is behind them; one with none of its own (major 0) keeps its data in memory (tmpfs)
 * or elsewhere. */
static bool means_it(int fd)
{
    struct statx info;
    unsigned mask = STATX_BASIC_STATS;
#ifdef STATX_DIOALIGN
    mask |= STATX_DIOALIGN;
#endif
    if (pst_sys->statx(fd, "", AT_EMPTY_PATH, mask, &info) < 0)
        return true;
#ifdef STATX_DIOALIGN
    if ((info.stx_mask & STATX_DIOALIGN) != 0)
        return info.stx_dio_offset_align != 0;
#endif
    return info.stx_dev_major != 0 || S_ISBLK(info.stx_mode);
}

static bool file_takes_direct(const char *path)
{
    int fd = open_retry(path, O_RDONLY | O_DIRECT | O_NONBLOCK);
    if (fd < 0)
        return !refusal(fd);
    bool real = means_it(fd);
    pst_sys->close(fd);
    return real;
}

static bool folder_takes_direct(const char *path)
{
    int fd = open_retry(path, O_TMPFILE | O_RDWR | O_DIRECT);
    if (fd >= 0) {
        bool real = means_it(fd);
        pst_sys->close(fd);
        return real;
    }
    if (!refusal(fd))
        return true; /* nothing may be created here: unknown */
    /* EOPNOTSUPP may be about the missing name. */
    fd = open_retry(path, O_TMPFILE | O_RDWR);
    if (fd < 0)
        return true;
    pst_sys->close(fd);
    return false;
}

/* The folder in which `path` would lie: allocated; NULL when out of memory. */
static char *folder_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    if (slash == NULL)
        return pst_heap_strdup(".");
    return slash == path ? pst_heap_strdup("/") : pst_heap_strndup(path, (size_t)(slash - path));
}

/* Unknown counts as yes: nothing is lost then but a little speed. */
static bool takes_direct(const char *path)
{
    struct statx info;
    int status = pst_sys->statx(AT_FDCWD, path, 0, STATX_BASIC_STATS, &info);
    if (status >= 0 && S_ISDIR(info.stx_mode))
        return folder_takes_direct(path);
    if (status >= 0) /* opening a pipe or a terminal may do something */
        return S_ISREG(info.stx_mode) || S_ISBLK(info.stx_mode) ? file_takes_direct(path) : true;
    if (status != -ENOENT)
        return true;
    char *folder = folder_of(path);
    bool takes = folder == NULL || folder_takes_direct(folder);
    pst_heap_free(folder);
    return takes;
}

const pst_io_engine *pst_io_engine_choice(unsigned n, const char *path)
{
    /* The first choice is the same everywhere, and mostly the last that is asked for. */
    if (n == 0)
        return direct_order[0];
    bool direct = path == NULL || path[0] == '\0' || takes_direct(path);
    unsigned count =
        direct ? sizeof direct_order / sizeof direct_order[0] : sizeof cached_order / sizeof cached_order[0];
    if (n >= count)
        return NULL;
    return direct ? direct_order[n] : cached_order[n];
}
