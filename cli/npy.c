/* SPDX-License-Identifier: Apache-2.0 */
/* NPY 1.0: magic, version, header length, a Python dictionary padded to 64 bytes, then the rows. */
#include "npy.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/error.h"
#include "base/heap.h"
#include "interrupt.h"

enum { HEADER_BYTES = 128 };

struct cli_npy {
    char *path, *temporary;
    uint64_t rows, columns;
    int fd;
    bool exists; /* the temporary file */
};

static int fail_errno(const char *path, const char *what, pst_error *err)
{
    int cause = errno != 0 ? errno : EIO;
    return pst_fail(err, -cause, path, "cannot %s: %s", what, strerror(cause));
}

static int write_at(cli_npy *npy, const void *data, size_t bytes, uint64_t offset, pst_error *err)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t written = pwrite(npy->fd, (const char *)data + done, bytes - done, (off_t)(offset + done));
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return fail_errno(npy->path, "write", err);
        done += (size_t)written;
    }
    return 0;
}

static int write_header(cli_npy *npy, pst_error *err)
{
    char header[HEADER_BYTES + 1];
    char shape[64];
    snprintf(shape, sizeof shape, "(%" PRIu64 ", %" PRIu64 ")", npy->rows, npy->columns);
    memset(header, ' ', sizeof header);
    /* The length that follows magic and version counts the rest, which ends with a newline. */
    memcpy(header, "\x93NUMPY\x01\x00", 8);
    header[8] = (char)(HEADER_BYTES - 10);
    header[9] = 0;
    int length =
        snprintf(header + 10, sizeof header - 10, "{'descr': '<f4', 'fortran_order': False, 'shape': %s, }", shape);
    header[10 + length] = ' ';
    header[HEADER_BYTES - 1] = '\n';
    return write_at(npy, header, HEADER_BYTES, 0, err);
}

/* The folder of a path, as a new string. */
static char *folder_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    if (slash == NULL)
        return pst_heap_strdup(".");
    return pst_heap_strndup(path, slash == path ? 1 : (size_t)(slash - path));
}

static int check_space(cli_npy *npy, uint64_t bytes, pst_error *err)
{
    struct statvfs space;
    if (fstatvfs(npy->fd, &space) != 0)
        return 0; /* then writing will tell */
    uint64_t room = (uint64_t)space.f_bavail * space.f_frsize;
    if (room >= bytes)
        return 0;
    return pst_fail(err, -ENOSPC, npy->path, "it takes %" PRIu64 " bytes, and the file system has %" PRIu64 " left",
                    bytes, room);
}

static int create_file(cli_npy *npy, pst_error *err)
{
    struct stat about;
    uint64_t bytes;
    if (stat(npy->path, &about) == 0 && !S_ISREG(about.st_mode))
        return pst_fail(err, -EINVAL, npy->path, "it exists and is no regular file");
    if (__builtin_mul_overflow(npy->rows, npy->columns, &bytes) ||
        __builtin_mul_overflow(bytes, sizeof(float), &bytes) || bytes > INT64_MAX - HEADER_BYTES)
        return pst_fail(err, PST_E_USAGE, npy->path, "too large");
    npy->fd = mkstemp(npy->temporary);
    if (npy->fd < 0)
        return fail_errno(npy->path, "create", err);
    npy->exists = true;
    cli_interrupt_remove(npy->temporary);
    /* mkstemp makes it private; it shall have the mode of any new file. */
    mode_t mask = umask(0);
    umask(mask);
    if (fchmod(npy->fd, 0666 & ~mask) != 0)
        return fail_errno(npy->path, "create", err);
    PST_TRY(check_space(npy, bytes + HEADER_BYTES, err));
    return write_header(npy, err);
}

int cli_npy_create(const char *path, uint64_t rows, uint64_t columns, cli_npy **out, pst_error *err)
{
    cli_npy *npy = pst_heap_calloc(1, sizeof *npy);
    if (npy == NULL)
        return pst_fail_memory(err, path, sizeof *npy);
    npy->fd = -1;
    npy->rows = rows;
    npy->columns = columns;
    npy->path = pst_heap_strdup(path);
    npy->temporary = pst_heap_printf("%s.tmp-XXXXXX", path);
    int status = npy->path != NULL && npy->temporary != NULL ? create_file(npy, err) : pst_fail_memory(err, path, 0);
    if (status < 0) {
        cli_npy_close(npy);
        return status;
    }
    *out = npy;
    return 0;
}

int cli_npy_write_row(cli_npy *npy, uint64_t row, const float *values, pst_error *err)
{
    size_t bytes = npy->columns * sizeof *values;
    return write_at(npy, values, bytes, HEADER_BYTES + row * bytes, err);
}

static int sync_folder(const char *path, pst_error *err)
{
    char *folder = folder_of(path);
    if (folder == NULL)
        return pst_fail_memory(err, path, 0);
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    pst_heap_free(folder);
    /* Some file systems refuse to sync a folder (EINVAL): there is nothing more to be done then. */
    int status = fd < 0 || (fsync(fd) != 0 && errno != EINVAL) ? fail_errno(path, "sync the folder", err) : 0;
    if (fd >= 0)
        close(fd);
    return status;
}

int cli_npy_publish(cli_npy *npy, pst_error *err)
{
    if (fdatasync(npy->fd) != 0)
        return fail_errno(npy->path, "sync", err);
    int status = close(npy->fd);
    npy->fd = -1;
    if (status != 0)
        return fail_errno(npy->path, "close", err);
    if (rename(npy->temporary, npy->path) != 0)
        return fail_errno(npy->path, "rename", err);
    npy->exists = false;
    cli_interrupt_remove(NULL);
    return sync_folder(npy->path, err);
}

void cli_npy_close(cli_npy *npy)
{
    if (npy == NULL)
        return;
    if (npy->fd >= 0)
        close(npy->fd);
    if (npy->exists)
        unlink(npy->temporary);
    cli_interrupt_remove(NULL);
    pst_heap_free(npy->path);
    pst_heap_free(npy->temporary);
    pst_heap_free(npy);
}
