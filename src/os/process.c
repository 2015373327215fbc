/* SPDX-License-Identifier: Apache-2.0 */
/* Children with a socket. They are forked without exec, so they may be given pointers to what the parent has built. */
#include "os/process.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/error.h"

double pst_os_cpu_seconds(void)
{
    struct rusage usage;
    if (getrusage(RUSAGE_SELF, &usage) != 0)
        return 0;
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           1e-6 * (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

/* Descriptors of the parent would keep sockets of other children open, whose end would not be seen then. */
static int keep_one_descriptor(int fd)
{
    if (dup2(fd, 3) < 0) /* nothing to do where it is 3 already */
        return -1;
    if (syscall(SYS_close_range, 4u, ~0u, 0u) != 0) {
        long most = sysconf(_SC_OPEN_MAX); /* kernels before 5.9 */
        for (int other = 4; other < (most > 0 && most < 65536 ? (int)most : 65536); other++)
            close(other);
    }
    return 3;
}

static _Noreturn void run_child(int (*body)(int fd, void *context), void *context, int fd)
{
    static const int ignored[] = {SIGINT, SIGHUP, SIGPIPE};
    for (size_t i = 0; i < sizeof ignored / sizeof ignored[0]; i++)
        signal(ignored[i], SIG_IGN);
    signal(SIGTERM, SIG_DFL);
    int kept = keep_one_descriptor(fd);
    _exit(kept < 0 ? 1 : body(kept, context));
}

int pst_child_start(int (*body)(int fd, void *context), void *context, pst_child *out, pst_error *err)
{
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
        int cause = errno;
        return pst_fail(err, -cause, NULL, "cannot make a socket for a process: %s", strerror(cause));
    }
    pid_t pid = fork();
    int cause = errno;
    if (pid == 0)
        run_child(body, context, ends[1]);
    close(ends[1]);
    if (pid < 0) {
        close(ends[0]);
        return pst_fail(err, -cause, NULL, "cannot start a process: %s", strerror(cause));
    }
    *out = (pst_child){.pid = pid, .fd = ends[0]};
    return 0;
}

static int wait_for(pid_t pid)
{
    int state = 0;
    while (waitpid(pid, &state, 0) < 0 && errno == EINTR) {
    }
    return state;
}

void pst_child_stop(pst_child *child)
{
    if (child->pid <= 0)
        return;
    close(child->fd);
    kill(child->pid, SIGKILL);
    wait_for(child->pid);
    *child = (pst_child){0};
}

int pst_child_ended(pst_child *child, const char *what, pst_error *err)
{
    if (child->pid <= 0)
        return pst_fail(err, -ECHILD, NULL, "%s is gone", what);
    close(child->fd);
    int state = wait_for(child->pid);
    long pid = (long)child->pid;
    *child = (pst_child){0};
    if (WIFSIGNALED(state))
        return pst_fail(err, -ECHILD, NULL, "%s (process %ld) was ended by signal %d", what, pid, WTERMSIG(state));
    return pst_fail(err, -ECHILD, NULL, "%s (process %ld) ended with status %d", what, pid, WEXITSTATUS(state));
}

int pst_child_send(int fd, const void *message, size_t bytes)
{
    for (;;) {
        ssize_t sent = send(fd, message, bytes, MSG_NOSIGNAL);
        if (sent == (ssize_t)bytes)
            return 0;
        if (sent >= 0)
            return -EPROTO;
        if (errno != EINTR)
            return errno == ECONNRESET ? -EPIPE : -errno;
    }
}

int pst_child_receive(int fd, void *message, size_t bytes, int timeout_ms)
{
    struct pollfd polled = {.fd = fd, .events = POLLIN};
    int ready = poll(&polled, 1, timeout_ms);
    if (ready == 0 || (ready < 0 && errno == EINTR))
        return 1; /* a signal: the caller looks whether to go on */
    if (ready < 0)
        return -errno;
    /* With MSG_TRUNC the real size is told, so that a longer message is noticed. */
    ssize_t got = recv(fd, message, bytes, MSG_TRUNC);
    if (got < 0)
        return errno == EINTR ? 1 : errno == ECONNRESET ? -EPIPE : -errno;
    if (got == 0)
        return -EPIPE;
    return got == (ssize_t)bytes ? 0 : -EPROTO;
}
