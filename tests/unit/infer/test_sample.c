/* SPDX-License-Identifier: Apache-2.0 */
/* Sampling, from the largest logits and from all: each filter on a known distribution, frequencies over many draws. That both
 * choose as plain sorting does is in tests/property/test_sampling.c. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "support/sampling.h"

enum { VOCAB = 6, DRAWS = 20000 };

/* Probabilities 0.4, 0.3, 0.15, 0.1, 0.04, 0.01, in a scrambled order. */
static const double probability[VOCAB] = {0.1, 0.4, 0.01, 0.3, 0.04, 0.15};

static void draw(pst_sampling sampling, double *frequency)
{
    float logits[VOCAB], copy[VOCAB], values[VOCAB];
    pst_candidate scratch[VOCAB];
    uint32_t ids[VOCAB], id;
    for (int i = 0; i < VOCAB; i++)
        logits[i] = (float)log(probability[i]) + 3;
    memset(frequency, 0, VOCAB * sizeof *frequency);
    for (int i = 0; i < DRAWS; i++) {
        const uint64_t random = pst_random(7, (uint64_t)i);
        uint32_t from_all = sampling_from_all(logits, VOCAB, &sampling, random, copy);
        frequency[from_all] += 1.0 / DRAWS;
        assert_true(sampling_from_top(logits, VOCAB, &sampling, random, 0, scratch, values, ids, &id));
        assert_int_equal(id, from_all);
    }
}

/* The tokens of `kept` (a bit mask) share the draws in proportion to p^(1/temperature). */
static void expect(const double *frequency, unsigned kept, double temperature)
{
    double total = 0;
    for (int i = 0; i < VOCAB; i++)
        total += kept >> i & 1 ? pow(probability[i], 1 / temperature) : 0;
    for (int i = 0; i < VOCAB; i++) {
        double wanted = kept >> i & 1 ? pow(probability[i], 1 / temperature) / total : 0;
        /* Five standard deviations of a frequency over so many draws. */
        assert_true(fabs(frequency[i] - wanted) <= 5 * sqrt(wanted * (1 - wanted) / DRAWS) + 1e-9);
    }
}

static void test_filters(void **state)
{
    (void)state;
    double frequency[VOCAB];
    draw((pst_sampling){.temperature = 1, .top_p = 1}, frequency);
    expect(frequency, 0x3f, 1);
    draw((pst_sampling){.temperature = 0.5, .top_p = 1}, frequency);
    expect(frequency, 0x3f, 0.5);
    draw((pst_sampling){.temperature = 1, .top_p = 1, .top_k = 3}, frequency);
    expect(frequency, 1 << 1 | 1 << 3 | 1 << 5, 1);
    draw((pst_sampling){.temperature = 1, .top_p = 0.5}, frequency); /* 0.4 is not enough; with 0.3 it is */
    expect(frequency, 1 << 1 | 1 << 3, 1);
    draw((pst_sampling){.temperature = 1, .top_p = 1e-9}, frequency); /* one is always kept */
    expect(frequency, 1 << 1, 1);
    draw((pst_sampling){.temperature = 1, .top_p = 0}, frequency); /* a zeroed record: off */
    expect(frequency, 0x3f, 1);
    draw((pst_sampling){.temperature = 1, .top_p = 1, .min_p = 0.3}, frequency); /* at least 0.12 */
    expect(frequency, 1 << 1 | 1 << 3 | 1 << 5, 1);
    draw((pst_sampling){.temperature = 1, .top_k = 4, .top_p = 0.9, .min_p = 0.5}, frequency);
    expect(frequency, 1 << 1 | 1 << 3, 1);
}

static void test_greedy(void **state)
{
    (void)state;
    pst_sample_scratch scratch;
    const pst_sampling sampling = {.temperature = 0, .top_p = 1};
    assert_int_equal(pst_sample_all((float[]){1, 5, 5, 2}, 4, &sampling, 1, &scratch), 1);
    assert_int_equal(pst_sample_all((float[]){-1, -INFINITY, -0.5f, -2}, 4, &sampling, 1, &scratch), 2);
    assert_int_equal(pst_sample_needs(&sampling, 4), 1);
    uint32_t id;
    assert_true(pst_sample_top((float[]){5}, (uint32_t[]){77}, NAN, 100, &sampling, 1, &scratch, &id));
    assert_int_equal(id, 77);
}

static void test_needs(void **state)
{
    (void)state;
    pst_sampling sampling = {.temperature = 1, .top_k = 50};
    const uint32_t vocab = 128256;
    assert_in_range(pst_sample_needs(&sampling, vocab), 51, 64);
    assert_int_equal(pst_sample_needs(&sampling, 40), 40);
    sampling.top_k = 1023;
    assert_int_equal(pst_sample_needs(&sampling, vocab), 1024);
    assert_int_equal(pst_sample_needs(&sampling, 1000), 1000);
    sampling.top_k = 1024; /* which comes 1025th? */
    assert_int_equal(pst_sample_needs(&sampling, vocab), 0);
    assert_int_equal(pst_sample_needs(&sampling, 1024), 1024);
    double factor;
    assert_false(pst_sample_needs_sum(&sampling, &factor));
    sampling.top_k = 0;
    assert_in_range(pst_sample_needs(&sampling, vocab), 100, 1024);
    sampling.temperature = 0.5;
    assert_true(pst_sample_needs_sum(&sampling, &factor));
    assert_true(factor == 2);
    sampling.temperature = 0;
    assert_false(pst_sample_needs_sum(&sampling, &factor));
}

/* Equals beyond what is given may have lower ids, so all are asked for; where they cannot be chosen, they are not. */
static void test_equals_at_the_end(void **state)
{
    (void)state;
    pst_sample_scratch scratch;
    float logits[100];
    uint32_t ids[100], id;
    for (uint32_t i = 0; i < 100; i++) {
        logits[i] = 1;
        ids[i] = i;
    }
    pst_sampling sampling = {.temperature = 1, .top_k = 5};
    assert_false(pst_sample_top(logits, ids, NAN, 100, &sampling, 1, &scratch, &id));
    for (uint32_t i = 0; i < 5; i++)
        logits[i] = 2;
    assert_true(pst_sample_top(logits, ids, NAN, 100, &sampling, 1, &scratch, &id));
    sampling.temperature = 1e9; /* then all weigh the same */
    assert_false(pst_sample_top(logits, ids, NAN, 100, &sampling, 1, &scratch, &id));
    sampling.temperature = 1e-3; /* then the others weigh nothing */
    assert_true(pst_sample_top(logits, ids, NAN, 100, &sampling, 1, &scratch, &id));
}

/* Without top-k the total decides; what it is not known to a digit for may be known well enough. */
static void test_total(void **state)
{
    (void)state;
    enum { MANY = 5000 };
    static float logits[MANY], copy[MANY], values[PST_TOP_MOST];
    static uint32_t ids[PST_TOP_MOST];
    static pst_candidate scratch[MANY];
    uint32_t id, enough = 0;
    for (uint32_t i = 0; i < MANY; i++)
        logits[i] = -3 * logf((float)(i * 7 % MANY) + 1); /* of a steep tail, which holds little */
    const pst_sampling nucleus = {.temperature = 1.2, .top_p = 0.95}, tail = {.temperature = 1.2, .min_p = 0.001};
    for (uint64_t n = 0; n < 200; n++) {
        for (int i = 0; i < 2; i++) {
            const pst_sampling *sampling = i == 0 ? &nucleus : &tail;
            const double wrong = n % 2 ? 1 : -1;
            const bool is_enough =
                sampling_from_top(logits, MANY, sampling, pst_random(5, n), wrong, scratch, values, ids, &id);
            enough += is_enough;
            if (is_enough)
                assert_int_equal(id, sampling_from_all(logits, MANY, sampling, pst_random(5, n), copy));
        }
    }
    assert_true(enough >= 390);
    const pst_sampling all = {.temperature = 1};
    assert_false(pst_sample_top(values, ids, NAN, MANY, &all, UINT64_MAX / 2, &(pst_sample_scratch){0}, &id));
    assert_false(pst_sample_top(values, ids, INFINITY, MANY, &all, 0, &(pst_sample_scratch){0}, &id));
}

static void test_strange_logits(void **state)
{
    (void)state;
    assert_false(pst_logits_are_usable((float[]){1, NAN, 2, 3}, 4));
    assert_false(pst_logits_are_usable((float[]){1, INFINITY, 2, 3}, 4));
    assert_false(pst_logits_are_usable((float[]){-INFINITY, -INFINITY}, 2));
    const float one[] = {-INFINITY, 3, -INFINITY, -INFINITY};
    assert_true(pst_logits_are_usable(one, 4));
    float copy[4];
    pst_sampling sampling = {.temperature = 1, .top_p = 0.9};
    for (uint64_t n = 0; n < 100; n++)
        assert_int_equal(sampling_from_all(one, 4, &sampling, pst_random(1, n), copy), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_filters),
                                       cmocka_unit_test(test_greedy),
                                       cmocka_unit_test(test_needs),
                                       cmocka_unit_test(test_total),
                                       cmocka_unit_test(test_equals_at_the_end),
                                       cmocka_unit_test(test_strange_logits)};
    return cmocka_run_group_tests_name("sampling", tests, NULL, NULL);
}
