/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Crash tests: an action is carried out on a folder again and again, the power fails at each of its steps and at each
 * of its syncs in turn, and every state that this may leave behind is looked at.
 */
#ifndef PST_TEST_CRASH_H
#define PST_TEST_CRASH_H

#include <stdbool.h>
#include <stdint.h>

#include "os/sys_crash.h"
#include "unit/io/io_test.h"

typedef struct crash_trial {
    /* Fills the empty folder, with the real calls: the old version. */
    void (*prepare)(const char *folder, void *context);
    /* What is tested, on the crash table. Below zero: it failed, as it should once the power has. */
    int (*act)(const char *folder, void *context, pst_error *err);
    /* Looks at a state after the failure, with the real calls. `done`: act had reported success. False: the state is
     * one that must not be. */
    bool (*check)(const char *folder, bool done, void *context);
    void *context;
    unsigned seeds; /* of PST_CRASH_MIXED per failure; 0: 30 */
} crash_trial;

typedef struct crash_count {
    unsigned failures; /* of the power */
    unsigned states, bad;
    unsigned steps, syncs; /* of a whole run */
} crash_count;

/* Tries all of them; the folder is made anew each time. Prints where the first bad state came from if `loud`. */
crash_count crash_try_all(const crash_trial *trial, bool loud);

/* Removes a folder with all that is in it. */
void crash_remove_tree(const char *path);
/* Makes a new empty folder; free(). */
char *crash_make_folder(void);
/* The whole of a file as text, NULL when there is none; free(). */
char *crash_read_text(const char *path);

#endif
