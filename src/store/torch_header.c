/* SPDX-License-Identifier: Apache-2.0 */
/* The strings are copied, so that the walk's tables can go. */
#include "store/torch_header.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "store/torch_file.h"

static int by_offset(const void *left, const void *right)
{
    const pst_tensor *a = left, *b = right;
    if (a->offset != b->offset)
        return a->offset < b->offset ? -1 : 1;
    return strcmp(a->name, b->name);
}

/* Whether the elements lie one after the other in the order of rows. Strides of dimensions that have one element do not
 * count: torch keeps whatever a view made of them. */
static bool is_dense(const pst_torch_tensor *tensor)
{
    uint64_t wanted = 1; /* no overflow: it comes to the tensor's elements at most */
    for (uint32_t i = tensor->rank; i > 0; i--) {
        if (tensor->shape[i - 1] == 1)
            continue;
        if ((uint64_t)tensor->strides[i - 1] != wanted)
            return false;
        wanted *= tensor->shape[i - 1];
    }
    return true;
}

static int add(const pst_torch_file *file, const pst_torch_tensor *from, const char *name, const char *path,
               char **text, pst_safetensors *out, pst_error *err)
{
    char quoted[PST_QUOTE_BYTES];
    if (from->bytes == 0)
        return 0;
    if (!is_dense(from))
        return pst_fail(err, PST_E_UNSUPPORTED, path,
                        "tensor %s is a view whose rows do not lie one after the other, which is not supported",
                        pst_quote(name, quoted));
    const pst_zip_record *record = &file->records[file->storages[from->storage].record];
    size_t length = strlen(name) + 1;
    memcpy(*text, name, length);
    pst_tensor *to = &out->tensors[out->count++];
    *to = (pst_tensor){.name = *text,
                       .dtype = from->dtype,
                       .rank = from->rank,
                       .offset = record->offset + from->begin,
                       .bytes = from->bytes};
    memcpy(to->shape, from->shape, sizeof to->shape);
    *text += length;
    return 0;
}

/* The next key of the whole, from child *at on, that stands for a tensor which has its name from another one: one object under
 * several keys is one tensor of the file. NULL: there is none. */
static const char *next_alias(const pst_torch_file *file, size_t *at, const pst_torch_tensor **tensor)
{
    const pst_ckpt_value *whole = file->values;
    if (file->value_count == 0 || whole->kind != PST_CKPT_DICT)
        return NULL;
    while (*at + 1 < whole->child_count) {
        const pst_ckpt_value *key = &file->values[whole->children[*at]],
                             *value = &file->values[whole->children[*at + 1]];
        *at += 2;
        if (key->kind != PST_CKPT_TEXT || value->kind != PST_CKPT_TENSOR || strlen(key->text) != key->text_bytes)
            continue;
        *tensor = &file->tensors[value->integer];
        if (strcmp((*tensor)->name, key->text) != 0)
            return key->text;
    }
    return NULL;
}

/* Views that say to be the conjugate or the negative of what is stored. */
static int refuse_lazy(const pst_torch_file *file, const char *path, pst_error *err)
{
    char quoted[PST_QUOTE_BYTES];
    for (size_t i = 0; i < file->value_count; i++) {
        const pst_ckpt_value *value = &file->values[i];
        if (value->kind == PST_CKPT_TENSOR && (value->conjugate || value->negative))
            return pst_fail(err, PST_E_UNSUPPORTED, path,
                            "tensor %s is a view of another one's conjugate or negative, which is not supported",
                            pst_quote(file->tensors[value->integer].name, quoted));
    }
    return 0;
}

/* Bytes that tensors have, those in one place once. */
static uint64_t count_bytes(const pst_safetensors *header)
{
    uint64_t sum = 0, end = 0;
    for (size_t i = 0; i < header->count; i++) {
        const pst_tensor *t = &header->tensors[i];
        uint64_t begin = t->offset > end ? t->offset : end;
        if (t->offset + t->bytes > begin) {
            sum += t->offset + t->bytes - begin;
            end = t->offset + t->bytes;
        }
    }
    return sum;
}

static int make_header(const pst_torch_file *file, const char *path, pst_safetensors *out, pst_error *err)
{
    size_t text_bytes = 0, count = file->tensor_count;
    const pst_torch_tensor *tensor;
    const char *name;
    PST_TRY(refuse_lazy(file, path, err));
    for (size_t i = 0; i < file->tensor_count; i++)
        text_bytes += strlen(file->tensors[i].name) + 1;
    for (size_t at = 0; (name = next_alias(file, &at, &tensor)) != NULL; count++)
        text_bytes += strlen(name) + 1;
    out->tensors = pst_heap_calloc(count, sizeof *out->tensors);
    out->text = pst_heap_alloc(text_bytes);
    if (out->tensors == NULL || out->text == NULL)
        return pst_fail_memory(err, "a table of tensors", count * sizeof *out->tensors + text_bytes);
    char *text = out->text;
    for (size_t i = 0; i < file->tensor_count; i++)
        PST_TRY(add(file, &file->tensors[i], file->tensors[i].name, path, &text, out, err));
    for (size_t at = 0; (name = next_alias(file, &at, &tensor)) != NULL;)
        PST_TRY(add(file, tensor, name, path, &text, out, err));
    if (out->count > 1)
        qsort(out->tensors, out->count, sizeof *out->tensors, by_offset);
    out->data_begin = out->count > 0 ? out->tensors[0].offset : file->file_bytes;
    out->data_bytes = count_bytes(out);
    return 0;
}

int pst_torch_header_read(const char *path, pst_safetensors *out, pst_error *err)
{
    pst_torch_file file;
    pst_safetensors header = {0};
    PST_TRY(pst_torch_file_read(path, &file, err));
    int status = make_header(&file, path, &header, err);
    pst_torch_file_free(&file);
    if (status < 0) {
        pst_safetensors_free(&header);
        return status;
    }
    *out = header;
    return 0;
}
