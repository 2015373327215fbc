/* SPDX-License-Identifier: Apache-2.0 */
/*
 * penstock tune: the best I/O settings of a drive, found by measuring and kept for the other commands. Every point shows
 * on stderr as it comes, the sorted table and the choice on stdout at the end. The options of ds_nvme_tune are accepted.
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/heap.h"
#include "base/stats.h"
#include "common.h"
#include "interrupt.h"
#include "output.h"
#include "penstock/tune.h"

typedef struct tune_values {
    cli_report report;
    pst_option_strings nvme_dirs;
    double seconds;
    uint64_t io_size, loops;
    bool no_read, no_write, no_save, gpu, gds;
    const char *profile, *deepspeed;
} tune_values;

#define AT(member) .offset = offsetof(tune_values, member)

static const pst_option search_rows[] = {
    {.name = "seconds",
     .type = PST_OPTION_DOUBLE,
     AT(seconds),
     .metavar = "S",
     .initial = "60",
     .min = 1,
     .max = 86400,
     .help = "time limit of the search; what is best by then is taken"},
    {.name = "io-size",
     .type = PST_OPTION_SIZE,
     AT(io_size),
     .metavar = "SIZE",
     .min = 1 << 20,
     .max = 1e12,
     .help = "bytes of one measured transfer, all folders together; without it what the drive moves in about a quarter "
             "of a second"},
    {.name = "no-read", .type = PST_OPTION_FLAG, AT(no_read), .help = "tune for writing alone"},
    {.name = "no-write", .type = PST_OPTION_FLAG, AT(no_write), .help = "tune for reading alone"},
    CLI_NUMBER_ROW(tune_values, loops, "loops", "1", 1, 100,
                   "measurements of every point at least; those that matter get more anyway"),
};

static const pst_option result_rows[] = {
    {.name = "no-save", .type = PST_OPTION_FLAG, AT(no_save), .help = "do not save the choice"},
    {.name = "profile",
     .type = PST_OPTION_STRING,
     AT(profile),
     .metavar = "FILE",
     .help = "where the choice is saved; without it $XDG_CONFIG_HOME/penstock/drives.json or "
             "~/.config/penstock/drives.json, where the other commands look for it"},
    {.name = "deepspeed",
     .type = PST_OPTION_STRING,
     AT(deepspeed),
     .metavar = "FILE|-",
     .help = "write the choice as the aio section of a DeepSpeed configuration; - is standard output, and then the "
             "table goes to standard error"},
};

static const pst_option ds_rows[] = {
    {.name = "nvme-dir",
     .type = PST_OPTION_STRINGS,
     AT(nvme_dirs),
     .metavar = "DIR",
     .help = "a folder of the drive, as the words DIR; may be given several times"},
    {.name = "gpu", .type = PST_OPTION_FLAG, AT(gpu), .help = "refused: not yet"},
    {.name = "gds", .type = PST_OPTION_FLAG, AT(gds), .help = "refused: not yet"},
};

static const pst_option_group groups[] = {
    CLI_OWN_GROUP("Search", search_rows),
    CLI_OWN_GROUP("Result", result_rows),
    CLI_OWN_GROUP("Options of ds_nvme_tune", ds_rows),
    CLI_SHARED_GROUP("Output", cli_report_rows, tune_values, report),
};

enum { MOST_FOLDERS = 64 };

typedef struct tune_job {
    const tune_values *values;
    const char *folders[MOST_FOLDERS];
    uint32_t folder_count;
    const char *profile; /* NULL: not saved */
    char drive[PST_TUNE_DRIVE_BYTES];
    pst_tune_point *points; /* each as it was seen last */
    size_t count, room;
    pst_tune_report report;
    FILE *text; /* of the table */
} tune_job;

/* ---- points ---- */

static bool same_settings(const pst_tune_point *a, const pst_tune_point *b)
{
    return strcmp(a->engine, b->engine) == 0 && a->block_size == b->block_size && a->queue_depth == b->queue_depth &&
           a->workers == b->workers && a->single_submit == b->single_submit;
}

static double score(const pst_tune_point *p)
{
    if (p->read_bytes_per_second > 0 && p->write_bytes_per_second > 0)
        return sqrt(p->read_bytes_per_second * p->write_bytes_per_second);
    return p->read_bytes_per_second + p->write_bytes_per_second;
}

static int by_score(const void *a, const void *b)
{
    double x = score(a), y = score(b);
    return (x < y) - (x > y);
}

/* "3.52 GB/s", or "-" for what was not measured. */
static const char *rate_text(double rate, char *text, size_t text_bytes)
{
    char bytes[32];
    if (rate > 0)
        snprintf(text, text_bytes, "%s/s", pst_format_bytes(rate, bytes, sizeof bytes));
    else
        snprintf(text, text_bytes, "-");
    return text;
}

static const char *settings_text(const pst_tune_point *p, char *text, size_t text_bytes)
{
    char block[32];
    snprintf(text, text_bytes, "%s, blocks of %s, depth %u, %u worker%s%s", p->engine,
             cli_io_block_text(p->block_size, block, sizeof block), p->queue_depth, p->workers,
             p->workers == 1 ? "" : "s", p->single_submit ? ", submitted singly" : "");
    return text;
}

static int on_point(void *user, const pst_tune_point *point)
{
    tune_job *job = user;
    size_t i = 0;
    while (i < job->count && !same_settings(&job->points[i], point))
        i++;
    if (i == job->room) {
        size_t room = job->room * 2 + 64;
        pst_tune_point *grown = pst_heap_reallocarray(job->points, room, sizeof *grown);
        if (grown == NULL)
            return 0; /* it is missing in the table, no more */
        job->points = grown;
        job->room = room;
    }
    if (i == job->count) {
        char settings[128], read[48], write[48];
        job->count++;
        cli_note("%s: read %s, write %s", settings_text(point, settings, sizeof settings),
                 rate_text(point->read_bytes_per_second, read, sizeof read),
                 rate_text(point->write_bytes_per_second, write, sizeof write));
    }
    job->points[i] = *point;
    return cli_interrupted() != 0;
}

static int is_cancelled(void *user)
{
    (void)user;
    return cli_interrupted();
}

/* ---- reports ---- */

static void print_table(const tune_job *job)
{
    fprintf(job->text, "%-10s %9s %6s %8s %7s %13s %13s %9s %5s\n", "engine", "block", "depth", "workers", "single",
            "read", "write", "cpu s/GB", "runs");
    for (size_t i = 0; i < job->count; i++) {
        const pst_tune_point *p = &job->points[i];
        char block[32], read[48], write[48];
        const char *mark = same_settings(p, &job->report.best)       ? "  <- chosen"
                           : same_settings(p, &job->report.baseline) ? "  <- the defaults"
                                                                     : "";
        fprintf(job->text, "%-10s %9s %6u %8u %7s %13s %13s %9.3f %5u%s\n", p->engine,
                cli_io_block_text(p->block_size, block, sizeof block), p->queue_depth, p->workers,
                p->single_submit ? "yes" : "no", rate_text(p->read_bytes_per_second, read, sizeof read),
                rate_text(p->write_bytes_per_second, write, sizeof write), p->cpu_seconds_per_gb, p->repetitions, mark);
    }
}

/* The settings that are searched, as numbers. */
enum { BLOCK, DEPTH, WORKERS, DIMENSIONS };

static uint64_t setting(const pst_tune_point *p, int dimension)
{
    return dimension == BLOCK ? p->block_size : dimension == DEPTH ? p->queue_depth : p->workers;
}

/* Whether two points differ in this setting alone, or not at all. */
static bool on_one_line(const pst_tune_point *a, const pst_tune_point *b, int dimension)
{
    for (int other = 0; other < DIMENSIONS; other++) {
        if (other != dimension && setting(a, other) != setting(b, other))
            return false;
    }
    return strcmp(a->engine, b->engine) == 0 && a->single_submit == b->single_submit;
}

/* The point on the line through the choice with the least setting above `floor`, or NULL. */
static const pst_tune_point *next_on_line(const tune_job *job, int dimension, uint64_t floor)
{
    const pst_tune_point *next = NULL;
    for (size_t i = 0; i < job->count; i++) {
        const pst_tune_point *p = &job->points[i];
        if (on_one_line(p, &job->report.best, dimension) && setting(p, dimension) > floor &&
            (next == NULL || setting(p, dimension) < setting(next, dimension)))
            next = p;
    }
    return next;
}

/* How the rate goes with each setting when the others are as chosen. */
static void print_curves(const tune_job *job)
{
    static const char *const titles[DIMENSIONS] = {"block size", "queue depth", "workers"};
    for (int dimension = 0; dimension < DIMENSIONS; dimension++) {
        const pst_tune_point *p = next_on_line(job, dimension, 0);
        if (p == NULL || next_on_line(job, dimension, setting(p, dimension)) == NULL)
            continue; /* a single point is no curve */
        fprintf(job->text, "%s:", titles[dimension]);
        for (; p != NULL; p = next_on_line(job, dimension, setting(p, dimension))) {
            char value[32], rate[48];
            if (dimension == BLOCK)
                cli_io_block_text(p->block_size, value, sizeof value);
            else
                snprintf(value, sizeof value, "%llu", (unsigned long long)setting(p, dimension));
            bool chosen = same_settings(p, &job->report.best);
            fprintf(job->text, "  %s%s: %s%s", chosen ? "[" : "", value, rate_text(score(p), rate, sizeof rate),
                    chosen ? "]" : "");
        }
        fputc('\n', job->text);
    }
}

/* How many times as fast as the defaults; 0: not measured. */
static double gain(double best, double baseline)
{
    return best > 0 && baseline > 0 ? best / baseline : 0;
}

static void print_text(const tune_job *job)
{
    const pst_tune_report *r = &job->report;
    char settings[128], size[32], time[32];
    print_table(job);
    fprintf(job->text, "\n%s, with all else as chosen:\n",
            r->best.read_bytes_per_second > 0 && r->best.write_bytes_per_second > 0
                ? "geometric mean of reading and writing"
            : r->best.read_bytes_per_second > 0 ? "reading"
                                                : "writing");
    print_curves(job);
    fprintf(job->text, "\ndrive: %s\n", job->drive);
    fprintf(job->text, "measured: %u points, %u times, transfers of %s, in %s%s\n", r->points, r->measurements,
            pst_format_bytes((double)r->io_size, size, sizeof size), pst_format_seconds(r->seconds, time, sizeof time),
            r->finished ? "" : ", until the time was up");
    if (!r->direct)
        fprintf(job->text,
                "direct I/O does not work there: these are figures of memory (the page cache), not of a drive\n");
    fprintf(job->text, "chosen: %s\n", settings_text(&r->best, settings, sizeof settings));
    double read = gain(r->best.read_bytes_per_second, r->baseline.read_bytes_per_second);
    double write = gain(r->best.write_bytes_per_second, r->baseline.write_bytes_per_second);
    if (same_settings(&r->best, &r->baseline))
        fprintf(job->text, "those are the defaults\n");
    else if (read > 0 && write > 0)
        fprintf(job->text, "against the defaults: reading %.2f times, writing %.2f times as fast\n", read, write);
    else if (read > 0 || write > 0)
        fprintf(job->text, "against the defaults: %s %.2f times as fast\n", read > 0 ? "reading" : "writing",
                read + write);
    if (job->profile != NULL)
        fprintf(job->text, "saved in %s\n", job->profile);
}

static json_t *rate_json(double rate)
{
    return rate > 0 ? json_real(rate) : json_null();
}

static json_t *point_json(const pst_tune_point *p)
{
    return json_pack(
        "{s:s, s:I, s:I, s:I, s:b, s:o, s:o, s:f, s:f, s:f, s:I}", "engine", p->engine, "block_size",
        (json_int_t)p->block_size, "queue_depth", (json_int_t)p->queue_depth, "workers", (json_int_t)p->workers,
        "single_submit", p->single_submit, "read_bytes_per_second", rate_json(p->read_bytes_per_second),
        "write_bytes_per_second", rate_json(p->write_bytes_per_second), "read_spread", p->read_spread, "write_spread",
        p->write_spread, "cpu_seconds_per_gb", p->cpu_seconds_per_gb, "repetitions", (json_int_t)p->repetitions);
}

static json_t *points_json(const tune_job *job)
{
    json_t *array = json_array();
    for (size_t i = 0; array != NULL && i < job->count; i++) {
        if (cli_json_append(array, point_json(&job->points[i])) != 0) {
            json_decref(array);
            return NULL;
        }
    }
    return array;
}

static json_t *folders_json(const tune_job *job)
{
    json_t *array = json_array();
    for (uint32_t i = 0; array != NULL && i < job->folder_count; i++) {
        json_t *name = json_string(job->folders[i]);
        if (cli_json_append(array, name != NULL ? name : json_null()) != 0) { /* a name may be no UTF-8 */
            json_decref(array);
            return NULL;
        }
    }
    return array;
}

static json_t *deepspeed_json(const pst_tune_point *point)
{
    char text[512];
    pst_tune_deepspeed(point, text, sizeof text);
    return json_loads(text, 0, NULL);
}

static int print_json(const tune_job *job, pst_error *err)
{
    const pst_tune_report *r = &job->report;
    json_t *profile = job->profile != NULL ? json_string(job->profile) : NULL;
    json_t *more = json_pack("{s:o, s:o}", "read",
                             rate_json(gain(r->best.read_bytes_per_second, r->baseline.read_bytes_per_second)), "write",
                             rate_json(gain(r->best.write_bytes_per_second, r->baseline.write_bytes_per_second)));
    return cli_out_json(json_pack("{s:s, s:o, s:o, s:o, s:o, s:o, s:I, s:I, s:I, s:f, s:b, s:b, s:o, s:o}", "drive",
                                  job->drive, "folders", folders_json(job), "choice", point_json(&r->best), "baseline",
                                  point_json(&r->baseline), "gain", more, "points", points_json(job), "measurements",
                                  (json_int_t)r->measurements, "io_size", (json_int_t)r->io_size, "file_bytes",
                                  (json_int_t)r->file_bytes, "seconds", r->seconds, "direct", r->direct, "finished",
                                  r->finished, "profile", profile != NULL ? profile : json_null(), "deepspeed",
                                  deepspeed_json(&r->best)),
                        err);
}

static int write_deepspeed(const tune_job *job, pst_error *err)
{
    const char *path = job->values->deepspeed;
    char text[512];
    if (path == NULL)
        return 0;
    pst_tune_deepspeed(&job->report.best, text, sizeof text);
    if (strcmp(path, "-") == 0) {
        if (job->values->report.json) /* it is part of the document */
            return 0;
        PST_TRY(cli_out_text(text, err));
        return cli_out_flush(err);
    }
    errno = 0;
    FILE *file = fopen(path, "we");
    bool failed = file == NULL || fputs(text, file) < 0;
    if (file != NULL)
        failed |= fclose(file) != 0;
    if (!failed)
        return 0;
    return pst_fail(err, errno != 0 ? -errno : -EIO, path, "cannot write: %s", strerror(errno != 0 ? errno : EIO));
}

/* ---- the run ---- */

static int gather_folders(tune_job *job, const pst_options_found *found, pst_error *err)
{
    const pst_option_strings *more = &job->values->nvme_dirs;
    if (found->operand_count + more->count == 0)
        return cli_usage(err, "'penstock tune' needs a folder of the drive");
    if (found->operand_count + more->count > MOST_FOLDERS)
        return cli_usage(err, "more than %d folders", MOST_FOLDERS);
    for (size_t i = 0; i < found->operand_count; i++)
        job->folders[job->folder_count++] = found->operands[i];
    for (size_t i = 0; i < more->count; i++)
        job->folders[job->folder_count++] = more->items[i];
    return 0;
}

/* Whether a file could be made under this name, in a folder that itself may have to be made where `folders_too` is set.
 * What is there and no regular file (a terminal, a pipe) is only written to. */
static int check_place(const char *path, bool folders_too, pst_error *err)
{
    char folder[4096];
    struct stat about;
    bool exists = stat(path, &about) == 0;
    if (path[0] == '\0')
        return cli_usage(err, "a file to write has an empty name");
    if (exists && S_ISDIR(about.st_mode))
        return pst_fail(err, -EISDIR, path, "is a folder");
    if (exists && !folders_too)
        return access(path, W_OK) == 0 ? 0 : pst_fail(err, -errno, path, "cannot write: %s", strerror(errno));
    if ((size_t)snprintf(folder, sizeof folder, "%s", path) >= sizeof folder)
        return pst_fail(err, -ENAMETOOLONG, path, "cannot write: %s", strerror(ENAMETOOLONG));
    do {
        char *slash = strrchr(folder, '/');
        if (slash == NULL)
            strcpy(folder, ".");
        else
            slash[slash == folder] = '\0'; /* "/x" lies in "/" */
    } while (folders_too && access(folder, F_OK) != 0 && errno == ENOENT && strchr(folder, '/') != NULL);
    return access(folder, W_OK | X_OK) == 0 ? 0 : pst_fail(err, -errno, path, "cannot create: %s", strerror(errno));
}

/* What is wrong with the profile shows before a minute of measuring. */
static int choose_profile(tune_job *job, pst_error *err)
{
    const tune_values *values = job->values;
    if (values->no_save) {
        if (values->profile != NULL)
            return cli_usage(err, "--no-save and --profile exclude each other");
        return 0;
    }
    job->profile = values->profile != NULL ? values->profile : cli_io_default_profile();
    if (job->profile == NULL)
        return pst_fail(err, -ENOENT, NULL,
                        "there is no place to save the choice: neither XDG_CONFIG_HOME nor HOME is set to one; use "
                        "--profile FILE or --no-save");
    pst_error why = {.offset = PST_NO_OFFSET};
    int status = pst_tune_check_profile(job->profile, &why);
    if (status == PST_E_FORMAT || status == PST_E_UNSUPPORTED)
        return pst_fail(err, status, job->profile,
                        "%.300s; remove it (what was tuned before is lost), or save elsewhere with --profile",
                        why.message);
    if (status < 0)
        *err = why;
    return status < 0 ? status : check_place(job->profile, true, err);
}

static int check_values(tune_job *job, const pst_options_found *found, pst_error *err)
{
    const tune_values *values = job->values;
    if (values->gpu || values->gds)
        return pst_fail(err, PST_E_UNSUPPORTED, NULL,
                        "--%s: not yet; transfers are tuned between drives and host memory",
                        values->gpu ? "gpu" : "gds");
    if (values->no_read && values->no_write)
        return cli_usage(err, "--no-read and --no-write leave nothing to tune");
    PST_TRY(gather_folders(job, found, err));
    PST_TRY(choose_profile(job, err));
    if (values->deepspeed != NULL && strcmp(values->deepspeed, "-") != 0)
        PST_TRY(check_place(values->deepspeed, false, err));
    return pst_tune_drive_id(job->folders, job->folder_count, job->drive, sizeof job->drive, err);
}

static int search(tune_job *job, pst_error *err)
{
    const tune_values *values = job->values;
    pst_tune_options options = {.struct_size = sizeof options,
                                .folders = job->folders,
                                .folder_count = job->folder_count,
                                .io_size = values->io_size,
                                .seconds = values->seconds,
                                .repetitions = (uint32_t)values->loops,
                                .no_read = values->no_read,
                                .no_write = values->no_write,
                                .on_point = on_point,
                                .cancelled = is_cancelled,
                                .user = job};
    cli_interrupt_polled(true);
    int status = pst_tune(&options, &job->report, err);
    cli_interrupt_polled(false);
    PST_TRY(status);
    qsort(job->points, job->count, sizeof *job->points, by_score);
    return 0;
}

static int run_job(tune_job *job, const pst_options_found *found, pst_error *err)
{
    const tune_values *values = job->values;
    PST_TRY(check_values(job, found, err));
    PST_TRY(search(job, err));
    /* The table first: what was measured shall not be lost because it cannot be saved. */
    int saved = 0;
    pst_error why = {.offset = PST_NO_OFFSET};
    if (job->profile != NULL)
        saved = pst_tune_save(job->profile, job->folders, job->folder_count, &job->report, &why);
    if (saved < 0)
        job->profile = NULL;
    bool to_stderr = values->deepspeed != NULL && strcmp(values->deepspeed, "-") == 0;
    job->text = to_stderr ? stderr : stdout;
    if (values->report.json)
        PST_TRY(print_json(job, err));
    else
        print_text(job);
    PST_TRY(cli_out_flush(err));
    PST_TRY(write_deepspeed(job, err));
    if (saved < 0)
        *err = why;
    return saved < 0 ? saved : 0;
}

static int tune(const void *values, const pst_options_found *found, pst_error *err)
{
    tune_job job = {.values = values};
    cli_notes_start(&job.values->report);
    int status = run_job(&job, found, err);
    pst_heap_free(job.points);
    return status;
}

const cli_command cli_command_tune = {
    .spec = {.name = "tune",
             .operands = "[DIR...]",
             .min_operands = 0,
             .max_operands = MOST_FOLDERS,
             .summary = "the best I/O settings of a drive, saved for it",
             .description =
                 "Measures the drive that holds the folder DIR and searches engine, block size, queue depth, workers "
                 "and single submit for what reads and writes it fastest; of those within about 2 % of that, the "
                 "cheapest is chosen. Several folders are tuned as they are used together, all at once.\n\n"
                 "The choice is saved for the drive, and commands use it whenever their files lie on it, unless their "
                 "own options say otherwise. A test file is written in each folder; it has no name, so that nothing is "
                 "left behind. Other work on the drive disturbs the measurements: what may be noise is measured "
                 "again.",
             .example = "  penstock tune /mnt/nvme\n"
                        "  penstock tune /mnt/nvme0 /mnt/nvme1 --seconds 120 --deepspeed aio.json\n",
             .groups = groups,
             .group_count = CLI_COUNT(groups),
             .values_bytes = sizeof(tune_values)},
    .run = tune,
};
