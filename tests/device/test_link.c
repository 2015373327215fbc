/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Weights on their way to the device under test, over its own memory, streams and events: whatever stays there, on the host, in
 * the cache or nowhere, every stage computes with the bytes of the file. No operator is needed for it but copies.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "device/ops.h"
#include "unit/tier/link_runs.h"

enum { MODELS = 3, ROUNDS = 8 };

static void test_bytes_arrive(void **state)
{
    (void)state;
    if (!ops_begin("link"))
        skip();
    if (ops_device(OPS_DEVICE)->ops->is_host) {
        printf("link: the host needs none\n");
        skip();
    }
    random_source source = source_start("link");
    link_counts sum = {0};
    for (int model = 0; model < MODELS; model++) {
        world *w =
            world_make(&source, 1 + (uint32_t)source_below(&source, 5), 2 + (uint32_t)source_below(&source, 12),
                       ((uint32_t)(1 + source_below(&source, 24)) << 10) + 64 * (uint32_t)source_below(&source, 16));
        for (int round = 0; round < ROUNDS; round++) {
            pst_device *device;
            pst_error err;
            if (ops_open(&device, &err) < 0)
                fail_msg("%s", err.message);
            pst_io *io = world_open_io(round % 2 ? "auto" : "threads");
            w->guessing = (guessing)source_below(&source, GUESSINGS);
            link_run_passes(w, io, device, &source, &sum);
            pst_io_close(io);
            pst_device_destroy(device);
        }
        world_free(w);
    }
    assert_true(sum.all_there + sum.some_there > 0 && sum.from_disk > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_bytes_arrive)};
    return cmocka_run_group_tests_name("device link", tests, ops_set_up, ops_tear_down);
}
