/* SPDX-License-Identifier: Apache-2.0 */
#include "support/torch_json.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "os/file.h"

typedef struct dump {
    const char *path;
    const pst_torch_file *file;
    int *seen; /* of each node: its number among those with an identity, from 1 on */
    int count;
} dump;

static json_t *hex(const void *data, size_t bytes)
{
    char *text = malloc(bytes * 2 + 1);
    for (size_t i = 0; i < bytes; i++)
        snprintf(text + 2 * i, 3, "%02x", ((const unsigned char *)data)[i]);
    text[bytes * 2] = '\0';
    json_t *json = json_string(text);
    free(text);
    return json;
}

/* Bits of a float64, big-endian. */
static json_t *number(double value)
{
    uint64_t bits;
    char text[20];
    memcpy(&bits, &value, sizeof bits);
    snprintf(text, sizeof text, "%016" PRIx64, bits);
    return json_string(text);
}

static json_t *value_of(dump *d, uint32_t node);

static json_t *integers(const uint64_t *values, uint32_t count)
{
    json_t *array = json_array();
    for (uint32_t i = 0; i < count; i++)
        json_array_append_new(array, json_integer((json_int_t)values[i]));
    return array;
}

/* Elements in row-major order; of types of half a byte pairs of them. */
static json_t *elements(const dump *d, const pst_torch_tensor *given)
{
    pst_torch_tensor tensor = *given;
    const pst_torch_storage *storage = &d->file->storages[tensor.storage];
    const pst_zip_record *record = &d->file->records[storage->record];
    unsigned char *data = malloc(storage->bytes + 1), *out = malloc(tensor.bytes + 1);
    uint64_t index[PST_MAX_RANK] = {0}, width = pst_dtype_bits(tensor.dtype) / 8;
    json_t *json = NULL;
    if (storage->bytes > 0 && pst_file_read_at(d->path, record->offset, data, storage->bytes, NULL) < 0)
        goto done;
    if (width == 0) {
        width = 1;
        tensor.shape[tensor.rank - 1] /= 2;
        for (uint32_t i = 0; i + 1 < tensor.rank; i++)
            tensor.strides[i] /= 2;
    }
    for (uint64_t i = 0; i < tensor.bytes / width; i++) {
        uint64_t at = tensor.begin;
        for (uint32_t r = 0; r < tensor.rank; r++)
            at += index[r] * (uint64_t)tensor.strides[r] * width;
        memcpy(out + i * width, data + at, width);
        for (uint32_t r = tensor.rank; r > 0 && ++index[r - 1] == tensor.shape[r - 1]; r--)
            index[r - 1] = 0;
    }
    json = hex(out, tensor.bytes);
done:
    free(data);
    free(out);
    return json;
}

static json_t *tensor_of(dump *d, const pst_ckpt_value *value)
{
    const pst_torch_tensor *tensor = &d->file->tensors[value->integer];
    uint64_t strides[PST_MAX_RANK];
    for (uint32_t i = 0; i < tensor->rank; i++)
        strides[i] = (uint64_t)tensor->strides[i];
    json_t *json = json_pack(
        "{s:s, s:s, s:o, s:o, s:I, s:I, s:I, s:b, s:b, s:b, s:b}", "name", tensor->name, "dtype",
        pst_dtype_name(tensor->dtype), "shape", integers(tensor->shape, tensor->rank), "strides",
        integers(strides, tensor->rank), "begin", (json_int_t)tensor->begin, "storage", (json_int_t)tensor->storage,
        "storage_bytes", (json_int_t)d->file->storages[tensor->storage].bytes, "parameter", value->text != NULL,
        "requires_grad", value->requires_grad, "conjugate", value->conjugate, "negative", value->negative);
    json_object_set_new(json, "contiguous", json_boolean(tensor->contiguous));
    json_object_set_new(json, "data", elements(d, tensor));
    if (value->attributes != 0)
        json_object_set_new(json, "attributes", value_of(d, value->attributes));
    return json_pack("[s, o]", "tensor", json);
}

/* Decimal digits of a number of any length: repeated division by ten. */
static json_t *wide_integer(const pst_ckpt_value *value)
{
    size_t bytes = value->text_bytes, used = 0;
    unsigned char *magnitude = malloc(bytes);
    char *digits = malloc(bytes * 3 + 3);
    memcpy(magnitude, value->text, bytes);
    int negative = magnitude[bytes - 1] & 0x80;
    unsigned carry = 1;
    for (size_t i = 0; negative && i < bytes; i++) {
        carry += (unsigned char)~magnitude[i];
        magnitude[i] = (unsigned char)carry;
        carry >>= 8;
    }
    for (size_t top = bytes; top > 0;) {
        unsigned rest = 0;
        for (size_t i = top; i > 0; i--) {
            rest = rest << 8 | magnitude[i - 1];
            magnitude[i - 1] = (unsigned char)(rest / 10);
            rest %= 10;
        }
        digits[used++] = (char)('0' + rest);
        while (top > 0 && magnitude[top - 1] == 0)
            top--;
    }
    if (negative)
        digits[used++] = '-';
    for (size_t i = 0; i < used / 2; i++) {
        char swapped = digits[i];
        digits[i] = digits[used - 1 - i];
        digits[used - 1 - i] = swapped;
    }
    digits[used] = '\0';
    json_t *json = json_pack("[s, s]", "int", digits);
    free(magnitude);
    free(digits);
    return json;
}

static json_t *container_of(dump *d, const pst_ckpt_value *value, const char *name)
{
    json_t *items = json_array();
    for (size_t i = 0; i < value->child_count; i++)
        json_array_append_new(items, value_of(d, value->children[i]));
    json_t *json = json_pack("[s, o]", value->text != NULL ? value->text : name, items);
    if (value->attributes != 0)
        json_array_append_new(json, value_of(d, value->attributes));
    return json;
}

static json_t *value_of(dump *d, uint32_t node)
{
    static const char *const containers[] = {
        [PST_CKPT_LIST] = "list", [PST_CKPT_TUPLE] = "tuple", [PST_CKPT_SET] = "set", [PST_CKPT_DICT] = "dict"};
    const pst_ckpt_value *value = &d->file->values[node];
    char digits[32];
    bool frozen = value->kind == PST_CKPT_SET && value->text != NULL;
    if (value->kind == PST_CKPT_LIST || (value->kind == PST_CKPT_SET && !frozen) || value->kind == PST_CKPT_DICT ||
        value->kind == PST_CKPT_BYTEARRAY || value->kind == PST_CKPT_TENSOR) {
        if (d->seen[node] != 0)
            return json_pack("[s, i]", "same", d->seen[node] - 1);
        d->seen[node] = ++d->count;
    }
    switch (value->kind) {
    case PST_CKPT_NONE: return json_pack("[s]", "none");
    case PST_CKPT_BOOL: return json_pack("[s, b]", "bool", (int)value->integer);
    case PST_CKPT_INT:
        if (value->text != NULL)
            return wide_integer(value);
        snprintf(digits, sizeof digits, "%" PRId64, value->integer);
        return json_pack("[s, s]", "int", digits);
    case PST_CKPT_FLOAT: return json_pack("[s, o]", "float", number(value->number));
    case PST_CKPT_COMPLEX: return json_pack("[s, o, o]", "complex", number(value->number), number(value->imaginary));
    case PST_CKPT_TEXT: return json_pack("[s, o]", "text", hex(value->text, value->text_bytes));
    case PST_CKPT_BYTES: return json_pack("[s, o]", "bytes", hex(value->text, value->text_bytes));
    case PST_CKPT_BYTEARRAY: return json_pack("[s, o]", "bytearray", hex(value->text, value->text_bytes));
    case PST_CKPT_LIST:
    case PST_CKPT_TUPLE:
    case PST_CKPT_SET:
    case PST_CKPT_DICT: return container_of(d, value, containers[value->kind]);
    case PST_CKPT_TENSOR: return tensor_of(d, value);
    case PST_CKPT_NAMED: return container_of(d, value, "");
    }
    return NULL;
}

json_t *torch_json(const char *path, const pst_torch_file *file)
{
    dump d = {.path = path, .file = file, .seen = calloc(file->value_count, sizeof(int))};
    json_t *json = value_of(&d, 0);
    free(d.seen);
    return json;
}
