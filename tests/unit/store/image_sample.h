/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Random tensors, and an image put together in memory the way that several writers do: runs in any order, literals early where
 * they are final, the rest at the end.
 */
#ifndef PST_TESTS_UNIT_STORE_IMAGE_SAMPLE_H
#define PST_TESTS_UNIT_STORE_IMAGE_SAMPLE_H

#include "base/heap.h"
#include "files.h"
#include "store/crc32.h"
#include "store/image.h"
#include "support/random.h"

enum { SAMPLE_MOST = 24 };

typedef struct image_sample {
    pst_tensor tensors[SAMPLE_MOST];
    char names[SAMPLE_MOST][48];
    size_t same_as[SAMPLE_MOST];
    size_t count;
} image_sample;

/* Byte i of a tensor. */
static inline unsigned char sample_byte(size_t tensor, uint64_t i)
{
    return (unsigned char)((i * 2654435761u + tensor * 40503u) >> 9 ^ i);
}

static inline bool sample_dtype_fits(pst_dtype dtype, bool torch)
{
    if (torch)
        return dtype != PST_F6_E2M3 && dtype != PST_F6_E3M2;
    return dtype != PST_C32 && dtype != PST_C128;
}

/* About one in four is empty or a scalar, and (torch) one in six shares an earlier one's storage. */
static inline void sample_make(image_sample *s, bool torch, uint64_t largest)
{
    static const char *const stems[] = {"w", "layers.%u.\"q\"", "\xc3\xa9\xf0\x9f\x98\x80", "a\\b/c", "tab\there", ""};
    memset(s, 0, sizeof *s);
    s->count = random_below(SAMPLE_MOST + 1);
    for (size_t i = 0; i < s->count; i++) {
        snprintf(s->names[i], sizeof s->names[i], "%s%zu", stems[random_below(6)], i);
        pst_tensor *t = &s->tensors[i];
        s->same_as[i] = i;
        if (torch && i > 0 && random_below(6) == 0) {
            s->same_as[i] = s->same_as[random_below(i)];
            *t = s->tensors[s->same_as[i]];
        } else {
            do
                t->dtype = (pst_dtype)random_below(PST_DTYPE_COUNT);
            while (!sample_dtype_fits(t->dtype, torch));
            t->rank = (uint32_t)random_below(PST_MAX_RANK + 1);
            for (uint32_t d = 0; d < t->rank; d++)
                t->shape[d] = random_below(12) == 0 ? 0 : 1 + random_below(3);
            if (t->rank > 0) /* whole bytes, and pairs, for the small types */
                t->shape[t->rank - 1] *= 4 * (t->rank < 3 && random_below(2) == 0 ? 1 + random_below(largest) : 1);
            else if (pst_dtype_bits(t->dtype) % 8 != 0)
                t->dtype = PST_U8;
            assert_int_equal(pst_tensor_shape_bytes(t->dtype, t->shape, t->rank, &t->bytes), 0);
        }
        t->name = s->names[i];
    }
}

static inline void sample_fill(const pst_image_part *part, unsigned char *out)
{
    for (uint64_t i = 0; i < part->bytes; i++)
        out[i] = sample_byte(part->tensor, part->from + i);
}

static inline void sample_sums(const unsigned char *data, uint64_t bytes, pst_image_sums *out)
{
    pst_digest *digest;
    assert_int_equal(pst_digest_create(&digest, NULL), 0);
    pst_digest_begin(digest);
    pst_digest_add(digest, data, bytes);
    pst_digest_value(digest, out->digest);
    pst_digest_destroy(digest);
    out->crc = pst_crc32(0, data, bytes);
}

static inline void sample_copy_literal(pst_image *image, size_t part, const pst_image_part *p, unsigned char *file)
{
    memcpy(file + p->offset, (const unsigned char *)pst_image_literal(image, part) + p->from, p->bytes);
}

/* Parts without holes, cut where shares begin. */
static inline void sample_check_parts(const pst_image *image, uint32_t shares)
{
    size_t count;
    const pst_image_part *parts = pst_image_parts(image, &count);
    uint64_t end = 0;
    uint32_t share = 1;
    for (size_t i = 0; i < count; i++) {
        assert_int_equal(parts[i].offset, end);
        assert_true(parts[i].bytes > 0);
        end += parts[i].bytes;
        while (share < shares && pst_image_share_begin(image, share) <= parts[i].offset)
            share++;
        assert_true(end <= pst_image_share_begin(image, share));
    }
    assert_int_equal(end, pst_image_file_bytes(image));
    assert_int_equal(pst_image_share_begin(image, 0), 0);
    assert_int_equal(pst_image_share_begin(image, shares), end);
    for (uint32_t i = 1; i < shares; i++) {
        assert_int_equal(pst_image_share_begin(image, i) % PST_IMAGE_ALIGNMENT, 0);
        assert_true(pst_image_share_begin(image, i - 1) <= pst_image_share_begin(image, i));
    }
}

/* The whole file; free() it. */
static inline unsigned char *sample_assemble(pst_image *image)
{
    size_t count;
    const pst_image_part *parts = pst_image_parts(image, &count);
    unsigned char *file = malloc(pst_image_file_bytes(image) + 1);
    size_t *order = calloc(count, sizeof *order);
    bool *done = calloc(count, sizeof *done);
    assert_true(file != NULL && order != NULL && done != NULL);
    for (size_t i = 0; i < count; i++) { /* shuffled as it grows */
        size_t at = random_below(i + 1);
        order[i] = order[at];
        order[at] = i;
    }
    for (size_t i = 0; i < count; i++) {
        size_t at = order[i];
        if (parts[at].tensor == PST_IMAGE_LITERAL)
            continue;
        pst_image_sums sums;
        sample_fill(&parts[at], file + parts[at].offset);
        sample_sums(file + parts[at].offset, parts[at].bytes, &sums);
        pst_image_set_sums(image, at, &sums);
        for (int tries = 0; tries < 4; tries++) {
            size_t other = random_below(count);
            if (parts[other].tensor == PST_IMAGE_LITERAL && !done[other] && pst_image_literal_is_final(image, other)) {
                sample_copy_literal(image, other, &parts[other], file);
                done[other] = true;
            }
        }
    }
    assert_int_equal(pst_image_finish(image, NULL), 0);
    for (size_t i = 0; i < count; i++) {
        if (parts[i].tensor != PST_IMAGE_LITERAL)
            continue;
        assert_true(pst_image_literal_is_final(image, i));
        if (done[i]) /* it was final, so it is the same now */
            assert_memory_equal(file + parts[i].offset,
                                (const unsigned char *)pst_image_literal(image, i) + parts[i].from, parts[i].bytes);
        else
            sample_copy_literal(image, i, &parts[i], file);
    }
    free(order);
    free(done);
    return file;
}

/* The digest of one tensor as it is to be: of its data, or where shares cut it, of its runs' digests. */
static inline void sample_digest(const pst_image *image, size_t tensor, char digits[PST_DIGEST_DIGITS + 1])
{
    size_t count, runs = 0;
    const pst_image_part *parts = pst_image_parts(image, &count);
    unsigned char values[64][PST_DIGEST_BYTES];
    pst_image_sums sums;
    for (size_t i = 0; i < count; i++) {
        if (parts[i].tensor != tensor)
            continue;
        unsigned char *data = malloc(parts[i].bytes);
        assert_non_null(data);
        sample_fill(&parts[i], data);
        sample_sums(data, parts[i].bytes, &sums);
        memcpy(values[runs++], sums.digest, PST_DIGEST_BYTES);
        free(data);
    }
    if (runs != 1)
        sample_sums(values[0], runs * PST_DIGEST_BYTES, &sums);
    pst_digest_spell(sums.digest, digits);
    digits[PST_DIGEST_DIGITS] = '\0';
}

#endif
