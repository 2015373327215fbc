/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ranks that carry something out together tell each other after each phase how it went, and what the others need to know.
 * Records have one size everywhere: status, path and words of a failure, then the phase's own bytes. So a rank that failed
 * still takes part, and all of them end with its error. With one rank alone nothing is called.
 *
 * All memory is taken at the beginning: a rank that could not take it later would leave the others waiting.
 */
#ifndef PST_CKPT_AGREE_H
#define PST_CKPT_AGREE_H

#include "penstock/ckpt.h"

typedef struct pst_ckpt_agree pst_ckpt_agree;

/* ranks (may be NULL: alone) are copied. max_bytes: the most that one rank tells at once. */
int pst_ckpt_agree_create(const pst_ckpt_ranks *ranks, size_t max_bytes, pst_ckpt_agree **out, pst_error *err);
void pst_ckpt_agree_destroy(pst_ckpt_agree *agree);
uint32_t pst_ckpt_agree_rank(const pst_ckpt_agree *agree);
uint32_t pst_ckpt_agree_count(const pst_ckpt_agree *agree);

/* status (0 or more, or negative with what *err says) and `bytes` bytes at `mine` (may be NULL without bytes) go to all.
 * 0: no rank failed. Otherwise, on every rank, a rank's error: its own where it failed itself, else that of the first
 * rank that did. Every rank calls it the same number of times with the same bytes. */
int pst_ckpt_agree_tell(pst_ckpt_agree *agree, int status, const void *mine, size_t bytes, pst_error *err);
/* What a rank told last, until the next call. */
const void *pst_ckpt_agree_told(const pst_ckpt_agree *agree, uint32_t rank);

#endif
