/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The threads of verify. Each takes some items that follow each other in a file, reads them through a ring of its
 * own, and computes their sums as the bytes arrive.
 */
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/number.h"
#include "jobs/verify_internal.h"
#include "store/crc32.h"

enum {
    RING_BYTES = 8 << 20, /* of a thread, at least */
    ALL_RINGS_BYTES = PST_IO_DEFAULT_DEPTH * PST_IO_DEFAULT_BLOCK_BYTES,
    TAKE_ITEMS = 256 /* at once */
};

typedef struct verify_reader {
    verifying *v;
    pst_span_reader *spans;
    pst_range_digest *digest;
    uint32_t worker;
    size_t next, end; /* items that are still to be read */
    uint64_t at;      /* of items[next] */
    uint32_t crc;
} verify_reader;

static int count_bytes(const verify_reader *r, uint64_t bytes, pst_error *err)
{
    uint64_t done = atomic_fetch_add_explicit(&r->v->done_bytes, bytes, memory_order_relaxed) + bytes;
    return r->worker == 0 ? verify_progress(r->v, done, err) : 0; /* the caller's thread alone calls the caller */
}

/* ---- ranges ---- */

static void begin_item(verify_reader *r, const verify_item *item)
{
    /* Only a digest of the file's ranges knows of cuts. */
    static const pst_file_digests none;
    const pst_file_digests *digests = item->name != NULL ? &r->v->files[item->file].digests : &none;
    pst_range_digest_begin(r->digest, digests, item->offset, item->bytes);
    r->crc = 0;
}

static void end_item(verify_reader *r, verify_item *item)
{
    char digits[PST_DIGEST_DIGITS];
    item->verdict = VERIFY_GOOD;
    if (item->has_crc && r->crc != item->crc)
        item->verdict = VERIFY_BAD_CRC;
    if (item->digest == NULL)
        return;
    pst_range_digest_end(r->digest, digits);
    if (memcmp(digits, item->digest, sizeof digits) != 0)
        item->verdict = VERIFY_BAD;
}

static int next_span(void *user, pst_span *out, pst_error *err)
{
    verify_reader *r = user;
    verifying *v = r->v;
    (void)err;
    if (atomic_load_explicit(&v->failed, memory_order_relaxed))
        return PST_E_CANCELLED; /* another thread has told why */
    for (; r->next < r->end && v->items[r->next].kind == VERIFY_RANGE; r->next++, r->at = 0) {
        const verify_item *item = &v->items[r->next];
        if (r->at == item->bytes) /* also one that is empty, which is looked at afterwards */
            continue;
        uint64_t offset = item->offset + r->at;
        *out = (pst_span){.file = v->files[item->file].file,
                          .offset = offset,
                          .bytes = pst_span_cut(offset, item->bytes - r->at, pst_span_reader_most(r->spans)),
                          .item = r->next};
        r->at += out->bytes;
        return 1;
    }
    return 0;
}

static int take_span(void *user, const pst_span *span, void *data, pst_error *err)
{
    verify_reader *r = user;
    verify_item *item = &r->v->items[span->item];
    if (span->offset == item->offset)
        begin_item(r, item);
    if (item->digest != NULL)
        pst_range_digest_add(r->digest, data, span->bytes);
    if (item->has_crc)
        r->crc = pst_crc32(r->crc, data, span->bytes);
    if (span->offset + span->bytes == item->offset + item->bytes)
        end_item(r, item);
    return count_bytes(r, span->bytes, err);
}

/* From r->next on as many as there are in a row. */
static int check_ranges(verify_reader *r, pst_error *err)
{
    const pst_span_user user = {.next = next_span, .take = take_span, .user = r};
    size_t first = r->next;
    r->at = 0;
    PST_TRY(pst_span_reader_run(r->spans, &user, err));
    for (size_t i = first; i < r->next; i++) {
        verify_item *item = &r->v->items[i];
        if (item->bytes > 0)
            continue;
        begin_item(r, item);
        end_item(r, item);
    }
    return 0;
}

/* ---- the files' own ---- */

static int check_own(verify_reader *r, verify_item *item, pst_error *err)
{
    const verify_file *file = &r->v->files[item->file];
    const verify_part *part = &r->v->parts[file->part];
    char digits[PST_DIGEST_DIGITS];
    if (part->store != NULL)
        PST_TRY(pst_file_own_digest_safetensors(r->v->io, file->file, item->bytes, digits, err));
    else
        PST_TRY(pst_file_own_digest_torch(r->spans, file->file, &part->torch, &file->digests, digits, err));
    item->verdict = memcmp(digits, item->digest, sizeof digits) == 0 ? VERIFY_GOOD : VERIFY_BAD;
    return count_bytes(r, item->bytes, err);
}

/* ---- threads ---- */

static int check_some(verify_reader *r, pst_error *err)
{
    verifying *v = r->v;
    while (r->next < r->end) {
        if (v->items[r->next].kind == VERIFY_OWN)
            PST_TRY(check_own(r, &v->items[r->next++], err));
        else
            PST_TRY(check_ranges(r, err));
    }
    return 0;
}

static void run_reader(void *context, uint32_t task, uint32_t worker)
{
    verifying *v = context;
    verify_reader *r = &v->readers[task];
    size_t step = pst_min(TAKE_ITEMS, 1 + v->item_count / (16 * (size_t)v->reader_count));
    r->worker = worker;
    while (!atomic_load_explicit(&v->failed, memory_order_relaxed)) {
        pst_error err;
        r->next = atomic_fetch_add_explicit(&v->next, step, memory_order_relaxed);
        if (r->next >= v->item_count)
            return;
        r->end = pst_min(v->item_count, r->next + step);
        int status = check_some(r, &err);
        if (status < 0 && !atomic_exchange(&v->failed, true)) { /* one keeps its error; the loop's end orders it */
            v->failure = err;
            v->status = status;
        }
    }
}

static int make_readers(verifying *v, pst_error *err)
{
    uint32_t threads = pst_pool_threads(v->pool);
    v->readers = pst_heap_calloc(threads, sizeof *v->readers);
    if (v->readers == NULL)
        return pst_fail_memory(err, "readers", threads * sizeof *v->readers);
    for (uint32_t i = 0; i < threads; i++) {
        verify_reader *r = &v->readers[v->reader_count++];
        r->v = v;
        PST_TRY(pst_span_reader_create(v->io, pst_max(RING_BYTES, ALL_RINGS_BYTES / threads), &r->spans, err));
        PST_TRY(pst_range_digest_create(&r->digest, err));
    }
    return 0;
}

int verify_check(verifying *v, pst_error *err)
{
    int status = make_readers(v, err);
    if (status >= 0) {
        pst_pool_run(v->pool, v->reader_count, run_reader, v);
        status = v->status;
        if (status < 0 && err != NULL)
            *err = v->failure;
    }
    for (uint32_t i = 0; i < v->reader_count; i++) {
        pst_span_reader_destroy(v->readers[i].spans);
        pst_range_digest_destroy(v->readers[i].digest);
    }
    pst_heap_free(v->readers);
    return status;
}
