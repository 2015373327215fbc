/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The times of a run, pass by pass, with the rows that a session would choose: one of every sequence that decodes, then as
 * much of the prompts, in order, as there is room for. Sequences are alike, so that a pass is known by how many decode and
 * how many rows of prompts are left; stretches in which nothing changes are counted at once.
 */
#include <math.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "jobs/predict_internal.h"

static const uint64_t MAX_PREFILL_PASSES = 10 * 1000 * 1000;
enum { MANY_ROWS = 256 }; /* from here on the rate is that of many rows */

typedef enum limit { BY_DISK, BY_LINK, BY_COMPUTE, LIMITS } limit;
static const char *const limit_names[LIMITS] = {"disk", "link", "compute"};

/* The rate with so many rows, from the two that are known. Fewer rows than measured take the same time: that of getting the
 * weights from memory. */
static double rate_of(const pst_predict_options *o, uint32_t batch, double rows)
{
    double many = o->operations_per_second, few = o->decode_operations_per_second;
    double few_rows = o->decode_rows ? o->decode_rows : batch;
    if (few <= 0 || rows >= MANY_ROWS)
        return rows <= few_rows && few > 0 ? few : many;
    if (rows <= few_rows)
        return few * rows / few_rows;
    return few * pow(many / few, log(rows / few_rows) / log(MANY_ROWS / few_rows));
}

/* Keys and values that a pass moves. */
typedef struct moved {
    double disk, link; /* bytes */
} moved;

/* Those that are not where it is computed cross the link, or come from the file, for every sequence that decodes; every row's
 * go to the file once. A prompt that passes cut reads what its former parts wrote: `before` positions of one. What else prompts
 * move is little beside what they compute. */
static moved cache_bytes(const pst_placed *p, double decoding, double positions, double joining, double before)
{
    const double mean = decoding >= 1 ? positions / decoding : 0;
    const pst_kv_traffic row = pst_kv_row_traffic(&p->cache, (uint32_t)mean);
    const pst_kv_traffic cut = pst_kv_row_traffic(&p->cache, (uint32_t)before);
    moved m = {.disk = (decoding + joining) * (double)row.bytes_written + (double)cut.bytes_read};
    if (decoding >= 1) {
        m.disk += decoding * (double)row.bytes_read;
        m.link = decoding * (double)row.link_bytes;
    }
    return m;
}

static pst_predicted_pass time_pass(const pst_placed *p, double rows, double logit_rows, double keys, moved cache)
{
    const pst_predict_options *o = p->options;
    /* The session's own reckoning, with its cache of experts. */
    pst_predicted_pass pass = {.rows = rows, .bytes = pst_plan_expected_bytes(p->plan, (uint32_t)ceil(rows))};
    pass.bytes += rows * p->gathered_row_bytes + cache.disk;
    const double over_link = pst_plan_link_bytes(p->plan, (uint32_t)ceil(rows)) + cache.link;
    if (pass.bytes > 0)
        pass.disk_seconds = pass.bytes / o->disk_bytes_per_second;
    if (over_link > 0)
        pass.link_seconds = over_link / o->link_bytes_per_second;
    pass.compute_seconds = pst_cost_operations(&p->cost, rows, logit_rows, keys) / rate_of(o, p->batch, rows);
    const double by[LIMITS] = {pass.disk_seconds, pass.link_seconds, pass.compute_seconds};
    limit slowest = BY_DISK;
    for (limit l = BY_LINK; l < LIMITS; l++)
        slowest = by[l] > by[slowest] ? l : slowest;
    pass.seconds = by[slowest];
    pass.limited_by = limit_names[slowest];
    return pass;
}

typedef struct run {
    const pst_placed *p;
    uint32_t *joined;           /* by pass with prompts: sequences whose first token it made */
    uint64_t prefill_count;     /* of these passes */
    double decoding, positions; /* sequences that decode, and the sum of their positions */
    double limited[LIMITS];     /* seconds */
    double seconds;
} run;

static void count_pass(run *r, const pst_predicted_pass *pass, double times)
{
    r->seconds += times * pass->seconds;
    for (limit l = 0; l < LIMITS; l++)
        if (pass->limited_by == limit_names[l])
            r->limited[l] += times * pass->seconds;
}

static double keys_of_decoding(const run *r)
{
    return r->decoding > 0 ? r->decoding * pst_cost_keys(&r->p->cost, r->positions / r->decoding) : 0;
}

static void advance(run *r, double passes)
{
    r->positions += passes * r->decoding;
}

/* Sequences that got all their tokens in this pass (counted from 0) leave. */
static void leave(run *r, uint64_t pass)
{
    const pst_predict_options *o = r->p->options;
    if (o->new_tokens == 0 || pass + 1 < o->new_tokens || pass + 1 - o->new_tokens >= r->prefill_count)
        return;
    double gone = r->joined[pass + 1 - o->new_tokens];
    r->decoding -= gone;
    r->positions -= gone * ((double)o->prompt_tokens + o->new_tokens - 1);
}

/* The passes that carry prompts. */
static void run_prefill(run *r, pst_prediction *out)
{
    const pst_predict_options *o = r->p->options;
    double prompt = o->prompt_tokens, left = prompt * r->p->batch;
    double room = r->p->rows_per_pass;
    for (uint64_t pass = 0; left > 0; pass++) {
        double rows = room - r->decoding;
        rows = rows < left ? rows : left;
        const double done = prompt * r->p->batch - left;
        double done_before = floor(done / prompt);
        left -= rows;
        double finished = floor((prompt * r->p->batch - left) / prompt) - done_before;
        /* Rows of one prompt stand at all its positions; a piece of a long one is taken at the middle on average. */
        double keys = rows * pst_cost_keys(&r->p->cost, prompt / 2) + keys_of_decoding(r);
        pst_predicted_pass cost = time_pass(r->p, rows + r->decoding, finished + r->decoding, keys,
                                            cache_bytes(r->p, r->decoding, r->positions, rows, fmod(done, prompt)));
        if (cost.seconds > out->prefill.seconds)
            out->prefill = cost;
        count_pass(r, &cost, 1);
        advance(r, 1);
        r->decoding += finished;
        r->positions += finished * prompt;
        r->joined[pass] = (uint32_t)finished;
        r->prefill_count = pass + 1;
        leave(r, pass);
    }
}

/* The rest, from one leave to the next. Returns the number of passes. */
static uint64_t run_decode(run *r)
{
    const pst_predict_options *o = r->p->options;
    uint64_t pass = r->prefill_count, end = r->prefill_count + o->new_tokens - 1;
    while (pass < end) {
        /* The pass after which someone leaves next: his first token's pass plus new_tokens - 1. */
        uint64_t stop = pass < o->new_tokens - 1 ? o->new_tokens - 1 : pass;
        double passes = (double)(stop - pass + 1);
        double middle = r->positions;
        r->positions += (passes - 1) / 2 * r->decoding;
        pst_predicted_pass cost = time_pass(r->p, r->decoding, r->decoding, keys_of_decoding(r),
                                            cache_bytes(r->p, r->decoding, r->positions, 0, 0));
        r->positions = middle;
        if (r->decoding > 0)
            count_pass(r, &cost, passes);
        advance(r, passes);
        leave(r, stop);
        pass = stop + 1;
    }
    return end;
}

/* In the long run as many sequences end as join: with x of them per pass, x * new_tokens are in flight, and a pass carries
 * x * (prompt + new - 1) rows. */
static double steady_rate(const pst_placed *p)
{
    const pst_predict_options *o = p->options;
    double prompt = o->prompt_tokens, made = o->new_tokens;
    double x = p->batch / made, by_rows = p->rows_per_pass / (prompt + made - 1);
    x = x < by_rows ? x : by_rows;
    double decoding = x * (made - 1), joining = x * prompt;
    double keys = decoding * pst_cost_keys(&p->cost, prompt + made / 2) + joining * pst_cost_keys(&p->cost, prompt / 2);
    pst_predicted_pass pass = time_pass(p, decoding + joining, decoding + x, keys,
                                        cache_bytes(p, decoding, decoding * (prompt + made / 2), joining, 0));
    return pass.seconds > 0 ? x * made / pass.seconds : 0;
}

static void fill_rates(const run *r, double prefill_seconds, pst_prediction *out)
{
    double batch = out->batch, prompt = out->prompt_tokens, made = out->new_tokens;
    out->prefill_seconds = prefill_seconds;
    out->total_seconds = r->seconds;
    out->decode_seconds = r->seconds - prefill_seconds;
    out->prefill_tokens_per_second = prefill_seconds > 0 ? batch * prompt / prefill_seconds : 0;
    out->decode_tokens_per_second = out->decode_seconds > 0 ? batch * (made - 1) / out->decode_seconds : 0;
    out->tokens_per_second = r->seconds > 0 ? batch * made / r->seconds : 0;
    limit most = BY_DISK;
    for (limit l = BY_LINK; l < LIMITS; l++)
        most = r->limited[l] > r->limited[most] ? l : most;
    out->limited_by = limit_names[most];
}

int pst_predict_times(const pst_placed *p, pst_prediction *out, pst_error *err)
{
    /* Rows beside those that decode; at least one, since the plan has a row for each sequence. */
    double passes = (double)p->batch * p->options->prompt_tokens;
    double most_decoding = p->rows_per_pass > p->batch ? p->rows_per_pass - p->batch : 1;
    passes = ceil(passes / most_decoding) + p->batch + 1;
    if (passes > (double)MAX_PREFILL_PASSES)
        return pst_fail(err, PST_E_USAGE, p->model->name, "%u prompts of %u tokens, %u at a time, are too many passes",
                        p->batch, p->options->prompt_tokens, p->rows_per_pass);
    run r = {.p = p, .joined = pst_heap_calloc((size_t)passes + 1, sizeof *r.joined)};
    if (r.joined == NULL)
        return pst_fail_memory(err, "the passes of a prediction", (size_t)passes * sizeof *r.joined);
    out->rows_per_pass = p->rows_per_pass;
    run_prefill(&r, out);
    double prefill_seconds = r.seconds;
    out->prefill_passes = r.prefill_count;
    out->passes = run_decode(&r);
    pst_heap_free(r.joined);
    double middle = p->options->prompt_tokens + p->options->new_tokens / 2.0;
    out->decode = time_pass(p, p->batch, p->batch, p->batch * pst_cost_keys(&p->cost, middle),
                            cache_bytes(p, p->batch, p->batch * middle, 0, 0));
    out->kv_offloaded = p->cache.apart && (p->cache.offload || p->cache.folder != NULL);
    out->expert_share = pst_cost_expert_share(p->model->t, p->batch);
    fill_rates(&r, prefill_seconds, out);
    /* Few rows meet few experts, so spreading prompts over all passes may touch more of them than batch after batch does; a
     * job can always be run batch after batch. */
    out->steady_tokens_per_second = fmax(steady_rate(p), out->tokens_per_second);
    return 0;
}
