/* SPDX-License-Identifier: Apache-2.0 */
/* malloc with a failure hook and a count of what is alive. The counters are relaxed atomics: they order nothing. */
#include "base/heap.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static atomic_llong failure_countdown = -1;
static atomic_int failure_forever;
static atomic_llong live_count;

/* True when this allocation is the one that a test asked to fail. */
static int must_fail(void)
{
    if (atomic_load_explicit(&failure_countdown, memory_order_relaxed) < 0)
        return 0;
    if (atomic_fetch_sub_explicit(&failure_countdown, 1, memory_order_relaxed) > 0)
        return 0;
    atomic_store_explicit(&failure_countdown, atomic_load(&failure_forever) ? 0 : -1, memory_order_relaxed);
    return 1;
}

void *pst_heap_realloc(void *memory, size_t bytes)
{
    if (must_fail())
        return NULL;
    void *grown = realloc(memory, bytes ? bytes : 1);
    if (grown != NULL && memory == NULL)
        atomic_fetch_add_explicit(&live_count, 1, memory_order_relaxed);
    return grown;
}

void *pst_heap_alloc(size_t bytes)
{
    return pst_heap_realloc(NULL, bytes);
}

void *pst_heap_calloc(size_t count, size_t bytes)
{
    size_t total;
    /* calloc sees an overflow itself, but a sanitizer's calloc ends the program over it. */
    if (__builtin_mul_overflow(count, bytes, &total) || must_fail())
        return NULL;
    void *memory = calloc(count ? count : 1, bytes ? bytes : 1);
    if (memory != NULL)
        atomic_fetch_add_explicit(&live_count, 1, memory_order_relaxed);
    return memory;
}

void *pst_heap_reallocarray(void *memory, size_t count, size_t bytes)
{
    size_t total;
    if (__builtin_mul_overflow(count, bytes, &total))
        return NULL;
    return pst_heap_realloc(memory, total);
}

void pst_heap_free(void *memory)
{
    if (memory == NULL)
        return;
    atomic_fetch_sub_explicit(&live_count, 1, memory_order_relaxed);
    free(memory);
}

char *pst_heap_strndup(const char *text, size_t bytes)
{
    char *copy = pst_heap_alloc(bytes + 1);
    if (copy == NULL)
        return NULL;
    memcpy(copy, text, bytes);
    copy[bytes] = '\0';
    return copy;
}

char *pst_heap_strdup(const char *text)
{
    return pst_heap_strndup(text, strlen(text));
}

char *pst_heap_printf(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    if (length < 0)
        return NULL;
    char *text = pst_heap_alloc((size_t)length + 1);
    if (text == NULL)
        return NULL;
    va_start(arguments, format);
    vsnprintf(text, (size_t)length + 1, format, arguments);
    va_end(arguments);
    return text;
}

void pst_heap_fail_after(int64_t countdown, int forever)
{
    atomic_store(&failure_forever, forever);
    atomic_store(&failure_countdown, countdown);
}

int64_t pst_heap_live_count(void)
{
    return atomic_load(&live_count);
}
