/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What commands that run a model share: their option rows, the model, the session, notes on stderr.
 */
#ifndef PENSTOCK_CLI_COMMON_H
#define PENSTOCK_CLI_COMMON_H

#include <jansson.h>

#include "cli.h"
#include "io_options.h"
#include "offload.h"
#include "penstock/model.h"

/* How a command reports: every command has these. */
typedef struct cli_report {
    bool json;
    uint64_t verbose; /* 1: choices that were made; 2: everything */
} cli_report;
enum { CLI_REPORT_ROWS = 2 };
extern const pst_option cli_report_rows[CLI_REPORT_ROWS];

/* Where a model name is looked up. */
typedef struct cli_lookup {
    const char *hf_cache;
} cli_lookup;
enum { CLI_LOOKUP_ROWS = 1 };
extern const pst_option cli_lookup_rows[CLI_LOOKUP_ROWS];

/* Where weights are, as ZeRO-Inference's users say it, and the cache of experts: with cli_runtime. */
typedef struct cli_placement {
    bool cpu_offload, disk_offload;
    uint64_t pin_memory;
    const char *expert_cache;
} cli_placement;
enum { CLI_PLACEMENT_ROWS = 4 };
extern const pst_option cli_placement_rows[CLI_PLACEMENT_ROWS];

/* Memory, streaming and compute: generate, score and bench infer. */
typedef struct cli_runtime {
    uint64_t host_memory;
    pst_option_share resident;
    const char *compute_type, *kv_bits, *kv_dir, *kernels, *trace;
    uint64_t threads;
    const char *device;
    uint64_t device_memory;
    bool kv_offload;
    const char *device_graphs;
    cli_placement placement;     /* with cli_placement_rows, likewise */
    cli_io_options io;           /* with cli_io_rows, a group of their own */
    cli_offload_options offload; /* with cli_offload_rows, likewise */
} cli_runtime;
enum { CLI_RUNTIME_ROWS = 12 };
extern const pst_option cli_runtime_rows[CLI_RUNTIME_ROWS];

/* Enters what was asked of the placement of weights. */
int cli_place(const cli_placement *placement, bool resident_given, pst_session_options *out, pst_error *err);
/* "f32", "f16", "bf16" or "f8"; 0 for NULL. */
pst_dtype cli_dtype(const char *name);
/* The progress of a job that moves so many bytes, as the library tells it, with a note where it writes more than is done
 * in a blink. folder: which it writes, NULL: none. Returns what cancels the job, or 0. */
int cli_job_progress(const char *doing, const char *folder, uint64_t done_bytes, uint64_t total_bytes);
/* What --compute-type and --kv-bits say. */
pst_compute_type cli_compute_type(const cli_runtime *runtime);
uint32_t cli_kv_bits(const cli_runtime *runtime);

/* Of commands that write a model. */
#define CLI_SHARD_SIZE_ROW(structure, member)                                                                          \
    {                                                                                                                  \
        .name = "shard-size", .type = PST_OPTION_SIZE, .offset = offsetof(structure, member), .metavar = "SIZE",       \
        .initial = "5G", .min = 1, .max = 1e18,                                                                        \
        .help = "the most tensor data of one file, unless one tensor is larger"                                        \
    }

/* A command's groups: its own rows, whose offsets are those of its structure, and shared rows at a member of it. */
#define CLI_OWN_GROUP(title_text, rows)                                                                                \
    {                                                                                                                  \
        .title = title_text, .options = rows, .count = CLI_COUNT(rows)                                                 \
    }
#define CLI_SHARED_GROUP(title_text, rows, structure, member)                                                          \
    {                                                                                                                  \
        .title = title_text, .options = rows, .count = CLI_COUNT(rows), .base = offsetof(structure, member)            \
    }

/* Those of a command that runs a model, in two parts: what other groups may stand between. */
#define CLI_MEMORY_GROUPS(structure)                                                                                   \
    CLI_SHARED_GROUP("Memory, streaming and compute", cli_runtime_rows, structure, runtime),                           \
        CLI_SHARED_GROUP("Placement of weights", cli_placement_rows, structure, runtime.placement)
#define CLI_MODEL_GROUPS(structure)                                                                                    \
    CLI_SHARED_GROUP("Drives", cli_io_rows, structure, runtime.io),                                                    \
        CLI_SHARED_GROUP("Quantizing on the fly", cli_offload_rows, structure, runtime.offload),                       \
        CLI_SHARED_GROUP("Model lookup", cli_lookup_rows, structure, lookup),                                          \
        CLI_SHARED_GROUP("Output", cli_report_rows, structure, report)

/* Sends the library's notes to stderr, as many as --verbose asks for. */
void cli_notes_start(const cli_report *report);
/* "penstock: ..." on stderr, control characters replaced, a progress line cleared before. */
void cli_note(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* "penstock: error: ..." on stderr, one line whatever the message holds. */
void cli_print_error(const pst_error *err);

/* Whether a trace or a chart can be written there is found out before hours of work, by a file of its own beside it. */
int cli_check_writable(const char *path, pst_error *err);

/* Fails with CLI_E_USAGE. */
#define cli_usage(err, ...) pst_fail((err), CLI_E_USAGE, NULL, __VA_ARGS__)

/* The Hugging Face hub folder: --hf-cache, else $HF_HUB_CACHE, $HF_HOME/hub, $XDG_CACHE_HOME/huggingface/hub,
 * ~/.cache/huggingface/hub. NULL when there is none of these. Static storage. */
const char *cli_hf_cache(const cli_lookup *lookup);
/* The first folder of `places` whose variable the environment has: its value and the suffix, in path. NULL: none.
 * absolute: values that do not begin with / are passed over, as the XDG specification has it. */
typedef struct cli_environment_place {
    const char *variable, *suffix;
} cli_environment_place;
const char *cli_environment_folder(const cli_environment_place *places, size_t count, bool absolute, char *path,
                                   size_t path_bytes);

/* A model with its session; close with cli_engine_close, in any state. */
typedef struct cli_engine {
    pst_model *model;
    pst_offload *offload; /* NULL: the model is not a quantized copy */
    pst_session *session;
    pst_trace *trace;
    const char *trace_path;
    pst_model_info info;
    pst_plan_info plan;
    cli_io_choice io;
} cli_engine;

/* Opens the model alone; where the runtime options ask for it, its quantized copy, which may have to be made first. */
int cli_engine_open(cli_engine *engine, const char *model, const cli_lookup *lookup, const cli_runtime *runtime,
                    pst_error *err);
/* What the command itself allocates while the session runs, with so many sequences in flight: the session is planned so
 * that this fits in the budget too. */
typedef struct cli_needs {
    uint64_t (*bytes)(const void *user, uint32_t sequences);
    const void *user;
    const pst_workload *work; /* NULL: the command, or its caller, chose how many sequences run at once */
    bool logits;              /* the session's logits are looked at */
} cli_needs;
/* What is said of --kv-offload where no accelerator computes. */
#define CLI_KV_OFFLOAD_IDLE                                                                                            \
    "--kv-offload has no effect: the host's processor computes, from its own memory; --kv-dir keeps keys and values "  \
    "in "                                                                                                              \
    "a file"
/* Opens the session: `shape` says sequences and lengths, the runtime options the rest. With needs->work so many sequences run
 * at once, up to the shape's, as suit that work. With `shrink`, fewer are tried while the memory budget is too small. */
int cli_engine_start(cli_engine *engine, const cli_runtime *runtime, bool resident_given, pst_session_options *shape,
                     bool shrink, const cli_needs *needs, pst_error *err);
/* Around each run of the session: in between a signal cancels it, elsewhere a signal ends the program at once. The
 * latter returns the run's status, or PST_E_CANCELLED when a signal came too late to stop it. */
void cli_engine_run_begins(cli_engine *engine);
int cli_engine_run_ended(int status, pst_error *err);
/* Memory that one request takes from pst_generate and its result. */
uint64_t cli_generation_bytes(uint64_t new_tokens);
/* The figures of a run as JSON, with "device", which computed, and "io": the settings that its weights were read with. NULL:
 * out of memory. */
json_t *cli_engine_stats(const cli_engine *engine, const pst_run_stats *stats);
/* Writes --trace, if asked for. */
int cli_engine_write_trace(cli_engine *engine, pst_error *err);
void cli_engine_close(cli_engine *engine);

/* The one closing line of a run on stderr; with --verbose every figure before it. */
void cli_closing_lines(const pst_run_stats *stats, uint64_t tokens, const cli_report *report);

#endif
