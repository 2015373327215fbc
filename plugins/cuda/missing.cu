/* SPDX-License-Identifier: Apache-2.0 */
/* Operators that are not there yet: a definition in any other file takes the place of one here. */
#include "cuda_device.h"

static int operator_is_missing(cuda_device *device, const char *name)
{
    return pst_cuda_fail(device, PST_E_UNSUPPORTED, "%s:%d: the operator %s is not there yet", PST_VENDOR_NAME,
                         device->number, name);
}

#define MISSING(name, ...)                                                                                             \
    __attribute__((weak)) int pst_cuda_##name(cuda_device *device, __VA_ARGS__)                                        \
    {                                                                                                                  \
        return operator_is_missing(device, #name);                                                                     \
    }

MISSING(convert, const pst_weight *, const pst_matrix *)
MISSING(rms_norm, const pst_matrix *, const pst_weight *, float, const pst_matrix *)
MISSING(layer_norm, const pst_matrix *, const pst_weight *, const pst_weight *, float, const pst_matrix *)
MISSING(matmul, const pst_matmul *)
MISSING(matmul_grouped, const pst_grouped_matmul *)
MISSING(activate, pst_activation, const pst_matrix *, const pst_matrix *)
MISSING(gated, pst_activation, const pst_matrix *, const pst_matrix *, const pst_matrix *)
MISSING(rope, const pst_matrix *, uint32_t, uint32_t, uint32_t, bool, const float *, const uint32_t *)
MISSING(copy_blocks, const pst_block_copy *)
MISSING(take_rows, const pst_matrix *, const uint32_t *, const pst_matrix *)
MISSING(add_rows, const pst_matrix *, const uint32_t *, const float *, const pst_matrix *)
MISSING(kv_store, const pst_kv_store *)
MISSING(attention, const pst_attention *)
MISSING(route, const pst_route_job *)
MISSING(log_sum_exp, const pst_matrix *, double *)
MISSING(top, const pst_matrix *, uint32_t, float *, uint32_t *)
