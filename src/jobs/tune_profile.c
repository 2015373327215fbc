/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The profile file: {"version": 1, "drives": {"<drive id>": {"engine": ..., "block_size": ..., ...}, ...}}.
 *
 * It is replaced whole, never changed in place, so readers need no lock; writers take turns by a lock on a file beside
 * it, since the file itself is a new one each time. It lies in a user's folder, but anybody may have edited it: every
 * value is checked, entries of other drives and keys that are not known are carried along.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/json.h"
#include "base/log.h"
#include "os/clock.h"
#include "os/drive.h"
#include "os/file.h"
#include "os/sys.h"
#include "penstock/tune.h"

enum {
    VERSION = 1,
    MAX_PROFILE_BYTES = 1 << 20,
    MAX_DEPTH = 4096,
    MAX_WORKERS = 64,
    MOST_FOLDERS = 64,
    LOCK_RETRY_NS = 10000000
};
static const uint64_t LOCK_PATIENCE_NS = 10000000000ull;

int pst_tune_drive_id(const char *const *paths, uint32_t count, char *out, size_t out_bytes, pst_error *err)
{
    if (paths == NULL || count == 0 || count > MOST_FOLDERS || out_bytes < PST_DRIVE_ID_BYTES)
        return pst_fail(err, PST_E_USAGE, NULL, "a drive id needs between 1 and %d paths and room for %d bytes",
                        MOST_FOLDERS, PST_DRIVE_ID_BYTES);
    char(*ids)[PST_DRIVE_ID_BYTES] = pst_heap_calloc(count, sizeof *ids);
    if (ids == NULL)
        return pst_fail_memory(err, "drive ids", count * sizeof *ids);
    int status = 0;
    for (uint32_t i = 0; status >= 0 && i < count; i++)
        status = pst_drive_identify(paths[i], ids[i], err);
    if (status >= 0)
        pst_drive_join(ids, count, out);
    pst_heap_free(ids);
    return status;
}

/* ---- reading ---- */

/* 1: *out is the document and *drives its table; 0: there is no file. */
static int load(const char *profile, json_t **out, json_t **drives, pst_error *err)
{
    char *text = NULL;
    size_t bytes = 0;
    int found = pst_file_find(profile, err);
    if (found <= 0)
        return found;
    PST_TRY(pst_file_read_all(profile, MAX_PROFILE_BYTES, &text, &bytes, err));
    json_t *document = NULL;
    uint64_t version = 0;
    int status = pst_json_parse(text, bytes, profile, &document, err);
    pst_heap_free(text);
    PST_TRY(status);
    if (!json_is_object(document))
        status = pst_fail(err, PST_E_FORMAT, profile, "is not a JSON object");
    if (status >= 0)
        status = pst_json_u64(document, "version", true, 1, UINT32_MAX, &version, profile, err);
    if (status >= 0 && version != VERSION)
        status = pst_fail(err, PST_E_UNSUPPORTED, profile, "is of version %" PRIu64 ", and only version %d is known",
                          version, VERSION);
    if (status >= 0)
        status = pst_json_object(document, "drives", true, drives, profile, err);
    if (status < 0) {
        json_decref(document);
        return status;
    }
    *out = document;
    return 1;
}

static bool is_engine_name(const char *name)
{
    size_t length = strlen(name);
    return length > 0 && length < PST_TUNE_ENGINE_BYTES &&
           strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.") == length;
}

int pst_tune_check_profile(const char *profile, pst_error *err)
{
    json_t *document = NULL, *drives = NULL;
    int found = load(profile, &document, &drives, err);
    if (found == 1)
        json_decref(document);
    return found;
}

/* Checks every value of an entry, used or not. `path`: for messages. */
static int read_entry(const json_t *entry, const char *path, pst_io_options *out, char *engine_text, pst_error *err)
{
    const char *engine = NULL;
    uint64_t block_size = 0, depth = 0, workers = 0;
    bool single_submit = false;
    if (!json_is_object(entry))
        return pst_fail(err, PST_E_FORMAT, path, "a drive's entry is not an object");
    PST_TRY(pst_json_string(entry, "engine", true, &engine, path, err));
    if (!is_engine_name(engine))
        return pst_fail(err, PST_E_FORMAT, path, "\"engine\" is not the name of an engine");
    PST_TRY(pst_json_u64(entry, "block_size", true, 4096, 1 << 30, &block_size, path, err));
    if (block_size % 4096 != 0)
        return pst_fail(err, PST_E_FORMAT, path, "\"block_size\" is no multiple of 4096");
    PST_TRY(pst_json_u64(entry, "queue_depth", true, 1, MAX_DEPTH, &depth, path, err));
    PST_TRY(pst_json_u64(entry, "workers", true, 1, MAX_WORKERS, &workers, path, err));
    PST_TRY(pst_json_bool(entry, "single_submit", false, &single_submit, path, err));
    if (block_size * depth * workers > UINT64_C(1) << 34)
        return pst_fail(err, PST_E_FORMAT, path, "an entry has %" PRIu64 " bytes in flight, more than is sensible",
                        block_size * depth * workers);
    strcpy(engine_text, engine);
    *out = (pst_io_options){.struct_size = sizeof *out,
                            .block_size = block_size,
                            .queue_depth = (uint32_t)depth,
                            .workers = (uint32_t)workers,
                            .single_submit = single_submit};
    return 0;
}

static bool engine_works(const char *name)
{
    pst_io_engine_info info = {.struct_size = sizeof info};
    for (uint32_t n = 0; pst_io_engine_at(n, &info) == 1; n++) {
        if (strcmp(info.name, name) == 0)
            return info.status >= 0;
    }
    return false;
}

/* Whether the entry is one for this handle; the log says why not. */
static bool fits(const char *engine, const pst_io_options *io, const char *drive)
{
    if (io->engine != NULL && strcmp(io->engine, "auto") != 0 && strcmp(io->engine, engine) != 0) {
        pst_log(PST_LOG_INFO, "the profile of %s is for the engine %s and not used", drive, engine);
        return false;
    }
    if (io->engine_table != NULL)
        return false;
    if (engine_works(engine))
        return true;
    pst_log(PST_LOG_INFO, "the profile of %s is not used: the engine %s does not work here", drive, engine);
    return false;
}

int pst_tune_apply(const char *profile, const char *const *paths, uint32_t count, pst_io_options *io, char *engine_text,
                   size_t engine_text_bytes, pst_error *err)
{
    char drive[PST_DRIVE_ID_BYTES], engine[PST_TUNE_ENGINE_BYTES] = "";
    if (profile == NULL || io == NULL || engine_text_bytes < PST_TUNE_ENGINE_BYTES)
        return pst_fail(err, PST_E_USAGE, NULL, "a profile needs a path, options and room for the engine's name");
    json_t *document = NULL, *drives = NULL;
    int status = load(profile, &document, &drives, err);
    if (status <= 0)
        return status;
    pst_io_options found = {0};
    status = pst_tune_drive_id(paths, count, drive, sizeof drive, err);
    const json_t *entry = status >= 0 ? json_object_get(drives, drive) : NULL;
    if (entry != NULL)
        status = read_entry(entry, profile, &found, engine, err);
    json_decref(document);
    if (status < 0 || entry == NULL || !fits(engine, io, drive))
        return status < 0 ? status : 0;
    pst_log(PST_LOG_INFO, "I/O settings from the profile of %s", drive);
    strcpy(engine_text, engine);
    io->engine = engine_text;
    if (io->block_size == 0)
        io->block_size = found.block_size;
    if (io->queue_depth == 0)
        io->queue_depth = found.queue_depth;
    if (io->workers == 0)
        io->workers = found.workers;
    io->single_submit = io->single_submit || found.single_submit;
    return 1;
}

/* ---- writing ---- */

/* Every missing folder above `path`, for nobody else to read. */
static int create_folders(const char *path, pst_error *err)
{
    char *copy = pst_heap_strdup(path);
    if (copy == NULL)
        return pst_fail_memory(err, path, strlen(path));
    int status = 0;
    for (char *slash = copy; status >= 0 && (slash = strchr(slash + 1, '/')) != NULL;) {
        *slash = '\0';
        if (!pst_file_is_folder(copy)) {
            status = pst_sys->mkdir(copy, 0700);
            if (status == -EEXIST && pst_file_is_folder(copy))
                status = 0; /* another process was faster */
            if (status < 0)
                pst_fail(err, status, copy, "cannot create the folder: %s", pst_strerror(status));
        }
        *slash = '/';
    }
    pst_heap_free(copy);
    return status;
}

/* Returns a descriptor that holds the lock until it is closed. */
static int take_lock(const char *profile, pst_error *err)
{
    char *path = pst_heap_printf("%s.lock", profile);
    if (path == NULL)
        return pst_fail_memory(err, profile, strlen(profile));
    int fd;
    do {
        fd = pst_sys->open(path, O_RDWR | O_CREAT, 0600);
    } while (fd == -EINTR);
    if (fd < 0) {
        pst_fail(err, fd, path, "cannot open: %s", pst_strerror(fd));
        pst_heap_free(path);
        return fd;
    }
    uint64_t begin = pst_clock_ns();
    int status;
    while ((status = pst_sys->flock(fd, LOCK_EX | LOCK_NB)) == -EWOULDBLOCK || status == -EINTR) {
        if (pst_clock_ns() - begin > LOCK_PATIENCE_NS)
            break;
        pst_sys->sleep_ns(LOCK_RETRY_NS);
    }
    if (status < 0) {
        pst_sys->close(fd);
        pst_fail(err, status, path, "cannot lock: %s",
                 status == -EWOULDBLOCK ? "another process holds it" : pst_strerror(status));
    }
    pst_heap_free(path);
    return status < 0 ? status : fd;
}

/* Appears whole and durable, readable by its owner alone. */
static int publish(const char *profile, const char *text, size_t bytes, pst_error *err)
{
    char *temporary = pst_file_temporary_name(profile);
    if (temporary == NULL)
        return pst_fail_memory(err, profile, strlen(profile));
    int fd;
    do {
        fd = pst_sys->open(temporary, O_WRONLY | O_CREAT | O_EXCL, 0600);
    } while (fd == -EINTR);
    int status = fd;
    if (fd >= 0) {
        ssize_t put = pst_sys_write_all(fd, text, bytes, 0);
        int closed = pst_sys->close(fd);
        status = put < 0 ? (int)put : closed;
        if (status < 0)
            pst_fail(err, status, profile, "cannot write: %s", pst_strerror(status));
        else
            status = pst_file_publish_rename(temporary, profile, err);
        if (status < 0)
            pst_sys->unlink(temporary);
    } else {
        pst_fail(err, fd, profile, "cannot create: %s", pst_strerror(fd));
    }
    pst_heap_free(temporary);
    return status;
}

static json_t *entry_json(const pst_tune_report *report)
{
    const pst_tune_point *best = &report->best;
    json_t *entry = json_pack("{s:s, s:I, s:I, s:I, s:b}", "engine", best->engine, "block_size",
                              (json_int_t)best->block_size, "queue_depth", (json_int_t)best->queue_depth, "workers",
                              (json_int_t)best->workers, "single_submit", best->single_submit);
    if (entry == NULL)
        return NULL;
    int failed = 0;
    if (best->read_bytes_per_second > 0)
        failed |= json_object_set_new(entry, "read_bytes_per_second", json_real(best->read_bytes_per_second));
    if (best->write_bytes_per_second > 0)
        failed |= json_object_set_new(entry, "write_bytes_per_second", json_real(best->write_bytes_per_second));
    if (failed != 0) {
        json_decref(entry);
        return NULL;
    }
    return entry;
}

/* With the lock held. */
static int replace_entry(const char *profile, const char *drive, const pst_tune_report *report, pst_error *err)
{
    json_t *document = NULL, *drives = NULL;
    int status = load(profile, &document, &drives, err);
    PST_TRY(status);
    if (status == 0) {
        document = json_pack("{s:i, s:{}}", "version", VERSION, "drives");
        drives = json_object_get(document, "drives");
    }
    char *text = NULL;
    if (drives == NULL || json_object_set_new(drives, drive, entry_json(report)) != 0 ||
        (text = json_dumps(document, JSON_INDENT(2) | JSON_SORT_KEYS)) == NULL)
        status = pst_fail_memory(err, "the profile", 0);
    else if (strlen(text) >= MAX_PROFILE_BYTES)
        status = pst_fail(err, -EFBIG, profile, "would have more than %d bytes", MAX_PROFILE_BYTES);
    else
        status = publish(profile, text, strlen(text), err);
    free(text); /* jansson's */
    json_decref(document);
    return status;
}

int pst_tune_save(const char *profile, const char *const *folders, uint32_t folder_count, const pst_tune_report *report,
                  pst_error *err)
{
    char drive[PST_DRIVE_ID_BYTES], engine[PST_TUNE_ENGINE_BYTES];
    pst_io_options checked;
    if (profile == NULL || report == NULL)
        return pst_fail(err, PST_E_USAGE, NULL, "a profile needs a path and a report");
    json_t *entry = entry_json(report);
    int status = entry != NULL ? read_entry(entry, NULL, &checked, engine, err) : pst_fail_memory(err, "a profile", 0);
    json_decref(entry);
    PST_TRY(status);
    PST_TRY(pst_tune_drive_id(folders, folder_count, drive, sizeof drive, err));
    PST_TRY(create_folders(profile, err));
    int lock = take_lock(profile, err);
    PST_TRY(lock);
    status = replace_entry(profile, drive, report, err);
    pst_sys->close(lock);
    return status;
}
