/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sessions on a device that records, one that the host pretends to be: passes of generated tokens are recorded and replayed where
 * that may be, with the bits, the figures and the memory bounds of passes that are not; sequences come and go meanwhile, contexts
 * grow out of what was recorded, more kinds of passes come than recordings are kept; recordings that are stale or fail cost
 * nothing but time.
 */
#include <errno.h>
#include <inttypes.h>
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
#include "infer/internal.h"
#include "support/random.h"

#define TALES    PST_TEST_SOURCE_DIR "/models/penstock-tales"
#define CASES    PST_TEST_SOURCE_DIR "/tests/reference/cases/"
#define MEBIBYTE (UINT64_C(1) << 20)

enum { MOST_SEQUENCES = 6, MOST_TOKENS = 300 };

static pst_device_fault fault;

static int set_up(void **state)
{
    (void)state;
    pst_device_replace_open(pst_device_fault_open, &fault);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    pst_device_replace_open(NULL, NULL);
    return 0;
}

/* ---- Sequences that are fed given tokens ---- */

typedef struct script {
    const char *folder;
    size_t vocab, count; /* sequences */
    uint32_t ids[MOST_SEQUENCES][MOST_TOKENS], prompt[MOST_SEQUENCES], total[MOST_SEQUENCES], start[MOST_SEQUENCES];
    uint32_t several; /* one in so many times several tokens at once; 0: never */
    float *logits;    /* [sequence][position][vocab]; owned */
} script;

static float *row_of(const script *s, float *logits, size_t sequence, uint32_t position)
{
    return logits + (sequence * MOST_TOKENS + position) * s->vocab;
}

static size_t logits_bytes(const script *s)
{
    return s->count * MOST_TOKENS * s->vocab * sizeof(float);
}

/* Sequences that begin at different times. */
static void deal(script *s, const char *folder, size_t count, uint32_t most_tokens)
{
    pst_model *model;
    pst_error err;
    pst_model_info info;
    if (pst_model_open(folder, NULL, &model, &err) < 0)
        fail_msg("%s: %s", folder, err.message);
    pst_model_get_info(model, &info);
    *s = (script){.folder = folder, .vocab = info.vocab, .count = count, .several = 9};
    if (info.context < most_tokens)
        most_tokens = info.context;
    pst_model_close(model);
    for (size_t i = 0; i < count; i++) {
        s->total[i] = most_tokens / 2 + (uint32_t)random_below(most_tokens / 2 + 1);
        s->prompt[i] = 1 + (uint32_t)random_below(s->total[i] / 2);
        s->start[i] = (uint32_t)random_below(20);
        for (uint32_t n = 0; n < MOST_TOKENS; n++)
            s->ids[i][n] = (uint32_t)random_below(s->vocab);
    }
    s->logits = calloc(1, logits_bytes(s));
    assert_non_null(s->logits);
}

/* How many tokens a sequence is given behind a position: the same in every run. */
static uint32_t given_behind(const script *s, size_t sequence, uint32_t position)
{
    const uint32_t left = s->total[sequence] - position - 1;
    const uint32_t many = s->several > 0 && s->ids[sequence][position] % s->several == 0 ? 6 : 1;
    return many < left ? many : left;
}

typedef struct figures {
    uint64_t passes, replayed;
    int64_t most_recordings;
} figures;

/* Runs the script and leaves the logits of every row that gave some. */
static int run_script(const script *s, const pst_session_options *options, float *logits, figures *out, pst_error *err)
{
    pst_model *model = NULL;
    pst_session *session = NULL;
    pst_session_options o = *options;
    uint32_t number[MOST_SEQUENCES], known[MOST_SEQUENCES]; /* known: tokens that the session has */
    bool began[MOST_SEQUENCES] = {false};
    size_t ended = 0;
    o.struct_size = sizeof o;
    o.max_tokens = 1;
    for (size_t i = 0; i < s->count; i++)
        o.max_tokens = s->total[i] > o.max_tokens ? s->total[i] : o.max_tokens;
    o.max_sequences = (uint32_t)s->count;
    o.threads = 1;
    o.io_engine = "threads";
    o.device = "pretended";
    *out = (figures){0};
    *err = (pst_error){0};
    int status = pst_model_open(s->folder, NULL, &model, err);
    if (status >= 0)
        status = pst_session_open(model, &o, &session, err);
    for (uint32_t step = 0; status >= 0 && ended < s->count; step++) {
        const pst_logits *given;
        size_t count;
        for (size_t i = 0; i < s->count && status >= 0; i++) {
            if (began[i] || s->start[i] > step)
                continue;
            status = pst_session_add(session, s->ids[i], s->prompt[i], &number[i], err);
            began[i] = true;
            known[i] = s->prompt[i];
        }
        if (status >= 0)
            status = pst_session_step(session, &given, &count, err);
        for (size_t n = 0; status >= 0 && n < count; n++) {
            size_t i = 0;
            while (!began[i] || number[i] != given[n].sequence)
                i++;
            const uint32_t position = given[n].position;
            memcpy(row_of(s, logits, i, position), given[n].values, s->vocab * sizeof(float));
            if (position + 1 < known[i]) /* with all logits */
                continue;
            for (uint32_t k = given_behind(s, i, position); k > 0 && status >= 0; k--)
                status = pst_session_append(session, number[i], s->ids[i][known[i]++], err);
            if (position + 1 < s->total[i])
                continue;
            pst_session_remove(session, number[i]);
            number[i] = UINT32_MAX;
            ended++;
        }
        if (fault.recordings > out->most_recordings)
            out->most_recordings = fault.recordings;
    }
    if (session != NULL) {
        out->passes = session->counters.passes;
        out->replayed = session->counters.replayed_passes;
    }
    pst_session_close(session);
    pst_model_close(model);
    if (fault.misuses > 0)
        fail_msg("%s: %s", s->folder, fault.misuse);
    assert_int_equal(pst_device_fault_held(&fault), 0);
    return status;
}

static figures must_run(const script *s, const pst_session_options *options, float *logits)
{
    figures f;
    pst_error err;
    if (run_script(s, options, logits, &f, &err) < 0)
        fail_msg("%s: %s", s->folder, err.message);
    return f;
}

/* What every run is held against: each pass call by call. */
static figures run_plainly(script *s, pst_session_options options)
{
    options.no_device_graphs = true;
    fault = (pst_device_fault){.separate = true};
    const figures f = must_run(s, &options, s->logits);
    assert_int_equal(f.replayed, 0);
    assert_int_equal(fault.calls[PST_DEVICE_RECORDING], 0);
    return f;
}

static void require_same(const script *s, const float *logits, const char *what)
{
    for (size_t i = 0; i < s->count; i++)
        for (uint32_t p = s->prompt[i] - 1; p < s->total[i]; p++)
            if (memcmp(row_of(s, (float *)(uintptr_t)logits, i, p), row_of(s, s->logits, i, p),
                       s->vocab * sizeof(float)) != 0)
                fail_msg("%s, %s: other logits of sequence %zu at position %u", s->folder, what, i, p);
}

static void free_script(script *s)
{
    free(s->logits);
}

/* ---- The same bits ---- */

static void check_family(const char *name, uint32_t layers)
{
    static const uint32_t bits[] = {32, 16, 8, 4};
    char folder[600];
    script s;
    snprintf(folder, sizeof folder, CASES "%s", name);
    deal(&s, folder, 4, 110);
    const pst_session_options options = {.compute_type = random_below(2) ? PST_COMPUTE_F32 : PST_COMPUTE_BF16,
                                         .kv_bits = bits[random_below(4)],
                                         .max_layers = layers,
                                         .max_slot_bytes = random_below(2) ? 1 + random_below(1 << 14) : 0,
                                         .no_prefix_sharing = random_below(2)};
    const figures plain = run_plainly(&s, options);
    for (int late = 0; late < 2; late++) {
        float *logits = calloc(1, logits_bytes(&s));
        assert_non_null(logits);
        fault = (pst_device_fault){.separate = true, .late = late == 1};
        const figures f = must_run(&s, &options, logits);
        require_same(&s, logits, "replayed");
        assert_int_equal(f.passes, plain.passes);
        assert_int_equal((int64_t)f.replayed, fault.replays);
        assert_true(f.most_recordings <= PST_RECORDINGS);
        if (s.total[0] > 50 && f.replayed * 5 < f.passes)
            fail_msg("%s: only %" PRIu64 " passes of %" PRIu64 " were replayed", name, f.replayed, f.passes);
        free(logits);
    }
    free_script(&s);
}

static void test_families(void **state)
{
    (void)state;
    static const char *const names[] = {"llama_gqa2",
                                        "llama_dynamic",
                                        "opt",
                                        "bloom",
                                        "gpt2",
                                        "mistral_window",
                                        "qwen3",
                                        "mistral_longrope_crossing",
                                        "gptq_4_reordered",
                                        "awq",
                                        "fp8_blocks",
                                        "penstock_4_tied",
                                        "opt_projected_bf16"};
    random_start("recorded families");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        check_family(names[i], 0);
    check_family("deepseek_v3", 1); /* latent attention; the layers with experts come later */
}

/* ---- When is recorded, and how often ---- */

/* One sequence: of each size of context the first pass is run, all others are replayed. */
static void test_contexts(void **state)
{
    (void)state;
    script s;
    random_start("recorded contexts");
    deal(&s, TALES, 1, 300);
    s.total[0] = 300;
    s.prompt[0] = 100;
    s.start[0] = 0;
    s.several = 0;
    const pst_session_options options = {.compute_type = PST_COMPUTE_F32};
    float *logits = calloc(1, logits_bytes(&s));
    assert_non_null(logits);
    run_plainly(&s, options);
    fault = (pst_device_fault){.separate = true};
    const figures f = must_run(&s, &options, logits);
    require_same(&s, logits, "replayed");
    const uint64_t generated = s.total[0] - s.prompt[0], sizes = 3; /* up to 128, 256 and all positions */
    assert_int_equal(f.passes, generated + 1);
    assert_int_equal(f.replayed, generated - sizes);
    assert_int_equal(f.most_recordings, sizes);
    free(logits);
    free_script(&s);
}

/* Batches of every size, over and over: more kinds of passes than recordings. */
static void test_eviction(void **state)
{
    (void)state;
    script s;
    char folder[600];
    random_start("recordings that go");
    snprintf(folder, sizeof folder, CASES "llama_gqa2");
    deal(&s, folder, MOST_SEQUENCES, 120);
    s.several = 0;
    for (size_t i = 0; i < MOST_SEQUENCES; i++) { /* five passes of each size, up and down */
        s.prompt[i] = 2;
        s.start[i] = (uint32_t)(5 * i);
        s.total[i] = 60 + (uint32_t)(5 * (MOST_SEQUENCES - i)) - s.start[i];
    }
    const pst_session_options options = {.compute_type = PST_COMPUTE_F32};
    float *logits = calloc(1, logits_bytes(&s));
    assert_non_null(logits);
    run_plainly(&s, options);
    fault = (pst_device_fault){.separate = true, .late = true};
    const figures f = must_run(&s, &options, logits);
    require_same(&s, logits, "replayed");
    assert_int_equal(f.most_recordings, PST_RECORDINGS);
    assert_true(f.replayed > f.passes / 2);
    /* Each of six sizes was recorded, and the smaller ones again when they came back: two calls a recording. */
    assert_true(fault.calls[PST_DEVICE_RECORDING] - fault.replays >= 2 * (MOST_SEQUENCES + 2));
    free(logits);
    free_script(&s);
}

/* Passes too short for what a sequence was given: some of its rows give logits, others, as many of them, none. */
static void test_cut(void **state)
{
    (void)state;
    script s;
    char folder[600];
    random_start("recorded passes of few rows");
    snprintf(folder, sizeof folder, CASES "llama_gqa2");
    deal(&s, folder, 2, 120);
    s.several = 2;
    s.start[1] = 60;
    const pst_session_options options = {.compute_type = PST_COMPUTE_F32, .max_prompt_tokens = 1};
    float *logits = calloc(1, logits_bytes(&s));
    assert_non_null(logits);
    run_plainly(&s, options);
    fault = (pst_device_fault){.separate = true};
    const figures f = must_run(&s, &options, logits);
    require_same(&s, logits, "replayed");
    assert_true(f.replayed > 0);
    free(logits);
    free_script(&s);
}

/* Where something does not stay, where the host has to know of the experts, and where it is not wanted. */
static void test_not_recorded(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        pst_session_options options;
    } cases[] = {
        {"llama_gqa2", {.no_device_graphs = true}},
        {"llama_gqa2", {.kv_offload = true}},
        {"llama_gqa2", {.resident_set = true, .resident_share = 0.5}},
        {"llama_gqa2", {.resident_set = true, .resident_share = 0}},
        {"llama_gqa2", {.all_logits = true}},
        {"mixtral", {.max_sequences = 0}},
        {"deepseek_v3", {.max_sequences = 0}},
    };
    random_start("not recorded");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char folder[600];
        script s;
        snprintf(folder, sizeof folder, CASES "%s", cases[i].name);
        deal(&s, folder, 2, 60);
        fault = (pst_device_fault){.separate = true};
        assert_int_equal(must_run(&s, &cases[i].options, s.logits).replayed, 0);
        assert_int_equal(fault.calls[PST_DEVICE_RECORDING], 0);
        free_script(&s);
    }
}

/* Memory for recordings is planned for, unless weights would have to go. */
static void test_plan(void **state)
{
    (void)state;
    pst_model *model;
    pst_error err;
    pst_plan_info with, without, least;
    assert_int_equal(pst_model_open(TALES, NULL, &model, &err), 0);
    pst_session_options options = {
        .struct_size = sizeof options, .max_tokens = 100, .device = "pretended", .threads = 1};
    for (int turn = 0; turn < 3; turn++) {
        pst_session *session;
        fault = (pst_device_fault){.separate = true};
        options.no_device_graphs = turn == 1;
        options.device_memory_bytes = turn == 2 ? without.device_total_bytes + 4096 : 0;
        if (pst_session_open(model, &options, &session, &err) < 0)
            fail_msg("%s", err.message);
        pst_session_get_plan(session, turn == 0 ? &with : turn == 1 ? &without : &least);
        assert_int_equal(session->recorder != NULL, turn == 0);
        const uint64_t bytes = pst_recorder_bytes(session->program);
        if (turn == 1) {
            assert_true(with.device_total_bytes == without.device_total_bytes + bytes);
            assert_true(with.activation_bytes == without.activation_bytes + bytes); /* the host's have them, too */
        }
        pst_session_close(session);
    }
    assert_int_equal(least.device_resident_bytes, without.device_resident_bytes);
    assert_true(least.device_total_bytes <= least.device_budget_bytes);
    pst_model_close(model);
}

/* Figures of whole requests, on one run as on the other; what was replayed aside. */
static void test_statistics(void **state)
{
    (void)state;
    enum { REQUESTS = 3, NEW = 20, PROMPT = 30 };
    pst_model *model;
    pst_error err;
    pst_run_stats stats[2];
    uint32_t prompt[PROMPT], answers[2][REQUESTS][NEW];
    assert_int_equal(pst_model_open(TALES, NULL, &model, &err), 0);
    for (uint32_t i = 0; i < PROMPT; i++)
        prompt[i] = 5 + i * 11 % 300;
    for (int on = 0; on < 2; on++) {
        const pst_session_options options = {.struct_size = sizeof options,
                                             .max_tokens = PROMPT + NEW,
                                             .max_sequences = REQUESTS,
                                             .threads = 1,
                                             .device = "pretended",
                                             .measure_bound = true,
                                             .no_device_graphs = !on};
        pst_request requests[REQUESTS];
        pst_result results[REQUESTS];
        pst_session *session;
        fault = (pst_device_fault){.separate = true};
        for (size_t i = 0; i < REQUESTS; i++)
            requests[i] = (pst_request){.prompt_ids = prompt,
                                        .prompt_count = PROMPT - i,
                                        .max_new_tokens = NEW,
                                        .sampling = {.temperature = 0.5 * (double)i, .seed = i},
                                        .ignore_end = true};
        if (pst_session_open(model, &options, &session, &err) < 0 ||
            pst_generate(session, requests, REQUESTS, NULL, NULL, results, &stats[on], &err) < 0)
            fail_msg("%s", err.message);
        for (size_t i = 0; i < REQUESTS; i++) {
            memcpy(answers[on][i], results[i].ids.ids, sizeof answers[on][i]);
            pst_result_free(&results[i]);
        }
        pst_session_close(session);
        assert_int_equal(pst_device_fault_held(&fault), 0);
    }
    assert_memory_equal(answers[0], answers[1], sizeof answers[0]);
    assert_int_equal(stats[0].replayed_passes, 0);
    assert_int_equal(stats[1].replayed_passes, fault.replays);
    assert_true(stats[1].replayed_passes + 3 >= NEW); /* but the prompts' and the first */
    assert_int_equal(stats[0].passes, stats[1].passes);
    assert_int_equal(stats[0].computed_tokens, stats[1].computed_tokens);
    assert_int_equal(stats[0].generated_tokens, stats[1].generated_tokens);
    assert_int_equal(stats[0].weight_bytes_read, stats[1].weight_bytes_read);
    assert_int_equal(stats[0].link_bytes, stats[1].link_bytes);
    assert_int_equal(stats[0].device_resident_bytes, stats[1].device_resident_bytes);
    for (int on = 0; on < 2; on++)
        assert_true(stats[on].bound_seconds > 0 && stats[on].compute_seconds > 0 && stats[on].share_of_bound > 0);
    pst_model_close(model);
}

/* ---- What goes wrong ---- */

static void small_script(script *s, char *folder, size_t folder_bytes)
{
    snprintf(folder, folder_bytes, CASES "llama_gqa2");
    deal(s, folder, 2, 40);
    s->prompt[0] = s->prompt[1] = 5;
    s->total[0] = 30;
    s->total[1] = 20;
    s->start[0] = s->start[1] = 0;
    s->several = 0;
}

static void test_stale(void **state)
{
    (void)state;
    script s;
    char folder[600];
    random_start("stale recordings of passes");
    small_script(&s, folder, sizeof folder);
    const pst_session_options options = {.compute_type = PST_COMPUTE_F32};
    float *logits = calloc(1, logits_bytes(&s));
    assert_non_null(logits);
    run_plainly(&s, options);
    for (int64_t stale = 1; stale < 12; stale++) {
        fault = (pst_device_fault){.separate = true, .late = stale % 2, .stale_replays = stale};
        const figures f = must_run(&s, &options, logits);
        require_same(&s, logits, "stale");
        assert_int_equal(fault.stale_replays, 0);
        assert_int_equal((int64_t)f.replayed, fault.replays);
        assert_true(f.replayed > 0);
    }
    free(logits);
    free_script(&s);
}

/* The nth call of a kind fails: recordings do without it or, where it cannot be known what was done, an error says so. */
static void test_failing_calls(void **state)
{
    (void)state;
    static const pst_device_call kinds[] = {PST_DEVICE_RECORDING, PST_DEVICE_OPERATOR, PST_DEVICE_COPY,
                                            PST_DEVICE_SYNCHRONIZE};
    static const int codes[] = {-EIO, -ENOMEM};
    script s;
    char folder[600];
    random_start("recordings of passes that fail");
    small_script(&s, folder, sizeof folder);
    const pst_session_options options = {.compute_type = PST_COMPUTE_F32};
    float *logits = calloc(1, logits_bytes(&s));
    assert_non_null(logits);
    run_plainly(&s, options);
    fault = (pst_device_fault){.separate = true};
    must_run(&s, &options, logits);
    int64_t whole[PST_DEVICE_CALLS];
    memcpy(whole, fault.calls, sizeof whole);
    int worked = 0, failed = 0;
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        for (int64_t n = 0, step = 1; n < whole[kinds[k]]; n += step) {
            const int code = codes[random_below(2)];
            const int64_t times = kinds[k] == PST_DEVICE_RECORDING ? 1 + (int64_t)random_below(3) : 1;
            const int64_t live = pst_heap_live_count();
            figures f;
            pst_error err;
            fault = (pst_device_fault){.separate = true, .late = n % 2};
            pst_device_fault_fail(&fault, kinds[k], n, times, code);
            const bool is_deferred = fault.plan[kinds[k]].deferred = random_below(4) == 0;
            const int status = run_script(&s, &options, logits, &f, &err);
            assert_int_equal(pst_heap_live_count(), live);
            const bool must_work = kinds[k] == PST_DEVICE_RECORDING && code == -ENOMEM && !is_deferred;
            if (status >= 0)
                require_same(&s, logits, "with a failure");
            else if (must_work || status != code || strstr(err.message, "as planned") == NULL ||
                     strchr(err.message, '\n') != NULL)
                fail_msg("call %" PRId64 " of kind %d: %d, %s", n, (int)kinds[k], status, err.message);
            worked += status >= 0 && kinds[k] == PST_DEVICE_RECORDING;
            failed += status < 0 && kinds[k] == PST_DEVICE_RECORDING;
            step = kinds[k] == PST_DEVICE_RECORDING ? 1 : 1 + whole[kinds[k]] / 40;
        }
    }
    assert_true(worked > 0 && failed > 0);
    free(logits);
    free_script(&s);
}

/* A device that fails to record, time after time, is not asked any more. */
static void test_giving_up(void **state)
{
    (void)state;
    script s;
    char folder[600];
    random_start("no recordings any more");
    small_script(&s, folder, sizeof folder);
    const pst_session_options options = {.compute_type = PST_COMPUTE_F32};
    float *logits = calloc(1, logits_bytes(&s));
    assert_non_null(logits);
    run_plainly(&s, options);
    static const int codes[] = {-ENOMEM, -EIO, PST_E_UNSUPPORTED};
    for (size_t i = 0; i < 3; i++) {
        fault = (pst_device_fault){.separate = true};
        pst_device_fault_fail(&fault, PST_DEVICE_RECORDING, 0, 1000, codes[i]);
        const figures f = must_run(&s, &options, logits);
        require_same(&s, logits, "not recorded");
        assert_int_equal(f.replayed, 0);
        assert_int_equal(fault.calls[PST_DEVICE_RECORDING], i < 2 ? 3 : 1);
    }
    free(logits);
    free_script(&s);
}

static void test_memory_that_runs_out(void **state)
{
    (void)state;
    script s;
    char folder[600];
    random_start("recordings without memory");
    small_script(&s, folder, sizeof folder);
    const pst_session_options options = {.compute_type = PST_COMPUTE_F32};
    float *logits = calloc(1, logits_bytes(&s));
    assert_non_null(logits);
    run_plainly(&s, options);
    bool struck = true;
    for (int64_t n = 0; struck && n < 20000; n += 1 + n / 30) {
        const int64_t live = pst_heap_live_count();
        figures f;
        pst_error err;
        fault = (pst_device_fault){.separate = true};
        pst_heap_fail_after(n, 0);
        const int status = run_script(&s, &options, logits, &f, &err);
        pst_heap_fail_after(-1, 0);
        assert_int_equal(pst_heap_live_count(), live);
        if (status >= 0)
            require_same(&s, logits, "with little memory");
        else if (status != -ENOMEM)
            fail_msg("allocation %" PRId64 ": %d, %s", n, status, err.message);
    }
    free(logits);
    free_script(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_families),
        cmocka_unit_test(test_contexts),
        cmocka_unit_test(test_eviction),
        cmocka_unit_test(test_cut),
        cmocka_unit_test(test_not_recorded),
        cmocka_unit_test(test_plan),
        cmocka_unit_test(test_statistics),
        cmocka_unit_test(test_stale),
        cmocka_unit_test(test_failing_calls),
        cmocka_unit_test(test_giving_up),
        cmocka_unit_test(test_memory_that_runs_out),
    };
    return cmocka_run_group_tests_name("recordings of passes", tests, set_up, tear_down);
}
