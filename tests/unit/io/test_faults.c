/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every system call of every kind, and every allocation, fails in turn while a file is written and read back
 * through the library: the outcome is either an error that says what and where, or the right bytes. Nothing
 * is left behind either way. Then transfers of every kind come back short, at every length that matters.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/heap.h"
#include "io/internal.h"
#include "os/sys_fault.h"
#include "penstock/io_engine.h"
#include "unit/io/io_test.h"

enum { BYTES = 150000, OFFSET = 1000, PIECE = 16384, STRAIGHT = 32 * 4096 };

static char *folder;
static uint8_t *model, *target, *straight;
static bool stayed_direct; /* the last life's file was as direct in the end as in the beginning */

static int set_up(void **unused)
{
    (void)unused;
    folder = test_folder_create(false);
    model = malloc(BYTES);
    target = malloc(BYTES);
    straight = aligned_alloc(4096, STRAIGHT);
    test_fill(model, BYTES, 77, 0);
    pst_fault_reset();
    pst_sys_replace(&pst_sys_fault);
    return 0;
}

static int tear_down(void **unused)
{
    (void)unused;
    pst_sys_replace(NULL);
    pst_heap_fail_after(-1, 0);
    free(straight);
    free(target);
    free(model);
    test_folder_remove(folder);
    return 0;
}

static unsigned open_descriptors(void)
{
    unsigned count = 0;
    DIR *entries = opendir("/proc/self/fd");
    if (entries == NULL)
        return 0;
    while (readdir(entries) != NULL)
        count++;
    closedir(entries);
    return count;
}

/* Two writes side by side, and reads of both in pieces that fit nothing. */
static int transfer_both(pst_io *io, pst_io_file *file, pst_io_batch *batch, pst_error *err)
{
    enum { SPLIT = 70001 };
    pst_io_op ops[2];
    for (int kind = 1; kind >= 0; kind--) {
        uint8_t *memory = kind == 1 ? model : target;
        ops[0] = (pst_io_op){.file = file, .offset = OFFSET, .buffer = memory, .bytes = SPLIT};
        ops[1] = (pst_io_op){.file = file, .offset = OFFSET + SPLIT, .buffer = memory + SPLIT, .bytes = BYTES - SPLIT};
        ops[0].kind = ops[1].kind = kind == 1 ? PST_IO_WRITE : PST_IO_READ;
        int status = pst_io_submit(batch, ops, 2, err);
        if (status >= 0)
            status = pst_io_wait(batch, UINT64_MAX, err);
        if (status < 0) {
            assert_true(err->path[0] != '\0');
            assert_true(err->offset <= OFFSET + BYTES + 4096);
            return status;
        }
    }
    /* Aligned, straight into a registered buffer. */
    pst_io_op whole = {.file = file, .offset = 4096, .buffer = straight, .bytes = STRAIGHT};
    int status = pst_io_transfer(io, &whole, err);
    if (status >= 0)
        assert_memory_equal(straight, model + 4096 - OFFSET, STRAIGHT);
    return status;
}

/* The whole life of a handle. *verified is set when data was read back. */
static int life(const char *engine, bool *verified, pst_error *err)
{
    pst_io_options options = {.struct_size = sizeof options, .engine = engine, .block_size = PIECE, .queue_depth = 4};
    pst_io *io = NULL;
    pst_io_file *file = NULL;
    pst_io_batch *batch = NULL;
    unsigned flags = PST_IO_OPEN_WRITE | PST_IO_OPEN_CREATE | PST_IO_OPEN_TRUNCATE;
    int status = pst_io_open(&options, &io, err);
    if (status >= 0)
        status = pst_io_register(io, straight, STRAIGHT, err);
    if (status >= 0)
        status = pst_io_file_open(io, test_path(folder, "file"), flags, &file, err);
    bool direct = status >= 0 && pst_io_file_is_direct(file);
    if (status >= 0)
        status = pst_io_file_truncate(file, OFFSET, err);
    if (status >= 0)
        status = pst_io_file_preallocate(file, OFFSET + BYTES, err);
    if (status >= 0)
        status = pst_io_batch_create(io, 2, &batch, err);
    if (status >= 0) {
        memset(target, 0, BYTES);
        memset(straight, 0, STRAIGHT);
        status = transfer_both(io, file, batch, err);
    }
    if (status >= 0) {
        assert_memory_equal(target, model, BYTES);
        *verified = true;
        status = pst_io_file_sync(file, err);
    }
    stayed_direct = file != NULL && pst_io_file_is_direct(file) == direct;
    pst_io_batch_destroy(batch);
    if (io != NULL)
        pst_io_unregister(io, straight);
    int closed = pst_io_file_close(file, status >= 0 ? err : NULL);
    pst_io_close(io);
    return status < 0 ? status : closed;
}

/* Fails the nth call, for every n until there is no nth. */
static void fail_in_turn(const char *engine, pst_fault_kind kind, int error)
{
    unsigned survived = 0, failed = 0;
    for (int64_t nth = 0;; nth++) {
        pst_error err = {0};
        bool verified = false;
        int64_t alive = pst_heap_live_count();
        unsigned descriptors = open_descriptors();
        pst_fault_reset();
        pst_fault_fail(kind, nth, 1, error);
        int status = life(engine, &verified, &err);
        bool struck = pst_fault_count(kind) > nth;
        pst_fault_reset();
        assert_int_equal(pst_heap_live_count(), alive);
        assert_int_equal(open_descriptors(), descriptors);
        if (status < 0) {
            assert_true(struck);
            if (status != -error)
                fail_msg("%s %lld: status %d, not %d: %s", pst_fault_name(kind), (long long)nth, status, -error,
                         err.message);
            assert_int_equal(err.code, status);
            assert_true(err.message[0] != '\0');
            assert_non_null(strstr(err.message, strerror(error)));
            failed++;
        } else {
            assert_true(verified);
            survived++;
        }
        if (!struck)
            break;
        assert_true(nth < 200);
    }
    if (kind == PST_FAULT_READ || kind == PST_FAULT_WRITE)
        assert_true(error == EINTR || error == EAGAIN ? failed == 0 && survived > 4 : failed > 4);
}

static void test_calls_fail(void **unused)
{
    (void)unused;
    for (unsigned e = 0; test_engine(e) != NULL; e++) {
        for (int kind = 0; kind < PST_FAULT_KINDS; kind++)
            fail_in_turn(test_engine(e), (pst_fault_kind)kind, kind == PST_FAULT_WRITE ? ENOSPC : EIO);
        fail_in_turn(test_engine(e), PST_FAULT_READ, EINTR);
        fail_in_turn(test_engine(e), PST_FAULT_WRITE, EINTR);
        fail_in_turn(test_engine(e), PST_FAULT_READ, EAGAIN);
        fail_in_turn(test_engine(e), PST_FAULT_WRITE, EAGAIN);
        fail_in_turn(test_engine(e), PST_FAULT_OPEN, EINTR);
        fail_in_turn(test_engine(e), PST_FAULT_OPEN, EMFILE);
    }
    fail_in_turn("auto", PST_FAULT_URING_INIT, EPERM);
}

/* A ring that refuses every call for a while, and transfers refused for ever. */
static void test_lasting_failures(void **unused)
{
    (void)unused;
    for (unsigned e = 0; test_engine(e) != NULL; e++) {
        pst_error err = {0};
        bool verified = false;
        pst_fault_reset();
        pst_fault_fail(PST_FAULT_READ, 0, INT64_MAX, EIO);
        assert_int_equal(life(test_engine(e), &verified, &err), -EIO);
        assert_false(verified);
    }
    if (!test_have_uring())
        return;
    for (int64_t nth = 1; nth < 12; nth++) {
        pst_error err = {0};
        bool verified = false;
        pst_fault_reset();
        pst_fault_fail(PST_FAULT_URING_ENTER, nth, 5, EBADF);
        int status = life("io_uring", &verified, &err);
        assert_true(status == -EBADF || (status == 0 && verified));
        pst_fault_reset();
        pst_fault_fail(PST_FAULT_URING_ENTER, nth, 5, EBUSY);
        assert_ok(life("io_uring", &verified, &err), &err);
    }
}

static void test_allocations_fail(void **unused)
{
    (void)unused;
    for (unsigned e = 0; test_engine(e) != NULL; e++) {
        int status = -1;
        for (int64_t nth = 0; status < 0; nth++) {
            pst_error err = {0};
            bool verified = false;
            int64_t alive = pst_heap_live_count();
            unsigned descriptors = open_descriptors();
            pst_fault_reset();
            pst_heap_fail_after(nth, 0);
            status = life(test_engine(e), &verified, &err);
            pst_heap_fail_after(-1, 0);
            assert_int_equal(pst_heap_live_count(), alive);
            assert_int_equal(open_descriptors(), descriptors);
            assert_int_equal(status, verified ? 0 : -ENOMEM);
            assert_true(nth < 100);
        }
    }
}

/* The nth transfer, then three in a row, then all of them, come back short: the right bytes all the same. */
static void test_short_transfers(void **unused)
{
    (void)unused;
    static const int64_t lengths[] = {1, 511, 512, 1000, 4096, 5000, 8192, 12288, 16383};
    static const pst_fault_kind kinds[] = {PST_FAULT_READ, PST_FAULT_WRITE};
    for (unsigned e = 0; test_engine(e) != NULL; e++) {
        for (size_t l = 0; l < sizeof lengths / sizeof lengths[0]; l++) {
            for (int k = 0; k < 2; k++) {
                for (int64_t nth = 0; nth < 24; nth += 1 + nth / 8) {
                    pst_error err = {0};
                    bool verified = false;
                    pst_fault_reset();
                    pst_fault_shorten(kinds[k], nth, 1 + nth % 3, lengths[l]);
                    assert_ok(life(test_engine(e), &verified, &err), &err);
                    assert_true(verified && stayed_direct);
                }
                if (lengths[l] >= 511) {
                    pst_error err = {0};
                    bool verified = false;
                    pst_fault_reset();
                    pst_fault_shorten(kinds[k], 0, INT64_MAX, lengths[l]);
                    assert_ok(life(test_engine(e), &verified, &err), &err);
                    assert_true(verified && stayed_direct);
                }
            }
        }
    }
}

/* A write that makes no progress ends, as an error; a read that brings nothing is the end of the file. */
static void test_no_progress(void **unused)
{
    (void)unused;
    for (unsigned e = 0; test_engine(e) != NULL; e++) {
        pst_error err = {0};
        bool verified = false;
        pst_fault_reset();
        pst_fault_shorten(PST_FAULT_WRITE, 2, INT64_MAX, 0);
        assert_int_equal(life(test_engine(e), &verified, &err), -EIO);
        pst_fault_reset();
        pst_fault_shorten(PST_FAULT_READ, 4, INT64_MAX, 0);
        assert_int_equal(life(test_engine(e), &verified, &err), PST_E_SHORT);
        assert_false(verified);
    }
}

/* One failing operation leaves the others of its batch alone. */
static void test_single_failure(void **unused)
{
    (void)unused;
    enum { OPS = 20 };
    const char *path = test_path(folder, "many");
    test_write_file(path, model, BYTES);
    for (unsigned e = 0; test_engine(e) != NULL; e++) {
        pst_io *io = test_open(test_engine(e), 4096, 8, 0, false);
        pst_io_file *file;
        pst_io_batch *batch;
        pst_io_op ops[OPS];
        pst_error err = {0};
        pst_fault_reset();
        assert_ok(pst_io_file_open(io, path, PST_IO_OPEN_READ, &file, &err), &err);
        assert_ok(pst_io_batch_create(io, OPS, &batch, &err), &err);
        for (int i = 0; i < OPS; i++)
            ops[i] = (pst_io_op){.file = file,
                                 .offset = (uint64_t)i * 4096,
                                 .buffer = target + i * 4096,
                                 .bytes = 4096,
                                 .kind = PST_IO_READ};
        pst_fault_fail(PST_FAULT_READ, 7, 1, EIO);
        assert_ok(pst_io_submit(batch, ops, OPS, &err), &err);
        assert_int_equal(pst_io_wait(batch, UINT64_MAX, &err), -EIO);
        unsigned bad = 0;
        for (int i = 0; i < OPS; i++) {
            if (ops[i].result < 0) {
                assert_int_equal(ops[i].result, -EIO);
                assert_int_equal(err.offset, ops[i].offset);
                bad++;
            } else {
                assert_int_equal(ops[i].result, 4096);
                assert_memory_equal(ops[i].buffer, model + ops[i].offset, 4096);
            }
        }
        assert_int_equal(bad, 1);
        assert_string_equal(err.path, path);
        pst_io_batch_destroy(batch);
        assert_ok(pst_io_file_close(file, &err), &err);
        pst_io_close(io);
    }
}

/* A ring whose every call is refused for want of resources: no spinning, and an error after about a second. */
static void test_ring_without_resources(void **unused)
{
    (void)unused;
    static const int errors[] = {EAGAIN, EBUSY};
    if (!test_have_uring())
        return;
    const char *path = test_path(folder, "file");
    test_write_file(path, model, BYTES);
    pst_fault_reset();
    pst_io *io = test_open("io_uring", PIECE, 4, 1, false);
    pst_io_file *file;
    pst_error err = {0};
    assert_ok(pst_io_file_open(io, path, PST_IO_OPEN_READ, &file, &err), &err);
    pst_io_op op = {.file = file, .buffer = target, .bytes = BYTES};
    for (int i = 0; i < 2; i++) {
        pst_fault_reset();
        pst_fault_fail(PST_FAULT_URING_ENTER, 0, INT64_MAX, errors[i]);
        assert_int_equal(pst_io_transfer(io, &op, &err), -EAGAIN);
        assert_true(pst_fault_count(PST_FAULT_SLEEP) >= 500);
        assert_true(pst_fault_count(PST_FAULT_URING_ENTER) <= 4 * (pst_fault_count(PST_FAULT_SLEEP) + 100));
        pst_fault_reset();
        memset(target, 0, BYTES);
        assert_ok(pst_io_transfer(io, &op, &err), &err); /* and all is well when it has passed */
        assert_memory_equal(target, model, BYTES);
    }
    assert_ok(pst_io_file_close(file, &err), &err);
    pst_io_close(io);
}

/* A read past the end of a direct file: the one thing for which a file that is only read needs its second
 * descriptor. */
static int read_past_end(pst_io *io, pst_io_file *file, int64_t *got, pst_error *err)
{
    pst_io_op op = {.file = file, .offset = 0, .buffer = straight, .bytes = STRAIGHT, .may_be_short = true};
    int status = pst_io_transfer(io, &op, err);
    *got = op.result;
    return status;
}

/* The second descriptor is opened when it is needed, finds the file under any name, and may fail. */
static void test_late_descriptor(void **unused)
{
    (void)unused;
    enum { FILES = 20, SMALL = 70001 };
    for (unsigned e = 0; test_engine(e) != NULL; e++) {
        pst_fault_reset();
        const char *path = test_path(folder, "late");
        test_write_file(path, model, SMALL);
        pst_io *io = test_open(test_engine(e), PIECE, 4, e == 0 ? 4 : 1, false);
        pst_io_file *files[FILES];
        pst_error err = {0};
        int64_t got = 0;
        unsigned before = open_descriptors();
        for (int i = 0; i < FILES; i++)
            assert_ok(pst_io_file_open(io, path, PST_IO_OPEN_READ, &files[i], &err), &err);
        assert_int_equal(open_descriptors(), before + FILES); /* one each */
        bool direct = pst_io_file_is_direct(files[0]);
        if (direct) {
            pst_fault_fail(PST_FAULT_OPEN, 0, 1, EMFILE);
            assert_int_equal(read_past_end(io, files[0], &got, &err), -EMFILE);
            assert_string_equal(err.path, path);
            assert_int_equal(open_descriptors(), before + FILES);
            pst_fault_fail(PST_FAULT_OPEN, 0, 1, ENOENT); /* no /proc: by its path */
            assert_ok(read_past_end(io, files[0], &got, &err), &err);
            assert_int_equal(got, SMALL);
            pst_fault_fail(PST_FAULT_STATX, 0, 1, EIO);
            assert_int_equal(read_past_end(io, files[1], &got, &err), -EIO);
            assert_int_equal(open_descriptors(), before + FILES + 1);
        }
        pst_fault_reset();
        assert_int_equal(rename(path, test_path(folder, "renamed")), 0);
        for (int i = 0; i < FILES; i++) {
            memset(straight, 0, SMALL);
            assert_ok(read_past_end(io, files[i], &got, &err), &err);
            assert_int_equal(got, SMALL);
            assert_memory_equal(straight, model, SMALL);
        }
        /* Replaced, and no /proc: another file's bytes are not taken for this one's. */
        pst_io_file *gone;
        test_write_file(path, model, SMALL);
        assert_ok(pst_io_file_open(io, path, PST_IO_OPEN_READ, &gone, &err), &err);
        assert_int_equal(rename(test_path(folder, "renamed"), path), 0);
        if (direct) {
            pst_fault_fail(PST_FAULT_OPEN, 0, 1, ENOENT);
            assert_int_equal(read_past_end(io, gone, &got, &err), -ESTALE);
        }
        pst_fault_reset();
        assert_ok(pst_io_file_close(gone, &err), &err);
        for (int i = 0; i < FILES; i++)
            assert_ok(pst_io_file_close(files[i], &err), &err);
        assert_int_equal(open_descriptors(), before);
        pst_io_close(io);
    }
}

/* EINVAL alone does not show that the file system refuses direct I/O: when the transfer fails without it as
 * well, the file stays direct. When it works without it, the file does not. */
static void test_doubtful_refusal(void **unused)
{
    (void)unused;
    const char *path = test_path(folder, "doubt");
    test_write_file(path, model, BYTES);
    for (unsigned e = 0; test_engine(e) != NULL; e++) {
        pst_fault_reset();
        pst_io *io = test_open(test_engine(e), 0, 4, 1, false);
        pst_io_file *file;
        pst_error err = {0};
        assert_ok(pst_io_file_open(io, path, PST_IO_OPEN_READ, &file, &err), &err);
        pst_io_op op = {.file = file, .offset = 4096, .buffer = straight, .bytes = 65536};
        if (pst_io_file_is_direct(file)) {
            pst_fault_fail(PST_FAULT_READ, 0, 2, EINVAL);
            assert_int_equal(pst_io_transfer(io, &op, &err), -EINVAL);
            assert_true(pst_io_file_is_direct(file));
            assert_ok(pst_io_transfer(io, &op, &err), &err);
            assert_true(pst_io_file_is_direct(file));
            pst_fault_fail(PST_FAULT_READ, 0, 1, EINVAL);
            assert_ok(pst_io_transfer(io, &op, &err), &err);
            assert_false(pst_io_file_is_direct(file));
        }
        assert_memory_equal(straight, model + 4096, op.bytes);
        assert_ok(pst_io_transfer(io, &op, &err), &err);
        assert_ok(pst_io_file_close(file, &err), &err);
        pst_io_close(io);
    }
}

/* A file created anew, whose opening fails later on, is not left behind. */
static void test_exclusive_cleanup(void **unused)
{
    (void)unused;
    pst_io *io = test_open("threads", 0, 1, 0, false);
    pst_io_file *file;
    pst_error err = {0};
    const char *path = test_path(folder, "new");
    unsigned flags = PST_IO_OPEN_WRITE | PST_IO_OPEN_CREATE | PST_IO_OPEN_EXCLUSIVE;
    pst_fault_reset();
    pst_fault_fail(PST_FAULT_OPEN, 1, 1, EMFILE);
    assert_int_equal(pst_io_file_open(io, path, flags, &file, &err), -EMFILE);
    assert_int_equal(access(path, F_OK), -1);
    pst_io_close(io);
}

/* A drive with sectors of two pages that stops a direct write after three pages: what follows is a multiple of its
 * sectors again, and the drive is not taken for one that refuses direct I/O. */
enum { LARGE_SECTOR = 2 * 4096, STOPS_AFTER = 3 * 4096 };

typedef struct large_queue {
    pst_io_request *done;
    bool stopped;
} large_queue;

static int large_open(const pst_io_engine *self, const pst_io_queue_settings *settings, void **out, pst_error *err)
{
    (void)self, (void)settings, (void)err;
    *out = calloc(1, sizeof(large_queue));
    return 0;
}

static void large_submit(void *queue, pst_io_request *const *requests, uint32_t count)
{
    large_queue *q = queue;
    pst_io_request *r = requests[0];
    assert_int_equal(count, 1);
    bool direct = (fcntl(r->fd, F_GETFL) & O_DIRECT) != 0;
    uint32_t bytes = direct && !q->stopped && r->bytes > STOPS_AFTER ? STOPS_AFTER : r->bytes;
    q->stopped = q->stopped || bytes < r->bytes;
    r->result = -EINVAL;
    if (!direct || (r->offset % LARGE_SECTOR == 0 && r->bytes % LARGE_SECTOR == 0))
        r->result = pwrite(r->fd, r->address, bytes, (off_t)r->offset);
    q->done = r;
}

static uint32_t large_reap(void *queue, pst_io_request **done, uint32_t max, bool wait)
{
    (void)max, (void)wait;
    large_queue *q = queue;
    uint32_t count = q->done != NULL;
    done[0] = q->done;
    q->done = NULL;
    return count;
}

static void test_large_sectors_stop(void **unused)
{
    (void)unused;
    static const pst_io_engine engine = {.version = PST_IO_ENGINE_VERSION,
                                         .struct_size = sizeof engine,
                                         .name = "large sectors",
                                         .flags = PST_IO_ENGINE_SYNCHRONOUS,
                                         .open_queue = large_open,
                                         .close_queue = free,
                                         .submit = large_submit,
                                         .reap = large_reap};
    pst_io_options options = {.struct_size = sizeof options, .engine_table = &engine, .workers = 1};
    pst_error err = {0};
    pst_io *io;
    pst_io_file *file;
    uint64_t bytes;
    const char *path = test_path(folder, "large");
    assert_ok(pst_io_open(&options, &io, &err), &err);
    assert_ok(pst_io_file_open(io, path, PST_IO_OPEN_WRITE | PST_IO_OPEN_CREATE, &file, &err), &err);
    if (pst_io_file_is_direct(file)) {
        file->offset_align = LARGE_SECTOR;
        memcpy(straight, model, STRAIGHT);
        pst_io_op op = {.file = file, .buffer = straight, .bytes = STRAIGHT, .kind = PST_IO_WRITE};
        assert_ok(pst_io_transfer(io, &op, &err), &err);
        assert_true(pst_io_file_is_direct(file));
        uint8_t *now = test_read_file(path, &bytes);
        assert_int_equal(bytes, STRAIGHT);
        assert_memory_equal(now, model, STRAIGHT);
        free(now);
    }
    assert_ok(pst_io_file_close(file, &err), &err);
    pst_io_close(io);
}

int main(void)
{
#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        IN_FOLDER(test_calls_fail),         IN_FOLDER(test_lasting_failures),
        IN_FOLDER(test_allocations_fail),   IN_FOLDER(test_short_transfers),
        IN_FOLDER(test_no_progress),        IN_FOLDER(test_single_failure),
        IN_FOLDER(test_exclusive_cleanup),  IN_FOLDER(test_ring_without_resources),
        IN_FOLDER(test_late_descriptor),    IN_FOLDER(test_doubtful_refusal),
        IN_FOLDER(test_large_sectors_stop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
