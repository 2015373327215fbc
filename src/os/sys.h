/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The one table of system calls behind which everything in os/ and io/ works, so that tests can put another
 * table in its place: one that fails the nth call of a kind (sys_fault.h), one that forgets what was not synced
 * when the power fails (sys_crash.h).
 *
 * Every entry returns what the call returns, or -errno: errno itself is never looked at by callers.
 * The io_uring and libaio entries are those libraries' functions, which already answer that way.
 */
#ifndef PST_OS_SYS_H
#define PST_OS_SYS_H

#include <dirent.h>
#include <libaio.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/types.h>
#include <sys/uio.h>

struct io_uring;
struct io_uring_params;

typedef struct pst_sys_table {
    int (*open)(const char *path, int flags, mode_t mode);
    int (*close)(int fd);
    ssize_t (*read)(int fd, void *buffer, size_t bytes); /* of what has no offsets: standard input */
    ssize_t (*pread)(int fd, void *buffer, size_t bytes, uint64_t offset);
    ssize_t (*pwrite)(int fd, const void *buffer, size_t bytes, uint64_t offset);
    int (*fdatasync)(int fd);
    int (*fsync)(int fd);
    int (*ftruncate)(int fd, uint64_t bytes);
    int (*open_flags)(int fd); /* F_GETFL */
    int (*dup)(int fd);        /* closed on exec */
    /* The target, always terminated; -ENAMETOOLONG when it does not fit. */
    int (*readlink)(const char *path, char *out, size_t out_bytes);
    int (*block_device)(int fd, uint64_t *bytes, uint32_t *sector_bytes); /* of a block device: size, logical sector */
    int (*fallocate)(int fd, int mode, uint64_t offset, uint64_t bytes);
    int (*statx)(int folder_fd, const char *path, int flags, unsigned mask, struct statx *out);
    int (*statvfs)(const char *path, struct statvfs *out);
    int (*rename)(const char *from, const char *to);
    int (*rename_new)(const char *from, const char *to);  /* renameat2(RENAME_NOREPLACE) */
    int (*rename_exchange)(const char *a, const char *b); /* renameat2(RENAME_EXCHANGE): both are there */
    int (*unlink)(const char *path);
    int (*mkdir)(const char *path, mode_t mode);
    int (*rmdir)(const char *path);
    int (*opendir)(const char *path, DIR **out);
    int (*readdir)(DIR *folder, struct dirent **out); /* *out is NULL at the end */
    int (*closedir)(DIR *folder);
    int (*mmap)(size_t bytes, void **out);       /* private, anonymous, readable and writable */
    int (*mmap_huge)(size_t bytes, void **out);  /* the same in reserved huge pages of 2 MiB */
    int (*populate)(void *memory, size_t bytes); /* brings its pages in, writable (5.14) */
    int (*munmap)(void *memory, size_t bytes);
    int (*mprotect)(void *memory, size_t bytes, int protection); /* PROT_* of sys/mman.h */
    int (*mlock)(void *memory, size_t bytes);
    int (*munlock)(void *memory, size_t bytes);
    /* Prefers this NUMA node for pages of the range that are not there yet. */
    int (*prefer_node)(void *memory, size_t bytes, int node);
    int (*flock)(int fd, int operation); /* LOCK_EX and the like of sys/file.h */
    int (*getrandom)(void *buffer, size_t bytes);
    int (*eventfd)(void);
    int (*eventfd_write)(int fd);
    void (*sleep_ns)(uint64_t ns); /* or less, when a signal comes */
    int (*nice_thread)(int nice);  /* of the calling thread, 0 to 19; threads that it starts inherit it */
    uint32_t (*page_bytes)(void);

    int (*uring_init)(unsigned entries, struct io_uring *ring, struct io_uring_params *parameters);
    void (*uring_exit)(struct io_uring *ring);
    /* Submits, and waits for so many completions, at most limit_ns (0: for ever; other limits only where the ring has
     * IORING_FEAT_EXT_ARG). -ETIME: there was no completion in time; what was to be submitted is. */
    int (*uring_enter)(struct io_uring *ring, unsigned wait_for, uint64_t limit_ns);
    int (*uring_files_sparse)(struct io_uring *ring, unsigned count);
    int (*uring_files_update)(struct io_uring *ring, unsigned slot, int fd);
    int (*uring_buffers_sparse)(struct io_uring *ring, unsigned count);
    int (*uring_buffers_update)(struct io_uring *ring, unsigned slot, const struct iovec *memory);
    /* Whether the ring knows plain reads and writes (5.6): 0, -ENOSYS, or another refusal. */
    int (*uring_has_read_write)(struct io_uring *ring);

    /* libaio's functions, which answer with -errno. */
    int (*aio_setup)(unsigned entries, io_context_t *out);
    int (*aio_destroy)(io_context_t context);
    int (*aio_submit)(io_context_t context, long count, struct iocb **requests);
    int (*aio_getevents)(io_context_t context, long min, long max, struct io_event *events, struct timespec *timeout);

    /* Every completed transfer that the table did not carry out itself (a ring's, libaio's) passes here with what it
     * was and its result; the answer is what the engine takes for the result. The real table returns it as it is. */
    int64_t (*async_result)(int fd, bool write, const void *address, size_t bytes, uint64_t offset, int64_t result);
} pst_sys_table;

/* The kernel's own. */
extern const pst_sys_table pst_sys_real;

/* The table in use. */
extern const pst_sys_table *pst_sys;

/* Puts another table (of static storage) in place; NULL: the real one. Tests only, while no other thread
 * runs. */
void pst_sys_replace(const pst_sys_table *table);

/* Reads or writes all of it at `offset`, continuing after short transfers and signals. Returns the bytes
 * transferred (less than asked only at the end of the file, for reads), or -errno. */
ssize_t pst_sys_read_all(int fd, void *buffer, size_t bytes, uint64_t offset);
ssize_t pst_sys_write_all(int fd, const void *buffer, size_t bytes, uint64_t offset);

#endif
