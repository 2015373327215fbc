/* SPDX-License-Identifier: Apache-2.0 */
/* Batch jobs on the command line: what generate and score share of them. */
#ifndef PENSTOCK_CLI_BATCH_H
#define PENSTOCK_CLI_BATCH_H

#include "common.h"
#include "penstock/batch.h"

typedef struct cli_batch {
    const char *input, *output;
    bool restart;
} cli_batch;
enum { CLI_BATCH_ROWS = 3 };
extern const pst_option cli_batch_rows[CLI_BATCH_ROWS];

/* Whether a batch job is asked for; fails where half of one is. `others`: prompts or texts were given besides. */
int cli_batch_wanted(const cli_batch *batch, bool others, pst_error *err);

/* A job for an engine whose model is open. */
typedef struct cli_batch_job {
    const cli_batch *batch;
    cli_engine *engine;
    const cli_runtime *runtime;
    const cli_report *report;
    bool resident_given;
    uint64_t batch_size;       /* 0: as many as suit the job */
    pst_batch_options options; /* what lines do not say themselves; the rest is filled in */
} cli_batch_job;
int cli_batch_run(cli_batch_job *job, pst_error *err);

#endif
