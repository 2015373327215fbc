/* SPDX-License-Identifier: Apache-2.0 */
/* Strict JSON: what is refused, and the accessors' types, ranges and defaults. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/heap.h"
#include "base/json.h"

static json_t *parse(const char *text)
{
    json_t *document;
    pst_error err;
    if (pst_json_parse(text, strlen(text), "f.json", &document, &err) < 0)
        fail_msg("%s: %s", text, err.message);
    return document;
}

static void test_refuses(void **state)
{
    (void)state;
    static const char *const bad[] = {"",         "{",           "{} x", "{\"a\": 1, \"a\": 2}",
                                      "[1, 2",    "{\"a\": .5}", "nul",  "{\"a\": \"\xff\"}",
                                      "{'a': 1}", "\"bare\""};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        json_t *untouched = (json_t *)&bad;
        pst_error err;
        assert_int_equal(pst_json_parse(bad[i], strlen(bad[i]), "f.json", &untouched, &err), PST_E_FORMAT);
        assert_ptr_equal(untouched, &bad);
        assert_string_equal(err.path, "f.json");
    }
}

static void test_depth_is_bounded(void **state)
{
    (void)state;
    size_t bytes = 1000000;
    char *deep = malloc(bytes);
    assert_non_null(deep);
    memset(deep, '[', bytes);
    json_t *document;
    assert_int_equal(pst_json_parse(deep, bytes, NULL, &document, NULL), PST_E_FORMAT);
    free(deep);
}

static void test_u64(void **state)
{
    (void)state;
    json_t *document = parse("{\"a\": 5, \"b\": -1, \"c\": 1e4, \"d\": 1.5, \"e\": \"5\", \"f\": null, \"g\": 20}");
    uint64_t value = 42;
    pst_error err;
    assert_int_equal(pst_json_u64(document, "a", true, 0, 10, &value, "f", &err), 0);
    assert_int_equal(value, 5);
    assert_int_equal(pst_json_u64(document, "c", true, 0, 100000, &value, "f", &err), 0);
    assert_int_equal(value, 10000);
    value = 42;
    assert_int_equal(pst_json_u64(document, "f", false, 0, 10, &value, "f", &err), 1);
    assert_int_equal(pst_json_u64(document, "missing", false, 0, 10, &value, "f", &err), 1);
    assert_int_equal(pst_json_u64(document, "f", true, 0, 10, &value, "f", &err), PST_E_FORMAT);
    static const char *const wrong[] = {"b", "d", "e", "g"};
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(pst_json_u64(document, wrong[i], false, 0, 10, &value, "f", &err), PST_E_FORMAT);
        assert_non_null(strstr(err.message, wrong[i]));
    }
    assert_int_equal(value, 42);
    json_decref(document);
}

static void test_other_types(void **state)
{
    (void)state;
    json_t *document = parse("{\"d\": 0.5, \"i\": 3, \"b\": true, \"s\": \"x\", \"o\": {\"k\": 1}, \"a\": [1]}");
    double number = 0;
    bool truth = false;
    const char *text = NULL;
    json_t *part = NULL;
    assert_int_equal(pst_json_double(document, "d", true, &number, NULL, NULL), 0);
    assert_true(number == 0.5);
    assert_int_equal(pst_json_double(document, "i", true, &number, NULL, NULL), 0);
    assert_true(number == 3);
    assert_int_equal(pst_json_double(document, "s", true, &number, NULL, NULL), PST_E_FORMAT);
    assert_int_equal(pst_json_bool(document, "b", true, &truth, NULL, NULL), 0);
    assert_true(truth);
    assert_int_equal(pst_json_bool(document, "i", true, &truth, NULL, NULL), PST_E_FORMAT);
    assert_int_equal(pst_json_string(document, "s", true, &text, NULL, NULL), 0);
    assert_string_equal(text, "x");
    assert_int_equal(pst_json_string(document, "a", true, &text, NULL, NULL), PST_E_FORMAT);
    assert_int_equal(pst_json_object(document, "o", true, &part, NULL, NULL), 0);
    assert_true(json_is_object(part));
    assert_int_equal(pst_json_object(document, "a", true, &part, NULL, NULL), PST_E_FORMAT);
    assert_int_equal(pst_json_array(document, "a", true, &part, NULL, NULL), 0);
    assert_true(json_is_array(part));
    assert_int_equal(pst_json_array(document, "o", true, &part, NULL, NULL), PST_E_FORMAT);
    json_decref(document);
}

/* jansson's memory is not the heap's: it cannot bear failures, so the hook must not reach it. */
static void test_stays_out_of_the_heap(void **state)
{
    (void)state;
    static const char text[] = "{\"a\": [1, 2.5, \"three\", {\"b\": null}]}";
    int64_t before = pst_heap_live_count();
    json_t *document = NULL;
    pst_heap_fail_after(0, 1);
    int status = pst_json_parse(text, sizeof text - 1, "f", &document, NULL);
    pst_heap_fail_after(-1, 0);
    assert_int_equal(status, 0);
    assert_int_equal(pst_heap_live_count(), before);
    json_decref(document);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refuses),     cmocka_unit_test(test_depth_is_bounded),      cmocka_unit_test(test_u64),
        cmocka_unit_test(test_other_types), cmocka_unit_test(test_stays_out_of_the_heap),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
