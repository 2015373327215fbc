/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pool of transfer buffers. Arenas are cut into blocks that lie in a list in address order; free neighbours are
 * always one block. Taking looks for the first free block that fits. There are few and large buffers, so lists do;
 * what counts is that an arena is mapped, locked and registered once, and not that finding a block in it is quick.
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/log.h"
#include "base/number.h"
#include "io/internal.h"
#include "os/arena.h"
#include "penstock/io_pool.h"

enum { DEFAULT_ARENA_BYTES = 64 << 20, HUGE_BYTES = 2 << 20, GRAIN = 4096 };

typedef struct block {
    struct block *next;
    uint64_t at, bytes; /* in its arena; `bytes` a multiple of GRAIN */
    uint64_t out_bytes; /* as asked for, at least 1; 0: free */
} block;

typedef struct arena {
    struct arena *next;
    pst_arena pages;
    bool registered;
    block *blocks; /* they cover all of it */
} arena;

struct pst_io_pool {
    pst_io *io; /* or NULL */
    pst_arena_wish wish;
    uint64_t arena_bytes;
    pthread_mutex_t lock; /* guards all below */
    arena *arenas;
    pst_io_pool_stats stats;
    bool lock_told;
};

/* ---- arenas; the lock is held ---- */

static bool is_registered(pst_io *io, const pst_arena *pages)
{
    pthread_mutex_lock(&io->lock);
    uint64_t bytes = pages->bytes < PST_IO_CHUNK_BYTES ? pages->bytes : PST_IO_CHUNK_BYTES;
    bool found = pst_io_region_slot(io, pages->memory, bytes) >= 0;
    pthread_mutex_unlock(&io->lock);
    return found;
}

static void count_arena(pst_io_pool *pool, const arena *a, bool added)
{
    uint64_t bytes = added ? a->pages.bytes : -a->pages.bytes; /* modulo 2^64 */
    pool->stats.held_bytes += bytes;
    pool->stats.locked_bytes += a->pages.locked ? bytes : 0;
    pool->stats.huge_bytes += a->pages.huge ? bytes : 0;
    pool->stats.registered_bytes += a->registered ? bytes : 0;
}

static void tell_unlocked(pst_io_pool *pool, const pst_arena *pages)
{
    if (!pool->wish.lock || pages->locked)
        return;
    pool->stats.lock_status = pages->lock_status;
    if (!pool->lock_told)
        pst_log(PST_LOG_WARNING,
                "I/O buffers are not locked in memory: %s (raise ulimit -l to at least %" PRIu64 " KiB)",
                pst_strerror(pages->lock_status), pool->stats.budget_bytes / 1024);
    pool->lock_told = true;
}

static void free_arena(pst_io_pool *pool, arena *a)
{
    if (a->registered)
        pst_io_unregister(pool->io, a->pages.memory);
    while (a->blocks != NULL) {
        block *next = a->blocks->next;
        pst_heap_free(a->blocks);
        a->blocks = next;
    }
    pst_arena_unmap(&a->pages);
    pst_heap_free(a);
}

static int add_arena(pst_io_pool *pool, uint64_t bytes, pst_error *err)
{
    arena *a = pst_heap_calloc(1, sizeof *a);
    block *whole = pst_heap_calloc(1, sizeof *whole);
    int status = a == NULL || whole == NULL ? pst_fail_memory(err, "an arena of I/O buffers", sizeof *a)
                                            : pst_arena_map(bytes, &pool->wish, &a->pages, err);
    if (status < 0) {
        pst_heap_free(whole);
        pst_heap_free(a);
        return status;
    }
    whole->bytes = a->pages.bytes;
    a->blocks = whole;
    tell_unlocked(pool, &a->pages);
    /* More regions than the engine takes, or no slots left: transfers there are mapped one by one. */
    if (pool->io != NULL && pst_io_register(pool->io, a->pages.memory, a->pages.bytes, NULL) >= 0)
        a->registered = is_registered(pool->io, &a->pages);
    a->next = pool->arenas;
    pool->arenas = a;
    count_arena(pool, a, true);
    return 0;
}

static bool is_free(const arena *a)
{
    return a->blocks->out_bytes == 0 && a->blocks->next == NULL;
}

/* Gives wholly free arenas back, all but the first `keep`. */
static void drop_free_arenas(pst_io_pool *pool, unsigned keep)
{
    for (arena **at = &pool->arenas; *at != NULL;) {
        arena *a = *at;
        if (!is_free(a) || keep > 0) {
            keep -= is_free(a);
            at = &a->next;
            continue;
        }
        *at = a->next;
        count_arena(pool, a, false);
        free_arena(pool, a);
    }
}

/* ---- blocks; the lock is held ---- */

/* Cuts `b` at `at`, which lies inside it; the second part is a new free block. */
static int split(block *b, uint64_t at)
{
    if (at == b->at || at == b->at + b->bytes)
        return 0;
    block *rest = pst_heap_alloc(sizeof *rest);
    if (rest == NULL)
        return -ENOMEM;
    *rest = (block){.next = b->next, .at = at, .bytes = b->at + b->bytes - at};
    b->bytes = at - b->at;
    b->next = rest;
    return 0;
}

static void merge_free(arena *a)
{
    for (block *b = a->blocks; b != NULL && b->next != NULL;) {
        block *next = b->next;
        if (b->out_bytes != 0 || next->out_bytes != 0) {
            b = next;
            continue;
        }
        b->bytes += next->bytes;
        b->next = next->next;
        pst_heap_free(next);
    }
}

/* Takes `bytes` from the block at the first aligned place. Arenas are aligned to 2 MiB, so places in them are too. */
static void *take_from(arena *a, block *b, uint64_t bytes, uint64_t alignment)
{
    uint64_t start = pst_round_up(b->at, alignment), grains = pst_round_up(bytes, GRAIN);
    if (b->out_bytes != 0 || start + grains > b->at + b->bytes)
        return NULL;
    if (split(b, start) < 0)
        return NULL;
    if (start != b->at)
        b = b->next;
    if (split(b, start + grains) < 0) {
        merge_free(a);
        return NULL;
    }
    b->out_bytes = bytes;
    return a->pages.memory + start;
}

static void *take_block(pst_io_pool *pool, uint64_t bytes, uint64_t alignment)
{
    for (arena *a = pool->arenas; a != NULL; a = a->next) {
        for (block *b = a->blocks; b != NULL; b = b->next) {
            void *memory = take_from(a, b, bytes, alignment);
            if (memory != NULL)
                return memory;
        }
    }
    return NULL;
}

/* The block that is out and holds the address. */
static block *find_out(const pst_io_pool *pool, const char *memory, arena **of)
{
    for (arena *a = pool->arenas; a != NULL; a = a->next) {
        if (memory < a->pages.memory || memory >= a->pages.memory + a->pages.bytes)
            continue;
        uint64_t at = (uint64_t)(memory - a->pages.memory);
        for (block *b = a->blocks; b != NULL; b = b->next) {
            if (at < b->at || at >= b->at + b->bytes)
                continue;
            *of = a;
            return b->out_bytes != 0 ? b : NULL;
        }
    }
    return NULL;
}

/* Takes another arena from the system, as large as usual or, where the budget is nearly used up, as small as does. */
static int grow(pst_io_pool *pool, uint64_t bytes, pst_error *err)
{
    pst_io_pool_stats *stats = &pool->stats;
    uint64_t least = pst_round_up(bytes, HUGE_BYTES), wanted = least > pool->arena_bytes ? least : pool->arena_bytes;
    if (least > stats->budget_bytes - stats->held_bytes)
        drop_free_arenas(pool, 0);
    uint64_t left = stats->budget_bytes - stats->held_bytes;
    if (least > left)
        return pst_fail(err, PST_E_BUDGET, NULL,
                        "an I/O buffer of %" PRIu64 " bytes does not fit into the pool's budget of %" PRIu64
                        " bytes (%" PRIu64 " held, %" PRIu64 " of them in use)",
                        bytes, stats->budget_bytes, stats->held_bytes, stats->out_bytes);
    return add_arena(pool, wanted <= left ? wanted : left / HUGE_BYTES * HUGE_BYTES, err);
}

/* ---- the interface ---- */

int pst_io_pool_create(pst_io *io, const pst_io_pool_options *options, pst_io_pool **out, pst_error *err)
{
    pst_io_pool_options own = {0};
    size_t known = options->struct_size == 0 || options->struct_size > sizeof own ? sizeof own : options->struct_size;
    memcpy(&own, options, known);
    if (own.budget_bytes < HUGE_BYTES || own.arena_bytes > own.budget_bytes)
        return pst_fail(err, PST_E_USAGE, NULL,
                        "a pool of I/O buffers needs a budget of at least 2 MiB and of one arena, not %" PRIu64
                        " bytes",
                        own.budget_bytes);
    pst_io_pool *pool = pst_heap_calloc(1, sizeof *pool);
    if (pool == NULL)
        return pst_fail_memory(err, "a pool of I/O buffers", sizeof *pool);
    int32_t node = own.near_path != NULL ? pst_numa_node_of(own.near_path) : -1;
    pool->io = io;
    pool->wish = (pst_arena_wish){.huge = own.huge_pages != PST_IO_OFF, .lock = own.lock != PST_IO_OFF, .node = node};
    pool->arena_bytes = pst_round_up(own.arena_bytes != 0 ? own.arena_bytes : DEFAULT_ARENA_BYTES, HUGE_BYTES);
    pool->stats = (pst_io_pool_stats){.budget_bytes = own.budget_bytes, .numa_node = node};
    pthread_mutex_init(&pool->lock, NULL);
    *out = pool;
    return 0;
}

void pst_io_pool_destroy(pst_io_pool *pool)
{
    if (pool == NULL)
        return;
    while (pool->arenas != NULL) {
        arena *next = pool->arenas->next;
        free_arena(pool, pool->arenas);
        pool->arenas = next;
    }
    pthread_mutex_destroy(&pool->lock);
    pst_heap_free(pool);
}

int pst_io_pool_take(pst_io_pool *pool, uint64_t bytes, uint64_t alignment, void **out, pst_error *err)
{
    if (bytes == 0 || bytes > (uint64_t)INT64_MAX / 2 || alignment > HUGE_BYTES || (alignment & (alignment - 1)) != 0)
        return pst_fail(err, PST_E_USAGE, NULL, "no I/O buffer has %" PRIu64 " bytes at a multiple of %" PRIu64, bytes,
                        alignment);
    alignment = alignment > GRAIN ? alignment : GRAIN;
    pthread_mutex_lock(&pool->lock);
    void *memory = take_block(pool, bytes, alignment);
    int status = 0;
    if (memory == NULL && (status = grow(pool, bytes, err)) >= 0) {
        memory = take_block(pool, bytes, alignment); /* the new arena has room: only bookkeeping can fail */
        if (memory == NULL)
            status = pst_fail_memory(err, "an I/O buffer", sizeof(block));
    }
    if (memory != NULL) {
        pst_io_pool_stats *stats = &pool->stats;
        stats->out_bytes += bytes;
        stats->out_count++;
        if (stats->out_bytes > stats->peak_out_bytes)
            stats->peak_out_bytes = stats->out_bytes;
        *out = memory;
    }
    pthread_mutex_unlock(&pool->lock);
    return status;
}

int pst_io_pool_give(pst_io_pool *pool, void *buffer, pst_error *err)
{
    pthread_mutex_lock(&pool->lock);
    arena *a = NULL;
    block *b = find_out(pool, buffer, &a);
    bool exact = b != NULL && a->pages.memory + b->at == (char *)buffer;
    if (exact) {
        pool->stats.out_bytes -= b->out_bytes;
        pool->stats.out_count--;
        b->out_bytes = 0;
        merge_free(a);
        drop_free_arenas(pool, 1);
    }
    pthread_mutex_unlock(&pool->lock);
    return exact ? 0 : pst_fail(err, PST_E_USAGE, NULL, "%p is no buffer of this pool", buffer);
}

bool pst_io_pool_holds(const pst_io_pool *const_pool, const void *memory, uint64_t bytes)
{
    pst_io_pool *pool = (pst_io_pool *)const_pool; /* the lock is no part of what the caller sees as constant */
    arena *a = NULL;
    pthread_mutex_lock(&pool->lock);
    const block *b = find_out(pool, memory, &a);
    bool inside = false;
    if (b != NULL) {
        uint64_t at = (uint64_t)((const char *)memory - a->pages.memory) - b->at;
        inside = at < b->out_bytes && bytes <= b->out_bytes - at;
    }
    pthread_mutex_unlock(&pool->lock);
    return inside;
}

void pst_io_pool_get_stats(const pst_io_pool *const_pool, pst_io_pool_stats *out)
{
    pst_io_pool *pool = (pst_io_pool *)const_pool;
    pthread_mutex_lock(&pool->lock);
    *out = pool->stats;
    pthread_mutex_unlock(&pool->lock);
}
