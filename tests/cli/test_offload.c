/* SPDX-License-Identifier: Apache-2.0 */
/* --quant-bits: a quantized copy is made once and found again, over one folder or several, whatever happened before. */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "program.h"

#define ASK "--prompt", "The clock", "-n", "20", "--greedy"

/* Standard output and whether a copy was made for it. */
static char *ask(program_result result, bool expect_made)
{
    if (result.status != 0)
        fail_msg("%s", result.err);
    if ((strstr(result.err, "quantizing once") != NULL) != expect_made)
        fail_msg("a copy was%s made: %s", expect_made ? " not" : "", result.err);
    char *out = strdup(result.out);
    program_free(&result);
    return out;
}

/* Entries of a folder that hold `part`; the last one's name is kept. */
static char last_entry[512];
static int count_in(const char *folder, const char *part)
{
    DIR *dir = opendir(folder);
    int count = 0;
    assert_non_null(dir);
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        if (entry->d_name[0] == '.' || strstr(entry->d_name, part) == NULL)
            continue;
        count++;
        snprintf(last_entry, sizeof last_entry, "%s/%.200s", folder, entry->d_name);
    }
    closedir(dir);
    return count;
}

static void expect_text(char *text, const char *expected)
{
    assert_string_equal(text, expected);
    free(text);
}

/* What the converted model says, made the long way. */
static char *reference(void)
{
    static char *text;
    if (text == NULL) {
        program_result made = PENSTOCK("convert", MODEL, scratch_path("long-way"), "--bits", "4");
        assert_int_equal(made.status, 0);
        program_free(&made);
        text = ask(PENSTOCK("generate", scratch_path("long-way"), ASK), false);
    }
    return text;
}

static void test_made_once(void **state)
{
    (void)state;
    const char *dir = scratch_path("once");
    expect_text(ask(PENSTOCK("generate", MODEL, ASK, "--quant-bits", "4", "--offload-dir", dir), true), reference());
    expect_text(ask(PENSTOCK("generate", MODEL, ASK, "--quant_bits=4", "--offload_dir", dir, "--resident", "0"), false),
                reference());
    assert_int_equal(count_in(dir, ""), 2); /* the copy and its lock */
    free(ask(PENSTOCK("score", MODEL, "--text", "Once upon a time", "--quant-bits", "4", "--offload-dir", dir), false));
    free(ask(PENSTOCK("bench", "infer", MODEL, "--loops", "1", "--prompt-len", "8", "--gen-len", "2", "--quant_bits",
                      "4", "--quant_group_size", "64", "--offload-dir", dir),
             false));
    free(ask(PENSTOCK("generate", MODEL, ASK, "--quant-bits", "8", "--offload-dir", dir), true));
    free(ask(PENSTOCK("generate", MODEL, ASK, "--quant-bits", "4", "--quant-group-size", "32", "--offload-dir", dir),
             true));
    assert_int_equal(count_in(dir, ""), 6);
    EXPECT_ERROR(1, "quantized already", "generate", scratch_path("long-way"), ASK, "--quant-bits", "8",
                 "--offload-dir", dir);
    EXPECT_ERROR(2, "--quant-group-size", "generate", MODEL, ASK, "--quant-bits", "8", "--quant-group-size", "5",
                 "--offload-dir", dir);
    EXPECT_ERROR(2, "--quant-bits", "generate", MODEL, ASK, "--quant-bits", "3");
    EXPECT_ERROR(1, "", "generate", MODEL, ASK, "--quant-bits", "8", "--offload-dir", "/dev/null/x");
}

static void test_usual_place(void **state)
{
    (void)state;
    char environment[600];
    snprintf(environment, sizeof environment, "XDG_CACHE_HOME=%s", scratch_path("cache"));
    const program_setup setup = {.environment = environment};
    expect_text(ask(PENSTOCK_WITH(&setup, "generate", MODEL, ASK, "--quant-bits", "4"), true), reference());
    assert_int_equal(count_in(scratch_path("cache/penstock/offload"), "penstock-tales-4bit-"), 2);
    const program_setup nowhere = {.environment = "XDG_CACHE_HOME=", .homeless = true};
    expect_error(PENSTOCK_WITH(&nowhere, "generate", MODEL, ASK, "--quant-bits", "4"), 2, "--offload-dir");
}

/* A model that changed is another one. */
static void test_changed_model(void **state)
{
    (void)state;
    const char *model = copy_model(MODEL, "changing"), *dir = scratch_path("changed");
    free(ask(PENSTOCK("generate", model, ASK, "--quant-bits", "8", "--offload-dir", dir), true));
    free(ask(PENSTOCK("generate", model, ASK, "--quant-bits", "8", "--offload-dir", dir), false));
    char path[600];
    snprintf(path, sizeof path, "%s/config.json", model);
    size_t bytes;
    char *text = read_file(path, &bytes);
    write_file(path, text, bytes); /* the same content, another time */
    free(text);
    snprintf(path, sizeof path, "%s/LICENSES", model); /* neither is copied, and neither is in the way */
    assert_int_equal(mkdir(path, 0777), 0);
    snprintf(path, sizeof path, "%s/gone.json", model);
    assert_int_equal(symlink("/nonexistent/gone.json", path), 0);
    free(ask(PENSTOCK("generate", model, ASK, "--quant-bits", "8", "--offload-dir", dir), true));
}

/* Other weights with the sizes and times of the old ones, as tools that copy files leave them. */
static void test_changed_weights(void **state)
{
    (void)state;
    const char *model = copy_model(MODEL, "retrained"), *dir = scratch_path("retrained-copies");
    free(ask(PENSTOCK("generate", model, ASK, "--quant-bits", "8", "--offload-dir", dir), true));
    assert_int_equal(count_in(dir, "retrained-8bit-"), 2); /* named after the model */
    char path[600];
    snprintf(path, sizeof path, "%s/model-00002-of-00003.safetensors", model);
    struct stat before;
    assert_int_equal(stat(path, &before), 0);
    size_t bytes;
    char *text = read_file(path, &bytes);
    uint64_t header = 0;
    memcpy(&header, text, sizeof header);
    for (size_t i = sizeof header + header; i < bytes; i += 2)
        text[i] ^= 1;
    write_file(path, text, bytes);
    free(text);
    const struct timespec times[2] = {before.st_atim, before.st_mtim};
    assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
    free(ask(PENSTOCK("generate", model, ASK, "--quant-bits", "8", "--offload-dir", dir), true));
    free(ask(PENSTOCK("generate", model, ASK, "--quant-bits", "8", "--offload-dir", dir), false));
}

static void test_stripes(void **state)
{
    (void)state;
    const char *a = scratch_path("drive-a"), *b = scratch_path("drive-b"), *c = scratch_path("drive-c");
#define OVER_THREE ASK, "--quant-bits", "4", "--offload-dir", a, "--offload-dir", b, "--offload-dir", c
    expect_text(ask(PENSTOCK("generate", MODEL, OVER_THREE), true), reference());
    expect_text(ask(PENSTOCK("generate", MODEL, OVER_THREE, "--resident", "0"), false), reference());
    assert_int_equal(count_in(c, "4bit"), 1);
    program_result checked = PENSTOCK("verify", last_entry);
    assert_int_equal(checked.status, 0);
    assert_non_null(strstr(checked.out, "0 damaged"));
    program_free(&checked);
    /* A part that was lost is told by name; a copy that was never finished is made again. */
    char part[600], hidden[600];
    snprintf(part, sizeof part, "%s/penstock-stripe.json", last_entry);
    snprintf(hidden, sizeof hidden, "%s/hidden", last_entry);
    assert_int_equal(rename(part, hidden), 0);
    EXPECT_ERROR(1, "drive-c", "generate", MODEL, OVER_THREE);
    assert_int_equal(count_in(a, "4bit"), 2);
    char *slash = strrchr(last_entry, '/');
    assert_non_null(slash);
    char *dot = strstr(slash, ".lock");
    if (dot != NULL)
        *dot = '\0';
    snprintf(part, sizeof part, "%s/penstock-offload.json", last_entry);
    assert_int_equal(unlink(part), 0);
    expect_text(ask(PENSTOCK("generate", MODEL, OVER_THREE), true), reference());
    expect_text(ask(PENSTOCK("generate", MODEL, OVER_THREE), false), reference());
    EXPECT_ERROR(1, "named twice", "generate", MODEL, ASK, "--quant-bits", "4", "--offload-dir", a, "--offload-dir", a);
}

/* Ended in the middle by what cannot be caught, and by what can. */
static void test_ended_early(void **state)
{
    (void)state;
    program_result made = PENSTOCK("synth", "tiny", scratch_path("wide"), "--layers", "400");
    assert_int_equal(made.status, 0);
    program_free(&made);
    const char *dir = scratch_path("ended"), *second = scratch_path("ended2");
#define WIDE "generate", scratch_path("wide"), "--prompt", "x", "-n", "1", "--quant-bits", "8"
    const program_setup interrupted = {.signal = SIGTERM}, killed = {.signal = SIGKILL};
    program_result one = PENSTOCK_WITH(&interrupted, WIDE, "--offload-dir", dir);
    assert_int_equal(one.status, 128 + SIGTERM);
    program_free(&one);
    assert_int_equal(count_in(dir, ""), 1); /* the lock */
    one = PENSTOCK_WITH(&killed, WIDE, "--offload-dir", dir);
    assert_int_equal(one.status, 1000 + SIGKILL);
    program_free(&one);
    one = PENSTOCK_WITH(&killed, WIDE, "--offload-dir", dir, "--offload-dir", second);
    assert_int_equal(one.status, 1000 + SIGKILL);
    program_free(&one);
    free(ask(PENSTOCK(WIDE, "--offload-dir", dir), true));
    assert_int_equal(count_in(dir, "tmp-"), 0);
    free(ask(PENSTOCK(WIDE, "--offload-dir", dir, "--offload-dir", second), true));
    free(ask(PENSTOCK(WIDE, "--offload-dir", dir, "--offload-dir", second), false));
}

/* Several processes at once make one copy. */
static void test_together(void **state)
{
    (void)state;
    char command[2000];
    const char *dir = scratch_path("together");
    snprintf(command, sizeof command,
             "for i in 1 2 3; do %s generate %s --prompt 'The clock' -n 20 --greedy --quant-bits 4 --offload-dir %s "
             ">%s/out$i 2>%s/err$i || touch %s/failed$i & done; wait",
             PST_TEST_PROGRAM, MODEL, dir, scratch(), scratch(), scratch());
    assert_int_equal(system(command), 0);
    int made = 0;
    for (int i = 1; i <= 3; i++) {
        char name[16];
        size_t bytes;
        snprintf(name, sizeof name, "out%d", i);
        char *out = read_file(scratch_path(name), &bytes);
        expect_text(out, reference());
        snprintf(name, sizeof name, "err%d", i);
        char *err = read_file(scratch_path(name), &bytes);
        made += strstr(err, "quantizing once") != NULL;
        free(err);
    }
    assert_int_equal(made, 1);
    assert_int_equal(count_entries("failed"), 0);
    assert_int_equal(count_in(dir, ""), 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_made_once),     cmocka_unit_test(test_usual_place),
        cmocka_unit_test(test_changed_model), cmocka_unit_test(test_changed_weights),
        cmocka_unit_test(test_stripes),       cmocka_unit_test(test_ended_early),
        cmocka_unit_test(test_together),
    };
    return cmocka_run_group_tests_name("offload", tests, NULL, NULL);
}
