/* SPDX-License-Identifier: Apache-2.0 */
/* Devices by name: the host, a plugin's, or the first that works; and what there is. */
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/log.h"
#include "cpu/cpu.h"
#include "device/device.h"
#include "device/fault.h"
#include "device/plugin.h"
#include "os/memory.h"
#include "os/thread.h"

/* The same failure with the device's name before it; once, where the plugin says it too ("cuda: no driver"). */
static int fail_device(const char *name, int code, const pst_error *why, pst_error *err)
{
    char text[sizeof why->path + sizeof why->message];
    const char *from = pst_error_format(why, text, sizeof text);
    const size_t length = strcspn(name, ":");
    if (strncmp(from, name, length) == 0 && strncmp(from + length, ": ", 2) == 0)
        from += length + 2;
    return pst_fail(err, code, NULL, "device %.60s: %.440s", name, from);
}

static int open_plugins_device(const char *name, pst_device **out, pst_error *err)
{
    pst_device_name parts;
    const pst_device_plugin *plugin;
    PST_TRY(pst_device_name_parse(name, &parts, err));
    pst_error why = {.offset = PST_NO_OFFSET};
    int status = pst_plugin_load(parts.plugin, &plugin, &why);
    if (status >= 0)
        status = pst_plugin_open(plugin, parts.number, out, &why);
    return status < 0 ? fail_device(name, status, &why, err) : 0;
}

/* The first device of a plugin that can be opened; else why its last one cannot. */
static int open_first(const char *plugin_name, pst_device **out, pst_error *err)
{
    const pst_device_plugin *plugin;
    uint32_t count;
    PST_TRY(pst_plugin_load(plugin_name, &plugin, err));
    PST_TRY(pst_plugin_count(plugin, &count, err));
    int status = PST_E_UNSUPPORTED;
    for (uint32_t number = 0; number < count; number++) {
        status = pst_plugin_open(plugin, number, out, err);
        if (status >= 0) {
            pst_log(PST_LOG_INFO, "device: %s:%u", plugin_name, number);
            return 0;
        }
    }
    return status;
}

static int open_auto(pst_pool *pool, const char *kernels, pst_device **out, pst_error *err)
{
    for (const char *const *name = pst_plugin_names; *name != NULL; name++) {
        char text[sizeof(pst_error)];
        pst_error why = {.offset = PST_NO_OFFSET};
        if (open_first(*name, out, &why) >= 0)
            return 0;
        pst_log(why.code == PST_E_UNSUPPORTED ? PST_LOG_INFO : PST_LOG_WARNING,
                "device: the host's processor, since there is no %s: %s", *name,
                pst_error_format(&why, text, sizeof text));
    }
    return pst_device_host_create(pool, kernels, out, err);
}

/* A test's (fault.h). */
static pst_device_opener *opener;
static void *opener_context;

void pst_device_replace_open(pst_device_opener *replacement, void *context)
{
    opener = replacement;
    opener_context = context;
}

int pst_device_open(const char *name, pst_pool *pool, const char *kernels, pst_device **out, pst_error *err)
{
    if (opener != NULL)
        return opener(opener_context, name, pool, kernels, out, err);
    if (name == NULL || strcmp(name, "host") == 0)
        return pst_device_host_create(pool, kernels, out, err);
    if (strcmp(name, "auto") == 0)
        return open_auto(pool, kernels, out, err);
    return open_plugins_device(name, out, err);
}

/* Device `number` of a plugin that has it. */
static int ask(const pst_device_plugin *plugin, uint32_t number, pst_device_info *out, pst_error *err)
{
    pst_error why = {.offset = PST_NO_OFFSET};
    int status = pst_plugin_describe(plugin, number, out, &why);
    if (status >= 0)
        return 0;
    char device[64];
    snprintf(device, sizeof device, "%s:%u", plugin->name, number);
    /* Only what is not there is PST_E_UNSUPPORTED: a device that cannot be asked is another matter. */
    return fail_device(device, status == PST_E_UNSUPPORTED ? PST_E_FORMAT : status, &why, err);
}

/* Options take a file's device by the file's name. */
static void name_by_file(const char *plugin, uint32_t number, pst_device_info *info)
{
    if (strchr(plugin, '/') != NULL && strlen(plugin) + 12 < sizeof info->name)
        snprintf(info->name, sizeof info->name, "%s:%u", plugin, number);
}

/* Describes device `number` of a plugin, or counts its devices off `number` and fails. One that was only looked for and does not
 * work has none, whatever its failure. */
static int describe(const char *name, bool is_looked_for, uint32_t *number, pst_device_info *out, pst_error *err)
{
    const pst_device_plugin *plugin;
    uint32_t count;
    int status = pst_plugin_load(name, &plugin, err);
    if (status >= 0)
        status = pst_plugin_count(plugin, &count, err);
    if (status < 0 && is_looked_for)
        err->code = status = PST_E_UNSUPPORTED;
    PST_TRY(status);
    if (*number >= count) {
        *number -= count;
        return pst_fail(err, PST_E_UNSUPPORTED, NULL, "the plugin %s has no more devices", plugin->name);
    }
    PST_TRY(ask(plugin, *number, out, err));
    name_by_file(name, *number, out);
    return 0;
}

/* As much of it as the caller knows. */
static int hand_out(const pst_device_info *info, pst_device_info *out)
{
    const size_t given = out->struct_size;
    memcpy(out, info, given < sizeof *info ? given : sizeof *info);
    out->struct_size = given;
    return 0;
}

static int check_size(const pst_device_info *out, pst_error *err)
{
    if (out->struct_size < offsetof(pst_device_info, total_bytes))
        return pst_fail(err, PST_E_USAGE, NULL, "the struct_size of a pst_device_info is not set");
    return 0;
}

int pst_device_describe(const char *plugin, uint32_t number, pst_device_info *out, pst_error *err)
{
    const char *const one[] = {plugin, NULL};
    pst_device_info info;
    pst_error why = {.offset = PST_NO_OFFSET};
    int status = PST_E_UNSUPPORTED;
    PST_TRY(check_size(out, err));
    for (const char *const *name = plugin != NULL ? one : pst_plugin_names; *name != NULL; name++) {
        status = describe(*name, plugin == NULL, &number, &info, &why);
        if (status != PST_E_UNSUPPORTED)
            break;
    }
    if (status < 0) {
        if (err != NULL)
            *err = why;
        return status;
    }
    return hand_out(&info, out);
}

static int describe_host(pst_device_info *out, pst_error *err)
{
    pst_device_info info = {.name = "host", .processors = pst_os_processors()};
    pst_memory_info memory;
    PST_TRY(pst_memory_get_info(&memory, err));
    info.total_bytes = memory.limit_bytes;
    info.free_bytes = memory.available_bytes;
    pst_os_processor_name(info.model, sizeof info.model);
    snprintf(info.kernels, sizeof info.kernels, "%s", pst_cpu_available(0)->name);
    *out = info;
    return 0;
}

int pst_device_find(const char *name, pst_device_info *out, pst_error *err)
{
    pst_device_info info;
    pst_device_name parts;
    const pst_device_plugin *plugin;
    uint32_t count;
    PST_TRY(check_size(out, err));
    if (strcmp(name, "auto") == 0) {
        info.struct_size = sizeof info;
        if (pst_device_describe(NULL, 0, &info, NULL) < 0)
            name = "host";
        else
            return hand_out(&info, out);
    }
    if (strcmp(name, "host") == 0) {
        PST_TRY(describe_host(&info, err));
        return hand_out(&info, out);
    }
    PST_TRY(pst_device_name_parse(name, &parts, err));
    pst_error why = {.offset = PST_NO_OFFSET};
    int status = pst_plugin_load(parts.plugin, &plugin, &why);
    if (status >= 0)
        status = pst_plugin_count(plugin, &count, &why);
    if (status >= 0)
        status = pst_plugin_check_number(plugin, parts.number, count, &why);
    if (status < 0)
        return fail_device(name, status, &why, err);
    PST_TRY(ask(plugin, parts.number, &info, err));
    name_by_file(parts.plugin, parts.number, &info);
    return hand_out(&info, out);
}

int pst_device_fail(pst_error *err, pst_device *device, int status, const char *what)
{
    const char *why = device->ops->last_error(device);
    return pst_fail(err, status, NULL, "device %s: %s failed: %s", device->ops->name, what,
                    why != NULL && why[0] != '\0' ? why : pst_strerror(status));
}
