/* SPDX-License-Identifier: Apache-2.0 */
/* Writes the experts that tokens chose as JSON Lines, which --routing-trace of 'bench infer' reads. */
#ifndef PENSTOCK_CLI_ROUTING_OUT_H
#define PENSTOCK_CLI_ROUTING_OUT_H

#include <stdio.h>

#include "penstock/model.h"

typedef struct cli_routing_out {
    const char *path;
    FILE *file; /* NULL: nothing is written */
    int error;  /* the first one's errno */
} cli_routing_out;

/* path NULL: nothing. Sets the session's callback. */
int cli_routing_out_open(cli_routing_out *out, const char *path, pst_session_options *shape, pst_error *err);
/* Closes in any state. status: that of the work, which counts before an error of writing. */
int cli_routing_out_close(cli_routing_out *out, int status, pst_error *err);

#endif
