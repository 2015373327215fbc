/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The calls of the crash table. One lock is held over a call that changes something and over what the model makes of it,
 * so that the failure of the power comes before or after a call. Reads take no lock until then.
 *
 * Whether a call concerns the watched folder is asked of the file system, by inode: descriptors may be duplicated or
 * come from elsewhere, and paths may be relative or lead through links. Calls that fail by themselves change nothing.
 */
#include "os/sys_crash.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/error.h"
#include "base/heap.h"
#include "os/sys_crash_model.h"

enum { IDLE, WATCHING, FAILED, RECOVERED };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static atomic_int phase; /* changed under the lock */
static int broken;       /* the model could not follow: why */
static char *root_path;  /* owned */
static uint64_t root_device;
static int64_t steps, syncs, crash_at = -1, crash_at_sync = -1;
static bool happened;

/* ---- the failure ---- */

static void note(int status)
{
    if (status < 0 && broken == 0)
        broken = status;
}

static void fail_power(void)
{
    for (crash_node *node = crash_node_first(); node != NULL; node = node->next) {
        if (node->kind == CRASH_FILE)
            note(crash_file_freeze(node));
    }
    happened = true;
    atomic_store(&phase, FAILED);
}

/* Counts a step; true when it is the one that is struck. The caller lets the power fail. */
static bool is_struck(bool sync)
{
    bool struck = steps == crash_at || (sync && syncs == crash_at_sync);
    steps++;
    syncs += sync;
    return struck;
}

/* Takes the lock when there is something to watch over; false: the call passes through. */
static bool enter(void)
{
    int now = atomic_load(&phase);
    if (now != WATCHING && now != FAILED)
        return false;
    pthread_mutex_lock(&lock);
    return true;
}

static int leave(int status)
{
    pthread_mutex_unlock(&lock);
    return status;
}

/* For a step that has no effect when it is struck: 0, or -EIO when it is, or the power has failed before. */
static int take_step(bool sync)
{
    if (atomic_load(&phase) == FAILED)
        return -EIO;
    if (is_struck(sync)) {
        fail_power();
        return -EIO;
    }
    return 0;
}

/* ---- what a call is about; the lock is held ---- */

static crash_node *node_of_fd(int fd)
{
    struct stat info;
    return fstat(fd, &info) == 0 ? crash_node_find(&info) : NULL;
}

static crash_node *node_of_path(const char *path, bool follow)
{
    struct stat info;
    return (follow ? stat(path, &info) : lstat(path, &info)) == 0 ? crash_node_find(&info) : NULL;
}

/* The folder that a path's last name lies in, and that name. */
typedef struct place {
    crash_node *folder; /* NULL: not below the watched one */
    char text[PATH_MAX];
    const char *name; /* inside text */
} place;

static void split(const char *path, place *out, const char **parent)
{
    size_t bytes = strlen(path);
    *parent = ".";
    if (bytes >= sizeof out->text)
        bytes = 0; /* the kernel refuses it */
    memcpy(out->text, path, bytes);
    while (bytes > 1 && path[bytes - 1] == '/')
        bytes--;
    out->text[bytes] = '\0';
    out->name = out->text;
    char *slash = strrchr(out->text, '/');
    if (slash == NULL)
        return;
    out->name = slash + 1;
    *parent = slash == out->text ? "/" : out->text;
    *slash = '\0';
}

static void locate(const char *path, place *out)
{
    const char *parent;
    split(path, out, &parent);
    out->folder = node_of_path(parent, true);
}

/* After the failure: whether a path leads to something below the folder, or would. */
static bool is_below(const char *path)
{
    place at;
    const char *parent;
    struct stat info;
    if (node_of_path(path, true) != NULL)
        return true;
    split(path, &at, &parent);
    for (;;) {
        if (stat(parent, &info) == 0)
            return crash_node_find(&info) != NULL;
        place up;
        const char *above;
        split(parent, &up, &above);
        if (strcmp(above, parent) == 0 || strlen(above) >= strlen(parent))
            return false;
        memmove(at.text, above, strlen(above) + 1);
        parent = at.text;
    }
}

/* Whether the power has failed for a path or for a descriptor. For calls that change nothing; without the lock. */
static bool is_dark_path(const char *path)
{
    if (atomic_load(&phase) != FAILED)
        return false;
    pthread_mutex_lock(&lock);
    bool below = atomic_load(&phase) == FAILED && is_below(path);
    pthread_mutex_unlock(&lock);
    return below;
}

static bool is_dark_fd(int fd)
{
    struct stat info;
    if (atomic_load(&phase) != FAILED || fstat(fd, &info) < 0)
        return false;
    pthread_mutex_lock(&lock);
    /* A file without a name that nothing leads to any more is no longer known, but it was on the same device. */
    bool dark = atomic_load(&phase) == FAILED &&
                (crash_node_find(&info) != NULL || (info.st_nlink == 0 && info.st_dev == root_device));
    pthread_mutex_unlock(&lock);
    return dark;
}

/* ---- opening ---- */

/* A new file or folder is in the folder now. */
static int add_new(const place *at, const struct stat *info)
{
    crash_node *node = crash_node_add(S_ISDIR(info->st_mode) ? CRASH_FOLDER : CRASH_FILE, info);
    return node != NULL ? crash_folder_add(at->folder, at->name, node) : -ENOMEM;
}

/* The length becomes `bytes`; fd is any descriptor of the file. */
static int set_length(crash_node *file, int fd, uint64_t bytes)
{
    uint64_t before = file->latest_bytes > file->durable_bytes ? file->latest_bytes : file->durable_bytes;
    if (bytes < before) {
        PST_TRY(crash_node_pin_fd(file, fd));
        PST_TRY(crash_file_mark(file, bytes, before - bytes, true));
    }
    crash_file_set_length(file, bytes);
    return 0;
}

static int open_locked(const char *path, int flags, mode_t mode)
{
    place at;
    struct stat info;
    locate(path, &at);
    bool there = lstat(path, &info) == 0;
    bool creates = at.folder != NULL && (flags & O_CREAT) != 0 && !there;
    crash_node *node = there ? node_of_path(path, true) : NULL;
    bool truncates = node != NULL && node->kind == CRASH_FILE && (flags & O_TRUNC) != 0;
    if (creates || truncates)
        PST_TRY(take_step(false));
    int fd = pst_sys_real.open(path, flags, mode);
    if (fd < 0 || (!creates && !truncates))
        return fd;
    int status;
    if (truncates)
        status = set_length(node, fd, 0);
    else
        status = fstat(fd, &info) < 0 ? -errno : add_new(&at, &info);
    note(status);
    return fd;
}

static int crash_open(const char *path, int flags, mode_t mode)
{
    if (is_dark_path(path))
        return -EIO;
    if (!enter())
        return pst_sys_real.open(path, flags, mode);
    return leave(open_locked(path, flags, mode));
}

static int crash_close(int fd)
{
    bool dark = is_dark_fd(fd);
    int status = pst_sys_real.close(fd);
    return dark ? -EIO : status;
}

static int crash_mkdir(const char *path, mode_t mode)
{
    if (!enter())
        return pst_sys_real.mkdir(path, mode);
    place at;
    struct stat info;
    locate(path, &at);
    int status = at.folder != NULL ? take_step(false) : 0;
    if (status >= 0)
        status = pst_sys_real.mkdir(path, mode);
    if (status >= 0 && at.folder != NULL)
        note(lstat(path, &info) < 0 ? -errno : add_new(&at, &info));
    return leave(status);
}

/* ---- names ---- */

/* Keeps what is about to lose a name. Where there are no descriptors for that, its inode number may come back. */
static void keep(crash_node *node, const char *path)
{
    int status = node != NULL ? crash_node_pin_path(node, path) : 0;
    if (status != -EMFILE && status != -ENFILE)
        note(status);
}

static int remove_name(const char *path, int (*call)(const char *path))
{
    if (!enter())
        return call(path);
    place at;
    locate(path, &at);
    crash_node *node = at.folder != NULL ? node_of_path(path, false) : NULL;
    int status = at.folder != NULL ? take_step(false) : 0;
    if (status >= 0 && node != NULL && node->names <= 1)
        keep(node, path);
    if (status >= 0)
        status = call(path);
    if (status >= 0 && node != NULL)
        note(crash_folder_remove(at.folder, at.name));
    return leave(status);
}

static int crash_unlink(const char *path)
{
    return remove_name(path, pst_sys_real.unlink);
}

static int crash_rmdir(const char *path)
{
    return remove_name(path, pst_sys_real.rmdir);
}

static int move(const char *from, const char *to, int (*call)(const char *from, const char *to))
{
    place old_place, new_place;
    locate(from, &old_place);
    locate(to, &new_place);
    if (old_place.folder == NULL && new_place.folder == NULL)
        return call(from, to);
    PST_TRY(take_step(false));
    if (old_place.folder == NULL || new_place.folder == NULL)
        return -EXDEV; /* across the edge of what is watched */
    crash_node *node = node_of_path(from, false), *replaced = node_of_path(to, false);
    if (replaced != NULL && replaced != node)
        keep(replaced, to);
    PST_TRY(call(from, to));
    if (node == NULL)
        note(-ESTALE);         /* it came into being behind the table's back */
    else if (node != replaced) /* else they are names of one file, and nothing has happened */
        note(crash_folder_move(old_place.folder, old_place.name, new_place.folder, new_place.name, node));
    return 0;
}

static int crash_rename(const char *from, const char *to)
{
    return enter() ? leave(move(from, to, pst_sys_real.rename)) : pst_sys_real.rename(from, to);
}

static int crash_rename_new(const char *from, const char *to)
{
    return enter() ? leave(move(from, to, pst_sys_real.rename_new)) : pst_sys_real.rename_new(from, to);
}

static int exchange(const char *a, const char *b)
{
    place first, second;
    locate(a, &first);
    locate(b, &second);
    if (first.folder == NULL && second.folder == NULL)
        return pst_sys_real.rename_exchange(a, b);
    PST_TRY(take_step(false));
    if (first.folder != second.folder)
        return -EXDEV; /* nobody needs that; the model would have to follow it */
    crash_node *x = node_of_path(a, false), *y = node_of_path(b, false);
    PST_TRY(pst_sys_real.rename_exchange(a, b));
    if (x == NULL || y == NULL)
        note(-ESTALE); /* they came into being behind the table's back */
    else if (x != y)
        note(crash_folder_exchange(first.folder, first.name, second.name));
    return 0;
}

static int crash_rename_exchange(const char *a, const char *b)
{
    return enter() ? leave(exchange(a, b)) : pst_sys_real.rename_exchange(a, b);
}

/* ---- contents ---- */

/* After a write, also one that failed: what it has done then is not known. */
static void note_write(crash_node *file, uint64_t offset, uint64_t bytes, int64_t result)
{
    note(crash_file_mark(file, offset, bytes, false));
    if (result > 0 && offset + (uint64_t)result > file->latest_bytes)
        crash_file_set_length(file, offset + (uint64_t)result);
}

static ssize_t crash_pread(int fd, void *buffer, size_t bytes, uint64_t offset)
{
    return is_dark_fd(fd) ? -EIO : pst_sys_real.pread(fd, buffer, bytes, offset);
}

/* A write that is struck is carried out first: any of its sectors may have reached the drive. */
static ssize_t crash_pwrite(int fd, const void *buffer, size_t bytes, uint64_t offset)
{
    if (is_dark_fd(fd))
        return -EIO;
    if (!enter())
        return pst_sys_real.pwrite(fd, buffer, bytes, offset);
    crash_node *file = node_of_fd(fd);
    if (file != NULL && file->kind != CRASH_FILE)
        file = NULL;
    bool failed = atomic_load(&phase) == FAILED, struck = false;
    ssize_t result = file == NULL ? 0 : failed ? -EIO : crash_node_pin_fd(file, fd);
    if (result >= 0) {
        struck = file != NULL && is_struck(false);
        result = pst_sys_real.pwrite(fd, buffer, bytes, offset);
        if (file != NULL)
            note_write(file, offset, bytes, result);
    }
    if (struck) {
        fail_power();
        result = -EIO;
    }
    leave(0);
    return result;
}

/* What a ring has done: it is in the live file already. */
static int64_t crash_async_result(int fd, bool write, const void *address, size_t bytes, uint64_t offset,
                                  int64_t result)
{
    (void)address;
    if (is_dark_fd(fd))
        return -EIO;
    if (!write || !enter())
        return result;
    crash_node *node = node_of_fd(fd);
    if (node == NULL || node->kind != CRASH_FILE) {
        leave(0);
        return result;
    }
    if (atomic_load(&phase) == FAILED) {
        leave(0);
        return -EIO;
    }
    bool struck = is_struck(false);
    int status = crash_node_pin_fd(node, fd);
    note(status);
    if (status >= 0)
        note_write(node, offset, bytes, result);
    if (struck)
        fail_power();
    leave(0);
    return struck ? -EIO : status < 0 ? status : result;
}

static int sync_locked(int fd, int (*call)(int fd))
{
    crash_node *node = node_of_fd(fd);
    if (node == NULL)
        return call(fd);
    PST_TRY(take_step(true));
    int status = node->kind == CRASH_FOLDER ? crash_folder_sync(node) : crash_file_sync(node);
    note(status);
    return status;
}

static int crash_fdatasync(int fd)
{
    return is_dark_fd(fd) ? -EIO
           : enter()      ? leave(sync_locked(fd, pst_sys_real.fdatasync))
                          : pst_sys_real.fdatasync(fd);
}

static int crash_fsync(int fd)
{
    return is_dark_fd(fd) ? -EIO : enter() ? leave(sync_locked(fd, pst_sys_real.fsync)) : pst_sys_real.fsync(fd);
}

static int truncate_locked(int fd, uint64_t bytes)
{
    crash_node *node = node_of_fd(fd);
    if (node == NULL || node->kind != CRASH_FILE)
        return pst_sys_real.ftruncate(fd, bytes);
    PST_TRY(take_step(false));
    PST_TRY(pst_sys_real.ftruncate(fd, bytes));
    note(set_length(node, fd, bytes));
    return 0;
}

static int crash_ftruncate(int fd, uint64_t bytes)
{
    if (is_dark_fd(fd))
        return -EIO;
    return enter() ? leave(truncate_locked(fd, bytes)) : pst_sys_real.ftruncate(fd, bytes);
}

static int note_allocation(crash_node *file, int fd, int mode, uint64_t offset, uint64_t bytes)
{
    uint64_t length = file->latest_bytes, known = length > file->durable_bytes ? length : file->durable_bytes;
    PST_TRY(crash_node_pin_fd(file, fd));
    if ((mode & (FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_INSERT_RANGE)) != 0) {
        bool insert = (mode & FALLOC_FL_INSERT_RANGE) != 0;
        if (offset < known)
            PST_TRY(crash_file_mark(file, offset, known - offset + (insert ? bytes : 0), false));
        crash_file_set_length(file, insert ? length + bytes : length - bytes);
        return 0;
    }
    if ((mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)) != 0)
        PST_TRY(crash_file_mark(file, offset, bytes, true));
    if ((mode & FALLOC_FL_KEEP_SIZE) == 0 && offset + bytes > length)
        crash_file_set_length(file, offset + bytes);
    return 0;
}

static int allocate_locked(int fd, int mode, uint64_t offset, uint64_t bytes)
{
    crash_node *node = node_of_fd(fd);
    if (node == NULL || node->kind != CRASH_FILE)
        return pst_sys_real.fallocate(fd, mode, offset, bytes);
    PST_TRY(take_step(false));
    PST_TRY(pst_sys_real.fallocate(fd, mode, offset, bytes));
    note(note_allocation(node, fd, mode, offset, bytes));
    return 0;
}

static int crash_fallocate(int fd, int mode, uint64_t offset, uint64_t bytes)
{
    if (is_dark_fd(fd))
        return -EIO;
    return enter() ? leave(allocate_locked(fd, mode, offset, bytes)) : pst_sys_real.fallocate(fd, mode, offset, bytes);
}

/* ---- calls that change nothing ---- */

static int crash_statx(int folder_fd, const char *path, int flags, unsigned mask, struct statx *out)
{
    bool by_fd = path[0] == '\0' && (flags & AT_EMPTY_PATH) != 0;
    if (by_fd ? is_dark_fd(folder_fd) : is_dark_path(path))
        return -EIO;
    return pst_sys_real.statx(folder_fd, path, flags, mask, out);
}

static int crash_readdir(DIR *folder, struct dirent **out)
{
    return is_dark_fd(dirfd(folder)) ? -EIO : pst_sys_real.readdir(folder, out);
}

/* Calls of the folder that fail after the power has, and otherwise pass. */
#define PASS_UNLESS(dark, name, parameters, arguments)                                                                 \
    static int crash_##name parameters                                                                                 \
    {                                                                                                                  \
        return dark ? -EIO : pst_sys_real.name arguments;                                                              \
    }
PASS_UNLESS(is_dark_path(path), statvfs, (const char *path, struct statvfs *out), (path, out))
PASS_UNLESS(is_dark_path(path), opendir, (const char *path, DIR **out), (path, out))
PASS_UNLESS(is_dark_path(path), readlink, (const char *path, char *out, size_t bytes), (path, out, bytes))
PASS_UNLESS(is_dark_fd(fd), block_device, (int fd, uint64_t *bytes, uint32_t *sector), (fd, bytes, sector))
PASS_UNLESS(is_dark_fd(fd), flock, (int fd, int operation), (fd, operation))

/* Calls that have nothing to do with files. */
#define PASS(type, name, parameters, arguments)                                                                        \
    static type crash_##name parameters                                                                                \
    {                                                                                                                  \
        return pst_sys_real.name arguments;                                                                            \
    }
PASS(int, open_flags, (int fd), (fd))
PASS(int, dup, (int fd), (fd))
PASS(int, closedir, (DIR * folder), (folder))
PASS(int, mmap, (size_t bytes, void **out), (bytes, out))
PASS(int, mmap_huge, (size_t bytes, void **out), (bytes, out))
PASS(int, munmap, (void *memory, size_t bytes), (memory, bytes))
PASS(int, populate, (void *memory, size_t bytes), (memory, bytes))
PASS(int, mprotect, (void *memory, size_t bytes, int protection), (memory, bytes, protection))
PASS(int, mlock, (void *memory, size_t bytes), (memory, bytes))
PASS(int, munlock, (void *memory, size_t bytes), (memory, bytes))
PASS(int, prefer_node, (void *memory, size_t bytes, int node), (memory, bytes, node))
PASS(ssize_t, read, (int fd, void *buffer, size_t bytes), (fd, buffer, bytes))
PASS(int, getrandom, (void *buffer, size_t bytes), (buffer, bytes))
PASS(int, eventfd, (void), ())
PASS(int, eventfd_write, (int fd), (fd))
PASS(int, nice_thread, (int nice), (nice))
PASS(uint32_t, page_bytes, (void), ())
PASS(int, uring_init, (unsigned n, struct io_uring *ring, struct io_uring_params *p), (n, ring, p))
PASS(int, uring_enter, (struct io_uring * ring, unsigned wait_for, uint64_t limit_ns), (ring, wait_for, limit_ns))
PASS(int, uring_files_sparse, (struct io_uring * ring, unsigned count), (ring, count))
PASS(int, uring_files_update, (struct io_uring * ring, unsigned slot, int fd), (ring, slot, fd))
PASS(int, uring_buffers_sparse, (struct io_uring * ring, unsigned count), (ring, count))
PASS(int, uring_buffers_update, (struct io_uring * r, unsigned slot, const struct iovec *memory), (r, slot, memory))
PASS(int, uring_has_read_write, (struct io_uring * ring), (ring))
PASS(int, aio_setup, (unsigned entries, io_context_t *out), (entries, out))
PASS(int, aio_destroy, (io_context_t context), (context))
PASS(int, aio_submit, (io_context_t context, long count, struct iocb **requests), (context, count, requests))
PASS(int, aio_getevents, (io_context_t context, long min, long max, struct io_event *events, struct timespec *timeout),
     (context, min, max, events, timeout))

static void crash_sleep_ns(uint64_t ns)
{
    pst_sys_real.sleep_ns(ns);
}

static void crash_uring_exit(struct io_uring *ring)
{
    pst_sys_real.uring_exit(ring);
}

#define ENTRY(name) .name = crash_##name
const pst_sys_table pst_sys_crash = {
    ENTRY(open),
    ENTRY(close),
    ENTRY(read),
    ENTRY(pread),
    ENTRY(pwrite),
    ENTRY(fdatasync),
    ENTRY(fsync),
    ENTRY(ftruncate),
    ENTRY(open_flags),
    ENTRY(dup),
    ENTRY(readlink),
    ENTRY(block_device),
    ENTRY(fallocate),
    ENTRY(statx),
    ENTRY(statvfs),
    ENTRY(rename),
    ENTRY(rename_new),
    ENTRY(rename_exchange),
    ENTRY(unlink),
    ENTRY(mkdir),
    ENTRY(rmdir),
    ENTRY(opendir),
    ENTRY(readdir),
    ENTRY(closedir),
    ENTRY(mmap),
    ENTRY(mmap_huge),
    ENTRY(munmap),
    ENTRY(populate),
    ENTRY(mprotect),
    ENTRY(mlock),
    ENTRY(munlock),
    ENTRY(prefer_node),
    ENTRY(flock),
    ENTRY(getrandom),
    ENTRY(eventfd),
    ENTRY(eventfd_write),
    ENTRY(sleep_ns),
    ENTRY(nice_thread),
    ENTRY(page_bytes),
    ENTRY(uring_init),
    ENTRY(uring_exit),
    ENTRY(uring_enter),
    ENTRY(uring_files_sparse),
    ENTRY(uring_files_update),
    ENTRY(uring_buffers_sparse),
    ENTRY(uring_buffers_update),
    ENTRY(uring_has_read_write),
    ENTRY(aio_setup),
    ENTRY(aio_destroy),
    ENTRY(aio_submit),
    ENTRY(aio_getevents),
    ENTRY(async_result),
};

/* ---- for tests ---- */

static void forget_locked(void)
{
    atomic_store(&phase, IDLE);
    crash_forget_nodes();
    pst_heap_free(root_path);
    root_path = NULL;
}

int pst_crash_watch(const char *folder, pst_error *err)
{
    char whole[PATH_MAX];
    struct stat info;
    if (atomic_load(&phase) != IDLE)
        return pst_fail(err, PST_E_USAGE, folder, "another folder is watched for a crash already");
    if (realpath(folder, whole) == NULL || stat(whole, &info) < 0)
        return pst_fail(err, -errno, folder, "cannot watch: %s", pst_strerror(-errno));
    pthread_mutex_lock(&lock);
    steps = syncs = 0;
    crash_at = crash_at_sync = -1;
    broken = 0;
    happened = false;
    root_device = info.st_dev;
    root_path = pst_heap_strdup(whole);
    crash_node *root = NULL;
    int status = root_path != NULL ? crash_scan(whole, &root, err) : pst_fail_memory(err, folder, strlen(whole));
    crash_set_root(root);
    if (status < 0)
        forget_locked();
    else
        atomic_store(&phase, WATCHING);
    pthread_mutex_unlock(&lock);
    return status;
}

void pst_crash_forget(void)
{
    pthread_mutex_lock(&lock);
    forget_locked();
    pthread_mutex_unlock(&lock);
}

void pst_crash_at(int64_t step)
{
    pthread_mutex_lock(&lock);
    crash_at = step;
    pthread_mutex_unlock(&lock);
}

void pst_crash_at_sync(int64_t sync)
{
    pthread_mutex_lock(&lock);
    crash_at_sync = sync;
    pthread_mutex_unlock(&lock);
}

static int64_t locked_value(const int64_t *value)
{
    pthread_mutex_lock(&lock);
    int64_t now = *value;
    pthread_mutex_unlock(&lock);
    return now;
}

int64_t pst_crash_steps(void)
{
    return locked_value(&steps);
}

int64_t pst_crash_syncs(void)
{
    return locked_value(&syncs);
}

bool pst_crash_happened(void)
{
    pthread_mutex_lock(&lock);
    bool now = happened;
    pthread_mutex_unlock(&lock);
    return now;
}

int pst_crash_recover(pst_crash_loss loss, uint64_t seed, pst_error *err)
{
    int status;
    pthread_mutex_lock(&lock);
    if (atomic_load(&phase) == WATCHING)
        fail_power();
    if (atomic_load(&phase) == IDLE)
        status = pst_fail(err, PST_E_USAGE, NULL, "no folder is watched for a crash");
    else if (broken < 0)
        status = pst_fail(err, broken, root_path, "what is durable could not be followed: %s", pst_strerror(broken));
    else
        status = crash_rebuild(root_path, crash_root(), loss, seed, err);
    if (status >= 0)
        atomic_store(&phase, RECOVERED);
    pthread_mutex_unlock(&lock);
    return status;
}
