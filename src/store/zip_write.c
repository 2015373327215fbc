/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Field by field as in PKWARE's APPNOTE. What is torch's own: ZIP64 already at exactly 2^32 - 1, the place of the local header in
 * that header's own ZIP64 field, and that the extra fields come in this order.
 */
#include "store/zip_write.h"

#include <stdbool.h>
#include <string.h>

enum {
    FLAG_DESCRIPTOR = 0x0008,
    FLAG_UTF8 = 0x0800,
    VERSION = 20,
    VERSION_ZIP64 = 45,
    DATE = 0x0021, /* 1 January 1980: the same tensors make the same file */
    EXTRA_ZIP64 = 0x0001,
    EXTRA_PADDING = 0x4246, /* "FB" */
    EXTRA_HEAD = 4          /* id and length */
};

#define IN_ZIP64       UINT32_C(0xffffffff)
#define COUNT_IN_ZIP64 UINT32_C(0xffff)

typedef struct writer {
    unsigned char *out;
    size_t bytes;
} writer;

static void put(writer *w, uint64_t value, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++)
        w->out[w->bytes++] = (unsigned char)(i < sizeof value ? value >> 8 * i : 0);
}

static void put_text(writer *w, const char *text)
{
    size_t bytes = strlen(text);
    memcpy(w->out + w->bytes, text, bytes);
    w->bytes += bytes;
}

static void put_name(writer *w, const pst_zip_entry *entry)
{
    put_text(w, entry->folder);
    put(w, '/', 1);
    put_text(w, entry->name);
}

static size_t name_bytes(const pst_zip_entry *entry)
{
    return strlen(entry->folder) + 1 + strlen(entry->name);
}

static bool large(const pst_zip_entry *entry)
{
    return entry->bytes >= IN_ZIP64;
}

static bool far(const pst_zip_entry *entry)
{
    return entry->header_offset >= IN_ZIP64;
}

static bool zip64(const pst_zip_entry *entry)
{
    return large(entry) || far(entry);
}

static size_t zip64_extra_bytes(const pst_zip_entry *entry)
{
    return zip64(entry) ? EXTRA_HEAD + (large(entry) ? 16 : 0) + (far(entry) ? 8 : 0) : 0;
}

static void put_zip64_extra(writer *w, const pst_zip_entry *entry)
{
    if (!zip64(entry))
        return;
    put(w, EXTRA_ZIP64, 2);
    put(w, zip64_extra_bytes(entry) - EXTRA_HEAD, 2);
    for (int i = 0; i < 2 && large(entry); i++) /* as they are, and as they are stored */
        put(w, entry->bytes, 8);
    if (far(entry))
        put(w, entry->header_offset, 8);
}

/* What local headers and the directory have alike, from the version that is needed to the CRC. */
static void put_common(writer *w, const pst_zip_entry *entry)
{
    put(w, zip64(entry) ? VERSION_ZIP64 : VERSION, 2);
    put(w, FLAG_UTF8 | (entry->bytes > 0 ? FLAG_DESCRIPTOR : 0), 2);
    put(w, 0, 2); /* stored */
    put(w, 0, 2); /* midnight */
    put(w, DATE, 2);
}

uint64_t pst_zip_data_offset(const pst_zip_entry *entry, uint32_t alignment)
{
    uint64_t least =
        entry->header_offset + PST_ZIP_LOCAL_BYTES + name_bytes(entry) + zip64_extra_bytes(entry) + EXTRA_HEAD;
    return (least + alignment - 1) / alignment * alignment;
}

size_t pst_zip_put_local(const pst_zip_entry *entry, uint32_t alignment, unsigned char *out)
{
    writer w = {.out = out};
    size_t total = (size_t)(pst_zip_data_offset(entry, alignment) - entry->header_offset);
    size_t extra = total - PST_ZIP_LOCAL_BYTES - name_bytes(entry);
    put(&w, 0x04034b50, 4);
    put_common(&w, entry);
    put(&w, 0, 12); /* CRC and sizes: in the descriptor */
    put(&w, name_bytes(entry), 2);
    put(&w, extra, 2);
    put_name(&w, entry);
    put_zip64_extra(&w, entry);
    put(&w, EXTRA_PADDING, 2);
    put(&w, extra - zip64_extra_bytes(entry) - EXTRA_HEAD, 2);
    memset(out + w.bytes, 0, total - w.bytes);
    return total;
}

size_t pst_zip_descriptor_bytes(const pst_zip_entry *entry)
{
    return entry->bytes == 0 ? 0 : zip64(entry) ? 24 : 16;
}

size_t pst_zip_put_descriptor(const pst_zip_entry *entry, unsigned char *out)
{
    writer w = {.out = out};
    if (entry->bytes == 0)
        return 0;
    put(&w, 0x08074b50, 4);
    put(&w, entry->crc, 4);
    for (int i = 0; i < 2; i++)
        put(&w, entry->bytes, zip64(entry) ? 8 : 4);
    return w.bytes;
}

size_t pst_zip_directory_bytes(const pst_zip_entry *entry)
{
    return PST_ZIP_DIRECTORY_BYTES + name_bytes(entry) + zip64_extra_bytes(entry);
}

size_t pst_zip_put_directory(const pst_zip_entry *entry, unsigned char *out)
{
    writer w = {.out = out};
    put(&w, 0x02014b50, 4);
    put(&w, zip64(entry) ? VERSION_ZIP64 : VERSION, 2); /* made by: MS-DOS attributes, none of them set */
    put_common(&w, entry);
    put(&w, entry->crc, 4);
    for (int i = 0; i < 2; i++)
        put(&w, large(entry) ? IN_ZIP64 : entry->bytes, 4);
    put(&w, name_bytes(entry), 2);
    put(&w, zip64_extra_bytes(entry), 2);
    put(&w, 0, 2 + 2 + 2); /* no comment, the first disk, internal attributes */
    put(&w, 0, 4);         /* external attributes */
    put(&w, far(entry) ? IN_ZIP64 : entry->header_offset, 4);
    put_name(&w, entry);
    put_zip64_extra(&w, entry);
    return w.bytes;
}

size_t pst_zip_put_end(uint64_t records, uint64_t directory_offset, uint64_t directory_bytes, unsigned char *out)
{
    unsigned char unused[PST_ZIP_MAX_END];
    writer w = {.out = out != NULL ? out : unused};
    bool many = records >= COUNT_IN_ZIP64, is_large = directory_bytes >= IN_ZIP64,
         is_far = directory_offset >= IN_ZIP64;
    if (many || is_large || is_far) {
        put(&w, 0x06064b50, 4);
        put(&w, 44, 8); /* of what follows in this record */
        put(&w, VERSION_ZIP64, 2);
        put(&w, VERSION_ZIP64, 2);
        put(&w, 0, 4 + 4); /* disks */
        put(&w, records, 8);
        put(&w, records, 8);
        put(&w, directory_bytes, 8);
        put(&w, directory_offset, 8);
        put(&w, 0x07064b50, 4); /* where that record is */
        put(&w, 0, 4);
        put(&w, directory_offset + directory_bytes, 8);
        put(&w, 1, 4);
    }
    put(&w, 0x06054b50, 4);
    put(&w, 0, 2 + 2);
    put(&w, many ? COUNT_IN_ZIP64 : records, 2);
    put(&w, many ? COUNT_IN_ZIP64 : records, 2);
    put(&w, is_large ? IN_ZIP64 : directory_bytes, 4);
    put(&w, is_far ? IN_ZIP64 : directory_offset, 4);
    put(&w, 0, 2); /* no comment */
    return w.bytes;
}
