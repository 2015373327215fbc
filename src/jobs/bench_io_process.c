/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A bench of several processes. This process has no part in the transfers: it sends each order to all children, waits
 * for all answers, and fails with the first error among them. Children are forked before there are any threads of
 * this bench's.
 */
#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/log.h"
#include "jobs/bench_io_internal.h"

typedef enum order_kind { ORDER_CHANGE, ORDER_FILL, ORDER_PREPARE, ORDER_GO, ORDER_CHECK } order_kind;

typedef struct order {
    order_kind kind;
    pst_io_kind op;
    pst_bench_settings settings;
} order;

typedef struct answer {
    int status;
    pst_error error;
    union {
        pst_bench_about about;
        pst_bench_figures figures;
    } u;
} answer;

struct pst_bench_crew {
    const pst_bench_plan *plan;
    uint32_t count;
    pst_child *children;
    answer *answers;
    bool broken; /* a child is gone, or was interrupted in the middle of an order */
    pst_bench_about about;
};

/* ---- in the child ---- */

typedef struct child_task {
    const pst_bench_plan *plan;
    uint32_t process;
} child_task;

static int carry_out(pst_bench_worker *worker, order *o, answer *a)
{
    switch (o->kind) {
    case ORDER_CHANGE:
        PST_TRY(pst_bench_worker_change(worker, &o->settings, &a->error));
        pst_bench_worker_get_about(worker, &a->u.about);
        return 0;
    case ORDER_FILL: return pst_bench_worker_fill(worker, &a->error);
    case ORDER_PREPARE: return pst_bench_worker_prepare(worker, o->op, &a->error);
    case ORDER_GO: return pst_bench_worker_go(worker, &a->u.figures, &a->error);
    case ORDER_CHECK: return pst_bench_worker_check(worker, &a->error);
    }
    return -EPROTO;
}

/* The worker is opened with the first order, whose answer has the error if that fails. */
static int child_main(int fd, void *context)
{
    const child_task *task = context;
    pst_bench_worker *worker = NULL;
    order o;
    answer a;
    if (task->process > 0)
        pst_log_set_sink(NULL, NULL, PST_LOG_WARNING); /* one process is enough to hear a warning from */
    for (;;) {
        int status = pst_child_receive(fd, &o, sizeof o, -1);
        if (status == 1)
            continue;
        if (status < 0)
            break; /* the parent is done, or gone */
        memset(&a, 0, sizeof a);
        a.error.offset = PST_NO_OFFSET;
        if (worker == NULL)
            a.status = pst_bench_worker_open(task->plan, task->process, false, &worker, &a.error);
        if (a.status >= 0)
            a.status = carry_out(worker, &o, &a);
        if (pst_child_send(fd, &a, sizeof a) < 0)
            break;
    }
    pst_bench_worker_close(worker);
    return 0;
}

/* ---- in the parent ---- */

static int child_gone(pst_bench_crew *crew, uint32_t i, pst_error *err)
{
    crew->broken = true;
    return pst_child_ended(&crew->children[i], "a process of the measurement", err);
}

/* Asks the caller's callback, which may cancel. */
static int tick(pst_bench_crew *crew, uint32_t answered, pst_error *err)
{
    const pst_io_bench_options *o = &crew->plan->options;
    uint64_t each = o->io_size * o->transfers;
    if (o->on_progress == NULL || o->on_progress(o->user, each * answered, each * crew->count) == 0)
        return 0;
    crew->broken = true;
    return pst_fail(err, PST_E_CANCELLED, NULL, "cancelled");
}

/* Waits for one child's answer. No child waits for another one, so the death of a later one is noticed in its turn. */
static int receive(pst_bench_crew *crew, uint32_t i, pst_error *err)
{
    for (;;) {
        int status = pst_child_receive(crew->children[i].fd, &crew->answers[i], sizeof(answer), PST_BENCH_TICK_MS);
        if (status == 1)
            PST_TRY(tick(crew, i, err));
        else if (status == -EPIPE)
            return child_gone(crew, i, err);
        else if (status < 0)
            return pst_fail(err, status, NULL, "no answer from a process of the measurement: %s", pst_strerror(status));
        else
            return 0;
    }
}

static int tell_all(pst_bench_crew *crew, order *o, pst_error *err)
{
    if (crew->broken)
        return pst_fail(err, -ECHILD, NULL, "a process of the measurement is gone");
    for (uint32_t i = 0; i < crew->count; i++) {
        int status = pst_child_send(crew->children[i].fd, o, sizeof *o);
        if (status == -EPIPE)
            return child_gone(crew, i, err);
        if (status < 0)
            return pst_fail(err, status, NULL, "cannot reach a process of the measurement: %s", pst_strerror(status));
    }
    for (uint32_t i = 0; i < crew->count; i++) {
        int status = receive(crew, i, err);
        if (status < 0) {
            crew->broken = true;
            return status;
        }
    }
    for (uint32_t i = 0; i < crew->count; i++) {
        if (crew->answers[i].status < 0) {
            if (err != NULL)
                *err = crew->answers[i].error;
            return crew->answers[i].status;
        }
    }
    return 0;
}

int pst_bench_crew_start(const pst_bench_plan *plan, pst_bench_crew **out, pst_error *err)
{
    pst_bench_crew *crew = pst_heap_calloc(1, sizeof *crew);
    if (crew == NULL)
        return pst_fail_memory(err, "a bench", sizeof *crew);
    crew->plan = plan;
    crew->count = plan->options.processes;
    crew->children = pst_heap_calloc(crew->count, sizeof *crew->children);
    crew->answers = pst_heap_calloc(crew->count, sizeof *crew->answers);
    int status = 0;
    if (crew->children == NULL || crew->answers == NULL)
        status = pst_fail_memory(err, "a table of processes", crew->count * sizeof *crew->answers);
    for (uint32_t i = 0; status >= 0 && i < crew->count; i++) {
        child_task task = {.plan = plan, .process = i};
        status = pst_child_start(child_main, &task, &crew->children[i], err);
    }
    if (status < 0) {
        pst_bench_crew_stop(crew);
        return status;
    }
    *out = crew;
    return 0;
}

void pst_bench_crew_stop(pst_bench_crew *crew)
{
    if (crew == NULL)
        return;
    for (uint32_t i = 0; crew->children != NULL && i < crew->count; i++)
        pst_child_stop(&crew->children[i]);
    pst_heap_free(crew->children);
    pst_heap_free(crew->answers);
    pst_heap_free(crew);
}

int pst_bench_crew_change(pst_bench_crew *crew, const pst_bench_settings *settings, pst_error *err)
{
    order o;
    memset(&o, 0, sizeof o);
    o.kind = ORDER_CHANGE;
    o.settings = *settings;
    PST_TRY(tell_all(crew, &o, err));
    crew->about = crew->answers[0].u.about;
    for (uint32_t i = 1; i < crew->count; i++) {
        const pst_bench_about *about = &crew->answers[i].u.about;
        crew->about.direct = crew->about.direct && about->direct;
        if (about->alignment > crew->about.alignment)
            crew->about.alignment = about->alignment;
        crew->about.memory_bytes += about->memory_bytes;
        crew->about.locked_bytes += about->locked_bytes;
        crew->about.huge_bytes += about->huge_bytes;
        crew->about.registered_bytes += about->registered_bytes;
    }
    return 0;
}

void pst_bench_crew_get_about(const pst_bench_crew *crew, pst_bench_about *out)
{
    *out = crew->about;
}

int pst_bench_crew_fill(pst_bench_crew *crew, pst_error *err)
{
    order o;
    memset(&o, 0, sizeof o);
    o.kind = ORDER_FILL;
    return tell_all(crew, &o, err);
}

static uint64_t larger(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* Counts and means of all, and the worst of everything else: quantiles do not add up. */
static void add_latency(pst_io_latency *sum, const pst_io_latency *one)
{
    uint64_t count = sum->count + one->count;
    if (one->count == 0)
        return;
    double mean = (double)sum->mean_ns * (double)sum->count + (double)one->mean_ns * (double)one->count;
    sum->min_ns = sum->count == 0 || one->min_ns < sum->min_ns ? one->min_ns : sum->min_ns;
    sum->mean_ns = (uint64_t)(mean / (double)count);
    sum->p50_ns = larger(sum->p50_ns, one->p50_ns);
    sum->p90_ns = larger(sum->p90_ns, one->p90_ns);
    sum->p99_ns = larger(sum->p99_ns, one->p99_ns);
    sum->p999_ns = larger(sum->p999_ns, one->p999_ns);
    sum->max_ns = larger(sum->max_ns, one->max_ns);
    sum->count = count;
}

int pst_bench_crew_run(pst_bench_crew *crew, pst_io_kind op, pst_io_bench_result *out, pst_error *err)
{
    order o;
    memset(&o, 0, sizeof o);
    o.op = op;
    o.kind = ORDER_PREPARE;
    PST_TRY(tell_all(crew, &o, err));
    o.kind = ORDER_GO;
    PST_TRY(tell_all(crew, &o, err));
    pst_io_bench_result result = {.op = op};
    uint64_t begin_ns = UINT64_MAX, end_ns = 0;
    for (uint32_t i = 0; i < crew->count; i++) {
        const pst_bench_figures *figures = &crew->answers[i].u.figures;
        double seconds = (double)(figures->end_ns - figures->begin_ns) * 1e-9;
        begin_ns = figures->begin_ns < begin_ns ? figures->begin_ns : begin_ns;
        end_ns = larger(end_ns, figures->end_ns);
        result.slowest_seconds = seconds > result.slowest_seconds ? seconds : result.slowest_seconds;
        result.cpu_seconds += figures->cpu_seconds;
        add_latency(&result.latency, &figures->latency);
    }
    result.seconds = (double)(end_ns - begin_ns) * 1e-9;
    o.kind = ORDER_CHECK;
    PST_TRY(tell_all(crew, &o, err));
    *out = result;
    return 0;
}
