/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loop devices for tests that run as root. Whatever becomes of the test, killing included, nothing stays behind: a
 * device is let go at once after it was attached, so that the kernel detaches it when its last user closes it, and
 * mounts are made in a mount namespace of the test's own.
 */
#ifndef PST_TEST_LOOP_H
#define PST_TEST_LOOP_H

#include <stdbool.h>
#include <stdint.h>

typedef struct test_loop {
    char path[64]; /* "/dev/loop7" */
    int fd;        /* keeps it attached */
} test_loop;

/* True when this process may use loop devices and mounts; else prints the line by which the runner counts a skipped
 * test. Puts the process into a mount namespace of its own. */
bool test_loop_usable(void);
/* Makes `backing` (a path in a folder that exists) `bytes` bytes long and attaches it with this sector size. False where
 * the kernel has no loop device to give; then the line of a skipped test is printed. */
bool test_loop_attach(const char *backing, uint64_t bytes, uint32_t sector_bytes, test_loop *out);
void test_loop_detach(test_loop *loop);

/* Runs a program to its end without a shell; its exit status, and the first line that it prints in `line` (may be NULL,
 * 256 bytes). */
int test_run(const char *const *arguments, char *line);

#endif
