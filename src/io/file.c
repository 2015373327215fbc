/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files of the I/O library. A file that takes direct I/O has a direct descriptor, and gets a buffered one from the
 * worker that first needs it: for the ragged ends of writes, for what a direct transfer left in the middle of a unit,
 * and for the day when the file system refuses a direct transfer after all. Most files never need the second, and a
 * checkpoint of very many shards would run into the limit of open files.
 *
 * Opening costs three system calls: what stands at the path is looked at, because opening a pipe waits for its other end
 * and opening some devices does things; it is opened; and what was opened is looked at.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/log.h"
#include "io/internal.h"
#include "io/striping.h"
#include "os/sys.h"

static const char no_direct[] = "the file system refuses direct I/O";

static int open_retry(const char *path, int flags)
{
    int fd;
    do {
        fd = pst_sys->open(path, flags, 0666);
    } while (fd == -EINTR);
    return fd;
}

static int fail_code(pst_error *err, int code, const char *path, const char *verb)
{
    return pst_fail(err, code, path, "cannot %s: %s", verb, pst_strerror(code));
}

/* ---- looking at files ---- */

static int look(int fd, const char *path, struct statx *out)
{
    return fd >= 0 ? pst_sys->statx(fd, "", AT_EMPTY_PATH, PST_IO_STATX_MASK, out)
                   : pst_sys->statx(AT_FDCWD, path, 0, PST_IO_STATX_MASK, out);
}

static int check_kind(const char *path, const struct statx *info, pst_error *err)
{
    if (S_ISREG(info->stx_mode) || S_ISBLK(info->stx_mode))
        return 0;
    return pst_fail(err, S_ISDIR(info->stx_mode) ? -EISDIR : PST_E_UNSUPPORTED, path, "is %s",
                    S_ISDIR(info->stx_mode)    ? "a folder"
                    : S_ISFIFO(info->stx_mode) ? "a pipe, not a regular file or block device"
                    : S_ISSOCK(info->stx_mode) ? "a socket, not a regular file or block device"
                                               : "a character device, not a regular file or block device");
}

static bool same_file(const struct statx *a, const struct statx *b)
{
    return a->stx_ino == b->stx_ino && a->stx_dev_major == b->stx_dev_major && a->stx_dev_minor == b->stx_dev_minor;
}

/* Takes in what a descriptor shows: kind, identity, length. */
static int remember(pst_io_file *file, int fd, const struct statx *info, pst_error *err)
{
    PST_TRY(check_kind(file->path, info, err));
    file->bytes = info->stx_size;
    file->device = makedev(info->stx_dev_major, info->stx_dev_minor);
    file->inode = info->stx_ino;
    file->block_device = S_ISBLK(info->stx_mode);
    if (!file->block_device)
        return 0;
    int status = pst_sys->block_device(fd, &file->bytes, &file->sector_bytes);
    return status < 0 ? fail_code(err, status, file->path, "find the size of") : 0;
}

/* ---- descriptors ---- */

static int create_flags(unsigned flags)
{
    return ((flags & PST_IO_OPEN_CREATE) != 0 ? O_CREAT : 0) | ((flags & PST_IO_OPEN_TRUNCATE) != 0 ? O_TRUNC : 0) |
           ((flags & PST_IO_OPEN_EXCLUSIVE) != 0 ? O_EXCL : 0);
}

/* Opens with file->access, or a file that may be written and not read with O_WRONLY. */
static int open_access(pst_io_file *file, const char *path, int flags)
{
    int fd = open_retry(path, file->access | flags);
    if (fd == -EACCES && file->access == O_RDWR) {
        fd = open_retry(path, O_WRONLY | flags);
        if (fd >= 0)
            file->access = O_WRONLY;
    }
    return fd;
}

static bool says_no_direct(int status)
{
    return status == -EINVAL || status == -EOPNOTSUPP;
}

/* Opens the file of a descriptor once more, through /proc, which finds it under whatever name it has now. */
static int open_behind(int fd, int flags)
{
    char link[40];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    return open_retry(link, flags);
}

/* True when a descriptor could not be opened again for want of /proc or of permission, which the descriptor itself
 * does not need. */
static bool cannot_reopen(int status)
{
    return status == -ENOENT || status == -ENOTDIR || status == -EACCES || status == -EPERM || status == -EROFS ||
           status == -ELOOP || status == -EBUSY || status == -ETXTBSY;
}

/* Opens the inode of descriptor `fd` with file->access, through /proc or without /proc by its path. */
static int open_again(const pst_io_file *file, int fd, int flags)
{
    struct statx first, again;
    flags |= file->access;
    int opened = open_behind(fd, flags);
    if (cannot_reopen(opened)) {
        /* A pipe in its place would hold the worker up. */
        PST_TRY(look(-1, file->path, &again));
        opened = S_ISREG(again.stx_mode) || S_ISBLK(again.stx_mode) ? open_retry(file->path, flags) : -ESTALE;
    }
    PST_TRY(opened);
    int status = look(fd, NULL, &first);
    if (status >= 0)
        status = look(opened, NULL, &again);
    if (status >= 0 && !same_file(&first, &again))
        status = -ESTALE;
    if (status < 0) {
        pst_sys->close(opened);
        return status;
    }
    return opened;
}

int pst_io_file_need_buffered(pst_io_file *file)
{
    if (atomic_load(&file->buffered_fd) >= 0)
        return 0;
    int fd = open_again(file, file->direct_fd, 0), none = -1;
    PST_TRY(fd);
    if (!atomic_compare_exchange_strong(&file->buffered_fd, &none, fd))
        pst_sys->close(fd); /* another worker was faster */
    return 0;
}

/* Looks at the direct descriptor. Where direct I/O turns out not to work, the file gets a buffered one instead. */
static int settle_direct(pst_io_file *file, pst_error *err)
{
    struct statx info;
    uint32_t offset_align, memory_align;
    int status = look(file->direct_fd, NULL, &info);
    if (status < 0)
        return fail_code(err, status, file->path, "examine");
    PST_TRY(remember(file, file->direct_fd, &info, err));
    pst_io_find_alignment(file, &info, &offset_align, &memory_align);
    if (offset_align != 0) {
        file->offset_align = offset_align;
        file->memory_align = memory_align;
        atomic_store(&file->direct, true);
        return 0;
    }
    status = pst_io_file_need_buffered(file);
    if (status < 0)
        return fail_code(err, status, file->path, "open");
    pst_sys->close(file->direct_fd);
    file->direct_fd = -1;
    pst_io_refuse_direct(file, no_direct);
    return 0;
}

/* Takes a buffered descriptor in, as the file's first. */
static int settle_buffered(pst_io_file *file, int fd, pst_error *err)
{
    struct statx info;
    atomic_store(&file->buffered_fd, fd);
    int status = look(fd, NULL, &info);
    return status < 0 ? fail_code(err, status, file->path, "examine") : remember(file, fd, &info, err);
}

/* A file that must be new is made without O_DIRECT: a file system that refuses O_DIRECT does so after it has created the
 * file, and then nobody could tell whose it is. */
static int open_exclusively(pst_io_file *file, int flags, pst_error *err)
{
    int fd = open_access(file, file->path, flags);
    if (fd < 0)
        return fail_code(err, fd, file->path, "create");
    file->created = true;
    PST_TRY(settle_buffered(file, fd, err));
    if (file->io->buffered)
        return 0;
    fd = open_again(file, fd, O_DIRECT);
    if (says_no_direct(fd)) {
        pst_io_refuse_direct(file, no_direct);
        return 0;
    }
    if (fd == -ESTALE)
        return pst_fail(err, fd, file->path, "was replaced while it was being opened");
    if (fd < 0)
        return fail_code(err, fd, file->path, "open");
    file->direct_fd = fd;
    return settle_direct(file, err);
}

/* What stands at the path may be opened: 0, with the further flags that it needs. */
static int examine(const pst_io_file *file, unsigned flags, int *more, pst_error *err)
{
    struct statx info;
    int status = look(-1, file->path, &info);
    if (status == -ENOENT)
        return 0; /* may be about to be created; else opening says it */
    if (status < 0)
        return fail_code(err, status, file->path, "examine");
    PST_TRY(check_kind(file->path, &info, err));
    if (!S_ISBLK(info.stx_mode))
        return 0;
    if ((flags & PST_IO_OPEN_TRUNCATE) != 0)
        return pst_fail(err, PST_E_UNSUPPORTED, file->path, "is a block device, which cannot be truncated");
    *more = file->writable ? O_EXCL : 0; /* refused while it is mounted */
    return 0;
}

static int fail_open(const pst_io_file *file, int status, unsigned flags, bool device, pst_error *err)
{
    if (status == -EBUSY && device)
        return pst_fail(err, status, file->path, "cannot open for writing: the block device is mounted or in use");
    return fail_code(err, status, file->path, (flags & PST_IO_OPEN_CREATE) != 0 ? "create" : "open");
}

static int open_descriptors(pst_io_file *file, unsigned flags, pst_error *err)
{
    int how = create_flags(flags), more = 0;
    PST_TRY(examine(file, flags, &more, err));
    if ((flags & PST_IO_OPEN_EXCLUSIVE) != 0)
        return open_exclusively(file, how, err);
    how |= more;
    int fd = file->io->buffered ? -EINVAL : open_access(file, file->path, how | O_DIRECT);
    if (fd >= 0) {
        file->direct_fd = fd;
        return settle_direct(file, err);
    }
    if (says_no_direct(fd)) {
        fd = open_access(file, file->path, how);
        if (fd >= 0) {
            PST_TRY(settle_buffered(file, fd, err));
            if (!file->io->buffered)
                pst_io_refuse_direct(file, no_direct);
            return 0;
        }
    }
    return fail_open(file, fd, flags, more != 0, err);
}

/* ---- opening and closing ---- */

static int check_flags(const char *path, unsigned flags, pst_error *err)
{
    if (path == NULL || path[0] == '\0')
        return pst_fail(err, PST_E_USAGE, NULL, "a file to open has no name");
    if ((flags & (PST_IO_OPEN_CREATE | PST_IO_OPEN_TRUNCATE | PST_IO_OPEN_EXCLUSIVE)) != 0 &&
        (flags & PST_IO_OPEN_WRITE) == 0)
        return pst_fail(err, PST_E_USAGE, path, "is to be created, but not opened for writing");
    if ((flags & (PST_IO_OPEN_CREATE | PST_IO_OPEN_EXCLUSIVE)) == PST_IO_OPEN_EXCLUSIVE)
        return pst_fail(err, PST_E_USAGE, path, "is to be new, but not to be created");
    return 0;
}

int pst_io_file_create(pst_io *io, const char *path, unsigned flags, pst_io_file **out, pst_error *err)
{
    PST_TRY(check_flags(path, flags, err));
    pst_io_file *file = pst_heap_calloc(1, sizeof *file);
    char *copy = pst_heap_strdup(path);
    if (file == NULL || copy == NULL) {
        pst_heap_free(file);
        pst_heap_free(copy);
        return pst_fail_memory(err, path, sizeof *file);
    }
    bool writable = (flags & PST_IO_OPEN_WRITE) != 0;
    *file = (pst_io_file){.io = io,
                          .path = copy,
                          .direct_fd = -1,
                          .buffered_fd = -1,
                          .slot = PST_IO_SLOT_UNDECIDED,
                          .writable = writable,
                          .access = writable ? O_RDWR : O_RDONLY,
                          .offset_align = 1,
                          .memory_align = 1};
    pst_io_retain(io);
    *out = file;
    return 0;
}

int pst_io_file_open(pst_io *io, const char *path, unsigned flags, pst_io_file **out, pst_error *err)
{
    pst_io_file *file;
    PST_TRY(pst_io_file_create(io, path, flags, &file, err));
    int status = open_descriptors(file, flags, err);
    if (status < 0) {
        if (file->created)
            pst_sys->unlink(path); /* ours, and empty */
        pst_io_file_close(file, NULL);
        return status;
    }
    *out = file;
    return 0;
}

/* The descriptor itself, where its file cannot be opened again. */
static int keep_descriptor(pst_io_file *file, int fd, int flags, pst_error *err)
{
    if (file->writable && (flags & O_APPEND) != 0)
        return pst_fail(err, PST_E_UNSUPPORTED, file->path,
                        "the descriptor appends (O_APPEND), and its file cannot be opened again without");
    file->access = flags & O_ACCMODE;
    int kept = pst_sys->dup(fd);
    if (kept < 0)
        return fail_code(err, kept, file->path, "duplicate the descriptor of");
    if ((flags & O_DIRECT) == 0)
        return settle_buffered(file, kept, err);
    file->direct_fd = kept;
    return settle_direct(file, err);
}

static int reopen_descriptors(pst_io_file *file, int fd, int flags, pst_error *err)
{
    int opened = file->io->buffered ? -EINVAL : open_behind(fd, file->access | O_DIRECT);
    bool direct = opened >= 0;
    if (says_no_direct(opened))
        opened = open_behind(fd, file->access);
    struct statx asked, got;
    if (opened >= 0 && look(fd, NULL, &asked) >= 0 && look(opened, NULL, &got) >= 0 && !same_file(&asked, &got)) {
        pst_sys->close(opened);
        opened = -ENOENT; /* this is no real /proc */
    }
    if (cannot_reopen(opened))
        return keep_descriptor(file, fd, flags, err);
    if (opened < 0)
        return fail_code(err, opened, file->path, "open");
    if (direct) {
        file->direct_fd = opened;
        return settle_direct(file, err);
    }
    PST_TRY(settle_buffered(file, opened, err));
    if (!file->io->buffered)
        pst_io_refuse_direct(file, no_direct);
    return 0;
}

/* What the descriptor allows is enough for the flags. */
static int check_descriptor(int fd, const char *name, int have, unsigned flags, pst_error *err)
{
    struct statx info;
    int access = have & O_ACCMODE;
    if ((have & O_PATH) != 0)
        return pst_fail(err, -EBADF, name, "the descriptor is one of the path only (O_PATH)");
    if ((flags & PST_IO_OPEN_WRITE) != 0 ? access == O_RDONLY : access == O_WRONLY)
        return pst_fail(err, -EBADF, name, "the descriptor does not allow %s",
                        access == O_RDONLY ? "writing" : "reading");
    int status = look(fd, NULL, &info);
    return status < 0 ? fail_code(err, status, name, "examine") : check_kind(name, &info, err);
}

int pst_io_file_open_fd(pst_io *io, int fd, unsigned flags, const char *name, pst_io_file **out, pst_error *err)
{
    char link[40], target[4096];
    snprintf(link, sizeof link, "descriptor %d", fd);
    if ((flags & ~(unsigned)PST_IO_OPEN_WRITE) != 0)
        return pst_fail(err, PST_E_USAGE, name, "a descriptor's file is neither created nor truncated by opening it");
    int have = pst_sys->open_flags(fd);
    if (have < 0)
        return fail_code(err, have, name != NULL ? name : link, "use the descriptor of");
    if (name == NULL || name[0] == '\0') {
        name = link;
        char proc[40];
        snprintf(proc, sizeof proc, "/proc/self/fd/%d", fd);
        if (pst_sys->readlink(proc, target, sizeof target) >= 0 && target[0] != '\0')
            name = target;
    }
    PST_TRY(check_descriptor(fd, name, have, flags, err));
    pst_io_file *file;
    PST_TRY(pst_io_file_create(io, name, flags, &file, err));
    if (file->writable)
        file->access = have & O_ACCMODE;
    int status = reopen_descriptors(file, fd, have, err);
    if (status < 0) {
        pst_io_file_close(file, NULL);
        return status;
    }
    *out = file;
    return 0;
}

int pst_io_file_close(pst_io_file *file, pst_error *err)
{
    if (file == NULL)
        return 0;
    pst_io_slot_give(file);
    int members = pst_io_striping_close(file->striping, err);
    int direct = file->direct_fd >= 0 ? pst_sys->close(file->direct_fd) : 0;
    int fd = atomic_load(&file->buffered_fd);
    int buffered = fd >= 0 ? pst_sys->close(fd) : 0;
    int status = direct < 0 ? direct : buffered;
    /* An interrupted close has closed, and nothing was lost (Linux). */
    if (status < 0 && status != -EINTR)
        fail_code(err, status, file->path, "close");
    else
        status = members;
    pst_io_release(file->io);
    pst_heap_free(file->path);
    pst_heap_free(file);
    return status;
}

/* ---- what a file is ---- */

uint64_t pst_io_file_bytes(const pst_io_file *file)
{
    return file->bytes;
}

const char *pst_io_file_path(const pst_io_file *file)
{
    return file->path;
}

bool pst_io_file_is_direct(const pst_io_file *file)
{
    return file->striping != NULL ? pst_io_striping_is_direct(file->striping) : atomic_load(&file->direct);
}

uint32_t pst_io_file_alignment(const pst_io_file *file)
{
    return file->offset_align;
}

uint32_t pst_io_file_memory_alignment(const pst_io_file *file)
{
    return pst_io_file_is_direct(file) ? file->memory_align : 1;
}

pst_io_run pst_io_file_run(const pst_io_file *file, uint64_t offset, uint64_t bytes)
{
    if (file->striping != NULL)
        return pst_io_striping_run(file->striping, offset, bytes);
    return (pst_io_run){.file = (pst_io_file *)file, .offset = offset, .bytes = bytes};
}

int pst_io_file_prepare(pst_io_file *file, pst_io_file *part, bool write, uint64_t end, bool direct)
{
    if (write && file->striping != NULL) {
        pst_error err;
        int status = pst_io_striping_reach(file->striping, end, &err);
        if (status < 0) { /* the piece's error names its own member */
            pst_log(PST_LOG_WARNING, "%s: %s", err.path, err.message);
            return status;
        }
    }
    if (direct || atomic_load_explicit(&part->buffered_fd, memory_order_acquire) >= 0)
        return 0;
    return pst_io_file_need_buffered(part);
}

/* ---- the whole file ---- */

/* For what concerns the file and not how it is read or written. */
static int any_descriptor(const pst_io_file *file)
{
    int fd = atomic_load(&file->buffered_fd);
    return fd >= 0 ? fd : file->direct_fd;
}

int pst_io_file_get_bytes(const pst_io_file *file, uint64_t *out, pst_error *err)
{
    if (file->striping != NULL)
        return pst_io_striping_get_bytes(file->striping, out, err);
    if (file->block_device) {
        uint32_t sector;
        int status = pst_sys->block_device(any_descriptor(file), out, &sector);
        return status < 0 ? fail_code(err, status, file->path, "find the size of") : 0;
    }
    struct statx info;
    int status = pst_sys->statx(any_descriptor(file), "", AT_EMPTY_PATH, STATX_SIZE, &info);
    if (status < 0)
        return fail_code(err, status, file->path, "find the length of");
    *out = info.stx_size;
    return 0;
}

int pst_io_file_sync(pst_io_file *file, pst_error *err)
{
    if (file->striping != NULL)
        return pst_io_striping_sync(file->striping, err);
    int status;
    do {
        status = pst_sys->fdatasync(any_descriptor(file)); /* of the file, however it was written */
    } while (status == -EINTR);
    return status < 0 ? fail_code(err, status, file->path, "sync") : 0;
}

int pst_io_file_truncate(pst_io_file *file, uint64_t bytes, pst_error *err)
{
    if (file->striping != NULL)
        return pst_io_striping_truncate(file->striping, bytes, err);
    if (file->block_device)
        return pst_fail_at(err, PST_E_UNSUPPORTED, file->path, bytes,
                           "is a block device, whose length cannot be changed");
    int status;
    do {
        status = bytes > INT64_MAX ? -EFBIG : pst_sys->ftruncate(any_descriptor(file), bytes);
    } while (status == -EINTR);
    return status < 0 ? pst_fail_at(err, status, file->path, bytes, "cannot set the length: %s", pst_strerror(status))
                      : 0;
}

int pst_io_file_reserve(pst_io_file *file, int mode, uint64_t offset, uint64_t bytes, pst_error *err)
{
    if (file->block_device)
        return 1;
    int status;
    do {
        status = bytes > INT64_MAX || offset > INT64_MAX - bytes
                     ? -EFBIG
                     : pst_sys->fallocate(any_descriptor(file), mode, offset, bytes);
    } while (status == -EINTR);
    if (status == -EOPNOTSUPP || status == -ENOSYS)
        return 1;
    return status < 0 ? fail_code(err, status, file->path, "reserve space for") : 0;
}

int pst_io_file_preallocate_range(pst_io_file *file, uint64_t offset, uint64_t bytes, pst_error *err)
{
    if (bytes == 0)
        return 0;
    if (file->striping != NULL)
        return pst_io_striping_preallocate(file->striping, offset, bytes, err);
    PST_TRY(pst_io_file_reserve(file, 0, offset, bytes, err));
    return 0;
}

int pst_io_file_preallocate(pst_io_file *file, uint64_t bytes, pst_error *err)
{
    return pst_io_file_preallocate_range(file, 0, bytes, err);
}
