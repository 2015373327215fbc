/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The measurement behind bench save and bench load: for each size, all sides in turns, the first one another each time, one
 * repetition of each, so that a drive whose speed drifts does so for all alike. What was saved is removed again, between
 * repetitions, untimed.
 */
#include "cmd_bench_ckpt.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include "base/heap.h"
#include "base/number.h"
#include "base/stats.h"
#include "interrupt.h"
#include "plot.h"
#include "progress.h"

#define AT(member) .offset = offsetof(ckpt_values, member)

const char *const ckpt_side_names[CKPT_SIDES] = {"penstock", "fio", "torch", "safetensors", "deepspeed"};

const pst_option ckpt_work_rows[CKPT_WORK_ROWS] = {
    {.name = "size",
     .type = PST_OPTION_STRING,
     AT(sizes),
     .metavar = "SIZE,...",
     .initial = "1G",
     .help = "bytes of tensors, or several such sizes"},
    {.name = "format",
     .type = PST_OPTION_CHOICE,
     AT(format),
     .choices = "pt|safetensors",
     .initial = "safetensors",
     .help = "torch's zip file, or safetensors"},
    CLI_NUMBER_ROW(ckpt_values, tensors, "tensors", NULL, 1, 10000000,
                   "of how many tensors; without it one for each 32 MiB"),
    CLI_NUMBER_ROW(ckpt_values, loops, "loops", "3", 1, 100000,
                   "repetitions; the median is reported, with the lowest and the highest"),
    {.name = "warmup-loops",
     .type = PST_OPTION_U64,
     AT(warmup_loops),
     .metavar = "N",
     .initial = "1",
     .max = 1000,
     .help = "repetitions before them that do not count"},
    {.name = "seed",
     .type = PST_OPTION_U64,
     AT(seed),
     .metavar = "N",
     .initial = "0",
     .help = "of the tensors' contents, which are pseudo-random"},
};

const pst_option ckpt_report_rows[CKPT_REPORT_ROWS] = {
    {.name = "against",
     .type = PST_OPTION_STRING,
     AT(against),
     .metavar = "NAME,...",
     .help =
         "beside these, in turns: fio (its sequential direct transfer of the same bytes, the drive's ceiling), torch, "
         "safetensors, deepspeed. All of them have synced file and folder when a save's time ends"},
    {.name = "python",
     .type = PST_OPTION_STRING,
     AT(python),
     .metavar = "PROGRAM",
     .initial = "python3",
     .help = "with --against: a Python that has the other libraries"},
    {.name = "drivers",
     .type = PST_OPTION_STRING,
     AT(drivers),
     .metavar = "DIR",
     .help = "with --against: where peers/checkpoint.py lies; without it share/penstock/bench beside this program's "
             "folder, or bench of the source tree"},
    {.name = "plot",
     .type = PST_OPTION_STRING,
     AT(plot),
     .metavar = "FILE.svg",
     .help = "draw the rates over the sizes, or of one size over the repetitions"},
};

/* ---- what is asked for ---- */

static bool is_torch(const ckpt_job *job, ckpt_side side)
{
    return side == CKPT_PENSTOCK || side == CKPT_FIO ? job->format == PST_CKPT_TORCH : side != CKPT_SAFETENSORS;
}

static int parse_sizes(ckpt_job *job, pst_error *err)
{
    char text[512];
    if (job->given || job->values->from != NULL) { /* it has the size that it has */
        job->sizes[job->size_count++] = 0;
        return 0;
    }
    if (strlen(job->values->sizes) >= sizeof text)
        return cli_usage(err, "--size: the list is too long");
    strcpy(text, job->values->sizes);
    char *rest = text;
    for (char *one; (one = strsep(&rest, ",")) != NULL;) {
        if (job->size_count == CKPT_SIZES_MAX)
            return cli_usage(err, "--size: a list has %d values at most", CKPT_SIZES_MAX);
        uint64_t bytes;
        if (pst_parse_size(one, &bytes, err) < 0 || bytes < 2 || bytes > UINT64_C(1) << 50)
            return cli_usage(err, "--size: \"%.40s\" is no size from 2 bytes to 1 PiB", one);
        job->sizes[job->size_count++] = bytes;
    }
    return 0;
}

static int parse_sides(ckpt_job *job, pst_error *err)
{
    const char *against = job->values->against;
    char text[128];
    job->sides[job->side_count++] = CKPT_PENSTOCK;
    if (against == NULL)
        return 0;
    snprintf(text, sizeof text, "%s", against);
    char *rest = text;
    for (char *one; (one = strsep(&rest, ",")) != NULL;) {
        size_t side = CKPT_FIO;
        while (side < CKPT_SIDES && strcmp(one, ckpt_side_names[side]) != 0)
            side++;
        if (side == CKPT_SIDES || (job->load && side == CKPT_DEEPSPEED))
            return cli_usage(err, "--against: \"%.40s\" is unknown; there are fio, torch, safetensors%s", one,
                             job->load ? "" : " and deepspeed");
        for (size_t i = 0; i < job->side_count; i++)
            if (job->sides[i] == side)
                return cli_usage(err, "--against: %s stands there twice", one);
        if (job->given && is_torch(job, (ckpt_side)side) != is_torch(job, CKPT_PENSTOCK))
            return cli_usage(err, "--against: %s does not load %s files", one,
                             job->format == PST_CKPT_TORCH ? "torch's" : "safetensors");
        job->sides[job->side_count++] = (ckpt_side)side;
    }
    return 0;
}

static int make_rounds(ckpt_job *job, pst_error *err)
{
    job->rounds = pst_heap_calloc(job->size_count, sizeof *job->rounds);
    if (job->rounds == NULL)
        return pst_fail_memory(err, "a table of repetitions", job->size_count * sizeof *job->rounds);
    for (size_t r = 0; r < job->size_count; r++) {
        ckpt_round *round = &job->rounds[r];
        round->report.struct_size = sizeof round->report;
        for (size_t i = 0; i < job->side_count; i++) {
            ckpt_cell *cell = &round->cells[round->cell_count++];
            cell->side = job->sides[i];
            cell->runs = pst_heap_calloc(job->values->loops, sizeof *cell->runs);
            if (cell->runs == NULL)
                return pst_fail_memory(err, "a table of repetitions", job->values->loops * sizeof *cell->runs);
        }
    }
    return 0;
}

/* What is missing is said before anything is measured. */
static int check_sides(ckpt_job *job, pst_error *err)
{
    for (size_t i = 1; i < job->side_count; i++) {
        ckpt_cell *cell = &job->rounds[0].cells[i];
        PST_TRY(cell->side == CKPT_FIO ? ckpt_fio_find(job, err) : ckpt_peer_check(job, cell, err));
        for (size_t r = 1; r < job->size_count; r++)
            memcpy(job->rounds[r].cells[i].how, cell->how, sizeof cell->how);
    }
    return 0;
}

/* ---- files ---- */

static int make_folder(ckpt_job *job, pst_error *err)
{
    int length = snprintf(job->folder, sizeof job->folder, "%s/penstock-bench-XXXXXX", job->place);
    if (length < 0 || (size_t)length >= sizeof job->folder - 64 || mkdtemp(job->folder) == NULL) {
        int cause = errno;
        job->folder[0] = '\0';
        return pst_fail(err, -cause, job->place, "cannot make a folder there: %s", strerror(cause));
    }
    snprintf(job->table, sizeof job->table, "%s/tensors.json", job->folder);
    return 0;
}

static void remove_folder(ckpt_job *job)
{
    if (job->folder[0] == '\0')
        return;
    unlink(job->table);
    rmdir(job->folder);
}

/* What a side saves, or loads: of what is loaded, this library made it, in the side's format. */
static void file_of(const ckpt_job *job, ckpt_side side, char path[PATH_MAX + 64])
{
    const char *name = job->load ? "penstock" : ckpt_side_names[side];
    snprintf(path, PATH_MAX + 64, "%s/%s.%s", job->folder, name, is_torch(job, side) ? "pt" : "safetensors");
}

/* One checkpoint is there at a time (loaded ones in each format), and what surrounds its data. */
static int check_space(const ckpt_job *job, uint64_t bytes, pst_error *err)
{
    bool both = false;
    for (size_t i = 1; job->load && i < job->side_count; i++)
        both = both || is_torch(job, job->sides[i]) != is_torch(job, CKPT_PENSTOCK);
    bytes *= both ? 2 : 1;
    struct statvfs space;
    if (statvfs(job->place, &space) != 0)
        return pst_fail(err, -errno, job->place, "cannot be asked for its free space: %s", strerror(errno));
    uint64_t there = (uint64_t)space.f_bavail * space.f_frsize, needed = bytes + bytes / 50 + (16 << 20);
    char has[32], wants[32];
    return there >= needed ? 0
                           : pst_fail(err, -ENOSPC, job->place, "%s are free there, and it takes %s",
                                      pst_format_bytes((double)there, has, sizeof has),
                                      pst_format_bytes((double)needed, wants, sizeof wants));
}

/* ---- this library ---- */

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Of this process and of those that have ended. */
static double cpu_seconds(void)
{
    double seconds = 0;
    static const int who[] = {RUSAGE_SELF, RUSAGE_CHILDREN};
    for (int i = 0; i < 2; i++) {
        struct rusage usage;
        getrusage(who[i], &usage);
        seconds += (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
                   1e-6 * (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
    }
    return seconds;
}

static int save_to(const ckpt_job *job, const ckpt_set *set, const char *path, bool torch, pst_ckpt_report *report,
                   pst_error *err)
{
    const ckpt_values *values = job->values;
    pst_ckpt_options options = {
        .struct_size = sizeof options,
        .path = path,
        .format = torch ? PST_CKPT_TORCH : PST_CKPT_SAFETENSORS,
        .no_digests = values->no_digests,
        .ring_bytes = job->load ? 0 : values->ring,
        .bytes_per_second = PST_CKPT_UNLIMITED,
        .io = job->io.io,
    };
    options.io.struct_size = sizeof options.io;
    if (values->ranks > 1)
        return ckpt_save_ranks(&options, set, (uint32_t)values->ranks, report, err);
    return pst_ckpt_save(&options, set->tensors, set->count, report, err);
}

/* The page cache does not take part in a cold load. */
static void drop_pages(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    fsync(fd);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    close(fd);
}

typedef struct ckpt_work {
    ckpt_set set;
    ckpt_target target;
} ckpt_work;

static int run_own(ckpt_job *job, ckpt_round *round, const ckpt_work *work, const char *path, ckpt_run *out,
                   pst_error *err)
{
    if (job->load && work->target.file[0] != '\0')
        drop_pages(work->target.file);
    double cpu = cpu_seconds(), started = now();
    PST_TRY(job->load ? ckpt_load_once(job, path, &work->target, err)
                      : save_to(job, &work->set, path, is_torch(job, CKPT_PENSTOCK), &round->report, err));
    *out = (ckpt_run){.bytes = round->bytes, .seconds = now() - started, .cpu_seconds = cpu_seconds() - cpu};
    if (!job->load)
        unlink(path);
    return 0;
}

/* ---- the measurement ---- */

/* Whether a file system's drive has work; false where the system does not say. */
static bool is_busy(dev_t device)
{
    char path[64];
    unsigned long long in_flight = 0;
    snprintf(path, sizeof path, "/sys/dev/block/%u:%u/stat", major(device), minor(device));
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return false;
    int found = fscanf(file, "%*u %*u %*u %*u %*u %*u %*u %*u %llu", &in_flight); /* the ninth field: block/stat.rst */
    fclose(file);
    return found == 1 && in_flight > 0;
}

/* What the run before removed is really gone: a file system that tells the drive of freed blocks does so with its next
 * commit, or (ext4 mounted with discard) some time after it, and the drive's work on that would fall into the next run.
 * Best effort, for a few seconds at most. */
static void settle(const char *path)
{
    enum { PAUSE_NS = 10 * 1000 * 1000, QUIET_PAUSES = 8, MAX_PAUSES = 500 };
    char folder[PATH_MAX + 64];
    struct stat found;
    snprintf(folder, sizeof folder, "%s", path);
    char *slash = strrchr(folder, '/');
    if (slash == NULL)
        return;
    *slash = '\0';
    int fd = open(folder[0] != '\0' ? folder : "/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return;
    bool is_known = fsync(fd) == 0 && fstat(fd, &found) == 0;
    close(fd);
    for (int pauses = 0, quiet = 0; is_known && pauses < MAX_PAUSES && quiet < QUIET_PAUSES; pauses++) {
        nanosleep(&(struct timespec){.tv_nsec = PAUSE_NS}, NULL);
        quiet = is_busy(found.st_dev) ? 0 : quiet + 1;
    }
}

static int run_side(ckpt_job *job, ckpt_round *round, size_t number, const ckpt_work *work, ckpt_run *out,
                    pst_error *err)
{
    char path[PATH_MAX + 64];
    ckpt_cell *cell = &round->cells[number];
    file_of(job, cell->side, path);
    if (job->given) /* the others load files, not folders */
        snprintf(path, sizeof path, "%s", cell->side == CKPT_PENSTOCK ? job->place : work->target.file);
    else if (!job->load)
        settle(path);
    switch (cell->side) {
    case CKPT_PENSTOCK: PST_TRY(run_own(job, round, work, path, out, err)); break;
    case CKPT_FIO: PST_TRY(ckpt_fio_run(job, path, round->bytes, cell, out, err)); break;
    default: PST_TRY(ckpt_peer_run(job, path, cell, out, err));
    }
    return cli_interrupted() != 0 ? pst_fail(err, PST_E_CANCELLED, NULL, "cancelled") : 0;
}

static int run_loops(ckpt_job *job, ckpt_round *round, const ckpt_work *work, pst_error *err)
{
    const ckpt_values *values = job->values;
    uint64_t total = values->loops + values->warmup_loops, done = 0;
    cli_progress_begin(job->load ? "loading" : "saving", "runs", total * round->cell_count);
    for (uint64_t loop = 0; loop < total; loop++) {
        for (size_t i = 0; i < round->cell_count; i++) {
            size_t number = (size_t)((i + loop) % round->cell_count);
            ckpt_cell *cell = &round->cells[number];
            ckpt_run run;
            PST_TRY(run_side(job, round, number, work, &run, err));
            if (loop >= values->warmup_loops)
                cell->runs[cell->count++] = run;
            cli_progress_update(++done);
        }
    }
    cli_progress_end();
    return 0;
}

/* The files that are loaded: in this library's format, and in those of the others. */
static int make_files(ckpt_job *job, const ckpt_set *set, pst_error *err)
{
    char path[PATH_MAX + 64];
    pst_ckpt_report report = {.struct_size = sizeof report};
    for (size_t i = 0; i < job->side_count; i++) {
        file_of(job, job->sides[i], path);
        if (access(path, F_OK) != 0)
            PST_TRY(save_to(job, set, path, is_torch(job, job->sides[i]), &report, err));
    }
    return 0;
}

static void remove_files(const ckpt_job *job)
{
    char path[PATH_MAX + 64];
    for (size_t i = 0; i < job->side_count; i++) {
        file_of(job, job->sides[i], path);
        unlink(path);
    }
}

/* Tensors for saving; for loading, files and memory. */
static int prepare(ckpt_job *job, ckpt_round *round, uint64_t bytes, ckpt_work *work, pst_error *err)
{
    char path[PATH_MAX + 64];
    file_of(job, CKPT_PENSTOCK, path);
    if (!job->given) {
        PST_TRY(check_space(job, bytes, err));
        PST_TRY(ckpt_set_make(job->values, bytes, &work->set, err));
        PST_TRY(check_space(job, work->set.bytes, err)); /* --from says how many there are */
        round->bytes = work->set.bytes;
        round->tensors = work->set.count;
    }
    if (!job->load)
        return job->side_count > 1 ? ckpt_set_describe(&work->set, job->table, err) : 0;
    if (!job->given)
        PST_TRY(make_files(job, &work->set, err));
    ckpt_set_free(&work->set);
    PST_TRY(ckpt_target_make(job, job->given ? job->place : path, &work->target, err));
    round->bytes = work->target.bytes;
    round->tensors = work->target.count;
    if (job->side_count > 1 && work->target.file[0] == '\0')
        return pst_fail(err, PST_E_UNSUPPORTED, job->place, "--against: only a checkpoint of one file is compared");
    return 0;
}

static int run_round(ckpt_job *job, size_t number, pst_error *err)
{
    ckpt_round *round = &job->rounds[number];
    ckpt_work work = {.set = {.memory = NULL}};
    char path[PATH_MAX + 64];
    int status = prepare(job, round, job->sizes[number], &work, err);
    if (status >= 0 && job->fio_version[0] != '\0') {
        file_of(job, CKPT_FIO, path);
        status = ckpt_fio_choose(job, job->load ? work.target.file : path, round->bytes, err);
    }
    if (status >= 0)
        status = run_loops(job, round, &work, err);
    ckpt_set_free(&work.set);
    ckpt_target_free(&work.target);
    if (!job->given)
        remove_files(job);
    return status;
}

static int measure(ckpt_job *job, pst_error *err)
{
    if (!job->given)
        PST_TRY(make_folder(job, err));
    PST_TRY(cli_io_choose(&job->values->io, &job->place, 1, &job->io, err));
    PST_TRY(check_sides(job, err));
    for (size_t r = 0; r < job->size_count; r++)
        PST_TRY(run_round(job, r, err));
    return 0;
}

int ckpt_measure(ckpt_job *job, pst_error *err)
{
    const ckpt_values *values = job->values;
    cli_notes_start(&values->report);
    if (!job->given)
        job->format = strcmp(values->format, "pt") == 0 ? PST_CKPT_TORCH : PST_CKPT_SAFETENSORS;
    int status;
    PST_TRY_GOTO(done, parse_sizes(job, err));
    PST_TRY_GOTO(done, parse_sides(job, err));
    if (values->plot != NULL)
        PST_TRY_GOTO(done, plot_file_check(values->plot, err));
    PST_TRY_GOTO(done, make_rounds(job, err));
    cli_interrupt_polled(true); /* what was made is removed before the program ends */
    status = measure(job, err);
    cli_progress_end();
    remove_folder(job);
    cli_interrupt_polled(false);
    if (status >= 0 && values->plot != NULL)
        status = ckpt_plot(job, err);
    if (status >= 0)
        status = ckpt_print_report(job, err);
done:
    for (size_t r = 0; job->rounds != NULL && r < job->size_count; r++)
        for (size_t i = 0; i < job->rounds[r].cell_count; i++)
            pst_heap_free(job->rounds[r].cells[i].runs);
    pst_heap_free(job->rounds);
    return status;
}
