/* SPDX-License-Identifier: Apache-2.0 */
/* Training folders: steps come and go, resume finds the right one, and what is not ours stays. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/heap.h"
#include "ckpt/steps.h"
#include "fault/crash_test.h"
#include "os/file.h"
#include "os/sys_fault.h"
#include "store/safetensors_write.h"
#include "thread_ranks.h"

static char *folder;

static int set_up(void **unused)
{
    (void)unused;
    folder = test_folder_create(true); /* there are many syncs */
    if (folder == NULL)
        folder = test_folder_create(false);
    return 0;
}

static int tear_down(void **unused)
{
    (void)unused;
    pst_sys_replace(NULL);
    pst_heap_fail_after(-1, 0);
    crash_remove_tree(folder);
    free(folder);
    return 0;
}

static const char *in(const char *name)
{
    return test_path(folder, name);
}

static bool is_there(const char *name)
{
    return access(in(name), F_OK) == 0;
}

static void put(const char *where, const char *name, const char *text)
{
    test_write_file(test_path(where, name), text, strlen(text));
}

static unsigned count_entries(const char *path)
{
    unsigned count = 0;
    DIR *entries = opendir(path);
    assert_non_null(entries);
    while (readdir(entries) != NULL)
        count++;
    closedir(entries);
    return count - 2;
}

/* A step with a file at its top and one in a folder; what commit says. */
static int make_step(uint64_t number, const pst_ckpt_commit_options *options, const char *text, pst_error *err)
{
    pst_ckpt_step *step = NULL;
    int status = pst_ckpt_step_begin(folder, number, NULL, &step, err);
    if (status < 0)
        return status;
    const char *path = pst_ckpt_step_path(step);
    put(path, "state.json", text);
    assert_int_equal(mkdir(test_path(path, "sub"), 0777), 0);
    put(path, "sub/more", text);
    status = pst_ckpt_step_commit(step, options, err);
    pst_ckpt_step_end(step);
    return status;
}

static void commit(uint64_t number, uint32_t keep_last)
{
    const pst_ckpt_commit_options o = {.struct_size = sizeof o, .keep_last = keep_last};
    pst_error err = {0};
    assert_ok(make_step(number, &o, "content", &err), &err);
}

static void assert_latest(uint64_t number)
{
    uint64_t step = 0;
    char *path = NULL, name[64];
    pst_error err = {0};
    assert_ok(pst_ckpt_latest(folder, &step, &path, &err), &err);
    assert_true(step == number);
    snprintf(name, sizeof name, "step-%06llu", (unsigned long long)number);
    assert_string_equal(path, in(name));
    pst_ckpt_free_path(path);
}

static void assert_steps(size_t count, const uint64_t *expected)
{
    uint64_t steps[16];
    pst_error err = {0};
    int64_t found = pst_ckpt_steps(folder, steps, 16, &err);
    assert_int_equal(found, count);
    for (size_t i = 0; i < count; i++)
        assert_true(steps[i] == expected[i]);
}
#define STEPS(...) assert_steps(sizeof((uint64_t[]){__VA_ARGS__}) / 8, (const uint64_t[]){__VA_ARGS__})

static uint32_t sweep(void)
{
    uint32_t removed = 77;
    pst_error err = {0};
    assert_ok(pst_ckpt_sweep(folder, &removed, &err), &err);
    return removed;
}

static void test_one_after_the_other(void **unused)
{
    (void)unused;
    pst_error err = {0};
    assert_int_equal(pst_ckpt_latest(folder, NULL, NULL, &err), -ENOENT);
    commit(100, 0);
    assert_latest(100);
    commit(200, 0);
    assert_latest(200);
    STEPS(100, 200);
    char *latest = crash_read_text(in("latest"));
    assert_string_equal(latest, "step-000200");
    free(latest);
    assert_int_equal(count_entries(folder), 3); /* nothing else is left */
    assert_false(is_there("step-000200/" PST_STEPS_LOCK));
    pst_manifest m;
    assert_ok(pst_manifest_read(in("step-000200"), &m, &err), &err);
    assert_int_equal(m.file_count, 2);
    assert_string_equal(m.files[0].name, "state.json");
    assert_string_equal(m.files[1].name, "sub/more");
    assert_true(m.files[1].bytes == 7 && !m.files[1].covers_header && m.ranks == 1);
    pst_manifest_free(&m);
    uint64_t one[1];
    assert_int_equal(pst_ckpt_steps(folder, one, 1, &err), 2); /* more than there is room for */
    assert_true(one[0] == 100);
    assert_int_equal(sweep(), 0);
}

static void test_keep_last(void **unused)
{
    (void)unused;
    assert_int_equal(mkdir(in("step-000005"), 0777), 0); /* no step, but a folder of somebody's */
    put(in("step-000005"), "notes", "mine");
    assert_int_equal(mkdir(in("steps"), 0777), 0);
    put(folder, "step-000007", "a file");
    for (uint64_t i = 10; i <= 50; i += 10)
        commit(i, 0);
    commit(60, 3);
    STEPS(40, 50, 60);
    commit(45, 2); /* after a step back: later ones are not older */
    STEPS(40, 45, 50, 60);
    assert_latest(45);
    commit(70, 1);
    STEPS(70);
    assert_true(is_there("step-000005/notes") && is_there("steps") && is_there("step-000007"));
    assert_int_equal(sweep(), 0);
    assert_int_equal(count_entries(folder), 5);
}

static void test_latest_that_lies(void **unused)
{
    (void)unused;
    static const char *const lies[] = {"", "step-000300", "../step-000100", "step-100", "nonsense\n", "step-000100x"};
    commit(100, 0);
    commit(200, 0);
    for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        put(folder, "latest", lies[i]);
        assert_latest(200);
    }
    put(folder, "latest", "step-000100\n"); /* as an editor leaves it */
    assert_latest(100);
    assert_int_equal(unlink(in("latest")), 0);
    assert_latest(200);
    assert_int_equal(mkdir(in("latest"), 0777), 0);
    assert_latest(200);
}

/* A step of which something is missing or changed is none. */
static void test_incomplete(void **unused)
{
    (void)unused;
    for (uint64_t i = 1; i <= 6; i++)
        commit(i, 0);
    assert_int_equal(unlink(in("step-000006/sub/more")), 0);
    assert_latest(5);
    put(in("step-000005"), "state.json", "longer content");
    assert_latest(4);
    assert_int_equal(unlink(in("step-000004/" PST_MANIFEST_NAME)), 0);
    assert_latest(3);
    put(in("step-000003"), PST_MANIFEST_NAME, "{}");
    assert_latest(2);
    assert_int_equal(rename(in("step-000002"), in("step-000009")), 0); /* a manifest of another number */
    assert_latest(1);
    put(in("step-000001"), "new", "what the manifest does not name is no harm");
    assert_latest(1);
    STEPS(1);
    assert_int_equal(sweep(), 0); /* none of these is ours to remove */
    assert_true(is_there("step-000003"));
}

static void test_names(void **unused)
{
    (void)unused;
    uint64_t step = 42;
    assert_true(pst_steps_parse("step-000000", &step) && step == 0);
    assert_true(pst_steps_parse("step-9223372036854775807", &step) && step == INT64_MAX);
    static const char *const bad[] = {"step-",
                                      "step-1",
                                      "step-0000001",
                                      "step-00000x",
                                      "step-9223372036854775808",
                                      "step-99999999999999999999999",
                                      "Step-000001",
                                      "step-+00001",
                                      "step-000001 "};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_false(pst_steps_parse(bad[i], &step));
    assert_true(pst_steps_is_unfinished("step-000001.tmp-abcdefghijkl"));
    assert_true(pst_steps_is_unfinished("latest.tmp-ABCDEFGHI_-0"));
    assert_false(pst_steps_is_unfinished("step-000001.tmp-abcdefghijk"));
    assert_false(pst_steps_is_unfinished("step-000001.tmp-abcdefghijk."));
    assert_false(pst_steps_is_unfinished("step-1.tmp-abcdefghijkl"));
    assert_false(pst_steps_is_unfinished("model.tmp-abcdefghijkl"));
    assert_false(pst_steps_is_unfinished("step-000001"));
}

static void test_replace(void **unused)
{
    (void)unused;
    pst_error err = {0};
    pst_ckpt_commit_options o = {.struct_size = sizeof o};
    commit(100, 0);
    assert_int_equal(make_step(100, &o, "second", &err), -EEXIST);
    assert_string_equal(err.path, in("step-000100"));
    char *text = crash_read_text(in("step-000100/state.json"));
    assert_string_equal(text, "content");
    free(text);
    assert_int_equal(count_entries(folder), 2);
    o.replace = true;
    assert_ok(make_step(100, &o, "second", &err), &err);
    text = crash_read_text(in("step-000100/state.json"));
    assert_string_equal(text, "second");
    free(text);
    assert_int_equal(count_entries(folder), 2);
    assert_latest(100);
    /* An incomplete one makes way without being asked, and stays until the sweep. */
    assert_int_equal(unlink(in("step-000100/state.json")), 0);
    o.replace = false;
    assert_ok(make_step(100, &o, "third", &err), &err);
    assert_latest(100);
    assert_int_equal(count_entries(folder), 3);
    assert_int_equal(sweep(), 1);
    assert_int_equal(count_entries(folder), 2);
    /* A file of that name is nobody's step. */
    put(folder, "step-000101", "a file");
    assert_int_equal(make_step(101, &o, "x", &err), -EEXIST);
}

static int refuse_exchange(const char *a, const char *b)
{
    (void)a, (void)b;
    return -EINVAL;
}

static void test_no_exchange(void **unused)
{
    (void)unused;
    static pst_sys_table table;
    pst_error err = {0};
    const pst_ckpt_commit_options o = {.struct_size = sizeof o, .replace = true};
    commit(100, 0);
    table = pst_sys_real;
    table.rename_exchange = refuse_exchange;
    pst_sys_replace(&table);
    assert_int_equal(make_step(100, &o, "second", &err), PST_E_UNSUPPORTED);
    pst_sys_replace(NULL);
    char *text = crash_read_text(in("step-000100/state.json"));
    assert_string_equal(text, "content");
    free(text);
    assert_int_equal(count_entries(folder), 2);
}

static void test_abandoned(void **unused)
{
    (void)unused;
    pst_error err = {0};
    pst_ckpt_step *step = NULL;
    char deep[512];
    snprintf(deep, sizeof deep, "%s/a/b", folder); /* made with its parents */
    assert_ok(pst_ckpt_step_begin(deep, 1, NULL, &step, &err), &err);
    put(pst_ckpt_step_path(step), "file", "x");
    assert_int_equal(count_entries(deep), 1);
    pst_ckpt_step_end(step);
    assert_int_equal(count_entries(deep), 0);
    pst_ckpt_step_end(NULL);
}

/* A living step is left alone; one whose process died is swept, and nothing else. */
static void test_sweep(void **unused)
{
    (void)unused;
    pst_error err = {0};
    pst_ckpt_step *step = NULL;
    commit(1, 0);
    assert_ok(pst_ckpt_step_begin(folder, 2, NULL, &step, &err), &err);
    put(pst_ckpt_step_path(step), "file", "x");
    assert_int_equal(mkdir(in("step-000003.tmp-abcdefghijkl"), 0777), 0);
    put(in("step-000003.tmp-abcdefghijkl"), "file", "x");
    assert_int_equal(symlink("..", in("step-000003.tmp-abcdefghijkl/link")), 0);
    assert_int_equal(mkdir(in("step-000003.tmp-abcdefghijkl/sub"), 0777), 0);
    put(in("step-000003.tmp-abcdefghijkl/sub"), PST_STEPS_LOCK, "");
    put(folder, "latest.tmp-abcdefghijkl", "step-000001");
    put(folder, "step-000004.tmp-abcdefghijkl", "a file, not a folder");
    assert_int_equal(mkdir(in("other.tmp-abcdefghijkl"), 0777), 0);
    assert_int_equal(sweep(), 2);
    assert_true(is_there("step-000004.tmp-abcdefghijkl") && is_there("other.tmp-abcdefghijkl"));
    assert_false(is_there("step-000003.tmp-abcdefghijkl"));
    assert_ok(pst_ckpt_step_commit(step, NULL, &err), &err);
    assert_int_equal(pst_ckpt_step_commit(step, NULL, &err), PST_E_USAGE);
    pst_ckpt_step_end(step);
    assert_latest(2);
    assert_int_equal(pst_ckpt_sweep(in("nowhere"), NULL, &err), -ENOENT);
}

/* While a step is published, `latest` is on its way. */
static void test_sweep_beside_a_commit(void **unused)
{
    (void)unused;
    commit(1, 0);
    int fd = open(in("step-000001/" PST_STEPS_LOCK), O_RDWR | O_CREAT, 0600);
    assert_true(fd >= 0 && flock(fd, LOCK_SH) == 0);
    put(folder, "latest.tmp-abcdefghijkl", "step-000001");
    assert_int_equal(sweep(), 0);
    close(fd);
    assert_int_equal(sweep(), 1);
}

/* A folder of a step's name that another program has made is not ours to remove. */
static void test_folder_of_another(void **unused)
{
    (void)unused;
    const pst_ckpt_commit_options again = {.struct_size = sizeof again, .replace = true};
    pst_error err = {0};
    assert_int_equal(mkdir(in("step-000007"), 0777), 0);
    put(in("step-000007"), "model.bin", "weeks of work");
    assert_int_equal(make_step(7, NULL, "x", &err), -EEXIST);
    assert_int_equal(make_step(7, &again, "x", &err), -EEXIST);
    assert_string_equal(err.path, in("step-000007"));
    assert_int_equal(sweep(), 0);
    assert_true(is_there("step-000007/model.bin"));
    assert_int_equal(unlink(in("step-000007/model.bin")), 0);
    assert_ok(make_step(7, NULL, "x", &err), &err);
    assert_latest(7);
}

/* A step that somebody has moved to another drive and linked: the link goes, and not what it leads to. */
static void test_links(void **unused)
{
    (void)unused;
    const pst_ckpt_commit_options again = {.struct_size = sizeof again, .replace = true};
    pst_error err = {0};
    assert_int_equal(mkdir(in("elsewhere"), 0777), 0);
    for (uint64_t i = 1; i <= 2; i++) {
        const char *name = i == 1 ? "step-000001" : "step-000002", *place = i == 1 ? "elsewhere/1" : "elsewhere/2";
        commit(i, 0);
        assert_int_equal(rename(in(name), in(place)), 0);
        assert_int_equal(symlink(place, in(name)), 0);
    }
    assert_ok(make_step(2, &again, "new", &err), &err);
    commit(3, 2);
    STEPS(2, 3);
    assert_int_equal(symlink("elsewhere/1", in("step-000001.tmp-abcdefghijkl")), 0);
    assert_int_equal(sweep(), 1);
    assert_int_equal(count_entries(folder), 4); /* elsewhere, 2, 3, latest */
    assert_true(is_there("elsewhere/1/state.json") && is_there("elsewhere/2/sub/more"));
    assert_false(is_there("elsewhere/1/" PST_STEPS_LOCK));
}

/* The folder is the one from where the program was when it began. */
static void test_elsewhere(void **unused)
{
    (void)unused;
    char here[4096];
    pst_ckpt_step *step = NULL;
    pst_error err = {0};
    assert_non_null(getcwd(here, sizeof here));
    assert_int_equal(chdir(folder), 0);
    int status = pst_ckpt_step_begin("run 1/steps", 1, NULL, &step, &err);
    assert_int_equal(chdir(here), 0);
    assert_ok(status, &err);
    put(pst_ckpt_step_path(step), "file", "x");
    assert_ok(pst_ckpt_step_commit(step, NULL, &err), &err);
    pst_ckpt_step_end(step);
    assert_true(is_there("run 1/steps/step-000001/file") && is_there("run 1/steps/latest"));
}

static void test_strange_files(void **unused)
{
    (void)unused;
    pst_error err = {0};
    pst_ckpt_step *step = NULL;
    assert_ok(pst_ckpt_step_begin(folder, 1, NULL, &step, &err), &err);
    const char *path = pst_ckpt_step_path(step);
    assert_int_equal(symlink("/etc/passwd", test_path(path, "link")), 0);
    assert_int_equal(pst_ckpt_step_commit(step, NULL, &err), PST_E_UNSUPPORTED);
    assert_int_equal(unlink(test_path(path, "link")), 0);
    put(path, "\xff name", "x");
    assert_int_equal(pst_ckpt_step_commit(step, NULL, &err), PST_E_USAGE);
    assert_int_equal(unlink(test_path(path, "\xff name")), 0);
    assert_ok(pst_ckpt_step_commit(step, NULL, &err), &err); /* what failed may be tried again */
    pst_ckpt_step_end(step);
    assert_latest(1);
    assert_int_equal(pst_ckpt_step_begin(folder, (uint64_t)INT64_MAX + 1, NULL, &step, &err), PST_E_USAGE);
    put(folder, "file", "x");
    assert_true(pst_ckpt_step_begin(in("file"), 1, NULL, &step, &err) < 0);
}

/* ---- files that tell their own digest ---- */

static void write_tensor(const char *path, const char *own)
{
    const pst_metadata metadata = {"penstock.file", own};
    pst_tensor tensor = {.name = "t", .dtype = PST_U8, .rank = 1, .shape = {5}};
    pst_error err = {0};
    char *header = NULL;
    size_t bytes = 0;
    assert_ok(pst_safetensors_header(&tensor, 1, &metadata, 1, &header, &bytes, &err), &err);
    char *file = malloc(bytes + 5);
    assert_non_null(file);
    memcpy(file, header, bytes);
    memcpy(file + bytes, "12345", 5);
    test_write_file(path, file, bytes + 5);
    free(file);
    pst_heap_free(header);
}

/* The digest of the header with zeros, then the file with that digest in it. */
static void digest_header(const char *path, char digits[PST_DIGEST_DIGITS + 1])
{
    uint64_t bytes;
    pst_digest *digest;
    write_tensor(path, "00000000000000000000000000000000");
    uint8_t *data = test_read_file(path, &bytes);
    assert_int_equal(pst_digest_create(&digest, NULL), 0);
    pst_digest_begin(digest);
    pst_digest_add(digest, data, bytes - 5);
    pst_digest_end(digest, digits);
    digits[PST_DIGEST_DIGITS] = '\0';
    pst_digest_destroy(digest);
    free(data);
}

static void test_own_digest(void **unused)
{
    (void)unused;
    char digits[PST_DIGEST_DIGITS + 1];
    pst_error err = {0};
    pst_ckpt_step *step = NULL;
    pst_manifest m;
    assert_ok(pst_ckpt_step_begin(folder, 1, NULL, &step, &err), &err);
    const char *path = test_path(pst_ckpt_step_path(step), "model.safetensors");
    digest_header(path, digits);
    assert_int_equal(pst_ckpt_step_commit(step, NULL, &err), PST_E_FORMAT); /* it has zeros for a digest */
    write_tensor(path, digits);
    assert_ok(pst_ckpt_step_commit(step, NULL, &err), &err);
    pst_ckpt_step_end(step);
    assert_ok(pst_manifest_read(in("step-000001"), &m, &err), &err);
    assert_int_equal(m.file_count, 1);
    assert_true(m.files[0].covers_header);
    assert_string_equal(m.files[0].digest, digits);
    pst_manifest_free(&m);
}

/* ---- ranks ---- */

enum { RANKS = 4, FILES_EACH = 300 };

static void *run_rank(void *argument)
{
    thread_rank *self = argument;
    pst_ckpt_step *step = NULL;
    int fail_rank = *(int *)self->context;
    self->status = pst_ckpt_step_begin(folder, 7, &self->ranks, &step, &self->err);
    if (self->status < 0)
        return NULL;
    for (int i = 0; i < FILES_EACH; i++) {
        char name[128];
        snprintf(name, sizeof name, "%s/a-file-with-a-long-name-of-rank-%u-number-%d", pst_ckpt_step_path(step),
                 self->ranks.rank, i);
        FILE *file = fopen(name, "w");
        if (file == NULL || fputs(name + strlen(name) - (size_t)(i % 10), file) < 0 || fclose(file) != 0)
            abort();
    }
    pst_ckpt_commit_options o = {.struct_size = sizeof o};
    pst_ckpt_pair bad = {NULL, NULL};
    if ((int)self->ranks.rank == fail_rank) {
        o.metadata = &bad;
        o.metadata_count = 1;
    }
    self->status = pst_ckpt_step_commit(step, &o, &self->err);
    pst_ckpt_step_end(step);
    return NULL;
}

static void test_ranks(void **unused)
{
    (void)unused;
    thread_rank ranks[RANKS];
    pst_error err = {0};
    pst_manifest m;
    int fail_rank = 2;
    thread_ranks_run(RANKS, ranks, run_rank, &fail_rank);
    for (int i = 0; i < RANKS; i++)
        assert_int_equal(ranks[i].status, PST_E_USAGE);
    assert_non_null(strstr(ranks[0].err.message, "rank 2: "));
    assert_int_equal(count_entries(folder), 0); /* whoever ended last has removed it */
    fail_rank = -1;
    thread_ranks_run(RANKS, ranks, run_rank, &fail_rank);
    for (int i = 0; i < RANKS; i++)
        assert_ok(ranks[i].status, &ranks[i].err);
    assert_latest(7);
    assert_ok(pst_manifest_read(in("step-000007"), &m, &err), &err);
    assert_int_equal(m.file_count, RANKS * FILES_EACH);
    assert_int_equal(m.ranks, RANKS);
    pst_manifest_free(&m);
    assert_int_equal(count_entries(folder), 2);
}

/* ---- everything fails once ---- */

static bool try_fault(int kind, int64_t n, bool *fired)
{
    pst_error err = {0};
    const pst_ckpt_commit_options o = {.struct_size = sizeof o, .keep_last = 1, .replace = true};
    pst_ckpt_step *step = NULL;
    test_footprint before = test_measure_footprint();
    pst_fault_reset();
    pst_sys_replace(&pst_sys_fault);
    if (kind < 0)
        pst_heap_fail_after(n, 0);
    else
        pst_fault_fail((pst_fault_kind)kind, n, 1, EIO);
    int status = pst_ckpt_step_begin(folder, 2, NULL, &step, &err);
    if (status >= 0) {
        pst_sys_replace(NULL);
        pst_heap_fail_after(-1, 0);
        put(pst_ckpt_step_path(step), "file", "new");
        pst_sys_replace(&pst_sys_fault);
        if (kind < 0)
            pst_heap_fail_after(n, 0);
        status = pst_ckpt_step_commit(step, &o, &err);
        if (status < 0)
            assert_true(err.message[0] != '\0' && err.code == status);
    }
    *fired = status < 0;
    pst_ckpt_step_end(step);
    pst_heap_fail_after(-1, 0);
    pst_sys_replace(NULL);
    test_assert_footprint(&before);
    uint64_t latest = 0;
    assert_ok(pst_ckpt_latest(folder, &latest, NULL, &err), &err);
    assert_true(latest == 1 || latest == 2);
    return latest == 2;
}

static void reset_folder(void)
{
    crash_remove_tree(folder);
    assert_int_equal(mkdir(folder, 0777), 0);
    commit(1, 0);
}

static void test_every_failure(void **unused)
{
    (void)unused;
    static const int kinds[] = {-1,
                                PST_FAULT_OPEN,
                                PST_FAULT_WRITE,
                                PST_FAULT_FDATASYNC,
                                PST_FAULT_FSYNC,
                                PST_FAULT_RENAME,
                                PST_FAULT_MKDIR,
                                PST_FAULT_OPENDIR,
                                PST_FAULT_READDIR,
                                PST_FAULT_STATX,
                                PST_FAULT_FLOCK,
                                PST_FAULT_UNLINK,
                                PST_FAULT_RMDIR};
    for (size_t k = 0; k < sizeof kinds / sizeof kinds[0]; k++) {
        unsigned failures = 0, quiet = 0;
        for (int64_t n = 0; quiet < 12; n++) { /* some failures have no effect, behind the last there are none */
            bool fired = false;
            reset_folder();
            bool published = try_fault(kinds[k], n, &fired);
            if (!fired)
                assert_true(published);
            failures += fired;
            quiet = fired ? 0 : quiet + 1;
            assert_true(n < 1000);
        }
        assert_true(failures > 0);
    }
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_one_after_the_other),
        TEST(test_keep_last),
        TEST(test_latest_that_lies),
        TEST(test_incomplete),
        TEST(test_names),
        TEST(test_replace),
        TEST(test_no_exchange),
        TEST(test_abandoned),
        TEST(test_sweep),
        TEST(test_sweep_beside_a_commit),
        TEST(test_folder_of_another),
        TEST(test_links),
        TEST(test_elsewhere),
        TEST(test_strange_files),
        TEST(test_own_digest),
        TEST(test_ranks),
        TEST(test_every_failure),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
