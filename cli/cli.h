/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The program `penstock`: what its parts share. A command is a table of options and a function; main.c finds the
 * command, parses its options, runs it and turns what it returns into an exit status.
 *
 * Exit status: 0 done, 1 failed (one line on stderr says why), 2 wrong usage, 128 + n ended by signal n.
 * Results go to stdout, everything else to stderr.
 */
#ifndef PENSTOCK_CLI_H
#define PENSTOCK_CLI_H

#include "base/error.h"
#include "base/options.h"
#include "penstock/types.h"

/* A mistake on the command line that no single option shows (exit status 2). Below every code of the library. */
enum { CLI_E_USAGE = -5000 };

/* values: the command's filled structure. Returns 0 or a negative code with err filled. */
typedef int cli_run(const void *values, const pst_options_found *found, pst_error *err);

typedef struct cli_command {
    pst_command spec;
    cli_run *run;
} cli_command;

extern const cli_command cli_command_generate, cli_command_score, cli_command_tokenize, cli_command_synth,
    cli_command_convert, cli_command_verify, cli_command_inspect, cli_command_bench_infer, cli_command_bench_io,
    cli_command_bench_save, cli_command_bench_load, cli_command_bench_kernels, cli_command_tune, cli_command_plan,
    cli_command_devices;

/* All of them, in the order in which help shows them. */
extern const cli_command *const cli_commands[];
extern const size_t cli_command_count;

/* `penstock help [--man | COMMAND]`. */
int cli_help(int argc, char *const *argv, pst_error *err);
/* The overview of all commands. */
void cli_help_overview(FILE *to);
/* The manual page in mdoc(7). */
void cli_manual(FILE *to);

#define CLI_COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* Rows of option tables that many commands have: a number N for a member of the command's values. initial: text or NULL. */
#define CLI_NUMBER_ROW(structure, member, row_name, first, least, most, text)                                          \
    {                                                                                                                  \
        .name = (row_name), .type = PST_OPTION_U64, .offset = offsetof(structure, member), .metavar = "N",             \
        .initial = (first), .min = (least), .max = (most), .help = (text)                                              \
    }
#define CLI_THREADS_ROW(structure, member, text)                                                                       \
    CLI_NUMBER_ROW(structure, member, "threads", NULL, 1, 1024, text "; without it all processors")

#endif
