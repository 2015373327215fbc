/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The answer to a line. Nothing in it depends on when or how it came about: its ids come from the line, and there is no
 * clock. The line's key is in every answer, which tells an output of this job from others.
 */
#include <errno.h>
#include <math.h>
#include <string.h>

#include "base/error.h"
#include "jobs/batch_internal.h"

static void add_slice(pst_json_text *out, pst_batch_slice slice, const char *otherwise)
{
    if (slice.text != NULL)
        pst_json_text_bytes(out, slice.text, slice.bytes);
    else
        pst_json_text_add(out, "%s", otherwise);
}

static void add_real(pst_json_text *out, double value)
{
    if (isfinite(value))
        pst_json_text_add(out, "%.17g", value);
    else
        pst_json_text_add(out, "null");
}

/* The text of a choice, quoted; with `echo` after its prompt. */
static int add_text(const pst_batch *b, const pst_batch_line *line, const pst_batch_prompt *prompt,
                    const pst_result *result, pst_json_text *out, pst_error *err)
{
    pst_json_text_add(out, "\"");
    if (line->echo && prompt->text.text != NULL) {
        pst_json_text_bytes(out, prompt->text.text + 1, prompt->text.bytes - 2);
    } else if (line->echo) {
        char *text;
        size_t bytes;
        PST_TRY(pst_tokenizer_decode(b->rules.tokenizer, prompt->ids.ids, prompt->ids.count, true, &text, &bytes, err));
        pst_json_text_escaped(out, text, bytes);
        pst_text_free(text);
    }
    if (result->text != NULL)
        pst_json_text_escaped(out, result->text, result->text_bytes);
    pst_json_text_add(out, "\"");
    return 0;
}

/* The members of a choice: text, ids where the prompt was ids, why it ended. */
static int add_choice(const pst_batch *b, const pst_batch_line *line, size_t choice, const pst_result *result,
                      pst_json_text *out, pst_error *err)
{
    const pst_batch_prompt *prompt = &line->prompts[choice / line->copies];
    pst_json_text_add(out, line->is_chat ? "\"message\": {\"role\": \"assistant\", \"content\": " : "\"text\": ");
    if (result->text == NULL && !line->is_openai)
        pst_json_text_add(out, "null");
    else
        PST_TRY(add_text(b, line, prompt, result, out, err));
    if (line->is_chat) {
        pst_json_text_add(out, "}");
    } else if (prompt->text.text == NULL) {
        pst_json_text_add(out, ", \"token_ids\": [");
        for (size_t i = 0; i < result->ids.count; i++)
            pst_json_text_add(out, i > 0 ? ", %u" : "%u", result->ids.ids[i]);
        pst_json_text_add(out, "]");
    }
    if (line->is_openai || line->wants_logprobs)
        pst_json_text_add(out, ", \"logprobs\": ");
    if (line->wants_logprobs && line->is_chat)
        PST_TRY(pst_batch_add_chat_logprobs(b, result, out, err));
    else if (line->wants_logprobs)
        PST_TRY(pst_batch_add_logprobs(b, line, prompt, result, out, err));
    else if (line->is_openai)
        pst_json_text_add(out, "null");
    pst_json_text_add(out, ", \"finish_reason\": \"%s\"", result->finish == PST_FINISH_LENGTH ? "length" : "stop");
    return 0;
}

static int add_choices(const pst_batch *b, const pst_batch_line *line, const pst_result *results, pst_json_text *out,
                       pst_error *err)
{
    pst_json_text_add(out, "\"choices\": [");
    for (size_t i = 0; i < line->choices; i++) {
        pst_json_text_add(out, i > 0 ? ", {\"index\": %zu, " : "{\"index\": %zu, ", i);
        PST_TRY(add_choice(b, line, i, &results[i], out, err));
        pst_json_text_add(out, "}");
    }
    pst_json_text_add(out, "]");
    return 0;
}

static void add_usage(const pst_batch_line *line, const pst_result *results, pst_json_text *out)
{
    size_t prompt = 0, made = 0;
    for (size_t i = 0; i < line->prompt_count; i++)
        prompt += line->prompts[i].ids.count;
    for (size_t i = 0; i < line->choices; i++)
        made += results[i].ids.count;
    pst_json_text_add(out, "\"usage\": {\"prompt_tokens\": %zu, \"completion_tokens\": %zu, \"total_tokens\": %zu}",
                      prompt, made, prompt + made);
}

static int answer_openai(const pst_batch *b, const pst_batch_line *line, const pst_result *results, pst_json_text *out,
                         pst_error *err)
{
    bool failed = line->error_code != NULL;
    bool ours = failed && strcmp(line->error_code, "server_error") == 0;
    pst_json_text_add(out, "{\"id\": \"batch_req_%s\", \"custom_id\": ", line->key);
    add_slice(out, line->custom_id, "null");
    pst_json_text_add(out, ", \"response\": {\"status_code\": %d, \"request_id\": \"req_%s\", \"body\": {",
                      ours     ? 500
                      : failed ? 400
                               : 200,
                      line->key);
    if (failed) {
        pst_json_text_add(out, "\"error\": {\"message\": ");
        pst_json_text_string(out, line->error);
        pst_json_text_add(out, ", \"type\": \"%s\", \"param\": null, \"code\": \"%s\"}}}, ",
                          ours ? "server_error" : "invalid_request_error", line->error_code);
        pst_json_text_add(out, "\"error\": {\"code\": \"%s\", \"message\": ", line->error_code);
        pst_json_text_string(out, line->error);
        pst_json_text_add(out, "}}\n");
        return 0;
    }
    pst_json_text_add(
        out, "\"id\": \"%s-%s\", \"object\": \"%s\", \"created\": 0, \"model\": ", line->is_chat ? "chatcmpl" : "cmpl",
        line->key, line->is_chat ? "chat.completion" : "text_completion");
    if (line->model.text != NULL)
        add_slice(out, line->model, "null");
    else
        pst_json_text_string(out, b->model_name);
    pst_json_text_add(out, ", ");
    PST_TRY(add_choices(b, line, results, out, err));
    pst_json_text_add(out, ", ");
    add_usage(line, results, out);
    pst_json_text_add(out, "}}, \"error\": null}\n");
    return 0;
}

static void add_scores(const pst_batch_line *line, pst_json_text *out)
{
    size_t count = line->prompts[0].ids.count, from = line->scored_from;
    double sum = 0;
    for (size_t i = from; i < count; i++)
        sum += line->logprobs[i - 1];
    pst_json_text_add(out, "\"tokens\": %zu, \"sum\": ", count - from);
    add_real(out, sum);
    pst_json_text_add(out, ", \"perplexity\": ");
    add_real(out, count > from ? exp(-sum / (double)(count - from)) : NAN);
    if (!line->wants_logprobs)
        return;
    pst_json_text_add(out, ", \"logprobs\": [");
    for (size_t i = from; i < count; i++) {
        if (i > from)
            pst_json_text_add(out, ", ");
        add_real(out, line->logprobs[i - 1]);
    }
    pst_json_text_add(out, "]");
}

static int answer_plain(const pst_batch *b, const pst_batch_line *line, const pst_result *results, pst_json_text *out,
                        pst_error *err)
{
    pst_json_text_add(out, "{");
    if (line->custom_id.text != NULL) {
        pst_json_text_add(out, "\"id\": ");
        add_slice(out, line->custom_id, "null");
        pst_json_text_add(out, ", ");
    }
    pst_json_text_add(out, "\"request_id\": \"%s\", ", line->key);
    if (line->error_code != NULL) {
        pst_json_text_add(out, "\"error\": {\"code\": \"%s\", \"message\": ", line->error_code);
        pst_json_text_string(out, line->error);
        pst_json_text_add(out, "}}\n");
        return 0;
    }
    if (b->options.kind == PST_BATCH_SCORE) {
        add_scores(line, out);
    } else {
        if (line->prompt_count == 1 && line->prompts[0].text.text != NULL) {
            pst_json_text_add(out, "\"prompt\": ");
            add_slice(out, line->prompts[0].text, "null");
            pst_json_text_add(out, ", ");
        }
        PST_TRY(line->choices == 1 ? add_choice(b, line, 0, results, out, err)
                                   : add_choices(b, line, results, out, err));
        pst_json_text_add(out, ", ");
        add_usage(line, results, out);
    }
    pst_json_text_add(out, "}\n");
    return 0;
}

int pst_batch_answer(const pst_batch *b, const pst_batch_line *line, const pst_result *results, pst_json_text *out,
                     pst_error *err)
{
    PST_TRY(line->is_openai ? answer_openai(b, line, results, out, err) : answer_plain(b, line, results, out, err));
    return out->failed ? pst_fail_memory(err, "an answer", out->bytes) : 0;
}

uint64_t pst_batch_line_memory(const pst_batch_rules *rules, const pst_batch_line *line, size_t bytes)
{
    /* The line, its ids, and twice what is made of it: the results, and the answer. By the token: an id, about twelve bytes
     * of text that grows by doubling, the same as JSON; or the digits of a log-probability. With log-probabilities two of them,
     * where it is in the text, and a word and a number for each of the likeliest. */
    enum { LINE_BYTES = 4096, CHOICE_BYTES = 2048, TOKEN_BYTES = 96, LOGPROB_BYTES = 208 };
    const bool generates = rules->options->kind == PST_BATCH_GENERATE;
    const uint64_t each = generates && line->wants_logprobs ? (2 + (uint64_t)line->top_logprobs) * LOGPROB_BYTES : 0;
    uint64_t tokens = 0, made = 0, told = 0;
    for (size_t i = 0; i < line->prompt_count; i++) {
        tokens += line->prompts[i].ids.count;
        if (generates)
            made += (uint64_t)line->copies * pst_batch_line_new_tokens(rules, line, i);
        else
            made += line->prompts[i].ids.count;
        told += line->echo ? (uint64_t)line->copies * line->prompts[i].ids.count : 0;
    }
    return LINE_BYTES + 2 * bytes + 8 * tokens + line->choices * CHOICE_BYTES + made * TOKEN_BYTES +
           (made + told) * each;
}
