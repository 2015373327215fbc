/* SPDX-License-Identifier: Apache-2.0 */
/* The CRC-32 of zip files (polynomial 0x04C11DB7, reflected), at memory speed by ISA-L, and joined from that of pieces. */
#ifndef PST_STORE_CRC32_H
#define PST_STORE_CRC32_H

#include <stddef.h>
#include <stdint.h>

/* Of what `crc` is the CRC of (0: nothing), followed by these bytes. */
uint32_t pst_crc32(uint32_t crc, const void *data, size_t bytes);
/* Of A followed by B, given both CRCs and the length of B. */
uint32_t pst_crc32_join(uint32_t a, uint32_t b, uint64_t b_bytes);

#endif
