/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How many completions a worker waits for at a time.
 *
 * To be woken for each completion costs a system call and two switches of the processor per block. With many transfers
 * under way nothing is lost by waiting for a quarter of them: the drive still has the others, and those that were
 * handed to it together mostly come back together. A time limit keeps that from ever taking much longer than so many
 * completions have taken of late, so that a few transfers of a fast drive do not wait for many of a slow one. While the
 * queue has room, the worker may be woken to fill it, and that wake only counts as one completion; and callers that
 * wait for single blocks submit the next one sooner. So there it is fewer, and for a shorter time.
 *
 * One queue, its owner's thread only. All zeros is the beginning.
 */
#ifndef PST_IO_ENGINES_PACE_H
#define PST_IO_ENGINES_PACE_H

#include <stdbool.h>
#include <stdint.h>

typedef struct pst_pace {
    uint64_t since_ns;    /* of the last count; 0: nothing was under way since */
    uint64_t interval_ns; /* from one completion to the next, a moving mean; 0: not known yet */
} pst_pace;

enum {
    PST_PACE_SHARE = 4, /* of what is under way */
    PST_PACE_LIMIT_NS = 4000000,
    PST_PACE_SHARE_WITH_ROOM = 8,
    PST_PACE_LIMIT_WITH_ROOM_NS = 1000000
};

/* For how many completions to wait, with `under_way` transfers of at most `depth`: 1, without a limit, or more, for at
 * most *limit_ns, after which one is enough. */
static inline uint32_t pst_pace_count(const pst_pace *pace, uint32_t under_way, uint32_t depth, uint64_t *limit_ns)
{
    bool full = under_way == depth;
    uint32_t count = under_way / (full ? PST_PACE_SHARE : PST_PACE_SHARE_WITH_ROOM);
    if (count <= 1 || pace->interval_ns == 0)
        return 1;
    uint64_t most = full ? PST_PACE_LIMIT_NS : PST_PACE_LIMIT_WITH_ROOM_NS;
    uint64_t expected = pace->interval_ns * count * 3 / 2;
    *limit_ns = expected < most ? expected : most;
    return count;
}

/* `count` completions have come at now_ns, and `left` transfers are still under way. */
static inline void pst_pace_note(pst_pace *pace, uint64_t now_ns, uint32_t count, uint32_t left)
{
    if (count > 0 && pace->since_ns != 0) {
        uint64_t interval = (now_ns - pace->since_ns) / count;
        pace->interval_ns = pace->interval_ns == 0 ? interval : (7 * pace->interval_ns + interval) / 8;
    }
    if (count > 0)
        pace->since_ns = left > 0 ? now_ns : 0;
}

#endif
