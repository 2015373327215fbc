/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How fast a save in the background may write: a bucket of time that writes are paid from.
 *
 * At a given rate, a write of b bytes takes b / rate; what was not used is kept for at most PST_GOVERNOR_BURST_NS.
 *
 * Without one, the rate follows from what a byte costs this thread in processor time (copying, digests, CRC), so that it is
 * busy for PST_GOVERNOR_SHARE of the time at most, in bursts of one buffer of the ring. Why so: what slows a training loop
 * that leaves one processor free is not the drive but the copying. Where that processor is the other half of a busy core, the
 * busy half runs at about 60 % while the copying goes on, and a loop whose threads wait for each other runs as slowly as its
 * slowest thread: 40 % of a tenth of the time is 4 %. Where it is a core of its own, what remains is memory bandwidth and
 * cache, a tenth of what one core can take of them. A fixed rate would have to be right for the slowest machine. With a tenth
 * of a core that copies and digests 3 to 20 GB/s, a save writes 0.3 to 2 GB/s.
 *
 * One thread at a time.
 */
#ifndef PST_CKPT_GOVERNOR_H
#define PST_CKPT_GOVERNOR_H

#include <stdint.h>

enum { PST_GOVERNOR_SHARE_PERCENT = 10, PST_GOVERNOR_BURST_NS = 50 * 1000 * 1000, PST_GOVERNOR_NICE = 15 };

typedef struct pst_governor {
    uint64_t bytes_per_second; /* 0: by the share */
    uint64_t free_at_ns;       /* when what was written is paid for */
    uint64_t cpu_ns;           /* of the thread at the last call */
    double ns_per_byte;        /* of processor time, by the share */
} pst_governor;

/* bytes_per_second: 0 for the share, PST_CKPT_UNLIMITED for none. The thread that will ask calls it. */
void pst_governor_begin(pst_governor *governor, uint64_t bytes_per_second, uint64_t now_ns, uint64_t cpu_ns);
/* Before a write of `bytes`: nanoseconds that it has to wait. now_ns: of pst_clock_ns; cpu_ns: of pst_clock_thread_ns. */
uint64_t pst_governor_ask(pst_governor *governor, uint64_t bytes, uint64_t now_ns, uint64_t cpu_ns);

#endif
