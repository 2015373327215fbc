/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The interface of a device: memory, streams and the operators that the model families are made of. The host's processor
 * fills this table (src/device/host*.c), and so does an accelerator, in a plugin: a shared library that is loaded at run
 * time and exports one symbol, PST_DEVICE_PLUGIN_SYMBOL.
 *
 * Numbers. Activations that flow between stages (the residual stream) are f32. The inputs of matrix products are of the
 * request's compute type (f32 or bf16), weights as they lie in the file (f32, f16, bf16, FP8 blocks, groups of 4 and 8
 * bits), sums f32.
 *
 * Invariance. For every operator, the bits of one output row depend on that row's inputs alone and on what the request and
 * the checkpoint fix (types, widths of whole matrices): not on where a weight lay, in which cuts of rows a matrix arrives,
 * how many other sequences are in the pass, how many of a prompt's rows, or how many threads share the work. So an operator
 * may choose its algorithm by the width of x, by formats and by the rows' phase, but not by the rows of `w` at hand nor by
 * those of x. What is not finite in one row stays out of all others.
 *
 * Phases. A row of a pass is of its request's prompt (of a text that is scored), or of a token that was generated and is fed
 * back: a fact of the request, never of how its rows were dealt to passes. Products and attention are told, rows of generated
 * tokens first, so that a device may compute the two by different kernels with different bits: a prompt's rows come in
 * numbers, generated tokens one at a time. The last row of a prompt is computed as the others, even when it comes alone. A
 * device that makes such a difference says so (`phases_change_bits`): then what a generated token left in the cache does not
 * stand for a prompt's.
 *
 * Memory. Every pointer of a job's operands is memory that the device can use: from `allocate`, either kind, and so are arrays
 * of numbers (positions, segments, tables of blocks), which the caller keeps unchanged until the work that uses them is
 * done. The job's structs themselves are read during the call only.
 *
 * Order. Operators are carried out one after the other, as if on one stream (the compute stream, NULL below). They may
 * return before they are carried out; copies likewise, each in order of its stream. `synchronize` waits, and reports what
 * went wrong since. Between streams there is no order but that of events.
 *
 * Errors. Every function returns 0 or more, or an error code; nothing aborts. last_error says more, in one line, about the
 * last failure of a device. After a failed operator the device can still be synchronized and destroyed.
 *
 * Threads: a device belongs to one owner thread; its operators use the device's own parallelism inside.
 *
 * Versions. `version` changes when something here changes its meaning; a plugin of another version is refused. Otherwise
 * entries are only added at the end of the tables, whose struct_size says how far they go.
 */
#ifndef PENSTOCK_DEVICE_PLUGIN_H
#define PENSTOCK_DEVICE_PLUGIN_H

#include <stdbool.h>

#include "penstock/device.h"
#include "penstock/types.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PST_DEVICE_VERSION       3u
#define PST_DEVICE_PLUGIN_SYMBOL "pst_device_plugin_table"

/* ---- How weights are stored ---- */

/*
 * Kernels multiply with each of these as it lies in the file.
 *
 * PLAIN      rows of elements of `type` (F32, F16, BF16).
 * GROUPED    what `convert` writes: a tensor of U8, a row per output. A row is its codes, then for each group of `group`
 *            columns (the last one may be shorter) an F16 scale and, unless symmetric, an F16 minimum. Codes of 8 bits are
 *            bytes; of 4 bits, column 2i is in the low half of byte i, column 2i + 1 in the high half. Asymmetric:
 *            w = code * scale + minimum. Symmetric: w = (code - 2^(bits-1)) * scale. Rows carry their own scales, so that
 *            a row is whole wherever a matrix is cut.
 * FP8_BLOCKS rows of F8_E4M3; w = element * scale of its block of block_rows x block_columns; the scales are a matrix of
 *            their own, F32 or BF16 ("weight_scale_inv" of DeepSeek-V3's checkpoints).
 * GPTQ       a tensor of I32, [inputs * bits / 32][outputs]: element (j, n) holds 32/bits codes of output n, inputs from
 *            j * 32/bits on, the first in the lowest bits. w = (code - zero - 1) * scale ("gptq"; "gptq_v2": code - zero).
 *            scales F16 or BF16 [groups][outputs]; zeros I32 [groups][outputs * bits / 32], packed along the outputs;
 *            index I32 [inputs]: each input's group (absent: input / group).
 * AWQ        a tensor of I32, [inputs][outputs / 8], 4 bits, in the order of outputs 0 2 4 6 1 3 5 7 from the lowest bits
 *            on; zeros likewise [groups][outputs / 8]; scales F16 [groups][outputs]; w = (code - zero) * scale.
 *
 * PLAIN and GROUPED may be transposed: then a row of the tensor is an input, its columns are the outputs (GPT-2). GPTQ and
 * AWQ always are.
 */
typedef enum pst_weight_layout {
    PST_WEIGHT_PLAIN,
    PST_WEIGHT_GROUPED,
    PST_WEIGHT_FP8_BLOCKS,
    PST_WEIGHT_GPTQ,
    PST_WEIGHT_AWQ
} pst_weight_layout;

typedef struct pst_weight_format {
    pst_weight_layout layout;
    pst_dtype type;  /* PLAIN: of the elements */
    bool transposed; /* a row of the tensor is an input */
    uint32_t bits;   /* GROUPED, GPTQ, AWQ: 4 or 8 */
    uint32_t group;  /* GROUPED, GPTQ, AWQ: inputs (GROUPED: columns of the tensor) that share a scale; GROUPED: even */
    bool symmetric;  /* GROUPED: no minimum */
    bool zero_offset;                   /* GPTQ: stored zeros are one less than meant */
    uint32_t block_rows, block_columns; /* FP8_BLOCKS */
    pst_dtype scale_type;               /* FP8_BLOCKS: F32 or BF16; GPTQ, AWQ: F16 or BF16 */
} pst_weight_format;

/* ---- How keys and values are stored ---- */

/*
 * In blocks of PST_KV_BLOCK positions of one layer, each its own piece of memory. A block is the keys,
 * [kv_heads][PST_KV_BLOCK][key row], then the values likewise. A row is one head's key (or value) of one position, `dim`
 * elements:
 *
 * F32, F16   the elements.
 * Q8, Q4     as a row of asymmetric GROUPED weights in groups of PST_KV_GROUP elements, the last one
 *            possibly shorter: codes of 8 or 4 bits, then an F16 scale and an F16 minimum per group; element = code * scale +
 *            minimum, off by half a scale at most. Elements beyond what F16 holds are held at +-65504; a group with a NaN is
 *            all NaN.
 *
 * With `shared` values there is one head and no values of their own: a value is the first value_dim elements of its key
 * (latent attention, arXiv 2405.04434).
 */
enum { PST_KV_BLOCK = 64, PST_KV_GROUP = 64 };

typedef enum pst_kv_type { PST_KV_F32, PST_KV_F16, PST_KV_Q8, PST_KV_Q4 } pst_kv_type;

typedef struct pst_kv_layout {
    pst_kv_type type;
    uint32_t kv_heads, key_dim, value_dim;
    bool shared; /* kv_heads == 1, value_dim <= key_dim */
} pst_kv_layout;

/* ---- Operands ---- */

typedef struct pst_device pst_device;

/* A matrix of activations: `rows` rows of `columns` elements, `stride` elements from row to row. type: F32 or BF16. The
 * data is aligned to the element; rows of buffers that the library makes begin at multiples of 64 bytes. */
typedef struct pst_matrix {
    void *data;
    pst_dtype type;
    size_t rows, columns, stride;
} pst_matrix;

/* A vector or matrix of a checkpoint as it lies in memory: rows x columns, rows contiguous, any byte alignment (on an
 * accelerator the first row that is at hand begins at a multiple of 256 bytes). */
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
 * product is a run of calls, each with the rows that follow those of the call before, from row 0 to the last; y has the sums
 * after the last one. Between the calls nothing reads or writes y, and no other product of a transposed format is computed, so that
 * a device may keep what it needs of one: sums of fixed chunks of inputs that a cut went through, for the bits do not depend on the
 * cut. A run may be given up; the next one begins with row 0. w.columns and bias are the outputs, also where a word of the
 * tensor holds several (AWQ); x.columns are all inputs. Order: (old y if `accumulate`) + bias, then the inputs' sums. An
 * index that names a group which is not there is PST_E_FORMAT, of a call of the run or of the next `synchronize`.
 *
 * The last prompt_rows rows of x are of prompts: they may have other bits than the same rows would have before them. Zero, and
 * so one way of computing for all rows, where rows of both kinds have to agree, or are not told apart: with the rows that an
 * expert computes (which matmul_grouped may get instead) and those whose logits are wanted. */
typedef struct pst_matmul {
    pst_matrix x;
    pst_weight w, bias;
    pst_matrix y;
    size_t first_column;
    bool accumulate;
    size_t prompt_rows;
} pst_matmul;

/* Products of every head with a matrix of its own, all of them rows of one: head h's are `head_rows` rows from first + h * step
 * on of w, which is whole and not transposed (PLAIN, GROUPED or FP8_BLOCKS).
 *
 *   y[r][h * y_step + n] = sum over k of x[r][h * x_step + k] * w_h[n][k]             or, if `rows_are_inputs`,
 *   y[r][h * y_step + k] = sum over n of x[r][h * x_step + n] * w_h[n][k]             n < head_rows, k < w.columns
 *
 * x is F32 and counts as that in any product: inputs are not rounded. y is F32, or BF16 (to nearest even). Their columns reach
 * from head 0's first element to the last head's last one; what lies between heads is not touched. prompt_rows: as in
 * pst_matmul. */
typedef struct pst_heads_matmul {
    pst_matrix x, y;
    size_t x_step, y_step; /* elements from head to head */
    pst_weight w;
    size_t first, step, head_rows;
    uint32_t heads;
    bool rows_are_inputs;
    size_t prompt_rows;
} pst_heads_matmul;

typedef enum pst_activation {
    PST_ACT_SILU,
    PST_ACT_GELU,
    PST_ACT_GELU_TANH,
    PST_ACT_RELU,
    PST_ACT_IDENTITY /* x itself, in the type of the result */
} pst_activation;

/* Elements of x (F32), block by block: y[r][b][c] = x[r][b][c] for rows x blocks x columns; element (r, b, c) is at
 * r * row_stride + b * block_stride + c. y: F32, or BF16 (to nearest even). */
typedef struct pst_block_copy {
    const float *x;
    size_t x_row_stride, x_block_stride; /* elements */
    void *y;
    pst_dtype y_type;
    size_t y_row_stride, y_block_stride;
    size_t rows, blocks, columns;
} pst_block_copy;

/* Consecutive rows of one sequence, of one phase: row first_row + i has position first_position + i. Keys and values are in blocks of
 * PST_KV_BLOCK positions: blocks[p / PST_KV_BLOCK] + the job's block_offset is the memory of position p. */
typedef struct pst_segment {
    size_t first_row, rows;
    uint32_t first_position;
    void *const *blocks; /* up to that of the last row; those below every row's window may be anything */
} pst_segment;

/* Segments of a pass in the device's memory, and what the host knows of them: enough to size the work. The operands' rows
 * are the pass's from first_row on, `rows` of them: what of the segments lies outside does not count. */
typedef struct pst_segments {
    const pst_segment *items; /* rising rows; `blocks` of each in the device's memory, too */
    size_t count;
    size_t first_row, rows;
    size_t max_rows;        /* of one segment */
    uint32_t max_positions; /* the largest first_position + rows, or more: no bit depends on it */
    /* The first `generated` segments are of generated tokens, all others of prompts; the same two of these alone. */
    size_t generated, generated_max_rows;
    uint32_t generated_max_positions;
} pst_segments;

/* Stores rows of k and v (F32, rows x kv_heads*key_dim and kv_heads*value_dim) at their positions of their sequences'
 * blocks. v.data is NULL with shared values. */
typedef struct pst_kv_store {
    pst_matrix k, v;
    pst_segments segments;
    uint64_t block_offset; /* bytes added to every pointer of the tables of blocks (the layer) */
    pst_kv_layout layout;
} pst_kv_store;

/* Causal attention of q rows over the stored keys 0..position of their sequence (their own included: stored before the call).
 * out[r][h*value_dim + d] = sum_j softmax_j(scale * q[r][h] . k[h / group][j] + slope[h] * (j - position)) * v[h / group][j][d],
 * group = heads / kv_heads; with window > 0 only keys j with position - j < window. q: F32, rows x heads*key_dim; out: rows x
 * heads*value_dim, F32 or BF16. */
typedef struct pst_attention {
    pst_matrix q, out;
    pst_segments segments;
    uint64_t block_offset; /* as in pst_kv_store */
    uint32_t heads;
    pst_kv_layout layout;
    uint32_t window;    /* 0: all */
    const float *alibi; /* `heads` slopes; NULL: none */
    float scale;
} pst_attention;

/* How a row's experts are chosen from the router's logits. */
typedef struct pst_routing {
    bool sigmoid;                /* scores are sigmoids of the logits; else their softmax over all experts */
    bool normalize;              /* the chosen scores are divided by their sum */
    double normalize_epsilon;    /* added to that sum */
    uint32_t groups, top_groups; /* only experts of the top_groups best groups count; 1 and 1: all */
    uint32_t group_scores;       /* a group's score is the sum of this many of its best corrected scores: 1 or 2 */
    bool corrected;              /* a correction is added to the scores for choosing, not for weighing */
    double scale;                /* of the weights */
} pst_routing;

/* Chooses the experts of every row and sorts rows by expert. Of equal scores the lower expert's counts as the better one; a
 * score that is not a number is never better. Whatever the logits are, a row's experts are distinct and valid. */
typedef struct pst_route_job {
    pst_matrix logits;       /* rows x experts, F32 */
    const float *correction; /* by expert; NULL: none */
    pst_routing routing;
    uint32_t per_row; /* experts that each row chooses */
    /* Results: */
    uint32_t *chosen;    /* [row][per_row], rising */
    float *weights;      /* [row][per_row]: what each counts */
    uint32_t *first;     /* [experts + 1]: where an expert's rows begin in `order` */
    uint32_t *order;     /* [rows * per_row]: rows of expert 0, rising, then those of expert 1, ... */
    float *order_weight; /* what the expert counts in each of these */
} pst_route_job;

/* Products of several matrices of one shape and format, each with rows of its own: for g < groups and r in
 * first[g]..first[g + 1]-1: y[r] = x[r] * w[g]^T. Rows of matrices that are absent are left as they are. The bits are those
 * of matmul with no prompt_rows, whatever the rows are: they are sorted by expert, not by phase. Not for transposed formats. */
typedef struct pst_grouped_matmul {
    pst_matrix x, y;           /* all rows that `first` speaks of */
    const pst_weight *weights; /* `groups` of them, whole matrices; the array in the host's memory */
    const uint32_t *first;     /* groups + 1, in the device's memory */
    uint32_t groups;
} pst_grouped_matmul;

/* ---- The device ---- */

typedef enum pst_device_memory {
    PST_MEMORY_DEVICE, /* where operators work fastest; the host cannot touch it */
    PST_MEMORY_HOST /* the host's, which the device copies from and to at the link's full speed, and may also use itself */
} pst_device_memory;

typedef struct pst_device_stream pst_device_stream; /* NULL: the compute stream */
typedef struct pst_device_event pst_device_event;
typedef struct pst_device_recording pst_device_recording;

/* Entries are never NULL. */
typedef struct pst_device_ops {
    uint32_t struct_size;    /* sizeof(pst_device_ops) when the device was built */
    const char *name;        /* "host", "cuda" */
    bool is_host;            /* its memory is the host's own, its operators are done when they return; no plugin's is */
    bool phases_change_bits; /* see Phases above */

    /* The line about the last failure ("" if there was none). Valid until the next call. */
    const char *(*last_error)(pst_device *device);
    void (*destroy)(
        pst_device *device); /* waits for what runs; all memory, streams and events were given back before */

    /* Memory: aligned to 256 bytes; not cleared. `bytes` > 0. */
    int (*allocate)(pst_device *device, pst_device_memory kind, uint64_t bytes, void **out);
    void (*release)(pst_device *device, pst_device_memory kind, void *memory, uint64_t bytes); /* NULL is fine */
    /* Makes the caller's memory as good as PST_MEMORY_HOST until it is unregistered. By pages: no two pieces share one. */
    int (*register_host)(pst_device *device, void *memory, uint64_t bytes);
    void (*unregister_host)(pst_device *device, void *memory);
    /* Of PST_MEMORY_DEVICE. */
    int (*memory_info)(pst_device *device, uint64_t *free_bytes, uint64_t *total_bytes);

    /* Streams and events. An event that was never recorded is done. */
    int (*stream_create)(pst_device *device, pst_device_stream **out);
    void (*stream_destroy)(pst_device *device, pst_device_stream *stream); /* waits for it; NULL is fine */
    int (*event_create)(pst_device *device, pst_device_event **out);
    void (*event_destroy)(pst_device *device, pst_device_event *event); /* NULL is fine */
    int (*event_record)(pst_device *device, pst_device_event *event, pst_device_stream *stream);
    int (*stream_wait)(pst_device *device, pst_device_stream *stream, pst_device_event *event); /* the stream waits */
    int (*event_wait)(pst_device *device, pst_device_event *event);                             /* the caller waits */
    int (*event_query)(pst_device *device, pst_device_event *event); /* 0: done; 1: not yet */
    int (*synchronize)(pst_device *device, pst_device_stream *stream);

    /* Between any two of: memory of either kind, registered memory, and other memory of the host (then it is slow and waits). */
    int (*copy)(pst_device *device, pst_device_stream *stream, void *to, const void *from, uint64_t bytes);
    int (*fill)(pst_device *device, pst_device_stream *stream, void *to, int byte, uint64_t bytes);

    /* Weight rows to f32: y[r] = w[r]; y F32. PLAIN, GROUPED or FP8_BLOCKS, not transposed. */
    int (*convert)(pst_device *device, const pst_weight *w, const pst_matrix *y);
    /* y[r] = x[r] / sqrt(mean(x[r]^2) + eps) * w; x F32; y F32 or BF16, may be x itself; w 1 x columns. */
    int (*rms_norm)(pst_device *device, const pst_matrix *x, const pst_weight *w, float eps, const pst_matrix *y);
    /* y[r] = (x[r] - mean(x[r])) / sqrt(variance(x[r]) + eps) * w + b; the variance is divided by the count; x F32; y F32 or
     * BF16, may be x itself; w, b 1 x columns, either may be absent. */
    int (*layer_norm)(pst_device *device, const pst_matrix *x, const pst_weight *w, const pst_weight *b, float eps,
                      const pst_matrix *y);
    int (*matmul)(pst_device *device, const pst_matmul *job);
    int (*matmul_grouped)(pst_device *device, const pst_grouped_matmul *job);
    /* y = activation(x), elementwise; x F32; y F32 (may be x) or BF16. */
    int (*activate)(pst_device *device, pst_activation activation, const pst_matrix *x, const pst_matrix *y);
    /* y = activation(gate) * up, elementwise; gate, up F32; y F32 (may then be gate or up) or BF16. */
    int (*gated)(pst_device *device, pst_activation activation, const pst_matrix *gate, const pst_matrix *up,
                 const pst_matrix *y);
    /* Rotates in place pairs (i, i + rotary/2) of each head of x (F32, rows x heads*head_dim), or (2i, 2i + 1) if
     * interleaved, by the angle of the row's position: table[position] holds rotary/2 cosines, then rotary/2 sines.
     * The elements from `rotary` on stay. x may begin inside its heads: then rotary elements from there turn.
     * positions[rows]. */
    int (*rope)(pst_device *device, const pst_matrix *x, uint32_t heads, uint32_t head_dim, uint32_t rotary,
                bool interleaved, const float *table, const uint32_t *positions);
    int (*copy_blocks)(pst_device *device, const pst_block_copy *job);
    /* y[i] = x[rows[i]]: rows of one type, gathered; y.rows of them. */
    int (*take_rows)(pst_device *device, const pst_matrix *x, const uint32_t *rows, const pst_matrix *y);
    /* y[rows[i]] += weights[i] * x[i] for x.rows rows; x, y F32; the rows are distinct. */
    int (*add_rows)(pst_device *device, const pst_matrix *x, const uint32_t *rows, const float *weights,
                    const pst_matrix *y);
    int (*kv_store)(pst_device *device, const pst_kv_store *job);
    int (*attention)(pst_device *device, const pst_attention *job);
    int (*route)(pst_device *device, const pst_route_job *job);
    /* out[r] = log(sum over n of exp(factors[r] * x[r][n])), in float64 from f32 x: the sum is right to 2^-24 of itself, and
     * largest * factor is added to its logarithm, so rounded to float64. NaN if an element is, else a largest element of +-infinity
     * itself. factors: above 0 and finite; NULL: ones. */
    int (*log_sum_exp)(pst_device *device, const pst_matrix *x, const double *factors, double *out);
    /* The `count` (at most x.columns, at most 1024) largest values of each row and their columns, falling, of equal ones the
     * lower column first; what is not a number counts as -infinity. values, columns: [rows][count]. */
    int (*top)(pst_device *device, const pst_matrix *x, uint32_t count, float *values, uint32_t *columns);

    /* Recordings: a run of calls that can be had again as one, where the host would take longer to make the calls than the device
     * to carry them out. From record_begin to record_end what is asked of the compute stream is noted and not carried out:
     * operators, and copy and fill within memory that the device can use. Everything that a call says is noted as it is then, numbers,
     * addresses, jobs and what they point to in the host's memory (formats, weights of grouped products); what the device reads of
     * its own memory, tables of segments and rows among it, it finds there when the recording is carried out. So operands have to stay
     * where they are as long as it lives. All other calls are out of place meanwhile: those that return a status say PST_E_USAGE; memory,
     * streams, events and recordings are not given back. An operator that would have to take memory for its own use, or to
     * wait, fails: it does not where one with the same sizes was carried out before.
     * record_begin: PST_E_UNSUPPORTED, as ever, of a device that does not record; nothing has begun then, nor after another failure. */
    int (*record_begin)(pst_device *device);
    /* Ends it, also where it fails. out NULL: drops what was noted. The caller gives *out back before the device. */
    int (*record_end)(pst_device *device, pst_device_recording **out);
    /* As if all its calls were made now; any number of times. 1: nothing was done, the device's own memory that it works with was moved
     * since; it has to be recorded anew. -ENOMEM: nothing was done; the calls themselves may still work. */
    int (*replay)(pst_device *device, pst_device_recording *recording);
    void (*recording_destroy)(pst_device *device, pst_device_recording *recording); /* waits; NULL is fine */

    /* An operator as those above. */
    int (*matmul_heads)(pst_device *device, const pst_heads_matmul *job);
} pst_device_ops;

/* Every device begins with its table. */
struct pst_device {
    const pst_device_ops *ops;
};

/* ---- The plugin ---- */

typedef struct pst_device_plugin {
    uint32_t version;     /* PST_DEVICE_VERSION */
    uint32_t struct_size; /* sizeof(pst_device_plugin) when it was built */
    const char *name;     /* "cuda" */
    /* How many devices there are; without a driver or a device PST_E_UNSUPPORTED, and err says why in one line. */
    int (*count)(uint32_t *out, pst_error *err);
    int (*describe)(uint32_t number, pst_device_info *out, pst_error *err); /* out->struct_size is set */
    /* The caller destroys *out with its table's `destroy`. */
    int (*open)(uint32_t number, pst_device **out, pst_error *err);
} pst_device_plugin;

/* What PST_DEVICE_PLUGIN_SYMBOL names. Static storage, valid while the plugin is loaded. */
typedef const pst_device_plugin *pst_device_plugin_table_function(void);

#ifdef __cplusplus
}
#endif
#endif
