/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading quantization_config. The keys are those that the packages write which make such checkpoints: DeepSeek's FP8,
 * AutoGPTQ and GPTQModel, AutoAWQ, compressed-tensors (its "float-quantized" format), and `convert` of this project
 * (docs/quantized.md).
 */
#include "nn/quantization.h"

#include <string.h>
#include <strings.h>

#include "base/error.h"
#include "store/safetensors.h"

typedef int read_method(const pst_config_reader *in, pst_transformer *out);

static int refuse(const pst_config_reader *in, const char *key, const char *value, const char *supported)
{
    char quoted[PST_QUOTE_BYTES];
    return pst_fail(in->err, PST_E_UNSUPPORTED, in->path,
                    "quantized weights with \"%s\": \"%s\" are not supported (%s)", key, pst_quote(value, quoted),
                    supported);
}

/* bits: 4 or 8. */
static int read_bits(const pst_config_reader *in, const char *key, uint32_t *out)
{
    uint64_t bits = 0;
    PST_TRY(pst_json_u64(in->root, key, true, 1, 64, &bits, in->path, in->err));
    if (bits != 4 && bits != 8)
        return pst_fail(in->err, PST_E_UNSUPPORTED, in->path,
                        "weights quantized to %u bits are not supported (8 and 4 are)", (unsigned)bits);
    *out = (uint32_t)bits;
    return 0;
}

/* A number of elements that share a scale; -1: all inputs, which is 0 here. */
static int read_group(const pst_config_reader *in, pst_weight_format *format)
{
    const json_t *value = json_object_get(in->root, "group_size");
    if (json_is_integer(value) && json_integer_value(value) == -1) {
        format->group = 0;
        return 0;
    }
    return pst_config_u32(in, "group_size", 128, 1, PST_MAX_DIMENSION, &format->group);
}

static int read_penstock(const pst_config_reader *in, pst_transformer *out)
{
    pst_weight_format *format = &out->quantized;
    uint64_t version = 0;
    PST_TRY(pst_json_u64(in->root, "version", true, 0, UINT32_MAX, &version, in->path, in->err));
    if (version != PST_QUANTIZED_VERSION)
        return pst_fail(in->err, PST_E_UNSUPPORTED, in->path,
                        "weights quantized in version %u of the format are not supported (%d is)", (unsigned)version,
                        PST_QUANTIZED_VERSION);
    PST_TRY(read_bits(in, "bits", &format->bits));
    PST_TRY(pst_config_u32(in, "group_size", 0, 2, PST_QUANTIZED_MAX_GROUP, &format->group));
    if (format->group % 2 != 0)
        return pst_fail(in->err, PST_E_FORMAT, in->path, "\"group_size\" is %u; it must be even", format->group);
    PST_TRY(pst_json_bool(in->root, "symmetric", true, &format->symmetric, in->path, in->err));
    const char *type = "BF16";
    PST_TRY(pst_json_string(in->root, "source_dtype", false, &type, in->path, in->err));
    pst_dtype digits;
    if (pst_dtype_parse(type, &digits) < 0 || (digits != PST_F32 && digits != PST_F16 && digits != PST_BF16))
        return refuse(in, "source_dtype", type, "F32, F16 and BF16 are");
    out->quantized_digits = digits;
    format->layout = PST_WEIGHT_GROUPED;
    return 0;
}

static int read_fp8(const pst_config_reader *in, pst_transformer *out)
{
    const char *type = "e4m3";
    PST_TRY(pst_json_string(in->root, "fmt", false, &type, in->path, in->err));
    if (strcmp(type, "e4m3") != 0 && strcmp(type, "float8_e4m3fn") != 0)
        return refuse(in, "fmt", type, "\"e4m3\" is");
    json_t *size = NULL;
    PST_TRY(pst_json_array(in->root, "weight_block_size", false, &size, in->path, in->err));
    if (size != NULL) {
        const json_t *rows = json_array_get(size, 0), *columns = json_array_get(size, 1);
        json_int_t r = json_integer_value(rows), c = json_integer_value(columns);
        if (json_array_size(size) != 2 || r < 1 || c < 1 || r > PST_MAX_DIMENSION || c > PST_MAX_DIMENSION)
            return pst_fail(in->err, PST_E_FORMAT, in->path, "\"weight_block_size\" is not a pair of numbers above 0");
        out->quantized.block_rows = (uint32_t)r;
        out->quantized.block_columns = (uint32_t)c;
    }
    out->quantized.layout = PST_WEIGHT_FP8_BLOCKS;
    return 0;
}

static int read_gptq(const pst_config_reader *in, pst_transformer *out)
{
    pst_weight_format *format = &out->quantized;
    const char *spelling = "gptq", *pack = "int32";
    PST_TRY(pst_json_string(in->root, "checkpoint_format", false, &spelling, in->path, in->err));
    bool is_v2 = strcmp(spelling, "gptq_v2") == 0;
    if (!is_v2 && strcmp(spelling, "gptq") != 0)
        return refuse(in, "checkpoint_format", spelling, "\"gptq\" and \"gptq_v2\" are");
    PST_TRY(pst_json_string(in->root, "pack_dtype", false, &pack, in->path, in->err));
    if (strcmp(pack, "int32") != 0)
        return refuse(in, "pack_dtype", pack, "\"int32\" is");
    PST_TRY(read_bits(in, "bits", &format->bits));
    PST_TRY(read_group(in, format));
    format->zero_offset = !is_v2;
    format->transposed = true;
    format->layout = PST_WEIGHT_GPTQ;
    return 0;
}

static int read_awq(const pst_config_reader *in, pst_transformer *out)
{
    pst_weight_format *format = &out->quantized;
    const char *version = "gemm";
    bool zero_point = true;
    PST_TRY(pst_json_string(in->root, "version", false, &version, in->path, in->err));
    if (strcasecmp(version, "gemm") != 0)
        return refuse(in, "version", version, "\"gemm\" is");
    PST_TRY(pst_json_bool(in->root, "zero_point", false, &zero_point, in->path, in->err));
    if (!zero_point)
        return refuse(in, "zero_point", "false", "true is");
    PST_TRY(read_bits(in, json_object_get(in->root, "bits") ? "bits" : "w_bit", &format->bits));
    if (format->bits != 4)
        return pst_fail(in->err, PST_E_UNSUPPORTED, in->path, "AWQ weights of %u bits are not supported (4 are)",
                        format->bits);
    PST_TRY(read_group(in, format));
    format->transposed = true;
    format->layout = PST_WEIGHT_AWQ;
    return 0;
}

/* Every group of modules must have 8-bit float weights; their scales' shapes say the rest. */
static int check_group(const pst_config_reader *in, const json_t *group)
{
    json_t *weights = NULL;
    PST_TRY(pst_json_object(group, "weights", true, &weights, in->path, in->err));
    const char *type = "int", *strategy = "tensor";
    uint64_t bits = 8;
    PST_TRY(pst_json_string(weights, "type", false, &type, in->path, in->err));
    PST_TRY(pst_json_u64(weights, "num_bits", false, 1, 64, &bits, in->path, in->err));
    PST_TRY(pst_json_string(weights, "strategy", false, &strategy, in->path, in->err));
    if (strcmp(type, "float") != 0 || bits != 8)
        return refuse(in, "type", type, "8-bit \"float\" is");
    if (strcmp(strategy, "tensor") != 0 && strcmp(strategy, "channel") != 0 && strcmp(strategy, "block") != 0)
        return refuse(in, "strategy", strategy, "\"tensor\", \"channel\" and \"block\" are");
    json_t *block = NULL;
    PST_TRY(pst_json_array(weights, "block_structure", false, &block, in->path, in->err));
    return 0;
}

static int read_compressed(const pst_config_reader *in, pst_transformer *out)
{
    const char *format = "";
    PST_TRY(pst_json_string(in->root, "format", true, &format, in->path, in->err));
    if (strcmp(format, "float-quantized") != 0)
        return refuse(in, "format", format, "\"float-quantized\" is");
    json_t *groups = NULL, *group;
    PST_TRY(pst_json_object(in->root, "config_groups", true, &groups, in->path, in->err));
    const char *name;
    json_object_foreach(groups, name, group)
    {
        if (!json_is_object(group))
            return pst_fail(in->err, PST_E_FORMAT, in->path, "\"config_groups\" holds something that is no object");
        PST_TRY(check_group(in, group));
        const json_t *block = json_object_get(json_object_get(group, "weights"), "block_structure");
        if (json_is_array(block) && json_array_size(block) == 2) {
            json_int_t r = json_integer_value(json_array_get(block, 0)),
                       c = json_integer_value(json_array_get(block, 1));
            if (r < 1 || c < 1 || r > PST_MAX_DIMENSION || c > PST_MAX_DIMENSION)
                return pst_fail(in->err, PST_E_FORMAT, in->path,
                                "\"block_structure\" is not a pair of numbers above 0");
            out->quantized.block_rows = (uint32_t)r;
            out->quantized.block_columns = (uint32_t)c;
        }
    }
    out->quantized.layout = PST_WEIGHT_FP8_BLOCKS;
    return 0;
}

int pst_quantization_read(const pst_config_reader *in, pst_transformer *out)
{
    static const struct {
        const char *name;
        read_method *read;
    } methods[] = {{"penstock", read_penstock},
                   {"fp8", read_fp8},
                   {"gptq", read_gptq},
                   {"awq", read_awq},
                   {"compressed-tensors", read_compressed}};
    json_t *config = NULL;
    PST_TRY(pst_json_object(in->root, "quantization_config", false, &config, in->path, in->err));
    if (config == NULL)
        return 0;
    const char *name = "";
    PST_TRY(pst_json_string(config, "quant_method", true, &name, in->path, in->err));
    const pst_config_reader inner = {config, in->path, in->err};
    out->quantized_digits = PST_BF16;
    for (size_t i = 0; i < sizeof methods / sizeof methods[0]; i++)
        if (strcmp(methods[i].name, name) == 0)
            return methods[i].read(&inner, out);
    return refuse(in, "quant_method", name, "\"penstock\", \"fp8\", \"gptq\", \"awq\" and \"compressed-tensors\" are");
}
