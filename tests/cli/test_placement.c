/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where weights are: --cpu-offload, --disk-offload, --pin-memory, --expert-cache, and that --host-memory holds for the whole
 * process in random configurations, from the smallest budget that works on.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "program.h"
#include "support/random.h"

enum { CONFIGURATIONS = 24 };

static uint64_t stat_of(const json_t *document, const char *key)
{
    const json_t *value = json_object_get(json_object_get(document, "stats"), key);
    assert_true(json_is_integer(value));
    return (uint64_t)json_integer_value(value);
}

/* MiB of the smallest budget that an error names; frees the result. */
static uint64_t smallest_of(program_result result)
{
    assert_int_equal(result.status, 1);
    const char *at = strstr(result.err, "smallest that works is ");
    if (at == NULL)
        fail_msg("%s", result.err);
    uint64_t mebibytes = strtoull(at + strlen("smallest that works is "), NULL, 10);
    program_free(&result);
    assert_true(mebibytes > 0);
    return mebibytes;
}

/* A folder with a model of random weights, or of holes that read as zeros. */
static const char *make_model(const char *shape, const char *layers, bool sparse)
{
    char *path = strdup(scratch_path(shape));
    assert_non_null(path);
    program_result result = PENSTOCK("synth", shape, path, "--layers", layers, sparse ? "--sparse" : "--seed=1");
    assert_int_equal(result.status, 0);
    program_free(&result);
    return path;
}

typedef struct configuration {
    const char *arguments[40];
    size_t count;
    char texts[8][32];
    size_t text_count;
} configuration;

static void add(configuration *c, const char *option, const char *value)
{
    c->arguments[c->count++] = option;
    if (value != NULL)
        c->arguments[c->count++] = value;
}

static void add_number(configuration *c, const char *option, uint64_t number, const char *unit)
{
    char *text = c->texts[c->text_count++];
    snprintf(text, sizeof c->texts[0], "%" PRIu64 "%s", number, unit);
    add(c, option, text);
}

static configuration random_configuration(const char *model)
{
    configuration c = {{0}, 0, {{0}}, 0};
    static const char *const bits[] = {"4", "8", "16", "32"};
    static const char *const residents[] = {"0", "10%", "50%", "3M"};
    add(&c, "bench", "infer");
    add(&c, model, "--json");
    add(&c, "--loops", "1");
    add_number(&c, "--batch-size", 1 + random_below(12), "");
    add_number(&c, "--prompt-len", 1 + random_below(200), "");
    add_number(&c, "--gen-len", 1 + random_below(5), "");
    if (random_below(2))
        add(&c, "--kv-bits", bits[random_below(4)]);
    if (random_below(2))
        add(&c, "--resident", residents[random_below(4)]);
    if (random_below(3) == 0)
        add(&c, "--io-engine", "threads");
    if (random_below(3) == 0)
        add(&c, "--pin-memory", "1");
    if (random_below(4) == 0)
        add(&c, "--expert-cache", random_below(2) ? "0" : "40M");
    if (random_below(3) == 0)
        add_number(&c, "--threads", 1 + random_below(8), "");
    return c;
}

/* Runs it with a budget; the figures. */
static json_t *run_within(const configuration *c, const char *budget)
{
    configuration whole = *c;
    add(&whole, "--host-memory", budget);
    program_result result = program_run(NULL, whole.arguments);
    if (result.status != 0) {
        for (size_t i = 0; i < whole.count; i++)
            print_message("%s ", whole.arguments[i]);
        print_message("\n%s\n", result.err);
    }
    return expect_json(result);
}

static void test_budgets_hold(void **state)
{
    (void)state;
    random_start("budgets");
    /* The last: experts of 9.4 MB, so that the budgets are far above what any process takes. */
    const char *const models[] = {MODEL, make_model("tiny-mixtral", "3", false),
                                  make_model("qwen3-30b-a3b", "1", true)};
    for (int i = 0; i < CONFIGURATIONS; i++) {
        configuration c = random_configuration(models[i % 5 % 3]), least = c;
        add(&least, "--host-memory", "1M");
        uint64_t smallest = smallest_of(program_run(NULL, least.arguments));
        uint64_t more = random_below(3) == 0 ? 0 : random_below(i % 5 == 2 ? 700 : 30);
        char budget[32];
        snprintf(budget, sizeof budget, "%" PRIu64 "Mi", smallest + more);
        json_t *document = run_within(&c, budget);
        uint64_t peak = stat_of(document, "peak_rss_bytes"), bound = stat_of(document, "host_memory_bytes");
        if (peak > bound) {
            for (size_t a = 0; a < c.count; a++)
                print_message("%s ", c.arguments[a]);
            fail_msg("\npeak memory of %" PRIu64 " in a budget of %" PRIu64, peak, bound);
        }
        assert_int_equal(bound, (smallest + more) << 20);
        json_decref(document);
    }
    free((void *)models[1]);
    free((void *)models[2]);
}

#define GENERATE(...) "generate", MODEL, "--prompt", "Once", "--max-new-tokens", "8", __VA_ARGS__

static void test_offload_options(void **state)
{
    (void)state;
    char budget[32];
    uint64_t smallest = smallest_of(PENSTOCK(GENERATE("--cpu-offload", "--host-memory", "4M")));
    snprintf(budget, sizeof budget, "%" PRIu64 "Mi", smallest);
    json_t *all = expect_json(PENSTOCK(GENERATE("--cpu-offload", "--host-memory", budget, "--json")));
    assert_int_equal(stat_of(all, "weight_bytes_read"), 0);
    assert_int_equal(stat_of(all, "streamed_bytes"), 0);
    json_t *none = expect_json(PENSTOCK(GENERATE("--disk-offload", "--json", "--pin_memory", "1")));
    assert_int_equal(stat_of(none, "resident_bytes"), 0);
    assert_true(stat_of(none, "weight_bytes_read") > 0);
    json_t *some = expect_json(PENSTOCK(GENERATE("--disk-offload", "--resident", "2M", "--json")));
    assert_in_range(stat_of(some, "resident_bytes"), 1, 2000000);
    assert_true(json_equal(json_object_get(all, "results"), json_object_get(none, "results")));
    assert_true(json_equal(json_object_get(all, "results"), json_object_get(some, "results")));
    json_decref(all);
    json_decref(none);
    json_decref(some);
    EXPECT_ERROR(2, "--cpu-offload", GENERATE("--cpu-offload", "--disk-offload"));
    EXPECT_ERROR(2, "--resident", GENERATE("--cpu-offload", "--resident", "1M"));
    EXPECT_ERROR(2, "--expert-cache", GENERATE("--expert-cache", "some"));
}

/* Without an accelerator `auto` is the host; a name is that device or an error. */
static void test_device_options(void **state)
{
    (void)state;
    EXPECT_ERROR(1, "no-such", GENERATE("--device", "no-such"));
    EXPECT_ERROR(1, "/no/such", GENERATE("--device", "/no/such/plugin.so"));
    EXPECT_ERROR(1, "no-such", "score", MODEL, "--token-ids", "1,2,3", "--device", "no-such");
    EXPECT_ERROR(1, "no-such", "bench", "infer", MODEL, "--prompt-len", "16", "--device", "no-such");
    EXPECT_ERROR(2, "--device-memory", GENERATE("--device_memory", "much"));
    json_t *host = expect_json(PENSTOCK(GENERATE("--json")));
    json_t *chosen = expect_json(PENSTOCK(GENERATE("--device", "auto", "--device_memory", "1G", "--json")));
    if (stat_of(chosen, "device_memory_bytes") == 0) /* else its digits may differ */
        assert_true(json_equal(json_object_get(host, "results"), json_object_get(chosen, "results")));
    assert_int_equal(stat_of(host, "device_memory_bytes") + stat_of(host, "link_bytes"), 0);
    json_decref(host);
    json_decref(chosen);
}

#define EMULATED PST_TEST_BINARY_DIR "/libpenstock-emulated.so"

/* A plugin's device from end to end: the same answer whether weights stay there or cross the link, and what was said of it. */
static void test_plugin(void **state)
{
    (void)state;
#define ON_DEVICE(...)                                                                                                 \
    "generate", MODEL, "--token-ids", "1,2", "--max-new-tokens", "2", "--json", "--device", EMULATED, __VA_ARGS__
    json_t *there = expect_json(PENSTOCK(ON_DEVICE("--device-memory", "64M")));
    program_result result = PENSTOCK(ON_DEVICE("--device_memory", "4M", "--resident", "0"));
    assert_non_null(strstr(result.err, "copied "));
    assert_non_null(strstr(result.err, " on the device"));
    json_t *streamed = expect_json(result);
    assert_true(json_equal(json_object_get(there, "results"), json_object_get(streamed, "results")));
    assert_int_equal(stat_of(there, "link_bytes"), 0);
    assert_true(stat_of(there, "device_resident_bytes") > 0);
    assert_int_equal(stat_of(streamed, "device_resident_bytes"), 0);
    assert_int_equal(stat_of(streamed, "link_bytes"),
                     stat_of(streamed, "passes") * stat_of(streamed, "streamed_bytes"));
    assert_in_range(stat_of(streamed, "device_memory_bytes"), 1, 4000000);
    json_decref(there);
    json_decref(streamed);
    EXPECT_ERROR(1, "a device memory budget of", ON_DEVICE("--device-memory", "1M"));
}

/* Of the passes of generated tokens the first one of its kind is launched, the others are replayed, unless that is not wanted. */
static void test_device_graphs(void **state)
{
    (void)state;
#define GRAPHS(...)                                                                                                    \
    "generate", MODEL, "--token-ids", "1,2", "--max-new-tokens", "5", "--ignore-eos", "--json", "--device", EMULATED,  \
        __VA_ARGS__
    json_t *with = expect_json(PENSTOCK(GRAPHS("--verbose")));
    json_t *without = expect_json(PENSTOCK(GRAPHS("--device-graphs", "off")));
    assert_true(json_equal(json_object_get(with, "results"), json_object_get(without, "results")));
    assert_int_equal(stat_of(with, "passes"), 5);
    assert_int_equal(stat_of(without, "passes"), 5);
    assert_int_equal(stat_of(with, "replayed_passes"), 3);
    assert_int_equal(stat_of(without, "replayed_passes"), 0);
    json_decref(with);
    json_decref(without);
    program_result result = PENSTOCK("bench", "infer", MODEL, "--batch-size", "1", "--prompt-len", "3", "--gen-len",
                                     "4", "--loops", "1", "--device", EMULATED);
    assert_int_equal(result.status, 0);
    assert_non_null(strstr(result.out, "passes: 4, replayed as a graph 2\n"));
    program_free(&result);
    EXPECT_ERROR(2, "--device-graphs", GRAPHS("--device-graphs", "on"));
}

/* Experts: the same tokens and the same bytes needed with and without a cache, fewer of them read with it. */
static void test_expert_cache(void **state)
{
    (void)state;
    const char *model = make_model("tiny-qwen3-moe", "4", false);
#define EXPERTS(...)                                                                                                   \
    "generate", model, "--token-ids", "1,2,3", "--max-new-tokens", "40", "--ignore-eos", "--json", __VA_ARGS__
    json_t *without = expect_json(PENSTOCK(EXPERTS("--resident", "60%", "--expert-cache", "0")));
    json_t *with = expect_json(PENSTOCK(EXPERTS("--resident", "60%")));
    json_t *whole = expect_json(PENSTOCK(EXPERTS("--cpu-offload")));
    assert_int_equal(stat_of(without, "expert_hits"), 0);
    assert_true(stat_of(without, "expert_misses") > 0);
    assert_true(stat_of(with, "expert_hits") > 0);
    assert_true(stat_of(with, "expert_cache_bytes") > 0);
    assert_int_equal(stat_of(with, "expert_bytes_read") + stat_of(with, "expert_bytes_found"),
                     stat_of(without, "expert_bytes_read"));
    assert_int_equal(stat_of(whole, "weight_bytes_read"), 0);
    assert_true(json_equal(json_object_get(with, "results"), json_object_get(without, "results")));
    assert_true(json_equal(json_object_get(with, "results"), json_object_get(whole, "results")));
    json_decref(with);
    json_decref(without);
    json_decref(whole);
    free((void *)model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_offload_options), cmocka_unit_test(test_device_options),
        cmocka_unit_test(test_plugin),          cmocka_unit_test(test_device_graphs),
        cmocka_unit_test(test_expert_cache),    cmocka_unit_test(test_budgets_hold),
    };
    return cmocka_run_group_tests_name("placement", tests, NULL, NULL);
}
