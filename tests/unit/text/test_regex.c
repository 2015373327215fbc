/* SPDX-License-Identifier: Apache-2.0 */
/* Patterns of tokenizers: what they match where Oniguruma and PCRE2 differ, and which are refused. */
#include "support.h"

#include "text/pattern.h"
#include "text/unicode.h"

/* Cuts text by the pattern and writes the parts with | between them, matches in <>. */
static const char *cut(const char *pattern, const char *text, size_t bytes)
{
    static char shown[4096];
    pst_pattern p = {0};
    pst_regex_scratch *scratch;
    pst_spans spans = {0};
    pst_error err = {0};
    if (pst_regex_open(pattern, strlen(pattern), &p.regex, NULL, &err) < 0)
        fail_msg("%s", err.message);
    assert_int_equal(pst_regex_scratch_open(&scratch, &err), 0);
    if (pst_pattern_cut(&p, scratch, text, bytes, &spans, &err) < 0)
        fail_msg("%s", err.message);
    size_t at = 0;
    for (size_t i = 0; i < spans.count; i++)
        at += (size_t)snprintf(shown + at, sizeof shown - at, spans.data[i].matched ? "<%.*s>" : "%.*s",
                               (int)(spans.data[i].end - spans.data[i].start), text + spans.data[i].start);
    shown[at] = '\0';
    pst_spans_free(&spans);
    pst_regex_scratch_close(scratch);
    pst_pattern_destroy(&p);
    return shown;
}

static void test_matches(void **state)
{
    (void)state;
    static const struct {
        const char *pattern, *text, *cut;
    } cases[] = {
        {"\\s+", "a \u3000b\u180ec", "a< \u3000>b\u180ec"}, /* U+180E is no white space */
        {"\\S", "\u180e ", "<\u180e> "},
        {"\\s+(?!\\S)|\\s+", "a   b  ", "a<  >< >b<  >"},
        {"\\p{N}{1,3}", "12345", "<123><45>"},
        {"\\p{N}{1,3}+", "1234567x", "<1234567>x"}, /* not possessive */
        {"a{,2}b", "aaab", "a<aab>"},
        {"[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+", "'ab.", "<'ab>."}, /* possessive */
        {"(?i:'s|'t|'re)", "it'S 'RE '\u017f", "it<'S> <'RE> <'\u017f>"},
        {"(?i)THE", "the The", "<the> <The>"},
        {"\\w+", "a_\u00e9\u00b2\u24b6-\u200d", "<a_\u00e9\u00b2\u24b6>-\u200d"},
        {"[\\w]+", "a\u00b2", "<a>\u00b2"}, /* within a set, superscripts are no word characters */
        {"\\W", "a-\u00b2", "a<->\u00b2"},
        {"[^\\W\\d]+", "ab1", "<ab>1"},
        {"[\\W\\d]+", "ab1-c", "ab<1->c"},
        {"\\d", "1\u0663x\u00b2", "<1><\u0663>x\u00b2"},
        {"\\h+", "xBEEFg", "x<BEEF>g"}, /* hexadecimal digits, not horizontal space */
        {"\\p{^L}|\\P{L}", "a1", "a<1>"},
        {"\\p{Han}+", "x\u6c34\u3001", "x<\u6c34>\u3001"}, /* the script, not its extensions */
        {"\\p{L}", "\U00031350", "<\U00031350>"},          /* Unicode 15 */
        {"[^(\\s|[.,!])]+", "a(b.c d", "<a>(<b>.<c> <d>"}, /* a set within a set */
        {"[a-c\\-\\]]+", "a-]d", "<a-]>d"},
        {"x*", "axb", "<>a<x>b<>"},
        {"x*", "xx", "<xx>"},
        {"^.|.$", "ab\ncd", "<a><b>\n<c><d>"},
        {"\\Aa|b\\z", "aab\nb", "<a>ab\n<b>"},
        {"\\x41\\u0042\\x{43}", "ABC", "<ABC>"},
        {"(?<=\\d)\\p{L}(?!x)", "1a2bx", "1<a>2bx"},
        {"(?#comment)a", "a", "<a>"},
        {"a b#c{", "a b#c{", "<a b#c{>"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        assert_string_equal(cut(cases[i].pattern, cases[i].text, strlen(cases[i].text)), cases[i].cut);
}

static void test_refusals(void **state)
{
    (void)state;
    static const char *const patterns[] = {
        "(",        ")",          "[",           "[]",           "[a",     "a**",     "*",
        "a{2}?",    "(?<name>a)", "\\1",         "\\b",          "\\R",    "\\X",     "\\p{Foo}",
        "\\pL",     "\\xff",      "\\x{110000}", "\\x{d800}",    "[z-a]",  "[a-\\d]", "[[:alpha:]]",
        "[a&&b]",   "(?i:ss)",    "(?i:\u00e9)", "(?i:\\p{Lu})", "a(?i)b", "(?x:a)",  "(?=a)*",
        "a{70000}", "a{3,2}",     "\\",          "(?#",          "(*UTF)", "\\Q",     "\\K",
        "\\C",      "(?R)",       "(?",
    };
    for (size_t i = 0; i < sizeof patterns / sizeof patterns[0]; i++) {
        pst_regex *regex = NULL;
        pst_error err = {0};
        if (pst_regex_open(patterns[i], strlen(patterns[i]), &regex, "f", &err) != PST_E_UNSUPPORTED)
            fail_msg("\"%s\" was not refused", patterns[i]);
        assert_null(regex);
        assert_non_null(strstr(err.message, "pattern"));
        assert_null(strchr(err.message, '\n'));
    }
    char *large = malloc(100000);
    memset(large, 'a', 100000);
    pst_regex *regex = NULL;
    assert_int_equal(pst_regex_open(large, 100000, &regex, NULL, NULL), PST_E_UNSUPPORTED);
    memset(large, '(', 10000);
    assert_int_equal(pst_regex_open(large, 10000, &regex, NULL, NULL), PST_E_UNSUPPORTED);
    memset(large, '[', 10000);
    assert_int_equal(pst_regex_open(large, 10000, &regex, NULL, NULL), PST_E_UNSUPPORTED);
    free(large);
    assert_int_equal(pst_heap_live_count(), 0);
}

/* A pattern with exponential backtracking ends with an error instead of hanging. */
static void test_costly_pattern(void **state)
{
    (void)state;
    pst_pattern p = {0};
    pst_regex_scratch *scratch;
    pst_spans spans = {0};
    pst_error err = {0};
    assert_int_equal(pst_regex_open("(?:a|aa|a?a)+(?=b)\\z", 20, &p.regex, NULL, &err), 0);
    assert_int_equal(pst_regex_scratch_open(&scratch, &err), 0);
    char text[200];
    memset(text, 'a', sizeof text);
    text[sizeof text - 1] = 'b';
    assert_int_equal(pst_pattern_cut(&p, scratch, text, sizeof text, &spans, &err), PST_E_UNSUPPORTED);
    assert_non_null(strstr(err.message, "too costly"));
    pst_spans_free(&spans);
    pst_regex_scratch_close(scratch);
    pst_pattern_destroy(&p);
}

/* How many code points each class has in the reference (Oniguruma with Unicode 16), counted with tokenizers 0.23. */
static void test_property_sizes(void **state)
{
    (void)state;
    static const struct {
        const char *pattern;
        size_t count;
    } cases[] = {{"\\s", 25},         {"\\w", 144671}, {"\\d", 760},       {"\\p{L}", 141028}, {"\\p{N}", 1911},
                 {"\\p{M}", 2501},    {"\\p{P}", 855}, {"\\p{S}", 8514},   {"\\p{Lu}", 1858},  {"\\p{Ll}", 2258},
                 {"\\p{Lo}", 136477}, {"\\p{Z}", 19},  {"\\p{Han}", 99030}};
    char *text = malloc(0x110000 * 4);
    size_t bytes = 0;
    for (uint32_t c = 0; c < 0x110000; c++) {
        if (c < 0xD800 || c > 0xDFFF)
            bytes += pst_utf8_put(c, text + bytes);
    }
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        pst_pattern p = {0};
        pst_regex_scratch *scratch;
        pst_spans spans = {0};
        assert_int_equal(pst_regex_open(cases[i].pattern, strlen(cases[i].pattern), &p.regex, NULL, NULL), 0);
        assert_int_equal(pst_regex_scratch_open(&scratch, NULL), 0);
        assert_int_equal(pst_pattern_cut(&p, scratch, text, bytes, &spans, NULL), 0);
        size_t count = 0;
        for (size_t k = 0; k < spans.count; k++)
            count += spans.data[k].matched;
        if (count != cases[i].count)
            fail_msg("%s has %zu code points, not %zu", cases[i].pattern, count, cases[i].count);
        pst_spans_free(&spans);
        pst_regex_scratch_close(scratch);
        pst_pattern_destroy(&p);
    }
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_matches),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_costly_pattern),
        cmocka_unit_test(test_property_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
