/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opening a session: the request's numeric choices, then the plan under the budget, then memory and first reads.
 * Order matters: everything small is made first, so that the plan starts from what the process really uses.
 */
#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/log.h"
#include "base/number.h"
#include "infer/internal.h"
#include "io/like.h"
#include "os/file.h"
#include "os/memory.h"

/* From this size on, `auto` trades digits that no likelihood shows for time and memory; below, they cost next to nothing. */
static const uint64_t LARGE_PARAMETERS = 100 * 1000 * 1000;
/* For what the plan cannot see: stacks of the threads that do not compute, bounce buffers, the heap's own overhead. */
static const uint64_t PROCESS_RESERVE_BYTES = 24ull << 20;
/* Rows that a pass is worth giving up resident weights for, and that it is worth spare memory for. From F * b / (2 * D) rows on,
 * with b bytes a parameter, a pass takes the processor (F operations per second) longer than the drive (D bytes per second):
 * 2048 for 800 Gflop/s, bf16 and 0.4 GB/s, 16384 for 50 MB/s. */
enum { MAX_USEFUL_ROWS = 2048, MAX_SPARE_ROWS = 16384, MAX_LOGIT_ROWS = 512, MAX_SEQUENCES = 1 << 16 };
/* The same on a device: 30000 for 3e14 operations, bf16 and a drive of 10 GB/s, 6000 for a link of 50 GB/s. */
enum { MAX_DEVICE_ROWS = 1 << 16, MAX_DEVICE_LOGIT_ROWS = 2048 };
/* What a budget that nobody gave leaves of a device's free memory to its kernels: this, or a share of it. */
static const uint64_t DEVICE_RESERVE_BYTES = 1ull << 30;
enum { DEVICE_RESERVE_SHARE = 16 };
/* What a device's kernels come to take beside their operands: partial sums, at most so much, and never more than what lasts. */
static const uint64_t DEVICE_SCRATCH_BYTES = 64ull << 20;
/* Inputs whose rows wait on a device for the rest of a matrix that was cut, at most. */
enum { WAITING_INPUTS = 256 };
/* Device memory that nothing lacks, and that sums of bytes may be added to. */
static const uint64_t ENDLESS_BYTES = 1ull << 60;
/* What generation and scoring keep of a request in a slot, its texts and results aside. */
enum { SLOT_BYTES = 256 };
/* Rows whose logits an accelerator hands over at a time, where tokens are chosen from all of them: enough to share. */
enum { FETCHED_ROWS = 16 };

enum { LOOK_AHEAD_SHARE = 64 }; /* of the budget, at most, for guessing experts */

static int check_options(const pst_model *model, const pst_session_options *given, pst_session_options *o,
                         pst_error *err)
{
    if (given->struct_size != sizeof *o)
        return pst_fail(err, PST_E_USAGE, NULL, "session options of %zu bytes, made for another version",
                        given->struct_size);
    *o = *given;
    o->max_sequences = o->max_sequences ? o->max_sequences : 1;
    if (o->max_tokens == 0 || o->max_sequences > MAX_SEQUENCES)
        return pst_fail(err, PST_E_USAGE, NULL, "a session of %u sequences of %u tokens", o->max_sequences,
                        o->max_tokens);
    if (o->max_tokens > model->transformer.context)
        return pst_fail(err, PST_E_USAGE, model->folder, "%u tokens do not fit the model's context of %u",
                        o->max_tokens, model->transformer.context);
    if (o->max_prompt_tokens == 0 || o->max_prompt_tokens > o->max_tokens)
        o->max_prompt_tokens = o->max_tokens;
    if (o->kv_tokens / PST_KV_BLOCK >= UINT32_MAX)
        return pst_fail(err, PST_E_BUDGET, NULL, "a KV cache of %llu tokens fits no memory",
                        (unsigned long long)o->kv_tokens);
    if (o->keep_all_weights && o->resident_set)
        return pst_fail(err, PST_E_USAGE, NULL, "all weights kept, and a bound of the weights kept: only one can be");
    if (o->resident_set && !(o->resident_share <= 1))
        return pst_fail(err, PST_E_USAGE, NULL, "a resident share of %g", o->resident_share);
    if (o->kv_bits != 0 && o->kv_bits != 4 && o->kv_bits != 8 && o->kv_bits != 16 && o->kv_bits != 32)
        return pst_fail(err, PST_E_USAGE, NULL, "a KV cache of %u bits: 32, 16, 8 and 4 are there", o->kv_bits);
    return 0;
}

/* What belongs to the request and the checkpoint, never to placement. */
static void choose_types(const pst_session_options *o, pst_forward_config *config)
{
    const pst_program *program = config->program;
    bool is_f32 = program->weight_type == PST_F32;
    /* auto: bf16 where every matrix is bf16 and there are so many that products take the time. Rounding their inputs costs no
     * likelihood that `score` could show (docs/benchmarks) and halves the time; a small model can have its digits for nothing.
     * f16 weights have more digits than bf16 and no products of their own. */
    bool is_large = program->parameters >= LARGE_PARAMETERS;
    bool auto_bf16 = o->compute_type == PST_COMPUTE_AUTO && program->weight_type == PST_BF16 && is_large;
    config->compute_type = o->compute_type == PST_COMPUTE_BF16 || auto_bf16 ? PST_BF16 : PST_F32;
    /* Likewise the cache: 16 bits where it is large. */
    bool wants_f32 = is_f32 || o->compute_type == PST_COMPUTE_F32 || !is_large;
    config->kv_type = wants_f32 ? PST_KV_F32 : PST_KV_F16;
    static const pst_kv_type types[] = {PST_KV_F32, PST_KV_F16, PST_KV_Q8, PST_KV_Q4};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
        if (o->kv_bits == pst_kv_bits(types[i]))
            config->kv_type = types[i];
}

/* Whether the keys and values of a token follow from it and those before it alone, and no row is wanted for anything else. */
static bool can_share(const pst_session_options *o, const pst_transformer *transformer)
{
    return !o->no_prefix_sharing && !o->all_logits && o->routing_trace == NULL && o->on_routing == NULL &&
           !pst_rope_depends_on_length(&transformer->rope);
}

/* Of a small budget (0: there is none), an eighth at most for keys and values on their way, as far as they go with less. */
static uint64_t choose_window(const pst_session_options *o, uint64_t device_budget_bytes)
{
    uint64_t window = PST_KV_DEFAULT_WINDOW_BYTES;
    if (o->kv_window_bytes != 0)
        return o->kv_window_bytes;
    if (o->host_memory_bytes != 0 && o->kv_folder != NULL)
        window = pst_min(window, o->host_memory_bytes / 8);
    if (device_budget_bytes != 0)
        window = pst_min(window, device_budget_bytes / 8);
    return pst_max(1, window);
}

static pst_kv_config describe_kv(const pst_session_options *o, const pst_forward_config *config,
                                 uint64_t device_budget_bytes)
{
    return (pst_kv_config){.layout = pst_kv_layout_of(config->transformer, config->kv_type),
                           .layers = config->transformer->layers,
                           .max_sequences = config->max_sequences,
                           .max_tokens = config->max_tokens,
                           .blocks = pst_kv_blocks_of(o->kv_tokens),
                           .sharing = can_share(o, config->transformer),
                           .window = config->transformer->window,
                           .windowed = config->transformer->windowed,
                           .trace = o->trace,
                           .folder = o->kv_folder,
                           .offload = o->kv_offload,
                           .window_bytes = choose_window(o, device_budget_bytes),
                           .device = config->device,
                           .apart = config->apart};
}

static uint64_t choose_budget(const pst_session_options *o)
{
    if (o->host_memory_bytes != 0)
        return o->host_memory_bytes;
    pst_memory_info memory;
    if (pst_memory_get_info(&memory, NULL) < 0)
        return UINT64_MAX / 2;
    return pst_memory_resident_bytes() + memory.available_bytes / 4 * 3;
}

int pst_session_device_budget(const pst_session_options *o, pst_device *device, uint64_t *out, pst_error *err)
{
    uint64_t free_bytes = o->device_memory_bytes, total_bytes;
    int status = device != NULL ? device->ops->memory_info(device, &free_bytes, &total_bytes) : 0;
    if (status < 0)
        return pst_device_fail(err, device, status, "telling its memory");
    if (o->device_memory_bytes > free_bytes)
        return pst_fail(err, PST_E_USAGE, NULL, "a device memory budget of %.6g MiB, where device %s has %.6g MiB free",
                        (double)o->device_memory_bytes / 0x1p20, device->ops->name, (double)free_bytes / 0x1p20);
    uint64_t usual = free_bytes - pst_min(free_bytes / DEVICE_RESERVE_SHARE, DEVICE_RESERVE_BYTES);
    *out = pst_max(1, o->device_memory_bytes ? o->device_memory_bytes : usual);
    return 0;
}

static uint64_t choose_resident(const pst_program *program, const pst_session_options *o)
{
    if (!o->resident_set)
        return UINT64_MAX;
    if (o->resident_share < 0)
        return o->resident_bytes;
    if (o->resident_share >= 1)
        return UINT64_MAX;
    return (uint64_t)(o->resident_share * (double)program->weight_bytes);
}

/* Guessing the next layer's experts pays where weights stream, and for memory that hardly counts. A trace's experts follow
 * from no router. */
static bool looks_ahead(const pst_session_options *o, const pst_forward_config *config)
{
    const pst_program *program = config->program;
    uint64_t budget = choose_budget(o), bytes = pst_look_ahead_bytes(config->transformer, program);
    uint64_t most = budget < choose_resident(program, o) ? budget : choose_resident(program, o);
    return !config->apart && o->routing_trace == NULL && bytes > 0 && bytes <= budget / LOOK_AHEAD_SHARE &&
           most < program->weight_bytes;
}

/* Whether every row of a pass may have logits. */
static bool has_all_logits(const pst_session_options *o)
{
    return o->all_logits || o->prompt_logprobs;
}

static bool has_probes(const pst_session_options *o)
{
    return has_all_logits(o) || o->logprobs;
}

static uint32_t most_probed(const pst_session_options *o)
{
    return o->logprobs || o->prompt_logprobs ? PST_MAX_TOP_LOGPROBS : 0;
}

/* Of the logits that the host needs, those of a caller who looks at all of them or steps, or of some rows. */
static uint32_t fetched_rows(const pst_session_options *o, uint32_t rows_per_pass)
{
    if (o->all_logits && !o->requests_only)
        return rows_per_pass;
    return o->requests_only ? (uint32_t)pst_min(o->max_sequences, FETCHED_ROWS) : o->max_sequences;
}

static pst_chooser_config describe_chooser(const pst_session_options *o, const pst_transformer *transformer)
{
    return (pst_chooser_config){.max_rows = o->max_sequences, .vocab = transformer->vocab, .keeps = o->logprobs};
}

/* Rows of a matrix with a row per input that a device may keep from one part to the next: see pst_matmul. */
static uint64_t waiting_bytes(const pst_program *program)
{
    uint64_t most = 0;
    for (uint32_t s = program->gathered_stages; s < program->stage_count; s++) {
        const pst_nn_stage *nn = &program->nn_stages[s];
        for (uint32_t i = 0; i < nn->step_count; i++) {
            const pst_weight_format *format = nn->steps[i].format;
            if (nn->steps[i].weight < 0 || format == NULL || !format->transposed)
                continue;
            const pst_stage_tensor *tensor = &program->stages[s].tensors[nn->steps[i].weight];
            const uint64_t inputs = format->layout == PST_WEIGHT_GPTQ ? 32 / format->bits : 1; /* of a row */
            most = pst_max(most, pst_min(tensor->rows, WAITING_INPUTS / inputs) * tensor->row_bytes);
        }
    }
    return most;
}

/* What does not depend on the rows of a pass. */
static int add_fixed(const pst_session_options *o, const pst_forward_config *config, const pst_forward_memory *memory,
                     const pst_planned_cache *planned, pst_plan_request *request, pst_error *err)
{
    const pst_kv_memory *cache = &planned->memory;
    uint64_t device_logits = has_all_logits(o) ? 0 : o->max_sequences * memory->device_logit_row_bytes;
    uint64_t logits = has_all_logits(o) ? 0 : o->max_sequences * memory->logit_row_bytes;
    logits += fetched_rows(o, 0) * memory->fetched_row_bytes;
    const uint32_t threads = o->threads ? o->threads : pst_os_processors();
    const pst_chooser_config chooser = describe_chooser(o, config->transformer);
    uint64_t choices, device_choices;
    pst_chooser_measure(&chooser, threads, config->apart, &choices, &device_choices);
    uint64_t probes = 0, device_probes = 0;
    if (has_probes(o))
        pst_prober_measure(most_probed(o), config->apart, &probes, &device_probes);
    const pst_latent *latent = &config->transformer->latent;
    uint64_t scratch = pst_max(pst_device_host_attention_bytes(&planned->config.layout, threads),
                               pst_device_host_route_bytes(config->transformer->experts, threads));
    scratch = pst_max(scratch, pst_device_host_heads_bytes(pst_max(latent->nope_dim, latent->value_dim),
                                                           latent->kv_lora_rank, threads));
    scratch += pst_device_host_stack_bytes(threads);
    uint64_t others = memory->fixed_bytes + logits + choices + probes + scratch +
                      pst_ring_gather_bytes(config->program->stages, config->program->stage_count) +
                      (uint64_t)o->max_sequences *
                          (o->max_tokens * sizeof(uint32_t) + sizeof(pst_sequence) + sizeof(uint32_t) + SLOT_BYTES);
    uint64_t device_others = memory->device_fixed_bytes + device_logits + device_choices + device_probes;
    if (__builtin_add_overflow(cache->kv_bytes, others, &request->fixed_bytes) ||
        __builtin_add_overflow(cache->table_bytes, request->fixed_bytes, &request->fixed_bytes) ||
        __builtin_add_overflow(cache->device_kv_bytes, device_others, &request->device_fixed_bytes) ||
        __builtin_add_overflow(cache->device_table_bytes, request->device_fixed_bytes, &request->device_fixed_bytes) ||
        request->fixed_bytes > UINT64_MAX / 4 || request->device_fixed_bytes > UINT64_MAX / 4)
        return pst_fail(err, PST_E_BUDGET, NULL, "the KV cache of %u sequences of %u tokens fits no memory",
                        o->max_sequences, o->max_tokens);
    request->device_fixed_bytes += pst_min(request->device_fixed_bytes, DEVICE_SCRATCH_BYTES);
    if (config->apart)
        request->device_fixed_bytes += waiting_bytes(config->program);
    return 0;
}

static int request_plan(const pst_session_options *o, uint64_t process_bytes, pst_forward_config *config,
                        pst_plan_request *out, pst_planned_cache *out_cache, pst_error *err)
{
    const pst_program *program = config->program;
    config->max_sequences = o->max_sequences;
    config->max_tokens = o->max_tokens;
    choose_types(o, config);
    config->look_ahead = looks_ahead(o, config);
    pst_forward_memory memory;
    pst_forward_measure(config, &memory);
    uint64_t device_budget = 0;
    if (config->apart)
        PST_TRY(pst_session_device_budget(o, config->device, &device_budget, err));
    pst_kv_config kv = describe_kv(o, config, device_budget);
    uint64_t prompt_rows = (uint64_t)o->max_sequences * o->max_prompt_tokens;
    uint64_t useful = pst_min(prompt_rows, config->apart ? MAX_DEVICE_ROWS : MAX_USEFUL_ROWS);
    if (has_all_logits(o))
        useful = pst_min(useful, config->apart ? MAX_DEVICE_LOGIT_ROWS : MAX_LOGIT_ROWS);
    /* Decoding wants a row of every sequence in one pass; scoring can do with one row. */
    uint32_t least = o->all_logits ? 1 : o->max_sequences;
    pst_plan_request request = {
        .stages = program->stages,
        .stage_count = program->stage_count,
        .budget_bytes = choose_budget(o),
        .process_bytes = process_bytes + PROCESS_RESERVE_BYTES + pst_trace_memory_bytes(o->trace),
        .row_bytes = memory.row_bytes + sizeof(pst_row) + sizeof(uint32_t) +
                     (has_all_logits(o) ? memory.logit_row_bytes : 0) +
                     (o->all_logits && !o->requests_only ? memory.fetched_row_bytes : 0),
        .min_rows = least,
        .max_rows = useful > least ? (uint32_t)useful : least,
        .spare_rows = has_all_logits(o) || config->apart ? 0 : (uint32_t)pst_min(prompt_rows, MAX_SPARE_ROWS),
        .max_resident_bytes = choose_resident(program, o),
        .max_slot_bytes = o->max_slot_bytes,
        .units_per_row = config->transformer->experts_per_token,
        .max_cache_bytes = o->expert_cache_set ? o->expert_cache_bytes : UINT64_MAX,
        .keep_all = o->keep_all_weights,
        .device_budget_bytes = device_budget,
        .device_row_bytes = memory.device_row_bytes + (has_all_logits(o) ? memory.device_logit_row_bytes : 0),
    };
    *out_cache = (pst_planned_cache){.config = kv};
    pst_kv_measure(&kv, &out_cache->memory);
    PST_TRY(add_fixed(o, config, &memory, out_cache, &request, err));
    *out = request;
    return 0;
}

/* Whether more memory of the device's, and nothing else, would do. */
static bool lacks_device(const pst_plan_request *request)
{
    pst_plan_request larger = *request;
    pst_plan plan;
    larger.device_budget_bytes = ENDLESS_BYTES;
    if (request->device_budget_bytes == 0 || pst_plan_create(&larger, &plan, NULL) < 0)
        return false;
    pst_plan_destroy(&plan);
    return true;
}

/* With the usual window, and where that does not fit with the smallest. *lacks: PST_E_BUDGET for want of device memory. */
static int try_plan(pst_session_options o, uint64_t process_bytes, pst_forward_config *config,
                    pst_plan_request *out_request, pst_planned_cache *out_cache, pst_plan *out_plan, bool *lacks,
                    pst_error *err)
{
    const bool has_window = o.kv_folder != NULL || (config->apart && o.kv_offload);
    PST_TRY(request_plan(&o, process_bytes, config, out_request, out_cache, err));
    int status = pst_plan_create(out_request, out_plan, err);
    if (status == PST_E_BUDGET && has_window && o.kv_window_bytes == 0) {
        o.kv_window_bytes = 1;
        PST_TRY(request_plan(&o, process_bytes, config, out_request, out_cache, err));
        status = pst_plan_create(out_request, out_plan, err);
    }
    *lacks = status == PST_E_BUDGET && lacks_device(out_request);
    return status;
}

static int plan_place(const pst_session_options *o, uint64_t process_bytes, pst_forward_config *config,
                      pst_plan_request *out_request, pst_planned_cache *out_cache, pst_plan *out_plan, pst_error *err)
{
    pst_session_options other = *o;
    pst_error cause = {.code = 0};
    bool lacks = false, still_lacks = false;
    int status = try_plan(*o, process_bytes, config, out_request, out_cache, out_plan, &lacks, err);
    if (status >= 0 || !lacks || o->kv_folder != NULL || o->kv_offload)
        return status;
    other.kv_offload = true;
    int second = try_plan(other, process_bytes, config, out_request, out_cache, out_plan, &still_lacks, &cause);
    if (second < 0 && still_lacks && err != NULL)
        *err = cause; /* it names the smaller budget */
    return second < 0 ? status : 0;
}

/* Whether passes of generated tokens are the same calls again and again: all is where it is computed with, and the host has not
 * to know of the experts that are chosen. */
static bool may_repeat(const pst_session_options *o, const pst_forward_config *config, const pst_kv_config *kv,
                       const pst_plan *plan)
{
    const pst_transformer *t = config->transformer;
    for (uint32_t i = 0; t->experts > 0 && i < t->layers; i++)
        if (t->sparse[i])
            return false;
    return config->apart && !o->no_device_graphs && !o->all_logits && kv->folder == NULL && !kv->offload &&
           plan->link_bytes == 0;
}

int pst_session_plan(const pst_session_options *o, uint64_t process_bytes, pst_forward_config *config,
                     pst_plan_request *out_request, pst_planned_cache *out_cache, pst_plan *out_plan, pst_error *err)
{
    pst_plan plan;
    PST_TRY(plan_place(o, process_bytes, config, out_request, out_cache, out_plan, err));
    config->repeats = false;
    if (!may_repeat(o, config, &out_cache->config, out_plan))
        return 0;
    /* Room for recordings, unless weights would have to give way to it. */
    pst_plan_request request = *out_request;
    const uint64_t bytes = pst_recorder_bytes(config->program);
    request.fixed_bytes += bytes;
    request.device_fixed_bytes += bytes;
    if (pst_plan_create(&request, &plan, NULL) < 0)
        return 0;
    config->repeats = plan.link_bytes == 0;
    if (config->repeats) {
        pst_plan_destroy(out_plan);
        *out_plan = plan;
        *out_request = request;
    } else {
        pst_plan_destroy(&plan);
    }
    return 0;
}

static void fill_info(pst_session *s, const pst_forward_config *config, const pst_plan_request *request,
                      const pst_planned_cache *planned)
{
    const pst_kv_memory *cache = &planned->memory;
    pst_io_options io = {.struct_size = sizeof io};
    pst_io_get_settings(s->io, &io);
    s->info = (pst_plan_info){
        .budget_bytes = request->budget_bytes,
        .resident_bytes = s->plan.resident_bytes,
        .streamed_bytes = s->plan.streamed_bytes,
        .ring_bytes = s->plan.slots * s->plan.slot_bytes,
        .slot_bytes = s->plan.slot_bytes,
        .slots = s->plan.slots,
        .kv_bytes = cache->kv_bytes,
        .activation_bytes = request->fixed_bytes - cache->kv_bytes + s->plan.rows_per_pass * request->row_bytes,
        .process_bytes = request->process_bytes,
        .rows_per_pass = s->plan.rows_per_pass,
        .io_engine = pst_io_engine_name(s->io),
        .block_size = io.block_size,
        .queue_depth = io.queue_depth,
        .io_workers = io.workers,
        .io_single_submit = io.single_submit,
        .kernels = pst_device_host_kernels(s->host),
        .compute_type = config->compute_type,
        .kv_bits = pst_kv_bits(config->kv_type),
        .expert_cache_bytes = s->plan.cache_slots * s->plan.slot_bytes,
        .expected_pass_bytes = pst_plan_expected_bytes(&s->plan, s->options.max_sequences),
        .kv_disk_bytes = cache->disk_bytes,
        .device = s->device->ops->name,
        .device_budget_bytes = request->device_budget_bytes,
        .device_total_bytes = s->plan.device_total_bytes,
        .device_resident_bytes = s->plan.device_resident_bytes,
        .device_kv_bytes = cache->device_kv_bytes,
        .device_slot_bytes = s->plan.device_slot_bytes,
        .device_slots = s->plan.device_slots,
        .expected_link_bytes = pst_plan_link_bytes(&s->plan, s->options.max_sequences),
        .kv_offloaded = planned->config.apart && (planned->config.offload || planned->config.folder != NULL),
    };
}

static void log_plan(const pst_session *s)
{
    pst_log(PST_LOG_INFO,
            "plan: %.1f MB of weights resident, %.1f MB streamed per pass through %u slots of %.1f MB; up to %u rows "
            "per pass",
            (double)s->plan.resident_bytes / 1e6, (double)s->plan.streamed_bytes / 1e6, s->plan.slots,
            (double)s->plan.slot_bytes / 1e6, s->plan.rows_per_pass);
    if (s->device != s->host)
        pst_log(PST_LOG_INFO,
                "plan: %.1f MB of weights on device %s, %.1f MB cross the link per pass through %u slots of %.1f MB; "
                "%.1f of %.1f MB of its memory",
                (double)s->plan.device_resident_bytes / 1e6, s->device->ops->name, (double)s->plan.link_bytes / 1e6,
                s->plan.device_slots, (double)s->plan.device_slot_bytes / 1e6, (double)s->plan.device_total_bytes / 1e6,
                (double)s->info.device_budget_bytes / 1e6);
    if (s->info.kv_offloaded)
        pst_log(PST_LOG_INFO, "plan: keys and values in %s, through slots of %.1f MB on device %s",
                s->options.kv_folder != NULL ? "a file" : "host memory", (double)s->info.device_kv_bytes / 1e6,
                s->device->ops->name);
    if (s->plan.streamed_unit_bytes > 0)
        pst_log(PST_LOG_INFO,
                "plan: of %.1f MB of experts the cache keeps %.1f MB; a pass of %u rows needs %.0f %% of them",
                (double)s->plan.streamed_unit_bytes / 1e6, (double)s->plan.cache_bytes / 1e6, s->options.max_sequences,
                100 * pst_plan_share_of_units(s->plan.unit_count, s->plan.units_per_row, s->options.max_sequences));
}

static int make_plan(pst_session *s, pst_forward_config *config, pst_planned_cache *cache, pst_error *err)
{
    const pst_session_options *o = &s->options;
    pst_plan_request request;
    PST_TRY(pst_session_plan(o, pst_memory_resident_bytes(), config, &request, cache, &s->plan, err));
    config->max_rows = s->plan.rows_per_pass;
    config->max_logit_rows = has_all_logits(o) ? s->plan.rows_per_pass : o->max_sequences;
    config->fetched_rows = fetched_rows(o, s->plan.rows_per_pass);
    fill_info(s, config, &request, cache);
    log_plan(s);
    return 0;
}

static int make_sequences(pst_session *s, uint32_t max_logit_rows, pst_error *err)
{
    const pst_session_options *o = &s->options;
    s->sequences = pst_heap_calloc(o->max_sequences, sizeof *s->sequences);
    s->sequence_ids = pst_heap_calloc((size_t)o->max_sequences * o->max_tokens, sizeof *s->sequence_ids);
    s->order = pst_heap_calloc(o->max_sequences, sizeof *s->order);
    s->rows = pst_heap_calloc(s->plan.rows_per_pass, sizeof *s->rows);
    s->row_ids = pst_heap_calloc(s->plan.rows_per_pass, sizeof *s->row_ids);
    s->logits = pst_heap_calloc(max_logit_rows, sizeof *s->logits);
    if (!s->sequences || !s->sequence_ids || !s->order || !s->rows || !s->row_ids || !s->logits)
        return pst_fail_memory(err, "the sequences", (size_t)o->max_sequences * o->max_tokens * sizeof(uint32_t));
    for (uint32_t i = 0; i < o->max_sequences; i++)
        s->sequences[i].ids = s->sequence_ids + (size_t)i * o->max_tokens;
    return 0;
}

static int open_device(pst_session *s, pst_error *err)
{
    const pst_session_options *o = &s->options;
    PST_TRY(pst_device_host_create(s->pool, o->kernels, &s->host, err));
    if (s->device == NULL)
        PST_TRY(pst_device_open(o->device, s->pool, o->kernels, &s->device, err));
    if (s->device->ops->is_host) { /* one is enough */
        pst_device_destroy(s->device);
        s->device = s->host;
    }
    return 0;
}

static int make_engines(pst_session *s, pst_error *err)
{
    const pst_session_options *o = &s->options;
    pst_io_options io = PST_IO_OPTIONS_LIKE(o, s->model->folder);
    PST_TRY(pst_pool_create(o->threads, &s->pool, err));
    PST_TRY(open_device(s, err));
    PST_TRY(pst_io_open(&io, &s->io, err));
    if (o->kv_folder != NULL) { /* a handle of its own: keys and values need not wait for weights that are read ahead */
        PST_TRY(pst_folder_create(o->kv_folder, err));
        io.path = o->kv_folder;
        PST_TRY(pst_io_open(&io, &s->kv_io, err));
    }
    s->transformer = s->model->transformer;
    if (o->max_layers != 0 && o->max_layers < s->transformer.layers)
        s->transformer.layers = o->max_layers;
    return pst_program_create(&s->transformer, s->model->store, &s->program, err);
}

/* The tokenizer, before the plan is made, so that its memory counts. A model may have none, or one that is not understood:
 * then there are token ids and no text, which is all that ids as prompts need. */
static void open_tokenizer(pst_session *s)
{
    pst_error err;
    if (s->options.all_logits || pst_model_tokenizer(s->model, &s->tokenizer, &err) >= 0)
        return;
    s->tokenizer = NULL;
    if (err.code != -ENOENT)
        pst_log(PST_LOG_WARNING, "%s: no text, only token ids: %s", err.path, err.message);
}

static int open_session(pst_session *s, pst_error *err)
{
    const pst_session_options *o = &s->options;
    PST_TRY(make_engines(s, err));
    pst_forward_config config = {.transformer = &s->transformer,
                                 .program = s->program,
                                 .device = s->device,
                                 .host = s->host,
                                 .apart = s->device != s->host};
    if (o->routing_trace != NULL)
        PST_TRY(pst_routing_trace_open(o->routing_trace, &s->transformer, &s->routing_trace, err));
    config.routing_trace = s->routing_trace;
    config.record_routing = o->on_routing != NULL;
    open_tokenizer(s);
    pst_planned_cache cache;
    PST_TRY(make_plan(s, &config, &cache, err));
    PST_TRY(make_sequences(s, config.max_logit_rows, err));
    s->sharing = cache.config.sharing;
    cache.config.io = s->kv_io;
    s->kv_row_traffic = pst_kv_row_traffic(&cache.config, o->max_tokens / 2);
    PST_TRY(pst_kv_create(&cache.config, &s->kv, err));
    config.kv = s->kv;
    PST_TRY(pst_forward_create(&config, &s->forward, err));
    pst_chooser_config chooser = describe_chooser(o, &s->transformer);
    chooser.device = s->device;
    chooser.pool = s->pool;
    chooser.fetched_rows = config.fetched_rows;
    PST_TRY(pst_chooser_create(&chooser, &s->chooser, err));
    if (has_probes(o))
        PST_TRY(pst_prober_create(s->device, most_probed(o), &s->prober, err));
    pst_ring_config ring = {.store = s->model->store,
                            .stages = s->program->stages,
                            .stage_count = s->program->stage_count,
                            .plan = &s->plan,
                            .io = s->io,
                            .trace = o->trace,
                            .cancel = &s->cancelled,
                            .lock_memory = o->lock_memory,
                            .device = s->device};
    PST_TRY(pst_ring_create(&ring, &s->ring, err));
    s->info.locked = pst_ring_is_locked(s->ring);
    if (config.repeats && pst_ring_is_resident(s->ring))
        PST_TRY(pst_recorder_create(s->device, &s->recorder, err));
    return o->measure_bound ? pst_session_measure(s, err) : 0;
}

int pst_session_open_on(pst_model *model, const pst_session_options *options, pst_device *device, pst_session **out,
                        pst_error *err)
{
    pst_session *s = pst_heap_calloc(1, sizeof *s);
    if (s == NULL) {
        pst_device_destroy(device);
        return pst_fail_memory(err, "a session", sizeof *s);
    }
    s->model = model;
    s->device = device;
    int status = check_options(model, options, &s->options, err);
    if (status >= 0)
        status = open_session(s, err);
    if (status < 0) {
        pst_session_close(s);
        return status;
    }
    *out = s;
    return 0;
}

int pst_session_open(pst_model *model, const pst_session_options *options, pst_session **out, pst_error *err)
{
    return pst_session_open_on(model, options, NULL, out, err);
}

void pst_session_close(pst_session *s)
{
    if (s == NULL)
        return;
    if (s->device != NULL && s->device != s->host) /* a pass that failed may have left work that uses all the memory */
        s->device->ops->synchronize(s->device, NULL);
    pst_recorder_destroy(s->recorder);
    pst_ring_destroy(s->ring);
    pst_chooser_destroy(s->chooser);
    pst_prober_destroy(s->prober);
    pst_forward_destroy(s->forward);
    pst_kv_destroy(s->kv);
    pst_routing_trace_destroy(s->routing_trace);
    pst_plan_destroy(&s->plan);
    pst_program_destroy(s->program);
    pst_io_close(s->io);
    pst_io_close(s->kv_io);
    if (s->device != s->host)
        pst_device_destroy(s->device);
    pst_device_destroy(s->host);
    pst_pool_destroy(s->pool);
    pst_heap_free(s->sequences);
    pst_heap_free(s->sequence_ids);
    pst_heap_free(s->order);
    pst_heap_free(s->rows);
    pst_heap_free(s->row_ids);
    pst_heap_free(s->logits);
    pst_heap_free(s);
}

void pst_session_cancel(pst_session *session)
{
    atomic_store_explicit(&session->cancelled, true, memory_order_relaxed);
}

void pst_session_get_plan(const pst_session *session, pst_plan_info *out)
{
    *out = session->info;
}
