/* SPDX-License-Identifier: Apache-2.0 */
/* pst_predict: the model, the batch, and what one thing changed would give. */
#include <errno.h>
#include <math.h>
#include <string.h>

#include "base/error.h"
#include "jobs/predict_internal.h"

enum { MAX_BATCH = 1 << 16 };

int pst_predict_batch(const pst_predict_options *options, const pst_planned_model *model, uint32_t batch,
                      pst_prediction *out, pst_error *err)
{
    pst_plan plan = {0};
    pst_placed placed;
    int status = pst_predict_place(options, model, batch, &plan, &placed, out, err);
    if (status >= 0)
        status = pst_predict_times(&placed, out, err);
    pst_plan_destroy(&plan);
    return status;
}

/* ---- the batch ---- */

/* What counts: a job of as many sequences as are in flight ends with them; a longer one goes on. */
static double job_rate(const pst_predict_options *o, const pst_prediction *p)
{
    return o->max_batch != 0 && p->batch >= o->max_batch ? p->tokens_per_second : p->steady_tokens_per_second;
}

int pst_predict_choose(const pst_predict_options *options, const pst_planned_model *model, pst_prediction *out,
                       pst_error *err)
{
    const double enough = 0.98;
    enum { CANDIDATES = 20 };
    pst_prediction found[CANDIDATES];
    uint32_t most = options->max_batch && options->max_batch < MAX_BATCH ? options->max_batch : MAX_BATCH;
    uint32_t count = 0, batch = 1;
    double best = 0;
    for (;;) {
        int status = pst_predict_batch(options, model, batch, &found[count], err);
        if (status < 0 && (count == 0 || status != PST_E_BUDGET))
            return status;
        if (status < 0)
            break;
        double rate = job_rate(options, &found[count]);
        best = rate > best ? rate : best;
        count++;
        if (batch == most || count == CANDIDATES)
            break;
        batch = batch > most / 2 ? most : batch * 2;
    }
    uint32_t chosen = 0;
    while (chosen + 1 < count && job_rate(options, &found[chosen]) < enough * best)
        chosen++;
    *out = found[chosen];
    return 0;
}

/* ---- advice ---- */

typedef struct trial {
    pst_advice_kind kind;
    pst_predict_options options;
    uint64_t amount;
    uint32_t batch;
} trial;

/* Predicts with one thing changed and enters it if it pays. A change that does not fit, or that the model cannot have, is
 * none. */
static int try_change(const pst_planned_model *model, const trial *t, pst_prediction *out, pst_error *err)
{
    const double worth_telling = 1.02;
    pst_prediction changed;
    pst_planned_model converted = {0};
    pst_error unused;
    int status = 0;
    if (t->kind == PST_ADVICE_QUANT_8 || t->kind == PST_ADVICE_QUANT_4)
        status = pst_planned_model_open(&t->options, t->options.quant_bits, &converted, &unused);
    if (status >= 0)
        status = pst_predict_batch(&t->options, converted.program ? &converted : model, t->batch, &changed, &unused);
    pst_planned_model_close(&converted);
    if (status == -ENOMEM)
        return pst_fail(err, status, NULL, "%s", unused.message);
    if (status < 0 || out->tokens_per_second <= 0)
        return 0;
    double gain = changed.tokens_per_second / out->tokens_per_second;
    if (gain < worth_telling)
        return 0;
    pst_advice entry = {t->kind, t->amount, changed.tokens_per_second, gain};
    for (uint32_t i = 0; i < out->advice_count; i++) /* of one kind the best alone */
        if (out->advice[i].kind == t->kind) {
            if (out->advice[i].gain < gain)
                out->advice[i] = entry;
            return 0;
        }
    out->advice[out->advice_count++] = entry;
    return 0;
}

static int try_all(const pst_predict_options *o, const pst_planned_model *model, pst_prediction *out, pst_error *err)
{
    trial t = {PST_ADVICE_HOST_MEMORY, *o, out->host.budget * 2, out->batch};
    t.options.host_memory_bytes = t.amount;
    PST_TRY(try_change(model, &t, out, err));
    t = (trial){PST_ADVICE_DEVICE_MEMORY, *o, o->device_memory_bytes * 2, out->batch};
    t.options.device_memory_bytes *= 2;
    if (o->device_memory_bytes > 0)
        PST_TRY(try_change(model, &t, out, err));
    t = (trial){PST_ADVICE_DRIVE, *o, 0, out->batch};
    t.options.disk_bytes_per_second *= 2;
    PST_TRY(try_change(model, &t, out, err));
    t = (trial){PST_ADVICE_LINK, *o, 0, out->batch};
    t.options.link_bytes_per_second *= 2;
    PST_TRY(try_change(model, &t, out, err));
    t = (trial){PST_ADVICE_COMPUTE, *o, 0, out->batch};
    t.options.operations_per_second *= 2;
    t.options.decode_operations_per_second *= 2;
    PST_TRY(try_change(model, &t, out, err));
    for (uint64_t batch = 2ull * out->batch; batch <= 16ull * out->batch && batch <= MAX_BATCH; batch *= 2) {
        t = (trial){PST_ADVICE_BATCH, *o, batch, (uint32_t)batch};
        /* The rate with few rows was that of the batch; with more rows it is between it and that of many. */
        PST_TRY(try_change(model, &t, out, err));
    }
    for (uint32_t bits = 8; bits >= 4; bits /= 2) {
        t = (trial){bits == 8 ? PST_ADVICE_QUANT_8 : PST_ADVICE_QUANT_4, *o, bits, out->batch};
        t.options.quant_bits = bits;
        if (o->quant_bits == 0 || o->quant_bits > bits)
            PST_TRY(try_change(model, &t, out, err));
    }
    t = (trial){PST_ADVICE_KV_MEMORY, *o, 0, out->batch};
    t.options.kv_folder = NULL;
    if (o->kv_folder != NULL)
        PST_TRY(try_change(model, &t, out, err));
    t = (trial){PST_ADVICE_KV_8, *o, 8, out->batch};
    t.options.kv_bits = 8;
    return out->kv_bits > 8 ? try_change(model, &t, out, err) : 0;
}

int pst_predict_advise(const pst_predict_options *options, const pst_planned_model *model, pst_prediction *out,
                       pst_error *err)
{
    PST_TRY(try_all(options, model, out, err));
    for (uint32_t i = 1; i < out->advice_count; i++) { /* best first */
        pst_advice entry = out->advice[i];
        uint32_t at = i;
        for (; at > 0 && out->advice[at - 1].gain < entry.gain; at--)
            out->advice[at] = out->advice[at - 1];
        out->advice[at] = entry;
    }
    return 0;
}

const char *pst_advice_text(pst_advice_kind kind)
{
    switch (kind) {
    case PST_ADVICE_HOST_MEMORY: return "twice the host memory";
    case PST_ADVICE_DEVICE_MEMORY: return "twice the device memory";
    case PST_ADVICE_DRIVE: return "a second drive";
    case PST_ADVICE_LINK: return "twice the link";
    case PST_ADVICE_COMPUTE: return "twice the compute rate";
    case PST_ADVICE_BATCH: return "more sequences at once";
    case PST_ADVICE_QUANT_8: return "8-bit weights";
    case PST_ADVICE_QUANT_4: return "4-bit weights";
    case PST_ADVICE_KV_MEMORY: return "keys and values in memory";
    case PST_ADVICE_KV_8: return "an 8-bit cache of keys and values";
    default: return "?";
    }
}

/* ---- the whole ---- */

static int check_rates(const pst_predict_options *o, pst_error *err)
{
    const double rates[] = {o->disk_bytes_per_second, o->link_bytes_per_second, o->operations_per_second,
                            o->decode_operations_per_second};
    for (size_t i = 0; i < sizeof rates / sizeof rates[0]; i++)
        if (!isfinite(rates[i]) || rates[i] < 0)
            return pst_fail(err, PST_E_USAGE, NULL, "a rate of %g", rates[i]);
    if (!(o->operations_per_second > 0) || !(o->disk_bytes_per_second > 0))
        return pst_fail(err, PST_E_USAGE, NULL, "a prediction needs the drive's bandwidth and the rate of computing");
    if (o->device_memory_bytes > 0 && !(o->link_bytes_per_second > 0))
        return pst_fail(err, PST_E_USAGE, NULL, "a device needs the bandwidth of its link");
    return 0;
}

static int check_options(const pst_predict_options *given, pst_predict_options *o, pst_error *err)
{
    if (given == NULL || given->struct_size != sizeof *o)
        return pst_fail(err, PST_E_USAGE, NULL, "a prediction needs options of this version");
    *o = *given;
    if (o->model == NULL || o->prompt_tokens == 0 || o->new_tokens == 0)
        return pst_fail(err, PST_E_USAGE, NULL, "a prediction needs a model, and prompts and answers of some tokens");
    if (o->batch > MAX_BATCH || o->prompt_tokens > UINT32_MAX / 2 || o->new_tokens > UINT32_MAX / 2)
        return pst_fail(err, PST_E_USAGE, NULL, "%u sequences of %u and %u tokens; %d sequences are the most", o->batch,
                        o->prompt_tokens, o->new_tokens, MAX_BATCH);
    if (o->quant_bits != 0 && o->quant_bits != 4 && o->quant_bits != 8 && o->quant_bits != 16)
        return pst_fail(err, PST_E_USAGE, NULL, "weights of %u bits: 16, 8 and 4 are there", o->quant_bits);
    if (o->quant_group_size % 2 != 0 || o->quant_group_size > 4096)
        return pst_fail(err, PST_E_USAGE, NULL, "groups of %u weights; they must be even and at most 4096",
                        o->quant_group_size);
    if (o->kv_bits != 0 && o->kv_bits != 4 && o->kv_bits != 8 && o->kv_bits != 16 && o->kv_bits != 32)
        return pst_fail(err, PST_E_USAGE, NULL, "a KV cache of %u bits: 32, 16, 8 and 4 are there", o->kv_bits);
    if (o->resident_set && !(o->resident_share <= 1))
        return pst_fail(err, PST_E_USAGE, NULL, "a resident share of %g", o->resident_share);
    return check_rates(o, err);
}

int pst_predict(const pst_predict_options *options, pst_prediction *out, pst_error *err)
{
    pst_predict_options o;
    pst_planned_model model;
    pst_prediction made;
    PST_TRY(check_options(options, &o, err));
    PST_TRY(pst_planned_model_open(&o, o.quant_bits, &model, err));
    int status =
        o.batch ? pst_predict_batch(&o, &model, o.batch, &made, err) : pst_predict_choose(&o, &model, &made, err);
    if (status >= 0)
        status = pst_predict_advise(&o, &model, &made, err);
    pst_planned_model_close(&model);
    PST_TRY(status);
    *out = made;
    return 0;
}
