/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The file of a cache on disk, and transfers between it and the window's slots; see kv_window.h.
 *
 * The file has no name: it is removed when it was opened, so that nothing is left however the process ends.
 */
#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "nn/kv_window.h"
#include "os/clock.h"
#include "os/file.h"

enum { BATCH_OP_BYTES = 256 /* at most, of what a batch holds per operation */ };

/* Transfers of a part in one direction. */
typedef struct kv_batch {
    pst_io_batch *batch;
    pst_io_op *ops; /* as many as a part has blocks */
    uint32_t count;
    bool is_under_way;
} kv_batch;

struct pst_kv_file {
    pst_trace *trace;
    pst_io_file *file;
    kv_batch batches[PST_KV_PARTS][PST_KV_WAYS];
    uint64_t bytes[PST_KV_WAYS], wait_ns;
};

uint64_t pst_kv_file_bytes(uint32_t part_blocks)
{
    return sizeof(pst_kv_file) +
           (uint64_t)PST_KV_PARTS * PST_KV_WAYS * part_blocks * (sizeof(pst_io_op) + BATCH_OP_BYTES);
}

static int open_file(const pst_kv_config *c, uint64_t bytes, pst_kv_file *f, pst_error *err)
{
    uint64_t room;
    PST_TRY(pst_file_free_space(c->folder, &room, err));
    if (bytes > room)
        return pst_fail(err, -ENOSPC, c->folder,
                        "the KV cache of %u sequences of %u tokens takes %.1f GB; %.1f GB are free", c->max_sequences,
                        c->max_tokens, (double)bytes / 1e9, (double)room / 1e9);
    char *path = pst_heap_printf("%s/penstock-kv", c->folder);
    char *name = path ? pst_file_temporary_name(path) : NULL;
    pst_heap_free(path);
    if (name == NULL)
        return pst_fail_memory(err, "the KV cache's file", strlen(c->folder));
    int status =
        pst_io_file_open(c->io, name, PST_IO_OPEN_WRITE | PST_IO_OPEN_CREATE | PST_IO_OPEN_EXCLUSIVE, &f->file, err);
    if (status >= 0) {
        status = pst_file_remove(name, err);
        if (status >= 0)
            status = pst_io_file_preallocate(f->file, bytes, err);
    }
    pst_heap_free(name);
    return status;
}

int pst_kv_file_create(const pst_kv_config *c, uint64_t bytes, uint32_t part_blocks, pst_kv_file **out, pst_error *err)
{
    pst_kv_file *f = *out = pst_heap_calloc(1, sizeof *f);
    if (f == NULL)
        return pst_fail_memory(err, "the KV cache's file", sizeof *f);
    f->trace = c->trace;
    for (uint32_t i = 0; i < PST_KV_PARTS * PST_KV_WAYS; i++) {
        kv_batch *b = &f->batches[i / PST_KV_WAYS][i % PST_KV_WAYS];
        b->ops = pst_heap_calloc(part_blocks, sizeof *b->ops);
        if (b->ops == NULL)
            return pst_fail_memory(err, "the KV cache's window", part_blocks * sizeof *b->ops);
        PST_TRY(pst_io_batch_create(c->io, part_blocks, &b->batch, err));
    }
    return open_file(c, bytes, f, err);
}

void pst_kv_file_destroy(pst_kv_file *f)
{
    if (f == NULL)
        return;
    for (uint32_t i = 0; i < PST_KV_PARTS * PST_KV_WAYS; i++) {
        kv_batch *b = &f->batches[i / PST_KV_WAYS][i % PST_KV_WAYS];
        pst_io_batch_destroy(b->batch); /* waits for what is in flight */
        pst_heap_free(b->ops);
    }
    if (f->file != NULL)
        pst_io_file_close(f->file, NULL); /* nothing in it is wanted any more */
    pst_heap_free(f);
}

/* One that goes on where the last one ends becomes part of it. */
void pst_kv_file_add(pst_kv_file *f, uint32_t part, pst_kv_way way, uint64_t offset, void *memory, uint64_t bytes)
{
    kv_batch *b = &f->batches[part][way];
    pst_io_op *last = b->count > 0 ? &b->ops[b->count - 1] : NULL;
    if (last != NULL && last->offset + last->bytes == offset && (char *)last->buffer + last->bytes == memory)
        last->bytes += bytes;
    else
        b->ops[b->count++] = (pst_io_op){.file = f->file,
                                         .offset = offset,
                                         .buffer = memory,
                                         .bytes = bytes,
                                         .kind = way == PST_KV_READ ? PST_IO_READ : PST_IO_WRITE};
}

int pst_kv_file_start(pst_kv_file *f, uint32_t part, pst_kv_way way, pst_error *err)
{
    kv_batch *b = &f->batches[part][way];
    const uint32_t count = b->count;
    b->count = 0;
    if (count == 0)
        return 0;
    PST_TRY(pst_io_submit(b->batch, b->ops, count, err));
    b->is_under_way = true;
    for (uint32_t i = 0; i < count; i++)
        f->bytes[way] += b->ops[i].bytes;
    return 0;
}

int pst_kv_file_wait(pst_kv_file *f, uint32_t part, pst_kv_way way, uint64_t timeout_ns, pst_error *err)
{
    kv_batch *b = &f->batches[part][way];
    if (!b->is_under_way)
        return 0;
    uint64_t start = pst_clock_ns();
    int status = pst_io_wait(b->batch, timeout_ns, err);
    uint64_t end = pst_clock_ns();
    f->wait_ns += end - start;
    if (timeout_ns > 0)
        pst_trace_span(f->trace, PST_TRACE_WAIT, "keys and values", start, end, 0);
    b->is_under_way = status == 1;
    return status;
}

void pst_kv_file_get_traffic(const pst_kv_file *f, pst_kv_traffic *out)
{
    out->bytes_read += f->bytes[PST_KV_READ];
    out->bytes_written += f->bytes[PST_KV_WRITE];
    out->wait_ns += f->wait_ns;
}
