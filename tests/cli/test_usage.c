/* SPDX-License-Identifier: Apache-2.0 */
/* Exit statuses, help, and mistakes on the command line. */
#include <stdio.h>
#include <string.h>

#include "program.h"

static const char *const commands[] = {"generate", "score", "tokenize", "synth", "inspect", "bench"};

static void test_help(void **state)
{
    (void)state;
    program_result all = PENSTOCK("help");
    assert_int_equal(all.status, 0);
    assert_string_equal(all.err, "");
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
        char line[32];
        snprintf(line, sizeof line, "\n  %s ", commands[i]);
        assert_non_null(strstr(all.out, line));
        program_result one = PENSTOCK("help", commands[i]);
        assert_int_equal(one.status, 0);
        assert_non_null(strstr(one.out, "--json"));
        program_free(&one);
    }
    program_free(&all);
    program_result by_option = PENSTOCK("generate", "--help"), by_command = PENSTOCK("help", "generate");
    assert_int_equal(by_option.status, 0);
    assert_string_equal(by_option.out, by_command.out);
    assert_non_null(strstr(by_option.out, "--host-memory SIZE"));
    program_free(&by_option);
    program_free(&by_command);
    program_result none = program_run(NULL, (const char *const[]){NULL});
    assert_int_equal(none.status, 2);
    assert_string_equal(none.out, "");
    program_free(&none);
    program_result version = PENSTOCK("--version");
    assert_int_equal(version.status, 0);
    assert_int_equal(strncmp(version.out, "penstock ", 9), 0);
    program_free(&version);
}

static void test_manual_has_every_option(void **state)
{
    (void)state;
    program_result manual = PENSTOCK("help", "--man");
    assert_int_equal(manual.status, 0);
    assert_non_null(strstr(manual.out, ".Sh NAME"));
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
        program_result help = PENSTOCK("help", commands[i]);
        for (const char *at = help.out; (at = strstr(at, " --")) != NULL; at++) {
            char name[64] = "";
            sscanf(at + 3, "%63[a-z0-9-]", name);
            char row[96];
            snprintf(row, sizeof row, "Fl \\-%s", name);
            if (name[0] != '\0' && strstr(manual.out, row) == NULL)
                fail_msg("--%s of %s is not in the manual", name, commands[i]);
        }
        program_free(&help);
    }
    program_free(&manual);
}

static void test_mistakes(void **state)
{
    (void)state;
    EXPECT_ERROR(2, "needs MODEL", "generate");
    EXPECT_ERROR(2, "the nearest is generate", "generat");
    EXPECT_ERROR(2, "'penstock help' lists them", "frobnicate");
    EXPECT_ERROR(2, "the nearest is --max-new-tokens", "generate", MODEL, "--max-new", "3");
    EXPECT_ERROR(2, "--max-new-tokens needs a value", "generate", MODEL, "--max_new_tokens");
    EXPECT_ERROR(2, "unexpected \"two\"", "generate", MODEL, "two");
    EXPECT_ERROR(2, "--kv-bits: \"7\" is none of", "generate", MODEL, "--kv-bits", "7");
    EXPECT_ERROR(2, "not a size", "generate", MODEL, "--host-memory", "lots");
    EXPECT_ERROR(2, "exclude each other", "generate", MODEL, "--prompt", "x", "--greedy", "--top-k", "5");
    EXPECT_ERROR(2, "more than one", "generate", MODEL, "--prompt", "x", "--token-ids", "1");
    EXPECT_ERROR(2, "takes one text", "score", MODEL, "--text", "a", "--text", "b", "--logits-out", "x.npy");
    EXPECT_ERROR(2, "unknown shape", "synth", "llama9", "out");
    EXPECT_ERROR(2, "needs SHAPE OUT", "synth", "tiny");
    EXPECT_ERROR(2, "penstock bench infer", "bench");
    EXPECT_ERROR(2, "\"bench warp\" is unknown", "bench", "warp");
    EXPECT_ERROR(2, "no help on", "help", "nothing");
    EXPECT_ERROR(2, "not --text", "tokenize", MODEL, "--decode", "--text", "x");
    EXPECT_ERROR(2, "5000 is not a multiple of 4096", "generate", MODEL, "--prompt", "x", "--block-size", "5000");
    EXPECT_ERROR(2, "5000 is not a multiple of 4096", "synth", "tiny", "out", "--block-size", "5000");
    EXPECT_ERROR(2, "none of auto|portable|avx2|", "generate", MODEL, "--prompt", "x", "--kernels", "bogus");
    EXPECT_ERROR(2, "not within 1 to 4096", "synth", "tiny", "out", "--layers", "65536");
    EXPECT_ERROR(2, "one word is empty", "generate", "", "--prompt", "x");
    EXPECT_ERROR(2, "one word is empty", "synth", "tiny", "");
    EXPECT_ERROR(2, "needs one model", "bench", "infer", "--model", "");
    EXPECT_ERROR(2, "--host-memory: 0 is less than 1", "generate", MODEL, "--prompt", "x", "--host-memory", "0");
    EXPECT_ERROR(2, "--stop: an empty text", "generate", MODEL, "--prompt", "x", "--stop", "a", "--stop", "");
    EXPECT_ERROR(2, "is too large", "generate", MODEL, "--prompt", "x", "--seed", "18446744073709551616");
    /* What would break the line is shown as something else. */
    EXPECT_ERROR(2, "unknown command \"a b?\"", "a\nb\033");
    /* U+009B, which a terminal obeys like ESC [; the same as a byte; and a letter that begins with the same byte. */
    EXPECT_ERROR(2, "unknown command \"a?2Jb\"",
                 "a\xc2\x9b"
                 "2Jb");
    EXPECT_ERROR(2, "unknown command \"a?2Jb\"",
                 "a\x9b"
                 "2Jb");
    EXPECT_ERROR(2, "unknown command \"a\u00a3b\"", "a\u00a3b");
}

static void test_spellings(void **state)
{
    (void)state;
    program_result hyphens =
        PENSTOCK("generate", MODEL, "--prompt", "Once", "--max-new-tokens", "4", "--io-engine", "threads");
    program_result underscores =
        PENSTOCK("generate", "--prompt=Once", "--max_new_tokens=4", "--io_engine=threads", MODEL);
    program_result attached = PENSTOCK("generate", "-pOnce", "-n4", MODEL, "--host-memory", "1g");
    assert_int_equal(hyphens.status, 0);
    assert_int_equal(underscores.status, 0);
    assert_int_equal(attached.status, 0);
    assert_string_equal(hyphens.out, underscores.out);
    assert_string_equal(hyphens.out, attached.out);
    program_free(&attached);
    program_free(&hyphens);
    program_free(&underscores);
}

static void test_standard_output_failures(void **state)
{
    (void)state;
    const program_setup full = {.output_to = "/dev/full"}, closed = {.output_closed = true},
                        broken = {.output_broken = true};
    expect_error(PENSTOCK_WITH(&full, "help"), 1, "No space left");
    expect_error(PENSTOCK_WITH(&full, "--version"), 1, "No space left");
    expect_error(PENSTOCK_WITH(&full, "generate", MODEL, "--prompt", "Once", "-n", "4"), 1, "No space left");
    expect_error(PENSTOCK_WITH(&full, "generate", MODEL, "--prompt", "Once", "-n", "4", "--json"), 1, "No space left");
    expect_error(PENSTOCK_WITH(&full, "tokenize", MODEL, "--text", "x"), 1, "No space left");
    expect_error(PENSTOCK_WITH(&full, "inspect", MODEL), 1, "No space left");
    expect_error(PENSTOCK_WITH(&closed, "generate", MODEL, "--prompt", "Once", "-n", "4"), 1, "Bad file descriptor");
    program_result quiet = PENSTOCK_WITH(&broken, "generate", MODEL, "--prompt", "Once", "-n", "400");
    assert_int_equal(quiet.status, 1);
    assert_string_equal(quiet.err, "");
    program_free(&quiet);
    quiet = PENSTOCK_WITH(&broken, "inspect", MODEL, "--json");
    assert_int_equal(quiet.status, 1);
    assert_string_equal(quiet.err, "");
    program_free(&quiet);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_help),
        cmocka_unit_test(test_manual_has_every_option),
        cmocka_unit_test(test_mistakes),
        cmocka_unit_test(test_spellings),
        cmocka_unit_test(test_standard_output_failures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
