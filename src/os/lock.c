/* SPDX-License-Identifier: Apache-2.0 */
#include "os/lock.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>

#include "base/error.h"
#include "base/heap.h"
#include "os/sys.h"

struct pst_lock {
    int fd;
    char path[];
};

int pst_lock_open(const char *path, pst_lock **out, pst_error *err)
{
    pst_lock *lock = pst_heap_alloc(sizeof *lock + strlen(path) + 1);
    if (lock == NULL)
        return pst_fail_memory(err, "a lock", sizeof *lock + strlen(path) + 1);
    strcpy(lock->path, path);
    do {
        lock->fd = pst_sys->open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    } while (lock->fd == -EINTR);
    if (lock->fd < 0) {
        int status = pst_fail(err, lock->fd, path, "cannot open the lock: %s", pst_strerror(lock->fd));
        pst_heap_free(lock);
        return status;
    }
    *out = lock;
    return 0;
}

int pst_lock_try(pst_lock *lock, bool exclusive, pst_error *err)
{
    int status;
    do {
        status = pst_sys->flock(lock->fd, (exclusive ? LOCK_EX : LOCK_SH) | LOCK_NB);
    } while (status == -EINTR);
    if (status == -EWOULDBLOCK)
        return 0;
    return status < 0 ? pst_fail(err, status, lock->path, "cannot lock: %s", pst_strerror(status)) : 1;
}

void pst_lock_close(pst_lock *lock)
{
    if (lock == NULL)
        return;
    pst_sys->close(lock->fd);
    pst_heap_free(lock);
}
