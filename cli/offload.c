/* SPDX-License-Identifier: Apache-2.0 */
/* The folder is chosen here, since the library does not read the environment. */
#include "offload.h"

#include <stdlib.h>
#include <string.h>

#include "base/stats.h"
#include "common.h"
#include "interrupt.h"
#include "progress.h"

const pst_option cli_offload_rows[CLI_OFFLOAD_ROWS] = {
    {.name = "quant-bits",
     .type = PST_OPTION_CHOICE,
     .offset = offsetof(cli_offload_options, bits),
     .choices = "16|8|4",
     .initial = "16",
     .help =
         "bits of a weight; with 8 or 4 a copy of the model is quantized the first time (as 'penstock convert' does) "
         "and used again as long as the model is the same; 16 uses the weights as they are"},
    CLI_NUMBER_ROW(cli_offload_options, group_size, "quant-group-size", "64", 2, 4096,
                   "weights that share a scale, an even number"),
    {.name = "offload-dir",
     .type = PST_OPTION_STRINGS,
     .offset = offsetof(cli_offload_options, folders),
     .metavar = "DIR",
     .help = "where such copies lie; given several times, weights are spread over these folders, usually one on each "
             "drive, which are then read at once; without it $XDG_CACHE_HOME/penstock/offload or "
             "~/.cache/penstock/offload; weights that are not quantized stream from the model itself"},
};

bool cli_offload_wanted(const cli_offload_options *options)
{
    return strcmp(options->bits, "16") != 0;
}

/* NULL when the environment names no place. Static storage. */
static const char *default_folder(void)
{
    static char path[4096];
    static const cli_environment_place places[] = {{"XDG_CACHE_HOME", "/penstock/offload"},
                                                   {"HOME", "/.cache/penstock/offload"}};
    return cli_environment_folder(places, CLI_COUNT(places), false, path, sizeof path);
}

/* What the progress has shown so far. */
typedef struct showing {
    const char *folder;
    bool waited, began;
} showing;

static int on_progress(void *user, uint64_t done_bytes, uint64_t total_bytes)
{
    showing *s = user;
    char size[32];
    if (total_bytes == 0) {
        if (!s->waited)
            cli_note("another process quantizes this model into %s; waiting for it", s->folder);
        s->waited = true;
        return cli_interrupted();
    }
    if (!s->began) {
        cli_note("quantizing once: writing %s to %s", pst_format_bytes((double)total_bytes, size, sizeof size),
                 s->folder);
        cli_progress_begin("quantizing", "bytes", total_bytes);
    }
    s->began = true;
    cli_progress_update(done_bytes);
    return cli_interrupted();
}

int cli_offload_open(const cli_offload_options *options, const cli_offload_running *running, const char *model,
                     pst_offload **out, pst_error *err)
{
    const char *usual = default_folder(), *const *folders = options->folders.items;
    size_t count = options->folders.count;
    cli_io_choice io;
    if (options->group_size % 2 != 0)
        return cli_usage(err, "--quant-group-size %llu: groups have an even number of weights",
                         (unsigned long long)options->group_size);
    if (count > 64)
        return cli_usage(err, "--offload-dir is given %zu times; 64 are enough", count);
    if (count == 0) {
        if (usual == NULL)
            return cli_usage(err, "--quant-bits needs --offload-dir: neither $XDG_CACHE_HOME nor $HOME names a place");
        folders = &usual;
        count = 1;
    }
    for (size_t i = 0; i < count; i++)
        if (folders[i][0] == '\0')
            return cli_usage(err, "--offload-dir needs a folder's name");
    PST_TRY(cli_io_choose(running->io, folders, (uint32_t)count, &io, err));
    showing shown = {.folder = folders[0]};
    const pst_offload_options request = {
        .struct_size = sizeof request,
        .model = model,
        .cache = running->hf_cache,
        .folders = folders,
        .folder_count = (uint32_t)count,
        .bits = options->bits[0] == '8' ? 8 : 4,
        .group_size = (uint32_t)options->group_size,
        .host_memory_bytes = running->host_memory,
        CLI_IO_MEMBERS(io),
        .threads = (uint32_t)running->threads,
        .on_progress = on_progress,
        .user = &shown,
    };
    cli_interrupt_polled(true); /* what was written so far is removed before the program ends */
    int status = pst_offload_open(&request, out, err);
    cli_interrupt_polled(false);
    cli_progress_end();
    return status;
}
