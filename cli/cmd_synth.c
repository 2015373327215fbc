/* SPDX-License-Identifier: Apache-2.0 */
/* penstock synth: a checkpoint of a known shape with seeded random weights, to measure without downloading. */
#include <string.h>

#include "base/stats.h"
#include "common.h"
#include "interrupt.h"
#include "output.h"
#include "penstock/jobs.h"
#include "progress.h"

typedef struct synth_values {
    cli_report report;
    cli_io_options io;
    uint64_t layers, seed, shard_size, threads;
    const char *dtype;
    bool sparse;
} synth_values;

#define AT(member) .offset = offsetof(synth_values, member)

static const pst_option shape_rows[] = {
    CLI_NUMBER_ROW(synth_values, layers, "layers", NULL, 1, 4096, "cut the shape to N layers; without it all of them"),
    {.name = "seed",
     .type = PST_OPTION_U64,
     AT(seed),
     .metavar = "N",
     .initial = "0",
     .help = "of the weights; the same seed gives the same weights, whatever the other options are"},
    {.name = "dtype",
     .type = PST_OPTION_CHOICE,
     AT(dtype),
     .choices = "bf16|f16|f32|f8",
     .help =
         "element type of the weights; without it bf16, or f8 with scales of blocks where the model was published so"},
    {.name = "sparse",
     .type = PST_OPTION_FLAG,
     AT(sparse),
     .help = "files of full length with holes for weights, which read as zeros and take no room: models that fit no "
             "drive here can be planned and their reading be tried"},
    CLI_SHARD_SIZE_ROW(synth_values, shard_size),
};

static const pst_option writing_rows[] = {
    CLI_THREADS_ROW(synth_values, threads, "threads that make the numbers"),
};

static const pst_option_group groups[] = {
    CLI_OWN_GROUP("Shape and weights", shape_rows),
    CLI_OWN_GROUP("Writing", writing_rows),
    CLI_SHARED_GROUP("Drives", cli_io_rows, synth_values, io),
    CLI_SHARED_GROUP("Output", cli_report_rows, synth_values, report),
};

/* The shape, or wrong usage with the names that there are. */
static int check_shape(const char *shape, pst_error *err)
{
    char names[1024] = "";
    for (const char *const *name = pst_synth_shape_names(); *name != NULL; name++) {
        if (strcmp(*name, shape) == 0)
            return 0;
        size_t used = strlen(names);
        snprintf(names + used, sizeof names - used, "%s%s", used > 0 ? ", " : "", *name);
    }
    return cli_usage(err, "unknown shape \"%.60s\"; there are %s", shape, names);
}

static int on_progress(void *user, uint64_t done_bytes, uint64_t total_bytes)
{
    return cli_job_progress("writing", user, done_bytes, total_bytes);
}

static int print_report(const synth_values *values, const char *shape, const char *folder,
                        const pst_synth_report *report, const char *settings_from, pst_error *err)
{
    const pst_io_options io = CLI_IO_USED(report);
    double rate = report->seconds > 0 ? (double)report->file_bytes / report->seconds : 0;
    if (values->report.json) {
        json_t *results =
            json_pack("[{s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I}]", "shape", shape, "folder", folder, "layers",
                      (json_int_t)report->layers, "parameters", (json_int_t)report->parameters, "tensors",
                      (json_int_t)report->tensors, "files", (json_int_t)report->files, "data_bytes",
                      (json_int_t)report->data_bytes, "file_bytes", (json_int_t)report->file_bytes);
        json_t *stats = json_pack("{s:f, s:f, s:o}", "total_seconds", report->seconds, "write_bytes_per_second", rate,
                                  "io", cli_io_json(&io, settings_from));
        return cli_out_json(cli_json_document(results, stats), err);
    }
    char size[32], time[32], speed[32];
    bool billions = report->parameters >= 1000000000;
    PST_TRY(cli_out_printf(
        err, "%s: %s, %u layers, %.3g %s parameters, %s in %u %s, written in %s (%s/s)\n", folder, shape,
        report->layers, (double)report->parameters / (billions ? 1e9 : 1e6), billions ? "billion" : "million",
        pst_format_bytes((double)report->file_bytes, size, sizeof size), report->files,
        report->files == 1 ? "file" : "files", pst_format_seconds(report->seconds, time, sizeof time),
        pst_format_bytes(rate, speed, sizeof speed)));
    return cli_out_flush(err);
}

static int synth(const void *all_values, const pst_options_found *found, pst_error *err)
{
    const synth_values *values = all_values;
    const char *shape = found->operands[0], *folder = found->operands[1];
    cli_io_choice io;
    cli_notes_start(&values->report);
    PST_TRY(check_shape(shape, err));
    PST_TRY(cli_io_choose(&values->io, &folder, 1, &io, err));
    pst_synth_options options = {
        .struct_size = sizeof options,
        .shape = shape,
        .folder = folder,
        .layers = (uint32_t)values->layers,
        .seed = values->seed,
        .dtype = cli_dtype(values->dtype),
        .sparse = values->sparse,
        .shard_bytes = values->shard_size,
        CLI_IO_MEMBERS(io),
        .threads = (uint32_t)values->threads,
        .on_progress = on_progress,
        .user = (void *)folder,
    };
    pst_synth_report report;
    cli_interrupt_polled(true); /* what was written so far is removed before the program ends */
    int status = pst_synth(&options, &report, err);
    cli_interrupt_polled(false);
    cli_progress_end();
    PST_TRY(status);
    return print_report(values, shape, folder, &report, io.from, err);
}

const cli_command cli_command_synth = {
    .spec = {.name = "synth",
             .operands = "SHAPE OUT",
             .min_operands = 2,
             .max_operands = 2,
             .summary = "a checkpoint of a known shape with random weights",
             .description =
                 "Writes a folder OUT in the Hugging Face layout whose weights have the shape of a known model and "
                 "seeded random values, to measure with and without downloading. Shapes: llama3-8b, llama3-70b, "
                 "llama3.1-8b, llama3.2-1b, llama2-7b, mistral-7b, qwen2-7b, qwen3-8b; opt-1.3b, opt-30b, opt-66b, "
                 "opt-175b, bloom-176b, gpt2-xl, mixtral-8x7b, mixtral-8x22b, qwen3-30b-a3b, qwen3-235b-a22b and "
                 "deepseek-r1 as far as this version knows their families; huge-15t (15 trillion parameters, for "
                 "--sparse); tiny and tiny-FAMILY, which are written in a blink. OUT must not exist; it appears when "
                 "it is complete and durable.",
             .example = "  penstock synth llama3-8b /mnt/nvme/llama3-8b\n"
                        "  penstock synth llama3-70b /mnt/nvme/cut --layers 8\n"
                        "  penstock synth huge-15t /tmp/huge --sparse --shard-size 1T\n",
             .groups = groups,
             .group_count = CLI_COUNT(groups),
             .values_bytes = sizeof(synth_values)},
    .run = synth,
};
