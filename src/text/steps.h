/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The parts of a tokenizer as tables: each of its pipelines (normalizer, pre-tokenizer, decoder) is a flat array of
 * steps; sequences within sequences are flattened when the file is read.
 */
#ifndef PST_TEXT_STEPS_H
#define PST_TEXT_STEPS_H

#include "text/pattern.h"

typedef enum pst_step_kind {
    PST_STEP_NORMAL_FORM, /* form */
    PST_STEP_LOWERCASE,
    PST_STEP_STRIP,         /* strip_left, strip_right: white space */
    PST_STEP_PREPEND,       /* content */
    PST_STEP_REPLACE,       /* pattern by content; also a decoder */
    PST_STEP_SPLIT,         /* pattern, behavior, invert */
    PST_STEP_BYTE_LEVEL,    /* prefix_space, pattern (or none); also a decoder */
    PST_STEP_METASPACE,     /* content (the replacement), prepend, split; also a decoder */
    PST_STEP_BYTE_FALLBACK, /* decoders from here on */
    PST_STEP_FUSE,
    PST_STEP_STRIP_CHARACTER, /* content (one character), start, stop: how many of them at most */
} pst_step_kind;

typedef enum pst_split_behavior {
    PST_SPLIT_REMOVED,
    PST_SPLIT_ISOLATED,
    PST_SPLIT_MERGED_WITH_PREVIOUS,
    PST_SPLIT_MERGED_WITH_NEXT,
    PST_SPLIT_CONTIGUOUS,
} pst_split_behavior;

typedef enum pst_prepend_scheme { PST_PREPEND_ALWAYS, PST_PREPEND_FIRST, PST_PREPEND_NEVER } pst_prepend_scheme;

typedef struct pst_step {
    pst_step_kind kind;
    pst_pattern pattern;
    char *content; /* owned */
    size_t content_bytes;
    int form; /* pst_normal_form */
    pst_split_behavior behavior;
    pst_prepend_scheme prepend;
    bool invert, strip_left, strip_right, prefix_space, split;
    uint32_t start, stop;
} pst_step;

typedef struct pst_steps {
    pst_step *data;
    size_t count, capacity;
} pst_steps;

void pst_steps_destroy(pst_steps *steps);

/* A piece of text on its way to the model. */
typedef struct pst_piece {
    size_t start, end;
    bool first; /* at the very beginning of the input, as the prepend scheme "first" asks */
} pst_piece;

typedef struct pst_pieces {
    pst_piece *data;
    size_t count, capacity;
} pst_pieces;

/* What one call works in; owned by one thread. Zero-initialized but for regexes. */
typedef struct pst_text_scratch {
    pst_regex_scratch *regexes;
    pst_spans spans;
    pst_bytes text, other; /* the current text and the one being made */
    pst_pieces pieces, other_pieces;
} pst_text_scratch;

void pst_text_scratch_free(pst_text_scratch *scratch);

/* Normalizes text into scratch->text. *first is cleared where the beginning of the text was taken away. */
int pst_normalize(const pst_steps *normalizers, pst_text_scratch *scratch, const char *text, size_t bytes, bool *first,
                  pst_error *err);
/* Cuts text into scratch->pieces of scratch->text. Pieces are never empty. */
int pst_pretokenize(const pst_steps *pretokenizers, pst_text_scratch *scratch, const char *text, size_t bytes,
                    bool first, pst_error *err);

/* The byte-level alphabet: the character that stands for a byte, and the byte of a character or -1. */
uint32_t pst_byte_level_character(unsigned char byte);
int pst_byte_level_byte(uint32_t code_point);

#endif
