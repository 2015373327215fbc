/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sessions with a routing trace: a recorded run replays bit by bit; what a trace gives a token does not depend on passes;
 * a cancelling recorder ends the run.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "penstock/model.h"

#define CASES PST_TEST_SOURCE_DIR "/tests/reference/cases/"

enum { LENGTH = 23, SEQUENCES = 3, LAYERS = 2, PER_TOKEN = 3, VOCAB = 71 };

typedef struct record {
    uint32_t experts[SEQUENCES][LENGTH][LAYERS * PER_TOKEN];
    uint32_t rows;
    float logits[SEQUENCES][LENGTH][VOCAB];
    FILE *file;
    bool cancel;
} record;

static int take_routing(void *user, uint64_t sequence, uint32_t position, const uint32_t *experts, uint32_t layers,
                        uint32_t per_token)
{
    record *r = user;
    assert_true(layers == LAYERS && per_token == PER_TOKEN && sequence < SEQUENCES && position < LENGTH);
    memcpy(r->experts[sequence][position], experts, sizeof r->experts[0][0]);
    r->rows++;
    if (r->file != NULL)
        fprintf(r->file, "[[%u,%u,%u],[%u,%u,%u]]\n", experts[0], experts[1], experts[2], experts[3], experts[4],
                experts[5]);
    return r->cancel;
}

static int take_logits(void *user, size_t request, uint32_t position, const float *logits, size_t vocab)
{
    record *r = user;
    assert_int_equal(vocab, VOCAB);
    memcpy(r->logits[request][position], logits, sizeof r->logits[0][0]);
    return 0;
}

static int score(pst_session_options options, size_t count, record *r)
{
    pst_model *model;
    pst_session *session;
    pst_error err;
    assert_int_equal(pst_model_open(CASES "qwen3_moe", NULL, &model, &err), 0);
    options.struct_size = sizeof options;
    options.max_tokens = LENGTH;
    options.all_logits = true;
    options.on_routing = take_routing;
    options.on_routing_user = r;
    if (pst_session_open(model, &options, &session, &err) < 0)
        fail_msg("%s", err.message);
    uint32_t ids[SEQUENCES][LENGTH];
    double logprobs[SEQUENCES][LENGTH];
    pst_score_request requests[SEQUENCES];
    for (uint32_t s = 0; s < SEQUENCES; s++) {
        for (uint32_t i = 0; i < LENGTH; i++)
            ids[s][i] = (s * 31 + i * 7) % VOCAB;
        requests[s] = (pst_score_request){.ids = ids[s], .count = LENGTH, .logprobs = logprobs[s]};
    }
    int status = pst_score(session, requests, count, take_logits, r, NULL, &err);
    pst_session_close(session);
    pst_model_close(model);
    return status;
}

static void test_replay(void **state)
{
    (void)state;
    char path[] = "/tmp/penstock-routing-XXXXXX";
    int descriptor = mkstemp(path);
    assert_true(descriptor >= 0);
    static record first, again, other;
    first.file = fdopen(descriptor, "w");
    assert_int_equal(score((pst_session_options){0}, 1, &first), 0);
    assert_int_equal(fclose(first.file), 0);
    assert_int_equal(first.rows, LENGTH);
    assert_int_equal(score((pst_session_options){.routing_trace = path}, 1, &again), 0);
    assert_memory_equal(first.experts[0], again.experts[0], sizeof first.experts[0]);
    assert_memory_equal(first.logits[0], again.logits[0], sizeof first.logits[0]);
    assert_int_equal(score((pst_session_options){.routing_trace = "uniform"}, 1, &other), 0);
    assert_memory_not_equal(first.logits[0], other.logits[0], sizeof first.logits[0]);
    unlink(path);
}

static void test_passes_do_not_matter(void **state)
{
    (void)state;
    static record together, apart;
    const char *trace = "zipf:1.1:9";
    assert_int_equal(
        score((pst_session_options){.routing_trace = trace, .max_sequences = 3, .threads = 2}, SEQUENCES, &together),
        0);
    assert_int_equal(
        score((pst_session_options){.routing_trace = trace, .resident_set = true, .threads = 1}, SEQUENCES, &apart), 0);
    assert_int_equal(together.rows, SEQUENCES * LENGTH);
    assert_memory_equal(together.experts, apart.experts, sizeof apart.experts);
    assert_memory_equal(together.logits, apart.logits, sizeof apart.logits);
}

static void test_cancel(void **state)
{
    (void)state;
    static record r = {.cancel = true};
    assert_int_equal(score((pst_session_options){0}, 1, &r), PST_E_CANCELLED);
    assert_int_equal(r.rows, 1);
}

/* The figures of experts: what came from the drive, over rows. */
static void test_stats(void **state)
{
    (void)state;
    pst_model *model;
    pst_session *session;
    pst_error err;
    assert_int_equal(pst_model_open(CASES "qwen3_moe", NULL, &model, &err), 0);
    for (int resident = 0; resident < 2; resident++) {
        pst_session_options options = {
            .struct_size = sizeof options, .max_tokens = LENGTH, .resident_set = true, .resident_share = resident};
        const uint32_t prompt[] = {5, 6};
        pst_request request = {.prompt_ids = prompt, .prompt_count = 2, .max_new_tokens = 9, .ignore_end = true};
        pst_result result;
        pst_run_stats stats;
        assert_int_equal(pst_session_open(model, &options, &session, &err), 0);
        assert_int_equal(pst_generate(session, &request, 1, NULL, NULL, &result, &stats, &err), 0);
        pst_result_free(&result);
        pst_session_close(session);
        assert_int_equal(stats.computed_tokens, 10);
        assert_true(stats.expert_bytes_per_token == (double)(stats.expert_bytes_read + stats.wasted_bytes) / 10);
        assert_true(stats.expert_bytes_read + stats.wasted_bytes <= stats.weight_bytes_read);
        /* Without a cache every pass reads 3 to 6 experts of 3 matrices of 48 x 13 in both layers. */
        uint64_t expert = 3 * 48 * 13 * sizeof(float);
        assert_true(resident ? stats.expert_bytes_read == 0 : stats.expert_bytes_read >= 9 * 2 * 3 * expert);
        assert_true(stats.expert_bytes_read <= 9 * 2 * 6 * expert);
    }
    pst_model_close(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_replay),
        cmocka_unit_test(test_passes_do_not_matter),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_stats),
    };
    return cmocka_run_group_tests_name("routing", tests, NULL, NULL);
}
