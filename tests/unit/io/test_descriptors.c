/* SPDX-License-Identifier: Apache-2.0 */
/* Descriptors: files behind a caller's, what is neither file nor block device, what opening costs, very many files. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "os/sys_fault.h"
#include "unit/io/io_test.h"

static char *folder;

static int set_up(void **unused)
{
    (void)unused;
    folder = test_folder_create(false);
    return 0;
}

static int tear_down(void **unused)
{
    (void)unused;
    pst_sys_replace(NULL);
    test_folder_remove(folder);
    return 0;
}

/* Reads and writes a file whose every byte is known, ragged on both sides. */
static void exercise(pst_io *io, pst_io_file *file, uint64_t key)
{
    enum { BYTES = 300001 };
    uint8_t *out = malloc(BYTES), *in = malloc(BYTES);
    pst_error err = {0};
    test_fill(out, BYTES, key, 0);
    pst_io_op write = {.file = file, .offset = 1234, .buffer = out, .bytes = BYTES, .kind = PST_IO_WRITE};
    assert_ok(pst_io_transfer(io, &write, &err), &err);
    pst_io_op read = {.file = file, .offset = 1234, .buffer = in, .bytes = BYTES, .kind = PST_IO_READ};
    assert_ok(pst_io_transfer(io, &read, &err), &err);
    assert_memory_equal(in, out, BYTES);
    free(in);
    free(out);
}

static unsigned open_descriptors(void)
{
    unsigned count = 0;
    DIR *list = opendir("/proc/self/fd");
    assert_non_null(list);
    while (readdir(list) != NULL)
        count++;
    closedir(list);
    return count;
}

/* What is neither file nor block device is refused without being touched, and called by its name. */
static void test_other_kinds(void **unused)
{
    (void)unused;
    pst_io *io = test_open("threads", 0, 2, 0, false);
    pst_io_file *file = NULL;
    pst_error err = {0};
    char pipe_path[4096], socket_path[4096];
    snprintf(pipe_path, sizeof pipe_path, "%s/pipe", folder);
    snprintf(socket_path, sizeof socket_path, "%s/socket", folder);
    assert_int_equal(mkfifo(pipe_path, 0600), 0);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%.100s", socket_path);
    int s = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(s, (struct sockaddr *)&address, sizeof address), 0);
    const struct {
        const char *path, *words;
        int code;
    } kinds[] = {{pipe_path, "pipe", PST_E_UNSUPPORTED},
                 {socket_path, "socket", PST_E_UNSUPPORTED},
                 {"/dev/zero", "character device", PST_E_UNSUPPORTED},
                 {folder, "folder", -EISDIR}};
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        for (unsigned flags = PST_IO_OPEN_READ; flags <= PST_IO_OPEN_WRITE; flags++) {
            assert_int_equal(pst_io_file_open(io, kinds[i].path, flags, &file, &err), kinds[i].code);
            assert_string_equal(err.path, kinds[i].path);
            assert_non_null(strstr(err.message, kinds[i].words));
        }
    }
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    assert_int_equal(pst_io_file_open_fd(io, ends[0], PST_IO_OPEN_READ, "the pipe", &file, &err), PST_E_UNSUPPORTED);
    assert_string_equal(err.path, "the pipe");
    assert_int_equal(pst_io_file_open_fd(io, s, PST_IO_OPEN_READ, NULL, &file, &err), PST_E_UNSUPPORTED);
    assert_null(file);
    close(ends[0]);
    close(ends[1]);
    close(s);
    pst_io_close(io);
}

/* A file behind a descriptor: found under any name or none; the descriptor may be closed at once. */
static void test_descriptors(void **unused)
{
    (void)unused;
    const char *engine;
    pst_error err = {0};
    pst_io_file *file = NULL;
    const char *path = test_path(folder, "behind");
    unsigned before = open_descriptors();
    for (unsigned e = 0; (engine = test_engine(e)) != NULL; e++) {
        pst_io *io = test_open(engine, 65536, 4, 2, false);
        for (int shape = 0; shape < 5; shape++) {
            int flags = O_RDWR | O_CREAT | O_TRUNC, fd;
            if (shape == 3)
                flags |= O_APPEND; /* it is opened again without */
            if (shape == 4)
                fd = open(folder, O_RDWR | O_TMPFILE, 0600);
            else
                fd = open(path, flags, 0600);
            if (fd < 0 && shape == 4)
                break; /* not on every file system */
            assert_true(fd >= 0);
            if (shape == 1)
                unlink(path);
            if (shape == 2)
                assert_int_equal(rename(path, test_path(folder, "renamed")), 0);
            assert_ok(pst_io_file_open_fd(io, fd, PST_IO_OPEN_WRITE, shape == 0 ? "mine" : NULL, &file, &err), &err);
            if (shape == 0)
                assert_string_equal(pst_io_file_path(file), "mine");
            else
                assert_int_equal(pst_io_file_path(file)[0], '/');
            if (shape == 2)
                assert_non_null(strstr(pst_io_file_path(file), "renamed"));
            close(fd);
            exercise(io, file, (uint64_t)shape);
            uint64_t bytes = 0;
            assert_int_equal(pst_io_file_bytes(file), 0);
            assert_ok(pst_io_file_get_bytes(file, &bytes, &err), &err);
            assert_int_equal(bytes, 1234 + 300001);
            assert_ok(pst_io_file_close(file, &err), &err);
        }
        pst_io_close(io);
    }
    assert_int_equal(open_descriptors(), before);
}

static void test_descriptors_refused(void **unused)
{
    (void)unused;
    pst_error err = {0};
    pst_io_file *file = NULL;
    const char *path = test_path(folder, "f");
    pst_io *io = test_open("threads", 0, 2, 0, false);
    test_write_file(path, "0123456789", 10);
    int fd = open(path, O_RDONLY), write_only = open(path, O_WRONLY), path_only = open(path, O_PATH);
    assert_int_equal(pst_io_file_open_fd(io, fd, PST_IO_OPEN_WRITE, NULL, &file, &err), -EBADF);
    assert_non_null(strstr(err.message, "does not allow writing"));
    assert_string_equal(err.path, path);
    assert_int_equal(pst_io_file_open_fd(io, write_only, PST_IO_OPEN_READ, NULL, &file, &err), -EBADF);
    assert_non_null(strstr(err.message, "does not allow reading"));
    assert_int_equal(pst_io_file_open_fd(io, path_only, PST_IO_OPEN_READ, NULL, &file, &err), -EBADF);
    assert_int_equal(pst_io_file_open_fd(io, -1, PST_IO_OPEN_READ, NULL, &file, &err), -EBADF);
    assert_int_equal(pst_io_file_open_fd(io, 12345, PST_IO_OPEN_READ, "x", &file, &err), -EBADF);
    assert_string_equal(err.path, "x");
    static const unsigned senseless[] = {PST_IO_OPEN_CREATE, PST_IO_OPEN_WRITE | PST_IO_OPEN_TRUNCATE,
                                         PST_IO_OPEN_WRITE | PST_IO_OPEN_CREATE | PST_IO_OPEN_EXCLUSIVE};
    for (size_t i = 0; i < sizeof senseless / sizeof senseless[0]; i++)
        assert_int_equal(pst_io_file_open_fd(io, write_only, senseless[i], NULL, &file, &err), PST_E_USAGE);
    assert_null(file);
    /* For writing only, and read-only from one that allows both. */
    uint8_t bytes[16] = "abc";
    assert_ok(pst_io_file_open_fd(io, write_only, PST_IO_OPEN_WRITE, NULL, &file, &err), &err);
    pst_io_op op = {.file = file, .offset = 3, .buffer = bytes, .bytes = 3, .kind = PST_IO_WRITE};
    assert_ok(pst_io_transfer(io, &op, &err), &err);
    assert_ok(pst_io_file_close(file, &err), &err);
    int both = open(path, O_RDWR);
    assert_ok(pst_io_file_open_fd(io, both, PST_IO_OPEN_READ, NULL, &file, &err), &err);
    op = (pst_io_op){.file = file, .buffer = bytes, .bytes = 10, .kind = PST_IO_READ};
    assert_ok(pst_io_transfer(io, &op, &err), &err);
    assert_memory_equal(bytes, "012abc6789", 10);
    op.kind = PST_IO_WRITE;
    assert_int_equal(pst_io_transfer(io, &op, &err), -EBADF);
    assert_ok(pst_io_file_close(file, &err), &err);
    close(both);
    close(fd);
    close(write_only);
    close(path_only);
    pst_io_close(io);
}

/* Without /proc, or without the permission to open the file again, the descriptor itself serves. */
static void test_descriptors_kept(void **unused)
{
    (void)unused;
    static const int refusals[] = {ENOENT, EACCES, EPERM, EROFS};
    pst_error err = {0};
    pst_io_file *file = NULL;
    const char *path = test_path(folder, "kept");
    pst_io *io = test_open("threads", 65536, 4, 2, false);
    pst_sys_replace(&pst_sys_fault);
    unsigned before = open_descriptors();
    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
        for (int direct = 0; direct < 2; direct++) {
            int fd = open(path, O_RDWR | O_CREAT | (direct ? O_DIRECT : 0), 0600);
            if (fd < 0)
                continue; /* no direct I/O here */
            pst_fault_reset();
            pst_fault_fail(PST_FAULT_OPEN, 0, 1, refusals[i]);
            assert_ok(pst_io_file_open_fd(io, fd, PST_IO_OPEN_WRITE, NULL, &file, &err), &err);
            assert_int_equal(pst_fault_count(PST_FAULT_DUP), 1);
            assert_int_equal(pst_io_file_is_direct(file), direct);
            close(fd);
            exercise(io, file, i);
            assert_ok(pst_io_file_close(file, &err), &err);
        }
        int fd = open(path, O_RDWR | O_APPEND);
        pst_fault_fail(PST_FAULT_OPEN, 0, 1, refusals[i]);
        assert_int_equal(pst_io_file_open_fd(io, fd, PST_IO_OPEN_WRITE, NULL, &file, &err), PST_E_UNSUPPORTED);
        assert_non_null(strstr(err.message, "O_APPEND"));
        pst_fault_fail(PST_FAULT_OPEN, 0, 1, refusals[i]);
        assert_ok(pst_io_file_open_fd(io, fd, PST_IO_OPEN_READ, NULL, &file, &err), &err);
        assert_ok(pst_io_file_close(file, &err), &err);
        /* What is no lack of permission is an error. */
        pst_fault_fail(PST_FAULT_OPEN, 0, 1, EMFILE);
        assert_int_equal(pst_io_file_open_fd(io, fd, PST_IO_OPEN_READ, NULL, &file, &err), -EMFILE);
        close(fd);
    }
    int fd = open(path, O_RDONLY);
    pst_fault_fail(PST_FAULT_READLINK, 0, 1, ENOENT);
    assert_ok(pst_io_file_open_fd(io, fd, PST_IO_OPEN_READ, NULL, &file, &err), &err);
    assert_non_null(strstr(pst_io_file_path(file), "descriptor"));
    assert_ok(pst_io_file_close(file, &err), &err);
    close(fd);
    pst_fault_reset();
    assert_int_equal(open_descriptors(), before);
    pst_io_close(io);
}

/* Three system calls to open a file, and one descriptor, until the buffered one is needed. */
static void test_cost_of_opening(void **unused)
{
    (void)unused;
    pst_error err = {0};
    pst_io_file *file;
    const char *path = test_path(folder, "cheap");
    uint8_t *data = aligned_alloc(4096, 8192);
    memset(data, 1, 8192);
    pst_sys_replace(&pst_sys_fault);
    pst_fault_reset();
    pst_io *io = test_open("threads", 0, 2, 0, false);
    test_write_file(path, data, 8192);
    for (unsigned flags = PST_IO_OPEN_READ; flags <= PST_IO_OPEN_WRITE; flags++) {
        pst_fault_reset();
        assert_ok(pst_io_file_open(io, path, flags, &file, &err), &err);
        if (!pst_io_file_is_direct(file)) {
            assert_ok(pst_io_file_close(file, &err), &err);
            continue;
        }
        assert_int_equal(pst_fault_count(PST_FAULT_OPEN), 1);
        assert_true(pst_fault_count(PST_FAULT_STATX) <= 2);
        pst_io_op op = {.file = file, .buffer = data, .bytes = 8192, .kind = flags != 0 ? PST_IO_WRITE : PST_IO_READ};
        assert_ok(pst_io_transfer(io, &op, &err), &err);
        assert_int_equal(pst_fault_count(PST_FAULT_OPEN), 1);
        if (flags != PST_IO_OPEN_READ) {
            op.offset = 10;
            op.bytes = 10;
            assert_ok(pst_io_transfer(io, &op, &err), &err);
            assert_int_equal(pst_fault_count(PST_FAULT_OPEN), 2);
            /* A second descriptor that cannot be had fails the write that needs it, and only that. */
            assert_ok(pst_io_file_close(file, &err), &err);
            assert_ok(pst_io_file_open(io, path, flags, &file, &err), &err);
            pst_fault_fail(PST_FAULT_OPEN, 0, 1, EMFILE);
            op.file = file;
            assert_int_equal(pst_io_transfer(io, &op, &err), -EMFILE);
            assert_string_equal(err.path, path);
            assert_ok(pst_io_transfer(io, &op, &err), &err);
        }
        assert_ok(pst_io_file_close(file, &err), &err);
    }
    /* A file that may be written and not read. */
    pst_fault_fail(PST_FAULT_OPEN, 0, 1, EACCES);
    assert_ok(pst_io_file_open(io, path, PST_IO_OPEN_WRITE, &file, &err), &err);
    pst_io_op op = {.file = file, .offset = 5, .buffer = data, .bytes = 5000, .kind = PST_IO_WRITE};
    assert_ok(pst_io_transfer(io, &op, &err), &err);
    op.kind = PST_IO_READ;
    assert_int_equal(pst_io_transfer(io, &op, &err), -EBADF);
    assert_ok(pst_io_file_close(file, &err), &err);
    pst_io_close(io);
    free(data);
}

/* A thousand files open at once, for reading and for writing, within the usual limit of 1024 descriptors. */
static void test_many_files(void **unused)
{
    (void)unused;
    const char *engine;
    enum { FILES = 1000, BYTES = 4096 };
    pst_error err = {0};
    struct rlimit limit, usual;
    unsigned before = open_descriptors();
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    usual = limit;
    usual.rlim_cur = 1024;
    pst_io_file **files = calloc(FILES, sizeof *files);
    pst_io_op *ops = calloc(FILES, sizeof *ops);
    uint8_t *data = aligned_alloc(4096, FILES * BYTES), *expected = malloc(BYTES);
    char name[32];
    for (unsigned e = 0; (engine = test_engine(e)) != NULL; e++) {
        pst_io *io = test_open(engine, 0, 16, 2, false);
        pst_io_batch *batch;
        assert_ok(pst_io_batch_create(io, FILES, &batch, &err), &err);
        if (before < 20)
            assert_int_equal(setrlimit(RLIMIT_NOFILE, &usual), 0);
        for (int pass = 0; pass < 2; pass++) {
            for (unsigned i = 0; i < FILES; i++) {
                snprintf(name, sizeof name, "many%u", i);
                unsigned flags = pass == 0 ? PST_IO_OPEN_WRITE | PST_IO_OPEN_CREATE : PST_IO_OPEN_READ;
                assert_ok(pst_io_file_open(io, test_path(folder, name), flags, &files[i], &err), &err);
                ops[i] = (pst_io_op){.file = files[i], .buffer = data + (size_t)i * BYTES, .bytes = BYTES};
                ops[i].kind = pass == 0 ? PST_IO_WRITE : PST_IO_READ;
                if (pass == 0)
                    test_fill(ops[i].buffer, BYTES, i, 0);
                else
                    memset(ops[i].buffer, 0, BYTES);
            }
            assert_ok(pst_io_submit(batch, ops, FILES, &err), &err);
            assert_ok(pst_io_wait(batch, UINT64_MAX, &err), &err);
            for (unsigned i = 0; i < FILES; i++) {
                test_fill(expected, BYTES, i, 0);
                assert_memory_equal(ops[i].buffer, expected, BYTES);
                assert_ok(pst_io_file_close(files[i], &err), &err);
            }
        }
        assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
        pst_io_batch_destroy(batch);
        pst_io_close(io);
    }
    assert_int_equal(open_descriptors(), before);
    free(expected);
    free(data);
    free(ops);
    free(files);
}

int main(void)
{
#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        IN_FOLDER(test_other_kinds),      IN_FOLDER(test_descriptors),     IN_FOLDER(test_descriptors_refused),
        IN_FOLDER(test_descriptors_kept), IN_FOLDER(test_cost_of_opening), IN_FOLDER(test_many_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
