/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Processor time, and child processes that carry out orders: a child is a fork of this process with one socket to its
 * parent, over which whole messages pass in both directions.
 */
#ifndef PST_OS_PROCESS_H
#define PST_OS_PROCESS_H

#include <sys/types.h>

#include "penstock/types.h"

/* Processor time of this process, user and system, all its threads, those that ended included. */
double pst_os_cpu_seconds(void);

typedef struct pst_child {
    pid_t pid; /* 0: none */
    int fd;
} pst_child;

/* Forks. The child keeps standard descriptors and the socket alone, takes no keyboard signals (they are the parent's
 * business), and ends with what body returns when it returns; body sees the end of the parent as a closed socket. The
 * parent should be single-threaded: what another thread has locked stays locked in the child. */
int pst_child_start(int (*body)(int fd, void *context), void *context, pst_child *out, pst_error *err);
/* Kills it, if it is still there, and forgets it. */
void pst_child_stop(pst_child *child);
/* Why the other end of the socket is closed: waits for the child, and fails with how it ended. */
int pst_child_ended(pst_child *child, const char *what, pst_error *err);

/* One whole message. 0, or -EPIPE when nobody is at the other end, or -errno. */
int pst_child_send(int fd, const void *message, size_t bytes);
/* 0: a message of exactly `bytes` bytes is there; 1: none within timeout_ms (-1: for ever); -EPIPE: the other end is
 * closed; -EPROTO: a message of another size. */
int pst_child_receive(int fd, void *message, size_t bytes, int timeout_ms);

#endif
