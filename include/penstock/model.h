/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inference with weights that need not fit in memory.
 *
 * A model is a checkpoint that was understood: its configuration, its table of tensors, its tokenizer; no weights.
 * A session is a plan under a memory budget with its memory: weights kept resident, a ring that streams the rest, the
 * KV cache of `max_sequences` sequences. Each pst_session_step carries rows of all sequences through the weights once.
 * pst_generate and pst_score run a session for whole requests, their _stream forms for any number of them.
 *
 * Why so narrow: what a pass costs is decided by the plan, so the plan is made once per session from the whole shape of
 * the work, and nothing grows afterwards.
 *
 * Threads: a model is immutable and may serve several sessions at once; a session belongs to one owner thread.
 * pst_session_cancel alone may be called from any thread or a signal handler. Strings in options must live as long as the
 * session.
 */
#ifndef PENSTOCK_MODEL_H
#define PENSTOCK_MODEL_H

#include <stdbool.h>

#include "penstock/chat.h"
#include "penstock/tokenizer.h"
#include "penstock/types.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct pst_model pst_model;
typedef struct pst_session pst_session;
typedef struct pst_trace pst_trace;

/* ---- model ---- */

/* model: a folder, or "org/name" looked up in `cache` (a Hugging Face hub folder; NULL: folders only).
 * The caller owns *out, which outlives its sessions. A missing tokenizer is no error here. */
PST_API int pst_model_open(const char *model, const char *cache, pst_model **out, pst_error *err);
PST_API void pst_model_close(pst_model *model);

typedef struct pst_model_info {
    const char *path;   /* the folder; strings live as long as the model */
    const char *family; /* "llama", "mistral", ...: model_type in config.json */
    uint64_t parameters;
    uint64_t weight_bytes;
    uint32_t layers, hidden, heads, kv_heads, head_dim, intermediate, vocab, context;
    pst_dtype weight_type;   /* of its matrices */
    const uint32_t *end_ids; /* tokens that end a text */
    size_t end_count;
    bool do_sample; /* generation_config.json's defaults; greedy when it has none */
    double temperature, top_p, min_p;
    uint32_t top_k;
} pst_model_info;
PST_API void pst_model_get_info(const pst_model *model, pst_model_info *out);
/* The tokenizer, opened at first use (thread-safe); the model's. Fails when the folder has none or a broken one. */
PST_API int pst_model_tokenizer(pst_model *model, const pst_tokenizer **out, pst_error *err);
/* The chat template likewise; -ENOENT when the folder has none. */
PST_API int pst_model_chat_template(pst_model *model, const pst_chat_template **out, pst_error *err);

/* ---- session ---- */

typedef enum pst_compute_type { PST_COMPUTE_AUTO, PST_COMPUTE_F32, PST_COMPUTE_BF16 } pst_compute_type;

/* Receives the experts of one row after its pass: `layers` lists of `per_token` numbers, those of the first layer with
 * experts first. sequence: how many were added to the session before; nonzero cancels. */
typedef int (*pst_on_routing)(void *user, uint64_t sequence, uint32_t position, const uint32_t *experts,
                              uint32_t layers, uint32_t per_token);

/* Zero means the default of every field, unless it says otherwise. */
typedef struct pst_session_options {
    size_t struct_size;
    uint64_t host_memory_bytes; /* bound of the whole process; 0: a sensible share of what is free */
    double resident_share;      /* with resident_set: share of the weights to keep, 0 to 1 */
    uint64_t resident_bytes;    /* with resident_set and resident_share < 0: bytes of weights to keep */
    bool resident_set;          /* false: whatever fits */
    uint32_t max_sequences;     /* in flight at once; default 1 */
    uint32_t max_tokens;        /* positions per sequence, prompt and generated; required */
    uint32_t max_prompt_tokens; /* the longest prompt; default max_tokens */
    bool all_logits;            /* logits of every prompt row will be asked for (scoring) */
    pst_compute_type
        compute_type; /* auto: bf16 where all matrices of the checkpoint are, from 100 million parameters on; else f32 */
    uint32_t
        kv_bits; /* 32, 16, 8 or 4; 0: 16 for 16-bit checkpoints from 100 million parameters on unless f32 is asked for, else 32 */
    uint32_t threads;        /* compute threads; 0: all processors */
    uint64_t max_slot_bytes; /* no slot of the ring larger than this, as far as rows allow; 0: the planner's choice */
    const char *io_engine;   /* as in pst_io_options, as the next two; NULL: "auto" */
    uint64_t block_size;     /* bytes of one read; 0: default */
    uint32_t queue_depth;    /* reads in flight for each worker; 0: default */
    const char *kernels;     /* NULL: the best of this processor */
    bool measure_bound;      /* measure drive bandwidth and compute rate first (a second or less) for the bound */
    pst_trace *trace;        /* NULL: none; the caller's, outlives the session */
    uint32_t io_workers;     /* threads that share every read; 0: default */
    bool io_single_submit;   /* one system call per read */
    /* Models with experts: "zipf:S[:SEED]", "uniform[:SEED]" or a file of JSON lines, a list of the layers' lists of experts
     * per token, replaces what the routers choose (not the weights that they give); NULL: nothing does. */
    const char *routing_trace;
    pst_on_routing on_routing; /* NULL: none; on the owner's thread, in the steps */
    void *on_routing_user;
    uint32_t max_layers; /* only the first so many layers and the head are computed: to measure with, the results are
                              * not the model's; 0: all */
    bool
        no_prefix_sharing; /* compute every prompt whole; else sequences that begin with the same tokens share their keys and
                             * values in blocks of 64, those of ended ones included while there is room; the results are the same */
    bool keep_all_weights; /* all weights in memory, or PST_E_BUDGET with the budget that this takes */
    bool
        lock_memory; /* weights that are kept and the ring are never paged out; fails where the user may not lock as much */
    bool expert_cache_set;       /* false: what fits and may be kept */
    uint64_t expert_cache_bytes; /* with expert_cache_set: most bytes of experts to keep from pass to pass; 0: none */
    /* Keeps keys and values in a file in this folder (made if need be), which has no name and goes with the session; only what
     * attention is at, and the last, unfilled block of every sequence, is in memory. NULL: all in memory. The results are the
     * same. */
    const char *kv_folder;
    uint64_t
        kv_window_bytes; /* with kv_folder or kv_offload: memory for blocks on their way, the host's and an accelerator's each; 0:
                          * 192 MiB, less with a small budget, or what the longest sequence needs */
    /* Positions that the KV cache holds for all sequences together, in blocks of 64 of which a sequence has whole ones; never
     * fewer than max_tokens. Whole requests start in order when all that they may become fits, prompt and max_new_tokens, so
     * fewer than max_sequences may run at a time. 0: max_sequences times max_tokens. */
    uint64_t kv_tokens;
    const char *device; /* which computes, by its name (device.h); NULL: "host" */
    uint64_t
        device_memory_bytes; /* bound of what is taken of an accelerator's memory; 0: what is free, less a reserve */
    /* Only whole requests are generated, and pst_session_step is not called: then an accelerator's logits stay where they are,
     * and the host has room for some rows of them only. With all_logits, too: pst_on_logits is not given them. */
    bool requests_only;
    /* Keeps an accelerator's keys and values in the host's memory, from where they are copied as attention needs them; false: only
     * where the accelerator's has no room for them. The results are the same. */
    bool kv_offload;
    /* Requests may ask for log-probabilities of what they make, and of their prompts: with the second, memory for logits of
     * every row of a pass, as all_logits takes it. */
    bool logprobs, prompt_logprobs;
    /* Launches every pass call by call. Else passes of generated tokens are recorded and replayed, where an accelerator can do that
     * and has all weights, keys and values in its memory, and the model has no experts. The results are the same. */
    bool no_device_graphs;
} pst_session_options;

/* What the requests of a job need; sums over all of them. */
typedef struct pst_workload {
    size_t struct_size;
    uint64_t requests;      /* above 0 */
    uint64_t kv_tokens;     /* prompt and new tokens, of each in whole blocks of 64 */
    uint64_t prompt_tokens; /* for scoring: all tokens */
    uint64_t new_tokens;    /* 0: scoring */
    /* The caller's own memory beside the session's, within the same budget: in all, and for each sequence in flight. */
    uint64_t fixed_bytes, sequence_bytes;
    /* 0: measured, which takes a second, where many could run at once and the choice depends on them. */
    double disk_bytes_per_second, operations_per_second, one_row_operations_per_second;
} pst_workload;

/* Fills max_sequences (given: the most; 0: no bound) and kv_tokens of the options with what suits the job: under the budget,
 * as many sequences at once as noticeably lower the time per token, a cache for requests of mixed lengths, the rest of the
 * memory for weights. Results do not depend on it. PST_E_BUDGET as of pst_session_open. */
PST_API int pst_session_choose_batch(pst_model *model, const pst_workload *work, pst_session_options *options,
                                     pst_error *err);

/* Plans, allocates and loads what stays resident. PST_E_BUDGET names the smallest budget that works. The caller owns *out. */
PST_API int pst_session_open(pst_model *model, const pst_session_options *options, pst_session **out, pst_error *err);
PST_API void pst_session_close(pst_session *session);
/* Makes the running or next step, generate or score end with PST_E_CANCELLED. Async-signal-safe. After this, as after any
 * failed step, the session is good for nothing but closing: further calls fail with the same error. */
PST_API void pst_session_cancel(pst_session *session);

/* What was planned; strings live as long as the session. */
typedef struct pst_plan_info {
    uint64_t budget_bytes;   /* --host-memory in force */
    uint64_t resident_bytes; /* weights kept */
    uint64_t
        streamed_bytes; /* weights not kept: read in every pass, or of experts those that it needs and the cache has not got */
    uint64_t ring_bytes, slot_bytes;
    uint32_t slots;
    uint64_t kv_bytes, activation_bytes, process_bytes;
    uint32_t rows_per_pass;
    const char *io_engine, *kernels;
    pst_dtype compute_type;
    uint32_t kv_bits;
    double read_bytes_per_second, operations_per_second; /* measured beforehand; 0 when not */
    double pass_bound_seconds; /* what a pass with one row of every sequence takes at least; 0 when not measured */
    uint64_t block_size;       /* of the reads by io_engine, as the next three */
    uint32_t queue_depth, io_workers;
    bool io_single_submit;
    double decode_operations_per_second; /* with a row of every sequence; operations_per_second: with many rows */
    uint64_t
        expert_cache_bytes; /* memory in which experts stay while they are in demand, beside the ring; 0: no cache */
    double
        expected_pass_bytes; /* what a pass with a row of every sequence reads if all experts are as much in demand */
    bool locked;             /* weights that are kept and the ring are */
    uint64_t
        kv_disk_bytes;  /* of the file with keys and values; kv_bytes are then those of its window and last blocks */
    const char *device; /* that computes: "host", "cuda" */
    /* An accelerator's memory, else 0: --device-memory in force, and what the plan takes of it; of that weights, keys and values,
     * and slots that other weights pass through. resident_bytes and the like are the host's. */
    uint64_t device_budget_bytes, device_total_bytes;
    uint64_t device_resident_bytes, device_kv_bytes, device_slot_bytes;
    uint32_t device_slots;
    double expected_link_bytes;   /* what a pass with a row of every sequence copies to it, as expected_pass_bytes */
    double link_bytes_per_second; /* measured beforehand; 0 when not, or nothing has to be copied */
    bool
        kv_offloaded; /* an accelerator's keys and values are elsewhere: device_kv_bytes are slots that they come through */
} pst_plan_info;
PST_API void pst_session_get_plan(const pst_session *session, pst_plan_info *out);

/* ---- one pass at a time ---- */

/* Starts a sequence in a free slot; its prompt rows are computed by the following steps, some per step. The ids are copied.
 * *out is its number, valid until removed. PST_E_USAGE when the slots are full, it is too long or empty, or the KV cache has no
 * room for max_tokens, which it may grow to. */
PST_API int pst_session_add(pst_session *session, const uint32_t *ids, size_t count, uint32_t *out, pst_error *err);
/* Appends the chosen next token to a sequence whose logits the last step gave. */
PST_API int pst_session_append(pst_session *session, uint32_t sequence, uint32_t id, pst_error *err);
/* Frees the sequence's slot. */
PST_API void pst_session_remove(pst_session *session, uint32_t sequence);

/* One row of logits; lives until the next step. */
typedef struct pst_logits {
    uint32_t sequence;
    uint32_t position;   /* of the row's token in the sequence */
    const float *values; /* vocab floats */
} pst_logits;

/* Carries pending rows of all sequences through the weights once. *out: rows whose logits were computed (the last row of
 * each sequence that has no more pending rows; with all_logits every row), owned by the session. *out_count 0 with nothing
 * pending. PST_E_USAGE with requests_only. A session with sequences added by hand runs no whole requests until they are removed. Rows of decoding sequences come first, then
 * prompts, the longest waiting one before the others. */
PST_API int pst_session_step(pst_session *session, const pst_logits **out, size_t *out_count, pst_error *err);

/* ---- whole requests ---- */

typedef struct pst_sampling {
    double temperature; /* 0: greedy */
    uint32_t top_k;     /* 0: off */
    double top_p;       /* 1 or 0: off */
    double min_p;       /* 0: off */
    uint64_t seed;
} pst_sampling;

typedef enum pst_finish { PST_FINISH_LENGTH, PST_FINISH_END_TOKEN, PST_FINISH_STOP_TEXT } pst_finish;

typedef struct pst_request {
    const uint32_t *prompt_ids; /* the caller's until pst_generate returns */
    size_t prompt_count;
    uint32_t max_new_tokens;
    pst_sampling sampling; /* the random numbers of a request depend on its seed alone, not on its neighbours */
    const char *const *stop_texts;
    size_t stop_count;
    bool ignore_end; /* go on past end-of-text tokens */
    /* Log-probabilities of the tokens that are made, and of those of the prompt but the first; the session was opened with the
     * options of these names. With them those of so many likeliest tokens, at most PST_MAX_TOP_LOGPROBS. A request of no new
     * tokens and with prompt_logprobs scores its prompt. */
    bool logprobs, prompt_logprobs;
    uint32_t top_logprobs;
} pst_request;

enum { PST_MAX_TOP_LOGPROBS = 20 };

/* Natural logarithms of what the model thinks of tokens, given all before them: of its own distribution, at temperature 1 and
 * before top-k, top-p and min-p. */
typedef struct pst_logprobs {
    size_t count;       /* tokens */
    double *values;     /* of them; -INFINITY: impossible. NULL: nothing was asked for. All memory is this one's */
    uint32_t top;       /* as asked for, at most the vocabulary */
    uint32_t *top_ids;  /* count times `top`, the likeliest first, of equal ones the lower id */
    double *top_values; /* likewise */
} pst_logprobs;

typedef struct pst_result {
    pst_tokens ids; /* generated, the ending token not included */
    char *text;     /* NULL when the model has no tokenizer that can be read; a stop text and what follows is cut off */
    size_t text_bytes;
    pst_finish finish;
    pst_logprobs logprobs;        /* of ids */
    pst_logprobs prompt_logprobs; /* of the prompt from its second token on */
} pst_result;
PST_API void pst_result_free(pst_result *result); /* what it holds, not itself */

/* One timing and traffic record for a run of whole requests. */
typedef struct pst_run_stats {
    uint64_t prompt_tokens, generated_tokens;
    uint64_t passes;
    double
        prefill_seconds; /* until every first token of the first batch was there; its rate counts that batch's prompts */
    double decode_seconds, total_seconds;
    double prefill_tokens_per_second, decode_tokens_per_second, tokens_per_second;
    uint64_t weight_bytes_read;   /* weights that came from the drive, in all passes */
    double read_bytes_per_second; /* those over the wall seconds of the passes */
    double io_wait_seconds;       /* compute waited for the drive */
    double compute_seconds;
    double
        bound_seconds; /* what drive, link and processor allow: sum over the passes of max(bytes / bandwidth, operations / rate) */
    double share_of_bound;
    const char *limited_by; /* "disk", "page cache" (reads were buffered), "link", "compute", or "not measured" */
    double disk_bytes_per_second, compute_flops; /* the measured bandwidth and rate that the bound stands on */
    uint64_t resident_bytes, streamed_bytes;
    uint64_t peak_rss_bytes, host_memory_bytes;
    uint64_t shared_tokens; /* prompt tokens that were not computed, as another request had begun with the same ones */
    /* Experts that passes needed and that are not kept for good: parts and bytes found in the cache, and read. */
    uint64_t expert_hits, expert_misses, expert_bytes_found, expert_bytes_read;
    uint64_t guesses_right, guesses_wrong;    /* parts read ahead of the routing, by whether it wanted them */
    uint64_t wasted_bytes;                    /* of weight_bytes_read, those of wrong guesses */
    uint64_t expert_cache_bytes;              /* memory of the cache */
    uint64_t kv_bytes_read, kv_bytes_written; /* keys and values, from and to the drive */
    uint64_t computed_tokens;                 /* rows of all passes */
    double expert_bytes_per_token;            /* expert_bytes_read and wasted_bytes over computed_tokens */
    /* With an accelerator. */
    uint64_t link_bytes;          /* weights, keys and values that were copied to it, in all passes */
    double link_wait_seconds;     /* the copies were what was waited for */
    double link_bytes_per_second; /* measured, as disk_bytes_per_second */
    uint64_t device_resident_bytes, device_memory_bytes; /* weights kept there; its memory in use, by plan */
    uint64_t replayed_passes; /* of `passes`, those that were handed to it as one recording */
} pst_run_stats;

/* Called on the owner's thread as text (or, without a tokenizer, just tokens) appears; returning nonzero cancels. id is
 * UINT32_MAX for text that was held back until the end of the request and belongs to no new token. */
typedef int (*pst_on_token)(void *user, size_t request, uint32_t id, const char *text, size_t text_bytes);

/* Runs requests, at most max_sequences at a time, a new one joining when one ends. results: `count` records that the
 * caller frees one by one; on failure none is left filled. stats and on_token may be NULL. */
PST_API int pst_generate(pst_session *session, const pst_request *requests, size_t count, pst_on_token on_token,
                         void *user, pst_result *results, pst_run_stats *stats, pst_error *err);

/* Receives a row of logits while scoring, NULL in a session that was opened with requests_only; nonzero cancels. */
typedef int (*pst_on_logits)(void *user, size_t request, uint32_t position, const float *logits, size_t vocab);

/* Log-probabilities of given ids: logprobs[i] (count - 1 of them) is log p(ids[i + 1] | ids[0..i]) per request.
 * The session must have been opened with all_logits. */
typedef struct pst_score_request {
    const uint32_t *ids;
    size_t count;
    double *logprobs; /* out: count - 1 values, the caller's */
} pst_score_request;
PST_API int pst_score(pst_session *session, pst_score_request *requests, size_t count, pst_on_logits on_logits,
                      void *user, pst_run_stats *stats, pst_error *err);

/* ---- requests from a source to a sink ---- */

/*
 * Any number of requests in memory that does not grow with their number: the source is asked whenever a sequence slot is
 * free, and each answer goes to the sink as soon as its request ends, so answers come in another order than requests.
 * Requests are numbered from 0 in the order in which the source gave them. What a request gets is what it gets alone.
 *
 * The source runs at most one request ahead of the slots: no more than max_sequences + 1 are on their way at any time. All
 * calls come on the owner's thread, between passes. A request that cannot run (too long, unknown ids, logits that are not
 * finite) ends with a failure of its own, whose message says nothing of its number, and does not disturb the others.
 */
typedef struct pst_generate_calls {
    /* 1: *out is the next request, whose memory stays until its result was handed over; 0: there are no more (it is not
     * asked again); below zero: the run ends with this error, err filled. */
    int (*next)(void *user, pst_request *out, pst_error *err);
    /* Exactly once for each request that was given, unless the run fails. Without a failure (NULL) *result is the answer:
     * what the sink takes out of it, it clears there; the rest is freed afterwards. With one, *result is empty. Below zero
     * ends the run with this error, err filled. */
    int (*on_result)(void *user, size_t request, pst_result *result, const pst_error *failure, pst_error *err);
    pst_on_token on_token; /* may be NULL */
    void *user;
} pst_generate_calls;
/* stats may be NULL. */
PST_API int pst_generate_stream(pst_session *session, const pst_generate_calls *calls, pst_run_stats *stats,
                                pst_error *err);

/* The same for scoring. Where a request failed, its log-probabilities are not to be used. */
typedef struct pst_score_calls {
    int (*next)(void *user, pst_score_request *out, pst_error *err);
    int (*on_result)(void *user, size_t request, const pst_error *failure, pst_error *err);
    pst_on_logits on_logits; /* may be NULL */
    void *user;
} pst_score_calls;
PST_API int pst_score_stream(pst_session *session, const pst_score_calls *calls, pst_run_stats *stats, pst_error *err);

/* ---- timeline ---- */

/* Records spans (reads, waits, compute) in a fixed-size buffer; what overflows is counted and left out. Any thread records. */
PST_API int pst_trace_open(size_t max_events, pst_trace **out, pst_error *err);
PST_API void pst_trace_close(pst_trace *trace);
/* Writes it as Chrome trace JSON (Perfetto opens it), durably published. No recording at the same time. */
PST_API int pst_trace_write(const pst_trace *trace, const char *path, pst_error *err);

#ifdef __cplusplus
}
#endif
#endif
