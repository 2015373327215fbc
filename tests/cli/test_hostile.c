/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hostile input: every broken model and text ends with one line that names the file and the cause, and status 1.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "program.h"

static char model[512];

/* A fresh copy of a small model with one file; the path of `file` in it. */
static const char *fresh(const char *file)
{
    static int number;
    static char path[640];
    char name[32];
    snprintf(name, sizeof name, "model-%d", number++);
    snprintf(model, sizeof model, "%s", copy_model(CASES "/llama_gqa2", name));
    snprintf(path, sizeof path, "%s/%s", model, file);
    return path;
}

#define GENERATE(says) EXPECT_ERROR(1, says, "generate", model, "--token-ids", "1,2", "-n", "2")

static void test_the_copy_works(void **state)
{
    (void)state;
    fresh("");
    program_result result = PENSTOCK("generate", model, "--token-ids", "1,2", "-n", "2");
    assert_int_equal(result.status, 0);
    program_free(&result);
}

static void test_missing(void **state)
{
    (void)state;
    EXPECT_ERROR(1, "nowhere", "generate", scratch_path("nowhere"), "--token-ids", "1");
    EXPECT_ERROR(1, "nowhere", "inspect", scratch_path("nowhere"));
    unlink(fresh("model.safetensors"));
    GENERATE("safetensors");
    unlink(fresh("config.json"));
    GENERATE("config.json");
    EXPECT_ERROR(1, "tokenizer", "tokenize", model, "--text", "x");
    EXPECT_ERROR(1, "", "generate", "/dev/null", "--token-ids", "1");
}

static void test_truncated(void **state)
{
    (void)state;
    static const off_t sizes[] = {0, 4, 8, 100};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        assert_int_equal(truncate(fresh("model.safetensors"), sizes[i]), 0);
        GENERATE("model.safetensors");
    }
    const char *path = fresh("model.safetensors");
    struct stat about;
    assert_int_equal(stat(path, &about), 0);
    assert_int_equal(truncate(path, about.st_size - 1), 0);
    GENERATE("model.safetensors");
    assert_int_equal(truncate(path, about.st_size + 1), 0);
    GENERATE("model.safetensors");
}

/* Replaces a file by a safetensors header of our own and `data_bytes` zeros. */
static void write_header(const char *path, const char *header, uint64_t header_bytes, size_t data_bytes)
{
    size_t length = strlen(header);
    char *file = calloc(1, 8 + length + data_bytes);
    assert_non_null(file);
    memcpy(file, &header_bytes, 8);
    memcpy(file + 8, header, length);
    write_file(path, file, 8 + length + data_bytes);
    free(file);
}

static void test_lying_headers(void **state)
{
    (void)state;
    static const struct {
        const char *header;
        uint64_t header_bytes; /* 0: its length */
    } cases[] = {
        {"{}", UINT64_MAX},
        {"{}", 1ull << 40},
        {"{}", 3},
        {"", 0},
        {"not JSON", 0},
        {"[1]", 0},
        {"{\"x\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [0, 9]}}", 0},
        {"{\"x\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [8, 0]}}", 0},
        {"{\"x\": {\"dtype\": \"F32\", \"shape\": [4294967296, 4294967296], \"data_offsets\": [0, 8]}}", 0},
        {"{\"x\": {\"dtype\": \"F99\", \"shape\": [2], \"data_offsets\": [0, 8]}}", 0},
        {"{\"x\": {\"dtype\": \"F32\", \"shape\": [-2], \"data_offsets\": [0, 8]}}", 0},
        {"{\"x\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [0, 8]}, "
         "\"x\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [0, 8]}}",
         0},
        {"{\"x\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [0, 8]}, "
         "\"y\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [4, 12]}}",
         0},
        {"{\"x\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [4, 12]}}", 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const char *path = fresh("model.safetensors");
        write_header(path, cases[i].header,
                     cases[i].header_bytes != 0 ? cases[i].header_bytes : strlen(cases[i].header), 8);
        GENERATE("model.safetensors");
        EXPECT_ERROR(1, "model.safetensors", "inspect", path);
    }
    /* A header that is fine, without the tensors that the model needs. */
    write_header(fresh("model.safetensors"), "{\"x\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [0, 8]}}",
                 64, 8);
    const char *alone = "{\"x\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [0, 8]}}";
    write_header(fresh("model.safetensors"), alone, strlen(alone), 8);
    GENERATE("model.embed_tokens.weight");
}

/* Exchanges the first occurrence in a text file. */
static void replace_in(const char *path, const char *from, const char *to)
{
    size_t bytes;
    char *text = read_file(path, &bytes);
    char *at = strstr(text, from);
    if (at == NULL)
        fail_msg("%s holds no %s", path, from);
    char *changed = malloc(bytes + strlen(to) + 1);
    assert_non_null(changed);
    size_t head = (size_t)(at - text);
    memcpy(changed, text, head);
    strcpy(changed + head, to);
    strcat(changed, at + strlen(from));
    write_text(path, changed);
    free(changed);
    free(text);
}

static void test_configs(void **state)
{
    (void)state;
    static const struct {
        const char *from, *to, *says;
    } cases[] = {
        {"\"llama\"", "\"gpt99\"", "qwen3"}, /* the message lists the supported families */
        {"\"hidden_size\": 72", "\"hidden_size\": 73", ""},
        {"\"hidden_size\": 72", "\"hidden_size\": 0", "hidden_size"},
        {"\"hidden_size\": 72", "\"hidden_size\": -1", "hidden_size"},
        {"\"hidden_size\": 72", "\"hidden_size\": \"72\"", "hidden_size"},
        {"\"hidden_size\": 72", "\"hidden_size\": 1e30", "hidden_size"},
        {"\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3", "layers.2"},
        {"\"num_hidden_layers\": 2", "\"num_hidden_layers\": 4000000000", ""},
        {"\"num_attention_heads\": 6", "\"num_attention_heads\": 7", ""},
        {"\"vocab_size\": 53", "\"vocab_size\": 54", ""},
        {"\"vocab_size\": 53", "\"vocab_size\": 53, \"vocab_size\": 53", "config.json"},
        {"\"intermediate_size\": 20", "\"intermediate_size\": 21", ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        replace_in(fresh("config.json"), cases[i].from, cases[i].to);
        GENERATE(cases[i].says);
    }
    static const char *const texts[] = {"", "{", "[]", "null", "\xff\xfe", "{}"};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        write_text(fresh("config.json"), texts[i]);
        GENERATE("config.json");
    }
}

static void test_index(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "{",
        "{\"weight_map\": []}",
        "{\"weight_map\": {\"model.embed_tokens.weight\": \"../../../etc/passwd\"}}",
        "{\"weight_map\": {\"model.embed_tokens.weight\": \"/etc/passwd\"}}",
        "{\"weight_map\": {\"model.embed_tokens.weight\": \"missing.safetensors\"}}",
        "{\"weight_map\": {\"model.embed_tokens.weight\": \"model.safetensors.index.json\"}}",
        "{\"weight_map\": {\"model.embed_tokens.weight\": 5}}",
        "{\"weight_map\": {}}",
    };
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        unlink(fresh("model.safetensors"));
        char index[640];
        snprintf(index, sizeof index, "%s/model.safetensors.index.json", model);
        write_text(index, texts[i]);
        GENERATE("");
    }
    /* A file that is a link to itself. */
    const char *path = fresh("model.safetensors");
    unlink(path);
    assert_int_equal(symlink("model.safetensors", path), 0);
    GENERATE("model.safetensors");
}

static void test_tokenizers(void **state)
{
    (void)state;
    fresh("");
    EXPECT_ERROR(1, "tokenizer", "generate", model, "--prompt", "x");
    EXPECT_ERROR(1, "tokenizer", "score", model, "--text", "x");
    char path[640];
    static const char *const texts[] = {"",
                                        "{",
                                        "[]",
                                        "{}",
                                        "{\"model\": {\"type\": \"WordPiece\"}}",
                                        "{\"model\": {\"type\": \"BPE\", \"vocab\": 5, \"merges\": []}}"};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        fresh("");
        snprintf(path, sizeof path, "%s/tokenizer.json", model);
        write_text(path, texts[i]);
        EXPECT_ERROR(1, "tokenizer.json", "generate", model, "--prompt", "x");
    }
}

static void test_texts(void **state)
{
    (void)state;
    EXPECT_ERROR(1, "prompt 1: not valid UTF-8 (at byte 3)", "generate", MODEL, "--prompt", "abc\xff");
    EXPECT_ERROR(1, "prompt 2: not valid UTF-8 (at byte 0)", "generate", MODEL, "--prompt", "a", "--prompt", "\xc3");
    write_text(scratch_path("bad.txt"), "good line\nbad \xed\xa0\x80 line\n");
    EXPECT_ERROR(1, "bad.txt: not valid UTF-8 (at byte 14)", "generate", MODEL, "--prompts-file",
                 scratch_path("bad.txt"));
    EXPECT_ERROR(1, "bad.txt: not valid UTF-8 (at byte 14)", "score", MODEL, "--file", scratch_path("bad.txt"));
    EXPECT_ERROR(1, "bad.txt: not valid UTF-8 (at byte 14)", "tokenize", MODEL, "--file", scratch_path("bad.txt"));
    const program_setup setup = {.input = "\xf5"};
    expect_error(PENSTOCK_WITH(&setup, "generate", MODEL), 1, "standard input: not valid UTF-8 (at byte 0)");
    write_text(scratch_path("empty.txt"), "");
    EXPECT_ERROR(1, "empty.txt: no prompt in it", "generate", MODEL, "--prompts-file", scratch_path("empty.txt"));
    EXPECT_ERROR(1, "none.txt", "generate", MODEL, "--prompts-file", scratch_path("none.txt"));
    EXPECT_ERROR(1, "Is a directory", "score", MODEL, "--file", scratch());
    /* Larger than is read at once, and refused before it is read: it has no blocks. */
    write_text(scratch_path("huge.txt"), "");
    assert_int_equal(truncate(scratch_path("huge.txt"), (off_t)1 << 40), 0);
    EXPECT_ERROR(1, "larger than the 64 MiB", "score", MODEL, "--file", scratch_path("huge.txt"));
    EXPECT_ERROR(1, "larger than the 64 MiB", "score", MODEL, "--file", "/dev/zero");
}

/* Refused whether or not the tokenizer begins every text with a token, which --token-ids can give. */
static void test_empty_prompt(void **state)
{
    (void)state;
    EXPECT_ERROR(1, "prompt 2: it is empty", "generate", MODEL, "--prompt", "a", "--prompt", "");
    write_text(scratch_path("hole.txt"), "one\n\nthree\n");
    EXPECT_ERROR(1, "prompt 2: it is empty", "generate", MODEL, "--prompts-file", scratch_path("hole.txt"));
    EXPECT_ERROR(1, "text 1: it is empty", "score", MODEL, "--text", "");
    static const char *const inputs[] = {"", "\n"};
    for (size_t i = 0; i < 2; i++) {
        const program_setup setup = {.input = inputs[i]};
        expect_error(PENSTOCK_WITH(&setup, "generate", MODEL), 1, "prompt 1: it is empty");
        expect_error(PENSTOCK_WITH(&setup, "score", MODEL), 1, "text 1: it is empty");
    }
    EXPECT_ERROR(1, "prompt 1: it is empty", "bench", "infer", MODEL, "--prompt", "", "--gen-len", "2");
    program_result bare = PENSTOCK("generate", MODEL, "--token-ids", "0", "-n", "3");
    assert_int_equal(bare.status, 0);
    program_free(&bare);
    copy_file(PST_TEST_SOURCE_DIR "/tests/reference/tokenizers/gpt2/tokenizer.json",
              (fresh(""), scratch_path("t.json")));
    char path[640];
    snprintf(path, sizeof path, "%s/tokenizer.json", model);
    copy_file(scratch_path("t.json"), path);
    EXPECT_ERROR(1, "prompt 1: it is empty", "generate", model, "--prompt", "");
}

static void test_budget(void **state)
{
    (void)state;
    program_result result = PENSTOCK("generate", MODEL, "--prompt", "x", "--host-memory", "1M");
    expect_error(result, 1, "MiB");
}

static void test_token_ids(void **state)
{
    (void)state;
    fresh("");
    EXPECT_ERROR(1, "prompt 2: it holds the token id 53, and the vocabulary of this model has 53", "generate", model,
                 "--token-ids", "1,2", "--token-ids", "52,53");
    EXPECT_ERROR(1, "text 1: it holds the token id 4294967295", "score", model, "--token-ids", "1,4294967295");
    /* A tokenizer of a larger model. */
    char path[640];
    snprintf(path, sizeof path, "%s/tokenizer.json", model);
    copy_file(MODEL "/tokenizer.json", path);
    EXPECT_ERROR(1, "prompt 1: the tokenizer gives the id ", "generate", model, "--prompt", "Once upon a time");
}

/* Weights that are no numbers: nothing that follows from them is passed off as a result. */
static void test_not_finite(void **state)
{
    (void)state;
    const char *path = fresh("model.safetensors");
    size_t bytes;
    char *file = read_file(path, &bytes);
    uint64_t header_bytes;
    memcpy(&header_bytes, file, 8);
    memset(file + 8 + header_bytes, 0xff, bytes - 8 - header_bytes);
    write_file(path, file, bytes);
    free(file);
    GENERATE("not finite");
    EXPECT_ERROR(1, "not finite", "score", model, "--token-ids", "1,2,3");
}

/* A quantized matrix whose index names a group that is not there: where it says so counts, not what was computed then. */
static void test_group_index(void **state)
{
    (void)state;
    static const char name[] = "model.layers.0.self_attn.k_proj.g_idx", key[] = "\"data_offsets\":[";
    snprintf(model, sizeof model, "%s", copy_model(CASES "/gptq_4_reordered", "model-g_idx"));
    char path[640], header[1 << 16];
    snprintf(path, sizeof path, "%s/model.safetensors", model);
    size_t bytes;
    char *file = read_file(path, &bytes);
    uint64_t header_bytes;
    memcpy(&header_bytes, file, 8);
    assert_true(header_bytes < sizeof header);
    memcpy(header, file + 8, header_bytes);
    header[header_bytes] = '\0';
    const char *entry = strstr(header, name), *offsets = entry ? strstr(entry, key) : NULL;
    assert_non_null(offsets);
    uint64_t begin = strtoull(offsets + sizeof key - 1, NULL, 10);
    static const int32_t groups[] = {-1, INT32_MAX, INT32_MIN, 8};
    for (size_t i = 0; i < sizeof groups / sizeof groups[0]; i++) {
        memcpy(file + 8 + header_bytes + begin + 4 * i, &groups[i], 4);
        write_file(path, file, bytes);
        GENERATE("model.safetensors: tensor model.layers.0.self_attn.k_proj.g_idx names a group");
        memset(file + 8 + header_bytes + begin + 4 * i, 0, 4);
    }
    free(file);
}

static void test_unreadable(void **state)
{
    (void)state;
    if (geteuid() == 0) {
        /* The super-user reads everything, so a folder in the place of a file has to do. */
        const char *path = fresh("model.safetensors");
        unlink(path);
        assert_int_equal(mkdir(path, 0777), 0);
        GENERATE("model.safetensors");
        return;
    }
    assert_int_equal(chmod(fresh("model.safetensors"), 0), 0);
    GENERATE("Permission denied");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_copy_works), cmocka_unit_test(test_missing),     cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_lying_headers),  cmocka_unit_test(test_configs),     cmocka_unit_test(test_index),
        cmocka_unit_test(test_tokenizers),     cmocka_unit_test(test_texts),       cmocka_unit_test(test_empty_prompt),
        cmocka_unit_test(test_budget),         cmocka_unit_test(test_unreadable),  cmocka_unit_test(test_token_ids),
        cmocka_unit_test(test_not_finite),     cmocka_unit_test(test_group_index),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
