/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The interface of an I/O engine: what a new way of moving bytes between files and memory has to provide.
 *
 * The library cuts operations, bounces ragged edges, continues short transfers and retries interrupted ones;
 * an engine only carries out raw requests whose offset, length and address already satisfy the file's
 * alignment. It does so through queues. Each worker thread of a handle opens one queue and is the only thread
 * that calls it, except for `wake`.
 *
 * An engine is one table of static storage. Optional entries are NULL; the flags say what is there.
 * examples/engine_skeleton.c is a whole engine with an explanation of every entry.
 *
 * Versions. `version` changes when something here changes its meaning; an engine of another version is refused.
 * Otherwise entries are only ever added at the end of the table, and each is optional: `struct_size` says how far an
 * engine's table goes, what lies beyond it is never read and counts as NULL. A table may end anywhere after `reap`. So
 * an engine that was built with an older header works with a newer library; and one built with a newer header works
 * with an older library, which does not call the entries that it does not know and ignores flags that it does not know.
 * The structures that the library hands to an engine grow in the same way: pst_io_queue_settings has its own
 * struct_size, and requests come one by one through pointers.
 */
#ifndef PENSTOCK_IO_ENGINE_H
#define PENSTOCK_IO_ENGINE_H

#include <stdbool.h>

#include "penstock/types.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PST_IO_ENGINE_VERSION 1u
/* The least struct_size: a table that ends after `reap`. */
#define PST_IO_ENGINE_MIN_SIZE (offsetof(pst_io_engine, reap) + sizeof(((pst_io_engine *)0)->reap))

enum {
    /* `submit` carries transfers out before it returns: a queue has one request at a time, and parallel
     * requests need as many workers. */
    PST_IO_ENGINE_SYNCHRONOUS = 1,
    PST_IO_ENGINE_FILE_SLOTS = 2,   /* has set_file */
    PST_IO_ENGINE_BUFFER_SLOTS = 4, /* has set_buffer */
    PST_IO_ENGINE_NO_DATA = 8       /* moves no bytes (null): "auto" never chooses it */
};

/* One raw transfer. It belongs to the library; an engine may use it from `submit` until it has handed it
 * back. */
typedef struct pst_io_request {
    void *address;
    uint64_t offset; /* in the file */
    uint32_t bytes;
    int fd;
    int32_t file_slot;   /* the slot that holds the same file, or -1 */
    int32_t buffer_slot; /* the slot that holds the memory, or -1 */
    bool write;
    int64_t result;          /* out: bytes transferred, or -errno */
    uint64_t engine_data[2]; /* for the engine */
} pst_io_request;

typedef struct pst_io_queue_settings {
    size_t struct_size;
    uint32_t depth;        /* the most requests that are ever with the queue at once */
    uint32_t file_slots;   /* slots that set_file will use: 0 .. file_slots-1 */
    uint32_t buffer_slots; /* the same for set_buffer */
} pst_io_queue_settings;

typedef struct pst_io_engine pst_io_engine;

struct pst_io_engine {
    uint32_t version;     /* PST_IO_ENGINE_VERSION */
    uint32_t struct_size; /* sizeof(pst_io_engine) when the engine was built */
    const char *name;     /* for options and reports */
    uint32_t flags;
    const char *description; /* one line, for people */

    /* Opens a queue and proves that it works: an engine that cannot run here must say so now, with the
     * reason. `self` is this table: an engine that wraps another one keeps what it needs behind it. */
    int (*open_queue)(const pst_io_engine *self, const pst_io_queue_settings *settings, void **queue, pst_error *err);
    /* Nothing is in flight any more. */
    void (*close_queue)(void *queue);

    /* Takes `count` requests (never more than `depth` are with the queue). Does not wait for transfers,
     * unless the engine is synchronous. May leave the start to the next `reap`. There is no failure: what
     * cannot be started comes back from `reap` with a negative result. Of these, -EINTR and -EAGAIN are tried again
     * (a thousand times in a row, with pauses for -EAGAIN), and -EINVAL of a direct transfer once more without
     * O_DIRECT; any other one is final. The array is the caller's and gone after the call; the requests stay. */
    void (*submit)(void *queue, pst_io_request *const *requests, uint32_t count);
    /* Starts what was left, and hands back up to `max` finished requests. When none is finished and `wait` is
     * set, it waits until one is, or until `wake` is called; it may go on waiting for more of them for a small part of
     * the time that transfers take anyway. Returns how many it handed back. */
    uint32_t (*reap)(void *queue, pst_io_request **done, uint32_t max, bool wait);

    /* ---- struct_size may end here, or after any entry below ---- */

    /* Any thread: makes a `reap` that waits now, or else the next one, return. Not needed by synchronous engines. */
    void (*wake)(void *queue);

    /* Puts a file into a slot, or takes it out (fd -1; cannot fail). Failure only means that requests will do
     * without the slot. */
    int (*set_file)(void *queue, uint32_t slot, int fd);
    /* The same for memory (NULL takes it out). At most 1 GiB per slot. Nothing is in flight there at removal.
     */
    int (*set_buffer)(void *queue, uint32_t slot, void *memory, uint64_t bytes);
};

/* Makes an engine known by its name, for pst_io_options.engine; "auto" chooses among the built-in ones only.
 * The table must live as long as the process. PST_E_USAGE when version or size do not fit, an entry is
 * missing that the flags promise, or the name is taken. Any thread. */
PST_API int pst_io_engine_register(const pst_io_engine *engine, pst_error *err);

#ifdef __cplusplus
}
#endif
#endif
