/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sessions: options that make no sense, budgets, one pass at a time, cancelling, and every allocation and read failing in
 * turn: an error that names the file, or the right answer; nothing leaks.
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
#include "infer/internal.h"
#include "os/sys_fault.h"
#include "penstock/model.h"

#define CASE PST_TEST_SOURCE_DIR "/tests/reference/cases/llama_bf16_sharded"

static const uint32_t prompt[] = {1, 2, 3, 4, 5, 6, 7};
enum { PROMPT = sizeof prompt / sizeof prompt[0], NEW = 4 };

static pst_model *open_model(void)
{
    pst_model *model;
    pst_error err;
    if (pst_model_open(CASE, NULL, &model, &err) < 0)
        fail_msg("%s: %s", err.path, err.message);
    return model;
}

static void test_options(void **state)
{
    (void)state;
    pst_model *model = open_model();
    pst_session *session = NULL;
    pst_error err;
    const pst_session_options bad[] = {
        {.struct_size = 8, .max_tokens = 8},
        {.struct_size = sizeof bad[0]},
        {.struct_size = sizeof bad[0], .max_tokens = 100000000},
        {.struct_size = sizeof bad[0], .max_tokens = 8, .kv_bits = 7},
        {.struct_size = sizeof bad[0], .max_tokens = 8, .max_sequences = 1u << 30},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_int_equal(pst_session_open(model, &bad[i], &session, &err), PST_E_USAGE);
    pst_session_options unknown = {.struct_size = sizeof unknown, .max_tokens = 8, .io_engine = "carrier pigeon"};
    assert_true(pst_session_open(model, &unknown, &session, &err) < 0);
    assert_non_null(strstr(err.message, "carrier pigeon"));
    unknown.io_engine = NULL;
    unknown.kernels = "abacus";
    assert_true(pst_session_open(model, &unknown, &session, &err) < 0);
    assert_non_null(strstr(err.message, "abacus"));
    assert_null(session);
    pst_model_close(model);
}

/* Log-probabilities take memory, which a session has only if it was opened for them. */
static void test_refused_logprobs(void **state)
{
    (void)state;
    pst_model *model = open_model();
    pst_session_options options = {.struct_size = sizeof options, .max_tokens = 16};
    const pst_request requests[] = {
        {.prompt_ids = prompt, .prompt_count = PROMPT, .max_new_tokens = 1, .logprobs = true},
        {.prompt_ids = prompt, .prompt_count = PROMPT, .max_new_tokens = 1, .prompt_logprobs = true},
        {.prompt_ids = prompt, .prompt_count = PROMPT, .top_logprobs = PST_MAX_TOP_LOGPROBS + 1},
    };
    for (size_t i = 0; i < 3; i++) {
        pst_session *session;
        pst_result result;
        pst_error err;
        options.prompt_logprobs = i != 1;
        options.logprobs = i != 0;
        assert_int_equal(pst_session_open(model, &options, &session, &err), 0);
        assert_int_equal(pst_generate(session, &requests[i], 1, NULL, NULL, &result, NULL, &err), PST_E_USAGE);
        assert_non_null(strstr(err.message, "log-probabilities"));
        pst_session_close(session);
    }
    pst_model_close(model);
}

static void test_step_by_step(void **state)
{
    (void)state;
    pst_model *model = open_model();
    pst_model_info info;
    pst_model_get_info(model, &info);
    pst_session_options options = {.struct_size = sizeof options, .max_tokens = 16, .max_sequences = 2};
    pst_session *session;
    pst_error err;
    assert_int_equal(pst_session_open(model, &options, &session, &err), 0);
    const pst_logits *logits;
    size_t count;
    assert_int_equal(pst_session_step(session, &logits, &count, &err), 0);
    assert_int_equal(count, 0);
    uint32_t first, second, third;
    assert_int_equal(pst_session_add(session, prompt, 0, &first, &err), PST_E_USAGE);
    assert_int_equal(pst_session_add(session, (uint32_t[]){info.vocab}, 1, &first, &err), PST_E_USAGE);
    assert_int_equal(pst_session_add(session, prompt, PROMPT, &first, &err), 0);
    assert_int_equal(pst_session_add(session, prompt, 1, &second, &err), 0);
    assert_int_equal(pst_session_add(session, prompt, 1, &third, &err), PST_E_USAGE);
    assert_int_equal(pst_session_step(session, &logits, &count, &err), 0);
    assert_int_equal(count, 2);
    assert_int_equal(pst_session_append(session, second, 3, &err), 0);
    assert_int_equal(pst_session_append(session, 9, 3, &err), PST_E_USAGE);
    pst_session_remove(session, first);
    assert_int_equal(pst_session_step(session, &logits, &count, &err), 0);
    assert_int_equal(count, 1);
    assert_int_equal(logits->sequence, second);
    assert_int_equal(logits->position, 1);
    pst_session_close(session);
    pst_model_close(model);
}

static uint64_t step_bytes(pst_session *session, size_t *logit_rows)
{
    pst_ring_stats before, after;
    const pst_logits *logits;
    pst_error err;
    pst_ring_get_stats(session->ring, &before);
    if (pst_session_step(session, &logits, logit_rows, &err) < 0)
        fail_msg("%s", err.message);
    pst_ring_get_stats(session->ring, &after);
    return after.weight_bytes - before.weight_bytes;
}

/* Passes over a long prompt's beginning give no logits and read no head; the last one does, and what it gives is what a
 * session gives that takes the prompt at once. */
static void test_prompt_in_passes(void **state)
{
    (void)state;
    pst_model *model = open_model();
    pst_session_options options = {.struct_size = sizeof options,
                                   .max_tokens = 16,
                                   .max_sequences = 1,
                                   .resident_set = true,
                                   .max_prompt_tokens = 3};
    pst_session *cut, *whole;
    pst_error err;
    uint32_t number;
    size_t rows;
    assert_int_equal(pst_session_open(model, &options, &cut, &err), 0);
    options.max_prompt_tokens = 0;
    assert_int_equal(pst_session_open(model, &options, &whole, &err), 0);
    assert_int_equal(pst_session_add(cut, prompt, PROMPT, &number, &err), 0);
    assert_int_equal(pst_session_add(whole, prompt, PROMPT, &number, &err), 0);
    const pst_stage *stages = cut->program->stages, *head = &stages[cut->program->stage_count - 1];
    uint64_t head_bytes = 0, row_bytes = stages[0].tensors[0].row_bytes;
    for (uint32_t i = 0; i < head->tensor_count; i++)
        head_bytes += head->tensors[i].tensor->bytes;
    assert_true(head_bytes > 0 && head_bytes < cut->plan.streamed_bytes);
    for (int pass = 0; pass < 2; pass++) {
        assert_int_equal(step_bytes(cut, &rows), cut->plan.streamed_bytes - head_bytes + 3 * row_bytes);
        assert_int_equal(rows, 0);
    }
    assert_int_equal(step_bytes(cut, &rows), cut->plan.streamed_bytes + row_bytes);
    assert_int_equal(rows, 1);
    assert_int_equal(step_bytes(whole, &rows), whole->plan.streamed_bytes + PROMPT * row_bytes);
    assert_int_equal(rows, 1);
    assert_memory_equal(cut->logits[0].values, whole->logits[0].values,
                        model->transformer.vocab * sizeof *cut->logits[0].values);
    pst_session_close(cut);
    pst_session_close(whole);
    pst_model_close(model);
}

static void test_cancel(void **state)
{
    (void)state;
    pst_model *model = open_model();
    pst_session_options options = {.struct_size = sizeof options, .max_tokens = 16};
    pst_session *session;
    pst_error err;
    assert_int_equal(pst_session_open(model, &options, &session, &err), 0);
    pst_session_cancel(session);
    pst_request request = {.prompt_ids = prompt, .prompt_count = PROMPT, .max_new_tokens = NEW};
    pst_result result = {0};
    assert_int_equal(pst_generate(session, &request, 1, NULL, NULL, &result, NULL, &err), PST_E_CANCELLED);
    assert_null(result.ids.ids);
    err = (pst_error){0};
    assert_int_equal(pst_generate(session, &request, 1, NULL, NULL, &result, NULL, &err), PST_E_CANCELLED);
    assert_string_equal(err.message, "cancelled");
    pst_session_close(session);
    pst_model_close(model);
}

static int stop_at_second(void *user, size_t request, uint32_t id, const char *text, size_t text_bytes)
{
    (void)request;
    (void)id;
    (void)text;
    (void)text_bytes;
    return ++*(int *)user == 2;
}

/* A callback cancels; the session serves on. A cancelled session does not, and says why. */
static void test_several_runs(void **state)
{
    (void)state;
    pst_model *model = open_model();
    pst_session_options options = {.struct_size = sizeof options, .max_tokens = PROMPT + NEW, .resident_set = true};
    pst_session *session;
    pst_error err;
    assert_int_equal(pst_session_open(model, &options, &session, &err), 0);
    pst_request request = {.prompt_ids = prompt, .prompt_count = PROMPT, .max_new_tokens = NEW, .ignore_end = true};
    pst_result first, second, none = {0};
    assert_int_equal(pst_generate(session, &request, 1, NULL, NULL, &first, NULL, &err), 0);
    int calls = 0;
    assert_int_equal(pst_generate(session, &request, 1, stop_at_second, &calls, &none, NULL, &err), PST_E_CANCELLED);
    assert_int_equal(calls, 2);
    pst_run_stats stats;
    assert_int_equal(pst_generate(session, &request, 1, NULL, NULL, &second, &stats, &err), 0);
    assert_int_equal(stats.generated_tokens, NEW);
    assert_int_equal(stats.prompt_tokens, PROMPT);
    assert_string_equal(stats.limited_by, "not measured");
    assert_memory_equal(first.ids.ids, second.ids.ids, NEW * sizeof(uint32_t));
    pst_result_free(&first);
    pst_result_free(&second);
    uint32_t number;
    assert_int_equal(pst_session_add(session, prompt, 2, &number, &err), 0);
    assert_int_equal(pst_generate(session, &request, 1, NULL, NULL, &none, NULL, &err), PST_E_USAGE);
    pst_session_remove(session, number);
    request.max_new_tokens = 0;
    assert_int_equal(pst_generate(session, &request, 1, NULL, NULL, &first, &stats, &err), 0);
    assert_int_equal(first.ids.count, 0);
    assert_int_equal(stats.passes, 0);
    pst_result_free(&first);
    pst_session_close(session);
    pst_model_close(model);
}

static void test_requests_are_checked_first(void **state)
{
    (void)state;
    pst_model *model = open_model();
    pst_session_options options = {.struct_size = sizeof options, .max_tokens = PROMPT + NEW};
    pst_session *session;
    pst_error err;
    assert_int_equal(pst_session_open(model, &options, &session, &err), 0);
    static const uint32_t outside[] = {99999};
    static const char *const stops[] = {"x"};
    const pst_request good = {.prompt_ids = prompt, .prompt_count = PROMPT, .max_new_tokens = 1};
    pst_request bad[7] = {good, good, good, good, good, good, good};
    bad[0].prompt_ids = outside;
    bad[0].prompt_count = 1;
    bad[1].prompt_count = 0;
    bad[2].max_new_tokens = NEW + 1;
    bad[3].sampling.temperature = -1;
    bad[4].sampling.top_p = 1.5;
    bad[5].sampling.min_p = 0.0 / 0.0;
    bad[6].stop_texts = stops; /* the case has no tokenizer */
    bad[6].stop_count = 1;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        pst_request requests[] = {good, bad[i]};
        pst_result results[2] = {0};
        pst_run_stats stats = {.passes = 77};
        assert_int_equal(pst_generate(session, requests, 2, NULL, NULL, results, &stats, &err), PST_E_USAGE);
        assert_int_equal(stats.passes, 77);
    }
    pst_session_close(session);
    pst_model_close(model);
}

/* At the smallest budget that the refusal names, the process stays within it. In a child, since the peak is the process's. */
/* A source or a sink that fails ends the run with its own error, and the session goes on with other work. */
typedef struct failing_calls {
    int given, taken, next_fails_at, result_fails_at;
} failing_calls;

static int failing_next(void *user, pst_request *out, pst_error *err)
{
    failing_calls *f = user;
    if (f->given == f->next_fails_at && f->given < 5) {
        *err = (pst_error){.code = -EIO, .message = "the source is dry"};
        return err->code;
    }
    *out = (pst_request){.prompt_ids = prompt, .prompt_count = f->given == 1 ? 0 : PROMPT, .max_new_tokens = NEW};
    return f->given++ < 5;
}

static int failing_result(void *user, size_t request, pst_result *result, const pst_error *failure, pst_error *err)
{
    failing_calls *f = user;
    assert_int_equal(failure != NULL, request == 1); /* an empty prompt */
    assert_int_equal(result->ids.count, failure != NULL ? 0 : NEW);
    if (f->taken++ != f->result_fails_at)
        return 0;
    *err = (pst_error){.code = -ENOSPC, .message = "the sink is full"};
    return err->code;
}

static void test_failing_source_and_sink(void **state)
{
    (void)state;
    pst_model *model = open_model();
    pst_session_options options = {.struct_size = sizeof options, .max_tokens = PROMPT + NEW, .max_sequences = 2};
    pst_session *session;
    pst_error err;
    assert_int_equal(pst_session_open(model, &options, &session, &err), 0);
    int64_t live =
        0; /* after the second round, the first with passes: it has what the session makes at its first pass */
    for (int at = 0; at <= 5; at++) {
        failing_calls f = {.next_fails_at = at, .result_fails_at = -1};
        pst_generate_calls calls = {.next = failing_next, .on_result = failing_result, .user = &f};
        assert_int_equal(pst_generate_stream(session, &calls, NULL, &err), at == 5 ? 0 : -EIO);
        f = (failing_calls){.next_fails_at = -1, .result_fails_at = at};
        assert_int_equal(pst_generate_stream(session, &calls, NULL, &err), at == 5 ? 0 : -ENOSPC);
        assert_int_equal(f.taken, at == 5 ? 5 : at + 1);
        live = at == 1 ? pst_heap_live_count() : live;
    }
    assert_int_equal(pst_heap_live_count(), live);
    pst_session_close(session);
    pst_model_close(model);
}

static void test_smallest_budget_holds(void **state)
{
    (void)state;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    printf("SKIP: memory is not the program's own under sanitizers\n");
#else
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        pst_model *model = open_model();
        pst_session_options options = {
            .struct_size = sizeof options, .max_tokens = PROMPT + NEW, .host_memory_bytes = 1, .measure_bound = true};
        pst_session *session;
        pst_error err;
        if (pst_session_open(model, &options, &session, &err) != PST_E_BUDGET)
            _exit(1);
        options.host_memory_bytes = strtoull(strstr(err.message, "works is ") + 9, NULL, 10) << 20;
        if (pst_session_open(model, &options, &session, &err) < 0)
            _exit(2);
        pst_request request = {.prompt_ids = prompt, .prompt_count = PROMPT, .max_new_tokens = NEW, .ignore_end = true};
        pst_result result;
        pst_run_stats stats;
        if (pst_generate(session, &request, 1, NULL, NULL, &result, &stats, &err) < 0)
            _exit(3);
        _exit(stats.peak_rss_bytes <= options.host_memory_bytes && stats.peak_rss_bytes > 0 ? 0 : 4);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
#endif
}

/* The processor's rate is measured with what is there: in the slots, or resident; and what that writes changes no result. */
static void test_measured_rates(void **state)
{
    (void)state;
    pst_model *model = open_model();
    uint32_t ids[2][NEW];
    for (int resident = 0; resident < 2; resident++) {
        pst_session_options options = {.struct_size = sizeof options,
                                       .max_tokens = PROMPT + NEW,
                                       .resident_set = true,
                                       .resident_share = resident,
                                       .measure_bound = true};
        pst_session *session;
        pst_plan_info info;
        assert_int_equal(pst_session_open(model, &options, &session, NULL), 0);
        pst_session_get_plan(session, &info);
        assert_true(info.operations_per_second > 0 && info.decode_operations_per_second > 0);
        assert_true((info.read_bytes_per_second > 0) == (resident == 0));
        pst_request request = {.prompt_ids = prompt, .prompt_count = PROMPT, .max_new_tokens = NEW, .ignore_end = true};
        pst_result result;
        assert_int_equal(pst_generate(session, &request, 1, NULL, NULL, &result, NULL, NULL), 0);
        memcpy(ids[resident], result.ids.ids, sizeof ids[resident]);
        pst_result_free(&result);
        pst_session_close(session);
    }
    assert_memory_equal(ids[0], ids[1], sizeof ids[0]);
    pst_model_close(model);
}

/* A whole run: open, generate, close. */
static int run_once(uint32_t *ids, pst_error *err)
{
    pst_model *model = NULL;
    pst_session *session = NULL;
    pst_result result = {0};
    *err = (pst_error){0};
    pst_session_options options = {.struct_size = sizeof options,
                                   .max_tokens = PROMPT + NEW,
                                   .resident_set = true,
                                   .resident_share = 0.5,
                                   .threads = 1,
                                   .io_engine = "threads",
                                   .logprobs = true,
                                   .prompt_logprobs = true};
    pst_request request = {.prompt_ids = prompt,
                           .prompt_count = PROMPT,
                           .max_new_tokens = NEW,
                           .ignore_end = true,
                           .sampling = {.temperature = 0.5},
                           .logprobs = true,
                           .prompt_logprobs = true,
                           .top_logprobs = 3};
    int status = pst_model_open(CASE, NULL, &model, err);
    if (status >= 0)
        status = pst_session_open(model, &options, &session, err);
    if (status >= 0)
        status = pst_generate(session, &request, 1, NULL, NULL, &result, NULL, err);
    if (status >= 0) {
        assert_int_equal(result.ids.count, NEW);
        assert_int_equal(result.logprobs.count, NEW);
        assert_int_equal(result.prompt_logprobs.count, PROMPT - 1);
        memcpy(ids, result.ids.ids, NEW * sizeof *ids);
    }
    pst_result_free(&result);
    pst_session_close(session);
    pst_model_close(model);
    return status;
}

static void test_allocation_failures(void **state)
{
    (void)state;
    uint32_t expected[NEW], got[NEW];
    pst_error err;
    assert_int_equal(run_once(expected, &err), 0);
    int64_t live = pst_heap_live_count();
    int64_t n = 0;
    for (;; n += n < 400 ? 1 : 17) {
        pst_heap_fail_after(n, 0);
        int status = run_once(got, &err);
        pst_heap_fail_after(-1, 0);
        assert_int_equal(pst_heap_live_count(), live);
        if (status == 0)
            break;
        assert_true(n < 100000);
    }
    assert_memory_equal(expected, got, sizeof got);
    assert_true(n > 50);
}

static void test_failing_reads(void **state)
{
    (void)state;
    uint32_t expected[NEW], got[NEW];
    pst_error err;
    assert_int_equal(run_once(expected, &err), 0);
    pst_sys_replace(&pst_sys_fault);
    pst_fault_reset();
    assert_int_equal(run_once(got, &err), 0);
    int64_t reads = pst_fault_count(PST_FAULT_READ);
    assert_true(reads > 20);
    for (int64_t n = 0; n < reads; n += 1 + reads / 150) {
        pst_fault_reset();
        pst_fault_fail(PST_FAULT_READ, n, 1, EIO);
        int status = run_once(got, &err);
        if (status == 0) { /* a read ahead whose data nobody came to need */
            assert_memory_equal(expected, got, sizeof got);
            continue;
        }
        if (status != -EIO || strstr(err.path, "llama_bf16_sharded") == NULL)
            fail_msg("read %d: status %d, path \"%s\", \"%s\"", (int)n, status, err.path, err.message);
        pst_fault_reset();
        pst_fault_shorten(PST_FAULT_READ, n, 1, 512);
        status = run_once(got, &err);
        assert_int_equal(status, 0);
        assert_memory_equal(expected, got, sizeof got);
    }
    pst_fault_reset();
    pst_sys_replace(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_options),
        cmocka_unit_test(test_refused_logprobs),
        cmocka_unit_test(test_step_by_step),
        cmocka_unit_test(test_prompt_in_passes),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_several_runs),
        cmocka_unit_test(test_requests_are_checked_first),
        cmocka_unit_test(test_failing_source_and_sink),
        cmocka_unit_test(test_smallest_budget_holds),
        cmocka_unit_test(test_measured_rates),
        cmocka_unit_test(test_allocation_failures),
        cmocka_unit_test(test_failing_reads),
    };
    return cmocka_run_group_tests_name("session", tests, NULL, NULL);
}
