/* SPDX-License-Identifier: Apache-2.0 */
/* From parts of an image to buffers of the ring. */
#include "ckpt/stream.h"

#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/number.h"
#include "ckpt/ring.h"
#include "store/crc32.h"

enum {
    BLOCK_BYTES = PST_IMAGE_ALIGNMENT,
    /* Copied, then digested: source and copy stay in a processor's own cache meanwhile (512 KiB and more today). */
    PIECE_BYTES = 128 << 10,
    NOT_KEPT = UINT32_MAX
};

/* Blocks to be written again. Without a kept block they are one literal from end to end. */
typedef struct pst_ckpt_again {
    uint64_t offset, bytes;
    uint32_t kept; /* number of the block in output->kept, or NOT_KEPT */
} pst_ckpt_again;

struct pst_ckpt_stream {
    pst_ckpt_ring *ring;
    pst_digest *digest;
    uint32_t crc;       /* of the part under way */
    bool wrote, cached; /* files; one of them through the page cache */
};

/* The place in a file up to which it is in buffers. */
typedef struct cursor {
    const pst_image_part *parts;
    size_t part, count;
    uint64_t at, end;
    size_t data_end; /* behind the last part that is data */
} cursor;

/* ---- the stream ---- */

int pst_ckpt_stream_create(pst_io *io, const pst_ckpt_stream_options *options, pst_ckpt_stream **out, pst_error *err)
{
    pst_ckpt_stream *stream = pst_heap_calloc(1, sizeof *stream);
    if (stream == NULL)
        return pst_fail_memory(err, "a stream", sizeof *stream);
    int status = pst_digest_create(&stream->digest, err);
    if (status >= 0)
        status = pst_ckpt_ring_create(io, options->ring_bytes, options->most_bytes, options->near_path, options->hooks,
                                      &stream->ring, err);
    if (status < 0) {
        pst_ckpt_stream_destroy(stream);
        return status;
    }
    *out = stream;
    return 0;
}

void pst_ckpt_stream_destroy(pst_ckpt_stream *stream)
{
    if (stream == NULL)
        return;
    pst_ckpt_ring_destroy(stream->ring);
    pst_digest_destroy(stream->digest);
    pst_heap_free(stream);
}

int pst_ckpt_stream_drain(pst_ckpt_stream *stream, pst_error *err)
{
    return pst_ckpt_ring_drain(stream->ring, err);
}

void pst_ckpt_stream_get_figures(const pst_ckpt_stream *stream, pst_ckpt_stream_figures *out)
{
    pst_ckpt_ring_figures ring;
    pst_ckpt_ring_get_figures(stream->ring, &ring);
    *out = (pst_ckpt_stream_figures){.written_bytes = ring.written_bytes,
                                     .retried = ring.retried,
                                     .ring_bytes = ring.held_bytes,
                                     .most_writes = ring.most_under_way,
                                     .direct = stream->wrote && !stream->cached};
}

void pst_ckpt_output_free(pst_ckpt_output *output)
{
    pst_heap_free(output->again);
    pst_heap_free(output->kept);
    output->again = NULL;
    output->kept = NULL;
    output->again_count = output->again_capacity = output->kept_count = output->kept_capacity = 0;
}

/* ---- data ---- */

static void add_sums(pst_ckpt_stream *stream, const pst_image *image, const void *data, size_t bytes)
{
    if (pst_image_wants_digest(image))
        pst_digest_add(stream->digest, data, bytes);
    if (pst_image_wants_crc(image))
        stream->crc = pst_crc32(stream->crc, data, bytes);
}

/* What is digested is the copy: should the memory change meanwhile, digest and file still agree. */
static int copy_data(pst_ckpt_stream *stream, const pst_image *image, const pst_ckpt_tensor *tensor, uint64_t from,
                     char *to, size_t bytes, pst_error *err)
{
    if (tensor->source != NULL) {
        /* At once, as a call may be dear, and often what it copies comes past this processor's cache anyway. */
        pst_error own = {0};
        int status = tensor->source(tensor->user, from, bytes, to, &own);
        if (status < 0 && own.message[0] == '\0')
            pst_fail(&own, status, NULL, "%s", pst_strerror(status));
        char quoted[PST_QUOTE_BYTES];
        if (status < 0)
            return pst_fail(err, status, NULL, "the data of tensor \"%s\" cannot be had: %s",
                            pst_quote(tensor->name, quoted), own.message);
        add_sums(stream, image, to, bytes);
        return 0;
    }
    const char *data = (const char *)tensor->data + from;
    for (size_t at = 0; at < bytes; at += PIECE_BYTES) {
        size_t piece = bytes - at < PIECE_BYTES ? bytes - at : PIECE_BYTES;
        memcpy(to + at, data + at, piece);
        add_sums(stream, image, to + at, piece);
    }
    return 0;
}

/* The part under way ended. */
static void set_sums(pst_ckpt_stream *stream, const pst_ckpt_output *output, size_t part)
{
    pst_image *image = output->file->image;
    pst_image_sums sums = {.crc = stream->crc};
    if (pst_image_wants_digest(image))
        pst_digest_value(stream->digest, sums.digest);
    output->file->sums[part] = sums;
    pst_image_set_sums(image, part, &sums);
}

/* Copies data from the cursor on until the buffer holds `bytes`; literals are left out. */
static int fill(pst_ckpt_stream *stream, const pst_ckpt_output *output, cursor *c, char *memory, uint64_t bytes,
                pst_error *err)
{
    for (uint64_t begin = c->at; c->at < begin + bytes;) {
        const pst_image_part *part = &c->parts[c->part];
        uint64_t skip = c->at - part->offset, run = pst_min(part->bytes - skip, begin + bytes - c->at);
        if (part->tensor != PST_IMAGE_LITERAL) {
            if (skip == 0) {
                pst_digest_begin(stream->digest);
                stream->crc = 0;
            }
            const pst_ckpt_tensor *tensor = &output->tensors[output->order[output->file->first + part->tensor]];
            PST_TRY(
                copy_data(stream, output->file->image, tensor, part->from + skip, memory + (c->at - begin), run, err));
            if (skip + run == part->bytes)
                set_sums(stream, output, c->part);
        }
        c->at += run;
        if (skip + run == part->bytes)
            c->part++;
    }
    return 0;
}

/* ---- literals ---- */

/* The stretch of a part that lies in [begin, end); at its offset in the file. */
static uint64_t clip(const pst_image_part *part, uint64_t begin, uint64_t end, uint64_t *bytes)
{
    uint64_t from = pst_max(part->offset, begin), to = pst_min(part->offset + part->bytes, end);
    *bytes = to > from ? to - from : 0;
    return from;
}

/* Puts the literals of the file's bytes [begin, end), as they are now, at their places in memory. */
static void put_literals(pst_image *image, uint64_t begin, uint64_t end, char *memory)
{
    size_t count;
    const pst_image_part *parts = pst_image_parts(image, &count);
    for (size_t i = pst_ckpt_find_part(parts, count, begin); i < count && parts[i].offset < end; i++) {
        uint64_t bytes, at = clip(&parts[i], begin, end, &bytes);
        if (parts[i].tensor == PST_IMAGE_LITERAL)
            memcpy(memory + (at - begin),
                   (const char *)pst_image_literal(image, i) + parts[i].from + (at - parts[i].offset), bytes);
    }
}

/* ---- what is to be written again ---- */

static int note(pst_ckpt_output *output, uint64_t offset, uint64_t bytes, const char *block, pst_error *err)
{
    if (output->again_count == output->again_capacity) {
        size_t capacity = output->again_capacity * 2 + 16;
        pst_ckpt_again *more = pst_heap_reallocarray(output->again, capacity, sizeof *more);
        if (more == NULL)
            return pst_fail_memory(err, "blocks to be written again", capacity * sizeof *more);
        output->again = more;
        output->again_capacity = capacity;
    }
    if (block != NULL && output->kept_count == output->kept_capacity) {
        size_t capacity = output->kept_capacity * 2 + 4;
        char *more = pst_heap_reallocarray(output->kept, capacity, BLOCK_BYTES);
        if (more == NULL)
            return pst_fail_memory(err, "blocks to be written again", capacity * BLOCK_BYTES);
        output->kept = more;
        output->kept_capacity = capacity;
    }
    pst_ckpt_again *again = &output->again[output->again_count++];
    *again = (pst_ckpt_again){.offset = offset, .bytes = bytes, .kept = NOT_KEPT};
    if (block == NULL)
        return 0;
    again->kept = (uint32_t)output->kept_count++;
    memcpy(output->kept + again->kept * (size_t)BLOCK_BYTES, block, BLOCK_BYTES);
    return 0;
}

/* A block that a literal shares with something else; it may have been noted for the literal before. */
static int note_block(pst_ckpt_output *output, uint64_t offset, const char *block, pst_error *err)
{
    const pst_ckpt_again *last = output->again_count > 0 ? &output->again[output->again_count - 1] : NULL;
    if (last != NULL && offset < last->offset + last->bytes)
        return 0;
    return note(output, offset, BLOCK_BYTES, block, err);
}

/* Notes the blocks of a literal that was put at [from, to), inside the buffer that begins at `begin` in the file. */
static int note_literal(pst_ckpt_output *output, uint64_t begin, const char *memory, uint64_t from, uint64_t to,
                        pst_error *err)
{
    uint64_t first = pst_round_down(from, BLOCK_BYTES), whole = pst_round_up(from, BLOCK_BYTES);
    uint64_t last = pst_round_down(to, BLOCK_BYTES);
    if (first < whole)
        PST_TRY(note_block(output, first, memory + (first - begin), err));
    if (whole < last)
        PST_TRY(note(output, whole, last - whole, NULL, err));
    if (last < to && last >= whole)
        PST_TRY(note_block(output, last, memory + (last - begin), err));
    return 0;
}

/* ---- writing ---- */

/* The image is finished as soon as that is possible: what comes after the data need not be written twice then. */
static int finish_early(pst_ckpt_output *output, const cursor *c, pst_error *err)
{
    bool alone = pst_image_share_begin(output->file->image, 1) == pst_image_file_bytes(output->file->image);
    if (!alone || output->finished || c->part < c->data_end)
        return 0;
    PST_TRY(pst_image_finish(output->file->image, err));
    output->finished = true;
    return 0;
}

/* The buffer holds the data of [begin, at): puts the literals between, and notes those that may still change. */
static int complete(pst_ckpt_output *output, const cursor *c, uint64_t begin, char *memory, pst_error *err)
{
    pst_image *image = output->file->image;
    uint64_t bytes = c->at - begin;
    memset(memory + bytes, 0, pst_round_up(bytes, BLOCK_BYTES) - bytes);
    put_literals(image, begin, c->at, memory);
    for (size_t i = pst_ckpt_find_part(c->parts, c->count, begin); i < c->count && c->parts[i].offset < c->at; i++) {
        uint64_t run, from = clip(&c->parts[i], begin, c->at, &run);
        if (c->parts[i].tensor == PST_IMAGE_LITERAL && !pst_image_literal_is_final(image, i))
            PST_TRY(note_literal(output, begin, memory, from, from + run, err));
    }
    return 0;
}

/* Fills a buffer and lets it go. */
static int write_buffer(pst_ckpt_stream *stream, pst_ckpt_output *output, cursor *c, pst_error *err)
{
    pst_ckpt_buffer *buffer;
    PST_TRY(pst_ckpt_ring_take(stream->ring, &buffer, err));
    uint64_t begin = c->at, bytes = pst_min(pst_ckpt_ring_buffer_bytes(stream->ring), c->end - c->at);
    int status = fill(stream, output, c, buffer->memory, bytes, err);
    if (status >= 0)
        status = finish_early(output, c, err);
    if (status >= 0)
        status = complete(output, c, begin, buffer->memory, err);
    if (status >= 0)
        buffer->ops[buffer->op_count++] = (pst_io_op){.file = output->to,
                                                      .offset = begin,
                                                      .buffer = buffer->memory,
                                                      .bytes = pst_round_up(bytes, BLOCK_BYTES),
                                                      .kind = PST_IO_WRITE};
    pst_ckpt_ring_put(stream->ring, buffer);
    return status < 0 ? status : pst_ckpt_ring_move(stream->ring, err);
}

int pst_ckpt_stream_write(pst_ckpt_stream *stream, pst_ckpt_output *output, pst_error *err)
{
    pst_image *image = output->file->image;
    cursor c = {.at = pst_image_share_begin(image, output->share),
                .end = pst_image_share_begin(image, output->share + 1)};
    c.parts = pst_image_parts(image, &c.count);
    c.part = pst_ckpt_find_part(c.parts, c.count, c.at);
    for (c.data_end = c.count; c.data_end > 0 && c.parts[c.data_end - 1].tensor == PST_IMAGE_LITERAL;)
        c.data_end--;
    stream->wrote = true;
    stream->cached = stream->cached || !pst_io_file_is_direct(output->to);
    while (c.at < c.end)
        PST_TRY(write_buffer(stream, output, &c, err));
    return 0;
}

/* ---- writing again ---- */

/* A buffer of blocks that are written again. */
typedef struct gather {
    pst_ckpt_buffer *buffer; /* NULL: none was taken */
    uint64_t filled;
} gather;

static int send(pst_ckpt_stream *stream, gather *g, pst_error *err)
{
    if (g->buffer == NULL)
        return 0;
    pst_ckpt_ring_put(stream->ring, g->buffer);
    *g = (gather){0};
    return pst_ckpt_ring_move(stream->ring, err);
}

/* Up to `bytes` bytes of blocks from `offset` on; returns how many went in. */
static int64_t add_blocks(pst_ckpt_stream *stream, const pst_ckpt_output *output, gather *g, uint64_t offset,
                          uint64_t bytes, const char *block, pst_error *err)
{
    uint64_t room = pst_ckpt_ring_buffer_bytes(stream->ring);
    pst_io_op *last = g->buffer != NULL ? &g->buffer->ops[g->buffer->op_count - 1] : NULL;
    bool follows = last != NULL && last->offset + last->bytes == offset;
    if (g->buffer != NULL && (g->filled == room || (!follows && g->buffer->op_count == PST_CKPT_RING_OPS))) {
        PST_TRY(send(stream, g, err));
        follows = false;
    }
    if (g->buffer == NULL)
        PST_TRY(pst_ckpt_ring_take(stream->ring, &g->buffer, err));
    char *memory = g->buffer->memory + g->filled;
    bytes = pst_min(bytes, room - g->filled);
    if (block != NULL)
        memcpy(memory, block, BLOCK_BYTES);
    put_literals(output->file->image, offset, offset + bytes, memory);
    if (follows)
        last->bytes += bytes;
    else
        g->buffer->ops[g->buffer->op_count++] =
            (pst_io_op){.file = output->to, .offset = offset, .buffer = memory, .bytes = bytes, .kind = PST_IO_WRITE};
    g->filled += bytes;
    return (int64_t)bytes;
}

int pst_ckpt_stream_rewrite(pst_ckpt_stream *stream, pst_ckpt_output *output, pst_error *err)
{
    gather g = {0};
    for (size_t i = 0; i < output->again_count; i++) {
        const pst_ckpt_again *again = &output->again[i];
        const char *block = again->kept != NOT_KEPT ? output->kept + again->kept * (size_t)BLOCK_BYTES : NULL;
        for (uint64_t done = 0; done < again->bytes;) {
            int64_t put = add_blocks(stream, output, &g, again->offset + done, again->bytes - done, block, err);
            if (put < 0) {
                if (g.buffer != NULL)
                    g.buffer->op_count = 0;
                send(stream, &g, NULL);
                return (int)put;
            }
            done += (uint64_t)put;
        }
    }
    return send(stream, &g, err);
}
