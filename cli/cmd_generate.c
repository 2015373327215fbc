/* SPDX-License-Identifier: Apache-2.0 */
/*
 * penstock generate: text from prompts. One prompt streams to standard output as it is made; several are computed
 * together and printed in order, group by group.
 */
#include <string.h>

#include "base/heap.h"
#include "batch.h"
#include "common.h"
#include "input.h"
#include "output.h"
#include "progress.h"
#include "routing_out.h"

typedef struct generate_values {
    cli_report report;
    cli_lookup lookup;
    cli_runtime runtime;
    cli_batch batch;
    pst_option_strings prompts, stops;
    const char *prompts_file, *routing_trace_out, *system;
    pst_option_ids token_ids;
    uint64_t max_new_tokens, batch_size, context, top_k, seed;
    double temperature, top_p, min_p;
    bool greedy, ignore_eos, chat;
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
    {.name = "chat",
     .type = PST_OPTION_FLAG,
     AT(chat),
     .help = "take each prompt as a user's message, and put it as the model's chat template has it"},
    {.name = "system",
     .type = PST_OPTION_STRING,
     AT(system),
     .metavar = "TEXT",
     .help = "with --chat: a system message before it"},
    {.name = "max-new-tokens",
     .short_name = 'n',
     .type = PST_OPTION_U64,
     AT(max_new_tokens),
     .metavar = "N",
     .initial = "128",
     .min = 1,
     .max = 1e8,
     .help = "tokens to make for each prompt, fewer where the model's context ends"},
    CLI_NUMBER_ROW(
        generate_values, batch_size, "batch-size", NULL, 1, 65536,
        "prompts computed together, which share each pass over the weights; without it as many as make the whole "
        "faster, within the memory"),
    {.name = "routing-trace-out",
     .type = PST_OPTION_STRING,
     AT(routing_trace_out),
     .metavar = "FILE",
     .help = "models with experts: write which experts each token used, a JSON line per token, for --routing-trace of "
             "'penstock bench infer'"},
    CLI_NUMBER_ROW(
        generate_values, context, "context", NULL, 2, 1e8,
        "of a batch job: the most tokens of a prompt with its answer, for all of which memory is set aside; longer "
        "prompts get an error, longer answers end there; without it the model's context"),
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
    CLI_SHARED_GROUP("Batch jobs", cli_batch_rows, generate_values, batch),
    CLI_OWN_GROUP("Choice of tokens", sampling_rows),
    CLI_MEMORY_GROUPS(generate_values),
    CLI_MODEL_GROUPS(generate_values),
};

/*
 * What one run holds; every part is released by close_job.
 *
 * Requests are computed in windows: the results of one are printed and freed before the next begins, so that memory
 * does not grow with the number of prompts. Inside a window a new request joins when one ends; a window is many times
 * the batch where memory allows, so that the batch seldom runs empty at its end.
 */
typedef struct generate_job {
    const generate_values *values;
    cli_engine engine;
    cli_routing_out routing;
    cli_inputs prompts;
    pst_sampling sampling;
    uint64_t longest_new; /* tokens wanted of any request */
    size_t window;        /* requests; of this many are: */
    pst_request *requests;
    pst_result *results;
    pst_run_stats stats; /* of all windows so far */
    double pass_seconds; /* of their passes */
    cli_json_stream json;
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
    cli_chat chat = {.system = values->system};
    if (values->chat)
        PST_TRY(pst_model_chat_template(job->engine.model, &chat.chat_template, err));
    return cli_inputs_encode(&job->prompts, tokenizer, values->chat ? &chat : NULL, err);
}

/* Tokens to make for a prompt that leaves room for some. */
static uint64_t wanted_tokens(const generate_job *job, size_t prompt)
{
    uint64_t room = job->engine.info.context - job->prompts.items[prompt].id_count;
    return job->values->max_new_tokens < room ? job->values->max_new_tokens : room;
}

enum { KV_BLOCK = 64 };

/* The lengths that the session is planned for. */
static int measure_prompts(generate_job *job, const pst_options_found *found, pst_session_options *shape,
                           pst_workload *work, pst_error *err)
{
    const generate_values *values = job->values;
    uint32_t context = job->engine.info.context;
    char name[CLI_INPUT_NAME_BYTES];
    size_t cut = 0, first_cut = 0;
    PST_TRY(cli_inputs_check_ids(&job->prompts, job->engine.info.vocab, err));
    for (size_t i = 0; i < job->prompts.count; i++) {
        size_t tokens = job->prompts.items[i].id_count;
        if (tokens >= context)
            return pst_fail(err, PST_E_USAGE, cli_input_name(&job->prompts, i, name),
                            "%zu tokens leave no room for an answer: the context of this model is %u tokens", tokens,
                            context);
        uint64_t wanted = wanted_tokens(job, i);
        if (wanted < values->max_new_tokens && cut++ == 0)
            first_cut = i;
        if (tokens > shape->max_prompt_tokens)
            shape->max_prompt_tokens = (uint32_t)tokens;
        if (tokens + wanted > shape->max_tokens)
            shape->max_tokens = (uint32_t)(tokens + wanted);
        if (wanted > job->longest_new)
            job->longest_new = wanted;
        work->prompt_tokens += tokens;
        work->new_tokens += wanted;
        work->kv_tokens += (tokens + wanted + KV_BLOCK - 1) / KV_BLOCK * KV_BLOCK;
    }
    if (cut == 0 || !pst_options_given(&cli_command_generate.spec, found, "max-new-tokens"))
        return 0;
    cli_input_name(&job->prompts, first_cut, name);
    if (cut > 1)
        cli_note("%s and %zu more: fewer new tokens, for the context of this model is %u tokens", name, cut - 1,
                 context);
    else
        cli_note("%s: only %llu new tokens, for the context of this model is %u tokens", name,
                 (unsigned long long)wanted_tokens(job, first_cut), context);
    return 0;
}

/* Requests of a window: as many as a sixteenth of the budget holds, at least those of one batch. */
static size_t window_requests(const generate_job *job, uint32_t sequences)
{
    enum { MOST = 4096 };
    const uint64_t usual_bytes = UINT64_C(64) << 20; /* without a budget of its own */
    uint64_t budget = job->values->runtime.host_memory;
    uint64_t window = (budget != 0 ? budget / 16 : usual_bytes) / cli_generation_bytes(job->longest_new);
    window = window > MOST ? MOST : window;
    window = window < sequences ? sequences : window;
    return window < job->prompts.count ? (size_t)window : job->prompts.count;
}

/* What the window allocates, and the JSON of one result. */
static uint64_t needed_bytes(const void *user, uint32_t sequences)
{
    const generate_job *job = user;
    enum { JSON_TOKEN_BYTES = 64 };
    return window_requests(job, sequences) * cli_generation_bytes(job->longest_new) +
           job->longest_new * JSON_TOKEN_BYTES;
}

static int make_window(generate_job *job, uint32_t sequences, pst_error *err)
{
    job->window = window_requests(job, sequences);
    job->requests = pst_heap_calloc(job->window, sizeof *job->requests);
    job->results = pst_heap_calloc(job->window, sizeof *job->results);
    if (job->requests == NULL || job->results == NULL)
        return pst_fail_memory(err, "requests", job->window * (sizeof *job->requests + sizeof *job->results));
    return 0;
}

static void fill_requests(generate_job *job, size_t first, size_t count)
{
    const generate_values *values = job->values;
    for (size_t i = 0; i < count; i++) {
        const cli_input *prompt = &job->prompts.items[first + i];
        pst_request *request = &job->requests[i];
        *request = (pst_request){.prompt_ids = prompt->ids,
                                 .prompt_count = prompt->id_count,
                                 .max_new_tokens = (uint32_t)wanted_tokens(job, first + i),
                                 .sampling = job->sampling,
                                 .stop_texts = values->stops.items,
                                 .stop_count = values->stops.count,
                                 .ignore_end = values->ignore_eos};
        request->sampling.seed += first + i;
    }
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

static json_t *result_json(const cli_input *prompt, const pst_result *result)
{
    return json_pack("{s:o, s:o, s:o, s:s}", "prompt", cli_json_text(prompt->text, prompt->text_bytes), "text",
                     cli_json_text(result->text, result->text_bytes), "token_ids",
                     cli_json_ids(result->ids.ids, result->ids.count), "finish_reason", finish_name(result->finish));
}

static int print_result(const generate_job *job, size_t index, const pst_result *result, pst_error *err)
{
    const cli_input *prompt = &job->prompts.items[index];
    char name[CLI_INPUT_NAME_BYTES];
    PST_TRY(cli_out_printf(err, "%s=== %s: ", index == 0 ? "" : "\n", cli_input_name(&job->prompts, index, name)));
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

/* Prints the results of a window and frees them. */
static int print_window(generate_job *job, size_t first, size_t count, pst_error *err)
{
    int status = 0;
    cli_progress_clear();
    for (size_t i = 0; i < count; i++) {
        const pst_result *result = &job->results[i];
        if (status >= 0 && job->values->report.json)
            status = cli_json_stream_result(&job->json, result_json(&job->prompts.items[first + i], result), err);
        else if (status >= 0 && !job->streams)
            status = print_result(job, first + i, result, err);
        pst_result_free(&job->results[i]);
    }
    return status < 0 ? status : cli_out_flush(err);
}

/* Adds a window's figures to those of the windows before it, as if they were one run. */
static void add_stats(generate_job *job, const pst_run_stats *window, size_t requests_so_far)
{
    pst_run_stats *sum = &job->stats, before = job->stats;
    /* The wall time of the passes is not among the figures, but follows from them. */
    job->pass_seconds += window->read_bytes_per_second > 0
                             ? (double)window->weight_bytes_read / window->read_bytes_per_second
                         : window->share_of_bound > 0 ? window->bound_seconds / window->share_of_bound
                                                      : window->total_seconds;
    *sum = *window; /* what belongs to the session, and to the process so far */
    sum->prompt_tokens += before.prompt_tokens;
    sum->generated_tokens += before.generated_tokens;
    sum->passes += before.passes;
    sum->replayed_passes += before.replayed_passes;
    sum->shared_tokens += before.shared_tokens;
    sum->expert_hits += before.expert_hits;
    sum->expert_misses += before.expert_misses;
    sum->expert_bytes_found += before.expert_bytes_found;
    sum->expert_bytes_read += before.expert_bytes_read;
    sum->guesses_right += before.guesses_right;
    sum->guesses_wrong += before.guesses_wrong;
    sum->wasted_bytes += before.wasted_bytes;
    sum->kv_bytes_read += before.kv_bytes_read;
    sum->kv_bytes_written += before.kv_bytes_written;
    sum->prefill_seconds += before.prefill_seconds;
    sum->decode_seconds += before.decode_seconds;
    sum->total_seconds += before.total_seconds;
    sum->weight_bytes_read += before.weight_bytes_read;
    sum->io_wait_seconds += before.io_wait_seconds;
    sum->link_bytes += before.link_bytes;
    sum->link_wait_seconds += before.link_wait_seconds;
    sum->compute_seconds += before.compute_seconds;
    sum->bound_seconds += before.bound_seconds;
    if (before.bound_seconds > window->bound_seconds)
        sum->limited_by = before.limited_by;
    if (requests_so_far == 0) /* one window has its own rates */
        return;
    sum->prefill_tokens_per_second = sum->prefill_seconds > 0 ? (double)sum->prompt_tokens / sum->prefill_seconds : 0;
    sum->decode_tokens_per_second = 0;
    if (sum->decode_seconds > 0 && sum->generated_tokens > requests_so_far)
        sum->decode_tokens_per_second = (double)(sum->generated_tokens - requests_so_far) / sum->decode_seconds;
    sum->tokens_per_second = sum->total_seconds > 0 ? (double)sum->generated_tokens / sum->total_seconds : 0;
    sum->read_bytes_per_second = job->pass_seconds > 0 ? (double)sum->weight_bytes_read / job->pass_seconds : 0;
    sum->share_of_bound = job->pass_seconds > 0 ? sum->bound_seconds / job->pass_seconds : 0;
}

static int run_window(generate_job *job, size_t first, size_t count, pst_error *err)
{
    pst_run_stats stats;
    fill_requests(job, first, count);
    *err = (pst_error){.offset = PST_NO_OFFSET};
    pst_error cause = {.offset = PST_NO_OFFSET};
    cli_engine_run_begins(&job->engine);
    int status = pst_generate(job->engine.session, job->requests, count, on_token, job, job->results, &stats, &cause);
    bool done = status >= 0;
    status = cli_engine_run_ended(status, &cause);
    if (err->code < 0) /* writing failed, and that cancelled the run */
        return err->code;
    /* The text stands alone on its lines, however it ended. */
    if (job->streams && (!job->ended_line || (done && !job->printed_any))) {
        PST_TRY(cli_out_text("\n", err));
        PST_TRY(cli_out_flush(err));
    }
    if (status < 0) {
        *err = cause;
        return status;
    }
    add_stats(job, &stats, first == 0 ? 0 : first + count);
    return print_window(job, first, count, err);
}

static int run_windows(generate_job *job, pst_error *err)
{
    size_t total = job->prompts.count;
    uint64_t wanted = 0;
    for (size_t i = 0; i < total; i++)
        wanted += wanted_tokens(job, i);
    job->streams = total == 1 && !job->values->report.json;
    job->err = err;
    job->ended_line = true;
    if (!job->streams)
        cli_progress_begin("generating", "tokens", wanted);
    int status = 0;
    for (size_t first = 0; first < total && status >= 0; first += job->window)
        status = run_window(job, first, job->window < total - first ? job->window : total - first, err);
    cli_progress_end();
    PST_TRY(status);
    return job->values->report.json ? cli_json_stream_end(&job->json, cli_engine_stats(&job->engine, &job->stats), err)
                                    : 0;
}

/* The lines of a file instead of prompts. */
static int run_batch(generate_job *job, const pst_options_found *found, pst_error *err)
{
    const generate_values *values = job->values;
    cli_batch_job batch = {.batch = &values->batch,
                           .engine = &job->engine,
                           .runtime = &values->runtime,
                           .report = &values->report,
                           .resident_given = pst_options_given(&cli_command_generate.spec, found, "resident"),
                           .batch_size = values->batch_size};
    batch.options = (pst_batch_options){.kind = PST_BATCH_GENERATE,
                                        .context = (uint32_t)values->context,
                                        .max_new_tokens = (uint32_t)values->max_new_tokens,
                                        .sampling = job->sampling,
                                        .stop_texts = values->stops.items,
                                        .stop_count = values->stops.count,
                                        .ignore_end = values->ignore_eos};
    return cli_batch_run(&batch, err);
}

static int run_job(generate_job *job, const char *model, const pst_options_found *found, pst_error *err)
{
    const generate_values *values = job->values;
    pst_session_options shape = {0};
    for (size_t i = 0; i < values->stops.count; i++) {
        if (values->stops.items[i][0] == '\0')
            return cli_usage(err, "--stop: an empty text would end every text at once");
    }
    bool others = values->prompts.count > 0 || values->token_ids.count > 0 || values->prompts_file != NULL;
    int is_batch = cli_batch_wanted(&values->batch, others, err);
    PST_TRY(is_batch);
    if (values->chat && (is_batch || values->token_ids.count > 0))
        return cli_usage(err, "--chat is for prompts of text; a batch job's lines have \"messages\"");
    if (values->system != NULL && !values->chat)
        return cli_usage(err, "--system goes with --chat");
    if (!is_batch && values->context != 0)
        return cli_usage(err, "--context is for batch jobs (--input and --output)");
    if (is_batch && values->routing_trace_out != NULL)
        return cli_usage(err, "--routing-trace-out is for prompts, not for batch jobs");
    PST_TRY(cli_engine_open(&job->engine, model, &values->lookup, &values->runtime, err));
    PST_TRY(choose_sampling(values, found, &job->engine.info, &job->sampling, err));
    if (is_batch)
        return run_batch(job, found, err);
    PST_TRY(open_inputs(job, err));
    pst_workload work = {.struct_size = sizeof work, .requests = job->prompts.count};
    PST_TRY(measure_prompts(job, found, &shape, &work, err));
    work.fixed_bytes = needed_bytes(job, 1);
    work.sequence_bytes = cli_generation_bytes(job->longest_new);
    uint64_t most = values->batch_size != 0 ? values->batch_size : UINT32_MAX;
    shape.max_sequences = (uint32_t)(job->prompts.count < most ? job->prompts.count : most);
    PST_TRY(cli_routing_out_open(&job->routing, values->routing_trace_out, &shape, err));
    PST_TRY(cli_engine_start(
        &job->engine, &values->runtime, pst_options_given(&cli_command_generate.spec, found, "resident"), &shape,
        values->batch_size == 0, &(cli_needs){needed_bytes, job, values->batch_size ? NULL : &work}, err));
    PST_TRY(make_window(job, shape.max_sequences, err));
    int status = run_windows(job, err);
    if (status < 0) {
        cli_engine_write_trace(&job->engine, NULL); /* it may show why; the first error is the one to report */
        return status;
    }
    PST_TRY(cli_engine_write_trace(&job->engine, err));
    cli_closing_lines(&job->stats, job->stats.generated_tokens, &values->report);
    return 0;
}

static void close_job(generate_job *job)
{
    for (size_t i = 0; job->results != NULL && i < job->window; i++)
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
    status = cli_routing_out_close(&job.routing, status, err);
    close_job(&job);
    return status;
}

const cli_command cli_command_generate = {
    .spec =
        {.name = "generate",
         .operands = "MODEL",
         .min_operands = 1,
         .max_operands = 1,
         .summary = "text from prompts",
         .description =
             "Goes on from one or more prompts with the model in the folder MODEL (or org/name in the local "
             "Hugging Face cache), whose weights need not fit in memory: what does not fit is streamed from the "
             "drive in every pass.\n\n"
             "The text of a single prompt appears on standard output as it is made. Several prompts are computed "
             "together and printed in order, each under a line that repeats it: many of them in groups that fit in "
             "memory, each group printed when it is done (with --json too, so that a run which fails leaves a "
             "document without its end). Without a prompt, standard input is one (less one newline at its end). "
             "One closing line on standard error says how fast it went and "
             "what set the limit.\n\n"
             "With --input and --output it is a batch job: every line of the input is a request of its own, in "
             "OpenAI's batch format ({\"custom_id\": ..., \"url\": \"/v1/completions\", \"body\": {...}}) or plain "
             "({\"prompt\": \"...\", \"max_tokens\": 100}). A line that is wrong is answered with an error. A job "
             "that was killed goes on where it was when the same command is given again, and its output is byte for "
             "byte that of a job that was not.",
         .example = "  penstock generate ~/models/Llama-3-8B --host-memory 2G --prompt \"Once upon a time\"\n"
                    "  penstock generate org/name --prompts-file prompts.txt --json > answers.json\n"
                    "  penstock generate org/name -i requests.jsonl -o answers.jsonl --batch-size 64\n",
         .groups = groups,
         .group_count = CLI_COUNT(groups),
         .values_bytes = sizeof(generate_values)},
    .run = generate,
};
