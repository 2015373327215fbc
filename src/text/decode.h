/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From token texts to text, token by token. The decoder's steps form a chain: each passes on what is certain and holds
 * back what later tokens may still change, so decoding all at once and streaming are the same thing.
 */
#ifndef PST_TEXT_DECODE_H
#define PST_TEXT_DECODE_H

#include "text/steps.h"

/* What one step of the chain remembers. */
typedef struct pst_decode_stage {
    pst_bytes token; /* a token that comes in fragments, until it is whole */
    pst_bytes held;  /* bytes that do not make a character yet */
    pst_bytes made;  /* scratch */
    uint32_t count;  /* tokens seen (Metaspace), characters dropped of this token (Strip) */
    bool started;    /* the one token that everything is fused into has begun */
    bool leading;
} pst_decode_stage;

typedef struct pst_decode_chain {
    const pst_steps *steps;
    bool join_with_spaces; /* without any decoder, tokens are words */
    pst_decode_stage *stages;
    pst_regex_scratch *regexes;
    pst_spans spans;
    bool any;      /* a token came */
    pst_bytes out; /* what became certain; the caller takes it away */
} pst_decode_chain;

int pst_decode_open(pst_decode_chain *chain, const pst_steps *steps, bool join_with_spaces, pst_error *err);
void pst_decode_close(pst_decode_chain *chain);
/* One token's text: appends to chain->out what became certain. */
int pst_decode_push(pst_decode_chain *chain, const char *text, size_t bytes, pst_error *err);
/* One token by itself: the bytes that it stands for inside a text replace chain->out, with nothing of its neighbours' doing. */
int pst_decode_alone(pst_decode_chain *chain, const char *text, size_t bytes, pst_error *err);
/* The end: appends what was held back. */
int pst_decode_finish(pst_decode_chain *chain, pst_error *err);

#endif
