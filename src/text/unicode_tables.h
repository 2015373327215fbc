/* SPDX-License-Identifier: Apache-2.0 */
/* Corrections to the Unicode tables of the libraries; sorted by code point. */
#ifndef PST_TEXT_UNICODE_TABLES_H
#define PST_TEXT_UNICODE_TABLES_H

#include <stddef.h>
#include <stdint.h>

typedef struct pst_unicode_range {
    uint32_t first, last;
    char category[3];
} pst_unicode_range;

/* Assigned after Unicode 14, with their general category. */
extern const pst_unicode_range pst_unicode_added[];
extern const size_t pst_unicode_added_count;
/* What Punctuation does not split at although its category is P. */
extern const pst_unicode_range pst_unicode_newer_punctuation[];
extern const size_t pst_unicode_newer_punctuation_count;
/* What the normal forms leave as it is: no decomposition, not a combining mark. */
extern const pst_unicode_range pst_unicode_not_normalized[];
extern const size_t pst_unicode_not_normalized_count;

#endif
