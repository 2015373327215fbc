/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Matrix products on bf16 weights as they lie in a file (rows contiguous along k), against oneDNN's matmul
 * primitive on the same memory: bf16 x bf16 to f32, weights given in their plain layout, so that whatever oneDNN
 * does to them inside counts. Both take turns within every repetition, the order alternating. Prints one JSON
 * document with every repetition.
 *
 *   bench_matmul [--rows 1,8,64,256] [--columns 4096] [--k 4096] [--threads 1] [--repeat 7] [--weights 1]
 *                [--milliseconds 60] [--kernels NAME] [--x-type bf16|f32] [--w-type bf16|f16|f32] [--no-onednn]
 *
 * --weights: so many matrices in turn; when they are larger together than the caches, every product reads its
 * weights from memory, as streamed weights would. Types other than bf16 x bf16 and f32 x f32 run without oneDNN,
 * which lacks them.
 */
#include <dlfcn.h>
#include <math.h>
#include <oneapi/dnnl/dnnl.h>
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
    const char *kernels;
    pst_dtype x_type, w_type;
    bool onednn;
} settings;

/* The operands, both sides' results and oneDNN's objects for one number of rows. */
typedef struct bench {
    const settings *s;
    pst_device *device;
    size_t rows, next;
    char *weights; /* s->weights matrices */
    void *x;
    float *y[2]; /* ours, oneDNN's */
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_primitive_t primitive;
    dnnl_memory_t memory[3]; /* x, w, y */
    const char *implementation;
} bench;

static void must(bool ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "bench_matmul: %s\n", what);
        exit(1);
    }
}

static size_t bytes_of(pst_dtype type)
{
    return pst_dtype_bits(type) / 8;
}

static void *map(size_t bytes)
{
    void *memory;
    must(pst_memory_map(bytes, "operands", &memory, NULL) == 0, "out of memory");
    return memory;
}

/* Numbers of about unit size, of any type: random fraction and sign, exponents of 1/4 to 1. */
static void fill(void *data, pst_dtype type, size_t count)
{
    uint64_t state = 88172645463325252u;
    for (size_t i = 0; i < count; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        uint32_t exponent = 125 + (uint32_t)(state >> 40) % 2;
        uint32_t bits = (uint32_t)(state & 0x807fffff) | exponent << 23;
        uint16_t half =
            (uint16_t)(type == PST_BF16 ? bits >> 16 : (bits >> 16 & 0x8000) | (exponent - 112) << 10 | (bits & 0x3ff));
        if (type == PST_F32)
            memcpy((char *)data + 4 * i, &bits, 4);
        else
            memcpy((char *)data + 2 * i, &half, 2);
    }
}

static void ours(bench *b, const char *w)
{
    const settings *s = b->s;
    pst_matmul job = {
        .x = {.data = b->x, .type = s->x_type, .rows = b->rows, .columns = s->k, .stride = s->k},
        .w = {.data = w, .type = s->w_type, .rows = s->columns, .columns = s->k},
        .y = {.data = b->y[0], .type = PST_F32, .rows = b->rows, .columns = s->columns, .stride = s->columns},
    };
    must(b->device->ops->matmul(b->device, &job) == 0, "matmul failed");
}

static void theirs(bench *b, const char *w)
{
    dnnl_memory_set_data_handle(b->memory[1], (void *)(uintptr_t)w);
    const dnnl_exec_arg_t arguments[] = {
        {DNNL_ARG_SRC, b->memory[0]}, {DNNL_ARG_WEIGHTS, b->memory[1]}, {DNNL_ARG_DST, b->memory[2]}};
    must(dnnl_primitive_execute(b->primitive, b->stream, 3, arguments) == dnnl_success, "oneDNN failed");
    dnnl_stream_wait(b->stream);
}

static void set_up_onednn(bench *b)
{
    const settings *s = b->s;
    dnnl_data_type_t type = s->w_type == PST_BF16 ? dnnl_bf16 : dnnl_f32;
    dnnl_dims_t x_dims = {(dnnl_dim_t)b->rows, (dnnl_dim_t)s->k}, w_dims = {(dnnl_dim_t)s->k, (dnnl_dim_t)s->columns};
    dnnl_dims_t y_dims = {(dnnl_dim_t)b->rows, (dnnl_dim_t)s->columns};
    dnnl_memory_desc_t x, w, y;
    dnnl_memory_desc_init_by_tag(&x, 2, x_dims, type, dnnl_ab);
    dnnl_memory_desc_init_by_tag(&w, 2, w_dims, type, dnnl_ba); /* k contiguous: as stored */
    dnnl_memory_desc_init_by_tag(&y, 2, y_dims, dnnl_f32, dnnl_ab);
    dnnl_matmul_desc_t desc;
    dnnl_primitive_desc_t primitive_desc;
    must(dnnl_matmul_desc_init(&desc, &x, &w, NULL, &y) == dnnl_success, "oneDNN refuses the product");
    must(dnnl_primitive_desc_create(&primitive_desc, &desc, NULL, b->engine, NULL) == dnnl_success,
         "oneDNN has no such product");
    dnnl_primitive_desc_query(primitive_desc, dnnl_query_impl_info_str, 0, &b->implementation);
    must(dnnl_primitive_create(&b->primitive, primitive_desc) == dnnl_success, "oneDNN cannot make its primitive");
    dnnl_memory_create(&b->memory[0], &x, b->engine, b->x);
    dnnl_memory_create(&b->memory[1], &w, b->engine, b->weights);
    dnnl_memory_create(&b->memory[2], &y, b->engine, b->y[1]);
}

/* Seconds per product, over as many as fit the time. */
static double measure(bench *b, void (*product)(bench *b, const char *w))
{
    const size_t w_bytes = b->s->columns * b->s->k * bytes_of(b->s->w_type);
    const struct timespec pause = {.tv_nsec = 20000000};
    nanosleep(&pause, NULL); /* until the other side's threads have stopped spinning */
    product(b, b->weights);
    uint64_t start = pst_clock_ns(), now = start, count = 0;
    while (now - start < b->s->milliseconds * 1000000) {
        b->next = (b->next + 1) % b->s->weights;
        product(b, b->weights + b->next * w_bytes);
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

static double smallest(const double *values, size_t count)
{
    double least = values[0];
    for (size_t i = 1; i < count; i++)
        least = values[i] < least ? values[i] : least;
    return least;
}

static void print_side(const char *name, const double *seconds, const bench *b)
{
    double operations = 2.0 * (double)b->rows * (double)b->s->columns * (double)b->s->k;
    double weight_bytes = (double)(b->s->columns * b->s->k * bytes_of(b->s->w_type));
    double middle = median(seconds, b->s->repeat);
    printf(", \"%s\": {\"seconds\": [", name);
    for (size_t i = 0; i < b->s->repeat; i++)
        printf("%s%.4g", i ? ", " : "", seconds[i]);
    printf("], \"median_seconds\": %.4g, \"gflop_per_second\": %.1f, \"weight_gb_per_second\": %.1f}", middle,
           operations / middle * 1e-9, weight_bytes / middle * 1e-9);
}

/* The largest difference between the two results over the largest result. */
static double disagreement(const bench *b)
{
    double worst = 0, largest = 0;
    for (size_t i = 0; i < b->rows * b->s->columns; i++) {
        worst = fmax(worst, fabs((double)b->y[0][i] - (double)b->y[1][i]));
        largest = fmax(largest, fabs((double)b->y[1][i]));
    }
    return worst / largest;
}

static void run(bench *b)
{
    const settings *s = b->s;
    double mine[MAX_REPEAT], others[MAX_REPEAT], ratios[MAX_REPEAT];
    ours(b, b->weights);
    if (s->onednn) {
        set_up_onednn(b);
        theirs(b, b->weights);
        double difference = disagreement(b);
        must(difference < 1e-4, "the results disagree");
    }
    for (size_t i = 0; i < s->repeat; i++) {
        if (i % 2 == 0)
            mine[i] = measure(b, ours);
        if (s->onednn)
            others[i] = measure(b, theirs);
        if (i % 2 == 1)
            mine[i] = measure(b, ours);
        ratios[i] = s->onednn ? others[i] / mine[i] : 0.0;
    }
    printf("{\"rows\": %zu", b->rows);
    print_side("penstock", mine, b);
    if (s->onednn) {
        print_side("onednn", others, b);
        printf(", \"onednn_implementation\": \"%s\", \"rate_over_onednn_median_of_pairs\": %.3f, "
               "\"rate_over_onednn_of_best\": %.3f, \"largest_difference\": %.2g",
               b->implementation, median(ratios, s->repeat), smallest(others, s->repeat) / smallest(mine, s->repeat),
               disagreement(b));
        dnnl_primitive_destroy(b->primitive);
        for (size_t i = 0; i < 3; i++)
            dnnl_memory_destroy(b->memory[i]);
    }
    printf("}");
    fflush(stdout);
}

static pst_dtype parse_type(const char *text)
{
    must(strcmp(text, "bf16") == 0 || strcmp(text, "f16") == 0 || strcmp(text, "f32") == 0, "types are bf16, f16, f32");
    return text[0] == 'b' ? PST_BF16 : text[1] == '1' ? PST_F16 : PST_F32;
}

static void parse(int argc, char **argv, settings *s)
{
    struct {
        const char *name;
        size_t *value;
    } numbers[] = {{"--columns", &s->columns}, {"--k", &s->k},
                   {"--threads", &s->threads}, {"--repeat", &s->repeat},
                   {"--weights", &s->weights}, {"--milliseconds", &s->milliseconds}};
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--no-onednn") == 0) {
            s->onednn = false;
            continue;
        }
        must(i + 1 < argc, "unknown option or missing value");
        const char *name = argv[i++], *value = argv[i];
        bool known = true;
        if (strcmp(name, "--kernels") == 0) {
            s->kernels = value;
        } else if (strcmp(name, "--x-type") == 0) {
            s->x_type = parse_type(value);
        } else if (strcmp(name, "--w-type") == 0) {
            s->w_type = parse_type(value);
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
    must(s->repeat >= 1 && s->repeat <= MAX_REPEAT && s->weights >= 1 && s->row_count >= 1, "numbers out of range");
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
                  .x_type = PST_BF16,
                  .w_type = PST_BF16,
                  .onednn = true};
    parse(argc, argv, &s);
    s.onednn = s.onednn && s.x_type == s.w_type && s.w_type != PST_F16;
    void (*set_threads)(int) = (void (*)(int))dlsym(RTLD_DEFAULT, "omp_set_num_threads");
    must(set_threads != NULL, "oneDNN does not use OpenMP here, so its threads cannot be set");
    set_threads((int)s.threads);
    pst_pool *pool;
    bench b = {.s = &s};
    must(pst_pool_create((uint32_t)s.threads, &pool, NULL) == 0, "no thread pool");
    must(pst_device_host_create(pool, s.kernels, &b.device, NULL) == 0, "no such kernels here");
    must(dnnl_engine_create(&b.engine, dnnl_cpu, 0) == dnnl_success, "no oneDNN engine");
    must(dnnl_stream_create(&b.stream, b.engine, dnnl_stream_default_flags) == dnnl_success, "no oneDNN stream");
    const size_t w_count = s.weights * s.columns * s.k;
    b.weights = map(w_count * bytes_of(s.w_type));
    fill(b.weights, s.w_type, w_count);
    const dnnl_version_t *version = dnnl_version();
    printf(
        "{\"columns\": %zu, \"k\": %zu, \"threads\": %zu, \"kernels\": \"%s\", \"x_type\": \"%s\", \"w_type\": \"%s\", "
        "\"weights\": %zu, \"weight_bytes_in_turn\": %zu, \"onednn_version\": \"%d.%d.%d\", \"results\": [",
        s.columns, s.k, s.threads, pst_device_host_kernels(b.device), pst_dtype_name(s.x_type),
        pst_dtype_name(s.w_type), s.weights, w_count * bytes_of(s.w_type), version->major, version->minor,
        version->patch);
    for (size_t i = 0; i < s.row_count; i++) {
        b.rows = s.rows[i];
        const size_t x_bytes = b.rows * s.k * bytes_of(s.x_type), y_bytes = b.rows * s.columns * sizeof(float);
        b.x = map(x_bytes);
        b.y[0] = map(y_bytes);
        b.y[1] = map(y_bytes);
        fill(b.x, s.x_type, b.rows * s.k);
        printf("%s\n  ", i ? "," : "");
        run(&b);
        pst_memory_unmap(b.x, x_bytes);
        pst_memory_unmap(b.y[0], y_bytes);
        pst_memory_unmap(b.y[1], y_bytes);
    }
    printf("\n]}\n");
    pst_memory_unmap(b.weights, w_count * bytes_of(s.w_type));
    dnnl_stream_destroy(b.stream);
    dnnl_engine_destroy(b.engine);
    pst_device_destroy(b.device);
    pst_pool_destroy(pool);
    return 0;
}
