/* SPDX-License-Identifier: Apache-2.0 */
/*
 * synth: the same seed gives the same bytes however they are cut, on every processor; the folders are what
 * they say; a failure at any point leaves nothing behind.
 */
#include "unit/store/files.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>

#include "base/heap.h"
#include "base/json.h"
#include "jobs/synth_fill.h"
#include "jobs/synth_shapes.h"
#include "nn/family.h"
#include "os/sys_fault.h"
#include "penstock/jobs.h"
#include "penstock/tokenizer.h"
#include "support/random.h"

static const pst_dtype dtypes[] = {PST_BF16, PST_F16, PST_F8_E4M3, PST_F32};
enum { DTYPES = 4, ROUNDED_DTYPES = 3 };

static size_t count_entries(const char *folder)
{
    DIR *dir = opendir(folder);
    assert_non_null(dir);
    size_t count = 0;
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;)
        count += entry->d_name[0] != '.';
    closedir(dir);
    return count;
}

static unsigned char *read_file(const char *path, size_t *bytes)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        fail_msg("cannot open %s", path);
    fseek(file, 0, SEEK_END);
    *bytes = (size_t)ftell(file);
    rewind(file);
    unsigned char *data = malloc(*bytes + 1);
    assert_non_null(data);
    assert_int_equal(fread(data, 1, *bytes, file), *bytes);
    data[*bytes] = '\0';
    fclose(file);
    return data;
}

/* FNV-1a. */
static uint64_t hash_bytes(uint64_t hash, const void *data, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        hash = (hash ^ ((const unsigned char *)data)[i]) * UINT64_C(0x100000001b3);
    return hash;
}

#define HASH_BEGIN UINT64_C(0xcbf29ce484222325)

/* ---- numbers ---- */

static double widen(pst_dtype dtype, const void *element)
{
    if (dtype == PST_F32) {
        float value;
        memcpy(&value, element, sizeof value);
        return value;
    }
    if (dtype == PST_F8_E4M3) {
        unsigned byte = *(const unsigned char *)element, power = byte >> 3 & 15, part = byte & 7;
        assert_true((byte & 0x7f) != 0x7f); /* not a number */
        double value = power ? ldexp(8 + part, (int)power - 10) : ldexp(part, -9);
        return byte & 0x80 ? -value : value;
    }
    uint16_t bits;
    memcpy(&bits, element, sizeof bits);
    if (dtype == PST_BF16) {
        uint32_t wide = (uint32_t)bits << 16;
        float value;
        memcpy(&value, &wide, sizeof value);
        return value;
    }
    int exponent = bits >> 10 & 31, fraction = bits & 1023;
    double value = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
    return bits & 0x8000 ? -value : value;
}

/* The rounded numbers must be nearest to the 32-bit ones, even at ties. */
static void test_rounding(void **state)
{
    (void)state;
    enum { COUNT = 100000 };
    float *exact = malloc(COUNT * sizeof *exact);
    unsigned char *rounded = malloc(COUNT * 2);
    static const float scales[] = {0.02f * 1.7320508f / 65536, 0x1p-19f, 3e-9f, 448.0f / 65536};
    for (size_t s = 0; s < 4; s++) {
        for (int d = 0; d < ROUNDED_DTYPES; d++) {
            pst_fill fill = {pst_fill_key(7, "x"), s == 1 ? 1 << 19 : 0, scales[s], PST_F32};
            pst_fill_elements(&fill, 0, COUNT, exact);
            fill.dtype = dtypes[d];
            pst_fill_elements(&fill, 0, COUNT, rounded);
            size_t bytes = pst_dtype_bits(dtypes[d]) / 8;
            for (size_t i = 0; i < COUNT; i++) {
                uint16_t bits = 0;
                memcpy(&bits, rounded + i * bytes, bytes);
                double value = exact[i], got = widen(dtypes[d], &bits), error = fabs(got - value), other = INFINITY;
                for (int step = -1; step <= 1; step += 2) { /* the neighbours, where there are such */
                    uint16_t near = (uint16_t)(bits + step);
                    bool is_number = dtypes[d] != PST_F8_E4M3 || ((near & 0x7f) != 0x7f && near < 256);
                    other = is_number ? fmin(other, fabs(widen(dtypes[d], &near) - value)) : other;
                }
                if (error > other || (error == other && bits & 1))
                    fail_msg("%s: %.10g became %.10g", pst_dtype_name(dtypes[d]), value, got);
            }
        }
    }
    free(exact);
    free(rounded);
}

/* Any cut of a tensor gives the bytes of the whole. */
static void test_cuts(void **state)
{
    (void)state;
    enum { COUNT = 300000 };
    srand((unsigned)random_seed("synth", 0));
    for (int d = 0; d < DTYPES; d++) {
        size_t bytes = pst_dtype_bits(dtypes[d]) / 8;
        unsigned char *whole = malloc(COUNT * bytes), *cut = malloc(COUNT * bytes + 1);
        pst_fill fill = {pst_fill_key(3, "cut"), 0, 1e-6f, dtypes[d]};
        pst_fill_elements(&fill, 0, COUNT, whole);
        for (int round = 0; round < 20; round++) {
            size_t done = 0;
            while (done < COUNT) {
                size_t part = (size_t)rand() % (round < 10 ? 200000 : 700);
                part = part < COUNT - done ? part : COUNT - done;
                pst_fill_elements(&fill, done, part, cut + 1 + done * bytes); /* at an odd address */
                done += part;
            }
            assert_memory_equal(whole, cut + 1, COUNT * bytes);
        }
        free(whole);
        free(cut);
    }
}

static void test_distribution(void **state)
{
    (void)state;
    enum { COUNT = 1 << 20 };
    float *values = malloc(COUNT * sizeof *values), *others = malloc(COUNT * sizeof *others);
    pst_fill fill = {pst_fill_key(1, "a"), 0, 0.02f * 1.7320508f / 65536, PST_F32};
    pst_fill_elements(&fill, 0, COUNT, values);
    fill.key = pst_fill_key(1, "b");
    pst_fill_elements(&fill, 0, COUNT, others);
    double sum = 0, squares = 0, neighbours = 0, halves = 0, across = 0, largest = 0;
    for (size_t i = 0; i < COUNT; i++) {
        sum += values[i];
        squares += (double)values[i] * values[i];
        largest = fmax(largest, fabs((double)values[i]));
        neighbours += i ? (double)values[i] * values[i - 1] : 0;
        halves += i >= 65536 ? (double)values[i] * values[i - 65536] : 0; /* the same place of the next block */
        across += (double)values[i] * others[i];
    }
    /* Five standard errors of a million independent values; a correlated generator is far outside. */
    assert_true(fabs(sum / COUNT) < 5 * 0.02 / 1024);
    assert_true(fabs(sqrt(squares / COUNT) / 0.02 - 1) < 0.003);
    assert_true(fabs(neighbours / squares) < 5.0 / 1024);
    assert_true(fabs(halves / squares) < 5.0 / 1024);
    assert_true(fabs(across / squares) < 5.0 / 1024);
    assert_true(largest < 0.0347 && largest > 0.0346);
    free(values);
    free(others);
}

/* ---- shapes ---- */

/* The parameter counts that these models are published with (without DeepSeek-R1's module for predicting a second token).
 * A shape whose family is not there yet cannot be looked up, and is not checked. */
static void test_parameter_counts(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint64_t parameters;
    } known[] = {
        {"llama3-8b", 8030261248},         {"llama3-70b", 70553706496},     {"llama3.1-8b", 8030261248},
        {"llama3.2-1b", 1235814400},       {"llama2-7b", 6738415616},       {"mistral-7b", 7241732096},
        {"qwen2-7b", 7615616512},          {"qwen3-8b", 8190735360},        {"tiny", 299584},
        {"opt-1.3b", 1315758080},          {"opt-30b", 29974540288},        {"opt-66b", 65719701504},
        {"opt-175b", 174604468224},        {"bloom-176b", 176247271424},    {"gpt2-xl", 1557611200},
        {"mixtral-8x7b", 46702792704},     {"mixtral-8x22b", 140620634112}, {"qwen3-30b-a3b", 30532122624},
        {"qwen3-235b-a22b", 235093634560}, {"deepseek-r1", 671026419200},   {"huge-15t", 15124394999808},
    };
    size_t checked = 0;
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        const pst_shape *shape = pst_shape_find(known[i].name);
        if (shape == NULL)
            continue;
        checked++;
        pst_transformer t;
        pst_shape_tensors tensors;
        pst_error err = {0};
        if (pst_shape_parse(shape, shape->layers, PST_BF16, &t, &err) < 0)
            fail_msg("%s: %s", known[i].name, err.message);
        assert_int_equal(pst_shape_tensors_make(&t, PST_BF16, &tensors, NULL), 0);
        if (tensors.elements != known[i].parameters)
            fail_msg("%s: %llu parameters", known[i].name, (unsigned long long)tensors.elements);
        assert_int_equal(tensors.data_bytes, known[i].parameters * 2);
        assert_non_null(strstr(tensors.tensors[0].name, t.family->embedding));
        pst_shape_tensors_free(&tensors);
        pst_transformer_destroy(&t);
    }
    assert_true(checked >= 10);
    assert_null(pst_shape_find("llama"));
}

static uint64_t number(const json_t *config, const char *key)
{
    uint64_t out = 0;
    pst_json_u64(config, key, false, 0, UINT64_MAX, &out, "config", NULL);
    return out;
}

static void test_configs(void **state)
{
    (void)state;
    for (const char *const *name = pst_synth_shape_names(); *name != NULL; name++) {
        const pst_shape *shape = pst_shape_find(*name);
        char *text;
        json_t *json;
        pst_error err = {0};
        assert_int_equal(pst_shape_config(shape, 3, PST_F16, &text, &err), 0);
        if (pst_json_parse(text, strlen(text), *name, &json, &err) < 0)
            fail_msg("%s: %s", *name, err.message);
        assert_int_equal(number(json, "num_hidden_layers") + number(json, "n_layer"), 3);
        assert_string_equal(json_string_value(json_object_get(json, "torch_dtype")), "float16");
        assert_string_equal(json_string_value(json_object_get(json, "model_type")), shape->family);
        json_decref(json);
        pst_heap_free(text);
        pst_transformer t;
        assert_int_equal(pst_shape_parse(shape, 3, PST_F16, &t, &err), 0);
        assert_int_equal(t.layers, 3);
        assert_int_equal(shape->end.id, t.end_count > 0 ? t.end_ids[0] : UINT32_MAX);
        assert_true(shape->end.id < t.vocab && shape->begin.id < t.vocab);
        pst_transformer_destroy(&t);
    }
    const pst_shape *mistral = pst_shape_find("mistral-7b");
    char *text;
    json_t *json;
    assert_int_equal(pst_shape_config(mistral, 32, PST_BF16, &text, NULL), 0);
    assert_int_equal(pst_json_parse(text, strlen(text), "", &json, NULL), 0);
    assert_int_equal(number(json, "sliding_window"), 4096);
    json_decref(json);
    pst_heap_free(text);
}

/* FP8: the matrices of the layers have the scales of their blocks before them, the rest stays in 16 bits. */
static void test_quantized_tensors(void **state)
{
    (void)state;
    const pst_shape *shape = pst_shape_find("llama3.2-1b"); /* any family will do for the walk itself */
    pst_transformer t;
    pst_shape_tensors tensors;
    assert_int_equal(pst_shape_parse(shape, 1, PST_BF16, &t, NULL), 0);
    t.quantized = (pst_weight_format){.layout = PST_WEIGHT_FP8_BLOCKS};
    assert_int_equal(pst_shape_tensors_make(&t, PST_BF16, &tensors, NULL), 0);
    size_t scales = 0;
    for (size_t i = 0; i < tensors.count; i++) {
        const pst_tensor *tensor = &tensors.tensors[i];
        bool wide = strstr(tensor->name, "norm") != NULL || strstr(tensor->name, "embed_tokens") != NULL;
        if (tensors.roles[i] != PST_SHAPE_SCALES) {
            assert_int_equal(tensor->dtype, wide ? PST_BF16 : PST_F8_E4M3);
            continue;
        }
        scales++;
        assert_int_equal(tensor->dtype, PST_F32);
        assert_int_equal(tensor->shape[0], (tensor[1].shape[0] + 127) / 128);
        assert_int_equal(tensor->shape[1], (tensor[1].shape[1] + 127) / 128);
        assert_memory_equal(tensor->name, tensor[1].name, strlen(tensor[1].name));
        assert_string_equal(tensor->name + strlen(tensor[1].name), "_scale_inv");
    }
    assert_int_equal(scales, 7);
    pst_shape_tensors_free(&tensors);
    t.quantized = (pst_weight_format){.layout = PST_WEIGHT_GROUPED, .bits = 4, .group = 64};
    assert_int_equal(pst_shape_tensors_make(&t, PST_BF16, &tensors, NULL), 0);
    assert_int_equal(tensors.tensors[0].dtype, PST_U8); /* the embedding */
    assert_int_equal(tensors.tensors[0].shape[1], t.hidden / 2 + t.hidden / 64 * 4);
    pst_shape_tensors_free(&tensors);
    pst_transformer_destroy(&t);
}

/* ---- folders ---- */

static int run(const char *name, pst_synth_options options, pst_synth_report *report, pst_error *err)
{
    options.struct_size = sizeof options;
    options.folder = files_path("%s", name);
    if (options.shape == NULL)
        options.shape = "tiny";
    return pst_synth(&options, report, err);
}

static void must_run(const char *name, pst_synth_options options, pst_synth_report *report)
{
    pst_error err = {0};
    int64_t live = pst_heap_live_count();
    if (run(name, options, report, &err) < 0)
        fail_msg("%s: %s", err.path, err.message);
    assert_int_equal(pst_heap_live_count(), live);
}

/* A hash over names and data of all tensors, in the order of their names: the same however they lie in
 * files. */
static uint64_t hash_tensors(const char *folder)
{
    pst_store *store;
    pst_error err = {0};
    if (pst_store_open(folder, &store, &err) < 0)
        fail_msg("%s: %s", err.path, err.message);
    uint64_t sum = 0;
    for (uint32_t f = 0; f < pst_store_file_count(store); f++) {
        size_t bytes;
        unsigned char *data = read_file(pst_store_file_path(store, f), &bytes);
        for (size_t i = 0; i < pst_store_tensor_count(store); i++) {
            const pst_tensor *tensor = pst_store_tensor_at(store, i);
            if (tensor->file != f)
                continue;
            uint64_t hash = hash_bytes(HASH_BEGIN, tensor->name, strlen(tensor->name));
            sum += hash_bytes(hash, data + tensor->offset, tensor->bytes);
        }
        free(data);
    }
    pst_store_close(store);
    return sum;
}

/* Stored values: other bytes for an old seed would make old measurements incomparable. */
static void test_stored_hashes(void **state)
{
    (void)state;
    static const struct {
        pst_dtype dtype;
        uint64_t file, tensors;
    } stored[] = {
        {PST_BF16, UINT64_C(0x19fc0390bda63f94), UINT64_C(0xc932520e316d3c24)},
        {PST_F16, UINT64_C(0xdce08c1d4d05e92e), UINT64_C(0x3f31e9e386e2210c)},
        {PST_F32, UINT64_C(0xfe3bf4c5c6b902ef), UINT64_C(0xdf990d4ed573d23a)},
    };
    for (size_t i = 0; i < 3; i++) {
        const char *name = pst_dtype_name(stored[i].dtype);
        must_run(name, (pst_synth_options){.seed = 1, .dtype = stored[i].dtype}, NULL);
        size_t bytes;
        unsigned char *data = read_file(files_path("%s/model.safetensors", name), &bytes);
        uint64_t file = hash_bytes(HASH_BEGIN, data, bytes), tensors = hash_tensors(files_path("%s", name));
        free(data);
        if (file != stored[i].file || tensors != stored[i].tensors)
            fail_msg("%s: 0x%016llx, 0x%016llx", name, (unsigned long long)file, (unsigned long long)tensors);
    }
}

static void test_same_bytes(void **state)
{
    (void)state;
    pst_synth_report report;
    must_run("reference", (pst_synth_options){.seed = 5}, &report);
    assert_int_equal(report.parameters, 299584);
    assert_int_equal(report.data_bytes, 299584 * 2);
    assert_int_equal(report.files, 1);
    assert_int_equal(report.layers, 4);
    assert_true(report.file_bytes > report.data_bytes);
    assert_int_equal(access(files_path("reference/model.safetensors.index.json"), F_OK), -1);
    uint64_t wanted = hash_tensors(files_path("reference"));
    must_run("shards", (pst_synth_options){.seed = 5, .shard_bytes = 100000}, &report);
    assert_int_equal(report.files, 7);
    assert_int_equal(access(files_path("shards/model-00001-of-00007.safetensors"), F_OK), 0);
    assert_int_equal(access(files_path("shards/model.safetensors.index.json"), F_OK), 0);
    assert_true(hash_tensors(files_path("shards")) == wanted);
    must_run("single", (pst_synth_options){.seed = 5, .shard_bytes = 1}, &report);
    assert_int_equal(report.files, report.tensors);
    assert_true(hash_tensors(files_path("single")) == wanted);
    must_run("threads", (pst_synth_options){.seed = 5, .threads = 3, .io_engine = "threads"}, NULL);
    assert_true(hash_tensors(files_path("threads")) == wanted);
    must_run("other", (pst_synth_options){.seed = 6}, NULL);
    assert_true(hash_tensors(files_path("other")) != wanted);
    must_run("cut", (pst_synth_options){.seed = 5, .layers = 2}, &report);
    assert_int_equal(report.layers, 2);
    pst_store *store;
    assert_int_equal(pst_store_open(files_path("cut"), &store, NULL), 0);
    assert_non_null(pst_store_find(store, "model.layers.1.mlp.down_proj.weight"));
    assert_null(pst_store_find(store, "model.layers.2.mlp.down_proj.weight"));
    pst_store_close(store);
}

/* Buffers and pieces with many tensors across their edges: a real shape's layer, checked against its
 * definition. */
static void test_large_shape(void **state)
{
    (void)state;
    must_run("large", (pst_synth_options){.shape = "llama3.2-1b", .layers = 1, .seed = 9}, NULL);
    pst_store *store;
    assert_int_equal(pst_store_open(files_path("large"), &store, NULL), 0);
    assert_null(pst_store_find(store, "lm_head.weight"));
    FILE *file = fopen(pst_store_file_path(store, 0), "rb");
    assert_non_null(file);
    for (size_t i = 0; i < pst_store_tensor_count(store); i++) {
        const pst_tensor *tensor = pst_store_tensor_at(store, i);
        bool norm = strstr(tensor->name, "norm") != NULL;
        pst_fill fill = {pst_fill_key(9, tensor->name), norm ? 1 << 19 : 0,
                         norm ? 0x1p-19f : 0.02f * 1.7320508f / 65536, PST_BF16};
        enum { PART = 20000 };
        uint16_t want[PART], got[PART];
        uint64_t elements = tensor->bytes / 2;
        for (uint64_t at = 0; at < elements; at += elements / 7 + 1) {
            size_t part = elements - at < PART ? (size_t)(elements - at) : PART;
            pst_fill_elements(&fill, at, part, want);
            assert_int_equal(fseek(file, (long)(tensor->offset + at * 2), SEEK_SET), 0);
            assert_int_equal(fread(got, 2, part, file), part);
            assert_memory_equal(want, got, part * 2);
        }
    }
    fclose(file);
    pst_store_close(store);
}

/* Thirty terabytes of holes: every header is there, every weight is zero, no room is taken. */
static void test_sparse(void **state)
{
    (void)state;
    pst_synth_report report;
    must_run("huge", (pst_synth_options){.shape = "huge-15t", .sparse = true, .shard_bytes = 1000000000000}, &report);
    assert_true(report.data_bytes > UINT64_C(30000000000000));
    assert_int_equal(report.file_bytes / 1000000000, report.data_bytes / 1000000000);
    pst_store *store;
    assert_int_equal(pst_store_open(files_path("huge"), &store, NULL), 0);
    assert_int_equal(pst_store_data_bytes(store), report.data_bytes);
    struct stat info;
    assert_int_equal(stat(pst_store_file_path(store, 0), &info), 0);
    assert_true(info.st_size > 900000000000 && info.st_blocks < 4096);
    pst_store_close(store);
}

static void test_tokenizer(void **state)
{
    (void)state;
    must_run("words", (pst_synth_options){.seed = 1}, NULL);
    pst_tokenizer *tokenizer;
    pst_error err = {0};
    if (pst_tokenizer_open(files_path("words"), &tokenizer, &err) < 0)
        fail_msg("%s: %s", err.path, err.message);
    assert_int_equal(pst_tokenizer_vocab_size(tokenizer), 512);
    static const char text[] = "It's \xc3\xa9t\xc3\xa9:\n  123456 \xf0\x9f\x8e\x89!";
    pst_tokens tokens;
    assert_int_equal(pst_tokenizer_encode(tokenizer, text, strlen(text), true, &tokens, &err), 0);
    assert_int_equal(tokens.count, strlen(text) + 1);
    assert_int_equal(tokens.ids[0], 509);
    char *decoded;
    size_t bytes;
    assert_int_equal(pst_tokenizer_decode(tokenizer, tokens.ids, tokens.count, true, &decoded, &bytes, &err), 0);
    assert_string_equal(decoded, text);
    pst_text_free(decoded);
    pst_tokens_free(&tokens);
    for (uint32_t id = 0; id < 512; id++) { /* whatever a model chooses can be printed */
        assert_int_equal(pst_tokenizer_decode(tokenizer, &id, 1, false, &decoded, &bytes, &err), 0);
        assert_true(bytes > 0);
        pst_text_free(decoded);
    }
    pst_tokenizer_close(tokenizer);
}

/* ---- failures ---- */

static void refuse(const char *name, pst_synth_options options, int code, const char *cause)
{
    pst_error err = {0};
    int64_t live = pst_heap_live_count();
    size_t entries = count_entries(files_root);
    assert_int_equal(run(name, options, NULL, &err), code);
    assert_contains(err.message, cause);
    assert_int_equal(pst_heap_live_count(), live);
    assert_int_equal(count_entries(files_root), entries);
}

static void test_refusals(void **state)
{
    (void)state;
    files_folder("taken");
    files_write(files_path("file"), "x", 1);
    refuse("taken", (pst_synth_options){0}, -EEXIST, "exists already");
    refuse("file", (pst_synth_options){0}, -EEXIST, "exists already");
    refuse("none/out", (pst_synth_options){0}, -ENOENT, "no such folder");
    refuse("out", (pst_synth_options){.shape = "llama9"}, PST_E_USAGE, "unknown shape \"llama9\"; there are tiny, ");
    refuse("out", (pst_synth_options){.dtype = PST_I8}, PST_E_USAGE, "bf16, f16, f32 or f8");
    refuse("out", (pst_synth_options){.dtype = PST_F8_E4M3}, PST_E_USAGE, "no checkpoint of tiny was published in f8");
    refuse("out", (pst_synth_options){.layers = 100000}, PST_E_USAGE, "the most is");
    refuse("out", (pst_synth_options){.io_engine = "steam"}, PST_E_USAGE, "steam");
    assert_int_equal(pst_synth(NULL, NULL, NULL), PST_E_USAGE);
    assert_int_equal(pst_synth(&(pst_synth_options){.struct_size = sizeof(pst_synth_options)}, NULL, NULL),
                     PST_E_USAGE);
    assert_int_equal(count_entries(files_path("taken")), 0);
}

static struct progress {
    int calls, cancel_at;
    uint64_t last, total;
} seen;

static int on_progress(void *user, uint64_t done, uint64_t total)
{
    struct progress *p = user;
    assert_true(p->calls == 0 ? done == 0 : done >= p->last && total == p->total);
    p->last = done;
    p->total = total;
    return ++p->calls == p->cancel_at;
}

static void test_progress_and_cancel(void **state)
{
    (void)state;
    pst_synth_options options = {.on_progress = on_progress, .user = &seen};
    seen = (struct progress){0};
    must_run("whole", options, NULL);
    assert_true(seen.calls > 5);
    assert_int_equal(seen.last, seen.total);
    int calls = seen.calls;
    for (int at = 1; at <= calls; at++) {
        seen = (struct progress){.cancel_at = at};
        refuse("cancelled", options, PST_E_CANCELLED, "cancelled");
        assert_int_equal(seen.calls, at);
    }
}

static int no_sync(int fd)
{
    (void)fd;
    return 0;
}

/* Each call of each kind fails once: an error that leaves nothing, or a folder that is whole. */
static void test_faults(void **state)
{
    (void)state;
    static const struct {
        pst_fault_kind kind;
        int error;
    } kinds[] = {
        {PST_FAULT_STATVFS, EIO},  {PST_FAULT_MKDIR, ENOSPC},  {PST_FAULT_OPEN, ENOSPC}, {PST_FAULT_FALLOCATE, ENOSPC},
        {PST_FAULT_WRITE, ENOSPC}, {PST_FAULT_FDATASYNC, EIO}, {PST_FAULT_FSYNC, EIO},   {PST_FAULT_FTRUNCATE, EIO},
        {PST_FAULT_RENAME, EIO},   {PST_FAULT_MMAP, ENOMEM},
    };
    pst_sys_table table = pst_sys_fault;
    for (size_t k = 0; k < sizeof kinds / sizeof kinds[0]; k++) {
        table = pst_sys_fault;
        if (kinds[k].kind != PST_FAULT_FDATASYNC && kinds[k].kind != PST_FAULT_FSYNC)
            table.fdatasync = table.fsync = no_sync; /* for speed */
        pst_sys_replace(&table);
        for (int64_t skip = 0;; skip++) {
            assert_true(skip < 200);
            pst_error err = {0};
            int64_t live = pst_heap_live_count();
            pst_fault_reset();
            pst_fault_fail(kinds[k].kind, skip, 1, kinds[k].error);
            int status = run("out", (pst_synth_options){.shard_bytes = 400000, .io_engine = "threads"}, NULL, &err);
            bool reached = pst_fault_count(kinds[k].kind) > skip;
            pst_fault_reset();
            assert_int_equal(pst_heap_live_count(), live);
            if (status < 0) {
                assert_int_equal(status, -kinds[k].error);
                assert_true(err.message[0] != '\0');
                assert_null(strstr(err.path, ".tmp-")); /* a name of which no user knows */
            }
            size_t entries = count_entries(files_root);
            if (entries != 0) { /* a sync that failed after the rename: whole, but reported */
                assert_int_equal(entries, 1);
                assert_true(status == 0 || kinds[k].kind == PST_FAULT_FSYNC || kinds[k].kind == PST_FAULT_OPEN);
                hash_tensors(files_path("out"));
                assert_int_equal(count_entries(files_path("out")), 7);
                nftw(files_path("out"), files_unlink, 16, FTW_DEPTH | FTW_PHYS);
            }
            if (!reached)
                break;
        }
        pst_sys_replace(NULL);
    }
}

static int little_space(const char *path, struct statvfs *out)
{
    int status = pst_sys_real.statvfs(path, out);
    out->f_bavail = 100;
    return status;
}

static void test_no_space(void **state)
{
    (void)state;
    pst_sys_table table = pst_sys_real;
    table.statvfs = little_space;
    pst_sys_replace(&table);
    refuse("out", (pst_synth_options){.shape = "llama3-70b"}, -ENOSPC, "needs 141.1");
    pst_sys_replace(NULL);
}

static void test_allocation_failures(void **state)
{
    (void)state;
    pst_sys_table table = pst_sys_real;
    table.fdatasync = table.fsync = no_sync; /* for speed */
    pst_sys_replace(&table);
    int failures = 0;
    for (;; failures++) {
        pst_error err = {0};
        int64_t live = pst_heap_live_count();
        pst_heap_fail_after(failures, 0);
        int status =
            run("out", (pst_synth_options){.shard_bytes = 400000, .io_engine = "threads", .threads = 1}, NULL, &err);
        pst_heap_fail_after(-1, 0);
        assert_int_equal(pst_heap_live_count(), live);
        if (status == 0)
            break;
        assert_int_equal(status, -ENOMEM);
        assert_int_equal(count_entries(files_root), 0);
    }
    pst_sys_replace(NULL);
    assert_true(failures > 30);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, files_create, files_remove)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rounding),
        cmocka_unit_test(test_cuts),
        cmocka_unit_test(test_distribution),
        cmocka_unit_test(test_parameter_counts),
        cmocka_unit_test(test_configs),
        cmocka_unit_test(test_quantized_tensors),
        TEST(test_stored_hashes),
        TEST(test_same_bytes),
        TEST(test_large_shape),
        TEST(test_sparse),
        TEST(test_tokenizer),
        TEST(test_refusals),
        TEST(test_progress_and_cancel),
        TEST(test_faults),
        TEST(test_no_space),
        TEST(test_allocation_failures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
