/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The memory of a run and the making of values. Texts lie in an arena of their own without gaps: a text that was
 * made last and grows at its end grows in place, so that a template which adds to a text in a loop stays linear.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/hash.h"
#include "base/heap.h"
#include "text/jinja.h"
#include "text/unicode.h"

/* ---- arenas ---- */

struct jinja_chunk {
    struct jinja_chunk *next;
    char data[];
};

enum { FIRST_CHUNK = 16 << 10, LARGEST_CHUNK = 4 << 20 };

static int grow_arena(jinja_arena *arena, size_t bytes, pst_error *err)
{
    size_t size = *arena->used_bytes / 2;
    size = size < FIRST_CHUNK ? FIRST_CHUNK : size > LARGEST_CHUNK ? LARGEST_CHUNK : size;
    size_t left = arena->max_bytes - (*arena->used_bytes < arena->max_bytes ? *arena->used_bytes : arena->max_bytes);
    arena->over = bytes > SIZE_MAX / 2 || bytes > left;
    if (arena->over)
        return pst_fail(err, PST_E_BUDGET, NULL, "the chat template takes more than %zu MiB of memory",
                        arena->max_bytes >> 20);
    if (size < bytes)
        size = bytes < LARGEST_CHUNK && 2 * bytes <= left ? 2 * bytes : bytes;
    size = size < left ? size : left;
    struct jinja_chunk *chunk = pst_heap_alloc(sizeof *chunk + size);
    if (chunk == NULL)
        return pst_fail_memory(err, "a chat template", size);
    chunk->next = arena->chunks;
    arena->chunks = chunk;
    arena->at = chunk->data;
    arena->end = chunk->data + size;
    *arena->used_bytes += size;
    return 0;
}

void *pst_jinja_alloc(jinja_arena *arena, size_t bytes, size_t alignment, pst_error *err)
{
    size_t gap = arena->at != NULL ? -(uintptr_t)arena->at & (alignment - 1) : 0;
    if (arena->at == NULL || (size_t)(arena->end - arena->at) < gap || (size_t)(arena->end - arena->at) - gap < bytes) {
        if (bytes > SIZE_MAX - alignment || grow_arena(arena, bytes + alignment, err) < 0)
            return NULL;
        gap = -(uintptr_t)arena->at & (alignment - 1);
    }
    void *made = arena->at + gap;
    arena->at += gap + bytes;
    return made;
}

void pst_jinja_arena_free(jinja_arena *arena)
{
    struct jinja_chunk *next;
    for (struct jinja_chunk *chunk = arena->chunks; chunk != NULL; chunk = next) {
        next = chunk->next;
        pst_heap_free(chunk);
    }
    arena->chunks = NULL;
    arena->at = arena->end = NULL;
}

/* An allocation failed, or the limit is reached: which one stands in the record. */
int pst_jinja_no_memory(jinja_run *run)
{
    return run->values.over || run->texts.over ? PST_E_BUDGET : -ENOMEM;
}

static void *make(jinja_run *run, size_t count, size_t bytes)
{
    if (bytes != 0 && count > SIZE_MAX / 4 / bytes)
        count = SIZE_MAX / 4 / bytes; /* refused as too much */
    return pst_jinja_alloc(&run->values, count * bytes, 16, run->err);
}

/* ---- work and failures ---- */

int pst_jinja_fail(jinja_run *run, const char *format, ...)
{
    char text[400];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    size_t bytes = strlen(text); /* cut within a character, perhaps */
    text[pst_utf8_valid_prefix(text, bytes)] = '\0';
    for (char *at = text; *at != '\0'; at++) /* one line */
        *at = (unsigned char)*at < 0x20 || *at == 0x7F ? ' ' : *at;
    return pst_fail(run->err, PST_E_FORMAT, pst_jinja_path(run->template), "line %u of the chat template: %s",
                    run->line, text);
}

int pst_jinja_too_large(jinja_run *run)
{
    return pst_fail(run->err, PST_E_BUDGET, pst_jinja_path(run->template),
                    "line %u of the chat template: it takes more than %zu MiB of memory", run->line,
                    run->limits.memory_bytes >> 20);
}

int pst_jinja_charge(jinja_run *run, size_t size)
{
    run->steps += 1 + size / 64;
    if (run->steps > run->limits.steps)
        return pst_jinja_fail(run, "it takes more than %llu steps", (unsigned long long)run->limits.steps);
    return 0;
}

int pst_jinja_deeper(jinja_run *run)
{
    PST_TRY(pst_jinja_charge(run, 0));
    if (++run->depth > JINJA_RUN_DEPTH)
        return pst_jinja_fail(run, "it goes deeper than %d levels", JINJA_RUN_DEPTH);
    return 0;
}

/* ---- buffers ---- */

int pst_jinja_buffer(jinja_run *run, jinja_buffer **out)
{
    jinja_buffer *buffer = run->free_buffers;
    if (buffer != NULL) {
        run->free_buffers = buffer->next_free;
    } else {
        buffer = make(run, 1, sizeof *buffer);
        if (buffer == NULL)
            return pst_jinja_no_memory(run);
        *buffer = (jinja_buffer){.next = run->buffers};
        run->buffers = buffer;
    }
    *out = buffer;
    return 0;
}

int pst_jinja_write(jinja_run *run, jinja_buffer *buffer, const char *text, size_t bytes)
{
    PST_TRY(pst_jinja_charge(run, bytes));
    if (bytes > run->limits.output_bytes - buffer->bytes.count)
        return pst_jinja_fail(run, "it makes a text of more than %zu MiB", run->limits.output_bytes >> 20);
    size_t before = buffer->bytes.capacity;
    PST_TRY(pst_bytes_append(&buffer->bytes, text, bytes, run->err));
    run->used_bytes += buffer->bytes.capacity - before;
    if (run->used_bytes > run->limits.memory_bytes)
        return pst_jinja_too_large(run);
    return 0;
}

int pst_jinja_writef(jinja_run *run, jinja_buffer *buffer, const char *format, ...)
{
    char text[512];
    va_list list;
    va_start(list, format);
    int bytes = vsnprintf(text, sizeof text, format, list);
    va_end(list);
    return pst_jinja_write(run, buffer, text, bytes < (int)sizeof text ? (size_t)bytes : sizeof text - 1);
}

int pst_jinja_take(jinja_run *run, jinja_buffer *buffer, jinja_value *out)
{
    PST_TRY(pst_jinja_string(run, buffer->bytes.data, buffer->bytes.count, out));
    buffer->bytes.count = 0;
    buffer->next_free = run->free_buffers;
    run->free_buffers = buffer;
    return 0;
}

/* ---- strings ---- */

static size_t count_points(const char *text, size_t bytes)
{
    size_t points = 0;
    for (size_t i = 0; i < bytes; i++)
        points += ((unsigned char)text[i] & 0xC0) != 0x80;
    return points;
}

int pst_jinja_view(jinja_run *run, const char *text, size_t bytes, size_t points, jinja_value *out)
{
    jinja_string *string = make(run, 1, sizeof *string);
    if (string == NULL)
        return pst_jinja_no_memory(run);
    if (points == SIZE_MAX)
        PST_TRY(pst_jinja_charge(run, bytes));
    *string = (jinja_string){.text = bytes > 0 ? text : "",
                             .bytes = bytes,
                             .points = points == SIZE_MAX ? count_points(text, bytes) : points};
    *out = (jinja_value){.kind = JINJA_STRING, .as.string = string};
    return 0;
}

int pst_jinja_string(jinja_run *run, const char *text, size_t bytes, jinja_value *out)
{
    PST_TRY(pst_jinja_charge(run, bytes));
    char *copy = pst_jinja_alloc(&run->texts, bytes, 1, run->err);
    if (copy == NULL)
        return pst_jinja_no_memory(run);
    if (bytes > 0)
        memcpy(copy, text, bytes);
    return pst_jinja_view(run, copy, bytes, SIZE_MAX, out);
}

int pst_jinja_join(jinja_run *run, const jinja_string *left, const jinja_string *right, jinja_value *out)
{
    jinja_arena *arena = &run->texts;
    size_t points = left->points + right->points, bytes = left->bytes + right->bytes;
    if (right->bytes == 0 || left->bytes == 0) {
        const jinja_string *only = left->bytes == 0 ? right : left;
        return pst_jinja_view(run, only->text, only->bytes, only->points, out);
    }
    if (bytes > run->limits.output_bytes)
        return pst_jinja_fail(run, "it makes a text of more than %zu MiB", run->limits.output_bytes >> 20);
    bool is_last = left->text + left->bytes == arena->at;
    if (is_last && (size_t)(arena->end - arena->at) >= right->bytes) {
        PST_TRY(pst_jinja_charge(run, right->bytes));
        memcpy(arena->at, right->text, right->bytes);
        arena->at += right->bytes;
        return pst_jinja_view(run, left->text, bytes, points, out);
    }
    PST_TRY(pst_jinja_charge(run, bytes));
    /* Room to grow in place for one that grew before. */
    size_t room = is_last ? 2 * bytes : bytes;
    char *text = pst_jinja_alloc(arena, room, 1, run->err);
    if (text == NULL)
        return pst_jinja_no_memory(run);
    memcpy(text, left->text, left->bytes);
    memcpy(text + left->bytes, right->text, right->bytes);
    arena->at = text + bytes;
    return pst_jinja_view(run, text, bytes, points, out);
}

int pst_jinja_undefined(jinja_run *run, const char *what, jinja_value *out)
{
    jinja_value text = {0};
    if (what != NULL)
        PST_TRY(pst_jinja_view(run, what, strlen(what), SIZE_MAX, &text));
    *out = (jinja_value){.kind = JINJA_UNDEFINED, .as.string = text.as.string};
    return 0;
}

/* ---- lists ---- */

int pst_jinja_list(jinja_run *run, size_t capacity, jinja_list **out)
{
    PST_TRY(pst_jinja_charge(run, capacity));
    jinja_list *list = make(run, 1, sizeof *list);
    if (list == NULL)
        return pst_jinja_no_memory(run);
    *list = (jinja_list){.capacity = capacity};
    if (capacity > 0 && (list->items = make(run, capacity, sizeof *list->items)) == NULL)
        return pst_jinja_no_memory(run);
    *out = list;
    return 0;
}

int pst_jinja_push(jinja_run *run, jinja_list *list, jinja_value value)
{
    if (list->count == list->capacity) {
        size_t capacity = list->capacity < 4 ? 8 : 2 * list->capacity;
        PST_TRY(pst_jinja_charge(run, capacity));
        jinja_value *items = make(run, capacity, sizeof *items);
        if (items == NULL)
            return pst_jinja_no_memory(run);
        if (list->count > 0)
            memcpy(items, list->items, list->count * sizeof *items);
        list->items = items;
        list->capacity = capacity;
    }
    list->items[list->count++] = value;
    return 0;
}

int pst_jinja_tuple2(jinja_run *run, jinja_value first, jinja_value second, jinja_value *out)
{
    jinja_list *tuple;
    PST_TRY(pst_jinja_list(run, 2, &tuple));
    tuple->items[0] = first;
    tuple->items[1] = second;
    tuple->count = 2;
    *out = pst_jinja_of_list(JINJA_TUPLE, tuple);
    return 0;
}

/* ---- dicts ---- */

enum { SMALL_DICT = 8 };

int pst_jinja_dict(jinja_run *run, size_t capacity, jinja_dict **out)
{
    jinja_dict *dict = make(run, 1, sizeof *dict);
    if (dict == NULL)
        return pst_jinja_no_memory(run);
    *dict = (jinja_dict){.capacity = capacity};
    if (capacity > 0 && (dict->entries = make(run, capacity, sizeof *dict->entries)) == NULL)
        return pst_jinja_no_memory(run);
    *out = dict;
    return 0;
}

/* Equal keys have equal hashes: 1, 1.0 and true are one key. Fails for what Python cannot hash. */
static int hash_key(jinja_run *run, jinja_value key, uint64_t *out)
{
    double number;
    if (key.kind == JINJA_STRING) {
        PST_TRY(pst_jinja_charge(run, key.as.string->bytes));
        *out = pst_hash(PST_HASH_START, key.as.string->text, key.as.string->bytes);
    } else if (pst_jinja_number(key, &number)) {
        number += 0.0; /* -0.0 is 0.0 */
        *out = pst_hash(PST_HASH_START, &number, sizeof number);
    } else if (key.kind == JINJA_NONE || key.kind == JINJA_UNDEFINED) {
        *out = key.kind;
    } else if (key.kind == JINJA_TUPLE) {
        *out = PST_HASH_START;
        PST_TRY(pst_jinja_deeper(run));
        PST_TRY(pst_jinja_charge(run, 16 * key.as.list->count));
        for (size_t i = 0; i < key.as.list->count; i++) {
            uint64_t hash;
            PST_TRY(hash_key(run, key.as.list->items[i], &hash));
            *out = pst_hash(*out, &hash, sizeof hash);
        }
        run->depth--;
    } else {
        return pst_jinja_fail(run, "%s cannot be a key", pst_jinja_kind_name(key));
    }
    return 0;
}

/* The entry of a key: its number, or -1. */
static int find_entry(jinja_run *run, const jinja_dict *dict, jinja_value key, uint64_t hash, int64_t *out)
{
    *out = -1;
    size_t at = dict->slot_count > 0 ? hash & (dict->slot_count - 1) : 0;
    for (size_t tried = 0;; tried++) {
        size_t entry = dict->slot_count > 0 ? dict->slots[at] - (size_t)1 : tried;
        if (entry >= dict->count) /* also an empty slot */
            return 0;
        if (dict->entries[entry].hash == hash) {
            int same = pst_jinja_equal(run, dict->entries[entry].key, key);
            PST_TRY(same);
            if (same) {
                *out = (int64_t)entry;
                return 0;
            }
        }
        if (dict->slot_count > 0)
            at = (at + 1) & (dict->slot_count - 1);
        if (tried % 64 == 63) /* keys that were made to meet */
            PST_TRY(pst_jinja_charge(run, 0));
    }
}

static int grow_dict(jinja_run *run, jinja_dict *dict)
{
    if (dict->count == dict->capacity) {
        size_t capacity = dict->capacity < 4 ? 4 : 2 * dict->capacity;
        PST_TRY(pst_jinja_charge(run, capacity));
        jinja_entry *entries = make(run, capacity, sizeof *entries);
        if (entries == NULL)
            return pst_jinja_no_memory(run);
        if (dict->count > 0)
            memcpy(entries, dict->entries, dict->count * sizeof *entries);
        dict->entries = entries;
        dict->capacity = capacity;
    }
    if (dict->count < SMALL_DICT || 2 * (dict->count + 1) < dict->slot_count)
        return 0;
    if (dict->count >= UINT32_MAX / 4)
        return pst_jinja_fail(run, "a dict is too large");
    size_t slot_count = 32;
    while (slot_count < 4 * (dict->count + 1))
        slot_count *= 2;
    uint32_t *slots = make(run, slot_count, sizeof *slots);
    if (slots == NULL)
        return pst_jinja_no_memory(run);
    memset(slots, 0, slot_count * sizeof *slots);
    for (size_t i = 0; i < dict->count; i++) {
        size_t at = dict->entries[i].hash & (slot_count - 1);
        while (slots[at] != 0)
            at = (at + 1) & (slot_count - 1);
        slots[at] = (uint32_t)i + 1;
    }
    dict->slots = slots;
    dict->slot_count = slot_count;
    return 0;
}

int pst_jinja_put(jinja_run *run, jinja_dict *dict, jinja_value key, jinja_value value)
{
    uint64_t hash;
    int64_t entry;
    PST_TRY(hash_key(run, key, &hash));
    PST_TRY(find_entry(run, dict, key, hash, &entry));
    if (entry >= 0) {
        dict->entries[entry].value = value;
        return 0;
    }
    PST_TRY(grow_dict(run, dict));
    if (dict->slot_count > 0) {
        size_t at = hash & (dict->slot_count - 1);
        while (dict->slots[at] != 0)
            at = (at + 1) & (dict->slot_count - 1);
        dict->slots[at] = (uint32_t)dict->count + 1;
    }
    dict->entries[dict->count++] = (jinja_entry){.key = key, .value = value, .hash = hash};
    return 0;
}

int pst_jinja_get(jinja_run *run, const jinja_dict *dict, jinja_value key, jinja_value *out)
{
    uint64_t hash;
    int64_t entry;
    PST_TRY(hash_key(run, key, &hash));
    PST_TRY(find_entry(run, dict, key, hash, &entry));
    if (entry < 0)
        return 0;
    *out = dict->entries[entry].value;
    return 1;
}

const jinja_value *pst_jinja_get_text(const jinja_dict *dict, const char *key, size_t bytes)
{
    uint64_t hash = pst_hash(PST_HASH_START, key, bytes);
    size_t at = dict->slot_count > 0 ? hash & (dict->slot_count - 1) : 0;
    for (size_t tried = 0;; tried++) {
        size_t entry = dict->slot_count > 0 ? dict->slots[at] - (size_t)1 : tried;
        if (entry >= dict->count)
            return NULL;
        const jinja_entry *e = &dict->entries[entry];
        if (e->hash == hash && e->key.kind == JINJA_STRING && e->key.as.string->bytes == bytes &&
            memcmp(e->key.as.string->text, key, bytes) == 0)
            return &e->value;
        if (dict->slot_count > 0)
            at = (at + 1) & (dict->slot_count - 1);
    }
}
