/* SPDX-License-Identifier: Apache-2.0 */
/*
 * verify: every digest and every CRC computed again, and what does not fit told by file, tensor and place. Files
 * without digests have had their structure checked by opening them, and are named.
 */
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "io/like.h"
#include "jobs/verify_internal.h"
#include "os/clock.h"
#include "store/safetensors.h"

int verify_progress(verifying *v, uint64_t done, pst_error *err)
{
    const pst_verify_options *o = &v->options;
    if (o->on_progress != NULL && o->on_progress(o->user, done, v->total_bytes) != 0)
        return pst_fail(err, PST_E_CANCELLED, v->path, "cancelled");
    return 0;
}

/* ---- what is told ---- */

static void find(const verifying *v, const pst_verify_finding *finding)
{
    if (v->options.on_finding != NULL)
        v->options.on_finding(v->options.user, finding);
}

static void remark(const verifying *v, const verify_file *file, const char *what)
{
    find(v, &(pst_verify_finding){.file = file->path, .what = what, .offset = PST_NO_OFFSET});
}

/* What of a file could not be checked. */
static void tell_file(const verifying *v, const verify_file *file, pst_verify_report *report)
{
    if (file->is_plain)
        return;
    report->tensors += file->tensors;
    if (file->digests.digits != NULL || (file->tensors == 0 && file->digests.own != NULL))
        return;
    report->files_without_digests += !file->is_torch;
    report->files_with_crcs_only += file->is_torch;
    remark(v, file,
           file->is_torch ? "has CRCs of its records and no digests: only these were checked"
                          : "has no digests: only its structure was checked");
}

static void tell_item(const verifying *v, const verify_item *item, pst_verify_report *report)
{
    const verify_file *file = &v->files[item->file];
    char what[200], quoted[PST_QUOTE_BYTES];
    report->checked += item->is_tensor;
    if (item->verdict == VERIFY_GOOD)
        return;
    if (item->kind == VERIFY_OWN)
        snprintf(what, sizeof what, "its own digest does not fit what is outside of the tensors' data");
    else if (item->verdict == VERIFY_BAD_CRC)
        snprintf(what, sizeof what, "its CRC does not fit its bytes");
    else if (item->is_tensor)
        snprintf(what, sizeof what, "its digest does not fit its bytes");
    else if (item->name != NULL)
        snprintf(what, sizeof what, "the record \"%s\" does not fit its sum", pst_quote(item->name, quoted));
    else
        snprintf(what, sizeof what, "it does not fit the manifest's digest");
    if (!item->is_tensor && item->name != NULL && item->verdict == VERIFY_BAD_CRC)
        snprintf(what, sizeof what, "the CRC of the record \"%s\" does not fit its bytes",
                 pst_quote(item->name, quoted));
    bool placed = item->kind == VERIFY_RANGE;
    find(v, &(pst_verify_finding){.file = file->path,
                                  .tensor = item->is_tensor ? item->name : NULL,
                                  .what = what,
                                  .offset = placed ? item->offset : PST_NO_OFFSET,
                                  .bytes = placed ? item->bytes : 0,
                                  .damaged = true});
    report->damaged += item->is_tensor;
    report->broken += !item->is_tensor;
}

static void tell(const verifying *v, pst_verify_report *report)
{
    for (size_t i = 0; i < v->trouble_count; i++) {
        const verify_trouble *trouble = &v->troubles[i];
        find(v, &(pst_verify_finding){
                    .file = trouble->path, .what = trouble->what, .offset = trouble->offset, .damaged = true});
        report->broken++;
    }
    for (size_t f = 0, i = 0; f < v->file_count; f++) {
        report->files++;
        tell_file(v, &v->files[f], report);
        for (; i < v->item_count && v->items[i].file == f; i++)
            tell_item(v, &v->items[i], report);
    }
    report->bytes = v->total_bytes;
}

/* ---- the whole ---- */

static int run(verifying *v, pst_error *err)
{
    const pst_verify_options *o = &v->options;
    PST_TRY(pst_store_locate(o->path, o->cache, &v->path, err));
    pst_io_options io = PST_IO_OPTIONS_LIKE(o, v->path);
    PST_TRY(pst_io_open(&io, &v->io, err));
    PST_TRY(verify_collect(v, err));
    PST_TRY(pst_pool_create(o->threads, &v->pool, err));
    PST_TRY(verify_progress(v, 0, err));
    PST_TRY(verify_check(v, err));
    return verify_progress(v, v->total_bytes, err);
}

int pst_verify(const pst_verify_options *options, pst_verify_report *report, pst_error *err)
{
    verifying v = {0};
    size_t known = sizeof v.options;
    if (options == NULL || options->struct_size < offsetof(pst_verify_options, on_finding))
        return pst_fail(err, PST_E_USAGE, NULL, "verify needs options with their size");
    memcpy(&v.options, options, options->struct_size < known ? options->struct_size : known);
    if (v.options.path == NULL)
        return pst_fail(err, PST_E_USAGE, NULL, "verify needs a path");
    uint64_t begin_ns = pst_clock_ns();
    int status = run(&v, err);
    pst_verify_report found = {0};
    if (status >= 0)
        tell(&v, &found);
    found.seconds = (double)(pst_clock_ns() - begin_ns) * 1e-9;
    pst_pool_destroy(v.pool);
    verify_forget(&v);
    pst_io_close(v.io);
    pst_heap_free(v.path);
    if (status >= 0 && report != NULL)
        *report = found;
    return status;
}
