/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One line of a batch job: read, checked, turned into token ids. Hostile until checked: what is wrong with a line is an
 * error of that line, which says nothing of other lines or of the run, so that its answer is the same in every run.
 *
 * A line gives one or more choices: prompts times n for generation, windows of its text for scoring.
 */
#ifndef PST_JOBS_BATCH_LINE_H
#define PST_JOBS_BATCH_LINE_H

#include "jobs/batch_input.h"
#include "penstock/batch.h"
#include "penstock/model.h"

enum { PST_BATCH_MAX_CHOICES = 4096, PST_BATCH_MAX_STOPS = 32 };

/* Bytes of the line as they stand there: JSON of one value. text NULL: it is not there, or null. */
typedef struct pst_batch_slice {
    const char *text;
    size_t bytes;
} pst_batch_slice;

typedef struct pst_batch_prompt {
    pst_tokens ids;
    pst_batch_slice text; /* as it was given; NULL: as ids */
} pst_batch_prompt;

/* What stays the same for all lines. */
typedef struct pst_batch_rules {
    const pst_batch_options *options;
    const pst_tokenizer *tokenizer; /* NULL: the model has none; then ids alone */
    const pst_chat_template *chat;  /* NULL: none, and why: */
    char no_chat[200];
    bool has_time; /* of day, for chat templates */
    int64_t time_seconds;
    pst_model_info info;
    uint32_t limit; /* tokens of a sequence; of a window when scoring */
    uint64_t key;   /* of the job: the model's shape and all that decides answers */
    uint64_t
        most_text_bytes; /* of a text that may be encoded, for which there is memory; 0: any. A longer one of a line
                               * that is good so far is a failure of the run, PST_E_BUDGET */
} pst_batch_rules;

/* Bytes of memory that reading a line takes, by its own bytes: what it is read and copied into, and its ids; and by those of
 * its longest text: what a tokenizer takes, and what the heap keeps of that. */
enum { PST_BATCH_LINE_COST = 8, PST_BATCH_TEXT_COST = 40 };

typedef struct pst_batch_line {
    char *text; /* the line; owned, as all pointers below except slices, which point into it */
    size_t bytes;
    uint64_t index, number;
    char key[17];              /* hexadecimal; what ids in the answer are made of */
    bool is_openai;            /* the envelope {custom_id, method, url, body} */
    bool is_chat;              /* a conversation: its one prompt is what the chat template made of it */
    pst_batch_slice custom_id; /* or "id" of a plain line */
    pst_batch_slice model;
    pst_batch_prompt *prompts; /* by generation the prompts, by scoring one text */
    size_t prompt_count;
    size_t choices;            /* how many requests; scoring a single token takes none */
    size_t longest_text_bytes; /* of the texts that were encoded, as they stand in the line */
    uint64_t chat_bytes;       /* of memory that making a conversation's text takes */

    uint32_t copies; /* n: choices per prompt */
    uint32_t max_new_tokens;
    pst_sampling sampling;
    char **stops;
    size_t stop_count;
    bool ignore_end, echo;

    bool wants_logprobs;   /* in the answer; with `echo` also those of the prompt */
    uint32_t top_logprobs; /* of so many likeliest tokens, too; not by scoring */

    size_t scored_from; /* scoring: tokens before this one are given and not scored */
    double *logprobs;   /* of the whole text, made by the run */

    const char *error_code; /* NULL: the line is good. Static storage */
    char error[320];
} pst_batch_line;

/* Reads a line. Below zero only for failures of the run (memory); what is wrong with the line is in it. The caller owns
 * *out, with pst_batch_line_free, in both cases. */
int pst_batch_line_read(const pst_batch_rules *rules, const pst_batch_raw *raw, pst_batch_line *out, pst_error *err);
void pst_batch_line_free(pst_batch_line *line);
/* Makes it a failed line, unless it is one already. */
void pst_batch_line_fail(pst_batch_line *line, const char *code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* The key alone, without reading the line. */
void pst_batch_line_key(const pst_batch_rules *rules, const pst_batch_raw *raw, char *key);

/* Tokens to make for a prompt: those asked for, as far as there is room. */
uint32_t pst_batch_line_new_tokens(const pst_batch_rules *rules, const pst_batch_line *line, size_t prompt);
/* The request of a choice; its memory is the line's. */
void pst_batch_line_request(const pst_batch_rules *rules, const pst_batch_line *line, size_t choice, pst_request *out);
/* The window of a choice. */
void pst_batch_line_window(const pst_batch_rules *rules, pst_batch_line *line, size_t choice, pst_score_request *out);

#endif
