/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Kernels for the host's processor: arithmetic on arrays, nothing else. No threads, no allocation, no errors: the
 * caller (device/host.c) checks shapes, cuts the work into blocks, shares them among threads and provides scratch
 * memory.
 *
 * There are several kernel sets, compiled from the same templates (template/) for different instruction sets and
 * chosen at run time. Two sets may differ in their last bits; one set never does: each output element is always the
 * same sequence of operations on the same inputs, whatever block it is computed in.
 *
 * Weights may lie at any byte address; activations are aligned to their elements.
 */
#ifndef PST_CPU_CPU_H
#define PST_CPU_CPU_H

#include <stdbool.h>

#include "cpu/kv.h"
#include "cpu/weight.h"
#include "penstock/types.h"

typedef enum pst_cpu_activation {
    PST_CPU_SILU,
    PST_CPU_GELU,
    PST_CPU_GELU_TANH,
    PST_CPU_RELU,
    PST_CPU_IDENTITY
} pst_cpu_activation;

/* Columns of weights that a core works on at a time: products are best cut at multiples of it. No result depends on
 * it. */
#define PST_CPU_MATMUL_COLUMNS 64
/* Stack that a thread which runs kernels comes to use; whoever plans memory counts it for every thread. */
#define PST_CPU_STACK_BYTES    ((size_t)208 << 10)

/* A block of a matrix product: y[r][n] = sum over k of x[r][k] * w[n][k], then + bias[n], then + the old y[r][n]. */
typedef struct pst_cpu_matmul {
    const void *x;    /* rows x k, F32 or BF16 */
    size_t x_stride;  /* elements */
    const void *w;    /* columns x k, contiguous, F32, F16 or BF16, or as `format` says */
    const void *bias; /* columns, or NULL */
    float *y;         /* rows x columns */
    size_t y_stride;  /* elements */
    size_t rows, columns, k;
    pst_dtype x_type, w_type, bias_type;
    bool accumulate;
    const void *next_w; /* weights that this thread will probably want next, to fetch early; or NULL */
    /* NULL: plain rows of w_type. Else GROUPED or FP8_BLOCKS, not transposed. */
    const pst_weight_format *format;
    const void *scales; /* FP8_BLOCKS: of the whole tensor */
    size_t w_row;       /* FP8_BLOCKS: the tensor's row that w begins with */
} pst_cpu_matmul;

/* A block of a product with a transposed matrix: y[r][c] = (begin: the old y[r][c] if accumulate, + bias[c]; else the old
 * y[r][c]), then + x[r][i] * w[i][first_output + c] for one input i at hand after the other. */
typedef struct pst_cpu_transposed {
    const void *x;   /* rows x inputs, F32 or BF16 */
    size_t x_stride; /* elements */
    pst_dtype x_type, bias_type;
    const void *w; /* the tensor's rows at hand, all their columns */
    const pst_weight_format *format;
    /* GPTQ, AWQ: of the whole tensor. index: groups in range, or NULL. Any address. */
    const void *scales, *zeros, *index;
    size_t outputs; /* of the tensor; GPTQ, AWQ: a multiple of 32/bits */
    size_t first_output, columns;
    size_t first_input, inputs; /* at hand; GPTQ: multiples of 32/bits */
    const void *bias;           /* columns, or NULL */
    float *y;                   /* rows x columns */
    size_t y_stride;            /* elements */
    size_t rows;
    bool begin, accumulate;
} pst_cpu_transposed;

/* Attention of consecutive rows of one sequence with one key/value head, or with some of the heads that share it (see
 * pst_attention of device/device.h). */
typedef struct pst_cpu_attention {
    const float *q;    /* rows x group x key_dim, row r at q + r * q_stride */
    size_t q_stride;   /* elements */
    void *out;         /* rows x group x value_dim, F32 or BF16 */
    size_t out_stride; /* elements */
    pst_dtype out_type;
    const pst_kv_layout *layout;
    void *const
        *blocks; /* blocks[p / PST_KV_BLOCK] + block_offset holds position p; those that no row sees may be anything */
    uint64_t block_offset;
    uint32_t kv_head;
    uint32_t rows, group;
    uint32_t first_position; /* of row 0 */
    uint32_t window;         /* 0: all */
    const float *alibi;      /* `group` slopes, or NULL: score += slope * (key position - query position) */
    float scale;
    float *scratch; /* pst_cpu_attention_scratch_floats */
} pst_cpu_attention;

/* Floats of scratch for a block of `queries` = rows * group. */
size_t pst_cpu_attention_scratch_floats(size_t queries, const pst_kv_layout *layout);

typedef struct pst_cpu_kernels {
    const char *name;

    /* y = w: F32, F16 or BF16 to F32. */
    void (*convert)(const void *w, pst_dtype type, float *y, size_t count);
    /* One row: y = x / sqrt(mean(x^2) + eps) * w. y F32 or BF16, may be x. */
    void (*rms_norm)(const float *x, const void *w, pst_dtype w_type, float eps, void *y, pst_dtype y_type,
                     size_t count);
    /* One row: y = (x - mean(x)) / sqrt(variance(x) + eps) * w + b; w or b NULL: without. y F32 or BF16, may be x. */
    void (*layer_norm)(const float *x, const void *w, pst_dtype w_type, const void *b, pst_dtype b_type, float eps,
                       void *y, pst_dtype y_type, size_t count);
    void (*matmul)(const pst_cpu_matmul *job);
    void (*matmul_transposed)(const pst_cpu_transposed *job);
    /* One row: rotates the pairs (i, i + rotary/2) of each head, or (2i, 2i + 1) if interleaved; elements from `rotary` on
     * stay. table: rotary/2 cosines, then rotary/2 sines. */
    void (*rope)(float *x, uint32_t heads, uint32_t head_dim, uint32_t rotary, bool interleaved, const float *table);
    /* A row of the cache (cpu/kv.h): F32, F16 to nearest even (beyond +-65504 held there), Q8 or Q4. */
    void (*kv_store)(const float *x, void *y, pst_kv_type type, size_t count);
    void (*attention)(const pst_cpu_attention *job);
    /* y = activation(gate) * up; y F32 (may then be gate or up) or BF16. */
    void (*gated)(pst_cpu_activation activation, const float *gate, const float *up, void *y, pst_dtype y_type,
                  size_t count);
    /* y = activation(x); y F32 (may be x) or BF16. */
    void (*activate)(pst_cpu_activation activation, const float *x, void *y, pst_dtype y_type, size_t count);
    /* log(sum(exp(factor * x))) in float64; factor > 0. */
    double (*log_sum_exp)(const float *x, size_t count, double factor);
    /* Columns first..first+count-1 of a GROUPED row of `columns`, as f32. All sets give the same numbers. */
    void (*dequantize)(const void *row, const pst_weight_format *format, size_t columns, size_t first, size_t count,
                       float *y);
    /* The same of an FP8_BLOCKS row; scales: the first one of its row of blocks. */
    void (*dequantize_blocks)(const void *row, const pst_weight_format *format, const void *scales, size_t first,
                              size_t count, float *y);
    /* pst_cpu_quantize_row of quantize.h. All sets give the same bytes. */
    int (*quantize)(const void *w, pst_dtype type, size_t columns, const pst_weight_format *format, void *out);
} pst_cpu_kernels;

/* The named set ("avx512bf16", "avx512", "avx2", "portable") or, for NULL, the best one. NULL when there is none of
 * that name or this processor or its operating system cannot run it. Static storage. */
const pst_cpu_kernels *pst_cpu_select(const char *name);
/* The sets that run here, best first: index 0, 1, ... until NULL. */
const pst_cpu_kernels *pst_cpu_available(size_t index);

#endif
