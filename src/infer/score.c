/* SPDX-License-Identifier: Apache-2.0 */
/* Log-probabilities of given ids. Several requests share the passes, as many as the session has slots. */
#include <math.h>

#include "base/error.h"
#include "base/heap.h"
#include "infer/internal.h"
#include "os/clock.h"

/* A request on its way. */
typedef struct scored {
    pst_score_request request;
    size_t number;
    bool running; /* holds the sequence slot of its index */
    double last;  /* where what is asked of its last row goes */
} scored;

typedef struct scoring {
    pst_session *session;
    const pst_score_calls *calls;
    scored *slots; /* by sequence slot */
    uint32_t running;
    double *normalizers;       /* by logits row: log of the sum of exponentials; NULL: logits stay where they are */
    pst_score_request waiting; /* with has_waiting: the next to start; asked for ahead, as for generation */
    bool has_waiting, exhausted;
    size_t given;
    uint64_t tokens;
    pst_error *err;
} scoring;

int pst_session_check_score(const pst_session *s, const pst_score_request *request, pst_error *err)
{
    if (request->count == 0 || request->count > s->options.max_tokens)
        return pst_fail(err, PST_E_USAGE, NULL, "a text of %zu tokens in a session made for 1 to %u", request->count,
                        s->options.max_tokens);
    return pst_session_check_ids(s, request->ids, request->count, err);
}

static int fetch(scoring *s)
{
    while (!s->has_waiting && !s->exhausted) {
        int status = s->calls->next(s->calls->user, &s->waiting, s->err);
        PST_TRY(status);
        s->exhausted = status == 0;
        if (s->exhausted)
            break;
        s->given++;
        pst_error failure = {.offset = PST_NO_OFFSET};
        s->has_waiting = pst_session_check_score(s->session, &s->waiting, &failure) >= 0;
        if (!s->has_waiting)
            PST_TRY(s->calls->on_result(s->calls->user, s->given - 1, &failure, s->err));
    }
    return 0;
}

static int start_requests(scoring *s)
{
    for (;;) {
        PST_TRY(fetch(s));
        if (!s->has_waiting || !pst_session_has_room(s->session, s->waiting.count))
            return 0;
        uint32_t sequence;
        PST_TRY(pst_session_start(s->session, s->waiting.ids, s->waiting.count, s->waiting.count, &sequence, s->err));
        s->slots[sequence] = (scored){.request = s->waiting, .number = s->given - 1, .running = true};
        s->running++;
        s->has_waiting = false;
    }
}

static int end_request(scoring *s, uint32_t sequence, const pst_error *failure)
{
    pst_session_remove(s->session, sequence);
    s->slots[sequence].running = false;
    s->running--;
    if (failure == NULL)
        s->tokens += s->slots[sequence].request.count;
    int status = s->calls->on_result(s->calls->user, s->slots[sequence].number, failure, s->err);
    return status < 0 ? status : 0;
}

static int fail_row(scoring *s, const pst_logits *row)
{
    pst_error failure;
    pst_fail(&failure, PST_E_FORMAT, s->session->model->folder,
             "the logits of token %u are not finite: broken weights?", row->position + 1);
    return end_request(s, row->sequence, &failure);
}

/* A row whose log-probability is there. */
static int take_row(scoring *s, const pst_logits *row, bool usable)
{
    const scored *slot = &s->slots[row->sequence];
    if (!slot->running) /* it failed at an earlier row of this pass */
        return 0;
    if (!usable)
        return fail_row(s, row);
    const pst_score_calls *calls = s->calls;
    uint32_t vocab = s->session->model->transformer.vocab;
    if (calls->on_logits != NULL && calls->on_logits(calls->user, slot->number, row->position, row->values, vocab) != 0)
        return pst_fail(s->err, PST_E_CANCELLED, NULL, "cancelled");
    return row->position + 1 == slot->request.count ? end_request(s, row->sequence, NULL) : 0;
}

/* Whether the next pass takes all that is pending. */
static bool is_last_pass(const scoring *s)
{
    uint64_t pending = 0;
    for (uint32_t i = 0; i < s->session->options.max_sequences; i++)
        if (s->session->sequences[i].in_use)
            pending += s->session->sequences[i].count - s->session->sequences[i].computed;
    return !s->has_waiting && pending <= s->session->plan.rows_per_pass;
}

/* A pass whose logits come to the host. */
static int run_fetched(scoring *s)
{
    const pst_logits *rows;
    size_t count;
    PST_TRY(pst_session_step(s->session, &rows, &count, s->err));
    pst_matrix logits = s->session->fetched;
    logits.rows = count;
    pst_device *host = s->session->host;
    int status = host->ops->log_sum_exp(host, &logits, NULL, s->normalizers);
    if (status < 0)
        return pst_fail(s->err, status, NULL, "normalizing logits failed: %s", pst_strerror(status));
    for (size_t i = 0; i < count; i++) {
        const scored *slot = &s->slots[rows[i].sequence];
        const uint32_t position = rows[i].position;
        if (slot->running && position + 1 < slot->request.count)
            slot->request.logprobs[position] =
                (double)rows[i].values[slot->request.ids[position + 1]] - s->normalizers[i];
        PST_TRY(take_row(s, &rows[i], isfinite(s->normalizers[i])));
    }
    return 0;
}

/* Where the log-probability of a row goes; the last row has none, and is asked whether it is usable. */
static double *place_of(scored *slot, uint32_t position)
{
    return position + 1 < slot->request.count ? &slot->request.logprobs[position] : &slot->last;
}

/* A pass whose logits stay where they are. */
static int run_probed(scoring *s)
{
    const pst_logits *rows;
    size_t count;
    PST_TRY(pst_session_pass(s->session, &rows, &count, s->err));
    pst_session_probe_begin(s->session);
    for (uint32_t i = 0; i < count; i++) {
        scored *slot = &s->slots[rows[i].sequence];
        const uint32_t next = rows[i].position + 1;
        const pst_probe probe = {.row = i,
                                 .id = next < slot->request.count ? slot->request.ids[next] : 0,
                                 .value = place_of(slot, rows[i].position)};
        PST_TRY(pst_session_probe(s->session, &probe, s->err));
    }
    PST_TRY(pst_session_probe_end(s->session, s->err));
    for (size_t i = 0; i < count; i++) {
        scored *slot = &s->slots[rows[i].sequence];
        PST_TRY(take_row(s, &rows[i], slot->running && !isnan(*place_of(slot, rows[i].position))));
    }
    return 0;
}

static int run(scoring *s)
{
    for (;;) {
        PST_TRY(start_requests(s));
        if (s->running == 0)
            return 0;
        s->session->last_pass = is_last_pass(s);
        PST_TRY(s->normalizers != NULL ? run_fetched(s) : run_probed(s));
    }
}

int pst_score_stream(pst_session *session, const pst_score_calls *calls, pst_run_stats *stats, pst_error *err)
{
    if (!session->options.all_logits)
        return pst_fail(err, PST_E_USAGE, NULL, "the session was not opened for scoring (all_logits)");
    scoring s = {.session = session, .calls = calls, .err = err};
    pst_session_counters before;
    pst_session_get_counters(session, &before);
    PST_TRY(pst_session_check_idle(session, err));
    s.slots = pst_heap_calloc(session->options.max_sequences, sizeof *s.slots);
    const bool fetches = !session->options.requests_only;
    if (fetches)
        s.normalizers = pst_heap_calloc(session->plan.rows_per_pass, sizeof *s.normalizers);
    uint64_t start = pst_clock_ns();
    int status = s.slots != NULL && (s.normalizers != NULL || !fetches)
                     ? run(&s)
                     : pst_fail_memory(err, "scores", session->plan.rows_per_pass * sizeof(double));
    if (status >= 0 && stats != NULL) {
        *stats = (pst_run_stats){.total_seconds = (double)(pst_clock_ns() - start) / 1e9, .prompt_tokens = s.tokens};
        stats->prefill_seconds = stats->total_seconds;
        if (stats->total_seconds > 0)
            stats->prefill_tokens_per_second = (double)stats->prompt_tokens / stats->total_seconds;
        pst_session_fill_stats(session, &before, stats);
    }
    for (uint32_t i = 0; status < 0 && i < session->options.max_sequences; i++)
        pst_session_remove(session, i);
    session->last_pass = false;
    pst_heap_free(s.slots);
    pst_heap_free(s.normalizers);
    return status;
}

/* ---- an array of requests ---- */

typedef struct score_array {
    pst_score_request *requests;
    size_t count, next;
    pst_on_logits on_logits;
    void *user;
} score_array;

static int next_of_array(void *user, pst_score_request *out, pst_error *err)
{
    (void)err;
    score_array *array = user;
    if (array->next == array->count)
        return 0;
    *out = array->requests[array->next++];
    return 1;
}

static int stop_at_failure(void *user, size_t request, const pst_error *failure, pst_error *err)
{
    (void)user;
    return failure != NULL ? pst_fail_number(err, "text", request, failure) : 0;
}

static int pass_logits(void *user, size_t request, uint32_t position, const float *logits, size_t vocab)
{
    score_array *array = user;
    return array->on_logits(array->user, request, position, logits, vocab);
}

int pst_score(pst_session *session, pst_score_request *requests, size_t count, pst_on_logits on_logits, void *user,
              pst_run_stats *stats, pst_error *err)
{
    PST_TRY(pst_session_check_idle(session, err));
    for (size_t i = 0; i < count; i++) {
        pst_error cause = {.offset = PST_NO_OFFSET};
        if (pst_session_check_score(session, &requests[i], &cause) < 0)
            return pst_fail_number(err, "text", i, &cause);
    }
    score_array array = {.requests = requests, .count = count, .on_logits = on_logits, .user = user};
    const pst_score_calls calls = {.next = next_of_array,
                                   .on_result = stop_at_failure,
                                   .on_logits = on_logits != NULL ? pass_logits : NULL,
                                   .user = &array};
    return pst_score_stream(session, &calls, stats, err);
}
