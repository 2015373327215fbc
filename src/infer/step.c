/* SPDX-License-Identifier: Apache-2.0 */
/* One pass: which rows it carries, and carrying them. */
#include <string.h>

#include "base/error.h"
#include "base/number.h"
#include "infer/internal.h"
#include "os/clock.h"

int pst_session_check_idle(const pst_session *s, pst_error *err)
{
    if (s->in_use > 0)
        return pst_fail(err, PST_E_USAGE, NULL, "the session holds sequence %u, which was added by hand", s->order[0]);
    return 0;
}

int pst_session_check_ids(const pst_session *s, const uint32_t *ids, size_t count, pst_error *err)
{
    for (size_t i = 0; i < count; i++)
        if (ids[i] >= s->model->transformer.vocab)
            return pst_fail(err, PST_E_USAGE, NULL, "token id %u is outside the vocabulary of %u", ids[i],
                            s->model->transformer.vocab);
    return 0;
}

bool pst_session_has_room(const pst_session *s, size_t positions)
{
    return s->in_use < s->options.max_sequences &&
           pst_kv_blocks_of(positions) <= pst_kv_block_count(s->kv) - s->reserved_blocks;
}

int pst_session_start(pst_session *s, const uint32_t *ids, size_t count, size_t positions, uint32_t *out,
                      pst_error *err)
{
    if (count == 0 || count > s->options.max_tokens)
        return pst_fail(err, PST_E_USAGE, NULL, "a sequence of %zu tokens in a session made for 1 to %u", count,
                        s->options.max_tokens);
    PST_TRY(pst_session_check_ids(s, ids, count, err));
    if (s->in_use < s->options.max_sequences && !pst_session_has_room(s, positions))
        return pst_fail(err, PST_E_USAGE, NULL,
                        "%u of the KV cache's %u blocks of %d positions are reserved, too many for a sequence of %zu",
                        s->reserved_blocks, pst_kv_block_count(s->kv), PST_KV_BLOCK, positions);
    for (uint32_t i = 0; i < s->options.max_sequences; i++) {
        pst_sequence *sequence = &s->sequences[i];
        if (sequence->in_use)
            continue;
        memcpy(sequence->ids, ids, count * sizeof *ids);
        sequence->count = sequence->prompt = (uint32_t)count;
        sequence->computed = 0;
        sequence->limit = (uint32_t)positions;
        s->reserved_blocks += pst_kv_blocks_of(positions);
        sequence->in_use = true;
        sequence->prompt_logits = false;
        sequence->serial = s->added++;
        s->order[s->in_use++] = i;
        *out = i;
        return 0;
    }
    return pst_fail(err, PST_E_USAGE, NULL, "all %u sequences of the session are in use", s->options.max_sequences);
}

int pst_session_add(pst_session *s, const uint32_t *ids, size_t count, uint32_t *out, pst_error *err)
{
    return pst_session_start(s, ids, count, s->options.max_tokens, out, err);
}

int pst_session_append(pst_session *s, uint32_t number, uint32_t id, pst_error *err)
{
    if (number >= s->options.max_sequences || !s->sequences[number].in_use)
        return pst_fail(err, PST_E_USAGE, NULL, "there is no sequence %u", number);
    pst_sequence *sequence = &s->sequences[number];
    if (sequence->count == sequence->limit || id >= s->model->transformer.vocab)
        return pst_fail(err, PST_E_USAGE, NULL, "token %u at position %u is outside the session", id, sequence->count);
    sequence->ids[sequence->count++] = id;
    return 0;
}

void pst_session_remove(pst_session *s, uint32_t number)
{
    if (number >= s->options.max_sequences || !s->sequences[number].in_use)
        return;
    s->sequences[number].in_use = false;
    s->reserved_blocks -= pst_kv_blocks_of(s->sequences[number].limit);
    uint32_t at = 0;
    while (s->order[at] != number)
        at++;
    s->in_use--;
    memmove(s->order + at, s->order + at + 1, (s->in_use - at) * sizeof *s->order);
    pst_kv_release(s->kv, number);
}

/* What shared blocks have for a sequence whose next position is `position`, of those up to `end`. The last id is always
 * computed, for its logits. */
static pst_kv_next share_block(pst_session *s, uint32_t number, uint32_t position, uint32_t end)
{
    const pst_sequence *sequence = &s->sequences[number];
    bool is_whole = position % PST_KV_BLOCK == 0 && end - position > PST_KV_BLOCK;
    return is_whole ? pst_kv_share(s->kv, number, sequence->ids + position) : PST_KV_COMPUTE;
}

static bool is_in_prompt(const pst_sequence *sequence)
{
    return sequence->computed < sequence->prompt;
}

/* Whether what the sequence computes next has the bits that any other one would find: on some devices not what generated tokens
 * leave, which a prompt with the same ids does not have. Who wants all logits of a prompt computes it all. */
static bool is_for_others(const pst_session *s, const pst_sequence *sequence)
{
    return s->sharing && !sequence->prompt_logits && (!s->device->ops->phases_change_bits || is_in_prompt(sequence));
}

/* Adds as many pending rows of a sequence as fit, either of its prompt or of what came after it; with sharing, block by block. */
static uint32_t add_rows(pst_session *s, uint32_t number, uint32_t used)
{
    pst_sequence *sequence = &s->sequences[number];
    uint32_t position = sequence->computed, first = used;
    const uint32_t phase_end = is_in_prompt(sequence) ? sequence->prompt : sequence->count;
    const bool for_others = is_for_others(s, sequence);
    while (position < phase_end && used < s->plan.rows_per_pass) {
        pst_kv_next next = for_others ? share_block(s, number, position, phase_end) : PST_KV_COMPUTE;
        if (next == PST_KV_WAIT)
            break;
        if (next == PST_KV_TAKEN) {
            position += PST_KV_BLOCK;
            sequence->computed = used == first ? position : sequence->computed;
            s->counters.shared_tokens += PST_KV_BLOCK;
            continue;
        }
        uint32_t room = s->plan.rows_per_pass - used, pending = phase_end - position;
        uint32_t block = s->sharing ? PST_KV_BLOCK - position % PST_KV_BLOCK : pending;
        uint32_t take = (uint32_t)pst_min(pst_min(pending, block), room), end = position + take;
        if (s->sharing)
            pst_kv_advance(s->kv, number, position, end, sequence->ids, for_others);
        for (; position < end; position++, used++) {
            s->rows[used] = (pst_row){.sequence = number,
                                      .position = position,
                                      .id = sequence->ids[position],
                                      .prompt = sequence->prompt,
                                      .serial = sequence->serial,
                                      .wants_logits = s->options.all_logits || sequence->prompt_logits ||
                                                      position + 1 == sequence->count};
            s->row_ids[used] = sequence->ids[position];
        }
    }
    return used;
}

/* Rows of the next pass: sequences that decode first, so that newcomers never hold them up (those that were given several ids
 * at once after the others); then prompts by arrival, so that a long one whose rows are taken pass by pass is not overtaken by
 * newcomers for ever. So rows of generated tokens come first, as a pass wants them. */
static uint32_t choose_rows(pst_session *s)
{
    enum { DECODING, CATCHING_UP, IN_PROMPT, TURNS };
    uint32_t used = 0;
    for (int turn = 0; turn < TURNS; turn++) {
        for (uint32_t i = 0; i < s->in_use && used < s->plan.rows_per_pass; i++) {
            const pst_sequence *sequence = &s->sequences[s->order[i]];
            uint32_t pending = sequence->count - sequence->computed;
            int its_turn = is_in_prompt(sequence) ? IN_PROMPT : pending > 1 ? CATCHING_UP : DECODING;
            if (pending > 0 && its_turn == turn)
                used = add_rows(s, s->order[i], used);
        }
    }
    return used;
}

static int tell_routing(const pst_session *s, uint32_t count, pst_error *err)
{
    const pst_transformer *t = &s->transformer;
    uint32_t layers = 0;
    for (uint32_t i = 0; t->experts > 0 && i < t->layers; i++)
        layers += t->sparse[i];
    for (uint32_t i = 0; s->options.on_routing != NULL && layers > 0 && i < count; i++)
        if (s->options.on_routing(s->options.on_routing_user, s->rows[i].serial, s->rows[i].position,
                                  pst_forward_routing(s->forward, i), layers, t->experts_per_token) != 0)
            return pst_fail(err, PST_E_CANCELLED, NULL, "cancelled");
    return 0;
}

/* A pst_recorder_pass. */
static int run_parts(void *context, pst_error *err)
{
    pst_session *s = context;
    pst_forward_rewind(s->forward); /* it may be for the second time */
    return pst_ring_pass(s->ring, s->pass_rows, !s->last_pass, err);
}

/* The stages that are not gathered. */
static int run_stages(pst_session *s, uint32_t count, pst_error *err)
{
    pst_recorder_key key;
    pst_recorder_result result;
    s->pass_rows = count;
    if (s->recorder == NULL || !pst_forward_repeats(s->forward, &key))
        return pst_ring_pass(s->ring, count, !s->last_pass, err);
    if (atomic_load_explicit(&s->cancelled, memory_order_relaxed)) /* nobody looks in a replay */
        return pst_fail(err, PST_E_CANCELLED, NULL, "cancelled");
    uint64_t begin = pst_clock_ns();
    PST_TRY(pst_recorder_run(s->recorder, &key, run_parts, s, &result, err));
    if (result == PST_RECORDER_REPLAYED)
        pst_ring_count_pass(s->ring, begin, pst_clock_ns());
    s->counters.replayed_passes += result != PST_RECORDER_RUN;
    return 0;
}

static int run_pass(pst_session *s, uint32_t count, pst_error *err)
{
    PST_TRY(pst_forward_begin(s->forward, s->rows, count, err));
    PST_TRY(pst_ring_gather(s->ring, 0, s->row_ids, count, pst_forward_embed, s->forward, err));
    if (s->program->gathered_stages > 1) {
        for (uint32_t i = 0; i < count; i++)
            s->row_ids[i] = s->rows[i].position + s->transformer.position_offset;
        PST_TRY(pst_ring_gather(s->ring, 1, s->row_ids, count, pst_forward_embed_position, s->forward, err));
    }
    PST_TRY(pst_forward_gathered(s->forward, err));
    PST_TRY(run_stages(s, count, err));
    PST_TRY(pst_forward_end(s->forward, err));
    if (s->recorder != NULL)
        pst_recorder_settle(s->recorder);
    return tell_routing(s, count, err);
}

/* What a pass is made of. */
typedef int part_of_pass(pst_session *s, uint32_t count, pst_error *err);

/* Notes what made a pass fail: the ring then stands somewhere inside, and no later pass could be right. */
static int fail_pass(pst_session *s, const pst_error *cause, pst_error *err)
{
    if (s->failed.code == 0)
        s->failed = *cause;
    if (err != NULL)
        *err = s->failed;
    return s->failed.code;
}

static int run_or_fail(pst_session *s, part_of_pass *part, uint32_t count, pst_error *err)
{
    pst_error cause = {0};
    const int status = s->failed.code == 0 ? part(s, count, &cause) : s->failed.code;
    return status >= 0 ? status : fail_pass(s, &cause, err);
}

int pst_session_pass(pst_session *s, const pst_logits **out, size_t *out_count, pst_error *err)
{
    uint32_t count = choose_rows(s);
    if (count == 0) {
        *out_count = 0;
        return 0;
    }
    pst_ring_stats before, after;
    pst_kv_traffic kv_before, kv_after;
    pst_ring_get_stats(s->ring, &before);
    pst_kv_get_traffic(s->kv, &kv_before);
    uint64_t start = pst_clock_ns();
    PST_TRY(run_or_fail(s, run_pass, count, err));
    uint64_t end = pst_clock_ns();
    pst_ring_get_stats(s->ring, &after);
    pst_kv_get_traffic(s->kv, &kv_after);
    uint64_t kv_bytes = kv_after.bytes_read - kv_before.bytes_read + kv_after.bytes_written - kv_before.bytes_written;
    s->counters.passes++;
    s->counters.rows += count;
    s->counters.pass_ns += end - start;
    pst_trace_span(s->options.trace, PST_TRACE_PASS, "pass", start, end, after.weight_bytes - before.weight_bytes);

    size_t given = 0;
    for (uint32_t i = 0; i < count; i++) {
        s->sequences[s->rows[i].sequence].computed = s->rows[i].position + 1;
        if (s->rows[i].wants_logits) {
            s->logits[given++] = (pst_logits){.sequence = s->rows[i].sequence, .position = s->rows[i].position};
        }
    }
    pst_session_count_bound(s, count, (uint32_t)given,
                            after.weight_bytes - after.wasted_bytes - (before.weight_bytes - before.wasted_bytes) +
                                kv_bytes,
                            after.link_bytes - before.link_bytes + kv_after.link_bytes - kv_before.link_bytes);
    *out = s->logits;
    *out_count = given;
    return 0;
}

static int fetch_logits(pst_session *s, uint32_t count, pst_error *err)
{
    return pst_forward_fetch_logits(s->forward, NULL, count, &s->fetched, err);
}

int pst_session_step(pst_session *s, const pst_logits **out, size_t *out_count, pst_error *err)
{
    if (s->options.requests_only)
        return pst_fail(err, PST_E_USAGE, NULL, "the session was opened for whole requests (requests_only)");
    const pst_logits *logits;
    size_t count;
    PST_TRY(pst_session_pass(s, &logits, &count, err));
    if (count > 0)
        PST_TRY(run_or_fail(s, fetch_logits, (uint32_t)count, err));
    for (size_t i = 0; i < count; i++)
        s->logits[i].values = (const float *)s->fetched.data + i * s->fetched.stride;
    *out = logits;
    *out_count = count;
    return 0;
}

static int choose(pst_session *s, uint32_t count, pst_error *err)
{
    return pst_chooser_run(s->chooser, s->forward, count, err);
}

int pst_session_choose(pst_session *s, uint32_t count, pst_error *err)
{
    return count > 0 ? run_or_fail(s, choose, count, err) : 0;
}

void pst_session_probe_begin(pst_session *s)
{
    const pst_matrix logits = pst_forward_logits(s->forward);
    pst_prober_begin(s->prober, &logits);
}

int pst_session_probe(pst_session *s, const pst_probe *probe, pst_error *err)
{
    pst_error cause = {.offset = PST_NO_OFFSET};
    int status = s->failed.code == 0 ? pst_prober_ask(s->prober, probe, &cause) : s->failed.code;
    return status < 0 ? fail_pass(s, &cause, err) : 0;
}

int pst_session_probe_end(pst_session *s, pst_error *err)
{
    pst_error cause = {.offset = PST_NO_OFFSET};
    int status = s->failed.code == 0 ? pst_prober_end(s->prober, &cause) : s->failed.code;
    return status < 0 ? fail_pass(s, &cause, err) : 0;
}
