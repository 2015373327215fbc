/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Engines that misbehave on purpose: wrappers around any engine, for tests of what stands on the I/O library.
 *
 * A wrapper is an engine like any other (pst_io_options.engine_table) and wrappers stack. Requests are numbered in the
 * order in which they reach the wrapper, those that the library repeats or continues included. Faults strike by chance or
 * at chosen numbers, and all that chance decides about a request follows from the seed and its number: with one worker
 * and a queue depth of one, everything repeats.
 *
 * No result is lost or doubled, and the memory of a request stays in use until its result was handed out.
 */
#ifndef PENSTOCK_IO_FAULT_H
#define PENSTOCK_IO_FAULT_H

#include "penstock/io_engine.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What strikes; bits, so that several may be asked for. A fault that cannot befall a request (a torn read, a short
 * transfer of one byte) leaves it alone.
 *
 * ERROR: the request is not carried out and fails with one of `errors`.
 * SHORT: less is reported than was asked for, 1 byte to all but one. A write has reached the file so far, up to the end
 *     of that sector; a read's buffer holds no data behind it.
 * DELAY: the result is held back for min_delay_ns to max_delay_ns.
 * REORDER: the result is held back until 1 to reorder_window others have gone first, or nothing else is under way. A
 *     synchronous engine has one request at a time: there it is a delay, which results of other workers may pass.
 * TORN: a write fails with EIO, and only some of its sectors have reached the file, not always the first ones. Sectors
 *     are 512 bytes, or for direct I/O what the file demands; a write of a single one reached the file or did not. */
enum {
    PST_IO_FAULT_ERROR = 1,
    PST_IO_FAULT_SHORT = 2,
    PST_IO_FAULT_DELAY = 4,
    PST_IO_FAULT_REORDER = 8,
    PST_IO_FAULT_TORN = 16
};

typedef struct pst_io_fault_options {
    size_t struct_size; /* sizeof(pst_io_fault_options) of the caller */
    uint32_t faults;    /* which of the above */
    uint64_t seed;
    double rate; /* chance that a request is struck, 0 to 1 (each fault asked for is as likely) */
    /* Besides, requests number at, ..., at + times - 1 (from 0, over all queues) are struck. times 0: none. */
    int64_t at, times;
    bool reads, writes; /* what may be struck; both false: both */
    /* Positive errno values, copied. NULL: EIO, ENOMEM, EAGAIN, EINTR, and for writes ENOSPC. */
    const int *errors;
    uint32_t error_count;
    uint64_t min_delay_ns, max_delay_ns; /* default 0 and 2 ms */
    uint32_t reorder_window;             /* results held back at once, and others that may pass one; default 8 */
} pst_io_fault_options;

/* Wraps `inner` (a table, such as another wrapper; NULL: the engine named `inner_name`; both NULL: what "auto" would
 * choose), which must outlive the wrapper. The wrapper's name is the inner one's with "fault:" before it, its flags are
 * the inner one's. */
PST_API int pst_io_fault_create(const pst_io_engine *inner, const char *inner_name, const pst_io_fault_options *options,
                                pst_io_engine **out, pst_error *err);
/* No handle uses it any more. */
PST_API void pst_io_fault_destroy(pst_io_engine *engine);

typedef struct pst_io_fault_counts {
    uint64_t requests; /* seen */
    uint64_t errors, shorts, delays, reorders, torn;
} pst_io_fault_counts;
PST_API void pst_io_fault_get_counts(const pst_io_engine *engine, pst_io_fault_counts *out);

#ifdef __cplusplus
}
#endif
#endif
