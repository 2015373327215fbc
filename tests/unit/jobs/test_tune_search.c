/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The search of I/O settings on drives that exist in arithmetic only, so that the best setting is known: with noise,
 * plateaus, cliffs at great depth, engines that fail, and little time.
 */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "jobs/tune_search.h"
#include "support/random.h"

enum { ENGINES = 3, THREADS = 2 };

/* ---- random numbers ---- */

static double uniform(uint64_t *state, double low, double high)
{
    return low + (high - low) * (double)(pst_random_next(state) >> 11) * 0x1p-53;
}

static double log_uniform(uint64_t *state, double low, double high)
{
    return exp(uniform(state, log(low), log(high)));
}

static double normal(uint64_t *state)
{
    double u = uniform(state, 1e-12, 1), v = uniform(state, 0, 1);
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}

/* ---- a drive ---- */

/* Rates in bytes per second, times in seconds. */
typedef struct direction {
    double peak, latency;
    double best_block_size, block_loss; /* per doubling beyond */
    double cliff_bytes, cliff_loss;     /* beyond so many bytes in flight the rate is (1 - loss) of it */
} direction;

typedef struct drive {
    pst_tune_space space;
    direction read, write;
    double seconds_per_io[ENGINES]; /* of a worker's processor: bounds its rate with small blocks */
    double engine_factor[ENGINES];
    bool engine_fails[ENGINES];
    double processors, worker_loss, single_factor;
    bool plateaus; /* rates come in steps of 4 % */
    double noise, outliers;
    double seconds_each; /* a measurement of one direction */
    double clock;
    uint64_t state;
    uint32_t calls;
    uint32_t cancel_after; /* calls; 0: never */
    uint32_t dies_after;   /* the same */
} drive;

static double true_rate(const drive *d, const pst_tune_setting *at, bool write)
{
    const direction *way = write ? &d->write : &d->read;
    double block = (double)at->block_size, flying = (double)at->queue_depth * at->workers;
    double rate = flying * block / (way->latency + flying * block / way->peak);
    double per_io = d->seconds_per_io[at->engine] * (at->single_submit ? d->single_factor : 1);
    double hands = fmin(at->workers, d->processors);
    rate = 1 / (1 / rate + per_io / (hands * block));
    if (block > way->best_block_size)
        rate *= pow(1 - way->block_loss, log2(block / way->best_block_size));
    if (at->workers > d->processors && at->engine != THREADS)
        rate *= pow(1 - d->worker_loss, log2(at->workers / d->processors));
    if (flying * block > way->cliff_bytes)
        rate *= 1 - way->cliff_loss;
    rate *= d->engine_factor[at->engine];
    if (d->plateaus)
        rate = exp(floor(log(rate) / 0.04) * 0.04);
    return rate;
}

static int measure(void *user, const pst_tune_setting *at, bool write, pst_tune_sample *out, pst_error *err)
{
    drive *d = user;
    d->calls++;
    if (d->cancel_after != 0 && d->calls > d->cancel_after) {
        *err = (pst_error){.code = PST_E_CANCELLED};
        return PST_E_CANCELLED;
    }
    assert_true(at->engine < d->space.engine_count);
    assert_true(at->block_size >= d->space.min_block_size && at->block_size <= d->space.max_block_size);
    assert_true(at->block_size * at->queue_depth * at->workers <= d->space.max_bytes_in_flight);
    assert_true(at->engine != THREADS || (at->queue_depth == 1 && !at->single_submit));
    if (d->engine_fails[at->engine] || (d->dies_after != 0 && d->calls > d->dies_after)) {
        *err = (pst_error){.code = -ENOSYS, .message = "no such engine"};
        return -ENOSYS;
    }
    double rate = true_rate(d, at, write) * exp(d->noise * normal(&d->state));
    if (uniform(&d->state, 0, 1) < d->outliers)
        rate *= 0.7;
    out->bytes_per_second = rate;
    out->cpu_seconds_per_gb = 0.05 + d->seconds_per_io[at->engine] * 1e9 / (double)at->block_size;
    d->clock += d->seconds_each;
    return 0;
}

static double seconds(void *user)
{
    return ((drive *)user)->clock;
}

static pst_tune_bench bench_of(drive *d)
{
    return (pst_tune_bench){.user = d, .measure = measure, .seconds = seconds};
}

static direction random_direction(uint64_t *state)
{
    return (direction){.peak = log_uniform(state, 1e8, 3e10),
                       .latency = log_uniform(state, 20e-6, 5e-3),
                       .best_block_size = log_uniform(state, 256 << 10, 16 << 20),
                       .block_loss = uniform(state, 0, 0.08),
                       .cliff_bytes = uniform(state, 0, 1) < 0.5 ? 1e18 : log_uniform(state, 32 << 20, 256 << 20),
                       .cliff_loss = uniform(state, 0.05, 0.5)};
}

static drive random_drive(uint64_t seed)
{
    uint64_t state = seed;
    drive d = {.space = {.engines = {{"uring", false}, {"aio", false}, {"threads", true}},
                         .engine_count = ENGINES,
                         .baseline = {.block_size = 1 << 20, .queue_depth = 64, .workers = 1},
                         .min_block_size = 128 << 10,
                         .max_block_size = 16 << 20,
                         .max_bytes_in_flight = 512 << 20,
                         .max_depth = 256,
                         .max_workers = 8,
                         .max_threads = 64,
                         .read = true,
                         .write = true,
                         .repetitions = 1,
                         .seconds = 60},
               .read = random_direction(&state),
               .write = random_direction(&state),
               .processors = (double)(1 << (pst_random_next(&state) % 5)),
               .worker_loss = uniform(&state, 0, 0.1),
               .single_factor = uniform(&state, 0.9, 2),
               .plateaus = pst_random_next(&state) % 3 == 0,
               .noise = uniform(&state, 0, 0.01),
               .outliers = pst_random_next(&state) % 4 == 0 ? 0.03 : 0,
               .seconds_each = 0.25};
    for (int i = 0; i < ENGINES; i++) {
        d.seconds_per_io[i] = log_uniform(&state, 2e-6, 60e-6);
        d.engine_factor[i] = pst_random_next(&state) % 3 == 0 ? 1 : uniform(&state, 0.6, 1);
        d.engine_fails[i] = pst_random_next(&state) % 6 == 0;
    }
    if (d.engine_fails[0] && d.engine_fails[1])
        d.engine_fails[THREADS] = false;
    d.state = state;
    return d;
}

static double true_score(const drive *d, const pst_tune_setting *at)
{
    double read = d->space.read ? log(true_rate(d, at, false)) : 0,
           write = d->space.write ? log(true_rate(d, at, true)) : 0;
    return (read + write) / (d->space.read && d->space.write ? 2 : 1);
}

/* By trying everything. */
static double optimum(const drive *d, pst_tune_setting *where)
{
    double best = -INFINITY;
    const pst_tune_space *s = &d->space;
    for (uint32_t engine = 0; engine < s->engine_count; engine++) {
        bool threads = s->engines[engine].synchronous;
        for (uint64_t block = s->min_block_size; block <= s->max_block_size; block *= 2)
            for (uint32_t depth = 1; depth <= (threads ? 1 : s->max_depth); depth *= 2)
                for (uint32_t workers = 1; workers <= (threads ? s->max_threads : s->max_workers); workers *= 2)
                    for (int single = 0; single <= !threads; single++) {
                        pst_tune_setting at = {engine, block, depth, workers, single != 0};
                        if (d->engine_fails[engine] || block * depth * workers > s->max_bytes_in_flight)
                            continue;
                        double value = true_score(d, &at);
                        if (value > best) {
                            best = value;
                            *where = at;
                        }
                    }
    }
    return best;
}

static pst_tune_setting setting_of(const drive *d, const pst_tune_point *point)
{
    pst_tune_setting at = {.block_size = point->block_size,
                           .queue_depth = point->queue_depth,
                           .workers = point->workers,
                           .single_submit = point->single_submit};
    while (strcmp(d->space.engines[at.engine].name, point->engine) != 0)
        assert_true(++at.engine < d->space.engine_count);
    return at;
}

/* How far the choice is from the optimum, in truth and not as measured. */
static double shortfall(drive *d, pst_tune_report *report)
{
    pst_tune_bench bench = bench_of(d);
    pst_error err = {0};
    pst_tune_setting best;
    int status = pst_tune_search(&d->space, &bench, report, &err);
    if (status != 0)
        fail_msg("search failed: %d %s", status, err.message);
    pst_tune_setting chosen = setting_of(d, &report->best);
    return 1 - exp(true_score(d, &chosen) - optimum(d, &best));
}

typedef struct tally {
    uint32_t drives, beyond, most;
    double sum, worst;
    uint64_t measurements;
} tally;

static void add(tally *t, uint64_t number, double lost, const pst_tune_report *report)
{
    if (lost > 0.03)
        printf("drive %llu: %.1f %% lost with %s, blocks of %llu, depth %u, workers %u\n", (unsigned long long)number,
               100 * lost, report->best.engine, (unsigned long long)report->best.block_size, report->best.queue_depth,
               report->best.workers);
    t->drives++;
    t->beyond += lost > 0.03;
    t->sum += lost;
    t->worst = fmax(t->worst, lost);
    t->most = report->measurements > t->most ? report->measurements : t->most;
    t->measurements += report->measurements;
}

static void show(const tally *t)
{
    printf("%u drives: mean loss %.2f %%, worst %.1f %%, more than 3 %%: %u; measurements: mean %.0f, most %u\n",
           t->drives, 100 * t->sum / t->drives, 100 * t->worst, t->beyond, (double)t->measurements / t->drives,
           t->most);
}

/* Noise, plateaus, cliffs and failing engines together: a search that measures a fraction of the points cannot be right
 * about every such drive, but it shall be about 98 of 100, and near elsewhere. */
static void test_random_drives(void **unused)
{
    (void)unused;
    enum { DRIVES = 1000, MOST_MEASUREMENTS = 250, MEAN_MEASUREMENTS = 110 };
    uint64_t seed = random_seed("tune search", 0);
    tally t = {0};
    for (uint64_t i = 0; i < DRIVES; i++) {
        drive d = random_drive(seed + i);
        d.space.seconds = 1e9;
        pst_tune_report report = {0};
        add(&t, i, shortfall(&d, &report), &report);
        assert_true(report.finished);
    }
    show(&t);
    assert_true(t.beyond <= DRIVES * 2 / 100);
    assert_true(t.sum / DRIVES <= 0.01);
    assert_true(t.most <= MOST_MEASUREMENTS);
    assert_true(t.measurements <= (uint64_t)DRIVES * MEAN_MEASUREMENTS);
}

/* Without noise, plateaus and cliffs it is hardly ever wrong. */
static void test_smooth_drives(void **unused)
{
    (void)unused;
    enum { DRIVES = 1000 };
    uint64_t seed = random_seed("tune search", 0);
    tally t = {0};
    for (uint64_t i = 0; i < DRIVES; i++) {
        drive d = random_drive(seed + i);
        d.space.seconds = 1e9;
        d.noise = d.outliers = 0;
        d.plateaus = false;
        d.read.cliff_loss = d.write.cliff_loss = 0;
        pst_tune_report report = {0};
        add(&t, i, shortfall(&d, &report), &report);
    }
    show(&t);
    assert_true(t.beyond <= 2);
    assert_true(t.worst <= 0.15);
}

/* A minute, as by default. */
static void test_one_minute(void **unused)
{
    (void)unused;
    enum { DRIVES = 1000 };
    uint64_t seed = random_seed("tune search", 0);
    tally t = {0};
    for (uint64_t i = 0; i < DRIVES; i++) {
        drive d = random_drive(seed + i);
        pst_tune_report report = {0};
        add(&t, i, shortfall(&d, &report), &report);
        assert_true(d.clock <= d.space.seconds);
    }
    show(&t);
    assert_true(t.beyond <= DRIVES * 4 / 100);
}

/* Ten times the usual noise: the choice is still near the best, and the time is kept. */
static void test_much_noise(void **unused)
{
    (void)unused;
    enum { DRIVES = 500 };
    uint64_t seed = random_seed("tune search", 0);
    double sum = 0;
    for (uint64_t i = 0; i < DRIVES; i++) {
        drive d = random_drive(seed + i);
        d.noise = 0.06;
        d.plateaus = false;
        pst_tune_report report = {0};
        sum += shortfall(&d, &report);
        assert_true(d.clock <= d.space.seconds);
    }
    printf("%d drives: mean loss %.2f %%\n", DRIVES, 100 * sum / DRIVES);
    assert_true(sum / DRIVES <= 0.04);
}

/* Time for a few measurements only: the choice is hardly ever worse than the defaults. */
static void test_little_time(void **unused)
{
    (void)unused;
    enum { DRIVES = 1000 };
    uint64_t seed = random_seed("tune search", 0);
    uint32_t worse = 0;
    for (uint64_t i = 0; i < DRIVES; i++) {
        drive d = random_drive(seed + i);
        d.space.seconds = uniform(&d.state, 0.1, 6);
        d.engine_fails[0] = false;
        d.outliers = 0;
        pst_tune_bench bench = bench_of(&d);
        pst_tune_report report = {0};
        pst_error err = {0};
        assert_int_equal(pst_tune_search(&d.space, &bench, &report, &err), 0);
        assert_true(d.clock <= fmax(d.space.seconds, 2 * d.seconds_each) + 1e-9);
        pst_tune_setting chosen = setting_of(&d, &report.best);
        worse += true_score(&d, &chosen) < true_score(&d, &d.space.baseline) - 0.03;
    }
    printf("%d drives: %u chosen worse than the defaults\n", DRIVES, worse);
    assert_true(worse <= DRIVES * 3 / 100);
}

/* Nothing makes a difference: the cheapest of what was seen, one I/O in flight. */
static void test_flat_drive(void **unused)
{
    (void)unused;
    drive d = random_drive(7);
    direction flat = {.peak = 1e9, .latency = 1e-12, .best_block_size = 1e18, .cliff_bytes = 1e18};
    d.read = d.write = flat;
    d.plateaus = false;
    d.noise = d.outliers = d.worker_loss = 0;
    d.space.seconds = 1e9;
    for (int i = 0; i < ENGINES; i++) {
        d.engine_factor[i] = 1;
        d.engine_fails[i] = false;
        d.seconds_per_io[i] = 1e-12;
    }
    pst_tune_bench bench = bench_of(&d);
    pst_tune_report report = {0};
    pst_error err = {0};
    assert_int_equal(pst_tune_search(&d.space, &bench, &report, &err), 0);
    assert_int_equal(report.best.queue_depth, 1);
    assert_int_equal(report.best.workers, 1);
    assert_int_equal(report.baseline.queue_depth, 64);
}

static void test_one_direction(void **unused)
{
    (void)unused;
    uint64_t seed = random_seed("tune search", 0);
    tally t = {0};
    for (uint64_t i = 0; i < 400; i++) {
        drive d = random_drive(seed + i);
        d.space.seconds = 1e9;
        d.space.read = i % 2 == 0;
        d.space.write = !d.space.read;
        pst_tune_report report = {0};
        add(&t, i, shortfall(&d, &report), &report);
        assert_true(d.space.read ? report.best.read_bytes_per_second > 0 : report.best.read_bytes_per_second == 0);
        assert_true(d.space.write ? report.best.write_bytes_per_second > 0 : report.best.write_bytes_per_second == 0);
        assert_int_equal(d.calls, report.measurements); /* only that direction is measured */
    }
    show(&t);
    assert_true(t.beyond <= 20);
}

static void test_failing_engines(void **unused)
{
    (void)unused;
    drive d = random_drive(11);
    pst_tune_bench bench = bench_of(&d);
    pst_tune_report report = {0};
    pst_error err = {0};
    for (int i = 0; i < ENGINES; i++)
        d.engine_fails[i] = i != 1;
    assert_int_equal(pst_tune_search(&d.space, &bench, &report, &err), 0);
    assert_string_equal(report.best.engine, "aio");
    assert_string_equal(report.baseline.engine, "uring"); /* the defaults do not work: nothing is said of them */
    assert_int_equal(report.baseline.repetitions, 0);
    d.engine_fails[1] = true;
    assert_int_equal(pst_tune_search(&d.space, &bench, &report, &err), -ENOSYS);
    assert_string_equal(err.message, "no such engine");
}

/* A drive that fails for good, at any moment: an error, and the search comes to its end. */
static void test_dying_drive(void **unused)
{
    (void)unused;
    uint32_t errors = 0;
    for (uint32_t at = 1; at < 200; at++) {
        drive d = random_drive(19 + at);
        pst_tune_bench bench = bench_of(&d);
        pst_tune_report report = {0};
        pst_error err = {0};
        d.dies_after = at;
        int status = pst_tune_search(&d.space, &bench, &report, &err);
        assert_true(status == 0 || (status == -ENOSYS && err.code == -ENOSYS));
        assert_true(status < 0 || report.best.repetitions > 0);
        errors += status < 0;
        assert_true(d.calls < at + 2000);
    }
    assert_true(errors >= 20);
}

static int seen_points(void *user, const pst_tune_point *point)
{
    uint32_t *left = user;
    assert_true(point->repetitions >= 1);
    assert_true(point->read_bytes_per_second > 0 && point->write_bytes_per_second > 0);
    return --*left == 0;
}

static void test_cancelling(void **unused)
{
    (void)unused;
    for (uint32_t at = 1; at < 30; at += 3) {
        drive d = random_drive(13);
        pst_tune_bench bench = bench_of(&d);
        pst_tune_report report = {.points = 77};
        pst_error err = {0};
        d.cancel_after = at;
        assert_int_equal(pst_tune_search(&d.space, &bench, &report, &err), PST_E_CANCELLED);
        assert_int_equal(d.calls, at + 1); /* and nothing more is measured */
        assert_int_equal(report.points, 77);
        d.cancel_after = 0;
        d.clock = 0;
        uint32_t left = at;
        bench.on_point = seen_points;
        bench.on_point_user = &left;
        assert_int_equal(pst_tune_search(&d.space, &bench, &report, &err), PST_E_CANCELLED);
        assert_int_equal(left, 0);
    }
}

static void test_repetitions(void **unused)
{
    (void)unused;
    drive d = random_drive(17);
    pst_tune_bench bench = bench_of(&d);
    pst_tune_report report = {0};
    pst_error err = {0};
    d.space.seconds = 1e9;
    d.space.repetitions = 3;
    assert_int_equal(pst_tune_search(&d.space, &bench, &report, &err), 0);
    assert_true(report.measurements >= 3 * (report.points - 1));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_drives), cmocka_unit_test(test_smooth_drives),   cmocka_unit_test(test_one_minute),
        cmocka_unit_test(test_much_noise),    cmocka_unit_test(test_little_time),     cmocka_unit_test(test_flat_drive),
        cmocka_unit_test(test_one_direction), cmocka_unit_test(test_failing_engines), cmocka_unit_test(test_cancelling),
        cmocka_unit_test(test_dying_drive),   cmocka_unit_test(test_repetitions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
