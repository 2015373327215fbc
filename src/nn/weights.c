/* SPDX-License-Identifier: Apache-2.0 */
/* Finding weights; see weights.h. */
#include "nn/weights.h"

#include <stdio.h>

#include "base/error.h"

static bool is_plain(pst_dtype dtype)
{
    return dtype == PST_F32 || dtype == PST_F16 || dtype == PST_BF16;
}

/* "[4, 8]" into text. */
static const char *shape_text(const pst_tensor *tensor, char text[128])
{
    size_t used = (size_t)snprintf(text, 128, "[");
    for (uint32_t i = 0; i < tensor->rank && used < 128 - 26; i++)
        used +=
            (size_t)snprintf(text + used, 128 - used, "%s%llu", i ? ", " : "", (unsigned long long)tensor->shape[i]);
    snprintf(text + used, 128 - used, "]");
    return text;
}

static int find(const pst_store *store, const char *name, const pst_tensor **out, pst_error *err)
{
    *out = pst_store_find(store, name);
    if (*out == NULL)
        return pst_fail(err, PST_E_FORMAT, pst_store_file_path(store, 0), "tensor %s is missing", name);
    return 0;
}

static int check_type(const pst_store *store, const pst_tensor *tensor, pst_error *err)
{
    if (is_plain(tensor->dtype))
        return 0;
    return pst_fail(err, PST_E_UNSUPPORTED, pst_store_file_path(store, tensor->file),
                    "tensor %s is of type %s; F32, F16 and BF16 are supported", tensor->name,
                    pst_dtype_name(tensor->dtype));
}

int pst_weights_find(const pst_transformer *transformer, const pst_store *store, const char *name, const char *suffix,
                     uint64_t outputs, uint64_t inputs, bool transposed, pst_found_weight *out, pst_error *err)
{
    (void)transformer;
    char whole[300], shape[128];
    const pst_tensor *tensor;
    snprintf(whole, sizeof whole, "%s%s", name, suffix);
    PST_TRY(find(store, whole, &tensor, err));
    uint64_t rows = transposed ? inputs : outputs, columns = transposed ? outputs : inputs;
    if (tensor->rank != 2 || tensor->shape[0] != rows || tensor->shape[1] != columns)
        return pst_fail(err, PST_E_FORMAT, pst_store_file_path(store, tensor->file),
                        "tensor %s has shape %s where config.json asks for [%llu, %llu]", whole,
                        shape_text(tensor, shape), (unsigned long long)rows, (unsigned long long)columns);
    PST_TRY(check_type(store, tensor, err));
    *out = (pst_found_weight){.tensor = tensor,
                              .rows = rows,
                              .format = {.layout = PST_WEIGHT_PLAIN, .type = tensor->dtype, .transposed = transposed},
                              .digits = tensor->dtype};
    return 0;
}

int pst_weights_find_vector(const pst_store *store, const char *name, uint64_t count, const pst_tensor **out,
                            pst_error *err)
{
    char shape[128];
    const pst_tensor *tensor;
    PST_TRY(find(store, name, &tensor, err));
    if (tensor->rank != 1 || tensor->shape[0] != count)
        return pst_fail(err, PST_E_FORMAT, pst_store_file_path(store, tensor->file),
                        "tensor %s has shape %s where config.json asks for [%llu]", name, shape_text(tensor, shape),
                        (unsigned long long)count);
    PST_TRY(check_type(store, tensor, err));
    *out = tensor;
    return 0;
}
