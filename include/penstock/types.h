/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Types that every public header shares: the export mark, element types and the error record.
 *
 * Conventions of the whole interface:
 *  - functions return int: 0 or more is success, below zero an error code: -errno, or one of PST_E_* below;
 *  - the optional last argument `pst_error *err` receives the first failure's code, path, offset and message;
 *    it may be NULL; it is written on failure only;
 *  - results go through `out` arguments, which are untouched on failure;
 *  - sizes carry their unit in the name (`_bytes`, `_ns`); file offsets are uint64_t.
 */
#ifndef PENSTOCK_TYPES_H
#define PENSTOCK_TYPES_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define PST_API __attribute__((visibility("default")))

/* Own error codes lie below every -errno. */
enum {
    PST_E_FORMAT = -4097,      /* a file's content is not what its format demands */
    PST_E_UNSUPPORTED = -4098, /* well-formed, but not something that this version can do */
    PST_E_BUDGET = -4099,      /* a memory budget is too small; the message names the smallest that works */
    PST_E_USAGE = -4100,       /* arguments or options that make no sense together */
    PST_E_SHORT = -4101,       /* end of file before the bytes that were asked for */
    PST_E_CANCELLED = -4102    /* the caller asked to stop */
};

#define PST_NO_OFFSET UINT64_MAX

/* What failed and where. `path` is empty and `offset` PST_NO_OFFSET where they do not apply. */
typedef struct pst_error {
    int code;
    uint64_t offset;
    char path[512];
    char message[512];
} pst_error;

/* Element types of safetensors files and of torch's. The order is part of the interface: add at the end. */
typedef enum pst_dtype {
    PST_BOOL,
    PST_U8,
    PST_I8,
    PST_F8_E5M2,
    PST_F8_E4M3,
    PST_F8_E8M0,
    PST_F4,
    PST_F6_E2M3,
    PST_F6_E3M2,
    PST_I16,
    PST_U16,
    PST_F16,
    PST_BF16,
    PST_I32,
    PST_U32,
    PST_F32,
    PST_F64,
    PST_I64,
    PST_U64,
    PST_C64,
    PST_F8_E4M3FNUZ,
    PST_F8_E5M2FNUZ,
    PST_C32, /* from here on in files of torch alone: safetensors has no such types */
    PST_C128,
    PST_DTYPE_COUNT
} pst_dtype;

/* Bits of one element; 0 for a value that is no pst_dtype. */
PST_API unsigned pst_dtype_bits(pst_dtype dtype);
/* The name used in safetensors headers ("BF16"), or one like it ("C128"); "?" for a value that is no pst_dtype. Static
 * storage. */
PST_API const char *pst_dtype_name(pst_dtype dtype);
/* The dtype of a safetensors name, or PST_E_FORMAT (so for what safetensors does not have). */
PST_API int pst_dtype_parse(const char *name, pst_dtype *out);

/* "-errno or PST_E_*" in words. Static storage or strerror's. Any thread. */
PST_API const char *pst_strerror(int code);

/* "0.1.0". Static storage. */
PST_API const char *pst_version(void);

#ifdef __cplusplus
}
#endif
#endif
