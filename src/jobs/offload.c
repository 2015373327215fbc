/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Quantized copies that are made when they are first asked for, and found again by what they were made from.
 *
 * A copy's name ends in a digest of its identity: the model's place, every file's size and time of change, samples of its
 * weights (tools that copy files give them the times of others), and the options.
 * One folder: DIR/<name> appears whole, as convert makes it. Several: DIR_i/<name> are the members of a stripe set, filled in
 * place, and complete when the first has its marker; what has none is removed and made anew. DIR_1/<name>.lock is held
 * exclusively while a copy is looked after and made, and shared while it is used.
 */
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "jobs/batch_internal.h"
#include "jobs/convert_internal.h"
#include "os/clock.h"
#include "os/file.h"
#include "os/lock.h"
#include "os/sys.h"
#include "store/digest.h"
#include "store/json_text.h"

#define MARKER "penstock-offload.json"

enum { NAME_BYTES = 160, KEY_DIGITS = 16 };
static const uint64_t WAIT_NS = 50000000;

struct pst_offload {
    pst_lock *lock;
    char *path; /* of the model's copy */
    bool was_made;
};

typedef struct offloading {
    pst_offload_options options;
    pst_model *model;
    char name[NAME_BYTES];
    char *copies[PST_STRIPE_MAX_MEMBERS]; /* "<folder>/<name>" */
    pst_offload *result;
} offloading;

static int check_options(offloading *o, const pst_offload_options *options, pst_error *err)
{
    size_t known = sizeof o->options;
    if (options == NULL || options->struct_size < offsetof(pst_offload_options, symmetric))
        return pst_fail(err, PST_E_USAGE, NULL, "an offloaded model needs options with their size");
    memcpy(&o->options, options, options->struct_size < known ? options->struct_size : known);
    uint32_t count = o->options.folder_count;
    if (o->options.model == NULL || o->options.folders == NULL || count == 0)
        return pst_fail(err, PST_E_USAGE, NULL, "an offloaded model needs a model and a folder");
    if (o->options.bits != 8 && o->options.bits != 4)
        return pst_fail(err, PST_E_USAGE, NULL, "weights of %u bits: 8 and 4 are there", o->options.bits);
    if (count > PST_STRIPE_MAX_MEMBERS)
        return pst_fail(err, PST_E_USAGE, NULL, "%u offload folders; the most is %d", count, PST_STRIPE_MAX_MEMBERS);
    return 0;
}

/* ---- identity ---- */

static int add_file(pst_json_text *text, const char *path, pst_error *err)
{
    uint64_t bytes;
    int64_t changed;
    PST_TRY(pst_file_size(path, &bytes, err));
    PST_TRY(pst_file_changed_ns(path, &changed, err));
    pst_json_text_add(text, "%s %llu %lld\n", path, (unsigned long long)bytes, (long long)changed);
    return 0;
}

/* The files that a copy is made from: the weights', and the small ones in the model's folder. */
static int add_files(const offloading *o, pst_json_text *text, pst_error *err)
{
    const pst_store *store = o->model->store;
    for (uint32_t i = 0; i < pst_store_file_count(store); i++)
        PST_TRY(add_file(text, pst_store_file_path(store, i), err));
    char **names;
    size_t count;
    PST_TRY(pst_file_list(o->model->folder, NULL, &names, &count, err));
    int status = 0;
    for (size_t i = 0; i < count && status >= 0; i++) {
        char *path = pst_heap_printf("%s/%s", o->model->folder, names[i]);
        if (path == NULL)
            status = pst_fail_memory(err, "a path", strlen(names[i]));
        else if (strcmp(names[i], "config.json") == 0 || /* of the others what a conversion copies */
                 (pst_convert_is_companion(names[i]) && !pst_file_is_folder(path) && pst_file_exists(path)))
            status = add_file(text, path, err);
        pst_heap_free(path);
    }
    pst_file_list_free(names, count);
    return status;
}

static int add_absolute(pst_json_text *text, const char *path, pst_error *err)
{
    char *absolute;
    PST_TRY(pst_file_absolute(path, &absolute, err));
    pst_json_text_add(text, "%s\n", absolute);
    pst_heap_free(absolute);
    return 0;
}

static int describe(const offloading *o, pst_json_text *text, pst_error *err)
{
    const pst_offload_options *p = &o->options;
    uint64_t weights = 0;
    PST_TRY(pst_batch_weights_key(o->model, &weights, err));
    pst_json_text_add(text, "2\n%u bits, groups of %u, %s\nweights %016llx\n", p->bits,
                      p->group_size ? p->group_size : 64, p->symmetric ? "symmetric" : "asymmetric",
                      (unsigned long long)weights);
    PST_TRY(add_absolute(text, o->model->folder, err));
    PST_TRY(add_files(o, text, err));
    for (uint32_t i = 0; p->folder_count > 1 && i < p->folder_count; i++)
        PST_TRY(add_absolute(text, p->folders[i], err));
    return text->failed ? pst_fail_memory(err, "an identity", text->bytes) : 0;
}

/* "<model>-4bit-<digest of the identity>", the model's part made of plain letters. */
static int make_name(offloading *o, pst_error *err)
{
    pst_json_text text = {0};
    pst_digest *digest = NULL;
    char digits[PST_DIGEST_DIGITS], base[64];
    int status;
    PST_TRY_GOTO(done, describe(o, &text, err));
    PST_TRY_GOTO(done, pst_digest_create(&digest, err));
    pst_digest_begin(digest);
    pst_digest_add(digest, text.text, text.bytes);
    pst_digest_end(digest, digits);
    const char *slash = strrchr(o->options.model, '/'), *last = slash != NULL ? slash + 1 : o->options.model;
    snprintf(base, sizeof base, "%s", *last != '\0' ? last : "model");
    for (char *at = base; *at != '\0'; at++) {
        bool is_plain = (*at >= 'a' && *at <= 'z') || (*at >= 'A' && *at <= 'Z') || (*at >= '0' && *at <= '9') ||
                        *at == '-' || *at == '_' || (*at == '.' && at > base);
        *at = is_plain ? *at : '_';
    }
    snprintf(o->name, sizeof o->name, "%s-%ubit-%.*s", base, o->options.bits, KEY_DIGITS, digits);
done:
    pst_digest_destroy(digest);
    pst_json_text_free(&text);
    return status;
}

/* ---- what is there ---- */

static int has_file(const char *folder, const char *name, pst_error *err)
{
    char *path = pst_heap_printf("%s/%s", folder, name);
    if (path == NULL)
        return pst_fail_memory(err, "a path", strlen(folder));
    int status = pst_file_find(path, err);
    pst_heap_free(path);
    return status;
}

static int is_complete(const offloading *o, pst_error *err)
{
    return has_file(o->copies[0], o->options.folder_count > 1 ? MARKER : "config.json", err);
}

/* A flat folder with all that is in it. */
static int remove_folder(const char *folder, pst_error *err)
{
    char **names;
    size_t count;
    if (!pst_file_is_folder(folder))
        return 0;
    PST_TRY(pst_file_list(folder, NULL, &names, &count, err));
    int status = 0;
    for (size_t i = 0; i < count && status >= 0; i++) {
        char *path = pst_heap_printf("%s/%s", folder, names[i]);
        status = path != NULL ? pst_file_remove(path, err) : pst_fail_memory(err, "a path", strlen(names[i]));
        pst_heap_free(path);
    }
    pst_file_list_free(names, count);
    return status < 0 ? status : pst_folder_remove(folder, err);
}

/* What a process left behind that was ended while it made this copy: members without a marker, or "<name>.tmp-...". */
static int remove_leftovers(const offloading *o, pst_error *err)
{
    char **names;
    size_t count, length = strlen(o->name);
    for (uint32_t i = 0; i < o->options.folder_count; i++)
        PST_TRY(remove_folder(o->copies[i], err));
    PST_TRY(pst_file_list(o->options.folders[0], NULL, &names, &count, err));
    int status = 0;
    for (size_t i = 0; i < count && status >= 0; i++) {
        if (strncmp(names[i], o->name, length) != 0 || strncmp(names[i] + length, ".tmp-", 5) != 0)
            continue;
        char *path = pst_heap_printf("%s/%s", o->options.folders[0], names[i]);
        status = path != NULL ? remove_folder(path, err) : pst_fail_memory(err, "a path", length);
        pst_heap_free(path);
    }
    pst_file_list_free(names, count);
    return status;
}

/* ---- making ---- */

static pst_convert_options conversion(const offloading *o)
{
    const pst_offload_options *p = &o->options;
    return (pst_convert_options){.struct_size = sizeof(pst_convert_options),
                                 .model = o->model->folder,
                                 .folder = o->copies[0],
                                 .bits = p->bits,
                                 .group_size = p->group_size,
                                 .symmetric = p->symmetric,
                                 .host_memory_bytes = p->host_memory_bytes,
                                 .io_engine = p->io_engine,
                                 .block_size = p->block_size,
                                 .queue_depth = p->queue_depth,
                                 .io_workers = p->io_workers,
                                 .io_single_submit = p->io_single_submit,
                                 .threads = p->threads,
                                 .on_progress = p->on_progress,
                                 .user = p->user};
}

static int fill_stripes(const offloading *o, pst_error *err)
{
    const pst_convert_options options = conversion(o);
    const char *const *members = (const char *const *)o->copies;
    uint32_t count = o->options.folder_count;
    pst_stripe_set *set;
    for (uint32_t i = 0; i < count; i++)
        PST_TRY(pst_folder_create(o->copies[i], err));
    PST_TRY(pst_stripe_create(members, count, 0, err));
    PST_TRY(pst_stripe_open(members, count, &set, err));
    int status = pst_convert_run(&options, &(pst_convert_stripes){set, members, count}, NULL, err);
    pst_stripe_close(set);
    PST_TRY(status);
    for (uint32_t i = 0; i < count; i++) {
        PST_TRY(pst_folder_sync(o->copies[i], err));
        PST_TRY(pst_folder_sync(o->options.folders[i], err));
    }
    static const char marker[] = "{\"complete\": true}\n";
    char *path = pst_heap_printf("%s/" MARKER, o->copies[0]);
    if (path == NULL)
        return pst_fail_memory(err, "a path", strlen(o->copies[0]));
    status = pst_file_publish(path, marker, strlen(marker), err);
    pst_heap_free(path);
    return status;
}

static int make(const offloading *o, pst_error *err)
{
    PST_TRY(remove_leftovers(o, err));
    if (o->options.folder_count == 1) {
        const pst_convert_options options = conversion(o);
        return pst_convert(&options, NULL, err);
    }
    int status = fill_stripes(o, err);
    if (status < 0)
        remove_leftovers(o, NULL);
    return status;
}

/* ---- taking turns ---- */

/* Another process makes this copy, or begins to use it. */
static int wait_a_little(const offloading *o, pst_error *err)
{
    if (o->options.on_progress != NULL && o->options.on_progress(o->options.user, 0, 0) != 0)
        return pst_fail(err, PST_E_CANCELLED, o->copies[0], "cancelled");
    pst_sys->sleep_ns(WAIT_NS);
    return 0;
}

/* Until the copy is there and the lock is held shared. */
static int take(offloading *o, pst_error *err)
{
    pst_lock *lock = o->result->lock;
    for (;;) {
        int has = pst_lock_try(lock, false, err);
        PST_TRY(has);
        if (has > 0) {
            int complete = is_complete(o, err);
            PST_TRY(complete);
            if (complete > 0)
                return 0;
            has = pst_lock_try(lock, true, err);
            PST_TRY(has);
        }
        if (has == 0) {
            PST_TRY(wait_a_little(o, err));
            continue;
        }
        int complete = is_complete(o, err); /* somebody may have been faster between the two locks */
        PST_TRY(complete);
        if (complete == 0) {
            PST_TRY(make(o, err));
            o->result->was_made = true;
        }
    }
}

static int open_model(offloading *o, pst_error *err)
{
    PST_TRY(pst_model_open(o->options.model, o->options.cache, &o->model, err));
    if (o->model->transformer.quantized.layout == PST_WEIGHT_GROUPED)
        return pst_fail(err, PST_E_USAGE, o->model->folder, "is quantized already (to %u bits)",
                        o->model->transformer.quantized.bits);
    return 0;
}

static int run(offloading *o, pst_error *err)
{
    const pst_offload_options *p = &o->options;
    PST_TRY(open_model(o, err));
    for (uint32_t i = 0; i < p->folder_count; i++)
        PST_TRY(pst_folder_create(p->folders[i], err));
    PST_TRY(make_name(o, err));
    for (uint32_t i = 0; i < p->folder_count; i++) {
        o->copies[i] = pst_heap_printf("%s/%s", p->folders[i], o->name);
        if (o->copies[i] == NULL)
            return pst_fail_memory(err, "a path", strlen(p->folders[i]));
    }
    char *path = pst_heap_printf("%s.lock", o->copies[0]);
    if (path == NULL)
        return pst_fail_memory(err, "a path", strlen(o->copies[0]));
    int status = pst_lock_open(path, &o->result->lock, err);
    pst_heap_free(path);
    PST_TRY(status);
    PST_TRY(take(o, err));
    o->result->path = pst_heap_strdup(o->copies[0]);
    return o->result->path != NULL ? 0 : pst_fail_memory(err, "a path", strlen(o->copies[0]));
}

int pst_offload_open(const pst_offload_options *options, pst_offload **out, pst_error *err)
{
    offloading o = {0};
    PST_TRY(check_options(&o, options, err));
    o.result = pst_heap_calloc(1, sizeof *o.result);
    int status = o.result != NULL ? run(&o, err) : pst_fail_memory(err, "an offloaded model", sizeof *o.result);
    pst_model_close(o.model);
    for (uint32_t i = 0; i < o.options.folder_count; i++)
        pst_heap_free(o.copies[i]);
    if (status < 0) {
        pst_offload_close(o.result);
        return status;
    }
    *out = o.result;
    return 0;
}

const char *pst_offload_path(const pst_offload *offload)
{
    return offload->path;
}

bool pst_offload_was_made(const pst_offload *offload)
{
    return offload->was_made;
}

void pst_offload_close(pst_offload *offload)
{
    if (offload == NULL)
        return;
    pst_lock_close(offload->lock);
    pst_heap_free(offload->path);
    pst_heap_free(offload);
}
