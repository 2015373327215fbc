/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a save will write: which tensors go into which file, and each file's image. Every rank computes the same layout from
 * the same tensors and options; its fingerprint tells whether they did.
 *
 * safetensors: tensors by falling size of their elements, then in the caller's order, so that each begins at a multiple of
 * its element's size, as other readers like it. With shards, files are filled in the caller's order. torch: the caller's
 * order; tensors of one address, type and size share a storage, as tied weights do.
 */
#ifndef PST_CKPT_LAYOUT_H
#define PST_CKPT_LAYOUT_H

#include "penstock/ckpt.h"
#include "store/image.h"
#include "store/safetensors_write.h"

typedef struct pst_ckpt_file {
    char name[PST_SHARD_NAME_BYTES]; /* in the folder, with shards */
    pst_image *image;
    pst_image_sums *sums; /* of its parts: those of literals are unused */
    size_t first, count;  /* of its tensors in pst_ckpt_layout.order */
} pst_ckpt_file;

typedef struct pst_ckpt_layout {
    pst_ckpt_format format; /* not AUTO */
    bool folder;            /* path is a folder of shards */
    size_t *order;          /* numbers of the tensors, file by file: what an image calls tensor i is order[first + i] */
    uint64_t *bytes;        /* of each tensor, in the caller's numbers */
    pst_ckpt_file *files;
    size_t file_count;
    uint64_t data_bytes, file_bytes; /* in all */
    uint32_t shares;
} pst_ckpt_layout;

/* Checks what is asked for. options->path is set. *out is to be freed, also after a failure. */
int pst_ckpt_layout_make(const pst_ckpt_options *options, const pst_ckpt_tensor *tensors, size_t count,
                         pst_ckpt_layout *out, pst_error *err);
void pst_ckpt_layout_free(pst_ckpt_layout *layout); /* what it holds */
/* Makes the images anew, as they were before any sums were set. */
int pst_ckpt_layout_renew(pst_ckpt_layout *layout, const pst_ckpt_options *options, const pst_ckpt_tensor *tensors,
                          pst_error *err);
/* The first of these parts that ends behind `offset`; count when there is none. */
size_t pst_ckpt_find_part(const pst_image_part *parts, size_t count, uint64_t offset);
/* The same number where tensors (without their data) and options are the same. Reads all of the pickle. */
uint64_t pst_ckpt_layout_fingerprint(const pst_ckpt_layout *layout, const pst_ckpt_options *options,
                                     const pst_ckpt_tensor *tensors);
/* The index of the shards, at a path. */
int pst_ckpt_layout_write_index(const pst_ckpt_layout *layout, const pst_ckpt_tensor *tensors, const char *path,
                                pst_error *err);

#endif
