/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Products of prompts by the vendor's library of matrix products, where there is one: plain bf16 weights, bf16 x. It knows
 * instructions that the plugin's kernels do not have.
 *
 * The plugin's promise comes first: the bits of a row do not depend on the cut of the weights' rows, on how many rows x has, nor on
 * where anything lies. A library promises no such thing, so of every k it computes with ONE algorithm, which
 * - splits no sum: it has neither a split of k nor memory for parts of sums;
 * - has shown here, on this device, before its first use: the very results of the plugin's own kernels where all sums are
 *   exact, near ones where they are not, and one and the same bits for other cuts, numbers of rows, addresses and strides
 *   (blas_check.cu).
 * If no algorithm does, or there is no library, products of that k are the plugin's own, for good. So what computes depends on
 * device, library and k alone. What goes wrong later is an error: to go on with other kernels would be other bits.
 *
 * Operands that the library cannot take as they are (addresses, strides, shapes) are put into blocks of one shape first.
 */
#ifndef PST_CUDA_BLAS_H
#define PST_CUDA_BLAS_H

#include "matmul_job.h"
#include "vendor_blas.h"

/* The product of a job with the table's first matrix: 1: it is under way; 0: not for the library; or an error code. */
int mm_blas(cuda_device *device, const mm_job *job, const mm_table *table);
/* Gives back what the device has of the library; the device waited before. */
void pst_cuda_blas_close(cuda_device *device);
/* Which library there is, or why none: a line. */
void pst_cuda_blas_describe(char *text, size_t bytes);

/* ---- Between blas.cu and blas_check.cu ---- */

/* On a GPU the check's products have several tiles of any kernel, with edges; an emulated device is asked for less. The large one
 * has as many rows and outputs as there is memory for. All is scratch: for wide products what is planned for that, for others less,
 * as a small model plans less. */
enum {
    BLAS_LEAST_K = 16,
    BLAS_MOST_K = 53248, /* what the check has memory for */
#if defined(PST_EMULATED)
    BLAS_CHECK_ROWS = 24,
    BLAS_CHECK_OUTPUTS = 40,
    BLAS_LARGE = 80,
    BLAS_BLOCK = 16,
    BLAS_Y_FLOATS = 2048,
    BLAS_Y_OUTPUTS = 64,
#else
    BLAS_CHECK_ROWS = 192,
    BLAS_CHECK_OUTPUTS = 288,
    BLAS_LARGE = 2048,       /* rows and outputs of the large product, at most */
    BLAS_BLOCK = 64,         /* rows and outputs of a product whose operands are all put elsewhere */
    BLAS_Y_FLOATS = 8 << 20, /* of a part of y that is put elsewhere: it fits the device's cache */
    BLAS_Y_OUTPUTS = 8192,
#endif
    BLAS_MOST_BYTES = 64 << 20,
    BLAS_BYTES_PER_K = 8192
};

/* How products of a k are computed. */
struct blas_width {
    uint32_t k;
    bool taken; /* false: by the plugin's own kernels */
    pst_blas_algorithm algorithm;
    blas_width *next;
};

struct cuda_blas {
    pst_vendor_blas library; /* library.handle NULL: there is none */
    blas_width *widths;      /* those that were asked for; owned */
    int status;              /* the library's last failure; 0: it did not fail */
};

/* The job's product by the width's algorithm. scratch: NULL: the device's; or enough for the job, at a multiple of 256 bytes. A
 * failure of the library is -EIO or -ENOMEM, and blas->status says which. */
int blas_multiply(cuda_device *device, cuda_blas *blas, const blas_width *width, const mm_job *job, const uint8_t *w,
                  uint8_t *scratch);
/* Scratch for a product of this k whose operands are all put elsewhere. */
uint64_t blas_block_bytes(uint32_t k);
/* Finds an algorithm that passes the check: width->taken. After an error it is not known yet whether there is one. */
int blas_decide(cuda_device *device, cuda_blas *blas, blas_width *width);

#endif
