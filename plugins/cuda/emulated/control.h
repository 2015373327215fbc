/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What tests tell the emulator: symbols of libpenstock-emulated.so beside its plugin table. They act on the whole process.
 * Numbers of calls are counted from the moment of the order on.
 */
#ifndef PST_EMULATED_CONTROL_H
#define PST_EMULATED_CONTROL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PST_EMULATED_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

/* The orders of threads and of streams are drawn from here. */
PST_EMULATED_API void pst_emulated_seed(uint64_t seed);

/* Device memory is out of the host's reach but while the emulator works: a host that touches it gets SIGSEGV. */
PST_EMULATED_API void pst_emulated_protect(bool on);

/* The size of a device's memory; 1 GiB at first. */
PST_EMULATED_API void pst_emulated_memory(uint64_t bytes);

/* What a block may have of dynamic shared memory, and what the device says of it; 227 KiB at first. */
PST_EMULATED_API void pst_emulated_shared_limit(size_t bytes);

/* How many devices there are, 1 at first; 0: as if there was none; -1: as if there was no driver. */
PST_EMULATED_API void pst_emulated_devices(int count);

typedef enum pst_emulated_call {
    PST_EMULATED_ALLOCATE, /* device memory, pinned memory */
    PST_EMULATED_REGISTER, /* of the host's memory */
    PST_EMULATED_CREATE,   /* streams, events */
    PST_EMULATED_COPY,     /* copies and fills: the call fails */
    PST_EMULATED_COPY_LATER, /* the call succeeds, the copy fails when it is carried out: what comes after it, on any stream, is
                                * not carried out until a call that waits has told it */
    PST_EMULATED_LAUNCH, /* the launch fails */
    PST_EMULATED_LAUNCH_LATER, /* the launch succeeds, the kernel fails: nothing more works until pst_emulated_reset. Of this and
                                * COPY_LATER what a stream captures counts whenever it is carried out */
    PST_EMULATED_GRAPH, /* beginning to capture, making a graph of it, launching one */
    PST_EMULATED_CALLS
} pst_emulated_call;

/* The nth call of this kind from now on fails, once; 0: none. */
PST_EMULATED_API void pst_emulated_fail(pst_emulated_call call, uint64_t nth);
/* How many calls of this kind there were since the library was loaded. */
PST_EMULATED_API uint64_t pst_emulated_calls(pst_emulated_call call);

/* The file of the library of matrix products (vendor_blas.h) for devices that need one from now on, which is one for emulated
 * devices; NULL, as at first: there is none. The string is copied. */
PST_EMULATED_API void pst_emulated_blas(const char *file);
/* For such a library: on this stream (pst_vendor_stream), in its order, work(context) with all memory in reach; then
 * release(context), also of work that is never done. 0, or it was not taken. */
typedef void pst_emulated_work(void *context);
PST_EMULATED_API int pst_emulated_take(void *stream, pst_emulated_work *work, pst_emulated_work *release,
                                       void *context);

/* Forgets a failed kernel and what is registered, drops what is queued: a new beginning, as for a new process. */
PST_EMULATED_API void pst_emulated_reset(void);

typedef struct pst_emulated_counts {
    uint64_t device_memory, host_memory, registered, streams, events; /* alive */
    uint64_t device_bytes, host_bytes;                                /* alive */
    uint64_t most_device_bytes;                                       /* at any time since the last reset */
    uint64_t graphs;                                                  /* alive */
} pst_emulated_counts;
PST_EMULATED_API void pst_emulated_count(pst_emulated_counts *out);

/* The line about the last failure inside the emulator ("" if none). Valid until the next one. */
PST_EMULATED_API const char *pst_emulated_message(void);

#ifdef __cplusplus
}
#endif
#endif
