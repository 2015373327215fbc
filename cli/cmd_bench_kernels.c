/* SPDX-License-Identifier: Apache-2.0 */
/*
 * penstock bench kernels: every operator of a device at the shapes of a model, beside what memory, products and link of the
 * same device give in the same run. A line comes with each result; --json has every repetition.
 */
#include <stdlib.h>
#include <string.h>

#include "base/stats.h"
#include "common.h"
#include "interrupt.h"
#include "machine.h"
#include "output.h"
#include "penstock/bench_kernels.h"

typedef struct kernels_values {
    cli_report report;
    cli_lookup lookup;
    const char *device, *quant_bits, *compute_type, *kv_bits, *kernels, *only;
    pst_option_ids rows;
    uint64_t context, loops, memory, threads;
    double seconds;
} kernels_values;

#define AT(member) .offset = offsetof(kernels_values, member)

static const pst_option work_rows[] = {
    {.name = "device",
     .type = PST_OPTION_STRING,
     AT(device),
     .metavar = "NAME",
     .initial = "auto",
     .help =
         "what is measured: host, cuda, cuda:N, a plugin's file; auto is the first accelerator that works, else the "
         "host"},
    {.name = "rows",
     .type = PST_OPTION_IDS,
     AT(rows),
     .metavar = "N,N,...",
     .help = "rows of a pass, each number for itself; up to 64 are as many sequences with --context positions each, "
             "more are one prompt; without it 1,32,512"},
    CLI_NUMBER_ROW(kernels_values, context, "context", NULL, 1, 1e9,
                   "positions of a sequence; without it 4096, or what the model was made for if that is less"),
    {.name = "quant-bits",
     .type = PST_OPTION_CHOICE,
     AT(quant_bits),
     .choices = "16|8|4",
     .initial = "16",
     .help = "8 or 4: weights as if they had been converted to so many bits; 16: as they are"},
    {.name = "compute-type",
     .type = PST_OPTION_CHOICE,
     AT(compute_type),
     .choices = "auto|f32|bf16",
     .initial = "auto",
     .help = "element type of the activations that are multiplied; auto is f32 where weights are, else bf16"},
    {.name = "kv-bits",
     .type = PST_OPTION_CHOICE,
     AT(kv_bits),
     .choices = "4|8|16|32",
     .initial = "16",
     .help = "bits of a cached key or value"},
    {.name = "only",
     .type = PST_OPTION_STRING,
     AT(only),
     .metavar = "NAME,...",
     .help = "these operators alone: matmul, matmul_grouped, matmul_heads, attention, kv_store, rms_norm, layer_norm, "
             "activate, gated, rope, copy_blocks, route, take_rows, add_rows, convert, log_sum_exp, top"},
};

static const pst_option measuring_rows[] = {
    CLI_NUMBER_ROW(kernels_values, loops, "loops", "5", 1, PST_KERNELS_MAX_REPETITIONS,
                   "repetitions; the median counts"),
    {.name = "seconds",
     .type = PST_OPTION_DOUBLE,
     AT(seconds),
     .metavar = "S",
     .initial = "0.05",
     .min = 1e-6,
     .max = 3600,
     .help = "that a repetition takes at least: as many calls as that needs"},
    {.name = "memory",
     .type = PST_OPTION_SIZE,
     AT(memory),
     .metavar = "SIZE",
     .min = 1,
     .help =
         "memory of the device that operands are taken from; without it as much as keeps them out of caches, half of "
         "what is free at most"},
    CLI_THREADS_ROW(kernels_values, threads, "threads of the host device"),
    {.name = "kernels",
     .type = PST_OPTION_CHOICE,
     AT(kernels),
     .choices = "auto|portable|avx2|avx512|avx512bf16",
     .initial = "auto",
     .help = "instruction set of the host device; auto is the best of this processor"},
};

static const pst_option_group groups[] = {
    CLI_OWN_GROUP("What is measured", work_rows),
    CLI_OWN_GROUP("Measuring", measuring_rows),
    CLI_SHARED_GROUP("Model lookup", cli_lookup_rows, kernels_values, lookup),
    CLI_SHARED_GROUP("Output", cli_report_rows, kernels_values, report),
};

typedef struct kernels_job {
    const kernels_values *values;
    json_t *rates, *results; /* NULL: text */
    pst_error *err;
    int status; /* of printing */
    bool had_rates;
} kernels_job;

/* ---- Results as they come ---- */

static double share_of(const pst_kernels_result *r)
{
    return r->seconds > 0 ? r->bound_seconds / r->seconds : 0;
}

static const char *limit_name(pst_kernels_limit limit)
{
    return limit == PST_KERNELS_MATRIX ? "products" : limit == PST_KERNELS_MEMORY ? "memory" : "";
}

static json_t *result_json(const pst_kernels_result *r)
{
    json_t *samples = json_array();
    for (uint32_t i = 0; i < r->repetitions && samples != NULL; i++)
        if (cli_json_append(samples, json_real(r->samples[i])) < 0) {
            json_decref(samples);
            samples = NULL;
        }
    json_t *object = json_pack("{s:s, s:s, s:f, s:o, s:I, s:f, s:f, s:f, s:f}", "name", r->name, "what", r->what,
                               "seconds", r->seconds, "repetitions", samples, "calls", (json_int_t)r->calls, "bytes",
                               r->bytes, "operations", r->operations, "bytes_per_second", r->bytes / r->seconds,
                               "operations_per_second", r->operations / r->seconds);
    if (object == NULL || r->limit == PST_KERNELS_NONE)
        return object;
    json_t *bound = json_pack("{s:I, s:f, s:s, s:f}", "rows", (json_int_t)r->rows, "bound_seconds", r->bound_seconds,
                              "limited_by", limit_name(r->limit), "share_of_bound", share_of(r));
    if (bound == NULL || json_object_update(object, bound) < 0) {
        json_decref(object);
        object = NULL;
    }
    json_decref(bound);
    return object;
}

/* Calls take microseconds as often as seconds. */
static const char *time_text(double seconds, char *text, size_t text_bytes)
{
    if (seconds >= 1e-3)
        return pst_format_seconds(seconds, text, text_bytes);
    snprintf(text, text_bytes, "%.3g us", seconds * 1e6);
    return text;
}

static int print_rate(const pst_kernels_result *r, pst_error *err)
{
    char rate[32];
    if (r->operations > 0)
        return cli_out_printf(err, "%-8s %-40s %10.4g Tflop/s\n", r->name, r->what, r->operations / r->seconds / 1e12);
    return cli_out_printf(err, "%-8s %-40s %12s/s\n", r->name, r->what,
                          pst_format_bytes(r->bytes / r->seconds, rate, sizeof rate));
}

static int print_result(kernels_job *job, const pst_kernels_result *r)
{
    char time[32], bound[32], rate[32];
    if (!job->had_rates) {
        job->had_rates = true;
        PST_TRY(cli_out_printf(job->err, "\n%-15s %5s %-46s %10s %10s %7s %-8s %11s %10s\n", "operator", "rows",
                               "shape", "time", "bound", "share", "by", "bytes/s", "Tflop/s"));
    }
    return cli_out_printf(job->err, "%-15s %5u %-46s %10s %10s %6.1f%% %-8s %11s %10.3g\n", r->name, r->rows, r->what,
                          time_text(r->seconds, time, sizeof time), time_text(r->bound_seconds, bound, sizeof bound),
                          100 * share_of(r), limit_name(r->limit),
                          pst_format_bytes(r->bytes / r->seconds, rate, sizeof rate),
                          r->operations / r->seconds / 1e12);
}

static int on_result(void *user, const pst_kernels_result *result)
{
    kernels_job *job = user;
    if (job->values->report.json) {
        json_t *list = result->limit == PST_KERNELS_NONE ? job->rates : job->results;
        if (cli_json_append(list, result_json(result)) < 0)
            job->status = pst_fail_memory(job->err, "results", sizeof *result);
    } else {
        job->status = result->limit == PST_KERNELS_NONE ? print_rate(result, job->err) : print_result(job, result);
        if (job->status >= 0)
            job->status = cli_out_flush(job->err); /* results come slowly; each is of use by itself */
    }
    return job->status < 0 || cli_interrupted() != 0;
}

/* ---- Reports ---- */

static json_t *device_json(const pst_kernels_report *report)
{
    const pst_device_info *d = &report->device;
    return json_pack("{s:o, s:o, s:I, s:I, s:o, s:o, s:o, s:I}", "name", cli_safe_json(d->name), "model",
                     cli_safe_json(d->model), "total_bytes", (json_int_t)d->total_bytes, "free_bytes",
                     (json_int_t)d->free_bytes, "link", cli_safe_json(d->link), "matrix_library",
                     cli_safe_json(d->matrix_library), "kernels", cli_safe_json(report->kernels), "threads",
                     (json_int_t)report->threads);
}

static int print_json(const kernels_job *job, const char *model, const pst_kernels_report *report, pst_error *err)
{
    json_t *stats =
        json_pack("{s:o, s:o, s:o, s:I, s:s, s:s, s:s, s:I, s:f, s:f, s:f, s:f, s:O}", "device", device_json(report),
                  "machine", cli_machine_json(), "model", cli_safe_json(model), "context", (json_int_t)report->context,
                  "compute_type", pst_dtype_name(report->compute_type), "kv_bits", job->values->kv_bits, "quant_bits",
                  job->values->quant_bits, "memory_bytes", (json_int_t)report->memory_bytes, "memory_bytes_per_second",
                  report->memory_bytes_per_second, "matrix_operations_per_second", report->matrix_operations_per_second,
                  "to_device_bytes_per_second", report->to_device_bytes_per_second, "from_device_bytes_per_second",
                  report->from_device_bytes_per_second, "rates", job->rates);
    return cli_out_json(cli_json_document(json_incref(job->results), stats), err);
}

static int print_end(const pst_kernels_report *report, pst_error *err)
{
    char memory[32], to[32], from[32];
    PST_TRY(cli_out_text("\n", err));
    PST_TRY(cli_out_safe(report->device.name, err)); /* both are a plugin's texts */
    PST_TRY(cli_out_text(report->device.model[0] != '\0' ? ", " : "", err));
    PST_TRY(cli_out_safe(report->device.model, err));
    PST_TRY(cli_out_printf(err, ": memory %s/s, products %.4g Tflop/s",
                           pst_format_bytes(report->memory_bytes_per_second, memory, sizeof memory),
                           report->matrix_operations_per_second / 1e12));
    if (report->to_device_bytes_per_second > 0)
        PST_TRY(cli_out_printf(err, ", link %s/s to it and %s/s from it",
                               pst_format_bytes(report->to_device_bytes_per_second, to, sizeof to),
                               pst_format_bytes(report->from_device_bytes_per_second, from, sizeof from)));
    /* Of large products whose rows are a prompt's; which of them it is given, the plugin alone knows. */
    PST_TRY(cli_out_text(report->device.matrix_library[0] != '\0' ? "\nproducts of prompts: " : "", err));
    PST_TRY(cli_out_safe(report->device.matrix_library, err));
    PST_TRY(cli_out_text("\n", err));
    return cli_out_flush(err);
}

static int run(kernels_job *job, const char *model, pst_error *err)
{
    const kernels_values *v = job->values;
    uint32_t rows[PST_KERNELS_MAX_ROWS], row_count = 0;
    for (size_t i = 0; i < v->rows.count; i++) {
        for (size_t k = 0; k < v->rows.lists[i].count; k++) {
            if (row_count == PST_KERNELS_MAX_ROWS)
                return cli_usage(err, "--rows: %d numbers at most", PST_KERNELS_MAX_ROWS);
            rows[row_count++] = v->rows.lists[i].ids[k];
        }
    }
    const pst_kernels_options options = {
        .struct_size = sizeof options,
        .device = v->device,
        .model = model,
        .cache = cli_hf_cache(&v->lookup),
        .quant_bits = (uint32_t)strtoul(v->quant_bits, NULL, 10),
        .compute_type = strcmp(v->compute_type, "f32") == 0    ? PST_COMPUTE_F32
                        : strcmp(v->compute_type, "bf16") == 0 ? PST_COMPUTE_BF16
                                                               : PST_COMPUTE_AUTO,
        .kv_bits = (uint32_t)strtoul(v->kv_bits, NULL, 10),
        .rows = rows,
        .row_counts = row_count,
        .context = (uint32_t)v->context,
        .only = v->only,
        .repetitions = (uint32_t)v->loops,
        .seconds = v->seconds,
        .memory_bytes = v->memory,
        .threads = (uint32_t)v->threads,
        .kernels = strcmp(v->kernels, "auto") == 0 ? NULL : v->kernels,
        .on_result = on_result,
        .user = job,
    };
    pst_kernels_report report;
    cli_interrupt_polled(true);
    const int status = pst_kernels_bench(&options, &report, err);
    cli_interrupt_polled(false);
    PST_TRY(job->status);
    PST_TRY(status);
    return v->report.json ? print_json(job, model, &report, err) : print_end(&report, err);
}

static int bench_kernels(const void *all_values, const pst_options_found *found, pst_error *err)
{
    const kernels_values *values = all_values;
    kernels_job job = {.values = values, .err = err};
    cli_notes_start(&values->report);
    if (values->report.json) {
        job.rates = json_array();
        job.results = json_array();
    }
    const int status = run(&job, found->operand_count > 0 ? found->operands[0] : "llama3-8b", err);
    json_decref(job.rates);
    json_decref(job.results);
    return status;
}

const cli_command cli_command_bench_kernels = {
    .spec =
        {.name = "bench kernels",
         .operands = "[MODEL]",
         .min_operands = 0,
         .max_operands = 1,
         .summary = "the operators of a device, each beside its bound",
         .description =
             "Measures every operator at the shapes of MODEL: a folder, which needs no weights, org/name, or a shape "
             "of 'penstock synth'; without it llama3-8b. The bound of a call is what it moves over the bandwidth of "
             "the device's memory, or what it computes over the rate of its products, whichever takes longer; "
             "bandwidth, rate and the link between host and device are measured in the same run, before the rest. "
             "Operands come from ever other places of memory, so that caches do not flatter; where they are small, "
             "a share above 100 % says that a cache held them. Nothing of the model's weights is read.",
         .example = "  penstock bench kernels llama3-8b --device cuda\n"
                    "  penstock bench kernels llama3-70b --quant-bits 4 --rows 1 --only matmul\n"
                    "  penstock bench kernels deepseek-r1 --device cuda:1 --json\n",
         .groups = groups,
         .group_count = CLI_COUNT(groups),
         .values_bytes = sizeof(kernels_values)},
    .run = bench_kernels,
};
