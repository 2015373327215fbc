/* SPDX-License-Identifier: Apache-2.0 */
/* See choose.h. Rows go through a chunk at a time, so that what is found of them fits a piece of memory that hardly counts. */
#include "infer/choose.h"

#include <math.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/number.h"
#include "device/device.h"
#include "nn/device_memory.h"

/* Values and ids that a chunk finds: 256 rows with top-k 200, or 64 with the most. */
enum { FOUND_MOST = 1 << 16 };

struct pst_chooser {
    pst_chooser_config config;
    bool apart;
    pst_choice *choices;         /* max_rows */
    uint32_t *open, *open_rows;  /* max_rows: choices that need all logits, and their rows */
    pst_sample_scratch *scratch; /* by thread */
    float *copies;               /* by thread a row of logits; NULL: none is kept, or the device is apart */
    uint64_t found_most;
    pst_mirror found; /* of a chunk's rows: factors, log_sum_exp, values, ids */
};

static uint64_t found_most(const pst_chooser_config *c)
{
    const uint64_t row = pst_min(PST_TOP_MOST, c->vocab);
    return pst_min(c->max_rows * row, pst_max(FOUND_MOST, c->max_rows));
}

static uint64_t found_bytes(const pst_chooser_config *c)
{
    return 2 * c->max_rows * sizeof(double) + found_most(c) * (sizeof(float) + sizeof(uint32_t));
}

void pst_chooser_measure(const pst_chooser_config *config, uint32_t threads, bool apart, uint64_t *out_host,
                         uint64_t *out_device)
{
    *out_host = config->max_rows * (sizeof(pst_choice) + 2 * sizeof(uint32_t)) + found_bytes(config) +
                threads * sizeof(pst_sample_scratch) + (apart ? PST_APART_ALIGNMENT : 0);
    *out_host += config->keeps && !apart ? (uint64_t)threads * config->vocab * sizeof(float) : 0;
    *out_device = apart ? found_bytes(config) + PST_APART_ALIGNMENT : 0;
}

int pst_chooser_create(const pst_chooser_config *config, pst_chooser **out, pst_error *err)
{
    pst_chooser *c = pst_heap_calloc(1, sizeof *c);
    if (c == NULL)
        return pst_fail_memory(err, "choosing tokens", sizeof *c);
    c->config = *config;
    c->apart = pst_nn_is_apart(config->device);
    c->found_most = found_most(config);
    c->choices = pst_heap_calloc(config->max_rows, sizeof *c->choices);
    c->open = pst_heap_calloc(config->max_rows, sizeof *c->open);
    c->open_rows = pst_heap_calloc(config->max_rows, sizeof *c->open_rows);
    c->scratch = pst_heap_calloc(pst_pool_threads(config->pool), sizeof *c->scratch);
    int status = 0;
    const bool copies = config->keeps && !c->apart;
    if (copies)
        c->copies = pst_heap_calloc(pst_pool_threads(config->pool), config->vocab * sizeof *c->copies);
    if (!c->choices || !c->open || !c->open_rows || !c->scratch || (copies && !c->copies))
        status = pst_fail_memory(err, "choosing tokens", config->max_rows * sizeof *c->choices);
    if (status >= 0)
        status = pst_mirror_create(config->device, found_bytes(config), "the largest logits", &c->found, err);
    if (status < 0) {
        pst_chooser_destroy(c);
        return status;
    }
    *out = c;
    return 0;
}

void pst_chooser_destroy(pst_chooser *c)
{
    if (c == NULL)
        return;
    pst_mirror_destroy(c->config.device, &c->found);
    pst_heap_free(c->choices);
    pst_heap_free(c->open);
    pst_heap_free(c->open_rows);
    pst_heap_free(c->scratch);
    pst_heap_free(c->copies);
    pst_heap_free(c);
}

pst_choice *pst_chooser_choices(pst_chooser *chooser)
{
    return chooser->choices;
}

static void share(const pst_chooser *c, uint32_t tasks, pst_pool_body *body, void *context)
{
    if (tasks > 1)
        pst_pool_run(c->config.pool, tasks, body, context);
    else if (tasks == 1)
        body(context, 0, 0);
}

/* ---- from the largest ---- */

/* How many of a row's logits are found for it. The host is as fast with all of them as with what stands for them. */
static uint32_t found_for(const pst_chooser *c, const pst_sampling *sampling)
{
    double factor;
    return !c->apart && pst_sample_needs_sum(sampling, &factor) ? 0 : pst_sample_needs(sampling, c->config.vocab);
}

/* Choices whose rows follow each other, and what is found of these. */
typedef struct chunk {
    const pst_chooser *chooser;
    pst_choice *choices;
    uint32_t count, most; /* found of each row */
    pst_matrix logits;    /* where the device has them */
    const double *sums;   /* NULL: the logits are at hand */
    const float *values;
    const uint32_t *ids;
} chunk;

static bool is_usable(const chunk *k, uint32_t number)
{
    const float largest = k->values[(size_t)number * k->most];
    if (k->sums != NULL)
        return isfinite(largest) && !isnan(k->sums[number]);
    return pst_logits_are_usable((const float *)k->logits.data + number * k->logits.stride,
                                 (uint32_t)k->logits.columns);
}

static void choose_from_largest(void *context, uint32_t task, uint32_t worker)
{
    const chunk *k = context;
    pst_choice *choice = &k->choices[task];
    const uint32_t vocab = (uint32_t)k->logits.columns;
    const size_t at = (size_t)task * k->most;
    if (found_for(k->chooser, choice->sampling) == 0)
        return;
    choice->usable = is_usable(k, task);
    choice->made =
        !choice->usable || pst_sample_top(k->values + at, k->ids + at, k->sums != NULL ? k->sums[task] : NAN, vocab,
                                          choice->sampling, choice->random, &k->chooser->scratch[worker], &choice->id);
}

static int find_largest(pst_chooser *c, chunk *k, pst_error *err)
{
    pst_device *device = c->config.device;
    const uint64_t sums = k->count * sizeof(double), values = 2 * sums;
    const uint64_t ids = values + (uint64_t)k->count * k->most * sizeof(float);
    const uint64_t end = ids + (uint64_t)k->count * k->most * sizeof(uint32_t);
    char *there = c->found.there, *here = c->found.host;
    double *factors = (double *)(void *)here;
    for (uint32_t i = 0; i < k->count; i++)
        if (!pst_sample_needs_sum(k->choices[i].sampling, &factors[i]))
            factors[i] = 1;
    int status = device->ops->top(device, &k->logits, k->most, (float *)(void *)(there + values),
                                  (uint32_t *)(void *)(there + ids));
    if (status >= 0 && c->apart)
        status = pst_mirror_publish(device, &c->found, 0, sums);
    if (status >= 0 && c->apart)
        status = device->ops->log_sum_exp(device, &k->logits, (const double *)(void *)there,
                                          (double *)(void *)(there + sums));
    if (status >= 0)
        status = pst_mirror_fetch(device, &c->found, sums, end - sums);
    if (status >= 0 && c->apart)
        status = device->ops->synchronize(device, NULL);
    if (status < 0)
        return pst_device_fail(err, device, status, "finding the largest logits");
    k->sums = c->apart ? (const double *)(void *)(here + sums) : NULL;
    k->values = (const float *)(void *)(here + values);
    k->ids = (const uint32_t *)(void *)(here + ids);
    return 0;
}

/* As many of the choices as a chunk may have: one at least. */
static chunk next_chunk(const pst_chooser *c, pst_choice *choices, uint32_t count)
{
    chunk k = {.chooser = c, .choices = choices};
    for (; k.count < count && choices[k.count].row == choices[0].row + k.count; k.count++) {
        const uint64_t most = pst_max(k.most, found_for(c, choices[k.count].sampling));
        if (k.count > 0 && (k.count + 1) * most > c->found_most)
            break;
        k.most = (uint32_t)most;
        choices[k.count].made = false;
    }
    return k;
}

static int choose_chunks(pst_chooser *c, const pst_matrix *logits, uint32_t count, pst_error *err)
{
    chunk k;
    for (uint32_t first = 0; first < count; first += k.count) {
        k = next_chunk(c, c->choices + first, count - first);
        if (k.most == 0)
            continue;
        k.logits = *logits;
        k.logits.rows = k.count;
        k.logits.data = (float *)logits->data + c->choices[first].row * logits->stride;
        PST_TRY(find_largest(c, &k, err));
        share(c, k.count, choose_from_largest, &k);
    }
    return 0;
}

/* ---- from all ---- */

typedef struct whole_rows {
    pst_chooser *chooser;
    uint32_t first;    /* in `open` */
    pst_matrix logits; /* fetched: a row for each from there on; else those of the pass */
} whole_rows;

static void choose_from_all(void *context, uint32_t task, uint32_t worker)
{
    const whole_rows *w = context;
    pst_chooser *c = w->chooser;
    pst_choice *choice = &c->choices[c->open[w->first + task]];
    float *logits = (float *)w->logits.data + (c->apart ? task : choice->row) * w->logits.stride;
    choice->usable = pst_logits_are_usable(logits, c->config.vocab);
    if (choice->usable && choice->keep && !c->apart) { /* what was fetched is a copy */
        float *copy = c->copies + (size_t)worker * c->config.vocab;
        logits = memcpy(copy, logits, c->config.vocab * sizeof *copy);
    }
    if (choice->usable)
        choice->id = pst_sample_all(logits, c->config.vocab, choice->sampling, choice->random, &c->scratch[worker]);
}

static int choose_rest(pst_chooser *c, pst_forward *forward, uint32_t count, pst_error *err)
{
    uint32_t open = 0;
    for (uint32_t i = 0; i < count; i++) {
        c->open[open] = i;
        c->open_rows[open] = c->choices[i].row;
        open += !c->choices[i].made;
    }
    whole_rows w = {.chooser = c, .logits = pst_forward_logits(forward)};
    for (uint32_t some; w.first < open; w.first += some) {
        some = c->apart ? (uint32_t)pst_min(open - w.first, c->config.fetched_rows) : open;
        if (c->apart)
            PST_TRY(pst_forward_fetch_logits(forward, c->open_rows + w.first, some, &w.logits, err));
        share(c, some, choose_from_all, &w);
    }
    return 0;
}

int pst_chooser_run(pst_chooser *c, pst_forward *forward, uint32_t count, pst_error *err)
{
    const pst_matrix logits = pst_forward_logits(forward);
    PST_TRY(choose_chunks(c, &logits, count, err));
    return choose_rest(c, forward, count, err);
}
