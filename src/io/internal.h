/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inside of an I/O handle.
 *
 * A batch that was submitted stands in the handle's list. The workers take the first batch that is not wholly
 * cut yet, cut the next transfer from it (a piece), hand it to their engine queue, and account for it when it
 * is done. Pieces live in the workers, `depth` each, so nothing is allocated however large a batch is.
 *
 * One lock guards the list, the batches and the statistics. A worker takes it once per round, not once per
 * piece: it accounts for all that came back and refills the queue under the same hold. Copies to and from
 * bounce buffers and every system call happen outside.
 */
#ifndef PST_IO_INTERNAL_H
#define PST_IO_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "io/cut.h"
#include "io/engine.h"
#include "penstock/io.h"

enum {
    PST_IO_MAX_WORKERS = 64,
    PST_IO_MAX_DEPTH = 4096,
    PST_IO_FILE_SLOTS = 512,
    PST_IO_MAX_REGIONS = 64,
    PST_IO_BUFFER_SLOTS = 256,
    PST_IO_BOUNCE_BYTES = 256 * 1024,    /* at most, per piece */
    PST_IO_MIN_BOUNCE_BYTES = 64 * 1024, /* at least, whatever the block size */
    PST_IO_CHUNK_BYTES = 1 << 30         /* of a region, per buffer slot: the kernel takes no larger one */
};

struct pst_io_file {
    pst_io *io;
    char *path;    /* owned */
    int direct_fd; /* -1 where direct I/O does not work */
    /* -1 for a direct file that is only read, until it is needed (pst_io_file_need_buffered). Once there, it
     * stays. A file has at least one of the two. */
    atomic_int buffered_fd;
    int direct_slot; /* in the engine's file table, or -1 */
    int buffered_slot;
    atomic_bool direct; /* goes false for good when a refused direct transfer works without O_DIRECT */
    bool writable;
    uint32_t offset_align, memory_align;
    uint64_t bytes;
    uint64_t device; /* of the file system, for the warning once per file system */
};

typedef struct op_state {
    uint64_t unfinished; /* bytes of the operation not yet accounted for */
    uint64_t end;        /* bytes of the operation before the end of the file, as far as seen */
    uint64_t error_at;   /* file offset of the first failure */
    int error;
} op_state;

struct pst_io_batch {
    pst_io *io;
    pst_io_batch *next; /* in the handle's list */
    uint32_t max_ops;
    bool in_flight;
    pst_io_op *ops; /* the caller's */
    uint32_t count;
    uint32_t op; /* the next operation to cut, and how far it is cut */
    uint64_t cut_at;
    uint32_t unfinished_ops;
    uint64_t completed_ns;
    pthread_cond_t done;
    op_state *states;
};

typedef struct piece {
    pst_io_request request; /* first: the engine hands this back */
    pst_io_batch *batch;
    pst_io_file *file;
    uint32_t op;
    pst_io_cut cut;
    char *memory; /* where the span lies: the caller's buffer or `bounce` */
    char *bounce; /* this piece's own bounce buffer, kept for ever */
    char *user;   /* where the wanted bytes belong */
    uint64_t done;
    int status;       /* 0 while under way or done; the error */
    unsigned retries; /* refusals in a row that may pass */
    bool doubted;     /* refused while direct; not yet seen to work without */
    struct piece *next;
} piece;

typedef struct worker {
    pst_io *io;
    pthread_t thread;
    void *queue;
    bool listening; /* waits in the engine with room for more; under the lock */
    bool more;      /* pieces were left that this worker has room for: it does not wait */
    bool pause;     /* something was refused for want of resources: sleep before trying again */
    uint64_t control_seen;
    uint32_t depth;
    uint32_t with_engine; /* pieces at the engine */
    piece *pieces;        /* depth of them */
    piece *free;
    pst_io_request **requests; /* depth of them: what goes to and comes from the engine in one round */
    piece *again;              /* to be submitted once more: interrupted or short */
    void *bounce_memory;       /* depth * bounce_bytes, mapped; touched only when something is bounced */
    uint64_t bounce_mapped_bytes;
    /* Gathered outside of the lock, added to the handle's under it. */
    pst_io_stats gathered;
} worker;

/* Something that every worker has to do on its queue, because only the owner of a ring may. */
typedef struct control {
    enum { CONTROL_FILE, CONTROL_BUFFER } kind;
    uint32_t slot;
    int fd;
    void *memory;
    uint64_t bytes;
    uint32_t waiting; /* workers that have not done it */
    int status;       /* the first failure */
} control;

typedef struct region {
    char *memory;
    uint64_t bytes;
    uint32_t first_slot; /* of chunk 0; the others follow */
} region;

struct pst_io {
    const pst_io_engine *engine;
    uint64_t block_bytes;
    uint32_t bounce_bytes, page_bytes, depth, workers;
    bool buffered;

    pthread_mutex_t lock;
    pthread_cond_t work; /* workers without anything to do */
    pthread_cond_t control_done, opened, drained;
    pst_io_batch *first, **last; /* batches not wholly cut */
    uint32_t idle;               /* workers that wait for `work` */
    uint32_t in_flight;          /* pieces */
    uint64_t busy_since_ns;
    uint32_t ready; /* workers that opened their queue, or failed to */
    int open_status;
    pst_error open_error;
    bool stop;
    pst_io_stats stats;
    control *control;
    uint64_t control_seq;
    uint32_t region_count;
    region regions[PST_IO_MAX_REGIONS]; /* by rising address */

    pthread_mutex_t control_lock; /* one control at a time; taken before `lock`; guards the slot maps */
    bool file_slots[PST_IO_FILE_SLOTS];
    bool buffer_slots[PST_IO_BUFFER_SLOTS];
    worker *worker_list;
    atomic_uint references; /* the owner's, and one for each file and batch: these may outlive pst_io_close */
};

/* io.c */
void pst_io_retain(pst_io *io);
void pst_io_release(pst_io *io);

/* file.c */
/* Makes sure that a file that is in use has its buffered descriptor. Any thread. The error is -errno, or
 * -ESTALE when another file lies under the name meanwhile. */
int pst_io_file_need_buffered(pst_io_file *file);

/* worker.c */
void *pst_io_worker_main(void *worker);
/* Lets all workers do it, waits for them, and returns c->status; -ECANCELED after pst_io_close. The control
 * lock is held. */
int pst_io_control(pst_io *io, control *c);
/* Wakes workers for `pieces` pieces that were put into the list. The lock is held. */
void pst_io_wake_workers(pst_io *io, uint32_t pieces);

/* batch.c; the lock is held */
void pst_io_batch_account(pst_io_batch *batch, uint32_t op, uint64_t bytes);
/* True when the rest of an operation need not be moved: it failed, ended, or was cancelled. */
bool pst_io_batch_drops(const pst_io_batch *batch, uint32_t op);

/* region.c; the lock is held. The buffer slot that holds all of it, or -1. */
int pst_io_region_slot(const pst_io *io, const char *memory, uint64_t bytes);

/* align.c */
/* Finds the alignment for direct I/O; 0 in *offset_align where it does not work at all. */
void pst_io_find_alignment(int direct_fd, bool readable, uint64_t bytes, uint32_t *offset_align,
                           uint32_t *memory_align);
/* Turns direct I/O off for a file and says so once per file system. */
void pst_io_refuse_direct(pst_io_file *file, const char *why);

#endif
