/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Everything that publishes files or folders, with the power failing at each step and at each sync: what is found
 * afterwards is the old version or the new one, whole; and the new one once success was reported. The same test is run
 * on publishing done wrong, and must catch each mistake.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "base/heap.h"
#include "fault/crash_test.h"
#include "os/file.h"
#include "store/folder.h"
#include "store/safetensors_write.h"

enum { BYTES = 5000 }; /* of a small file: some sectors */

static char old_text[BYTES + 1], new_text[BYTES + 1];

static int set_up(void **unused)
{
    (void)unused;
    for (int i = 0; i < BYTES; i++) {
        old_text[i] = (char)('a' + i % 23);
        new_text[i] = (char)('A' + i % 19);
    }
    return 0;
}

static int tear_down(void **unused)
{
    (void)unused;
    pst_crash_forget();
    pst_sys_replace(NULL);
    return 0;
}

/* The path of a name in a folder; for calls that may log or fail it stays good for a few more calls. */
static const char *in(const char *folder, const char *name)
{
    return test_path(folder, name);
}

static bool has(const char *folder, const char *name, const char *text)
{
    char *found = crash_read_text(in(folder, name));
    bool same = found != NULL && strcmp(found, text) == 0;
    free(found);
    return same;
}

/* ---- one file ---- */

static void prepare_old(const char *folder, void *context)
{
    (void)context;
    test_write_file(in(folder, "config"), old_text, BYTES);
    test_write_file(in(folder, "other"), old_text, BYTES);
}

static bool check_file(const char *folder, bool done, void *context)
{
    (void)context;
    if (!has(folder, "other", old_text))
        return false;
    return has(folder, "config", new_text) || (!done && has(folder, "config", old_text));
}

static int act_publish(const char *folder, void *context, pst_error *err)
{
    (void)context;
    return pst_file_publish(in(folder, "config"), new_text, BYTES, err);
}

static int act_publish_rename(const char *folder, void *context, pst_error *err)
{
    (void)context;
    const char *temporary = in(folder, "temporary"), *path = in(folder, "config");
    int fd = pst_sys->open(temporary, O_WRONLY | O_CREAT | O_EXCL, 0600);
    if (fd < 0)
        return pst_fail(err, fd, temporary, "cannot create");
    ssize_t put = pst_sys_write_all(fd, new_text, 3000, 0);
    if (put >= 0)
        put = pst_sys_write_all(fd, new_text + 3000, BYTES - 3000, 3000);
    int closed = pst_sys->close(fd); /* without a sync: publishing sees to that */
    if (put < 0 || closed < 0)
        return pst_fail(err, -EIO, temporary, "cannot write");
    return pst_file_publish_rename(temporary, path, err);
}

static void assert_never_bad(const crash_trial *trial, unsigned least_steps, unsigned syncs)
{
    crash_count count = crash_try_all(trial, true);
    assert_int_equal(count.bad, 0);
    assert_true(count.steps >= least_steps);
    assert_int_equal(count.syncs, syncs);
    assert_int_equal(count.failures, count.steps + count.syncs + 2);
}

static void test_publish(void **unused)
{
    (void)unused;
    const crash_trial trial = {.prepare = prepare_old, .act = act_publish, .check = check_file};
    assert_never_bad(&trial, 5, 2); /* create, write, sync, rename, sync */
}

static void test_publish_rename(void **unused)
{
    (void)unused;
    const crash_trial trial = {.prepare = prepare_old, .act = act_publish_rename, .check = check_file};
    assert_never_bad(&trial, 6, 2);
}

/* ---- publishing done wrong ---- */

enum {
    NO_DATA_SYNC = 1,
    NO_FOLDER_SYNC = 2,
    IN_PLACE = 4,
    SYNC_TOO_EARLY = 8,
    RENAME_TOO_EARLY = 16,
    REMOVE_FIRST = 32
};

static int sync_path(const char *path, int flags)
{
    int fd = pst_sys->open(path, flags, 0);
    PST_TRY(fd);
    int status = pst_sys->fsync(fd);
    pst_sys->close(fd);
    return status;
}

static int write_wrongly(int fd, unsigned mistakes)
{
    ssize_t put = pst_sys_write_all(fd, new_text, 2000, 0);
    PST_TRY((int)put);
    if ((mistakes & SYNC_TOO_EARLY) != 0)
        PST_TRY(pst_sys->fdatasync(fd));
    put = pst_sys_write_all(fd, new_text + 2000, BYTES - 2000, 2000);
    PST_TRY((int)put);
    return (mistakes & (NO_DATA_SYNC | SYNC_TOO_EARLY | RENAME_TOO_EARLY)) == 0 ? pst_sys->fdatasync(fd) : 0;
}

static int act_wrongly(const char *folder, void *context, pst_error *err)
{
    (void)err;
    unsigned mistakes = *(unsigned *)context;
    const char *path = in(folder, "config"), *temporary = (mistakes & IN_PLACE) != 0 ? path : in(folder, "temporary");
    int fd = pst_sys->open(temporary, O_WRONLY | O_CREAT, 0600);
    PST_TRY(fd);
    int status = write_wrongly(fd, mistakes);
    pst_sys->close(fd);
    PST_TRY(status);
    if ((mistakes & REMOVE_FIRST) != 0)
        PST_TRY(pst_sys->unlink(path));
    if ((mistakes & IN_PLACE) == 0)
        PST_TRY(pst_sys->rename(temporary, path));
    if ((mistakes & NO_FOLDER_SYNC) == 0)
        PST_TRY(sync_path(folder, O_RDONLY | O_DIRECTORY));
    return (mistakes & RENAME_TOO_EARLY) != 0 ? sync_path(path, O_RDONLY) : 0;
}

/* Done right, the same code leaves no bad state; each mistake leaves some. */
static void test_mistakes_are_caught(void **unused)
{
    (void)unused;
    static const unsigned mistakes[] = {0,        NO_DATA_SYNC,   NO_FOLDER_SYNC,   NO_DATA_SYNC | NO_FOLDER_SYNC,
                                        IN_PLACE, SYNC_TOO_EARLY, RENAME_TOO_EARLY, REMOVE_FIRST};
    for (size_t i = 0; i < sizeof mistakes / sizeof mistakes[0]; i++) {
        unsigned mistake = mistakes[i];
        const crash_trial trial = {
            .prepare = prepare_old, .act = act_wrongly, .check = check_file, .context = &mistake};
        crash_count count = crash_try_all(&trial, false);
        assert_true(count.steps >= 4);
        if (mistake == 0)
            assert_int_equal(count.bad, 0);
        else if (count.bad == 0)
            fail_msg("mistake %#x was not noticed in %u states", mistake, count.states);
    }
}

/* ---- a folder ---- */

static void prepare_nothing(const char *folder, void *context)
{
    (void)context;
    test_write_file(in(folder, "other"), old_text, BYTES);
}

static bool check_folder(const char *folder, bool done, void *context)
{
    (void)context;
    if (!has(folder, "other", old_text))
        return false;
    if (access(in(folder, "model"), F_OK) != 0)
        return !done;
    return has(folder, "model/config", new_text) && has(folder, "model/tokens", old_text);
}

static int act_folder(const char *folder, void *context, pst_error *err)
{
    unsigned mistakes = *(unsigned *)context;
    pst_folder *made = NULL;
    PST_TRY(pst_folder_begin(in(folder, "model"), &made, err));
    char *config = pst_folder_file(made, "config"), *tokens = pst_folder_file(made, "tokens");
    int status = pst_file_publish(config, new_text, BYTES, err);
    if (status >= 0 && (mistakes & NO_DATA_SYNC) == 0)
        status = pst_file_publish(tokens, old_text, BYTES, err);
    if (status >= 0 && (mistakes & NO_DATA_SYNC) != 0) {
        int fd = pst_sys->open(tokens, O_WRONLY | O_CREAT, 0600);
        status = fd < 0 ? fd : (int)pst_sys_write_all(fd, old_text, BYTES, 0);
        if (fd >= 0)
            pst_sys->close(fd);
    }
    if (status >= 0)
        status = pst_folder_finish(made, err);
    pst_heap_free(config);
    pst_heap_free(tokens);
    pst_folder_close(made);
    return status;
}

static void test_folder(void **unused)
{
    (void)unused;
    unsigned mistake = 0;
    const crash_trial trial = {
        .prepare = prepare_nothing, .act = act_folder, .check = check_folder, .context = &mistake};
    assert_never_bad(&trial, 14, 6);
    mistake = NO_DATA_SYNC;
    assert_true(crash_try_all(&trial, false).bad > 0);
}

/* The bare calls; a sync less and the test notices. */
static int act_bare_folder(const char *folder, void *context, pst_error *err)
{
    unsigned mistakes = *(unsigned *)context;
    const char *temporary = in(folder, "model.tmp"), *path = in(folder, "model");
    PST_TRY(pst_folder_create(temporary, err));
    PST_TRY(pst_file_publish(in(temporary, "config"), new_text, BYTES, err));
    int fd = pst_sys->open(in(temporary, "tokens"), O_WRONLY | O_CREAT, 0600);
    PST_TRY(fd);
    ssize_t put = pst_sys_write_all(fd, old_text, BYTES, 0);
    int status = put < 0 ? (int)put : pst_sys->fdatasync(fd);
    pst_sys->close(fd);
    PST_TRY(status);
    if ((mistakes & NO_FOLDER_SYNC) == 0)
        return pst_folder_publish(temporary, path, err);
    PST_TRY(pst_sys->rename(temporary, path)); /* the folder's own entries are not synced */
    return pst_folder_sync(folder, err);
}

static void test_bare_folder(void **unused)
{
    (void)unused;
    unsigned mistake = 0;
    const crash_trial trial = {
        .prepare = prepare_nothing, .act = act_bare_folder, .check = check_folder, .context = &mistake};
    assert_never_bad(&trial, 11, 5);
    mistake = NO_FOLDER_SYNC;
    assert_true(crash_try_all(&trial, false).bad > 0);
}

/* ---- tensors ---- */

enum { ELEMENTS = 40000, TENSORS = 3 };

typedef struct tensor_context {
    const char *engine;
    uint8_t *whole; /* the file as it must be */
    uint64_t whole_bytes;
} tensor_context;

static int write_tensors(const tensor_context *c, const char *folder, pst_error *err)
{
    static uint8_t data[ELEMENTS * 4];
    pst_tensor tensors[TENSORS];
    char *names[] = {(char[]){"first"}, (char[]){"second"}, (char[]){"third"}};
    memset(tensors, 0, sizeof tensors);
    for (int i = 0; i < TENSORS; i++) {
        tensors[i].name = names[i];
        tensors[i].dtype = PST_F32;
        tensors[i].rank = 1;
        tensors[i].shape[0] = ELEMENTS;
    }
    pst_io *io = test_open(c->engine, 65536, 4, 0, false);
    pst_safetensors_writer *writer = NULL;
    int status =
        pst_safetensors_writer_open(io, in(folder, "model.safetensors"), tensors, TENSORS, NULL, 0, &writer, err);
    for (int i = 0; i < TENSORS && status >= 0; i++) {
        test_fill(data, sizeof data, (uint64_t)i + 1, 0);
        status = pst_safetensors_writer_append(writer, data, sizeof data, err);
    }
    if (status >= 0)
        status = pst_safetensors_writer_finish(writer, err);
    pst_safetensors_writer_close(writer);
    pst_io_close(io);
    return status;
}

static int act_tensors(const char *folder, void *context, pst_error *err)
{
    return write_tensors(context, folder, err);
}

static void prepare_tensors(const char *folder, void *context)
{
    (void)context;
    test_write_file(in(folder, "model.safetensors"), old_text, BYTES);
}

static bool check_tensors(const char *folder, bool done, void *context)
{
    const tensor_context *c = context;
    const char *path = in(folder, "model.safetensors");
    if (access(path, F_OK) != 0)
        return false;
    uint64_t bytes;
    uint8_t *found = test_read_file(path, &bytes);
    bool fresh = bytes == c->whole_bytes && memcmp(found, c->whole, bytes) == 0;
    bool old = bytes == BYTES && memcmp(found, old_text, BYTES) == 0;
    free(found);
    return fresh || (old && !done);
}

static void try_tensors(const char *engine)
{
    tensor_context c = {.engine = engine};
    pst_error err = {0};
    char *folder = crash_make_folder();
    assert_ok(write_tensors(&c, folder, &err), &err);
    c.whole = test_read_file(in(folder, "model.safetensors"), &c.whole_bytes);
    assert_true(c.whole_bytes > TENSORS * ELEMENTS * 4);
    crash_remove_tree(folder);
    free(folder);
    const crash_trial trial = {
        .prepare = prepare_tensors, .act = act_tensors, .check = check_tensors, .context = &c, .seeds = 25};
    crash_count count = crash_try_all(&trial, true);
    assert_int_equal(count.bad, 0);
    assert_true(count.steps >= 12); /* create, reserve, 8 or more writes, cut, sync, sync, rename, sync */
    assert_int_equal(count.syncs, 3);
    free(c.whole);
}

static void test_tensors_threads(void **unused)
{
    (void)unused;
    try_tensors("threads");
}

static void test_tensors_libaio(void **unused)
{
    (void)unused;
    try_tensors("libaio");
}

static void test_tensors_uring(void **unused)
{
    (void)unused;
    if (test_have_uring())
        try_tensors("io_uring");
}

int main(void)
{
#define TRIAL(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TRIAL(test_publish),        TRIAL(test_publish_rename), TRIAL(test_mistakes_are_caught),
        TRIAL(test_folder),         TRIAL(test_bare_folder),    TRIAL(test_tensors_threads),
        TRIAL(test_tensors_libaio), TRIAL(test_tensors_uring),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
