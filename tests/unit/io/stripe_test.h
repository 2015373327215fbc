/* SPDX-License-Identifier: Apache-2.0 */
/* What the tests of stripe sets share: folders to be members, in a folder that is removed afterwards. */
#ifndef PST_TEST_STRIPE_H
#define PST_TEST_STRIPE_H

#include "penstock/io_stripe.h"
#include "unit/io/io_test.h"

enum { STRIPE_FOLDERS = 9 }; /* that exist; one more than may be in a set are named */

extern char stripe_folders[PST_STRIPE_MAX_MEMBERS + 1][300];
extern const char *stripe_names[PST_STRIPE_MAX_MEMBERS + 1]; /* the same */

int stripe_set_up(void **unused);
/* Puts the real system calls and the usual log in place as well. */
int stripe_tear_down(void **unused);
/* "<member's folder>/<name>" in static storage, one of a few in turn. */
const char *stripe_path(uint32_t index, const char *name);
void stripe_remove_manifests(void);
/* A new set of the first `count` folders, whatever set they belonged to. */
pst_stripe_set *stripe_make_set(uint32_t count, uint64_t stripe_bytes);
int stripe_transfer(pst_io *io, pst_io_file *file, pst_io_kind kind, uint64_t offset, void *buffer, uint64_t bytes,
                    pst_error *err);

#endif
