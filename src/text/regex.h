/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The patterns of tokenizers, which are written for Oniguruma (Ruby syntax, UTF-8), run by PCRE2. Both agree on the
 * core; where they differ the pattern is rewritten (white space, \w, unions, possessive intervals, new characters), and
 * what is not known to mean the same in both is refused when the tokenizer is opened.
 */
#ifndef PST_TEXT_REGEX_H
#define PST_TEXT_REGEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "text/bytes.h"

typedef struct pst_regex pst_regex;
typedef struct pst_regex_scratch pst_regex_scratch;

/* Appends the PCRE2 pattern that means what this one does. Refused: PST_E_UNSUPPORTED, with the place in it. */
int pst_regex_translate(const char *pattern, size_t bytes, pst_bytes *out, const char *path, pst_error *err);

/* Compiles a pattern. Immutable afterwards; any thread may match with it, each with its own scratch. */
int pst_regex_open(const char *pattern, size_t bytes, pst_regex **out, const char *path, pst_error *err);
void pst_regex_close(pst_regex *regex);

/* Memory for matching, one per thread, for any regex. */
int pst_regex_scratch_open(pst_regex_scratch **out, pst_error *err);
void pst_regex_scratch_close(pst_regex_scratch *scratch);

/* Finds the first match at or after `from` in valid UTF-8: 1 found, 0 none, below 0 an error (too costly, memory). */
int pst_regex_find(const pst_regex *regex, pst_regex_scratch *scratch, const char *text, size_t bytes, size_t from,
                   size_t *start, size_t *end, pst_error *err);

#endif
