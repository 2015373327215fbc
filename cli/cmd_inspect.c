/* SPDX-License-Identifier: Apache-2.0 */
/* penstock inspect: what a checkpoint holds, from its headers alone. */
#include <inttypes.h>
#include <string.h>

#include "base/stats.h"
#include "common.h"
#include "output.h"
#include "penstock/jobs.h"

typedef struct inspect_values {
    cli_report report;
    cli_lookup lookup;
} inspect_values;

static const pst_option_group groups[] = {
    CLI_SHARED_GROUP("Model lookup", cli_lookup_rows, inspect_values, lookup),
    CLI_SHARED_GROUP("Output", cli_report_rows, inspect_values, report),
};

/* ---- JSON ---- */

static json_t *files_json(const pst_inspection *inspection)
{
    json_t *array = json_array();
    for (size_t i = 0; array != NULL && i < pst_inspection_file_count(inspection); i++) {
        pst_inspect_file file;
        pst_inspection_file(inspection, i, &file);
        json_t *metadata = json_object();
        for (size_t j = 0; metadata != NULL && j < file.metadata; j++) {
            const char *key, *value;
            pst_inspection_metadata(inspection, i, j, &key, &value);
            json_object_set_new(metadata, key, json_string(value));
        }
        json_t *entry =
            json_pack("{s:s, s:I, s:I, s:I, s:I, s:o}", "path", file.path, "file_bytes", (json_int_t)file.file_bytes,
                      "header_bytes", (json_int_t)file.header_bytes, "data_bytes", (json_int_t)file.data_bytes,
                      "tensors", (json_int_t)file.tensors, "metadata", metadata);
        if (cli_json_append(array, entry) != 0) {
            json_decref(array);
            return NULL;
        }
    }
    return array;
}

static json_t *integers_json(const pst_inspect_tensor *tensor, bool strides)
{
    json_t *array = json_array();
    for (uint32_t i = 0; array != NULL && i < tensor->rank; i++) {
        json_int_t value = strides ? (json_int_t)tensor->strides[i] : (json_int_t)tensor->shape[i];
        if (cli_json_append(array, json_integer(value)) != 0) {
            json_decref(array);
            return NULL;
        }
    }
    return array;
}

static json_t *tensor_json(const pst_inspect_tensor *tensor)
{
    json_t *entry =
        json_pack("{s:s, s:s, s:o, s:I, s:I, s:I}", "name", tensor->name, "dtype", pst_dtype_name(tensor->dtype),
                  "shape", integers_json(tensor, false), "file", (json_int_t)tensor->file, "offset",
                  (json_int_t)tensor->offset, "bytes", (json_int_t)tensor->bytes);
    if (entry == NULL || tensor->strides == NULL)
        return entry;
    if (json_object_set_new(entry, "strides", integers_json(tensor, true)) == 0)
        return entry;
    json_decref(entry);
    return NULL;
}

static json_t *tensors_json(const pst_inspection *inspection)
{
    json_t *array = json_array();
    for (size_t i = 0; array != NULL && i < pst_inspection_tensor_count(inspection); i++) {
        pst_inspect_tensor tensor;
        pst_inspection_tensor(inspection, i, &tensor);
        if (cli_json_append(array, tensor_json(&tensor)) != 0) {
            json_decref(array);
            return NULL;
        }
    }
    return array;
}

static json_t *dtypes_json(const pst_inspection *inspection)
{
    json_t *object = json_object();
    for (int i = 0; object != NULL && i < PST_DTYPE_COUNT; i++) {
        pst_inspect_dtype total;
        if (pst_inspection_dtype(inspection, (pst_dtype)i, &total) < 0 || total.tensors == 0)
            continue;
        json_object_set_new(object, pst_dtype_name((pst_dtype)i),
                            json_pack("{s:I, s:I, s:I}", "tensors", (json_int_t)total.tensors, "elements",
                                      (json_int_t)total.elements, "bytes", (json_int_t)total.bytes));
    }
    return object;
}

static json_t *config_json(const pst_inspection *inspection)
{
    pst_inspect_config config;
    if (!pst_inspection_config(inspection, &config))
        return json_null();
    return json_pack("{s:s?, s:s?, s:s?, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "model_type", config.model_type,
                     "architecture", config.architecture, "dtype", config.dtype, "layers", (json_int_t)config.layers,
                     "hidden", (json_int_t)config.hidden, "heads", (json_int_t)config.heads, "kv_heads",
                     (json_int_t)config.kv_heads, "head_dim", (json_int_t)config.head_dim, "intermediate",
                     (json_int_t)config.intermediate, "vocab", (json_int_t)config.vocab, "context",
                     (json_int_t)config.context);
}

static int print_json(const pst_inspection *inspection, pst_error *err)
{
    return cli_out_json(json_pack("{s:s, s:o, s:o, s:o, s:o}", "path", pst_inspection_path(inspection), "config",
                                  config_json(inspection), "dtypes", dtypes_json(inspection), "files",
                                  files_json(inspection), "tensors", tensors_json(inspection)),
                        err);
}

/* ---- table ---- */

static int print_config(const pst_inspection *inspection, pst_error *err)
{
    pst_inspect_config config;
    if (!pst_inspection_config(inspection, &config))
        return 0;
    PST_TRY(cli_out_safe(config.model_type != NULL ? config.model_type : "unknown family", err));
    const struct {
        const char *name;
        uint64_t value;
    } figures[] = {{"layers", config.layers},     {"hidden", config.hidden},     {"heads", config.heads},
                   {"kv_heads", config.kv_heads}, {"head_dim", config.head_dim}, {"intermediate", config.intermediate},
                   {"vocab", config.vocab},       {"context", config.context}};
    for (size_t i = 0; i < CLI_COUNT(figures); i++) {
        if (figures[i].value != 0)
            PST_TRY(cli_out_printf(err, ", %s %" PRIu64, figures[i].name, figures[i].value));
    }
    return cli_out_text("\n", err);
}

static int print_totals(const pst_inspection *inspection, pst_error *err)
{
    char size[32];
    PST_TRY(cli_out_safe(pst_inspection_path(inspection), err));
    PST_TRY(cli_out_text("\n", err));
    PST_TRY(print_config(inspection, err));
    for (int i = 0; i < PST_DTYPE_COUNT; i++) {
        pst_inspect_dtype total;
        if (pst_inspection_dtype(inspection, (pst_dtype)i, &total) < 0 || total.tensors == 0)
            continue;
        PST_TRY(cli_out_printf(err, "%s: %" PRIu64 " tensors, %" PRIu64 " elements, %s\n", pst_dtype_name((pst_dtype)i),
                               total.tensors, total.elements,
                               pst_format_bytes((double)total.bytes, size, sizeof size)));
    }
    return 0;
}

/* A header may hold names of megabytes: their beginning and end are shown, which tell tensors apart. --json has them
 * whole. */
enum { NAME_COLUMNS = 128, NAME_TAIL = 48 };

static const char *shorten(const char *name, char *text)
{
    size_t length = strlen(name);
    if (length <= NAME_COLUMNS)
        return name;
    snprintf(text, NAME_COLUMNS + 8, "%.*s...%s", NAME_COLUMNS - NAME_TAIL - 3, name, name + length - NAME_TAIL);
    return text;
}

static int print_tensor(const pst_inspection *inspection, size_t index, int name_width, pst_error *err)
{
    pst_inspect_tensor tensor;
    char shape[256] = "[", size[32];
    pst_inspection_tensor(inspection, index, &tensor);
    for (uint32_t i = 0; i < tensor.rank; i++) {
        size_t used = strlen(shape);
        snprintf(shape + used, sizeof shape - used, "%s%" PRIu64, i > 0 ? ", " : "", tensor.shape[i]);
    }
    size_t used = strlen(shape);
    snprintf(shape + used, sizeof shape - used, "]");
    char short_name[NAME_COLUMNS + 8];
    const char *name = shorten(tensor.name, short_name);
    PST_TRY(cli_out_text("  ", err));
    PST_TRY(cli_out_safe(name, err));
    int padding = name_width - (int)strlen(name);
    return cli_out_printf(err, "%*s  %-5s %-18s %14" PRIu64 "  %s\n", padding > 0 ? padding : 0, "",
                          pst_dtype_name(tensor.dtype), shape, tensor.offset,
                          pst_format_bytes((double)tensor.bytes, size, sizeof size));
}

static int name_width(const pst_inspection *inspection)
{
    size_t widest = 4;
    for (size_t i = 0; i < pst_inspection_tensor_count(inspection); i++) {
        pst_inspect_tensor tensor;
        pst_inspection_tensor(inspection, i, &tensor);
        size_t length = strlen(tensor.name);
        widest = length > widest && length <= 64 ? length : widest;
    }
    return (int)widest;
}

static int print_table(const pst_inspection *inspection, pst_error *err)
{
    PST_TRY(print_totals(inspection, err));
    int width = name_width(inspection);
    size_t next = 0, tensors = pst_inspection_tensor_count(inspection);
    for (size_t i = 0; i < pst_inspection_file_count(inspection); i++) {
        pst_inspect_file file;
        char size[32];
        pst_inspection_file(inspection, i, &file);
        PST_TRY(cli_out_text("\n", err));
        PST_TRY(cli_out_safe(file.path, err));
        PST_TRY(cli_out_printf(err, ": %s, header %" PRIu64 " bytes, %zu tensors\n",
                               pst_format_bytes((double)file.file_bytes, size, sizeof size), file.header_bytes,
                               file.tensors));
        PST_TRY(
            cli_out_printf(err, "  %-*s  %-5s %-18s %14s  %s\n", width, "name", "dtype", "shape", "offset", "size"));
        /* Tensors come sorted by file. */
        for (size_t j = 0; j < file.tensors && next < tensors; j++, next++)
            PST_TRY(print_tensor(inspection, next, width, err));
    }
    return cli_out_flush(err);
}

static int inspect(const void *all_values, const pst_options_found *found, pst_error *err)
{
    const inspect_values *values = all_values;
    pst_inspection *inspection;
    cli_notes_start(&values->report);
    PST_TRY(pst_inspect(found->operands[0], cli_hf_cache(&values->lookup), &inspection, err));
    int status = values->report.json ? print_json(inspection, err) : print_table(inspection, err);
    pst_inspection_close(inspection);
    return status;
}

const cli_command cli_command_inspect = {
    .spec =
        {.name = "inspect",
         .operands = "PATH",
         .min_operands = 1,
         .max_operands = 1,
         .summary = "the tensors of a file or a model",
         .description =
             "Lists what a safetensors file, a file of torch.save, a model folder, a step's folder, a training folder "
             "(its newest step) or org/name holds: its configuration, its files, and each tensor with its type, shape, "
             "place and size. Only headers are "
             "read, and all their checks are made; a pickle is never executed.",
         .example = "  penstock inspect model.safetensors\n",
         .groups = groups,
         .group_count = CLI_COUNT(groups),
         .values_bytes = sizeof(inspect_values)},
    .run = inspect,
};
