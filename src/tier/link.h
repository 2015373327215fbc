/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The link: weights on their way from host memory to an accelerator's. A part that stays on the device is copied there once;
 * any other one into the next of the device's slots, each time that it is needed. Copies run on a stream of their own and
 * computing on the compute stream; events alone order them: a copy waits for the work that used its slot before, computing
 * waits for the copy. So the caller runs ahead of the device, by as many parts as there are slots.
 *
 * Pieces lie in the device's memory in the order of their part's host memory, each at a multiple of PST_DEVICE_ALIGN; what is
 * contiguous on both sides is one copy.
 *
 * Threads: the device's owner. Copying allocates nothing. After a failure the link can only be destroyed.
 */
#ifndef PST_TIER_LINK_H
#define PST_TIER_LINK_H

#include "base/trace.h"
#include "penstock/device_plugin.h"
#include "tier/plan.h"

typedef struct pst_link pst_link;
#define PST_LINK_NOBODY UINT32_MAX

/* Allocates the device's part of the plan. Device, stages and plan outlive the link. */
int pst_link_create(pst_device *device, const pst_stage *stages, const pst_plan *plan, pst_link **out, pst_error *err);
/* Copies are noted in the timeline from now on; NULL: no longer. */
void pst_link_set_trace(pst_link *link, pst_trace *trace);
/* Waits for the device first. NULL is fine. */
void pst_link_destroy(pst_link *link);

/* Has the device copy from this memory at full speed until it is unregistered, or the link destroyed; two regions at most. */
int pst_link_register(pst_link *link, void *memory, uint64_t bytes, pst_error *err);
void pst_link_unregister(pst_link *link, void *memory);

/* Copies a part that stays on the device, and waits for it. memory: as the layout lays the part out. */
int pst_link_load(pst_link *link, uint32_t part, const unsigned char *memory, pst_error *err);
/* A part that was loaded. */
pst_part_view pst_link_view(const pst_link *link, uint32_t part);

/* Begins to copy a part into the next slot and has the compute stream wait for it; `memory` stays as it is until
 * pst_link_retire gives `user` back. Only while pst_link_pending is below the plan's device_slots. */
int pst_link_copy(pst_link *link, uint32_t part, const unsigned char *memory, uint32_t user, pst_part_view *out,
                  pst_error *err);
/* All work with the part that was copied last has been handed to the device. */
int pst_link_end(pst_link *link, pst_error *err);
/* Copies that were begun and not given back. */
uint32_t pst_link_pending(const pst_link *link);
/* 1: the oldest of these is done, *user is its; 0: it is not yet, or there is none. wait: until it is done. */
int pst_link_retire(pst_link *link, bool wait, uint32_t *user, pst_error *err);

/* What the slots hold, up to `most` parts and how many; only while nothing is pending and nothing is computed. */
uint32_t pst_link_held(const pst_link *link, pst_stage_part *out, uint32_t most);

#endif
