/* SPDX-License-Identifier: Apache-2.0 */
/*
 * penstock bench io: files read and written as the library does it, with the options of ds_io, and fio beside it.
 *
 * Settings that are lists make a product; all of it is measured on the same files and memory in turns, one repetition
 * of each at a time, so that a drive whose speed drifts does so for all alike.
 */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "base/heap.h"
#include "cmd_bench_io.h"
#include "interrupt.h"
#include "output.h"
#include "plot.h"
#include "progress.h"

#define AT(member) .offset = offsetof(io_values, member)

static const pst_option work_rows[] = {
    {.name = "read", .type = PST_OPTION_FLAG, AT(read), .help = "measure reading; without --read and --write both"},
    {.name = "write", .type = PST_OPTION_FLAG, AT(write), .help = "measure writing"},
    {.name = "folder", .type = PST_OPTION_STRINGS, AT(folders), .metavar = "DIR", .help = "one more DIR; repeatable"},
    {.name = "stripe",
     .type = PST_OPTION_FLAG,
     AT(stripe),
     .help = "every file lies in all DIRs, as one stripe set; without it files are spread over them"},
    {.name = "io-size",
     .type = PST_OPTION_STRING,
     AT(io_size),
     .metavar = "SIZE,...",
     .help = "bytes of one transfer, one file each; without it 1G, or the size of what is only read. K, M and G are "
             "powers of 1024 in all sizes of this command, as in fio and ds_io"},
    CLI_NUMBER_ROW(
        io_values, transfers, "transfers", NULL, 1, PST_IO_BENCH_MAX_TRANSFERS,
        "transfers of --io-size in each process, all at once, which take the DIRs in turns; without it 1, or as "
        "many as give every DIR one"),
    {.name = "sequential-requests",
     .type = PST_OPTION_FLAG,
     AT(sequential_requests),
     .help = "the transfers of a process one after the other"},
    CLI_NUMBER_ROW(io_values, multi_process, "multi-process", "1", 1, PST_IO_BENCH_MAX_PROCESSES,
                   "processes, each with transfers of its own; a repetition ends with the slowest"),
    CLI_NUMBER_ROW(io_values, loops, "loops", "3", 1, 100000,
                   "repetitions; the median is reported, with the lowest and the highest"),
    {.name = "warmup-loops",
     .type = PST_OPTION_U64,
     AT(warmup_loops),
     .metavar = "N",
     .initial = "1",
     .max = 1000,
     .help = "repetitions before them that do not count"},
    {.name = "different-file-each-iteration",
     .type = PST_OPTION_FLAG,
     AT(different_file),
     .help = "every repetition has files of its own, which takes their room too"},
    {.name = "validate",
     .type = PST_OPTION_FLAG,
     AT(validate),
     .help = "compare all that is read with what was written, and read back what is written; untimed"},
    {.name = "sync",
     .type = PST_OPTION_FLAG,
     AT(sync),
     .help = "a write ends when it is durable (fdatasync) and not when the drive has taken it"},
    {.name = "seed",
     .type = PST_OPTION_U64,
     AT(seed),
     .metavar = "N",
     .initial = "0",
     .help = "of the files' contents, which are pseudo-random"},
};

static const pst_option how_rows[] = {
    {.name = "io-engine",
     .type = PST_OPTION_STRING,
     AT(io_engine),
     .metavar = "NAME,...",
     .initial = "auto",
     .help = "auto, io_uring, libaio, threads, null; --list-engines says which work here"},
    {.name = "block-size",
     .type = PST_OPTION_STRING,
     AT(block_size),
     .metavar = "SIZE,...",
     .help = "bytes of one I/O, a multiple of 4096; without it 1M"},
    {.name = "queue-depth",
     .type = PST_OPTION_STRING,
     AT(queue_depth),
     .metavar = "N,...",
     .help = "I/Os in flight per worker; without it 64"},
    {.name = "workers",
     .type = PST_OPTION_STRING,
     AT(workers),
     .metavar = "N,...",
     .help = "threads that share each transfer; without it 1, or up to 16 for an engine with one I/O per thread"},
    {.name = "intra-op-parallelism",
     .type = PST_OPTION_STRING,
     AT(intra_op_parallelism),
     .metavar = "N,...",
     .help = "the same as --workers"},
    {.name = "io-parallel",
     .type = PST_OPTION_STRING,
     AT(io_parallel),
     .metavar = "N,...",
     .help = "the same as --workers"},
    {.name = "single-submit",
     .type = PST_OPTION_FLAG,
     AT(single_submit),
     .help = "one system call per I/O, where one could serve many"},
    {.name = "overlap-events",
     .type = PST_OPTION_FLAG,
     AT(overlap_events),
     .help = "refill the queue as I/Os are done; this is what happens without it too"},
    {.name = "no-overlap-events",
     .type = PST_OPTION_FLAG,
     AT(no_overlap_events),
     .help = "fill the queue, wait for all of it, repeat"},
    {.name = "buffered",
     .type = PST_OPTION_FLAG,
     AT(buffered),
     .help = "through the page cache; what is read may then come from memory"},
    {.name = "unlocked",
     .type = PST_OPTION_FLAG,
     AT(unlocked),
     .help = "plain memory, neither locked nor registered with the engine"},
    {.name = "buffer-size",
     .type = PST_OPTION_STRING,
     AT(buffer_size),
     .metavar = "SIZE",
     .help = "memory of one transfer, which goes through it again and again when it is less than --io-size; without it "
             "--io-size, so that each byte has a place of its own; with --against, what fio uses: a queue of blocks"},
    {.name = "io-profile",
     .type = PST_OPTION_STRING,
     AT(io_profile),
     .metavar = "FILE|none",
     .help = "where 'penstock tune' saved the settings of drives, which stand in for what is not given here; none: the "
             "library's defaults"},
    {.name = "list-engines",
     .type = PST_OPTION_FLAG,
     AT(list_engines),
     .help = "say which engines work here, and why "
             "not; nothing is measured"},
};

static const pst_option report_rows[] = {
    {.name = "plot",
     .type = PST_OPTION_STRING,
     AT(plot),
     .metavar = "FILE.svg",
     .help = "draw the rates over block size, or over what else was a list"},
    {.name = "against",
     .type = PST_OPTION_CHOICE,
     AT(against),
     .choices = "fio",
     .metavar = "fio",
     .help =
         "run fio with the same settings on the same files in turns with this, the first one alternating, and print "
         "the ratio of the rates. With --io-engine auto, fio's engines are tried in the warm-up and the fastest is "
         "taken, else the one that is the equivalent"},
    {.name = "fio-setting",
     .type = PST_OPTION_STRING,
     AT(fio_setting),
     .metavar = "NAME",
     .help = "with --against: compare with this one of fio's settings, as a report names it, and do not look for the "
             "fastest"},
    CLI_NUMBER_ROW(io_values, pairs, "pairs", NULL, 1, 100000, "with --against: so many pairs; without it --loops"),
};

static const pst_option ds_rows[] = {
    {.name = "engine",
     .type = PST_OPTION_STRING,
     AT(ds_engine),
     .metavar = "NAME",
     .help = "aio_handle and aio_basic: this library, as without it; the name of an engine is the same as with "
             "--io-engine"},
    {.name = "folder-to-device-mapping",
     .type = PST_OPTION_STRINGS,
     AT(mappings),
     .metavar = "DIR:N",
     .help = "one more DIR; the number of the device says nothing here. Repeatable, and further DIR:N may follow"},
    {.name = "gpu", .type = PST_OPTION_FLAG, AT(gpu), .help = "refused: not yet"},
    {.name = "use-gds", .type = PST_OPTION_FLAG, AT(use_gds), .help = "refused: not yet"},
};

static const pst_option_group groups[] = {
    CLI_OWN_GROUP("Work", work_rows),
    CLI_OWN_GROUP("How it is done", how_rows),
    CLI_OWN_GROUP("Report", report_rows),
    CLI_OWN_GROUP("Options of ds_io", ds_rows),
    CLI_SHARED_GROUP("Output", cli_report_rows, io_values, report),
};

/* ---- from options to cells ---- */

/* Lists of the settings; an empty one is one default. */
typedef struct io_lists {
    const char *engines[IO_LIST_MAX];
    size_t engine_count;
    char engine_text[512];
    io_list sizes, blocks, depths, workers, buffer;
} io_lists;

/* ds_io's --engine names one of DeepSpeed's ways to the drive, of which one is what this library stands in for. */
static int choose_engines(const io_values *values, const char **out, pst_error *err)
{
    const char *name = values->ds_engine;
    bool is_automatic = strcmp(values->io_engine, "auto") == 0;
    *out = values->io_engine;
    if (name == NULL || strcmp(name, "aio_handle") == 0 || strcmp(name, "aio_basic") == 0)
        return 0;
    if (strncmp(name, "torch_", 6) == 0 || strncmp(name, "gds", 3) == 0)
        return pst_fail(err, PST_E_UNSUPPORTED, NULL, "--engine %.40s: not here; this library is measured (aio_handle)",
                        name);
    if (!is_automatic && strcmp(name, values->io_engine) != 0)
        return cli_usage(err, "--engine %.40s and --io-engine %.40s contradict each other", name, values->io_engine);
    *out = name;
    return 0;
}

static int split_engines(const char *text, bool validate, io_lists *lists, pst_error *err)
{
    if (strlen(text) >= sizeof lists->engine_text)
        return cli_usage(err, "--io-engine: the list is too long");
    strcpy(lists->engine_text, text);
    char *rest = lists->engine_text;
    for (char *name; (name = strsep(&rest, ",")) != NULL;) {
        PST_TRY(io_check_engine(name, validate, err));
        for (size_t i = 0; i < lists->engine_count; i++) {
            if (strcmp(lists->engines[i], name) == 0)
                return cli_usage(err, "--io-engine: %s stands there twice", name);
        }
        if (lists->engine_count == IO_LIST_MAX)
            return cli_usage(err, "--io-engine: a list has %d values at most", IO_LIST_MAX);
        lists->engines[lists->engine_count++] = name;
    }
    return 0;
}

/* The three spellings of one setting. */
static int parse_workers(const io_values *values, io_list *out, pst_error *err)
{
    enum { MAX_WORKERS = 64 };
    const struct {
        const char *option, *text;
    } spellings[] = {{"workers", values->workers},
                     {"intra-op-parallelism", values->intra_op_parallelism},
                     {"io-parallel", values->io_parallel}};
    const char *given = NULL;
    for (size_t i = 0; i < CLI_COUNT(spellings); i++) {
        if (spellings[i].text == NULL)
            continue;
        if (given != NULL && strcmp(given, spellings[i].text) != 0)
            return cli_usage(err, "--%s %s and another number of workers, %s, contradict each other",
                             spellings[i].option, spellings[i].text, given);
        given = spellings[i].text;
        PST_TRY(io_parse_counts(spellings[i].option, given, MAX_WORKERS, out, err));
    }
    return 0;
}

static int parse_lists(const io_values *values, io_lists *lists, pst_error *err)
{
    const uint64_t most = UINT64_C(1) << 50;
    if (values->io_size != NULL)
        PST_TRY(io_parse_sizes("io-size", values->io_size, 1, most, 0, &lists->sizes, err));
    if (values->block_size != NULL)
        PST_TRY(io_parse_sizes("block-size", values->block_size, 4096, 1 << 30, 4096, &lists->blocks, err));
    if (values->queue_depth != NULL)
        PST_TRY(io_parse_counts("queue-depth", values->queue_depth, 4096, &lists->depths, err));
    if (values->buffer_size != NULL)
        PST_TRY(io_parse_sizes("buffer-size", values->buffer_size, 4096, most, 4096, &lists->buffer, err));
    if (lists->buffer.count > 1)
        return cli_usage(err, "--buffer-size: one size only");
    PST_TRY(parse_workers(values, &lists->workers, err));
    const char *engines;
    PST_TRY(choose_engines(values, &engines, err));
    return split_engines(engines, values->validate, lists, err);
}

static int check_values(const io_values *values, pst_error *err)
{
    if (values->gpu || values->use_gds)
        return pst_fail(err, PST_E_UNSUPPORTED, NULL,
                        "--%s: not yet; transfers are measured between drives and host memory",
                        values->gpu ? "gpu" : "use-gds");
    if (values->overlap_events && values->no_overlap_events)
        return cli_usage(err, "--overlap-events and --no-overlap-events contradict each other");
    if (values->pairs != 0 && values->against == NULL)
        return cli_usage(err, "--pairs goes with --against");
    if (values->fio_setting != NULL && values->against == NULL)
        return cli_usage(err, "--fio-setting goes with --against");
    if (values->validate && values->buffer_size != NULL)
        return cli_usage(err, "--validate needs all of a transfer in memory, so it does not go with --buffer-size");
    return 0;
}

/* "DIR:N", as ds_io maps folders to GPUs. */
static int mapped_folder(const char *text, char **out, pst_error *err)
{
    const char *colon = strrchr(text, ':');
    if (colon == NULL || colon == text || colon[1] == '\0' || colon[1 + strspn(colon + 1, "0123456789")] != '\0')
        return cli_usage(err, "--folder-to-device-mapping: \"%.200s\" is not of the form DIR:N, such as /mnt/nvme0:0",
                         text);
    *out = pst_heap_printf("%.*s", (int)(colon - text), text);
    return *out != NULL ? 0 : pst_fail_memory(err, "a folder name", strlen(text));
}

/* Copies of all names, so that they can be freed alike. */
static int copy_folders(io_job *job, const pst_options_found *found, pst_error *err)
{
    const io_values *values = job->values;
    const struct {
        const char *const *items;
        size_t count;
        bool mapped;
    } sources[] = {{found->operands, found->operand_count, values->mappings.count > 0},
                   {values->folders.items, values->folders.count, false},
                   {values->mappings.items, values->mappings.count, true}};
    size_t count = found->operand_count + values->folders.count + values->mappings.count;
    if (count == 0)
        return cli_usage(err, "'penstock bench io' needs a DIR to measure, or --list-engines");
    job->folders = pst_heap_calloc(count, sizeof *job->folders);
    if (job->folders == NULL)
        return pst_fail_memory(err, "a list of folders", count * sizeof *job->folders);
    for (size_t s = 0; s < CLI_COUNT(sources); s++) {
        for (size_t i = 0; i < sources[s].count; i++) {
            const char *name = sources[s].items[i];
            char **to = &job->folders[job->folder_count];
            if (sources[s].mapped)
                PST_TRY(mapped_folder(name, to, err));
            else if ((*to = pst_heap_strdup(name)) == NULL)
                return pst_fail_memory(err, "a folder name", strlen(name));
            job->folder_count++;
        }
    }
    return 0;
}

static int gather_folders(io_job *job, const pst_options_found *found, pst_error *err)
{
    const io_values *values = job->values;
    PST_TRY(copy_folders(job, found, err));
    for (uint32_t i = 0; i < job->folder_count; i++) {
        const char *path = job->folders[i];
        struct stat about;
        if (path[0] == '\0')
            return cli_usage(err, "a DIR is empty");
        if (values->write && stat(path, &about) == 0 && !S_ISDIR(about.st_mode))
            return pst_fail(err, -EEXIST, path, "--write: what exists already is read, never written");
        for (uint32_t k = 0; k < i; k++) {
            if (strcmp(path, job->folders[k]) == 0)
                return cli_usage(err, "%.200s is named twice", path);
        }
    }
    job->transfers = values->transfers;
    if (job->transfers == 0) /* no DIR without one */
        job->transfers = values->stripe ? 1 : (job->folder_count + values->multi_process - 1) / values->multi_process;
    return 0;
}

static uint64_t item_of(const io_list *list, size_t index)
{
    return list->count > 0 ? list->items[index] : 0;
}

static size_t at_least_one(size_t count)
{
    return count > 0 ? count : 1;
}

static void add_configs(io_job *job, const io_lists *lists)
{
    for (size_t e = 0; e < lists->engine_count; e++) {
        for (size_t w = 0; w < at_least_one(lists->workers.count); w++) {
            for (size_t s = 0; s < at_least_one(lists->sizes.count); s++) {
                for (size_t b = 0; b < at_least_one(lists->blocks.count); b++) {
                    for (size_t d = 0; d < at_least_one(lists->depths.count); d++)
                        job->configs[job->config_count++] = (io_config){.engine = lists->engines[e],
                                                                        .workers = item_of(&lists->workers, w),
                                                                        .io_size = item_of(&lists->sizes, s),
                                                                        .block_size = item_of(&lists->blocks, b),
                                                                        .queue_depth = item_of(&lists->depths, d),
                                                                        .buffer_size = item_of(&lists->buffer, 0)};
                }
            }
        }
    }
}

static int make_cell(io_job *job, io_config *config, pst_io_kind op, pst_error *err)
{
    io_cell *cell = &job->cells[job->cell_count++];
    *cell = (io_cell){.config = config, .op = op, .variant = -1};
    cell->loops = pst_heap_calloc(job->loops, sizeof *cell->loops);
    bool compared = job->values->against != NULL;
    if (compared) {
        cell->fio = pst_heap_calloc(job->loops, sizeof *cell->fio);
        cell->fio_first = pst_heap_calloc(job->loops, sizeof *cell->fio_first);
    }
    if (cell->loops == NULL || (compared && (cell->fio == NULL || cell->fio_first == NULL)))
        return pst_fail_memory(err, "a table of repetitions", job->loops * sizeof *cell->loops);
    return 0;
}

static int make_cells(io_job *job, const io_lists *lists, pst_error *err)
{
    const io_values *values = job->values;
    double count = (double)lists->engine_count * (double)at_least_one(lists->workers.count) *
                   (double)at_least_one(lists->sizes.count) * (double)at_least_one(lists->blocks.count) *
                   (double)at_least_one(lists->depths.count);
    if (count * 2 > IO_CELLS_MAX)
        return cli_usage(err, "the lists make %.0f combinations; %d are the most", count, IO_CELLS_MAX / 2);
    job->configs = pst_heap_calloc((size_t)count, sizeof *job->configs);
    job->cells = pst_heap_calloc((size_t)count * 2, sizeof *job->cells);
    if (job->configs == NULL || job->cells == NULL)
        return pst_fail_memory(err, "a table of settings", (size_t)count * 2 * sizeof *job->cells);
    add_configs(job, lists);
    bool both = !values->read && !values->write;
    for (size_t i = 0; i < job->config_count; i++) {
        if (values->write || both)
            PST_TRY(make_cell(job, &job->configs[i], PST_IO_WRITE, err));
        if (values->read || both)
            PST_TRY(make_cell(job, &job->configs[i], PST_IO_READ, err));
    }
    return 0;
}

/* ---- measuring ---- */

static int on_progress(void *user, uint64_t done_bytes, uint64_t total_bytes)
{
    const io_job *job = user;
    (void)total_bytes;
    if (job->values->against == NULL) /* else pairs are counted: bytes say little while fio runs */
        cli_progress_update(job->done_bytes + done_bytes);
    return cli_interrupted();
}

/* As much memory as fio has with the same settings. A transfer that goes through more of it than fits into the
 * processor's cache is slower on drives whose data the processor copies, as that of a virtual machine does. */
static uint64_t memory_of_fio(const pst_io_options *io)
{
    uint64_t block = io->block_size != 0 ? io->block_size : PST_IO_DEFAULT_BLOCK_BYTES;
    return block * (io->queue_depth != 0 ? io->queue_depth : PST_IO_DEFAULT_DEPTH) *
           (io->workers != 0 ? io->workers : 1);
}

static int fill_options(io_job *job, io_config *config, pst_io_bench_options *out, pst_error *err)
{
    const io_values *values = job->values;
    *out = (pst_io_bench_options){
        .struct_size = sizeof *out,
        .folders = (const char *const *)job->folders,
        .folder_count = job->folder_count,
        .stripe = values->stripe,
        .io_size = config->io_size,
        .buffer_bytes = config->buffer_size,
        .io = {.struct_size = sizeof out->io,
               .engine = config->engine,
               .block_size = config->block_size,
               .queue_depth = (uint32_t)config->queue_depth,
               .workers = (uint32_t)config->workers,
               .buffered = values->buffered,
               .single_submit = values->single_submit,
               .overlap_events = values->no_overlap_events ? PST_IO_OFF
                                 : values->overlap_events  ? PST_IO_ON
                                                           : PST_IO_DEFAULT},
        .processes = (uint32_t)values->multi_process,
        .loops = (uint32_t)job->loops,
        .warmup_loops = (uint32_t)job->warmup_loops,
        .sequential_requests = values->sequential_requests,
        .transfers = (uint32_t)job->transfers,
        .different_file_each_loop = values->different_file,
        .validate = values->validate,
        .sync = values->sync,
        .unlocked = values->unlocked,
        .seed = values->seed,
        .on_progress = on_progress,
        .user = job,
    };
    if (!config->chosen) {
        int known = cli_io_apply_profile(values->io_profile, out->folders, job->folder_count, &out->io,
                                         config->engine_text, err);
        PST_TRY(known);
        config->from_profile = known > 0;
        config->io = out->io;
        config->chosen = true;
    }
    out->io = config->io;
    if (values->against != NULL && config->buffer_size == 0)
        out->buffer_bytes = memory_of_fio(&out->io);
    return 0;
}

static void learn(io_job *job, io_config *config)
{
    job->current = config;
    if (config->known)
        return;
    pst_io_bench_get_info(job->bench, &config->info);
    snprintf(config->engine_name, sizeof config->engine_name, "%s", config->info.io.engine);
    config->info.io.engine = config->engine_name;
    config->known = true;
}

/* The files are as large as the largest transfer, and the memory as the largest that any of them uses. */
static int open_bench(io_job *job, pst_error *err)
{
    io_config *config = &job->configs[0];
    pst_io_bench_options options;
    uint64_t most = 0;
    for (size_t i = 0; i < job->config_count; i++) {
        PST_TRY(fill_options(job, &job->configs[i], &options, err));
        if (options.buffer_bytes > most)
            most = options.buffer_bytes;
        if (job->configs[i].io_size > config->io_size)
            config = &job->configs[i];
    }
    PST_TRY(fill_options(job, config, &options, err));
    options.buffer_bytes = most;
    PST_TRY(pst_io_bench_open(&options, &job->bench, err));
    learn(job, config);
    return 0;
}

/* Where something is only read, "both" is reading. */
static void drop_writes(io_job *job)
{
    size_t kept = 0;
    for (size_t i = 0; i < job->cell_count; i++) {
        if (job->cells[i].op == PST_IO_READ) {
            job->cells[kept++] = job->cells[i];
            continue;
        }
        pst_heap_free(job->cells[i].loops);
        pst_heap_free(job->cells[i].fio);
        pst_heap_free(job->cells[i].fio_first);
    }
    job->cell_count = kept;
}

static int use_config(io_job *job, io_config *config, pst_error *err)
{
    if (job->current == config)
        return 0;
    pst_io_bench_options options;
    PST_TRY(fill_options(job, config, &options, err));
    job->current = NULL;
    PST_TRY(pst_io_bench_change(job->bench, &options, err));
    learn(job, config);
    return 0;
}

static int run_once(io_job *job, io_cell *cell, pst_io_bench_result *out, pst_error *err)
{
    PST_TRY(use_config(job, cell->config, err));
    PST_TRY(pst_io_bench_run(job->bench, cell->op, out, err));
    job->done_bytes += out->bytes;
    if (job->values->against == NULL)
        cli_progress_update(job->done_bytes);
    return cli_interrupted() != 0 ? pst_fail(err, PST_E_CANCELLED, NULL, "cancelled") : 0;
}

static int run_fio(io_job *job, io_cell *cell, io_fio_run *out, pst_error *err)
{
    PST_TRY(use_config(job, cell->config, err));
    return io_fio_run_once(job, cell, out, err);
}

/* The first one alternates, and so does it from cell to cell. */
static int run_pair(io_job *job, size_t number, size_t cell_number, pst_error *err)
{
    io_cell *cell = &job->cells[cell_number];
    bool fio_first = (number + cell_number) % 2 != 0;
    cell->fio_first[number] = fio_first;
    if (fio_first)
        PST_TRY(run_fio(job, cell, &cell->fio[number], err));
    PST_TRY(run_once(job, cell, &cell->loops[number], err));
    if (!fio_first)
        PST_TRY(run_fio(job, cell, &cell->fio[number], err));
    return 0;
}

static int warm_up(io_job *job, pst_error *err)
{
    pst_io_bench_result ignored;
    for (size_t loop = 0; loop < job->warmup_loops; loop++) {
        for (size_t i = 0; i < job->cell_count; i++)
            PST_TRY(run_once(job, &job->cells[i], &ignored, err));
    }
    if (job->values->against == NULL)
        return 0;
    PST_TRY(pst_io_bench_fill(job->bench, err)); /* fio reads no holes */
    for (size_t i = 0; i < job->cell_count; i++) {
        PST_TRY(use_config(job, job->cells[i].config, err));
        PST_TRY(io_fio_choose(job, &job->cells[i], err));
        cli_progress_update(i + 1);
    }
    return 0;
}

static int measure(io_job *job, pst_error *err)
{
    uint64_t total = 0;
    for (size_t i = 0; i < job->cell_count; i++) {
        PST_TRY(
            use_config(job, job->cells[i].config, err)); /* what does not work is said before anything is measured */
        const pst_io_bench_info *info = &job->cells[i].config->info;
        total += info->io_size * info->transfers * info->processes * (job->loops + job->warmup_loops);
    }
    if (job->values->against != NULL)
        cli_progress_begin("choosing fio's settings", "rows", job->cell_count);
    else
        cli_progress_begin("measuring", "bytes", total);
    PST_TRY(warm_up(job, err));
    if (job->values->against != NULL) {
        cli_progress_end();
        cli_progress_begin("measuring", "pairs", job->cell_count * job->loops);
    }
    for (size_t loop = 0; loop < job->loops; loop++) {
        for (size_t i = 0; i < job->cell_count; i++) {
            io_cell *cell = &job->cells[i];
            PST_TRY(cell->fio != NULL ? run_pair(job, loop, i, err) : run_once(job, cell, &cell->loops[loop], err));
            cell->count = loop + 1;
            if (cell->fio != NULL)
                cli_progress_update(loop * job->cell_count + i + 1);
        }
    }
    return 0;
}

/* ---- the command ---- */

static int run_job(io_job *job, const io_lists *lists, pst_error *err)
{
    const io_values *values = job->values;
    job->loops = values->pairs != 0 ? values->pairs : values->loops;
    job->warmup_loops = values->warmup_loops;
    if (values->against != NULL) {
        PST_TRY(io_fio_check(job, err));
        PST_TRY(io_fio_find(job, err));
    }
    if (values->plot != NULL)
        PST_TRY(plot_file_check(values->plot, err));
    PST_TRY(make_cells(job, lists, err));
    cli_interrupt_polled(true); /* the files are removed before the program ends */
    int status = open_bench(job, err);
    if (status >= 0) {
        if (!job->current->info.writable)
            drop_writes(job);
        status = measure(job, err);
    }
    pst_io_bench_close(job->bench);
    cli_progress_end();
    cli_interrupt_polled(false);
    PST_TRY(status);
    if (values->plot != NULL)
        PST_TRY(io_plot_write(job, values->plot, err));
    return io_print_report(job, err);
}

static void release(io_job *job)
{
    for (size_t i = 0; i < job->cell_count; i++) {
        pst_heap_free(job->cells[i].loops);
        pst_heap_free(job->cells[i].fio);
        pst_heap_free(job->cells[i].fio_first);
    }
    pst_heap_free(job->cells);
    pst_heap_free(job->configs);
    for (uint32_t i = 0; i < job->folder_count; i++)
        pst_heap_free(job->folders[i]);
    pst_heap_free(job->folders);
}

static int bench_io(const void *all_values, const pst_options_found *found, pst_error *err)
{
    io_job job = {.values = all_values};
    io_lists lists = {.engine_count = 0};
    cli_notes_start(&job.values->report);
    PST_TRY(check_values(job.values, err));
    PST_TRY(parse_lists(job.values, &lists, err));
    if (job.values->list_engines)
        return io_list_engines(job.values, found->operand_count > 0 ? found->operands[0] : NULL, err);
    int status = gather_folders(&job, found, err);
    if (status >= 0)
        status = run_job(&job, &lists, err);
    release(&job);
    return status;
}

const cli_command cli_command_bench_io = {
    .spec =
        {.name = "bench io",
         .operands = "[DIR...]",
         .min_operands = 0,
         .max_operands = PST_OPERANDS_MAX,
         .summary = "drives read and written, measured, also beside fio",
         .description =
             "Makes files of --io-size in each DIR, reads and writes them with the I/O library and removes them again. "
             "DIR may also be a file or a block device that exists: it is read and never written. The options are "
             "those of ds_io.\n\n"
             "Settings that are lists (256K,1M,8M) are all combined and measured in turns on the same files. A "
             "repetition lasts from the first submission to the last completion; making files, filling memory and "
             "comparing are not in it, nor is their processor time. What is measured is direct I/O where the file "
             "system allows it; the report says so where it is not.\n\n"
             "With --against fio the report has every pair, the median of the ratios of the rates (penstock to fio) "
             "and a 95 % interval for it, the bootstrap of the median. fio's rate is that of its own running time.",
         .example = "  penstock bench io /mnt/nvme --read --io-size 1G --block-size 1M --queue-depth 32\n"
                    "  penstock bench io /mnt/nvme --block-size 256K,1M,8M --queue-depth 8,32 --plot nvme.svg\n"
                    "  penstock bench io /mnt/nvme --read --against fio --pairs 9\n",
         .groups = groups,
         .group_count = CLI_COUNT(groups),
         .values_bytes = sizeof(io_values)},
    .run = bench_io,
};
