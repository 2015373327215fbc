/* SPDX-License-Identifier: Apache-2.0 */
/* Option tables: every type, every spelling, every mistake, and the help that comes from the same rows. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/heap.h"
#include "base/options.h"
#include "support/random.h"

typedef struct shared_values {
    uint64_t size;
    pst_option_share share;
} shared_values;

typedef struct test_values {
    bool flag;
    uint64_t level, number, plain, some;
    double real;
    const char *text, *choice;
    pst_option_strings texts;
    pst_option_ids ids;
    shared_values shared;
} test_values;

#define AT(member) .offset = offsetof(test_values, member)

static const pst_option own_rows[] = {
    {.name = "a-flag", .type = PST_OPTION_FLAG, AT(flag), .help = "a flag"},
    {.name = "verbose", .short_name = 'v', .type = PST_OPTION_LEVEL, AT(level), .metavar = "N", .help = "a level"},
    {.name = "number",
     .short_name = 'n',
     .type = PST_OPTION_U64,
     AT(number),
     .metavar = "N",
     .initial = "7",
     .min = 1,
     .max = 100,
     .help = "a number that is explained at such length that its help has to go on to another line"},
    {.name = "plain", .type = PST_OPTION_U64, AT(plain), .metavar = "N", .help = "a number of any size"},
    {.name = "some", .type = PST_OPTION_U64, AT(some), .metavar = "N", .min = 1, .multiple = 4, .help = "four, eight"},
    {.name = "real",
     .type = PST_OPTION_DOUBLE,
     AT(real),
     .metavar = "X",
     .initial = "0.5",
     .min = 0,
     .max = 1,
     .help = "a real number"},
    {.name = "text", .type = PST_OPTION_STRING, AT(text), .metavar = "TEXT", .help = "a text"},
    {.name = "choice",
     .type = PST_OPTION_CHOICE,
     AT(choice),
     .choices = "one|two|three",
     .initial = "one",
     .help = "one of three"},
    {.name = "texts", .type = PST_OPTION_STRINGS, AT(texts), .metavar = "TEXT", .help = "several texts"},
    {.name = "ids", .type = PST_OPTION_IDS, AT(ids), .metavar = "ID,...", .help = "ids"},
    {.name = "secret", .type = PST_OPTION_FLAG, AT(flag), .hidden = true, .help = "not shown"},
};
static const pst_option shared_rows[] = {
    {.name = "size",
     .type = PST_OPTION_SIZE,
     .offset = offsetof(shared_values, size),
     .metavar = "SIZE",
     .initial = "1Mi",
     .help = "a size"},
    {.name = "share",
     .type = PST_OPTION_SHARE,
     .offset = offsetof(shared_values, share),
     .metavar = "SIZE|PERCENT",
     .help = "a share"},
};
static const pst_option_group groups[] = {
    {.title = "Own", .options = own_rows, .count = sizeof own_rows / sizeof own_rows[0]},
    {.title = "Shared", .options = shared_rows, .count = 2, .base = offsetof(test_values, shared)},
};
static const pst_command command = {.name = "test",
                                    .operands = "ONE [TWO]",
                                    .min_operands = 1,
                                    .max_operands = 2,
                                    .summary = "a test",
                                    .description = "What it does.\n\nAnd more.",
                                    .groups = groups,
                                    .group_count = 2,
                                    .values_bytes = sizeof(test_values)};

enum { MOST_WORDS = 16 };

static int parse(const char *const *words, test_values *values, pst_options_found *found, pst_error *err)
{
    char *argv[MOST_WORDS];
    int argc = 0;
    for (; words[argc] != NULL; argc++)
        argv[argc] = (char *)words[argc];
    return pst_options_parse(&command, argc, argv, values, found, err);
}

#define PARSE(...) parse((const char *const[]){__VA_ARGS__, NULL}, &values, &found, &err)

static void test_defaults(void **state)
{
    (void)state;
    test_values values;
    pst_options_found found;
    pst_error err;
    assert_int_equal(PARSE("operand"), 0);
    assert_false(values.flag);
    assert_int_equal(values.level, 0);
    assert_int_equal(values.number, 7);
    assert_true(values.real == 0.5);
    assert_null(values.text);
    assert_string_equal(values.choice, "one");
    assert_int_equal(values.texts.count, 0);
    assert_int_equal(values.shared.size, 1 << 20);
    assert_int_equal(found.operand_count, 1);
    assert_string_equal(found.operands[0], "operand");
    assert_false(pst_options_given(&command, &found, "number"));
    pst_options_free(&command, &values);
}

static void test_all_types_and_spellings(void **state)
{
    (void)state;
    test_values values;
    pst_options_found found;
    pst_error err;
    assert_int_equal(PARSE("--a_flag", "one", "-n", "8", "--real=0.25", "--text", "--looks-like-an-option", "--choice",
                           "three", "--texts=a", "--texts", "", "two"),
                     0);
    assert_true(values.flag);
    assert_int_equal(values.number, 8);
    assert_true(values.real == 0.25);
    assert_string_equal(values.text, "--looks-like-an-option");
    assert_string_equal(values.choice, "three");
    assert_int_equal(values.texts.count, 2);
    assert_string_equal(values.texts.items[0], "a");
    assert_string_equal(values.texts.items[1], "");
    assert_int_equal(found.operand_count, 2);
    assert_string_equal(found.operands[1], "two");
    assert_true(pst_options_given(&command, &found, "a-flag"));
    assert_true(pst_options_given(&command, &found, "number"));
    assert_false(pst_options_given(&command, &found, "size"));
    pst_options_free(&command, &values);

    assert_int_equal(
        PARSE("x", "--ids", "1, 2,4294967295", "--ids=3", "--size=2Gi", "--share", "50%", "--number=9", "--number=10"),
        0);
    assert_int_equal(values.ids.count, 2);
    assert_int_equal(values.ids.lists[0].count, 3);
    assert_int_equal(values.ids.lists[0].ids[2], UINT32_MAX);
    assert_int_equal(values.ids.lists[1].ids[0], 3);
    assert_int_equal(values.shared.size, 2ull << 30);
    assert_true(values.shared.share.is_share && values.shared.share.share == 0.5);
    assert_int_equal(values.number, 10); /* the last counts */
    pst_options_free(&command, &values);
    assert_int_equal(PARSE("x", "-n12", "-v2", "--some=4000000000004"), 0);
    assert_int_equal(values.number, 12);
    assert_int_equal(values.level, 2);
    assert_int_equal(values.some, 4000000000004);
    assert_int_equal(PARSE("x", "-n=13"), 0);
    assert_int_equal(values.number, 13);
    assert_int_equal(PARSE("x", "--share", "50%"), 0);
    assert_true(pst_options_given(&command, &found, "share"));
    pst_options_free(&command, &values);
}

static void test_level_and_end_of_options(void **state)
{
    (void)state;
    test_values values;
    pst_options_found found;
    pst_error err;
    assert_int_equal(PARSE("-v", "x"), 0);
    assert_int_equal(values.level, 1);
    assert_int_equal(PARSE("--verbose", "2", "x"), 0);
    assert_int_equal(values.level, 2);
    assert_int_equal(PARSE("--verbose=3", "5"), 0);
    assert_int_equal(values.level, 3);
    assert_string_equal(found.operands[0], "5");
    assert_int_equal(PARSE("--", "--a-flag", "-"), 0);
    assert_false(values.flag);
    assert_string_equal(found.operands[0], "--a-flag");
    assert_string_equal(found.operands[1], "-");
    assert_int_equal(PARSE("--help", "--nonsense"), 0);
    assert_true(found.help);
}

static void test_mistakes(void **state)
{
    (void)state;
    static const struct {
        const char *words[4];
        const char *says;
    } cases[] = {
        {{"x", "--nmber", "5"}, "the nearest is --number"},
        {{"x", "--num", "5"}, "the nearest is --number"}, /* no abbreviations */
        {{"x", "--zzzzzzzz"}, "unknown option --zzzzzzzz"},
        {{"x", "-z"}, "unknown option -z"},
        {{"x", "-n500"}, "--number: 500 is not within"},
        {{"x", "-n5x"}, "not a whole number"},
        {{"x", "-number", "5"}, "the nearest is --number"}, /* not -n umber */
        {{"x", "--some", "0"}, "0 is less than 1"},
        {{"x", "--some", "6"}, "6 is not a multiple of 4"},
        {{""}, "needs ONE [TWO], and one word is empty"},
        {{"x", ""}, "one word is empty"},
        {{"x", "--number"}, "--number needs a value (N)"},
        {{"x", "--number", "0"}, "not within 1 to 100"},
        {{"x", "--number", "101"}, "not within 1 to 100"},
        {{"x", "--number", "-1"}, "not a whole number"},
        {{"x", "--number", ""}, "not a whole number"},
        {{"x", "--number", "5x"}, "not a whole number"},
        {{"x", "--plain", "18446744073709551616"}, "\"18446744073709551616\" is too large"},
        {{"x", "--real", "nan"}, "not a number"},
        {{"x", "--real", "0x1p-1"}, "not a number"},
        {{"x", "--real", "1.5"}, "not within"},
        {{"x", "--real", "1e999"}, "not a number"},
        {{"x", "--choice", "on"}, "none of one|two|three"},
        {{"x", "--choice", ""}, "none of one|two|three"},
        {{"x", "--choice", "one|two"}, "none of one|two|three"},
        {{"x", "--a-flag=1"}, "--a-flag takes no value"},
        {{"x", "--size", "5Q"}, "not a size"},
        {{"x", "--size", "18446744073709551616"}, "is too large"},
        {{"x", "--share", "101%"}, "not a share"},
        {{"x", "--ids", "1,"}, "not a list"},
        {{"x", "--ids", ""}, "not a list"},
        {{"x", "--ids", "4294967296"}, "not a list"},
        {{"x", "y", "z"}, "unexpected \"z\""},
        {{"--a-flag"}, "needs ONE [TWO]"},
    };
    int64_t before = pst_heap_live_count();
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        test_values values;
        pst_options_found found;
        pst_error err;
        assert_int_equal(parse(cases[i].words, &values, &found, &err), PST_E_USAGE);
        if (strstr(err.message, cases[i].says) == NULL)
            fail_msg("\"%s\" does not say \"%s\"", err.message, cases[i].says);
        assert_null(strchr(err.message, '\n'));
    }
    assert_int_equal(pst_heap_live_count(), before);
}

static void test_sizes(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {{"0", 0},
                {"4096", 4096},
                {"1500M", 1500000000},
                {"2G", 2000000000},
                {"2GB", 2000000000},
                {"2Gi", 2ull << 30},
                {"2GiB", 2ull << 30},
                {"64Ki", 65536},
                {"64k", 64000},
                {"1500m", 1500000000},
                {"2g", 2000000000},
                {"2gi", 2ull << 30},
                {"1tB", 1000000000000},
                {"1.5G", 1500000000},
                {"0.5Ki", 512},
                {"1T", 1000000000000},
                {"10B", 10},
                {"1.0000000001G", 1000000000},
                {"18446744073709551615", UINT64_MAX}};
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        uint64_t bytes = 1;
        assert_int_equal(pst_parse_size(good[i].text, &bytes, NULL), 0);
        assert_int_equal(bytes, good[i].bytes);
    }
    static const char *const binary[][2] = {{"1M", "1Mi"},      {"1MB", "1MiB"},     {"64k", "64ki"}, {"1.5G", "1.5Gi"},
                                            {"64Ki", "65536B"}, {"2TiB", "2048GiB"}, {"7", "7"}};
    for (size_t i = 0; i < sizeof binary / sizeof binary[0]; i++) {
        uint64_t bytes = 1, expected = 2;
        assert_int_equal(pst_parse_binary_size(binary[i][0], &bytes, NULL), 0);
        assert_int_equal(pst_parse_size(binary[i][1], &expected, NULL), 0);
        assert_int_equal(bytes, expected);
    }
    static const char *const bad[] = {"",
                                      "G",
                                      "-1",
                                      "1 G",
                                      "1GG",
                                      "1.G",
                                      ".5G",
                                      "1Gx",
                                      "1iB",
                                      "1e3",
                                      "0x10",
                                      "1.5.5",
                                      "1Bi",
                                      "18446744073709551616",
                                      "99999999999T"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        uint64_t untouched = 77;
        if (pst_parse_size(bad[i], &untouched, NULL) != PST_E_USAGE)
            fail_msg("\"%s\" was taken for %llu", bad[i], (unsigned long long)untouched);
        assert_int_equal(pst_parse_binary_size(bad[i], &untouched, NULL), PST_E_USAGE);
        assert_int_equal(untouched, 77);
    }
}

static void test_shares(void **state)
{
    (void)state;
    pst_option_share share;
    assert_int_equal(pst_parse_share("0", &share, NULL), 0);
    assert_true(!share.is_share && share.bytes == 0);
    assert_int_equal(pst_parse_share("2G", &share, NULL), 0);
    assert_true(!share.is_share && share.bytes == 2000000000);
    assert_int_equal(pst_parse_share("0%", &share, NULL), 0);
    assert_true(share.is_share && share.share == 0);
    assert_int_equal(pst_parse_share("100%", &share, NULL), 0);
    assert_true(share.is_share && share.share == 1);
    assert_int_equal(pst_parse_share("12.5%", &share, NULL), 0);
    assert_true(share.share == 0.125);
    static const char *const bad[] = {
        "", "%", "-1%", "100.1%", "half", "5%%", "00000000000000000000000000000000000000000000000000%"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_int_equal(pst_parse_share(bad[i], &share, NULL), PST_E_USAGE);
}

static void test_help_shows_every_row(void **state)
{
    (void)state;
    char *text = NULL;
    size_t bytes = 0;
    FILE *to = open_memstream(&text, &bytes);
    assert_non_null(to);
    pst_options_help("penstock", &command, to);
    fclose(to);
    for (size_t i = 0; i < 2; i++) {
        assert_non_null(strstr(text, groups[i].title));
        for (size_t j = 0; j < groups[i].count; j++) {
            char spelt[64];
            snprintf(spelt, sizeof spelt, "--%s", groups[i].options[j].name);
            assert_int_equal(strstr(text, spelt) != NULL, !groups[i].options[j].hidden);
        }
    }
    assert_non_null(strstr(text, "-n, --number N"));
    assert_non_null(strstr(text, "(1 to 100; default 7)"));
    assert_non_null(strstr(text, "--choice one|two|three"));
    for (const char *line = text; *line != '\0';) {
        size_t length = strcspn(line, "\n");
        assert_true(length <= 100);
        assert_true(length == 0 || line[length - 1] != ' ');
        line += length + 1;
    }
    free(text);
}

static void test_nearest(void **state)
{
    (void)state;
    static const char *const names[] = {"prompt", "prompts-file", "threads", "top-k", "top-p"};
    assert_string_equal(pst_nearest_name("promt", names, 5), "prompt");
    assert_string_equal(pst_nearest_name("prmopt", names, 5), "prompt");
    assert_string_equal(pst_nearest_name("thread", names, 5), "threads");
    assert_string_equal(pst_nearest_name("prompts-fil", names, 5), "prompts-file");
    assert_null(pst_nearest_name("completely-else", names, 5));
    assert_null(pst_nearest_name("x", names, 0));
    char longest[5000];
    memset(longest, 'q', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    (void)pst_nearest_name(longest, names, 5); /* must not overrun */
}

static void test_every_allocation_fails(void **state)
{
    (void)state;
    int64_t before = pst_heap_live_count();
    for (int n = 0;; n++) {
        test_values values;
        pst_options_found found;
        pst_error err;
        pst_heap_fail_after(n, 0);
        int status = PARSE("x", "--ids", "1,2", "--texts", "a", "--ids", "3", "--texts", "b");
        pst_heap_fail_after(-1, 0);
        if (status == 0) {
            pst_options_free(&command, &values);
            assert_int_equal(pst_heap_live_count(), before);
            assert_int_equal(n, 6);
            return;
        }
        assert_true(n < 100);
        assert_int_equal(pst_heap_live_count(), before);
    }
}

/* Random words made of pieces that mean something: nothing may crash or leak, and failures are usage errors. */
static void test_random_words(void **state)
{
    (void)state;
    static const char *const pieces[] = {"--",     "-",   "=",  "number", "a_flag", "ids", "1", ",",    "2Gi", "%",
                                         "choice", "two", "-v", "-n",     "texts",  "\n",  "é", "size", " ",   "help"};
    srand((unsigned)random_seed("options", 20261));
    int64_t before = pst_heap_live_count();
    for (int round = 0; round < 20000; round++) {
        char words[6][64];
        const char *list[7] = {NULL};
        int count = rand() % 7;
        for (int i = 0; i < count; i++) {
            words[i][0] = '\0';
            for (int parts = rand() % 5; parts > 0; parts--)
                strcat(words[i], pieces[(size_t)rand() % (sizeof pieces / sizeof pieces[0])]);
            list[i] = words[i];
        }
        test_values values;
        pst_options_found found;
        pst_error err;
        int status = parse(list, &values, &found, &err);
        assert_true(status == 0 || status == PST_E_USAGE);
        if (status == 0)
            pst_options_free(&command, &values);
        assert_int_equal(pst_heap_live_count(), before);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_all_types_and_spellings),
        cmocka_unit_test(test_level_and_end_of_options),
        cmocka_unit_test(test_mistakes),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_shares),
        cmocka_unit_test(test_help_shows_every_row),
        cmocka_unit_test(test_nearest),
        cmocka_unit_test(test_every_allocation_fails),
        cmocka_unit_test(test_random_words),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
