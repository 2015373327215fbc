/* SPDX-License-Identifier: Apache-2.0 */
/* The devices of the operators' tests: the one under test from its plugin, and the host's as the reference; see ops.h. */
#include <dlfcn.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/error.h"
#include "device/fake_blas.h"
#include "device/ops.h"
#include "os/thread.h"

static struct {
    void *library;
    const pst_device_plugin *plugin;
    uint32_t number;
    bool is_host;
    pst_device *device, *host;
    pst_pool *pool;
    ops_controls controls;
    char name[64], file[1100]; /* file: what a session calls the device */
} all;

/* The plugin's file that a device's name means, and the device's number behind the colon. */
static void find_file(const char *name, char *file, size_t file_bytes)
{
    const char *colon = strrchr(name, ':');
    const bool numbered = colon != NULL && colon[1] != '\0' && strspn(colon + 1, "0123456789") == strlen(colon + 1);
    const int length = numbered ? (int)(colon - name) : (int)strlen(name);
    all.number = numbered ? (uint32_t)strtoul(colon + 1, NULL, 10) : 0;
    if (memchr(name, '/', (size_t)length) != NULL)
        snprintf(file, file_bytes, "%.*s", length, name);
    else
        snprintf(file, file_bytes, "%s/libpenstock-%.*s.so", PST_TEST_BINARY_DIR, length, name);
}

/* Of the emulator: the host shall not reach its devices' memory, and there is a library of products. */
static void find_controls(void)
{
    ops_controls *c = &all.controls;
    *(void **)&c->seed = dlsym(all.library, "pst_emulated_seed");
    *(void **)&c->protect = dlsym(all.library, "pst_emulated_protect");
    *(void **)&c->fail_nth = dlsym(all.library, "pst_emulated_fail");
    *(void **)&c->calls = dlsym(all.library, "pst_emulated_calls");
    *(void **)&c->reset = dlsym(all.library, "pst_emulated_reset");
    *(void **)&c->count = dlsym(all.library, "pst_emulated_count");
    *(void **)&c->blas = dlsym(all.library, "pst_emulated_blas");
    if (c->protect != NULL)
        c->protect(true);
    if (c->blas != NULL)
        c->blas(PST_FAKE_BLAS); /* products of prompts go through it */
}

const ops_controls *ops_emulator(void)
{
    return all.controls.seed != NULL ? &all.controls : NULL;
}

uint64_t ops_library_products(void)
{
    uint64_t products = 0, objects;
    void *library = dlopen(PST_FAKE_BLAS, RTLD_NOW | RTLD_LOCAL);
    assert_non_null(library);
    fake_blas_getter *get;
    *(void **)&get = dlsym(library, "fake_blas_get");
    assert_non_null(get);
    get(&products, &objects);
    dlclose(library);
    return products;
}

static int load(const char *name, pst_error *err)
{
    char file[1024];
    find_file(name, file, sizeof file);
    snprintf(all.file, sizeof all.file, "%s:%u", file, all.number);
    all.library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (all.library == NULL)
        return pst_fail(err, PST_E_UNSUPPORTED, NULL, "%s", dlerror());
    pst_device_plugin_table_function *table;
    *(void **)&table = dlsym(all.library, PST_DEVICE_PLUGIN_SYMBOL);
    if (table == NULL)
        return pst_fail(err, PST_E_UNSUPPORTED, NULL, "%s has no %s", file, PST_DEVICE_PLUGIN_SYMBOL);
    all.plugin = table();
    find_controls();
    assert_int_equal(all.plugin->version, PST_DEVICE_VERSION);
    assert_true(all.plugin->struct_size >= sizeof *all.plugin);
    uint32_t count = 0;
    PST_TRY(all.plugin->count(&count, err));
    if (all.number >= count)
        return pst_fail(err, PST_E_UNSUPPORTED, NULL, "there are %u devices of %s", count, all.plugin->name);
    return 0;
}

/* A set whose products take weights as they are: that of the bf16 dot instruction rounds some. */
static int make_host(pst_device **out)
{
    static const char *const sets[] = {"avx512", "avx2", "portable"};
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++)
        if (pst_cpu_select(sets[i]) != NULL)
            return pst_device_host_create(all.pool, sets[i], out, NULL);
    return PST_E_UNSUPPORTED;
}

int ops_open(pst_device **out, pst_error *err)
{
    if (all.is_host)
        return make_host(out);
    if (all.plugin == NULL)
        return PST_E_UNSUPPORTED;
    return all.plugin->open(all.number, out, err);
}

/* A GPU that is not there is told, and its tests skip; anything else is a failure. */
static int open_device(const char *name)
{
    pst_error err = {0};
    all.is_host = strcmp(name, "host") == 0;
    snprintf(all.name, sizeof all.name, "%s", name);
    int status = all.is_host ? 0 : load(name, &err);
    if (status >= 0)
        status = ops_open(&all.device, &err);
    if (status == PST_E_UNSUPPORTED && strncmp(name, "cuda", 4) == 0) {
        printf("SKIP: needs a GPU: %s\n", err.message);
        all.device = NULL;
        return 0;
    }
    if (status < 0) {
        printf("%s: %s\n", name, err.message);
        return status;
    }
    snprintf(all.name, sizeof all.name, "%s", all.device->ops->name);
    return 0;
}

int ops_set_up(void **state)
{
    (void)state;
    const char *name = getenv("PST_TEST_DEVICE");
    if (pst_pool_create(2, &all.pool, NULL) < 0 || make_host(&all.host) < 0)
        return -1;
    return open_device(name != NULL && name[0] != '\0' ? name : PST_TEST_DEFAULT_DEVICE);
}

int ops_tear_down(void **state)
{
    (void)state;
    pst_device_destroy(all.device);
    pst_device_destroy(all.host);
    pst_pool_destroy(all.pool);
    memset(&all, 0, sizeof all); /* the plugin stays: its driver has threads and functions for the end of the process */
    return 0;
}

pst_device *ops_device(ops_side side)
{
    return side == OPS_HOST ? all.host : all.device;
}

const char *ops_name(void)
{
    return all.name;
}

const char *ops_file(void)
{
    return all.is_host ? "host" : all.file;
}

const pst_device_plugin *ops_plugin(void)
{
    return all.plugin;
}

bool ops_begin(const char *test)
{
    if (all.device == NULL)
        return false;
    char name[128];
    snprintf(name, sizeof name, "%s, %s", all.name, test);
    const uint64_t seed = ref_seed(name);
    if (ops_emulator() != NULL)
        ops_emulator()->seed(seed);
    return true;
}

size_t ops_cases(size_t usual)
{
    const char *given = getenv("PST_TEST_CASES");
    const size_t cases = given != NULL ? strtoull(given, NULL, 10) : 0;
    return cases > 0 ? cases : usual;
}
