/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The misbehaving table. Counters are atomics, because the threads of the I/O engine call in parallel; which
 * of several parallel calls is the nth is then a matter of chance, and tests must hold for any of them.
 *
 * A failed transfer is not carried out by pread and pwrite. A ring transfer has already been carried out when
 * its result is spoilt: to its caller that looks like a drive that did the work and lost the answer, which is
 * legal. close fails after it has closed, as the kernel does.
 */
#include "os/sys_fault.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stddef.h>

static atomic_int armed_kind = -1, armed_error;
static atomic_llong armed_skip, armed_times, armed_bytes;
static atomic_llong counts[PST_FAULT_KINDS];
static atomic_bool direct_refused, alignment_hidden;

static const char *const names[PST_FAULT_KINDS] = {
    "open",        "close",       "read",        "write",         "fdatasync", "fsync",      "ftruncate",
    "fallocate",   "statx",       "statvfs",     "rename",        "unlink",    "mkdir",      "rmdir",
    "opendir",     "readdir",     "mmap",        "getrandom",     "eventfd",   "sleep",      "uring_init",
    "uring_enter", "uring_probe", "uring_files", "uring_buffers", "aio_setup", "aio_submit", "aio_getevents",
    "mlock",       "dup",         "readlink",    "flock",         "nice",
};

void pst_fault_reset(void)
{
    atomic_store(&armed_kind, -1);
    atomic_store(&direct_refused, false);
    atomic_store(&alignment_hidden, false);
    for (int i = 0; i < PST_FAULT_KINDS; i++)
        atomic_store(&counts[i], 0);
}

void pst_fault_fail(pst_fault_kind kind, int64_t skip, int64_t times, int error)
{
    atomic_store(&armed_skip, skip);
    atomic_store(&armed_times, times);
    atomic_store(&armed_error, error);
    atomic_store(&armed_kind, (int)kind);
}

void pst_fault_shorten(pst_fault_kind kind, int64_t skip, int64_t times, int64_t bytes)
{
    atomic_store(&armed_bytes, bytes);
    pst_fault_fail(kind, skip, times, 0);
}

void pst_fault_refuse_direct(bool refuse)
{
    atomic_store(&direct_refused, refuse);
}

void pst_fault_hide_alignment(bool hide)
{
    atomic_store(&alignment_hidden, hide);
}

int64_t pst_fault_count(pst_fault_kind kind)
{
    return atomic_load(&counts[kind]);
}

const char *pst_fault_name(pst_fault_kind kind)
{
    return names[kind];
}

/* Counts a call; true when the armed fault strikes it. */
static bool strikes(pst_fault_kind kind)
{
    atomic_fetch_add(&counts[kind], 1);
    if (atomic_load(&armed_kind) != (int)kind)
        return false;
    if (atomic_fetch_sub(&armed_skip, 1) > 0)
        return false;
    return atomic_fetch_sub(&armed_times, 1) > 0;
}

/* -error when the armed fault strikes, else 0. */
static int fault(pst_fault_kind kind)
{
    return strikes(kind) ? -atomic_load(&armed_error) : 0;
}

#define FAULT_FIRST(kind)                                                                                              \
    do {                                                                                                               \
        int f_ = fault(kind);                                                                                          \
        if (f_ < 0)                                                                                                    \
            return f_;                                                                                                 \
    } while (0)

/* 1: proceed with *bytes, possibly lowered; negative: fail. */
static int transfer_fault(pst_fault_kind kind, size_t *bytes)
{
    if (!strikes(kind))
        return 1;
    if (atomic_load(&armed_error) != 0)
        return -atomic_load(&armed_error);
    size_t limit = (size_t)atomic_load(&armed_bytes);
    *bytes = *bytes < limit ? *bytes : limit;
    return 1;
}

static int fault_open(const char *path, int flags, mode_t mode)
{
    FAULT_FIRST(PST_FAULT_OPEN);
    if ((flags & O_DIRECT) != 0 && atomic_load(&direct_refused))
        return -EINVAL;
    return pst_sys_real.open(path, flags, mode);
}

static int fault_close(int fd)
{
    int f = fault(PST_FAULT_CLOSE);
    int status = pst_sys_real.close(fd);
    return f < 0 ? f : status;
}

/* An O_DIRECT descriptor would refuse the odd length, so the transfer is done whole and reported short. */
static ssize_t fault_pread(int fd, void *buffer, size_t bytes, uint64_t offset)
{
    size_t limit = bytes;
    int f = transfer_fault(PST_FAULT_READ, &limit);
    if (f < 0)
        return f;
    ssize_t got = pst_sys_real.pread(fd, buffer, bytes, offset);
    return got > (ssize_t)limit ? (ssize_t)limit : got;
}

static ssize_t fault_pwrite(int fd, const void *buffer, size_t bytes, uint64_t offset)
{
    size_t limit = bytes;
    int f = transfer_fault(PST_FAULT_WRITE, &limit);
    if (f < 0)
        return f;
    ssize_t put = pst_sys_real.pwrite(fd, buffer, bytes, offset);
    return put > (ssize_t)limit ? (ssize_t)limit : put;
}

static int fault_fdatasync(int fd)
{
    FAULT_FIRST(PST_FAULT_FDATASYNC);
    return pst_sys_real.fdatasync(fd);
}

static int fault_fsync(int fd)
{
    FAULT_FIRST(PST_FAULT_FSYNC);
    return pst_sys_real.fsync(fd);
}

static int fault_ftruncate(int fd, uint64_t bytes)
{
    FAULT_FIRST(PST_FAULT_FTRUNCATE);
    return pst_sys_real.ftruncate(fd, bytes);
}

static int fault_open_flags(int fd)
{
    return pst_sys_real.open_flags(fd);
}

static int fault_dup(int fd)
{
    FAULT_FIRST(PST_FAULT_DUP);
    return pst_sys_real.dup(fd);
}

static int fault_readlink(const char *path, char *out, size_t out_bytes)
{
    FAULT_FIRST(PST_FAULT_READLINK);
    return pst_sys_real.readlink(path, out, out_bytes);
}

static int fault_block_device(int fd, uint64_t *bytes, uint32_t *sector_bytes)
{
    FAULT_FIRST(PST_FAULT_STATX);
    return pst_sys_real.block_device(fd, bytes, sector_bytes);
}

static int fault_fallocate(int fd, int mode, uint64_t offset, uint64_t bytes)
{
    FAULT_FIRST(PST_FAULT_FALLOCATE);
    return pst_sys_real.fallocate(fd, mode, offset, bytes);
}

static int fault_statx(int folder_fd, const char *path, int flags, unsigned mask, struct statx *out)
{
    FAULT_FIRST(PST_FAULT_STATX);
    int status = pst_sys_real.statx(folder_fd, path, flags, mask, out);
#ifdef STATX_DIOALIGN
    if (status >= 0 && atomic_load(&alignment_hidden))
        out->stx_mask &= ~(unsigned)STATX_DIOALIGN;
#endif
    return status;
}

static int fault_statvfs(const char *path, struct statvfs *out)
{
    FAULT_FIRST(PST_FAULT_STATVFS);
    return pst_sys_real.statvfs(path, out);
}

static int fault_rename(const char *from, const char *to)
{
    FAULT_FIRST(PST_FAULT_RENAME);
    return pst_sys_real.rename(from, to);
}

static int fault_rename_new(const char *from, const char *to)
{
    FAULT_FIRST(PST_FAULT_RENAME);
    return pst_sys_real.rename_new(from, to);
}

static int fault_rename_exchange(const char *a, const char *b)
{
    FAULT_FIRST(PST_FAULT_RENAME);
    return pst_sys_real.rename_exchange(a, b);
}

static int fault_unlink(const char *path)
{
    FAULT_FIRST(PST_FAULT_UNLINK);
    return pst_sys_real.unlink(path);
}

static int fault_mkdir(const char *path, mode_t mode)
{
    FAULT_FIRST(PST_FAULT_MKDIR);
    return pst_sys_real.mkdir(path, mode);
}

static int fault_rmdir(const char *path)
{
    FAULT_FIRST(PST_FAULT_RMDIR);
    return pst_sys_real.rmdir(path);
}

static int fault_opendir(const char *path, DIR **out)
{
    FAULT_FIRST(PST_FAULT_OPENDIR);
    return pst_sys_real.opendir(path, out);
}

static int fault_readdir(DIR *folder, struct dirent **out)
{
    FAULT_FIRST(PST_FAULT_READDIR);
    return pst_sys_real.readdir(folder, out);
}

static int fault_closedir(DIR *folder)
{
    return pst_sys_real.closedir(folder);
}

static int fault_mmap(size_t bytes, void **out)
{
    FAULT_FIRST(PST_FAULT_MMAP);
    return pst_sys_real.mmap(bytes, out);
}

static int fault_mmap_huge(size_t bytes, void **out)
{
    FAULT_FIRST(PST_FAULT_MMAP);
    return pst_sys_real.mmap_huge(bytes, out);
}

static int fault_populate(void *memory, size_t bytes)
{
    FAULT_FIRST(PST_FAULT_MLOCK);
    return pst_sys_real.populate(memory, bytes);
}

static int fault_mprotect(void *memory, size_t bytes, int protection)
{
    FAULT_FIRST(PST_FAULT_MMAP);
    return pst_sys_real.mprotect(memory, bytes, protection);
}

static int fault_mlock(void *memory, size_t bytes)
{
    FAULT_FIRST(PST_FAULT_MLOCK);
    return pst_sys_real.mlock(memory, bytes);
}

static int fault_munlock(void *memory, size_t bytes)
{
    return pst_sys_real.munlock(memory, bytes);
}

static int fault_prefer_node(void *memory, size_t bytes, int node)
{
    return pst_sys_real.prefer_node(memory, bytes, node);
}

static int fault_munmap(void *memory, size_t bytes)
{
    return pst_sys_real.munmap(memory, bytes);
}

static int fault_flock(int fd, int operation)
{
    FAULT_FIRST(PST_FAULT_FLOCK);
    return pst_sys_real.flock(fd, operation);
}

static ssize_t fault_read(int fd, void *buffer, size_t bytes)
{
    FAULT_FIRST(PST_FAULT_READ);
    return pst_sys_real.read(fd, buffer, bytes);
}

static int fault_getrandom(void *buffer, size_t bytes)
{
    FAULT_FIRST(PST_FAULT_GETRANDOM);
    return pst_sys_real.getrandom(buffer, bytes);
}

static int fault_eventfd(void)
{
    FAULT_FIRST(PST_FAULT_EVENTFD);
    return pst_sys_real.eventfd();
}

static int fault_eventfd_write(int fd)
{
    return pst_sys_real.eventfd_write(fd);
}

static void fault_sleep_ns(uint64_t ns)
{
    fault(PST_FAULT_SLEEP);
    pst_sys_real.sleep_ns(ns);
}

static int fault_nice_thread(int nice)
{
    FAULT_FIRST(PST_FAULT_NICE);
    return pst_sys_real.nice_thread(nice);
}

static uint32_t fault_page_bytes(void)
{
    return pst_sys_real.page_bytes();
}

static int fault_uring_init(unsigned entries, struct io_uring *ring, struct io_uring_params *parameters)
{
    FAULT_FIRST(PST_FAULT_URING_INIT);
    return pst_sys_real.uring_init(entries, ring, parameters);
}

static void fault_uring_exit(struct io_uring *ring)
{
    pst_sys_real.uring_exit(ring);
}

static int fault_uring_enter(struct io_uring *ring, unsigned wait_for, uint64_t limit_ns)
{
    FAULT_FIRST(PST_FAULT_URING_ENTER);
    return pst_sys_real.uring_enter(ring, wait_for, limit_ns);
}

static int fault_uring_files_sparse(struct io_uring *ring, unsigned count)
{
    FAULT_FIRST(PST_FAULT_URING_FILES);
    return pst_sys_real.uring_files_sparse(ring, count);
}

static int fault_uring_files_update(struct io_uring *ring, unsigned slot, int fd)
{
    if (fd >= 0) /* taking a file out again does not fail */
        FAULT_FIRST(PST_FAULT_URING_FILES);
    return pst_sys_real.uring_files_update(ring, slot, fd);
}

static int fault_uring_buffers_sparse(struct io_uring *ring, unsigned count)
{
    FAULT_FIRST(PST_FAULT_URING_BUFFERS);
    return pst_sys_real.uring_buffers_sparse(ring, count);
}

static int fault_uring_buffers_update(struct io_uring *ring, unsigned slot, const struct iovec *memory)
{
    if (memory->iov_base != NULL)
        FAULT_FIRST(PST_FAULT_URING_BUFFERS);
    return pst_sys_real.uring_buffers_update(ring, slot, memory);
}

static int fault_uring_has_read_write(struct io_uring *ring)
{
    FAULT_FIRST(PST_FAULT_URING_PROBE);
    return pst_sys_real.uring_has_read_write(ring);
}

static int fault_aio_setup(unsigned entries, io_context_t *out)
{
    FAULT_FIRST(PST_FAULT_AIO_SETUP);
    return pst_sys_real.aio_setup(entries, out);
}

static int fault_aio_destroy(io_context_t context)
{
    return pst_sys_real.aio_destroy(context);
}

static int fault_aio_submit(io_context_t context, long count, struct iocb **requests)
{
    FAULT_FIRST(PST_FAULT_AIO_SUBMIT);
    return pst_sys_real.aio_submit(context, count, requests);
}

static int fault_aio_getevents(io_context_t context, long min, long max, struct io_event *events,
                               struct timespec *timeout)
{
    FAULT_FIRST(PST_FAULT_AIO_GETEVENTS);
    return pst_sys_real.aio_getevents(context, min, max, events, timeout);
}

static int64_t fault_async_result(int fd, bool write, const void *address, size_t bytes, uint64_t offset,
                                  int64_t result)
{
    (void)fd, (void)address, (void)bytes, (void)offset;
    size_t limit = result > 0 ? (size_t)result : 0;
    int f = transfer_fault(write ? PST_FAULT_WRITE : PST_FAULT_READ, &limit);
    if (f < 0)
        return f;
    return result > (int64_t)limit ? (int64_t)limit : result;
}

const pst_sys_table pst_sys_fault = {
    .open = fault_open,
    .close = fault_close,
    .read = fault_read,
    .pread = fault_pread,
    .pwrite = fault_pwrite,
    .fdatasync = fault_fdatasync,
    .fsync = fault_fsync,
    .ftruncate = fault_ftruncate,
    .open_flags = fault_open_flags,
    .dup = fault_dup,
    .readlink = fault_readlink,
    .block_device = fault_block_device,
    .fallocate = fault_fallocate,
    .statx = fault_statx,
    .statvfs = fault_statvfs,
    .rename = fault_rename,
    .rename_new = fault_rename_new,
    .rename_exchange = fault_rename_exchange,
    .unlink = fault_unlink,
    .mkdir = fault_mkdir,
    .rmdir = fault_rmdir,
    .opendir = fault_opendir,
    .readdir = fault_readdir,
    .closedir = fault_closedir,
    .mmap = fault_mmap,
    .mmap_huge = fault_mmap_huge,
    .populate = fault_populate,
    .munmap = fault_munmap,
    .mprotect = fault_mprotect,
    .mlock = fault_mlock,
    .munlock = fault_munlock,
    .prefer_node = fault_prefer_node,
    .flock = fault_flock,
    .getrandom = fault_getrandom,
    .eventfd = fault_eventfd,
    .eventfd_write = fault_eventfd_write,
    .sleep_ns = fault_sleep_ns,
    .nice_thread = fault_nice_thread,
    .page_bytes = fault_page_bytes,
    .uring_init = fault_uring_init,
    .uring_exit = fault_uring_exit,
    .uring_enter = fault_uring_enter,
    .uring_files_sparse = fault_uring_files_sparse,
    .uring_files_update = fault_uring_files_update,
    .uring_buffers_sparse = fault_uring_buffers_sparse,
    .uring_buffers_update = fault_uring_buffers_update,
    .uring_has_read_write = fault_uring_has_read_write,
    .aio_setup = fault_aio_setup,
    .aio_destroy = fault_aio_destroy,
    .aio_submit = fault_aio_submit,
    .aio_getevents = fault_aio_getevents,
    .async_result = fault_async_result,
};
