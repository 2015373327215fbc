/* SPDX-License-Identifier: Apache-2.0 */
/* Loop devices for tests that run as root. */
#include "root/loop.h"

#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

int test_run(const char *const *arguments, char *line)
{
    enum { LINE = 256 };
    int ends[2], status;
    if (pipe2(ends, O_CLOEXEC) < 0)
        return -1;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], STDOUT_FILENO);
        execvp(arguments[0], (char *const *)arguments);
        _exit(127);
    }
    close(ends[1]);
    char text[LINE];
    size_t have = 0;
    for (ssize_t got; child > 0 && have < LINE - 1 && (got = read(ends[0], text + have, LINE - 1 - have)) > 0;)
        have += (size_t)got;
    close(ends[0]);
    text[have] = '\0';
    text[strcspn(text, "\n")] = '\0';
    if (line != NULL)
        memcpy(line, text, LINE);
    if (child < 0 || waitpid(child, &status, 0) != child)
        return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

bool test_loop_usable(void)
{
    if (geteuid() != 0) {
        printf("SKIP: loop devices need root\n");
        return false;
    }
    if (access("/dev/loop-control", R_OK | W_OK) != 0 || unshare(CLONE_NEWNS) != 0 ||
        mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0) {
        printf("SKIP: loop devices are refused here\n");
        return false;
    }
    return true;
}

static int attach(const char *backing, uint32_t sector_bytes, const char *direct, char *line)
{
    char sector[32];
    snprintf(sector, sizeof sector, "%u", sector_bytes);
    const char *const arguments[] = {"losetup", "--find", "--show", "--sector-size", sector, direct, backing, NULL};
    return test_run(arguments, line);
}

bool test_loop_attach(const char *backing, uint64_t bytes, uint32_t sector_bytes, test_loop *out)
{
    char line[256];
    int fd = open(backing, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0)
        return false;
    close(fd);
    /* Where the backing file system has no direct I/O, the page cache below the device does. */
    if (attach(backing, sector_bytes, "--direct-io=on", line) != 0 &&
        attach(backing, sector_bytes, "--direct-io=off", line) != 0) {
        printf("SKIP: loop devices are refused here\n");
        return false;
    }
    snprintf(out->path, sizeof out->path, "%.60s", line);
    out->fd = open(out->path, O_RDONLY | O_CLOEXEC);
    const char *const detach[] = {"losetup", "-d", out->path, NULL};
    int status = test_run(detach, NULL); /* takes effect at the last close */
    return out->fd >= 0 && status == 0;
}

void test_loop_detach(test_loop *loop)
{
    close(loop->fd);
    loop->fd = -1;
}
