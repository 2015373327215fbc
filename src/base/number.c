/* SPDX-License-Identifier: Apache-2.0 */
#include "base/number.h"

#include <stdlib.h>

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

void pst_sort(double *values, size_t count)
{
    qsort(values, count, sizeof *values, by_size);
}

double pst_median(double *values, size_t count)
{
    pst_sort(values, count);
    return count % 2 != 0 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}
