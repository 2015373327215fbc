/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A system-call table that misbehaves on demand: tests put it in place with pst_sys_replace(&pst_sys_fault)
 * and arm one fault at a time. Without an armed fault it behaves like the real table, and counts the calls of
 * each kind.
 */
#ifndef PST_OS_SYS_FAULT_H
#define PST_OS_SYS_FAULT_H

#include "os/sys.h"

/* PST_FAULT_READ and PST_FAULT_WRITE are transfers, whether by pread/pwrite or as the result of a ring
 * or libaio completion. */
typedef enum pst_fault_kind {
    PST_FAULT_OPEN,
    PST_FAULT_CLOSE,
    PST_FAULT_READ,
    PST_FAULT_WRITE,
    PST_FAULT_FDATASYNC,
    PST_FAULT_FSYNC,
    PST_FAULT_FTRUNCATE,
    PST_FAULT_FALLOCATE,
    PST_FAULT_STATX,
    PST_FAULT_STATVFS,
    PST_FAULT_RENAME,
    PST_FAULT_UNLINK,
    PST_FAULT_MKDIR,
    PST_FAULT_RMDIR,
    PST_FAULT_OPENDIR,
    PST_FAULT_READDIR,
    PST_FAULT_MMAP,
    PST_FAULT_GETRANDOM,
    PST_FAULT_EVENTFD,
    PST_FAULT_SLEEP, /* counted; it cannot fail */
    PST_FAULT_URING_INIT,
    PST_FAULT_URING_ENTER,
    PST_FAULT_URING_PROBE,
    PST_FAULT_URING_FILES,
    PST_FAULT_URING_BUFFERS,
    PST_FAULT_AIO_SETUP,
    PST_FAULT_AIO_SUBMIT,
    PST_FAULT_AIO_GETEVENTS,
    PST_FAULT_MLOCK,
    PST_FAULT_DUP,
    PST_FAULT_READLINK,
    PST_FAULT_FLOCK,
    PST_FAULT_NICE,
    PST_FAULT_KINDS
} pst_fault_kind;

extern const pst_sys_table pst_sys_fault;

/* Disarms, and sets all counts to zero. */
void pst_fault_reset(void);
/* After `skip` calls of `kind` from now, `times` calls answer -error (a positive errno). */
void pst_fault_fail(pst_fault_kind kind, int64_t skip, int64_t times, int error);
/* After `skip` transfers of `kind` (READ or WRITE), `times` transfers answer at most `bytes` bytes. */
void pst_fault_shorten(pst_fault_kind kind, int64_t skip, int64_t times, int64_t bytes);
/* O_DIRECT opens answer -EINVAL, as file systems without direct I/O do. */
void pst_fault_refuse_direct(bool refuse);
/* statx does not know direct I/O alignments, as kernels before 6.1. */
void pst_fault_hide_alignment(bool hide);
/* Calls of `kind` since the last reset. */
int64_t pst_fault_count(pst_fault_kind kind);
const char *pst_fault_name(pst_fault_kind kind);

#endif
