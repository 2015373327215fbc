/* SPDX-License-Identifier: Apache-2.0 */
/* Shared option rows, and the way from a model's name to a running session. */
#include "common.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/heap.h"
#include "base/stats.h"
#include "interrupt.h"
#include "output.h"
#include "penstock/log.h"
#include "progress.h"

const pst_option cli_report_rows[CLI_REPORT_ROWS] = {
    {.name = "json",
     .type = PST_OPTION_FLAG,
     .offset = offsetof(cli_report, json),
     .help = "print one JSON document on standard output instead of text"},
    {.name = "verbose",
     .short_name = 'v',
     .type = PST_OPTION_LEVEL,
     .offset = offsetof(cli_report, verbose),
     .metavar = "LEVEL",
     .help = "say on standard error what was chosen; 2 says everything"},
};

const pst_option cli_lookup_rows[CLI_LOOKUP_ROWS] = {
    {.name = "hf-cache",
     .type = PST_OPTION_STRING,
     .offset = offsetof(cli_lookup, hf_cache),
     .metavar = "DIR",
     .help = "where org/name is looked up; without it $HF_HUB_CACHE, $HF_HOME/hub, "
             "$XDG_CACHE_HOME/huggingface/hub or ~/.cache/huggingface/hub"},
};

const pst_option cli_runtime_rows[CLI_RUNTIME_ROWS] = {
    {.name = "host-memory",
     .type = PST_OPTION_SIZE,
     .offset = offsetof(cli_runtime, host_memory),
     .metavar = "SIZE",
     .min = 1,
     .help = "bound of the memory of the whole process (K M G of 1000, Ki Mi Gi of 1024); without it a sensible share "
             "of what is free, control group limits respected"},
    {.name = "resident",
     .type = PST_OPTION_SHARE,
     .offset = offsetof(cli_runtime, resident),
     .metavar = "SIZE|PERCENT",
     .help = "weights kept in that memory, and an accelerator's (2G, 50%); 0 streams everything; without it what fits"},
    {.name = "compute-type",
     .type = PST_OPTION_CHOICE,
     .offset = offsetof(cli_runtime, compute_type),
     .choices = "auto|f32|bf16",
     .initial = "auto",
     .help = "element type of the activations that are multiplied; sums are always f32; auto is bf16 where all "
             "matrices of the checkpoint are, from 100 million parameters on, else f32"},
    {.name = "kv-bits",
     .type = PST_OPTION_CHOICE,
     .offset = offsetof(cli_runtime, kv_bits),
     .choices = "auto|4|8|16|32",
     .initial = "auto",
     .help =
         "bits of a cached key or value; 8 and 4 are codes with a scale and a minimum per 64 elements; auto is 16 for "
         "16-bit checkpoints from 100 million parameters on, else 32"},
    {.name = "kv-dir",
     .type = PST_OPTION_STRING,
     .offset = offsetof(cli_runtime, kv_dir),
     .metavar = "DIR",
     .help = "keep keys and values in a file in this folder, which is made if it is not there; memory holds what "
             "attention is at; the file has no name and goes with the process; the results are the same"},
    {.name = "kv-offload",
     .type = PST_OPTION_FLAG,
     .offset = offsetof(cli_runtime, kv_offload),
     .help = "keep keys and values in the host's memory, from where an accelerator gets them as attention needs them; "
             "without it they are there if the accelerator's memory has no room for them; the results are the same"},
    CLI_THREADS_ROW(cli_runtime, threads, "threads that compute"),
    {.name = "device",
     .type = PST_OPTION_STRING,
     .offset = offsetof(cli_runtime, device),
     .metavar = "NAME|auto|host",
     .initial = "host",
     .help =
         "what computes: host is this machine's processor, auto the first accelerator that works, else host; names as "
         "'penstock devices' lists them, such as cuda or cuda:1"},
    {.name = "device-memory",
     .type = PST_OPTION_SIZE,
     .offset = offsetof(cli_runtime, device_memory),
     .metavar = "SIZE",
     .min = 1,
     .help =
         "bound of what is taken of the accelerator's memory, for weights that stay there, slots for those that cross "
         "the link in every pass, keys, values and activations; without it what is free, less a reserve"},
    {.name = "device-graphs",
     .type = PST_OPTION_CHOICE,
     .offset = offsetof(cli_runtime, device_graphs),
     .choices = "auto|off",
     .initial = "auto",
     .help = "passes of generated tokens as graphs that one call launches: auto where the accelerator can, has all "
             "weights, keys and values in its memory, and the model has no experts; the results are the same"},
    {.name = "kernels",
     .type = PST_OPTION_CHOICE,
     .offset = offsetof(cli_runtime, kernels),
     .choices = "auto|portable|avx2|avx512|avx512bf16",
     .initial = "auto",
     .help = "instruction set of the processor's compute kernels; auto is the best of this one"},
    {.name = "trace",
     .type = PST_OPTION_STRING,
     .offset = offsetof(cli_runtime, trace),
     .metavar = "FILE",
     .help = "write a timeline of reads, waits and compute as Chrome trace JSON, which Perfetto opens"},
};

const pst_option cli_placement_rows[CLI_PLACEMENT_ROWS] = {
    {.name = "cpu-offload",
     .type = PST_OPTION_FLAG,
     .offset = offsetof(cli_placement, cpu_offload),
     .help = "keep all weights in memory: what an accelerator has no room for in the host's; fails with the budget "
             "that this "
             "takes where it is more than there is"},
    {.name = "disk-offload",
     .type = PST_OPTION_FLAG,
     .offset = offsetof(cli_placement, disk_offload),
     .help = "stream all weights from the drive: --resident 0, unless that is given"},
    {.name = "pin-memory",
     .type = PST_OPTION_U64,
     .offset = offsetof(cli_placement, pin_memory),
     .metavar = "0|1",
     .initial = "0",
     .min = 0,
     .max = 1,
     .help = "1 locks the weights that are kept and the memory that others stream through, as far as ulimit -l allows; "
             "what an "
             "accelerator copies from is locked in any case"},
    {.name = "expert-cache",
     .type = PST_OPTION_STRING,
     .offset = offsetof(cli_placement, expert_cache),
     .metavar = "SIZE|auto",
     .initial = "auto",
     .help = "models with experts: most bytes of these that stay in memory while they are in demand, within --resident "
             "and --host-memory; auto is what fits"},
};

/* One line to stderr in one write: what would break the line, or command a terminal, is replaced. */
static void print_line(const char *prefix, const char *text)
{
    char line[1400];
    size_t length = (size_t)snprintf(line, sizeof line - 1, "penstock: %s%s", prefix, text);
    if (length > sizeof line - 2)
        length = sizeof line - 2;
    for (size_t i = 0; i < length; i++) {
        if (line[i] == '\n' || line[i] == '\t')
            line[i] = ' ';
    }
    length = cli_make_safe(line, length);
    line[length] = '\n';
    cli_progress_clear();
    fwrite(line, 1, length + 1, stderr);
    fflush(stderr);
}

void cli_note(const char *format, ...)
{
    char text[1200];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    print_line("", text);
}

void cli_print_error(const pst_error *err)
{
    char text[1200];
    print_line("error: ", pst_error_format(err, text, sizeof text));
}

static void print_log(void *user, pst_log_level level, const char *line)
{
    (void)user;
    print_line(level == PST_LOG_WARNING ? "warning: " : "", line);
}

void cli_notes_start(const cli_report *report)
{
    pst_log_level level = report->verbose == 0 ? PST_LOG_WARNING : report->verbose == 1 ? PST_LOG_INFO : PST_LOG_DEBUG;
    pst_log_set_sink(print_log, NULL, level);
}

const char *cli_environment_folder(const cli_environment_place *places, size_t count, bool absolute, char *path,
                                   size_t path_bytes)
{
    for (size_t i = 0; i < count; i++) {
        const char *value = getenv(places[i].variable);
        if (value == NULL || value[0] == '\0' || (absolute && value[0] != '/'))
            continue;
        int length = snprintf(path, path_bytes, "%s%s", value, places[i].suffix);
        return length > 0 && (size_t)length < path_bytes ? path : NULL;
    }
    return NULL;
}

const char *cli_hf_cache(const cli_lookup *lookup)
{
    static char path[4096];
    static const cli_environment_place places[] = {
        {"HF_HUB_CACHE", ""},
        {"HF_HOME", "/hub"},
        {"XDG_CACHE_HOME", "/huggingface/hub"},
        {"HOME", "/.cache/huggingface/hub"},
    };
    if (lookup->hf_cache != NULL)
        return lookup->hf_cache;
    return cli_environment_folder(places, CLI_COUNT(places), false, path, sizeof path);
}

int cli_engine_open(cli_engine *engine, const char *model, const cli_lookup *lookup, const cli_runtime *runtime,
                    pst_error *err)
{
    *engine = (cli_engine){0};
    if (cli_offload_wanted(&runtime->offload)) {
        const cli_offload_running running = {.hf_cache = cli_hf_cache(lookup),
                                             .host_memory = runtime->host_memory,
                                             .threads = runtime->threads,
                                             .io = &runtime->io};
        PST_TRY(cli_offload_open(&runtime->offload, &running, model, &engine->offload, err));
        model = pst_offload_path(engine->offload);
    }
    PST_TRY(pst_model_open(model, cli_hf_cache(lookup), &engine->model, err));
    pst_model_get_info(engine->model, &engine->info);
    return 0;
}

pst_dtype cli_dtype(const char *name)
{
    static const struct {
        const char *name;
        pst_dtype type;
    } known[] = {{"f32", PST_F32}, {"f16", PST_F16}, {"bf16", PST_BF16}, {"f8", PST_F8_E4M3}};
    for (size_t i = 0; name != NULL && i < CLI_COUNT(known); i++) {
        if (strcmp(name, known[i].name) == 0)
            return known[i].type;
    }
    return (pst_dtype)0;
}

int cli_job_progress(const char *doing, const char *folder, uint64_t done_bytes, uint64_t total_bytes)
{
    enum { NOTED_BYTES = 100000000 }; /* less than this is not worth a line */
    if (done_bytes == 0) {
        char size[32];
        if (folder != NULL && total_bytes >= NOTED_BYTES)
            cli_note("writing %s to %s", pst_format_bytes((double)total_bytes, size, sizeof size), folder);
        cli_progress_begin(doing, "bytes", total_bytes);
    }
    cli_progress_update(done_bytes);
    return cli_interrupted();
}

pst_compute_type cli_compute_type(const cli_runtime *runtime)
{
    return strcmp(runtime->compute_type, "f32") == 0    ? PST_COMPUTE_F32
           : strcmp(runtime->compute_type, "bf16") == 0 ? PST_COMPUTE_BF16
                                                        : PST_COMPUTE_AUTO;
}

uint32_t cli_kv_bits(const cli_runtime *runtime)
{
    return strcmp(runtime->kv_bits, "auto") == 0 ? 0 : (uint32_t)atoi(runtime->kv_bits);
}

static void fill_options(const cli_runtime *runtime, const pst_io_options *io, bool resident_given,
                         pst_session_options *out)
{
    out->struct_size = sizeof *out;
    out->host_memory_bytes = runtime->host_memory;
    out->resident_set = resident_given;
    out->resident_share = runtime->resident.is_share ? runtime->resident.share : -1;
    out->resident_bytes = runtime->resident.bytes;
    out->compute_type = cli_compute_type(runtime);
    out->kv_bits = cli_kv_bits(runtime);
    out->kv_folder = runtime->kv_dir;
    out->kv_offload = runtime->kv_offload;
    out->threads = (uint32_t)runtime->threads;
    out->io_engine = io->engine;
    out->block_size = io->block_size;
    out->queue_depth = io->queue_depth;
    out->io_workers = io->workers;
    out->io_single_submit = io->single_submit;
    out->device = runtime->device;
    out->device_memory_bytes = runtime->device_memory;
    out->no_device_graphs = strcmp(runtime->device_graphs, "off") == 0;
    out->kernels = strcmp(runtime->kernels, "auto") == 0 ? NULL : runtime->kernels;
    out->measure_bound = true;
}

/* Opens a session while the command's own memory is there and touched: the plan takes what the process holds then off
 * the budget, so that the same memory is free for the command afterwards. */
static int open_beside(cli_engine *engine, const pst_session_options *options, uint64_t bytes, pst_error *err)
{
    uint64_t budget = options->host_memory_bytes;
    if (budget == 0 || bytes == 0) /* without a bound of its own the plan leaves a share of the free memory alone */
        return pst_session_open(engine->model, options, &engine->session, err);
    if (bytes > budget / 2)
        return pst_fail(
            err, PST_E_BUDGET, NULL,
            "a host memory budget of %.1f MiB is too small: what these prompts give takes %.1f MiB, which may "
            "be half of it; for that the smallest is %lluMi",
            (double)budget / 0x1p20, (double)bytes / 0x1p20, (unsigned long long)((2 * bytes >> 20) + 1));
    void *held = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (held == MAP_FAILED)
        return pst_fail_memory(err, "results", bytes);
    int status = pst_session_open(engine->model, options, &engine->session, err);
    munmap(held, bytes);
    return status;
}

int cli_check_writable(const char *path, pst_error *err)
{
    struct stat about;
    if (stat(path, &about) == 0 && !S_ISREG(about.st_mode))
        return pst_fail(err, -EINVAL, path, "it exists and is no regular file");
    char *probe = pst_heap_printf("%s.tmp-XXXXXX", path);
    if (probe == NULL)
        return pst_fail_memory(err, path, strlen(path));
    int fd = mkstemp(probe), cause = errno;
    if (fd >= 0) {
        unlink(probe);
        close(fd);
    }
    pst_heap_free(probe);
    return fd >= 0 ? 0 : pst_fail(err, -cause, path, "cannot create: %s", strerror(cause));
}

int cli_place(const cli_placement *placement, bool resident_given, pst_session_options *out, pst_error *err)
{
    if (placement->cpu_offload && (placement->disk_offload || resident_given))
        return cli_usage(err, "--cpu-offload keeps all weights in memory; it cannot go with %s",
                         placement->disk_offload ? "--disk-offload" : "--resident");
    if (placement->disk_offload && !resident_given) {
        out->resident_set = true;
        out->resident_share = -1;
        out->resident_bytes = 0;
    }
    out->keep_all_weights = placement->cpu_offload;
    out->lock_memory = placement->pin_memory != 0;
    out->expert_cache_set = strcmp(placement->expert_cache, "auto") != 0;
    if (out->expert_cache_set && pst_parse_size(placement->expert_cache, &out->expert_cache_bytes, NULL) < 0)
        return cli_usage(err, "--expert-cache: \"%.200s\" is neither a size such as 2G nor \"auto\"",
                         placement->expert_cache);
    return 0;
}

/* A few less, and so much less of a cache: the process has grown since they were chosen. */
static void shrink_shape(pst_session_options *shape)
{
    uint32_t before = shape->max_sequences;
    shape->max_sequences -= before < 8 ? 1 : before / 8;
    if (shape->kv_tokens > shape->max_tokens)
        shape->kv_tokens = shape->kv_tokens / before * shape->max_sequences;
}

int cli_engine_start(cli_engine *engine, const cli_runtime *runtime, bool resident_given, pst_session_options *shape,
                     bool shrink, const cli_needs *needs, pst_error *err)
{
    enum { TRACE_EVENTS = 1 << 17 };
    PST_TRY(cli_io_choose(&runtime->io, &engine->info.path, 1, &engine->io, err));
    fill_options(runtime, &engine->io.io, resident_given, shape);
    PST_TRY(cli_place(&runtime->placement, resident_given, shape, err));
    if (runtime->trace != NULL && engine->trace == NULL) {
        PST_TRY(cli_check_writable(runtime->trace, err));
        PST_TRY(pst_trace_open(TRACE_EVENTS, &engine->trace, err));
        engine->trace_path = runtime->trace;
    }
    shape->trace = engine->trace;
    shape->requests_only = !needs->logits;
    if (needs->work != NULL)
        PST_TRY(pst_session_choose_batch(engine->model, needs->work, shape, err));
    for (;;) {
        int status = open_beside(engine, shape, needs->bytes(needs->user, shape->max_sequences), err);
        if (status == PST_E_BUDGET && shrink && shape->max_sequences > 1) {
            shrink_shape(shape);
            continue;
        }
        if (status < 0)
            return status;
        break;
    }
    pst_session_get_plan(engine->session, &engine->plan);
    if (runtime->device_memory > 0 && engine->plan.device_budget_bytes == 0)
        cli_note("--device-memory has no effect: the host's processor computes");
    if (runtime->kv_offload && !engine->plan.kv_offloaded)
        cli_note(CLI_KV_OFFLOAD_IDLE);
    return 0;
}

static pst_io_options settings_in_use(const pst_plan_info *plan)
{
    return (pst_io_options){.engine = plan->io_engine,
                            .block_size = plan->block_size,
                            .queue_depth = plan->queue_depth,
                            .workers = plan->io_workers,
                            .single_submit = plan->io_single_submit};
}

json_t *cli_engine_stats(const cli_engine *engine, const pst_run_stats *stats)
{
    pst_io_options io = settings_in_use(&engine->plan);
    json_t *object = cli_json_stats(stats);
    if (object != NULL && (json_object_set_new(object, "device", json_string(engine->plan.device)) != 0 ||
                           json_object_set_new(object, "io", cli_io_json(&io, engine->io.from)) != 0)) {
        json_decref(object);
        return NULL;
    }
    return object;
}

void cli_engine_run_begins(cli_engine *engine)
{
    cli_interrupt_attach(engine->session);
}

int cli_engine_run_ended(int status, pst_error *err)
{
    cli_interrupt_attach(NULL);
    if (status >= 0 && cli_interrupted() != 0)
        return pst_fail(err, PST_E_CANCELLED, NULL, "cancelled");
    return status;
}

uint64_t cli_generation_bytes(uint64_t new_tokens)
{
    /* The records of a request and its result, its text stream, the heap's own; then ids, and a text that grows by
     * doubling, of about twelve bytes a token (English has four to five). */
    enum { REQUEST_BYTES = 2048, TOKEN_BYTES = sizeof(uint32_t) + 28 };
    return REQUEST_BYTES + new_tokens * TOKEN_BYTES;
}

int cli_engine_write_trace(cli_engine *engine, pst_error *err)
{
    if (engine->trace == NULL)
        return 0;
    cli_interrupt_polled(true); /* the library publishes the file whole; what a signal cut short would stay */
    int status = pst_trace_write(engine->trace, engine->trace_path, err);
    cli_interrupt_polled(false);
    return status;
}

void cli_engine_close(cli_engine *engine)
{
    cli_interrupt_attach(NULL);
    pst_session_close(engine->session);
    pst_trace_close(engine->trace);
    pst_model_close(engine->model);
    pst_offload_close(engine->offload);
    *engine = (cli_engine){0};
}

void cli_closing_lines(const pst_run_stats *stats, uint64_t tokens, const cli_report *report)
{
    char time[32], amount[32], rate[32], peak[32], budget[32], device[64] = "";
    char read[96] = "no weights read", copied[64] = "";
    if (report->verbose > 0)
        pst_stats_print(pst_run_stat_table, pst_run_stat_count, stats, stderr);
    if (stats->weight_bytes_read > 0)
        snprintf(read, sizeof read, "read %s at %s/s",
                 pst_format_bytes((double)stats->weight_bytes_read, amount, sizeof amount),
                 pst_format_bytes(stats->read_bytes_per_second, rate, sizeof rate));
    if (stats->link_bytes > 0)
        snprintf(copied, sizeof copied, ", copied %s",
                 pst_format_bytes((double)stats->link_bytes, amount, sizeof amount));
    if (stats->device_memory_bytes > 0)
        snprintf(device, sizeof device, ", %s on the device",
                 pst_format_bytes((double)stats->device_memory_bytes, amount, sizeof amount));
    double speed = stats->total_seconds > 0 ? (double)tokens / stats->total_seconds : 0;
    cli_note("%llu token%s in %s (%.*f tokens/s); %s%s; %.0f %% of the bound, limited by %s; peak memory %s of %s%s",
             (unsigned long long)tokens, tokens == 1 ? "" : "s",
             pst_format_seconds(stats->total_seconds, time, sizeof time), speed < 9.95 ? 2 : 1, speed, read, copied,
             stats->share_of_bound * 100, stats->limited_by != NULL ? stats->limited_by : "?",
             pst_format_bytes((double)stats->peak_rss_bytes, peak, sizeof peak),
             pst_format_bytes((double)stats->host_memory_bytes, budget, sizeof budget), device);
}
