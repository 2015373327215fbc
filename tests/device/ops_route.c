/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The choice of experts, against the same in float64. Rows are dealt such that no choice hangs on a rounding: scores differ by
 * 1e-5 or not at all (then the lower expert is the better one). Tolerance of the weights: an exponential, a sum, a division
 * and two products in f32.
 */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "device/ops.h"

enum { MAX_EXPERTS = 256, MAX_PER_ROW = 16, MAX_ROWS = 120 };

typedef struct route_case {
    pst_routing routing;
    uint32_t experts, per_row;
    size_t rows;
    ops_matrix logits;
    ref_array corrections;
    ops_buffer *correction, *chosen, *weights, *first, *order, *order_weight;
    uint32_t expected[MAX_ROWS][MAX_PER_ROW];
    double expected_weights[MAX_ROWS][MAX_PER_ROW];
} route_case;

/* The scores of a row. */
static void score(const route_case *c, const double *logits, double *scores)
{
    double most = -INFINITY, sum = 0;
    for (uint32_t e = 0; e < c->experts; e++)
        most = logits[e] > most || isnan(logits[e]) ? logits[e] : most;
    for (uint32_t e = 0; e < c->experts; e++)
        sum += scores[e] = c->routing.sigmoid ? 1 / (1 + exp(-logits[e])) : exp(logits[e] - most);
    for (uint32_t e = 0; e < c->experts && !c->routing.sigmoid; e++)
        scores[e] /= sum;
}

/* The best one that is not taken (NAN); *margin: lowered to how much better it is than those that differ from it. */
static uint32_t take_best(double *values, uint32_t count, double *margin)
{
    uint32_t best = count;
    for (uint32_t i = 0; i < count; i++)
        if (!isnan(values[i]) && (best == count || values[i] > values[best]))
            best = i;
    assert_true(best < count);
    for (uint32_t i = 0; i < count; i++)
        if (values[i] < values[best])
            *margin = fmin(*margin, values[best] - values[i]);
    values[best] = NAN;
    return best;
}

/* Only the experts of the best groups stay. */
static void leave_groups(const route_case *c, double *values, double *margin)
{
    const uint32_t groups = c->routing.groups, size = c->experts / groups;
    double scores[MAX_EXPERTS];
    bool stays[MAX_EXPERTS] = {false};
    for (uint32_t g = 0; g < groups; g++) {
        double first = -INFINITY, second = -INFINITY;
        for (uint32_t e = g * size; e < (g + 1) * size; e++) {
            second = values[e] > first ? first : fmax(second, values[e]);
            first = fmax(first, values[e]);
        }
        scores[g] = c->routing.group_scores == 2 && size > 1 ? first + second : first;
        scores[g] = fmax(scores[g], -(double)FLT_MAX);
    }
    for (uint32_t i = 0; i < c->routing.top_groups; i++)
        stays[take_best(scores, groups, margin)] = true;
    for (uint32_t e = 0; e < c->experts; e++)
        values[e] = stays[e / size] ? values[e] : NAN;
}

/* What row `r` must choose. Returns by how much the closest choice was one. */
static double choose(route_case *c, const double *logits, size_t r)
{
    double scores[MAX_EXPERTS], values[MAX_EXPERTS], margin = INFINITY, sum = 0;
    uint32_t *chosen = c->expected[r];
    score(c, logits, scores);
    for (uint32_t e = 0; e < c->experts; e++) {
        values[e] = scores[e] + (c->corrections.data != NULL ? ref_get(&c->corrections, e) : 0);
        values[e] = values[e] >= -(double)FLT_MAX ? values[e] : -(double)FLT_MAX; /* not a number, too */
    }
    if (c->routing.top_groups < c->routing.groups)
        leave_groups(c, values, &margin);
    for (uint32_t i = 0; i < c->per_row; i++) {
        uint32_t place = i;
        const uint32_t best = take_best(values, c->experts, &margin);
        for (; place > 0 && chosen[place - 1] > best; place--)
            chosen[place] = chosen[place - 1];
        chosen[place] = best;
    }
    for (uint32_t i = 0; i < c->per_row; i++)
        sum += scores[chosen[i]];
    const double divisor = c->routing.normalize ? sum + c->routing.normalize_epsilon : 1;
    for (uint32_t i = 0; i < c->per_row; i++)
        c->expected_weights[r][i] = scores[chosen[i]] / divisor * c->routing.scale;
    return margin;
}

/* A row's logits: of some size; with equal ones; all equal; with some that are no numbers. */
static void deal_row(const route_case *c, double *logits)
{
    const size_t kind = ref_between(0, 9);
    const double scale = kind < 2 ? 0.2 : 2.0;
    for (uint32_t e = 0; e < c->experts; e++) {
        logits[e] = (double)(float)(ref_normal() * scale);
        if (kind == 3 || kind == 4)
            logits[e] = nearbyint(logits[e] * 2) / 2;
        if (kind == 5)
            logits[e] = 0.5;
    }
    static const double odd[] = {NAN, INFINITY, -INFINITY};
    for (uint32_t i = 0; i < 2 && kind == 6; i++)
        logits[ref_between(0, c->experts - 1)] = odd[ref_between(0, 2)];
}

static void deal_routing(route_case *c, size_t number)
{
    static const uint32_t experts[] = {1, 2, 8, 16, 60, 64, 128, 160, 256};
    c->experts = number % 4 == 3 ? (uint32_t)ref_between(1, MAX_EXPERTS) : experts[ref_between(0, 8)];
    c->routing = (pst_routing){.sigmoid = number % 2,
                               .normalize = ref_between(0, 1),
                               .normalize_epsilon = ref_between(0, 1) ? 1e-20 : 0,
                               .groups = 1,
                               .top_groups = 1,
                               .group_scores = (uint32_t)ref_between(1, 2),
                               .corrected = ref_between(0, 1),
                               .scale = ref_between(0, 1) ? 1 : 2.5};
    if (c->experts % 8 == 0 && c->experts > 8 && ref_between(0, 1)) {
        c->routing.groups = ref_between(0, 1) ? 8 : 4;
        c->routing.top_groups = (uint32_t)ref_between(1, c->routing.groups);
    }
    const uint32_t most = c->experts / c->routing.groups * c->routing.top_groups;
    c->per_row = (uint32_t)ref_between(1, most < MAX_PER_ROW ? most : MAX_PER_ROW);
}

static size_t make_route(void *context, size_t number, char *text, size_t text_bytes)
{
    route_case *c = context;
    deal_routing(c, number);
    c->rows = ref_between(0, 2) ? ref_between(1, 9) : ref_between(10, MAX_ROWS);
    if (c->routing.corrected)
        c->corrections = ref_randoms(PST_F32, c->experts, 0, 0.2);
    ref_array logits = ref_input(PST_F32, c->rows * c->experts, 0);
    for (size_t r = 0; r < c->rows; r++) {
        double row[MAX_EXPERTS];
        do
            deal_row(c, row);
        while (choose(c, row, r) < 1e-5);
        for (uint32_t e = 0; e < c->experts; e++)
            ref_set(&logits, r * c->experts + e, row[e]);
    }
    const size_t picks = c->rows * c->per_row;
    c->logits = ops_given(&logits, c->rows, c->experts);
    ref_free(&logits);
    c->correction = ops_array(&c->corrections, 4);
    c->chosen = ops_output(NULL, picks * 4, 4);
    c->weights = ops_output(NULL, picks * 4, 4);
    c->first = ops_output(NULL, (c->experts + (size_t)1) * 4, 4);
    c->order = ops_output(NULL, picks * 4, 4);
    c->order_weight = ops_output(NULL, picks * 4, 4);
    snprintf(text, text_bytes, "%u of %u experts, %zu rows, %s, %u of %u groups by %u, corrected %d, normalized %d",
             c->per_row, c->experts, c->rows, c->routing.sigmoid ? "sigmoid" : "softmax", c->routing.top_groups,
             c->routing.groups, c->routing.group_scores, c->routing.corrected, c->routing.normalize);
    return c->rows;
}

static int run_route(void *context, pst_device *device, ops_side side, size_t first, size_t rows)
{
    const route_case *c = context;
    (void)first;
    const pst_route_job job = {.logits = ops_rows(&c->logits, side, 0, rows),
                               .correction = ops_at(c->correction, side),
                               .routing = c->routing,
                               .per_row = c->per_row,
                               .chosen = ops_at(c->chosen, side),
                               .weights = ops_at(c->weights, side),
                               .first = ops_at(c->first, side),
                               .order = ops_at(c->order, side),
                               .order_weight = ops_at(c->order_weight, side)};
    return device->ops->route(device, &job);
}

static uint32_t number_at(const ops_buffer *buffer, ops_side side, size_t index)
{
    uint32_t number;
    memcpy(&number, ops_result(buffer, side) + 4 * index, 4);
    return number;
}

/* The lists by expert follow from those by row. */
static void check_order(const route_case *c, ops_side side, const char *text)
{
    size_t place = 0;
    for (uint32_t e = 0; e < c->experts; e++) {
        assert_int_equal(number_at(c->first, side, e), place);
        for (size_t i = 0; i < c->rows * c->per_row; i++) {
            if (number_at(c->chosen, side, i) != e)
                continue;
            if (number_at(c->order, side, place) != i / c->per_row ||
                number_at(c->order_weight, side, place) != number_at(c->weights, side, i))
                fail_msg("%s: place %zu of the order, expert %u", text, place, e);
            place++;
        }
    }
    assert_int_equal(number_at(c->first, side, c->experts), place);
    assert_int_equal(place, c->rows * c->per_row);
}

static void check_route(void *context, const char *text)
{
    const route_case *c = context;
    for (int side = OPS_DEVICE; side <= OPS_HOST; side++) {
        for (size_t i = 0; i < c->rows * c->per_row; i++) {
            const uint32_t got = number_at(c->chosen, (ops_side)side, i);
            const double weight = ops_get(c->weights, (ops_side)side, PST_F32, i);
            const uint32_t expected = c->expected[i / c->per_row][i % c->per_row];
            const double wanted = c->expected_weights[i / c->per_row][i % c->per_row];
            if (got != expected)
                fail_msg("%s: %s chooses %u as number %zu of row %zu, expected %u", text,
                         side == OPS_HOST ? "the host" : "the device", got, i % c->per_row, i / c->per_row, expected);
            /* A softmax's sum is a chain of experts / 4 roundings at most; weights below 1e-38 may be 0. */
            const double limit = fabs(wanted) * F32_ROUNDING * ((double)c->experts / 2 + 40) + 1e-38;
            if (isnan(wanted) ? !isnan(weight) : !(fabs(weight - wanted) <= limit))
                fail_msg("%s: %s weighs expert %u of row %zu %.9g, expected %.9g", text,
                         side == OPS_HOST ? "the host" : "the device", got, i / c->per_row, weight, wanted);
        }
        check_order(c, (ops_side)side, text);
    }
}

static void clear_route(void *context)
{
    ref_free(&((route_case *)context)->corrections);
}

const ops_test ops_route_tests[] = {
    {"route", 60, sizeof(route_case), make_route, run_route, check_route, NULL, clear_route, false},
    {NULL},
};
