/* SPDX-License-Identifier: Apache-2.0 */
/* Devices by name: the host, a plugin's, or the first that works; and what there is. */
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/log.h"
#include "device/device.h"
#include "device/fault.h"
#include "device/plugin.h"

/* The same failure with the device's name before it. */
static int fail_device(const char *name, int code, const pst_error *why, pst_error *err)
{
    char text[sizeof why->path + sizeof why->message];
    pst_error_format(why, text, sizeof text);
    return pst_fail(err, code, NULL, "device %.60s: %.440s", name, text);
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

static void terminate(pst_device_info *info)
{
    info->name[sizeof info->name - 1] = '\0';
    info->model[sizeof info->model - 1] = '\0';
    info->link[sizeof info->link - 1] = '\0';
    info->direct_storage[sizeof info->direct_storage - 1] = '\0';
}

/* Describes device `number` of a plugin, or counts its devices off `number` and fails. */
static int describe(const char *name, uint32_t *number, pst_device_info *out, pst_error *err)
{
    const pst_device_plugin *plugin;
    uint32_t count;
    PST_TRY(pst_plugin_load(name, &plugin, err));
    PST_TRY(pst_plugin_count(plugin, &count, err));
    if (*number >= count) {
        *number -= count;
        return pst_fail(err, PST_E_UNSUPPORTED, NULL, "the plugin %s has no more devices", plugin->name);
    }
    pst_device_info info = {.struct_size = sizeof info};
    pst_error why = {.offset = PST_NO_OFFSET};
    int status = plugin->describe(*number, &info, &why);
    if (status < 0) {
        char device[64];
        snprintf(device, sizeof device, "%s:%u", plugin->name, *number);
        if (why.message[0] == '\0')
            snprintf(why.message, sizeof why.message, "%s", pst_strerror(status));
        /* Only what is not there is PST_E_UNSUPPORTED: a device that cannot be asked is another matter. */
        return fail_device(device, status == PST_E_UNSUPPORTED ? PST_E_FORMAT : status, &why, err);
    }
    terminate(&info);
    /* Options take a file's device by the file's name. */
    if (strchr(name, '/') != NULL && strlen(name) + 12 < sizeof info.name)
        snprintf(info.name, sizeof info.name, "%s:%u", name, *number);
    *out = info;
    return 0;
}

int pst_device_describe(const char *plugin, uint32_t number, pst_device_info *out, pst_error *err)
{
    const size_t known = out->struct_size < sizeof *out ? out->struct_size : sizeof *out;
    if (known < offsetof(pst_device_info, total_bytes))
        return pst_fail(err, PST_E_USAGE, NULL, "the struct_size of a pst_device_info is not set");
    const char *const one[] = {plugin, NULL};
    pst_device_info info;
    pst_error why = {.offset = PST_NO_OFFSET};
    int status = PST_E_UNSUPPORTED;
    for (const char *const *name = plugin != NULL ? one : pst_plugin_names; *name != NULL; name++) {
        status = describe(*name, &number, &info, &why);
        if (status != PST_E_UNSUPPORTED)
            break;
    }
    if (status < 0) {
        if (err != NULL)
            *err = why;
        return status;
    }
    info.struct_size = out->struct_size;
    memcpy(out, &info, known);
    return 0;
}
