/* SPDX-License-Identifier: Apache-2.0 */
/* The real system calls. Calls that a signal can interrupt without effect are repeated by their callers. */
#include "os/sys.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/fs.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* -1 with errno becomes -errno. */
static int checked(int result)
{
    return result < 0 ? -errno : result;
}

static int real_open(const char *path, int flags, mode_t mode)
{
    return checked(open(path, flags | O_CLOEXEC, mode));
}

static int real_close(int fd)
{
    return checked(close(fd));
}

static ssize_t real_read(int fd, void *buffer, size_t bytes)
{
    ssize_t got = read(fd, buffer, bytes);
    return got < 0 ? -errno : got;
}

static ssize_t real_pread(int fd, void *buffer, size_t bytes, uint64_t offset)
{
    ssize_t got = pread(fd, buffer, bytes, (off_t)offset);
    return got < 0 ? -errno : got;
}

static ssize_t real_pwrite(int fd, const void *buffer, size_t bytes, uint64_t offset)
{
    ssize_t put = pwrite(fd, buffer, bytes, (off_t)offset);
    return put < 0 ? -errno : put;
}

static int real_fdatasync(int fd)
{
    return checked(fdatasync(fd));
}

static int real_fsync(int fd)
{
    return checked(fsync(fd));
}

static int real_ftruncate(int fd, uint64_t bytes)
{
    return checked(ftruncate(fd, (off_t)bytes));
}

static int real_open_flags(int fd)
{
    return checked(fcntl(fd, F_GETFL));
}

static int real_dup(int fd)
{
    return checked(fcntl(fd, F_DUPFD_CLOEXEC, 0));
}

static int real_readlink(const char *path, char *out, size_t out_bytes)
{
    ssize_t length = readlink(path, out, out_bytes);
    if (length < 0)
        return -errno;
    if ((size_t)length >= out_bytes)
        return -ENAMETOOLONG;
    out[length] = '\0';
    return 0;
}

static int real_block_device(int fd, uint64_t *bytes, uint32_t *sector_bytes)
{
    int sector;
    if (ioctl(fd, BLKGETSIZE64, bytes) < 0 || ioctl(fd, BLKSSZGET, &sector) < 0)
        return -errno;
    *sector_bytes = (uint32_t)sector;
    return 0;
}

static int real_fallocate(int fd, int mode, uint64_t offset, uint64_t bytes)
{
    return checked(fallocate(fd, mode, (off_t)offset, (off_t)bytes));
}

static int real_statx(int folder_fd, const char *path, int flags, unsigned mask, struct statx *out)
{
    return checked(statx(folder_fd, path, flags, mask, out));
}

static int real_statvfs(const char *path, struct statvfs *out)
{
    return checked(statvfs(path, out));
}

static int real_rename(const char *from, const char *to)
{
    return checked(rename(from, to));
}

static int real_rename_new(const char *from, const char *to)
{
    return checked(renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE));
}

static int real_rename_exchange(const char *a, const char *b)
{
    return checked(renameat2(AT_FDCWD, a, AT_FDCWD, b, RENAME_EXCHANGE));
}

static int real_unlink(const char *path)
{
    return checked(unlink(path));
}

static int real_mkdir(const char *path, mode_t mode)
{
    return checked(mkdir(path, mode));
}

static int real_rmdir(const char *path)
{
    return checked(rmdir(path));
}

static int real_opendir(const char *path, DIR **out)
{
    DIR *folder = opendir(path);
    if (folder == NULL)
        return -errno;
    *out = folder;
    return 0;
}

static int real_readdir(DIR *folder, struct dirent **out)
{
    errno = 0;
    struct dirent *entry = readdir(folder);
    if (entry == NULL && errno != 0)
        return -errno;
    *out = entry;
    return 0;
}

static int real_closedir(DIR *folder)
{
    return checked(closedir(folder));
}

static int real_mmap(size_t bytes, void **out)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        return -errno;
    *out = memory;
    return 0;
}

static int real_mmap_huge(size_t bytes, void **out)
{
    /* Of this size, whatever the system's default is: 1 GiB pages would take more than was asked for. */
    enum { FLAGS = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | 21 << MAP_HUGE_SHIFT };
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, FLAGS, -1, 0);
    if (memory == MAP_FAILED)
        return -errno;
    *out = memory;
    return 0;
}

static int real_populate(void *memory, size_t bytes)
{
    enum { POPULATE_WRITE = 23 }; /* MADV_POPULATE_WRITE, which older headers lack */
    return checked(madvise(memory, bytes, POPULATE_WRITE));
}

static int real_mprotect(void *memory, size_t bytes, int protection)
{
    return checked(mprotect(memory, bytes, protection));
}

static int real_mlock(void *memory, size_t bytes)
{
    return checked(mlock(memory, bytes));
}

static int real_munlock(void *memory, size_t bytes)
{
    return checked(munlock(memory, bytes));
}

/* The system call itself: libnuma would be a dependency for this one line. */
static int real_prefer_node(void *memory, size_t bytes, int node)
{
    enum { PREFERRED = 1, MAX_NODES = 1024, WORD_BITS = 8 * sizeof(unsigned long) }; /* MPOL_PREFERRED */
    unsigned long mask[MAX_NODES / WORD_BITS] = {0};
    if (node < 0 || node >= MAX_NODES)
        return -EINVAL;
    mask[node / WORD_BITS] = 1ul << (node % WORD_BITS);
    return checked((int)syscall(SYS_mbind, memory, bytes, PREFERRED, mask, (unsigned long)MAX_NODES, 0u));
}

static int real_munmap(void *memory, size_t bytes)
{
    return checked(munmap(memory, bytes));
}

static int real_flock(int fd, int operation)
{
    return checked(flock(fd, operation));
}

static int real_getrandom(void *buffer, size_t bytes)
{
    ssize_t got = getrandom(buffer, bytes, 0);
    if (got < 0)
        return -errno;
    return (size_t)got == bytes ? 0 : -EIO;
}

static int real_eventfd(void)
{
    return checked(eventfd(0, EFD_CLOEXEC));
}

static int real_eventfd_write(int fd)
{
    return checked(eventfd_write(fd, 1));
}

static void real_sleep_ns(uint64_t ns)
{
    struct timespec time = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
    nanosleep(&time, NULL);
}

static int real_nice_thread(int nice)
{
    /* POSIX has it of the process; Linux keeps it for each thread. */
    return checked(setpriority(PRIO_PROCESS, (id_t)gettid(), nice));
}

static uint32_t real_page_bytes(void)
{
    return (uint32_t)sysconf(_SC_PAGESIZE);
}

/* liburing maps and unmaps ring memory with system calls of its own, which the thread sanitizer does not see: it takes
 * a ring at an address where another thread had one before for the same memory. This counter orders the two. */
static atomic_uint rings_ended;

static int real_uring_init(unsigned entries, struct io_uring *ring, struct io_uring_params *parameters)
{
    int status = io_uring_queue_init_params(entries, ring, parameters);
    atomic_load_explicit(&rings_ended, memory_order_acquire);
    return status;
}

static void real_uring_exit(struct io_uring *ring)
{
    atomic_fetch_add_explicit(&rings_ended, 1, memory_order_release);
    io_uring_queue_exit(ring);
}

static int real_uring_enter(struct io_uring *ring, unsigned wait_for, uint64_t limit_ns)
{
    if (limit_ns == 0)
        return io_uring_submit_and_wait(ring, wait_for);
    struct io_uring_cqe *first;
    struct __kernel_timespec limit = {.tv_sec = (long long)(limit_ns / 1000000000u),
                                      .tv_nsec = (long long)(limit_ns % 1000000000u)};
    return io_uring_submit_and_wait_timeout(ring, &first, wait_for, &limit, NULL);
}

static int real_uring_files_sparse(struct io_uring *ring, unsigned count)
{
    return io_uring_register_files_sparse(ring, count);
}

static int real_uring_files_update(struct io_uring *ring, unsigned slot, int fd)
{
    return io_uring_register_files_update(ring, slot, &fd, 1);
}

static int real_uring_buffers_sparse(struct io_uring *ring, unsigned count)
{
    return io_uring_register_buffers_sparse(ring, count);
}

static int real_uring_buffers_update(struct io_uring *ring, unsigned slot, const struct iovec *memory)
{
    const __u64 no_tag = 0;
    return io_uring_register_buffers_update_tag(ring, slot, memory, &no_tag, 1);
}

/* Kernels that cannot be asked (before 5.6) do not know them either. */
static int real_uring_has_read_write(struct io_uring *ring)
{
    struct io_uring_probe *probe = io_uring_get_probe_ring(ring);
    bool has = probe != NULL && io_uring_opcode_supported(probe, IORING_OP_READ) &&
               io_uring_opcode_supported(probe, IORING_OP_WRITE);
    io_uring_free_probe(probe);
    return has ? 0 : -ENOSYS;
}

static int real_aio_setup(unsigned entries, io_context_t *out)
{
    io_context_t context = NULL; /* the kernel refuses any other value */
    int status = io_setup((int)entries, &context);
    if (status >= 0)
        *out = context;
    return status;
}

static int64_t real_async_result(int fd, bool write, const void *address, size_t bytes, uint64_t offset, int64_t result)
{
    (void)fd, (void)write, (void)address, (void)bytes, (void)offset;
    return result;
}

const pst_sys_table pst_sys_real = {
    .open = real_open,
    .close = real_close,
    .read = real_read,
    .pread = real_pread,
    .pwrite = real_pwrite,
    .fdatasync = real_fdatasync,
    .fsync = real_fsync,
    .ftruncate = real_ftruncate,
    .open_flags = real_open_flags,
    .dup = real_dup,
    .readlink = real_readlink,
    .block_device = real_block_device,
    .fallocate = real_fallocate,
    .statx = real_statx,
    .statvfs = real_statvfs,
    .rename = real_rename,
    .rename_new = real_rename_new,
    .rename_exchange = real_rename_exchange,
    .unlink = real_unlink,
    .mkdir = real_mkdir,
    .rmdir = real_rmdir,
    .opendir = real_opendir,
    .readdir = real_readdir,
    .closedir = real_closedir,
    .mmap = real_mmap,
    .mmap_huge = real_mmap_huge,
    .populate = real_populate,
    .munmap = real_munmap,
    .mprotect = real_mprotect,
    .mlock = real_mlock,
    .munlock = real_munlock,
    .prefer_node = real_prefer_node,
    .flock = real_flock,
    .getrandom = real_getrandom,
    .eventfd = real_eventfd,
    .eventfd_write = real_eventfd_write,
    .sleep_ns = real_sleep_ns,
    .nice_thread = real_nice_thread,
    .page_bytes = real_page_bytes,
    .uring_init = real_uring_init,
    .uring_exit = real_uring_exit,
    .uring_enter = real_uring_enter,
    .uring_files_sparse = real_uring_files_sparse,
    .uring_files_update = real_uring_files_update,
    .uring_buffers_sparse = real_uring_buffers_sparse,
    .uring_buffers_update = real_uring_buffers_update,
    .uring_has_read_write = real_uring_has_read_write,
    .aio_setup = real_aio_setup,
    .aio_destroy = io_destroy,
    .aio_submit = io_submit,
    .aio_getevents = io_getevents,
    .async_result = real_async_result,
};

const pst_sys_table *pst_sys = &pst_sys_real;

void pst_sys_replace(const pst_sys_table *table)
{
    pst_sys = table != NULL ? table : &pst_sys_real;
}

ssize_t pst_sys_read_all(int fd, void *buffer, size_t bytes, uint64_t offset)
{
    size_t done = 0;
    while (done < bytes) {
        ssize_t got = pst_sys->pread(fd, (char *)buffer + done, bytes - done, offset + done);
        if (got == -EINTR)
            continue;
        if (got < 0)
            return got;
        if (got == 0)
            break;
        done += (size_t)got;
    }
    return (ssize_t)done;
}

ssize_t pst_sys_write_all(int fd, const void *buffer, size_t bytes, uint64_t offset)
{
    size_t done = 0;
    while (done < bytes) {
        ssize_t put = pst_sys->pwrite(fd, (const char *)buffer + done, bytes - done, offset + done);
        if (put == -EINTR)
            continue;
        if (put < 0)
            return put;
        if (put == 0)
            return -EIO; /* a write that makes no progress would repeat for ever */
        done += (size_t)put;
    }
    return (ssize_t)done;
}
