/* SPDX-License-Identifier: Apache-2.0 */
/*
 * convert and offloaded copies, with the power failing at each step and each sync: a converted folder is there whole, every
 * digest right, or not at all; a copy over a stripe set is used only when it is whole, and made again otherwise.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fault/crash_test.h"
#include "penstock/jobs.h"

#define SOURCE PST_TEST_SOURCE_DIR "/tests/reference/cases/llama_mqa_head20"

static int tear_down(void **unused)
{
    (void)unused;
    pst_crash_forget();
    pst_sys_replace(NULL);
    return 0;
}

static void prepare(const char *folder, void *context)
{
    (void)context;
    if (mkdir(test_path(folder, "a"), 0777) != 0 || mkdir(test_path(folder, "b"), 0777) != 0)
        fail_msg("cannot make folders");
}

static bool is_whole(const char *path)
{
    const pst_verify_options options = {
        .struct_size = sizeof options, .path = path, .io_engine = "threads", .io_workers = 1, .threads = 1};
    pst_verify_report report;
    pst_inspection *inspection;
    pst_inspect_config config;
    if (pst_verify(&options, &report, NULL) < 0 || report.checked != report.tensors || report.damaged > 0 ||
        pst_inspect(path, NULL, &inspection, NULL) < 0)
        return false;
    bool has_config = pst_inspection_config(inspection, &config);
    pst_inspection_close(inspection);
    return has_config && report.tensors > 10;
}

static int act_convert(const char *folder, void *context, pst_error *err)
{
    (void)context;
    const pst_convert_options options = {.struct_size = sizeof options,
                                         .model = SOURCE,
                                         .folder = test_path(folder, "model"),
                                         .bits = 4,
                                         .shard_bytes = 8000,
                                         .io_engine = "threads",
                                         .io_workers = 1,
                                         .threads = 1};
    return pst_convert(&options, NULL, err);
}

static bool check_convert(const char *folder, bool done, void *context)
{
    (void)context;
    if (access(test_path(folder, "model"), F_OK) != 0)
        return !done;
    return is_whole(test_path(folder, "model"));
}

static void test_convert(void **unused)
{
    (void)unused;
    const crash_trial trial = {.prepare = prepare, .act = act_convert, .check = check_convert, .seeds = 2};
    crash_count count = crash_try_all(&trial, true);
    assert_int_equal(count.bad, 0);
    assert_true(count.syncs >=
                8); /* of two files at least: data and folder; config, index; the folder and its parent */
}

static int offload(const char *folder, bool check, pst_error *err)
{
    const char *folders[2] = {test_path(folder, "a"), test_path(folder, "b")};
    const pst_offload_options options = {.struct_size = sizeof options,
                                         .model = SOURCE,
                                         .folders = folders,
                                         .folder_count = 2,
                                         .bits = 8,
                                         .io_engine = "threads",
                                         .io_workers = 1,
                                         .threads = 1};
    pst_offload *made;
    int status = pst_offload_open(&options, &made, err);
    if (status < 0)
        return status;
    status = !check || is_whole(pst_offload_path(made)) ? 0 : -1;
    pst_offload_close(made);
    return status;
}

static int act_offload(const char *folder, void *context, pst_error *err)
{
    (void)context;
    return offload(folder, false, err);
}

/* Whatever was left: the next one gets a whole copy. */
static bool check_offload(const char *folder, bool done, void *context)
{
    (void)done, (void)context;
    return offload(folder, true, NULL) == 0;
}

static void test_offload(void **unused)
{
    (void)unused;
    const crash_trial trial = {.prepare = prepare, .act = act_offload, .check = check_offload, .seeds = 1};
    crash_count count = crash_try_all(&trial, true);
    assert_int_equal(count.bad, 0);
    assert_true(count.syncs >= 8);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test_teardown(test_convert, tear_down),
                                       cmocka_unit_test_teardown(test_offload, tear_down)};
    return cmocka_run_group_tests_name("convert and power failures", tests, NULL, NULL);
}
