/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The choice of experts against a plain one that sorts, over random routings: softmax and sigmoid, groups, corrections;
 * ties; logits that are not numbers; the lists of rows by expert; memory that runs out.
 */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/heap.h"
#include "nn/route.h"
#include "unit/cpu/reference.h"

enum { MOST = 64, ROUNDS = 4000 };

static pst_transformer random_routing(void)
{
    uint32_t groups = (uint32_t)ref_between(1, 5), size = (uint32_t)ref_between(1, 12);
    pst_transformer t = {.experts = groups * size};
    t.routing = (pst_routing){.sigmoid = ref_between(0, 1),
                              .normalize = ref_between(0, 1),
                              .normalize_epsilon = 1e-20,
                              .groups = groups,
                              .top_groups = (uint32_t)ref_between(1, groups),
                              .group_scores = (uint32_t)ref_between(1, 2),
                              .corrected = ref_between(0, 1),
                              .scale = ref_between(0, 1) ? 1 : 2.5};
    uint32_t most = t.routing.top_groups * size;
    t.experts_per_token = (uint32_t)ref_between(1, most < 8 ? most : 8);
    return t;
}

typedef struct ranked {
    double value;
    uint32_t index;
} ranked;

/* Best first; of equals the lower index. */
static int by_value(const void *a, const void *b)
{
    const ranked *x = a, *y = b;
    if (x->value != y->value)
        return x->value > y->value ? -1 : 1;
    return x->index < y->index ? -1 : 1;
}

static int by_index(const void *a, const void *b)
{
    const ranked *x = a, *y = b;
    return x->index < y->index ? -1 : 1;
}

static void plain_scores(const pst_transformer *t, const float *logits, double *scores)
{
    double sum = 0;
    for (uint32_t e = 0; e < t->experts; e++)
        sum += exp((double)logits[e]);
    for (uint32_t e = 0; e < t->experts; e++)
        scores[e] = t->routing.sigmoid ? 1 / (1 + exp(-(double)logits[e])) : exp((double)logits[e]) / sum;
}

/* The choice by sorting groups, then experts. `gap`: by how much the last chosen was better than the next. */
static void plain_choice(const pst_transformer *t, const float *logits, const float *correction, ranked *chosen,
                         double *gap)
{
    double scores[MOST];
    ranked groups[MOST], candidates[MOST];
    uint32_t size = t->experts / t->routing.groups, count = 0;
    plain_scores(t, logits, scores);
    for (uint32_t g = 0; g < t->routing.groups; g++) {
        ranked members[MOST];
        for (uint32_t i = 0; i < size; i++) {
            uint32_t e = g * size + i;
            members[i] = (ranked){scores[e] + (correction ? (double)correction[e] : 0), e};
        }
        qsort(members, size, sizeof *members, by_value);
        double second = t->routing.group_scores == 2 && size > 1 ? members[1].value : 0;
        groups[g] = (ranked){members[0].value + second, g};
    }
    qsort(groups, t->routing.groups, sizeof *groups, by_value);
    for (uint32_t g = 0; g < t->routing.top_groups; g++)
        for (uint32_t i = 0; i < size; i++) {
            uint32_t e = groups[g].index * size + i;
            candidates[count++] = (ranked){scores[e] + (correction ? (double)correction[e] : 0), e};
        }
    qsort(candidates, count, sizeof *candidates, by_value);
    uint32_t k = t->experts_per_token;
    *gap = k < count ? candidates[k - 1].value - candidates[k].value : 1;
    if (t->routing.top_groups < t->routing.groups) {
        double between = groups[t->routing.top_groups - 1].value - groups[t->routing.top_groups].value;
        *gap = between < *gap ? between : *gap;
    }
    double sum = 0;
    for (uint32_t i = 0; i < k; i++)
        sum += scores[candidates[i].index];
    for (uint32_t i = 0; i < k; i++) {
        double weight = scores[candidates[i].index] / (t->routing.normalize ? sum : 1) * t->routing.scale;
        chosen[i] = (ranked){weight, candidates[i].index};
    }
    qsort(chosen, k, sizeof *chosen, by_index);
}

static void test_against_sorting(void **state)
{
    (void)state;
    ref_seed("route");
    int compared = 0;
    for (int round = 0; round < ROUNDS; round++) {
        pst_transformer t = random_routing();
        float logits[MOST], corrections[MOST], scratch[3 * MOST], weights[8];
        uint32_t chosen[8];
        assert_true(pst_route_scratch_floats(&t) <= 3 * MOST);
        for (uint32_t e = 0; e < t.experts; e++) {
            logits[e] = (float)(2 * ref_normal());
            corrections[e] = (float)(0.2 * ref_normal());
        }
        const float *correction = t.routing.corrected ? corrections : NULL;
        ranked expected[8];
        double gap;
        plain_choice(&t, logits, correction, expected, &gap);
        pst_route_choose(&t, logits, correction, scratch, chosen, weights);
        if (gap < 1e-5) /* too close for float */
            continue;
        compared++;
        float again[8];
        pst_route_weigh(&t, logits, scratch, chosen, again);
        for (uint32_t i = 0; i < t.experts_per_token; i++) {
            assert_int_equal(chosen[i], expected[i].index);
            assert_true(fabs((double)weights[i] - expected[i].value) <= 1e-5 * (1e-3 + expected[i].value));
            assert_true(weights[i] == again[i]);
        }
    }
    assert_true(compared > ROUNDS / 2);
}

static void test_ties_and_broken_logits(void **state)
{
    (void)state;
    pst_transformer t = {.experts = 12, .experts_per_token = 3};
    t.routing = (pst_routing){.groups = 1, .top_groups = 1, .group_scores = 1, .scale = 1, .normalize = true};
    float logits[12] = {0}, scratch[36], weights[8];
    uint32_t chosen[8];
    pst_route_choose(&t, logits, NULL, scratch, chosen, weights);
    assert_true(chosen[0] == 0 && chosen[1] == 1 && chosen[2] == 2);
    for (int round = 0; round < ROUNDS; round++) {
        static const float odd[] = {NAN, INFINITY, -INFINITY, 3.4e38f, -3.4e38f, 0};
        t = random_routing();
        float many[MOST], more[MOST], space[3 * MOST];
        for (uint32_t e = 0; e < t.experts; e++) {
            many[e] = odd[ref_between(0, 5)];
            more[e] = odd[ref_between(0, 5)];
        }
        pst_route_choose(&t, many, t.routing.corrected ? more : NULL, space, chosen, weights);
        for (uint32_t i = 0; i < t.experts_per_token; i++)
            assert_true(chosen[i] < t.experts && (i == 0 || chosen[i - 1] < chosen[i]));
    }
}

static void test_rows_by_expert(void **state)
{
    (void)state;
    pst_transformer t = {.experts = 5, .experts_per_token = 2};
    pst_route route;
    assert_int_equal(pst_route_create(&t, 4, &route, NULL), 0);
    static const uint32_t chosen[] = {0, 3, 1, 3, 0, 4};
    for (uint32_t i = 0; i < 6; i++) {
        route.chosen[i] = chosen[i];
        route.weights[i] = (float)i;
    }
    pst_route_group(&route, 3);
    static const uint32_t first[] = {0, 2, 3, 3, 5, 6}, order[] = {0, 2, 1, 0, 1, 2};
    static const float weights[] = {0, 4, 2, 1, 3, 5};
    assert_memory_equal(route.first, first, sizeof first);
    assert_memory_equal(route.order, order, sizeof order);
    assert_memory_equal(route.order_weight, weights, sizeof weights);
    pst_route_destroy(&route);
}

static void test_allocation_failures(void **state)
{
    (void)state;
    pst_transformer t = {.experts = 5, .experts_per_token = 2};
    int64_t live = pst_heap_live_count();
    int status = -1;
    for (int64_t n = 0; status < 0; n++) {
        pst_route route;
        pst_heap_fail_after(n, 0);
        status = pst_route_create(&t, 3, &route, NULL);
        pst_heap_fail_after(-1, 0);
        assert_true(status == 0 || status == -ENOMEM);
        assert_true(n < 100);
        if (status == 0)
            pst_route_destroy(&route);
        assert_int_equal(pst_heap_live_count(), live);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_sorting),
        cmocka_unit_test(test_ties_and_broken_logits),
        cmocka_unit_test(test_rows_by_expert),
        cmocka_unit_test(test_allocation_failures),
    };
    return cmocka_run_group_tests_name("route", tests, NULL, NULL);
}
