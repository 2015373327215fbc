/* SPDX-License-Identifier: Apache-2.0 */
/* penstock convert: a model again, in streaming order, quantized if wanted. */
#include <string.h>

#include "base/stats.h"
#include "common.h"
#include "interrupt.h"
#include "output.h"
#include "penstock/jobs.h"
#include "progress.h"

typedef struct convert_values {
    cli_report report;
    cli_lookup lookup;
    cli_io_options io;
    uint64_t group_size, shard_size, host_memory, threads;
    bool symmetric, keep_embedding, keep_head;
    const char *bits, *dtype;
} convert_values;

#define AT(member) .offset = offsetof(convert_values, member)

static const pst_option weight_rows[] = {
    {.name = "bits",
     .type = PST_OPTION_CHOICE,
     AT(bits),
     .choices = "8|4",
     .help = "quantize matrices to groups of 8 or 4 bits; without it numbers stay as they are"},
    CLI_NUMBER_ROW(convert_values, group_size, "group-size", "64", 2, 4096,
                   "weights that share a scale, an even number"),
    {.name = "symmetric",
     .type = PST_OPTION_FLAG,
     AT(symmetric),
     .help = "groups have a scale alone, no minimum: a little smaller, less exact"},
    {.name = "keep-embedding",
     .type = PST_OPTION_FLAG,
     AT(keep_embedding),
     .help = "do not quantize the embedding (nor a head that is the embedding)"},
    {.name = "keep-head", .type = PST_OPTION_FLAG, AT(keep_head), .help = "do not quantize the head"},
    {.name = "dtype",
     .type = PST_OPTION_CHOICE,
     AT(dtype),
     .choices = "bf16|f16|f32",
     .help = "element type of what is not quantized; without it as it is"},
    CLI_SHARD_SIZE_ROW(convert_values, shard_size),
};

static const pst_option running_rows[] = {
    {.name = "host-memory",
     .type = PST_OPTION_SIZE,
     AT(host_memory),
     .metavar = "SIZE",
     .min = 1,
     .help = "bound of the memory of the whole process; without it a sensible share of what is free"},
    CLI_THREADS_ROW(convert_values, threads, "threads that convert"),
};

static const pst_option_group groups[] = {
    CLI_OWN_GROUP("Weights", weight_rows),
    CLI_OWN_GROUP("Running", running_rows),
    CLI_SHARED_GROUP("Model lookup", cli_lookup_rows, convert_values, lookup),
    CLI_SHARED_GROUP("Drives", cli_io_rows, convert_values, io),
    CLI_SHARED_GROUP("Output", cli_report_rows, convert_values, report),
};

static int on_progress(void *user, uint64_t done_bytes, uint64_t total_bytes)
{
    return cli_job_progress("converting", user, done_bytes, total_bytes);
}

static int print_json(const pst_convert_report *report, const char *folder, double rate, const char *settings_from,
                      pst_error *err)
{
    const pst_io_options io = CLI_IO_USED(report);
    json_t *results =
        json_pack("[{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}]", "folder", folder, "parameters",
                  (json_int_t)report->parameters, "tensors", (json_int_t)report->tensors, "quantized",
                  (json_int_t)report->quantized, "left_out", (json_int_t)report->left_out, "files",
                  (json_int_t)report->files, "source_bytes", (json_int_t)report->source_bytes, "data_bytes",
                  (json_int_t)report->data_bytes, "file_bytes", (json_int_t)report->file_bytes);
    json_t *stats =
        json_pack("{s:f, s:f, s:I, s:o}", "total_seconds", report->seconds, "bytes_per_second", rate, "peak_rss_bytes",
                  (json_int_t)report->peak_rss_bytes, "io", cli_io_json(&io, settings_from));
    return cli_out_json(cli_json_document(results, stats), err);
}

static int print_report(const convert_values *values, const char *folder, const pst_convert_report *report,
                        const char *settings_from, pst_error *err)
{
    double moved = (double)report->source_bytes + (double)report->file_bytes;
    double rate = report->seconds > 0 ? moved / report->seconds : 0;
    if (values->report.json)
        return print_json(report, folder, rate, settings_from, err);
    char from[32], to[32], time[32], speed[32];
    PST_TRY(cli_out_safe(folder, err));
    PST_TRY(
        cli_out_printf(err, ": %llu tensors, %llu of them quantized, %s of %s in %u %s; %s (%s/s read and written)\n",
                       (unsigned long long)report->tensors, (unsigned long long)report->quantized,
                       pst_format_bytes((double)report->file_bytes, to, sizeof to),
                       pst_format_bytes((double)report->source_bytes, from, sizeof from), report->files,
                       report->files == 1 ? "file" : "files", pst_format_seconds(report->seconds, time, sizeof time),
                       pst_format_bytes(rate, speed, sizeof speed)));
    if (report->left_out > 0)
        cli_note("%llu tensors that inference does not use were left out", (unsigned long long)report->left_out);
    return cli_out_flush(err);
}

static int convert(const void *all_values, const pst_options_found *found, pst_error *err)
{
    const convert_values *values = all_values;
    const char *folder = found->operands[1];
    cli_io_choice io;
    cli_notes_start(&values->report);
    if (values->group_size % 2 != 0)
        return cli_usage(err, "--group-size %llu: groups have an even number of weights",
                         (unsigned long long)values->group_size);
    PST_TRY(cli_io_choose(&values->io, &folder, 1, &io, err));
    pst_convert_options options = {
        .struct_size = sizeof options,
        .model = found->operands[0],
        .cache = cli_hf_cache(&values->lookup),
        .folder = folder,
        .bits = values->bits == NULL     ? 0
                : values->bits[0] == '8' ? 8
                                         : 4,
        .group_size = (uint32_t)values->group_size,
        .symmetric = values->symmetric,
        .keep_embedding = values->keep_embedding,
        .keep_head = values->keep_head,
        .dtype = cli_dtype(values->dtype),
        .shard_bytes = values->shard_size,
        .host_memory_bytes = values->host_memory,
        CLI_IO_MEMBERS(io),
        .threads = (uint32_t)values->threads,
        .on_progress = on_progress,
        .user = (void *)folder,
    };
    pst_convert_report report;
    cli_interrupt_polled(true); /* what was written so far is removed before the program ends */
    int status = pst_convert(&options, &report, err);
    cli_interrupt_polled(false);
    cli_progress_end();
    PST_TRY(status);
    return print_report(values, folder, &report, io.from, err);
}

const cli_command cli_command_convert = {
    .spec = {.name = "convert",
             .operands = "MODEL OUT",
             .min_operands = 2,
             .max_operands = 2,
             .summary = "a model again, in streaming order, quantized if wanted",
             .description =
                 "Writes a folder OUT with the tensors of MODEL in the order in which inference needs them, "
                 "as safetensors with a digest of each tensor (see verify). With --bits the matrices, embedding and "
                 "head included, are quantized to groups of 8 or 4 bits, which all commands read and any reader of "
                 "safetensors can decode. One pass over MODEL within the memory budget. OUT must not exist; it "
                 "appears when it is complete and durable. Tensors that inference does not use are left out.",
             .example = "  penstock convert meta-llama/Llama-3.1-70B /mnt/nvme/llama-70b-4bit --bits 4\n",
             .groups = groups,
             .group_count = CLI_COUNT(groups),
             .values_bytes = sizeof(convert_values)},
    .run = convert,
};
