/* SPDX-License-Identifier: Apache-2.0 */
/*
 * convert: a model's folder again, in streaming order and quantized where wanted. The folder appears when all of it is durable;
 * a stripe set is filled in place, and its owner (jobs/offload.c) knows whether it is complete.
 */
#include "penstock/jobs.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "io/like.h"
#include "jobs/convert_internal.h"
#include "nn/quantization.h"
#include "os/clock.h"
#include "os/file.h"
#include "os/memory.h"

enum { DEFAULT_GROUP = 64 };

static int check_options(pst_converting *c, const pst_convert_options *options, pst_error *err)
{
    size_t known = sizeof c->options;
    if (options == NULL || options->struct_size < offsetof(pst_convert_options, bits))
        return pst_fail(err, PST_E_USAGE, NULL, "convert needs options with their size");
    memcpy(&c->options, options, options->struct_size < known ? options->struct_size : known);
    pst_convert_options *o = &c->options;
    if (o->model == NULL || o->folder == NULL)
        return pst_fail(err, PST_E_USAGE, NULL, "convert needs a model and a folder");
    if (o->bits != 0 && o->bits != 4 && o->bits != 8)
        return pst_fail(err, PST_E_USAGE, NULL, "weights of %u bits: 8 and 4 are there", o->bits);
    if (o->group_size == 0)
        o->group_size = DEFAULT_GROUP;
    if (o->group_size % 2 != 0 || o->group_size > PST_QUANTIZED_MAX_GROUP)
        return pst_fail(err, PST_E_USAGE, NULL, "groups of %u weights; they have an even number of at most %d",
                        o->group_size, PST_QUANTIZED_MAX_GROUP);
    if (o->dtype != 0 && o->dtype != PST_BF16 && o->dtype != PST_F16 && o->dtype != PST_F32)
        return pst_fail(err, PST_E_USAGE, NULL, "convert writes bf16, f16 or f32, not %s", pst_dtype_name(o->dtype));
    if (o->shard_bytes == 0)
        o->shard_bytes = UINT64_C(5000000000);
    return 0;
}

int pst_convert_progress(pst_converting *c, uint64_t more_bytes, pst_error *err)
{
    c->done_bytes += more_bytes;
    if (c->done_bytes > c->total_bytes)
        c->done_bytes = c->total_bytes;
    if (c->options.on_progress != NULL && c->options.on_progress(c->options.user, c->done_bytes, c->total_bytes) != 0)
        return pst_fail(err, PST_E_CANCELLED, c->options.folder, "cancelled");
    return 0;
}

char *pst_convert_path(const pst_converting *c, const char *name)
{
    if (c->folder != NULL)
        return pst_folder_file(c->folder, name);
    return pst_heap_printf("%s/%s", c->stripes->folders[0], name);
}

/* slack: index, folder, the file system's own */
static int check_place(const char *folder, uint64_t bytes, pst_error *err)
{
    const uint64_t slack = 4 << 20;
    uint64_t space;
    PST_TRY(pst_file_free_space(folder, &space, err));
    if (space < bytes + slack)
        return pst_fail(err, -ENOSPC, folder, "needs %.2f GB, but the file system has only %.2f GB free",
                        (double)(bytes + slack) / 1e9, (double)space / 1e9);
    return 0;
}

static int check_space(pst_converting *c, pst_error *err)
{
    if (c->stripes == NULL)
        return check_place(c->options.folder, c->total_bytes, err);
    for (uint32_t i = 0; i < c->stripes->count; i++)
        PST_TRY(check_place(c->stripes->folders[i], c->total_bytes / c->stripes->count, err));
    return 0;
}

static int write_index(pst_converting *c, pst_error *err)
{
    if (c->shard_count == 1)
        return 0;
    const char **names = pst_heap_reallocarray(NULL, c->shard_count, sizeof *names);
    char *path = pst_convert_path(c, "model.safetensors.index.json");
    int status;
    if (names == NULL || path == NULL) {
        status = pst_fail_memory(err, "a list of files", c->shard_count * sizeof *names);
    } else {
        for (size_t i = 0; i < c->shard_count; i++)
            names[i] = c->shards[i].name;
        status = pst_safetensors_write_index(path, c->tensors, c->item_count, names, err);
    }
    pst_heap_free(path);
    pst_heap_free(names);
    return status;
}

static int write_files(pst_converting *c, pst_error *err)
{
    const pst_convert_options *o = &c->options;
    uint64_t largest, files;
    PST_TRY(pst_convert_files_bytes(c, &largest, &files, err));
    c->total_bytes = c->file_bytes + files;
    PST_TRY(check_space(c, err));
    pst_io_options io = PST_IO_OPTIONS_LIKE(o, c->model->folder);
    PST_TRY(pst_io_open(&io, &c->io, err));
    c->settings.struct_size = sizeof c->settings;
    pst_io_get_settings(c->io, &c->settings);
    PST_TRY(pst_pool_create(o->threads, &c->pool, err));
    PST_TRY(pst_convert_choose_blocks(c, largest, err));
    PST_TRY(pst_convert_progress(c, 0, err));
    /* First what passes through memory whole, before the buffers are there. */
    PST_TRY(pst_convert_files(c, err));
    pst_memory_trim();
    PST_TRY(write_index(c, err));
    PST_TRY(pst_convert_stream(c, err));
    c->done_bytes = c->total_bytes; /* headers and rounding */
    return pst_convert_progress(c, 0, err);
}

static int write_folder(pst_converting *c, pst_error *err)
{
    PST_TRY(pst_folder_begin(c->options.folder, &c->folder, err));
    PST_TRY(pst_folder_name_final(c->folder, write_files(c, err), err));
    return pst_folder_finish(c->folder, err);
}

static void report_to(const pst_converting *c, pst_convert_report *report, double seconds)
{
    *report = (pst_convert_report){.parameters = c->model->program->parameters,
                                   .source_bytes = c->source_bytes,
                                   .data_bytes = c->data_bytes,
                                   .file_bytes = c->file_bytes,
                                   .tensors = c->item_count,
                                   .quantized = c->quantized_count,
                                   .left_out = c->left_out,
                                   .files = (uint32_t)c->shard_count,
                                   .seconds = seconds,
                                   .io_engine = c->settings.engine,
                                   .block_size = c->settings.block_size,
                                   .queue_depth = c->settings.queue_depth,
                                   .io_workers = c->settings.workers,
                                   .io_single_submit = c->settings.single_submit,
                                   .peak_rss_bytes = pst_memory_peak_bytes()};
}

int pst_convert_run(const pst_convert_options *options, const pst_convert_stripes *stripes, pst_convert_report *report,
                    pst_error *err)
{
    pst_converting c = {.stripes = stripes};
    pst_model *model = NULL;
    uint64_t begin_ns = pst_clock_ns();
    PST_TRY(check_options(&c, options, err));
    int status;
    PST_TRY_GOTO(done, pst_model_open(c.options.model, c.options.cache, &model, err));
    c.model = model;
    PST_TRY_GOTO(done, pst_convert_plan(&c, err));
    PST_TRY_GOTO(done, stripes != NULL ? write_files(&c, err) : write_folder(&c, err));
    if (report != NULL)
        report_to(&c, report, (double)(pst_clock_ns() - begin_ns) * 1e-9);
done:
    pst_folder_close(c.folder);
    pst_pool_destroy(c.pool);
    pst_io_close(c.io);
    pst_convert_plan_free(&c);
    pst_model_close(model);
    return status;
}

int pst_convert(const pst_convert_options *options, pst_convert_report *report, pst_error *err)
{
    return pst_convert_run(options, NULL, report, err);
}
