/* SPDX-License-Identifier: Apache-2.0 */
/* Reads what numpy.save writes of float32 matrices: version 1 or 2, little-endian, C order. For tests only: asserts. */
#ifndef TESTS_SUPPORT_NPY_H
#define TESTS_SUPPORT_NPY_H

#include <stddef.h>

/* rows x columns floats, malloc'ed. */
float *npy_read(const char *path, size_t *rows, size_t *columns);

#endif
