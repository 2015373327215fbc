/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Matrix products on rows of codes: GROUPED and FP8_BLOCKS. A panel of a few rows of weights by one block of k is turned into
 * plain weights beside the core, then the tiles of matmul.h take it for all rows of x at hand. So an output is the same
 * sequence of operations as with plain weights, wherever the product is cut.
 *
 * With one tile of rows, the panel is as wide as a tile and stays in the first level cache, and every weight is made plain
 * once for a single use; with more rows a wider panel, in the second level cache, saves loading x again and again.
 */
#ifndef PST_CPU_TEMPLATE_STORED_H
#define PST_CPU_TEMPLATE_STORED_H

#define PANEL_COLUMNS 32 /* of the wider panel: 130 KiB of stack */

/* Rows of codes, and what the next pass wants of them. */
typedef struct stored_pass {
    const pst_cpu_matmul *job;
    product how; /* PRODUCT_DOT or PRODUCT_F32: panels of bf16 or f32 */
    size_t row_bytes;
    size_t k0, k;
    const char *next; /* rows of the next pass */
    size_t next_rows, next_k0;
} stored_pass;

/* Lines of a run of codes of the row at `row`, from column k0 on, and of its scales. Prefetching faults on no address. */
static ALWAYS_INLINE void fetch_codes(const stored_pass *s, const char *row)
{
    const pst_weight_format *format = s->job->format;
    const size_t shift = format->layout == PST_WEIGHT_GROUPED && format->bits == 4 ? 1 : 0;
    const size_t k = smaller(s->k, s->job->k - s->next_k0);
    for (size_t i = 0; i < k >> shift; i += 64)
        vf_prefetch(row + (s->next_k0 >> shift) + i);
    if (format->layout == PST_WEIGHT_GROUPED) {
        const size_t bytes = format->symmetric ? 2 : 4;
        const char *scales = row + grouped_code_bytes(format, s->job->k) + s->next_k0 / format->group * bytes;
        for (size_t i = 0; i < k / format->group * bytes; i += 64)
            vf_prefetch(scales + i);
    }
}

/* One row's run of weights to y; `column` counts from job->w. */
static ALWAYS_INLINE void make_plain(const stored_pass *s, bool bf16, size_t column, char *y)
{
    const pst_cpu_matmul *job = s->job;
    const pst_weight_format *format = job->format;
    const char *row = (const char *)job->w + column * s->row_bytes;
    if (format->layout == PST_WEIGHT_FP8_BLOCKS) {
        const size_t per_row = (job->k + format->block_columns - 1) / format->block_columns;
        const char *scales = (const char *)job->scales +
                             (job->w_row + column) / format->block_rows * per_row * element_bytes(format->scale_type);
        dequantize_blocks(bf16, row, format, scales, s->k0, s->k, y);
    } else if (format->bits == 4) {
        dequantize_grouped(bf16, 4, row, format, job->k, s->k0, s->k, y);
    } else {
        dequantize_grouped(bf16, 8, row, format, job->k, s->k0, s->k, y);
    }
}

/* `columns` rows of weights from `column` on, the first of them row `place` of the pass. */
static void make_panel(const stored_pass *s, size_t column, size_t columns, size_t place, char *panel)
{
    for (size_t c = 0; c < columns; c++, panel += PACKED_STEP) {
        if (place + c < s->next_rows)
            fetch_codes(s, s->next + (place + c) * s->row_bytes);
#if PST_CPU_DOT
        if (s->how == PRODUCT_DOT) {
            make_plain(s, true, column + c, panel);
            continue;
        }
#endif
        make_plain(s, false, column + c, panel);
    }
}

/* One k block of a block: sums grow by it. */
static void stored_block_pass(const stored_pass *s, const y_block *b, float *sums)
{
    _Alignas(64) char packed[VF_TILE_ROWS * PACKED_STEP];
    _Alignas(64) char panel[PANEL_COLUMNS * PACKED_STEP];
    const pst_cpu_matmul *job = s->job;
    const size_t x_bytes = element_bytes(job->x_type);
    const bool as_is = x_as_is(job, s->how);
    const size_t tile_count = (b->rows + VF_TILE_ROWS - 1) / VF_TILE_ROWS;
    const size_t width = tile_count == 1 ? TILE_COLUMNS : PANEL_COLUMNS;
    if (!as_is && tile_count == 1)
        pack_rows(job, s->how, b->row, b->rows, s->k0, s->k, packed);
    for (size_t column = 0; column < b->columns; column += width) {
        const size_t columns = smaller(width, b->columns - column);
        make_panel(s, b->column + column, columns, column, panel);
        for (size_t i = 0, row = 0, rows; i < tile_count; i++, row += rows) {
            rows = (b->rows - row) / (tile_count - i);
            tile_job tile = {
                .x = as_is ? (const char *)job->x + ((b->row + row) * job->x_stride + s->k0) * x_bytes : packed,
                .x_step = as_is ? job->x_stride * x_bytes : PACKED_STEP,
                .w = panel,
                .w_step = PACKED_STEP,
                .k = s->k,
                .sums = sums + row * CHUNK_COLUMNS + column,
                .sums_step = CHUNK_COLUMNS,
            };
            if (!as_is && tile_count > 1)
                pack_rows(job, s->how, b->row + row, rows, s->k0, s->k, packed);
            run_tiles(tiles[s->how][rows - 1], &tile, columns);
        }
    }
}

static void stored_block(stored_pass *s, const y_block *b, const char *next_w, size_t next_columns)
{
    _Alignas(64) float sums[GROUP_ROWS * CHUNK_COLUMNS];
    const pst_cpu_matmul *job = s->job;
    const size_t k_block = s->how == PRODUCT_F32 ? K_BLOCK : K_BLOCK_DOT;
    memset(sums, 0, b->rows * CHUNK_COLUMNS * sizeof *sums);
    for (size_t k0 = 0; k0 < job->k; k0 += k_block) {
        const bool last = job->k - k0 <= k_block;
        s->k0 = k0;
        s->k = last ? job->k - k0 : k_block;
        s->next = last ? next_w : (const char *)job->w + b->column * s->row_bytes;
        s->next_rows = last ? next_columns : b->columns;
        s->next_k0 = last ? 0 : k0 + k_block;
        stored_block_pass(s, b, sums);
    }
    for (size_t r = 0; r < b->rows; r++)
        finish_row(job, sums + r * CHUNK_COLUMNS, b->row + r, b->column, b->columns);
}

static void matmul_stored(const pst_cpu_matmul *job)
{
    stored_pass s = {.job = job, .how = PRODUCT_F32, .row_bytes = pst_weight_row_bytes(job->format, job->k)};
    const size_t groups = (job->rows + GROUP_ROWS - 1) / GROUP_ROWS;
    y_block b;
#if PST_CPU_DOT
    if (job->x_type == PST_BF16)
        s.how = PRODUCT_DOT;
#endif
    for (b.column = 0; b.column < job->columns; b.column += CHUNK_COLUMNS) {
        const size_t left = job->columns - b.column;
        const char *w = (const char *)job->w + b.column * s.row_bytes;
        b.columns = smaller(left, CHUNK_COLUMNS);
        b.row = 0;
        for (size_t i = 0; i < groups; i++, b.row += b.rows) {
            b.rows = (job->rows - b.row) / (groups - i);
            if (i + 1 < groups)
                stored_block(&s, &b, w, b.columns);
            else if (left > CHUNK_COLUMNS)
                stored_block(&s, &b, w + CHUNK_COLUMNS * s.row_bytes, smaller(left - CHUNK_COLUMNS, CHUNK_COLUMNS));
            else
                stored_block(&s, &b, job->next_w, job->next_w != NULL ? b.columns : 0);
        }
    }
}

static void kernel_matmul(const pst_cpu_matmul *job)
{
    if (job->format == NULL || job->format->layout == PST_WEIGHT_PLAIN)
        matmul_plain(job);
    else
        matmul_stored(job);
}

#endif
