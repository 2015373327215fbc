/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The data.pkl of a flat dict from name to tensor, in protocol 2, which is all that torch's restricted unpickler reads. It
 * holds what torch.save writes for such a dict: each tensor is contiguous, begins its storage, and is on the "cpu".
 */
#ifndef PST_STORE_PICKLE_WRITE_H
#define PST_STORE_PICKLE_WRITE_H

#include "store/store.h"

/* storages: by tensor, the number that is its storage's key. bytes of the tensors are set. *out: pst_heap_free.
 * PST_E_UNSUPPORTED: torch has no such dtype or shape. */
int pst_pickle_tensors(const pst_tensor *tensors, size_t count, const uint32_t *storages, void **out, size_t *out_bytes,
                       pst_error *err);

#endif
