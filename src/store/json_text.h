/* SPDX-License-Identifier: Apache-2.0 */
/* JSON text, put together piece by piece. A failed allocation is remembered: check `failed` once, at the
 * end. */
#ifndef PST_STORE_JSON_TEXT_H
#define PST_STORE_JSON_TEXT_H

#include <stdbool.h>
#include <stddef.h>

/* Begins as {0}; pst_json_text_free. */
typedef struct pst_json_text {
    char *text; /* terminated; NULL while empty */
    size_t bytes, capacity;
    bool failed;
} pst_json_text;

/* As it is. */
void pst_json_text_add(pst_json_text *out, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Quoted and escaped; string is UTF-8. */
void pst_json_text_string(pst_json_text *out, const char *string);
/* So many bytes as they are; and escaped, without quotes: UTF-8 that may hold NUL. */
void pst_json_text_bytes(pst_json_text *out, const char *text, size_t bytes);
void pst_json_text_escaped(pst_json_text *out, const char *text, size_t bytes);
void pst_json_text_free(pst_json_text *out);

#endif
