/* SPDX-License-Identifier: Apache-2.0 */
/*
 * synth: a checkpoint of a known shape with random weights, made at the speed of the drive. A shard's buffers
 * are filled by a pool of threads, piece by piece, while earlier buffers are on their way; the folder appears
 * when all of it is durable.
 */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "io/like.h"
#include "jobs/synth_fill.h"
#include "jobs/synth_shapes.h"
#include "os/clock.h"
#include "os/file.h"
#include "os/thread.h"
#include "penstock/jobs.h"
#include "store/folder.h"
#include "store/safetensors_write.h"

enum { PIECE_BYTES = 256 << 10, MAX_LAYERS = 4096, MAX_SHARDS = 99999, METADATA = 2 };

typedef struct synth_shard {
    size_t first, count; /* of the tensors */
    uint64_t file_bytes;
    char name[PST_SHARD_NAME_BYTES];
} synth_shard;

typedef struct small_file {
    const char *name;
    char *text;
} small_file;

typedef struct synth {
    pst_synth_options options;
    const pst_shape *shape;
    uint32_t layers;
    pst_transformer transformer;
    pst_shape_tensors tensors;
    pst_fill *fills; /* one per tensor */
    synth_shard *shards;
    size_t shard_count;
    small_file small[4];
    char generator[128];
    pst_metadata metadata[METADATA];
    uint64_t file_bytes, header_bytes; /* of all shards */
    uint64_t total_bytes, done_bytes;  /* of all files, for the progress */
    pst_folder *folder;
    pst_io *io;
    pst_io_options settings; /* of io, as they are in use */
    pst_pool *pool;
} synth;

/* ---- what to write ---- */

static int check_dtype(synth *s, pst_error *err)
{
    pst_synth_options *o = &s->options;
    if (o->dtype == 0)
        o->dtype = s->shape->dtype ? s->shape->dtype : PST_BF16;
    if (o->dtype == PST_F8_E4M3 && s->shape->dtype != PST_F8_E4M3)
        return pst_fail(err, PST_E_USAGE, NULL, "no checkpoint of %s was published in f8", s->shape->name);
    if (o->dtype != PST_BF16 && o->dtype != PST_F16 && o->dtype != PST_F32 && o->dtype != PST_F8_E4M3)
        return pst_fail(err, PST_E_USAGE, NULL, "synth writes bf16, f16, f32 or f8, not %s", pst_dtype_name(o->dtype));
    return 0;
}

static int check_options(synth *s, const pst_synth_options *options, pst_error *err)
{
    size_t known = sizeof s->options;
    if (options == NULL || options->struct_size < offsetof(pst_synth_options, layers))
        return pst_fail(err, PST_E_USAGE, NULL, "synth needs options with their size");
    memcpy(&s->options, options, options->struct_size < known ? options->struct_size : known);
    pst_synth_options *o = &s->options;
    if (o->shape == NULL || o->folder == NULL)
        return pst_fail(err, PST_E_USAGE, NULL, "synth needs a shape and a folder");
    char list[512], quoted[PST_QUOTE_BYTES];
    s->shape = pst_shape_find(o->shape);
    if (s->shape == NULL)
        return pst_fail(err, PST_E_USAGE, NULL, "unknown shape \"%s\"; there are %s", pst_quote(o->shape, quoted),
                        pst_shape_list(list, sizeof list));
    PST_TRY(check_dtype(s, err));
    if (o->layers > MAX_LAYERS)
        return pst_fail(err, PST_E_USAGE, NULL, "%u layers; the most is %d", o->layers, MAX_LAYERS);
    s->layers = o->layers ? o->layers : s->shape->layers;
    if (o->shard_bytes == 0)
        o->shard_bytes = UINT64_C(5000000000);
    snprintf(s->generator, sizeof s->generator, "penstock synth %s, seed %" PRIu64, s->shape->name, o->seed);
    s->metadata[0] = (pst_metadata){"format", "pt"}; /* transformers wants this one */
    s->metadata[1] = (pst_metadata){"generator", s->generator};
    return 0;
}

/* Uniform numbers, sqrt(3) deviations to each side of 0; of norms and scales: an eighth to each side of 1 (times what an FP8
 * element counts, whose own range is the type's). */
static pst_fill make_fill(const synth *s, const pst_tensor *tensor, pst_shape_role role)
{
    float deviation = s->shape->deviation > 0 ? s->shape->deviation : 0.02f, reach = deviation * 1.7320508f;
    const float f8_most = 448;
    pst_fill fill = {.key = pst_fill_key(s->options.seed, tensor->name), .dtype = tensor->dtype};
    fill.offset = role == PST_SHAPE_NORM || role == PST_SHAPE_SCALES ? 1 << 19 : 0;
    if (role == PST_SHAPE_NORM)
        fill.scale = 0x1p-19f;
    else if (role == PST_SHAPE_SCALES)
        fill.scale = reach / f8_most * 0x1p-19f;
    else
        fill.scale = (tensor->dtype == PST_F8_E4M3 ? f8_most : reach) / 65536;
    return fill;
}

static int make_fills(synth *s, pst_error *err)
{
    s->fills = pst_heap_calloc(s->tensors.count, sizeof *s->fills);
    if (s->fills == NULL)
        return pst_fail_memory(err, "a table of tensors", s->tensors.count * sizeof *s->fills);
    for (size_t i = 0; i < s->tensors.count; i++)
        s->fills[i] = make_fill(s, &s->tensors.tensors[i], s->tensors.roles[i]);
    return 0;
}

/* Cuts the tensors into shards in their order: none holds more than shard_bytes, except for a single
 * larger tensor. */
static int cut_shards(synth *s, pst_error *err)
{
    size_t count = s->tensors.count;
    s->shards = pst_heap_calloc(count, sizeof *s->shards);
    if (s->shards == NULL)
        return pst_fail_memory(err, "a table of shards", count * sizeof *s->shards);
    uint64_t bytes = 0;
    for (size_t i = 0; i < count; i++) {
        pst_tensor *tensor = &s->tensors.tensors[i];
        if (i == 0 || bytes + tensor->bytes > s->options.shard_bytes) {
            s->shards[s->shard_count++].first = i;
            bytes = 0;
        }
        bytes += tensor->bytes;
        tensor->file = (uint32_t)(s->shard_count - 1);
        s->shards[s->shard_count - 1].count++;
    }
    if (s->shard_count > MAX_SHARDS)
        return pst_fail(err, PST_E_USAGE, NULL, "shards so small that there would be %zu", s->shard_count);
    for (size_t i = 0; i < s->shard_count; i++) {
        synth_shard *shard = &s->shards[i];
        char *header;
        size_t header_bytes;
        pst_safetensors_shard_name(i, s->shard_count, shard->name);
        PST_TRY(pst_safetensors_header(s->tensors.tensors + shard->first, shard->count, s->metadata, METADATA, &header,
                                       &header_bytes, err));
        pst_heap_free(header);
        shard->file_bytes = header_bytes;
        s->header_bytes += header_bytes;
        for (size_t t = 0; t < shard->count; t++)
            shard->file_bytes += s->tensors.tensors[shard->first + t].bytes;
        s->file_bytes += shard->file_bytes;
    }
    return 0;
}

static int make_small_files(synth *s, pst_error *err)
{
    s->small[0].name = "config.json";
    s->small[1].name = "generation_config.json";
    s->small[2].name = "tokenizer.json";
    s->small[3].name = "tokenizer_config.json";
    PST_TRY(pst_shape_config(s->shape, s->layers, s->options.dtype, &s->small[0].text, err));
    PST_TRY(pst_shape_generation_config(s->shape, &s->small[1].text, err));
    PST_TRY(pst_shape_tokenizer(s->shape, &s->transformer, &s->small[2].text, err));
    PST_TRY(pst_shape_tokenizer_config(s->shape, &s->transformer, &s->small[3].text, err));
    s->total_bytes = s->options.sparse ? s->header_bytes : s->file_bytes;
    for (size_t i = 0; i < 4; i++)
        s->total_bytes += strlen(s->small[i].text);
    return 0;
}

static int check_space(const synth *s, pst_error *err)
{
    uint64_t space;
    const uint64_t slack = 4 << 20; /* index, folder, the file system's own */
    PST_TRY(pst_file_free_space(s->options.folder, &space, err));
    if (space < s->total_bytes + slack)
        return pst_fail(err, -ENOSPC, s->options.folder, "needs %.2f GB, but the file system has only %.2f GB free",
                        (double)(s->total_bytes + slack) / 1e9, (double)space / 1e9);
    return 0;
}

/* ---- writing ---- */

static int progress(synth *s, uint64_t more_bytes, pst_error *err)
{
    s->done_bytes += more_bytes;
    if (s->options.on_progress != NULL && s->options.on_progress(s->options.user, s->done_bytes, s->total_bytes) != 0)
        return pst_fail(err, PST_E_CANCELLED, s->options.folder, "cancelled");
    return 0;
}

/* A span of a shard's file to be filled in parallel. */
typedef struct fill_span {
    const pst_tensor *tensors;
    const pst_fill *fills;
    size_t count;
    uint64_t begin; /* in the file */
    size_t bytes;
    char *memory;
} fill_span;

/* The last tensor of the span that begins at or before `offset`. */
static size_t find_tensor(const fill_span *span, uint64_t offset)
{
    size_t low = 0, high = span->count;
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (span->tensors[middle].offset <= offset)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static void fill_piece(void *context, uint32_t task, uint32_t worker)
{
    (void)worker;
    const fill_span *span = context;
    uint64_t at = span->begin + (uint64_t)task * PIECE_BYTES, end = span->begin + span->bytes;
    if (end > at + PIECE_BYTES)
        end = at + PIECE_BYTES;
    for (size_t i = find_tensor(span, at); at < end; i++) {
        const pst_tensor *tensor = &span->tensors[i];
        uint64_t stop = tensor->offset + tensor->bytes < end ? tensor->offset + tensor->bytes : end;
        uint64_t element_bytes = pst_dtype_bits(tensor->dtype) / 8;
        pst_fill_elements(&span->fills[i], (at - tensor->offset) / element_bytes, (stop - at) / element_bytes,
                          span->memory + (at - span->begin));
        at = stop;
    }
}

static int write_data(synth *s, const synth_shard *shard, pst_safetensors_writer *writer, pst_error *err)
{
    pst_tensor *tensors = s->tensors.tensors + shard->first;
    fill_span span = {
        .tensors = tensors, .fills = s->fills + shard->first, .count = shard->count, .begin = tensors[0].offset};
    PST_TRY(progress(s, span.begin, err));
    for (;;) {
        void *memory = NULL;
        PST_TRY(pst_safetensors_writer_space(writer, &memory, &span.bytes, err));
        if (span.bytes == 0)
            return 0;
        span.memory = memory;
        pst_pool_run(s->pool, (uint32_t)((span.bytes + PIECE_BYTES - 1) / PIECE_BYTES), fill_piece, &span);
        PST_TRY(pst_safetensors_writer_commit(writer, span.bytes, err));
        PST_TRY(progress(s, span.bytes, err));
        span.begin += span.bytes;
    }
}

/* The header alone, in a file of full length whose data is a hole. */
static int write_sparse(synth *s, const synth_shard *shard, const char *path, pst_error *err)
{
    char *header;
    size_t header_bytes;
    PST_TRY(pst_safetensors_header(s->tensors.tensors + shard->first, shard->count, s->metadata, METADATA, &header,
                                   &header_bytes, err));
    int status = pst_file_publish_sparse(path, header, header_bytes, shard->file_bytes, err);
    pst_heap_free(header);
    PST_TRY(status);
    return progress(s, header_bytes, err);
}

static int write_shard(synth *s, const synth_shard *shard, pst_error *err)
{
    char *path = pst_folder_file(s->folder, shard->name);
    if (path == NULL)
        return pst_fail_memory(err, "a path", sizeof shard->name);
    if (s->options.sparse) {
        int written = write_sparse(s, shard, path, err);
        pst_heap_free(path);
        return written;
    }
    pst_safetensors_writer *writer = NULL;
    int status;
    PST_TRY_GOTO(done, pst_safetensors_writer_open(s->io, path, s->tensors.tensors + shard->first, shard->count,
                                                   s->metadata, METADATA, &writer, err));
    PST_TRY_GOTO(done, write_data(s, shard, writer, err));
    status = pst_safetensors_writer_finish(writer, err);
done:
    pst_safetensors_writer_close(writer);
    pst_heap_free(path);
    return status;
}

static int write_index(synth *s, pst_error *err)
{
    if (s->shard_count == 1)
        return 0;
    const char **names = pst_heap_reallocarray(NULL, s->shard_count, sizeof *names);
    char *path = pst_folder_file(s->folder, "model.safetensors.index.json");
    int status;
    if (names == NULL || path == NULL) {
        status = pst_fail_memory(err, "a list of files", s->shard_count * sizeof *names);
    } else {
        for (size_t i = 0; i < s->shard_count; i++)
            names[i] = s->shards[i].name;
        status = pst_safetensors_write_index(path, s->tensors.tensors, s->tensors.count, names, err);
    }
    pst_heap_free(path);
    pst_heap_free(names);
    return status;
}

static int write_small(synth *s, const small_file *file, pst_error *err)
{
    char *path = pst_folder_file(s->folder, file->name);
    if (path == NULL)
        return pst_fail_memory(err, "a path", strlen(file->name));
    int status = pst_file_publish(path, file->text, strlen(file->text), err);
    pst_heap_free(path);
    PST_TRY(status);
    return progress(s, strlen(file->text), err);
}

static int write_files(synth *s, pst_error *err)
{
    PST_TRY(check_space(s, err));
    PST_TRY(progress(s, 0, err));
    pst_io_options io = PST_IO_OPTIONS_LIKE(&s->options, NULL);
    PST_TRY(pst_io_open(&io, &s->io, err));
    s->settings.struct_size = sizeof s->settings;
    pst_io_get_settings(s->io, &s->settings);
    PST_TRY(pst_pool_create(s->options.threads, &s->pool, err));
    for (size_t i = 0; i < s->shard_count; i++)
        PST_TRY(write_shard(s, &s->shards[i], err));
    PST_TRY(write_index(s, err));
    for (size_t i = 0; i < 4; i++)
        PST_TRY(write_small(s, &s->small[i], err));
    return 0;
}

static int write_all(synth *s, pst_error *err)
{
    PST_TRY(pst_folder_begin(s->options.folder, &s->folder, err));
    PST_TRY(pst_folder_name_final(s->folder, write_files(s, err), err));
    return pst_folder_finish(s->folder, err);
}

static void release(synth *s)
{
    pst_folder_close(s->folder);
    pst_pool_destroy(s->pool);
    pst_io_close(s->io);
    for (size_t i = 0; i < 4; i++)
        pst_heap_free(s->small[i].text);
    pst_heap_free(s->shards);
    pst_heap_free(s->fills);
    pst_shape_tensors_free(&s->tensors);
    pst_transformer_destroy(&s->transformer);
}

int pst_synth(const pst_synth_options *options, pst_synth_report *report, pst_error *err)
{
    synth s = {0};
    uint64_t begin_ns = pst_clock_ns();
    PST_TRY(check_options(&s, options, err));
    int status;
    pst_dtype plain = s.options.dtype == PST_F8_E4M3 ? PST_BF16 : s.options.dtype;
    PST_TRY_GOTO(done, pst_shape_parse(s.shape, s.layers, s.options.dtype, &s.transformer, err));
    PST_TRY_GOTO(done, pst_shape_tensors_make(&s.transformer, plain, &s.tensors, err));
    PST_TRY_GOTO(done, make_fills(&s, err));
    PST_TRY_GOTO(done, cut_shards(&s, err));
    PST_TRY_GOTO(done, make_small_files(&s, err));
    PST_TRY_GOTO(done, write_all(&s, err));
    if (report != NULL)
        *report = (pst_synth_report){.parameters = s.tensors.elements,
                                     .data_bytes = s.tensors.data_bytes,
                                     .file_bytes = s.file_bytes,
                                     .tensors = s.tensors.count,
                                     .files = (uint32_t)s.shard_count,
                                     .layers = s.layers,
                                     .seconds = (double)(pst_clock_ns() - begin_ns) * 1e-9,
                                     .io_engine = s.settings.engine,
                                     .block_size = s.settings.block_size,
                                     .queue_depth = s.settings.queue_depth,
                                     .io_workers = s.settings.workers,
                                     .io_single_submit = s.settings.single_submit};
done:
    release(&s);
    return status;
}
