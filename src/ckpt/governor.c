/* SPDX-License-Identifier: Apache-2.0 */
/* The bucket is one moment: when all that was let through would be written at exactly the rate. */
#include "ckpt/governor.h"

#include "base/number.h"
#include "penstock/ckpt.h"

/* A byte costs a processor between a twentieth of a nanosecond and two: outside of that something else was measured, such as
 * the ring's memory that came into being, or a whole snapshot that was copied meanwhile. */
static const double least_cost = 0.05, first_cost = 0.3, most_cost = 2;

void pst_governor_begin(pst_governor *governor, uint64_t bytes_per_second, uint64_t now_ns, uint64_t cpu_ns)
{
    *governor = (pst_governor){
        .bytes_per_second = bytes_per_second, .free_at_ns = now_ns, .cpu_ns = cpu_ns, .ns_per_byte = first_cost};
}

/* A mean that forgets: one sample in eight counts. */
static void learn(pst_governor *governor, uint64_t bytes, uint64_t cpu_ns)
{
    double cost = (double)(cpu_ns - governor->cpu_ns) / (double)bytes;
    governor->cpu_ns = cpu_ns;
    cost = cost < least_cost ? least_cost : cost > most_cost ? most_cost : cost;
    governor->ns_per_byte += (cost - governor->ns_per_byte) / 8;
}

uint64_t pst_governor_ask(pst_governor *governor, uint64_t bytes, uint64_t now_ns, uint64_t cpu_ns)
{
    if (governor->bytes_per_second == PST_CKPT_UNLIMITED || bytes == 0)
        return 0;
    double cost_ns;
    if (governor->bytes_per_second > 0) {
        cost_ns = (double)bytes * 1e9 / (double)governor->bytes_per_second;
    } else {
        learn(governor, bytes, cpu_ns);
        cost_ns = (double)bytes * governor->ns_per_byte * 100 / PST_GOVERNOR_SHARE_PERCENT;
    }
    if (now_ns > PST_GOVERNOR_BURST_NS)
        governor->free_at_ns = pst_max(governor->free_at_ns, now_ns - PST_GOVERNOR_BURST_NS);
    uint64_t wait_ns = governor->free_at_ns > now_ns ? governor->free_at_ns - now_ns : 0;
    double end_ns = (double)governor->free_at_ns + cost_ns; /* only to see whether it can be counted */
    governor->free_at_ns = end_ns < 9e18 ? governor->free_at_ns + (uint64_t)cost_ns : INT64_MAX;
    return wait_ns;
}
