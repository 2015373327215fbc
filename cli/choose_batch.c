/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How many requests are computed at once where the user does not say. A pass over the weights serves all of them, so more
 * are better until their keys and values take the memory that weights would use better, or the processor is busy anyway:
 * what the planner's prediction weighs, with rates measured in a session that keeps no weights.
 */
#include "common.h"
#include "penstock/plan.h"

enum { USUAL = 32 }; /* worth no measuring, and never fewer where they fit */

/* Opens a session for its measurements alone. */
static int measure(cli_engine *engine, const cli_runtime *runtime, const pst_session_options *shape,
                   const cli_needs *needs, pst_error *err)
{
    cli_runtime bare = *runtime;
    pst_session_options options = *shape;
    bare.trace = NULL;
    bare.resident = (pst_option_share){.bytes = 0};
    bare.placement.cpu_offload = bare.placement.disk_offload = false;
    bare.placement.pin_memory = 0;
    options.max_sequences = USUAL;
    int status = cli_engine_start(engine, &bare, true, &options, true, needs, err);
    pst_session_close(engine->session);
    engine->session = NULL;
    return status;
}

uint32_t cli_choose_batch(cli_engine *engine, const cli_runtime *runtime, bool resident_given,
                          const pst_session_options *shape, uint64_t requests, const cli_needs *needs)
{
    pst_session_options placed = {.resident_set = resident_given,
                                  .resident_share = runtime->resident.is_share ? runtime->resident.share : -1,
                                  .resident_bytes = runtime->resident.bytes};
    pst_error unused;
    if (requests <= USUAL)
        return (uint32_t)requests;
    if (cli_place(&runtime->placement, resident_given, &placed, &unused) < 0 ||
        measure(engine, runtime, shape, needs, &unused) < 0)
        return USUAL; /* what is wrong is told when the session itself is opened */
    const pst_plan_info *plan = &engine->plan;
    const double nothing_streams = 1e9; /* then the drive does not count */
    uint32_t made = shape->max_tokens - shape->max_prompt_tokens;
    pst_predict_options options = {
        .struct_size = sizeof options,
        .model = engine->info.path,
        .max_batch = requests < 65536 ? (uint32_t)requests : 65536,
        .prompt_tokens = shape->max_prompt_tokens,
        .new_tokens = made > 0 ? made : 1,
        .host_memory_bytes = plan->budget_bytes,
        .resident_set = placed.resident_set,
        .resident_share = placed.resident_share,
        .resident_bytes = placed.resident_bytes,
        .keep_all_weights = placed.keep_all_weights,
        .expert_cache_set = placed.expert_cache_set,
        .expert_cache_bytes = placed.expert_cache_bytes,
        .disk_bytes_per_second = plan->read_bytes_per_second > 0 ? plan->read_bytes_per_second : nothing_streams,
        .operations_per_second = plan->operations_per_second,
        .decode_operations_per_second = plan->decode_operations_per_second,
        .decode_rows = USUAL,
        .compute_type = cli_compute_type(runtime),
        .kv_bits = cli_kv_bits(runtime),
        .process_bytes = plan->process_bytes + needs->bytes(needs->user, USUAL),
        .no_advice = true,
    };
    pst_prediction prediction;
    if (pst_predict(&options, &prediction, &unused) < 0 || prediction.batch < USUAL)
        return USUAL;
    return prediction.batch;
}
