/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Quantizing on the fly: the option rows of generate, score and bench infer, and the copies that are made and found again.
 *
 * They lie in --offload-dir, else $XDG_CACHE_HOME/penstock/offload, else ~/.cache/penstock/offload.
 */
#ifndef PENSTOCK_CLI_OFFLOAD_H
#define PENSTOCK_CLI_OFFLOAD_H

#include "cli.h"
#include "io_options.h"
#include "penstock/jobs.h"

typedef struct cli_offload_options {
    const char *bits;
    uint64_t group_size;
    pst_option_strings folders;
} cli_offload_options;
enum { CLI_OFFLOAD_ROWS = 3 };
extern const pst_option cli_offload_rows[CLI_OFFLOAD_ROWS];

/* What of the session's options counts for making a copy, too. */
typedef struct cli_offload_running {
    const char *hf_cache;
    uint64_t host_memory, threads;
    const cli_io_options *io;
} cli_offload_running;

/* Whether the options ask for a copy. */
bool cli_offload_wanted(const cli_offload_options *options);
/* Finds the model's quantized copy or makes it. The caller closes *out. */
int cli_offload_open(const cli_offload_options *options, const cli_offload_running *running, const char *model,
                     pst_offload **out, pst_error *err);

#endif
