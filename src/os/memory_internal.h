/* SPDX-License-Identifier: Apache-2.0 */
/* For memory.c and its tests: the same figures from a fixture tree. */
#ifndef PST_OS_MEMORY_INTERNAL_H
#define PST_OS_MEMORY_INTERNAL_H

#include "os/memory.h"

/* As pst_memory_get_info, with /proc and the control groups below `root`. */
int pst_memory_get_info_at(const char *root, pst_memory_info *out, pst_error *err);

#endif
