/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Batch jobs with the power failing at each step and at each sync: whatever is left, the same job started again answers
 * each line once, and its output is byte for byte that of a run that nothing disturbed. Failing system calls and
 * allocations likewise leave something that the next run completes.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "base/heap.h"
#include "fault/crash_test.h"
#include "jobs/batch_journal.h"
#include "os/sys_fault.h"
#include "penstock/batch.h"

#define CASE PST_TEST_SOURCE_DIR "/tests/reference/cases/llama_gqa2"

static const char input_text[] = "{\"prompt\": [1, 2, 3], \"max_tokens\": 3, \"id\": \"first\"}\n"
                                 "{\"prompt\": [4], \"max_tokens\": 1, \"n\": 2, \"temperature\": 1}\n"
                                 "no json\n"
                                 "\n"
                                 "{\"prompt\": [[5, 6], [7]], \"max_tokens\": 2, \"seed\": 3}\n"
                                 "{\"prompt\": [8, 9, 10, 11], \"max_tokens\": 4, \"temperature\": 0.5}";

typedef struct fixture {
    pst_model *model;
    pst_session *session;
    char *input; /* path */
    char *expected;
    const char *old_output; /* NULL: none */
    bool restart;
    uint64_t durable; /* answers that the run had made durable, as far as it told */
} fixture;

static void open_session(fixture *f)
{
    pst_error err = {0};
    const pst_session_options options = {
        .struct_size = sizeof options, .max_sequences = 2, .max_tokens = 16, .threads = 1, .io_engine = "threads"};
    assert_ok(pst_session_open(f->model, &options, &f->session, &err), &err);
    /* The first pass makes what the session then keeps. */
    const pst_request request = {.prompt_ids = (const uint32_t[]){1}, .prompt_count = 1, .max_new_tokens = 1};
    pst_result result;
    assert_ok(pst_generate(f->session, &request, 1, NULL, NULL, &result, NULL, &err), &err);
    pst_result_free(&result);
}

/* The real calls without waiting for the drive: nothing here asks what survives. */
static pst_sys_table quick;

static int no_sync(int fd)
{
    (void)fd;
    return 0;
}

static char *output_in(const char *folder)
{
    static char path[4096];
    snprintf(path, sizeof path, "%s/out.jsonl", folder);
    return path;
}

/* What is told of was synced before: answers are made durable one by one here. */
static int note_durable(void *user, const pst_batch_progress *progress)
{
    fixture *f = user;
    if (progress->phase == PST_BATCH_RUNNING)
        f->durable = progress->done;
    return 0;
}

static int run_job(fixture *f, const char *folder, bool restart, pst_batch_report *report, pst_error *err)
{
    pst_batch_options options = {.struct_size = sizeof options,
                                 .input = f->input,
                                 .output = output_in(folder),
                                 .restart = restart,
                                 .ignore_end = true,
                                 .on_progress = note_durable,
                                 .user = f,
                                 .sync_seconds = -1};
    pst_batch *batch = NULL;
    int status = pst_batch_open(f->model, &options, &batch, err);
    if (status >= 0)
        status = pst_batch_run(batch, f->session, report, NULL, err);
    pst_batch_close(batch);
    return status;
}

static int count_files(const char *folder)
{
    char command[4200];
    snprintf(command, sizeof command, "ls -A '%s' | wc -l", folder);
    FILE *list = popen(command, "r");
    int count = -1;
    assert_int_equal(fscanf(list, "%d", &count), 1);
    pclose(list);
    return count;
}

static void prepare(const char *folder, void *context)
{
    fixture *f = context;
    f->durable = 0;
    if (f->old_output != NULL)
        test_write_file(output_in(folder), f->old_output, strlen(f->old_output));
}

static int act(const char *folder, void *context, pst_error *err)
{
    fixture *f = context;
    return run_job(f, folder, f->restart, NULL, err);
}

/* The next run, without a restart, unless the old output is still all there is. */
static bool check(const char *folder, bool done, void *context)
{
    fixture *f = context;
    uint64_t durable = f->durable;
    pst_error err = {0};
    pst_batch_report report;
    char *found = crash_read_text(output_in(folder));
    bool is_old = found != NULL && f->old_output != NULL && strcmp(found, f->old_output) == 0;
    bool is_new = found != NULL && strcmp(found, f->expected) == 0;
    free(found);
    if ((found == NULL && f->old_output != NULL) || (found != NULL && !is_old && !is_new) || (done && !is_new))
        return false;
    pst_sys_replace(&quick);
    int status = run_job(f, folder, false, &report, &err);
    if (status == PST_E_USAGE && is_old) /* the restart had not begun */
        status = run_job(f, folder, true, &report, &err);
    pst_sys_replace(NULL);
    if (status < 0) {
        print_error("%s: %s\n", err.path, err.message);
        return false;
    }
    found = crash_read_text(output_in(folder));
    f->durable = durable; /* for the next state after the same failure */
    if (report.resumed < durable)
        return false;
    bool good = found != NULL && strcmp(found, f->expected) == 0 && report.answered == 5;
    free(found);
    return good && access(test_path(folder, "out.jsonl.partial"), F_OK) != 0;
}

static void try_all(fixture *f)
{
    const crash_trial trial = {.prepare = prepare, .act = act, .check = check, .context = f, .seeds = 6};
    crash_count count = crash_try_all(&trial, true);
    assert_int_equal(count.bad, 0);
    assert_true(count.steps >= 20); /* the header, five answers, their index, the output, each with its syncs */
    assert_true(count.syncs >= 9);
}

static void test_power_fails(void **state)
{
    fixture *f = *state;
    f->old_output = NULL;
    f->restart = false;
    try_all(f);
}

static void test_power_fails_in_a_restart(void **state)
{
    fixture *f = *state;
    f->old_output = "what was there before\n";
    f->restart = true;
    try_all(f);
    f->old_output = NULL;
    f->restart = false;
}

/* Each system call of each kind fails once. What the failing run leaves, the next one completes. */
static void test_failing_calls(void **state)
{
    fixture *f = *state;
    static const pst_fault_kind kinds[] = {PST_FAULT_OPEN,  PST_FAULT_READ,   PST_FAULT_WRITE,    PST_FAULT_FDATASYNC,
                                           PST_FAULT_FSYNC, PST_FAULT_STATX,  PST_FAULT_RENAME,   PST_FAULT_FLOCK,
                                           PST_FAULT_CLOSE, PST_FAULT_UNLINK, PST_FAULT_FTRUNCATE};
    for (size_t k = 0; k < sizeof kinds / sizeof kinds[0]; k++) {
        for (int at = 0;; at++) {
            char *folder = crash_make_folder();
            pst_error err = {0};
            pst_fault_reset();
            pst_sys_replace(&pst_sys_fault);
            pst_fault_fail(kinds[k], at, 1, EIO);
            int status = run_job(f, folder, false, NULL, &err);
            bool happened = pst_fault_count(kinds[k]) > at;
            pst_sys_replace(&quick);
            assert_true(status >= 0 || err.message[0] != '\0');
            assert_true(happened || status >= 0);
            if (status < 0) { /* the session may have been hit, too */
                pst_session_close(f->session);
                open_session(f);
            }
            if (status < 0)
                assert_ok(run_job(f, folder, false, NULL, &err), &err);
            char *found = crash_read_text(output_in(folder));
            assert_non_null(found);
            assert_string_equal(found, f->expected);
            free(found);
            crash_remove_tree(folder);
            free(folder);
            if (!happened)
                break;
            assert_true(at < 500);
        }
    }
}

static void test_failing_allocations(void **state)
{
    pst_sys_replace(&quick);
    fixture *f = *state;
    int64_t live;
    int status = -1, n = 0;
    for (; status < 0; n++) {
        char *folder = crash_make_folder();
        pst_error err = {0};
        live = pst_heap_live_count();
        pst_heap_fail_after(n, 0);
        status = run_job(f, folder, false, NULL, &err);
        pst_heap_fail_after(-1, 0);
        assert_int_equal(pst_heap_live_count(), live);
        assert_true(status >= 0 || err.code == status);
        if (status < 0) { /* a pass that fails takes the session with it */
            pst_session_close(f->session);
            open_session(f);
        }
        if (n % 7 == 0 || status >= 0) {
            assert_ok(run_job(f, folder, false, NULL, &err), &err);
            char *found = crash_read_text(output_in(folder));
            assert_string_equal(found, f->expected);
            free(found);
            assert_int_equal(count_files(folder), 1);
        }
        crash_remove_tree(folder);
        free(folder);
        assert_true(n < 2000);
    }
    assert_true(n > 50);
}

/* ---- the journal by itself ---- */

static void fill(const char *path, int count)
{
    pst_journal *journal;
    pst_error err = {0};
    assert_ok(pst_journal_open(path, false, &journal, &err), &err);
    if (pst_journal_header(journal) == NULL)
        assert_ok(pst_journal_begin(journal, "a header", &err), &err);
    assert_string_equal(pst_journal_header(journal), "a header");
    for (int i = 0; i < count; i++) {
        char text[64];
        snprintf(text, sizeof text, "the answer %d\n", i);
        if (pst_journal_find(journal, (uint64_t)i, &err) == 0)
            assert_ok(pst_journal_append(journal, (uint64_t)i, i % 2 != 0, text, strlen(text), &err), &err);
    }
    assert_ok(pst_journal_sync(journal, &err), &err);
    assert_int_equal(pst_journal_count(journal), count);
    assert_int_equal(pst_journal_failed(journal), count / 2);
    for (int i = count - 1; i >= 0; i--) {
        char expected[64];
        const char *text;
        size_t bytes;
        snprintf(expected, sizeof expected, "the answer %d\n", i);
        assert_ok(pst_journal_read(journal, (uint64_t)i, &text, &bytes, &err), &err);
        assert_int_equal(bytes, strlen(expected));
        assert_memory_equal(text, expected, bytes);
    }
    assert_int_equal(pst_journal_find(journal, (uint64_t)count, &err), 0);
    pst_journal_close(journal);
}

/* Cut off anywhere, or with any byte changed, it keeps whole records only and can be filled up again. */
static void test_torn_journal(void **state)
{
    (void)state;
    pst_sys_replace(&quick);
    char *folder = crash_make_folder();
    char path[4096];
    snprintf(path, sizeof path, "%s/journal", folder);
    fill(path, 6);
    uint64_t bytes;
    uint8_t *whole = test_read_file(path, &bytes);
    assert_true(bytes > 4096);
    for (uint64_t cut = 0; cut < bytes; cut += cut < 4090 ? 511 : 1) {
        test_write_file(path, whole, cut);
        fill(path, 6);
    }
    for (uint64_t at = 4096; at < bytes; at += 3) {
        uint8_t was = whole[at];
        whole[at] ^= (uint8_t)(1 << (at % 8));
        test_write_file(path, whole, bytes);
        fill(path, 6);
        whole[at] = was;
    }
    /* A broken header before answers is not taken for a job that was only begun. */
    for (uint64_t at = 0; at < 32; at += 3) {
        pst_journal *journal;
        pst_error err = {0};
        whole[at] ^= 1;
        test_write_file(path, whole, bytes);
        assert_int_equal(pst_journal_open(path, false, &journal, &err), PST_E_FORMAT);
        whole[at] ^= 1;
    }
    /* What is none of ours is left alone, unless a restart is asked for. */
    static const char text[] = "precious notes, longer than eight bytes";
    pst_journal *journal;
    pst_error err = {0};
    test_write_file(path, text, sizeof text);
    assert_int_equal(pst_journal_open(path, false, &journal, &err), PST_E_FORMAT);
    char *found = crash_read_text(path);
    assert_string_equal(found, text);
    free(found);
    /* Two at a time are one too many. */
    test_write_file(path, whole, bytes);
    pst_journal *other;
    assert_ok(pst_journal_open(path, false, &journal, &err), &err);
    assert_int_equal(pst_journal_open(path, false, &other, &err), -EBUSY);
    pst_journal_close(journal);
    assert_ok(pst_journal_open(path, true, &journal, &err), &err);
    assert_null(pst_journal_header(journal));
    pst_journal_close(journal);
    free(whole);
    crash_remove_tree(folder);
    free(folder);
}

static int tear_down_each(void **state)
{
    (void)state;
    pst_crash_forget();
    pst_sys_replace(NULL);
    return 0;
}

static int set_up(void **state)
{
    static fixture f;
    pst_error err = {0};
    quick = pst_sys_real;
    quick.fdatasync = quick.fsync = no_sync;
    static char path[] = "/tmp/pst-batch-input-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, input_text, strlen(input_text)), strlen(input_text));
    close(fd);
    f.input = path;
    assert_ok(pst_model_open(CASE, NULL, &f.model, &err), &err);
    open_session(&f);
    char *folder = crash_make_folder();
    pst_batch_report report;
    assert_ok(run_job(&f, folder, false, &report, &err), &err);
    assert_int_equal(report.lines, 5);
    assert_int_equal(report.answered, 5);
    assert_int_equal(report.failed, 1);
    f.expected = crash_read_text(output_in(folder));
    assert_non_null(f.expected);
    assert_int_equal(count_files(folder), 1);
    crash_remove_tree(folder);
    free(folder);
    *state = &f;
    return 0;
}

static int tear_down(void **state)
{
    fixture *f = *state;
    unlink(f->input);
    free(f->expected);
    pst_session_close(f->session);
    pst_model_close(f->model);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_power_fails, tear_down_each),
        cmocka_unit_test_teardown(test_power_fails_in_a_restart, tear_down_each),
        cmocka_unit_test_teardown(test_failing_calls, tear_down_each),
        cmocka_unit_test_teardown(test_failing_allocations, tear_down_each),
        cmocka_unit_test_teardown(test_torn_journal, tear_down_each),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
