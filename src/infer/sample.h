/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Choosing a token from logits: greedy, or temperature, then top-k, top-p and min-p in this order, each on what the one
 * before left (as transformers chains its logits processors). Ties are broken by the lower id, so that the choice depends
 * on nothing but the logits, the request's settings and its random number.
 *
 * A token's weight is (float)exp((logit - largest) / temperature), nothing where that would be e^-40 or less: what is so
 * much less likely than the best is never drawn in practice. Tokens are ordered by falling weight, then by rising id.
 *
 * For greedy choice and a small top-k the largest logits are enough, which a device finds by itself (its operator `top`).
 * Without top-k the total counts, too. A device's `log_sum_exp` gives it nearly; where whatever it may really be leaves the
 * same token, that is the choice, else all logits are needed. The token does not depend on which way it was chosen.
 */
#ifndef PST_INFER_SAMPLE_H
#define PST_INFER_SAMPLE_H

#include "penstock/model.h"

enum { PST_TOP_MOST = 1024 }; /* what a device's `top` gives at most */

typedef struct pst_candidate {
    float value;
    uint32_t id;
} pst_candidate;

/* Weights that begin with the same bits, and so have one exponent: how many, and the sum of their mantissas (24 bits each). */
typedef struct pst_weight_class {
    uint64_t mantissas, count;
} pst_weight_class;

enum { PST_WEIGHT_CLASSES = 1024 };
/* What one choice is computed in. */
typedef struct pst_sample_scratch {
    union {
        pst_candidate candidates[PST_TOP_MOST];
        struct {
            pst_weight_class coarse[PST_WEIGHT_CLASSES], fine[PST_WEIGHT_CLASSES];
        };
    };
} pst_sample_scratch;

/* How many of the largest of `vocab` logits a choice is made from; 0: all of them, whatever they are. */
uint32_t pst_sample_needs(const pst_sampling *sampling, uint32_t vocab);
/* Whether it also takes log(sum of exp(factor * logit)) over all of them, if any. */
bool pst_sample_needs_sum(const pst_sampling *sampling, double *out_factor);
/* A choice from the pst_sample_needs largest logits, falling, of equal ones the lower id first; they are usable (below).
 * random: a number that changes with every choice. log_sum: if it is needed, as a device gives it. False: others may be as
 * likely as the last of top-k, or it depends on the total's last digits, and all logits are needed. */
bool pst_sample_top(const float *logits, const uint32_t *ids, double log_sum, uint32_t vocab,
                    const pst_sampling *sampling, uint64_t random, pst_sample_scratch *scratch, uint32_t *out);
/* A choice from all logits, which are usable; they are overwritten. */
uint32_t pst_sample_all(float *logits, uint32_t vocab, const pst_sampling *sampling, uint64_t random,
                        pst_sample_scratch *scratch);
/* Whether the row has no NaN, no positive infinity, and one finite value at least: else the weights or the arithmetic are
 * broken, and any token would be a lie. */
bool pst_logits_are_usable(const float *logits, uint32_t vocab);
/* The nth random number of a seed (SplitMix64). */
uint64_t pst_random(uint64_t seed, uint64_t n);

#endif
