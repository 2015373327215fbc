/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inside of an I/O handle.
 *
 * A batch that was submitted stands in the handle's list while it has something to cut. The workers take the first
 * batch of the list, cut the next transfer from it (a piece), hand it to their engine queue, and account for it when
 * it is done. Pieces live in the workers, `depth` each, so nothing is allocated however large a batch is.
 *
 * A batch's cursor goes through its operations once. At an ordered operation (sync, truncate, preallocate) the batch
 * leaves the list until everything before it is done; then a service thread carries the operation out, and the cursor
 * moves on.
 *
 * One lock guards the list, the batches and the statistics. A worker takes it once per round, not once per
 * piece: it accounts for all that came back and refills the queue under the same hold. Copies to and from
 * bounce buffers and every system call happen outside (but for the eventfd of a batch that is done).
 *
 * Who waits for a batch looks at `in_flight` without the lock. Clearing it is therefore the last thing that anybody
 * does with a batch (pst_io_batch_settle): its owner may destroy it at that moment.
 */
#ifndef PST_IO_INTERNAL_H
#define PST_IO_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>

#include "io/cut.h"
#include "io/engine.h"
#include "penstock/io.h"

enum {
    PST_IO_MAX_WORKERS = 64,
    PST_IO_MAX_DEPTH = 4096,
    PST_IO_MAX_SERVICE = 4, /* threads for ordered operations */
    PST_IO_FILE_SLOTS = 512,
    PST_IO_SLOT_AFTER = 128, /* transfers of a file until it gets a slot */
    PST_IO_SLOT_UNDECIDED = -1,
    PST_IO_SLOT_NEVER = -2,
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
    /* -1 for a direct file until it is needed (pst_io_file_need_buffered). Once there, it stays. A file has at least
     * one of the two, unless it is striped. */
    atomic_int buffered_fd;
    atomic_int slot;       /* in the engine's file table (slot.c), or PST_IO_SLOT_UNDECIDED or _NEVER */
    atomic_uint transfers; /* counted until that is decided */
    atomic_bool direct;    /* goes false for good when a refused direct transfer works without O_DIRECT */
    bool writable;
    uint32_t offset_align, memory_align;
    uint64_t bytes;
    uint64_t device; /* of the file system, for the warning once per file system */
    uint64_t inode;
    int access; /* O_RDONLY, O_RDWR, or O_WRONLY for what may not be read */
    bool block_device;
    bool created;          /* by an exclusive opening */
    uint32_t sector_bytes; /* of a block device */
    /* NULL for a plain file. A striped one has no descriptor and no slot of its own: pieces belong to its members,
     * which pst_io_file_run names; `direct` and the alignments are what holds for all of them. */
    struct pst_io_striping *striping; /* owned */
};

/* A stretch of an operation that lies in one plain file, one after the other. */
typedef struct pst_io_run {
    pst_io_file *file; /* the file itself, or the member of a striped one */
    uint64_t offset;   /* in it */
    uint64_t bytes;
} pst_io_run;

typedef struct op_state {
    uint64_t unfinished;           /* bytes of the operation not yet accounted for */
    uint64_t end;                  /* bytes of the operation before the end of the file, as far as seen */
    uint64_t error_at;             /* file offset of the first failure */
    const pst_io_file *error_file; /* the plain file in which it was; NULL: none in particular */
    int error;
    bool started; /* the cursor is in it or past it */
    bool finished;
} op_state;

/* Where a batch stands. */
typedef enum pst_io_place {
    PLACE_NOWHERE, /* nothing is left to start */
    PLACE_LISTED,  /* in the handle's list: the cursor is in a transfer */
    PLACE_PARKED,  /* the cursor is at an ordered operation, and operations before it are under way */
    PLACE_SERVED   /* a service thread has the ordered operation at the cursor, or is about to */
} pst_io_place;

/* What a waiter waits for. */
enum { WANT_BATCH = UINT32_MAX, WANT_ANY_OP = UINT32_MAX - 1 };

struct pst_io_batch {
    pst_io *io;
    pst_io_batch *next, *before; /* in the handle's list; `next` also among those to be served */
    uint64_t sequence;           /* of submission; the list is in this order */
    uint32_t max_ops;
    atomic_bool in_flight;
    pst_io_place place;
    bool has_ordered;
    int notify_fd, next_notify_fd; /* now, and from the next submission on; -1: none */
    int service_status;            /* why there is no service thread; else 0 */

    pst_io_op *ops; /* the caller's */
    uint32_t count;
    uint32_t op; /* the cursor: an operation, how far it is cut, the place in its memory */
    uint64_t cut_at;
    pst_io_spot spot;
    pst_io_segment whole; /* an operation's plain buffer as a segment, for `spot` */
    uint32_t entered;     /* the operation that cut_at, spot and pieces_left are about */
    uint64_t pieces_left; /* of it, in io->queued_pieces */

    uint32_t unfinished_ops;
    uint32_t under_way; /* operations started and not finished */
    uint32_t failed_ops;
    atomic_uint finished_ops;
    uint32_t handed_ops; /* by pst_io_next_done; the owner's */
    uint32_t *finished;  /* max_ops: the operations in the order in which they finished */
    uint64_t completed_ns;
    uint32_t waiters, wanted; /* WANT_*, or an operation */
    pthread_cond_t done;
    op_state *states;
    uint32_t ordered_failed; /* the operation that `ordered_error` is about; count: none */
    pst_error ordered_error;
};

typedef struct piece {
    pst_io_request request; /* first: the engine hands this back */
    pst_io_batch *batch;
    pst_io_file *file; /* a plain one */
    uint32_t op;
    uint64_t at; /* of the operation */
    pst_io_cut cut;
    char *memory;     /* where the span lies: the caller's memory or `bounce` */
    char *bounce;     /* this piece's own bounce buffer, kept for ever */
    pst_io_spot spot; /* where the wanted bytes belong */
    pst_io_segment whole;
    uint64_t done;
    uint64_t submitted_ns;
    int status;       /* 0 while under way or done; the error */
    unsigned retries; /* refusals in a row that may pass */
    bool doubted;     /* refused while direct; not yet seen to work without */
    struct piece *next;
} piece;

enum { SLOT_EMPTY, SLOT_HOLDS, SLOT_REFUSED };

typedef struct worker {
    pst_io *io;
    pthread_t thread;
    void *queue;
    bool listening; /* waits in the engine with room for more; under the lock */
    bool more;      /* pieces were left that this worker has room for: it does not wait */
    bool pause;     /* something was refused for want of resources: sleep before trying again */
    bool spun;      /* has looked out for work since it last had some */
    uint64_t control_seen;
    uint8_t slots[PST_IO_FILE_SLOTS]; /* SLOT_*: what this worker's queue has in each */
    uint32_t depth;
    uint32_t with_engine; /* pieces at the engine */
    uint32_t taken;       /* pieces that are not free */
    piece *pieces;        /* depth of them */
    piece *free;
    pst_io_request **requests; /* depth of them: what goes to and comes from the engine in one round */
    uint64_t *latencies;       /* depth of them, of what came back in one round; NULL: not measured */
    uint32_t latency_count;
    piece *again;        /* to be submitted once more: interrupted or short */
    void *bounce_memory; /* depth * bounce_bytes, mapped; touched only when something is bounced */
    uint64_t bounce_mapped_bytes;
    /* Gathered outside of the lock, added to the handle's under it. */
    pst_io_stats gathered;
} worker;

/* Something that every worker has to do on its queue, because only the owner of a ring may. */
typedef struct control {
    enum { CONTROL_FILE, CONTROL_BUFFER } kind;
    uint32_t slot;
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

/* Counts of durations in buckets that are 1/32 of a power of two wide. */
enum { PST_IO_SUB_BITS = 5, PST_IO_BUCKETS = (64 - PST_IO_SUB_BITS + 1) << PST_IO_SUB_BITS };

typedef struct pst_io_histogram {
    uint64_t count, sum_ns, min_ns, max_ns;
    uint64_t buckets[PST_IO_BUCKETS];
} pst_io_histogram;

/* How long a thread looks out for another one before it sleeps. As long as that is in vain it gets shorter, down to
 * nothing, so that it costs little where transfers or pauses are long; now and then it is tried again. */
typedef struct pst_io_lookout {
    uint32_t most_ns; /* 0: never, there is one processor only */
    atomic_uint now_ns, tries;
} pst_io_lookout;

struct pst_io {
    const pst_io_engine *engine;
    uint64_t block_bytes;
    uint32_t bounce_bytes, page_bytes, depth, workers;
    bool buffered, single_submit, overlap;
    char *path;                  /* of the options; owned, may be NULL */
    pst_io_histogram *histogram; /* NULL: not measured; under the lock */
    pst_io_lookout wait_lookout; /* of threads that wait for a batch */
    pst_io_lookout work_lookout; /* of workers without anything to do */

    pthread_mutex_t lock;
    pthread_cond_t work; /* workers without anything to do */
    pthread_cond_t control_done, opened, drained, any_done, service_work;
    pst_io_batch *first, *last; /* batches with something to cut */
    uint64_t next_sequence;
    uint64_t queued_pieces; /* about as many will be cut from the batches in flight */
    uint32_t batches;       /* in flight */
    uint32_t any_waiters;   /* in pst_io_wait_any */
    uint32_t idle;          /* workers that wait for `work` */
    bool spinning;          /* a worker without anything to do looks at `doorbell` */
    atomic_uint doorbell;
    uint32_t in_flight; /* pieces */
    uint64_t busy_since_ns;
    uint32_t ready; /* workers that opened their queue, or failed to */
    int open_status;
    pst_error open_error;
    bool closing, stop;
    atomic_uint wakers; /* submitters that are about to wake workers in their engine, outside of the lock */
    pst_io_stats stats;
    control *control;
    uint64_t control_seq;
    uint32_t region_count;
    region regions[PST_IO_MAX_REGIONS]; /* by rising address */

    pst_io_batch *service_first, *service_last; /* batches whose ordered operation is to be carried out */
    uint32_t ordered_batches;                   /* batches in flight with ordered operations */
    uint32_t service_count;                     /* threads; changes under service_lock too */
    pthread_mutex_t service_lock;               /* one start of a thread at a time; taken before `lock` */
    pthread_t service_threads[PST_IO_MAX_SERVICE];

    pthread_mutex_t control_lock; /* one control at a time; taken before `lock`; guards buffer_slots */
    pthread_mutex_t slot_lock;    /* guards file_slots; nothing is taken after it */
    pthread_mutex_t stripe_lock;  /* one change of a striped file's length at a time; nothing is taken after it */
    bool file_slots[PST_IO_FILE_SLOTS];
    bool buffer_slots[PST_IO_BUFFER_SLOTS];
    worker *worker_list;
    atomic_uint references; /* the owner's, and one for each file and batch: these may outlive pst_io_close */
};

/* io.c */
void pst_io_retain(pst_io *io);
void pst_io_release(pst_io *io);
/* Starts a thread that no signal is delivered to; -errno. */
int pst_io_start_thread(pthread_t *thread, void *(*body)(void *), void *argument);

/* file.c */
/* Makes sure that a file that is in use has its buffered descriptor. Any thread. The error is -errno, or
 * -ESTALE when another file lies under the name meanwhile. */
int pst_io_file_need_buffered(pst_io_file *file);

/* The first stretch of `bytes` bytes from `offset` on: all of it for a plain file, up to the end of the stripe unit for
 * a striped one. The lock is held; no system call. */
pst_io_run pst_io_file_run(const pst_io_file *file, uint64_t offset, uint64_t bytes);

/* What a fresh piece needs before it goes to the engine; called by the worker for each, outside of the lock. `file` is
 * the operation's, `part` the piece's own (pst_io_run.file). For a write that ends at `end` (the operation's end, in
 * `file`) the members of a striped file grow together, before any of them is written; a piece that is not direct gets
 * its buffered descriptor. 0 (in nearly all cases after a compare or two), or the negative code that the piece fails
 * with. */
int pst_io_file_prepare(pst_io_file *file, pst_io_file *part, bool write, uint64_t end, bool direct);

/* As pst_io_file_preallocate, from `offset` on. */
int pst_io_file_preallocate_range(pst_io_file *file, uint64_t offset, uint64_t bytes, pst_error *err);

/* slot.c */
/* The slot in which this worker's queue has the file's descriptor, direct or buffered, or -1; called by the worker for
 * each request, outside of the lock. */
int pst_io_slot_of(worker *w, pst_io_file *file, bool direct);
/* CONTROL_FILE: takes out of the worker's queue what it has in the slot. */
void pst_io_slot_forget(worker *w, uint32_t slot);
/* Nothing of the file is in flight any more: takes it out of every worker's queue. */
void pst_io_slot_give(pst_io_file *file);

/* worker.c */
void *pst_io_worker_main(void *worker);
/* Lets all workers do it, waits for them, and returns c->status; -ECANCELED after pst_io_close. The control
 * lock is held. */
int pst_io_control(pst_io *io, control *c);
/* Whom to wake, found under the lock; the waking itself may happen after. */
typedef struct pst_io_wake {
    uint32_t idle;      /* workers that wait for work */
    uint64_t listening; /* workers that wait in their engine, a bit each */
} pst_io_wake;

/* For `pieces` pieces that came into the list. The lock is held. */
pst_io_wake pst_io_plan_wake(pst_io *io, uint64_t pieces);
void pst_io_carry_out_wake(pst_io *io, const pst_io_wake *wake);

/* batch.c; the lock is held */
/* Takes `bytes` bytes of an operation off what is unfinished. */
void pst_io_batch_account(pst_io_batch *batch, uint32_t op, uint64_t bytes);
/* Moves the cursor over what is finished already and what need not be moved; puts the batch where it belongs. */
void pst_io_batch_advance(pst_io_batch *batch);
/* The cursor's operation was cut by another `bytes` bytes. */
void pst_io_batch_cut(pst_io_batch *batch, uint64_t bytes);
/* Drops what is not yet cut of the operation at the cursor. */
void pst_io_batch_drop(pst_io_batch *batch);
/* True when the rest of an operation need not be moved: it failed, ended, or was cancelled. */
bool pst_io_batch_drops(const pst_io_batch *batch, uint32_t op);
/* The ordered operation at the cursor is done; `err` describes a failure. */
void pst_io_batch_served(pst_io_batch *batch, int status, const pst_error *err);
/* Declares the batch done if all its operations are. Must follow every change of it; the batch may be gone then. */
void pst_io_batch_settle(pst_io_batch *batch);
/* A batch in memory of the caller's. */
void pst_io_batch_init(pst_io *io, pst_io_batch *batch, op_state *states, uint32_t *finished, uint32_t max_ops);

/* wait.c */
/* Waits for the batch without looking at its operations. */
void pst_io_batch_join(pst_io_batch *batch);
/* How long to look out this time, and what came of it. */
uint32_t pst_io_lookout_begin(pst_io_lookout *lookout);
void pst_io_lookout_end(pst_io_lookout *lookout, bool seen);
/* Tells other hardware threads that this one waits in a loop. */
static inline void pst_io_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* ordered.c */
bool pst_io_is_ordered(pst_io_kind kind);
/* Sees to it that there is a service thread; the error when there is none. No lock is held. */
int pst_io_service_prepare(pst_io *io);
/* The ordered operation at the batch's cursor is to be carried out. The lock is held. */
void pst_io_service_add(pst_io *io, pst_io_batch *batch);
/* io->stop is set, and nothing is left to do. */
void pst_io_service_stop(pst_io *io);

/* latency.c; the lock is held */
void pst_io_histogram_add(pst_io_histogram *histogram, uint64_t ns);

/* region.c; the lock is held. The buffer slot that holds all of it, or -1. */
int pst_io_region_slot(const pst_io *io, const char *memory, uint64_t bytes);

/* align.c */
/* What is asked of statx about a file. */
#ifdef STATX_DIOALIGN
#define PST_IO_STATX_MASK (STATX_TYPE | STATX_INO | STATX_SIZE | STATX_DIOALIGN)
#else
#define PST_IO_STATX_MASK (STATX_TYPE | STATX_INO | STATX_SIZE)
#endif
/* Finds the alignment for direct I/O of a file with a direct descriptor, of which statx said `info`; 0 in *offset_align
 * where it does not work at all. */
void pst_io_find_alignment(const pst_io_file *file, const struct statx *info, uint32_t *offset_align,
                           uint32_t *memory_align);
/* Turns direct I/O off for a file and says so once per file system. */
void pst_io_refuse_direct(pst_io_file *file, const char *why);

#endif
