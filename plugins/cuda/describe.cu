/* SPDX-License-Identifier: Apache-2.0 */
/* Which devices there are and what they are like: the vendor's words, and what the kernel's /sys says of the link. */
#include "cuda_device.h"

#include <stdarg.h>
#include <stdio.h>

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

int pst_cuda_count(uint32_t *out, pst_error *err)
{
    int count = 0;
    const pst_vendor_error error = pst_vendor_device_count(&count);
    if (pst_vendor_failed(error)) {
        (void)pst_vendor_last_error();
        return pst_cuda_error(err, pst_cuda_code(error), "%s: %s", PST_VENDOR_NAME, pst_vendor_error_text(error));
    }
    *out = (uint32_t)count;
    return 0;
}

int pst_cuda_describe(uint32_t number, pst_device_info *out, pst_error *err)
{
    pst_vendor_properties properties;
    uint32_t count = 0;
    if (int status = pst_cuda_count(&count, err))
        return status;
    if (number >= count)
        return pst_cuda_error(err, PST_E_UNSUPPORTED, "there is no device %s:%u", PST_VENDOR_NAME, number);
    const pst_vendor_error error = pst_vendor_get_properties(&properties, (int)number);
    if (pst_vendor_failed(error))
        return pst_cuda_error(err, pst_cuda_code(error), "%s:%u: %s", PST_VENDOR_NAME, number,
                              pst_vendor_error_text(error));
    pst_device_info info = {};
    info.struct_size = out->struct_size;
    snprintf(info.name, sizeof info.name, "%s:%u", PST_VENDOR_NAME, number);
    snprintf(info.model, sizeof info.model, "%s", properties.model);
    info.compute_major = (uint32_t)properties.compute_major;
    info.compute_minor = (uint32_t)properties.compute_minor;
    info.processors = (uint32_t)properties.processors;
    info.memory_bytes_per_second = properties.memory_bytes_per_second;
    *out = info;
    return 0;
}
