/* SPDX-License-Identifier: Apache-2.0 */
/*
 * This rank's share of files, through a ring of locked buffers: one is being filled (copy, digest and CRC in one pass over
 * pieces that stay in the cache) while others are on their way to the drive. Every write begins and ends at a multiple of
 * PST_IMAGE_ALIGNMENT. Filled buffers may wait for their turn (pst_ckpt_hooks.pace) while further ones are filled, as far as
 * there are buffers.
 *
 * Literals are copied when a buffer leaves, and are mostly final then: what a zip file says of a record comes behind its data. Those that are not are noted, and written again at the end; of their blocks only those that
 * hold data, too, are kept in memory.
 */
#ifndef PST_CKPT_STREAM_H
#define PST_CKPT_STREAM_H

#include "ckpt/job.h"
#include "ckpt/layout.h"

typedef struct pst_ckpt_stream pst_ckpt_stream;

/* A file while its share is written. Zero at the beginning, but for the first four. */
typedef struct pst_ckpt_output {
    const pst_ckpt_file *file;
    const pst_ckpt_tensor *tensors; /* of the image's numbers, by `order` */
    const size_t *order;
    uint32_t share;
    pst_io_file *to;
    struct pst_ckpt_again *again; /* blocks to be written again, in the order of the file */
    size_t again_count, again_capacity;
    char *kept; /* blocks of PST_IMAGE_ALIGNMENT bytes */
    size_t kept_count, kept_capacity;
    bool finished; /* its image is */
} pst_ckpt_output;

void pst_ckpt_output_free(pst_ckpt_output *output); /* what it holds, but not `to` */

/* ring_bytes: all memory that the ring may take. most_bytes: the longest share of one file; buffers are not larger. near_path:
 * something on the drive, may be NULL. io and hooks (may be NULL) outlive the stream. */
typedef struct pst_ckpt_stream_options {
    uint64_t ring_bytes, most_bytes;
    const char *near_path;
    const pst_ckpt_hooks *hooks;
} pst_ckpt_stream_options;

enum { PST_CKPT_LEAST_RING_BYTES = 2 << 20 };

int pst_ckpt_stream_create(pst_io *io, const pst_ckpt_stream_options *options, pst_ckpt_stream **out, pst_error *err);
/* Drops what is under way. */
void pst_ckpt_stream_destroy(pst_ckpt_stream *stream);
/* Puts a file's share on its way; its data has been read then. Sets the sums of its parts, in the image and in
 * output->file->sums. With one share it finishes the image, too. */
int pst_ckpt_stream_write(pst_ckpt_stream *stream, pst_ckpt_output *output, pst_error *err);
/* Waits until all has been written that is on its way. */
int pst_ckpt_stream_drain(pst_ckpt_stream *stream, pst_error *err);
/* The image is finished: puts on its way what is to be written again. Everything before was drained. */
int pst_ckpt_stream_rewrite(pst_ckpt_stream *stream, pst_ckpt_output *output, pst_error *err);

typedef struct pst_ckpt_stream_figures {
    uint64_t written_bytes, retried;
    uint64_t ring_bytes;  /* taken */
    uint32_t most_writes; /* at most so many buffers were on their way at once */
    bool direct;          /* all files were written past the page cache */
} pst_ckpt_stream_figures;
void pst_ckpt_stream_get_figures(const pst_ckpt_stream *stream, pst_ckpt_stream_figures *out);

#endif
