/* SPDX-License-Identifier: Apache-2.0 */
/* Where everything would go: the plan that a session makes, with an accelerator or without. */
#include <string.h>

#include "base/error.h"
#include "jobs/predict_internal.h"

static const uint64_t USUAL_PROCESS_BYTES = 24ull
                                            << 20; /* the program with a tokenizer, before a session has its memory */
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
                                 .expert_cache_bytes = o->expert_cache_bytes,
                                 .device_memory_bytes = o->device_memory_bytes,
                                 .requests_only = true,
                                 .kv_offload = o->kv_offload,
                                 .kv_folder = o->kv_folder};
}

static double gathered_row_bytes(const pst_program *program)
{
    const double block = 4096; /* a row lies anywhere: reads are cut at blocks */
    double sum = 0;
    for (uint32_t s = 0; s < program->gathered_stages; s++)
        sum += (double)program->stages[s].tensors[0].row_bytes + block;
    return sum;
}

static void place(const pst_planned_model *m, const pst_plan_request *request, const pst_kv_memory *cache,
                  pst_plan *plan, pst_placed *placed, pst_prediction *out)
{
    bool embedding_stays = true;
    out->disk_bytes = 0;
    for (uint32_t i = 0; i < plan->layout.part_count; i++) {
        const pst_part *part = &plan->layout.parts[i];
        bool is_gathered = m->program->stages[part->stage].gathered;
        if (is_gathered)
            embedding_stays = embedding_stays && plan->places[i] == PST_PLACE_HOST;
        bool is_heads = is_gathered && part->stage == 0 && m->t->tied_head; /* counted there */
        if (plan->places[i] == PST_PLACE_DISK && !is_heads)
            out->disk_bytes += part->weight_bytes;
    }
    placed->plan = plan;
    placed->rows_per_pass = plan->rows_per_pass;
    placed->gathered_row_bytes = embedding_stays ? 0 : gathered_row_bytes(m->program);
    out->host = (pst_predicted_tier){
        .budget = request->budget_bytes,
        .weights = plan->resident_memory_bytes,
        .kv = cache->kv_bytes,
        .activations = request->fixed_bytes - cache->kv_bytes + plan->rows_per_pass * request->row_bytes,
        .ring = plan->slot_memory_bytes,
        .tables = plan->table_bytes,
        .process = request->process_bytes,
        .total = plan->total_bytes,
    };
    if (request->device_budget_bytes > 0)
        out->device = (pst_predicted_tier){
            .budget = request->device_budget_bytes,
            .weights = plan->device_resident_memory_bytes,
            .kv = cache->device_kv_bytes,
            .activations =
                request->device_fixed_bytes - cache->device_kv_bytes + plan->rows_per_pass * request->device_row_bytes,
            .ring = plan->device_slots * plan->device_slot_bytes,
            .total = plan->device_total_bytes,
        };
    out->streamed_bytes = plan->streamed_bytes;
    out->link_bytes = plan->link_bytes;
    out->slots = plan->slots;
    out->slot_bytes = plan->slot_bytes;
    out->parts = plan->layout.part_count;
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
    pst_forward_config config = {.transformer = m->t, .program = m->program, .apart = o->device_memory_bytes > 0};
    pst_plan_request request;
    pst_planned_cache planned;
    uint64_t process = o->process_bytes ? o->process_bytes : USUAL_PROCESS_BYTES;
    PST_TRY(pst_session_plan(&options, process, &config, &request, &planned, plan, err));
    const pst_kv_memory cache = planned.memory;
    uint64_t whole = cache.kv_bytes > 0 ? cache.kv_bytes : cache.device_kv_bytes; /* else a window */
    whole = cache.disk_bytes > 0 ? cache.disk_bytes : whole;
    *placed = (pst_placed){.options = o, .model = m, .batch = batch, .cache = planned.config};
    pst_cost_of(m->t, m->program, &placed->cost);
    *out = (pst_prediction){.family = m->t->family->name,
                            .parameters = m->program->parameters,
                            .active_parameters = (uint64_t)pst_cost_active_parameters(&placed->cost),
                            .weight_bytes = m->program->weight_bytes,
                            .kv_token_bytes = whole / batch / options.max_tokens,
                            .layers = m->t->layers,
                            .experts = m->t->experts,
                            .experts_per_token = m->t->experts ? m->t->experts_per_token : 0,
                            .batch = batch,
                            .prompt_tokens = o->prompt_tokens,
                            .new_tokens = o->new_tokens,
                            .kv_bits = pst_kv_bits(config.kv_type),
                            .quant_bits = o->quant_bits,
                            .kv_disk_bytes = cache.disk_bytes};
    memcpy(out->model, m->name, sizeof out->model);
    place(m, &request, &cache, plan, placed, out);
    return 0;
}
