/* SPDX-License-Identifier: Apache-2.0 */
/*
 * penstock bench save and bench load: their figures and their arithmetic, what it refuses, the chart, the comparisons (with stand-ins for fio and
 * Python, whose figures are known), and that no file is left behind.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "program.h"

#define SAVE(...) PENSTOCK("bench", "save", __VA_ARGS__, "--io-profile", "none")

/* A folder in the scratch folder, made when it is not there. */
static const char *folder(const char *name)
{
    const char *path = scratch_path(name);
    mkdir(path, 0777);
    return path;
}

static void expect_empty(const char *path)
{
    if (rmdir(path) != 0)
        fail_msg("%s is not empty", path);
}

static void check_result(const json_t *result, const char *op, const char *tool, uint64_t bytes, size_t loops)
{
    assert_string_equal(text(result, "op"), op);
    assert_string_equal(text(result, "tool"), tool);
    assert_true(number(result, "bytes") == (double)bytes);
    assert_true(number(result, "seconds") > 0);
    assert_true(near(number(result, "bytes_per_second"), (double)bytes / number(result, "seconds")));
    assert_true(number(result, "cpu_seconds") >= 0 && number(result, "cpu_seconds_per_gb") >= 0);
    const json_t *repetitions = json_object_get(result, "repetitions");
    assert_int_equal(json_array_size(repetitions), loops);
    size_t below = 0, equal = 0;
    for (size_t i = 0; i < loops; i++) {
        const json_t *one = json_array_get(repetitions, i);
        assert_true(near(number(one, "bytes_per_second"), (double)bytes / number(one, "seconds")));
        assert_true(number(one, "bytes_per_second") >= number(result, "min_bytes_per_second") * (1 - 1e-9));
        assert_true(number(one, "bytes_per_second") <= number(result, "max_bytes_per_second") * (1 + 1e-9));
        below += number(one, "seconds") < number(result, "seconds");
        equal += number(one, "seconds") == number(result, "seconds");
    }
    assert_true(below <= (loops - 1) / 2 && below + equal > (loops - 1) / 2); /* the lower middle */
}

static void test_json(void **state)
{
    (void)state;
    const char *dir = folder("json");
    json_t *document =
        expect_json(SAVE(dir, "--size", "3M,1Mi", "--format", "pt", "--tensors", "5", "--loops", "4", "--json"));
    const json_t *results = json_object_get(document, "results");
    assert_int_equal(json_array_size(results), 2);
    for (size_t i = 0; i < 2; i++) {
        const json_t *result = json_array_get(results, i);
        uint64_t bytes = i == 0 ? 3000000 : 1 << 20;
        check_result(result, "save", "penstock", bytes, 4);
        assert_string_equal(text(result, "format"), "pt");
        assert_true(number(result, "tensors") == 5 && number(result, "file_bytes") > (double)bytes);
        assert_true(strlen(text(result, "engine")) > 0 && number(result, "block_size") >= 4096);
        assert_true(json_is_boolean(json_object_get(result, "direct")));
    }
    assert_non_null(text(json_object_get(document, "machine"), "processor"));
    assert_string_equal(text(json_array_get(json_object_get(document, "folders"), 0), "path"), dir);
    const json_t *settings = json_object_get(document, "settings");
    assert_true(number(settings, "loops") == 4 && number(settings, "warmup_loops") == 1);
    assert_true(json_is_true(json_object_get(settings, "digests")));
    json_decref(document);
    expect_empty(dir);
}

static void test_text_and_chart(void **state)
{
    (void)state;
    const char *dir = folder("text"), *chart = scratch_path("chart.svg");
    program_result result = SAVE(dir, "--size=2M", "--no-digests", "--loops", "2", "--warmup_loops", "0", "--io-engine",
                                 "threads", "--block-size", "64K", "--ring", "8M", "--plot", chart);
    assert_int_equal(result.status, 0);
    assert_non_null(strstr(result.out, "save 2.00 MB in 1 tensors, no digests"));
    assert_non_null(strstr(result.out, "penstock     safetensors"));
    assert_non_null(strstr(result.out, "threads"));
    program_free(&result);
    size_t bytes;
    char *drawn = read_file(chart, &bytes);
    assert_non_null(strstr(drawn, "<svg"));
    assert_non_null(strstr(drawn, "penstock bench save"));
    free(drawn);
    expect_empty(dir);
}

static void test_ranks(void **state)
{
    (void)state;
    const char *dir = folder("ranks");
    static const char *const formats[] = {"pt", "safetensors"};
    for (int i = 0; i < 2; i++) {
        json_t *document =
            expect_json(SAVE(dir, "--size", "5M", "--ranks", "3", "--loops", "2", "--format", formats[i], "--json"));
        check_result(json_array_get(json_object_get(document, "results"), 0), "save", "penstock", 5000000, 2);
        assert_true(number(json_object_get(document, "settings"), "processes") == 3);
        json_decref(document);
    }
    expect_empty(dir);
}

/* Made and loaded; what is given is loaded and stays. */
static void test_load(void **state)
{
    (void)state;
    const char *dir = folder("load");
    static const char *const formats[] = {"pt", "safetensors"};
    for (int i = 0; i < 2; i++) {
        json_t *document =
            expect_json(PENSTOCK("bench", "load", dir, "--size", "3M,1M", "--format", formats[i], "--tensors", "4",
                                 "--loops", "2", "--verify", "--small-pages", "--json", "--io-profile", "none"));
        const json_t *results = json_object_get(document, "results");
        assert_int_equal(json_array_size(results), 2);
        check_result(json_array_get(results, 0), "load", "penstock", 3000000, 2);
        check_result(json_array_get(results, 1), "load", "penstock", 1000000, 2);
        assert_string_equal(text(json_array_get(results, 0), "format"), formats[i]);
        json_decref(document);
    }
    expect_empty(dir);
    program_result shown = PENSTOCK("bench", "load", MODEL, "--loops", "2", "--io-profile", "none");
    assert_int_equal(shown.status, 0);
    assert_non_null(strstr(shown.out, "digests not checked, cold"));
    program_free(&shown);
    json_t *document = expect_json(SAVE(folder("like"), "--from", MODEL, "--format", "pt", "--loops", "1", "--json"));
    const json_t *saved = json_array_get(json_object_get(document, "results"), 0);
    assert_true(number(saved, "tensors") > 10 && number(saved, "bytes") > 1e6);
    json_decref(document);
    expect_empty(scratch_path("like"));
    EXPECT_ERROR(2, "does not load safetensors", "bench", "load", MODEL, "--against", "torch");
    EXPECT_ERROR(2, "deepspeed", "bench", "load", folder("load"), "--against", "deepspeed");
    EXPECT_ERROR(1, "not-there", "bench", "load", scratch_path("not-there"));
    write_text(scratch_path("no-checkpoint"), "x");
    EXPECT_ERROR(1, "no-checkpoint", "bench", "load", scratch_path("no-checkpoint"));
}

/* A program whose answers are known; it notes its arguments beside itself. */
static void make_program(const char *path, const char *body)
{
    char script[3000];
    snprintf(script, sizeof script, "#!/bin/sh\nprintf '%%s\\n' \"$*\" >>%s.calls\n%s\n", path, body);
    write_text(path, script);
    assert_int_equal(chmod(path, 0755), 0);
}

static void test_comparisons(void **state)
{
    (void)state;
    const char *dir = folder("compared: x"), *programs = folder("programs"), *drivers = folder("drivers");
    char fio[600], python[600], variable[700], driver[600];
    snprintf(fio, sizeof fio, "%s/fio", programs);
    snprintf(python, sizeof python, "%s/python", programs);
    snprintf(variable, sizeof variable, "PATH=%s:/usr/bin:/bin", programs);
    snprintf(driver, sizeof driver, "%s/peers", drivers);
    mkdir(driver, 0777);
    snprintf(driver, sizeof driver, "%s/peers/checkpoint.py", drivers);
    write_text(driver, "");
    /* 4 MiB in 10 ms, half a processor; 4 MiB in 50 ms. */
    make_program(fio, "if [ \"$1\" = --version ]; then echo fio-9.9; exit 0; fi\n"
                      "echo 'a note'\necho '{\"jobs\": [{\"error\": 0, \"write\": {\"io_bytes\": 4194304, \"runtime\": "
                      "10}, \"usr_cpu\": 20, \"sys_cpu\": 30, \"job_runtime\": 10}]}'");
    make_program(python, "case \"$2\" in *check*) echo '{\"version\": \"torch 9\"}';; *) echo '{\"seconds\": 0.05, "
                         "\"cpu_seconds\": 0.01, \"bytes\": 4194304}';; esac");
    program_setup setup = {.environment = variable};
    json_t *document = expect_json(PENSTOCK_WITH(&setup, "bench", "save", dir, "--size", "4Mi", "--against",
                                                 "torch,fio,safetensors", "--python", python, "--drivers", drivers,
                                                 "--loops", "3", "--json", "--io-profile", "none"));
    assert_string_equal(text(document, "fio_version"), "fio-9.9");
    const json_t *results = json_object_get(document, "results");
    static const char *const tools[] = {"penstock", "torch", "fio", "safetensors"};
    assert_int_equal(json_array_size(results), 4);
    for (size_t i = 0; i < 4; i++)
        check_result(json_array_get(results, i), "save", tools[i], 4 << 20, 3);
    const json_t *torch = json_array_get(results, 1), *of_fio = json_array_get(results, 2);
    assert_string_equal(text(torch, "setting"), "torch 9");
    assert_true(near(number(torch, "seconds"), 0.05) && near(number(torch, "cpu_seconds"), 0.01));
    assert_true(near(number(torch, "share_of_fio"), 0.2));
    assert_true(near(number(of_fio, "share_of_fio"), 1) && near(number(of_fio, "cpu_seconds"), 0.005));
    assert_true(near(number(torch, "penstock_ratio"), number(of_fio, "penstock_ratio") * 5));
    assert_true(near(number(json_array_get(results, 0), "share_of_fio"), number(of_fio, "penstock_ratio")));
    json_decref(document);
    size_t bytes;
    char *calls = read_file(scratch_path("programs/fio.calls"), &bytes);
    static const char *const holds[] = {"--rw=write", "--end_fsync=1", "--direct=1", "--size=4194304",
                                        "compared\\: x/penstock-bench-"};
    for (size_t i = 0; i < sizeof holds / sizeof holds[0]; i++)
        assert_non_null(strstr(calls, holds[i]));
    free(calls);
    make_program(python, "echo first >&2; echo 'no module torch' >&2; exit 3");
    expect_error(PENSTOCK_WITH(&setup, "bench", "save", dir, "--size", "4Mi", "--against", "torch", "--python", python,
                               "--drivers", drivers, "--io-profile", "none"),
                 1, "torch ended with status 3: no module torch");
    make_program(fio, "if [ \"$1\" = --version ]; then echo fio-9.9; exit 0; fi\necho broken >&2; exit 1");
    expect_error(
        PENSTOCK_WITH(&setup, "bench", "save", dir, "--size", "4Mi", "--against", "fio", "--io-profile", "none"), 1,
        "fio ended with status 1: broken");
    expect_empty(dir);
}

static void test_refused(void **state)
{
    (void)state;
    const char *dir = folder("refused");
    EXPECT_ERROR(2, "--size", "bench", "save", dir, "--size", "1");
    EXPECT_ERROR(2, "--size", "bench", "save", dir, "--size", "1M,,2M");
    EXPECT_ERROR(2, "\"tar\"", "bench", "save", dir, "--format", "tar");
    EXPECT_ERROR(2, "\"jax\"", "bench", "save", dir, "--against", "fio,jax");
    EXPECT_ERROR(2, "twice", "bench", "save", dir, "--against", "fio,fio");
    EXPECT_ERROR(2, "FILE.svg", "bench", "save", dir, "--plot", "x.png");
    EXPECT_ERROR(1, "not-there", "bench", "save", scratch_path("not-there"), "--size", "1M");
    EXPECT_ERROR(1, "free there", "bench", "save", dir, "--size", "1000T");
    EXPECT_ERROR(1, "checkpoint.py", "bench", "save", dir, "--size", "1M", "--against", "torch", "--drivers", dir);
    EXPECT_ERROR(2, "bench save", "bench", "load-and-save");
    expect_empty(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_json), cmocka_unit_test(test_text_and_chart), cmocka_unit_test(test_ranks),
        cmocka_unit_test(test_load), cmocka_unit_test(test_comparisons),    cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests_name("cli/bench_ckpt", tests, NULL, NULL);
}
