/* SPDX-License-Identifier: Apache-2.0 */
/*
 * penstock bench infer: prefill and decode measured, with the options and the figures of ZeRO-Inference, beside the
 * bound that the drive and the processor set.
 *
 * Options that mean nothing here are accepted and said to have no effect; what would change results or memory and cannot be
 * done is refused.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "against.h"
#include "base/heap.h"
#include "base/number.h"
#include "base/stats.h"
#include "common.h"
#include "input.h"
#include "interrupt.h"
#include "output.h"
#include "progress.h"

typedef struct bench_values {
    cli_report report;
    cli_lookup lookup;
    cli_runtime runtime;
    cli_against against;
    const char *model, *prompt, *log_file, *routing_trace;
    uint64_t loops, batch_size, prompt_len, gen_len, seed, layers;
    uint64_t num_gpus;
    bool dummy, pin_kv_cache, async_kv_offload, use_gds;
} bench_values;

#define AT(member) .offset = offsetof(bench_values, member)

static const pst_option work_rows[] = {
    {.name = "model",
     .short_name = 'm',
     .type = PST_OPTION_STRING,
     AT(model),
     .metavar = "MODEL",
     .help = "the model, if it is not the first word"},
    CLI_NUMBER_ROW(bench_values, loops, "loops", "3", 1, 10000,
                   "repetitions; the figures at the end are those of the one whose total time is the median"),
    CLI_NUMBER_ROW(bench_values, batch_size, "batch-size", "1", 1, 65536, "prompts computed together"),
    CLI_NUMBER_ROW(bench_values, prompt_len, "prompt-len", "512", 1, 1e8, "tokens of each prompt, seeded random ids"),
    CLI_NUMBER_ROW(bench_values, gen_len, "gen-len", "32", 1, 1e8, "tokens made for each prompt, end tokens ignored"),
    {.name = "prompt",
     .short_name = 'p',
     .type = PST_OPTION_STRING,
     AT(prompt),
     .metavar = "TEXT",
     .help = "use this text as every prompt, whatever its length"},
    {.name = "seed", .type = PST_OPTION_U64, AT(seed), .metavar = "N", .initial = "0", .help = "of the random ids"},
    {.name = "routing-trace",
     .type = PST_OPTION_STRING,
     AT(routing_trace),
     .metavar = "FILE|zipf:S[:SEED]|uniform[:SEED]",
     .help = "models with experts: which experts tokens use is read from FILE (JSON Lines, as 'generate "
             "--routing-trace-out' writes them) or drawn, rank r with a weight of r^-S, instead of computed"},
    CLI_NUMBER_ROW(
        bench_values, layers, "layers", NULL, 1, 16384,
        "compute only the first N layers and the head, to measure models that would take too long (or are holes, "
        "see synth --sparse); what is generated is then not the model's"),
    {.name = "log-file",
     .type = PST_OPTION_STRING,
     AT(log_file),
     .metavar = "FILE",
     .help = "append the report to FILE as well"},
};

static const pst_option zero_rows[] = {
    {.name = "pin-kv-cache",
     .type = PST_OPTION_FLAG,
     AT(pin_kv_cache),
     .help = "no effect: what --kv-offload keeps for an accelerator is pinned in any case"},
    {.name = "async-kv-offload",
     .type = PST_OPTION_FLAG,
     AT(async_kv_offload),
     .help = "no effect: --kv-offload copies while others compute in any case"},
    {.name = "use-gds",
     .type = PST_OPTION_FLAG,
     AT(use_gds),
     .help = "no effect: weights reach an accelerator through host memory"},
    CLI_NUMBER_ROW(bench_values, num_gpus, "num-gpus", "0", 0, 1024,
                   "no effect beyond one: --device says which accelerator computes; 1 without it is --device auto"),
    {.name = "dummy",
     .type = PST_OPTION_FLAG,
     AT(dummy),
     .help = "refused: not yet; 'penstock synth' writes a checkpoint with random weights"},
};

static const pst_option_group groups[] = {
    CLI_OWN_GROUP("Work", work_rows), CLI_OWN_GROUP("Options of ZeRO-Inference", zero_rows),
    CLI_MEMORY_GROUPS(bench_values),  CLI_SHARED_GROUP("Comparison", cli_against_rows, bench_values, against),
    CLI_MODEL_GROUPS(bench_values),
};

typedef struct bench_job {
    const bench_values *values;
    cli_runtime runtime; /* the values', and what --num-gpus says */
    cli_engine engine;
    uint32_t *prompt_ids; /* batch x prompt_len */
    size_t prompt_len, batch;
    pst_request *requests;
    pst_result *results;
    pst_run_stats *loops;
    pst_run_stats median; /* the repetition of the median total time */
    FILE *log;            /* --log-file, open for appending before the work begins */
    bool log_created;
    uint64_t tokens_made;
} bench_job;

static int check_values(const bench_values *values, const pst_options_found *found, const char **model, pst_error *err)
{
    bool named = values->model != NULL;
    if (named == (found->operand_count > 0) || (named && values->model[0] == '\0'))
        return cli_usage(err, "'penstock bench infer' needs one model, as the first word or with --model");
    *model = values->model != NULL ? values->model : found->operands[0];
    if (values->dummy)
        return pst_fail(err, PST_E_UNSUPPORTED, NULL,
                        "--dummy: not yet; 'penstock synth' writes a checkpoint with random weights");
    const struct {
        bool asked;
        const char *name;
    } idle[] = {
        {values->pin_kv_cache, "--pin-kv-cache"},
        {values->async_kv_offload, "--async-kv-offload"},
        {values->use_gds, "--use-gds"},
        {values->num_gpus > 1, "--num-gpus beyond one"},
    };
    for (size_t i = 0; i < CLI_COUNT(idle); i++) {
        if (idle[i].asked)
            cli_note("%s has no effect", idle[i].name);
    }
    if (values->runtime.offload.folders.count > 0 && !cli_offload_wanted(&values->runtime.offload))
        cli_note("--offload-dir has no effect: weights are streamed from the checkpoint itself");
    return 0;
}

static int fill_random_prompts(bench_job *job, pst_error *err)
{
    size_t count = job->batch * job->prompt_len;
    job->prompt_ids = pst_heap_reallocarray(NULL, count, sizeof *job->prompt_ids);
    if (job->prompt_ids == NULL)
        return pst_fail_memory(err, "prompts", count * sizeof *job->prompt_ids);
    uint64_t state = job->values->seed; /* the same ids for the same seed everywhere */
    for (size_t i = 0; i < count; i++)
        job->prompt_ids[i] = (uint32_t)(pst_random_next(&state) % job->engine.info.vocab);
    return 0;
}

static int fill_text_prompts(bench_job *job, pst_error *err)
{
    const pst_tokenizer *tokenizer;
    PST_TRY(pst_model_tokenizer(job->engine.model, &tokenizer, err));
    pst_option_strings texts = {.items = (const char *[]){job->values->prompt}, .count = 1};
    static const pst_option_ids no_ids;
    const cli_source source = {.noun = "prompt", .texts = &texts, .ids = &no_ids};
    cli_inputs inputs;
    PST_TRY(cli_inputs_gather(&source, &inputs, err));
    int status = cli_inputs_encode(&inputs, tokenizer, NULL, err);
    if (status >= 0)
        status = cli_inputs_check_ids(&inputs, job->engine.info.vocab, err);
    if (status >= 0) {
        job->prompt_len = inputs.items[0].id_count;
        job->prompt_ids = pst_heap_reallocarray(NULL, job->batch * job->prompt_len, sizeof *job->prompt_ids);
        if (job->prompt_ids == NULL)
            status = pst_fail_memory(err, "prompts", job->batch * job->prompt_len * sizeof *job->prompt_ids);
        for (size_t i = 0; status >= 0 && i < job->batch; i++)
            memcpy(job->prompt_ids + i * job->prompt_len, inputs.items[0].ids,
                   job->prompt_len * sizeof *job->prompt_ids);
    }
    cli_inputs_free(&inputs);
    return status;
}

static int check_lengths(const bench_job *job, pst_error *err)
{
    uint64_t context = job->engine.info.context;
    if (job->prompt_len + job->values->gen_len <= context)
        return 0;
    return pst_fail(err, PST_E_USAGE, NULL,
                    "a prompt of %zu tokens and %llu new ones are more than the model's context of %llu tokens",
                    job->prompt_len, (unsigned long long)job->values->gen_len, (unsigned long long)context);
}

static int build_requests(bench_job *job, pst_error *err)
{
    const bench_values *values = job->values;
    job->batch = values->batch_size;
    job->prompt_len = values->prompt_len;
    if (values->prompt == NULL)
        PST_TRY(check_lengths(job, err)); /* before memory is asked for */
    PST_TRY(values->prompt != NULL ? fill_text_prompts(job, err) : fill_random_prompts(job, err));
    PST_TRY(check_lengths(job, err));
    job->requests = pst_heap_calloc(job->batch, sizeof *job->requests);
    job->results = pst_heap_calloc(job->batch, sizeof *job->results);
    job->loops = pst_heap_calloc(values->loops, sizeof *job->loops);
    if (job->requests == NULL || job->results == NULL || job->loops == NULL)
        return pst_fail_memory(err, "requests", job->batch * sizeof *job->results);
    for (size_t i = 0; i < job->batch; i++)
        job->requests[i] = (pst_request){.prompt_ids = job->prompt_ids + i * job->prompt_len,
                                         .prompt_count = job->prompt_len,
                                         .max_new_tokens = (uint32_t)values->gen_len,
                                         .sampling = {.top_p = 1},
                                         .ignore_end = true};
    return 0;
}

static int on_token(void *user, size_t request, uint32_t id, const char *text, size_t text_bytes)
{
    (void)request, (void)id, (void)text, (void)text_bytes;
    bench_job *job = user;
    cli_progress_update(++job->tokens_made);
    return 0;
}

/* ZeRO-Inference's formulas, so that its users compare like with like. */
static void apply_formulas(const bench_job *job, pst_run_stats *stats)
{
    double batch = (double)job->batch, made = (double)job->values->gen_len;
    double decode = stats->total_seconds - stats->prefill_seconds;
    stats->prefill_tokens_per_second =
        stats->prefill_seconds > 0 ? batch * (double)job->prompt_len / stats->prefill_seconds : 0;
    stats->decode_seconds = decode;
    stats->decode_tokens_per_second = decode > 0 ? batch * (made - 1) / decode : 0;
    stats->tokens_per_second = stats->total_seconds > 0 ? batch * made / stats->total_seconds : 0;
}

static int run_loops(bench_job *job, pst_error *err)
{
    uint64_t loops = job->values->loops;
    cli_progress_begin("measuring", "tokens", loops * job->batch * job->values->gen_len);
    int status = 0;
    cli_engine_run_begins(&job->engine);
    for (uint64_t i = 0; status >= 0 && i < loops; i++) {
        status = pst_generate(job->engine.session, job->requests, job->batch, on_token, job, job->results,
                              &job->loops[i], err);
        for (size_t j = 0; status >= 0 && j < job->batch; j++) {
            pst_result_free(&job->results[j]);
            job->results[j] = (pst_result){0};
        }
        apply_formulas(job, &job->loops[i]);
    }
    status = cli_engine_run_ended(status, err);
    cli_progress_end();
    PST_TRY(status);
    size_t middle = pst_stats_median(pst_run_stat_table, pst_run_stat_count, "total_seconds", job->loops,
                                     sizeof *job->loops, loops);
    job->median = job->loops[middle];
    job->median.peak_rss_bytes = job->loops[loops - 1].peak_rss_bytes; /* of the process, whichever loop it was */
    return 0;
}

/* Activations of all positions of one layer, as ZeRO-Inference counts its hidden size. */
static uint64_t hidden_bytes(const bench_job *job)
{
    uint64_t element = pst_dtype_bits(job->engine.plan.compute_type) / 8;
    return job->batch * (job->prompt_len + job->values->gen_len) * job->engine.info.hidden * element;
}

/* Of keys and values, wherever they are. */
static uint64_t cache_bytes(const bench_job *job)
{
    const pst_plan_info *plan = &job->engine.plan;
    const uint64_t in_memory = plan->kv_offloaded ? plan->kv_bytes : plan->kv_bytes + plan->device_kv_bytes;
    return plan->kv_disk_bytes > 0 ? plan->kv_disk_bytes : in_memory;
}

static void print_figures(const bench_job *job, FILE *to)
{
    const pst_run_stats *stats = &job->median;
    char model[32], cache[32], hidden[32], peak[32], budget[32], time[32], bound[32], rate[32], disk[32];
    fprintf(to, "model size: %s\tcache size: %s\thidden size (prefill): %s\n",
            pst_format_bytes((double)job->engine.info.weight_bytes, model, sizeof model),
            pst_format_bytes((double)cache_bytes(job), cache, sizeof cache),
            pst_format_bytes((double)hidden_bytes(job), hidden, sizeof hidden));
    fprintf(to, "peak host memory: %s of %s\n", pst_format_bytes((double)stats->peak_rss_bytes, peak, sizeof peak),
            pst_format_bytes((double)stats->host_memory_bytes, budget, sizeof budget));
    fprintf(to, "prefill latency: %s\tprefill throughput: %.3f token/s\n",
            pst_format_seconds(stats->prefill_seconds, time, sizeof time), stats->prefill_tokens_per_second);
    fprintf(to, "decode latency: %s\tdecode throughput: %.3f token/s\n",
            pst_format_seconds(stats->decode_seconds, time, sizeof time), stats->decode_tokens_per_second);
    fprintf(to, "total latency: %s\ttotal throughput: %.3f token/s\n",
            pst_format_seconds(stats->total_seconds, time, sizeof time), stats->tokens_per_second);
    if (stats->weight_bytes_read == 0)
        fprintf(to, "read: no weights, all are in memory\n");
    else
        fprintf(to, "read: %s at %s/s (the drive gave %s/s beforehand)\n",
                pst_format_bytes((double)stats->weight_bytes_read, model, sizeof model),
                pst_format_bytes(stats->read_bytes_per_second, rate, sizeof rate),
                pst_format_bytes(stats->disk_bytes_per_second, disk, sizeof disk));
    if (stats->device_memory_bytes > 0)
        fprintf(to, "device memory: %s of %s, weights %s of it\n",
                pst_format_bytes((double)stats->device_memory_bytes, peak, sizeof peak),
                pst_format_bytes((double)job->engine.plan.device_budget_bytes, budget, sizeof budget),
                pst_format_bytes((double)stats->device_resident_bytes, model, sizeof model));
    if (stats->device_memory_bytes > 0)
        fprintf(to, "passes: %llu, replayed as a graph %llu\n", (unsigned long long)stats->passes,
                (unsigned long long)stats->replayed_passes);
    if (stats->link_bytes > 0)
        fprintf(to, "copied: %s (the link gave %s/s beforehand), waited for %s\n",
                pst_format_bytes((double)stats->link_bytes, model, sizeof model),
                pst_format_bytes(stats->link_bytes_per_second, rate, sizeof rate),
                pst_format_seconds(stats->link_wait_seconds, time, sizeof time));
    uint64_t needed = stats->expert_bytes_read + stats->expert_bytes_found;
    if (needed > 0)
        fprintf(to, "experts: %s per token read; the cache had %.1f %%; %llu parts guessed right, %llu wrong\n",
                pst_format_bytes(stats->expert_bytes_per_token, rate, sizeof rate),
                100.0 * (double)stats->expert_bytes_found / (double)needed, (unsigned long long)stats->guesses_right,
                (unsigned long long)stats->guesses_wrong);
    fprintf(to, "bound: %s, %.1f %% of it reached, limited by %s\n",
            pst_format_seconds(stats->bound_seconds, bound, sizeof bound), stats->share_of_bound * 100,
            stats->limited_by != NULL ? stats->limited_by : "?");
}

static json_t *loop_json(const bench_job *job, size_t loop)
{
    json_t *object = cli_json_stats(&job->loops[loop]);
    if (object == NULL)
        return NULL;
    const struct {
        const char *key;
        uint64_t value;
    } extra[] = {{"loop", loop + 1},
                 {"batch_size", job->batch},
                 {"prompt_len", job->prompt_len},
                 {"gen_len", job->values->gen_len},
                 {"model_bytes", job->engine.info.weight_bytes},
                 {"cache_bytes", cache_bytes(job)},
                 {"hidden_bytes", hidden_bytes(job)}};
    for (size_t i = 0; i < CLI_COUNT(extra); i++) {
        if (json_object_set_new(object, extra[i].key, json_integer((json_int_t)extra[i].value)) != 0) {
            json_decref(object);
            return NULL;
        }
    }
    return object;
}

/* Before the work, so that a wrong name does not cost hours. */
static int open_log(bench_job *job, pst_error *err)
{
    const char *path = job->values->log_file;
    if (path == NULL)
        return 0;
    int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    job->log_created = fd >= 0;
    if (job->log_created)
        cli_interrupt_remove(path);
    else if (errno == EEXIST)
        fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
    job->log = fd >= 0 ? fdopen(fd, "a") : NULL;
    if (job->log == NULL) {
        int cause = errno;
        if (fd >= 0)
            close(fd);
        return pst_fail(err, -cause, path, "cannot open: %s", strerror(cause));
    }
    return 0;
}

static int append_log(bench_job *job, pst_error *err)
{
    if (job->log == NULL)
        return 0;
    cli_interrupt_remove(NULL);
    errno = 0;
    print_figures(job, job->log);
    bool failed = fflush(job->log) != 0 || ferror(job->log);
    int cause = errno != 0 ? errno : EIO;
    if (failed)
        return pst_fail(err, -cause, job->values->log_file, "cannot write: %s", strerror(cause));
    job->log_created = false; /* from here on it is a report, which stays */
    return 0;
}

static void close_log(bench_job *job)
{
    if (job->log != NULL)
        fclose(job->log);
    if (job->log_created)
        unlink(job->values->log_file);
    cli_interrupt_remove(NULL);
}

static int print_report(const bench_job *job, pst_error *err)
{
    if (!job->values->report.json) {
        print_figures(job, stdout);
        return cli_out_flush(err);
    }
    json_t *results = json_array();
    for (size_t i = 0; results != NULL && i < job->values->loops; i++) {
        if (cli_json_append(results, loop_json(job, i)) != 0) {
            json_decref(results);
            results = NULL;
        }
    }
    return cli_out_json(cli_json_document(results, cli_engine_stats(&job->engine, &job->median)), err);
}

static uint64_t needed_bytes(const void *user, uint32_t sequences)
{
    return sequences * cli_generation_bytes(((const bench_job *)user)->values->gen_len);
}

/* --against: this program is run again by the comparison, with what was given of how it is to run. */
static int compare(const bench_values *values, const char *model, bool resident_given, pst_error *err)
{
    const cli_runtime *r = &values->runtime;
    char resident[32], group[24], memory[24];
    const char *options[24];
    size_t count = 0;
    if (values->prompt != NULL || values->layers != 0 || values->routing_trace != NULL)
        return cli_usage(err,
                         "--against compares whole models on random prompts: no --prompt, --layers, --routing-trace");
    if (resident_given) {
        if (r->resident.is_share)
            snprintf(resident, sizeof resident, "%.17g%%", r->resident.share * 100);
        else
            snprintf(resident, sizeof resident, "%llu", (unsigned long long)r->resident.bytes);
        options[count++] = "--resident";
        options[count++] = resident;
    }
    snprintf(group, sizeof group, "%llu", (unsigned long long)r->offload.group_size);
    snprintf(memory, sizeof memory, "%llu", (unsigned long long)r->device_memory);
    const char *const pairs[][2] = {{"--compute-type", r->compute_type},
                                    {"--kv-bits", r->kv_bits},
                                    {"--device", r->device},
                                    {"--device-memory", r->device_memory ? memory : NULL},
                                    {"--kernels", r->kernels},
                                    {"--quant-bits", r->offload.bits},
                                    {"--quant-group-size", group},
                                    {"--hf-cache", values->lookup.hf_cache}};
    for (size_t i = 0; i < CLI_COUNT(pairs); i++) {
        if (pairs[i][1] == NULL)
            continue;
        options[count++] = pairs[i][0];
        options[count++] = pairs[i][1];
    }
    if (r->placement.disk_offload)
        options[count++] = "--disk-offload";
    options[count] = NULL;
    const cli_against_work work = {.model = model,
                                   .batch_size = values->batch_size,
                                   .prompt_len = values->prompt_len,
                                   .gen_len = values->gen_len,
                                   .loops = values->loops,
                                   .threads = r->threads,
                                   .host_memory = r->host_memory,
                                   .options = options,
                                   .json = values->report.json};
    return cli_against_run(&values->against, &work, err);
}

static int run_job(bench_job *job, const pst_options_found *found, pst_error *err)
{
    const bench_values *values = job->values;
    const char *model = NULL;
    PST_TRY(check_values(values, found, &model, err));
    if (values->against.library != NULL)
        return compare(values, model, pst_options_given(&cli_command_bench_infer.spec, found, "resident"), err);
    job->runtime = values->runtime;
    if (values->num_gpus > 0 && !pst_options_given(&cli_command_bench_infer.spec, found, "device"))
        job->runtime.device = "auto";
    PST_TRY(cli_engine_open(&job->engine, model, &values->lookup, &job->runtime, err));
    PST_TRY(build_requests(job, err));
    pst_session_options shape = {.max_sequences = (uint32_t)job->batch,
                                 .max_tokens = (uint32_t)(job->prompt_len + values->gen_len),
                                 .max_prompt_tokens = (uint32_t)job->prompt_len,
                                 .routing_trace = values->routing_trace,
                                 .max_layers = (uint32_t)values->layers,
                                 .no_prefix_sharing = true}; /* every repetition does all the work */
    bool resident_given = pst_options_given(&cli_command_bench_infer.spec, found, "resident");
    PST_TRY(open_log(job, err));
    PST_TRY(cli_engine_start(&job->engine, &job->runtime, resident_given, &shape, false,
                             &(cli_needs){needed_bytes, job}, err));
    int status = run_loops(job, err);
    if (status < 0) {
        cli_engine_write_trace(&job->engine, NULL);
        return status;
    }
    PST_TRY(print_report(job, err));
    PST_TRY(append_log(job, err));
    PST_TRY(cli_engine_write_trace(&job->engine, err));
    cli_closing_lines(&job->median, job->median.generated_tokens, &values->report);
    return 0;
}

static int bench_infer(const void *values, const pst_options_found *found, pst_error *err)
{
    bench_job job = {.values = values};
    cli_notes_start(&job.values->report);
    int status = run_job(&job, found, err);
    close_log(&job);
    for (size_t i = 0; job.results != NULL && i < job.batch; i++)
        pst_result_free(&job.results[i]);
    pst_heap_free(job.results);
    pst_heap_free(job.requests);
    pst_heap_free(job.loops);
    pst_heap_free(job.prompt_ids);
    cli_engine_close(&job.engine);
    return status;
}

const cli_command cli_command_bench_infer = {
    .spec =
        {.name = "bench infer",
         .operands = "[MODEL]",
         .min_operands = 0,
         .max_operands = 1,
         .summary = "prefill and decode, measured beside their bound",
         .description =
             "Measures a batch of prompts: prefill, decode and total, with the options and the formulas of "
             "ZeRO-Inference, and what the drive and the processor would allow. Prefill throughput is batch * prompt "
             "/ prefill, decode batch * (gen - 1) / (total - prefill), total batch * gen / total.\n\n"
             "The repetitions share one session; what is printed is the repetition whose total time is the median, and "
             "--json has every one.",
         .example = "  penstock bench infer MODEL --batch-size 16 --prompt-len 512 --gen-len 32 --host-memory 2G\n",
         .groups = groups,
         .group_count = CLI_COUNT(groups),
         .values_bytes = sizeof(bench_values)},
    .run = bench_infer,
};
