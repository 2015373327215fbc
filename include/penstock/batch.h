/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Batch jobs: a file of requests, one JSON object per line, answered line by line into another file, however long that
 * takes and however often it is interrupted.
 *
 * The answers so far lie in a journal beside the output ("<output>.partial"). A job that was killed at any moment, by a
 * signal or by the power, goes on where it was when it is started again; the output then appears whole under its name,
 * byte for byte what an uninterrupted run writes. A line that is wrong is answered with an error and disturbs no other.
 *
 *     pst_batch_open    locks the output, looks at the whole input, finds what is done
 *     pst_batch_get_info: is there anything left? how long are the sequences, how much memory does the job take?
 *     (the caller opens a session that holds them)
 *     pst_batch_run     answers what is missing, publishes the output
 *     pst_batch_close
 *
 * Threads: a batch belongs to one owner thread, that of the session. pst_session_cancel stops a run; what was answered
 * until then stays.
 */
#ifndef PENSTOCK_BATCH_H
#define PENSTOCK_BATCH_H

#include "penstock/model.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct pst_batch pst_batch;

typedef enum pst_batch_kind { PST_BATCH_GENERATE, PST_BATCH_SCORE } pst_batch_kind;

typedef enum pst_batch_phase {
    PST_BATCH_READING,
    PST_BATCH_MEASURING,
    PST_BATCH_RUNNING,
    PST_BATCH_WRITING
} pst_batch_phase;

/* Where a job is. */
typedef struct pst_batch_progress {
    pst_batch_phase phase;
    uint64_t done, total; /* lines when running and writing (those of former runs included), else bytes of the input */
    uint64_t before;      /* of done: what former runs did */
    uint64_t tokens;      /* made, or scored, by this run */
} pst_batch_progress;
/* Called on the owner's thread, often. Nonzero cancels: PST_E_CANCELLED. */
typedef int (*pst_batch_on_progress)(void *user, const pst_batch_progress *progress);

/* Zero means the default of every field. Strings are the caller's and stay as long as the batch. */
typedef struct pst_batch_options {
    size_t struct_size;
    pst_batch_kind kind;
    const char *input;  /* a regular file, or "-": standard input, which cannot be resumed */
    const char *output; /* a file */
    bool restart;       /* forget what former runs did, and replace the output */
    uint32_t context; /* the longest sequence, or window of scoring; 0: the model's context, for scoring at most 2048 */
    /* What a line does not say itself. */
    uint32_t max_new_tokens; /* default 128 */
    pst_sampling sampling;   /* the line number i (from 0, blank lines not counted) uses seed + i */
    const char *const *stop_texts;
    size_t stop_count;
    bool ignore_end;
    pst_batch_on_progress on_progress; /* may be NULL */
    void *user;
    uint64_t host_memory_bytes; /* of the session to come: PST_E_BUDGET for a line that takes too much of it; 0: none */
    double sync_seconds;        /* answers are made durable this often; 0: 5; below zero: after every answer */
    /* For chat templates that ask for the time, which the journal keeps: a job that goes on later still has the time of its
     * first start. Seconds since 1970 of a clock on the wall, the time zone's distance in them. */
    bool has_time;
    int64_t time_seconds;
} pst_batch_options;

/* PST_E_USAGE: options that make no sense, or an output that exists and is none of this job. -EBUSY: another process is
 * working on it. PST_E_FORMAT: a journal of another job or input. The model outlives *out, which the caller owns. */
PST_API int pst_batch_open(pst_model *model, const pst_batch_options *options, pst_batch **out, pst_error *err);
PST_API void pst_batch_close(pst_batch *batch);

typedef struct pst_batch_info {
    bool complete;            /* the output is there, whole: nothing to run */
    uint64_t lines, answered; /* of the input, blank ones not counted; answered by former runs */
    uint64_t failed;          /* of those answered */
    uint64_t requests;        /* sequences that the whole job runs */
    uint32_t max_tokens;      /* the longest sequence; 0: there is nothing to compute */
    uint32_t max_prompt_tokens;
    uint64_t memory_bytes; /* the job's own beside the session, for each sequence in flight ... */
    uint64_t fixed_bytes;  /* ... and in all */
    /* Sums over the requests, for pst_session_choose_batch: positions in whole blocks of 64, prompts, new tokens at most. */
    uint64_t kv_tokens, prompt_tokens, new_tokens;
    bool logprobs, prompt_logprobs; /* what the session's options of these names must say */
} pst_batch_info;
PST_API void pst_batch_get_info(const pst_batch *batch, pst_batch_info *out);

typedef struct pst_batch_report {
    uint64_t lines, answered, failed; /* of the whole job; failed are among the answered */
    uint64_t resumed;                 /* answered by former runs */
} pst_batch_report;

/* session: holds sequences of max_tokens, with all_logits for scoring, else with logprobs and prompt_logprobs as told; NULL
 * when max_tokens is 0 or all lines are answered. report and stats may be NULL; stats are those of this run. PST_E_FORMAT: the answers of former runs were
 * made with other kernels or types, which would not give the same bits. */
PST_API int pst_batch_run(pst_batch *batch, pst_session *session, pst_batch_report *report, pst_run_stats *stats,
                          pst_error *err);

#ifdef __cplusplus
}
#endif
#endif
