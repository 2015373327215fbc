/* SPDX-License-Identifier: Apache-2.0 */
/* penstock devices: the host without any plugin, what a plugin tells, and plugins that are none. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "program.h"

/* The library from a folder of its own, beside which nothing lies but what a test puts there. */
static const program_setup *alone(void)
{
    static char environment[600];
    static const program_setup setup = {.environment = environment};
    if (environment[0] == '\0') {
        assert_int_equal(mkdir(scratch_path("alone"), 0700), 0);
        copy_file(PST_LIBRARY, scratch_path("alone/" PST_LIBRARY_NAME));
        snprintf(environment, sizeof environment, "LD_LIBRARY_PATH=%s", scratch_path("alone"));
    }
    return &setup;
}

static program_setup mode(const char *text)
{
    return (program_setup){.environment = text};
}

static void test_host_alone(void **state)
{
    (void)state;
    program_result result = PENSTOCK_WITH(alone(), "devices");
    assert_int_equal(result.status, 0);
    assert_ptr_equal(strstr(result.out, "host: "), result.out);
    assert_non_null(strstr(result.out, ", kernels "));
    assert_non_null(strstr(result.out, " of memory, "));
    const char *why = strstr(result.out, "\nno accelerator: no plugin libpenstock-cuda.so beside the library, nor in ");
    assert_non_null(why);
    assert_string_equal(strchr(why + 1, '\n'), "\n");
    assert_string_equal(result.err, "");
    program_free(&result);

    json_t *document = expect_json(PENSTOCK_WITH(alone(), "devices", "--json"));
    const json_t *results = json_object_get(document, "results"), *host = json_array_get(results, 0);
    assert_int_equal(json_array_size(results), 1);
    assert_string_equal(text(host, "name"), "host");
    assert_true(number(host, "total_bytes") > 0 && number(host, "processors") >= 1);
    assert_true(strlen(text(host, "kernels")) > 0);
    assert_non_null(strstr(text(document, "no_accelerator"), "no plugin libpenstock-cuda.so"));
    json_decref(document);
    expect_error(PENSTOCK_WITH(alone(), "devices", "cuda"), 1, "no plugin libpenstock-cuda.so");
}

/* What lies there and does not fit is told about; the command lists what there is. */
static void test_misfits_beside(void **state)
{
    (void)state;
    const char *path = "alone/libpenstock-cuda.so";
    (void)alone();
    write_text(scratch_path(path), "not a library\n");
    program_result result = PENSTOCK_WITH(alone(), "devices");
    assert_int_equal(result.status, 0);
    assert_non_null(strstr(result.out, "libpenstock-cuda.so: cannot be loaded: "));
    program_free(&result);
    unlink(scratch_path(path));
    copy_file(PST_FAKE_PLUGIN, scratch_path(path));
    result = PENSTOCK_WITH(alone(), "devices");
    assert_int_equal(result.status, 0);
    assert_non_null(strstr(result.out, "libpenstock-cuda.so: is the plugin \"fake\"\n"));
    program_free(&result);
    unlink(scratch_path(path));
    assert_int_equal(mkdir(scratch_path(path), 0700), 0);
    result = PENSTOCK_WITH(alone(), "devices");
    assert_int_equal(result.status, 0);
    assert_non_null(strstr(result.out, "\nno accelerator: "));
    assert_non_null(strstr(result.out, "libpenstock-cuda.so: cannot be loaded: is not a regular file\n"));
    assert_string_equal(result.err, "");
    program_free(&result);
    rmdir(scratch_path(path));
}

static void test_a_plugin(void **state)
{
    (void)state;
    program_result result = PENSTOCK("devices", PST_FAKE_PLUGIN);
    assert_int_equal(result.status, 0);
    assert_non_null(strstr(result.out,
                           ":0: Fake Device A, 8.59 GB of memory, 5.37 GB free, compute capability 9.0, 132 "
                           "multiprocessors, memory 4.80 TB/s\n"
                           "  link: PCIe 5.0 x16, 63.0 GB/s\n"
                           "  GPUDirect Storage: no, no cuFile\n"
                           "  products of prompts: a fake library\n"));
    assert_non_null(strstr(result.out, ":1: Fake Device B"));
    assert_non_null(strstr(result.out, "  link: not known, 63.0 GB/s\n  GPUDirect Storage: yes, in a fake way\n"));
    assert_null(strstr(result.out, "host: "));
    program_free(&result);
    json_t *document = expect_json(PENSTOCK("devices", PST_FAKE_PLUGIN, "--json"));
    const json_t *results = json_object_get(document, "results"), *second = json_array_get(results, 1);
    assert_int_equal(json_array_size(results), 2);
    assert_string_equal(text(second, "model"), "Fake Device B");
    assert_true(json_is_true(json_object_get(second, "has_direct_storage")));
    assert_string_equal(text(second, "matrix_library"), "");
    assert_string_equal(text(second, "compute_capability"), "9.0");
    assert_true(json_is_null(json_object_get(document, "no_accelerator")));
    json_decref(document);
}

static void test_plugins_that_are_none(void **state)
{
    (void)state;
    static const struct {
        const char *environment, *says;
    } cases[] = {
        {"PST_FAKE_PLUGIN=version", "is a plugin of version 4; this library takes version 3"},
        {"PST_FAKE_PLUGIN=short table", "is an older plugin: its table has "},
        {"PST_FAKE_PLUGIN=no table", "is a plugin without a table"},
        {"PST_FAKE_PLUGIN=no driver", "no fake driver is loaded"},
        {"PST_FAKE_PLUGIN=no device", "finds no device"},
        {"PST_FAKE_PLUGIN=shy", "device fake:0: does not say"},
        {"PST_FAKE_PLUGIN=endless", "device fake:0: xxx"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const program_setup setup = mode(cases[i].environment);
        expect_error(PENSTOCK_WITH(&setup, "devices", PST_FAKE_PLUGIN), 1, cases[i].says);
        expect_error(PENSTOCK_WITH(&setup, "devices", PST_FAKE_PLUGIN, "--json"), 1, cases[i].says);
    }
    write_text(scratch_path("text.so"), "a text\n");
    EXPECT_ERROR(1, "cannot be loaded: ", "devices", scratch_path("text.so"));
    EXPECT_ERROR(1, "is no plugin: it has no symbol", "devices", PST_NO_SYMBOL_PLUGIN);
    EXPECT_ERROR(1, "No such file", "devices", "./nowhere.so");
    EXPECT_ERROR(1, "is no plugin's name", "devices", "README.md");
    EXPECT_ERROR(2, "", "devices", "a", "b");
}

/* A model on a device that is not there: one line and 1; "auto" uses the host. */
static void test_device_option(void **state)
{
    (void)state;
    expect_error(PENSTOCK_WITH(alone(), "generate", MODEL, "--prompt", "x", "-n", "2", "--device", "cuda"), 1,
                 "device cuda: no plugin libpenstock-cuda.so");
    const program_setup broken = mode("PST_FAKE_PLUGIN=broken device");
    expect_error(PENSTOCK_WITH(&broken, "generate", MODEL, "--prompt", "x", "-n", "2", "--device", PST_FAKE_PLUGIN), 1,
                 "fell off its bus");
    expect_error(PENSTOCK_WITH(alone(), "generate", MODEL, "--prompt", "x", "--device", "CUDA"), 1, "is no device");
    program_result host = PENSTOCK("generate", MODEL, "--prompt", "Once", "-n", "4", "--device", "host");
    assert_null(strstr(host.err, "has no effect"));
    program_result bound = PENSTOCK("generate", MODEL, "--prompt", "Once", "-n", "4", "--device-memory", "1G");
    assert_string_equal(bound.out, host.out);
    assert_non_null(strstr(bound.err, "--device-memory has no effect: the host's processor computes"));
    program_free(&bound);
    bound = PENSTOCK("generate", MODEL, "--prompt", "Once", "-n", "4", "--kv-offload");
    assert_string_equal(bound.out, host.out);
    assert_non_null(strstr(bound.err, "--kv-offload has no effect: the host's processor computes"));
    program_free(&bound);
    program_result result =
        PENSTOCK_WITH(alone(), "generate", MODEL, "--prompt", "Once", "-n", "4", "--device", "auto", "--verbose");
    assert_int_equal(result.status, 0);
    assert_string_equal(result.out, host.out);
    assert_non_null(strstr(result.err, "the host's processor, since there is no cuda: no plugin"));
    program_free(&result);
    program_free(&host);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_host_alone),    cmocka_unit_test(test_misfits_beside),
        cmocka_unit_test(test_a_plugin),      cmocka_unit_test(test_plugins_that_are_none),
        cmocka_unit_test(test_device_option),
    };
    return cmocka_run_group_tests_name("devices", tests, NULL, NULL);
}
