/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory, streams and events of a device: copies between every two kinds of memory of any size, order between streams by
 * events alone, memory that is not there, and nothing left over from opening and closing a thousand times.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "device/ops.h"
#include "os/memory.h"

/* ---- Memory of a kind ---- */

typedef enum kind { DEVICE, PINNED, REGISTERED, PLAIN, KINDS } kind;
static const char *const kind_names[] = {"device", "pinned", "registered", "plain"};

typedef struct piece {
    kind kind;
    size_t bytes;
    unsigned char *data;
} piece;

static pst_device *dut;

static void must(int status, const char *what)
{
    if (status < 0)
        fail_msg("%s: %s: %s (%s)", ops_name(), what, pst_strerror(status), dut->ops->last_error(dut));
}

static piece claim(kind k, size_t bytes)
{
    piece p = {.kind = k, .bytes = bytes};
    void *memory = NULL;
    if (k == DEVICE || k == PINNED) {
        must(dut->ops->allocate(dut, k == DEVICE ? PST_MEMORY_DEVICE : PST_MEMORY_HOST, bytes, &memory), "allocate");
        assert_int_equal((uintptr_t)memory % 256, 0);
    } else {
        memory = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096); /* registering is by pages: nobody else's */
        assert_non_null(memory);
    }
    if (k == REGISTERED)
        must(dut->ops->register_host(dut, memory, bytes), "register_host");
    p.data = memory;
    return p;
}

static void give_back(piece *p)
{
    if (p->kind == REGISTERED)
        dut->ops->unregister_host(dut, p->data);
    if (p->kind == DEVICE || p->kind == PINNED)
        dut->ops->release(dut, p->kind == DEVICE ? PST_MEMORY_DEVICE : PST_MEMORY_HOST, p->data, p->bytes);
    else
        free(p->data);
}

static void random_bytes(unsigned char *p, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        p[i] = (unsigned char)(ref_random() >> 32);
}

/* What is in a piece. */
static void read_piece(const piece *p, unsigned char *out)
{
    must(dut->ops->synchronize(dut, NULL), "synchronize");
    must(dut->ops->copy(dut, NULL, out, p->data, p->bytes), "copy");
    must(dut->ops->synchronize(dut, NULL), "synchronize");
}

/* From anywhere in one piece to anywhere in another; what lies around stays. */
static void check_copy(kind from, kind to, size_t bytes, pst_device_stream *stream)
{
    const size_t lead = ref_between(0, 1) * ref_between(0, 300), skip = ref_between(0, 1) * ref_between(0, 300);
    piece a = claim(from, lead + bytes + 7), b = claim(to, skip + bytes + 9);
    unsigned char *model = malloc(a.bytes), *expected = malloc(b.bytes), *got = malloc(b.bytes);
    assert_true(model != NULL && expected != NULL && got != NULL);
    random_bytes(model, a.bytes);
    memset(expected, 0x5a, b.bytes);
    must(dut->ops->copy(dut, stream, a.data, model, a.bytes), "copy");
    if (to == PLAIN) /* which `fill` does not take */
        memset(b.data, 0x5a, b.bytes);
    else
        must(dut->ops->fill(dut, stream, b.data, 0x5a, b.bytes), "fill");
    must(dut->ops->copy(dut, stream, b.data + skip, a.data + lead, bytes), "copy");
    memcpy(expected + skip, model + lead, bytes);
    must(dut->ops->synchronize(dut, stream), "synchronize");
    read_piece(&b, got);
    if (memcmp(got, expected, b.bytes) != 0)
        fail_msg("%s: %zu bytes from %s to %s memory", ops_name(), bytes, kind_names[from], kind_names[to]);
    free(model);
    free(expected);
    free(got);
    give_back(&a);
    give_back(&b);
}

static void test_copies(void **state)
{
    (void)state;
    if (!ops_begin("copies"))
        return;
    dut = ops_device(OPS_DEVICE);
    static const size_t sizes[] = {1, 3, 255, 256, 4096, 65537, (1 << 20) + 13, 5 << 20};
    pst_device_stream *stream;
    must(dut->ops->stream_create(dut, &stream), "stream_create");
    for (int from = 0; from < KINDS; from++)
        for (int to = 0; to < KINDS; to++)
            for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
                check_copy((kind)from, (kind)to, sizes[i], ref_between(0, 1) ? stream : NULL);
    must(dut->ops->copy(dut, stream, NULL, NULL, 0), "copy of nothing");
    dut->ops->stream_destroy(dut, stream);
    dut->ops->stream_destroy(dut, NULL);
}

/* What the host has nothing to do with any more when the copy returns: its ordinary memory, on either side. */
static void test_ordinary_memory(void **state)
{
    (void)state;
    if (!ops_begin("copies of ordinary memory"))
        return;
    dut = ops_device(OPS_DEVICE);
    for (int i = 0; i < 20; i++) {
        piece there = claim(DEVICE, 4096), here = claim(PLAIN, there.bytes), back = claim(PLAIN, there.bytes);
        unsigned char *model = malloc(here.bytes);
        assert_non_null(model);
        random_bytes(model, here.bytes);
        memcpy(here.data, model, here.bytes);
        must(dut->ops->copy(dut, NULL, there.data, here.data, here.bytes), "copy");
        memset(here.data, 0x5a, here.bytes);
        must(dut->ops->copy(dut, NULL, back.data, there.data, here.bytes), "copy");
        assert_memory_equal(back.data, model, here.bytes);
        free(model);
        give_back(&there);
        give_back(&here);
        give_back(&back);
    }
}

/* Random bytes to random places, against a model. */
static void test_fill(void **state)
{
    (void)state;
    if (!ops_begin("fill"))
        return;
    dut = ops_device(OPS_DEVICE);
    for (kind k = DEVICE; k <= REGISTERED; k++) {
        piece p = claim(k, 70000);
        unsigned char *model = malloc(p.bytes), *got = malloc(p.bytes);
        assert_true(model != NULL && got != NULL);
        memset(model, 0, p.bytes);
        must(dut->ops->fill(dut, NULL, p.data, 0, p.bytes), "fill");
        for (size_t i = 0; i < 30; i++) {
            const size_t bytes = ref_between(0, ref_between(0, 1) ? 40 : 30000), at = ref_between(0, p.bytes - bytes);
            const int byte = (int)ref_between(0, 255);
            must(dut->ops->fill(dut, NULL, p.data + at, byte, bytes), "fill");
            memset(model + at, byte, bytes);
        }
        read_piece(&p, got);
        assert_memory_equal(got, model, p.bytes);
        free(model);
        free(got);
        give_back(&p);
    }
}

/* ---- Order ---- */

enum { STREAMS = 4, PIECES = 6, PIECE_BYTES = 200000, STEPS = 400 };

/* What must be waited for before a piece is read, and before it is written. */
typedef struct use {
    pst_device_event *written, *read[STREAMS];
} use;

typedef struct order {
    pst_device_stream *streams[STREAMS];
    piece pieces[PIECES];
    unsigned char *model[PIECES];
    use uses[PIECES];
} order;

static void set_up_order(order *o)
{
    static const kind kinds[PIECES] = {DEVICE, DEVICE, DEVICE, PINNED, PINNED, REGISTERED};
    memset(o, 0, sizeof *o);
    for (size_t s = 1; s < STREAMS; s++) /* the first one is the compute stream */
        must(dut->ops->stream_create(dut, &o->streams[s]), "stream_create");
    for (size_t i = 0; i < PIECES; i++) {
        o->pieces[i] = claim(kinds[i], PIECE_BYTES);
        assert_non_null(o->model[i] = malloc(PIECE_BYTES));
        random_bytes(o->model[i], PIECE_BYTES);
        must(dut->ops->copy(dut, NULL, o->pieces[i].data, o->model[i], PIECE_BYTES), "copy");
        must(dut->ops->event_create(dut, &o->uses[i].written), "event_create");
        for (size_t s = 0; s < STREAMS; s++)
            must(dut->ops->event_create(dut, &o->uses[i].read[s]), "event_create");
    }
    must(dut->ops->synchronize(dut, NULL), "synchronize");
}

static void tear_down_order(order *o)
{
    for (size_t i = 0; i < PIECES; i++) {
        dut->ops->event_destroy(dut, o->uses[i].written);
        for (size_t s = 0; s < STREAMS; s++)
            dut->ops->event_destroy(dut, o->uses[i].read[s]);
        free(o->model[i]);
        give_back(&o->pieces[i]);
    }
    for (size_t s = 1; s < STREAMS; s++)
        dut->ops->stream_destroy(dut, o->streams[s]);
}

/* Copies a part of one piece to another on some stream, after what it must come after and nothing else. */
static void random_step(order *o)
{
    const size_t s = ref_between(0, STREAMS - 1), from = ref_between(0, PIECES - 1);
    const size_t to = (from + ref_between(1, PIECES - 1)) % PIECES;
    const size_t bytes = ref_between(1, PIECE_BYTES), at = ref_between(0, PIECE_BYTES - bytes);
    const size_t target = ref_between(0, PIECE_BYTES - bytes);
    pst_device_stream *stream = o->streams[s];
    must(dut->ops->stream_wait(dut, stream, o->uses[from].written), "stream_wait");
    must(dut->ops->stream_wait(dut, stream, o->uses[to].written), "stream_wait");
    for (size_t i = 0; i < STREAMS; i++)
        must(dut->ops->stream_wait(dut, stream, o->uses[to].read[i]), "stream_wait");
    if (ref_between(0, 4) == 0) {
        const int byte = (int)ref_between(0, 255);
        must(dut->ops->fill(dut, stream, o->pieces[to].data + target, byte, bytes), "fill");
        memset(o->model[to] + target, byte, bytes);
    } else {
        must(dut->ops->copy(dut, stream, o->pieces[to].data + target, o->pieces[from].data + at, bytes), "copy");
        memcpy(o->model[to] + target, o->model[from] + at, bytes);
        must(dut->ops->event_record(dut, o->uses[from].read[s], stream), "event_record");
    }
    must(dut->ops->event_record(dut, o->uses[to].written, stream), "event_record");
}

static void test_order(void **state)
{
    (void)state;
    if (!ops_begin("order of streams"))
        return;
    dut = ops_device(OPS_DEVICE);
    order o;
    set_up_order(&o);
    unsigned char *got = malloc(PIECE_BYTES);
    assert_non_null(got);
    for (size_t step = 0; step < STEPS; step++)
        random_step(&o);
    for (size_t i = 0; i < PIECES; i++) {
        must(dut->ops->event_wait(dut, o.uses[i].written), "event_wait");
        assert_int_equal(dut->ops->event_query(dut, o.uses[i].written), 0);
        must(dut->ops->stream_wait(dut, NULL, o.uses[i].written), "stream_wait");
        read_piece(&o.pieces[i], got);
        assert_memory_equal(got, o.model[i], PIECE_BYTES);
    }
    free(got);
    tear_down_order(&o);
}

/* An operator comes after the copies of its own stream and after the events that the stream waits for. */
static void test_operators_in_order(void **state)
{
    (void)state;
    if (!ops_begin("order of operators"))
        return;
    dut = ops_device(OPS_DEVICE);
    enum { COUNT = 5000 };
    piece in = claim(PINNED, COUNT * 4), x = claim(DEVICE, COUNT * 4), out = claim(PINNED, COUNT * 4);
    pst_device_stream *stream;
    pst_device_event *arrived, *done;
    must(dut->ops->stream_create(dut, &stream), "stream_create");
    must(dut->ops->event_create(dut, &arrived), "event_create");
    must(dut->ops->event_create(dut, &done), "event_create");
    float *numbers = (float *)(void *)in.data, *results = (float *)(void *)out.data;
    const pst_matrix m = {x.data, PST_F32, 1, COUNT, COUNT};
    for (size_t round = 0; round < 30; round++) {
        for (size_t i = 0; i < COUNT; i++)
            numbers[i] = (float)((double)i * (i % 2 ? -1.0 : 1.0) + (double)round);
        must(dut->ops->copy(dut, stream, x.data, numbers, in.bytes), "copy");
        must(dut->ops->event_record(dut, arrived, stream), "event_record");
        must(dut->ops->stream_wait(dut, NULL, arrived), "stream_wait");
        must(dut->ops->activate(dut, PST_ACT_RELU, &m, &m), "activate");
        must(dut->ops->event_record(dut, done, NULL), "event_record");
        must(dut->ops->stream_wait(dut, stream, done), "stream_wait");
        must(dut->ops->copy(dut, stream, results, x.data, out.bytes), "copy");
        must(dut->ops->event_record(dut, arrived, stream), "event_record");
        must(dut->ops->event_wait(dut, arrived), "event_wait");
        for (size_t i = 0; i < COUNT; i++)
            assert_true(results[i] == (numbers[i] > 0 ? numbers[i] : 0));
    }
    dut->ops->event_destroy(dut, arrived);
    dut->ops->event_destroy(dut, done);
    dut->ops->stream_destroy(dut, stream);
    give_back(&in);
    give_back(&x);
    give_back(&out);
}

static void test_events(void **state)
{
    (void)state;
    if (!ops_begin("events"))
        return;
    dut = ops_device(OPS_DEVICE);
    pst_device_event *event;
    pst_device_stream *stream;
    must(dut->ops->stream_create(dut, &stream), "stream_create");
    must(dut->ops->event_create(dut, &event), "event_create");
    assert_int_equal(dut->ops->event_query(dut, event), 0); /* never recorded: done */
    assert_int_equal(dut->ops->event_wait(dut, event), 0);
    must(dut->ops->stream_wait(dut, stream, event), "stream_wait");
    must(dut->ops->synchronize(dut, stream), "synchronize");
    piece p = claim(DEVICE, 1 << 20);
    for (int i = 0; i < 20; i++) {
        must(dut->ops->fill(dut, stream, p.data, i, p.bytes), "fill");
        must(dut->ops->event_record(dut, event, stream), "event_record");
        const int state_now = dut->ops->event_query(dut, event);
        assert_true(state_now == 0 || state_now == 1);
        must(dut->ops->event_wait(dut, event), "event_wait");
        assert_int_equal(dut->ops->event_query(dut, event), 0);
    }
    give_back(&p);
    dut->ops->event_destroy(dut, event);
    dut->ops->event_destroy(dut, NULL);
    dut->ops->stream_destroy(dut, stream);
}

/* ---- Memory that is there and memory that is not ---- */

static void test_memory_information(void **state)
{
    (void)state;
    if (!ops_begin("memory information"))
        return;
    dut = ops_device(OPS_DEVICE);
    uint64_t free_bytes, total, left, same;
    must(dut->ops->memory_info(dut, &free_bytes, &total), "memory_info");
    assert_true(total > 0 && free_bytes <= total);
    const uint64_t bytes = free_bytes / 4;
    void *memory = NULL;
    must(dut->ops->allocate(dut, PST_MEMORY_DEVICE, bytes, &memory), "allocate");
    must(dut->ops->memory_info(dut, &left, &same), "memory_info");
    assert_int_equal(same, total);
    if (!dut->ops->is_host) /* the host gives pages when they are touched; other programs may use the device as well */
        assert_true(left + bytes <= free_bytes + bytes / 8 && left >= free_bytes / 2);
    dut->ops->release(dut, PST_MEMORY_DEVICE, memory, bytes);
    dut->ops->release(dut, PST_MEMORY_DEVICE, NULL, 0);
    dut->ops->release(dut, PST_MEMORY_HOST, NULL, 0);
}

/* More than there is: an error, a line about it, the result untouched, and the device works as before. */
static void test_too_much(void **state)
{
    (void)state;
    if (!ops_begin("too much memory"))
        return;
    dut = ops_device(OPS_DEVICE);
    uint64_t free_bytes, total;
    must(dut->ops->memory_info(dut, &free_bytes, &total), "memory_info");
    const uint64_t sizes[] = {total + (1 << 20), UINT64_MAX / 2, UINT64_MAX - 4096, UINT64_MAX};
    for (size_t i = dut->ops->is_host ? 1 : 0; i < sizeof sizes / sizeof *sizes; i++) {
        for (int k = PST_MEMORY_DEVICE; k <= (i == 0 ? PST_MEMORY_DEVICE : PST_MEMORY_HOST); k++) {
            void *memory = &free_bytes;
            assert_true(dut->ops->allocate(dut, (pst_device_memory)k, sizes[i], &memory) < 0);
            assert_ptr_equal(memory, &free_bytes);
            assert_true(dut->ops->is_host || strlen(dut->ops->last_error(dut)) > 0);
            assert_null(strchr(dut->ops->last_error(dut), '\n'));
        }
    }
    check_copy(PLAIN, DEVICE, 1000, NULL);
}

/* Pieces until there are no more, and then all of it again. */
static void test_all_of_it(void **state)
{
    (void)state;
    if (!ops_begin("all memory"))
        return;
    dut = ops_device(OPS_DEVICE);
    enum { MOST = 64 };
    uint64_t free_bytes, total;
    void *pieces[MOST];
    if (dut->ops->is_host)
        return;
    must(dut->ops->memory_info(dut, &free_bytes, &total), "memory_info");
    const uint64_t bytes = free_bytes / 16;
    size_t counts[2] = {0};
    for (int round = 0; round < 2; round++) {
        while (counts[round] < MOST && dut->ops->allocate(dut, PST_MEMORY_DEVICE, bytes, &pieces[counts[round]]) >= 0)
            counts[round]++;
        for (size_t i = 0; i < counts[round]; i++)
            dut->ops->release(dut, PST_MEMORY_DEVICE, pieces[i], bytes);
        assert_in_range(counts[round], 12, 17);
    }
    assert_true(counts[1] + 1 >= counts[0]);
    check_copy(PLAIN, DEVICE, 1000, NULL);
}

/* Each of the thousand does a little of everything. */
static void test_a_thousand_devices(void **state)
{
    (void)state;
    if (!ops_begin("a thousand devices"))
        return;
    pst_device *first = ops_device(OPS_DEVICE);
    uint64_t before = 0, after = 0, total, resident = 0;
    for (size_t round = 0; round < 1000; round++) {
        if (round == 100) { /* what comes with the first ones stays */
            resident = pst_memory_resident_bytes();
            assert_int_equal(first->ops->memory_info(first, &before, &total), 0);
        }
        pst_error err = {0};
        if (ops_open(&dut, &err) < 0)
            fail_msg("device %zu: %s", round, err.message);
        piece d = claim(DEVICE, 100000), h = claim(PINNED, 100000), r = claim(REGISTERED, 50000);
        pst_device_stream *stream;
        pst_device_event *event;
        must(dut->ops->stream_create(dut, &stream), "stream_create");
        must(dut->ops->event_create(dut, &event), "event_create");
        memset(h.data, (int)(round & 0xff), h.bytes);
        must(dut->ops->copy(dut, stream, d.data, h.data, d.bytes), "copy");
        must(dut->ops->copy(dut, stream, r.data, d.data, r.bytes), "copy");
        must(dut->ops->event_record(dut, event, stream), "event_record");
        must(dut->ops->event_wait(dut, event), "event_wait");
        assert_int_equal(r.data[r.bytes - 1], round & 0xff);
        dut->ops->event_destroy(dut, event);
        dut->ops->stream_destroy(dut, stream);
        give_back(&d);
        give_back(&h);
        give_back(&r);
        pst_device_destroy(dut);
    }
    assert_int_equal(first->ops->memory_info(first, &after, &total), 0);
    if (!first->ops->is_host)
        assert_true(after + (16 << 20) >= before);
    const uint64_t grown = pst_memory_resident_bytes();
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) /* they keep what is freed for a while */
    if (grown > resident + (8 << 20))
        fail_msg("the process has %llu bytes more after 900 devices", (unsigned long long)(grown - resident));
#endif
    (void)grown;
    (void)resident;
}

/* The plugin's table says what it has. */
static void test_plugin(void **state)
{
    (void)state;
    if (!ops_begin("the plugin") || ops_plugin() == NULL)
        return;
    const pst_device_plugin *plugin = ops_plugin();
    uint32_t count = 0;
    pst_error err = {0};
    assert_int_equal(plugin->count(&count, &err), 0);
    assert_true(count > 0);
    for (uint32_t i = 0; i < count; i++) {
        pst_device_info info = {.struct_size = sizeof info};
        assert_int_equal(plugin->describe(i, &info, &err), 0);
        assert_true(strlen(info.name) > 0 && strlen(info.model) > 0 && strlen(info.direct_storage) > 0);
        assert_true(strlen(info.matrix_library) > 0);
        assert_true(info.total_bytes > 0 && info.free_bytes <= info.total_bytes);
    }
    pst_device_info info = {.struct_size = sizeof info};
    assert_true(plugin->describe(count, &info, &err) < 0);
    assert_true(strlen(err.message) > 0 && strchr(err.message, '\n') == NULL);
    pst_device *device = (pst_device *)(void *)&info;
    err.message[0] = '\0';
    assert_true(plugin->open(count, &device, &err) < 0);
    assert_ptr_equal(device, &info);
    assert_true(strlen(err.message) > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_copies),
        cmocka_unit_test(test_ordinary_memory),
        cmocka_unit_test(test_fill),
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_operators_in_order),
        cmocka_unit_test(test_events),
        cmocka_unit_test(test_memory_information),
        cmocka_unit_test(test_too_much),
        cmocka_unit_test(test_all_of_it),
        cmocka_unit_test(test_a_thousand_devices),
        cmocka_unit_test(test_plugin),
    };
    return cmocka_run_group_tests_name("memory of devices", tests, ops_set_up, ops_tear_down);
}
