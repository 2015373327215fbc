/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests from a source to a sink: whatever runs beside a request, and whenever sequences join and leave, its answer is
 * bit for bit the one that it gets alone. Random requests, some of which cannot run, go through random sessions; each is
 * answered exactly once, no more are on their way than promised, and no slot stays empty while requests wait. That holds,
 * too, where the KV cache has far fewer blocks than the slots could fill, in memory and in a file, and for log-probabilities.
 */
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "penstock/model.h"
#include "support/random.h"

#define TALES PST_TEST_SOURCE_DIR "/models/penstock-tales"

enum { REQUESTS = 48, MAX_PROMPT = 150, MAX_NEW = 14, MAX_TOKENS = MAX_PROMPT + MAX_NEW, SESSIONS = 12, BLOCK = 64 };

/* One request with the answer that it gets alone; `bad` ones must fail. */
typedef struct task {
    uint32_t ids[MAX_TOKENS + 1];
    size_t count;
    pst_request request;
    bool bad;
    pst_result alone;
    double logprobs[MAX_TOKENS], logprobs_alone[MAX_TOKENS];
    int answers;
} task;

typedef struct work {
    pst_model *model;
    uint32_t vocab;
    task tasks[REQUESTS];
    /* of a run */
    size_t given, ended, ahead_at_most;
    bool scoring;
} work;

static const char *const stops[] = {"the", "\n"};

static pst_session *open_session(work *w, pst_session_options options)
{
    options.struct_size = sizeof options;
    options.max_tokens = MAX_TOKENS;
    pst_session *session;
    pst_error err;
    if (pst_session_open(w->model, &options, &session, &err) < 0)
        fail_msg("%s: %s", err.path, err.message);
    return session;
}

static void deal(work *w)
{
    for (size_t i = 0; i < REQUESTS; i++) {
        task *t = &w->tasks[i];
        t->count = 1 + random_below(random_below(4) == 0 ? MAX_PROMPT : 8);
        for (size_t j = 0; j < MAX_TOKENS + 1; j++)
            t->ids[j] = (uint32_t)random_below(w->vocab);
        if (i > 0 && random_below(3) == 0) { /* a beginning that others have, too, and the length to share it */
            memcpy(t->ids, w->tasks[0].ids, (MAX_PROMPT - 3) * sizeof *t->ids);
            t->count = MAX_PROMPT - (size_t)random_below(6);
        }
        t->request = (pst_request){
            .prompt_ids = t->ids, .max_new_tokens = (uint32_t)random_below(MAX_NEW + 1), .stop_texts = stops};
        t->request.stop_count = random_below(3);
        t->request.ignore_end = random_below(2) == 0;
        t->request.sampling = (pst_sampling){.temperature = (double)random_below(3) / 2,
                                             .top_k = (uint32_t)(random_below(2) * random_below(100)),
                                             .top_p = (double)random_below(4) / 3,
                                             .min_p = (double)random_below(2) / 50,
                                             .seed = random_below(1000)};
        t->request.logprobs = random_below(2) == 0;
        t->request.prompt_logprobs = random_below(3) == 0;
        t->request.top_logprobs = (uint32_t)(random_below(2) * random_below(PST_MAX_TOP_LOGPROBS + 1));
        uint64_t kind = i == 0 ? 2 : random_below(12); /* the first is good: others begin with its ids */
        t->bad = kind <= 1;
        if (kind == 0)
            t->count = MAX_TOKENS + 1;
        else if (kind == 1)
            t->ids[random_below(t->count)] = w->vocab;
        t->request.prompt_count = t->count;
    }
}

static void expect_same_logprobs(const pst_logprobs *got, const pst_logprobs *expected, size_t request)
{
    const size_t tops = expected->count * expected->top;
    if (got->count != expected->count || (got->count > 0 && got->top != expected->top))
        fail_msg("request %zu: %zu log-probabilities and %u likeliest tokens", request, got->count, got->top);
    if (got->count == 0)
        return;
    assert_memory_equal(got->values, expected->values, expected->count * sizeof(double));
    assert_memory_equal(got->top_values, expected->top_values, tops * sizeof(double));
    assert_memory_equal(got->top_ids, expected->top_ids, tops * sizeof(uint32_t));
}

/* What is told of a prompt is what scoring gives, and of an answer what scoring the two gives. */
static void check_logprobs(const task *t, size_t request)
{
    const pst_result *r = &t->alone;
    assert_int_equal(r->prompt_logprobs.count, t->request.prompt_logprobs ? t->count - 1 : 0);
    assert_int_equal(r->logprobs.count, t->request.logprobs ? r->ids.count : 0);
    for (size_t i = 0; i < r->prompt_logprobs.count; i++)
        if (r->prompt_logprobs.values[i] != t->logprobs_alone[i])
            fail_msg("request %zu: token %zu of the prompt", request, i + 1);
    for (size_t i = 0; i < r->logprobs.count; i++)
        for (uint32_t n = 0; n < r->logprobs.top; n++) {
            const size_t at = i * r->logprobs.top + n;
            assert_true(n == 0 || r->logprobs.top_values[at] <= r->logprobs.top_values[at - 1]);
            assert_true(r->logprobs.top_values[at] <= 0);
            if (r->logprobs.top_ids[at] == r->ids.ids[i])
                assert_true(r->logprobs.top_values[at] == r->logprobs.values[i]);
        }
}

/* Nobody asks for log-probabilities: the answers are the same. */
static void check_untold(pst_session *session, const task *t, size_t request)
{
    pst_request plain = t->request;
    pst_result result;
    pst_error err;
    plain.logprobs = plain.prompt_logprobs = false;
    if (pst_generate(session, &plain, 1, NULL, NULL, &result, NULL, &err) < 0)
        fail_msg("request %zu: %s", request, err.message);
    assert_int_equal(result.ids.count, t->alone.ids.count);
    assert_memory_equal(result.ids.ids, t->alone.ids.ids, result.ids.count * sizeof(uint32_t));
    assert_null(result.logprobs.values);
    pst_result_free(&result);
}

/* The yardstick: all weights resident, one request at a time, no neighbours ever. */
static void run_alone(work *w)
{
    pst_session *generate =
        open_session(w, (pst_session_options){.threads = 1, .logprobs = true, .prompt_logprobs = true});
    pst_session *plain = open_session(w, (pst_session_options){.threads = 1});
    pst_session *score = open_session(w, (pst_session_options){.threads = 1, .all_logits = true});
    for (size_t i = 0; i < REQUESTS; i++) {
        task *t = &w->tasks[i];
        if (t->bad)
            continue;
        pst_error err;
        if (pst_generate(generate, &t->request, 1, NULL, NULL, &t->alone, NULL, &err) < 0)
            fail_msg("request %zu: %s", i, err.message);
        pst_score_request request = {t->ids, t->count, t->logprobs_alone};
        if (pst_score(score, &request, 1, NULL, NULL, NULL, &err) < 0)
            fail_msg("request %zu: %s", i, err.message);
        check_logprobs(t, i);
        check_untold(plain, t, i);
    }
    pst_session_close(generate);
    pst_session_close(plain);
    pst_session_close(score);
}

static bool give(work *w)
{
    assert_true(w->given - w->ended < w->ahead_at_most);
    return w->given < REQUESTS && ++w->given > 0;
}

static int next_request(void *user, pst_request *out, pst_error *err)
{
    (void)err;
    work *w = user;
    if (!give(w))
        return 0;
    *out = w->tasks[w->given - 1].request;
    return 1;
}

static int next_score(void *user, pst_score_request *out, pst_error *err)
{
    (void)err;
    work *w = user;
    if (!give(w))
        return 0;
    task *t = &w->tasks[w->given - 1];
    *out = (pst_score_request){t->ids, t->count, t->logprobs};
    return 1;
}

static task *take_answer(work *w, size_t request, const pst_error *failure)
{
    assert_true(request < w->given);
    task *t = &w->tasks[request];
    w->ended++;
    t->answers++;
    if ((failure != NULL) != t->bad)
        fail_msg("request %zu: %s", request, failure != NULL ? failure->message : "did not fail");
    if (failure != NULL)
        assert_int_equal(failure->code, PST_E_USAGE);
    return t;
}

static int on_result(void *user, size_t request, pst_result *result, const pst_error *failure, pst_error *err)
{
    (void)err;
    const task *t = take_answer(user, request, failure);
    const pst_result *alone = &t->alone;
    assert_int_equal(result->ids.count, alone->ids.count);
    if (failure != NULL)
        return 0;
    assert_memory_equal(result->ids.ids, alone->ids.ids, alone->ids.count * sizeof(uint32_t));
    assert_string_equal(result->text, alone->text);
    assert_int_equal(result->finish, alone->finish);
    expect_same_logprobs(&result->logprobs, &alone->logprobs, request);
    expect_same_logprobs(&result->prompt_logprobs, &alone->prompt_logprobs, request);
    return 0;
}

static int on_scored(void *user, size_t request, const pst_error *failure, pst_error *err)
{
    (void)err;
    const task *t = take_answer(user, request, failure);
    if (failure == NULL)
        assert_memory_equal(t->logprobs, t->logprobs_alone, (t->count - 1) * sizeof(double));
    return 0;
}

static void run_stream(work *w, pst_session_options options, const char *what)
{
    options.all_logits = w->scoring;
    options.logprobs = options.prompt_logprobs = !w->scoring;
    options.requests_only = random_below(2) == 0; /* then logits are not looked at while scoring */
    pst_session *session = open_session(w, options);
    w->given = w->ended = 0;
    w->ahead_at_most = options.max_sequences + 1;
    for (size_t i = 0; i < REQUESTS; i++)
        w->tasks[i].answers = 0;
    const pst_generate_calls generate = {.next = next_request, .on_result = on_result, .user = w};
    const pst_score_calls score = {.next = next_score, .on_result = on_scored, .user = w};
    pst_error err;
    int status = w->scoring ? pst_score_stream(session, &score, NULL, &err)
                            : pst_generate_stream(session, &generate, NULL, &err);
    if (status < 0)
        fail_msg("%s: %s", what, err.message);
    for (size_t i = 0; i < REQUESTS; i++)
        if (w->tasks[i].answers != 1)
            fail_msg("%s: request %zu was answered %d times", what, i, w->tasks[i].answers);
    pst_session_close(session);
}

static void test_alone_and_together(void **state)
{
    work *w = *state;
    for (int n = 0; n < SESSIONS; n++) {
        pst_session_options options = {.max_sequences = 1 + (uint32_t)random_below(9),
                                       .resident_set = true,
                                       .resident_share = (double)random_below(3) / 2,
                                       .threads = 1 + (uint32_t)random_below(2)};
        options.max_prompt_tokens = random_below(2) == 0 ? 1 + (uint32_t)random_below(6) : 0; /* cuts prompts */
        w->scoring = n % 3 == 2;
        char what[128];
        snprintf(what, sizeof what, "session %d: %u sequences, prompts planned for %u tokens", n, options.max_sequences,
                 options.max_prompt_tokens);
        run_stream(w, options, what);
    }
}

/* Caches down to the least that there is, so that most of the time requests wait for blocks and not for slots. */
static void test_small_pools(void **state)
{
    work *w = *state;
    for (int n = 0; n < SESSIONS; n++) {
        pst_session_options options = {.max_sequences = 2 + (uint32_t)random_below(11),
                                       .resident_set = true,
                                       .resident_share = (double)random_below(3) / 2,
                                       .threads = 1 + (uint32_t)random_below(2),
                                       .kv_tokens = 1 + random_below(12) * BLOCK,
                                       .no_prefix_sharing = random_below(3) == 0};
        options.max_prompt_tokens = random_below(2) == 0 ? 1 + (uint32_t)random_below(6) : 0;
        options.kv_folder = random_below(3) == 0 ? "/tmp" : NULL;
        options.kv_window_bytes = 1;
        w->scoring = n % 3 == 2;
        char what[128];
        snprintf(what, sizeof what, "session %d: %u sequences, a cache of %" PRIu64 " tokens", n, options.max_sequences,
                 options.kv_tokens);
        run_stream(w, options, what);
    }
}

typedef struct schedule {
    uint32_t lengths[REQUESTS];
    uint32_t prompts[REQUESTS];
    const uint32_t *ids;
    size_t given, first_ended;
    bool any_ended;
} schedule;

static int next_of_schedule(void *user, pst_request *out, pst_error *err)
{
    (void)err;
    schedule *s = user;
    if (s->given == REQUESTS)
        return 0;
    *out = (pst_request){.prompt_ids = s->ids,
                         .prompt_count = s->prompts[s->given],
                         .max_new_tokens = s->lengths[s->given],
                         .ignore_end = true};
    s->given++;
    return 1;
}

static int note_first(void *user, size_t request, pst_result *result, const pst_error *failure, pst_error *err)
{
    (void)result;
    (void)err;
    schedule *s = user;
    assert_null(failure);
    if (!s->any_ended)
        s->first_ended = request;
    s->any_ended = true;
    return 0;
}

/* The cache's memory decides how many run at a time, not the length that the longest one has. */
static void test_mixed_lengths(void **state)
{
    work *w = *state;
    enum { LONG = 512, SHORT = 32, POOL = 2 * LONG, LEAST_TIMES_FEWER = 4 };
    schedule s = {.ids = (const uint32_t[]){1}};
    uint64_t passes[2];
    for (size_t i = 0; i < REQUESTS; i++) {
        s.prompts[i] = 1;
        s.lengths[i] = SHORT;
    }
    s.prompts[REQUESTS - 1] = LONG - 1; /* the length that both are planned for */
    s.lengths[REQUESTS - 1] = 1;
    uint32_t ids[LONG] = {1};
    s.ids = ids;
    uint64_t kv_bytes[2];
    for (int pools = 0; pools < 2; pools++) {
        pst_session_options options = {.struct_size = sizeof options,
                                       .max_tokens = LONG,
                                       .max_sequences = pools ? 32 : POOL / LONG,
                                       .kv_tokens = pools ? POOL : 0};
        pst_session *session;
        pst_run_stats stats;
        pst_plan_info plan;
        pst_error err;
        const pst_generate_calls calls = {.next = next_of_schedule, .on_result = note_first, .user = &s};
        assert_int_equal(pst_session_open(w->model, &options, &session, &err), 0);
        pst_session_get_plan(session, &plan);
        s.given = 0;
        assert_int_equal(pst_generate_stream(session, &calls, &stats, &err), 0);
        passes[pools] = stats.passes;
        kv_bytes[pools] = plan.kv_bytes;
        pst_session_close(session);
    }
    assert_int_equal(kv_bytes[0], kv_bytes[1]);
    if (passes[1] * LEAST_TIMES_FEWER > passes[0])
        fail_msg("%" PRIu64 " passes with a cache for all, %" PRIu64 " with one of slots", passes[1], passes[0]);
}

/* Sequences added by hand may grow to the full length, so they take its blocks. */
static void test_pool_by_hand(void **state)
{
    work *w = *state;
    pst_session *session = open_session(w, (pst_session_options){.max_sequences = 4, .kv_tokens = 2 * MAX_TOKENS});
    const uint32_t fit = (2 * MAX_TOKENS + BLOCK - 1) / BLOCK / ((MAX_TOKENS + BLOCK - 1) / BLOCK);
    const uint32_t id = 1;
    uint32_t numbers[4], one_more = 77;
    pst_error err;
    for (uint32_t i = 0; i < fit; i++)
        assert_int_equal(pst_session_add(session, &id, 1, &numbers[i], &err), 0);
    assert_int_equal(pst_session_add(session, &id, 1, &one_more, &err), PST_E_USAGE);
    assert_non_null(strstr(err.message, "reserved"));
    assert_int_equal(one_more, 77);
    const pst_logits *logits;
    size_t count;
    for (uint32_t position = 1; position < MAX_TOKENS; position++) { /* to the last position of every one of them */
        assert_int_equal(pst_session_step(session, &logits, &count, &err), 0);
        assert_int_equal(count, fit);
        for (uint32_t i = 0; i < fit; i++)
            assert_int_equal(pst_session_append(session, numbers[i], (position * 7 + i) % w->vocab, &err), 0);
    }
    assert_int_equal(pst_session_step(session, &logits, &count, &err), 0);
    assert_int_equal(pst_session_append(session, numbers[0], 1, &err), PST_E_USAGE);
    pst_session_remove(session, numbers[0]);
    assert_int_equal(pst_session_add(session, &id, 1, &one_more, &err), 0);
    pst_session_close(session);
}

/* ---- by hand: sequences that join and leave at random, some before they are done ---- */

typedef struct live {
    task *task;
    uint32_t number, made;
} live;

static uint32_t likeliest(const float *values, uint32_t vocab)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < vocab; i++)
        best = values[i] > values[best] ? i : best;
    return best;
}

/* Compares greedy tokens with those that a request alone gets. */
static void test_joining_and_leaving(void **state)
{
    work *w = *state;
    enum { SLOTS = 5, STEPS = 120 };
    pst_session *alone = open_session(w, (pst_session_options){.threads = 1});
    pst_session *session =
        open_session(w, (pst_session_options){.max_sequences = SLOTS, .max_prompt_tokens = 3, .threads = 2});
    live all[SLOTS] = {0};
    pst_result greedy[REQUESTS] = {0};
    pst_error err;
    for (size_t i = 0; i < REQUESTS; i++) {
        pst_request request = w->tasks[i].request;
        request.sampling.temperature = 0;
        request.ignore_end = true;
        request.stop_count = 0;
        request.max_new_tokens = MAX_NEW;
        request.logprobs = request.prompt_logprobs = false;
        if (!w->tasks[i].bad)
            assert_int_equal(pst_generate(alone, &request, 1, NULL, NULL, &greedy[i], NULL, &err), 0);
    }
    for (int step = 0; step < STEPS; step++) {
        for (uint32_t i = 0; i < SLOTS; i++) {
            task *t = &w->tasks[random_below(REQUESTS)];
            if (all[i].task == NULL && !t->bad && random_below(2) == 0) {
                all[i] = (live){.task = t};
                assert_int_equal(pst_session_add(session, t->ids, t->count, &all[i].number, &err), 0);
            } else if (all[i].task != NULL && random_below(20) == 0) {
                pst_session_remove(session, all[i].number);
                all[i].task = NULL;
            }
        }
        const pst_logits *logits;
        size_t count;
        assert_int_equal(pst_session_step(session, &logits, &count, &err), 0);
        for (size_t n = 0; n < count; n++) {
            live *l = all;
            while (l->task == NULL || l->number != logits[n].sequence)
                l++;
            uint32_t id = likeliest(logits[n].values, w->vocab);
            assert_int_equal(id, greedy[l->task - w->tasks].ids.ids[l->made]);
            if (++l->made == MAX_NEW || random_below(10) == 0) {
                pst_session_remove(session, l->number);
                l->task = NULL;
            } else {
                assert_int_equal(pst_session_append(session, l->number, id, &err), 0);
            }
        }
    }
    for (size_t i = 0; i < REQUESTS; i++)
        pst_result_free(&greedy[i]);
    pst_session_close(session);
    pst_session_close(alone);
}

/* ---- who runs when ---- */

/* Prompts of one token: a request takes as many passes as it makes tokens, and the next one joins in the pass after. */
static void test_slots_are_busy(void **state)
{
    work *w = *state;
    enum { SLOTS = 4 };
    schedule s = {.ids = (const uint32_t[]){1}};
    uint64_t free_at[SLOTS] = {0}, passes = 0;
    for (size_t i = 0; i < REQUESTS; i++) {
        s.prompts[i] = 1;
        s.lengths[i] = 1 + (uint32_t)random_below(MAX_NEW);
        size_t slot = 0;
        for (size_t j = 1; j < SLOTS; j++)
            slot = free_at[j] < free_at[slot] ? j : slot;
        free_at[slot] += s.lengths[i];
        passes = free_at[slot] > passes ? free_at[slot] : passes;
    }
    pst_session *session = open_session(w, (pst_session_options){.max_sequences = SLOTS});
    const pst_generate_calls calls = {.next = next_of_schedule, .on_result = note_first, .user = &s};
    pst_run_stats stats;
    pst_error err;
    assert_int_equal(pst_generate_stream(session, &calls, &stats, &err), 0);
    assert_int_equal(stats.passes, passes);
    pst_session_close(session);
}

/* A long prompt of which each pass takes little is not overtaken by a stream of short ones for ever. */
static void test_nobody_starves(void **state)
{
    work *w = *state;
    enum { SLOTS = 4 };
    /* Passes have four rows. The long prompt comes second, so that the slot before it becomes free again and again. */
    static const uint32_t ids[MAX_PROMPT] = {1, 2, 3};
    schedule s = {.ids = ids};
    for (size_t i = 0; i < REQUESTS; i++) {
        s.prompts[i] = i == 1 ? MAX_PROMPT : 3;
        s.lengths[i] = 1;
    }
    pst_session *session = open_session(w, (pst_session_options){.max_sequences = SLOTS, .max_prompt_tokens = 1});
    pst_plan_info plan;
    pst_session_get_plan(session, &plan);
    assert_int_equal(plan.rows_per_pass, SLOTS);
    size_t ended = 0, long_ended = 0;
    const pst_logits *logits;
    size_t count;
    pst_error err;
    uint32_t number, long_number = UINT32_MAX;
    for (size_t given = 0; ended < REQUESTS;) {
        while (given < REQUESTS && pst_session_add(session, ids, s.prompts[given], &number, &err) == 0)
            long_number = given++ == 1 ? number : long_number;
        assert_int_equal(pst_session_step(session, &logits, &count, &err), 0);
        for (size_t i = 0; i < count; i++) {
            ended++;
            if (logits[i].position == MAX_PROMPT - 1)
                long_ended = ended;
            pst_session_remove(session, logits[i].sequence);
        }
    }
    assert_true(long_number < SLOTS);
    /* Its rows all come before those of the prompts that arrived after it. */
    assert_in_range(long_ended, 1, 2);
    pst_session_close(session);
}

static int set_up(void **state)
{
    random_start("streams");
    static work w;
    pst_error err;
    pst_model_info info;
    assert_int_equal(pst_model_open(TALES, NULL, &w.model, &err), 0);
    pst_model_get_info(w.model, &info);
    w.vocab = info.vocab;
    deal(&w);
    run_alone(&w);
    *state = &w;
    return 0;
}

static int tear_down(void **state)
{
    work *w = *state;
    if (w == NULL) /* setting up failed */
        return 0;
    for (size_t i = 0; i < REQUESTS; i++)
        pst_result_free(&w->tasks[i].alone);
    pst_model_close(w->model);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_alone_and_together),  cmocka_unit_test(test_small_pools),
        cmocka_unit_test(test_mixed_lengths),       cmocka_unit_test(test_pool_by_hand),
        cmocka_unit_test(test_joining_and_leaving), cmocka_unit_test(test_slots_are_busy),
        cmocka_unit_test(test_nobody_starves),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
