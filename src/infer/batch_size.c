/* SPDX-License-Identifier: Apache-2.0 */
/* The rule of batch_size.h, and the points that it chooses among: those of plans that fit the budget. */
#include "infer/batch_size.h"

#include <math.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/log.h"
#include "base/number.h"
#include "infer/internal.h"
#include "os/file.h"
#include "os/memory.h"

/* ---- the rule ---- */

static const double ENOUGH = 1.05; /* times the least time per token */

pst_batch_rates pst_batch_rates_of(double disk, double one_row, double many_rows)
{
    pst_batch_rates rates = {.disk_bytes_per_second = disk, .operations_per_second = many_rows};
    if (one_row > 0 && one_row < many_rows)
        rates.parameter_seconds = 2 * (1 / one_row - 1 / many_rows);
    return rates;
}

double pst_batch_token_seconds(const pst_batch_point *p, const pst_batch_rates *rates)
{
    double disk = p->bytes > 0 ? p->bytes / rates->disk_bytes_per_second : 0;
    double link = rates->link_bytes_per_second > 0 ? p->link_bytes / rates->link_bytes_per_second : 0;
    double compute = p->parameters * rates->parameter_seconds + p->operations / rates->operations_per_second;
    return fmax(fmax(disk, link), compute) / p->tokens;
}

size_t pst_batch_choose(const pst_batch_point *points, size_t count, const pst_batch_rates *rates)
{
    double best = pst_batch_token_seconds(&points[0], rates);
    for (size_t i = 1; i < count; i++) {
        double seconds = pst_batch_token_seconds(&points[i], rates);
        best = seconds < best ? seconds : best;
    }
    size_t chosen = 0;
    while (chosen + 1 < count && pst_batch_token_seconds(&points[chosen], rates) > ENOUGH * best)
        chosen++;
    return chosen;
}

uint64_t pst_batch_kv_tokens(uint32_t sequences, uint64_t requests, uint64_t total, uint32_t longest)
{
    uint64_t most = pst_round_up(longest, PST_KV_BLOCK), mean = requests > 0 ? total / requests : most;
    mean = pst_min(pst_max(mean, PST_KV_BLOCK), most);
    uint64_t usual = most + (sequences - 1) * pst_round_up(mean, PST_KV_BLOCK);
    return pst_min(usual, pst_max(most, pst_round_up(pst_min(total, usual), PST_KV_BLOCK)));
}

/* ---- points ---- */

/* More rows in a pass make it compute-bound on any processor. */
enum {
    MAX_CHOSEN = 2048,
    MAX_POINTS = 64,
    PROBE_TOKENS = 256,
    USUAL_RATIO = 8,
    DEVICE_RATIO = 128,
    WORTH_MEASURING = 32
};

/* A job and what it is planned with. */
typedef struct choice {
    const pst_workload *work;
    pst_session_options *options;
    pst_transformer transformer; /* the model's, with max_layers */
    pst_program *program;
    pst_cost cost;
    uint64_t process_bytes, disk_room;
    bool apart; /* an accelerator computes, with options->device_memory_bytes */
    pst_batch_point points[MAX_POINTS];
    size_t count;
} choice;

static void set_batch(const choice *c, pst_session_options *o, uint32_t sequences)
{
    const pst_workload *w = c->work;
    o->max_sequences = sequences;
    o->kv_tokens = pst_batch_kv_tokens(sequences, w->requests, w->kv_tokens, o->max_tokens);
}

/* What so many positions take of a cache of so many bytes. */
static double moved_bytes(uint64_t cache_bytes, const pst_session_options *o, double positions)
{
    return (double)cache_bytes / (double)o->kv_tokens * positions;
}

/* A pass of this plan in the long run: x requests join in each, and as many end. */
static pst_batch_point describe(const choice *c, const pst_session_options *o, const pst_plan *plan,
                                const pst_planned_cache *cache)
{
    const pst_workload *w = c->work;
    double prompt = pst_max(w->prompt_tokens, w->requests), made = (double)w->new_tokens;
    prompt /= (double)w->requests;
    made = made > 0 ? pst_max(w->new_tokens, w->requests) / (double)w->requests : 0;
    double room = plan->rows_per_pass, each = prompt + (made > 0 ? made - 1 : 0);
    double x = o->max_sequences / (made > 0 ? made : 1);
    x = x * each > room ? room / each : x;
    double decoding = made > 0 ? x * (made - 1) : 0, joining = x * prompt, rows = decoding + joining;
    double keys = decoding * pst_cost_keys(&c->cost, prompt + made / 2) + joining * pst_cost_keys(&c->cost, prompt / 2);
    pst_batch_point point = {.sequences = o->max_sequences, .tokens = made > 0 ? x * made : joining};
    if (made > 0) { /* the last ones leave slots empty: 33 requests take as long by 32 as by 17 */
        const double waves = (double)w->requests / o->max_sequences;
        point.tokens *= waves / ceil(waves);
    }
    point.bytes = pst_plan_expected_bytes(plan, rows < 1 ? 1 : (uint32_t)rows);
    point.link_bytes = pst_plan_link_bytes(plan, rows < 1 ? 1 : (uint32_t)rows);
    const double moved = o->max_sequences * (prompt + made / 2);
    point.bytes += moved_bytes(cache->memory.disk_bytes, o, moved + rows); /* read for every row, and written once */
    if (cache->config.apart && (o->kv_folder != NULL || cache->config.offload)) /* likewise, but both ways at once */
        point.link_bytes +=
            moved_bytes(o->kv_folder != NULL ? cache->memory.disk_bytes : cache->memory.kv_bytes, o, moved);
    point.parameters =
        c->cost.every_row + c->cost.head + c->cost.experts * pst_cost_expert_share(&c->transformer, rows);
    point.operations = pst_cost_operations(&c->cost, rows, made > 0 ? decoding + x : rows, keys);
    return point;
}

/* PST_E_BUDGET: so many do not fit. */
static int try_batch(const choice *c, uint32_t sequences, pst_batch_point *out, pst_error *err)
{
    pst_session_options o = *c->options;
    const pst_workload *w = c->work;
    uint64_t held, budget = o.host_memory_bytes;
    set_batch(c, &o, sequences);
    if (__builtin_mul_overflow(w->sequence_bytes, (uint64_t)sequences, &held) ||
        __builtin_add_overflow(held, w->fixed_bytes, &held) || held > UINT64_MAX / 8)
        return pst_fail(err, PST_E_BUDGET, NULL, "what %u of these requests give is more than any memory", sequences);
    pst_forward_config config = {.transformer = &c->transformer, .program = c->program, .apart = c->apart};
    config.record_routing = o.on_routing != NULL;
    pst_plan_request request;
    pst_planned_cache cache;
    pst_plan plan;
    PST_TRY(pst_session_plan(&o, c->process_bytes + held, &config, &request, &cache, &plan, err));
    const pst_batch_point point = describe(c, &o, &plan, &cache);
    pst_plan_destroy(&plan);
    if (o.kv_folder != NULL && cache.memory.disk_bytes > c->disk_room && sequences > 1)
        return pst_fail(err, PST_E_BUDGET, o.kv_folder, "the KV cache of %u sequences does not fit there", sequences);
    if (budget != 0 && held > budget / 2)
        return pst_fail(
            err, PST_E_BUDGET, NULL,
            "a host memory budget of %.1f MiB is too small: what these requests give takes %.1f MiB, which may "
            "be half of it; the smallest that works is %lluMi",
            (double)budget / 0x1p20, (double)held / 0x1p20, (unsigned long long)((2 * held >> 20) + 1));
    *out = point;
    return 0;
}

/* Numbers that fit, in steps of a quarter, up to the largest that does. */
static int collect_points(choice *c, uint32_t most, pst_error *err)
{
    uint32_t sequences = 1, fits = 0, too_many = 0;
    while (c->count < MAX_POINTS) {
        int status = try_batch(c, sequences, &c->points[c->count], err);
        if (status < 0 && (c->count == 0 || status != PST_E_BUDGET))
            return status;
        if (status >= 0) {
            c->count++;
            fits = sequences;
        } else {
            too_many = sequences;
        }
        if (fits == most || (too_many > 0 && too_many - fits <= 1 + fits / 32))
            break;
        uint32_t next = fits + (uint32_t)pst_max(1, fits / 4);
        sequences = too_many > 0 ? fits + (too_many - fits) / 2 : (uint32_t)pst_min(next, most);
    }
    return 0;
}

/* ---- rates ---- */

/* The drive and the processor, by a session that keeps no weights. */
static int measure(pst_model *model, const choice *c, pst_batch_rates *out, pst_error *err)
{
    pst_session_options o = *c->options;
    o.max_sequences = 1;
    o.max_tokens = (uint32_t)pst_min(PROBE_TOKENS, o.max_tokens);
    o.max_prompt_tokens = o.max_tokens;
    o.kv_tokens = 0;
    o.all_logits = o.logprobs = o.prompt_logprobs = o.keep_all_weights = o.lock_memory = false;
    o.resident_set = o.expert_cache_set = true;
    o.resident_share = -1;
    o.resident_bytes = o.expert_cache_bytes = 0;
    o.kv_folder = o.routing_trace = NULL;
    o.on_routing = NULL;
    o.trace = NULL;
    o.measure_bound = true;
    pst_session *session;
    PST_TRY(pst_session_open(model, &o, &session, err));
    pst_plan_info plan;
    pst_session_get_plan(session, &plan);
    pst_session_close(session);
    if (plan.read_bytes_per_second > 0 && plan.operations_per_second > 0)
        *out = pst_batch_rates_of(plan.read_bytes_per_second, plan.decode_operations_per_second,
                                  plan.operations_per_second);
    out->link_bytes_per_second =
        plan.link_bytes_per_second > 0 ? plan.link_bytes_per_second : out->link_bytes_per_second;
    return 0;
}

static int find_rates(pst_model *model, const choice *c, pst_batch_rates *out, pst_error *err)
{
    const pst_workload *w = c->work;
    /* Where nothing is read the ratio of the two alone counts. That of a processor of today whose memory gives a parameter of
     * 16 bits for every 16 to 32 operations; the others stand for what cannot be measured: a usual drive and processor. */
    const double usual_disk = 2e9, usual_rate = 1e11, device_link = 25e9, device_rate = 1e14;
    *out = pst_batch_rates_of(usual_disk, usual_rate / USUAL_RATIO, usual_rate);
    if (c->apart) /* from memory of some TB/s it computes with a parameter for 100 to 300 rows at no cost */
        *out = pst_batch_rates_of(usual_disk, device_rate / DEVICE_RATIO, device_rate);
    out->link_bytes_per_second = c->apart ? device_link : 0;
    if (w->operations_per_second > 0 && w->disk_bytes_per_second > 0) {
        const double link = out->link_bytes_per_second;
        *out = pst_batch_rates_of(w->disk_bytes_per_second, w->one_row_operations_per_second, w->operations_per_second);
        out->link_bytes_per_second = link;
        return 0;
    }
    bool reads = false;
    for (size_t i = 0; i < c->count; i++)
        reads = reads || c->points[i].bytes > 0 || c->points[i].link_bytes > 0;
    return reads && c->points[c->count - 1].sequences > WORTH_MEASURING ? measure(model, c, out, err) : 0;
}

/* ---- the whole ---- */

/* What a session would take of an accelerator's memory: the options' device is opened to be asked. */
static int find_device(choice *c, pst_error *err)
{
    pst_session_options *o = c->options;
    pst_pool *pool = NULL;
    pst_device *device = NULL;
    uint64_t budget = 0;
    if (o->device == NULL || strcmp(o->device, "host") == 0)
        return 0;
    int status = pst_pool_create(1, &pool, err);
    if (status >= 0)
        status = pst_device_open(o->device, pool, o->kernels, &device, err);
    if (status >= 0 && !device->ops->is_host)
        status = pst_session_device_budget(o, device, &budget, err);
    pst_device_destroy(device);
    pst_pool_destroy(pool);
    PST_TRY(status);
    c->apart = budget > 0;
    o->device_memory_bytes = budget;
    return 0;
}

static int prepare(choice *c, pst_model *model, pst_error *err)
{
    pst_session_options *o = c->options;
    const pst_tokenizer *tokenizer;
    c->transformer = model->transformer;
    if (o->max_layers != 0 && o->max_layers < c->transformer.layers)
        c->transformer.layers = o->max_layers;
    if (o->max_prompt_tokens == 0 || o->max_prompt_tokens > o->max_tokens)
        o->max_prompt_tokens = o->max_tokens;
    PST_TRY(find_device(c, err));
    PST_TRY(pst_program_create(&c->transformer, model->store, &c->program, err));
    pst_cost_of(&c->transformer, c->program, &c->cost);
    if (o->kv_folder != NULL) {
        PST_TRY(pst_folder_create(o->kv_folder, err));
        PST_TRY(pst_file_free_space(o->kv_folder, &c->disk_room, err));
        c->disk_room -= c->disk_room / 8; /* others write there, too */
    }
    if (!o->all_logits)
        pst_model_tokenizer(model, &tokenizer, NULL); /* its memory is the process's when the session is planned */
    c->process_bytes = pst_memory_resident_bytes();
    return 0;
}

static int choose(choice *c, pst_model *model, pst_error *err)
{
    const uint32_t given = c->options->max_sequences;
    PST_TRY(prepare(c, model, err));
    uint64_t most = given > 0 && given < MAX_CHOSEN ? given : MAX_CHOSEN;
    PST_TRY(collect_points(c, (uint32_t)pst_min(most, c->work->requests), err));
    pst_batch_rates rates;
    PST_TRY(find_rates(model, c, &rates, err));
    const pst_batch_point *point = &c->points[pst_batch_choose(c->points, c->count, &rates)];
    set_batch(c, c->options, point->sequences);
    pst_log(PST_LOG_INFO,
            "batch: %u sequences at once of at most %u that fit, with a cache of %llu tokens; a pass reads %.1f MB",
            point->sequences, c->points[c->count - 1].sequences, (unsigned long long)c->options->kv_tokens,
            point->bytes / 1e6);
    return 0;
}

int pst_session_choose_batch(pst_model *model, const pst_workload *work, pst_session_options *options, pst_error *err)
{
    if (work->struct_size != sizeof *work || options->struct_size != sizeof *options)
        return pst_fail(err, PST_E_USAGE, NULL, "a workload or session options made for another version");
    if (work->requests == 0 || options->max_tokens == 0 || options->max_tokens > model->transformer.context)
        return pst_fail(err, PST_E_USAGE, NULL, "%llu requests of at most %u tokens",
                        (unsigned long long)work->requests, options->max_tokens);
    pst_session_options chosen = *options;
    choice *c = pst_heap_calloc(1, sizeof *c);
    if (c == NULL)
        return pst_fail_memory(err, "a choice", sizeof *c);
    c->work = work;
    c->options = &chosen;
    int status = choose(c, model, err);
    pst_program_destroy(c->program);
    pst_heap_free(c);
    PST_TRY(status);
    options->max_sequences = chosen.max_sequences;
    options->kv_tokens = chosen.kv_tokens;
    return 0;
}
