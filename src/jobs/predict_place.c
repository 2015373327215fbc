/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where everything would go. Without a device it is the plan that a session makes. With one, the device holds the ring, the
 * rows of a pass, as much of the cache as is good there, and weights; the host holds the rest of the cache and further
 * weights; what is then left is read from the drive in every pass and crosses the link, as does what the host holds.
 */
#include <string.h>

#include "base/error.h"
#include "jobs/predict_internal.h"

static const uint64_t USUAL_PROCESS_BYTES = 24ull
                                            << 20; /* the program with a tokenizer, before a session has its memory */
/* On a device: slots of the ring, its size, and the share of the memory that rows of a pass may take. */
enum { DEVICE_SLOTS = 8, DEVICE_SLOT_BYTES = 64 << 20, ROWS_SHARE = 8, CACHE_STEPS = 4 };
static const uint64_t MAX_DEVICE_ROWS = 1 << 20;

static pst_session_options session_options(const pst_predict_options *o, uint32_t batch)
{
    return (pst_session_options){.struct_size = sizeof(pst_session_options),
                                 .host_memory_bytes = o->host_memory_bytes,
                                 .resident_set = o->resident_set,
                                 .resident_share = o->resident_share,
                                 .resident_bytes = o->resident_bytes,
                                 .max_sequences = batch,
                                 .max_tokens = o->prompt_tokens + o->new_tokens,
                                 .max_prompt_tokens = o->prompt_tokens,
                                 .compute_type = o->compute_type,
                                 .kv_bits = o->kv_bits,
                                 .keep_all_weights = o->keep_all_weights,
                                 .expert_cache_set = o->expert_cache_set,
                                 .expert_cache_bytes = o->expert_cache_bytes};
}

/* Weights by what a pass does with them; gathered stages aside. */
static pst_pass_bytes all_weights(const pst_program *program)
{
    pst_pass_bytes sum = {0};
    for (uint32_t s = program->gathered_stages; s < program->stage_count; s++) {
        double bytes = 0;
        for (uint32_t i = 0; i < program->stages[s].tensor_count; i++)
            bytes += (double)program->stages[s].tensors[i].tensor->bytes;
        *(program->stages[s].unit_count ? &sum.experts : &sum.always) += bytes;
    }
    return sum;
}

static double gathered_row_bytes(const pst_program *program)
{
    const double block = 4096; /* a row lies anywhere: reads are cut at blocks */
    double sum = 0;
    for (uint32_t s = 0; s < program->gathered_stages; s++)
        sum += (double)program->stages[s].tensors[0].row_bytes + block;
    return sum;
}

/* ---- the host alone ---- */

static void place_host(const pst_planned_model *m, const pst_plan_request *request, uint64_t kv_bytes, pst_plan *plan,
                       pst_placed *placed, pst_prediction *out)
{
    bool embedding_stays = true;
    for (uint32_t i = 0; i < plan->layout.part_count; i++)
        if (m->program->stages[plan->layout.parts[i].stage].gathered)
            embedding_stays = embedding_stays && plan->places[i] == PST_PLACE_HOST;
    placed->plan = plan;
    placed->rows_per_pass = plan->rows_per_pass;
    placed->gathered_row_bytes = embedding_stays ? 0 : gathered_row_bytes(m->program);
    out->host = (pst_predicted_tier){
        .budget = request->budget_bytes,
        .weights = plan->resident_memory_bytes,
        .kv = kv_bytes,
        .activations = request->fixed_bytes - kv_bytes + plan->rows_per_pass * request->row_bytes,
        .ring = plan->slot_memory_bytes,
        .tables = plan->table_bytes,
        .process = request->process_bytes,
        .total = plan->total_bytes,
    };
    out->streamed_bytes = plan->streamed_bytes;
    out->disk_bytes = m->program->weight_bytes - plan->resident_bytes;
    out->slots = plan->slots;
    out->slot_bytes = plan->slot_bytes;
    out->parts = plan->layout.part_count;
}

/* ---- with a device ---- */

/* What a placement of the cache leaves for weights. */
typedef struct split {
    double device_weights, host_weights, device_kv, host_kv;
} split;

static double least(double a, double b)
{
    return a < b ? a : b;
}

static double most(double a, double b)
{
    return a > b ? a : b;
}

/* What of `all` is not among the first `kept` bytes, when what every pass needs is kept first. */
static pst_pass_bytes beyond(pst_pass_bytes all, double kept)
{
    double rest = most(0, kept - all.always);
    return (pst_pass_bytes){most(0, all.always - kept), most(0, all.experts - rest)};
}

static double split_seconds(const pst_placed *placed, pst_pass_bytes all, const split *s)
{
    double share = pst_cost_expert_share(placed->model->t, placed->batch);
    pst_pass_bytes disk = beyond(all, s->device_weights + s->host_weights), link = beyond(all, s->device_weights);
    double disk_seconds = (disk.always + share * disk.experts) / placed->options->disk_bytes_per_second;
    double link_seconds = (link.always + share * link.experts + s->host_kv) / placed->options->link_bytes_per_second;
    return most(disk_seconds, link_seconds);
}

static int place_device(const pst_planned_model *m, const pst_plan_request *request, double kv_bytes,
                        pst_placed *placed, pst_prediction *out, pst_error *err)
{
    const pst_predict_options *o = placed->options;
    pst_pass_bytes all = all_weights(m->program);
    double whole = all.always + all.experts;
    double slot =
        most(DEVICE_SLOT_BYTES, (double)pst_layout_min_slot_bytes(m->program->stages, m->program->stage_count));
    double ring = DEVICE_SLOTS * slot, others = (double)request->fixed_bytes - kv_bytes;
    double memory = (double)o->device_memory_bytes, row = (double)request->row_bytes;
    double wanted_rows = least((double)placed->batch * o->prompt_tokens, (double)MAX_DEVICE_ROWS);
    double rows = most(placed->batch, least(wanted_rows, memory / ROWS_SHARE / row));
    double host_free = (double)request->budget_bytes - (double)request->process_bytes - ring;
    double device_free = memory - ring - others - rows * row;
    double bound = (double)request->max_resident_bytes;
    split best = {0};
    double best_seconds = -1;
    for (int step = 0; step <= CACHE_STEPS; step++) {
        split s = {.host_kv = kv_bytes * step / CACHE_STEPS};
        s.device_kv = kv_bytes - s.host_kv;
        if (s.device_kv > device_free || s.host_kv > host_free)
            continue;
        s.device_weights = least(least(whole, bound), device_free - s.device_kv);
        s.host_weights = least(least(whole, bound) - s.device_weights, host_free - s.host_kv);
        double seconds = split_seconds(placed, all, &s);
        if (best_seconds < 0 || seconds < best_seconds) {
            best_seconds = seconds;
            best = s;
        }
    }
    if (best_seconds < 0)
        return pst_fail(err, PST_E_BUDGET, NULL,
                        "%.3g GB on the device and %.3g GB on the host are too small for %u sequences: their keys and "
                        "values take %.3g GB, the ring and the rows of a pass %.3g GB",
                        memory / 1e9, (double)request->budget_bytes / 1e9, placed->batch, kv_bytes / 1e9,
                        (ring + others + rows * row) / 1e9);
    placed->rows_per_pass = (uint32_t)rows;
    placed->disk = beyond(all, best.device_weights + best.host_weights);
    placed->link = beyond(all, best.device_weights);
    placed->kv_over_link = best.host_kv;
    placed->gathered_row_bytes = placed->disk.always > 0 ? gathered_row_bytes(m->program) : 0;
    out->device = (pst_predicted_tier){.budget = o->device_memory_bytes,
                                       .weights = (uint64_t)best.device_weights,
                                       .kv = (uint64_t)best.device_kv,
                                       .activations = (uint64_t)(others + rows * row),
                                       .ring = (uint64_t)ring};
    out->device.total = out->device.weights + out->device.kv + out->device.activations + out->device.ring;
    out->host = (pst_predicted_tier){.budget = request->budget_bytes,
                                     .weights = (uint64_t)best.host_weights,
                                     .kv = (uint64_t)best.host_kv,
                                     .ring = (uint64_t)ring,
                                     .process = request->process_bytes};
    out->host.total = out->host.weights + out->host.kv + out->host.ring + out->host.process;
    out->streamed_bytes = (uint64_t)(placed->disk.always + placed->disk.experts);
    out->disk_bytes = out->streamed_bytes + (m->program->weight_bytes - (uint64_t)whole);
    out->slots = DEVICE_SLOTS;
    out->slot_bytes = (uint64_t)slot;
    return 0;
}

static int check_lengths(const pst_predict_options *o, const pst_planned_model *m, pst_error *err)
{
    uint64_t tokens = (uint64_t)o->prompt_tokens + o->new_tokens;
    if (tokens > m->t->context)
        return pst_fail(err, PST_E_USAGE, m->name, "%llu tokens do not fit the model's context of %u",
                        (unsigned long long)tokens, m->t->context);
    return 0;
}

int pst_predict_place(const pst_predict_options *o, const pst_planned_model *m, uint32_t batch, pst_plan *plan,
                      pst_placed *placed, pst_prediction *out, pst_error *err)
{
    PST_TRY(check_lengths(o, m, err));
    pst_session_options options = session_options(o, batch);
    pst_forward_config config = {.transformer = m->t, .program = m->program};
    pst_plan_request request;
    pst_kv_memory cache;
    uint64_t process = o->process_bytes ? o->process_bytes : USUAL_PROCESS_BYTES;
    PST_TRY(pst_session_request_plan(&options, process, &config, &request, &cache, err));
    *placed = (pst_placed){.options = o, .model = m, .batch = batch};
    pst_cost_of(m->t, m->program, &placed->cost);
    *out = (pst_prediction){.family = m->t->family->name,
                            .parameters = m->program->parameters,
                            .active_parameters = (uint64_t)pst_cost_active_parameters(&placed->cost),
                            .weight_bytes = m->program->weight_bytes,
                            .kv_token_bytes = cache.kv_bytes / batch / options.max_tokens,
                            .layers = m->t->layers,
                            .experts = m->t->experts,
                            .experts_per_token = m->t->experts ? m->t->experts_per_token : 0,
                            .batch = batch,
                            .prompt_tokens = o->prompt_tokens,
                            .new_tokens = o->new_tokens,
                            .kv_bits = pst_kv_bits(config.kv_type),
                            .quant_bits = o->quant_bits};
    memcpy(out->model, m->name, sizeof out->model);
    if (o->device_memory_bytes > 0)
        return place_device(m, &request, (double)cache.kv_bytes, placed, out, err);
    PST_TRY(pst_plan_create(&request, plan, err));
    place_host(m, &request, cache.kv_bytes, plan, placed, out);
    return 0;
}
