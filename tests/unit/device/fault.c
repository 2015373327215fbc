/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fault device: planned failures strike the call that was named, what is held is counted, and a separate device is one:
 * the host that touches its memory crashes, operands that are not its memory are refused, late work is done no sooner than
 * it is waited for, and what comes out in the end are the host's bits.
 */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/heap.h"
#include "device/fault.h"
#include "unit/cpu/reference.h"
#include "unit/device/pools.h"

enum { ROOM = 1 << 20 };

static pst_device *wrap(pst_device_fault *fault, bool separate, bool late)
{
    pst_device *host, *device;
    *fault = (pst_device_fault){.separate = separate, .late = late, .device_bytes = ROOM};
    assert_int_equal(pst_device_host_create(pools[1], NULL, &host, NULL), 0);
    assert_int_equal(pst_device_fault_create(fault, host, &device, NULL), 0);
    return device;
}

static void *allocate(pst_device *device, pst_device_memory kind, uint64_t bytes)
{
    void *memory;
    assert_int_equal(device->ops->allocate(device, kind, bytes, &memory), 0);
    return memory;
}

static void close_whole(pst_device *device, const pst_device_fault *fault)
{
    pst_device_destroy(device);
    assert_int_equal(pst_device_fault_held(fault), 0);
}

static void test_planned_failures(void **state)
{
    (void)state;
    pst_device_fault fault;
    pst_device *device = wrap(&fault, false, false);
    const pst_device_ops *ops = device->ops;
    assert_true(ops->is_host);
    assert_string_equal(ops->name, "fault:host");
    void *a, *untouched = &fault;
    pst_device_fault_fail(&fault, PST_DEVICE_ALLOCATE, 1, 2, -ENOMEM);
    assert_int_equal(ops->allocate(device, PST_MEMORY_DEVICE, 100, &a), 0);
    for (int i = 0; i < 2; i++)
        assert_int_equal(ops->allocate(device, PST_MEMORY_DEVICE, 100, &untouched), -ENOMEM);
    assert_ptr_equal(untouched, &fault);
    assert_string_equal(ops->last_error(device), "allocation 3 fails as planned");
    assert_int_equal(fault.failures, 2);
    void *b = allocate(device, PST_MEMORY_HOST, 50);
    assert_true(fault.bytes[PST_MEMORY_DEVICE] == 100 && fault.bytes[PST_MEMORY_HOST] == 50);
    assert_int_equal(pst_device_fault_held(&fault), 2);

    pst_device_stream *stream;
    pst_device_event *event;
    pst_device_fault_fail(&fault, PST_DEVICE_CREATE, 0, 1, -EIO);
    assert_int_equal(ops->stream_create(device, &stream), -EIO);
    assert_int_equal(ops->stream_create(device, &stream), 0);
    pst_device_fault_fail(&fault, PST_DEVICE_CREATE, 0, 1, -EIO);
    assert_int_equal(ops->event_create(device, &event), -EIO);
    assert_int_equal(ops->event_create(device, &event), 0);
    pst_device_fault_fail(&fault, PST_DEVICE_RECORD, 1, 1, -EIO);
    assert_int_equal(ops->event_record(device, event, stream), 0);
    assert_int_equal(ops->stream_wait(device, NULL, event), -EIO);
    pst_device_fault_fail(&fault, PST_DEVICE_WAIT, 0, 1, -EIO);
    assert_int_equal(ops->event_wait(device, event), -EIO);
    pst_device_fault_fail(&fault, PST_DEVICE_QUERY, 0, 1, -EIO);
    assert_int_equal(ops->event_query(device, event), -EIO);
    assert_int_equal(ops->event_query(device, event), 0);
    pst_device_fault_fail(&fault, PST_DEVICE_SYNCHRONIZE, 0, 1, -EIO);
    assert_int_equal(ops->synchronize(device, stream), -EIO);
    pst_device_fault_fail(&fault, PST_DEVICE_INFO, 0, 1, -EIO);
    uint64_t left = 7, total = 8;
    assert_int_equal(ops->memory_info(device, &left, &total), -EIO);
    assert_true(left == 7 && total == 8);
    pst_device_fault_fail(&fault, PST_DEVICE_REGISTER, 0, 1, -EIO);
    assert_int_equal(ops->register_host(device, &left, sizeof left), -EIO);
    assert_int_equal(ops->register_host(device, &left, sizeof left), 0);
    assert_int_equal(pst_device_fault_held(&fault), 5);

    /* What fails does nothing; what fails later seems to work and does nothing either. */
    memset(a, 1, 100);
    pst_device_fault_fail(&fault, PST_DEVICE_COPY, 0, 1, -EIO);
    assert_int_equal(ops->fill(device, NULL, a, 2, 100), -EIO);
    pst_device_fault_fail(&fault, PST_DEVICE_OPERATOR, 0, 1, -EIO);
    fault.plan[PST_DEVICE_OPERATOR].deferred = true;
    const pst_matrix m = {a, PST_F32, 1, 8, 8};
    assert_int_equal(ops->activate(device, PST_ACT_RELU, &m, &m), 0);
    assert_int_equal(((const char *)a)[0], 1);
    assert_int_equal(ops->synchronize(device, NULL), -EIO);
    assert_int_equal(ops->synchronize(device, NULL), 0);

    ops->unregister_host(device, &left);
    ops->event_destroy(device, event);
    ops->stream_destroy(device, stream);
    ops->release(device, PST_MEMORY_HOST, b, 50);
    pst_device_destroy(device);
    assert_int_equal(pst_device_fault_held(&fault), 1); /* a leak shows after the end */
    assert_int_equal(fault.allocations[PST_MEMORY_DEVICE], 1);
    assert_int_equal(fault.peak_bytes[PST_MEMORY_DEVICE], 100);
}

/* What the host does to `memory` in a child; whether it survived. */
static bool survives(volatile char *memory, bool write)
{
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        signal(SIGSEGV, SIG_DFL); /* neither the test's framework nor a sanitizer has a say in it */
        signal(SIGBUS, SIG_DFL);
        if (write)
            memory[0] = 1;
        else
            (void)memory[0];
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static void test_host_cannot_touch(void **state)
{
    (void)state;
    pst_device_fault fault;
    pst_device *device = wrap(&fault, true, false);
    const pst_device_ops *ops = device->ops;
    assert_false(ops->is_host);
    char *a = allocate(device, PST_MEMORY_DEVICE, 100), *pinned = allocate(device, PST_MEMORY_HOST, 100), plain[100];
    assert_int_equal((uintptr_t)a % 256, 0);
    assert_false(survives(a, false));
    assert_false(survives(a, true));
    assert_true(survives(pinned, true));
    assert_int_equal(ops->fill(device, NULL, a, 3, 100), 0);
    assert_false(survives(a, false));
    assert_int_equal(ops->copy(device, NULL, plain, a, 100), 0);
    assert_int_equal(ops->copy(device, NULL, pinned, a, 100), 0);
    assert_true(plain[0] == 3 && plain[99] == 3 && memcmp(plain, pinned, 100) == 0);
    assert_false(survives(a, false));
    ops->release(device, PST_MEMORY_DEVICE, a, 100);
    assert_false(survives(a, false));
    ops->release(device, PST_MEMORY_HOST, pinned, 100);
    close_whole(device, &fault);
    assert_int_equal(fault.misuses, 0);
}

/* The room is as large as it says, gaps are used again, and fresh memory is rubbish. */
static void test_room(void **state)
{
    (void)state;
    ref_seed("fault room");
    pst_device_fault fault;
    pst_device *device = wrap(&fault, true, false);
    const pst_device_ops *ops = device->ops;
    uint64_t left, total;
    enum { BLOCKS = 40 };
    struct {
        void *memory;
        uint64_t bytes;
    } blocks[BLOCKS] = {0};
    unsigned char byte;
    for (int round = 0; round < 2000; round++) {
        const size_t i = ref_between(0, BLOCKS - 1);
        ops->release(device, PST_MEMORY_DEVICE, blocks[i].memory, blocks[i].bytes);
        blocks[i].memory = NULL;
        blocks[i].bytes = ref_between(1, ROOM / 20);
        if (ops->allocate(device, PST_MEMORY_DEVICE, blocks[i].bytes, &blocks[i].memory) < 0)
            continue;
        assert_int_equal(ops->copy(device, NULL, &byte, (char *)blocks[i].memory + blocks[i].bytes - 1, 1), 0);
        assert_int_equal(byte, 0xff);
        assert_int_equal(ops->fill(device, NULL, blocks[i].memory, (int)i, blocks[i].bytes), 0);
        for (size_t j = 0; j < BLOCKS; j++) {
            if (blocks[j].memory == NULL)
                continue;
            assert_int_equal(ops->copy(device, NULL, &byte, blocks[j].memory, 1), 0);
            assert_int_equal(byte, j);
        }
    }
    for (size_t i = 0; i < BLOCKS; i++)
        ops->release(device, PST_MEMORY_DEVICE, blocks[i].memory, blocks[i].bytes);
    assert_int_equal(ops->memory_info(device, &left, &total), 0);
    assert_true(left == ROOM && total == ROOM);
    void *all = allocate(device, PST_MEMORY_DEVICE, ROOM), *more;
    assert_int_equal(ops->allocate(device, PST_MEMORY_DEVICE, 1, &more), -ENOMEM);
    assert_non_null(strstr(ops->last_error(device), "out of device memory"));
    ops->release(device, PST_MEMORY_DEVICE, all, ROOM);
    assert_int_equal(fault.misuses, 0);
    ops->release(device, PST_MEMORY_DEVICE, all, ROOM);
    assert_int_equal(fault.misuses, 1);
    close_whole(device, &fault);
}

/* An operand as the device's memory holds it, and the way back. */
static pst_matrix put(pst_device *device, const void *data, pst_dtype type, size_t rows, size_t columns)
{
    const uint64_t bytes = rows * columns * ref_bytes(type);
    pst_matrix m = {allocate(device, PST_MEMORY_DEVICE, bytes), type, rows, columns, columns};
    assert_int_equal(device->ops->copy(device, NULL, m.data, data, bytes), 0);
    return m;
}

static void drop(pst_device *device, const pst_matrix *m)
{
    device->ops->release(device, PST_MEMORY_DEVICE, m->data, m->rows * m->columns * ref_bytes(m->type));
}

/* A product, a norm and a list of rows give the host's bits; late ones, too, once they are waited for. */
static void check_results(bool late)
{
    enum { ROWS = 7, K = 64, N = 30 };
    pst_device_fault fault;
    pst_device *device = wrap(&fault, true, late), *host;
    const pst_device_ops *ops = device->ops;
    assert_int_equal(pst_device_host_create(pools[1], NULL, &host, NULL), 0);
    ref_array x = ref_randoms(PST_F32, ROWS * K, 0, 1.0), w = ref_randoms(PST_BF16, N * K, 0, 1.0);
    ref_array normed = ref_output(PST_F32, ROWS * K), y = ref_output(PST_F32, ROWS * N);
    const pst_matrix hx = {x.data, PST_F32, ROWS, K, K}, hn = {normed.data, PST_F32, ROWS, K, K};
    const pst_matrix hy = {y.data, PST_F32, ROWS, N, N};
    pst_weight hw = {.data = w.data, .type = PST_BF16, .rows = 1, .columns = K};
    assert_int_equal(host->ops->rms_norm(host, &hx, &hw, 1e-5f, &hn), 0);
    hw.rows = N;
    pst_weight two[2] = {hw, hw};
    two[1].rows = two[0].rows = N;
    const uint32_t first[3] = {0, 3, ROWS};
    const pst_grouped_matmul hjob = {hn, hy, two, first, 2};
    assert_int_equal(host->ops->matmul_grouped(host, &hjob), 0);

    pst_matrix dx = put(device, x.data, PST_F32, ROWS, K), dw = put(device, w.data, PST_BF16, N, K);
    pst_matrix dn = put(device, x.data, PST_F32, ROWS, K), dy = put(device, y.data, PST_F32, ROWS, N);
    pst_matrix df = put(device, first, PST_F32, 1, 3);
    assert_int_equal(ops->fill(device, NULL, dy.data, 0, ROWS * N * 4), 0);
    pst_weight weight = {.data = dw.data, .type = PST_BF16, .rows = 1, .columns = K};
    assert_int_equal(ops->rms_norm(device, &dx, &weight, 1e-5f, &dn), 0);
    weight.rows = N;
    pst_weight list[2] = {weight, weight};
    pst_grouped_matmul job = {dn, dy, list, df.data, 2};
    assert_int_equal(ops->matmul_grouped(device, &job), 0);
    memset(list, 0, sizeof list); /* read during the call only */
    memset(&job, 0, sizeof job);
    memset(&weight, 0, sizeof weight);
    float got[ROWS * N];
    assert_int_equal(ops->copy(device, NULL, got, dy.data, sizeof got), 0);
    assert_memory_equal(got, y.data, sizeof got);
    assert_int_equal(ops->synchronize(device, NULL), 0);
    drop(device, &dx);
    drop(device, &dw);
    drop(device, &dn);
    drop(device, &dy);
    drop(device, &df);
    assert_int_equal(fault.misuses, 0);
    close_whole(device, &fault);
    pst_device_destroy(host);
    ref_free(&x);
    ref_free(&w);
    ref_free(&normed);
    ref_free(&y);
}

static void test_results(void **state)
{
    (void)state;
    ref_seed("fault results");
    check_results(false);
    check_results(true);
}

static void require_misuse(pst_device_fault *fault, int status, const char *what)
{
    assert_int_equal(status, PST_E_USAGE);
    assert_int_equal(fault->misuses, 1);
    if (strstr(fault->misuse, what) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", fault->misuse, what);
    fault->misuses = 0;
}

static void test_misuses(void **state)
{
    (void)state;
    pst_device_fault fault;
    pst_device *device = wrap(&fault, true, false);
    const pst_device_ops *ops = device->ops;
    float own[64] = {0}, *a = allocate(device, PST_MEMORY_DEVICE, sizeof own);
    float *b = allocate(device, PST_MEMORY_DEVICE, 1024);
    pst_matrix good = {a, PST_F32, 4, 16, 16}, bad = {own, PST_F32, 4, 16, 16}, big = {a, PST_F32, 5, 16, 16};
    pst_weight w = {.data = b, .type = PST_F32, .rows = 1, .columns = 16};
    require_misuse(&fault, ops->activate(device, PST_ACT_RELU, &good, &bad), "activate: y, 256 bytes, is not memory");
    require_misuse(&fault, ops->activate(device, PST_ACT_RELU, &big, &good), "activate: x");
    w.data = own;
    require_misuse(&fault, ops->rms_norm(device, &good, &w, 0, &good), "rms_norm: a weight");
    w.data = b + 1;
    require_misuse(&fault, ops->rms_norm(device, &good, &w, 0, &good), "multiple of 256");
    require_misuse(&fault, ops->top(device, &good, 1, own, (uint32_t *)b), "top: the result");
    require_misuse(&fault, ops->log_sum_exp(device, &good, NULL, (double *)(void *)own), "log_sum_exp: the result");
    require_misuse(&fault, ops->log_sum_exp(device, &good, (double *)(void *)own, (double *)(void *)b),
                   "log_sum_exp: the factors");
    require_misuse(&fault, ops->fill(device, NULL, own, 0, 4), "fill");
    require_misuse(&fault, ops->copy(device, NULL, own, a, sizeof own + 1), "copy: beyond");
    uint32_t rows[4] = {0, 1, 2, 4};
    require_misuse(&fault, ops->take_rows(device, &good, rows, &good), "the list of rows");
    assert_int_equal(ops->copy(device, NULL, b, rows, sizeof rows), 0);
    require_misuse(&fault, ops->take_rows(device, &good, (uint32_t *)b, &good), "names row 4 of 4");
    const uint32_t positions[4] = {0, 0, 0, 50};
    assert_int_equal(ops->copy(device, NULL, b, positions, sizeof positions), 0);
    require_misuse(&fault, ops->rope(device, &good, 1, 16, 16, false, b + 4, (uint32_t *)b), "the table of angles");

    /* Segments: their list, what the host knows of them, the tables, the blocks. */
    const pst_kv_layout layout = {PST_KV_F16, 1, 1, 1, false};
    pst_segment segment = {.rows = 1, .first_position = 70, .blocks = (void **)(void *)own};
    pst_segment *list = allocate(device, PST_MEMORY_DEVICE, sizeof segment);
    pst_kv_store store = {.k = {a, PST_F32, 1, 1, 1}, .v = {a, PST_F32, 1, 1, 1}, .layout = layout};
    store.segments = (pst_segments){.items = &segment, .count = 1, .rows = 1, .max_rows = 1, .max_positions = 71};
    require_misuse(&fault, ops->kv_store(device, &store), "the segments");
    store.segments.items = list;
    assert_int_equal(ops->copy(device, NULL, list, &segment, sizeof segment), 0);
    require_misuse(&fault, ops->kv_store(device, &store), "a table of blocks");
    segment.blocks = (void **)(void *)b;
    assert_int_equal(ops->copy(device, NULL, list, &segment, sizeof segment), 0);
    void *blocks[2] = {NULL, own};
    assert_int_equal(ops->copy(device, NULL, b, blocks, sizeof blocks), 0);
    require_misuse(&fault, ops->kv_store(device, &store), "a block");
    blocks[1] = a; /* 64 positions of a key and a value: all of a; below it nothing is stored */
    assert_int_equal(ops->copy(device, NULL, b, blocks, sizeof blocks), 0);
    assert_int_equal(ops->kv_store(device, &store), 0);
    pst_attention attention = {.q = {a, PST_F32, 1, 1, 1}, .out = {a, PST_F32, 1, 1, 1}, .heads = 1, .layout = layout};
    attention.segments = store.segments;
    require_misuse(&fault, ops->attention(device, &attention), "a block");
    attention.window = 7; /* positions 64 to 70 */
    assert_int_equal(ops->attention(device, &attention), 0);
    store.segments.max_positions = 70;
    require_misuse(&fault, ops->kv_store(device, &store), "max_positions");

    ops->release(device, PST_MEMORY_DEVICE, a, 1);
    require_misuse(&fault, PST_E_USAGE, "release: not what was allocated");
    ops->release(device, PST_MEMORY_DEVICE, a, sizeof own);
    ops->release(device, PST_MEMORY_DEVICE, b, 1024);
    ops->release(device, PST_MEMORY_DEVICE, list, sizeof segment);
    close_whole(device, &fault);
}

/* Two streams and an event between them: nothing is done before it must be, and in order. */
static void test_late(void **state)
{
    (void)state;
    pst_device_fault fault;
    pst_device *device = wrap(&fault, true, true);
    const pst_device_ops *ops = device->ops;
    char *pinned = allocate(device, PST_MEMORY_HOST, 64), *a = allocate(device, PST_MEMORY_DEVICE, 64), plain[64];
    pst_device_stream *stream;
    pst_device_event *there, *back;
    assert_int_equal(ops->stream_create(device, &stream), 0);
    assert_int_equal(ops->event_create(device, &there), 0);
    assert_int_equal(ops->event_create(device, &back), 0);
    assert_int_equal(ops->event_wait(device, back), 0); /* never recorded: done */
    assert_int_equal(ops->event_query(device, back), 0);
    memset(pinned, 1, 64);
    assert_int_equal(ops->copy(device, stream, a, pinned, 64), 0);
    assert_int_equal(ops->event_record(device, there, stream), 0);
    assert_int_equal(ops->stream_wait(device, NULL, there), 0);
    assert_int_equal(ops->copy(device, NULL, pinned, a, 32), 0);
    assert_int_equal(ops->event_record(device, back, NULL), 0);
    memset(pinned, 2, 64); /* too soon: the copy has not happened */
    assert_int_equal(ops->event_wait(device, there), 0);
    memset(pinned, 3, 64);
    assert_int_equal(ops->event_wait(device, back), 0);
    assert_true(pinned[0] == 2 && pinned[31] == 2 && pinned[32] == 3);

    /* Without the event the other stream's copy is not done; the caller's own memory is copied at once, after its stream. */
    memset(pinned, 4, 64);
    assert_int_equal(ops->copy(device, stream, a, pinned, 64), 0);
    assert_int_equal(ops->copy(device, NULL, plain, a, 64), 0);
    assert_int_equal(plain[0], 2);
    assert_int_equal(ops->copy(device, stream, plain, a, 64), 0);
    assert_int_equal(plain[0], 4);

    /* Asking gets there. */
    int asked = 0;
    for (int i = 0; i < 3; i++)
        assert_int_equal(ops->fill(device, stream, a, i, 64), 0);
    assert_int_equal(ops->event_record(device, there, stream), 0);
    while (ops->event_query(device, there) == 1)
        assert_true(++asked < 10);
    assert_int_equal(asked, 3);

    /* What goes wrong late is told by what waits. */
    uint32_t *rows = allocate(device, PST_MEMORY_DEVICE, 4);
    assert_int_equal(ops->fill(device, NULL, rows, 0x77, 4), 0);
    const pst_matrix m = {a, PST_F32, 1, 4, 4};
    assert_int_equal(ops->take_rows(device, &m, rows, &m), 0);
    assert_int_equal(fault.misuses, 0);
    assert_int_equal(ops->synchronize(device, NULL), PST_E_USAGE);
    assert_int_equal(fault.misuses, 1);
    assert_int_equal(ops->synchronize(device, NULL), 0);

    /* Giving back waits. */
    memset(pinned, 5, 64);
    assert_int_equal(ops->copy(device, stream, a, pinned, 64), 0);
    ops->release(device, PST_MEMORY_HOST, pinned, 64);
    assert_int_equal(ops->copy(device, NULL, plain, a, 64), 0);
    assert_int_equal(plain[0], 5);
    ops->release(device, PST_MEMORY_DEVICE, a, 64);
    ops->release(device, PST_MEMORY_DEVICE, rows, 4);
    ops->stream_destroy(device, stream);
    ops->event_destroy(device, there);
    ops->event_destroy(device, back);
    close_whole(device, &fault);
}

static void test_memory_that_runs_out(void **state)
{
    (void)state;
    const int64_t live = pst_heap_live_count();
    int status = -1;
    for (int64_t n = 0; status < 0; n++) {
        pst_device_fault fault = {.separate = true, .late = true, .device_bytes = ROOM};
        pst_device *device = NULL;
        void *memory = NULL;
        pst_device_stream *stream = NULL;
        pst_device_event *event = NULL;
        pst_heap_fail_after(n, 0);
        status = pst_device_fault_open(&fault, "any", pools[0], NULL, &device, NULL);
        if (status >= 0)
            status = device->ops->allocate(device, PST_MEMORY_DEVICE, 64, &memory);
        if (status >= 0)
            status = device->ops->stream_create(device, &stream);
        if (status >= 0)
            status = device->ops->event_create(device, &event);
        if (status >= 0)
            status = device->ops->fill(device, stream, memory, 0, 64);
        pst_heap_fail_after(-1, 0);
        assert_true(status == 0 || status == -ENOMEM);
        assert_true(n < 100);
        if (device != NULL) {
            device->ops->release(device, PST_MEMORY_DEVICE, memory, 64);
            device->ops->stream_destroy(device, stream);
            device->ops->event_destroy(device, event);
        }
        pst_device_destroy(device);
        assert_int_equal(pst_device_fault_held(&fault), 0);
        assert_int_equal(pst_heap_live_count(), live);
    }
}

/* What is recorded is not done, and replayed as often as wanted, with what memory holds then; what has no place in it is a
 * misuse. */
static void check_recordings(bool late)
{
    pst_device_fault fault;
    pst_device *device = wrap(&fault, true, late);
    const pst_device_ops *ops = device->ops;
    pst_device_recording *recording = NULL;
    float *a = allocate(device, PST_MEMORY_DEVICE, 64), *b = allocate(device, PST_MEMORY_DEVICE, 64), plain[16] = {0};
    uint32_t *rows = allocate(device, PST_MEMORY_DEVICE, 4), which = 1;
    pst_matrix x = {a, PST_F32, 4, 4, 4}, y = {b, PST_F32, 1, 4, 4};
    for (int i = 0; i < 16; i++)
        plain[i] = (float)i;
    assert_int_equal(ops->copy(device, NULL, a, plain, 64), 0);
    assert_int_equal(ops->fill(device, NULL, b, 0, 64), 0);
    assert_int_equal(ops->fill(device, NULL, rows, 0, 4), 0);
    require_misuse(&fault, ops->record_end(device, &recording), "no recording");
    assert_int_equal(ops->record_begin(device), 0);
    assert_int_equal(ops->take_rows(device, &x, rows, &y), 0);
    assert_int_equal(ops->copy(device, NULL, b + 4, b, 16), 0);
    x = y = (pst_matrix){0};
    void *none;
    require_misuse(&fault, ops->allocate(device, PST_MEMORY_DEVICE, 64, &none), "allocate");
    require_misuse(&fault, ops->synchronize(device, NULL), "synchronize");
    require_misuse(&fault, ops->copy(device, NULL, plain, a, 64), "copy");
    require_misuse(&fault, ops->record_begin(device), "record_begin");
    assert_int_equal(ops->record_end(device, &recording), 0);
    assert_int_equal(ops->copy(device, NULL, plain, b, 32), 0);
    assert_true(plain[0] == 0 && plain[1] == 0 && plain[5] == 0);
    for (which = 1; which < 4; which++) {
        assert_int_equal(ops->copy(device, NULL, rows, &which, 4), 0);
        assert_int_equal(ops->replay(device, recording), 0);
        assert_int_equal(ops->copy(device, NULL, plain, b, 32), 0);
        assert_true(plain[1] == (float)(4 * which + 1) && plain[5] == plain[1]);
    }
    fault.stale_replays = 1;
    assert_int_equal(ops->replay(device, recording), 1);
    pst_device_fault_fail(&fault, PST_DEVICE_RECORDING, 0, 2, -EIO);
    assert_int_equal(ops->replay(device, recording), -EIO);
    assert_int_equal(ops->record_begin(device), -EIO);
    assert_int_equal(ops->record_begin(device), 0);
    pst_device_fault_fail(&fault, PST_DEVICE_RECORDING, 0, 1, -EIO);
    pst_device_recording *untouched = NULL;
    assert_int_equal(ops->record_end(device, &untouched), -EIO);
    assert_null(untouched);
    assert_int_equal(ops->synchronize(device, NULL), 0); /* it ended all the same */
    assert_int_equal(fault.replays, 3);
    assert_int_equal(pst_device_fault_held(&fault), 4);
    ops->recording_destroy(device, recording);
    ops->recording_destroy(device, NULL);
    ops->release(device, PST_MEMORY_DEVICE, a, 64);
    ops->release(device, PST_MEMORY_DEVICE, b, 64);
    ops->release(device, PST_MEMORY_DEVICE, rows, 4);
    assert_int_equal(ops->record_begin(device), 0); /* dropped with the device */
    close_whole(device, &fault);
}

static void test_recordings(void **state)
{
    (void)state;
    check_recordings(false);
    check_recordings(true);
    pst_device_fault fault; /* the host does not record */
    pst_device *device = wrap(&fault, false, false);
    assert_int_equal(device->ops->record_begin(device), PST_E_UNSUPPORTED);
    close_whole(device, &fault);
}

static void test_opener(void **state)
{
    (void)state;
    pst_device_fault fault = {.separate = true};
    pst_device *device;
    pst_device_replace_open(pst_device_fault_open, &fault);
    assert_int_equal(pst_device_open("cuda", pools[0], NULL, &device, NULL), 0);
    pst_device_replace_open(NULL, NULL);
    assert_string_equal(device->ops->name, "fault:host");
    pst_device_destroy(device);
    assert_int_equal(pst_device_open("host", pools[0], NULL, &device, NULL), 0);
    assert_string_equal(device->ops->name, "host");
    pst_device *wrapped = NULL;
    pst_device_fault late = {.late = true};
    assert_int_equal(pst_device_fault_create(&late, device, &wrapped, NULL), PST_E_USAGE);
    assert_null(wrapped);
    pst_device_destroy(device);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_planned_failures),
        cmocka_unit_test(test_host_cannot_touch),
        cmocka_unit_test(test_room),
        cmocka_unit_test(test_results),
        cmocka_unit_test(test_misuses),
        cmocka_unit_test(test_late),
        cmocka_unit_test(test_memory_that_runs_out),
        cmocka_unit_test(test_recordings),
        cmocka_unit_test(test_opener),
    };
    return cmocka_run_group_tests(tests, pools_set_up, pools_tear_down);
}
