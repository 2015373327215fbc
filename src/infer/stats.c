/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The bound and the statistics of a run. A pass cannot be faster than its reads at the drive's bandwidth, its copies at the
 * link's where an accelerator computes, nor than its arithmetic at the rate of whoever computes; all are measured before the
 * first pass, with the same engine, kernels and memory. The rate is that of the number of rows in question, so that it includes
 * the memory's bandwidth where few rows share a weight.
 */
#include <string.h>

#include "base/error.h"
#include "base/log.h"
#include "infer/internal.h"
#include "os/memory.h"

enum { PREFILL_ROWS = 256, MEASURED_PARTS = 16 };
static const uint64_t MEASURED_BYTES = 1024ull << 20;

/* What a pass moves and computes, and the seconds that each takes. */
typedef struct pass_bound {
    double disk_bytes, link_bytes, operations;
    double disk, link, math;
} pass_bound;

static double over(double amount, double rate)
{
    return rate > 0 ? amount / rate : 0;
}

static double bound(const pst_session *s, uint32_t rows, pass_bound *pass)
{
    pass->disk = over(pass->disk_bytes, s->disk_bytes_per_second);
    pass->link = over(pass->link_bytes, s->link_bytes_per_second);
    pass->math = over(pass->operations, rows <= s->decode_rate.rows ? s->decode_rate.flops : s->prefill_rate.flops);
    double moving = pass->disk > pass->link ? pass->disk : pass->link;
    return moving > pass->math ? moving : pass->math;
}

int pst_session_measure(pst_session *s, pst_error *err)
{
    pst_stage_part parts[MEASURED_PARTS];
    uint32_t sequences = s->options.max_sequences;
    s->decode_rate.rows = sequences;
    s->prefill_rate.rows = PREFILL_ROWS;
    pst_cost_of(&s->transformer, s->program, &s->cost);
    PST_TRY(pst_ring_measure(s->ring, MEASURED_BYTES, &s->disk_bytes_per_second, err));
    PST_TRY(pst_ring_measure_link(s->ring, &s->link_bytes_per_second, err));
    if (s->link_bytes_per_second <= 0) /* no weights have to be copied */
        PST_TRY(pst_kv_measure_link(s->kv, &s->link_bytes_per_second, err));
    uint32_t count = pst_ring_samples(s->ring, parts, MEASURED_PARTS);
    PST_TRY(pst_forward_measure_rate(s->forward, parts, count, sequences, false, &s->decode_rate.flops, err));
    PST_TRY(pst_forward_measure_rate(s->forward, parts, count, PREFILL_ROWS, true, &s->prefill_rate.flops, err));
    double keys = sequences * pst_cost_keys(&s->cost, s->options.max_tokens / 2);
    pass_bound pass = {
        .operations = pst_cost_operations(&s->cost, sequences, sequences, keys),
        .disk_bytes = pst_plan_expected_bytes(&s->plan, sequences) + (double)(sequences * s->kv_row_traffic.bytes_read),
        .link_bytes = pst_plan_link_bytes(&s->plan, sequences) + (double)(sequences * s->kv_row_traffic.link_bytes)};
    s->info.pass_bound_seconds = bound(s, sequences, &pass);
    s->info.read_bytes_per_second = s->disk_bytes_per_second;
    s->info.link_bytes_per_second = s->link_bytes_per_second;
    s->info.operations_per_second = s->prefill_rate.flops;
    s->info.decode_operations_per_second = s->decode_rate.flops;
    pst_log(
        PST_LOG_INFO,
        "bound: a pass with a row of each of %u sequences takes at least %.3g s (drive %.3g s, link %.3g s, compute "
        "%.3g s)",
        sequences, s->info.pass_bound_seconds, pass.disk, pass.link, pass.math);
    return 0;
}

void pst_session_count_bound(pst_session *s, uint32_t rows, uint32_t logit_rows, uint64_t bytes_read,
                             uint64_t link_bytes)
{
    pst_session_counters *c = &s->counters;
    if (!s->options.measure_bound)
        return;
    double keys = 0;
    for (uint32_t i = 0; i < rows; i++)
        keys += pst_cost_keys(&s->cost, s->rows[i].position);
    pass_bound pass = {.operations = pst_cost_operations(&s->cost, rows, logit_rows, keys),
                       .disk_bytes = (double)bytes_read,
                       .link_bytes = (double)link_bytes};
    c->bound_seconds += bound(s, rows, &pass);
    c->disk_seconds += pass.disk;
    c->link_seconds += pass.link;
    c->math_seconds += pass.math;
}

void pst_session_get_counters(const pst_session *s, pst_session_counters *out)
{
    *out = s->counters;
    pst_ring_get_stats(s->ring, &out->ring);
    pst_kv_get_traffic(s->kv, &out->kv);
}

static const char *limit(const pst_session *s, const pst_session_counters *before, const pst_session_counters *now)
{
    double disk = now->disk_seconds - before->disk_seconds, link = now->link_seconds - before->link_seconds;
    double math = now->math_seconds - before->math_seconds;
    if (!s->options.measure_bound)
        return "not measured";
    if (disk <= math && link <= math)
        return "compute";
    if (link > disk)
        return "link";
    return pst_ring_is_direct(s->ring) ? "disk" : "page cache";
}

static void fill_expert_stats(const pst_session *s, const pst_session_counters *before, const pst_session_counters *now,
                              pst_run_stats *stats)
{
    const pst_ring_stats *a = &before->ring, *b = &now->ring;
    stats->expert_hits = b->cache_hits - a->cache_hits;
    stats->expert_misses = b->cache_misses - a->cache_misses;
    stats->expert_bytes_found = b->cache_hit_bytes - a->cache_hit_bytes;
    stats->expert_bytes_read = b->cache_miss_bytes - a->cache_miss_bytes;
    stats->guesses_right = b->guessed_right - a->guessed_right;
    stats->guesses_wrong = b->guessed_wrong - a->guessed_wrong;
    stats->wasted_bytes = b->wasted_bytes - a->wasted_bytes;
    stats->expert_cache_bytes = s->info.expert_cache_bytes;
    stats->computed_tokens = now->rows - before->rows;
    if (stats->computed_tokens > 0)
        stats->expert_bytes_per_token =
            (double)(stats->expert_bytes_read + stats->wasted_bytes) / (double)stats->computed_tokens;
}

void pst_session_fill_stats(const pst_session *s, const pst_session_counters *before, pst_run_stats *stats)
{
    pst_session_counters now;
    pst_session_get_counters(s, &now);
    double seconds = (double)(now.pass_ns - before->pass_ns) / 1e9;
    stats->passes = now.passes - before->passes;
    stats->replayed_passes = now.replayed_passes - before->replayed_passes;
    stats->shared_tokens = now.shared_tokens - before->shared_tokens;
    stats->weight_bytes_read = now.ring.weight_bytes - before->ring.weight_bytes;
    stats->read_bytes_per_second = seconds > 0 ? (double)stats->weight_bytes_read / seconds : 0;
    uint64_t kv_wait_ns = now.kv.wait_ns - before->kv.wait_ns; /* within the stages' functions */
    stats->kv_bytes_read = now.kv.bytes_read - before->kv.bytes_read;
    stats->kv_bytes_written = now.kv.bytes_written - before->kv.bytes_written;
    stats->io_wait_seconds = (double)(now.ring.wait_ns - before->ring.wait_ns + kv_wait_ns) / 1e9;
    stats->compute_seconds = (double)(now.ring.compute_ns - before->ring.compute_ns - kv_wait_ns) / 1e9;
    stats->link_bytes = now.ring.link_bytes - before->ring.link_bytes + now.kv.link_bytes - before->kv.link_bytes;
    stats->link_wait_seconds = (double)(now.ring.link_wait_ns - before->ring.link_wait_ns) / 1e9;
    if (s->device != s->host) { /* its functions return before they are carried out: what is no waiting is computing */
        double rest = seconds - stats->io_wait_seconds - stats->link_wait_seconds;
        stats->compute_seconds = rest > 0 ? rest : 0;
    }
    stats->bound_seconds = now.bound_seconds - before->bound_seconds;
    stats->share_of_bound = seconds > 0 ? stats->bound_seconds / seconds : 0;
    stats->limited_by = limit(s, before, &now);
    stats->disk_bytes_per_second = s->disk_bytes_per_second;
    stats->link_bytes_per_second = s->link_bytes_per_second;
    stats->device_resident_bytes = s->plan.device_resident_bytes;
    stats->device_memory_bytes = s->plan.device_total_bytes;
    stats->compute_flops = s->prefill_rate.flops;
    stats->resident_bytes = s->plan.resident_bytes;
    stats->streamed_bytes = s->plan.streamed_bytes;
    fill_expert_stats(s, before, &now, stats);
    stats->peak_rss_bytes = pst_memory_peak_bytes();
    stats->host_memory_bytes = s->info.budget_bytes;
}
