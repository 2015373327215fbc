/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Devices for tests: a wrapper around any device that fails chosen calls and counts what is held. Around the host it can
 * also pretend to be an accelerator, so that what works on devices can be tested before and without one:
 *
 * separate: is_host is false. Device memory is a room of its own that only calls of the device can touch: the host
 *     that reads or writes it crashes. Fresh memory holds rubbish, and so does what was given back. Operands are held against
 *     what was allocated: memory of the caller's own, too little of it, or a weight that is not aligned is a misuse, and
 *     the call fails.
 * late: nothing is done before it must be. Copies, fills and operators wait in their streams until a call waits for them
 *     (event_wait, synchronize, event_query by and by, a copy from or to plain memory), and of other streams only what events
 *     demand is done: whoever forgets to wait sees old data. Failures of such work are reported by what waits.
 *
 * A separate device records: works are kept instead of being carried out, and a replay asks for them again. Around others it
 * records if they do.
 *
 * Operators that were asked for between a deferred failure and its report are not carried out: what they would compute with
 * may not be there.
 *
 * The operators' results are those of the inner device. Owner thread only, as any device.
 */
#ifndef PST_DEVICE_FAULT_H
#define PST_DEVICE_FAULT_H

#include "device/device.h"

/* Kinds of calls, as far as they can fail. */
typedef enum pst_device_call {
    PST_DEVICE_ALLOCATE,
    PST_DEVICE_REGISTER,    /* register_host */
    PST_DEVICE_INFO,        /* memory_info */
    PST_DEVICE_CREATE,      /* streams and events */
    PST_DEVICE_RECORD,      /* event_record, stream_wait */
    PST_DEVICE_QUERY,       /* event_query */
    PST_DEVICE_WAIT,        /* event_wait */
    PST_DEVICE_SYNCHRONIZE, /* synchronize */
    PST_DEVICE_COPY,        /* copy, fill */
    PST_DEVICE_OPERATOR,
    PST_DEVICE_RECORDING, /* record_begin, record_end, replay */
    PST_DEVICE_CALLS
} pst_device_call;

/* The caller's, and outlives the device. Zeroed it lets everything pass. Fields may be read and, where it says so, set at any
 * time between calls. */
typedef struct pst_device_fault {
    /* Settings, read when the device is made. */
    bool separate;         /* around a host only */
    bool late;             /* with `separate` only */
    uint64_t device_bytes; /* separate: the device's memory; 0: 256 MiB */

    /* After `skip` more calls of a kind, `times` of them fail with `code` and do nothing. With `deferred` they seem to work, and
     * the next event_wait or synchronize fails instead. May be set at any time. */
    struct {
        int64_t skip, times;
        int code;
        bool deferred;
    } plan[PST_DEVICE_CALLS];

    /* separate: so many of the next replays say that the recording is stale. May be set at any time. */
    int64_t stale_replays;

    /* What happened: calls, failed ones included. */
    int64_t calls[PST_DEVICE_CALLS];
    int64_t replays;  /* that were carried out, or will be */
    int64_t failures; /* by plan */
    /* separate: calls that no accelerator could have carried out; the first one. */
    int64_t misuses;
    char misuse[160];
    /* What is held, by kind of memory where it has one. When the device is gone, what was never given back. */
    int64_t allocations[2], registered, streams, events, recordings;
    uint64_t bytes[2], peak_bytes[2];
} pst_device_fault;

/* Wraps `inner`, which is the wrapper's from here on (on failure it stays the caller's). The caller owns *out. */
int pst_device_fault_create(pst_device_fault *fault, pst_device *inner, pst_device **out, pst_error *err);
/* Calls of `kind` fail from the one after `skip` more on, `times` of them. */
void pst_device_fault_fail(pst_device_fault *fault, pst_device_call kind, int64_t skip, int64_t times, int code);
/* Everything that is held: 0 means no leak. */
int64_t pst_device_fault_held(const pst_device_fault *fault);

/* Tests only: what pst_device_open calls in its own place; NULL: nothing. While no other thread opens devices. */
typedef int pst_device_opener(void *context, const char *name, pst_pool *pool, const char *kernels, pst_device **out,
                              pst_error *err);
void pst_device_replace_open(pst_device_opener *opener, void *context);
/* An opener whose context is a pst_device_fault: any name, and the host wrapped in it. */
pst_device_opener pst_device_fault_open;

#endif
