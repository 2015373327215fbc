/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A zip file in memory, read as strictly as its format allows, by nothing but the format's description: every record by its
 * entry in the central directory, its local header and its descriptor, which must agree; records follow one another
 * without a hole up to the directory.
 */
#ifndef TESTS_SUPPORT_ZIP_CHECK_H
#define TESTS_SUPPORT_ZIP_CHECK_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct zip_record {
    char name[512];
    uint64_t header, offset, bytes;
    uint32_t crc;
    uint64_t crc_at[2]; /* where it stands in the file: descriptor (0: none) and directory */
} zip_record;

static inline uint64_t zip_number(const unsigned char *at, unsigned bytes)
{
    uint64_t value = 0;
    while (bytes-- > 0)
        value = value << 8 | at[bytes];
    return value;
}

static inline uint32_t zip_crc(const unsigned char *data, uint64_t bytes)
{
    uint32_t crc = UINT32_MAX;
    for (uint64_t i = 0; i < bytes; i++) {
        crc ^= data[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc & 1 ? crc >> 1 ^ UINT32_C(0xedb88320) : crc >> 1;
    }
    return ~crc;
}

/* The content of an extra field of this id, or NULL. */
static inline const unsigned char *zip_extra(const unsigned char *extra, size_t bytes, unsigned id, size_t *out)
{
    size_t at = 0;
    while (at + 4 <= bytes) {
        size_t length = zip_number(extra + at + 2, 2);
        assert_true(at + 4 + length <= bytes);
        if (zip_number(extra + at, 2) == id) {
            *out = length;
            return extra + at + 4;
        }
        at += 4 + length;
    }
    assert_int_equal(at, bytes);
    return NULL;
}

/* Bytes of the directory's entry. */
static inline size_t zip_read_entry(const unsigned char *file, uint64_t at, zip_record *out)
{
    const unsigned char *entry = file + at;
    assert_int_equal(zip_number(entry, 4), 0x02014b50);
    assert_int_equal(zip_number(entry + 10, 2), 0); /* stored */
    size_t name = zip_number(entry + 28, 2), extra = zip_number(entry + 30, 2), left = 0;
    assert_int_equal(zip_number(entry + 32, 2), 0); /* no comment */
    assert_true(name < sizeof out->name);
    memset(out, 0, sizeof *out);
    memcpy(out->name, entry + 46, name);
    out->crc = (uint32_t)zip_number(entry + 16, 4);
    out->crc_at[1] = at + 16;
    uint64_t fields[3] = {zip_number(entry + 24, 4), zip_number(entry + 20, 4), zip_number(entry + 42, 4)};
    const unsigned char *wide = zip_extra(entry + 46 + name, extra, 1, &left);
    for (int i = 0; i < 3; i++)
        if (fields[i] == UINT32_MAX) {
            assert_non_null(wide);
            assert_true(left >= 8);
            fields[i] = zip_number(wide, 8);
            wide += 8;
            left -= 8;
        }
    assert_int_equal(left, 0);
    assert_int_equal(fields[0], fields[1]);
    out->bytes = fields[0];
    out->header = fields[2];
    return 46 + name + extra;
}

/* Returns where the next record begins. */
static inline uint64_t zip_read_record(const unsigned char *file, zip_record *r, unsigned alignment)
{
    const unsigned char *local = file + r->header;
    assert_int_equal(zip_number(local, 4), 0x04034b50);
    size_t name = zip_number(local + 26, 2), extra = zip_number(local + 28, 2), length = 0;
    assert_int_equal(name, strlen(r->name));
    assert_memory_equal(local + 30, r->name, name);
    assert_int_equal(zip_number(local + 6, 2) & ~8u, 0x800);
    assert_int_equal(zip_number(local + 8, 2), 0);
    assert_non_null(zip_extra(local + 30 + name, extra, 0x4246, &length));
    r->offset = r->header + 30 + name + extra;
    assert_int_equal(r->offset % alignment, 0);
    bool wide = r->bytes >= UINT32_MAX || r->header >= UINT32_MAX;
    assert_true((zip_extra(local + 30 + name, extra, 1, &length) != NULL) == wide);
    if ((zip_number(local + 6, 2) & 8) == 0) {
        assert_int_equal(r->bytes, 0);
        assert_int_equal(r->crc, 0);
        return r->offset;
    }
    const unsigned char *behind = file + r->offset + r->bytes;
    assert_int_equal(zip_number(behind, 4), 0x08074b50);
    assert_int_equal(zip_number(behind + 4, 4), r->crc);
    assert_int_equal(zip_number(behind + 8, wide ? 8 : 4), r->bytes);
    assert_int_equal(zip_number(behind + (wide ? 16 : 12), wide ? 8 : 4), r->bytes);
    r->crc_at[0] = r->offset + r->bytes + 4;
    return r->offset + r->bytes + (wide ? 24 : 16);
}

/* All records, in order; free() them. Their data's CRCs are the caller's to check. */
static inline zip_record *zip_read(const unsigned char *file, uint64_t bytes, unsigned alignment, size_t *out_count)
{
    const unsigned char *end = file + bytes - 22;
    assert_true(bytes > 22);
    assert_int_equal(zip_number(end, 4), 0x06054b50);
    uint64_t count = zip_number(end + 10, 2), length = zip_number(end + 12, 4), begin = zip_number(end + 16, 4);
    uint64_t behind = bytes - 22;
    assert_int_equal(zip_number(end + 8, 2), count);
    if (count == UINT16_MAX || length == UINT32_MAX || begin == UINT32_MAX) {
        const unsigned char *locator = end - 20;
        assert_int_equal(zip_number(locator, 4), 0x07064b50);
        assert_int_equal(zip_number(locator + 16, 4), 1);
        behind = zip_number(locator + 8, 8);
        assert_int_equal(behind + 56 + 20 + 22, bytes);
        const unsigned char *wide = file + behind;
        assert_int_equal(zip_number(wide, 4), 0x06064b50);
        assert_int_equal(zip_number(wide + 4, 8), 44);
        count = zip_number(wide + 24, 8);
        assert_int_equal(zip_number(wide + 32, 8), count);
        length = zip_number(wide + 40, 8);
        begin = zip_number(wide + 48, 8);
    }
    assert_int_equal(begin + length, behind);
    zip_record *records = calloc(count + 1, sizeof *records);
    assert_non_null(records);
    uint64_t at = begin, place = 0;
    for (uint64_t i = 0; i < count; i++) {
        at += zip_read_entry(file, at, &records[i]);
        assert_int_equal(records[i].header, place);
        place = zip_read_record(file, &records[i], alignment);
    }
    assert_int_equal(at, behind);
    assert_int_equal(place, begin);
    *out_count = count;
    return records;
}

#endif
