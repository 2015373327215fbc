/* SPDX-License-Identifier: Apache-2.0 */
/* penstock plan, and bench infer --against as far as it goes without another library. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "program.h"

/* The terms of the memory equation add up, and the static rate is what its seconds say. */
static void test_report(void **state)
{
    (void)state;
    json_t *document = expect_json(PENSTOCK("plan", "llama3-8b", "--batch", "16", "--host-memory", "4G",
                                            "--disk-bandwidth", "3G", "--flops", "1e12", "--json"));
    const json_t *p = json_array_get(json_object_get(document, "results"), 0);
    const json_t *host = json_object_get(p, "host");
    double sum = number(host, "weight_bytes") + number(host, "kv_bytes") + number(host, "activation_bytes") +
                 number(host, "ring_bytes") + number(host, "table_bytes") + number(host, "process_bytes");
    assert_true(sum == number(host, "total_bytes") && sum <= 4e9);
    assert_true(number(p, "parameters") == 8030261248);
    assert_true(fabs(number(p, "tokens_per_second") * number(p, "total_seconds") / (16 * 32) - 1) < 1e-9);
    assert_string_equal(text(json_object_get(p, "decode_pass"), "limited_by"), "disk");
    const json_t *advice = json_object_get(p, "advice");
    assert_true(json_array_size(advice) > 2);
    assert_true(number(json_array_get(advice, 0), "gain") > 1.02);
    assert_string_equal(text(json_object_get(document, "stats"), "disk_from"), "given");
    json_decref(document);
}

static void test_text(void **state)
{
    (void)state;
    program_result result = PENSTOCK("plan", "llama3-70b", "--batch", "96", "--host-memory", "256G", "--disk-bandwidth",
                                     "13G", "--device-memory", "96G", "--link-bandwidth", "50G");
    assert_int_equal(result.status, 0);
    static const char *const lines[] = {"\ndevice ", "\nhost ",  "\ndisk ",   "\nprefill ", "\ndecode ",
                                        "\nstatic",  "\nsteady", "\nfaster ", "(assumed)"};
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++)
        if (strstr(result.out, lines[i]) == NULL)
            fail_msg("no \"%s\" in %s", lines[i] + 1, result.out);
    program_free(&result);
    /* Memory of each tier, and what is copied. */
    json_t *document =
        expect_json(PENSTOCK("plan", "llama3-8b", "--batch", "4", "--host-memory", "8G", "--device-memory", "4G",
                             "--link-bandwidth", "20G", "--disk_bandwidth", "3G", "--json"));
    const json_t *p = json_array_get(json_object_get(document, "results"), 0);
    const json_t *device = json_object_get(p, "device"), *host = json_object_get(p, "host");
    double sum = number(device, "weight_bytes") + number(device, "kv_bytes") + number(device, "activation_bytes") +
                 number(device, "ring_bytes");
    assert_true(sum == number(device, "total_bytes") && sum <= 4e9 && number(host, "total_bytes") <= 8e9);
    assert_true(number(device, "kv_bytes") > 0 && number(host, "kv_bytes") == 0);
    assert_true(number(p, "link_bytes") > number(p, "streamed_bytes"));
    double all = number(device, "weight_bytes") + number(p, "link_bytes");
    assert_true(all > 0.9 * number(p, "weight_bytes") && all < 1.01 * number(p, "weight_bytes"));
    assert_string_equal(text(json_object_get(document, "stats"), "link_from"), "given");
    /* Keys and values that the device has no room for, and that it was not to have. */
    assert_false(json_boolean_value(json_object_get(p, "kv_offloaded")));
    json_decref(document);
    static const char *const lengths[] = {"4096", "64"};
    for (int asked = 0; asked < 2; asked++) {
        document =
            expect_json(PENSTOCK("plan", "llama3-8b", "--batch", asked ? "4" : "64", "--prompt-len", lengths[asked],
                                 "--host-memory", "64G", "--device-memory", "8G", "--link-bandwidth", "20G",
                                 "--disk_bandwidth", "3G", "--json", asked ? "--kv-offload" : "--verbose"));
        p = json_array_get(json_object_get(document, "results"), 0);
        device = json_object_get(p, "device");
        assert_true(json_boolean_value(json_object_get(p, "kv_offloaded")));
        assert_true(number(json_object_get(p, "host"), "kv_bytes") > (asked ? 0 : 8e9));
        assert_true(number(device, "kv_bytes") <= 1e9 && number(device, "total_bytes") <= 8e9);
        json_decref(document);
    }
    EXPECT_ERROR(1, "device memory budget", "plan", "llama3-8b", "--batch", "1", "--device-memory", "10M",
                 "--link-bandwidth", "20G");
    EXPECT_ERROR(1, "no-such", "plan", "llama3-8b", "--device", "no-such");
}

/* A real folder, measured; no batch: one is chosen, no larger than the requests. */
static void test_measured(void **state)
{
    (void)state;
    json_t *document = expect_json(PENSTOCK("plan", MODEL, "--measure", "--resident", "0", "--prompt-len", "32",
                                            "--gen-len", "8", "--max-batch", "12", "--json"));
    const json_t *stats = json_object_get(document, "stats");
    assert_string_equal(text(stats, "disk_from"), "measured");
    assert_string_equal(text(stats, "compute_from"), "measured");
    assert_true(number(stats, "disk_bytes_per_second") > 1e6 && number(stats, "operations_per_second") > 1e6);
    const json_t *p = json_array_get(json_object_get(document, "results"), 0);
    assert_true(number(p, "batch") >= 1 && number(p, "batch") <= 12);
    assert_true(number(p, "streamed_bytes") > 0);
    json_decref(document);
}

static void test_refusals(void **state)
{
    (void)state;
    EXPECT_ERROR(1, "smallest that works", "plan", "llama3-70b", "--batch", "64", "--host-memory", "1G");
    EXPECT_ERROR(1, "context of 8192", "plan", "llama3-8b", "--prompt-len", "9000");
    EXPECT_ERROR(1, "weights of 5 bits", "plan", "llama3-8b", "--quant-bits", "5");
    EXPECT_ERROR(2, "MODEL", "plan");
    EXPECT_ERROR(1, "nor one of the shapes tiny, ", "plan", "no-such-model");
    /* What does nothing says so, and what does something else is told of. */
    program_result result = PENSTOCK("plan", "llama3-8b", "--kv-offload");
    assert_int_equal(result.status, 0);
    assert_non_null(strstr(result.err, "--kv-offload has no effect"));
    program_free(&result);
    result = PENSTOCK("plan", "llama3-8b", "--batch", "64", "--prompt-len", "4000", "--host-memory", "6G", "--kv-dir",
                      "/nowhere");
    assert_int_equal(result.status, 0);
    assert_non_null(strstr(result.out, "keys and values in a file of 33.8 GB, through "));
    program_free(&result);
    result = PENSTOCK("plan", "llama3-8b", "--batch", "16", "--prompt-len", "4000", "--host-memory", "16G", "--kv-dir",
                      "/nowhere", "--device-memory", "8G", "--link-bandwidth", "20G", "--kv-offload");
    assert_int_equal(result.status, 0);
    assert_string_equal(result.err, "");
    assert_non_null(strstr(result.out, " on the device"));
    program_free(&result);
}

static void test_against(void **state)
{
    (void)state;
    EXPECT_ERROR(2, "--host-memory", "bench", "infer", MODEL, "--against", "accelerate");
    EXPECT_ERROR(2, "--layers", "bench", "infer", MODEL, "--against", "accelerate", "--layers", "1");
    EXPECT_ERROR(1, "against.py is not there", "bench", "infer", MODEL, "--against", "accelerate", "--host-memory",
                 "100M", "--drivers", "/nowhere");
    EXPECT_ERROR(1, "cannot start /nowhere/python", "bench", "infer", MODEL, "--against", "llamacpp", "--host-memory",
                 "100M", "--python", "/nowhere/python", "--drivers", PST_TEST_SOURCE_DIR "/bench");
    EXPECT_ERROR(1, "the comparison failed (status 1)", "bench", "infer", MODEL, "--against", "deepspeed",
                 "--host-memory", "100M", "--python", "/bin/false", "--drivers", PST_TEST_SOURCE_DIR "/bench");
    program_result result =
        PENSTOCK("bench", "infer", MODEL, "--against", "accelerate", "--host-memory", "100M", "--batch-size", "4",
                 "--peer-batch-size", "7", "--python", "/bin/echo", "--drivers", PST_TEST_SOURCE_DIR "/bench");
    assert_int_equal(result.status, 0);
    assert_non_null(strstr(result.out, " --batch-size 4 "));
    assert_non_null(strstr(result.out, " --peer-batch-size 7 "));
    program_free(&result);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_report),   cmocka_unit_test(test_text),    cmocka_unit_test(test_measured),
        cmocka_unit_test(test_refusals), cmocka_unit_test(test_against),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
