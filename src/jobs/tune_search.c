/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A search by turns: from the defaults on, each setting is doubled or halved as long as that helps, alone and in pairs
 * that keep the bytes in flight the same. The score of a point is the geometric mean of the median rates of reading and
 * writing; all comparing is of its logarithm.
 *
 * Measurements are noisy, and drives have moods that last seconds. So a challenger that is clearly worse costs one
 * measurement; one that may be better is measured again in turn with the point that it challenges, until the difference
 * stands out of the noise (estimated from all repetitions so far) or is too small to matter. At the end the few that are
 * left are measured in turn, round by round, the worse dropped on the way, the defaults among them so that the gain is
 * fair; and among those within about 2 % of the best the cheapest is taken.
 *
 * Time: each stage has a share of the limit, and the last one always gets its part.
 */
#include "jobs/tune_search.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/number.h"

enum { MOST_POINTS = 512, MOST_REPETITIONS = 48, FINALISTS = 6 };

static const double GAIN = 0.01;       /* less is no improvement */
static const double EQUAL = 0.02;      /* what a cheaper setting may cost */
static const double MIN_NOISE = 0.003; /* of one measurement, relative */
static const double GUESSED_NOISE = 0.03;

typedef struct point {
    pst_tune_setting at;
    bool failed, final;
    uint32_t count; /* of measurements; the newest MOST_REPETITIONS are kept */
    double read[MOST_REPETITIONS], write[MOST_REPETITIONS];
    double cpu_sum;
} point;

typedef struct search {
    const pst_tune_space *space;
    const pst_tune_bench *bench;
    point points[MOST_POINTS];
    uint32_t count, measurements;
    double began, deadline; /* of the search, of the stage */
    double busy;            /* seconds in measurements that worked, and how many there were */
    uint32_t worked;
    bool cut;          /* time ended some stage */
    pst_error failure; /* of the first setting that did not work; code 0: none */
} search;

/* Why a function of the search returns: beside negative codes, which end it all. */
enum { GO_ON = 0, STAGE_OVER = 1 };

/* ---- figures of a point ---- */

static uint32_t kept(const point *p)
{
    return p->count < MOST_REPETITIONS ? p->count : MOST_REPETITIONS;
}

static double median(const double *values, uint32_t count)
{
    double sorted[MOST_REPETITIONS];
    memcpy(sorted, values, count * sizeof *sorted);
    return pst_median(sorted, count);
}

static double spread(const double *values, uint32_t count)
{
    double least = values[0], most = values[0];
    for (uint32_t i = 1; i < count; i++) {
        least = fmin(least, values[i]);
        most = fmax(most, values[i]);
    }
    return (most - least) / median(values, count);
}

/* The logarithm of the geometric mean of what is measured. */
static double log_mean(const pst_tune_space *space, double read, double write)
{
    if (space->read && space->write)
        return (log(read) + log(write)) / 2;
    return log(space->read ? read : write);
}

static double score(const search *s, const point *p)
{
    if (p->failed || p->count == 0)
        return -INFINITY;
    return log_mean(s->space, s->space->read ? median(p->read, kept(p)) : 0,
                    s->space->write ? median(p->write, kept(p)) : 0);
}

/* The relative standard deviation of one measurement, from the median distance of all repetitions to the middle of
 * their point, which a few wild ones do not move. */
static double noise(const search *s)
{
    enum { MOST = 1024, ENOUGH = 4 };
    double distances[MOST];
    uint32_t count = 0;
    for (uint32_t i = 0; i < s->count; i++) {
        const point *p = &s->points[i];
        uint32_t n = kept(p);
        if (p->failed || n < 2)
            continue;
        double middle = score(s, p), few = sqrt(n / (n - 1.0));
        for (uint32_t j = 0; j < n && count < MOST; j++)
            distances[count++] = fabs(log_mean(s->space, p->read[j], p->write[j]) - middle) * few;
    }
    if (count < ENOUGH)
        return GUESSED_NOISE;
    return fmax(MIN_NOISE, 1.4826 * pst_median(distances, count));
}

/* The standard error of the difference of two scores. */
static double error_of_difference(const search *s, const point *a, const point *b)
{
    /* A median of many has 1.25 times the error of a mean. */
    double va = (kept(a) > 2 ? 1.56 : 1) / kept(a), vb = (kept(b) > 2 ? 1.56 : 1) / kept(b);
    return noise(s) * sqrt(va + vb);
}

/* In doublings: memory and threads that a setting takes, and processor time. */
static double cost(const search *s, const point *p)
{
    double cpu = p->count > 0 ? p->cpu_sum / p->count : 0, least = 0.01; /* seconds per GB; below it does not matter */
    return 2 * log2(p->at.workers) + log2(p->at.queue_depth) +
           0.5 * log2((double)p->at.block_size / (double)s->space->min_block_size) + (p->at.single_submit ? 1 : 0) +
           2 * log2(fmax(cpu, least) / least);
}

static void describe(const search *s, const point *p, pst_tune_point *out)
{
    uint32_t n = kept(p);
    *out = (pst_tune_point){.block_size = p->at.block_size,
                            .queue_depth = p->at.queue_depth,
                            .workers = p->at.workers,
                            .single_submit = p->at.single_submit,
                            .repetitions = p->count};
    strncpy(out->engine, s->space->engines[p->at.engine].name, sizeof out->engine - 1);
    if (n == 0)
        return;
    if (s->space->read) {
        out->read_bytes_per_second = median(p->read, n);
        out->read_spread = spread(p->read, n);
    }
    if (s->space->write) {
        out->write_bytes_per_second = median(p->write, n);
        out->write_spread = spread(p->write, n);
    }
    out->cpu_seconds_per_gb = p->cpu_sum / p->count;
}

/* ---- measuring ---- */

static bool same(const pst_tune_setting *a, const pst_tune_setting *b)
{
    return a->engine == b->engine && a->block_size == b->block_size && a->queue_depth == b->queue_depth &&
           a->workers == b->workers && a->single_submit == b->single_submit;
}

/* The point of a setting, new or known; NULL: no room for more. */
static point *point_at(search *s, const pst_tune_setting *at)
{
    for (uint32_t i = 0; i < s->count; i++) {
        if (same(&s->points[i].at, at))
            return &s->points[i];
    }
    if (s->count == MOST_POINTS)
        return NULL;
    point *p = &s->points[s->count++];
    *p = (point){.at = *at};
    return p;
}

static double now(const search *s)
{
    return s->bench->seconds(s->bench->user);
}

/* Whether another measurement would go past the stage's time. The first one is always made. */
static bool time_is_up(search *s)
{
    if (s->measurements == 0)
        return false;
    double each = s->worked > 0 ? s->busy / s->worked : 0;
    if (now(s) + each <= s->deadline)
        return false;
    s->cut = true;
    return true;
}

static int measure_one(search *s, point *p, bool write, double *out, double *cpu, pst_error *err)
{
    pst_tune_sample sample = {0};
    PST_TRY(s->bench->measure(s->bench->user, &p->at, write, &sample, err));
    if (!(sample.bytes_per_second > 0) || !isfinite(sample.bytes_per_second))
        return pst_fail(err, -EIO, NULL, "a measurement gave no rate");
    *out = sample.bytes_per_second;
    *cpu += sample.cpu_seconds_per_gb;
    return 0;
}

/* Measures a point once more. */
static int measure(search *s, point *p, pst_error *err)
{
    if (p->failed)
        return GO_ON;
    if (time_is_up(s))
        return STAGE_OVER;
    pst_error why = {.offset = PST_NO_OFFSET};
    double read = 0, write = 0, cpu = 0, begin = now(s);
    int status = 0;
    if (s->space->read)
        status = measure_one(s, p, false, &read, &cpu, &why);
    if (status >= 0 && s->space->write)
        status = measure_one(s, p, true, &write, &cpu, &why);
    s->measurements++;
    if (status == PST_E_CANCELLED) {
        if (err != NULL)
            *err = why;
        return status;
    }
    if (status < 0) {
        p->failed = true;
        if (s->failure.code == 0)
            s->failure = why;
        return GO_ON;
    }
    s->busy += now(s) - begin;
    s->worked++;
    uint32_t slot = p->count % MOST_REPETITIONS;
    p->read[slot] = read;
    p->write[slot] = write;
    p->cpu_sum += cpu / (s->space->read && s->space->write ? 2 : 1);
    p->count++;
    if (s->bench->on_point != NULL) {
        pst_tune_point seen;
        describe(s, p, &seen);
        if (s->bench->on_point(s->bench->on_point_user, &seen) != 0)
            return pst_fail(err, PST_E_CANCELLED, NULL, "cancelled");
    }
    return GO_ON;
}

static int measure_at_least(search *s, point *p, uint32_t count, pst_error *err)
{
    int status = GO_ON;
    while (status == GO_ON && !p->failed && p->count < count)
        status = measure(s, p, err);
    return status;
}

/* ---- comparing ---- */

/* Measures both in turn until it is clear, or as clear as `most` repetitions make it, whether the challenger's score is
 * more than `bar` above the holder's (bar may be negative). *above: whether it is. *difference: the challenger's less
 * the holder's. */
static int contest(search *s, point *holder, point *challenger, double bar, uint32_t most, bool *above,
                   double *difference, pst_error *err)
{
    uint32_t least = s->space->repetitions;
    int status = measure_at_least(s, challenger, least, err);
    *above = false;
    *difference = -INFINITY;
    while (status == GO_ON && !challenger->failed) {
        *difference = score(s, challenger) - score(s, holder);
        double doubt = 2 * error_of_difference(s, challenger, holder);
        *above = *difference > bar;
        if (*difference > bar + doubt || *difference < bar - doubt / 2)
            break; /* a challenger that is probably worse gets no second chance: it saves half of the time */
        if (challenger->count >= most && holder->count >= most)
            break;
        point *fewer = challenger->count <= holder->count ? challenger : holder;
        status = measure(s, fewer, err);
    }
    return status;
}

/* ---- moving ---- */

typedef struct move {
    int depth, block, workers; /* doublings */
    bool toggle;               /* single_submit */
} move;

/* The near ones first; the far ones, tried where no near one helps, get over a cliff or a plateau. */
static const move moves[] = {
    {.depth = 1},
    {.depth = -1},
    {.block = 1},
    {.block = -1},
    {.workers = 1},
    {.workers = -1},
    {.block = 1, .depth = -1},
    {.block = -1, .depth = 1},
    {.workers = 1, .depth = -1},
    {.workers = -1, .depth = 1},
    {.workers = 1, .block = -1},
    {.workers = -1, .block = 1},
    {.toggle = true},
    {.depth = -3},
    {.depth = 3},
    {.block = -3},
    {.block = 3},
    {.workers = 2},
    {.workers = -2},
    {.workers = 2, .depth = -3},
    {.block = -2, .depth = -2},
    {.block = 2, .depth = -4},
    {.block = -2, .workers = 2},
    {.block = 2, .depth = -2},
    {.block = -2, .depth = 2},
    {.block = -2},
    {.block = -1, .depth = -3},
    {.workers = -3},
    {.workers = -2, .block = 1},
};
enum { MOVES = sizeof moves / sizeof moves[0], NEAR_MOVES = 13 };

static uint64_t shifted(uint64_t value, int doublings)
{
    return doublings >= 0 ? value << doublings : value >> -doublings;
}

static bool is_synchronous(const search *s, const pst_tune_setting *at)
{
    return s->space->engines[at->engine].synchronous;
}

static bool is_inside(const search *s, const pst_tune_setting *at)
{
    const pst_tune_space *space = s->space;
    bool synchronous = is_synchronous(s, at);
    return at->block_size >= space->min_block_size && at->block_size <= space->max_block_size && at->workers >= 1 &&
           at->workers <= (synchronous ? space->max_threads : space->max_workers) && at->queue_depth >= 1 &&
           at->queue_depth <= (synchronous ? 1 : space->max_depth) && !(synchronous && at->single_submit) &&
           at->block_size * at->queue_depth * at->workers <= space->max_bytes_in_flight;
}

static point *neighbour(search *s, const point *from, const move *how)
{
    pst_tune_setting at = from->at;
    at.queue_depth = (uint32_t)shifted(at.queue_depth, how->depth);
    at.block_size = shifted(at.block_size, how->block);
    at.workers = (uint32_t)shifted(at.workers, how->workers);
    at.single_submit ^= how->toggle;
    return is_inside(s, &at) ? point_at(s, &at) : NULL;
}

/* Goes on in one direction while it helps; *moved: whether it did. A step that changes nothing may be a plateau, so one
 * more is tried from there. */
static int follow(search *s, point **current, const move *how, bool *moved, pst_error *err)
{
    enum { REPETITIONS = 3 };
    for (;;) {
        bool above;
        double difference;
        point *next = neighbour(s, *current, how);
        if (next == NULL)
            return GO_ON;
        int status = contest(s, *current, next, GAIN, REPETITIONS, &above, &difference, err);
        if (status != GO_ON)
            return status;
        if (!above && difference > -fmax(EQUAL, noise(s)) && !how->toggle) {
            next = neighbour(s, next, how);
            if (next == NULL)
                return GO_ON;
            status = contest(s, *current, next, GAIN, REPETITIONS, &above, &difference, err);
            if (status != GO_ON)
                return status;
        }
        if (!above)
            return GO_ON;
        *current = next;
        *moved = true;
    }
}

/* Until no direction helps any more. */
static int climb(search *s, point **current, pst_error *err)
{
    bool moved = true;
    while (moved) {
        moved = false;
        for (size_t i = 0; i < MOVES && !(moved && i >= NEAR_MOVES); i++) {
            int status = follow(s, current, &moves[i], &moved, err);
            if (status != GO_ON)
                return status;
        }
    }
    return GO_ON;
}

/* ---- stages ---- */

static void begin_stage(search *s, double share_of_time)
{
    s->deadline = s->began + (s->space->seconds - s->began) * share_of_time;
}

/* What comes nearest to the settings `like` with another engine. */
static pst_tune_setting translated(const search *s, const pst_tune_setting *like, uint32_t engine)
{
    pst_tune_setting at = *like;
    at.engine = engine;
    bool from = is_synchronous(s, like), to = is_synchronous(s, &at);
    uint32_t flying = like->queue_depth * like->workers;
    if (to && !from) {
        at.queue_depth = 1;
        at.single_submit = false;
        at.workers = flying < s->space->max_threads ? flying : s->space->max_threads;
    } else if (from && !to) {
        at.workers = 1;
        at.queue_depth = flying < s->space->max_depth ? flying : s->space->max_depth;
    }
    while (!is_inside(s, &at) && at.queue_depth > 1)
        at.queue_depth /= 2;
    while (!is_inside(s, &at) && at.workers > 1)
        at.workers /= 2;
    return at;
}

static point *best_point(search *s)
{
    point *best = NULL;
    for (uint32_t i = 0; i < s->count; i++) {
        point *p = &s->points[i];
        if (!p->failed && p->count > 0 && (best == NULL || score(s, p) > score(s, best)))
            best = p;
    }
    return best;
}

/* Fails when no setting works, or none any more. */
static int check_some_work(search *s, pst_error *err)
{
    if (best_point(s) != NULL)
        return 0;
    if (err != NULL)
        *err = s->failure;
    return s->failure.code;
}

/* The defaults of every engine once, and those of the first working one again, for a first idea of the noise. */
static int try_defaults(search *s, pst_error *err)
{
    begin_stage(s, 0.2);
    int status = GO_ON;
    for (uint32_t i = 0; status == GO_ON && i < s->space->engine_count; i++) {
        uint32_t engine = (s->space->baseline.engine + i) % s->space->engine_count;
        pst_tune_setting at = translated(s, &s->space->baseline, engine);
        status = measure_at_least(s, point_at(s, &at), s->space->repetitions, err);
    }
    if (status >= 0)
        PST_TRY(check_some_work(s, err));
    return status == GO_ON ? measure_at_least(s, best_point(s), 3, err) : status;
}

/* The best engine first, then every other from its defaults or from what was best for that one, unless it is hopeless. */
static int climb_engines(search *s, pst_error *err)
{
    static const double HOPELESS = 0.35; /* behind the best, in the logarithm */
    PST_TRY(check_some_work(s, err));
    point *current = best_point(s);
    bool done[PST_TUNE_ENGINES] = {0};
    begin_stage(s, s->space->engine_count > 1 ? 0.5 : 0.75);
    int status = climb(s, &current, err);
    if (status < 0)
        return status;
    done[current->at.engine] = true;
    begin_stage(s, 0.75);
    for (uint32_t turn = 1; turn < s->space->engine_count; turn++) {
        PST_TRY(check_some_work(s, err));
        point *best = best_point(s), *start = NULL;
        for (uint32_t engine = 0; engine < s->space->engine_count; engine++) {
            pst_tune_setting like = translated(s, &best->at, engine),
                             usual = translated(s, &s->space->baseline, engine);
            point *begin = point_at(s, &like), *other = point_at(s, &usual);
            if (done[engine] || begin == NULL || other == NULL || other->failed)
                continue;
            status = measure_at_least(s, begin, s->space->repetitions, err);
            if (status != GO_ON)
                return status;
            begin = score(s, other) > score(s, begin) ? other : begin;
            if (start == NULL || score(s, begin) > score(s, start))
                start = begin;
        }
        if (start == NULL || score(s, start) < score(s, best) - HOPELESS)
            return GO_ON;
        done[start->at.engine] = true;
        status = climb(s, &start, err);
        if (status != GO_ON)
            return status;
    }
    return GO_ON;
}

/* From the best towards cheaper settings that are as good, each compared with the best itself. */
static int economize(search *s, pst_error *err)
{
    static const move cheaper[] = {{.workers = -1}, {.depth = -1}, {.workers = -1, .depth = 1}, {.block = -1}};
    enum { REPETITIONS = 5 };
    point *best = best_point(s), *current = best;
    begin_stage(s, 0.85);
    for (size_t i = 0; i < sizeof cheaper / sizeof cheaper[0];) {
        bool above;
        double difference;
        point *next = neighbour(s, current, &cheaper[i]);
        if (next != NULL) {
            int status = contest(s, best, next, -EQUAL / 2, REPETITIONS, &above, &difference, err);
            if (status != GO_ON)
                return status;
            if (above && cost(s, next) < cost(s, current)) {
                current = next;
                current->final = true;
                continue;
            }
        }
        i++;
    }
    return GO_ON;
}

/* Adds the best of those that are not in it yet. */
static void choose_finalists(search *s, point *baseline)
{
    double best = score(s, best_point(s)), margin = fmax(0.03, 2 * noise(s));
    uint32_t count = 1;
    baseline->final = !baseline->failed && baseline->count > 0;
    for (uint32_t i = 0; i < s->count; i++)
        count += s->points[i].final;
    while (count++ < FINALISTS) {
        point *next = NULL;
        for (uint32_t i = 0; i < s->count; i++) {
            point *p = &s->points[i];
            if (!p->failed && !p->final && p->count > 0 && score(s, p) > best - margin &&
                (next == NULL || score(s, p) > score(s, next)))
                next = p;
        }
        if (next == NULL)
            break;
        next->final = true;
    }
}

static point *best_finalist(search *s)
{
    point *best = NULL;
    for (uint32_t i = 0; i < s->count; i++) {
        point *p = &s->points[i];
        if (p->final && !p->failed && p->count > 0 && (best == NULL || score(s, p) > score(s, best)))
            best = p;
    }
    return best;
}

/* Rounds among the finalists, those that are behind dropped on the way, until what is left of doubt does not matter. */
static int run_final(search *s, point *baseline, pst_error *err)
{
    enum { LEAST_ROUNDS = 4 };
    bool was_cut = s->cut;
    begin_stage(s, 1);
    choose_finalists(s, baseline);
    for (uint32_t round = 1;; round++) {
        uint32_t left = 0, least = MOST_REPETITIONS;
        for (uint32_t i = 0; i < s->count; i++) {
            point *p = &s->points[i];
            if (!p->final || p->count >= MOST_REPETITIONS)
                continue;
            int status = measure(s, p, err);
            if (status == STAGE_OVER && round > LEAST_ROUNDS)
                s->cut = was_cut;
            if (status != GO_ON)
                return status;
        }
        const point *best = best_finalist(s);
        if (best == NULL)
            break;
        for (uint32_t i = 0; i < s->count; i++) {
            point *p = &s->points[i];
            p->final = p->final && !p->failed;
            if (p->final && p != baseline && p != best &&
                score(s, p) < score(s, best) - EQUAL - 2 * error_of_difference(s, best, p))
                p->final = false;
            left += p->final;
            if (p->final && kept(p) < least)
                least = kept(p);
        }
        if (left <= 1 || least == MOST_REPETITIONS)
            break;
        if (round >= LEAST_ROUNDS && noise(s) * sqrt(2 * 1.56 / least) < EQUAL / 2)
            break;
    }
    return GO_ON;
}

/* The cheapest of those that are as good as the best. With a little doubt they must be the nearer to it; with so much
 * that nothing can be told, the nearest few count as equal. */
static point *choose(search *s)
{
    point *best = best_finalist(s), *choice = best;
    for (uint32_t i = 0; i < s->count; i++) {
        point *p = &s->points[i];
        if (!p->final || p->failed || p->count == 0 || p == best)
            continue;
        double doubt = error_of_difference(s, best, p), margin = fmin(EQUAL, fmax(EQUAL - doubt, doubt));
        if (score(s, p) >= score(s, best) - margin && cost(s, p) < cost(s, choice))
            choice = p;
    }
    return choice;
}

static int run(search *s, pst_tune_report *out, pst_error *err)
{
    s->began = now(s);
    int status = try_defaults(s, err);
    PST_TRY(status);
    if (status == GO_ON)
        status = climb_engines(s, err);
    PST_TRY(status);
    PST_TRY(check_some_work(s, err));
    PST_TRY(economize(s, err));
    PST_TRY(check_some_work(s, err));
    pst_tune_setting usual = s->space->baseline;
    point *baseline = point_at(s, &usual);
    if (baseline == NULL)
        return pst_fail(err, PST_E_USAGE, NULL, "the search has no room for its defaults");
    PST_TRY(run_final(s, baseline, err));
    point *choice = choose(s);
    if (choice == NULL) { /* every finalist broke down at last */
        if (err != NULL)
            *err = s->failure;
        return s->failure.code;
    }
    describe(s, choice, &out->best);
    describe(s, baseline, &out->baseline);
    out->points = 0;
    for (uint32_t i = 0; i < s->count; i++)
        out->points += s->points[i].count > 0;
    out->measurements = s->measurements;
    out->finished = !s->cut;
    return 0;
}

int pst_tune_search(const pst_tune_space *space, const pst_tune_bench *bench, pst_tune_report *out, pst_error *err)
{
    search *s = pst_heap_calloc(1, sizeof *s);
    if (s == NULL)
        return pst_fail_memory(err, "a search", sizeof *s);
    s->space = space;
    s->bench = bench;
    int status = run(s, out, err);
    pst_heap_free(s);
    return status;
}
