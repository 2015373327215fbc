/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What lies beside the weights: config.json, with the keys that tell of quantization and types changed and all others kept,
 * and copies of the tokenizer's, generation's and license's files.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/json.h"
#include "jobs/convert_internal.h"
#include "nn/quantization.h"
#include "os/file.h"

static const uint64_t MAX_FILE_BYTES = 512ull << 20; /* what a tokenizer may have */

static bool ends_in(const char *name, const char *end)
{
    size_t length = strlen(name), end_length = strlen(end);
    return length > end_length && strcmp(name + length - end_length, end) == 0;
}

bool pst_convert_is_companion(const char *name)
{
    static const char *const ends[] = {".json", ".txt", ".model", ".jinja", ".tiktoken", ".md"};
    static const char *const begins[] = {"LICENSE", "NOTICE", "USE_POLICY"};
    if (name[0] == '.' || strcmp(name, "config.json") == 0 || strncmp(name, "penstock-", strlen("penstock-")) == 0 ||
        ends_in(name, ".index.json"))
        return false;
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++)
        if (ends_in(name, ends[i]))
            return true;
    for (size_t i = 0; i < sizeof begins / sizeof begins[0]; i++)
        if (strncmp(name, begins[i], strlen(begins[i])) == 0)
            return true;
    return false;
}

/* Calls visit for every file that goes along. */
typedef int companion_visit(void *context, const char *path, const char *name, pst_error *err);

static int each_companion(const pst_converting *c, companion_visit *visit, void *context, pst_error *err)
{
    char **names;
    size_t count;
    PST_TRY(pst_file_list(c->model->folder, NULL, &names, &count, err));
    int status = 0;
    for (size_t i = 0; i < count && status >= 0; i++) {
        if (!pst_convert_is_companion(names[i]))
            continue;
        char *path = pst_heap_printf("%s/%s", c->model->folder, names[i]);
        if (path == NULL)
            status = pst_fail_memory(err, "a path", strlen(names[i]));
        else if (!pst_file_is_folder(path) && pst_file_exists(path))
            status = visit(context, path, names[i], err);
        pst_heap_free(path);
    }
    pst_file_list_free(names, count);
    return status;
}

typedef struct sizes {
    uint64_t largest, total;
} sizes;

static int add_size(void *context, const char *path, const char *name, pst_error *err)
{
    (void)name;
    sizes *sum = context;
    uint64_t bytes;
    PST_TRY(pst_file_size(path, &bytes, err));
    sum->total += bytes;
    sum->largest = bytes > sum->largest ? bytes : sum->largest;
    return 0;
}

int pst_convert_files_bytes(const pst_converting *c, uint64_t *largest, uint64_t *total, pst_error *err)
{
    sizes sum = {0};
    PST_TRY(each_companion(c, add_size, &sum, err));
    *largest = sum.largest;
    *total = sum.total;
    return 0;
}

static int publish(pst_converting *c, const char *name, const char *text, size_t bytes, pst_error *err)
{
    char *path = pst_convert_path(c, name);
    if (path == NULL)
        return pst_fail_memory(err, "a path", strlen(name));
    int status = pst_file_publish(path, text, bytes, err);
    pst_heap_free(path);
    PST_TRY(status);
    return pst_convert_progress(c, bytes, err);
}

static int copy_one(void *context, const char *path, const char *name, pst_error *err)
{
    char *text;
    size_t bytes;
    PST_TRY(pst_file_read_all(path, MAX_FILE_BYTES, &text, &bytes, err));
    int status = publish(context, name, text, bytes, err);
    pst_heap_free(text);
    return status;
}

/* ---- config.json ---- */

static const char *torch_name(pst_dtype type)
{
    return type == PST_F32 ? "float32" : type == PST_F16 ? "float16" : "bfloat16";
}

static int set(json_t *object, const char *key, json_t *value)
{
    return json_object_set_new(object, key, value); /* also fails on a NULL value */
}

/* What readers need to know of the groups. source_dtype: the type with digits enough for these weights. */
static json_t *quantization(const pst_converting *c)
{
    const pst_program *program = c->model->program;
    return json_pack("{s:s, s:i, s:i, s:i, s:b, s:s}", "quant_method", "penstock", "version", PST_QUANTIZED_VERSION,
                     "bits", (int)c->to.bits, "group_size", (int)c->to.group, "symmetric", c->to.symmetric ? 1 : 0,
                     "source_dtype", pst_dtype_name(program->weight_type));
}

static int change_config(const pst_converting *c, json_t *config)
{
    int status = 0;
    if (c->all_expanded)
        json_object_del(config, "quantization_config"); /* -1 when there is none */
    if (c->options.bits != 0)
        status = set(config, "quantization_config", quantization(c));
    if (c->options.dtype == 0 || status != 0)
        return status;
    const char *name = torch_name(c->options.dtype);
    bool has_old = json_object_get(config, "torch_dtype") != NULL, has_new = json_object_get(config, "dtype") != NULL;
    if (has_old)
        status = set(config, "torch_dtype", json_string(name));
    if (status == 0 && (has_new || !has_old))
        status = set(config, "dtype", json_string(name));
    return status;
}

static int write_config(pst_converting *c, pst_error *err)
{
    char *path = pst_heap_printf("%s/config.json", c->model->folder), *text = NULL, *changed = NULL;
    json_t *config = NULL;
    size_t bytes;
    int status;
    if (path == NULL)
        return pst_fail_memory(err, "a path", strlen(c->model->folder));
    PST_TRY_GOTO(done, pst_file_read_all(path, MAX_FILE_BYTES, &text, &bytes, err));
    PST_TRY_GOTO(done, pst_json_parse(text, bytes, path, &config, err));
    if (!json_is_object(config))
        PST_TRY_GOTO(done, pst_fail(err, PST_E_FORMAT, path, "is not a JSON object"));
    if (change_config(c, config) == 0)
        changed = json_dumps(config, JSON_INDENT(2));
    if (changed == NULL)
        PST_TRY_GOTO(done, pst_fail_memory(err, "config.json", bytes));
    status = publish(c, "config.json", changed, strlen(changed), err);
done:
    free(changed); /* jansson's own */
    json_decref(config);
    pst_heap_free(text);
    pst_heap_free(path);
    return status;
}

int pst_convert_files(pst_converting *c, pst_error *err)
{
    PST_TRY(write_config(c, err));
    return each_companion(c, copy_one, c, err);
}
