/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A library of matrix products for emulated devices, with the functions of the vendor's (vendor_blas.h), for the tests: it takes
 * what that one would take, computes in its streams' order with sums of one fixed order, and can be made to misbehave.
 */
#ifndef PST_TESTS_DEVICE_FAKE_BLAS_H
#define PST_TESTS_DEVICE_FAKE_BLAS_H

#include <stdint.h>

typedef enum fake_blas_mode {
    FAKE_BLAS_GOOD,
    FAKE_BLAS_SECOND,   /* its first algorithm's bits depend on the rows, its second one's do not */
    FAKE_BLAS_ROWS,     /* bits depend on the number of rows */
    FAKE_BLAS_OUTPUTS,  /* ... of outputs */
    FAKE_BLAS_LARGE,    /* ... only in large products */
    FAKE_BLAS_ADDRESS,  /* ... on an operand's address */
    FAKE_BLAS_WRONG,    /* leaves out the last term */
    FAKE_BLAS_ROUGH,    /* sums are rounded to 16 bits */
    FAKE_BLAS_TURNED,   /* takes the operands for each other */
    FAKE_BLAS_SPLITS,   /* all its algorithms split k, or want memory for sums */
    FAKE_BLAS_NONE,     /* knows no algorithm */
    FAKE_BLAS_STRICT,   /* its algorithms refuse shapes of sizes that 8 does not divide */
    FAKE_BLAS_UNKNOWN,  /* is of a version that nobody knows */
    FAKE_BLAS_NO_DEVICE /* cannot be made on the device */
} fake_blas_mode;

/* fake_blas_set. status: what the nth product from now on gives instead of computing; nth 0: none. */
typedef void fake_blas_setter(fake_blas_mode mode, uint64_t nth, int status);
/* fake_blas_get. Products since the library was loaded, and what was made and not given back. */
typedef void fake_blas_getter(uint64_t *products, uint64_t *objects);

#endif
