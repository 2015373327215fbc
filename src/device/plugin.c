/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The loader of plugins. A plugin is trusted as code (it runs in this process), but not to be of this version: every table
 * is held against what this library needs before anything of it is called, and what does not fit is refused in one line.
 */
#include "device/plugin.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/log.h"
#include "os/library.h"

enum { MAX_NAME = 31, PATH_BYTES = 4096 };
static const char NAME_CHARACTERS[] = "abcdefghijklmnopqrstuvwxyz0123456789_-";

const char *const pst_plugin_names[] = {"cuda", NULL};

static bool is_plugin_name(const char *name)
{
    const size_t length = strlen(name);
    return length > 0 && length <= MAX_NAME && strspn(name, NAME_CHARACTERS) == length;
}

int pst_device_name_parse(const char *text, pst_device_name *out, pst_error *err)
{
    pst_device_name name = {.is_file = strchr(text, '/') != NULL};
    const char *colon = strrchr(text, ':');
    /* A file's name may have a colon in it: there only one with a number behind it counts. */
    if (colon != NULL && (strchr(colon, '/') != NULL ||
                          (name.is_file && (colon[1] == '\0' || colon[1 + strspn(colon + 1, "0123456789")] != '\0'))))
        colon = NULL;
    const size_t length = colon != NULL ? (size_t)(colon - text) : strlen(text);
    if (length >= sizeof name.plugin)
        return pst_fail(err, PST_E_USAGE, NULL, "the device's name is too long");
    memcpy(name.plugin, text, length);
    if (!name.is_file && !is_plugin_name(name.plugin))
        return pst_fail(
            err, PST_E_USAGE, NULL,
            "\"%.60s\" is no device; there are host, cuda, cuda:N, auto, and a plugin's file, whose name has a "
            "slash",
            text);
    if (colon != NULL) {
        const size_t digits = strspn(colon + 1, "0123456789");
        if (digits == 0 || digits > 4 || colon[1 + digits] != '\0')
            return pst_fail(err, PST_E_USAGE, NULL, "\"%.60s\" is no device: a number from 0 to 9999 follows the colon",
                            text);
        for (size_t i = 1; i <= digits; i++)
            name.number = name.number * 10 + (uint32_t)(colon[i] - '0');
        name.has_number = true;
    }
    *out = name;
    return 0;
}

/* What a plugin left in its record, as a failure of ours: one line in any case. */
static int fail_as(int code, pst_error *from, pst_error *err)
{
    from->path[sizeof from->path - 1] = from->message[sizeof from->message - 1] = '\0';
    from->message[strcspn(from->message, "\r\n")] = '\0';
    from->path[strcspn(from->path, "\r\n")] = '\0';
    if (from->message[0] == '\0')
        snprintf(from->message, sizeof from->message, "%s", pst_strerror(code));
    from->code = code;
    if (err != NULL)
        *err = *from;
    return code;
}

/* Every function of a table, an array of pointers from `begin` to `end`, is there. */
static bool is_whole(const void *table, size_t begin, size_t end)
{
    for (size_t at = begin; at < end; at += sizeof(void *)) {
        void *entry;
        memcpy(&entry, (const char *)table + at, sizeof entry);
        if (entry == NULL)
            return false;
    }
    return true;
}

static int check_plugin(const char *path, const pst_device_plugin *plugin, pst_error *err)
{
    if (plugin == NULL)
        return pst_fail(err, PST_E_UNSUPPORTED, path, "is a plugin without a table");
    if (plugin->version != PST_DEVICE_VERSION)
        return pst_fail(err, PST_E_UNSUPPORTED, path, "is a plugin of version %u; this library takes version %u",
                        plugin->version, PST_DEVICE_VERSION);
    if (plugin->struct_size < sizeof *plugin)
        return pst_fail(err, PST_E_UNSUPPORTED, path,
                        "is an older plugin: its table has %u bytes, and this library needs %zu", plugin->struct_size,
                        sizeof *plugin);
    if (plugin->name == NULL || !is_plugin_name(plugin->name))
        return pst_fail(err, PST_E_UNSUPPORTED, path, "is a plugin without a name of a-z, 0-9, _ and -");
    if (!is_whole(plugin, offsetof(pst_device_plugin, count), sizeof *plugin))
        return pst_fail(err, PST_E_UNSUPPORTED, path, "is a plugin that lacks a function");
    return 0;
}

static int load_file(const char *path, const pst_device_plugin **out, pst_error *err)
{
    pst_library *library;
    PST_TRY(pst_library_open(path, &library, err));
    pst_device_plugin_table_function *table;
    void *symbol = pst_library_symbol(library, PST_DEVICE_PLUGIN_SYMBOL);
    int status;
    if (symbol == NULL) {
        status = pst_fail(err, PST_E_UNSUPPORTED, path, "is no plugin: it has no symbol " PST_DEVICE_PLUGIN_SYMBOL);
        goto done;
    }
    _Static_assert(sizeof table == sizeof symbol, "a function's address is an address");
    memcpy(&table, &symbol, sizeof table);
    const pst_device_plugin *plugin = table();
    PST_TRY_GOTO(done, check_plugin(path, plugin, err));
    PST_TRY_GOTO(done, pst_library_keep(path, err));
    *out = plugin;
done:
    pst_library_close(library);
    return status;
}

/* Looks in both places for the file of a plugin. Where it is in neither, the second place's -ENOENT becomes a line about both. */
static int load_named(const char *name, const pst_device_plugin **out, pst_error *err)
{
    static const char *const places[] = {"", "penstock/"};
    char folder[PATH_BYTES], path[PATH_BYTES + 64];
    PST_TRY(pst_library_own_folder(folder, sizeof folder, err));
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        pst_error failure = {.offset = PST_NO_OFFSET};
        snprintf(path, sizeof path, "%s/%slibpenstock-%s.so", folder, places[i], name);
        int status = load_file(path, out, &failure);
        if (status == -ENOENT || status == -ENOTDIR)
            continue;
        if (status < 0)
            return fail_as(status, &failure, err);
        if (strcmp((*out)->name, name) == 0)
            return 0;
        return pst_fail(err, PST_E_UNSUPPORTED, path, "is the plugin \"%s\"", (*out)->name);
    }
    return pst_fail(err, PST_E_UNSUPPORTED, NULL,
                    "no plugin libpenstock-%s.so beside the library, nor in penstock/ there (%.300s)", name, folder);
}

int pst_plugin_load(const char *plugin, const pst_device_plugin **out, pst_error *err)
{
    const pst_device_plugin *found;
    if (strchr(plugin, '/') == NULL && !is_plugin_name(plugin))
        return pst_fail(err, PST_E_USAGE, NULL,
                        "\"%.60s\" is no plugin's name (of a-z, 0-9, _ and -), and no file without "
                        "a slash",
                        plugin);
    PST_TRY(strchr(plugin, '/') != NULL ? load_file(plugin, &found, err) : load_named(plugin, &found, err));
    *out = found;
    return 0;
}

int pst_plugin_count(const pst_device_plugin *plugin, uint32_t *out, pst_error *err)
{
    pst_error failure = {.offset = PST_NO_OFFSET};
    uint32_t count = 0;
    int status = plugin->count(&count, &failure);
    if (status < 0)
        return fail_as(status, &failure, err);
    if (count == 0)
        return pst_fail(err, PST_E_UNSUPPORTED, NULL, "the plugin %s finds no device", plugin->name);
    *out = count;
    return 0;
}

int pst_plugin_check_number(const pst_device_plugin *plugin, uint32_t number, uint32_t count, pst_error *err)
{
    if (number < count)
        return 0;
    return pst_fail(err, PST_E_UNSUPPORTED, NULL, "there is no %s:%u, the last one is %s:%u", plugin->name, number,
                    plugin->name, count - 1);
}

int pst_plugin_describe(const pst_device_plugin *plugin, uint32_t number, pst_device_info *out, pst_error *err)
{
    pst_device_info info = {.struct_size = sizeof info};
    pst_error failure = {.offset = PST_NO_OFFSET};
    int status = plugin->describe(number, &info, &failure);
    if (status < 0)
        return fail_as(status, &failure, err);
    info.name[sizeof info.name - 1] = '\0';
    info.model[sizeof info.model - 1] = '\0';
    info.link[sizeof info.link - 1] = '\0';
    info.direct_storage[sizeof info.direct_storage - 1] = '\0';
    info.matrix_library[sizeof info.matrix_library - 1] = '\0';
    info.kernels[0] = '\0';
    *out = info;
    return 0;
}

static int check_device(const char *name, const pst_device *device, pst_error *err)
{
    const pst_device_ops *ops = device->ops;
    if (ops->struct_size < sizeof *ops)
        return pst_fail(err, PST_E_UNSUPPORTED, NULL,
                        "the plugin %s is older: its devices' table has %u bytes, and this library needs %zu", name,
                        ops->struct_size, sizeof *ops);
    if (ops->name == NULL || !is_whole(ops, offsetof(pst_device_ops, last_error), sizeof *ops))
        return pst_fail(err, PST_E_UNSUPPORTED, NULL, "the plugin %s has devices that lack an operator", name);
    if (ops->is_host) /* by which this library knows its own */
        return pst_fail(err, PST_E_UNSUPPORTED, NULL, "the plugin %s says that its device is the host", name);
    return 0;
}

int pst_plugin_open(const pst_device_plugin *plugin, uint32_t number, pst_device **out, pst_error *err)
{
    uint32_t count;
    PST_TRY(pst_plugin_count(plugin, &count, err));
    PST_TRY(pst_plugin_check_number(plugin, number, count, err));
    pst_error failure = {.offset = PST_NO_OFFSET};
    pst_device *device = NULL;
    int status = plugin->open(number, &device, &failure);
    if (status < 0)
        return fail_as(status, &failure, err);
    if (device == NULL || device->ops == NULL)
        return pst_fail(err, PST_E_UNSUPPORTED, NULL, "the plugin %s opened nothing", plugin->name);
    status = check_device(plugin->name, device, err);
    if (status < 0) {
        const size_t destroy_end = offsetof(pst_device_ops, destroy) + sizeof device->ops->destroy;
        if (device->ops->struct_size >= destroy_end && device->ops->destroy != NULL)
            device->ops->destroy(device);
        return status;
    }
    *out = device;
    return 0;
}
