/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which drive holds a path, as a name that is the same for every path on it and after a reboot, whatever number the
 * kernel gave the device this time.
 */
#ifndef PST_OS_DRIVE_H
#define PST_OS_DRIVE_H

#include "penstock/types.h"

enum { PST_DRIVE_ID_BYTES = 256 }; /* with its end; longer names are cut and end in a digest */

/* Where a path lies, as statx tells. */
typedef struct pst_drive_place {
    uint32_t major, minor; /* of the file system's device */
    uint64_t mount_id;     /* 0: not known (before Linux 5.8) */
} pst_drive_place;

/* The drive of an existing path, or of the nearest existing folder above one that does not exist yet.
 *
 *   nvme:<model>:<serial>   an NVMe drive; partitions and a device mapper volume on a single drive count as the drive
 *   disk:<wwid>             another disk that says who it is; disk:<serial or name>:<bytes> where it does not
 *   loop:<backing file>     a loop device
 *   md:<ids>, dm:<ids>      an array or volume over several drives: their ids, sorted, joined by " + "
 *   fs:<type>:<source>      what is on no block device: tmpfs, overlay, nfs */
int pst_drive_identify(const char *path, char out[PST_DRIVE_ID_BYTES], pst_error *err);

/* The same for a place; reads <root>/proc/self/mountinfo and below <root>/sys ("" for the machine itself; tests give a
 * fixture tree). `path` is for messages. */
int pst_drive_identify_at(const char *root, const pst_drive_place *place, const char *path,
                          char out[PST_DRIVE_ID_BYTES], pst_error *err);

/* The id of several drives used together: each once, sorted, joined by " + ". The ids are sorted in place. */
void pst_drive_join(char (*ids)[PST_DRIVE_ID_BYTES], size_t count, char out[PST_DRIVE_ID_BYTES]);

#endif
