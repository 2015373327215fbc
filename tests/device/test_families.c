/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whole models on a device: every stored case within its tolerance of what transformers computed, random models of every
 * family near the host, and the same bits wherever weights, keys and values are: kept on the device, kept on the host, or
 * streamed from the drive, whatever memory each may have, and in whatever passes requests come together.
 */
#include <dirent.h>
#include <ftw.h>
#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include <cmocka.h>

#include "device/ops.h"
#include "infer/internal.h"
#include "os/file.h"
#include "penstock/jobs.h"
#include "penstock/model.h"
#include "support/npy.h"

#define CASES PST_TEST_SOURCE_DIR "/tests/reference/cases"

enum { MOST_TOKENS = 512 };

static char folder[] = "/tmp/penstock-families-XXXXXX";

static pst_model *open_model(const char *path)
{
    pst_model *model;
    pst_error err;
    if (pst_model_open(path, NULL, &model, &err) < 0)
        fail_msg("%s: %s", err.path, err.message);
    return model;
}

static pst_session *open_session(pst_model *model, pst_session_options options, const char *what)
{
    pst_session *session;
    pst_error err;
    options.struct_size = sizeof options;
    options.threads = 2;
    if (pst_session_open(model, &options, &session, &err) < 0)
        fail_msg("%s: %s", what, err.message);
    return session;
}

/* ---- Logits ---- */

/* Rows of logits of several sequences, kept or compared. */
typedef struct rows {
    size_t vocab, count[8];
    float *values[8];    /* by sequence: count x vocab; owned */
    double worst, scale; /* comparing: the largest difference and value */
    bool compare, same;  /* same: the bits, too */
} rows;

static int take_row(void *user, size_t request, uint32_t position, const float *logits, size_t vocab)
{
    rows *r = user;
    assert_int_equal(vocab, r->vocab);
    float *mine = r->values[request] + position * vocab;
    if (!r->compare) {
        memcpy(mine, logits, vocab * sizeof *mine);
        return 0;
    }
    r->same = r->same && memcmp(mine, logits, vocab * sizeof *mine) == 0;
    for (size_t i = 0; i < vocab; i++) {
        const double difference = fabs((double)logits[i] - (double)mine[i]);
        r->worst = difference > r->worst || isnan(difference) ? difference : r->worst;
        r->scale = fmax(r->scale, fabs((double)mine[i]));
    }
    return 0;
}

static void free_rows(rows *r)
{
    for (size_t i = 0; i < 8; i++)
        free(r->values[i]);
}

static void compare_next(rows *r)
{
    r->compare = r->same = true;
    r->worst = r->scale = 0;
}

static double distance(const rows *r)
{
    return isnan(r->worst) ? r->worst : r->worst / fmax(r->scale, 1e-30);
}

/* Scores the sequences in one session, which is opened with all logits. */
static void score(pst_session *session, const uint32_t (*ids)[MOST_TOKENS], const size_t *counts, size_t count, rows *r,
                  const char *what)
{
    static double logprobs[8][MOST_TOKENS];
    pst_score_request requests[8];
    pst_error err;
    for (size_t i = 0; i < count; i++)
        requests[i] = (pst_score_request){ids[i], counts[i], logprobs[i]};
    if (pst_score(session, requests, count, take_row, r, NULL, &err) < 0)
        fail_msg("%s: %s", what, err.message);
}

/* ---- Stored cases ---- */

static size_t read_ids(const json_t *array, uint32_t *ids, size_t most)
{
    const size_t count = json_array_size(array);
    assert_true(count <= most);
    for (size_t i = 0; i < count; i++)
        ids[i] = (uint32_t)json_integer_value(json_array_get(array, i));
    return count;
}

static void check_logits(pst_model *model, const char *name, const uint32_t (*ids)[MOST_TOKENS], size_t count, rows *r,
                         double tolerance, pst_compute_type compute)
{
    const pst_session_options options = {
        .max_tokens = (uint32_t)count, .all_logits = true, .compute_type = compute, .device = ops_file()};
    pst_session *session = open_session(model, options, name);
    compare_next(r);
    score(session, ids, &count, 1, r, name);
    if (!(distance(r) <= tolerance))
        fail_msg("%s on %s, %s: logits differ by %.2e of their largest", name, ops_name(),
                 compute == PST_COMPUTE_BF16 ? "bf16" : "f32", distance(r));
    pst_session_close(session);
}

static void check_greedy(pst_model *model, const char *name, const uint32_t *ids, size_t count, const json_t *record)
{
    uint32_t expected[64];
    const size_t new_tokens = read_ids(json_object_get(record, "greedy"), expected, 64);
    if (new_tokens == 0)
        return;
    const pst_session_options options = {.max_tokens = (uint32_t)(count + new_tokens),
                                         .compute_type = PST_COMPUTE_F32,
                                         .kv_bits = 32,
                                         .device = ops_file()};
    pst_session *session = open_session(model, options, name);
    const pst_request request = {
        .prompt_ids = ids, .prompt_count = count, .max_new_tokens = (uint32_t)new_tokens, .ignore_end = true};
    pst_result result;
    pst_error err;
    if (pst_generate(session, &request, 1, NULL, NULL, &result, NULL, &err) < 0)
        fail_msg("%s: %s", name, err.message);
    if (result.ids.count != new_tokens || memcmp(result.ids.ids, expected, new_tokens * sizeof *expected) != 0)
        fail_msg("%s on %s: other greedy tokens", name, ops_name());
    pst_result_free(&result);
    pst_session_close(session);
}

static void check_case(const char *name, bool also_bf16)
{
    char path[600];
    json_error_t detail;
    snprintf(path, sizeof path, CASES "/%s/expected.json", name);
    json_t *expected = json_load_file(path, 0, &detail);
    assert_non_null(expected);
    const double tolerance = json_number_value(json_object_get(expected, "tolerance"));
    const bool is_f32 = strcmp(json_string_value(json_object_get(expected, "dtype")), "f32") == 0;
    snprintf(path, sizeof path, CASES "/%s", name);
    pst_model *model = open_model(path);
    size_t index;
    json_t *record;
    json_array_foreach(json_object_get(expected, "sequences"), index, record)
    {
        uint32_t ids[1][MOST_TOKENS];
        rows r = {0};
        size_t stored_rows;
        const size_t count = read_ids(json_object_get(record, "ids"), ids[0], MOST_TOKENS);
        snprintf(path, sizeof path, CASES "/%s/%s", name, json_string_value(json_object_get(record, "logits")));
        r.values[0] = npy_read(path, &stored_rows, &r.vocab);
        assert_int_equal(stored_rows, count);
        check_logits(model, name, ids, count, &r, tolerance, PST_COMPUTE_AUTO);
        if (!is_f32 && also_bf16)
            check_logits(model, name, ids, count, &r, tolerance, PST_COMPUTE_BF16);
        check_greedy(model, name, ids[0], count, record);
        free_rows(&r);
    }
    json_decref(expected);
    pst_model_close(model);
}

static void test_stored_cases(void **state)
{
    (void)state;
    if (!ops_begin("stored cases"))
        return;
    char **names;
    size_t count;
    assert_int_equal(pst_file_list(CASES, NULL, &names, &count, NULL), 0);
    assert_true(count >= 30);
    /* The emulator takes its time: of all cases a part, another one each time. */
    const size_t step = ops_emulator() != NULL && ops_cases(0) < count ? 5 : 1;
    for (size_t i = step > 1 ? ref_between(0, step - 1) : 0; i < count; i += step)
        check_case(names[i], true);
    pst_file_list_free(names, count);
}

/* ---- Sampled texts ---- */

enum { SAMPLED = 5, SAMPLED_TOKENS = 12 };

/* Log-probabilities of a text's tokens, of the likeliest ones in their places, and of the prompt's. */
typedef struct told {
    double values[SAMPLED_TOKENS], best[SAMPLED_TOKENS], prompt[MOST_TOKENS];
} told;

static void generate_sampled(pst_model *model, const char *device, const uint32_t *ids, size_t count,
                             uint32_t answers[SAMPLED][SAMPLED_TOKENS], told tolds[SAMPLED], const char *what)
{
    static const pst_sampling samplings[SAMPLED] = {{.temperature = 0.8, .top_k = 50, .top_p = 0.9, .seed = 11},
                                                    {.temperature = 1, .top_p = 0.95, .seed = 12},
                                                    {.temperature = 0},
                                                    {.temperature = 1.3, .top_k = 200, .min_p = 0.02, .seed = 13},
                                                    {.temperature = 0.8, .top_k = 50, .top_p = 0.9, .seed = 14}};
    pst_request requests[SAMPLED];
    pst_result results[SAMPLED];
    pst_error err;
    const pst_session_options options = {.max_tokens = (uint32_t)count + SAMPLED_TOKENS,
                                         .max_sequences = SAMPLED,
                                         .compute_type = PST_COMPUTE_F32,
                                         .kv_bits = 32,
                                         .requests_only = true,
                                         .logprobs = true,
                                         .prompt_logprobs = true,
                                         .device = device};
    pst_session *session = open_session(model, options, what);
    for (size_t i = 0; i < SAMPLED; i++)
        requests[i] = (pst_request){.prompt_ids = ids,
                                    .prompt_count = count,
                                    .max_new_tokens = SAMPLED_TOKENS,
                                    .sampling = samplings[i],
                                    .ignore_end = true,
                                    .logprobs = true,
                                    .prompt_logprobs = i % 2 == 0,
                                    .top_logprobs = 1};
    if (pst_generate(session, requests, SAMPLED, NULL, NULL, results, NULL, &err) < 0)
        fail_msg("%s: %s", what, err.message);
    for (size_t i = 0; i < SAMPLED; i++) {
        memcpy(answers[i], results[i].ids.ids, sizeof answers[i]);
        tolds[i] = (told){.values = {0}};
        memcpy(tolds[i].values, results[i].logprobs.values, sizeof tolds[i].values);
        memcpy(tolds[i].best, results[i].logprobs.top_values, sizeof tolds[i].best);
        if (i % 2 == 0)
            memcpy(tolds[i].prompt, results[i].prompt_logprobs.values, (count - 1) * sizeof(double));
        pst_result_free(&results[i]);
    }
    pst_session_close(session);
}

static void expect_near(const double *got, const double *expected, size_t count, const char *what)
{
    for (size_t i = 0; i < count; i++)
        if (!(fabs(got[i] - expected[i]) <= 1e-3))
            fail_msg("%s on %s: a log-probability of %g instead of %g", what, ops_name(), got[i], expected[i]);
}

/* Scores of a text whose logits stay on the device are, to the bit, what is told of a prompt. */
static void check_scores(pst_model *model, const uint32_t *ids, size_t count, const double *expected, const char *what)
{
    const pst_session_options options = {.max_tokens = (uint32_t)count,
                                         .compute_type = PST_COMPUTE_F32,
                                         .kv_bits = 32,
                                         .all_logits = true,
                                         .requests_only = true,
                                         .device = ops_file()};
    double logprobs[MOST_TOKENS];
    pst_score_request request = {.ids = ids, .count = count, .logprobs = logprobs};
    pst_error err;
    pst_session *session = open_session(model, options, what);
    if (pst_score(session, &request, 1, NULL, NULL, NULL, &err) < 0)
        fail_msg("%s: %s", what, err.message);
    assert_memory_equal(logprobs, expected, (count - 1) * sizeof *logprobs);
    pst_session_close(session);
}

/* The same tokens as on the host: its logits differ in the last digits, which decide no draw of these seeds. */
static void test_sampled_texts(void **state)
{
    (void)state;
    if (!ops_begin("sampled texts"))
        return;
    static const char *const names[] = {"llama_gqa2", "opt_350m", "bloom", "mixtral", "deepseek_v3"};
    for (size_t n = 0; n < sizeof names / sizeof *names; n++) {
        char path[600];
        uint32_t ids[20], host[SAMPLED][SAMPLED_TOKENS], mine[SAMPLED][SAMPLED_TOKENS];
        static told host_told[SAMPLED], mine_told[SAMPLED];
        pst_model_info info;
        snprintf(path, sizeof path, CASES "/%s", names[n]);
        pst_model *model = open_model(path);
        pst_model_get_info(model, &info);
        for (uint32_t i = 0; i < 20; i++)
            ids[i] = (i * 37 + 5) % info.vocab;
        generate_sampled(model, "host", ids, 20, host, host_told, names[n]);
        generate_sampled(model, ops_file(), ids, 20, mine, mine_told, names[n]);
        for (size_t i = 0; i < SAMPLED; i++)
            if (memcmp(host[i], mine[i], sizeof host[i]) != 0)
                fail_msg("%s on %s: other tokens than on the host in text %zu", names[n], ops_name(), i);
        const size_t numbers = SAMPLED * (sizeof(told) / sizeof(double));
        expect_near((const double *)mine_told, (const double *)host_told, numbers, names[n]);
        check_scores(model, ids, 20, mine_told[0].prompt, names[n]);
        pst_model_close(model);
    }
}

/* ---- Random models ---- */

static int remove_entry(const char *path, const struct stat *info, int kind, struct FTW *where)
{
    (void)info, (void)kind, (void)where;
    return remove(path);
}

static void remove_tree(const char *path)
{
    nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

/* A model of a family, of any weights. */
static pst_model *make_model(const char *shape, pst_dtype dtype, char *path, size_t path_bytes)
{
    pst_error err;
    pst_synth_report report;
    snprintf(path, path_bytes, "%s/%s", folder, shape);
    const pst_synth_options options = {.struct_size = sizeof options,
                                       .shape = shape,
                                       .folder = path,
                                       .layers = 2,
                                       .seed = ref_random(),
                                       .dtype = dtype,
                                       .io_engine = "threads",
                                       .threads = 1};
    if (pst_synth(&options, &report, &err) < 0)
        fail_msg("%s: %s", shape, err.message);
    return open_model(path);
}

static size_t deal_ids(uint32_t (*ids)[MOST_TOKENS], size_t *counts, size_t count, size_t vocab, size_t most)
{
    size_t total = 0;
    for (size_t s = 0; s < count; s++) {
        counts[s] = ref_between(1, most);
        for (size_t i = 0; i < counts[s]; i++)
            ids[s][i] = (uint32_t)ref_between(0, vocab - 1);
        total += counts[s];
    }
    return total;
}

static void make_rows(rows *r, const size_t *counts, size_t count, size_t vocab)
{
    *r = (rows){.vocab = vocab};
    for (size_t s = 0; s < count; s++)
        assert_non_null(r->values[s] = calloc(counts[s] * vocab, sizeof(float)));
}

/* The host computes, then the device: the same request, near results. */
static void check_near_host(const char *shape, pst_dtype dtype, pst_compute_type compute, uint32_t kv_bits)
{
    char path[600], what[200];
    uint32_t ids[3][MOST_TOKENS];
    size_t counts[3];
    pst_model *model = make_model(shape, dtype, path, sizeof path);
    pst_model_info info;
    pst_model_get_info(model, &info);
    deal_ids(ids, counts, 3, info.vocab, 100);
    snprintf(what, sizeof what, "%s of %s on %s, %s, cache of %u bits", shape, pst_dtype_name(dtype), ops_name(),
             compute == PST_COMPUTE_BF16 ? "bf16" : "f32", kv_bits);
    pst_session_options options = {
        .max_tokens = 100, .max_sequences = 3, .all_logits = true, .compute_type = compute, .kv_bits = kv_bits};
    rows r;
    make_rows(&r, counts, 3, info.vocab);
    pst_session *session = open_session(model, options, what);
    score(session, ids, counts, 3, &r, what);
    pst_session_close(session);
    options.device = ops_file();
    session = open_session(model, options, what);
    compare_next(&r);
    score(session, ids, counts, 3, &r, what);
    pst_session_close(session);
    /* As of the stored cases (tests/reference/README.md). A number halfway between two of the cache's may fall either way, which
     * moves an element of a key by 2^-10 of itself, or by a 255th (15th) of its group's range. */
    const double tolerance = compute == PST_COMPUTE_BF16 ? 2e-2
                             : kv_bits == 32             ? 1e-4
                             : kv_bits == 16             ? 2e-3
                             : kv_bits == 8              ? 1e-2
                                                         : 1e-1;
    if (!(distance(&r) <= tolerance))
        fail_msg("%s: logits differ by %.2e of their largest", what, distance(&r));
    free_rows(&r);
    pst_model_close(model);
    remove_tree(path);
}

static void test_random_models(void **state)
{
    (void)state;
    if (!ops_begin("random models"))
        return;
    static const char *const shapes[] = {"tiny",         "tiny-opt",       "tiny-bloom",   "tiny-gpt2",
                                         "tiny-mixtral", "tiny-qwen3-moe", "tiny-deepseek"};
    static const pst_dtype dtypes[] = {PST_BF16, PST_F16, PST_F32};
    static const uint32_t bits[] = {32, 16, 8, 4};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        /* Where a rounding decides between two experts all is other: those have neither bf16 nor a rounded cache. */
        const bool is_dense = i < 4;
        check_near_host(shapes[i], dtypes[ref_between(0, 2)], PST_COMPUTE_F32, is_dense ? bits[ref_between(0, 3)] : 32);
        if (is_dense)
            check_near_host(shapes[i], PST_BF16, PST_COMPUTE_BF16, 16);
    }
}

/* ---- Residency ---- */

enum { SEQUENCES = 3, LENGTH = 70 /* more than a block of the cache */ };

/* A number that a refusal names. */
static uint64_t named_budget(pst_model *model, pst_session_options options)
{
    pst_session *session;
    pst_error err;
    options.struct_size = sizeof options;
    options.threads = 2;
    if (pst_session_open(model, &options, &session, &err) != PST_E_BUDGET)
        fail_msg("a budget of one byte is not refused");
    const char *number = strstr(err.message, "works is ");
    if (number == NULL)
        fail_msg("no budget is named: %s", err.message);
    return (strtoull(number + 9, NULL, 10) + 1) << 20;
}

/* Anything between nothing kept and all kept on the device, and passes of few rows or many. */
static pst_session_options random_placement(pst_model *model, pst_session_options options, char *what,
                                            size_t what_bytes)
{
    options.resident_set = ref_between(0, 3) > 0;
    options.resident_share = (double)ref_between(0, 4) / 4;
    options.max_slot_bytes = ref_between(0, 2) ? 1 + ref_between(0, (1 << 16) - 1) : 0;
    options.max_prompt_tokens =
        ref_between(0, 1) ? (uint32_t)ref_between(1, 30) : 0; /* so many rows for each sequence */
    options.io_engine = "threads";
    options.kv_offload = ref_between(0, 2) == 0;
    options.kv_folder = ref_between(0, 3) == 0 ? folder : NULL;
    options.kv_window_bytes = ref_between(0, 2) ? 1 + ref_between(0, 1) * ref_between(0, 1 << 17) : 0;
    pst_session_options least = options;
    least.device_memory_bytes = 1;
    options.device_memory_bytes = ref_between(0, 3) == 0 ? 0 : named_budget(model, least);
    if (options.device_memory_bytes != 0)
        options.device_memory_bytes += ref_between(0, 2) * ref_between(0, 600000);
    snprintf(what, what_bytes,
             "on %s, resident %g (set %d), slots of %" PRIu64 ", device memory %" PRIu64
             ", keys and values on the host %d, in a file %d, window of %" PRIu64,
             ops_name(), options.resident_share, options.resident_set, options.max_slot_bytes,
             options.device_memory_bytes, options.kv_offload, options.kv_folder != NULL, options.kv_window_bytes);
    return options;
}

typedef struct seen {
    int all_resident, partly_resident, none_resident, smaller_passes, offloaded, in_files;
} seen;

/* The yardstick has all weights on the device and all rows in one pass. */
static void check_residency(const char *name, pst_compute_type compute, uint32_t kv_bits, int sessions, seen *s)
{
    char path[600], what[400];
    uint32_t ids[SEQUENCES][MOST_TOKENS];
    size_t counts[SEQUENCES];
    snprintf(path, sizeof path, CASES "/%s", name);
    pst_model *model = open_model(path);
    pst_model_info info;
    pst_model_get_info(model, &info);
    const size_t total = deal_ids(ids, counts, SEQUENCES, info.vocab, LENGTH);
    const pst_session_options options = {.max_tokens = LENGTH,
                                         .max_sequences = SEQUENCES,
                                         .all_logits = true,
                                         .compute_type = compute,
                                         .kv_bits = kv_bits,
                                         .device = ops_file()};
    rows r;
    make_rows(&r, counts, SEQUENCES, info.vocab);
    pst_session *session = open_session(model, options, name);
    pst_plan_info plan;
    pst_session_get_plan(session, &plan);
    assert_true(plan.rows_per_pass >= total);
    const uint64_t all_bytes = plan.device_resident_bytes;
    score(session, ids, counts, SEQUENCES, &r, name);
    pst_session_close(session);
    for (int i = 0; i < sessions; i++) {
        const pst_session_options other = random_placement(model, options, what, sizeof what);
        session = open_session(model, other, what);
        pst_session_get_plan(session, &plan);
        compare_next(&r);
        score(session, ids, counts, SEQUENCES, &r, what);
        pst_session_close(session);
        if (!r.same)
            fail_msg("%s, %s, %u rows per pass, %" PRIu64 " bytes of weights on the device: other bits (%.2e)", name,
                     what, plan.rows_per_pass, plan.device_resident_bytes, distance(&r));
        s->all_resident += plan.device_resident_bytes == all_bytes;
        s->none_resident += plan.device_resident_bytes == 0;
        s->partly_resident += plan.device_resident_bytes > 0 && plan.device_resident_bytes < all_bytes;
        s->smaller_passes += plan.rows_per_pass < total;
        s->offloaded += plan.kv_offloaded;
        s->in_files += plan.kv_disk_bytes > 0;
    }
    free_rows(&r);
    pst_model_close(model);
}

static void test_residency(void **state)
{
    (void)state;
    if (!ops_begin("residency"))
        return;
    if (ops_device(OPS_DEVICE)->ops->is_host)
        return; /* tests/property/test_invariance.c */
    seen s = {0};
    const int sessions = (int)ops_cases(5);
    const uint64_t products = ops_emulator() != NULL ? ops_library_products() : 0;
    check_residency("llama_gqa2", PST_COMPUTE_F32, 16, sessions, &s);
    check_residency("llama_bf16_sharded", PST_COMPUTE_BF16, 0, sessions, &s);
    check_residency("qwen3_f16", PST_COMPUTE_AUTO, 32, sessions, &s);
    check_residency("mistral_window", PST_COMPUTE_AUTO, 4, sessions, &s);
    check_residency("opt_350m", PST_COMPUTE_BF16, 0, sessions, &s);
    check_residency("bloom_old_bf16", PST_COMPUTE_F32, 8, sessions, &s);
    check_residency("gpt2_scales_bf16", PST_COMPUTE_BF16, 16, sessions, &s);
    check_residency("mixtral_top3_window", PST_COMPUTE_AUTO, 0, sessions, &s);
    check_residency("deepseek_v3_bf16", PST_COMPUTE_BF16, 0, sessions, &s);
    check_residency("fp8_deepseek", PST_COMPUTE_F32, 0, sessions, &s);
    check_residency("penstock_4_tied", PST_COMPUTE_BF16, 0, sessions, &s);
    check_residency("gptq_4_reordered", PST_COMPUTE_BF16, 0, sessions, &s);
    check_residency("awq", PST_COMPUTE_AUTO, 8, sessions, &s);
    printf("weights on the device: all %d, some %d, none %d; passes of fewer rows %d; keys and values elsewhere %d, of "
           "these in files %d\n",
           s.all_resident, s.partly_resident, s.none_resident, s.smaller_passes, s.offloaded, s.in_files);
    if (ops_emulator() != NULL) /* prompts of bf16 models come to the vendor's library, a fake one here */
        assert_true(ops_library_products() > products);
    assert_true(s.all_resident > 0 && s.partly_resident > 0 && s.none_resident > 0 && s.smaller_passes > 0);
    assert_true(s.in_files > 0 && s.offloaded > s.in_files);
}

/* ---- Requests in passes ---- */

/* More positions than attention of generated tokens takes in one piece, which is where it parts from that of prompts. */
enum { REQUESTS = 4, PASSES_TOKENS = 200, IN_FLIGHT = 3 };

/* A prompt and what follows it, one token after the other. */
typedef struct served {
    uint32_t ids[PASSES_TOKENS], prompt, count;
    float *rows; /* logits of the positions from prompt - 1 on; owned */
    uint32_t
        start; /* the step that it begins with, unless there are none before; UINT32_MAX: when all others have ended */
    bool began, ended;
    uint32_t number; /* the session's, once it began */
} served;

/* with_block: the first one generates a block of the cache far on, the last one has all of it in its prompt. */
static void deal_requests(served *requests, bool with_block, size_t vocab)
{
    for (size_t i = 0; i < REQUESTS; i++) {
        served *r = &requests[i];
        r->prompt = (uint32_t)(ref_between(0, 2) ? ref_between(100, 170) : ref_between(1, 30));
        r->count = r->prompt + (uint32_t)ref_between(1, ref_between(0, 3) ? 4 : 20);
        for (size_t n = 0; n < PASSES_TOKENS; n++)
            r->ids[n] = (uint32_t)ref_between(0, vocab - 1);
    }
    served *first = &requests[0], *last = &requests[REQUESTS - 1];
    if (with_block) {
        first->prompt = 120;
        last->prompt = 195;
        first->count = last->count = PASSES_TOKENS - 3;
        memcpy(last->ids, first->ids, sizeof first->ids);
    }
    for (size_t i = 0; i < REQUESTS; i++)
        assert_non_null(requests[i].rows = calloc((requests[i].count - requests[i].prompt + 1) * vocab, sizeof(float)));
}

static void start_served(pst_session *session, served *requests, uint32_t step, const char *what)
{
    pst_error err;
    size_t running = 0;
    for (size_t i = 0; i < REQUESTS; i++)
        running += requests[i].began && !requests[i].ended;
    for (size_t i = 0; i < REQUESTS; i++) {
        served *r = &requests[i];
        if (r->began || running == IN_FLIGHT || (r->start > step && running > 0))
            continue;
        if (pst_session_add(session, r->ids, r->prompt, &r->number, &err) < 0)
            fail_msg("%s: %s", what, err.message);
        r->began = true;
        running++;
    }
}

/* Takes a row of logits; gives the sequence its next tokens, now and then several at once. */
static void take_served(pst_session *session, served *r, const pst_logits *row, size_t vocab, bool keep,
                        bool one_by_one, const char *what)
{
    pst_error err;
    float *mine = r->rows + (row->position + 1 - r->prompt) * vocab;
    if (keep)
        memcpy(mine, row->values, vocab * sizeof *mine);
    else if (memcmp(mine, row->values, vocab * sizeof *mine) != 0)
        fail_msg("%s: other logits at position %u after a prompt of %u", what, row->position, r->prompt);
    if (row->position + 1 == r->count) {
        pst_session_remove(session, r->number);
        r->ended = true;
        return;
    }
    const size_t left = r->count - row->position - 1, most = one_by_one || ref_between(0, 7) ? 1 : 12;
    const uint32_t next = (uint32_t)ref_between(1, left < most ? left : most);
    for (uint32_t i = 1; i <= next; i++)
        if (pst_session_append(session, r->number, r->ids[row->position + i], &err) < 0)
            fail_msg("%s: %s", what, err.message);
}

static void serve(pst_session *session, served *requests, size_t vocab, bool keep, const char *what)
{
    const pst_logits *given;
    size_t count, ended = 0;
    pst_error err;
    for (size_t i = 0; i < REQUESTS; i++)
        requests[i].began = requests[i].ended = false;
    for (uint32_t step = 0; ended < REQUESTS; step++) {
        start_served(session, requests, step, what);
        if (pst_session_step(session, &given, &count, &err) < 0)
            fail_msg("%s: %s", what, err.message);
        for (size_t n = 0; n < count; n++)
            for (size_t i = 0; i < REQUESTS; i++)
                if (requests[i].began && !requests[i].ended && requests[i].number == given[n].sequence) {
                    take_served(session, &requests[i], &given[n], vocab, keep, keep, what);
                    ended += requests[i].ended;
                    break;
                }
    }
}

/* The yardstick has each request alone, its prompt in one pass, nothing shared, and every pass launched call by call. Passes that
 * were replayed as recordings are counted. */
static uint64_t check_passes(const char *shape, pst_compute_type compute, uint32_t kv_bits, bool with_block,
                             int sessions)
{
    char path[600], placed[400], what[500];
    served *requests = calloc(REQUESTS, sizeof *requests);
    assert_non_null(requests);
    pst_model *model = make_model(shape, PST_BF16, path, sizeof path);
    pst_model_info info;
    pst_model_get_info(model, &info);
    deal_requests(requests, with_block, info.vocab);
    const pst_session_options options = {.max_tokens = PASSES_TOKENS,
                                         .max_sequences = IN_FLIGHT,
                                         .compute_type = compute,
                                         .kv_bits = kv_bits,
                                         .device = ops_file()};
    pst_session_options alone = options;
    alone.no_prefix_sharing = alone.no_device_graphs = true;
    uint64_t replayed = 0;
    pst_session *session = open_session(model, alone, shape);
    for (size_t i = 0; i < REQUESTS; i++)
        requests[i].start = UINT32_MAX;
    serve(session, requests, info.vocab, true, shape);
    pst_session_close(session);
    for (int i = 0; i <= sessions; i++) {
        pst_session_options other = random_placement(model, options, placed, sizeof placed);
        if (i == sessions) { /* all of it on the device */
            other = options;
            snprintf(placed, sizeof placed, "on %s", ops_name());
        }
        other.no_prefix_sharing = !with_block && ref_between(0, 1);
        other.max_prompt_tokens +=
            other.max_prompt_tokens > 0 ? 6 : 0; /* passes of a row or two would take their time */
        session = open_session(model, other, placed);
        pst_plan_info plan;
        pst_session_get_plan(session, &plan);
        snprintf(what, sizeof what, "%s, %s, %u rows per pass, sharing %d", shape, placed, plan.rows_per_pass,
                 !other.no_prefix_sharing);
        for (size_t r = 0; r < REQUESTS; r++)
            requests[r].start = (uint32_t)ref_between(0, 12);
        if (with_block) /* after the one whose tokens it begins with */
            requests[REQUESTS - 1].start = UINT32_MAX;
        serve(session, requests, info.vocab, false, what);
        replayed += session->counters.replayed_passes;
        pst_session_close(session);
    }
    for (size_t i = 0; i < REQUESTS; i++)
        free(requests[i].rows);
    free(requests);
    pst_model_close(model);
    remove_tree(path);
    return replayed;
}

static void test_passes(void **state)
{
    (void)state;
    if (!ops_begin("passes"))
        return;
    const int sessions = (int)ops_cases(2);
    uint64_t replayed = check_passes("tiny", PST_COMPUTE_BF16, 16, true, 1);
    switch (ref_between(0, 3)) {
    case 0: replayed += check_passes("tiny", PST_COMPUTE_F32, ref_between(0, 1) ? 32 : 8, false, sessions); break;
    case 1: replayed += check_passes("tiny-deepseek", PST_COMPUTE_BF16, 0, false, sessions); break;
    case 2: replayed += check_passes("tiny-mixtral", PST_COMPUTE_BF16, 8, false, sessions); break;
    default: replayed += check_passes("tiny-bloom", PST_COMPUTE_BF16, 16, false, sessions); break;
    }
    printf("passes that were replayed: %" PRIu64 "\n", replayed);
    pst_device *device = ops_device(OPS_DEVICE);
    const bool records = device->ops->record_begin(device) == 0;
    if (records)
        device->ops->record_end(device, NULL);
    assert_true((replayed > 0) == records);
}

static int set_up(void **state)
{
    return mkdtemp(folder) != NULL ? ops_set_up(state) : -1;
}

static int tear_down(void **state)
{
    rmdir(folder);
    return ops_tear_down(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stored_cases), cmocka_unit_test(test_sampled_texts), cmocka_unit_test(test_random_models),
        cmocka_unit_test(test_residency),    cmocka_unit_test(test_passes),
    };
    return cmocka_run_group_tests_name("families on a device", tests, set_up, tear_down);
}
