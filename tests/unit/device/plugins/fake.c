/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A plugin for the tests of the loader. It has two devices that compute nothing, or what the environment's PST_FAKE_PLUGIN
 * names is wrong with it. It sees the public headers only, as any plugin.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "penstock/device_plugin.h"

int fake_open_devices; /* for the tests: opened and not yet destroyed */

static bool is_mode(const char *mode)
{
    const char *chosen = getenv("PST_FAKE_PLUGIN");
    return chosen != NULL && strcmp(chosen, mode) == 0;
}

static int fail(pst_error *err, int code, const char *message)
{
    if (err != NULL) {
        *err = (pst_error){.code = code, .offset = PST_NO_OFFSET};
        snprintf(err->message, sizeof err->message, "%s", message);
    }
    return code;
}

static int fake_count(uint32_t *out, pst_error *err)
{
    if (is_mode("no driver"))
        return fail(err, PST_E_UNSUPPORTED, "no fake driver is loaded\nand this line is one too many");
    if (is_mode("silent"))
        return PST_E_UNSUPPORTED;
    *out = is_mode("no device") ? 0 : 2;
    return 0;
}

static int fake_describe(uint32_t number, pst_device_info *out, pst_error *err)
{
    if (is_mode("shy"))
        return fail(err, PST_E_UNSUPPORTED, "does not say");
    if (is_mode("endless")) { /* no text ends */
        memset(err, 'x', sizeof *err);
        return -5;
    }
    pst_device_info info = {.struct_size = out->struct_size,
                            .total_bytes = UINT64_C(8) << 30,
                            .free_bytes = UINT64_C(5) << 30,
                            .compute_major = 9,
                            .processors = 132,
                            .memory_bytes_per_second = 4.8e12,
                            .link_bytes_per_second = 63e9,
                            .has_direct_storage = number == 1};
    snprintf(info.name, sizeof info.name, "fake:%u", number);
    snprintf(info.model, sizeof info.model, "Fake Device %c", 'A' + (int)number);
    if (number == 0)
        snprintf(info.link, sizeof info.link, "PCIe 5.0 x16");
    snprintf(info.matrix_library, sizeof info.matrix_library, "%s", number == 1 ? "" : "a fake library");
    snprintf(info.direct_storage, sizeof info.direct_storage, "%s", number == 1 ? "in a fake way" : "no cuFile");
    memcpy(out, &info, out->struct_size < sizeof info ? out->struct_size : sizeof info); /* an older caller's */
    return 0;
}

static const char *fake_last_error(pst_device *device)
{
    (void)device;
    return "";
}

static void fake_destroy(pst_device *device)
{
    fake_open_devices--;
    free(device);
}

static int refuse(void)
{
    return PST_E_UNSUPPORTED;
}

static pst_device_ops ops;

static int fake_open(uint32_t number, pst_device **out, pst_error *err)
{
    (void)number;
    if (is_mode("broken device"))
        return fail(err, -5, "the device fell off its bus");
    if (is_mode("opens nothing"))
        return 0;
    ops = (pst_device_ops){.struct_size = sizeof ops, .name = "fake"};
    for (size_t at = offsetof(pst_device_ops, last_error); at < sizeof ops; at += sizeof(void *)) {
        int (*entry)(void) = refuse;
        memcpy((char *)&ops + at, &entry, sizeof entry);
    }
    ops.last_error = fake_last_error;
    ops.destroy = fake_destroy;
    if (is_mode("short operators"))
        ops.struct_size = offsetof(pst_device_ops, top);
    if (is_mode("long operators"))
        ops.struct_size = sizeof ops + 64;
    if (is_mode("the host"))
        ops.is_host = true;
    if (is_mode("an operator less"))
        ops.rope = NULL;
    pst_device *device = malloc(sizeof *device);
    if (device == NULL)
        return fail(err, -12, "out of memory");
    device->ops = &ops;
    fake_open_devices++;
    *out = device;
    return 0;
}

#ifndef FAKE_NO_SYMBOL
PST_API pst_device_plugin_table_function pst_device_plugin_table;

const pst_device_plugin *pst_device_plugin_table(void)
{
    static pst_device_plugin plugin;
    plugin = (pst_device_plugin){PST_DEVICE_VERSION, sizeof plugin, "fake", fake_count, fake_describe, fake_open};
    if (is_mode("no table"))
        return NULL;
    if (is_mode("version"))
        plugin.version++;
    if (is_mode("short table"))
        plugin.struct_size = offsetof(pst_device_plugin, open);
    if (is_mode("long table"))
        plugin.struct_size += 64;
    if (is_mode("bad name"))
        plugin.name = "Fake One";
    if (is_mode("no name"))
        plugin.name = NULL;
    if (is_mode("a function less"))
        plugin.describe = NULL;
    return &plugin;
}
#else
const void *fake_unused(void);
const void *fake_unused(void)
{
    static const pst_device_plugin plugin = {1, sizeof plugin, "fake", fake_count, fake_describe, fake_open};
    return &plugin;
}
#endif
