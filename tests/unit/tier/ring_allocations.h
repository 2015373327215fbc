/* SPDX-License-Identifier: Apache-2.0 */
/* A ring's creation with each of its allocations failing in turn. */
#ifndef RING_ALLOCATIONS_H
#define RING_ALLOCATIONS_H

#include <errno.h>

#include "base/heap.h"
#include "tier/ring.h"

static inline void check_ring_allocations(const pst_ring_config *config)
{
    for (int64_t n = 0;; n++) {
        int64_t live = pst_heap_live_count();
        pst_ring *ring = NULL;
        pst_error err;
        pst_heap_fail_after(n, 0);
        int status = pst_ring_create(config, &ring, &err);
        pst_heap_fail_after(-1, 0);
        pst_ring_destroy(ring);
        assert_int_equal(pst_heap_live_count(), live);
        if (status == 0)
            break;
        assert_int_equal(status, -ENOMEM);
        assert_true(n < 10000);
    }
}

#endif
