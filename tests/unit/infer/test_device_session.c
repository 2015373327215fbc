/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sessions on a device, one that the host pretends to be: what is planned, taken, counted and said of its memory and link, and
 * every kind of call failing in turn: an error with what the device says, or the right answer, and nothing left behind.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/heap.h"
#include "device/fault.h"
#include "penstock/model.h"

#define TALES    PST_TEST_SOURCE_DIR "/models/penstock-tales"
#define SHARDED  PST_TEST_SOURCE_DIR "/tests/reference/cases/llama_bf16_sharded"
#define MEBIBYTE (UINT64_C(1) << 20)

enum { PROMPT = 70, NEW = 6, TOKENS = PROMPT + NEW };

static pst_device_fault fault;
static uint32_t prompt[PROMPT];

static int set_up(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < PROMPT; i++)
        prompt[i] = 1 + i * 7 % 40;
    pst_device_replace_open(pst_device_fault_open, &fault);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    pst_device_replace_open(NULL, NULL);
    return 0;
}

/* A whole run: open, generate, close. The answer and the error are the caller's. */
static int run(const char *folder, const pst_session_options *options, uint32_t answer[NEW], pst_run_stats *stats,
               pst_plan_info *plan, pst_error *err)
{
    pst_model *model = NULL;
    pst_session *session = NULL;
    pst_result result = {0};
    pst_session_options o = *options;
    *err = (pst_error){0};
    o.struct_size = sizeof o;
    o.device = "pretended";
    o.max_tokens = TOKENS;
    o.threads = 1;
    o.io_engine = "threads";
    const pst_request request = {
        .prompt_ids = prompt, .prompt_count = PROMPT, .max_new_tokens = NEW, .ignore_end = true};
    int status = pst_model_open(folder, NULL, &model, err);
    if (status >= 0)
        status = pst_session_open(model, &o, &session, err);
    if (status >= 0)
        pst_session_get_plan(session, plan);
    if (status >= 0)
        status = pst_generate(session, &request, 1, NULL, NULL, &result, stats, err);
    for (size_t i = 0; status >= 0 && i < NEW; i++)
        answer[i] = result.ids.ids[i];
    if (status >= 0)
        pst_result_free(&result);
    pst_session_close(session);
    pst_model_close(model);
    if (fault.misuses > 0)
        fail_msg("%s", fault.misuse);
    assert_int_equal(pst_device_fault_held(&fault), 0);
    return status;
}

static void must(const char *folder, const pst_session_options *options, uint32_t answer[NEW], pst_run_stats *stats,
                 pst_plan_info *plan)
{
    pst_error err;
    if (run(folder, options, answer, stats, plan, &err) < 0)
        fail_msg("%s", err.message);
}

static void test_plan_and_statistics(void **state)
{
    (void)state;
    static const pst_session_options cases[] = {
        {.measure_bound = true},                                         /* all there */
        {.device_memory_bytes = 6 * MEBIBYTE, .measure_bound = true},    /* the rest on the host */
        {.device_memory_bytes = 6 * MEBIBYTE, .keep_all_weights = true}, /* likewise */
        {.device_memory_bytes = 6 * MEBIBYTE, .resident_set = true, .resident_share = 0, .measure_bound = true},
        {.device_memory_bytes = 6 * MEBIBYTE, .resident_set = true, .resident_share = 0.5, .measure_bound = true},
    };
    uint32_t first[NEW] = {0};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint32_t answer[NEW];
        pst_run_stats stats;
        pst_plan_info plan;
        fault = (pst_device_fault){.separate = true, .late = i % 2};
        must(TALES, &cases[i], answer, &stats, &plan);
        memcpy(first, i == 0 ? answer : first, sizeof first);
        assert_memory_equal(answer, first, sizeof first);
        assert_true(plan.device_total_bytes <= plan.device_budget_bytes);
        assert_in_range(fault.peak_bytes[PST_MEMORY_DEVICE], plan.device_resident_bytes + 1, plan.device_total_bytes);
        if (cases[i].device_memory_bytes > 0)
            assert_int_equal(plan.device_budget_bytes, cases[i].device_memory_bytes);
        assert_int_equal(stats.device_memory_bytes, plan.device_total_bytes);
        assert_int_equal(stats.device_resident_bytes, plan.device_resident_bytes);
        assert_true(plan.device_kv_bytes > 0 && plan.kv_bytes == 0);
        bool links = i > 0, measured = cases[i].measure_bound && links;
        assert_true((plan.device_slots > 0) == links && (plan.expected_link_bytes > 0) == links);
        assert_true((plan.link_bytes_per_second > 0) == measured && (stats.link_bytes_per_second > 0) == measured);
        assert_true((plan.streamed_bytes > 0) == (i >= 3));
        assert_true((plan.device_resident_bytes > 0) == (i != 3));
        assert_true((double)stats.link_bytes == (double)stats.passes * plan.expected_link_bytes);
        assert_true(stats.link_wait_seconds >= 0 && stats.compute_seconds >= 0);
        assert_non_null(strstr("disk page cache link compute not measured", stats.limited_by));
    }
}

/* Refusals name the memory that is too small, and what would do. */
static void test_budgets(void **state)
{
    (void)state;
    uint32_t answer[NEW];
    pst_run_stats stats;
    pst_plan_info plan;
    pst_error err;
    fault = (pst_device_fault){.separate = true, .device_bytes = 64 * MEBIBYTE};
    pst_session_options options = {.device_memory_bytes = 1};
    assert_int_equal(run(TALES, &options, answer, &stats, &plan, &err), PST_E_BUDGET);
    const char *number = strstr(err.message, "device memory budget");
    assert_non_null(number);
    number = strstr(number, "works is ");
    assert_non_null(number);
    options.device_memory_bytes = strtoull(number + 9, NULL, 10) * MEBIBYTE;
    must(TALES, &options, answer, &stats, &plan);
    options.device_memory_bytes = 65 * MEBIBYTE;
    assert_int_equal(run(TALES, &options, answer, &stats, &plan, &err), PST_E_USAGE); /* no smaller batch helps */
    assert_non_null(strstr(err.message, "65 MiB"));
    assert_non_null(strstr(err.message, "64 MiB free"));
    options.device_memory_bytes = 0; /* a share is left alone */
    must(TALES, &options, answer, &stats, &plan);
    assert_int_equal(plan.device_budget_bytes, 60 * MEBIBYTE);
    pst_device_fault_fail(&fault, PST_DEVICE_INFO, 0, 1, -EIO);
    assert_int_equal(run(TALES, &options, answer, &stats, &plan, &err), -EIO);
    assert_non_null(strstr(err.message, "telling its memory failed"));
}

/* How many sequences a job runs depends on the device's memory, which nothing is taken of meanwhile. */
static void test_choice_of_batch(void **state)
{
    (void)state;
    pst_model *model;
    pst_error err;
    uint32_t chosen[2];
    assert_int_equal(pst_model_open(TALES, NULL, &model, &err), 0);
    for (int i = 0; i < 2; i++) {
        const pst_workload work = {.struct_size = sizeof work,
                                   .requests = 4000,
                                   .kv_tokens = 4000 * 128,
                                   .prompt_tokens = 4000 * 70,
                                   .new_tokens = 4000 * 30,
                                   .disk_bytes_per_second = 1e9,
                                   .operations_per_second = 1e14,
                                   .one_row_operations_per_second = 1e11};
        pst_session_options options = {.struct_size = sizeof options,
                                       .max_tokens = 128,
                                       .device = "pretended",
                                       .device_memory_bytes = i == 0 ? 8 * MEBIBYTE : 200 * MEBIBYTE};
        fault = (pst_device_fault){.separate = true};
        if (pst_session_choose_batch(model, &work, &options, &err) < 0)
            fail_msg("%s", err.message);
        assert_int_equal(options.device_memory_bytes, i == 0 ? 8 * MEBIBYTE : 200 * MEBIBYTE);
        assert_int_equal(pst_device_fault_held(&fault), 0);
        chosen[i] = options.max_sequences;
        pst_session *session;
        if (pst_session_open(model, &options, &session, &err) < 0) /* it fits */
            fail_msg("%s", err.message);
        pst_session_close(session);
    }
    if (chosen[0] >= chosen[1])
        fail_msg("%u sequences with little memory, %u with much", chosen[0], chosen[1]);
    pst_model_close(model);
}

/* Requests side by side, each with settings of its own. */
enum { TOGETHER = 7, TOPS = 4 };

/* What is told of the tokens of one request. */
typedef struct told {
    double values[NEW], prompt[PROMPT], top_values[NEW * TOPS];
    uint32_t top_ids[NEW * TOPS];
} told;

static void keep_told(const pst_result *result, told *out)
{
    memset(out, 0, sizeof *out);
    assert_int_equal(result->logprobs.count, NEW);
    assert_int_equal(result->logprobs.top, TOPS);
    memcpy(out->values, result->logprobs.values, sizeof out->values);
    memcpy(out->top_values, result->logprobs.top_values, sizeof out->top_values);
    memcpy(out->top_ids, result->logprobs.top_ids, sizeof out->top_ids);
    if (result->prompt_logprobs.count > 0)
        memcpy(out->prompt, result->prompt_logprobs.values, result->prompt_logprobs.count * sizeof(double));
}

static void generate_together(pst_model *model, const char *device, bool requests_only, uint32_t answers[TOGETHER][NEW],
                              told tolds[TOGETHER])
{
    static const pst_sampling samplings[TOGETHER] = {
        {.temperature = 0},
        {.temperature = 0.8, .top_k = 50, .top_p = 0.9, .seed = 1},
        {.temperature = 1, .top_p = 0.95, .seed = 2},
        {.temperature = 1e9, .top_k = 40, .seed = 3}, /* of so many that weigh the same, the lowest ids */
        {.temperature = 1.2, .top_k = 1000, .min_p = 0.01, .seed = 4},
        {.temperature = 1, .seed = 5},
        {.temperature = 0.7, .top_k = 1, .seed = 6},
    };
    pst_session_options options = {.struct_size = sizeof options,
                                   .max_tokens = TOKENS,
                                   .max_sequences = TOGETHER,
                                   .threads = 2,
                                   .device = device,
                                   .requests_only = requests_only,
                                   .logprobs = true,
                                   .prompt_logprobs = true};
    pst_request requests[TOGETHER];
    pst_result results[TOGETHER];
    pst_session *session;
    pst_error err;
    if (pst_session_open(model, &options, &session, &err) < 0)
        fail_msg("%s", err.message);
    for (size_t i = 0; i < TOGETHER; i++)
        requests[i] = (pst_request){.prompt_ids = prompt,
                                    .prompt_count = PROMPT - i,
                                    .max_new_tokens = NEW,
                                    .sampling = samplings[i],
                                    .ignore_end = true,
                                    .logprobs = true,
                                    .prompt_logprobs = i % 2 == 1,
                                    .top_logprobs = TOPS};
    if (pst_generate(session, requests, TOGETHER, NULL, NULL, results, NULL, &err) < 0)
        fail_msg("%s", err.message);
    for (size_t i = 0; i < TOGETHER; i++) {
        memcpy(answers[i], results[i].ids.ids, sizeof answers[i]);
        keep_told(&results[i], &tolds[i]);
        pst_result_free(&results[i]);
    }
    const pst_logits *logits;
    size_t count;
    assert_int_equal(pst_session_step(session, &logits, &count, &err), requests_only ? PST_E_USAGE : 0);
    pst_session_close(session);
}

static void test_choices(void **state)
{
    (void)state;
    uint32_t answers[TOGETHER][NEW], host[TOGETHER][NEW];
    static told tolds[TOGETHER], expected[TOGETHER];
    uint64_t pinned[2];
    pst_model *model;
    pst_error err;
    assert_int_equal(pst_model_open(TALES, NULL, &model, &err), 0);
    generate_together(model, "host", false, host, expected);
    for (int requests_only = 0; requests_only < 2; requests_only++) {
        fault = (pst_device_fault){.separate = true, .late = requests_only};
        generate_together(model, "pretended", requests_only, answers, tolds);
        if (fault.misuses > 0)
            fail_msg("%s", fault.misuse);
        assert_int_equal(pst_device_fault_held(&fault), 0);
        assert_memory_equal(answers, host, sizeof host);
        assert_memory_equal(tolds, expected, sizeof expected);
        pinned[requests_only] = fault.peak_bytes[PST_MEMORY_HOST];
    }
    assert_true(pinned[1] <= pinned[0]);
    for (uint32_t i = 0; i < NEW; i++)
        assert_true(host[3][i] < 40);
    generate_together(model, "host", true, answers, tolds);
    assert_memory_equal(answers, host, sizeof host);
    assert_memory_equal(tolds, expected, sizeof expected);
    pst_model_close(model);
}

static void test_failing_calls(void **state)
{
    (void)state;
    static const pst_device_call kinds[] = {PST_DEVICE_ALLOCATE, PST_DEVICE_REGISTER, PST_DEVICE_CREATE,
                                            PST_DEVICE_RECORD,   PST_DEVICE_WAIT,     PST_DEVICE_SYNCHRONIZE,
                                            PST_DEVICE_COPY,     PST_DEVICE_OPERATOR};
    const pst_session_options options = {
        .device_memory_bytes = MEBIBYTE, .resident_set = true, .resident_share = 0.4, .max_slot_bytes = 1 << 15};
    uint32_t right[NEW], answer[NEW];
    pst_run_stats stats;
    pst_plan_info plan;
    pst_error err;
    fault = (pst_device_fault){.separate = true};
    must(SHARDED, &options, right, &stats, &plan);
    assert_true(plan.device_slots > 0 && plan.streamed_bytes > 0);
    for (size_t k = 0; k < sizeof kinds / sizeof kinds[0]; k++) {
        const int64_t whole = fault.calls[kinds[k]];
        for (int64_t n = 0, step = 1, struck = 1; struck; n += step) {
            int64_t live = pst_heap_live_count();
            fault = (pst_device_fault){.separate = true, .late = n % 2};
            pst_device_fault_fail(&fault, kinds[k], n, 1, -EIO);
            int status = run(SHARDED, &options, answer, &stats, &plan, &err);
            struck = fault.failures > 0;
            assert_int_equal(pst_heap_live_count(), live);
            assert_true(struck || status == 0);
            if (status == 0)
                assert_memory_equal(answer, right, sizeof right);
            else if (status != -EIO || strstr(err.message, "as planned") == NULL)
                fail_msg("call %d of kind %d: %d, %s", (int)n, (int)kinds[k], status, err.message);
            step = 1 + (whole + n) / 40; /* the first ones, then here and there */
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plan_and_statistics), cmocka_unit_test(test_budgets),
        cmocka_unit_test(test_choice_of_batch),     cmocka_unit_test(test_choices),
        cmocka_unit_test(test_failing_calls),
    };
    return cmocka_run_group_tests_name("device sessions", tests, set_up, tear_down);
}
