/* SPDX-License-Identifier: Apache-2.0 */
/* penstock verify: the digests of a converted model, computed again. */
#include "base/stats.h"
#include "common.h"
#include "interrupt.h"
#include "output.h"
#include "penstock/jobs.h"
#include "progress.h"

typedef struct verify_values {
    cli_report report;
    cli_lookup lookup;
    cli_io_options io;
    uint64_t threads;
} verify_values;

static const pst_option running_rows[] = {
    CLI_THREADS_ROW(verify_values, threads, "threads that read and compute"),
};

static const pst_option_group groups[] = {
    CLI_OWN_GROUP("Running", running_rows),
    CLI_SHARED_GROUP("Model lookup", cli_lookup_rows, verify_values, lookup),
    CLI_SHARED_GROUP("Drives", cli_io_rows, verify_values, io),
    CLI_SHARED_GROUP("Output", cli_report_rows, verify_values, report),
};

/* What a finding becomes: a line, or an entry. */
typedef struct findings {
    json_t *damaged; /* tensors; NULL: lines */
    json_t *broken;  /* what else there is */
    int status;
    pst_error *err;
} findings;

static int on_progress(void *user, uint64_t done_bytes, uint64_t total_bytes)
{
    (void)user;
    return cli_job_progress("verifying", NULL, done_bytes, total_bytes);
}

static int print_finding(const pst_verify_finding *finding, pst_error *err)
{
    PST_TRY(cli_out_safe(finding->file, err));
    PST_TRY(cli_out_text(": damaged: ", err));
    if (finding->tensor != NULL) {
        PST_TRY(cli_out_safe(finding->tensor, err));
        PST_TRY(cli_out_text(": ", err));
    }
    PST_TRY(cli_out_safe(finding->what, err));
    if (finding->offset != PST_NO_OFFSET && finding->bytes > 0)
        PST_TRY(cli_out_printf(err, " (bytes %llu to %llu)", (unsigned long long)finding->offset,
                               (unsigned long long)(finding->offset + finding->bytes - 1)));
    else if (finding->offset != PST_NO_OFFSET)
        PST_TRY(cli_out_printf(err, " (at byte %llu)", (unsigned long long)finding->offset));
    return cli_out_text("\n", err);
}

static void on_finding(void *user, const pst_verify_finding *finding)
{
    findings *f = user;
    if (!finding->damaged) {
        cli_note("%s %s", finding->file, finding->what);
        return;
    }
    if (f->damaged == NULL) {
        if (f->status >= 0)
            f->status = print_finding(finding, f->err);
        return;
    }
    json_t *entry = json_pack("{s:s, s:s}", "file", finding->file, "what", finding->what);
    if (finding->tensor != NULL)
        json_object_set_new(entry, "tensor", json_string(finding->tensor));
    if (finding->offset != PST_NO_OFFSET) {
        json_object_set_new(entry, "offset", json_integer((json_int_t)finding->offset));
        json_object_set_new(entry, "bytes", json_integer((json_int_t)finding->bytes));
    }
    cli_json_append(finding->tensor != NULL ? f->damaged : f->broken, entry);
}

static int print_report(const verify_values *values, const pst_verify_report *report, findings *f, pst_error *err)
{
    double rate = report->seconds > 0 ? (double)report->bytes / report->seconds : 0;
    if (values->report.json) {
        json_t *results = json_pack(
            "[{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:O, s:O}]", "files", (json_int_t)report->files,
            "files_without_digests", (json_int_t)report->files_without_digests, "files_with_crcs_only",
            (json_int_t)report->files_with_crcs_only, "tensors", (json_int_t)report->tensors, "checked",
            (json_int_t)report->checked, "damaged", (json_int_t)report->damaged, "broken", (json_int_t)report->broken,
            "bytes", (json_int_t)report->bytes, "damaged_tensors", f->damaged, "other_damage", f->broken);
        json_t *stats = json_pack("{s:f, s:f}", "total_seconds", report->seconds, "read_bytes_per_second", rate);
        return cli_out_json(cli_json_document(results, stats), err);
    }
    PST_TRY(f->status);
    char size[32], time[32], speed[32];
    char others[64] = "";
    if (report->broken > 0)
        snprintf(others, sizeof others, ", %llu other damage%s", (unsigned long long)report->broken,
                 report->broken == 1 ? "" : "s");
    PST_TRY(cli_out_printf(
        err, "%llu of %llu tensors checked, %llu damaged%s; %s read in %s (%s/s)\n",
        (unsigned long long)report->checked, (unsigned long long)report->tensors, (unsigned long long)report->damaged,
        others, pst_format_bytes((double)report->bytes, size, sizeof size),
        pst_format_seconds(report->seconds, time, sizeof time), pst_format_bytes(rate, speed, sizeof speed)));
    return cli_out_flush(err);
}

static int verify(const void *all_values, const pst_options_found *found, pst_error *err)
{
    const verify_values *values = all_values;
    const char *path = found->operands[0];
    cli_io_choice io;
    cli_notes_start(&values->report);
    PST_TRY(cli_io_choose(&values->io, &path, 1, &io, err));
    findings f = {.err = err};
    if (values->report.json) {
        f.damaged = json_array();
        f.broken = json_array();
    }
    pst_verify_options options = {
        .struct_size = sizeof options,
        .path = path,
        .cache = cli_hf_cache(&values->lookup),
        .on_finding = on_finding,
        .on_progress = on_progress,
        .user = &f,
        CLI_IO_MEMBERS(io),
        .threads = (uint32_t)values->threads,
    };
    pst_verify_report report;
    cli_interrupt_polled(true);
    int status = pst_verify(&options, &report, err);
    cli_interrupt_polled(false);
    cli_progress_end();
    if (status >= 0)
        status = print_report(values, &report, &f, err);
    json_decref(f.damaged);
    json_decref(f.broken);
    PST_TRY(status);
    if (report.damaged > 0)
        return pst_fail(err, PST_E_FORMAT, path, "%llu of its tensors are damaged", (unsigned long long)report.damaged);
    if (report.broken > 0)
        return pst_fail(err, PST_E_FORMAT, path, "damaged, though not in a tensor's data");
    return 0;
}

const cli_command cli_command_verify = {
    .spec = {.name = "verify",
             .operands = "PATH",
             .min_operands = 1,
             .max_operands = 1,
             .summary = "whether a checkpoint's bytes are those that were written",
             .description = "Reads every tensor of a checkpoint - a safetensors file or a folder of them, a file of "
                            "torch.save, a step's folder, a training folder with all its steps, or org/name - and "
                            "compares it with its digest, every record of a torch file with its CRC, and what is "
                            "around them (headers, padding, tables) with the file's own digest; of a step also the "
                            "manifest, and that its files are those it names. One line on standard output for each "
                            "damage, with the bytes of the file where it is, and exit status 1 if there is one. Of "
                            "files without digests the structure and the CRCs are checked, and a note says so.",
             .example = "  penstock verify /mnt/nvme/llama-70b-4bit\n",
             .groups = groups,
             .group_count = CLI_COUNT(groups),
             .values_bytes = sizeof(verify_values)},
    .run = verify,
};
