/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From the end: the end record (and before it ZIP64's), the central directory, then each record's local header. Layouts are
 * those of PKWARE's APPNOTE.TXT, sections 4.3.7 to 4.3.16; all numbers are little-endian.
 */
#include "store/zip_read.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/number.h"
#include "store/safetensors.h"

enum {
    LOCAL_BYTES = 30,
    DESCRIPTOR_MAX_BYTES = 24,
    ENTRY_BYTES = 46,
    END_BYTES = 22,
    END64_BYTES = 56,
    LOCATOR_BYTES = 20,
    MAX_COMMENT = 65535,
    MAX_DIRECTORY = 1 << 30,
    FLAG_ENCRYPTED = 1,
    FLAG_DESCRIPTOR = 8,         /* CRC and sizes follow the data */
    FLAG_STRONG_ENCRYPTION = 64, /* and masked headers: */
    FLAG_MASKED = 8192
};
#define SIGNATURE_LOCAL      UINT32_C(0x04034b50)
#define SIGNATURE_ENTRY      UINT32_C(0x02014b50)
#define SIGNATURE_END        UINT32_C(0x06054b50)
#define SIGNATURE_END64      UINT32_C(0x06064b50)
#define SIGNATURE_LOCATOR    UINT32_C(0x07064b50)
#define SIGNATURE_DESCRIPTOR UINT32_C(0x08074b50)

typedef struct entry {
    pst_zip_record record;
    uint16_t name_bytes, flags, method;
} entry;

typedef struct zip {
    const pst_zip_source *source;
    pst_error *err;
    uint64_t directory, directory_bytes, count; /* where it lies; how many entries it has */
    unsigned char *text;                        /* the directory as it is in the file */
    entry *entries;
    char *names;
} zip;

static uint16_t u16(const unsigned char *at)
{
    return (uint16_t)(at[0] | at[1] << 8);
}

static uint32_t u32(const unsigned char *at)
{
    return u16(at) | (uint32_t)u16(at + 2) << 16;
}

static uint64_t u64(const unsigned char *at)
{
    return u32(at) | (uint64_t)u32(at + 4) << 32;
}

static int fail(const zip *z, uint64_t offset, const char *what)
{
    return pst_fail_at(z->err, PST_E_FORMAT, z->source->path, offset, "its zip directory is damaged: %s", what);
}

static int fail_record(const zip *z, const entry *e, int code, const char *what)
{
    char quoted[PST_QUOTE_BYTES];
    return pst_fail_at(z->err, code, z->source->path, e->record.header_offset, "its record \"%s\" %s",
                       pst_quote(e->record.name, quoted), what);
}

static int fetch(const zip *z, uint64_t offset, void *out, size_t bytes)
{
    if (offset > z->source->file_bytes || bytes > z->source->file_bytes - offset)
        return fail(z, offset, "it points beyond the end of the file");
    return bytes == 0 ? 0 : z->source->fetch(z->source->user, offset, out, bytes, z->err);
}

/* ---- the end ---- */

/* The offset of the end record: the last place where its signature is, from which its comment must reach to the end. */
static int find_end(const zip *z, unsigned char *end, uint64_t *out_offset)
{
    uint64_t file_bytes = z->source->file_bytes;
    if (file_bytes < END_BYTES)
        return fail(z, PST_NO_OFFSET, "the file is too short");
    size_t bytes = file_bytes < END_BYTES + MAX_COMMENT ? (size_t)file_bytes : END_BYTES + MAX_COMMENT;
    unsigned char *tail = pst_heap_alloc(bytes);
    if (tail == NULL)
        return pst_fail_memory(z->err, "the end of a zip file", bytes);
    int status = fetch(z, file_bytes - bytes, tail, bytes);
    size_t at = bytes - END_BYTES;
    while (status >= 0 && u32(tail + at) != SIGNATURE_END) {
        if (at == 0)
            status = fail(z, PST_NO_OFFSET, "it has no end record, so the file may be cut short");
        else
            at--;
    }
    if (status >= 0 && u16(tail + at + 20) != bytes - at - END_BYTES)
        status = fail(z, file_bytes - bytes + at, "its end record is not at the end");
    if (status >= 0) {
        memcpy(end, tail + at, END_BYTES);
        *out_offset = file_bytes - bytes + at;
    }
    pst_heap_free(tail);
    return status;
}

/* Whether a field of the short end record says the same as ZIP64's, or that one is to look there. */
static bool agrees(uint64_t narrow, uint64_t wide, uint64_t all_ones)
{
    return narrow == wide || narrow == all_ones;
}

/* Replaces what the short end record said, where there is a ZIP64 one. *end_offset becomes where the directory has to end. */
static int read_end64(zip *z, uint64_t *end_offset)
{
    unsigned char locator[LOCATOR_BYTES], end[END64_BYTES];
    if (*end_offset < LOCATOR_BYTES + END64_BYTES)
        return 0;
    uint64_t at = *end_offset - LOCATOR_BYTES;
    PST_TRY(fetch(z, at, locator, sizeof locator));
    if (u32(locator) != SIGNATURE_LOCATOR)
        return 0;
    uint64_t offset = u64(locator + 8);
    if (u32(locator + 4) != 0 || u32(locator + 16) > 1)
        return fail(z, at, "it is one of several parts");
    if (offset > at - END64_BYTES)
        return fail(z, at, "its ZIP64 end record is not before its locator");
    PST_TRY(fetch(z, offset, end, sizeof end));
    if (u32(end) != SIGNATURE_END64 || u64(end + 4) != at - offset - 12)
        return fail(z, offset, "its ZIP64 end record is not where it should be");
    if (u32(end + 16) != 0 || u32(end + 20) != 0 || u64(end + 24) != u64(end + 32))
        return fail(z, offset, "it is one of several parts");
    if (!agrees(z->count, u64(end + 32), UINT16_MAX) || !agrees(z->directory_bytes, u64(end + 40), UINT32_MAX) ||
        !agrees(z->directory, u64(end + 48), UINT32_MAX))
        return fail(z, offset, "its two end records contradict each other");
    z->count = u64(end + 32);
    z->directory_bytes = u64(end + 40);
    z->directory = u64(end + 48);
    *end_offset = offset;
    return 0;
}

static int read_end(zip *z)
{
    unsigned char end[END_BYTES] = {0};
    uint64_t offset = 0;
    PST_TRY(find_end(z, end, &offset));
    if (u16(end + 4) != 0 || u16(end + 6) != 0 || u16(end + 8) != u16(end + 10))
        return fail(z, offset, "it is one of several parts");
    z->count = u16(end + 10);
    z->directory_bytes = u32(end + 12);
    z->directory = u32(end + 16);
    PST_TRY(read_end64(z, &offset));
    if (z->directory > offset || z->directory_bytes != offset - z->directory)
        return fail(z, offset, "it does not lie right before its end record");
    if (z->directory_bytes > MAX_DIRECTORY)
        return fail(z, z->directory, "it is longer than a gigabyte");
    if (z->count > z->directory_bytes / ENTRY_BYTES)
        return fail(z, offset, "it is too short for its number of records");
    return 0;
}

/* ---- the directory ---- */

/* ZIP64's wide sizes and offset, of those fields that have no room: all ones. */
static int read_wide(const zip *z, uint64_t at, const unsigned char *extra, size_t bytes, uint64_t *fields[3],
                     const bool missing[3])
{
    for (size_t i = 0; bytes - i >= 4;) {
        size_t length = u16(extra + i + 2);
        if (length > bytes - i - 4)
            return fail(z, at, "an extra field is longer than all of them");
        if (u16(extra + i) == 1) {
            size_t used = 0;
            for (int f = 0; f < 3; f++) {
                if (!missing[f])
                    continue;
                if (length - used < 8)
                    return fail(z, at, "a ZIP64 field is too short");
                *fields[f] = u64(extra + i + 4 + used);
                used += 8;
            }
            return 0;
        }
        i += 4 + length;
    }
    return missing[0] || missing[1] || missing[2] ? fail(z, at, "a ZIP64 field is missing") : 0;
}

/* The entry at `at` of the directory; returns its length. `names` has room for its name. */
static int64_t read_entry(const zip *z, size_t at, char *names, entry *out)
{
    size_t left = (size_t)z->directory_bytes - at;
    const unsigned char *from = z->text + at;
    uint64_t place = z->directory + at;
    if (left < ENTRY_BYTES || u32(from) != SIGNATURE_ENTRY)
        return fail(z, place, "an entry is not where it should be");
    size_t name_bytes = u16(from + 28), extra_bytes = u16(from + 30), comment_bytes = u16(from + 32);
    size_t length = ENTRY_BYTES + name_bytes + extra_bytes + comment_bytes;
    if (length > left)
        return fail(z, place, "an entry is longer than what is left of it");
    if (name_bytes == 0 || memchr(from + ENTRY_BYTES, 0, name_bytes) != NULL)
        return fail(z, place, "a name is empty or not a text");
    memcpy(names, from + ENTRY_BYTES, name_bytes);
    names[name_bytes] = '\0';
    uint64_t packed = u32(from + 20), bytes = u32(from + 24), offset = u32(from + 42);
    uint64_t *fields[3] = {&bytes, &packed, &offset};
    const bool missing[3] = {bytes == UINT32_MAX, packed == UINT32_MAX, offset == UINT32_MAX};
    PST_TRY(read_wide(z, place, from + ENTRY_BYTES + name_bytes, extra_bytes, fields, missing));
    *out = (entry){.record = {.name = names,
                              .header_offset = offset,
                              .entry_offset = place,
                              .bytes = bytes,
                              .crc = u32(from + 16)},
                   .name_bytes = (uint16_t)name_bytes,
                   .flags = u16(from + 8),
                   .method = u16(from + 10)};
    if (out->flags & (FLAG_ENCRYPTED | FLAG_STRONG_ENCRYPTION | FLAG_MASKED))
        return fail_record(z, out, PST_E_UNSUPPORTED, "is encrypted, which is refused");
    if (out->method == 0 && packed != bytes)
        return fail_record(z, out, PST_E_FORMAT, "is stored, and yet has two sizes");
    if (u16(from + 34) != 0)
        return fail_record(z, out, PST_E_UNSUPPORTED, "is in another part of several");
    return (int64_t)length;
}

/* TorchScript programs have compressed records as well, and are better called by their name. */
static int check_methods(const zip *z)
{
    static const char constants[] = "/constants.pkl";
    const entry *compressed = NULL;
    for (uint64_t i = 0; i < z->count; i++) {
        const entry *e = &z->entries[i];
        size_t end = e->name_bytes;
        if (end >= sizeof constants - 1 && strcmp(e->record.name + end - (sizeof constants - 1), constants) == 0)
            return pst_fail(z->err, PST_E_UNSUPPORTED, z->source->path,
                            "a TorchScript program (it has constants.pkl), which is refused");
        if (e->method != 0 && compressed == NULL)
            compressed = e;
    }
    return compressed == NULL ? 0 : fail_record(z, compressed, PST_E_UNSUPPORTED, "is compressed, which is refused");
}

static int read_directory(zip *z)
{
    z->text = pst_heap_alloc((size_t)z->directory_bytes);
    z->names = pst_heap_alloc((size_t)z->directory_bytes);
    z->entries = pst_heap_reallocarray(NULL, (size_t)z->count, sizeof *z->entries);
    if (z->text == NULL || z->names == NULL || z->entries == NULL)
        return pst_fail_memory(z->err, "the directory of a zip file", (size_t)z->directory_bytes);
    PST_TRY(fetch(z, z->directory, z->text, (size_t)z->directory_bytes));
    size_t at = 0;
    char *names = z->names; /* a name and its end are shorter than its entry */
    for (uint64_t i = 0; i < z->count; i++) {
        int64_t length = read_entry(z, at, names, &z->entries[i]);
        if (length < 0)
            return (int)length;
        names += z->entries[i].name_bytes + 1;
        at += (size_t)length;
    }
    if (at != z->directory_bytes)
        return fail(z, z->directory + at, "there is more of it than entries");
    return check_methods(z);
}

/* ---- the records ---- */

/* What follows the data of a record whose local header left CRC and sizes out. torch writes the signature, which is optional,
 * always. */
static int check_descriptor(const zip *z, const entry *e, uint64_t *end)
{
    unsigned char text[24];
    uint64_t left = z->directory - *end;
    size_t bytes = left < sizeof text ? (size_t)left : sizeof text;
    PST_TRY(fetch(z, *end, text, bytes));
    if (bytes >= 16 && u32(text) == SIGNATURE_DESCRIPTOR && u32(text + 4) == e->record.crc) {
        if (bytes == 24 && u64(text + 8) == e->record.bytes && u64(text + 16) == e->record.bytes) {
            *end += 24;
            return 0;
        }
        if (u32(text + 8) == e->record.bytes && u32(text + 12) == e->record.bytes) {
            *end += 16;
            return 0;
        }
    }
    return fail_record(z, e, PST_E_FORMAT, "has other sums behind its data than in the directory");
}

/* Sizes and CRC of a local header, which with a descriptor may be zeros. */
static int check_sums(const zip *z, const entry *e, const unsigned char *header)
{
    uint64_t packed = u32(header + 18), bytes = u32(header + 22), none = 0;
    bool zeros = e->flags & FLAG_DESCRIPTOR && u32(header + 14) == 0;
    if (zeros && packed == 0 && bytes == 0)
        return 0;
    size_t extra_bytes = u16(header + 28);
    const bool missing[3] = {bytes == UINT32_MAX, packed == UINT32_MAX, false};
    uint64_t *fields[3] = {&bytes, &packed, &none};
    if (missing[0] || missing[1]) {
        unsigned char *extra = pst_heap_alloc(extra_bytes);
        if (extra == NULL)
            return pst_fail_memory(z->err, "a header of a zip file", extra_bytes);
        uint64_t at = e->record.header_offset + LOCAL_BYTES + e->name_bytes;
        int status = fetch(z, at, extra, extra_bytes);
        if (status >= 0)
            status = read_wide(z, at, extra, extra_bytes, fields, missing);
        pst_heap_free(extra);
        PST_TRY(status);
    }
    bool same = bytes == e->record.bytes && packed == e->record.bytes && u32(header + 14) == e->record.crc;
    bool wide_zeros = zeros && missing[0] && missing[1] && bytes == 0 && packed == 0;
    return same || wide_zeros
               ? 0
               : fail_record(z, e, PST_E_FORMAT, "has another size or CRC in its header than in the directory");
}

/* Holds the local header against the entry; finds where the data is, and where all of the record ends. */
static int check_record(const zip *z, entry *e, uint64_t *out_end)
{
    unsigned char header[LOCAL_BYTES + UINT16_MAX];
    uint64_t begin = e->record.header_offset;
    size_t bytes = LOCAL_BYTES + (size_t)e->name_bytes;
    if (begin > z->directory || bytes > z->directory - begin)
        return fail_record(z, e, PST_E_FORMAT, "lies outside of the file");
    PST_TRY(fetch(z, begin, header, bytes));
    if (u32(header) != SIGNATURE_LOCAL || u16(header + 26) != e->name_bytes ||
        memcmp(header + LOCAL_BYTES, e->record.name, e->name_bytes) != 0)
        return fail_record(z, e, PST_E_FORMAT, "has no header where the directory says, or one of another name");
    if (u16(header + 6) != e->flags || u16(header + 8) != 0)
        return fail_record(z, e, PST_E_FORMAT, "has another kind in its header than in the directory");
    bytes += u16(header + 28);
    if (bytes > z->directory - begin || e->record.bytes > z->directory - begin - bytes)
        return fail_record(z, e, PST_E_FORMAT, "reaches beyond the file");
    PST_TRY(check_sums(z, e, header));
    e->record.offset = begin + bytes;
    *out_end = e->record.offset + e->record.bytes;
    return e->flags & FLAG_DESCRIPTOR ? check_descriptor(z, e, out_end) : 0;
}

static int compare_places(const void *left, const void *right)
{
    const entry *a = left, *b = right;
    return a->record.header_offset < b->record.header_offset   ? -1
           : a->record.header_offset > b->record.header_offset ? 1
                                                               : 0;
}

static int compare_names(const void *left, const void *right)
{
    const char *const *a = left, *const *b = right;
    return strcmp(*a, *b);
}

/* The headers lie all over the file: read one after the other, a drive would be waited for each time. */
static void read_ahead(const zip *z)
{
    for (uint64_t i = 0; z->source->ahead != NULL && i < z->count; i++) {
        const entry *e = &z->entries[i];
        uint64_t before = pst_min(e->record.header_offset, DESCRIPTOR_MAX_BYTES); /* of the record in front */
        if (e->record.header_offset < z->directory)
            z->source->ahead(z->source->user, e->record.header_offset - before, before + LOCAL_BYTES + e->name_bytes);
    }
}

static int check_records(const zip *z)
{
    uint64_t end = 0;
    qsort(z->entries, (size_t)z->count, sizeof *z->entries, compare_places);
    read_ahead(z);
    for (uint64_t i = 0; i < z->count; i++) {
        entry *e = &z->entries[i];
        if (e->record.header_offset < end)
            return fail_record(z, e, PST_E_FORMAT, "overlaps the one before it");
        PST_TRY(check_record(z, e, &end));
    }
    return 0;
}

static int check_names(const zip *z)
{
    const char **names = pst_heap_reallocarray(NULL, (size_t)z->count, sizeof *names);
    if (names == NULL)
        return pst_fail_memory(z->err, "a list of names", (size_t)z->count * sizeof *names);
    for (uint64_t i = 0; i < z->count; i++)
        names[i] = z->entries[i].record.name;
    qsort(names, (size_t)z->count, sizeof *names, compare_names);
    int status = 0;
    char quoted[PST_QUOTE_BYTES];
    for (uint64_t i = 1; i < z->count && status == 0; i++)
        if (strcmp(names[i - 1], names[i]) == 0)
            status = pst_fail(z->err, PST_E_FORMAT, z->source->path, "it has two records \"%s\"",
                              pst_quote(names[i], quoted));
    pst_heap_free(names);
    return status;
}

/* All records lie in one folder, whose name torch takes from the first entry. */
static int hand_out(zip *z, const char *first, char **out_archive_name, pst_zip_record **out_records)
{
    const char *slash = strchr(first, '/');
    if (slash == NULL)
        return pst_fail(z->err, PST_E_FORMAT, z->source->path,
                        "a zip file, but not one of torch.save: its records are in no folder");
    size_t folder_bytes = (size_t)(slash - first);
    for (uint64_t i = 0; i < z->count; i++) {
        entry *e = &z->entries[i];
        if (e->name_bytes <= folder_bytes || memcmp(e->record.name, first, folder_bytes + 1) != 0)
            return fail_record(z, e, PST_E_FORMAT, "is not in the folder of the first one");
    }
    char *archive_name = pst_heap_strndup(first, folder_bytes);
    pst_zip_record *records = pst_heap_reallocarray(NULL, (size_t)z->count, sizeof *records);
    if (archive_name == NULL || records == NULL) {
        pst_heap_free(archive_name);
        pst_heap_free(records);
        return pst_fail_memory(z->err, "records of a zip file", (size_t)z->count * sizeof *records);
    }
    for (uint64_t i = 0; i < z->count; i++) {
        records[i] = z->entries[i].record;
        records[i].name += folder_bytes + 1;
    }
    *out_archive_name = archive_name;
    *out_records = records;
    return 0;
}

int pst_zip_read(const pst_zip_source *source, char **out_archive_name, pst_zip_record **out_records, size_t *out_count,
                 char **out_names, pst_error *err)
{
    zip z = {.source = source, .err = err};
    int status;
    PST_TRY_GOTO(done, read_end(&z));
    PST_TRY_GOTO(done, read_directory(&z));
    if (z.count == 0) {
        status = pst_fail(err, PST_E_FORMAT, source->path, "a zip file without records");
        goto done;
    }
    const char *first = z.entries[0].record.name;
    PST_TRY_GOTO(done, check_records(&z));
    PST_TRY_GOTO(done, check_names(&z));
    PST_TRY_GOTO(done, hand_out(&z, first, out_archive_name, out_records));
    *out_count = (size_t)z.count;
    *out_names = z.names;
    z.names = NULL;
done:
    pst_heap_free(z.text);
    pst_heap_free(z.entries);
    pst_heap_free(z.names);
    return status;
}
