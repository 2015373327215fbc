/* SPDX-License-Identifier: Apache-2.0 */
/* Helpers of the I/O tests. */
#include "unit/io/io_test.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/heap.h"
#include "support/random.h"

uint64_t test_seed(void)
{
    return random_seed("seed", 0);
}

uint64_t test_random(uint64_t *state)
{
    return pst_random_next(state);
}

uint64_t test_below(uint64_t *state, uint64_t limit)
{
    return test_random(state) % limit;
}

char *test_folder_create(bool tmpfs)
{
    const char *parent = getenv("TMPDIR");
    if (tmpfs)
        parent = "/dev/shm";
    else if (parent == NULL || parent[0] == '\0')
        parent = "/tmp";
    char path[4096];
    snprintf(path, sizeof path, "%s/pst-io-XXXXXX", parent);
    if (mkdtemp(path) == NULL) {
        assert_true(tmpfs);
        return NULL;
    }
    return strdup(path);
}

void test_folder_remove(char *folder)
{
    if (folder == NULL)
        return;
    DIR *entries = opendir(folder);
    assert_non_null(entries);
    for (struct dirent *e; (e = readdir(entries)) != NULL;) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        const char *path = test_path(folder, e->d_name);
        if (unlink(path) != 0)
            rmdir(path);
    }
    closedir(entries);
    assert_int_equal(rmdir(folder), 0);
    free(folder);
}

const char *test_path(const char *folder, const char *name)
{
    static char paths[8][4096];
    static unsigned turn;
    char *path = paths[turn++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

void test_fill(uint8_t *out, uint64_t bytes, uint64_t key, uint64_t offset)
{
    while (bytes > 0) {
        uint64_t z = key ^ (offset / 8 * 0x9e3779b97f4a7c15u), skip = offset % 8;
        uint64_t count = 8 - skip < bytes ? 8 - skip : bytes;
        z = (z ^ (z >> 31)) * 0xbf58476d1ce4e5b9u;
        memcpy(out, (const uint8_t *)&z + skip, count);
        out += count;
        offset += count;
        bytes -= count;
    }
}

void test_write_file(const char *path, const void *data, uint64_t bytes)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_true(fd >= 0);
    for (uint64_t done = 0; done < bytes;) {
        ssize_t put = write(fd, (const char *)data + done, bytes - done);
        assert_true(put > 0);
        done += (uint64_t)put;
    }
    assert_int_equal(close(fd), 0);
}

uint8_t *test_read_file(const char *path, uint64_t *bytes)
{
    int fd = open(path, O_RDONLY);
    assert_true(fd >= 0);
    struct stat info;
    assert_int_equal(fstat(fd, &info), 0);
    uint8_t *data = malloc((size_t)info.st_size + 1);
    assert_non_null(data);
    uint64_t done = 0;
    while (done < (uint64_t)info.st_size) {
        ssize_t got = read(fd, data + done, (size_t)info.st_size - done);
        assert_true(got > 0);
        done += (uint64_t)got;
    }
    close(fd);
    *bytes = done;
    return data;
}

void test_assert_ok(int status, const pst_error *err, const char *file, int line)
{
    if (status >= 0)
        return;
    print_error("status %d: %s: %s (offset %lld)\n", status, err->path, err->message, (long long)err->offset);
    _fail(file, line);
}

pst_io *test_open(const char *engine, uint64_t block_size, uint32_t depth, uint32_t workers, bool buffered)
{
    pst_io_options options = {.struct_size = sizeof options,
                              .engine = engine,
                              .block_size = block_size,
                              .queue_depth = depth,
                              .workers = workers,
                              .buffered = buffered};
    pst_io *io = NULL;
    pst_error err = {0};
    int status = pst_io_open(&options, &io, &err);
    bool refused = status == -EPERM || status == -ENOSYS || status == -EACCES;
    if (status < 0 && ((strcmp(engine, "io_uring") == 0 && refused) ||
                       (strcmp(engine, "libaio") == 0 && (refused || status == -EAGAIN))))
        return NULL;
    assert_ok(status, &err);
    return io;
}

static const char *const moving[] = {"threads", "io_uring", "libaio"};
enum { MOVING = sizeof moving / sizeof moving[0] };

static bool try_engine(const char *engine)
{
    pst_io *io = test_open(engine, 0, 0, 0, false);
    bool works = io != NULL;
    pst_io_close(io);
    if (!works)
        printf("SKIP: %s is refused here\n", engine);
    return works;
}

static bool known_to_work(unsigned i)
{
    static int known[MOVING]; /* 0: not tried yet */
    if (known[i] == 0)
        known[i] = try_engine(moving[i]) ? 1 : -1;
    return known[i] > 0;
}

bool test_have_engine(const char *engine)
{
    for (unsigned i = 0; i < MOVING; i++) {
        if (strcmp(moving[i], engine) == 0)
            return known_to_work(i);
    }
    return false;
}

const char *test_engine(unsigned n)
{
    for (unsigned i = 0; i < MOVING; i++) {
        if (known_to_work(i) && n-- == 0)
            return moving[i];
    }
    return NULL;
}

bool test_try_uring(void)
{
    return try_engine("io_uring");
}

bool test_have_uring(void)
{
    return test_have_engine("io_uring");
}

static unsigned entries_of(const char *folder)
{
    unsigned count = 0;
    DIR *entries = opendir(folder);
    assert_non_null(entries);
    while (readdir(entries) != NULL)
        count++;
    closedir(entries);
    return count;
}

test_footprint test_measure_footprint(void)
{
    return (test_footprint){entries_of("/proc/self/fd"), entries_of("/proc/self/task"), pst_heap_live_count()};
}

void test_assert_footprint(const test_footprint *before)
{
    test_footprint now = test_measure_footprint();
    for (int i = 0; i < 1000 && now.threads != before->threads; i++) {
        usleep(1000);
        now = test_measure_footprint();
    }
    assert_int_equal(now.descriptors, before->descriptors);
    assert_int_equal(now.threads, before->threads);
    assert_int_equal(now.allocations, before->allocations);
}
