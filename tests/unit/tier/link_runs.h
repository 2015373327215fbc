/* SPDX-License-Identifier: Apache-2.0 */
/* Passes of a made-up model through a ring with a device behind it, under random plans. */
#ifndef LINK_RUNS_H
#define LINK_RUNS_H

#include "unit_world.h"

/* Plans that there were, by what a pass moves. */
typedef struct link_counts {
    uint32_t all_there, some_there, from_host, from_disk, cached;
} link_counts;

uint64_t world_bytes(const world *w); /* of all its tensors */
int link_ring_create(world *w, const pst_plan *plan, pst_io *io, pst_device *device, pst_ring **out, pst_error *err);
/* Some passes under a random plan; every byte that the stages compute with is checked, and what crossed the link is counted. */
void link_run_passes(world *w, pst_io *io, pst_device *device, random_source *source, link_counts *sum);

#endif
