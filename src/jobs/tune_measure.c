/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A transfer moves io_size bytes, the same share to or from each folder, in operations that go round the folders so that
 * all drives work at once. Successive transfers take successive parts of the files, which hold several of them where
 * time and space allow: a drive's own cache is not asked for the same bytes again at once. The buffer is smaller than the
 * transfer if memory is short; several operations then share it, for nobody looks at the bytes. They are random, since
 * some drives compress.
 *
 * An I/O handle is kept while the settings stay the same.
 */
#include "jobs/tune_measure.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/log.h"
#include "base/number.h"
#include "base/sanitizer.h"
#include "os/clock.h"
#include "os/drive.h"
#include "os/file.h"
#include "os/memory.h"
#include "os/process.h"
#include "os/sys.h"
#include "os/thread.h"
#include "penstock/io_engine.h"

enum { POLL_NS = 50000000, ALIGNMENT = 1 << 20, MOST_OPS = 1 << 16 };
static const uint64_t MIB = 1 << 20;
static const uint64_t MOST_BUFFER_BYTES = 256ull << 20, LEAST_TRANSFER_BYTES = 16ull << 20;
static const uint64_t MOST_TRANSFER_BYTES = 4ull << 30, MOST_CACHED_BYTES = 256ull << 20;
static const uint64_t MIN_BLOCK_BYTES = 128 << 10, MAX_BLOCK_BYTES = 16 << 20;

struct pst_tune_rig {
    const pst_tune_options *options;
    uint64_t began_ns;
    uint32_t folders;
    int *fds;           /* of the test files, one per folder; -1 */
    uint64_t part;      /* bytes of a transfer in each file */
    uint64_t file_part; /* bytes of each file */
    uint64_t next[2];   /* where the next read and write begin in each file */
    void *memory;
    uint64_t memory_bytes;
    bool direct, in_memory; /* all files are direct; some have no drive behind them */

    struct {
        char name[32];
        bool synchronous;
    } engines[PST_TUNE_ENGINES];
    uint32_t engine_count;
    pst_tune_setting baseline;

    pst_io *io;
    pst_tune_setting open_for;
    pst_io_file **files;
    pst_io_batch *batch;
    pst_io_op *ops;
    uint32_t op_room;
};

/* ---- handles ---- */

static void close_io(pst_tune_rig *r)
{
    pst_io_batch_destroy(r->batch);
    r->batch = NULL;
    for (uint32_t i = 0; r->files != NULL && i < r->folders; i++) {
        pst_io_file_close(r->files[i], NULL);
        r->files[i] = NULL;
    }
    if (r->io != NULL && r->memory != NULL)
        pst_io_unregister(r->io, r->memory);
    pst_io_close(r->io);
    r->io = NULL;
}

static int open_io(pst_tune_rig *r, const pst_io_options *options, pst_error *err)
{
    close_io(r);
    PST_TRY(pst_io_open(options, &r->io, err));
    int status = pst_io_batch_create(r->io, r->op_room, &r->batch, err);
    if (status >= 0)
        status = pst_io_register(r->io, r->memory, r->memory_bytes, err);
    r->direct = !r->in_memory;
    for (uint32_t i = 0; status >= 0 && i < r->folders; i++) {
        status = pst_io_file_open_fd(r->io, r->fds[i], PST_IO_OPEN_WRITE, r->options->folders[i], &r->files[i], err);
        r->direct = r->direct && status >= 0 && pst_io_file_is_direct(r->files[i]);
    }
    if (status < 0)
        close_io(r);
    return status;
}

static bool same(const pst_tune_setting *a, const pst_tune_setting *b)
{
    return a->engine == b->engine && a->block_size == b->block_size && a->queue_depth == b->queue_depth &&
           a->workers == b->workers && a->single_submit == b->single_submit;
}

static int open_for(pst_tune_rig *r, const pst_tune_setting *at, pst_error *err)
{
    if (r->io != NULL && same(at, &r->open_for))
        return 0;
    pst_io_options options = {.struct_size = sizeof options,
                              .engine = r->engines[at->engine].name,
                              .block_size = at->block_size,
                              .queue_depth = at->queue_depth,
                              .workers = at->workers,
                              .single_submit = at->single_submit};
    PST_TRY(open_io(r, &options, err));
    r->open_for = *at;
    return 0;
}

/* ---- transfers ---- */

static int check_cancelled(const pst_tune_rig *r, pst_error *err)
{
    if (r->options->cancelled == NULL || r->options->cancelled(r->options->user) == 0)
        return 0;
    return pst_fail(err, PST_E_CANCELLED, NULL, "cancelled");
}

/* Operations for `part` bytes from `offset` on in every file: large ones for one drive, for several pieces that go round
 * them, since the workers cut operations in their order. */
static uint32_t fill_ops(pst_tune_rig *r, uint64_t offset, uint64_t part, uint64_t block_size, bool write)
{
    uint64_t each = r->folders == 1 ? r->memory_bytes : block_size;
    while (each < r->memory_bytes && (part + each - 1) / each * r->folders > r->op_room)
        each *= 2;
    uint32_t count = 0;
    uint64_t used = 0;
    for (uint64_t at = 0; at < part; at += each) {
        for (uint32_t i = 0; i < r->folders && count < r->op_room; i++) {
            uint64_t bytes = part - at < each ? part - at : each;
            if (used + bytes > r->memory_bytes)
                used = 0;
            r->ops[count++] = (pst_io_op){.file = r->files[i],
                                          .offset = offset + at,
                                          .buffer = (char *)r->memory + used,
                                          .bytes = bytes,
                                          .kind = write ? PST_IO_WRITE : PST_IO_READ};
            used += bytes;
        }
    }
    return count;
}

/* Moves `part` bytes of every file; *seconds: how long it took. */
static int transfer(pst_tune_rig *r, uint64_t offset, uint64_t part, uint64_t block_size, bool write, double *seconds,
                    pst_error *err)
{
    PST_TRY(check_cancelled(r, err));
    uint32_t count = fill_ops(r, offset, part, block_size, write);
    uint64_t begin = pst_clock_ns();
    PST_TRY(pst_io_submit(r->batch, r->ops, count, err));
    int status, cancelled = 0;
    pst_error why = {.offset = PST_NO_OFFSET};
    while ((status = pst_io_wait(r->batch, POLL_NS, err)) == 1) {
        if (cancelled == 0 && (cancelled = check_cancelled(r, &why)) < 0)
            pst_io_cancel(r->batch);
    }
    if (cancelled < 0) {
        if (err != NULL)
            *err = why;
        return cancelled;
    }
    PST_TRY(status);
    *seconds = (double)(pst_io_batch_completed_ns(r->batch) - begin) * 1e-9;
    return 0;
}

int pst_tune_rig_measure(void *rig, const pst_tune_setting *setting, bool write, pst_tune_sample *out, pst_error *err)
{
    pst_tune_rig *r = rig;
    double seconds = 0;
    PST_TRY(open_for(r, setting, err));
    uint64_t *next = &r->next[write];
    if (*next + r->part > r->file_part)
        *next = 0;
    double cpu = pst_os_cpu_seconds();
    PST_TRY(transfer(r, *next, r->part, setting->block_size, write, &seconds, err));
    cpu = pst_os_cpu_seconds() - cpu;
    *next += r->part;
    double bytes = (double)r->part * r->folders;
    *out = (pst_tune_sample){.bytes_per_second = bytes / (seconds > 1e-9 ? seconds : 1e-9),
                             .cpu_seconds_per_gb = cpu / (bytes / 1e9)};
    return 0;
}

double pst_tune_rig_seconds(void *rig)
{
    return (double)(pst_clock_ns() - ((pst_tune_rig *)rig)->began_ns) * 1e-9;
}

/* ---- making it ---- */

static int create_file(const char *folder, int *out, pst_error *err)
{
    char *base = pst_heap_printf("%s/penstock-tune", folder);
    char *path = base != NULL ? pst_file_temporary_name(base) : NULL;
    int status;
    if (path == NULL) {
        status = pst_fail_memory(err, "a path", strlen(folder));
    } else {
        do {
            status = pst_sys->open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
        } while (status == -EINTR);
        if (status < 0) {
            pst_fail(err, status, folder, "cannot create a test file there: %s", pst_strerror(status));
        } else {
            *out = status;
            status = pst_sys->unlink(path);
            if (status < 0)
                pst_fail(err, status, path, "cannot remove: %s", pst_strerror(status));
        }
    }
    pst_heap_free(path);
    pst_heap_free(base);
    return status < 0 ? status : 0;
}

/* Memory for transfers: bounded by what is free. */
static int make_memory(pst_tune_rig *r, pst_error *err)
{
    pst_memory_info info;
    uint64_t bytes = MOST_BUFFER_BYTES, wanted = r->options->io_size;
    if (r->options->seconds < 20) /* filling it takes a part of a second */
        bytes /= 4;
    PST_TRY(pst_memory_get_info(&info, err));
    if (wanted != 0 && wanted < bytes)
        bytes = (wanted + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    while (bytes > LEAST_TRANSFER_BYTES && bytes > info.available_bytes / 8)
        bytes /= 2;
    if (bytes < MAX_BLOCK_BYTES)
        bytes = MAX_BLOCK_BYTES;
    PST_TRY(pst_memory_map(bytes, "the buffer of the measurements", &r->memory, err));
    r->memory_bytes = bytes;
    pst_sanitizer_expect_races(r->memory, bytes); /* transfers go through it again and again */
    uint64_t *words = r->memory, state = pst_clock_ns();
    for (uint64_t i = 0; i < bytes / sizeof *words; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        words[i] = state ^ (state >> 29);
    }
    return 0;
}

/* Some kernels take O_DIRECT on a file system that has no drive behind it. */
static bool is_in_memory(const char *folder)
{
    char drive[PST_DRIVE_ID_BYTES];
    return pst_drive_identify(folder, drive, NULL) >= 0 &&
           (strncmp(drive, "fs:tmpfs:", 9) == 0 || strncmp(drive, "fs:ramfs:", 9) == 0);
}

static int open_files(pst_tune_rig *r, pst_error *err)
{
    r->fds = pst_heap_reallocarray(NULL, r->folders, sizeof *r->fds);
    if (r->fds == NULL)
        return pst_fail_memory(err, "test files", r->folders * sizeof *r->fds);
    for (uint32_t i = 0; i < r->folders; i++)
        r->fds[i] = -1;
    r->files = pst_heap_calloc(r->folders, sizeof(pst_io_file *));
    r->op_room = r->folders == 1 ? 1024 : MOST_OPS;
    r->ops = pst_heap_calloc(r->op_room, sizeof *r->ops);
    if (r->files == NULL || r->ops == NULL)
        return pst_fail_memory(err, "test files", r->op_room * sizeof *r->ops);
    for (uint32_t i = 0; i < r->folders; i++) {
        if (!pst_file_is_folder(r->options->folders[i]))
            return pst_fail(err, -ENOTDIR, r->options->folders[i], "is not a folder");
        PST_TRY(create_file(r->options->folders[i], &r->fds[i], err));
        r->in_memory = r->in_memory || is_in_memory(r->options->folders[i]);
    }
    return 0;
}

/* The least free space of any folder, divided by how many of the folders may lie on the same drive. */
static int free_space(const pst_tune_rig *r, uint64_t *out, pst_error *err)
{
    uint64_t least = UINT64_MAX;
    for (uint32_t i = 0; i < r->folders; i++) {
        uint64_t bytes;
        PST_TRY(pst_file_free_space(r->options->folders[i], &bytes, err));
        least = bytes < least ? bytes : least;
    }
    *out = least / r->folders;
    return 0;
}

static int check_space(const pst_tune_rig *r, uint64_t part, uint64_t space, pst_error *err)
{
    if (part + part / 8 <= space)
        return 0;
    return pst_fail(err, -ENOSPC, r->options->folders[0],
                    "a test file of %llu MiB is wanted, and only %llu MiB are free for each",
                    (unsigned long long)(part / MIB), (unsigned long long)(space / MIB));
}

/* Writes the files from file_part to `until`, in steps that can be cancelled. */
static int extend_files(pst_tune_rig *r, uint64_t until, double *seconds, pst_error *err)
{
    *seconds = 0;
    while (r->file_part < until) {
        uint64_t step = until - r->file_part;
        double once;
        if (step > r->memory_bytes)
            step = r->memory_bytes;
        PST_TRY(transfer(r, r->file_part, step, 1 << 20, true, &once, err));
        r->file_part += step;
        *seconds += once;
    }
    return 0;
}

/* Sizes from what a first transfer in each direction takes, unless they are given. */
static int choose_sizes(pst_tune_rig *r, pst_error *err)
{
    const pst_tune_options *o = r->options;
    double write_seconds, read_seconds, more;
    uint64_t space, probe = LEAST_TRANSFER_BYTES,
                    given = pst_round_up((o->io_size + r->folders - 1) / r->folders, ALIGNMENT);
    PST_TRY(free_space(r, &space, err));
    if (o->io_size != 0 && given < probe)
        probe = given;
    PST_TRY(check_space(r, o->io_size != 0 ? given : probe, space, err));
    PST_TRY(extend_files(r, probe, &write_seconds, err));
    PST_TRY(transfer(r, 0, probe, 1 << 20, false, &read_seconds, err));
    double write_rate = (double)probe / write_seconds, read_rate = (double)probe / read_seconds;
    /* A two-hundredth of the time each: about a hundred measurements in both directions. */
    double each = o->seconds / 200 < 0.25 ? o->seconds / 200 : 0.25;
    double wanted = (o->no_read ? write_rate : o->no_write ? read_rate : (write_rate + read_rate) / 2) * each;
    r->part = wanted < (double)MOST_TRANSFER_BYTES / r->folders ? pst_round_up((uint64_t)wanted, ALIGNMENT)
                                                                : MOST_TRANSFER_BYTES / r->folders;
    if (r->part < LEAST_TRANSFER_BYTES)
        r->part = LEAST_TRANSFER_BYTES;
    if (!r->direct && r->part > MOST_CACHED_BYTES) /* it may be memory that such a file takes */
        r->part = MOST_CACHED_BYTES;
    if (r->part > space / 4)
        r->part = space / 4 > probe ? space / 4 / ALIGNMENT * ALIGNMENT : probe;
    if (o->io_size != 0)
        r->part = given;
    uint64_t room = r->direct ? 4 * r->part : r->part, affordable = (uint64_t)(write_rate * o->seconds * 0.1);
    if (room > space / 4)
        room = space / 4 / ALIGNMENT * ALIGNMENT;
    if (room > affordable)
        room = affordable / ALIGNMENT * ALIGNMENT;
    return extend_files(r, room > r->part ? room : r->part, &more, err);
}

static void list_engines(pst_tune_rig *r, const char *usual)
{
    pst_io_engine_info info = {.struct_size = sizeof info};
    for (uint32_t n = 0; r->engine_count < PST_TUNE_ENGINES && pst_io_engine_at(n, &info) == 1; n++) {
        if (!info.automatic || info.status < 0 || strlen(info.name) >= sizeof r->engines[0].name)
            continue;
        if (strcmp(info.name, usual) == 0)
            r->baseline.engine = r->engine_count;
        strcpy(r->engines[r->engine_count].name, info.name);
        r->engines[r->engine_count++].synchronous = (info.flags & PST_IO_ENGINE_SYNCHRONOUS) != 0;
    }
}

static uint32_t power_of_two(uint32_t value)
{
    uint32_t power = 1;
    while (power * 2 <= value && power < 1u << 30)
        power *= 2;
    return power;
}

static int prepare(pst_tune_rig *r, pst_error *err)
{
    pst_io_options usual = {.struct_size = sizeof usual, .path = r->options->folders[0]};
    PST_TRY(make_memory(r, err));
    PST_TRY(open_files(r, err));
    PST_TRY(open_io(r, &usual, err));
    pst_io_get_settings(r->io, &usual);
    /* The search doubles and halves. */
    r->baseline = (pst_tune_setting){.block_size = usual.block_size,
                                     .queue_depth = power_of_two(usual.queue_depth),
                                     .workers = power_of_two(usual.workers)};
    list_engines(r, usual.engine);
    if (r->engine_count == 0)
        return pst_fail(err, PST_E_UNSUPPORTED, NULL, "no I/O engine works here");
    PST_TRY(choose_sizes(r, err));
    close_io(r);
    return 0;
}

int pst_tune_rig_create(const pst_tune_options *options, pst_tune_rig **out, pst_error *err)
{
    pst_tune_rig *r = pst_heap_calloc(1, sizeof *r);
    if (r == NULL)
        return pst_fail_memory(err, "a measurement", sizeof *r);
    r->options = options;
    r->folders = options->folder_count;
    r->began_ns = pst_clock_ns();
    int status = prepare(r, err);
    if (status < 0) {
        pst_tune_rig_destroy(r);
        return status;
    }
    *out = r;
    return 0;
}

void pst_tune_rig_destroy(pst_tune_rig *r)
{
    if (r == NULL)
        return;
    close_io(r);
    for (uint32_t i = 0; r->fds != NULL && i < r->folders; i++) {
        if (r->fds[i] >= 0)
            pst_sys->close(r->fds[i]);
    }
    if (r->memory != NULL)
        pst_memory_unmap(r->memory, r->memory_bytes);
    pst_heap_free(r->ops);
    pst_heap_free(r->files);
    pst_heap_free(r->fds);
    pst_heap_free(r);
}

void pst_tune_rig_get_info(const pst_tune_rig *r, pst_tune_rig_info *out)
{
    *out = (pst_tune_rig_info){
        .io_size = r->part * r->folders, .file_bytes = r->file_part * r->folders, .direct = r->direct};
}

void pst_tune_rig_fill_space(const pst_tune_rig *r, pst_tune_space *space)
{
    uint64_t usual = r->baseline.block_size * r->baseline.queue_depth * r->baseline.workers;
    uint64_t flying = r->part * r->folders / 2;
    uint32_t workers = power_of_two(2 * pst_os_processors());
    *space = (pst_tune_space){.engine_count = r->engine_count,
                              .baseline = r->baseline,
                              .min_block_size = MIN_BLOCK_BYTES,
                              .max_block_size = MAX_BLOCK_BYTES,
                              .max_bytes_in_flight = flying > usual ? flying : usual,
                              .max_depth = 256,
                              .max_workers = workers < 8 ? workers : 8,
                              .max_threads = 64,
                              .read = !r->options->no_read,
                              .write = !r->options->no_write,
                              .repetitions = r->options->repetitions,
                              .seconds = r->options->seconds};
    for (uint32_t i = 0; i < r->engine_count; i++) {
        space->engines[i].name = r->engines[i].name;
        space->engines[i].synchronous = r->engines[i].synchronous;
    }
}
