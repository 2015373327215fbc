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
/* Text from a file, with control characters shown as '?', so that a terminal does not obey it. */
int cli_out_safe(const char *text, pst_error *err);

/* New references; NULL when out of memory. */
json_t *cli_json_ids(const uint32_t *ids, size_t count);
json_t *cli_json_text(const char *text, size_t bytes); /* null for NULL */
json_t *cli_json_stats(const pst_run_stats *stats);
/* {"results": results, "stats": stats}, which takes over both references (either NULL gives NULL). */
json_t *cli_json_document(json_t *results, json_t *stats);
/* Appends, taking over the reference; -1 when out of memory (value NULL included). */
int cli_json_append(json_t *array, json_t *value);

#endif
