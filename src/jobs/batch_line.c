/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading a line. First the objects are walked and the values of known keys noted where they stand; then each is read as
 * what it must be. So the order of keys does not matter, and memory stays within a small factor of the line.
 */
#include "jobs/batch_line.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/hash.h"
#include "base/heap.h"
#include "jobs/batch_fields.h"

static const char INVALID[] = "invalid_request";

void pst_batch_line_free(pst_batch_line *line)
{
    if (line == NULL)
        return;
    for (size_t i = 0; i < line->prompt_count; i++)
        pst_tokens_free(&line->prompts[i].ids);
    for (size_t i = 0; i < line->stop_count; i++)
        pst_heap_free(line->stops[i]);
    pst_heap_free(line->prompts);
    pst_heap_free(line->stops);
    pst_heap_free(line->logprobs);
    pst_heap_free(line->text);
    *line = (pst_batch_line){0};
}

/* Takes out of a message what is not UTF-8: pieces of the line stand in it, and a piece may begin or end inside a character,
 * which would make the answer no JSON. */
static void drop_broken(char *text)
{
    size_t kept = 0;
    pst_scan scan = {.text = text, .bytes = strlen(text)};
    while (scan.bytes > 0) {
        size_t good = pst_scan_utf8_length(&scan);
        memmove(text + kept, scan.text, good);
        kept += good;
        good += good < scan.bytes; /* the broken one's first byte */
        scan.text += good;
        scan.bytes -= good;
    }
    text[kept] = '\0';
}

void pst_batch_line_fail(pst_batch_line *line, const char *code, const char *format, ...)
{
    if (line->error_code != NULL)
        return;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line->error, sizeof line->error, format, arguments);
    va_end(arguments);
    drop_broken(line->error);
    line->error_code = code;
}

void pst_batch_line_key(const pst_batch_rules *rules, const pst_batch_raw *raw, char *key)
{
    uint64_t hash = pst_hash(rules->key, &raw->index, sizeof raw->index);
    hash = pst_hash(hash, &raw->hash, sizeof raw->hash);
    snprintf(key, 17, "%016llx", (unsigned long long)hash);
}

/* ---- prompts ---- */

int pst_batch_add_prompt(pst_batch_reader *r, pst_tokens *ids, pst_batch_slice text)
{
    pst_batch_line *line = r->line;
    if (line->prompt_count == PST_BATCH_MAX_CHOICES)
        return pst_batch_refuse(r, INVALID, "more than %d prompts in one line", PST_BATCH_MAX_CHOICES);
    if ((line->prompt_count & (line->prompt_count - 1)) == 0) {
        size_t capacity = line->prompt_count != 0 ? line->prompt_count * 2 : 1;
        pst_batch_prompt *grown = pst_heap_reallocarray(line->prompts, capacity, sizeof *grown);
        if (grown == NULL)
            return pst_fail_memory(r->err, "prompts", capacity * sizeof *grown);
        line->prompts = grown;
    }
    line->prompts[line->prompt_count++] = (pst_batch_prompt){*ids, text};
    *ids = (pst_tokens){0};
    return 0;
}

/* With the budget that would do. */
int pst_batch_refuse_memory(const pst_batch_reader *r, uint64_t more_bytes)
{
    const pst_batch_options *o = r->rules->options;
    uint64_t bytes = PST_BATCH_LINE_COST * (uint64_t)r->line->bytes + more_bytes;
    return pst_fail(r->err, PST_E_BUDGET, o->input,
                    "reading line %llu takes up to %.1f MiB, which is more than half of the host memory budget of %.1f "
                    "MiB; %llu MiB are enough",
                    (unsigned long long)r->line->number, (double)bytes / 0x1p20, (double)o->host_memory_bytes / 0x1p20,
                    (unsigned long long)((2 * bytes >> 20) + 1));
}

int pst_batch_encode(pst_batch_reader *r, const char *text, size_t bytes, bool special, uint64_t extra, pst_tokens *out)
{
    const uint64_t most = r->rules->most_text_bytes;
    if (most != 0 && bytes + extra / PST_BATCH_TEXT_COST > most)
        return pst_batch_refuse_memory(r, PST_BATCH_TEXT_COST * (uint64_t)bytes + extra);
    if (bytes > r->line->longest_text_bytes)
        r->line->longest_text_bytes = bytes;
    pst_error cause = {.offset = PST_NO_OFFSET};
    int status = pst_tokenizer_encode(r->rules->tokenizer, text, bytes, special, out, &cause);
    if (status == -ENOMEM) {
        if (r->err != NULL)
            *r->err = cause;
        return status;
    }
    if (status < 0)
        return pst_batch_refuse(r, INVALID, "the tokenizer: %s", cause.message);
    return 0;
}

/* A text of the line to ids. `special`: with the tokens that begin a text. */
static int encode(pst_batch_reader *r, pst_batch_slice text, bool special, pst_tokens *out)
{
    size_t bytes;
    if (r->rules->tokenizer == NULL)
        return pst_batch_refuse(r, INVALID, "this model has no tokenizer: give token ids");
    if (r->rules->most_text_bytes != 0 && text.bytes > r->rules->most_text_bytes)
        return pst_batch_refuse_memory(r, PST_BATCH_TEXT_COST * (uint64_t)text.bytes);
    if (text.bytes > r->line->longest_text_bytes)
        r->line->longest_text_bytes = text.bytes;
    PST_TRY(pst_batch_read_string(r, text, &bytes));
    return r->line->error_code == NULL ? pst_batch_encode(r, r->scratch, bytes, special, 0, out) : 0;
}

static int add_text(pst_batch_reader *r, pst_batch_slice text, const char *what)
{
    pst_tokens ids = {0};
    PST_TRY(encode(r, text, true, &ids));
    if (r->line->error_code != NULL)
        return 0;
    if (text.bytes == 2 || ids.count == 0) { /* also where the tokenizer begins every text with a token of its own */
        pst_tokens_free(&ids);
        return pst_batch_refuse(r, INVALID, "\"%s\" is empty", what);
    }
    int status = pst_batch_add_prompt(r, &ids, text);
    pst_tokens_free(&ids);
    return status;
}

static int add_ids(pst_batch_reader *r, pst_batch_slice list, const char *what)
{
    pst_tokens ids = {0};
    PST_TRY(pst_batch_read_ids(r, list, what, &ids));
    int status = r->line->error_code == NULL ? pst_batch_add_prompt(r, &ids, (pst_batch_slice){0}) : 0;
    pst_tokens_free(&ids);
    return status;
}

/* A list of texts, or of lists of ids. */
static int add_list(pst_batch_reader *r, pst_batch_slice list, const char *what)
{
    pst_scan scan = pst_batch_scan(r, list);
    pst_scan_take(&scan, '[');
    do {
        pst_batch_slice item;
        PST_TRY(pst_batch_take_value(r, &scan, &item));
        if (item.text[0] == '"')
            PST_TRY(add_text(r, item, what));
        else
            PST_TRY(add_ids(r, item, what));
        if (r->line->error_code != NULL)
            return 0;
    } while (pst_scan_take(&scan, ','));
    return 0;
}

static int read_prompt(pst_batch_reader *r, pst_batch_slice prompt, const char *what)
{
    pst_scan scan = pst_batch_scan(r, prompt);
    if (prompt.text[0] == '"')
        return add_text(r, prompt, what);
    if (!pst_scan_take(&scan, '['))
        return pst_batch_refuse(r, INVALID, "\"%s\" is neither a text nor a list of token ids", what);
    bool nested = pst_scan_take(&scan, '[') || pst_batch_next_is(&scan, '"');
    return nested ? add_list(r, prompt, what) : add_ids(r, prompt, what);
}

/* ---- generation ---- */

static int read_stops(pst_batch_reader *r, pst_batch_slice stop)
{
    pst_batch_line *line = r->line;
    if (stop.text == NULL)
        return 0;
    pst_scan scan = pst_batch_scan(r, stop);
    bool is_list = pst_scan_take(&scan, '[');
    if (is_list && pst_scan_take(&scan, ']'))
        return 0;
    if (r->rules->tokenizer == NULL)
        return pst_batch_refuse(r, INVALID, "\"stop\" needs a tokenizer, which this model has not");
    line->stops = pst_heap_calloc(PST_BATCH_MAX_STOPS, sizeof *line->stops);
    if (line->stops == NULL)
        return pst_fail_memory(r->err, "stop texts", PST_BATCH_MAX_STOPS * sizeof *line->stops);
    do {
        pst_batch_slice item;
        size_t bytes;
        PST_TRY(pst_batch_take_value(r, &scan, &item));
        if (item.text[0] != '"' || line->stop_count == PST_BATCH_MAX_STOPS)
            return pst_batch_refuse(r, INVALID, "\"stop\" is neither a text nor a list of at most %d texts",
                                    PST_BATCH_MAX_STOPS);
        PST_TRY(pst_batch_read_string(r, item, &bytes));
        if (r->line->error_code == NULL && bytes == 0)
            return pst_batch_refuse(r, INVALID, "an empty text in \"stop\" would end every text at once");
        if (r->line->error_code != NULL)
            return 0;
        char *copy = pst_heap_strdup(r->scratch);
        if (copy == NULL)
            return pst_fail_memory(r->err, "a stop text", bytes);
        line->stops[line->stop_count++] = copy;
    } while (is_list && pst_scan_take(&scan, ','));
    return 0;
}

static void read_sampling(pst_batch_reader *r, const pst_batch_slice *fields)
{
    pst_batch_line *line = r->line;
    pst_sampling *s = &line->sampling;
    double top_k = 0;
    *s = r->rules->options->sampling;
    s->seed += line->index;
    pst_batch_read_seed(r, fields[PST_FIELD_SEED], &s->seed);
    pst_batch_read_number(r, "temperature", fields[PST_FIELD_TEMPERATURE], 0, 1e6, &s->temperature);
    pst_batch_read_number(r, "top_p", fields[PST_FIELD_TOP_P], 0x1p-1000, 1, &s->top_p);
    pst_batch_read_number(r, "min_p", fields[PST_FIELD_MIN_P], 0, 1, &s->min_p);
    if (fields[PST_FIELD_TOP_K].text != NULL) {
        pst_batch_read_whole(r, "top_k", fields[PST_FIELD_TOP_K], -1, UINT32_MAX, &top_k);
        s->top_k = top_k > 0 ? (uint32_t)top_k : 0;
    }
    bool any = fields[PST_FIELD_TOP_P].text || fields[PST_FIELD_MIN_P].text || fields[PST_FIELD_TOP_K].text;
    if (any && fields[PST_FIELD_TEMPERATURE].text == NULL && s->temperature <= 0)
        s->temperature = 1;
}

static int check_lengths(pst_batch_reader *r)
{
    const pst_batch_line *line = r->line;
    for (size_t i = 0; i < line->prompt_count; i++) {
        size_t tokens = line->prompts[i].ids.count;
        if (tokens + (line->max_new_tokens > 0) > r->rules->limit)
            return pst_batch_refuse(r, "context_length_exceeded",
                                    "a prompt of %zu tokens leaves no room for an answer within %u tokens", tokens,
                                    r->rules->limit);
    }
    return 0;
}

/* A number of likeliest tokens; in conversations true or false, and the number apart. */
static void read_logprobs(pst_batch_reader *r, const pst_batch_slice *fields)
{
    double top = 0;
    pst_batch_slice most = fields[PST_FIELD_LOGPROBS], apart = fields[PST_FIELD_TOP_LOGPROBS];
    if (r->line->is_chat) {
        pst_batch_read_bool(r, "logprobs", most, &r->line->wants_logprobs);
        pst_batch_read_whole(r, "top_logprobs", apart, 0, PST_MAX_TOP_LOGPROBS, &top);
        if (top > 0 && !r->line->wants_logprobs)
            pst_batch_refuse(r, INVALID, "\"top_logprobs\" needs \"logprobs\": true");
        r->line->top_logprobs = (uint32_t)top;
        return;
    }
    if (most.text == NULL || most.text[0] == 'f')
        return;
    pst_batch_read_whole(r, "logprobs", most, 0, PST_MAX_TOP_LOGPROBS, &top);
    r->line->wants_logprobs = true;
    r->line->top_logprobs = (uint32_t)top;
}

/* One of "prompt", "prompt_token_ids" and "messages"; in the envelope as the url says. */
static int check_prompt_fields(pst_batch_reader *r, const pst_batch_slice *fields)
{
    pst_batch_line *line = r->line;
    const bool prompt = fields[PST_FIELD_PROMPT].text != NULL, ids = fields[PST_FIELD_PROMPT_TOKEN_IDS].text != NULL,
               messages = fields[PST_FIELD_MESSAGES].text != NULL;
    if (line->is_openai && line->is_chat != messages)
        return pst_batch_refuse(
            r, INVALID, line->is_chat ? "\"messages\" are missing" : "\"messages\" belong to /v1/chat/completions");
    if (prompt + ids + messages != 1)
        return pst_batch_refuse(r, INVALID, "one of \"prompt\", \"prompt_token_ids\" and \"messages\" must be there");
    line->is_chat = messages;
    return 0;
}

static int read_prompts(pst_batch_reader *r, const pst_batch_slice *fields)
{
    if (r->line->is_chat)
        return pst_batch_read_chat(r, fields);
    if (fields[PST_FIELD_PROMPT].text != NULL)
        return read_prompt(r, fields[PST_FIELD_PROMPT], "prompt");
    return read_prompt(r, fields[PST_FIELD_PROMPT_TOKEN_IDS], "prompt_token_ids");
}

static int read_generation(pst_batch_reader *r, const pst_batch_slice *fields)
{
    pst_batch_line *line = r->line;
    const pst_batch_options *o = r->rules->options;
    double tokens = o->max_new_tokens, copies = 1;
    PST_TRY(check_prompt_fields(r, fields));
    if (line->error_code != NULL)
        return 0;
    pst_batch_slice most = fields[PST_FIELD_MAX_TOKENS];
    most = fields[PST_FIELD_MAX_COMPLETION_TOKENS].text != NULL ? fields[PST_FIELD_MAX_COMPLETION_TOKENS] : most;
    most = fields[PST_FIELD_MAX_NEW_TOKENS].text != NULL ? fields[PST_FIELD_MAX_NEW_TOKENS] : most;
    pst_batch_read_whole(r, "max_tokens", most, 0, 1e9, &tokens);
    pst_batch_read_whole(r, "n", fields[PST_FIELD_N], 1, 128, &copies);
    pst_batch_read_bool(r, "echo", fields[PST_FIELD_ECHO], &line->echo);
    read_logprobs(r, fields);
    line->ignore_end = o->ignore_end;
    pst_batch_read_bool(r, "ignore_eos", fields[PST_FIELD_IGNORE_EOS], &line->ignore_end);
    read_sampling(r, fields);
    pst_batch_refuse_unsupported(r, fields, (uint32_t)copies);
    if (line->error_code != NULL)
        return 0;
    line->max_new_tokens = (uint32_t)tokens;
    line->copies = (uint32_t)copies;
    PST_TRY(read_stops(r, fields[PST_FIELD_STOP]));
    if (line->error_code == NULL)
        PST_TRY(read_prompts(r, fields));
    if (line->error_code != NULL)
        return 0;
    line->choices = line->prompt_count * line->copies;
    if (line->choices > PST_BATCH_MAX_CHOICES)
        return pst_batch_refuse(r, INVALID, "%zu answers to one line, more than %d", line->choices,
                                PST_BATCH_MAX_CHOICES);
    if (line->echo && r->rules->tokenizer == NULL)
        return pst_batch_refuse(r, INVALID, "\"echo\" needs a tokenizer, which this model has not");
    return check_lengths(r);
}

/* ---- scoring ---- */

/* Puts the second one's ids after the first one's. */
static int join_prompts(pst_batch_reader *r)
{
    pst_tokens *first = &r->line->prompts[0].ids, *second = &r->line->prompts[1].ids;
    uint32_t *ids = pst_heap_reallocarray(first->ids, first->count + second->count, sizeof *ids);
    if (ids == NULL)
        return pst_fail_memory(r->err, "token ids", (first->count + second->count) * sizeof *ids);
    memcpy(ids + first->count, second->ids, second->count * sizeof *ids);
    r->line->scored_from = first->count;
    first->ids = ids;
    first->count += second->count;
    pst_tokens_free(second);
    r->line->prompt_count = 1;
    return 0;
}

static int read_completion(pst_batch_reader *r, pst_batch_slice completion)
{
    pst_tokens ids = {0};
    if (completion.text[0] == '"')
        PST_TRY(encode(r, completion, false, &ids));
    else
        PST_TRY(pst_batch_read_ids(r, completion, "completion", &ids));
    if (r->line->error_code == NULL && ids.count == 0)
        pst_batch_refuse(r, INVALID, "\"completion\" is empty");
    int status = r->line->error_code == NULL ? pst_batch_add_prompt(r, &ids, (pst_batch_slice){0}) : 0;
    pst_tokens_free(&ids);
    return status >= 0 && r->line->error_code == NULL ? join_prompts(r) : status;
}

static int read_scoring(pst_batch_reader *r, const pst_batch_slice *fields)
{
    pst_batch_line *line = r->line;
    pst_batch_slice text = fields[PST_FIELD_TEXT], ids = fields[PST_FIELD_TOKEN_IDS];
    pst_batch_slice prompt = fields[PST_FIELD_PROMPT], completion = fields[PST_FIELD_COMPLETION];
    if ((text.text != NULL) + (ids.text != NULL) + (prompt.text != NULL) != 1 ||
        (completion.text != NULL) != (prompt.text != NULL))
        return pst_batch_refuse(r, INVALID,
                                "one of \"text\", \"token_ids\", and \"prompt\" with \"completion\" must be there");
    pst_batch_read_bool(r, "logprobs", fields[PST_FIELD_LOGPROBS], &line->wants_logprobs);
    if (text.text != NULL && text.text[0] != '"')
        pst_batch_refuse(r, INVALID, "\"text\" is not a text");
    if (line->error_code != NULL)
        return 0;
    if (text.text != NULL)
        PST_TRY(add_text(r, text, "text"));
    else if (ids.text != NULL)
        PST_TRY(add_ids(r, ids, "token_ids"));
    else if (prompt.text[0] == '"')
        PST_TRY(add_text(r, prompt, "prompt"));
    else
        PST_TRY(add_ids(r, prompt, "prompt"));
    line->scored_from = 1; /* nothing comes before the first token */
    if (line->error_code == NULL && completion.text != NULL)
        PST_TRY(read_completion(r, completion));
    if (line->error_code != NULL)
        return 0;
    size_t tokens = line->prompts[0].ids.count, window = r->rules->limit;
    if (tokens > 1)
        line->choices = tokens <= window ? 1 : 1 + (tokens - window + window - 2) / (window - 1);
    return 0;
}

/* ---- the envelope ---- */

static int read_url(pst_batch_reader *r, pst_batch_slice url)
{
    size_t bytes;
    if (url.text == NULL || url.text[0] != '"')
        return pst_batch_refuse(r, INVALID, "\"url\" is not a text");
    PST_TRY(pst_batch_read_string(r, url, &bytes)); /* some writers of JSON put a backslash before each slash */
    if (strcmp(r->scratch, "/v1/completions") == 0)
        return 0;
    r->line->is_chat = strcmp(r->scratch, "/v1/chat/completions") == 0;
    if (r->line->is_chat)
        return 0;
    return pst_batch_refuse(r, "invalid_url",
                            "the url %.*s is neither \"/v1/chat/completions\" nor \"/v1/completions\"",
                            (int)(url.bytes < 100 ? url.bytes : 100), url.text);
}

static int read_envelope(pst_batch_reader *r, const pst_batch_slice *top)
{
    pst_batch_line *line = r->line;
    pst_batch_slice fields[PST_FIELD_COUNT] = {0};
    line->is_openai = true;
    line->custom_id = top[PST_FIELD_CUSTOM_ID];
    if (line->custom_id.text == NULL || line->custom_id.text[0] != '"')
        return pst_batch_refuse(r, INVALID, "\"custom_id\" is not a text");
    if (r->rules->options->kind == PST_BATCH_SCORE)
        return pst_batch_refuse(r, "unsupported", "scoring takes plain lines: {\"text\": \"...\"}");
    if (top[PST_FIELD_METHOD].text != NULL && !pst_batch_equals(top[PST_FIELD_METHOD], "POST"))
        return pst_batch_refuse(r, INVALID, "\"method\" is not \"POST\"");
    PST_TRY(read_url(r, top[PST_FIELD_URL]));
    if (line->error_code != NULL)
        return 0;
    if (top[PST_FIELD_BODY].text == NULL || top[PST_FIELD_BODY].text[0] != '{')
        return pst_batch_refuse(r, INVALID, "\"body\" is not an object");
    pst_scan scan = pst_batch_scan(r, top[PST_FIELD_BODY]);
    PST_TRY(pst_batch_collect(r, &scan, true, fields));
    if (line->error_code != NULL)
        return 0;
    line->model = fields[PST_FIELD_MODEL];
    if (line->model.text != NULL && line->model.text[0] != '"')
        return pst_batch_refuse(r, INVALID, "\"model\" is not a text");
    return read_generation(r, fields);
}

static int read_line(pst_batch_reader *r, const pst_batch_raw *raw)
{
    pst_batch_slice top[PST_FIELD_COUNT] = {0};
    if (raw->too_long)
        return pst_batch_refuse(r, "line_too_long", "the line is longer than %d MiB", PST_BATCH_LINE_BYTES >> 20);
    pst_scan scan = pst_batch_scan(r, (pst_batch_slice){r->line->text, raw->bytes});
    PST_TRY(pst_batch_check_json(r, &scan));
    if (r->line->error_code != NULL)
        return 0;
    PST_TRY(pst_batch_collect(r, &scan, false, top));
    bool envelope = top[PST_FIELD_CUSTOM_ID].text || top[PST_FIELD_BODY].text || top[PST_FIELD_URL].text;
    r->line->is_openai = envelope;
    if (r->line->error_code != NULL)
        return 0;
    pst_batch_slice id = envelope ? top[PST_FIELD_CUSTOM_ID] : top[PST_FIELD_ID];
    if (id.text != NULL && strchr("[{tf", id.text[0]) != NULL)
        return pst_batch_refuse(r, INVALID, "\"%s\" is neither a text nor a number", envelope ? "custom_id" : "id");
    r->line->custom_id = id;
    if (envelope)
        return read_envelope(r, top);
    r->line->model = top[PST_FIELD_MODEL];
    return r->rules->options->kind == PST_BATCH_SCORE ? read_scoring(r, top) : read_generation(r, top);
}

int pst_batch_line_read(const pst_batch_rules *rules, const pst_batch_raw *raw, pst_batch_line *out, pst_error *err)
{
    const size_t bytes = raw->too_long ? 0 : raw->bytes; /* what is too long is not looked at */
    *out = (pst_batch_line){.index = raw->index, .number = raw->number, .bytes = bytes};
    out->is_openai = rules->options->kind == PST_BATCH_GENERATE; /* what is no JSON is answered in the envelope, too */
    pst_batch_line_key(rules, raw, out->key);
    out->text = pst_heap_alloc(bytes + 1);
    pst_batch_reader reader = {.rules = rules, .line = out, .err = err, .scratch = pst_heap_alloc(bytes + 1)};
    int status = 0;
    if (out->text == NULL || reader.scratch == NULL) {
        status = pst_fail_memory(err, "a line", bytes);
    } else {
        memcpy(out->text, raw->text, bytes);
        out->text[bytes] = '\0';
        status = read_line(&reader, raw);
    }
    pst_heap_free(reader.scratch);
    if (status >= 0 && rules->options->kind == PST_BATCH_SCORE && out->error_code == NULL) {
        size_t tokens = out->prompts[0].ids.count;
        out->logprobs = pst_heap_calloc(tokens, sizeof *out->logprobs);
        if (out->logprobs == NULL)
            status = pst_fail_memory(err, "log-probabilities", tokens * sizeof *out->logprobs);
    }
    return status < 0 ? status : 0;
}

/* ---- requests ---- */

uint32_t pst_batch_line_new_tokens(const pst_batch_rules *rules, const pst_batch_line *line, size_t prompt)
{
    uint32_t room = rules->limit - (uint32_t)line->prompts[prompt].ids.count;
    return line->max_new_tokens < room ? line->max_new_tokens : room;
}

void pst_batch_line_request(const pst_batch_rules *rules, const pst_batch_line *line, size_t choice, pst_request *out)
{
    const pst_batch_options *o = rules->options;
    size_t prompt = choice / line->copies, copy = choice % line->copies;
    *out = (pst_request){.prompt_ids = line->prompts[prompt].ids.ids,
                         .prompt_count = line->prompts[prompt].ids.count,
                         .max_new_tokens = pst_batch_line_new_tokens(rules, line, prompt),
                         .sampling = line->sampling,
                         .stop_texts = line->stops != NULL ? (const char *const *)line->stops : o->stop_texts,
                         .stop_count = line->stops != NULL ? line->stop_count : o->stop_count,
                         .ignore_end = line->ignore_end,
                         .logprobs = line->wants_logprobs,
                         .prompt_logprobs = line->wants_logprobs && line->echo,
                         .top_logprobs = line->top_logprobs};
    /* The copies of one prompt differ; those of line i are not the first ones of the lines after it. */
    if (copy > 0)
        out->sampling.seed =
            pst_hash(pst_hash(PST_HASH_START, &line->sampling.seed, sizeof line->sampling.seed), &copy, sizeof copy);
}

void pst_batch_line_window(const pst_batch_rules *rules, pst_batch_line *line, size_t choice, pst_score_request *out)
{
    const pst_tokens *ids = &line->prompts[0].ids;
    size_t first = choice * (rules->limit - 1), left = ids->count - first;
    *out = (pst_score_request){.ids = ids->ids + first,
                               .count = left < rules->limit ? left : rules->limit,
                               .logprobs = line->logprobs + first};
}
