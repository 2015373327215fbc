/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What both formats of an image share: the row of parts, the sums of runs, the digests' text. A unit is what has one digest: a
 * tensor of a safetensors file, a storage of torch's. The runs of a unit are what the shares' borders leave of it; one
 * without bytes has none. Literals and runs are numbered in the order of the file.
 */
#ifndef PST_STORE_IMAGE_INTERNAL_H
#define PST_STORE_IMAGE_INTERNAL_H

#include "store/image.h"

/* What a format does. `number` is a literal's. */
typedef struct pst_image_format {
    bool has_crc;
    const void *(*literal)(pst_image *image, uint32_t number);
    bool (*is_final)(const pst_image *image, uint32_t number);
    void (*sums_changed)(pst_image *image); /* may be NULL */
    int (*finish)(pst_image *image, pst_error *err);
    void (*free)(void *state); /* accepts NULL */
} pst_image_format;

struct pst_image {
    const pst_image_format *format;
    void *state; /* the format's */
    bool digests, finished;
    uint64_t file_bytes;
    uint32_t share_count;
    uint64_t *shares; /* share_count borders; the first is 0 */
    pst_image_part *parts;
    uint32_t *numbers; /* by part: the run, or the literal */
    size_t part_count, part_capacity;
    uint32_t literal_count;
    uint32_t unit_count, *unit_runs; /* where each unit's runs begin, and the end of the last */
    uint32_t run_count;
    pst_image_sums *runs;
    uint32_t *run_parts;  /* by run */
    unsigned char *known; /* by run */
    pst_digest *digest;
    char file_digest[PST_DIGEST_DIGITS];
};

/* Makes room: for so many stretches of data or literals, before they are cut by shares. `total` bytes are balanced
 * between the shares; no border lies behind it. The caller destroys *out, also on failure. */
int pst_image_begin(const pst_image_format *format, const pst_image_options *options, uint64_t total, size_t stretches,
                    size_t units, pst_image **out, pst_error *err);
/* The next bytes of the file; none are no part. */
void pst_image_add_literal(pst_image *image, uint64_t bytes);
void pst_image_add_unit(pst_image *image, size_t tensor, uint64_t bytes);

/* Whether all sums of a unit are set; then its CRC. */
bool pst_image_unit_known(const pst_image *image, uint32_t unit);
uint32_t pst_image_unit_crc(const pst_image *image, uint32_t unit);

/* The value of PST_DIGESTS_KEY, not terminated, and its size. */
size_t pst_image_digests_bytes(const pst_image *image);
void pst_image_put_digests(pst_image *image, char *text);
/* The value of PST_CUTS_KEY, and how many bytes so many shares can need. */
size_t pst_image_cuts_bytes(uint32_t shares);
size_t pst_image_put_cuts(const pst_image *image, char *text);

/* Takes the digest of all literals as they are now into file_digest. */
void pst_image_digest_literals(pst_image *image);

/* Whether a tensor or key can be named so and is not there twice; `what` says what it is, for messages. */
int pst_image_check_names(const pst_tensor *tensors, size_t count, const char *what, pst_error *err);
/* bytes of each tensor, and that the file's size stays sensible. */
int pst_image_measure(pst_tensor *tensors, size_t count, pst_error *err);

#endif
