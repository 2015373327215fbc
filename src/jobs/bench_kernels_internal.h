/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of the measurement of operators share. Operands come from two pools of the device's memory, which calls go
 * around in: `inputs` holds numbers and is only read, `outputs` takes what operators write.
 */
#ifndef PST_JOBS_BENCH_KERNELS_INTERNAL_H
#define PST_JOBS_BENCH_KERNELS_INTERNAL_H

#include "device/device.h"
#include "jobs/predict_internal.h"
#include "os/thread.h"
#include "penstock/bench_kernels.h"

typedef struct kernels_pool {
    char *memory; /* the device's; owned */
    uint64_t bytes, next;
} kernels_pool;

typedef struct kernels_bench {
    pst_kernels_options o; /* defaults filled in */
    pst_device *device;
    pst_pool *pool;
    pst_planned_model model;
    const pst_transformer *t;
    const pst_weight_format *format; /* of the matrices; NULL: plain */
    pst_dtype weight_type, compute_type;
    pst_kv_layout kv;
    kernels_pool inputs, outputs;
    char *numbers; /* the device's: positions, segments, tables; owned */
    uint32_t row_counts[PST_KERNELS_MAX_ROWS];
    pst_kernels_report report;
} kernels_bench;

enum { KERNELS_NUMBER_BYTES = 8 << 20, KERNELS_MAX_SEQUENCES = 64 };

/* One operator at one shape. in_bytes, out_bytes: of its operands in each pool. */
typedef struct kernels_op kernels_op;
struct kernels_op {
    char name[32], what[128];
    uint32_t rows;
    double bytes, operations;
    uint64_t in_bytes, out_bytes;
    /* Puts what the calls need into `numbers`; NULL: nothing. */
    int (*prepare)(kernels_bench *b, kernels_op *op, pst_error *err);
    int (*run)(kernels_bench *b, kernels_op *op);
    size_t k, n; /* what run makes of them */
    uint32_t heads, groups;
    bool prompt;
    pst_activation activation;
    uint64_t calls, kv_bytes;
    const void *context; /* whatever run wants; not owned */
    uint32_t *first;     /* grouped: on the host; pst_heap */
    pst_weight *weights;
};

/* The next place in a pool; 256-aligned. */
void *kernels_take(kernels_pool *pool, uint64_t bytes);
/* Copies to `numbers` at `offset` and waits. */
int kernels_put(kernels_bench *b, uint64_t offset, const void *data, uint64_t bytes, pst_error *err);
/* A failure of the device, in its words. */
int kernels_failed(const kernels_bench *b, int status, const char *what, pst_error *err);

/* Bytes of a matrix of the model's format. */
uint64_t kernels_matrix_bytes(const kernels_bench *b, size_t outputs, size_t inputs);

/* The operators for every number of rows. *out: pst_heap, the caller's with `first` and `weights` of each, also on failure. */
int kernels_list(kernels_bench *b, kernels_op **out, size_t *out_count, pst_error *err);

/* Calls the operator until it is warm and then repetitions long enough; fills calls, samples and seconds. */
int kernels_measure(kernels_bench *b, kernels_op *op, pst_kernels_result *out, pst_error *err);
/* Fills the report's rates, a result of each. */
int kernels_measure_rates(kernels_bench *b, pst_error *err);
int kernels_tell(kernels_bench *b, const pst_kernels_result *result, pst_error *err);

#endif
