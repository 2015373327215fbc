/* SPDX-License-Identifier: Apache-2.0 */
/* The heap: counting, overflow, and the failure hook that other tests rely on. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/heap.h"

static void test_counts(void **state)
{
    (void)state;
    int64_t before = pst_heap_live_count();
    void *a = pst_heap_alloc(0), *b = pst_heap_calloc(3, 5), *c = pst_heap_strdup("text");
    assert_non_null(a);
    assert_ptr_not_equal(a, b);
    for (size_t i = 0; i < 15; i++)
        assert_int_equal(((char *)b)[i], 0);
    assert_int_equal(pst_heap_live_count(), before + 3);
    a = pst_heap_realloc(a, 1000);
    assert_int_equal(pst_heap_live_count(), before + 3);
    pst_heap_free(a);
    pst_heap_free(b);
    pst_heap_free(c);
    pst_heap_free(NULL);
    assert_int_equal(pst_heap_live_count(), before);
}

static void test_overflow(void **state)
{
    (void)state;
    assert_null(pst_heap_reallocarray(NULL, SIZE_MAX / 2, 3));
    volatile size_t count = SIZE_MAX / 2; /* or the compiler objects */
    assert_null(pst_heap_calloc(count, 3));
}

static void test_strings(void **state)
{
    (void)state;
    char *cut = pst_heap_strndup("abcdef", 3), *made = pst_heap_printf("%d-%s", 5, "x");
    assert_string_equal(cut, "abc");
    assert_string_equal(made, "5-x");
    pst_heap_free(cut);
    pst_heap_free(made);
}

static void test_failure_hook(void **state)
{
    (void)state;
    pst_heap_fail_after(2, 0);
    void *first = pst_heap_alloc(1), *second = pst_heap_alloc(1), *third = pst_heap_alloc(1),
         *fourth = pst_heap_alloc(1);
    assert_non_null(first);
    assert_non_null(second);
    assert_null(third);
    assert_non_null(fourth);
    /* A failed realloc leaves the block as it was. */
    strcpy(fourth, "");
    pst_heap_fail_after(0, 0);
    assert_null(pst_heap_realloc(fourth, 100));
    pst_heap_fail_after(0, 1);
    assert_null(pst_heap_alloc(1));
    assert_null(pst_heap_calloc(1, 1));
    assert_null(pst_heap_strdup("x"));
    assert_null(pst_heap_printf("x"));
    pst_heap_fail_after(-1, 0);
    pst_heap_free(first);
    pst_heap_free(second);
    pst_heap_free(fourth);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_counts),
        cmocka_unit_test(test_overflow),
        cmocka_unit_test(test_strings),
        cmocka_unit_test(test_failure_hook),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
