/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ctrl-C (SIGINT), SIGTERM, and SIGHUP of a terminal that was closed. The first one asks what is running to stop and
 * lets the command tidy up; where nothing can be asked it ends the program there and then. Later ones change nothing,
 * so that an impatient second Ctrl-C leaves nothing half-written; SIGQUIT (Ctrl-\) and SIGKILL end it in any state.
 */
#ifndef PENSTOCK_CLI_INTERRUPT_H
#define PENSTOCK_CLI_INTERRUPT_H

#include <stdbool.h>

#include "penstock/model.h"

void cli_interrupt_install(void);
/* The session that a signal cancels; NULL: none. Returns when no handler uses the former one any more. */
void cli_interrupt_attach(pst_session *session);
/* The command looks at cli_interrupted() often by itself, so a signal must not end the program at once. */
void cli_interrupt_polled(bool polled);
/* The signal that came, or 0. */
int cli_interrupted(void);
/* A file to remove if a signal ends the program there and then; NULL: none. The string must stay. */
void cli_interrupt_remove(const char *path);

#endif
