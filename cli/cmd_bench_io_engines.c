/* SPDX-License-Identifier: Apache-2.0 */
/* bench io --list-engines: which I/O engines there are, whether they work here, and which one "auto" takes. */
#include <string.h>

#include "cmd_bench_io.h"
#include "output.h"
#include "penstock/io_engine.h"

static const struct {
    uint32_t flag;
    const char *key, *words;
} flag_names[] = {
    {PST_IO_ENGINE_SYNCHRONOUS, "synchronous", "one I/O per thread"},
    {PST_IO_ENGINE_FILE_SLOTS, "file_slots", "registers files"},
    {PST_IO_ENGINE_BUFFER_SLOTS, "buffer_slots", "registers buffers"},
    {PST_IO_ENGINE_NO_DATA, "no_data", "moves no data"},
};

int io_check_engine(const char *name, bool validate, pst_error *err)
{
    char names[256] = "auto";
    if (strcmp(name, "auto") == 0)
        return 0;
    pst_io_engine_info info = {.struct_size = sizeof info};
    for (uint32_t n = 0; pst_io_engine_at(n, &info) > 0; n++) {
        if (strcmp(info.name, name) == 0 && validate && (info.flags & PST_IO_ENGINE_NO_DATA) != 0)
            return cli_usage(err, "--validate: the engine %s moves no data that could be compared", name);
        if (strcmp(info.name, name) == 0)
            return 0;
        size_t used = strlen(names);
        snprintf(names + used, sizeof names - used, ", %s", info.name);
    }
    return cli_usage(err, "--io-engine: there is no engine \"%.40s\"; there are %s", name, names);
}

/* What "auto" takes for files at `path`; NULL when nothing works. */
static const char *automatic_choice(const char *path)
{
    pst_io_options options = {.struct_size = sizeof options, .path = path};
    pst_io *io;
    if (pst_io_open(&options, &io, NULL) < 0)
        return NULL;
    const char *name = pst_io_engine_name(io); /* static storage */
    pst_io_close(io);
    return name;
}

static json_t *flags_json(uint32_t flags)
{
    json_t *list = json_array();
    for (size_t i = 0; list != NULL && i < CLI_COUNT(flag_names); i++) {
        if ((flags & flag_names[i].flag) != 0)
            json_array_append_new(list, json_string(flag_names[i].key));
    }
    return list;
}

static json_t *engine_json(const pst_io_engine_info *info, const char *chosen)
{
    return json_pack("{s:s, s:b, s:o, s:s, s:o, s:b, s:b}", "name", info->name, "available", info->status >= 0,
                     "why_not", info->status >= 0 ? json_null() : json_string(info->why_not), "description",
                     info->description, "flags", flags_json(info->flags), "automatic", info->automatic,
                     "chosen_by_auto", chosen != NULL && strcmp(chosen, info->name) == 0);
}

static int print_engine(const pst_io_engine_info *info, const char *chosen, pst_error *err)
{
    char words[200] = "";
    for (size_t i = 0; i < CLI_COUNT(flag_names); i++) {
        size_t used = strlen(words);
        if ((info->flags & flag_names[i].flag) != 0)
            snprintf(words + used, sizeof words - used, "; %s", flag_names[i].words);
    }
    bool is_chosen = chosen != NULL && strcmp(chosen, info->name) == 0;
    PST_TRY(cli_out_printf(err, "%-12s %-4s %s%s%s\n", info->name, info->status >= 0 ? "yes" : "no", info->description,
                           words, is_chosen ? "; the choice of auto" : ""));
    if (info->status < 0)
        PST_TRY(cli_out_printf(err, "%-12s      why not: %s\n", "", info->why_not));
    return 0;
}

int io_list_engines(const io_values *values, const char *path, pst_error *err)
{
    const char *chosen = automatic_choice(path);
    pst_io_engine_info info = {.struct_size = sizeof info};
    if (!values->report.json) {
        PST_TRY(cli_out_printf(err, "%-12s %-4s\n", "engine", "works"));
        for (uint32_t n = 0; pst_io_engine_at(n, &info) > 0; n++)
            PST_TRY(print_engine(&info, chosen, err));
        return cli_out_flush(err);
    }
    json_t *results = json_array();
    for (uint32_t n = 0; results != NULL && pst_io_engine_at(n, &info) > 0; n++) {
        if (cli_json_append(results, engine_json(&info, chosen)) != 0) {
            json_decref(results);
            results = NULL;
        }
    }
    json_t *document = results == NULL ? NULL
                                       : json_pack("{s:o, s:o}", "results", results, "auto",
                                                   chosen != NULL ? json_string(chosen) : json_null());
    return cli_out_json(document, err);
}
