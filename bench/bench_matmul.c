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

#include "base/number.h"
#include "device/device.h"
#include "os/memory.h"
#include "os/thread.h"
#include "products.h"

typedef struct settings {
    bench_settings common;
    pst_dtype w_type;
    bool onednn;
} settings;

/* The operands, both sides' results and oneDNN's objects for one number of rows. */
typedef struct bench {
    const bench_settings *s;
    pst_dtype w_type;
    bool onednn;
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

static size_t bytes_of(pst_dtype type)
{
    return pst_dtype_bits(type) / 8;
}

/* Numbers of about unit size, of any type: random fraction and sign, exponents of 1/4 to 1. */
static void fill(void *data, pst_dtype type, size_t count)
{
    uint64_t state = 1;
    for (size_t i = 0; i < count; i++) {
        const uint64_t random = pst_random_next(&state);
        uint32_t exponent = 125 + (uint32_t)(random >> 40) % 2;
        uint32_t bits = (uint32_t)(random & 0x807fffff) | exponent << 23;
        uint16_t half =
            (uint16_t)(type == PST_BF16 ? bits >> 16 : (bits >> 16 & 0x8000) | (exponent - 112) << 10 | (bits & 0x3ff));
        if (type == PST_F32)
            memcpy((char *)data + 4 * i, &bits, 4);
        else
            memcpy((char *)data + 2 * i, &half, 2);
    }
}

static const char *weight_of(const bench *b, size_t weight)
{
    return b->weights + weight * b->s->columns * b->s->k * bytes_of(b->w_type);
}

static void ours(void *user, size_t weight)
{
    bench *b = user;
    const bench_settings *s = b->s;
    pst_matmul job = {
        .x = {.data = b->x, .type = s->x_type, .rows = b->rows, .columns = s->k, .stride = s->k},
        .w = {.data = weight_of(b, weight), .type = b->w_type, .rows = s->columns, .columns = s->k},
        .y = {.data = b->y[0], .type = PST_F32, .rows = b->rows, .columns = s->columns, .stride = s->columns},
    };
    bench_must(b->device->ops->matmul(b->device, &job) == 0, "matmul failed");
}

static void theirs(void *user, size_t weight)
{
    bench *b = user;
    dnnl_memory_set_data_handle(b->memory[1], (void *)(uintptr_t)weight_of(b, weight));
    const dnnl_exec_arg_t arguments[] = {
        {DNNL_ARG_SRC, b->memory[0]}, {DNNL_ARG_WEIGHTS, b->memory[1]}, {DNNL_ARG_DST, b->memory[2]}};
    bench_must(dnnl_primitive_execute(b->primitive, b->stream, 3, arguments) == dnnl_success, "oneDNN failed");
    dnnl_stream_wait(b->stream);
}

static void set_up_onednn(bench *b)
{
    const bench_settings *s = b->s;
    dnnl_data_type_t type = b->w_type == PST_BF16 ? dnnl_bf16 : dnnl_f32;
    dnnl_dims_t x_dims = {(dnnl_dim_t)b->rows, (dnnl_dim_t)s->k}, w_dims = {(dnnl_dim_t)s->k, (dnnl_dim_t)s->columns};
    dnnl_dims_t y_dims = {(dnnl_dim_t)b->rows, (dnnl_dim_t)s->columns};
    dnnl_memory_desc_t x, w, y;
    dnnl_memory_desc_init_by_tag(&x, 2, x_dims, type, dnnl_ab);
    dnnl_memory_desc_init_by_tag(&w, 2, w_dims, type, dnnl_ba); /* k contiguous: as stored */
    dnnl_memory_desc_init_by_tag(&y, 2, y_dims, dnnl_f32, dnnl_ab);
    dnnl_matmul_desc_t desc;
    dnnl_primitive_desc_t primitive_desc;
    bench_must(dnnl_matmul_desc_init(&desc, &x, &w, NULL, &y) == dnnl_success, "oneDNN refuses the product");
    bench_must(dnnl_primitive_desc_create(&primitive_desc, &desc, NULL, b->engine, NULL) == dnnl_success,
               "oneDNN has no such product");
    dnnl_primitive_desc_query(primitive_desc, dnnl_query_impl_info_str, 0, &b->implementation);
    bench_must(dnnl_primitive_create(&b->primitive, primitive_desc) == dnnl_success,
               "oneDNN cannot make its primitive");
    dnnl_memory_create(&b->memory[0], &x, b->engine, b->x);
    dnnl_memory_create(&b->memory[1], &w, b->engine, b->weights);
    dnnl_memory_create(&b->memory[2], &y, b->engine, b->y[1]);
}

/* Seconds per product, once the other side's threads have stopped spinning. */
static double measure(bench *b, void (*product)(void *user, size_t weight))
{
    const struct timespec pause = {.tv_nsec = 20000000};
    nanosleep(&pause, NULL);
    return bench_time(b->s, &b->next, product, b);
}

static double measure_ours(void *user)
{
    return measure(user, ours);
}

static double measure_theirs(void *user)
{
    return measure(user, theirs);
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
    double weight_bytes = (double)(b->s->columns * b->s->k * bytes_of(b->w_type));
    double middle = bench_print_seconds(name, b->s, seconds);
    printf(", \"gflop_per_second\": %.1f, \"weight_gb_per_second\": %.1f}", operations / middle * 1e-9,
           weight_bytes / middle * 1e-9);
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
    const bench_settings *s = b->s;
    double mine[BENCH_MAX_REPEAT], others[BENCH_MAX_REPEAT], ratios[BENCH_MAX_REPEAT];
    ours(b, 0);
    if (b->onednn) {
        set_up_onednn(b);
        theirs(b, 0);
        double difference = disagreement(b);
        bench_must(difference < 1e-4, "the results disagree");
    }
    bench_take_turns(s, measure_ours, b, b->onednn ? measure_theirs : NULL, b, mine, others, ratios);
    printf("{\"rows\": %zu", b->rows);
    print_side("penstock", mine, b);
    if (b->onednn) {
        print_side("onednn", others, b);
        printf(", \"onednn_implementation\": \"%s\", \"rate_over_onednn_median_of_pairs\": %.3f, "
               "\"rate_over_onednn_of_best\": %.3f, \"largest_difference\": %.2g",
               b->implementation, bench_median(ratios, s->repeat),
               smallest(others, s->repeat) / smallest(mine, s->repeat), disagreement(b));
        dnnl_primitive_destroy(b->primitive);
        for (size_t i = 0; i < 3; i++)
            dnnl_memory_destroy(b->memory[i]);
    }
    printf("}");
    fflush(stdout);
}

static void parse(int argc, char **argv, settings *s)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--no-onednn") == 0) {
            s->onednn = false;
            continue;
        }
        bench_must(i + 1 < argc, "unknown option or missing value");
        const char *name = argv[i++];
        if (strcmp(name, "--w-type") == 0)
            s->w_type = bench_type(argv[i]);
        else
            bench_must(bench_option(&s->common, name, argv[i]), "unknown option");
    }
    bench_check(&s->common);
}

int main(int argc, char **argv)
{
    settings all = {.common = BENCH_DEFAULTS, .w_type = PST_BF16, .onednn = true};
    parse(argc, argv, &all);
    const bench_settings s = all.common;
    const pst_dtype w_type = all.w_type;
    void (*set_threads)(int) = (void (*)(int))dlsym(RTLD_DEFAULT, "omp_set_num_threads");
    bench_must(set_threads != NULL, "oneDNN does not use OpenMP here, so its threads cannot be set");
    set_threads((int)s.threads);
    pst_pool *pool;
    bench b = {.s = &s, .w_type = w_type, .onednn = all.onednn && s.x_type == w_type && w_type != PST_F16};
    bench_must(pst_pool_create((uint32_t)s.threads, &pool, NULL) == 0, "no thread pool");
    bench_must(pst_device_host_create(pool, s.kernels, &b.device, NULL) == 0, "no such kernels here");
    bench_must(dnnl_engine_create(&b.engine, dnnl_cpu, 0) == dnnl_success, "no oneDNN engine");
    bench_must(dnnl_stream_create(&b.stream, b.engine, dnnl_stream_default_flags) == dnnl_success, "no oneDNN stream");
    const size_t w_count = s.weights * s.columns * s.k;
    b.weights = bench_map(w_count * bytes_of(w_type));
    fill(b.weights, w_type, w_count);
    const dnnl_version_t *version = dnnl_version();
    printf(
        "{\"columns\": %zu, \"k\": %zu, \"threads\": %zu, \"kernels\": \"%s\", \"x_type\": \"%s\", \"w_type\": \"%s\", "
        "\"weights\": %zu, \"weight_bytes_in_turn\": %zu, \"onednn_version\": \"%d.%d.%d\", \"results\": [",
        s.columns, s.k, s.threads, pst_device_host_kernels(b.device), pst_dtype_name(s.x_type), pst_dtype_name(w_type),
        s.weights, w_count * bytes_of(w_type), version->major, version->minor, version->patch);
    for (size_t i = 0; i < s.row_count; i++) {
        b.rows = s.rows[i];
        const size_t x_bytes = b.rows * s.k * bytes_of(s.x_type), y_bytes = b.rows * s.columns * sizeof(float);
        b.x = bench_map(x_bytes);
        b.y[0] = bench_map(y_bytes);
        b.y[1] = bench_map(y_bytes);
        fill(b.x, s.x_type, b.rows * s.k);
        printf("%s\n  ", i ? "," : "");
        run(&b);
        pst_memory_unmap(b.x, x_bytes);
        pst_memory_unmap(b.y[0], y_bytes);
        pst_memory_unmap(b.y[1], y_bytes);
    }
    printf("\n]}\n");
    pst_memory_unmap(b.weights, w_count * bytes_of(w_type));
    dnnl_stream_destroy(b.stream);
    dnnl_engine_destroy(b.engine);
    pst_device_destroy(b.device);
    pst_pool_destroy(pool);
    return 0;
}
