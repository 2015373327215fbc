/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whole requests through a session: each takes a free sequence slot when one is there, and leaves it when it ends. What a
 * request gets does not depend on its neighbours: its random numbers come from its own seed and its own count of tokens.
 */
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "infer/internal.h"
#include "infer/text_out.h"
#include "os/clock.h"

/* A request on its way. */
typedef struct progress {
    pst_text_out text;
    uint32_t *ids;
    uint32_t count;
    uint32_t sequence;
    bool running, done, has_first;
    pst_finish finish;
} progress;

typedef struct generation {
    pst_session *session;
    const pst_request *requests;
    size_t count;
    pst_on_token on_token;
    void *user;
    progress *progress;        /* by request */
    size_t *owner;             /* by sequence slot: its request */
    pst_candidate *candidates; /* vocab, for sampling */
    size_t next;               /* request that starts next */
    size_t ended;
    size_t batch;  /* requests of the first batch */
    size_t firsts; /* of them, those that have their first token or ended without one */
    uint64_t start_ns, first_ns;
    pst_error *err;
} generation;

static int check_request(const generation *g, const pst_request *r, size_t number)
{
    const pst_sampling *s = &r->sampling;
    if (!(s->temperature >= 0 && s->top_p >= 0 && s->top_p <= 1 && s->min_p >= 0 && s->min_p <= 1))
        return pst_fail(g->err, PST_E_USAGE, NULL, "prompt %zu: temperature %g, top-p %g, min-p %g", number + 1,
                        s->temperature, s->top_p, s->min_p);
    if (r->stop_count > 0 && g->session->tokenizer == NULL)
        return pst_fail(g->err, PST_E_USAGE, g->session->model->folder, "stop texts need a tokenizer");
    for (size_t i = 0; i < r->stop_count; i++)
        if (r->stop_texts[i][0] == '\0')
            return pst_fail(g->err, PST_E_USAGE, NULL, "prompt %zu: an empty stop text", number + 1);
    return 0;
}

static int check_requests(const generation *g)
{
    const pst_session_options *o = &g->session->options;
    for (size_t i = 0; i < g->count; i++) {
        const pst_request *r = &g->requests[i];
        if (r->prompt_count == 0)
            return pst_fail(g->err, PST_E_USAGE, NULL, "prompt %zu is empty", i + 1);
        PST_TRY(pst_session_check_ids(g->session, r->prompt_ids, r->prompt_count, "prompt", i, g->err));
        PST_TRY(check_request(g, r, i));
        if (r->prompt_count > o->max_tokens || r->max_new_tokens > o->max_tokens - r->prompt_count)
            return pst_fail(g->err, PST_E_USAGE, NULL,
                            "prompt %zu of %zu tokens and %u new ones exceed the session's %u", i + 1, r->prompt_count,
                            r->max_new_tokens, o->max_tokens);
    }
    return 0;
}

static int prepare(generation *g)
{
    uint32_t vocab = g->session->model->transformer.vocab;
    g->progress = pst_heap_calloc(g->count, sizeof *g->progress);
    g->owner = pst_heap_calloc(g->session->options.max_sequences, sizeof *g->owner);
    g->candidates = pst_heap_calloc(vocab, sizeof *g->candidates);
    if (!g->progress || !g->owner || !g->candidates)
        return pst_fail_memory(g->err, "requests", g->count * sizeof *g->progress + vocab * sizeof *g->candidates);
    for (size_t i = 0; i < g->count; i++) {
        const pst_request *r = &g->requests[i];
        g->progress[i].ids = pst_heap_calloc(r->max_new_tokens, sizeof(uint32_t));
        if (g->progress[i].ids == NULL)
            return pst_fail_memory(g->err, "generated tokens", r->max_new_tokens * sizeof(uint32_t));
        PST_TRY(pst_text_out_open(&g->progress[i].text, g->session->tokenizer, r->stop_texts, r->stop_count, g->err));
    }
    return 0;
}

static void release(generation *g)
{
    for (size_t i = 0; g->progress != NULL && i < g->count; i++) {
        pst_text_out_close(&g->progress[i].text);
        pst_heap_free(g->progress[i].ids);
        if (g->progress[i].running)
            pst_session_remove(g->session, g->progress[i].sequence);
    }
    pst_heap_free(g->progress);
    pst_heap_free(g->owner);
    pst_heap_free(g->candidates);
}

static int show(generation *g, size_t request, uint32_t id, const char *text, size_t bytes)
{
    if (g->on_token == NULL || g->on_token(g->user, request, id, text, bytes) == 0)
        return 0;
    return pst_fail(g->err, PST_E_CANCELLED, NULL, "cancelled");
}

static void count_first(generation *g, size_t request)
{
    progress *p = &g->progress[request];
    if (!p->has_first && request < g->batch && ++g->firsts == g->batch)
        g->first_ns = pst_clock_ns();
    p->has_first = true;
}

static int end_request(generation *g, size_t request, pst_finish finish)
{
    progress *p = &g->progress[request];
    if (finish != PST_FINISH_STOP_TEXT) { /* else the stop text may only now be complete: what the stream held back */
        const char *text;
        size_t bytes;
        int status = pst_text_out_finish(&p->text, &text, &bytes, g->err);
        PST_TRY(status);
        if (bytes > 0)
            PST_TRY(show(g, request, UINT32_MAX, text, bytes));
        finish = status == 1 ? PST_FINISH_STOP_TEXT : finish;
    }
    if (p->running)
        pst_session_remove(g->session, p->sequence);
    p->running = false;
    p->done = true;
    p->finish = finish;
    g->ended++;
    return 0;
}

static int start_requests(generation *g)
{
    uint32_t slots = g->session->options.max_sequences;
    while (g->next < g->count && g->next - g->ended < slots) {
        const pst_request *r = &g->requests[g->next];
        progress *p = &g->progress[g->next];
        if (r->max_new_tokens == 0) {
            count_first(g, g->next);
            PST_TRY(end_request(g, g->next++, PST_FINISH_LENGTH));
            continue;
        }
        PST_TRY(pst_session_add(g->session, r->prompt_ids, r->prompt_count, &p->sequence, g->err));
        p->running = true;
        g->owner[p->sequence] = g->next++;
    }
    return 0;
}

static bool ends_text(const pst_transformer *t, uint32_t id)
{
    for (size_t i = 0; i < t->end_count; i++)
        if (t->end_ids[i] == id)
            return true;
    return false;
}

/* A sequence's next token from its logits. */
static int take_logits(generation *g, const pst_logits *logits)
{
    size_t request = g->owner[logits->sequence];
    const pst_request *r = &g->requests[request];
    progress *p = &g->progress[request];
    const pst_transformer *t = &g->session->model->transformer;
    if (p->done || logits->position + 1 != g->session->sequences[logits->sequence].count)
        return 0; /* a prompt row of a session that gives all logits */
    if (!pst_logits_are_usable(logits->values, t->vocab))
        return pst_fail(g->err, PST_E_FORMAT, g->session->model->folder,
                        "prompt %zu: the logits of token %u are not finite: broken weights?", request + 1,
                        logits->position + 1);
    uint32_t id =
        pst_sample(logits->values, t->vocab, &r->sampling, pst_random(r->sampling.seed, p->count), g->candidates);
    count_first(g, request);
    if (!r->ignore_end && ends_text(t, id))
        return end_request(g, request, PST_FINISH_END_TOKEN);
    p->ids[p->count++] = id;
    const char *text;
    size_t bytes;
    int stopped = pst_text_out_push(&p->text, id, &text, &bytes, g->err);
    PST_TRY(stopped);
    PST_TRY(show(g, request, id, text, bytes));
    if (stopped)
        return end_request(g, request, PST_FINISH_STOP_TEXT);
    if (p->count == r->max_new_tokens)
        return end_request(g, request, PST_FINISH_LENGTH);
    return pst_session_append(g->session, logits->sequence, id, g->err);
}

/* Whether the next pass is the last one for certain: nothing waits, and every running request lacks one token. */
static bool is_last_pass(const generation *g)
{
    if (g->next < g->count)
        return false;
    for (size_t i = 0; i < g->count; i++) {
        const progress *p = &g->progress[i];
        if (!p->running)
            continue;
        uint32_t pending = g->session->sequences[p->sequence].count - g->session->sequences[p->sequence].computed;
        if (p->count + 1 < g->requests[i].max_new_tokens || pending > 1)
            return false;
    }
    return true;
}

static int run(generation *g)
{
    g->start_ns = pst_clock_ns();
    while (g->ended < g->count) {
        PST_TRY(start_requests(g));
        g->session->last_pass = is_last_pass(g);
        const pst_logits *logits;
        size_t count;
        PST_TRY(pst_session_step(g->session, &logits, &count, g->err));
        for (size_t i = 0; i < count; i++)
            PST_TRY(take_logits(g, &logits[i]));
    }
    return 0;
}

static void fill_times(const generation *g, pst_run_stats *stats)
{
    uint64_t now = pst_clock_ns(), first = g->first_ns ? g->first_ns : now;
    uint64_t first_prompts = 0;
    for (size_t i = 0; i < g->count; i++) {
        stats->prompt_tokens += g->requests[i].prompt_count;
        first_prompts += i < g->batch ? g->requests[i].prompt_count : 0;
        stats->generated_tokens += g->progress[i].count;
    }
    stats->prefill_seconds = (double)(first - g->start_ns) / 1e9;
    stats->total_seconds = (double)(now - g->start_ns) / 1e9;
    stats->decode_seconds = stats->total_seconds - stats->prefill_seconds;
    if (stats->prefill_seconds > 0)
        stats->prefill_tokens_per_second = (double)first_prompts / stats->prefill_seconds;
    if (stats->decode_seconds > 0 && stats->generated_tokens > g->count)
        stats->decode_tokens_per_second = (double)(stats->generated_tokens - g->count) / stats->decode_seconds;
    if (stats->total_seconds > 0)
        stats->tokens_per_second = (double)stats->generated_tokens / stats->total_seconds;
}

static void hand_over(generation *g, pst_result *results)
{
    for (size_t i = 0; i < g->count; i++) {
        progress *p = &g->progress[i];
        results[i] = (pst_result){
            .ids = {p->ids, p->count}, .text = p->text.text, .text_bytes = p->text.bytes, .finish = p->finish};
        p->ids = NULL;
        p->text.text = NULL;
    }
}

int pst_generate(pst_session *session, const pst_request *requests, size_t count, pst_on_token on_token, void *user,
                 pst_result *results, pst_run_stats *stats, pst_error *err)
{
    generation g = {
        .session = session, .requests = requests, .count = count, .on_token = on_token, .user = user, .err = err};
    pst_session_counters before;
    pst_session_get_counters(session, &before);
    int status;
    g.batch = count < session->options.max_sequences ? count : session->options.max_sequences;
    PST_TRY_GOTO(done, pst_session_check_idle(session, err));
    PST_TRY_GOTO(done, check_requests(&g));
    PST_TRY_GOTO(done, prepare(&g));
    PST_TRY_GOTO(done, run(&g));
    if (stats != NULL) {
        *stats = (pst_run_stats){0};
        fill_times(&g, stats);
        pst_session_fill_stats(session, &before, stats);
    }
    hand_over(&g, results);
done:
    session->last_pass = false;
    release(&g);
    return status;
}

void pst_result_free(pst_result *result)
{
    if (result == NULL)
        return;
    pst_tokens_free(&result->ids);
    pst_text_free(result->text);
    *result = (pst_result){0};
}
