/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of the fault device share. A call becomes a `fault_work`: a copy of everything about it that the caller may
 * change when the call has returned. It is carried out at once or, in a late device, when it must be. Private to device/.
 */
#ifndef PST_DEVICE_FAULT_INTERNAL_H
#define PST_DEVICE_FAULT_INTERNAL_H

#include "device/fault.h"

typedef struct fault_block { /* memory that the device may use */
    char *begin;
    uint64_t bytes;
    enum { FAULT_DEVICE, FAULT_HOST, FAULT_REGISTERED } kind;
} fault_block;

typedef enum fault_kind {
    FAULT_COPY,
    FAULT_FILL,
    FAULT_WAIT, /* for another stream to have come so far */
    FAULT_CONVERT,
    FAULT_RMS_NORM,
    FAULT_LAYER_NORM,
    FAULT_MATMUL,
    FAULT_MATMUL_GROUPED,
    FAULT_ACTIVATE,
    FAULT_GATED,
    FAULT_ROPE,
    FAULT_COPY_BLOCKS,
    FAULT_TAKE_ROWS,
    FAULT_ADD_ROWS,
    FAULT_KV_STORE,
    FAULT_ATTENTION,
    FAULT_ROUTE,
    FAULT_LOG_SUM_EXP,
    FAULT_TOP,
    FAULT_MATMUL_HEADS
} fault_kind;

typedef struct fault_stream fault_stream;

typedef struct fault_work {
    struct fault_work *next;
    fault_kind kind;
    uint64_t number; /* in the order of the calls */
    /* Copies, fills, waits. */
    void *to;
    const void *from;
    uint64_t bytes; /* of a wait: how far the other stream must be */
    int byte;
    fault_stream *stream;
    /* Operators: which are used follows from the kind. */
    pst_matrix x, y, z;
    pst_weight w, b;
    pst_weight_format w_format, b_format;
    union {
        pst_matmul matmul;
        pst_grouped_matmul grouped;
        pst_block_copy copy_blocks;
        pst_kv_store store;
        pst_attention attention;
        pst_route_job route;
        pst_heads_matmul heads;
    } job;
    pst_activation activation;
    float eps;
    uint32_t heads, head_dim, rotary, count;
    bool interleaved;
    const float *floats;     /* rope's table, weights of add_rows */
    const double *doubles;   /* factors of log_sum_exp */
    const uint32_t *numbers; /* positions, rows */
    void *results[2];
    pst_weight *weights;        /* owned: of a grouped product, with their formats behind them */
    pst_weight_format *formats; /* in the same memory */
} fault_work;

struct fault_stream {
    pst_device_stream *inner; /* NULL: the compute stream */
    fault_work *first, **end; /* what is not done yet */
    uint64_t issued, done;
};

/* Works in their order; what record_begin to record_end asked for. */
typedef struct fault_recording {
    fault_work *first, **end;
    pst_device_recording *inner; /* of a device that is not separate: the works are there */
} fault_recording;

typedef struct fault_event {
    pst_device_event *inner;
    fault_stream *stream; /* recorded in; NULL: never */
    uint64_t serial;      /* done when the stream has come so far */
} fault_event;

typedef struct fault_device {
    pst_device base;
    pst_device_ops ops;
    char name[40];
    pst_device *inner; /* owned */
    pst_device_fault *fault;
    bool separate, late;
    char *room; /* separate: device memory, inaccessible while depth is 0 */
    uint64_t room_bytes;
    uint32_t depth;
    fault_block *blocks; /* by address, those in the room first */
    size_t block_count, block_capacity;
    fault_stream compute;
    fault_recording *recording; /* under way; NULL: none */
    fault_stream **streams;     /* the others */
    size_t stream_count, stream_capacity;
    const void *run_y;          /* of a product with a transposed format: what it goes to, and */
    size_t run_rows;            /* how many of the matrix's rows have been seen */
    int deferred;               /* what the next wait reports */
    uint64_t numbers, in_doubt; /* of works; those below were asked for before a failure was reported */
    char message[256];
} fault_device;

static inline fault_device *fault_of(pst_device *device)
{
    return (fault_device *)(void *)device; /* `base` comes first */
}

/* Counts a call; the code of a failure that is planned for it (deferred ones only leave it to be reported), else 0. *skip: it
 * is not to be carried out. */
int fault_strike(fault_device *f, pst_device_call kind, bool *skip);
/* Remembers what a failure was about; returns the code. */
int fault_say(fault_device *f, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* The same for a call that no accelerator could carry out; counts it. */
int fault_misuse(fault_device *f, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The inner device's result, with its words. */
int fault_inner(fault_device *f, int status);
/* Lets calls touch device memory, and no longer. */
void fault_enter(fault_device *f);
void fault_leave(fault_device *f);
/* Carries out a work, puts it off, or notes it. *work stays the caller's and is copied. */
int fault_submit(fault_device *f, fault_stream *stream, const fault_work *work);
/* Work of its own, with what the caller may change: fault_free_work gives it back. */
int fault_copy_work(fault_device *f, const fault_work *work, fault_work **out);
void fault_free_work(fault_work *work);
/* Carries out a stream's work up to `serial`, and what of other streams it waits for. */
void fault_run(fault_device *f, fault_stream *stream, uint64_t serial);
/* The block that holds all of this memory; NULL: none does. */
const fault_block *fault_find(const fault_device *f, const void *memory, uint64_t bytes);
bool fault_overlaps_room(const fault_device *f, const void *memory, uint64_t bytes);

/* fault_operators.c: the operators' entries; a work that is an operator is carried out by fault_carry_out. */
void fault_set_operators(pst_device_ops *ops);
int fault_carry_out(fault_device *f, const fault_work *work);

/* fault_check.c: 0, or a misuse by that work. The second one looks at what arrays hold: as late as when it is carried out. */
int fault_check_operands(fault_device *f, const fault_work *work);
int fault_check_contents(fault_device *f, const fault_work *work);

/* fault_record.c: recordings. A call that has no place in one is a misuse while one is under way. */
void fault_set_recordings(pst_device_ops *ops);
int fault_outside(fault_device *f, const char *call);
void fault_drop_recording(fault_device *f); /* the one under way */

#endif
