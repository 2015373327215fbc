/* SPDX-License-Identifier: Apache-2.0 */
/* Error records: what is recorded, how it reads, and the names of codes and element types. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/error.h"

static void test_record(void **state)
{
    (void)state;
    pst_error err;
    assert_int_equal(pst_fail_at(&err, PST_E_FORMAT, "a/b", 17, "bad %s %d", "thing", 3), PST_E_FORMAT);
    assert_int_equal(err.code, PST_E_FORMAT);
    assert_string_equal(err.path, "a/b");
    assert_int_equal(err.offset, 17);
    assert_string_equal(err.message, "bad thing 3");
    char text[64];
    assert_string_equal(pst_error_format(&err, text, sizeof text), "a/b: bad thing 3 (at byte 17)");
    assert_int_equal(pst_fail(&err, -EIO, NULL, "no path"), -EIO);
    assert_string_equal(pst_error_format(&err, text, sizeof text), "no path");
    assert_int_equal(pst_fail(NULL, -EIO, "x", "nobody listens"), -EIO);
}

static void test_long_texts_are_cut(void **state)
{
    (void)state;
    pst_error err;
    char path[2000];
    memset(path, 'p', sizeof path - 1);
    path[sizeof path - 1] = '\0';
    pst_fail(&err, PST_E_FORMAT, path, "%s", path);
    assert_int_equal(strlen(err.path), sizeof err.path - 1);
    assert_int_equal(strlen(err.message), sizeof err.message - 1);
    char text[16];
    pst_error_format(&err, text, sizeof text);
    assert_int_equal(strlen(text), sizeof text - 1);
}

static int inner(int code, pst_error *err)
{
    return code < 0 ? pst_fail(err, code, "inner", "first") : code;
}

static int outer(int code, pst_error *err)
{
    PST_TRY(inner(code, err));
    return 7;
}

static int outer_goto(int code, int *cleaned, pst_error *err)
{
    int status;
    PST_TRY_GOTO(done, inner(code, err));
    status = 7;
done:
    ++*cleaned;
    return status;
}

static void test_try_passes_failures_on(void **state)
{
    (void)state;
    pst_error err = {.code = 1};
    assert_int_equal(outer(3, &err), 7);
    assert_int_equal(err.code, 1); /* untouched on success */
    assert_int_equal(outer(PST_E_SHORT, &err), PST_E_SHORT);
    assert_string_equal(err.path, "inner");
    int cleaned = 0;
    assert_int_equal(outer_goto(0, &cleaned, &err), 7);
    assert_int_equal(outer_goto(-EIO, &cleaned, &err), -EIO);
    assert_int_equal(cleaned, 2);
}

static void test_names(void **state)
{
    (void)state;
    assert_string_equal(pst_strerror(PST_E_BUDGET), "memory budget too small");
    assert_string_equal(pst_strerror(-ENOENT), strerror(ENOENT));
    assert_string_equal(pst_strerror(0), "success");
    for (int i = 0; i < PST_DTYPE_COUNT; i++) {
        pst_dtype parsed = PST_DTYPE_COUNT;
        int in_safetensors = i != PST_C32 && i != PST_C128;
        assert_int_equal(pst_dtype_parse(pst_dtype_name((pst_dtype)i), &parsed), in_safetensors ? 0 : PST_E_FORMAT);
        assert_int_equal(parsed, in_safetensors ? i : PST_DTYPE_COUNT);
        assert_true(pst_dtype_bits((pst_dtype)i) > 0);
    }
    pst_dtype untouched = PST_F64;
    assert_int_equal(pst_dtype_parse("BF17", &untouched), PST_E_FORMAT);
    assert_int_equal(untouched, PST_F64);
    assert_int_equal(pst_dtype_bits(PST_DTYPE_COUNT), 0);
    assert_string_equal(pst_dtype_name(PST_DTYPE_COUNT), "?");
    assert_int_equal(pst_dtype_bits(PST_BF16), 16);
    assert_int_equal(pst_dtype_bits(PST_F32), 32);
    assert_non_null(strchr(pst_version(), '.'));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_record),
        cmocka_unit_test(test_long_texts_are_cut),
        cmocka_unit_test(test_try_passes_failures_on),
        cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
