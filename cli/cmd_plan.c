/* SPDX-License-Identifier: Apache-2.0 */
/*
 * penstock plan: what a model would need and how fast it could be, before it is run or where it cannot be run. Rates are
 * given, measured on the model's own folder, or assumed, and the report says which.
 */
#include <string.h>
#include <unistd.h>

#include "base/stats.h"
#include "common.h"
#include "output.h"
#include "penstock/device.h"
#include "penstock/plan.h"

typedef struct plan_values {
    cli_report report;
    cli_lookup lookup;
    cli_runtime runtime;
    uint64_t batch, max_batch, prompt_len, gen_len, disk_bandwidth, link_bandwidth;
    uint64_t quant_bits, quant_group_size;
    double flops, device_flops;
    bool measure;
} plan_values;

#define AT(member) .offset = offsetof(plan_values, member)

static const pst_option work_rows[] = {
    CLI_NUMBER_ROW(plan_values, batch, "batch", NULL, 1, 65536,
                   "sequences in flight at once; without it the smallest number whose rate comes near the best"),
    CLI_NUMBER_ROW(plan_values, max_batch, "max-batch", NULL, 1, 65536,
                   "without --batch: no more than so many, since there are no more requests"),
    CLI_NUMBER_ROW(plan_values, prompt_len, "prompt-len", "512", 1, 1e8, "tokens of each prompt"),
    CLI_NUMBER_ROW(plan_values, gen_len, "gen-len", "32", 1, 1e8, "tokens made for each prompt"),
    {.name = "quant-bits",
     .type = PST_OPTION_U64,
     AT(quant_bits),
     .metavar = "BITS",
     .initial = "16",
     .help = "8 or 4: as if the weights had been converted to so many bits; 16: as they are"},
    {.name = "quant-group-size",
     .type = PST_OPTION_U64,
     AT(quant_group_size),
     .metavar = "N",
     .initial = "64",
     .min = 2,
     .max = 4096,
     .multiple = 2,
     .help = "weights that share a scale"},
};

static const pst_option machine_rows[] = {
    {.name = "measure",
     .type = PST_OPTION_FLAG,
     AT(measure),
     .help = "measure the drive and the processor on the model's folder, as a session does before it runs; what is "
             "given stands"},
    {.name = "disk-bandwidth",
     .type = PST_OPTION_SIZE,
     AT(disk_bandwidth),
     .metavar = "BYTES",
     .min = 1,
     .help = "bytes per second that the drive gives (13G); all drives together where files are striped"},
    {.name = "flops",
     .type = PST_OPTION_DOUBLE,
     AT(flops),
     .metavar = "RATE",
     .min = 1,
     .max = 1e30,
     .help = "multiplications and additions per second that the processor sustains (2e12)"},
    {.name = "device-flops",
     .type = PST_OPTION_DOUBLE,
     AT(device_flops),
     .metavar = "RATE",
     .min = 1,
     .max = 1e30,
     .help = "multiplications and additions per second that the accelerator sustains"},
    {.name = "link-bandwidth",
     .type = PST_OPTION_SIZE,
     AT(link_bandwidth),
     .metavar = "BYTES",
     .min = 1,
     .help =
         "bytes per second between host and accelerator (50G); with --device-memory the plan is that of an accelerator "
         "of this kind, which need not be there"},
};

static const pst_option_group groups[] = {
    CLI_OWN_GROUP("Work", work_rows),
    CLI_OWN_GROUP("Machine", machine_rows),
    CLI_MEMORY_GROUPS(plan_values),
    CLI_SHARED_GROUP("Drives", cli_io_rows, plan_values, runtime.io),
    CLI_SHARED_GROUP("Model lookup", cli_lookup_rows, plan_values, lookup),
    CLI_SHARED_GROUP("Output", cli_report_rows, plan_values, report),
};

typedef struct plan_job {
    const plan_values *values;
    pst_predict_options options;
    /* "given", "measured", "assumed"; of the link also "stated" by the device. */
    const char *disk_from, *compute_from, *link_from;
    pst_device_info device; /* --device; name "": the host, or one that is not there */
    pst_prediction prediction;
} plan_job;

/* ---- rates ---- */

static uint64_t no_bytes(const void *user, uint32_t sequences)
{
    (void)user, (void)sequences;
    return 0;
}

static int measure(plan_job *job, const char *model, bool resident_given, pst_error *err)
{
    enum { USUAL_BATCH = 16 };
    const plan_values *values = job->values;
    pst_predict_options *o = &job->options;
    cli_engine engine;
    cli_runtime runtime = values->runtime;
    if (job->device.name[0] == '\0')
        runtime.device_memory = 0; /* of an accelerator that is not there */
    runtime.offload.bits = "16";   /* the rates of the checkpoint as it is: nothing is converted for a plan */
    PST_TRY(cli_engine_open(&engine, model, &values->lookup, &runtime, err));
    pst_session_options shape = {.max_sequences = o->batch ? o->batch : USUAL_BATCH,
                                 .max_tokens = o->prompt_tokens + o->new_tokens,
                                 .max_prompt_tokens = o->prompt_tokens};
    int status =
        cli_engine_start(&engine, &runtime, resident_given, &shape, o->batch == 0, &(cli_needs){no_bytes, NULL}, err);
    if (status >= 0) {
        if (o->disk_bytes_per_second <= 0 && engine.plan.read_bytes_per_second > 0) {
            o->disk_bytes_per_second = engine.plan.read_bytes_per_second;
            job->disk_from = "measured";
        }
        bool is_stated = strcmp(job->link_from, "stated") == 0; /* what its kind should give */
        if ((o->link_bytes_per_second <= 0 || is_stated) && engine.plan.link_bytes_per_second > 0) {
            o->link_bytes_per_second = engine.plan.link_bytes_per_second;
            job->link_from = "measured";
        }
        bool computes = o->device_memory_bytes == 0 || job->device.name[0] != '\0'; /* what the plan is for */
        if (o->operations_per_second <= 0 && computes) {
            o->operations_per_second = engine.plan.operations_per_second;
            o->decode_operations_per_second = engine.plan.decode_operations_per_second;
            o->decode_rows = shape.max_sequences;
            job->compute_from = "measured";
        }
    }
    cli_engine_close(&engine);
    return status;
}

/* What is neither given nor measured: a middling NVMe drive and processor, said to be assumed. */
static void assume(plan_job *job)
{
    const double disk = 3e9, per_processor = 50e9, device = 200e12, link = 25e9;
    pst_predict_options *o = &job->options;
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    if (o->disk_bytes_per_second <= 0) {
        o->disk_bytes_per_second = disk;
        job->disk_from = "assumed";
    }
    if (o->operations_per_second <= 0) {
        o->operations_per_second =
            o->device_memory_bytes ? device : per_processor * (double)(processors > 0 ? processors : 1);
        job->compute_from = "assumed";
    }
    if (o->device_memory_bytes > 0 && o->link_bytes_per_second <= 0) {
        o->link_bytes_per_second = link;
        job->link_from = "assumed";
    }
}

/* --device: what it is, unless it is the host. */
static int find_device(const char *name, pst_device_info *out, pst_error *err)
{
    pst_device_info info = {.struct_size = sizeof info};
    if (strcmp(name, "host") != 0)
        PST_TRY(pst_device_find(name, &info, err));
    if (strcmp(info.name, "host") == 0)
        info.name[0] = '\0';
    *out = info;
    return 0;
}

/* The device's own memory and link, where nothing else was given. */
static int use_device(plan_job *job, pst_error *err)
{
    pst_predict_options *o = &job->options;
    PST_TRY(find_device(job->values->runtime.device, &job->device, err));
    if (job->device.name[0] == '\0')
        return 0;
    /* As a session does: a sixteenth of the free memory, a gibibyte at most, is left to the device's kernels. */
    uint64_t left = job->device.free_bytes / 16 < 1u << 30 ? job->device.free_bytes / 16 : 1u << 30;
    if (o->device_memory_bytes == 0)
        o->device_memory_bytes = job->device.free_bytes - left;
    if (o->link_bytes_per_second <= 0 && job->device.link_bytes_per_second > 0) {
        o->link_bytes_per_second = job->device.link_bytes_per_second;
        job->link_from = "stated";
    }
    o->operations_per_second = job->values->device_flops;
    return 0;
}

static int fill_options(plan_job *job, const char *model, bool resident_given, pst_error *err)
{
    const plan_values *v = job->values;
    job->options = (pst_predict_options){
        .struct_size = sizeof job->options,
        .model = model,
        .cache = cli_hf_cache(&v->lookup),
        .batch = (uint32_t)v->batch,
        .max_batch = (uint32_t)v->max_batch,
        .prompt_tokens = (uint32_t)v->prompt_len,
        .new_tokens = (uint32_t)v->gen_len,
        .host_memory_bytes = v->runtime.host_memory,
        .resident_set = resident_given,
        .resident_share = v->runtime.resident.is_share ? v->runtime.resident.share : -1,
        .resident_bytes = v->runtime.resident.bytes,
        .device_memory_bytes = v->runtime.device_memory,
        .disk_bytes_per_second = (double)v->disk_bandwidth,
        .link_bytes_per_second = (double)v->link_bandwidth,
        .operations_per_second = v->runtime.device_memory ? v->device_flops : v->flops,
        .compute_type = cli_compute_type(&v->runtime),
        .kv_bits = cli_kv_bits(&v->runtime),
        .kv_offload = v->runtime.kv_offload,
        .kv_folder = v->runtime.kv_dir,
        .quant_bits = (uint32_t)v->quant_bits,
        .quant_group_size = (uint32_t)v->quant_group_size,
    };
    job->disk_from = job->compute_from = job->link_from = "given";
    pst_session_options placed = {.resident_set = resident_given,
                                  .resident_share = job->options.resident_share,
                                  .resident_bytes = job->options.resident_bytes};
    PST_TRY(cli_place(&v->runtime.placement, resident_given, &placed, err));
    job->options.resident_set = placed.resident_set;
    job->options.resident_share = placed.resident_share;
    job->options.resident_bytes = placed.resident_bytes;
    job->options.keep_all_weights = placed.keep_all_weights;
    job->options.expert_cache_set = placed.expert_cache_set;
    job->options.expert_cache_bytes = placed.expert_cache_bytes;
    return 0;
}

/* ---- the report ---- */

static const char *size_text(uint64_t bytes, char text[32])
{
    return pst_format_bytes((double)bytes, text, 32);
}

static int print_tier(const char *name, const pst_predicted_tier *tier, pst_error *err)
{
    char total[32], budget[32], weights[32], kv[32], rows[32], ring[32], tables[32], process[32];
    return cli_out_printf(err,
                          "%-7s %s of %s = weights %s + KV cache %s + activations %s + ring %s + tables %s + process "
                          "%s\n",
                          name, size_text(tier->total, total), size_text(tier->budget, budget),
                          size_text(tier->weights, weights), size_text(tier->kv, kv),
                          size_text(tier->activations, rows), size_text(tier->ring, ring),
                          size_text(tier->tables, tables), size_text(tier->process, process));
}

static int print_pass(const char *name, const pst_predicted_pass *pass, bool has_link, pst_error *err)
{
    char bytes[32], disk[32], link[32], compute[32], all[32], by_link[64] = "";
    if (has_link)
        snprintf(by_link, sizeof by_link, ", link %s", pst_format_seconds(pass->link_seconds, link, sizeof link));
    return cli_out_printf(err, "%-8s %.0f rows: reads %s; drive %s%s, compute %s: %s, limited by %s\n", name,
                          pass->rows, pst_format_bytes(pass->bytes, bytes, sizeof bytes),
                          pst_format_seconds(pass->disk_seconds, disk, sizeof disk), by_link,
                          pst_format_seconds(pass->compute_seconds, compute, sizeof compute),
                          pst_format_seconds(pass->seconds, all, sizeof all), pass->limited_by);
}

static int print_model(const plan_job *job, pst_error *err)
{
    const pst_prediction *p = &job->prediction;
    char weights[32], kv[32], experts[96] = "";
    if (p->experts > 0)
        snprintf(experts, sizeof experts, ", %u of %u experts per token", p->experts_per_token, p->experts);
    PST_TRY(cli_out_printf(err, "model   "));
    PST_TRY(cli_out_safe(p->model, err));
    return cli_out_printf(err,
                          ": %s, %.4g billion parameters (%.4g active%s), %u layers; weights %s; KV cache %s a token "
                          "at %u bits\n",
                          p->family, (double)p->parameters / 1e9, (double)p->active_parameters / 1e9, experts,
                          p->layers, size_text(p->weight_bytes, weights), size_text(p->kv_token_bytes, kv), p->kv_bits);
}

static int print_rates(const plan_job *job, pst_error *err)
{
    const pst_predict_options *o = &job->options;
    const pst_prediction *p = &job->prediction;
    char disk[32], link[32], by_link[64] = "";
    if (o->device_memory_bytes > 0)
        snprintf(by_link, sizeof by_link, ", link %s/s (%s)",
                 pst_format_bytes(o->link_bytes_per_second, link, sizeof link), job->link_from);
    PST_TRY(cli_out_printf(err, "rates   drive %s/s (%s)%s, compute %.4g Gflop/s (%s)\n",
                           pst_format_bytes(o->disk_bytes_per_second, disk, sizeof disk), job->disk_from, by_link,
                           o->operations_per_second / 1e9, job->compute_from));
    return cli_out_printf(err, "work    %u sequences at once, %u tokens each and %u made\n", p->batch, p->prompt_tokens,
                          p->new_tokens);
}

static int print_advice(const pst_prediction *p, pst_error *err)
{
    for (uint32_t i = 0; i < p->advice_count; i++) {
        const pst_advice *a = &p->advice[i];
        char amount[48] = "", size[32];
        if (a->kind == PST_ADVICE_BATCH)
            snprintf(amount, sizeof amount, " (%llu)", (unsigned long long)a->amount);
        else if (a->kind == PST_ADVICE_HOST_MEMORY || a->kind == PST_ADVICE_DEVICE_MEMORY)
            snprintf(amount, sizeof amount, " (%s)", size_text(a->amount, size));
        PST_TRY(cli_out_printf(err, "%s %.2f times as fast, %.4g tokens/s: %s%s\n", i == 0 ? "faster " : "       ",
                               a->gain, a->tokens_per_second, pst_advice_text(a->kind), amount));
    }
    return 0;
}

/* Where keys and values are, if not with whoever computes. */
static int print_cache(const pst_prediction *p, pst_error *err)
{
    char disk[32], host[32], device[32], by_device[64] = "";
    if (p->kv_offloaded)
        snprintf(by_device, sizeof by_device, "%s through slots of %s on the device",
                 p->kv_disk_bytes > 0 ? " and" : ",", size_text(p->device.kv, device));
    if (p->kv_disk_bytes > 0)
        return cli_out_printf(err, "cache   keys and values in a file of %s, through %s of host memory%s\n",
                              size_text(p->kv_disk_bytes, disk), size_text(p->host.kv, host), by_device);
    return p->kv_offloaded ? cli_out_printf(err, "cache   keys and values in host memory%s\n", by_device) : 0;
}

static int print_text(const plan_job *job, pst_error *err)
{
    const pst_prediction *p = &job->prediction;
    bool has_device = p->device.budget > 0;
    char disk[32], time[32], slot[32], link[32], by_link[64] = "";
    if (has_device)
        snprintf(by_link, sizeof by_link, ", %s over the link", size_text(p->link_bytes, link));
    PST_TRY(print_model(job, err));
    PST_TRY(print_rates(job, err));
    if (has_device)
        PST_TRY(print_tier("device", &p->device, err));
    PST_TRY(print_tier("host", &p->host, err));
    PST_TRY(cli_out_printf(err, "disk    %s of weights%s; up to %u rows in a pass, %u slots of %s\n",
                           size_text(p->disk_bytes, disk), by_link, p->rows_per_pass, p->slots,
                           size_text(p->slot_bytes, slot)));
    PST_TRY(print_cache(p, err));
    PST_TRY(print_pass("prefill", &p->prefill, has_device, err));
    PST_TRY(print_pass("decode", &p->decode, has_device, err));
    if (p->experts > 0)
        PST_TRY(cli_out_printf(err, "experts %.1f %% of them are needed by a decoding pass (uniform routing)\n",
                               p->expert_share * 100));
    PST_TRY(cli_out_printf(
        err, "static  %llu passes in %s, limited by %s: prefill %.4g, decode %.4g, total %.4g tokens/s\n",
        (unsigned long long)p->passes, pst_format_seconds(p->total_seconds, time, sizeof time), p->limited_by,
        p->prefill_tokens_per_second, p->decode_tokens_per_second, p->tokens_per_second));
    PST_TRY(
        cli_out_printf(err, "steady  %.4g tokens/s, when sequences join as others end\n", p->steady_tokens_per_second));
    PST_TRY(print_advice(p, err));
    return cli_out_flush(err);
}

static json_t *tier_json(const pst_predicted_tier *t)
{
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "budget_bytes", (json_int_t)t->budget, "weight_bytes",
                     (json_int_t)t->weights, "kv_bytes", (json_int_t)t->kv, "activation_bytes",
                     (json_int_t)t->activations, "ring_bytes", (json_int_t)t->ring, "table_bytes",
                     (json_int_t)t->tables, "process_bytes", (json_int_t)t->process, "total_bytes",
                     (json_int_t)t->total);
}

static json_t *pass_json(const pst_predicted_pass *p)
{
    return json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:s}", "rows", p->rows, "bytes", p->bytes, "disk_seconds",
                     p->disk_seconds, "link_seconds", p->link_seconds, "compute_seconds", p->compute_seconds, "seconds",
                     p->seconds, "limited_by", p->limited_by);
}

static json_t *advice_json(const pst_prediction *p)
{
    json_t *array = json_array();
    for (uint32_t i = 0; array != NULL && i < p->advice_count; i++) {
        const pst_advice *a = &p->advice[i];
        json_t *entry = json_pack("{s:s, s:I, s:f, s:f}", "change", pst_advice_text(a->kind), "amount",
                                  (json_int_t)a->amount, "tokens_per_second", a->tokens_per_second, "gain", a->gain);
        if (cli_json_append(array, entry) != 0) {
            json_decref(array);
            return NULL;
        }
    }
    return array;
}

static json_t *prediction_json(const pst_prediction *p)
{
    return json_pack(
        "{s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:o, s:I, s:I, s:I, s:I, s:I, "
        "s:f, s:o, s:o, s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:s, s:I, s:b, s:I, s:o}",
        "model", p->model, "family", p->family, "parameters", (json_int_t)p->parameters, "active_parameters",
        (json_int_t)p->active_parameters, "weight_bytes", (json_int_t)p->weight_bytes, "kv_token_bytes",
        (json_int_t)p->kv_token_bytes, "layers", (json_int_t)p->layers, "experts", (json_int_t)p->experts,
        "experts_per_token", (json_int_t)p->experts_per_token, "batch", (json_int_t)p->batch, "prompt_len",
        (json_int_t)p->prompt_tokens, "gen_len", (json_int_t)p->new_tokens, "kv_bits", (json_int_t)p->kv_bits,
        "quant_bits", (json_int_t)p->quant_bits, "device", tier_json(&p->device), "host", tier_json(&p->host),
        "disk_bytes", (json_int_t)p->disk_bytes, "streamed_bytes", (json_int_t)p->streamed_bytes, "rows_per_pass",
        (json_int_t)p->rows_per_pass, "slots", (json_int_t)p->slots, "slot_bytes", (json_int_t)p->slot_bytes,
        "expert_share", p->expert_share, "prefill_pass", pass_json(&p->prefill), "decode_pass", pass_json(&p->decode),
        "prefill_passes", (json_int_t)p->prefill_passes, "passes", (json_int_t)p->passes, "prefill_seconds",
        p->prefill_seconds, "decode_seconds", p->decode_seconds, "total_seconds", p->total_seconds,
        "prefill_tokens_per_second", p->prefill_tokens_per_second, "decode_tokens_per_second",
        p->decode_tokens_per_second, "tokens_per_second", p->tokens_per_second, "steady_tokens_per_second",
        p->steady_tokens_per_second, "limited_by", p->limited_by, "link_bytes", (json_int_t)p->link_bytes,
        "kv_offloaded", p->kv_offloaded, "kv_disk_bytes", (json_int_t)p->kv_disk_bytes, "advice", advice_json(p));
}

static int print_json(const plan_job *job, pst_error *err)
{
    const pst_predict_options *o = &job->options;
    json_t *results = json_array();
    if (results != NULL && cli_json_append(results, prediction_json(&job->prediction)) != 0) {
        json_decref(results);
        results = NULL;
    }
    json_t *stats = json_pack(
        "{s:f, s:s, s:f, s:s, s:f, s:s, s:f, s:I}", "disk_bytes_per_second", o->disk_bytes_per_second, "disk_from",
        job->disk_from, "link_bytes_per_second", o->link_bytes_per_second, "link_from", job->link_from,
        "operations_per_second", o->operations_per_second, "compute_from", job->compute_from,
        "decode_operations_per_second", o->decode_operations_per_second, "decode_rows", (json_int_t)o->decode_rows);
    return cli_out_json(cli_json_document(results, stats), err);
}

static int plan(const void *values, const pst_options_found *found, pst_error *err)
{
    plan_job job = {.values = values};
    const char *model = found->operands[0];
    bool resident_given = pst_options_given(&cli_command_plan.spec, found, "resident");
    cli_notes_start(&job.values->report);
    PST_TRY(fill_options(&job, model, resident_given, err));
    PST_TRY(use_device(&job, err));
    if (job.values->measure)
        PST_TRY(measure(&job, model, resident_given, err));
    assume(&job);
    if (job.options.kv_offload && job.options.device_memory_bytes == 0)
        cli_note(CLI_KV_OFFLOAD_IDLE);
    PST_TRY(pst_predict(&job.options, &job.prediction, err));
    return job.values->report.json ? print_json(&job, err) : print_text(&job, err);
}

const cli_command cli_command_plan = {
    .spec =
        {.name = "plan",
         .operands = "MODEL",
         .min_operands = 1,
         .max_operands = 1,
         .summary = "where everything would go and how fast it could be, before running",
         .description =
             "Tells the memory that each tier would need, where weights and caches would lie, what a pass reads and "
             "computes, the tokens per second that follow, what sets the pace, and what one thing changed would "
             "give. MODEL needs no weights: a folder with config.json alone, or a shape of 'penstock synth', "
             "will do.\n\n"
             "Rates are given, measured (--measure) or assumed; the report says which. An accelerator that is to be "
             "planned for need not be there: --device-memory and --link-bandwidth say what is to be known of it.",
         .example = "  penstock plan ~/models/Llama-3-8B --batch 16 --host-memory 4G --measure\n"
                    "  penstock plan deepseek-r1 --host-memory 256G --disk-bandwidth 13G --flops 2e12\n"
                    "  penstock plan llama3-70b --batch 96 --host-memory 256G --disk-bandwidth 13G "
                    "--device-memory 96G --link-bandwidth 50G --device-flops 3e14\n",
         .groups = groups,
         .group_count = CLI_COUNT(groups),
         .values_bytes = sizeof(plan_values)},
    .run = plan,
};
