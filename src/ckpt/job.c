/* SPDX-License-Identifier: Apache-2.0 */
/* What a save keeps of what it was asked for. */
#include "ckpt/job.h"

#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/number.h"
#include "ckpt/job_internal.h"
#include "ckpt/stream.h"

/* ---- copies ---- */

/* Puts copies one behind the other; with `at` NULL it only counts. */
typedef struct packer {
    char *at;
    size_t bytes;
} packer;

static char *pack(packer *p, const void *data, size_t bytes)
{
    char *copy = p->at;
    p->bytes += bytes;
    if (copy != NULL) {
        if (bytes > 0)
            memcpy(copy, data, bytes);
        p->at += bytes;
    }
    return copy;
}

static const char *pack_text(packer *p, const char *text)
{
    return text != NULL ? pack(p, text, strlen(text) + 1) : NULL;
}

/* All strings of `from` and the tensors; into the job where the packer has memory. The same way twice. */
static void pack_all(pst_ckpt_job *job, const pst_ckpt_options *from, const pst_ckpt_tensor *tensors, packer *p)
{
    pst_ckpt_options *to = &job->options;
    to->path = pack_text(p, from->path);
    to->archive_name = pack_text(p, from->archive_name);
    to->io.engine = pack_text(p, from->io.engine);
    to->io.path = pack_text(p, from->io.path);
    to->pickle = from->pickle != NULL ? pack(p, from->pickle, from->pickle_bytes) : NULL;
    for (size_t i = 0; i < from->metadata_count; i++) {
        const char *key = pack_text(p, from->metadata[i].key), *value = pack_text(p, from->metadata[i].value);
        job->pairs[i] = (pst_ckpt_pair){.key = key, .value = value};
    }
    for (size_t i = 0; i < job->count; i++)
        job->tensors[i].name = pack_text(p, tensors[i].name);
}

static int copy_tensors(pst_ckpt_job *job, const pst_ckpt_tensor *tensors, pst_error *err)
{
    size_t dimensions = 0;
    for (size_t i = 0; i < job->count; i++) {
        if (tensors[i].rank > PST_MAX_RANK || (tensors[i].rank > 0 && tensors[i].shape == NULL))
            return pst_fail(err, PST_E_USAGE, NULL, "tensor %zu has %u dimensions", i, tensors[i].rank);
        dimensions += tensors[i].rank;
    }
    job->shapes = pst_heap_reallocarray(NULL, dimensions, sizeof *job->shapes);
    job->tensors = pst_heap_reallocarray(NULL, job->count, sizeof *job->tensors);
    if (job->shapes == NULL || job->tensors == NULL)
        return pst_fail_memory(err, "a list of tensors", job->count * sizeof *job->tensors);
    uint64_t *shape = job->shapes;
    for (size_t i = 0; i < job->count; i++) {
        job->tensors[i] = tensors[i];
        job->tensors[i].shape = shape;
        for (uint32_t d = 0; d < tensors[i].rank; d++)
            *shape++ = tensors[i].shape[d];
    }
    return 0;
}

static int copy_options(pst_ckpt_job *job, const pst_ckpt_options *options, const pst_ckpt_tensor *tensors,
                        pst_error *err)
{
    job->options = *options;
    job->options.struct_size = sizeof job->options;
    job->pairs = pst_heap_reallocarray(NULL, options->metadata_count, sizeof *job->pairs);
    if (job->pairs == NULL)
        return pst_fail_memory(err, options->path, options->metadata_count * sizeof *job->pairs);
    job->options.metadata = job->pairs;
    if (options->ranks != NULL) {
        job->ranks = *options->ranks;
        job->options.ranks = &job->ranks;
    }
    if (job->options.ring_bytes == 0)
        job->options.ring_bytes = PST_CKPT_RING_BYTES;
    PST_TRY(copy_tensors(job, tensors, err));
    packer counts = {0};
    pack_all(job, options, tensors, &counts);
    job->text = pst_heap_alloc(counts.bytes);
    if (job->text == NULL)
        return pst_fail_memory(err, "names of tensors", counts.bytes);
    packer copies = {.at = job->text};
    pack_all(job, options, tensors, &copies);
    return 0;
}

/* ---- sums of ranks ---- */

bool pst_ckpt_walk_next(const pst_ckpt_layout *layout, uint32_t share, pst_ckpt_walk *walk, size_t *out_file,
                        size_t *out_part)
{
    for (; walk->file < layout->file_count; walk->file++, walk->inside = false) {
        size_t count;
        const pst_image *image = layout->files[walk->file].image;
        const pst_image_part *parts = pst_image_parts(image, &count);
        uint64_t end = pst_image_share_begin(image, share + 1);
        if (!walk->inside)
            walk->part = pst_ckpt_find_part(parts, count, pst_image_share_begin(image, share));
        walk->inside = true;
        for (; walk->part < count && parts[walk->part].offset < end; walk->part++) {
            if (parts[walk->part].tensor == PST_IMAGE_LITERAL)
                continue;
            *out_file = walk->file;
            *out_part = walk->part++;
            return true;
        }
    }
    return false;
}

/* The most sums that one rank will have. */
static size_t most_sums(const pst_ckpt_layout *layout)
{
    size_t most = 0, file, part;
    for (uint32_t share = 0; share < layout->shares; share++) {
        size_t sums = 0;
        for (pst_ckpt_walk walk = {0}; pst_ckpt_walk_next(layout, share, &walk, &file, &part);)
            sums++;
        most = pst_max(most, sums);
    }
    return most;
}

/* All memory that telling them will take. */
static int prepare_sums(pst_ckpt_job *job, pst_error *err)
{
    if (job->layout.shares == 1)
        return 0;
    size_t most = pst_max(most_sums(&job->layout), 1);
    job->sums_room = pst_min(most, PST_CKPT_SUMS_PER_ROUND);
    job->sums_rounds = (most - 1) / job->sums_room + 1;
    job->sums = pst_heap_calloc(job->sums_room, sizeof *job->sums);
    job->walks = pst_heap_calloc((size_t)job->layout.shares + 1, sizeof *job->walks);
    if (job->sums == NULL || job->walks == NULL)
        return pst_fail_memory(err, "the sums of ranks", job->sums_room * sizeof *job->sums);
    return 0;
}

/* ---- the job ---- */

static int check_options(const pst_ckpt_options *options, const pst_ckpt_tensor *tensors, size_t count, pst_error *err)
{
    if (options->path == NULL || options->path[0] == '\0')
        return pst_fail(err, PST_E_USAGE, NULL, "a checkpoint to save has no path");
    if (tensors == NULL && count > 0)
        return pst_fail(err, PST_E_USAGE, options->path, "there are no tensors");
    if (options->metadata_count > 0 && options->metadata == NULL)
        return pst_fail(err, PST_E_USAGE, options->path, "there is no metadata");
    if (options->pickle == NULL && options->pickle_bytes > 0)
        return pst_fail(err, PST_E_USAGE, options->path, "there is no pickle");
    if (options->ranks != NULL && options->ranks->count == 0)
        return pst_fail(err, PST_E_USAGE, options->path, "no rank writes it");
    if (options->ring_bytes != 0 && options->ring_bytes < PST_CKPT_LEAST_RING_BYTES)
        return pst_fail(err, PST_E_BUDGET, options->path, "a save needs at least %d bytes of ring_bytes, not %llu",
                        PST_CKPT_LEAST_RING_BYTES, (unsigned long long)options->ring_bytes);
    if (options->ring_bytes > INT64_MAX / 2 || options->snapshot_bytes > INT64_MAX / 2)
        return pst_fail(err, PST_E_USAGE, options->path,
                        "no machine has so much memory as ring_bytes or snapshot_bytes");
    return 0;
}

static int make(pst_ckpt_job *job, const pst_ckpt_options *options, const pst_ckpt_tensor *tensors, pst_error *err)
{
    PST_TRY(check_options(options, tensors, job->count, err));
    PST_TRY(copy_options(job, options, tensors, err));
    PST_TRY(pst_ckpt_layout_make(&job->options, job->tensors, job->count, &job->layout, err));
    PST_TRY(prepare_sums(job, err));
    return pst_ckpt_agree_create(
        job->options.ranks, pst_max(job->sums_room * sizeof *job->sums, PST_CKPT_LEAST_TELL_BYTES), &job->agree, err);
}

int pst_ckpt_job_create(const pst_ckpt_options *options, const pst_ckpt_tensor *tensors, size_t count,
                        pst_ckpt_job **out, pst_error *err)
{
    pst_ckpt_options known = {0};
    size_t bytes = options->struct_size == 0 ? sizeof known : pst_min(options->struct_size, sizeof known);
    memcpy(&known, options, bytes);
    pst_ckpt_job *job = pst_heap_calloc(1, sizeof *job);
    if (job == NULL)
        return pst_fail_memory(err, "a save", sizeof *job);
    job->count = count;
    int status = make(job, &known, tensors, err);
    if (status < 0) {
        pst_ckpt_job_destroy(job);
        return status;
    }
    *out = job;
    return 0;
}

void pst_ckpt_job_destroy(pst_ckpt_job *job)
{
    if (job == NULL)
        return;
    pst_ckpt_agree_destroy(job->agree);
    pst_ckpt_layout_free(&job->layout);
    pst_heap_free(job->sums);
    pst_heap_free(job->walks);
    pst_heap_free(job->tensors);
    pst_heap_free(job->shapes);
    pst_heap_free(job->pairs);
    pst_heap_free(job->text);
    pst_heap_free(job);
}

const pst_ckpt_options *pst_ckpt_job_options(const pst_ckpt_job *job)
{
    return &job->options;
}

void pst_ckpt_job_get_report(const pst_ckpt_job *job, pst_ckpt_report *out)
{
    size_t bytes = out->struct_size == 0 ? sizeof *out : pst_min(out->struct_size, sizeof *out);
    pst_ckpt_report report = job->report;
    report.struct_size = out->struct_size;
    report.blocked_seconds = out->blocked_seconds;
    memcpy(out, &report, bytes);
}
