/* SPDX-License-Identifier: Apache-2.0 */
#include "support/npy.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void must(int condition, const char *path, const char *what)
{
    if (condition)
        return;
    fprintf(stderr, "%s: %s\n", path, what);
    abort();
}

float *npy_read(const char *path, size_t *rows, size_t *columns)
{
    FILE *file = fopen(path, "rb");
    must(file != NULL, path, "cannot be opened");
    unsigned char start[12];
    must(fread(start, 1, 10, file) == 10 && memcmp(start, "\x93NUMPY", 6) == 0, path, "is not an NPY file");
    size_t header_bytes = start[8] | (size_t)start[9] << 8;
    if (start[6] > 1) {
        must(fread(start + 10, 1, 2, file) == 2, path, "ends early");
        header_bytes |= (size_t)start[10] << 16 | (size_t)start[11] << 24;
    }
    must(header_bytes < 10000, path, "has an absurd header");
    char header[10001] = "";
    must(fread(header, 1, header_bytes, file) == header_bytes, path, "ends early");
    must(strstr(header, "'<f4'") && strstr(header, "'fortran_order': False"), path, "is not float32 in C order");
    const char *shape = strstr(header, "'shape': (");
    must(shape && sscanf(shape, "'shape': (%zu, %zu", rows, columns) == 2, path, "is not a matrix");
    must(*rows < 100000 && *columns < 1000000, path, "is too large");
    float *values = malloc(*rows * *columns * sizeof(float));
    must(values && fread(values, sizeof(float), *rows * *columns, file) == *rows * *columns, path, "ends early");
    fclose(file);
    return values;
}
