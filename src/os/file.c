/* SPDX-License-Identifier: Apache-2.0 */
/* Small files, folders and durable publishing over the system-call table. */
#include "os/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/heap.h"
#include "os/clock.h"
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

static int stat_path(const char *path, struct statx *out)
{
    return pst_sys->statx(AT_FDCWD, path, 0, STATX_TYPE | STATX_SIZE, out);
}

/* Opens a regular file for reading. O_NONBLOCK, so that a pipe or device in its place cannot hold us up. */
static int open_regular(const char *path, uint64_t *bytes, pst_error *err)
{
    int fd = open_retry(path, O_RDONLY | O_NONBLOCK);
    if (fd < 0)
        return fail_code(err, fd, path, "open");
    struct statx info;
    int status = pst_sys->statx(fd, "", AT_EMPTY_PATH, STATX_TYPE | STATX_SIZE, &info);
    if (status < 0) {
        pst_sys->close(fd);
        return fail_code(err, status, path, "examine");
    }
    if (!S_ISREG(info.stx_mode)) {
        pst_sys->close(fd);
        return pst_fail(err, PST_E_FORMAT, path, "is not a regular file");
    }
    *bytes = info.stx_size;
    return fd;
}

int pst_file_read_all(const char *path, uint64_t max_bytes, char **out, size_t *out_bytes, pst_error *err)
{
    uint64_t bytes = 0;
    int fd = open_regular(path, &bytes, err);
    PST_TRY(fd);
    char *text = NULL;
    int status = 0;
    if (bytes > max_bytes) {
        status = pst_fail(err, PST_E_FORMAT, path, "has %llu bytes, more than the %llu that are sensible",
                          (unsigned long long)bytes, (unsigned long long)max_bytes);
        goto done;
    }
    text = pst_heap_alloc(bytes + 1);
    if (text == NULL) {
        status = pst_fail_memory(err, path, bytes + 1);
        goto done;
    }
    ssize_t got = pst_sys_read_all(fd, text, bytes, 0);
    if (got < 0)
        status = fail_code(err, (int)got, path, "read");
    else if ((uint64_t)got < bytes)
        status = pst_fail_at(err, PST_E_SHORT, path, (uint64_t)got, "shrank while it was read");
done:
    pst_sys->close(fd);
    if (status < 0) {
        pst_heap_free(text);
        return status;
    }
    text[bytes] = '\0';
    *out = text;
    *out_bytes = bytes;
    return 0;
}

int pst_file_open(const char *path, uint64_t *out_bytes, pst_error *err)
{
    return open_regular(path, out_bytes, err);
}

/* Not through the table of calls: it does nothing to the file, and may do nothing at all. */
void pst_file_will_fetch(int fd, uint64_t offset, uint64_t bytes)
{
    posix_fadvise(fd, (off_t)offset, (off_t)bytes, POSIX_FADV_WILLNEED);
}

void pst_file_close(int fd)
{
    pst_sys->close(fd);
}

int pst_file_fetch(int fd, const char *path, uint64_t offset, void *buffer, size_t bytes, pst_error *err)
{
    ssize_t got = pst_sys_read_all(fd, buffer, bytes, offset);
    if (got < 0)
        return pst_fail_at(err, (int)got, path, offset, "cannot read: %s", pst_strerror((int)got));
    if ((size_t)got < bytes)
        return pst_fail_at(err, PST_E_SHORT, path, offset + (uint64_t)got, "ends before the %zu bytes wanted at %llu",
                           bytes, (unsigned long long)offset);
    return 0;
}

int pst_file_read_at(const char *path, uint64_t offset, void *buffer, size_t bytes, pst_error *err)
{
    uint64_t file_bytes = 0;
    int fd = open_regular(path, &file_bytes, err);
    PST_TRY(fd);
    int status = pst_file_fetch(fd, path, offset, buffer, bytes, err);
    pst_sys->close(fd);
    return status;
}

int pst_file_size(const char *path, uint64_t *out, pst_error *err)
{
    struct statx info;
    int status = stat_path(path, &info);
    if (status < 0)
        return fail_code(err, status, path, "examine");
    if (!S_ISREG(info.stx_mode))
        return pst_fail(err, PST_E_FORMAT, path, "is not a regular file");
    *out = info.stx_size;
    return 0;
}

int pst_file_changed_ns(const char *path, int64_t *out, pst_error *err)
{
    struct statx info;
    int status = pst_sys->statx(AT_FDCWD, path, 0, STATX_MTIME, &info);
    if (status < 0)
        return fail_code(err, status, path, "examine");
    *out = info.stx_mtime.tv_sec * INT64_C(1000000000) + info.stx_mtime.tv_nsec;
    return 0;
}

int pst_file_absolute(const char *path, char **out, pst_error *err)
{
    char link[40], target[4096];
    int fd = open_retry(path, O_PATH);
    if (fd < 0)
        return fail_code(err, fd, path, "open");
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int status = pst_sys->readlink(link, target, sizeof target);
    pst_sys->close(fd);
    if (status < 0)
        return fail_code(err, status, path, "find the place of");
    char *copy = pst_heap_strdup(target);
    if (copy == NULL)
        return pst_fail_memory(err, "a path", strlen(target));
    *out = copy;
    return 0;
}

int pst_file_from_root(const char *path, char **out, pst_error *err)
{
    char *here = NULL;
    if (path[0] != '/')
        PST_TRY(pst_file_absolute(".", &here, err));
    char *whole = here != NULL ? pst_heap_printf("%s/%s", here, path) : pst_heap_strdup(path);
    pst_heap_free(here);
    if (whole == NULL)
        return pst_fail_memory(err, path, strlen(path));
    *out = whole;
    return 0;
}

/* Where the link at `path` leads to. *out: pst_heap_free. */
static int follow_once(const char *path, char **out)
{
    char target[4096];
    int status = pst_sys->readlink(path, target, sizeof target);
    if (status < 0)
        return status;
    size_t length = strlen(path), tail = length;
    while (tail > 0 && path[tail - 1] != '/')
        tail--;
    char *next = target[0] == '/' ? pst_heap_strdup(target) : pst_heap_printf("%.*s%s", (int)tail, path, target);
    if (next == NULL)
        return -ENOMEM;
    *out = next;
    return 0;
}

int pst_file_follow(const char *path, char **out, pst_error *err)
{
    enum { MOST_LINKS = 40 }; /* as the kernel has it */
    char *at = pst_heap_strdup(path), *next;
    if (at == NULL)
        return pst_fail_memory(err, "a path", strlen(path));
    int status = 0;
    for (int links = 0; status >= 0; links++) {
        status = links < MOST_LINKS ? follow_once(at, &next) : -ELOOP;
        if (status >= 0) {
            pst_heap_free(at);
            at = next;
        }
    }
    if (status == -EINVAL || status == -ENOENT || status == -ENOTDIR) { /* no link, or nothing */
        *out = at;
        return 0;
    }
    pst_heap_free(at);
    return fail_code(err, status, path, "find the place of");
}

int pst_file_find(const char *path, pst_error *err)
{
    struct statx info;
    int status = stat_path(path, &info);
    if (status == -ENOENT || status == -ENOTDIR)
        return 0;
    return status < 0 ? fail_code(err, status, path, "examine") : 1;
}

bool pst_file_exists(const char *path)
{
    struct statx info;
    return stat_path(path, &info) >= 0;
}

bool pst_file_is_folder(const char *path)
{
    struct statx info;
    return stat_path(path, &info) >= 0 && S_ISDIR(info.stx_mode);
}

bool pst_file_is_link(const char *path)
{
    struct statx info;
    return pst_sys->statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, STATX_TYPE, &info) >= 0 && S_ISLNK(info.stx_mode);
}

char *pst_file_parent(const char *path)
{
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/')
        length--;
    while (length > 0 && path[length - 1] != '/')
        length--;
    if (length == 0)
        return pst_heap_strdup(".");
    while (length > 1 && path[length - 1] == '/')
        length--;
    return pst_heap_strndup(path, length);
}

int pst_file_free_space(const char *path, uint64_t *out, pst_error *err)
{
    char *at = pst_heap_strdup(path[0] != '\0' ? path : ".");
    if (at == NULL)
        return pst_fail_memory(err, path, strlen(path));
    struct statvfs info;
    int status;
    /* What does not exist yet will lie where its nearest existing parent lies. */
    while ((status = pst_sys->statvfs(at, &info)) == -ENOENT && strcmp(at, ".") != 0 && strcmp(at, "/") != 0) {
        char *up = pst_file_parent(at);
        pst_heap_free(at);
        at = up;
        if (at == NULL)
            return pst_fail_memory(err, path, strlen(path));
    }
    pst_heap_free(at);
    if (status < 0)
        return fail_code(err, status, path, "find the free space of");
    *out = (uint64_t)info.f_bavail * info.f_frsize;
    return 0;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static bool ends_in(const char *name, const char *suffix)
{
    size_t length = strlen(name), tail = suffix != NULL ? strlen(suffix) : 0;
    return length >= tail && (tail == 0 || strcmp(name + length - tail, suffix) == 0);
}

/* Appends the next matching name; 1 at the end of the folder. */
static int list_next(DIR *folder, const char *suffix, char ***names, size_t *count, size_t *capacity)
{
    struct dirent *entry;
    PST_TRY(pst_sys->readdir(folder, &entry));
    if (entry == NULL)
        return 1;
    if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0 || !ends_in(entry->d_name, suffix))
        return 0;
    if (*count == *capacity) {
        size_t grown = *capacity * 2 + 16;
        char **more = pst_heap_reallocarray(*names, grown, sizeof **names);
        if (more == NULL)
            return -ENOMEM;
        *names = more;
        *capacity = grown;
    }
    char *copy = pst_heap_strdup(entry->d_name);
    if (copy == NULL)
        return -ENOMEM;
    (*names)[(*count)++] = copy;
    return 0;
}

int pst_file_list(const char *folder_path, const char *suffix, char ***out, size_t *out_count, pst_error *err)
{
    DIR *folder;
    int status = pst_sys->opendir(folder_path, &folder);
    if (status < 0)
        return fail_code(err, status, folder_path, "open the folder");
    char **names = NULL;
    size_t count = 0, capacity = 0;
    while ((status = list_next(folder, suffix, &names, &count, &capacity)) == 0)
        ;
    pst_sys->closedir(folder);
    if (status < 0) {
        pst_file_list_free(names, count);
        return fail_code(err, status, folder_path, "list the folder");
    }
    if (count > 1)
        qsort(names, count, sizeof *names, compare_names);
    *out = names;
    *out_count = count;
    return 0;
}

void pst_file_list_free(char **names, size_t count)
{
    for (size_t i = 0; i < count; i++)
        pst_heap_free(names[i]);
    pst_heap_free(names);
}

/* Creates one level; an existing folder is fine, also one that another process makes meanwhile. */
static int create_level(const char *path, const char *whole, pst_error *err)
{
    int status = pst_sys->mkdir(path, 0777);
    if (status >= 0)
        return 0;
    if (pst_file_is_folder(path))
        return 0;
    return fail_code(err, status == -EEXIST ? -ENOTDIR : status, whole, "create the folder");
}

static int create_missing(const char *path, const char *whole, bool durable, pst_error *err)
{
    if (pst_file_is_folder(path))
        return 0;
    PST_TRY(create_level(path, whole, err));
    return durable ? pst_folder_sync_parent(path, err) : 0;
}

static int create_all(const char *path, bool durable, pst_error *err)
{
    if (pst_file_is_folder(path))
        return 0;
    char *copy = pst_heap_strdup(path);
    if (copy == NULL)
        return pst_fail_memory(err, path, strlen(path));
    int status = 0;
    for (char *slash = copy + 1; *copy != '\0' && status >= 0 && (slash = strchr(slash, '/')) != NULL; slash++) {
        *slash = '\0';
        status = create_missing(copy, path, durable, err);
        *slash = '/';
    }
    if (status >= 0)
        status = create_missing(copy, path, durable, err);
    pst_heap_free(copy);
    return status;
}

int pst_folder_create(const char *path, pst_error *err)
{
    return create_all(path, false, err);
}

int pst_folder_create_durable(const char *path, pst_error *err)
{
    return create_all(path, true, err);
}

int pst_file_remove(const char *path, pst_error *err)
{
    int status = pst_sys->unlink(path);
    return status < 0 && status != -ENOENT ? fail_code(err, status, path, "remove") : 0;
}

int pst_folder_remove(const char *path, pst_error *err)
{
    int status = pst_sys->rmdir(path);
    return status < 0 && status != -ENOENT ? fail_code(err, status, path, "remove the folder") : 0;
}

/* Errors name `shown`. */
static int sync_folder(const char *path, const char *shown, pst_error *err)
{
    int fd = open_retry(path, O_RDONLY | O_DIRECTORY);
    if (fd < 0)
        return fail_code(err, fd, shown, "open the folder");
    int status = pst_sys->fsync(fd);
    pst_sys->close(fd);
    /* File systems that cannot sync a folder (some network ones) say EINVAL: nothing better can be done
     * there. */
    return status < 0 && status != -EINVAL ? fail_code(err, status, shown, "sync the folder") : 0;
}

int pst_folder_sync(const char *path, pst_error *err)
{
    return sync_folder(path, path, err);
}

int pst_folder_sync_parent(const char *path, pst_error *err)
{
    char *parent = pst_file_parent(path);
    if (parent == NULL)
        return pst_fail_memory(err, path, strlen(path));
    int status = pst_folder_sync(parent, err);
    pst_heap_free(parent);
    return status;
}

char *pst_file_temporary_name(const char *path)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-";
    unsigned char random[12];
    if (pst_sys->getrandom(random, sizeof random) < 0) {
        /* No random source: O_EXCL still protects, the name is merely guessable. */
        uint64_t mix = pst_clock_ns() ^ (uint64_t)getpid() << 40;
        for (size_t i = 0; i < sizeof random; i++) {
            mix = mix * 6364136223846793005u + 1442695040888963407u;
            random[i] = (unsigned char)(mix >> 33);
        }
    }
    char suffix[sizeof random + 1];
    for (size_t i = 0; i < sizeof random; i++)
        suffix[i] = letters[random[i] & 63];
    suffix[sizeof random] = '\0';
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/')
        length--;
    return pst_heap_printf("%.*s.tmp-%s", (int)length, path, suffix);
}

/* Creates `temporary` with the data, synced, and file_bytes long (not less than `bytes`). Removes it on failure. */
static int write_temporary(const char *temporary, const char *path, const void *data, size_t bytes, uint64_t file_bytes,
                           pst_error *err)
{
    int fd = open_retry(temporary, O_WRONLY | O_CREAT | O_EXCL);
    if (fd < 0)
        return fail_code(err, fd, path, "create");
    const char *verb = "write";
    ssize_t put = pst_sys_write_all(fd, data, bytes, 0);
    int status = put < 0 ? (int)put : 0;
    if (status >= 0 && file_bytes > bytes) {
        verb = "make a file of that length of";
        status = pst_sys->ftruncate(fd, file_bytes);
    }
    if (status >= 0) {
        verb = "sync";
        status = pst_sys->fdatasync(fd);
    }
    int closed = pst_sys->close(fd);
    if (status >= 0 && closed < 0) {
        verb = "close";
        status = closed;
    }
    if (status < 0) {
        pst_sys->unlink(temporary);
        return fail_code(err, status, path, verb);
    }
    return 0;
}

int pst_file_publish(const char *path, const void *data, size_t bytes, pst_error *err)
{
    return pst_file_publish_sparse(path, data, bytes, bytes, err);
}

int pst_file_publish_sparse(const char *path, const void *data, size_t bytes, uint64_t file_bytes, pst_error *err)
{
    char *temporary = pst_file_temporary_name(path);
    if (temporary == NULL)
        return pst_fail_memory(err, path, strlen(path) + 32);
    int status = write_temporary(temporary, path, data, bytes, file_bytes, err);
    if (status >= 0) {
        status = pst_sys->rename(temporary, path);
        if (status < 0) {
            fail_code(err, status, path, "rename the finished file to");
            pst_sys->unlink(temporary);
        }
    }
    pst_heap_free(temporary);
    PST_TRY(status);
    return pst_folder_sync_parent(path, err);
}

/* Errors name `shown`. */
static int sync_file(const char *path, const char *shown, pst_error *err)
{
    int fd = open_retry(path, O_RDONLY);
    if (fd < 0)
        return fail_code(err, fd, shown, "open");
    int status = pst_sys->fdatasync(fd);
    pst_sys->close(fd);
    return status < 0 ? fail_code(err, status, shown, "sync") : 0;
}

int pst_file_sync(const char *path, pst_error *err)
{
    return sync_file(path, path, err);
}

int pst_file_rename(const char *temporary, const char *path, pst_error *err)
{
    int status = pst_sys->rename(temporary, path);
    return status < 0 ? fail_code(err, status, path, "rename the finished file to") : 0;
}

int pst_file_publish_rename(const char *temporary, const char *path, pst_error *err)
{
    PST_TRY(sync_file(temporary, path, err));
    PST_TRY(pst_file_rename(temporary, path, err));
    return pst_folder_sync_parent(path, err);
}

int pst_folder_move(const char *from, const char *to, pst_error *err)
{
    int status = pst_sys->rename_new(from, to);
    if (status == -EINVAL || status == -ENOSYS) {
        /* No RENAME_NOREPLACE on this file system: look first; a folder made in between is replaced only if
         * empty. */
        status = pst_file_exists(to) ? -EEXIST : pst_sys->rename(from, to);
    }
    return status < 0 ? fail_code(err, status, to, "rename the finished folder to") : 0;
}

int pst_folder_publish(const char *temporary, const char *path, pst_error *err)
{
    PST_TRY(sync_folder(temporary, path, err));
    PST_TRY(pst_folder_move(temporary, path, err));
    return pst_folder_sync_parent(path, err);
}
