/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a save in the background costs a training loop: steps of pure arithmetic on a given number of threads, alone and beside
 * a save, in turns. With one processor left free and with all of them busy; at the governor's default rate, and without it.
 * Prints one JSON document.
 *
 *   bench_async FOLDER [--bytes 1073741824] [--tensors 1000] [--rounds 3] [--step-ms 40] [--quiet-ms 1500] [--torch 0]
 *
 * A step ends when all its threads have done their part, as in data-parallel training. Only steps that lie within a save
 * count as beside it. A save that takes longer than 5 seconds is hurried then, and what follows does not count.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/number.h"
#include "os/clock.h"
#include "os/thread.h"
#include "penstock/ckpt.h"

enum { VALUES = 16384, MAX_STEPS = 4096, MAX_ROUNDS = 64 };

static const uint64_t most_save_ns = UINT64_C(5000000000);

typedef struct settings {
    const char *folder;
    uint64_t bytes, tensors, rounds, step_ms, quiet_ms, torch;
} settings;

typedef struct samples {
    double ms[MAX_STEPS];
    size_t count;
} samples;

static _Noreturn void die(const pst_error *err)
{
    fprintf(stderr, "bench_async: %s: %s\n", err->path, err->message);
    exit(1);
}

/* ---- the loop ---- */

typedef struct loop {
    pst_pool *pool;
    uint32_t threads;
    float (*values)[VALUES]; /* of each thread, in its nearest cache */
    uint64_t passes;         /* over them, in a step */
} loop;

static void work(void *context, uint32_t task, uint32_t worker)
{
    loop *l = context;
    (void)worker;
    float *x = l->values[task];
    for (uint64_t pass = 0; pass < l->passes; pass++)
        for (int i = 0; i < VALUES; i++)
            x[i] = x[i] * 0.999f + 0.001f;
}

static double run_step(loop *l)
{
    uint64_t begin_ns = pst_clock_ns();
    pst_pool_run(l->pool, l->threads, work, l);
    return (double)(pst_clock_ns() - begin_ns) * 1e-6;
}

static void make_loop(loop *l, uint32_t threads, uint64_t step_ms)
{
    pst_error err = {0};
    if (pst_pool_create(threads, &l->pool, &err) < 0)
        die(&err);
    l->threads = threads;
    l->values = calloc(threads, sizeof *l->values);
    l->passes = 1000;
    if (l->values == NULL)
        exit(1);
    double ms = 1e9;
    for (int i = 0; i < 10; i++) {
        double one = run_step(l);
        ms = one < ms ? one : ms;
    }
    l->passes = (uint64_t)(1000 * (double)step_ms / ms) + 1;
}

static void add(samples *s, double ms)
{
    if (s->count < MAX_STEPS)
        s->ms[s->count++] = ms;
}

static void run_quietly(loop *l, uint64_t quiet_ms, samples *out)
{
    uint64_t end_ns = pst_clock_ns() + quiet_ms * 1000000;
    while (pst_clock_ns() < end_ns)
        add(out, run_step(l));
}

/* ---- saves ---- */

typedef struct model {
    pst_ckpt_tensor *tensors;
    size_t count;
} model;

static void make_model(model *m, const settings *s)
{
    m->count = s->tensors;
    m->tensors = calloc(m->count, sizeof *m->tensors);
    char *data = malloc(s->bytes), *names = malloc(m->count * 64);
    uint64_t *shapes = calloc(m->count, sizeof *shapes), random = 1;
    if (m->tensors == NULL || data == NULL || names == NULL || shapes == NULL)
        exit(1);
    for (uint64_t i = 0; i + 8 <= s->bytes; i += 8) {
        uint64_t value = pst_random_next(&random);
        memcpy(data + i, &value, 8);
    }
    for (size_t i = 0; i < m->count; i++) {
        shapes[i] = s->bytes / m->count / 4;
        snprintf(names + i * 64, 64, "model.layers.%zu.mlp.weight", i);
        m->tensors[i] = (pst_ckpt_tensor){
            .name = names + i * 64, .dtype = PST_F32, .rank = 1, .shape = &shapes[i], .data = data + i * shapes[i] * 4};
    }
}

typedef struct outcome {
    samples quiet, beside;
    double blocked_ms[MAX_ROUNDS], seconds[MAX_ROUNDS];
    uint64_t data_bytes;
    size_t rounds, hurried;
} outcome;

static void run_beside(loop *l, const model *m, const pst_ckpt_options *options, outcome *out)
{
    pst_ckpt_saving *saving = NULL;
    pst_error err = {0};
    uint64_t begin_ns = pst_clock_ns();
    if (pst_ckpt_begin(options, m->tensors, m->count, &saving, &err) < 0)
        die(&err);
    out->blocked_ms[out->rounds] = (double)(pst_clock_ns() - begin_ns) * 1e-6;
    for (;;) {
        double ms = run_step(l);
        int status = pst_ckpt_wait(saving, PST_CKPT_DURABLE, 0, &err);
        if (status < 0)
            die(&err);
        if (status == 0)
            break;
        add(&out->beside, ms);
        if (pst_clock_ns() - begin_ns > most_save_ns) {
            out->hurried++;
            pst_ckpt_hurry(saving);
            break;
        }
    }
    if (pst_ckpt_wait(saving, PST_CKPT_DURABLE, UINT64_MAX, &err) < 0)
        die(&err);
    pst_ckpt_report report = {.struct_size = sizeof report};
    pst_ckpt_get_report(saving, &report);
    out->data_bytes = report.data_bytes;
    out->seconds[out->rounds++] = report.seconds;
    pst_ckpt_end(saving);
}

/* ---- what comes out ---- */

static double mean(const samples *s)
{
    double sum = 0;
    for (size_t i = 0; i < s->count; i++)
        sum += s->ms[i];
    return s->count > 0 ? sum / (double)s->count : 0;
}

static void print_list(const char *name, const double *values, size_t count)
{
    printf(", \"%s\": [", name);
    for (size_t i = 0; i < count; i++)
        printf("%s%.4g", i > 0 ? ", " : "", values[i]);
    printf("]");
}

static void print_outcome(outcome *o, uint32_t threads, uint32_t processors, const char *governor, bool first)
{
    double quiet_mean = mean(&o->quiet), beside_mean = mean(&o->beside);
    double quiet = o->quiet.count > 0 ? pst_median(o->quiet.ms, o->quiet.count) : 0;
    double beside = o->beside.count > 0 ? pst_median(o->beside.ms, o->beside.count) : 0;
    printf("%s\n  {\"threads\": %" PRIu32 ", \"processors\": %" PRIu32 ", \"governor\": \"%s\"", first ? "" : ",",
           threads, processors, governor);
    printf(", \"steps_alone\": %zu, \"steps_beside\": %zu", o->quiet.count, o->beside.count);
    printf(", \"step_ms_alone\": %.4g, \"step_ms_beside\": %.4g", quiet, beside);
    if (o->beside.count > 0)
        printf(", \"slower_median_percent\": %.2f, \"slower_mean_percent\": %.2f", (beside / quiet - 1) * 100,
               (beside_mean / quiet_mean - 1) * 100);
    print_list("begin_ms", o->blocked_ms, o->rounds);
    print_list("save_seconds", o->seconds, o->rounds);
    double seconds = pst_median(o->seconds, o->rounds);
    printf(", \"bytes_per_second\": %.4g, \"hurried\": %zu}", (double)o->data_bytes / seconds, o->hurried);
}

static void parse(int argc, char **argv, settings *s)
{
    struct {
        const char *name;
        uint64_t *value;
    } numbers[] = {{"--bytes", &s->bytes},     {"--tensors", &s->tensors},   {"--rounds", &s->rounds},
                   {"--step-ms", &s->step_ms}, {"--quiet-ms", &s->quiet_ms}, {"--torch", &s->torch}};
    for (int i = 1; i < argc; i++) {
        bool known = argv[i][0] != '-';
        if (known)
            s->folder = argv[i];
        for (size_t k = 0; k < sizeof numbers / sizeof numbers[0] && !known && i + 1 < argc; k++)
            if (strcmp(argv[i], numbers[k].name) == 0) {
                *numbers[k].value = strtoull(argv[++i], NULL, 10);
                known = true;
            }
        if (!known) {
            fprintf(stderr, "bench_async: what is %s?\n", argv[i]);
            exit(2);
        }
    }
    if (s->folder == NULL || s->rounds == 0 || s->rounds > MAX_ROUNDS || s->tensors == 0 || s->bytes < s->tensors * 4) {
        fprintf(stderr, "usage: bench_async FOLDER [--bytes N] [--tensors N] [--rounds N] [--step-ms N] [--torch 1]\n");
        exit(2);
    }
}

int main(int argc, char **argv)
{
    settings s = {.bytes = 1 << 30, .tensors = 1000, .rounds = 3, .step_ms = 40, .quiet_ms = 1500};
    static outcome outcomes[4];
    static loop loops[2];
    char path[4096];
    model m;
    parse(argc, argv, &s);
    uint32_t processors = pst_os_processors();
    uint32_t threads[2] = {processors > 1 ? processors - 1 : 1, processors};
    snprintf(path, sizeof path, "%s/bench-async.%s", s.folder, s.torch ? "pt" : "safetensors");
    make_model(&m, &s);
    for (int t = 0; t < 2; t++)
        make_loop(&loops[t], threads[t], s.step_ms);
    for (uint64_t round = 0; round < s.rounds; round++)
        for (int i = 0; i < 4; i++) { /* threads, governor */
            const pst_ckpt_options options = {
                .struct_size = sizeof options, .path = path, .bytes_per_second = i % 2 == 0 ? 0 : PST_CKPT_UNLIMITED};
            run_quietly(&loops[i / 2], s.quiet_ms, &outcomes[i].quiet);
            run_beside(&loops[i / 2], &m, &options, &outcomes[i]);
        }
    unlink(path);
    printf("{\"benchmark\": \"async_save\", \"bytes\": %" PRIu64 ", \"tensors\": %" PRIu64
           ", \"format\": \"%s\", \"results\": [",
           s.bytes, s.tensors, s.torch ? "pt" : "safetensors");
    for (int i = 0; i < 4; i++)
        print_outcome(&outcomes[i], threads[i / 2], processors, i % 2 == 0 ? "default" : "none", i == 0);
    printf("\n]}\n");
    return 0;
}
