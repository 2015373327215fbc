/* SPDX-License-Identifier: Apache-2.0 */
/* The shared I/O options, and the profile that fills them in. */
#include "io_options.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"

const pst_option cli_io_rows[CLI_IO_ROWS] = {
    {.name = "io-engine",
     .type = PST_OPTION_CHOICE,
     .offset = offsetof(cli_io_options, engine),
     .choices = "auto|io_uring|libaio|threads",
     .initial = "auto",
     .help = "how files are read and written; auto takes what 'penstock tune' found best for the drive, else the best "
             "that the system allows"},
    {.name = "block-size",
     .type = PST_OPTION_SIZE,
     .offset = offsetof(cli_io_options, block_size),
     .metavar = "SIZE",
     .min = 4096,
     .max = 1 << 30,
     .multiple = 4096,
     .binary = true,
     .help =
         "bytes of one I/O, a multiple of 4096; K, M and G are powers of 1024 here, as in fio; without it as tuned, "
         "else 1M"},
    CLI_NUMBER_ROW(cli_io_options, queue_depth, "queue-depth", NULL, 1, 4096,
                   "I/Os in flight for each worker; without it as tuned, else 128"),
    CLI_NUMBER_ROW(
        cli_io_options, workers, "io-workers", NULL, 1, 64,
        "threads that share every transfer; without it as tuned, else 1, or 16 with the engine threads, in which "
        "each carries out one I/O at a time"),
    {.name = "io-profile",
     .type = PST_OPTION_STRING,
     .offset = offsetof(cli_io_options, profile),
     .metavar = "FILE|none",
     .help = "where 'penstock tune' saved its choices; without it $XDG_CONFIG_HOME/penstock/drives.json or "
             "~/.config/penstock/drives.json; none uses the defaults"},
};

const char *cli_io_default_profile(void)
{
    static char path[4096];
    static const cli_environment_place places[] = {
        {"XDG_CONFIG_HOME", "/penstock/drives.json"},
        {"HOME", "/.config/penstock/drives.json"},
    };
    return cli_environment_folder(places, CLI_COUNT(places), true, path, sizeof path);
}

int cli_io_apply_profile(const char *profile, const char *const *paths, uint32_t count, pst_io_options *io,
                         char *engine_text, pst_error *err)
{
    if (profile != NULL && strcmp(profile, "none") == 0)
        return 0;
    if (profile != NULL) {
        int found = pst_tune_check_profile(profile, err);
        PST_TRY(found);
        if (found == 0)
            return cli_usage(err, "--io-profile: there is no file %s; 'penstock tune DIR --profile FILE' makes one",
                             profile);
        return pst_tune_apply(profile, paths, count, io, engine_text, PST_TUNE_ENGINE_BYTES, err);
    }
    profile = cli_io_default_profile();
    if (profile == NULL)
        return 0;
    pst_error why = {.offset = PST_NO_OFFSET};
    int status = pst_tune_apply(profile, paths, count, io, engine_text, PST_TUNE_ENGINE_BYTES, &why);
    if (status >= 0)
        return status;
    char text[1200];
    cli_note("warning: the tuned I/O settings are not used: %s", pst_error_format(&why, text, sizeof text));
    return 0;
}

int cli_io_choose(const cli_io_options *options, const char *const *paths, uint32_t count, cli_io_choice *out,
                  pst_error *err)
{
    bool automatic = options->engine == NULL || strcmp(options->engine, "auto") == 0;
    *out = (cli_io_choice){.io = {.struct_size = sizeof out->io,
                                  .engine = automatic ? NULL : options->engine,
                                  .block_size = options->block_size,
                                  .queue_depth = (uint32_t)options->queue_depth,
                                  .workers = (uint32_t)options->workers}};
    bool given = !automatic || options->block_size != 0 || options->queue_depth != 0 || options->workers != 0;
    int applied = cli_io_apply_profile(options->profile, paths, count, &out->io, out->engine_text, err);
    PST_TRY(applied);
    out->from = applied == 1 ? "profile" : given ? "options" : "defaults";
    return 0;
}

json_t *cli_io_json(const pst_io_options *settings, const char *from)
{
    return json_pack("{s:s, s:I, s:I, s:I, s:b, s:s}", "engine", settings->engine, "block_size",
                     (json_int_t)settings->block_size, "queue_depth", (json_int_t)settings->queue_depth, "workers",
                     (json_int_t)settings->workers, "single_submit", settings->single_submit, "from", from);
}

char *cli_io_block_text(uint64_t bytes, char *text, size_t text_bytes)
{
    if (bytes % (1 << 20) == 0)
        snprintf(text, text_bytes, "%llu MiB", (unsigned long long)(bytes >> 20));
    else if (bytes % 1024 == 0)
        snprintf(text, text_bytes, "%llu KiB", (unsigned long long)(bytes >> 10));
    else
        snprintf(text, text_bytes, "%llu bytes", (unsigned long long)bytes);
    return text;
}
