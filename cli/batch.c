/* SPDX-License-Identifier: Apache-2.0 */
/* Batch jobs on the command line: options, progress, the closing lines. */
#include "batch.h"

#include <string.h>

#include "chat.h"
#include "interrupt.h"
#include "output.h"
#include "progress.h"

#define AT(member) .offset = offsetof(cli_batch, member)

const pst_option cli_batch_rows[CLI_BATCH_ROWS] = {
    {.name = "input",
     .short_name = 'i',
     .type = PST_OPTION_STRING,
     AT(input),
     .metavar = "FILE",
     .help =
         "a batch job: one request per line, as JSON, in OpenAI's batch format or plain; - is standard input, which "
         "is read to its end first"},
    {.name = "output",
     .short_name = 'o',
     .type = PST_OPTION_STRING,
     AT(output),
     .metavar = "FILE",
     .help = "where the answers go, line by line in the input's order; it appears when all are there, until then they "
             "are kept in FILE.partial, from which a job that was killed goes on when it is started again"},
    {.name = "restart",
     .type = PST_OPTION_FLAG,
     AT(restart),
     .help = "begin the batch job anew: forget the answers so far, and replace the output"},
};

int cli_batch_wanted(const cli_batch *batch, bool others, pst_error *err)
{
    if (batch->input == NULL && batch->output == NULL && !batch->restart)
        return 0;
    if (batch->input == NULL || batch->output == NULL)
        return cli_usage(err, "a batch job needs both --input and --output");
    if (others)
        return cli_usage(err, "a batch job takes its requests from --input alone");
    return 1;
}

/* ---- progress ---- */

typedef struct batch_view {
    cli_batch_job *job;
    pst_batch_phase phase;
    bool begun;
} batch_view;

static int on_progress(void *user, const pst_batch_progress *p)
{
    static const char *const labels[] = {"looking at the input", "measuring the input", "answering",
                                         "writing the output"};
    batch_view *view = user;
    bool lines = p->phase == PST_BATCH_RUNNING || p->phase == PST_BATCH_WRITING;
    if (!view->begun || view->phase != p->phase) {
        cli_progress_end();
        if (p->phase == PST_BATCH_RUNNING && p->before > 0)
            cli_note("going on: %llu of %llu lines are answered", (unsigned long long)p->before,
                     (unsigned long long)p->total);
        cli_progress_begin(labels[p->phase], lines ? "lines" : "bytes", p->total);
        cli_progress_resume(p->before, p->phase == PST_BATCH_RUNNING ? "tokens" : NULL);
        view->begun = true;
        view->phase = p->phase;
    }
    cli_progress_update_both(p->done, p->tokens);
    return cli_interrupted() != 0;
}

/* ---- the job ---- */

static uint64_t needed_bytes(const void *user, uint32_t sequences)
{
    const pst_batch_info *info = user;
    uint64_t bytes;
    if (__builtin_mul_overflow(info->memory_bytes, (uint64_t)sequences, &bytes) || bytes > UINT64_MAX / 4)
        return UINT64_MAX / 4;
    return bytes + info->fixed_bytes;
}

static int start_session(cli_batch_job *job, const pst_batch_info *info, pst_error *err)
{
    const uint64_t requests = info->requests ? info->requests : 1;
    const uint64_t most = job->batch_size ? job->batch_size : UINT32_MAX;
    const pst_workload work = {.struct_size = sizeof work,
                               .requests = requests,
                               .kv_tokens = info->kv_tokens,
                               .prompt_tokens = info->prompt_tokens,
                               .new_tokens = info->new_tokens,
                               .fixed_bytes = info->fixed_bytes,
                               .sequence_bytes = info->memory_bytes};
    pst_session_options shape = {.max_tokens = info->max_tokens,
                                 .max_prompt_tokens = info->max_prompt_tokens,
                                 .max_sequences = (uint32_t)(requests < most ? requests : most),
                                 .all_logits = job->options.kind == PST_BATCH_SCORE,
                                 .logprobs = info->logprobs,
                                 .prompt_logprobs = info->prompt_logprobs};
    cli_interrupt_polled(false); /* a signal need not wait until all weights are in memory */
    int status = cli_engine_start(job->engine, job->runtime, job->resident_given, &shape, job->batch_size == 0,
                                  &(cli_needs){needed_bytes, info, job->batch_size ? NULL : &work}, err);
    cli_interrupt_polled(true);
    return status;
}

static void say_where(const cli_batch_job *job, const pst_batch_info *info, const pst_batch_report *report)
{
    const char *path = job->batch->output;
    if (info->complete) {
        cli_note("already complete: %llu line%s in %s (--restart begins anew)", (unsigned long long)info->lines,
                 info->lines == 1 ? "" : "s", path);
        return;
    }
    char resumed[64] = "";
    if (report->resumed > 0)
        snprintf(resumed, sizeof resumed, ", %llu of them before", (unsigned long long)report->resumed);
    cli_note("%llu line%s answered%s, %llu with an error; %s", (unsigned long long)report->answered,
             report->answered == 1 ? "" : "s", resumed, (unsigned long long)report->failed, path);
}

static int print_json(const cli_batch_job *job, const pst_batch_report *report, const pst_run_stats *stats,
                      pst_error *err)
{
    json_t *figures = job->engine->session != NULL ? cli_engine_stats(job->engine, stats) : json_null();
    return cli_out_json(json_pack("{s:s, s:I, s:I, s:I, s:I, s:o}", "output", job->batch->output, "lines",
                                  (json_int_t)report->lines, "answered", (json_int_t)report->answered, "failed",
                                  (json_int_t)report->failed, "resumed", (json_int_t)report->resumed, "stats", figures),
                        err);
}

static int run_batch(cli_batch_job *job, pst_batch *batch, pst_error *err)
{
    pst_batch_info info;
    pst_batch_report report = {0};
    pst_run_stats stats = {0};
    pst_batch_get_info(batch, &info);
    cli_progress_end();
    if (info.answered < info.lines && info.max_tokens > 0)
        PST_TRY(start_session(job, &info, err));
    cli_interrupt_attach(job->engine->session);
    int status = pst_batch_run(batch, job->engine->session, &report, &stats, err);
    cli_interrupt_attach(NULL);
    cli_progress_end();
    if (status < 0) {
        cli_engine_write_trace(job->engine, NULL);
        return status;
    }
    PST_TRY(cli_engine_write_trace(job->engine, err));
    if (job->report->json)
        PST_TRY(print_json(job, &report, &stats, err));
    say_where(job, &info, &report);
    if (job->engine->session != NULL)
        cli_closing_lines(&stats, job->options.kind == PST_BATCH_SCORE ? stats.prompt_tokens : stats.generated_tokens,
                          job->report);
    return 0;
}

int cli_batch_run(cli_batch_job *job, pst_error *err)
{
    batch_view view = {.job = job};
    pst_batch_options *o = &job->options;
    pst_batch *batch = NULL;
    o->struct_size = sizeof *o;
    o->input = job->batch->input;
    o->output = job->batch->output;
    o->restart = job->batch->restart;
    o->host_memory_bytes = job->runtime->host_memory;
    o->on_progress = on_progress;
    o->user = &view;
    o->has_time = true;
    o->time_seconds = cli_wall_time();
    cli_interrupt_polled(true); /* a signal ends the job in order: what is answered stays, with nothing beside it */
    int status = pst_batch_open(job->engine->model, o, &batch, err);
    if (status >= 0)
        status = run_batch(job, batch, err);
    cli_progress_end();
    pst_batch_close(batch);
    cli_interrupt_polled(false);
    return status;
}
