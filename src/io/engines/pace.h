/* SPDX-License-Identifier: Apache-2.0 */
/*
 * For how many completions a worker waits at a time.
 *
 * To be woken for each completion costs a system call and two switches of the processor per block. While the queue is
 * full nothing is lost by waiting for a quarter of it: the drive still has the others, and nobody can hand over more.
 * While it has room, the next one to be handed over may be what a caller waits for, so there it is one. A short queue
 * feels a quarter less of it, and to set a timer costs as much as the few wake-ups that it saves; there it is one, too.
 * The time is limited: when most of the queue is stuck on a slow drive, the others' completions must not wait for it.
 */
#ifndef PST_IO_ENGINES_PACE_H
#define PST_IO_ENGINES_PACE_H

#include <stdint.h>

enum { PST_PACE_LEAST = 16, PST_PACE_SHARE = 4, PST_PACE_LIMIT_NS = 4000000 };

/* With `under_way` transfers of at most `depth`: 1, or more for at most PST_PACE_LIMIT_NS. */
static inline uint32_t pst_pace_count(uint32_t under_way, uint32_t depth)
{
    return under_way == depth && depth >= PST_PACE_LEAST ? depth / PST_PACE_SHARE : 1;
}

#endif
