/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The files of a bench: what each target is, whether there is room, and their making and removal. They are made empty
 * and get their contents from the workers. What exists already is read only.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/stats.h"
#include "jobs/bench_io_internal.h"
#include "os/file.h"
#include "os/memory.h"
#include "os/sys.h"
#include "penstock/io_stripe.h"

enum { SLACK_BYTES = 4 << 20, MEMORY_SLACK_BYTES = 64 << 20, MAX_FOLDERS = 1024, MAX_FILES = 1 << 16 };
#define DEFAULT_IO_BYTES (UINT64_C(1) << 30)

/* A folder or file that the caller named. */
typedef struct place {
    const char *path;
    bool is_folder;
    uint64_t bytes;  /* of what is read */
    uint64_t device; /* of the file system that it lies on */
    uint32_t users;  /* transfers that were given a part of it */
} place;

/* ---- what there is ---- */

static int measure_device(place *p, pst_error *err)
{
    int fd = pst_sys->open(p->path, O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0)
        return pst_fail(err, fd, p->path, "cannot open: %s", pst_strerror(fd));
    uint32_t sector;
    int status = pst_sys->block_device(fd, &p->bytes, &sector);
    pst_sys->close(fd);
    return status >= 0 ? 0 : pst_fail(err, status, p->path, "cannot tell its size: %s", pst_strerror(status));
}

static int look_at(const char *path, place *p, pst_error *err)
{
    struct statx about;
    int status = pst_sys->statx(AT_FDCWD, path, 0, STATX_TYPE | STATX_SIZE, &about);
    if (status < 0)
        return pst_fail(err, status, path, "cannot be measured: %s", pst_strerror(status));
    *p = (place){.path = path, .is_folder = S_ISDIR(about.stx_mode), .bytes = about.stx_size};
    p->device = (uint64_t)about.stx_dev_major << 32 | about.stx_dev_minor;
    if (S_ISBLK(about.stx_mode))
        return measure_device(p, err);
    if (!p->is_folder && !S_ISREG(about.stx_mode))
        return pst_fail(err, -EINVAL, path, "is no folder, regular file or block device");
    return 0;
}

static int check_options(const pst_io_bench_options *o, pst_error *err)
{
    if (o->folder_count == 0 || o->folders == NULL)
        return pst_fail(err, PST_E_USAGE, NULL, "nothing is named to measure");
    if (o->folder_count > MAX_FOLDERS)
        return pst_fail(err, PST_E_USAGE, NULL, "%u folders are more than %d", o->folder_count, MAX_FOLDERS);
    if (o->processes > PST_IO_BENCH_MAX_PROCESSES)
        return pst_fail(err, PST_E_USAGE, NULL, "%u processes are more than %d", o->processes,
                        PST_IO_BENCH_MAX_PROCESSES);
    if (o->transfers > PST_IO_BENCH_MAX_TRANSFERS)
        return pst_fail(err, PST_E_USAGE, NULL, "%u transfers are more than %d", o->transfers,
                        PST_IO_BENCH_MAX_TRANSFERS);
    if (o->io_size > (uint64_t)1 << 50)
        return pst_fail(err, PST_E_USAGE, NULL, "a transfer of %llu bytes is more than 1 PiB",
                        (unsigned long long)o->io_size);
    if (o->validate && o->buffer_bytes != 0 && o->buffer_bytes < o->io_size)
        return pst_fail(err, PST_E_USAGE, NULL,
                        "what does not stay in memory cannot be compared: buffers of %llu "
                        "bytes are less than a transfer",
                        (unsigned long long)o->buffer_bytes);
    return 0;
}

static void fill_defaults(pst_io_bench_options *o)
{
    o->processes = o->processes != 0 ? o->processes : 1;
    o->transfers = o->transfers != 0 ? o->transfers : 1;
    o->loops = o->loops != 0 ? o->loops : 3;
}

/* The transfer's size, where the caller left it open. */
static void choose_size(pst_io_bench_options *o, const place *places)
{
    if (o->io_size == 0) {
        o->io_size = DEFAULT_IO_BYTES;
        for (uint32_t i = 0; i < o->folder_count; i++) {
            if (!places[i].is_folder && places[i].bytes < o->io_size)
                o->io_size = places[i].bytes;
        }
    }
    if (o->buffer_bytes == 0 || o->buffer_bytes > o->io_size)
        o->buffer_bytes = o->io_size;
}

static int check_places(const pst_bench_plan *plan, const place *places, pst_error *err)
{
    const pst_io_bench_options *o = &plan->options;
    for (uint32_t i = 0; i < o->folder_count; i++) {
        const place *p = &places[i];
        if (p->is_folder)
            continue;
        if (o->stripe)
            return pst_fail(err, -ENOTDIR, p->path, "is no folder, so it cannot be a member of a stripe set");
        if (o->validate)
            return pst_fail(err, PST_E_USAGE, p->path,
                            "exists already, and only what this measurement wrote can be compared");
        if (p->bytes == 0)
            return pst_fail(err, PST_E_USAGE, p->path, "is empty: there is nothing to read");
        if (o->io_size > p->bytes)
            return pst_fail(err, PST_E_USAGE, p->path, "has %llu bytes only, fewer than a transfer of %llu",
                            (unsigned long long)p->bytes, (unsigned long long)o->io_size);
    }
    return 0;
}

/* ---- room ---- */

static int check_memory(const pst_io_bench_options *o, pst_error *err)
{
    pst_memory_info info;
    if (pst_memory_get_info(&info, NULL) < 0)
        return 0; /* it cannot be told; taking it will */
    double wanted = (double)o->buffer_bytes * o->transfers * o->processes + MEMORY_SLACK_BYTES;
    if (wanted <= (double)info.available_bytes)
        return 0;
    char need[32], there[32];
    return pst_fail(err, -ENOMEM, NULL, "buffers need %s of memory, but only %s are available",
                    pst_format_bytes(wanted, need, sizeof need),
                    pst_format_bytes((double)info.available_bytes, there, sizeof there));
}

/* The bytes that folder i gets. A striped file lies in all folders alike. */
static double bytes_in(const pst_bench_plan *plan, uint32_t i)
{
    const pst_io_bench_options *o = &plan->options;
    uint64_t files = (uint64_t)o->processes * o->transfers, count = o->folder_count;
    uint64_t here = files / count + (i < files % count);
    double share = o->stripe ? (double)files / (double)count : (double)here;
    return share * (double)o->io_size * plan->files_per_transfer;
}

/* Folders on one file system share its room. */
static int check_space(const pst_bench_plan *plan, const place *places, pst_error *err)
{
    uint32_t count = plan->options.folder_count;
    for (uint32_t i = 0; i < count; i++) {
        double wanted = SLACK_BYTES;
        bool seen = !places[i].is_folder;
        for (uint32_t k = 0; k < count; k++) {
            if (places[k].is_folder && places[k].device == places[i].device) {
                seen = seen || k < i;
                wanted += bytes_in(plan, k);
            }
        }
        uint64_t space;
        char need[32], there[32];
        if (seen)
            continue;
        PST_TRY(pst_file_free_space(places[i].path, &space, err));
        if (wanted > (double)space)
            return pst_fail(err, -ENOSPC, places[i].path, "needs %s, but the file system has only %s free",
                            pst_format_bytes(wanted, need, sizeof need),
                            pst_format_bytes((double)space, there, sizeof there));
    }
    return 0;
}

/* ---- making ---- */

static char *new_name(const char *folder)
{
    char *base = pst_heap_printf("%s/penstock-bench", folder);
    char *name = base != NULL ? pst_file_temporary_name(base) : NULL;
    pst_heap_free(base);
    return name;
}

static int make_file(pst_bench_target *target, const char *folder, pst_error *err)
{
    target->own = true;
    target->path = new_name(folder);
    if (target->path == NULL)
        return pst_fail_memory(err, "a file name", strlen(folder));
    int fd = pst_sys->open(target->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return pst_fail(err, fd, target->path, "cannot create: %s", pst_strerror(fd));
    target->made = true;
    pst_sys->close(fd);
    return 0;
}

/* Transfers of one file read parts of it one after the other, from the beginning again when it ends. */
static int use_existing(pst_bench_target *target, place *p, uint64_t io_size, pst_error *err)
{
    target->path = pst_heap_strdup(p->path);
    if (target->path == NULL)
        return pst_fail_memory(err, "a file name", strlen(p->path));
    target->offset = p->users++ % (p->bytes / io_size) * io_size;
    return 0;
}

static int make_member_folders(pst_bench_plan *plan, const place *places, pst_error *err)
{
    uint32_t count = plan->options.folder_count;
    for (uint32_t i = 0; i < count; i++) {
        size_t bytes = strlen(places[i].path) + 128; /* both names and a slash each */
        plan->removal_bytes = bytes > plan->removal_bytes ? bytes : plan->removal_bytes;
    }
    plan->removal_path = pst_heap_alloc(plan->removal_bytes);
    if (plan->removal_path == NULL)
        return pst_fail_memory(err, "a file name", plan->removal_bytes);
    for (uint32_t i = 0; i < count; i++) {
        plan->folders[i] = new_name(places[i].path);
        if (plan->folders[i] == NULL)
            return pst_fail_memory(err, "a folder name", strlen(places[i].path));
        int status = pst_sys->mkdir(plan->folders[i], 0700);
        if (status < 0)
            return pst_fail(err, status, plan->folders[i], "cannot create: %s", pst_strerror(status));
        plan->folders_made++;
    }
    return pst_stripe_create((const char *const *)plan->folders, count, 0, err);
}

static int copy_folders(pst_bench_plan *plan, const place *places, pst_error *err)
{
    for (uint32_t i = 0; i < plan->options.folder_count; i++) {
        plan->folders[i] = pst_heap_strdup(places[i].path);
        if (plan->folders[i] == NULL)
            return pst_fail_memory(err, "a folder name", strlen(places[i].path));
    }
    return 0;
}

static int make_targets(pst_bench_plan *plan, place *places, pst_error *err)
{
    const pst_io_bench_options *o = &plan->options;
    double files = (double)o->processes * plan->files_per_transfer * o->transfers;
    if (files > MAX_FILES)
        return pst_fail(err, PST_E_USAGE, NULL, "%.0f files are more than %d", files, MAX_FILES);
    plan->target_count = (size_t)files;
    plan->targets = pst_heap_calloc(plan->target_count, sizeof *plan->targets);
    if (plan->targets == NULL)
        return pst_fail_memory(err, "a table of files", plan->target_count * sizeof *plan->targets);
    uint32_t per_process = plan->files_per_transfer * o->transfers;
    for (size_t i = 0; i < plan->target_count; i++) {
        pst_bench_target *target = &plan->targets[i];
        uint64_t transfer = i / per_process * o->transfers + i % o->transfers;
        place *p = &places[transfer % o->folder_count];
        if (o->stripe) {
            target->own = true;
            target->path = pst_heap_printf("bench-%zu", i);
            if (target->path == NULL)
                return pst_fail_memory(err, "a file name", 32);
        } else if (p->is_folder) {
            PST_TRY(make_file(target, p->path, err));
        } else {
            PST_TRY(use_existing(target, p, o->io_size, err));
        }
        plan->writable = plan->writable && target->own;
    }
    return 0;
}

static int make_plan(pst_bench_plan *plan, place *places, pst_error *err)
{
    pst_io_bench_options *o = &plan->options;
    for (uint32_t i = 0; i < o->folder_count; i++)
        PST_TRY(look_at(o->folders[i], &places[i], err));
    choose_size(o, places);
    PST_TRY(check_places(plan, places, err));
    PST_TRY(check_memory(o, err));
    PST_TRY(check_space(plan, places, err));
    plan->folders = pst_heap_calloc(o->folder_count, sizeof *plan->folders);
    if (plan->folders == NULL)
        return pst_fail_memory(err, "a table of folders", o->folder_count * sizeof *plan->folders);
    PST_TRY(o->stripe ? make_member_folders(plan, places, err) : copy_folders(plan, places, err));
    o->folders = (const char *const *)plan->folders;
    return make_targets(plan, places, err);
}

int pst_bench_plan_make(const pst_io_bench_options *options, pst_bench_plan *plan, pst_error *err)
{
    *plan = (pst_bench_plan){.options = *options, .writable = true};
    PST_TRY(check_options(options, err));
    pst_io_bench_options *o = &plan->options;
    fill_defaults(o);
    plan->files_per_transfer = o->different_file_each_loop ? o->loops + o->warmup_loops : 1;
    place *places = pst_heap_calloc(o->folder_count, sizeof *places);
    if (places == NULL)
        return pst_fail_memory(err, "a table of folders", o->folder_count * sizeof *places);
    int status = make_plan(plan, places, err);
    pst_heap_free(places);
    if (status < 0)
        pst_bench_plan_release(plan);
    return status;
}

/* ---- removal ---- */

/* By name, which needs no memory and works for a set that was half made. */
static void remove_striped(const pst_bench_plan *plan)
{
    for (uint32_t i = 0; i < plan->folders_made; i++) {
        char *path = plan->removal_path;
        for (size_t n = 0; plan->targets != NULL && n < plan->target_count; n++) {
            if (plan->targets[n].path == NULL)
                continue;
            snprintf(path, plan->removal_bytes, "%s/%s", plan->folders[i], plan->targets[n].path);
            pst_sys->unlink(path);
        }
        snprintf(path, plan->removal_bytes, "%s/penstock-stripe.json", plan->folders[i]);
        pst_sys->unlink(path);
        pst_sys->rmdir(plan->folders[i]);
    }
}

void pst_bench_plan_release(pst_bench_plan *plan)
{
    if (plan->options.stripe)
        remove_striped(plan);
    for (size_t i = 0; plan->targets != NULL && i < plan->target_count; i++) {
        if (plan->targets[i].made)
            pst_sys->unlink(plan->targets[i].path);
        pst_heap_free(plan->targets[i].path);
    }
    pst_heap_free(plan->targets);
    for (uint32_t i = 0; plan->folders != NULL && i < plan->options.folder_count; i++)
        pst_heap_free(plan->folders[i]);
    pst_heap_free(plan->folders);
    pst_heap_free(plan->removal_path);
    *plan = (pst_bench_plan){0};
}
