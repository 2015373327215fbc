/* SPDX-License-Identifier: Apache-2.0 */
/* Three queues of buffers, and the pool that they come from. */
#include "ckpt/ring.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/number.h"
#include "os/clock.h"
#include "os/sys.h"
#include "penstock/io_pool.h"

enum {
    /* One is filled while eight are on their way: with blocks of 1 MiB as many as the default queue takes. */
    BUFFERS = 9,
    BUFFER_BYTES = 8 << 20,
    BLOCK_BYTES = 4096,
    HUGE_BYTES = 2 << 20,
    MOST_TRIES = 4 /* of one buffer's writes */
};

static const uint64_t watch_ns = 20000000;      /* between two looks at whether the save was cancelled */
static const uint64_t first_pause_ns = 2000000; /* before trying again; four times as long the next time */

typedef struct queue {
    pst_ckpt_buffer *first, *last;
} queue;

struct pst_ckpt_ring {
    pst_io *io;
    pst_io_pool *pool;
    const pst_ckpt_hooks *hooks; /* or NULL */
    uint64_t buffer_bytes;
    uint32_t count, most; /* buffers taken from the pool; at most */
    queue free, filled, under_way;
    uint32_t under_way_count;
    bool turn_known;  /* of the first filled one */
    uint64_t turn_ns; /* when it is */
    pst_ckpt_ring_figures figures;
};

static void push(queue *q, pst_ckpt_buffer *buffer)
{
    buffer->next = NULL;
    if (q->first == NULL)
        q->first = buffer;
    else
        q->last->next = buffer;
    q->last = buffer;
}

static pst_ckpt_buffer *pop(queue *q)
{
    pst_ckpt_buffer *buffer = q->first;
    if (buffer != NULL)
        q->first = buffer->next;
    return buffer;
}

/* ---- memory ---- */

/* Buffers as large as suits the drive, unless there is little to write or little memory; then still BUFFERS of them. Large ones
 * are whole huge pages, so that the pool's arenas leave no rests. */
static uint64_t choose_bytes(uint64_t ring_bytes, uint64_t most_bytes)
{
    uint64_t bytes = pst_min(ring_bytes / BUFFERS, BUFFER_BYTES);
    bytes = pst_round_down(bytes, bytes >= HUGE_BYTES ? HUGE_BYTES : BLOCK_BYTES);
    return pst_max(pst_min(bytes, pst_round_up(pst_min(most_bytes, BUFFER_BYTES), BLOCK_BYTES)), BLOCK_BYTES);
}

int pst_ckpt_ring_create(pst_io *io, uint64_t ring_bytes, uint64_t most_bytes, const char *near_path,
                         const pst_ckpt_hooks *hooks, pst_ckpt_ring **out, pst_error *err)
{
    pst_ckpt_ring *ring = pst_heap_calloc(1, sizeof *ring);
    if (ring == NULL)
        return pst_fail_memory(err, "a ring of buffers", sizeof *ring);
    ring->io = io;
    ring->hooks = hooks;
    ring->buffer_bytes = choose_bytes(ring_bytes, most_bytes);
    ring->most = (uint32_t)pst_min(ring_bytes / ring->buffer_bytes, UINT32_MAX);
    /* An engine takes few regions: large rings come in few arenas. A ring of small buffers is one. */
    uint64_t arena = ring->buffer_bytes % HUGE_BYTES == 0
                         ? pst_round_up(pst_max(ring_bytes / 32, 1), ring->buffer_bytes)
                         : ring_bytes;
    uint64_t needed = pst_round_up(pst_min(pst_max(most_bytes, 1), ring_bytes), HUGE_BYTES);
    uint64_t budget = pst_round_down(ring_bytes, HUGE_BYTES);
    const pst_io_pool_options options = {.struct_size = sizeof options,
                                         .budget_bytes = budget,
                                         .arena_bytes =
                                             pst_min(pst_min(pst_round_up(arena, HUGE_BYTES), needed), budget),
                                         .near_path = near_path};
    int status = pst_io_pool_create(io, &options, &ring->pool, err);
    if (status < 0) {
        pst_ckpt_ring_destroy(ring);
        return status;
    }
    *out = ring;
    return 0;
}

static void free_buffers(queue *q)
{
    for (pst_ckpt_buffer *b; (b = pop(q)) != NULL;) {
        pst_io_batch_destroy(b->batch); /* waits */
        pst_heap_free(b);
    }
}

void pst_ckpt_ring_destroy(pst_ckpt_ring *ring)
{
    if (ring == NULL)
        return;
    for (pst_ckpt_buffer *b = ring->under_way.first; b != NULL; b = b->next)
        pst_io_cancel(b->batch);
    free_buffers(&ring->under_way);
    free_buffers(&ring->filled);
    free_buffers(&ring->free);
    pst_io_pool_destroy(ring->pool);
    pst_heap_free(ring);
}

uint64_t pst_ckpt_ring_buffer_bytes(const pst_ckpt_ring *ring)
{
    return ring->buffer_bytes;
}

/* One more from the pool. */
static int grow(pst_ckpt_ring *ring, pst_error *err)
{
    void *memory = NULL;
    pst_ckpt_buffer *buffer = pst_heap_calloc(1, sizeof *buffer);
    if (buffer == NULL)
        return pst_fail_memory(err, "a buffer", sizeof *buffer);
    int status = pst_io_batch_create(ring->io, PST_CKPT_RING_OPS, &buffer->batch, err);
    if (status >= 0)
        status = pst_io_pool_take(ring->pool, ring->buffer_bytes, 0, &memory, err);
    if (status < 0) {
        pst_io_batch_destroy(buffer->batch);
        pst_heap_free(buffer);
        return status;
    }
    buffer->memory = memory;
    ring->count++;
    push(&ring->free, buffer);
    pst_io_pool_stats stats;
    pst_io_pool_get_stats(ring->pool, &stats);
    ring->figures.held_bytes = pst_max(ring->figures.held_bytes, stats.held_bytes);
    return 0;
}

/* ---- writing ---- */

static int submit(pst_ckpt_ring *ring, pst_ckpt_buffer *buffer, pst_error *err)
{
    int status = pst_io_submit(buffer->batch, buffer->ops, buffer->op_count, err);
    if (status < 0)
        return status;
    push(&ring->under_way, buffer);
    ring->under_way_count++;
    if (ring->under_way_count > ring->figures.most_under_way)
        ring->figures.most_under_way = ring->under_way_count;
    return 0;
}

/* What may pass by itself. A full or read-only drive does not. */
static bool is_transient(int64_t result)
{
    return result == -EIO || result == -EAGAIN || result == -EINTR || result == -ENOMEM || result == -ENOBUFS ||
           result == -ETIMEDOUT || result == -EBUSY;
}

/* Leaves in the buffer only the operations that failed; false when one of them is lost. */
static bool keep_failed(pst_ckpt_ring *ring, pst_ckpt_buffer *buffer)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < buffer->op_count; i++) {
        const pst_io_op *op = &buffer->ops[i];
        if (op->result >= 0) {
            ring->figures.written_bytes += op->bytes;
            continue;
        }
        if (!is_transient(op->result))
            return false;
        buffer->ops[kept++] = *op;
    }
    buffer->op_count = kept;
    return true;
}

/* Waits for the first one under way: 0: it is free now; 1: not in time, or it was sent once more. */
static int reap(pst_ckpt_ring *ring, uint64_t timeout_ns, pst_error *err)
{
    pst_error failure = {0};
    int status = pst_io_wait(ring->under_way.first->batch, timeout_ns, &failure);
    if (status == 1)
        return 1;
    pst_ckpt_buffer *buffer = pop(&ring->under_way);
    ring->under_way_count--;
    if (keep_failed(ring, buffer) && status < 0 && ++buffer->tries < MOST_TRIES) {
        uint64_t pause = first_pause_ns;
        for (uint32_t i = 1; i < buffer->tries; i++)
            pause *= 4;
        pst_sys->sleep_ns(pause);
        ring->figures.retried += buffer->op_count;
        status = submit(ring, buffer, err);
        if (status >= 0)
            return 1;
        failure.code = 0; /* said already */
    }
    push(&ring->free, buffer);
    if (status < 0 && failure.code != 0 && err != NULL)
        *err = failure;
    return status;
}

static int check_cancelled(const pst_ckpt_ring *ring, pst_error *err)
{
    if (ring->hooks == NULL || ring->hooks->cancelled == NULL || !atomic_load(ring->hooks->cancelled))
        return 0;
    return pst_fail(err, PST_E_CANCELLED, NULL, "the save was cancelled");
}

int pst_ckpt_ring_move(pst_ckpt_ring *ring, pst_error *err)
{
    const pst_ckpt_hooks *hooks = ring->hooks;
    for (pst_ckpt_buffer *b; (b = ring->filled.first) != NULL;) {
        if (!ring->turn_known) {
            uint64_t bytes = 0;
            for (uint32_t i = 0; i < b->op_count; i++)
                bytes += b->ops[i].bytes;
            uint64_t wait = hooks != NULL && hooks->pace != NULL ? hooks->pace(hooks->user, bytes) : 0;
            uint64_t now = wait > 0 ? pst_clock_ns() : 0;
            ring->turn_ns = wait > UINT64_MAX - now ? UINT64_MAX : now + wait;
            ring->turn_known = true;
        }
        if (ring->turn_ns > 0 && pst_clock_ns() < ring->turn_ns)
            return 0;
        pop(&ring->filled);
        ring->turn_known = false;
        int status = submit(ring, b, err);
        if (status < 0) {
            push(&ring->free, b);
            return status;
        }
    }
    return 0;
}

/* Waits a little for something to happen. Something is filled or under way. */
static int wait_a_little(pst_ckpt_ring *ring, pst_error *err)
{
    uint64_t limit = watch_ns;
    if (ring->filled.first != NULL) {
        uint64_t now = pst_clock_ns();
        limit = pst_min(limit, ring->turn_ns > now ? ring->turn_ns - now : 0);
    }
    if (ring->under_way.first != NULL)
        return reap(ring, limit, err);
    pst_sys->sleep_ns(limit);
    return 1;
}

/* ---- the interface ---- */

int pst_ckpt_ring_take(pst_ckpt_ring *ring, pst_ckpt_buffer **out, pst_error *err)
{
    for (;;) {
        PST_TRY(check_cancelled(ring, err));
        PST_TRY(pst_ckpt_ring_move(ring, err));
        while (ring->under_way.first != NULL) {
            int status = reap(ring, 0, err);
            PST_TRY(status);
            if (status == 1)
                break;
        }
        if (ring->free.first == NULL && ring->count < ring->most) {
            int status = grow(ring, ring->count == 0 ? err : NULL);
            if (status < 0 && ring->count == 0)
                return status;
            if (status < 0)
                ring->most = ring->count; /* those that there are will do */
        }
        *out = pop(&ring->free);
        if (*out != NULL)
            break;
        PST_TRY(wait_a_little(ring, err));
    }
    (*out)->op_count = 0;
    (*out)->tries = 0;
    return 0;
}

void pst_ckpt_ring_put(pst_ckpt_ring *ring, pst_ckpt_buffer *buffer)
{
    push(buffer->op_count > 0 ? &ring->filled : &ring->free, buffer);
}

int pst_ckpt_ring_drain(pst_ckpt_ring *ring, pst_error *err)
{
    while (ring->filled.first != NULL || ring->under_way.first != NULL) {
        PST_TRY(check_cancelled(ring, err));
        PST_TRY(pst_ckpt_ring_move(ring, err));
        if (ring->filled.first != NULL || ring->under_way.first != NULL)
            PST_TRY(wait_a_little(ring, err));
    }
    return 0;
}

void pst_ckpt_ring_get_figures(const pst_ckpt_ring *ring, pst_ckpt_ring_figures *out)
{
    *out = ring->figures;
}
