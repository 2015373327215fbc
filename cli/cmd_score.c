/* SPDX-License-Identifier: Apache-2.0 */
/*
 * penstock score: log-probabilities of given texts, and logits.
 *
 * A text longer than the window is cut into windows that overlap by one token, so that every token but the first is
 * scored exactly once: window w covers tokens [w * (window - 1), w * (window - 1) + window), and the first row of every
 * window but the first is computed a second time and dropped.
 */
#include <math.h>
#include <string.h>

#include "base/heap.h"
#include "batch.h"
#include "common.h"
#include "input.h"
#include "npy.h"
#include "output.h"
#include "progress.h"

enum { DEFAULT_WINDOW_TOKENS = 2048, KV_BLOCK = 64 };

typedef struct score_values {
    cli_report report;
    cli_lookup lookup;
    cli_runtime runtime;
    cli_batch batch;
    pst_option_strings texts;
    pst_option_ids token_ids;
    const char *file, *logits_out;
    uint64_t context, batch_size;
} score_values;

#define AT(member) .offset = offsetof(score_values, member)

static const pst_option text_rows[] = {
    {.name = "text",
     .short_name = 't',
     .type = PST_OPTION_STRINGS,
     AT(texts),
     .metavar = "TEXT",
     .help = "a text to score; may be given several times"},
    {.name = "file",
     .short_name = 'f',
     .type = PST_OPTION_STRING,
     AT(file),
     .metavar = "FILE",
     .help = "a file whose whole text is scored, at most 64 MiB; - is standard input"},
    {.name = "token-ids",
     .type = PST_OPTION_IDS,
     AT(token_ids),
     .metavar = "ID,...",
     .help = "a text as token ids, which needs no tokenizer; may be given several times"},
    CLI_NUMBER_ROW(
        score_values, context, "context", NULL, 2, 1e8,
        "tokens of a window; longer texts are cut into windows that overlap by one token, in which nothing is known "
        "of the windows before; without it the model's context, at most 2048"),
    CLI_NUMBER_ROW(score_values, batch_size, "batch-size", NULL, 1, 65536,
                   "windows computed together; without it as many as make the whole faster, within the memory"),
    {.name = "logits-out",
     .type = PST_OPTION_STRING,
     AT(logits_out),
     .metavar = "FILE.npy",
     .help = "write the logits after every token of the one text: float32, tokens x vocabulary, a NumPy file that "
             "appears when it is complete"},
};

static const pst_option_group groups[] = {
    CLI_OWN_GROUP("Texts", text_rows),
    CLI_SHARED_GROUP("Batch jobs", cli_batch_rows, score_values, batch),
    CLI_MEMORY_GROUPS(score_values),
    CLI_MODEL_GROUPS(score_values),
};

typedef struct score_window {
    size_t text;  /* index of the text */
    size_t first; /* of its tokens */
} score_window;

typedef struct score_job {
    const score_values *values;
    cli_engine engine;
    cli_inputs texts;
    double **logprobs; /* per text, id_count - 1 of them */
    score_window *windows;
    pst_score_request *requests; /* one per window */
    size_t window_count, window_tokens;
    cli_npy *npy;
    uint64_t rows_done;
    pst_error *err;
    pst_run_stats stats;
} score_job;

static int open_texts(score_job *job, pst_error *err)
{
    const score_values *values = job->values;
    const cli_source source = {.noun = "text",
                               .texts = &values->texts,
                               .ids = &values->token_ids,
                               .whole_file = values->file,
                               .stdin_default = true};
    PST_TRY(cli_inputs_gather(&source, &job->texts, err));
    if (values->logits_out != NULL && job->texts.count != 1)
        return cli_usage(err, "--logits-out takes one text, and there are %zu", job->texts.count);
    if (values->token_ids.count == 0) {
        const pst_tokenizer *tokenizer;
        PST_TRY(pst_model_tokenizer(job->engine.model, &tokenizer, err));
        PST_TRY(cli_inputs_encode(&job->texts, tokenizer, NULL, err));
    }
    return cli_inputs_check_ids(&job->texts, job->engine.info.vocab, err);
}

static size_t windows_of(size_t tokens, size_t window)
{
    /* A last window of one token would score nothing new. */
    return tokens <= window ? 1 : 1 + (tokens - window + window - 2) / (window - 1);
}

static int choose_window(score_job *job, pst_error *err)
{
    uint64_t context = job->engine.info.context;
    uint64_t window = job->values->context;
    if (window > context)
        return pst_fail(err, PST_E_USAGE, NULL, "--context: %llu is more than the model's context of %llu tokens",
                        (unsigned long long)window, (unsigned long long)context);
    if (window == 0)
        window = context < DEFAULT_WINDOW_TOKENS ? context : DEFAULT_WINDOW_TOKENS;
    job->window_tokens = window < 2 ? 2 : window;
    return 0;
}

static int build_windows(score_job *job, pst_session_options *shape, pst_workload *work, pst_error *err)
{
    PST_TRY(choose_window(job, err));
    size_t window = job->window_tokens;
    for (size_t i = 0; i < job->texts.count; i++)
        job->window_count += windows_of(job->texts.items[i].id_count, window);
    job->logprobs = pst_heap_calloc(job->texts.count, sizeof *job->logprobs);
    job->windows = pst_heap_calloc(job->window_count, sizeof *job->windows);
    job->requests = pst_heap_calloc(job->window_count, sizeof *job->requests);
    if (job->logprobs == NULL || job->windows == NULL || job->requests == NULL)
        return pst_fail_memory(err, "windows", job->window_count * sizeof *job->requests);
    size_t number = 0;
    for (size_t i = 0; i < job->texts.count; i++) {
        const cli_input *text = &job->texts.items[i];
        job->logprobs[i] = pst_heap_calloc(text->id_count, sizeof **job->logprobs);
        if (job->logprobs[i] == NULL)
            return pst_fail_memory(err, "log-probabilities", text->id_count * sizeof **job->logprobs);
        for (size_t w = 0; w < windows_of(text->id_count, window); w++, number++) {
            size_t first = w * (window - 1);
            size_t count = text->id_count - first < window ? text->id_count - first : window;
            job->windows[number] = (score_window){.text = i, .first = first};
            job->requests[number] =
                (pst_score_request){.ids = text->ids + first, .count = count, .logprobs = job->logprobs[i] + first};
            if (count > shape->max_tokens)
                shape->max_tokens = (uint32_t)count;
            work->prompt_tokens += count;
            work->kv_tokens += (count + KV_BLOCK - 1) / KV_BLOCK * KV_BLOCK;
        }
    }
    shape->max_prompt_tokens = shape->max_tokens;
    shape->all_logits = true;
    return 0;
}

static int on_logits(void *user, size_t request, uint32_t position, const float *logits, size_t vocab)
{
    (void)vocab;
    score_job *job = user;
    const score_window *window = &job->windows[request];
    cli_progress_update(++job->rows_done);
    if (job->npy == NULL || (position == 0 && window->first > 0))
        return 0;
    return cli_npy_write_row(job->npy, window->first + position, logits, job->err) < 0;
}

static int open_logits(score_job *job, pst_error *err)
{
    if (job->values->logits_out == NULL)
        return 0;
    uint64_t rows = job->texts.items[0].id_count, columns = job->engine.info.vocab;
    PST_TRY(cli_npy_create(job->values->logits_out, rows, columns, &job->npy, err));
    if (rows * columns * sizeof(float) >= 100000000)
        cli_note("writing %.1f GB to %s", (double)(rows * columns * sizeof(float)) / 1e9, job->values->logits_out);
    return 0;
}

static int run_windows(score_job *job, pst_error *err)
{
    uint64_t rows = 0;
    for (size_t i = 0; i < job->window_count; i++)
        rows += job->requests[i].count;
    *err = (pst_error){.offset = PST_NO_OFFSET};
    pst_error cause = {.offset = PST_NO_OFFSET};
    job->err = err;
    cli_progress_begin("scoring", "tokens", rows);
    cli_engine_run_begins(&job->engine);
    int status = pst_score(job->engine.session, job->requests, job->window_count, on_logits, job, &job->stats, &cause);
    status = cli_engine_run_ended(status, &cause);
    cli_progress_end();
    if (err->code < 0) /* writing failed, and that cancelled the run */
        return err->code;
    if (status < 0)
        *err = cause;
    return status;
}

/* The mean in natural logarithms; NaN without any. */
static double mean_logprob(const score_job *job, size_t text)
{
    size_t count = job->texts.items[text].id_count - 1;
    double sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += job->logprobs[text][i];
    return count > 0 ? sum / (double)count : NAN;
}

static json_t *real_or_null(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

/* Number by number: as a tree, the figures of a long text would take tens of times their own memory. */
static int print_text_json(const score_job *job, size_t text, pst_error *err)
{
    const cli_input *item = &job->texts.items[text];
    double mean = mean_logprob(job, text);
    PST_TRY(cli_out_printf(err, "%s{\"tokens\": %zu, \"token_ids\": [", text > 0 ? ", " : "", item->id_count));
    for (size_t i = 0; i < item->id_count; i++)
        PST_TRY(cli_out_printf(err, i > 0 ? ", %u" : "%u", item->ids[i]));
    PST_TRY(cli_out_text("], \"logprobs\": [", err));
    for (size_t i = 0; i + 1 < item->id_count; i++) {
        PST_TRY(cli_out_text(i > 0 ? ", " : "", err));
        PST_TRY(cli_out_json_value(real_or_null(job->logprobs[text][i]), err));
    }
    PST_TRY(cli_out_text("], \"mean_logprob\": ", err));
    PST_TRY(cli_out_json_value(real_or_null(mean), err));
    PST_TRY(cli_out_text(", \"perplexity\": ", err));
    PST_TRY(cli_out_json_value(real_or_null(exp(-mean)), err));
    return cli_out_text("}", err);
}

static int print_json(const score_job *job, pst_error *err)
{
    PST_TRY(cli_out_text("{\"results\": [", err));
    for (size_t i = 0; i < job->texts.count; i++)
        PST_TRY(print_text_json(job, i, err));
    PST_TRY(cli_out_text("], \"stats\": ", err));
    PST_TRY(cli_out_json_value(cli_engine_stats(&job->engine, &job->stats), err));
    PST_TRY(cli_out_text("}\n", err));
    return cli_out_flush(err);
}

static int print_scores(const score_job *job, pst_error *err)
{
    if (job->values->report.json)
        return print_json(job, err);
    for (size_t i = 0; i < job->texts.count; i++) {
        char name[CLI_INPUT_NAME_BYTES];
        double mean = mean_logprob(job, i);
        size_t count = job->texts.items[i].id_count;
        PST_TRY(
            cli_out_printf(err, "%s: %zu token%s", cli_input_name(&job->texts, i, name), count, count == 1 ? "" : "s"));
        if (count < 2)
            PST_TRY(cli_out_text(", of which none follows another\n", err));
        else
            PST_TRY(cli_out_printf(err, ", mean log-probability %.6f, perplexity %.6g\n", mean, exp(-mean)));
    }
    return cli_out_flush(err);
}

/* The log-probabilities, which are there already but not yet touched. */
static uint64_t needed_bytes(const void *user, uint32_t sequences)
{
    (void)sequences;
    const score_job *job = user;
    uint64_t tokens = 0;
    for (size_t i = 0; i < job->texts.count; i++)
        tokens += job->texts.items[i].id_count;
    return tokens * sizeof(double);
}

/* The lines of a file instead of texts. */
static int run_batch(score_job *job, const pst_options_found *found, pst_error *err)
{
    const score_values *values = job->values;
    cli_batch_job batch = {.batch = &values->batch,
                           .engine = &job->engine,
                           .runtime = &values->runtime,
                           .report = &values->report,
                           .resident_given = pst_options_given(&cli_command_score.spec, found, "resident"),
                           .batch_size = values->batch_size};
    batch.options = (pst_batch_options){.kind = PST_BATCH_SCORE, .context = (uint32_t)values->context};
    return cli_batch_run(&batch, err);
}

static int run_job(score_job *job, const pst_options_found *found, pst_error *err)
{
    const score_values *values = job->values;
    pst_session_options shape = {0};
    bool others =
        values->texts.count > 0 || values->token_ids.count > 0 || values->file != NULL || values->logits_out != NULL;
    int is_batch = cli_batch_wanted(&values->batch, others, err);
    PST_TRY(is_batch);
    PST_TRY(cli_engine_open(&job->engine, found->operands[0], &values->lookup, &values->runtime, err));
    if (is_batch)
        return run_batch(job, found, err);
    PST_TRY(open_texts(job, err));
    pst_workload work = {.struct_size = sizeof work};
    PST_TRY(build_windows(job, &shape, &work, err));
    work.requests = job->window_count;
    work.fixed_bytes = needed_bytes(job, 1);
    uint64_t most = values->batch_size != 0 ? values->batch_size : UINT32_MAX;
    shape.max_sequences = (uint32_t)(job->window_count < most ? job->window_count : most);
    PST_TRY(cli_engine_start(
        &job->engine, &values->runtime, pst_options_given(&cli_command_score.spec, found, "resident"), &shape,
        values->batch_size == 0,
        &(cli_needs){needed_bytes, job, values->batch_size ? NULL : &work, values->logits_out != NULL}, err));
    PST_TRY(open_logits(job, err));
    int status = run_windows(job, err);
    if (status < 0) {
        cli_engine_write_trace(&job->engine, NULL);
        return status;
    }
    if (job->npy != NULL)
        PST_TRY(cli_npy_publish(job->npy, err));
    PST_TRY(print_scores(job, err));
    PST_TRY(cli_engine_write_trace(&job->engine, err));
    cli_closing_lines(&job->stats, job->stats.prompt_tokens, &values->report);
    return 0;
}

static void close_job(score_job *job)
{
    cli_npy_close(job->npy);
    for (size_t i = 0; job->logprobs != NULL && i < job->texts.count; i++)
        pst_heap_free(job->logprobs[i]);
    pst_heap_free(job->logprobs);
    pst_heap_free(job->windows);
    pst_heap_free(job->requests);
    cli_inputs_free(&job->texts);
    cli_engine_close(&job->engine);
}

static int score(const void *values, const pst_options_found *found, pst_error *err)
{
    score_job job = {.values = values};
    cli_notes_start(&job.values->report);
    int status = run_job(&job, found, err);
    close_job(&job);
    return status;
}

const cli_command cli_command_score = {
    .spec = {.name = "score",
             .operands = "MODEL",
             .min_operands = 1,
             .max_operands = 1,
             .summary = "log-probabilities of texts, perplexity, logits",
             .description =
                 "Says how likely the model finds given texts: the natural logarithm of the probability of every token "
                 "after the first, given those before it, their mean, and the perplexity exp(-mean).\n\n"
                 "Without a text, standard input is one (less one newline at its end). --json prints every "
                 "log-probability; --logits-out writes all logits.\n\n"
                 "With --input and --output it is a batch job, as of penstock generate: every line of the input is "
                 "{\"text\": \"...\"}, {\"token_ids\": [...]}, or {\"prompt\": \"...\", \"completion\": \"...\"}, of "
                 "which the "
                 "completion alone is scored; \"logprobs\": true asks for every log-probability.",
             .example = "  penstock score ~/models/Llama-3-8B --file chapter.txt --host-memory 2G\n"
                        "  penstock score MODEL --token-ids 1,2,3 --logits-out logits.npy\n",
             .groups = groups,
             .group_count = CLI_COUNT(groups),
             .values_bytes = sizeof(score_values)},
    .run = score,
};
