/* SPDX-License-Identifier: Apache-2.0 */
/* penstock synth and inspect: what the one writes the other reads, and nothing half-written stays. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "program.h"

static void test_synth_then_use(void **state)
{
    (void)state;
    const char *folder = scratch_path("tiny");
    json_t *made = expect_json(PENSTOCK("synth", "tiny", folder, "--layers", "2", "--seed", "3", "--json"));
    const json_t *report = json_array_get(json_object_get(made, "results"), 0);
    assert_int_equal(json_integer_value(json_object_get(report, "layers")), 2);
    json_t *seen = expect_json(PENSTOCK("inspect", folder, "--json"));
    assert_int_equal(json_array_size(json_object_get(seen, "tensors")),
                     json_integer_value(json_object_get(report, "tensors")));
    assert_int_equal(json_integer_value(json_object_get(json_object_get(seen, "config"), "layers")), 2);
    json_decref(made);
    json_decref(seen);
    program_result text = PENSTOCK("generate", folder, "--prompt", "x", "-n", "3", "--resident", "0");
    assert_int_equal(text.status, 0);
    program_free(&text);
    EXPECT_ERROR(1, "tiny", "synth", "tiny", folder); /* it exists */
}

static void test_synth_options(void **state)
{
    (void)state;
    program_result one = PENSTOCK("synth", "tiny", scratch_path("a"), "--seed", "1");
    program_result same = PENSTOCK("synth", "tiny", scratch_path("b"), "--seed", "1", "--shard_size", "100K",
                                   "--threads", "1", "--io-engine", "threads");
    assert_int_equal(one.status, 0);
    assert_int_equal(same.status, 0);
    assert_non_null(strstr(one.out, "million parameters"));
    program_free(&one);
    program_free(&same);
    struct stat about;
    assert_int_equal(stat(scratch_path("b/model.safetensors.index.json"), &about), 0);
    json_t *a = expect_json(PENSTOCK("generate", scratch_path("a"), "--token-ids", "1,2,3", "-n", "8", "--json"));
    json_t *b = expect_json(PENSTOCK("generate", scratch_path("b"), "--token-ids", "1,2,3", "-n", "8", "--json"));
    assert_true(json_equal(json_object_get(a, "results"), json_object_get(b, "results")));
    json_decref(a);
    json_decref(b);
}

static void test_synth_failures(void **state)
{
    (void)state;
    int before = count_entries("full");
    const program_setup small = {.file_limit = 100000};
    expect_error(PENSTOCK_WITH(&small, "synth", "tiny", scratch_path("full")), 1, "full");
    assert_int_equal(count_entries("full"), before);
    EXPECT_ERROR(1, "", "synth", "tiny", "/dev/null/x");
    /* More than any drive of a test machine: refused before anything is written. */
    expect_error(PENSTOCK("synth", "llama3-70b", scratch_path("full"), "--dtype", "f32", "--layers", "4096"), 1, "");
    assert_int_equal(count_entries("full"), before);
}

/* Enough to be announced before it is written; the signal comes at the announcement. */
static void test_synth_interrupted(void **state)
{
    (void)state;
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGINT};
    for (size_t i = 0; i < 4; i++) {
        /* An impatient user's second and third Ctrl-C come while the first one's cleaning is under way. */
        const program_setup setup = {.signal = signals[i], .signal_repeats = i == 3};
        program_result result = PENSTOCK_WITH(&setup, "synth", "tiny", scratch_path("stopped"), "--layers", "2000");
        assert_non_null(strstr(result.err, "penstock: writing "));
        assert_int_equal(result.status, 128 + signals[i]);
        assert_string_equal(result.out, "");
        program_free(&result);
        assert_int_equal(count_entries("stopped"), 0);
    }
}

/* More files than the soft limit of open ones, which the program raises. */
static void test_many_shards(void **state)
{
    (void)state;
    const program_setup setup = {.open_files = 64};
    const char *folder = scratch_path("shards");
    program_result made = PENSTOCK_WITH(&setup, "synth", "tiny", folder, "--layers", "12", "--shard-size", "1");
    assert_int_equal(made.status, 0);
    program_free(&made);
    json_t *seen = expect_json(PENSTOCK("inspect", folder, "--json"));
    assert_true(json_array_size(json_object_get(seen, "files")) > 100);
    json_decref(seen);
    program_result text = PENSTOCK_WITH(&setup, "generate", folder, "--prompt", "x", "-n", "2", "--resident", "0");
    if (text.status != 0)
        fail_msg("%s", text.err);
    program_free(&text);
}

static void test_inspect_table(void **state)
{
    (void)state;
    program_result result = PENSTOCK("inspect", MODEL);
    assert_int_equal(result.status, 0);
    assert_string_equal(result.err, "");
    assert_non_null(strstr(result.out, "model.embed_tokens.weight"));
    char shape[64], layers[64];
    snprintf(shape, sizeof shape, "[%d, %d]", (int)model_config("vocab_size"), (int)model_config("hidden_size"));
    snprintf(layers, sizeof layers, "llama, layers %d", (int)model_config("num_hidden_layers"));
    assert_non_null(strstr(result.out, shape));
    assert_non_null(strstr(result.out, layers));
    program_free(&result);
    result = PENSTOCK("inspect", CASES "/llama_gqa2/model.safetensors");
    assert_int_equal(result.status, 0);
    program_free(&result);
}

/* A tensor name that would command the terminal comes out harmless. */
static void test_inspect_is_safe(void **state)
{
    (void)state;
    static const char header[] = "{\"a\\u001b[2Jb\\u009b2Jc\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}";
    char file[sizeof header + 9] = {0};
    uint64_t length = sizeof header - 1;
    memcpy(file, &length, 8);
    memcpy(file + 8, header, length);
    write_file(scratch_path("evil.safetensors"), file, 8 + length + 1);
    program_result result = PENSTOCK("inspect", scratch_path("evil.safetensors"));
    assert_null(strchr(result.out, '\033'));
    assert_null(strchr(result.err, '\033'));
    assert_non_null(strstr(result.out, "  a?[2Jb?2Jc"));
    program_free(&result);
}

/* A name of megabytes is shown by its ends, in a line that a terminal can show. */
static void test_inspect_long_name(void **state)
{
    (void)state;
    enum { NAME_BYTES = 4 << 20 };
    char *file = malloc(NAME_BYTES + 256);
    assert_non_null(file);
    int at = 8 + sprintf(file + 8, "{\"begin");
    memset(file + at, 'x', NAME_BYTES);
    at += NAME_BYTES;
    at += sprintf(file + at, "end\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}");
    uint64_t length = (uint64_t)at - 8;
    memcpy(file, &length, 8);
    file[at] = 0;
    write_file(scratch_path("long.safetensors"), file, (size_t)at + 1);
    free(file);
    program_result result = PENSTOCK("inspect", scratch_path("long.safetensors"));
    assert_int_equal(result.status, 0);
    assert_true(result.out_bytes < 4096);
    assert_non_null(strstr(result.out, "  beginxxx"));
    assert_non_null(strstr(result.out, "xxx...xxx"));
    assert_non_null(strstr(result.out, "xxxend  U8"));
    program_free(&result);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_synth_then_use),    cmocka_unit_test(test_synth_options),
        cmocka_unit_test(test_synth_failures),    cmocka_unit_test(test_synth_interrupted),
        cmocka_unit_test(test_inspect_table),     cmocka_unit_test(test_inspect_is_safe),
        cmocka_unit_test(test_inspect_long_name), cmocka_unit_test(test_many_shards),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
