/* SPDX-License-Identifier: Apache-2.0 */
/* quantization_config and the tensors of quantized matrices: every format found, everything that does not fit refused. */
#include "../store/files.h"

#include "base/heap.h"
#include "nn/family.h"
#include "nn/weights.h"
#include "unit/nn/refusals.h"

#define BODY                                                                                                           \
    "\"model_type\":\"llama\",\"vocab_size\":32,\"hidden_size\":16,\"intermediate_size\":24,\"num_hidden_layers\":2,"  \
    "\"num_attention_heads\":4,\"quantization_config\":"

static int parse(const char *quantization, pst_transformer *out, pst_error *err)
{
    char config[2048];
    *err = (pst_error){0};
    snprintf(config, sizeof config, "{" BODY "%s}", quantization);
    return pst_transformer_parse(config, strlen(config), "config.json", NULL, 0, NULL, out, err);
}

static void test_configs(void **state)
{
    (void)state;
    static const struct {
        const char *config;
        pst_weight_format format;
    } cases[] = {
        {"null", {.layout = PST_WEIGHT_PLAIN}},
        {"{\"quant_method\":\"penstock\",\"version\":1,\"bits\":4,\"group_size\":64,\"symmetric\":false}",
         {.layout = PST_WEIGHT_GROUPED, .bits = 4, .group = 64}},
        {"{\"quant_method\":\"penstock\",\"version\":1,\"bits\":8,\"group_size\":32,\"symmetric\":true,"
         "\"source_dtype\":\"F32\"}",
         {.layout = PST_WEIGHT_GROUPED, .bits = 8, .group = 32, .symmetric = true}},
        {"{\"quant_method\":\"fp8\",\"fmt\":\"e4m3\",\"activation_scheme\":\"dynamic\",\"weight_block_size\":[128,64]}",
         {.layout = PST_WEIGHT_FP8_BLOCKS, .block_rows = 128, .block_columns = 64}},
        {"{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":128,\"sym\":true,\"desc_act\":false}",
         {.layout = PST_WEIGHT_GPTQ, .bits = 4, .group = 128, .zero_offset = true, .transposed = true}},
        {"{\"quant_method\":\"gptq\",\"bits\":8,\"group_size\":-1,\"checkpoint_format\":\"gptq_v2\"}",
         {.layout = PST_WEIGHT_GPTQ, .bits = 8, .group = 0, .transposed = true}},
        {"{\"quant_method\":\"awq\",\"bits\":4,\"group_size\":128,\"version\":\"GEMM\",\"zero_point\":true,"
         "\"modules_to_not_convert\":[\"lm_head\"]}",
         {.layout = PST_WEIGHT_AWQ, .bits = 4, .group = 128, .transposed = true}},
        {"{\"quant_method\":\"compressed-tensors\",\"format\":\"float-quantized\",\"config_groups\":{\"group_0\":"
         "{\"targets\":[\"Linear\"],\"weights\":{\"num_bits\":8,\"type\":\"float\",\"strategy\":\"channel\","
         "\"block_structure\":null}}},\"ignore\":[\"lm_head\"]}",
         {.layout = PST_WEIGHT_FP8_BLOCKS}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        pst_transformer t;
        pst_error err;
        const pst_weight_format *want = &cases[i].format;
        if (parse(cases[i].config, &t, &err) != 0)
            fail_msg("%s: %s", cases[i].config, err.message);
        assert_int_equal(t.quantized.layout, want->layout);
        assert_int_equal(t.quantized.bits, want->bits);
        assert_int_equal(t.quantized.group, want->group);
        assert_int_equal(t.quantized.symmetric, want->symmetric);
        assert_int_equal(t.quantized.zero_offset, want->zero_offset);
        assert_int_equal(t.quantized.transposed, want->transposed);
        assert_int_equal(t.quantized.block_rows, want->block_rows);
        assert_int_equal(t.quantized.block_columns, want->block_columns);
        if (want->layout == PST_WEIGHT_GROUPED)
            assert_int_equal(t.quantized_digits, want->symmetric ? PST_F32 : PST_BF16);
        pst_transformer_destroy(&t);
    }
}

static void test_refused_configs(void **state)
{
    (void)state;
#define PENSTOCK   "\"quant_method\":\"penstock\",\"version\":1,"
#define COMPRESSED "\"quant_method\":\"compressed-tensors\",\"format\":\"float-quantized\","
    static const refusal cases[] = {
        {"7", PST_E_FORMAT, "quantization_config"},
        {"{\"bits\":4}", PST_E_FORMAT, "quant_method"},
        {"{\"quant_method\":\"bitsandbytes\"}", PST_E_UNSUPPORTED, "bitsandbytes"},
        {"{\"quant_method\":\"penstock\",\"bits\":4}", PST_E_FORMAT, "version"},
        {"{\"quant_method\":\"penstock\",\"version\":2}", PST_E_UNSUPPORTED, "version 2"},
        {"{" PENSTOCK "\"bits\":3,\"group_size\":64,\"symmetric\":false}", PST_E_UNSUPPORTED, "3 bits"},
        {"{" PENSTOCK "\"bits\":4,\"group_size\":63,\"symmetric\":false}", PST_E_FORMAT, "even"},
        {"{" PENSTOCK "\"bits\":4,\"group_size\":0,\"symmetric\":false}", PST_E_FORMAT, "group_size"},
        {"{" PENSTOCK "\"bits\":4,\"group_size\":64}", PST_E_FORMAT, "symmetric"},
        {"{" PENSTOCK "\"bits\":4,\"group_size\":64,\"symmetric\":false,\"source_dtype\":\"I8\"}", PST_E_UNSUPPORTED,
         "I8"},
        {"{\"quant_method\":\"fp8\",\"fmt\":\"e5m2\"}", PST_E_UNSUPPORTED, "e5m2"},
        {"{\"quant_method\":\"fp8\",\"weight_block_size\":[128]}", PST_E_FORMAT, "weight_block_size"},
        {"{\"quant_method\":\"fp8\",\"weight_block_size\":[128,0]}", PST_E_FORMAT, "weight_block_size"},
        {"{\"quant_method\":\"fp8\",\"weight_block_size\":[128,99999999999]}", PST_E_FORMAT, "weight_block_size"},
        {"{\"quant_method\":\"gptq\",\"bits\":3,\"group_size\":128}", PST_E_UNSUPPORTED, "3 bits"},
        {"{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":-2}", PST_E_FORMAT, "group_size"},
        {"{\"quant_method\":\"gptq\",\"bits\":4,\"checkpoint_format\":\"marlin\"}", PST_E_UNSUPPORTED, "marlin"},
        {"{\"quant_method\":\"gptq\",\"bits\":4,\"pack_dtype\":\"int16\"}", PST_E_UNSUPPORTED, "int16"},
        {"{\"quant_method\":\"awq\",\"bits\":4,\"version\":\"gemv\"}", PST_E_UNSUPPORTED, "gemv"},
        {"{\"quant_method\":\"awq\",\"bits\":8}", PST_E_UNSUPPORTED, "8 bits"},
        {"{\"quant_method\":\"awq\",\"bits\":4,\"zero_point\":false}", PST_E_UNSUPPORTED, "zero_point"},
        {"{\"quant_method\":\"compressed-tensors\",\"format\":\"pack-quantized\"}", PST_E_UNSUPPORTED,
         "pack-quantized"},
        {"{" COMPRESSED "\"config_groups\":{\"group_0\":7}}", PST_E_FORMAT, "config_groups"},
        {"{" COMPRESSED "\"config_groups\":{\"group_0\":{\"weights\":{\"type\":\"int\",\"num_bits\":8}}}}",
         PST_E_UNSUPPORTED, "int"},
        {"{" COMPRESSED "\"config_groups\":{\"group_0\":{\"weights\":{\"type\":\"float\",\"num_bits\":8,"
         "\"strategy\":\"group\"}}}}",
         PST_E_UNSUPPORTED, "group"},
    };
    check_refusals(cases, sizeof cases / sizeof cases[0], parse);
}

/* A store of one file with these tensors, whose data need not make sense. */
static pst_store *store_of(const char *header, size_t data_bytes)
{
    static unsigned number;
    pst_store *store;
    pst_error err;
    const char *path = files_path("%u.safetensors", number++);
    files_write_tensors(path, header, data_bytes);
    if (pst_store_open(path, &store, &err) < 0)
        fail_msg("%s", err.message);
    return store;
}

static const pst_transformer grouped = {.quantized = {.layout = PST_WEIGHT_GROUPED, .bits = 4, .group = 8},
                                        .quantized_digits = PST_BF16};
static const pst_transformer fp8 = {.quantized = {.layout = PST_WEIGHT_FP8_BLOCKS, .block_rows = 4, .block_columns = 8},
                                    .quantized_digits = PST_BF16};
static const pst_transformer fp8_by_shape = {.quantized = {.layout = PST_WEIGHT_FP8_BLOCKS},
                                             .quantized_digits = PST_BF16};
static const pst_transformer gptq = {
    .quantized = {.layout = PST_WEIGHT_GPTQ, .bits = 4, .group = 8, .zero_offset = true, .transposed = true},
    .quantized_digits = PST_BF16};
static const pst_transformer gptq_whole = {
    .quantized = {.layout = PST_WEIGHT_GPTQ, .bits = 8, .group = 0, .transposed = true}, .quantized_digits = PST_BF16};
static const pst_transformer awq = {.quantized = {.layout = PST_WEIGHT_AWQ, .bits = 4, .group = 16, .transposed = true},
                                    .quantized_digits = PST_BF16};
static const pst_transformer plain = {0};

typedef struct find_case {
    const pst_transformer *t;
    const char *header;
    size_t bytes;
    uint64_t outputs, inputs;
    const char *says; /* NULL: found */
    uint64_t rows;
    uint32_t group, block_rows, block_columns;
    int aux;
} find_case;

#define T(name, dtype, shape, begin, end) HEADER("m." name, dtype, shape, begin, end)

/* A 4-bit row of 20 columns in groups of 8: 10 + 3 * 4 bytes. */
static const find_case find_cases[] = {
    {&grouped, "{" T("weight", "U8", "[6,22]", 0, 132) "}", 132, 6, 20, NULL, 6, 8, 0, 0, 0},
    {&grouped, "{" T("weight", "BF16", "[6,20]", 0, 240) "}", 240, 6, 20, NULL, 6, 0, 0, 0, 0},
    {&grouped, "{" T("weight", "U8", "[6,21]", 0, 126) "}", 126, 6, 20, "[6, 22]", 0, 0, 0, 0, 0},
    {&grouped, "{" T("weight", "U8", "[132]", 0, 132) "}", 132, 6, 20, "[6, 22]", 0, 0, 0, 0, 0},
    {&grouped, "{" T("weight", "I8", "[6,20]", 0, 120) "}", 120, 6, 20, "type I8", 0, 0, 0, 0, 0},
    {&plain, "{" T("weight", "U8", "[6,20]", 0, 120) "}", 120, 6, 20, "quantization_config", 0, 0, 0, 0, 0},
    {&fp8, "{" T("weight", "F8_E4M3", "[6,20]", 0, 120) "," T("weight_scale_inv", "F32", "[2,3]", 120, 144) "}", 144, 6,
     20, NULL, 6, 0, 4, 8, 1},
    {&fp8, "{" T("weight", "F8_E4M3", "[6,20]", 0, 120) "," T("weight_scale_inv", "F32", "[3,2]", 120, 144) "}", 144, 6,
     20, "[2, 3]", 0, 0, 0, 0, 0},
    {&fp8, "{" T("weight", "F8_E4M3", "[6,20]", 0, 120) "," T("weight_scale_inv", "F16", "[2,3]", 120, 132) "}", 132, 6,
     20, "type F16", 0, 0, 0, 0, 0},
    {&fp8, "{" T("weight", "F8_E4M3", "[6,20]", 0, 120) "}", 120, 6, 20, "weight_scale_inv is missing", 0, 0, 0, 0, 0},
    {&fp8, "{" T("weight", "F8_E4M3", "[20,6]", 0, 120) "}", 120, 6, 20, "[6, 20]", 0, 0, 0, 0, 0},
    {&fp8_by_shape, "{" T("weight", "F8_E4M3", "[6,20]", 0, 120) "," T("weight_scale", "BF16", "[6,1]", 120, 132) "}",
     132, 6, 20, NULL, 6, 0, 1, 20, 1},
    {&fp8_by_shape, "{" T("weight", "F8_E4M3", "[6,20]", 0, 120) "," T("weight_scale", "F32", "[1]", 120, 124) "}", 124,
     6, 20, NULL, 6, 0, 6, 20, 1},
    {&fp8_by_shape, "{" T("weight", "F8_E4M3", "[6,20]", 0, 120) "," T("weight_scale", "F32", "[]", 120, 124) "}", 124,
     6, 20, NULL, 6, 0, 6, 20, 1},
    {&fp8_by_shape, "{" T("weight", "F8_E4M3", "[6,20]", 0, 120) "," T("weight_scale", "F32", "[2]", 120, 128) "}", 128,
     6, 20, "one for each of 6", 0, 0, 0, 0, 0},
    {&gptq,
     "{" T("qweight", "I32", "[3,16]", 0, 192) "," T("qzeros", "I32", "[3,2]", 192, 216) "," T("scales", "F16",
                                                                                               "[3,16]", 216, 312) "}",
     312, 16, 24, NULL, 3, 8, 0, 0, 2},
    {&gptq,
     "{" T("qweight", "I32", "[3,16]", 0, 192) "," T("qzeros", "I32", "[3,2]", 192, 216) "," T(
         "scales", "F16", "[3,16]", 216, 312) "," T("g_idx", "I32", "[24]", 312, 408) "}",
     408, 16, 24, NULL, 3, 8, 0, 0, 3},
    {&gptq,
     "{" T("qweight", "I32", "[3,16]", 0, 192) "," T("qzeros", "I32", "[3,2]", 192, 216) "," T(
         "scales", "F16", "[3,16]", 216, 312) "," T("g_idx", "I32", "[23]", 312, 404) "}",
     404, 16, 24, "g_idx has shape [23]", 0, 0, 0, 0, 0},
    {&gptq,
     "{" T("qweight", "I32", "[3,16]", 0, 192) "," T("qzeros", "I32", "[2,2]", 192, 208) "," T("scales", "F16",
                                                                                               "[3,16]", 208, 304) "}",
     304, 16, 24, "qzeros has shape [2, 2]", 0, 0, 0, 0, 0},
    {&gptq,
     "{" T("qweight", "I32", "[3,16]", 0, 192) "," T("qzeros", "I32", "[3,2]", 192, 216) "," T("scales", "F16",
                                                                                               "[2,16]", 216, 280) "}",
     280, 16, 24, "scales has shape [2, 16]", 0, 0, 0, 0, 0},
    {&gptq,
     "{" T("qweight", "I32", "[3,16]", 0, 192) "," T("qzeros", "I32", "[3,2]", 192, 216) "," T("scales", "F32",
                                                                                               "[3,16]", 216, 408) "}",
     408, 16, 24, "type F32", 0, 0, 0, 0, 0},
    {&gptq, "{" T("qweight", "F32", "[3,16]", 0, 192) "}", 192, 16, 24, "scales is missing", 0, 0, 0, 0, 0},
    {&gptq, "{" T("qweight", "I32", "[3,12]", 0, 144) "}", 144, 12, 24, "does not fill", 0, 0, 0, 0, 0},
    {&gptq, "{" T("weight", "F16", "[16,24]", 0, 768) "}", 768, 16, 24, NULL, 16, 0, 0, 0, 0},
    {&gptq_whole,
     "{" T("qweight", "I32", "[6,16]", 0, 384) "," T("qzeros", "I32", "[1,4]", 384, 400) "," T("scales", "BF16",
                                                                                               "[1,16]", 400, 432) "}",
     432, 16, 24, NULL, 6, 24, 0, 0, 2},
    {&awq,
     "{" T("qweight", "I32", "[24,2]", 0, 192) "," T("qzeros", "I32", "[2,2]", 192, 208) "," T("scales", "F16",
                                                                                               "[2,16]", 208, 272) "}",
     272, 16, 24, NULL, 24, 16, 0, 0, 2},
    {&awq, "{" T("qweight", "I32", "[24,3]", 0, 288) "}", 288, 16, 24, "qweight has shape [24, 3]", 0, 0, 0, 0, 0},
};

static void test_finding(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof find_cases / sizeof find_cases[0]; i++) {
        const find_case *c = &find_cases[i];
        pst_store *store = store_of(c->header, c->bytes);
        pst_found_weight found;
        pst_error err = {0};
        int status = pst_weights_find(c->t, store, "m", ".weight", c->outputs, c->inputs, false, &found, &err);
        if (c->says != NULL) {
            if (status >= 0 || strstr(err.message, c->says) == NULL || strchr(err.message, '\n') != NULL)
                fail_msg("case %zu: %d \"%s\", expected \"%s\"", i, status, err.message, c->says);
        } else {
            if (status < 0)
                fail_msg("case %zu: %s", i, err.message);
            int aux = 0;
            for (int k = 0; k < PST_NN_AUX; k++)
                aux += found.aux[k] != NULL;
            assert_int_equal(found.rows, c->rows);
            assert_int_equal(found.tensor->bytes % found.rows, 0);
            assert_int_equal(found.format.group, c->group);
            assert_int_equal(found.format.block_rows, c->block_rows);
            assert_int_equal(found.format.block_columns, c->block_columns);
            assert_int_equal(aux, c->aux);
            if (c->group == 0 && c->block_rows == 0)
                assert_int_equal(found.format.layout, PST_WEIGHT_PLAIN);
            else
                assert_int_equal(found.format.layout, c->t->quantized.layout);
        }
        pst_store_close(store);
    }
}

/* GPT-2's matrices have a row per input. */
static void test_finding_transposed(void **state)
{
    (void)state;
    pst_store *store = store_of("{" T("weight", "U8", "[20,5]", 0, 100) "}", 100);
    pst_found_weight found;
    pst_error err;
    /* 6 columns of 4 bits and one group: 3 + 4 bytes; 5 do not do */
    assert_int_equal(pst_weights_find(&grouped, store, "m", ".weight", 6, 20, true, &found, &err), PST_E_FORMAT);
    /* 2 columns: 1 + 4 */
    assert_int_equal(pst_weights_find(&grouped, store, "m", ".weight", 2, 20, true, &found, &err), 0);
    assert_true(found.format.transposed && found.rows == 20);
    pst_store_close(store);
    store = store_of("{" T("weight", "F8_E4M3", "[20,6]", 0, 120) "}", 120);
    assert_int_equal(pst_weights_find(&fp8, store, "m", ".weight", 6, 20, true, &found, &err), PST_E_UNSUPPORTED);
    pst_store_close(store);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_configs), cmocka_unit_test(test_refused_configs),
                                       cmocka_unit_test(test_finding), cmocka_unit_test(test_finding_transposed)};
    return cmocka_run_group_tests_name("quantized checkpoints", tests, files_create, files_remove);
}
