/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What was saved is loaded by others: a checkpoint that N ranks wrote is read as the shares of M, cut along any
 * dimension; and views of all kinds (transposed, with gaps, expanded, overlapping) are read out of the storages of a
 * .pt file, whole and in slices, against a loop over their elements.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/number.h"
#include "penstock/ckpt.h"
#include "support/ckpt_scene.h"
#include "support/random.h"

enum { MAX_VIEWS = 12, MAX_STORAGES = 6 };

static char *folder;

static int set_up(void **state)
{
    (void)state;
    random_start("test_ckpt_load");
    folder = test_folder_create(false);
    return folder == NULL;
}

static int tear_down(void **state)
{
    (void)state;
    scene_remove_folder(folder);
    return 0;
}

static pst_ckpt *open_ckpt(const char *path, bool verify)
{
    pst_ckpt_open_options options = {.struct_size = sizeof options, .path = path, .verify = verify};
    if (random_below(2))
        options.ring_bytes = 1 << 20;
    pst_ckpt *ckpt = NULL;
    pst_error err = {0};
    if (pst_ckpt_open(&options, &ckpt, &err) < 0)
        fail_msg("%s: %s", err.path, err.message);
    return ckpt;
}

static void read_ops(pst_ckpt *ckpt, const pst_ckpt_read_op *ops, size_t count)
{
    pst_error err = {0};
    if (pst_ckpt_read(ckpt, ops, count, &err) < 0)
        fail_msg("%s: %s", err.path, err.message);
}

/* The elements [start, stop) of a tensor with these strides (elements), one after the other; how many bytes. */
static uint64_t copy_elements(const unsigned char *data, uint64_t element, uint32_t rank, const int64_t *strides,
                              const uint64_t *start, const uint64_t *stop, unsigned char *out)
{
    uint64_t at[8], written = 0;
    for (uint32_t d = 0; d < rank; d++) {
        at[d] = start[d];
        if (start[d] == stop[d])
            return 0;
    }
    for (;;) {
        uint64_t place = 0;
        for (uint32_t d = 0; d < rank; d++)
            place += at[d] * (uint64_t)strides[d];
        memcpy(out + written, data + place * element, element);
        written += element;
        uint32_t d = rank;
        while (d > 0 && ++at[d - 1] == stop[d - 1]) {
            at[d - 1] = start[d - 1];
            d--;
        }
        if (d == 0)
            return written;
    }
}

/* ---- another partitioning ---- */

/* All shares of one tensor, cut along `dim` among `parts` readers, in one call. */
static void read_shares(pst_ckpt *ckpt, const pst_ckpt_tensor *tensor, const void *data, uint32_t dim, uint32_t parts)
{
    uint64_t bytes = pst_dtype_bits(tensor->dtype) / 8, starts[4][8], stops[4][8];
    int64_t strides[8], step = 1;
    for (uint32_t d = tensor->rank; d-- > 0; step *= (int64_t)tensor->shape[d]) {
        strides[d] = step;
        bytes *= tensor->shape[d];
    }
    int64_t index = pst_ckpt_find(ckpt, tensor->name);
    assert_true(index >= 0);
    unsigned char *got = malloc(bytes + 1), *expected = malloc(bytes + 1), *out = got;
    pst_ckpt_read_op ops[4];
    for (uint32_t p = 0; p < parts; p++) {
        uint64_t share = bytes;
        for (uint32_t d = 0; d < tensor->rank; d++) {
            starts[p][d] = d == dim ? tensor->shape[d] * p / parts : 0;
            stops[p][d] = d == dim ? tensor->shape[d] * (p + 1) / parts : tensor->shape[d];
        }
        ops[p] = (pst_ckpt_read_op){.tensor = (size_t)index, .start = starts[p], .stop = stops[p], .out = out};
        share = bytes > 0 ? bytes / tensor->shape[dim] * (stops[p][dim] - starts[p][dim]) : 0;
        uint64_t copied = copy_elements(data, pst_dtype_bits(tensor->dtype) / 8, tensor->rank, strides, starts[p],
                                        stops[p], expected + (out - got));
        assert_int_equal(copied, share);
        out += share;
    }
    read_ops(ckpt, ops, parts);
    assert_memory_equal(got, expected, bytes);
    free(got);
    free(expected);
}

static void test_other_partitioning(void **state)
{
    (void)state;
    for (int round = 0; round < 8; round++) {
        scene s = {0};
        scene_add_random(&s, &random_state, 1 + random_below(12), 3000000);
        bool torch = random_below(2);
        uint32_t ranks = 1 + (uint32_t)random_below(4);
        char path[600];
        snprintf(path, sizeof path, "%s/by_ranks_%d%s", folder, round, torch ? ".pt" : ".safetensors");
        pst_ckpt_options options = {.struct_size = sizeof options, .path = path};
        if (!torch && random_below(2)) {
            options.shard_bytes = 500000;
            snprintf(path, sizeof path, "%s/by_ranks_%d", folder, round);
        }
        pst_error errors[4] = {0};
        if (scene_save_by_ranks(&options, &s, ranks, NULL, errors, NULL) < 0)
            fail_msg("%s", errors[0].message);
        pst_ckpt *ckpt = open_ckpt(path, true);
        assert_int_equal(pst_ckpt_tensor_count(ckpt), s.count);
        for (size_t i = 0; i < s.count; i++) {
            uint64_t bytes;
            const void *data = scene_data(&s, i, &bytes);
            unsigned char *whole = malloc(bytes + 1);
            const pst_ckpt_read_op op = {.tensor = (size_t)pst_ckpt_find(ckpt, s.tensors[i].name), .out = whole};
            read_ops(ckpt, &op, 1);
            assert_memory_equal(whole, data, bytes);
            free(whole);
            if (s.tensors[i].rank > 0)
                read_shares(ckpt, &s.tensors[i], data, (uint32_t)random_below(s.tensors[i].rank),
                            1 + (uint32_t)random_below(4));
        }
        pst_ckpt_close(ckpt);
        scene_free(&s);
    }
}

/* ---- views ---- */

/* A pickle of protocol 2, as torch.save writes it. */
typedef struct pickle {
    unsigned char text[16384];
    size_t bytes;
} pickle;

static void put(pickle *p, const char *bytes, size_t count)
{
    assert_true(p->bytes + count <= sizeof p->text);
    memcpy(p->text + p->bytes, bytes, count);
    p->bytes += count;
}

static void put_text(pickle *p, const char *text)
{
    uint32_t length = (uint32_t)strlen(text);
    put(p, "X", 1);
    put(p, (const char *)&length, 4);
    put(p, text, length);
}

static void put_int(pickle *p, int64_t value)
{
    if (value < INT32_MAX) {
        int32_t small = (int32_t)value;
        put(p, "J", 1);
        put(p, (const char *)&small, 4);
        return;
    }
    put(p, "\x8a\x08", 2);
    put(p, (const char *)&value, 8);
}

static void put_global(pickle *p, const char *module, const char *name)
{
    put(p, "c", 1);
    put(p, module, strlen(module));
    put(p, "\n", 1);
    put(p, name, strlen(name));
    put(p, "\n", 1);
}

typedef struct view {
    char name[16];
    uint32_t storage, rank;
    uint64_t shape[4], start[4], stop[4];
    int64_t strides[4];
    uint64_t begin; /* elements */
} view;

typedef struct views {
    pst_dtype dtype; /* of all */
    const char *kind;
    uint64_t element;
    uint64_t elements[MAX_STORAGES];
    unsigned char *data[MAX_STORAGES];
    uint32_t storages;
    view views[MAX_VIEWS];
    uint32_t count;
} views;

static void put_view(pickle *p, const views *v, const view *w)
{
    char key[8];
    snprintf(key, sizeof key, "%u", w->storage);
    put_text(p, w->name);
    put_global(p, "torch._utils", "_rebuild_tensor_v2");
    put(p, "((", 2);
    put_text(p, "storage");
    put_global(p, "torch", v->kind);
    put_text(p, key);
    put_text(p, "cpu");
    put_int(p, (int64_t)v->elements[w->storage]);
    put(p, "tQ", 2);
    put_int(p, (int64_t)w->begin);
    put(p, "(", 1);
    for (uint32_t d = 0; d < w->rank; d++)
        put_int(p, (int64_t)w->shape[d]);
    put(p, "t(", 2);
    for (uint32_t d = 0; d < w->rank; d++)
        put_int(p, w->strides[d]);
    put(p, "t\x89", 2);
    put_global(p, "collections", "OrderedDict");
    put(p, ")RtR", 4);
}

static void make_view(const views *v, view *w, uint32_t number)
{
    for (;;) {
        *w = (view){.storage = (uint32_t)random_below(v->storages), .rank = (uint32_t)random_below(5)};
        snprintf(w->name, sizeof w->name, "view%u", number);
        uint64_t reach = 1, elements = 1;
        int64_t step = 1;
        uint64_t most = 2 + random_below(w->rank < 3 ? 300 : 40);
        for (uint32_t d = w->rank; d-- > 0;) {
            w->shape[d] = random_below(30) ? 1 + random_below(most) : 0;
            elements *= w->shape[d];
            w->strides[d] = random_below(6) ? step : (int64_t)random_below(4);
            step *= (int64_t)(w->shape[d] ? w->shape[d] : 1) * (int64_t)(random_below(4) ? 1 : 1 + random_below(3));
        }
        for (uint32_t d = 0; w->rank > 1 && d < w->rank; d++) { /* the order of dimensions */
            uint32_t other = (uint32_t)random_below(w->rank);
            if (random_below(2))
                continue;
            uint64_t shape = w->shape[d];
            int64_t stride = w->strides[d];
            w->shape[d] = w->shape[other];
            w->strides[d] = w->strides[other];
            w->shape[other] = shape;
            w->strides[other] = stride;
        }
        for (uint32_t d = 0; d < w->rank && elements > 0; d++)
            reach += (w->shape[d] - 1) * (uint64_t)w->strides[d];
        if (elements > 500000 || reach > v->elements[w->storage])
            continue;
        w->begin = random_below(v->elements[w->storage] - reach + 1);
        for (uint32_t d = 0; d < w->rank; d++) {
            uint64_t a = random_below(w->shape[d] + 1), b = random_below(w->shape[d] + 1);
            bool all = random_below(2);
            w->start[d] = all ? 0 : a < b ? a : b;
            w->stop[d] = all ? w->shape[d] : a < b ? b : a;
        }
        return;
    }
}

static void make_views(views *v)
{
    static const struct {
        pst_dtype dtype;
        const char *kind;
    } kinds[] = {
        {PST_F32, "FloatStorage"}, {PST_U8, "ByteStorage"}, {PST_F16, "HalfStorage"}, {PST_I64, "LongStorage"}};
    size_t kind = (size_t)random_below(4);
    *v = (views){.dtype = kinds[kind].dtype,
                 .kind = kinds[kind].kind,
                 .element = pst_dtype_bits(kinds[kind].dtype) / 8,
                 .storages = 1 + (uint32_t)random_below(MAX_STORAGES),
                 .count = 1 + (uint32_t)random_below(MAX_VIEWS)};
    for (uint32_t i = 0; i < v->storages; i++) {
        v->elements[i] = 1 + random_below(random_below(2) ? 1000 : 600000);
        v->data[i] = malloc(v->elements[i] * v->element);
        for (uint64_t k = 0; k < v->elements[i] * v->element; k++)
            v->data[i][k] = (unsigned char)pst_mix(k + i);
    }
    for (uint32_t i = 0; i < v->count; i++)
        make_view(v, &v->views[i], i);
    for (uint32_t i = 0; i < v->storages; i++) /* a storage that no tensor lies in would not be found */
        if (v->count < MAX_VIEWS) {
            view *w = &v->views[v->count];
            *w = (view){.storage = i, .rank = 1, .shape = {v->elements[i]}, .stop = {v->elements[i]}, .strides = {1}};
            snprintf(w->name, sizeof w->name, "view%u", v->count++);
        }
}

static void save_views(const views *v, const char *path)
{
    static pickle p;
    p.bytes = 0;
    put(&p, "\x80\x02}(", 4);
    for (uint32_t i = 0; i < v->count; i++)
        put_view(&p, v, &v->views[i]);
    put(&p, "u.", 2);
    pst_ckpt_tensor storages[MAX_STORAGES];
    char keys[MAX_STORAGES][8];
    for (uint32_t i = 0; i < v->storages; i++) {
        snprintf(keys[i], sizeof keys[i], "%u", i);
        storages[i] = (pst_ckpt_tensor){
            .name = keys[i], .dtype = v->dtype, .rank = 1, .shape = &v->elements[i], .data = v->data[i]};
    }
    pst_ckpt_options options = {.struct_size = sizeof options,
                                .path = path,
                                .format = PST_CKPT_TORCH,
                                .pickle = p.text,
                                .pickle_bytes = p.bytes};
    pst_error err = {0};
    if (pst_ckpt_save(&options, storages, v->storages, NULL, &err) < 0)
        fail_msg("%s: %s", err.path, err.message);
}

static void check_view(pst_ckpt *ckpt, const views *v, const view *w, pst_ckpt_read_op *op, unsigned char *expected,
                       uint64_t *bytes)
{
    pst_ckpt_tensor_info info;
    int64_t index = pst_ckpt_find(ckpt, w->name);
    assert_true(index >= 0);
    assert_int_equal(pst_ckpt_tensor_at(ckpt, (size_t)index, &info), 0);
    assert_int_equal(info.rank, w->rank);
    assert_int_equal(info.dtype, v->dtype);
    bool empty = info.bytes == 0;
    if (!empty)
        assert_int_equal(info.storage_begin, w->begin * v->element);
    for (uint32_t d = 0; d < w->rank; d++)
        assert_int_equal(info.shape[d], w->shape[d]);
    *bytes = copy_elements(v->data[w->storage] + w->begin * v->element, v->element, w->rank, w->strides, w->start,
                           w->stop, expected);
    *op = (pst_ckpt_read_op){.tensor = (size_t)index, .start = w->start, .stop = w->stop};
}

static void test_views(void **state)
{
    (void)state;
    for (int round = 0; round < 40; round++) {
        views v;
        char path[600];
        make_views(&v);
        snprintf(path, sizeof path, "%s/views.pt", folder);
        save_views(&v, path);
        pst_ckpt *ckpt = open_ckpt(path, random_below(2));
        assert_int_equal(pst_ckpt_get_format(ckpt), PST_CKPT_TORCH);
        assert_int_equal(pst_ckpt_tensor_count(ckpt), v.count);
        pst_ckpt_read_op ops[MAX_VIEWS];
        unsigned char *expected[MAX_VIEWS], *got[MAX_VIEWS];
        uint64_t bytes[MAX_VIEWS];
        for (uint32_t i = 0; i < v.count; i++) {
            expected[i] = malloc(600001 * v.element);
            check_view(ckpt, &v, &v.views[i], &ops[i], expected[i], &bytes[i]);
            got[i] = malloc(bytes[i] + 1);
            got[i][bytes[i]] = 0x7e;
            ops[i].out = got[i];
        }
        read_ops(ckpt, ops, v.count);
        for (uint32_t i = 0; i < v.count; i++) {
            assert_memory_equal(got[i], expected[i], bytes[i]);
            assert_int_equal(got[i][bytes[i]], 0x7e);
            free(expected[i]);
            free(got[i]);
        }
        pst_ckpt_close(ckpt);
        for (uint32_t i = 0; i < v.storages; i++)
            free(v.data[i]);
    }
}

/* Whole storages by their numbers, and views of one storage that say so. */
static void test_storages(void **state)
{
    (void)state;
    uint64_t shape[2] = {30, 7};
    static const float data[210] = {1, 2, 3};
    char path[600];
    snprintf(path, sizeof path, "%s/storages.pt", folder);
    const pst_ckpt_tensor tensors[] = {{.name = "a", .dtype = PST_F32, .rank = 2, .shape = shape, .data = data},
                                       {.name = "tied", .dtype = PST_F32, .rank = 2, .shape = shape, .data = data}};
    pst_ckpt_options options = {.struct_size = sizeof options, .path = path};
    pst_error err = {0};
    assert_int_equal(pst_ckpt_save(&options, tensors, 2, NULL, &err), 0);
    pst_ckpt *ckpt = open_ckpt(path, true);
    assert_int_equal(pst_ckpt_storage_count(ckpt), 1);
    assert_int_equal(pst_ckpt_tensor_count(ckpt), 2);
    pst_ckpt_tensor_info a, tied;
    assert_int_equal(pst_ckpt_tensor_at(ckpt, 0, &a), 0);
    assert_int_equal(pst_ckpt_tensor_at(ckpt, 1, &tied), 0);
    assert_int_equal(a.storage, tied.storage);
    assert_true(a.has_digest);
    float got[210];
    const pst_ckpt_read_op op = {.tensor = a.storage, .is_storage = true, .out = got};
    read_ops(ckpt, &op, 1);
    assert_memory_equal(got, data, sizeof data);
    pst_ckpt_value value;
    assert_true(pst_ckpt_value_count(ckpt) >= 5);
    assert_int_equal(pst_ckpt_value_at(ckpt, 0, &value), 0);
    assert_int_equal(value.kind, PST_CKPT_DICT);
    assert_int_equal(value.child_count, 4);
    pst_ckpt_close(ckpt);
}

/* ---- steps ---- */

static void save_in(const pst_ckpt_step *step, const char *file, const char *name, const float *number)
{
    char path[700];
    snprintf(path, sizeof path, "%s/%s", pst_ckpt_step_path(step), file);
    const pst_ckpt_tensor tensor = {.name = name, .dtype = PST_F32, .data = number};
    pst_ckpt_options options = {.struct_size = sizeof options, .path = path};
    pst_error err = {0};
    if (pst_ckpt_save(&options, &tensor, 1, NULL, &err) < 0)
        fail_msg("%s: %s", err.path, err.message);
}

static void make_step(const char *run, uint64_t number, const char *second)
{
    pst_ckpt_step *step;
    pst_error err = {0};
    const pst_ckpt_pair pair = {"epoch", "7"};
    const pst_ckpt_commit_options commit = {.struct_size = sizeof commit, .metadata = &pair, .metadata_count = 1};
    const float numbers[2] = {(float)number, 0.5f};
    assert_int_equal(pst_ckpt_step_begin(run, number, NULL, &step, &err), 0);
    save_in(step, "model.safetensors", "weight", &numbers[0]);
    save_in(step, "optimizer.pt", second, &numbers[1]);
    if (pst_ckpt_step_commit(step, &commit, &err) < 0)
        fail_msg("%s: %s", err.path, err.message);
    pst_ckpt_step_end(step);
}

/* A whole file of the same length under the name, but not the one that was committed: it has no digest of its own. */
static void exchange_file(const char *path)
{
    static const char record[] = ".penstock/digests";
    uint64_t bytes;
    uint8_t *text = test_read_file(path, &bytes), *at = text;
    for (size_t length = sizeof record - 1; (at = memmem(at, bytes - (size_t)(at - text), record, length)) != NULL;)
        at[length - 1] = 'z';
    test_write_file(path, text, bytes);
    free(text);
}

static void test_steps(void **state)
{
    (void)state;
    char run[500], path[600];
    snprintf(run, sizeof run, "%s/run", folder);
    make_step(run, 8, "exp_avg");
    make_step(run, 10, "exp_avg");
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s%s", run, i ? "/step-000008" : "");
        pst_ckpt *ckpt = open_ckpt(path, true);
        float got[2];
        assert_int_equal(pst_ckpt_tensor_count(ckpt), 2);
        assert_string_equal(pst_ckpt_metadata(ckpt, "epoch"), "7");
        const pst_ckpt_read_op ops[2] = {{.tensor = (size_t)pst_ckpt_find(ckpt, "weight"), .out = &got[0]},
                                         {.tensor = (size_t)pst_ckpt_find(ckpt, "exp_avg"), .out = &got[1]}};
        read_ops(ckpt, ops, 2);
        assert_true(got[0] == (i ? 8.0f : 10.0f) && got[1] == 0.5f);
        pst_ckpt_value value;
        assert_int_equal(pst_ckpt_value_at(ckpt, 2, &value), 0);
        if (value.kind == PST_CKPT_TENSOR) /* its number is that among the tensors of all files */
            assert_int_equal(value.integer, pst_ckpt_find(ckpt, "exp_avg"));
        pst_ckpt_close(ckpt);
    }
    /* Another file; a name in two files; a file of another length. */
    pst_ckpt *ckpt;
    pst_error err = {0};
    pst_ckpt_open_options options = {.struct_size = sizeof options, .path = path, .verify = true};
    char model[700];
    snprintf(model, sizeof model, "%s/optimizer.pt", path);
    exchange_file(model);
    assert_int_equal(pst_ckpt_open(&options, &ckpt, &err), PST_E_FORMAT);
    assert_string_equal(err.path, model);
    options = (pst_ckpt_open_options){.struct_size = sizeof options, .path = run};
    make_step(run, 11, "weight");
    assert_int_equal(pst_ckpt_open(&options, &ckpt, &err), PST_E_FORMAT);
    assert_non_null(strstr(err.message, "\"weight\""));
    snprintf(path, sizeof path, "%s/step-000010", run);
    options.path = path;
    snprintf(model, sizeof model, "%s/model.safetensors", path);
    assert_int_equal(truncate(model, 100), 0);
    assert_int_equal(pst_ckpt_open(&options, &ckpt, &err), PST_E_FORMAT);
    assert_non_null(strstr(err.message, "manifest"));
    assert_int_equal(remove(model), 0);
    assert_int_equal(pst_ckpt_open(&options, &ckpt, &err), -ENOENT);
}

/* ---- hostile files ---- */

/* Whatever a file says, opening it and reading all that it then has ends, with a result or an error that names it. */
static void read_hostile(const char *path)
{
    pst_ckpt_open_options options = {
        .struct_size = sizeof options,
        .path = path,
        .verify = random_below(2),
        .ring_bytes = 1 << 20,
        .io = {.struct_size = sizeof(pst_io_options), .engine = "threads", .workers = 1, .queue_depth = 1}};
    pst_ckpt *ckpt;
    pst_error err = {0};
    int status = pst_ckpt_open(&options, &ckpt, &err);
    if (status < 0) {
        assert_string_equal(err.path, path);
        assert_true(err.message[0] != '\0');
        return;
    }
    for (size_t i = 0; i < pst_ckpt_tensor_count(ckpt); i++) {
        pst_ckpt_tensor_info info;
        assert_int_equal(pst_ckpt_tensor_at(ckpt, i, &info), 0);
        if (info.bytes > 1 << 22)
            continue; /* an expanded one */
        unsigned char *out = malloc(info.bytes + 1);
        out[info.bytes] = 0x3c;
        const pst_ckpt_read_op op = {.tensor = i, .out = out};
        status = pst_ckpt_read(ckpt, &op, 1, &err);
        assert_true(status == 0 || status == PST_E_FORMAT);
        assert_int_equal(out[info.bytes], 0x3c);
        free(out);
    }
    pst_ckpt_close(ckpt);
}

static void test_hostile(void **state)
{
    (void)state;
    char path[600];
    snprintf(path, sizeof path, "%s/hostile", folder);
    for (int round = 0; round < 10; round++) {
        views v;
        uint64_t bytes;
        if (round % 2 == 0) {
            make_views(&v);
            save_views(&v, path);
            for (uint32_t i = 0; i < v.storages; i++)
                free(v.data[i]);
        } else {
            scene s = {0};
            scene_add_random(&s, &random_state, 5, 5000);
            const pst_ckpt_options save = {.struct_size = sizeof save, .path = path};
            assert_int_equal(pst_ckpt_save(&save, s.tensors, s.count, NULL, NULL), 0);
            scene_free(&s);
        }
        uint8_t *text = test_read_file(path, &bytes);
        for (int k = 0; k < 60; k++) {
            uint64_t places[3], region = random_below(2) && bytes > 2500 ? 2500 : bytes;
            unsigned char kept[3];
            for (int i = 0; i < 3; i++) { /* at the beginning or the end, where the tables are */
                places[i] = random_below(2) ? random_below(region) : bytes - 1 - random_below(region);
                kept[i] = text[places[i]];
                if (i == 0 || random_below(2))
                    text[places[i]] = (unsigned char)random_below(256);
            }
            test_write_file(path, text, random_below(10) ? bytes : random_below(bytes));
            read_hostile(path);
            for (int i = 3; i-- > 0;)
                text[places[i]] = kept[i];
        }
        free(text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_other_partitioning),
        cmocka_unit_test(test_views),
        cmocka_unit_test(test_storages),
        cmocka_unit_test(test_steps),
        cmocka_unit_test(test_hostile),
    };
    return cmocka_run_group_tests_name("loading what was saved", tests, set_up, tear_down);
}
