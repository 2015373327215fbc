/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stripe sets: one logical folder of files spread over several folders, usually one per drive, that are read and
 * written in parallel. No RAID, no privileges.
 *
 * Byte `o` of a logical file lies in member (o / stripe_bytes) % members, in a plain file of the same name, at
 * (o / stripe_bytes / members) * stripe_bytes + o % stripe_bytes. The length of the logical file is the sum of its
 * parts, and parts whose lengths do not fit together are refused.
 *
 * Every member folder holds a manifest, penstock-stripe.json: the set's identity, its stripe size, how many members
 * there are, which one this is, and where the others were. A missing, foreign or reordered member is refused by name.
 *
 * A write beyond the end makes all parts longer before it moves any byte, so that their lengths fit at any time, also
 * when the write fails or leaves a hole: then there are zeros. An extension that fails (no space) leaves the old length.
 * Open files of one handle may make a file longer at once; but no two open files may set its length (shorter, or by
 * truncation) and extend it at the same time.
 *
 * After a crash, what was synced is there. Of what was not, each part may have kept something else: if the lengths then
 * do not fit, the file is refused by the name of a part, and can be removed or opened with PST_IO_OPEN_TRUNCATE; if they
 * do, it has bytes from before and after the change, as a plain file may have. A file that is new has a name that lasts
 * only when the folder of every member was synced.
 *
 * Threads: a set may be used from any thread.
 */
#ifndef PENSTOCK_IO_STRIPE_H
#define PENSTOCK_IO_STRIPE_H

#include "penstock/io.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct pst_stripe_set pst_stripe_set;

enum { PST_STRIPE_MAX_MEMBERS = 64 };

/* Makes a new set of 1 to 64 existing folders, durable when it returns. stripe_bytes: a multiple of 4096 up to 1 GiB,
 * 0: 1 MiB. -EEXIST: a folder belongs to a set already (named in the error); nothing is changed then. */
PST_API int pst_stripe_create(const char *const *folders, uint32_t count, uint64_t stripe_bytes, pst_error *err);
/* Opens a set. All its folders must be named, in the order in which it was made. */
PST_API int pst_stripe_open(const char *const *folders, uint32_t count, pst_stripe_set **out, pst_error *err);
/* The same by one of its folders: the others are looked for where they were when the set was made. */
PST_API int pst_stripe_open_member(const char *folder, pst_stripe_set **out, pst_error *err);
PST_API void pst_stripe_close(pst_stripe_set *set);
PST_API uint32_t pst_stripe_members(const pst_stripe_set *set);
PST_API uint64_t pst_stripe_bytes(const pst_stripe_set *set);
/* True when the folder holds a set's manifest. */
PST_API bool pst_stripe_is_member(const char *folder);

/* Opens the logical file `name` (relative, without ".."; folders in it must exist in every member) as
 * pst_io_file_open opens a plain one; every operation works on it, and on all members in parallel. The set must
 * outlive the call only. -ENOENT names the member that lacks its part; with PST_IO_OPEN_CREATE too, if other members have
 * content, unless PST_IO_OPEN_TRUNCATE gives that up. Its path is that of the first part. */
PST_API int pst_stripe_file_open(pst_stripe_set *set, pst_io *io, const char *name, unsigned flags, pst_io_file **out,
                                 pst_error *err);
/* Removes all parts, as far as they can be; a missing one is fine. */
PST_API int pst_stripe_file_remove(pst_stripe_set *set, const char *name, pst_error *err);

#ifdef __cplusplus
}
#endif
#endif
