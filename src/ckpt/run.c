/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A save's phases. After each one the ranks tell each other how it went, so that all of them stop after the same one:
 *
 *   set up    rank 0 makes the files; all open the I/O handle and take the ring      tell: layout, temporary name
 *   write     this rank's share of every file                                        tell: sums
 *   finish    images, what they changed, lengths, data syncs                         tell
 *   publish   rank 0                                                                 tell
 */
#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/number.h"
#include "ckpt/job_internal.h"
#include "ckpt/publish.h"
#include "ckpt/stream.h"
#include "os/clock.h"
#include "os/file.h"

/* Files of one save that are open at once: a checkpoint of very many shards would run into the limit of descriptors. */
enum { MOST_OPEN = 64 };

typedef struct run {
    pst_ckpt_job *job;
    const pst_ckpt_layout *layout;
    const pst_ckpt_hooks *hooks;
    uint32_t share;
    pst_ckpt_place place;
    pst_io *io;
    pst_ckpt_stream *stream;
    pst_ckpt_output *outputs; /* file_count of them */
    uint64_t start_ns, copied_ns;
} run;

/* What is told after setting up. */
typedef struct introduction {
    uint64_t fingerprint;
    char suffix[PST_CKPT_SUFFIX_BYTES];
} introduction;

_Static_assert(sizeof(introduction) <= PST_CKPT_LEAST_TELL_BYTES, "what ranks tell fits");

/* The end of a phase. */
static int tell(run *r, int status, const void *mine, size_t bytes, pst_error *err)
{
    status = pst_ckpt_place_name_final(&r->place, status, err);
    return pst_ckpt_agree_tell(r->job->agree, status, mine, bytes, err);
}

static uint64_t share_bytes(const run *r, size_t file)
{
    const pst_image *image = r->layout->files[file].image;
    return pst_image_share_begin(image, r->share + 1) - pst_image_share_begin(image, r->share);
}

/* Whether this rank writes the file's last byte, and so sees to its length. */
static bool has_end(const run *r, size_t file)
{
    const pst_image *image = r->layout->files[file].image;
    return share_bytes(r, file) > 0 && pst_image_share_begin(image, r->share + 1) == pst_image_file_bytes(image);
}

/* ---- files ---- */

static int sync_and_close(pst_ckpt_output *output, pst_error *err)
{
    pst_io_file *file = output->to;
    if (file == NULL)
        return 0;
    output->to = NULL;
    int status = pst_io_file_sync(file, err);
    int closed = pst_io_file_close(file, status >= 0 ? err : NULL);
    return status < 0 ? status : closed;
}

/* Nothing is under way. */
static int close_all(run *r, size_t begin, size_t end, pst_error *err)
{
    for (size_t f = begin; f < end; f++)
        PST_TRY(sync_and_close(&r->outputs[f], err));
    return 0;
}

static int create_files(run *r, pst_error *err)
{
    for (size_t f = 0; f < r->layout->file_count; f++) {
        PST_TRY(pst_ckpt_place_open(&r->place, r->io, f, true, &r->outputs[f].to, err));
        if (f >= MOST_OPEN)
            PST_TRY(sync_and_close(&r->outputs[f], err));
    }
    return 0;
}

/* ---- set up ---- */

static int open_io(run *r, pst_error *err)
{
    pst_io_options options = r->job->options.io;
    char *folder = pst_file_parent(r->place.path);
    if (folder == NULL)
        return pst_fail_memory(err, r->place.path, strlen(r->place.path));
    if (options.struct_size == 0)
        options.struct_size = sizeof options;
    if (options.path == NULL)
        options.path = folder;
    uint64_t most = 0;
    for (size_t f = 0; f < r->layout->file_count; f++)
        most = pst_max(most, share_bytes(r, f));
    const pst_ckpt_stream_options stream = {.ring_bytes = r->job->options.ring_bytes + r->job->options.snapshot_bytes,
                                            .most_bytes = most,
                                            .near_path = folder,
                                            .hooks = r->hooks};
    int status = pst_io_open(&options, &r->io, err);
    if (status >= 0)
        status = pst_ckpt_stream_create(r->io, &stream, &r->stream, err);
    pst_heap_free(folder);
    return status;
}

static int set_up(run *r, pst_error *err)
{
    pst_ckpt_job *job = r->job;
    if (job->ran)
        PST_TRY(pst_ckpt_layout_renew(&job->layout, &job->options, job->tensors, err));
    job->ran = true;
    r->outputs = pst_heap_calloc(r->layout->file_count, sizeof *r->outputs);
    if (r->outputs == NULL)
        return pst_fail_memory(err, job->options.path, r->layout->file_count * sizeof *r->outputs);
    for (size_t f = 0; f < r->layout->file_count; f++)
        r->outputs[f] = (pst_ckpt_output){
            .file = &r->layout->files[f], .tensors = job->tensors, .order = r->layout->order, .share = r->share};
    PST_TRY(pst_ckpt_place_begin(job->options.path, r->layout, r->share == 0, &r->place, err));
    PST_TRY(open_io(r, err));
    return r->share == 0 ? create_files(r, err) : 0;
}

/* All ranks have set up: whether they save the same. All come to the same answer, and no more is told where they do not: the
 * records would differ in size. */
static int compare(const run *r, introduction *out_first, pst_error *err)
{
    const pst_ckpt_agree *agree = r->job->agree;
    introduction first, other;
    memcpy(&first, pst_ckpt_agree_told(agree, 0), sizeof first);
    for (uint32_t i = 1; i < pst_ckpt_agree_count(agree); i++) {
        memcpy(&other, pst_ckpt_agree_told(agree, i), sizeof other);
        if (other.fingerprint != first.fingerprint)
            return pst_fail(err, PST_E_USAGE, r->job->options.path,
                            "rank %" PRIu32 " saves other tensors or in another way than rank 0", i);
    }
    *out_first = first;
    return 0;
}

/* ---- write ---- */

static int write_shares(run *r, pst_error *err)
{
    size_t open = r->share == 0 ? pst_min(r->layout->file_count, MOST_OPEN) : 0, closed = 0;
    for (size_t f = 0; f < r->layout->file_count; f++) {
        pst_ckpt_output *output = &r->outputs[f];
        if (share_bytes(r, f) == 0)
            continue;
        if (output->to == NULL && open >= MOST_OPEN) {
            PST_TRY(pst_ckpt_stream_drain(r->stream, err));
            PST_TRY(close_all(r, closed, f, err));
            closed = f;
            open = 0;
        }
        if (output->to == NULL) {
            PST_TRY(pst_ckpt_place_open(&r->place, r->io, f, false, &output->to, err));
            open++;
        }
        PST_TRY(pst_ckpt_stream_write(r->stream, output, err));
    }
    r->copied_ns = pst_clock_ns();
    if (r->hooks != NULL && r->hooks->copied != NULL)
        r->hooks->copied(r->hooks->user);
    return pst_ckpt_stream_drain(r->stream, err);
}

/* ---- sums ---- */

/* This rank's next sums at `out`, zeros behind the last. */
static void collect_sums(const run *r, pst_ckpt_walk *walk, pst_image_sums *out, size_t room)
{
    size_t file, part;
    memset(out, 0, room * sizeof *out);
    for (size_t i = 0; i < room && pst_ckpt_walk_next(r->layout, r->share, walk, &file, &part); i++)
        out[i] = r->layout->files[file].sums[part];
}

/* What the other ranks told. */
static void set_sums(const run *r, pst_ckpt_walk *walks, size_t room)
{
    size_t file, part;
    for (uint32_t rank = 0; rank < r->layout->shares; rank++) {
        const char *told = pst_ckpt_agree_told(r->job->agree, rank);
        for (size_t i = 0; i < room && pst_ckpt_walk_next(r->layout, rank, &walks[rank], &file, &part); i++) {
            pst_image_sums sums;
            memcpy(&sums, told + i * sizeof sums, sizeof sums);
            pst_image_set_sums(r->layout->files[file].image, part, &sums);
        }
    }
}

/* The end of writing: everybody learns all sums. */
static int exchange_sums(run *r, int status, pst_error *err)
{
    pst_ckpt_job *job = r->job;
    if (r->layout->shares == 1)
        return tell(r, status, NULL, 0, err);
    size_t room = job->sums_room;
    memset(job->walks, 0, (r->layout->shares + 1) * sizeof *job->walks);
    for (size_t round = 0; round < job->sums_rounds; round++) {
        if (status >= 0)
            collect_sums(r, &job->walks[r->layout->shares], job->sums, room);
        status = tell(r, status, job->sums, room * sizeof *job->sums, err);
        PST_TRY(status);
        set_sums(r, job->walks, room);
    }
    return 0;
}

/* ---- finish ---- */

/* Rewrites what changed in the files [begin, end), gives them their length, and makes them durable. */
static int finish_group(run *r, size_t begin, size_t end, pst_error *err)
{
    for (size_t f = begin; f < end; f++) {
        pst_ckpt_output *output = &r->outputs[f];
        if (output->to == NULL && (output->again_count > 0 || has_end(r, f)))
            PST_TRY(pst_ckpt_place_open(&r->place, r->io, f, false, &output->to, err));
        PST_TRY(pst_ckpt_stream_rewrite(r->stream, output, err));
    }
    PST_TRY(pst_ckpt_stream_drain(r->stream, err));
    for (size_t f = begin; f < end; f++) {
        pst_ckpt_output *output = &r->outputs[f];
        uint64_t bytes = pst_image_file_bytes(r->layout->files[f].image);
        if (has_end(r, f) && bytes % PST_IMAGE_ALIGNMENT != 0)
            PST_TRY(pst_io_file_truncate(output->to, bytes, err));
    }
    return close_all(r, begin, end, err);
}

static int finish_files(run *r, pst_error *err)
{
    size_t count = r->layout->file_count;
    for (size_t f = 0; f < count; f++)
        if (!r->outputs[f].finished)
            PST_TRY(pst_image_finish(r->layout->files[f].image, err));
    for (size_t f = 0; f < count; f += MOST_OPEN)
        PST_TRY(finish_group(r, f, pst_min(f + MOST_OPEN, count), err));
    return 0;
}

/* ---- the whole ---- */

static int carry_out(run *r, pst_error *err)
{
    introduction mine = {0};
    int status = set_up(r, err);
    if (status >= 0)
        pst_ckpt_place_tell(&r->place, mine.suffix);
    if (status >= 0 && r->layout->shares > 1)
        mine.fingerprint = pst_ckpt_layout_fingerprint(r->layout, &r->job->options, r->job->tensors);
    PST_TRY(tell(r, status, &mine, sizeof mine, err));
    introduction first;
    PST_TRY(compare(r, &first, err));
    status = pst_ckpt_place_join(&r->place, first.suffix, err);
    if (status >= 0)
        status = write_shares(r, err);
    PST_TRY(exchange_sums(r, status, err));
    PST_TRY(tell(r, finish_files(r, err), NULL, 0, err));
    status = r->share == 0 ? pst_ckpt_place_publish(&r->place, r->job->tensors, err) : 0;
    return tell(r, status, NULL, 0, err);
}

static void note_figures(run *r)
{
    pst_ckpt_report *report = &r->job->report;
    *report = (pst_ckpt_report){.data_bytes = r->layout->data_bytes,
                                .file_bytes = r->layout->file_bytes,
                                .tensors = r->job->count,
                                .files = r->layout->file_count,
                                .seconds = (double)(pst_clock_ns() - r->start_ns) / 1e9};
    if (r->copied_ns != 0)
        report->copied_seconds = (double)(r->copied_ns - r->start_ns) / 1e9;
    if (r->stream != NULL) {
        pst_ckpt_stream_figures figures;
        pst_ckpt_stream_get_figures(r->stream, &figures);
        report->written_bytes = figures.written_bytes;
        report->retried = figures.retried;
        report->ring_bytes = figures.ring_bytes;
        report->buffers_in_flight = figures.most_writes;
        report->direct = figures.direct;
    }
    if (r->io != NULL) {
        pst_io_options settings;
        pst_io_get_settings(r->io, &settings);
        report->io_engine = pst_io_engine_name(r->io);
        report->block_size = settings.block_size;
        report->queue_depth = settings.queue_depth;
        report->io_workers = settings.workers;
    }
}

static void end_run(run *r)
{
    pst_ckpt_stream_destroy(r->stream);
    for (size_t f = 0; r->outputs != NULL && f < r->layout->file_count; f++) {
        pst_io_file_close(r->outputs[f].to, NULL);
        pst_ckpt_output_free(&r->outputs[f]);
    }
    pst_heap_free(r->outputs);
    pst_io_close(r->io);
    pst_ckpt_place_end(&r->place);
}

int pst_ckpt_job_run(pst_ckpt_job *job, const pst_ckpt_hooks *hooks, pst_error *err)
{
    run r = {.job = job,
             .layout = &job->layout,
             .hooks = hooks,
             .share = pst_ckpt_agree_rank(job->agree),
             .start_ns = pst_clock_ns()};
    pst_error failure = {0}; /* the ranks tell it each other, whether or not the caller wants it */
    int status = carry_out(&r, &failure);
    note_figures(&r);
    end_run(&r);
    if (status < 0 && err != NULL)
        *err = failure;
    return status;
}
