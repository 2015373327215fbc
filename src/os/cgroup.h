/* SPDX-License-Identifier: Apache-2.0 */
/* What the control groups of this process, versions 1 and 2, leave it of memory and processors. */
#ifndef PST_OS_CGROUP_H
#define PST_OS_CGROUP_H

#include <stdint.h>

/* UINT64_MAX and 0 where nothing limits. */
typedef struct pst_cgroup_limits {
    uint64_t memory_limit_bytes; /* the tightest of all levels */
    uint64_t memory_left_bytes;  /* the least of any level's limit less its use, reclaimable page cache not
                                    counted */
    double processors;           /* the tightest CPU quota; 0: none */
} pst_cgroup_limits;

/* Reads <root>/proc/self/{cgroup,mountinfo} and the hierarchies that they name, mount points below `root` too
 * ("" for the machine itself; tests give a fixture tree). What cannot be read does not limit. */
void pst_cgroup_read(const char *root, pst_cgroup_limits *out);

/* Reads a small text file of /proc or /sys whole into text, always terminated. Bytes read, or a negative
 * code. */
int pst_os_read_text(const char *path, char *text, int text_bytes);
/* The number after `key` at the start of a line ("VmRSS:    12 kB" has 12 for "VmRSS:"); -1 when missing. */
int64_t pst_os_text_value(const char *text, const char *key);

#endif
