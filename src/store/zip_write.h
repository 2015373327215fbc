/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pieces of a zip file as torch's writer lays them out: stored records whose sizes and CRC follow the data in a
 * descriptor (none behind empty ones), whose data is aligned by an extra field 0x4246 of the local header, with ZIP64 fields
 * where the size or the place reaches 2^32 - 1. Pure: bytes are put at `out`, their number is returned.
 */
#ifndef PST_STORE_ZIP_WRITE_H
#define PST_STORE_ZIP_WRITE_H

#include <stddef.h>
#include <stdint.h>

enum {
    PST_ZIP_LOCAL_BYTES = 30,    /* of a local header, without name and extra fields */
    PST_ZIP_MAX_EXTRA = 28,      /* of ZIP64 */
    PST_ZIP_MAX_DESCRIPTOR = 24, /* with ZIP64 */
    PST_ZIP_DIRECTORY_BYTES = 46,
    PST_ZIP_MAX_END = 98,
    PST_ZIP_CRC_IN_DESCRIPTOR = 4, /* where the CRC lies in them */
    PST_ZIP_CRC_IN_DIRECTORY = 16
};

typedef struct pst_zip_entry {
    const char *folder, *name; /* the record is called folder/name */
    uint64_t header_offset, bytes;
    uint32_t crc;
} pst_zip_entry;

/* Where the data begins, in the file. */
uint64_t pst_zip_data_offset(const pst_zip_entry *entry, uint32_t alignment);
size_t pst_zip_put_local(const pst_zip_entry *entry, uint32_t alignment, unsigned char *out);
size_t pst_zip_descriptor_bytes(const pst_zip_entry *entry);
size_t pst_zip_put_descriptor(const pst_zip_entry *entry, unsigned char *out);
size_t pst_zip_directory_bytes(const pst_zip_entry *entry);
size_t pst_zip_put_directory(const pst_zip_entry *entry, unsigned char *out);
/* What closes the file; out may be NULL, for the size alone. */
size_t pst_zip_put_end(uint64_t records, uint64_t directory_offset, uint64_t directory_bytes, unsigned char *out);

#endif
