/* SPDX-License-Identifier: Apache-2.0 */
/* The fields of a line, over the JSON scanner of store/. */
#include "jobs/batch_fields.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "store/safetensors.h"

static const char INVALID[] = "invalid_request";

static const char *const names[PST_FIELD_COUNT] = {
    [PST_FIELD_CUSTOM_ID] = "custom_id",
    [PST_FIELD_METHOD] = "method",
    [PST_FIELD_URL] = "url",
    [PST_FIELD_BODY] = "body",
    [PST_FIELD_ID] = "id",
    [PST_FIELD_MODEL] = "model",
    [PST_FIELD_PROMPT] = "prompt",
    [PST_FIELD_PROMPT_TOKEN_IDS] = "prompt_token_ids",
    [PST_FIELD_MESSAGES] = "messages",
    [PST_FIELD_MAX_TOKENS] = "max_tokens",
    [PST_FIELD_MAX_COMPLETION_TOKENS] = "max_completion_tokens",
    [PST_FIELD_MAX_NEW_TOKENS] = "max_new_tokens",
    [PST_FIELD_TEMPERATURE] = "temperature",
    [PST_FIELD_TOP_P] = "top_p",
    [PST_FIELD_TOP_K] = "top_k",
    [PST_FIELD_MIN_P] = "min_p",
    [PST_FIELD_SEED] = "seed",
    [PST_FIELD_N] = "n",
    [PST_FIELD_STOP] = "stop",
    [PST_FIELD_ECHO] = "echo",
    [PST_FIELD_IGNORE_EOS] = "ignore_eos",
    [PST_FIELD_LOGPROBS] = "logprobs",
    [PST_FIELD_TEXT] = "text",
    [PST_FIELD_TOKEN_IDS] = "token_ids",
    [PST_FIELD_COMPLETION] = "completion",
    [PST_FIELD_TOOL_CHOICE] = "tool_choice",
    [PST_FIELD_DOCUMENTS] = "documents",
    [PST_FIELD_CHAT_TEMPLATE_KWARGS] = "chat_template_kwargs",
    [PST_FIELD_ADD_GENERATION_PROMPT] = "add_generation_prompt",
    [PST_FIELD_STREAM] = "stream",
    [PST_FIELD_STREAM_OPTIONS] = "stream_options",
    [PST_FIELD_BEST_OF] = "best_of",
    [PST_FIELD_SUFFIX] = "suffix",
    [PST_FIELD_LOGIT_BIAS] = "logit_bias",
    [PST_FIELD_TOP_LOGPROBS] = "top_logprobs",
    [PST_FIELD_PRESENCE_PENALTY] = "presence_penalty",
    [PST_FIELD_FREQUENCY_PENALTY] = "frequency_penalty",
    [PST_FIELD_REPETITION_PENALTY] = "repetition_penalty",
    [PST_FIELD_MIN_TOKENS] = "min_tokens",
    [PST_FIELD_USE_BEAM_SEARCH] = "use_beam_search",
    [PST_FIELD_RESPONSE_FORMAT] = "response_format",
    [PST_FIELD_TOOLS] = "tools",
    [PST_FIELD_PARALLEL_TOOL_CALLS] = "parallel_tool_calls",
    [PST_FIELD_USER] = "user",
    [PST_FIELD_METADATA] = "metadata",
    [PST_FIELD_STORE] = "store",
    [PST_FIELD_SERVICE_TIER] = "service_tier",
};

int pst_batch_refuse(pst_batch_reader *r, const char *code, const char *format, ...)
{
    char text[sizeof r->line->error];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    pst_batch_line_fail(r->line, code, "%s", text);
    return 0;
}

pst_scan pst_batch_scan(pst_batch_reader *r, pst_batch_slice slice)
{
    return (pst_scan){.text = slice.text, .bytes = slice.bytes, .file_offset = (uint64_t)(slice.text - r->line->text)};
}

/* Takes a failure of the scanner for one of the line. */
static int refuse_json(pst_batch_reader *r, const pst_error *cause)
{
    return pst_batch_refuse(r, "invalid_json", "%s (at byte %llu of the line)", cause->message,
                            (unsigned long long)cause->offset);
}

int pst_batch_check_json(pst_batch_reader *r, pst_scan *scan)
{
    pst_error cause = {.offset = 0};
    pst_scan check = *scan;
    check.err = &cause;
    if (pst_scan_utf8(&check) < 0 || pst_scan_skip(&check) < 0 || pst_scan_end(&check) < 0)
        return refuse_json(r, &cause);
    if (!pst_batch_next_is(scan, '{'))
        return pst_batch_refuse(r, INVALID, "the line is not an object");
    return 0;
}

bool pst_batch_next_is(const pst_scan *scan, char c)
{
    pst_scan look = *scan;
    return pst_scan_take(&look, c);
}

int pst_batch_take_value(pst_batch_reader *r, pst_scan *scan, pst_batch_slice *out)
{
    pst_error cause = {.offset = 0};
    scan->err = &cause;
    while (scan->at < scan->bytes && strchr(" \t\r\n", scan->text[scan->at]) != NULL)
        scan->at++;
    size_t begin = scan->at;
    int status = pst_scan_skip(scan);
    scan->err = NULL;
    if (status < 0) { /* not after the check of the whole line */
        *out = (pst_batch_slice){"null", 4};
        return refuse_json(r, &cause);
    }
    *out = (pst_batch_slice){scan->text + begin, scan->at - begin};
    return 0;
}

static size_t find_name(const char *key)
{
    size_t field = 0;
    while (field < PST_FIELD_COUNT && strcmp(names[field], key) != 0)
        field++;
    return field;
}

int pst_batch_collect(pst_batch_reader *r, pst_scan *scan, bool strict, pst_batch_slice *fields)
{
    bool seen[PST_FIELD_COUNT] = {false};
    char quoted[PST_QUOTE_BYTES];
    pst_error cause = {.offset = 0};
    pst_scan_take(scan, '{');
    if (pst_scan_take(scan, '}'))
        return 0;
    do {
        size_t bytes;
        pst_batch_slice value;
        scan->err = &cause;
        if (pst_scan_string(scan, r->scratch, &bytes) < 0)
            return refuse_json(r, &cause);
        size_t field = find_name(r->scratch);
        if (field == PST_FIELD_COUNT && strict)
            return pst_batch_refuse(r, INVALID, "unknown field \"%.100s\"", pst_quote(r->scratch, quoted));
        pst_scan_take(scan, ':');
        PST_TRY(pst_batch_take_value(r, scan, &value));
        if (r->line->error_code != NULL)
            return 0;
        if (field == PST_FIELD_COUNT)
            continue;
        if (seen[field])
            return pst_batch_refuse(r, INVALID, "\"%s\" is there twice", names[field]);
        seen[field] = true;
        if (value.text[0] != 'n') /* null */
            fields[field] = value;
    } while (pst_scan_take(scan, ','));
    return 0;
}

bool pst_batch_equals(pst_batch_slice slice, const char *text)
{
    size_t bytes = strlen(text);
    return slice.text != NULL && slice.bytes == bytes + 2 && slice.text[0] == '"' &&
           memcmp(slice.text + 1, text, bytes) == 0;
}

bool pst_batch_reads(pst_batch_slice slice, const char *json)
{
    for (size_t i = 0; slice.text != NULL && i < slice.bytes; i++) {
        if (strchr(" \t\r\n", slice.text[i]) != NULL && slice.text[i] != '\0')
            continue;
        if (slice.text[i] != *json++)
            return false;
    }
    return slice.text != NULL && *json == '\0';
}

/* ---- values ---- */

int pst_batch_read_string(pst_batch_reader *r, pst_batch_slice slice, size_t *bytes)
{
    pst_error cause = {.offset = 0};
    pst_scan scan = pst_batch_scan(r, slice);
    scan.err = &cause;
    *bytes = 0;
    return pst_scan_string(&scan, r->scratch, bytes) < 0 ? refuse_json(r, &cause) : 0;
}

static size_t count_items(pst_batch_slice slice)
{
    size_t count = 1;
    for (size_t i = 0; i < slice.bytes; i++)
        count += slice.text[i] == ',';
    return count;
}

int pst_batch_read_ids(pst_batch_reader *r, pst_batch_slice slice, const char *name, pst_tokens *out)
{
    pst_scan scan = pst_batch_scan(r, slice);
    if (!pst_scan_take(&scan, '['))
        return pst_batch_refuse(r, INVALID, "\"%s\" is not a list of token ids", name);
    if (pst_scan_take(&scan, ']'))
        return pst_batch_refuse(r, INVALID, "\"%s\" is empty", name);
    size_t most = count_items(slice);
    pst_tokens ids = {.ids = pst_heap_alloc(most * sizeof(uint32_t))};
    if (ids.ids == NULL)
        return pst_fail_memory(r->err, "token ids", most * sizeof(uint32_t));
    do {
        uint64_t id;
        if (pst_scan_u64(&scan, &id) < 0)
            pst_batch_refuse(r, INVALID, "\"%s\" is not a list of token ids", name);
        else if (id >= r->rules->info.vocab)
            pst_batch_refuse(r, INVALID, "token id %llu is outside the vocabulary of %u", (unsigned long long)id,
                             r->rules->info.vocab);
        if (r->line->error_code != NULL) {
            pst_tokens_free(&ids);
            return 0;
        }
        ids.ids[ids.count++] = (uint32_t)id;
    } while (pst_scan_take(&scan, ','));
    *out = ids;
    return 0;
}

/* The number in a value; false: it is none. */
static bool to_number(pst_batch_slice slice, double *out)
{
    char text[64], *end;
    if (slice.bytes >= sizeof text || (slice.text[0] != '-' && (slice.text[0] < '0' || slice.text[0] > '9')))
        return false;
    memcpy(text, slice.text, slice.bytes);
    text[slice.bytes] = '\0';
    *out = strtod(text, &end);
    return *end == '\0' && isfinite(*out);
}

void pst_batch_read_number(pst_batch_reader *r, const char *name, pst_batch_slice slice, double min, double max,
                           double *out)
{
    double value;
    if (slice.text == NULL)
        return;
    if (!to_number(slice, &value) || !(value >= min && value <= max)) {
        pst_batch_refuse(r, INVALID, "\"%s\" is not a number %s %.3g to %.3g", name,
                         min > 0 && min < 1 ? "above" : "from", min > 0 && min < 1 ? 0 : min, max);
        return;
    }
    *out = value;
}

void pst_batch_read_whole(pst_batch_reader *r, const char *name, pst_batch_slice slice, double min, double max,
                          double *out)
{
    double value;
    if (slice.text == NULL)
        return;
    if (!to_number(slice, &value) || floor(value) != value || !(value >= min && value <= max))
        pst_batch_refuse(r, INVALID, "\"%s\" is not a whole number from %.0f to %.0f", name, min, max);
    else
        *out = value;
}

void pst_batch_read_seed(pst_batch_reader *r, pst_batch_slice slice, uint64_t *out)
{
    if (slice.text == NULL)
        return;
    bool negative = slice.text[0] == '-';
    pst_scan scan = pst_batch_scan(r, (pst_batch_slice){slice.text + negative, slice.bytes - negative});
    uint64_t value;
    if (pst_scan_u64(&scan, &value) < 0 || pst_scan_end(&scan) < 0 || (negative && value > (uint64_t)INT64_MAX + 1))
        pst_batch_refuse(r, INVALID, "\"seed\" is not a whole number of at most 64 bits");
    else
        *out = negative ? 0 - value : value;
}

void pst_batch_read_bool(pst_batch_reader *r, const char *name, pst_batch_slice slice, bool *out)
{
    if (slice.text == NULL)
        return;
    if (slice.text[0] != 't' && slice.text[0] != 'f')
        pst_batch_refuse(r, INVALID, "\"%s\" is not true or false", name);
    else
        *out = slice.text[0] == 't';
}

void pst_batch_refuse_unsupported(pst_batch_reader *r, const pst_batch_slice *fields, uint32_t copies)
{
    /* The number with which each asks for nothing; empty values and false do, too. */
    const struct {
        pst_batch_field field;
        double nothing;
    } rows[] = {
        {PST_FIELD_STREAM, NAN},         {PST_FIELD_STREAM_OPTIONS, NAN},  {PST_FIELD_BEST_OF, copies},
        {PST_FIELD_SUFFIX, NAN},         {PST_FIELD_LOGIT_BIAS, NAN},      {PST_FIELD_TOP_LOGPROBS, 0},
        {PST_FIELD_PRESENCE_PENALTY, 0}, {PST_FIELD_FREQUENCY_PENALTY, 0}, {PST_FIELD_REPETITION_PENALTY, 1},
        {PST_FIELD_MIN_TOKENS, 0},       {PST_FIELD_USE_BEAM_SEARCH, NAN}, {PST_FIELD_RESPONSE_FORMAT, NAN},
        {PST_FIELD_TOOLS, NAN},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        pst_batch_slice value = fields[rows[i].field];
        double number;
        if (r->line->is_chat && (rows[i].field == PST_FIELD_TOP_LOGPROBS || rows[i].field == PST_FIELD_TOOLS))
            continue;
        if (value.text == NULL || value.text[0] == 'f' || pst_batch_equals(value, "") || pst_batch_reads(value, "{}") ||
            pst_batch_reads(value, "[]"))
            continue;
        if (rows[i].field == PST_FIELD_RESPONSE_FORMAT && pst_batch_reads(value, "{\"type\":\"text\"}"))
            continue;
        if (to_number(value, &number) && number == rows[i].nothing)
            continue;
        pst_batch_refuse(r, "unsupported", "\"%s\" is not supported", names[rows[i].field]);
        return;
    }
}
