/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The image of a checkpoint file that is about to be written: which bytes lie where. A file is a row of parts without holes;
 * a part is a run of one tensor's data, or literal bytes (headers, the pickle, padding, tables). Which literals depend on the
 * data (digests, CRCs) is the image's affair: it is told the sums of each run as they become known and fills them in. So
 * whoever writes knows neither safetensors nor zip files.
 *
 * Digests. A tensor's is that of pst_digest over its bytes; where the file is cut between writers inside it, it is the digest
 * of the digests (16 bytes each, canonical) of its runs. Cuts are written down in the file beside the digests.
 *   safetensors: __metadata__ has PST_DIGESTS_KEY (digest.h), PST_CUTS_KEY where there are cuts inside tensors (their offsets in
 *     the file, decimal, separated by a space), and PST_FILE_DIGEST_KEY: the digest of all bytes before the data,
 *     with these 32 digits taken as '0'. As the header holds the tensors' digests, that is a digest of the whole file.
 *   torch: the record ".penstock/digests" has the same three as lines "key value\n" ("penstock.digests ..." with storages in the
 *     order of the file); the digest of the file is that of all bytes that are no storage's data, with its own 32 digits and
 *     the two CRC fields of that record (in the data descriptor behind it and in the central directory) taken as zeros ('0',
 *     and bytes 0).
 *
 * The zip file has the layout of torch's own writer to the byte, so that what torch computes instead of reading (offsets of
 * storages) is right: data descriptors behind the data, extra fields for ZIP64 and alignment. Data lies at multiples of 4096
 * where the storages have 128 KiB or more on average, else of 64, which the record ".storage_alignment" tells.
 *
 * Pure: no I/O. One thread.
 */
#ifndef PST_STORE_IMAGE_H
#define PST_STORE_IMAGE_H

#include <stdbool.h>

#include "store/digest.h"
#include "store/safetensors.h"
#include "store/store.h"

#define PST_CUTS_KEY        "penstock.cuts"
#define PST_FILE_DIGEST_KEY "penstock.file"

enum {
    PST_IMAGE_ALIGNMENT = 4096, /* of cuts between shares, and of the data of files of large tensors */
    PST_IMAGE_MAX_SHARES = 65536
};

#define PST_IMAGE_LITERAL SIZE_MAX

typedef struct pst_image_part {
    uint64_t offset, bytes; /* in the file; bytes > 0 */
    size_t tensor;          /* whose data; PST_IMAGE_LITERAL: bytes of pst_image_literal */
    uint64_t from;          /* the tensor's byte that it begins with; of a literal: of pst_image_literal */
} pst_image_part;

/* Of one run of a tensor's data. */
typedef struct pst_image_sums {
    unsigned char digest[16]; /* canonical XXH3-128; zeros without digests */
    uint32_t crc;             /* CRC-32 (zip); 0 where the format has none */
} pst_image_sums;

typedef struct pst_image pst_image;

/* Zero means the default of every field. */
typedef struct pst_image_options {
    const pst_metadata *metadata; /* safetensors */
    size_t metadata_count;
    bool digests;
    uint32_t shares;          /* how many write it; 0 and 1: one */
    const char *archive_name; /* torch; NULL: "archive" */
    /* torch: data.pkl, which stays the caller's, unchanged while the image lives; then the tensors are storages named by their
     * keys. NULL: made here, a dict from name to tensor. */
    const void *pickle;
    size_t pickle_bytes;
    /* torch without pickle: the earlier tensor whose storage this one shares, if it has the same dtype and bytes (its own
     * index: none); may be NULL. */
    const size_t *same_as;
} pst_image_options;

/* tensors: name, dtype, rank, shape, needed during the call only; offset and bytes are filled in. Tensors without bytes have
 * no part. The caller destroys *out. */
int pst_image_safetensors(pst_tensor *tensors, size_t count, const pst_image_options *options, pst_image **out,
                          pst_error *err);
int pst_image_torch(pst_tensor *tensors, size_t count, const pst_image_options *options, pst_image **out,
                    pst_error *err);
void pst_image_destroy(pst_image *image);

uint64_t pst_image_file_bytes(const pst_image *image);
/* In order of the file; split where shares meet. */
const pst_image_part *pst_image_parts(const pst_image *image, size_t *out_count);
/* Where share number `share` begins: shares + 1 values make sense, the last is the file's length. Multiples of
 * PST_IMAGE_ALIGNMENT, except the last; balanced by bytes; a share may be empty in a small file. */
uint64_t pst_image_share_begin(const pst_image *image, uint32_t share);
bool pst_image_wants_crc(const pst_image *image); /* whether pst_image_sums.crc is of use */
bool pst_image_wants_digest(const pst_image *image);

/* The sums of a tensor's part (its number in pst_image_parts), in any order. */
void pst_image_set_sums(pst_image *image, size_t part, const pst_image_sums *sums);
/* Whether these literal bytes will stay as they are whatever sums still come. */
bool pst_image_literal_is_final(const pst_image *image, size_t part);
/* The literal bytes that a part is a stretch of (from its `from` on), as they are now. Good until the next call of any
 * function here: most are made when they are asked for. */
const void *pst_image_literal(pst_image *image, size_t part);
/* When all sums are set: fills in all the rest; all literals are final then. */
int pst_image_finish(pst_image *image, pst_error *err);
/* PST_DIGEST_DIGITS characters, not terminated; after pst_image_finish; NULL without digests. */
const char *pst_image_file_digest(const pst_image *image);

#endif
