/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files of the I/O library. A file that takes direct I/O may have two descriptors: the direct one, and a
 * buffered one for the ragged ends of writes, for what a direct transfer left in the middle of a unit, and for
 * the day when the file system refuses a direct transfer after all. A file that is only read seldom needs the
 * second, so it is opened by the worker that does: a checkpoint of very many shards would run into the limit of
 * open files.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "base/error.h"
#include "base/heap.h"
#include "io/internal.h"
#include "os/sys.h"

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

static int check_regular(const char *path, const struct statx *info, pst_error *err)
{
    if (S_ISREG(info->stx_mode))
        return 0;
    return pst_fail(err, S_ISDIR(info->stx_mode) ? -EISDIR : PST_E_UNSUPPORTED, path, "is not a regular file");
}

/* Opening a pipe waits for its other end, so what stands at the path is looked at before, and the file itself
 * after. */
static int examine(const char *path, int fd, struct statx *out, pst_error *err)
{
    int status = fd >= 0 ? pst_sys->statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, out)
                         : pst_sys->statx(AT_FDCWD, path, 0, STATX_BASIC_STATS, out);
    if (status == -ENOENT && fd < 0)
        return 0; /* may be about to be created; else opening says it */
    if (status < 0)
        return fail_code(err, status, path, "examine");
    return check_regular(path, out, err);
}

static int access_flags(unsigned flags)
{
    int access = (flags & PST_IO_OPEN_WRITE) != 0 ? O_RDWR : O_RDONLY;
    if ((flags & PST_IO_OPEN_CREATE) != 0)
        access |= O_CREAT;
    if ((flags & PST_IO_OPEN_TRUNCATE) != 0)
        access |= O_TRUNC;
    if ((flags & PST_IO_OPEN_EXCLUSIVE) != 0)
        access |= O_EXCL;
    return access;
}

static int open_buffered(pst_io_file *file, unsigned flags, int *access, pst_error *err)
{
    int wanted = access_flags(flags);
    int fd = open_retry(file->path, wanted);
    if (fd == -EACCES && file->writable) {
        wanted = (wanted & ~O_ACCMODE) | O_WRONLY; /* a file that may be written and not read */
        fd = open_retry(file->path, wanted);
    }
    if (fd < 0)
        return fail_code(err, fd, file->path, (flags & PST_IO_OPEN_CREATE) != 0 ? "create" : "open");
    atomic_store(&file->buffered_fd, fd);
    *access = wanted & O_ACCMODE;
    return 0;
}

static bool same_file(const struct statx *a, const struct statx *b)
{
    return a->stx_ino == b->stx_ino && a->stx_dev_major == b->stx_dev_major && a->stx_dev_minor == b->stx_dev_minor;
}

static void remember(pst_io_file *file, const struct statx *info)
{
    file->bytes = info->stx_size;
    file->device = makedev(info->stx_dev_major, info->stx_dev_minor);
}

/* Learns the alignment of the direct descriptor; false where direct I/O does not work. */
static bool learn_alignment(pst_io_file *file, int access)
{
    uint32_t offset_align, memory_align;
    pst_io_find_alignment(file->direct_fd, access != O_WRONLY, file->bytes, &offset_align, &memory_align);
    if (offset_align == 0)
        return false;
    file->offset_align = offset_align;
    file->memory_align = memory_align;
    atomic_store(&file->direct, true);
    return true;
}

/* Opens the same file once more for direct I/O. Where that does not work, the file stays buffered. */
static int open_direct(pst_io_file *file, int access, const struct statx *buffered, pst_error *err)
{
    int fd = open_retry(file->path, access | O_DIRECT);
    if (fd == -EINVAL || fd == -EOPNOTSUPP) {
        pst_io_refuse_direct(file, "the file system refuses direct I/O");
        return 0;
    }
    if (fd < 0)
        return fail_code(err, fd, file->path, "open");
    file->direct_fd = fd;
    struct statx info;
    PST_TRY(examine(file->path, fd, &info, err));
    if (!same_file(&info, buffered))
        return pst_fail(err, -ESTALE, file->path, "was replaced while it was being opened");
    if (!learn_alignment(file, access))
        pst_io_refuse_direct(file, "the file system refuses direct I/O");
    return 0;
}

/* Opens the inode of the direct descriptor without O_DIRECT: through /proc, which finds it under whatever name
 * it has now, or without /proc by its path. */
static int open_again(const pst_io_file *file)
{
    char link[40];
    struct statx direct, again;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file->direct_fd);
    int fd = open_retry(link, O_RDONLY);
    if (fd == -ENOENT || fd == -EACCES || fd == -ENOTDIR) {
        /* A pipe in its place would hold the worker up. */
        PST_TRY(pst_sys->statx(AT_FDCWD, file->path, 0, STATX_BASIC_STATS, &again));
        fd = S_ISREG(again.stx_mode) ? open_retry(file->path, O_RDONLY) : -ESTALE;
    }
    PST_TRY(fd);
    int status = pst_sys->statx(file->direct_fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &direct);
    if (status >= 0)
        status = pst_sys->statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &again);
    if (status >= 0 && !same_file(&direct, &again))
        status = -ESTALE;
    if (status < 0) {
        pst_sys->close(fd);
        return status;
    }
    return fd;
}

int pst_io_file_need_buffered(pst_io_file *file)
{
    if (atomic_load(&file->buffered_fd) >= 0)
        return 0;
    int fd = open_again(file), none = -1;
    PST_TRY(fd);
    if (!atomic_compare_exchange_strong(&file->buffered_fd, &none, fd))
        pst_sys->close(fd); /* another worker was faster */
    return 0;
}

/* A file that is only read: the direct descriptor alone, or where that does not work the buffered one. */
static int open_for_reading(pst_io_file *file, pst_error *err)
{
    struct statx info;
    int fd = open_retry(file->path, O_RDONLY | O_DIRECT), access;
    if (fd == -EINVAL || fd == -EOPNOTSUPP) {
        PST_TRY(open_buffered(file, PST_IO_OPEN_READ, &access, err));
        PST_TRY(examine(file->path, atomic_load(&file->buffered_fd), &info, err));
        remember(file, &info);
        pst_io_refuse_direct(file, "the file system refuses direct I/O");
        return 0;
    }
    if (fd < 0)
        return fail_code(err, fd, file->path, "open");
    file->direct_fd = fd;
    PST_TRY(examine(file->path, fd, &info, err));
    remember(file, &info);
    if (learn_alignment(file, O_RDONLY))
        return 0;
    int status = pst_io_file_need_buffered(file);
    if (status < 0)
        return fail_code(err, status, file->path, "open");
    file->direct_fd = -1;
    pst_sys->close(fd);
    pst_io_refuse_direct(file, "the file system refuses direct I/O");
    return 0;
}

/* Puts a descriptor into a slot of the engine's file table; -1 where that does not work. */
static int take_slot(pst_io *io, int fd)
{
    if ((io->engine->flags & PST_IO_ENGINE_FILE_SLOTS) == 0 || fd < 0)
        return -1;
    int slot = -1;
    pthread_mutex_lock(&io->control_lock);
    for (int i = 0; i < PST_IO_FILE_SLOTS && slot < 0; i++) {
        if (!io->file_slots[i])
            slot = i;
    }
    if (slot >= 0) {
        control c = {.kind = CONTROL_FILE, .slot = (uint32_t)slot, .fd = fd};
        if (pst_io_control(io, &c) >= 0) {
            io->file_slots[slot] = true;
        } else {
            /* Some workers may have it. */
            c = (control){.kind = CONTROL_FILE, .slot = (uint32_t)slot, .fd = -1};
            pst_io_control(io, &c);
            slot = -1;
        }
    }
    pthread_mutex_unlock(&io->control_lock);
    return slot;
}

static void give_slot(pst_io *io, int slot)
{
    if (slot < 0)
        return;
    pthread_mutex_lock(&io->control_lock);
    control c = {.kind = CONTROL_FILE, .slot = (uint32_t)slot, .fd = -1};
    pst_io_control(io, &c);
    io->file_slots[slot] = false;
    pthread_mutex_unlock(&io->control_lock);
}

static int open_descriptors(pst_io_file *file, unsigned flags, pst_error *err)
{
    struct statx info;
    int access = O_RDONLY;
    PST_TRY(examine(file->path, -1, &info, err));
    if (!file->writable && !file->io->buffered)
        return open_for_reading(file, err);
    PST_TRY(open_buffered(file, flags, &access, err));
    PST_TRY(examine(file->path, atomic_load(&file->buffered_fd), &info, err));
    remember(file, &info);
    return file->io->buffered ? 0 : open_direct(file, access, &info, err);
}

int pst_io_file_open(pst_io *io, const char *path, unsigned flags, pst_io_file **out, pst_error *err)
{
    if (path == NULL || path[0] == '\0')
        return pst_fail(err, PST_E_USAGE, NULL, "a file to open has no name");
    if ((flags & (PST_IO_OPEN_CREATE | PST_IO_OPEN_TRUNCATE | PST_IO_OPEN_EXCLUSIVE)) != 0 &&
        (flags & PST_IO_OPEN_WRITE) == 0)
        return pst_fail(err, PST_E_USAGE, path, "is to be created, but not opened for writing");
    if ((flags & (PST_IO_OPEN_CREATE | PST_IO_OPEN_EXCLUSIVE)) == PST_IO_OPEN_EXCLUSIVE)
        return pst_fail(err, PST_E_USAGE, path, "is to be new, but not to be created");
    pst_io_file *file = pst_heap_calloc(1, sizeof *file);
    char *copy = pst_heap_strdup(path);
    if (file == NULL || copy == NULL) {
        pst_heap_free(file);
        pst_heap_free(copy);
        return pst_fail_memory(err, path, sizeof *file);
    }
    *file = (pst_io_file){.io = io,
                          .path = copy,
                          .direct_fd = -1,
                          .buffered_fd = -1,
                          .direct_slot = -1,
                          .buffered_slot = -1,
                          .writable = (flags & PST_IO_OPEN_WRITE) != 0,
                          .offset_align = 1,
                          .memory_align = 1};
    pst_io_retain(io);
    int status = open_descriptors(file, flags, err);
    if (status < 0) {
        if ((flags & PST_IO_OPEN_EXCLUSIVE) != 0 && atomic_load(&file->buffered_fd) >= 0)
            pst_sys->unlink(path); /* ours, and empty */
        pst_io_file_close(file, NULL);
        return status;
    }
    file->direct_slot = take_slot(io, file->direct_fd);
    file->buffered_slot = take_slot(io, atomic_load(&file->buffered_fd)); /* one that comes later has none */
    *out = file;
    return 0;
}

int pst_io_file_close(pst_io_file *file, pst_error *err)
{
    if (file == NULL)
        return 0;
    give_slot(file->io, file->direct_slot);
    give_slot(file->io, file->buffered_slot);
    int direct = file->direct_fd >= 0 ? pst_sys->close(file->direct_fd) : 0;
    int fd = atomic_load(&file->buffered_fd);
    int buffered = fd >= 0 ? pst_sys->close(fd) : 0;
    int status = direct < 0 ? direct : buffered;
    /* An interrupted close has closed, and nothing was lost (Linux). */
    if (status < 0 && status != -EINTR)
        fail_code(err, status, file->path, "close");
    else
        status = 0;
    pst_io_release(file->io);
    pst_heap_free(file->path);
    pst_heap_free(file);
    return status;
}

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
    return atomic_load(&file->direct);
}

uint32_t pst_io_file_alignment(const pst_io_file *file)
{
    return file->offset_align;
}

/* For what concerns the file and not how it is read or written. */
static int any_descriptor(const pst_io_file *file)
{
    int fd = atomic_load(&file->buffered_fd);
    return fd >= 0 ? fd : file->direct_fd;
}

int pst_io_file_sync(pst_io_file *file, pst_error *err)
{
    int status;
    do {
        status = pst_sys->fdatasync(any_descriptor(file)); /* of the file, however it was written */
    } while (status == -EINTR);
    return status < 0 ? fail_code(err, status, file->path, "sync") : 0;
}

int pst_io_file_truncate(pst_io_file *file, uint64_t bytes, pst_error *err)
{
    int status;
    do {
        status = bytes > INT64_MAX ? -EFBIG : pst_sys->ftruncate(any_descriptor(file), bytes);
    } while (status == -EINTR);
    return status < 0 ? pst_fail_at(err, status, file->path, bytes, "cannot set the length: %s", pst_strerror(status))
                      : 0;
}

int pst_io_file_preallocate(pst_io_file *file, uint64_t bytes, pst_error *err)
{
    if (bytes == 0)
        return 0;
    int status;
    do {
        status = bytes > INT64_MAX ? -EFBIG : pst_sys->fallocate(any_descriptor(file), 0, 0, bytes);
    } while (status == -EINTR);
    if (status >= 0 || status == -EOPNOTSUPP || status == -ENOSYS)
        return 0;
    return fail_code(err, status, file->path, "reserve space for");
}
