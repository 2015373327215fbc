/* SPDX-License-Identifier: Apache-2.0 */
/* Tests: "x is defined" and the like. */
#include <string.h>

#include "base/error.h"
#include "text/jinja.h"
#include "text/unicode.h"

#define TEST(name)                                                                                                     \
    static int name(jinja_run *run, jinja_value self, const jinja_value *given, const jinja_args *all, jinja_value *out)

/* A test of the kind alone. */
#define KIND_TEST(name, condition)                                                                                     \
    TEST(name)                                                                                                         \
    {                                                                                                                  \
        (void)run, (void)self, (void)given, (void)all;                                                                 \
        *out = pst_jinja_bool(condition);                                                                              \
        return 0;                                                                                                      \
    }

static bool is_sequence(jinja_value v)
{
    return v.kind == JINJA_STRING || v.kind == JINJA_LIST || v.kind == JINJA_TUPLE || v.kind == JINJA_RANGE ||
           v.kind == JINJA_DICT || v.kind == JINJA_UNDEFINED;
}

static bool is_iterable(jinja_value v)
{
    return is_sequence(v) || pst_jinja_has_list(v) || v.kind == JINJA_LOOP;
}

static bool is_number(jinja_value v)
{
    double number;
    return pst_jinja_number(v, &number);
}

static bool is_callable(jinja_value v)
{
    return v.kind == JINJA_MACRO || v.kind == JINJA_METHOD || v.kind == JINJA_FUNCTION || v.kind == JINJA_LOOP ||
           v.kind == JINJA_UNDEFINED;
}

KIND_TEST(test_defined, self.kind != JINJA_UNDEFINED)
KIND_TEST(test_undefined, self.kind == JINJA_UNDEFINED)
KIND_TEST(test_none, self.kind == JINJA_NONE)
KIND_TEST(test_boolean, self.kind == JINJA_BOOL)
KIND_TEST(test_true, self.kind == JINJA_BOOL && self.as.truth)
KIND_TEST(test_false, self.kind == JINJA_BOOL && !self.as.truth)
KIND_TEST(test_integer, self.kind == JINJA_INT)
KIND_TEST(test_float, self.kind == JINJA_FLOAT)
KIND_TEST(test_number, is_number(self))
KIND_TEST(test_string, self.kind == JINJA_STRING)
KIND_TEST(test_mapping, self.kind == JINJA_DICT)
KIND_TEST(test_sequence, is_sequence(self))
KIND_TEST(test_iterable, is_iterable(self))
KIND_TEST(test_callable, is_callable(self))
KIND_TEST(test_escaped, false)

/* A remainder by `divisor`, which must be a number. */
static int remainder_is(jinja_run *run, jinja_value v, jinja_value divisor, double wanted, jinja_value *out)
{
    jinja_value rest;
    double number;
    PST_TRY(pst_jinja_binary(run, '%', v, divisor, &rest));
    *out = pst_jinja_bool(pst_jinja_number(rest, &number) && number == wanted);
    return 0;
}

TEST(test_odd)
{
    (void)given, (void)all;
    return remainder_is(run, self, pst_jinja_int(2), 1, out);
}

TEST(test_even)
{
    (void)given, (void)all;
    return remainder_is(run, self, pst_jinja_int(2), 0, out);
}

TEST(test_divisibleby)
{
    (void)all;
    return remainder_is(run, self, given[0], 0, out);
}

static int cased(jinja_run *run, jinja_value self, bool upper, jinja_value *out)
{
    const jinja_string *text;
    bool any = false, all_so = true;
    PST_TRY(pst_jinja_to_string(run, self, &text));
    PST_TRY(pst_jinja_charge(run, 4 * text->bytes));
    for (size_t at = 0, width; at < text->bytes; at += width) {
        uint32_t c = pst_utf8_get(text->text + at, &width);
        any |= pst_unicode_is_cased(c);
        all_so &= !pst_unicode_is_cased(c) || (upper ? pst_unicode_is_upper(c) : pst_unicode_is_lower(c));
    }
    *out = pst_jinja_bool(any && all_so);
    return 0;
}

TEST(test_lower)
{
    (void)given, (void)all;
    return cased(run, self, false, out);
}

TEST(test_upper)
{
    (void)given, (void)all;
    return cased(run, self, true, out);
}

static int truth(int status, bool negated, jinja_value *out)
{
    PST_TRY(status);
    *out = pst_jinja_bool((status != 0) != negated);
    return 0;
}

TEST(test_equal)
{
    (void)all;
    return truth(pst_jinja_equal(run, self, given[0]), false, out);
}

TEST(test_unequal)
{
    (void)all;
    return truth(pst_jinja_equal(run, self, given[0]), true, out);
}

TEST(test_in)
{
    (void)all;
    return truth(pst_jinja_contains(run, given[0], self), false, out);
}

/* The same object: of small values, an equal one of the same kind. */
TEST(test_sameas)
{
    (void)all;
    bool small = self.kind <= JINJA_STRING;
    if (self.kind != given[0].kind) {
        *out = pst_jinja_bool(false);
        return 0;
    }
    if (small)
        return truth(pst_jinja_equal(run, self, given[0]), false, out);
    *out = pst_jinja_bool(self.as.list == given[0].as.list);
    return 0;
}

static int ordered(jinja_run *run, jinja_value a, jinja_value b, int *order)
{
    return pst_jinja_order(run, a, b, order);
}

TEST(test_less)
{
    int order;
    (void)all;
    PST_TRY(ordered(run, self, given[0], &order));
    *out = pst_jinja_bool(order < 0);
    return 0;
}

TEST(test_at_most)
{
    int order;
    (void)all;
    PST_TRY(ordered(run, self, given[0], &order));
    *out = pst_jinja_bool(order <= 0);
    return 0;
}

TEST(test_greater)
{
    int order;
    (void)all;
    PST_TRY(ordered(run, self, given[0], &order));
    *out = pst_jinja_bool(order > 0 && order != 2);
    return 0;
}

TEST(test_at_least)
{
    int order;
    (void)all;
    PST_TRY(ordered(run, self, given[0], &order));
    *out = pst_jinja_bool(order >= 0 && order != 2);
    return 0;
}

TEST(test_filter)
{
    (void)run, (void)given, (void)all;
    *out = pst_jinja_bool(self.kind == JINJA_STRING &&
                          pst_jinja_find_filter(self.as.string->text, self.as.string->bytes) != NULL);
    return 0;
}

TEST(test_test)
{
    (void)run, (void)given, (void)all;
    *out = pst_jinja_bool(self.kind == JINJA_STRING &&
                          pst_jinja_find_test(self.as.string->text, self.as.string->bytes) != NULL);
    return 0;
}

static const jinja_builtin tests[] = {{"defined", "", test_defined},
                                      {"undefined", "", test_undefined},
                                      {"none", "", test_none},
                                      {"boolean", "", test_boolean},
                                      {"true", "", test_true},
                                      {"false", "", test_false},
                                      {"integer", "", test_integer},
                                      {"float", "", test_float},
                                      {"number", "", test_number},
                                      {"string", "", test_string},
                                      {"mapping", "", test_mapping},
                                      {"sequence", "", test_sequence},
                                      {"iterable", "", test_iterable},
                                      {"callable", "", test_callable},
                                      {"escaped", "", test_escaped},
                                      {"odd", "", test_odd},
                                      {"even", "", test_even},
                                      {"divisibleby", "!num", test_divisibleby},
                                      {"lower", "", test_lower},
                                      {"upper", "", test_upper},
                                      {"equalto", "!other", test_equal},
                                      {"eq", "!other", test_equal},
                                      {"==", "!other", test_equal},
                                      {"ne", "!other", test_unequal},
                                      {"!=", "!other", test_unequal},
                                      {"in", "!seq", test_in},
                                      {"sameas", "!other", test_sameas},
                                      {"lt", "!other", test_less},
                                      {"<", "!other", test_less},
                                      {"lessthan", "!other", test_less},
                                      {"le", "!other", test_at_most},
                                      {"<=", "!other", test_at_most},
                                      {"gt", "!other", test_greater},
                                      {">", "!other", test_greater},
                                      {"greaterthan", "!other", test_greater},
                                      {"ge", "!other", test_at_least},
                                      {">=", "!other", test_at_least},
                                      {"filter", "", test_filter},
                                      {"test", "", test_test}};

const jinja_builtin *pst_jinja_find_test(const char *name, size_t bytes)
{
    return pst_jinja_find(tests, sizeof tests / sizeof tests[0], name, bytes);
}
