/* SPDX-License-Identifier: Apache-2.0 */
/* UTF-8, character classes and normal forms, with the places where Unicode versions or libraries disagree. */
#include "support.h"

#include "text/unicode.h"

static void test_utf8_steps(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        size_t bytes;
        int step;
    } cases[] = {
        {"a", 1, 1},
        {"\xC3\xA9", 2, 2},
        {"\xE6\xB0\xB4", 3, 3},
        {"\xF0\x9F\x98\x80", 4, 4},
        {"\xC3", 1, 0}, /* unfinished */
        {"\xE6\xB0", 2, 0},
        {"\xF0\x9F\x98", 3, 0},
        {"\x80", 1, -1},     /* a lone continuation */
        {"\xC0\x80", 2, -1}, /* overlong */
        {"\xE0\x80\x80", 3, -1},
        {"\xF0\x80\x80\x80", 4, -1},
        {"\xED\xA0\x80", 3, -1},     /* a surrogate */
        {"\xF4\x90\x80\x80", 4, -1}, /* beyond U+10FFFF */
        {"\xF5\x80\x80\x80", 4, -1},
        {"\xE6\xB0\x41", 3, -2}, /* the maximal subpart has two bytes */
        {"\xF0\x9F\x98\x41", 4, -3},
        {"\xFF", 1, -1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        assert_int_equal(pst_utf8_step(cases[i].text, cases[i].bytes), cases[i].step);
    assert_int_equal(pst_utf8_valid_prefix("ab\xC3\xA9\xFFx", 6), 4);
    assert_int_equal(pst_utf8_valid_prefix("", 0), 0);
}

static void test_utf8_round_trip(void **state)
{
    (void)state;
    for (uint32_t c = 0; c < 0x110000; c++) {
        char text[4];
        size_t width;
        if (c >= 0xD800 && c < 0xE000)
            continue;
        size_t bytes = pst_utf8_put(c, text);
        assert_int_equal(pst_utf8_step(text, bytes), bytes);
        assert_int_equal(pst_utf8_get(text, &width), c);
        assert_int_equal(width, bytes);
    }
}

static size_t count_class(bool (*class)(uint32_t))
{
    size_t count = 0;
    for (uint32_t c = 0; c < 0x110000; c++)
        count += (c < 0xD800 || c > 0xDFFF) && class(c);
    return count;
}

/* How many code points the reference tokenizers put into each class, counted with tokenizers 0.23. */
static void test_class_sizes(void **state)
{
    (void)state;
    assert_int_equal(count_class(pst_unicode_is_space), 25);
    assert_int_equal(count_class(pst_unicode_is_numeric), 1924);
    assert_int_equal(count_class(pst_unicode_is_word), 144667);
    assert_int_equal(count_class(pst_unicode_is_punctuation), 726);
}

static void check_normal(pst_normal_form form, const char *text, const char *expected)
{
    pst_bytes out = {0};
    assert_int_equal(pst_unicode_normalize(form, text, strlen(text), &out, NULL), 0);
    assert_int_equal(pst_bytes_append(&out, "", 1, NULL), 0);
    assert_string_equal(out.data, expected);
    pst_bytes_free(&out);
}

static void test_normal_forms(void **state)
{
    (void)state;
    check_normal(PST_NFC, "plain", "plain");
    check_normal(PST_NFC, "e\u0301", "\u00e9");
    check_normal(PST_NFD, "\u00e9", "e\u0301");
    check_normal(PST_NFC, "\u1100\u1161\u11a8", "\uac01"); /* Hangul is composed by rule */
    check_normal(PST_NFD, "\uac01", "\u1100\u1161\u11a8");
    check_normal(PST_NFKC, "\ufb01\u00b2", "fi2");
    check_normal(PST_NFC, "\ufb01\u00b2", "\ufb01\u00b2");
    check_normal(PST_NFD, "a\u0301\u0323", "a\u0323\u0301"); /* the lower class goes first */
    check_normal(PST_NFD, "a\u0301\u0300", "a\u0301\u0300"); /* one class keeps its order */
    check_normal(PST_NFC, "\u212b", "\u00c5");
    /* Newer than the tables of the reference: no decomposition, no combining class. */
    check_normal(PST_NFKC, "\u32ff", "\u32ff");
    check_normal(PST_NFD, "a\u0301\u1df6\u0323", "a\u0301\u1df6\u0323");
}

/* Many combining marks on one letter take linear time: a quadratic sort would not end within the test's time. */
static void test_long_run_of_marks(void **state)
{
    (void)state;
    enum { COUNT = 500000 };
    char *text = malloc(1 + 2 * COUNT);
    text[0] = 'a';
    for (size_t i = 0; i < COUNT; i++)
        memcpy(text + 1 + 2 * i, i % 2 ? "\xCC\xA3" : "\xCC\x81", 2);
    pst_bytes out = {0};
    assert_int_equal(pst_unicode_normalize(PST_NFD, text, 1 + 2 * COUNT, &out, NULL), 0);
    assert_int_equal(out.count, 1 + 2 * COUNT);
    assert_memory_equal(out.data, "a\xCC\xA3\xCC\xA3", 5);
    pst_bytes_free(&out);
    free(text);
}

static void test_lowercase(void **state)
{
    (void)state;
    static const char text[] = "AbÇΣİ\u1c89\U00010d50";
    pst_bytes out = {0};
    assert_int_equal(pst_unicode_lowercase(text, strlen(text), &out, NULL), 0);
    assert_int_equal(pst_bytes_append(&out, "", 1, NULL), 0);
    assert_string_equal(out.data, "abçσi\u0307\u1c8a\U00010d70");
    pst_bytes_free(&out);
}

static void test_quotes_are_one_line(void **state)
{
    (void)state;
    char quoted[PST_QUOTE_BYTES];
    assert_string_equal(pst_text_quote("a\nb\x1b", 4, quoted), "a?b?");
    char text[400];
    for (size_t i = 0; i < sizeof text; i += 2)
        memcpy(text + i, "\xC3\xA9", 2);
    size_t length = strlen(pst_text_quote(text, sizeof text, quoted));
    assert_true(length < PST_QUOTE_BYTES);
    assert_int_equal(pst_utf8_valid_prefix(quoted, length), length);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_utf8_steps),          cmocka_unit_test(test_utf8_round_trip),
        cmocka_unit_test(test_class_sizes),         cmocka_unit_test(test_normal_forms),
        cmocka_unit_test(test_long_run_of_marks),   cmocka_unit_test(test_lowercase),
        cmocka_unit_test(test_quotes_are_one_line),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
