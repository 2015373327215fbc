/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Saves in the background: one thread each, of which one at a time works, in the order of begin. So only one ring is there
 * at a time, ranks meet each other in the same order everywhere, and the drive sees one stream. The threads have a low
 * priority, which those of the I/O engine that they start inherit.
 *
 * `line` is what all saves of the process share: who comes before whom. A save's own lock guards how far it is. The job
 * belongs to its thread until that has ended, then to whoever holds the save.
 *
 * When the process exits, saves under way end with it. A child of fork has the memory of saves, but not their threads: it
 * begins with an empty line, or its own saves would wait behind its parent's for ever.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <time.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/number.h"
#include "ckpt/governor.h"
#include "ckpt/job.h"
#include "os/clock.h"
#include "os/file.h"
#include "os/sys.h"

struct pst_ckpt_saving {
    pst_ckpt_job *job;
    pthread_t thread;
    bool has_thread; /* that is to be joined; the owner's */
    atomic_bool cancelled;
    atomic_bool hurries;   /* there is nobody to be protected from it any more */
    pst_governor governor; /* the thread's */
    pst_ckpt_saving *next; /* in the line */

    pthread_mutex_t lock; /* guards the rest */
    pthread_cond_t changed;
    uint64_t begin_ns, blocked_ns, copied_ns, ended_ns;
    bool copied, ended;
    int status;
    pst_error err;
};

/* ---- the line ---- */

static struct {
    pthread_mutex_t lock;
    pthread_cond_t moved;
    pst_ckpt_saving *first;
} line = {.lock = PTHREAD_MUTEX_INITIALIZER, .moved = PTHREAD_COND_INITIALIZER};

/* fork waits until nobody changes the line. */
static void line_before_fork(void)
{
    pthread_mutex_lock(&line.lock);
}

static void line_after_fork(void)
{
    pthread_mutex_unlock(&line.lock);
}

/* Anew: what waited for `moved` in the parent has left its traces in it. */
static void line_in_child(void)
{
    pthread_mutex_init(&line.lock, NULL);
    pthread_cond_init(&line.moved, NULL);
    line.first = NULL;
}

static void line_watch_forks(void)
{
    pthread_atfork(line_before_fork, line_after_fork, line_in_child); /* without memory for it, forks go unnoticed */
}

static void line_join(pst_ckpt_saving *saving)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, line_watch_forks);
    saving->next = NULL;
    pthread_mutex_lock(&line.lock);
    pst_ckpt_saving **end = &line.first;
    while (*end != NULL)
        end = &(*end)->next;
    *end = saving;
    pthread_mutex_unlock(&line.lock);
}

static void line_leave(pst_ckpt_saving *saving)
{
    pthread_mutex_lock(&line.lock);
    pst_ckpt_saving **at = &line.first;
    while (*at != saving)
        at = &(*at)->next;
    *at = saving->next;
    pthread_cond_broadcast(&line.moved);
    pthread_mutex_unlock(&line.lock);
}

/* Of a process that is several ranks (threads) each has its own turns: they wait for each other inside of their saves. */
static bool is_one_line(const pst_ckpt_saving *a, const pst_ckpt_saving *b)
{
    const pst_ckpt_ranks *of_a = pst_ckpt_job_options(a->job)->ranks, *of_b = pst_ckpt_job_options(b->job)->ranks;
    return of_a == NULL || of_b == NULL ? of_a == of_b : of_a->rank == of_b->rank;
}

/* The lock is held. */
static bool is_its_turn(const pst_ckpt_saving *saving)
{
    const pst_ckpt_saving *at = line.first;
    while (at != saving && !is_one_line(at, saving))
        at = at->next;
    return at == saving;
}

/* False: cancelled before its turn. With other ranks it waits all the same: they have to be told. */
static bool line_wait(pst_ckpt_saving *saving)
{
    const pst_ckpt_ranks *ranks = pst_ckpt_job_options(saving->job)->ranks;
    bool alone = ranks == NULL || ranks->count <= 1;
    pthread_mutex_lock(&line.lock);
    while (!is_its_turn(saving) && !(alone && atomic_load(&saving->cancelled)))
        pthread_cond_wait(&line.moved, &line.lock);
    pthread_mutex_unlock(&line.lock);
    return !(alone && atomic_load(&saving->cancelled));
}

/* ---- the thread ---- */

static uint64_t on_pace(void *user, uint64_t bytes)
{
    pst_ckpt_saving *saving = user;
    uint64_t wait_ns = pst_governor_ask(&saving->governor, bytes, pst_clock_ns(), pst_clock_thread_ns());
    return atomic_load(&saving->hurries) ? 0 : wait_ns;
}

static void on_copied(void *user)
{
    pst_ckpt_saving *saving = user;
    pthread_mutex_lock(&saving->lock);
    saving->copied = true;
    saving->copied_ns = pst_clock_ns();
    pthread_cond_broadcast(&saving->changed);
    pthread_mutex_unlock(&saving->lock);
}

static void *run(void *argument)
{
    pst_ckpt_saving *saving = argument;
    const pst_ckpt_hooks hooks = {
        .pace = on_pace, .copied = on_copied, .cancelled = &saving->cancelled, .user = saving};
    pst_error err = {.offset = PST_NO_OFFSET};
    int status;
    pst_sys->nice_thread(PST_GOVERNOR_NICE); /* where it is refused, it is just less polite */
    if (line_wait(saving)) {
        pst_governor_begin(&saving->governor, pst_ckpt_job_options(saving->job)->bytes_per_second, pst_clock_ns(),
                           pst_clock_thread_ns());
        status = pst_ckpt_job_run(saving->job, &hooks, &err);
    } else {
        status = pst_fail(&err, PST_E_CANCELLED, pst_ckpt_job_options(saving->job)->path, "cancelled before it began");
    }
    pthread_mutex_lock(&saving->lock);
    saving->status = status < 0 ? status : 0;
    saving->err = err;
    saving->ended = true;
    saving->ended_ns = pst_clock_ns();
    pthread_cond_broadcast(&saving->changed);
    pthread_mutex_unlock(&saving->lock);
    line_leave(saving); /* so none behind it ends before it has; the owner joins before it frees anything */
    return NULL;
}

/* Signals are for the program's own threads. The save is not known to any other thread than its owner's yet. */
static int start(pst_ckpt_saving *saving, pst_error *err)
{
    sigset_t all, before;
    line_join(saving);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int status = -pthread_create(&saving->thread, NULL, run, saving);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (status < 0) {
        line_leave(saving);
        return pst_fail(err, status, pst_ckpt_job_options(saving->job)->path, "cannot start a thread: %s",
                        pst_strerror(status));
    }
    saving->has_thread = true;
    return 0;
}

/* ---- for the owner ---- */

static void join(pst_ckpt_saving *saving)
{
    if (saving->has_thread)
        pthread_join(saving->thread, NULL);
    saving->has_thread = false;
}

static void destroy(pst_ckpt_saving *saving)
{
    pst_ckpt_job_destroy(saving->job);
    pthread_cond_destroy(&saving->changed);
    pthread_mutex_destroy(&saving->lock);
    pst_heap_free(saving);
}

/* The path is the one from here, also when the program goes elsewhere meanwhile. */
static int create_job(const pst_ckpt_options *options, const pst_ckpt_tensor *tensors, size_t count, pst_ckpt_job **out,
                      pst_error *err)
{
    pst_ckpt_options known = {0};
    char *path = NULL;
    memcpy(&known, options, options->struct_size == 0 ? sizeof known : pst_min(options->struct_size, sizeof known));
    if (known.path != NULL && known.path[0] != '\0' && known.path[0] != '/') {
        PST_TRY(pst_file_from_root(known.path, &path, err));
        known.path = path;
    }
    known.struct_size = sizeof known;
    int status = pst_ckpt_job_create(&known, tensors, count, out, err);
    pst_heap_free(path);
    return status;
}

int pst_ckpt_begin(const pst_ckpt_options *options, const pst_ckpt_tensor *tensors, size_t count, pst_ckpt_saving **out,
                   pst_error *err)
{
    uint64_t begin_ns = pst_clock_ns();
    pst_ckpt_saving *saving = pst_heap_calloc(1, sizeof *saving);
    if (saving == NULL)
        return pst_fail_memory(err, "a save", sizeof *saving);
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_mutex_init(&saving->lock, NULL);
    pthread_cond_init(&saving->changed, &clock);
    pthread_condattr_destroy(&clock);
    saving->begin_ns = begin_ns;
    int status = create_job(options, tensors, count, &saving->job, err);
    if (status >= 0)
        status = start(saving, err);
    if (status < 0) {
        destroy(saving);
        return status;
    }
    pthread_mutex_lock(&saving->lock);
    saving->blocked_ns = pst_clock_ns() - begin_ns;
    pthread_mutex_unlock(&saving->lock);
    *out = saving;
    return 0;
}

/* 0: reached or ended; 1: the time is over. The lock is held. */
static int wait_locked(pst_ckpt_saving *saving, pst_ckpt_stage stage, uint64_t timeout_ns)
{
    uint64_t now_ns = pst_clock_ns();
    uint64_t end_ns = timeout_ns > INT64_MAX - now_ns ? INT64_MAX : now_ns + timeout_ns;
    const struct timespec end = {.tv_sec = (time_t)(end_ns / 1000000000u), .tv_nsec = (long)(end_ns % 1000000000u)};
    while (!saving->ended && !(stage == PST_CKPT_COPIED && saving->copied)) {
        if (timeout_ns == UINT64_MAX)
            pthread_cond_wait(&saving->changed, &saving->lock);
        else if (pthread_cond_timedwait(&saving->changed, &saving->lock, &end) == ETIMEDOUT && pst_clock_ns() >= end_ns)
            break;
    }
    return !saving->ended && !(stage == PST_CKPT_COPIED && saving->copied);
}

int pst_ckpt_wait(pst_ckpt_saving *saving, pst_ckpt_stage stage, uint64_t timeout_ns, pst_error *err)
{
    if (stage != PST_CKPT_COPIED && stage != PST_CKPT_DURABLE)
        return pst_fail(err, PST_E_USAGE, NULL, "a save has no stage %d", (int)stage);
    pthread_mutex_lock(&saving->lock);
    int status = wait_locked(saving, stage, timeout_ns);
    if (saving->ended && saving->status < 0) {
        status = saving->status;
        if (err != NULL)
            *err = saving->err;
    }
    pthread_mutex_unlock(&saving->lock);
    return status;
}

int pst_ckpt_retry(pst_ckpt_saving *saving, pst_error *err)
{
    pthread_mutex_lock(&saving->lock);
    bool failed = saving->ended && saving->status < 0;
    pthread_mutex_unlock(&saving->lock);
    if (!failed)
        return pst_fail(err, PST_E_USAGE, pst_ckpt_job_options(saving->job)->path,
                        "a save is retried when it has failed");
    join(saving);
    pthread_mutex_lock(&saving->lock);
    saving->ended = saving->copied = false;
    saving->begin_ns = pst_clock_ns();
    saving->copied_ns = saving->ended_ns = 0;
    pthread_mutex_unlock(&saving->lock);
    atomic_store(&saving->cancelled, false);
    atomic_store(&saving->hurries, false);
    int status = start(saving, err);
    if (status < 0) { /* still the failure of the run before */
        pthread_mutex_lock(&saving->lock);
        saving->ended = true;
        pthread_mutex_unlock(&saving->lock);
    }
    return status;
}

void pst_ckpt_cancel(pst_ckpt_saving *saving)
{
    atomic_store(&saving->cancelled, true);
    pthread_mutex_lock(&line.lock); /* it either looks at the flag after this, or waits already */
    pthread_cond_broadcast(&line.moved);
    pthread_mutex_unlock(&line.lock);
}

void pst_ckpt_hurry(pst_ckpt_saving *saving)
{
    atomic_store(&saving->hurries, true);
}

static double seconds_between(uint64_t begin_ns, uint64_t end_ns)
{
    return end_ns > begin_ns ? (double)(end_ns - begin_ns) * 1e-9 : 0;
}

int pst_ckpt_get_report(pst_ckpt_saving *saving, pst_ckpt_report *out)
{
    size_t struct_size = out->struct_size;
    if (struct_size < offsetof(pst_ckpt_report, file_bytes))
        return PST_E_USAGE;
    pst_ckpt_report report = {.struct_size = sizeof report};
    pthread_mutex_lock(&saving->lock);
    if (saving->ended)
        pst_ckpt_job_get_report(saving->job, &report);
    report.blocked_seconds = (double)saving->blocked_ns * 1e-9;
    report.copied_seconds = seconds_between(saving->begin_ns, saving->copied_ns);
    report.seconds = seconds_between(saving->begin_ns, saving->ended_ns);
    pthread_mutex_unlock(&saving->lock);
    memcpy(out, &report, struct_size < sizeof report ? struct_size : sizeof report);
    out->struct_size = struct_size;
    return 0;
}

void pst_ckpt_end(pst_ckpt_saving *saving)
{
    if (saving == NULL)
        return;
    join(saving);
    destroy(saving);
}
