/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A device of this plugin, as its operators see it. The table (plugin.cu) makes the device the current one, calls the
 * operator, and then asks the vendor whether a launch failed: an operator launches its kernels on `stream` and returns 0, or
 * an error code after pst_cuda_fail. Operators have the arguments of their entries in device_plugin.h.
 */
#ifndef PST_CUDA_CUDA_DEVICE_H
#define PST_CUDA_CUDA_DEVICE_H

#include "penstock/device_plugin.h"
#include "vendor.h"

/* What a kernel writes to *flags (a plain store will do) when it finds something that only the device could see;
 * `synchronize` turns it into an error and clears it. */
enum {
    PST_CUDA_FLAG_BAD_INDEX = 1 /* an index names a group that is not there: PST_E_FORMAT */
};

typedef struct cuda_device {
    pst_device base;
    int number;
    pst_vendor_stream stream;         /* the compute stream */
    uint32_t *flags; /* one word, 0: all is well; in pinned memory, so that synchronize finds it without a copy */
    pst_vendor_properties properties; /* processors (132), compute_major.minor (9.0), shared_bytes (227 KiB), ... */
    void *scratch;                    /* by pst_cuda_scratch */
    size_t scratch_bytes;
    void *carry;                      /* by pst_cuda_carry */
    size_t carry_bytes;
    uint64_t scratch_moves; /* how often either has been replaced */
    bool recording;         /* record.cu: what is launched now is noted */
    bool recorded_scratch;  /* with its place in scratch memory */
    struct cuda_blas *blas; /* blas.h; NULL: not looked for so far */
    char error[512];
} cuda_device;

static inline cuda_device *pst_cuda_of(pst_device *device)
{
    return (cuda_device *)(void *)device;
}

/* Makes the line that last_error gives, and returns `code`. */
int pst_cuda_fail(cuda_device *device, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* 0, or a failure of the vendor's call `what` as an error code, with its line. */
int pst_cuda_check(cuda_device *device, const char *what, pst_vendor_error error);

/* At least `bytes` of device memory, aligned to 256, for what one operator does: the next operator may use it as well (in the
 * stream's order). One piece per operator: a second call may move it. -ENOMEM. While the device records it does not grow:
 * PST_E_UNSUPPORTED. */
int pst_cuda_scratch(cuda_device *device, size_t bytes, void **out);

/* Makes `carry` such memory that stays as it is from one operator to the next: rows of a product's matrix that wait for more
 * (matmul_transposed.cu). holds: it has some of them, so that it cannot grow now: PST_E_USAGE where it would have to. */
int pst_cuda_carry(cuda_device *device, size_t bytes, bool holds);

/* An operator that has to wait, or to take memory, before it can launch anything: 0, or while the device records
 * PST_E_UNSUPPORTED. */
int pst_cuda_may_wait(cuda_device *device, const char *what);

/* ---- Between the plugin's own files ---- */

/* The thread's current device becomes this one. */
int pst_cuda_enter(cuda_device *device);
/* Likewise, for a call that has no place in a recording: PST_E_USAGE while the device records. */
int pst_cuda_enter_outside(cuda_device *device);
/* The vendor's error as one of the interface's. */
int pst_cuda_code(pst_vendor_error error);
/* Writes *err (may be NULL) and returns `code`. */
int pst_cuda_error(pst_error *err, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

int pst_cuda_open_device(const pst_device_ops *ops, uint32_t number, pst_device **out, pst_error *err);
/* Fills in the entries that are not operators. */
void pst_cuda_runtime_entries(pst_device_ops *ops);
void pst_cuda_record_entries(pst_device_ops *ops);
/* Drops a recording under way. */
void pst_cuda_record_stop(cuda_device *device);
int pst_cuda_count(uint32_t *out, pst_error *err);
/* Whether there is such a device. */
int pst_cuda_check_number(uint32_t number, pst_error *err);
int pst_cuda_describe(uint32_t number, pst_device_info *out, pst_error *err);

/* ---- Operators, each as its entry of pst_device_ops ---- */

int pst_cuda_convert(cuda_device *device, const pst_weight *w, const pst_matrix *y);
int pst_cuda_rms_norm(cuda_device *device, const pst_matrix *x, const pst_weight *w, float eps, const pst_matrix *y);
int pst_cuda_layer_norm(cuda_device *device, const pst_matrix *x, const pst_weight *w, const pst_weight *b, float eps,
                        const pst_matrix *y);
int pst_cuda_matmul(cuda_device *device, const pst_matmul *job);
int pst_cuda_matmul_grouped(cuda_device *device, const pst_grouped_matmul *job);
int pst_cuda_matmul_heads(cuda_device *device, const pst_heads_matmul *job);
int pst_cuda_activate(cuda_device *device, pst_activation activation, const pst_matrix *x, const pst_matrix *y);
int pst_cuda_gated(cuda_device *device, pst_activation activation, const pst_matrix *gate, const pst_matrix *up,
                   const pst_matrix *y);
int pst_cuda_rope(cuda_device *device, const pst_matrix *x, uint32_t heads, uint32_t head_dim, uint32_t rotary,
                  bool interleaved, const float *table, const uint32_t *positions);
int pst_cuda_copy_blocks(cuda_device *device, const pst_block_copy *job);
int pst_cuda_take_rows(cuda_device *device, const pst_matrix *x, const uint32_t *rows, const pst_matrix *y);
int pst_cuda_add_rows(cuda_device *device, const pst_matrix *x, const uint32_t *rows, const float *weights,
                      const pst_matrix *y);
int pst_cuda_kv_store(cuda_device *device, const pst_kv_store *job);
int pst_cuda_attention(cuda_device *device, const pst_attention *job);
int pst_cuda_route(cuda_device *device, const pst_route_job *job);
int pst_cuda_log_sum_exp(cuda_device *device, const pst_matrix *x, const double *factors, double *out);
int pst_cuda_top(cuda_device *device, const pst_matrix *x, uint32_t count, float *values, uint32_t *columns);

#endif
