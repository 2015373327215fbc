/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A device: memory and the operators that the model families are made of. Today's only device is the host's processor
 * (device/host.c over cpu/); an accelerator fills the same table.
 *
 * Numbers. Activations that flow between stages (the residual stream) are f32. The inputs of matrix products are of the
 * request's compute type (f32 or bf16), weights as they lie in the file (f32, f16, bf16, at any byte alignment), sums f32.
 *
 * Invariance. For every operator, the bits of one output row depend on that row's inputs alone: not on how many rows or
 * columns are computed in the same call, where a call is cut, or how many threads share it.
 *
 * Threads: a device belongs to one owner thread; its operators use the device's own parallelism inside.
 */
#ifndef PST_DEVICE_DEVICE_H
#define PST_DEVICE_DEVICE_H

#include <stdbool.h>

#include "cpu/kv.h"
#include "cpu/weight.h"
#include "penstock/types.h"

typedef struct pst_device pst_device;

/* A matrix of activations: `rows` rows of `columns` elements, `stride` elements from row to row. type: F32 or BF16. */
typedef struct pst_matrix {
    void *data;
    pst_dtype type;
    size_t rows, columns, stride;
} pst_matrix;

/* A vector or matrix of a checkpoint as it lies in memory: rows x columns, rows contiguous, any byte alignment. */
typedef struct pst_weight {
    const void *data; /* NULL: absent (no bias, no norm weight) */
    pst_dtype type;   /* F32, F16, BF16; with a format of another layout than PLAIN, of no meaning */
    size_t rows, columns;
    /* Matrices that are not plain rows of `type`; NULL: they are. */
    const pst_weight_format *format;
    /* Of the whole tensor, where the format has them. */
    const void *scales, *zeros;
    const int32_t *index; /* any byte alignment, as all else */
    size_t first_row;     /* where data's first row is in the tensor */
} pst_weight;

/* y[r][first_column + n] = sum over k of x[r][k] * w[n][k], + bias[n], + the old y if `accumulate`; n < w.rows; y is F32.
 * x.columns == w.columns. bias (1 x w.rows, or absent) is already cut to these rows. Order: sum, then bias, then old y.
 *
 * With a transposed format the rows at hand are inputs first_row.. (times 32/bits for GPTQ) of all w.columns outputs, and a
 * product is a run of calls with rising rows: the first one (w.first_row 0) begins with y = (old y if `accumulate`) + bias,
 * and each adds its inputs one after the other, so that the bits do not depend on the cut. w.columns and bias are the
 * outputs, also where a word of the tensor holds several (AWQ); x.columns are all inputs. An index that names a group
 * which is not there is PST_E_FORMAT. */
typedef struct pst_matmul {
    pst_matrix x;
    pst_weight w, bias;
    pst_matrix y;
    size_t first_column;
    bool accumulate;
} pst_matmul;

typedef enum pst_activation {
    PST_ACT_SILU,
    PST_ACT_GELU,
    PST_ACT_GELU_TANH,
    PST_ACT_RELU,
    PST_ACT_IDENTITY /* x itself, in the type of the result */
} pst_activation;

/* Consecutive rows of one sequence: row first_row + i has position first_position + i. Keys and values are in blocks of
 * PST_KV_BLOCK positions (cpu/kv.h): blocks[p / PST_KV_BLOCK] is the memory of position p in this layer. */
typedef struct pst_segment {
    size_t first_row, rows;
    uint32_t first_position;
    void *const *blocks; /* up to that of the last row; those below every row's window may be anything */
} pst_segment;

/* Causal attention of q rows over the stored keys 0..position of their sequence (their own included: stored before the call).
 * out[r][h*value_dim + d] = sum_j softmax_j(scale * q[r][h] . k[h / group][j] + slope[h] * (j - position)) * v[h / group][j][d],
 * group = heads / kv_heads; with window > 0 only keys j with position - j < window. q: F32, rows x heads*key_dim; out: rows x
 * heads*value_dim, F32 or BF16. */
typedef struct pst_attention {
    pst_matrix q, out;
    const pst_segment *segments;
    size_t segment_count;
    uint32_t heads;
    pst_kv_layout layout;
    uint32_t window;    /* 0: all */
    const float *alibi; /* `heads` slopes; NULL: none */
    float scale;
} pst_attention;

/* The operators. Each returns 0 or an error code; the host's fail only where they need scratch memory. */
typedef struct pst_device_ops {
    const char *name;

    /* Weight rows to f32 (embedding rows): y[r] = w[r]; y F32. PLAIN, GROUPED or FP8_BLOCKS, not transposed. */
    int (*convert)(pst_device *device, const pst_weight *w, const pst_matrix *y);
    /* y[r] = x[r] / sqrt(mean(x[r]^2) + eps) * w; x F32; y F32 or BF16, may be x itself; w 1 x columns. */
    int (*rms_norm)(pst_device *device, const pst_matrix *x, const pst_weight *w, float eps, const pst_matrix *y);
    int (*matmul)(pst_device *device, const pst_matmul *job);
    /* y[r] = (x[r] - mean(x[r])) / sqrt(variance(x[r]) + eps) * w + b; the variance is divided by the count; x F32; y F32 or
     * BF16, may be x itself; w, b 1 x columns, either may be absent. */
    int (*layer_norm)(pst_device *device, const pst_matrix *x, const pst_weight *w, const pst_weight *b, float eps,
                      const pst_matrix *y);
    /* y = activation(x), elementwise; x F32; y of the compute type. */
    int (*activate)(pst_device *device, pst_activation activation, const pst_matrix *x, const pst_matrix *y);
    /* Rotates in place pairs (i, i + rotary/2) of each head of x (F32, rows x heads*head_dim), or (2i, 2i + 1) if
     * interleaved, by the angle of the row's position: table[position] holds rotary/2 cosines, then rotary/2 sines.
     * The elements from `rotary` on stay. x may begin inside its heads: then rotary elements from there turn.
     * positions[rows]. */
    int (*rope)(pst_device *device, const pst_matrix *x, uint32_t heads, uint32_t head_dim, uint32_t rotary,
                bool interleaved, const float *table, const uint32_t *positions);
    /* Stores rows of k and v (F32, rows x kv_heads*key_dim and kv_heads*value_dim) at their positions of their sequences'
     * blocks. v is NULL with shared values. */
    int (*kv_store)(pst_device *device, const pst_kv_layout *layout, const pst_matrix *k, const pst_matrix *v,
                    const pst_segment *segments, size_t segment_count);
    int (*attention)(pst_device *device, const pst_attention *job);
    /* y = activation(gate) * up, elementwise; gate, up F32; y of the compute type. */
    int (*gated)(pst_device *device, pst_activation activation, const pst_matrix *gate, const pst_matrix *up,
                 const pst_matrix *y);
    /* y[i] = x[rows[i]]: rows of one type, gathered; y.rows of them. */
    int (*take_rows)(pst_device *device, const pst_matrix *x, const uint32_t *rows, const pst_matrix *y);
    /* y[rows[i]] += weights[i] * x[i]; x, y F32; the rows are distinct. */
    int (*add_rows)(pst_device *device, const pst_matrix *x, const uint32_t *rows, const float *weights,
                    const pst_matrix *y);
    /* out[r] = log(sum over n of exp(x[r][n])), in float64 from f32 x. */
    int (*log_sum_exp)(pst_device *device, const pst_matrix *x, double *out);

    void (*destroy)(pst_device *device);
} pst_device_ops;

/* Every device begins with its table. */
struct pst_device {
    const pst_device_ops *ops;
};

typedef struct pst_pool pst_pool;

/* The host's processor. `kernels` names a kernel set ("avx512bf16", "avx512", "avx2", "portable") or is NULL for the
 * best that runs here. The pool stays the caller's and must outlive the device. The caller owns *out. */
int pst_device_host_create(pst_pool *pool, const char *kernels, pst_device **out, pst_error *err);
/* Memory that attention over such a cache takes beside its operands, from its first call on. */
uint64_t pst_device_host_attention_bytes(const pst_kv_layout *layout, uint32_t threads);
/* Stacks of so many threads that compute, once they have run every kernel. */
uint64_t pst_device_host_stack_bytes(uint32_t threads);
/* The kernel set in use. Static storage. */
const char *pst_device_host_kernels(const pst_device *device);
void pst_device_destroy(pst_device *device); /* NULL is fine */

#endif
