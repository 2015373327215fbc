/* SPDX-License-Identifier: Apache-2.0 */
/* Tuning a real folder, and the file that keeps what was found: round trips, writers at once, hostile contents, faults. */
#include <dirent.h>
#include <errno.h>
#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "base/heap.h"
#include "os/sys_fault.h"
#include "penstock/tune.h"

static char root[2048], profile[2200];

static int remove_entry(const char *path, const struct stat *info, int type, struct FTW *ftw)
{
    (void)info, (void)type, (void)ftw;
    return remove(path);
}

static int make_root(void **unused)
{
    (void)unused;
    const char *parent = getenv("TMPDIR");
    snprintf(root, sizeof root, "%s/pst-tune-XXXXXX", parent != NULL && parent[0] != '\0' ? parent : "/tmp");
    if (mkdtemp(root) == NULL)
        return 1;
    snprintf(profile, sizeof profile, "%s/drives.json", root);
    return 0;
}

static int remove_root(void **unused)
{
    (void)unused;
    pst_sys_replace(NULL);
    return nftw(root, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

static int entries(const char *folder)
{
    int count = 0;
    DIR *list = opendir(folder);
    assert_non_null(list);
    for (struct dirent *entry; (entry = readdir(list)) != NULL;)
        count += entry->d_name[0] != '.';
    closedir(list);
    return count;
}

static void put(const char *text, size_t bytes)
{
    FILE *file = fopen(profile, "w");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, bytes, file), bytes);
    fclose(file);
}

static char *get(void)
{
    static char text[65536];
    FILE *file = fopen(profile, "r");
    assert_non_null(file);
    size_t bytes = fread(text, 1, sizeof text - 1, file);
    text[bytes] = '\0';
    fclose(file);
    return text;
}

static pst_tune_report report_of(const char *engine, uint64_t block_size, uint32_t depth, uint32_t workers)
{
    pst_tune_report report = {
        .best = {.block_size = block_size, .queue_depth = depth, .workers = workers, .read_bytes_per_second = 3e9}};
    strcpy(report.best.engine, engine);
    return report;
}

/* ---- the real thing ---- */

typedef struct seen {
    uint32_t points, calls, cancel_at;
} seen;

static int on_point(void *user, const pst_tune_point *point)
{
    seen *s = user;
    assert_true(point->engine[0] != '\0' && point->block_size >= 4096 && point->queue_depth >= 1);
    assert_true(point->workers >= 1 && point->repetitions >= 1);
    s->points += point->repetitions == 1;
    return ++s->calls == s->cancel_at;
}

static void test_real_folder(void **unused)
{
    (void)unused;
    char second[2200];
    snprintf(second, sizeof second, "%s/second", root);
    assert_int_equal(mkdir(second, 0700), 0);
    const char *folders[] = {root, second};
    for (uint32_t count = 1; count <= 2; count++) {
        seen s = {0};
        pst_tune_options options = {.struct_size = sizeof options,
                                    .folders = folders,
                                    .folder_count = count,
                                    .seconds = 1,
                                    .on_point = on_point,
                                    .user = &s};
        pst_tune_report report = {0};
        pst_error err = {0};
        int status = pst_tune(&options, &report, &err);
        if (status != 0)
            fail_msg("%s: %s", err.path, err.message);
        assert_true(report.points >= 1 && report.points == s.points);
        assert_true(report.measurements >= s.calls);
        assert_true(report.best.read_bytes_per_second > 0 && report.best.write_bytes_per_second > 0);
        assert_true(report.baseline.read_bytes_per_second > 0 && report.baseline.write_bytes_per_second > 0);
        assert_true(report.io_size >= 16 << 20 && report.file_bytes >= report.io_size);
        assert_true(report.best.block_size * report.best.queue_depth * report.best.workers <= 1ull << 30);
        assert_int_equal(entries(root), 1); /* `second` alone: no test file is left */
        assert_int_equal(entries(second), 0);
    }
}

static void test_given_size(void **unused)
{
    (void)unused;
    const char *folder = root;
    pst_tune_options options = {.struct_size = sizeof options,
                                .folders = &folder,
                                .folder_count = 1,
                                .io_size = 3000000,
                                .seconds = 1,
                                .no_write = true};
    pst_tune_report report = {0};
    pst_error err = {0};
    assert_int_equal(pst_tune(&options, &report, &err), 0);
    assert_int_equal(report.io_size, 3 << 20);
    assert_true(report.best.read_bytes_per_second > 0);
    assert_true(report.best.write_bytes_per_second == 0);
}

static int cancel_soon(void *user)
{
    return ++*(int *)user > 3;
}

static void test_cancelled(void **unused)
{
    (void)unused;
    const char *folder = root;
    seen s = {.cancel_at = 4};
    pst_tune_options options = {.struct_size = sizeof options,
                                .folders = &folder,
                                .folder_count = 1,
                                .seconds = 60,
                                .on_point = on_point,
                                .user = &s};
    pst_tune_report report = {.points = 77};
    pst_error err = {0};
    assert_int_equal(pst_tune(&options, &report, &err), PST_E_CANCELLED);
    assert_int_equal(s.calls, 4);
    assert_int_equal(report.points, 77);
    int asked = 0;
    options.on_point = NULL;
    options.cancelled = cancel_soon;
    options.user = &asked;
    assert_int_equal(pst_tune(&options, &report, &err), PST_E_CANCELLED);
    assert_int_equal(entries(root), 0);
}

static void refuse(pst_tune_options options, int status, const char *says)
{
    pst_tune_report report;
    pst_error err = {0};
    int64_t held = pst_heap_live_count();
    options.struct_size = sizeof options;
    assert_int_equal(pst_tune(&options, &report, &err), status);
    if (strstr(err.message, says) == NULL)
        fail_msg("wanted \"%s\", got \"%s\"", says, err.message);
    assert_int_equal(pst_heap_live_count(), held);
}

static void test_refusals(void **unused)
{
    (void)unused;
    const char *folder = root, *missing = "/nowhere/at/all", *file = profile;
    put("x", 1);
    refuse((pst_tune_options){0}, PST_E_USAGE, "folders");
    refuse((pst_tune_options){.folders = &folder, .folder_count = 1, .no_read = true, .no_write = true}, PST_E_USAGE,
           "neither");
    refuse((pst_tune_options){.folders = &folder, .folder_count = 1, .seconds = -1}, PST_E_USAGE, "time limit");
    refuse((pst_tune_options){.folders = &folder, .folder_count = 1, .io_size = 1ull << 50}, PST_E_USAGE, "transfers");
    refuse((pst_tune_options){.folders = &folder, .folder_count = 1, .io_size = 1ull << 40}, -ENOSPC, "wanted");
    refuse((pst_tune_options){.folders = &missing, .folder_count = 1}, -ENOTDIR, "not a folder");
    refuse((pst_tune_options){.folders = &file, .folder_count = 1}, -ENOTDIR, "not a folder");
    pst_error err = {0};
    assert_int_equal(pst_tune(NULL, NULL, &err), PST_E_USAGE);
}

/* A write that fails makes a setting one that does not work; a drive on which none works says why. */
static void test_failing_drive(void **unused)
{
    (void)unused;
    const char *folder = root;
    pst_tune_options options = {.struct_size = sizeof options, .folders = &folder, .folder_count = 1, .seconds = 1};
    pst_tune_report report = {0};
    pst_error err = {0};
    pst_sys_replace(&pst_sys_fault);
    pst_fault_reset();
    int64_t held = pst_heap_live_count();
    pst_fault_fail(PST_FAULT_WRITE, 0, INT64_MAX / 2, ENOSPC);
    assert_int_equal(pst_tune(&options, &report, &err), -ENOSPC);
    assert_string_equal(err.path, root);
    pst_fault_reset();
    pst_fault_fail(PST_FAULT_UNLINK, 0, 1, EPERM);
    assert_int_equal(pst_tune(&options, &report, &err), -EPERM);
    pst_fault_reset();
    pst_fault_fail(PST_FAULT_READ, 200, INT64_MAX / 2, EIO); /* while searching */
    int status = pst_tune(&options, &report, &err);
    assert_true(status == 0 || status == -EIO);
    pst_fault_reset();
    assert_int_equal(pst_heap_live_count(), held);
}

/* ---- the profile ---- */

static int apply(const char *folder, pst_io_options *io, char engine[PST_TUNE_ENGINE_BYTES], pst_error *err)
{
    return pst_tune_apply(profile, &folder, 1, io, engine, PST_TUNE_ENGINE_BYTES, err);
}

static void test_round_trip(void **unused)
{
    (void)unused;
    const char *folder = root;
    char engine[PST_TUNE_ENGINE_BYTES] = "";
    pst_error err = {0};
    pst_io_options io = {0};
    assert_int_equal(apply(root, &io, engine, &err), 0); /* no file */
    assert_int_equal(pst_tune_check_profile(profile, &err), 0);
    pst_tune_report report = report_of("threads", 2 << 20, 1, 8);
    snprintf(profile, sizeof profile, "%s/a/b/drives.json", root);
    assert_int_equal(pst_tune_save(profile, &folder, 1, &report, &err), 0);
    assert_int_equal(pst_tune_check_profile(profile, &err), 1);
    struct stat about;
    assert_int_equal(stat(profile, &about), 0);
    assert_int_equal(about.st_mode & 0777, 0600);
    char path[2200];
    snprintf(path, sizeof path, "%s/a", root);
    assert_int_equal(stat(path, &about), 0);
    assert_int_equal(about.st_mode & 0777, 0700);
    assert_int_equal(apply(root, &io, engine, &err), 1);
    assert_string_equal(io.engine, "threads");
    assert_ptr_equal(io.engine, engine);
    assert_int_equal(io.block_size, 2 << 20);
    assert_int_equal(io.queue_depth, 1);
    assert_int_equal(io.workers, 8);
    assert_false(io.single_submit);
    /* What is given stays. */
    io = (pst_io_options){.engine = "auto", .block_size = 4096, .workers = 3};
    assert_int_equal(apply(path, &io, engine, &err), 1);
    assert_string_equal(io.engine, "threads");
    assert_int_equal(io.block_size, 4096);
    assert_int_equal(io.queue_depth, 1);
    assert_int_equal(io.workers, 3);
    /* Another engine than the tuned one: its depth would mean nothing. */
    io = (pst_io_options){.engine = "io_uring"};
    assert_int_equal(apply(root, &io, engine, &err), 0);
    assert_string_equal(io.engine, "io_uring");
    assert_int_equal(io.block_size, 0);
    /* Another drive. */
    io = (pst_io_options){0};
    assert_int_equal(apply("/proc", &io, engine, &err), 0);
    /* One that does not work here. */
    report = report_of("warp", 2 << 20, 1, 8);
    assert_int_equal(pst_tune_save(profile, &folder, 1, &report, &err), 0);
    assert_int_equal(apply(root, &io, engine, &err), 0);
    assert_null(io.engine);
    report = report_of("threads", 1 << 20, 1, 4);
    report.best.single_submit = true;
    assert_int_equal(pst_tune_save(profile, &folder, 1, &report, &err), 0);
    assert_int_equal(apply(root, &io, engine, &err), 1);
    assert_true(io.single_submit);
}

/* Several folders: one drive counts once; two drives are another thing than either. */
static void test_sets(void **unused)
{
    (void)unused;
    char one[PST_TUNE_DRIVE_BYTES], both[PST_TUNE_DRIVE_BYTES], engine[PST_TUNE_ENGINE_BYTES];
    const char *same[] = {root, root}, *two[] = {root, "/proc"}, *turned[] = {"/proc", root};
    pst_error err = {0};
    assert_int_equal(pst_tune_drive_id(same, 1, one, sizeof one, &err), 0);
    assert_int_equal(pst_tune_drive_id(same, 2, both, sizeof both, &err), 0);
    assert_string_equal(one, both);
    assert_int_equal(pst_tune_drive_id(two, 2, both, sizeof both, &err), 0);
    assert_non_null(strstr(both, " + "));
    assert_int_equal(pst_tune_drive_id(two, 2, both, 20, &err), PST_E_USAGE);
    assert_int_equal(pst_tune_drive_id(two, 0, both, sizeof both, &err), PST_E_USAGE);
    pst_tune_report report = report_of("threads", 1 << 20, 1, 4);
    assert_int_equal(pst_tune_save(profile, two, 2, &report, &err), 0);
    pst_io_options io = {0};
    assert_int_equal(pst_tune_apply(profile, turned, 2, &io, engine, sizeof engine, &err), 1);
    io = (pst_io_options){0};
    assert_int_equal(apply(root, &io, engine, &err), 0);
}

/* Writers at once, each for a drive of its own: no entry is lost. */
static void test_writers_at_once(void **unused)
{
    (void)unused;
    static const char *const drives[] = {"/proc", "/sys", "/dev", root};
    enum { DRIVES = 4, TURNS = 10 };
    pid_t children[DRIVES];
    for (uint32_t i = 0; i < DRIVES; i++) {
        children[i] = fork();
        assert_true(children[i] >= 0);
        if (children[i] > 0)
            continue;
        int failed = 0;
        for (uint32_t turn = 1; turn <= TURNS; turn++) {
            pst_tune_report report = report_of("threads", 4096 * turn, 1, i + 1);
            failed |= pst_tune_save(profile, &drives[i], 1, &report, NULL) != 0;
        }
        _exit(failed);
    }
    for (uint32_t i = 0; i < DRIVES; i++) {
        int state;
        assert_int_equal(waitpid(children[i], &state, 0), children[i]);
        assert_true(WIFEXITED(state) && WEXITSTATUS(state) == 0);
    }
    for (uint32_t i = 0; i < DRIVES; i++) {
        pst_io_options io = {0};
        pst_error err = {0};
        char engine[PST_TUNE_ENGINE_BYTES];
        assert_int_equal(apply(drives[i], &io, engine, &err), 1);
        assert_int_equal(io.block_size, 4096 * TURNS);
        assert_int_equal(io.workers, i + 1);
    }
    assert_int_equal(entries(root), 2); /* the profile and its lock */
}

/* What the file holds besides stays: other drives, whatever their entries look like, and keys of a later version. */
static void test_other_entries_stay(void **unused)
{
    (void)unused;
    static const char before[] = "{\"version\": 1, \"note\": \"mine\", \"drives\": {\"nvme:other:1\": {\"engine\": 5, "
                                 "\"more\": [1, 2]}}}";
    const char *folder = root;
    pst_error err = {0};
    pst_tune_report report = report_of("threads", 4096, 1, 1);
    put(before, sizeof before - 1);
    assert_int_equal(pst_tune_save(profile, &folder, 1, &report, &err), 0);
    json_t *document = json_loads(get(), 0, NULL);
    assert_non_null(document);
    assert_string_equal(json_string_value(json_object_get(document, "note")), "mine");
    json_t *drives = json_object_get(document, "drives");
    assert_int_equal(json_object_size(drives), 2);
    json_t *other = json_object_get(drives, "nvme:other:1");
    assert_int_equal(json_integer_value(json_object_get(other, "engine")), 5);
    assert_int_equal(json_array_size(json_object_get(other, "more")), 2);
    json_decref(document);
}

/* Neither used nor overwritten. */
static void expect_damaged(const char *text, size_t bytes, const char *says)
{
    const char *folder = root;
    char engine[PST_TUNE_ENGINE_BYTES] = "none";
    pst_error err = {0};
    pst_io_options io = {0};
    pst_tune_report report = report_of("threads", 4096, 1, 1);
    put(text, bytes);
    int status = apply(root, &io, engine, &err);
    assert_true(status == PST_E_FORMAT || status == PST_E_UNSUPPORTED);
    assert_string_equal(err.path, profile);
    if (strstr(err.message, says) == NULL)
        fail_msg("wanted \"%s\", got \"%s\"", says, err.message);
    assert_null(io.engine);
    assert_int_equal(io.block_size, 0);
    assert_string_equal(engine, "none");
    assert_true(pst_tune_check_profile(profile, NULL) < 0);
    assert_true(pst_tune_save(profile, &folder, 1, &report, &err) < 0);
    struct stat about;
    assert_int_equal(stat(profile, &about), 0);
    assert_int_equal(about.st_size, bytes);
}

static void test_damaged_files(void **unused)
{
    (void)unused;
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"", "JSON"},
        {"{", "JSON"},
        {"[]", "not a JSON object"},
        {"17", "JSON"},
        {"{}", "\"version\" is missing"},
        {"{\"version\": \"1\", \"drives\": {}}", "version"},
        {"{\"version\": 2, \"drives\": {}}", "version 2"},
        {"{\"version\": 1}", "\"drives\" is missing"},
        {"{\"version\": 1, \"drives\": []}", "drives"},
        {"{\"version\": 1, \"drives\": {}, \"drives\": {}}", "JSON"},
        {"{\"version\": 1, \"drives\": {\"\xff\": {}}}", "JSON"},
        {"{\"version\": 1, \"drives\": {}} x", "JSON"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        expect_damaged(cases[i].text, strlen(cases[i].text), cases[i].says);
    static char huge[(1 << 20) + 100];
    memset(huge, ' ', sizeof huge);
    memcpy(huge, "{}", 2);
    expect_damaged(huge, sizeof huge, "more than");
    memset(huge, '[', sizeof huge);
    expect_damaged(huge, 1 << 19, "JSON"); /* depth */
    remove(profile);
    assert_int_equal(mkdir(profile, 0700), 0);
    assert_int_equal(pst_tune_check_profile(profile, NULL), PST_E_FORMAT);
}

/* Entries of this drive with absurd values are refused, but tuning the drive again puts a good one in their place. */
static void test_damaged_entries(void **unused)
{
    (void)unused;
    static const char *const cases[] = {
        "5",
        "{}",
        "{\"engine\": 5, \"block_size\": 4096, \"queue_depth\": 1, \"workers\": 1}",
        "{\"engine\": \"\", \"block_size\": 4096, \"queue_depth\": 1, \"workers\": 1}",
        "{\"engine\": \"a b\", \"block_size\": 4096, \"queue_depth\": 1, \"workers\": 1}",
        "{\"engine\": \"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\", \"block_size\": 4096, \"queue_depth\": 1, "
        "\"workers\": 1}",
        "{\"engine\": \"threads\\u0000x\", \"block_size\": 0, \"queue_depth\": 1, \"workers\": 1}",
        "{\"engine\": \"threads\", \"block_size\": 0, \"queue_depth\": 1, \"workers\": 1}",
        "{\"engine\": \"threads\", \"block_size\": 5000, \"queue_depth\": 1, \"workers\": 1}",
        "{\"engine\": \"threads\", \"block_size\": -4096, \"queue_depth\": 1, \"workers\": 1}",
        "{\"engine\": \"threads\", \"block_size\": 1e30, \"queue_depth\": 1, \"workers\": 1}",
        "{\"engine\": \"threads\", \"block_size\": 4096, \"queue_depth\": 0, \"workers\": 1}",
        "{\"engine\": \"threads\", \"block_size\": 4096, \"queue_depth\": 4294967297, \"workers\": 1}",
        "{\"engine\": \"threads\", \"block_size\": 4096, \"queue_depth\": 1.5, \"workers\": 1}",
        "{\"engine\": \"threads\", \"block_size\": 4096, \"queue_depth\": 1, \"workers\": 100000}",
        "{\"engine\": \"threads\", \"block_size\": 4096, \"queue_depth\": 1, \"workers\": null}",
        "{\"engine\": \"threads\", \"block_size\": 4096, \"queue_depth\": 1, \"workers\": 1, \"single_submit\": 1}",
        "{\"engine\": \"threads\", \"block_size\": 1073741824, \"queue_depth\": 4096, \"workers\": 64}",
    };
    const char *folder = root;
    char drive[PST_TUNE_DRIVE_BYTES], text[4096], engine[PST_TUNE_ENGINE_BYTES];
    pst_error err = {0};
    assert_int_equal(pst_tune_drive_id(&folder, 1, drive, sizeof drive, &err), 0);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        pst_io_options io = {0};
        int bytes = snprintf(text, sizeof text, "{\"version\": 1, \"drives\": {\"%s\": %s}}", drive, cases[i]);
        put(text, (size_t)bytes);
        if (apply(root, &io, engine, &err) != PST_E_FORMAT)
            fail_msg("taken: %s", cases[i]);
        assert_string_equal(err.path, profile);
        assert_null(io.engine);
        assert_int_equal(io.block_size, 0);
        pst_tune_report report = report_of("threads", 4096, 1, 1);
        assert_int_equal(pst_tune_save(profile, &folder, 1, &report, &err), 0);
        assert_int_equal(apply(root, &io, engine, &err), 1);
    }
    pst_tune_report nonsense = report_of("threads", 4096, 0, 1);
    assert_int_equal(pst_tune_save(profile, &folder, 1, &nonsense, &err), PST_E_FORMAT);
}

/* Every system call of a save fails in turn: the old version or the new one, nothing else in the folder. */
static void test_save_faults(void **unused)
{
    (void)unused;
    static const pst_fault_kind kinds[] = {PST_FAULT_OPEN,  PST_FAULT_CLOSE,    PST_FAULT_READ,  PST_FAULT_WRITE,
                                           PST_FAULT_STATX, PST_FAULT_RENAME,   PST_FAULT_FSYNC, PST_FAULT_FDATASYNC,
                                           PST_FAULT_FLOCK, PST_FAULT_GETRANDOM};
    const char *folder = root;
    pst_error err = {0};
    char engine[PST_TUNE_ENGINE_BYTES];
    pst_tune_report before = report_of("threads", 4096, 1, 1), after = report_of("threads", 8192, 1, 1);
    uint32_t failures = 0;
    pst_sys_replace(&pst_sys_fault);
    for (size_t k = 0; k < sizeof kinds / sizeof kinds[0]; k++) {
        /* Not those by which the drive is told: what /sys does not say is taken for unknown. */
        char drive[PST_TUNE_DRIVE_BYTES];
        pst_fault_reset();
        assert_int_equal(pst_tune_drive_id(&folder, 1, drive, sizeof drive, &err), 0);
        int64_t first = pst_fault_count(kinds[k]);
        for (int64_t skip = first; skip < first + 100; skip++) {
            pst_fault_reset();
            assert_int_equal(pst_tune_save(profile, &folder, 1, &before, &err), 0);
            int64_t held = pst_heap_live_count();
            pst_fault_reset();
            pst_fault_fail(kinds[k], skip, 1, EIO);
            int status = pst_tune_save(profile, &folder, 1, &after, &err);
            bool struck = pst_fault_count(kinds[k]) > skip;
            pst_fault_reset();
            assert_int_equal(pst_heap_live_count(), held);
            pst_io_options io = {0};
            assert_int_equal(apply(root, &io, engine, &err), 1);
            assert_true(io.block_size == 8192 || (status < 0 && io.block_size == 4096));
            assert_int_equal(entries(root), 2);
            failures += status < 0;
            if (!struck)
                break;
        }
    }
    assert_true(failures >= 8);
    /* A lock that another process holds for a while. */
    pst_fault_fail(PST_FAULT_FLOCK, 0, 5, EWOULDBLOCK);
    assert_int_equal(pst_tune_save(profile, &folder, 1, &after, &err), 0);
    assert_int_equal(pst_fault_count(PST_FAULT_FLOCK), 6);
    pst_fault_reset();
}

static void test_allocation_failures(void **unused)
{
    (void)unused;
    const char *folder = root;
    char engine[PST_TUNE_ENGINE_BYTES];
    pst_error err = {0};
    pst_tune_report report = report_of("threads", 4096, 1, 1);
    int64_t held = pst_heap_live_count();
    int saved = -1;
    for (int64_t n = 0; n < 200 && saved < 0; n++) {
        pst_heap_fail_after(n, 0);
        saved = pst_tune_save(profile, &folder, 1, &report, &err);
        pst_heap_fail_after(-1, 0);
        assert_true(saved == 0 || saved == -ENOMEM);
        assert_int_equal(pst_heap_live_count(), held);
    }
    assert_int_equal(saved, 0);
    int applied = -1;
    for (int64_t n = 0; n < 200 && applied < 0; n++) {
        pst_io_options io = {0};
        pst_heap_fail_after(n, 0);
        applied = apply(root, &io, engine, &err);
        pst_heap_fail_after(-1, 0);
        assert_true(applied >= 0 || applied == -ENOMEM);
        assert_int_equal(pst_heap_live_count(), held);
    }
    pst_tune_options options = {.struct_size = sizeof options, .folders = &folder, .folder_count = 1, .seconds = 0.1};
    for (int64_t n = 0; n < 45; n += 3) {
        pst_tune_report found;
        pst_heap_fail_after(n, 0);
        int status = pst_tune(&options, &found, &err);
        pst_heap_fail_after(-1, 0);
        assert_true(status == 0 || status == -ENOMEM);
        assert_int_equal(pst_heap_live_count(), held);
    }
}

static void test_deepspeed(void **unused)
{
    (void)unused;
    char text[512], little[8];
    pst_tune_point point = {.engine = "io_uring", .block_size = 8 << 20, .queue_depth = 16, .workers = 4};
    int bytes = pst_tune_deepspeed(&point, text, sizeof text);
    assert_int_equal(bytes, strlen(text));
    assert_int_equal(pst_tune_deepspeed(&point, little, sizeof little), bytes);
    json_t *document = json_loads(text, 0, NULL), *aio = json_object_get(document, "aio");
    assert_int_equal(json_object_size(aio), 6);
    assert_int_equal(json_integer_value(json_object_get(aio, "block_size")), 8 << 20);
    assert_int_equal(json_integer_value(json_object_get(aio, "queue_depth")), 16);
    assert_int_equal(json_integer_value(json_object_get(aio, "intra_op_parallelism")), 4);
    assert_true(json_is_false(json_object_get(aio, "single_submit")));
    assert_true(json_is_true(json_object_get(aio, "overlap_events")));
    assert_true(json_is_false(json_object_get(aio, "use_gds")));
    json_decref(document);
    point = (pst_tune_point){.engine = "threads", .block_size = 1 << 20, .queue_depth = 1, .workers = 32};
    pst_tune_deepspeed(&point, text, sizeof text);
    document = json_loads(text, 0, NULL);
    aio = json_object_get(document, "aio");
    assert_int_equal(json_integer_value(json_object_get(aio, "queue_depth")), 32);
    assert_int_equal(json_integer_value(json_object_get(aio, "intra_op_parallelism")), 1);
    json_decref(document);
}

int main(void)
{
#define WITH_ROOT(test) cmocka_unit_test_setup_teardown(test, make_root, remove_root)
    const struct CMUnitTest tests[] = {
        WITH_ROOT(test_real_folder),
        WITH_ROOT(test_given_size),
        WITH_ROOT(test_cancelled),
        WITH_ROOT(test_refusals),
        WITH_ROOT(test_failing_drive),
        WITH_ROOT(test_round_trip),
        WITH_ROOT(test_sets),
        WITH_ROOT(test_writers_at_once),
        WITH_ROOT(test_other_entries_stay),
        WITH_ROOT(test_damaged_files),
        WITH_ROOT(test_damaged_entries),
        WITH_ROOT(test_save_faults),
        WITH_ROOT(test_allocation_failures),
        cmocka_unit_test(test_deepspeed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
