/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Log-probabilities in an answer, as OpenAI's API writes them. A token that is no whole characters is spelled by its bytes, as
 * there; where the model has no tokenizer, by its id.
 */
#include <math.h>
#include <string.h>

#include "base/error.h"
#include "jobs/batch_internal.h"
#include "store/json_scan.h"

/* Tokens in a row and what is known of them. */
typedef struct told {
    const uint32_t *ids;
    size_t count;
    const pst_logprobs *logprobs; /* of those from `unknown` on */
    size_t unknown;
} told;

/* What impossible tokens have there. */
static void add_value(pst_json_text *out, double value)
{
    if (isfinite(value))
        pst_json_text_add(out, "%.17g", value);
    else
        pst_json_text_add(out, "-9999.0");
}

typedef struct spelled {
    char *bytes; /* freed with pst_text_free */
    size_t count;
} spelled;

static int spell(const pst_batch *b, uint32_t id, spelled *out, pst_error *err)
{
    *out = (spelled){0};
    return b->rules.tokenizer != NULL ? pst_tokenizer_token(b->rules.tokenizer, id, &out->bytes, &out->count, err) : 0;
}

/* A token's text, quoted. */
static void add_spelled(pst_json_text *out, uint32_t id, const spelled *token)
{
    const pst_scan scan = {.text = token->bytes, .bytes = token->count};
    if (token->bytes == NULL) {
        pst_json_text_add(out, "\"token_id:%u\"", id);
        return;
    }
    const bool is_text = pst_scan_utf8_length(&scan) == token->count;
    pst_json_text_add(out, is_text ? "\"" : "\"bytes:");
    for (size_t i = 0; i < token->count && !is_text; i++)
        pst_json_text_add(out, "\\\\x%02x", (unsigned char)token->bytes[i]);
    if (is_text)
        pst_json_text_escaped(out, token->bytes, token->count);
    pst_json_text_add(out, "\"");
}

static int add_token(const pst_batch *b, uint32_t id, pst_json_text *out, pst_error *err)
{
    spelled token;
    PST_TRY(spell(b, id, &token, err));
    add_spelled(out, id, &token);
    pst_text_free(token.bytes);
    return 0;
}

/* ---- completions ---- */

/* The likeliest tokens at a place, and the one that stands there, by their texts; of two that read the same the likelier. */
typedef struct alternatives {
    spelled tokens[PST_MAX_TOP_LOGPROBS + 1];
    uint32_t ids[PST_MAX_TOP_LOGPROBS + 1];
    double values[PST_MAX_TOP_LOGPROBS + 1];
    size_t count;
} alternatives;

static bool reads_the_same(const alternatives *a, size_t first, size_t second)
{
    const spelled *x = &a->tokens[first], *y = &a->tokens[second];
    if (x->bytes == NULL || y->bytes == NULL)
        return a->ids[first] == a->ids[second];
    return x->count == y->count && memcmp(x->bytes, y->bytes, x->count) == 0;
}

static int add_alternative(const pst_batch *b, alternatives *a, uint32_t id, double value, pst_error *err)
{
    const size_t last = a->count;
    a->ids[last] = id;
    a->values[last] = value;
    PST_TRY(spell(b, id, &a->tokens[last], err));
    a->count++;
    for (size_t i = 0; i < last && a->count > last; i++)
        if (reads_the_same(a, i, last))
            pst_text_free(a->tokens[--a->count].bytes);
    return 0;
}

static int find_alternatives(const pst_batch *b, const told *t, size_t place, alternatives *a, pst_error *err)
{
    const pst_logprobs *l = t->logprobs;
    const size_t at = place - t->unknown;
    for (uint32_t n = 0; n < l->top; n++)
        PST_TRY(add_alternative(b, a, l->top_ids[at * l->top + n], l->top_values[at * l->top + n], err));
    return add_alternative(b, a, t->ids[place], l->values[at], err);
}

static int add_top(const pst_batch *b, const told *t, size_t place, pst_json_text *out, pst_error *err)
{
    alternatives a = {.count = 0};
    const int status = find_alternatives(b, t, place, &a, err);
    pst_json_text_add(out, "{");
    for (size_t i = 0; i < a.count; i++) {
        pst_json_text_add(out, i > 0 ? ", " : "");
        add_spelled(out, a.ids[i], &a.tokens[i]);
        pst_json_text_add(out, ": ");
        add_value(out, a.values[i]);
        pst_text_free(a.tokens[i].bytes);
    }
    pst_json_text_add(out, "}");
    return status;
}

/* One of the lists: `what` of every token of both runs. */
typedef enum list { TOKENS, VALUES, TOPS } list;

static int add_list(const pst_batch *b, const told *runs, size_t count, list what, pst_json_text *out, pst_error *err)
{
    static const char *const names[] = {"\"tokens\": [", "], \"token_logprobs\": [", "], \"top_logprobs\": ["};
    bool first = true;
    pst_json_text_add(out, "%s", names[what]);
    for (size_t r = 0; r < count; r++) {
        const told *t = &runs[r];
        for (size_t i = 0; i < t->count; i++, first = false) {
            pst_json_text_add(out, first ? "" : ", ");
            if (what == TOKENS)
                PST_TRY(add_token(b, t->ids[i], out, err));
            else if (i < t->unknown)
                pst_json_text_add(out, "null");
            else if (what == VALUES)
                add_value(out, t->logprobs->values[i - t->unknown]);
            else
                PST_TRY(add_top(b, t, i, out, err));
        }
    }
    return 0;
}

static size_t count_characters(const char *text, size_t bytes)
{
    size_t count = 0;
    for (size_t i = 0; i < bytes; i++)
        count += (text[i] & 0xC0) != 0x80;
    return count;
}

/* Of a text as it stands in a line: \uXXXX is a character, and with another that makes a pair one. */
static size_t count_escaped(const char *text, size_t bytes)
{
    size_t count = 0;
    for (size_t i = 0; i < bytes; i++) {
        if (text[i] != '\\') {
            count += (text[i] & 0xC0) != 0x80;
            continue;
        }
        i++;
        const bool is_code = text[i] == 'u';
        const bool is_second = is_code && (text[i + 1] == 'd' || text[i + 1] == 'D') && strchr("cdefCDEF", text[i + 2]);
        count += !is_second;
        i += is_code ? 4 : 0;
    }
    return count;
}

static int count_prompt(const pst_batch *b, const pst_batch_prompt *prompt, size_t *out, pst_error *err)
{
    char *text;
    size_t bytes;
    if (prompt->text.text != NULL) {
        *out = count_escaped(prompt->text.text + 1, prompt->text.bytes - 2);
        return 0;
    }
    PST_TRY(pst_tokenizer_decode(b->rules.tokenizer, prompt->ids.ids, prompt->ids.count, true, &text, &bytes, err));
    *out = count_characters(text, bytes);
    pst_text_free(text);
    return 0;
}

/* Where each token's text begins, `from` being where the first one's does; one that only completes a character begins where that
 * ends, and none beyond `most`. */
static int add_run_offsets(const pst_batch *b, const told *t, size_t from, size_t most, bool *first, pst_json_text *out,
                           pst_error *err)
{
    pst_text_stream *stream;
    int status = 0;
    PST_TRY(pst_text_stream_open(b->rules.tokenizer, true, &stream, err));
    for (size_t i = 0; i < t->count && status >= 0; i++, *first = false) {
        const char *text;
        size_t bytes;
        pst_json_text_add(out, *first ? "%zu" : ", %zu", from < most ? from : most);
        status = pst_text_stream_push(stream, t->ids[i], &text, &bytes, err);
        from += status >= 0 ? count_characters(text, bytes) : 0;
    }
    pst_text_stream_close(stream);
    return status;
}

static int add_offsets(const pst_batch *b, const pst_batch_prompt *prompt, const told *runs, pst_json_text *out,
                       pst_error *err)
{
    size_t characters;
    bool first = true;
    if (b->rules.tokenizer == NULL) {
        pst_json_text_add(out, "], \"text_offset\": null}");
        return 0;
    }
    pst_json_text_add(out, "], \"text_offset\": [");
    PST_TRY(count_prompt(b, prompt, &characters, err));
    PST_TRY(add_run_offsets(b, &runs[0], 0, characters, &first, out, err));
    PST_TRY(add_run_offsets(b, &runs[1], characters, SIZE_MAX, &first, out, err));
    pst_json_text_add(out, "]}");
    return 0;
}

int pst_batch_add_logprobs(const pst_batch *b, const pst_batch_line *line, const pst_batch_prompt *prompt,
                           const pst_result *result, pst_json_text *out, pst_error *err)
{
    const told runs[] = {{prompt->ids.ids, line->echo ? prompt->ids.count : 0, &result->prompt_logprobs, 1},
                         {result->ids.ids, result->ids.count, &result->logprobs, 0}};
    pst_json_text_add(out, "{");
    for (int what = TOKENS; what <= TOPS; what++)
        PST_TRY(add_list(b, runs, 2, (list)what, out, err));
    return add_offsets(b, prompt, runs, out, err);
}

/* ---- conversations ---- */

/* A token: its text, its bytes, its log-probability; not closed. */
static int add_chat_token(const pst_batch *b, uint32_t id, double value, pst_json_text *out, pst_error *err)
{
    spelled token;
    PST_TRY(spell(b, id, &token, err));
    pst_json_text_add(out, "{\"token\": ");
    add_spelled(out, id, &token);
    pst_json_text_add(out, ", \"logprob\": ");
    add_value(out, value);
    pst_json_text_add(out, token.bytes != NULL ? ", \"bytes\": [" : ", \"bytes\": null");
    for (size_t i = 0; i < token.count; i++)
        pst_json_text_add(out, i > 0 ? ", %u" : "%u", (unsigned char)token.bytes[i]);
    if (token.bytes != NULL)
        pst_json_text_add(out, "]");
    pst_text_free(token.bytes);
    return 0;
}

int pst_batch_add_chat_logprobs(const pst_batch *b, const pst_result *result, pst_json_text *out, pst_error *err)
{
    const pst_logprobs *l = &result->logprobs;
    pst_json_text_add(out, "{\"content\": [");
    for (size_t i = 0; i < result->ids.count; i++) {
        pst_json_text_add(out, i > 0 ? ", " : "");
        PST_TRY(add_chat_token(b, result->ids.ids[i], l->values[i], out, err));
        pst_json_text_add(out, ", \"top_logprobs\": [");
        for (uint32_t n = 0; n < l->top; n++) {
            pst_json_text_add(out, n > 0 ? ", " : "");
            PST_TRY(add_chat_token(b, l->top_ids[i * l->top + n], l->top_values[i * l->top + n], out, err));
            pst_json_text_add(out, "}");
        }
        pst_json_text_add(out, "]}");
    }
    pst_json_text_add(out, "], \"refusal\": null}");
    return 0;
}
