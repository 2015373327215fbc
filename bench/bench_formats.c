/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Matrix products on weights as quantized checkpoints store them, each against our own product on bf16 weights of the same
 * shape (transposed layouts: on the transposed bf16 matrix). Both take turns within every repetition, the order
 * alternating. Prints one JSON document with every repetition.
 *
 *   bench_formats [--formats g4,g8,g4s,g8s,fp8,tg4,tg8,gptq4,gptq8,awq] [--rows 1,8,64,256] [--columns 4096] [--k 4096]
 *                 [--threads 1] [--repeat 7] [--milliseconds 60] [--weights 1] [--kernels NAME] [--x-type bf16|f32]
 *
 * g: grouped by 64, s: symmetric, t: transposed. --weights: so many matrices in turn; when they are larger together than
 * the caches, every product reads its weights from memory, as streamed weights would.
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/number.h"
#include "device/device.h"
#include "os/memory.h"
#include "os/thread.h"
#include "products.h"

typedef struct settings {
    bench_settings common;
    const char *formats;
} settings;

static const struct {
    const char *name;
    pst_weight_format format;
} known_formats[] = {
    {"g4", {.layout = PST_WEIGHT_GROUPED, .bits = 4, .group = 64}},
    {"g8", {.layout = PST_WEIGHT_GROUPED, .bits = 8, .group = 64}},
    {"g4s", {.layout = PST_WEIGHT_GROUPED, .bits = 4, .group = 64, .symmetric = true}},
    {"g8s", {.layout = PST_WEIGHT_GROUPED, .bits = 8, .group = 64, .symmetric = true}},
    {"fp8", {.layout = PST_WEIGHT_FP8_BLOCKS, .block_rows = 128, .block_columns = 128, .scale_type = PST_F32}},
    {"tg4", {.layout = PST_WEIGHT_GROUPED, .bits = 4, .group = 64, .transposed = true}},
    {"tg8", {.layout = PST_WEIGHT_GROUPED, .bits = 8, .group = 64, .transposed = true}},
    {"gptq4", {.layout = PST_WEIGHT_GPTQ, .bits = 4, .group = 128, .transposed = true, .scale_type = PST_F16}},
    {"gptq8", {.layout = PST_WEIGHT_GPTQ, .bits = 8, .group = 128, .transposed = true, .scale_type = PST_F16}},
    {"awq", {.layout = PST_WEIGHT_AWQ, .bits = 4, .group = 128, .transposed = true, .scale_type = PST_F16}},
};

/* Matrices of one layout, `weights` of them one after the other. */
typedef struct side {
    pst_weight_format format;
    char *data;
    size_t bytes; /* of one */
    float *y;
} side;

typedef struct bench {
    const bench_settings *s;
    pst_device *device;
    size_t rows, next;
    void *x;
    char *scales, *zeros;
} bench;

/* Random bits under a mask: with 0x3fff_3fff, pairs of bf16 or F16 numbers below 2, and finite scales wherever a layout
 * reads them; with 0x7777_7777 no code is NaN. */
static void fill(void *data, size_t bytes, uint32_t mask)
{
    uint64_t state = 1;
    for (size_t i = 0; i < bytes / 4; i++) {
        const uint64_t random = pst_random_next(&state);
        uint32_t bits = (uint32_t)random & mask;
        memcpy((char *)data + 4 * i, &bits, 4);
    }
}

static side make_side(const bench *b, const pst_weight_format *format)
{
    const bench_settings *s = b->s;
    const size_t inputs = s->k, outputs = s->columns;
    side out = {.format = *format};
    if (format->layout == PST_WEIGHT_GPTQ)
        out.bytes = inputs * outputs * format->bits / 8;
    else if (format->layout == PST_WEIGHT_AWQ)
        out.bytes = inputs * outputs / 2;
    else
        out.bytes = (format->transposed ? inputs : outputs) *
                    pst_weight_row_bytes(format, format->transposed ? outputs : inputs);
    out.data = bench_map(out.bytes * s->weights);
    fill(out.data, out.bytes * s->weights, format->layout == PST_WEIGHT_FP8_BLOCKS ? 0x77777777u : 0x3fff3fffu);
    out.y = bench_map(b->rows * outputs * sizeof(float));
    return out;
}

static void free_side(const bench *b, side *o)
{
    pst_memory_unmap(o->data, o->bytes * b->s->weights);
    pst_memory_unmap(o->y, b->rows * b->s->columns * sizeof(float));
}

/* A side at work. */
typedef struct turn {
    bench *b;
    const side *o;
} turn;

static void product(void *user, size_t weight)
{
    const bench *b = ((const turn *)user)->b;
    const side *o = ((const turn *)user)->o;
    const bench_settings *s = b->s;
    const pst_weight_format *f = &o->format;
    const size_t rows = !f->transposed ? s->columns : f->layout == PST_WEIGHT_GPTQ ? s->k * f->bits / 32 : s->k;
    const pst_matmul job = {
        .x = {b->x, s->x_type, b->rows, s->k, s->k},
        .w = {.data = o->data + weight * o->bytes,
              .type = f->type,
              .rows = rows,
              .columns = f->transposed ? s->columns : s->k,
              .format = f,
              .scales = b->scales,
              .zeros = b->zeros},
        .y = {o->y, PST_F32, b->rows, s->columns, s->columns},
    };
    bench_must(b->device->ops->matmul(b->device, &job) == 0, "matmul failed");
}

static double measure(void *user)
{
    bench *b = ((turn *)user)->b;
    return bench_time(b->s, &b->next, product, user);
}

static void print_side(const char *name, const double *seconds, const bench *b, const side *o)
{
    const double weights = (double)b->s->columns * (double)b->s->k, middle = bench_print_seconds(name, b->s, seconds);
    printf(", \"gflop_per_second\": %.1f, \"weights_per_second\": %.3g, \"weight_gb_per_second\": %.1f}",
           2e-9 * (double)b->rows * weights / middle, weights / middle, (double)o->bytes / middle * 1e-9);
}

static void run(bench *b, const char *name, const pst_weight_format *format)
{
    const bench_settings *s = b->s;
    const pst_weight_format plain = {.layout = PST_WEIGHT_PLAIN, .type = PST_BF16, .transposed = format->transposed};
    side stored = make_side(b, format), bf16 = make_side(b, &plain);
    double mine[BENCH_MAX_REPEAT], others[BENCH_MAX_REPEAT], ratios[BENCH_MAX_REPEAT];
    turn my_turn = {b, &stored}, others_turn = {b, &bf16};
    bench_take_turns(s, measure, &my_turn, measure, &others_turn, mine, others, ratios);
    printf("{\"format\": \"%s\", \"rows\": %zu", name, b->rows);
    print_side("stored", mine, b, &stored);
    print_side("bf16", others, b, &bf16);
    printf(", \"rate_over_bf16_median_of_pairs\": %.3f}", bench_median(ratios, s->repeat));
    fflush(stdout);
    free_side(b, &stored);
    free_side(b, &bf16);
}

static bool is_wanted(const char *list, const char *name)
{
    const size_t length = strlen(name);
    for (const char *p = list; p != NULL; p = strchr(p, ',')) {
        p += *p == ',';
        if (strncmp(p, name, length) == 0 && (p[length] == ',' || p[length] == '\0'))
            return true;
    }
    return list == NULL;
}

static void parse(int argc, char **argv, settings *s)
{
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--formats") == 0)
            s->formats = argv[i + 1];
        else
            bench_must(bench_option(&s->common, argv[i], argv[i + 1]), "unknown option");
    }
    bench_must(argc % 2 == 1, "an option without a value");
    bench_check(&s->common);
    bench_must(s->common.columns % 8 == 0 && s->common.k % 8 == 0, "columns and k must be multiples of 8");
}

int main(int argc, char **argv)
{
    settings all = {.common = BENCH_DEFAULTS};
    parse(argc, argv, &all);
    const bench_settings s = all.common;
    pst_pool *pool;
    bench b = {.s = &s};
    bench_must(pst_pool_create((uint32_t)s.threads, &pool, NULL) == 0, "no thread pool");
    bench_must(pst_device_host_create(pool, s.kernels, &b.device, NULL) == 0, "no such kernels here");
    const size_t scale_bytes = s.columns * s.k * 4 / 64 + 4096; /* enough for any layout */
    b.scales = bench_map(scale_bytes);
    b.zeros = bench_map(scale_bytes);
    fill(b.scales, scale_bytes, 0x3fff3fffu);
    fill(b.zeros, scale_bytes, 0xffffffffu);
    printf(
        "{\"columns\": %zu, \"k\": %zu, \"threads\": %zu, \"kernels\": \"%s\", \"x_type\": \"%s\", \"weights\": %zu, "
        "\"results\": [",
        s.columns, s.k, s.threads, pst_device_host_kernels(b.device), pst_dtype_name(s.x_type), s.weights);
    bool first = true;
    for (size_t f = 0; f < sizeof known_formats / sizeof *known_formats; f++) {
        for (size_t i = 0; i < s.row_count && is_wanted(all.formats, known_formats[f].name); i++) {
            b.rows = s.rows[i];
            const size_t x_bytes = b.rows * s.k * (s.x_type == PST_F32 ? 4 : 2);
            b.x = bench_map(x_bytes);
            fill(b.x, x_bytes, 0xbfffbfffu);
            printf("%s\n  ", first ? "" : ",");
            run(&b, known_formats[f].name, &known_formats[f].format);
            first = false;
            pst_memory_unmap(b.x, x_bytes);
        }
    }
    printf("\n]}\n");
    pst_memory_unmap(b.scales, scale_bytes);
    pst_memory_unmap(b.zeros, scale_bytes);
    pst_device_destroy(b.device);
    pst_pool_destroy(pool);
    return 0;
}
