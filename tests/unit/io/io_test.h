/* SPDX-License-Identifier: Apache-2.0 */
/* What the tests of the I/O library share: seeds, folders, files of known content. */
#ifndef PST_TEST_IO_H
#define PST_TEST_IO_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "penstock/io.h"

/* Random numbers. The seed is printed, and taken from PST_TEST_SEED if that is set. */
uint64_t test_seed(void);
uint64_t test_random(uint64_t *state);
uint64_t test_below(uint64_t *state, uint64_t limit); /* 0 .. limit-1 */

/* A new folder on a disk file system ($TMPDIR or /tmp) or on tmpfs (/dev/shm); removed with all its files.
 * NULL for tmpfs where /dev/shm cannot be written. */
char *test_folder_create(bool tmpfs);
void test_folder_remove(char *folder);
/* "<folder>/<name>" in static storage, one of a few in turn. */
const char *test_path(const char *folder, const char *name);

/* The bytes at `offset` of a file of content `key`. */
void test_fill(uint8_t *out, uint64_t bytes, uint64_t key, uint64_t offset);
/* Writes the file with plain system calls. */
void test_write_file(const char *path, const void *data, uint64_t bytes);
/* Reads it whole with plain system calls; *bytes is set; free(). */
uint8_t *test_read_file(const char *path, uint64_t *bytes);

/* Fails the test with the error's words when status is negative. */
#define assert_ok(status, err) test_assert_ok((status), (err), __FILE__, __LINE__)
void test_assert_ok(int status, const pst_error *err, const char *file, int line);

/* Opens a handle with an engine; NULL when the engine does not work on this machine (only io_uring and libaio may be
 * refused, with EPERM, EACCES or ENOSYS, libaio also with EAGAIN). */
pst_io *test_open(const char *engine, uint64_t block_size, uint32_t depth, uint32_t workers, bool buffered);

/* The nth of the engines that move bytes and work here ("threads", then "io_uring" and "libaio"); NULL after the last:
 *     for (unsigned e = 0; (engine = test_engine(e)) != NULL; e++)
 * For each that does not work, prints once the line by which the suite's runner counts a skipped test. */
const char *test_engine(unsigned n);
/* Whether one of them works, said in the same way. */
bool test_have_engine(const char *engine);

/* What a process holds. */
typedef struct test_footprint {
    unsigned descriptors, threads;
    int64_t allocations;
} test_footprint;
test_footprint test_measure_footprint(void);
/* Fails unless the process holds what it held before. A thread that was joined may be listed for a moment more, so this
 * waits for it up to a second. */
void test_assert_footprint(const test_footprint *before);

/* The same for io_uring. */
bool test_try_uring(void);
bool test_have_uring(void);

#endif
