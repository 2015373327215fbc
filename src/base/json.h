/* SPDX-License-Identifier: Apache-2.0 */
/*
 * JSON read strictly, over jansson (64-bit integers): duplicate keys, trailing text and invalid UTF-8 are refused.
 * The accessors check types and ranges and say which key of which file is wrong.
 */
#ifndef PST_BASE_JSON_H
#define PST_BASE_JSON_H

#include <jansson.h>
#include <stdbool.h>

#include "penstock/types.h"

/* Parses bytes [text, text + bytes). `path` is for the message only. The caller owns *out (json_decref). */
int pst_json_parse(const char *text, size_t bytes, const char *path, json_t **out, pst_error *err);

/* Each reads object[key] into *out. When the key is missing or null: PST_E_FORMAT if `required`, else 1 with *out untouched
 * (so the caller presets the default). A wrong type or range is PST_E_FORMAT. `path` is for the message only.
 * Strings are borrowed from the document. Integral numbers written as 1e4 or 10000.0 count as integers. */
int pst_json_u64(const json_t *object, const char *key, bool required, uint64_t min, uint64_t max, uint64_t *out,
                 const char *path, pst_error *err);
int pst_json_double(const json_t *object, const char *key, bool required, double *out, const char *path,
                    pst_error *err);
int pst_json_bool(const json_t *object, const char *key, bool required, bool *out, const char *path, pst_error *err);
int pst_json_string(const json_t *object, const char *key, bool required, const char **out, const char *path,
                    pst_error *err);
/* object[key] as an object or an array; NULL (and return 1) when missing or null and not required. */
int pst_json_object(const json_t *object, const char *key, bool required, json_t **out, const char *path,
                    pst_error *err);
int pst_json_array(const json_t *object, const char *key, bool required, json_t **out, const char *path,
                   pst_error *err);

#endif
