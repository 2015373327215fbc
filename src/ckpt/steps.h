/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside of training folders (penstock/ckpt.h): what lies in one, and who may touch it.
 *
 *   step-000100                       a step, if its manifest is whole and its files are there (steps_find.c)
 *   step-000100.tmp-<12 characters>   one that is being made, or removed. Whoever makes it holds a shared lock on the file
 *                                     PST_STEPS_LOCK in it, one per rank; what nobody holds may be swept (steps_sweep.c)
 *   step-000100/PST_STEPS_LOCK        is there between the rename and the update of `latest`: where both stay, that commit was
 *                                     cut short, and the step counts as the newest if its number is higher than latest's
 *   latest                            the name of the step that was published last
 *   latest.tmp-<12 characters>        the same, on its way
 *
 * A step comes into being by one rename of the folder that it was made in, and goes by one rename to a name of the second
 * kind. So at no time is there a step of which a part is missing, whatever happens between two calls.
 */
#ifndef PST_CKPT_STEPS_H
#define PST_CKPT_STEPS_H

#include <stdbool.h>

#include "ckpt/agree.h"
#include "store/manifest.h"

#define PST_STEPS_LOCK   ".penstock-lock"
#define PST_STEPS_LATEST "latest"

/* ---- names (steps_find.c) ---- */

enum { PST_STEPS_NAME_BYTES = 64 }; /* of a step's folder, also while it is being made */

void pst_steps_name(uint64_t step, char out[PST_STEPS_NAME_BYTES]);
bool pst_steps_parse(const char *name, uint64_t *out_step); /* a step's name, as pst_steps_name writes it */
/* The name of a step or of `latest`, and the suffix of a temporary one. */
bool pst_steps_is_unfinished(const char *name);
/* "<folder>/<name>"; pst_heap_free. */
int pst_steps_join(const char *folder, const char *name, char **out, pst_error *err);

/* 1: a complete step; 0: not; negative: that cannot be told (an I/O error, no memory). */
int pst_steps_is_complete(const char *folder, uint64_t step, pst_error *err);
/* The complete ones, rising; pst_heap_free. */
int pst_steps_list(const char *folder, uint64_t **out, size_t *out_count, pst_error *err);

/* 1: `latest` is there and names a step by a name that one can have; 0: not. */
int pst_steps_read_latest(const char *folder, uint64_t *out_step, pst_error *err);

/* ---- files of a step (steps_files.c) ---- */

typedef struct pst_steps_file {
    char *name; /* pst_heap_free */
    uint64_t bytes;
    char digest[PST_DIGEST_DIGITS + 1];
    bool covers_header;
    bool mine; /* this rank made sure of it and knows its digest; else only name and bytes are set */
} pst_steps_file;

typedef struct pst_steps_files {
    pst_steps_file *list; /* by name */
    size_t count, capacity;
} pst_steps_files;

/* All files below a folder, as this rank sees them; those whose turn it is are synced and digested. The first rank syncs
 * the folders in it. */
int pst_steps_collect(const char *folder, uint32_t rank, uint32_t ranks, pst_steps_files *out, pst_error *err);
/* All ranks tell of theirs (status: how that went). *all has every file with its digest, in order. Fails on all ranks when
 * one sees a file that none has made sure of, which is one that came or grew meanwhile. */
int pst_steps_exchange(pst_ckpt_agree *agree, int status, const pst_steps_files *seen, pst_steps_files *all,
                       pst_error *err);
void pst_steps_files_free(pst_steps_files *files);

enum { PST_STEPS_TELL_BYTES = 16 << 10 }; /* that pst_steps_exchange needs of its agree */

/* ---- old and unfinished ones (steps_sweep.c) ---- */

/* Renames a folder to a name that nobody takes for a step; *out is its new path (pst_heap_free). */
int pst_steps_set_aside(const char *path, char **out, pst_error *err);
/* Before a step becomes the one in `latest`: steps of higher numbers are not of commits that were cut short, if they ever
 * were, so that going back to an earlier step holds. */
int pst_steps_settle(const char *folder, uint64_t step, pst_error *err);
/* Of the complete steps up to `newest` so many stay; newest itself always does. */
int pst_steps_keep_last(const char *folder, uint64_t newest, uint32_t keep, pst_error *err);

#endif
