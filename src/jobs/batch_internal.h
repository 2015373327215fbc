/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of a batch job share. */
#ifndef PST_JOBS_BATCH_INTERNAL_H
#define PST_JOBS_BATCH_INTERNAL_H

#include "jobs/batch_journal.h"
#include "jobs/batch_line.h"
#include "store/json_text.h"

/* A line on its way: some of its choices are given to the session, some answered. */
typedef struct pst_batch_group {
    pst_batch_line line;
    pst_result *results; /* generation: one per choice; freed with the group */
    size_t given, ended;
    struct pst_batch_group *previous, *next; /* of all groups */
} pst_batch_group;

/* A request that the session has. */
typedef struct pst_batch_entry {
    size_t number;
    pst_batch_group *group;
    size_t choice;
} pst_batch_entry;

struct pst_batch {
    pst_model *model;
    pst_batch_options options;
    pst_batch_rules rules;
    char *journal_path;
    const char *model_name; /* the folder's own name, for answers */
    pst_batch_input *input;
    pst_journal *journal;
    uint64_t input_digest, model_digest;
    pst_batch_info info;
    pst_batch_progress progress;

    pst_batch_group *groups, *current; /* current: has choices that were not given yet */
    pst_batch_entry *entries;
    size_t entry_count, entry_capacity, given;
    uint64_t last_sync_ns;
    uint32_t vocab;
};

/* Tells how far the job is; fails when the caller cancels. */
int pst_batch_tell(pst_batch *batch, pst_error *err);
/* The header of the journal, for numbers of these types (pst_batch_types); heap. NULL: out of memory. */
char *pst_batch_header(const pst_batch *batch, const char *types);
enum { PST_BATCH_TYPES_BYTES = 128 };
/* All that a session decides answers by. */
void pst_batch_types(pst_session *session, char *out);
/* Whether the journal's header is that of this job; fills what it knows of the input. */
int pst_batch_check_header(pst_batch *batch, const char *header, pst_error *err);
int pst_batch_check_types(const pst_batch *batch, const char *types, pst_error *err);

/* The answer to a line that is done or failed, as one line with its end. results: of its choices, by generation. */
int pst_batch_answer(const pst_batch *batch, const pst_batch_line *line, const pst_result *results, pst_json_text *out,
                     pst_error *err);

/* The log-probabilities of a choice, with `echo` its prompt's before them: OpenAI's object "logprobs" of completions. */
int pst_batch_add_logprobs(const pst_batch *batch, const pst_batch_line *line, const pst_batch_prompt *prompt,
                           const pst_result *result, pst_json_text *out, pst_error *err);
/* The same in a conversation's answer, which has another shape. */
int pst_batch_add_chat_logprobs(const pst_batch *batch, const pst_result *result, pst_json_text *out, pst_error *err);

/* Takes it off the list and frees it. */
void pst_batch_drop_group(pst_batch *batch, pst_batch_group *group);

/* What a line takes in memory while it is on its way. */
uint64_t pst_batch_line_memory(const pst_batch_rules *rules, const pst_batch_line *line, size_t bytes);

/* Takes samples of the weights into *key: the same for the same numbers, however they are cut into files or drives. So an
 * output is not taken for that of another model of the same shape. */
int pst_batch_weights_key(const pst_model *model, uint64_t *key, pst_error *err);

#endif
