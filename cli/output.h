/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Standard output, whose failures are remembered: a full disk fails the command, a reader that left (EPIPE) ends it
 * quietly.
 */
#ifndef PENSTOCK_CLI_OUTPUT_H
#define PENSTOCK_CLI_OUTPUT_H

#include <jansson.h>

#include "cli.h"
#include "penstock/model.h"

/* The reader of standard output went away: nothing is printed, exit status 1. */
enum { CLI_E_READER_GONE = -5001 };

/* Each returns 0, -errno, or CLI_E_READER_GONE with err filled. */
int cli_out_write(const void *data, size_t bytes, pst_error *err);
int cli_out_text(const char *text, pst_error *err);
int cli_out_printf(pst_error *err, const char *format, ...) __attribute__((format(printf, 2, 3)));
int cli_out_flush(pst_error *err);
/* Prints the document on one line and drops the caller's reference, whatever happens. NULL: out of memory. */
int cli_out_json(json_t *document, pst_error *err);
/* Makes text harmless for a terminal, in place: C0 controls and DEL, C1 controls and bytes that are no UTF-8 (which a
 * terminal of eight bits may take for C1) become '?'. Returns the bytes that are left. */
size_t cli_make_safe(char *text, size_t bytes);
/* Text from a file, made harmless. */
int cli_out_safe(const char *text, pst_error *err);
/* A document that comes in pieces: a value by itself, without a line end; drops the reference. NULL: out of memory. */
int cli_out_json_value(json_t *value, pst_error *err);

/* New references; NULL when out of memory. */
json_t *cli_json_ids(const uint32_t *ids, size_t count);
json_t *cli_json_text(const char *text, size_t bytes); /* null for NULL */
json_t *cli_json_stats(const pst_run_stats *stats);
/* {"results": results, "stats": stats}, which takes over both references (either NULL gives NULL). */
json_t *cli_json_document(json_t *results, json_t *stats);
/* cli_json_document's in pieces, for results that are not to be held all at once; it is complete after the end. Each
 * takes over the reference (NULL: out of memory). */
typedef struct cli_json_stream {
    bool begun;
} cli_json_stream;
int cli_json_stream_result(cli_json_stream *stream, json_t *result, pst_error *err);
int cli_json_stream_end(cli_json_stream *stream, json_t *stats, pst_error *err);
/* Appends, taking over the reference; -1 when out of memory (value NULL included). */
int cli_json_append(json_t *array, json_t *value);

#endif
