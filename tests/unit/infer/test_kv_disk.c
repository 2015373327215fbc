/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Keys and values in a file: the same answers as in memory, what is planned and counted, nothing left in the folder, and every
 * allocation and calls of each kind failing in turn: an error that names the folder, or the right answer.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/heap.h"
#include "os/file.h"
#include "os/sys_fault.h"
#include "penstock/model.h"

#define CASE PST_TEST_SOURCE_DIR "/tests/reference/cases/llama_bf16_sharded"
enum { PROMPT = 100, NEW = 28 /* together two whole blocks, the second one made row by row */ };

static uint32_t prompt[PROMPT];
static char folder[] = "/tmp/penstock-kv-disk-XXXXXX";

static int group_set_up(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < PROMPT; i++)
        prompt[i] = 1 + i * 7 % 40;
    return mkdtemp(folder) != NULL ? 0 : -1;
}

static int group_tear_down(void **state)
{
    (void)state;
    return rmdir(folder); /* fails when something was left in it */
}

static void require_empty_folder(void)
{
    char **names;
    size_t count;
    assert_int_equal(pst_file_list(folder, NULL, &names, &count, NULL), 0);
    assert_int_equal(count, 0);
    pst_file_list_free(names, count);
}

/* A whole run: open, generate two requests, close. */
static int run_once(const char *kv_folder, uint32_t *ids, pst_run_stats *stats, pst_plan_info *plan, pst_error *err)
{
    pst_model *model = NULL;
    pst_session *session = NULL;
    pst_result results[2] = {0};
    *err = (pst_error){0};
    pst_session_options options = {.struct_size = sizeof options,
                                   .max_tokens = PROMPT + NEW,
                                   .max_sequences = 2,
                                   .resident_set = true,
                                   .resident_share = 1,
                                   .threads = 1,
                                   .io_engine = "threads",
                                   .io_workers = 1,
                                   .kv_folder = kv_folder,
                                   .kv_window_bytes = 1};
    pst_request requests[2] = {
        {.prompt_ids = prompt, .prompt_count = PROMPT, .max_new_tokens = NEW, .ignore_end = true},
        {.prompt_ids = prompt + 3, .prompt_count = PROMPT - 3, .max_new_tokens = NEW, .ignore_end = true}};
    int status = pst_model_open(CASE, NULL, &model, err);
    if (status >= 0)
        status = pst_session_open(model, &options, &session, err);
    if (status >= 0)
        pst_session_get_plan(session, plan);
    if (status >= 0)
        status = pst_generate(session, requests, 2, NULL, NULL, results, stats, err);
    for (size_t i = 0; status >= 0 && i < 2; i++) {
        assert_int_equal(results[i].ids.count, NEW);
        memcpy(ids + i * NEW, results[i].ids.ids, NEW * sizeof *ids);
    }
    pst_result_free(&results[0]);
    pst_result_free(&results[1]);
    pst_session_close(session);
    pst_model_close(model);
    return status;
}

static void test_answers_and_figures(void **state)
{
    (void)state;
    uint32_t in_memory[2 * NEW], on_disk[2 * NEW];
    pst_run_stats stats[2];
    pst_plan_info plan[2];
    pst_error err;
    assert_int_equal(run_once(NULL, in_memory, &stats[0], &plan[0], &err), 0);
    assert_int_equal(run_once(folder, on_disk, &stats[1], &plan[1], &err), 0);
    assert_memory_equal(in_memory, on_disk, sizeof in_memory);
    require_empty_folder();
    assert_int_equal(plan[0].kv_disk_bytes, 0);
    assert_true(plan[1].kv_disk_bytes >= plan[0].kv_bytes); /* whole pages */
    assert_int_equal(stats[0].kv_bytes_read + stats[0].kv_bytes_written, 0);
    /* 128 and 125 positions of which the last is never computed: of each sequence one block becomes whole and is written
     * once, and it is read in every pass after that one, 27 of them, in every layer. */
    uint64_t slots = plan[1].kv_disk_bytes / 4;
    assert_int_equal(stats[1].kv_bytes_written, 2 * slots);
    assert_int_equal(stats[1].kv_bytes_read, 2 * 27 * slots);
}

/* Folders that cannot be used are named. */
static void test_refusals(void **state)
{
    (void)state;
    uint32_t ids[2 * NEW];
    pst_run_stats stats;
    pst_plan_info plan;
    pst_error err;
    assert_true(run_once(CASE "/config.json", ids, &stats, &plan, &err) < 0);
    assert_non_null(strstr(err.path, "config.json"));
    assert_true(run_once("/proc/penstock", ids, &stats, &plan, &err) < 0);
    assert_non_null(strstr(err.path, "/proc/penstock"));
    char nested[200];
    snprintf(nested, sizeof nested, "%s/made/here", folder);
    assert_int_equal(run_once(nested, ids, &stats, &plan, &err), 0);
    assert_int_equal(pst_folder_remove(nested, NULL), 0);
    snprintf(nested, sizeof nested, "%s/made", folder);
    assert_int_equal(pst_folder_remove(nested, NULL), 0);
}

/* The file's room is asked for beforehand. */
static void test_no_room(void **state)
{
    (void)state;
    pst_model *model;
    pst_session *session;
    pst_error err;
    assert_int_equal(pst_model_open(CASE, NULL, &model, &err), 0);
    pst_session_options options = {
        .struct_size = sizeof options, .max_tokens = PROMPT + NEW, .max_sequences = 3, .kv_folder = folder};
    pst_sys_replace(&pst_sys_fault);
    pst_fault_reset();
    pst_fault_fail(PST_FAULT_STATVFS, 0, 100, EIO);
    assert_int_equal(pst_session_open(model, &options, &session, &err), -EIO);
    assert_non_null(strstr(err.path, folder));
    pst_fault_reset();
    pst_fault_fail(PST_FAULT_FALLOCATE, 0, 100, ENOSPC);
    assert_int_equal(pst_session_open(model, &options, &session, &err), -ENOSPC);
    assert_non_null(strstr(err.path, folder));
    pst_fault_reset();
    pst_sys_replace(NULL);
    require_empty_folder();
    pst_model_close(model);
}

/* At the smallest budget that the refusal names, the process stays within it. In a child, since the peak is the process's. */
static int run_smallest(uint32_t kv_bits, uint32_t sequences)
{
    pst_model *model;
    pst_session *session;
    pst_error err;
    if (pst_model_open(CASE, NULL, &model, &err) < 0)
        return 1;
    pst_session_options options = {.struct_size = sizeof options,
                                   .max_tokens = PROMPT + NEW,
                                   .max_sequences = sequences,
                                   .host_memory_bytes = 1,
                                   .kv_bits = kv_bits,
                                   .threads = 3,
                                   .kv_folder = folder};
    if (pst_session_open(model, &options, &session, &err) != PST_E_BUDGET)
        return 2;
    options.host_memory_bytes = strtoull(strstr(err.message, "works is ") + 9, NULL, 10) << 20;
    if (pst_session_open(model, &options, &session, &err) < 0)
        return 3;
    static pst_request requests[400];
    static pst_result results[400];
    for (uint32_t i = 0; i < sequences; i++)
        requests[i] = (pst_request){
            .prompt_ids = prompt + i % 9, .prompt_count = PROMPT - 9, .max_new_tokens = NEW, .ignore_end = true};
    pst_run_stats stats;
    if (pst_generate(session, requests, sequences, NULL, NULL, results, &stats, &err) < 0)
        return 4;
    return stats.peak_rss_bytes <= options.host_memory_bytes && stats.peak_rss_bytes > 0 ? 0 : 5;
}

static void test_smallest_budget_holds(void **state)
{
    (void)state;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    (void)run_smallest;
    printf("SKIP: memory is not the program's own under sanitizers\n");
#else
    static const uint32_t bits[] = {32, 16, 8, 4};
    for (size_t i = 0; i < 4; i++) {
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0)
            _exit(run_smallest(bits[i], i % 2 ? 400 : 7));
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_int_equal(status, 0);
    }
#endif
}

static void test_allocation_failures(void **state)
{
    (void)state;
    uint32_t expected[2 * NEW], got[2 * NEW];
    pst_run_stats stats;
    pst_plan_info plan;
    pst_error err;
    assert_int_equal(run_once(NULL, expected, &stats, &plan, &err), 0);
    int64_t live = pst_heap_live_count(), n = 0;
    for (;; n += n < 300 ? 13 : 3) { /* the first ones are the model's */
        pst_heap_fail_after(n, 0);
        int status = run_once(folder, got, &stats, &plan, &err);
        pst_heap_fail_after(-1, 0);
        assert_int_equal(pst_heap_live_count(), live);
        require_empty_folder();
        if (status == 0)
            break;
        assert_true(n < 100000);
    }
    assert_memory_equal(expected, got, sizeof got);
}

/* Every write, every call that makes the file, and reads of it. */
static void test_failing_calls(void **state)
{
    (void)state;
    uint32_t expected[2 * NEW], got[2 * NEW];
    pst_run_stats stats;
    pst_plan_info plan;
    pst_error err;
    static const pst_fault_kind kinds[] = {PST_FAULT_WRITE, PST_FAULT_UNLINK, PST_FAULT_FALLOCATE, PST_FAULT_READ};
    int64_t failures[4] = {0};
    assert_int_equal(run_once(NULL, expected, &stats, &plan, &err), 0);
    pst_sys_replace(&pst_sys_fault);
    for (size_t k = 0; k < 4; k++) {
        pst_fault_reset();
        assert_int_equal(run_once(folder, got, &stats, &plan, &err), 0);
        int64_t count = pst_fault_count(kinds[k]);
        assert_true(count > 0);
        for (int64_t n = 0; n < count; n += 1 + count / 40) {
            pst_fault_reset();
            pst_fault_fail(kinds[k], n, 1, EIO);
            int status = run_once(folder, got, &stats, &plan, &err);
            pst_fault_reset();
            if (status == 0) { /* a write that no pass waited for before the end, or a read that nobody came to need */
                assert_memory_equal(expected, got, sizeof got);
                continue;
            }
            assert_int_equal(status, -EIO);
            if (kinds[k] != PST_FAULT_READ && strstr(err.path, folder) == NULL)
                fail_msg("%s %d: path \"%s\", \"%s\"", pst_fault_name(kinds[k]), (int)n, err.path, err.message);
            failures[k] += strstr(err.path, folder) != NULL;
        }
    }
    pst_sys_replace(NULL);
    assert_true(failures[0] > 0 && failures[1] > 0 && failures[2] > 0 && failures[3] > 0);
    char **names;
    size_t count;
    assert_int_equal(pst_file_list(folder, NULL, &names, &count, NULL), 0);
    for (size_t i = 0; i < count; i++) { /* what could not be unlinked */
        char path[300];
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        assert_int_equal(pst_file_remove(path, NULL), 0);
    }
    pst_file_list_free(names, count);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_answers_and_figures),
                                       cmocka_unit_test(test_refusals),
                                       cmocka_unit_test(test_no_room),
                                       cmocka_unit_test(test_smallest_budget_holds),
                                       cmocka_unit_test(test_allocation_failures),
                                       cmocka_unit_test(test_failing_calls)};
    return cmocka_run_group_tests_name("kv on disk", tests, group_set_up, group_tear_down);
}
