/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Measures the operators of a device at the shapes of a model, each beside the time that it takes at least: what it moves
 * over the bandwidth of the device's memory, what it computes over its rate of products. Both are measured in the same run,
 * and with them the link between host and device. What `penstock bench kernels` is made of.
 *
 * The weights are no model's: memory is filled with numbers, and every call takes its operands from another place of it, so
 * that they come from memory and not from a cache.
 *
 * Threads: one at a time.
 */
#ifndef PENSTOCK_BENCH_KERNELS_H
#define PENSTOCK_BENCH_KERNELS_H

#include <stdbool.h>

#include "penstock/device.h"
#include "penstock/model.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { PST_KERNELS_MAX_REPETITIONS = 100, PST_KERNELS_MAX_ROWS = 16 };

/* What sets the pace of an operator. */
typedef enum pst_kernels_limit { PST_KERNELS_NONE, PST_KERNELS_MEMORY, PST_KERNELS_MATRIX } pst_kernels_limit;

/* One operator at one shape, or (limit PST_KERNELS_NONE) one measurement of a rate. */
typedef struct pst_kernels_result {
    char name[32];            /* the operator's in penstock/device_plugin.h; of rates: "memory", "matrix", "link" */
    char what[128];           /* "q, k, v: 4096 to 6144, BF16" */
    uint32_t rows;            /* of the pass; 0: of no meaning */
    double bytes, operations; /* of a call: that it must move; additions and multiplications */
    uint32_t calls;           /* of a repetition: as many as take long enough */
    uint32_t repetitions;
    double samples[PST_KERNELS_MAX_REPETITIONS]; /* seconds of a call, by repetition */
    double seconds;                              /* their median */
    double bound_seconds;                        /* what a call takes at least */
    pst_kernels_limit limit;
} pst_kernels_result;

/* Called with each result; nonzero cancels (PST_E_CANCELLED). */
typedef int (*pst_kernels_on_result)(void *user, const pst_kernels_result *result);

/* Zero means the default of every field. */
typedef struct pst_kernels_options {
    size_t struct_size;
    const char *device;  /* as in penstock/device.h; default "auto" */
    const char *model;   /* whose shapes: as in pst_predict_options; default "llama3-8b" */
    const char *cache;   /* likewise */
    uint32_t quant_bits; /* 8 or 4: products with weights as converted; 0 or 16: as they are */
    pst_compute_type compute_type;
    uint32_t kv_bits;      /* 32, 16, 8 or 4; default 16 */
    const uint32_t *rows;  /* of a pass, each for itself; default 1, 32 and 512. Up to 64 are as many sequences, each at
                           * `context`; more are a prompt */
    uint32_t row_counts;   /* of `rows`: PST_KERNELS_MAX_ROWS at most */
    uint32_t context;      /* positions that a sequence has; default 4096, or the model's if that is less */
    const char *only;      /* of these operators alone: "matmul,attention"; default: all */
    uint32_t repetitions;  /* default 5 */
    double seconds;        /* of a repetition, at least; default 0.05 */
    uint64_t memory_bytes; /* of operands at most; default: half of what is free, and no more than serves */
    uint32_t threads;      /* of the host device; default: all processors */
    const char *kernels;   /* likewise; NULL: the best of this processor */
    pst_kernels_on_result on_result;
    void *user;
} pst_kernels_options;

typedef struct pst_kernels_report {
    pst_device_info device; /* of the host's processor: name and memory alone */
    char kernels[32];       /* of the host: the kernel set */
    uint32_t threads;       /* of the host */
    uint64_t memory_bytes;  /* that operands were taken from */
    uint32_t context;
    pst_dtype compute_type;
    double
        memory_bytes_per_second; /* read and written together: the best of copying, filling and an elementwise pass */
    double matrix_operations_per_second;                             /* of the fastest product of bf16 matrices */
    double to_device_bytes_per_second, from_device_bytes_per_second; /* pinned memory; 0: the host's own */
    uint32_t results;                                                /* of operators */
} pst_kernels_report;

/* PST_E_BUDGET names the memory that the largest operands need. */
PST_API int pst_kernels_bench(const pst_kernels_options *options, pst_kernels_report *out, pst_error *err);

#ifdef __cplusplus
}
#endif
#endif
