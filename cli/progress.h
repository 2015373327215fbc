/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Progress of one long job on stderr: a bar with rate and time left on a terminal, a line now and then elsewhere,
 * nothing for a job that is over within a second or two. One job at a time, one thread.
 */
#ifndef PENSTOCK_CLI_PROGRESS_H
#define PENSTOCK_CLI_PROGRESS_H

#include <stdint.h>

/* unit: "bytes" or a noun ("tokens"). total 0: unknown. The strings must stay. */
void cli_progress_begin(const char *label, const char *unit, uint64_t total);
void cli_progress_update(uint64_t done);
void cli_progress_end(void);
/* Takes the bar off the terminal, for another line to be printed; it comes back with the next update. */
void cli_progress_clear(void);
/* The same for a signal handler that ends the program. */
void cli_progress_clear_in_handler(void);

#endif
