/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Saves in the background, their order, stages, errors and cancelling, with jobs of the test's own in place of real ones;
 * and the governor's arithmetic.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/error.h"
#include "base/heap.h"
#include "ckpt/governor.h"
#include "ckpt/job.h"
#include "os/clock.h"
#include "unit/io/io_test.h"

enum { MS = 1000 * 1000 };

/* ---- jobs that do what a script says; these take the place of the library's ---- */

typedef struct script {
    int number;
    int fail_runs;     /* so many runs fail */
    bool until_cancel; /* a run goes on until it is cancelled */
    bool hold_copy, hold_end;
    uint64_t paced_ns; /* what the last call of pace has said */
    int runs, nice;
} script;

struct pst_ckpt_job {
    pst_ckpt_options options;
    script *script;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int order[64], order_count, running, most_running;

int pst_ckpt_job_create(const pst_ckpt_options *options, const pst_ckpt_tensor *tensors, size_t count,
                        pst_ckpt_job **out, pst_error *err)
{
    (void)tensors, (void)count;
    if (options->path == NULL)
        return pst_fail(err, PST_E_USAGE, NULL, "no path");
    pst_ckpt_job *job = pst_heap_calloc(1, sizeof *job);
    if (job == NULL)
        return pst_fail_memory(err, "a job", sizeof *job);
    job->options = *options;
    job->script = (script *)(uintptr_t)options->ring_bytes;
    *out = job;
    return 0;
}

static void wait_while(const bool *held)
{
    while (*held)
        pthread_cond_wait(&changed, &lock);
}

int pst_ckpt_job_run(pst_ckpt_job *job, const pst_ckpt_hooks *hooks, pst_error *err)
{
    script *s = job->script;
    pthread_mutex_lock(&lock);
    order[order_count++] = s->number;
    if (++running > most_running)
        most_running = running;
    s->runs++;
    s->nice = getpriority(PRIO_PROCESS, (id_t)gettid());
    pthread_cond_broadcast(&changed);
    wait_while(&s->hold_copy);
    pthread_mutex_unlock(&lock);
    for (int i = 0; i < 4; i++) {
        uint64_t ns = hooks->pace(hooks->user, 1 << 20);
        pthread_mutex_lock(&lock);
        s->paced_ns = ns;
        pthread_mutex_unlock(&lock);
    }
    int status = 0;
    if (s->runs > s->fail_runs) {
        hooks->copied(hooks->user);
        pthread_mutex_lock(&lock);
        wait_while(&s->hold_end);
        pthread_mutex_unlock(&lock);
    } else {
        status = pst_fail_at(err, -EIO, "/the/file", 4096, "run %d failed", s->runs);
    }
    while (s->until_cancel && !atomic_load(hooks->cancelled))
        usleep(1000);
    if (status >= 0 && atomic_load(hooks->cancelled))
        status = pst_fail(err, PST_E_CANCELLED, "/the/file", "cancelled");
    pthread_mutex_lock(&lock);
    running--;
    pthread_mutex_unlock(&lock);
    return status;
}

void pst_ckpt_job_get_report(const pst_ckpt_job *job, pst_ckpt_report *out)
{
    (void)job;
    out->data_bytes = 12345;
    out->io_engine = "none";
    out->copied_seconds = out->seconds = 99;
}

const pst_ckpt_options *pst_ckpt_job_options(const pst_ckpt_job *job)
{
    return &job->options;
}

void pst_ckpt_job_destroy(pst_ckpt_job *job)
{
    pst_heap_free(job);
}

/* ---- the tests ---- */

static int set_up(void **unused)
{
    (void)unused;
    order_count = running = most_running = 0;
    return 0;
}

static void release(bool *held)
{
    pthread_mutex_lock(&lock);
    *held = false;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

static void wait_for_run(const script *s, int run)
{
    pthread_mutex_lock(&lock);
    while (s->runs < run)
        pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
}

static pst_ckpt_saving *begin(script *s, const pst_ckpt_ranks *ranks)
{
    const pst_ckpt_options o = {
        .struct_size = sizeof o, .path = "/the/file", .ring_bytes = (uintptr_t)s, .ranks = ranks};
    pst_ckpt_saving *saving = NULL;
    pst_error err = {0};
    assert_ok(pst_ckpt_begin(&o, NULL, 0, &saving, &err), &err);
    return saving;
}

static int wait_ended(pst_ckpt_saving *saving)
{
    return pst_ckpt_wait(saving, PST_CKPT_DURABLE, UINT64_MAX, NULL);
}

static void test_order(void **unused)
{
    const int begun_at = getpriority(PRIO_PROCESS, 0);
    (void)unused;
    enum { SAVES = 12 };
    script scripts[SAVES];
    pst_ckpt_saving *savings[SAVES];
    script first = {.number = 99};
    pst_ckpt_end(begin(&first, NULL)); /* the thread sanitizer begins a thread of its own with the first one */
    order_count = 0;
    test_footprint before = test_measure_footprint();
    for (int i = 0; i < SAVES; i++)
        scripts[i] = (script){.number = i, .hold_copy = i == 0};
    for (int i = 0; i < SAVES; i++)
        savings[i] = begin(&scripts[i], NULL);
    wait_for_run(&scripts[0], 1);
    usleep(20000);
    for (int i = 0; i < SAVES; i++) {
        assert_int_equal(pst_ckpt_wait(savings[i], PST_CKPT_COPIED, 0, NULL), 1);
        assert_int_equal(pst_ckpt_wait(savings[i], PST_CKPT_DURABLE, 0, NULL), 1);
    }
    assert_int_equal(order_count, 1);
    release(&scripts[0].hold_copy);
    assert_int_equal(wait_ended(savings[SAVES - 1]), 0);
    for (int i = 0; i < SAVES; i++) {
        assert_int_equal(pst_ckpt_wait(savings[i], PST_CKPT_DURABLE, 0, NULL), 0);
        assert_int_equal(order[i], i);
        pst_ckpt_end(savings[i]);
    }
    assert_int_equal(most_running, 1);
    assert_true(scripts[0].nice >= PST_GOVERNOR_NICE); /* the worker alone, unless all of this process is as polite */
    assert_true(getpriority(PRIO_PROCESS, 0) == begun_at &&
                (begun_at >= PST_GOVERNOR_NICE || scripts[0].nice > begun_at));
    test_assert_footprint(&before);
}

static void test_stages(void **unused)
{
    (void)unused;
    script s = {.hold_copy = true, .hold_end = true};
    pst_ckpt_saving *saving = begin(&s, NULL);
    uint64_t begin_ns = pst_clock_ns();
    assert_int_equal(pst_ckpt_wait(saving, PST_CKPT_COPIED, 30 * MS, NULL), 1);
    assert_true(pst_clock_ns() - begin_ns >= 30 * MS);
    release(&s.hold_copy);
    assert_int_equal(pst_ckpt_wait(saving, PST_CKPT_COPIED, UINT64_MAX, NULL), 0);
    assert_int_equal(pst_ckpt_wait(saving, PST_CKPT_DURABLE, 5 * MS, NULL), 1);
    pst_ckpt_report report = {.struct_size = sizeof report};
    assert_int_equal(pst_ckpt_get_report(saving, &report), 0);
    assert_true(report.copied_seconds >= 0.03 && report.seconds == 0 && report.data_bytes == 0);
    release(&s.hold_end);
    assert_int_equal(pst_ckpt_wait(saving, PST_CKPT_DURABLE, UINT64_MAX - 1, NULL), 0);
    assert_int_equal(pst_ckpt_get_report(saving, &report), 0);
    assert_true(report.copied_seconds < 50 && report.seconds > report.copied_seconds && report.seconds < 50);
    assert_true(report.blocked_seconds > 0 && report.blocked_seconds < report.seconds && report.data_bytes == 12345);
    pst_ckpt_report small = {.struct_size = offsetof(pst_ckpt_report, file_bytes), .file_bytes = 7};
    assert_int_equal(pst_ckpt_get_report(saving, &small), 0);
    assert_true(small.data_bytes == 12345 && small.file_bytes == 7);
    small.struct_size = 0;
    assert_int_equal(pst_ckpt_get_report(saving, &small), PST_E_USAGE);
    assert_int_equal(pst_ckpt_wait(saving, (pst_ckpt_stage)9, 0, NULL), PST_E_USAGE);
    assert_int_equal(pst_ckpt_retry(saving, NULL), PST_E_USAGE);
    pst_ckpt_end(saving);
}

static void assert_failed(pst_ckpt_saving *saving, pst_ckpt_stage stage, const char *message)
{
    pst_error err = {0};
    assert_int_equal(pst_ckpt_wait(saving, stage, UINT64_MAX, &err), -EIO);
    assert_int_equal(err.code, -EIO);
    assert_string_equal(err.message, message);
    assert_string_equal(err.path, "/the/file");
    assert_true(err.offset == 4096);
}

/* A failed one says so each time, does not hold up the next, and may be tried again. */
static void test_failure_and_retry(void **unused)
{
    (void)unused;
    script bad = {.number = 1, .fail_runs = 2}, good = {.number = 2};
    pst_ckpt_saving *first = begin(&bad, NULL), *second = begin(&good, NULL);
    assert_int_equal(wait_ended(second), 0);
    assert_failed(first, PST_CKPT_COPIED, "run 1 failed");
    assert_failed(first, PST_CKPT_DURABLE, "run 1 failed");
    assert_failed(first, PST_CKPT_DURABLE, "run 1 failed");
    assert_int_equal(pst_ckpt_retry(first, NULL), 0);
    assert_failed(first, PST_CKPT_DURABLE, "run 2 failed");
    assert_int_equal(pst_ckpt_retry(first, NULL), 0);
    assert_int_equal(wait_ended(first), 0);
    assert_int_equal(bad.runs, 3);
    pst_ckpt_end(first);
    pst_ckpt_end(second);
}

static void test_cancel(void **unused)
{
    (void)unused;
    script going = {.number = 1, .until_cancel = true}, waiting = {.number = 2}, last = {.number = 3};
    pst_ckpt_saving *a = begin(&going, NULL), *b = begin(&waiting, NULL), *c = begin(&last, NULL);
    pst_error err = {0};
    wait_for_run(&going, 1);
    pst_ckpt_cancel(b); /* before its turn: at once */
    assert_int_equal(pst_ckpt_wait(b, PST_CKPT_DURABLE, UINT64_MAX, &err), PST_E_CANCELLED);
    assert_string_equal(err.path, "/the/file");
    assert_int_equal(waiting.runs, 0);
    assert_int_equal(pst_ckpt_wait(a, PST_CKPT_DURABLE, 0, NULL), 1);
    pst_ckpt_cancel(a);
    assert_int_equal(wait_ended(a), PST_E_CANCELLED);
    assert_int_equal(wait_ended(c), 0);
    assert_int_equal(pst_ckpt_retry(b, NULL), 0);
    assert_int_equal(wait_ended(b), 0);
    pst_ckpt_cancel(c); /* too late: nothing happens */
    assert_int_equal(wait_ended(c), 0);
    pst_ckpt_end(a);
    pst_ckpt_end(b);
    pst_ckpt_end(c);
}

static int no_gather(void *user, const void *mine, size_t bytes, void *all)
{
    (void)user, (void)mine, (void)bytes, (void)all;
    return -EIO;
}

/* Other ranks wait for this one: it takes its turn, if only to tell them. */
static void test_cancel_among_ranks(void **unused)
{
    (void)unused;
    const pst_ckpt_ranks ranks = {.rank = 0, .count = 2, .all_gather = no_gather};
    const pst_ckpt_ranks other = {.rank = 1, .count = 2, .all_gather = no_gather};
    script going = {.number = 1, .hold_end = true}, waiting = {.number = 2}, beside = {.number = 3};
    pst_ckpt_saving *a = begin(&going, &ranks), *b = begin(&waiting, &ranks), *c = begin(&beside, &other);
    assert_int_equal(wait_ended(c), 0); /* another rank of this process has turns of its own */
    pst_ckpt_end(c);
    wait_for_run(&going, 1);
    pst_ckpt_cancel(b);
    assert_int_equal(pst_ckpt_wait(b, PST_CKPT_DURABLE, 20 * MS, NULL), 1);
    release(&going.hold_end);
    assert_int_equal(wait_ended(b), PST_E_CANCELLED);
    assert_int_equal(waiting.runs, 1);
    pst_ckpt_end(a);
    pst_ckpt_end(b);
}

static void test_hurry(void **unused)
{
    (void)unused;
    script slow = {.number = 1, .hold_copy = true}, fast = {.number = 2, .hold_copy = true};
    pst_ckpt_saving *a = begin(&slow, NULL), *b = begin(&fast, NULL);
    pst_ckpt_hurry(b);
    release(&slow.hold_copy);
    release(&fast.hold_copy);
    assert_int_equal(wait_ended(a), 0);
    assert_int_equal(wait_ended(b), 0);
    assert_true(slow.paced_ns > 0 && fast.paced_ns == 0);
    pst_ckpt_end(a);
    pst_ckpt_end(b);
}

/* Ends with saves in flight: it waits for each. */
static void test_end_waits(void **unused)
{
    (void)unused;
    script s[3] = {{.number = 0}, {.number = 1}, {.number = 2}};
    pst_ckpt_saving *savings[3];
    for (int i = 0; i < 3; i++)
        savings[i] = begin(&s[i], NULL);
    for (int i = 2; i >= 0; i--)
        pst_ckpt_end(savings[i]);
    assert_int_equal(order_count, 3);
    pst_ckpt_end(NULL);
}

static void test_refusals(void **unused)
{
    (void)unused;
    const pst_ckpt_options nothing = {.struct_size = sizeof nothing};
    script s = {.number = 1};
    const pst_ckpt_options good = {.struct_size = sizeof good, .path = "/the/file", .ring_bytes = (uintptr_t)&s};
    pst_ckpt_saving *saving = (pst_ckpt_saving *)0x1;
    pst_error err = {0};
    test_footprint before = test_measure_footprint();
    assert_int_equal(pst_ckpt_begin(&nothing, NULL, 0, &saving, &err), PST_E_USAGE);
    assert_string_equal(err.message, "no path");
    for (int64_t n = 0; n < 2; n++) {
        pst_heap_fail_after(n, 0);
        assert_int_equal(pst_ckpt_begin(&good, NULL, 0, &saving, &err), -ENOMEM);
    }
    pst_heap_fail_after(-1, 0);
    assert_ptr_equal(saving, (pst_ckpt_saving *)0x1);
    test_assert_footprint(&before);
}

/* ---- the governor ---- */

/* Asks for `count` writes, one after the other as soon as each may; returns when the last may. */
static uint64_t write_all(pst_governor *g, uint64_t now_ns, int count, uint64_t bytes, double cpu_ns_per_byte)
{
    uint64_t cpu_ns = g->cpu_ns;
    for (int i = 0; i < count; i++) {
        cpu_ns += (uint64_t)(cpu_ns_per_byte * (double)bytes);
        now_ns += pst_governor_ask(g, bytes, now_ns, cpu_ns);
    }
    return now_ns;
}

static void test_rate(void **unused)
{
    (void)unused;
    const uint64_t start_ns = 1000 * UINT64_C(1000000000), second = 1000000000;
    pst_governor g;
    pst_governor_begin(&g, 100 << 20, start_ns, 0);
    uint64_t end_ns = write_all(&g, start_ns, 1001, 1 << 20, 0);
    assert_int_equal(end_ns - start_ns, 10 * second); /* 1000 MiB before the last */
    /* A pause is made up for by no more than the burst. */
    uint64_t later_ns = end_ns + 60 * second;
    end_ns = write_all(&g, later_ns, 1001, 1 << 20, 0);
    assert_int_equal(end_ns - later_ns, 10 * second - PST_GOVERNOR_BURST_NS);
    pst_governor_begin(&g, PST_CKPT_UNLIMITED, start_ns, 0);
    assert_int_equal(write_all(&g, start_ns, 1000, 1 << 20, 0), start_ns);
    pst_governor_begin(&g, 1, start_ns, 0); /* counts on without overflow */
    for (int i = 0; i < 10; i++)
        pst_governor_ask(&g, UINT64_MAX, start_ns, 0);
    assert_true(pst_governor_ask(&g, 1, start_ns, 0) > UINT64_MAX / 4);
}

/* The thread works for a tenth of the time, whatever a byte costs it. */
static void test_share(void **unused)
{
    (void)unused;
    static const double costs[] = {0.1, 0.3, 1.0};
    const uint64_t start_ns = 1000 * UINT64_C(1000000000);
    for (size_t i = 0; i < sizeof costs / sizeof costs[0]; i++) {
        pst_governor g;
        pst_governor_begin(&g, 0, start_ns, 5000);
        uint64_t from_ns = write_all(&g, start_ns, 100, 8 << 20, costs[i]); /* learns */
        uint64_t to_ns = write_all(&g, from_ns, 100, 8 << 20, costs[i]);
        double share = costs[i] * 100 * (8 << 20) / (double)(to_ns - from_ns);
        assert_true(share > 0.099 && share < 0.101);
    }
    pst_governor g; /* costs that cannot be are bounded */
    pst_governor_begin(&g, 0, start_ns, 0);
    uint64_t end_ns = write_all(&g, start_ns, 1000, 1 << 20, 50);
    assert_true((double)(end_ns - start_ns) < 2 * 10 * 1000.0 * (1 << 20) * 1.01);
}

/* The parent's saves are not in a child's line. Returns only in the parent. */
static int save_in_child(void)
{
    pthread_mutex_lock(&lock);
    pid_t child = fork();
    if (child == 0)
        pthread_cond_init(&changed, NULL); /* nobody waits here */
    pthread_mutex_unlock(&lock);
    if (child == 0) {
        script other = {.number = 2};
        const pst_ckpt_options o = {.struct_size = sizeof o, .path = "/the/file", .ring_bytes = (uintptr_t)&other};
        pst_ckpt_saving *saving = NULL;
        bool done = pst_ckpt_begin(&o, NULL, 0, &saving, NULL) == 0 &&
                    pst_ckpt_wait(saving, PST_CKPT_DURABLE, UINT64_C(20) * 1000 * MS, NULL) == 0;
        _exit(done ? 0 : 1);
    }
    int ended = -1;
    assert_true(child > 0);
    assert_int_equal(waitpid(child, &ended, 0), child);
    return ended;
}

static void test_fork(void **unused)
{
    (void)unused;
#ifdef __SANITIZE_THREAD__
    skip(); /* its child of a process with threads may not have any */
#endif
    script held = {.number = 1, .hold_end = true}, waiting = {.number = 3};
    pst_ckpt_saving *first = begin(&held, NULL), *second = begin(&waiting, NULL);
    wait_for_run(&held, 1);
    assert_int_equal(save_in_child(), 0);
    release(&held.hold_end);
    assert_int_equal(wait_ended(first), 0);
    assert_int_equal(wait_ended(second), 0);
    pst_ckpt_end(first);
    pst_ckpt_end(second);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup(name, set_up)
    const struct CMUnitTest tests[] = {
        TEST(test_order),
        TEST(test_stages),
        TEST(test_failure_and_retry),
        TEST(test_cancel),
        TEST(test_cancel_among_ranks),
        TEST(test_hurry),
        TEST(test_end_waits),
        TEST(test_fork),
        TEST(test_refusals),
        TEST(test_rate),
        TEST(test_share),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
