/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Written twice: once to count, once into memory of that size. What recurs (globals, two strings) is spelled out at its
 * first use, kept in the memo, and fetched from there later, as pickle itself does.
 */
#include "store/pickle_write.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "store/safetensors.h"

enum {
    PROTO = 0x80,
    EMPTY_DICT = '}',
    MARK = '(',
    GLOBAL = 'c',
    BINUNICODE = 'X',
    BINPUT = 'q',
    BINGET = 'h',
    BININT1 = 'K',
    BININT2 = 'M',
    BININT = 'J',
    LONG1 = 0x8a,
    EMPTY_TUPLE = ')',
    TUPLE = 't',
    TUPLE1 = 0x85,
    TUPLE2 = 0x86,
    TUPLE3 = 0x87,
    BINPERSID = 'Q',
    NEWFALSE = 0x89,
    REDUCE = 'R',
    SETITEMS = 'u',
    STOP = '.',
    BATCH = 1000 /* items per SETITEMS, as in pickle: what bounds a reader's stack */
};

/* By dtype: its typed storage, or (older typed storages are all there are) the name of the dtype, to go with untyped
 * bytes. */
typedef struct torch_type {
    const char *storage, *dtype;
} torch_type;

static const torch_type types[PST_DTYPE_COUNT] = {
    [PST_BOOL] = {"torch\nBoolStorage\n", NULL},
    [PST_U8] = {"torch\nByteStorage\n", NULL},
    [PST_I8] = {"torch\nCharStorage\n", NULL},
    [PST_I16] = {"torch\nShortStorage\n", NULL},
    [PST_F16] = {"torch\nHalfStorage\n", NULL},
    [PST_BF16] = {"torch\nBFloat16Storage\n", NULL},
    [PST_I32] = {"torch\nIntStorage\n", NULL},
    [PST_F32] = {"torch\nFloatStorage\n", NULL},
    [PST_F64] = {"torch\nDoubleStorage\n", NULL},
    [PST_I64] = {"torch\nLongStorage\n", NULL},
    [PST_C64] = {"torch\nComplexFloatStorage\n", NULL},
    [PST_C128] = {"torch\nComplexDoubleStorage\n", NULL},
    [PST_F8_E5M2] = {NULL, "torch\nfloat8_e5m2\n"},
    [PST_F8_E4M3] = {NULL, "torch\nfloat8_e4m3fn\n"},
    [PST_F8_E8M0] = {NULL, "torch\nfloat8_e8m0fnu\n"},
    [PST_F8_E4M3FNUZ] = {NULL, "torch\nfloat8_e4m3fnuz\n"},
    [PST_F8_E5M2FNUZ] = {NULL, "torch\nfloat8_e5m2fnuz\n"},
    [PST_F4] = {NULL, "torch\nfloat4_e2m1fn_x2\n"},
    [PST_U16] = {NULL, "torch\nuint16\n"},
    [PST_U32] = {NULL, "torch\nuint32\n"},
    [PST_U64] = {NULL, "torch\nuint64\n"},
    [PST_C32] = {NULL, "torch\ncomplex32\n"},
};

/* What the memo holds; behind these: a storage or dtype for each pst_dtype. */
enum { KEEP_V2, KEEP_V3, KEEP_ORDERED_DICT, KEEP_UNTYPED, KEEP_STORAGE, KEEP_CPU, KEEP_TYPES };

typedef struct pickle {
    unsigned char *out; /* NULL: only counted */
    size_t bytes;
    int16_t memo[KEEP_TYPES + PST_DTYPE_COUNT]; /* its number there, plus 1; 0: not yet */
    unsigned kept;
} pickle;

static void put_bytes(pickle *p, const void *data, size_t bytes)
{
    if (p->out != NULL)
        memcpy(p->out + p->bytes, data, bytes);
    p->bytes += bytes;
}

static void put(pickle *p, unsigned opcode)
{
    unsigned char byte = (unsigned char)opcode;
    put_bytes(p, &byte, 1);
}

/* The low `bytes` bytes of a number, little-endian. */
static void put_number(pickle *p, uint64_t value, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++)
        put(p, (unsigned)(value >> 8 * i) & 0xff);
}

static void put_integer(pickle *p, uint64_t value)
{
    unsigned bytes = 1;
    if (value <= 0xff) {
        put(p, BININT1);
    } else if (value <= 0xffff) {
        put(p, BININT2);
        bytes = 2;
    } else if (value <= INT32_MAX) {
        put(p, BININT);
        bytes = 4;
    } else {
        put(p, LONG1);
        bytes = 5;
        while (bytes < 8 && value >> (8 * bytes - 1) != 0) /* the top bit is the sign */
            bytes++;
        put(p, bytes);
    }
    put_number(p, value, bytes);
}

static void put_text(pickle *p, const char *text)
{
    size_t bytes = strlen(text);
    put(p, BINUNICODE);
    put_number(p, bytes, 4);
    put_bytes(p, text, bytes);
}

/* Whether it has to be spelled out now. */
static bool recall(pickle *p, unsigned what)
{
    if (p->memo[what] == 0)
        return true;
    put(p, BINGET);
    put(p, (unsigned)p->memo[what] - 1);
    return false;
}

static void keep(pickle *p, unsigned what)
{
    put(p, BINPUT);
    put(p, p->kept);
    p->memo[what] = (int16_t)++p->kept;
}

static void put_global(pickle *p, unsigned what, const char *module_and_name)
{
    if (!recall(p, what))
        return;
    put(p, GLOBAL);
    put_bytes(p, module_and_name, strlen(module_and_name));
    keep(p, what);
}

static void put_known_text(pickle *p, unsigned what, const char *text)
{
    if (!recall(p, what))
        return;
    put_text(p, text);
    keep(p, what);
}

/* ---- tensors ---- */

/* torch counts pairs of 4-bit floats, along the last dimension. */
static uint64_t dimension(const pst_tensor *tensor, uint32_t d)
{
    return tensor->dtype == PST_F4 && d + 1 == tensor->rank ? tensor->shape[d] / 2 : tensor->shape[d];
}

static void put_tuple(pickle *p, const uint64_t *values, uint32_t count)
{
    if (count == 0) {
        put(p, EMPTY_TUPLE);
        return;
    }
    if (count > 3)
        put(p, MARK);
    for (uint32_t i = 0; i < count; i++)
        put_integer(p, values[i]);
    put(p, count > 3 ? TUPLE : TUPLE1 + count - 1);
}

static void put_storage(pickle *p, const pst_tensor *tensor, uint32_t number)
{
    const torch_type *type = &types[tensor->dtype];
    char key[16];
    snprintf(key, sizeof key, "%" PRIu32, number);
    put(p, MARK);
    put_known_text(p, KEEP_STORAGE, "storage");
    if (type->storage != NULL)
        put_global(p, KEEP_TYPES + tensor->dtype, type->storage);
    else
        put_global(p, KEEP_UNTYPED, "torch.storage\nUntypedStorage\n");
    put_text(p, key);
    put_known_text(p, KEEP_CPU, "cpu");
    put_integer(p, type->storage != NULL ? tensor->bytes / (pst_dtype_bits(tensor->dtype) / 8) : tensor->bytes);
    put(p, TUPLE);
    put(p, BINPERSID);
}

static void put_tensor(pickle *p, const pst_tensor *tensor, uint32_t storage)
{
    uint64_t shape[PST_MAX_RANK], strides[PST_MAX_RANK], stride = 1;
    for (uint32_t d = tensor->rank; d-- > 0;) {
        shape[d] = dimension(tensor, d);
        strides[d] = stride;
        stride *= shape[d] > 0 ? shape[d] : 1; /* as torch has it; checked before */
    }
    const torch_type *type = &types[tensor->dtype];
    put_text(p, tensor->name);
    if (type->dtype != NULL)
        put_global(p, KEEP_V3, "torch._utils\n_rebuild_tensor_v3\n");
    else
        put_global(p, KEEP_V2, "torch._utils\n_rebuild_tensor_v2\n");
    put(p, MARK);
    put_storage(p, tensor, storage);
    put_integer(p, 0); /* begins the storage */
    put_tuple(p, shape, tensor->rank);
    put_tuple(p, strides, tensor->rank);
    put(p, NEWFALSE); /* requires_grad */
    put_global(p, KEEP_ORDERED_DICT, "collections\nOrderedDict\n");
    put(p, EMPTY_TUPLE);
    put(p, REDUCE); /* no hooks */
    if (type->dtype != NULL)
        put_global(p, KEEP_TYPES + tensor->dtype, type->dtype);
    put(p, TUPLE);
    put(p, REDUCE);
}

static void put_dict(pickle *p, const pst_tensor *tensors, size_t count, const uint32_t *storages)
{
    put(p, PROTO);
    put(p, 2);
    put(p, EMPTY_DICT);
    for (size_t i = 0; i < count; i++) {
        if (i % BATCH == 0)
            put(p, MARK);
        put_tensor(p, &tensors[i], storages[i]);
        if (i % BATCH == BATCH - 1 || i + 1 == count)
            put(p, SETITEMS);
    }
    put(p, STOP);
}

/* Sizes and strides must fit the 64 bits with sign that torch keeps them in, also where another dimension is 0. */
static int check(const pst_tensor *tensor, pst_error *err)
{
    char quoted[PST_QUOTE_BYTES];
    const torch_type *type = &types[tensor->dtype];
    if (type->storage == NULL && type->dtype == NULL)
        return pst_fail(err, PST_E_UNSUPPORTED, NULL, "tensor \"%s\" is of type %s, which torch does not have",
                        pst_quote(tensor->name, quoted), pst_dtype_name(tensor->dtype));
    if (tensor->dtype == PST_F4 && (tensor->rank == 0 || tensor->shape[tensor->rank - 1] % 2 != 0))
        return pst_fail(err, PST_E_UNSUPPORTED, NULL,
                        "tensor \"%s\" is of type F4, of which torch holds pairs, but its last dimension is odd",
                        pst_quote(tensor->name, quoted));
    uint64_t stride = 1;
    bool fits = true;
    for (uint32_t d = tensor->rank; d-- > 0;) {
        uint64_t size = dimension(tensor, d);
        fits = fits && size <= INT64_MAX && !__builtin_mul_overflow(stride, size > 0 ? size : 1, &stride) &&
               stride <= INT64_MAX;
    }
    return fits ? 0
                : pst_fail(err, PST_E_UNSUPPORTED, NULL, "tensor \"%s\" has a shape that torch cannot hold",
                           pst_quote(tensor->name, quoted));
}

int pst_pickle_tensors(const pst_tensor *tensors, size_t count, const uint32_t *storages, void **out, size_t *out_bytes,
                       pst_error *err)
{
    for (size_t i = 0; i < count; i++)
        PST_TRY(check(&tensors[i], err));
    pickle counted = {0}, written = {0};
    put_dict(&counted, tensors, count, storages);
    written.out = pst_heap_alloc(counted.bytes);
    if (written.out == NULL)
        return pst_fail_memory(err, "a pickle", counted.bytes);
    put_dict(&written, tensors, count, storages);
    *out = written.out;
    *out_bytes = written.bytes;
    return 0;
}
