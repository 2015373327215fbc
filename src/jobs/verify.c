/* SPDX-License-Identifier: Apache-2.0 */
/*
 * verify: every tensor's digest computed again. Each thread takes the next tensor in the order of the files and reads it
 * through two buffers of its own, so that one is read while the other is digested. Files without digests have had their
 * headers checked by opening them, and are named.
 */
#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/number.h"
#include "io/like.h"
#include "os/clock.h"
#include "os/memory.h"
#include "os/thread.h"
#include "penstock/jobs.h"
#include "store/digest.h"
#include "store/safetensors.h"

enum { BUFFERS = 2, BUFFER_BYTES = 4 << 20, ALIGN = 4096, SLOT_BYTES = BUFFER_BYTES + 2 * ALIGN };

/* What is known of a tensor's bytes. */
typedef enum verdict { UNCHECKED, GOOD, BAD } verdict;

typedef struct reader {
    unsigned char *memory; /* BUFFERS * SLOT_BYTES */
    pst_io_batch *batches[BUFFERS];
    pst_io_op ops[BUFFERS];
    pst_digest *digest;
} reader;

typedef struct verifying {
    pst_verify_options options;
    char *path;
    pst_store *store;
    pst_io *io;
    pst_pool *pool;
    pst_io_file **files;
    const char **digests; /* by file: after the kind; NULL: it has none */
    size_t *first;        /* by file: number of its first tensor */
    unsigned char *verdicts;
    reader *readers; /* by thread */
    uint64_t total_bytes;
    atomic_size_t next;
    atomic_ullong done_bytes;
    atomic_int status; /* of the first failure */
    atomic_bool failed;
    pst_error failure;
} verifying;

/* ---- digests ---- */

/* A file's digests: kind, then for each tensor a space and its digits. */
static int find_digests(verifying *v, uint32_t file, pst_error *err)
{
    pst_store_file_info info;
    pst_store_get_file(v->store, file, &info);
    const char *text = pst_store_metadata(v->store, file, PST_DIGESTS_KEY);
    if (text == NULL)
        return 0;
    size_t kind = strlen(PST_DIGESTS_KIND);
    char quoted[PST_QUOTE_BYTES];
    if (strncmp(text, PST_DIGESTS_KIND, kind) != 0 || (text[kind] != ' ' && text[kind] != '\0'))
        return pst_fail(err, PST_E_UNSUPPORTED, info.path,
                        "has digests of another kind (\"%s\") than " PST_DIGESTS_KIND, pst_quote(text, quoted));
    text += kind;
    bool fits = strlen(text) == info.tensors * (1 + PST_DIGEST_DIGITS);
    for (size_t i = 0; fits && i < info.tensors; i++) {
        const char *one = text + i * (1 + PST_DIGEST_DIGITS);
        fits = one[0] == ' ' && strspn(one + 1, "0123456789abcdef") >= PST_DIGEST_DIGITS;
    }
    if (!fits)
        return pst_fail(err, PST_E_FORMAT, info.path, "its \"" PST_DIGESTS_KEY "\" are not one for each of %zu tensors",
                        info.tensors);
    v->digests[file] = text;
    return 0;
}

static int open_files(verifying *v, pst_error *err)
{
    size_t count = pst_store_file_count(v->store), first = 0;
    v->files = pst_heap_calloc(count, sizeof *v->files);
    v->digests = pst_heap_calloc(count, sizeof *v->digests);
    v->first = pst_heap_calloc(count, sizeof *v->first);
    v->verdicts = pst_heap_calloc(pst_store_tensor_count(v->store), 1);
    if (v->files == NULL || v->digests == NULL || v->first == NULL || v->verdicts == NULL)
        return pst_fail_memory(err, "a table of files", count * sizeof *v->files);
    for (uint32_t f = 0; f < count; f++) {
        pst_store_file_info info;
        pst_store_get_file(v->store, f, &info);
        v->first[f] = first;
        first += info.tensors;
        PST_TRY(find_digests(v, f, err));
        if (v->digests[f] == NULL)
            continue;
        v->total_bytes += info.data_bytes;
        PST_TRY(pst_store_file_open(v->store, f, v->io, &v->files[f], err));
    }
    return 0;
}

/* ---- reading ---- */

static int start_read(const verifying *v, reader *r, unsigned turn, const pst_tensor *tensor, uint64_t offset,
                      pst_error *err)
{
    uint64_t begin = tensor->offset + offset, bytes = pst_min(tensor->bytes - offset, BUFFER_BYTES);
    uint64_t start = pst_round_down(begin, ALIGN);
    r->ops[turn] = (pst_io_op){.file = v->files[tensor->file],
                               .offset = start,
                               .buffer = r->memory + (size_t)turn * SLOT_BYTES,
                               .bytes = pst_round_up(begin + bytes, ALIGN) - start,
                               .kind = PST_IO_READ,
                               .may_be_short = true};
    return pst_io_submit(r->batches[turn], &r->ops[turn], 1, err);
}

/* Digests what a read brought. */
static int finish_read(reader *r, unsigned turn, const pst_tensor *tensor, uint64_t offset, uint64_t *bytes,
                       pst_error *err)
{
    PST_TRY(pst_io_wait(r->batches[turn], UINT64_MAX, err));
    const pst_io_op *op = &r->ops[turn];
    uint64_t skip = tensor->offset + offset - op->offset;
    *bytes = pst_min(tensor->bytes - offset, BUFFER_BYTES);
    if (op->result < (int64_t)(skip + *bytes))
        return pst_fail_at(err, PST_E_SHORT, pst_io_file_path(op->file), op->offset + (uint64_t)op->result,
                           "the file ends early, within its tensors");
    pst_digest_add(r->digest, (const unsigned char *)op->buffer + skip, *bytes);
    return 0;
}

static int report_progress(verifying *v, uint64_t done, pst_error *err)
{
    const pst_verify_options *o = &v->options;
    if (o->on_progress != NULL && o->on_progress(o->user, done, v->total_bytes) != 0)
        return pst_fail(err, PST_E_CANCELLED, v->path, "cancelled");
    return 0;
}

static int digest_tensor(verifying *v, reader *r, const pst_tensor *tensor, bool is_caller, char *digits,
                         pst_error *err)
{
    pst_digest_begin(r->digest);
    unsigned turn = 0;
    if (tensor->bytes > 0) /* one without elements may be there: nothing is read that nobody would wait for */
        PST_TRY(start_read(v, r, turn, tensor, 0, err));
    for (uint64_t offset = 0, bytes = 0; offset < tensor->bytes; offset += bytes, turn ^= 1) {
        if (offset + BUFFER_BYTES < tensor->bytes)
            PST_TRY(start_read(v, r, turn ^ 1, tensor, offset + BUFFER_BYTES, err));
        PST_TRY(finish_read(r, turn, tensor, offset, &bytes, err));
        uint64_t done = atomic_fetch_add_explicit(&v->done_bytes, bytes, memory_order_relaxed) + bytes;
        if (is_caller)
            PST_TRY(report_progress(v, done, err));
    }
    pst_digest_end(r->digest, digits);
    return 0;
}

static void run_reader(void *context, uint32_t task, uint32_t worker)
{
    verifying *v = context;
    reader *r = &v->readers[task];
    size_t count = pst_store_tensor_count(v->store);
    for (;;) {
        size_t index = atomic_fetch_add_explicit(&v->next, 1, memory_order_relaxed);
        if (index >= count || atomic_load_explicit(&v->failed, memory_order_relaxed))
            return;
        const pst_tensor *tensor = pst_store_tensor_at(v->store, index);
        if (v->digests[tensor->file] == NULL)
            continue;
        char digits[PST_DIGEST_DIGITS];
        pst_error err;
        int status = digest_tensor(v, r, tensor, worker == 0, digits, &err);
        if (status < 0) {
            if (!atomic_exchange(&v->failed, true)) { /* one keeps its error; the loop's end orders it */
                v->failure = err;
                v->status = status;
            }
            return;
        }
        size_t place = index - v->first[tensor->file];
        const char *expected = v->digests[tensor->file] + place * (1 + PST_DIGEST_DIGITS) + 1;
        v->verdicts[index] = memcmp(digits, expected, PST_DIGEST_DIGITS) == 0 ? GOOD : BAD;
    }
}

/* ---- the whole ---- */

static int make_readers(verifying *v, pst_error *err)
{
    uint32_t threads = pst_pool_threads(v->pool);
    v->readers = pst_heap_calloc(threads, sizeof *v->readers);
    if (v->readers == NULL)
        return pst_fail_memory(err, "readers", threads * sizeof *v->readers);
    for (uint32_t i = 0; i < threads; i++) {
        void *memory;
        PST_TRY(pst_memory_map((uint64_t)BUFFERS * SLOT_BYTES, "read buffers", &memory, err));
        v->readers[i].memory = memory;
        for (int k = 0; k < BUFFERS; k++)
            PST_TRY(pst_io_batch_create(v->io, 1, &v->readers[i].batches[k], err));
        PST_TRY(pst_digest_create(&v->readers[i].digest, err));
    }
    return 0;
}

static void tell(verifying *v, pst_verify_report *report)
{
    const pst_verify_options *o = &v->options;
    for (uint32_t f = 0; f < pst_store_file_count(v->store); f++) {
        report->files++;
        report->files_without_digests += v->digests[f] == NULL;
        if (v->digests[f] == NULL && o->on_finding != NULL)
            o->on_finding(o->user, pst_store_file_path(v->store, f), NULL);
    }
    for (size_t i = 0; i < pst_store_tensor_count(v->store); i++) {
        const pst_tensor *tensor = pst_store_tensor_at(v->store, i);
        report->tensors++;
        report->checked += v->verdicts[i] != UNCHECKED;
        report->damaged += v->verdicts[i] == BAD;
        if (v->verdicts[i] == BAD && o->on_finding != NULL)
            o->on_finding(o->user, pst_store_file_path(v->store, tensor->file), tensor->name);
    }
    report->bytes = v->total_bytes;
}

static int run(verifying *v, pst_error *err)
{
    const pst_verify_options *o = &v->options;
    PST_TRY(pst_store_locate(o->path, o->cache, &v->path, err));
    PST_TRY(pst_store_open(v->path, &v->store, err));
    pst_io_options io = PST_IO_OPTIONS_LIKE(o, v->path);
    PST_TRY(pst_io_open(&io, &v->io, err));
    PST_TRY(pst_pool_create(o->threads, &v->pool, err));
    PST_TRY(open_files(v, err));
    PST_TRY(make_readers(v, err));
    PST_TRY(report_progress(v, 0, err));
    pst_pool_run(v->pool, pst_pool_threads(v->pool), run_reader, v);
    if (v->failed) {
        if (err != NULL)
            *err = v->failure;
        return v->status;
    }
    return report_progress(v, v->total_bytes, err);
}

static void release(verifying *v)
{
    for (uint32_t i = 0; v->readers != NULL && i < pst_pool_threads(v->pool); i++) {
        for (int k = 0; k < BUFFERS; k++)
            pst_io_batch_destroy(v->readers[i].batches[k]);
        pst_memory_unmap(v->readers[i].memory, (uint64_t)BUFFERS * SLOT_BYTES);
        pst_digest_destroy(v->readers[i].digest);
    }
    for (size_t f = 0; v->files != NULL && f < pst_store_file_count(v->store); f++)
        if (v->files[f] != NULL)
            pst_io_file_close(v->files[f], NULL); /* only read from: nothing can be lost */
    pst_heap_free(v->readers);
    pst_heap_free(v->verdicts);
    pst_heap_free(v->first);
    pst_heap_free(v->digests);
    pst_heap_free(v->files);
    pst_pool_destroy(v->pool);
    pst_io_close(v->io);
    pst_store_close(v->store);
    pst_heap_free(v->path);
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
    release(&v);
    if (status >= 0 && report != NULL)
        *report = found;
    return status;
}
