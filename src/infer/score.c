/* SPDX-License-Identifier: Apache-2.0 */
/* Log-probabilities of given ids. Several requests share the passes, as many as the session has slots. */
#include <math.h>

#include "base/error.h"
#include "base/heap.h"
#include "infer/internal.h"
#include "os/clock.h"

typedef struct scoring {
    pst_session *session;
    pst_score_request *requests;
    size_t count;
    pst_on_logits on_logits;
    void *user;
    size_t *owner;       /* by sequence slot: its request */
    double *normalizers; /* by logits row: log of the sum of exponentials */
    size_t next, ended;
    pst_error *err;
} scoring;

static int start_requests(scoring *s)
{
    while (s->next < s->count && s->next - s->ended < s->session->options.max_sequences) {
        uint32_t sequence;
        PST_TRY(pst_session_add(s->session, s->requests[s->next].ids, s->requests[s->next].count, &sequence, s->err));
        s->owner[sequence] = s->next++;
    }
    return 0;
}

static int take_row(scoring *s, const pst_logits *row, double normalizer)
{
    size_t number = s->owner[row->sequence];
    if (!isfinite(normalizer))
        return pst_fail(s->err, PST_E_FORMAT, s->session->model->folder,
                        "the logits of token %u are not finite: broken weights?", row->position + 1);
    const pst_score_request *request = &s->requests[number];
    uint32_t vocab = s->session->model->transformer.vocab;
    if (s->on_logits != NULL && s->on_logits(s->user, number, row->position, row->values, vocab) != 0)
        return pst_fail(s->err, PST_E_CANCELLED, NULL, "cancelled");
    if (row->position + 1 < request->count) {
        request->logprobs[row->position] = (double)row->values[request->ids[row->position + 1]] - normalizer;
        return 0;
    }
    pst_session_remove(s->session, row->sequence);
    s->ended++;
    return 0;
}

/* Whether the next pass takes all that is pending. */
static bool is_last_pass(const scoring *s)
{
    if (s->next < s->count)
        return false;
    uint64_t pending = 0;
    for (uint32_t i = 0; i < s->session->options.max_sequences; i++)
        if (s->session->sequences[i].in_use)
            pending += s->session->sequences[i].count - s->session->sequences[i].computed;
    return pending <= s->session->plan.rows_per_pass;
}

static int run(scoring *s)
{
    while (s->ended < s->count) {
        PST_TRY(start_requests(s));
        s->session->last_pass = is_last_pass(s);
        const pst_logits *rows;
        size_t count;
        PST_TRY(pst_session_step(s->session, &rows, &count, s->err));
        pst_matrix logits = pst_forward_logits(s->session->forward);
        int status = s->session->device->ops->log_sum_exp(s->session->device, &logits, s->normalizers);
        if (status < 0)
            return pst_fail(s->err, status, NULL, "normalizing logits failed: %s", pst_strerror(status));
        for (size_t i = 0; i < count; i++)
            PST_TRY(take_row(s, &rows[i], s->normalizers[i]));
    }
    return 0;
}

int pst_score(pst_session *session, pst_score_request *requests, size_t count, pst_on_logits on_logits, void *user,
              pst_run_stats *stats, pst_error *err)
{
    if (!session->options.all_logits)
        return pst_fail(err, PST_E_USAGE, NULL, "the session was not opened for scoring (all_logits)");
    scoring s = {
        .session = session, .requests = requests, .count = count, .on_logits = on_logits, .user = user, .err = err};
    pst_session_counters before;
    pst_session_get_counters(session, &before);
    PST_TRY(pst_session_check_idle(session, err));
    for (size_t i = 0; i < count; i++) {
        if (requests[i].count == 0 || requests[i].count > session->options.max_tokens)
            return pst_fail(err, PST_E_USAGE, NULL, "text %zu of %zu tokens in a session made for 1 to %u", i + 1,
                            requests[i].count, session->options.max_tokens);
        PST_TRY(pst_session_check_ids(session, requests[i].ids, requests[i].count, "text", i, err));
    }
    s.owner = pst_heap_calloc(session->options.max_sequences, sizeof *s.owner);
    s.normalizers = pst_heap_calloc(session->plan.rows_per_pass, sizeof *s.normalizers);
    uint64_t start = pst_clock_ns();
    int status = s.owner && s.normalizers
                     ? run(&s)
                     : pst_fail_memory(err, "scores", session->plan.rows_per_pass * sizeof(double));
    if (status >= 0 && stats != NULL) {
        *stats = (pst_run_stats){.total_seconds = (double)(pst_clock_ns() - start) / 1e9};
        for (size_t i = 0; i < count; i++)
            stats->prompt_tokens += requests[i].count;
        stats->prefill_seconds = stats->total_seconds;
        if (stats->total_seconds > 0)
            stats->prefill_tokens_per_second = (double)stats->prompt_tokens / stats->total_seconds;
        pst_session_fill_stats(session, &before, stats);
    }
    for (uint32_t i = 0; status < 0 && i < session->options.max_sequences; i++)
        pst_session_remove(session, i);
    session->last_pass = false;
    pst_heap_free(s.owner);
    pst_heap_free(s.normalizers);
    return status;
}
