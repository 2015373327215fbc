/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Strict JSON access over jansson. jansson's own depth limit (2048) bounds the recursion on hostile input. Its memory comes
 * straight from malloc and not through base/heap.h: its allocator is one for the whole process, which may use jansson, too,
 * and it cannot bear a failing one (2.14 ignores that its token buffer did not grow and then reads past its end).
 */
#include "base/json.h"

#include <math.h>

#include "base/error.h"

int pst_json_parse(const char *text, size_t bytes, const char *path, json_t **out, pst_error *err)
{
    json_error_t detail;
    json_t *document = json_loadb(text, bytes, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &detail);
    if (document == NULL && json_error_code(&detail) == json_error_out_of_memory)
        return pst_fail_memory(err, "JSON", bytes);
    if (document == NULL)
        return pst_fail(err, PST_E_FORMAT, path, "not valid JSON: %s (line %d, column %d)", detail.text, detail.line,
                        detail.column);
    *out = document;
    return 0;
}

/* Finds object[key]: 0 found, 1 absent or null and optional, PST_E_FORMAT absent and required. */
static int find(const json_t *object, const char *key, bool required, json_t **out, const char *path, pst_error *err)
{
    json_t *value = json_object_get(object, key);
    if (value == NULL || json_is_null(value)) {
        if (!required)
            return 1;
        return pst_fail(err, PST_E_FORMAT, path, "\"%s\" is missing", key);
    }
    *out = value;
    return 0;
}

static int wrong(const char *key, const char *wanted, const char *path, pst_error *err)
{
    return pst_fail(err, PST_E_FORMAT, path, "\"%s\" is not %s", key, wanted);
}

int pst_json_u64(const json_t *object, const char *key, bool required, uint64_t min, uint64_t max, uint64_t *out,
                 const char *path, pst_error *err)
{
    json_t *value = NULL;
    int status = find(object, key, required, &value, path, err);
    if (status != 0)
        return status;
    uint64_t number;
    if (json_is_integer(value) && json_integer_value(value) >= 0) {
        number = (uint64_t)json_integer_value(value);
    } else if (json_is_real(value) && json_real_value(value) >= 0 && json_real_value(value) < 9e15 &&
               floor(json_real_value(value)) == json_real_value(value)) {
        number = (uint64_t)json_real_value(value);
    } else {
        return wrong(key, "a whole number of at least 0", path, err);
    }
    if (number < min || number > max)
        return pst_fail(err, PST_E_FORMAT, path, "\"%s\" is %llu, outside %llu to %llu", key,
                        (unsigned long long)number, (unsigned long long)min, (unsigned long long)max);
    *out = number;
    return 0;
}

int pst_json_double(const json_t *object, const char *key, bool required, double *out, const char *path, pst_error *err)
{
    json_t *value = NULL;
    int status = find(object, key, required, &value, path, err);
    if (status != 0)
        return status;
    if (!json_is_number(value) || !isfinite(json_number_value(value)))
        return wrong(key, "a number", path, err);
    *out = json_number_value(value);
    return 0;
}

int pst_json_bool(const json_t *object, const char *key, bool required, bool *out, const char *path, pst_error *err)
{
    json_t *value = NULL;
    int status = find(object, key, required, &value, path, err);
    if (status != 0)
        return status;
    if (!json_is_boolean(value))
        return wrong(key, "true or false", path, err);
    *out = json_is_true(value);
    return 0;
}

int pst_json_string(const json_t *object, const char *key, bool required, const char **out, const char *path,
                    pst_error *err)
{
    json_t *value = NULL;
    int status = find(object, key, required, &value, path, err);
    if (status != 0)
        return status;
    if (!json_is_string(value))
        return wrong(key, "a string", path, err);
    *out = json_string_value(value);
    return 0;
}

int pst_json_object(const json_t *object, const char *key, bool required, json_t **out, const char *path,
                    pst_error *err)
{
    json_t *value = NULL;
    int status = find(object, key, required, &value, path, err);
    if (status != 0)
        return status;
    if (!json_is_object(value))
        return wrong(key, "an object", path, err);
    *out = value;
    return 0;
}

int pst_json_array(const json_t *object, const char *key, bool required, json_t **out, const char *path, pst_error *err)
{
    json_t *value = NULL;
    int status = find(object, key, required, &value, path, err);
    if (status != 0)
        return status;
    if (!json_is_array(value))
        return wrong(key, "an array", path, err);
    *out = value;
    return 0;
}
