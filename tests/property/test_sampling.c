/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tokens of whole passes, and one by one, against the plain way to choose them (support/sampling.h): random logits with equals,
 * infinities and values far apart, every setting, vocabularies below and above what a device's `top` gives; rows with
 * different settings side by side, on pools of several threads. What cannot be used is refused, whatever its neighbours are.
 * Log-probabilities of what was chosen, and of the likeliest, against sums in float64.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "base/heap.h"
#include "base/number.h"
#include "device/fault.h"
#include "infer/choose.h"
#include "infer/probe.h"
#include "nn/forward_internal.h"
#include "support/random.h"
#include "support/sampling.h"

enum { MOST_VOCAB = 3000 };

static float logits[MOST_VOCAB], copy[MOST_VOCAB], values[PST_TOP_MOST];
static uint32_t ids[PST_TOP_MOST];
static pst_candidate scratch[MOST_VOCAB];

static double random_unit(void)
{
    return (double)random_below(UINT64_C(1) << 53) * 0x1p-53;
}

/* Usable logits of some kind. */
static void deal_logits(float *out, uint32_t vocab)
{
    static const double scales[] = {1e-6, 0.01, 1, 5, 30, 1e4, 1e38};
    const double scale = scales[random_below(7)];
    const uint64_t kind = random_below(5), few = 1 + random_below(40);
    for (uint32_t i = 0; i < vocab; i++) {
        double x = (random_unit() + random_unit() + random_unit() - 1.5) * scale;
        x = kind == 0 ? (double)random_below(few) * scale / 20 : x;    /* equals */
        x = kind == 1 && random_below(3) > 0 ? (double)-INFINITY : x;  /* forbidden ones */
        x = kind == 2 ? 100 + (double)random_below(few) * 0x1p-17 : x; /* neighbours in float32 */
        x = kind == 3 && random_below(50) == 0 ? x + 10 * scale : x;   /* a few that stand out */
        out[i] = (float)fmin(fmax(x, (double)-INFINITY), 3e38);
    }
    out[random_below(vocab)] = (float)(scale / 3);
}

static pst_sampling deal_sampling(uint32_t vocab)
{
    static const double temperatures[] = {1, 0.7, 1.5, 0.1, 1e-3, 1e-300, 5e-324, 100, 1e6, 1e300, (double)INFINITY};
    pst_sampling s = {.temperature = random_below(10) ? temperatures[random_below(11)] : random_unit() * 3};
    s.temperature = random_below(12) == 0 ? 0 : s.temperature;
    const uint64_t kind = random_below(8);
    s.top_k = kind == 0 || kind == 7 ? 0 : kind == 1 ? 1 : (uint32_t)(1 + random_below(kind < 5 ? 60 : vocab + 10));
    s.top_k = kind == 2 ? (uint32_t)(1015 + random_below(20)) : s.top_k;
    s.top_p = random_below(3) == 0 ? 1 : random_unit();
    s.top_p = random_below(6) == 0   ? 0.5
              : random_below(8) == 0 ? 0
                                     : s.top_p; /* halves of equals are sums to the bit */
    s.min_p = random_below(2) == 0 ? 0 : random_below(8) == 0 ? 1 : random_unit() * random_unit();
    return s;
}

static void fail_choice(const pst_sampling *s, uint32_t vocab, const char *how, uint32_t got, uint32_t expected)
{
    fail_msg("%u tokens, temperature %g, top-k %u, top-p %.17g, min-p %.17g, from %s: %u instead of %u", vocab,
             s->temperature, s->top_k, s->top_p, s->min_p, how, got, expected);
}

static void test_one_by_one(void **state)
{
    (void)state;
    random_start("sampling one by one");
    uint32_t from_top = 0, from_sum = 0, not_enough = 0;
    for (int round = 0; round < 1500; round++) {
        const uint32_t vocab = (uint32_t)(1 + random_below(random_below(3) ? 200 : MOST_VOCAB));
        deal_logits(logits, vocab);
        assert_true(pst_logits_are_usable(logits, vocab));
        for (int i = 0; i < 4; i++) {
            const pst_sampling s = deal_sampling(vocab);
            uint64_t random = random_below(8) ? random_below(UINT64_MAX) : 0;
            uint32_t expected = sampling_plain(logits, vocab, &s, random, scratch);
            uint32_t got = sampling_from_all(logits, vocab, &s, random, copy);
            if (got != expected)
                fail_choice(&s, vocab, "all", got, expected);
            /* Without top-k both ways have exact sums; with it, this one has those of the plain way. Only where the neighbours
             * are less than sums' rounding does it matter. */
            random = random_below(8) ? random : UINT64_MAX;
            expected = s.top_k > 0 ? sampling_plain(logits, vocab, &s, random, scratch)
                                   : sampling_from_all(logits, vocab, &s, random, copy);
            const double wrong = 2 * random_unit() - 1;
            const bool is_partial = s.top_k == 0 && pst_sample_needs(&s, vocab) < vocab;
            if (sampling_from_top(logits, vocab, &s, random, wrong, scratch, values, ids, &got)) {
                from_top++;
                from_sum += is_partial;
                if (got != expected)
                    fail_choice(&s, vocab, "the largest", got, expected);
            } else {
                not_enough += pst_sample_needs(&s, vocab) > 0;
            }
        }
    }
    printf("%u from the largest, %u of them with a sum of all; %u for which that was not enough\n", from_top, from_sum,
           not_enough);
    assert_true(from_top > 1000 && from_sum > 20 && not_enough > 50);
}

/* ---- passes ---- */

enum { ROWS = 60, PADDING = 5 };

/* The rows of a pass, some of them with a choice to make. */
typedef struct pass {
    uint32_t vocab, rows, count;
    float *values; /* rows x (vocab + PADDING) */
    pst_sampling sampling[ROWS];
    pst_choice choices[ROWS], expected[ROWS];
} pass;

static void deal_pass(pass *p)
{
    *p = (pass){.vocab = (uint32_t)(1 + random_below(random_below(2) ? 300 : MOST_VOCAB)),
                .rows = (uint32_t)(1 + random_below(ROWS))};
    const size_t stride = p->vocab + PADDING;
    p->values = calloc(p->rows, stride * sizeof *p->values);
    assert_non_null(p->values);
    const uint64_t gaps = random_below(3), sort = random_below(4);
    for (uint32_t r = 0; r < p->rows; r++) {
        float *row = p->values + r * stride;
        deal_logits(row, p->vocab);
        for (uint32_t i = 0; i < PADDING; i++)
            row[p->vocab + i] = NAN;
        if (random_below(6) == 0)
            row[random_below(p->vocab)] = random_below(2) ? NAN : INFINITY;
        for (uint32_t i = 0; i < p->vocab && random_below(12) == 0; i++)
            row[i] = -INFINITY;
        if (gaps == 0 && random_below(3) == 0)
            continue;
        pst_sampling *s = &p->sampling[p->count];
        *s = deal_sampling(p->vocab);
        s->temperature = sort == 0 ? 0 : s->temperature; /* all greedy, or none but such as need all */
        s->top_k = sort == 1 ? 0 : s->top_k;
        const uint64_t random = random_below(UINT64_MAX);
        pst_choice *expected = &p->expected[p->count];
        p->choices[p->count] = (pst_choice){.row = r, .sampling = s, .random = random};
        *expected = (pst_choice){.usable = pst_logits_are_usable(row, p->vocab)};
        expected->id = expected->usable ? sampling_plain(row, p->vocab, s, random, scratch) : 0;
        p->count++;
    }
}

/* What is left of a pass on this device, as the chooser sees it. */
static void make_forward(pst_forward *f, const pass *p, pst_device *device)
{
    const size_t stride = p->vocab + PADDING, bytes = p->rows * stride * sizeof(float);
    *f = (pst_forward){.device = device, .apart = !device->ops->is_host, .logit_rows = p->rows};
    f->fetched_rows = (uint32_t)(1 + random_below(p->rows));
    f->fetched_bytes = f->fetched_rows * stride * sizeof(float);
    pst_matrix *made = &f->buffers[PST_NN_LOGITS];
    *made = (pst_matrix){.type = PST_F32, .columns = p->vocab, .stride = stride};
    assert_int_equal(device->ops->allocate(device, PST_MEMORY_DEVICE, bytes, &made->data), 0);
    assert_int_equal(device->ops->allocate(device, PST_MEMORY_HOST, f->fetched_bytes, &f->fetched), 0);
    assert_int_equal(device->ops->copy(device, NULL, made->data, p->values, bytes), 0);
}

static void free_forward(pst_forward *f, const pass *p)
{
    const uint64_t bytes = p->rows * (p->vocab + PADDING) * sizeof(float);
    f->device->ops->release(f->device, PST_MEMORY_DEVICE, f->buffers[PST_NN_LOGITS].data, bytes);
    f->device->ops->release(f->device, PST_MEMORY_HOST, f->fetched, f->fetched_bytes);
}

/* ---- log-probabilities ---- */

/* log(sum of exp) of a usable row. */
static double plain_log_sum(const float *row, uint32_t vocab)
{
    double sum = 0, largest = (double)-INFINITY;
    for (uint32_t i = 0; i < vocab; i++)
        largest = fmax(largest, (double)row[i]);
    for (uint32_t i = 0; i < vocab; i++)
        sum += exp((double)row[i] - largest);
    return largest + log(sum);
}

static void check_value(const char *what, const pst_probe *probe, double got, double expected)
{
    /* The sum is right to 2^-24 of itself, its logarithm so much off; what it is added to may round more. */
    const double allowed = 0x1p-23 + fabs(expected) * 0x1p-50;
    if (!(fabs(got - expected) <= allowed) && !(isinf(expected) && got == expected))
        fail_msg("%s, row %u, id %u: %.17g instead of %.17g", what, probe->row, probe->id, got, expected);
}

static void check_probe(const pass *p, const pst_probe *probe, const char *what)
{
    const float *row = p->values + probe->row * (size_t)(p->vocab + PADDING);
    if (!pst_logits_are_usable(row, p->vocab)) {
        assert_true(isnan(*probe->value));
        return;
    }
    const double sum = plain_log_sum(row, p->vocab);
    check_value(what, probe, *probe->value, (double)row[probe->id] - sum);
    for (uint32_t i = 0; i < p->vocab; i++)
        scratch[i] = (pst_candidate){row[i], i};
    qsort(scratch, p->vocab, sizeof *scratch, sampling_falling);
    for (uint32_t n = 0; n < probe->top; n++) {
        assert_int_equal(probe->ids[n], scratch[n].id);
        check_value(what, probe, probe->values[n], (double)scratch[n].value - sum);
    }
}

enum { MOST_TOP = 7, MOST_PROBES = 3 * ROWS };

/* Probes of some rows, several of a row at times, after choices were made whose rows are kept. */
static void check_probes(const pass *p, pst_forward *forward, const pst_choice *choices, const char *what)
{
    static pst_probe probes[MOST_PROBES];
    static double found[MOST_PROBES], tops[MOST_PROBES][MOST_TOP];
    static uint32_t top_ids[MOST_PROBES][MOST_TOP];
    const pst_matrix made = pst_forward_logits(forward);
    pst_prober *prober;
    pst_error err;
    uint32_t count = 0;
    assert_int_equal(pst_prober_create(forward->device, MOST_TOP, &prober, &err), 0);
    pst_prober_begin(prober, &made);
    for (uint32_t i = 0; i < p->count; i++) {
        if (!choices[i].keep)
            continue;
        for (uint64_t n = 1 + random_below(3); n > 0; n--, count++) {
            probes[count] =
                (pst_probe){.row = choices[i].row,
                            .id = choices[i].usable && n == 1 ? choices[i].id : (uint32_t)random_below(p->vocab),
                            .top = (uint32_t)random_below(pst_min(MOST_TOP, p->vocab) + 1),
                            .value = &found[count],
                            .values = tops[count],
                            .ids = top_ids[count]};
            assert_int_equal(pst_prober_ask(prober, &probes[count], &err), 0);
        }
    }
    if (pst_prober_end(prober, &err) < 0)
        fail_msg("%s", err.message);
    for (uint32_t i = 0; i < count; i++)
        check_probe(p, &probes[i], what);
    pst_prober_destroy(prober);
}

/* One device's choices. */
static void check_pass(const pass *p, pst_device *device, pst_pool *pool, const char *what)
{
    static pst_forward forward;
    make_forward(&forward, p, device);
    pst_chooser_config config = {.device = device,
                                 .pool = pool,
                                 .max_rows = p->count ? p->count : 1,
                                 .vocab = p->vocab,
                                 .fetched_rows = forward.fetched_rows,
                                 .keeps = true};
    pst_chooser *chooser;
    pst_error err;
    assert_int_equal(pst_chooser_create(&config, &chooser, &err), 0);
    for (int again = 0; again < 1 + forward.apart; again++) { /* the host's logits are used up */
        pst_choice *choices = pst_chooser_choices(chooser);
        memcpy(choices, p->choices, p->count * sizeof *choices);
        for (uint32_t i = 0; i < p->count; i++)
            choices[i].keep = random_below(2) == 0;
        if (pst_chooser_run(chooser, &forward, p->count, &err) < 0)
            fail_msg("%s", err.message);
        for (uint32_t i = 0; i < p->count; i++) {
            if (choices[i].usable != p->expected[i].usable)
                fail_msg("%s: row %u is %s", what, choices[i].row, choices[i].usable ? "usable" : "not usable");
            if (choices[i].usable && choices[i].id != p->expected[i].id)
                fail_choice(&p->sampling[i], p->vocab, what, choices[i].id, p->expected[i].id);
        }
        check_probes(p, &forward, choices, what);
    }
    pst_chooser_destroy(chooser);
    free_forward(&forward, p);
}

static pst_device *make_apart(pst_pool *pool, pst_device_fault *fault)
{
    pst_device *inner, *device;
    assert_int_equal(pst_device_host_create(pool, NULL, &inner, NULL), 0);
    *fault = (pst_device_fault){.separate = true, .late = random_below(2) == 0};
    assert_int_equal(pst_device_fault_create(fault, inner, &device, NULL), 0);
    return device;
}

static void test_passes(void **state)
{
    (void)state;
    random_start("sampling of passes");
    for (int round = 0; round < 60; round++) {
        pst_pool *pool;
        pst_device *host, *apart;
        pst_device_fault fault;
        pass p;
        assert_int_equal(pst_pool_create(1 + round % 3, &pool, NULL), 0);
        assert_int_equal(pst_device_host_create(pool, NULL, &host, NULL), 0);
        apart = make_apart(pool, &fault);
        deal_pass(&p);
        check_pass(&p, host, pool, "the host's pass");
        check_pass(&p, apart, pool, "a device's pass");
        if (fault.misuses > 0)
            fail_msg("%s", fault.misuse);
        assert_int_equal(pst_device_fault_held(&fault), 0);
        free(p.values);
        pst_device_destroy(apart);
        pst_device_destroy(host);
        pst_pool_destroy(pool);
    }
}

/* Memory is what was said, and what fails of it leaves nothing. */
static void test_memory(void **state)
{
    (void)state;
    random_start("sampling in memory");
    pst_pool *pool;
    pst_device_fault fault;
    assert_int_equal(pst_pool_create(2, &pool, NULL), 0);
    pst_device *device = make_apart(pool, &fault);
    pst_chooser_config config = {.device = device, .pool = pool, .max_rows = 300, .vocab = 50000, .fetched_rows = 1};
    pst_chooser *chooser;
    pst_error err;
    uint64_t host_bytes, device_bytes;
    pst_chooser_measure(&config, 2, true, &host_bytes, &device_bytes);
    assert_int_equal(pst_chooser_create(&config, &chooser, &err), 0);
    assert_in_range(device_bytes, fault.peak_bytes[PST_MEMORY_DEVICE], 1 << 20);
    assert_in_range(host_bytes, fault.peak_bytes[PST_MEMORY_HOST] + 2 * sizeof(pst_sample_scratch), 1 << 20);
    pst_chooser_destroy(chooser);
    const int64_t live = pst_heap_live_count();
    int status = -1;
    for (int64_t n = 0; status < 0; n++) {
        pst_heap_fail_after(n, 0);
        status = pst_chooser_create(&config, &chooser, &err);
        pst_heap_fail_after(-1, 0);
        if (status >= 0)
            pst_chooser_destroy(chooser);
        assert_true(n < 30);
        assert_int_equal(pst_heap_live_count(), live);
    }
    for (int64_t n = 0; n < 2; n++) {
        pst_device_fault_fail(&fault, PST_DEVICE_ALLOCATE, n, 1, -ENOMEM);
        assert_true(pst_chooser_create(&config, &chooser, &err) < 0);
        assert_int_equal(pst_device_fault_held(&fault), 0);
    }
    pst_prober *prober;
    fault.peak_bytes[PST_MEMORY_DEVICE] = fault.peak_bytes[PST_MEMORY_HOST] = 0;
    pst_prober_measure(20, true, &host_bytes, &device_bytes);
    assert_int_equal(pst_prober_create(device, 20, &prober, &err), 0);
    assert_in_range(device_bytes, fault.peak_bytes[PST_MEMORY_DEVICE], 1 << 17);
    assert_in_range(host_bytes, fault.peak_bytes[PST_MEMORY_HOST], 1 << 17);
    pst_prober_destroy(prober);
    for (int64_t n = 0; n < 2; n++) {
        pst_device_fault_fail(&fault, PST_DEVICE_ALLOCATE, n, 1, -ENOMEM);
        assert_true(pst_prober_create(device, 20, &prober, &err) < 0);
        assert_int_equal(pst_device_fault_held(&fault), 0);
    }
    assert_int_equal(pst_heap_live_count(), live);
    pst_device_destroy(device);
    pst_pool_destroy(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_one_by_one), cmocka_unit_test(test_passes),
                                       cmocka_unit_test(test_memory)};
    return cmocka_run_group_tests_name("sampling", tests, NULL, NULL);
}
