/* SPDX-License-Identifier: Apache-2.0 */
/*
 * penstock generate: text from prompts. One prompt streams to standard output as it is made; several are computed
 * together and printed in order at the end.
 */
#include <string.h>

#include "base/heap.h"
#include "common.h"
#include "input.h"
#include "interrupt.h"
#include "output.h"
#include "progress.h"

typedef struct generate_values {
    cli_report report;
    cli_lookup lookup;
    cli_runtime runtime;
    pst_option_strings prompts, stops;
    const char *prompts_file;
    pst_option_ids token_ids;
    uint64_t max_new_tokens, batch_size, top_k, seed;
    double temperature, top_p, min_p;
    bool greedy, ignore_eos;
} generate_values;

#define AT(member) .offset = offsetof(generate_values, member)

static const pst_option prompt_rows[] = {
    {.name = "prompt",
     .short_name = 'p',
     .type = PST_OPTION_STRINGS,
     AT(prompts),
     .metavar = "TEXT",
     .help = "a text to go on from; may be given several times"},
    {.name = "prompts-file",
     .short_name = 'f',
     .type = PST_OPTION_STRING,
     AT(prompts_file),
     .metavar = "FILE",
     .help = "one prompt per line, at most 64 MiB in all; - is standard input"},
    {.name = "token-ids",
     .type = PST_OPTION_IDS,
     AT(token_ids),
     .metavar = "ID,...",
     .help = "a prompt as token ids, which needs no tokenizer; may be given several times"},
    {.name = "max-new-tokens",
     .short_name = 'n',
     .type = PST_OPTION_U64,
     AT(max_new_tokens),
     .metavar = "N",
     .initial = "128",
     .min = 1,
     .max = 1e8,
     .help = "tokens to make for each prompt, fewer where the model's context ends"},
    {.name = "batch-size",
     .type = PST_OPTION_U64,
     AT(batch_size),
     .metavar = "N",
     .min = 1,
     .max = 65536,
     .help = "prompts computed together, which share each pass over the weights; without it all, at most 32, fewer "
             "where memory is short"},
};

static const pst_option sampling_rows[] = {
    {.name = "greedy",
     .type = PST_OPTION_FLAG,
     AT(greedy),
     .help = "always take the likeliest token; this is the default unless the model's generation_config.json asks for "
             "sampling"},
    {.name = "temperature",
     .type = PST_OPTION_DOUBLE,
     AT(temperature),
     .metavar = "T",
     .min = 0,
     .max = 1e6,
     .help = "sample, with the logits divided by T; 0 is greedy; without it as generation_config.json says"},
    {.name = "top-k",
     .type = PST_OPTION_U64,
     AT(top_k),
     .metavar = "K",
     .min = 0,
     .max = 4294967295.0,
     .help = "sample among the K likeliest tokens; 0 is all of them"},
    {.name = "top-p",
     .type = PST_OPTION_DOUBLE,
     AT(top_p),
     .metavar = "P",
     .min = 0,
     .max = 1,
     .help = "sample among the likeliest tokens that make up P of the probability"},
    {.name = "min-p",
     .type = PST_OPTION_DOUBLE,
     AT(min_p),
     .metavar = "P",
     .min = 0,
     .max = 1,
     .help = "sample among tokens at least P times as likely as the likeliest"},
    {.name = "seed",
     .type = PST_OPTION_U64,
     AT(seed),
     .metavar = "N",
     .initial = "0",
     .help = "of the random numbers; the prompt number i (from 0) uses N + i, whatever is computed with it"},
    {.name = "stop",
     .type = PST_OPTION_STRINGS,
     AT(stops),
     .metavar = "TEXT",
     .help = "end before this text; may be given several times"},
    {.name = "ignore-eos", .type = PST_OPTION_FLAG, AT(ignore_eos), .help = "go on past the tokens that end a text"},
};

static const pst_option_group groups[] = {
    CLI_OWN_GROUP("Prompts", prompt_rows),
    CLI_OWN_GROUP("Choice of tokens", sampling_rows),
    CLI_SHARED_GROUP("Memory, streaming and compute", cli_runtime_rows, generate_values, runtime),
    CLI_SHARED_GROUP("Model lookup", cli_lookup_rows, generate_values, lookup),
    CLI_SHARED_GROUP("Output", cli_report_rows, generate_values, report),
};

/* What one run holds; every part is released by close_job. */
typedef struct generate_job {
    const generate_values *values;
    cli_engine engine;
    cli_inputs prompts;
    pst_request *requests;
    pst_result *results;
    pst_run_stats stats;
    /* Streaming: the error that stopped it, what was printed, tokens so far. */
    pst_error *err;
    bool has_text; /* the model has a tokenizer */
    bool streams, printed_any, ended_line;
    uint64_t tokens_made;
} generate_job;

static const char *finish_name(pst_finish finish)
{
    return finish == PST_FINISH_LENGTH ? "length" : "stop";
}

/* The model's own defaults, then what was asked for. Any sampling option turns sampling on. */
static int choose_sampling(const generate_values *values, const pst_options_found *found, const pst_model_info *info,
                           pst_sampling *out, pst_error *err)
{
    const pst_command *spec = &cli_command_generate.spec;
    bool temperature_given = pst_options_given(spec, found, "temperature");
    bool top_k_given = pst_options_given(spec, found, "top-k");
    bool top_p_given = pst_options_given(spec, found, "top-p");
    bool min_p_given = pst_options_given(spec, found, "min-p");
    bool any = temperature_given || top_k_given || top_p_given || min_p_given;
    if (values->greedy && any)
        return cli_usage(err, "--greedy and options of sampling exclude each other");
    pst_sampling sampling = {.top_p = 1, .seed = values->seed};
    if (!values->greedy && (info->do_sample || any)) {
        sampling.temperature = 1;
        if (info->do_sample) {
            sampling.temperature = info->temperature;
            sampling.top_k = info->top_k;
            sampling.top_p = info->top_p;
            sampling.min_p = info->min_p;
        }
        if (temperature_given)
            sampling.temperature = values->temperature;
        if (top_k_given)
            sampling.top_k = (uint32_t)values->top_k;
        if (top_p_given)
            sampling.top_p = values->top_p;
        if (min_p_given)
            sampling.min_p = values->min_p;
    }
    *out = sampling;
    return 0;
}

static int open_inputs(generate_job *job, pst_error *err)
{
    const generate_values *values = job->values;
    const cli_source source = {.noun = "prompt",
                               .texts = &values->prompts,
                               .ids = &values->token_ids,
                               .lines_file = values->prompts_file,
                               .stdin_default = true};
    PST_TRY(cli_inputs_gather(&source, &job->prompts, err));
    const pst_tokenizer *tokenizer;
    pst_error cause = {.offset = PST_NO_OFFSET};
    int status = pst_model_tokenizer(job->engine.model, &tokenizer, &cause);
    /* Ids in, ids out: without a tokenizer there is merely no text besides. */
    if (status < 0 && values->token_ids.count > 0 && values->stops.count == 0)
        return 0;
    if (status < 0)
        *err = cause;
    PST_TRY(status);
    job->has_text = true;
    return cli_inputs_encode(&job->prompts, tokenizer, true, err);
}

/* One request per prompt, and the lengths that the session is planned for. */
static int build_requests(generate_job *job, const pst_options_found *found, pst_session_options *shape, pst_error *err)
{
    const generate_values *values = job->values;
    size_t count = job->prompts.count;
    pst_sampling sampling;
    PST_TRY(choose_sampling(values, found, &job->engine.info, &sampling, err));
    job->requests = pst_heap_calloc(count, sizeof *job->requests);
    job->results = pst_heap_calloc(count, sizeof *job->results);
    if (job->requests == NULL || job->results == NULL)
        return pst_fail_memory(err, "requests", count * (sizeof *job->requests + sizeof *job->results));
    uint32_t context = job->engine.info.context;
    for (size_t i = 0; i < count; i++) {
        const cli_input *prompt = &job->prompts.items[i];
        if (prompt->id_count >= context)
            return pst_fail(err, PST_E_USAGE, prompt->name,
                            "%zu tokens leave no room for an answer: the context of this model is %u tokens",
                            prompt->id_count, context);
        uint64_t room = context - prompt->id_count;
        uint64_t wanted = values->max_new_tokens < room ? values->max_new_tokens : room;
        if (wanted < values->max_new_tokens && pst_options_given(&cli_command_generate.spec, found, "max-new-tokens"))
            cli_note("%s: only %llu new tokens, for the context of this model is %u tokens", prompt->name,
                     (unsigned long long)wanted, context);
        pst_request *request = &job->requests[i];
        *request = (pst_request){.prompt_ids = prompt->ids,
                                 .prompt_count = prompt->id_count,
                                 .max_new_tokens = (uint32_t)wanted,
                                 .sampling = sampling,
                                 .stop_texts = values->stops.items,
                                 .stop_count = values->stops.count,
                                 .ignore_end = values->ignore_eos};
        request->sampling.seed += i;
        if (prompt->id_count > shape->max_prompt_tokens)
            shape->max_prompt_tokens = (uint32_t)prompt->id_count;
        if (prompt->id_count + wanted > shape->max_tokens)
            shape->max_tokens = (uint32_t)(prompt->id_count + wanted);
    }
    return 0;
}

/* Prints a single prompt's text as it comes, whole characters only; without a tokenizer its ids. */
static int on_token(void *user, size_t request, uint32_t id, const char *text, size_t text_bytes)
{
    (void)request;
    generate_job *job = user;
    if (id != UINT32_MAX) /* that is no token, but text that was held back until the end */
        cli_progress_update(++job->tokens_made);
    if (!job->streams)
        return 0;
    if (!job->has_text) {
        if (cli_out_printf(job->err, job->printed_any ? " %u" : "%u", id) < 0)
            return 1;
        job->printed_any = true;
        job->ended_line = false;
    } else if (text_bytes > 0) {
        if (cli_out_write(text, text_bytes, job->err) < 0)
            return 1;
        job->printed_any = true;
        job->ended_line = text[text_bytes - 1] == '\n';
    }
    return cli_out_flush(job->err) < 0;
}

static json_t *results_json(const generate_job *job)
{
    json_t *array = json_array();
    for (size_t i = 0; array != NULL && i < job->prompts.count; i++) {
        const cli_input *prompt = &job->prompts.items[i];
        const pst_result *result = &job->results[i];
        json_t *entry =
            json_pack("{s:o, s:o, s:o, s:s}", "prompt", cli_json_text(prompt->text, prompt->text_bytes), "text",
                      cli_json_text(result->text, result->text_bytes), "token_ids",
                      cli_json_ids(result->ids.ids, result->ids.count), "finish_reason", finish_name(result->finish));
        if (cli_json_append(array, entry) != 0) {
            json_decref(array);
            return NULL;
        }
    }
    return array;
}

static int print_result(const cli_input *prompt, const pst_result *result, bool first, pst_error *err)
{
    PST_TRY(cli_out_printf(err, "%s=== %s: ", first ? "" : "\n", prompt->name));
    if (prompt->text != NULL)
        PST_TRY(cli_out_write(prompt->text, prompt->text_bytes, err));
    else
        PST_TRY(cli_out_printf(err, "%zu token ids", prompt->id_count));
    PST_TRY(cli_out_printf(err, " [%s]\n", finish_name(result->finish)));
    if (result->text != NULL)
        PST_TRY(cli_out_write(result->text, result->text_bytes, err));
    else
        for (size_t i = 0; i < result->ids.count; i++)
            PST_TRY(cli_out_printf(err, i > 0 ? " %u" : "%u", result->ids.ids[i]));
    return cli_out_text("\n", err);
}

static int print_results(const generate_job *job, pst_error *err)
{
    if (job->values->report.json)
        return cli_out_json(cli_json_document(results_json(job), cli_json_stats(&job->stats)), err);
    for (size_t i = 0; !job->streams && i < job->prompts.count; i++)
        PST_TRY(print_result(&job->prompts.items[i], &job->results[i], i == 0, err));
    return cli_out_flush(err);
}

static int run_requests(generate_job *job, pst_error *err)
{
    size_t count = job->prompts.count;
    uint64_t wanted = 0;
    for (size_t i = 0; i < count; i++)
        wanted += job->requests[i].max_new_tokens;
    job->streams = count == 1 && !job->values->report.json;
    job->err = err;
    job->ended_line = true;
    if (!job->streams)
        cli_progress_begin("generating", "tokens", wanted);
    *err = (pst_error){.offset = PST_NO_OFFSET};
    pst_error cause = {.offset = PST_NO_OFFSET};
    int status =
        pst_generate(job->engine.session, job->requests, count, on_token, job, job->results, &job->stats, &cause);
    cli_progress_end();
    if (err->code < 0) /* writing failed, and that cancelled the run */
        return err->code;
    /* The text stands alone on its lines, however it ended. */
    if (job->streams && (!job->ended_line || (status >= 0 && !job->printed_any)))
        PST_TRY(cli_out_text("\n", err));
    if (job->streams)
        PST_TRY(cli_out_flush(err));
    if (status < 0)
        *err = cause;
    return status;
}

static int run_job(generate_job *job, const char *model, const pst_options_found *found, pst_error *err)
{
    const generate_values *values = job->values;
    pst_session_options shape = {0};
    PST_TRY(cli_engine_open(&job->engine, model, &values->lookup, err));
    PST_TRY(open_inputs(job, err));
    PST_TRY(build_requests(job, found, &shape, err));
    uint64_t most = values->batch_size != 0 ? values->batch_size : 32;
    shape.max_sequences = (uint32_t)(job->prompts.count < most ? job->prompts.count : most);
    PST_TRY(cli_engine_start(&job->engine, &values->runtime,
                             pst_options_given(&cli_command_generate.spec, found, "resident"), &shape,
                             values->batch_size == 0, err));
    int status = run_requests(job, err);
    if (status < 0) {
        cli_engine_write_trace(&job->engine, NULL); /* it may show why; the first error is the one to report */
        return status;
    }
    PST_TRY(print_results(job, err));
    PST_TRY(cli_engine_write_trace(&job->engine, err));
    cli_closing_lines(&job->stats, job->stats.generated_tokens, &values->report);
    return 0;
}

static void close_job(generate_job *job)
{
    for (size_t i = 0; job->results != NULL && i < job->prompts.count; i++)
        pst_result_free(&job->results[i]);
    pst_heap_free(job->results);
    pst_heap_free(job->requests);
    cli_inputs_free(&job->prompts);
    cli_engine_close(&job->engine);
}

static int generate(const void *values, const pst_options_found *found, pst_error *err)
{
    generate_job job = {.values = values};
    cli_notes_start(&job.values->report);
    int status = run_job(&job, found->operands[0], found, err);
    close_job(&job);
    return status;
}

const cli_command cli_command_generate = {
    .spec = {.name = "generate",
             .operands = "MODEL",
             .min_operands = 1,
             .max_operands = 1,
             .summary = "text from prompts",
             .description =
                 "Goes on from one or more prompts with the model in the folder MODEL (or org/name in the local "
                 "Hugging Face cache), whose weights need not fit in memory: what does not fit is streamed from the "
                 "drive in every pass.\n\n"
                 "The text of a single prompt appears on standard output as it is made. Several prompts are computed "
                 "together and printed in order, each under a line that repeats it. Without a prompt, standard input "
                 "is one (less one newline at its end). One closing line on standard error says how fast it went and "
                 "what set the limit.",
             .example = "  penstock generate ~/models/Llama-3-8B --host-memory 2G --prompt \"Once upon a time\"\n"
                        "  penstock generate org/name --prompts-file prompts.txt --json > answers.json\n",
             .groups = groups,
             .group_count = CLI_COUNT(groups),
             .values_bytes = sizeof(generate_values)},
    .run = generate,
};
