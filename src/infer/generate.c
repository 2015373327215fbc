/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whole requests through a session: each takes a free sequence slot when one is there, and leaves it when it ends. What a
 * request gets does not depend on its neighbours: its random numbers come from its own seed and its own count of tokens.
 *
 * A request starts when a slot is free and the KV cache has blocks for all that it may become, which are reserved for it: a
 * running request never lacks memory. None overtakes another, so that none waits for ever.
 *
 * The source is asked one request ahead of the slots, for two reasons: a slot that becomes free is taken before the next
 * pass, and the last pass is known as such, so that nothing is read ahead for a pass that will not be.
 */
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/number.h"
#include "infer/internal.h"
#include "infer/text_out.h"
#include "os/clock.h"

/* A request on its way. */
typedef struct progress {
    pst_request request;
    size_t number;
    pst_text_out text;
    uint32_t *ids; /* request.max_new_tokens */
    uint32_t count;
    pst_logprobs logprobs, prompt_logprobs; /* with room for all; not made unless asked for */
    bool running;                           /* holds the sequence slot of its index */
    bool awaited_first;                     /* of the first batch, and without its first token yet */
} progress;

typedef struct generation {
    pst_session *session;
    const pst_generate_calls *calls;
    progress *slots; /* by sequence slot */
    uint32_t running;
    pst_request waiting; /* with has_waiting: the next to start */
    bool has_waiting, exhausted;
    size_t given, ended;
    bool has_stepped;
    uint32_t awaited_firsts;
    uint64_t prompt_tokens, generated_tokens, first_prompt_tokens;
    uint64_t start_ns, first_ns;
    pst_error *err;
} generation;

int pst_session_check_request(const pst_session *s, const pst_request *r, pst_error *err)
{
    const pst_sampling *sampling = &r->sampling;
    if (r->prompt_count == 0)
        return pst_fail(err, PST_E_USAGE, NULL, "the prompt is empty");
    PST_TRY(pst_session_check_ids(s, r->prompt_ids, r->prompt_count, err));
    if (!(sampling->temperature >= 0 && sampling->top_p >= 0 && sampling->top_p <= 1 && sampling->min_p >= 0 &&
          sampling->min_p <= 1))
        return pst_fail(err, PST_E_USAGE, NULL, "temperature %g, top-p %g, min-p %g", sampling->temperature,
                        sampling->top_p, sampling->min_p);
    if (r->stop_count > 0 && s->tokenizer == NULL)
        return pst_fail(err, PST_E_USAGE, s->model->folder, "stop texts need a tokenizer");
    for (size_t i = 0; i < r->stop_count; i++)
        if (r->stop_texts[i][0] == '\0')
            return pst_fail(err, PST_E_USAGE, NULL, "an empty stop text");
    if ((r->logprobs && !s->options.logprobs) || (r->prompt_logprobs && !s->options.prompt_logprobs) ||
        r->top_logprobs > PST_MAX_TOP_LOGPROBS)
        return pst_fail(err, PST_E_USAGE, NULL,
                        "log-probabilities in a session that was not opened for them, or of %u likeliest tokens, where "
                        "%d are the most",
                        r->top_logprobs, PST_MAX_TOP_LOGPROBS);
    if (r->prompt_count > s->options.max_tokens || r->max_new_tokens > s->options.max_tokens - r->prompt_count)
        return pst_fail(err, PST_E_USAGE, NULL, "a prompt of %zu tokens and %u new ones exceed the session's %u",
                        r->prompt_count, r->max_new_tokens, s->options.max_tokens);
    return 0;
}

int pst_fail_number(pst_error *err, const char *what, size_t number, const pst_error *cause)
{
    return pst_fail_at(err, cause->code, cause->path, cause->offset, "%s %zu: %s", what, number + 1, cause->message);
}

static int prepare(generation *g)
{
    uint32_t slots = g->session->options.max_sequences;
    g->slots = pst_heap_calloc(slots, sizeof *g->slots);
    return g->slots != NULL ? 0 : pst_fail_memory(g->err, "requests", slots * sizeof *g->slots);
}

static void release_slot(progress *p)
{
    pst_text_out_close(&p->text);
    pst_heap_free(p->ids);
    pst_logprobs_free(&p->logprobs);
    pst_logprobs_free(&p->prompt_logprobs);
    *p = (progress){0};
}

static void release(generation *g)
{
    for (uint32_t i = 0; g->slots != NULL && i < g->session->options.max_sequences; i++) {
        if (g->slots[i].running)
            pst_session_remove(g->session, i);
        release_slot(&g->slots[i]);
    }
    pst_heap_free(g->slots);
}

static int show(generation *g, const progress *p, uint32_t id, const char *text, size_t bytes)
{
    const pst_generate_calls *calls = g->calls;
    if (calls->on_token == NULL || calls->on_token(calls->user, p->number, id, text, bytes) == 0)
        return 0;
    return pst_fail(g->err, PST_E_CANCELLED, NULL, "cancelled");
}

static int hand_over(generation *g, size_t number, pst_result *result, const pst_error *failure)
{
    g->ended++;
    int status = g->calls->on_result(g->calls->user, number, result, failure, g->err);
    pst_result_free(result);
    return status < 0 ? status : 0;
}

static void count_first(generation *g, progress *p)
{
    if (p->awaited_first && --g->awaited_firsts == 0)
        g->first_ns = pst_clock_ns();
    p->awaited_first = false;
}

/* Ends a request that was begun: its slot is free for another. */
static int end_request(generation *g, progress *p, pst_finish finish)
{
    if (finish != PST_FINISH_STOP_TEXT) { /* else the stop text may only now be complete: what the stream held back */
        const char *text;
        size_t bytes;
        int status = pst_text_out_finish(&p->text, &text, &bytes, g->err);
        PST_TRY(status);
        if (bytes > 0)
            PST_TRY(show(g, p, UINT32_MAX, text, bytes));
        finish = status == 1 ? PST_FINISH_STOP_TEXT : finish;
    }
    pst_error failure = {.offset = PST_NO_OFFSET};
    pst_result none = {0};
    g->generated_tokens += p->count;
    if (pst_logprobs_check(&p->prompt_logprobs, 1, g->session->model->folder, &failure) < 0)
        return hand_over(g, p->number, &none, &failure);
    p->logprobs.count = p->logprobs.values != NULL ? p->count : 0;
    pst_result result = {.ids = {p->ids, p->count},
                         .text = p->text.text,
                         .text_bytes = p->text.bytes,
                         .finish = finish,
                         .logprobs = p->logprobs,
                         .prompt_logprobs = p->prompt_logprobs};
    p->ids = NULL;
    p->text.text = NULL;
    p->logprobs = p->prompt_logprobs = (pst_logprobs){0};
    return hand_over(g, p->number, &result, NULL);
}

static void leave(generation *g, uint32_t sequence)
{
    pst_session_remove(g->session, sequence);
    release_slot(&g->slots[sequence]);
    g->running--;
}

static int begin(generation *g, progress *p)
{
    const pst_request *r = &g->waiting;
    *p = (progress){.request = *r, .number = g->given - 1};
    p->ids = pst_heap_calloc(r->max_new_tokens, sizeof(uint32_t));
    if (p->ids == NULL)
        return pst_fail_memory(g->err, "generated tokens", r->max_new_tokens * sizeof(uint32_t));
    const uint32_t top = (uint32_t)pst_min(r->top_logprobs, g->session->model->transformer.vocab);
    if (r->logprobs)
        PST_TRY(pst_logprobs_make(&p->logprobs, r->max_new_tokens, top, g->err));
    if (r->prompt_logprobs)
        PST_TRY(pst_logprobs_make(&p->prompt_logprobs, r->prompt_count - 1, top, g->err));
    p->prompt_logprobs.count = r->prompt_logprobs ? r->prompt_count - 1 : 0;
    g->prompt_tokens += r->prompt_count;
    return pst_text_out_open(&p->text, g->session->tokenizer, r->stop_texts, r->stop_count, g->err);
}

/* Has the next request waiting, if there is one that runs. */
static int fetch(generation *g)
{
    while (!g->has_waiting && !g->exhausted) {
        int status = g->calls->next(g->calls->user, &g->waiting, g->err);
        PST_TRY(status);
        g->exhausted = status == 0;
        if (g->exhausted)
            break;
        g->given++;
        pst_error failure = {.offset = PST_NO_OFFSET};
        pst_result none = {0};
        if (pst_session_check_request(g->session, &g->waiting, &failure) < 0) {
            PST_TRY(hand_over(g, g->given - 1, &none, &failure));
        } else if (g->waiting.max_new_tokens == 0 && !(g->waiting.prompt_logprobs && g->waiting.prompt_count > 1)) {
            progress at_once;
            status = begin(g, &at_once);
            if (status >= 0)
                status = end_request(g, &at_once, PST_FINISH_LENGTH);
            release_slot(&at_once);
            PST_TRY(status);
        } else {
            g->has_waiting = true;
        }
    }
    return 0;
}

/* Positions that the cache may have to hold: the last new token is never computed. */
static size_t positions_of(const pst_request *r)
{
    return r->prompt_count + (r->max_new_tokens > 0 ? r->max_new_tokens - 1 : 0);
}

static int start_requests(generation *g)
{
    for (;;) {
        PST_TRY(fetch(g));
        if (!g->has_waiting || !pst_session_has_room(g->session, positions_of(&g->waiting)))
            return 0;
        uint32_t sequence;
        PST_TRY(pst_session_start(g->session, g->waiting.prompt_ids, g->waiting.prompt_count, positions_of(&g->waiting),
                                  &sequence, g->err));
        g->session->sequences[sequence].prompt_logits = g->waiting.prompt_logprobs;
        progress *p = &g->slots[sequence];
        int status = begin(g, p);
        p->running = true;
        PST_TRY(status);
        g->running++;
        g->has_waiting = false;
        if (!g->has_stepped) {
            p->awaited_first = true;
            g->awaited_firsts++;
            g->first_prompt_tokens += p->request.prompt_count;
        }
    }
}

static bool ends_text(const pst_transformer *t, uint32_t id)
{
    for (size_t i = 0; i < t->end_count; i++)
        if (t->end_ids[i] == id)
            return true;
    return false;
}

/* The log-probabilities of prompts' tokens, each by the row before it; what wants nothing else ends here. */
static int take_prompts(generation *g, const pst_logits *logits, size_t count)
{
    if (!g->session->options.prompt_logprobs)
        return 0;
    pst_session_probe_begin(g->session);
    for (uint32_t i = 0; i < count; i++) {
        const progress *p = &g->slots[logits[i].sequence];
        const uint32_t position = logits[i].position;
        if (!p->request.prompt_logprobs || position + 1 >= p->request.prompt_count)
            continue;
        const pst_probe probe =
            pst_logprobs_probe(&p->prompt_logprobs, position, i, p->request.prompt_ids[position + 1]);
        PST_TRY(pst_session_probe(g->session, &probe, g->err));
    }
    PST_TRY(pst_session_probe_end(g->session, g->err));
    for (size_t i = 0; i < count; i++) {
        progress *p = &g->slots[logits[i].sequence];
        if (!p->running || p->request.max_new_tokens > 0 || logits[i].position + 1 < p->request.prompt_count)
            continue;
        count_first(g, p);
        const int status = end_request(g, p, PST_FINISH_LENGTH);
        leave(g, logits[i].sequence);
        PST_TRY(status);
    }
    return 0;
}

/* The log-probabilities of the tokens that were chosen. */
static int probe_choices(generation *g, const pst_logits *logits, uint32_t count)
{
    const pst_choice *choices = pst_chooser_choices(g->session->chooser);
    if (!g->session->options.logprobs)
        return 0;
    pst_session_probe_begin(g->session);
    for (uint32_t i = 0; i < count; i++) {
        const progress *p = &g->slots[logits[i].sequence];
        if (!p->request.logprobs || !choices[i].usable)
            continue;
        const pst_probe probe = pst_logprobs_probe(&p->logprobs, p->count, choices[i].row, choices[i].id);
        PST_TRY(pst_session_probe(g->session, &probe, g->err));
    }
    return pst_session_probe_end(g->session, g->err);
}

/* Chooses the tokens that follow the last rows of sequences; the pass's logits are cut to these rows. */
static int choose_tokens(generation *g, size_t *count)
{
    pst_logits *logits = g->session->logits;
    pst_choice *choices = pst_chooser_choices(g->session->chooser);
    uint32_t chosen = 0;
    for (size_t i = 0; i < *count; i++) {
        const progress *p = &g->slots[logits[i].sequence];
        if (!p->running || logits[i].position + 1 != g->session->sequences[logits[i].sequence].count)
            continue; /* a prompt row of a session that gives all logits */
        choices[chosen] = (pst_choice){.row = (uint32_t)i,
                                       .sampling = &p->request.sampling,
                                       .random = pst_random(p->request.sampling.seed, p->count),
                                       .keep = p->request.logprobs};
        logits[chosen++] = logits[i];
    }
    *count = chosen;
    PST_TRY(pst_session_choose(g->session, chosen, g->err));
    return probe_choices(g, logits, chosen);
}

/* A sequence's next token. */
static int take_choice(generation *g, const pst_logits *logits, const pst_choice *choice)
{
    progress *p = &g->slots[logits->sequence];
    const pst_request *r = &p->request;
    const pst_transformer *t = &g->session->model->transformer;
    count_first(g, p);
    int status = 0;
    if (!choice->usable) {
        pst_error failure;
        pst_result none = {0};
        pst_fail(&failure, PST_E_FORMAT, g->session->model->folder,
                 "the logits of token %u are not finite: broken weights?", logits->position + 1);
        status = hand_over(g, p->number, &none, &failure);
        leave(g, logits->sequence);
        return status;
    }
    uint32_t id = choice->id;
    if (!r->ignore_end && ends_text(t, id)) {
        status = end_request(g, p, PST_FINISH_END_TOKEN);
        leave(g, logits->sequence);
        return status;
    }
    p->ids[p->count++] = id;
    const char *text;
    size_t bytes;
    int stopped = pst_text_out_push(&p->text, id, &text, &bytes, g->err);
    PST_TRY(stopped);
    PST_TRY(show(g, p, id, text, bytes));
    if (!stopped && p->count < r->max_new_tokens)
        return pst_session_append(g->session, logits->sequence, id, g->err);
    status = end_request(g, p, stopped ? PST_FINISH_STOP_TEXT : PST_FINISH_LENGTH);
    leave(g, logits->sequence);
    return status;
}

/* Whether the next pass is the last one for certain: nothing waits, and every running request lacks one token. */
static bool is_last_pass(const generation *g)
{
    uint64_t rows = 0;
    if (g->has_waiting)
        return false;
    for (uint32_t i = 0; i < g->session->options.max_sequences; i++) {
        const progress *p = &g->slots[i];
        if (!p->running)
            continue;
        uint32_t pending = g->session->sequences[i].count - g->session->sequences[i].computed;
        if (p->count + 1 < p->request.max_new_tokens || (pending > 1 && !p->request.prompt_logprobs))
            return false;
        rows += pending;
    }
    return rows <= g->session->plan.rows_per_pass;
}

static int run(generation *g)
{
    g->start_ns = pst_clock_ns();
    for (;;) {
        PST_TRY(start_requests(g));
        if (g->running == 0)
            return 0;
        g->session->last_pass = is_last_pass(g);
        g->has_stepped = true;
        const pst_logits *logits;
        size_t count;
        PST_TRY(pst_session_pass(g->session, &logits, &count, g->err));
        PST_TRY(take_prompts(g, logits, count));
        PST_TRY(choose_tokens(g, &count));
        const pst_choice *choices = pst_chooser_choices(g->session->chooser);
        for (size_t i = 0; i < count; i++)
            PST_TRY(take_choice(g, &logits[i], &choices[i]));
    }
}

static void fill_times(const generation *g, pst_run_stats *stats)
{
    uint64_t now = pst_clock_ns(), first = g->first_ns ? g->first_ns : now;
    stats->prompt_tokens = g->prompt_tokens;
    stats->generated_tokens = g->generated_tokens;
    stats->prefill_seconds = (double)(first - g->start_ns) / 1e9;
    stats->total_seconds = (double)(now - g->start_ns) / 1e9;
    stats->decode_seconds = stats->total_seconds - stats->prefill_seconds;
    if (stats->prefill_seconds > 0)
        stats->prefill_tokens_per_second = (double)g->first_prompt_tokens / stats->prefill_seconds;
    if (stats->decode_seconds > 0 && stats->generated_tokens > g->ended)
        stats->decode_tokens_per_second = (double)(stats->generated_tokens - g->ended) / stats->decode_seconds;
    if (stats->total_seconds > 0)
        stats->tokens_per_second = (double)stats->generated_tokens / stats->total_seconds;
}

int pst_generate_stream(pst_session *session, const pst_generate_calls *calls, pst_run_stats *stats, pst_error *err)
{
    generation g = {.session = session, .calls = calls, .err = err};
    pst_session_counters before;
    pst_session_get_counters(session, &before);
    int status;
    PST_TRY(pst_session_check_idle(session, err));
    PST_TRY_GOTO(done, prepare(&g));
    PST_TRY_GOTO(done, run(&g));
    if (stats != NULL) {
        *stats = (pst_run_stats){0};
        fill_times(&g, stats);
        pst_session_fill_stats(session, &before, stats);
    }
done:
    session->last_pass = false;
    release(&g);
    return status;
}

/* ---- an array of requests ---- */

typedef struct request_array {
    const pst_request *requests;
    size_t count, next;
    pst_on_token on_token;
    void *user;
    pst_result *results; /* what is done so far; the others are empty */
} request_array;

static int next_of_array(void *user, pst_request *out, pst_error *err)
{
    (void)err;
    request_array *array = user;
    if (array->next == array->count)
        return 0;
    *out = array->requests[array->next++];
    return 1;
}

static int keep_result(void *user, size_t request, pst_result *result, const pst_error *failure, pst_error *err)
{
    request_array *array = user;
    if (failure != NULL)
        return pst_fail_number(err, "prompt", request, failure);
    array->results[request] = *result;
    *result = (pst_result){0};
    return 0;
}

static int pass_token(void *user, size_t request, uint32_t id, const char *text, size_t text_bytes)
{
    request_array *array = user;
    return array->on_token(array->user, request, id, text, text_bytes);
}

int pst_generate(pst_session *session, const pst_request *requests, size_t count, pst_on_token on_token, void *user,
                 pst_result *results, pst_run_stats *stats, pst_error *err)
{
    PST_TRY(pst_session_check_idle(session, err));
    for (size_t i = 0; i < count; i++) {
        pst_error cause = {.offset = PST_NO_OFFSET};
        if (pst_session_check_request(session, &requests[i], &cause) < 0)
            return pst_fail_number(err, "prompt", i, &cause);
    }
    request_array array = {.requests = requests, .count = count, .on_token = on_token, .user = user};
    array.results = pst_heap_calloc(count, sizeof *array.results);
    if (array.results == NULL)
        return pst_fail_memory(err, "results", count * sizeof *array.results);
    const pst_generate_calls calls = {.next = next_of_array,
                                      .on_result = keep_result,
                                      .on_token = on_token != NULL ? pass_token : NULL,
                                      .user = &array};
    int status = pst_generate_stream(session, &calls, stats, err);
    if (status >= 0 && count > 0)
        memcpy(results, array.results, count * sizeof *results);
    for (size_t i = 0; status < 0 && i < count; i++)
        pst_result_free(&array.results[i]);
    pst_heap_free(array.results);
    return status;
}

void pst_result_free(pst_result *result)
{
    if (result == NULL)
        return;
    pst_tokens_free(&result->ids);
    pst_text_free(result->text);
    pst_logprobs_free(&result->logprobs);
    pst_logprobs_free(&result->prompt_logprobs);
    *result = (pst_result){0};
}
