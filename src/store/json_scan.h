/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A JSON pull scanner for safetensors headers. A header may have 100 MB and hundreds of thousands of tensors;
 * walking it straight into the tensor table costs one pass and no tree, so memory stays within a small factor
 * of the text. Grammar as RFC 8259; a value nests at most 127 deep. Each failure names the byte in the file.
 */
#ifndef PST_STORE_JSON_SCAN_H
#define PST_STORE_JSON_SCAN_H

#include <stdbool.h>

#include "penstock/types.h"

typedef struct pst_scan {
    const char *text; /* valid UTF-8: check with pst_scan_utf8 first */
    size_t bytes;
    size_t at;            /* next byte */
    const char *path;     /* for messages */
    uint64_t file_offset; /* of text[0], for messages */
    pst_error *err;
} pst_scan;

/* PST_E_FORMAT with the place of the first byte that is not valid UTF-8. */
int pst_scan_utf8(const pst_scan *scan);
size_t pst_scan_utf8_length(const pst_scan *scan); /* bytes before that one */
/* Skips white space, then consumes the character c; the other form tells whether it was there. */
int pst_scan_expect(pst_scan *scan, char c);
bool pst_scan_take(pst_scan *scan, char c);
/* A string, decoded and NUL-terminated. out holds at least the bytes left in the text (never more than one
 * fewer than the quoted form takes). A NUL character inside is refused, since names are C strings here. */
int pst_scan_string(pst_scan *scan, char *out, size_t *out_bytes);
/* A whole number in its plain form: digits only, as a reader of unsigned integers demands. */
int pst_scan_u64(pst_scan *scan, uint64_t *out);
/* The literal null; tells whether it was there. */
bool pst_scan_null(pst_scan *scan);
/* Any value. */
int pst_scan_skip(pst_scan *scan);
/* Nothing but white space is left. */
int pst_scan_end(pst_scan *scan);

#endif
