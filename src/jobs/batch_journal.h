/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The answers of a batch job so far, in the order in which they came: a file that only grows, and an index that is made
 * from it anew at every start.
 *
 *     header block   4096 bytes: a mark, the length and check of a text that says what the job is, that text, zeros
 *     records        each 32 bytes (mark, flags, number of the line, length, check), then the answer's bytes
 *
 * Invariants. The header was durable before the first record. A record counts when it and all before it are whole: what a
 * kill or a power failure tore off at the end is cut off at the next start, and computed again. Records of one line may
 * come twice after that and are equal then; the first counts. One process at a time holds the lock of the file.
 *
 * The index (8 bytes per line: the record's offset) lies in a file without a name, so that memory does not grow with the
 * lines. One owner thread.
 */
#ifndef PST_JOBS_BATCH_JOURNAL_H
#define PST_JOBS_BATCH_JOURNAL_H

#include <stdbool.h>

#include "penstock/types.h"

typedef struct pst_journal pst_journal;

/* Opens or creates the file and locks it; another process that has it: -EBUSY. What was not finished there is checked,
 * its torn end cut off. The caller owns *out. PST_E_FORMAT: it is no journal, or one whose header is damaged; with
 * `restart` it is emptied whatever it holds. */
int pst_journal_open(const char *path, bool restart, pst_journal **out, pst_error *err);
void pst_journal_close(pst_journal *journal);
/* The header's text, the journal's; NULL: there is none yet. */
const char *pst_journal_header(const pst_journal *journal);
/* Begins an empty journal: durable when it returns, with the file's name. */
int pst_journal_begin(pst_journal *journal, const char *header, pst_error *err);

/* Not durable before the next sync. */
int pst_journal_append(pst_journal *journal, uint64_t line, bool failed, const char *text, size_t bytes,
                       pst_error *err);
int pst_journal_sync(pst_journal *journal, pst_error *err);

uint64_t pst_journal_count(const pst_journal *journal);  /* lines that have an answer */
uint64_t pst_journal_failed(const pst_journal *journal); /* of them, those that failed */
/* 1: the line has an answer; 0: not yet. */
int pst_journal_find(pst_journal *journal, uint64_t line, pst_error *err);
/* The answer of a line that has one; *text is the journal's until the next call. */
int pst_journal_read(pst_journal *journal, uint64_t line, const char **text, size_t *bytes, pst_error *err);

/* Takes the file away, durably. The journal is good for closing only. */
int pst_journal_remove(pst_journal *journal, pst_error *err);

#endif
