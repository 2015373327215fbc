/* SPDX-License-Identifier: Apache-2.0 */
/* Error records, and the names of codes and element types. */
#include "base/error.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int pst_fail_at(pst_error *err, int code, const char *path, uint64_t offset, const char *format, ...)
{
    if (err == NULL)
        return code;
    err->code = code;
    err->offset = offset;
    snprintf(err->path, sizeof err->path, "%s", path ? path : "");
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(err->message, sizeof err->message, format, arguments);
    va_end(arguments);
    return code;
}

int pst_fail_memory(pst_error *err, const char *what, size_t bytes)
{
    return pst_fail(err, -ENOMEM, NULL, "out of memory: %zu bytes for %s", bytes, what);
}

char *pst_error_format(const pst_error *err, char *text, size_t text_bytes)
{
    const char *separator = err->path[0] ? ": " : "";
    if (err->offset == PST_NO_OFFSET)
        snprintf(text, text_bytes, "%s%s%s", err->path, separator, err->message);
    else
        snprintf(text, text_bytes, "%s%s%s (at byte %" PRIu64 ")", err->path, separator, err->message, err->offset);
    return text;
}

const char *pst_strerror(int code)
{
    switch (code) {
    case PST_E_FORMAT: return "malformed file";
    case PST_E_UNSUPPORTED: return "not supported";
    case PST_E_BUDGET: return "memory budget too small";
    case PST_E_USAGE: return "invalid arguments";
    case PST_E_SHORT: return "unexpected end of file";
    case PST_E_CANCELLED: return "cancelled";
    default: return code >= 0 ? "success" : strerror(-code);
    }
}

const char *pst_version(void)
{
    return PST_VERSION;
}

/* Names and widths as the safetensors format defines them; the last are like them, of types that it lacks. */
static const struct {
    const char *name;
    unsigned bits;
} dtypes[PST_DTYPE_COUNT] = {
    [PST_BOOL] = {"BOOL", 8},
    [PST_U8] = {"U8", 8},
    [PST_I8] = {"I8", 8},
    [PST_F8_E5M2] = {"F8_E5M2", 8},
    [PST_F8_E4M3] = {"F8_E4M3", 8},
    [PST_F8_E8M0] = {"F8_E8M0", 8},
    [PST_F4] = {"F4", 4},
    [PST_F6_E2M3] = {"F6_E2M3", 6},
    [PST_F6_E3M2] = {"F6_E3M2", 6},
    [PST_I16] = {"I16", 16},
    [PST_U16] = {"U16", 16},
    [PST_F16] = {"F16", 16},
    [PST_BF16] = {"BF16", 16},
    [PST_I32] = {"I32", 32},
    [PST_U32] = {"U32", 32},
    [PST_F32] = {"F32", 32},
    [PST_F64] = {"F64", 64},
    [PST_I64] = {"I64", 64},
    [PST_U64] = {"U64", 64},
    [PST_C64] = {"C64", 64},
    [PST_F8_E4M3FNUZ] = {"F8_E4M3FNUZ", 8},
    [PST_F8_E5M2FNUZ] = {"F8_E5M2FNUZ", 8},
    [PST_C32] = {"C32", 32},
    [PST_C128] = {"C128", 128},
};
enum { SAFETENSORS_DTYPES = PST_C32 }; /* those before it */

unsigned pst_dtype_bits(pst_dtype dtype)
{
    return (unsigned)dtype < PST_DTYPE_COUNT ? dtypes[dtype].bits : 0;
}

const char *pst_dtype_name(pst_dtype dtype)
{
    return (unsigned)dtype < PST_DTYPE_COUNT ? dtypes[dtype].name : "?";
}

int pst_dtype_parse(const char *name, pst_dtype *out)
{
    for (int i = 0; i < SAFETENSORS_DTYPES; i++) {
        if (strcmp(dtypes[i].name, name) == 0) {
            *out = (pst_dtype)i;
            return 0;
        }
    }
    return PST_E_FORMAT;
}
