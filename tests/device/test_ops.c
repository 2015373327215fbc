/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The suite that a device must pass: every operator of penstock/device_plugin.h, over random shapes, strides, types, formats
 * and options, against float64 and the host device; see ops.h.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "device/ops.h"

static void one(void **state)
{
    ops_drive(*state);
}

int main(void)
{
    const ops_test *const lists[] = {ops_rows_tests, ops_move_tests, ops_matmul_tests, ops_sequence_tests,
                                     ops_route_tests};
    struct CMUnitTest tests[32];
    size_t count = 0;
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++)
        for (const ops_test *test = lists[i]; test->name != NULL; test++)
            tests[count++] = (struct CMUnitTest){test->name, one, NULL, NULL, (void *)(uintptr_t)test};
    tests[count++] = (struct CMUnitTest){"matmul of a bad index", ops_test_bad_index, NULL, NULL, NULL};
    /* The macro of the same name wants an array of a fixed length. */
    return _cmocka_run_group_tests("operators", tests, count, ops_set_up, ops_tear_down);
}
