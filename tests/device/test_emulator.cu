/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The emulator of GPUs itself: that kernels compute what they say in every order of threads, that mistakes are found and
 * named, that streams have no order but the one that was asked for, and that its failures come when they were ordered.
 */
#include "device/emulator_kernels.h"

#include "emulated/control.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <vector>

extern "C" { /* which the header leaves to others */
#include <cmocka.h>
}

#include "support/random.h"

enum { SEEDS = 20 };

static pst_vendor_stream stream;

static void must(pst_vendor_error error)
{
    if (pst_vendor_failed(error))
        fail_msg("%s", pst_vendor_error_text(error));
}

static void synchronize(void)
{
    must(pst_vendor_stream_synchronize(stream));
}

static float random_number(void)
{
    return (float)random_below(1 << 20) / (1 << 18) - 2;
}

/* Device memory with these numbers. */
template <class T> static T *put(const std::vector<T> &x)
{
    void *memory = NULL;
    must(pst_vendor_allocate(&memory, x.size() * sizeof(T)));
    must(pst_vendor_copy(memory, x.data(), x.size() * sizeof(T), stream));
    synchronize(); /* x is ordinary memory */
    return (T *)memory;
}

template <class T> static std::vector<T> get(const T *memory, size_t count)
{
    std::vector<T> x(count);
    must(pst_vendor_copy(x.data(), memory, count * sizeof(T), stream));
    synchronize();
    return x;
}

static std::vector<float> counting(size_t count)
{
    std::vector<float> x(count);
    for (size_t i = 0; i < count; i++)
        x[i] = (float)i;
    return x;
}

/* ---- Kernels ---- */

static void test_places(void **)
{
    const dim3 grids[] = {dim3(1), dim3(7), dim3(3, 2, 4), dim3(1, 5)};
    const dim3 blocks[] = {dim3(1), dim3(1024), dim3(3, 5, 7), dim3(2, 1, 64), dim3(33, 2)};
    for (const dim3 &grid : grids)
        for (const dim3 &block : blocks) {
            const size_t count = (size_t)grid.x * grid.y * grid.z * block.x * block.y * block.z;
            unsigned *visits = put(std::vector<unsigned>(count, 0));
            must(PST_LAUNCH(count_visits, grid, block, 0, stream, visits));
            for (unsigned n : get(visits, count))
                assert_int_equal(n, 1);
            must(pst_vendor_free(visits));
        }
}

/* Blocks have no order: what counts on one is right in some runs and wrong in others. */
static void test_order_of_blocks(void **)
{
    enum { BLOCKS = 3 };
    size_t right = 0, wrong = 0;
    unsigned *x = put(std::vector<unsigned>(BLOCKS + 1));
    for (uint64_t seed = 0; seed < 10 * SEEDS; seed++) {
        pst_emulated_seed(random_below(UINT64_MAX));
        must(pst_vendor_fill(x, 0, (BLOCKS + 1) * sizeof *x, stream));
        must(PST_LAUNCH(follow, BLOCKS, 1, 0, stream, x));
        (get(x, BLOCKS + 1)[BLOCKS] == BLOCKS ? right : wrong)++;
    }
    assert_true(right > 0 && wrong > 0);
    must(pst_vendor_free(x));
}

/* Right with a barrier in every order; without it wrong in some. */
static void test_barrier(void **)
{
    enum { N = 256, BLOCKS = 3 };
    float *x = put(counting(N * BLOCKS)), *y = put(std::vector<float>(N * BLOCKS));
    for (int hasty = 0; hasty < 2; hasty++) {
        size_t wrong = 0;
        for (uint64_t seed = 0; seed < SEEDS; seed++) {
            pst_emulated_seed(random_below(UINT64_MAX));
            must(PST_LAUNCH((reverse<N>), BLOCKS, N, 0, stream, x, y, hasty != 0));
            const std::vector<float> got = get(y, N * BLOCKS);
            for (size_t i = 0; i < got.size(); i++)
                wrong += got[i] != (float)(i / N * N + N - 1 - i % N);
        }
        assert_int_equal(wrong > 0, hasty);
    }
    must(pst_vendor_free(x));
    must(pst_vendor_free(y));
}

static void test_shared_memory_is_poisoned(void **)
{
    enum { BLOCKS = 5, WORDS = BLOCKS * 96 };
    uint32_t *a = put(std::vector<uint32_t>(WORDS)), *b = put(std::vector<uint32_t>(WORDS));
    for (int round = 0; round < 3; round++) { /* also after other kernels, and in later launches */
        must(PST_LAUNCH(look_at_shared, BLOCKS, 32, 96 * 4, stream, a, b));
        for (uint32_t *at : {a, b})
            for (uint32_t word : get(at, WORDS))
                assert_int_equal(word, 0xffffffffu);
    }
    must(pst_vendor_free(a));
    must(pst_vendor_free(b));
}

static void check_collectives(unsigned thread, const uint32_t *row)
{
    const unsigned lane = thread % 32, warp = thread - lane;
    const auto x = [warp](unsigned from) { return (warp + from) * 3 + 1; };
    assert_int_equal(row[0], x(5));
    assert_int_equal(row[1], x(lane / 8 * 8 + (lane + 1) % 8));
    assert_int_equal(row[2], x(lane ^ 16));
    assert_int_equal(row[3], x(lane ^ 3));
    assert_int_equal(row[4], x(lane < 2 ? lane : lane - 2));
    assert_int_equal(row[5], x(lane % 16 >= 14 ? lane : lane + 2));
    assert_int_equal(row[6], 0x49249249);
    assert_int_equal(row[7], 1);
    assert_int_equal(row[8], 0);
    assert_true(__uint_as_float(row[9]) == (float)x(lane ^ 1));
    assert_int_equal(row[10], 1);
    assert_int_equal(row[11], 0);
}

static void test_collectives(void **)
{
    enum { N = 96 };
    uint32_t *out = put(std::vector<uint32_t>(N * 12));
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        pst_emulated_seed(random_below(UINT64_MAX));
        must(PST_LAUNCH(collectives, 1, N, 0, stream, out));
        const std::vector<uint32_t> got = get(out, N * 12);
        for (unsigned i = 0; i < N; i++)
            check_collectives(i, &got[i * 12]);
    }
    must(pst_vendor_free(out));
}

/* ---- Matrices ---- */

static void check_product(bool half, bool b_transposed)
{
    std::vector<uint16_t> a(256), b(128);
    std::vector<float> d(128);
    for (uint16_t &x : a)
        x = half ? pst_f32_to_f16(random_number()) : pst_f32_to_bf16(random_number());
    for (uint16_t &x : b)
        x = half ? pst_f32_to_f16(random_number()) : pst_f32_to_bf16(random_number());
    for (float &x : d)
        x = random_number();
    uint16_t *da = put(a), *db = put(b);
    float *dd = put(d);
    must(PST_LAUNCH(product, 1, 32, 0, stream, da, db, dd, half, b_transposed));
    const std::vector<float> got = get(dd, 128);
    for (int row = 0; row < 16; row++)
        for (int column = 0; column < 8; column++) {
            double sum = d[row * 8 + column], size = fabs(sum);
            for (int k = 0; k < 16; k++) {
                const uint16_t xa = a[row * 16 + k], xb = b[column * 16 + k];
                const double p = half ? (double)pst_f16_to_f32(xa) * pst_f16_to_f32(xb)
                                      : (double)pst_bf16_to_f32(xa) * pst_bf16_to_f32(xb);
                sum += p;
                size += fabs(p);
            }
            assert_true(fabs(got[row * 8 + column] - sum) <= size * 1e-7);
        }
    must(pst_vendor_free(da));
    must(pst_vendor_free(db));
    must(pst_vendor_free(dd));
}

static void test_products(void **)
{
    for (int round = 0; round < SEEDS; round++)
        check_product(round % 2 == 0, round / 2 % 2 == 0);
}

/* Element (row, column) of matrix i is i * 64 + row * 8 + column. */
static void test_four_matrices(void **)
{
    std::vector<uint4> rows(32);
    for (size_t i = 0; i < 256; i++)
        ((uint16_t *)rows.data())[i] = (uint16_t)i;
    uint4 *in = put(rows);
    uint32_t *out = put(std::vector<uint32_t>(128));
    for (int transposed = 0; transposed < 2; transposed++) {
        must(PST_LAUNCH(load_four, 1, 32, 0, stream, in, out, transposed != 0));
        const std::vector<uint32_t> got = get(out, 128);
        for (unsigned lane = 0; lane < 32; lane++)
            for (unsigned i = 0; i < 4; i++) {
                const unsigned g = lane / 4, t = lane % 4, base = i * 64;
                const unsigned low = transposed ? base + 2 * t * 8 + g : base + g * 8 + 2 * t;
                const unsigned high = transposed ? low + 8 : low + 1;
                assert_int_equal(got[lane * 4 + i], low | high << 16);
            }
    }
    must(pst_vendor_free(in));
    must(pst_vendor_free(out));
}

/* What was not waited for is there in some orders only. */
static void test_asynchronous_copies(void **)
{
    std::vector<uint4> rows(96);
    for (unsigned i = 0; i < 96; i++)
        rows[i] = make_uint4(i, i + 1, i + 2, i + 3);
    uint4 *in = put(rows), *out = put(rows);
    size_t early = 0, late = 0;
    for (int waits = 0; waits <= 2; waits++) {
        must(PST_LAUNCH(copies, 1, 32, 0, stream, in, out, waits));
        const std::vector<uint4> got = get(out, 96);
        for (unsigned i = 0; i < 96; i++) {
            const bool done = waits == 2 || (waits == 1 && i < 32), is_there = got[i].x != 0xffffffffu;
            early += !done && is_there;
            late += !is_there;
            assert_true(is_there || !done);
            assert_int_equal(got[i].x, !is_there ? 0xffffffffu : i < 64 ? i : 0);
            assert_int_equal(got[i].w, !is_there ? 0xffffffffu : i < 64 ? i + 3 : 0);
        }
    }
    assert_true(early > 0 && late > 0);
    must(pst_vendor_free(in));
    must(pst_vendor_free(out));
}

/* A copy may be done before those who read what it replaces. */
static void test_buffers_by_turns(void **)
{
    enum { TILES = 5 };
    std::vector<uint4> rows(TILES * 64);
    uint32_t all = 0;
    for (unsigned i = 0; i < TILES * 64; i++) {
        rows[i] = make_uint4(i * i, 0, 0, 0);
        all += i * i;
    }
    uint4 *in = put(rows);
    uint32_t *out = put(std::vector<uint32_t>(64));
    for (int hasty = 0; hasty < 2; hasty++) {
        size_t wrong = 0;
        for (uint64_t seed = 0; seed < SEEDS; seed++) {
            pst_emulated_seed(random_below(UINT64_MAX));
            must(PST_LAUNCH(two_buffers, 1, 64, 0, stream, in, out, (uint32_t)TILES, hasty != 0));
            const std::vector<uint32_t> got = get(out, 64);
            for (unsigned t = 0; t < 64; t++)
                wrong += got[t] != all * (t + 1);
        }
        assert_int_equal(wrong > 0, hasty);
    }
    must(pst_vendor_free(in));
    must(pst_vendor_free(out));
}

/* ---- Numbers ---- */

static double e4m3(unsigned x)
{
    const int exponent = (int)(x >> 3 & 15), fraction = (int)(x & 7);
    const double size = exponent == 0 ? fraction * 0x1p-9 : ldexp(8 + fraction, exponent - 10);
    return x & 0x80 ? -size : size;
}

static void test_numbers(void **)
{
    for (unsigned x = 0; x < 65536; x++) {
        const float half = pst_f16_to_f32((uint16_t)x), brain = pst_bf16_to_f32((uint16_t)x);
        const int exponent = (int)(x >> 10 & 31), fraction = (int)(x & 1023);
        if (exponent == 31 && fraction != 0) {
            assert_true(isnan(half) && isnan(pst_f16_to_f32(pst_f32_to_f16(half))));
        } else {
            const double size = exponent == 31  ? INFINITY
                                : exponent == 0 ? fraction * 0x1p-24
                                                : ldexp(1024 + fraction, exponent - 25);
            assert_true((double)half == (x & 0x8000 ? -size : size));
            assert_int_equal(pst_f32_to_f16(half), x);
        }
        assert_true(isnan(brain) ? isnan(pst_bf16_to_f32(pst_f32_to_bf16(brain))) : pst_f32_to_bf16(brain) == x);
    }
    for (unsigned x = 0; x < 0x7c00; x++) { /* halfway between neighbours: to the even one */
        const double low = pst_f16_to_f32((uint16_t)x),
                     high = x + 1 == 0x7c00 ? 65536 : pst_f16_to_f32((uint16_t)(x + 1));
        const float middle = (float)((low + high) / 2);
        assert_int_equal(pst_f32_to_f16(middle), x + x % 2);
        assert_int_equal(pst_f32_to_f16(nextafterf(middle, 0)), x);
        assert_int_equal(pst_f32_to_f16(nextafterf(middle, INFINITY)), x + 1);
    }
    assert_int_equal(pst_f32_to_bf16(__uint_as_float(0x3f808000)), 0x3f80);
    assert_int_equal(pst_f32_to_bf16(__uint_as_float(0x3f818000)), 0x3f82);
    assert_int_equal(pst_f32_to_bf16(__uint_as_float(0x3f808001)), 0x3f81);
    for (unsigned x = 0; x < 256; x++)
        assert_true((x & 0x7f) == 0x7f ? isnan(pst_e4m3_to_f32((uint8_t)x)) : pst_e4m3_to_f32((uint8_t)x) == e4m3(x));
}

/* ---- Mistakes ---- */

static void test_mistakes(void **)
{
    static const struct {
        mistake which;
        unsigned threads;
        const char *text;
    } cases[] = {
        {LEAVES_OTHERS, 64, "arrier"},
        {LEAVES_LATER, 64, "arrier"},
        {TWO_BARRIERS, 64, "while others are at that of line"},
        {LEAVES_WARP, 32, "lane"},
        {TWO_SHUFFLES, 32, "another lane of its warp"},
        {NEVER_COMES, 32, "never come"},
        {HALF_MASK, 32, "mask"},
        {TWO_BARRIERS, 48, "while others are at that of line"},
        {TWO_SHUFFLES, 16, "a warp of 16 lanes"},
        {FORGOTTEN_COPY, 1, "not waited"},
        {MISALIGNED_LOAD, 1, "not aligned to 16"},
        {MISALIGNED_MATRIX, 32, "not aligned to 16"},
        {NOT_SHARED, 32, "not in shared"},
        {MISALIGNED_COPY, 1, "not aligned to 16"},
        {BEYOND_ARRAY, 64, "index 64"},
        {LONG_SHIFT, 32, "a shift by 32"},
    };
    const bool compiler_checks = PST_TEST_COMPILER_CHECKS; /* else its own library ends the process */
    void *x = NULL, *y = NULL;
    must(pst_vendor_allocate(&x, 1024));
    must(pst_vendor_allocate(&y, 1024));
    for (const auto &c : cases) {
        if (!compiler_checks && (c.which == MISALIGNED_LOAD || c.which == BEYOND_ARRAY || c.which == LONG_SHIFT))
            continue;
        pst_emulated_seed(random_below(UINT64_MAX));
        must(PST_LAUNCH(make_mistake, 2, c.threads, 0, stream, (int)c.which, (float *)x, (float *)y));
        const pst_vendor_error error = pst_vendor_stream_synchronize(stream);
        if (!pst_vendor_failed(error))
            fail_msg("mistake %d was not found", (int)c.which);
        if (strstr(pst_vendor_error_text(error), c.text) == NULL ||
            strstr(pst_emulated_message(), "make_mistake") == NULL)
            fail_msg("mistake %d: %s", (int)c.which, pst_vendor_error_text(error));
        /* Nothing works after it. */
        assert_true(pst_vendor_failed(pst_vendor_fill(x, 0, 4, stream)));
        assert_true(pst_vendor_failed(PST_LAUNCH(add_one, 1, 32, 0, stream, (float *)x, 4)));
        assert_true(pst_vendor_failed(pst_vendor_stream_synchronize(stream)));
        pst_emulated_reset();
        must(pst_vendor_fill(x, 0, 16, stream));
        must(PST_LAUNCH(add_one, 1, 32, 0, stream, (float *)x, 4));
        assert_true(get((float *)x, 4)[3] == 1);
    }
    must(pst_vendor_free(x));
    must(pst_vendor_free(y));
}

static void test_launch_limits(void **)
{
    void *x = NULL;
    must(pst_vendor_allocate(&x, 1024));
    must(pst_vendor_fill(x, 0, 1024, stream));
    float *const at = (float *)x;
    const dim3 bad_blocks[] = {dim3(0), dim3(1025), dim3(1, 1, 65), dim3(32, 33), dim3(1, 0)};
    const dim3 bad_grids[] = {dim3(0), dim3(1, 65536), dim3(1, 1, 65536), dim3(1u << 31), dim3(1, 1, 0)};
    for (const dim3 &block : bad_blocks)
        assert_true(pst_vendor_failed(PST_LAUNCH(add_one, 1, block, 0, stream, at, 1)));
    for (const dim3 &grid : bad_grids)
        assert_true(pst_vendor_failed(PST_LAUNCH(add_one, grid, 1, 0, stream, at, 1)));
    assert_true(pst_vendor_failed(PST_LAUNCH(add_one, 1, 1, (227 << 10) + 1, stream, at, 1)));
    assert_true(pst_vendor_failed(pst_vendor_last_error())); /* as the plugin finds it */
    assert_false(pst_vendor_failed(pst_vendor_last_error()));
    must(PST_LAUNCH(add_one, 1, 1, 227 << 10, stream, at, 1));
    pst_emulated_shared_limit(99 << 10);
    assert_true(pst_vendor_failed(PST_LAUNCH(add_one, 1, 1, 100 << 10, stream, at, 1)));
    pst_emulated_shared_limit(227 << 10);
    (void)pst_vendor_last_error();
    assert_true(get(at, 1)[0] == 1);
    must(pst_vendor_free(x));
}

/* ---- Streams ---- */

/* Two streams in a row: right when an event is between them, wrong in some orders when not. */
static void test_events(void **)
{
    enum { N = 64, LENGTH = 8 };
    pst_vendor_stream other;
    pst_vendor_event event;
    must(pst_vendor_stream_create(&other));
    must(pst_vendor_event_create(&event));
    float *x = put(std::vector<float>(N));
    for (int without = 0; without < 2; without++) {
        size_t wrong = 0;
        for (uint64_t seed = 0; seed < SEEDS; seed++) {
            pst_emulated_seed(random_below(UINT64_MAX));
            must(pst_vendor_fill(x, 0, N * sizeof *x, stream));
            synchronize();
            for (int i = 0; i < LENGTH; i++) { /* alternates: add one, then clear; ends with cleared */
                must(PST_LAUNCH(add_one, 1, 32, 0, stream, x, (int)N));
                must(pst_vendor_event_record(event, stream));
                if (without == 0)
                    must(pst_vendor_stream_wait(other, event));
                must(pst_vendor_fill(x, 0, N * sizeof *x, other));
                must(pst_vendor_event_record(event, other));
                if (without == 0)
                    must(pst_vendor_stream_wait(stream, event));
            }
            must(pst_vendor_stream_synchronize(other));
            wrong += get(x, N)[0] != 0;
        }
        assert_int_equal(wrong > 0, without);
    }
    must(pst_vendor_free(x));
    must(pst_vendor_event_destroy(event));
    must(pst_vendor_stream_destroy(other));
}

/* Nothing is carried out when it is asked for, everything in the end; who asks an event often enough hears that it is done. */
static void test_laziness(void **)
{
    void *pinned = NULL;
    pst_vendor_event event;
    must(pst_vendor_event_create(&event));
    must(pst_vendor_allocate_host(&pinned, 256));
    bool done = false;
    must(pst_vendor_event_query(event, &done));
    assert_true(done); /* never recorded */
    size_t late = 0, early = 0;
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        pst_emulated_seed(random_below(UINT64_MAX));
        *(volatile char *)pinned = 0;
        must(pst_vendor_fill(pinned, 1, 256, stream));
        (*(volatile char *)pinned == 0 ? late : early)++;
        must(pst_vendor_event_record(event, stream));
        done = false;
        for (int i = 0; i < 1000 && !done; i++)
            must(pst_vendor_event_query(event, &done));
        assert_true(done);
        assert_int_equal(*(volatile char *)pinned, 1);
        *(volatile char *)pinned = 0;
        must(pst_vendor_fill(pinned, 2, 256, stream));
        must(pst_vendor_event_record(event, stream));
        must(pst_vendor_event_synchronize(event));
        assert_int_equal(*(volatile char *)pinned, 2);
    }
    assert_true(late > 0 && early > 0);
    must(pst_vendor_free_host(pinned));
    must(pst_vendor_event_destroy(event));
}

/* ---- Memory ---- */

static void test_memory_is_poisoned(void **)
{
    void *memory = NULL;
    must(pst_vendor_allocate(&memory, 1000));
    assert_int_equal((uintptr_t)memory % 256, 0);
    for (unsigned char byte : get((unsigned char *)memory, 1000))
        assert_int_equal(byte, 0xff);
    must(pst_vendor_free(memory));
}

static void test_writing_beyond(void **)
{
    for (long at : {-1L, 250L}) { /* 1000 bytes: 250 numbers */
        void *memory = NULL;
        must(pst_vendor_allocate(&memory, 1000));
        must(PST_LAUNCH(write_beyond, 1, 1, 0, stream, (float *)memory, at));
        synchronize();
        const pst_vendor_error error = pst_vendor_free(memory);
        assert_true(pst_vendor_failed(error));
        assert_non_null(strstr(pst_vendor_error_text(error), "beyond the ends"));
        pst_emulated_reset();
    }
    void *memory = NULL;
    must(pst_vendor_allocate(&memory, 1000));
    char more[2000] = {0};
    assert_true(pst_vendor_failed(pst_vendor_copy(memory, more, 1001, stream)));
    assert_true(pst_vendor_failed(pst_vendor_copy(more, (char *)memory + 900, 101, stream)));
    assert_true(pst_vendor_failed(pst_vendor_fill((char *)memory + 999, 0, 2, stream)));
    must(pst_vendor_free(memory));
    assert_true(pst_vendor_failed(pst_vendor_free(memory)));
    (void)pst_vendor_last_error();
}

static void test_limit_and_counts(void **)
{
    pst_emulated_counts before, now;
    pst_emulated_count(&before);
    size_t unused = 0, total = 0;
    pst_emulated_memory(1 << 20);
    void *a = NULL, *b = NULL, *host = NULL;
    must(pst_vendor_allocate(&a, 600 << 10));
    assert_true(pst_vendor_out_of_memory(pst_vendor_allocate(&b, 600 << 10)));
    assert_null(b);
    must(pst_vendor_allocate_host(&host, 600 << 10)); /* not of the device */
    must(pst_vendor_memory_info(&unused, &total));
    assert_int_equal(total, 1 << 20);
    assert_int_equal(unused, (1 << 20) - (600 << 10));
    std::vector<char> mine(5 << 16);
    must(pst_vendor_register_host(mine.data(), 5000));
    assert_true(pst_vendor_failed(pst_vendor_register_host(mine.data() + 10, 10)));
    assert_true(pst_vendor_failed(pst_vendor_register_host(mine.data() + 5000, 1 << 16))); /* on the same page */
    must(pst_vendor_register_host(mine.data() + (2 << 16), 1 << 16));
    must(pst_vendor_unregister_host(mine.data() + (2 << 16)));
    pst_emulated_count(&now);
    assert_int_equal(now.device_memory, before.device_memory + 1);
    assert_int_equal(now.host_memory, before.host_memory + 1);
    assert_int_equal(now.registered, before.registered + 1);
    assert_int_equal(now.device_bytes, before.device_bytes + (600 << 10));
    assert_int_equal(now.streams, before.streams);
    must(pst_vendor_unregister_host(mine.data()));
    must(pst_vendor_free(a));
    must(pst_vendor_free_host(host));
    pst_emulated_count(&now);
    assert_int_equal(now.device_bytes, before.device_bytes);
    assert_int_equal(now.host_bytes, before.host_bytes);
    assert_int_equal(now.registered, before.registered);
    pst_emulated_memory(1 << 30);
    (void)pst_vendor_last_error();
}

/* Whether the host can read it: asked in a process of its own. */
static bool host_reads(const volatile char *memory)
{
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        signal(SIGSEGV, SIG_DFL);
        (void)!freopen("/dev/null", "w", stderr);
        _exit(*memory == 1 ? 0 : 1);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static void test_protection(void **)
{
    void *memory = NULL;
    must(pst_vendor_allocate(&memory, 4096));
    must(pst_vendor_fill(memory, 1, 4096, stream));
    synchronize();
    assert_true(host_reads((char *)memory));
    pst_emulated_protect(true);
    assert_false(host_reads((char *)memory));
    must(PST_LAUNCH(add_one, 1, 32, 0, stream, (float *)memory, 1)); /* the device still does */
    assert_int_equal(get((char *)memory + 4, 1)[0], 1);
    assert_false(host_reads((char *)memory + 4));
    void *later = NULL;
    must(pst_vendor_allocate(&later, 4096));
    assert_false(host_reads((char *)later));
    pst_emulated_protect(false);
    assert_true(host_reads((char *)memory + 4));
    must(pst_vendor_free(memory));
    must(pst_vendor_free(later));
}

/* ---- Failures that were ordered ---- */

static void test_failures(void **)
{
    void *x = NULL, *y = NULL;
    pst_vendor_stream other = NULL;
    must(pst_vendor_allocate(&x, 256));
    must(pst_vendor_fill(x, 0, 256, stream));
    pst_emulated_fail(PST_EMULATED_ALLOCATE, 2);
    must(pst_vendor_allocate(&y, 256));
    must(pst_vendor_free(y));
    assert_true(pst_vendor_out_of_memory(pst_vendor_allocate(&y, 256)));
    must(pst_vendor_allocate_host(&y, 256)); /* once */
    must(pst_vendor_free_host(y));
    pst_emulated_fail(PST_EMULATED_CREATE, 1);
    assert_true(pst_vendor_failed(pst_vendor_stream_create(&other)));
    pst_emulated_fail(PST_EMULATED_COPY, 1);
    assert_true(pst_vendor_failed(pst_vendor_fill(x, 1, 256, stream)));
    synchronize(); /* nothing was taken up */
    pst_emulated_fail(PST_EMULATED_COPY_LATER, 1);
    must(pst_vendor_fill(x, 1, 256, stream));
    assert_true(pst_vendor_failed(pst_vendor_stream_synchronize(stream)));
    synchronize(); /* told once */
    pst_emulated_fail(PST_EMULATED_LAUNCH, 1);
    assert_true(pst_vendor_failed(PST_LAUNCH(add_one, 1, 32, 0, stream, (float *)x, 4)));
    synchronize();
    assert_true(get((float *)x, 4)[0] == 0);
    const uint64_t calls = pst_emulated_calls(PST_EMULATED_LAUNCH);
    pst_emulated_fail(PST_EMULATED_LAUNCH_LATER, 1);
    must(PST_LAUNCH(add_one, 1, 32, 0, stream, (float *)x, 4));
    assert_true(pst_emulated_calls(PST_EMULATED_LAUNCH) == calls + 1);
    assert_true(pst_vendor_failed(pst_vendor_stream_synchronize(stream)));
    assert_true(pst_vendor_failed(pst_vendor_allocate(&y, 256)));
    pst_emulated_reset();
    must(pst_vendor_free(x));
    int count = 0;
    pst_emulated_devices(-1);
    assert_true(pst_vendor_no_driver(pst_vendor_device_count(&count)));
    pst_emulated_devices(0);
    assert_true(pst_vendor_absent(pst_vendor_device_count(&count)));
    pst_emulated_devices(1);
    must(pst_vendor_device_count(&count));
    (void)pst_vendor_last_error();
}

/* ---- Graphs ---- */

/* What a capture cannot hold fails, and spoils it; the same from another thread is nothing to it. */
static void check_spoilt(const char *what, bool (*forbidden)(void *memory, pst_vendor_event event))
{
    void *memory = NULL;
    pst_vendor_event event = NULL;
    pst_vendor_graph graph = NULL;
    must(pst_vendor_allocate(&memory, 256));
    must(pst_vendor_event_create(&event));
    for (int elsewhere = 0; elsewhere < 2; elsewhere++) {
        bool failed = false;
        must(pst_vendor_capture_begin(stream));
        must(pst_vendor_fill(memory, 1, 256, stream));
        if (elsewhere)
            std::thread([&] { failed = forbidden(memory, event); }).join();
        else
            failed = forbidden(memory, event);
        const bool captures = !pst_vendor_failed(PST_LAUNCH(add_one, 1, 32, 0, stream, (float *)memory, 1));
        const bool made = !pst_vendor_failed(pst_vendor_capture_end(stream, &graph));
        if (failed == (bool)elsewhere || captures != (bool)elsewhere || made != (bool)elsewhere)
            fail_msg("%s%s: fails %d, captures on %d, makes a graph %d", what, elsewhere ? " elsewhere" : "", failed,
                     captures, made);
    }
    must(pst_vendor_graph_destroy(graph));
    must(pst_vendor_event_destroy(event));
    must(pst_vendor_free(memory));
    (void)pst_vendor_last_error();
}

static void *spare;

static void test_spoilt_captures(void **)
{
    must(pst_vendor_allocate(&spare, 256));
    check_spoilt("an allocation", [](void *, pst_vendor_event) {
        void *more = NULL;
        const bool failed = pst_vendor_failed(pst_vendor_allocate(&more, 256));
        return failed || pst_vendor_failed(pst_vendor_free(more));
    });
    check_spoilt("giving back", [](void *, pst_vendor_event) {
        return pst_vendor_failed(pst_vendor_free(spare)); /* of what is there: elsewhere it works, after all */
    });
    check_spoilt("asking for an event", [](void *, pst_vendor_event event) {
        bool done;
        return pst_vendor_failed(pst_vendor_event_query(event, &done));
    });
    check_spoilt("waiting for an event",
                 [](void *, pst_vendor_event event) { return pst_vendor_failed(pst_vendor_event_synchronize(event)); });
    check_spoilt("making a stream", [](void *, pst_vendor_event) {
        pst_vendor_stream other = NULL;
        return pst_vendor_failed(pst_vendor_stream_create(&other)) ||
               pst_vendor_failed(pst_vendor_stream_destroy(other));
    });
}

/* Arguments are those of the capture; nothing is done before a launch, and then in the stream's order, each time. */
static void test_graphs(void **)
{
    pst_emulated_counts before, now;
    pst_emulated_count(&before);
    void *memory = NULL;
    float *x, plain = 0;
    pst_vendor_graph graph = NULL;
    must(pst_vendor_allocate(&memory, 256));
    x = (float *)memory;
    must(pst_vendor_fill(memory, 0, 256, stream));
    must(pst_vendor_capture_begin(stream));
    assert_true(pst_vendor_failed(pst_vendor_capture_begin(stream)));
    int count = 3;
    must(PST_LAUNCH(add_one, 1, 32, 0, stream, x, count));
    count = 32;
    must(pst_vendor_copy(x + 32, x, 4, stream));
    must(PST_LAUNCH(add_one, 1, 32, 0, stream, x, 1));
    must(pst_vendor_capture_end(stream, &graph));
    assert_true(get(x, 1)[0] == 0);
    for (int i = 1; i <= SEEDS; i++)
        must(pst_vendor_graph_launch(graph, stream));
    const std::vector<float> now_there = get(x, 64);
    assert_true(now_there[0] == 2 * SEEDS && now_there[2] == SEEDS && now_there[3] == 0);
    assert_true(now_there[32] == 2 * SEEDS - 1);
    must(pst_vendor_capture_begin(stream)); /* ordinary memory cannot be captured */
    assert_true(pst_vendor_failed(pst_vendor_copy(x, &plain, sizeof plain, stream)));
    assert_true(pst_vendor_failed(pst_vendor_capture_end(stream, NULL)));
    assert_true(pst_vendor_failed(pst_vendor_capture_end(stream, NULL)));
    pst_emulated_count(&now);
    assert_int_equal(now.graphs, before.graphs + 1);
    must(pst_vendor_graph_destroy(graph));
    assert_true(pst_vendor_failed(pst_vendor_graph_destroy(graph)));
    assert_true(pst_vendor_failed(pst_vendor_graph_launch(graph, stream)));
    must(pst_vendor_free(memory));
    (void)pst_vendor_last_error();
}

extern "C" __attribute__((visibility("default"))) int run_emulator_tests(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_places),
        cmocka_unit_test(test_barrier),
        cmocka_unit_test(test_order_of_blocks),
        cmocka_unit_test(test_shared_memory_is_poisoned),
        cmocka_unit_test(test_collectives),
        cmocka_unit_test(test_products),
        cmocka_unit_test(test_four_matrices),
        cmocka_unit_test(test_asynchronous_copies),
        cmocka_unit_test(test_buffers_by_turns),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_mistakes),
        cmocka_unit_test(test_launch_limits),
        cmocka_unit_test(test_events),
        cmocka_unit_test(test_laziness),
        cmocka_unit_test(test_memory_is_poisoned),
        cmocka_unit_test(test_writing_beyond),
        cmocka_unit_test(test_limit_and_counts),
        cmocka_unit_test(test_protection),
        cmocka_unit_test(test_failures),
        cmocka_unit_test(test_graphs),
        cmocka_unit_test(test_spoilt_captures),
    };
    random_start("the emulator");
    must(pst_vendor_stream_create(&stream));
    const int failed = cmocka_run_group_tests_name("the emulator", tests, NULL, NULL);
    must(pst_vendor_stream_destroy(stream));
    return failed;
}
