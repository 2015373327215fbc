/* SPDX-License-Identifier: Apache-2.0 */
/* Strict JSON access over jansson. jansson's own depth limit (2048) bounds the recursion on hostile input. */
#include "base/json.h"

#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdint.h>

#include "base/error.h"
#include "base/heap.h"

/*
 * jansson (2.14) is not safe when memory runs out: its tokenizer ignores that its buffer could not grow, then reads past the
 * end of what it has. So a failed allocation must not return into it. While a document is parsed, its blocks are on a list of
 * the thread; when one cannot be had, control leaves jansson at once and the list is freed. jansson keeps no state between
 * calls that this could leave half-changed.
 */
typedef struct block {
    struct block *previous, *next; /* both NULL: on no list */
} block;

static _Thread_local block *parse_blocks; /* a ring through its head while a document is parsed, else NULL */
static _Thread_local jmp_buf parse_escape;

static void *json_alloc(size_t bytes)
{
    block *made = bytes <= SIZE_MAX - sizeof(block) ? pst_heap_alloc(sizeof(block) + bytes) : NULL;
    if (made == NULL && parse_blocks != NULL)
        longjmp(parse_escape, 1);
    if (made == NULL)
        return NULL;
    *made = (block){NULL, NULL};
    if (parse_blocks != NULL) {
        *made = (block){parse_blocks, parse_blocks->next};
        parse_blocks->next->previous = made;
        parse_blocks->next = made;
    }
    return made + 1;
}

static void json_free(void *memory)
{
    if (memory == NULL)
        return;
    block *freed = (block *)memory - 1;
    if (freed->next != NULL) {
        freed->next->previous = freed->previous;
        freed->previous->next = freed->next;
    }
    pst_heap_free(freed);
}

static pthread_once_t allocator_once = PTHREAD_ONCE_INIT;

static void install_allocator(void)
{
    json_set_alloc_funcs(json_alloc, json_free);
}

/* json_loadb that returns NULL with *out_of_memory instead of going on with what it has. */
static json_t *load(const char *text, size_t bytes, json_error_t *detail, bool *out_of_memory)
{
    block head = {&head, &head};
    parse_blocks = &head;
    if (setjmp(parse_escape) != 0) {
        parse_blocks = NULL;
        for (block *next, *item = head.next; item != &head; item = next) {
            next = item->next;
            pst_heap_free(item);
        }
        *out_of_memory = true;
        return NULL;
    }
    json_t *document = json_loadb(text, bytes, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, detail);
    parse_blocks = NULL;
    for (block *next, *item = head.next; item != &head; item = next) { /* the document's from now on */
        next = item->next;
        *item = (block){NULL, NULL};
    }
    return document;
}

int pst_json_parse(const char *text, size_t bytes, const char *path, json_t **out, pst_error *err)
{
    pthread_once(&allocator_once, install_allocator);
    json_error_t detail;
    bool out_of_memory = false;
    json_t *document = load(text, bytes, &detail, &out_of_memory);
    if (out_of_memory)
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

int pst_json_object(const json_t *object, const char *key, bool required, json_t **out, const char *path, pst_error *err)
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
