/* SPDX-License-Identifier: Apache-2.0 */
/*
 * UTF-8 and the Unicode properties, case and normalization forms that tokenizers are defined with.
 * Over utf8proc, corrected where the reference tokenizers follow another Unicode version.
 */
#ifndef PST_TEXT_UNICODE_H
#define PST_TEXT_UNICODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "text/bytes.h"

/* Bytes of the sequence that a lead byte of valid UTF-8 begins. */
static inline size_t pst_utf8_width(unsigned char lead)
{
    return lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

/* The code point at text, which is valid UTF-8. */
static inline uint32_t pst_utf8_get(const char *text, size_t *width)
{
    const unsigned char *u = (const unsigned char *)text;
    *width = pst_utf8_width(u[0]);
    switch (*width) {
    case 1: return u[0];
    case 2: return (uint32_t)(u[0] & 0x1F) << 6 | (u[1] & 0x3F);
    case 3: return (uint32_t)(u[0] & 0x0F) << 12 | (uint32_t)(u[1] & 0x3F) << 6 | (u[2] & 0x3F);
    default:
        return (uint32_t)(u[0] & 0x07) << 18 | (uint32_t)(u[1] & 0x3F) << 12 | (uint32_t)(u[2] & 0x3F) << 6 |
               (u[3] & 0x3F);
    }
}

/* Writes a code point (no surrogate, at most U+10FFFF); returns its width. */
size_t pst_utf8_put(uint32_t code_point, char out[4]);

/*
 * What the bytes at text, of which there are `bytes` > 0, begin:
 *   > 0   a whole character of that many bytes;
 *   0     the beginning of a character that goes on beyond the end;
 *   < 0   no character: minus the length of the maximal subpart, to be replaced by one U+FFFD (Unicode 3.9, table 3-8).
 */
int pst_utf8_step(const char *text, size_t bytes);

/* The offset of the first byte that is not part of valid UTF-8, or `bytes` when all is valid. */
size_t pst_utf8_valid_prefix(const char *text, size_t bytes);

bool pst_unicode_is_space(uint32_t code_point);       /* White_Space */
bool pst_unicode_is_numeric(uint32_t code_point);     /* Nd, Nl, No */
bool pst_unicode_is_word(uint32_t code_point);        /* \w of Unicode's regular expressions (UTS 18, annex C) */
bool pst_unicode_is_punctuation(uint32_t code_point); /* ASCII punctuation and P */

/* As Python's strings have it: isprintable, isalpha, isdecimal, isdigit, islower, isupper. */
bool pst_unicode_is_printable(uint32_t code_point);
bool pst_unicode_is_alpha(uint32_t code_point);
bool pst_unicode_is_decimal(uint32_t code_point);
bool pst_unicode_is_digit(uint32_t code_point);
bool pst_unicode_is_lower(uint32_t code_point);
bool pst_unicode_is_upper(uint32_t code_point);
bool pst_unicode_is_cased(uint32_t code_point);
bool pst_unicode_is_case_ignorable(uint32_t code_point); /* passed over in looking for the end of a word */

typedef enum pst_normal_form { PST_NFC, PST_NFD, PST_NFKC, PST_NFKD } pst_normal_form;

/* Appends the normal form of valid UTF-8. Near linear in the length for any text. */
int pst_unicode_normalize(pst_normal_form form, const char *text, size_t bytes, pst_bytes *out, pst_error *err);
/* Appends each character's full lower case mapping, without regard to its neighbours. */
int pst_unicode_lowercase(const char *text, size_t bytes, pst_bytes *out, pst_error *err);
/* One character's upper (title: title) or lower case, which may be several characters; returns its bytes. */
size_t pst_unicode_case(uint32_t code_point, bool upper, bool title, char out[16]);

#endif
