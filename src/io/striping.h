/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What makes a pst_io_file a striped one: its members, and how offsets and lengths map to them. Between file.c, which
 * every operation passes through, and stripe.c, which knows folders and manifests.
 *
 * All members always have the lengths that the layout gives for one logical length: a write beyond the end first sets
 * the length of every member (pst_io_striping_reach), so that a write that stops in the middle, or that leaves a hole,
 * ends in a longer file with zeros in it, never in one whose parts do not fit.
 */
#ifndef PST_IO_STRIPING_H
#define PST_IO_STRIPING_H

#include "io/internal.h"

enum { PST_IO_MAX_STRIPES = 64 };

struct pst_io_striping {
    uint64_t stripe_bytes;
    uint32_t count;
    atomic_ullong length;   /* every member has at least its part of this */
    pst_io_file *members[]; /* count; owned */
};

/* The bytes that member `index` holds of a file of `length` bytes. */
uint64_t pst_io_striping_part(uint64_t stripe_bytes, uint32_t count, uint32_t index, uint64_t length);

/* Without members yet; -ENOMEM. */
int pst_io_striping_create(uint64_t stripe_bytes, uint32_t count, struct pst_io_striping **out);
/* Takes the length from the members as they were opened; PST_E_FORMAT names the one whose part does not fit. */
int pst_io_striping_check(struct pst_io_striping *s, uint64_t *out_bytes, pst_error *err);
/* Closes the members and frees it; NULL is fine. */
int pst_io_striping_close(struct pst_io_striping *s, pst_error *err);

pst_io_run pst_io_striping_run(const struct pst_io_striping *s, uint64_t offset, uint64_t bytes);
bool pst_io_striping_is_direct(const struct pst_io_striping *s); /* all of it */
/* Makes the file at least `end` bytes long. Any thread. */
int pst_io_striping_reach(struct pst_io_striping *s, uint64_t end, pst_error *err);
int pst_io_striping_get_bytes(const struct pst_io_striping *s, uint64_t *out, pst_error *err);
int pst_io_striping_sync(struct pst_io_striping *s, pst_error *err);
int pst_io_striping_truncate(struct pst_io_striping *s, uint64_t bytes, pst_error *err);
int pst_io_striping_preallocate(struct pst_io_striping *s, uint64_t offset, uint64_t bytes, pst_error *err);

/* file.c, for stripe.c: a file without descriptors, for members to be put into. `path` is copied. */
int pst_io_file_create(pst_io *io, const char *path, unsigned flags, pst_io_file **out, pst_error *err);
/* file.c: allocates blocks of a plain file; 1 where the file system cannot. */
int pst_io_file_reserve(pst_io_file *file, int mode, uint64_t offset, uint64_t bytes, pst_error *err);

#endif
