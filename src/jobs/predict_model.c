/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The model of a prediction. Where its weights are there and stay as they are, it is opened like any other; else its
 * config.json, or that of a shape, is parsed and a table of the tensors made that follow from it.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/json.h"
#include "jobs/predict_internal.h"
#include "os/file.h"

enum { MAX_CONFIG_BYTES = 16 << 20 };

/* The element type that config.json names; BF16 where it names none. */
static pst_dtype dtype_of_config(const char *text, size_t bytes, const char *path)
{
    json_t *document;
    const char *name = "bfloat16";
    if (pst_json_parse(text, bytes, path, &document, NULL) < 0)
        return PST_BF16;
    pst_json_string(document, "dtype", false, &name, path, NULL);
    pst_json_string(document, "torch_dtype", false, &name, path, NULL);
    pst_dtype dtype = strcmp(name, "float32") == 0 ? PST_F32 : strcmp(name, "float16") == 0 ? PST_F16 : PST_BF16;
    json_decref(document);
    return dtype;
}

/* Formats that only a checkpoint's own tensors tell the details of are reckoned as groups of as many bits. */
static void settle_format(const pst_predict_options *options, uint32_t quant_bits, pst_transformer *t)
{
    pst_weight_format *format = &t->quantized;
    uint32_t group = options->quant_group_size ? options->quant_group_size : 64;
    if (quant_bits == 4 || quant_bits == 8)
        *format = (pst_weight_format){.layout = PST_WEIGHT_GROUPED, .bits = quant_bits, .group = group};
    else if (format->layout == PST_WEIGHT_GPTQ || format->layout == PST_WEIGHT_AWQ)
        *format = (pst_weight_format){
            .layout = PST_WEIGHT_GROUPED, .bits = format->bits, .group = format->group ? format->group : 128};
}

static int make_table(const pst_predict_options *options, uint32_t quant_bits, pst_dtype dtype, pst_planned_model *m,
                      pst_error *err)
{
    settle_format(options, quant_bits, &m->transformer);
    PST_TRY(pst_shape_tensors_make(&m->transformer, dtype, &m->tensors, err));
    PST_TRY(pst_store_create_table(m->name, m->tensors.tensors, m->tensors.count, &m->store, err));
    PST_TRY(pst_program_create(&m->transformer, m->store, &m->own_program, err));
    m->t = &m->transformer;
    m->program = m->own_program;
    return 0;
}

static bool has_weights(const char *folder)
{
    char **names;
    size_t count;
    if (pst_file_list(folder, ".safetensors", &names, &count, NULL) < 0)
        return false;
    pst_file_list_free(names, count);
    return count > 0;
}

static int open_folder(const pst_predict_options *options, uint32_t quant_bits, pst_planned_model *m, pst_error *err)
{
    bool as_it_is = quant_bits == 0 || quant_bits == 16;
    if (!pst_file_is_folder(m->folder))
        return pst_fail(err, PST_E_USAGE, m->folder, "is not a folder with a model");
    if (as_it_is && has_weights(m->folder)) {
        PST_TRY(pst_model_open(m->folder, NULL, &m->model, err));
        m->t = &m->model->transformer;
        m->program = m->model->program;
        return 0;
    }
    char *path = pst_heap_printf("%s/config.json", m->folder), *text = NULL;
    size_t bytes = 0;
    if (path == NULL)
        return pst_fail_memory(err, "a path", strlen(m->folder));
    int status = pst_file_read_all(path, MAX_CONFIG_BYTES, &text, &bytes, err);
    if (status >= 0)
        status = pst_transformer_parse(text, bytes, path, NULL, 0, NULL, &m->transformer, err);
    if (status >= 0)
        status = make_table(options, quant_bits, dtype_of_config(text, bytes, path), m, err);
    pst_heap_free(text);
    pst_heap_free(path);
    return status;
}

static int open_shape(const pst_predict_options *options, const pst_shape *shape, uint32_t quant_bits,
                      pst_planned_model *m, pst_error *err)
{
    pst_dtype dtype = shape->dtype ? shape->dtype : PST_BF16;
    PST_TRY(pst_shape_parse(shape, shape->layers, dtype, &m->transformer, err));
    return make_table(options, quant_bits, PST_BF16, m, err);
}

/* Finds the folder. A name that is neither a path nor one of a repository may have been meant for a shape. */
static int locate(const pst_predict_options *options, pst_planned_model *m, pst_error *err)
{
    char shapes[512];
    const int status = pst_store_locate(options->model, options->cache, &m->folder, err);
    if (status != -ENOENT || strchr(options->model, '/') != NULL)
        return status;
    return pst_fail(err, status, options->model,
                    "no such file or folder, nor a model in the cache, nor one of the shapes %s",
                    pst_shape_list(shapes, sizeof shapes));
}

static int open_model(const pst_predict_options *options, uint32_t quant_bits, pst_planned_model *m, pst_error *err)
{
    const pst_shape *shape = pst_file_exists(options->model) ? NULL : pst_shape_find(options->model);
    snprintf(m->name, sizeof m->name, "%s", options->model);
    if (shape != NULL)
        return open_shape(options, shape, quant_bits, m, err);
    PST_TRY(locate(options, m, err));
    return open_folder(options, quant_bits, m, err);
}

int pst_planned_model_open(const pst_predict_options *options, uint32_t quant_bits, pst_planned_model *out,
                           pst_error *err)
{
    *out = (pst_planned_model){0};
    int status = open_model(options, quant_bits, out, err);
    if (status < 0)
        pst_planned_model_close(out);
    return status;
}

void pst_planned_model_close(pst_planned_model *m)
{
    pst_program_destroy(m->own_program);
    pst_store_close(m->store);
    pst_shape_tensors_free(&m->tensors);
    pst_transformer_destroy(&m->transformer);
    pst_model_close(m->model);
    pst_heap_free(m->folder);
    *m = (pst_planned_model){0};
}
