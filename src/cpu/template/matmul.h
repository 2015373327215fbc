/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Matrix products on weights as they lie in the file: rows contiguous along k, so every result is a dot product.
 *
 * One dot product is always this sequence: k is cut into blocks of fixed length; within a block lane i sums the
 * products k = i, i + lanes, ... in rising order (with the bf16 instruction: pairs of products); the lanes are
 * summed by vf_sum4's tree; the blocks' sums are added in rising order. Tiles of several rows and columns only
 * share the loads. (The bf16 instruction takes denormal numbers as zero, as its definition says, whatever the
 * processor's mode.)
 *
 * The nest of loops, outside in: columns in chunks; rows in groups; blocks of k; tiles of rows; tiles of columns. A
 * tile's rows of x (up to 6 x 4 KiB of the k block) stay in the first level cache while the weights of chunk and k
 * block (64 x 4 KiB) pass by from the second, once per tile of rows. Meanwhile the tiles prefetch the next pass's
 * weights there from memory: with few rows, products are as slow as the memory, and only reads that never pause use
 * all of it.
 */
#ifndef PST_CPU_TEMPLATE_MATMUL_H
#define PST_CPU_TEMPLATE_MATMUL_H

#define TILE_COLUMNS  4
#define K_BLOCK       1024        /* elements of f32 x: 4 KiB a row */
#define K_BLOCK_DOT   2048        /* elements of bf16 x: 4 KiB a row */
#define PACKED_STEP   (4096 + 64) /* bytes from row to row of packed x: not all rows in the same cache sets */
#define GROUP_ROWS    96          /* rows of one group; their sums of a chunk are 24 KiB */
#define CHUNK_COLUMNS PST_CPU_MATMUL_COLUMNS

/* How the products are made: x widened to f32 times w of a type, or pairs of bf16. */
typedef enum product { PRODUCT_F32, PRODUCT_F16, PRODUCT_BF16, PRODUCT_DOT } product;

typedef struct tile_job {
    const char *x; /* rows x_step bytes apart, zeros to a whole vector past k */
    size_t x_step;
    const char *w; /* rows w_step bytes apart */
    size_t w_step;
    size_t k;
    float *sums; /* sums[r * sums_step + c] grow by the tile's */
    size_t sums_step;
    const char *ahead; /* rows of weights wanted later, w_step apart, to fetch into the second level cache */
} tile_job;

typedef void tile_function(const tile_job *job);

/* Lines of `rows` rows of weights wanted later. Prefetching faults on no address. */
static ALWAYS_INLINE void fetch_ahead(const int rows, const tile_job *job, size_t offset)
{
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++)
        vf_prefetch(job->ahead + (size_t)i * job->w_step + offset);
}

#if PST_CPU_DOT
#define DOT_LANES 32
static ALWAYS_INLINE vf dot_step(vf sum, const char *x, __m512i w)
{
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(x), (__m512bh)w);
}

static ALWAYS_INLINE void sum_dot(const int rows, const int columns, const int ahead, const tile_job *job,
                                  vf sums[][TILE_COLUMNS])
{
    const char *x = job->x, *w = job->w;
    const size_t x_step = job->x_step, w_step = job->w_step, whole = job->k & ~(size_t)(DOT_LANES - 1);
    for (size_t k = 0; k < whole; k += DOT_LANES) {
        __m512i weights[TILE_COLUMNS];
        fetch_ahead(ahead, job, 2 * k);
#pragma GCC unroll 4
        for (int c = 0; c < columns; c++)
            weights[c] = _mm512_loadu_si512(w + (size_t)c * w_step + 2 * k);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
#pragma GCC unroll 4
            for (int c = 0; c < columns; c++)
                sums[r][c] = dot_step(sums[r][c], x + (size_t)r * x_step + 2 * k, weights[c]);
        }
    }
    if (whole == job->k)
        return;
    const __mmask32 mask = (__mmask32)((1u << (job->k - whole)) - 1);
#pragma GCC unroll 4
    for (int c = 0; c < columns; c++) {
        __m512i weights = _mm512_maskz_loadu_epi16(mask, w + (size_t)c * w_step + 2 * whole);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
            sums[r][c] = dot_step(sums[r][c], x + (size_t)r * x_step + 2 * whole, weights);
    }
}
#endif

static ALWAYS_INLINE void sum_f32(const pst_dtype type, const int rows, const int columns, const int ahead,
                                  const tile_job *job, vf sums[][TILE_COLUMNS])
{
    const char *x = job->x, *w = job->w;
    const size_t x_step = job->x_step, w_step = job->w_step, whole = job->k & ~(size_t)(VF_LANES - 1);
    for (size_t k = 0; k < whole; k += VF_LANES) {
        /* x first: with 16 registers there is room for 12 sums, 3 rows of x and one vector of w. */
        vf inputs[VF_TILE_ROWS];
        fetch_ahead(ahead, job, k * element_bytes(type));
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
            inputs[r] = vf_load_f32(x + (size_t)r * x_step + 4 * k);
#pragma GCC unroll 4
        for (int c = 0; c < columns; c++) {
            vf weights = load_as_f32(type, w + (size_t)c * w_step, k);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++)
                sums[r][c] = vf_fma(inputs[r], weights, sums[r][c]);
        }
    }
    if (whole == job->k)
        return;
#pragma GCC unroll 4
    for (int c = 0; c < columns; c++) {
        vf weights = load_as_f32_n(type, w + (size_t)c * w_step, whole, job->k - whole);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
            sums[r][c] = vf_fma(vf_load_f32(x + (size_t)r * x_step + 4 * whole), weights, sums[r][c]);
    }
}

/* A tile of rows x columns dot products over one block of k. All but `job` are constants after inlining. */
static ALWAYS_INLINE void tile_of(const product how, const int rows, const int columns, const int ahead,
                                  const tile_job *job)
{
    vf sums[VF_TILE_ROWS][TILE_COLUMNS];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
#pragma GCC unroll 4
        for (int c = 0; c < columns; c++)
            sums[r][c] = vf_zero();
    }
#if PST_CPU_DOT
    if (how == PRODUCT_DOT)
        sum_dot(rows, columns, ahead, job, sums);
    else
#endif
        sum_f32(how == PRODUCT_F32   ? PST_F32
                : how == PRODUCT_F16 ? PST_F16
                                     : PST_BF16,
                rows, columns, ahead, job, sums);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
        float *out = job->sums + (size_t)r * job->sums_step;
        if (columns == TILE_COLUMNS)
            vf_four_store(out, vf_four_add(vf_four_load(out), vf_sum4(sums[r][0], sums[r][1], sums[r][2], sums[r][3])));
        else
            *out += vf_sum(sums[r][0]);
    }
}

#define TILE(how, rows)                                                                                                \
    static void tile_##how##_##rows##x1(const tile_job *job)                                                           \
    {                                                                                                                  \
        tile_of(PRODUCT_##how, rows, 1, 0, job);                                                                       \
    }                                                                                                                  \
    static void tile_##how##_##rows##x4(const tile_job *job)                                                           \
    {                                                                                                                  \
        tile_of(PRODUCT_##how, rows, 4, 0, job);                                                                       \
    }                                                                                                                  \
    static void tile_##how##_##rows##x4_1(const tile_job *job)                                                         \
    {                                                                                                                  \
        tile_of(PRODUCT_##how, rows, 4, 1, job);                                                                       \
    }                                                                                                                  \
    static void tile_##how##_##rows##x4_2(const tile_job *job)                                                         \
    {                                                                                                                  \
        tile_of(PRODUCT_##how, rows, 4, 2, job);                                                                       \
    }
#define TILE_ENTRY(how, rows)                                                                                          \
    {                                                                                                                  \
        tile_##how##_##rows##x1, tile_##how##_##rows##x4, tile_##how##_##rows##x4_1, tile_##how##_##rows##x4_2         \
    }

#if VF_TILE_ROWS == 6
#define TILES(how) TILE(how, 1) TILE(how, 2) TILE(how, 3) TILE(how, 4) TILE(how, 5) TILE(how, 6)
#define TILE_ENTRIES(how)                                                                                              \
    {                                                                                                                  \
        TILE_ENTRY(how, 1), TILE_ENTRY(how, 2), TILE_ENTRY(how, 3), TILE_ENTRY(how, 4), TILE_ENTRY(how, 5),            \
            TILE_ENTRY(how, 6)                                                                                         \
    }
#elif VF_TILE_ROWS == 3
#define TILES(how) TILE(how, 1) TILE(how, 2) TILE(how, 3)
#define TILE_ENTRIES(how)                                                                                              \
    {                                                                                                                  \
        TILE_ENTRY(how, 1), TILE_ENTRY(how, 2), TILE_ENTRY(how, 3)                                                     \
    }
#else
#define TILES(how) TILE(how, 1) TILE(how, 2)
#define TILE_ENTRIES(how)                                                                                              \
    {                                                                                                                  \
        TILE_ENTRY(how, 1), TILE_ENTRY(how, 2)                                                                         \
    }
#endif

TILES(F32)
TILES(F16)
TILES(BF16)
#if PST_CPU_DOT
TILES(DOT)
#endif

/* The variants of a tile: one column; four columns; four columns and one or two rows of something fetched ahead. */
enum { TILE_1, TILE_4, TILE_4_AHEAD_1, TILE_4_AHEAD_2, TILE_VARIANTS };

/* [product][rows - 1][variant] */
static tile_function *const tiles[][VF_TILE_ROWS][TILE_VARIANTS] = {
    TILE_ENTRIES(F32),
    TILE_ENTRIES(F16),
    TILE_ENTRIES(BF16),
#if PST_CPU_DOT
    TILE_ENTRIES(DOT),
#endif
};

/* Runs the tiles of a number of rows over `columns` columns of weights. job->w and job->sums are used up. */
static void run_tiles(tile_function *const variants[], tile_job *job, size_t columns)
{
    for (; columns >= TILE_COLUMNS; columns -= TILE_COLUMNS) {
        variants[TILE_4](job);
        job->w += TILE_COLUMNS * job->w_step;
        job->sums += TILE_COLUMNS;
    }
    for (; columns > 0; columns--) {
        variants[TILE_1](job);
        job->w += job->w_step;
        job->sums++;
    }
}

/* Weights of a later pass, fetched piece by piece, a k block of a row at a time, while this pass computes. */
typedef struct fetch {
    const char *w;
    size_t rows, row_bytes; /* rows left to fetch */
    size_t rows_per_tile;   /* 1 or 2 */
} fetch;

/* run_tiles with pieces of `later` fetched by the tiles. */
static void run_tiles_fetching(tile_function *const variants[], tile_job *job, size_t columns, fetch *later)
{
    for (; columns >= TILE_COLUMNS && later->rows >= later->rows_per_tile; columns -= TILE_COLUMNS) {
        job->ahead = later->w;
        later->w += later->rows_per_tile * later->row_bytes;
        later->rows -= later->rows_per_tile;
        variants[later->rows_per_tile == 1 ? TILE_4_AHEAD_1 : TILE_4_AHEAD_2](job);
        job->w += TILE_COLUMNS * job->w_step;
        job->sums += TILE_COLUMNS;
    }
    run_tiles(variants, job, columns);
}

/* Copies k elements of each row of x from k0 on to the packed buffer, widened where the product wants f32. */
static void pack_rows(const pst_cpu_matmul *job, product how, size_t row, size_t rows, size_t k0, size_t k,
                      char *packed)
{
    const size_t x_bytes = element_bytes(job->x_type);
    for (size_t r = 0; r < rows; r++, packed += PACKED_STEP) {
        const char *x = (const char *)job->x + ((row + r) * job->x_stride + k0) * x_bytes;
        if (how == PRODUCT_DOT) {
            memcpy(packed, x, k * 2);
            memset(packed + k * 2, 0, (64 - k * 2 % 64) % 64);
        } else {
            kernel_convert(x, job->x_type, (float *)(void *)packed, k);
            memset(packed + k * 4, 0, (64 - k * 4 % 64) % 64);
        }
    }
}

/* Whether the tiles can read x where it is: right type, whole vectors, whole cache lines. */
static bool x_as_is(const pst_cpu_matmul *job, product how)
{
    const size_t bytes = element_bytes(job->x_type);
    return (how == PRODUCT_DOT || job->x_type == PST_F32) && job->k * bytes % 64 == 0 &&
           (job->rows == 1 || job->x_stride * bytes % 64 == 0) && (uintptr_t)job->x % 64 == 0;
}

/* y = sums + bias + old y for one row of a chunk. */
static void finish_row(const pst_cpu_matmul *job, const float *sums, size_t row, size_t column, size_t columns)
{
    float *y = job->y + row * job->y_stride + column;
    for (size_t c = 0; c < columns; c += VF_LANES) {
        size_t n = columns - c;
        bool whole = n >= VF_LANES;
        vf a = vf_load_f32(sums + c); /* rows of sums are whole vectors */
        if (job->bias != NULL) {
            const char *bias = job->bias;
            a = vf_add(a, whole ? load_as_f32(job->bias_type, bias, column + c)
                                : load_as_f32_n(job->bias_type, bias, column + c, n));
        }
        if (job->accumulate)
            a = vf_add(a, whole ? vf_load_f32(y + c) : vf_load_f32_n(y + c, n));
        if (whole)
            vf_store_f32(y + c, a);
        else
            vf_store_f32_n(y + c, a, n);
    }
}

static product product_of(const pst_cpu_matmul *job)
{
#if PST_CPU_DOT
    if (job->x_type == PST_BF16 && job->w_type == PST_BF16)
        return PRODUCT_DOT;
#endif
    return job->w_type == PST_F32 ? PRODUCT_F32 : job->w_type == PST_F16 ? PRODUCT_F16 : PRODUCT_BF16;
}

/* A block of at most GROUP_ROWS rows and CHUNK_COLUMNS columns, which begins at (row, column). */
typedef struct y_block {
    size_t row, rows, column, columns;
} y_block;

/* One k block of a block, which begins at k0: sums grow by it. */
static void matmul_pass(const pst_cpu_matmul *job, product how, const y_block *b, size_t k0, size_t k, float *sums,
                        fetch *later)
{
    _Alignas(64) char packed[VF_TILE_ROWS * PACKED_STEP];
    const size_t w_bytes = element_bytes(job->w_type), x_bytes = element_bytes(job->x_type);
    const bool as_is = x_as_is(job, how);
    const size_t tile_count = (b->rows + VF_TILE_ROWS - 1) / VF_TILE_ROWS;
    /* Tiles of nearly equal height: 8 rows are 4 + 4, not 6 + 2. */
    for (size_t i = 0, row = 0, rows; i < tile_count; i++, row += rows) {
        rows = (b->rows - row) / (tile_count - i);
        tile_job tile = {
            .x = as_is ? (const char *)job->x + ((b->row + row) * job->x_stride + k0) * x_bytes : packed,
            .x_step = as_is ? job->x_stride * x_bytes : PACKED_STEP,
            .w = (const char *)job->w + (b->column * job->k + k0) * w_bytes,
            .w_step = job->k * w_bytes,
            .k = k,
            .sums = sums + row * CHUNK_COLUMNS,
            .sums_step = CHUNK_COLUMNS,
        };
        if (!as_is)
            pack_rows(job, how, b->row + row, rows, k0, k, packed);
        run_tiles_fetching(tiles[how][rows - 1], &tile, b->columns, later);
    }
}

static void matmul_block(const pst_cpu_matmul *job, product how, const y_block *b, const char *next_w,
                         size_t next_columns)
{
    _Alignas(64) float sums[GROUP_ROWS * CHUNK_COLUMNS];
    const size_t w_bytes = element_bytes(job->w_type), k_block = how == PRODUCT_DOT ? K_BLOCK_DOT : K_BLOCK;
    /* One row whose steps take a whole cache line of weights each: the processor reads far enough ahead by itself, and
     * prefetching costs some 8 % (Zen 5). */
    const bool fetching = b->rows > 1 || (how != PRODUCT_DOT && w_bytes * VF_LANES < 64);
    memset(sums, 0, b->rows * CHUNK_COLUMNS * sizeof *sums);
    for (size_t k0 = 0; k0 < job->k; k0 += k_block) {
        const bool last = job->k - k0 <= k_block;
        /* The next pass: the next k block of these columns, or the first one of the columns to come. */
        fetch later = {
            .w = last ? next_w : (const char *)job->w + (b->column * job->k + k0 + k_block) * w_bytes,
            .rows = !fetching ? 0
                    : last    ? next_columns
                              : b->columns,
            .row_bytes = job->k * w_bytes,
            .rows_per_tile = b->rows <= 3 * VF_TILE_ROWS ? 2 : 1,
        };
        matmul_pass(job, how, b, k0, last ? job->k - k0 : k_block, sums, &later);
    }
    for (size_t r = 0; r < b->rows; r++)
        finish_row(job, sums + r * CHUNK_COLUMNS, b->row + r, b->column, b->columns);
}

static void matmul_plain(const pst_cpu_matmul *job)
{
    const product how = product_of(job);
    const size_t row_bytes = job->k * element_bytes(job->w_type);
    const size_t groups = (job->rows + GROUP_ROWS - 1) / GROUP_ROWS;
    y_block b;
    for (b.column = 0; b.column < job->columns; b.column += CHUNK_COLUMNS) {
        size_t left = job->columns - b.column, next = 0;
        b.columns = left < CHUNK_COLUMNS ? left : CHUNK_COLUMNS;
        const char *next_w =
            left > CHUNK_COLUMNS ? (const char *)job->w + (b.column + CHUNK_COLUMNS) * row_bytes : job->next_w;
        if (next_w != NULL)
            next = left > CHUNK_COLUMNS && left < 2 * CHUNK_COLUMNS ? left - CHUNK_COLUMNS : b.columns;
        b.row = 0;
        for (size_t i = 0; i < groups; i++, b.row += b.rows) {
            b.rows = (job->rows - b.row) / (groups - i);
            if (i + 1 < groups)
                matmul_block(job, how, &b, (const char *)job->w + b.column * row_bytes, b.columns);
            else
                matmul_block(job, how, &b, next_w, next);
        }
    }
}

#endif
