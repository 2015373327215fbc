/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A weights file of torch.save (pytorch_model.bin) as one more kind of header: its zip file stores every storage as it is, so
 * tensors can be read in place. Nothing of its pickle is executed; what is refused stands in torch_file.h.
 */
#ifndef PST_STORE_TORCH_HEADER_H
#define PST_STORE_TORCH_HEADER_H

#include "store/safetensors.h"

/* The tensors by their keys, sorted by offset; two keys of one storage, or of one tensor (tied weights), are two tensors in one
 * place. No metadata. Refused also: tensors whose rows do not lie one after the other, or that are another one's conjugate or
 * negative. Those without elements are left out. The caller frees *out with pst_safetensors_free. */
int pst_torch_header_read(const char *path, pst_safetensors *out, pst_error *err);

#endif
