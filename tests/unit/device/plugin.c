/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Devices by name and their plugins: what names mean, where files are looked for, every way in which a plugin does not fit
 * is refused in one line that says so and leaves nothing behind; "auto" uses the host then and the log says why.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/error.h"
#include "base/heap.h"
#include "cpu/cpu.h"
#include "device/device.h"
#include "device/plugin.h"
#include "os/file.h"
#include "os/library.h"
#include "penstock/log.h"
#include "unit/device/pools.h"

static char folder[256]; /* of this program, where plugins are looked for */

static void set_mode(const char *mode)
{
    if (mode != NULL)
        setenv("PST_FAKE_PLUGIN", mode, 1);
    else
        unsetenv("PST_FAKE_PLUGIN");
}

static void require_failure(const char *name, int code, const char *text)
{
    pst_error err = {.offset = PST_NO_OFFSET};
    char line[sizeof err.path + sizeof err.message];
    pst_device *device = (pst_device *)(void *)&device;
    const int64_t live = pst_heap_live_count();
    int status = pst_device_open(name, pools[0], NULL, &device, &err);
    pst_error_format(&err, line, sizeof line);
    if (status != code || strstr(line, text) == NULL || strchr(line, '\n') != NULL)
        fail_msg("%s: %d (not %d), \"%s\" (not \"%s\")", name, status, code, line, text);
    assert_int_equal(err.code, code);
    assert_ptr_equal(device, &device);
    assert_int_equal(pst_heap_live_count(), live);
    assert_int_equal(pst_device_open(name, pools[0], NULL, &device, NULL), code);
}

static void test_names(void **state)
{
    (void)state;
    static const struct {
        const char *text, *plugin;
        bool is_file, has_number;
        uint32_t number;
    } good[] = {
        {"cuda", "cuda", false, false, 0},          {"cuda:0", "cuda", false, true, 0},
        {"my_x-2:17", "my_x-2", false, true, 17},   {"./a.so", "./a.so", true, false, 0},
        {"/x/a.so:3", "/x/a.so", true, true, 3},    {"/x:1/a.so", "/x:1/a.so", true, false, 0},
        {"/x/a:b.so", "/x/a:b.so", true, false, 0}, {"/x/a.so:", "/x/a.so:", true, false, 0},
    };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        pst_device_name name;
        assert_int_equal(pst_device_name_parse(good[i].text, &name, NULL), 0);
        assert_string_equal(name.plugin, good[i].plugin);
        assert_int_equal(name.is_file, good[i].is_file);
        assert_int_equal(name.has_number, good[i].has_number);
        assert_int_equal(name.number, good[i].number);
    }
    static const char *const bad[] = {"",        ":0",      "cuda:",      "cuda:x",
                                      "cuda:-1", "cuda:1x", "cuda:99999", "CUDA",
                                      "a b",     "..",      "cuda:0:1",   "abcdefghijklmnopqrstuvwxyzabcdefg"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        require_failure(bad[i], PST_E_USAGE, "is no device");
}

static void test_host(void **state)
{
    (void)state;
    static const char *const names[] = {NULL, "host"};
    for (size_t i = 0; i < 2; i++) {
        pst_device *device;
        assert_int_equal(pst_device_open(names[i], pools[0], "portable", &device, NULL), 0);
        assert_true(device->ops->is_host);
        assert_string_equal(pst_device_host_kernels(device), "portable");
        pst_device_destroy(device);
    }
    pst_device *device;
    assert_int_equal(pst_device_open("host", pools[0], "sse9", &device, NULL), PST_E_UNSUPPORTED);
}

/* A plugin of which the end is missing: an error at any length, where the loader alone would die. */
static void require_cut_short(void)
{
    static const double shares[] = {0, 0.001, 0.01, 0.1, 0.3, 0.5, 0.7};
    char path[300], *data;
    size_t bytes;
    snprintf(path, sizeof path, "%s/libpenstock-cut.so", folder);
    assert_int_equal(pst_file_read_all(PST_FAKE_PLUGIN, 1u << 30, &data, &bytes, NULL), 0);
    for (size_t i = 0; i < sizeof shares / sizeof *shares; i++) {
        FILE *file = fopen(path, "w");
        assert_non_null(file);
        const size_t kept = (size_t)(shares[i] * (double)bytes) + i * 64;
        assert_int_equal(fwrite(data, 1, kept, file), kept);
        fclose(file);
        pst_device *device;
        pst_error err = {.offset = PST_NO_OFFSET};
        int status = pst_device_open(path, pools[0], NULL, &device, &err);
        if (status >= 0) /* nothing but debugging records was missing */
            pst_device_destroy(device);
        else if (strstr(err.message, "cannot be loaded: ") == NULL)
            fail_msg("%s", err.message);
        assert_true(status < 0 || shares[i] > 0.1);
        unlink(path);
    }
    pst_heap_free(data);
}

static void test_no_plugin(void **state)
{
    (void)state;
    require_failure("nothere", PST_E_UNSUPPORTED,
                    "device nothere: no plugin libpenstock-nothere.so beside the library");
    require_failure("/nowhere/libx.so", -ENOENT, "/nowhere/libx.so");
    require_failure("./", PST_E_FORMAT, "is not a regular file");
    char path[300];
    snprintf(path, sizeof path, "%s/a pipe", folder);
    assert_int_equal(mkfifo(path, 0600), 0);
    require_failure(path, PST_E_FORMAT, "is not a regular file");
    unlink(path);
    snprintf(path, sizeof path, "%s/libpenstock-text.so", folder);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs("this is a text\n", file);
    fclose(file);
    require_failure(path, PST_E_UNSUPPORTED, "cannot be loaded");
    require_failure("text", PST_E_UNSUPPORTED, "libpenstock-text.so: cannot be loaded");
    unlink(path);
    require_failure(PST_NO_SYMBOL_PLUGIN, PST_E_UNSUPPORTED, "is no plugin: it has no symbol pst_device_plugin_table");
    require_cut_short();
}

static void test_misfits(void **state)
{
    (void)state;
    static const struct {
        const char *mode;
        int code;
        const char *text;
    } cases[] = {
        {"no table", PST_E_UNSUPPORTED, "without a table"},
        {"version", PST_E_UNSUPPORTED, "is a plugin of version 4; this library takes version 3"},
        {"short table", PST_E_UNSUPPORTED, "is an older plugin"},
        {"bad name", PST_E_UNSUPPORTED, "without a name"},
        {"no name", PST_E_UNSUPPORTED, "without a name"},
        {"a function less", PST_E_UNSUPPORTED, "lacks a function"},
        {"no driver", PST_E_UNSUPPORTED, ": no fake driver is loaded"},
        {"silent", PST_E_UNSUPPORTED, "not supported"},
        {"no device", PST_E_UNSUPPORTED, "finds no device"},
        {"broken device", -EIO, "fell off its bus"},
        {"opens nothing", PST_E_UNSUPPORTED, "opened nothing"},
        {"short operators", PST_E_UNSUPPORTED, "its devices' table has"},
        {"an operator less", PST_E_UNSUPPORTED, "lack an operator"},
        {"the host", PST_E_UNSUPPORTED, "says that its device is the host"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        set_mode(cases[i].mode);
        require_failure(PST_FAKE_PLUGIN, cases[i].code, cases[i].text);
    }
    set_mode(NULL);
    require_failure(PST_FAKE_PLUGIN ":2", PST_E_UNSUPPORTED, "there is no fake:2, the last one is fake:1");
}

/* Opened, destroyed; what opened it stays loaded. Larger tables than ours are fine. */
static void test_good(void **state)
{
    (void)state;
    static const char *const modes[] = {NULL, "long table", "long operators"};
    for (size_t i = 0; i < 3; i++) {
        pst_device *device;
        set_mode(modes[i]);
        assert_int_equal(pst_device_open(PST_FAKE_PLUGIN ":1", NULL, NULL, &device, NULL), 0);
        assert_false(device->ops->is_host);
        assert_string_equal(device->ops->last_error(device), "");
        pst_device_destroy(device);
    }
    set_mode(NULL);
    pst_library *library;
    assert_int_equal(pst_library_open(PST_FAKE_PLUGIN, &library, NULL), 0);
    int *open_devices = pst_library_symbol(library, "fake_open_devices");
    assert_non_null(open_devices);
    assert_int_equal(*open_devices, 0); /* those of the failures above, too */
    pst_library_close(library);
    assert_int_equal(*open_devices, 0); /* still there */
}

static void copy_file(const char *from, const char *to)
{
    char command[1024];
    snprintf(command, sizeof command, "cp '%s' '%s'", from, to);
    assert_int_equal(system(command), 0);
}

/* By name: beside the program, or in penstock/ there. */
static void test_places(void **state)
{
    (void)state;
    static const char *const places[] = {"", "penstock/"};
    for (size_t i = 0; i < 2; i++) {
        char path[400];
        pst_device *device;
        snprintf(path, sizeof path, "%s/penstock", folder);
        mkdir(path, 0700);
        snprintf(path, sizeof path, "%s/%slibpenstock-fake.so", folder, places[i]);
        copy_file(PST_FAKE_PLUGIN, path);
        assert_int_equal(pst_device_open("fake:1", NULL, NULL, &device, NULL), 0);
        pst_device_destroy(device);
        require_failure("fake:7", PST_E_UNSUPPORTED, "device fake:7: there is no fake:7");
        unlink(path);
        require_failure("fake", PST_E_UNSUPPORTED, "device fake: no plugin libpenstock-fake.so");
        snprintf(path, sizeof path, "%s/%slibpenstock-other.so", folder, places[i]);
        copy_file(PST_FAKE_PLUGIN, path);
        require_failure("other", PST_E_UNSUPPORTED, "is the plugin \"fake\"");
        unlink(path);
        snprintf(path, sizeof path, "%s/penstock", folder);
        rmdir(path);
    }
}

static char log_line[1024];

static void keep_line(void *user, pst_log_level level, const char *line)
{
    (void)user;
    (void)level;
    snprintf(log_line, sizeof log_line, "%s", line);
}

static void test_auto(void **state)
{
    (void)state;
    pst_device *device;
    pst_log_set_sink(keep_line, NULL, PST_LOG_INFO);
    assert_int_equal(pst_device_open("auto", pools[0], NULL, &device, NULL), 0);
    pst_log_set_sink(NULL, NULL, PST_LOG_INFO);
    assert_true(device->ops->is_host);
    assert_non_null(strstr(log_line, "the host's processor, since there is no cuda: no plugin libpenstock-cuda.so"));
    pst_device_destroy(device);
}

static void test_describe(void **state)
{
    (void)state;
    pst_error err = {.offset = PST_NO_OFFSET};
    pst_device_info info = {.struct_size = sizeof info};
    set_mode(NULL);
    assert_int_equal(pst_device_describe(PST_FAKE_PLUGIN, 1, &info, &err), 0);
    assert_string_equal(info.model, "Fake Device B");
    assert_true(info.has_direct_storage && info.total_bytes == UINT64_C(8) << 30);
    assert_int_equal(info.struct_size, sizeof info);
    /* An older caller's struct is written as far as it goes. */
    pst_device_info before = info;
    info.struct_size = offsetof(pst_device_info, link);
    memset(info.link, 'x', sizeof info.link);
    assert_int_equal(pst_device_describe(PST_FAKE_PLUGIN, 0, &info, &err), 0);
    assert_string_equal(info.model, "Fake Device A");
    assert_true(info.link[0] == 'x' && info.link[sizeof info.link - 1] == 'x');
    info.struct_size = 0;
    assert_int_equal(pst_device_describe(PST_FAKE_PLUGIN, 0, &info, &err), PST_E_USAGE);
    info = before;
    assert_int_equal(pst_device_describe(PST_FAKE_PLUGIN, 2, &info, &err), PST_E_UNSUPPORTED);
    assert_non_null(strstr(err.message, "no more devices"));
    assert_int_equal(pst_device_describe(NULL, 0, &info, &err), PST_E_UNSUPPORTED);
    assert_non_null(strstr(err.message, "no plugin libpenstock-cuda.so"));
    set_mode("shy");
    assert_int_equal(pst_device_describe(PST_FAKE_PLUGIN, 0, &info, &err), PST_E_FORMAT);
    assert_non_null(strstr(err.message, "device fake:0: does not say"));
    set_mode("no driver");
    assert_int_equal(pst_device_describe(PST_FAKE_PLUGIN, 0, &info, &err), PST_E_UNSUPPORTED);
    assert_string_equal(err.message, "no fake driver is loaded");
    set_mode(NULL);
    assert_memory_equal(&info, &before, sizeof info);
}

static void test_find(void **state)
{
    (void)state;
    pst_error err = {.offset = PST_NO_OFFSET};
    pst_device_info info = {.struct_size = sizeof info};
    static const char *const hosts[] = {"host", "auto"}; /* there is no plugin beside this program */
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(pst_device_find(hosts[i], &info, &err), 0);
        assert_string_equal(info.name, "host");
        assert_string_equal(info.kernels, pst_cpu_available(0)->name);
        assert_true(info.processors > 0 && info.total_bytes > 0 && info.model[0] != '\0');
    }
    set_mode(NULL);
    assert_int_equal(pst_device_find(PST_FAKE_PLUGIN ":1", &info, &err), 0);
    assert_string_equal(info.model, "Fake Device B");
    assert_string_equal(info.kernels, "");
    assert_int_equal(pst_device_find(PST_FAKE_PLUGIN, &info, &err), 0);
    assert_string_equal(info.model, "Fake Device A");
    const pst_device_info before = info;
    assert_int_equal(pst_device_find(PST_FAKE_PLUGIN ":2", &info, &err), PST_E_UNSUPPORTED);
    assert_non_null(strstr(err.message, "there is no fake:2"));
    assert_int_equal(pst_device_find("cuda", &info, &err), PST_E_UNSUPPORTED);
    assert_non_null(strstr(err.message, "device cuda: no plugin libpenstock-cuda.so"));
    assert_int_equal(pst_device_find("Cuda", &info, &err), PST_E_USAGE);
    assert_int_equal(pst_device_describe("..", 0, &info, &err), PST_E_USAGE);
    assert_memory_equal(&info, &before, sizeof info);
    info.struct_size = 8;
    assert_int_equal(pst_device_find("host", &info, &err), PST_E_USAGE);
}

static int set_up(void **state)
{
    int status = pst_library_own_folder(folder, sizeof folder, NULL);
    return status < 0 ? status : pools_set_up(state);
}

static void test_own_folder(void **state)
{
    (void)state;
    char small[4] = "abc", path[300];
    assert_int_equal(pst_library_own_folder(small, sizeof small, NULL), -ENAMETOOLONG);
    assert_string_equal(small, "abc");
    assert_true(folder[0] == '/');
    snprintf(path, sizeof path, "%s/unit_device_plugin", folder);
    assert_int_equal(access(path, X_OK), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_own_folder), cmocka_unit_test(test_names),   cmocka_unit_test(test_host),
        cmocka_unit_test(test_no_plugin),  cmocka_unit_test(test_misfits), cmocka_unit_test(test_good),
        cmocka_unit_test(test_places),     cmocka_unit_test(test_auto),    cmocka_unit_test(test_describe),
        cmocka_unit_test(test_find),
    };
    return cmocka_run_group_tests(tests, set_up, pools_tear_down);
}
