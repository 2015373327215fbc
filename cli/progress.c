/* SPDX-License-Identifier: Apache-2.0 */
/* The progress line. It is drawn at most ten times a second, so that a tight loop may call it. */
#include "progress.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/stats.h"

enum { BAR_CELLS = 24 };
static const double first_seconds = 1.0, terminal_seconds = 0.1, line_seconds = 15.0;

static struct {
    const char *label, *unit, *second;
    uint64_t total, done, before, second_done;
    double start, last;
    bool active, terminal;
} job;
static atomic_bool drawn;

static double now_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

void cli_progress_begin(const char *label, const char *unit, uint64_t total)
{
    job.label = label;
    job.unit = unit;
    job.total = total;
    job.done = job.before = job.second_done = 0;
    job.second = NULL;
    job.start = now_seconds();
    job.terminal = isatty(STDERR_FILENO) == 1;
    /* The first line elsewhere comes after line_seconds, the first bar after first_seconds. */
    job.last = job.terminal ? job.start + first_seconds - terminal_seconds : job.start;
    job.active = true;
}

/* "1.26 GB", or a bare number of the job's own unit. */
static void format_amount(double amount, char *text, size_t text_bytes)
{
    if (strcmp(job.unit, "bytes") == 0)
        pst_format_bytes(amount, text, text_bytes);
    else
        snprintf(text, text_bytes, amount < 10 && amount != (double)(uint64_t)amount ? "%.2f" : "%.0f", amount);
}

static void draw(double elapsed)
{
    char done[40], total[40] = "?", rate[40], left[40] = "?", bar[BAR_CELLS + 3] = "";
    double speed = elapsed > 0 && job.done > job.before ? (double)(job.done - job.before) / elapsed : 0;
    char second[64] = "";
    if (job.second != NULL && elapsed > 0)
        snprintf(second, sizeof second, ", %.1f %s/s", (double)job.second_done / elapsed, job.second);
    format_amount((double)job.done, done, sizeof done);
    format_amount(speed, rate, sizeof rate);
    int percent = 0;
    bool named = strcmp(job.unit, "bytes") != 0;
    if (job.total > 0) {
        double share = job.done >= job.total ? 1 : (double)job.done / (double)job.total;
        percent = (int)(share * 100);
        format_amount((double)job.total, total, sizeof total);
        if (speed > 0)
            pst_format_seconds((double)(job.total - (job.done < job.total ? job.done : job.total)) / speed, left,
                               sizeof left);
        bar[0] = '[';
        for (int i = 0; i < BAR_CELLS; i++)
            bar[1 + i] = i < (int)(share * BAR_CELLS) ? '#' : '.';
        memcpy(bar + 1 + BAR_CELLS, "]", 2);
    }
    char line[256];
    snprintf(line, sizeof line, "%s%s%s %d %%, %s of %s%s%s, %s/s%s, %s left", job.label, job.terminal ? " " : ":",
             job.terminal ? bar : "", percent, done, total, named ? " " : "", named ? job.unit : "", rate, second,
             left);
    fprintf(stderr, job.terminal ? "\r\033[K%s" : "penstock: %s\n", line);
    fflush(stderr);
    atomic_store(&drawn, job.terminal);
}

void cli_progress_update(uint64_t done)
{
    if (!job.active)
        return;
    job.done = done;
    double now = now_seconds();
    if (now - job.last < (job.terminal ? terminal_seconds : line_seconds))
        return;
    job.last = now;
    draw(now - job.start);
}

void cli_progress_resume(uint64_t before, const char *second)
{
    job.before = before;
    job.second = second;
}

void cli_progress_update_both(uint64_t done, uint64_t second_done)
{
    job.second_done = second_done;
    cli_progress_update(done);
}

void cli_progress_end(void)
{
    cli_progress_clear();
    job.active = false;
}

void cli_progress_clear(void)
{
    if (atomic_exchange(&drawn, false)) {
        fputs("\r\033[K", stderr);
        fflush(stderr);
    }
}

void cli_progress_clear_in_handler(void)
{
    if (atomic_load(&drawn)) {
        static const char clear[] = "\r\033[K";
        /* Nothing can be done about a failure here. */
        ssize_t written = write(STDERR_FILENO, clear, sizeof clear - 1);
        (void)written;
    }
}
