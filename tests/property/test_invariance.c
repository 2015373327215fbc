/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Residency invariance: one set of sequences gives the same bits of logits however its weights are placed, whichever engine
 * reads them, wherever keys and values are, however weights are cut into parts (down to a row of a matrix), however rows are
 * cut into passes and batches, for 1, 2 and 3 threads, and whatever stays on an accelerator, crosses the link or streams from
 * the drive to it (one that the host pretends to be, with memory of its own, that does its work late). The first session of a round (all resident, one sequence at a
 * time) is the yardstick; then random others are held to it.
 */
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "device/fault.h"
#include "penstock/model.h"
#include "support/random.h"

#define CASES PST_TEST_SOURCE_DIR "/tests/reference/cases/"

/* Sanitizers' own memory grows from one session to the next. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { SLACK_MEBIBYTES = 64 };
#else
enum { SLACK_MEBIBYTES = 1 };
#endif

enum { SEQUENCES = 5, MAX_LENGTH = 90 /* more than one block of the cache */, SESSIONS = 24 };

typedef struct work {
    uint32_t ids[SEQUENCES][MAX_LENGTH];
    size_t counts[SEQUENCES];
    size_t vocab;
    float *logits[SEQUENCES]; /* count x vocab */
    double logprobs[SEQUENCES][MAX_LENGTH];
} work;

static char kv_folder[] = "/tmp/penstock-invariance-XXXXXX";
static int cut_sessions; /* sessions whose slots were too small for the larger stages */
static pst_device_fault fault;
static struct {
    int all, some, link,
        disk; /* sessions on a device: all weights there, some; what was copied from the host, the drive */
} placed;

static void count_place(const pst_plan_info *plan)
{
    if (plan->device_budget_bytes == 0)
        return;
    placed.all += plan->device_slots == 0;
    placed.some += plan->device_slots > 0 && plan->device_resident_bytes > 0;
    placed.link += plan->device_slots > 0 && plan->streamed_bytes == 0;
    placed.disk += plan->streamed_bytes > 0;
}

static void deal(work *w, size_t vocab)
{
    w->vocab = vocab;
    for (size_t s = 0; s < SEQUENCES; s++) {
        w->counts[s] = 1 + random_below(MAX_LENGTH);
        w->logits[s] = calloc(w->counts[s] * vocab, sizeof(float));
        assert_non_null(w->logits[s]);
        for (size_t i = 0; i < w->counts[s]; i++)
            w->ids[s][i] = (uint32_t)random_below(vocab);
    }
}

typedef struct sink {
    work *work;
    size_t first; /* sequence of request 0 */
    bool compare;
    const char *what;
} sink;

static int take_row(void *user, size_t request, uint32_t position, const float *logits, size_t vocab)
{
    sink *s = user;
    float *mine = s->work->logits[s->first + request] + position * vocab;
    if (!s->compare)
        memcpy(mine, logits, vocab * sizeof(float));
    else if (memcmp(mine, logits, vocab * sizeof(float)) != 0)
        fail_msg("%s: sequence %zu, position %u differs", s->what, s->first + request, position);
    return 0;
}

static void score(pst_model *model, work *w, pst_session_options options, size_t at_once, bool compare,
                  const char *what)
{
    options.struct_size = sizeof options;
    options.max_sequences = (uint32_t)at_once;
    options.max_tokens = MAX_LENGTH;
    options.all_logits = true;
    for (size_t first = 0; first < SEQUENCES; first += at_once) {
        size_t count = SEQUENCES - first < at_once ? SEQUENCES - first : at_once;
        pst_session *session;
        pst_error err;
        fault.peak_bytes[PST_MEMORY_DEVICE] = 0;
        if (pst_session_open(model, &options, &session, &err) < 0)
            fail_msg("%s: %s", what, err.message);
        pst_plan_info plan;
        pst_session_get_plan(session, &plan);
        cut_sessions += plan.slots > 0 && plan.slot_bytes < 40000;
        count_place(&plan);
        pst_score_request requests[SEQUENCES];
        double logprobs[SEQUENCES][MAX_LENGTH];
        for (size_t i = 0; i < count; i++)
            requests[i] = (pst_score_request){w->ids[first + i], w->counts[first + i], logprobs[i]};
        sink s = {w, first, compare, what};
        if (pst_score(session, requests, count, take_row, &s, NULL, &err) < 0)
            fail_msg("%s: %s", what, err.message);
        for (size_t i = 0; i < count; i++) {
            size_t bytes = (w->counts[first + i] - 1) * sizeof(double);
            if (!compare)
                memcpy(w->logprobs[first + i], logprobs[i], bytes);
            else
                assert_memory_equal(w->logprobs[first + i], logprobs[i], bytes);
        }
        pst_session_close(session);
        if (fault.misuses > 0)
            fail_msg("%s: %s", what, fault.misuse);
        if (plan.device_budget_bytes > 0) /* what was planned is what it takes */
            assert_in_range(fault.peak_bytes[PST_MEMORY_DEVICE], 1, plan.device_total_bytes);
        assert_int_equal(pst_device_fault_held(&fault), 0);
    }
}

/* The least budget that works with these options now, as the refusal of the least of all names it. */
static uint64_t smallest_budget(pst_model *model, pst_session_options options, size_t at_once)
{
    options.struct_size = sizeof options;
    options.all_logits = true;
    options.max_sequences = (uint32_t)at_once;
    options.max_tokens = MAX_LENGTH;
    pst_session *session;
    pst_error err;
    if (pst_session_open(model, &options, &session, &err) != PST_E_BUDGET)
        fail_msg("%s", err.message);
    const char *number = strstr(err.message, "works is ");
    assert_non_null(number);
    return strtoull(number + 9, NULL, 10) << 20;
}

/* A random placement, engine, cut and thread count. */
static pst_session_options random_options(pst_model *model, size_t at_once, char *what, size_t what_bytes)
{
    static const char *const engines[] = {"auto", "threads"};
    pst_session_options options = {.resident_set = random_below(4) > 0,
                                   .resident_share = (double)random_below(5) / 4,
                                   .threads = 1 + (uint32_t)random_below(3),
                                   .io_engine = engines[random_below(2)],
                                   .block_size = 4096ull << random_below(6),
                                   .max_slot_bytes = random_below(3) ? 1 + random_below(1 << 16) : 0,
                                   .queue_depth = 1 + (uint32_t)random_below(16)};
    if (random_below(5) == 0) {
        options.kv_folder = kv_folder;
        options.kv_window_bytes = 1 + random_below(1 << 17);
    }
    /* From the smallest (a row or two per pass, the smallest slots) to ample. */
    options.host_memory_bytes = 1;
    options.device = options.kv_folder == NULL && random_below(2) ? "pretended" : NULL;
    options.host_memory_bytes = smallest_budget(model, options, at_once) + (SLACK_MEBIBYTES << 20) +
                                random_below(3) * random_below(400000) + (random_below(3) == 0 ? 64u << 20 : 0);
    if (options.device != NULL && random_below(5)) {
        options.device_memory_bytes = 1;
        options.device_memory_bytes = smallest_budget(model, options, at_once) + random_below(3) * random_below(300000);
    }
    fault.late = random_below(2);
    size_t length = (size_t)snprintf(what, what_bytes, "%" PRIu64 " bytes of a %sdevice, ", options.device_memory_bytes,
                                     options.device == NULL ? "missing "
                                     : fault.late           ? "late "
                                                            : "");
    what += length;
    what_bytes -= length;
    snprintf(what, what_bytes,
             "resident %g (set %d), %u threads, %s, block %" PRIu64 ", depth %u, %" PRIu64 " bytes, slots of %" PRIu64
             ", keys and values %s",
             options.resident_share, options.resident_set, options.threads, options.io_engine, options.block_size,
             options.queue_depth, options.host_memory_bytes, options.max_slot_bytes,
             options.kv_folder != NULL ? "on disk" : "in memory");
    return options;
}

static void check_case(const char *name, pst_compute_type compute, uint32_t kv_bits)
{
    char path[512];
    snprintf(path, sizeof path, CASES "%s", name);
    pst_model *model;
    pst_error err;
    if (pst_model_open(path, NULL, &model, &err) < 0)
        fail_msg("%s: %s", err.path, err.message);
    pst_model_info info;
    pst_model_get_info(model, &info);
    work w = {0};
    deal(&w, info.vocab);
    pst_session_options all_resident = {.resident_set = true,
                                        .resident_share = 1,
                                        .threads = 1,
                                        .io_engine = "threads",
                                        .compute_type = compute,
                                        .kv_bits = kv_bits};
    score(model, &w, all_resident, 1, false, name);
    for (int i = 0; i < SESSIONS; i++) {
        size_t at_once = 1 + random_below(SEQUENCES);
        char what[400];
        pst_session_options options = random_options(model, at_once, what, sizeof what);
        options.compute_type = compute;
        options.kv_bits = kv_bits;
        score(model, &w, options, at_once, true, what);
    }
    for (size_t s = 0; s < SEQUENCES; s++)
        free(w.logits[s]);
    pst_model_close(model);
}

static void test_invariance(void **state)
{
    (void)state;
    random_start("invariance");
    check_case("llama_gqa2", PST_COMPUTE_F32, 16);
    check_case("llama_bf16_sharded", PST_COMPUTE_F32, 0);
    check_case("llama_bf16_sharded", PST_COMPUTE_BF16, 0);
    check_case("mistral_window", PST_COMPUTE_AUTO, 0);
    check_case("qwen2_tied_bf16", PST_COMPUTE_BF16, 0);
    check_case("qwen3_f16", PST_COMPUTE_AUTO, 32);
    check_case("llama_biases", PST_COMPUTE_AUTO, 0);
    check_case("qwen2", PST_COMPUTE_AUTO, 8);
    check_case("llama_gqa2", PST_COMPUTE_AUTO, 4);
    check_case("opt_350m", PST_COMPUTE_BF16, 0);
    check_case("bloom_old_bf16", PST_COMPUTE_BF16, 0);
    check_case("gpt2_bare", PST_COMPUTE_F32, 0);
    check_case("gpt2_scales_bf16", PST_COMPUTE_BF16, 16);
    check_case("mistral_longrope_crossing", PST_COMPUTE_AUTO, 0); /* angles that depend on a sequence's length */
    check_case("llama_dynamic", PST_COMPUTE_AUTO, 0);
    check_case("mixtral_top3_window", PST_COMPUTE_AUTO, 0);
    check_case("qwen3_moe_mixed_layers", PST_COMPUTE_F32, 16);
    check_case("qwen3_moe_bf16", PST_COMPUTE_BF16, 0);
    check_case("deepseek_v3_yarn", PST_COMPUTE_F32, 16);
    check_case("deepseek_v3_bf16", PST_COMPUTE_BF16, 0);
    check_case("deepseek_v2", PST_COMPUTE_AUTO, 8);
    check_case("fp8_deepseek", PST_COMPUTE_F32, 0);
    check_case("penstock_4_tied", PST_COMPUTE_BF16, 0);
    check_case("penstock_8", PST_COMPUTE_F32, 16);
    check_case("fp8_blocks", PST_COMPUTE_BF16, 0);
    check_case("fp8_channels", PST_COMPUTE_F32, 0);
    check_case("gptq_4_reordered", PST_COMPUTE_BF16, 0);
    check_case("gptq_8_whole", PST_COMPUTE_F32, 8);
    check_case("awq", PST_COMPUTE_AUTO, 0);
    assert_true(cut_sessions > 10);
    printf("on a device: all weights %d, some %d; from the host alone %d, from the drive %d\n", placed.all, placed.some,
           placed.link, placed.disk);
    assert_true(placed.all > 0 && placed.some > 0 && placed.link > 0 && placed.disk > 0);
}

/* What a request generates does not depend on its neighbours, nor on where the weights are. */
static void test_generation_alone_and_together(void **state)
{
    (void)state;
    pst_model *model;
    pst_error err;
    assert_int_equal(pst_model_open(CASES "llama_bf16_sharded", NULL, &model, &err), 0);
    pst_model_info info;
    pst_model_get_info(model, &info);
    work w = {0};
    deal(&w, info.vocab);
    pst_request requests[SEQUENCES];
    pst_result alone[SEQUENCES], together[SEQUENCES];
    for (size_t i = 0; i < SEQUENCES; i++)
        requests[i] = (pst_request){.prompt_ids = w.ids[i],
                                    .prompt_count = w.counts[i],
                                    .max_new_tokens = 3 + (uint32_t)random_below(9),
                                    .sampling = {.temperature = 1, .top_k = 20, .top_p = 0.95, .seed = i + 1},
                                    .ignore_end = true};
    pst_session_options one = {.struct_size = sizeof one, .max_tokens = MAX_LENGTH + 12, .threads = 1};
    pst_session_options many = {.struct_size = sizeof many,
                                .max_tokens = MAX_LENGTH + 12,
                                .max_sequences = 3,
                                .resident_set = true,
                                .threads = 2};
    pst_session *session;
    for (size_t i = 0; i < SEQUENCES; i++) {
        assert_int_equal(pst_session_open(model, &one, &session, &err), 0);
        assert_int_equal(pst_generate(session, &requests[i], 1, NULL, NULL, &alone[i], NULL, &err), 0);
        pst_session_close(session);
    }
    assert_int_equal(pst_session_open(model, &many, &session, &err), 0);
    pst_run_stats stats;
    assert_int_equal(pst_generate(session, requests, SEQUENCES, NULL, NULL, together, &stats, &err), 0);
    assert_true(stats.weight_bytes_read >= stats.passes * stats.streamed_bytes);
    pst_session_close(session);
    for (size_t i = 0; i < SEQUENCES; i++) {
        assert_int_equal(alone[i].ids.count, requests[i].max_new_tokens);
        assert_int_equal(alone[i].ids.count, together[i].ids.count);
        assert_memory_equal(alone[i].ids.ids, together[i].ids.ids, alone[i].ids.count * sizeof(uint32_t));
        pst_result_free(&alone[i]);
        pst_result_free(&together[i]);
        free(w.logits[i]);
    }
    pst_model_close(model);
}

static int open_device(void *context, const char *name, pst_pool *pool, const char *kernels, pst_device **out,
                       pst_error *err)
{
    if (name == NULL)
        return pst_device_host_create(pool, kernels, out, err);
    return pst_device_fault_open(context, name, pool, kernels, out, err);
}

static int make_folder(void **state)
{
    (void)state;
    fault.separate = true;
    pst_device_replace_open(open_device, &fault);
    return mkdtemp(kv_folder) != NULL ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    pst_device_replace_open(NULL, NULL);
    return rmdir(kv_folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_invariance),
                                       cmocka_unit_test(test_generation_alone_and_together)};
    return cmocka_run_group_tests_name("invariance", tests, make_folder, remove_folder);
}
