/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which devices there are and what they are like: the vendor's words for the device, the kernel's (/sys, /proc) for its link
 * and for whether drives reach its memory. Only one program's view: a link's speed is what both its ends can do, since its
 * present speed falls while it is idle.
 */
#include "blas.h"

#include <ctype.h>
#include <dlfcn.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int pst_cuda_error(pst_error *err, int code, const char *format, ...)
{
    if (err != NULL) {
        va_list arguments;
        va_start(arguments, format);
        err->code = code;
        err->offset = PST_NO_OFFSET;
        err->path[0] = '\0';
        vsnprintf(err->message, sizeof err->message, format, arguments);
        va_end(arguments);
    }
    return code;
}

/* Why no device could be found, in a line that says what to do about it. */
static int fail_counting(pst_vendor_error error, pst_error *err)
{
    int has = 0, needs = 0;
    const char *text = pst_vendor_error_text(error);
    const int code = pst_cuda_code(error);
    (void)pst_vendor_last_error();
    pst_vendor_versions(&has, &needs);
    if (pst_vendor_no_driver(error) && has == 0)
        return pst_cuda_error(err, code, "no %s driver: %s is not there, or cannot be loaded", PST_VENDOR_MAKER,
                              PST_VENDOR_DRIVER);
    if (pst_vendor_no_driver(error))
        return pst_cuda_error(err, code, "the %s driver is too old: it is for version %d.%d, this plugin for %d.%d",
                              PST_VENDOR_MAKER, has / 1000, has / 10 % 100, needs / 1000, needs / 10 % 100);
    if (pst_vendor_absent(error))
        return pst_cuda_error(err, code, "no %s device: %s", PST_VENDOR_MAKER, text);
    return pst_cuda_error(err, code, "looking for devices: %s", text);
}

int pst_cuda_count(uint32_t *out, pst_error *err)
{
    int count = 0;
    const pst_vendor_error error = pst_vendor_device_count(&count);
    if (pst_vendor_failed(error))
        return fail_counting(error, err);
    if (count <= 0)
        return pst_cuda_error(err, PST_E_UNSUPPORTED, "no %s device", PST_VENDOR_MAKER);
    *out = (uint32_t)count;
    return 0;
}

int pst_cuda_check_number(uint32_t number, pst_error *err)
{
    uint32_t count = 0;
    if (int status = pst_cuda_count(&count, err))
        return status;
    if (number >= count)
        return pst_cuda_error(err, PST_E_UNSUPPORTED, "there is no device %s:%u; the last one is %s:%u",
                              PST_VENDOR_NAME, number, PST_VENDOR_NAME, count - 1);
    return 0;
}

/* ---- The link ---- */

/* The number that a file of one line begins with; 0: no such file or number. */
static double read_number(const char *folder, const char *name)
{
    char path[PATH_MAX + 32], line[64] = "";
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return 0;
    if (fgets(line, sizeof line, file) == NULL)
        line[0] = '\0';
    fclose(file);
    const double number = strtod(line, NULL);
    return number > 0 && number < 1e6 ? number : 0;
}

/* The smaller of both, of those that are known. */
static double lesser(double a, double b)
{
    return a == 0 || (b != 0 && b < a) ? b : a;
}

/* The device's folder in /sys. False: none. */
static bool find_folder(const char *pci, char folder[PATH_MAX])
{
    char path[64] = "/sys/bus/pci/devices/";
    const size_t length = strlen(path);
    for (size_t i = 0; pci[i] != '\0' && length + i + 1 < sizeof path; i++)
        path[length + i] = (char)tolower((unsigned char)pci[i]);
    return pci[0] != '\0' && realpath(path, folder) != NULL;
}

static void describe_link(const char *folder, pst_device_info *info)
{
    static const double gigatransfers[] = {2.5, 5, 8, 16, 32, 64}; /* a lane and second, by generation from 1 on */
    char port[PATH_MAX + 4];
    snprintf(port, sizeof port, "%s/..", folder); /* what it is plugged into, which may be slower */
    const double width = lesser(read_number(folder, "max_link_width"), read_number(folder, "current_link_width"));
    const double speed = lesser(read_number(folder, "max_link_speed"), read_number(port, "max_link_speed"));
    unsigned generation = 0;
    while (generation < 6 && gigatransfers[generation] <= speed + 0.1)
        generation++;
    if (width < 1 || generation == 0)
        return;
    /* 8 bits in 10 at first, then 128 in 130, then 236 bytes in packets of 256. */
    const double share = generation <= 2 ? 0.8 : generation <= 5 ? 128.0 / 130 : 236.0 / 256;
    info->link_bytes_per_second = gigatransfers[generation - 1] * 1e9 / 8 * share * width;
    snprintf(info->link, sizeof info->link, "PCIe %u.0 x%.0f", generation, width);
}

/* ---- Direct storage ---- */

static bool describe_direct_storage(const char *folder, char *text, size_t text_bytes)
{
    const char *library = PST_VENDOR_STORAGE_LIBRARY, *driver = PST_VENDOR_STORAGE_DRIVER;
    if (library == NULL) {
        snprintf(text, text_bytes, "an emulated device has none");
        return false;
    }
    void *handle = dlopen(library, RTLD_LAZY | RTLD_LOCAL);
    if (handle == NULL) {
        snprintf(text, text_bytes, "%s is not installed", library);
        return false;
    }
    dlclose(handle);
    char peer[PATH_MAX + 16];
    snprintf(peer, sizeof peer, "%s/p2pmem", folder);
    if (access(driver, F_OK) == 0) {
        snprintf(text, text_bytes, "%s and the driver behind %s", library, driver);
        return true;
    }
    if (folder[0] != '\0' && access(peer, F_OK) == 0) {
        snprintf(text, text_bytes, "%s and the kernel's transfers between PCI devices", library);
        return true;
    }
    snprintf(text, text_bytes, "there is neither %s nor memory of the device that the kernel can transfer to (p2pmem)",
             driver);
    return false;
}

/* ---- A device ---- */

/* Its memory; the current device of the thread stays what it is. */
static pst_vendor_error ask_memory(int number, pst_device_info *info)
{
    int before = 0;
    size_t unused = 0, total = 0;
    pst_vendor_error error = pst_vendor_get_device(&before);
    if (pst_vendor_failed(error))
        return error;
    error = pst_vendor_set_device(number);
    if (!pst_vendor_failed(error))
        error = pst_vendor_memory_info(&unused, &total);
    info->free_bytes = unused;
    info->total_bytes = total;
    if (before != number)
        (void)pst_vendor_set_device(before);
    return error;
}

int pst_cuda_describe(uint32_t number, pst_device_info *out, pst_error *err)
{
    pst_vendor_properties properties;
    pst_device_info info = {};
    if (int status = pst_cuda_check_number(number, err))
        return status;
    pst_vendor_error error = pst_vendor_get_properties(&properties, (int)number);
    if (!pst_vendor_failed(error))
        error = ask_memory((int)number, &info);
    if (pst_vendor_failed(error)) {
        (void)pst_vendor_last_error();
        return pst_cuda_error(err, pst_cuda_code(error), "%s:%u: %s", PST_VENDOR_NAME, number,
                              pst_vendor_error_text(error));
    }
    snprintf(info.name, sizeof info.name, "%s:%u", PST_VENDOR_NAME, number);
    snprintf(info.model, sizeof info.model, "%s", properties.model);
    info.compute_major = (uint32_t)properties.compute_major;
    info.compute_minor = (uint32_t)properties.compute_minor;
    info.processors = (uint32_t)properties.processors;
    info.memory_bytes_per_second = properties.memory_bytes_per_second;
    char folder[PATH_MAX] = "";
    if (find_folder(properties.pci, folder))
        describe_link(folder, &info);
    info.has_direct_storage = describe_direct_storage(folder, info.direct_storage, sizeof info.direct_storage);
    pst_cuda_blas_describe(info.matrix_library, sizeof info.matrix_library);
    info.struct_size = out->struct_size;
    memcpy(out, &info, out->struct_size < sizeof info ? out->struct_size : sizeof info); /* an older caller's is shorter */
    return 0;
}
