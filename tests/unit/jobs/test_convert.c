/* SPDX-License-Identifier: Apache-2.0 */
/*
 * convert and verify: what is copied is copied byte for byte and in streaming order, what is quantized is near; the bytes do
 * not depend on threads, memory or the time of day; a failure at any point leaves nothing behind; damage is found where it is.
 */
#include "unit/store/files.h"

#include <errno.h>
#include <math.h>

#include "base/heap.h"
#include "base/json.h"
#include "cpu/cpu.h"
#include "cpu/quantize.h"
#include "os/file.h"
#include "os/sys_fault.h"
#include "penstock/jobs.h"
#include "store/digest.h"
#include "store/store.h"

#define CASES PST_TEST_SOURCE_DIR "/tests/reference/cases"
#define TALES PST_TEST_SOURCE_DIR "/models/penstock-tales"

static int run(const char *model, const char *name, pst_convert_options options, pst_convert_report *report,
               pst_error *err)
{
    options.struct_size = sizeof options;
    options.model = model;
    options.folder = files_path("%s", name);
    return pst_convert(&options, report, err);
}

static void must_run(const char *model, const char *name, pst_convert_options options, pst_convert_report *report)
{
    pst_error err = {0};
    int64_t live = pst_heap_live_count();
    if (run(model, name, options, report, &err) < 0)
        fail_msg("%s: %s", err.path, err.message);
    assert_int_equal(pst_heap_live_count(), live);
}

static pst_store *open_store(const char *path)
{
    pst_store *store;
    pst_error err = {0};
    if (pst_store_open(path, &store, &err) < 0)
        fail_msg("%s: %s", err.path, err.message);
    return store;
}

static unsigned char *read_tensor(const pst_store *store, const pst_tensor *tensor)
{
    unsigned char *data = malloc(tensor->bytes);
    assert_non_null(data);
    assert_int_equal(
        pst_file_read_at(pst_store_file_path(store, tensor->file), tensor->offset, data, tensor->bytes, NULL), 0);
    return data;
}

static json_t *read_config(const char *folder)
{
    char path[1200];
    json_error_t detail;
    snprintf(path, sizeof path, "%s/config.json", folder);
    json_t *config = json_load_file(path, 0, &detail);
    if (config == NULL)
        fail_msg("%s: %s", path, detail.text);
    return config;
}

static void assert_same_files(const char *a, const char *b)
{
    char **names;
    size_t count;
    assert_int_equal(pst_file_list(a, NULL, &names, &count, NULL), 0);
    assert_true(count >= 2);
    for (size_t i = 0; i < count; i++) {
        char path[2][1200], *text[2];
        size_t bytes[2];
        snprintf(path[0], sizeof path[0], "%s/%s", a, names[i]);
        snprintf(path[1], sizeof path[1], "%s/%s", b, names[i]);
        for (int k = 0; k < 2; k++)
            assert_int_equal(pst_file_read_all(path[k], 1 << 30, &text[k], &bytes[k], NULL), 0);
        assert_int_equal(bytes[0], bytes[1]);
        assert_memory_equal(text[0], text[1], bytes[0]);
        pst_heap_free(text[0]);
        pst_heap_free(text[1]);
    }
    pst_file_list_free(names, count);
}

static size_t damaged_tensors, files_without;
static char last_damaged[256];

static void on_finding(void *user, const pst_verify_finding *finding)
{
    (void)user;
    files_without += !finding->damaged;
    damaged_tensors += finding->damaged && finding->tensor != NULL;
    if (finding->tensor != NULL)
        snprintf(last_damaged, sizeof last_damaged, "%s", finding->tensor);
}

static int verify(const char *path, pst_verify_report *report, pst_error *err)
{
    damaged_tensors = files_without = 0;
    pst_verify_options options = {.struct_size = sizeof options, .path = path, .on_finding = on_finding, .threads = 3};
    return pst_verify(&options, report, err);
}

/* ---- what is written ---- */

/* Streaming order: the embedding first, layer by layer, the head last; all else as in the source. */
static void test_copy(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint64_t left_out;
    } cases[] = {{"llama_bf16_sharded", 0}, {"llama_oldest", 3}, {"llama_tied_stored", 1}, {"qwen2_f16_sharded", 0}};
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        char model[512];
        pst_convert_report report;
        snprintf(model, sizeof model, CASES "/%s", cases[c].name);
        must_run(model, cases[c].name, (pst_convert_options){0}, &report);
        assert_int_equal(report.left_out, cases[c].left_out);
        assert_int_equal(report.quantized, 0);
        assert_int_equal(report.source_bytes, report.data_bytes);
        pst_store *from = open_store(model), *to = open_store(files_path("%s", cases[c].name));
        size_t count = pst_store_tensor_count(to);
        assert_int_equal(count + report.left_out, pst_store_tensor_count(from));
        assert_string_equal(pst_store_tensor_at(to, 0)->name, "model.embed_tokens.weight");
        int layer = -1;
        for (size_t i = 1; i < count; i++) {
            const pst_tensor *tensor = pst_store_tensor_at(to, i), *source = pst_store_find(from, tensor->name);
            int number;
            if (sscanf(tensor->name, "model.layers.%d.", &number) == 1) {
                assert_true(number == layer || number == layer + 1);
                layer = number;
            } else {
                assert_true(layer > 0); /* the last norm and the head */
            }
            unsigned char *a = read_tensor(to, tensor), *b = read_tensor(from, source);
            assert_int_equal(tensor->bytes, source->bytes);
            assert_int_equal(tensor->dtype, source->dtype);
            assert_memory_equal(a, b, tensor->bytes);
            free(a);
            free(b);
        }
        json_t *a = read_config(model), *b = read_config(files_path("%s", cases[c].name));
        assert_true(json_equal(a, b));
        json_decref(a);
        json_decref(b);
        pst_store_close(from);
        pst_store_close(to);
    }
}

static void to_floats(const pst_tensor *tensor, const unsigned char *data, float *out, size_t count)
{
    pst_cpu_select("portable")->convert(data, tensor->dtype, out, count);
}

/* The largest step of a row's groups, from the scales that lie behind its codes. */
static float largest_scale(const unsigned char *row, size_t columns, const pst_weight_format *format)
{
    size_t codes = format->bits == 4 ? (columns + 1) / 2 : columns, step = format->symmetric ? 2 : 4;
    float largest = 0, scale;
    for (size_t g = 0; g < (columns + format->group - 1) / format->group; g++) {
        pst_cpu_select("portable")->convert(row + codes + g * step, PST_F16, &scale, 1);
        largest = fmaxf(largest, scale);
    }
    return largest;
}

/* Every weight comes back within half a step of its group's scale (checked with the row's largest). */
static void check_near(const pst_tensor *source, const unsigned char *original, const unsigned char *quantized,
                       const pst_weight_format *format)
{
    size_t rows = source->shape[0], columns = source->shape[1], row_bytes = pst_weight_row_bytes(format, columns);
    float *want = malloc(columns * sizeof *want), *got = malloc(columns * sizeof *got);
    for (size_t r = 0; r < rows; r++) {
        const unsigned char *row = quantized + r * row_bytes;
        to_floats(source, original + r * columns * pst_dtype_bits(source->dtype) / 8, want, columns);
        pst_cpu_dequantize_row(row, columns, format, got);
        float bound = largest_scale(row, columns, format) * 0.501f;
        for (size_t i = 0; i < columns; i++)
            if (!(fabsf(want[i] - got[i]) <= bound))
                fail_msg("%s[%zu][%zu]: %g became %g, farther than %g", source->name, r, i, (double)want[i],
                         (double)got[i], (double)bound);
    }
    free(want);
    free(got);
}

static void test_quantized(void **state)
{
    (void)state;
    static const struct {
        const char *model, *name;
        pst_convert_options options;
        const char *kept; /* a matrix that stays */
    } cases[] = {
        {CASES "/llama_gqa2", "f32_8", {.bits = 8}, NULL},
        {CASES "/llama_odd", "odd_4", {.bits = 4, .group_size = 16}, NULL},
        {CASES "/qwen2_f16_sharded", "f16_4s", {.bits = 4, .symmetric = true, .keep_head = true}, "lm_head.weight"},
        {CASES "/qwen3_biases", "tied", {.bits = 8, .keep_embedding = true}, "model.embed_tokens.weight"},
        {CASES "/llama_tied_bf16", "tied2", {.bits = 4, .keep_head = true}, "model.embed_tokens.weight"},
    };
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        pst_convert_report report;
        must_run(cases[c].model, cases[c].name, cases[c].options, &report);
        const char *folder = files_path("%s", cases[c].name);
        pst_store *from = open_store(cases[c].model), *to = open_store(folder);
        pst_weight_format format = {.layout = PST_WEIGHT_GROUPED,
                                    .bits = cases[c].options.bits,
                                    .group = cases[c].options.group_size ? cases[c].options.group_size : 64,
                                    .symmetric = cases[c].options.symmetric};
        size_t quantized = 0;
        for (size_t i = 0; i < pst_store_tensor_count(to); i++) {
            const pst_tensor *tensor = pst_store_tensor_at(to, i), *source = pst_store_find(from, tensor->name);
            bool is_kept = cases[c].kept != NULL && strcmp(tensor->name, cases[c].kept) == 0;
            assert_int_equal(tensor->dtype, source->rank == 2 && !is_kept ? PST_U8 : source->dtype);
            if (tensor->dtype != PST_U8)
                continue;
            unsigned char *a = read_tensor(from, source), *b = read_tensor(to, tensor);
            assert_int_equal(tensor->shape[1], pst_weight_row_bytes(&format, source->shape[1]));
            check_near(source, a, b, &format);
            free(a);
            free(b);
            quantized++;
        }
        assert_int_equal(report.quantized, quantized);
        json_t *config = read_config(folder), *q = json_object_get(config, "quantization_config");
        assert_string_equal(json_string_value(json_object_get(q, "quant_method")), "penstock");
        assert_int_equal(json_integer_value(json_object_get(q, "bits")), format.bits);
        assert_int_equal(json_integer_value(json_object_get(q, "group_size")), format.group);
        assert_int_equal(json_is_true(json_object_get(q, "symmetric")), format.symmetric);
        json_decref(config);
        pst_store_close(from);
        pst_store_close(to);
        pst_verify_report verified;
        assert_int_equal(verify(folder, &verified, NULL), 0);
        assert_int_equal(verified.checked, report.tensors);
        assert_int_equal(verified.damaged, 0);
    }
}

/* Types of what is not quantized; and a quantized model to plain numbers again. */
static void test_types(void **state)
{
    (void)state;
    must_run(CASES "/llama_gqa2", "as_bf16", (pst_convert_options){.dtype = PST_BF16}, NULL);
    must_run(CASES "/llama_f16", "as_f32", (pst_convert_options){.dtype = PST_F32}, NULL);
    must_run(files_path("as_f32"), "as_f16", (pst_convert_options){.dtype = PST_F16}, NULL);
    pst_store *from = open_store(CASES "/llama_f16"), *to = open_store(files_path("as_f16"));
    for (size_t i = 0; i < pst_store_tensor_count(to); i++) { /* there and back */
        const pst_tensor *tensor = pst_store_tensor_at(to, i), *source = pst_store_find(from, tensor->name);
        unsigned char *a = read_tensor(from, source), *b = read_tensor(to, tensor);
        assert_int_equal(tensor->dtype, PST_F16);
        assert_memory_equal(a, b, tensor->bytes);
        free(a);
        free(b);
    }
    pst_store_close(from);
    pst_store_close(to);
    json_t *config = read_config(files_path("as_bf16"));
    assert_string_equal(json_string_value(json_object_get(config, "dtype")), "bfloat16");
    json_decref(config);
    must_run(CASES "/llama_gqa2", "q8", (pst_convert_options){.bits = 8, .group_size = 32}, NULL);
    pst_convert_report report;
    must_run(files_path("q8"), "plain_again", (pst_convert_options){.dtype = PST_F32}, &report);
    assert_int_equal(report.quantized, 0);
    config = read_config(files_path("plain_again"));
    assert_null(json_object_get(config, "quantization_config"));
    json_decref(config);
    from = open_store(files_path("q8"));
    to = open_store(files_path("plain_again"));
    const pst_tensor *tensor = pst_store_find(to, "model.layers.1.mlp.down_proj.weight");
    const pst_weight_format format = {.layout = PST_WEIGHT_GROUPED, .bits = 8, .group = 32};
    unsigned char *a = read_tensor(from, pst_store_find(from, tensor->name)), *b = read_tensor(to, tensor);
    float row[256];
    for (size_t r = 0; r < tensor->shape[0]; r++) {
        pst_cpu_dequantize_row(a + r * pst_weight_row_bytes(&format, tensor->shape[1]), tensor->shape[1], &format, row);
        assert_memory_equal(row, b + r * tensor->shape[1] * 4, tensor->shape[1] * 4);
    }
    free(a);
    free(b);
    pst_store_close(from);
    pst_store_close(to);
}

/* A matrix of F8_E4M3 with a scale for each 3 x 5 block, by hand. */
static void test_fp8(void **state)
{
    (void)state;
    enum { ROWS = 16, COLUMNS = 16, BLOCK_ROWS = 3, BLOCK_COLUMNS = 5 };
    static const char config[] =
        "{\"model_type\":\"llama\",\"vocab_size\":20,\"hidden_size\":16,\"intermediate_size\":8,"
        "\"num_hidden_layers\":1,\"num_attention_heads\":2,\"tie_word_embeddings\":true,"
        "\"quantization_config\":{\"quant_method\":\"fp8\",\"weight_block_size\":[3,5]}}";
    const char *folder = files_folder("fp8");
    char header[4096];
    unsigned char data[16384];
    size_t used = 0, at = 0;
    static const struct {
        const char *name;
        int rows, columns; /* rows 0: a vector */
    } tensors[] = {{"embed_tokens", 20, 16},
                   {"layers.0.input_layernorm", 0, 16},
                   {"layers.0.self_attn.q_proj", 16, 16},
                   {"layers.0.self_attn.k_proj", 16, 16},
                   {"layers.0.self_attn.v_proj", 16, 16},
                   {"layers.0.self_attn.o_proj", 16, 16},
                   {"layers.0.post_attention_layernorm", 0, 16},
                   {"layers.0.mlp.gate_proj", 8, 16},
                   {"layers.0.mlp.up_proj", 8, 16},
                   {"layers.0.mlp.down_proj", 16, 8},
                   {"norm", 0, 16}};
    at += (size_t)snprintf(header, sizeof header, "{");
    for (size_t i = 0; i < sizeof tensors / sizeof tensors[0]; i++) {
        int rows = tensors[i].rows, columns = tensors[i].columns;
        if (rows == 0 || i == 0) { /* norms and the embedding are plain */
            char shape[32];
            int numbers = rows ? rows * columns : columns;
            if (rows == 0)
                snprintf(shape, sizeof shape, "%d", columns);
            else
                snprintf(shape, sizeof shape, "%d,%d", rows, columns);
            at +=
                (size_t)snprintf(header + at, sizeof header - at,
                                 "%s\"model.%s.weight\":{\"dtype\":\"F32\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}",
                                 i ? "," : "", tensors[i].name, shape, used, used + 4 * (size_t)numbers);
            for (int k = 0; k < numbers; k++, used += 4)
                memcpy(data + used, &(float){1}, 4);
            continue;
        }
        size_t count = (size_t)rows * (size_t)columns;
        int block_rows = (rows + 2) / 3, block_columns = (columns + 4) / 5;
        size_t scales = (size_t)(block_rows * block_columns) * 4;
        at += (size_t)snprintf(
            header + at, sizeof header - at,
            "%s\"model.%s.weight\":{\"dtype\":\"F8_E4M3\",\"shape\":[%d,%d],\"data_offsets\":[%zu,%zu]},"
            "\"model.%s.weight_scale_inv\":{\"dtype\":\"F32\",\"shape\":[%d,%d],"
            "\"data_offsets\":[%zu,%zu]}",
            i ? "," : "", tensors[i].name, rows, columns, used, used + count, tensors[i].name, block_rows,
            block_columns, used + count, used + count + scales);
        for (size_t k = 0; k < count; k++)
            data[used++] = (unsigned char)((k * 37 + i) % 254 == 127 ? 0 : (k * 37 + i) % 254);
        for (size_t k = 0; k < scales / 4; k++, used += 4)
            memcpy(data + used, &(float){0.25f * (float)(k + 1)}, 4);
    }
    snprintf(header + at, sizeof header - at, "}");
    assert_true(used <= sizeof data);
    size_t length = strlen(header);
    unsigned char *file = malloc(8 + length + used);
    memcpy(file, &(uint64_t){length}, 8);
    memcpy(file + 8, header, length);
    memcpy(file + 8 + length, data, used);
    files_write(files_path("fp8/model.safetensors"), file, 8 + length + used);
    free(file);
    files_write(files_path("fp8/config.json"), config, strlen(config));
    must_run(folder, "fp8_plain", (pst_convert_options){.dtype = PST_F32}, NULL);
    pst_store *from = open_store(folder), *to = open_store(files_path("fp8_plain"));
    const pst_tensor *tensor = pst_store_find(to, "model.layers.0.self_attn.q_proj.weight");
    assert_null(pst_store_find(to, "model.layers.0.self_attn.q_proj.weight_scale_inv"));
    unsigned char *codes = read_tensor(from, pst_store_find(from, tensor->name));
    float *got = (float *)read_tensor(to, tensor);
    for (size_t r = 0; r < ROWS; r++) {
        for (size_t i = 0; i < COLUMNS; i++) {
            unsigned code = codes[r * COLUMNS + i], power = code >> 3 & 15, part = code & 7;
            double value = power ? ldexp(8 + part, (int)power - 10) : ldexp(part, -9);
            double scale = 0.25 * (double)(r / BLOCK_ROWS * 4 + i / BLOCK_COLUMNS + 1);
            assert_true(got[r * COLUMNS + i] == (float)((code & 0x80 ? -value : value) * scale));
        }
    }
    free(codes);
    free(got);
    pst_store_close(from);
    pst_store_close(to);
    /* As it is: the scales go along, and config.json says the same. */
    pst_convert_report report;
    must_run(folder, "fp8_copy", (pst_convert_options){0}, &report);
    assert_int_equal(report.left_out, 0);
    json_t *made = read_config(files_path("fp8_copy")), *was = read_config(folder);
    assert_true(json_equal(made, was));
    json_decref(made);
    json_decref(was);
    must_run(folder, "fp8_q", (pst_convert_options){.bits = 8, .group_size = 4}, &report);
    assert_int_equal(report.left_out, 0);
}

/* ---- the same bytes ---- */

static void test_same_bytes(void **state)
{
    (void)state;
    pst_convert_report report;
    must_run(TALES, "one", (pst_convert_options){.bits = 4, .shard_bytes = 700000}, &report);
    assert_true(report.files > 3);
    must_run(TALES, "two", (pst_convert_options){.bits = 4, .shard_bytes = 700000}, NULL);
    assert_same_files(files_path("one"), files_path("two"));
    must_run(TALES, "three",
             (pst_convert_options){.bits = 4,
                                   .shard_bytes = 700000,
                                   .threads = 5,
                                   .io_engine = "threads",
                                   .block_size = 4096,
                                   .host_memory_bytes = report.peak_rss_bytes + (24 << 20)},
             NULL);
    assert_same_files(files_path("one"), files_path("three"));
}

/* ---- failures ---- */

static int count_entries(const char *part)
{
    char **names;
    size_t count;
    int found = 0;
    assert_int_equal(pst_file_list(files_root, NULL, &names, &count, NULL), 0);
    for (size_t i = 0; i < count; i++)
        found += strstr(names[i], part) != NULL;
    pst_file_list_free(names, count);
    return found;
}

static int cancel_later(void *user, uint64_t done_bytes, uint64_t total_bytes)
{
    (void)total_bytes;
    return done_bytes >= *(const uint64_t *)user;
}

static void test_refusals(void **state)
{
    (void)state;
    pst_error err;
    const pst_convert_options four = {.bits = 4};
    assert_int_equal(run(TALES, "x", (pst_convert_options){.bits = 5}, NULL, &err), PST_E_USAGE);
    assert_int_equal(run(TALES, "x", (pst_convert_options){.bits = 4, .group_size = 33}, NULL, &err), PST_E_USAGE);
    assert_int_equal(run(TALES, "x", (pst_convert_options){.bits = 4, .group_size = 8192}, NULL, &err), PST_E_USAGE);
    assert_int_equal(run(TALES, "x", (pst_convert_options){.dtype = PST_I8}, NULL, &err), PST_E_USAGE);
    assert_int_equal(run(files_path("nowhere"), "x", four, NULL, &err), -ENOENT);
    assert_int_equal(run(TALES, "x", (pst_convert_options){.host_memory_bytes = 1 << 20}, NULL, &err), PST_E_BUDGET);
    assert_contains(err.message, "MB of memory at least");
    assert_int_equal(run(TALES, "none/x", four, NULL, &err), -ENOENT);
    files_folder("there");
    assert_int_equal(run(TALES, "there", four, NULL, &err), -EEXIST);
    for (uint64_t after = 0; after < 4000000; after += 1300000) {
        pst_convert_options options = {.bits = 4, .on_progress = cancel_later, .user = &after};
        assert_int_equal(run(TALES, "x", options, NULL, &err), PST_E_CANCELLED);
    }
    assert_int_equal(count_entries("x"), 0);
    assert_int_equal(count_entries("tmp-"), 0);
}

static void copy_file(const char *from, const char *to)
{
    char *text;
    size_t bytes;
    assert_int_equal(pst_file_read_all(from, 1 << 30, &text, &bytes, NULL), 0);
    files_write(to, text, bytes);
    pst_heap_free(text);
}

static void poke(const char *path, uint64_t offset, const void *bytes, size_t count)
{
    FILE *file = fopen(path, "r+b");
    assert_non_null(file);
    assert_int_equal(fseek(file, (long)offset, SEEK_SET), 0);
    assert_int_equal(fwrite(bytes, 1, count, file), count);
    assert_int_equal(fclose(file), 0);
}

static void test_what_cannot_be_quantized(void **state)
{
    (void)state;
    files_folder("bad");
    copy_file(CASES "/llama_gqa2/config.json", files_path("bad/config.json"));
    copy_file(CASES "/llama_gqa2/model.safetensors", files_path("bad/model.safetensors"));
    pst_store *store = open_store(files_path("bad"));
    const pst_tensor *tensor = pst_store_find(store, "model.layers.1.self_attn.v_proj.weight");
    uint64_t at = tensor->offset + 40;
    pst_store_close(store);
    static const struct {
        float value;
        const char *says;
    } cases[] = {{NAN, "no number"}, {INFINITY, "no number"}, {1e9f, "too large"}};
    for (size_t i = 0; i < 3; i++) {
        pst_error err;
        poke(files_path("bad/model.safetensors"), at, &cases[i].value, 4);
        assert_int_equal(run(files_path("bad"), "out", (pst_convert_options){.bits = 8}, NULL, &err), PST_E_FORMAT);
        assert_contains(err.message, cases[i].says);
        assert_contains(err.message, "layers.1.self_attn.v_proj");
    }
    must_run(files_path("bad"), "copied", (pst_convert_options){0}, NULL); /* a copy asks no questions */
    assert_int_equal(count_entries("out"), 0);
}

static void test_allocation_failures(void **state)
{
    (void)state;
    int64_t live = pst_heap_live_count();
    for (int64_t n = 0;; n += 1 + n / 16) {
        pst_error err = {0};
        pst_heap_fail_after(n, 0);
        int status =
            run(CASES "/llama_mqa_head20", "starved",
                (pst_convert_options){.bits = 4, .threads = 1, .io_engine = "threads", .io_workers = 1}, NULL, &err);
        pst_heap_fail_after(-1, 0);
        if (status == 0)
            break;
        assert_int_equal(status, -ENOMEM);
        assert_true(err.message[0] != '\0');
        assert_int_equal(pst_heap_live_count(), live);
        assert_int_equal(count_entries("starved"), 0);
    }
    assert_int_equal(pst_heap_live_count(), live);
}

/* ---- verify ---- */

static void test_damage(void **state)
{
    (void)state;
    must_run(TALES, "whole", (pst_convert_options){.bits = 8, .shard_bytes = 3000000}, NULL);
    pst_store *store = open_store(files_path("whole"));
    size_t count = pst_store_tensor_count(store);
    for (size_t i = 0; i < count; i += 17) {
        const pst_tensor *tensor = pst_store_tensor_at(store, i);
        const char *path = pst_store_file_path(store, tensor->file);
        uint64_t offset = tensor->offset + (i % 2 ? tensor->bytes - 1 : 0);
        unsigned char byte, changed;
        pst_verify_report report;
        assert_int_equal(pst_file_read_at(path, offset, &byte, 1, NULL), 0);
        changed = byte ^ 1;
        poke(path, offset, &changed, 1);
        assert_int_equal(verify(files_path("whole"), &report, NULL), 0);
        assert_int_equal(report.damaged, 1);
        assert_int_equal(damaged_tensors, 1);
        assert_int_equal(report.checked, count);
        assert_string_equal(last_damaged, tensor->name);
        poke(path, offset, &byte, 1);
    }
    pst_verify_report report;
    assert_int_equal(verify(files_path("whole"), &report, NULL), 0);
    assert_int_equal(report.damaged, 0);
    /* Digests that are none, of another kind, and a file cut short. */
    char *text;
    size_t bytes;
    const char *path = pst_store_file_path(store, 0);
    pst_error err;
    assert_int_equal(pst_file_read_all(path, 1 << 30, &text, &bytes, NULL), 0);
    char *digests = memmem(text, bytes, PST_DIGESTS_KIND " ", strlen(PST_DIGESTS_KIND) + 1);
    assert_non_null(digests);
    uint64_t at = (uint64_t)(digests - text);
    poke(path, at + strlen(PST_DIGESTS_KIND) + 1, "g", 1);
    assert_int_equal(verify(files_path("whole"), NULL, &err), PST_E_FORMAT);
    poke(path, at, "crc32-12", 8);
    assert_int_equal(verify(files_path("whole"), NULL, &err), PST_E_UNSUPPORTED);
    poke(path, at, digests, 64);
    assert_int_equal(verify(files_path("whole"), NULL, &err), 0);
    assert_int_equal(truncate(path, (off_t)bytes - 1), 0);
    assert_int_equal(verify(files_path("whole"), NULL, &err), PST_E_FORMAT);
    assert_contains(err.message, "truncated");
    pst_heap_free(text);
    pst_store_close(store);
}

static void test_without_digests(void **state)
{
    (void)state;
    pst_verify_report report;
    assert_int_equal(verify(TALES, &report, NULL), 0);
    assert_int_equal(report.files_without_digests, 3);
    assert_int_equal(files_without, 3);
    assert_int_equal(report.checked, 0);
    assert_true(report.tensors > 50);
    pst_error err;
    assert_int_equal(verify(files_path("nowhere"), NULL, &err), -ENOENT);
}

/* What another implementation of XXH3 gives for the same bytes. */
/* Tensors without elements are legal; there is nothing of them to read. */
static void test_empty_tensors(void **state)
{
    (void)state;
    char file[600] = {0};
    int length = snprintf(file + 8, sizeof file - 8, "%s",
                          "{\"__metadata__\":{\"penstock.digests\":\"xxh3-128 99aa06d3014798d86001c324468d497f "
                          "99aa06d3014798d86001c324468d497f a6cd5e9392000f6ac44bdff4074eecdb\"},"
                          "\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]},"
                          "\"b\":{\"dtype\":\"F32\",\"shape\":[3,0],\"data_offsets\":[0,0]},"
                          "\"c\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}       ");
    uint64_t header = (uint64_t)length / 8 * 8;
    memcpy(file, &header, sizeof header);
    memset(file + 8 + header, 0, sizeof file - 8 - header); /* the one byte of data follows, instead of spaces */
    assert_int_equal(pst_file_publish(files_path("empty.safetensors"), file, 8 + header + 1, NULL), 0);
    pst_verify_report report;
    pst_error err = {0};
    if (verify(files_path("empty.safetensors"), &report, &err) < 0)
        fail_msg("%s", err.message);
    assert_int_equal(report.checked, 3);
    assert_int_equal(report.damaged, 0);
    assert_int_equal(report.bytes, 1);
}

static void test_known_digests(void **state)
{
    (void)state;
    static const struct {
        size_t count;
        const char *digits;
    } known[] = {
        {0, "99aa06d3014798d86001c324468d497f"}, {1, "a6cd5e9392000f6ac44bdff4074eecdb"}, {256, NULL}, {5000, NULL}};
    unsigned char bytes[5000] = {0};
    pst_digest *digest;
    char digits[PST_DIGEST_DIGITS], parts[PST_DIGEST_DIGITS];
    assert_int_equal(pst_digest_create(&digest, NULL), 0);
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        pst_digest_begin(digest);
        pst_digest_add(digest, bytes, known[i].count);
        pst_digest_end(digest, digits);
        if (known[i].digits != NULL)
            assert_memory_equal(digits, known[i].digits, PST_DIGEST_DIGITS);
        pst_digest_begin(digest);
        for (size_t at = 0; at < known[i].count; at += 7)
            pst_digest_add(digest, bytes + at, known[i].count - at < 7 ? known[i].count - at : 7);
        pst_digest_end(digest, parts);
        assert_memory_equal(digits, parts, PST_DIGEST_DIGITS);
    }
    pst_digest_destroy(digest);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_copy),
        cmocka_unit_test(test_quantized),
        cmocka_unit_test(test_types),
        cmocka_unit_test(test_fp8),
        cmocka_unit_test(test_same_bytes),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_what_cannot_be_quantized),
        cmocka_unit_test(test_allocation_failures),
        cmocka_unit_test(test_damage),
        cmocka_unit_test(test_without_digests),
        cmocka_unit_test(test_empty_tensors),
        cmocka_unit_test(test_known_digests),
    };
    return cmocka_run_group_tests_name("convert and verify", tests, files_create, files_remove);
}
