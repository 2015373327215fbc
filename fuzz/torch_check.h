/* SPDX-License-Identifier: Apache-2.0 */
/* What holds of every file of torch.save that was accepted. Ends the process where it does not. */
#ifndef FUZZ_TORCH_CHECK_H
#define FUZZ_TORCH_CHECK_H

#include <stdlib.h>
#include <string.h>

#include "store/safetensors.h"
#include "store/torch_file.h"

static inline void torch_demand(int condition)
{
    if (!condition)
        abort();
}

static inline void torch_check_tensor(const pst_torch_file *file, const pst_torch_tensor *tensor)
{
    torch_demand(tensor->rank <= PST_MAX_RANK && tensor->storage < file->storage_count && tensor->name != NULL);
    uint64_t bytes, last = 0, width = pst_dtype_bits(tensor->dtype);
    torch_demand(pst_tensor_shape_bytes(tensor->dtype, tensor->shape, tensor->rank, &bytes) == 0);
    torch_demand(bytes == tensor->bytes && width > 0);
    for (uint32_t i = 0; i < tensor->rank; i++) {
        torch_demand(tensor->strides[i] >= 0);
        if (bytes > 0)
            last += (tensor->shape[i] - 1) * (uint64_t)tensor->strides[i];
    }
    uint64_t end = tensor->begin + ((last + 1) * width + 7) / 8;
    torch_demand(bytes == 0 || end <= file->storages[tensor->storage].bytes);
    torch_demand(!tensor->contiguous || bytes == 0 || end - tensor->begin == bytes);
}

/* Parents come before children where they are met first, so a node's first parent has a lower number; without cycles the
 * longest way down from each node ends, which is tried by counting edges that are left (Kahn's algorithm). */
static inline void torch_check_tree(const pst_torch_file *file)
{
    size_t count = file->value_count, tensors = 0, done = 0;
    torch_demand(count > 0);
    uint32_t *parents = calloc(count, sizeof *parents), *ready = calloc(count, sizeof *ready);
    torch_demand(parents != NULL && ready != NULL);
    for (size_t i = 0; i < count; i++) {
        const pst_ckpt_value *value = &file->values[i];
        torch_demand(value->attributes < count);
        parents[value->attributes] += value->attributes != 0;
        for (size_t j = 0; j < value->child_count; j++) {
            torch_demand(value->children[j] < count);
            parents[value->children[j]]++;
        }
        torch_demand(value->text == NULL || value->text[value->text_bytes] == '\0');
        torch_demand(value->kind != PST_CKPT_DICT || value->child_count % 2 == 0);
        if (value->kind == PST_CKPT_TENSOR)
            torch_demand(value->integer == (int64_t)tensors++);
    }
    torch_demand(tensors == file->tensor_count && parents[0] == 0);
    size_t found = 1; /* node 0 */
    for (size_t i = 1; i < count; i++)
        torch_demand(parents[i] > 0);
    while (done < found) {
        const pst_ckpt_value *value = &file->values[ready[done++]];
        for (size_t j = 0; j < value->child_count; j++)
            if (--parents[value->children[j]] == 0)
                ready[found++] = value->children[j];
        if (value->attributes != 0 && --parents[value->attributes] == 0)
            ready[found++] = value->attributes;
    }
    torch_demand(done == count);
    free(parents);
    free(ready);
    for (size_t i = 0; i < tensors; i++)
        torch_check_tensor(file, &file->tensors[i]);
}

#endif
