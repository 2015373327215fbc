/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where an accelerator's keys and values are: in its memory where they fit, in the host's where they do not or where it was
 * asked for, or in a file. The answers are the same, what is moved is what attention needs, and both budgets hold. The
 * accelerator is one that the host pretends to be, with memory of its own.
 */
#include <inttypes.h>
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

#include "device/fault.h"
#include "penstock/model.h"

#define CASE PST_TEST_SOURCE_DIR "/tests/reference/cases/llama_bf16_sharded"
enum { SEQUENCES = 5, PROMPT = 60, NEW = 60, TOKENS = PROMPT + NEW, BLOCKS = 2, LAYERS = 2 };

static pst_device_fault fault;
static char folder[] = "/tmp/penstock-kv-places-XXXXXX";

/* What a run showed. */
typedef struct outcome {
    pst_plan_info plan;
    pst_run_stats stats;
    uint32_t ids[SEQUENCES * NEW];
} outcome;

static pst_session_options base_options(void)
{
    return (pst_session_options){.struct_size = sizeof(pst_session_options),
                                 .max_tokens = TOKENS,
                                 .max_sequences = SEQUENCES,
                                 .threads = 1,
                                 .no_prefix_sharing = true,
                                 .device = "pretended"};
}

/* Opens a session, answers SEQUENCES requests, closes it. */
static int run(const pst_session_options *options, outcome *out, pst_error *err)
{
    pst_model *model = NULL;
    pst_session *session = NULL;
    pst_result results[SEQUENCES] = {0};
    pst_request requests[SEQUENCES];
    static uint32_t prompts[SEQUENCES][PROMPT];
    *err = (pst_error){.code = 0};
    for (uint32_t s = 0; s < SEQUENCES; s++) {
        for (uint32_t i = 0; i < PROMPT; i++)
            prompts[s][i] = 1 + (s * 11 + i * (s + 7)) % 40;
        requests[s] =
            (pst_request){.prompt_ids = prompts[s], .prompt_count = PROMPT, .max_new_tokens = NEW, .ignore_end = true};
    }
    memset(fault.peak_bytes, 0, sizeof fault.peak_bytes);
    int status = pst_model_open(CASE, NULL, &model, err);
    if (status >= 0)
        status = pst_session_open(model, options, &session, err);
    if (status >= 0) {
        pst_session_get_plan(session, &out->plan);
        status = pst_generate(session, requests, SEQUENCES, NULL, NULL, results, &out->stats, err);
    }
    for (size_t i = 0; status >= 0 && i < SEQUENCES; i++)
        memcpy(out->ids + i * NEW, results[i].ids.ids, NEW * sizeof *out->ids);
    for (size_t i = 0; i < SEQUENCES; i++)
        pst_result_free(&results[i]);
    pst_session_close(session);
    pst_model_close(model);
    assert_int_equal(pst_device_fault_held(&fault), 0);
    if (fault.misuses > 0)
        fail_msg("%s", fault.misuse);
    return status;
}

static outcome run_well(const pst_session_options *options)
{
    outcome result;
    pst_error err;
    if (run(options, &result, &err) < 0)
        fail_msg("%s %s", err.path, err.message);
    assert_true(result.plan.device_total_bytes <= result.plan.device_budget_bytes);
    assert_true(fault.peak_bytes[PST_MEMORY_DEVICE] <= result.plan.device_total_bytes);
    assert_true(result.stats.link_bytes <= UINT64_MAX / 2);
    return result;
}

/* The smallest budget that a refusal names, in bytes. */
static uint64_t named(pst_session_options options, const char *whose)
{
    outcome result;
    pst_error err;
    assert_int_equal(run(&options, &result, &err), PST_E_BUDGET);
    if (strstr(err.message, whose) == NULL || strstr(err.message, "works is ") == NULL)
        fail_msg("not about %s: %s", whose, err.message);
    return strtoull(strstr(err.message, "works is ") + 9, NULL, 10) << 20;
}

/* Blocks that reach the accelerator: all passes but the first have one row of each sequence, which sees the blocks of its
 * earlier positions, the partial one included. */
static uint64_t expected_blocks(bool whole_ones_alone)
{
    uint64_t blocks = 0;
    for (uint32_t position = PROMPT; position < TOKENS - 1; position++)
        blocks += position / 64 + (!whole_ones_alone && position % 64 != 0);
    return blocks * SEQUENCES;
}

static void test_places(void **state)
{
    (void)state;
    pst_session_options options = base_options();
    const outcome there = run_well(&options);
    assert_false(there.plan.kv_offloaded);
    assert_int_equal(there.plan.kv_bytes, 0);
    const uint64_t all = there.plan.device_kv_bytes, block = all / (SEQUENCES * BLOCKS) / LAYERS;
    assert_true(block > 0);
    const uint64_t weights = there.stats.link_bytes;
    for (uint64_t window = 0; window < 3; window++) {
        options.kv_offload = true;
        options.kv_folder = NULL;
        options.kv_window_bytes = window == 2 ? 40 * block : window;
        const outcome here = run_well(&options);
        assert_true(here.plan.kv_offloaded);
        assert_int_equal(here.plan.kv_bytes, all);
        assert_memory_equal(here.ids, there.ids, sizeof here.ids);
        assert_int_equal(here.stats.link_bytes - weights, expected_blocks(false) * LAYERS * block);
        assert_int_equal(here.stats.kv_bytes_read, 0);
        if (window == 1) /* three parts of one sequence */
            assert_int_equal(here.plan.device_kv_bytes, 3 * BLOCKS * block);
        options.kv_folder = folder;
        const outcome file = run_well(&options);
        assert_true(file.plan.kv_offloaded);
        assert_int_equal(file.plan.device_kv_bytes % 4096, 0);
        assert_true(file.plan.kv_disk_bytes >= all);
        assert_memory_equal(file.ids, there.ids, sizeof file.ids);
        assert_int_equal(file.stats.link_bytes, here.stats.link_bytes);
        const uint64_t slot = file.plan.kv_disk_bytes / (SEQUENCES * BLOCKS) / LAYERS;
        assert_int_equal(file.stats.kv_bytes_read, expected_blocks(true) * LAYERS * slot);
    }
}

/* Nothing said: the host's memory serves where the device's is too small, and a refusal names what is the least with that. */
static void test_choice(void **state)
{
    (void)state;
    pst_session_options options = base_options();
    const outcome there = run_well(&options);
    options.max_sequences = 200;
    options.device_memory_bytes = 1;
    const uint64_t least = named(options, "device memory budget");
    options.kv_offload = true;
    assert_int_equal(named(options, "device memory budget"), least);
    options.kv_offload = false;
    options.device_memory_bytes = least;
    const outcome here = run_well(&options);
    assert_true(here.plan.kv_offloaded);
    assert_true(here.plan.device_total_bytes - here.plan.device_kv_bytes + here.plan.kv_bytes > least);
    assert_memory_equal(here.ids, there.ids, sizeof here.ids);
    options.device_memory_bytes = 4 * (least + here.plan.kv_bytes);
    assert_false(run_well(&options).plan.kv_offloaded);
    /* Where the host lacks memory as well, it is not asked for more. */
    options.device_memory_bytes = 1;
    options.host_memory_bytes = 1;
    assert_true(named(options, "host memory budget") > 0);
    options.host_memory_bytes = 0;
    /* On the host there is nothing to decide. */
    options.device = NULL;
    options.device_memory_bytes = 0;
    options.kv_offload = true;
    const outcome host = run_well(&options);
    assert_false(host.plan.kv_offloaded);
    assert_int_equal(host.plan.device_kv_bytes, 0);
    assert_memory_equal(host.ids, there.ids, sizeof host.ids);
}

/* At the smallest budgets the process stays within the host's, and what was taken of the device within the device's. In a child,
 * since the peak is the process's; the pretended device's memory is the process's, too. */
static int run_smallest(uint32_t kv_bits, const char *kv_folder)
{
    enum { MANY = 300 };
    pst_session_options options = base_options();
    outcome result;
    pst_error err;
    options.max_sequences = MANY;
    options.kv_bits = kv_bits;
    options.kv_folder = kv_folder;
    options.kv_offload = true;
    options.device_memory_bytes = 1;
    options.device_memory_bytes = named(options, "device memory budget");
    options.host_memory_bytes = 1;
    options.host_memory_bytes = named(options, "host memory budget");
    if (run(&options, &result, &err) < 0)
        return 1;
    const uint64_t pretended = fault.peak_bytes[PST_MEMORY_DEVICE];
    if (pretended > options.device_memory_bytes)
        return 2;
    return result.stats.peak_rss_bytes <= options.host_memory_bytes + pretended ? 0 : 3;
}

static void test_smallest_budgets_hold(void **state)
{
    (void)state;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    (void)run_smallest;
    printf("SKIP: memory is not the program's own under sanitizers\n");
#else
    static const uint32_t bits[] = {32, 16, 8, 4};
    for (size_t i = 0; i < 8; i++) {
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0)
            _exit(run_smallest(bits[i / 2], i % 2 ? folder : NULL));
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_int_equal(status, 0);
    }
#endif
}

static int open_device(void *context, const char *name, pst_pool *pool, const char *kernels, pst_device **out,
                       pst_error *err)
{
    return name == NULL ? pst_device_host_create(pool, kernels, out, err)
                        : pst_device_fault_open(context, name, pool, kernels, out, err);
}

static int set_up(void **state)
{
    (void)state;
    return mkdtemp(folder) != NULL ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    return rmdir(folder); /* fails when something was left in it */
}

int main(void)
{
    fault.separate = fault.late = true;
    pst_device_replace_open(open_device, &fault);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_places), cmocka_unit_test(test_choice),
                                       cmocka_unit_test(test_smallest_budgets_hold)};
    return cmocka_run_group_tests_name("places of keys and values", tests, set_up, tear_down);
}
