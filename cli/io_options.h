/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How drives are read and written: the option rows that all commands share, and what `penstock tune` saved for the drive.
 *
 * What the user gives wins; what he leaves open comes from the profile of the drive that holds the files, else it is the
 * library's default. The profile file is --io-profile, else $XDG_CONFIG_HOME/penstock/drives.json, else
 * ~/.config/penstock/drives.json.
 */
#ifndef PENSTOCK_CLI_IO_OPTIONS_H
#define PENSTOCK_CLI_IO_OPTIONS_H

#include <jansson.h>

#include "cli.h"
#include "penstock/tune.h"

typedef struct cli_io_options {
    const char *engine;
    uint64_t block_size, queue_depth, workers;
    const char *profile; /* a file, "none", or NULL for the usual one */
} cli_io_options;
enum { CLI_IO_ROWS = 5 };
extern const pst_option cli_io_rows[CLI_IO_ROWS];

/* The usual profile file; NULL when the environment names no place for it. Static storage. */
const char *cli_io_default_profile(void);

/* Settings for a handle, and where they come from. Keep it as long as `io` is used. */
typedef struct cli_io_choice {
    pst_io_options io; /* engine (NULL: auto), block_size, queue_depth, workers, single_submit; the rest is zero */
    char engine_text[PST_TUNE_ENGINE_BYTES];
    const char *from; /* "profile", "options" or "defaults" */
} cli_io_choice;

/* The members of a library call's options that a choice fills; and the settings that a call's report says it used. */
#define CLI_IO_MEMBERS(choice)                                                                                         \
    .io_engine = (choice).io.engine, .block_size = (choice).io.block_size, .queue_depth = (choice).io.queue_depth,     \
    .io_workers = (choice).io.workers, .io_single_submit = (choice).io.single_submit
#define CLI_IO_USED(report)                                                                                            \
    ((pst_io_options){.engine = (report)->io_engine,                                                                   \
                      .block_size = (report)->block_size,                                                              \
                      .queue_depth = (report)->queue_depth,                                                            \
                      .workers = (report)->io_workers,                                                                 \
                      .single_submit = (report)->io_single_submit})

/* Fills *out from the options and the profile of the drive (or drives) that hold `paths`, which need not exist yet. A
 * damaged usual profile is a warning, a named one that cannot be used an error. */
int cli_io_choose(const cli_io_options *options, const char *const *paths, uint32_t count, cli_io_choice *out,
                  pst_error *err);

/* The part of it for commands with option rows of their own: fills what is zero in `io` (an engine "auto" or NULL is
 * zero, too) from the profile. `profile`: as in cli_io_options. 1: done; 0: the profile has nothing for it. engine_text:
 * PST_TUNE_ENGINE_BYTES that io->engine may point to afterwards. */
int cli_io_apply_profile(const char *profile, const char *const *paths, uint32_t count, pst_io_options *io,
                         char *engine_text, pst_error *err);

/* {"engine", "block_size", "queue_depth", "workers", "single_submit", "from"} of the settings in use; NULL when out of
 * memory. */
json_t *cli_io_json(const pst_io_options *settings, const char *from);
/* "1 MiB", "640 KiB", "4097 bytes". Returns text. */
char *cli_io_block_text(uint64_t bytes, char *text, size_t text_bytes);

#endif
