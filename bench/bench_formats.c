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
#include <time.h>

#include "device/device.h"
#include "os/clock.h"
#include "os/memory.h"
#include "os/thread.h"

#define MAX_REPEAT 101

typedef struct settings {
    size_t rows[16], row_count, columns, k, threads, repeat, weights, milliseconds;
    const char *kernels, *formats;
    pst_dtype x_type;
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
    const settings *s;
    pst_device *device;
    size_t rows, next;
    void *x;
    char *scales, *zeros;
} bench;

static void must(bool ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "bench_formats: %s\n", what);
        exit(1);
    }
}

static void *map(size_t bytes)
{
    void *memory;
    must(pst_memory_map(bytes, "operands", &memory, NULL) == 0, "out of memory");
    return memory;
}

/* Random bits under a mask: with 0x3fff_3fff, pairs of bf16 or F16 numbers below 2, and finite scales wherever a layout
 * reads them; with 0x7777_7777 no code is NaN. */
static void fill(void *data, size_t bytes, uint32_t mask)
{
    uint64_t state = 88172645463325252u;
    for (size_t i = 0; i < bytes / 4; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        uint32_t bits = (uint32_t)state & mask;
        memcpy((char *)data + 4 * i, &bits, 4);
    }
}

static side make_side(const bench *b, const pst_weight_format *format)
{
    const settings *s = b->s;
    const size_t inputs = s->k, outputs = s->columns;
    side out = {.format = *format};
    if (format->layout == PST_WEIGHT_GPTQ)
        out.bytes = inputs * outputs * format->bits / 8;
    else if (format->layout == PST_WEIGHT_AWQ)
        out.bytes = inputs * outputs / 2;
    else
        out.bytes = (format->transposed ? inputs : outputs) *
                    pst_weight_row_bytes(format, format->transposed ? outputs : inputs);
    out.data = map(out.bytes * s->weights);
    fill(out.data, out.bytes * s->weights, format->layout == PST_WEIGHT_FP8_BLOCKS ? 0x77777777u : 0x3fff3fffu);
    out.y = map(b->rows * outputs * sizeof(float));
    return out;
}

static void free_side(const bench *b, side *o)
{
    pst_memory_unmap(o->data, o->bytes * b->s->weights);
    pst_memory_unmap(o->y, b->rows * b->s->columns * sizeof(float));
}

static void product(const bench *b, const side *o)
{
    const settings *s = b->s;
    const pst_weight_format *f = &o->format;
    const size_t rows = !f->transposed ? s->columns : f->layout == PST_WEIGHT_GPTQ ? s->k * f->bits / 32 : s->k;
    const pst_matmul job = {
        .x = {b->x, s->x_type, b->rows, s->k, s->k},
        .w = {.data = o->data + b->next * o->bytes,
              .type = f->type,
              .rows = rows,
              .columns = f->transposed ? s->columns : s->k,
              .format = f,
              .scales = b->scales,
              .zeros = b->zeros},
        .y = {o->y, PST_F32, b->rows, s->columns, s->columns},
    };
    must(b->device->ops->matmul(b->device, &job) == 0, "matmul failed");
}

/* Seconds per product, over as many as fit the time. */
static double measure(bench *b, const side *o)
{
    product(b, o);
    uint64_t start = pst_clock_ns(), now = start, count = 0;
    while (now - start < b->s->milliseconds * 1000000) {
        b->next = (b->next + 1) % b->s->weights;
        product(b, o);
        count++;
        now = pst_clock_ns();
    }
    return (double)(now - start) * 1e-9 / (double)count;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(const double *values, size_t count)
{
    double sorted[MAX_REPEAT];
    memcpy(sorted, values, count * sizeof *sorted);
    qsort(sorted, count, sizeof *sorted, by_size);
    return count % 2 ? sorted[count / 2] : 0.5 * (sorted[count / 2 - 1] + sorted[count / 2]);
}

static void print_side(const char *name, const double *seconds, const bench *b, const side *o)
{
    const double weights = (double)b->s->columns * (double)b->s->k, middle = median(seconds, b->s->repeat);
    printf(", \"%s\": {\"seconds\": [", name);
    for (size_t i = 0; i < b->s->repeat; i++)
        printf("%s%.4g", i ? ", " : "", seconds[i]);
    printf("], \"median_seconds\": %.4g, \"gflop_per_second\": %.1f, \"weights_per_second\": %.3g, "
           "\"weight_gb_per_second\": %.1f}",
           middle, 2e-9 * (double)b->rows * weights / middle, weights / middle, (double)o->bytes / middle * 1e-9);
}

static void run(bench *b, const char *name, const pst_weight_format *format)
{
    const settings *s = b->s;
    const pst_weight_format plain = {.layout = PST_WEIGHT_PLAIN, .type = PST_BF16, .transposed = format->transposed};
    side stored = make_side(b, format), bf16 = make_side(b, &plain);
    double mine[MAX_REPEAT], others[MAX_REPEAT], ratios[MAX_REPEAT];
    for (size_t i = 0; i < s->repeat; i++) {
        if (i % 2 == 0)
            mine[i] = measure(b, &stored);
        others[i] = measure(b, &bf16);
        if (i % 2 == 1)
            mine[i] = measure(b, &stored);
        ratios[i] = others[i] / mine[i];
    }
    printf("{\"format\": \"%s\", \"rows\": %zu", name, b->rows);
    print_side("stored", mine, b, &stored);
    print_side("bf16", others, b, &bf16);
    printf(", \"rate_over_bf16_median_of_pairs\": %.3f}", median(ratios, s->repeat));
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
    struct {
        const char *name;
        size_t *value;
    } numbers[] = {{"--columns", &s->columns}, {"--k", &s->k},
                   {"--threads", &s->threads}, {"--repeat", &s->repeat},
                   {"--weights", &s->weights}, {"--milliseconds", &s->milliseconds}};
    for (int i = 1; i + 1 < argc; i += 2) {
        const char *name = argv[i], *value = argv[i + 1];
        bool known = true;
        if (strcmp(name, "--kernels") == 0) {
            s->kernels = value;
        } else if (strcmp(name, "--formats") == 0) {
            s->formats = value;
        } else if (strcmp(name, "--x-type") == 0) {
            s->x_type = strcmp(value, "f32") == 0 ? PST_F32 : PST_BF16;
        } else if (strcmp(name, "--rows") == 0) {
            char *end;
            for (s->row_count = 0; s->row_count < 16 && *value != '\0'; value = *end == ',' ? end + 1 : end)
                s->rows[s->row_count++] = strtoull(value, &end, 10);
        } else {
            known = false;
            for (size_t n = 0; n < sizeof numbers / sizeof *numbers; n++) {
                if (strcmp(name, numbers[n].name) == 0) {
                    *numbers[n].value = strtoull(value, NULL, 10);
                    known = true;
                }
            }
        }
        must(known, "unknown option");
    }
    must(argc % 2 == 1, "an option without a value");
    must(s->repeat >= 1 && s->repeat <= MAX_REPEAT && s->weights >= 1 && s->row_count >= 1, "numbers out of range");
    must(s->columns % 8 == 0 && s->k % 8 == 0, "columns and k must be multiples of 8");
}

int main(int argc, char **argv)
{
    settings s = {.rows = {1, 8, 64, 256},
                  .row_count = 4,
                  .columns = 4096,
                  .k = 4096,
                  .threads = 1,
                  .repeat = 7,
                  .weights = 1,
                  .milliseconds = 60,
                  .x_type = PST_BF16};
    parse(argc, argv, &s);
    pst_pool *pool;
    bench b = {.s = &s};
    must(pst_pool_create((uint32_t)s.threads, &pool, NULL) == 0, "no thread pool");
    must(pst_device_host_create(pool, s.kernels, &b.device, NULL) == 0, "no such kernels here");
    const size_t scale_bytes = s.columns * s.k * 4 / 64 + 4096; /* enough for any layout */
    b.scales = map(scale_bytes);
    b.zeros = map(scale_bytes);
    fill(b.scales, scale_bytes, 0x3fff3fffu);
    fill(b.zeros, scale_bytes, 0xffffffffu);
    printf(
        "{\"columns\": %zu, \"k\": %zu, \"threads\": %zu, \"kernels\": \"%s\", \"x_type\": \"%s\", \"weights\": %zu, "
        "\"results\": [",
        s.columns, s.k, s.threads, pst_device_host_kernels(b.device), pst_dtype_name(s.x_type), s.weights);
    bool first = true;
    for (size_t f = 0; f < sizeof known_formats / sizeof *known_formats; f++) {
        for (size_t i = 0; i < s.row_count && is_wanted(s.formats, known_formats[f].name); i++) {
            b.rows = s.rows[i];
            const size_t x_bytes = b.rows * s.k * (s.x_type == PST_F32 ? 4 : 2);
            b.x = map(x_bytes);
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
