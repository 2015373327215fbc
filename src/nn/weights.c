/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Finding weights; see weights.h. A matrix's tensors say whether it is quantized (in a checkpoint whose config.json tells how):
 * a tensor of U8 where floats were is GROUPED, one of F8_E4M3 has its scales beside it, and a "qweight" instead of a "weight"
 * is GPTQ's or AWQ's. Everything else is plain.
 */
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
                    "tensor %s is of type %s; F32, F16 and BF16 are supported%s", tensor->name,
                    pst_dtype_name(tensor->dtype),
                    tensor->dtype == PST_F8_E4M3 || tensor->dtype == PST_U8
                        ? ", and what a quantization_config in config.json tells of"
                        : "");
}

static int check_shape(const pst_store *store, const pst_tensor *tensor, uint64_t rows, uint64_t columns,
                       pst_error *err)
{
    if (tensor->rank == 2 && tensor->shape[0] == rows && tensor->shape[1] == columns)
        return 0;
    char shape[128];
    return pst_fail(err, PST_E_FORMAT, pst_store_file_path(store, tensor->file),
                    "tensor %s has shape %s where config.json asks for [%llu, %llu]", tensor->name,
                    shape_text(tensor, shape), (unsigned long long)rows, (unsigned long long)columns);
}

/* What is looked for, and where. */
typedef struct search {
    const pst_transformer *t;
    const pst_store *store;
    const char *name; /* without suffix */
    uint64_t outputs, inputs;
    bool transposed;
    pst_error *err;
} search;

static int find_plain(const search *s, const pst_tensor *tensor, pst_found_weight *out)
{
    uint64_t rows = s->transposed ? s->inputs : s->outputs, columns = s->transposed ? s->outputs : s->inputs;
    PST_TRY(check_type(s->store, tensor, s->err));
    PST_TRY(check_shape(s->store, tensor, rows, columns, s->err));
    out->tensor = tensor;
    out->rows = rows;
    out->format.type = tensor->dtype;
    out->format.transposed = s->transposed;
    out->digits = tensor->dtype;
    return 0;
}

static int find_grouped(const search *s, const pst_tensor *tensor, pst_found_weight *out)
{
    uint64_t rows = s->transposed ? s->inputs : s->outputs, columns = s->transposed ? s->outputs : s->inputs;
    out->format = s->t->quantized;
    out->format.transposed = s->transposed;
    PST_TRY(check_shape(s->store, tensor, rows, pst_weight_row_bytes(&out->format, columns), s->err));
    out->tensor = tensor;
    out->rows = rows;
    out->digits = s->t->quantized_digits;
    return 0;
}

/* The scales of a matrix of F8_E4M3: one for all, one for each row, or one for each block. */
static int check_fp8_scales(const search *s, const pst_tensor *scales, pst_weight_format *format)
{
    char shape[128];
    const char *path = pst_store_file_path(s->store, scales->file);
    if (scales->dtype != PST_F32 && scales->dtype != PST_BF16)
        return pst_fail(s->err, PST_E_UNSUPPORTED, path, "scales %s are of type %s; F32 and BF16 are supported",
                        scales->name, pst_dtype_name(scales->dtype));
    format->scale_type = scales->dtype;
    uint64_t rows = scales->rank > 0 ? scales->shape[0] : 1, columns = scales->rank > 1 ? scales->shape[1] : 1;
    bool is_one = scales->rank <= 2 && rows == 1 && columns == 1;
    bool is_by_row = (scales->rank == 1 || scales->rank == 2) && rows == s->outputs && columns == 1;
    if (s->t->quantized.block_rows > 0) {
        format->block_rows = s->t->quantized.block_rows;
        format->block_columns = s->t->quantized.block_columns;
        uint64_t block_rows = (s->outputs + format->block_rows - 1) / format->block_rows;
        uint64_t block_columns = (s->inputs + format->block_columns - 1) / format->block_columns;
        if (scales->rank == 2 && rows == block_rows && columns == block_columns)
            return 0;
        return pst_fail(s->err, PST_E_FORMAT, path,
                        "scales %s have shape %s where blocks of %u x %u ask for [%llu, %llu]", scales->name,
                        shape_text(scales, shape), format->block_rows, format->block_columns,
                        (unsigned long long)block_rows, (unsigned long long)block_columns);
    }
    if (!is_one && !is_by_row)
        return pst_fail(s->err, PST_E_FORMAT, path,
                        "scales %s have shape %s; there must be one, or one for each of %llu rows", scales->name,
                        shape_text(scales, shape), (unsigned long long)s->outputs);
    format->block_rows = is_one ? (uint32_t)s->outputs : 1;
    format->block_columns = (uint32_t)s->inputs;
    return 0;
}

static int find_fp8(const search *s, const pst_tensor *tensor, pst_found_weight *out)
{
    char name[340];
    if (s->transposed)
        return pst_fail(s->err, PST_E_UNSUPPORTED, pst_store_file_path(s->store, tensor->file),
                        "tensor %s is of type F8_E4M3 and has a row for each input, which is not supported",
                        tensor->name);
    PST_TRY(check_shape(s->store, tensor, s->outputs, s->inputs, s->err));
    if (s->outputs > UINT32_MAX || s->inputs > UINT32_MAX)
        return pst_fail(s->err, PST_E_UNSUPPORTED, pst_store_file_path(s->store, tensor->file),
                        "tensor %s is too large", tensor->name);
    out->format = s->t->quantized;
    snprintf(name, sizeof name, "%s_scale", tensor->name);
    const pst_tensor *scales = pst_store_find(s->store, name);
    snprintf(name, sizeof name, "%s_scale_inv", tensor->name);
    if (scales == NULL)
        PST_TRY(find(s->store, name, &scales, s->err));
    PST_TRY(check_fp8_scales(s, scales, &out->format));
    out->tensor = tensor;
    out->rows = s->outputs;
    out->aux[0] = scales;
    out->digits = s->t->quantized_digits;
    return 0;
}

/* One of the tensors of a packed matrix, of 32-bit integers unless it is the scales. */
static int find_part(const search *s, const char *suffix, uint64_t rows, uint64_t columns, const pst_tensor **out)
{
    char name[340];
    snprintf(name, sizeof name, "%s.%s", s->name, suffix);
    PST_TRY(find(s->store, name, out, s->err));
    return check_shape(s->store, *out, rows, columns, s->err);
}

static int check_integers(const search *s, const pst_tensor *tensor)
{
    if (tensor->dtype == PST_I32)
        return 0;
    return pst_fail(s->err, PST_E_FORMAT, pst_store_file_path(s->store, tensor->file),
                    "tensor %s is of type %s where I32 belongs", tensor->name, pst_dtype_name(tensor->dtype));
}

/* Each input's group, where the file says it; its values are the kernels' to check. */
static int find_index(const search *s, pst_found_weight *out)
{
    char name[340], shape[128];
    snprintf(name, sizeof name, "%s.g_idx", s->name);
    const pst_tensor *index = pst_store_find(s->store, name);
    if (index == NULL)
        return 0;
    PST_TRY(check_integers(s, index));
    if (index->rank != 1 || index->shape[0] != s->inputs)
        return pst_fail(s->err, PST_E_FORMAT, pst_store_file_path(s->store, index->file),
                        "tensor %s has shape %s where config.json asks for [%llu]", index->name,
                        shape_text(index, shape), (unsigned long long)s->inputs);
    out->aux[2] = index;
    return 0;
}

/* GPTQ and AWQ: qweight, scales, qzeros. */
static int find_packed(const search *s, pst_found_weight *out)
{
    pst_weight_format *format = &out->format;
    *format = s->t->quantized;
    bool is_gptq = format->layout == PST_WEIGHT_GPTQ;
    uint64_t codes = 32 / format->bits;
    if (s->outputs % codes != 0 || (is_gptq && s->inputs % codes != 0) || s->inputs > UINT32_MAX)
        return pst_fail(s->err, PST_E_FORMAT, pst_store_file_path(s->store, 0),
                        "%s.qweight: a matrix of %llu outputs and %llu inputs does not fill words of %llu codes",
                        s->name, (unsigned long long)s->outputs, (unsigned long long)s->inputs,
                        (unsigned long long)codes);
    if (format->group == 0 || format->group > s->inputs)
        format->group = (uint32_t)s->inputs;
    uint64_t groups = (s->inputs + format->group - 1) / format->group;
    out->rows = is_gptq ? s->inputs / codes : s->inputs;
    PST_TRY(find_part(s, "qweight", out->rows, is_gptq ? s->outputs : s->outputs / codes, &out->tensor));
    PST_TRY(find_part(s, "scales", groups, s->outputs, &out->aux[0]));
    PST_TRY(find_part(s, "qzeros", groups, s->outputs / codes, &out->aux[1]));
    PST_TRY(check_integers(s, out->tensor));
    PST_TRY(check_integers(s, out->aux[1]));
    const pst_tensor *scales = out->aux[0];
    if (scales->dtype != PST_F16 && scales->dtype != PST_BF16)
        return pst_fail(s->err, PST_E_UNSUPPORTED, pst_store_file_path(s->store, scales->file),
                        "scales %s are of type %s; F16 and BF16 are supported", scales->name,
                        pst_dtype_name(scales->dtype));
    format->scale_type = scales->dtype;
    out->digits = scales->dtype;
    return is_gptq ? find_index(s, out) : 0;
}

int pst_weights_find(const pst_transformer *transformer, const pst_store *store, const char *name, const char *suffix,
                     uint64_t outputs, uint64_t inputs, bool transposed, pst_found_weight *out, pst_error *err)
{
    const search s = {transformer, store, name, outputs, inputs, transposed, err};
    pst_weight_layout layout = transformer->quantized.layout;
    bool is_packed = layout == PST_WEIGHT_GPTQ || layout == PST_WEIGHT_AWQ;
    pst_found_weight found = {0};
    char whole[300];
    snprintf(whole, sizeof whole, "%s.qweight", name);
    if (is_packed && pst_store_find(store, whole) != NULL) {
        PST_TRY(find_packed(&s, &found));
        *out = found;
        return 0;
    }
    const pst_tensor *tensor;
    snprintf(whole, sizeof whole, "%s%s", name, suffix);
    PST_TRY(find(store, whole, &tensor, err));
    if (layout == PST_WEIGHT_GROUPED && tensor->dtype == PST_U8)
        PST_TRY(find_grouped(&s, tensor, &found));
    else if (layout == PST_WEIGHT_FP8_BLOCKS && tensor->dtype == PST_F8_E4M3)
        PST_TRY(find_fp8(&s, tensor, &found));
    else
        PST_TRY(find_plain(&s, tensor, &found));
    *out = found;
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
