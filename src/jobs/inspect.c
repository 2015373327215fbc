/* SPDX-License-Identifier: Apache-2.0 */
/* inspect: what a checkpoint holds, from its headers (or its pickle) and its config.json alone. */
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/json.h"
#include "ckpt/load.h"
#include "os/file.h"
#include "penstock/jobs.h"

enum { MAX_CONFIG_BYTES = 16 << 20 };

struct pst_inspection {
    char *path;
    pst_ckpt *found; /* its parts alone */
    char *config_path;
    json_t *config_json; /* NULL: there is none */
    pst_inspect_config config;
    pst_inspect_dtype dtypes[PST_DTYPE_COUNT];
};

static uint64_t element_count(const uint64_t *shape, uint32_t rank)
{
    uint64_t elements = 1;
    for (uint32_t i = 0; i < rank; i++)
        elements *= shape[i]; /* that it fits was checked on opening */
    return elements;
}

static void count_dtypes(pst_inspection *inspection)
{
    for (size_t i = 0; i < pst_inspection_tensor_count(inspection); i++) {
        pst_inspect_tensor tensor;
        pst_inspection_tensor(inspection, i, &tensor);
        pst_inspect_dtype *total = &inspection->dtypes[tensor.dtype];
        total->tensors++;
        total->elements += tensor.elements;
        total->bytes += tensor.bytes;
    }
}

/* Reads what is there; a value of another type counts as not said, since any model may be inspected. */
static void read_config(pst_inspect_config *out, const json_t *json)
{
    const struct {
        const char *key;
        uint64_t *value;
    } numbers[] = {
        {"num_hidden_layers", &out->layers},
        {"hidden_size", &out->hidden},
        {"num_attention_heads", &out->heads},
        {"num_key_value_heads", &out->kv_heads},
        {"head_dim", &out->head_dim},
        {"intermediate_size", &out->intermediate},
        {"vocab_size", &out->vocab},
        {"max_position_embeddings", &out->context},
        {"n_layer", &out->layers},
        {"n_embd", &out->hidden},
        {"n_embed", &out->hidden},
        {"n_head", &out->heads},
        {"ffn_dim", &out->intermediate},
        {"n_inner", &out->intermediate},
        {"n_positions", &out->context},
        {"seq_length", &out->context},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) { /* the first spelling that is there counts */
        json_int_t value = json_integer_value(json_object_get(json, numbers[i].key));
        if (value > 0 && *numbers[i].value == 0)
            *numbers[i].value = (uint64_t)value;
    }
    out->model_type = json_string_value(json_object_get(json, "model_type"));
    out->architecture = json_string_value(json_array_get(json_object_get(json, "architectures"), 0));
    const json_t *dtype = json_object_get(json, "dtype"); /* transformers 5 */
    out->dtype = json_string_value(dtype ? dtype : json_object_get(json, "torch_dtype"));
}

static int open_config(pst_inspection *inspection, pst_error *err)
{
    if (!pst_file_is_folder(inspection->path))
        return 0;
    inspection->config_path = pst_heap_printf("%s/config.json", inspection->path);
    if (inspection->config_path == NULL)
        return pst_fail_memory(err, "a path", strlen(inspection->path));
    if (!pst_file_exists(inspection->config_path))
        return 0;
    char *text;
    size_t bytes;
    PST_TRY(pst_file_read_all(inspection->config_path, MAX_CONFIG_BYTES, &text, &bytes, err));
    json_t *json = NULL;
    int status = pst_json_parse(text, bytes, inspection->config_path, &json, err);
    pst_heap_free(text);
    PST_TRY(status);
    inspection->config_json = json;
    if (!json_is_object(json))
        return pst_fail(err, PST_E_FORMAT, inspection->config_path, "not a JSON object");
    read_config(&inspection->config, json);
    inspection->config.path = inspection->config_path;
    return 0;
}

/* The newest step of a training folder, for one. */
static int open_tensors(pst_inspection *inspection, pst_error *err)
{
    PST_TRY(pst_ckpt_open_parts(inspection->path, &inspection->found, err));
    char *path = pst_heap_strdup(inspection->found->path);
    if (path == NULL)
        return pst_fail_memory(err, "a path", strlen(inspection->path));
    pst_heap_free(inspection->path);
    inspection->path = path;
    return 0;
}

int pst_inspect(const char *path, const char *cache, pst_inspection **out, pst_error *err)
{
    pst_inspection *inspection = pst_heap_calloc(1, sizeof *inspection);
    if (inspection == NULL)
        return pst_fail_memory(err, "an inspection", sizeof *inspection);
    int status;
    PST_TRY_GOTO(failed, pst_store_locate(path, cache, &inspection->path, err));
    PST_TRY_GOTO(failed, open_tensors(inspection, err));
    PST_TRY_GOTO(failed, open_config(inspection, err));
    count_dtypes(inspection);
    *out = inspection;
    return 0;
failed:
    pst_inspection_close(inspection);
    return status;
}

void pst_inspection_close(pst_inspection *inspection)
{
    if (inspection == NULL)
        return;
    json_decref(inspection->config_json);
    pst_ckpt_close(inspection->found);
    pst_heap_free(inspection->config_path);
    pst_heap_free(inspection->path);
    pst_heap_free(inspection);
}

const char *pst_inspection_path(const pst_inspection *inspection)
{
    return inspection->path;
}

size_t pst_inspection_file_count(const pst_inspection *inspection)
{
    size_t count = 0;
    for (size_t p = 0; p < inspection->found->part_count; p++)
        count += pst_ckpt_part_files(&inspection->found->parts[p]);
    return count;
}

size_t pst_inspection_tensor_count(const pst_inspection *inspection)
{
    size_t count = 0;
    for (size_t p = 0; p < inspection->found->part_count; p++)
        count += pst_ckpt_part_tensors(&inspection->found->parts[p]);
    return count;
}

/* The part that the file is in, *index is then its number there; NULL: there is none. */
static const pst_ckpt_part *part_of_file(const pst_inspection *inspection, size_t *index)
{
    for (size_t p = 0; p < inspection->found->part_count; p++) {
        const pst_ckpt_part *part = &inspection->found->parts[p];
        if (*index < pst_ckpt_part_files(part))
            return part;
        *index -= pst_ckpt_part_files(part);
    }
    return NULL;
}

/* What is no storage's data counts as its header: records' headers, the pickle, the directory. */
static void torch_file_info(const pst_ckpt_part *part, pst_inspect_file *out)
{
    const pst_torch_file *torch = &part->torch;
    *out = (pst_inspect_file){.path = part->path, .file_bytes = torch->file_bytes, .tensors = torch->tensor_count};
    for (size_t i = 0; i < torch->storage_count; i++)
        out->data_bytes += torch->storages[i].bytes;
    out->header_bytes = out->file_bytes - out->data_bytes;
}

int pst_inspection_file(const pst_inspection *inspection, size_t index, pst_inspect_file *out)
{
    const pst_ckpt_part *part = part_of_file(inspection, &index);
    if (part == NULL)
        return PST_E_USAGE;
    if (part->store == NULL) {
        torch_file_info(part, out);
        return 0;
    }
    pst_store_file_info info;
    pst_store_get_file(part->store, (uint32_t)index, &info);
    *out = (pst_inspect_file){.path = info.path,
                              .file_bytes = info.header_bytes + info.data_bytes,
                              .header_bytes = info.header_bytes,
                              .data_bytes = info.data_bytes,
                              .tensors = info.tensors,
                              .metadata = info.metadata};
    return 0;
}

static void torch_tensor_info(const pst_torch_file *torch, size_t index, pst_inspect_tensor *out)
{
    const pst_torch_tensor *tensor = &torch->tensors[index];
    *out =
        (pst_inspect_tensor){.name = tensor->name,
                             .dtype = tensor->dtype,
                             .rank = tensor->rank,
                             .shape = tensor->shape,
                             .offset = torch->records[torch->storages[tensor->storage].record].offset + tensor->begin,
                             .bytes = tensor->bytes,
                             .elements = element_count(tensor->shape, tensor->rank),
                             .strides = tensor->contiguous ? NULL : tensor->strides,
                             .storage = tensor->storage};
}

static void store_tensor_info(const pst_store *store, size_t index, pst_inspect_tensor *out)
{
    const pst_tensor *tensor = pst_store_tensor_at(store, index);
    *out = (pst_inspect_tensor){.name = tensor->name,
                                .dtype = tensor->dtype,
                                .rank = tensor->rank,
                                .shape = tensor->shape,
                                .file = tensor->file,
                                .offset = tensor->offset,
                                .bytes = tensor->bytes,
                                .elements = element_count(tensor->shape, tensor->rank),
                                .storage = index};
}

int pst_inspection_tensor(const pst_inspection *inspection, size_t index, pst_inspect_tensor *out)
{
    uint32_t files = 0;
    size_t storages = 0; /* of the parts before */
    for (size_t p = 0; p < inspection->found->part_count; p++) {
        const pst_ckpt_part *part = &inspection->found->parts[p];
        if (index < pst_ckpt_part_tensors(part)) {
            if (part->store != NULL)
                store_tensor_info(part->store, index, out);
            else
                torch_tensor_info(&part->torch, index, out);
            out->file += files;
            out->storage += storages;
            return 0;
        }
        index -= pst_ckpt_part_tensors(part);
        files += (uint32_t)pst_ckpt_part_files(part);
        storages += pst_ckpt_part_storages(part);
    }
    return PST_E_USAGE;
}

int pst_inspection_metadata(const pst_inspection *inspection, size_t file, size_t index, const char **key,
                            const char **value)
{
    const pst_ckpt_part *part = part_of_file(inspection, &file);
    pst_store_file_info info;
    if (part == NULL || part->store == NULL)
        return PST_E_USAGE;
    pst_store_get_file(part->store, (uint32_t)file, &info);
    if (index >= info.metadata)
        return PST_E_USAGE;
    pst_store_metadata_at(part->store, (uint32_t)file, index, key, value);
    return 0;
}

int pst_inspection_dtype(const pst_inspection *inspection, pst_dtype dtype, pst_inspect_dtype *out)
{
    if ((unsigned)dtype >= PST_DTYPE_COUNT)
        return PST_E_USAGE;
    *out = inspection->dtypes[dtype];
    return 0;
}

bool pst_inspection_config(const pst_inspection *inspection, pst_inspect_config *out)
{
    if (inspection->config_json == NULL)
        return false;
    *out = inspection->config;
    return true;
}
