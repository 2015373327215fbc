/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Locks between processes: flock on a file of its own, which is created and never removed (removing it would let two
 * processes hold locks on two files of one name). A lock goes with the process that dies.
 */
#ifndef PST_OS_LOCK_H
#define PST_OS_LOCK_H

#include <stdbool.h>

#include "penstock/types.h"

typedef struct pst_lock pst_lock;

/* Holds nothing yet. The caller closes *out. */
int pst_lock_open(const char *path, pst_lock **out, pst_error *err);
/* Asks for it, shared or exclusive, without waiting; what it held before may be lost meanwhile. 1: has it; 0: another process
 * is in the way. */
int pst_lock_try(pst_lock *lock, bool exclusive, pst_error *err);
/* Gives it up. NULL is fine. */
void pst_lock_close(pst_lock *lock);

#endif
