/* SPDX-License-Identifier: Apache-2.0 */
/*
 * penstock bench io: its figures and their arithmetic, its options, what it refuses, the chart, the comparison with fio
 * (also with a stand-in for it, whose figures are known), and that no file is left behind.
 */
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "program.h"

#define BENCH(...) PENSTOCK("bench", "io", __VA_ARGS__, "--io-profile", "none")

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

/* ---- figures ---- */

static void check_result(const json_t *result, const char *op, uint64_t io_size, size_t loops)
{
    assert_string_equal(text(result, "op"), op);
    assert_true(number(result, "bytes") == (double)io_size);
    assert_true(number(result, "seconds") > 0);
    assert_true(near(number(result, "bytes_per_second"), (double)io_size / number(result, "seconds")));
    assert_true(number(result, "cpu_seconds") >= 0);
    const json_t *latency = json_object_get(result, "latency_ns");
    assert_true(number(latency, "min") > 0);
    static const char *const rising[] = {"p50", "p90", "p99", "p999"};
    for (size_t i = 0; i + 1 < 4; i++)
        assert_true(number(latency, rising[i]) <= number(latency, rising[i + 1]));
    assert_true(number(latency, "min") <= number(latency, "mean") && number(latency, "mean") <= number(latency, "max"));
    const json_t *repetitions = json_object_get(result, "repetitions");
    assert_int_equal(json_array_size(repetitions), loops);
    size_t below = 0, equal = 0;
    for (size_t i = 0; i < loops; i++) {
        const json_t *one = json_array_get(repetitions, i);
        assert_true(near(number(one, "bytes_per_second"), (double)io_size / number(one, "seconds")));
        assert_true(number(one, "cpu_seconds") >= 0);
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
    json_t *document = expect_json(BENCH(dir, "--read", "--io-size", "1M", "--block-size", "64K", "--queue-depth", "4",
                                         "--io-engine", "threads", "--json"));
    const json_t *results = json_object_get(document, "results");
    assert_int_equal(json_array_size(results), 1);
    const json_t *result = json_array_get(results, 0);
    check_result(result, "read", 1 << 20, 3);
    assert_string_equal(text(result, "engine"), "threads");
    assert_true(number(result, "block_size") == 65536);
    assert_true(number(result, "workers") == 4);
    assert_true(number(json_object_get(result, "latency_ns"), "count") == 16);
    assert_true(json_is_boolean(json_object_get(result, "direct")));
    assert_non_null(text(json_object_get(document, "machine"), "processor"));
    assert_true(number(json_object_get(document, "machine"), "processors") >= 1);
    assert_true(strlen(text(document, "kernel")) > 0);
    const json_t *place = json_array_get(json_object_get(document, "folders"), 0);
    assert_string_equal(text(place, "path"), dir);
    assert_true(strlen(text(place, "file_system")) > 0);
    assert_true(number(json_object_get(document, "settings"), "loops") == 3);
    assert_true(number(json_object_get(document, "defaults"), "block_size") == 1 << 20);
    json_decref(document);
    expect_empty(dir);
}

static void test_both_and_lists(void **state)
{
    (void)state;
    const char *dir = folder("lists");
    json_t *document = expect_json(BENCH(dir, "--io_size", "512K,1M", "--block_size=64k,128Ki", "--queue_depth", "2,8",
                                         "--loops", "4", "--warmup_loops", "0", "--io-engine", "threads", "--json"));
    const json_t *results = json_object_get(document, "results");
    assert_int_equal(json_array_size(results), 16);
    bool seen[2][2][2][2] = {{{{false}}}};
    for (size_t i = 0; i < 16; i++) {
        const json_t *result = json_array_get(results, i);
        bool write = strcmp(text(result, "op"), "write") == 0, large = number(result, "io_size") == 1 << 20;
        bool block = number(result, "block_size") == 1 << 17, deep = number(result, "workers") == 8;
        assert_true(block || number(result, "block_size") == 1 << 16);
        assert_true(deep || number(result, "workers") == 2);
        check_result(result, write ? "write" : "read", large ? 1 << 20 : 1 << 19, 4);
        assert_false(seen[write][large][block][deep]);
        seen[write][large][block][deep] = true;
    }
    json_decref(document);
    expect_empty(dir);
}

static void test_every_option(void **state)
{
    (void)state;
    const char *one = folder("one"), *two = folder("two"), *three = folder("three");
    json_t *document = expect_json(
        BENCH(one, "--folder", two, "--folder", three, "--read", "--write", "--io-size", "300001", "--transfers", "3",
              "--multi-process", "2", "--loops", "2", "--warmup-loops", "1", "--different-file-each-iteration",
              "--validate", "--sync", "--seed", "7", "--io-engine", "auto", "--block-size", "4096", "--queue-depth",
              "3", "--intra-op-parallelism", "2", "--io-parallel", "2", "--workers", "2", "--single-submit",
              "--no-overlap-events", "--sequential-requests", "--unlocked", "--json"));
    const json_t *results = json_object_get(document, "results");
    assert_int_equal(json_array_size(results), 2);
    check_result(json_array_get(results, 0), "write", 6 * 300001, 2);
    check_result(json_array_get(results, 1), "read", 6 * 300001, 2);
    const json_t *settings = json_object_get(document, "settings"), *read = json_array_get(results, 1);
    assert_true(number(settings, "processes") == 2 && number(settings, "transfers") == 3);
    assert_true(json_is_true(json_object_get(settings, "validate")));
    assert_true(json_is_true(json_object_get(settings, "sync")));
    assert_true(json_is_true(json_object_get(read, "single_submit")));
    assert_true(json_is_false(json_object_get(read, "overlap_events")));
    assert_true(number(read, "registered_bytes") == 0 && number(read, "locked_bytes") == 0);
    json_decref(document);
    document = expect_json(BENCH(one, two, three, "--stripe", "--io-size", "5M", "--validate", "--buffered",
                                 "--overlap-events", "--json"));
    assert_true(json_is_false(json_object_get(json_array_get(json_object_get(document, "results"), 0), "direct")));
    json_decref(document);
    document = expect_json(BENCH(one, "--io-size", "5M", "--buffer-size", "256K", "--json"));
    assert_true(number(json_array_get(json_object_get(document, "results"), 0), "buffer_size") == 256 << 10);
    json_decref(document);
    expect_empty(one);
    expect_empty(two);
    expect_empty(three);
}

/* Without --transfers every folder has a part in it: one that is not touched would seem to be measured. */
static void test_several_folders(void **state)
{
    (void)state;
    const char *one = folder("one"), *two = folder("two"), *three = folder("three");
    static const struct {
        const char *processes;
        uint64_t transfers;
    } cases[] = {{"1", 3}, {"2", 4}, {"3", 3}, {"4", 4}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        json_t *document = expect_json(BENCH(one, two, three, "--io-size", "10001", "--loops", "1", "--multi-process",
                                             cases[i].processes, "--validate", "--json"));
        const json_t *results = json_object_get(document, "results");
        check_result(json_array_get(results, 0), "write", (size_t)cases[i].transfers * 10001, 1);
        check_result(json_array_get(results, 1), "read", (size_t)cases[i].transfers * 10001, 1);
        assert_string_equal(text(json_array_get(results, 0), "from"), "defaults");
        json_decref(document);
    }
    json_t *document = expect_json(BENCH(one, two, "--read", "--io-size", "5M", "--loops", "1", "--transfers", "1",
                                         "--queue-depth", "3", "--json"));
    check_result(json_array_get(json_object_get(document, "results"), 0), "read", 5 << 20, 1);
    assert_string_equal(text(json_array_get(json_object_get(document, "results"), 0), "from"), "options");
    json_decref(document);
    EXPECT_ERROR(2, "need --multi-process 2", "bench", "io", one, two, "--against", "fio");
    expect_empty(one);
    expect_empty(two);
    expect_empty(three);
}

/* What users of ds_io paste. */
static void test_ds_io(void **state)
{
    (void)state;
    const char *one = folder("one"), *two = folder("two");
    json_t *document = expect_json(
        BENCH("--folder", one, "--io_size", "4M", "--read", "--loops", "3", "--block_size", "1M", "--queue_depth", "32",
              "--single_submit", "--sequential_requests", "--validate", "--engine", "aio_handle", "--io_parallel", "4",
              "--multi_process", "1", "--warmup_loops", "1", "--different_file_each_iteration", "--json"));
    const json_t *read = json_array_get(json_object_get(document, "results"), 0);
    check_result(read, "read", 4 << 20, 3);
    assert_true(number(read, "block_size") == 1 << 20 && number(read, "queue_depth") == 32);
    assert_true(number(read, "workers") == 4 && json_is_true(json_object_get(read, "single_submit")));
    json_decref(document);
    char first[600], second[600];
    snprintf(first, sizeof first, "%s:0", one);
    snprintf(second, sizeof second, "%s:15", two);
    document = expect_json(BENCH("--folder_to_device_mapping", first, second, "--io_size", "1M", "--read", "--json"));
    check_result(json_array_get(json_object_get(document, "results"), 0), "read", 2 << 20, 3);
    const json_t *folders = json_object_get(document, "folders");
    assert_int_equal(json_array_size(folders), 2);
    for (size_t i = 0; i < 2; i++) {
        const char *path = text(json_array_get(folders, i), "path");
        assert_true(strcmp(path, one) == 0 || strcmp(path, two) == 0);
    }
    json_decref(document);
    document = expect_json(BENCH("--folder_to_device_mapping", first, "--folder_to_device_mapping", second,
                                 "--multi_process", "2", "--engine", "threads", "--io_size", "1M", "--read", "--json"));
    read = json_array_get(json_object_get(document, "results"), 0);
    check_result(read, "read", 2 << 20, 3);
    assert_string_equal(text(read, "engine"), "threads");
    json_decref(document);
    EXPECT_ERROR(1, "--gpu: not yet", "bench", "io", "--folder", one, "--gpu");
    EXPECT_ERROR(1, "--use-gds: not yet", "bench", "io", one, "--use_gds");
    EXPECT_ERROR(1, "--engine torch_io: not here", "bench", "io", one, "--engine", "torch_io");
    EXPECT_ERROR(2, "contradict", "bench", "io", one, "--engine", "libaio", "--io-engine", "threads");
    EXPECT_ERROR(2, "no engine \"abacus\"", "bench", "io", one, "--engine", "abacus");
    EXPECT_ERROR(2, "of the form DIR:N", "bench", "io", "--folder_to_device_mapping", one);
    EXPECT_ERROR(2, "of the form DIR:N", "bench", "io", "--folder_to_device_mapping", ":0");
    EXPECT_ERROR(2, "of the form DIR:N", "bench", "io", "--folder_to_device_mapping", first, two);
    expect_empty(one);
    expect_empty(two);
}

static void test_null_engine(void **state)
{
    (void)state;
    const char *dir = folder("null");
    json_t *document = expect_json(BENCH(dir, "--io-engine", "null", "--io-size", "64M", "--json"));
    const json_t *results = json_object_get(document, "results");
    check_result(json_array_get(results, 0), "write", 64 << 20, 3);
    check_result(json_array_get(results, 1), "read", 64 << 20, 3);
    json_decref(document);
    expect_empty(dir);
}

static void test_text(void **state)
{
    (void)state;
    const char *dir = folder("text");
    program_result result = BENCH(dir, "--io-size", "1M", "--block-size", "64K");
    assert_int_equal(result.status, 0);
    static const char *const holds[] = {"GB/s (min-max)", "CPU s/GB", "p50",  "p99",        "64Ki",
                                        "\nwrite",        "\nread",   "1Mi ", "end to end", "slowest process"};
    for (size_t i = 0; i < sizeof holds / sizeof holds[0]; i++) {
        if (strstr(result.out, holds[i]) == NULL)
            fail_msg("no \"%s\" in \"%s\"", holds[i], result.out);
    }
    assert_true(strstr(result.out, "direct I/O;") != NULL || strstr(result.out, "buffered (page cache) I/O;") != NULL);
    program_free(&result);
    expect_empty(dir);
}

static void test_list_engines(void **state)
{
    (void)state;
    json_t *document = expect_json(PENSTOCK("bench", "io", "--list-engines", "--json"));
    const json_t *results = json_object_get(document, "results");
    const char *automatic = text(document, "auto");
    bool threads = false, chosen = false;
    for (size_t i = 0; i < json_array_size(results); i++) {
        const json_t *engine = json_array_get(results, i);
        bool available = json_is_true(json_object_get(engine, "available"));
        const json_t *why = json_object_get(engine, "why_not");
        assert_true(available ? json_is_null(why) : strlen(json_string_value(why)) > 0);
        assert_true(strlen(text(engine, "description")) > 0);
        assert_true(json_is_array(json_object_get(engine, "flags")));
        threads = threads || (available && strcmp(text(engine, "name"), "threads") == 0);
        bool is_chosen = json_is_true(json_object_get(engine, "chosen_by_auto"));
        assert_true(is_chosen == (strcmp(text(engine, "name"), automatic) == 0));
        chosen = chosen || (is_chosen && available && json_is_true(json_object_get(engine, "automatic")));
    }
    assert_true(threads && chosen);
    json_decref(document);
    program_result result = PENSTOCK("bench", "io", scratch(), "--list-engines");
    assert_int_equal(result.status, 0);
    assert_non_null(strstr(result.out, "threads      yes"));
    program_free(&result);
}

/* ---- what exists already ---- */

static void test_existing_file(void **state)
{
    (void)state;
    const char *path = scratch_path("existing");
    char data[10000];
    memset(data, 'x', sizeof data);
    write_file(path, data, sizeof data);
    json_t *document = expect_json(BENCH(path, "--json", "--block-size", "4K"));
    const json_t *results = json_object_get(document, "results");
    assert_int_equal(json_array_size(results), 1);
    check_result(json_array_get(results, 0), "read", sizeof data, 3);
    json_decref(document);
    EXPECT_ERROR(1, "read, never written", "bench", "io", path, "--write");
    EXPECT_ERROR(1, "fewer than a transfer", "bench", "io", path, "--io-size", "1M");
    size_t bytes;
    char *kept = read_file(path, &bytes);
    assert_int_equal(bytes, sizeof data);
    assert_memory_equal(kept, data, sizeof data);
    free(kept);
    unlink(path);
}

static void test_refusals(void **state)
{
    (void)state;
    const char *dir = folder("refused");
    EXPECT_ERROR(2, "needs a DIR", "bench", "io");
    EXPECT_ERROR(1, "No such file", "bench", "io", scratch_path("missing"));
    EXPECT_ERROR(1, "no folder, regular file or block device", "bench", "io", "/dev/null");
    EXPECT_ERROR(2, "--io-size: 0", "bench", "io", dir, "--io-size", "0");
    EXPECT_ERROR(2, "--io-size", "bench", "io", dir, "--io-size", "1M,,2M");
    EXPECT_ERROR(2, "twice", "bench", "io", dir, "--io-size", "1M,1024K");
    EXPECT_ERROR(2, "--block-size: 0", "bench", "io", dir, "--block-size", "0");
    EXPECT_ERROR(2, "not a multiple of 4096", "bench", "io", dir, "--block-size", "5000");
    EXPECT_ERROR(2, "--block-size: 2G", "bench", "io", dir, "--block-size", "2G");
    EXPECT_ERROR(2, "--queue-depth: 0", "bench", "io", dir, "--queue-depth", "0");
    EXPECT_ERROR(2, "--queue-depth: 4097", "bench", "io", dir, "--queue-depth", "4097");
    EXPECT_ERROR(2, "--queue-depth", "bench", "io", dir, "--queue-depth", "many");
    EXPECT_ERROR(2, "--workers: 0", "bench", "io", dir, "--workers", "0");
    EXPECT_ERROR(2, "contradict", "bench", "io", dir, "--workers", "2", "--io_parallel", "4");
    EXPECT_ERROR(2, "contradict", "bench", "io", dir, "--overlap-events", "--no-overlap-events");
    EXPECT_ERROR(2, "no engine \"abacus\"", "bench", "io", dir, "--io-engine", "abacus");
    EXPECT_ERROR(2, "no engine \"\"", "bench", "io", dir, "--io-engine", "threads,");
    EXPECT_ERROR(2, "--multi-process", "bench", "io", dir, "--multi-process", "0");
    EXPECT_ERROR(2, "--loops", "bench", "io", dir, "--loops", "0");
    EXPECT_ERROR(2, "--transfers", "bench", "io", dir, "--transfers", "0");
    EXPECT_ERROR(2, "named twice", "bench", "io", dir, "--folder", dir);
    EXPECT_ERROR(2, "--buffer-size", "bench", "io", dir, "--buffer-size", "1M", "--validate");
    EXPECT_ERROR(2, "null moves no data", "bench", "io", dir, "--io-engine", "auto,null", "--validate");
    EXPECT_ERROR(2, "charts are SVG", "bench", "io", dir, "--plot", "x.PNG");
    write_text(scratch_path("nothing"), "");
    EXPECT_ERROR(1, "is empty", "bench", "io", scratch_path("nothing"));
    EXPECT_ERROR(2, "--pairs", "bench", "io", dir, "--pairs", "3");
    EXPECT_ERROR(2, "--fio-setting", "bench", "io", dir, "--fio-setting", "libaio");
    EXPECT_ERROR(2, "--fio-setting", "bench", "io", dir, "--against", "fio", "--fio-setting", "abacus");
    EXPECT_ERROR(2, "--against", "bench", "io", dir, "--against", "dd");
    EXPECT_ERROR(1, "of memory", "bench", "io", dir, "--io-size", "100T");
    EXPECT_ERROR(1, "B free", "bench", "io", dir, "--io-size", "100T", "--buffer-size", "1M");
    EXPECT_ERROR(1, "x.svg", "bench", "io", dir, "--io-size", "1M", "--plot", scratch_path("missing/x.svg"));
    EXPECT_ERROR(1, "no regular file", "bench", "io", dir, "--io-size", "1M", "--plot", scratch());
    EXPECT_ERROR(2, "bench io", "bench");
    expect_empty(dir);
}

/* A signal in the middle: the files go, and the status says which signal it was. */
static void test_interrupted(void **state)
{
    (void)state;
    static const char *const processes[] = {"1", "3"};
    for (size_t i = 0; i < 2; i++) {
        const char *dir = folder("interrupted");
        program_setup setup = {.signal = SIGTERM}; /* with the first note */
        program_result result = PENSTOCK_WITH(&setup, "bench", "io", dir, "--io-size", "16M", "--loops", "100000",
                                              "--multi-process", processes[i], "--io-profile", "none", "-v", "1");
        if (result.status != 128 + SIGTERM || strstr(result.err, "interrupted") == NULL)
            fail_msg("status %d: %s", result.status, result.err);
        program_free(&result);
        expect_empty(dir);
    }
}

/* ---- the chart ---- */

/* Every element that begins ends, in order, and no letter stands where markup would begin. */
static void check_xml(const char *at)
{
    char open[16][32];
    size_t depth = 0;
    assert_memory_equal(at, "<?xml ", 6);
    at = strstr(at, "?>") + 2;
    while (*at != '\0') {
        if (*at == '&') {
            assert_true(strncmp(at, "&amp;", 5) == 0 || strncmp(at, "&lt;", 4) == 0 || strncmp(at, "&gt;", 4) == 0 ||
                        strncmp(at, "&quot;", 6) == 0);
        } else if (*at == '<') {
            const char *end = strchr(at, '>');
            assert_non_null(end);
            size_t length = strcspn(at + 1, " />");
            if (at[1] == '/') {
                length = strcspn(at + 2, ">");
                assert_true(depth > 0);
                depth--;
                assert_int_equal(strlen(open[depth]), length);
                assert_memory_equal(open[depth], at + 2, length);
            } else if (end[-1] != '/') {
                assert_true(depth < 16 && length < 32);
                snprintf(open[depth++], 32, "%.*s", (int)length, at + 1);
            }
            at = end;
        }
        at++;
    }
    assert_int_equal(depth, 0);
}

static size_t count_of(const char *in, const char *what)
{
    size_t count = 0;
    for (const char *at = in; (at = strstr(at, what)) != NULL; at += strlen(what))
        count++;
    return count;
}

static void test_plot(void **state)
{
    (void)state;
    const char *dir = folder("plot"), *file = scratch_path("chart.svg");
    write_text(file, "what was there before");
    program_result result = BENCH(dir, "--io-size", "512K", "--block-size", "64K,128K,256K", "--queue-depth", "1,2",
                                  "--io-engine", "io_uring,threads", "--loops", "2", "--plot", file);
    if (result.status == 0) { /* without io_uring it fails, and the other chart below tells as much */
        size_t bytes;
        char *svg = read_file(file, &bytes);
        check_xml(svg);
        assert_non_null(strstr(svg, ">read</text>"));
        assert_non_null(strstr(svg, ">write</text>"));
        assert_non_null(strstr(svg, "block size (bytes of one I/O)"));
        assert_non_null(strstr(svg, "GB/s"));
        assert_non_null(strstr(svg, ">256Ki</text>"));
        free(svg);
    }
    program_free(&result);
    result = BENCH(dir, "--io-size", "512K", "--workers", "1,2", "--io-engine", "threads", "--block-size", "64K,8K",
                   "--loops", "2", "--plot", file);
    assert_int_equal(result.status, 0);
    program_free(&result);
    size_t bytes;
    char *svg = read_file(file, &bytes);
    check_xml(svg);
    assert_int_equal(count_of(svg, "<polyline"), 4); /* two panels, two numbers of workers */
    assert_int_equal(count_of(svg, "<circle"), 2 * 4 + 2);
    assert_int_equal(count_of(svg, ">penstock, workers "), 2);
    assert_true(strstr(svg, ">8Ki</text>") < strstr(svg, ">64Ki</text>"));
    assert_null(strstr(svg, "nan"));
    assert_null(strstr(svg, "inf"));
    free(svg);
    assert_int_equal(count_entries("chart.svg"), 1);
    expect_empty(dir);
}

/* ---- fio ---- */

/* A stand-in whose figures are known: 1 MiB in 10 ms, half a processor. It notes its arguments. */
static const char *make_fio(const char *name, const char *body)
{
    const char *path = folder(name);
    char program[600], script[2000];
    snprintf(program, sizeof program, "%s/fio", path);
    snprintf(
        script, sizeof script,
        "#!/bin/sh\nif [ \"$1\" = --version ]; then echo fio-9.9; exit 0; fi\nprintf '%%s\\n' \"$*\" >>%s/calls\n%s\n",
        path, body);
    write_text(program, script);
    assert_int_equal(chmod(program, 0755), 0);
    static char variable[700];
    snprintf(variable, sizeof variable, "PATH=%s", path);
    return variable;
}

#define FIGURES                                                                                                        \
    "{\"io_bytes\": 1048576, \"runtime\": 10, \"clat_ns\": {\"percentile\": {\"50.000000\": 5, \"99.000000\": 9}}}"

static void test_fio_arithmetic(void **state)
{
    (void)state;
    const char *dir = folder("fio arithmetic: \\ x");
    program_setup setup = {.environment =
                               make_fio("stand-in", "echo 'a note'\necho '{\"jobs\": [{\"error\": 0, \"read\": " FIGURES
                                                    ", \"write\": " FIGURES
                                                    ", \"usr_cpu\": 20, \"sys_cpu\": 30, \"job_runtime\": 10}]}'")};
    json_t *document = expect_json(PENSTOCK_WITH(&setup, "bench", "io", dir, "--io-size", "1M", "--block-size", "64K",
                                                 "--queue-depth", "4", "--against", "fio", "--pairs", "4",
                                                 "--io-engine", "threads", "--sync", "--json", "--io-profile", "none"));
    assert_string_equal(text(document, "fio_version"), "fio-9.9");
    const json_t *results = json_object_get(document, "results");
    assert_int_equal(json_array_size(results), 2);
    for (size_t i = 0; i < 2; i++) {
        const json_t *result = json_array_get(results, i), *against = json_object_get(result, "against");
        check_result(result, i == 0 ? "write" : "read", 1 << 20, 4);
        assert_string_equal(text(against, "engine"), "psync");
        const json_t *pairs = json_object_get(against, "pairs");
        assert_int_equal(json_array_size(pairs), 4);
        size_t fio_first = 0;
        double lowest = 1e300, highest = 0;
        for (size_t k = 0; k < 4; k++) {
            const json_t *pair = json_array_get(pairs, k);
            assert_true(near(number(pair, "fio_bytes_per_second"), 1048576 / 0.010));
            assert_true(near(number(pair, "fio_cpu_seconds"), 0.005));
            assert_true(number(pair, "fio_p99_ns") == 9);
            double ratio = number(pair, "ratio");
            assert_true(near(ratio, number(pair, "bytes_per_second") / (1048576 / 0.010)));
            bool first = strcmp(text(pair, "first"), "fio") == 0;
            fio_first += first;
            assert_true(k == 0 || first != (strcmp(text(json_array_get(pairs, k - 1), "first"), "fio") == 0));
            lowest = fmin(lowest, ratio);
            highest = fmax(highest, ratio);
        }
        assert_int_equal(fio_first, 2);
        const json_t *interval = json_object_get(against, "ratio_95");
        double low = json_number_value(json_array_get(interval, 0)), median = number(against, "median_ratio");
        double high = json_number_value(json_array_get(interval, 1));
        assert_true(lowest * (1 - 1e-9) <= low && low <= median && median <= high && high <= highest * (1 + 1e-9));
        assert_true(near(number(against, "fio_cpu_seconds_per_gb"), 0.005 / 1048576e-9));
    }
    json_decref(document);
    size_t bytes;
    char *calls = read_file(scratch_path("stand-in/calls"), &bytes);
    static const char *const holds[] = {"--rw=write",
                                        "--rw=read",
                                        "--bs=65536",
                                        "--iodepth=1",
                                        "--ioengine=psync",
                                        "--readonly",
                                        "--end_fsync=1",
                                        "--offset=0 --size=262144",
                                        "--offset=786432 --size=262144",
                                        "arithmetic\\: \\\\ x/penstock-bench.tmp-"};
    for (size_t i = 0; i < sizeof holds / sizeof holds[0]; i++) {
        if (strstr(calls, holds[i]) == NULL)
            fail_msg("no \"%s\" in \"%s\"", holds[i], calls);
    }
    assert_int_equal(count_of(calls, "\n"), 2 * (2 + 4)); /* tried twice, then the pairs */
    free(calls);
    unlink(scratch_path("stand-in/calls"));
    document = expect_json(PENSTOCK_WITH(&setup, "bench", "io", dir, "--io-size", "1M", "--read", "--against", "fio",
                                         "--fio-setting", "io_uring, registered", "--json", "--io-profile", "none"));
    const json_t *against = json_object_get(json_array_get(json_object_get(document, "results"), 0), "against");
    assert_string_equal(text(against, "engine"), "io_uring, registered");
    json_decref(document);
    calls = read_file(scratch_path("stand-in/calls"), &bytes);
    assert_int_equal(count_of(calls, "--ioengine=io_uring --fixedbufs=1 --registerfiles=1 "), 1 + 3);
    free(calls);
    expect_empty(dir);
}

static void test_fio_trouble(void **state)
{
    (void)state;
    const char *dir = folder("trouble");
    static const struct {
        const char *body, *says;
    } cases[] = {
        {"echo 'fio: no such thing' >&2; exit 3", "fio ended with status 3: fio: no such thing"},
        {"echo 'nothing of use'", "fio reported no transfer"},
        {"echo '{\"jobs\": [{\"error\": 28}]}'", "No space left"},
        {"kill -9 $$", "signal 9"},
    };
    char name[32];
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        snprintf(name, sizeof name, "trouble-%zu", i);
        program_setup setup = {.environment = make_fio(name, cases[i].body)};
        expect_error(PENSTOCK_WITH(&setup, "bench", "io", dir, "--io-size", "1M", "--read", "--against", "fio"), 1,
                     cases[i].says);
    }
    program_setup setup = {.environment = "PATH=/nonexistent"};
    expect_error(PENSTOCK_WITH(&setup, "bench", "io", dir, "--io-size", "1M", "--against", "fio"), 1, "no program fio");
    setup.environment = make_fio("slow", "exec sleep 100");
    EXPECT_ERROR(2, "--transfers", "bench", "io", dir, "--against", "fio", "--transfers", "2");
    EXPECT_ERROR(2, "--stripe", "bench", "io", dir, "--against", "fio", "--stripe");
    EXPECT_ERROR(2, "--validate", "bench", "io", dir, "--against", "fio", "--validate");
    EXPECT_ERROR(2, "same file", "bench", "io", dir, "--against", "fio", "--different-file-each-iteration");
    expect_empty(dir);
}

static bool has_fio(void)
{
    const char *path = getenv("PATH");
    for (const char *at = path; at != NULL && *at != '\0'; at += strspn(at, ":")) {
        char program[4096];
        size_t length = strcspn(at, ":");
        snprintf(program, sizeof program, "%.*s/fio", (int)length, at);
        if (access(program, X_OK) == 0)
            return true;
        at += length;
    }
    return false;
}

static void test_fio(void **state)
{
    (void)state;
    if (!has_fio()) {
        print_message("SKIP: fio is not installed\n");
        skip();
    }
    const char *dir = folder("fio"), *file = scratch_path("fio.svg");
    json_t *document = expect_json(BENCH(dir, "--io-size", "64M", "--block-size", "256K", "--workers", "2", "--against",
                                         "fio", "--pairs", "2", "--io-engine", "threads", "--plot", file, "--json"));
    const json_t *results = json_object_get(document, "results");
    for (size_t i = 0; i < 2; i++) {
        const json_t *against = json_object_get(json_array_get(results, i), "against");
        const json_t *pairs = json_object_get(against, "pairs");
        assert_int_equal(json_array_size(pairs), 2);
        for (size_t k = 0; k < 2; k++) {
            const json_t *pair = json_array_get(pairs, k);
            assert_true(number(pair, "fio_seconds") > 0);
            assert_true(near(number(pair, "fio_bytes_per_second"), (64 << 20) / number(pair, "fio_seconds")));
            assert_true(number(pair, "fio_process_cpu_seconds") > 0);
            assert_true(number(pair, "ratio") > 0.001 && number(pair, "ratio") < 1000);
        }
    }
    json_decref(document);
    size_t bytes;
    char *svg = read_file(file, &bytes);
    check_xml(svg);
    assert_non_null(strstr(svg, ">fio</text>"));
    free(svg);
    expect_empty(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_json),
        cmocka_unit_test(test_both_and_lists),
        cmocka_unit_test(test_every_option),
        cmocka_unit_test(test_several_folders),
        cmocka_unit_test(test_ds_io),
        cmocka_unit_test(test_null_engine),
        cmocka_unit_test(test_text),
        cmocka_unit_test(test_list_engines),
        cmocka_unit_test(test_existing_file),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_interrupted),
        cmocka_unit_test(test_plot),
        cmocka_unit_test(test_fio_arithmetic),
        cmocka_unit_test(test_fio_trouble),
        cmocka_unit_test(test_fio),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
