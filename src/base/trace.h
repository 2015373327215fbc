/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A timeline of spans in a buffer of fixed size: recording allocates and locks nothing. Any thread records.
 */
#ifndef PST_BASE_TRACE_H
#define PST_BASE_TRACE_H

#include "penstock/types.h"

typedef struct pst_trace pst_trace;

/* What a span belongs to; each is one row of the picture. */
typedef enum pst_trace_track {
    PST_TRACE_DRIVE,
    PST_TRACE_WAIT,
    PST_TRACE_COMPUTE,
    PST_TRACE_PASS,
    PST_TRACE_COPY, /* to a device */
    PST_TRACE_TRACKS
} pst_trace_track;

int pst_trace_create(size_t max_events, pst_trace **out, pst_error *err);
void pst_trace_destroy(pst_trace *trace);

/* Memory that it comes to take, its text included. 0 for NULL. */
uint64_t pst_trace_memory_bytes(const pst_trace *trace);

/* name is copied, cut at 39 bytes. bytes: 0 where it does not apply.
 * trace may be NULL. What does not fit is counted and left out. */
void pst_trace_span(pst_trace *trace, pst_trace_track track, const char *name, uint64_t start_ns, uint64_t end_ns,
                    uint64_t bytes);

/* The whole timeline as Chrome trace JSON; *out is freed with pst_heap_free. Nobody may record meanwhile. */
int pst_trace_format(const pst_trace *trace, char **out, size_t *out_bytes, pst_error *err);

#endif
