/* SPDX-License-Identifier: Apache-2.0 */
/* Parts are made in the order of the file, each cut where a share ends. All memory is taken at the start. */
#include "store/image_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/number.h"
#include "store/crc32.h"
#include "store/json_scan.h"

enum { CUT_DIGITS = 20 };

/* A file is at most so large: what lies around the data cannot make its size overflow any more. */
#define MAX_DATA (INT64_MAX / 2)

/* ---- building ---- */

static int make_shares(pst_image *image, uint64_t total, pst_error *err)
{
    uint64_t count = image->share_count;
    image->shares = pst_heap_calloc(image->share_count, sizeof *image->shares);
    if (image->shares == NULL)
        return pst_fail_memory(err, "an image", image->share_count * sizeof *image->shares);
    for (uint64_t i = 0; i < count; i++) /* i * total / count without its overflow */
        image->shares[i] = pst_round_down(total / count * i + total % count * i / count, PST_IMAGE_ALIGNMENT);
    return 0;
}

int pst_image_begin(const pst_image_format *format, const pst_image_options *options, uint64_t total, size_t stretches,
                    size_t units, pst_image **out, pst_error *err)
{
    pst_image *image = pst_heap_calloc(1, sizeof *image);
    if (image == NULL)
        return pst_fail_memory(err, "an image", sizeof *image);
    *out = image;
    image->format = format;
    image->digests = options->digests;
    image->share_count = options->shares > 1 ? options->shares : 1;
    if (image->share_count > PST_IMAGE_MAX_SHARES)
        return pst_fail(err, PST_E_USAGE, NULL, "one checkpoint file cannot have %" PRIu32 " writers (the most is %d)",
                        image->share_count, PST_IMAGE_MAX_SHARES);
    image->part_capacity = stretches + image->share_count;
    if (image->part_capacity > UINT32_MAX)
        return pst_fail(err, PST_E_UNSUPPORTED, NULL, "too many tensors");
    image->parts = pst_heap_reallocarray(NULL, image->part_capacity, sizeof *image->parts);
    image->numbers = pst_heap_reallocarray(NULL, image->part_capacity, sizeof *image->numbers);
    image->unit_runs = pst_heap_calloc(units + 1, sizeof *image->unit_runs);
    image->runs = pst_heap_calloc(units + image->share_count, sizeof *image->runs);
    image->run_parts = pst_heap_calloc(units + image->share_count, sizeof *image->run_parts);
    image->known = pst_heap_calloc(units + image->share_count, 1);
    if (image->parts == NULL || image->numbers == NULL || image->unit_runs == NULL || image->runs == NULL ||
        image->run_parts == NULL || image->known == NULL)
        return pst_fail_memory(err, "an image", image->part_capacity * sizeof *image->parts);
    PST_TRY(pst_digest_create(&image->digest, err));
    return make_shares(image, total, err);
}

/* The first share border behind `offset`, or UINT64_MAX. */
static uint64_t next_border(const pst_image *image, uint64_t offset)
{
    uint32_t low = 0, high = image->share_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (image->shares[middle] > offset)
            high = middle;
        else
            low = middle + 1;
    }
    return low < image->share_count ? image->shares[low] : UINT64_MAX;
}

static void add(pst_image *image, size_t tensor, uint64_t bytes)
{
    for (uint64_t from = 0; from < bytes;) {
        uint64_t offset = image->file_bytes;
        uint64_t part = pst_min(bytes - from, next_border(image, offset) - offset);
        if (tensor == PST_IMAGE_LITERAL) {
            image->numbers[image->part_count] = image->literal_count;
        } else {
            image->run_parts[image->run_count] = (uint32_t)image->part_count;
            image->numbers[image->part_count] = image->run_count++;
        }
        image->parts[image->part_count++] =
            (pst_image_part){.offset = offset, .bytes = part, .tensor = tensor, .from = from};
        image->file_bytes += part;
        from += part;
    }
}

void pst_image_add_literal(pst_image *image, uint64_t bytes)
{
    add(image, PST_IMAGE_LITERAL, bytes);
    image->literal_count += bytes > 0;
}

void pst_image_add_unit(pst_image *image, size_t tensor, uint64_t bytes)
{
    add(image, tensor, bytes);
    image->unit_runs[++image->unit_count] = image->run_count;
}

void pst_image_destroy(pst_image *image)
{
    if (image == NULL)
        return;
    image->format->free(image->state);
    pst_digest_destroy(image->digest);
    pst_heap_free(image->shares);
    pst_heap_free(image->parts);
    pst_heap_free(image->numbers);
    pst_heap_free(image->unit_runs);
    pst_heap_free(image->runs);
    pst_heap_free(image->run_parts);
    pst_heap_free(image->known);
    pst_heap_free(image);
}

/* ---- what is known of runs and units ---- */

bool pst_image_unit_known(const pst_image *image, uint32_t unit)
{
    for (uint32_t run = image->unit_runs[unit]; run < image->unit_runs[unit + 1]; run++)
        if (!image->known[run])
            return false;
    return true;
}

uint32_t pst_image_unit_crc(const pst_image *image, uint32_t unit)
{
    uint32_t begin = image->unit_runs[unit], end = image->unit_runs[unit + 1];
    uint32_t crc = begin < end ? image->runs[begin].crc : 0;
    for (uint32_t run = begin + 1; run < end; run++)
        crc = pst_crc32_join(crc, image->runs[run].crc, image->parts[image->run_parts[run]].bytes);
    return crc;
}

static void unit_digest(pst_image *image, uint32_t unit, char *digits)
{
    uint32_t begin = image->unit_runs[unit], end = image->unit_runs[unit + 1];
    if (end - begin == 1) {
        pst_digest_spell(image->runs[begin].digest, digits);
        return;
    }
    pst_digest_begin(image->digest);
    for (uint32_t run = begin; run < end; run++)
        pst_digest_add(image->digest, image->runs[run].digest, PST_DIGEST_BYTES);
    pst_digest_end(image->digest, digits); /* of a unit without bytes: the digest of nothing */
}

/* ---- texts ---- */

size_t pst_image_digests_bytes(const pst_image *image)
{
    return strlen(PST_DIGESTS_KIND) + (size_t)image->unit_count * (1 + PST_DIGEST_DIGITS);
}

void pst_image_put_digests(pst_image *image, char *text)
{
    size_t kind = strlen(PST_DIGESTS_KIND);
    memcpy(text, PST_DIGESTS_KIND, kind);
    text += kind;
    for (uint32_t unit = 0; unit < image->unit_count; unit++) {
        *text++ = ' ';
        unit_digest(image, unit, text);
        text += PST_DIGEST_DIGITS;
    }
}

size_t pst_image_cuts_bytes(uint32_t shares)
{
    return (size_t)(shares > 1 ? shares - 1 : 0) * (1 + CUT_DIGITS);
}

size_t pst_image_put_cuts(const pst_image *image, char *text)
{
    size_t bytes = 0;
    for (size_t i = 0; i < image->part_count; i++)
        if (image->parts[i].tensor != PST_IMAGE_LITERAL && image->parts[i].from > 0)
            bytes += (size_t)sprintf(text + bytes, bytes ? " %" PRIu64 : "%" PRIu64, image->parts[i].offset);
    return bytes;
}

void pst_image_digest_literals(pst_image *image)
{
    pst_digest_begin(image->digest);
    for (size_t i = 0; i < image->part_count; i++) {
        const pst_image_part *part = &image->parts[i];
        if (part->tensor == PST_IMAGE_LITERAL)
            pst_digest_add(image->digest, (const char *)pst_image_literal(image, i) + part->from, part->bytes);
    }
    pst_digest_end(image->digest, image->file_digest);
}

/* ---- checks ---- */

static int compare_names(const void *left, const void *right)
{
    const char *const *a = left, *const *b = right;
    return strcmp(*a, *b);
}

int pst_image_check_names(const pst_tensor *tensors, size_t count, const char *what, pst_error *err)
{
    char quoted[PST_QUOTE_BYTES];
    const char **names = pst_heap_reallocarray(NULL, count, sizeof *names);
    if (names == NULL)
        return pst_fail_memory(err, "a list of names", count * sizeof *names);
    int status = 0;
    for (size_t i = 0; i < count && status == 0; i++) {
        names[i] = tensors[i].name;
        const pst_scan scan = {.text = names[i], .bytes = strlen(names[i])};
        if (scan.bytes > UINT32_MAX || pst_scan_utf8_length(&scan) < scan.bytes)
            status = pst_fail(err, PST_E_USAGE, NULL, "the name of %s \"%s\" is not UTF-8", what,
                              pst_quote(names[i], quoted));
    }
    if (status == 0 && count > 1)
        qsort(names, count, sizeof *names, compare_names);
    for (size_t i = 1; i < count && status == 0; i++)
        if (strcmp(names[i - 1], names[i]) == 0)
            status =
                pst_fail(err, PST_E_USAGE, NULL, "there are two %ss named \"%s\"", what, pst_quote(names[i], quoted));
    pst_heap_free(names);
    return status;
}

int pst_image_measure(pst_tensor *tensors, size_t count, pst_error *err)
{
    uint64_t total = 0;
    char quoted[PST_QUOTE_BYTES];
    for (size_t i = 0; i < count; i++) {
        pst_tensor *tensor = &tensors[i];
        if (tensor->rank > PST_MAX_RANK || pst_dtype_bits(tensor->dtype) == 0 ||
            pst_tensor_shape_bytes(tensor->dtype, tensor->shape, tensor->rank, &tensor->bytes) < 0 ||
            __builtin_add_overflow(total, tensor->bytes, &total) || total > MAX_DATA)
            return pst_fail(err, PST_E_USAGE, NULL, "tensor \"%s\" has a size that no file can have",
                            pst_quote(tensor->name, quoted));
    }
    return 0;
}

/* ---- the interface ---- */

uint64_t pst_image_file_bytes(const pst_image *image)
{
    return image->file_bytes;
}

const pst_image_part *pst_image_parts(const pst_image *image, size_t *out_count)
{
    *out_count = image->part_count;
    return image->parts;
}

uint64_t pst_image_share_begin(const pst_image *image, uint32_t share)
{
    return share < image->share_count ? image->shares[share] : image->file_bytes;
}

bool pst_image_wants_crc(const pst_image *image)
{
    return image->format->has_crc;
}

bool pst_image_wants_digest(const pst_image *image)
{
    return image->digests;
}

void pst_image_set_sums(pst_image *image, size_t part, const pst_image_sums *sums)
{
    uint32_t run = image->numbers[part];
    image->runs[run] = *sums;
    image->known[run] = 1;
    image->finished = false;
    if (image->format->sums_changed != NULL)
        image->format->sums_changed(image);
}

bool pst_image_literal_is_final(const pst_image *image, size_t part)
{
    return image->finished || image->format->is_final(image, image->numbers[part]);
}

const void *pst_image_literal(pst_image *image, size_t part)
{
    return image->format->literal(image, image->numbers[part]);
}

int pst_image_finish(pst_image *image, pst_error *err)
{
    for (uint32_t run = 0; run < image->run_count; run++)
        if (!image->known[run])
            return pst_fail(err, PST_E_USAGE, NULL, "a checkpoint is finished before all its data is");
    PST_TRY(image->format->finish(image, err));
    image->finished = true;
    return 0;
}

const char *pst_image_file_digest(const pst_image *image)
{
    return image->finished && image->digests ? image->file_digest : NULL;
}
