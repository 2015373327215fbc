/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory of a pass on the device that computes. On the host's there is one memory and nothing is copied: a mirror's two
 * halves are the same. An accelerator's memory is out of the host's reach: what the host fills for it is in a mirror and is
 * published, on the compute stream; the host leaves it unchanged until the pass has ended. A device of NULL is the host's.
 */
#ifndef PST_NN_DEVICE_MEMORY_H
#define PST_NN_DEVICE_MEMORY_H

#include "penstock/device_plugin.h"

/* Where an accelerator wants weights, and gets buffers. */
enum { PST_APART_ALIGNMENT = 256 };

/* An accelerator: its memory is its own. */
static inline bool pst_nn_is_apart(const pst_device *device)
{
    return device != NULL && !device->ops->is_host;
}

/* Large memory; not cleared on an accelerator. Given back with the same kind and size; NULL is fine. */
int pst_nn_take_memory(pst_device *device, pst_device_memory kind, uint64_t bytes, const char *what, void **out,
                       pst_error *err);
void pst_nn_give_memory(pst_device *device, pst_device_memory kind, void *memory, uint64_t bytes);

/* A table that the host fills and the device reads. */
typedef struct pst_mirror {
    void *host;  /* cleared when it is made */
    void *there; /* on the host the same */
    uint64_t bytes;
} pst_mirror;
int pst_mirror_create(pst_device *device, uint64_t bytes, const char *what, pst_mirror *out, pst_error *err);
void pst_mirror_destroy(pst_device *device, pst_mirror *mirror); /* a zeroed one is fine */
/* Both return the device's status. */
int pst_mirror_publish(pst_device *device, const pst_mirror *mirror, uint64_t offset, uint64_t bytes);
int pst_mirror_fetch(pst_device *device, const pst_mirror *mirror, uint64_t offset, uint64_t bytes);

#endif
