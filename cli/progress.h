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
/* After the beginning, for a job that goes on: `before` of it was done by others and tells nothing of the speed. second: a
 * noun of which the rate is shown besides, as cli_progress_update_both counts it; NULL: none. It must stay. */
void cli_progress_resume(uint64_t before, const char *second);
void cli_progress_update_both(uint64_t done, uint64_t second_done);
void cli_progress_end(void);
/* Takes the bar off the terminal, for another line to be printed; it comes back with the next update. */
void cli_progress_clear(void);
/* The same for a signal handler that ends the program. */
void cli_progress_clear_in_handler(void);

#endif
