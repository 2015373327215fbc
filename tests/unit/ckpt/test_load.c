/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loading safetensors files that the test itself writes: random tensors, random slices, any engine, any alignment of
 * the caller's memory, with and without digests (with cuts), under faults, without memory, from several threads.
 */
#include "unit/store/files.h"

#include <errno.h>
#include <pthread.h>

#include "base/heap.h"
#include "ckpt/load.h"
#include "penstock/io_fault.h"
#include "store/image.h"
#include "store/safetensors.h"
#include "support/random.h"
#include "unit/io/io_test.h"

enum { MAX_TENSORS = 40, GUARD = 32 };

/* ---- a file ---- */

typedef struct known_tensor {
    char name[24];
    pst_dtype dtype;
    uint32_t rank;
    uint64_t shape[4];
    uint64_t begin, bytes; /* in the data */
} known_tensor;

typedef struct known_file {
    char path[300];
    known_tensor tensors[MAX_TENSORS];
    size_t count;
    unsigned char *data;
    uint64_t bytes, data_begin;
} known_file;

static void digest_of(const void *data, uint64_t bytes, char *digits)
{
    pst_digest *digest;
    assert_int_equal(pst_digest_create(&digest, NULL), 0);
    pst_digest_begin(digest);
    pst_digest_add(digest, data, bytes);
    pst_digest_end(digest, digits);
    pst_digest_destroy(digest);
}

/* The digest of [begin, end) of the data, cut at these places of the data. */
static void cut_digest_of(const known_file *f, uint64_t begin, uint64_t end, const uint64_t *cuts, size_t count,
                          char *digits)
{
    unsigned char joined[16 * 16];
    size_t runs = 0;
    uint64_t at = begin;
    for (size_t i = 0; i <= count; i++) {
        uint64_t next = i < count ? cuts[i] : end;
        if (next <= at || next > end || (next == end && i < count))
            continue;
        digest_of(f->data + at, next - at, digits);
        for (int k = 0; k < 16; k++) {
            unsigned value;
            char two[3] = {digits[2 * k], digits[2 * k + 1], 0};
            assert_int_equal(sscanf(two, "%x", &value), 1);
            joined[16 * runs + (size_t)k] = (unsigned char)value;
        }
        runs++;
        at = next;
    }
    if (runs == 0)
        digest_of("", 0, digits);
    else if (runs > 1)
        digest_of(joined, 16 * runs, digits);
}

/* Writes the file with a header of 4096 * n bytes. digests: with these cuts, and the file's own. */
static void write_known(known_file *f, const char *path, bool digests, const uint64_t *cuts, size_t cut_count)
{
    size_t room = 8192 + f->count * 300, used;
    char *text = calloc(1, room), *own = NULL;
    if (path != f->path)
        snprintf(f->path, sizeof f->path, "%s", path);
    used = (size_t)sprintf(text + 8, "{\"__metadata__\":{\"made\":\"by a test\"");
    f->data_begin = room = (room + 4095) / 4096 * 4096;
    text = realloc(text, room);
    if (digests) {
        used += (size_t)sprintf(text + 8 + used, ",\"" PST_DIGESTS_KEY "\":\"" PST_DIGESTS_KIND);
        for (size_t i = 0; i < f->count; i++) {
            char digits[PST_DIGEST_DIGITS];
            const known_tensor *t = &f->tensors[i];
            cut_digest_of(f, t->begin, t->begin + t->bytes, cuts, cut_count, digits);
            used += (size_t)sprintf(text + 8 + used, " %.*s", PST_DIGEST_DIGITS, digits);
        }
        used += (size_t)sprintf(text + 8 + used, "\"");
        for (size_t i = 0; i < cut_count; i++)
            used += (size_t)sprintf(text + 8 + used, i ? " %llu" : ",\"" PST_CUTS_KEY "\":\"%llu",
                                    (unsigned long long)(f->data_begin + cuts[i]));
        used += (size_t)sprintf(text + 8 + used, "%s,\"" PST_FILE_DIGEST_KEY "\":\"", cut_count ? "\"" : "");
        own = text + 8 + used;
        used += (size_t)sprintf(text + 8 + used, "%032d\"", 0);
    }
    used += (size_t)sprintf(text + 8 + used, "}");
    for (size_t i = 0; i < f->count; i++) {
        const known_tensor *t = &f->tensors[i];
        used += (size_t)sprintf(text + 8 + used, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", t->name,
                                pst_dtype_name(t->dtype));
        for (uint32_t d = 0; d < t->rank; d++)
            used += (size_t)sprintf(text + 8 + used, d ? ",%llu" : "%llu", (unsigned long long)t->shape[d]);
        used += (size_t)sprintf(text + 8 + used, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)t->begin,
                                (unsigned long long)(t->begin + t->bytes));
    }
    used += (size_t)sprintf(text + 8 + used, "}");
    assert_true(8 + used <= room);
    memset(text + 8 + used, ' ', room - 8 - used);
    uint64_t header = room - 8;
    memcpy(text, &header, 8);
    if (own != NULL) {
        char digits[PST_DIGEST_DIGITS];
        digest_of(text, room, digits);
        memcpy(own, digits, sizeof digits);
    }
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, room, file), room);
    assert_int_equal(fwrite(f->data, 1, f->bytes, file), f->bytes);
    assert_int_equal(fclose(file), 0);
    free(text);
}

static void make_known(known_file *f, uint64_t largest)
{
    static const pst_dtype types[] = {PST_U8, PST_BF16, PST_F32, PST_F64, PST_BOOL, PST_F8_E4M3};
    *f = (known_file){.count = 1 + random_below(MAX_TENSORS)};
    for (size_t i = 0; i < f->count; i++) {
        known_tensor *t = &f->tensors[i];
        snprintf(t->name, sizeof t->name, "t%zu.weight", i);
        t->dtype = types[random_below(6)];
        t->rank = (uint32_t)random_below(5);
        uint64_t most = 1 + random_below(random_below(4) ? 2000 : largest), elements = 1;
        for (uint32_t d = 0; d < t->rank; d++) {
            t->shape[d] = d + 1 == t->rank ? most / elements : 1 + random_below(1 + most / elements / 2);
            if (random_below(40) == 0)
                t->shape[d] = 0;
            elements *= t->shape[d] ? t->shape[d] : 1;
        }
        t->begin = f->bytes;
        assert_int_equal(pst_tensor_shape_bytes(t->dtype, t->shape, t->rank, &t->bytes), 0);
        f->bytes += t->bytes;
    }
    f->data = malloc(f->bytes + 1);
    for (uint64_t i = 0; i < f->bytes; i++)
        f->data[i] = (unsigned char)pst_mix(i / 8 + 1) ^ (unsigned char)i;
}

/* ---- reading ---- */

typedef struct wanted {
    pst_ckpt_read_op op;
    uint64_t start[4], stop[4];
    unsigned char *memory, *expected;
    uint64_t bytes;
    size_t tensor; /* of the known ones */
} wanted;

static uint64_t copy_slice(const known_file *f, const known_tensor *t, const uint64_t *start, const uint64_t *stop,
                           unsigned char *out)
{
    uint64_t element = pst_dtype_bits(t->dtype) / 8, at[4] = {0}, written = 0;
    for (uint32_t d = 0; d < t->rank; d++) {
        at[d] = start[d];
        if (start[d] == stop[d])
            return 0;
    }
    for (;;) {
        uint64_t place = 0;
        for (uint32_t d = 0; d < t->rank; d++)
            place = place * t->shape[d] + at[d];
        if (out != NULL)
            memcpy(out + written, f->data + t->begin + place * element, element);
        written += element;
        uint32_t d = t->rank;
        while (d > 0 && ++at[d - 1] == stop[d - 1]) {
            at[d - 1] = start[d - 1];
            d--;
        }
        if (d == 0)
            return written;
    }
}

static void want(const known_file *f, const pst_ckpt *ckpt, wanted *w)
{
    *w = (wanted){.tensor = (size_t)random_below(f->count)};
    const known_tensor *t = &f->tensors[w->tensor];
    bool whole = random_below(2) == 0;
    for (uint32_t d = 0; d < t->rank; d++) {
        uint64_t a = random_below(t->shape[d] + 1), b = random_below(t->shape[d] + 1);
        bool all = whole || random_below(3) == 0;
        w->start[d] = all ? 0 : a < b ? a : b;
        w->stop[d] = all ? t->shape[d] : a < b ? b : a;
    }
    int64_t index = pst_ckpt_find(ckpt, t->name);
    assert_true(index >= 0);
    uint64_t shift = random_below(3) == 0 ? 0 : random_below(600); /* 0: as aligned as the file */
    w->bytes = copy_slice(f, t, w->start, w->stop, NULL);
    w->memory = aligned_alloc(4096, (w->bytes + 600 + 2 * GUARD + 8192) / 4096 * 4096 + 4096);
    w->expected = malloc(w->bytes + 2 * GUARD);
    unsigned char *out = w->memory + GUARD + shift;
    if (shift == 0)
        out = w->memory + 4096 + (f->data_begin + t->begin) % 4096 % 512;
    memset(out - GUARD, 0x77, w->bytes + 2 * GUARD);
    memset(w->expected, 0x77, w->bytes + 2 * GUARD);
    copy_slice(f, t, w->start, w->stop, w->expected + GUARD);
    w->op = (pst_ckpt_read_op){.tensor = (size_t)index, .out = out};
    if (!whole) {
        w->op.start = w->start;
        w->op.stop = w->stop;
    } else if (random_below(2)) {
        pst_ckpt_tensor_info info;
        assert_int_equal(pst_ckpt_tensor_at(ckpt, (size_t)index, &info), 0);
        w->op.tensor = info.storage;
        w->op.is_storage = true;
    }
}

static void free_wanted(wanted *w, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        free(w[i].memory);
        free(w[i].expected);
    }
}

static void assert_got(const wanted *w, const known_file *f)
{
    if (memcmp((unsigned char *)w->op.out - GUARD, w->expected, w->bytes + 2 * GUARD) != 0)
        fail_msg("tensor %s differs", f->tensors[w->tensor].name);
}

/* Several ops at once; the tensors' slices point into `w`, so it must not move. */
static int read_wanted(pst_ckpt *ckpt, wanted *w, size_t count, pst_error *err)
{
    pst_ckpt_read_op ops[64];
    for (size_t i = 0; i < count; i++)
        ops[i] = w[i].op;
    return pst_ckpt_read(ckpt, ops, count, err);
}

static pst_ckpt *open_ckpt(const char *path, const char *engine, bool verify, uint64_t ring_bytes)
{
    pst_ckpt_open_options options = {.struct_size = sizeof options,
                                     .path = path,
                                     .verify = verify,
                                     .ring_bytes = ring_bytes,
                                     .io = {.struct_size = sizeof(pst_io_options),
                                            .engine = engine,
                                            .block_size = 65536,
                                            .queue_depth = 8,
                                            .buffered = random_below(4) == 0}};
    pst_ckpt *ckpt = NULL;
    pst_error err = {0};
    if (pst_ckpt_open(&options, &ckpt, &err) < 0)
        fail_msg("%s: %s", err.path, err.message);
    return ckpt;
}

static void read_some(known_file *f, pst_ckpt *ckpt, size_t count)
{
    wanted w[64];
    pst_error err = {0};
    for (size_t i = 0; i < count; i++)
        want(f, ckpt, &w[i]);
    if (read_wanted(ckpt, w, count, &err) < 0)
        fail_msg("%s: %s", err.path, err.message);
    for (size_t i = 0; i < count; i++)
        assert_got(&w[i], f);
    free_wanted(w, count);
}

static void test_random_reads(void **state)
{
    (void)state;
    int64_t live = pst_heap_live_count();
    const char *engine;
    for (unsigned e = 0; (engine = test_engine(e)) != NULL; e++)
        for (int round = 0; round < 5; round++) {
            known_file f;
            uint64_t cuts[8];
            size_t cut_count = 0;
            make_known(&f, 2000000);
            for (uint64_t at = 0; cut_count < 8 && (at += 1 + random_below(400000)) < f.bytes;)
                cuts[cut_count++] = at;
            bool digests = random_below(3) > 0;
            write_known(&f, files_path("random.safetensors"), digests, cuts, digests ? cut_count : 0);
            pst_ckpt *ckpt = open_ckpt(f.path, engine, digests, random_below(2) ? 0 : 1 << 20);
            assert_int_equal(pst_ckpt_tensor_count(ckpt), f.count);
            assert_int_equal(pst_ckpt_get_format(ckpt), PST_CKPT_SAFETENSORS);
            for (int k = 0; k < 4; k++)
                read_some(&f, ckpt, 1 + random_below(40));
            pst_ckpt_close(ckpt);
            free(f.data);
        }
    assert_int_equal(pst_heap_live_count(), live);
}

/* ---- digests ---- */

static void test_damage(void **state)
{
    (void)state;
    known_file f;
    make_known(&f, 300000);
    while (f.bytes < 1000) {
        free(f.data);
        make_known(&f, 300000);
    }
    write_known(&f, files_path("damaged.safetensors"), true, NULL, 0);
    for (int round = 0; round < 20; round++) {
        uint64_t at = random_below(f.bytes);
        unsigned char byte = (unsigned char)(f.data[at] ^ (1 + random_below(255)));
        FILE *file = fopen(f.path, "r+b");
        assert_int_equal(fseek(file, (long)(f.data_begin + at), SEEK_SET), 0);
        assert_int_equal(fputc(byte, file), byte);
        fclose(file);
        pst_ckpt *ckpt = open_ckpt(f.path, NULL, true, 0);
        for (size_t i = 0; i < f.count; i++) {
            const known_tensor *t = &f.tensors[i];
            pst_ckpt_tensor_info info;
            int64_t index = pst_ckpt_find(ckpt, t->name);
            assert_int_equal(pst_ckpt_tensor_at(ckpt, (size_t)index, &info), 0);
            assert_true(info.has_digest);
            unsigned char *out = malloc(t->bytes + 1);
            pst_ckpt_read_op op = {.tensor = (size_t)index, .out = out};
            pst_error err = {0};
            bool hit = t->begin <= at && at < t->begin + t->bytes;
            assert_int_equal(pst_ckpt_read(ckpt, &op, 1, &err), hit ? PST_E_FORMAT : 0);
            if (hit) {
                assert_string_equal(err.path, f.path);
                assert_contains(err.message, t->name);
                assert_contains(err.message, "digest");
                assert_int_equal(err.offset, f.data_begin + t->begin);
            }
            free(out);
        }
        pst_ckpt_close(ckpt);
        file = fopen(f.path, "r+b");
        assert_int_equal(fseek(file, (long)(f.data_begin + at), SEEK_SET), 0);
        fputc(f.data[at], file);
        fclose(file);
    }
    free(f.data);
}

/* Any byte before the data: opening with verify fails. */
static void test_damaged_header(void **state)
{
    (void)state;
    known_file f = {.count = 2, .bytes = 24};
    f.tensors[0] = (known_tensor){"a", PST_F32, 1, {4}, 0, 16};
    f.tensors[1] = (known_tensor){"b", PST_U8, 1, {8}, 16, 8};
    f.data = calloc(1, 24);
    const uint64_t cut = 4;
    write_known(&f, files_path("header.safetensors"), true, &cut, 1);
    uint64_t bytes;
    uint8_t *good = test_read_file(f.path, &bytes);
    pst_ckpt_open_options options = {.struct_size = sizeof options, .path = f.path, .verify = true};
    pst_ckpt *ckpt = open_ckpt(f.path, "threads", true, 0);
    pst_ckpt_close(ckpt);
    options.io = (pst_io_options){.struct_size = sizeof options.io, .engine = "threads", .workers = 1};
    for (uint64_t i = 0; i < f.data_begin; i++) {
        if (i > 900 && i % 97 != 0)
            continue; /* spaces */
        good[i] ^= (uint8_t)(1 << i % 8);
        test_write_file(f.path, good, bytes);
        good[i] ^= (uint8_t)(1 << i % 8);
        pst_error err = {0};
        int status = pst_ckpt_open(&options, &ckpt, &err);
        if (status >= 0)
            fail_msg("byte %llu: not found", (unsigned long long)i);
        assert_string_equal(err.path, f.path);
    }
    free(good);
    free(f.data);
}

/* ---- refusals ---- */

static void test_refusals(void **state)
{
    (void)state;
    known_file f = {.count = 2, .bytes = 24};
    f.tensors[0] = (known_tensor){"a", PST_F32, 2, {2, 2}, 0, 16};
    f.tensors[1] = (known_tensor){"b", PST_U8, 1, {8}, 16, 8};
    f.data = calloc(1, 24);
    write_known(&f, files_path("refusals.safetensors"), false, NULL, 0);
    pst_ckpt *ckpt = open_ckpt(f.path, NULL, false, 0);
    uint64_t start[2] = {0, 1}, stop[2] = {2, 3};
    unsigned char out[64];
    pst_error err = {0};
    pst_ckpt_read_op op = {.tensor = 0, .start = start, .stop = stop, .out = out};
    assert_int_equal(pst_ckpt_read(ckpt, &op, 1, &err), PST_E_USAGE);
    assert_contains(err.message, "tensor \"a\": there is no slice 1:3 of its dimension 1");
    stop[1] = 0;
    assert_int_equal(pst_ckpt_read(ckpt, &op, 1, &err), PST_E_USAGE);
    op.stop = NULL;
    assert_int_equal(pst_ckpt_read(ckpt, &op, 1, &err), PST_E_USAGE);
    op = (pst_ckpt_read_op){.tensor = 2, .out = out};
    assert_int_equal(pst_ckpt_read(ckpt, &op, 1, &err), PST_E_USAGE);
    op = (pst_ckpt_read_op){.tensor = 2, .out = out, .is_storage = true};
    assert_int_equal(pst_ckpt_read(ckpt, &op, 1, &err), PST_E_USAGE);
    op = (pst_ckpt_read_op){.tensor = 1};
    assert_int_equal(pst_ckpt_read(ckpt, &op, 1, &err), PST_E_USAGE);
    stop[1] = 1;
    op = (pst_ckpt_read_op){.tensor = 0, .start = start, .stop = stop}; /* empty: no memory is needed */
    assert_int_equal(pst_ckpt_read(ckpt, &op, 1, &err), 0);
    assert_int_equal(pst_ckpt_read(ckpt, NULL, 0, &err), 0);
    assert_int_equal(pst_ckpt_find(ckpt, "c"), -ENOENT);
    assert_int_equal(pst_ckpt_find(ckpt, ""), -ENOENT);
    pst_ckpt_tensor_info info;
    pst_ckpt_storage_info storage;
    pst_ckpt_value value;
    assert_int_equal(pst_ckpt_tensor_at(ckpt, 2, &info), PST_E_USAGE);
    assert_int_equal(pst_ckpt_storage_at(ckpt, 2, &storage), PST_E_USAGE);
    assert_int_equal(pst_ckpt_value_count(ckpt), 0);
    assert_int_equal(pst_ckpt_value_at(ckpt, 0, &value), PST_E_USAGE);
    assert_string_equal(pst_ckpt_metadata(ckpt, "made"), "by a test");
    assert_null(pst_ckpt_metadata(ckpt, "nothing"));
    /* The file is cut short behind the back of who opened it. */
    assert_int_equal(truncate(f.path, (off_t)f.data_begin + 20), 0);
    op = (pst_ckpt_read_op){.tensor = 1, .out = out};
    assert_int_equal(pst_ckpt_read(ckpt, &op, 1, &err), PST_E_SHORT);
    assert_contains(err.message, "tensor \"b\"");
    pst_ckpt_close(ckpt);
    pst_ckpt_close(NULL);
    pst_ckpt_open_options options = {.struct_size = sizeof options, .path = files_path("nowhere")};
    assert_int_equal(pst_ckpt_open(&options, &ckpt, &err), -ENOENT);
    options.path = NULL;
    assert_int_equal(pst_ckpt_open(&options, &ckpt, &err), PST_E_USAGE);
    assert_int_equal(pst_ckpt_open(NULL, &ckpt, &err), PST_E_USAGE);
    write_known(&f, f.path, false, NULL, 0);
    options.path = f.path;
    options.ring_bytes = 1000;
    assert_int_equal(pst_ckpt_open(&options, &ckpt, &err), PST_E_USAGE);
    assert_contains(err.message, "ring");
    free(f.data);
}

/* ---- many small tensors ---- */

static void test_many_small(void **state)
{
    (void)state;
    enum { COUNT = 20000, BYTES = 40 };
    char *header = malloc(COUNT * 100), *at = header;
    at += sprintf(at, "{");
    for (int i = 0; i < COUNT; i++)
        at += sprintf(at, "%s\"n%06d\":{\"dtype\":\"U8\",\"shape\":[%d],\"data_offsets\":[%d,%d]}", i ? "," : "", i,
                      BYTES, i * BYTES, (i + 1) * BYTES);
    sprintf(at, "}");
    files_write_tensors(files_path("many.safetensors"), header, COUNT * BYTES);
    pst_ckpt *ckpt = open_ckpt(files_path("many.safetensors"), NULL, false, 0);
    pst_ckpt_read_op *ops = calloc(COUNT, sizeof *ops);
    unsigned char *memory = calloc(COUNT, BYTES);
    for (size_t i = 0; i < COUNT; i++)
        ops[i] = (pst_ckpt_read_op){.tensor = (i * 7919) % COUNT, .out = memory + (i * 7919) % COUNT * BYTES};
    pst_io_stats stats;
    assert_int_equal(pst_ckpt_read(ckpt, ops, COUNT, NULL), 0);
    for (size_t i = 0; i < (size_t)COUNT * BYTES; i++)
        if (memory[i] != (unsigned char)i)
            fail_msg("byte %zu is %d", i, memory[i]);
    pst_io_get_stats(ckpt->io, &stats);
    assert_true(stats.pieces < 150); /* of 64 KiB */
    assert_true(stats.bytes_read < COUNT * BYTES + (1 << 19));
    pst_ckpt_close(ckpt);
    free(header);
    free(ops);
    free(memory);
}

/* ---- faults ---- */

static void test_faults(void **state)
{
    (void)state;
    known_file f;
    make_known(&f, 500000);
    const uint64_t cut = f.bytes / 2;
    write_known(&f, files_path("faults.safetensors"), true, &cut, cut > 0);
    static const int errors[] = {EIO};
    unsigned failed = 0;
    for (int round = 0; round < 60; round++) {
        pst_io_fault_options faults = {.struct_size = sizeof faults,
                                       .faults = PST_IO_FAULT_SHORT | PST_IO_FAULT_REORDER | PST_IO_FAULT_DELAY,
                                       .seed = random_below(1u << 30),
                                       .rate = 0.2,
                                       .max_delay_ns = 20000};
        if (round % 2) {
            faults.faults = PST_IO_FAULT_ERROR;
            faults.rate = round % 3 ? 0.05 : 0.5;
            faults.errors = errors;
            faults.error_count = 1;
        }
        pst_io_engine *engine;
        assert_int_equal(pst_io_fault_create(NULL, "threads", &faults, &engine, NULL), 0);
        pst_ckpt_open_options options = {.struct_size = sizeof options,
                                         .path = f.path,
                                         .verify = round % 4 < 2,
                                         .io = {.struct_size = sizeof(pst_io_options),
                                                .engine_table = engine,
                                                .block_size = 16384,
                                                .queue_depth = 4,
                                                .workers = 1}};
        pst_ckpt *ckpt;
        pst_error err = {0};
        int status = pst_ckpt_open(&options, &ckpt, &err);
        if (status >= 0) {
            wanted w[20];
            for (size_t i = 0; i < 20; i++)
                want(&f, ckpt, &w[i]);
            status = read_wanted(ckpt, w, 20, &err);
            for (size_t i = 0; i < 20 && status >= 0; i++)
                assert_got(&w[i], &f);
            if (status < 0)
                assert_contains(err.message, "\"");
            free_wanted(w, 20);
            pst_ckpt_close(ckpt);
        }
        if (status < 0) {
            assert_int_equal(status, -EIO);
            assert_int_equal(round % 2, 1);
            assert_string_equal(err.path, f.path);
            failed++;
        }
        pst_io_fault_destroy(engine);
    }
    assert_true(failed > 5);
    free(f.data);
}

static void test_allocations(void **state)
{
    (void)state;
    known_file f;
    make_known(&f, 100000);
    const uint64_t cut = f.bytes / 2;
    write_known(&f, files_path("memory.safetensors"), true, &cut, cut > 0);
    int64_t live = pst_heap_live_count();
    int status = -ENOMEM;
    for (int64_t n = 0; status < 0; n++) {
        pst_ckpt_open_options options = {
            .struct_size = sizeof options,
            .path = f.path,
            .verify = true,
            .io = {.struct_size = sizeof(pst_io_options), .engine = "threads", .workers = 1}};
        pst_ckpt *ckpt = NULL;
        pst_error err = {0};
        unsigned char *out = malloc(f.bytes + 1);
        pst_heap_fail_after(n, 0);
        status = pst_ckpt_open(&options, &ckpt, &err);
        if (status >= 0) {
            pst_ckpt_read_op op = {.tensor = 0, .out = out};
            status = pst_ckpt_read(ckpt, &op, 1, &err);
        }
        pst_heap_fail_after(-1, 0);
        if (status < 0)
            assert_int_equal(status, -ENOMEM);
        pst_ckpt_close(ckpt);
        free(out);
        assert_int_equal(pst_heap_live_count(), live);
        assert_true(n < 2000);
    }
    free(f.data);
}

/* ---- threads ---- */

typedef struct reader_thread {
    pthread_t thread;
    known_file *file;
    pst_ckpt *ckpt;
    int status;
} reader_thread;

static void *read_all(void *argument)
{
    reader_thread *r = argument;
    for (int round = 0; round < 3 && r->status == 0; round++)
        for (size_t i = 0; i < r->file->count; i++) {
            const known_tensor *t = &r->file->tensors[i];
            unsigned char *out = malloc(t->bytes + 1);
            pst_ckpt_read_op op = {.tensor = (size_t)pst_ckpt_find(r->ckpt, t->name), .out = out};
            if (pst_ckpt_read(r->ckpt, &op, 1, NULL) < 0 || memcmp(out, r->file->data + t->begin, t->bytes) != 0)
                r->status = -1;
            free(out);
        }
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    known_file f;
    make_known(&f, 1000000);
    write_known(&f, files_path("threads.safetensors"), true, NULL, 0);
    pst_ckpt *ckpt = open_ckpt(f.path, NULL, true, 4 << 20);
    reader_thread readers[6] = {0};
    for (int i = 0; i < 6; i++) {
        readers[i].file = &f;
        readers[i].ckpt = ckpt;
        assert_int_equal(pthread_create(&readers[i].thread, NULL, read_all, &readers[i]), 0);
    }
    for (int i = 0; i < 6; i++) {
        pthread_join(readers[i].thread, NULL);
        assert_int_equal(readers[i].status, 0);
    }
    pst_ckpt_close(ckpt);
    free(f.data);
}

/* More than one thread's worth: shared by lanes, in parts, and checked. */
static void test_large(void **state)
{
    (void)state;
    enum { MEGA = 1 << 20, ROWS = 2300, COLUMNS = 33000 };
    known_file f = {.count = 2, .bytes = (uint64_t)ROWS * COLUMNS + 3 * MEGA + 1};
    f.tensors[0] = (known_tensor){"odd", PST_U8, 1, {3 * MEGA + 1}, 0, 3 * MEGA + 1};
    f.tensors[1] = (known_tensor){"big", PST_U8, 2, {ROWS, COLUMNS}, 3 * MEGA + 1, (uint64_t)ROWS * COLUMNS};
    f.data = malloc(f.bytes);
    for (uint64_t i = 0; i + 8 <= f.bytes; i += 8)
        memcpy(f.data + i, &(uint64_t){pst_mix(i)}, 8);
    write_known(&f, files_path("large.safetensors"), true, NULL, 0);
    unsigned char *out = malloc(f.bytes + 64);
    for (int verify = 0; verify < 2; verify++) {
        pst_ckpt *ckpt = open_ckpt(f.path, NULL, verify, 8 << 20);
        uint64_t start[2] = {0, 11}, stop[2] = {ROWS, 32000};
        pst_ckpt_read_op ops[] = {{.tensor = 1, .out = out + 7},
                                  {.tensor = 0, .out = out + 8 + (size_t)ROWS * COLUMNS}};
        memset(out, 0, f.bytes);
        assert_int_equal(pst_ckpt_read(ckpt, ops, verify ? 1 : 2, NULL), 0);
        assert_memory_equal(out + 7, f.data + f.tensors[1].begin, f.tensors[1].bytes);
        ops[0].start = start;
        ops[0].stop = stop;
        assert_int_equal(pst_ckpt_read(ckpt, ops, 1, NULL), 0);
        for (uint64_t r = 0; r < ROWS; r++)
            if (memcmp(out + 7 + r * (32000 - 11), f.data + f.tensors[1].begin + r * COLUMNS + 11, 32000 - 11) != 0)
                fail_msg("row %llu differs", (unsigned long long)r);
        pst_ckpt_close(ckpt);
    }
    assert_int_equal(remove(f.path), 0);
    free(out);
    free(f.data);
}

static int set_up(void **state)
{
    random_start("test_load");
    return files_create(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_reads), cmocka_unit_test(test_damage),     cmocka_unit_test(test_damaged_header),
        cmocka_unit_test(test_refusals),     cmocka_unit_test(test_many_small), cmocka_unit_test(test_faults),
        cmocka_unit_test(test_allocations),  cmocka_unit_test(test_threads),    cmocka_unit_test(test_large),
    };
    return cmocka_run_group_tests_name("loading", tests, set_up, files_remove);
}
