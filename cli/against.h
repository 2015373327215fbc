/* SPDX-License-Identifier: Apache-2.0 */
/* bench infer --against: another library on the same work, in interleaved pairs; bench/against.py does it. */
#ifndef PENSTOCK_CLI_AGAINST_H
#define PENSTOCK_CLI_AGAINST_H

#include "cli.h"

typedef struct cli_against {
    const char *library; /* "accelerate", "deepspeed", "llamacpp"; NULL: no comparison */
    const char *python, *drivers, *llama_bench, *gguf;
    uint64_t pairs, peer_batch_size; /* 0: the same */
} cli_against;
enum { CLI_AGAINST_ROWS = 7 };
extern const pst_option cli_against_rows[CLI_AGAINST_ROWS];

/* The work of both sides. */
typedef struct cli_against_work {
    const char *model;
    uint64_t batch_size, prompt_len, gen_len, loops, threads, host_memory;
    const char *const *options; /* further ones of bench infer for this side, NULL-terminated */
    bool json;
} cli_against_work;

/* Runs the comparison to its end; its report goes to standard output. */
int cli_against_run(const cli_against *against, const cli_against_work *work, pst_error *err);

/* Finds a driver, a path below bench/: in `drivers`, or (NULL) where they are installed, or in the source tree. */
int cli_find_driver(const char *drivers, const char *name, char *out, size_t bytes, pst_error *err);

#endif
