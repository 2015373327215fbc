/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The one door to malloc, so that tests can make the nth allocation fail and count what is still held.
 * Any thread. Large tensor memory does not come from here but from os/memory.h.
 */
#ifndef PST_BASE_HEAP_H
#define PST_BASE_HEAP_H

#include <stddef.h>
#include <stdint.h>

/* NULL when out of memory, when count * size overflows, or when the failure hook says so. Zero bytes give a
 * unique pointer. */
void *pst_heap_alloc(size_t bytes);
void *pst_heap_calloc(size_t count, size_t bytes);
void *pst_heap_realloc(void *memory, size_t bytes);
void *pst_heap_reallocarray(void *memory, size_t count, size_t bytes);
void pst_heap_free(void *memory);

char *pst_heap_strdup(const char *text);
char *pst_heap_strndup(const char *text, size_t bytes);
/* A formatted string that the caller frees with pst_heap_free; NULL when out of memory. */
char *pst_heap_printf(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Tests only: the allocation after the next `countdown` successful ones fails, once (or, with `forever`, all from there on).
 * Negative: never. Returns nothing; not thread-safe against concurrent allocations of the code under test. */
void pst_heap_fail_after(int64_t countdown, int forever);
/* Allocations made and not yet freed. */
int64_t pst_heap_live_count(void);

#endif
