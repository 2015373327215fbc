/* SPDX-License-Identifier: Apache-2.0 */
/* Other programs, run without a shell, their outputs caught. */
#ifndef PENSTOCK_CLI_PROCESS_H
#define PENSTOCK_CLI_PROCESS_H

#include <stdbool.h>
#include <sys/resource.h>

#include "cli.h"

/* A program and its arguments. Begins as {0}; a failed allocation is remembered. */
typedef struct cli_words {
    char **items; /* owned, NULL-terminated */
    size_t count;
    bool failed;
} cli_words;
void cli_words_add(cli_words *list, const char *format, ...) __attribute__((format(printf, 2, 3)));
void cli_words_free(cli_words *list);

typedef struct cli_process {
    char *out, *err; /* what it wrote, terminated; NULL: nothing */
    int state;       /* as wait() has it */
    struct rusage usage;
    bool interrupted;
} cli_process;

/* Runs it to its end. environment: one more "NAME=value", or NULL. 0: it ran, whatever became of it; PST_E_CANCELLED: a
 * signal came meanwhile, and it was ended. cli_process_free in either case. */
int cli_process_run(const cli_words *list, const char *environment, cli_process *process, pst_error *err);
bool cli_process_succeeded(const cli_process *process);
double cli_process_cpu_seconds(const cli_process *process);
/* That it failed, with the first or the last line that it wrote on standard error. */
int cli_process_fail(const cli_process *process, const char *name, bool last_line, pst_error *err);
void cli_process_free(cli_process *process);

#endif
