/* SPDX-License-Identifier: Apache-2.0 */
/* The public face of the timeline. */
#include "base/error.h"
#include "base/heap.h"
#include "base/trace.h"
#include "os/file.h"
#include "penstock/model.h"

int pst_trace_open(size_t max_events, pst_trace **out, pst_error *err)
{
    return pst_trace_create(max_events, out, err);
}

void pst_trace_close(pst_trace *trace)
{
    pst_trace_destroy(trace);
}

int pst_trace_write(const pst_trace *trace, const char *path, pst_error *err)
{
    char *text;
    size_t bytes;
    PST_TRY(pst_trace_format(trace, &text, &bytes, err));
    int status = pst_file_publish(path, text, bytes, err);
    pst_heap_free(text);
    return status;
}
