/* SPDX-License-Identifier: Apache-2.0 */
/* Pools of 1, 2 and 3 threads for the tests of the host device, made and taken down around a group of tests. */
#ifndef PST_TESTS_UNIT_DEVICE_POOLS_H
#define PST_TESTS_UNIT_DEVICE_POOLS_H

#include "os/thread.h"

#define POOLS 3

static pst_pool *pools[POOLS];

static inline int pools_set_up(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < POOLS; i++) {
        if (pst_pool_create(i + 1, &pools[i], NULL) < 0)
            return -1;
    }
    return 0;
}

static inline int pools_tear_down(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < POOLS; i++)
        pst_pool_destroy(pools[i]);
    return 0;
}

#endif
