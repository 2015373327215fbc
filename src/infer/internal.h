/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of infer/ share: the model and the session from inside. */
#ifndef PST_INFER_INTERNAL_H
#define PST_INFER_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "infer/choose.h"
#include "infer/cost.h"
#include "infer/probe.h"
#include "penstock/io.h"
#include "penstock/model.h"
#include "tier/ring.h"

struct pst_model {
    char *folder;
    pst_transformer transformer;
    pst_store *store;
    pst_program *program; /* for its checks and totals; sessions make their own, which they compute with */
    pthread_mutex_t lock; /* guards the opening of these */
    pst_tokenizer *tokenizer;
    pst_chat_template *chat;
};

/* One sequence slot. Its ids are those given so far; the first `computed` of them are in the KV cache. */
typedef struct pst_sequence {
    bool in_use;
    uint32_t *ids; /* max_tokens */
    uint32_t count, computed;
    uint32_t prompt;    /* how many it was added with */
    uint32_t limit;     /* positions that are reserved for it in the KV cache */
    uint64_t serial;    /* how many were added before it */
    bool prompt_logits; /* of every row of its prompt; set before it is first computed */
} pst_sequence;

/* A rate of matrix products at a number of rows. */
typedef struct pst_rate {
    uint32_t rows;
    double flops;
} pst_rate;

/* What a session did since it was opened; differences make a run's statistics. */
typedef struct pst_session_counters {
    uint64_t passes, replayed_passes, pass_ns, rows;
    uint64_t shared_tokens; /* whose keys and values another sequence had computed */
    double bound_seconds, disk_seconds, link_seconds, math_seconds; /* bound: sum of the largest, pass by pass */
    pst_ring_stats ring;
    pst_kv_traffic kv;
} pst_session_counters;

struct pst_session {
    pst_model *model;
    pst_session_options options;
    pst_pool *pool;
    pst_device *host;
    pst_device *device; /* which computes: the host, or an accelerator */
    pst_io *io;
    pst_io *kv_io;                 /* NULL: keys and values are in memory */
    pst_kv_traffic kv_row_traffic; /* of a row in the middle of a sequence */
    pst_transformer transformer;   /* the model's, with options.max_layers; its arrays are the model's */
    pst_program *program;
    pst_kv *kv;
    pst_forward *forward;
    pst_plan plan;
    pst_ring *ring;
    pst_recorder *recorder; /* NULL: every pass is run call by call */
    uint32_t pass_rows;     /* of the pass under way */
    pst_plan_info info;
    pst_routing_trace *routing_trace; /* NULL: the routers choose */
    atomic_bool cancelled;

    pst_sequence *sequences; /* options.max_sequences */
    uint32_t *sequence_ids;  /* their ids' memory */
    uint32_t *order;         /* numbers of those in use, by arrival; max_sequences */
    uint32_t in_use;
    uint32_t reserved_blocks; /* of the KV cache, for those in use */
    uint64_t added;           /* sequences so far */
    pst_row *rows;            /* of the pass, plan.rows_per_pass */
    uint32_t *row_ids;
    pst_logits *logits;
    pst_matrix fetched; /* all logits of the last pst_session_step, in the host's memory */
    pst_chooser *chooser;
    pst_prober *prober;             /* NULL: nobody may ask for log-probabilities */
    bool sharing;                   /* sequences share the blocks of prefixes that they have in common */
    bool last_pass;                 /* the caller knows that no other pass follows: read no further */
    pst_error failed;               /* code below zero: what made the session unusable */
    const pst_tokenizer *tokenizer; /* the model's; NULL: none that can be read */

    double disk_bytes_per_second, link_bytes_per_second;
    pst_rate decode_rate, prefill_rate; /* rows: up to how many the rate stands for */
    pst_cost cost;                      /* once measured */
    pst_session_counters counters;
};

/* The cache of a plan. */
typedef struct pst_planned_cache {
    pst_kv_config config; /* without io */
    pst_kv_memory memory;
} pst_planned_cache;
/* What a session of these (checked) options asks of the planner, and what it gets; pure but for the defaults of the budgets.
 * config: transformer and program are set, what belongs to the request is set here. process_bytes: what the process takes before
 * the session has its memory. Nothing said, keys and values are where they are computed with; in the host's memory, if an
 * accelerator's is too small for them. The caller destroys *out_plan. */
int pst_session_plan(const pst_session_options *options, uint64_t process_bytes, pst_forward_config *config,
                     pst_plan_request *out_request, pst_planned_cache *out_cache, pst_plan *out_plan, pst_error *err);
/* What may be taken of the memory of a device (NULL: one that is not there, only reckoned with; then it is in the options). */
int pst_session_device_budget(const pst_session_options *options, pst_device *device, uint64_t *out, pst_error *err);
/* pst_session_open on this device, whose owner the session is from now on, also where it fails; NULL: the one that the options
 * name. */
int pst_session_open_on(pst_model *model, const pst_session_options *options, pst_device *device, pst_session **out,
                        pst_error *err);
/* Measures the drive and the processor, in the session's own memory; before the first pass. */
int pst_session_measure(pst_session *session, pst_error *err);
/* Whether a sequence of so many positions in all, 1 to max_tokens, can start now: a slot is free, and so many blocks of the KV
 * cache are not reserved. What it might share with others is not taken off, since it may end with none of it there. */
bool pst_session_has_room(const pst_session *session, size_t positions);
/* pst_session_add with a reservation for `positions` in all, count or more. */
int pst_session_start(pst_session *session, const uint32_t *ids, size_t count, size_t positions, uint32_t *out,
                      pst_error *err);
/* pst_session_step, but the logits stay where they were computed: values are not set. */
int pst_session_pass(pst_session *session, const pst_logits **out, size_t *out_count, pst_error *err);
/* Makes the first `count` of the chooser's choices after a pass: what fails is a failure of the pass. */
int pst_session_choose(pst_session *session, uint32_t count, pst_error *err);
/* Log-probabilities after a pass and the choices of tokens whose rows are kept. begin, any number of probes by rising rows, end:
 * then they are answered. What fails is a failure of the pass. */
void pst_session_probe_begin(pst_session *session);
int pst_session_probe(pst_session *session, const pst_probe *probe, pst_error *err);
int pst_session_probe_end(pst_session *session, pst_error *err);
/* Room for `count` tokens, which the caller counts in; freed with pst_logprobs_free. */
int pst_logprobs_make(pst_logprobs *out, size_t count, uint32_t top, pst_error *err);
void pst_logprobs_free(pst_logprobs *logprobs);
/* The probe that fills a place. */
pst_probe pst_logprobs_probe(const pst_logprobs *logprobs, size_t place, uint32_t row, uint32_t id);
/* PST_E_FORMAT if a row was not usable. first: the number, from 1, of the token whose row is the first one's. */
int pst_logprobs_check(const pst_logprobs *logprobs, size_t first, const char *path, pst_error *err);
/* PST_E_USAGE while sequences that were added by hand hold slots. */
int pst_session_check_idle(const pst_session *session, pst_error *err);
/* PST_E_USAGE unless all ids are in the vocabulary. */
int pst_session_check_ids(const pst_session *session, const uint32_t *ids, size_t count, pst_error *err);
/* What a request alone cannot do: pst_session_check_ids, lengths, sampling, stop texts. */
int pst_session_check_request(const pst_session *session, const pst_request *request, pst_error *err);
int pst_session_check_score(const pst_session *session, const pst_score_request *request, pst_error *err);
/* Puts "prompt 3: " (number from 0) before the message. Returns the code. */
int pst_fail_number(pst_error *err, const char *what, size_t number, const pst_error *cause);
/* Adds to the counters what the pass that is in session->rows could not be faster than. */
void pst_session_count_bound(pst_session *session, uint32_t rows, uint32_t logit_rows, uint64_t bytes_read,
                             uint64_t link_bytes);
/* Fills what follows from the counters: bytes, times, bound. */
void pst_session_fill_stats(const pst_session *session, const pst_session_counters *before, pst_run_stats *stats);
void pst_session_get_counters(const pst_session *session, pst_session_counters *out);

#endif
