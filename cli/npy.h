/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A matrix of float32 written row by row, in any order, as a NumPy file (format version 1.0). It appears whole and
 * durable under its name, or not at all.
 */
#ifndef PENSTOCK_CLI_NPY_H
#define PENSTOCK_CLI_NPY_H

#include "penstock/types.h"

typedef struct cli_npy cli_npy;

/* The file system must have room for it; `path` may exist and is replaced at the end. The caller owns *out. */
int cli_npy_create(const char *path, uint64_t rows, uint64_t columns, cli_npy **out, pst_error *err);
int cli_npy_write_row(cli_npy *npy, uint64_t row, const float *values, pst_error *err);
/* Data sync, rename, folder sync. Close it afterwards in any case. */
int cli_npy_publish(cli_npy *npy, pst_error *err);
/* Removes what was not published. */
void cli_npy_close(cli_npy *npy);

#endif
