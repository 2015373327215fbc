/* SPDX-License-Identifier: Apache-2.0 */
/* The fields of a line and the types of their values: what batch_line.c is made of. */
#ifndef PST_JOBS_BATCH_FIELDS_H
#define PST_JOBS_BATCH_FIELDS_H

#include "jobs/batch_line.h"
#include "store/json_scan.h"

typedef enum pst_batch_field {
    PST_FIELD_CUSTOM_ID,
    PST_FIELD_METHOD,
    PST_FIELD_URL,
    PST_FIELD_BODY,
    PST_FIELD_ID,
    PST_FIELD_MODEL,
    PST_FIELD_PROMPT,
    PST_FIELD_PROMPT_TOKEN_IDS,
    PST_FIELD_MESSAGES,
    PST_FIELD_MAX_TOKENS,
    PST_FIELD_MAX_COMPLETION_TOKENS,
    PST_FIELD_MAX_NEW_TOKENS,
    PST_FIELD_TEMPERATURE,
    PST_FIELD_TOP_P,
    PST_FIELD_TOP_K,
    PST_FIELD_MIN_P,
    PST_FIELD_SEED,
    PST_FIELD_N,
    PST_FIELD_STOP,
    PST_FIELD_ECHO,
    PST_FIELD_IGNORE_EOS,
    PST_FIELD_LOGPROBS,
    PST_FIELD_TEXT,
    PST_FIELD_TOKEN_IDS,
    PST_FIELD_COMPLETION,
    /* of conversations */
    PST_FIELD_TOOL_CHOICE,
    PST_FIELD_DOCUMENTS,
    PST_FIELD_CHAT_TEMPLATE_KWARGS,
    PST_FIELD_ADD_GENERATION_PROMPT,
    /* known, and refused unless they ask for nothing */
    PST_FIELD_STREAM,
    PST_FIELD_STREAM_OPTIONS,
    PST_FIELD_BEST_OF,
    PST_FIELD_SUFFIX,
    PST_FIELD_LOGIT_BIAS,
    PST_FIELD_TOP_LOGPROBS,
    PST_FIELD_PRESENCE_PENALTY,
    PST_FIELD_FREQUENCY_PENALTY,
    PST_FIELD_REPETITION_PENALTY,
    PST_FIELD_MIN_TOKENS,
    PST_FIELD_USE_BEAM_SEARCH,
    PST_FIELD_RESPONSE_FORMAT,
    PST_FIELD_TOOLS,
    /* of no consequence here */
    PST_FIELD_PARALLEL_TOOL_CALLS,
    PST_FIELD_USER,
    PST_FIELD_METADATA,
    PST_FIELD_STORE,
    PST_FIELD_SERVICE_TIER,
    PST_FIELD_COUNT
} pst_batch_field;

/* A line being read. Functions that return int: below zero the run fails; what is wrong with the line is in line. */
typedef struct pst_batch_reader {
    const pst_batch_rules *rules;
    pst_batch_line *line;
    char *scratch; /* as long as the line: for one decoded string */
    pst_error *err;
} pst_batch_reader;

/* pst_batch_line_fail; returns 0. */
int pst_batch_refuse(pst_batch_reader *reader, const char *code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* A scanner at the beginning of a value. */
pst_scan pst_batch_scan(pst_batch_reader *reader, pst_batch_slice slice);
/* Whether the whole line is one object in well-formed JSON; leaves scan at its beginning. */
int pst_batch_check_json(pst_batch_reader *reader, pst_scan *scan);
/* Notes where the known keys of the object have their values; null is as if it were not there. strict: unknown keys
 * are refused, else passed over. The object's JSON was checked. */
int pst_batch_collect(pst_batch_reader *reader, pst_scan *scan, bool strict, pst_batch_slice *fields);
/* The next value as it stands there. */
int pst_batch_take_value(pst_batch_reader *reader, pst_scan *scan, pst_batch_slice *out);
bool pst_batch_next_is(const pst_scan *scan, char c);
/* Whether the value is this text, with no escapes in it. */
bool pst_batch_equals(pst_batch_slice slice, const char *text);
/* Whether the value is this JSON, which is written without blanks. */
bool pst_batch_reads(pst_batch_slice slice, const char *json);

/* Values; a slice that is not there leaves *out as it is. A text goes to scratch. */
int pst_batch_read_string(pst_batch_reader *reader, pst_batch_slice slice, size_t *bytes);
int pst_batch_read_ids(pst_batch_reader *reader, pst_batch_slice slice, const char *name, pst_tokens *out);
void pst_batch_read_number(pst_batch_reader *reader, const char *name, pst_batch_slice slice, double min, double max,
                           double *out);
void pst_batch_read_whole(pst_batch_reader *reader, const char *name, pst_batch_slice slice, double min, double max,
                          double *out);
void pst_batch_read_seed(pst_batch_reader *reader, pst_batch_slice slice, uint64_t *out);
void pst_batch_read_bool(pst_batch_reader *reader, const char *name, pst_batch_slice slice, bool *out);
/* What batch_line.c gives batch_chat.c: text to ids (special: with the tokens that begin a text; extra: bytes of
 * memory that are taken beside it), and ids to a prompt, which takes them unless it fails. */
int pst_batch_encode(pst_batch_reader *reader, const char *text, size_t bytes, bool special, uint64_t extra,
                     pst_tokens *out);
int pst_batch_add_prompt(pst_batch_reader *reader, pst_tokens *ids, pst_batch_slice text);
/* That reading the line takes so many bytes more than its own, beyond the budget: fails the run. */
int pst_batch_refuse_memory(const pst_batch_reader *reader, uint64_t more_bytes);
/* The line's conversation to its prompt, by the model's chat template. */
int pst_batch_read_chat(pst_batch_reader *reader, const pst_batch_slice *fields);

/* Refuses fields that ask for what is not there. */
void pst_batch_refuse_unsupported(pst_batch_reader *reader, const pst_batch_slice *fields, uint32_t copies);

#endif
